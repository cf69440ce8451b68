"""The same wheel in Notebook 7: a double-click shows the explorer, a notebook its widgets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.jupyter.conftest import Unpacked
from tests.jupyter.labdriver import Lab, notebook_json, run_all, running_lab, wait_for_kernel


@pytest.fixture(scope="module")
def notebook7(wheel: Unpacked, tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Iterator[Lab]:
    """Return a Notebook 7 in a folder with two files and a notebook."""
    root = tmp_path_factory.mktemp("notebook7")
    shutil.copy(sample_data / "gguf" / "tiny.gguf", root)
    shutil.copy(sample_data / "atlas" / "learned.atlas", root)
    show = 'from atlas_kit.widgets import FileExplorer\nFileExplorer("learned.atlas")'
    (root / "show.ipynb").write_text(notebook_json(show), encoding="utf-8")
    with running_lab(root, app="notebook", environment=wheel.environment) as server:
        yield server


def test_a_double_click_shows_the_explorer(page: Page, notebook7: Lab):
    page.goto(notebook7.at("tree"))
    with page.context.expect_page() as opened:
        page.locator(".jp-DirListing-item", has_text="tiny.gguf").dblclick()
    view = opened.value
    expect(view.locator(".atlas-kit-Viewer .ax")).to_contain_text("GGUF version 3")
    with page.context.expect_page() as opened:
        view.get_by_role("button", name="Open in notebook").click()
    expect(opened.value.locator(".jp-CodeCell").first).to_contain_text('FileExplorer("tiny.gguf")')
    opened.value.close()
    view.close()
    assert list(notebook7.root.glob(".ipynb_checkpoints/*.gguf")) == []


def test_a_notebook_shows_the_explorer(page: Page, notebook7: Lab):
    page.goto(notebook7.at("notebooks/show.ipynb"))
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell")
    wait_for_kernel(page)
    assert run_all(page) == []
    expect(page.locator(".jp-OutputArea-output .ax")).to_contain_text("learned.atlas")
