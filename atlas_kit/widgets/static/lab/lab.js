// MemoryLab's live view: a learning memory as numbers, curves, a coloured text, and the story of one token.
// The kernel sends frames and waits for each to be drawn; a view that opens asks for everything again, until it comes.

import { GONE, isGone } from "../before.js";
import { element, LossCurve, lowered, SpectrumCurve, thousands, times, WeightCurve } from "./curves.js";
import { film } from "./film.js";
import { tendWholes } from "../wholes.js";
import { Run } from "./run.js";
import { EXPERTS, LEVELS, share, Story, TextPane } from "./text.js";

/**
 * @typedef {import("../matrix/matrix.js").Model} Model
 * @typedef {import("./text.js").Mode} Mode
 * @typedef {{total: number, at: number, context: number, window: number, window_size: number, learning_rate: number,
 *            learning_rate_set: number, speed: number}} Facts  of the memory and of the text that it reads
 * @typedef {{kind: string, number: number, facts: Facts, from: number, texts: string[],
 *            names: [number, string][]}} Frame
 */

const SPANS = [64, 256, 1024];
/** What stands below the curves, one at a time, and how it is called. */
const PANES = /** @type {[string, string][]} */ ([
  ["text", "Text"],
  ["recall", "Recall"],
  ["matrix", "Matrix"],
  ["weights", "Weights"],
]);
/** Milliseconds that the newest token's story stays. */
const STORY = 400;
/** Milliseconds until a greeting that was not answered is repeated, each time twice as long, and at most so long. */
const [SOON, LATE] = [1000, 8000];
/** Greetings without an answer, after which the reader is told. */
const PATIENT = 3;

/**
 * @param {string} className
 * @param {string} title
 * @param {...HTMLElement} rest
 */
function titled(className, title, ...rest) {
  const part = element("section", className);
  const head = element("div", "title");
  head.append(element("h4", "", title), ...rest);
  part.append(head);
  return part;
}

/**
 * A choice of one among several, as buttons.
 * @template {unknown} V
 * @param {string} name
 * @param {[V, string][]} options
 * @param {V} chosen
 * @param {(value: V) => void} onChoose
 */
function choice(name, options, chosen, onChoose) {
  const group = element("div", "choice");
  group.setAttribute("role", "group");
  group.setAttribute("aria-label", name);
  for (const [value, text] of options) {
    const button = element("button", "", text);
    button.type = "button";
    button.setAttribute("aria-pressed", String(value === chosen));
    button.addEventListener("click", () => {
      for (const other of group.children) other.setAttribute("aria-pressed", String(other === button));
      onChoose(value);
    });
    group.append(button);
  }
  return group;
}

/**
 * Write a text where it is not there yet: what is written anew is laid out anew.
 * @param {HTMLElement} node
 * @param {string} text
 */
function write(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

/** The numbers at the top; the gap is the largest. */
class Headline {
  constructor() {
    this.root = element("dl", "headline");
    /** @type {Record<string, {main: HTMLElement, small: HTMLElement, meter: HTMLElement, fill: HTMLElement}>} */
    this.places = {};
    for (const [key, label] of [
      ["model", "model alone"],
      ["memory", "with memory"],
      ["gap", "the memory saves"],
      ["read", "tokens read"],
      ["window", "exact window"],
      ["rate", "learning rate"],
    ]) {
      const tile = element("div", `tile ${key}`);
      const value = element("dd");
      const [main, small] = [element("b", "", "–"), element("small")];
      const [meter, fill] = [element("span", "meter"), element("i")];
      this.places[key] = { main, small, meter, fill };
      value.append(main, small, meter);
      meter.append(fill);
      tile.append(element("dt", "", label), value);
      this.root.append(tile);
    }
  }

  /**
   * @param {string} key
   * @param {string} main
   * @param {string} small
   * @param {number | null} fill
   */
  put(key, main, small = "", fill = null) {
    const place = this.places[key];
    write(place.main, main);
    write(place.small, small);
    place.meter.hidden = fill === null;
    if (fill !== null) place.fill.style.width = `${100 * Math.min(1, fill)}%`;
  }

  /**
   * @param {Run} run
   * @param {Facts | null} facts
   */
  show(run, facts) {
    const mean = run.mean;
    if (mean) {
      const [model, memory] = mean;
      const gap = model - memory;
      this.put("model", model.toFixed(3), `nats · perplexity ${times(Math.exp(model))}`);
      this.put("memory", memory.toFixed(3), `nats · perplexity ${times(Math.exp(memory))}`);
      const less = 100 * (1 - Math.exp(-gap));
      const early = gap < 0 && facts !== null && run.count <= facts.context;
      const holds = "the model's own context still holds everything";
      this.put("gap", gap.toFixed(3), early ? holds : `nats · perplexity ${lowered(less)}`);
      const tile = this.places.gap.main.closest(".tile");
      tile?.classList.toggle("worse", gap < 0 && !early);
      tile?.classList.toggle("early", early);
    } else for (const key of ["model", "memory", "gap"]) this.put(key, "–");
    if (!facts) return;
    const speed = facts.speed ? `${thousands(facts.speed)} a second` : "";
    const read = facts.total ? share(facts.at / facts.total) : "";
    this.put("read", thousands(run.count), [read, speed].filter(Boolean).join(" · "), facts.total ? facts.at / facts.total : 0);
    this.put("window", thousands(facts.window), `of ${thousands(facts.window_size)}`, facts.window_size ? facts.window / facts.window_size : 0);
    this.put("rate", facts.learning_rate.toPrecision(3), `set to ${Number(facts.learning_rate_set.toPrecision(3))}`);
  }
}

/** @param {[key: string, label: string][]} entries */
function legend(entries) {
  const list = element("ul", "legend");
  /** @type {Record<string, HTMLElement>} */
  const values = {};
  for (const [key, label] of entries) {
    const item = element("li");
    values[key] = element("b");
    item.append(element("i", `swatch ${key}`), element("span", "", label), values[key]);
    list.append(item);
  }
  return { list, values };
}

class View {
  /**
   * @param {Model} model
   * @param {Element} el
   */
  constructor(model, el) {
    this.model = model;
    this.run = new Run();
    /** @type {Facts | null} */
    this.facts = null;
    this.number = 0; // of the newest frame
    this.drawing = 0;
    this.nextStory = 0;
    this.id = Math.random().toString(36).slice(2);
    this.works = false;
    this.waiting = 0; // the timer of a greeting without an answer
    this.greetings = 0; // that were not answered
    this.root = element("div", "atlas-lab");
    this.state = element("span", "state");
    this.said = element("span", "said");
    this.error = element("span", "error");
    this.away = element("span", "error away");
    this.away.hidden = true;
    this.headline = new Headline();
    this.loss = new LossCurve(this.run, 210);
    this.former = element("ol", "former");
    this.former.setAttribute("aria-label", "Runs from before");
    this.lossLegend = legend([["model", "model alone"], ["memory", "with memory"], ["gap", "gap"]]);
    this.story = new Story(this.run, (at) => {
      this.text.kept = true;
      this.text.go(at);
    });
    this.text = new TextPane(this.run, (at, byKey) => {
      this.story.show(at ?? this.run.count - 1);
      this._link();
      if (byKey) this.live.textContent = at === null ? "Follows the newest token." : this.story.sentence(at);
    });
    this.ramp = element("div", "ramp");
    this.weights = new WeightCurve(this.run, 240);
    this.weightLegend = legend(EXPERTS.map((who) => [`${who}-area`, who]));
    this.spectrum = new SpectrumCurve(240);
    this.rank = element("span", "faint");
    this.live = element("p", "heard"); // only what keys ask for: frames are not read out
    this.live.setAttribute("aria-live", "polite");
    this.tabs = this._tabs();
    this.root.append(this._status(), this.headline.root, this._losses(), this.tabs, this._text(), this._below(), this.live);
    el.append(this.root);
    this.placing = setInterval(() => this._place(), 30);
    this.story.show(null);
    this._tell();
  }

  _status() {
    const bar = element("div", "status");
    this.said.setAttribute("role", "status");
    this.error.setAttribute("role", "alert");
    this.away.setAttribute("role", "status");
    bar.append(this.state, this.said, this.error, this.away, this._filming());
    return bar;
  }

  /** Which of the panes is shown; two of them are widgets of their own, below this one. */
  _tabs() {
    const there = PANES.filter(([pane]) => this.model.get("panes").includes(pane));
    const bar = choice("What to show below", there, this.model.get("tab"), (pane) => {
      this.model.set("tab", pane);
      try {
        this.model.save_changes();
      } catch {
        // without a kernel it is shown all the same
      }
      this._place();
    });
    bar.classList.add("tabs");
    bar.hidden = true;
    return bar;
  }

  /** Where this stands in a lab, one pane is shown at a time; alone, all that it has. */
  _place() {
    if (!this.root.isConnected) return;
    clearInterval(this.placing);
    const lab = this.root.closest(".atlas-memory-lab");
    if (!(lab instanceof HTMLElement)) return;
    tendWholes();
    const tab = this.model.get("tab");
    this.tabs.hidden = false;
    this.root.dataset.tab = lab.dataset.tab = tab;
    const names = PANES.filter(([pane]) => this.model.get("panes").includes(pane)).map(([pane]) => pane);
    [...this.tabs.querySelectorAll("button")].forEach((button, k) => button.setAttribute("aria-pressed", String(names[k] === tab)));
  }

  /** Say whether this learns, for a page that shows so as long as it lasts; who only looks on has nothing to read. */
  _work(works = this.model.get("state") === "running" && (this.facts?.total ?? 0) > 0) {
    if (works === this.works) return;
    this.works = works;
    document.dispatchEvent(new CustomEvent("atlas-work", { detail: { who: this.id, works } }));
  }

  _tell() {
    const state = this.model.get("state");
    this._work();
    this.state.textContent = state;
    this.state.className = `state ${state}`;
    this.said.textContent = this.model.get("status");
    this.error.textContent = this.model.get("error");
    this.error.hidden = !this.model.get("error");
  }

  _losses() {
    const options = SPANS.map((n) => /** @type {[number, string]} */ ([n, String(n)]));
    const spans = choice("Tokens of the running mean", options, this.run.span, (span) => {
      this.run.smooth(span);
      this.loss.draw();
      this._readLoss();
    });
    spans.prepend(element("span", "", "mean over"));
    const part = titled("loss", "Loss (nats; right: perplexity)", this.lossLegend.list, spans);
    part.append(this.loss.canvas, this.former);
    this.loss.onCursor = (at, byKey) => {
      this._readLoss();
      if (byKey && at !== null) this.live.textContent = `Token ${thousands(at)}: ${this.lossSentence(at)}`;
    };
    this.loss.canvas.addEventListener("click", () => {
      if (this.loss.cursor === null) return;
      this.text.kept = true;
      this.text.go(this.loss.cursor);
    });
    return part;
  }

  /** A button that saves the run as a short film. */
  _filming() {
    const group = element("div", "choice");
    const button = element("button", "", "WebM");
    button.type = "button";
    button.title = "Save the run as a short film";
    const said = element("span", "faint");
    said.setAttribute("role", "status");
    button.addEventListener("click", async () => {
      button.disabled = true;
      said.textContent = "Recording …";
      try {
        const link = element("a");
        link.href = URL.createObjectURL(await film(this.run, this.facts?.context ?? 0, this.root));
        link.download = "MemoryLab.webm";
        link.click();
        setTimeout(() => URL.revokeObjectURL(link.href), 10000);
        said.textContent = "";
      } catch (error) {
        said.textContent = error instanceof Error ? error.message : String(error);
      }
      button.disabled = false;
    });
    group.append(said, button);
    return group;
  }

  /** @param {number} at */
  lossSentence(at) {
    const [model, memory] = this.run.running(at);
    return `model ${model.toFixed(2)}, with memory ${memory.toFixed(2)}, gap ${(model - memory).toFixed(2)} nats`;
  }

  _readLoss() {
    const at = this.loss.cursor ?? this.run.count - 1;
    const [model, memory] = at >= 0 ? this.run.running(at) : [NaN, NaN];
    const say = (/** @type {number} */ value) => (Number.isNaN(value) ? "" : value.toFixed(2));
    write(this.lossLegend.values.model, say(model));
    write(this.lossLegend.values.memory, say(memory));
    write(this.lossLegend.values.gap, say(model - memory));
  }

  _text() {
    /** @type {[Mode, string][]} */
    const options = [["surprise", "surprise"], ["saved", "saved by memory"]];
    const modes = choice("Colour the text by", options, options[0][0], (mode) => {
      this.text.colour(mode);
      this._scale(mode);
    });
    this._scale("surprise");
    const row = element("div", "columns reading");
    const read = titled("text", "What it reads", modes, this.ramp);
    read.append(this.text.root);
    const expected = titled("expected", "Expected here, and recalled");
    expected.append(this.story.root);
    row.append(read, expected);
    return row;
  }

  /**
   * The legend of the text's colours.
   * @param {Mode} mode
   */
  _scale(mode) {
    /** @type {HTMLElement[]} */
    const steps = [];
    const step = (/** @type {string} */ side, /** @type {number} */ level) => steps.push(element("i", `${side} l${level}`));
    if (mode === "saved") for (let level = LEVELS; level > 0; level -= 3) step("cost", level);
    for (let level = mode === "saved" ? 1 : 0; level <= LEVELS; level += 3) step(mode, level);
    const [left, right] = mode === "saved" ? ["costs 3", "saves 3 nats"] : ["0", "8 nats"];
    this.ramp.replaceChildren(element("span", "", left), ...steps, element("span", "", right));
  }

  _below() {
    this.weights.onCursor = (at, byKey) => {
      this._readWeights();
      if (byKey && at !== null) {
        this.live.textContent = EXPERTS.map((who) => `${who} ${this.weightLegend.values[`${who}-area`].textContent}`).join(", ");
      }
    };
    this.spectrum.onCursor = (at, byKey) => {
      this._readSpectrum();
      if (byKey && at !== null) this.live.textContent = this.rank.textContent;
    };
    const row = element("div", "columns even weighing");
    const weights = titled("weights", "Who counts", this.weightLegend.list);
    weights.append(this.weights.canvas);
    const spectrum = titled("spectrum", "Singular values", this.rank);
    spectrum.append(this.spectrum.canvas);
    row.append(weights, spectrum);
    return row;
  }

  /** Lines on the curve: from the token that is looked at, and from the last question, to where they were read. */
  _link() {
    const at = this.text.looked;
    const source = at === null ? -1 : this.run.source(at);
    /** @type {[number, number][]} */
    const links = this.model.get("passages").map((/** @type {number[]} */ [first, , asked]) => [asked, first]);
    if (at !== null && source >= 0) links.push([at, source]);
    this.loss.links = links;
    this.loss.draw();
  }

  _runs() {
    /** @type {{name: string, at: number[], loss: number[]}[]} */
    const runs = this.model.get("runs");
    this.loss.runs = runs;
    this.former.hidden = !runs.length;
    this.former.replaceChildren(...runs.map((run, number) => {
      const item = element("li");
      const swatch = element("b", "", String(number + 1));
      swatch.style.color = `var(--run${number % 5})`;
      const last = run.loss[run.loss.length - 1];
      item.append(swatch, element("span", "", `${run.name}: ${last.toFixed(2)} nats after ${thousands(run.at[run.at.length - 1] + 1)} tokens`));
      return item;
    }));
    this.loss.draw();
  }

  _passages() {
    this.text.mark(this.model.get("passages"));
    this._link();
  }

  _readWeights() {
    const at = this.weights.cursor ?? this.run.count - 1;
    const mean = at >= 0 ? this.run.weightsOver(Math.max(0, at - 32), at + 1) : null;
    EXPERTS.forEach((who, k) => {
      write(this.weightLegend.values[`${who}-area`], mean ? share(mean[k]) : "");
    });
  }

  _readSpectrum() {
    const found = this.model.get("spectrum");
    const at = this.spectrum.cursor;
    if (!found.values) this.rank.textContent = "";
    else if (at !== null) this.rank.textContent = `${found.name} σ${at + 1} = ${this.spectrum.values[at].toPrecision(3)}`;
    else this.rank.textContent = `${found.name} after ${thousands(found.tokens)} tokens: effective rank ${found.rank.toFixed(1)} of ${found.values.length}${this.spectrum.before.length ? "; grey: the moment before" : ""}`;
  }

  _measured() {
    this.spectrum.take(this.model.get("spectrum").values ?? []);
    this._readSpectrum();
    this.spectrum.draw();
  }

  /**
   * @param {Frame} message
   * @param {DataView[]} buffers
   */
  receive(message, buffers) {
    if (message.kind === "who") this.send({ kind: "here", view: this.id });
    if (message.kind !== "frame") return;
    if (this.run.take(message, buffers)) {
      this.facts = message.facts;
      this._answered();
    } else if (message.from > this.run.count && !this.waiting) this.greet(); // a frame was lost on the way
    this.number = message.number;
    if (!this.drawing) this.drawing = requestAnimationFrame(() => this._draw());
  }

  _draw() {
    this.drawing = 0;
    this.headline.show(this.run, this.facts);
    this.text.extend();
    if (this.text.looked === null && (performance.now() > this.nextStory || this.model.get("state") !== "running")) {
      this.story.show(this.run.count - 1);
      this.nextStory = performance.now() + STORY; // nobody reads faster
    }
    this._readLoss();
    this._readWeights();
    this.loss.context = this.facts?.context ?? 0;
    this.loss.draw();
    this.weights.draw();
    this.text.follow();
    this.root.dataset.shown = String(this.run.count);
    this.send({ kind: "shown", number: this.number });
  }

  /**
   * A kernel that is gone, or a connection that is closed, hears nothing: that is no error here.
   * @param {Record<string, unknown>} message
   */
  send(message) {
    try {
      this.model.send(message);
    } catch {
      // it is said again, or nobody is there any more
    }
  }

  /** Ask for everything from the start, and ask again until it comes: what is sent while a page opens may be lost. */
  greet() {
    clearTimeout(this.waiting);
    this.send({ kind: "hello", view: this.id });
    this.waiting = setTimeout(() => this._again(), Math.min(LATE, SOON * 2 ** Math.abs(this.greetings)));
  }

  _again() {
    this.greetings += 1;
    if (this.greetings >= PATIENT) {
      this.away.textContent =
        "The kernel does not answer: it is busy with a cell, was restarted, or is gone. This is what was seen last.";
      this.away.hidden = false;
    }
    this.greet();
  }

  /**
   * Say at once that the kernel which knew this is gone; ipywidgets says it of every widget by a class.
   * @param {boolean} alive
   */
  connected(alive) {
    if (alive) return;
    this._work(false);
    this.away.textContent = GONE;
    this.away.hidden = false;
    this.greetings = -Infinity; // nothing else is to be said
  }

  _answered() {
    clearTimeout(this.waiting);
    this.waiting = 0;
    this.greetings = 0;
    this.away.hidden = true;
    this._work();
  }

  close() {
    this._work(false);
    clearTimeout(this.waiting);
    clearInterval(this.placing);
    this.send({ kind: "bye", view: this.id });
    cancelAnimationFrame(this.drawing);
    for (const curve of [this.loss, this.weights, this.spectrum]) curve.close();
    this.root.remove();
  }
}

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const view = new View(model, el);
  const receive = (/** @type {Frame} */ message, /** @type {DataView[]} */ buffers) => view.receive(message, buffers);
  const tell = () => view._tell();
  const measured = () => view._measured();
  model.on("msg:custom", receive);
  for (const name of ["state", "status", "error"]) model.on(`change:${name}`, tell);
  model.on("change:spectrum", measured);
  const placed = () => view._place();
  model.on("change:tab", placed);
  const passed = () => view._passages();
  model.on("change:passages", passed);
  const compared = () => view._runs();
  model.on("change:runs", compared);
  /** @param {Event} event  of the pane beside this one: a piece is to be shown where it was read */
  const shown = (event) => {
    if (!(event instanceof CustomEvent) || !view.root.closest(".atlas-memory-lab")?.contains(/** @type {Node} */ (event.target))) return;
    model.set("tab", "text");
    view._place();
    view.text.kept = true;
    view.text.go(event.detail);
  };
  document.addEventListener("atlas-show", shown);
  const connected = () => {
    view.greet(); // or not any more: then nobody answers
    setTimeout(() => view.connected(!isGone(model, el)));
  };
  model.on("comm_live_update", connected);
  measured();
  view._passages();
  view._runs();
  view.greet();
  return () => {
    model.off("msg:custom", receive);
    for (const name of ["state", "status", "error"]) model.off(`change:${name}`, tell);
    model.off("change:spectrum", measured);
    model.off("comm_live_update", connected);
    model.off("change:tab", placed);
    model.off("change:passages", passed);
    model.off("change:runs", compared);
    document.removeEventListener("atlas-show", shown);
    view.close();
  };
}

export default { render };
