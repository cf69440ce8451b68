"""Tensors as ranges of bytes: where they lie, how long their rows are, and which of their bytes must be numbers."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Kind:
    """How a number is stored: where "not finite" begins in its bits without the sign, and where nonsense does.

    ``absurd`` is what no weight and no scale of a working model reaches; ``None`` where nothing is said.
    """

    width: int
    not_finite: int | None
    absurd: int | None = None
    signed: bool = True


# fmt: off
#: By name. Scales of 1,024 and more belong to weights beyond 8,000; plain numbers may go to 2^64.
KINDS: dict[str, Kind] = {
    "f16":      Kind(2, 0x7C00),
    "f16scale": Kind(2, 0x7C00, 0x6400),
    "bf16":     Kind(2, 0x7F80, 0x5F80),
    "f32":      Kind(4, 0x7F80_0000, 0x5F80_0000),
    "f64":      Kind(8, 0x7FF0_0000_0000_0000, 0x43F0_0000_0000_0000),
    "e8m0":     Kind(1, 0xFF, 0xA0, signed=False),
    "ue4m3":    Kind(1, None, 0x7F, signed=False),
    "e4m3":     Kind(1, 0x7F),
    "e5m2":     Kind(1, 0x7C),
    "iq1_m":    Kind(2, 0x7C00, 0x6400),
}
# fmt: on


@dataclass(frozen=True)
class Region:
    """One tensor's bytes.

    Attributes
    ----------
    start, size
        Where it lies in the file.
    row, block
        Bytes of a row, and of a block of weights (of one number, for plain types).
    numbers
        (offset in a block, name of a ``Kind``) of each number that must be finite.
    matrix
        Whether it has two dimensions or more: biases and norms may be zeros, or anything, in sound models.
    plain
        Whether the numbers are the weights themselves, and not scales of them.
    """

    name: str
    start: int
    size: int
    row: int
    block: int
    numbers: tuple[tuple[int, str], ...] = ()
    matrix: bool = True
    plain: bool = True

    @property
    def stop(self) -> int:
        """The offset behind its last byte."""
        return self.start + self.size

    def breaks_row(self, offset: int, *, before: bool) -> bool:
        """Tell whether an offset is inside a row, by more than what may be equal to its neighbour by chance.

        ``before`` means that a range starts there, which may begin a little before the row that it is about.
        """
        slack = max(16, self.block)
        inside = (offset - self.start) % self.row
        if self.row <= 2 * slack or offset <= self.start or offset >= self.stop:
            return False
        return self.row - inside > slack and inside != 0 if before else inside > slack


def touched(regions: Sequence[Region], start: int, stop: int) -> Sequence[Region]:
    """Return the regions, sorted and without overlaps, of which bytes lie in a range."""
    first = max(0, bisect_right(regions, start, key=lambda region: region.start) - 1)
    last = bisect_right(regions, stop - 1, key=lambda region: region.start)
    return [region for region in regions[first:last] if region.stop > start and region.size]


def region_at(regions: Sequence[Region], offset: int) -> Region | None:
    """Return the region that a byte belongs to."""
    found = touched(regions, offset, offset + 1)
    return found[0] if found else None
