// Singular values of several matrices over their rank, on a logarithmic axis. Lines differ in colour, dash and label.

/** @typedef {import("../explorer/dom.js").Steps} Steps */
/** @typedef {{key: string, name: string, values: number[], rank: number|null}} Series */
/** @typedef {import("../matrix/matrix.js").Model} Model */
/** @typedef {ReturnType<typeof scale>} Axes */

const SVG = "http://www.w3.org/2000/svg";
const MARGIN = { left: 52, right: 12, top: 10, bottom: 34 };
const HEIGHT = 260;
/** Below this share of the largest value a float32 matrix says nothing. */
const FLOOR = 1e-7;

/**
 * @template {keyof SVGElementTagNameMap} K
 * @param {K} name
 * @param {Record<string, string | number>} attributes
 * @param {string} [text]
 * @returns {SVGElementTagNameMap[K]}
 */
function node(name, attributes, text) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, String(value));
  if (text !== undefined) made.textContent = text;
  return made;
}

/**
 * The values that a logarithmic axis names: decades, or 1-2-5 where there are few of them.
 * @param {number} bottom
 * @param {number} top
 */
export function ticks(bottom, top) {
  const steps = top - bottom < 2.2 ? [1, 2, 5] : [1];
  const skip = Math.max(1, Math.ceil((top - bottom) / 6));
  const found = [];
  for (let decade = Math.floor(bottom); decade <= top; decade += 1) {
    if (steps.length === 1 && decade % skip) continue;
    for (const step of steps) {
      const value = Number(`${step}e${decade}`);
      if (Math.log10(value) >= bottom - 1e-9 && Math.log10(value) <= top + 1e-9) found.push(value);
    }
  }
  return found;
}

/**
 * The scale of a chart: x over numbers 1..n, y over logarithms.
 * @param {Series[]} series
 * @param {number} width
 * @param {number} height
 */
export function scale(series, width, height) {
  const values = series.flatMap((one) => one.values).filter((v) => v > 0);
  const most = Math.max(...values, Number.MIN_VALUE);
  const least = Math.max(Math.min(...values, most), most * FLOOR);
  const room = Math.max(0.05, 0.04 * Math.log10(most / least));
  const [bottom, top] = [Math.log10(least) - room, Math.log10(most) + room];
  const count = Math.max(1, ...series.map((one) => one.values.length));
  const inner = { w: width - MARGIN.left - MARGIN.right, h: height - MARGIN.top - MARGIN.bottom };
  return {
    top, bottom, count,
    x: (/** @type {number} */ rank) => MARGIN.left + (count < 2 ? 0.5 : (rank - 1) / (count - 1)) * inner.w,
    y: (/** @type {number} */ value) => {
      const at = value > 0 ? Math.max(bottom, Math.log10(value)) : bottom;
      return MARGIN.top + (1 - (at - bottom) / (top - bottom)) * inner.h;
    },
    rank: (/** @type {number} */ x) => Math.min(count, Math.max(1, Math.round(1 + ((x - MARGIN.left) / inner.w) * (count - 1)))),
  };
}

/**
 * The first number and round ones after it.
 * @param {number} count
 */
function ranks(count) {
  const least = Math.max(1, count / 6), power = 10 ** Math.floor(Math.log10(least));
  const step = power * ([1, 2, 5].find((times) => times * power >= least) ?? 10);
  const round = Array.from({ length: Math.floor(count / step) }, (_, index) => (index + 1) * step);
  return [1, ...round.filter((at) => at > 1)];
}

/** @param {number | undefined} value */
const shown = (value) => (value === undefined ? "none" : value === 0 ? "0" : value.toPrecision(3));

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const root = document.createElement("figure");
  root.className = "atlas-compare atlas-spectra";
  const picture = node("svg", { role: "img", tabindex: "0", height: String(HEIGHT) });
  const legend = document.createElement("ul");
  const status = document.createElement("figcaption");
  status.setAttribute("aria-live", "polite");
  root.append(legend, picture, status);
  el.append(root);
  let rank = 1;
  const series = () => /** @type {Series[]} */ (model.get("series"));
  let axes = scale(series(), 520, HEIGHT); // until it is drawn

  /** @param {number} width */
  function grid(width) {
    const found = [];
    for (const value of ticks(axes.bottom, axes.top)) {
      const y = axes.y(value);
      found.push(node("line", { class: "grid", x1: MARGIN.left, x2: width - MARGIN.right, y1: y, y2: y }));
      const text = value >= 1e-3 && value < 1e5 ? String(value) : value.toExponential(0).replace("-", "−").replace("+", "");
      found.push(node("text", { x: MARGIN.left - 6, y: y + 4, "text-anchor": "end" }, text));
    }
    for (const at of ranks(axes.count)) {
      const anchor = at === 1 ? "start" : at === axes.count ? "end" : "middle";
      found.push(node("text", { x: axes.x(at), y: HEIGHT - 18, "text-anchor": anchor }, String(at)));
    }
    const middle = MARGIN.left + (width - MARGIN.left - MARGIN.right) / 2;
    found.push(node("text", { class: "axis", x: middle, y: HEIGHT - 3, "text-anchor": "middle" }, "singular value number"));
    return found;
  }

  /** @param {Series} one */
  function line(one) {
    const points = one.values.map((value, at) => `${axes.x(at + 1).toFixed(1)},${axes.y(value).toFixed(1)}`);
    return node("polyline", { class: `line ${one.key}`, points: points.join(" "), fill: "none" });
  }

  function marker() {
    /** @type {SVGElement[]} */
    const found = [node("line", { class: "cursor", x1: axes.x(rank), x2: axes.x(rank), y1: MARGIN.top, y2: HEIGHT - MARGIN.bottom })];
    for (const one of series()) {
      if (one.values[rank - 1] === undefined) continue;
      found.push(node("circle", { class: one.key, cx: axes.x(rank), cy: axes.y(one.values[rank - 1]), r: 3.5 }));
    }
    return found;
  }

  function names() {
    legend.replaceChildren(...series().map((one) => {
      const item = document.createElement("li");
      const key = node("svg", { width: 34, height: 10, "aria-hidden": "true" });
      key.append(node("line", { class: `line ${one.key}`, x1: 1, x2: 33, y1: 5, y2: 5 }));
      const text = document.createElement("span");
      text.textContent = one.rank === null ? one.name : `${one.name} · effective rank ${one.rank.toFixed(1)}`;
      item.append(key, text);
      return item;
    }));
  }

  function say() {
    const found = series().map((one) => `${one.name} ${shown(one.values[rank - 1])}`);
    status.textContent = model.get("busy")
      ? model.get("busy")
      : found.length ? `Singular value ${rank}: ${found.join(", ")}` : "No spectra to show.";
  }

  function draw() {
    const width = Math.max(260, Math.round(root.clientWidth || 520));
    const found = series();
    picture.setAttribute("width", String(width));
    picture.setAttribute("viewBox", `0 0 ${width} ${HEIGHT}`);
    picture.setAttribute("aria-label",
      `Singular values of ${found.map((one) => one.name).join(", ") || "nothing yet"}. Arrow keys read them.`);
    root.toggleAttribute("data-busy", Boolean(model.get("busy")));
    names();
    axes = scale(found, width, HEIGHT);
    rank = Math.min(rank, axes.count);
    picture.replaceChildren(...(found.length ? [...grid(width), ...found.map(line), ...marker()] : []));
    say();
  }

  /** @param {number} to */
  function move(to) {
    rank = Math.min(axes.count, Math.max(1, to));
    picture.querySelectorAll(".cursor, circle").forEach((old) => old.remove());
    picture.append(...(series().length ? marker() : []));
    say();
  }

  picture.addEventListener("keydown", (event) => {
    const wide = Math.max(1, Math.round(axes.count / 10));
    const to = /** @type {Steps} */ ({ ArrowLeft: rank - 1, ArrowRight: rank + 1, PageUp: rank - wide,
      PageDown: rank + wide, Home: 1, End: axes.count })[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would take the key
    move(to);
  });
  picture.addEventListener("pointermove", (event) => {
    move(axes.rank(event.clientX - picture.getBoundingClientRect().left));
  });
  const resized = new ResizeObserver(() => root.clientWidth && draw());
  resized.observe(el);
  const watched = ["change:series", "change:busy"];
  watched.forEach((name) => model.on(name, draw));
  draw();
  return () => {
    resized.disconnect();
    watched.forEach((name) => model.off(name, draw));
  };
}

export default { render };
