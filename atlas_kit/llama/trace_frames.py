"""A trace as the browser reads it: texts and names of its tokens, and its numbers in one block.

``static/lab/run.js`` is the other side. Knows no widgets and no HTTP.
"""

from __future__ import annotations

import codecs
from typing import TYPE_CHECKING, Any

import numpy as np

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


def packed(trace: Trace, start: int, end: int) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the tokens [start, end) as ``static/lab/run.js`` reads them: (n, 20) float32 and (n, 13) int32."""

    def flat(name: str) -> np.ndarray[Any, Any]:
        rows = getattr(trace, name)[start:end]
        width = int(np.prod(rows.shape[1:]))  # of no rows at all, numpy cannot tell it
        return np.asarray(rows.reshape(len(rows), width))

    numbers = [flat(name) for name in ("loss", "parts", "weights", "top_p")]
    return np.concatenate(numbers, axis=1), np.concatenate([flat("top"), flat("tokens")], axis=1)
