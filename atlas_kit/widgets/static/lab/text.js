// The text of a run, each token coloured by how surprising it was or by what the memory saved, and one token's story:
// what was expected before it came, and who knew. Strong marks are underlined, too: nothing is told by colour alone.

import { element, thousands } from "./curves.js";

/** @typedef {import("../explorer/dom.js").Steps} Steps */
/** @typedef {import("./run.js").Run} Run */
/** @typedef {"surprise" | "saved"} Mode  of colouring */

/** Tokens that are in the page at most: the newest. */
const MOST = 6000;
/** Tokens of a block at least: the browser lays out the last block anew with each frame, and no other. It ends with a
 * line, or where no line ends for so long. */
const BLOCK = 64;
const LONGEST = 1024;
export const LEVELS = 10;
/** Nats at which a colour is strongest, and from which a token is underlined. */
const FULL = { surprise: 8, saved: 3 };
const MARKED = { surprise: 6, saved: 1 };

export const EXPERTS = ["model", "memory", "window"];
/** @type {Record<string, string>} */
const ASKED = { model: "the model", memory: "the memory", window: "the window" };

/**
 * Make white space visible where a token is named by itself.
 * @param {string} piece
 */
export function shown(piece) {
  const text = piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
  return text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

/** @param {number} p */
export function share(p) {
  if (!(p > 0)) return "0 %";
  if (p >= 0.0995) return `${Math.round(100 * p)} %`;
  return p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

/**
 * Class names of a token with two losses in nats: how strongly it is coloured, and whether it is underlined.
 * @param {Mode} mode
 * @param {number} model
 * @param {number} memory
 */
export function marks(mode, model, memory) {
  if (Number.isNaN(model)) return "none";
  const value = mode === "saved" ? model - memory : memory;
  const level = Math.min(LEVELS, Math.floor((Math.abs(value) / FULL[mode]) * LEVELS + 0.5));
  const side = mode === "saved" ? (value >= 0 ? "saved" : "cost") : "surprise";
  return `${side} l${level}${Math.abs(value) >= MARKED[mode] ? " marked" : ""}`;
}

/**
 * Who made a token likely: the greatest share of the blended probability.
 * @param {import("./run.js").Experts} experts
 */
export function helper({ parts, weights }) {
  let best = 0;
  for (let k = 1; k < 3; k += 1) if (weights[k] * parts[k] > weights[best] * parts[best]) best = k;
  return EXPERTS[best];
}

/** The text as spans, one per token (per character where several tokens make one). */
export class TextPane {
  /**
   * @param {(at: number | null, byKey: boolean) => void} onToken is told which token is looked at
   * @param {Run} run
   */
  constructor(run, onToken) {
    this.run = run;
    /** @type {Mode} */
    this.mode = "surprise";
    this.onToken = onToken;
    this.root = element("div", "tokens");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "The text, token by token. Arrow keys look at tokens, Escape follows the newest.");
    this.done = 0; // tokens that are in the page or were
    /** @type {number[][]} */
    this.passages = [];
    /** @type {Map<number, HTMLElement[]>} by the number of a character's last token; two where a block ends in it */
    this.spans = new Map();
    /** @type {number | null} */
    this.looked = null;
    /** @type {number | null} the token that it was known from */
    this.source = null;
    this.kept = false;
    this.follows = true;
    this.root.addEventListener("pointerover", (event) => this._over(event));
    this.root.addEventListener("pointerleave", () => !this.kept && this.look(null));
    this.root.addEventListener("click", (event) => this._over(event, true));
    this.root.addEventListener("keydown", (event) => this._key(event));
    this.root.addEventListener("scroll", () => this._scrolled());
  }

  clear() {
    this.root.replaceChildren();
    this.done = 0;
    this.spans.clear();
    this.looked = null;
    this.kept = false;
    this.follows = true;
  }

  _scrolled() {
    this.follows = this.root.scrollTop + this.root.clientHeight >= this.root.scrollHeight - 24;
  }

  /** Add what came since; tokens without text of their own belong to the next one that has some. */
  extend() {
    if (this.run.count < this.done) this.clear();
    const start = Math.max(this.done, this.run.count - MOST);
    if (start > this.done) {
      this.root.replaceChildren();
      this.spans.clear();
    }
    for (let at = start; at < this.run.count; at += 1) {
      const text = this.run.texts[at];
      if (text === "") continue;
      this.spans.set(at, this._cut(text).map((part) => this._span(part, at)));
    }
    this.done = this.run.count;
    this._trim();
  }

  /** Show the newest, unless the reader is elsewhere. It lays out the page: what else changes there, changes before. */
  follow() {
    if (this.follows && !this.kept) this.root.scrollTop = this.root.scrollHeight;
  }

  /**
   * Cut a token's text where a full block may end: behind a line's end.
   * @param {string} text
   */
  _cut(text) {
    const end = (this.root.lastElementChild?.childElementCount ?? 0) >= BLOCK ? text.lastIndexOf("\n") + 1 : 0;
    return end && end < text.length ? [text.slice(0, end), text.slice(end)] : [text];
  }

  /**
   * @param {string} text
   * @param {number} at
   */
  _span(text, at) {
    const span = element("span", "", text);
    span.dataset.at = String(at);
    this._paint(span, at);
    let block = this.root.lastElementChild;
    const count = block?.childElementCount ?? LONGEST;
    const ended = block?.lastElementChild?.textContent?.endsWith("\n") ?? false;
    if (!block || count >= LONGEST || (count >= BLOCK && ended)) {
      block = element("div");
      this.root.append(block);
    }
    block.append(span);
    return span;
  }

  /** Take the oldest tokens out of the page. */
  _trim() {
    while (this.spans.size > MOST && this.root.childElementCount > 1) {
      const block = this.root.firstElementChild;
      if (!block) return;
      const spans = /** @type {Iterable<HTMLElement>} */ (block.children);
      for (const span of spans) this.spans.delete(Number(span.dataset.at));
      block.remove();
    }
  }

  /**
   * The loss of a span: the sum over its tokens.
   * @param {number} at
   * @returns {[model: number, memory: number]}
   */
  _loss(at) {
    let [model, memory] = this.run.loss(at);
    for (let before = at - 1; before >= 0 && this.run.texts[before] === ""; before -= 1) {
      const loss = this.run.loss(before);
      if (Number.isNaN(loss[0])) continue;
      model += loss[0];
      memory += loss[1];
    }
    return [model, memory];
  }

  /**
   * @param {HTMLElement} span
   * @param {number} at
   */
  _paint(span, at) {
    const looked = span.classList.contains("looked");
    span.className = marks(this.mode, ...this._loss(at));
    if (looked) span.classList.add("looked");
    if (this.passages.some(([first, end]) => at >= first && at < end)) span.classList.add("passage");
  }

  /**
   * Mark where what an answer was given was read.
   * @param {number[][]} passages
   */
  mark(passages) {
    this.passages = passages;
    this.colour(this.mode);
  }

  /** @param {Mode} mode */
  colour(mode) {
    this.mode = mode;
    for (const [at, spans] of this.spans) for (const span of spans) this._paint(span, at);
  }

  /**
   * @param {Event} event
   * @param {boolean} keep
   */
  _over(event, keep = false) {
    const { at } = /** @type {HTMLElement} */ (event.target).dataset;
    if (at === undefined || (this.kept && !keep)) return;
    this.kept = keep && !(this.kept && this.looked === Number(at)); // a second click lets go
    this.look(Number(at));
  }

  /** @param {KeyboardEvent} event */
  _key(event) {
    const by = /** @type {Steps} */ ({
      ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, PageUp: -100, PageDown: 100,
    })[event.key];
    if (event.key === "Escape") {
      this.kept = false;
      this.follows = true;
      this.look(null, true);
    } else if (by) {
      this.kept = true;
      this.go((this.looked ?? this.run.count) + by, by > 0 ? 1 : -1);
    } else return;
    event.preventDefault();
    event.stopPropagation();
  }

  /**
   * Look at a token or at the nearest one in a direction that is in the page.
   * @param {number} at
   * @param {number} direction
   */
  go(at, direction = 1) {
    let near = Math.max(0, Math.min(this.run.count - 1, at));
    while (near >= 0 && near < this.run.count && !this.spans.has(near)) near += direction;
    const [span] = this.spans.get(near) ?? [];
    if (!span) return;
    const top = this.root.scrollTop + span.getBoundingClientRect().top - this.root.getBoundingClientRect().top;
    if (top < this.root.scrollTop || top > this.root.scrollTop + this.root.clientHeight - 30) {
      this.root.scrollTop = top - this.root.clientHeight / 2;
    }
    this.look(near, true);
  }

  /** @param {number | null} at */
  _spansAt(at) {
    return at === null ? [] : (this.spans.get(at) ?? []);
  }

  /**
   * @param {number | null} at
   * @param {boolean} byKey
   */
  look(at, byKey = false) {
    for (const span of this._spansAt(this.looked)) span.classList.remove("looked");
    for (const span of this._spansAt(this.source)) span.classList.remove("source");
    this.looked = at;
    this.source = at === null ? null : this.run.source(at);
    for (const span of this._spansAt(at)) span.classList.add("looked");
    for (const span of this._spansAt(this.source)) span.classList.add("source");
    this.onToken(at, byKey);
  }
}

/**
 * @param {string} className
 * @param {number} length
 * @param {string} text
 */
function bar(className, length, text) {
  const track = element("span", "track");
  const fill = element("span", `fill ${className}`);
  fill.style.width = `${100 * Math.max(0, Math.min(1, length))}%`;
  track.append(fill);
  const cell = element("span", "bar");
  cell.append(track, element("span", "value", text));
  return cell;
}

/** One token's story. */
export class Story {
  /**
   * @param {Run} run
   * @param {(at: number) => void} onGo  looks at another token
   */
  constructor(run, onGo = () => {}) {
    this.run = run;
    this.onGo = onGo;
    this.root = element("div", "story");
    this.root.tabIndex = 0; // it scrolls, and keys must reach that
  }

  /**
   * One sentence, for the ear.
   * @param {number} at
   */
  sentence(at) {
    const [model, memory] = this.run.loss(at);
    const name = shown(this.run.name(at));
    if (Number.isNaN(model)) return `${name}: nothing was expected, no text came before.`;
    const saved = model - memory;
    const change = saved >= 0 ? `saved ${saved.toFixed(2)}` : `cost ${(-saved).toFixed(2)}`;
    return `${name}: ${model.toFixed(2)} nats without the memory, ${memory.toFixed(2)} with it, ${change}; most likely by ${ASKED[helper(this.run.experts(at))]}.`;
  }

  /** @param {number | null} at */
  show(at) {
    if (at === null || at < 0 || at >= this.run.count) {
      this.root.replaceChildren(element("p", "faint", "Nothing has been read yet. Press Start."));
      return;
    }
    const [model, memory] = this.run.loss(at);
    const parts = [this._heading(at)];
    if (Number.isNaN(model)) parts.push(element("p", "faint", "Nothing was expected here: no text came before."));
    else parts.push(this._losses(model, memory), this._experts(at), ...this._because(at), this._lists(at));
    this.root.replaceChildren(...parts);
  }

  /**
   * The passage from which the window knew a token.
   * @param {number} at
   */
  _because(at) {
    const source = this.run.source(at);
    if (source < 0) return [];
    const line = element("div", "because");
    const before = this.run.texts.slice(Math.max(0, source - 14), source).join("").replaceAll("\n", "⏎").slice(-40);
    const button = element("button", "", `#${thousands(source)}`);
    button.type = "button";
    button.title = "Look at where it was read";
    button.addEventListener("click", () => this.onGo(source));
    line.append(element("span", "head", "the window knew it from"), button, element("code", "before", before), element("code", "came", shown(this.run.name(source))));
    return [line];
  }

  /** @param {number} at */
  _heading(at) {
    const line = element("div", "context");
    const before = this.run.texts.slice(Math.max(0, at - 14), at).join("").replaceAll("\n", "⏎").slice(-48);
    line.append(element("span", "number", `#${thousands(at)}`), element("code", "before", before), element("code", "came", shown(this.run.name(at))));
    return line;
  }

  /**
   * @param {number} model
   * @param {number} memory
   */
  _losses(model, memory) {
    const most = Math.max(model, memory, 4);
    const grid = element("div", "grid two");
    grid.append(element("span", "who", "model alone"), bar("model", model / most, `${model.toFixed(2)} nats`));
    grid.append(element("span", "who", "with memory"), bar("memory", memory / most, `${memory.toFixed(2)} nats`));
    return grid;
  }

  /** @param {number} at */
  _experts(at) {
    const { parts, weights } = this.run.experts(at);
    const knew = helper(this.run.experts(at));
    const grid = element("div", "grid three");
    grid.append(element("span", "head", "who"), element("span", "head", "gave it"), element("span", "head", "counts"));
    EXPERTS.forEach((who, k) => {
      grid.append(element("span", who === knew ? "who knew" : "who", who === knew ? `${who} ◂` : who));
      grid.append(bar(who, parts[k], share(parts[k])), bar("weight", weights[k], share(weights[k])));
    });
    return grid;
  }

  /** @param {number} at */
  _lists(at) {
    const lists = element("div", "lists");
    ["model expected", "with memory"].forEach((title, who) => {
      const list = element("ol");
      list.setAttribute("aria-label", title);
      for (const { name, p, came } of this.run.expected(at, who)) {
        const row = element("li", came ? "hit" : "");
        row.append(element("code", "", shown(name)), bar(who ? "memory" : "model", p, `${share(p)}${came ? " ✓" : ""}`));
        list.append(row);
      }
      const part = element("div");
      part.append(element("div", "head", title), list);
      lists.append(part);
    });
    return lists;
  }
}
