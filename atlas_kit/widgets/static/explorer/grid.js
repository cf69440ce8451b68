// A table of any length of which only the rows in view exist: the other side sorts and filters, and sends these.
//
// One tab stop: arrow keys, Page and Home/End move the row that is active (aria-activedescendant), Enter opens it.

import { cell, count, el, fill, onResize, settled, uniqueId } from "./dom.js";

/** @typedef {import("./dom.js").Steps} Steps */

const ROW = 26; // CSS pixels
const CHUNK = 120; // rows that one request brings
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
 * @typedef {{sort: string, descending: boolean, filter: string, scroll: number, active: number}} Place
 */

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
  const template = widths.join(" ");
  const least = widths.reduce((sum, width) => sum + Number.parseFloat(width.replace("minmax(", "")) + 0.8, 1);
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
  const heads = columns.map((column) =>
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
        { type: "button", class: "ax-sort" },
        column.label,
        el("span", { class: "ax-arrow", "aria-hidden": "true" }),
      ),
    ),
  );
  const head = el(
    "div",
    { role: "row", class: "ax-row ax-head-row", style: `grid-template-columns:${template}`, "aria-rowindex": "1" },
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
    { class: "ax-table", style: `--ax-least: ${least}em` },
    el("div", { class: "ax-bar" }, filter, status),
    body,
  );

  const high = () => Math.max(ROW, body.clientHeight - head.offsetHeight); // what is left for rows
  const view = () => Math.max(1, Math.floor(high() / ROW));
  const tall = () => Math.min(matched * ROW, TALLEST);
  /** The number of the first row in view, which may be a fraction. */
  function first() {
    const room = tall() - high();
    return room <= 0 ? 0 : (body.scrollTop / room) * Math.max(0, matched - high() / ROW);
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
    status.textContent = order.filter ? `${count(matched)} of ${count(info.count)}` : `${count(info.count)}`;
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
    const cells = columns.map((column, i) =>
      el(
        "div",
        { role: "gridcell", class: `ax-c-${column.kind}`, "aria-colindex": String(i + 1) },
        el("bdi", { text: data ? cell(data[i + skip], column.kind) : "…" }),
      ),
    );
    const isChosen = data !== undefined && data[0] === chosen;
    const marks = [number === active && "ax-active", isChosen && "ax-chosen", number % 2 && "ax-odd"];
    return el(
      "div",
      {
        role: "row",
        id: `${name}-${number}`,
        class: ["ax-row", ...marks],
        style: `grid-template-columns:${template}`,
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
    draw();
    open(data[0], data.slice(1));
  }
  /** @param {number} to */
  function move(to) {
    active = Math.max(0, Math.min(to, matched - 1));
    scrollTo(active);
    draw();
  }
  body.addEventListener("keydown", (event) => {
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
  showOrder();
  resize(info.count);
  fetchChunk(0);
  return {
    root,
    refresh,
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
    place: () => ({ ...order, scroll: scrolled, active }),
    /**
     * Make a row the chosen one without going there.
     * @param {number} row
     */
    mark(row) {
      chosen = row;
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
      move(reply.position);
    },
    destroy() {
      stopWatching();
    },
  };
}
