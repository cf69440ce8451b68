"""Version 2: what goes in comes out, views, updates, the index, and what a hostile file is told."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import strategies
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule
from strategies import Item, contents

from atlas_kit.errors import (
    AtlasError,
    ChecksumMismatchError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyTooLongError,
    MagicMismatchError,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import Entry, MemoryFile, checksums, layout, tables, v2, v2_writer
from atlas_kit.formats.atlas.entry import MemoryPayload
from atlas_kit.storage.source import LocalSource

KEY = bytes(range(32))


def made(path: Path, what: dict[str, Any], **options: Any) -> MemoryFile:
    memory = MemoryFile(created=5, **options)
    for key, value in what.items():
        memory.set(key, value, timestamp=7)
    memory.save(path)
    return memory


def snapshot(memory: MemoryFile) -> list[tuple[Any, ...]]:
    return [(e.key, e.type, e.flags, e.timestamp, e.dtype, e.shape, e.data) for e in memory.values()]


# --- round trips -----------------------------------------------------------------------------------------


@given(what=contents(), codec=st.sampled_from(strategies.CODECS), shuffle=st.booleans(), version=st.just(2))
def test_round_trip(
    tmp_path_factory: pytest.TempPathFactory, what: dict[str, Item], codec: str, shuffle: bool, version: int
) -> None:
    path = tmp_path_factory.getbasetemp() / "v2.atlas"
    memory = MemoryFile(codec=codec, shuffle=shuffle)
    for key, item in what.items():
        item.put(memory, key)
    before = snapshot(memory)
    memory.save(path)
    again = MemoryFile.load(path)
    assert snapshot(again) == before
    assert list(again) == list(what)
    assert len(again) == again.count == len(what)
    for key, item in what.items():
        e = again[key]
        assert (e.data, e.type, e.flags, e.timestamp) == (item.data, item.type, item.flags, item.timestamp)
        assert b"".join(e.chunks()) == item.data
        assert e.size == len(item.data)
        assert e.stored_size <= max(e.size, 1)
        if isinstance(item.value, np.ndarray):
            array = e.array(verify=True)
            assert array.shape == item.value.shape
            assert array.tobytes() == item.data
            assert not array.flags.writeable
            if e.codec == "none" and e.size:
                assert array.ctypes.data % 64 == 0
    assert again.garbage < 64 + 8 * len(what)
    # saving again copies the stored bytes
    again.save(path)
    assert snapshot(MemoryFile.load(path)) == before


@pytest.mark.parametrize("codec", strategies.CODECS)
@pytest.mark.parametrize(
    "size",
    [0, 1, 4095, 4097, (1 << 20) - 1, (1 << 20) + 1, pytest.param((1 << 22) + 3, marks=pytest.mark.slow)],
)
def test_sizes_around_the_pieces(tmp_path: Path, codec: str, size: int) -> None:
    noise = np.random.default_rng(size).integers(0, 4, size, dtype=np.uint8).tobytes()
    made(tmp_path / "f", {"bytes": noise, "numbers": np.frombuffer(noise[: size & ~3], "<f4")}, codec=codec)
    memory = MemoryFile.load(tmp_path / "f")
    assert memory["bytes"].data == noise
    assert memory["numbers"].array().tobytes() == noise[: size & ~3]


@pytest.mark.parametrize("codec", ["none", "lz4", "zlib", "zstd"])
@pytest.mark.parametrize("version", [2, 3])
def test_payloads_that_are_streamed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, version: int
) -> None:
    """The ways for payloads too large for memory, with a smaller idea of large."""
    monkeypatch.setattr(v2_writer, "IN_MEMORY", 10_000)
    monkeypatch.setattr(v2_writer, "LARGE", 20_000)
    rng = np.random.default_rng(1)
    what = {
        "zeros": np.zeros(30_000, np.float32),
        "noise": rng.bytes(100_000),
        "small": b"x",
        "middle": bytes(15_000),
        "tensor": rng.normal(size=(100, 100)),
    }
    made(tmp_path / "f", what, codec=codec, version=version, key=KEY if version == 3 else None)
    memory = MemoryFile.load(tmp_path / "f", key=KEY if version == 3 else None)
    want = snapshot(memory)
    assert [e[-1] for e in want] == [bytes(v) if isinstance(v, bytes) else v.tobytes() for v in what.values()]
    assert memory["noise"].stored_size <= 100_000  # what does not shrink is stored as it is
    for other in strategies.CODECS:
        memory.save(tmp_path / "g", codec=other)
        assert snapshot(MemoryFile.load(tmp_path / "g", key=KEY if version == 3 else None)) == want
    memory["small"] = "y"
    memory.commit()
    memory.compact()
    assert len(snapshot(MemoryFile.load(memory.path, key=KEY if version == 3 else None))) == 5  # type: ignore[arg-type]


def test_a_large_payload_is_written_once(tmp_path: Path) -> None:
    class Counter:
        def __init__(self, file: Any) -> None:
            self.file, self.written = file, 0

        def write(self, data: Any) -> int:
            self.written += len(data)
            return int(self.file.write(data))

        def __getattr__(self, name: str) -> Any:
            return getattr(self.file, name)

    memory = MemoryFile()
    memory["t"] = np.random.default_rng(1).bytes(v2_writer.LARGE * 2)
    with open(tmp_path / "f", "w+b") as file:
        counter: Any = Counter(file)
        v2_writer.write(counter, memory._info, memory.entries(), 1, v2_writer.Options(), None)
    assert counter.written < v2_writer.LARGE * 2 + 2000


@pytest.mark.parametrize("name", [name for name in tables.DTYPE_BY_NAME if name != "q8_0"])
def test_raw_bytes_as_any_dtype(tmp_path: Path, name: str) -> None:
    row = tables.DTYPE_BY_NAME[name]
    raw = (bytes(range(256)) if name != "bool" else bytes([0, 1] * 128)) * row.size
    memory = MemoryFile()
    for codec in strategies.CODECS:
        memory.set(codec, raw, dtype=name, shape=(8, 32), codec=codec)
    memory.save(tmp_path / "f")
    for e in MemoryFile.load(tmp_path / "f").values():
        assert (e.dtype, e.shape, e.data) == (name, (8, 32), raw)
        assert e.array().dtype == np.dtype(row.numpy)
        assert e.filter == ("shuffle" if e.codec != "none" and row.size > 1 else "none")
        assert e.numbers().shape == (8, 32)


def test_quantised_and_brain_floats(tmp_path: Path) -> None:
    from atlas_kit.codecs import numbers

    array = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    memory = MemoryFile()
    memory.set("bf16", numbers.to_bfloat16(array), dtype="bfloat16")
    memory.set("q8", numbers.to_q8_0(array), dtype="q8_0", shape=(2, 64))
    memory.save(tmp_path / "f")
    memory = MemoryFile.load(tmp_path / "f")
    assert (memory["bf16"].dtype, memory["bf16"].array().dtype) == ("bfloat16", np.uint16)
    assert (memory["q8"].shape, memory["q8"].array().shape) == ((2, 64), (2, 68))
    for e in memory.values():
        assert e.numbers().dtype == np.float32
        assert np.abs(e.numbers() - array).max() < 0.01


def test_0_d_and_empty_tensors(tmp_path: Path) -> None:
    made(
        tmp_path / "f", {"0-d": np.float32(3.5), "flag": np.array(True), "none": np.zeros((3, 0, 2), np.int8)}
    )
    memory = MemoryFile.load(tmp_path / "f")
    assert memory["0-d"].shape == ()
    assert memory["0-d"].array() == np.float32(3.5)
    assert memory["flag"].array()
    assert memory["none"].array().shape == (3, 0, 2)


@pytest.mark.parametrize(
    "array", [np.array(["text"]), np.array([None]), np.zeros(2, "f4,i4"), np.zeros(1, "M8[s]")]
)
def test_arrays_that_have_no_dtype(array: np.ndarray[Any, Any]) -> None:
    with pytest.raises(InvalidParamError):
        MemoryFile()["a"] = array


def test_shape_and_bytes_must_agree() -> None:
    memory = MemoryFile()
    for options in (
        {"dtype": "float32", "shape": (3,)},
        {"dtype": "q8_0", "shape": (33,)},
        {"dtype": "f128", "shape": (1,)},
    ):
        with pytest.raises(InvalidParamError):
            memory.set("a", bytes(16), **options)  # type: ignore[arg-type]
    assert len(memory) == 0


def test_v2_limits(tmp_path: Path) -> None:
    memory = MemoryFile()
    memory["k" * 65_535] = b""
    with pytest.raises(KeyTooLongError):
        memory["k" * 65_536] = b""
    for key in ("", "a\0"):
        with pytest.raises(InvalidParamError):
            memory[key] = b""
    memory.save(tmp_path / "f")
    again = MemoryFile.load(tmp_path / "f")
    assert again["k" * 65_535].data == b""


@pytest.mark.slow
def test_more_entries_than_version_1_allows(tmp_path: Path) -> None:
    made(tmp_path / "f", {f"k{n}": b"" for n in range(66_000)})
    memory = MemoryFile.open(tmp_path / "f")
    assert len(memory) == 66_000
    assert memory["k65999"].data == b""
    assert next(iter(memory)) == "k0"


# --- views -----------------------------------------------------------------------------------------------


def root(array: np.ndarray[Any, Any]) -> Any:
    base: Any = array
    while getattr(base, "base", None) is not None:
        base = base.base
    return base.obj if isinstance(base, memoryview) else base


def test_tensors_open_as_views(tmp_path: Path) -> None:
    what = {f"t{n}": np.arange(n * 100).astype(dtype) for n, dtype in enumerate("?bhifdFD", 1)}
    made(tmp_path / "f", what)
    memory = MemoryFile.open(tmp_path / "f")
    for key, array in what.items():
        e, one, two = memory[key], memory[key].array(), memory[key].array()
        assert np.shares_memory(one, two)
        assert type(root(one)).__name__ == "mmap"
        assert not one.flags.owndata
        assert e.payload_offset is not None
        assert e.payload_offset % 64 == 0
        assert one.ctypes.data % 64 == 0
        assert not one.flags.writeable
        with pytest.raises(ValueError, match=r"WRITEABLE|writeable"):
            one.flags.writeable = True
        assert (one == array).all()


def test_views_outlive_everything(tmp_path: Path) -> None:
    path = tmp_path / "f"
    made(path, {"t": np.arange(10_000)})
    with MemoryFile.open(path) as memory:
        array, held = memory["t"].array(), memory["t"]
    other = MemoryFile.open(path)
    other["t"] = np.zeros(3)
    other.save()
    path.unlink()
    assert (array == np.arange(10_000)).all()
    assert held.data == np.arange(10_000).tobytes()


def test_reading_a_view_reads_nothing_else(tmp_path: Path, reads: list[tuple[int, int]]) -> None:
    made(tmp_path / "f", {"t": np.zeros(1_000_000)})
    memory = MemoryFile.open(tmp_path / "f")
    memory["t"].array()
    assert sum(size for _, size in reads) < 100_000


# --- the index -------------------------------------------------------------------------------------------


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """Every pread: (offset, bytes)."""
    seen: list[tuple[int, int]] = []
    pread = LocalSource._pread

    def counted(self: LocalSource, offset: int, size: int) -> bytes:
        seen.append((offset, size))
        return pread(self, offset, size)

    monkeypatch.setattr(LocalSource, "_pread", counted)
    return seen


@pytest.mark.parametrize("number", [1, 64, 10_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_opening_and_one_key_cost_the_same(tmp_path: Path, reads: list[tuple[int, int]], number: int) -> None:
    made(tmp_path / "f", {f"key{n}": b"x" * 100 for n in range(number)})
    worst = 0
    for n in range(0, number, max(1, number // 50)):
        reads.clear()
        memory = MemoryFile.open(tmp_path / "f")
        assert memory[f"key{n}"].data == b"x" * 100
        memory.close()
        assert sum(size for _, size in reads) < 120_000
        worst = max(worst, len(reads))
    assert worst <= 9


def test_a_missing_key_is_missing_for_sure(tmp_path: Path) -> None:
    made(tmp_path / "f", {f"key{n}": b"x" for n in range(5_000)})
    memory = MemoryFile.open(tmp_path / "f")
    assert "key5000" not in memory
    with pytest.raises(KeyNotFoundError) as caught:
        memory["key5000"]
    assert (caught.value.key, caught.value.path) == ("key5000", str(tmp_path / "f"))
    raw = bytearray((tmp_path / "f").read_bytes())
    raw[memory.store.blocks[0].first + 40 * 2500] ^= 1  # type: ignore[union-attr]
    damaged = MemoryFile.open(bytes(raw))
    with pytest.raises(ChecksumMismatchError):
        damaged["key5000"]
    with pytest.raises(ChecksumMismatchError):
        list(damaged)


@pytest.mark.slow
@pytest.mark.parametrize(
    "hash_",
    [
        lambda raw: 0,
        lambda raw: 2**64 - 1,
        lambda raw: len(raw),
        lambda raw: raw[-1] % 2 * (2**64 - 1),
        lambda raw: 1 << (raw[-1] % 64),
        lambda raw: int.from_bytes(raw[-2:], "little"),
    ],
    ids=["zero", "last", "length", "both-ends", "powers", "crowded"],
)
def test_adversarial_hashes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hash_: Callable[[bytes], int]
) -> None:
    """Interpolation must stay right where hashes collide or are not evenly spread."""
    true = checksums.xxh3
    monkeypatch.setattr(checksums, "xxh3", lambda data, seed=0: hash_(bytes(data)) if seed else true(data))
    what = {f"key{n}": b"%d" % n for n in range(700)}
    made(tmp_path / "f", what)
    monkeypatch.setattr(v2, "SMALL_INDEX", 1000)
    memory = MemoryFile.open(tmp_path / "f")
    for key, value in what.items():
        assert memory[key].data == value
    assert "key700" not in memory
    memory["key700"] = b"700"
    del memory["key5"]
    memory.commit()
    assert memory["key700"].data == b"700"
    assert "key5" not in MemoryFile.open(tmp_path / "f")


@pytest.mark.parametrize("version", [2, 3])
def test_chains_of_index_blocks(tmp_path: Path, version: int) -> None:
    """Each commit adds a block; old ones are folded in, so that chains stay short."""
    path = tmp_path / "f"
    secret = {"key": KEY} if version == 3 else {}
    model = {f"k{n}": b"%d" % n for n in range(300)}
    made(path, model, version=version, **secret)
    longest = 0
    for n in range(120):
        memory = MemoryFile.open(path, **secret)
        memory[f"new{n}"] = b"x"
        memory[f"k{n}"] = b"changed"
        del memory[f"k{299 - n}"]
        memory.commit()
        model[f"new{n}"], model[f"k{n}"] = b"x", b"changed"
        del model[f"k{299 - n}"]
        longest = max(longest, len(memory.store.blocks))  # type: ignore[union-attr]
        # a sealed file is rewritten now and then, because each commit repeats its whole index
        assert memory.generation == n + 2 or version == 3
    memory = MemoryFile.load(path, **secret)
    assert {e.key: e.data for e in memory.values()} == model
    assert all(key in memory for key in model)
    assert not any(f"k{n}" in memory for n in range(180, 300))
    assert longest == 1 if version == 3 else 2 <= longest <= 9
    size = memory.file_size
    assert version == 2 or size < 5 * memory.store.live_size + (1 << 16)  # type: ignore[union-attr]
    assert memory.garbage > 0 or version == 3
    memory.compact()
    assert memory.file_size < size or version == 3
    assert memory.garbage < 1000
    assert {e.key: e.data for e in MemoryFile.load(path, **secret).values()} == model


def test_removed_and_set_again_goes_to_the_end(tmp_path: Path) -> None:
    made(tmp_path / "f", {"a": "1", "b": "2"})
    for how in (MemoryFile.commit, MemoryFile.save):
        memory = MemoryFile.open(tmp_path / "f")
        first = next(iter(memory))
        value = memory.pop(first)
        memory[first] = value
        how(memory)
        assert (
            list(MemoryFile.load(tmp_path / "f"))
            == list(memory)
            == (["b", "a"] if first == "a" else ["a", "b"])
        )


def test_committing_touches_nothing_old(tmp_path: Path) -> None:
    made(tmp_path / "f", {"a": "1", "b": "2"})
    before = (tmp_path / "f").read_bytes()
    reader = MemoryFile.open(tmp_path / "f")
    memory = MemoryFile.open(tmp_path / "f")
    memory["a"] = "new"
    memory["c"] = "3"
    memory.commit()
    after = (tmp_path / "f").read_bytes()
    assert after[160 : len(before)] == before[160:]
    assert [e.text for e in reader.values()] == ["1", "2"]
    assert [e.text for e in MemoryFile.load(tmp_path / "f").values()] == ["new", "2", "3"]


def test_an_unfinished_update_is_ignored_and_removed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    made(path, {"a": "1"})
    good = path.read_bytes()
    path.write_bytes(good + b"rubbish of an update")
    memory = MemoryFile.load(path)
    assert [(w.code, w.offset) for w in memory.warnings] == [("uncommitted-bytes", len(good))]
    assert memory["a"].text == "1"
    memory["b"] = "2"
    memory.commit()
    assert MemoryFile.load(path).warnings == []
    assert b"rubbish" not in path.read_bytes()


def test_a_failed_commit_can_be_repeated(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "f"
    made(path, {"a": "1"})
    before = path.read_bytes()
    memory = MemoryFile.open(path)
    memory["b"] = bytes(100_000)
    fsync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(28, "No space left on device")))
    with pytest.raises(AtlasError, match="disk is full"):
        memory.commit()
    assert path.read_bytes() == before
    monkeypatch.setattr(os, "fsync", fsync)
    memory.commit()
    assert list(MemoryFile.load(path)) == ["a", "b"]


class Updates(RuleBasedStateMachine):
    """Any sequence of changes, commits, saves and reopenings does what a dictionary does."""

    KEYS = st.sampled_from([f"k{n}" for n in range(12)] + ["\udcff", "ключ"])
    VALUES = st.one_of(st.binary(min_size=1, max_size=30), st.integers(1, 3000).map(lambda n: b"r" * n))

    def __init__(self) -> None:
        super().__init__()
        import tempfile

        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "f.atlas"
        self.model: dict[str, bytes] = {}
        self.disk: dict[str, bytes] | None = None

    @initialize(version=st.sampled_from([1, 2, 3]), codec=st.sampled_from(["none", "lz4"]))
    def start(self, version: int, codec: str) -> None:
        self.memory = MemoryFile(version=version, codec=codec, key=KEY)

    @rule(key=KEYS, value=VALUES)
    def set(self, key: str, value: bytes) -> None:
        self.memory[key] = value
        self.model[key] = value

    @rule(key=KEYS)
    def remove(self, key: str) -> None:
        assert self.memory.remove(key) == (self.model.pop(key, None) is not None)

    @rule(old=KEYS, new=KEYS)
    def rename(self, old: str, new: str) -> None:
        if old in self.model and new not in self.model:
            self.memory.rename(old, new)
            self.model[new] = self.model.pop(old)
        else:
            with pytest.raises(AtlasError):
                self.memory.rename(old, new)

    @rule()
    def clear(self) -> None:
        if len(self.model) > 8:
            self.memory.clear()
            self.model.clear()

    def _write(self, write: Callable[[], None]) -> None:
        if self.disk is None:
            self.memory.save(self.path, durable=False)
        else:
            write()
        self.disk = dict(self.model)

    @rule()
    def commit(self) -> None:
        self._write(self.memory.commit)

    @rule(data=st.data())
    def save(self, data: st.DataObject) -> None:
        codec = data.draw(st.sampled_from([None, "none", "zstd"]))
        self._write(lambda: self.memory.save(codec=codec, backup=True))

    @rule()
    def compact(self) -> None:
        self._write(self.memory.compact)

    @rule(version=st.sampled_from([1, 2, 3]))
    def save_as(self, version: int) -> None:
        self._write(lambda: self.memory.save(version=version))

    @rule()
    def reopen(self) -> None:
        if self.disk is not None:
            self.memory = MemoryFile.load(self.path, key=KEY)
            self.model = dict(self.disk)

    @invariant()
    def agrees(self) -> None:
        if not hasattr(self, "memory"):
            return
        assert [(e.key, e.data) for e in self.memory.values()] == list(self.model.items())
        assert list(self.memory) == list(self.model)
        assert len(self.memory) == len(self.model)
        for key in ("k0", "k1", "k2", "\udcff"):
            assert (key in self.memory) == (key in self.model)
            assert key not in self.model or self.memory[key].data == self.model[key]

    @invariant()
    def disk_holds_what_was_saved(self) -> None:
        if self.disk is not None:
            with MemoryFile.load(self.path, key=KEY) as memory:
                assert [(e.key, e.data) for e in memory.values()] == list(self.disk.items())
                assert memory.total_size == (memory._info.total_size or 0)

    def teardown(self) -> None:
        self.folder.cleanup()


TestUpdates = pytest.mark.slow(Updates.TestCase)
TestUpdates.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)


# --- what newer programs write ---------------------------------------------------------------------------


def test_unknown_things_survive(tmp_path: Path) -> None:
    """Types, flags, attribute bits, codecs, filters, dtypes and reserved fields of a newer version."""
    memory = MemoryFile()
    strange = {
        "codec": {"codec_id": 9, "size": 1000},
        "filter": {"filter_id": 7, "item_size": 5},
        "type": {"type": 2**32 - 1},
        "flags": {"flags": 2**32 - 1},
        "dtype": {"dtype_id": 200, "shape": (3, 5)},
        "attributes": {"attributes": 0xFFF0},
        "reserved": {"reserved": 2**32 - 1},
        "time": {"timestamp": 2**64 - 1},
    }
    for key, odd in strange.items():
        # offset: as if it came from a file, so that it is stored as it is
        memory._added[key] = Entry(key, MemoryPayload(b"stored bytes"), **{"offset": 0, **odd})  # type: ignore[arg-type]
    memory._dirty = True
    memory._info.file_flags = 0xF0F0F0F0
    memory._info.reserved = bytes(range(32))
    memory.save(tmp_path / "f")

    def look(memory: MemoryFile) -> dict[str, Any]:
        names = [
            name for name in Entry.__slots__ if name not in ("payload", "offset", "payload_offset", "wanted")
        ]
        return {e.key: [getattr(e, n) for n in names] + [bytes(e.payload.view())] for e in memory.values()}

    memory = MemoryFile.open(tmp_path / "f")
    want = look(memory)
    for key, odd in strange.items():
        e = memory[key]
        assert {name: getattr(e, name) for name in odd} == odd
    assert memory["codec"].codec == "unknown-9"
    assert memory["filter"].filter == "unknown-7"
    assert memory["dtype"].dtype == "unknown-200"
    for key in ("codec", "filter"):
        with pytest.raises(VersionMismatchError):
            list(memory[key].chunks())
    with pytest.raises(VersionMismatchError):
        memory["dtype"].array()

    memory.compact()
    assert look(MemoryFile.open(tmp_path / "f")) == want
    memory.save(codec="zstd")
    assert {k: v for k, v in look(MemoryFile.open(tmp_path / "f")).items() if k in ("codec", "filter")} == {
        k: want[k] for k in ("codec", "filter")
    }
    memory["more"] = "text"
    memory.rename("codec", "renamed")
    memory.commit()
    memory = MemoryFile.open(tmp_path / "f")
    assert memory["renamed"].codec == "unknown-9"
    assert (memory._info.file_flags, memory._info.reserved) == (0xF0F0F0F0, bytes(range(32)))
    assert memory["attributes"].attributes == 0xFFF0


# --- damage ----------------------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path: Path) -> bytes:
    memory = MemoryFile(created=5)
    memory.set("plain", b"first payload", timestamp=1)
    memory.set("packed", b"again and " * 30, timestamp=2, codec="zstd")
    memory.set("tensor", np.arange(20, dtype="<f4").reshape(4, 5), timestamp=3)
    memory.save(tmp_path / "small.atlas")
    memory = MemoryFile.open(tmp_path / "small.atlas")
    memory.set("plain", b"an update", timestamp=4)
    memory.commit()
    return (tmp_path / "small.atlas").read_bytes()


@pytest.mark.slow
def test_every_flipped_bit_is_noticed(small: bytes) -> None:
    """Wherever a bit flips: one of our errors, or what it hit is not part of any live entry."""
    want = snapshot(MemoryFile.load(small))
    harmless = 0
    for place in range(len(small)):
        for bit in (0, 3, 7):
            flipped = bytearray(small)
            flipped[place] ^= 1 << bit
            try:
                got = snapshot(MemoryFile.load(bytes(flipped)))
            except AtlasError:
                continue
            assert got == want
            harmless += 1
    assert harmless < 3 * 1000  # the old record and the old index block


def test_every_cut_is_noticed(small: bytes) -> None:
    for size in range(len(small)):
        with pytest.raises((TruncatedError, MagicMismatchError)):
            MemoryFile.open(small[:size])


def rebuilt(raw: bytes, **changes: Any) -> bytes:
    """Change header fields and make the checksums fit."""
    header = v2.parse_header(raw)._replace(**changes)
    return header.pack(None) + raw[layout.HEADER_V2.size :]


@pytest.mark.parametrize(
    "changes",
    [
        {"entry_total": 4},
        {"entry_total": 2**64 - 1},
        {"entry_total": 2},
        {"index_offset": 0},
        {"index_offset": 8},
        {"index_offset": 161},
        {"index_offset": 2**63},
        {"index_offset": 2**64 - 8},
        {"committed_size": 2**64 - 1},
        {"committed_size": 0},
        {"committed_size": 500},
        {"file_id": 1},
    ],
    ids=str,
)
def test_hostile_headers(small: bytes, changes: dict[str, int]) -> None:
    with pytest.raises(FileCorruptError) as caught:
        MemoryFile.load(rebuilt(small, **changes))
    assert caught.value.offset is not None or "index" in caught.value.message


@pytest.mark.parametrize("changes", [{"generation": 2**64 - 1}, {"total_size": 0}], ids=str)
def test_hostile_numbers_and_a_commit(tmp_path: Path, small: bytes, changes: dict[str, int]) -> None:
    path = tmp_path / "f"
    path.write_bytes(rebuilt(small, **changes))
    memory = MemoryFile.open(path)
    del memory["packed"]
    with pytest.raises(FileCorruptError, match="no room"):
        memory.commit()
    assert path.read_bytes() == rebuilt(small, **changes)


def reindexed(raw: bytes, change: Callable[[list[list[int]]], None], **fields: int) -> bytes:
    """Change the newest index block's records or fields and make its checksum fit."""
    header = v2.parse_header(raw)
    at = header.index_offset
    head = list(layout.INDEX.unpack_from(raw, at))
    names = layout.names_of(layout.IndexHeader)
    start = at + layout.INDEX.size + layout.HEADER_V2.size
    rows = [list(row) for row in layout.RECORD.iter_unpack(raw[start : at + head[2]])]
    change(rows)
    records = b"".join(layout.RECORD.pack(*row) for row in rows)
    head[2], head[6] = layout.INDEX.size + layout.HEADER_V2.size + len(records), len(rows)
    for name, value in fields.items():
        head[names.index(name)] = value
    block = layout.INDEX.pack(*head) + raw[at + layout.INDEX.size : start] + records
    block = block[:8] + struct.pack("<Q", checksums.xxh3(block[16:])) + block[16:]
    return rebuilt(raw[:at] + block, committed_size=at + len(block))


def _set(column: int, value: int) -> Callable[[list[list[int]]], None]:
    return lambda rows: rows[0].__setitem__(column, value)


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (_set(1, 2**64 - 1), {}),
        (_set(1, 8), {}),
        (_set(1, 168), {}),
        (_set(2, 0), {}),
        (_set(2, 2**64 - 1), {}),
        (_set(3, 77), {}),
        (_set(4, 1), {}),
        (lambda rows: rows.clear(), {}),
        (lambda rows: rows.append([*rows[0][:3], 9, rows[0][4]]), {}),
        (lambda rows: None, {"count": 2**63}),
        (lambda rows: None, {"size": 2**64 - 1}),
        (lambda rows: None, {"prev_offset": 2**64 - 8}),
        (lambda rows: None, {"prev_offset": 160}),
        (lambda rows: None, {"file_id": 3}),
        (lambda rows: rows[0].__setitem__(slice(1, 3), rows[1][1:3]), {}),
    ],
)
def test_hostile_indexes(
    tmp_path: Path, small: bytes, change: Callable[[list[list[int]]], None], fields: dict[str, int]
) -> None:
    memory = MemoryFile.open(small)
    memory.save(tmp_path / "f")  # one index block
    small = (tmp_path / "f").read_bytes()
    fine = reindexed(small, lambda rows: None)
    assert snapshot(MemoryFile.load(fine)) == snapshot(MemoryFile.load(small))
    with pytest.raises(FileCorruptError):
        snapshot(MemoryFile.load(reindexed(small, change, **fields)))


def test_a_loop_of_index_blocks(small: bytes) -> None:
    at = v2.parse_header(small).index_offset
    with pytest.raises(FileCorruptError, match="forward"):
        MemoryFile.open(reindexed(small, lambda rows: None, prev_offset=at))


def forged(path: Path, **changes: Any) -> MemoryFile:
    """A file with one entry whose head says what ``changes`` say, all checksums right."""
    memory = MemoryFile()
    e = Entry("key", MemoryPayload(changes.pop("stored", b"payload!")), offset=0, **changes)
    memory._added["key"], memory._dirty = e, True
    memory.save(path)
    return MemoryFile.open(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"size": 7},
        {"size": 2**63},
        {"size": 10**9, "codec_id": 1},
        {"size": 10**12, "codec_id": 2},
        {"size": 10**15, "codec_id": 3},
        {"size": 8, "codec_id": 3},
        {"size": 0, "codec_id": 2},
        {"dtype_id": 12, "shape": (3,)},
        {"dtype_id": 12, "shape": (2**63, 2**63)},
        {"dtype_id": 12, "shape": (1,) * 255},
        {"dtype_id": 2, "shape": (1,) * 70 + (8,)},
        {"dtype_id": 12, "shape": (2, 2**62, 0), "stored": b""},
        {"dtype_id": 12, "shape": (0, 2**63), "stored": b""},
        {"dtype_id": 32, "shape": ()},
        {"dtype_id": 32, "shape": (7,)},
        {"filter_id": 1, "item_size": 255, "size": 9},
    ],
    ids=str,
)
def test_hostile_entries(tmp_path: Path, changes: dict[str, Any]) -> None:
    memory = forged(tmp_path / "f", **changes)
    e = memory["key"]
    ways: tuple[Callable[[], Any], ...] = (
        lambda: e.data,
        lambda: list(e.chunks()),
        e.verify,
        e.array,
        e.numbers,
    )
    assert not all(fine(way) for way in ways)


def fine(way: Callable[[], Any]) -> bool:
    try:
        way()
    except AtlasError as error:
        return error.key not in (None, "key")
    return True


def test_records_inside_records(tmp_path: Path) -> None:
    """Nested records would make reading everything cost the square of the file's size."""
    number = 40
    file_id, raw_records = 1, b""
    rows: list[tuple[int, ...]] = []
    inner = b""
    for n in reversed(range(number)):
        key = b"k%03d" % n
        head = v2_writer._Head(file_id, n, 1, len(inner), 0, 0, 0, 4, 128, 0, 0, key=key)
        raw, check = v2_writer._finish_head(head, len(inner), checksums.xxh3(inner))
        inner = raw + inner
        inner += bytes(-len(inner) % 8)
        rows.append((checksums.xxh3(key, file_id), 160 + n * 128, len(inner), n, check))
    raw_records = inner
    with open(tmp_path / "f", "w+b") as file:
        file.write(bytes(160) + raw_records)
        writer = v2_writer.Writer(file, 160 + len(raw_records), file_id, 1, None)
        writer.rows = rows  # type: ignore[assignment]
        header = v2.Header(
            tables.MAGIC, 2, 0, 0, 0, 0, 0, bytes(32), bytes(32), 160, 0, file_id, 1, 0, 0, number
        )
        header = writer.write_index(header, (), 0, number)
        file.seek(0)
        file.write(header.pack(None))
    with pytest.raises(FileCorruptError, match="overlap"):
        MemoryFile.load(tmp_path / "f")
