// The canvas of MatrixView: draws tiles of a matrix, and lets people zoom, pan and read its values.
//
// The kernel sends a `frame` (what a tile shows) with its `tile` (float32 numbers, row by row) and the `limit` of the
// colour scale. From here go {kind: "shown", number}, {kind: "tile", box} and {kind: "value", row, column}; a value
// comes back as a custom message, a tile as the next frame. Nothing is loaded from anywhere: a plain module.

import { tellWhenGone } from "../before.js";
import { nameSliders } from "./sliders.js";

// Shades of the colour table and the marks after them: the same as in colour.py.
const SHADES = 249, NAN = 249, POSITIVE = 251, NEGATIVE = 253;
const KNEE = 1000;                        // symlog: linear below the limit divided by this
const TILE = 512;                         // rows and columns of the largest tile
const NARROWEST = 0.5, WIDEST = 3, LARGEST_CELL = 64;  // as picture_size in matrix.py
const KEPT = 12;                          // tiles that are remembered
const SCREEN = 16;                        // milliseconds between two frames of the screen
const ROOM_FOR_NUMBERS = 46;              // CSS pixels of a cell that has its number written in it
const EXACT = new Set(["float32", "int8", "uint8", "int16", "uint16"]);  // a float32 holds these as they are

/**
 * @typedef {{number: number, version: number, shape: number[], dtype: string, box: number[], size: number[],
 *            block: number[], unit: number, nan: number, infinite: number, counted: boolean}} Frame
 * @typedef {Frame & {data: Float32Array}} Tile
 * @typedef {[row: number, column: number]} Cell
 * @typedef {[text: string, share: number]} Mark  beside an axis: its text, and where it stands as a share of the length
 * @typedef {number[]} Part  top, left, bottom, right in rows and columns
 * @typedef {{table: Uint32Array, limit: number, symlog: boolean, sequential: boolean}} Scale
 * @typedef {{get: (name: string) => any, set: (name: string, value: unknown) => void, save_changes: () => void,
 *            send: (message: Record<string, any>) => void, on: (event: string, listener: Listener) => void,
 *            off: (event: string, listener: Listener) => void}} Model  what anywidget gives: the traits of the Python side
 * @typedef {(...args: any[]) => void} Listener
 */

// --- numbers ---------------------------------------------------------------------------------------------------

/**
 * Read little-endian floats from a DataView, which may start anywhere.
 * @param {DataView} view
 */
export function floats(view) {
  const { buffer, byteOffset, byteLength } = view;
  return byteOffset % 4 === 0
    ? new Float32Array(buffer, byteOffset, byteLength >> 2)
    : new Float32Array(buffer.slice(byteOffset, byteOffset + byteLength));
}

/**
 * Write a float32 with as few digits as name it, as Python does: 0.1, not 0.10000000149.
 * @param {number} value
 */
export function shortest(value) {
  if (!Number.isFinite(value)) return value > 0 ? "inf" : value < 0 ? "-inf" : "nan";
  for (let digits = 6; digits < 9; digits++) {
    const text = value.toPrecision(digits);
    if (Math.fround(Number(text)) === value) return String(Number(text));
  }
  return String(value);
}

/** @param {number} value */
const brief = (value) => String(Number(value.toPrecision(3)));
/** @param {number} count */
const grouped = (count) => count.toLocaleString("en");
/**
 * @param {number} value
 * @param {number} low
 * @param {number} high
 */
const clamp = (value, low, high) => Math.min(Math.max(value, low), high);

/**
 * Whole numbers in [from, to) at most `most` of them, a round distance apart.
 * @param {number} from
 * @param {number} to
 * @param {number} most
 */
export function roundSteps(from, to, most) {
  const rough = Math.max(1, (to - from) / Math.max(1, most)), power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((digit) => digit * power).find((candidate) => candidate >= rough) ?? 10 * power;
  const found = [];
  for (let at = Math.ceil(from / step) * step; at < to; at += step) found.push(at + 0);   // + 0: no minus before a zero
  return found;
}

/**
 * Map a value by the limit to [-1, 1].
 * @param {number} ratio
 * @param {boolean} symlog
 */
function scaled(ratio, symlog) {
  if (symlog) ratio = Math.sign(ratio) * Math.log1p(Math.abs(ratio) * KNEE) / Math.log1p(KNEE);
  return clamp(ratio, -1, 1);
}

/**
 * The index of a number's shade in the table.
 * @param {number} ratio
 * @param {boolean} symlog
 * @param {boolean} sequential
 */
function shadeOf(ratio, symlog, sequential) {
  const share = sequential ? Math.max(0, scaled(ratio, symlog)) : (scaled(ratio, symlog) + 1) / 2;
  return Math.floor(share * (SHADES - 1) + 0.5);
}

/**
 * The marks beside the colour bar as shares of the limit.
 * @param {boolean} symlog
 * @param {boolean} sequential
 */
function marks(symlog, sequential) {
  const above = symlog ? [0.01, 0.1, 1] : [0.5, 1];
  return [...(sequential ? [] : above.map((share) => -share).reverse()), 0, ...above];
}

// --- drawing ---------------------------------------------------------------------------------------------------

/**
 * Which of a tile's lines each pixel of an axis shows: pixel i shows lines from[i] up to to[i]; -1 outside the tile.
 * Where lines are more than pixels, each belongs to one pixel, so that none is lost.
 * @param {number} pixels
 * @param {number} start
 * @param {number} end
 * @param {number} boxStart
 * @param {number} boxEnd
 * @param {number} block
 * @param {number} size
 */
function lines(pixels, start, end, boxStart, boxEnd, block, size) {
  const from = new Int32Array(pixels).fill(-1), to = new Int32Array(pixels), step = (end - start) / pixels;
  const many = step > block;
  for (let i = 0; i < pixels; i++) {
    const middle = start + (i + 0.5) * step;
    if (middle < boxStart || middle >= boxEnd) continue;
    const first = (start + i * step - boxStart) / block, last = first + step / block;
    const line = clamp(Math.floor(many ? first + 1e-6 : (middle - boxStart) / block), 0, size - 1);
    from[i] = line;
    to[i] = many ? clamp(Math.floor(last + 1e-6), line + 1, size) : line + 1;
  }
  return { from, to };
}

/**
 * Reduce lines of a tile to the numbers farthest from zero, column by column; NaN beats all others.
 * Fills `line` with as many numbers as the tile has columns.
 * @param {Float32Array} line
 * @param {Float32Array} data
 * @param {number} top
 * @param {number} bottom
 */
function mergeRows(line, data, top, bottom) {
  const width = line.length;
  line.set(data.subarray(top * width, (top + 1) * width));
  for (let y = top + 1; y < bottom; y++) {
    for (let x = 0, at = y * width; x < width; x++, at++) {
      const value = data[at], old = line[x];
      if (!(Math.abs(value) <= Math.abs(old)) && old === old) line[x] = value;
    }
  }
}

/**
 * The number farthest from zero among some of a line; NaN if there is one.
 * @param {Float32Array} line
 * @param {number} left
 * @param {number} right
 */
function farthest(line, left, right) {
  let best = line[left];
  for (let x = left + 1; x < right && best === best; x++) {
    const value = line[x];
    if (!(Math.abs(value) <= Math.abs(best))) best = value;
  }
  return best;
}

/**
 * Paint what a tile has of the part in view into pixels (32 bits each, `width` to a row).
 * @param {Uint32Array} pixels
 * @param {Tile} tile
 * @param {Part} part
 * @param {Scale} scale
 * @param {number} width
 * @param {number} height
 */
function paint(pixels, width, height, tile, part, scale) {
  const { data, box, block, size } = tile, { table, symlog, sequential } = scale;
  const rows = lines(height, part[0], part[2], box[0], box[2], block[0], size[0]);
  const columns = lines(width, part[1], part[3], box[1], box[3], block[1], size[1]);
  const factor = tile.unit / scale.limit, low = sequential ? 0 : -1, spread = (SHADES - 1) / (1 - low);
  const line = new Float32Array(size[1]), log = 1 / Math.log1p(KNEE);
  for (let y = 0; y < height; y++) {
    if (rows.from[y] < 0) continue;
    mergeRows(line, data, rows.from[y], rows.to[y]);
    for (let x = 0, base = y * width; x < width; x++) {
      const left = columns.from[x];
      if (left < 0) continue;
      const value = farthest(line, left, columns.to[x]);
      let ratio = value * factor;
      if (symlog) ratio = ratio < 0 ? -Math.log1p(-ratio * KNEE) * log : Math.log1p(ratio * KNEE) * log;
      let shade = ((ratio < low ? low : ratio > 1 ? 1 : ratio) - low) * spread + 0.5 | 0;
      if (value - value !== 0) {          // not a finite number: two shades in a check of three pixels
        shade = (value !== value ? NAN : value > 0 ? POSITIVE : NEGATIVE) + ((x / 3 ^ y / 3) & 1);
      }
      pixels[base + x] = table[shade];
    }
  }
}

/**
 * A colour table as pixels.
 * @param {DataView} palette
 * @param {boolean} dark
 */
function tableOf(palette, dark) {
  const table = new Uint32Array(256), start = dark ? 768 : 0;
  for (let i = 0; i < 256; i++) {
    const [r, g, b] = [0, 1, 2].map((channel) => palette.getUint8(start + 3 * i + channel));
    table[i] = (0xff << 24 | b << 16 | g << 8 | r) >>> 0;
  }
  return table;
}

/**
 * Whether text is light here, and so the page dark.
 * @param {Element} element
 */
function isDark(element) {
  const [r, g, b] = (getComputedStyle(element).color.match(/[\d.]+/g) || [0, 0, 0]).map(Number);
  return 0.3 * r + 0.6 * g + 0.1 * b > 140;
}

// --- tiles -----------------------------------------------------------------------------------------------------

/** The tiles that came so far; those of an older matrix go, but for one to show until there is something newer. */
class Tiles {
  constructor() {
    /** @type {Tile[]} */
    this.all = [];
    this.version = 0;
    /** @type {Tile | null} */
    this.backdrop = null;
  }

  /** @param {Tile} tile */
  add(tile) {
    if (tile.version !== this.version) this.all = [];
    this.version = tile.version;
    this.all = [...this.all.filter((old) => String(old.box) !== String(tile.box)), tile].slice(-KEPT);
    if (String(tile.box) === String([0, 0, ...tile.shape]) || String(this.backdrop?.shape) !== String(tile.shape)) {
      this.backdrop = tile;
    }
  }

  /**
   * What to paint for a part of the matrix, the coarsest first.
   * @param {Part} part
   */
  for(part) {
    const coarsest = (/** @type {Tile} */ a, /** @type {Tile} */ b) => b.block[0] * b.block[1] - a.block[0] * a.block[1];
    const sorted = [...this.all].sort(coarsest);
    const whole = sorted.filter((tile) => covers(tile.box, part));
    return whole.length ? whole.slice(-1) : [...(this.backdrop ? [this.backdrop] : []), ...sorted];
  }

  /**
   * The number at a place and how many rows and columns it stands for, from the finest tile that has it.
   * @param {number} row
   * @param {number} column
   */
  at(row, column) {
    const tile = this.for([row, column, row + 1, column + 1]).at(-1);
    if (!tile || tile.version !== this.version || !covers(tile.box, [row, column, row + 1, column + 1])) return null;
    const [y, x] = [row - tile.box[0], column - tile.box[1]].map((at, axis) => Math.floor(at / tile.block[axis]));
    const exact = tile.unit === 1 && EXACT.has(tile.dtype);
    return { value: tile.data[y * tile.size[1] + x] * tile.unit, block: tile.block, exact };
  }
}

/**
 * @param {number[]} box
 * @param {Part} part
 */
const covers = (box, part) => box[0] <= part[0] && box[1] <= part[1] && box[2] >= part[2] && box[3] >= part[3];

/**
 * The box to ask for so that a part can be shown as finely as the screen allows; null if a tile at hand will do.
 * It is half as large again as the part, so that not every step of a drag asks.
 * @param {Part} part
 * @param {number[]} shape
 * @param {number[]} screen
 * @param {Tiles} tiles
 */
function wanted(part, shape, screen, tiles) {
  const box = [0, 1].map((axis) => {
    const span = part[axis + 2] - part[axis], margin = span / 4;
    const start = Math.max(0, Math.floor(part[axis] - margin));
    return [start, Math.min(shape[axis], Math.ceil(part[axis + 2] + margin))];
  });
  const enough = (/** @type {Tile} */ tile, /** @type {number} */ axis) => {
    const span = part[axis + 2] - part[axis], block = tile.block[axis];
    return block <= span / screen[axis] || block <= Math.ceil((box[axis][1] - box[axis][0]) / TILE);
  };
  const good = (/** @type {Tile} */ tile) => covers(tile.box, part) && enough(tile, 0) && enough(tile, 1);
  return tiles.all.some(good) ? null : [box[0][0], box[1][0], box[0][1], box[1][1]];
}

// --- the widget ------------------------------------------------------------------------------------------------

/** @param {HTMLCanvasElement} canvas */
const contextOf = (canvas) => /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));

/**
 * Make an element with a class and a parent.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {Element} parent
 * @param {K} tag
 * @param {string} name
 * @param {Record<string, string>} [attributes]
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(parent, tag, name, attributes = {}) {
  const element = parent.appendChild(document.createElement(tag));
  if (name) element.className = `atlas-matrix-${name}`;
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

/** @type {WeakMap<Element, string>} what was placed in an element last */
const placed = new WeakMap();

/**
 * Set children to one span for each [text, share of the length], unless they are the same already.
 * @param {HTMLElement} parent
 * @param {"top" | "left"} property
 * @param {Mark[]} entries
 */
function place(parent, property, entries) {
  const now = JSON.stringify(entries);
  if (placed.get(parent) === now) return;
  placed.set(parent, now);
  parent.replaceChildren(...entries.map(([text, share]) => {
    const span = document.createElement("span");
    span.textContent = text;
    span.style[property] = `${100 * share}%`;
    return span;
  }));
}

class View {
  /**
   * @param {Model} model
   * @param {Element} el
   */
  constructor(model, el) {
    this.model = model;
    this.tiles = new Tiles();
    /** @type {Map<string, string>} exact values by "row,column", of the newest version */
    this.values = new Map();
    /** @type {Map<string, number>} what the kernel has been asked, by kind, and when */
    this.asking = new Map();
    /** @type {Cell | null} */
    this.hover = null;
    /** @type {{x: number, y: number, part: Part, far: boolean} | null} */
    this.drag = null;
    this.moved = false;                   // whether the cursor was, in this view
    this.due = 0;
    this.drawn = 0;                       // when it was drawn last
    this.number = -1;                     // of the frame that is to be acknowledged
    this.size = [1, 1];                   // height and width in CSS pixels
    /** @type {Frame} */
    this.frame = this.model.get("frame");
    const root = this.root = make(el, "figure", "");
    root.className = "atlas-matrix";
    const head = make(root, "div", "head");
    this.title = make(head, "span", "title");
    const tools = make(head, "div", "tools", { role: "group", "aria-label": "View" });
    const button = (/** @type {string} */ text, /** @type {string} */ name, /** @type {() => void} */ action) => {
      const made = make(tools, "button", "", { type: "button", "aria-label": name, title: name });
      made.textContent = text;
      made.addEventListener("click", action);
      return made;
    };
    button("−", "Zoom out", () => this.zoom(2));
    button("+", "Zoom in", () => this.zoom(0.5));
    button("fit", "Show the whole matrix", () => this.show([]));
    this.log = button("symlog", "Logarithmic colour scale", () => this.toggle());
    const body = make(root, "div", "body");
    this.rowName = make(body, "div", "axis of-rows");
    this.rowMarks = make(body, "div", "rows", { "aria-hidden": "true" });
    this.picture = make(body, "div", "picture");
    this.canvas = make(this.picture, "canvas", "", { role: "img", tabindex: "0" });
    this.mark = make(this.picture, "div", "cursor", { "aria-hidden": "true" });
    const bar = make(body, "div", "bar", { "aria-hidden": "true" });
    this.bar = make(bar, "canvas", "");
    this.numbers = make(bar, "div", "numbers");
    this.columnMarks = make(body, "div", "columns", { "aria-hidden": "true" });
    this.columnName = make(body, "div", "axis of-columns");
    const caption = make(root, "figcaption", "");
    this.status = make(caption, "div", "status");
    this.facts = make(caption, "div", "facts");
    this.error = make(caption, "div", "error", { role: "alert" });
    this.spoken = make(caption, "div", "spoken", { "aria-live": "polite" });
    this.context = contextOf(this.canvas);
    this.ending = new AbortController();
    this.sizes = new ResizeObserver(() => { this.measure(); this.later(); });
    this.theme = new MutationObserver(() => this.later());  // JupyterLab and VS Code mark the theme on the body
    this.listen();
    if (this.take()) this.later();
  }

  listen() {
    const { model, canvas, ending } = this;
    /**
     * @param {EventTarget} target
     * @param {string} name
     * @param {(event: any) => void} action  takes the kind of event that the name says
     * @param {AddEventListenerOptions} [options]
     */
    const on = (target, name, action, options) =>
      target.addEventListener(name, action, { signal: ending.signal, ...options });
    on(canvas, "keydown", (event) => this.key(event));
    on(this.root, "keydown", (event) => {           // D twice would delete the notebook's cell
      if (!event.ctrlKey && !event.metaKey && !event.altKey && event.key.length === 1) event.stopPropagation();
    });
    on(canvas, "wheel", (event) => this.wheel(event), { passive: false });
    on(canvas, "pointerdown", (event) => this.press(event));
    on(canvas, "pointermove", (event) => this.move(event));
    on(canvas, "pointerup", (event) => this.release(event));
    on(canvas, "pointercancel", () => this.drop());
    on(canvas, "pointerleave", () => { this.hover = null; this.say(); });
    on(canvas, "dblclick", (event) => this.zoom(0.25, this.point(event)));
    /** @type {Record<string, Listener>} */
    const changes = { "change:frame": () => { if (this.take()) this.soon(); }, "msg:custom": (message) => this.hear(message) };
    const redraw = () => this.later();
    for (const name of ["limit", "palette", "title", "row_name", "column_name", "transform", "colours", "height",
      "viewport", "cursor", "error"]) changes[`change:${name}`] = redraw;
    for (const [name, action] of Object.entries(changes)) model.on(name, action);
    ending.signal.addEventListener("abort", () => {
      for (const [name, action] of Object.entries(changes)) model.off(name, action);
    });
    this.sizes.observe(this.picture);
    this.theme.observe(document.body, { attributes: true });
    on(matchMedia("(prefers-color-scheme: dark)"), "change", redraw);
  }

  end() {
    this.ending.abort();
    this.sizes.disconnect();
    this.theme.disconnect();
    cancelAnimationFrame(this.due);
    this.tiles = new Tiles();
    this.root.remove();
  }

  // --- what comes from the kernel ---

  /** Take in the newest frame; false where its tile is not there yet. */
  take() {
    const frame = this.model.get("frame"), data = floats(this.model.get("tile"));
    if (data.length !== frame.size[0] * frame.size[1]) return false;
    if (frame.version !== this.tiles.version) this.values.clear();
    this.tiles.add({ ...frame, data });
    this.frame = frame;
    this.number = frame.number;
    this.asking.delete("tile");
    return true;
  }

  /** @param {Record<string, any>} message */
  hear(message) {
    if (message.kind !== "value") return;
    this.asking.delete("value");
    if (message.version === this.tiles.version) this.values.set(`${message.row},${message.column}`, message.text);
    this.say();
  }

  /**
   * Ask the kernel, but one thing of a kind at a time: what is still of interest is asked for again.
   * @param {string} kind
   * @param {Record<string, unknown>} content
   */
  ask(kind, content) {
    const now = performance.now();
    if (now - (this.asking.get(kind) ?? -Infinity) < 3000) return;
    this.asking.set(kind, now);
    this.model.send({ kind, ...content });
  }

  // --- drawing ---

  later() {
    if (!this.due) this.due = requestAnimationFrame(() => { this.due = 0; this.draw(); });
  }

  /**
   * Draw what came without waiting for the screen, once all that came with it is told; but never twice for one of its
   * frames, and not where nobody looks.
   */
  soon() {
    if (document.visibilityState !== "visible" || performance.now() - this.drawn < SCREEN) {
      this.later();
      return;
    }
    queueMicrotask(() => {
      if (this.ending.signal.aborted) return;
      cancelAnimationFrame(this.due);
      this.due = 0;
      this.draw();
    });
  }

  /** The part in view: what the model says, inside the matrix. */
  part() {
    const [rows, columns] = this.frame.shape, told = this.model.get("viewport");
    if (told.length !== 4) return [0, 0, rows, columns];
    const top = clamp(told[0], 0, rows), left = clamp(told[1], 0, columns);
    return [top, left, clamp(told[2], top, rows), clamp(told[3], left, columns)];
  }

  draw() {
    this.drawn = performance.now();
    const { model, frame } = this, [rows, columns] = frame.shape, part = this.part();
    this.resize(rows, columns);
    const { width, height } = this.canvas;
    const scale = {
      table: tableOf(model.get("palette"), isDark(this.root)), limit: model.get("limit"),
      symlog: model.get("transform") === "symlog", sequential: model.get("colours") === "sequential",
    };
    const image = this.context.createImageData(width, height), pixels = new Uint32Array(image.data.buffer);
    for (const tile of this.tiles.for(part)) if (tile.data.length) paint(pixels, width, height, tile, part, scale);
    this.context.putImageData(image, 0, 0);
    this.writeNumbers(part, scale);
    this.drawAxes(part);
    this.drawBar(scale);
    this.say();
    if (rows * columns) {
      const box = wanted(part, frame.shape, [height, width], this.tiles);
      if (box) this.ask("tile", { box });
    }
    if (this.number >= 0) {
      model.send({ kind: "shown", number: this.number });
      this.canvas.dataset.number = String(this.number);
      this.number = -1;
    }
  }

  /**
   * Give the picture the matrix' shape within bounds; a narrow page may shrink it.
   * @param {number} rows
   * @param {number} columns
   */
  resize(rows, columns) {
    const most = this.model.get("height"), ratio = Math.max(1, columns) / Math.max(1, rows);
    const width = Math.round(Math.min(most * clamp(ratio, NARROWEST, WIDEST), Math.max(1, columns) * LARGEST_CELL));
    const height = Math.min(most, Math.max(1, rows) * LARGEST_CELL), shape = `${width} / ${height}`;
    if (this.picture.dataset.shape !== shape) {
      this.picture.dataset.shape = shape;
      this.root.style.setProperty("--width", `${width}px`);
      this.picture.style.aspectRatio = rows > 1 ? shape : "";
      this.picture.style.height = rows > 1 ? "" : `${height}px`;
      this.measure();
    }
    const dense = window.devicePixelRatio || 1;
    const pixels = this.size.map((length) => Math.max(1, Math.round(length * dense)));
    if (this.canvas.height !== pixels[0] || this.canvas.width !== pixels[1]) {
      [this.canvas.height, this.canvas.width] = pixels;
    }
  }

  measure() { this.size = [this.picture.clientHeight, this.picture.clientWidth]; }

  /**
   * Write the numbers into the cells, once they are large enough.
   * @param {Part} part
   * @param {Scale} scale
   */
  writeNumbers(part, scale) {
    const dense = window.devicePixelRatio || 1, { context, canvas } = this;
    const cell = [canvas.height / (part[2] - part[0]), canvas.width / (part[3] - part[1])];
    if (cell[1] < ROOM_FOR_NUMBERS * dense || cell[0] < 16 * dense) return;
    context.font = `${11 * dense}px ui-monospace, monospace`;
    context.textAlign = "center";
    context.textBaseline = "middle";
    for (let row = Math.floor(part[0]); row < part[2]; row++) {
      for (let column = Math.floor(part[1]); column < part[3]; column++) {
        const found = this.tiles.at(row, column);
        if (!found || found.block[0] * found.block[1] !== 1) continue;
        const x = (column + 0.5 - part[1]) * cell[1], y = (row + 0.5 - part[0]) * cell[0];
        this.writeNumber(found.value, x, y, scale, dense);
      }
    }
  }

  /**
   * @param {number} value
   * @param {number} x
   * @param {number} y
   * @param {Scale} scale
   * @param {number} dense
   */
  writeNumber(value, x, y, { table, limit, symlog, sequential }, dense) {
    const { context } = this, finite = Number.isFinite(value);
    const text = finite ? brief(value) : shortest(value);
    const shade = finite ? shadeOf(value / limit, symlog, sequential) : 0;
    const [r, g, b] = [0, 8, 16].map((shift) => table[shade] >> shift & 255);
    if (!finite) {                        // a label of its own on the checks
      context.fillStyle = "#fff";
      context.fillRect(x - 16 * dense, y - 8 * dense, 32 * dense, 16 * dense);
    }
    context.fillStyle = finite && 0.3 * r + 0.6 * g + 0.1 * b < 130 ? "#fff" : "#000";
    context.fillText(text, x, y);
  }

  /** @param {Part} part */
  drawAxes(part) {
    /**
     * @param {0 | 1} axis
     * @param {number} room
     * @returns {Mark[]}
     */
    const marksOf = (axis, room) => {
      const [start, end] = [part[axis], part[axis + 2]];
      return roundSteps(Math.ceil(start - 0.5), end - 0.5 + 1e-9, room)
        .map((at) => [grouped(at), (at + 0.5 - start) / (end - start)]);
    };
    const rows = marksOf(0, this.size[0] / 36);
    place(this.rowMarks, "top", rows);
    this.rowMarks.style.width = `${Math.max(1, ...rows.map(([text]) => text.length)) * 6}px`;
    place(this.columnMarks, "left", marksOf(1, this.size[1] / 64));
    this.title.textContent = this.model.get("title");
    this.rowName.textContent = this.model.get("row_name");
    this.columnName.textContent = this.model.get("column_name");
    this.picture.classList.toggle("zoomed", this.model.get("viewport").length === 4);
  }

  /** @param {Scale} scale */
  drawBar({ table, limit, symlog, sequential }) {
    this.log.setAttribute("aria-pressed", String(symlog));
    if (this.bar.height !== SHADES) [this.bar.width, this.bar.height] = [1, SHADES];
    const image = new ImageData(1, SHADES);
    new Uint32Array(image.data.buffer).set(table.slice(0, SHADES).reverse());
    contextOf(this.bar).putImageData(image, 0, 0);
    const entries = marks(symlog, sequential).map((share) => {
      const at = scaled(share, symlog);
      return /** @type {Mark} */ ([brief(share * limit), 1 - (sequential ? at : (at + 1) / 2)]);
    });
    place(this.numbers, "top", entries);
    this.numbers.style.width = `${Math.max(...entries.map(([text]) => text.length)) * 6 + 4}px`;
  }

  // --- words ---

  /**
   * The exact value of one number in words, or what is known while the kernel is asked.
   * @param {number} row
   * @param {number} column
   */
  read(row, column) {
    const key = `${row},${column}`, near = this.tiles.at(row, column);
    const single = near && near.block[0] * near.block[1] === 1;
    let text = this.values.get(key);
    if (text === undefined && single && near.exact) text = shortest(near.value);
    if (text === undefined) this.ask("value", { row, column });
    const place = `${this.model.get("row_name")} ${row}, ${this.model.get("column_name")} ${column}: ${text ?? "…"}`;
    if (!near || single) return place;
    return `${place}   (strongest of these ${near.block[0]} × ${near.block[1]}: ${brief(near.value)})`;
  }

  say() {
    const { model, frame } = this, [rows, columns] = frame.shape;
    const cursor = /** @type {Cell} */ (model.get("cursor"));
    const empty = rows * columns === 0;
    const here = empty ? "" : this.read(...cursor);
    this.status.textContent = empty ? "This matrix is empty." : this.hover ? this.read(...this.hover) : here;
    if (this.moved) this.spoken.textContent = here;
    const part = this.part(), limit = brief(model.get("limit"));
    const words = [`${grouped(rows)} × ${grouped(columns)} ${frame.dtype}`];
    if (model.get("viewport").length === 4) {
      words.push(`in view: ${model.get("row_name")} ${Math.floor(part[0])}–${Math.ceil(part[2]) - 1}, ` +
        `${model.get("column_name")} ${Math.floor(part[1])}–${Math.ceil(part[3]) - 1}`);
    }
    this.facts.textContent = words.join(" · ");
    const kinds = /** @type {[number, string][]} */ ([[frame.nan, "NaN"], [frame.infinite, "infinite"]]);
    const odd = kinds.filter(([count]) => count)
      .map(([count, what]) => `${frame.counted ? "" : "at least "}${grouped(count)} ${what}`);
    for (const text of odd) {
      const label = document.createElement("span");
      label.className = "odd";
      label.textContent = text;
      this.facts.append(label);
    }
    this.error.textContent = model.get("error");
    this.canvas.setAttribute("aria-label", [`${model.get("title") || "Matrix"}: ${rows} by ${columns}, ` +
      `colours up to ${limit}`, ...odd, "arrow keys move the cursor, plus and minus zoom, 0 shows all"].join(", "));
    this.drawCursor(cursor, part, empty);
  }

  /**
   * @param {number[]} cursor
   * @param {Part} part
   * @param {boolean} empty
   */
  drawCursor([row, column], part, empty) {
    const { style } = this.mark, [height, width] = this.size;
    const cell = [height / (part[2] - part[0]), width / (part[3] - part[1])];
    const size = cell.map((length) => Math.max(length, 7));
    const middle = [(row + 0.5 - part[0]) * cell[0], (column + 0.5 - part[1]) * cell[1]];
    this.mark.hidden = empty || !this.moved && !this.model.get("cursor").some(Boolean);
    style.height = `${size[0]}px`;
    style.width = `${size[1]}px`;
    style.top = `${middle[0] - size[0] / 2}px`;
    style.left = `${middle[1] - size[1] / 2}px`;
  }

  // --- people ---

  /**
   * Where in the matrix an event happened.
   * @param {MouseEvent} event
   */
  point(event) {
    const bounds = this.canvas.getBoundingClientRect(), part = this.part();
    const share = [(event.clientY - bounds.top) / bounds.height, (event.clientX - bounds.left) / bounds.width];
    return [0, 1].map((axis) => part[axis] + share[axis] * (part[axis + 2] - part[axis]));
  }

  /**
   * The row and column at an event.
   * @param {MouseEvent} event
   * @returns {Cell}
   */
  cellAt(event) {
    const [row, column] = this.point(event).map((at, axis) => clamp(Math.floor(at), 0, this.frame.shape[axis] - 1));
    return [row, column];
  }

  /**
   * @param {string} name
   * @param {unknown} value
   */
  set(name, value) {
    this.model.set(name, value);
    this.model.save_changes();
    this.later();
  }

  toggle() { this.set("transform", this.model.get("transform") === "symlog" ? "linear" : "symlog"); }

  /**
   * Show a part of the matrix, moved to lie within it; all of it if it is as large.
   * @param {Part} part  empty for all
   */
  show(part) {
    const { shape } = this.frame;
    if (part.length === 4) {
      const spans = [0, 1].map((axis) => Math.min(part[axis + 2] - part[axis], shape[axis]));
      const starts = [0, 1].map((axis) => clamp(part[axis], 0, shape[axis] - spans[axis]));
      part = [...starts, starts[0] + spans[0], starts[1] + spans[1]];
      if (spans[0] === shape[0] && spans[1] === shape[1]) part = [];
    }
    this.set("viewport", part);
  }

  /**
   * Zoom by a factor around a point; in very long matrices first along the longer side, until cells are square.
   * @param {number} factor
   * @param {number[]} [around]
   */
  zoom(factor, around) {
    const part = this.part(), { shape } = this.frame;
    const spans = [part[2] - part[0], part[3] - part[1]];
    const cells = this.size.map((length, axis) => length / spans[axis]);
    const middle = around ?? [0, 1].map((axis) => (part[axis] + part[axis + 2]) / 2);
    const next = [0, 1].map((axis) => {
      const waits = factor < 1 && cells[axis] > 2 * cells[1 - axis];
      return clamp(spans[axis] * (waits ? 1 : factor), Math.min(2, shape[axis]), shape[axis]);
    });
    const start = [0, 1].map((axis) => middle[axis] - (middle[axis] - part[axis]) * next[axis] / spans[axis]);
    this.show([...start, start[0] + next[0], start[1] + next[1]]);
  }

  /**
   * @param {number} down
   * @param {number} right
   */
  pan(down, right) {
    const part = this.part(), rows = down * (part[2] - part[0]), columns = right * (part[3] - part[1]);
    if (this.model.get("viewport").length === 4) {
      this.show([part[0] + rows, part[1] + columns, part[2] + rows, part[3] + columns]);
    }
  }

  /**
   * Move the cursor, and what is in view if the cursor left it.
   * @param {number} row
   * @param {number} column
   */
  goTo(row, column) {
    const { shape } = this.frame, cursor = [clamp(row, 0, shape[0] - 1), clamp(column, 0, shape[1] - 1)];
    this.moved = true;
    const part = this.part(), next = [...part];
    for (const axis of [0, 1]) {
      const shift = Math.min(0, cursor[axis] - part[axis]) + Math.max(0, cursor[axis] + 1 - part[axis + 2]);
      next[axis] += shift;
      next[axis + 2] += shift;
    }
    this.set("cursor", cursor);
    if (String(next) !== String(part)) this.show(next);
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (event.altKey || event.metaKey || 0 === this.frame.shape[0] * this.frame.shape[1]) return;
    const [row, column] = this.model.get("cursor"), [rows, columns] = this.frame.shape, part = this.part();
    const page = Math.max(1, Math.floor(part[2] - part[0]) - 1), end = event.ctrlKey;
    /** @type {Record<string, [down: number, right: number]>} */
    const arrows = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };
    /** @type {Record<string, () => void>} */
    const keys = {
      "+": () => this.zoom(0.5, [row + 0.5, column + 0.5].map((at, axis) => clamp(at, part[axis], part[axis + 2]))),
      "-": () => this.zoom(2), 0: () => this.show([]), l: () => this.toggle(),
      Home: () => this.goTo(end ? 0 : row, 0), End: () => this.goTo(end ? rows - 1 : row, columns - 1),
      PageUp: () => this.goTo(row - page, column), PageDown: () => this.goTo(row + page, column),
    };
    keys["="] = keys["+"];
    const arrow = arrows[event.key];
    const action = arrow
      ? () => (event.shiftKey ? this.pan(arrow[0] / 4, arrow[1] / 4) : this.goTo(row + arrow[0], column + arrow[1]))
      : keys[event.key];
    if (!action) return;
    event.preventDefault();
    event.stopPropagation();
    action();
  }

  /**
   * The wheel zooms once the picture has the focus, or with Ctrl; else the page scrolls.
   * @param {WheelEvent} event
   */
  wheel(event) {
    const focused = this.root.contains(document.activeElement) || event.ctrlKey;
    if (!focused || (event.deltaY > 0 && this.model.get("viewport").length !== 4)) return;
    event.preventDefault();
    this.zoom(clamp(1.002 ** event.deltaY, 0.5, 2), this.point(event));
  }

  /** @param {PointerEvent} event */
  press(event) {
    if (event.button !== 0) return;
    this.drag = { x: event.clientX, y: event.clientY, part: this.part(), far: false };
    this.canvas.setPointerCapture(event.pointerId);
  }

  /** @param {PointerEvent} event */
  move(event) {
    const { drag } = this;
    if (0 === this.frame.shape[0] * this.frame.shape[1]) return;
    this.hover = this.cellAt(event);
    if (!drag) { this.say(); return; }
    const [dx, dy] = [event.clientX - drag.x, event.clientY - drag.y];
    if (!drag.far && Math.hypot(dx, dy) < 4) return;
    drag.far = true;
    this.picture.classList.add("dragging");
    if (this.model.get("viewport").length !== 4) return;
    const rows = dy / this.size[0] * (drag.part[2] - drag.part[0]);
    const columns = dx / this.size[1] * (drag.part[3] - drag.part[1]);
    this.show([drag.part[0] - rows, drag.part[1] - columns, drag.part[2] - rows, drag.part[3] - columns]);
  }

  /** @param {PointerEvent} event */
  release(event) {
    if (this.drag && !this.drag.far && this.frame.shape[0] * this.frame.shape[1]) this.goTo(...this.cellAt(event));
    this.drop();
  }

  drop() {
    this.drag = null;
    this.picture.classList.remove("dragging");
  }
}

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const view = new View(model, el);
  const untold = tellWhenGone(model, el);
  const unname = nameSliders(); // those beside the matrices: every widget of several parts has one
  return () => {
    untold();
    unname();
    view.end();
  };
}

export default { render };
