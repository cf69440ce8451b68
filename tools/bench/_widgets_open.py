"""How long a double-click in JupyterLab takes until the explorer shows the file, whatever its size.

A part of ``tools/bench/widgets.py``: a sparse model of 6 GiB and the same model of 65 KiB in turns, in a real
JupyterLab in Chromium. From the double-click to the explorer with the file's size in it.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from playwright.sync_api import Page, sync_playwright

from tests.browser_fixtures import CHROMIUM_ARGUMENTS, find_chromium
from tests.jupyter.labdriver import double_click, open_lab, running_lab
from tools.bench.formats import Row
from tools.screenshots import lay_out

HUGE = 6 * 1024**3
#: Files, and what the explorer says of their size.
FILES = {"huge.gguf": "6.0 GiB", "small.gguf": "65.3 KiB"}
#: The first opening loads the explorer's scripts; nobody should wait for longer than a second for that either.
SECONDS = 1.0


def shown(page: Page, name: str) -> float:
    """Return the seconds from a double-click on a file to its explorer, and close it again."""
    start = time.perf_counter()
    double_click(page, name)
    page.locator(".ax", has_text=FILES[name]).wait_for()
    spent = time.perf_counter() - start
    page.evaluate("window.jupyterapp.commands.execute('application:close-all').then(() => null)")
    page.locator(".ax").wait_for(state="detached")
    return spent


def opening(quick: bool) -> Iterator[Row]:
    """A double-click on a huge file and on a small one."""
    with tempfile.TemporaryDirectory(prefix="bench-") as folder, sync_playwright() as playwright:
        environment = lay_out(Path(folder))
        root = Path(folder) / "root"
        for name in FILES:
            shutil.copy(root / "sample_data" / "gguf" / "tiny.gguf", root / name)
        os.truncate(root / "huge.gguf", HUGE)
        with running_lab(root, environment=environment) as server:
            chromium = playwright.chromium.launch(
                executable_path=find_chromium(playwright), args=CHROMIUM_ARGUMENTS
            )
            page = chromium.new_page(viewport={"width": 1280, "height": 1000})
            open_lab(page, server)
            page.wait_for_load_state("networkidle")  # the Lab is there before its last scripts are
            first = shown(page, "huge.gguf")
            turns = [(shown(page, "huge.gguf"), shown(page, "small.gguf")) for _ in range(2 if quick else 8)]
            chromium.close()
    huge, small = (min(times) for times in zip(*turns, strict=True))
    what = "double-click to explorer, 6 GiB"
    yield Row("open", f"{what}, the first", first, SECONDS, "s", "1 s", 1.0)
    yield Row("open", what, huge, small, "s", "a file of 65 KiB", 2.0)


GROUPS = {"open": opening}
