// A lab that learns has the Lab show that something is at work, as long as it lasts. Without this every frame, whose
// acknowledgement makes the kernel busy for a moment, has the browser load the busy icon and then the idle one again.

/** @typedef {import("./viewer.js").FromLab} FromLab */

/**
 * Hold the Lab's busy sign while any widget says that it works (the event "atlas-work", with who it is).
 * @param {FromLab} app
 */
export function showWork(app) {
  /** @type {Set<string>} */
  const working = new Set();
  /** @type {FromLab} */
  let sign = null;
  document.addEventListener("atlas-work", (event) => {
    if (!(event instanceof CustomEvent)) return;
    const { who, works } = event.detail;
    if (works) working.add(who);
    else working.delete(who);
    if (working.size && !sign) sign = app.status?.setBusy?.() ?? null;
    else if (!working.size && sign) {
      sign.dispose();
      sign = null;
    }
  });
}
