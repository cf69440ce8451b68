// What the memory does, live: losses with and without it, the window and the context, what was recalled, the server's
// speed, its saves. Drawn from the frames that the server sends every second.

import { bytes, count, el, fill } from "../../widgets/static/explorer/dom.js";
import { LossCurve, lowered, times } from "../../widgets/static/lab/curves.js";
import { Run } from "../../widgets/static/lab/run.js";
import { Story, TextPane } from "../../widgets/static/lab/text.js";
import { bytesOf, isNoAnswer } from "./api.js";
import { MemoryMatrix } from "./matrix.js";
import { seen, untilUnseen } from "./seen.js";
import { shadesIn, worth } from "./shades.js";
import { duration, keptFacts, many, rate, tokens } from "./words.js";

/**
 * @typedef {import("./api.js").Reply} Reply
 * @typedef {import("./api.js").Server} Server
 * @typedef {import("../../widgets/static/lab/text.js").Mode} Mode
 */

/** Tokens of the running mean. */
const SPAN = 64;
/** Milliseconds until the server is asked again that did not answer. */
const AGAIN_MS = 2000;
/** Milliseconds that tokens are taken in without being seen; afterwards the text begins anew. */
const UNSEEN_MS = 60_000;
/** How often, and after how many milliseconds each, the trace of an answer is waited for: a busy server sends it late. */
const TRACE_TRIES = 480, TRACE_MS = 250;

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
  /** @param {Server} server */
  constructor(server) {
    this._server = server;
    this.run = new Run();
    this.run.smooth(SPAN);
    /** @type {AbortController | null} what ends looking at the session that was chosen before */
    this._looking = null;
    /** @type {string | null} */
    this._session = null;
    this.tiles = new Tiles([["model", "model alone"], ["memory", "with memory"], ["gap", "the memory saves"]]);
    this.curve = new LossCurve(this.run, 170);
    this.lead = el("p", { class: "lead" });
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
    this.matrix = new MemoryMatrix(server);
    const legend = el("ul", { class: "legend" },
      el("li", {}, el("i", { class: "swatch model" }), "model alone"),
      el("li", {}, el("i", { class: "swatch memory" }), "with memory"),
      el("li", {}, el("i", { class: "swatch gap" }), "what the memory saves"));
    /** what is empty until something has been read */
    this._later = el("div", {}, legend, this.curve.canvas);
    this.parts = {
      loss: panel("loss", "What the memory is worth", this.lead, this.tiles.root, this._later, this.note),
      memory: panel("memory", "Memory", this.context.root, this.window.root, this.memoryFacts, this.matrix.root),
      recalled: panel("recall", "Recalled for the last answer", this.recalled),
      server: panel("server", "Server", this.serverTiles.root, this.kv.root, this.serverFacts),
      file: panel("saves", "What is kept", this.file),
      text: el("section"),
    };
    this.story = new Story(this.run);
    this.text = new TextPane(this.run, (at, byKey) => {
      this.story.show(at ?? this.run.count - 1);
      if (byKey && at !== null) this.heard.textContent = this.story.sentence(at);
    });
    this.curve.onCursor = (at, byKey) => {
      if (at === null) return;
      const [model, memory] = this.run.running(at);
      if (byKey) this.heard.textContent = `Token ${count(at)}: model ${model.toFixed(2)}, with memory ${memory.toFixed(2)} nats`;
      this.text.look(at);
    };
    this.heard = el("p", { class: "heard", "aria-live": "polite" });
    this.parts.text = panel("read", "Token by token", this._modes(), this.text.root, this.story.root, this.heard);
    this.showAnswer(null);
    this._drawRun();
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
      this.showAnswer(null);
      this._looking?.abort();
      this._looking = new AbortController();
      this._clear();
      void this._look(name, this._looking.signal);
    }
    this._showLosses(session);
    this._showMemory(session, rests);
    this.matrix.show(name, session?.memory);
    this._showServer(frame);
    fill(this.file, ...keptFacts(frame.memory_file, frame.time, frame.sessions_outlive_a_restart).map(({ text, wrong }) => el("p", { text, class: wrong && "wrong" })));
  }

  /** What the text is coloured by. */
  _modes() {
    const group = el("div", { class: "choice", role: "group", "aria-label": "Colour the text by" });
    for (const [mode, words] of /** @type {[Mode, string][]} */ ([["surprise", "surprise"], ["saved", "saved by memory"]])) {
      const button = el("button", {
        type: "button", text: words, "aria-pressed": String(mode === this.text.mode),
        onclick: () => {
          for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
          this.text.colour(mode);
        },
      });
      group.append(button);
    }
    return group;
  }

  _clear() {
    this.run.clear();
    this.text.clear();
    this._drawRun();
  }

  _drawRun() {
    this._later.hidden = this.text.root.hidden = !this.run.count;
    this.text.extend();
    if (this.text.looked === null) this.story.show(this.run.count - 1);
    if (!this.run.count) fill(this.story.root, el("p", { class: "faint", text: "What the model reads and says from now on is shown here, with what was expected of each token." }));
    this.curve.draw();
  }

  /**
   * Take in what a session reads, token by token, for as long as it is chosen.
   * @param {string} name
   * @param {AbortSignal} signal
   */
  async _look(name, signal) {
    const query = name ? `?session_id=${encodeURIComponent(name)}` : "";
    while (!signal.aborted) {
      await seen();
      const looking = untilUnseen(UNSEEN_MS, signal);
      try {
        for await (const piece of this._server.events(`/v1/atlas/trace${query}`, { signal: looking.signal })) {
          if (piece.object === "atlas.recalled") {
            this.showAnswer(piece); // also of an answer that was asked for elsewhere
            continue;
          }
          if (piece.from === 0) this._clear();
          const message = { from: piece.from, texts: piece.texts, names: piece.names };
          this.run.take(message, [piece.rows, piece.tokens, piece.sources].map(bytesOf));
          this._drawRun();
        }
      } catch (error) {
        if (!looking.signal.aborted && !isNoAnswer(error)) throw error;
      } finally {
        looking.abort();
      }
      await new Promise((resolve) => setTimeout(resolve, AGAIN_MS));
    }
  }

  /** @param {Reply | undefined} session */
  _showLosses(session) {
    const scored = session?.scored_tokens ?? 0;
    if (!session || !scored) {
      for (const key of ["model", "memory", "gap"]) this.tiles.put(key, "–");
      this.lead.textContent = "Say something: here you see how well each word was foreseen, by the model alone and with its memory.";
      this.note.textContent = "";
    } else {
      const [model, memory] = [session.loss_model_nats / scored, session.loss_memory_nats / scored];
      const gap = model - memory;
      const less = 100 * (1 - Math.exp(-gap));
      this.tiles.put("model", model.toFixed(3), `perplexity ${times(Math.exp(model))}`);
      this.tiles.put("memory", memory.toFixed(3), `perplexity ${times(Math.exp(memory))}`);
      const tile = this.tiles.put("gap", gap.toFixed(3), `perplexity ${lowered(less)}`);
      tile.classList.toggle("worse", gap < 0);
      this.lead.textContent = Math.round(less) === 0
        ? "So far the memory makes no difference to this session."
        : gap > 0 ? `With its memory, the model is ${less.toFixed(0)}\u00a0% less perplexed by this session.`
        : `So far the memory makes the model ${Math.abs(less).toFixed(0)}\u00a0% more perplexed by this session.`;
      this.note.textContent = `Nats per token, over ${tokens(scored)} of this session.`
        + (this.run.count ? "" : " A curve begins with what is said from now on.");
    }
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
      if (session?.not_unlearned_tokens) facts.push(`${tokens(session.not_unlearned_tokens)} were read or said in conversations that went on otherwise; what was learned of them stays.`);
    } else if (rests) facts.push("This session lies in its file until it is used.");
    else if (session) facts.push("This session has no memory.");
    else facts.push("This session begins with your first message.");
    this.memoryFacts.textContent = facts.join(" ");
  }

  /** Where the trace is now, for ``explain``. */
  mark() {
    return this.run.count;
  }

  /**
   * Return what the memory did for texts that were read and said since a mark; null where the trace does not have them.
   * @param {number} mark
   * @param {string[]} texts in their order
   */
  async explain(mark, texts) {
    for (let tries = 0, count = -1; tries < TRACE_TRIES; tries += 1) {
      await new Promise((resolve) => setTimeout(resolve, TRACE_MS));
      if (this.run.count === count) continue; // nothing has come
      count = this.run.count;
      const found = shadesIn(this.run, mark, texts);
      if (found) return { shades: found, worth: worth(this.run, mark) };
    }
    return null;
  }

  /**
   * Show what was recalled for an answer, and from where.
   * @param {Reply | null} atlas
   */
  showAnswer(atlas) {
    const pieces = /** @type {Reply[]} */ (atlas?.recalled ?? []);
    if (!pieces.length) {
      fill(this.recalled, el("p", { class: "faint", text: nothingRecalled(atlas) }));
      return;
    }
    fill(this.recalled, el("ol", {}, ...pieces.map((piece) => el("li", {},
      el("q", { text: (piece.text ?? "").trim() }),
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
    const { sequence, memory, file } = frame.sessions;
    this.serverFacts.textContent = `${many(frame.totals.requests, "request")} in ${duration(frame.uptime_seconds)}; `
      + `${many(sequence + memory + file, "session")} since the start: ${count(sequence)} in the model, ${count(memory)} in memory, ${count(file)} on disk.`;
  }
}

/** Whose words a turn is. */
const SPEAKERS = /** @type {Record<string, string>} */ ({ user: "you said", assistant: "the model said", tool: "a tool said", system: "instructions" });

/** @param {number} value */
const rounded = (value) => (value < 10 ? value.toFixed(1) : Number(value.toPrecision(2)).toLocaleString("en"));

/**
 * What a gain in nats means for the question, in words.
 * @param {number} gain
 */
const likelier = (gain) =>
  `${rounded(Math.exp(Math.abs(gain)))} times ${gain < 0 ? "less likely" : "likelier"}`;

/**
 * Where a piece of text was recalled from, in words.
 * @param {Reply} piece
 */
function place(piece) {
  const found = [];
  if (piece.kind && piece.kind !== "document") found.push(SPEAKERS[piece.kind] ?? String(piece.kind));
  else found.push(piece.source ? String(piece.source) : "a text");
  if (piece.kind === "document" && piece.line) found.push(`line ${count(piece.line)}`);
  if (piece.time_ms) found.push(new Date(piece.time_ms).toLocaleString([], { dateStyle: "medium", timeStyle: "short" }));
  if (typeof piece.gain === "number") found.push(`makes the question ${likelier(piece.gain)} per token`);
  return found.join(" · ");
}

/**
 * Why nothing was recalled word for word, in words.
 * @param {Reply | null} atlas
 */
function nothingRecalled(atlas) {
  if (!atlas) return "There is no answer yet.";
  if (atlas.enabled === false) return "This answer was given without a memory.";
  const judged = atlas.recall?.judged;
  const why = judged ? `Nothing that was read or said earlier helps with this question; ${many(judged, "piece")} ${judged === 1 ? "was" : "were"} looked at.` : "Nothing was recalled word for word.";
  return `${why} ${atlas.blend_ratio_actual === 0 ? "So the model answered by itself." : "The memory still had its part in choosing each word."}`;
}
