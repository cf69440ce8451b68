// Small things that every part of the explorer uses: elements, numbers as text, the keys of lists and tabs.

/**
 * @typedef {Record<string, any>} Reply  JSON that the explorer answers; `error` and `hint` where it cannot
 * @typedef {(message: Record<string, unknown>) => Promise<Reply>} Ask
 * @typedef {(message: Record<string, unknown>) => Promise<{reply: Reply, buffers: DataView<ArrayBuffer>[]}>} Request
 * @typedef {(offset: number, size: number) => void} ShowBytes
 * @typedef {Record<string, number | undefined>} Steps  where keys lead, by their names
 * @typedef {Node | string | null | undefined} Child
 */

/**
 * Make an element. `attributes` are set as they are, except `text`, `class` (a name, or names of which some may be
 * false) and `on...` handlers.
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {Object<string, any>} [attributes]
 * @param {...Child} children
 * @returns {HTMLElementTagNameMap[K]}
 */
export function el(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value === null || value === undefined || value === false) continue;
    if (name === "text") node.textContent = value;
    else if (name === "class") node.className = [value].flat().filter(Boolean).join(" ");
    else if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else node.setAttribute(name, value === true ? "" : String(value));
  }
  node.append(...present(children));
  return node;
}

/**
 * Return the children that are there.
 * @param {Child[]} children
 */
const present = (children) => children.filter((child) => child !== null && child !== undefined);

let lastId = 0;
/**
 * Return an id that no other element of the page has.
 * @param {string} what
 */
export const uniqueId = (what) => `atlas-x-${what}-${++lastId}`;

/** @param {number | string} number */
export const count = (number) => Number(number).toLocaleString("en");
/**
 * @param {number} offset
 * @param {number} digits
 */
export const hex = (offset, digits = 8) => "0x" + offset.toString(16).padStart(digits, "0");

/**
 * Return a number of bytes as people say it: 65.2 KiB.
 * @param {number | null | undefined} size
 */
export function bytes(size) {
  if (size === null || size === undefined) return "";
  const units = ["bytes", "KiB", "MiB", "GiB", "TiB"];
  let unit = 0;
  while (size >= 1024 && unit < units.length - 1) {
    size /= 1024;
    unit += 1;
  }
  return unit ? `${size.toFixed(1)} ${units[unit]}` : `${size} ${size === 1 ? "byte" : "bytes"}`;
}

/**
 * Return one cell of a table as text.
 * @param {any} value  a number, a string or nothing
 * @param {string} kind
 */
export function cell(value, kind) {
  if (value === null || value === undefined) return "";
  if (kind === "bytes") return bytes(value);
  if (kind === "hex") return hex(value, 0);
  if (kind === "time") return time(value);
  if (kind === "number" && typeof value === "number")
    return Number.isInteger(value) ? count(value) : value.toPrecision(7).replace(/\.?0+$/, "");
  return String(value);
}

/** @param {number} seconds */
function time(seconds) {
  if (!seconds) return "unset";
  const moment = new Date(seconds * 1000);
  return Number.isNaN(moment.getTime()) ? "far in the future" : moment.toISOString().slice(0, 19).replace("T", " ");
}

/**
 * Return a message as a sentence: a capital first (but the names of programs and files stay as they are), a stop at its
 * end.
 * @param {string} text
 */
export const sentence = (text) =>
  (/^(\w+\.\w|atlas-tool)/.test(text) ? text : text[0].toUpperCase() + text.slice(1)) + (/[.!?…]$/.test(text) ? "" : ".");

/**
 * Have the browser save a file.
 * @param {BlobPart} data
 * @param {string} name
 * @param {string} type
 */
export function saveFile(data, name, type = "application/octet-stream") {
  const address = URL.createObjectURL(new Blob([data], { type }));
  el("a", { href: address, download: name }).click();
  setTimeout(() => URL.revokeObjectURL(address), 10000);
}

/**
 * Put a text on the clipboard.
 * @param {string} text
 */
export async function copyText(text) {
  if (navigator.clipboard) await navigator.clipboard.writeText(text);
  else {
    // a page without https: the way of old
    const before = document.activeElement;
    const box = el("textarea", { style: "position:fixed;opacity:0" });
    box.value = text;
    document.body.append(box);
    box.select();
    document.execCommand("copy");
    box.remove();
    if (before instanceof HTMLElement) before.focus({ preventScroll: true });
  }
}

/**
 * Whether a key means to copy what is chosen; not where a text is selected, which is copied as ever.
 * @param {KeyboardEvent} event
 */
export const isCopy = (event) =>
  (event.ctrlKey || event.metaKey) && !event.altKey && event.key.toLowerCase() === "c" && !String(getSelection() ?? "");

/**
 * Return the element with what is in it replaced.
 * @template {Element} E
 * @param {E} node
 * @param {...Child} children
 */
export function fill(node, ...children) {
  node.replaceChildren(...present(children));
  return node;
}

/**
 * Run `work` with the newest argument only, never twice at a time, so that what is asked for never piles up.
 * @template {unknown[]} A
 * @param {(...args: A) => Promise<void>} work
 */
export function newest(work) {
  let busy = false;
  /** @type {A | null} */
  let waiting = null;
  return async function run(/** @type {A} */ ...args) {
    waiting = args;
    if (busy) return;
    busy = true;
    try {
      while (waiting) {
        const now = waiting;
        waiting = null;
        await work(...now);
      }
    } finally {
      busy = false;
    }
  };
}

/**
 * Call `work` once `ms` milliseconds after the last call.
 * @template {unknown[]} A
 * @param {(...args: A) => void} work
 * @param {number} ms
 */
export function settled(work, ms) {
  let timer = 0;
  return (/** @type {A} */ ...args) => {
    clearTimeout(timer);
    timer = setTimeout(() => work(...args), ms);
  };
}

/**
 * Tabs after the ARIA pattern: arrow keys move and choose, one of them is in the tab order.
 * @param {string} label
 * @param {{id: string, label: string, badge?: string}[]} tabs
 * @param {(id: string, panel: HTMLElement) => void} show called when a tab is chosen
 */
export function tabs(label, tabs, show) {
  const list = el("div", { role: "tablist", "aria-label": label, class: "ax-tabs" });
  const panel = el("div", { role: "tabpanel", class: "ax-panel", id: uniqueId("panel"), tabindex: "-1" });
  /** @type {Map<string, HTMLButtonElement>} */
  const buttons = new Map();
  for (const tab of tabs) {
    const badge = el("span", { class: "ax-badge", text: tab.badge ?? "", hidden: !tab.badge });
    const button = el(
      "button",
      {
        role: "tab",
        type: "button",
        id: uniqueId("tab"),
        "aria-controls": panel.id,
        onclick: () => choose(tab.id),
        onkeydown: move,
      },
      tab.label,
      " ",
      badge,
    );
    buttons.set(tab.id, button);
    list.append(button);
  }
  /** @type {string | null} */
  let chosen = null;
  /**
   * @param {string} id
   * @param {boolean} focus
   */
  function choose(id, focus = false) {
    const wanted = buttons.get(id);
    if (!wanted) return;
    for (const [other, button] of buttons) {
      button.setAttribute("aria-selected", String(other === id));
      button.tabIndex = other === id ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", wanted.id);
    if (focus) wanted.focus();
    if (chosen !== id) {
      chosen = id;
      show(id, panel);
    }
  }
  /** @param {KeyboardEvent} event */
  function move(event) {
    const ids = [...buttons.keys()],
      at = ids.indexOf(chosen ?? "");
    const to = /** @type {Steps} */ ({ ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: ids.length - 1 })[event.key];
    if (to === undefined) return;
    event.preventDefault();
    event.stopPropagation();
    choose(ids[(to + ids.length) % ids.length], true);
  }
  return {
    list,
    panel,
    choose,
    get chosen() {
      return chosen;
    },
    /**
     * @param {string} id
     * @param {string} text
     */
    badge(id, text) {
      const badge = /** @type {HTMLElement | null | undefined} */ (buttons.get(id)?.querySelector(".ax-badge"));
      if (!badge) return;
      badge.textContent = text;
      badge.hidden = !text;
    },
  };
}

/**
 * Watch an element's width; returns what ends it.
 * @param {Element} node
 * @param {() => void} work
 */
export function onResize(node, work) {
  const observer = new ResizeObserver(() => requestAnimationFrame(work));
  observer.observe(node);
  return () => observer.disconnect();
}

/**
 * Keep an element's `color-scheme` that of its page: dark where the text is light. Hosts say so in their own ways, by
 * variables and attributes. Returns what ends it.
 * @param {HTMLElement} node
 * @param {() => void} changed
 */
export function followTheme(node, changed) {
  const follow = () => {
    node.style.colorScheme = "";
    const [r, g, b] = (getComputedStyle(node).color.match(/[\d.]+/g) ?? [0, 0, 0]).map(Number);
    node.style.colorScheme = 0.3 * r + 0.6 * g + 0.1 * b > 140 ? "dark" : "light";
    changed();
  };
  const observer = new MutationObserver(follow);
  observer.observe(document.body, { attributes: true });
  const system = matchMedia("(prefers-color-scheme: dark)");
  system.addEventListener("change", follow);
  follow();
  return () => {
    observer.disconnect();
    system.removeEventListener("change", follow);
  };
}

/**
 * Return a canvas' 2d context, its bitmap as fine as the screen; sizes are in CSS pixels.
 * @param {HTMLCanvasElement} canvas
 */
export function paintable(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, canvas.clientWidth),
    height = Math.max(1, canvas.clientHeight);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = /** @type {CanvasRenderingContext2D} */ (canvas.getContext("2d"));
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
