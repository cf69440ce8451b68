// The sessions of whoever looks on: each has a memory of its own. They are listed, chosen, begun, and where the server
// can do that, copied, saved, reset and deleted.

import { count, el, fill } from "../../widgets/static/explorer/dom.js";
import { ago, tokens } from "./words.js";

/** @typedef {import("./api.js").Reply} Reply */

/** The session of requests that name none. */
export const SHARED = "";
const PLACES = /** @type {Record<string, string>} */ ({ slot: "in the model", memory: "in memory", disk: "on disk" });
const CHOSEN = "atlas-session";

export class Sessions {
  /** @param {(name: string) => void} onChoose is told which session is chosen; ``SHARED`` for that without a name */
  constructor(onChoose) {
    this._onChoose = onChoose;
    /** @type {string | null} */
    this.chosen = null;
    this._drawn = "";
    this.list = el("ul", { class: "sessions" });
    this.field = el("input", {
      id: "session", maxlength: "128", autocomplete: "off", placeholder: "anna", required: true,
    });
    const form = el("form", { class: "inline", onsubmit: (/** @type {Event} */ event) => this._begin(event) },
      el("label", { for: "session", text: "New session" }), this.field, el("button", { text: "Begin" }));
    this.root = el("section", { class: "panel choose" }, el("h2", { text: "Sessions" }), this.list, form);
  }

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
    sessionStorage.setItem(CHOSEN, name);
    this._drawn = "";
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

  /** @param {Reply} frame */
  show(frame) {
    /** @type {Reply[]} */
    const known = [...frame.conversations];
    if (this.chosen === null) {
      const shared = known.some((one) => one.shared);
      this.choose(sessionStorage.getItem(CHOSEN) ?? (shared ? SHARED : "my session"));
    }
    if (!known.some((one) => nameOf(one) === this.chosen)) {
      known.unshift({ session_id: this.chosen || null, shared: this.chosen === SHARED, begins: true });
    }
    known.sort((one, other) => Number(other.shared) - Number(one.shared) || nameOf(one).localeCompare(nameOf(other)));
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
  const seen = one.memory ? tokens(one.memory.tokens_seen) : one.place === "disk" ? "" : `${count(one.conversation_tokens)} tokens`;
  const busy = one.busy ? "answers now" : ago(now - one.used);
  return [seen, PLACES[one.place], busy].filter(Boolean).join(" · ");
}
