"""The widgets in a notebook that is saved in a real JupyterLab and exported: what was last seen, to look around in."""

from __future__ import annotations

from collections.abc import Callable

from playwright.sync_api import Browser, Page, expect

from tests.jupyter.labdriver import Lab, open_notebook, patient_saves, run_all
from tests.jupyter.test_accessibility import serious_findings

SHOWN = (
    "from atlas_kit.widgets import FileExplorer\nFileExplorer('sample_data/gguf/tiny.gguf')",
    "from atlas_kit.widgets import MemoryCompare\n"
    "compare = MemoryCompare('sample_data/atlas/learned.atlas', 'sample_data/atlas/learned-more.atlas')\ncompare",
)


def test_an_export_shows_what_was_last_seen_and_can_be_looked_around_in(
    page: Page, lab_server: Lab, browser: Browser, notebook: Callable[..., str]
):
    import nbformat
    from nbconvert import HTMLExporter

    name = notebook(*SHOWN)
    patient_saves(page)
    open_notebook(page, lab_server, name)
    assert run_all(page) == []
    explorer = page.locator(".ax").first
    explorer.get_by_role("tab", name="Tensors").click()
    explorer.get_by_role("searchbox").fill("ffn")
    expect(explorer.get_by_text("4 of 12")).to_be_visible()
    explorer.get_by_role("gridcell", name="blk.0.ffn_up.weight", exact=True).click()
    expect(explorer.get_by_role("article", name="blk.0.ffn_up.weight")).to_be_visible()
    page.evaluate("window.jupyterapp.commands.execute('docmanager:save').then(() => null)")
    saved = nbformat.read(lab_server.root / name, as_version=4)
    for cell in saved.cells:
        assert 'class="ak"' in cell.outputs[0].data["text/html"]
    text, _ = HTMLExporter().from_notebook_node(saved)

    context = browser.new_context(java_script_enabled=False, viewport={"width": 1280, "height": 900})
    exported = context.new_page()
    exported.set_content(text)
    model = exported.get_by_role("region", name="tiny.gguf: GGUF model")
    expect(model.get_by_role("img", name="blk.0.ffn_up.weight, 64 x 32")).to_be_visible()
    values = model.locator("svg title").all_text_contents()
    assert any(value.startswith("rows 0 to 1, column 0: ") for value in values)
    model.locator("label", has_text="Tensors").click()
    expect(model.get_by_text("4 of 12: ffn")).to_be_visible()
    expect(model.locator("td", has_text="blk.0.ffn_gate.weight")).to_be_visible()
    expect(model.locator("td", has_text="attn_q")).to_have_count(0)
    memory = exported.get_by_role("region", name="A: learned.atlas and B: learned-more.atlas")
    expect(memory.get_by_role("img", name="B − A, W, 8 x 6")).to_be_visible()
    memory.locator("label", has_text="Entries").click()
    expect(memory.get_by_text("84 of 96 numbers differ")).to_be_visible()
    wide = exported.evaluate(
        "[...document.querySelectorAll('.ak')].map((node) => node.scrollWidth - node.clientWidth)"
    )
    assert wide == [0, 0]  # nothing is cut at the right
    context.close()


def test_what_is_shown_can_be_saved_as_a_file(page: Page, lab_server: Lab, notebook: Callable[..., str]):
    open_notebook(page, lab_server, notebook(SHOWN[0]))
    assert run_all(page) == []
    explorer = page.locator(".ax").first
    explorer.get_by_role("tab", name="Tensors").click()
    expect(explorer.get_by_role("gridcell", name="output.weight", exact=True)).to_be_visible()
    bar = page.get_by_role("group", name="Save what is shown")
    for form, begins in (
        ("PNG", b"\x89PNG"),
        ("SVG", b"<?xml"),
        ("HTML", b"<!doctype html>"),
        ("CSV", b"Name,Type,"),
    ):
        with page.expect_download() as download:
            bar.get_by_role("button", name=form).click()
        assert download.value.suggested_filename == f"FileExplorer.{form.lower()}"
        assert download.value.path().read_bytes().startswith(begins)
        expect(bar.get_by_role("status")).to_have_text(f"Saved FileExplorer.{form.lower()}")
    assert serious_findings(page, ".atlas-kit-share") == []


def test_an_output_that_goes_while_its_view_is_looked_for_raises_nothing(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    """So it is with all widgets of a saved notebook whose cells are run at once after it was opened."""
    open_notebook(page, lab_server, notebook(SHOWN[0]))
    assert run_all(page) == []
    expect(page.locator(".ax")).to_be_visible()
    gone = page.evaluate(
        """async () => {
            const area = window.jupyterapp.shell.currentWidget.content.widgets[0].outputArea;
            const view = "application/vnd.jupyter.widget-view+json", { data, metadata } = area.model.get(0);
            const renderer = area.rendermime.createRenderer(view);
            const unknown = { ...data, [view]: { ...data[view], model_id: "of-another-kernel" } };
            const rendered = renderer.renderModel({ data: unknown, metadata, trusted: true });
            renderer.dispose();
            await rendered;
            return renderer.isDisposed;
        }"""
    )
    assert gone
