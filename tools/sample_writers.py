"""Write ``.atlas`` version 1 and GGUF with nothing but ``struct``, straight from the specifications.

The sample files must not come from the code that is tested with them, so this imports nothing of atlas_kit.
Values are exact in every Python version: numbers come from ``random.Random.random``, whose sequence is
guaranteed, and are rounded by ``struct``.
"""

from __future__ import annotations

import random
import struct
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

# --- .atlas version 1 (formats/atlas.md) ------------------------------------------------------------------


def fnv1a(data: bytes) -> int:
    """Return the 32-bit FNV-1a hash, the checksum of version 1."""
    value = 0x811C9DC5
    for byte in data:
        value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
    return value


@dataclass(frozen=True)
class Note:
    """One entry to write."""

    key: bytes
    data: bytes
    type: int
    time: int


def atlas_v1(
    notes: Iterable[Note],
    *,
    created: int,
    modified: int | None = None,
    model_hash: bytes = b"",
    header_size: int = 104,
    checksum: Callable[[bytes], int] = fnv1a,
) -> bytes:
    """Return a whole file; the last two parameters give the dialects ``v1-96`` and ``v1-crc32``."""
    notes = list(notes)
    total = sum(32 + len(note.key) + 1 + len(note.data) for note in notes)
    times = created, created if modified is None else modified
    tail = struct.pack("<IQQQ32s", len(notes), *times, total, model_hash).ljust(header_size - 12, b"\0")
    head = b"ATLS" + struct.pack("<II", 1, checksum(tail)) + tail
    return head + b"".join(_entry_v1(note, checksum) for note in notes)


def _entry_v1(note: Note, checksum: Callable[[bytes], int]) -> bytes:
    sizes = len(note.key), len(note.data)
    head = struct.pack("<IIIIQII", *sizes, note.type, 0, note.time, checksum(note.data), 0)
    return head + note.key + b"\0" + note.data


crc32 = zlib.crc32

# --- GGUF (formats/gguf.md) -------------------------------------------------------------------------------

CODES = {"u8": "B", "i8": "b", "u16": "H", "i16": "h", "u32": "I", "i32": "i", "f32": "f", "bool": "?"}
CODES |= {"u64": "Q", "i64": "q", "f64": "d"}
TYPE_IDS = {"u8": 0, "i8": 1, "u16": 2, "i16": 3, "u32": 4, "i32": 5, "f32": 6, "bool": 7, "str": 8, "arr": 9}
TYPE_IDS |= {"u64": 10, "i64": 11, "f64": 12}


@dataclass(frozen=True)
class Tensor:
    """One tensor to write: ``dims`` as in the file (fastest first), ``data`` already encoded."""

    name: str
    dims: tuple[int, ...]
    ggml_type: int
    data: bytes


@dataclass
class Gguf:
    """A GGUF file in the making: ``(key, type, value)`` triples, arrays as type ``[u32]``, and tensors."""

    kv: list[tuple[str, str, object]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    order: str = "<"
    alignment: int = 32
    offsets: Sequence[int] | None = None  # instead of the right ones

    def header(self, n_tensors: int | None = None, n_kv: int | None = None) -> bytes:
        """Return everything before the tensor data, padding included; counts may be given wrong."""
        counts = (
            len(self.tensors) if n_tensors is None else n_tensors,
            len(self.kv) if n_kv is None else n_kv,
        )
        out = b"GGUF" + struct.pack(f"{self.order}IQQ", 3, *counts)
        for key, kind, value in self.kv:
            out += self.string(key) + self.typed(kind, value)
        for tensor, offset in zip(self.tensors, self.offsets or self.right_offsets(), strict=True):
            dims = struct.pack(f"{self.order}I{len(tensor.dims)}Q", len(tensor.dims), *tensor.dims)
            out += self.string(tensor.name) + dims
            out += struct.pack(f"{self.order}iQ", tensor.ggml_type, offset)
        return out + bytes(-len(out) % self.alignment if self.tensors else 0)

    def build(self, **wrong: int) -> bytes:
        """Return the whole file."""
        data = b"".join(t.data + bytes(-len(t.data) % self.alignment) for t in self.tensors)
        return self.header(**wrong) + data

    def right_offsets(self) -> list[int]:
        """Return each tensor's offset: the sum of the padded sizes before it."""
        offsets, here = [], 0
        for tensor in self.tensors:
            offsets.append(here)
            here += len(tensor.data) + -len(tensor.data) % self.alignment
        return offsets

    def string(self, text: str | bytes) -> bytes:
        """Return a length and the bytes."""
        raw = text.encode() if isinstance(text, str) else text
        return struct.pack(f"{self.order}Q", len(raw)) + raw

    def typed(self, kind: str, value: object) -> bytes:
        """Return a value after its type number."""
        if kind.startswith("["):
            item = kind[1:-1]
            head = struct.pack(f"{self.order}iiQ", TYPE_IDS["arr"], TYPE_IDS[item], len(value))
            return head + b"".join(self.scalar(item, one) for one in value)
        return struct.pack(f"{self.order}i", TYPE_IDS[kind]) + self.scalar(kind, value)

    def scalar(self, kind: str, value: object) -> bytes:
        """Return one value without its type."""
        return self.string(value) if kind == "str" else struct.pack(self.order + CODES[kind], value)


def numbers(seed: str, count: int, scale: float) -> list[float]:
    """Return ``count`` numbers with a bell-like spread, the same everywhere."""
    rng = random.Random(seed)
    return [scale * (rng.random() + rng.random() + rng.random() - 1.5) for _ in range(count)]


def f32(values: Sequence[float], order: str = "<") -> bytes:
    """Encode as 32-bit floats (ggml type 0)."""
    return struct.pack(f"{order}{len(values)}f", *values)


def f16(values: Sequence[float], order: str = "<") -> bytes:
    """Encode as 16-bit floats (ggml type 1)."""
    return struct.pack(f"{order}{len(values)}e", *values)


def q8_0(values: Sequence[float]) -> bytes:
    """Encode in blocks of 32: a 16-bit scale and 32 signed bytes (ggml type 8)."""
    out = []
    for start in range(0, len(values), 32):
        block = values[start : start + 32]
        scale = max(map(abs, block)) / 127
        rounded = [round(value / scale) if scale else 0 for value in block]
        out.append(struct.pack("<e32b", scale, *rounded))
    return b"".join(out)
