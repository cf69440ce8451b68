// What widgets of many parts need who works them by keyboard: a name, so that of two labs it is said which one Start
// belongs to; keys that stay with them; and a focus that is not lost when a button that was pressed can be pressed no more.

/** Classes of such widgets, and how they are called. */
const WHOLES = new Map([
  ["atlas-memory-lab", "MemoryLab"],
  ["atlas-memory-compare", "MemoryCompare"],
  ["atlas-model-compare", "ModelCompare"],
  ["atlas-playground", "CapacityPlayground"],
]);
/** Milliseconds within which the kernel says of all buttons whether they can be pressed. */
const TOGETHER = 250;

/** Tend the widgets of a page that nobody tends yet; those of a kind have numbers, which stay while they are there. */
export function tendWholes() {
  for (const [kind, name] of WHOLES) {
    const taken = new Set([...document.querySelectorAll(`.${kind}[role=group]`)].map((one) => one.ariaLabel));
    for (const one of document.querySelectorAll(`.${kind}:not([role])`)) {
      let number = 1;
      while (taken.has(`${name} ${number}`)) number += 1;
      taken.add(`${name} ${number}`);
      one.setAttribute("role", "group");
      one.setAttribute("aria-label", `${name} ${number}`);
      one.addEventListener("keydown", (event) => keepKey(/** @type {KeyboardEvent} */ (event)));
      keepFocus(one);
    }
  }
}

/**
 * Keep a key from the notebook, for which it has another use: X would cut the cell out, and an arrow leave it.
 * @param {KeyboardEvent} event
 */
export function keepKey(event) {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const plain = event.key.length === 1 || /^(Arrow|Page|Home|End|Delete|Backspace)/.test(event.key);
  if (plain || (event.key === "Enter" && !event.shiftKey)) event.stopPropagation();
}

/**
 * Give the focus of a button that is disabled to the one that takes its place: Pause after Start.
 * @param {Element} whole
 */
function keepFocus(whole) {
  /** @type {Map<Element, number>} buttons that can be pressed since then */
  const since = new Map();
  /** @type {EventTarget | null} */
  let last = null;
  whole.addEventListener("focusin", (event) => { last = event.target; });
  new MutationObserver((changes) => {
    for (const { target } of changes) {
      if (!(target instanceof HTMLButtonElement)) continue;
      if (!target.disabled) since.set(target, performance.now());
      else if (target === last) setTimeout(() => pass(target), TOGETHER / 2);
    }
  }).observe(whole, { attributeFilter: ["disabled"], subtree: true });

  /** @param {HTMLButtonElement} from */
  function pass(from) {
    const lost = document.activeElement === document.body || document.activeElement === from;
    if (!from.disabled || !lost || last !== from) return;
    const others = [...(from.parentElement?.querySelectorAll("button") ?? [])].filter((one) => !one.disabled);
    const fresh = others.find((one) => performance.now() - (since.get(one) ?? -Infinity) < TOGETHER);
    (fresh ?? others[0])?.focus();
  }
}
