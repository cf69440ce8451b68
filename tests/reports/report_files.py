"""The files that people reported trouble with, built anew: each a function that returns their bytes.

Whole models come from ``gguf_builder``; here is what happened to them on the way: downloads, hand-made edits,
other programs. Tests beside this module say what each command makes of them.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import replace

import numpy as np
from gguf_builder import (
    ARR,
    F16_T,
    F32,
    F32_T,
    F64_T,
    KV,
    Q8_0_T,
    STR,
    U32,
    Array,
    File,
    Tensor,
    split_llama,
    tiny_llama,
    weights,
)

from atlas_kit.formats.atlas import MemoryFile, checksums, layout

MIB = 1 << 20


def model(kind: int = F32_T, *, layers: int = 1, width: int = 32, ff: int = 64) -> File:
    """A whole tiny Llama of which no two tensors are alike."""
    file = tiny_llama(layers=layers, width=width, ff=ff, kind=kind)
    different = (weights(f"{number:04d}0000", t.dims, t.type) for number, t in enumerate(file.tensors))
    return replace(
        file, tensors=tuple(replace(t, data=d) for t, d in zip(file.tensors, different, strict=True))
    )


# --- downloads ------------------------------------------------------------------------------------------------


def preallocated(lost: int = 2 * MIB) -> bytes:
    """A downloader reserved the whole file, and never got the end of it."""
    data = model(F16_T, layers=2, width=96, ff=4096).bytes()
    return data[:-lost] + bytes(lost)


def resumed_too_early(*, early: int = MIB, cut: bool = False) -> bytes:
    """A download went on 1 MB before where it had stopped; ``cut`` to the size that it should have."""
    data = model(F16_T, layers=2, width=96, ff=4096).bytes()
    at = len(data) // 2 + 12_345
    broken = data[:at] + data[at - early :]
    return broken[: len(data)] if cut else broken


# --- weights that are no numbers --------------------------------------------------------------------------------


def nan_weight() -> bytes:
    """One weight of a norm is NaN."""
    file = model()
    numbers = np.frombuffer(weights("w", (32,)), "<f4").copy()
    numbers[5] = np.nan
    return file.with_tensor("output_norm.weight", data=numbers.tobytes()).bytes()


def nan_scale() -> bytes:
    """One block of a quantised matrix has NaN for its scale."""
    file = model(Q8_0_T)
    blocks = bytearray(file.tensors[0].payload)
    blocks[340:342] = b"\xff\xff"
    return file.with_tensor(str(file.tensors[0].name), data=bytes(blocks)).bytes()


# --- what llama.cpp loads and dies of ---------------------------------------------------------------------------


def nan_epsilon() -> bytes:
    """The epsilon of the norms is NaN."""
    return model().with_kv(KV("llama.attention.layer_norm_rms_epsilon", F32, float("nan"))).bytes()


def negative_epsilon() -> bytes:
    """The epsilon of the norms is negative."""
    return model().with_kv(KV("llama.attention.layer_norm_rms_epsilon", F32, -1e-5)).bytes()


def half_norm() -> bytes:
    """A norm was quantised with the rest."""
    return model().with_tensor("blk.0.attn_norm.weight", type=F16_T, data=bytes(64)).bytes()


def double_attention() -> bytes:
    """The weights of the attention are doubles."""
    return model().with_tensor("blk.0.attn_q.weight", type=F64_T, data=bytes(32 * 32 * 8)).bytes()


# --- tensors that are not those of the model ------------------------------------------------------------------------


def layers_missing() -> bytes:
    """The keys speak of two layers, and the tensors are those of one."""
    return model().with_kv(KV("llama.block_count", U32, 2)).bytes()


def tensor_twice() -> bytes:
    """Two tensors of one name, with different weights."""
    file = model()
    again = Tensor("blk.0.attn_norm.weight", (32,), F32_T, weights("again", (32,)))
    return replace(file, tensors=(*file.tensors, again)).bytes()


def prefixed(layers: int = 1) -> bytes:
    """All tensors are called model.*, as before conversion."""
    file = model(layers=layers)
    return replace(file, tensors=tuple(replace(t, name=f"model.{t.name}") for t in file.tensors)).bytes()


# --- headers that promise what is not there -----------------------------------------------------------------------


def one_pair_too_many() -> bytes:
    """The header counts one metadata pair more than there is."""
    return replace(model(), n_kv=len(model().kv) + 1).bytes()


def one_tensor_too_many() -> bytes:
    """The header counts one tensor more than there is."""
    return replace(model(), n_tensors=len(model().tensors) + 1).bytes()


def version_4() -> bytes:
    """A version that does not exist."""
    return replace(model(), version=4).bytes()


def truncated() -> bytes:
    """Two thirds of a model."""
    data = model(layers=4).bytes()
    return data[: len(data) * 2 // 3]


def doubles() -> bytes:
    """Numbers that single precision does not hold."""
    numbers = np.array([1.0, 2.0, 1e300, -1e200], "<f8")
    return File(
        (KV("general.architecture", STR, "x"),), (Tensor("a", (4,), F64_T, numbers.tobytes()),)
    ).bytes()


# --- metadata that is odd -------------------------------------------------------------------------------------------


def bad_template() -> bytes:
    """A chat template whose loop never ends."""
    return (
        model().with_kv(KV("tokenizer.chat_template", STR, "{% for m in messages %}{{ m.content }}")).bytes()
    )


def license_array() -> bytes:
    """A licence that is a list."""
    return model().with_kv(KV("general.license", ARR, Array(STR, ["mit", "apache-2.0"]))).bytes()


# --- files that are something else ----------------------------------------------------------------------------------


def web_page() -> bytes:
    """The page of a model, saved instead of it."""
    return (
        b'<!doctype html>\n<html class="">\n<head><title>Some-7B-GGUF at main</title></head>\n'
        + b"<p>x</p>" * 300
    )


def lfs_pointer() -> bytes:
    """What git leaves where git-lfs is not installed."""
    return b"version https://git-lfs.github.com/spec/v1\noid sha256:" + b"0123abcd" * 8 + b"\nsize 98362432\n"


def old_ggml(magic: bytes = b"tjgg", version: int = 3) -> bytes:
    """The beginning of a model in a format of 2023."""
    numbers = (32000, 4096, 256, 32, 32, 128, 2)
    head = magic + (b"" if magic == b"lmgg" else version.to_bytes(4, "little"))
    return head + b"".join(n.to_bytes(4, "little") for n in numbers) + b"\5\0\0\0<unk>" + bytes(200)


def pytorch(name: str = "archive/data.pkl") -> bytes:
    """What torch.save writes: a zip archive with a pickle."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w") as archive:
        archive.writestr(zipfile.ZipInfo(name), b"\x80\x02}q\0.")  # whose date is always the same
        archive.writestr(zipfile.ZipInfo("archive/data/0"), bytes(1000))
    return made.getvalue()


def joined_shards() -> bytes:
    """Shards that somebody put into one file with cat."""
    return b"".join(shard.bytes() for shard in split_llama(3))


def doubled() -> bytes:
    """A whole model, twice."""
    return model().bytes() * 2


# --- memory files -------------------------------------------------------------------------------------------------


def wrong_total() -> bytes:
    """The header gives the size of the entries as 7 bytes."""
    memory = MemoryFile(version=1, created=1_700_000_000)
    memory.set("chat", "hello", type=1, timestamp=1_700_000_000)
    data = bytearray(memory.to_bytes())
    data[32:40] = (7).to_bytes(8, "little")
    data[8:12] = checksums.fnv1a(bytes(data[layout.SUMMED])).to_bytes(4, "little")
    return bytes(data)


def crc32_payload() -> bytes:
    """A header with FNV-1a, as it should be, and an entry with CRC-32: a writer that followed half of the format."""
    memory = MemoryFile(version=1, created=1_700_000_000)
    memory.set("chat", "hello", type=1, timestamp=1_700_000_000)
    data = bytearray(memory.to_bytes())
    stored = checksums.fnv1a(b"hello").to_bytes(4, "little")
    at = data.index(stored)
    data[at : at + 4] = checksums.crc32(b"hello").to_bytes(4, "little")
    return bytes(data)
