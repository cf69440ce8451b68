// What a page says when the kernel that knew its widgets is gone: once for each whole, above all of its parts.
// ipywidgets tells the models, and marks its own views by a class; not anywidget's, but those have a layout that knows.

export const GONE =
  "The kernel was restarted or is gone, so that it does not answer. This picture is from before: run the cell again.";

const MARK = "jupyter-widgets-disconnected";

/** @typedef {{get: (name: string) => any, on: (name: string, callback: () => void) => void,
 *             off: (name: string, callback: () => void) => void}} Told */

/**
 * @param {Told} model
 * @param {Element} el
 */
export const isGone = (model, el) => model.get("layout")?.comm_live === false || el.closest(`.${MARK}`) !== null;

/**
 * Return the outermost widget that a view is a part of.
 * @param {Element} el
 */
function whole(el) {
  let outermost = el;
  for (let one = el.parentElement; one; one = one.parentElement) if (one.matches(".jupyter-widgets")) outermost = one;
  return outermost;
}

/**
 * Say that the kernel is gone as soon as it is; return what ends that. A MemoryLab says so in its own line.
 * @param {Told} model
 * @param {Element} el
 */
export function tellWhenGone(model, el) {
  const connected = () => setTimeout(() => {
    const all = whole(el);
    const said = all.querySelector(":scope > .atlas-gone");
    if (!isGone(model, el)) said?.remove();
    else if (!said && !all.querySelector(".atlas-lab")) {
      const note = document.createElement("p");
      note.className = "atlas-gone";
      note.setAttribute("role", "status");
      note.style.cssText = "flex:none;margin:0 0 4px;padding:2px 8px;border-left:3px solid var(--jp-error-color1,#b3261e);"
        + "color:var(--jp-ui-font-color1,inherit);font:13px/1.5 var(--jp-ui-font-family,system-ui,sans-serif)";
      note.textContent = GONE;
      all.prepend(note);
    }
  });
  model.on("comm_live_update", connected);
  return () => model.off("comm_live_update", connected);
}
