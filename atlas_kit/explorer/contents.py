"""What the explorer asks of a file, whatever its format; and files of which only the bytes can be shown."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.codecs.quantities import utc
from atlas_kit.errors import AtlasError, InvalidParamError, printable
from atlas_kit.explorer.items import Item
from atlas_kit.explorer.regions import RecordRegion, Regions
from atlas_kit.operations.hex_line import HexLine

if TYPE_CHECKING:
    from atlas_kit.explorer.table import FileTable
    from atlas_kit.storage.source import Source


#: Characters that a cell of a table has at most.
CELL = 400


class Contents:
    """A file of which only the bytes are known; the formats give more.

    Attributes
    ----------
    kind
        ``atlas``, ``gguf`` or ``unknown``.
    problem
        Why it could be read only in part, in one sentence, else None.
    locked
        Whether a passphrase is needed to see more.
    tables
        What it holds, by name; the first is shown first.
    """

    kind = "unknown"
    title = "file"
    locked = False

    def __init__(self, source: Source, problem: AtlasError | None = None) -> None:
        self.source = source
        self.problem = problem
        self.tables: dict[str, FileTable] = {}
        self._regions: Regions | None = None

    @property
    def regions(self) -> Regions:
        """The ranges of the file."""
        if self._regions is None:
            self._regions = self._make_regions()
        return self._regions

    def _make_regions(self) -> Regions:
        return Regions([RecordRegion(0, self.source.size, "unused")], self.source.size)

    def facts(self) -> list[tuple[str, str]]:
        """Return what one wants to know first, as (label, value)."""
        return []

    def name_of(self, region: RecordRegion) -> str:
        """Return what a region is called: a key, a tensor."""
        return ""

    #: By what else than its kind a region can be coloured.
    groupings: tuple[str, ...] = ()

    def group_of(self, region: RecordRegion, by: str) -> str | None:
        """Return the group of a region by one of ``groupings``; None where it has none."""
        return None

    def groups(self, by: str) -> list[tuple[str, int, int]]:
        """Return (name, count, bytes) of each group, in the order of the file."""
        return []

    def place_of(self, region: RecordRegion) -> tuple[str, int] | None:
        """Return the table and row that a region belongs to."""
        return None

    def find(self, name: str) -> tuple[str, int] | None:
        """Return the table and row of a key or tensor."""
        return None

    def fields(self, start: int, stop: int) -> list[HexLine]:
        """Return the fields that hold bytes of a (small) range, in order."""
        return []

    def item(self, table: str, row: int) -> Item:
        """Return one row of a table to be looked at.

        Raises
        ------
        AtlasError
            It is damaged.
        """
        raise InvalidParamError("the file has no such table", path=self.source.path)

    def table(self, name: str) -> FileTable:
        """Return a table by its name.

        Raises
        ------
        InvalidParamError
            There is none of that name.
        """
        try:
            return self.tables[name]
        except KeyError:
            raise InvalidParamError(f"the file has no table {name!r}", path=self.source.path) from None

    def close(self) -> None:
        """Release the file."""
        self.source.close()


def cell(text: str) -> str:
    """Return text as one cell of a table: safe to show, and not longer than anybody reads."""
    shown = text if text.isprintable() else printable(text[:CELL])
    return shown if len(shown) <= CELL else f"{shown[:CELL]}…"


def date(seconds: int) -> str:
    """Return Unix seconds as a date in UTC; 0 is unset."""
    return utc(seconds) or (f"{seconds} seconds, far in the future" if seconds else "unset")


def elements(
    source: Source, name: str, dims: tuple[int, ...], place: int, dtype: str, start: int, stop: int
) -> list[HexLine]:
    """Return the numbers of a plain tensor at file offset ``place`` that hold bytes of a range, one field each."""
    import numpy as np

    kind = np.dtype(dtype)
    count = 1
    for dim in dims:
        count *= dim
    first = max(0, (start - place) // kind.itemsize)
    last = min(count, -(-(stop - place) // kind.itemsize))
    if last <= first:
        return []
    raw = source.read_upto(place + first * kind.itemsize, (last - first) * kind.itemsize)
    values = np.frombuffer(raw[: len(raw) // kind.itemsize * kind.itemsize], kind)
    found = []
    for number, value in enumerate(values, first):
        at = ", ".join(map(str, _unravelled(number, dims)))
        piece = raw[(number - first) * kind.itemsize :][: kind.itemsize]
        label = f"{name}[{at}]" if dims else name
        shown = f"{value:.7g}" if kind.kind == "f" else str(value)
        at_byte = place + number * kind.itemsize
        found.append(HexLine(at_byte, kind.itemsize, piece, label, kind.name, shown, "one weight"))
    return found


def _unravelled(number: int, dims: tuple[int, ...]) -> list[int]:
    """Return the indices of an element by its number; NumPy's own refuses the dimensions of hostile files."""
    found: list[int] = []
    for dim in reversed(dims):
        number, index = divmod(number, dim)
        found.insert(0, index)
    return found


__all__ = ["Contents", "HexLine", "cell", "date", "elements"]
