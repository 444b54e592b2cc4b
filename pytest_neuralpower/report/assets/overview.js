// Every prediction of the session with its budgets: one row each.

const OUTCOMES = {
  ok: ["✓ ok", "good"],
  unbounded: ["– no budget", "faint"],
  over: ["✗ over", "bad"],
  regressed: ["✗ regressed", "bad"],
  missing: ["✗ no baseline", "bad"],
  untrusted: ["✗ untrusted", "bad"],
  misused: ["✗ misused", "bad"],
  failed: ["✗ test failed", "bad"],
};

function outcome(prediction) {
  const [text, tone] = OUTCOMES[prediction.outcome] ?? [prediction.outcome, ""];
  return make("span", { class: `bold ${tone}` }, text);
}

/** The budget that is used up most. */
function tightest(prediction, quantity) {
  return prediction.budgets
    .filter((each) => each.quantity === quantity)
    .sort((one, other) => other.value / other.limit - one.value / one.limit)[0];
}

/** A bar: the value, its interval, and the limit as a mark. */
function meter(budget) {
  const high = budget.interval ? budget.interval[1] : budget.value;
  const end = 1.05 * Math.max(budget.limit, budget.value, Math.min(high, 3 * budget.limit));
  const place = (value) => `${Math.min(100, (100 * value) / end)}%`;
  const parts = [make("span", { class: "value" }), make("span", { class: "limit" })];
  parts[0].style.width = place(budget.value);
  parts[1].style.left = place(budget.limit);
  if (budget.interval) {
    const band = make("span", { class: "interval" });
    band.style.left = place(budget.interval[0]);
    band.style.right = `calc(100% - ${place(high)})`;
    parts.splice(1, 0, band);
  }
  const over = budget.value > budget.limit;
  return make("div", {
    class: over ? "meter over" : "meter", role: "img",
    "aria-label": `${showPercent(budget.value / budget.limit)} of the budget`,
  }, ...parts);
}

function budgetText(budget) {
  const { quantity } = budget;
  const per = budget.per === "sample" ? " per sample" : "";
  return `${show(quantity, budget.value)} of ${show(quantity, budget.limit)}${per}`;
}

function budgetCell(prediction, quantity) {
  const budget = tightest(prediction, quantity);
  if (!budget) return make("td", {}, show(quantity, prediction[FIELDS[quantity]]));
  return make("td", {}, budgetText(budget), meter(budget));
}

function sinceCell(prediction) {
  const compared = prediction.comparison;
  const whole = compared && (compared.energy ?? compared.runtime);
  if (!whole) return make("td", { class: "number faint" }, prediction.baseline?.status ?? "");
  return make("td", { class: `number ${tone(whole.base, whole.head)}` },
    growth(whole.base, whole.head));
}

function overviewRow(prediction, index) {
  return make("tr", { "data-index": index },
    make("td", { class: "number" }, outcome(prediction)),
    make("td", { class: "name" }, make("a", { href: `#prediction=${index}` }, prediction.test)),
    make("td", { class: "wide" }, prediction.platform),
    budgetCell(prediction, "energy"), budgetCell(prediction, "runtime"),
    make("td", { class: "number wide" }, show("power", prediction.power_w)),
    sinceCell(prediction));
}

function drawOverview() {
  const predictions = DATA.predictions;
  const broken = new Set(predictions.filter((each) => each.failure || each.outcome === "failed"));
  byId("verdict").append(predictions.length === 0
    ? "No guarded test predicted anything."
    : `${predictions.length - broken.size} of ${predictions.length} within budget and baseline.`);
  if (broken.size) byId("verdict").className = "bad bold";
  const order = predictions.map((_, index) => index)
    .sort((one, other) => broken.has(predictions[other]) - broken.has(predictions[one]));
  const rows = order.map((index) => overviewRow(predictions[index], index));
  const titles = [
    ["", ""], ["test", ""], ["platform", "wide"], ["energy of one call", ""], ["runtime", ""],
    ["power", "number wide"], ["since baseline", "number"],
  ];
  byId("overview").append(
    make("thead", {}, make("tr", {}, ...titles.map(([title, name]) =>
      make("th", { scope: "col", class: name }, title)))),
    make("tbody", {}, ...rows));
  const filter = () => {
    const words = byId("overview-search").value.toLowerCase();
    let shown = 0;
    rows.forEach((row, place) => {
      const prediction = predictions[order[place]];
      const text = `${prediction.test} ${prediction.platform} ${prediction.model}`.toLowerCase();
      row.hidden = !text.includes(words)
        || (byId("overview-broken").checked && !broken.has(prediction));
      shown += !row.hidden;
    });
    byId("overview-count").textContent = `${shown} of ${rows.length}`;
  };
  byId("overview-tools").hidden = rows.length < 8;
  byId("overview-search").addEventListener("input", filter);
  byId("overview-broken").addEventListener("change", filter);
  filter();
  if (DATA.stale_baselines.length) {
    byId("stale").append(make("p", {}, "Stale baselines, of tests that predict no more:"),
      make("ul", {}, ...DATA.stale_baselines.map((each) =>
        make("li", {}, make("code", {}, each)))));
  }
  return order[0];
}
