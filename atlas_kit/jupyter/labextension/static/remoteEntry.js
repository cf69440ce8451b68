// A module-federation container written by hand: JupyterLab asks it for init(shareScope) and get(module), no more.
// It is loaded by a plain <script>, so it cannot use import statements; everything else is in the module
// that it loads from the server's extension, which is as old as the Python package and never older.
(() => {
  /** @typedef {Record<string, Record<string, {get: () => Promise<() => any>}>>} ShareScope  versions by package */
  /** @type {ShareScope} */
  let scope = {};

  /**
   * The newest version of a package that the Lab shares with its extensions.
   * @param {string} name
   */
  const shared = async (name) => {
    const versions = scope[name];
    if (!versions) throw new Error(`atlas-kit: this JupyterLab does not share ${name}`);
    const newest = Object.keys(versions).sort((a, b) => a.localeCompare(b, "en", { numeric: true })).at(-1);
    if (newest === undefined) throw new Error(`atlas-kit: this JupyterLab shares no version of ${name}`);
    return (await versions[newest].get())();
  };

  const extension = async () => {
    const { PageConfig, URLExt } = await shared("@jupyterlab/coreutils");
    const home = URLExt.join(PageConfig.getBaseUrl(), "atlas-kit/static");
    const { viewerPlugin } = await import(`${home}/viewer.js`);
    const { stillPlugin } = await import(`${home}/still.js`);
    const plugins = await Promise.all([viewerPlugin(shared, home), stillPlugin(shared)]);
    return () => ({ __esModule: true, default: plugins });
  };

  const page = /** @type {Window & {_JUPYTERLAB?: Record<string, object>}} */ (window);
  page._JUPYTERLAB = page._JUPYTERLAB || {};
  page._JUPYTERLAB["atlas-kit"] = {
    /** @param {ShareScope} shareScope */
    init(shareScope) {
      scope = shareScope;
    },
    /** @param {string} module */
    get(module) {
      if (module !== "./extension") throw new Error(`atlas-kit: there is no module ${module}`);
      return extension();
    },
  };
})();
