"""Every button below every widget is clicked in a real JupyterLab, and what is saved is what the widget shows.

The files are fetched once, with all widgets in one notebook; each is then looked at by itself.
"""

from __future__ import annotations

import csv
import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from browser_fixtures import PATIENCE
from playwright.sync_api import Browser, Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, notebook_json, open_notebook, run_all
from tests.server.conftest import Live, make_service
from tests.waiting import until

BEGIN = """
import numpy as np
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import (
    CapacityPlayground, FileExplorer, MatrixView, MemoryCompare, MemoryLab, ModelCompare,
)
"""
FORMS = ("PNG", "SVG", "HTML", "CSV")


@dataclass(frozen=True)
class Kind:
    """A widget: the cell that makes it, and the Python that says what its table has to hold."""

    cell: str
    rows: str  #: the rows of the table as JSON, as far as ``columns`` goes; of numbers, as texts or numbers
    seen: tuple[str, ...]  #: what the page says, and so has the file without a kernel to
    ready: Callable[[Page], None] = field(default=lambda _: None)


def all_found(page: Page) -> None:
    """Return when nothing is being computed any more."""
    assert kernel_json(page, "[compare.wait(120), models._newest.wait(120)]") == [True, True]


KINDS = {
    "MatrixView": Kind(
        "matrix = MatrixView(np.arange(12, dtype=np.float32).reshape(3, 4) / 8 - 0.5, title='twelve')\nmatrix",
        "[[n, *row] for n, row in enumerate(matrix.matrix.tolist())]",
        ("twelve", "3 x 4"),
    ),
    "MemoryLab": Kind(
        "lab = MemoryLab(FakeEngine(), 'to be or not to be, ' * 20)\nlab.run()\nlab",
        "[[n, int(token)] for n, token in enumerate(lab.history.tokens)]",
        ("400 tokens read", "to be or not to be, to be"),
    ),
    "MemoryCompare": Kind(
        "compare = MemoryCompare('sample_data/atlas/learned.atlas', 'sample_data/atlas/learned-more.atlas')\ncompare",
        "[[row['name'], row['shape']] for row in compare.table.rows]",
        ("learned-more.atlas", "8 x 6"),
        all_found,
    ),
    "ModelCompare": Kind(
        "models = ModelCompare('sample_data/gguf/tiny.gguf', 'sample_data/gguf/micro.gguf')\nmodels",
        "[[one.name] for one in models.found.tensors]",
        ("token_embd.weight", "micro.gguf"),
        all_found,
    ),
    "FileExplorer": Kind(
        "FileExplorer('sample_data/gguf/tiny.gguf')",
        "[['Size', '65.2 KiB (66,816 bytes)']]",
        ("GGUF version 3", "65.2 KiB"),
    ),
    "CapacityPlayground": Kind(
        "play = CapacityPlayground(d=8)\ncurve = play.run()\nplay",
        "[[play.curves[0].trial.label, point.pairs, point.accuracy] for point in play.curves[0].points]",
        ("Capacity playground",),
    ),
}
if all(importlib.util.find_spec(package) for package in ("fastapi", "httpx", "uvicorn")):
    KINDS["AttachedLab"] = Kind(
        "attached = MemoryLab('URL', session='anna')\nattached",
        "[[n, int(token)] for n, token in enumerate(attached.history.tokens)]",
        ("session 'anna'", "o be or not to be"),
    )


@dataclass(frozen=True)
class Saved:
    """What the buttons gave: contents by widget and form, and the rows that tables must have."""

    files: dict[tuple[str, str], bytes]
    rows: dict[str, list[list[Any]]]


@pytest.fixture(scope="module")
def saved(lab_server: Lab, browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Saved:
    name, cells = "shared.ipynb", [kind.cell for kind in KINDS.values()]
    server = Live(make_service(None)) if "AttachedLab" in KINDS else None
    if server:
        cells = [cell.replace("URL", server.url) for cell in cells]
    try:
        (lab_server.root / name).write_text(notebook_json(BEGIN, *cells), "utf-8")
        return fetched(lab_server, browser, name, tmp_path_factory.mktemp("saved"), server)
    finally:
        if server:
            server.stop()


def say_something(server: Live, page: Page) -> None:
    """Let the session say something, and return when the lab that looks on has seen it."""
    until(lambda: server.service.conversations.traces._looked)
    atlas = {"session_id": "anna"}
    server.post(
        "/v1/completions", prompt="to be or not to be, " * 5, max_tokens=2, temperature=0, atlas=atlas
    )
    until(lambda: kernel_json(page, "len(attached.history.tokens) >= 99 and attached.facts()['seen'] > 0"))


def fetched(lab_server: Lab, browser: Browser, name: str, folder: Path, server: Live | None) -> Saved:
    """Run a notebook, press all buttons, and return what they gave."""
    context = browser.new_context(accept_downloads=True, viewport={"width": 1280, "height": 1000})
    context.set_default_timeout(PATIENCE)
    page = context.new_page()
    open_notebook(page, lab_server, name)
    assert run_all(page) == []
    if server:
        say_something(server, page)
    files = {}
    for number, (widget, kind) in enumerate(KINDS.items(), 1):
        kind.ready(page)
        bar = page.locator(".jp-CodeCell").nth(number).get_by_role("group", name="Save what is shown")
        for form in FORMS:
            with page.expect_download() as coming:
                bar.get_by_role("button", name=form, exact=True).click()
            assert coming.value.suggested_filename == f"{widget}.{form.lower()}"
            expect(bar.get_by_role("status")).to_have_text(f"Saved {widget}.{form.lower()}")
            path = folder / coming.value.suggested_filename
            coming.value.save_as(path)
            files[widget, form] = path.read_bytes()
    files["MemoryLab", "GIF"] = film_of(page, lab_server.root / "run.gif")
    rows = {widget: kernel_json(page, kind.rows) for widget, kind in KINDS.items()}
    context.close()
    lab_server.end_kernels()
    return Saved(files, rows)


def film_of(page: Page, path: Path) -> bytes:
    """Have the lab save its run as a film: what the file is called says what it is."""
    lab = page.locator(".atlas-memory-lab").filter(has=page.get_by_role("button", name="Reset")).first
    fold = lab.locator("button.widget-toggle-button", has_text="Save")
    save = lab.locator("button.widget-button", has_text="Save")
    fold.click()
    lab.get_by_label("file", exact=True).fill(path.name)
    lab.get_by_label("file", exact=True).press("Enter")
    save.click()
    expect(lab.locator(".atlas-lab .said")).to_have_text(f"Saved to {path.name}.", timeout=60_000)
    return path.read_bytes()


def test_the_film_is_one(saved: Saved):
    from PIL import Image, ImageChops

    with Image.open(io.BytesIO(saved.files["MemoryLab", "GIF"])) as film:
        assert film.format == "GIF"
        assert film.n_frames > 10
        first = film.convert("RGB")
        film.seek(film.n_frames - 1)
        assert ImageChops.difference(first, film.convert("RGB")).getbbox()  # something moves in it


@pytest.mark.parametrize("widget", KINDS)
def test_the_picture_is_one(saved: Saved, widget: str):
    from PIL import Image

    picture = Image.open(io.BytesIO(saved.files[widget, "PNG"]))
    picture.load()
    assert picture.format == "PNG"
    assert min(picture.size) >= 40
    colours = picture.convert("RGBA").getcolors(1 << 24)
    assert colours is not None
    most = max(count for count, _ in colours)
    assert len(colours) > 8  # nor is it blank:
    assert most < 0.995 * picture.size[0] * picture.size[1]


@pytest.mark.parametrize("widget", KINDS)
def test_the_drawing_is_svg_with_something_in_it(saved: Saved, widget: str):
    root = ElementTree.fromstring(saved.files[widget, "SVG"])
    space = "{http://www.w3.org/2000/svg}"
    assert root.tag == f"{space}svg"
    assert (
        len([one for one in root.iter() if one.tag in (f"{space}path", f"{space}image", f"{space}use")]) > 8
    )
    assert b"<script" not in saved.files[widget, "SVG"]


@pytest.mark.parametrize("widget", KINDS)
def test_the_table_has_the_values(saved: Saved, widget: str):
    columns, *rows = csv.reader(io.StringIO(saved.files[widget, "CSV"].decode("utf-8")))
    wanted = saved.rows[widget]
    assert {len(row) for row in rows} == {len(columns)}
    if widget != "FileExplorer":  # of which one row is known here
        assert len(rows) == len(wanted)
    for row, values in zip(rows, wanted, strict=False):
        for text, value in zip(row, values, strict=False):
            assert text == value if isinstance(value, str) else float(text) == pytest.approx(value)


@pytest.mark.parametrize("widget", KINDS)
def test_the_page_needs_no_kernel_and_no_network(saved: Saved, widget: str, browser: Browser, tmp_path: Path):
    path = tmp_path / f"{widget}.html"
    path.write_bytes(saved.files[widget, "HTML"])
    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    page = context.new_page()
    asked: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(path.as_uri())
    for words in KINDS[widget].seen:
        expect(page.locator("body")).to_contain_text(words)
    assert page.locator("svg, img").first.is_visible()
    assert [url for url in asked if not url.startswith(("file:", "data:"))] == []
    wide = page.evaluate("document.documentElement.scrollWidth - document.documentElement.clientWidth")
    assert wide <= 0  # nothing is cut at the right
    context.close()
