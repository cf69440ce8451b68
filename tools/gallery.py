"""Pictures of every notebook, with its widgets, in both themes and two widths, on one page to be looked through.

``python tools/gallery.py [NAMES]`` runs the notebooks whose names begin so (all) in JupyterLab, and ``widgets``: those
that no notebook has, and writes ``build/pictures/index.html``. Needs Chromium, and minutes. What is seen is compared by
eye, and with nothing else.
"""

from __future__ import annotations

import argparse
import html
import shutil
import sys
import tempfile
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from browser_fixtures import CHROMIUM_ARGUMENTS, find_chromium  # noqa: E402

from tests.jupyter.labdriver import notebook_json, open_notebook, run_all, running_lab  # noqa: E402
from tools import notebooks  # noqa: E402
from tools.screenshots import lay_out  # noqa: E402

TARGET = ROOT / "build" / "pictures"
THEMES, WIDTHS = ("Light", "Dark"), (1280, 1920)
#: Widgets that no notebook shows.
MORE = {
    "widgets": (
        "from atlas_kit.widgets import FileExplorer, MatrixView, ModelCompare\n"
        'compare = ModelCompare("../sample_data/gguf/tiny.gguf", "../sample_data/models/tiny-python.gguf")\n'
        "compare.wait()\ncompare",
        'both = ModelCompare("../sample_data/models/tiny-python.gguf", "../sample_data/models/tiny-python.gguf")\n'
        "both.wait()\nboth",
        'explorer = FileExplorer("../sample_data/models/tiny-python.gguf")\nexplorer',
        'MatrixView(explorer.matrix("token_embd.weight"))',
    )
}
#: CSS pixels of the longest picture, and of a screen.
TALLEST, SCREEN = 14_000, 900
#: What solutions give opens: it is looked at, too.
UNFOLD = "document.querySelectorAll('.jp-RenderedHTMLCommon > details').forEach((one) => { one.open = true })"
OUTER = "window.jupyterapp.shell.currentWidget.content.node.querySelector('.jp-WindowedPanel-outer')"


def pictures(page: Page, name: str, theme: str, target: Path) -> list[str]:
    """Take an open notebook in each width; return the names of the files."""
    found = []
    page.evaluate(UNFOLD)
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": SCREEN})
        page.wait_for_timeout(500)
        tall = page.evaluate(f"{OUTER}.scrollHeight")
        page.set_viewport_size({"width": width, "height": min(TALLEST, int(tall) + 120)})
        page.evaluate(f"{OUTER}.scrollTo(0, 0)")  # running has moved it to the last cell
        page.wait_for_timeout(1500)  # canvases are drawn anew
        file = f"{name}-{theme.lower()}-{width}.png"
        (target / file).write_bytes(page.screenshot())  # in all of its colours: a small mark has its own, too
        found.append(file)
    return found


def page_of(files: list[str]) -> str:
    """Return the page that shows them."""
    shown = "".join(
        f'<figure><figcaption>{html.escape(file)}</figcaption><a href="{file}"><img src="{file}" loading="lazy" '
        f'alt="{html.escape(file)}" style="width:100%"></a></figure>'
        for file in files
    )
    return (
        "<!doctype html><meta charset=utf-8><title>Notebooks and widgets</title><style>body{font:14px sans-serif}"
        f"main{{display:grid;grid-template-columns:1fr 1fr;gap:12px}}figure{{margin:0}}</style><main>{shown}</main>"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="how a notebook's name begins, such as 03 (all)"
    )
    parser.add_argument("-o", "--output", type=Path, default=TARGET, help="where to put them")
    options = parser.parse_args()
    stems = [*(one.stem for one in notebooks.sources()), *MORE]
    chosen = [stem for stem in stems if stem.startswith(tuple(options.names or [""]))]
    options.output.mkdir(parents=True, exist_ok=True)
    failed = []
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as playwright:
        environment = lay_out(Path(folder))
        root = Path(folder) / "root"
        shutil.copytree(notebooks.FOLDER, root / "notebooks")
        for name, cells in MORE.items():
            (root / "notebooks" / f"{name}.ipynb").write_text(notebook_json(*cells), encoding="utf-8")
        browser = playwright.chromium.launch(
            executable_path=find_chromium(playwright), args=CHROMIUM_ARGUMENTS
        )
        for theme in THEMES:
            with running_lab(root, environment=environment, theme=f"JupyterLab {theme}") as lab:
                for stem in chosen:
                    page = browser.new_page(
                        viewport={"width": WIDTHS[0], "height": SCREEN}, reduced_motion="reduce"
                    )
                    open_notebook(page, lab, f"notebooks/{stem}.ipynb")
                    page.evaluate(
                        "window.jupyterapp.commands.execute('application:toggle-left-area').then(() => null)"
                    )
                    failed += [f"{stem}: {error}" for error in run_all(page, timeout=600)]
                    for file in pictures(page, stem, theme, options.output):
                        print(file, flush=True)
                    page.close()
        browser.close()
    files = sorted(path.name for path in options.output.glob("*.png"))
    (options.output / "index.html").write_text(page_of(files), encoding="utf-8")
    print(*failed, options.output / "index.html", sep="\n")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
