"""BM25 over blocks and the blocks that follow them. Knows texts and numbers of episodes, and no tokens."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.words import words

Array: TypeAlias = NDArray[Any]

K1, B = 1.2, 0.75


class Index:
    """Which words are in which blocks.

    Parameters
    ----------
    texts
        The text of each block.
    episode
        (b,) the number of each block's episode.
    """

    def __init__(self, texts: Sequence[str], episode: Array) -> None:
        self._counts = [Counter(words(text)) for text in texts]
        self._follows = np.append(episode[1:] == episode[:-1], False) if len(episode) else np.zeros(0, bool)

    @property
    def blocks(self) -> int:
        """The number of blocks."""
        return len(self._counts)

    def _times(self, word: str) -> Array:
        """(b,) how often a word is in each block."""
        return np.array([count[word] for count in self._counts], np.float32)

    def _pairs(self, values: Array, among: Array) -> Array:
        """(b,) the sums over each block and the next of its episode."""
        values = values * among
        values[:-1] += np.where(self._follows[:-1], values[1:], 0) if len(values) else 0
        return values * among

    def search(self, question: str, count: int, among: Array) -> list[tuple[int, float]]:
        """Return the first blocks of the best segments among (b,) blocks, and their scores, best first."""
        score = np.zeros(self.blocks, np.float32)
        lengths = self._pairs(np.array([c.total() for c in self._counts], np.float32), among)
        mean = max(1.0, float(lengths[among].mean())) if among.any() else 1.0
        for word in sorted(set(words(question))):
            times = self._pairs(self._times(word), among)
            holding = int((times > 0).sum())
            idf = np.log(1 + (among.sum() - holding + 0.5) / (holding + 0.5))
            score += idf * times * (K1 + 1) / (times + K1 * (1 - B + B * lengths / mean))
        best: list[tuple[int, float]] = []
        for block in np.argsort(-score, kind="stable"):
            if len(best) >= count or score[block] <= 0:
                break
            i = int(block)
            # One block apart they share a block.
            if not any(
                (i == j + 1 and self._follows[j]) or (j == i + 1 and self._follows[i]) for j, _ in best
            ):
                best.append((i, float(score[i])))
        return best

    def holding(self, text: str) -> Array:
        """(words, b) bool: whether each word of a text is in each block."""
        return np.array([self._times(word) > 0 for word in sorted(set(words(text)))])
