// The conversation: what was said, a place to write, and what each answer took. Text is shown as text, never as HTML.

import { el, fill } from "../../widgets/static/explorer/dom.js";
import { Refusal } from "./api.js";
import { answerFacts } from "./words.js";

/**
 * @typedef {import("./api.js").Reply} Reply
 * @typedef {import("./api.js").Server} Server
 * @typedef {{role: "user" | "assistant", content: string, facts?: string}} Message
 */

const LONGEST_ANSWER = 400;

/**
 * Where a session's words are kept: in this tab, until it is closed.
 * @param {string} name
 */
const keptAs = (name) => `atlas-said-${name}`;

export class Chat {
  /**
   * @param {Server} server
   * @param {(atlas: Reply) => void} onAnswer is given what the memory did for an answer
   */
  constructor(server, onAnswer) {
    this._server = server;
    this._onAnswer = onAnswer;
    /** @type {Reply} what chooses the memory, in the words of the API */
    this._atlas = {};
    this._kept = "";
    /** @type {Message[]} */
    this.messages = [];
    /** @type {AbortController | null} */
    this._answering = null;
    this.log = el("div", { class: "log", role: "log", tabindex: "0", "aria-label": "Conversation" });
    this.field = el("textarea", {
      id: "say", rows: "3", maxlength: "200000", "aria-describedby": "say-note",
      placeholder: "Tell the model something, or ask it.",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this._key(event),
    });
    this.send = el("button", { type: "submit", class: "main", text: "Send" });
    this.anew = el("button", {
      type: "button", text: "New conversation", onclick: () => this.startAnew(),
      title: "The model forgets what was said here; the memory does not.",
    });
    this.error = el("p", { class: "wrong", role: "alert", hidden: true });
    const form = el("form", { class: "say", onsubmit: (/** @type {Event} */ event) => this._submit(event) },
      el("label", { for: "say", class: "heard", text: "Your message" }),
      this.field,
      el("div", { class: "buttons" },
        el("span", { id: "say-note", class: "faint", text: "Enter sends, Shift and Enter begin a new line." }),
        this.anew, this.send));
    this.root = el("section", { class: "chat", "aria-label": "Chat" }, el("h2", { class: "heard", text: "Chat" }), this.log, this.error, form);
    this._draw();
  }

  /**
   * Go on with another memory, and with what was said to it in this tab.
   * @param {string} name under which what is said is kept
   * @param {Reply} atlas
   */
  use(name, atlas) {
    this.stop();
    this._atlas = atlas;
    this._kept = keptAs(name);
    try {
      this.messages = JSON.parse(sessionStorage.getItem(this._kept) ?? "[]");
    } catch {
      this.messages = [];
    }
    this._tell("");
    this._draw();
  }

  /**
   * A session knows nothing any more: what was said to it is no longer true of it.
   * @param {string} name
   */
  forget(name) {
    sessionStorage.removeItem(keptAs(name));
    if (this._kept === keptAs(name)) this.startAnew();
  }

  /** Begin a conversation without what was said: the memory stays. */
  startAnew() {
    this.stop();
    this.messages = [];
    this._keep();
    this._tell("");
    this._draw();
    this.field.focus();
  }

  stop() {
    this._answering?.abort();
    this._answering = null;
  }

  _keep() {
    if (!this._kept) return;
    try {
      sessionStorage.setItem(this._kept, JSON.stringify(this.messages));
    } catch {
      sessionStorage.removeItem(this._kept); // the tab's room is full: it is shown, and not kept
    }
  }

  /** @param {string} text */
  _tell(text) {
    this.error.textContent = text;
    this.error.hidden = !text;
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    if (event.key === "Enter" && !event.shiftKey && !event.isComposing) {
      event.preventDefault();
      this.field.form?.requestSubmit();
    } else if (event.key === "Escape" && this._answering) {
      event.preventDefault();
      this.stop();
    }
  }

  /** @param {Event} event */
  _submit(event) {
    event.preventDefault();
    if (this._answering) {
      this.stop();
      return;
    }
    const text = this.field.value.trim();
    if (!text) return;
    this.field.value = "";
    void this._say(text);
  }

  /** @param {string} text */
  async _say(text) {
    const answering = new AbortController();
    this._answering = answering;
    this._tell("");
    this.messages.push({ role: "user", content: text });
    const asked = this.messages.map(({ role, content }) => ({ role, content }));
    /** @type {Message} */
    const answer = { role: "assistant", content: "" };
    this.messages.push(answer);
    this._draw();
    const shown = /** @type {HTMLElement} */ (this.log.lastElementChild);
    const words = /** @type {HTMLElement} */ (shown.querySelector(".words"));
    this._busy(true);
    shown.classList.add("coming");
    const began = performance.now();
    let first = 0;
    /** @type {Reply | undefined} */
    let usage;
    /** @type {Reply | undefined} */
    let atlas;
    try {
      for await (const { text: piece, usage: used, atlas: did } of this._answer(asked, answering.signal)) {
        if (piece) {
          first ||= performance.now();
          answer.content += piece;
          words.append(piece);
          this._follow();
        }
        usage = used ?? usage;
        atlas = did ?? atlas;
      }
      answer.facts = answerFacts(usage, (performance.now() - (first || began)) / 1000, atlas);
    } catch (error) {
      answer.facts = answering.signal.aborted ? "Stopped." : "It was cut short.";
      if (!answering.signal.aborted) this._tell(error instanceof Refusal ? error.message : "The server cannot be reached.");
    }
    if (this._answering === answering) this._answering = null;
    else if (this.messages.at(-1) !== answer) return; // another conversation is shown by now
    if (!answer.content && answer.facts === "It was cut short.") {
      this.messages.splice(-2); // so that it can be said again
      this.field.value ||= text;
    }
    this._keep();
    this._draw();
    this._busy(false);
    if (atlas) this._onAnswer(atlas);
  }

  /** @param {boolean} busy */
  _busy(busy) {
    this.log.setAttribute("aria-busy", String(busy)); // read out when it is whole
    fill(this.send, busy ? "Stop" : "Send");
  }

  /**
   * Yield the answer's pieces, and at its end what it took.
   * @param {{role: string, content: string}[]} messages
   * @param {AbortSignal} signal
   */
  async *_answer(messages, signal) {
    const body = { messages, stream: true, stream_options: { include_usage: true }, max_tokens: LONGEST_ANSWER, atlas: this._atlas };
    for await (const part of this._server.events("/v1/chat/completions", { body, signal })) {
      yield { text: part.choices[0]?.delta?.content ?? "", usage: part.usage, atlas: part.atlas };
    }
  }

  _draw() {
    fill(this.log, ...this.messages.map((message) => this._message(message)));
    if (!this.messages.length) {
      fill(this.log, el("p", { class: "empty", text: "Nothing has been said here yet. The memory learns what you say: a new conversation still knows it." }));
    }
    this.anew.disabled = !this.messages.length;
    this.log.scrollTop = this.log.scrollHeight;
  }

  /** @param {Message} message */
  _message({ role, content, facts }) {
    return el("article", { class: `message ${role}` },
      el("h3", { text: role === "user" ? "You" : "Model" }),
      el("div", { class: "words", text: content }),
      facts ? el("p", { class: "facts faint", text: facts }) : null);
  }

  /** Stay at the end, unless somebody reads above. */
  _follow() {
    if (this.log.scrollTop + this.log.clientHeight > this.log.scrollHeight - 80) this.log.scrollTop = this.log.scrollHeight;
  }
}
