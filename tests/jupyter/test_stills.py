"""A saved notebook without its kernel, and one exported to HTML, show the picture of every widget."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from playwright.sync_api import Browser, Page, expect

from tests.jupyter.conftest import Unpacked
from tests.jupyter.labdriver import (
    Lab,
    kernel_json,
    notebook_json,
    open_lab,
    open_notebook,
    patient_saves,
    private_environment,
    run_all,
    wait_for_kernel,
)

if TYPE_CHECKING:
    from nbformat import NotebookNode

# nbformat takes seconds to import: only the tests that run wait for it, not collecting.
LIVE = ".jp-OutputArea-output .widget-slider"
STILL = ".jp-OutputArea-output img[src^='data:image/png']"
VIEW = "application/vnd.jupyter.widget-view+json"
#: A widget of the smallest kind: Jupyter's slider, with a picture of our way.
SHOW = """
import ipywidgets, matplotlib.figure
from atlas_kit.widgets.base import Shown

class Slider(Shown, ipywidgets.IntSlider):
    def text(self):
        return f"a slider at {self.value}"

    def figure(self):
        figure = matplotlib.figure.Figure(figsize=(1, 1))
        figure.add_subplot().plot([0, self.value])
        return figure

slider = Slider(3)
slider
"""


def save(page: Page) -> None:
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => null)")


def saved_output(lab: Lab, name: str) -> dict[str, Any]:
    import nbformat

    cells = nbformat.read(lab.root / name, as_version=4).cells
    return dict(cells[0].outputs[0].data)


@pytest.fixture(scope="module")
def saved(lab_server: Lab) -> Callable[[Page], str]:
    """Run a notebook in the Lab and save it, once; the path is for ``open_lab``."""
    name = "saved.ipynb"

    def save_once(page: Page) -> str:
        if not (lab_server.root / name).exists():
            (lab_server.root / name).write_text(notebook_json(SHOW), encoding="utf-8")
            open_notebook(page, lab_server, name)
            assert run_all(page) == []
            expect(page.locator(LIVE)).to_be_visible()
            save(page)
            assert VIEW in saved_output(lab_server, name)
        return name

    return save_once


def test_a_reload_finds_the_living_view_again(page: Page, lab_server: Lab, saved: Callable[[Page], str]):
    open_lab(page, lab_server, saved(page))
    wait_for_kernel(page)
    expect(page.locator(LIVE)).to_be_visible()
    expect(page.locator(STILL)).to_have_count(0)
    kernel_json(page, "slider.value", "slider.value = 7")
    expect(page.locator(LIVE)).to_contain_text("7")


def test_a_new_kernel_shows_the_picture(page: Page, lab_server: Lab, saved: Callable[[Page], str]):
    name = saved(page)
    open_lab(page, lab_server)
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll().then(() => null)")
    open_notebook(page, lab_server, name)
    expect(page.locator(STILL)).to_be_visible()
    expect(page.get_by_role("img", name="a slider at 3")).to_be_visible()
    expect(page.locator(".jp-OutputArea-output")).not_to_contain_text("Error displaying widget")


def test_no_kernel_at_all_shows_the_picture(page: Page, lab_server: Lab, saved: Callable[[Page], str]):
    import nbformat

    name = saved(page)
    notebook = nbformat.read(lab_server.root / name, as_version=4)
    notebook.metadata = {"kernelspec": {"display_name": "Gone", "name": "gone"}}
    nbformat.write(notebook, lab_server.root / "orphan.ipynb")
    open_lab(page, lab_server, "orphan.ipynb")
    page.locator(".jp-Dialog").get_by_role("button", name="No Kernel").click()
    expect(page.locator(STILL)).to_be_visible()
    expect(page.locator(".jp-OutputArea-output")).not_to_contain_text("Loading widget")


PAGED = SHOW.replace(
    "slider = Slider(3)",
    """
from atlas_kit.widgets import saved

class Slider(Slider):
    def html(self):
        words = saved.Panel("Words", saved.text(self.text()))
        return saved.page("Slid", [words, saved.Panel("Other", "<p>the other tab</p>")])

slider = Slider(3)""",
)


def test_what_was_seen_last_is_what_is_saved(
    page: Page, lab_server: Lab, browser: Browser, notebook: Callable[..., str]
):
    import nbformat

    name = notebook(PAGED)
    patient_saves(page)
    open_notebook(page, lab_server, name)
    assert run_all(page) == []
    handle = page.locator(LIVE).element_handle()
    assert handle is not None
    kernel_json(page, "slider.value", "slider.value = 7")
    save(page)
    data = saved_output(lab_server, name)
    assert data["text/plain"] == "a slider at 7"
    assert VIEW in data
    assert handle.is_visible()  # the living view is the one that was there: nothing was drawn anew
    kernel_json(page, "slider.value", "slider.value = 8")
    expect(page.locator(LIVE)).to_contain_text("8")

    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll().then(() => null)")
    open_notebook(page, lab_server, name)
    frame = page.frame_locator("iframe.atlas-kit-still")
    expect(frame.get_by_text("a slider at 7")).to_be_visible()
    frame.get_by_text("Other", exact=True).click()
    expect(frame.get_by_text("the other tab")).to_be_visible()

    exported_page = browser.new_context(java_script_enabled=False).new_page()
    exported_page.set_content(exported(nbformat.read(lab_server.root / name, as_version=4)))
    expect(exported_page.get_by_text("a slider at 7")).to_be_visible()
    exported_page.context.close()


def test_a_widget_that_is_closed_leaves_what_was_seen_last(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    name = notebook(PAGED, "slider.value = 8", "slider.close()")
    patient_saves(page)
    open_notebook(page, lab_server, name)
    assert run_all(page) == []
    frame = page.frame_locator("iframe.atlas-kit-still")
    expect(frame.get_by_text("a slider at 8")).to_be_visible()
    expect(page.locator(LIVE)).to_have_count(0)
    save(page)
    assert saved_output(lab_server, name)["text/plain"] == "a slider at 8"
    open_notebook(page, lab_server, name)
    expect(frame.get_by_text("a slider at 8")).to_be_visible()


def test_a_kernel_at_work_does_not_keep_a_notebook_from_being_saved(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    name = notebook(SHOW, "import time; time.sleep(600)")
    open_notebook(page, lab_server, name)
    page.evaluate("() => { window.jupyterapp.commands.execute('notebook:run-all-cells') }")
    expect(page.locator(LIVE)).to_be_visible()
    save(page)
    assert saved_output(lab_server, name)["text/plain"] == "a slider at 3"
    page.evaluate("window.jupyterapp.serviceManager.sessions.shutdownAll().then(() => null)")


# --- exported ---------------------------------------------------------------------------------------------


def exported(notebook: NotebookNode) -> str:
    from nbconvert import HTMLExporter

    page, _ = HTMLExporter(embed_images=True).from_notebook_node(notebook)
    return str(page)


def assert_shows_picture(browser: Browser, html: str) -> None:
    """Look at a page as a reader without a network does: scripts would come from elsewhere."""
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.set_content(html)
    expect(page.get_by_role("img", name="a slider at 3")).to_be_visible()
    context.close()
    assert f'<script type="{VIEW}">' not in html  # it would draw over the picture, or over nothing


def test_a_saved_notebook_is_exported_with_its_picture(
    page: Page, lab_server: Lab, browser: Browser, saved: Callable[[Page], str]
):
    import nbformat

    notebook = nbformat.read(lab_server.root / saved(page), as_version=4)
    assert_shows_picture(browser, exported(notebook))


def test_a_notebook_run_by_a_program_is_exported_with_its_picture(
    wheel: Unpacked, browser: Browser, tmp_path: Path
):
    (tmp_path / "show.ipynb").write_text(notebook_json(SHOW), encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "html", "show.ipynb"]
    environment = private_environment(tmp_path / "home", wheel.environment)
    ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert ran.returncode == 0, ran.stderr
    assert_shows_picture(browser, (tmp_path / "show.html").read_text(encoding="utf-8"))


def test_a_notebook_run_by_a_program_keeps_what_a_later_cell_made_of_a_widget(
    wheel: Unpacked, tmp_path: Path
):
    import nbformat

    (tmp_path / "show.ipynb").write_text(notebook_json(SHOW, "slider.value = 9"), encoding="utf-8")
    command = [sys.executable, "-m", "jupyter", "nbconvert", "--execute", "--to", "notebook", "--inplace"]
    environment = private_environment(tmp_path / "home", wheel.environment)
    ran = subprocess.run(
        [*command, "show.ipynb"], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert ran.returncode == 0, ran.stderr
    (first, second) = nbformat.read(tmp_path / "show.ipynb", as_version=4).cells
    assert first.outputs[0].data["text/plain"] == "a slider at 9"
    assert second.outputs == []
