// What JupyterLab does with .atlas and .gguf files: file types with icons, and a viewer that shows the explorer.
// Knows nothing of what is in such a file: explorer.js asks, and the server's extension answers.

/** @typedef {any} FromLab  JupyterLab's own: its packages come when the page runs, and without their types */
/** @typedef {(name: string) => Promise<FromLab>} Shared  gives a package of the Lab */

/** How often a view that is seen asks whether its file has changed; more and more rarely while there is no answer. */
const LOOK_EVERY_MS = 2000;
const LOOK_AT_LEAST_EVERY_MS = 60000;

/** What JupyterLab calls the viewer. */
const FACTORY = "ATLAS explorer";

const FILE_TYPES = [
  { name: "atlas", displayName: "ATLAS memory", extension: ".atlas", mimeType: "application/x-atlas" },
  { name: "gguf", displayName: "GGUF model", extension: ".gguf", mimeType: "application/x-gguf" },
];

/**
 * Sheets of 16 by 16: a memory is a grid of weights, a model a stack of layers.
 * @type {Record<string, string>}
 */
const ICONS = {
  atlas: "M2 2h5v5H2zM9 2h5v5H9zM2 9h5v5H2zM9 11.5h5v1H9zM11 9h1v5h-1z",
  gguf: "M8 1l7 3.5L8 8 1 4.5zM1 8l1.8-.9L8 9.7l5.2-2.6L15 8l-7 3.5zM1 11.5l1.8-.9L8 13.2l5.2-2.6 1.8.9L8 15z",
};

/** @param {string} path */
const iconSvg = (path) =>
  `<svg xmlns="http://www.w3.org/2000/svg" width="16" viewBox="0 0 16 16">
     <path class="jp-icon3 jp-icon-selectable" fill="#616161" d="${path}"/>
   </svg>`;

/**
 * Split what the server packs: the length of the JSON as u32, the JSON, the buffers that it names.
 * @param {ArrayBuffer} bytes
 */
export function unpack(bytes) {
  const length = new DataView(bytes).getUint32(0, true);
  const reply = JSON.parse(new TextDecoder().decode(new Uint8Array(bytes, 4, length)));
  let offset = 4 + length;
  const buffers = (reply.buffers ?? []).map((/** @type {number} */ size) => {
    offset += size;
    return new DataView(bytes, offset - size, size);
  });
  return { reply, buffers };
}

/**
 * A notebook of one cell that shows the file, which lies beside it. JSON strings are Python strings, too.
 * @param {string} name
 * @param {object} kernel
 */
function notebookOf(name, kernel) {
  const source = `from atlas_kit.widgets import FileExplorer\n\nFileExplorer(${JSON.stringify(name)})`;
  const cell = { cell_type: "code", id: "explorer", metadata: {}, execution_count: null, outputs: [], source };
  return { cells: [cell], metadata: { kernelspec: kernel }, nbformat: 4, nbformat_minor: 5 };
}

/**
 * The kernel for a new notebook: the server's default if that is Python, or else the first that is.
 * @param {FromLab} specs
 */
function pythonKernel(specs) {
  const all = specs?.kernelspecs ?? {};
  const names = [specs?.default, ...Object.keys(all)];
  const name = names.find((n) => all[n]?.language === "python") ?? "python3";
  return { name, display_name: all[name]?.display_name ?? name, language: "python" };
}

/**
 * Make the plugin.
 *
 * @param {Shared} shared
 * @param {string} home  where this module and explorer/explorer.js are
 */
export async function viewerPlugin(shared, home) {
  const lab = (/** @type {string} */ name) => shared(`@jupyterlab/${name}`);
  const { ILayoutRestorer } = await lab("application");
  const { WidgetTracker } = await lab("apputils");
  const { PathExt, URLExt } = await lab("coreutils");
  const { ABCWidgetFactory, Base64ModelFactory, DocumentWidget } = await lab("docregistry");
  const { ServerConnection } = await lab("services");
  const { LabIcon, ToolbarButton } = await lab("ui-components");
  const { UUID } = await shared("@lumino/coreutils");
  const { Widget } = await shared("@lumino/widgets");

  /** Opens a file without its content. */
  class NoContentModelFactory extends Base64ModelFactory {
    get name() {
      return "atlas-kit-no-content";
    }

    // Without a format the Lab asks for facts only (content=0); otherwise it would fetch all gigabytes as base64.
    get fileFormat() {
      return null;
    }

    // A document that can be saved gets a checkpoint when it is opened: the server would copy the model.
    // Lab never saves a collaborative model itself; readOnly on the widget factory does not stop it.
    /** @param {FromLab} options */
    createNew(options) {
      return super.createNew({ ...options, collaborationEnabled: true });
    }
  }

  /** The explorer of one file, followed as the file changes. */
  class Viewer extends Widget {
    /**
     * @param {FromLab} app
     * @param {FromLab} context
     */
    constructor(app, context) {
      super();
      this.addClass("atlas-kit-Viewer");
      this._app = app;
      this._context = context;
      this._name = UUID.uuid4();
      this._seen = "";
      this._timer = 0;
      /** @type {ReturnType<typeof import("../../widgets/static/explorer/explorer.js").mount> | null} */
      this._explorer = null;
      context.ready.then(() => this._show());
    }

    dispose() {
      if (this.isDisposed) return;
      clearTimeout(this._timer);
      this._explorer?.();
      super.dispose();
    }

    async _show() {
      // Before it is read, so that a change while it is read is seen; not what the Lab knows of the file, which has
      // other fields than an answer.
      this._seen = (await this._stamp()) ?? "";
      const { mount } = await import(`${home}/explorer/explorer.js`);
      if (this.isDisposed) return;
      this._explorer = mount(this.node, {
        request: (/** @type {Record<string, unknown>} */ message) => this._request(message),
        openBackup: (/** @type {string} */ name) => this._openBackup(name),
      });
      this._lookIn(LOOK_EVERY_MS);
    }

    /**
     * Open a file of the same folder beside this one.
     * @param {string} name
     */
    async _openBackup(name) {
      const path = PathExt.join(PathExt.dirname(this._context.path), name);
      await this._app.commands.execute("docmanager:open", { path, factory: FACTORY });
      return null;
    }

    /** @param {Record<string, unknown>} message */
    async _request(message) {
      const settings = this._app.serviceManager.serverSettings;
      const question = JSON.stringify(message);
      const secret = "passphrase" in message; // addresses end up in logs
      const query = secret ? { view: this._name } : { view: this._name, q: question };
      const path = URLExt.encodeParts(this._context.localPath);
      const url = URLExt.join(settings.baseUrl, "atlas-kit/explore", path) + URLExt.objectToQueryString(query);
      const init = secret ? { method: "POST", body: question } : {};
      const response = await ServerConnection.makeRequest(url, init, settings);
      if (!response.ok) throw await ServerConnection.ResponseError.create(response);
      return unpack(await response.arrayBuffer());
    }

    /** @param {number} wait */
    _lookIn(wait) {
      this._timer = setTimeout(async () => {
        const answered = await this._look();
        if (!this.isDisposed) this._lookIn(answered ? LOOK_EVERY_MS : Math.min(2 * wait, LOOK_AT_LEAST_EVERY_MS));
      }, wait);
    }

    /** Show the file again if it is another one now; false where nobody can say. */
    async _look() {
      if (!this.isVisible || document.hidden) return true;
      const now = await this._stamp();
      if (now === null) return false; // the file is gone, or the server is: what is on the screen is the last that is known
      if (now !== this._seen && !this.isDisposed) {
        const first = this._seen === "";
        this._seen = now;
        if (!first) await this._explorer?.changed();
      }
      return true;
    }

    /** What differs if the file does; null where nobody can say. */
    async _stamp() {
      try {
        const model = await this._app.serviceManager.contents.get(this._context.path, { content: false });
        return `${model.last_modified} ${model.size}`;
      } catch {
        return null;
      }
    }
  }

  /**
   * Make a notebook beside the file, open it, and run its one cell.
   * @param {FromLab} app
   * @param {FromLab} context
   */
  async function openNotebook(app, context) {
    const { contents, kernelspecs } = app.serviceManager;
    await kernelspecs.ready;
    const made = await contents.newUntitled({ path: PathExt.dirname(context.path), type: "notebook" });
    const content = notebookOf(PathExt.basename(context.localPath), pythonKernel(kernelspecs.specs));
    await contents.save(made.path, { type: "notebook", format: "json", content });
    const panel = await app.commands.execute("docmanager:open", { path: made.path });
    if (!panel?.context) return; // Notebook 7 opens it in a window of its own
    await panel.context.ready;
    await panel.sessionContext.ready;
    await app.commands.execute("notebook:run-cell");
  }

  class ViewerFactory extends ABCWidgetFactory {
    /**
     * @param {FromLab} app
     * @param {FromLab} options
     */
    constructor(app, options) {
      super(options);
      this._app = app;
    }

    /** @param {FromLab} context */
    createNewWidget(context) {
      const view = new DocumentWidget({ content: new Viewer(this._app, context), context });
      const button = new ToolbarButton({
        label: "Open in notebook",
        tooltip: "Make a notebook beside this file and show it there",
        onClick: () => openNotebook(this._app, context),
      });
      view.toolbar.addItem("open-in-notebook", button);
      view.title.icon = this._app.docRegistry.getFileTypesForPath(context.path)[0]?.icon;
      return view;
    }
  }

  function addStyle() {
    const link = document.createElement("link");
    link.rel = "stylesheet";
    link.href = `${home}/explorer/explorer.css`;
    document.head.append(link, Object.assign(document.createElement("style"), {
      textContent: ".atlas-kit-Viewer { overflow: auto; background: var(--jp-layout-color1, white); }",
    }));
  }

  return {
    id: "atlas-kit:viewer",
    description: "Opens .atlas and .gguf files in the explorer.",
    autoStart: true,
    optional: [ILayoutRestorer],
    /**
     * @param {FromLab} app
     * @param {FromLab} restorer
     */
    activate(app, restorer) {
      addStyle();
      // The first double-click should not wait for scripts; should they fail to load now, it tries again.
      app.restored.then(() => import(`${home}/explorer/explorer.js`)).catch(() => {});
      const { docRegistry } = app;
      for (const { name, displayName, extension, mimeType } of FILE_TYPES) {
        const icon = new LabIcon({ name: `atlas-kit:${name}`, svgstr: iconSvg(ICONS[name]) });
        const fixed = { fileFormat: "base64", contentType: "file", icon };
        docRegistry.addFileType({ name, displayName, extensions: [extension], mimeTypes: [mimeType], ...fixed });
      }
      docRegistry.addModelFactory(new NoContentModelFactory());
      const names = FILE_TYPES.map((type) => type.name);
      const factory = new ViewerFactory(app, {
        name: FACTORY,
        modelName: "atlas-kit-no-content",
        fileTypes: names,
        defaultFor: names,
        readOnly: true,
      });
      docRegistry.addWidgetFactory(factory);
      const tracker = new WidgetTracker({ namespace: "atlas-kit-viewer" });
      factory.widgetCreated.connect((/** @type {FromLab} */ _, /** @type {FromLab} */ view) => tracker.add(view));
      restorer?.restore(tracker, {
        command: "docmanager:open",
        args: (/** @type {FromLab} */ view) => ({ path: view.context.path, factory: FACTORY }),
        name: (/** @type {FromLab} */ view) => view.context.path,
      });
    },
  };
}
