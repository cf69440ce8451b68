// Widgets in saved notebooks: what was last seen of one is what is saved, and it stands in while, or as long as, the
// widget has no kernel. Without this JupyterLab says "Error displaying widget: model not found", hides the picture that
// it has, and saves the picture of the moment at which the cell ran.

import { askSaved, shareBar } from "./share.js";
import { showWork } from "./work.js";

/** @typedef {import("./viewer.js").FromLab} FromLab */
/** @typedef {import("./viewer.js").Shared} Shared */

const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";
const WIDGET_STATE = "application/vnd.jupyter.widget-state+json";

/** How long a save waits for what the kernel would say; one that is at work does not answer. */
const SAVE_WAITS_MS = 4000;

/** The page of a widget in a frame of its own: nothing in it runs, whatever the notebook holds. */
const FRAME_STYLE = "width:100%;border:0;display:block;height:24em";

/**
 * Whether the Lab is dark: then what lies in a frame of its own must be told so.
 * @param {HTMLElement} node
 */
const isDark = (node) => document.body.dataset.jpThemeLight === "false" || node.closest("[data-jp-theme-light='false']") !== null;

/**
 * @param {string | string[] | undefined} text  as notebooks hold it: whole, or in lines
 */
const whole = (text) => [text ?? ""].flat().join("");

/**
 * Put what was saved of a widget in its place: the page, or the picture and the text.
 * @param {HTMLElement} node
 * @param {Record<string, string | string[]>} data  by media type
 */
function showStill(node, data) {
  const text = whole(data["text/plain"]);
  const page = whole(data["text/html"]);
  const title = text.split("\n", 1)[0];
  if (page.includes('class="ak"')) {
    node.replaceChildren(pageFrame(page, title, isDark(node)));
    return;
  }
  const image = document.createElement("img");
  image.src = `data:image/png;base64,${whole(data["image/png"])}`;
  image.alt = title;
  image.style.maxWidth = "100%";
  const caption = document.createElement("pre");
  caption.textContent = text;
  const figure = document.createElement("figure");
  figure.className = "atlas-kit-still";
  figure.append(image, caption);
  node.replaceChildren(figure);
}

/**
 * @param {string} page
 * @param {string} title
 * @param {boolean} dark
 */
function pageFrame(page, title, dark) {
  const frame = document.createElement("iframe");
  frame.className = "atlas-kit-still";
  frame.title = title;
  frame.setAttribute("sandbox", "allow-same-origin"); // so that its height can be measured; no script runs in it
  frame.style.cssText = FRAME_STYLE;
  const rules = "default-src 'none'; style-src 'unsafe-inline'; img-src data:";
  frame.srcdoc =
    `<!doctype html><meta charset="utf-8"><meta http-equiv="Content-Security-Policy" content="${rules}">` +
    `<style>:root{color-scheme:${dark ? "dark" : "light"}}body{margin:0}` +
    `${dark ? ".ak .ak-shades{filter:var(--ak-night)}" : ""}</style>${page}`; // the frame knows nothing of the Lab's theme
  frame.addEventListener("load", () => {
    const body = frame.contentDocument?.body;
    if (!body) return;
    const fit = () => {
      frame.style.height = `${Math.ceil(body.scrollHeight) + 2}px`;
    };
    new ResizeObserver(fit).observe(body);
    fit();
  });
  return frame;
}

/**
 * Keep what was last seen of a widget that was closed where its view was: at once as it was saved, then as the kernel
 * tells it.
 * @param {FromLab} renderer
 * @param {FromLab} model
 * @param {() => FromLab} kernel
 * @param {string} closed  the id of the widget
 */
async function keepSeen(renderer, model, kernel, closed) {
  renderer.show();
  showStill(renderer.node, model.data);
  try {
    const asked = kernel() ? await askSaved(kernel(), "newest", [closed]) : null;
    const fresh = asked?.[closed];
    if (!fresh || renderer.isDisposed) return;
    model.setData({ data: { ...model.data, ...fresh }, metadata: model.metadata });
    showStill(renderer.node, model.data);
  } catch (error) {
    console.warn("atlas-kit: a widget that was closed is shown as it was saved", error);
  }
}

/**
 * Make one renderer of a widget show what was saved until, and unless, the living view is there. What a save writes
 * into the output is no reason to draw that view anew.
 * @param {FromLab} renderer
 * @param {() => FromLab} kernel
 */
function standIn(renderer, kernel) {
  const render = renderer.renderModel.bind(renderer);
  let living = "";
  renderer.renderModel = async (/** @type {FromLab} */ model) => {
    const wanted = model.data[WIDGET_VIEW]?.model_id ?? "";
    if (wanted && wanted === living && renderer.widgets.length) return;
    living = wanted;
    if (!wanted && model.data["image/png"]) {
      renderer.show(); // it was closed
      showStill(renderer.node, model.data);
      return;
    }
    const rendered = render(model); // ends never where no kernel is, and empties the node before a view comes
    if (!model.data["image/png"]) return rendered;
    showStill(renderer.node, model.data);
    await rendered;
    if (renderer.isDisposed) return; // its cell ran again meanwhile
    // The widget manager hides what was closed.
    renderer.widgets[0]?.disposed.connect(() => {
      if (!renderer.isDisposed) keepSeen(renderer, model, kernel, wanted);
    });
    if (!renderer.widgets.length && !renderer.isHidden) showStill(renderer.node, model.data);
    else if (!renderer.isHidden && !renderer.node.querySelector(":scope > .atlas-kit-share"))
      renderer.node.append(shareBar(kernel, wanted));
  };
  return renderer;
}

/**
 * The outputs of a notebook that are widgets of ours: those that have a picture beside the view.
 * @param {FromLab} notebook  its model
 * @returns {FromLab[]}
 */
function shownWidgets(notebook) {
  const found = [];
  for (const cell of notebook.cells) {
    for (let i = 0; cell.type === "code" && i < cell.outputs.length; i++) {
      const output = cell.outputs.get(i);
      if (output.data[WIDGET_VIEW]?.model_id && output.data["image/png"]) found.push(output);
    }
  }
  return found;
}

/**
 * Have a notebook saved with what was last seen of its widgets.
 * @param {FromLab} context
 */
function saveWhatIsSeen(context) {
  const save = context.save.bind(context);
  /** A page prefers a widget's state to its picture, and cannot draw it without scripts from elsewhere. */
  const forget = () => {
    const saved = context.model.getMetadata?.("widgets");
    const states = saved?.[WIDGET_STATE]?.state;
    if (!states) return;
    const ours = shownWidgets(context.model).map((output) => output.data[WIDGET_VIEW].model_id);
    const rest = Object.fromEntries(Object.entries(states).filter(([id]) => !ours.includes(id)));
    context.model.setMetadata("widgets", { ...saved, [WIDGET_STATE]: { ...saved[WIDGET_STATE], state: rest } });
  };
  context.saveState.connect((/** @type {FromLab} */ _, /** @type {string} */ state) => {
    if (state === "started") forget();
  });
  let asking = false; // a kernel that is at work answers when it is done: one question is enough for then
  context.save = async (/** @type {FromLab[]} */ ...given) => {
    try {
      const outputs = shownWidgets(context.model);
      const kernel = context.sessionContext.session?.kernel;
      if (outputs.length && kernel?.connectionStatus === "connected" && !asking) {
        asking = true;
        const models = outputs.map((output) => output.data[WIDGET_VIEW].model_id);
        const asked = askSaved(kernel, "newest", models).finally(() => {
          asking = false;
        });
        const late = new Promise((done) => setTimeout(() => done({}), SAVE_WAITS_MS));
        const data = (await Promise.race([asked, late])) ?? {};
        for (const output of outputs) {
          const fresh = data[output.data[WIDGET_VIEW].model_id];
          if (fresh && whole(output.data["text/html"]) !== fresh["text/html"])
            output.setData({ data: { ...output.data, ...fresh }, metadata: output.metadata });
        }
      }
    } catch (error) {
      console.warn("atlas-kit: the pictures of the widgets are saved as they were", error);
    }
    return save(...given);
  };
}

/**
 * Make the plugin. `shared` gives a package of the Lab.
 * @param {Shared} shared
 */
export async function stillPlugin(shared) {
  const { INotebookTracker } = await shared("@jupyterlab/notebook");
  return {
    id: "atlas-kit:still",
    description: "Shows and saves what was last seen of a widget, which is there without a kernel, too.",
    autoStart: true,
    requires: [INotebookTracker],
    /**
     * @param {FromLab} app
     * @param {FromLab} notebooks
     */
    activate(app, notebooks) {
      showWork(app);
      notebooks.widgetAdded.connect((/** @type {FromLab} */ _, /** @type {FromLab} */ panel) => {
        saveWhatIsSeen(panel.context);
        // The widget manager replaces its renderer factory as kernels come, so the place that asks it is the one to hold.
        const kernel = () => panel.sessionContext.session?.kernel;
        const { rendermime } = panel.content;
        const create = rendermime.createRenderer.bind(rendermime);
        rendermime.createRenderer = (/** @type {string} */ mimeType, /** @type {FromLab[]} */ ...rest) => {
          const renderer = create(mimeType, ...rest);
          return mimeType === WIDGET_VIEW ? standIn(renderer, kernel) : renderer;
        };
      });
    },
  };
}
