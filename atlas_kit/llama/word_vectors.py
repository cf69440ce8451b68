"""Vectors of words from a model's read-out matrix, in which words that mean nearly the same are near.

Nothing is read by the model, and nothing is kept: rows of W_out are fetched for the words that somebody asks about.
Knows an engine and no memories.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.llama.engine import Floats

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.output_matrix import OutputRows

#: Numbers of a vector at most; wider rows are projected at random, which keeps their angles, roughly: half of what is
#: gained is lost from 576 to 256.
SIZE = 1024
#: Of a word of more tokens than this nothing is known: it is a name, a number, a rare word.
TOKENS = 3
#: Rows from which mean and directions come, and words that are done at a time.
SAMPLE, AT_ONCE = 8192, 2048
#: How much of the spread in a direction is taken away, and the part of the mean spread that no direction is below.
WHITENING, FLOOR = 0.25, 0.05

#: What makes vectors of a model's rows, for as long as the model is open.
_MADE: weakref.WeakKeyDictionary[OutputRows, tuple[Floats, Floats]] = weakref.WeakKeyDictionary()


class WordVectors:
    """Gives vectors of words, for ``episodes.Episodes``.

    Rows of a read-out matrix share a few strong directions, such as how frequent a token is. Half whitened, the others
    count: ``unit(mean over tokens of (W_t - m) R V (lambda + f mean(lambda))^(-1/4))`` with ``V lambda V^T`` the
    covariance of the projected rows ``W R``.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def __call__(self, words: Sequence[str]) -> Floats:
        """Return (n, d) float32: rows of length 1, or zeros where a word has too many tokens."""
        mean, basis = self._made()
        found = np.zeros((len(words), basis.shape[1]), np.float32)
        for start in range(0, len(words), AT_ONCE):
            self._fill(found[start : start + AT_ONCE], words[start : start + AT_ONCE], mean, basis)
        return found

    def _fill(self, found: Floats, words: Sequence[str], mean: Floats, basis: Floats) -> None:
        pieces = [self._engine.tokenize(" " + word) for word in words]
        pieces = [tokens if len(tokens) <= TOKENS else [] for tokens in pieces]
        many = np.array([len(tokens) for tokens in pieces])
        if not many.any():
            return
        tokens, place = np.unique(np.concatenate(pieces).astype(np.int64), return_inverse=True)
        rows = (self._engine.output_rows()(tokens) - mean) @ basis
        known = np.flatnonzero(many)
        sums = np.add.reduceat(rows[place], (np.cumsum(many) - many)[known], axis=0)
        lengths = np.linalg.norm(sums, axis=1, keepdims=True)
        found[known] = sums / np.maximum(lengths, np.float32(1e-20))

    def _made(self) -> tuple[Floats, Floats]:
        """The mean row, and (n_embd, d) what makes vectors of rows: once per model."""
        output = self._engine.output_rows()
        if output not in _MADE:
            _MADE[output] = _directions(output)
        return _MADE[output]


def _directions(output: OutputRows) -> tuple[Floats, Floats]:
    random = np.random.default_rng(0)
    tokens = np.sort(random.choice(output.n_vocab, min(SAMPLE, output.n_vocab), replace=False))
    rows = np.array(output(tokens))
    mean = rows.mean(axis=0)
    rows -= mean
    projection = np.eye(rows.shape[1], dtype=np.float32)
    if rows.shape[1] > SIZE:
        projection = random.standard_normal((rows.shape[1], SIZE), dtype=np.float32)
    rows = rows @ projection
    spread, directions = np.linalg.eigh(rows.T @ rows / len(rows))
    spread = np.maximum(spread, 0)
    scale = (spread + FLOOR * spread.mean() + 1e-20) ** -WHITENING
    return mean, (projection @ (directions * scale)).astype(np.float32)
