"""Entries: lazy, checked when read, bounded in memory, and clear about what is wrong."""

from __future__ import annotations

import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.codecs import table
from atlas_kit.errors import (
    AtlasError,
    ChecksumMismatchError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    TruncatedError,
)
from atlas_kit.formats.atlas import Entry, MemoryFile, entry
from atlas_kit.formats.atlas.entry import MemoryPayload, make_entry


def saved(path: Path, value: Any, **options: Any) -> Entry:
    memory = MemoryFile()
    memory.set("the key", value, **options)
    memory.save(path)
    return MemoryFile.open(path)["the key"]


def test_text_json_and_their_errors(tmp_path: Path) -> None:
    assert saved(tmp_path / "f", b"\xff a").text == "\udcff a"
    assert saved(tmp_path / "f", b'{"a": 1}').json() == {"a": 1}
    for bad in (b"", b"{", b"\xff", b"[" * 100_000):
        with pytest.raises(FileCorruptError, match="not JSON") as caught:
            saved(tmp_path / "f", bad).json()
        assert caught.value.key == "the key"


def test_what_is_not_a_tensor(tmp_path: Path) -> None:
    e = saved(tmp_path / "f", b"bytes")
    assert (e.dtype, e.shape) == (None, None)
    with pytest.raises(InvalidParamError, match="not a tensor") as caught:
        e.array()
    assert caught.value.key == "the key"


def test_damage_is_told_with_its_place(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for codec in ("none", "zstd"):
        e = saved(path, np.zeros(1000), codec=codec)
        raw = bytearray(path.read_bytes())
        raw[e.payload_offset + 5] ^= 1  # type: ignore[operator]
        path.write_bytes(raw)
        e = MemoryFile.open(path)["the key"]
        for how in ("data", "chunks", "verify", "array"):
            with pytest.raises(FileCorruptError) as caught:
                read(e, how)
            error = caught.value
            assert (error.key, error.path, error.offset) == ("the key", str(path), e.payload_offset)
    with pytest.raises(ChecksumMismatchError):
        read(saved_bad(path), "data")


def read(e: Entry, how: str) -> object:
    if how == "chunks":
        return list(e.chunks())
    if how == "verify":
        return e.verify()
    return e.data if how == "data" else e.array(verify=True)


def saved_bad(path: Path) -> Entry:
    e = saved(path, b"payload")
    raw = path.read_bytes().replace(b"payload", b"pAyload")
    path.write_bytes(raw)
    return MemoryFile.open(path)[e.key]


def test_a_view_is_not_checked_unless_asked(tmp_path: Path) -> None:
    """Documented: a zero-copy view costs nothing, which a checksum would."""
    path = tmp_path / "f"
    e = saved(path, np.zeros(4, np.uint8))
    raw = bytearray(path.read_bytes())
    raw[e.payload_offset] = 9  # type: ignore[index]
    path.write_bytes(raw)
    e = MemoryFile.open(path)["the key"]
    assert e.array().tolist() == [9, 0, 0, 0]
    with pytest.raises(ChecksumMismatchError):
        e.array(verify=True)


def test_a_file_that_shrinks_under_an_entry(tmp_path: Path) -> None:
    path = tmp_path / "f"
    e = saved(path, np.zeros(100_000))
    with open(path, "r+b") as file:
        file.truncate(1000)
    for read in (lambda: e.data, lambda: list(e.chunks()), e.verify, e.array):
        with pytest.raises(TruncatedError, match="shorter"):
            read()


@pytest.mark.parametrize("codec", ["none", "lz4", "zlib", "zstd"])
def test_chunks_need_little_memory(tmp_path: Path, codec: str) -> None:
    e = saved(tmp_path / "f", np.arange(4_000_000, dtype=np.float64), codec=codec)
    tracemalloc.start()
    try:
        size = sum(len(piece) for piece in e.chunks())
        e.verify()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert size == 32_000_000
    assert peak < 12 << 20


@pytest.mark.parametrize("codec", [codec.name for codec in table.CODECS])
def test_data_gives_decoders_small_pieces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str
) -> None:
    """Decoders copy their unused input again and again: one large piece would take the square of its size."""
    noise = np.random.default_rng(1).integers(0, 64, 5_000_000, dtype=np.uint8)
    e = saved(tmp_path / "f", noise, codec=codec)
    longest = 0
    decode = table.Codec.decode_chunks

    def watched(self: table.Codec, chunks: Any, size: int) -> Any:
        def watch() -> Any:
            nonlocal longest
            for chunk in chunks:
                longest = max(longest, len(chunk))
                yield chunk

        return decode(self, watch(), size)

    monkeypatch.setattr(table.Codec, "decode_chunks", watched)
    assert e.data == noise.tobytes()
    assert e.codec in (codec, "none")  # lz4 finds nothing in this noise
    assert longest <= table.STEP


def test_suspicious_claims_are_read_in_pieces_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry, "SUSPICIOUS_SIZE", 1 << 20)
    e = saved(tmp_path / "f", bytes(3 << 20), codec="zstd")
    with pytest.raises(DataTooLargeError, match="claim to unpack"):
        read(e, "data")
    assert sum(map(len, e.chunks())) == 3 << 20
    e.verify()


def test_replace_and_equality() -> None:
    e = make_entry("k", "text", timestamp=3)
    other = e.replace(key="j", flags=9)
    assert (other.key, other.flags, other.text, e.key, e.flags) == ("j", 9, "text", "k", 0)
    assert e == make_entry("k", "text", timestamp=3)
    assert e != other
    assert e != make_entry("k", "text", timestamp=4)
    assert e != "text"
    with pytest.raises(TypeError):
        hash(e)


def test_repr_is_one_short_line() -> None:
    assert repr(make_entry("k", "text")) == "<Entry 'k' text 4 bytes>"
    assert repr(make_entry("t", np.zeros((2, 3), np.float32))) == "<Entry 't' context float32[2, 3]>"
    assert "\n" not in repr(make_entry("a\nb", b"x" * 1000, type=77))


def test_arrays_are_kept_by_reference(tmp_path: Path) -> None:
    array = np.zeros(10)
    memory = MemoryFile()
    memory["t"] = array
    array[3] = 7
    memory.save(tmp_path / "f")
    assert MemoryFile.open(tmp_path / "f")["t"].array()[3] == 7


def test_an_entry_without_file() -> None:
    e = make_entry("t", np.arange(4, dtype="<f4"))
    assert e.array().tolist() == [0, 1, 2, 3]
    assert not e.array().flags.writeable
    assert e.data == np.arange(4, dtype="<f4").tobytes()
    e.verify()
    assert list(Entry("k", MemoryPayload(b"")).chunks()) == []


def test_errors_are_ours() -> None:
    for value, options in ((b"123", {"dtype": "float32"}), (b"", {"dtype": "?"}), (b"1234", {"shape": (5,)})):
        with pytest.raises(AtlasError):
            make_entry("k", value, **options)  # type: ignore[arg-type]
