"""A stored tensor as a matrix that is read in tiles: what a picture needs, with bounded work for any size.

``StoredMatrix`` is a tile source as ``MatrixView`` takes it: ``shape`` and ``tile``. A tile is pooled by the value
that is furthest from zero, sign kept, so that outliers survive; where a request covers more than ``BUDGET`` weights,
evenly spread rows are read (``sampled`` says so). Bytes come from positioned reads, never from a map: a file that
shrinks is an error and not a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.explorer.pooling import block, furthest, pool_blocks

Read = Callable[[int, int], "bytes | bytearray | memoryview"]

#: Weights that one tile may cost: some 50 ms of dequantising.
BUDGET = 1 << 21
#: Weights that a histogram looks at.
SAMPLE = 1 << 22
BINS = 80
#: Pixels of a tile along one side.
LARGEST_TILE = 1024


class Tile(NamedTuple):
    """Pooled numbers, the (rows, columns) that one of them stands for, and which share of these was looked at."""

    numbers: Array
    block: tuple[int, int]
    share: float


@dataclass(frozen=True)
class StoredMatrix:
    """Rows of numbers in a file, of which any part can be read.

    Attributes
    ----------
    shape
        (rows, columns); a vector is one row.
    dims
        The tensor's own shape.
    block, block_bytes
        Numbers are stored in blocks of so many, which take so many bytes.
    read
        Gives ``size`` bytes from ``offset``, counted from the first number.
    decode
        Makes whole blocks float32, flat.
    """

    shape: tuple[int, int]
    dims: tuple[int, ...]
    dtype: str
    block: int
    block_bytes: int
    read: Read
    decode: Callable[[Any], Array]

    @property
    def row_bytes(self) -> int:
        """Bytes of one row."""
        return self.shape[1] // self.block * self.block_bytes

    def slab(self, rows: Sequence[int], x0: int, x1: int) -> Array:
        """Return columns ``x0`` to ``x1`` of some rows, float32 (len(rows), x1 - x0)."""
        first, last = x0 // self.block, -(-x1 // self.block)
        width = (last - first) * self.block_bytes
        if not len(rows) or x1 <= x0:
            return np.empty((len(rows), max(0, x1 - x0)), np.float32)
        if width == self.row_bytes and rows == range(rows[0], rows[0] + len(rows)):
            raw: Any = self.read(rows[0] * self.row_bytes, len(rows) * width)
        else:
            raw = b"".join(self.read(row * self.row_bytes + first * self.block_bytes, width) for row in rows)
        numbers = self.decode(raw).reshape(len(rows), -1)
        return numbers[:, x0 - first * self.block : x1 - first * self.block]

    def tile(self, y0: int, y1: int, x0: int, x1: int, rows: int, cols: int) -> Array:
        """Return a part of the matrix pooled to at most (rows, cols), float32."""
        return self.sampled_tile(y0, y1, x0, x1, rows, cols).numbers

    def sampled_tile(self, y0: int, y1: int, x0: int, x1: int, rows: int, cols: int) -> Tile:
        """Return the tile, the blocks that its numbers stand for, and which share of the weights was looked at."""
        y0, y1 = _within(y0, y1, self.shape[0])
        x0, x1 = _within(x0, x1, self.shape[1])
        height, width = y1 - y0, x1 - x0
        if not height or not width:
            return Tile(np.empty((height, width), np.float32), (1, 1), 1.0)
        wide = width > BUDGET  # rows of millions: few of them, and of each pixel's columns a run
        tall = block(height, min(rows, 8 if wide else max(1, BUDGET // width), LARGEST_TILE))
        long = block(width, min(cols, LARGEST_TILE))
        down = range(y0, y1, tall)
        if wide:
            numbers, looked = self._runs(down, x0, x1, long)
            return Tile(numbers, (tall, long), looked / (height * width))
        kept = min(tall, max(1, BUDGET // width // len(down)))
        if kept == tall:
            return Tile(pool_blocks(self.slab(range(y0, y1), x0, x1), tall, long), (tall, long), 1.0)
        chosen = [row + n * tall // kept for row in down for n in range(kept)]
        chosen = [row for row in chosen if row < y1]
        return Tile(pool_blocks(self.slab(chosen, x0, x1), kept, long), (tall, long), len(chosen) / height)

    def _runs(self, down: range, x0: int, x1: int, long: int) -> tuple[Array, int]:
        along = range(x0, x1, long)
        run = min(long, max(self.block, BUDGET // (len(down) * len(along)) // self.block * self.block))
        found = np.empty((len(down), len(along)), np.float32)
        for y, row in enumerate(down):
            for x, start in enumerate(along):
                part = self.slab(range(row, row + 1), start, min(x1, start + run))
                found[y, x] = furthest(part)
        return found, run * found.size

    def histogram(self) -> dict[str, Any]:
        """Return counts in equal bins and the moments of (a sample of) the finite numbers."""
        numbers, share = self._sample()
        finite = numbers[np.isfinite(numbers)].astype(np.float64)
        facts: dict[str, Any] = {
            "looked_at": int(numbers.size), "share": share, "nan": int(np.isnan(numbers).sum()),
            "inf": int(np.isinf(numbers).sum()), "zeros": int((numbers == 0).sum()), "counts": [], "edges": [],
        }  # fmt: skip
        if not finite.size:
            return facts
        low, high = float(finite.min()), float(finite.max())
        span = (low, high) if high > low else (low - 0.5, high + 0.5)
        counts, edges = np.histogram(finite, BINS, span)
        facts.update(
            min=low, max=high, mean=float(finite.mean()), std=float(finite.std()),
            counts=counts.tolist(), edges=[float(edges[0]), float(edges[-1])],
        )  # fmt: skip
        return facts

    def largest_of(self, percent: float) -> float:
        """Return the size that so many per cent of (a sample of) the finite numbers do not exceed; 0 without any."""
        numbers, _ = self._sample()
        sizes = np.abs(numbers[np.isfinite(numbers)])
        return float(np.quantile(sizes, min(max(percent, 0.0), 100.0) / 100)) if sizes.size else 0.0

    def _sample(self) -> tuple[Array, float]:
        height, width = self.shape
        if height * width == 0:
            return np.empty(0, np.float32), 1.0
        wide = min(width, SAMPLE)
        count = min(height, max(1, SAMPLE // wide))
        rows = [number * height // count for number in range(count)]
        found = self.slab(range(height) if count == height else rows, 0, wide)
        return found.reshape(-1), found.size / (height * width)


def _within(start: int, stop: int, size: int) -> tuple[int, int]:
    start = max(0, min(int(start), size))
    return start, max(start, min(int(stop), size))


def as_matrix(dims: tuple[int, ...]) -> tuple[int, int]:
    """Return the shape of a tensor seen as a matrix: its last dimension along, all others down."""
    rows = 1
    for dim in dims[:-1]:
        rows *= dim
    return rows, dims[-1] if dims else 1
