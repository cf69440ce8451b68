"""Tensor infos that are lost: made again to the bit where the rest leaves one possibility, told as lost elsewhere."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
from gguf_builder import Q8_0_T, File, tiny_llama, weights

from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.formats.gguf.mend import mend_gguf

SAMPLE = Path(__file__).resolve().parents[2] / "sample_data" / "models" / "tiny-python.gguf"
WAYS = ("zeros", "ones", "random", "cut out")


def without(data: bytes, names: list[str], way: str) -> bytes:
    """Return a model in which the infos of tensors are destroyed, or not there at all."""
    with GGUFFile.open(data) as model:
        places = [(model.tensors[name].info_offset, model.tensors[name].info_size) for name in names]
    rng = random.Random(len(names))
    for start, size in sorted(places, reverse=True):
        new = {"zeros": bytes(size), "ones": b"\xff" * size, "random": rng.randbytes(size), "cut out": b""}[
            way
        ]
        data = data[:start] + new + data[start + size :]
    return data


def mended(data: bytes, folder: Path):
    path, out = folder / "in.gguf", folder / "out.gguf"
    path.write_bytes(data)
    result = mend_gguf(path, out)
    return result, out.read_bytes()


@pytest.fixture(scope="module")
def sample() -> bytes:
    return SAMPLE.read_bytes()


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    "names",
    [["blk.4.attn_q.weight"], ["blk.0.attn_norm.weight"], ["blk.8.ffn_down.weight"], ["blk.7.ffn_norm.weight"],
     ["blk.2.attn_k.weight", "blk.6.ffn_up.weight"]],
)  # fmt: skip
def test_a_lost_info_is_made_again(sample, names, way, tmp_path):
    result, out = mended(without(sample, names, way), tmp_path)
    assert out == sample
    assert result.lost == 0
    assert sorted(a.key for a in result.actions if a.code == "record-rebuilt") == sorted(names)


@pytest.mark.parametrize("way", ["zeros", "cut out"])
def test_neighbours_of_one_size_are_told_apart_by_the_other_layers(sample, way, tmp_path):
    result, out = mended(without(sample, ["blk.3.attn_k.weight", "blk.3.attn_v.weight"], way), tmp_path)
    assert out == sample
    assert result.lost == 0


@pytest.mark.parametrize("way", ["zeros", "cut out"])
@pytest.mark.parametrize("name", ["output_norm.weight", "token_embd.weight"])
def test_what_no_layer_shows_stays_lost(sample, name, way, tmp_path):
    result, _ = mended(without(sample, [name], way), tmp_path)
    assert not [a for a in result.actions if a.code == "record-rebuilt"]
    assert name in [f.key for f in result.after if f.severity == "error"]


def mixed() -> File:
    """A model in which a kind has another type in half of the layers, as in mixed quantisation."""
    file = tiny_llama(layers=4, width=64, ff=128)
    tensors = [
        replace(t, type=Q8_0_T, data=weights("q", t.dims, Q8_0_T))
        if t.name in ("blk.0.ffn_down.weight", "blk.2.ffn_down.weight")
        else t
        for t in file.tensors
    ]
    return replace(file, tensors=tuple(tensors))


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_the_room_says_which_type_it_was(layer, tmp_path):
    data = mixed().bytes()
    result, out = mended(without(data, [f"blk.{layer}.ffn_down.weight"], "zeros"), tmp_path)
    assert out == data
    assert result.lost == 0


def test_two_that_would_fit_are_none(tmp_path):
    """Two kinds of one size, the infos cut out, and nothing beside them that tells which is which."""
    file = tiny_llama(layers=1, width=64, ff=128)
    data = file.bytes()
    result, _ = mended(without(data, ["blk.0.attn_k.weight"], "zeros"), tmp_path)
    assert not [a for a in result.actions if a.code == "record-rebuilt"]
    assert result.lost


@pytest.mark.parametrize("seed", range(12))
def test_what_is_made_again_is_what_was_there(sample, seed, tmp_path):
    """Whatever is destroyed, a tensor that is made again has the shape, the type and the bytes that it had."""
    rng = random.Random(seed)
    with GGUFFile.open(sample) as model:
        names = rng.sample(list(model.tensors), rng.randint(1, 6))
    _, out = mended(without(sample, names, rng.choice(WAYS)), tmp_path)
    with GGUFFile.open(sample) as old, GGUFFile.open(out) as new:
        for name, info in new.tensors.items():
            if name in old.tensors:
                was = old.tensors[name]
                assert (info.dims, info.type) == (was.dims, was.type)
                assert b"".join(new.iter_raw(info)) == b"".join(old.iter_raw(was))
