// Asks for the API key, in a dialog that cannot be closed without one: nothing works before.

import { el } from "../../widgets/static/explorer/dom.js";

/**
 * @param {boolean} wrong whether one was given that the server does not take
 * @returns {Promise<string>}
 */
export function askKey(wrong) {
  return new Promise((resolve) => {
    const field = el("input", {
      type: "password", id: "key", name: "key", autocomplete: "off", required: true, "aria-describedby": "key-note",
    });
    const note = el("p", {
      id: "key-note", class: wrong && "wrong", role: wrong && "alert",
      text: wrong ? "The server does not take that key. Try another." : "This server answers to those who have a key. It stays in this tab.",
    });
    const form = el("form", { method: "dialog" },
      el("h2", { id: "key-title", text: "API key" }), note,
      el("label", { for: "key", text: "Key" }), field,
      el("button", { class: "main", text: "Use this key" }));
    const dialog = el("dialog", { class: "key", "aria-labelledby": "key-title" }, form);
    dialog.addEventListener("cancel", (event) => event.preventDefault());
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      dialog.close();
      dialog.remove();
      resolve(field.value.trim());
    });
    document.body.append(dialog);
    dialog.showModal();
  });
}
