"""Make GGUF models of real shapes with random weights: for timing and for tests of architectures, never committed.

    python tools/make_random_model.py build/1b.gguf --size 1b --type q4_0
    python tools/make_random_model.py build/gemma.gguf --arch gemma2

Speed does not depend on what the weights are, and a runtime that has to work with every architecture is tested with
one small model of each. The weights are scaled so that activations stay of order one and the distribution over the
next token is neither flat nor certain. Tensors are written one by one: memory is that of the largest.

The tokenizer is byte-level BPE of any size: 6 control tokens, the 256 bytes, letter pairs, then fillers that no text
produces. Which tensors an architecture has comes from ``atlas_kit.formats.gguf.architectures``; recurrent and hybrid
ones, whose layers differ, are described here.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import math
import os
import string
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

import gguf  # noqa: E402
import numpy as np  # noqa: E402

from atlas_kit.formats.gguf import architectures  # noqa: E402

Dims = tuple[int, ...]
Kind = gguf.GGMLQuantizationType
TYPES = {"f32": Kind.F32, "f16": Kind.F16, "q8_0": Kind.Q8_0, "q4_0": Kind.Q4_0}
FILE_TYPES = {
    "f32": gguf.LlamaFileType.ALL_F32,
    "f16": gguf.LlamaFileType.MOSTLY_F16,
    "q8_0": gguf.LlamaFileType.MOSTLY_Q8_0,
    "q4_0": gguf.LlamaFileType.MOSTLY_Q4_0,
}

BOS, EOS, END = 0, 1, 5
CONTROL = ("<|begin|>", "<|endoftext|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>")
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '<|' + message['role'] + '|>' + message['content'] + '<|end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)

#: Kinds of tokens that an encoder's embedding tells apart (first and second sentence).
TOKEN_TYPES = 2
#: Standard deviation of the logits: at 128,256 tokens the likeliest has some 5%, at 512 some 20%.
LOGITS = 3.0


# --- shapes -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Shape:
    """Sizes that do not depend on the architecture."""

    layers: int
    width: int
    heads: int
    heads_kv: int
    feed_forward: int
    vocabulary: int
    context: int
    tied: bool | None = None  # None: as the architecture usually is
    experts: int = 4
    experts_used: int = 2
    expert_feed_forward: int = 64

    @property
    def head(self) -> int:
        """Length of a head."""
        return self.width // self.heads


SIZES = {
    "tiny": Shape(3, 128, 4, 2, 192, 512, 512),
    # Llama 3.2 1B, whose read-out is its embedding
    "1b": Shape(16, 2048, 32, 8, 8192, 128_256, 131_072, True, 8, 2, 2048),
    "7b": Shape(32, 4096, 32, 32, 11_008, 32_000, 4096, False, 8, 2, 2752),
}


@dataclass(frozen=True)
class Family:
    """What one architecture needs beyond its shape.

    ``keys`` are metadata after the architecture's name; ``optional`` tensors are written too. ``gain`` scales the
    read-out where the architecture scales the logits, ``post_norm`` the norms behind a layer, so that layers count
    beside an embedding that the architecture multiplies by a large number. ``tensors`` replaces the table.
    """

    architecture: str
    keys: Mapping[str, Any] = field(default_factory=dict)
    optional: tuple[str, ...] = ()
    experts: bool = False
    tied: bool = False
    gain: float = 1.0
    post_norm: float = 1.0
    tensors: Callable[[Shape, Mapping[str, Any]], Iterator[tuple[str, Dims]]] | None = None
    hybrid_keys: Callable[[Shape], dict[str, Any]] | None = None


QKV_BIAS = ("attn_q.bias", "attn_k.bias", "attn_v.bias")
BERT_OPTIONAL = (*QKV_BIAS, "token_types.weight", "attn_output.bias", "ffn_up.bias", "ffn_down.bias")


def _ssm(
    shape: Shape, *, state: int = 16, rank: int | None = None, groups: int | None = None
) -> dict[str, Any]:
    """Return the keys of a state-space mixer (Mamba; with groups: Mamba 2)."""
    inner = 2 * shape.width
    keys = {"ssm.conv_kernel": 4, "ssm.inner_size": inner, "ssm.state_size": state}
    keys["ssm.time_step_rank"] = rank or max(shape.width // 16, 1)
    return keys if groups is None else {**keys, "ssm.group_count": groups}


def _alternating(shape: Shape) -> list[int]:
    """Return key-value heads a layer: none where it is recurrent; every other layer attends."""
    return [shape.heads_kv if layer % 2 else 0 for layer in range(shape.layers)]


def _mamba(
    p: str, shape: Shape, keys: Mapping[str, Any], *, norms: bool = False
) -> Iterator[tuple[str, Dims]]:
    inner, state, rank = (keys[f"ssm.{key}"] for key in ("inner_size", "state_size", "time_step_rank"))
    yield p + "ssm_in.weight", (shape.width, 2 * inner)
    yield p + "ssm_conv1d.weight", (keys["ssm.conv_kernel"], inner)
    yield p + "ssm_conv1d.bias", (inner,)
    yield p + "ssm_x.weight", (inner, rank + 2 * state)
    yield p + "ssm_dt.weight", (rank, inner)
    yield p + "ssm_dt.bias", (inner,)
    yield p + "ssm_a", (state, inner)
    yield p + "ssm_d", (inner,)
    yield p + "ssm_out.weight", (inner, shape.width)
    if norms:
        yield p + "ssm_dt_norm.weight", (rank,)
        yield p + "ssm_b_norm.weight", (state,)
        yield p + "ssm_c_norm.weight", (state,)


def _mamba2(p: str, shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    inner, state, heads = (keys[f"ssm.{key}"] for key in ("inner_size", "state_size", "time_step_rank"))
    groups = keys["ssm.group_count"]
    convolved = inner + 2 * groups * state
    yield p + "ssm_in.weight", (shape.width, inner + convolved + heads)
    yield p + "ssm_conv1d.weight", (keys["ssm.conv_kernel"], convolved)
    yield p + "ssm_conv1d.bias", (convolved,)
    yield p + "ssm_dt.bias", (heads,)
    yield p + "ssm_a", (1, heads)
    yield p + "ssm_d", (1, heads)
    yield p + "ssm_norm.weight", (inner // groups, groups)
    yield p + "ssm_out.weight", (inner, shape.width)


def _attention(p: str, shape: Shape) -> Iterator[tuple[str, Dims]]:
    yield p + "attn_q.weight", (shape.width, shape.width)
    yield p + "attn_k.weight", (shape.width, shape.heads_kv * shape.head)
    yield p + "attn_v.weight", (shape.width, shape.heads_kv * shape.head)
    yield p + "attn_output.weight", (shape.width, shape.width)


def _feed_forward(p: str, shape: Shape, norm: str = "ffn_norm.weight") -> Iterator[tuple[str, Dims]]:
    yield p + norm, (shape.width,)
    yield p + "ffn_gate.weight", (shape.width, shape.feed_forward)
    yield p + "ffn_up.weight", (shape.width, shape.feed_forward)
    yield p + "ffn_down.weight", (shape.feed_forward, shape.width)


def _blocks(shape: Shape, norm: str = "output_norm.weight") -> Iterator[tuple[str, Dims]]:
    yield "token_embd.weight", (shape.width, shape.vocabulary)
    yield norm, (shape.width,)
    for layer in range(shape.layers):
        yield f"blk.{layer}.attn_norm.weight", (shape.width,)


def _recurrent(version: int) -> Callable[[Shape, Mapping[str, Any]], Iterator[tuple[str, Dims]]]:
    def tensors(shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
        yield from _blocks(shape)
        for layer in range(shape.layers):
            yield from (_mamba if version == 1 else _mamba2)(f"blk.{layer}.", shape, keys)

    return tensors


def _jamba(shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    yield from _blocks(shape)
    for layer, attends in enumerate(keys["attention.head_count_kv"]):
        p = f"blk.{layer}."
        yield from _attention(p, shape) if attends else _mamba(p, shape, keys, norms=True)
        yield from _feed_forward(p, shape)


def _granitehybrid(shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    yield from _blocks(shape)
    for layer, attends in enumerate(keys["attention.head_count_kv"]):
        p = f"blk.{layer}."
        yield from _attention(p, shape) if attends else _mamba2(p, shape, keys)
        yield from _feed_forward(p, shape)


def _falcon_h1(shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    yield from _blocks(shape)
    for layer in range(shape.layers):
        p = f"blk.{layer}."
        yield from _mamba2(p, shape, keys)
        yield from _attention(p, shape)
        yield from _feed_forward(p, shape, norm="ffn_norm")  # llama.cpp asks for it without a suffix


def _lfm2(shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    yield from _blocks(shape, norm="token_embd_norm.weight")
    for layer, attends in enumerate(keys["attention.head_count_kv"]):
        p = f"blk.{layer}."
        if attends:
            yield from _attention(p, shape)
            yield p + "attn_q_norm.weight", (shape.head,)
            yield p + "attn_k_norm.weight", (shape.head,)
        else:
            yield p + "shortconv.conv.weight", (keys["shortconv.l_cache"], shape.width)
            yield p + "shortconv.in_proj.weight", (shape.width, 3 * shape.width)
            yield p + "shortconv.out_proj.weight", (shape.width, shape.width)
        yield from _feed_forward(p, shape)


#: What ``--arch`` takes, beside every name in the table of architectures.
FAMILIES = {
    "llama": Family("llama"),
    "llama-tied": Family("llama", tied=True),
    "mistral": Family("llama", {"rope.freq_base": 1e6}),
    "mixtral": Family("llama", {"rope.freq_base": 1e6}, optional=("ffn_gate_exps.weight",), experts=True),
    "phi2": Family("phi2", optional=QKV_BIAS),
    "phi3": Family("phi3", {"attention.sliding_window": 64}, optional=("attn_qkv.weight",)),
    "gemma2": Family(
        "gemma2",
        {
            "attn_logit_softcapping": 50.0,
            "final_logit_softcapping": 5.0,
            "attention.sliding_window": 64,
            "attention.key_length": 32,
            "attention.value_length": 32,
        },
        tied=True,
        post_norm=8.0,
    ),
    "gemma3": Family("gemma3", {"attention.sliding_window": 64}, tied=True, post_norm=8.0),
    "qwen2": Family("qwen2", {"rope.freq_base": 1e6}, optional=QKV_BIAS),
    "qwen3": Family("qwen3", {"rope.freq_base": 1e6}, tied=True),
    "qwen2moe": Family("qwen2moe", optional=QKV_BIAS, experts=True),
    "qwen3moe": Family("qwen3moe", {"rope.freq_base": 1e6}, experts=True),
    "command-r": Family("command-r", {"logit_scale": 0.5}, tied=True, gain=2.0),
    "granite": Family(
        "granite",
        {"logit_scale": 2.0, "residual_scale": 0.9, "embedding_scale": 0.5, "attention.scale": 0.2},
        tied=True,
        gain=2.0,
    ),
    "granitemoe": Family(
        "granitemoe", {"logit_scale": 2.0}, ("ffn_gate_exps.weight",), experts=True, gain=2.0
    ),
    "minicpm": Family("minicpm", {"logit_scale": 2.0}, gain=2.0),
    "bert": Family("bert", {"attention.causal": False}, optional=BERT_OPTIONAL, tied=True),
    "mamba": Family("mamba", tied=True, tensors=_recurrent(1), hybrid_keys=_ssm),
    "mamba2": Family(
        "mamba2",
        tied=True,
        tensors=_recurrent(2),
        hybrid_keys=lambda s: _ssm(s, rank=s.width // 16, groups=1),
    ),
    "jamba": Family(
        "jamba",
        tensors=_jamba,
        hybrid_keys=lambda s: {**_ssm(s), "attention.head_count_kv": _alternating(s)},
    ),
    "granitehybrid": Family(
        "granitehybrid",
        {"logit_scale": 2.0, "embedding_scale": 1.5, "residual_scale": 0.9},
        gain=2.0,
        tied=True,
        tensors=_granitehybrid,
        hybrid_keys=lambda s: {
            **_ssm(s, rank=s.width // 16, groups=1),
            "attention.head_count_kv": _alternating(s),
        },
    ),
    "falcon-h1": Family(
        "falcon-h1", tensors=_falcon_h1, hybrid_keys=lambda s: _ssm(s, rank=s.width // 16, groups=1)
    ),
    "lfm2": Family(
        "lfm2",
        {"shortconv.l_cache": 3},
        tied=True,
        tensors=_lfm2,
        hybrid_keys=lambda s: {"attention.head_count_kv": _alternating(s)},
    ),
}
#: Every other architecture in the table, with these values for the keys that some of them ask for.
DEFAULT_KEYS = {
    "logit_scale": 0.5,
    "attention.sliding_window": 64,
    "attention.clamp_kqv": 8.0,
    "attention.max_alibi_bias": 8.0,
    "expert_shared_count": 2,
    "interleave_moe_layer_step": 1,
    "use_parallel_residual": True,
}


def family_of(name: str) -> Family:
    """Return what is needed to make an architecture.

    Raises
    ------
    KeyError
        It is neither in ``FAMILIES`` nor in the table.
    """
    if name in FAMILIES:
        return FAMILIES[name]
    experts = architectures.needs_experts(name)
    plan = architectures.plan_of(name, experts=experts)
    if plan is None:
        raise KeyError(f"no recipe for {name}; there is one for {', '.join(sorted(FAMILIES))}")
    keys = {key: DEFAULT_KEYS[key] for key in plan.keys if key in DEFAULT_KEYS}
    if "rope.dimension_sections" in plan.keys:
        keys["rope.dimension_sections"] = [8, 4, 4, 0]
    tied = "output.weight" not in plan.model and "output.weight" not in plan.model_optional
    return Family(name, keys, experts=experts, tied=tied, gain=1 / keys.get("logit_scale", 1.0))


# --- metadata and tensors ----------------------------------------------------------------------------------------


def metadata(family: Family, shape: Shape) -> dict[str, Any]:
    """Return the keys after the architecture's name."""
    keys: dict[str, Any] = {
        "context_length": shape.context,
        "embedding_length": shape.width,
        "block_count": shape.layers,
        "feed_forward_length": shape.feed_forward,
        "vocab_size": shape.vocabulary,
        "attention.head_count": shape.heads,
        "attention.head_count_kv": shape.heads_kv,
        "rope.dimension_count": shape.head,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.layer_norm_epsilon": 1e-5,
    }
    if family.experts:
        keys |= {"expert_count": shape.experts, "expert_used_count": shape.experts_used}
        keys |= {"expert_feed_forward_length": shape.expert_feed_forward}
    if family.experts and family.architecture in ("llama", "qwen2moe", "granitemoe"):
        keys["feed_forward_length"] = shape.expert_feed_forward  # here the experts are this wide
    if family.hybrid_keys:
        keys |= family.hybrid_keys(shape)
    if family.architecture.startswith("mamba"):
        keys |= {"feed_forward_length": 0, "attention.head_count": 0, "attention.head_count_kv": 0}
        del keys["rope.dimension_count"]
    return keys | dict(family.keys)


def tensors(family: Family, shape: Shape, keys: Mapping[str, Any]) -> list[tuple[str, Dims]]:
    """Return (name, dimensions with the fastest running first) of every tensor, in the file's order."""
    listed = list(family.tensors(shape, keys) if family.tensors else _planned(family, shape, keys))
    names = {name for name, _ in listed}
    tied = family.tied if shape.tied is None else shape.tied
    if not tied and "output.weight" not in names:
        listed.append(("output.weight", (shape.width, shape.vocabulary)))
    return listed


def _planned(family: Family, shape: Shape, keys: Mapping[str, Any]) -> Iterator[tuple[str, Dims]]:
    plan = architectures.plan_of(family.architecture, experts=family.experts)
    assert plan is not None, family.architecture
    sizes = {**architectures.sizes(keys, 0, shape.vocabulary), "T": TOKEN_TYPES}

    def part(
        required: Mapping[str, Dims], optional: Mapping[str, Dims], prefix: str = ""
    ) -> Iterator[tuple[str, Dims]]:
        wanted = {**required, **{name: optional[name] for name in family.optional if name in optional}}
        for name, letters in wanted.items():
            dims = tuple(architectures.evaluate(letter, sizes) for letter in letters)
            assert None not in dims, (name, letters)
            yield prefix + name, dims

    yield from part(plan.model, plan.model_optional)
    for layer in range(shape.layers):
        yield from part(plan.block, plan.block_optional, f"blk.{layer}.")


def type_of(name: str, dims: Dims, type: str, tied: bool) -> Kind:
    """Return the type of one tensor, as llama.cpp's own quantiser chooses it."""
    small = (
        "norm",
        "conv1d",
        "shortconv.conv.",
        "ssm_a",
        "ssm_d",
        "gate_inp",
        "position_embd",
        "token_types",
    )
    if len(dims) == 1 or name.endswith(".bias") or any(word in name for word in small):
        return Kind.F32
    kind = TYPES[type]
    read_out = name == "output.weight" or (tied and name == "token_embd.weight")
    if kind == Kind.Q4_0 and read_out:
        return Kind.Q8_0 if dims[0] % 256 else Kind.Q6_K
    if kind in (Kind.Q4_0, Kind.Q8_0) and dims[0] % 32:
        return Kind.F16
    return kind


def spread(name: str, dims: Dims, family: Family) -> tuple[float, float]:
    """Return (mean, standard deviation) of a tensor's weights."""
    base = name.rpartition("blk.")[2].partition(".")[2] if name.startswith("blk.") else name
    if base in ("token_embd.weight", "output.weight"):
        return 0.0, family.gain * LOGITS / math.sqrt(dims[0])
    if base == "output.bias":
        return 0.0, 1.0  # large enough to notice when it is forgotten
    if base == "ssm_dt.bias":
        return -3.0, 1.0  # softplus of it is the step: 0.05 or so
    if base == "ssm_d":
        return 1.0, 0.1
    if base.endswith(".bias"):
        return 0.0, 0.1
    if "norm" in base:
        return (family.post_norm if base.startswith("post_") else 1.0), 0.1
    if "conv1d" in base or base.startswith("shortconv.conv."):
        return 0.0, 0.5
    # what a feed-forward part or a state-space mixer multiplies last is small
    return 0.0, (3.0 if "down" in base or "ssm_out" in base else 1.0) / math.sqrt(dims[0])


# --- numbers -----------------------------------------------------------------------------------------------------


def weights(name: str, dims: Dims, kind: Kind, family: Family, seed: int) -> np.ndarray[Any, Any]:
    """Return one tensor: float arrays of the reversed dimensions, or rows of blocks as bytes."""
    rng = np.random.Generator(np.random.SFC64([seed, zlib.crc32(name.encode())]))
    mean, deviation = spread(name, dims, family)
    shape = dims[::-1]
    if name.endswith("ssm_a"):  # the decay of each state: negative, slow to fast
        return -np.broadcast_to(
            np.linspace(1, 16, dims[0] * dims[1], dtype="f4").reshape(shape), shape
        ).copy()
    if kind in _BLOCKS:
        return _BLOCKS[kind](rng, shape, deviation)
    values = rng.standard_normal(shape, dtype="f4")
    values *= deviation
    values += mean
    return values if kind == Kind.F32 else values.astype("f2")


# Blocks are made of random bytes with a scale in the right place, which is as good for timing as quantised noise and
# a hundred times as fast. The scale has a random sign because 4-bit numbers run from -8 to 7: their mean is not 0.


def _scaled(
    rng: np.random.Generator, shape: Dims, block: int, size: int, at: int, scale: float
) -> np.ndarray[Any, Any]:
    """Return rows of random blocks of ``size`` bytes whose 16-bit scale at ``at`` is ``±scale``."""
    count = math.prod(shape[:-1]) * (shape[-1] // block) * size
    noise = rng.integers(0, 1 << 64, -(-count // 8), dtype="u8")  # the quickest way to random bytes
    blocks = noise.view("u1")[:count].reshape(-1, size)
    low, high = np.array(scale, "<f2").tobytes()
    blocks[:, at] = low
    blocks[:, at + 1] &= 0x80
    blocks[:, at + 1] |= high
    return blocks


def _rows(blocks: np.ndarray[Any, Any], shape: Dims) -> np.ndarray[Any, Any]:
    return blocks.reshape(*shape[:-1], -1)


def _q4_0(rng: np.random.Generator, shape: Dims, deviation: float) -> np.ndarray[Any, Any]:
    return _rows(_scaled(rng, shape, 32, 18, 0, deviation / 4.64), shape)  # numbers -8 to 7


def _q8_0(rng: np.random.Generator, shape: Dims, deviation: float) -> np.ndarray[Any, Any]:
    blocks = _scaled(rng, shape, 32, 34, 0, deviation / 73.6)
    numbers = blocks[:, 2:].view("i1")
    np.maximum(numbers, -127, out=numbers)  # llama.cpp never writes -128
    return _rows(blocks, shape)


def _q6_k(rng: np.random.Generator, shape: Dims, deviation: float) -> np.ndarray[Any, Any]:
    blocks = _scaled(rng, shape, 256, 210, 208, deviation / (18.5 * 80))
    signs = blocks[:, 192:208]  # 16 scales of 8 bits: 64 to 95, or -96 to -65
    blocks[:, 192:208] = (signs & 0x1F) | np.where(signs & 0x80, 0xA0, 0x40).astype("u1")
    return _rows(blocks, shape)


_BLOCKS = {Kind.Q4_0: _q4_0, Kind.Q8_0: _q8_0, Kind.Q6_K: _q6_k}


# --- tokenizer ---------------------------------------------------------------------------------------------------


@functools.cache
def byte_letters() -> tuple[str, ...]:
    """Return the letter that stands for each byte in a byte-level vocabulary (GPT-2's)."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + index for index in itertools.count())
    return tuple(chr(byte if byte in printable else next(others)) for byte in range(256))


def vocabulary(count: int) -> tuple[list[str], list[str]]:
    """Return ``count`` tokens and the merges that produce some of them.

    Raises
    ------
    ValueError
        There is no room for the control tokens and the bytes.
    """
    if count < len(CONTROL) + 256:
        raise ValueError(f"a vocabulary needs {len(CONTROL) + 256} tokens, not {count}")
    letters = byte_letters()
    pairs = itertools.product([letters[ord(" ")], *string.ascii_lowercase], string.ascii_lowercase)
    merges = [" ".join(pair) for pair in itertools.islice(pairs, (count - len(CONTROL) - 256) // 2)]
    tokens = [*CONTROL, *letters, *(merge.replace(" ", "") for merge in merges)]
    return tokens + [f"filler{number}" for number in range(count - len(tokens))], merges


# --- the file ----------------------------------------------------------------------------------------------------


def make_model(
    path: str | os.PathLike[str],
    arch: str = "llama",
    *,
    size: str = "tiny",
    type: str = "f16",
    seed: int = 0,
    tied: bool | None = None,
    progress: Callable[[str], None] | None = None,
    **changes: int,
) -> Path:
    """Write a model with random weights and return its path; the same arguments give the same bytes.

    Parameters
    ----------
    arch
        A name in ``FAMILIES``, or any in the table of architectures.
    size, type
        ``tiny``, ``1b`` or ``7b``; ``f32``, ``f16``, ``q8_0`` or ``q4_0`` (with the read-out as Q6_K, as in llama.cpp).
    tied
        Whether the embedding is the read-out too; ``None``: as usual.
    changes
        Fields of ``Shape``: ``vocabulary``, ``context``, ``layers``, ...

    Raises
    ------
    KeyError
        No such architecture.
    ValueError
        A vocabulary too small for the tokenizer.
    """
    family = family_of(arch)
    shape = replace(SIZES[size], **({} if tied is None else {"tied": tied}), **changes)
    keys = metadata(family, shape)
    listed = tensors(family, shape, keys)
    is_tied = "output.weight" not in dict(listed)
    writer = gguf.GGUFWriter(path, family.architecture)
    writer.add_name(f"random weights, {size}")  # no architecture's name: llama.cpp patches the tokens of some
    writer.add_file_type(FILE_TYPES[type])
    for key, value in keys.items():
        _add(writer, f"{family.architecture}.{key}", value)
    _add_tokenizer(writer, shape.vocabulary)
    kinds = {name: type_of(name, dims, type, is_tied) for name, dims in listed}
    for name, dims in listed:
        row, nbytes = dims[::-1], math.prod(dims)
        block, bytes_ = gguf.GGML_QUANT_SIZES[kinds[name]]
        writer.add_tensor_info(name, row, np.dtype("f4"), nbytes // block * bytes_, raw_dtype=kinds[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for name, dims in listed:
        if progress:
            progress(name)
        writer.write_tensor_data(weights(name, dims, kinds[name], family, seed))
    writer.close()
    return Path(path)


def _add(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    else:
        writer.add_array(key, value)


def _add_tokenizer(writer: gguf.GGUFWriter, count: int) -> None:
    tokens, merges = vocabulary(count)
    control, normal = gguf.TokenType.CONTROL, gguf.TokenType.NORMAL
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([control] * len(CONTROL) + [normal] * (count - len(CONTROL)))
    writer.add_token_merges(merges)
    writer.add_bos_token_id(BOS)
    writer.add_eos_token_id(EOS)
    writer.add_eot_token_id(END)
    writer.add_add_bos_token(True)
    if writer.arch == "bert":
        writer.add_token_type_count(TOKEN_TYPES)
    writer.add_chat_template(CHAT_TEMPLATE)


def main() -> None:
    """Make one file."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("out", type=Path)
    parser.add_argument(
        "--arch", default="llama", help=f"{', '.join(FAMILIES)}, or another that is in the table"
    )
    parser.add_argument("--size", default="tiny", choices=SIZES)
    parser.add_argument("--type", default="f16", choices=TYPES)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--tied", action=argparse.BooleanOptionalAction, help="the embedding is the read-out too"
    )
    parser.add_argument("--vocabulary", type=int)
    parser.add_argument("--context", type=int)
    parser.add_argument("--layers", type=int)
    args = parser.parse_args()
    changes = {key: value for key in ("vocabulary", "context", "layers") if (value := getattr(args, key))}
    start = time.monotonic()
    try:
        make_model(
            args.out, args.arch, size=args.size, type=args.type, seed=args.seed, tied=args.tied, **changes
        )
    except (KeyError, ValueError, OSError) as error:
        raise SystemExit(f"{args.out}: {error.args[0] if isinstance(error, KeyError) else error}") from None
    print(f"{args.out}: {args.out.stat().st_size / 1e6:,.1f} MB in {time.monotonic() - start:.1f} s")


if __name__ == "__main__":
    main()
