// Small things that every part of the explorer uses: elements, numbers as text, the keys of lists and tabs.

/**
 * Make an element. `attributes` are set as they are, except `text`, `class` (a name, or names of which some may be
 * false) and `on...` handlers.
 * @param {string} tag
 * @param {Object<string, any>} [attributes]
 * @param {...(Node|string|null)} children
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
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

let lastId = 0;
/** Return an id that no other element of the page has. */
export const uniqueId = (what) => `atlas-x-${what}-${++lastId}`;

export const count = (number) => Number(number).toLocaleString("en");
export const hex = (offset, digits = 8) => "0x" + offset.toString(16).padStart(digits, "0");

/** Return a number of bytes as people say it: 65.2 KiB. */
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

/** Return one cell of a table as text. */
export function cell(value, kind) {
  if (value === null || value === undefined) return "";
  if (kind === "bytes") return bytes(value);
  if (kind === "hex") return hex(value, 0);
  if (kind === "time") return time(value);
  if (kind === "number" && typeof value === "number")
    return Number.isInteger(value) ? count(value) : value.toPrecision(7).replace(/\.?0+$/, "");
  return String(value);
}

function time(seconds) {
  if (!seconds) return "unset";
  const moment = new Date(seconds * 1000);
  return Number.isNaN(moment.getTime()) ? "far in the future" : moment.toISOString().slice(0, 19).replace("T", " ");
}

/** Return a message as a sentence: a capital first, a stop at its end. */
export const sentence = (text) => text[0].toUpperCase() + text.slice(1) + (/[.!?…]$/.test(text) ? "" : ".");

/** Return the element with what is in it replaced. */
export function fill(node, ...children) {
  node.replaceChildren(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** Run `work` with the newest argument only, never twice at a time, so that what is asked for never piles up. */
export function newest(work) {
  let busy = false,
    waiting = null;
  return async function run(...args) {
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

/** Call `work` once `ms` milliseconds after the last call. */
export function settled(work, ms) {
  let timer = 0;
  return (...args) => {
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
  let chosen = null;
  function choose(id, focus = false) {
    if (!buttons.has(id)) return;
    for (const [other, button] of buttons) {
      button.setAttribute("aria-selected", String(other === id));
      button.tabIndex = other === id ? 0 : -1;
    }
    panel.setAttribute("aria-labelledby", buttons.get(id).id);
    if (focus) buttons.get(id).focus();
    if (chosen !== id) {
      chosen = id;
      show(id, panel);
    }
  }
  function move(event) {
    const ids = [...buttons.keys()],
      at = ids.indexOf(chosen);
    const to = { ArrowRight: at + 1, ArrowLeft: at - 1, Home: 0, End: ids.length - 1 }[event.key];
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
    badge(id, text) {
      const badge = buttons.get(id).querySelector(".ax-badge");
      badge.textContent = text;
      badge.hidden = !text;
    },
  };
}

/** Watch an element's width; returns what ends it. */
export function onResize(node, work) {
  const observer = new ResizeObserver(() => requestAnimationFrame(work));
  observer.observe(node);
  return () => observer.disconnect();
}

/**
 * Keep an element's `color-scheme` that of its page: dark where the text is light. Hosts say so in their own ways, by
 * variables and attributes. Returns what ends it.
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

/** Return a canvas' 2d context, its bitmap as fine as the screen; sizes are in CSS pixels. */
export function paintable(canvas) {
  const ratio = window.devicePixelRatio || 1;
  const width = Math.max(1, canvas.clientWidth),
    height = Math.max(1, canvas.clientHeight);
  if (canvas.width !== Math.round(width * ratio) || canvas.height !== Math.round(height * ratio)) {
    canvas.width = Math.round(width * ratio);
    canvas.height = Math.round(height * ratio);
  }
  const context = canvas.getContext("2d");
  context.setTransform(ratio, 0, 0, ratio, 0, 0);
  context.clearRect(0, 0, width, height);
  return { context, width, height };
}
