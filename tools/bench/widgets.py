"""How quickly a matrix is on the screen: from the request for an update to the new picture, in a real JupyterLab.

    python tools/bench/widgets.py                  # everything (part of make bench), some three minutes
    python tools/bench/widgets.py --quick          # fewer rounds: to see that it works
    python tools/bench/widgets.py --only matrix
    python tools/bench/widgets.py --save           # into tools/bench/results/

One page of one JupyterLab in Chromium, one kernel: `MatrixView`, a plotly ``FigureWidget`` heatmap and pyplot in an
``Output``, one below the other. The clock starts with a click on a button that updates one of them, and stops after
the first animation frame that has the new picture, decoded. They take turns, and a time is the best of its rounds: what
a busy machine adds is never negative; medians are noted beside. Exit 1 when a limit is missed.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from playwright.sync_api import Page, sync_playwright  # noqa: E402

from tests.browser_fixtures import CHROMIUM_ARGUMENTS, find_chromium  # noqa: E402
from tests.jupyter.labdriver import notebook_json, open_notebook, run_all, running_lab  # noqa: E402
from tools.bench import _widgets_lab, _widgets_open  # noqa: E402
from tools.bench.formats import Row  # noqa: E402
from tools.bench.memory import keep, machine_of, measured  # noqa: E402

SIDES = (512, 1024)
#: How much quicker than each rival.
LIMITS = {"plotly": 12.0, "pyplot": 2.0}
NAMES = {"plotly": "plotly FigureWidget heatmap", "pyplot": "pyplot in an Output"}

#: Two matrices that alternate, so that every update is another picture, and a button for each update.
DATA = f"""
import itertools
import ipywidgets
import numpy as np
rng = np.random.default_rng(0)
SIDES = {SIDES}
pictures = {{side: itertools.cycle([rng.standard_normal((side, side)).astype(np.float32) for _ in range(2)])
            for side in SIDES}}
def buttons(name, update):
    made = []
    for side in SIDES:
        button = ipywidgets.Button(description=f"{{name}} {{side}}")
        button.add_class(f"{{name}}-{{side}}")
        button.on_click(lambda _, side=side: update(next(pictures[side])))
        made.append(button)
    return ipywidgets.HBox(made)
"""
CELLS = {
    "ours": """
from atlas_kit.widgets import MatrixView
view = MatrixView(np.zeros((2, 2), np.float32))
ipywidgets.VBox([buttons("ours", view.update), view])
""",
    "plotly": """
import plotly.graph_objects as go
figure = go.FigureWidget(go.Heatmap(z=np.zeros((2, 2))), layout={"width": 420, "height": 400})
def update_plotly(matrix):
    figure.data[0].z = matrix
ipywidgets.VBox([buttons("plotly", update_plotly), figure])
""",
    "pyplot": """
import matplotlib.pyplot as plt
out = ipywidgets.Output()
def update_pyplot(matrix):
    with out:
        out.clear_output(wait=True)
        plt.figure(figsize=(4, 3.6))
        plt.imshow(matrix, cmap="RdBu_r")
        plt.colorbar()
        plt.show()
ipywidgets.VBox([buttons("pyplot", update_pyplot), out])
""",
}
#: In the page: what names the picture that is shown (undefined: none yet), and how to wait until it is decoded.
PICTURES = """
const decoded = (source) => { const image = new Image(); image.src = source; return image.decode(); };
const last = (selector) => [...document.querySelectorAll(selector)].at(-1);
const heatmap = () => last(".js-plotly-plot .hm image");
const pictures = {
    ours: { now: () => last(".atlas-matrix-picture canvas")?.dataset.number, ready: async () => {} },
    plotly: { now: () => heatmap()?.getAttribute("href") ?? heatmap()?.getAttribute("xlink:href"), ready: decoded },
    pyplot: { now: () => last(".jp-OutputArea-output img")?.src, ready: decoded },
};
const changed = (picture, old) => new Promise((done, failed) => {
    const late = setTimeout(() => failed(new Error("nothing new was shown")), 60000);
    const watcher = new MutationObserver(() => {
        if (picture.now() === old || picture.now() === undefined) return;
        clearTimeout(late);
        watcher.disconnect();
        done();
    });
    watcher.observe(document.body, { subtree: true, childList: true, attributes: true });
});
window.timeUpdate = async ([name, side]) => {
    const picture = pictures[name], button = document.querySelector(`.${name}-${side}`);
    const change = changed(picture, picture.now()), start = performance.now();
    button.click();
    await change;
    await picture.ready(picture.now());
    await new Promise(requestAnimationFrame);
    return (performance.now() - start) / 1000;
};
"""


class Bench:
    """A page with all of them, and how long to measure."""

    def __init__(self, page: Page, quick: bool) -> None:
        self.page, self.quick = page, quick
        page.evaluate(f"() => {{{PICTURES}}}")

    def update(self, name: str, side: int) -> float:
        """Return the seconds from one request to its picture."""
        spent: float = self.page.evaluate("(given) => window.timeUpdate(given)", [name, side])
        self.page.wait_for_timeout(150)  # what the last one left to do is not the next one's
        return spent

    def turns(self, side: int) -> dict[str, list[float]]:
        """Time all of them in turns; the first round warms up."""
        times: dict[str, list[float]] = {name: [] for name in CELLS}
        for number in range((3 if self.quick else 12) + 1):
            for name, spent in times.items():
                seconds = self.update(name, side)
                if number:
                    spent.append(seconds)
        return times


def matrix(bench: Bench) -> Iterator[Row]:
    """A new matrix of the same size."""
    for side in SIDES:
        times = bench.turns(side)
        medians = {name: statistics.median(spent) for name, spent in times.items()}
        for rival, limit in LIMITS.items():
            note = f"medians {1e3 * medians['ours']:.0f} and {1e3 * medians[rival]:.0f} ms"
            what = f"update to picture, {side} x {side}"
            ours, peer = min(times["ours"]), min(times[rival])
            against = f"{NAMES[rival]}; {note}"
            yield Row("matrix", what, ours, peer, "s", against, limit, at_least=True, note=note)


def in_the_lab(quick: bool) -> Iterator[Row]:
    """Run what needs a page with the three of them."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, sync_playwright() as playwright:
        root = Path(folder)
        (root / "bench.ipynb").write_text(notebook_json(DATA, *CELLS.values()), encoding="utf-8")
        with running_lab(root, environment={"PYTHONPATH": str(ROOT)}) as lab:
            path = find_chromium(playwright)
            chromium = playwright.chromium.launch(executable_path=path, args=CHROMIUM_ARGUMENTS)
            page = chromium.new_page(viewport={"width": 1280, "height": 2400})
            open_notebook(page, lab, "bench.ipynb")
            errors = run_all(page)
            if errors:
                raise SystemExit("\n".join(errors))
            page.locator(".js-plotly-plot .hm image").wait_for()
            page.locator(".atlas-matrix-picture canvas").wait_for()
            yield from matrix(Bench(page, quick))
            chromium.close()


Group = Callable[[bool], Iterator[Row]]
GROUPS: dict[str, Group] = {"matrix": in_the_lab, **_widgets_open.GROUPS, **_widgets_lab.GROUPS}


def parser() -> argparse.ArgumentParser:
    """Return the command line."""
    found = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    found.add_argument("--quick", action="store_true", help="fewer rounds")
    found.add_argument("--json", action="store_true", help="print the results as JSON")
    found.add_argument("--only", action="append", choices=sorted(GROUPS), help="this group (more than once)")
    found.add_argument(
        "--save",
        nargs="?",
        const="",
        metavar="NAME",
        help="also write tools/bench/results/NAME.json (widgets)",
    )
    return found


def main() -> int:
    """Run the groups that were asked for."""
    options = parser().parse_args()
    about = machine_of("numpy", options.quick) | {"load": os.getloadavg()[0]}
    if not options.json:
        print(f"{about['processor']}, {about['cores']} cores, load {about['load']:.1f}\n")
    return keep(measured(GROUPS, options.quick, options), about, options, "widgets")


if __name__ == "__main__":
    raise SystemExit(main())
