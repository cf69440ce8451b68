"""How the window's slots are ranked for a query: by likeness, by how long both were preceded by the same, by age.

``window.lookup`` weighs slots by ``softmax(theta cos)``. Here the score of slot j is ``w . f_j`` with
``f_j = (cos(q, k_j), log2(1 + m_j), -log a_j)``: m_j counts the tokens, from the query and the slot backwards, that are
equal; a_j is the slot's age in tokens. The weights w are learned while reading, as the gate is: by the gradient of the
blended loss. A query and a slot that both end a long copy are far more alike than two states with the same cosine.
The paper (arXiv 2505.23735) has no such equation. Knows nothing of objectives, models or files.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_number, is_whole
from atlas_kit.memory.backend import Array

FEATURES = 3
#: A step never moves a weight further than this share of its rate: one odd chunk must not undo what was learned.
CLIP = 1.0


@dataclass(eq=False)
class Ranked:
    """What a query finds in the window.

    Attributes
    ----------
    weights
        (n, slots): softmax of the scores; zeros where there is no slot.
    similarity, length, confidence
        (n,): the greatest cosine (-1: no slots); log2(1 + m) of the best slot; weight of all slots that hold the best
        slot's token.
    features
        (3, n, slots).
    mean
        (n, 3): the mean of the features over the slots, as ``weights`` weigh them.
    """

    weights: Array
    similarity: Array
    length: Array
    confidence: Array
    features: Array
    mean: Array


_NONE: np.ndarray[Any, Any] = np.zeros(1, np.float32)
#: What one query finds where there is no slot.
NOTHING_FOUND = Ranked(
    np.empty((1, 0), np.float32), _NONE - 1, _NONE, _NONE, np.empty((3, 1, 0), np.float32), np.zeros((1, 3))
)


@dataclass(frozen=True)
class Ranking:
    """Weights of the features, and how quickly they are learned.

    Attributes
    ----------
    start
        First weights of cosine, match and recency.
    rates
        Step sizes, one for each.
    longest
        Matches count up to this many tokens.

    Raises
    ------
    InvalidParamError
        For a setting out of range, naming it.
    """

    kind: ClassVar[str] = "learned-ranking"

    start: tuple[float, ...] = (14.0, 1.5, 0.1)
    rates: tuple[float, ...] = (20.0, 0.5, 0.1)
    longest: int = 16

    def __post_init__(self) -> None:
        for name in ("start", "rates"):
            value = getattr(self, name)
            numbers = isinstance(value, (tuple, list)) and len(value) == FEATURES
            if not numbers or not all(is_number(one) and 0 <= one <= 1e6 for one in value):
                raise InvalidParamError(f"{value!r} is not {FEATURES} numbers of 0 to a million", key=name)
            object.__setattr__(self, name, tuple(float(one) for one in value))
        if not is_whole(self.longest, 1) or self.longest > 255:
            raise InvalidParamError(f"longest is {self.longest!r}, not 1 to 255", key="longest")

    def read(self, w: Array, cosine: Array, match: Array, age: Array, tokens: Array) -> Ranked:
        """Rank slots.

        Parameters
        ----------
        w
            (3,).
        cosine, match, age
            (n, slots) each: cosine of query and key, ``match_lengths``, tokens between the two (at least 1).
        tokens
            (slots,): the token that followed each slot.

        Examples
        --------
        Two slots with cosine 1; the second was preceded by three equal tokens, log2(1 + 3) = 2, so with w = (1, 1, 0)
        it is e^2 times as heavy:

        >>> ranked = Ranking().read(
        ...     np.array([1.0, 1, 0]), np.ones((1, 2)), np.array([[0, 3]]), np.ones((1, 2)), np.array([5, 6])
        ... )
        >>> ranked.weights.round(4).tolist(), ranked.confidence.round(4).tolist()
        ([[0.1192, 0.8808]], [0.8808])
        """
        n, slots = cosine.shape
        features = np.empty((FEATURES, n, slots), cosine.dtype)
        if not slots:
            nothing = np.zeros(n, cosine.dtype)
            return Ranked(cosine, nothing - 1, nothing, nothing, features, np.zeros((n, FEATURES)))
        features[0] = cosine
        features[1] = _LOG2[match]
        np.log(age, out=features[2])
        np.negative(features[2], out=features[2])
        weighed = w.astype(cosine.dtype)[None] @ features.reshape(FEATURES, n * slots)
        score = weighed.reshape(n, slots)
        best = score.argmax(axis=1)
        rows = np.arange(n)
        score -= score[rows, best][:, None]
        weights = np.exp(score, out=score)
        weights /= weights.sum(axis=1, keepdims=True)
        same = tokens[None, :] == tokens[best][:, None]
        confidence = np.einsum("ns,ns->n", weights, same)
        length = features[1][rows, best]
        similarity = np.minimum(np.maximum(cosine.max(axis=1), -1), 1)
        mean = np.einsum("fns,ns->nf", features, weights)
        return Ranked(weights, similarity, length, confidence, features, mean)

    def slope(self, ranked: Ranked, hit: Array) -> Array:
        """Return (n, 3): d log p / dw, with p the weight of the slots in ``hit`` (n, slots); 0 where p is 0.

        >>> ranked = Ranking().read(np.zeros(3), np.array([[1.0, 0]]), np.zeros((1, 2), int), np.ones((1, 2)),
        ...     np.array([5, 6]))
        >>> Ranking().slope(ranked, np.array([[True, False]])).tolist()  # 1 - (1/2 1 + 1/2 0), 0, 0
        [[0.5, 0.0, 0.0]]
        """
        right = ranked.weights * hit
        p = right.sum(axis=1)
        mean_right = np.einsum("fns,ns->nf", ranked.features, right)
        known = p > 1e-12
        return np.where(known[:, None], mean_right / np.where(known, p, 1)[:, None] - ranked.mean, 0)

    def slope_of_some(self, ranked: Ranked, places: Array, right: Array, p: float) -> Array:
        """Return ``slope`` of one query, (1, 3), where few slots are hit.

        Those are at ``places`` (k,); ``right`` (k,) are their weights, and ``p`` the sum of these.
        """
        if not p > 1e-12:
            return np.zeros((1, FEATURES))
        return np.asarray((ranked.features[:, 0, places] @ right) / p - ranked.mean)

    def update(self, w: Array, slope: Array, responsibility: Array) -> Array:
        """Return the weights (3,) after a step on ``n`` tokens: slopes (n, 3), weighed by the window's posterior (n,).

        >>> Ranking(rates=(1.0, 1.0, 1.0)).update(np.zeros(3), np.array([[0.5, 0.0, -1.0]]), np.ones(1)).tolist()
        [0.5, 0.0, 0.0]
        """
        gradient = np.clip((responsibility[:, None] * slope).mean(axis=0), -CLIP, CLIP)
        moved = w + np.asarray(self.rates) * gradient
        return np.maximum(np.where(np.isfinite(moved), moved, w), 0).astype(w.dtype)


_LOG2: np.ndarray[Any, Any] = np.log2(1 + np.arange(256, dtype=np.float32))
_aged: np.ndarray[Any, Any] = np.empty(0, np.float32)


def match_score(length: Any) -> Any:
    """Return the feature of slots that were preceded by ``length`` equal tokens."""
    return _LOG2[length]


def aged(youngest: int, count: int) -> Array:
    """Return the features ``-log a`` (count,) of slots in a row, oldest first; the youngest is so many tokens old.

    >>> aged(1, 3).round(4).tolist()
    [-1.0986, -0.6931, -0.0]
    """
    global _aged  # a table that only grows: logarithms of the same ages are taken for every token
    if youngest + count > len(_aged):
        ages = np.arange(2 * (youngest + count), dtype=np.float32)
        ages[0] = 1
        _aged = -np.log(ages)
    return _aged[youngest : youngest + count][::-1]


def match_lengths(history: Array, tokens: Array, longest: int = 16) -> Array:
    """Return (n, slots) uint8: how many tokens, from a query and a slot backwards, are equal; at most ``longest``.

    Parameters
    ----------
    history
        (n, L): the tokens up to and with each query's own, oldest first; -1 where there is none.
    tokens
        (slots,): the token that followed each slot, oldest slot first, so that the slot's own token is the one before.

    Examples
    --------
    A stream 7, 8, 9, 8 was kept: slots of 7, 8 and 9, followed by 8, 9 and 8. The query comes after 7, 8: the slot of
    8 matches two tokens (but what the slot of 7 itself was is no longer known, so one).

    >>> match_lengths(np.array([[7, 8]]), np.array([8, 9, 8])).tolist()
    [[0, 1, 0]]
    """
    n, slots = len(history), len(tokens)
    own = np.full(slots + longest, -2, np.int64)  # -2 equals no token
    own[longest + 1 :] = tokens[:-1]
    length = np.zeros((n, slots), np.uint8)
    lengths = length.reshape(-1)
    last = history.shape[1] - 1
    going = np.flatnonzero(
        own[longest:] == history[:, last, None]
    )  # few pairs of a query and a slot match at all
    for back in range(min(longest, last + 1)):
        if back and n == 1:
            going = going[own[going + (longest - back)] == history[0, last - back]]
        elif back:
            row, slot = np.divmod(going, slots)
            going = going[own[slot + (longest - back)] == history[row, last - back]]
        if not len(going):
            break
        lengths[going] = back + 1
    return length
