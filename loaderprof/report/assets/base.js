// What every part of the page shares: the data, small builders, numbers in words, and the selected stretch of time.

const page = JSON.parse(document.getElementById("page-data").textContent);
const byId = (id) => document.getElementById(id);

function make(tag, attributes = {}, text = null) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  return element;
}

function shape(parent, tag, attributes = {}, text = null) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== null) element.textContent = text;
  parent.append(element);
  return element;
}

const digits = (value) => {
  const size = Math.abs(value);
  if (size >= 9.95) return Math.round(value).toLocaleString("en");
  return String(Number(value.toFixed(size >= 0.995 ? 1 : 2)));
};
const inSeconds = (value) => (value < 0.9995 ? `${digits(value * 1000)} ms` : `${digits(value)} s`);
const inPercent = (share) => `${digits(share * 100)} %`;

/** A moment of the run, exact enough to tell apart from others on an axis that spans `span` seconds. */
function moment(seconds, span) {
  const places = span > 100 ? 0 : span > 10 ? 1 : span > 1 ? 2 : 3;
  return `${seconds.toFixed(places)} s`;
}

/** Round steps for an axis: at most `most` of them between two numbers. */
function ticks(low, high, most) {
  const rough = (high - low) / most;
  const power = 10 ** Math.floor(Math.log10(rough || 1));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((size) => size >= rough) || power * 10;
  const found = [];
  for (let at = Math.ceil(low / step) * step; at <= high + step * 1e-6; at += step) found.push(at);
  return found;
}

const selection = {
  range: null,
  listeners: [],
  set(range) {
    this.range = range;
    for (const listener of this.listeners) listener(range);
  },
};

/** Draw again when a part's width changes; draws once at the start. */
function whenResized(element, draw) {
  let width = 0;
  new ResizeObserver(() => {
    const now = Math.floor(element.clientWidth);
    if (now && now !== width) {
      width = now;
      draw(width);
    }
  }).observe(element);
}

function hatching(drawing, id, colour) {
  const pattern = shape(shape(drawing, "defs"), "pattern", {
    id, width: 5, height: 5, patternUnits: "userSpaceOnUse", patternTransform: "rotate(45)",
  });
  shape(pattern, "rect", { width: 5, height: 5, fill: colour, opacity: 0.18 });
  shape(pattern, "rect", { width: 1.8, height: 5, fill: colour });
}
