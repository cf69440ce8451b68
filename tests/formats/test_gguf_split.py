"""Shards: dealt out within limits, joined to the same bytes, read by the ``gguf`` package and by llama.cpp."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import (
    ARR,
    F16_T,
    I32,
    KV,
    STR,
    U32,
    Array,
    File,
    Tensor,
    split_llama,
    tiny_llama,
    vocab_only,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_oracle import LlamaOracle, OracleUnavailableError

from atlas_kit.errors import FileCorruptError, InvalidParamError, VersionMismatchError
from atlas_kit.formats.gguf import GGUFFile, hash_tensors
from atlas_kit.formats.gguf.shards import cut, shard_name, stem_of
from atlas_kit.formats.gguf.split import joined, plan_shards, write_shard, write_whole
from atlas_kit.storage.source import BytesSource, open_path

TINY = tiny_llama()
CASES: dict[str, File] = {
    "stock": TINY,
    "aligned to 128": tiny_llama(align=128),
    "16-bit": tiny_llama(kind=F16_T),
    "big-endian": File(**{**TINY.__dict__, "order": ">"}),
    "odd values": TINY.with_kv(
        KV("s", STR, b"\xff"), KV("n", ARR, Array(ARR, [Array(I32, [1])])), KV("b", 7, 2)
    ),
}  # fmt: skip


def save(path: Path, file: File) -> Path:
    path.write_bytes(file.bytes())
    return path


def split(path: Path, folder: Path, **limits: Any) -> list[Path]:
    folder.mkdir(exist_ok=True)
    with GGUFFile.open(path) as model:
        shards = plan_shards(model, **limits)
        names = [folder / shard_name("m", shard.number, len(shards)) for shard in shards]
        for shard, name in zip(shards, names, strict=True):
            assert write_shard(name, model, shard, len(shards)) == shard.size == name.stat().st_size
    return names


def join(path: Path, out: Path) -> Path:
    with GGUFFile.open(path) as model:
        write_whole(out, model, joined(model))
    return out


@pytest.mark.parametrize("limits", [{"max_size": 40_000}, {"max_tensors": 4}, {"max_tensors": 1}])
@pytest.mark.parametrize("name", CASES)
def test_there_and_back(tmp_path: Path, name: str, limits: dict[str, int]) -> None:
    path = save(tmp_path / "whole.gguf", CASES[name])
    shards = split(path, tmp_path / "shards", **limits)
    assert len(shards) > 1
    assert join(shards[-1], tmp_path / "back.gguf").read_bytes() == path.read_bytes()


@settings(deadline=None, max_examples=40)
@given(st.integers(6_000, 200_000), st.integers(1, 30), st.booleans())
def test_limits_hold(size: int, count: int, alone: bool) -> None:
    with GGUFFile.from_bytes(TINY.bytes()) as model:
        shards = plan_shards(model, max_size=size, max_tensors=count, metadata_alone=alone)
        assert [t.name for s in shards for t in s.tensors] == list(model.tensors)
        assert all(len(shard.tensors) <= count for shard in shards)
        assert all(shard.size <= size or len(shard.tensors) == 1 for shard in shards if shard.tensors)
        assert all(shard.tensors for shard in shards[1:])
        assert (not shards[0].tensors) == alone
        for one, other in itertools.pairwise(shards):  # none ends before it must
            if one.tensors and len(one.tensors) < count:
                assert one.size + other.tensors[0].nbytes + 32 > size - 100


def test_only_the_first_shard_has_the_metadata(tmp_path: Path) -> None:
    shards = split(save(tmp_path / "w.gguf", CASES["aligned to 128"]), tmp_path, max_tensors=8)
    for number, path in enumerate(shards):
        with GGUFFile.open(path, shards=False) as shard:
            assert (shard.get("split.no"), shard.get("split.count")) == (number, len(shards))
            assert shard.get("split.tensors.count") == len(TINY.tensors)
            assert shard.alignment == 128
            assert ("llama.block_count" in shard.metadata) == (number == 0)


def test_shards_are_dealt_out_anew(tmp_path: Path) -> None:
    path = save(tmp_path / "w.gguf", TINY)
    three = split(path, tmp_path / "a", max_tensors=8)
    again = split(three[1], tmp_path / "b", max_tensors=3)
    assert len(again) == 7
    assert join(again[0], tmp_path / "back.gguf").read_bytes() == path.read_bytes()


def test_what_cannot_be_split(tmp_path: Path) -> None:
    with GGUFFile.from_bytes(vocab_only().bytes()) as model:
        assert [len(shard.tensors) for shard in plan_shards(model, max_size=1)] == [0]
        for limit in ({"max_size": 0}, {"max_tensors": -1}):
            with pytest.raises(InvalidParamError):
                plan_shards(model, **limit)
    with (
        GGUFFile.from_bytes(File(**{**vocab_only().__dict__, "version": 1}).bytes()) as model,
        pytest.raises(VersionMismatchError),
    ):
        plan_shards(model, max_tensors=1)


def test_shards_joined_with_cat_are_taken_apart(tmp_path: Path) -> None:
    files = split_llama(3)
    for parts in (
        files,
        [File(f.kv, f.tensors, pad_last=False) for f in files],
        [*files, File(tail=b"rest")],
    ):
        data = [part.bytes() for part in parts]
        pieces = cut(BytesSource(b"".join(data)))
        assert [piece.read(0, piece.size) for piece in pieces] == data
    path = tmp_path / "cat.gguf"
    path.write_bytes(b"".join(file.bytes() for file in files))
    with pytest.raises(FileCorruptError, match="one after the other"):
        GGUFFile.open(path)
    with open_path(path) as source:
        model = GGUFFile.of_shards([GGUFFile.open(piece, shards=False) for piece in cut(source)])
        with GGUFFile.from_bytes(TINY.bytes()) as whole:
            assert hash_tensors(model) == hash_tensors(whole)


def test_a_shard_without_a_folder_is_not_the_model() -> None:
    data = split_llama(3)[0].bytes()
    with GGUFFile.from_bytes(data) as shard:
        assert len(shard.tensors) == 7
        for use in (shard.require_all_shards, lambda: joined(shard)):
            with pytest.raises(InvalidParamError, match="one of 3 shards"):
                use()


def test_tensors_are_found_in_shards_that_share_a_path() -> None:
    data = b"".join(file.bytes() for file in split_llama(3))
    model = GGUFFile.of_shards([GGUFFile.open(p, shards=False) for p in cut(BytesSource(data, "cat.gguf"))])
    with GGUFFile.from_bytes(TINY.bytes()) as whole:
        for info in model.tensor_infos:
            assert b"".join(model.iter_raw(info)) == b"".join(whole.iter_raw(info.name))


@pytest.mark.parametrize(
    ("file", "stem"),
    [
        ("a/m.gguf", "a/m"),
        ("a/m-00002-of-00003.gguf", "a/m"),
        ("m.GGUF", "m"),
        ("m", "m"),
        ("a.gguf/m.bin", "a.gguf/m.bin"),
    ],
)
def test_stem(file: str, stem: str) -> None:
    assert stem_of(file) == stem


# --- other readers and writers ------------------------------------------------------------------------------


def test_the_gguf_package_reads_our_shards(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    shards = split(save(tmp_path / "w.gguf", TINY), tmp_path, max_size=50_000)
    names = []
    for path in shards:
        reader = gguf.GGUFReader(path)
        for tensor in reader.tensors:
            twin = next(t for t in TINY.tensors if t.name == tensor.name)
            assert tensor.data.tobytes() == twin.payload
            names.append(tensor.name)
    assert names == [tensor.name for tensor in TINY.tensors]


@pytest.mark.parametrize("small_first", [False, True])
def test_shards_of_the_gguf_package_are_joined(tmp_path: Path, small_first: bool) -> None:
    gguf = pytest.importorskip("gguf", reason="gguf is not installed")
    import numpy as np

    def write(path: Path, **options: Any) -> None:
        writer = gguf.GGUFWriter(path, "llama", **options)
        writer.add_block_count(1)
        writer.add_array("tokenizer.ggml.tokens", ["a", "b"])
        for number in range(7):
            writer.add_tensor(f"t{number}", np.full((3, number + 1), number, np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    write(tmp_path / "whole.gguf")
    write(tmp_path / "m.gguf", split_max_tensors=3, small_first_shard=small_first)
    first = min(tmp_path.glob("m-*.gguf"))
    assert len(list(tmp_path.glob("m-*.gguf"))) == 3 + small_first
    back = join(first, tmp_path / "back.gguf")
    with GGUFFile.open(back) as ours, GGUFFile.open(tmp_path / "whole.gguf") as whole:
        assert {k: repr(f.items) for k, f in ours.metadata.items()} == {
            k: repr(f.items) for k, f in whole.metadata.items()
        }
        assert hash_tensors(ours) == hash_tensors(whole)


def test_llama_cpp_loads_shards_and_what_they_join_to(tmp_path: Path) -> None:
    path = save(tmp_path / "w.gguf", TINY)
    shards = split(path, tmp_path, max_size=50_000)
    alone = split(path, tmp_path / "alone", max_tensors=5, metadata_alone=True)
    aligned = split(save(tmp_path / "l.gguf", CASES["aligned to 128"]), tmp_path / "l", max_tensors=5)
    back = join(shards[0], tmp_path / "back.gguf")
    try:
        with LlamaOracle() as oracle:
            for one in (path, shards[0], alone[0], aligned[0], back):
                assert oracle.load(one).ok, one
            shards[1].unlink()
            assert not oracle.load(shards[0]).ok
    except OracleUnavailableError as error:
        pytest.skip(str(error))


def test_llama_cpp_says_the_same(tmp_path: Path, random_model: Any, real: Any) -> None:
    import numpy as np

    from atlas_kit.llama.engine import Feed

    path = random_model("llama", "f16")
    shards = split(path, tmp_path, max_tensors=5)
    back = join(shards[0], tmp_path / "back.gguf")
    assert len(shards) > 2
    said = []
    for one in (path, shards[0], back):
        engine = real(path=one)
        (out,) = engine.decode([Feed(0, [1, 5, 9, 3], 0, 4)])
        said.append(np.asarray(out.logits))
    assert np.array_equal(said[0], said[1])
    assert np.array_equal(said[0], said[2])


def test_tensor_names_must_differ(tmp_path: Path) -> None:
    twice = File(TINY.kv, (*TINY.tensors, Tensor("output_norm.weight", (32,))))
    with GGUFFile.from_bytes(twice.bytes()) as model, pytest.raises(InvalidParamError, match="twice"):
        plan_shards(model, max_tensors=4)


def test_keys_of_an_older_split_go(tmp_path: Path) -> None:
    """llama-gguf-split --merge leaves ``split.count`` 0 behind."""
    merged = TINY.with_kv(KV("split.no", 2, 0), KV("split.count", 2, 0), KV("split.tensors.count", U32, 21))
    shards = split(save(tmp_path / "w.gguf", merged), tmp_path, max_tensors=8)
    assert join(shards[0], tmp_path / "back.gguf").read_bytes() == TINY.bytes()
