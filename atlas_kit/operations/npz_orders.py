"""Byte order and order of axes of arrays that came from an npz archive, so that they go back as they were.

Memory files hold numbers in little-endian, the last axis running fastest. What an archive had otherwise is written
down in an entry, and read again when an archive is made of the memory. Knows no archive.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import dumps, loads
from atlas_kit.errors import FileCorruptError
from atlas_kit.formats.atlas import tables

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile
    from atlas_kit.formats.npz import Member

#: The entry that says so.
ORDERS = "__npz__"


def is_turned(member: Member) -> bool:
    """Tell whether an array's bytes are others than a memory file would hold."""
    return member.dtype.byteorder == ">" or (member.fortran_order and len(member.shape) > 1)


def record_of(members: Iterable[Member]) -> str | None:
    """Return what to write down of arrays; ``None`` where all are as memory files hold them."""
    turned = {
        member.name: {"descr": member.dtype.str, "fortran_order": member.fortran_order}
        for member in members
        if is_turned(member)
    }
    return dumps({"arrays": turned}) if turned else None


def orders_of(memory: MemoryFile) -> dict[str, tuple[str, bool]]:
    """Return dtype and whether the first axis runs fastest, by key, of the entries that a memory has that of."""
    if ORDERS not in memory:
        return {}
    try:
        record = loads(memory[ORDERS].data)
    except FileCorruptError:
        return {}
    arrays = record.get("arrays") if isinstance(record, dict) else None
    if not isinstance(arrays, dict):
        return {}
    return {
        key: (item["descr"], item["fortran_order"])
        for key, item in arrays.items()
        if key in memory and _fits(memory[key], item)
    }


def _fits(entry: Entry, item: Any) -> bool:
    """Tell whether what was written down still describes an entry, which may have been changed since."""
    row = tables.DTYPE_BY_ID.get(entry.dtype_id)
    if row is None or row.block != 1 or entry.shape is None or not isinstance(item, dict):
        return False
    known = {row.numpy, row.numpy.replace("<", ">")}
    descr = item.get("descr")
    return isinstance(descr, str) and descr in known and isinstance(item.get("fortran_order"), bool)


def turned(entry: Entry, descr: str, fortran_order: bool) -> Callable[[], Iterable[bytes]]:
    """Return what yields an entry's numbers in the given orders."""
    if fortran_order:
        return lambda: [entry.array(verify=True).astype(descr).tobytes(order="F")]
    return lambda: _swapped(entry, descr)


def _swapped(entry: Entry, descr: str) -> Iterator[bytes]:
    import numpy as np

    dtype = np.dtype(descr)
    held = b""
    for piece in entry.chunks():
        held += bytes(piece)
        whole = len(held) - len(held) % dtype.itemsize
        yield np.frombuffer(held[:whole], dtype.newbyteorder("<")).astype(dtype).tobytes()
        held = held[whole:]
    yield held


__all__ = ["ORDERS", "is_turned", "orders_of", "record_of", "turned"]
