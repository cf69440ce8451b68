// The curves of a run on canvases: running loss with the gap shaded, weights of the experts, singular values.
// Every canvas has a cursor that the mouse and the arrow keys move; what it says stands in text beside it.

/** @typedef {import("../explorer/dom.js").Steps} Steps */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {(value: number) => number} Scale  a value's place in CSS pixels */

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[K]}
 */
export function element(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/** @param {number} n */
export const thousands = (n) => Math.round(n).toLocaleString("en");

const COMPACT = new Intl.NumberFormat("en", { notation: "compact", maximumSignificantDigits: 3 });

/**
 * Write a perplexity, or how many times likelier something is, with three digits and without an exponent.
 * @param {number} value  not negative
 */
export const times = (value) =>
  value < 999.5 ? value.toPrecision(3) : value < 99_950 ? thousands(Number(value.toPrecision(3))) : COMPACT.format(value);

/**
 * Write by how much a perplexity is lower (or, below 0, higher), as in "−12 %".
 * @param {number} percent
 */
export const lowered = (percent) => {
  const size = Math.round(Math.abs(percent));
  return `${size === 0 ? "±" : percent > 0 ? "−" : "+"}${size}\u00a0%`;
};

/**
 * Values between two limits at which lines of a grid are drawn, about `count` of them.
 * @param {number} low
 * @param {number} high
 * @param {number} count
 */
export function ticks(low, high, count) {
  const rough = (high - low) / count;
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = power * ([1, 2, 5, 10].find((factor) => factor * power >= rough) ?? 10);
  const found = [];
  for (let k = Math.ceil(low / step - 1e-9); k * step <= high + 1e-9 * step; k += 1) found.push(k * step);
  return found;
}

/** A canvas as wide as its place, sharp on every screen, with a cursor along x. */
class Curves {
  /**
   * @param {string} name
   * @param {number} height
   */
  constructor(name, height) {
    this.canvas = element("canvas");
    this.canvas.style.height = `${height}px`;
    this.canvas.tabIndex = 0;
    this.canvas.setAttribute("role", "img");
    this.canvas.setAttribute("aria-label", name);
    this.name = name;
    this.height = height;
    this.width = 0;
    this.first = 0; // where index 0 is, and how far it is from one to the next: asked for each point of a curve
    this.each = 0;
    /** @type {number | null} CSS pixels, as the page told last: to ask for them would lay out the page anew */
    this.wide = null;
    this.margin = { left: 44, right: 44, top: 8, bottom: 24 };
    /** @type {number | null} index under the cursor */
    this.cursor = null;
    /** @type {(at: number | null, byKey: boolean) => void} */
    this.onCursor = () => {};
    this._style = getComputedStyle(this.canvas);
    this.canvas.addEventListener("pointermove", (event) => this._move(this._indexAt(event.offsetX)));
    this.canvas.addEventListener("pointerleave", () => this._move(null));
    this.canvas.addEventListener("keydown", (event) => this._key(event));
    this.sizes = new ResizeObserver((entries) => {
      this.wide = entries[entries.length - 1].contentRect.width;
      this.draw();
    });
    this.sizes.observe(this.canvas);
  }

  close() {
    this.sizes.disconnect();
  }

  /** How many places the cursor has. */
  get length() {
    return 0;
  }

  /** @param {number} x */
  _indexAt(x) {
    const { left, right } = this.margin;
    const share = (x - left) / Math.max(1, this.width - left - right);
    return this.length && share >= 0 && share <= 1 ? Math.min(this.length - 1, Math.round(share * this.last)) : null;
  }

  /** The index at the right edge. */
  get last() {
    return Math.max(1, this.length - 1);
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const far = Math.max(1, Math.round(this.length / 20));
    const by = /** @type {Steps} */ ({ ArrowLeft: -1, ArrowRight: 1, PageUp: -far, PageDown: far })[event.key];
    if (event.key === "Home") this._move(0, true);
    else if (event.key === "End") this._move(this.length - 1, true);
    else if (event.key === "Escape") this._move(null);
    else if (by) this._move((this.cursor ?? this.length - 1) + by, true);
    else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * @param {number | null} index
   * @param {boolean} byKey
   */
  _move(index, byKey = false) {
    this.cursor = index === null || !this.length ? null : Math.max(0, Math.min(this.length - 1, index));
    this.onCursor(this.cursor, byKey);
    this.draw();
  }

  /**
   * Colour of a CSS variable, as the theme has it now.
   * @param {string} name
   */
  colour(name) {
    return this._style.getPropertyValue(name).trim();
  }

  draw() {
    const width = Math.round(this.wide ?? this.canvas.clientWidth);
    if (!width) return;
    const scale = window.devicePixelRatio || 1;
    if (this.canvas.width !== Math.round(width * scale) || this.canvas.height !== Math.round(this.height * scale)) {
      this.canvas.width = Math.round(width * scale);
      this.canvas.height = Math.round(this.height * scale);
    }
    this.width = width;
    const { left, right } = this.box;
    this.first = left;
    this.each = (right - left) / this.last;
    this._style = getComputedStyle(this.canvas);
    const pen = /** @type {CanvasRenderingContext2D} */ (this.canvas.getContext("2d"));
    pen.setTransform(scale, 0, 0, scale, 0, 0);
    pen.clearRect(0, 0, width, this.height);
    pen.font = `11px ${this._style.fontFamily}`;
    this.paint(pen);
  }

  /**
   * Draw it; each kind of curve does so in its own way.
   * @param {CanvasRenderingContext2D} _pen
   */
  paint(_pen) {}

  get box() {
    const { left, right, top, bottom } = this.margin;
    return { left, top, right: this.width - right, bottom: this.height - bottom };
  }

  /** @param {number} index */
  x(index) {
    return this.first + this.each * index;
  }

  /**
   * Lines and numbers of a scale at the left or right side.
   * @param {CanvasRenderingContext2D} pen
   * @param {{y: number, text: string}[]} marks
   * @param {"left" | "right"} side
   */
  scale(pen, marks, side) {
    const box = this.box;
    pen.textBaseline = "middle";
    pen.textAlign = side === "left" ? "right" : "left";
    for (const { y, text } of marks) {
      if (side === "left") {
        pen.strokeStyle = this.colour("--grid");
        pen.lineWidth = 1;
        pen.beginPath();
        pen.moveTo(box.left, Math.round(y) + 0.5);
        pen.lineTo(box.right, Math.round(y) + 0.5);
        pen.stroke();
      }
      pen.fillStyle = this.colour("--faint");
      pen.fillText(text, side === "left" ? box.left - 6 : box.right + 6, y);
    }
  }

  /**
   * Numbers below, of tokens or ranks.
   * @param {CanvasRenderingContext2D} pen
   * @param {string} unit
   */
  below(pen, unit) {
    const box = this.box;
    pen.fillStyle = this.colour("--faint");
    pen.textBaseline = "top";
    for (const mark of ticks(0, this.last, Math.max(2, (box.right - box.left) / 130))) {
      pen.textAlign = mark === 0 ? "left" : "center";
      const text = mark === 0 ? `0 ${unit}` : thousands(mark);
      if (this.x(mark) < box.right - 10) pen.fillText(text, this.x(mark), box.bottom + 7);
    }
  }

  /** @param {CanvasRenderingContext2D} pen */
  crosshair(pen) {
    if (this.cursor === null) return;
    const { top, bottom } = this.box;
    const x = Math.round(this.x(this.cursor)) + 0.5;
    pen.strokeStyle = this.colour("--strong");
    pen.lineWidth = 1;
    pen.setLineDash([2, 3]);
    pen.beginPath();
    pen.moveTo(x, top);
    pen.lineTo(x, bottom);
    pen.stroke();
    pen.setLineDash([]);
  }
}

/** How many times the spread of the calm losses all of them may have until the first are cut off. */
const WILD = 3;

/** Running loss of the model alone and with the memory, and the gap between them. */
export class LossCurve extends Curves {
  /**
   * @param {Run} run
   * @param {number} height
   */
  constructor(run, height) {
    super("Running loss of the model alone and with the memory. Arrow keys move a cursor.", height);
    this.run = run;
    /** @type {{name: string, at: number[], loss: number[]}[]} runs from before */
    this.runs = [];
    /** @type {[number, number][]} tokens, and where they were known from */
    this.links = [];
    this.above = NaN; // the highest of the losses that are cut off; NaN: none is
    this.context = 0; // tokens of the run that the model's own context holds; 0: nobody knows
  }

  /** @override */
  get length() {
    return this.run.count;
  }

  /** @override */
  get last() {
    return Math.max(255, this.run.count - 1, ...this.runs.map((run) => run.at.at(-1) ?? 0));
  }

  /** One index per pixel, the newest among them. */
  _columns() {
    const { left, right } = this.box;
    /** @type {number[]} */
    const found = [];
    const first = Number.isNaN(this.run.running(0)[0]) ? 1 : 0;
    const step = Math.max(1, this.last / (right - left));
    for (let at = first; at < this.length; at += step) found.push(Math.floor(at));
    if (this.length > first && found.at(-1) !== this.length - 1) found.push(this.length - 1);
    return found;
  }

  /**
   * Limits of the losses. The first few are wild: where they would press the others flat they are cut off, and it is said.
   * @param {number[]} columns
   */
  _limits(columns) {
    const calm = Math.min(48, this.length / 4);
    let [low, high, least, most] = [Infinity, -Infinity, Infinity, -Infinity];
    /** @param {number} at  @param {number} loss */
    const see = (at, loss) => {
      if (!Number.isFinite(loss)) return;
      [least, most] = [Math.min(least, loss), Math.max(most, loss)];
      if (at >= calm) [low, high] = [Math.min(low, loss), Math.max(high, loss)];
    };
    for (const at of columns) {
      const [model, memory] = this.run.running(at);
      see(at, model);
      see(at, memory);
    }
    for (const run of this.runs) run.loss.forEach((loss, k) => see(run.at[k], loss));
    if (low > high) [low, high] = [least, most];
    this.above = NaN;
    if (!(low <= high)) return [0, 4];
    if (most - least <= WILD * Math.max(high - low, 0.5)) [low, high] = [least, most];
    else this.above = most > high ? most : NaN;
    const room = Math.max(0.15, 0.08 * (high - low));
    return [Math.max(0, Math.min(low, least) - room), high + room];
  }

  /**
   * @override
   * @param {CanvasRenderingContext2D} pen
   */
  paint(pen) {
    const box = this.box;
    const columns = this.length ? this._columns() : [];
    const [low, high] = this._limits(columns);
    /** @type {Scale} */
    const y = (loss) => Math.min(box.bottom, box.bottom - ((loss - low) / (high - low)) * (box.bottom - box.top));
    const nats = ticks(low, high, 5);
    this.scale(pen, nats.map((value) => ({ y: y(value), text: value.toFixed(nats[1] - nats[0] < 0.1 ? 2 : 1) })), "left");
    this.scale(pen, nats.map((value) => ({ y: y(value), text: times(Math.exp(value)) })), "right");
    this.below(pen, "tokens");
    this._covered(pen);
    pen.save();
    pen.beginPath();
    pen.rect(box.left, box.top - 2, box.right - box.left + 2, box.bottom - box.top + 4);
    pen.clip(); // what is cut off leaves through the upper edge
    this._former(pen, y);
    this._gap(pen, columns, y);
    this._line(pen, columns, y, 0);
    this._line(pen, columns, y, 1);
    pen.restore();
    this._cut(pen);
    this._links(pen);
    this.crosshair(pen);
    if (this.cursor !== null) this._dots(pen, y, this.cursor);
  }

  /**
   * Runs from before, each with its number in the list below the curve.
   * @param {CanvasRenderingContext2D} pen
   * @param {Scale} y
   */
  _former(pen, y) {
    this.runs.forEach((run, number) => {
      pen.strokeStyle = pen.fillStyle = this.colour(`--run${number % 5}`);
      pen.lineWidth = 1.5;
      pen.setLineDash([2, 2 + number]);
      pen.beginPath();
      run.at.forEach((at, k) => pen.lineTo(this.x(at), y(run.loss[k])));
      pen.stroke();
      pen.setLineDash([]);
      if (!run.at.length) return;
      pen.textAlign = "right";
      pen.textBaseline = "bottom";
      pen.fillText(String(number + 1), this.x(run.at[run.at.length - 1]) - 2, y(run.loss[run.loss.length - 1]) - 2);
    });
  }

  /**
   * A line from where something was used to where it was read.
   * @param {CanvasRenderingContext2D} pen
   */
  _links(pen) {
    const floor = this.box.bottom - 2;
    pen.strokeStyle = pen.fillStyle = this.colour("--window");
    pen.lineWidth = 1.5;
    for (const [from, to] of this.links) {
      if (from >= this.length + 1 || to >= this.length || to < 0) continue;
      const [a, b] = [this.x(Math.min(from, this.last)), this.x(to)];
      pen.beginPath();
      pen.moveTo(a, floor);
      pen.quadraticCurveTo((a + b) / 2, floor - Math.min(120, 20 + Math.abs(a - b) / 3), b, floor);
      pen.stroke();
      pen.beginPath();
      pen.arc(b, floor, 3.5, 0, 2 * Math.PI);
      pen.fill();
    }
  }

  /**
   * Say how high the first tokens reach where they are cut off.
   * @param {CanvasRenderingContext2D} pen
   */
  _cut(pen) {
    if (Number.isNaN(this.above)) return;
    pen.fillStyle = this.colour("--faint");
    pen.textAlign = "left";
    pen.textBaseline = "top";
    pen.fillText(`▴ up to ${this.above.toFixed(1)}`, this.box.left + 6, this.box.top + 16);
  }

  /**
   * Mark how far the model's own context holds everything: so long a memory has little to add.
   * @param {CanvasRenderingContext2D} pen
   */
  _covered(pen) {
    if (!this.context) return;
    const box = this.box;
    const end = Math.min(box.right, this.x(this.context));
    pen.fillStyle = this.colour("--covered");
    pen.fillRect(box.left, box.top, end - box.left, box.bottom - box.top);
    pen.fillStyle = this.colour("--faint");
    pen.textBaseline = "top";
    const text = "in the model's own context";
    const wide = pen.measureText(text).width;
    if (wide + 8 < end - box.left) {
      pen.textAlign = "right";
      pen.fillText(text, end - 5, box.top + 3);
    }
    if (this.context >= this.last) return;
    pen.strokeStyle = this.colour("--faint");
    pen.lineWidth = 1;
    pen.setLineDash([4, 3]);
    pen.beginPath();
    pen.moveTo(Math.round(end) + 0.5, box.top);
    pen.lineTo(Math.round(end) + 0.5, box.bottom);
    pen.stroke();
    pen.setLineDash([]);
    const more = `context full: ${thousands(this.context)}`;
    pen.textAlign = "left";
    if (pen.measureText(more).width + 8 < box.right - end) pen.fillText(more, end + 5, box.top + 3);
  }

  /**
   * One area per stretch in which the memory is better, or worse, all the time.
   * @param {CanvasRenderingContext2D} pen
   * @param {number[]} columns
   * @param {Scale} y
   */
  _gap(pen, columns, y) {
    let start = 0;
    const better = (/** @type {number} */ place) => this.run.running(columns[place])[1] <= this.run.running(columns[place])[0];
    while (start < columns.length - 1) {
      let end = start + 1;
      while (end < columns.length - 1 && better(end) === better(start)) end += 1;
      const early = this.context && columns[end] <= this.context;
      pen.fillStyle = this.colour(better(start) ? "--gain-fill" : early ? "--early-fill" : "--loss-fill");
      pen.beginPath();
      for (let place = start; place <= end; place += 1) pen.lineTo(this.x(columns[place]), y(this.run.running(columns[place])[0]));
      for (let place = end; place >= start; place -= 1) pen.lineTo(this.x(columns[place]), y(this.run.running(columns[place])[1]));
      pen.fill();
      start = end;
    }
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {number[]} columns
   * @param {Scale} y
   * @param {number} who
   */
  _line(pen, columns, y, who) {
    pen.strokeStyle = this.colour(who ? "--memory" : "--model");
    pen.lineWidth = who ? 2.5 : 2;
    pen.lineJoin = "round";
    pen.setLineDash(who ? [] : [6, 3]);
    pen.beginPath();
    for (const at of columns) pen.lineTo(this.x(at), y(this.run.running(at)[who]));
    pen.stroke();
    pen.setLineDash([]);
  }

  /**
   * @param {CanvasRenderingContext2D} pen
   * @param {Scale} y
   * @param {number} at
   */
  _dots(pen, y, at) {
    for (const who of [0, 1]) {
      pen.fillStyle = this.colour(who ? "--memory" : "--model");
      pen.beginPath();
      pen.arc(this.x(at), y(this.run.running(at)[who]), 4, 0, 2 * Math.PI);
      pen.fill();
    }
  }
}

/** How much model, memory and window count, as layers that sum to 1. */
export class WeightCurve extends Curves {
  /**
   * @param {Run} run
   * @param {number} height
   */
  constructor(run, height) {
    super("Weights of model, memory and window over time. Arrow keys move a cursor.", height);
    this.run = run;
    this.margin = { ...this.margin, right: 8 };
  }

  /** @override */
  get length() {
    return this.run.count;
  }

  /** @override */
  get last() {
    return Math.max(255, this.run.count - 1);
  }

  /**
   * @override
   * @param {CanvasRenderingContext2D} pen
   */
  paint(pen) {
    const box = this.box;
    const tall = box.bottom - box.top;
    const perPixel = this.last / (box.right - box.left);
    const wide = Math.max(2, Math.ceil(1 / perPixel)); // whole pixels: areas that overlap would show
    for (let x = box.left; x < box.right; x += wide) {
      const end = Math.ceil((x + wide - box.left) * perPixel);
      const start = Math.floor((x - box.left) * perPixel);
      if (start >= this.length) break;
      // over some tokens around, or single ones flicker
      const weights = this.run.weightsOver(Math.max(0, start - 32), Math.min(this.length, Math.max(end, start + 1)));
      if (!weights) continue;
      let y = box.bottom;
      for (const [k, name] of ["--model-area", "--memory-area", "--window-area"].entries()) {
        const top = k === 2 ? box.top : Math.round(y - weights[k] * tall);
        pen.fillStyle = this.colour(name);
        pen.fillRect(x, top, Math.min(wide, box.right - x), y - top);
        y = top;
      }
    }
    this.scale(pen, [0, 0.5, 1].map((share) => ({ y: box.bottom - share * tall, text: `${100 * share} %` })), "left");
    this.below(pen, "tokens");
    this.crosshair(pen);
  }
}

/** Singular values of the learned matrix, largest first, on a logarithmic scale; those before in grey. */
export class SpectrumCurve extends Curves {
  /** @param {number} height */
  constructor(height) {
    super("Singular values of the learned matrix, largest first. Arrow keys move a cursor.", height);
    /** @type {number[]} */
    this.values = [];
    /** @type {number[]} */
    this.before = [];
    this.margin = { ...this.margin, right: 8 };
  }

  /** @override */
  get length() {
    return this.values.length;
  }

  /** @param {number[]} values */
  take(values) {
    if (values.length === this.values.length) this.before = this.values;
    this.values = values;
  }

  /**
   * @override
   * @param {CanvasRenderingContext2D} pen
   */
  paint(pen) {
    const box = this.box;
    const positive = [...this.values, ...this.before].filter((value) => value > 0);
    if (!positive.length) {
      this.below(pen, "rank");
      return;
    }
    const high = Math.log10(Math.max(...positive)) + 0.1;
    const low = Math.max(Math.log10(Math.min(...positive)) - 0.1, high - 5);
    /** @type {Scale} */
    const y = (value) => (value > 0 ? box.bottom - ((Math.log10(value) - low) / (high - low)) * (box.bottom - box.top) : box.bottom);
    const marks = ticks(low, high, 4).map((power) => ({ y: y(10 ** power), text: (10 ** power).toPrecision(2).replace(/\.0+$/, "") }));
    this.scale(pen, marks.map(({ y: at, text }) => ({ y: at, text: String(Number(text)) })), "left");
    this.below(pen, "rank");
    /** @type {[number[], string, number][]} */
    const lines = [[this.before, "--grid-strong", 1.5], [this.values, "--memory", 2]];
    for (const [values, name, wide] of lines) {
      pen.strokeStyle = this.colour(name);
      pen.lineWidth = wide;
      pen.beginPath();
      values.forEach((value, rank) => pen.lineTo(this.x(rank), Math.min(box.bottom, y(value))));
      pen.stroke();
    }
    this.crosshair(pen);
  }
}
