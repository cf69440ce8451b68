// MemoryLab's pane "What it recalled": a question, its answer, and the pieces of what was read that it was given.
// What is shown of a piece is text: nothing of it becomes markup.

import { element, thousands } from "./curves.js";

/**
 * @typedef {import("../matrix/matrix.js").Model} Model
 * @typedef {{text: string, place: string, gain: number | null, score: number, at?: number | null}} Piece
 * @typedef {{question: string, text: string, done: boolean, why?: string, gate?: number | null, seconds?: number,
 *            pieces?: Piece[], others?: Piece[], rest?: string}} Answer
 */

const NAMES = ["mode", "stored", "busy", "closed", "asks", "error", "answer"];
/** @type {Record<string, string>} */
const MODES = {
  auto: "take a piece if it helps enough",
  off: "recall nothing",
  always: "take the best piece, whether it helps or not",
};

/** @param {number} value */
const signed = (value) => `${value < 0 ? "−" : "+"}${Math.abs(value).toFixed(2)}`;

/**
 * How much a piece helps: a bar with the gate in it, and the number.
 * @param {number | null} gain
 * @param {number | null} gate
 * @param {number} full
 */
function bar(gain, gate, full) {
  const root = element("span", "bar");
  if (gain === null) return root;
  const track = element("span", "track");
  const fill = element("i", gate !== null && gain < gate ? "fill model" : "fill");
  fill.style.width = `${Math.max(0, Math.min(100, (100 * gain) / full))}%`;
  track.append(fill);
  if (gate !== null) {
    const mark = element("i", "gate");
    mark.style.left = `${Math.max(0, Math.min(100, (100 * gate) / full))}%`;
    track.append(mark);
  }
  root.append(track, element("span", "value", `${signed(gain)} nats per token`));
  return root;
}

/**
 * @param {Piece[]} pieces
 * @param {number | null} gate
 */
function list(pieces, gate) {
  const full = Math.max(1e-6, ...pieces.map((piece) => Math.abs(piece.gain ?? 0)), 1.25 * (gate ?? 0));
  const root = element("ol", "pieces");
  for (const piece of pieces) {
    const item = element("li");
    const head = element("div", "from");
    const found = element("span", "faint", `found ${piece.score.toFixed(2)}`);
    found.title = "how well it was found, before the model judged it: about 1 for the best";
    head.append(element("b", "", piece.place), found, bar(piece.gain, gate, full));
    const { at } = piece;
    if (at !== null && at !== undefined) {
      const button = element("button", "", `read at #${thousands(at)}`);
      button.type = "button";
      button.title = "Show it in the text";
      button.addEventListener("click", () => button.dispatchEvent(new CustomEvent("atlas-show", { bubbles: true, detail: at })));
      head.append(button);
    }
    item.append(head, element("pre", "", piece.text.replace(/^\n+|\s+$/g, "")));
    root.append(item);
  }
  return root;
}

class View {
  /**
   * @param {Model} model
   * @param {Element} el
   */
  constructor(model, el) {
    this.model = model;
    this.root = element("div", "atlas-recall");
    const part = element("section");
    const head = element("div", "title");
    this.stored = element("span", "faint");
    head.append(element("h4", "", "What it recalled"), this.stored);
    this.form = element("form", "asking");
    this.question = element("input");
    this.question.type = "text";
    this.question.placeholder = "Ask about what was read";
    this.question.setAttribute("aria-label", "Question");
    this.question.spellcheck = false;
    this.mode = element("select");
    this.mode.setAttribute("aria-label", "Recall");
    for (const mode of model.get("modes")) {
      const option = element("option", "", `recall ${mode}`);
      option.value = mode;
      option.title = MODES[mode] ?? "";
      this.mode.append(option);
    }
    this.ask = element("button", "", "Ask");
    this.ask.type = "submit";
    this.stop = element("button", "", "Stop");
    this.stop.type = "button";
    this.form.append(this.question, this.mode, this.ask, this.stop);
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      if (this.question.value.trim()) model.send({ kind: "ask", question: this.question.value });
    });
    this.form.addEventListener("keydown", (event) => {
      if (event.key === "Escape" && model.get("busy")) model.send({ kind: "stop" });
      event.stopPropagation(); // a notebook has its own use for keys
    });
    this.stop.addEventListener("click", () => model.send({ kind: "stop" }));
    this.mode.addEventListener("change", () => {
      model.set("mode", this.mode.value);
      model.save_changes();
    });
    this.said = element("p", "said");
    this.said.setAttribute("role", "status");
    this.error = element("p", "error");
    this.error.setAttribute("role", "alert");
    this.answer = element("div", "answer");
    part.append(head, this.form, this.said, this.error, this.answer);
    this.root.append(part);
    el.append(this.root);
    this.show();
    this.tell();
  }

  /** How things stand: what can be pressed, and what is said. */
  tell() {
    const get = (/** @type {string} */ name) => this.model.get(name);
    const stored = get("stored");
    const off = get("closed") || stored < 0;
    const answer = /** @type {Answer} */ (get("answer"));
    const unknown = stored < 0 || (!get("asks") && !answer.question);
    this.stored.textContent = unknown ? "" : `${thousands(stored)} tokens can be found again`;
    this.form.hidden = !get("asks");
    this.mode.value = get("mode");
    for (const control of [this.question, this.mode, this.ask]) control.disabled = off;
    this.stop.hidden = !get("busy");
    if (get("busy")) this.said.textContent = answer.done === false ? "Answering …" : "Looking for it …";
    else if (stored < 0) this.said.textContent = "This memory keeps no text: episode_tokens is 0.";
    else this.said.textContent = answer.question ? answer.why || "" : "Nothing has been asked yet.";
    this.said.hidden = !this.said.textContent;
    this.error.textContent = get("error");
    this.error.hidden = !get("error");
  }

  /** What came of the last question. */
  show() {
    const answer = /** @type {Answer} */ (this.model.get("answer"));
    this.answer.hidden = !answer.question;
    if (!answer.question) return;
    const text = element("p", "text", answer.text || (answer.done ? "(it said nothing)" : ""));
    text.tabIndex = 0; // a long one scrolls
    /** @type {HTMLElement[]} */
    const parts = [element("p", "asked", answer.question), text];
    const [pieces, others, gate] = [answer.pieces ?? [], answer.others ?? [], answer.gate ?? null];
    if (pieces.length) parts.push(element("p", "faint", "It was given:"), list(pieces, gate));
    if (others.length) {
      const folded = element("details");
      folded.append(element("summary", "", answer.rest), list(others, gate));
      parts.push(folded);
    }
    this.answer.replaceChildren(...parts);
  }
}

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const view = new View(model, el);
  const tell = () => view.tell();
  const show = () => view.show();
  for (const name of NAMES) model.on(`change:${name}`, tell);
  model.on("change:answer", show);
  return () => {
    for (const name of NAMES) model.off(`change:${name}`, tell);
    model.off("change:answer", show);
    view.root.remove();
  };
}

export default { render };
