"""Hypothesis strategies for what goes into a memory file, shared by the tests of format and codecs."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from hypothesis import strategies as st

from atlas_kit.formats.atlas import MemoryFile

U32 = st.integers(0, 2**32 - 1)
U64 = st.integers(0, 2**64 - 1)
CODECS = ("none", "lz4", "zlib", "zstd")
DTYPES = ("?", "u1", "i1", "<u2", "<i2", "<u4", "<i4", "<u8", "<i8", "<f2", "<f4", "<f8", "<c8", "<c16")


def keys(max_bytes: int = 256) -> st.SearchStrategy[str]:
    """Any bytes without NUL, as the library shows them: UTF-8, the rest as surrogate escapes."""
    text = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1)
    binary = st.binary(min_size=1, max_size=40).map(lambda raw: raw.replace(b"\0", b"\1"))
    raw = st.one_of(text.map(str.encode), binary, st.integers(1, 9).map(b"key%d".__mod__))
    return raw.map(lambda raw: raw[:max_bytes].decode("utf-8", "surrogateescape"))


@st.composite
def payloads(draw: st.DrawFn, min_size: int = 0) -> bytes:
    """Bytes: short, repetitive (so that codecs bite), or larger than a page."""
    kind = draw(st.sampled_from(("short", "runs", "noise")))
    if kind == "short":
        return draw(st.binary(min_size=min_size, max_size=64))
    size = draw(st.integers(max(1, min_size), 70_000))
    if kind == "noise":
        return np.random.default_rng(size).bytes(size)
    piece = draw(st.binary(min_size=1, max_size=9))
    return (piece * (size // len(piece) + 1))[:size]


@st.composite
def arrays(draw: st.DrawFn) -> np.ndarray[Any, Any]:
    """Arrays of every dtype with 0 to 4 dimensions, empty ones, big-endian and strided ones included."""
    dtype = np.dtype(draw(st.sampled_from(DTYPES)))
    shape = tuple(draw(st.lists(st.integers(0, 7), max_size=4)))
    count = int(np.prod(shape, dtype=int))
    if dtype.kind == "b":
        array = np.frombuffer(draw(st.binary(min_size=count, max_size=count)), "u1") % 2 == 1
    else:
        raw = draw(st.binary(min_size=8, max_size=16))
        array = np.frombuffer((raw * (count * dtype.itemsize))[: count * dtype.itemsize], dtype)
    array = array.reshape(shape)
    how = draw(st.sampled_from(("plain", "fortran", "reversed", "big-endian")))
    if how == "fortran":
        return np.asfortranarray(array)
    if how == "reversed" and array.ndim:
        return array[::-1]
    if how == "big-endian":
        return array.astype(array.dtype.newbyteorder(">"))
    return array


class Item(NamedTuple):
    """What a test sets: a value and everything that is stored beside it."""

    value: Any
    type: int
    flags: int
    timestamp: int
    options: dict[str, Any]

    def put(self, memory: MemoryFile, key: str) -> None:
        """Set it."""
        memory.set(
            key, self.value, type=self.type, flags=self.flags, timestamp=self.timestamp, **self.options
        )

    @property
    def data(self) -> bytes:
        """The bytes that must come back."""
        if isinstance(self.value, bytes):
            return self.value
        little = self.value.astype(self.value.dtype.newbyteorder("<"))
        return bytes(np.ascontiguousarray(little).tobytes())


@st.composite
def items(draw: st.DrawFn, *, plain: bool = False) -> Item:
    """Anything that can be set; ``plain``: what version 1 can hold too."""
    value = draw(payloads(min_size=1)) if plain else draw(st.one_of(payloads(), arrays()))
    options: dict[str, Any] = {}
    if not plain:
        options = draw(
            st.fixed_dictionaries({}, optional={"codec": st.sampled_from(CODECS), "shuffle": st.booleans()})
        )
    kind = draw(st.one_of(st.integers(0, 4), U32))
    return Item(value, kind, draw(st.one_of(st.just(0), U32)), draw(st.one_of(st.just(1), U64)), options)


def contents(*, plain: bool = False) -> st.SearchStrategy[dict[str, Item]]:
    """What a whole file holds."""
    return st.dictionaries(keys(), items(plain=plain), max_size=6)
