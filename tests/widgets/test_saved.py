"""What is saved of a widget: pages that run nothing, have an end, and are made anew where a program runs a notebook."""

from __future__ import annotations

import base64
import gc
import html
import io
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ipywidgets
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image
from playwright.sync_api import Browser, expect

from atlas_kit import widgets
from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer.page import ticks
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import colour, saved
from atlas_kit.widgets.base import Shown
from atlas_kit.widgets.saved import Curve, Panel
from tests.waiting import LONG


class Said(Shown, ipywidgets.VBox):
    words = "first"

    def text(self) -> str:
        return self.words

    def figure(self) -> Figure:
        return Figure(figsize=(1, 1))

    def html(self) -> str:
        return saved.page("A <widget>", [Panel("Words", saved.text(self.words))])


def test_a_page_runs_and_loads_nothing_and_is_the_same_twice():
    bodies = [
        saved.curves([Curve("a <b>", np.arange(9), np.arange(9.0))], "x <y>", "nats", "t <u>"),
        saved.matrix(np.eye(5, dtype=np.float32), "m <n>"),
        saved.table(["name <i>"], [["<script>alert(1)</script>"]]),
        saved.facts([("<b>", "<script>")]),
        saved.text("<script>"),
    ]
    page = saved.page("A <script>", [Panel(f"<{n}>", body) for n, body in enumerate(bodies)])
    assert "<script" not in page
    assert "http" not in page
    assert " on" not in page.partition("</style>")[2].replace(" on ", "")
    assert page == saved.page("A <script>", [Panel(f"<{n}>", body) for n, body in enumerate(bodies)])


def test_a_page_has_an_end():
    long = Panel("Long", "x" * saved.MOST)
    page = saved.page("Much", [Panel("First", "short"), long, Panel("Last", "<p>last</p>")])
    assert len(page) < saved.MOST
    assert "This is too much for a saved page." in page
    assert "<p>last</p>" in page


def test_a_long_table_says_how_long_it_is():
    table = saved.table(["n"], ([n] for n in range(1000)))
    assert table.count("<tr>") == 1 + saved.MOST_ROWS
    assert "The first 300 of 1,000." in table


@pytest.mark.parametrize(
    "values",
    [[], [np.nan, np.nan], [1.0], [2.0, 2.0, np.nan, 2.0], [-np.inf, 1.0, np.inf], list(range(5000))],
)
def test_curves_of_any_numbers_are_a_picture_or_a_sentence(values: list[float]):
    drawn = saved.curves([Curve("line", np.arange(len(values)), values)], "x", "y", "title")
    assert "nan" not in drawn.partition("<text")[0]
    assert ("<svg" in drawn) == bool(np.isfinite(np.array(values)).any())
    assert drawn.count("<title") + drawn.count('class="ak-at"') <= saved.POINTS


def test_a_wild_beginning_is_cut_off_where_it_would_press_the_rest_flat_and_it_is_said():
    at = np.arange(1000)
    losses = 3 + np.where(at < 9, 9 - at, 0) + 0.1 * np.sin(at / 50)

    def drawn(values, wild):
        return saved.curves([Curve("loss", at, values)], "tokens", "nats", "Loss", wild=wild)

    cut, whole = drawn(losses, 48), drawn(losses, 0)
    assert "▴ up to 12" in cut
    assert "up to" not in whole

    def height(picture):
        y = [float(point.split(",")[1]) for point in re.findall(r'points="([^"]*)"', picture)[0].split()[20:]]
        return max(y) - min(y)

    assert height(cut) > 10 * height(whole)
    assert drawn(at / 1000, 48) == drawn(at / 1000, 0)  # of a calm one nothing is cut


def test_gaps_of_a_curve_stay_gaps():
    drawn = saved.curves([Curve("line", np.arange(5), [1, 2, np.nan, 3, 4])], "x", "y", "title")
    assert drawn.count("<polyline") == 2


@pytest.mark.parametrize("shape", [(1, 1), (0, 4), (3, 5000), (700, 2), (41, 65)])
def test_a_matrix_says_the_values_under_the_pointer(shape: tuple[int, int]):
    values = np.arange(np.prod(shape), dtype=np.float32).reshape(shape)
    drawn = saved.matrix(values, "m")
    if not values.size:
        assert "There are no numbers in it." in drawn
        return
    rows, columns = shape
    assert f"{values.max():.4g}</title>" in drawn
    assert drawn.count("<title>") <= saved.CELLS[0] * saved.CELLS[1]
    last = drawn.rpartition("<title>")[2]
    assert f"{rows - 1:,}, column" in last
    assert f"{columns - 1:,}: " in last


@pytest.mark.parametrize("view", [False, True])
@pytest.mark.parametrize("around", [None, 'data-jp-theme-light="false"', 'data-md-color-scheme="slate"'])
def test_a_matrix_is_dark_on_a_dark_page_and_light_on_a_light_one(
    browser: Browser, around: str | None, view: bool
):
    """Alone in a file and on a page of JupyterLab or of the documents, its colours are nearly the live view's."""
    values = np.array([[-0.5, 0, 0.5]])
    matrix = saved.page("A", [Panel("One", saved.matrix(values, "W", 1.0))])
    if view:
        matrix = widgets.MatrixView(values, vmax=1.0).html()
    for scheme in ("light", "dark"):
        context = browser.new_context(color_scheme=scheme)  # type: ignore[arg-type]
        page = context.new_page()
        if around is None:
            page.set_content(saved.document(matrix, "a matrix"))
        else:
            page.set_content(f"<body {around if scheme == 'dark' else ''}>{matrix}</body>")
        with Image.open(io.BytesIO(page.locator(".ak-shades").screenshot())) as picture:
            pixels = np.asarray(picture.convert("RGB"), np.int64)
        shown = pixels[pixels.shape[0] // 2, [int(pixels.shape[1] * at) for at in (0.2, 0.5, 0.8)]]
        wanted = colour.palette(dark=scheme == "dark")[colour.indices(values, 1.0)[0]]
        assert np.abs(shown - wanted).max() <= (2 if scheme == "light" else 40), scheme
        context.close()


def test_tabs_are_chosen_by_pointer_and_keys_without_scripts(browser: Browser):
    panels = [Panel("One", "<p>first</p>"), Panel("Two", "<p>second</p>")]
    both = saved.page("A", panels, "Two") + saved.page("B", panels)
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(saved.document(both, "two pages"))
    a, b = page.get_by_role("region", name="A"), page.get_by_role("region", name="B")
    expect(a.get_by_text("second")).to_be_visible()
    expect(a.get_by_text("first")).to_be_hidden()
    expect(b.get_by_text("first")).to_be_visible()
    b.get_by_text("Two", exact=True).click()
    expect(b.get_by_text("second")).to_be_visible()
    expect(a.get_by_text("second")).to_be_visible()
    b.get_by_role("radio", name="Two").press("ArrowLeft")
    expect(b.get_by_text("first")).to_be_visible()
    b.get_by_role("radio", name="One").press("Enter")
    expect(b.get_by_text("first")).to_be_visible()
    context.close()


def test_the_newest_is_asked_for_by_id_and_what_fails_is_left_out():
    shown, broken, other = Said(), Said(), ipywidgets.IntSlider()
    shown.words = "second"
    broken.static_bundle = lambda: 1 / 0  # type: ignore[method-assign,assignment,return-value]
    found = saved.newest([shown.model_id, broken.model_id, other.model_id, "gone"]).data
    assert list(found) == [shown.model_id]
    assert found[shown.model_id]["text/plain"] == "second"
    assert html.escape("A <widget>") in found[shown.model_id]["text/html"]


class FakeShell:
    """What IPython's shell does for displays: events after cells."""

    def __init__(self) -> None:
        self.events = self
        self.callbacks: dict[str, list[Callable[..., None]]] = {"post_run_cell": []}

    def register(self, event: str, function: Callable[..., None]) -> None:
        self.callbacks[event].append(function)

    def end_cell(self) -> None:
        for function in self.callbacks["post_run_cell"]:
            function(None)


def test_what_a_program_shows_is_shown_anew_after_a_cell_that_changed_it(monkeypatch: pytest.MonkeyPatch):
    import IPython
    from IPython import display

    shell, sent = FakeShell(), []
    monkeypatch.setattr(IPython, "get_ipython", lambda: shell)

    def send(data: dict[str, str], *, raw: bool, display_id: str) -> None:
        assert raw
        sent.append((display_id, data["text/plain"]))

    monkeypatch.setattr(display, "display", send)
    monkeypatch.setattr(display, "update_display", send)
    monkeypatch.setattr(saved, "_displayed", {})
    shown: Any = Said()
    saved.display_for_program(shown)
    saved.display_for_program(Said())  # one function after a cell is enough for all
    assert len(shell.callbacks["post_run_cell"]) == 1
    shell.end_cell()
    assert [words for _, words in sent] == ["first", "first"]
    shown.words = "second"
    shell.end_cell()
    shell.end_cell()
    assert sent[2:] == [(sent[0][0], "second")]
    ipywidgets.Widget.close_all()
    del shown
    gc.collect()
    shell.end_cell()
    assert saved._displayed == {}


def test_a_person_is_shown_the_living_view():
    with pytest.raises(NotImplementedError):
        Said()._ipython_display_()


# --- sharing ----------------------------------------------------------------------------------------------


class Tabled(Said):
    def figure(self) -> Figure:
        figure = Figure(figsize=(1, 1))
        figure.add_subplot().plot([0, 1])
        return figure

    def sheet(self) -> tuple[list[str], list[list[Any]]]:
        return ["name", "n"], [['a, "b"\n', 1.5], ["=1+1", None], ["@x", -2]]


@pytest.mark.parametrize(
    ("form", "begins"),
    [
        ("png", b"\x89PNG"),
        ("svg", b"<?xml"),
        ("html", b"<!doctype html>"),
        ("csv", b"name,n\n"),
        ("txt", b"first"),
    ],
)
def test_a_widget_is_saved_in_each_form(tmp_path: Path, form: str, begins: bytes):
    shown = Tabled()
    shown.save(tmp_path / f"shown.{form}")
    assert (tmp_path / f"shown.{form}").read_bytes().startswith(begins)
    found = saved.shared(shown.model_id, form).data
    assert found["filename"] == f"Tabled.{form}"
    assert base64.b64decode(found["data"]).startswith(begins)


def test_texts_that_a_spreadsheet_would_run_are_marked_as_texts():
    assert Tabled().csv() == 'name,n\n"a, ""b""\n",1.5\n\'=1+1,\n\'@x,-2\n'


def test_what_cannot_be_saved_is_a_sentence(tmp_path: Path):
    with pytest.raises(InvalidParamError, match="cannot be saved as 'gif'"):
        Tabled().save(tmp_path / "shown.gif")
    with pytest.raises(InvalidParamError, match="no table"):
        Said().save(tmp_path / "shown.csv")
    assert list(tmp_path.iterdir()) == []
    assert saved.shared(Said().model_id, "csv").data == {"error": "There is no table in what is shown."}
    assert "run its cell again" in saved.shared("gone", "png").data["error"]


def test_every_widget_has_a_table():
    samples = Path(__file__).resolve().parents[2] / "sample_data"
    lab = widgets.MemoryLab(FakeEngine(), "to be or not to be, " * 20)
    lab.run()
    compare = widgets.MemoryCompare(samples / "atlas/learned.atlas", samples / "atlas/learned-more.atlas")
    assert compare.wait(LONG)
    models = widgets.ModelCompare(samples / "gguf/tiny.gguf", samples / "gguf/micro.gguf")
    assert models.wait(LONG)
    explorer = widgets.FileExplorer(samples / "gguf/tiny.gguf")
    explorer._answer(
        None, {"op": "rows", "table": "tensors", "sort": "name", "descending": True, "filter": "ffn"}, None
    )
    explorer._answer(None, {"op": "seen", "tab": "tensors"}, None)
    tables = {
        "lab": lab.csv(), "compare": compare.csv(), "models": models.csv(), "explorer": explorer.csv(),
        "matrix": widgets.MatrixView(np.eye(3)).csv(), "playground": widgets.CapacityPlayground().csv(),
    }  # fmt: skip
    assert tables["lab"].count("\n") > 50
    assert tables["compare"].splitlines()[1].startswith("W,")
    assert tables["models"].count("\n") == 1 + models.found.total
    assert [line.split(",")[0] for line in tables["explorer"].splitlines()] == [
        "Name", "blk.0.ffn_up.weight", "blk.0.ffn_norm.weight", "blk.0.ffn_gate.weight", "blk.0.ffn_down.weight",
    ]  # fmt: skip
    assert tables["matrix"].splitlines()[1] == "0,1.0,0.0,0.0"
    assert tables["playground"].startswith("memory,pairs stored")


def test_axes_have_round_values_and_lines_their_own_colours():
    drawn = saved.curves([Curve("line", [8, 1004, 2000], [2.0, 2.5, 3.41], "#123456")], "x", "y", "title")
    assert drawn.count("#123456") == 2  # the line and its place in the legend
    for label in ("500", "1,000", "1,500", "2,000", "2.5", "3"):
        assert f">{label}</text>" in drawn
    assert ">506<" not in drawn
    for low, high in ((0, 1), (-5e-9, 3e-9), (1e300, 2e300), (0.1, 0.1000001)):
        found = ticks(low, high)
        assert 2 <= len(found) <= 7
        assert all(-1e-6 <= (tick - low) / (high - low) <= 1 + 1e-6 for tick in found)
