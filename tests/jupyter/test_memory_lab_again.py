"""``MemoryLab`` in a real JupyterLab when it is looked at again: tabs, pages, kernels and cells that come back."""

from __future__ import annotations

import pytest
from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, open_notebook, open_path, run_all, wait_for_kernel
from tests.waiting import until

pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")

#: The text does not end while a test looks on, however fast the machine reads, or long it pauses.
OPEN = """
from pathlib import Path
from atlas_kit.widgets import MemoryLab
text = Path("sample_data/documents/statistics.py").read_text() * 30
lab = MemoryLab("sample_data/models/tiny-python.gguf", text)
lab
"""
MEMORY = """
import gc, os, tracemalloc
if not tracemalloc.is_tracing():
    tracemalloc.start()
def memory():
    gc.collect()
    resident = int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    return [resident / 1e6, tracemalloc.get_traced_memory()[0] / 1e6]
"""


def press(page: Page, name: str) -> None:
    page.locator(".atlas-memory-lab button", has_text=name).first.click()


def shown(page: Page, more_than: int) -> int:
    """Wait until a view shows more tokens than that; return how many."""
    page.wait_for_function(
        "(least) => [...document.querySelectorAll('.atlas-lab')].some((lab) => Number(lab.dataset.shown) > least)",
        arg=more_than,
    )
    return int(
        page.evaluate(
            "Math.max(...[...document.querySelectorAll('.atlas-lab')].map((l) => +l.dataset.shown))"
        )
    )


def begun(page: Page, lab_server: Lab, path: str) -> None:
    """Open a notebook, run it, press Start and see it read."""
    open_notebook(page, lab_server, path)
    assert run_all(page) == []
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => null)")
    press(page, "Start")
    shown(page, 100)


def run_cell(page: Page) -> None:
    assert run_all(page) == []


def test_a_tab_that_is_closed_in_mid_run_and_opened_again(lab_server: Lab, notebook, page: Page):
    path = notebook(OPEN)
    begun(page, lab_server, path)
    for _ in range(2):
        page.evaluate("window.jupyterapp.shell.currentWidget.dispose()")
        expect(page.locator(".atlas-lab")).to_have_count(0)
        open_path(page, path)
        wait_for_kernel(page)
        count = shown(page, 0)
        shown(page, count)
        until(lambda: kernel_json(page, "lab.state") == "running")
    press(page, "Stop")
    expect(page.locator(".atlas-lab .state")).to_have_text("idle")
    press(page, "Start")
    expect(page.locator(".atlas-lab .state")).to_have_text("running")


def test_it_rests_while_its_tab_is_closed(lab_server: Lab, notebook, page: Page):
    path = notebook(OPEN)
    begun(page, lab_server, path)
    page.evaluate(
        """() => {
            window.kernel = window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.clone();
            window.jupyterapp.shell.currentWidget.dispose();
            window.states = [];
            window.ask = async () => {
                const future = window.kernel.requestExecute({ code: "", user_expressions: { s: "lab.state" } });
                return (await future.done).content.user_expressions.s.data["text/plain"];
            };
        }"""
    )
    page.wait_for_function("async () => (await window.ask()) === \"'paused'\"")
    open_path(page, path)
    wait_for_kernel(page)
    shown(page, 100)
    expect(page.locator(".atlas-lab .state")).to_have_text("running")


def test_a_page_that_is_loaded_again_in_mid_run(lab_server: Lab, notebook, page: Page):
    path = notebook(OPEN)
    begun(page, lab_server, path)
    open_notebook(page, lab_server, path)
    count = shown(page, 0)
    shown(page, count)
    press(page, "Pause")
    expect(page.locator(".atlas-lab .state")).to_have_text("paused")


def test_two_views_of_one_lab_and_one_of_them_closed(lab_server: Lab, notebook, page: Page):
    begun(page, lab_server, notebook(OPEN, "lab"))
    expect(page.locator(".atlas-lab")).to_have_count(2)
    page.evaluate(
        """() => {
            const cells = window.jupyterapp.shell.currentWidget.content.model.cells;
            cells.get(1).outputs.clear();
        }"""
    )
    expect(page.locator(".atlas-lab")).to_have_count(1)
    count = shown(page, 0)
    shown(page, count + 100)
    until(lambda: kernel_json(page, "lab.state") == "running")


def test_a_kernel_that_was_restarted_says_so_and_its_cell_can_be_run_again(
    lab_server: Lab, notebook, page: Page
):
    begun(page, lab_server, notebook(OPEN))
    page.evaluate(
        "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(() => null)"
    )
    expect(page.locator(".atlas-lab .away")).to_contain_text("does not answer")
    assert int(page.locator(".atlas-lab").get_attribute("data-shown") or 0) > 100  # what was seen stays
    run_cell(page)
    expect(page.locator(".atlas-lab")).to_have_count(1)
    press(page, "Start")
    shown(page, 100)
    expect(page.locator(".atlas-lab .away")).to_be_hidden()


def test_frames_that_were_lost_on_the_way_are_asked_for_again(lab_server: Lab, notebook, page: Page):
    begun(page, lab_server, notebook(OPEN))
    # the machine sleeps: what the kernel sends meanwhile reaches nobody
    kernel_json(
        page, "0", code="lost = []; sent, lab.view.send = lab.view.send, lambda *_, **__: lost.append(1)"
    )
    before = kernel_json(page, "len(lab.trace)")
    until(lambda: kernel_json(page, "len(lost)") > 1)
    kernel_json(page, "0", code="lab.view.send = sent")
    shown(page, before + 100)
    text = page.evaluate("document.querySelector('.atlas-lab .tokens').textContent")
    press(page, "Pause")
    whole = kernel_json(page, "''.join(lab.words.texts(0, len(lab.trace)))")
    assert text
    assert text in whole or whole.startswith(text)


@pytest.mark.slow
def test_ten_runs_of_a_cell_have_one_engine_and_the_memory_of_three(lab_server: Lab, notebook, page: Page):
    """A model that leaked would add its file and its context each time, 100 MB; what was read and learned, which Out
    keeps, some 10 MB.
    """
    path = notebook(MEMORY, OPEN.replace(" * 30", ""))  # Out keeps the text of each
    open_notebook(page, lab_server, path)
    sizes, held = [], []
    for _ in range(10):
        run_cell(page)
        press(page, "Start")
        shown(page, 200)
        # how much the newest one has read and kept of it is another in each run
        whole, python = kernel_json(page, "memory()", code="lab.reset(); rests = lab.matrices.wait(120)")
        sizes.append(whole)
        held.append(python)
    kernel_json(page, "0", code="lab.text_to_read *= 30")  # it does not end while it is counted
    press(page, "Start")
    expect(page.locator(".atlas-lab .state")).to_have_text("running")
    assert kernel_json(page, "in_use()", code="from atlas_kit.widgets.lab.shared_model import in_use") == 1
    assert (
        kernel_json(
            page, "[one.state for one in Out.values() if isinstance(one, MemoryLab)].count('running')"
        )
        == 1
    )
    # what Python and NumPy hold is flat; pages of the process come and go with what the C library keeps free
    assert held[9] < held[2] + 5, held
    assert min(sizes[7:]) < max(sizes[2:5]) + 40, list(map(round, sizes))
    known = "import ipywidgets; known = ipywidgets.widgets.widget._instances"
    widgets = kernel_json(page, "len(known)", code=known)
    run_cell(page)
    shown(page, -1)
    assert kernel_json(page, "len(known)") == widgets
