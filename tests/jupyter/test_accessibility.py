"""What axe-core finds in our parts of a real page: nothing serious. How far keys reach is tested with each widget."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, open_notebook, open_path, run_all

SERIOUS = {"serious", "critical"}


def serious_findings(page: Page, part: str) -> list[str]:
    """Return what is wrong inside the elements of a selector: ``color-contrast: #summary``."""
    found = Axe().run(page, context=part).response["violations"]
    return [
        f"{rule['id']}: {node['html'][:200]}"
        for rule in found
        if rule["impact"] in SERIOUS
        for node in rule["nodes"]
    ]


@pytest.mark.parametrize("theme", ["Light", "Dark"])
@pytest.mark.parametrize("name", ["gguf/tiny.gguf", "broken/truncated.atlas"])
def test_the_explorer(lab_page: Page, name: str, theme: str):
    change = (
        "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', { theme }).then(() => null)"
    )
    lab_page.evaluate(change, f"JupyterLab {theme}")
    open_path(lab_page, f"sample_data/{name}")
    tabs = lab_page.locator(".ax").get_by_role("tab")
    expect(tabs.first).to_be_visible()
    for tab in tabs.all():
        tab.click()
        expect(tab).to_have_attribute("aria-selected", "true")
        expect(lab_page.locator(".ax-panel").first).not_to_be_empty()
        expect(lab_page.locator(".ax")).not_to_contain_text("Reading …")
        assert serious_findings(lab_page, ".atlas-kit-Viewer") == [], tab.inner_text()


SHOWN = """
import numpy as np
from IPython.display import display
from atlas_kit.llama import FakeEngine
from atlas_kit.widgets import CapacityPlayground, FileExplorer, MatrixView, MemoryCompare, MemoryLab

lab = MemoryLab(FakeEngine(), "to be or not to be, " * 20)
lab.run()
display(
    MatrixView(np.random.default_rng(0).standard_normal((64, 64)), title="noise"),
    FileExplorer("sample_data/atlas/learned.atlas"),
    MemoryCompare("sample_data/atlas/learned.atlas", "sample_data/atlas/learned-more.atlas"),
    CapacityPlayground(),
    lab,
)
"""


def test_a_notebook_with_the_widgets(page: Page, lab_server: Lab, notebook: Callable[..., str]):
    open_notebook(page, lab_server, notebook(SHOWN))
    assert run_all(page) == []
    outputs = page.locator(".jp-OutputArea-output")
    expect(outputs).to_have_count(5)
    handles = page.locator(".jp-OutputArea-output .noUi-handle")
    expect(handles.first).to_have_accessible_name(re.compile(r"\w"))
    assert handles.count() > 5
    for handle in handles.all():
        expect(handle).to_have_accessible_name(re.compile(r"\w"))
    assert serious_findings(page, ".jp-OutputArea-output") == []
