"""The files that people reported trouble with, built anew: each a function that returns their bytes.

Whole models come from ``gguf_builder``; here is what happened to them on the way: downloads, hand-made edits,
other programs. Tests beside this module say what each command makes of them.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from gguf_builder import F16_T, F32, F32_T, F64_T, KV, Q8_0_T, File, tiny_llama, weights

from atlas_kit.formats.atlas import MemoryFile, checksums

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


# --- memory files -------------------------------------------------------------------------------------------------


def crc32_payload() -> bytes:
    """A header with FNV-1a, as it should be, and an entry with CRC-32: a writer that followed half of the format."""
    memory = MemoryFile(version=1, created=1_700_000_000)
    memory.set("chat", "hello", type=1, timestamp=1_700_000_000)
    data = bytearray(memory.to_bytes())
    stored = checksums.fnv1a(b"hello").to_bytes(4, "little")
    at = data.index(stored)
    data[at : at + 4] = checksums.crc32(b"hello").to_bytes(4, "little")
    return bytes(data)
