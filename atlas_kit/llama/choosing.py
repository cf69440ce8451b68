"""How the next token is chosen of what is expected, and what is told of it. Knows neither sessions nor engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.steps import drawn, likeliest, log_softmax

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.sampling import Sampler

#: A token, its log-probability in nats, and the likeliest tokens with theirs.
Chosen = tuple[int, float | None, tuple[tuple[int, float], ...]]


def choose(sampler: Sampler, logits: Array, index: int | None, most: int | None) -> Chosen:
    """Choose by a model's logits (n_vocab,) alone.

    Parameters
    ----------
    index
        The row's place in the engine's batch, where ``logits`` are still what the engine gave.
    most
        So many of the likeliest tokens are told, and the log-probability of the one that is chosen; None: nothing is.
    """
    token = sampler.sample(logits, index)
    if most is None:
        return token, None, ()
    if sampler.candidates:
        return token, *drawn(sampler.candidates, token, most)
    logp = log_softmax(logits)
    return token, float(logp[token]), likeliest(logp, most)


def choose_blended(sampler: Sampler, reading: Reading, most: int | None) -> Chosen:
    """Choose by what model, memory and window expect together; ``most`` as of ``choose``.

    A sampler whose choice a few tokens decide is given these. Logits are on the scale of the model's own, which a
    repeat penalty multiplies.
    """
    scale = np.float32(reading.lse[0])
    some = reading.likeliest(max(sampler.few, most or 0)) if sampler.few else None
    if some is None:
        tokens, logp = None, reading.log_probabilities()
        token = sampler.sample(logp + scale, None)
    else:
        tokens, logp = some
        token = sampler.sample_among(tokens, logp + scale)
    if most is not None and sampler.candidates:
        return token, *drawn(sampler.candidates, token, most)
    top = likeliest(logp, most) if most else ()
    if tokens is None:
        return token, float(logp[token]), top
    return token, float(logp[tokens == token][0]), tuple((int(tokens[place]), p) for place, p in top)
