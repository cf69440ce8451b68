// A run of MemoryLab as a short film in WebM: its curve is drawn again from the first token to the last, while the browser records it.

import { LossCurve, thousands } from "./curves.js";

/** @typedef {import("./run.js").Run} Run */

/** Pictures, milliseconds that each is seen, and the last; CSS pixels. */
const [PICTURES, EACH, LAST] = [40, 120, 1500];
const [WIDTH, HEIGHT] = [760, 320];
const TYPE = "video/webm";

/** The curve of the first tokens of a run, with a line above that says what the memory saved so far. */
class Growing extends LossCurve {
  /**
   * @param {Run} run
   * @param {Element} place  whose colours it takes
   */
  constructor(run, place) {
    super(run, HEIGHT);
    this.end = 0;
    this.all = run.count; // a run that goes on is not waited for
    this.margin = { ...this.margin, top: 34 };
    this.canvas.style.cssText += `;position:fixed;left:-9999px;top:0;width:${WIDTH}px`;
    this.canvas.tabIndex = -1;
    this.canvas.setAttribute("aria-hidden", "true");
    this.saved = [0];
    let [sum, count] = [0, 0];
    for (let at = 0; at < this.all; at += 1) {
      const [model, memory] = run.loss(at);
      if (!Number.isNaN(model)) [sum, count] = [sum + model - memory, count + 1];
      this.saved.push(count ? sum / count : 0);
    }
    place.append(this.canvas);
  }

  /** @override */
  get length() {
    return this.end;
  }

  /** @override */
  get last() {
    return Math.max(1, this.all - 1);
  }

  /** @override One scale for all pictures. */
  _limits() {
    const end = this.end;
    this.end = this.all;
    const found = super._limits(this._columns());
    this.end = end;
    return found;
  }

  /**
   * @override
   * @param {CanvasRenderingContext2D} pen
   */
  paint(pen) {
    pen.fillStyle = this.colour("--jp-layout-color1") || "#fff";
    pen.fillRect(0, 0, this.width, this.height);
    super.paint(pen);
    pen.fillStyle = this.colour("--strong") || this.colour("--faint");
    pen.font = `bold 13px ${this._style.fontFamily}`;
    pen.textAlign = "left";
    pen.textBaseline = "top";
    const saves = this.saved[this.end];
    pen.fillText(`${thousands(this.end)} tokens: the memory ${saves < 0 ? "costs" : "saves"} ${Math.abs(saves).toFixed(3)} nats per token`, this.box.left, 10);
  }
}

/**
 * Film a run, and return it as a file; it takes as long as it is.
 * @param {Run} run
 * @param {number} context  tokens that the model's own context holds
 * @param {Element} place
 * @returns {Promise<Blob>}
 */
export async function film(run, context, place) {
  if (run.count < 2) throw new Error("Nothing has been read yet.");
  if (typeof MediaRecorder === "undefined" || !HTMLCanvasElement.prototype.captureStream || !MediaRecorder.isTypeSupported(TYPE)) {
    throw new Error("This browser records no WebM: save the run as .gif instead.");
  }
  const curve = new Growing(run, place);
  try {
    curve.context = context;
    const wait = (/** @type {number} */ time) => new Promise((done) => setTimeout(done, time));
    /** @type {Blob[]} */
    const parts = [];
    curve.draw();
    const recorder = new MediaRecorder(curve.canvas.captureStream(25), { mimeType: TYPE });
    recorder.ondataavailable = (event) => parts.push(event.data);
    const over = new Promise((done) => (recorder.onstop = done));
    recorder.start();
    for (let picture = 1; picture <= PICTURES; picture += 1) {
      curve.end = Math.max(1, Math.round((curve.all * picture) / PICTURES));
      curve.draw();
      await wait(EACH);
    }
    await wait(LAST);
    curve.draw(); // else the last picture would not last
    await wait(EACH);
    recorder.stop();
    await over;
    return new Blob(parts, { type: TYPE });
  } finally {
    curve.close();
    curve.canvas.remove();
  }
}
