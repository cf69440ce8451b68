// A table of any length of which only the rows in view exist: the other side sorts and filters, and sends these.
//
// One tab stop: arrow keys, Page and Home/End move the row that is active (aria-activedescendant), Enter opens it.

import { cell, copyText, count, el, fill, isCopy, onResize, settled, uniqueId } from "./dom.js";

/** @typedef {import("./dom.js").Steps} Steps */

const ROW = 26; // CSS pixels
const CHUNK = 120; // rows that one request brings
const NARROWEST = 40, WIDEST = 2400, STEP = 24; // CSS pixels of a column, and of a key
const TAIL = 16; // characters at the end of a name that are never cut: they tell names apart
const TALLEST = 6e6; // CSS pixels: browsers draw no taller elements; longer tables are scrolled proportionally
/** @type {Record<string, string>} */
const WIDTHS = {
  number: "minmax(5.5em, 0.6fr)",
  bytes: "minmax(5.5em, 0.5fr)",
  hex: "minmax(6em, 0.5fr)",
  time: "minmax(11em, 0.8fr)",
  text: "minmax(6em, 0.9fr)",
};

/**
 * @typedef {{name: string, label: string, kind: string}} Column
 * @typedef {any[]} Row  its number, then its cells
 * @typedef {{sort: string, descending: boolean, filter: string, scroll: number, active: number,
 *            widths: (number | null)[]}} Place
 */

/**
 * A long text in two: the beginning, which is cut where there is no room, and the end, which never is.
 * @param {string} text
 * @returns {[string, string] | null}
 */
function halves(text) {
  if (text.length <= TAIL + 4) return null;
  const letters = [...text.slice(0, 4000)];
  return letters.length > TAIL + 4 && text.length <= 4000 ? [letters.slice(0, -TAIL).join(""), letters.slice(-TAIL).join("")] : null;
}

/**
 * @param {{ask: import("./dom.js").Ask, table: string,
 *          info: {title: string, count: number, columns: Column[], numbered?: boolean},
 *          open: (row: number, cells: any[]) => void, place?: Place | null}} options `place` is where another table of
 *        the same kind stood
 */
export function grid({ ask, table, info, open, place = null }) {
  const columns = info.numbered ? [{ name: "", label: "#", kind: "number" }, ...info.columns] : info.columns;
  const skip = info.numbered ? 0 : 1; // a row comes with its number first
  const order = { sort: place?.sort ?? "", descending: place?.descending ?? false, filter: place?.filter ?? "" };
  const name = uniqueId("grid");
  let matched = info.count,
    active = place?.active ?? 0,
    version = 0,
    scrolled = place?.scroll ?? 0; // an element that is not in the page forgets it
  /** Whether the table has still to be scrolled to where it stood. */
  let behind = scrolled > 0;
  /** @type {Map<number, Row[]>} */
  let chunks = new Map();
  /** @type {Set<number>} */
  let pending = new Set();
  /** @type {number | null} */
  let chosen = null;

  const widths = columns.map((c, i) =>
    c.name === ""
      ? "5.5em"
      : i === 1 - skip
        ? "minmax(11em, 2.4fr)"
        : c.name === "value"
          ? "minmax(9em, 2fr)"
          : WIDTHS[c.kind],
  );
  const least = widths.reduce((sum, width) => sum + Number.parseFloat(width.replace("minmax(", "")) + 0.8, 1);
  /** @type {(number | null)[]} what somebody has made of the widths, in CSS pixels */
  const given = place?.widths?.length === columns.length ? [...place.widths] : columns.map(() => null);
  const status = el("span", { class: "ax-dim", role: "status" });
  const filter = el("input", {
    type: "search",
    class: "ax-filter",
    placeholder: `Filter ${info.title.toLowerCase()}`,
    "aria-label": `Filter ${info.title}`,
    spellcheck: "false",
    oninput: settled(() => {
      order.filter = filter.value;
      refresh();
    }, 120),
    onkeydown: (/** @type {KeyboardEvent} */ event) => {
      event.stopPropagation();
      if (event.key === "ArrowDown" || event.key === "Enter") {
        event.preventDefault();
        body.focus();
      }
    },
  });
  const heads = columns.map((column, i) =>
    el(
      "div",
      {
        role: "columnheader",
        "aria-sort": "none",
        class: `ax-c-${column.kind}`,
        onclick: () => sortBy(column.name), // the whole cell, not its word alone: a click on the button comes here, too
      },
      el(
        "button",
        {
          type: "button",
          class: "ax-sort",
          "aria-description": "Shift and the arrow keys change the width",
          onkeydown: (/** @type {KeyboardEvent} */ event) => widenByKey(event, i),
        },
        column.label,
        el("span", { class: "ax-arrow", "aria-hidden": "true" }),
      ),
      el("span", {
        class: "ax-edge",
        title: "Drag to change the width; twice clicked, it fits",
        onclick: (/** @type {MouseEvent} */ event) => event.stopPropagation(),
        ondblclick: () => widen(i, fitting(i)),
        onpointerdown: (/** @type {PointerEvent} */ event) => drag(event, i),
      }),
    ),
  );
  const head = el(
    "div",
    { role: "row", class: "ax-row ax-head-row", "aria-rowindex": "1" },
    ...heads,
  );
  const rows = el("div", { class: "ax-rows", role: "presentation" });
  const spacer = el("div", { class: "ax-spacer", role: "rowgroup" }, rows);
  const body = el(
    "div",
    {
      class: "ax-grid",
      role: "grid",
      tabindex: "0",
      "aria-label": info.title,
      "aria-rowcount": String(info.count + 1),
      "aria-colcount": String(columns.length),
    },
    el("div", { role: "rowgroup", class: "ax-head-group" }, head),
    spacer,
  );
  const root = el(
    "div",
    { class: "ax-table" },
    el("div", { class: "ax-bar" }, filter, info.numbered ? goTo() : null, status),
    body,
  );

  /** A box that leads to a row by its number, or to the first that is, begins with or holds a text. */
  function goTo() {
    const box = el("input", {
      class: "ax-goto",
      "aria-label": "Go to number or text",
      placeholder: "Go to number or text",
      spellcheck: "false",
      onkeydown: async (/** @type {KeyboardEvent} */ event) => {
        event.stopPropagation();
        if (event.key !== "Enter" || !box.value) return;
        event.preventDefault();
        const number = Number(box.value.trim().replaceAll(",", ""));
        let row = Number.isInteger(number) && number >= 0 && number < info.count && box.value.trim() ? number : null;
        if (row === null) row = (await ask({ op: "locate", table, text: box.value })).row ?? null;
        if (row === null) {
          status.textContent = `There is no “${box.value.slice(0, 40)}”.`;
          return;
        }
        if (order.filter) {
          filter.value = order.filter = "";
          refresh();
        }
        await api.show(row);
        say();
        const data = rowAt(active);
        if (data) open(data[0], data.slice(1));
      },
    });
    return box;
  }

  const high = () => Math.max(ROW, body.clientHeight - head.offsetHeight); // what is left for rows
  const view = () => Math.max(1, Math.floor(high() / ROW));
  const tall = () => Math.min(matched * ROW, TALLEST);
  /** The number of the first row in view, which may be a fraction. */
  function first() {
    const room = tall() - high();
    return room <= 0 ? 0 : (body.scrollTop / room) * Math.max(0, matched - high() / ROW);
  }
  function layOut() {
    const template = widths.map((width, i) => (given[i] === null ? width : `${given[i]}px`)).join(" ");
    const extra = given.reduce((/** @type {number} */ sum, width) => sum + (width ?? 0), 0);
    root.style.setProperty("--ax-columns", template);
    root.style.setProperty("--ax-least", extra ? `max(${least}em, ${extra + 120}px)` : `${least}em`);
  }
  /**
   * @param {number} i
   * @param {number} width  in CSS pixels
   */
  function widen(i, width) {
    given[i] = Math.round(Math.max(NARROWEST, Math.min(width, WIDEST)));
    layOut();
  }
  /**
   * @param {KeyboardEvent} event
   * @param {number} i
   */
  function widenByKey(event, i) {
    const by = /** @type {Steps} */ ({ ArrowRight: STEP, ArrowLeft: -STEP })[event.key];
    if (!event.shiftKey || by === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    widen(i, heads[i].offsetWidth + by);
  }
  /**
   * @param {PointerEvent} event
   * @param {number} i
   */
  function drag(event, i) {
    event.preventDefault();
    event.stopPropagation();
    const edge = /** @type {HTMLElement} */ (event.currentTarget);
    const from = event.clientX,
      width = heads[i].offsetWidth;
    edge.setPointerCapture(event.pointerId);
    edge.onpointermove = (moved) => widen(i, width + moved.clientX - from);
    edge.onpointerup = edge.onpointercancel = () => {
      edge.onpointermove = edge.onpointerup = edge.onpointercancel = null;
    };
  }
  /**
   * The width at which no cell in view is cut.
   * @param {number} i
   */
  function fitting(i) {
    const cells = [...rows.children].flatMap((row) => [...(row.children[i]?.children ?? [])]);
    const wide = cells.map((one) => [...one.children].reduce((sum, part) => sum + part.scrollWidth, 0) || one.scrollWidth);
    return Math.max(heads[i].children[0].scrollWidth + 24, ...wide) + 6;
  }
  /** @param {number} row */
  function scrollTo(row) {
    const room = tall() - high(),
      rest = Math.max(1e-9, matched - high() / ROW);
    const at = first(),
      fit = high() / ROW;
    const to = row < at ? row : row + 1 > at + fit ? row + 1 - fit : at;
    if (to !== at) body.scrollTop = (to / rest) * room;
  }

  /** @param {number} number */
  async function fetchChunk(number) {
    if (chunks.has(number) || pending.has(number)) return;
    pending.add(number);
    const now = version;
    const slow = setTimeout(() => {
      if (now === version) status.textContent = "Reading …";
    }, 250);
    const reply = await ask({ op: "rows", table, start: number * CHUNK, count: CHUNK, ...order });
    clearTimeout(slow);
    if (now !== version) return;
    pending.delete(number);
    if (reply.error) {
      status.textContent = reply.error;
      return;
    }
    chunks.set(number, reply.rows);
    const oldest = chunks.keys().next();
    if (chunks.size > 40 && !oldest.done) chunks.delete(oldest.value);
    if (matched !== reply.matched) resize(reply.matched);
    if (behind && body.isConnected) catchUp();
    say();
    draw();
  }
  function say() {
    const all = order.filter ? `${count(matched)} of ${count(info.count)}` : `${count(info.count)}`;
    status.textContent = chosen === null && info.count && !info.numbered ? `${all}. Choose a row to look at it.` : all;
  }
  /** @param {number} total */
  function resize(total) {
    matched = total;
    spacer.style.height = `${tall()}px`;
    body.setAttribute("aria-rowcount", String(total + 1));
    active = Math.max(0, Math.min(active, total - 1));
  }
  /** Scroll to where the table stood. */
  function catchUp() {
    body.scrollTop = scrolled;
    behind = false;
  }
  function refresh() {
    scrolled = 0;
    behind = false;
    version += 1;
    chunks = new Map();
    pending = new Set();
    body.scrollTop = 0;
    active = 0;
    fetchChunk(0);
  }
  /** @param {string} column */
  function sortBy(column) {
    if (order.sort !== column) Object.assign(order, { sort: column, descending: false });
    else if (!order.descending) order.descending = true;
    else Object.assign(order, { sort: "", descending: false });
    showOrder();
    refresh();
  }
  function showOrder() {
    columns.forEach((c, i) =>
      heads[i].setAttribute(
        "aria-sort",
        !order.sort || c.name !== order.sort ? "none" : order.descending ? "descending" : "ascending",
      ),
    );
  }
  /**
   * @param {number} number
   * @returns {Row | undefined}
   */
  function rowAt(number) {
    const chunk = chunks.get(Math.floor(number / CHUNK));
    return chunk ? chunk[number % CHUNK] : undefined;
  }
  function draw() {
    const from = Math.max(0, Math.floor(first())),
      to = Math.min(matched, from + view() + 2);
    for (let chunk = Math.floor(from / CHUNK); chunk * CHUNK < to; chunk += 1) fetchChunk(chunk);
    rows.style.transform = `translateY(${body.scrollTop - (first() - from) * ROW}px)`;
    fill(rows, ...Array.from({ length: Math.max(0, to - from) }, (_, i) => line(from + i)));
    if (matched === 0)
      fill(
        rows,
        el("div", {
          class: "ax-none",
          text: info.count ? "Nothing matches the filter." : "There is nothing in this table.",
        }),
      );
    const shown = rows.querySelector(".ax-active");
    if (shown) body.setAttribute("aria-activedescendant", shown.id);
    else body.removeAttribute("aria-activedescendant");
  }
  /** @param {number} number */
  function line(number) {
    const data = rowAt(number);
    const cells = columns.map((column, i) => {
      const text = data ? cell(data[i + skip], column.kind) : "…";
      const parts = column.kind === "text" ? halves(text) : null;
      return el(
        "div",
        { role: "gridcell", class: `ax-c-${column.kind}`, "aria-colindex": String(i + 1), "aria-label": parts && text },
        parts
          ? el(
              "bdi",
              { class: "ax-middle", title: text },
              el("span", { class: "ax-start", text: parts[0] }),
              el("span", { class: "ax-tail", text: parts[1] }),
            )
          : el("bdi", { text }),
      );
    });
    const isChosen = data !== undefined && data[0] === chosen;
    const marks = [number === active && "ax-active", isChosen && "ax-chosen", number % 2 && "ax-odd"];
    return el(
      "div",
      {
        role: "row",
        id: `${name}-${number}`,
        class: ["ax-row", ...marks],
        "aria-rowindex": String(number + 2),
        "aria-selected": String(isChosen),
        onclick: () => {
          active = number;
          choose();
          body.focus({ preventScroll: true });
        },
      },
      ...cells,
    );
  }
  function choose() {
    const data = rowAt(active);
    if (!data) return;
    chosen = data[0];
    say();
    draw();
    open(data[0], data.slice(1));
  }
  /** @param {number} to */
  function move(to) {
    active = Math.max(0, Math.min(to, matched - 1));
    scrollTo(active);
    draw();
  }
  /** Copy the active row, its cells apart by tabs. */
  async function copyRow() {
    const data = rowAt(active);
    if (!data) return;
    await copyText(data.slice(skip).map((value) => String(value ?? "")).join("\t"));
    status.textContent = "The row is copied.";
  }
  body.addEventListener("keydown", (event) => {
    if (isCopy(event)) {
      event.preventDefault();
      event.stopPropagation();
      copyRow();
      return;
    }
    if (/** @type {Element} */ (event.target).closest(".ax-sort") || event.ctrlKey || event.metaKey || event.altKey) return;
    const to = /** @type {Steps} */ ({
      ArrowDown: active + 1,
      ArrowUp: active - 1,
      PageDown: active + view(),
      PageUp: active - view(),
      Home: 0,
      End: matched - 1,
    })[event.key];
    if (to !== undefined) move(to);
    else if (event.key === "Enter" || event.key === " ") choose();
    else return;
    event.preventDefault();
    event.stopPropagation();
  });
  body.addEventListener("scroll", () => {
    if (body.isConnected && !behind) scrolled = body.scrollTop;
    requestAnimationFrame(draw);
  });
  const stopWatching = onResize(body, draw);
  filter.value = order.filter;
  layOut();
  showOrder();
  resize(info.count);
  fetchChunk(0);
  const api = {
    root,
    refresh,
    focus: () => body.focus({ preventScroll: true }),
    /** See that the active row is in view, after the table has become lower. */
    keepActive() {
      scrollTo(active);
      draw();
    },
    /** Stand where the table stood before it left the page. */
    revive() {
      requestAnimationFrame(() => {
        if (!body.isConnected) return;
        behind = scrolled > 0 && !chunks.size;
        if (chunks.size) catchUp();
        draw();
      });
    },
    /** @returns {Place} */
    place: () => ({ ...order, scroll: scrolled, active, widths: given }),
    /**
     * Make a row the chosen one without going there.
     * @param {number} row
     */
    mark(row) {
      chosen = row;
      say();
      draw();
    },
    /**
     * Make a row the active and chosen one, wherever it stands now.
     * @param {number} row
     */
    async show(row) {
      const reply = await ask({ op: "rows", table, start: 0, count: 0, locate: row, ...order });
      if (reply.position === null || reply.position === undefined) return;
      chosen = row;
      say();
      move(reply.position);
    },
    destroy() {
      stopWatching();
    },
  };
  return api;
}
