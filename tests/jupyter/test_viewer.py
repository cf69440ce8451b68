"""Double-click in a real JupyterLab: the explorer at once, and nothing read or copied but what it shows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from playwright.sync_api import Page, Request, expect

from tests.jupyter.labdriver import (
    Lab,
    cell_errors,
    double_click,
    open_lab,
    open_notebook,
    open_path,
    run_all,
    wait_for_kernel,
)

VIEWER = ".atlas-kit-Viewer"
#: Larger than what any code that reads it all would survive in a test.
HUGE = 6 * 1024**3


@pytest.fixture(scope="module")
def huge_model(lab_server: Lab, sample_data: Path) -> Path:
    """Return a sparse GGUF file of 6 GiB in the Lab's folder."""
    path = lab_server.root / "huge.gguf"
    path.write_bytes((sample_data / "gguf" / "tiny.gguf").read_bytes())
    os.truncate(path, HUGE)
    return path


def watch_contents(page: Page, name: str) -> list[Request]:
    """Return a list that fills with the page's requests to the contents service about a file."""
    seen: list[Request] = []
    page.on("request", lambda r: seen.append(r) if name in r.url and "/api/contents" in r.url else None)
    return seen


def test_a_model_of_6_gib_is_neither_fetched_nor_copied(lab_page: Page, lab_server: Lab, huge_model: Path):
    requests = watch_contents(lab_page, huge_model.name)
    lab_page.get_by_role("button", name="Refresh the file browser.").click()
    double_click(lab_page, huge_model.name)
    expect(lab_page.locator(VIEWER)).to_contain_text("6.0 GiB")
    wait_for_looks(lab_page, huge_model.name, 1)  # whatever opening it asks for has been asked for by then
    reads = [r.url for r in requests if r.method == "GET" and "/checkpoints" not in r.url]
    assert reads
    assert all("content=0" in url for url in reads)
    assert [r.url for r in requests if r.method != "GET"] == []  # a checkpoint is a copy of the file
    assert list(lab_server.root.glob(".ipynb_checkpoints/huge*")) == []


def test_open_in_notebook_makes_a_notebook_beside_the_file_and_runs_it(page: Page, lab_server: Lab):
    folder = lab_server.root / 'it\'s a "folder" é'
    folder.mkdir()
    name = 'learned "twice" 記憶.atlas'
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "learned.atlas", folder / name)
    open_lab(page, lab_server, f"{folder.name}/{name}")
    page.locator(".jp-Toolbar").get_by_role("button", name="Open in notebook").click()
    wait_for_kernel(page)
    page.wait_for_function(
        "() => window.jupyterapp.shell.currentWidget.content.model.cells.get(0).executionCount === 1"
    )
    assert cell_errors(page) == []
    expect(page.locator(".jp-OutputArea-output .ax")).to_contain_text("learned")
    assert len(list(folder.glob("*.ipynb"))) == 1


def test_the_view_follows_the_file(lab_page: Page, lab_server: Lab):
    path = lab_server.root / "followed.atlas"
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "chat.atlas", path)
    open_path(lab_page, path.name)
    expect(lab_page.locator(VIEWER)).to_contain_text(f"{path.stat().st_size:,}")
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "learned.atlas", path)
    expect(lab_page.locator(VIEWER)).to_contain_text(f"{path.stat().st_size:,}")


def wait_for_looks(page: Page, name: str, looks: int) -> None:
    """Return when the view has asked so many times whether its file has changed."""
    for _ in range(looks):
        with page.expect_response(lambda r: "/api/contents" in r.url and name in r.url):
            pass


def test_a_view_that_nobody_changes_stays_as_it_is(lab_page: Page, lab_server: Lab):
    path = lab_server.root / "still.atlas"
    shutil.copy(lab_server.root / "sample_data" / "broken" / "bit-flip.atlas", path)
    open_path(lab_page, path.name)
    viewer = lab_page.locator(VIEWER)
    viewer.get_by_role("button", name="Check the file").first.click()
    expect(viewer.locator(".ax-finding").first).to_be_visible()
    shell = viewer.locator(".ax-shell").element_handle()
    wait_for_looks(lab_page, path.name, 3)
    expect(viewer.locator(".ax-finding").first).to_be_visible()
    assert shell is not None
    assert shell.is_visible()
    expect(viewer.locator(".ax-notice")).to_be_empty()


def test_a_half_typed_passphrase_stays_when_the_file_changes(lab_page: Page, lab_server: Lab):
    path = lab_server.root / "sealed.atlas"
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "secret.atlas", path)
    open_path(lab_page, path.name)
    viewer = lab_page.locator(VIEWER)
    box = viewer.get_by_label("Passphrase")
    box.fill("half")
    os.utime(path, (1, 1))
    expect(viewer.locator(".ax-notice")).to_contain_text("The file has changed.")
    expect(box).to_have_value("half")
    expect(box).to_be_focused()
    box.fill((lab_server.root / "sample_data" / "text" / "passphrase.txt").read_text().strip())
    box.press("Enter")
    expect(viewer.get_by_role("tab", name="Entries")).to_be_visible()
    os.utime(path, (2, 2))
    expect(viewer.locator(".ax-notice")).to_contain_text("The file has changed.")
    expect(viewer.get_by_role("tab", name="Entries")).to_be_visible()  # it stays unlocked


def test_a_file_that_changes_is_shown_at_the_place_that_was_looked_at(lab_page: Page, lab_server: Lab):
    from atlas_kit.formats.atlas import MemoryFile

    path = lab_server.root / "edited.atlas"
    memory = MemoryFile()
    for number in range(300):
        memory.set(f"note/{number:03}", f"words {number}\n" * 400)
    memory.save(path)
    open_path(lab_page, path.name)
    viewer = lab_page.locator(VIEWER)
    viewer.get_by_role("tab", name="Entries").click()
    box = viewer.get_by_role("searchbox")
    box.fill("note/2")
    grid = viewer.get_by_role("grid", name="Entries")
    expect(grid).to_have_attribute("aria-rowcount", "101")
    grid.evaluate("(node) => { node.scrollTop = 1300 }")
    grid.get_by_role("gridcell", name="note/255", exact=True).click()
    text = viewer.locator(".ax-pre")
    expect(text).to_contain_text("words 255")
    text.evaluate("(node) => { node.scrollTop = 700 }")
    box.focus()
    with MemoryFile.edit(path) as edited:
        edited["added"] = "later"
    expect(viewer.locator(".ax-notice")).to_contain_text("The file has changed.")
    expect(viewer.get_by_role("tab", name="Entries 301")).to_have_attribute("aria-selected", "true")
    expect(box).to_have_value("note/2")
    expect(box).to_be_focused()
    expect(grid).to_have_attribute("aria-rowcount", "101")
    expect(grid.get_by_role("gridcell", name="note/255", exact=True)).to_be_visible()
    expect(viewer.get_by_role("article", name="note/255")).to_be_visible()
    lab_page.wait_for_function("document.querySelector('.atlas-kit-Viewer .ax-pre')?.scrollTop === 700")
    lab_page.wait_for_function("(grid) => grid.scrollTop === 1300", arg=grid.element_handle())
    viewer.get_by_role("button", name="OK").click()
    expect(viewer.locator(".ax-notice")).to_be_empty()


def test_an_explorer_in_a_notebook_follows_its_file_by_itself(
    page: Page, lab_server: Lab, notebook: Callable[..., str]
):
    path = lab_server.root / "grows.atlas"
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "secret.atlas", path)
    open_notebook(
        page, lab_server, notebook('from atlas_kit.widgets import FileExplorer\nFileExplorer("grows.atlas")')
    )
    assert run_all(page) == []
    box = page.get_by_label("Passphrase")
    box.fill("half")
    os.utime(path, (1, 1))
    expect(page.locator(".ax-notice")).to_contain_text("The file has changed. This is how it was at")
    expect(box).to_have_value("half")
    expect(box).to_be_focused()
    path.unlink()
    shutil.copy(lab_server.root / "sample_data" / "atlas" / "chat.atlas", path)
    expect(page.locator(".ax")).to_contain_text(f"{path.stat().st_size:,}")


def test_a_link_is_opened_and_one_to_nothing_is_a_plain_sentence(
    lab_page: Page, lab_server: Lab, tmp_path: Path
):
    shutil.copy(lab_server.root / "sample_data" / "gguf" / "tiny.gguf", tmp_path / "4f7a")
    (lab_server.root / "cached.gguf").symlink_to(tmp_path / "4f7a")
    open_path(lab_page, "cached.gguf")
    viewer = lab_page.locator(VIEWER)
    expect(viewer.get_by_role("heading", name="cached.gguf")).to_be_visible()
    (tmp_path / "4f7a").unlink()
    viewer.get_by_role("tab", name="Tensors").click()
    expect(viewer).to_contain_text("This link leads to a file that is not there.")
    expect(viewer).not_to_contain_text("did not answer")


def test_files_have_icons_of_their_own(lab_page: Page, huge_model: Path):
    open_path(lab_page, huge_model.name)
    icon = "[data-icon='atlas-kit:gguf']"
    expect(lab_page.locator(f".lm-TabBar-tab.lm-mod-current {icon}").first).to_be_visible()
    expect(lab_page.locator(f".jp-DirListing-item {icon}").first).to_be_visible()


def test_a_damaged_file_is_explained(lab_page: Page):
    open_path(lab_page, "sample_data/broken/truncated.atlas")
    expect(lab_page.locator(VIEWER).get_by_role("alert")).to_contain_text("cut off")


def test_a_backup_of_a_damaged_file_opens_in_a_view_of_its_own(lab_page: Page, lab_server: Lab):
    folder = lab_server.root / "with backups"
    folder.mkdir()
    samples = lab_server.root / "sample_data"
    shutil.copy(samples / "broken" / "no-header.atlas", folder / "notes.atlas")
    shutil.copy(samples / "atlas" / "assistant.atlas", folder / "notes.atlas.bak")
    open_path(lab_page, "with backups/notes.atlas")
    lab_page.locator(VIEWER).get_by_role("button", name="notes.atlas.bak").click()
    expect(lab_page.get_by_role("heading", name="notes.atlas.bak")).to_be_visible()
    expect(lab_page.locator(VIEWER)).to_have_count(2)


def test_a_view_is_there_again_after_a_reload(page: Page, lab_server: Lab):
    path = "sample_data/gguf/micro.gguf"
    open_lab(page, lab_server, path, workspace="reloaded")
    expect(page.locator(VIEWER)).to_contain_text("micro")
    saved = page.evaluate(
        """async (name) => {
            for (let tries = 0; tries < 1200; tries++) {
                const { data } = await window.jupyterapp.serviceManager.workspaces.fetch("reloaded");
                if (data[name] && JSON.stringify(data["layout-restorer:data"] ?? {}).includes(name)) return true;
                await new Promise((resolve) => setTimeout(resolve, 100));
            }
            return false;
        }""",
        f"atlas-kit-viewer:{path}",
    )
    assert saved
    open_lab(page, lab_server, workspace="reloaded")
    expect(page.locator(VIEWER)).to_contain_text("micro")
