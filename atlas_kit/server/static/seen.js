// Whether anybody looks at the page: a browser keeps six connections to a server, and pages that nobody sees must not
// hold them all.

/** Wait until the page is seen. */
export async function seen() {
  while (document.hidden) {
    await new Promise((resolve) => document.addEventListener("visibilitychange", resolve, { once: true }));
  }
}

/**
 * What is aborted when nobody has seen the page for some time, or when another signal is; abort it at the end.
 * @param {number} ms
 * @param {AbortSignal} [other]
 */
export function untilUnseen(ms, other) {
  const found = new AbortController();
  let timer = 0;
  const look = () => {
    clearTimeout(timer);
    if (document.hidden) timer = setTimeout(() => found.abort(), ms);
  };
  document.addEventListener("visibilitychange", look, { signal: found.signal });
  found.signal.addEventListener("abort", () => clearTimeout(timer));
  if (other?.aborted) found.abort();
  other?.addEventListener("abort", () => found.abort(), { signal: found.signal });
  look();
  return found;
}
