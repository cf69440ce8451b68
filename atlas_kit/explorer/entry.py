"""The payload of one entry for the explorer: its first bytes, its numbers in tiles, its array as a file."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.codecs.quantities import exact_size
from atlas_kit.errors import AtlasError, DataTooLargeError
from atlas_kit.explorer.matrix import StoredMatrix, as_matrix
from atlas_kit.formats.atlas import tables as t

if TYPE_CHECKING:
    from atlas_kit.explorer.items import Item
    from atlas_kit.formats.atlas import Entry
    from atlas_kit.storage.source import Source


#: A packed or sealed tensor of up to this many bytes is unpacked to be shown.
UNPACKED = 1 << 28


def is_plain(entry: Entry) -> bool:
    """Tell whether the payload stands in the file as it is."""
    return not entry.codec_id and not entry.filter_id and entry.payload_offset is not None


def first_bytes(source: Source, entry: Entry, item: Item, count: int) -> bytes:
    """Return the beginning of a payload, decoded; what damage leaves of it, with a word in ``item.problem``."""
    plain = is_plain(entry)
    if plain and entry.size > count:
        return source.read_upto(entry.payload_offset or 0, count)
    found = bytearray()
    try:
        for piece in entry.chunks():
            found += piece
            if len(found) >= count:
                break
    except AtlasError as error:
        item.problem = error.message
        if plain:
            return source.read_upto(entry.payload_offset or 0, min(count, entry.size))
    return bytes(found[:count])


def matrix_of(source: Source, entry: Entry) -> StoredMatrix:
    """Return a tensor entry to be read in tiles; a packed one is unpacked whole, where it is small enough."""
    row, shape = entry._require_shape()
    plain = is_plain(entry)
    if plain:
        place = entry.payload_offset or 0

        def read(offset: int, size: int) -> bytes:
            return source.read(place + offset, size)
    else:
        if entry.size > UNPACKED:
            raise DataTooLargeError(
                f"the tensor is packed and has {exact_size(entry.size)}, too much to be unpacked here",
                key=entry.key, hint="Export it, or repack the file without compression.",
            )  # fmt: skip
        held: list[bytes] = []

        def read(offset: int, size: int) -> bytes:
            if not held:
                held.append(entry.data)
            return held[0][offset : offset + size]

    return StoredMatrix(as_matrix(shape), shape, row.name, row.block, row.size, read, _decoder(row))


def _decoder(row: t.DType) -> Any:
    from atlas_kit.codecs import numbers

    def decode(raw: Any) -> Array:
        with np.errstate(all="ignore"):
            if row.name == "bfloat16":
                return numbers.from_bfloat16(np.frombuffer(raw, "<u2"))
            if row.name == "q8_0":
                return numbers.from_q8_0(np.frombuffer(raw, np.uint8).reshape(-1, row.size)).reshape(-1)
            values = np.frombuffer(raw, row.numpy)
            return (np.abs(values) if values.dtype.kind == "c" else values).astype(np.float32)

    return decode


def npy(entry: Entry) -> Iterator[bytes]:
    """Yield a tensor as ``.npy``; bfloat16 and q8_0 as float32."""
    values = entry.numbers()
    head = io.BytesIO()
    kind = {"descr": values.dtype.str, "fortran_order": False, "shape": values.shape}
    np.lib.format.write_array_header_1_0(head, kind)
    yield head.getvalue()
    yield np.ascontiguousarray(values).tobytes()
