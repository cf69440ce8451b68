"""``ModelCompare`` in a real JupyterLab: picture, tables, and the page that is saved."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Page, expect

from tests.jupyter.labdriver import Lab, open_notebook, run_all
from tests.jupyter.test_accessibility import serious_findings

SHOWN = """
from atlas_kit.widgets import ModelCompare
compare = ModelCompare("sample_data/gguf/tiny.gguf", "sample_data/gguf/micro.gguf")
compare
"""


def test_two_models_side_by_side(page: Page, lab_server: Lab, notebook: Callable[..., str]):
    open_notebook(page, lab_server, notebook(SHOWN))
    assert run_all(page) == []
    output = page.locator(".jp-OutputArea-output").first
    expect(output.get_by_role("status").first).to_contain_text("tensors differ")
    expect(output.get_by_role("img", name="Error of each tensor, by layer")).to_be_visible()
    for tab, text in (("Tensors", "output.weight"), ("Metadata", "general.name"), ("Tokens", "<unk>")):
        output.get_by_role("tab", name=tab).click()
        expect(output.get_by_role("cell", name=text, exact=True).first).to_be_visible()
        assert serious_findings(page, ".jp-OutputArea-output") == [], tab
    output.get_by_role("tab", name="On a text").click()
    output.get_by_role("button", name="Read it").click()
    expect(output.get_by_role("alert")).to_have_text("There is no text to read.")
