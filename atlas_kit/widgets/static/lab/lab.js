// MemoryLab's live view: a learning memory as numbers, curves, a coloured text, and the story of one token.
// The kernel sends frames and waits for each to be drawn; a view that opens asks for everything again.

import { element, thousands, LossCurve, SpectrumCurve, WeightCurve } from "./curves.js";
import { Run } from "./run.js";
import { EXPERTS, LEVELS, share, Story, TextPane } from "./text.js";

const SPANS = [64, 256, 1024];
/** Milliseconds that the newest token's story stays. */
const STORY = 400;

function titled(className, title, ...rest) {
  const part = element("section", className);
  const head = element("div", "title");
  head.append(element("h4", "", title), ...rest);
  part.append(head);
  return part;
}

/** A choice of one among several, as buttons. */
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

/** The numbers at the top; the gap is the largest. */
class Headline {
  constructor() {
    this.root = element("dl", "headline");
    this.places = {};
    for (const [key, label] of [
      ["model", "model alone"],
      ["memory", "with memory"],
      ["gap", "the memory saves"],
      ["read", "tokens read"],
      ["window", "exact window"],
      ["rate", "learning rate"],
      ["speed", "speed"],
    ]) {
      const tile = element("div", `tile ${key}`);
      const value = element("dd");
      this.places[key] = { main: element("b", "", "–"), small: element("small"), meter: element("span", "meter") };
      value.append(this.places[key].main, this.places[key].small, this.places[key].meter);
      this.places[key].meter.append(element("i"));
      tile.append(element("dt", "", label), value);
      this.root.append(tile);
    }
  }

  put(key, main, small = "", fill = null) {
    const place = this.places[key];
    place.main.textContent = main;
    place.small.textContent = small;
    place.meter.hidden = fill === null;
    if (fill !== null) place.meter.firstElementChild.style.width = `${100 * Math.min(1, fill)}%`;
  }

  show(run, facts) {
    const mean = run.mean;
    if (mean) {
      const [model, memory] = mean;
      const gap = model - memory;
      this.put("model", model.toFixed(3), `nats · perplexity ${Math.exp(model).toPrecision(3)}`);
      this.put("memory", memory.toFixed(3), `nats · perplexity ${Math.exp(memory).toPrecision(3)}`);
      const less = 100 * (1 - Math.exp(-gap));
      this.put("gap", gap.toFixed(3), `nats · perplexity ${less >= 0 ? "−" : "+"}${Math.abs(less).toFixed(0)} %`);
      this.places.gap.main.parentElement.parentElement.classList.toggle("worse", gap < 0);
    } else for (const key of ["model", "memory", "gap"]) this.put(key, "–");
    if (!facts) return;
    this.put("read", thousands(run.count), facts.total ? `of this text ${share(facts.at / facts.total)}` : "", facts.total ? facts.at / facts.total : 0);
    this.put("window", thousands(facts.window), `of ${thousands(facts.window_size)}`, facts.window_size ? facts.window / facts.window_size : 0);
    this.put("rate", facts.learning_rate.toPrecision(3), `set to ${Number(facts.learning_rate_set.toPrecision(3))}`);
    this.put("speed", facts.speed ? thousands(facts.speed) : "–", "tokens per second");
  }
}

function legend(entries) {
  const list = element("ul", "legend");
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
  constructor(model, el) {
    this.model = model;
    this.run = new Run();
    this.facts = null;
    this.root = element("div", "atlas-lab");
    this.headline = new Headline();
    this.live = element("p", "heard"); // only what keys ask for: frames are not read out
    this.live.setAttribute("aria-live", "polite");
    this.root.append(this._status(), this.headline.root, this._losses(), this._text(), this._below(), this.live);
    el.append(this.root);
    this.drawing = 0;
    this.nextStory = 0;
    this.story.show(null);
    this._tell();
  }

  _status() {
    const bar = element("div", "status");
    this.state = element("span", "state");
    this.said = element("span", "said");
    this.said.setAttribute("role", "status");
    this.error = element("span", "error");
    this.error.setAttribute("role", "alert");
    bar.append(this.state, this.said, this.error);
    return bar;
  }

  _tell() {
    const state = this.model.get("state");
    this.state.textContent = state;
    this.state.className = `state ${state}`;
    this.said.textContent = this.model.get("status");
    this.error.textContent = this.model.get("error");
    this.error.hidden = !this.model.get("error");
  }

  _losses() {
    this.loss = new LossCurve(this.run, 250);
    this.lossLegend = legend([["model", "model alone"], ["memory", "with memory"], ["gap", "gap"]]);
    const spans = choice("Tokens of the running mean", SPANS.map((n) => [n, String(n)]), this.run.span, (span) => {
      this.run.smooth(span);
      this.loss.draw();
      this._readLoss();
    });
    spans.prepend(element("span", "", "mean over"));
    const part = titled("loss", "Loss while reading (nats; right: perplexity)", this.lossLegend.list, spans);
    part.append(this.loss.canvas);
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

  lossSentence(at) {
    const [model, memory] = this.run.running(at);
    return `model ${model.toFixed(2)}, with memory ${memory.toFixed(2)}, gap ${(model - memory).toFixed(2)} nats`;
  }

  _readLoss() {
    const at = this.loss.cursor ?? this.run.count - 1;
    const [model, memory] = at >= 0 ? this.run.running(at) : [NaN, NaN];
    const say = (value) => (Number.isNaN(value) ? "" : value.toFixed(2));
    this.lossLegend.values.model.textContent = say(model);
    this.lossLegend.values.memory.textContent = say(memory);
    this.lossLegend.values.gap.textContent = say(model - memory);
  }

  _text() {
    this.story = new Story(this.run);
    this.text = new TextPane(this.run, (at, byKey) => {
      this.story.show(at ?? this.run.count - 1);
      if (byKey) this.live.textContent = at === null ? "Follows the newest token." : this.story.sentence(at);
    });
    const modes = choice("Colour the text by", [["surprise", "surprise"], ["saved", "saved by memory"]], "surprise", (mode) => {
      this.text.colour(mode);
      this._scale(mode);
    });
    this.ramp = element("div", "ramp");
    this._scale("surprise");
    const row = element("div", "columns");
    const read = titled("text", "What it reads", modes, this.ramp);
    read.append(this.text.root);
    const expected = titled("expected", "Expected here, and recalled");
    expected.append(this.story.root);
    row.append(read, expected);
    return row;
  }

  /** The legend of the text's colours. */
  _scale(mode) {
    const steps = [];
    const step = (side, level) => steps.push(element("i", `${side} l${level}`));
    if (mode === "saved") for (let level = LEVELS; level > 0; level -= 3) step("cost", level);
    for (let level = mode === "saved" ? 1 : 0; level <= LEVELS; level += 3) step(mode, level);
    const [left, right] = mode === "saved" ? ["costs 3", "saves 3 nats"] : ["0", "8 nats"];
    this.ramp.replaceChildren(element("span", "", left), ...steps, element("span", "", right));
  }

  _below() {
    this.weights = new WeightCurve(this.run, 130);
    this.weightLegend = legend(EXPERTS.map((who) => [`${who}-area`, who]));
    this.weights.onCursor = (at, byKey) => {
      this._readWeights();
      if (byKey && at !== null) {
        this.live.textContent = EXPERTS.map((who) => `${who} ${this.weightLegend.values[`${who}-area`].textContent}`).join(", ");
      }
    };
    this.spectrum = new SpectrumCurve(130);
    this.rank = element("span", "faint");
    this.spectrum.onCursor = (at, byKey) => {
      this._readSpectrum();
      if (byKey && at !== null) this.live.textContent = this.rank.textContent;
    };
    const row = element("div", "columns even");
    const weights = titled("weights", "Who counts", this.weightLegend.list);
    weights.append(this.weights.canvas);
    const spectrum = titled("spectrum", "Singular values", this.rank);
    spectrum.append(this.spectrum.canvas);
    row.append(weights, spectrum);
    return row;
  }

  _readWeights() {
    const at = this.weights.cursor ?? this.run.count - 1;
    const mean = at >= 0 ? this.run.weightsOver(Math.max(0, at - 32), at + 1) : null;
    EXPERTS.forEach((who, k) => {
      this.weightLegend.values[`${who}-area`].textContent = mean ? share(mean[k]) : "";
    });
  }

  _readSpectrum() {
    const found = this.model.get("spectrum");
    const at = this.spectrum.cursor;
    if (!found.values) this.rank.textContent = "";
    else if (at !== null) this.rank.textContent = `${found.name} σ${at + 1} = ${this.spectrum.values[at].toPrecision(3)}`;
    else this.rank.textContent = `${found.name} after ${thousands(found.tokens)} tokens: effective rank ${found.rank.toFixed(1)} of ${found.values.length}`;
  }

  _measured() {
    this.spectrum.take(this.model.get("spectrum").values ?? []);
    this._readSpectrum();
    this.spectrum.draw();
  }

  receive(message, buffers) {
    if (message.kind !== "frame") return;
    if (this.run.take(message, buffers)) this.facts = message.facts;
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
    this.loss.draw();
    this.weights.draw();
    this.root.dataset.shown = this.run.count;
    this.model.send({ kind: "shown", number: this.number });
  }

  close() {
    cancelAnimationFrame(this.drawing);
    for (const curve of [this.loss, this.weights, this.spectrum]) curve.close();
    this.root.remove();
  }
}

function render({ model, el }) {
  const view = new View(model, el);
  const receive = (message, buffers) => view.receive(message, buffers);
  const tell = () => view._tell();
  const measured = () => view._measured();
  model.on("msg:custom", receive);
  for (const name of ["state", "status", "error"]) model.on(`change:${name}`, tell);
  model.on("change:spectrum", measured);
  measured();
  model.send({ kind: "hello" });
  return () => {
    model.off("msg:custom", receive);
    for (const name of ["state", "status", "error"]) model.off(`change:${name}`, tell);
    model.off("change:spectrum", measured);
    view.close();
  };
}

export default { render };
