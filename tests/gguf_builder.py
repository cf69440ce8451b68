"""GGUF files written with ``struct`` alone: whole ones, and ones broken in every way that the format can be.

Deliberately independent of ``atlas_kit.formats.gguf``: a mistake in our layout cannot hide here. ``build``
lays a file out and lets every field be overridden; ``tiny_llama`` is the smallest Llama that a stock
llama.cpp really loads, with parameters that break it; ``HOSTILE`` names small files made to hurt a reader.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

U8, I8, U16, I16, U32, I32, F32, BOOL, STR, ARR, U64, I64, F64 = range(13)
_CODES = {U8: "B", I8: "b", U16: "H", I16: "h", U32: "I", I32: "i", F32: "f", BOOL: "B"}
_CODES |= {U64: "Q", I64: "q", F64: "d"}

#: ggml type number -> (elements a block, bytes a block), of the types that the tests use.
GGML = {0: (1, 4), 1: (1, 2), 2: (32, 18), 8: (32, 34), 12: (256, 144), 26: (1, 4), 28: (1, 8), 30: (1, 2)}
F32_T, F16_T, Q4_0_T, Q8_0_T, Q4_K_T, I32_T, F64_T, BF16_T = GGML


def _raw(text: str | bytes) -> bytes:
    return text.encode("utf-8", "surrogateescape") if isinstance(text, str) else text


@dataclass(frozen=True)
class Array:
    """An array value: element type and elements (raw bytes for an element that is no number or string)."""

    type: int
    items: Sequence[Any]
    count: int | None = None  # what the count field says, when it lies


@dataclass(frozen=True)
class KV:
    """One key-value pair; ``len_key`` and ``raw`` override what the fields really hold."""

    key: str | bytes
    type: int
    value: Any = None
    len_key: int | None = None
    raw: bytes | None = None


@dataclass(frozen=True)
class Tensor:
    """One tensor; ``offset`` and ``n_dims`` override the true ones, ``data`` may have any length."""

    name: str | bytes
    dims: tuple[int, ...]
    type: int = F32_T
    data: bytes | None = None
    offset: int | None = None
    n_dims: int | None = None
    len_name: int | None = None

    @property
    def nbytes(self) -> int:
        block, size = GGML.get(self.type, (1, 4))
        count = 1
        for dim in self.dims:
            count *= dim
        return count // block * size

    @property
    def payload(self) -> bytes:
        return bytes(self.nbytes) if self.data is None else self.data


@dataclass(frozen=True)
class File:
    """Everything that a GGUF file holds; ``bytes`` lays it out."""

    kv: tuple[KV, ...] = ()
    tensors: tuple[Tensor, ...] = ()
    magic: bytes = b"GGUF"
    version: int = 3
    n_kv: int | None = None
    n_tensors: int | None = None
    align: int = 32
    order: str = "<"
    before_data: bytes | None = None  # instead of the padding between header and data
    tail: bytes = b""
    pad_last: bool = True
    extra: dict[str, Any] = field(default_factory=dict)

    def bytes(self) -> bytes:
        return build(self)

    def with_kv(self, *pairs: KV) -> File:
        """Add pairs; one whose key exists replaces it, in place."""
        kept, new = list(self.kv), list(pairs)
        for index, old in enumerate(kept):
            for pair in new:
                if pair.key == old.key:
                    kept[index] = pair
                    new.remove(pair)
                    break
        return replace(self, kv=(*kept, *new))

    def without(self, *keys: str) -> File:
        return replace(self, kv=tuple(pair for pair in self.kv if pair.key not in keys))

    def with_tensor(self, name: str, **changes: Any) -> File:
        """Change one tensor."""
        assert any(t.name == name for t in self.tensors)
        return replace(
            self, tensors=tuple(replace(t, **changes) if t.name == name else t for t in self.tensors)
        )

    def without_tensor(self, name: str) -> File:
        return replace(self, tensors=tuple(t for t in self.tensors if t.name != name))


def string(text: str | bytes, order: str = "<", version: int = 3) -> bytes:
    data = _raw(text)
    return struct.pack(order + ("I" if version == 1 else "Q"), len(data)) + data


def _value(kind: int, value: Any, order: str, version: int) -> bytes:
    if isinstance(value, bytes) and kind not in (STR, ARR):
        return value
    if kind == STR:
        return string(value, order, version)
    if kind == ARR:
        count = len(value.items) if value.count is None else value.count
        head = struct.pack(order + ("iI" if version == 1 else "iQ"), value.type, count)
        if value.type in _CODES and not any(isinstance(item, bytes) for item in value.items):
            return head + struct.pack(f"{order}{len(value.items)}{_CODES[value.type]}", *value.items)
        return head + b"".join(_value(value.type, item, order, version) for item in value.items)
    return struct.pack(order + _CODES[kind], value)


def kv_bytes(pair: KV, order: str = "<", version: int = 3) -> bytes:
    key = string(pair.key, order, version)
    if pair.len_key is not None:
        key = struct.pack(order + "Q", pair.len_key) + _raw(pair.key)
    body = _value(pair.type, pair.value, order, version) if pair.raw is None else pair.raw
    return key + struct.pack(order + "i", pair.type) + body


def tensor_bytes(tensor: Tensor, offset: int, order: str = "<", version: int = 3) -> bytes:
    name = string(tensor.name, order, version)
    if tensor.len_name is not None:
        name = struct.pack(order + "Q", tensor.len_name) + _raw(tensor.name)
    n_dims = len(tensor.dims) if tensor.n_dims is None else tensor.n_dims
    size = "I" if version == 1 else "Q"
    dims = struct.pack(f"{order}{len(tensor.dims)}{size}", *(dim % 2**64 for dim in tensor.dims))
    at = offset if tensor.offset is None else tensor.offset
    return name + struct.pack(order + "I", n_dims) + dims + struct.pack(order + "iQ", tensor.type, at)


def padding(size: int, align: int) -> bytes:
    return bytes(-size % align)


def build(file: File) -> bytes:
    """Lay a file out: header, pairs, tensor table, then the tensors' bytes padded to ``align``."""
    order, version = file.order, file.version if file.version in (1, 2, 3) else 3
    counts = "II" if version == 1 else "QQ"
    n_kv = len(file.kv) if file.n_kv is None else file.n_kv
    n_tensors = len(file.tensors) if file.n_tensors is None else file.n_tensors
    out = bytearray(file.magic + struct.pack(order + "I" + counts, file.version, n_tensors, n_kv))
    for pair in file.kv:
        out += kv_bytes(pair, order, version)
    running = 0
    for tensor in file.tensors:
        out += tensor_bytes(tensor, running, order, version)
        running += len(tensor.payload) + len(padding(len(tensor.payload), file.align))
    if not file.tensors:
        return bytes(out) + file.tail
    out += padding(len(out), file.align) if file.before_data is None else file.before_data
    for index, tensor in enumerate(file.tensors):
        out += tensor.payload
        if index + 1 < len(file.tensors) or file.pad_last:
            out += padding(len(tensor.payload), file.align)
    return bytes(out) + file.tail


# --- the smallest Llama that loads -----------------------------------------------------------------------


def weights(name: str, dims: Iterable[int], kind: int = F32_T) -> bytes:
    """Deterministic weights: small normal numbers seeded by the name."""
    import numpy as np

    count = 1
    for dim in dims:
        count *= dim
    seed = int.from_bytes(name.encode()[-8:], "little") % 2**32
    values = (np.random.default_rng(seed).standard_normal(count) * 0.05).astype("<f4")
    if kind == F32_T:
        return values.tobytes()
    if kind == F16_T:
        return values.astype("<f2").tobytes()
    if kind == Q8_0_T:
        blocks = values.reshape(-1, 32)
        scale = np.abs(blocks).max(axis=1, keepdims=True) / 127
        quants = np.round(blocks / np.maximum(scale, 1e-12)).astype("i1")
        return b"".join(s.astype("<f2").tobytes() + q.tobytes() for s, q in zip(scale, quants, strict=True))
    return bytes(count // GGML[kind][0] * GGML[kind][1])


def spm_tokens(count: int = 288) -> tuple[list[str], list[float], list[int]]:
    """A SentencePiece vocabulary: three control tokens, all bytes, then words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [2, 3, 3, *([6] * 256)]
    tokens += [f"▁w{index}" for index in range(count - len(tokens))]
    types += [1] * (count - len(types))
    return tokens[:count], [float(-index) for index in range(count)], types[:count]


def bpe_tokens() -> tuple[list[str], list[str]]:
    """A byte-level BPE vocabulary (the GPT-2 byte alphabet) with two merges."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = (256 + index for index in range(256))
    alphabet = [chr(byte) if byte in printable else chr(next(others)) for byte in range(256)]
    return ["<|bos|>", "<|eos|>", *alphabet, "he", "hel"], ["h e", "he l"]


def vocabulary(model: str = "llama") -> tuple[KV, ...]:
    """The ``tokenizer.*`` pairs of a small vocabulary (``llama``, ``gpt2`` or ``none``)."""
    if model == "none":
        return (KV("tokenizer.ggml.model", STR, "none"),)
    if model == "gpt2":
        tokens, merges = bpe_tokens()
        return (
            KV("tokenizer.ggml.model", STR, "gpt2"),
            KV("tokenizer.ggml.pre", STR, "gpt-2"),
            KV("tokenizer.ggml.tokens", ARR, Array(STR, tokens)),
            KV("tokenizer.ggml.token_type", ARR, Array(I32, [3, 3] + [1] * (len(tokens) - 2))),
            KV("tokenizer.ggml.merges", ARR, Array(STR, merges)),
            KV("tokenizer.ggml.bos_token_id", U32, 0),
            KV("tokenizer.ggml.eos_token_id", U32, 1),
        )
    tokens, scores, types = spm_tokens()
    return (
        KV("tokenizer.ggml.model", STR, "llama"),
        KV("tokenizer.ggml.tokens", ARR, Array(STR, tokens)),
        KV("tokenizer.ggml.scores", ARR, Array(F32, scores)),
        KV("tokenizer.ggml.token_type", ARR, Array(I32, types)),
        KV("tokenizer.ggml.bos_token_id", U32, 1),
        KV("tokenizer.ggml.eos_token_id", U32, 2),
        KV("tokenizer.ggml.unknown_token_id", U32, 0),
    )


def tiny_llama(
    *,
    layers: int = 2,
    width: int = 32,
    ff: int = 64,
    heads: int = 2,
    tokenizer: str = "llama",
    kind: int = F32_T,
    tied: bool = False,
    arch: str = "llama",
    align: int | None = None,
) -> File:
    """A whole Llama of some 40,000 weights as a ``File``, ready to be broken with its methods."""
    vocab = vocabulary(tokenizer)
    n_vocab = next((len(p.value.items) for p in vocab if p.key == "tokenizer.ggml.tokens"), 288)
    pairs = [
        KV("general.architecture", STR, arch),
        KV("general.name", STR, "tiny"),
        KV(f"{arch}.context_length", U32, 64),
        KV(f"{arch}.embedding_length", U32, width),
        KV(f"{arch}.block_count", U32, layers),
        KV(f"{arch}.feed_forward_length", U32, ff),
        KV(f"{arch}.attention.head_count", U32, heads),
        KV(f"{arch}.attention.head_count_kv", U32, heads),
        KV(f"{arch}.attention.layer_norm_rms_epsilon", F32, 1e-5),
        KV(f"{arch}.rope.dimension_count", U32, width // heads),
        KV(f"{arch}.vocab_size", U32, n_vocab),
        *vocab,
    ]
    if align is not None:
        pairs.append(KV("general.alignment", U32, align))
    shapes: list[tuple[str, tuple[int, ...]]] = [
        ("token_embd.weight", (width, n_vocab)),
        ("output_norm.weight", (width,)),
    ]
    if not tied:
        shapes.append(("output.weight", (width, n_vocab)))
    for layer in range(layers):
        shapes += [
            (f"blk.{layer}.attn_norm.weight", (width,)),
            (f"blk.{layer}.attn_q.weight", (width, width)),
            (f"blk.{layer}.attn_k.weight", (width, width)),
            (f"blk.{layer}.attn_v.weight", (width, width)),
            (f"blk.{layer}.attn_output.weight", (width, width)),
            (f"blk.{layer}.ffn_norm.weight", (width,)),
            (f"blk.{layer}.ffn_gate.weight", (width, ff)),
            (f"blk.{layer}.ffn_up.weight", (width, ff)),
            (f"blk.{layer}.ffn_down.weight", (ff, width)),
        ]
    tensors = []
    for name, dims in shapes:
        of = F32_T if len(dims) == 1 else kind
        tensors.append(Tensor(name, dims, of, weights(name, dims, of)))
    return File(tuple(pairs), tuple(tensors), align=align or 32)


def vocab_only(tokenizer: str = "llama", arch: str = "llama") -> File:
    """A vocabulary without a tensor, like llama.cpp's ``models/ggml-vocab-*.gguf``."""
    return File((KV("general.architecture", STR, arch), *vocabulary(tokenizer)))


def split_llama(parts: int = 3, **options: Any) -> list[File]:
    """A tiny Llama in several files: only the first has the metadata."""
    whole = tiny_llama(**options)
    total, out = len(whole.tensors), []
    for index in range(parts):
        mine = whole.tensors[total * index // parts : total * (index + 1) // parts]
        split = (
            KV("split.no", U16, index),
            KV("split.count", U16, parts),
            KV("split.tensors.count", I32, total),
        )
        out.append(File((*(whole.kv if index == 0 else ()), *split), mine, align=whole.align))
    return out


# --- files made to hurt ----------------------------------------------------------------------------------


def _nested(depth: int) -> bytes:
    return b"".join(struct.pack("<iQ", ARR, 1) for _ in range(depth)) + struct.pack("<iQB", U8, 1, 7)


def _one_kv(pair: KV, **options: Any) -> bytes:
    return File((KV("general.architecture", STR, "llama"), pair), **options).bytes()


def _one_tensor(tensor: Tensor, **options: Any) -> bytes:
    pairs = (KV("general.architecture", STR, "llama"), *options.pop("kv", ()))
    return File(pairs, (tensor,), **options).bytes()


_BIG = 1 << 63

#: Name -> bytes of a small file that must cost nothing and say something: a row each of what is known to
#: hang, crash or exhaust the readers in the wild.
HOSTILE: dict[str, Callable[[], bytes]] = {
    "empty": lambda: b"",
    "magic-only": lambda: b"GGUF",
    "cut-in-version": lambda: b"GGUF\x03",
    "cut-in-counts": lambda: b"GGUF" + struct.pack("<IQ", 3, 1),
    "header-only": lambda: File().bytes(),
    "n-kv-2-63": lambda: File(n_kv=_BIG).bytes(),
    "n-kv-2-64": lambda: File(n_kv=2**64 - 1).bytes(),
    "n-kv-2-32": lambda: File((KV("a", U8, 1),), n_kv=2**32).bytes(),
    "n-tensors-2-63": lambda: File(n_tensors=_BIG).bytes(),
    "n-tensors-2-40": lambda: File(n_tensors=2**40).bytes(),
    "key-length-2-63": lambda: _one_kv(KV("k", U8, 1, len_key=_BIG)),
    "key-length-2-64": lambda: _one_kv(KV("k", U8, 1, len_key=2**64 - 1)),
    "string-length-2-63": lambda: _one_kv(KV("k", STR, raw=struct.pack("<Q", _BIG))),
    "string-length-2-64": lambda: _one_kv(KV("k", STR, raw=struct.pack("<Q", 2**64 - 8))),
    "array-count-2-63": lambda: _one_kv(KV("k", ARR, Array(U8, [1], _BIG))),
    "array-count-wraps": lambda: _one_kv(KV("k", ARR, Array(U64, [1], 2**61))),
    "array-2-30-bools": lambda: _one_kv(KV("k", ARR, Array(BOOL, [1], 2**30))),
    "array-2-30-strings": lambda: _one_kv(KV("k", ARR, Array(STR, [], 2**30))),
    "array-2-62-empty-strings": lambda: _one_kv(KV("k", ARR, Array(STR, ["", ""], 2**62))),
    "array-unknown-type": lambda: _one_kv(KV("k", ARR, raw=struct.pack("<iQ", 77, 1))),
    "array-negative-type": lambda: _one_kv(KV("k", ARR, raw=struct.pack("<iQ", -1, 1))),
    "nested-array": lambda: _one_kv(KV("k", ARR, raw=_nested(1))),
    "nested-3000": lambda: _one_kv(KV("k", ARR, raw=_nested(3000))),
    "nested-100000": lambda: _one_kv(KV("k", ARR, raw=_nested(100000))),
    "nested-wide": lambda: _one_kv(
        KV("k", ARR, raw=struct.pack("<iQ", ARR, 2**20) + struct.pack("<iQ", U8, 0) * 1000)
    ),
    "value-type-13": lambda: _one_kv(KV("k", 13, raw=bytes(8))),
    "value-type-negative": lambda: _one_kv(KV("k", -5, raw=bytes(8))),
    "empty-key": lambda: _one_kv(KV("", U8, 1)),
    "duplicate-key": lambda: _one_kv(KV("general.architecture", STR, "gpt2")),
    "key-not-utf8": lambda: _one_kv(KV(b"\xff\xfe", STR, b"\x80\x81")),
    "n-dims-5": lambda: _one_tensor(Tensor("t", (1, 1, 1, 1, 1))),
    "n-dims-million": lambda: _one_tensor(Tensor("t", (4,), n_dims=10**6)),
    "n-dims-2-32": lambda: _one_tensor(Tensor("t", (4,), n_dims=2**32 - 1)),
    "dims-overflow": lambda: _one_tensor(Tensor("t", (2**40, 2**40), data=bytes(32))),
    "dims-wrap-to-zero": lambda: _one_tensor(Tensor("t", (2**32, 2**32), data=b"")),
    "dims-2-63": lambda: _one_tensor(Tensor("t", (_BIG,), data=bytes(32))),
    "dims-minus-1": lambda: _one_tensor(Tensor("t", (2**64 - 1,), data=bytes(32))),
    "dim-zero": lambda: _one_tensor(Tensor("t", (0, 4), data=b"")),
    "no-dims": lambda: _one_tensor(Tensor("t", (), data=bytes(4))),
    "offset-2-64": lambda: _one_tensor(Tensor("t", (8,), offset=2**64 - 32)),
    "offset-past-end": lambda: _one_tensor(Tensor("t", (8,), offset=1 << 20)),
    "offset-unaligned": lambda: _one_tensor(Tensor("t", (8,), offset=4)),
    "data-missing": lambda: _one_tensor(Tensor("t", (1024,), data=bytes(100)), pad_last=False),
    "data-at-end": lambda: _one_tensor(Tensor("t", (8,), data=b""), before_data=b""),
    "type-unknown": lambda: _one_tensor(Tensor("t", (32,), 999, bytes(128))),
    "type-negative": lambda: _one_tensor(Tensor("t", (32,), -1, bytes(128))),
    "type-removed": lambda: _one_tensor(Tensor("t", (32,), 4, bytes(128))),
    "row-not-blocks": lambda: _one_tensor(Tensor("t", (33, 2), Q8_0_T, bytes(128))),
    "name-too-long": lambda: _one_tensor(Tensor("t" * 64, (8,))),
    "name-length-2-63": lambda: _one_tensor(Tensor("t", (8,), len_name=_BIG)),
    "name-empty": lambda: _one_tensor(Tensor("", (8,))),
    "alignment-zero": lambda: _one_tensor(Tensor("t", (8,)), kv=(KV("general.alignment", U32, 0),)),
    "alignment-3": lambda: _one_tensor(Tensor("t", (8,)), kv=(KV("general.alignment", U32, 3),)),
    "alignment-2-31": lambda: _one_tensor(Tensor("t", (8,)), kv=(KV("general.alignment", U32, 2**31),)),
    "alignment-u64": lambda: _one_tensor(Tensor("t", (8,)), kv=(KV("general.alignment", U64, 32),)),
    "alignment-string": lambda: _one_tensor(Tensor("t", (8,)), kv=(KV("general.alignment", STR, "32"),)),
    "alignment-array": lambda: _one_tensor(
        Tensor("t", (8,)), kv=(KV("general.alignment", ARR, Array(U32, [32])),)
    ),
    "byte-token-minus-1": lambda: (
        vocab_only()
        .with_kv(KV("tokenizer.ggml.tokens", ARR, Array(STR, ["<unk>", "<s>", "</s>", "<0x-1>"])))
        .with_kv(KV("tokenizer.ggml.scores", ARR, Array(F32, [0.0] * 4)))
        .with_kv(KV("tokenizer.ggml.token_type", ARR, Array(I32, [2, 3, 3, 6])))
        .bytes()
    ),
    "magic-ggml": lambda: b"lmgg" + bytes(20),
    "magic-wrong": lambda: b"GGUX" + struct.pack("<IQQ", 3, 0, 0),
    "version-0": lambda: File(version=0).bytes(),
    "version-1": lambda: vocab_only_version(1),
    "version-4": lambda: File(version=4).bytes(),
    "version-swapped": lambda: replace(vocab_only(), order=">").bytes(),
    "many-empty-keys": lambda: File(tuple(KV(b"", U8, 0) for _ in range(5000))).bytes(),
    "many-duplicates": lambda: File(tuple(KV("k", U8, 0) for _ in range(5000))).bytes(),
    "many-tensors": lambda: File(
        (), tuple(Tensor("t", (0,), data=b"") for _ in range(5000))
    ).bytes(),
}  # fmt: skip


def vocab_only_version(version: int) -> bytes:
    """A vocabulary in an older version of the format."""
    return replace(vocab_only(), version=version).bytes()
