// What the memory does, live: losses with and without it, the window and the context, what was recalled, the server's
// speed, its saves. Drawn from the frames that the server sends every second.

import { bytes, count, el, fill } from "../../widgets/static/explorer/dom.js";
import { LossCurve } from "../../widgets/static/lab/curves.js";
import { Run } from "../../widgets/static/lab/run.js";
import { duration, fileFacts, many, rate, tokens } from "./words.js";

/** @typedef {import("./api.js").Reply} Reply */

/** Numbers that ``Run`` wants of each token: two losses first. */
const PER_TOKEN = 20, LIKELY = 13;
const SPAN = 64;

/**
 * Losses of a session as they come, token by token as far as a second tells: all tokens of a second have its mean.
 */
class Losses {
  constructor() {
    this.run = new Run();
    this.run.smooth(SPAN);
    /** @type {Reply | null} the session as it was when last looked at */
    this._before = null;
  }

  /** Begin with another session. */
  clear() {
    this.run.clear();
    this._before = null;
  }

  /** @param {Reply | undefined} session  nothing until it begins */
  take(session) {
    const before = this._before;
    this._before = session ?? { scored_tokens: 0, loss_model_nats: 0, loss_memory_nats: 0 };
    if (!before || session?.scored_tokens === undefined || before.scored_tokens === undefined) return;
    const n = session.scored_tokens - before.scored_tokens;
    if (n <= 0) return;
    const rows = new Float32Array(n * PER_TOKEN);
    for (let at = 0; at < n; at += 1) {
      rows[at * PER_TOKEN] = (session.loss_model_nats - before.loss_model_nats) / n;
      rows[at * PER_TOKEN + 1] = (session.loss_memory_nats - before.loss_memory_nats) / n;
    }
    const buffers = [rows, new Int32Array(n * LIKELY).fill(-1)].map((numbers) => new DataView(numbers.buffer));
    this.run.take({ from: this.run.count, texts: Array(n).fill(""), names: [] }, buffers);
  }
}

/**
 * @param {string} className
 * @param {string} title
 * @param {...(Node | null)} rest
 */
function panel(className, title, ...rest) {
  return el("section", { class: `panel ${className}` }, el("h2", { text: title }), ...rest);
}

/** A bar with its words: how full something is. */
class Meter {
  /** @param {string} label */
  constructor(label) {
    this.fill = el("i");
    this.words = el("span", { class: "faint" });
    this.bar = el("span", { class: "meter", role: "img", "aria-label": label }, this.fill);
    this.root = el("div", { class: "filled" }, el("span", { text: label }), this.words, this.bar);
    this._label = label;
  }

  /**
   * @param {number | null} share
   * @param {string} words
   */
  show(share, words) {
    this.words.textContent = words;
    this.fill.style.width = `${100 * Math.max(0, Math.min(1, share ?? 0))}%`;
    this.bar.setAttribute("aria-label", `${this._label}: ${Math.round(100 * (share ?? 0))} percent`);
  }
}

/** Numbers beside each other, each with a name above and a note below. */
class Tiles {
  /** @param {[key: string, label: string][]} tiles */
  constructor(tiles) {
    /** @type {Record<string, {main: HTMLElement, small: HTMLElement, root: HTMLElement}>} */
    this._places = {};
    this.root = el("dl", { class: "headline" });
    for (const [key, label] of tiles) {
      const main = el("b", { text: "–" }), small = el("small");
      const root = el("div", { class: `tile ${key}` }, el("dt", { text: label }), el("dd", {}, main, small));
      this._places[key] = { main, small, root };
      this.root.append(root);
    }
  }

  /**
   * @param {string} key
   * @param {string} main
   * @param {string} [small]
   */
  put(key, main, small = "") {
    this._places[key].main.textContent = main;
    this._places[key].small.textContent = small;
    return this._places[key].root;
  }
}

export class Watch {
  constructor() {
    this._losses = new Losses();
    this._session = "";
    this.tiles = new Tiles([["model", "model alone"], ["memory", "with memory"], ["gap", "the memory saves"]]);
    this.curve = new LossCurve(this._losses.run, 170);
    this.note = el("p", { class: "faint", text: "" });
    this.context = new Meter("Context of the model");
    this.window = new Meter("Exact window of the memory");
    this.memoryFacts = el("p", { class: "faint" });
    this.recalled = el("div", { class: "recalled" });
    this.serverTiles = new Tiles([
      ["generated", "generated"], ["read", "read"], ["first", "first token"], ["requests", "requests"],
    ]);
    this.kv = new Meter("All contexts together");
    this.serverFacts = el("p", { class: "faint" });
    this.file = el("div", { class: "file" });
    const legend = el("ul", { class: "legend" },
      el("li", {}, el("i", { class: "swatch model" }), "model alone"),
      el("li", {}, el("i", { class: "swatch memory" }), "with memory"),
      el("li", {}, el("i", { class: "swatch gap" }), "what the memory saves"));
    this.parts = {
      loss: panel("loss", "Loss with and without the memory", this.tiles.root, this.note, legend, this.curve.canvas),
      memory: panel("memory", "Memory", this.context.root, this.window.root, this.memoryFacts),
      recalled: panel("recall", "Recalled for the last answer", this.recalled),
      server: panel("server", "Server", this.serverTiles.root, this.kv.root, this.serverFacts),
      file: panel("saves", "Memory file", this.file),
    };
    this.showAnswer(null);
    document.addEventListener("atlas-theme", () => this.curve.draw());
  }

  /**
   * Draw what the server sent.
   * @param {Reply} frame
   * @param {string} name of the session that is chosen; its record is looked for in the frame
   * @param {Reply | undefined} session
   * @param {boolean} rests whether it lies in a file
   */
  show(frame, name, session, rests) {
    if (name !== this._session) {
      this._session = name;
      this._losses.clear();
      this.showAnswer(null);
    }
    this._losses.take(session);
    this._showLosses(session);
    this._showMemory(session, rests);
    this._showServer(frame);
    fill(this.file, ...fileFacts(frame.memory_file, frame.time).map(({ text, wrong }) => el("p", { text, class: wrong && "wrong" })));
  }

  /** @param {Reply | undefined} session */
  _showLosses(session) {
    const scored = session?.scored_tokens ?? 0;
    if (!session || !scored) {
      for (const key of ["model", "memory", "gap"]) this.tiles.put(key, "–");
      this.note.textContent = "Nothing has been read yet. Say something: the curve shows how well each word was foreseen.";
    } else {
      const [model, memory] = [session.loss_model_nats / scored, session.loss_memory_nats / scored];
      const gap = model - memory;
      const less = 100 * (1 - Math.exp(-gap));
      this.tiles.put("model", model.toFixed(3), `perplexity ${Math.exp(model).toPrecision(3)}`);
      this.tiles.put("memory", memory.toFixed(3), `perplexity ${Math.exp(memory).toPrecision(3)}`);
      const tile = this.tiles.put("gap", gap.toFixed(3), `perplexity ${less >= 0 ? "−" : "+"}${Math.abs(less).toFixed(0)}\u00a0%`);
      tile.classList.toggle("worse", gap < 0);
      this.note.textContent = `Nats per token, over ${tokens(scored)} of this session. The curve begins when this page was opened.`;
    }
    this.curve.draw();
  }

  /**
   * @param {Reply | undefined} session
   * @param {boolean} rests
   */
  _showMemory(session, rests) {
    const memory = session?.memory;
    const size = session?.context_size;
    const filled = session?.context_tokens;
    this.context.show(size ? filled / size : 0, size ? `${count(filled)} of ${tokens(size)}` : "empty");
    this.window.show(
      memory?.window_size ? memory.window_tokens / memory.window_size : 0,
      memory?.window_size ? `${count(memory.window_tokens)} of ${tokens(memory.window_size)}` : "empty",
    );
    const facts = [];
    if (memory) {
      facts.push(`${tokens(memory.tokens_seen)} have gone into this memory${memory.state_bytes ? `, which takes ${bytes(memory.state_bytes)}` : ""}.`);
      if (session?.left_context_tokens) facts.push(`${tokens(session.left_context_tokens)} of the conversation have left the context.`);
      if (session?.not_unlearned_tokens) facts.push(`${tokens(session.not_unlearned_tokens)} belong to conversations that went on otherwise; they are not unlearned.`);
    } else if (rests) facts.push("This session lies in its file until it is used.");
    else if (session) facts.push("This session has no memory.");
    else facts.push("This session begins with your first message.");
    this.memoryFacts.textContent = facts.join(" ");
  }

  /**
   * Show what was recalled for an answer, and from where.
   * @param {Reply | null} atlas
   */
  showAnswer(atlas) {
    const pieces = /** @type {Reply[]} */ (atlas?.recalled ?? []);
    if (!pieces.length) {
      fill(this.recalled, el("p", { class: "faint", text: atlas?.enabled === false ? "This answer was given without a memory." : atlas ? "Nothing was recalled word for word. The memory still had its part in choosing each word." : "There is no answer yet." }));
      return;
    }
    fill(this.recalled, el("ol", {}, ...pieces.map((piece) => el("li", {},
      el("q", { text: piece.text ?? "" }),
      el("span", { class: "faint", text: place(piece) })))));
  }

  /** @param {Reply} frame */
  _showServer(frame) {
    const { tokens: did, latency, requests } = frame;
    this.serverTiles.put("generated", rate(did.generated.per_second), "tokens per second");
    this.serverTiles.put("read", rate(did.read.per_second), "tokens per second");
    this.serverTiles.put("first", duration(latency.time_to_first_token_seconds.p50), "half of all are faster");
    this.serverTiles.put("requests", count(requests.running), requests.waiting ? `and ${count(requests.waiting)} waiting` : "none waiting");
    this.kv.show(frame.kv_cache_usage_ratio, `${Math.round(100 * frame.kv_cache_usage_ratio)} %`);
    const { slot, memory, disk } = frame.sessions;
    this.serverFacts.textContent = `${many(frame.totals.requests, "request")} in ${duration(frame.uptime_seconds)}; `
      + `${many(slot + memory + disk, "session")}: ${count(slot)} in the model, ${count(memory)} in memory, ${count(disk)} on disk.`;
  }
}

/**
 * Where a piece of text was recalled from, in words.
 * @param {Reply} piece
 */
function place(piece) {
  const found = [];
  if (piece.source) found.push(String(piece.source));
  if (piece.position !== undefined) found.push(`token ${count(piece.position)}`);
  if (piece.score !== undefined) found.push(`weight ${Number(piece.score).toPrecision(2)}`);
  return found.join(" · ");
}
