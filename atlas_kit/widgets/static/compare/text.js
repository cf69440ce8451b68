// A text under two memories: every token coloured by how differently they saw it coming, the greatest differences
// first, and for one token what model, A and B expected. What is blue and what is orange is also dotted and solid.

/** @typedef {import("../explorer/dom.js").Steps} Steps */

/**
 * @typedef {import("../matrix/matrix.js").Model} Model
 * @typedef {{piece: string, p: number[], came: boolean}} Expected  what model, A and B gave to a token
 * @typedef {{name: string, sides: [weight: number, p: number][]}} Known  one source, in A and in B
 * @typedef {[name: string, className: string]} Head
 */

const TOKENS_PER_PAGE = 12;

/**
 * @template {keyof HTMLElementTagNameMap} K
 * @param {K} tag
 * @param {string} [className]
 * @param {string} [text]
 * @returns {HTMLElementTagNameMap[K]}
 */
function make(tag, className, text) {
  const node = document.createElement(tag);
  if (className) node.className = className;
  if (text !== undefined) node.textContent = text;
  return node;
}

/**
 * Make white space visible where a token is named by itself.
 * @param {string} piece
 */
export function named(piece) {
  return piece.replaceAll("\n", "⏎").replaceAll("\t", "⇥").replace(/^ +| +$/g, (spaces) => "␣".repeat(spaces.length)) || "∅";
}

/** @param {number} p */
export function percent(p) {
  if (p >= 0.0995) return `${Math.round(100 * p)} %`;
  return p >= 0.00095 ? `${(100 * p).toFixed(1)} %` : "< 0.1 %";
}

/**
 * How strongly a token is marked, 0 to 1, and on whose side ("a", "b" or "js").
 * @param {"js"|"gain"} measure
 * @param {number} value
 * @param {number} most
 */
export function mark(measure, value, most) {
  const strength = most > 0 ? Math.min(1, Math.abs(value) / most) : 0;
  return { strength, side: measure === "js" ? "js" : value > 0 ? "b" : "a" };
}

/** @param {{model: Model, el: Element}} given */
function render({ model, el }) {
  const root = make("div", "atlas-compare atlas-behaviour");
  const scores = make("div", "scores");
  const bar = make("div", "bar");
  const label = make("label", "", "Colour by ");
  const select = document.createElement("select");
  for (const [value, text] of [["gain", "who held the token for likelier"], ["js", "how far the predictions are apart"]]) {
    const option = make("option", "", text);
    option.value = value;
    select.append(option);
  }
  label.append(select);
  const legend = make("div", "legend");
  bar.append(label, legend);
  const text = make("div", "text");
  text.tabIndex = 0;
  text.setAttribute("role", "listbox");
  text.setAttribute("aria-label", "The text, token by token. Arrow keys move.");
  const list = make("ol", "largest");
  const heading = make("h4", "", "Largest differences");
  const detail = make("div", "detail");
  detail.setAttribute("aria-live", "polite");
  const side = make("div", "side");
  side.append(heading, list);
  const columns = make("div", "columns");
  columns.append(text, side);
  root.append(scores, bar, columns, detail);
  el.append(root);
  const prefix = `atlas-token-${Math.random().toString(36).slice(2)}`;
  /** @type {HTMLElement[]} one per token; the first has no prediction */
  let spans = [];

  const labels = () => /** @type {[string, string]} */ (model.get("labels"));
  const pieces = () => /** @type {string[]} */ (model.get("pieces"));
  const measure = () => /** @type {"js"|"gain"} */ (model.get("measure"));
  const values = () => /** @type {number[]} */ (model.get(measure()));
  /** Probabilities that model, A and B gave to a token; the first has none. */
  const given = (/** @type {number} */ at) => /** @type {number[]} */ (model.get("logprob")[at - 1]).map(Math.exp);

  function drawScores() {
    const found = /** @type {Record<string, number>} */ (model.get("perplexity"));
    /** @type {Record<string, string>} */
    const names = { model: "model alone", a: labels()[0], b: labels()[1] };
    const best = Math.min(...Object.values(found));
    scores.replaceChildren(make("span", "note", "Perplexity of this text"),
      ...Object.entries(found).map(([who, value]) => {
        const score = make("span", `score ${who}`);
        score.append(make("span", "name", names[who]), make("strong", "", value.toFixed(2)),
          make("span", "note", value === best ? "lowest" : ""));
        return score;
      }));
  }

  /** @param {number} most */
  function drawLegend(most) {
    const gain = measure() === "gain";
    const sample = (/** @type {string} */ side, /** @type {string} */ name) => {
      const item = make("span", `token ${side}`, name);
      item.style.setProperty("--strength", "1");
      return item;
    };
    legend.replaceChildren(...(gain
      ? [sample("a", `${labels()[0]} likelier`), sample("b", `${labels()[1]} likelier`)]
      : [sample("js", "far apart")]),
      make("span", "note", `strongest: ${most.toFixed(2)} nats`));
  }

  function drawText() {
    const found = values();
    const most = found.reduce((so_far, value) => Math.max(so_far, Math.abs(value)), 0);
    spans = pieces().map((piece, at) => {
      const span = make("span", "token");
      span.textContent = piece.replaceAll("\n", "⏎\n");
      span.id = `${prefix}-${at}`;
      span.setAttribute("role", "option");
      span.setAttribute("aria-selected", "false");
      span.setAttribute("aria-label", describe(at));
      if (at > 0) {
        const { strength, side } = mark(measure(), found[at - 1], most);
        span.classList.add(side);
        span.style.setProperty("--strength", strength.toFixed(3));
        if (strength < 0.04) span.classList.add("faint");
      }
      return span;
    });
    text.replaceChildren(...spans);
    drawLegend(most);
    drawSelected(false);
  }

  /** @param {number} at */
  function describe(at) {
    const name = named(pieces()[at]);
    if (at === 0) return `${name}, the first token`;
    const [, a, b] = given(at);
    return `${name}: ${labels()[0]} ${percent(a)}, ${labels()[1]} ${percent(b)}`;
  }

  /**
   * What stands before a token, on one line.
   * @param {number} at
   * @param {number} count
   */
  function before(at, count) {
    return pieces().slice(Math.max(0, at - count), at).join("").replaceAll("\n", "⏎");
  }

  function drawList() {
    const largest = /** @type {number[]} */ (model.get("largest")[measure()]);
    list.replaceChildren(...largest.map((row) => {
      const item = make("li");
      const button = make("button");
      button.type = "button";
      const [, a, b] = given(row + 1);
      const piece = make("code", "");
      piece.append(make("span", "note", before(row + 1, 2)), make("b", "", named(pieces()[row + 1])));
      button.append(piece,
        make("span", "a", percent(a)), make("span", "b", percent(b)),
        make("span", "note", `${Math.abs(values()[row]).toFixed(2)} nats`));
      button.addEventListener("click", () => choose(row + 1));
      item.append(button);
      return item;
    }));
    if (!list.children.length) list.append(make("li", "note", "None: they expect the same everywhere."));
  }

  /** @param {boolean} scroll */
  function drawSelected(scroll) {
    const at = model.get("selected");
    text.querySelector('[aria-selected="true"]')?.setAttribute("aria-selected", "false");
    const span = spans[at];
    if (!span) return text.removeAttribute("aria-activedescendant");
    span.setAttribute("aria-selected", "true");
    text.setAttribute("aria-activedescendant", span.id);
    if (scroll) { // inside the text only: the page stays where it is
      const box = text.getBoundingClientRect();
      const place = span.getBoundingClientRect();
      if (place.top < box.top || place.bottom > box.bottom) text.scrollTop += place.top - box.top - box.height / 2;
    }
  }

  /** @param {number} p */
  function bars(p) {
    const td = make("td");
    const meter = make("span", "meter");
    meter.style.setProperty("--share", p.toFixed(4));
    td.append(meter, make("span", "value", percent(p)));
    return td;
  }

  /** @param {[weight: number, p: number]} side */
  function share([weight, p]) {
    const td = bars(weight * p);
    td.prepend(make("span", "note", `${percent(weight)} × ${percent(p)} = `));
    return td;
  }

  /**
   * @param {Node | string} name
   * @param {HTMLElement[]} cells
   * @param {string} [className]
   */
  function row(name, cells, className) {
    const tr = make("tr", className);
    const th = make("th");
    th.scope = "row";
    th.append(name);
    tr.append(th, ...cells);
    return tr;
  }

  /**
   * @param {string} caption
   * @param {Head[]} heads
   * @param {HTMLElement[]} rows
   */
  function table(caption, heads, rows) {
    const node = make("table");
    node.append(make("caption", "", caption));
    const head = make("tr");
    heads.forEach(([name, className]) => {
      const th = make("th", className, name);
      th.scope = "col";
      head.append(th);
    });
    const thead = make("thead");
    thead.append(head);
    const body = make("tbody");
    body.append(...rows);
    node.append(thead, body);
    return node;
  }

  function drawDetail() {
    const found = model.get("detail");
    if (!found.token) {
      detail.replaceChildren(make("p", "note", "Choose a token to see what each expected there."));
      return;
    }
    /** @type {Head[]} */
    const who = [["model alone", "model"], [labels()[0], "a"], [labels()[1], "b"]];
    const title = make("h4");
    title.append("After ", make("code", "", before(model.get("selected"), 8)), " came ",
      make("code", "came", named(found.token)));
    const expected = table("What was expected", [["token", ""], ...who], found.expected.map((/** @type {Expected} */ one) => {
      const name = make("code", "", named(one.piece));
      const cells = one.p.map(bars);
      const line = row(name, cells, one.came ? "came" : "");
      if (one.came) line.firstElementChild?.append(make("span", "note", " came"));
      return line;
    }));
    const known = table("Who knew it: weight in the blend × what it gave to the token that came",
      [["source", ""], ...who.slice(1)], found.known.map((/** @type {Known} */ one) => row(one.name, one.sides.map(share))));
    const both = make("div", "tables");
    both.append(expected, known);
    detail.replaceChildren(title, both);
  }

  /** @param {number} at */
  function choose(at) {
    model.set("selected", at);
    model.save_changes();
    drawSelected(true);
  }

  text.addEventListener("click", (event) => {
    const token = /** @type {Element} */ (event.target).closest(".token");
    const at = spans.findIndex((span) => span === token);
    if (at > 0) choose(at);
  });
  text.addEventListener("keydown", (event) => {
    const at = model.get("selected");
    const to = /** @type {Steps} */ ({ ArrowRight: at + 1, ArrowLeft: at - 1, ArrowDown: at + TOKENS_PER_PAGE,
      ArrowUp: at - TOKENS_PER_PAGE, Home: 1, End: spans.length - 1 })[event.key];
    if (to === undefined || spans.length < 2) return;
    event.preventDefault();
    event.stopPropagation(); // or the notebook would take the key
    choose(Math.min(spans.length - 1, Math.max(1, to)));
  });
  select.addEventListener("change", () => {
    model.set("measure", select.value);
    model.save_changes();
    drawText();
    drawList();
  });

  function draw() {
    root.hidden = model.get("pieces").length < 2;
    if (root.hidden) return;
    select.value = model.get("measure");
    drawScores();
    drawText();
    drawList();
    drawDetail();
  }

  /** @type {Record<string, () => void>} */
  const handlers = { "change:shown": draw, "change:detail": drawDetail, "change:selected": () => drawSelected(true) };
  for (const [name, handler] of Object.entries(handlers)) model.on(name, handler);
  draw();
  return () => Object.entries(handlers).forEach(([name, handler]) => model.off(name, handler));
}

export default { render };
