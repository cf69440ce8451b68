"""Every widget in a real JupyterLab whose kernel is gone: each says once that its picture is from before."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable

import pytest
from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, kernel_json, open_notebook, run_all
from tests.jupyter.test_accessibility import serious_findings

CELLS = [
    "import numpy as np\nfrom atlas_kit.widgets import MatrixView\nMatrixView(np.eye(4))",
    "from atlas_kit.widgets import MemoryCompare\nMemoryCompare({'m': np.eye(4)}, {'m': np.ones((4, 4))})",
    "from atlas_kit.widgets import ModelCompare\n"
    "ModelCompare('sample_data/gguf/tiny.gguf', 'sample_data/gguf/micro.gguf')",
    "from atlas_kit.widgets import FileExplorer\nFileExplorer('sample_data/gguf/tiny.gguf')",
]


@pytest.mark.parametrize("how", ["restarted", "killed"])
def test_each_widget_says_once_that_its_kernel_is_gone(
    how: str, page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    open_notebook(page, lab_server, notebook(*CELLS))
    assert run_all(page) == []
    outputs = page.locator(".jp-CodeCell .jp-OutputArea-output")
    expect(outputs).to_have_count(len(CELLS))
    if how == "killed":
        os.kill(kernel_json(page, "os.getpid()", code="import os"), signal.SIGKILL)
    else:
        page.evaluate(
            "window.jupyterapp.shell.currentWidget.sessionContext.session.kernel.restart().then(() => null)"
        )
    for output in outputs.all():
        expect(output.locator(".atlas-gone")).to_have_count(1)
        expect(output.locator(".atlas-gone")).to_contain_text("run the cell again")
    assert serious_findings(page, ".atlas-gone") == []
    if how == "restarted":
        assert run_all(page) == []
        expect(page.locator(".atlas-gone")).to_have_count(0)
