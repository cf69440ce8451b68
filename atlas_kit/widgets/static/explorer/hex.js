// The bytes of the file, a page at a time, beside the fields that they belong to: a byte shows its field, a field its
// bytes. Only the bytes in view are asked for, so that offsets of 40 GB are as near as the first.

import { copyText, count, el, fill, hex, isCopy, newest, onResize, sentence, uniqueId } from "./dom.js";

/** @typedef {import("./dom.js").Steps} Steps */

const ROW = 20; // CSS pixels
const WIDE = 16,
  NARROW = 8;

/**
 * @typedef {{name: string, type: string, size: number, offset: number, value: string, meaning: string}} Field
 * @typedef {Field & {tint: number}} TintedField
 * @typedef {{offset: number, cursor: number}} Place  the first byte in view, and the one at the cursor
 */

/**
 * @param {{request: import("./dom.js").Request, size: number, seen: import("./dom.js").ShowBytes,
 *          place?: Place | null}} options `seen` hears which bytes are chosen; `place` is where another pane stood
 */
export function hexPane({ request, size, seen, place: before = null }) {
  const digits = Math.max(8, size.toString(16).length);
  const name = uniqueId("byte");
  const goto_ = el("input", {
    class: "ax-goto",
    "aria-label": "Go to offset",
    placeholder: "0x… or a number",
    spellcheck: "false",
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      event.stopPropagation();
      if (event.key === "Enter") {
        go(goto_.value);
      }
    },
  });
  const status = el("span", { class: "ax-dim", role: "status" });
  const rows = el("div", { class: "ax-hex", role: "grid", tabindex: "0", "aria-label": "Bytes" });
  const bar = el("input", {
    type: "range",
    class: "ax-hexbar",
    min: "0",
    max: "1000",
    value: "0",
    step: "any",
    "aria-label": "Scroll through the file",
    oninput: () => scrollTo(Math.floor((Number(bar.value) / 1000) * lastTop())),
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });
  const fields = el("div", { class: "ax-fields", role: "listbox", tabindex: "0", "aria-label": "Fields in view" });
  const values = el("dl", { class: "ax-values", "aria-label": "The bytes at the cursor as numbers" });
  const note = el("p", { class: "ax-note", "aria-live": "polite" });
  const root = el(
    "div",
    { class: "ax-bytes" },
    el("div", { class: "ax-bar" }, el("label", {}, "Go to ", goto_), status, searchBar()),
    el(
      "div",
      { class: "ax-bytes-body" },
      el("div", { class: "ax-hex-frame" }, rows, bar),
      el("div", { class: "ax-side" }, note, values, fields),
    ),
  );

  let top = Math.floor((before?.offset ?? 0) / WIDE),
    cursor = Math.max(0, Math.min(before?.cursor ?? 0, size - 1)),
    across = WIDE;
  /** @type {{offset: number, data: Uint8Array, fields: Field[]}} */
  let page = { offset: 0, data: new Uint8Array(), fields: [] };
  /** @type {Field | null} */
  let chosen = null;

  const lines = () => Math.max(4, Math.floor((rows.clientHeight || 24 * ROW) / ROW));
  const lastTop = () => Math.max(0, Math.ceil(size / across) - lines());

  const load = newest(async () => {
    const offset = top * across,
      long = lines() * across;
    const { reply, buffers } = await request({ op: "hex", offset, size: long });
    if (reply.error) {
      status.textContent = reply.error;
      return;
    }
    const view = buffers[0];
    page = {
      offset: reply.offset,
      data: new Uint8Array(view.buffer, view.byteOffset, view.byteLength).slice(),
      fields: reply.fields,
    };
    if (!chosen || cursor < chosen.offset || cursor >= chosen.offset + chosen.size)
      chosen = fieldAt(cursor) ?? chosen;
    draw();
  });

  /** @param {number} offset */
  function fieldAt(offset) {
    return (
      page.fields
        .filter((f) => offset >= f.offset && offset < f.offset + f.size)
        .sort((a, b) => a.size - b.size)[0] ?? null
    );
  }
  /** @param {number} line */
  function scrollTo(line) {
    top = Math.max(0, Math.min(line, lastTop()));
    bar.value = lastTop() ? String((1000 * top) / lastTop()) : "0";
    load();
  }
  /**
   * @param {number} offset
   * @param {{field?: Field | null, quiet?: boolean}} how
   */
  function place(offset, { field = null, quiet = false } = {}) {
    cursor = Math.max(0, Math.min(offset, size - 1));
    chosen = field ?? fieldAt(cursor);
    const line = Math.floor(cursor / across);
    if (line < top || line >= top + lines()) scrollTo(Math.max(0, line - Math.floor(lines() / 4)));
    else draw();
    if (!quiet) seen(chosen ? chosen.offset : cursor, chosen ? chosen.size : 1);
  }
  /** @param {string} text */
  function go(text) {
    const offset = Number(text.trim().replaceAll(",", "").replaceAll("_", ""));
    if (!text.trim() || !Number.isInteger(offset) || offset < 0 || offset >= size) {
      status.textContent = `There is no byte ${text.slice(0, 40)} in this file.`;
      return;
    }
    place(offset);
    rows.focus();
  }

  // --- looking for a text or for bytes -------------------------------------------------------------------------

  function searchBar() {
    const word = el("input", {
      type: "search",
      class: "ax-filter",
      "aria-label": "Find in the file",
      placeholder: "Text, or bytes: 47 47 55",
      spellcheck: "false",
      onkeydown: (/** @type {KeyboardEvent} */ event) => {
        event.stopPropagation();
        if (event.key !== "Enter") return;
        event.preventDefault();
        find(event.shiftKey);
      },
    });
    const form = el("select", { "aria-label": "What to find" });
    for (const [value, text] of [["text", "text"], ["exact", "text, upper and lower case"], ["hex", "bytes in hexadecimal"]]) {
      form.append(el("option", { value, text }));
    }
    const said = el("span", { class: "ax-dim", role: "status" });
    let run = 0;
    /** @param {boolean} back */
    async function find(back) {
      const mine = ++run;
      if (!word.value) return;
      const start = found === null ? cursor : back ? found : found + 1;
      /** @type {number | null} */
      let at = start;
      let wrapped = false;
      while (mine === run) {
        const { reply } = await request({
          op: "search",
          text: word.value,
          form: form.value === "hex" ? "hex" : "text",
          any_case: form.value === "text",
          start: at,
          back,
        });
        if (mine !== run) return;
        if (reply.error) {
          said.textContent = sentence(reply.error);
          return;
        }
        if (reply.offset !== null) {
          found = reply.offset;
          said.textContent = `At byte ${count(reply.offset)}${wrapped ? ", from the other end" : ""}.`;
          place(reply.offset, {
            field: { name: "what was found", type: "bytes", size: reply.size, offset: reply.offset, value: "", meaning: "" },
          });
          return;
        }
        if (reply.next !== null) {
          at = reply.next;
          said.textContent = `Looking … ${Math.round((100 * (reply.next ?? 0)) / size)} %`;
        } else if (wrapped || start === (back ? size : 0)) {
          said.textContent = "It is nowhere in the file.";
          return;
        } else {
          wrapped = true;
          at = back ? size : 0;
        }
      }
    }
    /** @type {number | null} */
    let found = null;
    word.addEventListener("input", () => {
      run += 1;
      found = null;
      said.textContent = "";
    });
    const step = (/** @type {string} */ label, /** @type {string} */ text, /** @type {boolean} */ back) =>
      el("button", { type: "button", class: "ax-small", "aria-label": label, title: label, text, onclick: () => find(back) });
    return el("span", { class: "ax-find", role: "search" }, word, form, step("Find the next", "▼", false), step("Find the one before", "▲", true), said);
  }

  // --- drawing -------------------------------------------------------------------------------------------------

  function draw() {
    const ranges = page.fields.map((f, i) => ({ ...f, tint: i % 4 }));
    const found = (/** @type {number} */ offset) => {
      /** @type {TintedField | null} */
      let best = null;
      for (const f of ranges)
        if (offset >= f.offset && offset < f.offset + f.size && (!best || f.size <= best.size)) best = f;
      return best;
    };
    rows.setAttribute("aria-rowcount", String(Math.ceil(size / across)));
    rows.setAttribute("aria-colcount", String(across));
    /** @type {HTMLElement[]} */
    const list = [];
    for (let at = 0; at < page.data.length; at += across)
      list.push(row(page.offset + at, page.data.subarray(at, at + across), found));
    fill(rows, ...list);
    const active = rows.querySelector(".ax-byte.ax-at");
    if (active) rows.setAttribute("aria-activedescendant", active.id);
    else rows.removeAttribute("aria-activedescendant");
    status.textContent = page.data.length
      ? `${hex(page.offset)} to ${hex(page.offset + page.data.length - 1)} of ${count(size)} bytes`
      : "The file has no bytes.";
    drawFields();
    drawValues();
  }
  /**
   * @param {number} start
   * @param {Uint8Array} data
   * @param {(offset: number) => TintedField | null} found
   */
  function row(start, data, found) {
    /** @type {HTMLElement[]} */
    const cells = [];
    /** @type {HTMLElement[]} */
    const text = [];
    for (let i = 0; i < data.length; i += 1) {
      const offset = start + i,
        field = found(offset),
        byte = data[i];
      const inside = chosen && offset >= chosen.offset && offset < chosen.offset + chosen.size;
      const tint = field && `ax-t${field.tint}`;
      const marks = [tint, inside && "ax-in", offset === cursor && "ax-at", byte === 0 && "ax-zero"];
      const shown = byte.toString(16).padStart(2, "0");
      cells.push(
        el("span", {
          role: "gridcell",
          class: ["ax-byte", ...marks],
          id: `${name}-${offset}`,
          "aria-colindex": String(i + 1),
          "data-o": String(offset),
          text: shown,
          "aria-label": offset === cursor && field ? `${shown} at ${offset}, ${field.name}` : null,
        }),
      );
      text.push(
        el("span", {
          class: ["ax-char", ...marks],
          "data-o": String(offset),
          text: byte >= 32 && byte < 127 ? String.fromCharCode(byte) : "·",
        }),
      );
    }
    return el(
      "div",
      { role: "row", class: "ax-hexrow", "aria-rowindex": String(Math.floor(start / across) + 1) },
      el("span", { role: "rowheader", class: "ax-offset", text: start.toString(16).padStart(digits, "0") }),
      el("span", { class: "ax-cells", role: "presentation" }, ...cells),
      el("span", { class: "ax-text", "aria-hidden": "true" }, ...text),
    );
  }
  function drawFields() {
    const list = page.fields.map((field, i) => {
      const here =
        chosen && field.offset === chosen.offset && field.size === chosen.size && field.name === chosen.name;
      const parts = [
        el("code", { class: "ax-dim", text: hex(field.offset, digits) }),
        el("bdi", { class: "ax-fname", text: field.name }),
        el("span", { class: "ax-dim", text: field.type }),
        el("bdi", { class: "ax-fvalue", text: field.value }),
      ];
      return el(
        "div",
        {
          role: "option",
          id: `${name}-f${i}`,
          "aria-selected": String(Boolean(here)),
          class: `ax-field ax-t${i % 4}${here ? " ax-chosen" : ""}`,
          title: field.meaning,
          onclick: () => {
            place(Math.max(field.offset, page.offset), { field });
          },
        },
        ...parts,
      );
    });
    fill(fields, ...list);
    const here = /** @type {HTMLElement | null} */ (fields.querySelector(".ax-chosen"));
    if (here) {
      fields.setAttribute("aria-activedescendant", here.id);
      keepInView(fields, here);
    } else fields.removeAttribute("aria-activedescendant");
    note.textContent = chosen ? describe(chosen) : "No field is known here.";
  }
  /** @param {Field} field */
  function describe({ name: field, type, size: long, offset, value, meaning }) {
    const kind = /bytes?$/.test(type) ? "" : `${type}, `;
    const place = `${field}: ${kind}${count(long)} ${long === 1 ? "byte" : "bytes"} from ${count(offset)}.`;
    return [place, value && `${value}.`, meaning && sentence(meaning)].filter(Boolean).join(" ");
  }
  /**
   * @param {HTMLElement} box
   * @param {HTMLElement} node
   */
  function keepInView(box, node) {
    if (node.offsetTop < box.scrollTop) box.scrollTop = node.offsetTop;
    else if (node.offsetTop + node.offsetHeight > box.scrollTop + box.clientHeight)
      box.scrollTop = node.offsetTop + node.offsetHeight - box.clientHeight;
  }
  function drawValues() {
    const at = cursor - page.offset;
    const raw = at >= 0 ? page.data.slice(at, at + 8) : new Uint8Array();
    const view = new DataView(raw.buffer);
    /** @type {[string, number, (view: DataView) => number | bigint][]} */
    const rows = [
      ["u8", 1, (v) => v.getUint8(0)],
      ["i8", 1, (v) => v.getInt8(0)],
      ["u16", 2, (v) => v.getUint16(0, true)],
      ["i16", 2, (v) => v.getInt16(0, true)],
      ["u32", 4, (v) => v.getUint32(0, true)],
      ["i32", 4, (v) => v.getInt32(0, true)],
      ["u64", 8, (v) => v.getBigUint64(0, true)],
      ["f16", 2, (v) => half(v.getUint16(0, true))],
      ["f32", 4, (v) => v.getFloat32(0, true)],
      ["f64", 8, (v) => v.getFloat64(0, true)],
    ];
    fill(
      values,
      ...rows.flatMap(([label, need, read]) => {
        const value = raw.length >= need ? read(view) : null;
        const text =
          value === null
            ? "–"
            : typeof value === "number" && !Number.isInteger(value)
              ? value.toPrecision(6)
              : String(value);
        return [el("div", {}, el("dt", { text: label }), el("dd", { text }))];
      }),
    );
  }

  // --- keys and mouse ------------------------------------------------------------------------------------------

  /** Copy the bytes that are chosen, as far as they are in view, in hexadecimal digits. */
  async function copyBytes() {
    const from = Math.max(0, (chosen ? chosen.offset : cursor) - page.offset),
      to = Math.min(page.data.length, (chosen ? chosen.offset + chosen.size : cursor + 1) - page.offset);
    const bytes = [...page.data.subarray(from, to)];
    await copyText(bytes.map((byte) => byte.toString(16).padStart(2, "0")).join(" "));
    status.textContent = `${count(bytes.length)} ${bytes.length === 1 ? "byte is" : "bytes are"} copied.`;
  }
  rows.addEventListener("keydown", (event) => {
    if (isCopy(event)) {
      event.preventDefault();
      event.stopPropagation();
      copyBytes();
      return;
    }
    const whole = event.ctrlKey || event.metaKey;
    const to = /** @type {Steps} */ ({
      ArrowRight: cursor + 1,
      ArrowLeft: cursor - 1,
      ArrowDown: cursor + across,
      ArrowUp: cursor - across,
      PageDown: cursor + across * lines(),
      PageUp: cursor - across * lines(),
      Home: whole ? 0 : cursor - (cursor % across),
      End: whole ? size - 1 : cursor - (cursor % across) + across - 1,
    })[event.key];
    if (to === undefined || event.altKey || (to < 0 && cursor < across && event.key !== "PageUp")) return;
    event.preventDefault();
    event.stopPropagation();
    if (event.key.startsWith("Arrow") && to >= size) return;
    place(to);
  });
  rows.addEventListener("click", (event) => {
    const hit = /** @type {HTMLElement | null} */ (/** @type {Element} */ (event.target).closest("[data-o]"));
    if (hit) {
      place(Number(hit.dataset.o));
      rows.focus({ preventScroll: true });
    }
  });
  rows.addEventListener(
    "wheel",
    (event) => {
      if (event.ctrlKey) return;
      const by = Math.sign(event.deltaY) * Math.max(1, Math.round(Math.abs(event.deltaY) / ROW));
      if ((by < 0 && top === 0) || (by > 0 && top >= lastTop())) return; // the page scrolls on
      event.preventDefault();
      scrollTo(top + by);
    },
    { passive: false },
  );
  fields.addEventListener("keydown", (event) => {
    const at = page.fields.findIndex(
      (f) => chosen && f.offset === chosen.offset && f.size === chosen.size && f.name === chosen.name,
    );
    const to = /** @type {Steps} */ ({ ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: page.fields.length - 1 })[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    if (to >= 0 && to < page.fields.length) {
      const field = page.fields[to];
      place(Math.max(field.offset, page.offset), { field });
    } else if (to >= page.fields.length && chosen) place(chosen.offset + chosen.size);
  });

  const stopWatching = onResize(root, () => {
    const now = root.clientWidth < 560 ? NARROW : WIDE;
    if (now !== across) {
      top = Math.floor((before ? top * across : cursor) / now);
      across = now;
    }
    before = null;
    if (size) scrollTo(Math.min(top, lastTop()));
  });
  return {
    root,
    /** @returns {Place} */
    place: () => ({ offset: top * across, cursor }),
    /**
     * Show and choose the bytes of a range.
     * @param {number} offset
     * @param {number} long
     */
    show(offset, long = 1) {
      chosen = null;
      cursor = Math.max(0, Math.min(offset, size - 1));
      scrollTo(Math.max(0, Math.floor(cursor / across) - 1));
      seen(cursor, long);
    },
    destroy() {
      stopWatching();
    },
  };
}

/**
 * Return the number that 16 bits of a float16 mean.
 * @param {number} bits
 */
function half(bits) {
  const sign = bits & 0x8000 ? -1 : 1,
    exponent = (bits >> 10) & 31,
    fraction = bits & 1023;
  if (exponent === 31) return fraction ? NaN : sign * Infinity;
  return sign * (exponent ? 2 ** (exponent - 15) * (1 + fraction / 1024) : 2 ** -14 * (fraction / 1024));
}
