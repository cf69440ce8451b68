"""A trace as the browser reads it: texts and names of its tokens, and its numbers in one block.

``static/lab/run.js`` is the other side. Knows no widgets and no HTTP.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.trace import TOP

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.trace import Trace


class Words:
    """The text of a stream's tokens: a character of several tokens stands with its last."""

    def __init__(self, engine: Engine, trace: Trace) -> None:
        self._engine, self._trace = engine, trace
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._texts: list[str] = []

    def texts(self, start: int, end: int) -> list[str]:
        """Return the texts of the tokens [start, end); joined, they are the text."""
        for token in self._trace.tokens[len(self._texts) : end]:
            self._texts.append(self._decoder.decode(self._engine.piece(int(token), special=True)))
        return self._texts[start:end]

    def name(self, token: int) -> str:
        r"""Return a token by itself; bytes of a part of a character are written as ``\xe2``."""
        return self._engine.piece(token, special=True).decode("utf-8", "backslashreplace")


class GivenWords:
    """The same, where whoever sends a trace says how its tokens are spelled."""

    def __init__(self) -> None:
        self._texts: list[str] = []
        self._names: dict[int, str] = {}

    def take(self, texts: Sequence[str], names: Iterable[tuple[int, str]]) -> None:
        """Take in the texts of the next tokens, and names that are new."""
        self._names.update(names)
        self._texts += texts

    def texts(self, start: int, end: int) -> list[str]:
        """Return the texts of the tokens [start, end); joined, they are the text."""
        return self._texts[start:end]

    def name(self, token: int) -> str:
        """Return a token by itself."""
        return self._names.get(token, "")


def packed(trace: Trace, start: int, end: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the tokens [start, end) as ``static/lab/run.js`` reads them: (n, 20) float32 and (n, 13) int32."""

    def flat(name: str) -> np.ndarray[Any, Any]:
        rows = getattr(trace, name)[start:end]
        width = int(np.prod(rows.shape[1:]))  # of no rows at all, numpy cannot tell it
        return np.asarray(rows.reshape(len(rows), width))

    numbers = [flat(name) for name in ("loss", "parts", "weights", "top_p")]
    return np.concatenate(numbers, axis=1), np.concatenate([flat("top"), flat("tokens")], axis=1)


def unpacked(rows: bytes, tokens: bytes, sources: bytes = b"", start: int = 0) -> dict[str, Array]:
    """Return what ``packed`` was given, from the bytes of what it gave: an array for each of a trace's attributes.

    ``sources`` are those of the tokens from ``start`` on, where there are some; a source stands before its token.
    """
    numbers = np.frombuffer(rows, "<f4").reshape(-1, 20)
    names = np.frombuffer(tokens, "<i4").reshape(-1, 13)
    n = len(numbers)
    known = np.full(n, -1, np.int32)
    if sources:
        given = np.frombuffer(sources, "<i4")
        known[:] = np.where((given >= 0) & (given < start + np.arange(n)), given, -1)
    return {
        "tokens": names[:, 12],
        "loss": numbers[:, :2],
        "parts": numbers[:, 2:5],
        "weights": numbers[:, 5:8],
        "top": names[:, :12].reshape(n, 2, TOP),
        "top_p": numbers[:, 8:].reshape(n, 2, TOP),
        "source": known,
    }
