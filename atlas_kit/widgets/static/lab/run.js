// What a run has given so far, token by token, and the running means that the curves show. No document, no drawing.

const PER_TOKEN = 20; // numbers: 2 losses, 3 probabilities, 3 weights, 2 times 6 probabilities of likely tokens
const LIKELY = 6;

/**
 * @typedef {Float32Array | Float64Array | Int32Array} Numbers
 * @typedef {{parts: Numbers, weights: Numbers}} Experts  of model, memory and window
 */

/** Numbers that only grow in number. */
class Column {
  /**
   * @param {new (length: number) => Numbers} Type
   * @param {number} width
   */
  constructor(Type, width) {
    this.Type = Type;
    this.width = width;
    /** @type {Numbers} */
    this.values = new Type(1024 * width);
  }

  /**
   * @param {number} at
   * @param {Numbers} values
   */
  put(at, values) {
    const end = at * this.width + values.length;
    if (end > this.values.length) {
      const larger = new this.Type(Math.max(end, 2 * this.values.length));
      larger.set(this.values);
      this.values = larger;
    }
    this.values.set(values, at * this.width);
  }
}

/**
 * Copies what a message brought: its buffers need not lie on a multiple of four bytes.
 * @template {Numbers} N
 * @param {new (buffer: ArrayBuffer) => N} Type
 * @param {DataView} view
 */
function numbers(Type, view) {
  const bytes = new Uint8Array(view.buffer, view.byteOffset, view.byteLength);
  return new Type(bytes.slice().buffer);
}

/** A run: what came, and what was expected of it. */
export class Run {
  constructor() {
    this.span = 256;
    this.count = 0;
    /** @type {string[]} */
    this.texts = [];
    /** @type {Map<number, string>} */
    this.names = new Map();
    this.rows = new Column(Float32Array, PER_TOKEN);
    this.tokens = new Column(Int32Array, 2 * LIKELY + 1); // the likely ones, and the one that came
    this.sources = new Column(Int32Array, 1);
    this.means = new Column(Float32Array, 2);
    this.weights = new Column(Float64Array, 4); // sums up to and with each token, and of how many
    this._mean = [0, 0, 0];
    this.sums = [0, 0, 0];
    this._weights = [0, 0, 0, 0];
  }

  /** Begin anew, with the same span. */
  clear() {
    const { span } = this;
    Object.assign(this, new Run(), { span });
  }

  /**
   * @param {{from: number, texts: string[], names: [number, string][]}} message
   * @param {DataView[]} buffers
   */
  take(message, buffers) {
    if (message.from === 0) this.clear();
    if (message.from !== this.count) return false; // of another view's replay, or something is missing
    for (const [token, name] of message.names) this.names.set(token, name);
    if (message.texts.length) {
      this.rows.put(this.count, numbers(Float32Array, buffers[0]));
      this.tokens.put(this.count, numbers(Int32Array, buffers[1]));
      this.sources.put(this.count, buffers[2] ? numbers(Int32Array, buffers[2]) : new Int32Array(message.texts.length).fill(-1));
      this.texts.push(...message.texts);
      const start = this.count;
      this.count += message.texts.length;
      this._add(start);
      this._extend(start);
    }
    return true;
  }

  /** @param {number} start */
  _add(start) {
    const fresh = new Float64Array(4 * (this.count - start));
    for (let at = start; at < this.count; at += 1) {
      const { values } = this.rows;
      const row = at * PER_TOKEN;
      if (!Number.isNaN(values[row])) {
        this.sums[0] += values[row];
        this.sums[1] += values[row + 1];
        this.sums[2] += 1;
        for (let k = 0; k < 3; k += 1) this._weights[k] += values[row + 5 + k];
        this._weights[3] += 1;
      }
      fresh.set(this._weights, 4 * (at - start));
    }
    this.weights.put(start, fresh);
  }

  /**
   * Mean weights of model, memory and window over the tokens [start, end), or null where nothing was expected.
   * @param {number} start
   * @param {number} end
   */
  weightsOver(start, end) {
    const { values } = this.weights;
    const sum = (/** @type {number} */ k) => values[4 * (end - 1) + k] - (start > 0 ? values[4 * (start - 1) + k] : 0);
    const count = end > start ? sum(3) : 0;
    return count ? [0, 1, 2].map((k) => sum(k) / count) : null;
  }

  /**
   * Losses in nats: of the model alone, and with the memory; NaN where nothing was expected.
   * @param {number} at
   */
  loss(at) {
    const row = at * PER_TOKEN;
    return this.rows.values.subarray(row, row + 2);
  }

  /**
   * What model, memory and window gave to the token, and how much each counted.
   * @param {number} at
   * @returns {Experts}
   */
  experts(at) {
    const row = at * PER_TOKEN + 2;
    return { parts: this.rows.values.subarray(row, row + 3), weights: this.rows.values.subarray(row + 3, row + 6) };
  }

  /**
   * The likeliest tokens of the model alone (0) or of the blend (1).
   * @param {number} at
   * @param {number} who
   */
  expected(at, who) {
    const found = [];
    for (let rank = 0; rank < LIKELY; rank += 1) {
      const token = this.tokens.values[at * (2 * LIKELY + 1) + who * LIKELY + rank];
      if (token < 0) break;
      const p = this.rows.values[at * PER_TOKEN + 8 + who * LIKELY + rank];
      found.push({ p, name: this.names.get(token) ?? "", came: token === this.token(at) });
    }
    return found;
  }

  /** @param {number} at */
  token(at) {
    return this.tokens.values[at * (2 * LIKELY + 1) + 2 * LIKELY];
  }

  /**
   * A token by itself, which may be part of a character.
   * @param {number} at
   */
  name(at) {
    return this.names.get(this.token(at)) ?? "";
  }

  /**
   * The number of the token that the window knew this one from, or -1.
   * @param {number} at
   */
  source(at) {
    return at >= 0 && at < this.count ? this.sources.values[at] : -1;
  }

  /** Means of everything so far. */
  get mean() {
    return this.sums[2] ? [this.sums[0] / this.sums[2], this.sums[1] / this.sums[2]] : null;
  }

  /**
   * Running mean after a token: exponentially weighed over about `span` tokens, without a bias at the start.
   * @param {number} at
   */
  running(at) {
    return this.means.values.subarray(2 * at, 2 * at + 2);
  }

  /** @param {number} span */
  smooth(span) {
    this.span = span;
    this._mean = [0, 0, 0];
    this._extend(0);
  }

  /** @param {number} start */
  _extend(start) {
    const keep = 1 - 1 / this.span;
    const fresh = new Float32Array(2 * (this.count - start));
    const mean = this._mean;
    for (let at = start; at < this.count; at += 1) {
      const model = this.rows.values[at * PER_TOKEN];
      if (!Number.isNaN(model)) {
        mean[0] = keep * mean[0] + model;
        mean[1] = keep * mean[1] + this.rows.values[at * PER_TOKEN + 1];
        mean[2] = keep * mean[2] + 1;
      }
      fresh[2 * (at - start)] = mean[2] ? mean[0] / mean[2] : NaN;
      fresh[2 * (at - start) + 1] = mean[2] ? mean[1] / mean[2] : NaN;
    }
    this.means.put(start, fresh);
  }
}
