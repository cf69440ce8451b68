// Numbers and facts as people say them. No document.

import { count } from "../../widgets/static/explorer/dom.js";

/** @typedef {import("./api.js").Reply} Reply */

/**
 * @param {number} n
 * @param {string} one
 * @param {string} [several]
 */
export const many = (n, one, several = `${one}s`) => `${count(n)} ${n === 1 ? one : several}`;

/** @param {number} n */
export const tokens = (n) => many(n, "token");

/** @param {number} value */
export const rate = (value) => (value >= 100 ? count(Math.round(value)) : value >= 10 ? value.toFixed(0) : value.toFixed(1));

/**
 * A time in seconds, as short as it stays true.
 * @param {number | null | undefined} seconds
 */
export function duration(seconds) {
  if (seconds === null || seconds === undefined) return "–";
  if (seconds < 1) return `${Math.max(1, Math.round(seconds * 1000))} ms`;
  if (seconds < 60) return `${seconds.toFixed(seconds < 10 ? 1 : 0)} s`;
  if (seconds < 3600) return `${Math.floor(seconds / 60)} min`;
  return seconds < 172_800 ? `${Math.floor(seconds / 3600)} h` : `${Math.floor(seconds / 86_400)} days`;
}

/**
 * How long ago something was.
 * @param {number} seconds
 */
export const ago = (seconds) => (seconds < 10 ? "just now" : `${duration(Math.max(1, Math.round(seconds)))} ago`);

/**
 * What is there again after a restart, in a few sentences: named sessions, and what became of the shared memory's file.
 * @param {Reply | null} file
 * @param {number} now in Unix seconds
 * @param {boolean} outlive whether sessions do
 * @returns {{text: string, wrong: boolean}[]}
 */
export function keptFacts(file, now, outlive) {
  const sessions = outlive ? "Each session has a file of its own, and is there again after a restart."
    : file ? "Sessions with a name end with the server."
      : "The server was started without a memory file: what is learned ends with it.";
  return [...(file ? fileFacts(file, now) : []), { text: sessions, wrong: false }];
}

/**
 * @param {Reply} file
 * @param {number} now
 */
function fileFacts(file, now) {
  const found = [];
  if (file.set_aside) found.push({ text: `The file at the start could not be used, and lies beside it as ${file.set_aside}.`, wrong: true });
  if (file.problem && !file.set_aside) found.push({ text: `${capital(file.problem)}.`, wrong: true });
  if (file.backup) found.push({ text: `The memory went on from the backup ${file.backup}.`, wrong: true });
  else if (file.loaded) found.push({ text: `The memory went on from ${file.name}.`, wrong: false });
  else found.push({ text: `The memory began anew; it is kept in ${file.name}.`, wrong: false });
  if (file.last_problem) found.push({ text: `The last save failed: ${file.last_problem}.`, wrong: true });
  else if (file.last_saved) {
    found.push({ text: `Saved ${many(file.saves, "time")}, last ${ago(now - file.last_saved)}, in ${duration(file.last_seconds)}.`, wrong: false });
  } else found.push({ text: "Not saved yet since the start.", wrong: false });
  return found;
}

/** @param {string} text */
const capital = (text) => text[0].toUpperCase() + text.slice(1).replace(/\.$/, "");

/**
 * What an answer took, as one line.
 * @param {Reply | undefined} usage
 * @param {number} seconds
 * @param {Reply | undefined} atlas
 * @param {boolean} [cut] whether it may not be longer
 */
export function answerFacts(usage, seconds, atlas, cut = false) {
  const found = [];
  if (usage) {
    const known = usage.prompt_tokens_details?.cached_tokens ?? 0;
    found.push(`${tokens(usage.prompt_tokens - known)} read`);
    if (known) found.push(`${count(known)} known already`);
    found.push(`${tokens(usage.completion_tokens)} in ${duration(seconds)}${cut ? ", where this page cuts answers off" : ""}`);
  }
  if (atlas?.left_context_tokens) {
    found.push(`${count(atlas.left_context_tokens)} have left the context, the memory covers ${count(atlas.covered_by_memory_tokens ?? 0)}`);
  }
  return found.join(" · ");
}

/**
 * What the memory was worth for an answer and what was said before it, as one sentence or two.
 * @param {import("./shades.js").Worth | null | undefined} worth
 * @param {boolean} shaded whether there is a word that it made likelier
 */
export function worthFacts(worth, shaded) {
  if (!worth) return "";
  const change = 100 * (1 - Math.exp(worth.memory - worth.model));
  const size = Math.abs(change).toFixed(0);
  const sum = size === "0" ? `The memory made no difference to these ${tokens(worth.tokens)}`
    : `The memory ${change > 0 ? "lowered" : "raised"} the perplexity of these ${tokens(worth.tokens)} by ${size}\u00a0%`;
  return `${shaded ? "Shaded words were likelier through the memory. " : ""}${shaded ? sum.replace("The memory", "It") : sum}.`;
}
