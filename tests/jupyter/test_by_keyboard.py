"""Two labs and a comparison in one notebook, worked by keyboard alone: each answers for itself, and nothing is lost."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from playwright.sync_api import Locator, Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, open_notebook, run_all
from tests.jupyter.test_accessibility import serious_findings

CELLS = [
    """
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import MemoryCompare, MemoryLab
text = "to be or not to be, that is the question. " * 40
first = MemoryLab(FakeEngine(), text)
first.run(400)
first
""",
    """
second = MemoryLab(FakeEngine(), text[::-1])
second.run(300)
second
""",
    'MemoryCompare("sample_data/atlas/learned.atlas", "sample_data/atlas/learned-more.atlas")',
    "print('behind all of them')",
]
NAMES = ["MemoryLab 1", "MemoryLab 2", "MemoryCompare 1"]
#: Which of the widgets has the focus, -1 for none; and what a screen reader says of what has it.
FOCUS = """() => {
    const all = [...document.querySelectorAll(".atlas-memory-lab, .atlas-memory-compare")];
    const at = document.activeElement;
    const label = at.getAttribute("aria-label") || at.title || at.labels?.[0]?.textContent || at.textContent;
    return [all.findIndex((one) => one.contains(at)), `${at.tagName} ${label.trim().slice(0, 60)}`];
}"""
#: Ids that two elements have, and references that lead nowhere or into another cell.
MIXED_UP = """() => {
    const all = [...document.querySelectorAll(".jp-OutputArea *")], seen = new Set(), wrong = [];
    for (const one of all) {
        if (one.id && seen.has(one.id)) wrong.push(`twice: ${one.id}`);
        if (one.id) seen.add(one.id);
        for (const name of ["aria-labelledby", "aria-controls", "aria-describedby", "aria-activedescendant", "for"]) {
            for (const id of (one.getAttribute(name) ?? "").split(" ").filter(Boolean)) {
                const other = document.getElementById(id);
                if (other?.closest(".jp-Cell") !== one.closest(".jp-Cell")) wrong.push(`${name}: ${id}`);
            }
        }
    }
    return wrong;
}"""


@pytest.fixture
def widgets(page: Page, lab_server: Lab, notebook: Callable[..., str]) -> list[Locator]:
    page.set_viewport_size({"width": 1280, "height": 1000})
    open_notebook(page, lab_server, notebook(*CELLS))
    assert run_all(page) == []
    found = [page.get_by_role("group", name=name, exact=True) for name in NAMES]
    for one in found:
        expect(one).to_have_count(1)
    expect(found[0].locator(".atlas-lab")).to_have_attribute("data-shown", "400")
    expect(found[1].locator(".atlas-lab")).to_have_attribute("data-shown", "300")
    expect(found[2].locator("table tbody tr").first).to_be_visible()
    found[2].locator("polyline").nth(2).wait_for()
    for handle in page.locator(".noUi-handle").all():  # they get their names a moment later
        expect(handle).to_have_accessible_name(re.compile(r"\w"))
    return found


def test_tab_goes_through_one_after_the_other_and_back(page: Page, widgets: list[Locator]):
    assert page.evaluate(MIXED_UP) == []
    widgets[0].get_by_role("button", name="Start").focus()
    stops: list[tuple[int, str]] = []
    for _ in range(250):
        stops.append(tuple(page.evaluate(FOCUS)))
        if not page.evaluate("document.activeElement.closest('.jp-NotebookPanel') !== null"):
            break  # there is a way out
        page.keyboard.press("Tab")
    assert stops[-1][0] == -1
    which = [at for at, _ in stops if at >= 0]  # between them are cells
    assert which == sorted(which)
    for at in range(len(NAMES)):
        assert which.count(at) > 15, NAMES[at]
    assert [said for at, said in stops if at >= 0 and len(said.split()) < 2] == []  # all have a name
    for wanted in stops[-2:-12:-1]:
        page.keyboard.press("Shift+Tab")
        assert tuple(page.evaluate(FOCUS)) == wanted
    assert serious_findings(page, ".atlas-memory-lab") == []


def test_keys_act_on_what_has_the_focus_alone(page: Page, widgets: list[Locator]):
    one, other, compare = widgets
    stories = [lab.locator(".story") for lab in (one, other)]
    expect(stories[0]).to_contain_text("#399")
    expect(stories[1]).to_contain_text("#299")
    one.locator(".tokens").focus()
    page.keyboard.press("ArrowLeft")  # the newest, which was shown
    page.keyboard.press("ArrowLeft")
    expect(stories[0]).to_contain_text("#398")
    expect(stories[1]).to_contain_text("#299")
    other.locator(".tokens").focus()
    page.keyboard.press("ArrowLeft")  # the newest, which was shown
    page.keyboard.press("ArrowLeft")
    expect(stories[1]).to_contain_text("#298")
    expect(stories[0]).to_contain_text("#398")
    page.keyboard.press("Escape")
    expect(stories[1]).to_contain_text("#299")
    expect(stories[0]).to_contain_text("#398")

    tabs = [lab.locator(".tabs") for lab in (one, other)]
    tabs[1].get_by_role("button", name="Weights").focus()
    page.keyboard.press("Enter")
    expect(tabs[1].get_by_role("button", name="Weights")).to_have_attribute("aria-pressed", "true")
    expect(tabs[0].get_by_role("button", name="Text")).to_have_attribute("aria-pressed", "true")

    slider = [lab.get_by_role("slider", name="learning rate") for lab in (one, other)]
    before = [one.get_attribute("aria-valuetext") for one in slider]
    slider[0].focus()
    page.keyboard.press("ArrowRight")
    expect(slider[0]).not_to_have_attribute("aria-valuetext", before[0])
    expect(slider[1]).to_have_attribute("aria-valuetext", before[1])
    expect(slider[0]).to_be_focused()

    matrix = compare.locator(".atlas-matrix-picture canvas").first
    matrix.focus()
    page.keyboard.press("ArrowDown")
    expect(compare.locator(".atlas-matrix-status").first).to_contain_text("row 1")
    compare.get_by_role("tab", selected=True).focus()
    page.keyboard.press("ArrowRight")
    expect(compare.get_by_role("tab").nth(2)).to_be_focused()  # beside the first that has something in it


def test_the_notebook_has_no_use_for_keys_that_are_pressed_in_a_widget(page: Page, widgets: list[Locator]):
    cells = page.locator(".jp-Cell")
    one, _, compare = widgets
    stops = [
        one.get_by_role("button", name="Start"),
        one.get_by_role("slider", name="degree"),
        one.locator(".loss canvas"),
        one.locator(".tokens"),
        one.locator(".story"),
        one.locator(".tabs button").first,
        compare.locator(".atlas-matrix-picture canvas").first,
        compare.locator("th button").first,
        compare.locator("svg[tabindex]"),
        compare.get_by_role("tab", selected=True),
    ]
    for stop in stops:
        stop.focus()
        for key in ("b", "x", "d", "d", "Shift+M", "j", "k", "Delete"):
            page.keyboard.press(key)
            expect(stop).to_be_focused()
        expect(cells).to_have_count(len(CELLS))
    sources = page.evaluate(
        "() => [...window.jupyterapp.shell.currentWidget.content.model.cells].map((one) => one.sharedModel.source)"
    )
    assert sources == CELLS


def test_the_focus_stays_where_it_is_while_another_lab_learns(page: Page, widgets: list[Locator]):
    one, other, _ = widgets
    kernel_json(page, "1", code="first.text_to_read = text * 500")
    one.get_by_role("button", name="Start").focus()
    page.keyboard.press("Enter")
    expect(one.locator(".state")).to_have_text("running")
    expect(one.get_by_role("button", name="Pause")).to_be_focused()  # it takes Start's place
    other.locator(".tokens").focus()
    page.keyboard.press("ArrowLeft")  # the newest, which was shown
    page.keyboard.press("ArrowLeft")
    shown = one.locator(".atlas-lab").get_attribute("data-shown")
    expect(one.locator(".atlas-lab")).not_to_have_attribute("data-shown", shown)
    expect(other.locator(".tokens")).to_be_focused()
    expect(other.locator(".story")).to_contain_text("#298")
    expect(other.locator(".state")).to_have_text("paused")
    one.get_by_role("button", name="Pause").focus()
    page.keyboard.press("Space")
    expect(one.locator(".state")).to_have_text("paused")
    expect(one.get_by_role("button", name="Start")).to_be_focused()
    assert kernel_json(page, "[first.state, second.state]") == ["paused", "paused"]
