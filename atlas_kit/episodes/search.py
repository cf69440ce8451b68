"""BM25 over blocks and the blocks that follow them: built at a million tokens a second, and grown block by block.

Knows texts and which block follows which, and no tokens. SQLite's FTS5 and a package of its own were measured
beside it (``tools/bench/episodes.py``).
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.words import is_unspaced, of_run, runs, words

Array: TypeAlias = NDArray[Any]

#: BM25: how soon more of a word stops to count, and how much the length of a text does.
K1, B = 1.2, 0.75
#: Words that begin with the same letters are of one family, which counts like a word of its own: installed, installer.
_FAMILY_LETTERS = 5
#: Different words of a question that are looked up: of a longer text the last.
_MOST_WORDS = 512
#: Bits of a block's number in a key.
_BLOCK_BITS = 31
_BLOCK_MASK = (1 << _BLOCK_BITS) - 1


class Index:
    """Which words are in which blocks. Blocks are numbered in the order in which they are added."""

    def __init__(self) -> None:
        #: How often blocks were taken away: their words stay known, until the index is made anew.
        self.thinned = 0
        self._runs = _Runs()
        self._parts: list[tuple[Array, Array]] = []
        self._lengths = np.zeros(0, np.float32)
        self._asks = np.zeros(0, bool)
        self._last: tuple[Array, Array] | None = None
        self._last_length = np.zeros(0, np.float32)
        self._last_asks = np.zeros(0, bool)

    @property
    def asks(self) -> Array:
        """(b,) bool: whether a block ends with a question mark, the one that still grows included."""
        return np.concatenate((self._asks, self._last_asks))

    @property
    def blocks(self) -> int:
        """The number of blocks, without the one that still grows."""
        return len(self._lengths)

    def grow(self, text: str | None) -> None:
        """Say what the block behind the others holds by now, which still grows; None if there is none."""
        self._last, self._last_length, self._last_asks = None, np.zeros(0, np.float32), np.zeros(0, bool)
        if text is not None:
            keys, times, self._last_length = self._posted([text])
            self._last, self._last_asks = (keys, times), _asking([text])

    def add(self, texts: Sequence[str]) -> None:
        """Add blocks at the end, which do not change any more."""
        self.grow(None)
        keys, times, lengths = self._posted(texts)
        self._lengths = np.concatenate((self._lengths, lengths))
        self._asks = np.concatenate((self._asks, _asking(texts)))
        self._parts.append((keys, times))
        # Parts are at least twice as large as the next: a block is merged a few times, and a search has few parts.
        while len(self._parts) > 1 and len(self._parts[-2][0]) < 2 * len(self._parts[-1][0]):
            keys, times = (np.concatenate(rows) for rows in zip(*self._parts[-2:], strict=True))
            order = np.argsort(keys, kind="stable")
            self._parts[-2:] = [(keys[order], times[order])]

    @property
    def lengths(self) -> Array:
        """(b,) the words in each block, the one that still grows included."""
        return np.concatenate((self._lengths, self._last_length))

    def posts(self) -> Posts:
        """Return all that is known of the words, to be kept elsewhere."""
        rows = [*self._parts, *filter(None, [self._last])]
        keys = np.concatenate([np.zeros(0, np.int64), *(keys for keys, _ in rows)])
        times = np.concatenate([np.zeros(0, np.float32), *(times for _, times in rows)])
        numbers = keys >> _BLOCK_BITS
        known = sorted(((word.encode(), number) for word, number in self._runs.words.items()))
        rank = np.zeros(len(known), np.int64)
        rank[[number for _, number in known]] = np.arange(len(known))
        order = np.lexsort((keys & _BLOCK_MASK, rank[numbers]))
        counts = np.bincount(rank[numbers], minlength=len(known))
        return Posts(
            [word.decode() for word, _ in known],
            np.append([0], np.cumsum(counts)).astype(np.int64),
            (keys & _BLOCK_MASK)[order],
            times[order].astype(np.int64),
        )

    def keep(self, kept: Array) -> None:
        """Keep those blocks for which (b,) bool is true; they are numbered anew."""
        self.grow(None)
        self.thinned += 1
        number = np.cumsum(kept) - 1
        parts = []
        for keys, times in self._parts:
            blocks = keys & _BLOCK_MASK
            stay = kept[blocks]
            if stay.any():
                parts.append(((keys[stay] & ~_BLOCK_MASK) | number[blocks[stay]], times[stay]))
        self._parts, self._lengths, self._asks = parts, self._lengths[kept], self._asks[kept]

    def search(self, question: str, follows: Array, among: Array) -> Array:
        """Return the scores of all segments for a question.

        Parameters
        ----------
        follows
            (b,) bool: whether the next block belongs to the same episode.
        among
            (b,) bool: the blocks that are searched. Words are as rare as they are in these.

        Returns
        -------
        (b,) float32: BM25 of each block and the one that follows it; 0 where no word occurs.
        """
        pairs = among[:-1] & among[1:] & follows[:-1]
        lengths = np.where(among, np.concatenate((self._lengths, self._last_length)), 0)
        lengths[:-1] += np.where(pairs, lengths[1:], 0)
        count = int(np.count_nonzero(among))
        norm = lengths * np.float32(K1 * B / max(1.0, lengths.sum(dtype=np.float64) / max(1, count)))
        norm += K1 * (1 - B)
        score = np.zeros(len(among), np.float32)
        sums = np.zeros(len(among), np.float32)
        for terms in self._terms(question):
            blocks, times = self._posts(terms)
            inside = among[blocks]
            blocks, times = blocks[inside], times[inside]
            sums[blocks] = times
            after = blocks > 0
            earlier, more = blocks[after] - 1, times[after]
            paired = pairs[earlier]
            earlier = earlier[paired]
            new = earlier[sums[earlier] == 0]
            sums[earlier] += more[paired]
            touched = np.concatenate((blocks, new))
            found = sums[touched]
            idf = np.log1p((count - len(touched) + 0.5) / (len(touched) + 0.5))
            score[touched] += np.float32(idf * (K1 + 1)) * found / (found + norm[touched])
            sums[touched] = 0
        return score

    def holding(self, text: str) -> Array:
        """(words, b) bool: whether each word of a text is in each block, the one that still grows included."""
        found = list(dict.fromkeys(words(text)))
        holds = np.zeros((len(found), self.blocks + len(self._last_length)), bool)
        for row, word in zip(holds, found, strict=True):
            row[self._posts(self._runs.numbers_of(word))[0]] = True
        return holds

    def _terms(self, question: str) -> list[list[int]]:
        """What a question looks for: each known word, and each family of words, by their numbers."""
        known = self._runs
        found = list(dict.fromkeys(words(question)))[-_MOST_WORDS:]
        terms = [numbers for word in found if (numbers := known.numbers_of(word))]
        families = dict.fromkeys(family for word in found if (family := _family(word)))
        return [*terms, *(known.families[family] for family in families if family in known.families)]

    def _posts(self, numbers: Sequence[int]) -> tuple[Array, Array]:
        """Blocks that hold any of some words, each once, and how often each does."""
        edges = np.array(numbers, np.int64) << _BLOCK_BITS
        found = []
        for keys, times in (*self._parts, *filter(None, [self._last])):
            firsts, lasts = np.searchsorted(keys, edges), np.searchsorted(keys, edges + (1 << _BLOCK_BITS))
            for first, last in zip(firsts.tolist(), lasts.tolist(), strict=True):
                if first < last:
                    found.append((keys[first:last] & _BLOCK_MASK, times[first:last]))
        if not found:
            return np.zeros(0, np.int64), np.zeros(0, np.float32)
        if len(found) == 1:
            return found[0]
        blocks, times = (np.concatenate(rows) for rows in zip(*found, strict=True))
        if len(numbers) == 1:  # no block is in two parts
            return blocks, times
        blocks, inverse = np.unique(blocks, return_inverse=True)
        return blocks, np.bincount(inverse, times).astype(np.float32)

    def _posted(self, texts: Iterable[str]) -> tuple[Array, Array, Array]:
        """Keys of word and block in their order, how often each occurs, and the words of each new block."""
        every: list[str] = []
        counts = []
        for text in texts:
            found = runs(text)
            every += found
            counts.append(len(found))
        numbers = np.fromiter(map(self._runs.__getitem__, every), np.int64, len(every))
        block = np.repeat(np.arange(len(counts)), counts)
        # A run is several words, or one.
        first, last = self._runs.edges(numbers)
        many = last - first
        at = np.repeat(first - (np.cumsum(many) - many), many) + np.arange(int(many.sum()))
        block = np.repeat(block, many)
        lengths = np.bincount(block, minlength=len(counts)).astype(np.float32)
        keys = np.sort((self._runs.numbers(at) << _BLOCK_BITS) | (block + self.blocks))
        new = np.flatnonzero(np.diff(keys, prepend=-1))
        times = np.diff(new, append=len(keys)).astype(np.float32)
        return keys[new], times, lengths


class Posts(NamedTuple):
    """Words in the order of their bytes, and where each occurs: word i from ``first[i]`` to ``first[i + 1]``.

    Attributes
    ----------
    first
        (w + 1,) int64.
    blocks, times
        (p,) int64 and (p,) int64: numbers of blocks, ascending for each word, and how often it is in each.
    """

    words: list[str]
    first: Array
    blocks: Array
    times: Array


class Wanted(NamedTuple):
    """What a question looks for in an index that lies elsewhere: whole words, families, and letters within words."""

    words: list[str]
    families: list[str]
    letters: list[str]

    def takes(self, word: str) -> bool:
        """Tell whether what is known of a word is needed."""
        return (
            word in self.words or _family(word) in self.families or any(one in word for one in self.letters)
        )


def wanted(question: str) -> Wanted:
    """Return what must be known of an index for ``Index.search`` to find what it would find in all of it."""
    found = list(dict.fromkeys(words(question)))[-_MOST_WORDS:]
    letters = [word for word in found if len(word) == 1 and is_unspaced(word)]
    families = list(dict.fromkeys(family for word in found if (family := _family(word))))
    return Wanted([word for word in found if word not in letters], families, letters)


class PartOfIndex(Index):
    """An index of which only some words are known: for questions that ask for no others.

    Parameters
    ----------
    lengths
        (b,) the words in each block.
    asks
        (b,) bool: whether a block ends with a question mark.
    posts
        Words, and for each the blocks and the times; a word may be there several times, for different blocks.
    """

    def __init__(self, lengths: Array, asks: Array, posts: Iterable[tuple[str, Array, Array]]) -> None:
        super().__init__()
        self._lengths, self._asks = lengths.astype(np.float32), asks.astype(bool)
        rows: list[tuple[Array, Array]] = []
        for word, blocks, times in posts:
            number = self._runs.number_of(word)
            rows.append((blocks.astype(np.int64) | (number << _BLOCK_BITS), times.astype(np.float32)))
        if rows:
            keys, times = (np.concatenate(some) for some in zip(*rows, strict=True))
            order = np.argsort(keys, kind="stable")
            self._parts = [(keys[order], times[order])]


class _Runs(dict[str, int]):
    """Runs of letters by number, each with the numbers of its words: looked up once per run and not once per place."""

    def __init__(self) -> None:
        super().__init__()
        self.words: dict[str, int] = {}
        self.families: dict[str, list[int]] = {}
        self._numbers = array("q")
        self._edges = array("q", [0])

    def __missing__(self, run: str) -> int:
        for word in of_run(run):
            self._numbers.append(self.number_of(word))
        self._edges.append(len(self._numbers))
        self[run] = number = len(self)
        return number

    def number_of(self, word: str) -> int:
        """Return a word's number; one that was not known gets the next."""
        known = len(self.words)
        number = self.words.setdefault(word, known)
        if number == known and (family := _family(word)):
            self.families.setdefault(family, []).append(number)
        return number

    def numbers_of(self, word: str) -> list[int]:
        """Return the numbers under which a word is known: none, one, or those of all pairs with its one letter."""
        if len(word) == 1 and is_unspaced(word):
            return [number for known, number in self.words.items() if word in known]
        number = self.words.get(word)
        return [] if number is None else [number]

    def edges(self, runs: Array) -> tuple[Array, Array]:
        """Return where the words of runs begin and end."""
        edges = np.frombuffer(self._edges, np.int64)
        return edges[runs], edges[runs + 1]

    def numbers(self, at: Array) -> Array:
        """Return the numbers of the words at these places."""
        return np.frombuffer(self._numbers, np.int64)[at] if len(at) else np.zeros(0, np.int64)


def _asking(texts: Iterable[str]) -> Array:
    """Tell which texts end with a question mark."""
    return np.array([text.rstrip().endswith(("?", "？", "؟", "՞")) for text in texts], bool)


def _family(word: str) -> str:
    """Return the first letters of a word that has enough of them, else nothing."""
    return word[:_FAMILY_LETTERS] if len(word) >= _FAMILY_LETTERS and word.isalpha() else ""
