// The file explorer: a summary, the byte map, tables, bytes and findings of one file.
//
// Where the answers come from is the caller's: `request` asks a kernel (the notebook's widget) or a server (a double-
// click in JupyterLab). Plain ES modules without a build; the notebook joins them (widgets/static_modules.py).

import { byteMap } from "./map.js";
import { bytes, count, el, fill, followTheme, saveFile, sentence, tabs } from "./dom.js";
import { grid } from "./grid.js";
import { hexPane } from "./hex.js";
import { itemPane } from "./item.js";

/** @typedef {import("./dom.js").Reply} Reply */

/**
 * What a model shows of language, and the value of its metadata that it stands beside.
 * @type {Record<string, {key: string, label: string}>}
 */
const PANES = {
  tokenizer: { key: "tokenizer.ggml.tokens", label: "Cut a text into tokens" },
  template: { key: "tokenizer.chat_template", label: "See a conversation in its template" },
};

/** @type {Record<string, string>} */
const SEVERITY = { error: "✖ error", warning: "▲ warning", note: "● note" };

/** After so long it is said that something is being read. */
const SLOW_MS = 250;

/** Remedies of files that are damaged, for which a backup may be the better one. */
const RESTORABLE = new Set(["recover", "recover-journal", "repair", "repair-if-damaged"]);

/** Remedies that a repair brings. */
const MENDABLE = new Set(["repair", "repair-if-damaged", "rescue-entries", "mend"]);

/**
 * @typedef {{request: import("./dom.js").Request, openNotebook?: () => void,
 *            openBackup?: (name: string) => Promise<Reply | null>,
 *            onSelect?: (selection: Record<string, unknown>) => void, onTab?: (tab: string) => void}} Sources  `openBackup` shows a file of the same
 *            folder: here, and then it answers with its summary, or elsewhere; `onSelect` hears what is chosen: name,
 *            start, size, table and row; `onTab` the tab that is looked at
 * @typedef {{destroy: () => void}} Part
 * @typedef {{tab: string | null, tables: Record<string, TablePlace>, bytes: import("./hex.js").Place | null,
 *            map: {start: number, stop: number, whole: boolean}, checked: boolean, typed: string, focus: Focus | null}} Place
 *            all that somebody did to see what is seen: kept when the file is shown anew
 * @typedef {{grid: import("./grid.js").Place, name: string | null, row: number | null,
 *            item: import("./item.js").Place | null}} TablePlace
 * @typedef {{label: string, from: number | null, to: number | null}} Focus
 */

/**
 * Show a file in an element.
 * @param {HTMLElement} node
 * @param {Sources} options
 * @returns {(() => void) & {changed: () => Promise<void>}} removes it; `changed` shows the file as it is now, at the place
 *          that was looked at, and says so
 */
export function mount(node, { request, openNotebook, openBackup, onSelect, onTab }) {
  const root = el("section", { class: "ax", "aria-label": "File explorer", "data-lm-suppress-shortcuts": "true" });
  const notice = el("div", { class: "ax-notice", role: "status" });
  const page = el("div", { class: "ax-page" });
  root.append(notice, page);
  node.append(root);
  /** @type {ReturnType<typeof fileShell>[]} */
  let parts = [];
  let gone = false;
  const unfollow = followTheme(root, () => parts.forEach((part) => part.redraw()));

  /**
   * Ask, and see that a file that changed meanwhile is noticed; what cannot be asked becomes an error.
   * @param {Record<string, unknown>} message
   */
  async function full(message) {
    try {
      const found = await request(message);
      if (found.reply.changed && !gone) changed();
      return found;
    } catch (error) {
      const said = (error instanceof Error && error.message) || String(error);
      const answered = error instanceof Error && "response" in error; // it did, and says why not
      return { reply: { error: answered ? said : `The server did not answer: ${said}` }, buffers: [] };
    }
  }
  /** @type {import("./dom.js").Ask} */
  const ask = async (message) => (await full(message)).reply;

  function changed() {
    if (notice.childElementCount) return;
    fill(
      notice,
      el("span", { text: "The file has changed since it was opened." }),
      " ",
      el("button", { type: "button", class: "ax-small", text: "Reload", onclick: () => again("reload") }),
    );
  }
  /**
   * Show the file as it is now, at the place that was looked at; where it cannot be shown, what is seen stays.
   * @param {string} op
   * @param {string} said
   */
  async function again(op, said = "") {
    const summary = await ask({ op, check: true });
    if (gone) return;
    if (summary.error && parts.length) {
      fill(notice, failed(summary), " ", retry(() => again(op, said)));
      return;
    }
    const place = parts[0]?.place() ?? null;
    fill(notice);
    const scrolled = scrollsAbove(root);
    const stay = page.offsetHeight;
    page.style.minHeight = `${stay}px`;
    show(summary, place);
    scrolled.forEach(([node, top]) => {
      node.scrollTop = top;
    });
    setTimeout(() => {
      page.style.minHeight = "";
    }, 1500);
    if (said && parts.length) {
      const close = el("button", { type: "button", class: "ax-small", text: "OK", onclick: () => fill(notice) });
      fill(notice, el("span", { text: said }), " ", close);
    }
  }
  function clear() {
    parts.forEach((part) => part.destroy());
    parts = [];
  }

  /**
   * @param {Reply} summary
   * @param {Place | null} place
   */
  function show(summary, place = null) {
    if (gone) return;
    clear();
    if (summary.error) {
      fill(page, alert_(summary), retry(() => again("summary")));
      return;
    }
    root.setAttribute("aria-label", `File ${summary.name}`);
    const shell = fileShell({ ask, full, summary, openNotebook, openBackup, onSelect, onTab, reopen: show, place });
    parts.push(shell);
    fill(page, shell.root);
  }
  const slow = setTimeout(() => {
    if (!page.childElementCount) fill(page, el("p", { class: "ax-hint", role: "status", text: "Opening the file …" }));
  }, SLOW_MS);
  ask({ op: "summary", check: true }).then((summary) => {
    clearTimeout(slow);
    show(summary);
  });
  const end = () => {
    gone = true;
    unfollow();
    clear();
    root.remove();
  };
  const now = () => new Date().toLocaleTimeString("en-GB");
  return Object.assign(end, { changed: () => again("reload", `The file has changed. This is how it was at ${now()}.`) });
}

/** @param {() => void} work */
const retry = (work) => el("button", { type: "button", class: "ax-small", text: "Try again", onclick: work });

/**
 * The elements around a node that are scrolled, and how far.
 * @param {HTMLElement} node
 * @returns {[HTMLElement, number][]}
 */
function scrollsAbove(node) {
  /** @type {[HTMLElement, number][]} */
  const found = [];
  for (let at = node.parentElement; at; at = at.parentElement) if (at.scrollTop) found.push([at, at.scrollTop]);
  return found;
}

/** @param {Reply} reply */
const failed = ({ error, hint }) =>
  el("span", { text: `${sentence(error)}${hint ? ` ${sentence(hint)}` : ""} What is shown is what was read last.` });

/** @param {Reply} failed */
function alert_({ error, hint }) {
  return el("p", { class: "ax-alert", role: "alert", text: `${sentence(error)}${hint ? ` ${sentence(hint)}` : ""}` });
}

/**
 * @param {Omit<Sources, "request"> & {ask: import("./dom.js").Ask, full: import("./dom.js").Request, summary: Reply,
 *         reopen: (summary: Reply, place?: Place | null) => void, place: Place | null}} given
 */
function fileShell({ ask, full, summary, openNotebook, openBackup, onSelect, onTab, reopen, place }) {
  const { size } = summary;
  /** @type {Part[]} */
  const parts = [];
  /**
   * @template {Part} P
   * @param {P} part
   */
  const keep = (part) => {
    parts.push(part);
    return part;
  };
  const state = el("span", { class: "ax-dim", role: "status" });
  const findingsBody = el("div", { class: "ax-findings" });
  const check = el("button", { type: "button", text: "Check the file", onclick: () => validate() });
  const head = el(
    "header",
    { class: "ax-head" },
    el("span", { class: `ax-kind ax-kind-${summary.kind}`, text: summary.title }),
    el("h2", { title: summary.path }, el("bdi", { text: summary.name })),
    el("span", { class: "ax-dim", text: bytes(size) }),
    el("span", { class: "ax-push" }),
    state,
    summary.backup_of ? fileButton(summary.backup_of, `Back to ${summary.backup_of}`) : null,
    size ? check : null,
    openNotebook ? el("button", { type: "button", text: "Open in notebook", onclick: () => openNotebook() }) : null,
  );
  const map = keep(
    byteMap({
      ask,
      size,
      groupings: summary.groupings ?? [],
      pick: (offset, long) => {
        toBytes(offset, long);
      },
    }),
  );
  const names = Object.keys(summary.tables);
  const list = [
    { id: "summary", label: "Summary" },
    ...names.map((id) => ({ id, label: summary.tables[id].title, badge: count(summary.tables[id].count) })),
    ...(size ? [{ id: "bytes", label: "Bytes" }] : []),
    { id: "findings", label: "Findings" },
  ];
  /** @type {Map<string, HTMLElement>} */
  const roots = new Map();
  /** @type {Map<string, ReturnType<typeof tablePanel>>} */
  const tables = new Map();
  /** @type {ReturnType<typeof hexPane> | null} */
  let hexBytes = null;
  /** @type {Reply | null} */
  let findings = summary.findings ?? null;
  let timer = 0;
  /** Whether it was checked before it changed. */
  const stale = place?.checked ?? false;
  /** @type {HTMLInputElement | null} */
  let word = null;
  /** @type {{offset: number, size: number} | null} bytes of what was chosen last, for when they are looked at */
  let wanted = null;
  const main = tabs("What to look at", list, (id, panel) => {
    const made = roots.get(id) ?? makePanel(id);
    roots.set(id, made);
    fill(panel, made);
    tables.get(id)?.revive();
    onTab?.(id);
    if (id === "bytes" && wanted) hexBytes?.show(wanted.offset, wanted.size);
    if (id === "bytes") wanted = null;
  });
  const root = el(
    "div",
    { class: "ax-shell" },
    head,
    summary.problem ? alert_(summary.problem) : null,
    summary.problem ? backups([summary.problem]) : null,
    summary.locked ? unlock() : null,
    map.root,
    main.list,
    main.panel,
  );
  drawFindings();
  queueMicrotask(() => {
    main.choose(place?.tab && list.some(({ id }) => id === place.tab) ? place.tab : "summary");
    if (!place) return;
    if (!place.map.whole) map.look(place.map.start, place.map.stop);
    if (word) word.value = place.typed;
    if (place.focus) refocus(root, place.focus);
  });
  if (findings) tellFindings(); // small files are checked as they are opened

  /** @param {string} id */
  function makePanel(id) {
    if (id === "summary") return summaryPanel();
    if (id === "bytes") {
      const { bytes: before = null } = place ?? {};
      hexBytes = keep(hexPane({ request: full, size, seen: (offset, long) => map.select(offset, long), place: before }));
      return hexBytes.root;
    }
    if (id === "findings") return findingsBody;
    const table = tablePanel(id);
    tables.set(id, table);
    return table.root;
  }
  /**
   * @param {number} offset
   * @param {number} long
   */
  function toBytes(offset, long = 1) {
    wanted = null;
    main.choose("bytes");
    hexBytes?.show(offset, long);
    map.select(offset, Math.max(1, long));
  }
  /**
   * @param {string} table
   * @param {number} row
   */
  async function toRow(table, row) {
    main.choose(table);
    await tables.get(table)?.pick(row);
  }

  /**
   * Show what a model makes of language.
   * @param {string} pane
   */
  async function toPane(pane) {
    const { place: at } = await ask({ op: "find", name: PANES[pane].key });
    if (!at) return;
    main.choose(at.table);
    await tables.get(at.table)?.pick(at.row, { view: pane, scroll: 0, grid: null });
  }

  // --- the panels --------------------------------------------------------------------------------------------------

  function summaryPanel() {
    const facts = el(
      "dl",
      { class: "ax-facts ax-wide" },
      ...summary.facts.map((/** @type {[string, string]} */ [label, value]) =>
        el("div", {}, el("dt", { text: label }), el("dd", {}, el("bdi", { text: value }))),
      ),
    );
    const panes = (summary.panes ?? []).map((/** @type {string} */ id) =>
      el("button", { type: "button", class: "ax-small", text: PANES[id].label, onclick: () => toPane(id) }),
    );
    return el("div", { class: "ax-summary" }, facts, panes.length ? el("p", { class: "ax-actions" }, ...panes) : null);
  }

  /** @param {string} id */
  function tablePanel(id) {
    const info = summary.tables[id];
    const side = el("div", { class: "ax-detail-pane" });
    const split = el("div", { class: "ax-split" });
    /** @type {ReturnType<typeof itemPane> | null} */
    let shown = null;
    const before = place?.tables[id] ?? null;
    /** @type {{name: string, row: number} | null} */
    let chosen = null;
    /**
     * @param {number} row
     * @param {import("./item.js").Place | null} at
     * @param {boolean} quietly  whether nothing is to move for it
     */
    const open = async (row, at = null, quietly = false) => {
      const slow = setTimeout(() => {
        fill(side, el("p", { class: "ax-hint", role: "status", text: "Reading …" }));
        opened(quietly);
      }, SLOW_MS);
      const item = await ask({ op: "item", table: id, row });
      clearTimeout(slow);
      if (shown) shown.destroy();
      if (item.error) {
        shown = null;
        fill(side, closer(), alert_(item));
        opened(quietly);
        return;
      }
      chosen = { name: item.name, row };
      shown = itemPane({ ask, request: full, table: id, row, item, bytes: toBytes, place: at });
      fill(side, closer(), shown.root);
      opened(quietly);
      wanted = { offset: item.start, size: Math.max(1, item.size) };
      if (!quietly) map.select(wanted.offset, wanted.size);
      if (onSelect) onSelect({ name: item.name, start: item.start, size: item.size, table: id, row });
    };
    /**
     * Make room for what was chosen, and see that it is seen.
     * @param {boolean} quietly
     */
    function opened(quietly) {
      if (split.classList.contains("ax-open")) return;
      split.classList.add("ax-open");
      requestAnimationFrame(() => {
        rows.keepActive();
        if (!quietly) side.scrollIntoView({ block: "nearest" });
      });
    }
    function close() {
      shown?.destroy();
      shown = null;
      chosen = null;
      fill(side);
      split.classList.remove("ax-open");
      rows.focus();
    }
    const closer = () =>
      el("button", { type: "button", class: "ax-small ax-close", "aria-label": "Close", title: "Close", text: "×", onclick: close });
    side.addEventListener("keydown", (event) => {
      if (event.key !== "Escape" || event.defaultPrevented) return;
      event.stopPropagation();
      close();
    });
    /** Open what was open before the file changed, wherever it is now. */
    async function openAgain() {
      if (before?.row === null || before?.row === undefined) return;
      const { place: now } = before.name === null ? { place: null } : await ask({ op: "find", name: before.name });
      if (now?.table === id || before.row < info.count) {
        const row = now?.table === id ? now.row : before.row;
        rows.mark(row);
        await open(row, before.item, true);
      }
    }
    const rows = keep(grid({ ask, table: id, info, open: (row) => open(row), place: before?.grid ?? null }));
    keep({
      destroy() {
        if (shown) shown.destroy();
      },
    });
    openAgain();
    split.append(rows.root, side);
    return {
      root: split,
      revive: rows.revive,
      /** @returns {TablePlace} */
      place: () => ({
        grid: rows.place(),
        name: chosen?.name ?? null,
        row: chosen?.row ?? null,
        item: shown?.place() ?? null,
      }),
      /**
       * @param {number} row
       * @param {import("./item.js").Place | null} at
       */
      pick: async (row, at = null) => {
        await rows.show(row);
        await open(row, at);
      },
    };
  }

  function drawFindings() {
    if (!findings) {
      fill(
        findingsBody,
        el("p", {
          text: `${stale ? "The file has changed since it was checked." : "The file has not been checked."} Checking reads all of it, in the background.`,
        }),
        el("button", { type: "button", text: "Check the file", onclick: () => validate(), disabled: !size }),
      );
      return;
    }
    if (findings.state === "running") {
      fill(findingsBody, el("p", { text: "Checking …" }));
      return;
    }
    if (findings.error) {
      fill(findingsBody, alert_(findings));
      return;
    }
    fill(
      findingsBody,
      el("p", { class: findings.ok ? "ax-good" : "ax-bad", text: `${findings.ok ? "✔" : "✖"} ${findings.sentence}` }),
      backups(findings.findings),
      findings.findings.some((/** @type {Reply} */ one) => one.remedy && MENDABLE.has(one.remedy.name)) ? mender() : null,
      el("ul", {}, ...findings.findings.map(finding)),
    );
  }
  /** A button that saves a mended copy of the file. */
  function mender() {
    const said = el("span", { class: "ax-dim", role: "status" });
    const mend = async () => {
      said.textContent = "Mending …";
      const { reply, buffers } = await full({ op: "mend" });
      if (reply.error) {
        said.textContent = `${sentence(reply.error)}${reply.hint ? ` ${sentence(reply.hint)}` : ""}`;
        return;
      }
      saveFile(buffers[0], reply.filename);
      const lost = reply.lost ? ` ${count(reply.lost)} could not be saved.` : " Nothing was lost.";
      said.textContent = `Saved ${reply.filename}.${lost}`;
    };
    return el("p", {}, el("button", { type: "button", class: "ax-small", text: "Save a mended copy", onclick: mend }), " ", said);
  }
  /**
   * Offer the file's backups where one of them may help; empty where there are none, and in a backup.
   * @param {Reply[]} problems
   */
  function backups(problems) {
    const offer = el("p", { class: "ax-backups" });
    if (openBackup && !summary.backup_of && problems.some(({ remedy }) => remedy && RESTORABLE.has(remedy.name))) {
      ask({ op: "backups" }).then(({ names }) => {
        if (names?.length) fill(offer, "Look at a backup: ", ...names.map((/** @type {string} */ name) => fileButton(name, name)));
      });
    }
    return offer;
  }
  /**
   * @param {string} name
   * @param {string} text
   */
  function fileButton(name, text) {
    const open = async () => {
      const reply = openBackup ? await openBackup(name) : null;
      if (reply?.error) button.replaceWith(alert_(reply));
      else if (reply) reopen(reply);
    };
    const button = el("button", { type: "button", class: "ax-small", text, onclick: open });
    return button;
  }
  /** @param {Reply} found */
  function finding(found) {
    const where =
      found.offset === null
        ? null
        : el("button", {
            type: "button",
            class: "ax-small",
            text: `Byte ${count(found.offset)}`,
            onclick: () => toBytes(found.offset),
          });
    const row = found.place
      ? el("button", {
          type: "button",
          class: "ax-small",
          text: "Show it",
          onclick: () => toRow(found.place.table, found.place.row),
        })
      : null;
    return el(
      "li",
      { class: `ax-finding ax-${found.severity}` },
      el("b", { text: SEVERITY[found.severity] }),
      " ",
      el("code", { text: found.code }),
      " ",
      where,
      " ",
      row,
      el(
        "p",
        {},
        found.key ? el("bdi", { class: "ax-key", text: `${found.key}: ` }) : null,
        el("bdi", { text: sentence(found.message) }),
        el("span", { class: "ax-dim", text: found.hint ? ` ${sentence(found.hint)}` : "" }),
      ),
    );
  }
  async function validate() {
    clearTimeout(timer);
    findings = await ask({ op: "validate" });
    drawFindings();
    tellFindings();
    check.disabled = findings.state === "running";
    if (findings.state === "running") timer = setTimeout(validate, 250);
    else if (findings.findings) main.choose("findings");
  }
  /** Say beside the name, on the tab and on the map what was found. */
  function tellFindings() {
    if (!findings) return;
    const verdict = `${findings.ok ? "✔" : "✖"} ${findings.verdict}`;
    const said = /** @type {Record<string, string>} */ ({ running: "Checking …", done: verdict });
    state.textContent = said[findings.state] ?? "";
    if (findings.error) state.textContent = findings.error;
    if (!findings.findings) return;
    if (findings.findings.length || !summary.findings) main.badge("findings", count(findings.findings.length));
    map.mark(findings.findings);
  }

  function unlock() {
    const input = el("input", {
      type: "password",
      autocomplete: "off",
      "aria-label": "Passphrase",
      onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
    });
    word = input;
    const said = el("span", { role: "alert" });
    return el(
      "form",
      {
        class: "ax-unlock",
        onsubmit: async (/** @type {SubmitEvent} */ event) => {
          event.preventDefault();
          said.textContent = " …";
          const reply = await ask({ op: "unlock", passphrase: input.value });
          if (reply.error) {
            said.textContent = sentence(reply.error);
            input.select();
          } else reopen(reply, null);
        },
      },
      el("label", {}, "Passphrase ", input),
      " ",
      el("button", { type: "submit", text: "Unlock" }),
      " ",
      said,
    );
  }
  return {
    root,
    redraw: map.redraw,
    /** @returns {Place} */
    place() {
      const kept = Object.entries(place?.tables ?? {}).filter(([id]) => !tables.has(id));
      return {
        tab: main.chosen,
        tables: Object.fromEntries([...kept, ...[...tables].map(([id, table]) => [id, table.place()])]),
        bytes: hexBytes?.place() ?? place?.bytes ?? null,
        map: map.place(),
        checked: Boolean(findings) || stale,
        typed: word?.value ?? "",
        focus: focusIn(root),
      };
    },
    destroy() {
      clearTimeout(timer);
      parts.forEach((part) => part.destroy());
    },
  };
}

/**
 * What has the focus, by its name, and what is selected of what was typed.
 * @param {HTMLElement} root
 * @returns {Focus | null}
 */
function focusIn(root) {
  const at = document.activeElement;
  const label = at && root.contains(at) ? at.getAttribute("aria-label") : null;
  if (label === null) return null;
  const typed = at instanceof HTMLInputElement && at.type !== "range" ? at : null;
  return { label, from: typed?.selectionStart ?? null, to: typed?.selectionEnd ?? null };
}

/**
 * @param {HTMLElement} root
 * @param {Focus} focus
 */
function refocus(root, { label, from, to }) {
  const node = [...root.querySelectorAll("[aria-label]")].find((one) => one.getAttribute("aria-label") === label);
  if (!(node instanceof HTMLElement)) return;
  node.focus({ preventScroll: true });
  if (node instanceof HTMLInputElement && from !== null) node.setSelectionRange(from, to);
}
