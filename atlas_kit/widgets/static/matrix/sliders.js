// Names for the handles of ipywidgets' sliders: a screen reader would say "slider, 16" and not of what, and a number that
// is not always the one that stands beside it.
//
// One watcher serves all widgets of a page, whenever their sliders come, and ends with the last of them.

import { tendWholes } from "../wholes.js";

const UNNAMED = ".widget-slider:not([data-named])";
const LOOK_AFTER_MS = 120;

let views = 0;
let timer = 0;
/** @type {MutationObserver | null} */
let watcher = null;

function nameAll() {
  timer = 0;
  tendWholes();
  for (const slider of document.querySelectorAll(UNNAMED)) {
    const label = slider.querySelector(".widget-label"),
      readout = slider.querySelector(".widget-readout");
    const handles = slider.querySelectorAll("[role=slider]");
    if (!(slider instanceof HTMLElement) || !handles.length || !label?.textContent) continue;
    slider.dataset.named = "";
    for (const handle of handles) handle.setAttribute("aria-label", label.textContent.replace("↺", "").trim());
    if (readout && handles.length === 1) sayReadout(handles[0], readout);
  }
}

/**
 * Have a handle say what stands beside it.
 * @param {Element} handle
 * @param {Element} readout
 */
function sayReadout(handle, readout) {
  const say = () => {
    const text = readout.textContent ?? "";
    if (text && handle.getAttribute("aria-valuetext") !== text) handle.setAttribute("aria-valuetext", text);
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
    timer ||= setTimeout(nameAll, LOOK_AFTER_MS);
  });
  if (views === 1) watcher.observe(document.body, { childList: true, subtree: true });
  nameAll();
  return () => {
    views -= 1;
    if (views === 0) watcher?.disconnect();
  };
}
