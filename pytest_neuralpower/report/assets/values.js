"use strict";
// What the page is made of, and how values are written: as in the terminal.

const DATA = JSON.parse(document.getElementById("data").textContent);

const UNITS = {
  energy: [["kJ", 1e6], ["J", 1e3], ["mJ", 1], ["µJ", 1e-3]],
  runtime: [["s", 1e3], ["ms", 1], ["µs", 1e-3]],
  power: [["kW", 1e3], ["W", 1], ["mW", 1e-3]],
};
const FIELDS = { energy: "energy_mj", runtime: "runtime_ms", power: "power_w" };

/** Three significant digits in the unit that reads best. */
function show(quantity, value) {
  if (value === null || value === undefined) return "–";
  const scales = UNITS[quantity];
  const [symbol, factor] =
    scales.find((scale) => Math.abs(value / scale[1]) >= 0.9995) ?? scales.at(-1);
  return `${digits(value / factor)} ${symbol}`;
}

function digits(value) {
  const size = Math.abs(value);
  if (size > 0 && size < 0.01) return String(Number(value.toPrecision(2)));
  return value.toFixed(size >= 99.95 ? 0 : size >= 9.995 ? 1 : 2);
}

function showRange(quantity, interval) {
  return interval ? `${show(quantity, interval[0])} to ${show(quantity, interval[1])}` : "–";
}

function showPercent(share) {
  const percent = 100 * share;
  if (percent > 0 && percent < 0.1) return "<0.1%";
  return `${percent.toFixed(percent < 99.95 ? 1 : 0)}%`;
}

/** How much more, in percent; in times where it has more than doubled. */
function growth(before, after) {
  if (!before) return after ? "new" : "+0.0%";
  if (!after) return "gone";
  const ratio = after / before;
  if (ratio >= 2) return `×${Number(ratio.toPrecision(3)).toLocaleString("en")}`;
  if (Math.abs(ratio - 1) < 1e-9) return "+0.0%";
  return `${ratio < 1 ? "−" : "+"}${showPercent(Math.abs(ratio - 1))}`;
}

function signed(quantity, value) {
  if (value === 0) return "±0";
  return `${value < 0 ? "−" : "+"}${show(quantity, Math.abs(value))}`;
}

function count(value) {
  return Math.round(value).toLocaleString("en");
}

/** A colour class for something that has become costlier or cheaper. */
function tone(before, after) {
  if (Math.abs(after - before) <= 1e-9 * Math.abs(before)) return "faint";
  return after > before ? "bad" : "good";
}

/** An element; texts are never read as HTML. */
function make(name, attributes = {}, ...children) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) {
    if (value === false || value === null || value === undefined) continue;
    if (key.startsWith("on")) made.addEventListener(key.slice(2), value);
    else made.setAttribute(key, value === true ? "" : value);
  }
  made.append(...children.filter((each) => each !== null && each !== undefined));
  return made;
}

/** A path that may break after its dots. */
function breakable(path) {
  return path.split(/(?<=\.)/).flatMap((step) => [step, make("wbr")]);
}

function byId(id) {
  return document.getElementById(id);
}

/** A definition list of those pairs that have a value. */
function facts(pairs) {
  const known = pairs.filter(([, value]) => value !== null && value !== undefined && value !== "");
  return make("dl", {}, ...known.flatMap(([term, value]) => [
    make("dt", {}, term), make("dd", {}, value),
  ]));
}
