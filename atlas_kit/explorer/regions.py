"""The ranges of a file as arrays: which one holds a byte, and a window of them to scale, however many there are.

Knows numbers and kinds only; what a region is called and what it holds is known to whoever made it.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, NamedTuple

import numpy as np

from atlas_kit.codecs.numbers import Array

#: Kinds of regions, as ``inspect --map`` names them; the place in this row is what travels.
KINDS = (
    "header", "metadata", "tensor info", "tensor", "entry", "payload", "index", "padding", "garbage",
    "uncommitted", "trailing", "damaged", "unused",
)  # fmt: skip
#: A window of up to this many regions is sent region by region.
SINGLE = 1500
_LARGEST = (1 << 63) - 1


class RecordRegion(NamedTuple):
    """Bytes of one kind; ``record`` is what its maker calls it by, -1 for what lies between records."""

    offset: int
    size: int
    kind: str
    record: int = -1


class Regions:
    """The regions of a file: in order, without overlaps, covering every byte.

    Parameters
    ----------
    found
        What is known, in any order; where ranges overlap, the one that starts first keeps its bytes.
    size
        Bytes of the file; promises beyond are cut.
    gap
        The kind of bytes between two regions.
    tail
        The kind of bytes behind the last one.
    """

    def __init__(
        self, found: Iterable[RecordRegion], size: int, gap: str = "padding", tail: str = "unused"
    ) -> None:
        rows = [
            (min(r.offset, _LARGEST), min(r.size, _LARGEST - min(r.offset, _LARGEST)), KINDS.index(r.kind), r.record)
            for r in found
        ]  # fmt: skip
        self._build(np.array(rows, np.int64).reshape(-1, 4), size, gap, tail)

    @classmethod
    def of_rows(cls, rows: Array, size: int, gap: str, tail: str) -> Regions:
        """Make regions of (n, 4) int64: offset, size, the kind's place in ``KINDS``, record."""
        self = cls.__new__(cls)
        self._build(rows, size, gap, tail)
        return self

    def _build(self, rows: Array, size: int, gap: str, tail: str) -> None:
        starts, sizes, kinds, records = rows.T
        order = np.argsort(starts, kind="stable")
        starts, kinds, records = starts[order], kinds[order], records[order]
        ends = np.minimum(starts + sizes[order], size)
        reach = np.maximum.accumulate(ends) if len(ends) else ends
        before = np.concatenate([np.zeros(1, np.int64), reach[:-1]]) if len(ends) else ends
        starts = np.maximum(starts, before)
        kept = ends > starts
        starts, ends, kinds, records, before = (
            starts[kept], ends[kept], kinds[kept], records[kept], before[kept],
        )  # fmt: skip
        holes = starts > before
        last = int(ends[-1]) if len(ends) else 0
        behind = np.array([last] if last < size else [], np.int64)
        fill_kind = np.full(int(holes.sum()), KINDS.index(gap))
        parts = (
            (starts, before[holes], behind),
            (ends, starts[holes], np.full(len(behind), size)),
            (kinds, fill_kind, np.full(len(behind), KINDS.index(tail))),
            (records, np.full(len(fill_kind), -1), np.full(len(behind), -1)),
        )
        columns = [np.concatenate(part).astype(np.int64) for part in parts]
        order = np.argsort(columns[0], kind="stable")
        self.starts, self.ends, self.kinds, self.records = (column[order] for column in columns)
        self.size = size

    def __len__(self) -> int:
        return len(self.starts)

    def __getitem__(self, index: int) -> RecordRegion:
        start, end = int(self.starts[index]), int(self.ends[index])
        return RecordRegion(start, end - start, KINDS[self.kinds[index]], int(self.records[index]))

    def at(self, offset: int) -> int:
        """Return the number of the region that holds a byte of the file."""
        return int(np.searchsorted(self.ends, offset, "right"))

    def between(self, start: int, stop: int) -> range:
        """Return the numbers of the regions that hold bytes of ``start`` to ``stop``."""
        first = int(np.searchsorted(self.ends, start, "right"))
        return range(first, max(first, int(np.searchsorted(self.starts, stop, "left"))))

    def totals(self) -> list[tuple[str, int, int]]:
        """Return (kind, number of regions, bytes) of every kind that occurs, in the order of ``KINDS``."""
        sizes = self.ends - self.starts
        found = []
        for number, kind in enumerate(KINDS):
            mine = self.kinds == number
            if mine.any():
                found.append((kind, int(mine.sum()), int(sizes[mine].sum())))
        return found

    def window(self, start: int, stop: int, bins: int) -> list[dict[str, Any]]:
        """Return what is drawn of a window that is ``bins`` pixels wide.

        Regions that are a pixel wide or more come as they are. Runs of smaller ones in one pixel come as one
        item: ``count`` of them, and ``kinds`` with the bytes of each kind. At most about ``3 * bins`` items.
        """
        chosen = self.between(start, stop)
        if len(chosen) <= SINGLE:
            return [self._single(number) for number in chosen]
        part = slice(chosen.start, chosen.stop)
        starts, ends, kinds = self.starts[part], self.ends[part], self.kinds[part]
        pixel = max(1.0, (stop - start) / max(1, bins))
        own = (ends - starts) >= pixel
        column = ((starts - start) / pixel).astype(np.int64)
        column[own] = -1 - np.arange(len(own))[own]  # never merged
        firsts = np.flatnonzero(np.diff(column, prepend=column[0] - 1))
        counts = np.diff(firsts, append=len(column))
        return [
            self._single(chosen.start + int(first))
            if count == 1
            else _merged(starts, ends, kinds, int(first), int(count))
            for first, count in zip(firsts, counts, strict=True)
        ]

    def _single(self, number: int) -> dict[str, Any]:
        region = self[number]
        return {"offset": region.offset, "size": region.size, "kind": region.kind, "count": 1}


def _merged(starts: Array, ends: Array, kinds: Array, first: int, count: int) -> dict[str, Any]:
    part = slice(first, first + count)
    bytes_of = np.bincount(kinds[part], (ends - starts)[part])
    shares: dict[str, int] = {KINDS[n]: int(total) for n, total in enumerate(bytes_of) if total}
    start, end = int(starts[first]), int(ends[first + count - 1])
    largest = max(shares, key=lambda kind: shares[kind])
    return {"offset": start, "size": end - start, "kind": largest, "count": count, "kinds": shares}
