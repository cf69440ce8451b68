// Below a widget of ours: buttons that save what it shows now as a picture, a page or a table. The kernel makes the file.

/** @typedef {import("./viewer.js").FromLab} FromLab */

/** @type {[form: string, what: string][]} */
const FORMS = [
  ["png", "a picture"],
  ["svg", "a picture that can be enlarged"],
  ["html", "a page to look around in, which needs no kernel and no network"],
  ["csv", "a table"],
];

const STYLE =
  "display:flex;flex-wrap:wrap;gap:4px;align-items:center;padding:5px 4px 2px;" +
  "font:var(--jp-ui-font-size0,11px) var(--jp-ui-font-family,sans-serif);color:var(--jp-ui-font-color1)";
const BUTTON =
  "font:inherit;color:inherit;background:var(--jp-layout-color2);border:1px solid var(--jp-border-color1);" +
  "border-radius:3px;padding:0 6px;cursor:pointer";

/**
 * Ask the kernel for a value of a function in `saved.py`.
 * @param {FromLab} kernel
 * @param {string} name
 * @param {...(string | string[])} given
 * @returns {Promise<any>}
 */
export async function askSaved(kernel, name, ...given) {
  const words = given.map((one) => JSON.stringify(one)).join(", ");
  const value = `__import__("atlas_kit.widgets.saved", fromlist=["${name}"]).${name}(${words})`;
  const future = kernel.requestExecute({ code: "", silent: true, store_history: false, user_expressions: { value } });
  const reply = await future.done;
  return reply?.content?.user_expressions?.value?.data?.["application/json"];
}

/**
 * @param {string} text  in base64
 * @param {string} name
 * @param {string} type
 */
function save(text, name, type) {
  const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes], { type }));
  link.download = name;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

/**
 * @param {() => FromLab} kernel  the one that the widget lives in now, if any
 * @param {string} model  the widget's id
 */
export function shareBar(kernel, model) {
  const bar = document.createElement("div");
  bar.className = "atlas-kit-share";
  bar.setAttribute("role", "group");
  bar.setAttribute("aria-label", "Save what is shown");
  bar.style.cssText = STYLE;
  const said = document.createElement("span");
  said.setAttribute("role", "status");
  for (const [form, what] of FORMS) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = form.toUpperCase();
    button.title = `Save what is shown as ${what}`;
    button.style.cssText = BUTTON;
    button.addEventListener("click", async () => {
      said.textContent = "Working …";
      try {
        const found = kernel() ? await askSaved(kernel(), "shared", model, form) : null;
        if (!found) said.textContent = "The kernel did not answer.";
        else if (found.error) said.textContent = found.error;
        else {
          save(found.data, found.filename, found.type);
          said.textContent = `Saved ${found.filename}`;
        }
      } catch (error) {
        said.textContent = `The kernel did not answer: ${error instanceof Error ? error.message : error}`;
      }
    });
    bar.append(button);
  }
  bar.append(said);                       // behind the buttons, which stay where they were pressed
  return bar;
}
