"""``MemoryLab`` in a real JupyterLab: press Start, see the memory lower the loss, press Stop, use the kernel."""

from __future__ import annotations

import json
import re

import pytest
from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, open_notebook, patient_saves, run_all
from tests.waiting import LONG

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

#: The text does not end while a test looks on, however fast the machine reads, or long it pauses.
OPEN = """
from pathlib import Path
from atlas_kit.widgets import MemoryLab
text = Path("sample_data/documents/statistics.py").read_text() * 30
lab = MemoryLab("sample_data/models/tiny-python.gguf", text)
lab
"""


def press(page: Page, name: str) -> None:
    page.locator(".atlas-memory-lab button", has_text=name).first.click()


def test_start_learn_stop(lab_server: Lab, notebook, page: Page):
    open_notebook(page, lab_server, notebook(OPEN, "answer = 6 * 7"))
    assert run_all(page) == []
    state = page.locator(".atlas-lab .state")
    expect(state).to_have_text("idle")
    press(page, "Start")
    page.wait_for_function("Number(document.querySelector('.atlas-lab').dataset.shown) > 700")
    without, with_memory = (float(page.locator(f".tile.{who} b").inner_text()) for who in ("model", "memory"))
    assert with_memory < without - 0.1

    # the kernel answers while the memory learns, and the page says as long as it does that something is at work
    signs = [page.locator(f"link.{sign}.favicon[rel=icon]") for sign in ("busy", "idle")]
    assert kernel_json(page, "[answer, lab.state]") == [42, "running"]
    expect(signs[0]).to_have_count(1)
    expect(signs[1]).to_have_count(0)
    press(page, "Stop")
    expect(state).to_have_text("idle")
    assert kernel_json(page, f"lab.wait({LONG})") is True
    expect(signs[0]).to_have_count(0)
    expect(signs[1]).to_have_count(1)
    read = kernel_json(page, "len(lab.history.tokens)")
    assert kernel_json(page, "[len(lab.history.tokens), lab.runner.alive, lab.error]") == [read, False, ""]
    expect(page.locator(".atlas-lab")).to_have_attribute("data-shown", str(read))
    text = page.locator(".atlas-lab .tokens").evaluate("(node) => node.textContent")
    whole = kernel_json(page, "''.join(lab.words.texts(0, len(lab.trace)))")
    assert len(text) > 700
    assert whole.endswith(text)  # the page keeps the newest of a long run

    # who cannot see the sliders hears their names
    for name in ("learning rate", "window", "degree", "share"):
        expect(page.get_by_role("slider", name=name)).to_have_count(1)

    # while a cell runs, a picture of the run grows
    shown = page.locator(".atlas-lab").get_attribute("data-shown")
    kernel_json(page, "lab.state", code="lab.run(200)")
    page.wait_for_function(
        "(before) => document.querySelector('.atlas-lab').dataset.shown !== before", arg=shown
    )

    # what goes wrong is a sentence
    kernel_json(page, "1", code="lab.controls.path.value = 'missing.atlas'; lab.controls.load.click()")
    expect(page.locator(".atlas-lab [role=alert]")).to_contain_text("missing.atlas")


@pytest.mark.parametrize("width", [1280, 1920])
def test_start_and_the_curves_share_a_screen_and_the_rest_is_in_tabs(lab_server, notebook, page: Page, width):
    page.set_viewport_size({"width": width, "height": 900})
    open_notebook(page, lab_server, notebook(OPEN.replace("\nlab\n", "\nlab.run(100)\nlab\n")))
    assert run_all(page) == []
    page.wait_for_function("document.querySelector('.atlas-lab')?.dataset.shown === '100'")
    lab, curve = page.locator(".atlas-memory-lab"), page.locator(".atlas-lab .loss canvas")
    top = page.locator(".atlas-memory-lab button", has_text="Start").first.bounding_box()["y"]
    bottom = curve.bounding_box()["y"] + curve.bounding_box()["height"]
    assert bottom - top < 520
    settings = (
        page.get_by_role("slider", name="share"),
        *(page.get_by_label(name) for name in ("adaptive", "Muon")),
    )
    assert len({round(one.bounding_box()["y"] / 20) for one in settings}) <= 2  # none stands alone in a line
    panes = {
        "Text": ".atlas-lab .tokens",
        "Recall": ".atlas-recall",
        "Matrix": ".atlas-lab-matrix canvas >> nth=0",
        "Weights": ".weights canvas",
    }
    for name in panes:
        page.locator(".atlas-lab .tabs button", has_text=name).click()
        for other, selector in panes.items():
            expect(page.locator(selector)).to_be_visible(visible=other == name)
        assert lab.bounding_box()["height"] < 900
        sideways = lab.evaluate(
            """(lab) => [...lab.querySelectorAll("*")].filter((one) => one.scrollWidth > one.clientWidth + 1
                && ["auto", "scroll"].includes(getComputedStyle(one).overflowX)).map((one) => one.className)"""
        )
        assert sideways == []


def test_what_was_seen_last_is_saved_and_can_be_looked_around_in(lab_server, notebook, page: Page):
    name = notebook(OPEN)
    patient_saves(page)
    open_notebook(page, lab_server, name)
    assert run_all(page) == []
    press(page, "Start")
    page.wait_for_function("Number(document.querySelector('.atlas-lab').dataset.shown) > 300")
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => null)")
    cells = json.loads((lab_server.root / name).read_text())["cells"]
    bundle = cells[0]["outputs"][0]["data"]
    read = int(re.search(r"([\d,]+) tokens read", "".join(bundle["text/plain"]))[1].replace(",", ""))
    assert read > 100
    page.goto("about:blank")
    page.set_content(f"<!doctype html><body>{''.join(bundle['text/html'])}</body>")
    page.locator(".ak-at rect").nth(60).hover()
    expect(page.locator(".ak-at:hover text")).to_contain_text("with memory")
    page.locator(".ak-name", has_text="Text").click()
    tokens = page.locator(".ak-panel:visible [title*='nats without memory']")
    expect(tokens.filter(has_text=re.compile(r"\w")).first).to_be_visible()  # the first may be a line's end
    page.locator(".ak-name", has_text="Matrix").click()
    expect(page.locator(".ak-panel:visible svg image").first).to_be_visible()


def test_a_page_that_is_loaded_again_shows_the_run(lab_server: Lab, notebook, page: Page):
    path = notebook(OPEN.replace("\nlab\n", "\nlab.run(100)\nlab\n"))
    open_notebook(page, lab_server, path)
    assert run_all(page) == []
    page.wait_for_function("document.querySelector('.atlas-lab')?.dataset.shown === '100'")
    page.evaluate(
        """async () => {
            const { commands, shell } = window.jupyterapp;
            await commands.execute("notebook:create-output-view");
            shell.activateById(shell.currentWidget.id);
        }"""
    )
    page.wait_for_function(
        "[...document.querySelectorAll('.atlas-lab')].filter((lab) => lab.dataset.shown === '100').length === 2"
    )
