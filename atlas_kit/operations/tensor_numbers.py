"""Numbers of tensors in pieces of bounded size: statistics of one, differences of two.

Works on iterators of flat arrays; what they come from (an entry, a GGUF tensor) is the caller's business.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.formats.atlas import tables

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    import numpy as np

    from atlas_kit.formats.atlas import Entry

#: Elements in one piece when two tensors are compared.
PIECE = 1 << 18
#: Sums of squares of numbers from 2^-400 to 2^400 have all their digits; and the exponent of the smallest number.
_SQUARED, _LEAST = 400, -1074


def entry_numbers(entry: Entry) -> Iterator[np.ndarray[Any, Any]]:
    """Yield a tensor entry's numbers as flat arrays; bfloat16 and q8_0 come as float32, complex as pairs."""
    import numpy as np

    from atlas_kit.codecs import numbers

    row = tables.DTYPE_BY_ID[entry.dtype_id]
    for raw in whole_items(entry.chunks(), row.size):
        if row.name == "bfloat16":
            yield numbers.from_bfloat16(np.frombuffer(raw, "<u2"))
        elif row.name == "q8_0":
            yield numbers.from_q8_0(np.frombuffer(raw, np.uint8).reshape(-1, row.size)).reshape(-1)
        elif row.numpy.startswith("<c"):
            yield np.frombuffer(raw, f"<f{row.size // 2}")
        else:
            yield np.frombuffer(raw, row.numpy)


def whole_items(chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
    """Cut a stream of bytes into pieces of whole items."""
    held = b""
    for chunk in chunks:
        data = held + bytes(chunk) if held else bytes(chunk)
        whole = len(data) // size * size
        held = data[whole:]
        if whole:
            yield data[:whole]


@dataclass
class TensorStats:
    """What ``--stats`` says of a tensor. The moments leave out what is not finite."""

    count: int = 0
    min: float | None = None
    max: float | None = None
    mean: float | None = None
    std: float | None = None
    zeros: int = 0
    nan: int = 0
    inf: int = 0

    def to_json(self) -> dict[str, Any]:
        """Return the statistics as JSON-ready data."""
        return dict(vars(self))


def stats_of(pieces: Iterable[np.ndarray[Any, Any]]) -> TensorStats:
    """Compute statistics in one pass and in float64, merging moments piece by piece (Chan et al. 1979)."""
    import numpy as np

    stats, finite = TensorStats(), 0
    mean: Any = 0.0
    squares: Any = 0.0
    for piece in pieces:
        stats.count += piece.size
        stats.zeros += int(piece.size - np.count_nonzero(piece))
        with np.errstate(invalid="ignore"):  # signalling NaN of damaged files
            numbers = piece.astype(np.float64)
        good = np.isfinite(numbers)
        if not good.all():
            stats.nan += int(np.isnan(numbers).sum())
            stats.inf += int(np.isinf(numbers).sum())
            numbers = numbers[good]
        if not numbers.size:
            continue
        low, high = float(numbers.min()), float(numbers.max())
        if max(-low, high) > 1e150:  # whose squares only wider numbers hold
            numbers = numbers.astype(np.longdouble)
        stats.min = low if stats.min is None else min(stats.min, low)
        stats.max = high if stats.max is None else max(stats.max, high)
        with np.errstate(over="ignore", invalid="ignore"):
            count, piece_mean = numbers.size, numbers.mean()
            piece_squares = np.square(numbers - piece_mean).sum()
            delta, total = piece_mean - mean, finite + count
            mean += delta * count / total
            squares += piece_squares + delta * delta * finite * count / total
        finite = total
    if finite:
        stats.mean, stats.std = float(mean), float(np.sqrt(squares / finite)) if squares >= 0 else math.nan
    return stats


@dataclass
class Difference:
    """How far two tensors of the same shape are apart; ``relative_l2`` is ``|a - b| / |a|``."""

    max_abs: float
    relative_l2: float
    cosine: float | None
    differing: int
    count: int

    def to_json(self) -> dict[str, Any]:
        """Return the difference as JSON-ready data."""
        return dict(vars(self))

    def within(self, tolerance: float) -> bool:
        """Tell whether no number differs by more than ``tolerance``."""
        return self.max_abs <= tolerance


def difference(first: Iterable[np.ndarray[Any, Any]], second: Iterable[np.ndarray[Any, Any]]) -> Difference:
    """Compare two streams of numbers in bounded memory; NaN equals NaN and is infinitely far from numbers."""
    import numpy as np

    peak, differing, count = 0.0, 0, 0
    dot = norm_a = norm_b = error = 0.0
    of_a = of_b = of_gap = _LEAST  # the powers of two that the numbers in these sums were divided by
    for a, b in zip(_pieces(first), _pieces(second), strict=True):
        with np.errstate(over="ignore", invalid="ignore"):
            same = (a == b) | (np.isnan(a) & np.isnan(b))
            gap = np.where(same, 0.0, a - b)
            gap = np.where(np.isnan(gap), np.inf, np.abs(gap))
            count += a.size
            differing += int(a.size - np.count_nonzero(same))
            peak = max(peak, float(gap.max(initial=0.0)))
            both = np.isfinite(a) & np.isfinite(b)
            x, y = (a, b) if both.all() else (a[both], b[both])
            x, down_a, of_a = _scaled(x, of_a)
            y, down_b, of_b = _scaled(y, of_b)
            gap, down, of_gap = _scaled(gap, of_gap)
            dot = math.ldexp(dot, down_a + down_b) + float(np.dot(x, y))
            norm_a = math.ldexp(norm_a, 2 * down_a) + float(np.dot(x, x))
            norm_b = math.ldexp(norm_b, 2 * down_b) + float(np.dot(y, y))
            error = math.ldexp(error, 2 * down) + float(np.dot(gap, gap))
    relative = 0.0 if error == 0 else math.inf if norm_a == 0 else math.sqrt(error / norm_a)
    if 0 < relative < math.inf:
        relative = _times_power(relative, of_gap - of_a)
    cosine = dot / math.sqrt(norm_a) / math.sqrt(norm_b) if norm_a > 0 and norm_b > 0 else None
    if cosine is not None:
        cosine = min(max(cosine, -1.0), 1.0)
    return Difference(peak, relative, cosine, differing, count)


def _pieces(arrays: Iterable[np.ndarray[Any, Any]]) -> Iterator[np.ndarray[Any, Any]]:
    """Cut a stream of flat arrays into float64 pieces of ``PIECE`` elements (the last one shorter)."""
    import numpy as np

    held: list[np.ndarray[Any, Any]] = []
    size = 0
    for array in arrays:
        held.append(array.astype(np.float64))
        size += array.size
        if size >= PIECE:
            joined = np.concatenate(held)
            whole = size // PIECE * PIECE
            for start in range(0, whole, PIECE):
                yield joined[start : start + PIECE]
            held, size = [joined[whole:]], size - whole
    if size:
        yield np.concatenate(held)


def _scaled(x: np.ndarray[Any, Any], power: int) -> tuple[np.ndarray[Any, Any], int, int]:
    """Return x divided by a power of two, so that no square is 0 or infinite, and by how much to lower sums so far.

    ``power`` belongs to the sums so far; the third result to these and x. It is 0 where the squares fit anyway.
    """
    import numpy as np

    peak = max(float(x.max(initial=0.0)), -float(x.min(initial=0.0)))
    own = math.frexp(peak)[1] if 0 < peak < math.inf else _LEAST
    new = max(power, 0 if abs(own) < _SQUARED else own)
    return (np.ldexp(x, -new) if new else x), power - new, new


def _times_power(x: float, power: int) -> float:
    """Return x 2^power, infinite where that is too large."""
    try:
        return math.ldexp(x, power)
    except OverflowError:
        return math.inf
