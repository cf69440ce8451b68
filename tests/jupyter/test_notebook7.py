"""The same wheel in Notebook 7: a double-click shows the explorer, a notebook its widgets."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from tests.jupyter.conftest import Unpacked
from tests.jupyter.labdriver import Lab, kernel_json, notebook_json, run_all, running_lab, wait_for_kernel

WIDGETS = (
    """from atlas_kit.widgets import MemoryLab
lab = MemoryLab("tiny-python.gguf", "def median(data):\\n    return sorted(data)\\n" * 30_000)  # no end in sight
lab""",
    """from atlas_kit.widgets import MemoryCompare
MemoryCompare("learned.atlas", "learned-more.atlas")""",
    """from atlas_kit.widgets import ModelCompare
ModelCompare("tiny.gguf", "micro.gguf")""",
)


@pytest.fixture(scope="module")
def notebook7(wheel: Unpacked, tmp_path_factory: pytest.TempPathFactory, sample_data: Path) -> Iterator[Lab]:
    """Return a Notebook 7 in a folder with two files and a notebook."""
    root = tmp_path_factory.mktemp("notebook7")
    shutil.copy(sample_data / "gguf" / "tiny.gguf", root)
    shutil.copy(sample_data / "atlas" / "learned.atlas", root)
    show = 'from atlas_kit.widgets import FileExplorer\nFileExplorer("learned.atlas")'
    (root / "show.ipynb").write_text(notebook_json(show), encoding="utf-8")
    for name in ("gguf/micro.gguf", "models/tiny-python.gguf", "atlas/learned-more.atlas"):
        shutil.copy(sample_data / name, root)
    (root / "widgets.ipynb").write_text(notebook_json(*WIDGETS), encoding="utf-8")
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


@pytest.mark.model
def test_a_notebook_runs_a_lab_and_compares_memories_and_models(page: Page, notebook7: Lab):
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    page.goto(notebook7.at("notebooks/widgets.ipynb"))
    page.wait_for_function("window.jupyterapp && window.jupyterapp.shell")
    wait_for_kernel(page)
    assert run_all(page) == []
    lab, memories, models = (
        page.locator(".jp-CodeCell").nth(n).locator(".jp-OutputArea-output").last for n in range(3)
    )

    lab.get_by_role("button", name="Start").click()
    page.wait_for_function("Number(document.querySelector('.atlas-lab').dataset.shown) > 200")
    lab.get_by_role("button", name="Stop").click()
    expect(lab.locator(".state")).to_have_text("idle")
    expect(lab.locator(".atlas-lab .loss canvas")).to_be_visible()

    expect(memories.locator("canvas").nth(2)).to_be_visible()
    memories.get_by_role("tab", name="Entries").click()
    expect(memories.get_by_text("model_context_0.parameters.W")).to_be_visible()

    expect(models.get_by_role("status").first).to_contain_text("tensors differ")
    models.get_by_role("tab", name="Metadata").click()
    expect(models.get_by_role("cell", name="general.name", exact=True)).to_be_visible()

    # closed, it leaves its picture
    kernel_json(page, "1", "lab.close()")
    expect(page.locator("iframe.atlas-kit-still")).to_have_count(1)
