// A sortable table: columns and rows come as data, a row can be chosen. Knows nothing of memories.

import { tellWhenGone } from "../before.js";

/** @typedef {{key: string, label: string, kind: "text"|"number"|"count"|"mark", note?: string}} Column */
/** @typedef {Record<string, any>} Row  a cell for each column's key, `id`, and `what` for the style */
/** @typedef {import("../matrix/matrix.js").Model} Model */

const DIGITS = 4;

/**
 * Numbers arrive as numbers, or as "NaN", "Infinity", "-Infinity".
 * @param {unknown} value
 */
export function number(value) {
  return value === null || value === undefined || value === "" ? null : Number(value);
}

/**
 * @param {Column} column
 * @param {unknown} value
 */
export function shown(value, column) {
  if (value === null || value === undefined) return "";
  if (column.kind === "count") return Number(value).toLocaleString("en");
  if (column.kind !== "number") return String(value);
  const n = number(value);
  if (n === null) return "";
  if (Number.isNaN(n)) return "NaN";
  if (!Number.isFinite(n)) return n > 0 ? "∞" : "-∞";
  const size = Math.abs(n);
  return size !== 0 && (size < 1e-3 || size >= 1e6) ? n.toExponential(DIGITS - 1) : String(Number(n.toPrecision(DIGITS)));
}

/**
 * Order two cells: numbers by size, the rest by text; what is missing comes last either way.
 * @param {unknown} a
 * @param {unknown} b
 * @param {Column} column
 * @param {boolean} down
 */
export function order(a, b, column, down) {
  const numeric = column.kind === "number" || column.kind === "count";
  const [x, y] = numeric ? [number(a), number(b)] : [a ?? null, b ?? null];
  if (x === null || y === null) return Number(x === null) - Number(y === null);
  const found = numeric ? Number(x) - Number(y) : String(x).localeCompare(String(y), "en", { numeric: true });
  return down ? -found : found;
}

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} text
 * @param {string} [className]
 * @returns {HTMLElementTagNameMap[K]}
 */
function cell(tag, text, className) {
  const node = document.createElement(tag);
  node.textContent = text;
  if (className) node.className = className;
  return node;
}

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const root = document.createElement("div");
  root.className = "atlas-compare atlas-table";
  el.append(root);
  /** @type {{key: string, down: boolean} | null} */
  let sorted = null;
  /** @param {string} selector */
  const focus = (selector) => /** @type {HTMLElement | null} */ (root.querySelector(selector))?.focus();

  /** @param {Column} column */
  function sortBy(column) {
    const numeric = column.kind !== "text" && column.kind !== "mark";
    sorted = sorted?.key === column.key ? { key: column.key, down: !sorted.down } : { key: column.key, down: numeric };
    draw();
    focus(`button[data-key="${CSS.escape(column.key)}"]`);
  }

  /** @param {Column[]} columns */
  function head(columns) {
    const row = document.createElement("tr");
    for (const column of columns) {
      const th = cell("th", "", column.kind);
      th.scope = "col";
      const here = sorted?.key === column.key ? sorted : null;
      th.setAttribute("aria-sort", here ? (here.down ? "descending" : "ascending") : "none");
      const button = cell("button", column.label);
      button.type = "button";
      button.dataset.key = column.key;
      if (column.note) button.title = column.note;
      const arrow = cell("span", here ? (here.down ? " ▼" : " ▲") : "");
      arrow.setAttribute("aria-hidden", "true");
      button.append(arrow);
      button.addEventListener("click", () => sortBy(column));
      th.append(button);
      row.append(th);
    }
    const thead = document.createElement("thead");
    thead.append(row);
    return thead;
  }

  /** @param {Row} row */
  function choose(row) {
    model.set("selected", row.id);
    model.save_changes();
    draw();
    focus('tr[aria-current="true"] button');
  }

  /**
   * @param {Row} row
   * @param {Column[]} columns
   * @param {boolean} chooses
   */
  function line(row, columns, chooses) {
    const tr = document.createElement("tr");
    tr.dataset.what = row.what ?? "";
    columns.forEach((column, place) => {
      const value = row[column.key];
      const td = cell("td", chooses && place === 0 ? "" : shown(value, column), column.kind);
      if (chooses && place === 0) {
        const button = cell("button", shown(value, column));
        button.type = "button";
        button.addEventListener("click", () => choose(row));
        td.append(button);
      }
      tr.append(td);
    });
    if (chooses && row.id === model.get("selected")) tr.setAttribute("aria-current", "true");
    return tr;
  }

  function draw() {
    const columns = /** @type {Column[]} */ (model.get("columns"));
    const rows = /** @type {Row[]} */ ([...model.get("rows")]);
    const column = columns.find((one) => one.key === sorted?.key);
    const down = sorted?.down ?? false;
    if (column) rows.sort((a, b) => order(a[column.key], b[column.key], column, down));
    const table = document.createElement("table");
    const caption = cell("caption", model.get("caption"));
    const tbody = document.createElement("tbody");
    tbody.append(...rows.map((row) => line(row, columns, model.get("chooses"))));
    table.append(caption, ...(rows.length || !caption.textContent ? [head(columns), tbody] : [])); // it says why
    const frame = document.createElement("div");
    frame.className = "frame";
    frame.tabIndex = 0; // a keyboard scrolls it
    frame.setAttribute("role", "region");
    frame.setAttribute("aria-label", model.get("caption"));
    frame.append(table);
    const scrolled = root.firstElementChild?.scrollTop ?? 0;
    root.replaceChildren(frame);
    frame.scrollTop = scrolled;
  }

  const watched = ["change:rows", "change:columns", "change:selected", "change:caption"];
  watched.forEach((name) => model.on(name, draw));
  draw();
  const untold = tellWhenGone(model, el);
  return () => {
    untold();
    watched.forEach((name) => model.off(name, draw));
  };
}

export default { render };
