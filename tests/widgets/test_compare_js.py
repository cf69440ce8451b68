"""The panes of MemoryCompare in Chromium: table, spectra and text, by mouse and by keyboard."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.widgets import MemoryCompare
from atlas_kit.widgets.compare.memory_compare import _MATRIX_COLUMNS
from atlas_kit.widgets.compare.panes import CompareTable, Spectra
from tests.waiting import LONG
from tests.widgets.conftest import receive

SMALL = AtlasSettings(window_size=64, memory_dim=16, omega_window=8, chunk_size=4)
PROBE = "it was the worst\nquestion of times <b>or</b> not to be"


def column(stage, place):
    return stage.page.locator(f"tbody tr td:nth-child({place})").all_inner_texts()


@pytest.fixture
def table(stage):
    rows = [
        {"id": name, "name": name, "shape": "2 x 2", "max_a": value, "relative": apart}
        for name, value, apart in (("W10", 3.0, 0.5), ("W9", 1e-7, "Infinity"), ("<b>", 123456.789, None))
    ]
    widget = CompareTable(
        columns=_MATRIX_COLUMNS, rows=rows, chooses=True, selected="W9", caption="3 matrices"
    )
    return stage.show(widget)


def test_a_table_sorts_numbers_by_size_and_names_as_people_do(table):
    page = table.page
    assert column(table, 1) == ["W10", "W9", "<b>"]
    assert column(table, 3) == ["3", "1.000e-7", "123500"]
    assert column(table, 6) == ["0.5", "∞", ""]
    page.get_by_role("button", name="max |A|", exact=True).click()
    assert column(table, 1) == ["<b>", "W10", "W9"]  # the largest first
    assert page.get_by_role("columnheader", name="max |A|").get_attribute("aria-sort") == "descending"
    page.keyboard.press("Enter")  # the button kept the focus
    assert column(table, 1) == ["W9", "W10", "<b>"]
    page.get_by_role("button", name="relative L2").click()
    assert column(table, 6) == ["∞", "0.5", ""]  # what is missing comes last, either way
    page.keyboard.press("Enter")
    assert column(table, 6) == ["0.5", "∞", ""]
    page.get_by_role("button", name="matrix").click()
    assert column(table, 1) == ["<b>", "W9", "W10"]


def test_an_empty_number_is_shown_as_nothing(stage):
    rows = [{"id": "W", "name": "W", "max_a": "", "relative": 1.0}]
    stage.show(CompareTable(columns=_MATRIX_COLUMNS, rows=rows, caption="1 matrix"))
    assert column(stage, 3) == [""]


def test_a_row_is_chosen_and_stays_chosen(table):
    page = table.page
    assert page.locator("tr[aria-current=true]").inner_text().startswith("W9")
    page.get_by_role("button", name="W10").press("Enter")
    table.settle()
    assert table.widget.selected == "W10"
    assert page.evaluate("document.activeElement.textContent") == "W10"
    table.widget.rows = table.widget.rows[:1]
    table.deliver()
    assert page.locator("tbody tr").count() == 1
    assert page.locator("tr[aria-current=true]").inner_text().startswith("W10")


def test_spectra_are_lines_that_differ_without_colour_and_read_by_keys(stage):
    values = np.logspace(2, -3, 20)
    series = [
        {"key": key, "name": name, "values": (factor * values).tolist(), "rank": 3.25}
        for key, name, factor in (("a", "A: x", 1), ("b", "B: y", 2), ("d", "B − A", 0.5))
    ]
    page = stage.show(Spectra(series=series)).page
    lines = page.locator("polyline")
    dashes = [lines.nth(n).evaluate("line => getComputedStyle(line).strokeDasharray") for n in range(3)]
    assert len(set(dashes)) == 3
    assert "A: x · effective rank 3.3" in page.locator("li").first.inner_text()
    points = lines.first.get_attribute("points").split()
    assert len(points) == 20
    heights = [float(point.split(",")[1]) for point in points]
    steps = np.diff(heights)
    assert steps.min() > 0
    np.testing.assert_allclose(steps, steps.mean(), atol=0.2)  # a straight line on a logarithmic axis
    picture = page.get_by_role("img", name="Singular values of A: x, B: y, B − A")
    picture.focus()
    page.keyboard.press("ArrowRight")
    assert page.locator("figcaption").inner_text().startswith("Singular value 2: A: x 54.6, B: y 109")
    page.keyboard.press("End")
    assert page.locator("figcaption").inner_text().startswith("Singular value 20: A: x 0.00100")
    stage.widget.busy = "Computing singular values of B − A ..."
    stage.deliver()
    assert page.locator("figcaption").inner_text().startswith("Computing")
    stage.widget.series, stage.widget.busy = [], ""
    stage.deliver()
    assert page.locator("figcaption").inner_text() == "No spectra to show."
    assert page.locator("polyline").count() == 0


@pytest.mark.parametrize("values", [[0.0, 0.0], [5.0], [1e30, 1e-30, 0.0], []])
def test_spectra_of_odd_numbers_draw_without_an_error(stage, values):
    page = stage.show(Spectra(series=[{"key": "a", "name": "A", "values": values, "rank": None}])).page
    for attribute in ("points",):
        assert "NaN" not in page.locator("polyline").first.get_attribute(attribute)
    assert "NaN" not in page.locator("svg[role=img]").inner_html()


@pytest.fixture
def compared():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b:
        a.feed("to be or not to be, that is the question. " * 6)
        b.feed("it was the best of times, it was the worst of times. " * 6)
        compare = MemoryCompare(a, b, engine, PROBE)
        assert compare.wait(LONG)
        yield compare


def test_the_text_is_whole_and_every_token_tells_its_numbers(stage, compared):
    pane = compared.behaviour
    page = stage.show(pane.view).page
    assert page.locator("[role=listbox]").inner_text().replace("⏎", "") == PROBE
    assert page.locator("b", has_text="or").count() == 0  # text, not markup
    options = page.locator("[role=option]")
    assert options.count() == len(pane.result.pieces)
    gain = pane.result.gain
    strongest = int(np.abs(gain).argmax())
    side = "b" if gain[strongest] > 0 else "a"
    shown = options.nth(strongest + 1)
    assert side in shown.get_attribute("class").split()
    assert float(shown.evaluate("node => node.style.getPropertyValue('--strength')")) == 1
    styles = {
        n: page.locator(f".legend .{n}").evaluate("node => getComputedStyle(node).borderBottomStyle")
        for n in "ab"
    }
    assert styles == {"a": "dotted", "b": "solid"}
    assert ": A " in shown.get_attribute("aria-label")


def test_the_greatest_difference_is_chosen_and_explained(stage, compared):
    pane = compared.behaviour
    page = stage.show(pane.view).page
    first = pane.view.largest["gain"][0] + 1
    assert page.locator("[aria-selected=true]").get_attribute("id").endswith(f"-{first}")
    assert page.locator("tr.came th").inner_text().endswith("came")
    second = pane.view.largest["gain"][1] + 1
    page.locator(".largest button").nth(1).press("Enter")
    stage.settle()
    assert pane.view.selected == second
    assert page.locator(".detail h4 .came").inner_text().replace("␣", " ") == pane.result.pieces[
        second
    ].replace("\n", "⏎")
    assert page.locator(".detail tbody").nth(1).locator("tr").count() == 3  # model, memory, window


def test_arrow_keys_move_through_the_text(stage, compared):
    view = compared.behaviour.view
    page = stage.show(view).page
    page.get_by_role("listbox").focus()
    for key, token in (
        ("Home", 1),
        ("ArrowLeft", 1),
        ("ArrowRight", 2),
        ("End", len(PROBE) - 1),
        ("ArrowRight", len(PROBE) - 1),
    ):
        page.keyboard.press(key)
        stage.settle()
        assert view.selected == token
    active = page.get_by_role("listbox").get_attribute("aria-activedescendant")
    assert page.locator(f"#{active}").get_attribute("aria-selected") == "true"


def test_colour_by_the_distance_of_predictions(stage, compared):
    view = compared.behaviour.view
    page = stage.show(view).page
    page.get_by_role("combobox").select_option("js")
    stage.settle()
    assert view.measure == "js"
    assert page.locator(".text .js").count() == len(PROBE) - 1
    assert page.locator(".text .a, .text .b").count() == 0
    assert page.locator(".largest li").count() == len(view.largest["js"])


def test_nothing_is_shown_before_a_comparison_and_it_cleans_up(stage, compared):
    view = compared.behaviour.view
    compared.behaviour.clear()
    page = stage.show(view).page
    assert page.locator(".atlas-behaviour").is_hidden()
    assert compared.compare_behaviour() is not None
    stage.deliver()
    assert page.locator(".atlas-behaviour").is_visible()
    page.evaluate("window.endings.forEach((end) => end())")
    assert page.evaluate("window.listening()") == 0


def test_a_choice_from_the_page_that_makes_no_sense_is_no_error(compared):
    view = compared.behaviour.view
    for token in (-5, 10**9, 0):
        receive(view, {"method": "update", "state": {"selected": token}, "buffer_paths": []})
        assert view.detail == {}
