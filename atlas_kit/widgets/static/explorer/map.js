// The file drawn to scale: all of it as a thin strip, and below it the part in view, in which regions have names.
//
// The lower strip is a slider over the file's regions: arrow keys step from one to the next, Enter shows the bytes.
// Nothing is told by colour alone: wide regions are named, damaged and unused ones hatched; the line below says all.

import { bytes, count, el, hex, newest, onResize, paintable, settled } from "./dom.js";

/**
 * @typedef {import("./dom.js").Reply} Reply
 * @typedef {(name: string) => string} Colour  of the style sheet, as canvases take it
 * @typedef {Record<string, number>} Kinds  how many bytes are of which kind
 * @typedef {{offset: number, size: number, count: number, kind: string, name: string, kinds?: Kinds,
 *            group?: number | null}} Item
 * @typedef {{count: number, kinds: Kinds, group?: number | null}} Pile  of items that share a pixel
 * @typedef {{name: string, count: number, size: number}} Group
 * @typedef {{items: Item[], totals: {kind: string, count: number, size: number}[], groups?: Group[]}} Strip
 * @typedef {{offset: number, severity: string}} Finding
 * @typedef {{offset: number, size: number}} Range
 */

/** Of a name on the map that is cut; fewer tell nothing apart. */
const FEWEST_LETTERS = 6;

const HATCHED = new Set(["damaged", "garbage", "uncommitted", "trailing", "unused"]);
const LEAST = 2.5; // CSS pixels that the smallest region gets
const MOST_GROUPS = 12; // in the legend
/** Paul Tol's light colours, on which black can be read and which colour-blind readers tell apart. */
const GROUPS = ["#77aadd", "#ee8866", "#eedd88", "#ffaabb", "#99ddff", "#44bb99", "#bbcc33", "#aaaa00", "#dddddd"];
const MARGIN = 9; // room for the marks of findings

/**
 * @param {{ask: import("./dom.js").Ask, size: number, pick: import("./dom.js").ShowBytes, groupings?: string[]}} options
 *        `groupings`: by what else than their kinds regions can be coloured
 */
export function byteMap({ ask, size, pick, groupings = [] }) {
  const overview = el("canvas", { class: "ax-overview", "aria-hidden": "true" });
  const detail = el("canvas", {
    class: "ax-detail",
    role: "slider",
    tabindex: "0",
    "aria-label": "Byte map",
    "aria-orientation": "horizontal",
    "aria-valuemin": "0",
    "aria-valuemax": String(Math.max(0, size - 1)),
    "aria-valuenow": "0",
  });
  const line = el("p", { class: "ax-readout", text: " " });
  const legend = el("ul", { class: "ax-legend", "aria-label": "What the file is made of" });
  const zoomBy = (/** @type {string} */ label, /** @type {string} */ text, /** @type {() => void} */ work) =>
    el("button", { type: "button", class: "ax-small", "aria-label": label, title: label, text, onclick: work });
  const buttons = el(
    "div",
    { class: "ax-zoom" },
    zoomBy("Zoom in", "+", () => zoom(0.5)),
    zoomBy("Zoom out", "−", () => zoom(2)),
    zoomBy("Show the whole file", "⤢", () => look(0, size)),
  );
  const by = el("select", { "aria-label": "Colour the map by", onchange: () => recolour() });
  for (const name of ["kind", ...groupings]) by.append(el("option", { value: name === "kind" ? "" : name, text: `by ${name}` }));
  if (groupings.length) buttons.prepend(by);
  const probe = el("span", { hidden: true });
  const root = el(
    "section",
    { class: "ax-map", "aria-label": "Byte map" },
    el("div", { class: "ax-strips" }, overview, detail),
    el("div", { class: "ax-under" }, line, buttons),
    legend,
    probe,
  );

  let start = 0,
    stop = size;
  /** @type {Strip | null} */
  let whole = null;
  /** @type {Strip | null} */
  let part = null;
  let cursor = { offset: 0, size: 0, text: "" };
  /** @type {Range | null} */
  let selected = null;
  /** @type {Finding[]} */
  let marks = [];

  const load = newest(async () => {
    const bins = Math.max(200, Math.round(detail.clientWidth));
    const grouping = by.value ? { by: by.value } : {};
    const fresh = await ask({ op: "map", start: Math.floor(start), stop: Math.ceil(stop), bins, ...grouping });
    if (fresh.error) {
      line.textContent = fresh.error;
      return;
    }
    part = /** @type {Strip} */ (fresh);
    if (!whole) {
      whole = part;
      showLegend(whole);
    }
    draw();
  });
  const loadSoon = settled(load, 60);
  /** Ask again, in the colours that are wanted now. */
  async function recolour() {
    whole = null;
    const kept = [start, stop];
    start = 0;
    stop = size;
    await load();
    [start, stop] = kept;
    if (kept[0] > 0 || kept[1] < size) load();
  }
  /**
   * The colour of a group: layers go through the hues in their order, so that neighbours are alike; others differ.
   * @param {number} group
   */
  function hue(group) {
    const many = part?.groups?.length ?? 1;
    return by.value === "layer" ? `hsl(${Math.round((300 * group) / Math.max(1, many - 1))} 55% 52%)` : GROUPS[group % GROUPS.length];
  }

  /**
   * @param {number} from
   * @param {number} to
   */
  function look(from, to) {
    const least = Math.min(size, 64);
    let span = Math.min(size, Math.max(least, to - from));
    start = Math.max(0, Math.min(from, size - span));
    stop = start + span;
    draw();
    loadSoon();
  }
  /**
   * @param {number} factor
   * @param {number} centre
   */
  function zoom(
    factor,
    centre = cursor.offset >= start && cursor.offset < stop ? cursor.offset : (start + stop) / 2,
  ) {
    const span = (stop - start) * factor,
      share = (centre - start) / (stop - start);
    look(centre - span * share, centre + span * (1 - share));
  }

  // --- drawing ---------------------------------------------------------------------------------------------

  /** Return a function that gives a colour of the style sheet as canvases take it. */
  function colours() {
    /** @type {Map<string, string>} */
    const known = new Map();
    return (/** @type {string} */ name) => {
      const before = known.get(name);
      if (before !== undefined) return before;
      probe.style.color = `var(--ax-${name.replaceAll(" ", "-")})`;
      const { color } = getComputedStyle(probe);
      known.set(name, color);
      return color;
    };
  }
  function draw() {
    if (!root.isConnected || !detail.clientWidth) return;
    const colour = colours();
    strip(overview, whole, 0, size, colour, false);
    strip(detail, part, start, stop, colour, true);
  }
  /**
   * @param {HTMLCanvasElement} canvas
   * @param {Strip | null} data
   * @param {number} from
   * @param {number} to
   * @param {Colour} colour
   * @param {boolean} named
   */
  function strip(canvas, data, from, to, colour, named) {
    const { context, width, height } = paintable(canvas);
    const scale = width / Math.max(1, to - from),
      x = (/** @type {number} */ offset) => (offset - from) * scale;
    const top = named ? MARGIN : 0,
      tall = height - top;
    const items = data ? data.items : [];
    const inView = items.filter((item) => item.offset + item.size >= from && item.offset <= to);
    /** @type {Map<number, number | null>} */
    const groups = new Map(); // those of the columns whose items have one and the same
    /** @type {Map<number, Kinds>} */
    const columns = new Map(); // what is narrower than LEAST stays visible: it is stacked, beside what is large
    for (const item of inView) {
      const left = x(item.offset);
      const wide = item.size * scale;
      if (wide >= LEAST)
        box(context, item, Math.max(-2, left), Math.min(wide, width + 4), top, tall, width, colour, named);
      else {
        const column = Math.min(Math.floor(left / LEAST), Math.floor(width / LEAST) - 1);
        const group = item.group ?? null;
        groups.set(column, !groups.has(column) || groups.get(column) === group ? group : null);
        pile(columns, column, item);
      }
    }
    for (const [column, kinds] of columns) {
      box(context, { kinds, count: 2, group: groups.get(column) }, column * LEAST, LEAST, top, tall, width, colour, named);
    }
    outline(context, x, width, top, tall, colour, named);
    if (!named && (start > 0 || stop < size)) frame(context, x, height, colour);
    if (named) drawMarks(context, x, colour);
  }
  /**
   * @param {Map<number, Kinds>} columns
   * @param {number} column
   * @param {Item} item
   */
  function pile(columns, column, item) {
    const kinds = columns.get(column) ?? {};
    columns.set(column, kinds);
    for (const [kind, part] of Object.entries(item.kinds ?? { [item.kind]: item.size })) {
      kinds[kind] = (kinds[kind] ?? 0) + part;
    }
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Item | Pile} item
   * @param {number} left
   * @param {number} wide
   * @param {number} top
   * @param {number} tall
   * @param {number} width
   * @param {Colour} colour
   * @param {boolean} named
   */
  function box(context, item, left, wide, top, tall, width, colour, named) {
    left = Math.min(left, width - LEAST);
    const group = "group" in item && typeof item.group === "number" ? item.group : null;
    /** @type {[string, number][]} */
    const kinds = "kind" in item && !item.kinds ? [[item.kind, item.size]] : Object.entries(item.kinds ?? {});
    const total = kinds.reduce((sum, [, part]) => sum + part, 0) || 1;
    const gap = named && wide > 4 ? 1 : 0;
    const least = Math.min(4, tall / kinds.length),
      room = tall - least * kinds.length;
    let y = top;
    for (const [kind, part] of kinds) {
      // what shares a pixel is stacked in it
      const high = least + (room * part) / total;
      context.fillStyle = group === null ? colour(kind) : hue(group);
      context.fillRect(left, y, wide - gap, high);
      if (HATCHED.has(kind)) hatch(context, left, y, wide - gap, high, colour("hatch"));
      y += high;
    }
    if (named && "kind" in item && item.count === 1 && wide > 34)
      label(context, item, Math.max(0, left), Math.min(wide + Math.min(0, left), width - left), top, tall, colour);
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {number} left
   * @param {number} top
   * @param {number} wide
   * @param {number} high
   * @param {string} ink
   */
  function hatch(context, left, top, wide, high, ink) {
    context.save();
    context.beginPath();
    context.rect(left, top, wide, high);
    context.clip();
    context.strokeStyle = ink;
    context.lineWidth = 1;
    context.beginPath();
    for (let at = left - high; at < left + wide; at += 6) {
      context.moveTo(at, top + high);
      context.lineTo(at + high, top);
    }
    context.stroke();
    context.restore();
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {Item} item
   * @param {number} left
   * @param {number} wide
   * @param {number} top
   * @param {number} tall
   * @param {Colour} colour
   */
  function label(context, item, left, wide, top, tall, colour) {
    context.save();
    context.beginPath();
    context.rect(left, top, wide - 3, tall);
    context.clip();
    context.fillStyle = typeof item.group === "number" ? "#000" : colour(`${item.kind} ink`);
    context.font = `11px ${getComputedStyle(root).fontFamily}`;
    context.textBaseline = "middle";
    context.direction = "ltr";
    const name = shortened(context, item.name || item.kind, wide - 12);
    if (!name) return context.restore();
    context.fillText(name, left + 5, top + tall / 2 - (item.name && tall > 34 ? 7 : 0));
    if (item.name && tall > 34) {
      context.globalAlpha = 0.8;
      const size = bytes(item.size);
      if (context.measureText(size).width <= wide - 8) context.fillText(size, left + 5, top + tall / 2 + 8);
    }
    context.restore();
  }
  /**
   * Cut a name in its middle so that it fits; empty where too little of it would tell it apart. (It is under the pointer.)
   * @param {CanvasRenderingContext2D} context
   * @param {string} text
   * @param {number} room
   */
  function shortened(context, text, room) {
    if (context.measureText(text).width <= room) return text;
    text = text.replace(/\.weight$/, ""); // which all of them have
    if (context.measureText(text).width <= room) return text;
    const each = context.measureText(text).width / text.length;
    for (let letters = Math.floor(room / each); letters >= FEWEST_LETTERS; letters--) {
      const end = Math.ceil(letters * 0.6); // the end is what tells names apart
      const short = `${text.slice(0, letters - end)}…${text.slice(-end)}`;
      if (context.measureText(short).width <= room) return short;
    }
    return "";
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {(offset: number) => number} x
   * @param {number} width
   * @param {number} top
   * @param {number} tall
   * @param {Colour} colour
   * @param {boolean} named
   */
  function outline(context, x, width, top, tall, colour, named) {
    /** @type {[Range | null, number, string][]} */
    const ranges = [
      [cursor.size ? cursor : null, 1, "cursor"],
      [selected, 2.5, "selected"],
    ];
    for (const [range, thick, ink] of ranges) {
      if (!range || (!named && range !== selected)) continue;
      const left = Math.max(-3, x(range.offset)),
        right = Math.min(width + 3, Math.max(x(range.offset + range.size), left + LEAST));
      if (right < 0 || left > width) continue;
      context.strokeStyle = colour(ink);
      context.lineWidth = thick;
      const out = right - left < 8 ? thick : 0; // around what is narrow, so that it is still seen
      context.strokeRect(left + thick / 2 - out, top + thick / 2, right - left - thick + 2 * out, tall - thick);
    }
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {(offset: number) => number} x
   * @param {number} height
   * @param {Colour} colour
   */
  function frame(context, x, height, colour) {
    context.fillStyle = colour("veil");
    context.fillRect(0, 0, x(start), height);
    context.fillRect(x(stop), 0, x(size) - x(stop), height);
    context.strokeStyle = colour("cursor");
    context.lineWidth = 1.5;
    context.strokeRect(x(start) + 0.75, 0.75, Math.max(3, x(stop) - x(start)) - 1.5, height - 1.5);
  }
  /**
   * @param {CanvasRenderingContext2D} context
   * @param {(offset: number) => number} x
   * @param {Colour} colour
   */
  function drawMarks(context, x, colour) {
    for (const mark of marks) {
      const at = Math.max(4, Math.min(context.canvas.clientWidth - 4, x(mark.offset)));
      if (x(mark.offset) < -4 || x(mark.offset) > context.canvas.clientWidth + 4) continue;
      context.fillStyle = colour(mark.severity);
      context.beginPath();
      context.moveTo(at - 4.5, 0);
      context.lineTo(at + 4.5, 0);
      context.lineTo(at, MARGIN - 1);
      context.fill();
    }
  }
  /** @param {Strip} strip */
  function showLegend({ totals, groups }) {
    if (groups) {
      const shown = groups.slice(0, MOST_GROUPS).map((group, at) =>
        el(
          "li",
          {},
          el("span", { class: "ax-swatch", style: `--swatch: ${hue(at)}`, "aria-hidden": "true" }),
          `${group.name} `,
          el("span", { class: "ax-dim", text: `${count(group.count)} · ${bytes(group.size)} · ${share(group.size)}` }),
        ),
      );
      if (groups.length > MOST_GROUPS) shown.push(el("li", { class: "ax-dim", text: `and ${count(groups.length - MOST_GROUPS)} more` }));
      legend.replaceChildren(...shown);
      return;
    }
    legend.replaceChildren(
      ...totals.map((row) =>
        el(
          "li",
          {},
          el("span", {
            class: `ax-swatch${HATCHED.has(row.kind) ? " ax-hatched" : ""}`,
            style: `--swatch: var(--ax-${row.kind.replaceAll(" ", "-")})`,
            "aria-hidden": "true",
          }),
          `${row.kind} `,
          el("span", { class: "ax-dim", text: `${count(row.count)} · ${bytes(row.size)} · ${share(row.size)}` }),
        ),
      ),
    );
  }
  /** @param {number} part */
  function share(part) {
    const percent = (100 * part) / Math.max(1, size);
    return percent && percent < 0.1 ? "< 0.1 %" : `${percent.toFixed(1)} %`;
  }

  // --- looking and choosing -----------------------------------------------------------------------------------

  const offsetOf = (/** @type {MouseEvent} */ event) => {
    const box = /** @type {Element} */ (event.currentTarget).getBoundingClientRect();
    const share = Math.max(0, Math.min(1, (event.clientX - box.left) / box.width));
    const [from, to] = event.currentTarget === overview ? [0, size] : [start, stop];
    return Math.min(size - 1, Math.floor(from + share * (to - from)));
  };
  /**
   * The item that is seen at a pixel, which may be wider than its bytes.
   * @param {number} offset
   */
  function seen(offset) {
    if (!part) return offset;
    const reach = (LEAST * (stop - start)) / detail.clientWidth;
    const tiny = part.items.find((i) => i.size < reach && offset >= i.offset && offset <= i.offset + reach);
    return tiny ? Math.min(tiny.offset, size - 1) : offset;
  }
  /** @param {Reply} found */
  function tell(found) {
    const { region, field } = found;
    const parts = [
      `${hex(region.offset)}  ${region.kind}${region.name ? ` “${region.name}”` : ""}`,
      `${bytes(region.size)}, ${share(region.size)} of the file`,
    ];
    if (field)
      parts.push(
        `${field.name}${field.value ? ` = ${field.value}` : ""}${field.meaning ? ` (${field.meaning})` : ""}`,
      );
    cursor = { offset: region.offset, size: region.size, text: parts.join("   ·   ") };
    line.textContent = cursor.text;
    detail.setAttribute("aria-valuenow", String(region.offset));
    detail.setAttribute(
      "aria-valuetext",
      `${region.kind} ${region.name}, ${bytes(region.size)} at byte ${region.offset}`,
    );
    draw();
  }
  const hover = newest(async (/** @type {number} */ offset) => {
    const found = await ask({ op: "at", offset });
    if (!found.error) tell(found);
  });
  const step = newest(async (/** @type {number} */ by) => {
    const found = await ask({ op: "step", offset: cursor.offset, by });
    if (found.error) {
      line.textContent = found.error;
      return;
    }
    tell(found);
    const { offset, size: long } = found.region;
    if (offset < start || offset + Math.min(long, stop - start) > stop)
      look(offset - (stop - start) / 2, offset + (stop - start) / 2);
  });

  /** @type {Record<string, () => void>} */
  const KEYS = {
    ArrowRight: () => step(1),
    ArrowDown: () => step(1),
    ArrowLeft: () => step(-1),
    ArrowUp: () => step(-1),
    PageDown: () => step(10),
    PageUp: () => step(-10),
    Home: () => step(-1e9),
    End: () => step(1e9),
    "+": () => zoom(0.5),
    "=": () => zoom(0.5),
    "-": () => zoom(2),
    0: () => look(0, size),
    Enter: () => pick(cursor.offset, cursor.size),
    " ": () => pick(cursor.offset, cursor.size),
  };
  detail.addEventListener("keydown", (event) => {
    const work = event.ctrlKey || event.metaKey || event.altKey ? null : KEYS[event.key];
    if (!work || !size) return;
    event.preventDefault();
    event.stopPropagation();
    work();
  });
  detail.addEventListener("focus", () => {
    if (!cursor.size && size) step(0);
  });
  /** @type {{x: number, start: number, stop: number, moved: boolean} | null} */
  let drag = null;
  detail.addEventListener("pointerdown", (event) => {
    drag = { x: event.clientX, start, stop, moved: false };
    detail.setPointerCapture(event.pointerId);
  });
  detail.addEventListener("pointermove", (event) => {
    if (!size) return;
    if (drag && Math.abs(event.clientX - drag.x) > 4) drag.moved = true;
    if (drag && drag.moved) {
      const by = ((drag.x - event.clientX) / detail.clientWidth) * (drag.stop - drag.start);
      look(drag.start + by, drag.stop + by);
      return;
    }
    hover(seen(offsetOf(event)));
  });
  detail.addEventListener("pointerup", (event) => {
    const clicked = drag && !drag.moved;
    drag = null;
    if (clicked && size) choose(seen(offsetOf(event)));
  });
  detail.addEventListener("pointercancel", () => {
    drag = null;
  });
  detail.addEventListener("dblclick", () => {
    if (selected) look(selected.offset - selected.size * 0.1, selected.offset + selected.size * 1.1);
  });
  const choose = newest(async (/** @type {number} */ offset) => {
    const found = await ask({ op: "at", offset });
    if (found.error) return;
    tell(found);
    pick(found.region.offset, found.region.size);
  });
  detail.addEventListener(
    "wheel",
    (event) => {
      if (!event.ctrlKey && !event.metaKey) return; // the page scrolls on
      event.preventDefault();
      zoom(event.deltaY > 0 ? 1.4 : 1 / 1.4, offsetOf(event));
    },
    { passive: false },
  );
  const scrub = (/** @type {PointerEvent} */ event) => {
    if (event.buttons && size) {
      const half = (stop - start) / 2,
        at = offsetOf(event);
      look(at - half, at + half);
    }
  };
  overview.addEventListener("pointerdown", (event) => {
    overview.setPointerCapture(event.pointerId);
    scrub(event);
  });
  overview.addEventListener("pointermove", scrub);

  const stopWatching = onResize(detail, draw);
  if (size) load();
  else {
    line.textContent = "The file has no bytes.";
    root.classList.add("ax-empty");
  }
  return {
    root,
    look,
    redraw: draw,
    place: () => ({ start, stop, whole: start === 0 && stop === size }),
    /**
     * Show which bytes are looked at elsewhere.
     * @param {number} offset
     * @param {number} long
     */
    select(offset, long) {
      selected = { offset, size: long };
      if (offset + long <= start || offset >= stop) look(offset - (stop - start) / 2, offset + (stop - start) / 2);
      draw();
    },
    /**
     * Show where findings are.
     * @param {(Omit<Finding, "offset"> & {offset: number | null})[]} findings
     */
    mark(findings) {
      marks = findings.flatMap(({ offset, severity }) => (offset === null ? [] : [{ offset, severity }]));
      draw();
    },
    destroy() {
      stopWatching();
    },
  };
}
