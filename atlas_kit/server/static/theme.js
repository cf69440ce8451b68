// Light or dark, before anything is drawn: as was chosen here, else as the system says.
// The widgets' style sheets ask for JupyterLab's attribute.

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  function apply() {
    const chosen = localStorage.getItem("atlas-theme");
    const dark = chosen ? chosen === "dark" : system.matches;
    document.documentElement.dataset.jpThemeLight = String(!dark);
    document.documentElement.style.colorScheme = dark ? "dark" : "light";
    document.dispatchEvent(new Event("atlas-theme"));
  }
  system.addEventListener("change", apply);
  addEventListener("storage", apply);
  document.addEventListener("atlas-theme-chosen", apply);
  apply();
})();
