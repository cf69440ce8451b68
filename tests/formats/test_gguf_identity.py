"""The identity of a model: as specified, blind to what does not matter, and not to what does."""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import (
    F16_T,
    F32_T,
    GGML,
    KV,
    Q8_0_T,
    STR,
    U32,
    File,
    Tensor,
    kv_bytes,
    split_llama,
    tensor_bytes,
    tiny_llama,
    vocab_only,
)
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import FileCorruptError, InvalidParamError, TruncatedError
from atlas_kit.formats.gguf import GGUFFile, Set, edit_metadata, model_identity, to_native
from atlas_kit.formats.gguf.digest import BLOCK, sampled
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.storage.source import Source

FILE = Path(__file__).resolve().parents[2] / "formats" / "vectors" / "gguf.json"
VECTORS = json.loads(FILE.read_text(encoding="utf-8"))["identities"]["models"]
I8_T = 24
GGML_WITH_I8 = {**GGML, I8_T: (1, 1)}


def pattern(size: int, seed: int) -> bytes:
    """The bytes of a tensor in the vectors."""
    return bytes((167 * i + i // 256 + seed) % 251 for i in range(size))


def nbytes(dims: tuple[int, ...], kind: int) -> int:
    count = 1
    for dim in dims:
        count *= dim
    block, size = GGML_WITH_I8[kind]
    return count // block * size


def reference(tensors: list[tuple[str, tuple[int, ...], int, bytes]], full: bool) -> str:
    """The specification once more, in its plainest form."""
    blocks = min(8, max(2, 4096 // len(tensors)))
    records = {}
    for name, dims, kind, data in tensors:
        sample = data
        if not full and len(data) > blocks * 4096:
            starts = [(len(data) - 4096) * i // (blocks - 1) for i in range(blocks)]
            sample = b"".join(data[start : start + 4096] for start in starts)
        raw = name.encode()
        records[raw] = (
            struct.pack("<Q", len(raw))
            + raw
            + struct.pack(f"<iI{len(dims)}Q", kind, len(dims), *dims)
            + hashlib.sha256(sample).digest()
        )
    tag = b"atlas-model-identity-full-1\0" if full else b"atlas-model-identity-1\0"
    return hashlib.sha256(tag + b"".join(records[name] for name in sorted(records))).hexdigest()


def opened(tensors: list[tuple[str, tuple[int, ...], int, bytes]]) -> GGUFFile:
    made = [Tensor(name, dims, kind, data) for name, dims, kind, data in tensors]
    return GGUFFile.from_bytes(File((), tuple(made)).bytes())


@pytest.mark.parametrize("vector", VECTORS, ids=lambda v: v["what"][:30])
def test_vectors(vector: dict[str, Any]) -> None:
    tensors = []
    for row in vector["tensors"]:
        dims = tuple(row["dims"])
        data = pattern(nbytes(dims, row["type"]), row["seed"])
        tensors.append((row["name"], dims, row["type"], data))
    file = opened(tensors)
    assert model_identity(file) == vector["identity"] == reference(tensors, False)
    assert model_identity(file, full=True) == vector["identity_full"] == reference(tensors, True)


def test_there_are_sampled_and_whole_tensors_in_the_vectors() -> None:
    sizes = [nbytes(tuple(t["dims"]), t["type"]) for v in VECTORS for t in v["tensors"]]
    assert min(sizes) < BLOCK
    assert max(sizes) > 8 * BLOCK
    assert 8 * BLOCK in sizes


@pytest.mark.parametrize("count", [511, 513, 600, 2048, 2049, 5000])
def test_many_tensors_get_fewer_blocks(count: int) -> None:
    tensors = [(f"t{i}", (4,), I8_T, pattern(4, i)) for i in range(count - 1)]
    tensors.append(("large", (40_000,), I8_T, pattern(40_000, 9)))
    assert model_identity(opened(tensors)) == reference(tensors, False)


@given(size=st.integers(0, 1 << 40), blocks=st.integers(2, 8))
def test_blocks_lie_inside_and_apart(size: int, blocks: int) -> None:
    ranges = sampled(TensorInfo("t", (size,), I8_T, 0), blocks)
    assert ranges[0][0] == 0
    assert ranges[-1][0] + ranges[-1][1] == size
    assert sum(length for _, length in ranges) <= blocks * BLOCK
    for (start, length), (following, _) in itertools.pairwise(ranges):
        assert start + length <= following


# --- what does not matter ------------------------------------------------------------------------------------


def test_the_same_model_in_other_files(tmp_path: Path) -> None:
    whole = tiny_llama(kind=Q8_0_T)
    path = tmp_path / "stock.gguf"
    path.write_bytes(whole.bytes())

    def identities(path: Path) -> tuple[str, str]:
        with GGUFFile.open(path) as file:
            return model_identity(file), model_identity(file, full=True)

    wanted = identities(path)
    assert wanted[0] != wanted[1]
    assert all(len(text) == 64 and bytes.fromhex(text) for text in wanted)
    for index, part in enumerate(split_llama(3, kind=Q8_0_T)):
        (tmp_path / f"m-0000{index + 1}-of-00003.gguf").write_bytes(part.bytes())
    to_native(path, tmp_path / "native.gguf", values={"memory.window_size": 7})
    reordered = dataclasses.replace(whole, tensors=whole.tensors[::-1])
    (tmp_path / "reordered.gguf").write_bytes(reordered.bytes())
    (tmp_path / "aligned.gguf").write_bytes(tiny_llama(kind=Q8_0_T, align=128).bytes())
    (tmp_path / "trailing.gguf").write_bytes(whole.bytes() + b"more")
    (tmp_path / "renamed.GGUF").write_bytes(whole.bytes())
    edit_metadata(tmp_path / "renamed.GGUF", [Set("general.name", "other")])
    others = [p for p in tmp_path.iterdir() if p != path]
    assert len(others) == 8
    assert {identities(other) for other in others} == {wanted}


# --- what does -----------------------------------------------------------------------------------------------


def test_every_sampled_byte_counts() -> None:
    data = bytearray(100_000)
    tensors = [("a", (100_000,), I8_T, bytes(data))]
    wanted = model_identity(opened(tensors))
    (last,) = sampled(TensorInfo("a", (100_000,), I8_T, 0), 8)[-1:]
    for place in (
        0,
        BLOCK - 1,
        *(start for start, _ in sampled(TensorInfo("a", (100_000,), I8_T, 0), 8)),
        99_999,
    ):
        changed = bytearray(data)
        changed[place] ^= 1
        assert model_identity(opened([("a", (100_000,), I8_T, bytes(changed))])) != wanted
    changed = bytearray(data)
    changed[BLOCK] ^= 1  # between two blocks: what the specification says cannot be seen
    file = opened([("a", (100_000,), I8_T, bytes(changed))])
    assert model_identity(file) == wanted
    assert model_identity(file, full=True) != model_identity(opened(tensors), full=True)
    assert last == (100_000 - BLOCK, BLOCK)


@pytest.mark.parametrize(
    "other",
    [
        [("b", (8,), F32_T, bytes(32))],
        [("a", (4, 2), F32_T, bytes(32))],
        [("a", (16,), F16_T, bytes(32))],
        [("a", (8,), F32_T, bytes(31) + b"\1")],
        [("a", (8,), F32_T, bytes(32)), ("c", (8,), F32_T, bytes(32))],
    ],
)
def test_names_types_and_dimensions_count(other: list[Any]) -> None:
    assert model_identity(opened(other)) != model_identity(opened([("a", (8,), F32_T, bytes(32))]))


# --- files that have none ------------------------------------------------------------------------------------


def test_a_vocabulary_has_no_identity() -> None:
    with pytest.raises(InvalidParamError, match="no tensors"):
        model_identity(GGUFFile.from_bytes(vocab_only().bytes()))


def test_a_tensor_that_is_cut_off() -> None:
    data = tiny_llama().bytes()
    with pytest.raises(TruncatedError, match=r"file ends"):
        model_identity(GGUFFile.from_bytes(data[:-5000]))


def test_a_tensor_of_an_unknown_type() -> None:
    file = tiny_llama().with_tensor("output.weight", type=99)
    with pytest.raises(FileCorruptError, match="size is not known"):
        model_identity(GGUFFile.from_bytes(file.bytes()))


# --- large files ---------------------------------------------------------------------------------------------


def test_a_hundred_gigabytes_cost_sixteen_megabytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [Tensor(f"blk.{i // 9}.t{i % 9}.weight", (8192, 15258), F16_T) for i in range(400)]
    pairs = (KV("general.architecture", STR, "llama"), KV("general.alignment", U32, 32))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(pairs))
    header += b"".join(kv_bytes(pair) for pair in pairs)
    offset = 0
    for tensor in tensors:
        header += tensor_bytes(tensor, offset)
        offset += tensor.nbytes
    path = tmp_path / "sparse.gguf"
    with open(path, "wb") as out:
        out.write(header)
        try:
            out.truncate(-len(header) % 32 + len(header) + offset)
        except OSError as error:
            pytest.skip(f"no sparse files here: {error}")
    assert path.stat().st_size > 99e9
    read = 0
    plain = Source.read

    def counted(self: Source, at: int, size: int) -> bytes:
        nonlocal read
        read += size
        return plain(self, at, size)

    told: list[int] = []
    with GGUFFile.open(path) as file:
        monkeypatch.setattr(Source, "read", counted)
        before = model_identity(file, progress=told.append)
    assert read == told[-1] == 400 * 8 * BLOCK
    with open(path, "r+b") as out:
        out.seek(-1, 2)
        out.write(b"\1")
    with GGUFFile.open(path) as file:
        assert model_identity(file) != before
