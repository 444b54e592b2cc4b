// One prediction at a time, chosen by the address; the theme; and when charts are drawn.

let shown = null;

function chosen() {
  const index = Number(/^#prediction=(\d+)$/.exec(location.hash)?.[1] ?? NaN);
  return index < DATA.predictions.length ? index : null;
}

function metric() {
  return document.querySelector("input[name=metric]:checked").value;
}

function drawPrediction(index) {
  const prediction = DATA.predictions[index];
  const layers = layersOf(prediction);
  byId("prediction").hidden = false;
  for (const row of byId("overview").tBodies[0].rows) {
    row.setAttribute("aria-current", String(Number(row.dataset.index) === index));
  }
  byId("prediction-title").textContent = prediction.test;
  const noun = prediction.batch === 1 ? "sample" : "samples";
  byId("facts").replaceChildren(
    make("p", {}, outcome(prediction), ` ${prediction.model} on ${prediction.platform}, one call of ${prediction.batch} ${noun}, ${count(layers.filter((each) => !each.gone).length)} layers`),
    prediction.estimated_power
      ? make("p", { class: "bold" }, "Power, and so energy, is estimated from a given wattage: no meter measured it.") : "",
    totals(prediction), failure(prediction));
  byId("changes").replaceChildren(...changes(prediction));
  const known = ["energy", "runtime"].filter((each) => prediction[FIELDS[each]] !== null);
  byId("metric").hidden = known.length < 2;
  if (!known.includes(metric())) document.querySelector(`input[value=${known[0]}]`).checked = true;
  byId("provenance").replaceChildren(provenance(prediction));
  shown = { prediction, layers, table: new LayerTable(prediction, layers) };
  drawViews();
}

function totals(prediction) {
  const intervals = { energy: "energy_interval_mj", runtime: "runtime_interval_ms", power: "power_interval_w" };
  const rows = Object.keys(FIELDS).filter((each) => prediction[FIELDS[each]] !== null).map((quantity) => {
    const interval = prediction[intervals[quantity]];
    const budgets = prediction.budgets.filter((each) => each.quantity === quantity);
    return make("tr", {},
      make("th", { scope: "row" }, quantity),
      make("td", { class: "number bold" }, show(quantity, prediction[FIELDS[quantity]])),
      make("td", { class: "number range" }, interval
        ? showRange(quantity, interval) : ""),
      make("td", {}, ...budgets.map((each) => make("div", { class: each.value > each.limit ? "bad" : "good" },
        `${each.value > each.limit ? "✗" : "✓"} ${budgetText(each)}`, meter(each)))));
  });
  const sure = Object.values(intervals).map((each) => prediction[each]).find(Boolean);
  const interval = sure ? `${Math.round(100 * sure[2])}% interval` : "";
  const head = ["", "predicted", interval, "budget"].map((title, place) =>
    make("th", { scope: "col", class: place === 1 || place === 2 ? "number" : "" }, title));
  return make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows)));
}

function failure(prediction) {
  if (!prediction.failure) return "";
  return make("details", {}, make("summary", {}, "What the test says"), make("pre", {}, prediction.failure));
}

function changes(prediction) {
  const compared = prediction.comparison;
  if (!compared) return [];
  const lines = ["energy", "runtime"].filter((each) => compared[each]).map((quantity) => {
    const { base, head, interval, calibration } = compared[quantity];
    const sure = interval
      ? `, ${Math.round(100 * interval[2])}% sure between ${signed(quantity, interval[0])} and ${signed(quantity, interval[1])}` : "";
    const recalibrated = compared.recalibrated && calibration !== null
      ? `; calibration itself ${signed(quantity, calibration)}, not counted` : "";
    if (tone(base, head) === "faint") return make("p", {}, `${quantity}: ${show(quantity, head)}, unchanged${recalibrated}`);
    return make("p", {}, `${quantity}: ${show(quantity, base)} → ${show(quantity, head)}, `,
      make("span", { class: `bold ${tone(base, head)}` }, growth(base, head)), sure + recalibrated);
  });
  const made = [make("h3", {}, "Since the baseline"), ...lines];
  if (compared.causes.length) {
    const head = ["why", "layers", "energy", "runtime", "for example"].map((title, place) =>
      make("th", { scope: "col", class: ["", "number", "number", "number wide", ""][place] }, title));
    const rows = compared.causes.map((each) => make("tr", {},
      make("td", {}, each.cause), make("td", { class: "number" }, count(each.layers)),
      make("td", { class: "number" }, compared.energy ? signed("energy", each.energy_mj) : "–"),
      make("td", { class: "number wide" }, compared.runtime ? signed("runtime", each.runtime_ms) : "–"),
      make("td", { class: "name" }, make("code", {}, ...breakable(each.example || "(root)")), each.detail ? ` ${each.detail}` : "")));
    made.push(make("div", { class: "scroll" }, make("table", {}, make("thead", {}, make("tr", {}, ...head)), make("tbody", {}, ...rows))));
  }
  return made;
}

function provenance(prediction) {
  const place = prediction.file ? `${prediction.file}${prediction.line ? `:${prediction.line}` : ""}` : "";
  const stored = prediction.comparison?.recalibrated ? `accepted on calibration ${prediction.comparison.stored_sha256.slice(0, 12)}` : "";
  return facts([
    ["platform", `${prediction.platform}, sha256 ${prediction.platform_sha256}`],
    ...Object.entries(prediction.provenance ?? {}),
    ["energy is", prediction.energy_mj === null ? "not known on this platform" : prediction.energy_basis],
    ["not backed by measurements", `${showPercent(prediction.untrusted_share)} of the cost: uncovered, extrapolated or inferred`],
    ["baseline", [prediction.baseline?.path, stored].filter(Boolean).join(", ")],
    ["test", place], ["notes", prediction.notes.join("; ")],
    ["pytest-neuralpower", DATA.plugin], ["torch", DATA.torch],
  ]);
}

function drawViews() {
  if (!shown) return;
  const quantity = metric();
  const tree = moduleTree(shown.prediction, shown.layers, FIELDS[quantity]);
  drawModules(shown.prediction, tree, quantity);
  if (!window.Plotly) return;
  drawBars(shown.prediction, shown.layers, quantity, (index) => shown.table.reveal(index));
  // A moment later, so that the page answers in between.
  const { layers } = shown;
  setTimeout(() => drawIcicle(tree, layers, quantity));
}

function setTheme(theme) {
  const root = document.documentElement;
  if (theme) root.dataset.theme = theme;
  const dark = getComputedStyle(root).colorScheme === "dark"
    || (!root.dataset.theme && matchMedia("(prefers-color-scheme: dark)").matches);
  byId("theme").textContent = dark ? "Light theme" : "Dark theme";
  byId("theme").onclick = () => {
    setTheme(dark ? "light" : "dark");
    drawViews();
  };
}

setTheme(null);
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => {
  setTheme(null);
  drawViews();
});
for (const radio of document.querySelectorAll("input[name=metric]")) radio.addEventListener("change", drawViews);
const first = drawOverview();
if (first !== undefined) drawPrediction(chosen() ?? first);
addEventListener("hashchange", () => {
  if (chosen() === null) return;
  drawPrediction(chosen());
  byId("prediction-title").focus();
});
document.addEventListener("DOMContentLoaded", drawViews);
