// Charts of one prediction, drawn once the charting library is there.

const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#7b61c9"];
const OTHER = "#8a93a3";

/** The library reads some HTML in texts: names must not. */
function plain(text) {
  return text.replaceAll("&", "&amp;").replaceAll("<", "&lt;");
}

function colour(name) {
  // A probe, because the library does not know light-dark().
  const probe = document.body.appendChild(make("i"));
  probe.style.color = `var(${name})`;
  const found = getComputedStyle(probe).color;
  probe.remove();
  return found;
}

function layout(more) {
  return {
    paper_bgcolor: "transparent", plot_bgcolor: "transparent",
    font: { color: colour("--text"), family: "system-ui, sans-serif", size: 13 },
    hoverlabel: { bgcolor: colour("--raised"), bordercolor: colour("--line"), font: { color: colour("--text") }, align: "left" },
    margin: { l: 60, r: 10, t: 10, b: 45 },
    ...more,
  };
}

const CONFIG = { responsive: true, displaylogo: false, displayModeBar: false };

/** Kinds of layers, most expensive first, each with its colour. */
function kindColours(layers, field) {
  const sums = new Map();
  for (const layer of layers) sums.set(layer.kind, (sums.get(layer.kind) ?? 0) + (layer[field] ?? 0));
  const kinds = [...sums.keys()].sort((one, other) => sums.get(other) - sums.get(one));
  return new Map(kinds.map((kind, place) => [kind, PALETTE[place] ?? OTHER]));
}

function hoverText(layer, quantity) {
  const interval = layer[`${quantity}_interval_${quantity === "energy" ? "mj" : "ms"}`];
  const range = interval ? ` (${showRange(quantity, interval)})` : "";
  const since = sinceText(layer, FIELDS[quantity]);
  return [
    `<b>${plain(layer.path || "(root)")}</b>`, `${plain(layer.op)} ${plain(layer.out)}`,
    layer.gone ? "gone" : `${show(quantity, layer[FIELDS[quantity]])}${range}`,
    since && !layer.gone ? `since the baseline: ${since}` : "",
  ].filter(Boolean).join("<br>");
}

function drawBars(prediction, layers, quantity, reveal) {
  const field = FIELDS[quantity];
  const scale = UNITS[quantity].find((each) => layers.some((layer) => (layer[field] ?? 0) >= each[1]))
    ?? UNITS[quantity].at(-1);
  const colours = kindColours(layers, field);
  const places = new Map(layers.map((layer, place) => [layer, place + 1]));
  const width = layers.length > 150 ? 1 : 0.85;
  const bars = (members, values, more) => ({
    type: "bar", width, x: members.map((layer) => places.get(layer)), y: values.map((value) => value / scale[1]),
    customdata: members.map((layer) => layer.index),
    hovertext: members.map((layer) => hoverText(layer, quantity)), hoverinfo: "text", ...more,
  });
  const traces = [...colours].map(([kind, fill]) => {
    const members = layers.filter((layer) => layer.kind === kind && !layer.gone);
    return bars(members, members.map((layer) => layer[field] ?? 0), { name: kind, marker: { color: fill } });
  }).filter((trace) => trace.x.length);
  const ghosts = layers.filter((layer) => layer.change && !layer.change.new
    && tone(layer.change[field] ?? 0, layer[field] ?? 0) !== "faint");
  if (ghosts.length) {
    traces.push(bars(ghosts, ghosts.map((layer) => layer.change[field]), {
      name: "baseline", hoverinfo: "skip",
      marker: { color: "rgba(0,0,0,0)", line: { color: colour("--text"), width: 1.5 } },
    }));
  }
  byId("chart-hint").textContent = ghosts.length
    ? "Outlines are the baseline, where it differs. Click a bar to see the layer below; drag to zoom."
    : "Click a bar to see the layer below; drag to zoom.";
  const axis = { gridcolor: colour("--line"), zerolinecolor: colour("--line") };
  Plotly.react("chart", traces, layout({
    height: 420, barmode: "overlay", dragmode: "zoom",
    xaxis: { ...axis, title: { text: "layer" }, showgrid: false, range: [0.4, layers.length + 0.6] },
    yaxis: { ...axis, title: { text: `${quantity}, ${scale[0]}` }, rangemode: "tozero", fixedrange: true },
    legend: { orientation: "h", y: 1.02, yanchor: "bottom", x: 0 },
  }), CONFIG).then((chart) => {
    chart.removeAllListeners("plotly_click");
    chart.on("plotly_click", (event) => reveal(event.points[0].customdata));
  });
}

/** A module smaller than this share of the view would be thinner than a pixel. */
const LEAST_SHARE = 0.0012;
const ICICLE_DEPTH = 4;

/** A module alone in its parent says nothing: start where the tree branches. */
function firstBranch(node) {
  const inside = [...node.children.values()];
  return inside.length === 1 && node.layers.length === 0 ? firstBranch(inside[0]) : node;
}

/** The modules below ``root``, as the library wants them. */
function icicleNodes(root, total, quantity, colours) {
  const found = { ids: [], labels: [], parents: [], values: [], text: [], hovertext: [], modules: [], fills: [] };
  const module = colour("--line");
  const add = (id, label, parent, node, fill, depth) => {
    const share = showPercent(total ? node.value / total : 0);
    found.ids.push(id);
    found.labels.push(plain(label));
    found.parents.push(parent);
    // A sum may round above its parent, which the library refuses.
    found.values.push(node.value * (1 + (ICICLE_DEPTH - depth) * 1e-9));
    found.text.push(share);
    found.hovertext.push(`<b>${plain(node.path || label)}</b><br>${show(quantity, node.value)}, ${share}`);
    found.modules.push(node);
    found.fills.push(fill);
  };
  const walk = (node, parent, depth) => {
    const id = `module ${node.path}`;
    const leaf = isLeaf(node);
    add(id, node.name, parent, node, leaf ? colours.get(node.layers[0].kind) : module, depth);
    if (leaf || depth === ICICLE_DEPTH) return;
    const visible = (each) => each.value > LEAST_SHARE * root.value;
    for (const child of [...node.children.values()].filter(visible)) walk(child, id, depth + 1);
    for (const own of ownLayers(node, quantity).filter(visible)) {
      add(`layer ${own.layer.index}`, own.name, id, own, colours.get(own.layer.kind), depth + 1);
    }
  };
  walk(root, "", 0);
  return found;
}

function drawIcicle(tree, layers, quantity, root = firstBranch(tree)) {
  const nodes = icicleNodes(root, tree.value, quantity, kindColours(layers, FIELDS[quantity]));
  drawTrail(tree, root, (node) => drawIcicle(tree, layers, quantity, node));
  Plotly.react("icicle", [{
    type: "icicle", ids: nodes.ids, labels: nodes.labels, parents: nodes.parents, values: nodes.values,
    text: nodes.text, textinfo: "label+text", hovertext: nodes.hovertext, hoverinfo: "text",
    // The share that is too small to show stays empty.
    branchvalues: "total", marker: { colors: nodes.fills, line: { width: 0.5, color: colour("--page") } },
    leaf: { opacity: 1 }, tiling: { orientation: "v" }, sort: false, pathbar: { visible: false },
  }], layout({ height: 380, margin: { l: 0, r: 0, t: 4, b: 0 }, uniformtext: { minsize: 10, mode: "hide" } }), CONFIG).then((chart) => {
    chart.removeAllListeners("plotly_icicleclick");
    chart.on("plotly_icicleclick", (event) => {
      const node = nodes.modules[event.points[0].pointNumber];
      if (node.layer || isLeaf(node)) shown.table.reveal((node.layer ?? node.layers[0]).index);
      else drawIcicle(tree, layers, quantity, node);
      return false;
    });
  });
}

/** The way from the model to the module that is shown, to go back by. */
function drawTrail(tree, root, go) {
  const steps = [tree];
  for (const name of root.path ? root.path.split(".") : []) steps.push(steps.at(-1).children.get(name));
  byId("trail").replaceChildren(...steps.map((node) => make("li", {}, node === root
    ? make("span", { "aria-current": "true" }, node.name)
    : make("button", { type: "button", onclick: () => go(node) }, node.name))));
}
