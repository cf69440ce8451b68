// The conversation: what was said, a place to write, and what each answer took. Text is shown as text, never as HTML.

import { el, fill } from "../../widgets/static/explorer/dom.js";
import { Refusal } from "./api.js";
import { answerFacts, tokens, worthFacts } from "./words.js";

/**
 * @typedef {import("./api.js").Reply} Reply
 * @typedef {import("./api.js").Server} Server
 * @typedef {import("./shades.js").Shade} Shade
 * @typedef {import("./shades.js").Worth} Worth
 * @typedef {{role: "user" | "assistant", content: string, facts?: string, shades?: Shade[], worth?: Worth | null,
 *            alone?: string}} Message  ``alone``: what the model says there without the memory
 * @typedef {{mark: () => number, showAnswer: (atlas: Reply) => void,
 *            explain: (mark: number, texts: string[]) => Promise<{shades: Shade[][], worth: Worth | null} | null>}} Looker
 */

const LONGEST_ANSWER = 400;
/** Characters that a message may have. */
const LONGEST_MESSAGE = 200_000;

/**
 * Where a session's words are kept: in this tab, until it is closed.
 * @param {string} name
 */
const keptAs = (name) => `atlas-said-${name}`;

export class Chat {
  /**
   * @param {Server} server
   * @param {Looker} looker shows what the memory did for an answer, and says where
   */
  constructor(server, looker) {
    this._server = server;
    this._looker = looker;
    this._known = 0;
    /** @type {Reply} what chooses the memory, in the words of the API */
    this._atlas = {};
    this._kept = "";
    /** @type {Message[]} */
    this.messages = [];
    /** @type {AbortController | null} */
    this._answering = null;
    this.log = el("div", { class: "log", role: "log", tabindex: "0", "aria-label": "Conversation" });
    this.field = el("textarea", {
      id: "say", rows: "2", maxlength: String(LONGEST_MESSAGE), "aria-describedby": "say-note",
      placeholder: "Tell the model something, or ask it.",
      onkeydown: (/** @type {KeyboardEvent} */ event) => this._key(event),
    });
    this.send = el("button", { type: "submit", class: "main", text: "Send" });
    this.anew = el("button", {
      type: "button", text: "New conversation", onclick: () => this.startAnew(),
      title: "The model forgets what was said here; the memory does not.",
    });
    const picker = el("input", { type: "file", accept: "text/*,.md,.py,.js,.json,.csv,.log,.toml,.yaml", hidden: true });
    picker.addEventListener("change", () => {
      void this._read(picker.files?.[0]);
      picker.value = ""; // so that the same one can be chosen again
    });
    const file = el("button", { type: "button", text: "Text file", title: "Take a message from a file of yours", onclick: () => picker.click() });
    this.error = el("p", { class: "wrong", role: "alert", hidden: true });
    const form = el("form", { class: "say", onsubmit: (/** @type {Event} */ event) => this._submit(event) },
      el("label", { for: "say", class: "heard", text: "Your message" }),
      this.field,
      el("div", { class: "buttons" },
        el("span", { id: "say-note", class: "faint", text: "Enter sends, Shift and Enter begin a new line." }),
        picker, file, this.anew, this.send));
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
    this._busy(false);
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

  /**
   * Put the text of a file behind what is written already.
   * @param {File | undefined} file
   */
  async _read(file) {
    if (!file) return;
    this._tell("");
    const room = LONGEST_MESSAGE - this.field.value.length - 1;
    const text = file.size > 4 * room ? "" : await file.text(); // no letter takes more than four bytes
    if (!text || text.length > room) this._tell(text || file.size ? `${file.name} is too long for one message.` : `${file.name} is empty.`);
    else if (text.includes("\0")) this._tell(`${file.name} holds no text.`);
    else this.field.value = [this.field.value, text].filter(Boolean).join("\n");
    this.field.focus();
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
    const mark = this._looker.mark();
    /** @type {Message} */
    const answer = { role: "assistant", content: "" };
    this.messages.push(answer);
    this._draw();
    const shown = /** @type {HTMLElement} */ (this.log.lastElementChild);
    const words = /** @type {HTMLElement} */ (shown.querySelector(".words"));
    this._busy(true);
    shown.classList.add("coming");
    const began = performance.now();
    let first = 0, cut = false;
    /** @type {Reply | undefined} */
    let usage;
    /** @type {Reply | undefined} */
    let atlas;
    try {
      for await (const { text: piece, usage: used, atlas: did, why } of this._answer(asked, answering.signal)) {
        if (piece) {
          first ||= performance.now();
          answer.content += piece;
          words.append(piece);
          this._follow();
        }
        usage = used ?? usage;
        atlas = did ?? atlas;
        cut ||= why === "length";
      }
      answer.facts = answerFacts(usage, (performance.now() - (first || began)) / 1000, atlas, cut);
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
    if (atlas) this._looker.showAnswer(atlas);
    if (atlas?.enabled && answer.content) void this._explain(mark, answer);
  }

  /**
   * Shade what the memory foresaw of an answer and of what was said before it.
   * @param {number} mark
   * @param {Message} answer
   */
  async _explain(mark, answer) {
    const asked = this.messages[this.messages.indexOf(answer) - 1];
    const found = await this._looker.explain(mark, [asked.content, answer.content]);
    if (!found || !this.messages.includes(answer)) return;
    [asked.shades, answer.shades] = found.shades;
    answer.worth = found.worth;
    this._keep();
    for (const message of [asked, answer]) this._redraw(message);
  }

  /**
   * Let the model answer once more, and without the memory, which hears nothing of it.
   * @param {Message} message
   */
  async _askAlone(message) {
    const at = this.messages.indexOf(message);
    if (at < 0 || this._answering) return;
    const answering = new AbortController();
    this._answering = answering;
    this._tell("");
    message.alone = "";
    this._redraw(message);
    this.field.focus();
    this._busy(true);
    try {
      const asked = this.messages.slice(0, at).map(({ role, content }) => ({ role, content }));
      for await (const { text } of this._answer(asked, answering.signal, { enabled: false })) {
        message.alone += text;
        this.log.children[at]?.querySelector(".alone .words")?.append(text); // it may have been drawn again
        this._follow();
      }
    } catch (error) {
      if (!answering.signal.aborted) this._tell(error instanceof Refusal ? error.message : "The server cannot be reached.");
    }
    if (this._answering === answering) this._answering = null;
    if (!message.alone) delete message.alone;
    if (!this.messages.includes(message)) return; // another conversation is shown by now
    this._keep();
    this._redraw(message);
    this._busy(false);
  }

  /** @param {Message} message */
  _redraw(message) {
    const atEnd = this._atEnd;
    this.log.children[this.messages.indexOf(message)].replaceWith(this._message(message));
    if (atEnd) this.log.scrollTop = this.log.scrollHeight;
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
   * @param {Reply} [atlas] which memory
   */
  async *_answer(messages, signal, atlas = this._atlas) {
    const body = { messages, stream: true, stream_options: { include_usage: true }, max_tokens: LONGEST_ANSWER, atlas };
    for await (const part of this._server.events("/v1/chat/completions", { body, signal })) {
      yield { text: part.choices[0]?.delta?.content ?? "", usage: part.usage, atlas: part.atlas, why: part.choices[0]?.finish_reason };
    }
  }

  _draw() {
    fill(this.log, ...this.messages.map((message) => this._message(message)));
    if (!this.messages.length) fill(this.log, this._welcome());
    this.anew.disabled = !this.messages.length;
    this.log.scrollTop = this.log.scrollHeight;
  }

  /**
   * Take note of how many tokens are in the memory of this session.
   * @param {number} known
   */
  know(known) {
    if (known === this._known) return;
    this._known = known;
    if (!this.messages.length) fill(this.log, this._welcome());
  }

  /** What stands where nothing has been said: how the memory can be seen at work. */
  _welcome() {
    const steps = [
      "Tell the model something that it cannot know: a name, a colour, a text file of yours.",
      "Begin a new conversation. The model forgets what was said, the memory does not.",
      "Ask for it in other words. What the memory foresaw is shaded, in your words and in the answers.",
    ];
    const known = this._known ? `The memory of this session holds ${tokens(this._known)} of what was said before.` : "Nothing has been said here yet.";
    return el("div", { class: "empty" },
      el("h3", { text: "A model with a memory" }), el("p", { text: known }),
      el("ol", {}, ...steps.map((text) => el("li", { text }))));
  }

  /** @param {Message} message */
  _message(message) {
    const { role, content, facts, shades, worth, alone } = message;
    const helped = worthFacts(worth, Boolean(shades?.length));
    const ask = el("button", {
      type: "button", class: "quiet", text: "Answer without the memory",
      title: "What the model says here by itself. The memory does not hear of it.", onclick: () => this._askAlone(message),
    });
    return el("article", { class: `message ${role}` },
      el("h3", { text: role === "user" ? "You" : "Model" }),
      el("div", { class: "words" }, ...shaded(content, shades ?? [])),
      facts ? el("p", { class: "facts faint", text: facts }) : null,
      helped ? el("p", { class: "worth faint" }, shades?.length ? el("i", { class: "swatch" }) : null, helped) : null,
      role === "assistant" && facts && content && alone === undefined ? ask : null,
      alone === undefined ? null : el("div", { class: "alone" }, el("h4", { text: "The model without the memory" }), el("div", { class: "words", text: alone })));
  }

  get _atEnd() {
    return this.log.scrollTop + this.log.clientHeight > this.log.scrollHeight - 80;
  }

  /** Stay at the end, unless somebody reads above. */
  _follow() {
    if (this._atEnd) this.log.scrollTop = this.log.scrollHeight;
  }
}

/**
 * A text with its shades: the more the memory helped, the stronger.
 * @param {string} text
 * @param {Shade[]} shades
 */
function shaded(text, shades) {
  /** @type {(string | HTMLElement)[]} */
  const found = [];
  let at = 0;
  for (const [start, end, nats] of shades) {
    const times = Math.exp(nats);
    const title = `${times < 10 ? times.toFixed(1) : Math.round(times).toLocaleString("en")} times likelier with the memory`;
    found.push(text.slice(at, start), el("mark", { class: nats < 1 ? "some" : nats < 2.5 ? "more" : "most", title, text: text.slice(start, end) }));
    at = end;
  }
  return [...found, text.slice(at)];
}
