"""One vector for a text: the mean of the model's final states over its tokens, or the state of one of them.

A decoder is no encoder, and its states were made for the next token; their mean still tells what a text is about, and
some models are trained so that the state of the last token does. Each text is decoded alone and from an empty context,
in parts of a size that does not depend on others, so that a vector is the same whatever else goes on. Knows no memory
and learns nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.engine import Feed

if TYPE_CHECKING:
    from atlas_kit.llama.batch import AnyWork
    from atlas_kit.llama.session import AtlasSession

#: What the largest number becomes with the norm 0, as in llama.cpp: room in 16 bits.
INT16_RANGE = 32760.0


def pooled_states(
    session: AtlasSession, texts: Sequence[Sequence[int]], pause: Callable[[], Any], pooling: str = "mean"
) -> AnyWork:
    """Return what stands for each text, as work in steps: its final states (n_embd,), pooled.

    Parameters
    ----------
    session
        Whose sequence is used; its context is lost, and empty afterwards.
    texts
        Tokens, none of them more than the context holds.
    pause
        Gives what the work waits for between two parts: then nobody's outputs wait to be read, and others had their
        turn.
    pooling
        ``"mean"``, the state of the ``"last"`` token or of the first (``"cls"``); ``"none"``: all states
        (tokens, n_embd).
    """
    engine = session.engine
    room = max(1, engine.n_batch // 2)
    found: list[Array] = []
    try:
        for tokens in texts:
            total = np.zeros(engine.info.n_embd)
            kept: list[Array] = []
            for at in range(0, len(tokens), room):
                yield pause()
                if not at:
                    session.forget_context()
                part = tokens[at : at + room]
                states = engine.decode([Feed(session.sequence, part, at, len(part))], hidden=True)[0].hidden
                assert states is not None
                states = states[:, : engine.info.n_embd]
                if pooling == "mean":
                    total += states.sum(axis=0, dtype=np.float64)
                elif pooling == "none":
                    kept.append(states.copy())  # they are the engine's, until it decodes again
                elif pooling == "last" or not kept:
                    kept = [states[0 if pooling == "cls" else -1].copy()]
            if pooling == "mean":
                found.append((total / len(tokens)).astype(np.float32))
            else:
                found.append(np.concatenate(kept) if pooling == "none" else kept[0])
    finally:
        session.forget_context()
    return found


def normalised(vectors: Array, norm: int = 2) -> Array:
    """Return vectors (n, d) with the norm 1, as llama.cpp counts norms.

    ``norm``: 2 is the Euclidean one, 1 the sum, other numbers the p-norm; 0 scales the largest number to 32,760; and
    -1 leaves them as they are. A vector of zeros stays one.

    >>> normalised(np.array([[3.0, -4.0]]), 2).tolist()
    [[0.6, -0.8]]
    """
    if norm < 0:
        return vectors
    sizes = np.abs(vectors).astype(np.float64)
    if norm == 0:
        length = sizes.max(axis=1, initial=0.0) / INT16_RANGE
    else:
        # of the largest, so that no power overflows
        most = sizes.max(axis=1, initial=0.0)
        parts = sizes / np.where(most > 0, most, 1.0)[:, None]
        length = most * (parts**norm).sum(axis=1) ** (1.0 / norm)
    scaled: Array = vectors / np.where(length > 0, length, 1.0)[:, None]
    return scaled.astype(vectors.dtype)
