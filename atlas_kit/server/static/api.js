// The server as the page asks it: JSON, server-sent events, and the key that it may want. No document.

/** @typedef {Record<string, any>} Reply  JSON from the server */

/** Where the key is kept: in this tab, until it is closed. */
export const KEY = "atlas-key";

/** What the server refuses, in its own words. */
export class Refusal extends Error {
  /**
   * @param {number} status
   * @param {Reply} [body]
   */
  constructor(status, body) {
    const error = body?.error ?? {};
    super(error.message ?? `The server answered with status ${status}.`);
    this.status = status;
    /** @type {string | null} */
    this.code = error.code ?? null;
  }
}

/**
 * Whether something went wrong on the way to the server or there, and not in the page; fetch says so with a TypeError.
 * @param {unknown} error
 */
export const isNoAnswer = (error) => error instanceof Refusal || error instanceof TypeError;

/**
 * Bytes in base64, as the server sends blocks of numbers.
 * @param {string} text
 */
export const bytesOf = (text) => new DataView(Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0)).buffer);

/**
 * Yield the data of server-sent events, however they are cut on their way.
 * @param {ReadableStream<Uint8Array>} body
 * @returns {AsyncGenerator<Reply>}
 */
export async function* eventsOf(body) {
  const reader = body.getReader();
  const decoder = new TextDecoder();
  let rest = "";
  try {
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      rest += decoder.decode(value, { stream: true });
      const parts = rest.split("\n\n");
      rest = parts.pop() ?? "";
      for (const part of parts) {
        const data = part.split("\n").filter((line) => line.startsWith("data: ")).map((line) => line.slice(6)).join("\n");
        if (data && data !== "[DONE]") yield JSON.parse(data);
      }
    }
  } finally {
    reader.cancel().catch(() => {}); // it may have ended by itself
  }
}

export class Server {
  /** @param {(wrong: boolean) => Promise<string>} askKey gives a key; `wrong`: there was one */
  constructor(askKey) {
    this._askKey = askKey;
    /** @type {Promise<void> | null} */
    this._asking = null;
  }

  /** Whether a key is kept. */
  get hasKey() {
    return sessionStorage.getItem(KEY) !== null;
  }

  forgetKey() {
    sessionStorage.removeItem(KEY);
  }

  /**
   * Ask; where a key is wanted, ask for that first.
   * @param {string} path
   * @param {{method?: string, body?: unknown, signal?: AbortSignal}} [options]
   * @returns {Promise<Response>}
   */
  async fetch(path, { method, body, signal } = {}) {
    for (;;) {
      const key = sessionStorage.getItem(KEY);
      /** @type {Record<string, string>} */
      const headers = key ? { authorization: `Bearer ${key}` } : {};
      if (body !== undefined) headers["content-type"] = "application/json";
      const answer = await fetch(path, {
        method: method ?? (body === undefined ? "GET" : "POST"),
        headers,
        body: body === undefined ? undefined : JSON.stringify(body),
        signal,
      });
      if (answer.ok) return answer;
      if (answer.status !== 401) throw new Refusal(answer.status, await answer.json().catch(() => undefined));
      if (sessionStorage.getItem(KEY) === key) await this._newKey(key !== null); // else somebody else has asked
    }
  }

  /** @param {boolean} wrong */
  _newKey(wrong) {
    this._asking ??= this._askKey(wrong).then((key) => {
      sessionStorage.setItem(KEY, key);
      this._asking = null;
    });
    return this._asking;
  }

  /**
   * @param {string} path
   * @param {{method?: string, body?: unknown, signal?: AbortSignal}} [options]
   * @returns {Promise<Reply>}
   */
  async json(path, options) {
    return (await this.fetch(path, options)).json();
  }

  /**
   * Yield what the server sends, as it comes; an error in between is thrown.
   * @param {string} path
   * @param {{body?: unknown, signal?: AbortSignal}} [options]
   * @returns {AsyncGenerator<Reply>}
   */
  async *events(path, options) {
    const answer = await this.fetch(path, options);
    if (!answer.body) return;
    for await (const data of eventsOf(answer.body)) {
      if (data.error) throw new Refusal(500, data);
      yield data;
    }
  }
}
