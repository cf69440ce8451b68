"""The index of a version 2 file and the heads of its records as arrays, for 300,000 of them at once.

What ``v2.StoreV2`` does for one entry with every check is done here for all of them without; a row that is looked at
is checked.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.explorer.contents import cell
from atlas_kit.formats.atlas import layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.schema import field_rows

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.v2 import StoreV2
    from atlas_kit.storage.source import Source


#: One row of an index block.
ROW = np.dtype([(name, "<u8") for name in layout.names_of(layout.IndexRecord)])
#: Heads of records are read together where they are this close, in pieces of this size.
_NEAR, _PIECE = 1 << 17, 1 << 22  # near: further than the longest key reaches
_HEAD = np.dtype(
    {
        "names": layout.names_of(layout.EntryHeader),
        "formats": [f"V{row.size}" if row.size not in (1, 4, 8) or row.name == "sync" else f"<u{row.size}"
                    for row in field_rows(layout.EntryHeader)],
    }
)  # fmt: skip


def live_rows(store: StoreV2) -> Array:
    """Return the index rows of the live entries in their order; what ``store.rows`` does, for 300,000 at once."""
    rows = np.concatenate(
        [np.frombuffer(store.records_of(block, 0, block.num_records), ROW) for block in store.blocks]
    )
    _, newest = np.unique(rows["ordinal"], return_index=True)  # the first: blocks come newest first
    rows = rows[newest]
    return rows[(rows["record_offset"] > 0) & (rows["record_offset"] < store.source.size)]


def columns_of(source: Source, places: Array) -> list[Any]:
    """Return the columns of the table for records at offsets ``places`` (n,) of a file that is not sealed.

    Their heads are read together and not checked one by one: a second for 300,000. A row that is looked at is.
    """
    heads = np.zeros(len(places), _HEAD)
    keys: list[str] = [""] * len(places)
    shapes: dict[int, tuple[int, ...]] = {}
    order = np.argsort(places, kind="stable")
    for group in _groups(places[order]):
        numbers = order[group]
        start = int(places[numbers[0]])
        raw = source.read_upto(start, int(places[numbers[-1]]) + _HEAD.itemsize + _NEAR - start)
        at = places[numbers] - start
        whole = at + _HEAD.itemsize <= len(raw)
        numbers, at = numbers[whole], at[whole]
        rows = np.frombuffer(raw, np.uint8)[at[:, None] + np.arange(_HEAD.itemsize)]
        found = rows.view(_HEAD).reshape(-1)
        heads[numbers] = found
        begin = at + _HEAD.itemsize + 8 * found["rank"].astype(np.int64)
        end = begin + np.minimum(found["key_length"], t.MAX_KEY).astype(np.int64)
        for number, first, last in zip(numbers.tolist(), begin.tolist(), end.tolist(), strict=True):
            keys[number] = raw[first:last].decode("utf-8", "surrogateescape")
        for place in np.flatnonzero(found["rank"]).tolist():
            rank = int(found["rank"][place])
            dims = np.frombuffer(raw[int(at[place]) + _HEAD.itemsize : int(begin[place])], "<u8")
            shapes[int(numbers[place])] = tuple(dims.tolist()) if len(dims) == rank else ()
    return _cells_of(heads, keys, shapes)


def _groups(places: Array) -> Iterator[slice]:
    """Yield runs of ascending offsets that are near each other, none much longer than a piece."""
    breaks = (np.diff(places) > _NEAR) | (np.diff(places // _PIECE) > 0)
    edges = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(places)]
    for first, last in itertools.pairwise(edges):
        if last > first:
            yield slice(first, last)


def _cells_of(heads: Array, keys: list[str], shapes: dict[int, tuple[int, ...]]) -> list[Any]:
    names = [t.data_type_name(kind) for kind in heads["data_type"].tolist()]
    tensors = [""] * len(keys)
    for number in np.flatnonzero(heads["dtype"]).tolist():
        row = t.DTYPE_BY_ID.get(int(heads["dtype"][number]))
        size = " x ".join(map(str, shapes.get(number, ()))) or "scalar"
        tensors[number] = f"{row.name if row else 'unknown'} {size}"
    return [[cell(key) for key in keys], names, tensors, heads["data_size"], heads["timestamp"]]
