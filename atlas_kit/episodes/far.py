"""Episodes whose tokens and words lie elsewhere: what says where something stands is here, the rest comes when asked.

They find what ``Episodes`` with the same content finds, and read only what a question needs. Nothing is appended to
them. Knows no file: who makes them says how tokens and words are had.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.arrays import EpisodeArrays
from atlas_kit.episodes.search import Index
from atlas_kit.episodes.store import LEAST_LIMIT, Episodes, Found

Array: TypeAlias = NDArray[Any]


class FarEpisodes(Episodes):
    """Episodes that are read where they lie.

    Parameters
    ----------
    arrays
        As they are, but for ``tokens``, which are zeros that can be written to.
    piece, n_vocab
        As for ``Episodes``.
    line_ends
        (b,) how many line ends are in each block.
    index_for
        Gives the index of what a question needs.
    fetch
        Gives the tokens (n,) of the blocks from one to another, without the last.
    """

    def __init__(
        self,
        arrays: EpisodeArrays,
        piece: Callable[[int], bytes],
        n_vocab: int,
        *,
        line_ends: Array,
        index_for: Callable[[str], Index],
        fetch: Callable[[int, int], Array],
    ) -> None:
        super().__init__(piece, n_vocab, limit=max(LEAST_LIMIT, len(arrays)))
        self._index_for, self._fetch = index_for, fetch
        self._there = np.zeros(len(arrays.block_start), bool)
        self._tokens = arrays.tokens
        self._take(arrays)
        self._lines.extend(np.append([0], np.cumsum(line_ends, dtype=np.int64))[: len(line_ends)])

    def search(self, question: str, count: int, **options: Any) -> list[Found]:
        """Return what ``Episodes.search`` returns."""
        self._index = self._index_for(question)
        return super().search(question, count, **options)

    def text(self, start: int, stop: int) -> str:
        """Return what is held of a range of absolute positions as text."""
        self._require(start, stop)
        return super().text(start, stop)

    def texts(self, start: int, stop: int) -> list[str]:
        """Return what is held of a range of absolute positions as text, token by token."""
        self._require(start, stop)
        return super().texts(start, stop)

    def tokens(self, start: int, stop: int) -> list[int]:
        """Return the token ids that are held of a range of absolute positions."""
        self._require(start, stop)
        return super().tokens(start, stop)

    def _require(self, start: int, stop: int) -> None:
        """Have the tokens of a range."""
        first, last = self._held(start), self._held(stop)
        if first >= last:
            return
        starts = self._rows["block_start"].values
        one = int(np.searchsorted(starts, first, side="right")) - 1
        two = int(np.searchsorted(starts, last, side="left"))
        while one < two:
            behind = one + 1
            while behind < two and self._there[behind] == self._there[one]:
                behind += 1
            if not self._there[one]:
                tokens = self._pieces.checked(self._fetch(one, behind))
                self._tokens[int(starts[one]) : int(starts[one]) + len(tokens)] = tokens
                self._there[one:behind] = True
            one = behind

    def _indexed(self) -> Index:
        if self._index is None:
            self._index = self._index_for("")
        return self._index
