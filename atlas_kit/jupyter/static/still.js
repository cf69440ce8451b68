// Widgets in a saved notebook: the picture that was saved with one stands in while, or as long as, it has no kernel.
// Without this JupyterLab says "Error displaying widget: model not found" and hides the picture that it has.

/** @typedef {import("./viewer.js").FromLab} FromLab */
/** @typedef {import("./viewer.js").Shared} Shared */

const WIDGET_VIEW = "application/vnd.jupyter.widget-view+json";

/**
 * Put the saved picture and text of an output in place of a widget.
 * @param {HTMLElement} node
 * @param {Record<string, string | string[]>} data  by media type
 */
function showStill(node, data) {
  const image = document.createElement("img");
  image.src = `data:image/png;base64,${[data["image/png"]].flat().join("")}`;
  const text = [data["text/plain"] ?? ""].flat().join("");
  image.alt = text.split("\n", 1)[0];
  const caption = document.createElement("pre");
  caption.textContent = text;
  const figure = document.createElement("figure");
  figure.className = "atlas-kit-still";
  figure.append(image, caption);
  node.replaceChildren(figure);
}

/**
 * Make one renderer of a widget show the picture until, and unless, the living view is there.
 * @param {FromLab} renderer
 */
function standIn(renderer) {
  const render = renderer.renderModel.bind(renderer);
  renderer.renderModel = async (/** @type {FromLab} */ model) => {
    const rendered = render(model); // ends never where no kernel is, and empties the node before a view comes
    if (!model.data["image/png"]) return rendered;
    showStill(renderer.node, model.data);
    await rendered;
    if (!renderer.widgets.length && !renderer.isHidden) showStill(renderer.node, model.data);
  };
  return renderer;
}

/**
 * Make the plugin. `shared` gives a package of the Lab.
 * @param {Shared} shared
 */
export async function stillPlugin(shared) {
  const { INotebookTracker } = await shared("@jupyterlab/notebook");
  return {
    id: "atlas-kit:still",
    description: "Shows the saved picture of a widget that has no kernel.",
    autoStart: true,
    requires: [INotebookTracker],
    /**
     * @param {FromLab} _app
     * @param {FromLab} notebooks
     */
    activate(_app, notebooks) {
      notebooks.widgetAdded.connect((/** @type {FromLab} */ _, /** @type {FromLab} */ panel) => {
        // The widget manager replaces its renderer factory as kernels come, so the place that asks it is the one to hold.
        const { rendermime } = panel.content;
        const create = rendermime.createRenderer.bind(rendermime);
        rendermime.createRenderer = (/** @type {string} */ mimeType, /** @type {FromLab[]} */ ...rest) => {
          const renderer = create(mimeType, ...rest);
          return mimeType === WIDGET_VIEW ? standIn(renderer) : renderer;
        };
      });
    },
  };
}
