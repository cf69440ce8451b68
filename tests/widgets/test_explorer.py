"""The explorer without a browser: its messages, its static forms, and what Python has from it."""

from __future__ import annotations

import os
import re
import threading
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from conftest import receive, wired

from atlas_kit.errors import KeyNotFoundError
from atlas_kit.operations.validate import validate_file
from atlas_kit.widgets import FileExplorer, MatrixView
from atlas_kit.widgets.explorer import watching
from tests.waiting import LONG, until

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
TINY = SAMPLES / "gguf/tiny.gguf"
PNG = b"\x89PNG\r\n\x1a\n"


def test_a_question_is_one_message_and_its_answer_is_one():
    explorer = FileExplorer(TINY)
    wire = wired(explorer)
    wire.take()
    receive(explorer, {"method": "custom", "content": {"op": "hex", "offset": 0, "size": 8, "id": "7"}})
    (answer,) = wire.take()
    assert answer["content"]["id"] == "7"
    assert answer["content"]["reply"]["fields"][0]["name"] == "magic"
    assert answer["buffers"] == [b"GGUF\x03\0\0\0"]


@pytest.mark.parametrize("content", [None, 7, "op", [], {"op": {}}, {"op": "hex", "offset": "x", "id": []}])
def test_any_message_has_an_answer(content: Any):
    explorer = FileExplorer(TINY)
    wire = wired(explorer)
    wire.take()
    receive(explorer, {"method": "custom", "content": content})
    (answer,) = wire.take()
    assert answer["content"]["reply"]["error"]


def test_nothing_of_the_file_is_in_the_state_that_a_notebook_saves():
    explorer = FileExplorer(SAMPLES / "atlas/secret.atlas", "a passphrase that is wrong")
    state = {key: value for key, value in explorer.get_state().items() if not key.startswith("_")}
    assert "passphrase" not in repr(state)
    assert set(state) <= {"layout", "selection", "tabbable", "tooltip"}


def changes(wire: Any) -> int:
    return sum(message.get("content") == {"changed": True} for message in wire.take())


@pytest.fixture
def followed(tmp_path: Path) -> Any:
    """Return an explorer that a page has asked something, its wire, and its file."""
    path = tmp_path / "tiny.gguf"
    path.write_bytes(TINY.read_bytes())
    explorer = FileExplorer(path)
    wire = wired(explorer)
    receive(explorer, {"method": "custom", "content": {"op": "summary", "id": "1"}})
    wire.take()
    return explorer, wire, path


class TestFollowingTheFile:
    def test_each_change_is_told_once(self, followed: Any):
        explorer, wire, path = followed
        watching.look()
        assert changes(wire) == 0
        for size in (10, 100):
            path.write_bytes(TINY.read_bytes()[:size])
            watching.look()
            watching.look()
            assert changes(wire) == 1
        receive(explorer, {"method": "custom", "content": {"op": "reload", "id": "2"}})
        wire.take()
        watching.look()
        assert changes(wire) == 0

    @pytest.mark.parametrize("instead", ["nothing", "folder"])
    def test_what_cannot_be_read_is_not_told_over_and_over(self, followed: Any, instead: str):
        explorer, wire, path = followed
        path.unlink()
        if instead == "folder":
            path.mkdir()
        for _ in range(3):
            watching.look()
            receive(explorer, {"method": "custom", "content": {"op": "reload", "id": "2"}})
        assert changes(wire) == (instead == "folder")

    def test_a_file_that_is_there_at_last_is_told(self, tmp_path: Path):
        explorer = FileExplorer(tmp_path / "later.gguf")
        wire = wired(explorer)
        receive(explorer, {"method": "custom", "content": {"op": "summary", "id": "1"}})
        wire.take()
        watching.look()
        assert changes(wire) == 0
        (tmp_path / "later.gguf").write_bytes(TINY.read_bytes())
        watching.look()
        assert changes(wire) == 1
        receive(explorer, {"method": "custom", "content": {"op": "reload", "id": "2"}})
        (answer,) = wire.take()
        assert answer["content"]["reply"]["title"] == "GGUF model"
        watching.look()
        assert changes(wire) == 0

    def test_a_file_that_a_passphrase_opens_is_followed(self, tmp_path: Path):
        path = tmp_path / "secret.atlas"
        path.write_bytes((SAMPLES / "atlas/secret.atlas").read_bytes())
        explorer = FileExplorer(path, (SAMPLES / "text/passphrase.txt").read_text().strip())
        wire = wired(explorer)
        receive(explorer, {"method": "custom", "content": {"op": "summary", "id": "1"}})
        wire.take()
        watching.look()
        assert changes(wire) == 0
        os.utime(path, (1, 1))
        watching.look()
        assert changes(wire) == 1

    def test_one_that_fails_does_not_keep_others_from_looking(self, followed: Any):
        _, wire, path = followed
        bad = FileExplorer(TINY)
        wired(bad)
        receive(bad, {"method": "custom", "content": {"op": "summary"}})
        bad.glance = lambda: 1 / 0
        os.utime(path, (1, 1))
        watching.look()
        assert changes(wire) == 1

    def test_a_closed_explorer_is_not_told(self, followed: Any):
        explorer, wire, path = followed
        explorer.close()
        os.utime(path, (1, 1))
        watching.look()
        explorer.glance()
        assert changes(wire) == 0

    def test_a_thread_looks_as_long_as_there_is_one_to_look_for(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr(watching, "EVERY_SECONDS", 0.01)
        watching.end(LONG)
        seen = threading.Event()

        class Watcher:
            def glance(self) -> None:
                seen.set()

        watcher = Watcher()
        watching.watch(watcher)
        assert seen.wait(LONG)
        del watcher
        until(watching.is_idle)


def test_static_forms():
    explorer = FileExplorer(TINY)
    assert explorer.text().splitlines()[0] == "tiny.gguf: GGUF model"
    assert "Parameters: 27,808" in explorer.text()
    assert repr(explorer) == explorer.text()
    assert explorer.png().startswith(PNG)
    assert explorer.figure().axes[0].get_xlim() == (0, TINY.stat().st_size)
    page = explorer.html()
    ElementTree.fromstring(page)  # well-formed
    assert "token_embd.weight, 9,282 bytes at 7,456" in page
    assert 'fill="#0072b2"><title>tensor: ' in page  # the live map's blue
    assert not re.search(r"<script|https?:|on\w+=", page)


@pytest.mark.parametrize(
    "name", ["broken/no-header.atlas", "atlas/secret.atlas", "broken/huge-string.gguf", "none"]
)
def test_static_forms_of_what_is_wrong(name: str):
    explorer = FileExplorer(SAMPLES / name)
    problem = explorer.explorer.problem
    assert problem is not None
    assert problem.message in explorer.text()
    ElementTree.fromstring(explorer.html())
    assert explorer.png().startswith(PNG)


def test_the_saved_page_of_a_damaged_file_says_so_and_where():
    page = FileExplorer(SAMPLES / "broken/bit-flip.atlas").html()
    tree = ElementTree.fromstring(page)
    assert "The file is damaged." in page
    (mark,) = (box for box in tree.iter("rect") if box.get("fill") == "#c00")
    (finding,) = validate_file(SAMPLES / "broken/bit-flip.atlas").findings
    assert f"byte {finding.offset:,}: {finding.message}" in "".join(mark.itertext())
    sound = FileExplorer(SAMPLES / "atlas/assistant.atlas").html()
    assert "Nothing is wrong with this file." in sound  # in the tab Findings
    assert "#c00" not in sound


def test_what_a_passphrase_protects_is_not_saved_with_a_notebook():
    path, word = SAMPLES / "atlas/secret.atlas", (SAMPLES / "text/passphrase.txt").read_text().strip()
    explorer = FileExplorer(path, word)
    names = [row[1] for row in explorer.explorer.answer({"op": "rows", "table": "entries"})[0]["rows"]]
    assert names
    explorer.selection = {"name": names[0], "start": 0, "size": 1, "table": "entries", "row": 0}
    page = explorer.html()
    assert "what is in it is not saved" in page
    assert not [name for name in names if name in page]


def test_the_saved_page_shows_each_kind_of_item(tmp_path: Path):
    for name, table in (("atlas/assistant.atlas", "entries"), ("gguf/tiny.gguf", "metadata")):
        explorer = FileExplorer(SAMPLES / name)
        count = explorer.explorer.contents.table(table).count
        for row in range(count):
            explorer.selection = {"name": "", "start": 0, "size": 0, "table": table, "row": row}
            ElementTree.fromstring(explorer.html())


def test_odd_names_are_safe_in_html(tmp_path: Path):
    path = tmp_path / '<b>"\u202e$x_1$&.bin'
    path.write_bytes(b"?")
    explorer = FileExplorer(path)
    ElementTree.fromstring(explorer.html())
    assert "\u202e" not in explorer.html() + explorer.text()
    assert explorer.png().startswith(PNG)


def test_python_has_what_was_chosen_in_the_browser():
    explorer = FileExplorer(TINY)
    assert explorer.selected is None
    assert explorer.selection_bytes == b""
    explorer.selection = {"name": "general.name", "start": 69, "size": 36, "table": "metadata", "row": 1}
    assert explorer.selected == "general.name"
    assert b"general.name" in explorer.selection_bytes
    assert explorer.path == TINY


def test_matrices_for_the_matrix_view(tmp_path: Path):
    explorer = FileExplorer(TINY)
    view = MatrixView(explorer.matrix("token_embd.weight"))
    assert view.shape == (273, 32)
    assert explorer.export("output.weight", tmp_path / "o.npy") == (tmp_path / "o.npy").stat().st_size
    assert view.value(3, 4) == explorer.matrix("token_embd.weight").tile(3, 4, 4, 5, 1, 1)[0, 0]
    with pytest.raises(KeyNotFoundError):
        explorer.matrix("none")


def test_closing_releases_the_file():
    explorer = FileExplorer(TINY)
    source = explorer.explorer.contents.source
    explorer.close()
    assert source.fileno() is None


@pytest.mark.parametrize(
    "name", ["atlas/assistant.atlas", "gguf/tiny.gguf", "broken/no-header.atlas", "none"]
)
def test_a_closed_explorer_says_so(name: str):
    explorer = FileExplorer(SAMPLES / name)
    explorer.close()
    explorer.close()
    assert "the explorer was closed" in repr(explorer)
    ElementTree.fromstring(explorer.html())
    assert explorer.png().startswith(PNG)


def test_the_notebook_gets_one_module_and_one_style_sheet():
    assert not re.search(r"^import ", FileExplorer._esm, re.MULTILINE)
    assert FileExplorer._esm.count("Make an element.") == 1
    assert "@import" not in FileExplorer._css
    assert ".atlas-matrix-bar" in FileExplorer._css
