// The matrices of the chosen session's memory, as they change: the widgets' canvas, with tiles that the server gives.
// Asked for only while they are on the screen, and not more often than they can be looked at.

import { bytes, count, el, fill } from "../../widgets/static/explorer/dom.js";
import { storedMatrix } from "../../widgets/static/explorer/matrix.js";
import { bytesOf, isNoAnswer } from "./api.js";
import { many } from "./words.js";

/**
 * @typedef {import("./api.js").Reply} Reply
 * @typedef {import("./api.js").Server} Server
 * @typedef {Awaited<ReturnType<typeof storedMatrix>>} View
 */

/** Milliseconds from one picture to the next, at least. */
const REST_MS = 1500;
const HEIGHT = 190;

export class MemoryMatrix {
  /** @param {Server} server */
  constructor(server) {
    this._server = server;
    /** @type {View | null} */
    this._view = null;
    this._name = "";
    this._shape = "";
    /** @type {string | null} the session whose matrix is shown */
    this._session = null;
    this._seen = -1;
    this._next = 0;
    this._busy = false;
    this._onScreen = false;
    this._place = el("div");
    this.facts = el("p", { class: "faint" });
    this._menu = el("select", { id: "matrix-name", onchange: () => this._choose() });
    this._chooser = el("p", { class: "inline", hidden: true }, el("label", { for: "matrix-name", text: "Matrix" }), this._menu);
    this.root = el("div", { class: "matrix", hidden: true }, el("h3", { text: "What it has learned" }),
      el("div", { class: "beside" }, this._place, el("div", {}, this._chooser, this.facts)));
    new IntersectionObserver((entries) => { this._onScreen = entries.some((one) => one.isIntersecting); }).observe(this.root);
  }

  /**
   * Show the memory of a session, if it is another or has learned since.
   * @param {string} session
   * @param {Reply | null | undefined} memory as the frames tell of it; where there is none, nothing is shown
   */
  show(session, memory) {
    if (session !== this._session) {
      this._clear();
      this._session = session;
    }
    const there = Boolean(memory?.learns && memory.tokens_seen);
    this.root.hidden = !there;
    if (!there) this._clear();
    else if (this._onScreen && !this._busy && memory?.tokens_seen !== this._seen && performance.now() >= this._next) {
      void this._load();
    }
  }

  _clear() {
    this._view?.destroy?.();
    this._view = null;
    this._seen = -1;
    this._next = 0;
    this._name = this._shape = "";
    fill(this._place);
    this.facts.textContent = "";
  }

  _choose() {
    const name = this._menu.value;
    this._clear();
    this._name = name;
    void this._load();
  }

  /** @param {Record<string, string | number>} part */
  _path(part) {
    const query = new URLSearchParams(Object.entries(part).map(([key, value]) => [key, String(value)]));
    if (this._session) query.set("session_id", this._session);
    if (this._name) query.set("name", this._name);
    return `/v1/atlas/memory/matrix?${query}`;
  }

  /** Draw what the memory is now. */
  async _load() {
    const session = this._session;
    this._busy = true;
    try {
      const found = await this._server.json(this._path({ rows: 1, columns: 1 }));
      if (session !== this._session) return;
      await this._draw(found);
      this._seen = found.tokens_seen;
    } catch (error) {
      if (!isNoAnswer(error)) throw error; // the next frame asks again
    } finally {
      this._busy = false;
      this._next = performance.now() + REST_MS;
    }
  }

  /** @param {Reply} found */
  async _draw(found) {
    const { names, name, steps } = found;
    const [rows, columns] = found.shape;
    if (this._view && this._shape === `${name} ${rows} ${columns}`) await this._view.refresh?.();
    else {
      this._name = name;
      const view = await storedMatrix({
        request: (message) => this._tile(message), shape: [rows, columns], dtype: found.dtype, name, height: HEIGHT,
        rows: "feature", columns: "correction",
      });
      if (!view.root) return;
      this._view?.destroy?.();
      this._view = view;
      this._shape = `${name} ${rows} ${columns}`;
      fill(this._place, view.root);
      fill(this._menu, ...names.map((/** @type {string} */ one) => el("option", { value: one, text: one, selected: one === name })));
      this._chooser.hidden = names.length < 2;
    }
    this.facts.textContent = `${count(rows * columns)} numbers (${bytes(4 * rows * columns)}) that ${many(steps, "step")} of learning have changed. `
      + "A row belongs to a feature of the model’s state, a column to a part of the correction that the memory makes to it. The stronger a colour, the more has been learned.";
  }

  /**
   * Answer as the explorer's tiles are.
   * @param {Record<string, any>} message
   */
  async _tile({ y0, x0, y1, x1, rows, cols }) {
    try {
      const found = await this._server.json(this._path({ top: y0, left: x0, bottom: y1, right: x1, rows, columns: cols }));
      const [height, width] = found.size;
      return { reply: { rows: height, cols: width, block: found.block, largest: found.largest, share: 1 }, buffers: [bytesOf(found.numbers)] };
    } catch (error) {
      if (!isNoAnswer(error)) throw error;
      return { reply: { error: "The server does not answer." }, buffers: [] };
    }
  }
}
