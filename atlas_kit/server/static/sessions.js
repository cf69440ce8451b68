// The sessions of whoever looks on: each has a memory of its own. They are listed, chosen, begun, copied, saved, reset
// and deleted.

import { count, el, fill } from "../../widgets/static/explorer/dom.js";
import { isNoAnswer, Refusal } from "./api.js";
import { askName, askWhether } from "./dialogs.js";
import { ago, tokens } from "./words.js";

/**
 * @typedef {import("./api.js").Reply} Reply
 * @typedef {import("./api.js").Server} Server
 */

/** The session of requests that name none. */
export const SHARED = "";
const PLACES = /** @type {Record<string, string>} */ ({ sequence: "in the model", memory: "in memory", file: "on disk" });
const CHOSEN = "atlas-session";
/** The session that somebody begins with who chose none. */
const FIRST = "my session";

export class Sessions {
  /**
   * @param {Server} server
   * @param {(name: string) => void} onChoose is told which session is chosen; ``SHARED`` for that without a name
   * @param {(name: string) => void} onForgotten is told which session knows nothing any more
   */
  constructor(server, onChoose, onForgotten) {
    this._server = server;
    this._onChoose = onChoose;
    this._onForgotten = onForgotten;
    /** @type {string | null} */
    this.chosen = null;
    this._drawn = "";
    /** @type {Reply[]} sessions that lie in files, and that the frames do not tell of until they are used */
    this._cold = [];
    /** @type {Reply | null} */
    this._frame = null;
    this.list = el("ul", { class: "sessions" });
    this.said = el("p", { role: "status", class: "said faint" });
    this.buttons = {
      save: el("button", { type: "button", text: "Save", onclick: () => this._save() }),
      copy: el("button", { type: "button", text: "Copy", onclick: () => this._copy() }),
      load: el("button", { type: "button", text: "Download", title: "The memory as a file", onclick: () => this._download() }),
      reset: el("button", { type: "button", text: "Reset", onclick: () => this._reset() }),
      drop: el("button", { type: "button", text: "Delete", onclick: () => this._drop() }),
    };
    this.field = el("input", {
      id: "session", maxlength: "128", autocomplete: "off", placeholder: "anna", required: true,
    });
    const form = el("form", { class: "inline begin", onsubmit: (/** @type {Event} */ event) => this._begin(event) },
      el("label", { for: "session", text: "New session" }), this.field, el("button", { text: "Begin" }));
    const doing = el("div", { class: "inline", role: "group", "aria-label": "The chosen session" }, ...Object.values(this.buttons));
    this.root = el("section", { class: "panel choose" }, el("h2", { text: "Sessions" }), this.list, doing, this.said, form);
  }

  // --- choosing ------------------------------------------------------------------------------------------------

  /** @param {Event} event */
  _begin(event) {
    event.preventDefault();
    const name = this.field.value.trim();
    if (!name) return;
    this.field.value = "";
    this.choose(name);
  }

  /** @param {string} name */
  choose(name) {
    this.chosen = name;
    this.said.textContent = "";
    sessionStorage.setItem(CHOSEN, name);
    this._onChoose(name);
  }

  /**
   * The record of the chosen session in a frame, if there is one yet.
   * @param {Reply} frame
   * @returns {Reply | undefined}
   */
  recordOf(frame) {
    return frame.conversations.find((/** @type {Reply} */ one) => nameOf(one) === this.chosen);
  }

  /** Whether the chosen session lies in a file until it is used. */
  get rests() {
    const one = this._known().find((found) => nameOf(found) === this.chosen);
    return one?.place === "file";
  }

  /** Ask which sessions there are, those in files among them. */
  async refresh() {
    try {
      const { data } = await this._server.json("/v1/atlas/sessions");
      this._cold = data.map((/** @type {Reply} */ one) => ({ ...one, session_id: one.id, shared: false }));
    } catch (error) {
      if (!isNoAnswer(error)) throw error;
      this._cold = []; // it is too early, and is asked again after the next change
    }
    if (this._frame) this.show(this._frame);
  }

  // --- doing something with the chosen one -----------------------------------------------------------------------

  /**
   * Let the server do something, and say what came of it.
   * @param {string} path below the chosen session, or of the shared memory
   * @param {{method?: string, body?: unknown}} options
   * @param {string} done
   */
  async _do(path, options, done) {
    this.said.classList.remove("wrong");
    this.said.textContent = "";
    try {
      await this._server.json(path, options);
    } catch (error) {
      this._failed(error);
      return false;
    }
    this.said.textContent = done;
    await this.refresh();
    return true;
  }

  /** @param {string} [action] */
  _path(action) {
    const name = (this.chosen ?? "").split("/").map(encodeURIComponent).join("/");
    return `/v1/atlas/sessions/${name}${action ? `/${action}` : ""}`;
  }

  get _name() {
    return this.chosen === SHARED ? "the shared memory" : `“${this.chosen}”`;
  }

  async _save() {
    const path = this.chosen === SHARED ? "/v1/atlas/memory/save" : this._path("save");
    await this._do(path, { body: {} }, `Saved ${this._name}.`);
  }

  async _copy() {
    const of = this._name;
    const name = await askName(`Copy ${of}`, "Name of the copy", "Copy");
    if (name && (await this._do(this._path("fork"), { body: { session_id: name } }, ""))) {
      this.choose(name);
      this.said.textContent = `“${name}” knows what ${of} does; from here on both go on by themselves.`;
    }
  }

  async _download() {
    const name = this.chosen ?? "";
    const query = name === SHARED ? "" : `?session_id=${encodeURIComponent(name)}`;
    this.said.classList.remove("wrong");
    this.said.textContent = "";
    try {
      const answer = await this._server.fetch(`/v1/atlas/memory/file${query}`);
      const file = answer.headers.get("content-disposition")?.match(/filename="([^"]+)"/)?.[1] ?? "memory.atlas";
      const url = URL.createObjectURL(await answer.blob());
      el("a", { href: url, download: file }).click();
      setTimeout(() => URL.revokeObjectURL(url), 60_000); // by then, the browser has it
    } catch (error) {
      this._failed(error);
    }
  }

  /** @param {unknown} error */
  _failed(error) {
    this.said.classList.add("wrong");
    this.said.textContent = error instanceof Refusal ? error.message : "The server cannot be reached.";
  }

  async _reset() {
    const name = this.chosen ?? "";
    const text = `What ${this._name} has learned is lost, and cannot be brought back.`;
    if (!(await askWhether(`Reset ${this._name}?`, text, "Reset"))) return;
    const path = name === SHARED ? "/v1/atlas/memory/reset" : this._path("reset");
    if (await this._do(path, { body: { mode: "hard" } }, `Reset ${this._name}: it knows nothing any more.`)) this._onForgotten(name);
  }

  async _drop() {
    const name = this.chosen ?? "";
    const text = `The memory of ${this._name} and its file are lost, and cannot be brought back.`;
    if (!(await askWhether(`Delete ${this._name}?`, text, "Delete"))) return;
    if (!(await this._do(this._path(), { method: "DELETE" }, ""))) return;
    this._onForgotten(name);
    const others = this._known().filter((one) => nameOf(one) !== name);
    this.choose(others.length ? nameOf(others[0]) : FIRST);
    this.said.textContent = `Deleted “${name}”.`;
  }

  // --- drawing -------------------------------------------------------------------------------------------------

  /** All sessions that are known of, the shared one first. */
  _known() {
    /** @type {Reply[]} */
    const warm = this._frame?.conversations ?? [];
    const names = new Set(warm.map(nameOf));
    const found = [...warm, ...this._cold.filter((one) => !names.has(nameOf(one)))];
    return found.sort((one, other) => Number(other.shared) - Number(one.shared) || nameOf(one).localeCompare(nameOf(other)));
  }

  /** @param {Reply} frame */
  show(frame) {
    this._frame = frame;
    const known = this._known();
    const shared = known.some((one) => one.shared);
    if (this.chosen === null) this.choose(sessionStorage.getItem(CHOSEN) ?? (shared ? SHARED : FIRST));
    if (this.chosen === SHARED && !shared && frame.state === "ready") this.choose(FIRST); // of another server's time
    const begun = known.find((one) => nameOf(one) === this.chosen);
    if (!begun) known.unshift({ session_id: this.chosen || null, shared: this.chosen === SHARED, begins: true });
    for (const [what, button] of Object.entries(this.buttons)) {
      button.disabled = !begun;
      button.hidden = this.chosen === SHARED && (what === "copy" || what === "drop");
    }
    const drawn = JSON.stringify(known.map((one) => [nameOf(one), facts(one, frame.time)])) + this.chosen;
    if (drawn === this._drawn) return; // else the focus would be lost every second
    this._drawn = drawn;
    const focused = /** @type {HTMLElement | null} */ (document.activeElement)?.dataset.session;
    fill(this.list, ...known.map((one) => this._item(one, frame.time)));
    if (focused !== undefined) {
      const again = [...this.list.querySelectorAll("button")].find((button) => button.dataset.session === focused);
      again?.focus();
    }
  }

  /**
   * @param {Reply} one
   * @param {number} now
   */
  _item(one, now) {
    const name = nameOf(one);
    const button = el("button", {
      type: "button", class: "session", "aria-pressed": String(name === this.chosen), "data-session": name,
      onclick: () => this.choose(name),
    }, el("b", { text: one.shared ? "Shared memory" : name }), el("span", { class: "faint", text: facts(one, now) }));
    return el("li", {}, button);
  }
}

/** @param {Reply} one */
const nameOf = (one) => (one.shared ? SHARED : one.session_id);

/**
 * @param {Reply} one
 * @param {number} now
 */
function facts(one, now) {
  if (one.begins) return "begins with your first message";
  const seen = one.memory ? tokens(one.memory.tokens_seen) : one.conversation_tokens ? `${count(one.conversation_tokens)} tokens` : "";
  const busy = one.busy ? "answers now" : ago(now - one.used);
  return [seen, PLACES[one.place], busy].filter(Boolean).join(" · ");
}
