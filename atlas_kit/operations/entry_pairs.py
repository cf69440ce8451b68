"""The entries of two memory files by their keys, each file read once from its start to its end.

Two files that are compared mostly have the same order. Asking the second for each key of the first would look
it up in an index and read its head again, four times the work.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import zip_longest
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile

#: So many entries may wait for their like; in files whose orders differ by more, keys are looked up.
WAITING = 1 << 16


class Pairs:
    """Yields (place in the first file, its entry, the second's) for every key that is in both.

    Afterwards ``removed`` are the entries of the first file alone, ``added`` those of the second, by key, each in
    its file's order.
    """

    def __init__(self, first: MemoryFile, second: MemoryFile) -> None:
        self._first = first
        self._second = second
        self._left: dict[str, tuple[int, Entry]] = {}
        self._right: dict[str, Entry] = {}
        self.removed: dict[str, Entry] = {}
        self.added: dict[str, Entry] = {}

    def __iter__(self) -> Iterator[tuple[int, Entry, Entry]]:
        left, right = self._left, self._right
        for number, (ours, theirs) in enumerate(zip_longest(self._first.entries(), self._second.entries())):
            if ours is not None and theirs is not None and ours.key == theirs.key:
                yield number, ours, theirs
                continue
            if theirs is not None:
                right[theirs.key] = theirs
            if ours is not None:
                left[ours.key] = number, ours
            for key in {entry.key for entry in (ours, theirs) if entry is not None}:
                if key in left and key in right:
                    yield (*left.pop(key), right.pop(key))
            if len(left) + len(right) > WAITING:
                yield from self._by_key(number)
                return
        self.removed = {key: entry for key, (_, entry) in left.items()}
        self.added = right

    def _by_key(self, last: int) -> Iterator[tuple[int, Entry, Entry]]:
        """Look up what has not been paired yet, and all that follows ``last``."""
        for number, entry in enumerate(self._first.entries()):
            if number > last or entry.key in self._left:
                other = self._right.pop(entry.key, None) or self._second.get(entry.key)
                if other is None:
                    self.removed[entry.key] = entry
                else:
                    yield number, entry, other
        self.added = {entry.key: entry for entry in self._second.entries() if entry.key not in self._first}
