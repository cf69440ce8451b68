"""What the explorer answers: of whole files, huge ones, and of everything that can be wrong with a file."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
from gguf_builder import ARR, F32, HOSTILE, STR, U32, Array, File, Tensor
from gguf_builder import KV as Pair
from hypothesis import given, settings
from hypothesis import strategies as st

from atlas_kit.errors import AtlasError, KeyNotFoundError, printable
from atlas_kit.explorer.explorer import Explorer, pack
from atlas_kit.explorer.matrix import BUDGET, StoredMatrix
from atlas_kit.explorer.regions import RecordRegion, Regions
from atlas_kit.explorer.table import Column, FileTable
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.operations import validate
from atlas_kit.storage.source import LocalSource
from tests.waiting import LONG

SAMPLES = Path(__file__).resolve().parents[2] / "sample_data"
PASSPHRASE = (SAMPLES / "text/passphrase.txt").read_text().strip()
MEMORIES = sorted((SAMPLES / "atlas").glob("*.atlas"))
MODELS = sorted((SAMPLES / "gguf").glob("*.gguf"))
BROKEN = sorted((SAMPLES / "broken").iterdir())
GIB = 1 << 30


def ask(explorer: Explorer, op: str, **message: Any) -> dict[str, Any]:
    """Return an answer that must not be an error."""
    reply, _ = explorer.answer({"op": op, **message})
    assert "error" not in reply, reply
    json.dumps(reply, allow_nan=False)
    return reply


def floats(explorer: Explorer, **message: Any) -> np.ndarray[Any, Any]:
    """Return a tile."""
    reply, buffers = explorer.answer({"op": "tile", **message})
    assert "error" not in reply, reply
    return np.frombuffer(buffers[0], "<f4").reshape(reply["rows"], reply["cols"])


def row_of(explorer: Explorer, name: str) -> dict[str, Any]:
    """Return the table and row of a name."""
    place = ask(explorer, "find", name=name)["place"]
    assert place is not None
    return dict(place)


@pytest.fixture
def explore() -> Iterator[Any]:
    """Open files; close them afterwards."""
    opened: list[Explorer] = []

    def open_(path: Path, *secret: str) -> Explorer:
        opened.append(Explorer(path, *secret))
        return opened[-1]

    yield open_
    for explorer in opened:
        explorer.close()


# --- everything at once ---------------------------------------------------------------------------------------


def walk(explorer: Explorer) -> None:
    """Ask for everything that there is; what is damaged may be an error, and must be a sentence."""

    def get(op: str, **message: Any) -> dict[str, Any]:
        reply, buffers = explorer.answer({"op": op, **message})
        json.dumps(reply, allow_nan=False)
        assert pack(reply, buffers)
        if "error" in reply:
            assert "cannot be shown" not in reply["error"], (op, message, reply)
            assert reply["error"].isprintable()
        return reply

    summary = get("summary")
    size = summary["size"]
    items = get("map", bins=100)["items"]
    assert sum(item["size"] for item in items) == size
    for name, table in summary["tables"].items():
        first = table["columns"][0]["name"]
        for order in ({}, {"sort": first, "descending": True}, {"filter": "a"}):
            rows = get("rows", table=name, count=30, **order)["rows"]
        for row in get("rows", table=name, count=30)["rows"] or rows:
            look(get, name, row[0])
    for offset in {*range(0, min(size, 3000), 297), size - 1, size // 2}:
        if 0 <= offset < size:
            page = get("hex", offset=offset, size=64)
            for field in page["fields"]:
                assert field["offset"] < offset + 64
                assert field["offset"] + field["size"] > offset
            region = get("at", offset=offset).get("region")
            assert region is None or region["offset"] <= offset < region["offset"] + region["size"]


def look(get: Any, table: str, row: int) -> None:
    """Ask for everything about one row."""
    where = {"table": table, "row": row}
    item = get("item", **where)
    for view in item.get("views", []):
        if view == "values":
            assert get("rows", table=item["values"], count=5, sort="value")["total"] >= 0
        elif view == "matrix":
            rows, cols = get("matrix", **where)["shape"]
            get("tile", **where, y0=0, y1=rows, x0=0, x1=cols, rows=32, cols=32)
        else:
            get(view, **where)
    for form in item.get("exports", []):
        get("export", **where, form=form)


@pytest.mark.parametrize("path", [*MEMORIES, *MODELS, *BROKEN], ids=lambda p: f"{p.parent.name}-{p.name}")
def test_everything_of_every_sample_can_be_asked_for(path: Path, explore: Any) -> None:
    walk(explore(path))


def test_everything_of_the_c_librarys_files(c_library_files: Path, explore: Any) -> None:
    paths = sorted(c_library_files.glob("*.atlas"))
    assert paths
    for path in paths:
        walk(explore(path))


@pytest.mark.slow
def test_everything_of_llama_cpps_vocabularies(vocabularies: list[Path], explore: Any) -> None:
    for path in vocabularies:
        walk(explore(path))


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_hostile_models(name: str, tmp_path: Path, explore: Any) -> None:
    path = tmp_path / "hostile.gguf"
    path.write_bytes(HOSTILE[name]())
    walk(explore(path))


@settings(max_examples=40)
@given(data=st.data())
def test_any_damage_of_any_file(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    source = data.draw(st.sampled_from([*MEMORIES, *MODELS, *BROKEN]))
    raw = bytearray(source.read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(raw) - 1))
        raw[at : at + data.draw(st.integers(0, 9))] = data.draw(st.binary(max_size=9))
    if data.draw(st.booleans()):
        del raw[data.draw(st.integers(0, len(raw))) :]
    path = tmp_path_factory.mktemp("damaged") / source.name
    path.write_bytes(raw)
    with Explorer(path) as explorer:
        walk(explorer)


def test_nonsense_is_answered_with_a_sentence(explore: Any) -> None:
    explorer = explore(SAMPLES / "gguf/tiny.gguf")
    for message in (
        {}, {"op": "nonsense"}, {"op": "__init__"}, {"op": "rows"}, {"op": "rows", "table": "none"},
        {"op": "item", "table": "tensors", "row": 10**9}, {"op": "item", "table": "tensors", "row": -1},
        {"op": "item", "table": "values:0", "row": 0}, {"op": "rows", "table": "values:x"},
        {"op": "rows", "table": "values:4"}, {"op": "at", "offset": -1}, {"op": "at", "offset": 1 << 70},
        {"op": "hex", "offset": "x"}, {"op": "text", "table": "tensors", "row": 0, "start": []},
        {"op": "json", "table": "metadata", "row": 0, "path": [9]}, {"op": "matrix", "table": "metadata", "row": 0},
        {"op": "export", "table": "tensors", "row": 0, "form": "exe"}, {"op": "rows", "table": 5},
        {"op": "rows", "table": "tensors", "filter": 5}, {"op": []}, {5: 6}, {"op": "summary", "self": 1},
        None, "op", 7,
    ):  # fmt: skip
        reply, _ = explorer.answer(message)
        assert reply.get("error"), message


def test_what_was_closed_stays_closed() -> None:
    for sample in ("atlas/assistant.atlas", "gguf/tiny.gguf"):
        explorer = Explorer(SAMPLES / sample)
        explorer.close()
        for op in ("reload", "unlock"):
            reply, _ = explorer.answer({"op": op, "passphrase": "x"} if op == "unlock" else {"op": op})
            assert reply["error"] == "the explorer was closed"
        summary = ask(explorer, "summary")
        assert (summary["name"], summary["problem"]["error"]) == (
            Path(sample).name,
            "the explorer was closed",
        )
        assert explorer.answer({"op": "text", "table": "entries", "row": 0})[0]["error"]


# --- what is no file of ours ------------------------------------------------------------------------------------


def test_what_cannot_be_read_says_why_in_one_sentence(tmp_path: Path, explore: Any) -> None:
    os.mkfifo(tmp_path / "pipe.atlas")
    for path, why in (
        (tmp_path / "none.atlas", "there is no such file"), (tmp_path, "it is a folder"),
        (tmp_path / "pipe.atlas", "it is not a regular file"), (Path("/dev/zero"), "it is not a regular file"),
        (Path("a\0b.gguf"), "the name is not a valid path"),
    ):  # fmt: skip
        explorer = explore(path)
        assert ask(explorer, "summary")["problem"]["error"] == why
        assert ask(explorer, "map")["items"] == []


def test_empty_and_foreign_files_show_their_bytes(tmp_path: Path, explore: Any) -> None:
    empty, foreign = tmp_path / "empty.bin", tmp_path / "foreign.bin"
    empty.write_bytes(b"")
    foreign.write_bytes(b"something else")
    assert ask(explore(empty), "summary")["problem"]["error"] == "the file is empty"
    explorer = explore(foreign)
    assert "neither" in ask(explorer, "summary")["problem"]["error"]
    assert explorer.answer({"op": "hex", "offset": 0})[1] == [b"something else"]
    walk(explorer)
    walk(explore(empty))


# --- size -----------------------------------------------------------------------------------------------------


class Counted:
    """How many bytes are read from files while this is installed."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes = 0
        pread = os.pread

        def counting(fd: int, size: int, offset: int) -> bytes:
            data = pread(fd, size, offset)
            self.bytes += len(data)
            return data

        monkeypatch.setattr(os, "pread", counting)
        monkeypatch.setattr(LocalSource, "view", None)  # nothing may be mapped

    def since(self) -> int:
        """Return the bytes that were read since the last call."""
        read, self.bytes = self.bytes, 0
        return read


@pytest.fixture
def six_gib(tmp_path: Path) -> Path:
    """Return a sparse model of 6 GiB: three Q8_0 and one float32 matrices, all zeros."""
    path = tmp_path / "sparse.gguf"
    tensors = tuple(Tensor(f"blk.{n}.weight", (4096, 460_000), 8, b"") for n in range(3))
    tensors += (Tensor("last.weight", (4096, 20_480), 0, b""),)
    place, placed = 0, []
    for tensor in tensors:
        placed.append(Tensor(tensor.name, tensor.dims, tensor.type, b"", offset=place))
        place += tensor.nbytes + -tensor.nbytes % 32
    header = File((Pair("general.architecture", STR, "llama"),), tuple(placed)).bytes()
    path.write_bytes(header)
    os.truncate(path, -(-len(header) // 32) * 32 + place)
    assert path.stat().st_size > 5.9 * GIB
    return path


def test_a_model_of_6_gib_is_opened_by_its_header(
    six_gib: Path, explore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = Counted(monkeypatch)
    explorer = explore(six_gib)
    assert ask(explorer, "summary")["size"] > 5.9 * GIB
    ask(explorer, "map")
    ask(explorer, "rows", table="tensors")
    assert counted.since() < 1 << 18

    size = six_gib.stat().st_size
    far = size - 100
    page, buffers = explorer.answer({"op": "hex", "offset": far, "size": 64})
    assert len(buffers[0]) == 64
    assert page["fields"][0]["name"].startswith("last.weight[20479, ")
    assert counted.since() < 1024

    for row in range(4):
        ask(explorer, "item", table="tensors", row=row)
        reply, _ = explorer.answer(
            {"op": "tile", "table": "tensors", "row": row, "y0": 0, "y1": 10**9, "x0": 0, "x1": 4096,
             "rows": 512, "cols": 512}
        )  # fmt: skip
        assert 0 < reply["share"] < 0.05
        assert counted.since() < 5 * BUDGET
        assert ask(explorer, "histogram", table="tensors", row=row)["share"] < 0.1
        assert counted.since() < 5 * (1 << 22)
    assert floats(explorer, table="tensors", row=3, y0=9, y1=10, x0=7, x1=8, rows=1, cols=1).tolist() == [
        [0.0]
    ]
    assert counted.since() < 64


def test_validating_runs_beside_and_never_by_itself(six_gib: Path, explore: Any) -> None:
    explorer = explore(six_gib)
    for op in ("summary", "map"):
        ask(explorer, op)
    assert ask(explorer, "validate", start=False) == {"state": "idle"}
    found = finished(explorer)
    assert found["state"] == "done"


def finished(explorer: Explorer) -> dict[str, Any]:
    """Check a file, and return when that is done."""
    ask(explorer, "validate")
    for thread in threading.enumerate():
        if thread.name == "atlas-validate":
            thread.join(LONG)
    return ask(explorer, "validate")


def test_a_memory_of_many_entries_is_opened_by_its_index(
    tmp_path: Path, explore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "many.atlas"
    memory = MemoryFile()
    for number in range(3000):
        memory.set(f"note/{number * 1237 % 3000}", bytes(2000), timestamp=number)
    memory.save(path, durable=False)
    counted = Counted(monkeypatch)
    explorer = explore(path)
    assert ask(explorer, "summary")["tables"]["entries"]["count"] == 3000
    assert counted.since() < 300_000  # of 6 million
    rows = ask(explorer, "rows", table="entries", start=1500, count=50)["rows"]
    assert counted.since() < 50 * 4096
    assert [row[1] for row in rows[:2]] == [f"note/{1500 * 1237 % 3000}", f"note/{1501 * 1237 % 3000}"]
    by_key = ask(explorer, "rows", table="entries", sort="key", start=1000, count=3)["rows"]
    assert [row[1] for row in by_key] == ["note/1000", "note/1001", "note/1002"]
    found = ask(explorer, "rows", table="entries", filter="NOTE 299", sort="time", descending=True)
    assert found["matched"] == 13  # 299, 1299, 2299, 2990 to 2999
    assert found["rows"][0][4] == max(row[4] for row in found["rows"])


def test_rows_read_together_are_the_rows_read_one_by_one(tmp_path: Path, explore: Any) -> None:
    path = tmp_path / "a.atlas"
    memory = MemoryFile()
    memory.set("plain", b"x", timestamp=5)
    memory.set("k\udcff\u202e", {"a": 1}, timestamp=2**63)
    memory.set("m", np.zeros((3, 4), "<f4"), codec="zlib")
    memory.set("s", np.float64(3), dtype=None)
    memory.set("z" * 60_000, b"", timestamp=1)
    memory.set("gap", bytes(100_000))
    memory.save(path, durable=False)
    with MemoryFile.edit(path) as memory:  # an index of two blocks, and garbage
        memory.set("m", np.ones((2, 2), "<i2"))
        del memory["plain"]
        memory.set("new", "text")
    contents = explore(path).contents
    table = contents.tables["entries"]
    together = list(zip(*contents._all, strict=True))
    assert together == [tuple(table._row(number)) for number in range(table.count)]
    with MemoryFile.open(path) as memory:
        assert [row[0][:9] for row in together] == [printable(key)[:9] for key in memory]


# --- memories -------------------------------------------------------------------------------------------------


def test_views_of_each_kind(explore: Any) -> None:
    explorer = explore(SAMPLES / "atlas/assistant.atlas")
    views = {
        row[1]: ask(explorer, "item", table="entries", row=row[0])["views"]
        for row in ask(explorer, "rows", table="entries")["rows"]
    }
    assert views["notes/today"] == ["text"]
    assert views["chat/garden"] == ["chat", "text"]
    assert views["settings"] == ["json", "text"]
    assert views["state/steps"] == ["matrix", "histogram"]
    chat = ask(explorer, "chat", **row_of(explorer, "chat/garden"))
    assert {message["role"] for message in chat["messages"]} == {"user", "assistant"}
    assert chat["messages"][0]["text"] == "Is the soil the reason, or am I looking in the wrong place?"


def test_json_is_opened_node_by_node(tmp_path: Path, explore: Any) -> None:
    path = tmp_path / "a.atlas"
    memory = MemoryFile()
    memory["doc"] = {
        "list": list(range(500)),
        "deep": {"x": {"y": None}},
        "\u202egnp": "a\u202eb",
        "big": 2**80,
    }
    memory["roles"] = [{"role": "user", "content": "hello"}, {"role": "tool", "content": {"a": 1}}]
    memory.save(path, durable=False)
    explorer = explore(path)
    top = ask(explorer, "json", table="entries", row=0)
    assert [(c["key"], c["type"], c["count"]) for c in top["children"]][:2] == [
        ("list", "array", 500), ("deep", "object", 1),
    ]  # fmt: skip
    assert top["children"][2] == {"key": "\\u202egnp", "count": None, "type": "string", "value": "a\\u202eb"}
    assert top["children"][3]["value"] == str(2**80)
    more = ask(explorer, "json", table="entries", row=0, path=[0], start=400)
    assert len(more["children"]) == 100
    assert more["children"][-1]["value"] == "499"
    assert ask(explorer, "json", table="entries", row=0, path=[1, 0])["children"][0]["value"] == "null"
    assert ask(explorer, "item", table="entries", row=1)["views"] == ["json", "chat", "text"]
    assert ask(explorer, "chat", table="entries", row=1)["messages"][1]["text"] == "{'a': 1}"


def test_long_text_comes_in_pages_that_split_no_character(tmp_path: Path, explore: Any) -> None:
    path, text = tmp_path / "a.atlas", "déjà vu 🎸\n" * 20_000
    memory = MemoryFile(codec="zstd")
    memory["long"] = text
    memory.save(path, durable=False)
    explorer = explore(path)
    found, start = "", 0
    while start is not None:
        page = ask(explorer, "text", table="entries", row=0, start=start)
        assert len(page["text"]) <= 1 << 15
        found, start = found + page["text"], page["next"]
    assert found == text


def test_matrices_are_the_numbers(explore: Any) -> None:
    path = SAMPLES / "atlas/assistant.atlas"
    explorer = explore(path)
    with MemoryFile.open(path) as memory:
        for key, entry in memory.items():
            if entry.dtype_id:
                numbers = entry.numbers().astype(np.float32).reshape(-1, entry.shape[-1])
                place = row_of(explorer, key)
                rows, cols = ask(explorer, "matrix", **place)["shape"]
                assert (rows, cols) == numbers.shape
                whole = floats(explorer, **place, y0=0, y1=rows, x0=0, x1=cols, rows=1000, cols=1000)
                assert np.array_equal(whole, numbers)


def test_a_sealed_file_asks_for_its_passphrase(explore: Any) -> None:
    explorer = explore(SAMPLES / "atlas/secret.atlas")
    summary = ask(explorer, "summary")
    assert summary["locked"]
    assert summary["tables"] == {}
    assert summary["problem"]["error"] == "the file is encrypted with a passphrase"
    wrong, _ = explorer.answer({"op": "unlock", "passphrase": "guess"})
    assert "passphrase" in wrong["error"]
    opened = ask(explorer, "unlock", passphrase=PASSPHRASE)
    assert not opened["locked"]
    assert opened["problem"] is None
    assert opened["tables"]["entries"]["count"] > 0
    walk(explorer)
    assert ask(explorer, "reload")["tables"] == opened["tables"]
    assert finished(explorer)["ok"]
    walk(explore(SAMPLES / "atlas/secret.atlas", PASSPHRASE))
    assert explore(SAMPLES / "atlas/secret.atlas", "guess").problem is not None


def test_unlocking_and_checking_stay_with_the_file_that_is_shown(tmp_path: Path, explore: Any) -> None:
    path, other = tmp_path / "secret.atlas", tmp_path / "other.atlas"
    for name, passphrase in ((path, "first"), (other, "second")):
        memory = MemoryFile(version=3, passphrase=passphrase)
        memory["word"] = passphrase
        memory.save(name, durable=False)
    explorer = explore(path)
    assert [finding["code"] for finding in finished(explorer)["findings"]] == ["contents-not-checked"]
    damaged = bytearray(other.read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    other.write_bytes(damaged)
    os.replace(other, path)
    assert "error" in explorer.answer({"op": "unlock", "passphrase": "second"})[0]
    opened = ask(explorer, "unlock", passphrase="first")
    assert opened["changed"]
    assert not opened["locked"]
    assert ask(explorer, "text", **row_of(explorer, "word"))["text"] == "first"
    # with the passphrase, there is more to be found
    assert ask(explorer, "validate", start=False)["state"] == "idle"
    found = finished(explorer)
    assert (found["ok"], found["findings"], found["changed"]) == (True, [], True)
    assert "passphrase" in explorer.answer({"op": "reload"})[0]["problem"]["error"]


@pytest.mark.parametrize("op", ["reload", "close"])
def test_a_check_goes_on_while_its_file_is_reloaded_or_closed(
    op: str, tmp_path: Path, explore: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "notes.atlas"
    MemoryFile().save(path)
    going, go_on = threading.Event(), threading.Event()
    reports: list[Any] = []
    plain = validate.validate_file

    def slowly(*args: Any, **options: Any) -> Any:
        going.set()
        go_on.wait(LONG)
        reports.append(plain(*args, **options))
        return reports[-1]

    monkeypatch.setattr(validate, "validate_file", slowly)
    explorer = explore(path)
    ask(explorer, "validate")
    assert going.wait(LONG)
    if op == "reload":
        os.replace(shutil.copy(SAMPLES / "broken/bit-flip.atlas", tmp_path), path)
        ask(explorer, "reload")
    else:
        explorer.close()
    go_on.set()
    for thread in threading.enumerate():
        if thread.name == "atlas-validate":
            thread.join(LONG)
    assert [report.findings for report in reports] == [[]]
    if op == "close":
        assert explorer.answer({"op": "validate"})[0]["state"] == "done"


def test_a_wrong_passphrase_leaves_the_file_locked_and_shown(explore: Any) -> None:
    explorer = explore(SAMPLES / "atlas/secret.atlas", "guess")
    summary = ask(explorer, "summary")
    assert summary["locked"]
    assert summary["size"] > 0
    assert "passphrase" in summary["problem"]["error"]
    assert ask(explorer, "unlock", passphrase=PASSPHRASE)["problem"] is None


def test_a_backup_can_be_looked_at_where_that_is_allowed(tmp_path: Path) -> None:
    path = tmp_path / "notes.atlas"
    shutil.copy(SAMPLES / "broken/bit-flip.atlas", path)
    shutil.copy(SAMPLES / "atlas/assistant.atlas", tmp_path / "notes_1700000000.atlas.bak")
    shutil.copy(SAMPLES / "gguf/tiny.gguf", tmp_path / "notes.atlas.bak")
    (tmp_path / "other.atlas.bak").write_bytes(b"")
    os.utime(tmp_path / "notes.atlas.bak", (1, 1))
    with Explorer(path, moves=True) as explorer:
        names = ["notes_1700000000.atlas.bak", "notes.atlas.bak"]
        assert ask(explorer, "backups") == {"names": names}
        assert ask(explorer, "summary")["backup_of"] is None
        assert not finished(explorer)["ok"]
        for name, kind in zip(names, ("atlas", "gguf"), strict=True):
            shown = ask(explorer, "open_backup", name=name)
            assert (shown["name"], shown["kind"], shown["backup_of"]) == (name, kind, "notes.atlas")
            assert finished(explorer)["ok"]
            assert ask(explorer, "backups") == {"names": names}
        back = ask(explorer, "open_backup", name="notes.atlas")
        assert (back["name"], back["backup_of"]) == ("notes.atlas", None)
        for name in ("other.atlas.bak", "../notes.atlas", str(path), None, 5):
            assert "not a backup" in explorer.answer({"op": "open_backup", "name": name})[0]["error"]
        os.unlink(tmp_path / names[0])
        assert "error" in explorer.answer({"op": "open_backup", "name": names[0]})[0]
        assert ask(explorer, "summary")["name"] == "notes.atlas"
    with Explorer(path) as explorer:
        assert "not a backup" in explorer.answer({"op": "open_backup", "name": names[1]})[0]["error"]


def test_what_is_intact_of_a_damaged_memory_can_be_looked_at(explore: Any) -> None:
    explorer = explore(SAMPLES / "broken/no-header.atlas")
    summary = ask(explorer, "summary")
    assert summary["tables"]["entries"]["title"] == "Intact entries"
    assert "repair" in summary["problem"]["hint"]
    chat = ask(explorer, "chat", **row_of(explorer, "chat/001-bread"))
    assert chat["count"] > 1
    item = ask(explorer, "item", **row_of(explorer, "chat/001-bread"))
    assert ask(explorer, "at", offset=item["start"])["place"] == {"table": "entries", "row": 0}


def test_a_damaged_payload_is_shown_with_what_is_wrong(explore: Any) -> None:
    explorer = explore(SAMPLES / "broken/bit-flip.atlas")
    item = ask(explorer, "item", **row_of(explorer, "chat/002-bicycle"))
    assert "checksum" in item["problem"]
    assert item["views"] == ["chat", "text"]


# --- models ---------------------------------------------------------------------------------------------------


def test_tiles_of_stored_blocks_are_dequantised_by_rows(explore: Any) -> None:
    path = SAMPLES / "models/tiny-python.gguf"
    explorer = explore(path)
    with GGUFFile.open(path) as model:
        numbers = model.dequantize("token_embd.weight")
    place = row_of(explorer, "token_embd.weight")
    piece = floats(explorer, **place, y0=100, y1=140, x0=33, x1=95, rows=100, cols=100)
    assert np.array_equal(piece, numbers[100:140, 33:95])
    small = floats(explorer, **place, y0=0, y1=4096, x0=0, x1=256, rows=64, cols=16)
    blocks = numbers.reshape(64, 64, 16, 16)
    high, low = blocks.max((1, 3)), blocks.min((1, 3))
    assert np.array_equal(small, np.where(high >= -low, high, low))


def test_a_vocabulary_is_a_table_with_scores_and_kinds(explore: Any) -> None:
    explorer = explore(SAMPLES / "gguf/tiny.gguf")
    item = ask(explorer, "item", **row_of(explorer, "tokenizer.ggml.tokens"))
    assert item["views"] == ["values"]
    rows = ask(explorer, "rows", table=item["values"], count=4)
    assert [c["label"] for c in rows["columns"]] == ["Value", "Score", "Kind"]
    assert rows["rows"][0] == [0, "<unk>", 0.0, "unknown"]
    assert ask(explorer, "rows", table=item["values"], filter="<0x0")["matched"] == 16
    by_kind = ask(explorer, "rows", table=item["values"], sort="kind", count=1)
    assert by_kind["rows"][0][3] == "byte"


def test_odd_text_is_escaped_everywhere(tmp_path: Path, explore: Any) -> None:
    path = tmp_path / "odd.gguf"
    odd = "a\u202eb\x1b[31m\x00"
    path.write_bytes(File(
        (Pair("general.architecture", STR, "llama"), Pair(odd, STR, odd), Pair(b"\xff", U32, 7),
         Pair("list", ARR, Array(STR, (odd, "א")))),
        (Tensor("t\u2066", (4,)),),
    ).bytes())  # fmt: skip
    explorer = explore(path)
    walk(explorer)
    replies = [ask(explorer, "summary"), ask(explorer, "map"), ask(explorer, "hex", offset=0, size=4096)]
    replies += [ask(explorer, "rows", table=name) for name in ("metadata", "tensors", "values:3")]
    replies += [ask(explorer, op, table="metadata", row=1) for op in ("item", "text")]
    text = json.dumps(replies, ensure_ascii=False)
    assert "a\\\\u202eb\\\\x1b[31m" in text
    assert "א" in text
    assert text.isprintable()


def test_findings_know_their_place(explore: Any) -> None:
    explorer = explore(SAMPLES / "broken/truncated.gguf")
    assert "the file ends before the data of 1 of 12 tensors" in ask(explorer, "summary")["problem"]["error"]
    found = finished(explorer)
    assert not found["ok"]
    finding = next(f for f in found["findings"] if f["severity"] == "error")
    assert finding["place"] == row_of(explorer, "output.weight")
    assert ask(explorer, "at", offset=finding["offset"])["region"]["name"] == "output.weight"
    missing = explore(Path("/nowhere.gguf"))
    assert finished(missing)["findings"][0]["code"] == "no-such-file"


# --- saving -----------------------------------------------------------------------------------------------------


def test_exports_are_what_they_say(tmp_path: Path, explore: Any) -> None:
    memory = explore(SAMPLES / "atlas/assistant.atlas")
    reply, buffers = memory.answer({"op": "export", **row_of(memory, "state/values"), "form": "npy"})
    assert reply["filename"] == "state_values.npy"
    with MemoryFile.open(SAMPLES / "atlas/assistant.atlas") as file:
        assert np.array_equal(np.load(io.BytesIO(buffers[0])), file["state/values"].numbers())
        assert memory.export("settings", tmp_path / "s.json") == len(file["settings"].data)
    assert json.loads((tmp_path / "s.json").read_text())["theme"] == "dark"

    path = SAMPLES / "gguf/tiny.gguf"
    model = explore(path)
    with GGUFFile.open(path) as file:
        for name in ("token_embd.weight", "blk.0.attn_q.weight", "output.weight"):
            model.export(name, tmp_path / "t.npy")
            saved = np.load(tmp_path / "t.npy")
            assert np.array_equal(saved, file.dequantize(name).astype(saved.dtype))
            model.export(name, tmp_path / "t.bin")
            assert (tmp_path / "t.bin").read_bytes() == b"".join(file.iter_raw(name))
        model.export("tokenizer.ggml.tokens", tmp_path / "tokens.json")
        assert json.loads((tmp_path / "tokens.json").read_text())[:2] == ["<unk>", "<s>"]
        model.export("tokenizer.ggml.scores", tmp_path / "scores.npy")
        assert np.array_equal(np.load(tmp_path / "scores.npy"), file.get("tokenizer.ggml.scores"))
    with pytest.raises(KeyNotFoundError):
        model.export("none", tmp_path / "x")
    with pytest.raises(AtlasError, match="cannot be saved as exe"):
        model.export("output.weight", tmp_path / "x", form="exe")


def test_what_goes_through_the_browser_is_bounded(six_gib: Path, explore: Any) -> None:
    reply, buffers = explore(six_gib).answer({"op": "export", "table": "tensors", "row": 0, "form": "bin"})
    assert "too much for the browser" in reply["error"]
    assert "FileExplorer.export" in reply["hint"]
    assert buffers == []


# --- files that change --------------------------------------------------------------------------------------------


def test_a_file_that_changes_is_noticed_and_can_be_opened_again(samples: Path, explore: Any) -> None:
    path = samples / "atlas/assistant.atlas"
    explorer = explore(path)
    assert "changed" not in ask(explorer, "summary")
    with MemoryFile.edit(path) as memory:
        memory["added"] = "later"
    assert ask(explorer, "rows", table="entries")["changed"]
    assert ask(explorer, "rows", table="entries")["total"] == 7
    summary = ask(explorer, "reload")
    assert "changed" not in summary
    assert summary["tables"]["entries"]["count"] == 8
    path.unlink()
    gone = ask(explorer, "reload")
    assert gone["problem"]["error"] == "there is no such file"


def test_a_file_that_shrinks_is_an_error_and_not_a_crash(samples: Path, explore: Any) -> None:
    for path in (samples / "gguf/tiny.gguf", samples / "atlas/assistant.atlas"):
        explorer = explore(path)
        ask(explorer, "map")
        os.truncate(path, 200)
        walk(explorer)
        failing: list[dict[str, Any]] = [{"op": "rows", "table": "none"}, {"op": "at", "offset": "x"}, {}]
        for message in failing:
            reply, buffers = explorer.answer(message)
            assert "error" in reply
            assert reply["changed"] is True
            assert buffers == []


def test_threads_may_ask_at_once(explore: Any) -> None:
    explorer = explore(SAMPLES / "models/tiny-python.gguf")
    failed: list[Any] = []

    def work(row: int) -> None:
        for _ in range(10):
            name = explorer.answer({"op": "item", "table": "tensors", "row": row})[0].get("name")
            if name != explorer.contents.model.tensor_infos[row].name:
                failed.append(name)

    threads = [threading.Thread(target=work, args=(row,)) for row in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failed == []


# --- parts ----------------------------------------------------------------------------------------------------


def test_pack_is_a_length_json_and_the_buffers() -> None:
    raw = pack({"a": 1}, [b"xy", b""])
    length = int.from_bytes(raw[:4], "little")
    assert json.loads(raw[4 : 4 + length]) == {"a": 1, "buffers": [2, 0]}
    assert raw[4 + length :] == b"xy"


RANGES = st.lists(
    st.tuples(st.integers(0, 2**64), st.integers(0, 2**64), st.sampled_from(["tensor", "entry"]))
)


@given(RANGES, st.integers(0, 10_000))
def test_regions_cover_every_byte_once(ranges: list[tuple[int, int, str]], size: int) -> None:
    regions = Regions([RecordRegion(*row, n) for n, row in enumerate(ranges)], size)
    at = 0
    for number in range(len(regions)):
        region = regions[number]
        assert region.offset == at
        assert region.size > 0
        assert regions.at(region.offset) == regions.at(region.offset + region.size - 1) == number
        at += region.size
    assert at == size
    assert sum(total for _, _, total in regions.totals()) == size


@given(st.integers(2, 400), st.integers(1, 50), st.integers(0, 3000))
def test_a_window_of_many_regions_is_few_items_with_the_same_bytes(count: int, bins: int, start: int) -> None:
    rows = [
        RecordRegion(n * 10, 10 if n % 7 else 3, "tensor" if n % 2 else "tensor info", n)
        for n in range(count * 10)
    ]
    regions = Regions(rows, count * 100)
    stop = min(start + 40_000, regions.size)
    items = regions.window(start, stop, bins)
    if len(regions.between(start, stop)) > 1500:
        assert len(items) <= 3 * bins + 2
    chosen = regions.between(start, stop)
    assert sum(item["count"] for item in items) == len(chosen)
    assert sum(item["size"] for item in items) == sum(regions[number].size for number in chosen)
    for item in items:
        if "kinds" in item:
            assert sum(item["kinds"].values()) == item["size"]


@given(st.lists(strategies.keys(), max_size=30), st.text(max_size=4), st.booleans())
def test_a_table_sorts_and_filters_as_python_does(names: list[str], words: str, descending: bool) -> None:
    table = FileTable(
        "T", [Column("name", "Name")], len(names), lambda n: [names[n]], lambda _: names, ["name"]
    )
    plain = table.window(0, 500, "", False, words)
    wanted = [
        n for n, name in enumerate(names) if all(w in name.casefold() for w in words.casefold().split())
    ]
    assert [row[0] for row in plain["rows"]] == wanted
    ordered = table.window(0, 500, "name", descending, words)
    assert sorted(row[0] for row in ordered["rows"]) == wanted
    for place, row in enumerate(ordered["rows"]):
        assert table.position(row[0], "name", descending, words) == place


def test_numbers_in_names_are_sorted_as_numbers() -> None:
    names = ["blk.10.a", "blk.2.a", "blk.2", "Alpha", "٣", "9" * 5000]
    table = FileTable(
        "T", [Column("name", "Name")], len(names), lambda n: [names[n]], lambda _: names, ["name"]
    )
    assert [row[1] for row in table.window(0, 9, "name")["rows"]][-3:] == ["blk.2", "blk.2.a", "blk.10.a"]


def stored(numbers: np.ndarray[Any, Any]) -> tuple[StoredMatrix, list[int]]:
    """Return a float32 matrix as if it were in a file, and the sizes of its reads."""
    raw, reads = numbers.astype("<f4").tobytes(), []

    def read(offset: int, size: int) -> bytes:
        assert offset + size <= len(raw)
        reads.append(size)
        return raw[offset : offset + size]

    shape = numbers.shape
    return StoredMatrix(shape, shape, "F32", 1, 4, read, lambda part: np.frombuffer(part, "<f4")), reads


@pytest.mark.slow
@pytest.mark.parametrize(
    "shape", [(1, 5_000_000), (3, 3_000_000), (5_000_000, 1), (3000, 2000), (2, 2), (0, 5)]
)
def test_any_shape_costs_a_bounded_tile(shape: tuple[int, int]) -> None:
    matrix, reads = stored(np.ones(shape, np.float32))
    tile = matrix.sampled_tile(0, shape[0], 0, shape[1], 512, 512)
    assert (tile.numbers == 1).all()
    assert sum(reads) <= 4 * 2 * BUDGET
    assert tile.numbers.shape[0] == -(-shape[0] // tile.block[0])
    assert tile.numbers.shape[1] == -(-shape[1] // tile.block[1])
    assert (tile.share == 1) == (shape[0] * shape[1] <= BUDGET)
    histogram = matrix.histogram()
    assert histogram["zeros"] == histogram["nan"] == 0
    assert sum(histogram["counts"]) == histogram["looked_at"]


def test_histogram_of_numbers_that_are_not_finite() -> None:
    matrix, _ = stored(np.array([[np.nan, np.inf, -np.inf, 0.0, 2.0, 2.0]], np.float32))
    found = matrix.histogram()
    assert (found["nan"], found["inf"], found["zeros"], found["min"], found["max"]) == (1, 2, 1, 0.0, 2.0)
    assert found["counts"][0] == 1
    assert found["counts"][-1] == 2
    assert stored(np.full((1, 3), np.nan, np.float32))[0].histogram()["counts"] == []


def test_float_arrays_of_metadata_have_a_histogram(tmp_path: Path, explore: Any) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(File((Pair("numbers", ARR, Array(F32, (1.0, 2.0, float("nan")))),)).bytes())
    explorer = explore(path)
    item = ask(explorer, "item", table="metadata", row=0)
    assert item["views"] == ["values", "histogram"]
    assert ask(explorer, "histogram", table="metadata", row=0)["nan"] == 1
    assert ask(explorer, "rows", table=item["values"])["rows"][2][1] == "NaN"


def test_what_opening_needs_can_be_imported_before() -> None:
    program = (
        "import sys; from atlas_kit.explorer.explorer import preload; preload(); "
        "assert {'atlas_kit.explorer.gguf', 'atlas_kit.explorer.atlas'} <= set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize("name", ["atlas/all-types.atlas", "gguf/tiny.gguf", "broken/truncated.atlas"])
def test_a_file_is_opened_once(samples: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    opened: list[str] = []
    init = LocalSource.__init__

    def opening(self: LocalSource, path: Any, *rest: Any) -> None:
        opened.append(str(path))
        init(self, path, *rest)

    monkeypatch.setattr(LocalSource, "__init__", opening)
    with Explorer(samples / name) as explorer:
        explorer.answer({"op": "open"})
        assert opened == [str(samples / name)]


def finished_check(explorer: Explorer) -> dict[str, Any]:
    """Return the reply of a check that has ended."""
    while (reply := explorer.answer({"op": "validate"})[0])["state"] == "running":
        time.sleep(0.01)
    return reply


@pytest.mark.parametrize(
    ("name", "verdict", "sentence"),
    [
        ("gguf/tiny.gguf", "sound", "Nothing is wrong with this file."),
        (
            "gguf/big-endian.gguf",
            "cannot be used as it is",
            "The file is not damaged, but it cannot be used here as it is.",
        ),
        ("broken/truncated.gguf", "damaged", "The file is damaged."),
        ("broken/bit-flip.atlas", "damaged", "The file is damaged."),
    ],
)  # fmt: skip
def test_a_whole_file_is_not_called_damaged(sample_data: Path, name: str, verdict: str, sentence: str):
    with Explorer(sample_data / name) as explorer:
        reply = finished_check(explorer)
    assert (reply["verdict"], reply["sentence"]) == (verdict, sentence)


def test_no_sentence_of_the_explorer_names_a_command_or_a_placeholder(sample_data: Path):
    for path in sorted((sample_data / "broken").iterdir()) + sorted((sample_data / "gguf").iterdir()):
        with Explorer(path) as explorer:
            said = json.dumps([explorer.answer({"op": "summary"})[0]["problem"], finished_check(explorer)])
        assert not re.search(r"[Aa]tlas-tool|\b(FILE|OUT|OUTPUT|VALUE)\b|--[a-z]", said), path


def test_the_range_of_colours_can_leave_out_the_largest(tmp_path: Path):
    numbers = np.arange(1, 1001, dtype=np.float32).reshape(10, 100)
    numbers[0, :3] = np.nan, np.inf, -5000
    memory = MemoryFile()
    memory.set("numbers", numbers)
    memory.set("nothing", np.full((2, 2), np.nan, np.float32))
    memory.save(tmp_path / "numbers.atlas")
    with Explorer(tmp_path / "numbers.atlas") as explorer:
        row = {
            name: explorer.answer({"op": "find", "name": name})[0]["place"] for name in ("numbers", "nothing")
        }
        for percent, limit in ((100, 5000.0), (99, 991.0), (0, 4.0), (1000, 5000.0)):
            found = explorer.answer({"op": "range", "percent": percent, **row["numbers"]})[0]["limit"]
            assert found == pytest.approx(limit, rel=0.01)
        assert explorer.answer({"op": "range", "percent": 99, **row["nothing"]})[0]["limit"] == 0


@pytest.mark.parametrize(
    ("by", "first", "count"),
    [("layer", "outside of the layers", 2), ("role", "token_embd", 12), ("type", "Q8_0", 3)],
)
def test_the_map_groups_tensors(sample_data: Path, by: str, first: str, count: int):
    with Explorer(sample_data / "gguf/tiny.gguf") as explorer:
        reply = explorer.answer({"op": "map", "by": by})[0]
        assert explorer.answer({"op": "summary"})[0]["groupings"] == ["layer", "role", "type"]
        assert "groups" not in explorer.answer({"op": "map", "by": "nonsense"})[0]
    groups = reply["groups"]
    assert groups[0]["name"] == first
    assert len(groups) == count
    assert sum(group["count"] for group in groups) == 12
    of_tensors = {item["group"] for item in reply["items"] if item["kind"] == "tensor" and item["count"] == 1}
    assert of_tensors == set(range(count))
    assert all(
        item["group"] is None for item in reply["items"] if item["kind"] == "metadata" and item["count"] == 1
    )
