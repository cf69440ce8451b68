"""MemoryFile: the mapping, saving, conflicts between writers, threads, names and times. All versions."""

from __future__ import annotations

import multiprocessing
import os
import stat
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    ErrorCode,
    FileAccessError,
    InvalidParamError,
    KeyNotFoundError,
    LockedError,
    NoSuchFileError,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import DataType, Entry, MemoryFile
from atlas_kit.storage import atomic
from tests.waiting import LONG

KEY = bytes(range(32))
VERSIONS = [1, 2, 3]


def make(path: Path, version: int, **values: Any) -> Path:
    memory = MemoryFile(version=version, key=KEY)
    memory.update(values or {"a": "1", "b": "2", "c": "3"})
    memory.save(path)
    return path


def texts(path: Path | MemoryFile) -> dict[str, str]:
    memory = path if isinstance(path, MemoryFile) else MemoryFile.load(path, key=KEY)
    return {e.key: e.text for e in memory.values()}


@pytest.fixture(params=VERSIONS)
def version(request: pytest.FixtureRequest) -> int:
    return int(request.param)


@pytest.fixture
def path(tmp_path: Path, version: int) -> Path:
    return make(tmp_path / "f.atlas", version)


def opened(path: Path) -> MemoryFile:
    return MemoryFile.open(path, key=KEY)


# --- the mapping -----------------------------------------------------------------------------------------


def test_is_a_mapping(path: Path) -> None:
    memory = opened(path)
    assert list(memory) == list(memory.keys()) == ["a", "b", "c"]
    assert len(memory) == memory.count == 3
    assert [key for key, _ in memory.items()] == ["a", "b", "c"]
    assert memory["a"].text == "1"
    assert memory.get("z") is None
    assert memory.get("z", 5) == 5
    assert memory.has("a")
    assert "z" not in memory
    assert 5 not in memory  # type: ignore[comparison-overlap]
    assert memory.pop("a").text == "1"
    assert memory.pop("a", None) is None
    assert not memory.remove("a")
    assert memory.remove("b")
    with pytest.raises(KeyNotFoundError):
        del memory["b"]
    memory.clear()
    assert len(memory) == 0
    assert list(memory) == []
    memory["a"] = "again"
    memory.commit()
    assert texts(path) == {"a": "again"}


def test_equality_is_by_content(tmp_path: Path, path: Path) -> None:
    other = opened(path)
    assert opened(path) == other
    other["a"] = "changed"
    assert opened(path) != other


def test_missing_keys_say_where(path: Path) -> None:
    with pytest.raises(KeyNotFoundError) as caught:
        opened(path)["absent"]
    assert isinstance(caught.value, KeyError)
    assert (caught.value.code, caught.value.key) == (ErrorCode.KEY_NOT_FOUND, "absent")
    assert str(path) in str(caught.value)
    assert "absent" in str(caught.value)


def test_values_and_their_types(tmp_path: Path) -> None:
    memory = MemoryFile()
    memory["bytes"] = b"\0\1"
    memory["array of bytes"] = bytearray(b"\2")
    memory["text"] = "grüße"
    memory["dict"] = {"a": [1, None, "ü"]}
    memory["list"] = [1.5, True]
    memory["tensor"] = np.arange(3)
    memory["buffer"] = memoryview(b"abc")
    memory["entry"] = memory["text"]
    memory.save(tmp_path / "f")
    memory = MemoryFile.load(tmp_path / "f")
    kinds = [e.type for e in memory.values()]
    assert kinds[:6] == [DataType.GENERIC, DataType.GENERIC, DataType.TEXT, DataType.METADATA,
                         DataType.METADATA, DataType.CONTEXT]  # fmt: skip
    assert memory["dict"].json() == {"a": [1, None, "ü"]}
    assert memory["dict"].text == '{"a": [1, null, "ü"]}'
    assert memory["entry"].text == "grüße"
    assert memory["entry"].type == DataType.TEXT
    assert memory["buffer"].data == b"abc"
    for value in (5, None, 1.5, object(), {1, 2}):
        with pytest.raises(InvalidParamError, match="cannot be stored"):
            memory["x"] = value
    assert "x" not in memory


def test_set_takes_everything(tmp_path: Path) -> None:
    memory = MemoryFile()
    e = memory.set("k", b"x", type=77, flags=5, timestamp=9)
    assert (e.type, e.flags, e.timestamp) == (77, 5, 9)
    copy = memory.set("copy", e)
    assert (copy.key, copy.type, copy.flags, copy.timestamp) == ("copy", 77, 5, 9)
    changed = memory.set("changed", e, type=1, flags=0, timestamp=0)
    assert (changed.type, changed.flags, changed.timestamp) == (1, 0, 0)
    for bad in ({"type": -1}, {"type": 2**32}, {"flags": 2**32}, {"timestamp": 2**64}, {"codec": "rar"}):
        with pytest.raises(InvalidParamError):
            memory.set("k", b"", **bad)  # type: ignore[arg-type]


@pytest.mark.parametrize("version", VERSIONS)
def test_keys_have_one_spelling(tmp_path: Path, version: int) -> None:
    """Escaped bytes that are UTF-8 together are the same key as their character: their bytes are the same."""
    memory = MemoryFile(version=version, key=KEY)
    memory["é"] = "1"
    memory["\udcc3\udca9"] = "2"
    assert texts(memory) == {"é": "2"}
    memory.save(tmp_path / "f")
    memory = opened(tmp_path / "f")
    assert memory["\udcc3\udca9"].text == "2"
    assert memory.remove("\udcc3\udca9")
    assert len(memory) == 0


def test_keys_and_texts_without_bytes() -> None:
    memory = MemoryFile()
    for key in ("\ud800", "a\udfff"):
        with pytest.raises(InvalidParamError):
            memory[key] = "x"
        assert key not in memory
        assert memory.get(key) is None
        assert not memory.remove(key)
        with pytest.raises(KeyNotFoundError):
            memory[key]
    with pytest.raises(InvalidParamError):
        memory["k"] = "\ud800"
    memory["k"] = {"\ud800": "\udfff"}
    assert memory["k"].json() == {"\ud800": "\udfff"}


def test_rename(path: Path) -> None:
    memory = opened(path)
    before = memory["a"]
    memory.rename("a", "z")
    after = memory["z"]
    assert (after.data, after.type, after.flags, after.timestamp) == (
        before.data, before.type, before.flags, before.timestamp,
    )  # fmt: skip
    with pytest.raises(InvalidParamError):
        memory.rename("b", "c")
    with pytest.raises(KeyNotFoundError):
        memory.rename("nobody", "d")
    memory.commit()
    assert texts(path) == {"b": "2", "c": "3", "z": "1"}
    memory.rename("z", "a")
    memory.commit()
    assert list(texts(path)) == ["b", "c", "a"]


# --- opening and closing ---------------------------------------------------------------------------------


def test_a_closed_file_is_closed(path: Path) -> None:
    """An empty mapping instead would one day be saved over the file."""
    before = path.read_bytes()
    memory = opened(path)
    held = memory["a"]
    memory["x"] = "not saved"
    with pytest.warns(ResourceWarning, match="were dropped"):
        memory.__exit__(None, None, None)
    for use in (memory.save, memory.commit, memory.compact, lambda: len(memory), lambda: list(memory),
                lambda: memory["a"], lambda: memory.set("a", "b"), lambda: memory.remove("a"),
                lambda: list(memory.values()), lambda: memory.clear(), lambda: "a" in memory):  # fmt: skip
        with pytest.raises(InvalidParamError, match="closed"):
            use()
    assert held.text == "1"
    assert path.read_bytes() == before
    memory.close()


def test_opening_bytes(tmp_path: Path, path: Path) -> None:
    memory = MemoryFile.open(path.read_bytes(), key=KEY)
    assert memory.path is None
    assert texts(memory) == texts(path)
    memory["d"] = "4"
    with pytest.raises(InvalidParamError, match="no file"):
        memory.commit()
    memory.save(tmp_path / "g")
    assert list(texts(tmp_path / "g")) == ["a", "b", "c", "d"]


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    with pytest.raises(NoSuchFileError) as caught:
        MemoryFile.open(tmp_path / "absent.atlas")
    assert isinstance(caught.value, FileNotFoundError)
    assert caught.value.code == ErrorCode.FILE_NOT_FOUND
    with pytest.raises(FileAccessError):
        MemoryFile.open(tmp_path)
    with pytest.raises(VersionMismatchError):
        MemoryFile(version=4)
    with pytest.raises(VersionMismatchError):
        MemoryFile().save(tmp_path / "f", version=0)


def test_exists(tmp_path: Path, path: Path) -> None:
    (tmp_path / "other").write_bytes(b"GGUF")
    assert MemoryFile.exists(path)
    for name in ("absent", "other", "."):
        assert not MemoryFile.exists(tmp_path / name)


def test_no_descriptor_leaks(path: Path) -> None:
    folder = Path("/proc/self/fd")
    if not folder.exists():
        pytest.skip("needs /proc")
    before = len(list(folder.iterdir()))
    for _ in range(50):
        with opened(path) as memory:
            memory["a"] = "x"
            memory.save()
        with pytest.raises(AtlasError):
            MemoryFile.open(path.read_bytes()[:100], key=KEY)
    assert len(list(folder.iterdir())) <= before + 2


# --- names, times, hashes --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("model", "name"),
    [
        ("/path/to/llama-7b.gguf", "llama-7b_memory.atlas"), ("llama.gguf", "llama_memory.atlas"),
        ("a.gguf.b.gguf", "a_memory.atlas"), ("plain", "plain_memory.atlas"), (".gguf", "_memory.atlas"),
        ("dir.gguf/model.bin", "model.bin_memory.atlas"), (Path("x/y.gguf"), "y_memory.atlas"),
        ("C:\\models\\m.gguf", "m_memory.atlas"), ("M.GGUF", "M.GGUF_memory.atlas"),
    ],
)  # fmt: skip
def test_auto_filename(model: str | Path, name: str) -> None:
    assert MemoryFile.auto_filename(model) == name


def test_model_hash(tmp_path: Path, version: int, path: Path) -> None:
    import hashlib

    memory = opened(path)
    assert memory.model_hash == bytes(32)
    (tmp_path / "m.gguf").write_bytes(b"GGUF")
    memory.model_hash = MemoryFile.hash_model(tmp_path / "m.gguf")
    memory.commit()
    again = opened(path)
    assert again.model_hash == hashlib.sha256(b"GGUF").digest()
    again.model_hash = "ab" * 32
    again.save()
    assert opened(path).model_hash == b"\xab" * 32
    for bad in ("xyz", bytes(33)):
        with pytest.raises(InvalidParamError):
            again.model_hash = bad
    assert MemoryFile(model_hash="ff").model_hash == b"\xff" + bytes(31)


def test_times(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    memory = MemoryFile(version=version, key=KEY)
    memory["a"] = "1"
    memory.save(path)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "2000")
    memory = opened(path)
    assert (memory.created, memory.modified, memory["a"].timestamp) == (1000, 1000, 1000)
    memory.save()
    assert opened(path).modified == 1000, "a save without changes is no modification"
    memory["b"] = "2"
    memory.commit()
    memory = opened(path)
    assert (memory.created, memory.modified) == (1000, 2000)
    assert (memory["a"].timestamp, memory["b"].timestamp) == (1000, 2000)
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "soon")
    assert MemoryFile().created > 1_000_000_000


@pytest.mark.parametrize("version", [1, 2])
def test_builds_are_reproducible(tmp_path: Path, version: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    for name in ("1", "2"):
        make(tmp_path / name, version)
    assert (tmp_path / "1").read_bytes() == (tmp_path / "2").read_bytes()


# --- saving ----------------------------------------------------------------------------------------------


def test_bak(path: Path) -> None:
    first = path.read_bytes()
    memory = opened(path)
    memory["a"] = "second"
    memory.save(backup=True)
    assert atomic.backup_name(path).read_bytes() == first
    memory["a"] = "third"
    memory.save()
    assert atomic.backup_name(path).read_bytes() == first
    with MemoryFile.edit(path, backup=True, key=KEY) as memory:
        memory["a"] = "fourth"
    assert texts(atomic.backup_name(path))["a"] == "third"


def test_saving_elsewhere(tmp_path: Path, path: Path, version: int) -> None:
    before = path.read_bytes()
    memory = opened(path)
    memory["d"] = "4"
    memory.save(tmp_path / "g")
    assert path.read_bytes() == before
    assert memory.path == str(tmp_path / "g")
    assert not memory.modified_in_memory
    assert list(texts(tmp_path / "g")) == ["a", "b", "c", "d"]


@pytest.mark.parametrize("old", VERSIONS)
@pytest.mark.parametrize("new", VERSIONS)
def test_every_version_to_every_other(tmp_path: Path, old: int, new: int) -> None:
    path = make(tmp_path / "f", old)
    opened(path).save(version=new)
    memory = opened(path)
    assert (memory.version, memory.dialect) == (new, f"v{new}")
    assert texts(memory) == {"a": "1", "b": "2", "c": "3"}
    memory["d"] = "4"
    memory.commit()
    assert list(texts(path)) == ["a", "b", "c", "d"]


def test_a_commit_without_changes_writes_nothing(path: Path) -> None:
    stamp = os.stat(path)
    memory = opened(path)
    memory.commit()
    with MemoryFile.edit(path, key=KEY):
        pass
    with MemoryFile.edit(path, backup=True, key=KEY):
        pass
    after = os.stat(path)
    assert (stamp.st_ino, stamp.st_mtime_ns) == (after.st_ino, after.st_mtime_ns)
    assert os.listdir(path.parent) == [path.name]


def test_an_entry_moves_between_files(tmp_path: Path) -> None:
    """Entries of one file can be set in another: decrypted, copied, or stored anew."""
    target = MemoryFile(version=2, codec="zstd")
    for version in VERSIONS:
        source = opened(make(tmp_path / str(version), version, x="text" * 100))
        target[f"from {version}"] = source["x"]
    target.save(tmp_path / "all")
    assert set(texts(tmp_path / "all").values()) == {"text" * 100}


# --- conflicts -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["commit", "save", "compact", "save to its own name"])
@pytest.mark.parametrize("other", ["commit", "save"])
def test_who_comes_second_is_told(path: Path, how: str, other: str) -> None:
    mine, theirs = opened(path), opened(path)
    theirs["theirs"] = "x"
    getattr(theirs, other)()
    mine["mine"] = "y"
    after = path.read_bytes()
    with pytest.raises(ConflictError) as caught:
        mine.save(path) if " " in how else getattr(mine, how)()
    assert caught.value.path == str(path)
    assert path.read_bytes() == after
    assert mine["mine"].text == "y"
    mine.save(force=True)
    assert list(texts(path)) == ["a", "b", "c", "mine"]


def test_a_forced_commit(path: Path) -> None:
    mine, theirs = opened(path), opened(path)
    theirs["theirs"] = "x"
    theirs.commit()
    mine["mine"] = "y"
    mine.commit(force=True)
    assert list(texts(path)) == ["a", "b", "c", "mine"]


def test_a_removed_file_is_a_conflict(path: Path) -> None:
    memory = opened(path)
    path.unlink()
    memory["d"] = "4"
    with pytest.raises(ConflictError):
        memory.commit()
    memory.save(force=True)
    assert list(texts(path)) == ["a", "b", "c", "d"]


def test_same_header_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Files saved in the same second with the same sizes have the same header."""
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1000")
    path = make(tmp_path / "f", 2, a="aaaa")
    memory = opened(path)
    make(path, 2, a="bbbb")
    memory["c"] = "d"
    with pytest.raises(ConflictError):
        memory.commit()


def test_edit_holds_the_lock(path: Path) -> None:
    with MemoryFile.edit(path, key=KEY) as memory:
        memory["mine"] = "x"
        with pytest.raises(LockedError), MemoryFile.edit(path, timeout=0.05, key=KEY):
            pass
    assert "mine" in texts(path)
    assert os.listdir(path.parent) == [path.name]


def test_edit_that_fails_changes_nothing(path: Path) -> None:
    before = path.read_bytes()

    def fail() -> None:
        with MemoryFile.edit(path, key=KEY) as memory:
            memory["mine"] = "x"
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == before
    assert os.listdir(path.parent) == [path.name]


def test_edit_creates(tmp_path: Path) -> None:
    with MemoryFile.edit(tmp_path / "new", create=True) as memory:
        memory["a"] = "1"
    assert MemoryFile.open(tmp_path / "new").version == 2
    with MemoryFile.edit(tmp_path / "sealed", create=True, key=KEY) as memory:
        memory["a"] = "1"
    assert opened(tmp_path / "sealed").version == 3
    with pytest.raises(NoSuchFileError), MemoryFile.edit(tmp_path / "absent"):
        pass
    assert sorted(os.listdir(tmp_path)) == ["new", "sealed"]


def _edit_many(path: Path, name: str, number: int) -> None:
    for n in range(number):
        with MemoryFile.edit(path, timeout=LONG, key=KEY) as memory:
            memory["counter"] = str(int(memory["counter"].text) + 1)
            memory[f"{name}{n}"] = name


def test_edits_of_two_processes_are_not_lost(tmp_path: Path, version: int) -> None:
    path = make(tmp_path / "f", version, counter="0")
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=_edit_many, args=(path, name, 15)) for name in "xy"]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert [child.exitcode for child in children] == [0, 0]
    memory = texts(path)
    assert memory["counter"] == "30"
    assert len(memory) == 31
    assert os.listdir(tmp_path) == ["f"]


# --- threads ---------------------------------------------------------------------------------------------


def test_threads_set_and_get_at_once(path: Path) -> None:
    memory = opened(path)
    errors: list[BaseException] = []

    def work(name: str) -> None:
        try:
            for n in range(60):
                key = f"{name}{n}"
                memory[key] = key
                assert memory[key].text == key
                assert memory["a"].text == "1"
                assert key in memory
                if n % 3 == 0:
                    del memory[key]
                if n % 20 == 7:
                    memory.commit()
                if n % 20 == 13:
                    assert [e.text for e in memory.values()][:1] == ["1"]
                    assert next(iter(memory)) == "a"
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(name,)) for name in "pqrs"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    memory.commit()
    want = {f"{name}{n}" for name in "pqrs" for n in range(60) if n % 3}
    assert set(texts(path)) == want | {"a", "b", "c"}


def test_threads_read_one_file(tmp_path: Path) -> None:
    path = make(tmp_path / "f", 2, **{f"k{n}": f"v{n}" * 100 for n in range(2000)})
    memory = MemoryFile.open(path)
    errors: list[int] = []

    def work(start: int) -> None:
        for n in range(start, 2000, 4):
            if memory[f"k{n}"].text != f"v{n}" * 100:
                errors.append(n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []


# --- about the file --------------------------------------------------------------------------------------


def test_sizes(path: Path, version: int) -> None:
    memory = opened(path)
    assert memory.total_size == 3 * (32 + 1 + 1 + 1)
    assert memory.file_size == path.stat().st_size
    assert memory.garbage < 64
    memory["a"] = "x" * 5000
    assert memory.modified_in_memory
    memory.commit()
    memory["a"] = "y"
    memory.commit()
    assert memory.garbage > 4000 if version > 1 else memory.garbage == 0
    memory.compact()
    assert memory.garbage < 64
    assert repr(memory).startswith("<MemoryFile")


def test_not_saved_yet() -> None:
    memory = MemoryFile()
    assert (memory.path, memory.file_size, memory.garbage, memory.total_size) == (None, 0, 0, 0)
    e = memory.set("k", b"data")
    assert (e.offset, e.payload_offset, e.checksum, e.size, e.stored_size) == (None, None, 0, 4, 4)
    assert isinstance(e, Entry)
    assert "not saved" in repr(memory)


# --- what an outside review found -------------------------------------------------------------------------


def test_saving_inside_edit(path: Path) -> None:
    """The lock is held already: saving must not wait for itself."""
    with MemoryFile.edit(path, key=KEY) as memory:
        memory["x"] = "1"
        memory.save()
        memory["y"] = "2"
    assert texts(path)["x"] == "1"
    assert texts(path)["y"] == "2"


def test_a_hard_linked_copy_is_a_snapshot(path: Path, tmp_path: Path) -> None:
    """``cp -l`` makes one: a commit must not append to both."""
    snapshot = tmp_path / "snapshot"
    os.link(path, snapshot)
    before = snapshot.read_bytes()
    with MemoryFile.edit(path, key=KEY) as memory:
        memory["x"] = "1"
    assert snapshot.read_bytes() == before
    assert texts(path)["x"] == "1"


def test_setdefault_returns_the_entry(path: Path) -> None:
    with opened(path) as memory:
        assert memory.setdefault("a", "other").text == "1"
        assert memory.setdefault("new", "other").text == "other"
        memory.save()


def test_devices_are_not_replaced(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    memory = MemoryFile()
    memory["a"] = "1"
    with pytest.raises(AtlasError, match="not a regular file"):
        memory.save(pipe)
    assert stat.S_ISFIFO(pipe.stat().st_mode)


def test_the_longest_file_name(tmp_path: Path) -> None:
    path = tmp_path / ("n" * 249 + ".atlas")
    with MemoryFile.edit(path, create=True) as memory:
        memory["a"] = "1"
    assert texts(path) == {"a": "1"}
    assert os.listdir(tmp_path) == [path.name]


def test_two_files_of_one_second_have_different_ids(tmp_path: Path) -> None:
    """Or a file inside a payload would be taken for a part of the one around it."""
    ids = set()
    for key in ("a", "b"):
        memory = MemoryFile(created=5)
        memory.set(key, "1", timestamp=5)
        memory.save(tmp_path / key)
        ids.add(memory.store.header.file_id)  # type: ignore[union-attr]
    assert len(ids) == 2
