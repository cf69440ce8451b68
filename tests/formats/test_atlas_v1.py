"""Version 1: the C library's bytes, both ways; its limits, its dialects, and every way to be damaged."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from strategies import Item, contents

from atlas_kit.errors import (
    AtlasError,
    ChecksumMismatchError,
    DataTooLargeError,
    ErrorCode,
    FileCorruptError,
    InvalidParamError,
    KeyTooLongError,
    MagicMismatchError,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import DataType, MemoryFile, tables

FIXTURES = ["empty", "llama-7b_memory", "types_and_bytes", "thousand"]


def fnv(data: bytes) -> int:
    """FNV-1a/32 as its authors wrote it down: our own, slow, and independent of the library's."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


def entry(key: bytes = b"key", data: bytes = b"data", *, kind: int = 1, flags: int = 0, time: int = 7,
          checksum: int | None = None, reserved: int = 0, hash_=fnv) -> bytes:  # type: ignore[no-untyped-def]  # fmt: skip
    checksum = hash_(data) if checksum is None else checksum
    head = struct.pack("<IIIIQII", len(key), len(data), kind, flags, time, checksum, reserved)
    return head + key + b"\0" + data


def file(*entries: bytes, count: int | None = None, total: int | None = None, size: int = 104,
         version: int = 1, hash_=fnv, created: int = 5, modified: int = 6, extra: bytes = b"") -> bytes:  # type: ignore[no-untyped-def]  # fmt: skip
    body = b"".join(entries)
    count = len(entries) if count is None else count
    total = len(body) if total is None else total
    tail = struct.pack("<IQQQ", count, created, modified, total) + bytes(range(32))
    tail += bytes(size - 12 - len(tail))
    return b"ATLS" + struct.pack("<II", version, hash_(tail)) + tail + body + extra


TWO = (entry(b"a", b"first"), entry(b"b", b"second"))


def saved(memory: MemoryFile, path: Path, **options: object) -> bytes:
    memory.save(path, **options)  # type: ignore[arg-type]
    return path.read_bytes()


# --- byte exactness --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", FIXTURES)
def test_the_c_librarys_files_come_back_byte_for_byte(
    c_library_files: Path, tmp_path: Path, name: str
) -> None:
    original = (c_library_files / f"{name}.atlas").read_bytes()
    for source in (original, c_library_files / f"{name}.atlas"):
        memory = MemoryFile.load(source)
        assert (memory.version, memory.dialect, memory.warnings) == (1, "v1", [])
        assert saved(memory, tmp_path / "again.atlas") == original


@pytest.mark.parametrize("name", FIXTURES)
@pytest.mark.parametrize("version", [2, 3])
def test_through_other_versions_and_back(
    c_library_files: Path, tmp_path: Path, name: str, version: int
) -> None:
    original = (c_library_files / f"{name}.atlas").read_bytes()
    there, back = tmp_path / "there.atlas", tmp_path / "back.atlas"
    memory = MemoryFile.open(original, key=bytes(32))
    memory.save(there, version=version, codec="zstd")
    other = MemoryFile.load(there, key=bytes(32))
    assert other.version == version
    assert [e.key for e in other.values()] == [e.key for e in MemoryFile.open(original).values()]
    assert saved(other, back, version=1) == original


def test_the_seeds_example(c_library_files: Path) -> None:
    memory = MemoryFile.load(c_library_files / "llama-7b_memory.atlas")
    assert memory.count >= 2
    chat = next(e for e in memory.values() if e.type == DataType.CONVERSATION)
    assert chat.text.startswith("User:")


def test_odd_entries_of_the_c_library(c_library_files: Path) -> None:
    memory = MemoryFile.load(c_library_files / "types_and_bytes.atlas")
    entries = list(memory.values())
    assert 99 in {e.type for e in entries}
    assert bytes(range(256)) in {e.data for e in entries}
    assert b"\0" in {e.data for e in entries}
    assert max(len(e.key.encode("utf-8", "surrogateescape")) for e in entries) == 256
    assert any("\udc80" <= char <= "\udcff" for e in entries for char in e.key)


def test_order_and_updates_of_the_c_library(c_library_files: Path) -> None:
    memory = MemoryFile.load(c_library_files / "thousand.atlas")
    assert memory.count == len(list(memory)) == 1000 - 334
    numbers = [int("".join(c for c in key if c.isdigit())) for key in memory]
    assert numbers == sorted(numbers)


def test_written_from_nothing(tmp_path: Path) -> None:
    memory = MemoryFile(version=1, created=5, model_hash=bytes(range(32)))
    memory.set("a", b"first", type=1, timestamp=7)
    memory.set("b", b"second", type=1, timestamp=7)
    assert saved(memory, tmp_path / "f") == file(*TWO, modified=5)


def test_everything_odd_survives(tmp_path: Path) -> None:
    """Fields that the C library leaves at random, types and flags without meaning, empty payloads."""
    odd = file(
        entry(b"\xff\xfe", b"x", kind=0xFFFFFFFF, flags=0xDEADBEEF, time=2**64 - 1, reserved=0x12345678),
        entry(b"k" * 256, b""),
    )
    memory = MemoryFile.load(odd)
    assert memory["\udcff\udcfe"].flags == 0xDEADBEEF
    assert memory["k" * 256].data == b""
    assert saved(memory, tmp_path / "1") == odd
    MemoryFile.open(odd).save(tmp_path / "2", version=2)
    assert saved(MemoryFile.open(tmp_path / "2"), tmp_path / "3", version=1) == odd


@given(what=contents(plain=True))
def test_round_trip(tmp_path_factory: pytest.TempPathFactory, what: dict[str, Item]) -> None:
    path = tmp_path_factory.getbasetemp() / "v1.atlas"
    memory = MemoryFile(version=1)
    for key, item in what.items():
        item.put(memory, key)
    memory.save(path)
    again = MemoryFile.load(path)
    assert list(again) == list(what)
    for key, item in what.items():
        e = again[key]
        assert (e.data, e.type, e.flags, e.timestamp) == (item.data, item.type, item.flags, item.timestamp)
        assert e.checksum == fnv(item.data) or len(item.data) > 100
    raw = path.read_bytes()
    assert len(raw) == 104 + again.total_size
    assert raw == saved(again, path)


def test_an_update_keeps_its_place_and_a_removal_shifts(tmp_path: Path) -> None:
    memory = MemoryFile.open(file(*(entry(key, b"x") for key in (b"a", b"b", b"c", b"d"))))
    memory["b"] = "new"
    del memory["a"]
    memory["a"] = "last"
    memory.save(tmp_path / "f")
    again = MemoryFile.load(tmp_path / "f")
    assert [(e.key, e.text) for e in again.values()] == [("b", "new"), ("c", "x"), ("d", "x"), ("a", "last")]


def test_tensors_become_npy(tmp_path: Path) -> None:
    import io

    memory = MemoryFile()
    memory["t"] = np.arange(6, dtype=np.float32).reshape(2, 3)
    memory.save(tmp_path / "f", version=1)
    back = np.load(io.BytesIO(MemoryFile.load(tmp_path / "f")["t"].data))
    assert back.tolist() == [[0, 1, 2], [3, 4, 5]]


# --- limits ----------------------------------------------------------------------------------------------


def test_limits_of_set(tmp_path: Path) -> None:
    memory = MemoryFile(version=1)
    memory["k" * 256] = b"x"
    memory["é" * 128] = b"x"
    for key in ("k" * 257, "é" * 129):
        with pytest.raises(KeyTooLongError) as caught:
            memory[key] = b"x"
        assert caught.value.key == key
        assert caught.value.code == ErrorCode.KEY_TOO_LONG
    for key in ("", "a\0b"):
        with pytest.raises(InvalidParamError):
            memory[key] = b"x"
    with pytest.raises(InvalidParamError, match="empty payload"):
        memory["empty"] = b""
    assert len(memory) == 2


def test_a_gibibyte_and_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "V1_MAX_DATA", 1000)
    memory = MemoryFile(version=1)
    memory["k"] = bytes(1000)
    with pytest.raises(DataTooLargeError, match="1001 bytes") as caught:
        memory["j"] = bytes(1001)
    assert caught.value.code == ErrorCode.DATA_TOO_LARGE
    with pytest.raises(FileCorruptError, match="claims 1001 bytes"):
        MemoryFile.open(file(entry(b"k", bytes(1001))))


def test_what_version_2_allows_and_version_1_does_not(tmp_path: Path) -> None:
    for key, value in (("k" * 257, b"x"), ("k", b"")):
        memory = MemoryFile()
        memory[key] = value
        with pytest.raises((KeyTooLongError, InvalidParamError)):
            memory.save(tmp_path / "f", version=1)
    assert list(tmp_path.iterdir()) == []


def test_65536_entries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "V1_MAX_ENTRIES", 10)
    memory = MemoryFile(version=1)
    for number in range(11):
        memory[f"k{number}"] = b"x"
    with pytest.raises(DataTooLargeError, match="11 entries"):
        memory.save(tmp_path / "f")
    assert not (tmp_path / "f").exists()
    del memory["k0"]
    memory.save(tmp_path / "f")
    assert len(MemoryFile.load(tmp_path / "f")) == 10


def test_limits_are_the_c_librarys() -> None:
    assert (tables.V1_MAX_ENTRIES, tables.V1_MAX_KEY, tables.V1_MAX_DATA) == (65536, 256, 1 << 30)


# --- dialects --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("dialect", "size", "hash_"),
    [("v1-96", 96, fnv), ("v1-crc32", 104, zlib.crc32), ("v1-96-crc32", 96, zlib.crc32)],
)
@pytest.mark.parametrize("entries", [0, 1, 2])
def test_dialects(tmp_path: Path, dialect: str, size: int, hash_, entries: int) -> None:  # type: ignore[no-untyped-def]
    parts = [entry(b"%d" % n, b"data", hash_=hash_) for n in range(entries)]
    memory = MemoryFile.load(file(*parts, size=size, hash_=hash_))
    assert memory.dialect == dialect
    assert [w.code for w in memory.warnings] == [f"dialect-{dialect}"]
    assert [e.data for e in memory.values()] == [b"data"] * entries
    canonical = file(*(entry(b"%d" % n, b"data") for n in range(entries)))
    assert saved(memory, tmp_path / "f") == canonical


def test_crc32_payloads_under_an_fnv_header() -> None:
    assert MemoryFile.load(file(entry(hash_=zlib.crc32)))["key"].data == b"data"


def test_bytes_after_the_end() -> None:
    memory = MemoryFile.load(file(*TWO, extra=b"more"))
    assert [(w.code, w.offset) for w in memory.warnings] == [("trailing-bytes", len(file(*TWO)))]


# --- damage ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("raw", "kind", "code", "offset"),
    [
        (b"", MagicMismatchError, ErrorCode.MAGIC_MISMATCH, 0),
        (b"ATL", MagicMismatchError, ErrorCode.MAGIC_MISMATCH, 0),
        (b"GGUF" + bytes(200), MagicMismatchError, ErrorCode.MAGIC_MISMATCH, 0),
        (file(*TWO, version=4), VersionMismatchError, ErrorCode.VERSION_MISMATCH, 4),
        (file(*TWO, version=0), VersionMismatchError, ErrorCode.VERSION_MISMATCH, 4),
        (b"ATLS\1", TruncatedError, ErrorCode.FILE_CORRUPT, 5),
        (file(*TWO)[:50], TruncatedError, ErrorCode.FILE_CORRUPT, 0),
        (file(*TWO)[:-1], TruncatedError, ErrorCode.FILE_CORRUPT, 104 + len(TWO[0])),
        (file(*TWO)[:-20], TruncatedError, ErrorCode.FILE_CORRUPT, 104 + len(TWO[0])),
        (file(*TWO, count=3), TruncatedError, ErrorCode.FILE_CORRUPT, len(file(*TWO))),
        (file(*TWO, count=65537), FileCorruptError, ErrorCode.FILE_CORRUPT, 12),
        (file(*TWO, count=2**32 - 1), FileCorruptError, ErrorCode.FILE_CORRUPT, 12),
        (file(*TWO, count=1), FileCorruptError, ErrorCode.FILE_CORRUPT, 32),
        (file(*TWO, total=1), FileCorruptError, ErrorCode.FILE_CORRUPT, 32),
        (file(TWO[0], TWO[0]), FileCorruptError, ErrorCode.FILE_CORRUPT, 104 + len(TWO[0])),
        (file(entry(b"")), FileCorruptError, ErrorCode.FILE_CORRUPT, 104),
        (file(entry(b"k" * 257)), FileCorruptError, ErrorCode.FILE_CORRUPT, 104),
        (file(entry(b"a\0b")), FileCorruptError, ErrorCode.FILE_CORRUPT, 104),
        (file(struct.pack("<II", 3, 2**32 - 1) + entry()[8:]), FileCorruptError, ErrorCode.FILE_CORRUPT, 104),
        (file(struct.pack("<II", 3, 1 << 30) + entry()[8:]), TruncatedError, ErrorCode.FILE_CORRUPT, 104),
        (file(struct.pack("<I", 2) + entry()[4:]), FileCorruptError, ErrorCode.FILE_CORRUPT, 104),
        (file(entry(checksum=1)), ChecksumMismatchError, ErrorCode.CHECKSUM_MISMATCH, 104 + 36),
        (file(*TWO)[:16] + b"!" + file(*TWO)[17:], ChecksumMismatchError, ErrorCode.CHECKSUM_MISMATCH, 8),
    ],
)
def test_each_damage_has_its_error(
    tmp_path: Path, raw: bytes, kind: type[AtlasError], code: ErrorCode, offset: int
) -> None:
    path = tmp_path / "damaged.atlas"
    path.write_bytes(raw)
    with pytest.raises(kind) as caught:
        MemoryFile.load(path)
    error = caught.value
    assert type(error) is kind
    assert (error.code, error.offset, error.path) == (code, offset, str(path))
    assert str(path) in str(error)
    with pytest.raises(kind):
        MemoryFile.load(raw)


def test_a_damaged_payload_hurts_only_itself() -> None:
    raw = file(entry(b"good", b"fine"), entry(b"bad", b"data", checksum=1))
    memory = MemoryFile.open(raw)
    assert memory["good"].data == b"fine"
    bad = memory["bad"]
    for read in (lambda: bad.data, lambda: list(bad.chunks()), bad.verify, lambda: bad.text, bad.json):
        with pytest.raises(ChecksumMismatchError) as caught:
            read()
        assert caught.value.key == "bad"
        assert caught.value.offset == bad.payload_offset


def test_a_damaged_payload_is_not_written_on(tmp_path: Path) -> None:
    """Saving must not turn a detected fault into a file that looks fine."""
    memory = MemoryFile.open(file(entry(b"bad", b"data", checksum=1)))
    for version in (1, 2):
        with pytest.raises(ChecksumMismatchError):
            memory.save(tmp_path / "f", version=version)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("bit", range(8))
def test_every_flipped_bit_is_noticed_or_harmless(bit: int) -> None:
    """No checksum covers entry headers: keys, types and times can change unseen, payloads cannot."""
    raw = file(*TWO)
    payloads = [e.data for e in MemoryFile.load(raw).values()]
    for place in range(len(raw)):
        flipped = bytearray(raw)
        flipped[place] ^= 1 << bit
        try:
            memory = MemoryFile.load(bytes(flipped))
        except AtlasError:
            continue
        assert [e.data for e in memory.values()] == payloads
        assert place >= 104  # the whole header is covered


def test_every_cut_is_noticed() -> None:
    raw = file(*TWO)
    for size in range(len(raw)):
        with pytest.raises(AtlasError):
            MemoryFile.load(raw[:size])


def test_windows_of_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entries across the ends of what is read at a time."""
    from atlas_kit.formats.atlas import v1

    raw = file(*(entry(b"key%03d" % n, b"x" * (1 + n * 7 % 900)) for n in range(200)))
    want = [(e.key, e.data) for e in MemoryFile.load(raw).values()]
    for window in (320, 511, 1000, 4096):
        monkeypatch.setattr(v1, "WINDOW", window)
        memory = MemoryFile.load(raw)
        assert [(e.key, e.data) for e in memory.values()] == want
