"""Words that mean nearly the same, so that what is asked in other words is found, too.

Whether words are near is said by vectors of words, which whoever makes a store gives (``llama/word_vectors.py`` makes
them of a model's token vectors). Knows vectors and no model; nothing of it is saved.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
#: Gives (n, d) float32 for n words: of length 1, or zeros where nothing is known of a word.
Vectors: TypeAlias = Callable[[Sequence[str]], Array]

#: How many words stand in for one that is asked for, the cosine from which they do, and how fast they count more:
#: chosen with tools/bench/recall.py on its tuning half.
NEAREST, LEAST_COSINE, POWER = 10, 0.1, 0.7
#: How many are looked at, of which many stand elsewhere than where is searched.
_LOOKED_AT = 64
#: Words whose vectors are kept at most, those that came first, and words that are looked up at a time.
_MOST_WORDS, _AT_ONCE = 16_384, 2048
#: Words for which nothing stands in: what they are near to says as little as they do.
_EMPTY_WORDS = """
a about after all am an and any are as at be been before but by can could did do does for from had has have
he her hers him his how i if in into is it its me mine my no not of on one or our out over shall she should
so some such than that the their them then there these they this those to under up us was we were what when
where which who whom whose why will with would you your
"""
_EMPTY = frozenset(_EMPTY_WORDS.split())


class Near(NamedTuple):
    """Words near to one, by number, and how much each counts, from 0 to 1."""

    numbers: Array
    weights: Array


class Akin:
    """What is near to a word among the words that were seen, which are numbered in the order in which they came."""

    def __init__(self, vectors: Vectors) -> None:
        self._vectors = vectors
        self._seen = 0
        self._numbers = np.zeros(0, np.int64)
        self._rows = np.zeros((0, 0), np.float32)

    def nearest(self, words: Sequence[str], known: Sequence[str]) -> list[Near]:
        """Return what may stand in for each of some words, itself left out.

        Parameters
        ----------
        known
            All words that were seen: those of an earlier call, and more behind them.
        """
        self._see(known)
        found = []
        for word, vector in zip(words, self._vectors(words), strict=True):
            if word in _EMPTY or not len(self._numbers) or not vector.any():
                found.append(Near(np.zeros(0, np.int64), np.zeros(0, np.float32)))
                continue
            cosines = self._rows[: len(self._numbers)] @ vector
            count = min(_LOOKED_AT + 1, len(cosines))
            at = np.sort(np.argpartition(-cosines, count - 1)[:count])
            at = at[cosines[at] > LEAST_COSINE]
            at = at[[known[number] != word for number in self._numbers[at].tolist()]]
            weights = ((cosines[at] - LEAST_COSINE) / (1 - LEAST_COSINE)) ** POWER
            found.append(Near(self._numbers[at], weights.astype(np.float32)))
        return found

    def _see(self, known: Sequence[str]) -> None:
        """Keep the vectors of words that came since the last call, as far as anything is known of them."""
        new = [n for n in range(self._seen, len(known)) if known[n].isalpha() and known[n] not in _EMPTY]
        self._seen = len(known)
        for start in range(0, len(new), _AT_ONCE):
            room = _MOST_WORDS - len(self._numbers)
            numbers = np.array(new[start : start + _AT_ONCE])
            rows = self._vectors([known[number] for number in numbers.tolist()])
            useful = np.flatnonzero(rows.any(axis=1))[: max(0, room)]
            count = len(self._numbers)
            if not len(useful):
                continue
            if count + len(useful) > len(self._rows):
                larger = np.zeros((2 * count + len(useful), rows.shape[1]), np.float32)
                if count:
                    larger[:count] = self._rows[:count]
                self._rows = larger
            self._rows[count : count + len(useful)] = rows[useful]
            self._numbers = np.append(self._numbers, numbers[useful])
            if room <= 0:
                return
