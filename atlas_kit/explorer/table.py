"""A table of many rows of which few are looked at: sorted and filtered here, a window at a time.

In the file's order only the rows that are shown are read. The columns are read when the table is first sorted or
filtered, once. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError

#: Rows that one answer holds at most.
MOST_ROWS = 500
#: Tables of up to this many rows have ``blk.2`` before ``blk.10``; in longer ones that would take seconds.
NATURAL = 50_000
_DIGITS = re.compile(r"(\d+)")


@dataclass(frozen=True)
class Column:
    """One column: ``kind`` says how a cell is shown and sorted: text, number, bytes, hex or time."""

    name: str
    label: str
    kind: str = "text"

    def to_json(self) -> dict[str, str]:
        """Return the column as JSON-ready data."""
        return {"name": self.name, "label": self.label, "kind": self.kind}


class FileTable:
    """Rows that are numbered in the file's order.

    Parameters
    ----------
    count
        Number of rows.
    row
        Gives the cells of one row: text, numbers, or None.
    cells
        Gives a whole column by its name: a sequence or an array (count,).
    searched
        Names of the columns that a filter looks at.
    """

    def __init__(
        self, title: str, columns: Sequence[Column], count: int, row: Callable[[int], list[Any]],
        cells: Callable[[str], Any], searched: Sequence[str],
    ) -> None:  # fmt: skip
        self.title = title
        self.columns = tuple(columns)
        self.count = count
        self._row = row
        self._cells = cells
        self._searched = tuple(searched)
        self._orders: dict[str, Array] = {}
        self._texts: list[str] | None = None
        self._last: tuple[Any, Array | None] = (None, None)

    def to_json(self) -> dict[str, Any]:
        """Return what is known without reading a row."""
        return {"title": self.title, "count": self.count, "columns": [c.to_json() for c in self.columns]}

    def check(self, number: int) -> None:
        """See that there is a row of that number.

        Raises
        ------
        InvalidParamError
        """
        if not 0 <= number < self.count:
            raise InvalidParamError(f"there is no row {number}: {self.title.lower()} has {self.count}")

    def window(
        self, start: int, count: int, sort: str = "", descending: bool = False, filter: str = ""
    ) -> dict[str, Any]:
        """Return some rows of the table as it is sorted and filtered, and how many rows it then has."""
        order = self._order(sort, descending, filter)
        total = self.count if order is None else len(order)
        start = max(0, min(start, total))
        stop = min(total, start + max(0, min(count, MOST_ROWS)))
        numbers = range(start, stop) if order is None else [int(n) for n in order[start:stop]]
        return {
            "start": start,
            "total": self.count,
            "matched": total,
            "rows": [[n, *self._row(n)] for n in numbers],
        }

    def position(self, number: int, sort: str = "", descending: bool = False, filter: str = "") -> int | None:
        """Return where a row stands in the table as it is sorted and filtered, if it is there."""
        order = self._order(sort, descending, filter)
        if order is None:
            return number if 0 <= number < self.count else None
        places = np.flatnonzero(order == number)
        return int(places[0]) if len(places) else None

    def locate(self, text: str) -> int | None:
        """Return the first row that is a text, else begins with it, else holds it; None where no row does.

        A space is also what tokenizers write in its place.
        """
        rows = [str(cell) for cell in self._cells(self._searched[0])]
        for form in dict.fromkeys((text, text.replace(" ", "\u2581"), text.replace(" ", "\u0120"))):
            if form in rows:
                return rows.index(form)
        wanted = text.casefold()
        for found in (str.startswith, str.__contains__):
            place = next((n for n, row in enumerate(rows) if wanted and found(row.casefold(), wanted)), None)
            if place is not None:
                return place
        return None

    def _order(self, sort: str, descending: bool, filter: str) -> Array | None:
        """Return the numbers of the rows to show, None for all of them in their order."""
        wanted = (sort, descending, filter)
        if self._last[0] != wanted:
            self._last = (wanted, self._make_order(sort, descending, filter))
        return self._last[1]

    def _make_order(self, sort: str, descending: bool, filter: str) -> Array | None:
        if not sort and not filter:
            return np.arange(self.count)[::-1] if descending else None
        order = self._sorted(sort) if sort else np.arange(self.count)
        if descending:
            order = order[::-1]
        if filter:
            order = order[self._matching(filter)[order]]
        return order

    def _sorted(self, name: str) -> Array:
        if name not in self._orders:
            column = next((c for c in self.columns if c.name == name), None)
            if column is None:
                return np.arange(self.count)
            cells = self._cells(name)
            if column.kind == "text":
                key = _natural if self.count <= NATURAL else str.casefold
                keys: list[Any] = [key(cell) for cell in cells]
                order = np.array(sorted(range(len(keys)), key=keys.__getitem__), np.int64)
            else:
                order = np.argsort(_numbers(cells), kind="stable")
            self._orders[name] = order
        return self._orders[name]

    def _matching(self, words: str) -> Array:
        """Return which rows hold every word of a filter, upper and lower case being the same."""
        if self._texts is None:
            columns = [self._cells(name) for name in self._searched]
            rows = columns[0] if len(columns) == 1 else map("\n".join, zip(*columns, strict=True))
            self._texts = [str(row).casefold() for row in rows]
        found = np.ones(self.count, bool)
        for word in words.casefold().split():
            found &= np.fromiter((word in text for text in self._texts), bool, self.count)
        return found


def _natural(text: str) -> tuple[Any, ...]:
    """Return a sort key by which ``blk.2`` comes before ``blk.10``."""
    if text.isalpha():
        return (text.casefold(),)
    parts: list[Any] = _DIGITS.split(text.casefold())
    parts[1::2] = [int(part) if len(part) < 4000 else 0 for part in parts[1::2]]
    return tuple(parts)


def _numbers(cells: Any) -> Array:
    if isinstance(cells, np.ndarray):
        return cells
    return np.array([-np.inf if cell is None else float(cell) for cell in cells], np.float64)
