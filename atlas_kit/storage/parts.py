"""Sources made of others: a range of one, or several one after the other; nothing is copied until it is read.

So a file that lies inside of another, or in several parts, is read like any file. Knows no format. Both leave
closing to whoever opened what they are made of.
"""

from __future__ import annotations

import bisect
from collections.abc import Sequence

from atlas_kit.errors import TruncatedError
from atlas_kit.storage.source import Source


class SliceSource(Source):
    """``size`` bytes of another source, from ``start`` on."""

    def __init__(self, whole: Source, start: int, size: int) -> None:
        self.whole = whole
        self.start = start
        self.size = max(0, min(size, whole.size - start))
        self.path = whole.path
        self.identity = whole.identity
        self.far = whole.far

    def prepare(self, offset: int, size: int) -> None:
        """Pass on what is going to be read."""
        self.whole.prepare(self.start + offset, max(0, min(size, self.size - offset)))

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end of the range."""
        return self.whole.read_upto(self.start + offset, max(0, min(size, self.size - offset)))

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view of a part of the range."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TruncatedError(
                f"{size} bytes are expected, and the part ends at byte {self.size}",
                path=self.path, offset=offset,
            )  # fmt: skip
        return self.whole.view(self.start + offset, size)

    def changed(self) -> bool:
        """Tell whether the file behind it has changed."""
        return self.whole.changed()

    def refresh(self) -> None:
        """Do nothing: the range stays what it is."""

    def close(self) -> None:
        """Do nothing: the other source is closed by whoever opened it."""


class JoinedSource(Source):
    """Several sources, one after the other, called by the path of the first."""

    def __init__(self, parts: Sequence[Source]) -> None:
        self.parts = tuple(parts)
        self.starts = [0]
        for part in self.parts:
            self.starts.append(self.starts[-1] + part.size)
        self.size = self.starts.pop()
        self.path = self.parts[0].path

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end of the last part."""
        found = []
        number = max(0, bisect.bisect_right(self.starts, offset) - 1)
        while size > 0 and number < len(self.parts):
            start = offset - self.starts[number]
            expected = min(size, self.parts[number].size - start)
            piece = self.parts[number].read_upto(start, expected)
            found.append(piece)
            if len(piece) != expected:  # it became shorter: the next one does not start there
                break
            offset, size, number = offset + expected, size - expected, number + 1
        return found[0] if len(found) == 1 else b"".join(found)

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view of a range; where it spans parts it is a copy."""
        number = max(0, bisect.bisect_right(self.starts, offset) - 1)
        part = self.parts[number]
        start = offset - self.starts[number]
        if start >= 0 and 0 <= size <= part.size - start:
            return part.view(start, size)
        return memoryview(self.read(offset, size))

    def changed(self) -> bool:
        """Tell whether one of the files has changed."""
        return any(part.changed() for part in self.parts)

    def refresh(self) -> None:
        """Do nothing: the parts stay what they are."""

    def close(self) -> None:
        """Do nothing: the parts are closed by whoever opened them."""
