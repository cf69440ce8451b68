// The text of a run, each token coloured by how surprising it was or by what the memory saved, and one token's story:
// what was expected before it came, and who knew. Strong marks are underlined, too: nothing is told by colour alone.

import { element, thousands } from "./curves.js";

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
const ASKED = { model: "the model", memory: "the memory", window: "the window" };

/** Make white space visible where a token is named by itself. */
export function shown(piece) {
  const text = piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replaceAll("\r", "␍");
  return text.replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

export function share(p) {
  if (!(p > 0)) return "0 %";
  if (p >= 0.0995) return `${Math.round(100 * p)} %`;
  return p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

/**
 * Class names of a token with two losses in nats: how strongly it is coloured, and whether it is underlined.
 * @param {"surprise"|"saved"} mode
 */
export function marks(mode, model, memory) {
  if (Number.isNaN(model)) return "none";
  const value = mode === "saved" ? model - memory : memory;
  const level = Math.min(LEVELS, Math.floor((Math.abs(value) / FULL[mode]) * LEVELS + 0.5));
  const side = mode === "saved" ? (value >= 0 ? "saved" : "cost") : "surprise";
  return `${side} l${level}${Math.abs(value) >= MARKED[mode] ? " marked" : ""}`;
}

/** Who made a token likely: the greatest share of the blended probability. */
export function helper({ parts, weights }) {
  let best = 0;
  for (let k = 1; k < 3; k += 1) if (weights[k] * parts[k] > weights[best] * parts[best]) best = k;
  return EXPERTS[best];
}

/** The text as spans, one per token (per character where several tokens make one). */
export class TextPane {
  /** @param {(at: number | null, byKey: boolean) => void} onToken is told which token is looked at */
  constructor(run, onToken) {
    this.run = run;
    this.mode = "surprise";
    this.onToken = onToken;
    this.root = element("div", "tokens");
    this.root.tabIndex = 0;
    this.root.setAttribute("role", "group");
    this.root.setAttribute("aria-label", "The text, token by token. Arrow keys look at tokens, Escape follows the newest.");
    this.clear();
    this.root.addEventListener("pointerover", (event) => this._over(event));
    this.root.addEventListener("pointerleave", () => !this.kept && this.look(null));
    this.root.addEventListener("click", (event) => this._over(event, true));
    this.root.addEventListener("keydown", (event) => this._key(event));
    this.root.addEventListener("scroll", () => this._scrolled());
  }

  clear() {
    this.root.replaceChildren();
    this.done = 0; // tokens that are in the page or were
    this.first = 0; // the first that still is
    /** @type {Map<number, HTMLElement[]>} by the number of a character's last token; two where a block ends in it */
    this.spans = new Map();
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
    if (this.follows && !this.kept) this.root.scrollTop = this.root.scrollHeight;
  }

  /** Cut a token's text where a full block may end: behind a line's end. */
  _cut(text) {
    const end = (this.root.lastElementChild?.childElementCount ?? 0) >= BLOCK ? text.lastIndexOf("\n") + 1 : 0;
    return end && end < text.length ? [text.slice(0, end), text.slice(end)] : [text];
  }

  _span(text, at) {
    const span = element("span", "", text);
    span.dataset.at = at;
    this._paint(span, at);
    let block = this.root.lastElementChild;
    const count = block?.childElementCount ?? LONGEST;
    if (count >= LONGEST || (count >= BLOCK && block.lastElementChild.textContent.endsWith("\n"))) {
      block = element("div");
      this.root.append(block);
    }
    block.append(span);
    return span;
  }

  /** Take the oldest tokens out of the page. */
  _trim() {
    while (this.spans.size > MOST && this.root.childElementCount > 1) {
      for (const span of this.root.firstElementChild.children) this.spans.delete(Number(span.dataset.at));
      this.root.firstElementChild.remove();
    }
  }

  /** The loss of a span: the sum over its tokens. */
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

  _paint(span, at) {
    const looked = span.classList.contains("looked");
    span.className = marks(this.mode, ...this._loss(at));
    if (looked) span.classList.add("looked");
  }

  colour(mode) {
    this.mode = mode;
    for (const [at, spans] of this.spans) for (const span of spans) this._paint(span, at);
  }

  _over(event, keep = false) {
    const at = event.target.dataset?.at;
    if (at === undefined || (this.kept && !keep)) return;
    this.kept = keep && !(this.kept && this.looked === Number(at)); // a second click lets go
    this.look(Number(at));
  }

  _key(event) {
    const by = { ArrowLeft: -1, ArrowRight: 1, ArrowUp: -10, ArrowDown: 10, PageUp: -100, PageDown: 100 }[event.key];
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

  /** Look at a token or at the nearest one in a direction that is in the page. */
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

  look(at, byKey = false) {
    for (const span of this.spans.get(this.looked) ?? []) span.classList.remove("looked");
    this.looked = at;
    for (const span of this.spans.get(at) ?? []) span.classList.add("looked");
    this.onToken(at, byKey);
  }
}

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
  constructor(run) {
    this.run = run;
    this.root = element("div", "story");
  }

  /** One sentence, for the ear. */
  sentence(at) {
    const [model, memory] = this.run.loss(at);
    const name = shown(this.run.name(at));
    if (Number.isNaN(model)) return `${name}: nothing was expected, no text came before.`;
    const saved = model - memory;
    const change = saved >= 0 ? `saved ${saved.toFixed(2)}` : `cost ${(-saved).toFixed(2)}`;
    return `${name}: ${model.toFixed(2)} nats without the memory, ${memory.toFixed(2)} with it, ${change}; most likely by ${ASKED[helper(this.run.experts(at))]}.`;
  }

  show(at) {
    if (at === null || at < 0 || at >= this.run.count) {
      this.root.replaceChildren(element("p", "faint", "Nothing has been read yet. Press Start."));
      return;
    }
    const [model, memory] = this.run.loss(at);
    const parts = [this._heading(at)];
    if (Number.isNaN(model)) parts.push(element("p", "faint", "Nothing was expected here: no text came before."));
    else parts.push(this._losses(model, memory), this._experts(at), this._lists(at));
    this.root.replaceChildren(...parts);
  }

  _heading(at) {
    const line = element("div", "context");
    const before = this.run.texts.slice(Math.max(0, at - 14), at).join("").replaceAll("\n", "⏎").slice(-48);
    line.append(element("span", "number", `#${thousands(at)}`), element("code", "before", before), element("code", "came", shown(this.run.name(at))));
    return line;
  }

  _losses(model, memory) {
    const most = Math.max(model, memory, 4);
    const grid = element("div", "grid two");
    grid.append(element("span", "who", "model alone"), bar("model", model / most, `${model.toFixed(2)} nats`));
    grid.append(element("span", "who", "with memory"), bar("memory", memory / most, `${memory.toFixed(2)} nats`));
    return grid;
  }

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
