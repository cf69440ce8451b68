"""A matrix of any size in a few hundred rows and columns, with its outliers: signed abs-max pooling.

Each number of a tile stands for a block of the matrix: it is the one farthest from zero, with its sign; NaN beats
infinity, and infinity all others. So one odd number among millions is seen.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array

#: Bytes of a matrix that are pooled at once: both passes over them find them in the processor's cache.
BAND = 1 << 20


def block(length: int, most: int) -> int:
    """Return how many neighbours become one so that at most ``most`` are left."""
    return max(1, -(-length // max(1, most)))


def pool(matrix: Array, rows: int, cols: int) -> Array:
    """Reduce (m, n) numbers to at most (rows, cols), by blocks of equal size; see `pool_blocks`."""
    return pool_blocks(matrix, block(matrix.shape[0], rows), block(matrix.shape[1], cols))


def pool_blocks(matrix: Array, height: int, width: int) -> Array:
    """Reduce (m, n) numbers by blocks of (height, width); the last ones may be cut off.

    Parameters
    ----------
    matrix
        (m, n), real.
    height, width
        Rows and columns that become one number.

    Returns
    -------
    ndarray
        (ceil(m / height), ceil(n / width)): float64 if the type has more than 32 bits, else float32.
    """
    wide = matrix.dtype.itemsize > 4 or matrix.dtype in (np.int32, np.uint32)
    dtype = np.float64 if wide else np.float32
    if height == width == 1:
        return np.ascontiguousarray(matrix, dtype)
    out = np.empty((-(-matrix.shape[0] // height), -(-matrix.shape[1] // width)), dtype)
    step = max(1, BAND // max(1, height * matrix.shape[1] * matrix.itemsize))
    for top in range(0, len(out), step):
        band = matrix[top * height : (top + step) * height]
        if matrix.dtype.kind != "f" or matrix.itemsize < 4:  # half precision and integers: no fast paths
            band = band.astype(dtype)
        high = _reduce(np.maximum, band, height, width)
        low = _reduce(np.minimum, band, height, width)
        # No comparison holds for NaN: then it is `low`, which is NaN as well.
        out[top : top + step] = np.where(high >= -low, high, low)
    return out


def furthest(numbers: Array) -> Any:
    """Return the number of a block that stands for it."""
    high, low = numbers.max(), numbers.min()
    return high if high >= -low else low  # no comparison holds for NaN: then both are


def _reduce(extreme: Callable[..., Any], band: Array, height: int, width: int) -> Array:
    """Take the extreme of each block: over rows, then over columns."""
    reduced: Array = _along(extreme, _along(extreme, band, height).T, width).T
    return reduced


def _along(extreme: Callable[..., Any], band: Array, size: int) -> Array:
    """Take the extreme of each ``size`` rows; whole slices at a time, since NumPy is slow on short axes."""
    out: Array = band[::size].copy()
    for offset in range(1, size):
        part = band[offset::size]
        extreme(out[: len(part)], part, out=out[: len(part)])
    return out
