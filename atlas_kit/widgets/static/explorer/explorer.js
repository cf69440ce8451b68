// The file explorer: a summary, the byte map, tables, bytes and findings of one file.
//
// Where the answers come from is the caller's: `request` asks a kernel (the notebook's widget) or a server (a double-
// click in JupyterLab). Plain ES modules without a build; the notebook joins them (widgets/static_modules.py).

import { byteMap } from "./map.js";
import { bytes, count, el, fill, followTheme, sentence, tabs } from "./dom.js";
import { grid } from "./grid.js";
import { hexPane } from "./hex.js";
import { itemPane } from "./item.js";

const SEVERITY = { error: "✖ error", warning: "▲ warning", note: "● note" };

/**
 * Show a file in an element.
 * @param {HTMLElement} node
 * @param {{request: (message: object) => Promise<{reply: any, buffers: DataView[]}>, openNotebook?: () => void,
 *          onSelect?: (selection: {name: string, start: number, size: number}) => void}} options
 * @returns {() => void} removes it
 */
export function mount(node, { request, openNotebook, onSelect }) {
  const root = el("section", { class: "ax", "aria-label": "File explorer", "data-lm-suppress-shortcuts": "true" });
  const notice = el("div", { class: "ax-notice", role: "status" });
  const page = el("div", { class: "ax-page" });
  root.append(notice, page);
  node.append(root);
  let parts = [],
    gone = false;
  const unfollow = followTheme(root, () => parts.forEach((part) => part.redraw()));

  /** Ask, and see that a file that changed meanwhile is noticed; what cannot be asked becomes an error. */
  async function full(message) {
    try {
      const found = await request(message);
      if (found.reply.changed && !gone) changed();
      return found;
    } catch (error) {
      return { reply: { error: `There is no answer: ${error.message || error}` }, buffers: [] };
    }
  }
  const ask = async (message) => (await full(message)).reply;

  function changed() {
    if (notice.childElementCount) return;
    fill(
      notice,
      el("span", { text: "The file has changed since it was opened." }),
      " ",
      el("button", {
        type: "button",
        class: "ax-small",
        text: "Reload",
        onclick: async () => {
          fill(notice);
          show(await ask({ op: "reload" }));
        },
      }),
    );
  }
  function clear() {
    parts.forEach((part) => part.destroy());
    parts = [];
  }

  function show(summary) {
    clear();
    if (gone) return;
    if (summary.error) {
      fill(page, alert_(summary));
      return;
    }
    root.setAttribute("aria-label", `File ${summary.name}`);
    const shell = fileShell({ ask, full, summary, openNotebook, onSelect, reopen: show });
    parts.push(shell);
    fill(page, shell.root);
  }
  ask({ op: "summary" }).then(show);
  return () => {
    gone = true;
    unfollow();
    clear();
    root.remove();
  };
}

function alert_({ error, hint }) {
  return el("p", { class: "ax-alert", role: "alert", text: `${sentence(error)}${hint ? ` ${sentence(hint)}` : ""}` });
}

function fileShell({ ask, full, summary, openNotebook, onSelect, reopen }) {
  const { size } = summary;
  const parts = [];
  const keep = (part) => {
    parts.push(part);
    return part;
  };
  const state = el("span", { class: "ax-dim", role: "status" });
  const check = el("button", { type: "button", text: "Check the file", onclick: validate });
  const head = el(
    "header",
    { class: "ax-head" },
    el("span", { class: `ax-kind ax-kind-${summary.kind}`, text: summary.title }),
    el("h2", { title: summary.path }, el("bdi", { text: summary.name })),
    el("span", { class: "ax-dim", text: bytes(size) }),
    el("span", { class: "ax-push" }),
    state,
    size ? check : null,
    openNotebook ? el("button", { type: "button", text: "Open in notebook", onclick: () => openNotebook() }) : null,
  );
  const map = keep(
    byteMap({
      ask,
      size,
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
  const panels = new Map();
  let findings = null,
    timer = 0;
  let wanted = null; // bytes of what was chosen last, for when they are looked at
  const main = tabs("What to look at", list, (id, panel) => {
    if (!panels.has(id)) panels.set(id, makePanel(id));
    fill(panel, panels.get(id).root);
    if (id === "bytes" && wanted) panels.get(id).show(wanted.offset, wanted.size);
    if (id === "bytes") wanted = null;
  });
  const root = el(
    "div",
    { class: "ax-shell" },
    head,
    summary.problem ? alert_(summary.problem) : null,
    summary.locked ? unlock() : null,
    map.root,
    main.list,
    main.panel,
  );
  queueMicrotask(() => main.choose("summary"));

  function makePanel(id) {
    if (id === "summary") return { root: summaryPanel() };
    if (id === "bytes")
      return keep(hexPane({ request: full, size, seen: (offset, long) => map.select(offset, long) }));
    if (id === "findings") return { root: findingsPanel() };
    return tablePanel(id);
  }
  function toBytes(offset, long = 1) {
    wanted = null;
    main.choose("bytes");
    panels.get("bytes").show(offset, long);
    map.select(offset, Math.max(1, long));
  }
  async function toRow(table, row) {
    main.choose(table);
    await panels.get(table).pick(row);
  }

  // --- the panels --------------------------------------------------------------------------------------------------

  function summaryPanel() {
    const facts = el(
      "dl",
      { class: "ax-facts ax-wide" },
      ...summary.facts.map(([label, value]) =>
        el("div", {}, el("dt", { text: label }), el("dd", {}, el("bdi", { text: value }))),
      ),
    );
    return el("div", { class: "ax-summary" }, facts);
  }

  function tablePanel(id) {
    const info = summary.tables[id];
    const side = el(
      "div",
      { class: "ax-detail-pane" },
      el("p", { class: "ax-hint", text: info.count ? "Choose a row to look at it." : "" }),
    );
    let shown = null;
    const open = async (row) => {
      const item = await ask({ op: "item", table: id, row });
      if (shown) shown.destroy();
      if (item.error) {
        shown = null;
        fill(side, alert_(item));
        return;
      }
      shown = itemPane({ ask, request: full, table: id, row, item, bytes: toBytes });
      fill(side, shown.root);
      wanted = { offset: item.start, size: Math.max(1, item.size) };
      map.select(wanted.offset, wanted.size);
      if (onSelect) onSelect({ name: item.name, start: item.start, size: item.size, table: id, row });
    };
    const rows = keep(grid({ ask, table: id, info, open }));
    keep({
      destroy() {
        if (shown) shown.destroy();
      },
    });
    return {
      root: el("div", { class: "ax-split" }, rows.root, side),
      pick: async (row) => {
        await rows.show(row);
        await open(row);
      },
    };
  }

  function findingsPanel() {
    const body = el("div", { class: "ax-findings" });
    const draw = () => {
      if (!findings) {
        fill(
          body,
          el("p", { text: "The file has not been checked. Checking reads all of it, in the background." }),
          el("button", { type: "button", text: "Check the file", onclick: validate, disabled: !size }),
        );
        return;
      }
      if (findings.state === "running") {
        fill(body, el("p", { text: "Checking …" }));
        return;
      }
      if (findings.error) {
        fill(body, alert_(findings));
        return;
      }
      const verdict =
        findings.findings.length === 0
          ? "Nothing is wrong with this file."
          : findings.ok
            ? "The file can be used as it is."
            : "The file is damaged.";
      fill(
        body,
        el("p", { class: findings.ok ? "ax-good" : "ax-bad", text: `${findings.ok ? "✔" : "✖"} ${verdict}` }),
        el("ul", {}, ...findings.findings.map(finding)),
      );
    };
    draw();
    body.redraw = draw;
    return body;
  }
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
    if (panels.has("findings")) panels.get("findings").root.redraw();
    const verdict = findings.ok ? "✔ sound" : "✖ damaged";
    state.textContent = { running: "Checking …", done: verdict }[findings.state] ?? "";
    check.disabled = findings.state === "running";
    if (findings.state === "running") {
      timer = setTimeout(validate, 250);
      return;
    }
    if (findings.error) state.textContent = findings.error;
    if (!findings.findings) return;
    main.badge("findings", count(findings.findings.length));
    map.mark(findings.findings);
    main.choose("findings");
  }

  function unlock() {
    const word = el("input", {
      type: "password",
      autocomplete: "off",
      "aria-label": "Passphrase",
      onkeydown: (event) => event.stopPropagation(),
    });
    const said = el("span", { role: "alert" });
    return el(
      "form",
      {
        class: "ax-unlock",
        onsubmit: async (event) => {
          event.preventDefault();
          said.textContent = " …";
          const reply = await ask({ op: "unlock", passphrase: word.value });
          if (reply.error) {
            said.textContent = sentence(reply.error);
            word.select();
          } else reopen(reply);
        },
      },
      el("label", {}, "Passphrase ", word),
      " ",
      el("button", { type: "submit", text: "Unlock" }),
      " ",
      said,
    );
  }
  return {
    root,
    redraw: map.redraw,
    destroy() {
      clearTimeout(timer);
      parts.forEach((part) => part.destroy());
    },
  };
}
