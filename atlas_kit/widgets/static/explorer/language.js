// What a model makes of language: a text that is typed, cut into its tokens; a conversation as its template writes it.

import { count, el, fill, newest, sentence, settled } from "./dom.js";

/** @typedef {import("./dom.js").Reply} Reply */

/** @param {Reply} reply */
const problem = ({ error, hint }) =>
  el("p", { class: "ax-alert", role: "alert", text: `${sentence(error)}${hint ? ` ${sentence(hint)}` : ""}` });

/**
 * @param {{ask: import("./dom.js").Ask, show: (token: number) => void}} options `show` goes to a token of the vocabulary
 */
export function tokenizerPane({ ask, show }) {
  const status = el("p", { class: "ax-dim", role: "status" });
  const body = el("div", { class: "ax-tokens", "aria-label": "Tokens", role: "group" });
  const work = newest(async () => {
    if (!box.value) {
      fill(body);
      status.textContent = "Type a text to see its tokens.";
      return;
    }
    const slow = setTimeout(() => {
      status.textContent = "Reading …";
    }, 250);
    const reply = await ask({ op: "tokenize", text: box.value, special: control.checked });
    clearTimeout(slow);
    if (reply.error) {
      status.textContent = "";
      fill(body, problem(reply));
      return;
    }
    const letters = [...box.value].length,
      each = reply.tokens.length ? (letters / reply.tokens.length).toFixed(2) : "–";
    status.textContent = `${count(reply.tokens.length)} tokens for ${count(letters)} characters: ${each} characters each.`;
    fill(
      body,
      ...reply.tokens.map((/** @type {Reply} */ token, /** @type {number} */ at) =>
        el(
          "button",
          {
            type: "button",
            class: ["ax-token", `ax-t${at % 4}`],
            title: `token ${token.id}: bytes ${token.bytes}`,
            onclick: () => show(token.id),
          },
          el("bdi", { text: token.text || "(nothing)" }),
          el("small", { text: String(token.id) }),
        ),
      ),
    );
  });
  const soon = settled(() => work(), 200);
  const box = el("textarea", {
    class: "ax-box",
    rows: "3",
    "aria-label": "Text to be cut into tokens",
    placeholder: "Type a text",
    spellcheck: "false",
    oninput: soon,
    onkeydown: (/** @type {KeyboardEvent} */ event) => event.stopPropagation(),
  });
  const control = el("input", { type: "checkbox", onchange: () => work() });
  work();
  return {
    root: el(
      "div",
      { class: "ax-language" },
      box,
      el("label", {}, control, " names of control tokens are those tokens"),
      status,
      body,
    ),
  };
}

/**
 * @param {{ask: import("./dom.js").Ask}} options
 */
export function templatePane({ ask }) {
  /** @type {{role: string, content: string}[] | null} */
  let messages = null;
  const list = el("ol", { class: "ax-dialogue", "aria-label": "Conversation" });
  const text = el("pre", { class: "ax-pre", tabindex: "0", "aria-label": "What the model reads" });
  const said = el("div", {});
  const work = newest(async () => {
    const reply = await ask(messages ? { op: "template", messages, answer: answer.checked } : { op: "template" });
    fill(said, reply.error ? problem(reply) : null);
    if (reply.error) return;
    if (!messages) {
      messages = reply.messages;
      draw();
    }
    text.textContent = reply.text;
  });
  const soon = settled(() => work(), 250);
  const answer = el("input", { type: "checkbox", checked: true, onchange: () => work() });
  function draw() {
    fill(list, ...(messages ?? []).map(line));
  }
  /**
   * @param {{role: string, content: string}} message
   * @param {number} at
   */
  function line(message, at) {
    const stop = (/** @type {KeyboardEvent} */ event) => event.stopPropagation();
    const role = el("select", { "aria-label": `Who says message ${at + 1}`, onkeydown: stop });
    for (const name of ["system", "user", "assistant", "tool"]) {
      role.append(el("option", { value: name, text: name, selected: name === message.role }));
    }
    role.addEventListener("change", () => {
      message.role = role.value;
      work();
    });
    const words = el("textarea", { rows: "1", class: "ax-box", "aria-label": `Message ${at + 1}`, onkeydown: stop });
    words.value = message.content;
    words.addEventListener("input", () => {
      message.content = words.value;
      soon();
    });
    const drop = el("button", {
      type: "button",
      class: "ax-small",
      "aria-label": `Remove message ${at + 1}`,
      text: "×",
      onclick: () => {
        messages?.splice(at, 1);
        draw();
        work();
      },
    });
    return el("li", {}, role, words, drop);
  }
  const add = el("button", {
    type: "button",
    class: "ax-small",
    text: "Add a message",
    onclick: () => {
      const last = messages?.at(-1)?.role;
      messages?.push({ role: last === "user" ? "assistant" : "user", content: "" });
      draw();
      work();
    },
  });
  work();
  return {
    root: el(
      "div",
      { class: "ax-language ax-two" },
      el("div", {}, list, add, " ", el("label", {}, answer, " the model answers next")),
      el("div", {}, said, text),
    ),
  };
}
