"""GGUF -> ATLAS-native GGUF and back: nothing lost, and the original bytes again."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
from gguf_builder import (
    ARR,
    BOOL,
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
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from llama_oracle import LlamaOracle, OracleUnavailableError

from atlas_kit.errors import InvalidParamError, NoSuchFileError, VersionMismatchError
from atlas_kit.formats.gguf import Delete, GGUFFile, Set, edit_metadata, hash_tensors, to_native, to_stock
from atlas_kit.formats.gguf.native import is_native

TINY = tiny_llama(layers=1)


def save(path: Path, file: File | bytes) -> Path:
    path.write_bytes(file if isinstance(file, bytes) else file.bytes())
    return path


def odd_padding() -> bytes:
    """A model whose padding before the tensor data is not zeros."""
    start = GGUFFile.from_bytes(TINY.bytes())
    assert start.data_start > start.header_size
    data = bytearray(TINY.bytes())
    data[start.header_size : start.data_start] = b"\xa5" * (start.data_start - start.header_size)
    return bytes(data)


CASES = {
    "stock": TINY.bytes,
    "aligned-64": tiny_llama(layers=1, align=64).bytes,
    "big-endian": dataclasses.replace(TINY, order=">").bytes,
    "version-2": dataclasses.replace(TINY, version=2).bytes,
    "trailing-bytes": lambda: TINY.bytes() + b"appended by somebody",
    "last-not-padded": lambda: dataclasses.replace(
        TINY, tensors=(*TINY.tensors, Tensor("odd", (3,), 0, b"x" * 12)), pad_last=False
    ).bytes(),
    "odd-padding": odd_padding,
    "vocabulary": vocab_only().bytes,
    "vocabulary-padded": lambda: vocab_only().bytes() + bytes(-len(vocab_only().bytes()) % 32),
    "vocabulary-trailing": lambda: vocab_only().bytes() + bytes(100) + b"x",
    "truncated-data": lambda: TINY.bytes()[:-1000],
    "cut-in-padding": lambda: odd_padding()[: GGUFFile.from_bytes(TINY.bytes()).header_size + 1],
    "odd-values": File(
        (KV("b", BOOL, 2), KV("s", STR, b"\xff"), KV("n", ARR, Array(ARR, [Array(I32, [1])])))
    ).bytes,
    "duplicates": File((KV("k", U32, 1), KV("k", U32, 2))).bytes,
    "reserved-space": TINY.with_kv(KV("atlas.pad", STR, " " * 50)).bytes,
    "some-atlas-keys": TINY.with_kv(KV("atlas.config", STR, "{}"), KV("atlas.layer_count", U32, 9)).bytes,
    "empty": File().bytes,
}


@pytest.mark.parametrize("name", CASES)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    original = CASES[name]()
    stock = save(tmp_path / "stock.gguf", original)
    native, back = tmp_path / "native.gguf", tmp_path / "back.gguf"
    there = to_native(stock, native)
    again = to_stock(native, back)
    assert back.read_bytes() == original
    assert again.exact is True
    assert set(again.keys) == set(there.keys)
    assert stock.read_bytes() == original


@pytest.mark.parametrize("name", ["stock", "big-endian", "vocabulary"])
def test_everything_is_kept(tmp_path: Path, name: str) -> None:
    stock = save(tmp_path / "stock.gguf", CASES[name]())
    to_native(stock, tmp_path / "native.gguf", values={"batch_size": 32, "atlas.config": {"a": [1]}})
    with GGUFFile.open(stock) as old, GGUFFile.open(tmp_path / "native.gguf") as new:
        assert is_native(new)
        assert not is_native(old)
        kept = [f for f in new.fields if not f.key.startswith("atlas.")]
        assert [(f.key, f.type, f.element_type, repr(f.items)) for f in kept] == [
            (f.key, f.type, f.element_type, repr(f.items)) for f in old.fields
        ]
        assert [f.key for f in new.fields][: len(old.fields)] == [f.key for f in old.fields]
        assert hash_tensors(new) == hash_tensors(old)
        assert new.get("atlas.version") == 1
        assert new.get("atlas.enabled") is True
        assert json.loads(new.get("atlas.config")) == {"a": [1]}
        assert new.metadata["atlas.batch_size"].type_name == "u32"


def test_values_follow_from_the_model(tmp_path: Path) -> None:
    stock = save(tmp_path / "stock.gguf", tiny_llama(layers=3))
    to_native(stock, tmp_path / "n.gguf", values={"seq_length": 7})
    with GGUFFile.open(tmp_path / "n.gguf") as file:
        assert (file.get("atlas.layer_count"), file.get("atlas.head_count")) == (3, 2)
        assert file.get("atlas.seq_length") == 7
        assert "atlas.storage_policy" not in file.metadata
        assert not any(info.name.startswith("atlas.") for info in file.tensor_infos)


def test_heads_that_differ_by_layer_are_left_out(tmp_path: Path) -> None:
    model = TINY.with_kv(KV("llama.attention.head_count", ARR, Array(I32, [2, 4])))
    to_native(save(tmp_path / "s.gguf", model), tmp_path / "n.gguf")
    with GGUFFile.open(tmp_path / "n.gguf") as file:
        assert "atlas.head_count" not in file.metadata


@pytest.mark.parametrize(
    "values", [{"version": -1}, {"layer_count": "x"}, {"source.hash": "x"}, {"pad": "x"}, {"other": None}]
)
def test_values_that_do_not_fit(tmp_path: Path, values: dict[str, object]) -> None:
    stock = save(tmp_path / "s.gguf", TINY)
    with pytest.raises(InvalidParamError):
        to_native(stock, tmp_path / "n.gguf", values=values)
    assert not (tmp_path / "n.gguf").exists()


def test_files_that_cannot_be_converted(tmp_path: Path) -> None:
    stock = save(tmp_path / "s.gguf", TINY)
    native = tmp_path / "n.gguf"
    to_native(stock, native)
    with pytest.raises(InvalidParamError, match="already"):
        to_native(native, tmp_path / "x.gguf")
    with pytest.raises(InvalidParamError, match=r"no atlas\.\* keys"):
        to_stock(stock, tmp_path / "x.gguf")
    second = save(tmp_path / "m-00002-of-00003.gguf", split_llama(3)[1])
    with pytest.raises(NoSuchFileError, match="2 of 3 shards"):
        to_native(second, tmp_path / "x.gguf")
    (tmp_path / "other").mkdir()
    with pytest.raises(InvalidParamError, match="first shard"):
        to_native(second, tmp_path / "other" / second.name)
    old = save(tmp_path / "v1.gguf", File((KV("a", U32, 1),), version=1))
    with pytest.raises(VersionMismatchError):
        to_native(old, tmp_path / "x.gguf")
    has = save(tmp_path / "h.gguf", TINY.with_kv(KV("atlas.config", STR, "{}")))
    with pytest.raises(InvalidParamError, match="already"):
        to_native(has, tmp_path / "x.gguf", values={"config": "{}"})


@pytest.mark.parametrize("shard", [0, 2])
def test_a_split_model_becomes_one_file(tmp_path: Path, shard: int) -> None:
    paths = [save(tmp_path / f"m-{i + 1:05d}-of-00003.gguf", f) for i, f in enumerate(split_llama(3))]
    to_native(paths[shard], tmp_path / "native.gguf", values={"batch_size": 32})
    with GGUFFile.open(tmp_path / "native.gguf") as native, GGUFFile.open(paths[0]) as model:
        assert is_native(native)
        assert not any(key.startswith("split.") for key in native.metadata)
        assert hash_tensors(native) == hash_tensors(model)
    assert to_stock(tmp_path / "native.gguf", tmp_path / "back.gguf").exact is True
    assert (tmp_path / "back.gguf").read_bytes() == tiny_llama().bytes()


def test_the_first_shard_is_converted_alone(tmp_path: Path) -> None:
    first, second = split_llama(2)
    name = "m-00001-of-00002.gguf"
    stock = save(tmp_path / name, first)
    (tmp_path / "native").mkdir()
    save(tmp_path / "native" / "m-00002-of-00002.gguf", second)
    to_native(stock, tmp_path / "native" / name)
    with GGUFFile.open(tmp_path / "native" / name) as model:
        assert is_native(model)
        assert model.is_split
    to_stock(tmp_path / "native" / name, tmp_path / name)
    assert (tmp_path / name).read_bytes() == first.bytes()
    with pytest.raises(InvalidParamError, match="several files"):
        to_stock(tmp_path / "native" / name, tmp_path / "x.gguf")


def test_a_file_of_the_fork_loses_its_keys(tmp_path: Path) -> None:
    """It does not say what it was made from, so nothing is promised about exactness."""
    fork = TINY.with_kv(
        KV("atlas.version", U32, 1), KV("atlas.enabled", BOOL, 1), KV("atlas.other", STR, "x")
    )
    result = to_stock(save(tmp_path / "f.gguf", fork), tmp_path / "s.gguf")
    assert result.exact is None
    assert (tmp_path / "s.gguf").read_bytes() == TINY.bytes()
    with pytest.raises(InvalidParamError, match="already"):
        to_native(tmp_path / "f.gguf", tmp_path / "x.gguf")


def test_atlas_tensors_are_reported(tmp_path: Path) -> None:
    model = dataclasses.replace(TINY, tensors=(*TINY.tensors, Tensor("atlas.attn.0.w", (8,))))
    result = to_native(save(tmp_path / "s.gguf", model), tmp_path / "n.gguf")
    assert "stock llama.cpp does not load" in result.notes[0]


def test_edits_in_between(tmp_path: Path) -> None:
    """Our keys may change, shrink and grow in place; the model's own edits survive and are admitted."""
    stock = save(tmp_path / "s.gguf", TINY)
    native, back = tmp_path / "n.gguf", tmp_path / "b.gguf"
    to_native(stock, native, values={"config": "x" * 500})
    edit_metadata(native, [Set("atlas.config", "{}"), Set("atlas.batch_size", 8)])
    edit_metadata(native, [Delete("atlas.batch_size")])
    assert to_stock(native, back).exact is True
    assert back.read_bytes() == stock.read_bytes()
    edit_metadata(native, [Set("general.name", "other")])
    assert to_stock(native, back).exact is False
    with GGUFFile.open(back) as file:
        assert file.get("general.name") == "other"
        assert not any(f.key.startswith("atlas.") for f in file.fields)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=70),
    alignment=st.sampled_from([8, 32, 128]),
    padding=st.binary(max_size=3),
    tail=st.binary(max_size=50),
    tensors=st.booleans(),
)
def test_there_and_back_for_any_shape(tmp_path: Path, text, alignment, padding, tail, tensors) -> None:
    infos = (Tensor("t", (4,), 0, bytes(range(16))),) if tensors else ()
    pairs = (KV("general.alignment", U32, alignment), KV("text", STR, text))
    file = File(pairs, infos, align=alignment, tail=tail)
    data = bytearray(file.bytes())
    opened = GGUFFile.from_bytes(bytes(data))
    room = min(opened.data_start, len(data)) - opened.header_size
    data[opened.header_size : opened.header_size + min(room, len(padding))] = padding[: max(room, 0)]
    stock = save(tmp_path / "s.gguf", bytes(data))
    to_native(stock, tmp_path / "n.gguf")
    assert to_stock(tmp_path / "n.gguf", tmp_path / "b.gguf").exact is True
    assert (tmp_path / "b.gguf").read_bytes() == bytes(data)


@pytest.mark.model
def test_stock_llama_cpp_still_loads_it(tmp_path: Path) -> None:
    try:
        with LlamaOracle() as oracle:
            to_native(save(tmp_path / "s.gguf", TINY), tmp_path / "n.gguf", values={"config": {"a": 1}})
            edit_metadata(tmp_path / "n.gguf", [Delete("atlas.config")])  # leaves reserved space behind
            assert oracle.load(tmp_path / "n.gguf").ok
            atlas = dataclasses.replace(TINY, tensors=(*TINY.tensors, Tensor("atlas.attn.0.w", (8,))))
            assert "wrong number of tensors" in oracle.load(save(tmp_path / "a.gguf", atlas)).reason
    except OracleUnavailableError as error:
        pytest.skip(str(error))
