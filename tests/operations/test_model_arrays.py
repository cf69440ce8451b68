"""A model's tensors as safetensors and npz, and a model in the other byte order, judged by other people's readers."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFReader, quants
from gguf_builder import F16_T, KV, Q8_0_T, STR, File, Tensor, split_llama, tiny_llama
from safetensors import safe_open

from atlas_kit.formats.gguf import GGUFFile, write_gguf
from atlas_kit.formats.gguf.tables import GGML_TYPES
from atlas_kit.formats.gguf.write import TensorSource


def every_type() -> dict[str, tuple[int, np.ndarray[Any, Any]]]:
    """Return random blocks of every type that ``gguf`` can dequantise, without NaN."""
    rng = np.random.default_rng(5)
    made = {}
    for row in GGML_TYPES:
        try:
            kind = GGMLQuantizationType(int(row.type))
            blocks = rng.integers(0, 60, (3, 2 * row.size), np.uint8)
            quants.dequantize(blocks, kind)
        except (NotImplementedError, ValueError):
            continue
        made[row.type.name] = int(row.type), blocks
    assert len(made) > 20
    return made


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("arrays") / "all.gguf"
    sources = []
    for name, (kind, blocks) in every_type().items():
        row = next(row for row in GGML_TYPES if row.type == kind)
        dims = (2 * row.block, 3)
        sources.append(TensorSource(name, dims, kind, blocks.tobytes(), blocks.nbytes))
    sources.append(TensorSource("I32", (3, 2, 1), 26, np.arange(6, dtype="<i4").tobytes(), 24))
    sources.append(TensorSource("empty", (0, 4), 0, b"", 0))
    write_gguf(path, [], sources)
    return path


def open_arrays(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return what the reference implementations read, and the side record."""
    if path.suffix == ".npz":
        with np.load(path) as arrays:
            found = {name: arrays[name] for name in arrays.files}
        return found, json.loads(found.pop("__gguf__").tobytes())
    with safe_open(path, "np") as file:
        names = [name for name in file.keys() if file.get_slice(name).get_dtype() != "BF16"]  # noqa: SIM118
        return {name: file.get_tensor(name) for name in names}, json.loads(file.metadata()["gguf"])


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_raw(model: Path, tmp_path: Path, run_cli: Callable[..., Any], suffix: str) -> None:
    out = tmp_path / f"raw{suffix}"
    result = run_cli("convert", model, out)
    assert result.exit_code == 0, result.stderr
    assert "became their blocks" in result.stdout
    arrays, side = open_arrays(out)
    types = {row["name"]: row["type"] for row in side["tensors"]}
    for name, (kind, blocks) in every_type().items():
        assert types[name] == name
        if name == "BF16" and suffix == ".safetensors":
            continue
        assert arrays[name].tobytes() == blocks.tobytes()
        plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8", "BF16": "<u2"}.get(name)
        assert arrays[name].dtype == np.dtype(plain or "u1"), (name, kind)
        assert arrays[name].shape[0] == 3
    assert arrays["I32"].tolist() == [[[0, 1, 2], [3, 4, 5]]]
    assert arrays["empty"].shape == (4, 0)
    assert run_cli("validate", out).exit_code == 0


@pytest.mark.parametrize("suffix", [".safetensors", ".npz"])
def test_dequantised(model: Path, tmp_path: Path, run_cli: Callable[..., Any], suffix: str) -> None:
    out = tmp_path / f"numbers{suffix}"
    assert run_cli("convert", model, out, "--dequantize").exit_code == 0
    arrays, _ = open_arrays(out)
    for name, (kind, blocks) in every_type().items():
        if name == "BF16" and suffix == ".safetensors":
            continue
        wanted = quants.dequantize(blocks, GGMLQuantizationType(kind))
        kept = {"F16": np.float16, "F64": np.float64}.get(name, np.float32)
        assert arrays[name].dtype == kept
        if name in ("F64", "F16"):
            wanted = blocks.view(kept)
        np.testing.assert_array_equal(arrays[name], wanted)


def test_metadata_go_along(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama().with_kv(KV("odd", STR, b"\xff\x1b")).bytes())
    for suffix in (".safetensors", ".npz"):
        assert run_cli("convert", path, tmp_path / f"a{suffix}").exit_code == 0
        _, side = open_arrays(tmp_path / f"a{suffix}")
        values = {row["key"]: row.get("value") for row in side["metadata"]}
        assert values["llama.block_count"] == 2
        assert len(values["tokenizer.ggml.tokens"]) == 288
        assert "odd" in values


def test_names_that_a_target_does_not_allow(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    names = ["../../etc/passwd", "__metadata__", "__gguf__", "tensor-0", "\udcff", "a:b", "/x", ""]
    tensors = tuple(Tensor(name, (2,), 0, bytes([i] * 8)) for i, name in enumerate(names))
    path = tmp_path / "m.gguf"
    path.write_bytes(File((), tensors).bytes())
    for suffix in (".safetensors", ".npz"):
        out = tmp_path / f"a{suffix}"
        result = run_cli("convert", path, out)
        assert result.exit_code == 0, result.stderr
        assert "other names" in result.stdout
        arrays, side = open_arrays(out)
        assert len(arrays) == len(names)
        for i, row in enumerate(side["tensors"]):
            assert arrays[row["name"]].tobytes() == bytes([i] * 8)
            assert suffix == ".safetensors" or ".." not in row["name"]  # whose names are no files


def test_shards_give_the_whole_model(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    for number, file in enumerate(split_llama(3), 1):
        (tmp_path / f"m-{number:05d}-of-00003.gguf").write_bytes(file.bytes())
    out = tmp_path / "m.npz"
    assert run_cli("convert", tmp_path / "m-00002-of-00003.gguf", out).exit_code == 0
    arrays, _ = open_arrays(out)
    assert sorted(arrays) == sorted(tensor.name for tensor in tiny_llama().tensors)
    data = (tmp_path / "m-00001-of-00003.gguf").read_bytes()
    assert run_cli("convert", "-", tmp_path / "x.npz", stdin=data).exit_code == 2
    assert not (tmp_path / "x.npz").exists()


def test_what_cannot_be(tmp_path: Path, run_cli: Callable[..., Any], samples: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(tiny_llama().bytes())
    memory = samples / "atlas" / "llama-7b_memory.atlas"
    for line in (
        [memory, tmp_path / "x.npz", "--dequantize"],
        [memory, tmp_path / "x.atlas", "--byte-order", "big"],
        [path, tmp_path / "x.gguf", "--dequantize"],
        [path, tmp_path / "x.json"],
        [path, tmp_path / "x.npz", "--byte-order", "big"],
        [path, tmp_path / "x.gguf", "--byte-order", "little"],
        [path, tmp_path / "x.gguf", "--byte-order", "big", "--auto"],
        [path, path, "--byte-order", "big", "--force"],
    ):
        before = path.read_bytes()
        result = run_cli("convert", *line)
        assert result.exit_code == 2, line
        assert "internal error" not in result.stderr
        assert path.read_bytes() == before
        assert not list(tmp_path.glob("x.*"))
    path.write_bytes(tiny_llama().bytes()[:-4000])
    assert run_cli("convert", path, tmp_path / "x.npz").exit_code == 2
    assert not (tmp_path / "x.npz").exists()


# --- byte order ---------------------------------------------------------------------------------------------

MODELS: dict[str, File] = {
    "f32": tiny_llama(),
    "f16": tiny_llama(kind=F16_T),
    "q8_0": tiny_llama(kind=Q8_0_T),
    "aligned": tiny_llama(align=256),
}


@pytest.mark.parametrize("name", MODELS)
def test_there_and_back(tmp_path: Path, run_cli: Callable[..., Any], name: str) -> None:
    little, big, back = (tmp_path / f"{name}.gguf" for name in ("little", "big", "back"))
    little.write_bytes(MODELS[name].bytes())
    assert run_cli("convert", little, big, "--byte-order", "big").exit_code == 0
    if name == "f32":  # independently laid out, but for the weights, which the builder has as bytes
        turned = [
            dataclasses.replace(t, data=np.frombuffer(t.payload, "<f4").astype(">f4").tobytes())
            for t in MODELS[name].tensors
        ]
        wanted = dataclasses.replace(MODELS[name], order=">", tensors=tuple(turned))
        assert big.read_bytes() == wanted.bytes()
    reader = GGUFReader(big)
    assert reader.byte_order == "S"
    assert run_cli("convert", big, back, "--byte-order", "little").exit_code == 0
    assert back.read_bytes() == little.read_bytes()
    said = run_cli("validate", big)
    assert f"convert {big} OUT.gguf --byte-order little" in said.stdout


def test_every_type_there_and_back(model: Path, tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    """Dequantised, a tensor is the same in both byte orders; what nobody can turn round is refused."""
    with GGUFFile.open(model) as file:
        fit = [
            info for info in file.tensor_infos if info.row and (info.row.dtype or info.row.swap is not None)
        ]
        some = tmp_path / "some.gguf"
        write_gguf(some, [], [TensorSource.from_file(file, info) for info in fit])
    assert len(fit) > 15
    big, back = tmp_path / "big.gguf", tmp_path / "back.gguf"
    assert run_cli("convert", some, big, "--byte-order", "big").exit_code == 0
    assert run_cli("convert", big, back, "--byte-order", "little").exit_code == 0
    assert back.read_bytes() == some.read_bytes()
    with GGUFFile.open(some) as one, GGUFFile.open(big) as other:
        for info in one.tensor_infos:
            np.testing.assert_array_equal(one.dequantize(info), other.dequantize(info.name))
    refused = run_cli("convert", model, tmp_path / "no.gguf", "--byte-order", "big")
    assert refused.exit_code == 2
    assert "cannot be converted to another byte order" in refused.stderr
    assert not (tmp_path / "no.gguf").exists()


# --- back to a model ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
@pytest.mark.parametrize("name", ["gguf/tiny.gguf", "gguf/micro.gguf", "models/tiny-python.gguf"])
def test_a_model_comes_back_to_the_bit(
    tmp_path: Path, run_cli: Callable[..., Any], samples: Path, name: str, suffix: str
) -> None:
    arrays, back = tmp_path / f"a.{suffix}", tmp_path / "back.gguf"
    assert run_cli("convert", samples / name, arrays).exit_code == 0
    ran = run_cli("convert", arrays, back)
    assert ran.exit_code == 0, ran.stderr
    assert back.read_bytes() == (samples / name).read_bytes()
    assert "note" not in ran.stdout


@pytest.mark.parametrize("suffix", ["safetensors", "npz"])
def test_every_type_comes_back(model: Path, tmp_path: Path, run_cli: Callable[..., Any], suffix: str) -> None:
    arrays, back = tmp_path / f"a.{suffix}", tmp_path / "back.gguf"
    assert run_cli("convert", model, arrays).exit_code == 0
    assert run_cli("convert", arrays, back).exit_code == 0
    assert back.read_bytes() == model.read_bytes()


def test_values_that_json_lacks_come_back(tmp_path: Path, run_cli: Callable[..., Any]) -> None:
    from atlas_kit.formats.gguf import MetadataField

    path, back = tmp_path / "m.gguf", tmp_path / "back.gguf"
    fields = [
        MetadataField.make("a.text", "x\udcff\x1b\u202e\n"),
        MetadataField.make("a.texts", ["\udc80", "\u00fc", ""]),
        MetadataField.make("a.float", float("inf")),
        MetadataField.make("a.floats", [0.1, float("-inf"), 1e-45], 9, 6),
        MetadataField.make("a.long", 2**64 - 1, 10),
        MetadataField.make("a.truth", [True, False]),
        MetadataField.make("a.none", [], 9, 8),
        MetadataField.make("general.alignment", 64, 4),
    ]
    sources = [TensorSource("\udcff\n/..", (4,), 0, bytes(16), 16), TensorSource("b", (2,), 1, b"abcd", 4)]
    write_gguf(path, fields, sources)
    for suffix in ("safetensors", "npz"):
        assert run_cli("convert", path, tmp_path / f"a.{suffix}").exit_code == 0
        ran = run_cli("convert", tmp_path / f"a.{suffix}", back, "--force")
        assert ran.exit_code == 0, ran.stderr
        assert back.read_bytes() == path.read_bytes()


def test_shards_come_back_as_one(tmp_path: Path, run_cli: Callable[..., Any], samples: Path) -> None:
    shard = samples / "gguf" / "tiny-split-00001-of-00002.gguf"
    assert run_cli("join", shard, "-o", tmp_path / "whole.gguf").exit_code == 0
    assert run_cli("convert", shard, tmp_path / "a.safetensors").exit_code == 0
    assert run_cli("convert", tmp_path / "a.safetensors", tmp_path / "back.gguf").exit_code == 0
    assert run_cli("diff", tmp_path / "whole.gguf", tmp_path / "back.gguf").exit_code == 0


def test_numbers_that_were_changed_are_written(
    tmp_path: Path, run_cli: Callable[..., Any], samples: Path
) -> None:
    arrays, back = tmp_path / "a.npz", tmp_path / "back.gguf"
    assert run_cli("convert", samples / "gguf" / "tiny.gguf", arrays, "--dequantize").exit_code == 0
    with np.load(arrays) as loaded:
        made = {name: loaded[name] for name in loaded.files}
    made["token_embd.weight"] = np.asfortranarray(made["token_embd.weight"] * 2).astype(">f4")
    made["added"] = np.arange(6, dtype=np.float16).reshape(2, 3)
    del made["output_norm.weight"]
    np.savez_compressed(arrays, **made)
    ran = run_cli("convert", arrays, back)
    assert ran.exit_code == 0, ran.stderr
    assert "tensors are others than the model had" in ran.stdout
    with GGUFFile.open(back) as model:
        assert "output_norm.weight" not in model.tensors
        assert np.array_equal(model.array("token_embd.weight"), made["token_embd.weight"])
        assert np.array_equal(model.array("added"), made["added"])
        assert model.tensors["blk.0.ffn_up.weight"].type_name == "F32"


def test_arrays_that_are_no_model(tmp_path: Path, run_cli: Callable[..., Any], samples: Path) -> None:
    arrays, back = tmp_path / "a.npz", tmp_path / "back.gguf"
    np.savez(arrays, a=np.zeros(3))
    ran = run_cli("convert", arrays, back)
    assert ran.exit_code == 2
    assert "only a GGUF model can be converted to GGUF" in ran.stderr
    for record in (b"", b"{", b"[]", b'{"metadata": 3, "tensors": [], "version": 3}', b"{}",
                   b'{"metadata": [{}], "tensors": [], "version": 3}',
                   b'{"metadata": [{"key": "a", "type": "x", "value": 1}], "tensors": [], "version": 3}',
                   b'{"metadata": [{"key": "a", "type": "u8", "value": "x"}], "tensors": [], "version": 3}',
                   b'{"metadata": [{"key": "a", "type": "u8", "value": 900}], "tensors": [], "version": 3}',
                   b'{"metadata": [], "tensors": [{"name": "a"}], "version": 3}',
                   b'{"metadata": [], "tensors": [{"name": "a", "type": "Q4_0", "shape": ["x"]}], "version": 3}',
                   b'{"metadata": [], "tensors": [], "version": 3, "left_out": ["a.tokens"]}'):  # fmt: skip
        np.savez(arrays, a=np.zeros(3), __gguf__=np.frombuffer(record, np.uint8))
        ran = run_cli("convert", arrays, back)
        assert ran.exit_code == 2, record
        assert "internal error" not in ran.stderr, record
        assert not back.exists()
