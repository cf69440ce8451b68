// Where the memory helped, in texts that were read or said: from the trace of a session to parts of those texts. No document.

/**
 * @typedef {import("../../widgets/static/lab/run.js").Run} Run
 * @typedef {[start: number, end: number, nats: number]} Shade  of a text, and how much likelier the memory made it
 * @typedef {{tokens: number, model: number, memory: number}} Worth  losses in nats per token
 */

/** Nats from which on a token counts as foreseen by the memory: half as likely again as by the model alone. */
const LEAST = 0.4;

/**
 * The parts of some texts that the memory made likelier, each a list; null where the last text is not in the trace yet.
 * @param {Run} run
 * @param {number} mark the token from which on they are looked for
 * @param {string[]} texts in their order
 * @returns {Shade[][] | null}
 */
export function shadesIn(run, mark, texts) {
  if (run.count <= mark) return null;
  const pieces = run.texts.slice(mark, run.count);
  const whole = pieces.join("");
  const last = texts.at(-1) ?? "";
  if (!last || whole.lastIndexOf(last) < 0) return null;
  let from = 0;
  return texts.map((text, number) => {
    const at = number === texts.length - 1 ? whole.lastIndexOf(last) : whole.indexOf(text, from);
    if (at < 0) return [];
    from = at + text.length;
    return within(run, mark, pieces, at, from);
  });
}

/**
 * @param {Run} run
 * @param {number} mark
 * @param {string[]} pieces
 * @param {number} start
 * @param {number} end
 */
function within(run, mark, pieces, start, end) {
  /** @type {Shade[]} */
  const found = [];
  let at = 0, gain = 0;
  pieces.forEach((piece, number) => {
    const [model, memory] = run.loss(mark + number);
    gain += Number.isNaN(model) ? 0 : model - memory;
    if (!piece) return; // a part of a character: it counts with the rest of it
    const [first, behind] = [Math.max(start, at), Math.min(end, at + piece.length)];
    if (first < behind && gain >= LEAST) found.push([first - start, behind - start, Number(gain.toFixed(2))]);
    at += piece.length;
    gain = 0;
  });
  return found;
}

/**
 * The mean losses of what came since a mark; null where nothing was expected of any of it.
 * @param {Run} run
 * @param {number} mark
 * @returns {Worth | null}
 */
export function worth(run, mark) {
  const sums = [0, 0, 0];
  for (let at = mark; at < run.count; at += 1) {
    const [model, memory] = run.loss(at);
    if (Number.isNaN(model)) continue;
    sums[0] += model;
    sums[1] += memory;
    sums[2] += 1;
  }
  return sums[2] ? { tokens: sums[2], model: sums[0] / sums[2], memory: sums[1] / sums[2] } : null;
}
