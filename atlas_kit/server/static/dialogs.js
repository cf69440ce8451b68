// Questions that nothing goes on without an answer to: the API key, a name, whether something is really meant.

import { el, uniqueId } from "../../widgets/static/explorer/dom.js";

/** @typedef {import("../../widgets/static/explorer/dom.js").Child} Child */

/**
 * Ask, and wait for the answer: what ``answer`` gives when the form is sent, null where it is called off.
 * @template T
 * @param {{title: string, parts: Child[], answer: () => T, yes: string, must?: boolean}} given  ``must``: it cannot be called off
 * @returns {Promise<T | null>}
 */
function ask({ title, parts, answer, yes, must = false }) {
  return new Promise((resolve) => {
    const id = uniqueId("dialog");
    const asker = document.activeElement;
    const form = el("form", { method: "dialog" },
      el("h2", { id, text: title }), ...parts,
      el("div", { class: "buttons" },
        must ? null : el("button", { type: "button", text: "Cancel", onclick: () => end(null) }),
        el("button", { class: "main", text: yes })));
    const dialog = el("dialog", { "aria-labelledby": id }, form);
    /** @param {T | null} found */
    function end(found) {
      dialog.close();
      dialog.remove();
      if (asker instanceof HTMLElement) asker.focus();
      resolve(found);
    }
    dialog.addEventListener("cancel", (event) => {
      event.preventDefault();
      if (!must) end(null);
    });
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      end(answer());
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}

/**
 * @param {boolean} wrong whether one was given that the server does not take
 * @returns {Promise<string>}
 */
export async function askKey(wrong) {
  const field = el("input", {
    type: "password", id: "key", name: "key", autocomplete: "off", required: true, "aria-describedby": "key-note",
  });
  const note = el("p", {
    id: "key-note", class: wrong && "wrong", role: wrong && "alert",
    text: wrong ? "The server does not take that key. Try another." : "This server answers to those who have a key. It stays in this tab.",
  });
  const parts = [note, el("label", { for: "key", text: "Key" }), field];
  const found = await ask({ title: "API key", parts, answer: () => field.value.trim(), yes: "Use this key", must: true });
  return found ?? "";
}

/**
 * @param {string} title
 * @param {string} label
 * @param {string} yes
 * @returns {Promise<string | null>}
 */
export function askName(title, label, yes) {
  const field = el("input", { id: "asked-name", maxlength: "128", autocomplete: "off", required: true, pattern: ".*\\S.*" });
  const parts = [el("label", { for: "asked-name", text: label }), field];
  return ask({ title, parts, answer: () => field.value.trim(), yes });
}

/**
 * @param {string} title
 * @param {string} text what happens then
 * @param {string} yes
 * @returns {Promise<boolean>}
 */
export async function askWhether(title, text, yes) {
  return (await ask({ title, parts: [el("p", { text })], answer: () => true, yes })) ?? false;
}
