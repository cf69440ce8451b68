"""The gate for one token at a time, number by number.

``gate_features``, ``Gate.weights`` and ``TokenMemory.weights_of`` do the same for many tokens; for one, thirty steps of
NumPy take four times as long as these few numbers. Knows neither memories nor engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from atlas_kit.codecs.numbers import Array

#: The window never gets all of the weight: a token that it has not seen must stay possible.
MOST_WEIGHT = 1 - 1e-6
#: Steps until a whitened memory has the whole weight that the gate gives it. Its first ones are made from few tokens,
#: and what it says then costs more on some texts than the gate, which learns no faster, can take back.
TRUSTED_AFTER = 32
_LARGEST = 1e4  # as ``memory.gate.LARGEST_FEATURE``


def features_of_one(
    similarity: float, entropy: float, length: float, confidence: float
) -> tuple[float, float, float, float, float]:
    """Return what ``gate_features`` gives for one token.

    >>> [round(one, 6) for one in features_of_one(0.9, 1.5, 2.0, 0.75)]
    [1.0, 1.0, -0.5, 0.5, 0.5]
    """
    return 1.0, 10 * (similarity - 0.8), entropy - 2, length - 1.5, 2 * confidence - 1


def weights_of_one(
    w: Sequence[Sequence[float]], features: Sequence[float], ratio: float | None, has_window: bool,
    trust: float = 1.0,
) -> tuple[float, float, float]:  # fmt: skip
    """Return how much model, memory and window count; together 1.

    Parameters
    ----------
    w
        Memory's and window's row of the gate, five numbers each.
    ratio
        The window's share where it is fixed, the rest being the memory's; None: the gate decides.
    has_window
        Whether there are slots.
    trust
        The share of the memory's weight that it gets, the rest being the model's.

    >>> weights_of_one([[0.0] * 5] * 2, [1.0] * 5, None, False)
    (0.5, 0.5, 0.0)
    >>> weights_of_one([[0.0] * 5] * 2, [1.0] * 5, None, False, 0.5)
    (0.75, 0.25, 0.0)
    """
    if ratio is None:
        f, (m, n) = features, w
        if not -_LARGEST <= min(f) <= max(f) <= _LARGEST or math.isnan(sum(f)):
            f = [max(min(one, _LARGEST), -_LARGEST) if math.isfinite(one) else 0.0 for one in features]
        one, two, three, four, five = f
        memory = m[0] * one + m[1] * two + m[2] * three + m[3] * four + m[4] * five
        window = n[0] * one + n[1] * two + n[2] * three + n[3] * four + n[4] * five
        largest = max(0.0, memory, window)
        parts = math.exp(-largest), math.exp(memory - largest), math.exp(window - largest)
        total = sum(parts)
        model, memory, window = parts[0] / total, parts[1] / total, parts[2] / total
    else:
        model, memory, window = 0.0, 1 - ratio, ratio
    if trust < 1:
        model, memory = model + memory * (1 - trust), memory * trust
    if not has_window:
        window = 0.0
    window = min(window, MOST_WEIGHT * (model + memory + window))
    if model + memory <= 0:
        model = 1 - MOST_WEIGHT
    total = model + memory + window
    return model / total, memory / total, window / total


def brought_to_one(weights: Array, trust: float) -> Array:
    """Return weights (n, 3), none below 0, as ``weights_of_one`` brings them to 1; in their own memory."""
    if trust < 1:
        held = weights[:, 1] * (1 - trust)
        weights[:, 0] += held
        weights[:, 1] -= held
    cached = weights[:, 2]
    np.minimum(cached, MOST_WEIGHT * weights.sum(axis=1), out=cached)
    nothing = weights[:, :2].sum(axis=1) <= 0
    if nothing.any():
        weights[nothing, 0] = 1 - MOST_WEIGHT
    weights /= weights.sum(axis=1, keepdims=True)
    return weights
