"""From token ids to text, and to what the cutter must know of them: looked up once per token of a vocabulary."""

from __future__ import annotations

import codecs
import itertools
from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from atlas_kit.episodes.cut import begin_mark, end_mark
from atlas_kit.errors import InvalidParamError

Array: TypeAlias = NDArray[Any]

_UNKNOWN = 255


class Pieces:
    """The bytes of a vocabulary's tokens.

    Parameters
    ----------
    piece
        The bytes of a token, which may be part of a character.
    n_vocab
        Number of tokens.
    """

    def __init__(self, piece: Callable[[int], bytes], n_vocab: int) -> None:
        self._piece, self.n_vocab = piece, n_vocab
        self._bytes: dict[int, bytes] = {}
        self._ends = np.full(n_vocab, _UNKNOWN, np.uint8)
        self._begins = np.zeros(n_vocab, np.uint8)
        self._line_ends = np.zeros(n_vocab, np.uint16)
        self._sizes = np.zeros(n_vocab, np.uint16)

    def checked(self, tokens: Iterable[int]) -> Array:
        """Return tokens as a row of uint32.

        Raises
        ------
        InvalidParamError
            If one is not of the vocabulary.
        """
        row = np.asarray(tokens if isinstance(tokens, np.ndarray) else list(tokens))
        if row.size == 0:
            return np.zeros(0, np.uint32)
        if (
            row.ndim != 1
            or row.dtype.kind not in "iu"
            or not 0 <= int(row.min()) <= int(row.max()) < self.n_vocab
        ):
            raise InvalidParamError(
                f"tokens must be numbers from 0 to {self.n_vocab - 1} in a row", key="tokens"
            )
        return row.astype(np.uint32)

    def marks(self, tokens: Array) -> tuple[Array, Array]:
        """Return ``end_mark`` and ``begin_mark`` of each token."""
        self._learn(tokens)
        return self._ends[tokens], self._begins[tokens]

    def line_ends(self, tokens: Array) -> Array:
        """Return how many line ends are in each token."""
        self._learn(tokens)
        return self._line_ends[tokens]

    def sizes(self, tokens: Array) -> Array:
        """Return the bytes of each token."""
        self._learn(tokens)
        return self._sizes[tokens]

    def text(self, tokens: Array) -> str:
        """Return tokens as text.

        A character of which a part is missing at either end is left out; other bytes that are no UTF-8 become
        U+FFFD.
        """
        return self.texts(tokens, np.array([0, len(tokens)]))[0]

    def texts(self, tokens: Array, edges: Array) -> list[str]:
        """Return the text between each two of some ascending indices, as ``text`` does."""
        tokens = tokens[int(edges[0]) : int(edges[-1])]
        self._learn(tokens)
        pieces = list(map(self._bytes.__getitem__, tokens.tolist()))
        spans = itertools.pairwise((edges - edges[0]).tolist())
        return [_decoded(b"".join(pieces[start:stop])) for start, stop in spans]

    def _learn(self, tokens: Array) -> None:
        """Look up what has not been seen before."""
        for token in np.unique(tokens[self._ends[tokens] == _UNKNOWN]).tolist():
            piece = self._bytes[token] = self._piece(token)
            self._ends[token] = end_mark(piece)
            self._begins[token] = begin_mark(piece)
            self._line_ends[token] = min(piece.count(b"\n"), 65535)
            self._sizes[token] = min(len(piece), 65535)


def _decoded(data: bytes) -> str:
    try:
        return data.decode()
    except UnicodeDecodeError:
        first = 0
        while first < min(3, len(data)) and 0x80 <= data[first] < 0xC0:
            first += 1
        return codecs.getincrementaldecoder("utf-8")("replace").decode(data[first:])
