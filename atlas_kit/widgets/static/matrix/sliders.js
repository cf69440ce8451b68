// Names for the handles of ipywidgets' sliders: a screen reader would say "slider, 16" and not of what.
//
// A handle is named by the label that stands beside it, so that a label that changes is the name that changes. One
// watcher serves all widgets of a page, and ends with the last of them.

const UNNAMED = ".widget-slider .noUi-handle:not([aria-labelledby])";
const LOOK_AFTER_MS = 120;

let views = 0;
let lastId = 0;
let timer = 0;
/** @type {MutationObserver | null} */
let watcher = null;

function name() {
  timer = 0;
  for (const handle of document.querySelectorAll(UNNAMED)) {
    const label = handle.closest(".widget-slider")?.querySelector(".widget-label");
    if (!label) continue;
    label.id ||= `atlas-slider-${++lastId}`;
    handle.setAttribute("aria-labelledby", label.id);
    sayReadout(handle);
  }
}

/**
 * Let a handle say the number that stands beside it, which is not always its own.
 * @param {Element} handle
 */
function sayReadout(handle) {
  const readout = handle.closest(".widget-slider")?.querySelector(".widget-readout");
  if (!readout) return;
  const say = () => {
    const text = readout.textContent ?? "";
    if (handle.getAttribute("aria-valuetext") !== text) handle.setAttribute("aria-valuetext", text);
  };
  new MutationObserver(say).observe(readout, { childList: true, characterData: true, subtree: true });
  new MutationObserver(say).observe(handle, { attributeFilter: ["aria-valuetext"] }); // which it sets by itself
  say();
}

/**
 * Name the sliders of the page, those that come later, too. Returns what ends it.
 * @returns {() => void}
 */
export function nameSliders() {
  views += 1;
  watcher ??= new MutationObserver(() => {
    timer ||= setTimeout(name, LOOK_AFTER_MS);
  });
  if (views === 1) watcher.observe(document.body, { childList: true, subtree: true });
  name();
  return () => {
    views -= 1;
    if (views === 0) watcher?.disconnect();
  };
}
