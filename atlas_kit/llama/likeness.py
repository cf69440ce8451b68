"""What is like a question although it shares no word with it: by the vectors that the model has for its tokens.

The rows of the read-out matrix are nearer to each other the more alike what their tokens mean (``insects``, ``wasps``).
They are in every model, so nothing is converted and nothing is read for it. How near is near is said by chance: for a
token of the question, the tail of a stored token is the part of all stored tokens that are at least as near, and a
segment of n tokens whose nearest has the tail T would have one by chance with the probability 1 - (1 - T)^n. Its score
is the sum of -log of that (to the power of 1.5) over the question's tokens. So rare words count more than common ones,
what is the same most, and long segments gain nothing.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import Any, NamedTuple

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.episodes import EpisodeArrays, Episodes, Kind
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.output_matrix import OutputRows

#: Rows of which the whitening is made, and what is added to its variances, as a part of their mean.
SAMPLE, RIDGE = 4096, 0.1
#: Tokens of which tails are parts at least: of a few sentences, chance says little.
LEAST = 1 << 14
#: Tails above this are as good as no likeness.
FURTHEST = 0.02
#: What the surprise of each of the question's tokens is raised to.
POWER = 1.5


class Vectors:
    """A model's vectors of tokens: whitened rows of its read-out matrix, of length 1."""

    def __init__(self, rows: OutputRows) -> None:
        self._rows = rows
        step = max(1, rows.n_vocab // SAMPLE)
        sample = rows(np.arange(0, rows.n_vocab, step, dtype=np.int64)).astype(np.float32)
        self._mean = sample.mean(axis=0)
        values, directions = np.linalg.eigh(np.cov((sample - self._mean).T.astype(np.float64)))
        values = np.maximum(values, 0)
        self._whiten = (directions / np.sqrt(values + RIDGE * values.mean() + 1e-12)).astype(np.float32)

    def __call__(self, tokens: Array) -> Array:
        """Return the vectors (n, n_embd) of tokens (n,), ascending and without repetition."""
        found = (self._rows(tokens) - self._mean) @ self._whiten
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), 1e-9)
        return np.asarray(found, np.float32)


_vectors: weakref.WeakKeyDictionary[Any, Vectors] = weakref.WeakKeyDictionary()


def vectors_of(engine: Engine) -> Vectors:
    """Return an engine's vectors, which are made once."""
    if (found := _vectors.get(engine)) is None:
        found = _vectors[engine] = Vectors(engine.output_rows())
    return found


class Near(NamedTuple):
    """A segment that is like a question: its absolute token positions, its block and its score."""

    start: int
    stop: int
    block: int
    score: float


class Question:
    """How near each stored token is to each of a question's.

    Attributes
    ----------
    tails
        (q, u) tails of the stored tokens, for each token of the question that says something.
    """

    def __init__(self, tokens: Array, tails: Array) -> None:
        self._tokens, self.tails = tokens, tails

    def nearest(self, tokens: Sequence[int]) -> Array:
        """Return the smallest tails (q,) among some stored tokens."""
        places = np.searchsorted(self._tokens, np.asarray(tokens))
        return np.asarray(self.tails[:, places].min(axis=1, initial=1.0))

    def score(self, nearest: Array, count: int) -> float:
        """Return the score of ``count`` tokens whose smallest tails are (q,)."""
        return float(_surprise(nearest, np.float32(count)).sum())


class Likeness:
    """An index of what is stored, by token. It follows its store: what is new is taken in when it is asked."""

    def __init__(self, engine: Engine) -> None:
        #: Whose vectors these are.
        self.engine = engine
        self._of: tuple[int, int] = (-1, -1)
        self._tokens: Array = np.empty(0, np.int64)
        self._vectors: Array = np.empty((0, 0), np.float32)
        self._counts: Array = np.empty(0, np.int64)
        self._first: Array = np.zeros(1, np.int64)
        self._blocks: Array = np.empty(0, np.int32)
        #: the block that was the last when it was asked last
        self._last = 0

    @property
    def bytes(self) -> int:
        """Bytes of main memory that it takes, nearly all of them the vectors'."""
        arrays = (self._tokens, self._vectors, self._blocks)
        return sum(int(array.nbytes) for array in arrays)

    def _update(self, arrays: EpisodeArrays) -> None:
        """Take in what is new; where something is gone, all is taken in anew."""
        before, now = self._of, (len(arrays.tokens), arrays.end)
        if now == before:
            return
        grown = before[0] > 0 and now[0] - before[0] == now[1] - before[1] > 0
        if not grown:
            self._counts = np.zeros(len(self._tokens), np.int64)
            self._blocks, self._first = np.empty(0, np.int32), np.zeros(len(self._tokens) + 1, np.int64)
            self._last = 0
        else:  # the block that was open then may have been cut since
            open_ones = self._blocks >= self._last
            gone = np.add.reduceat(np.append(open_ones, False).astype(np.int64), self._first[:-1]) * (
                self._counts > 0
            )
            self._shift(-gone)
            self._blocks = self._blocks[~open_ones]
        start = int(arrays.block_start[self._last]) if len(arrays.block_start) else 0
        new = arrays.tokens[start:].astype(np.int64)
        self._add_kinds(np.setdiff1d(new, self._tokens))
        places = np.searchsorted(self._tokens, new)
        order = np.argsort(places, kind="stable")
        block = np.searchsorted(arrays.block_start, np.arange(start, now[0]), side="right") - 1
        #: the blocks in which each token stands, token by token
        self._blocks = np.insert(self._blocks, self._first[places[order] + 1], block[order].astype(np.int32))
        self._shift(np.bincount(places, minlength=len(self._tokens)))
        self._parts = (self._counts / max(LEAST, now[0])).astype(np.float32)
        self._last = max(0, len(arrays.block_start) - 1)
        self._of = now

    def _shift(self, counts: Array) -> None:
        """Count so many more of each token."""
        self._counts = self._counts + counts
        self._first = np.append([0], np.cumsum(self._counts))

    def _add_kinds(self, new: Array) -> None:
        """Make room for tokens that were never stored before."""
        if not len(new):
            return
        rows, at = vectors_of(self.engine)(new), np.searchsorted(self._tokens, new)
        self._vectors = np.insert(self._vectors, at, rows, axis=0) if len(self._tokens) else rows
        self._tokens, self._counts = np.insert(self._tokens, at, new), np.insert(self._counts, at, 0)
        self._shift(np.zeros(len(self._tokens), np.int64))

    def question(self, arrays: EpisodeArrays, asked: Sequence[int]) -> Question:
        """Return how near what is stored is to a question's tokens."""
        self._update(arrays)
        telling = np.unique([token for token in asked if _tells(self.engine.piece(token))]).astype(np.int64)
        if not len(telling) or not len(self._tokens):
            return Question(self._tokens, np.ones((0, len(self._tokens)), np.float32))
        near = self._vectors @ vectors_of(self.engine)(telling).T
        tails = np.empty((len(telling), len(self._tokens)), np.float32)
        for row in range(len(telling)):
            order = np.argsort(-near[:, row])
            tails[row, order] = np.cumsum(self._parts[order])
        return Question(self._tokens, tails)

    def search(
        self, arrays: EpisodeArrays, question: Question, count: int, *, kinds: Collection[Kind] | None = None
    ) -> list[Near]:
        """Return the segments that are most like a question, best first; none overlaps another."""
        blocks, n = len(arrays.block_start), len(arrays.tokens)
        if not blocks or not len(question.tails):
            return []
        edges = np.append(arrays.block_start.astype(np.int64), n)
        episode = np.searchsorted(arrays.episode_start, arrays.block_start, side="right") - 1
        follows = np.append(episode[1:] == episode[:-1], False)
        last = np.arange(blocks) + 1 + follows
        lengths = (edges[last] - edges[:-1]).astype(np.float32)
        total = np.zeros(blocks, np.float32)
        for tails in question.tails:
            order = np.argsort(tails)[: int((tails < FURTHEST).sum())]
            parts: list[Array] = [
                self._blocks[self._first[token] : self._first[token + 1]] for token in order
            ]
            where: Array = np.concatenate(parts) if parts else np.empty(0, np.int32)
            near = np.repeat(tails[order], self._first[order + 1] - self._first[order])
            smallest = np.ones(blocks + 1, np.float32)
            found, first = np.unique(where, return_index=True)  # the nearest stand first
            smallest[found] = near[first]
            smallest[:-1] = np.where(follows, np.minimum(smallest[:-1], smallest[1:]), smallest[:-1])
            total += _surprise(smallest[:-1], lengths)
        if kinds is not None:
            total[~np.isin(arrays.kind, [int(kind) for kind in kinds])[episode]] = 0
        best: list[Near] = []
        taken: set[int] = set()
        for block in np.argsort(-total, kind="stable").tolist():
            if len(best) >= count or total[block] <= 0:
                break
            if block in taken:
                continue
            taken.update(
                (
                    block,
                    *([block + 1] if follows[block] else []),
                    *([block - 1] if block and follows[block - 1] else []),
                )
            )
            shift = int(arrays.position[episode[block]]) - int(arrays.episode_start[episode[block]])
            start, stop = int(edges[block]) + shift, int(edges[last[block]]) + shift
            best.append(Near(start, stop, block, float(total[block])))
        return best


class FarLikeness(Likeness):
    """An index of what is stored elsewhere: of the tokens that are near to a question it is told where they stand.

    Parameters
    ----------
    tokens, counts
        (u,) the different stored tokens, ascending, and (u,) how often each is stored.
    total
        All stored tokens.
    blocks_of
        Gives, for some tokens (ascending), those that are there, each with blocks in which it is, in parts.
    """

    def __init__(
        self, engine: Engine, tokens: Array, counts: Array, total: int,
        blocks_of: Callable[[Array], Iterable[tuple[int, Array]]],
    ) -> None:  # fmt: skip
        super().__init__(engine)
        self._blocks_of = blocks_of
        self._add_kinds(tokens)
        self._parts = (counts / max(LEAST, total)).astype(np.float32)

    def _update(self, arrays: EpisodeArrays) -> None:
        """Nothing is ever new."""

    def question(self, arrays: EpisodeArrays, asked: Sequence[int]) -> Question:
        """Return how near what is stored is to a question's tokens."""
        question = super().question(arrays, asked)
        near = self._tokens[(question.tails < FURTHEST).any(axis=0)]
        found: list[list[Array]] = [[] for _ in self._tokens]
        for token, blocks in self._blocks_of(near):
            found[int(np.searchsorted(self._tokens, token))].append(blocks)
        rows = [np.concatenate(row) if row else np.empty(0, np.int64) for row in found]
        self._blocks = np.concatenate([np.empty(0, np.int32), *rows]).astype(np.int32)
        self._first = np.append([0], np.cumsum([len(row) for row in rows])).astype(np.int64)
        return question


_indexes: weakref.WeakKeyDictionary[Episodes, Likeness] = weakref.WeakKeyDictionary()


def likeness_of(engine: Engine, episodes: Episodes) -> Likeness:
    """Return the index of some episodes, which is made when they are asked for the first time."""
    if (found := _indexes.get(episodes)) is None or found.engine is not engine:
        found = _indexes[episodes] = Likeness(engine)
    return found


def use_likeness(episodes: Episodes, likeness: Likeness) -> None:
    """Have some episodes looked up in an index that was made already."""
    _indexes[episodes] = likeness


def bytes_of(episodes: Episodes) -> int:
    """Return the bytes that the index of some episodes takes, where it was made."""
    found = _indexes.get(episodes)
    return 0 if found is None else found.bytes


def _surprise(tails: Array, counts: Any) -> Array:
    """Return -log of the probability that ``counts`` tokens are as near by chance, to the power of ``POWER``."""
    chance = -np.expm1(counts * np.log1p(-np.minimum(tails, np.float32(0.999999))))
    return np.asarray((-np.log(np.maximum(chance, 1e-30))) ** POWER)


def _tells(piece: bytes) -> bool:
    """Tell whether a token is a part of a word that may say something: two letters at least."""
    word = piece.strip().removeprefix("▁".encode())
    return len(word) > 1 and (word[:1].isalnum() or word[0] >= 0xC3)
