// The page at /: talk to the model, and see its memory work. Frames come every second; all else is in the parts.

import { el } from "../../widgets/static/explorer/dom.js";
import { isNoAnswer, Server } from "./api.js";
import { Chat } from "./chat.js";
import { askKey } from "./dialogs.js";
import { seen, untilUnseen } from "./seen.js";
import { Sessions, SHARED } from "./sessions.js";
import { Watch } from "./watch.js";

/** @typedef {import("./api.js").Reply} Reply */

const STATES = /** @type {Record<string, string>} */ ({
  ready: "ready", loading: "the model is loading", stopping: "the server is stopping", away: "not connected",
});
/** Milliseconds until the server is asked again that did not answer. */
const AGAIN_MS = 1000, AGAIN_AT_MOST_MS = 15_000;
/** Milliseconds that the page goes on without being seen: a look at another tab is no reason to stop. */
const UNSEEN_MS = 2000;

class Page {
  constructor() {
    this.server = new Server(askKey);
    this.watch = new Watch(this.server);
    this.chat = new Chat(this.server, this.watch);
    this.sessions = new Sessions(this.server, (name) => {
      this.chat.use(name, name === SHARED ? {} : { session_id: name });
      if (this._frame) this._draw(this._frame);
    }, (name) => this.chat.forget(name));
    /** @type {Reply | null} */
    this._frame = null;
    this._named = false;
    this.model = el("span", { class: "model" });
    this.state = el("span", { class: "state", role: "status" });
    this.theme = el("button", { type: "button", onclick: () => this._otherTheme() });
    this.key = el("button", { type: "button", text: "Forget key", hidden: true, onclick: () => this._forgetKey() });
    document.addEventListener("atlas-theme", () => this._tellTheme());
    this._tellTheme();
    this._tellState("away");
    document.body.append(this._header(), this._main());
    void this._listen();
  }

  _header() {
    return el("header", {},
      el("h1", { text: "atlas" }), this.model, this.state, el("span", { class: "push" }),
      this.key, el("a", { href: "/docs", text: "API" }), this.theme);
  }

  _main() {
    const { loss, text, memory, recalled, server, file } = this.watch.parts;
    return el("main", {},
      el("div", { class: "talk" }, this.chat.root),
      el("div", { class: "right atlas-lab" }, loss, recalled, text, memory),
      el("aside", { class: "left atlas-lab", "aria-label": "Sessions and server" }, this.sessions.root, file, server));
  }

  get _dark() {
    return document.documentElement.dataset.jpThemeLight === "false";
  }

  _otherTheme() {
    localStorage.setItem("atlas-theme", this._dark ? "light" : "dark");
    document.dispatchEvent(new Event("atlas-theme-chosen"));
  }

  _tellTheme() {
    this.theme.textContent = this._dark ? "Light" : "Dark";
    this.theme.setAttribute("aria-label", this._dark ? "Light colours" : "Dark colours");
  }

  _forgetKey() {
    this.server.forgetKey();
    location.reload();
  }

  /** @param {string} state */
  _tellState(state) {
    if (this.state.dataset.state === state) return; // else it would be read out every second
    this.state.dataset.state = state;
    this.state.textContent = STATES[state] ?? state;
  }

  /** Take in frames for as long as the page is open. */
  async _listen() {
    for (let wait = AGAIN_MS; ; wait = Math.min(2 * wait, AGAIN_AT_MOST_MS)) {
      await seen();
      const looking = untilUnseen(UNSEEN_MS);
      try {
        for await (const frame of this.server.events("/v1/atlas/metrics/stream", { signal: looking.signal })) {
          wait = AGAIN_MS;
          this._show(frame);
        }
      } catch (error) {
        if (looking.signal.aborted) continue;
        if (!isNoAnswer(error)) throw error;
      } finally {
        looking.abort();
      }
      this._tellState("away");
      await new Promise((resolve) => setTimeout(resolve, wait));
    }
  }

  /** @param {Reply} frame */
  _show(frame) {
    this._frame = frame;
    this._tellState(frame.state);
    this.key.hidden = !this.server.hasKey;
    this._draw(frame);
    if (!this._named && frame.state === "ready") {
      this._named = true;
      void this.sessions.refresh();
      void this._name();
    }
    document.body.dataset.frames = String(Number(document.body.dataset.frames ?? 0) + 1);
  }

  async _name() {
    try {
      this.model.textContent = (await this.server.json("/v1/models")).data[0].id;
    } catch (error) {
      if (!isNoAnswer(error)) throw error;
      this._named = false; // the next frame asks again
    }
  }

  /** @param {Reply} frame */
  _draw(frame) {
    this.sessions.show(frame);
    const record = this.sessions.recordOf(frame);
    this.chat.know(record?.memory?.tokens_seen ?? 0);
    this.watch.show(frame, this.sessions.chosen ?? "", record, this.sessions.rests);
  }
}

new Page();
