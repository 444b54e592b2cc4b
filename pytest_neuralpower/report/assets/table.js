// The table of layers: sorted, searched, and drawn a few hundred rows at a time.

const ROWS_AT_ONCE = 200;

/** One layer as the table, the modules and the charts see it; a layer that is gone has a base alone. */
function layersOf(prediction) {
  const columns = prediction.layers;
  const changed = prediction.comparison?.changed ?? {};
  const text = (column, index) => DATA.texts[columns[column][index]];
  const known = columns.path.map((_, index) => {
    const change = changed[index];
    return {
      index, order: index, gone: false, change,
      path: text("path", index), op: text("op", index), kind: text("kind", index),
      dtype: text("dtype", index), out: text("out", index),
      configuration: text("configuration", index), estimator: text("estimator", index),
      flags: text("flags", index),
      energy_mj: columns.energy_mj[index], runtime_ms: columns.runtime_ms[index],
      power_w: columns.power_w[index], flops: columns.flops[index], bytes: columns.bytes[index],
      energy_interval_mj: columns.energy_interval_mj[index],
      runtime_interval_ms: columns.runtime_interval_ms[index],
    };
  });
  const gone = (prediction.comparison?.gone ?? []).map((change, place) => ({
    index: known.length + place, order: change.at - 0.5, gone: true, change,
    path: DATA.texts[change.path], op: DATA.texts[change.op], kind: DATA.texts[change.kind],
    dtype: "", out: "", configuration: "", estimator: "", flags: "",
    energy_mj: null, runtime_ms: null, power_w: null, flops: null, bytes: null,
    energy_interval_mj: null, runtime_interval_ms: null,
  }));
  return [...known, ...gone].sort((one, other) => one.order - other.order);
}

/** What the layer cost in the baseline; the same as now where nothing has changed. */
function baseOf(layer, field) {
  return layer.change ? layer.change[field] : layer[field];
}

function sinceText(layer, field) {
  if (!layer.change) return "";
  if (layer.gone) return "gone";
  return layer.change.new ? "new" : growth(layer.change[field], layer[field]);
}

class LayerTable {
  constructor(prediction, layers) {
    this.prediction = prediction;
    this.layers = layers;
    this.field = prediction.energy_mj === null ? "runtime_ms" : "energy_mj";
    this.total = prediction[this.field];
    this.columns = this.chooseColumns();
    this.sorted = { column: 0, descending: false };
    this.texts = layers.map((layer) => [
      layer.path, layer.op, layer.kind, layer.configuration, layer.flags, layer.estimator,
      layer.dtype, sinceText(layer, this.field),
    ].join(" ").toLowerCase());
    byId("search").value = "";
    byId("changed").checked = false;
    byId("changed-label").hidden = !prediction.comparison;
    byId("search").oninput = () => this.draw();
    byId("changed").onchange = () => this.draw();
    byId("more").onclick = () => this.drawMore();
    this.draw();
  }

  chooseColumns() {
    const { prediction, field } = this;
    const quantity = field === "energy_mj" ? "energy" : "runtime";
    const interval = `${quantity}_interval_${quantity === "energy" ? "mj" : "ms"}`;
    const share = (layer) => (this.total ? (layer[field] ?? 0) / this.total : 0);
    const columns = [
      { title: "#", value: (layer) => layer.order, text: (layer) => (layer.gone ? "" : layer.index + 1), wide: true, number: true },
      { title: "layer", value: (layer) => layer.path, name: true },
      { title: "operation", value: (layer) => layer.op, text: (layer) => layer.op },
      { title: "output", value: (layer) => layer.out, text: (layer) => layer.out, wide: true },
      { title: "share", value: share, text: (layer) => (layer.gone ? "" : showPercent(share(layer))), number: true },
      { title: quantity, value: (layer) => layer[field] ?? -1, text: (layer) => show(quantity, layer[field]), number: true },
    ];
    if (layerHas(prediction, interval)) {
      columns.push({ title: "interval", value: (layer) => (layer[interval] ? layer[interval][1] - layer[interval][0] : -1), text: (layer) => showRange(quantity, layer[interval]), wide: true, number: true });
    }
    if (quantity === "energy" && prediction.runtime_ms !== null) {
      columns.push({ title: "runtime", value: (layer) => layer.runtime_ms ?? -1, text: (layer) => show("runtime", layer.runtime_ms), wide: true, number: true });
      columns.push({ title: "power", value: (layer) => layer.power_w ?? -1, text: (layer) => show("power", layer.power_w), wide: true, number: true });
    }
    if (prediction.comparison) {
      columns.push({ title: "since baseline", value: (layer) => (layer[field] ?? 0) - (baseOf(layer, field) ?? 0), text: (layer) => sinceText(layer, field), number: true, since: true });
    }
    columns.push({ title: "flags", value: (layer) => layer.flags, node: flagLetters, wide: true });
    return columns;
  }

  draw() {
    const words = byId("search").value.toLowerCase().split(/\s+/);
    const changed = byId("changed").checked;
    const { column, descending } = this.sorted;
    const { value } = this.columns[column];
    this.shown = this.layers.filter((layer, place) =>
      (!changed || layer.change) && words.every((word) => this.texts[place].includes(word)));
    const compare = (one, other) => (one < other ? -1 : one > other ? 1 : 0);
    this.shown.sort((one, other) => (descending ? -1 : 1) * compare(value(one), value(other)));
    this.drawHead();
    byId("table").tBodies[0].replaceChildren();
    this.drawn = 0;
    this.drawMore();
    const share = this.shown.reduce((sum, layer) => sum + (layer[this.field] ?? 0), 0) / this.total;
    byId("count").textContent =
      `${count(this.shown.length)} of ${count(this.layers.length)} layers, ${showPercent(share || 0)} of the ${this.field === "energy_mj" ? "energy" : "runtime"}`;
  }

  drawHead() {
    const cells = this.columns.map((column, place) => {
      const active = place === this.sorted.column;
      const arrow = active ? (this.sorted.descending ? " ▾" : " ▴") : "";
      return make("th", {
        scope: "col", class: classes(column),
        "aria-sort": active ? (this.sorted.descending ? "descending" : "ascending") : null,
      }, make("button", { type: "button", onclick: () => this.sort(place) }, column.title + arrow));
    });
    byId("table").tHead.replaceChildren(make("tr", {}, ...cells));
  }

  /** Numbers start with the largest. */
  sort(place) {
    const same = this.sorted.column === place;
    const descending = same ? !this.sorted.descending : Boolean(this.columns[place].number && place);
    this.sorted = { column: place, descending };
    this.draw();
    byId("table").tHead.rows[0].cells[place].firstChild.focus();
  }

  drawMore(rows = ROWS_AT_ONCE) {
    const next = this.shown.slice(this.drawn, this.drawn + rows);
    byId("table").tBodies[0].append(...next.map((layer) => this.row(layer)));
    this.drawn += next.length;
    const left = this.shown.length - this.drawn;
    byId("more").hidden = left === 0;
    byId("more").textContent = `Show ${count(Math.min(left, ROWS_AT_ONCE))} more of ${count(left)}`;
  }

  row(layer) {
    const cells = this.columns.map((column) => {
      if (column.name) return make("td", { class: "name" }, this.expander(layer));
      const name = column.since && layer.change
        ? `${classes(column)} ${tone(baseOf(layer, this.field) ?? 0, layer[this.field] ?? 0)}`
        : classes(column);
      return make("td", { class: name }, column.node ? column.node(layer) : String(column.text(layer)));
    });
    return make("tr", { "data-index": layer.index, class: layer.gone ? "gone" : null }, ...cells);
  }

  expander(layer) {
    return make("button", {
      type: "button", class: "layer", "aria-expanded": "false",
      onclick: (event) => this.toggle(event.currentTarget, layer),
    }, ...breakable(layer.path || "(root)"));
  }

  toggle(button, layer) {
    const row = button.closest("tr");
    const open = button.getAttribute("aria-expanded") === "true";
    button.setAttribute("aria-expanded", String(!open));
    if (open) row.nextSibling.remove();
    else row.after(make("tr", { class: "details" },
      make("td", { colspan: this.columns.length }, layerFacts(layer))));
  }

  /** Show one layer, opened: what a click in a chart does. */
  reveal(index) {
    if (!this.shown.some((layer) => layer.index === index)) {
      byId("search").value = "";
      byId("changed").checked = false;
      this.draw();
    }
    const place = this.shown.findIndex((layer) => layer.index === index);
    if (place >= this.drawn) this.drawMore(place + 1 - this.drawn);
    const button = document.querySelector(`#table tr[data-index="${index}"] .layer`);
    if (button.getAttribute("aria-expanded") === "false") button.click();
    button.scrollIntoView({ block: "center" });
    button.focus({ preventScroll: true });
  }
}

/** The first letter of each flag, as in the terminal. */
function flagLetters(layer) {
  if (!layer.flags) return "";
  return make("abbr", { title: layer.flags }, layer.flags.split(" ").map((flag) => flag[0].toUpperCase()).join(" "));
}

function classes(column) {
  return [column.number && "number", column.wide && "wide"].filter(Boolean).join(" ");
}

function layerHas(prediction, interval) {
  return prediction.layers[interval].some(Boolean);
}

function layerFacts(layer) {
  const { change } = layer;
  const before = ["energy", "runtime"]
    .filter((quantity) => change && !change.new && change[FIELDS[quantity]] !== null)
    .map((quantity) => show(quantity, change[FIELDS[quantity]])).join(", ");
  return facts([
    ["configuration", layer.configuration], ["kind", layer.kind], ["data type", layer.dtype],
    ["operations", layer.flops === null ? null : `${count(layer.flops)} FLOPs`],
    ["moves", layer.bytes === null ? null : `${count(layer.bytes)} bytes`],
    ["energy", layer.energy_mj === null ? null
      : `${show("energy", layer.energy_mj)} (${showRange("energy", layer.energy_interval_mj)})`],
    ["runtime", layer.runtime_ms === null ? null
      : `${show("runtime", layer.runtime_ms)} (${showRange("runtime", layer.runtime_interval_ms)})`],
    ["power", layer.power_w === null ? null : show("power", layer.power_w)],
    ["estimator", layer.estimator], ["flags", layer.flags],
    ["baseline", before],
    ["why it differs", change ? change.causes.map((cause) => DATA.texts[cause]).join("; ") : null],
    ["breaks", change?.breaches.length ? `the limit of a layer's ${change.breaches.join(" and ")}` : null],
  ]);
}
