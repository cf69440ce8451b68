// One entry, metadata value or tensor: facts, a view per kind (text, chat, JSON, values, matrix, histogram), saving.

import { count, el, fill, saveFile, tabs } from "./dom.js";
import { grid } from "./grid.js";
import { templatePane, tokenizerPane } from "./language.js";
import { storedMatrix } from "./matrix.js";

/** @typedef {import("./dom.js").Reply} Reply */
/** @typedef {HTMLLIElement & {toggle: (open: boolean) => Promise<void>}} TreeItem */
/** @typedef {{view: string | null, scroll: number, grid: import("./grid.js").Place | null}} Place */

/** @type {Record<string, string>} */
const LABELS = {
  text: "Text",
  chat: "Chat",
  json: "JSON",
  values: "Values",
  matrix: "Matrix",
  histogram: "Histogram",
  tokenizer: "Tokenizer",
  template: "Conversation",
};
const ROLES = new Set(["user", "human", "assistant", "bot", "ai", "system", "tool"]);

/**
 * @param {{ask: import("./dom.js").Ask, request: import("./dom.js").Request, table: string, row: number, item: Reply,
 *          bytes: import("./dom.js").ShowBytes, place?: Place | null}} options `bytes` shows the item's bytes; `place` is
 *        how another one was looked at
 */
export function itemPane({ ask, request, table, row, item, bytes, place = null }) {
  const where = { table, row };
  /** @type {(() => void)[]} */
  let ends = [];
  const status = el("span", { class: "ax-dim", role: "status" });
  const facts = el(
    "dl",
    { class: "ax-facts" },
    ...item.facts.map((/** @type {[string, string]} */ [label, value]) =>
      // a long value has a line of its own
      el("div", { class: value.length > 40 ? "ax-long" : "" }, el("dt", { text: label }), el("dd", {}, el("bdi", { text: value }))),
    ),
  );
  const actions = el(
    "div",
    { class: "ax-actions" },
    el("button", {
      type: "button",
      class: "ax-small",
      text: "Show bytes",
      onclick: () => bytes(item.start, item.size),
    }),
    ...item.exports.map((/** @type {string} */ form) =>
      el("button", { type: "button", class: "ax-small", text: `Save .${form}`, onclick: () => save(form) }),
    ),
    status,
  );
  const problem = el("p", { class: "ax-alert", role: "alert", text: item.problem, hidden: !item.problem });
  const root = el(
    "article",
    { class: "ax-item", "aria-label": item.name },
    el("h3", {}, el("bdi", { text: item.name })),
    problem,
    actions,
    facts,
  );

  /** @type {ReturnType<typeof tabs> | null} */
  let views = null;
  /** @type {ReturnType<typeof grid> | null} */
  let inner = null;
  if (item.views.length) {
    views = tabs(
      "Views",
      item.views.map((/** @type {string} */ id) => ({ id, label: LABELS[id] })),
      (id, panel) => {
        end();
        fill(panel);
        SHOW[id](panel);
      },
    );
    root.append(views.list, views.panel);
    const first = item.views.includes(place?.view) ? place?.view : item.views[0];
    queueMicrotask(() => views?.choose(first));
  }
  function end() {
    inner = null;
    ends.forEach((work) => work());
    ends = [];
  }

  /**
   * Ask for one thing about the item; an error becomes a sentence where the answer would have been.
   * @param {HTMLElement} panel
   * @param {Record<string, unknown>} message
   * @returns {Promise<Reply | null>}
   */
  async function get(panel, message) {
    const slow = setTimeout(() => {
      status.textContent = "Reading …";
    }, 250);
    const reply = await ask(message.op === "rows" ? message : { ...where, ...message });
    clearTimeout(slow);
    if (status.textContent === "Reading …") status.textContent = "";
    if (!reply.error) return reply;
    panel.append(
      el("p", { class: "ax-alert", role: "alert", text: `${reply.error}${reply.hint ? `. ${reply.hint}` : ""}` }),
    );
    return null;
  }
  /** @param {string} form */
  async function save(form) {
    status.textContent = "Reading …";
    const { reply, buffers } = await request({ op: "export", ...where, form });
    status.textContent = reply.error ? `${reply.error}. ${reply.hint ?? ""}` : `Saved ${reply.filename}`;
    if (reply.error) return;
    saveFile(buffers[0], reply.filename);
  }

  // --- the views -------------------------------------------------------------------------------------------------

  /** @type {Record<string, (panel: HTMLElement) => void>} */
  const SHOW = {
    text(panel) {
      const body = el("pre", { class: "ax-pre", tabindex: "0", "aria-label": "Text", dir: "auto" });
      panel.append(body);
      more(
        panel,
        body,
        (start) => ({ op: "text", start }),
        0,
        (reply) => {
          body.append(reply.text);
          return reply.next;
        },
      );
    },
    chat(panel) {
      const body = el("ol", { class: "ax-chat", tabindex: "0", "aria-label": "Conversation" });
      panel.append(body);
      more(
        panel,
        body,
        (start) => ({ op: "chat", start }),
        0,
        (reply) => {
          for (const { role, text } of reply.messages) {
            body.append(
              el(
                "li",
                { class: `ax-message ${ROLES.has(role) ? `ax-${role}` : ""}` },
                el("b", { text: role }),
                el("p", { dir: "auto", text }),
              ),
            );
          }
          const next = reply.start + reply.messages.length;
          return next < reply.count ? next : null;
        },
      );
    },
    json(panel) {
      const tree = el("ul", { role: "tree", class: "ax-tree", "aria-label": "JSON" });
      panel.append(tree);
      branch(panel, tree, [], 1).then(() => {
        const first = /** @type {HTMLElement | null} */ (tree.querySelector("[role=treeitem]"));
        if (first) first.tabIndex = 0;
      });
      tree.addEventListener("keydown", treeKeys);
    },
    async values(panel) {
      const reply = await get(panel, { op: "rows", table: item.values, count: 0 });
      if (!reply) return;
      const detail = el("p", { class: "ax-note", "aria-live": "polite", dir: "auto" });
      const list = grid({
        ask,
        table: item.values,
        info: { title: "Values", count: reply.total, columns: reply.columns, numbered: true },
        open: (row, cells) => {
          detail.textContent = `${row}: ${cells.join(", ")}`;
        },
        place: place?.grid ?? null,
      });
      inner = list;
      ends.push(list.destroy);
      panel.append(list.root, detail);
      list.revive();
    },
    async matrix(panel) {
      const reply = await get(panel, { op: "matrix" });
      if (!reply) return;
      const view = await storedMatrix({
        request: (message) => request({ ...where, ...message }),
        shape: reply.shape,
        dtype: reply.dtype,
        name: item.name,
        ranges: true,
      });
      if ("error" in view) {
        panel.append(el("p", { class: "ax-alert", role: "alert", text: view.error }));
        return;
      }
      ends.push(view.destroy);
      panel.append(view.root);
    },
    tokenizer(panel) {
      const show = (/** @type {number} */ token) => {
        place = { view: "values", scroll: 0, grid: { sort: "", descending: false, filter: "", scroll: 26 * token, active: token, widths: [] } };
        views?.choose("values");
      };
      panel.append(tokenizerPane({ ask, show }).root);
    },
    template(panel) {
      panel.append(templatePane({ ask }).root);
    },
    async histogram(panel) {
      const reply = await get(panel, { op: "histogram" });
      if (reply) panel.append(histogram(reply, item.name));
    },
  };

  /**
   * Load the first page into `body`, and offer the next one as long as there is one.
   * @param {HTMLElement} panel
   * @param {HTMLElement} body
   * @param {(start: number) => Record<string, unknown>} message
   * @param {number} start
   * @param {(reply: Reply) => number | null | undefined} add  shows the reply, and says where the next page starts
   */
  async function more(panel, body, message, start, add) {
    const reply = await get(panel, message(start));
    if (!reply) return;
    const next = add(reply);
    if (start === 0 && place?.scroll) body.scrollTop = place.scroll;
    if (next === null || next === undefined) {
      if (reply.shown < reply.size)
        panel.append(
          el("p", {
            class: "ax-dim",
            text: `The first ${count(reply.shown)} of ${count(reply.size)} bytes; save it to see the rest.`,
          }),
        );
      return;
    }
    const button = el("button", {
      type: "button",
      class: "ax-small",
      text: "Show more",
      onclick: () => {
        button.remove();
        more(panel, body, message, next, add);
      },
    });
    panel.append(button);
  }

  /**
   * @param {HTMLElement} panel
   * @param {HTMLElement} list
   * @param {number[]} path
   * @param {number} level
   * @param {number} start
   */
  async function branch(panel, list, path, level, start = 0) {
    const reply = await get(panel, { op: "json", path, start });
    if (!reply) return;
    for (const [i, child] of /** @type {Reply[]} */ (reply.children).entries()) {
      list.append(leaf(panel, child, [...path, start + i], level));
    }
    const next = start + reply.children.length;
    if (next < reply.count) {
      const button = el("button", {
        type: "button",
        class: "ax-small",
        text: `${count(reply.count - next)} more`,
        onclick: () => {
          item_.remove();
          branch(panel, list, path, level, next);
        },
      });
      const item_ = el("li", { role: "none" }, button);
      list.append(item_);
    }
  }
  /**
   * @param {HTMLElement} panel
   * @param {Reply} child
   * @param {number[]} path
   * @param {number} level
   */
  function leaf(panel, child, path, level) {
    const nested = child.count !== null;
    const value = nested
      ? el("span", {
          class: "ax-dim",
          text: child.type === "object" ? `{${count(child.count)}}` : `[${count(child.count)}]`,
        })
      : el("bdi", {
          class: `ax-json-${child.type}`,
          text: child.type === "string" ? `"${child.value}"` : child.value,
        });
    const twist = el("span", { class: "ax-twist", "aria-hidden": "true", text: nested && child.count ? "▸" : "" });
    const line = el(
      "span",
      { class: "ax-leaf" },
      twist,
      el("bdi", { class: "ax-key", text: child.key }),
      ": ",
      value,
    );
    const item_ = el(
      "li",
      {
        role: "treeitem",
        "aria-level": String(level),
        tabindex: "-1",
        "aria-expanded": nested && child.count ? "false" : null,
      },
      line,
    );
    const toggle = async (/** @type {boolean} */ open) => {
      if (!node.hasAttribute("aria-expanded") || open === (node.getAttribute("aria-expanded") === "true")) return;
      node.setAttribute("aria-expanded", String(open));
      twist.textContent = open ? "▾" : "▸";
      if (!open) {
        node.querySelector("ul")?.remove();
        return;
      }
      const group = el("ul", { role: "group" });
      node.append(group);
      await branch(panel, group, path, level + 1);
    };
    /** @type {TreeItem} */
    const node = Object.assign(item_, { toggle });
    line.addEventListener("click", () => {
      roam(node);
      node.toggle(node.getAttribute("aria-expanded") !== "true");
    });
    return node;
  }
  return {
    root,
    destroy: end,
    /** @returns {Place} */
    place: () => ({
      view: views?.chosen ?? null,
      scroll: root.querySelector(".ax-pre, .ax-chat")?.scrollTop ?? 0,
      grid: inner?.place() ?? null,
    }),
  };
}

/** @param {HTMLElement} node */
function roam(node) {
  const tree = node.closest("[role=tree]");
  const roaming = /** @type {NodeListOf<HTMLElement> | undefined} */ (tree?.querySelectorAll("[tabindex='0']"));
  roaming?.forEach((other) => {
    other.tabIndex = -1;
  });
  node.tabIndex = 0;
  node.focus();
}

/** @param {Element | null} node */
const treeItem = (node) => /** @type {TreeItem | null} */ (node?.closest("[role=treeitem]") ?? null);

/** @param {KeyboardEvent} event */
function treeKeys(event) {
  const node = treeItem(/** @type {Element} */ (event.target));
  if (!node || event.target !== node) return;
  const tree = /** @type {Element} */ (event.currentTarget);
  const all = /** @type {TreeItem[]} */ ([...tree.querySelectorAll("[role=treeitem]")]),
    at = all.indexOf(node);
  const open = node.getAttribute("aria-expanded");
  const parent = treeItem(node.parentElement);
  if (event.key === "ArrowDown" && all[at + 1]) roam(all[at + 1]);
  else if (event.key === "ArrowUp" && all[at - 1]) roam(all[at - 1]);
  else if (event.key === "Home") roam(all[0]);
  else if (event.key === "End") roam(all[all.length - 1]);
  else if (event.key === "ArrowRight" && open === "false") node.toggle(true);
  else if (event.key === "ArrowRight" && open === "true" && all[at + 1]) roam(all[at + 1]);
  else if (event.key === "ArrowLeft" && open === "true") node.toggle(false);
  else if (event.key === "ArrowLeft" && parent) roam(parent);
  else if (event.key === "Enter" || event.key === " ") node.toggle(open !== "true");
  else return;
  event.preventDefault();
  event.stopPropagation();
}

// --- histogram -------------------------------------------------------------------------------------------------------

/** @param {number | string | null | undefined} value */
const number = (value) =>
  value === undefined || value === null
    ? "–"
    : Number(value)
        .toPrecision(5)
        .replace(/\.?0+($|e)/, "$1");

/**
 * @param {Reply} found
 * @param {string} name
 */
function histogram(found, name) {
  const rows = [
    ["Smallest", number(found.min)],
    ["Largest", number(found.max)],
    ["Mean", number(found.mean)],
    ["Spread (std)", number(found.std)],
    ["Zeros", count(found.zeros)],
    ["NaN", count(found.nan)],
    ["Infinite", count(found.inf)],
    [
      "Looked at",
      `${count(found.looked_at)}${found.share < 1 ? ` (${(100 * found.share).toPrecision(2)} %, evenly spread)` : ""}`,
    ],
  ];
  const facts = el(
    "dl",
    { class: "ax-facts" },
    ...rows.map(([label, value]) => el("div", {}, el("dt", { text: label }), el("dd", { text: value }))),
  );
  if (!found.counts.length) return el("div", {}, el("p", { text: "There are no finite numbers." }), facts);
  return el("div", { class: "ax-histogram" }, bars(found, name), facts);
}

/**
 * @param {Reply} found
 * @param {string} name
 */
function bars({ counts, edges, min, max }, name) {
  const ns = "http://www.w3.org/2000/svg";
  /**
   * @param {string} tag
   * @param {Record<string, string | number>} attributes
   */
  const make = (tag, attributes) => {
    const node = document.createElementNS(ns, tag);
    for (const [key, value] of Object.entries(attributes)) node.setAttribute(key, String(value));
    return node;
  };
  const svg = make("svg", {
    viewBox: "0 0 640 200",
    role: "img",
    "aria-label": `Histogram of ${name}: ${number(min)} to ${number(max)}`,
    class: "ax-svg",
  });
  const most = Math.max(...counts),
    wide = 620 / counts.length;
  counts.forEach((/** @type {number} */ n, /** @type {number} */ i) => {
    const high = n ? Math.max(1.5, (n / most) * 165) : 0;
    const bar = make("rect", {
      x: 10 + i * wide,
      y: 172 - high,
      width: Math.max(1, wide - 1),
      height: high,
      class: "ax-barrow",
    });
    const from = edges[0] + ((edges[1] - edges[0]) * i) / counts.length;
    const hint = make("title", {});
    hint.textContent = `${count(n)} from ${number(from)}`;
    bar.append(hint);
    svg.append(bar);
  });
  svg.append(make("line", { x1: 10, x2: 630, y1: 172.5, y2: 172.5, class: "ax-axis" }));
  const zero = edges[0] < 0 && edges[1] > 0 ? 10 + (620 * -edges[0]) / (edges[1] - edges[0]) : null;
  /** @type {[x: number, text: string, anchor: string][]} */
  const ticks = [
    [10, number(edges[0]), "start"],
    [630, number(edges[1]), "end"],
  ];
  if (zero && zero > 70 && zero < 570) ticks.push([zero, "0", "middle"]);
  for (const [x, text, anchor] of ticks) {
    const tick = make("text", { x, y: 190, "text-anchor": anchor, class: "ax-tick" });
    tick.textContent = text;
    svg.append(tick);
  }
  return svg;
}
