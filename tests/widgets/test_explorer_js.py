"""The explorer in Chromium, asking the real explorer: what is seen, clicked and typed."""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pytest
from axe_playwright_python.sync_playwright import Axe
from conftest import Stage
from gguf_builder import F32, STR, File, Tensor
from gguf_builder import KV as Pair
from playwright.sync_api import Page, expect

from atlas_kit.explorer.explorer import Explorer
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.widgets import FileExplorer, colour
from atlas_kit.widgets.explorer import watching
from atlas_kit.widgets.static_modules import STATIC

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
TINY = SAMPLES / "gguf/tiny.gguf"
MEMORY = SAMPLES / "atlas/assistant.atlas"
PASSPHRASE = (SAMPLES / "text/passphrase.txt").read_text().strip()


def show(stage: Stage, path: Path, *, dark: bool = False) -> Page:
    """Mount the explorer of a file."""
    stage.show(FileExplorer(path), dark=dark)
    expect(stage.page.get_by_role("tab", name="Summary")).to_have_attribute("aria-selected", "true")
    stage.settle()
    return stage.page


def open_tab(stage: Stage, name: str) -> None:
    """Choose one of the main tabs."""
    stage.page.get_by_role("tab", name=name).first.click()
    stage.settle()


def rows_of(page: Page, table: str) -> Any:
    """Return the rows of a table that exist."""
    return page.get_by_role("grid", name=table, exact=True).locator(".ax-rows > [role=row]")


def choose(stage: Stage, table: str, name: str) -> None:
    """Click a row."""
    row = stage.page.get_by_role("grid", name=table, exact=True).get_by_role("row").filter(
        has=stage.page.get_by_role("gridcell", name=name, exact=True)
    )  # fmt: skip
    row.click()
    expect(stage.page.get_by_role("article", name=name)).to_be_visible()
    stage.settle()


# --- the shell --------------------------------------------------------------------------------------------------


def test_the_summary_says_what_the_file_is(stage: Stage):
    page = show(stage, TINY)
    panel = page.get_by_role("tabpanel").first
    for fact in ("GGUF version 3, little-endian", "llama", "27,808", "MIT"):
        expect(panel.get_by_text(fact, exact=True).first).to_be_visible()
    expect(page.get_by_role("heading", name="tiny.gguf")).to_be_visible()
    assert page.get_by_role("tab").all_inner_texts() == [
        "Summary",
        "Tensors 12",
        "Metadata 18",
        "Bytes",
        "Findings",
    ]


def test_a_name_on_the_map_is_whole_or_tells_something_or_is_not_there(stage: Stage):
    stage.page.set_viewport_size({"width": 1600, "height": 900})
    stage.page.evaluate(
        """() => {
            const draw = CanvasRenderingContext2D.prototype.fillText;
            window.drawn = [];
            CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
                window.drawn.push(text);
                return draw.call(this, text, ...rest);
            };
        }"""
    )
    page = show(stage, SAMPLES / "models/tiny-python.gguf")
    drawn = page.evaluate("window.drawn")
    assert "token_embd.weight" in drawn
    cut = {text for text in drawn if "…" in text}
    assert all(len(text) > 6 and not text.endswith("…") for text in cut)


def test_tabs_are_one_stop_and_arrow_keys_go_between_them(stage: Stage):
    page = show(stage, TINY)
    tabs = page.get_by_role("tablist", name="What to look at").get_by_role("tab")
    tabs.first.focus()
    assert [tab.get_attribute("tabindex") for tab in tabs.all()] == ["0", "-1", "-1", "-1", "-1"]
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Tensors")).to_be_focused()
    expect(page.get_by_role("grid", name="Tensors")).to_be_visible()
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(page.get_by_role("tab", name="Findings")).to_be_focused()
    page.keyboard.press("Home")
    expect(page.get_by_role("tab", name="Summary")).to_be_focused()


def test_problems_are_one_sentence_in_an_alert(stage: Stage):
    page = show(stage, SAMPLES / "broken/no-header.atlas")
    expect(page.get_by_role("alert").first).to_contain_text(
        "This is not a .atlas file: it does not start with ATLS."
    )
    expect(page.get_by_role("tab", name="Intact entries 7")).to_be_visible()


@pytest.mark.parametrize("name", ["none.gguf", "gguf"])
def test_what_is_no_file_is_an_alert_and_not_a_crash(stage: Stage, name: str):
    page = show(stage, SAMPLES / name)
    expect(page.get_by_role("alert").first).to_contain_text(
        "." if name == "gguf" else "There is no such file."
    )
    expect(page.get_by_role("tab")).to_have_count(2)


def test_a_sealed_file_refuses_a_wrong_passphrase_and_opens_with_the_right_one(stage: Stage):
    page = show(stage, SAMPLES / "atlas/secret.atlas")
    box = page.get_by_label("Passphrase")
    box.fill("guess")
    page.get_by_role("button", name="Unlock").click()
    expect(page.locator(".ax-unlock [role=alert]")).to_contain_text("passphrase")
    box.fill(PASSPHRASE)
    box.press("Enter")
    expect(page.get_by_role("tab", name="Entries")).to_be_visible()
    expect(page.get_by_role("alert").filter(visible=True)).to_have_count(0)


def test_a_damaged_file_offers_its_backups_and_the_way_back(stage: Stage, samples: Path):
    path = samples / "broken/bit-flip.atlas"
    (samples / "broken/bit-flip_1700000000.atlas.bak").write_bytes(MEMORY.read_bytes())
    page = show(stage, path)
    backup = page.get_by_role("button", name="bit-flip_1700000000.atlas.bak")
    expect(backup).to_have_count(0)  # nobody has said yet that something is wrong
    page.get_by_role("button", name="Check the file").first.click()
    backup.click()
    expect(page.get_by_role("heading", name="bit-flip_1700000000.atlas.bak")).to_be_visible()
    expect(page.get_by_role("tab", name="Entries 7")).to_be_visible()
    page.get_by_role("button", name="Back to bit-flip.atlas").click()
    expect(page.get_by_role("heading", name="bit-flip.atlas")).to_be_visible()
    stage.settle()


@pytest.mark.parametrize("sample", ["broken/no-header.atlas", "broken/truncated.atlas"])
def test_a_file_that_cannot_be_opened_offers_its_backups(stage: Stage, samples: Path, sample: str):
    path = samples / sample
    path.with_name(f"{path.name}.bak").write_bytes(MEMORY.read_bytes())
    page = show(stage, path)
    page.get_by_role("button", name=f"{path.name}.bak").click()
    expect(page.get_by_role("heading", name=f"{path.name}.bak")).to_be_visible()
    stage.settle()


def test_a_file_that_changed_is_told_and_opened_again(stage: Stage, samples: Path):
    path = samples / "atlas/assistant.atlas"
    page = show(stage, path)
    with MemoryFile.edit(path) as memory:
        memory["added"] = "later"
    open_tab(stage, "Entries")
    page.get_by_role("button", name="Reload").click()
    expect(page.get_by_role("tab", name="Entries 8")).to_be_visible()
    expect(page.get_by_role("button", name="Reload")).to_have_count(0)


def test_a_file_that_changes_is_shown_anew_without_a_question(stage: Stage, tmp_path: Path):
    path = tmp_path / "many.atlas"
    memory = MemoryFile()
    for number in range(300):
        memory.set(f"note/{number:03}", "words")
    memory.save(path)
    page = show(stage, path)
    open_tab(stage, "Entries")
    page.get_by_role("searchbox").fill("note/1")
    grid = page.get_by_role("grid", name="Entries")
    expect(grid).to_have_attribute("aria-rowcount", "101")
    grid.evaluate("(node) => { node.scrollTop = 1300 }")
    choose(stage, "Entries", "note/155")
    page.get_by_role("searchbox").focus()
    watching.look()
    assert stage.deliver() == 0
    with MemoryFile.edit(path) as edited:
        edited["added"] = "later"
    watching.look()
    watching.look()
    assert stage.deliver() == 1  # once for each change
    expect(page.get_by_role("tab", name="Entries 301")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".ax-notice")).to_contain_text("The file has changed. This is how it was at")
    expect(page.get_by_role("searchbox")).to_have_value("note/1")
    expect(page.get_by_role("searchbox")).to_be_focused()
    expect(page.get_by_role("article", name="note/155")).to_be_visible()
    assert grid.evaluate("(node) => node.scrollTop") == 1300
    watching.look()
    assert stage.deliver() == 0


def test_changes_while_the_kernel_is_busy_are_shown_once_it_answers(stage: Stage, samples: Path):
    path = samples / "atlas/assistant.atlas"
    page = show(stage, path)
    open_tab(stage, "Entries")
    stage.silent = True
    for number in range(3):
        with MemoryFile.edit(path) as memory:
            memory[f"added/{number}"] = "later"
        watching.look()
        stage.deliver_at_once()
    assert [content["content"]["op"] for content in stage.waiting] == ["reload"]
    stage.wake()
    expect(page.get_by_role("tab", name="Entries 10")).to_be_visible()
    expect(page.locator(".ax-notice")).to_contain_text("The file has changed.")


def test_a_page_that_is_opened_after_a_change_shows_the_file_as_it_is(stage: Stage, samples: Path):
    path = samples / "atlas/assistant.atlas"
    explorer = FileExplorer(path)
    with MemoryFile.edit(path) as memory:
        memory["added"] = "later"
    stage.show(explorer)
    expect(stage.page.get_by_role("tab", name="Entries 8")).to_be_visible()


def test_a_reload_that_fails_leaves_what_is_seen(stage: Stage, samples: Path):
    path = samples / "atlas/assistant.atlas"
    page = show(stage, path)
    open_tab(stage, "Entries")
    choose(stage, "Entries", "notes/today")
    kept = path.read_bytes()
    path.write_bytes(kept[:10])  # somebody is writing it
    open_tab(stage, "Bytes")
    stage.widget.explorer.answer = lambda message: ({"error": "it cannot be read now"}, [])
    page.get_by_role("button", name="Reload").click()
    expect(page.locator(".ax-notice")).to_contain_text(
        "It cannot be read now. What is shown is what was read last."
    )
    expect(page.get_by_role("tab", name="Entries 7")).to_be_visible()
    del stage.widget.explorer.answer
    path.write_bytes(kept)
    page.get_by_role("button", name="Try again").click()
    expect(page.locator(".ax-notice")).to_be_empty()
    expect(page.get_by_role("tab", name="Bytes")).to_have_attribute("aria-selected", "true")
    open_tab(stage, "Entries")
    expect(page.get_by_role("article", name="notes/today")).to_be_visible()


def test_tabs_keep_where_their_tables_stand(stage: Stage, tmp_path: Path):
    path = tmp_path / "many.atlas"
    memory = MemoryFile()
    for number in range(300):
        memory.set(f"note/{number:03}", "words")
    memory.save(path)
    page = show(stage, path)
    open_tab(stage, "Entries")
    grid = page.get_by_role("grid", name="Entries")
    grid.evaluate("(node) => { node.scrollTop = 2600 }")
    stage.settle()
    open_tab(stage, "Summary")
    open_tab(stage, "Entries")
    stage.settle()
    assert grid.evaluate("(node) => node.scrollTop") == 2600
    expect(grid.get_by_role("gridcell", name="note/105", exact=True)).to_be_visible()


def test_a_kernel_that_does_not_answer_is_a_sentence(page: Page):
    native(page, {"fails": True})
    expect(page.get_by_role("alert")).to_contain_text("The server did not answer: the server is gone.")


# --- tables and items -------------------------------------------------------------------------------------------


def test_tables_are_sorted_and_filtered(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Tensors")
    grid = page.get_by_role("grid", name="Tensors")
    expect(grid).to_have_attribute("aria-rowcount", "13")
    page.get_by_role("button", name="Bytes").first.click()
    stage.settle()
    expect(grid.get_by_role("columnheader", name="Bytes")).to_have_attribute("aria-sort", "ascending")
    page.get_by_role("button", name="Bytes").first.click()
    stage.settle()
    expect(rows_of(page, "Tensors").first).to_contain_text("output.weight")
    page.get_by_role("searchbox").fill("blk q8")
    expect(page.get_by_text("3 of 12")).to_be_visible()
    expect(rows_of(page, "Tensors")).to_have_count(3)
    page.get_by_role("searchbox").fill("nothing like it")
    expect(page.get_by_text("Nothing matches the filter.")).to_be_visible()


def test_a_head_sorts_wherever_it_is_clicked(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Tensors")
    head = page.get_by_role("grid", name="Tensors").get_by_role("columnheader", name="Bytes")
    box = head.bounding_box()
    assert box is not None
    for x, state in ((3, "ascending"), (box["width"] - 12, "descending"), (box["width"] / 2, "none")):
        head.click(position={"x": x, "y": box["height"] / 2})
        expect(head).to_have_attribute("aria-sort", state)
    head.get_by_role("button").press("Enter")
    expect(head).to_have_attribute("aria-sort", "ascending")
    stage.settle()


def test_what_takes_long_is_said_while_it_works(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Tensors")
    stage.silent = True
    rows_of(page, "Tensors").first.click()
    expect(page.locator(".ax-detail-pane")).to_have_text("Reading …")
    stage.wake()
    expect(page.get_by_role("article", name="token_embd.weight")).to_be_visible()
    stage.settle()


LONG = "model_context_0.a_rather_long_name_of_a_layer.window"


@pytest.fixture
def alike(tmp_path: Path) -> Path:
    """Return a memory of entries whose names differ at their ends."""
    memory = MemoryFile()
    for end in ("keys", "values", "weights"):
        memory.set(f"{LONG}.{end}", "words")
    memory.save(tmp_path / "alike.atlas")
    return tmp_path / "alike.atlas"


def test_names_are_cut_in_their_middle_and_columns_can_be_widened(stage: Stage, alike: Path):
    stage.page.set_viewport_size({"width": 620, "height": 900})
    page = show(stage, alike)
    open_tab(stage, "Entries")
    cut = "(node) => node.scrollWidth > node.clientWidth"
    for end in ("keys", "values", "weights"):
        name = page.get_by_role("gridcell", name=f"{LONG}.{end}", exact=True)
        assert name.locator(".ax-start").evaluate(cut)
        tail = name.locator(".ax-tail")
        assert tail.inner_text().endswith(f".{end}")
        ends, cell = tail.bounding_box(), name.bounding_box()
        assert ends is not None
        assert cell is not None
        assert ends["x"] + ends["width"] <= cell["x"] + cell["width"] + 1
    head = page.get_by_role("columnheader", name="Key")
    before = (head.bounding_box() or {})["width"]
    head.get_by_role("button").press("Shift+ArrowRight")
    stage.settle()
    assert (head.bounding_box() or {})["width"] == pytest.approx(before + 24, abs=1)
    head.get_by_role("button").press("Shift+ArrowLeft")
    edge = head.locator(".ax-edge")
    box = edge.bounding_box()
    assert box is not None
    page.mouse.move(box["x"] + 4, box["y"] + 4)
    page.mouse.down()
    page.mouse.move(box["x"] + 64, box["y"] + 4, steps=4)
    page.mouse.up()
    stage.settle()
    assert (head.bounding_box() or {})["width"] == pytest.approx(before + 60, abs=2)
    expect(head).to_have_attribute("aria-sort", "none")  # to drag is not to sort
    edge.dblclick()
    stage.settle()
    assert not name.locator(".ax-start").evaluate(cut)
    page.set_viewport_size({"width": 1280, "height": 900})


def test_what_was_chosen_stands_beside_its_table_or_below_it(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Tensors")
    grid = page.get_by_role("grid", name="Tensors")
    page_wide = page.locator(".ax-shell").bounding_box() or {}
    assert (grid.bounding_box() or {})["width"] == pytest.approx(
        page_wide["width"], abs=4
    )  # nothing is chosen yet
    choose(stage, "Tensors", "output.weight")
    for width, beside in ((1000, False), (1600, True)):
        page.set_viewport_size({"width": width, "height": 900})
        stage.settle()
        table, item = grid.bounding_box(), page.get_by_role("article").bounding_box()
        assert table is not None
        assert item is not None
        assert (item["x"] > table["x"] + table["width"]) == beside
        assert (item["y"] > table["y"] + table["height"]) != beside
    page.get_by_role("article").get_by_role("tab").first.press("Escape")
    expect(page.get_by_role("article")).to_have_count(0)
    expect(grid).to_be_focused()
    page.set_viewport_size({"width": 1280, "height": 900})


def test_a_table_is_one_stop_with_an_active_row(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Metadata")
    grid = page.get_by_role("grid", name="Metadata")
    grid.focus()
    for key in ("ArrowDown", "ArrowDown", "End", "ArrowUp", "Home", "PageDown", "ArrowUp"):
        page.keyboard.press(key)
    stage.settle()
    active = page.locator(f"#{grid.get_attribute('aria-activedescendant')}")
    number = int(active.get_attribute("aria-rowindex") or 0) - 2
    assert 10 < number < 17
    page.keyboard.press("Enter")
    with_name = stage.widget.explorer.contents.model.fields[number].key
    expect(page.get_by_role("article", name=with_name)).to_be_visible()
    stage.settle()
    assert stage.widget.selected == with_name
    assert with_name.encode() in stage.widget.selection_bytes


def test_300000_tokens_scroll_without_300000_rows(stage: Stage, tmp_path: Path):
    from gguf_builder import ARR, STR, Array, File
    from gguf_builder import KV as Pair

    path = tmp_path / "vocabulary.gguf"
    tokens = tuple(f"token{number}" for number in range(300_000))
    path.write_bytes(File((Pair("tokenizer.ggml.tokens", ARR, Array(STR, tokens)),)).bytes())
    page = show(stage, path)
    open_tab(stage, "Metadata")
    choose(stage, "Metadata", "tokenizer.ggml.tokens")
    grid = page.get_by_role("grid", name="Values")
    expect(grid).to_have_attribute("aria-rowcount", "300001")
    grid.focus()
    page.keyboard.press("End")
    stage.settle()
    expect(rows_of(page, "Values").last).to_contain_text("token299999")
    stage.settle()
    grid.evaluate("(node) => { node.scrollTop = node.scrollHeight / 2 }")
    stage.settle()
    middle = rows_of(page, "Values").first.locator("[role=gridcell]").first
    assert 149_900 < int(middle.inner_text().replace(",", "")) < 150_100
    assert rows_of(page, "Values").count() < 40
    assert sum(message["op"] == "rows" for message in page.evaluate("window.sent")) < 12


def test_each_kind_has_its_view(stage: Stage):
    page = show(stage, MEMORY)
    open_tab(stage, "Entries")
    choose(stage, "Entries", "chat/garden")
    expect(page.get_by_role("tab", name="Chat")).to_have_attribute("aria-selected", "true")
    expect(page.locator(".ax-message.ax-user").first).to_contain_text("Is the soil the reason")
    choose(stage, "Entries", "notes/today")
    expect(page.locator("pre")).not_to_be_empty()
    choose(stage, "Entries", "state/keys")
    expect(page.get_by_role("img", name="state/keys")).to_be_visible()
    page.get_by_role("tab", name="Histogram").click()
    expect(page.get_by_role("img", name="Histogram of state/keys")).to_be_visible()


def test_json_is_a_tree_for_the_keyboard(stage: Stage):
    page = show(stage, MEMORY)
    open_tab(stage, "Entries")
    choose(stage, "Entries", "settings")
    tree = page.get_by_role("tree", name="JSON")
    expect(tree.get_by_role("treeitem")).to_have_count(3)
    tree.get_by_role("treeitem").first.focus()
    for key in ("ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    expect(tree.get_by_role("treeitem")).to_have_count(6)
    stage.settle()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.innerText").strip() == "0: 0"
    page.keyboard.press("ArrowLeft")
    page.keyboard.press("ArrowLeft")
    expect(tree.get_by_role("treeitem")).to_have_count(3)


def test_a_matrix_is_drawn_from_tiles_and_says_exact_values(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Tensors")
    choose(stage, "Tensors", "token_embd.weight")
    canvas = page.get_by_role("img", name="token_embd.weight")
    canvas.focus()
    for key in ("ArrowRight", "ArrowDown", "ArrowDown"):
        page.keyboard.press(key)
    stage.settle()
    wanted = float(stage.widget.matrix("token_embd.weight").tile(2, 3, 1, 2, 1, 1)[0, 0])
    expect(page.locator(".atlas-matrix-status")).to_contain_text("row 2, column 1:")
    shown = page.locator(".atlas-matrix-status").inner_text().partition(": ")[2]
    assert float(shown) == pytest.approx(wanted, rel=1e-5)


def test_colours_can_leave_out_the_few_largest_numbers(stage: Stage, tmp_path: Path):
    numbers = np.ones((40, 50), np.float32)
    numbers[3, 4] = 1000.0
    memory = MemoryFile()
    memory.set("numbers", numbers)
    memory.save(tmp_path / "outlier.atlas")
    page = show(stage, tmp_path / "outlier.atlas")
    open_tab(stage, "Entries")
    choose(stage, "Entries", "numbers")
    pixel = """() => {
        const canvas = document.querySelector(".ax-item canvas");
        return [...canvas.getContext("2d").getImageData(canvas.width >> 1, canvas.height >> 1, 1, 1).data];
    }"""
    before = page.evaluate(pixel)
    page.get_by_label("Colour range").select_option("99")
    stage.settle()
    assert page.evaluate(pixel) != before
    page.get_by_label("Colour range").select_option("100")
    stage.settle()
    assert page.evaluate(pixel) == before


def test_names_and_texts_are_never_markup(stage: Stage, tmp_path: Path):
    evil = "</script><img src=x onerror='window.evil=1'>"
    path = tmp_path / "<img src=x onerror=evil=1>.atlas"
    memory = MemoryFile()
    memory.set(f"text{evil}", f"User: {evil}")
    memory.set(f"json{evil}", {evil: [evil, {"messages": evil}]})
    memory.set(f"chat{evil}", [{"role": evil, "content": evil}])
    memory.set(f"numbers{evil}", np.eye(3, dtype=np.float32))
    memory.save(path)
    page = show(stage, path)
    requests = []
    page.on("request", lambda request: requests.append(request.url))
    for key in ("text", "json", "chat", "numbers"):
        open_tab(stage, "Entries")
        choose(stage, "Entries", f"{key}{evil}")
        for view in page.get_by_role("article").get_by_role("tab").all():
            view.click()
            stage.settle()
    page.get_by_role("button", name="Check the file").click()
    open_tab(stage, "Bytes")
    stage.settle()
    assert page.locator(".ax img, .ax script").count() == 0
    page.evaluate(
        "html => { const d = document.body.appendChild(document.createElement('div')); d.innerHTML = html; }",
        stage.widget.html(),
    )
    stage.settle()
    assert page.locator("img[src=x]").count() == 0
    assert page.evaluate("window.evil") is None
    assert requests == []


def test_the_matrix_has_the_colours_of_the_matrix_view(page: Page):
    native(page, {})
    found = page.evaluate(
        "async () => [...new Uint8Array((await import('./explorer/matrix.js')).palettes().buffer)]"
    )
    tables = [colour.palette("diverging", dark) for dark in (False, True)]
    assert np.array_equal(np.array(found, np.uint8), np.concatenate(tables).ravel())


def test_values_are_saved_through_the_browser(stage: Stage, tmp_path: Path):
    page = show(stage, MEMORY)
    open_tab(stage, "Entries")
    choose(stage, "Entries", "state/values")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save .npy").click()
    download.value.save_as(tmp_path / "v.npy")
    assert download.value.suggested_filename == "state_values.npy"
    with MemoryFile.open(MEMORY) as memory:
        assert np.array_equal(np.load(tmp_path / "v.npy"), memory["state/values"].numbers())


def test_the_map_can_be_coloured_by_layer_role_and_type(stage: Stage):
    page = show(stage, TINY)
    legend = page.get_by_role("list", name="What the file is made of")
    pixel = """() => {
        const canvas = document.querySelector(".ax-detail");
        const at = [Math.round(canvas.width * 0.97), Math.round(canvas.height * 0.9)];
        return [...canvas.getContext("2d").getImageData(...at, 1, 1).data];
    }"""
    before = page.evaluate(pixel)
    seen = [before]
    for by, text in (("layer", "layer 0 9"), ("role", "attn_q 1"), ("type", "Q8_0 4")):
        page.get_by_label("Colour the map by").select_option(by)
        expect(legend).to_contain_text(text)
        stage.settle()
        seen.append(page.evaluate(pixel))
        assert seen[-1] != before
    page.get_by_label("Colour the map by").select_option("")
    expect(legend).to_contain_text("tensor 12")
    stage.settle()
    assert page.evaluate(pixel) == before


# --- language ---------------------------------------------------------------------------------------------------


@pytest.mark.model
def test_a_text_is_cut_into_tokens_that_lead_to_the_vocabulary(stage: Stage):
    page = show(stage, TINY)
    page.get_by_role("button", name="Cut a text into tokens").click()
    stage.settle()
    expect(page.get_by_text("Type a text to see its tokens.")).to_be_visible()
    page.get_by_label("Text to be cut into tokens").fill("Hello")
    tokens = page.get_by_role("group", name="Tokens").get_by_role("button")
    expect(tokens).to_have_count(6)
    expect(page.get_by_text("6 tokens for 5 characters: 0.83 characters each.")).to_be_visible()
    expect(tokens.nth(1)).to_have_text("H75")
    tokens.nth(1).click()
    stage.settle()
    grid = page.get_by_role("grid", name="Values")
    expect(grid.locator(".ax-active [role=gridcell]").first).to_have_text("75")
    box = page.get_by_label("Go to number or text")
    for text, row in (("200", "200"), ("</s>", "2"), ("\u2581", "259")):
        box.fill(text)
        box.press("Enter")
        stage.settle()
        expect(grid.locator(".ax-active [role=gridcell]").first).to_have_text(row)
    box.fill("no such token")
    box.press("Enter")
    expect(page.get_by_text("There is no “no such token”.")).to_be_visible()


@pytest.mark.parametrize(
    ("template", "shown"),
    [
        ("{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}{{ '<answer>' if add_generation_prompt }}",
         "<user>And of Italy?\n<answer>"),
        ("{{ raise_exception('no') }}", "The model's chat template failed: no"),
        ("{% for", "The model's chat template failed"),
    ],
)  # fmt: skip
def test_a_conversation_is_shown_as_the_template_writes_it(
    stage: Stage, tmp_path: Path, template: str, shown: str
):
    from gguf_builder import ARR, STR, Array, File
    from gguf_builder import KV as Pair

    path = tmp_path / "talks.gguf"
    pairs = (
        Pair("tokenizer.ggml.tokens", ARR, Array(STR, ("a", "b"))),
        Pair("tokenizer.chat_template", STR, template),
    )
    path.write_bytes(File(pairs).bytes())
    page = show(stage, path)
    page.get_by_role("button", name="See a conversation in its template").click()
    stage.settle()
    article = page.get_by_role("article", name="tokenizer.chat_template")
    expect(article.locator(".ax-two")).to_contain_text(shown)
    if not shown.startswith("<"):
        return
    article.get_by_role("textbox", name="Message 4").fill("And of <Spain>?")
    expect(article.get_by_label("What the model reads")).to_contain_text("<user>And of <Spain>?\n<answer>")
    article.get_by_role("button", name="Remove message 1").click()
    expect(article.get_by_label("What the model reads")).not_to_contain_text("briefly")
    article.get_by_role("checkbox", name="the model answers next").uncheck()
    expect(article.get_by_label("What the model reads")).not_to_contain_text("<answer>")
    stage.settle()


def test_a_server_runs_no_template_and_no_tokenizer(page: Page):
    native(page, {})
    expect(page.get_by_role("tab", name="Summary")).to_be_visible()
    expect(page.get_by_role("button", name="Cut a text into tokens")).to_have_count(0)


def test_rows_and_bytes_are_copied(stage: Stage):
    page = show(stage, TINY)
    page.evaluate(
        """() => {
            if (navigator.clipboard) navigator.clipboard.writeText = async (text) => { window.copied = text; };
            else document.execCommand = () => { window.copied = document.activeElement.value; return true; };
        }"""
    )
    open_tab(stage, "Tensors")
    grid = page.get_by_role("grid", name="Tensors")
    grid.press("ArrowDown")
    grid.press("Control+c")
    expect(page.get_by_text("The row is copied.")).to_be_visible()
    assert page.evaluate("window.copied").startswith("blk.0.attn_norm.weight\tF32\t32\t32\t128\t")
    expect(grid).to_be_focused()
    open_tab(stage, "Bytes")
    page.get_by_role("grid", name="Bytes").press("Home")
    page.get_by_role("grid", name="Bytes").press("Control+c")
    expect(page.get_by_text("4 bytes are copied.")).to_be_visible()
    assert page.evaluate("window.copied") == "47 47 55 46"
    stage.settle()


# --- looking for things, mending ------------------------------------------------------------------------------------


def test_texts_and_bytes_are_found_across_the_file(stage: Stage):
    page = show(stage, TINY)
    data = TINY.read_bytes()
    open_tab(stage, "Bytes")
    box = page.get_by_label("Find in the file")
    wanted = [at for at in range(len(data)) if data.lower().startswith(b"attn_q", at)]
    box.fill("ATTN_q")
    for at in (*wanted, wanted[0]):
        box.press("Enter")
        stage.settle()
        expect(page.get_by_text(f"At byte {at:,}")).to_be_visible()
        expect(page.locator(".ax-byte.ax-at")).to_have_attribute("data-o", str(at))
        assert highlighted(page) == list(range(at, at + 6))
    page.get_by_label("What to find").select_option("exact")
    box.fill("ATTN_q")
    box.press("Enter")
    expect(page.get_by_text("It is nowhere in the file.")).to_be_visible()
    page.get_by_label("What to find").select_option("hex")
    box.fill("47 47 55 46")
    box.press("Shift+Enter")
    expect(page.locator(".ax-byte.ax-at")).to_have_attribute("data-o", "0")
    box.fill("4x")
    page.get_by_role("button", name="Find the next").click()
    expect(page.get_by_text("These are no bytes in hexadecimal digits")).to_be_visible()


def test_a_small_file_is_checked_by_itself_and_a_mended_copy_can_be_saved(stage: Stage, tmp_path: Path):
    page = show(stage, SAMPLES / "broken/wrong-tensor-count.gguf")
    expect(page.locator(".ax-head [role=status]")).to_have_text("✖ damaged")
    expect(page.get_by_role("tab", name="Summary")).to_have_attribute("aria-selected", "true")  # nobody asked
    open_tab(stage, "Findings")
    with page.expect_download() as download:
        page.get_by_role("button", name="Save a mended copy").click()
    assert download.value.suggested_filename == "wrong-tensor-count-mended.gguf"
    download.value.save_as(tmp_path / "mended.gguf")
    with Explorer(tmp_path / "mended.gguf") as mended:
        assert mended.problem is None
    expect(page.get_by_text("Nothing was lost.")).to_be_visible()


# --- bytes and the map --------------------------------------------------------------------------------------------


def highlighted(page: Page) -> list[int]:
    """Return the offsets of the bytes that belong to the chosen field."""
    found: list[int] = page.locator(".ax-byte.ax-in").evaluate_all(
        "(all) => all.map((one) => Number(one.dataset.o))"
    )
    return found


def test_a_byte_shows_its_field_and_a_field_its_bytes(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Bytes")
    fields = page.get_by_role("listbox", name="Fields in view")
    page.locator(".ax-byte[data-o='9']").click()
    expect(fields.locator("[aria-selected=true]")).to_contain_text("tensor_count")
    stage.settle()
    assert highlighted(page) == [*range(8, 16)]
    fields.get_by_role("option").filter(has_text="metadata_kv_count").click()
    stage.settle()
    assert highlighted(page) == [*range(16, 24)]
    expect(page.locator(".ax-note")).to_contain_text("Number of key-value pairs.")
    fields.focus()
    page.keyboard.press("ArrowUp")
    expect(fields.locator("[aria-selected=true]")).to_contain_text("tensor_count")


def test_bytes_by_keyboard_and_by_offset(stage: Stage):
    page = show(stage, TINY)
    open_tab(stage, "Bytes")
    grid = page.get_by_role("grid", name="Bytes")
    grid.focus()
    for key in ("ArrowRight", "ArrowDown", "End"):
        page.keyboard.press(key)
    stage.settle()
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == "31"
    page.keyboard.press("Control+End")
    stage.settle()
    size = TINY.stat().st_size
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == str(size - 1)
    box = page.get_by_label("Go to offset")
    box.fill("0x4a00")
    box.press("Enter")
    stage.settle()
    expect(page.locator(".ax-note")).to_contain_text(
        "blk.0.attn_k.weight[0, 0]: float16, 2 bytes from 18,944."
    )
    for wrong in ("-1", "1.5", str(size), "x"):
        box.fill(wrong)
        box.press("Enter")
        expect(page.get_by_text(f"There is no byte {wrong} in this file.")).to_be_visible()


def test_offsets_of_40_gb_are_as_near_as_the_first(stage: Stage, tmp_path: Path):
    from gguf_builder import File, Tensor

    path = tmp_path / "huge.gguf"
    path.write_bytes(File((), (Tensor("w", (10_000_000_000,), 0, b""),)).bytes())
    try:
        os.truncate(path, 40_000_000_064)
    except OSError as error:
        pytest.skip(f"no sparse files here: {error}")
    page = show(stage, path)
    open_tab(stage, "Bytes")
    box = page.get_by_label("Go to offset")
    box.fill("39999999999")
    box.press("Enter")
    stage.settle()
    expect(page.locator(".ax-note")).to_contain_text("w[999999998")
    page.get_by_role("grid", name="Bytes").press("Control+End")
    stage.settle()
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == str(path.stat().st_size - 1)
    asked = [message for message in page.evaluate("window.sent") if message["op"] == "hex"]
    assert max(message["size"] for message in asked) <= 16 * 32


def test_the_map_is_a_slider_over_the_regions(stage: Stage):
    page = show(stage, TINY)
    slider = page.get_by_role("slider", name="Byte map")
    slider.focus()
    stage.settle()
    expect(slider).to_have_attribute("aria-valuetext", "header magic, version, counts, 24 bytes at byte 0")
    page.keyboard.press("ArrowRight")
    stage.settle()
    expect(slider).to_have_attribute("aria-valuenow", "24")
    expect(page.locator(".ax-map .ax-readout")).to_contain_text("metadata “general.architecture”")
    page.keyboard.press("End")
    stage.settle()
    expect(page.locator(".ax-map .ax-readout")).to_contain_text("tensor “output.weight”")
    page.keyboard.press("Enter")
    stage.settle()
    expect(page.get_by_role("tab", name="Bytes")).to_have_attribute("aria-selected", "true")
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == "31872"


def test_pointing_at_the_map_says_what_is_there_and_a_click_shows_the_bytes(stage: Stage):
    page = show(stage, TINY)
    box = page.locator(".ax-detail").bounding_box()
    assert box is not None
    at = box["x"] + box["width"] * 0.75, box["y"] + 30
    page.mouse.move(*at)
    stage.settle()
    expect(page.locator(".ax-map .ax-readout")).to_contain_text("output.weight[")
    page.mouse.click(*at)
    stage.settle()
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == "31872"


def pixels(page: Page, x: int, y: int, width: int, height: int) -> set[tuple[int, ...]]:
    """Return the colours of a part of the map; negative sizes reach to its end."""
    found = page.evaluate(
        """([x, y, width, height]) => {
            const canvas = document.querySelector(".ax-detail"), out = [];
            const right = width < 0 ? canvas.width : x + width, bottom = height < 0 ? canvas.height : y + height;
            const { data } = canvas.getContext("2d").getImageData(x, y, right - x, bottom - y);
            for (let i = 0; i < data.length; i += 4) out.push([...data.slice(i, i + 3)]);
            return out;
        }""",
        [x, y, width, height],
    )
    return {tuple(pixel) for pixel in found}


def test_tiny_regions_stay_visible_in_a_large_file(stage: Stage, tmp_path: Path):
    from gguf_builder import KV as Pair
    from gguf_builder import U32, File, Tensor

    path = tmp_path / "sparse.gguf"
    path.write_bytes(File((Pair("a.b", U32, 1),), (Tensor("w", (1_500_000_000,), 0, b""),)).bytes())
    os.truncate(path, 6_000_000_000)
    page = show(stage, path)
    assert (0x00, 0x72, 0xB2) in pixels(page, 0, 40, -1, 1)  # the tensor
    assert {(0xCC, 0x79, 0xA7), (0xE6, 0x9F, 0x00), (0xF0, 0xE4, 0x42)} <= pixels(page, 0, 0, 1, -1)


def test_zooming_shows_what_is_small(stage: Stage):
    page = show(stage, TINY)
    slider = page.get_by_role("slider", name="Byte map")
    slider.focus()
    stage.settle()
    for _ in range(6):
        page.keyboard.press("+")
    page.wait_for_timeout(100)
    stage.settle()
    asked = [message for message in page.evaluate("window.sent") if message["op"] == "map"]
    assert asked[-1]["stop"] - asked[-1]["start"] < 1100
    page.get_by_role("button", name="Show the whole file").click()
    page.wait_for_timeout(100)
    stage.settle()
    assert page.evaluate("window.sent").pop()["stop"] == TINY.stat().st_size


# --- findings -----------------------------------------------------------------------------------------------------


def test_checking_is_asked_for_and_its_findings_lead_to_their_place(stage: Stage):
    page = show(stage, SAMPLES / "broken/truncated.gguf")
    assert not any(message["op"] == "validate" for message in page.evaluate("window.sent"))
    page.get_by_role("button", name="Check the file").first.click()
    expect(page.get_by_text("The file is damaged.")).to_be_visible()
    page.get_by_role("button", name="Byte 2,656").click()
    stage.settle()
    assert page.locator(".ax-byte.ax-at").get_attribute("data-o") == "2656"
    assert (0xB3, 0x26, 0x1E) in pixels(page, 0, 2, -1, 1)  # the mark of an error
    open_tab(stage, "Findings")
    page.get_by_role("button", name="Show it").click()
    expect(page.get_by_role("article", name="output.weight")).to_be_visible()


def test_a_sound_file_is_said_to_be_sound(stage: Stage):
    page = show(stage, MEMORY)
    page.get_by_role("button", name="Check the file").first.click()
    expect(page.get_by_text("Nothing is wrong with this file.")).to_be_visible()


# --- odd text, other pages ----------------------------------------------------------------------------------------


def test_odd_text_is_text(stage: Stage, tmp_path: Path):
    path = tmp_path / "odd.atlas"
    odd = "<img src=x onerror=window.hit=1>\u202e"
    memory = MemoryFile()
    memory.set(odd, odd, type=2)
    memory.set("doc", {odd: odd}, timestamp=2**63)
    memory.set("שלום", "مرحبا <script>window.hit=1</script>")
    memory.save(path, durable=False)
    page = show(stage, path)
    open_tab(stage, "Entries")
    shown = odd.replace("\u202e", "\\u202e")
    for name in (shown, "doc", "שלום"):
        choose(stage, "Entries", name)
        open_tab(stage, "Bytes")
        open_tab(stage, "Entries")
    assert page.evaluate("window.hit") is None
    assert "\u202e" not in page.locator(".ax").inner_text()
    assert page.locator(".ax img, .ax script").count() == 0


def test_a_theme_change_is_followed(stage: Stage):
    page = show(stage, TINY)
    assert page.locator(".ax").evaluate("(node) => node.style.colorScheme") == "light"
    page.evaluate("document.body.style.setProperty('--jp-ui-font-color1', '#eee')")
    stage.settle()
    assert page.locator(".ax").evaluate("(node) => node.style.colorScheme") == "dark"


@pytest.mark.parametrize("dark", [False, True])
def test_axe_finds_nothing(stage: Stage, dark: bool):
    def check() -> None:
        found = Axe().run(page, context=".ax").response["violations"]
        assert [(v["id"], v["nodes"][0]["html"]) for v in found] == []

    page = show(stage, TINY, dark=dark)
    check()
    open_tab(stage, "Metadata")
    choose(stage, "Metadata", "tokenizer.ggml.tokens")
    check()
    open_tab(stage, "Tensors")
    choose(stage, "Tensors", "output.weight")
    check()
    page.get_by_role("tab", name="Histogram").click()
    check()
    open_tab(stage, "Bytes")
    check()
    page.get_by_role("button", name="Check the file").first.click()
    expect(
        page.get_by_text("The file can be used as it is.").or_(page.get_by_text("Nothing is wrong"))
    ).to_be_visible()
    check()


PAGE = """<!doctype html><html><body><div id="x"></div><script type="module">
const { mount } = await import("./explorer/explorer.js");
const request = async (message) => {
  if (window.fails) throw new Error("the server is gone");
  const [reply, buffers] = await window.answer(message);
  return { reply, buffers: buffers.map((b) => new DataView(Uint8Array.from(atob(b), (c) => c.charCodeAt(0)).buffer)) };
};
window.fails = %s.fails;
window.cleanup = mount(document.getElementById("x"), { request, openNotebook: () => { window.opened = true; } });
</script></body></html>"""


def native(page: Page, options: dict[str, Any]) -> None:
    """Mount the modules as a server serves them, one by one, with a `request` of the page's own."""
    explorer = Explorer(TINY)

    def answer(message: dict[str, Any]) -> Any:
        reply, buffers = explorer.answer(message)
        return [reply, [base64.b64encode(part).decode() for part in buffers]]

    def serve(route: Any) -> None:
        name = urlsplit(route.request.url).path.lstrip("/")
        if name == "index.html":
            route.fulfill(body=PAGE % json.dumps(options), content_type="text/html")
        else:
            kind = "text/css" if name.endswith(".css") else "text/javascript"
            route.fulfill(body=(STATIC / name).read_text(), content_type=kind)

    page.expose_function("answer", answer)
    page.route("http://127.0.0.1:18999/**", serve)
    page.goto("http://127.0.0.1:18999/index.html")
    page.wait_for_function("typeof window.cleanup === 'function'")


def test_the_modules_as_a_server_serves_them(page: Page):
    native(page, {})
    page.get_by_role("button", name="Open in notebook").click()
    assert page.evaluate("window.opened")
    page.get_by_role("tab", name="Tensors").click()
    expect(page.get_by_role("row").filter(has_text="token_embd.weight")).to_be_visible()
    page.evaluate("window.cleanup()")
    assert page.locator("#x").inner_html() == ""


def test_removing_the_view_removes_its_listeners(stage: Stage):
    page = show(stage, TINY)
    page.evaluate("window.endings.forEach((end) => end())")
    assert page.evaluate("window.listening()") == 0
    assert page.locator(".ax").count() == 0


@pytest.mark.parametrize("dark", [False, True])
def test_text_has_contrast(stage: Stage, dark: bool):
    page = show(stage, TINY, dark=dark)
    colours = page.evaluate(
        """() => {
            const context = document.createElement("canvas").getContext("2d");
            const rgb = (colour) => {
                context.fillStyle = colour;
                context.fillRect(0, 0, 1, 1);
                return [...context.getImageData(0, 0, 1, 1).data.slice(0, 3)];
            };
            const [root, dim] = [".ax", ".ax-dim"].map((name) => getComputedStyle(document.querySelector(name)));
            return [root.backgroundColor, root.color, dim.color].map(rgb);
        }"""
    )

    def luminance(rgb: list[int]) -> float:
        parts = [c / 3294.6 if c <= 10 else ((c / 255 + 0.055) / 1.055) ** 2.4 for c in rgb]
        return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]

    back, *inks = map(luminance, colours)
    for ink in inks:
        light, deep = max(back, ink), min(back, ink)
        assert (light + 0.05) / (deep + 0.05) >= 4.5


def test_the_name_of_a_program_keeps_its_small_letter(stage: Stage, tmp_path: Path):
    path = tmp_path / "some.gguf"
    norm = Tensor("output_norm.weight", (4,), F32, bytes(16))
    path.write_bytes(File((Pair("general.architecture", STR, "llama"),), (norm,)).bytes())
    page = show(stage, path)
    page.get_by_role("button", name="Check the file").click()
    page.get_by_role("tab", name="Findings").click()
    findings = page.locator(".ax-findings")
    expect(findings).to_contain_text("llama.cpp needs this key and it is missing.")
    expect(findings).not_to_contain_text("Llama.cpp")
