"""MemoryCompare in a real JupyterLab: two files, then a run with a probe text that is looked at by clicking."""

from __future__ import annotations

from playwright.sync_api import expect

from tests.jupyter.labdriver import kernel_json, open_notebook, run_all
from tests.waiting import until

FILES = """
from atlas_kit.widgets import MemoryCompare
files = MemoryCompare("sample_data/atlas/learned.atlas", "sample_data/atlas/learned-more.atlas")
files
"""
RUN = """
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.snapshots import Snapshots
text, taken = "to be or not to be, that is the question. " * 12, Snapshots(every=64)
session = AtlasSession(FakeEngine(n_ctx=512), features="polynomial", memory_dim=16)
for at in range(0, len(text), 64):
    _ = session.feed(text[at : at + 64])
    _ = taken.offer(session)
run = MemoryCompare(taken, model=session, probe="that is to be or not the question")
run
"""


def test_two_files_and_a_run(page, lab_server, notebook):
    open_notebook(page, lab_server, notebook(FILES, RUN))
    assert run_all(page) == []
    files, run = (page.locator(".jp-CodeCell").nth(n).locator(".jp-OutputArea-output").last for n in (0, 1))

    canvases = files.locator("canvas")
    canvases.nth(2).wait_for()
    assert canvases.count() >= 3
    row = files.locator("table tbody tr").first
    row.wait_for()
    assert row.locator("td").nth(1).inner_text() == "8 x 6"
    files.locator("polyline").nth(2).wait_for()
    files.get_by_role("tab", name="Entries").click()
    files.get_by_text("model_context_0.parameters.W").wait_for()

    text = run.get_by_role("listbox")
    text.wait_for()
    run.locator(".largest button").nth(1).click()
    run.locator(".detail tr.came").wait_for()
    selected, second = kernel_json(
        page, "[run.behaviour.view.selected, run.behaviour.view.largest['gain'][1] + 1]"
    )
    assert selected == second

    shown = run.locator(".atlas-matrix").nth(1).locator("canvas").first
    before = shown.evaluate("canvas => canvas.toDataURL()")
    kernel_json(page, "run.show(0, 2)")
    page.wait_for_function(
        "([before, canvas]) => canvas.toDataURL() !== before", arg=[before, shown.element_handle()]
    )
    watch = "said = []; run.play.observe(lambda change: said.append(change.new), 'description')"
    kernel_json(page, "said", code=watch)
    run.get_by_role("button", name="Play").click()
    until(lambda: kernel_json(page, "said") == ["Pause", "Play"])
    expect(run.get_by_role("button", name="Play")).to_be_visible()
    assert kernel_json(page, "run.slider.value == run.slider.max") is True
