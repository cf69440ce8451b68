"""Where blocks start: at most 128 tokens, cut where a reader would pause. Knows bytes of tokens, not their ids."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: Tokens of a block at most; all but an episode's last have more than half of them.
BLOCK_TOKENS = 128

#: How good it is to cut between two tokens: inside of a character, anywhere, at a word, a sentence, a line.
_CHARACTER, _ANYWHERE, _WORD, _SENTENCE, _LINE = range(5)
_SENTENCE_ENDS = (b".", b"!", b"?", b":", b";", "。".encode(), "！".encode(), "？".encode(), "।".encode())
_SPACES = b" \t\r\n"


def end_mark(piece: bytes) -> int:
    """Return how good it is to cut behind a token of these bytes, as far as they tell."""
    if piece.endswith(b"\n"):
        return _LINE
    if piece.rstrip(_SPACES).endswith(_SENTENCE_ENDS):
        return _SENTENCE
    return _WORD if piece[-1:] in (b" ", b"\t") else _ANYWHERE


def begin_mark(piece: bytes) -> int:
    """Return how good it is to cut before a token of these bytes, as far as they tell."""
    if piece[:1] and 0x80 <= piece[0] < 0xC0:
        return _CHARACTER
    return _WORD if piece[:1] in (b" ", b"\t") or piece.startswith("▁".encode()) else _ANYWHERE


def cuts(ends: NDArray[Any], begins: NDArray[Any]) -> list[int]:
    """Return where blocks start in tokens from a block's start on; not the first of them, which is 0.

    Each is decided by the ``BLOCK_TOKENS`` + 1 tokens from the block's start on. So whoever goes on from the last
    start when more has come gets the same blocks as who comes with everything at once.

    Parameters
    ----------
    ends, begins
        (n,) ``end_mark`` and ``begin_mark`` of each token, uint8.
    """
    # A sentence has ended only if a space follows: a point may stand in a number or a name as well.
    quality = np.maximum(ends[:-1], begins[1:])
    quality[(ends[:-1] == _SENTENCE) & (begins[1:] == _ANYWHERE)] = _ANYWHERE
    quality[begins[1:] == _CHARACTER] = _CHARACTER
    marks = b"\0" + quality.astype(np.uint8).tobytes()
    found, at = [], 0
    while len(ends) - at > BLOCK_TOKENS:
        first, last = at + BLOCK_TOKENS // 2 + 1, at + BLOCK_TOKENS
        for wanted in (_LINE, _SENTENCE, _WORD, _ANYWHERE):
            best = marks.rfind(wanted, first, last + 1)
            if best >= 0:
                break
        at = best if best >= 0 else last
        found.append(at)
    return found
