"""What ``MemoryLab`` costs: frames on the screen, and how much slower a session learns beside them.

A part of ``tools/bench/widgets.py``: the sample model in a real JupyterLab in Chromium. The session reads the same text
in turns by itself (``feed``, in one piece) and in the lab, with the page drawing; the best rounds are compared. Of a
real model only the frames are counted.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Page, sync_playwright

from tests.browser_fixtures import CHROMIUM_ARGUMENTS, find_chromium
from tests.jupyter.labdriver import kernel_json, notebook_json, open_notebook, run_all, running_lab
from tools.bench.formats import Row

ROOT = Path(__file__).resolve().parent.parent.parent
#: How much longer the learning may take, and how many seconds may lie between two frames: 4 a second, 2 of SmolLM2.
SLOWER, BETWEEN, BETWEEN_SMOLLM2 = 1.15, 0.25, 0.5
SAMPLE = ROOT / "sample_data" / "models" / "tiny-python.gguf"

OPEN = f"""
from pathlib import Path
from atlas_kit.widgets import MemoryLab
samples = Path({str(ROOT / "sample_data")!r})
lab = MemoryLab(MODEL, samples / "documents" / "statistics.py")
lab
"""
#: Both in a thread of their own, so that the kernel answers the page meanwhile.
TIMED = """
import threading, time
tokens, times = lab.session.tokens_of(lab.text_to_read), {"alone": [], "lab": []}
def alone(count):
    lab.session.reset()
    lab.session.feed(tokens[:count])
def within(count):
    lab.run(count)
def timed(name, count):
    def work():
        start = time.perf_counter()
        {"alone": alone, "lab": within}[name](count)
        times[name].append(time.perf_counter() - start)
    lab.reset()
    threading.Thread(target=work).start()
"""
#: Counts the frames that are drawn.
COUNT = """() => {
    const lab = document.querySelector(".atlas-lab");
    window.framesDrawn = 0;
    new MutationObserver(() => { window.framesDrawn += 1; }).observe(lab, { attributeFilter: ["data-shown"] });
}"""


def turn(page: Page, name: str, count: int) -> tuple[float, int]:
    """Return the seconds that reading took, and the frames that were drawn meanwhile."""
    done: Any = kernel_json(page, f"len(times[{name!r}])")
    kernel_json(page, "0", code=f"timed({name!r}, {count})")
    before = page.evaluate("window.framesDrawn")
    while kernel_json(page, f"len(times[{name!r}])") == done:
        page.wait_for_timeout(300)
    return kernel_json(page, f"times[{name!r}][-1]"), page.evaluate("window.framesDrawn") - before


@contextlib.contextmanager
def lab_of(model: Path) -> Iterator[Page]:
    """Show a lab of a model in a JupyterLab of its own."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, sync_playwright() as playwright:
        root = Path(folder)
        (root / "bench.ipynb").write_text(
            notebook_json(f"MODEL = {str(model)!r}", OPEN, TIMED), encoding="utf-8"
        )
        with running_lab(root, environment={"PYTHONPATH": str(ROOT)}) as server:
            chromium = playwright.chromium.launch(
                executable_path=find_chromium(playwright), args=CHROMIUM_ARGUMENTS
            )
            page = chromium.new_page(viewport={"width": 1280, "height": 1500})
            open_notebook(page, server, "bench.ipynb")
            if errors := run_all(page):
                raise SystemExit("\n".join(errors))
            page.locator(".atlas-lab").wait_for()
            page.evaluate(COUNT)
            yield page
            chromium.close()


def lab(quick: bool, smollm2: str | None = None) -> Iterator[Row]:
    """The same text with and without the lab; ``smollm2``: that model, too."""
    count, rounds = (1000, 1) if quick else (3000, 4)
    with lab_of(SAMPLE) as page:
        turn(page, "alone", 200)  # warms up
        turns = [(turn(page, "alone", count), turn(page, "lab", count)) for _ in range(rounds)]
    alone, within = min(one for (one, _), _ in turns), min(one for _, (one, _) in turns)
    note = f"{count / alone:.0f} and {count / within:.0f} tokens per second"
    yield Row(
        "lab",
        f"learning {count:,} tokens, MemoryLab",
        within,
        alone,
        "s",
        f"no widget; {note}",
        SLOWER,
        note=note,
    )
    yield frames_of([one for _, one in turns], "between two frames", BETWEEN)
    if smollm2:
        with lab_of(Path(smollm2).resolve()) as page:
            turn(page, "lab", 32)  # warms up
            turns = [turn(page, "lab", 120 if quick else 400) for _ in range(1 if quick else 2)]
        yield frames_of(turns, "between two frames, SmolLM2", BETWEEN_SMOLLM2)


def frames_of(turns: list[tuple[float, int]], what: str, limit: float) -> Row:
    """Return how often the page drew in the best of some turns."""
    seconds, frames = max(turns, key=lambda one: one[1] / one[0])
    note = f"{frames / seconds:.1f} frames per second while it learns"
    return Row("lab", what, seconds / max(1, frames), 1.0, "s", f"1 s; {note}", limit, note=note)


GROUPS = {"lab": lab}
