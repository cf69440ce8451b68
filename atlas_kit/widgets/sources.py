"""Whatever is like a matrix as a source of tiles, and what one look at all of it finds.

Tiles are pooled as ``explorer/pooling.py`` says. Nothing here knows about widgets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer.pooling import BAND, block, pool


class TileSource(Protocol):
    """A matrix that is too large or too far away to be an array: it gives pieces when they are asked for."""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns."""

    def tile(self, y0: int, y1: int, x0: int, x1: int, rows: int, cols: int) -> Array:
        """Return rows ``y0:y1`` and columns ``x0:x1``, pooled to at most (rows, cols) floats: see `pool`."""


class ArraySource:
    """An array as a `TileSource`; memory-mapped ones are read where they are looked at."""

    def __init__(self, matrix: Any) -> None:
        self.array = as_matrix(matrix)
        self.shape: tuple[int, int] = self.array.shape

    @property
    def dtype(self) -> str:
        """The numbers' type, for people."""
        return str(self.array.dtype)

    def tile(self, y0: int, y1: int, x0: int, x1: int, rows: int, cols: int) -> Array:
        """Return a pooled piece: float64 where the array is wider than float32, else float32."""
        return pool(self.array[y0:y1, x0:x1], rows, cols)

    def value(self, row: int, column: int) -> Any:
        """Return one number as it is, in the array's own type."""
        return self.array[row, column]


def as_source(matrix: Any) -> TileSource:
    """Return a `TileSource` as it is, and anything like an array as an `ArraySource`."""
    if callable(getattr(matrix, "tile", None)) and not hasattr(
        matrix, "__array__"
    ):  # PyTorch's have a tile, too
        return cast(TileSource, matrix)
    return ArraySource(matrix)


def as_matrix(matrix: Any) -> Array:
    """Return anything like a matrix as an array of two axes; what is one already is not copied.

    Raises
    ------
    InvalidParamError
        If it has more than two axes, or its elements are not real numbers.
    """
    if hasattr(matrix, "__cuda_array_interface__") and hasattr(matrix, "get"):  # CuPy's
        matrix = matrix.get()
    if hasattr(matrix, "detach"):  # PyTorch's weights
        matrix = matrix.detach().cpu()
    try:
        array = np.atleast_1d(np.asarray(matrix))
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidParamError(f"this is not a matrix: {error}") from error
    if array.ndim == 1:
        array = array[None]
    if array.ndim != 2:
        raise InvalidParamError(
            f"a matrix has two axes, and this has {array.ndim}: {array.shape}",
            hint="Take one of its matrices, for example array[0].",
        )
    if array.dtype.kind not in "biuf":
        raise InvalidParamError(
            f"elements of type {array.dtype} cannot be shown on a colour scale",
            hint="Convert them to real numbers, for example with astype(np.float32).",
        )
    return array


@dataclass(frozen=True)
class Measured:
    """What one look at a whole matrix finds."""

    overview: Array  # all of it, pooled
    largest: float  # the largest finite magnitude
    nan: int
    infinite: int
    counted: bool = True  # False: there may be more of both than the overview shows


def measure(source: TileSource, most: int) -> Measured:
    """Pool a whole matrix to at most (most, most); if the result has NaN or infinities, count them.

    Of an array all numbers are counted. Another source may take minutes to read, or read samples: of it, the
    overview's are.
    """
    rows, columns = source.shape
    if not rows * columns:
        return Measured(np.zeros((0, 0), np.float32), 0.0, 0, 0)
    overview = source.tile(0, rows, 0, columns, most, most)
    largest = float(np.abs(overview).max())
    if np.isfinite(largest):
        return Measured(overview, largest, 0, 0)
    whole = isinstance(source, ArraySource)
    largest, nan, infinite = _count(source.array if isinstance(source, ArraySource) else overview)
    return Measured(overview, largest, nan, infinite, counted=whole)


def _count(numbers: Array) -> tuple[float, int, int]:
    """Return the largest finite magnitude and the numbers of NaN and infinities, band by band."""
    largest, nan, infinite = 0.0, 0, 0
    step = max(1, BAND // max(1, numbers.shape[1]))
    for top in range(0, len(numbers), step):
        band = pool(numbers[top : top + step], step, numbers.shape[1])
        nan += int(np.isnan(band).sum())
        infinite += int(np.isinf(band).sum())
        largest = max(largest, float(np.abs(band).max(initial=0.0, where=np.isfinite(band))))
    return largest, nan, infinite


__all__ = [
    "Array",
    "ArraySource",
    "Measured",
    "TileSource",
    "as_matrix",
    "as_source",
    "block",
    "measure",
    "pool",
]
