"""Where in a run a token stands that the episodes keep, whose numbers are of all that was ever stored.

Knows neither episodes nor traces.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence


class ReadAt:
    """From positions in the episodes to numbers of tokens in a run.

    Examples
    --------
    >>> places = ReadAt()
    >>> places.add(100, [0, 1, 2])
    >>> places.add(200, [4, 6])
    >>> [places.number(at) for at in (99, 102, 103, 201)]
    [None, 2, None, 6]
    """

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._numbers: list[Sequence[int]] = []

    def add(self, start: int, numbers: Sequence[int]) -> None:
        """Note that the positions from ``start`` on, behind all that are known, are these tokens of the run."""
        self._starts.append(start)
        self._numbers.append(numbers)

    def number(self, position: int) -> int | None:
        """Return the number of the token that stands there; None: it was not read in this run."""
        at = bisect.bisect_right(self._starts, position) - 1
        if at < 0:
            return None
        inside = position - self._starts[at]
        return self._numbers[at][inside] if inside < len(self._numbers[at]) else None
