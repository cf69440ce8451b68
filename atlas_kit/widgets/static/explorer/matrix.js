// A stored matrix in MatrixView's canvas: what a kernel would send it comes from tiles that are asked for instead, of a
// file in the explorer, or of a memory that goes on learning.

import { el } from "./dom.js";
import matrix from "../matrix/matrix.js";
import { floats } from "../matrix/matrix.js";

/** @typedef {(...args: any[]) => void} Listener */

const TILE = 512;
// The colour tables of colour.py, by their anchors; a test sees that they are the same.
const SHADES = 249;
const LIGHT = "053061 2166ac 4393c3 92c5de d1e5f0 f7f7f7 fddbc7 f4a582 d6604d b2182b 67001f";
const DARK = "d6ecfa 92c5de 4393c3 2166ac 17395c 15171a 5c1d1a b2302b d6604d f4a582 fde5d8";
const NAN = "b4f000 000000",
  INFINITE = "e000e0",
  BLANK = "ffffff";

/**
 * ``refresh`` of what comes back shows what is there by now.
 * @param {{request: import("./dom.js").Request, shape: [number, number],
 *          dtype: string, name: string, height?: number, rows?: string, columns?: string,
 *          ranges?: boolean}} options `ranges`: whether who answers knows the operation `range`
 */
export async function storedMatrix({ request, shape, dtype, name, height = 400, rows = "row", columns = "column", ranges = false }) {
  const note = el("p", { class: "ax-dim", role: "status" });
  const host = el("div");
  /** @type {Record<string, unknown>} */
  const state = {
    title: name,
    row_name: rows,
    column_name: columns,
    transform: "linear",
    colours: "diverging",
    height,
    error: "",
    viewport: [],
    cursor: [0, 0],
    palette: palettes(),
    limit: 1,
  };
  /** @type {Map<string, Listener[]>} */
  const listeners = new Map();
  /**
   * @param {string} event
   * @param {...unknown} rest
   */
  const tell = (event, ...rest) => [...(listeners.get(event) ?? [])].forEach((listener) => listener(...rest));
  /**
   * @param {string} key
   * @param {unknown} value
   */
  const set = (key, value) => {
    state[key] = value;
    tell(`change:${key}`);
  };
  let number = 0,
    version = 1;

  /**
   * @param {number[]} box
   * @param {boolean} [renewed] whether the matrix may be another one by now
   */
  async function load([top, left, bottom, right], renewed = false) {
    const { reply, buffers } = await request({
      op: "tile",
      y0: top,
      y1: bottom,
      x0: left,
      x1: right,
      rows: TILE,
      cols: TILE,
    });
    if (reply.error) {
      set("error", reply.error);
      return reply;
    }
    const exact = reply.block[0] * reply.block[1] === 1,
      values = Array.from(floats(buffers[0]));
    if (renewed) version += 1;
    state.tile = buffers[0];
    if (!number || renewed) set("limit", reply.largest || 1);
    number += 1;
    note.textContent =
      reply.share < 1
        ? `${(100 * reply.share).toPrecision(2)} % of these numbers were looked at, evenly spread; zoom in to see all.`
        : "";
    /** @type {import("../matrix/matrix.js").Frame} */
    const frame = {
      number,
      version,
      shape,
      dtype,
      box: [top, left, bottom, right],
      size: [reply.rows, reply.cols],
      block: reply.block,
      unit: 1,
      nan: exact ? values.filter(Number.isNaN).length : 0,
      infinite: exact ? values.filter((v) => Math.abs(v) === Infinity).length : 0,
      counted: false, // in this tile only
    };
    set("frame", frame);
    return reply;
  }
  /** @param {Record<string, any>} message  whose row and column say which */
  async function value({ row, column }) {
    const { reply, buffers } = await request({
      op: "tile",
      y0: row,
      y1: row + 1,
      x0: column,
      x1: column + 1,
      rows: 1,
      cols: 1,
    });
    if (!reply.error)
      tell(
        "msg:custom",
        { kind: "value", version, row, column, text: String(Number(floats(buffers[0])[0].toPrecision(7))) },
        [],
      );
  }
  /** @type {import("../matrix/matrix.js").Model} */
  const model = {
    get: (key) => state[key],
    set,
    save_changes() {},
    send(message) {
      if (message.kind === "tile") load(message.box);
      else if (message.kind === "value") value(message);
    },
    on(event, listener) {
      listeners.set(event, [...(listeners.get(event) ?? []), listener]);
    },
    off(event, listener) {
      listeners.set(
        event,
        (listeners.get(event) ?? []).filter((other) => other !== listener),
      );
    },
  };
  /** The size that so many per cent of the numbers do not exceed has the strongest colour: 100 is the largest. */
  async function range() {
    const percent = Number(choice.value);
    if (percent === 100) {
      set("limit", whole);
      return;
    }
    const { reply } = await request({ op: "range", percent });
    if (reply.error) note.textContent = reply.error;
    else if (Number(choice.value) === percent) set("limit", reply.limit || whole);
  }
  const choice = el("select", {
    "aria-label": "Colour range",
    onchange: range,
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });
  for (const [value, text] of [["100", "up to the largest"], ["99.9", "99.9 % of the numbers"], ["99", "99 % of the numbers"], ["95", "95 % of the numbers"]]) {
    choice.append(el("option", { value, text }));
  }
  const first = await load([0, 0, ...shape]);
  if (first.error) return { error: first.error };
  const whole = first.largest || 1;
  const end = matrix.render({ model, el: host });
  const refresh = () => load([0, 0, ...shape], true);
  const bar = ranges ? el("p", { class: "ax-dim" }, el("label", {}, "Colours ", choice)) : "";
  return { root: el("div", { class: "ax-matrix" }, bar, host, note), destroy: end, refresh };
}

/** @param {string} text */
const anchors = (text) => text.split(" ").map((six) => [0, 2, 4].map((at) => parseInt(six.slice(at, at + 2), 16)));

/** The table for light pages, then the one for dark pages: 256 colours of 3 bytes each. */
export function palettes() {
  return new DataView(Uint8Array.from([LIGHT, DARK].flatMap((text) => table(anchors(text))).flat()).buffer);
}

/** @param {number[][]} points */
function table(points) {
  const shades = Array.from({ length: SHADES }, (_, i) => {
    const at = (i * (points.length - 1)) / (SHADES - 1),
      low = Math.min(points.length - 2, Math.floor(at));
    return [0, 1, 2].map((c) => rint(points[low][c] + (at - low) * (points[low + 1][c] - points[low][c])));
  });
  const [infinite] = anchors(INFINITE);
  return [...shades, ...anchors(NAN), shades[SHADES - 1], infinite, shades[0], infinite, ...anchors(BLANK)];
}

/**
 * Round halves to even, as NumPy does.
 * @param {number} value
 */
function rint(value) {
  const low = Math.floor(value);
  return value - low === 0.5 ? low + (low % 2) : Math.round(value);
}
