"""Readings of one token each of several sessions: what each memory would read alone, to the bit.

A generated token is some hundred numbers of each kind, so that a step of NumPy takes longer to begin than to carry
out. Here one step serves all sessions: what they have different numbers of (candidates, slots) lies end to end in flat
arrays. Every number is made from those of its own session alone, in the same order whoever else is there. Knows
neither sessions nor engines.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.gating import features_of_one
from atlas_kit.llama.reading import NO_SLOTS, Reading, Slots, change_of, far_off, summarize, with_bound
from atlas_kit.memory.backend import quiet
from atlas_kit.memory.ranking import NOTHING_FOUND, Ranked, aged, match_score

#: A token that there is not, and that no slot stands for either.
_NEVER = -3

if TYPE_CHECKING:
    from atlas_kit.llama.output_matrix import OutputRows
    from atlas_kit.memory import Memory, MemoryState


class OneMemory(Protocol):
    """What reading asks of a memory: ``TokenMemory`` says what it is."""

    memory: Memory
    present: MemoryState
    rows: OutputRows

    @property
    def count(self) -> int:
        """Candidates of each token."""

    @property
    def unlearned(self) -> int:
        """Tokens that came behind the newest slot."""

    def slots(self) -> Slots:
        """Return what the window holds."""

    def history(self, current: int, longest: int) -> Array | list[int]:
        """Return the last tokens, up to and with ``current``."""

    def candidates_of(self, top: Array) -> Array:
        """Return the candidates behind a token."""

    def require_formula(self, hidden: Array, own: Array, tokens: Array) -> None:
        """Check that the model's logits are what its output matrix gives."""

    def settled(self, current: int) -> bool:
        """Tell whether the window may say what follows."""

    def weights_of_one(self, features: Sequence[float], has_window: bool) -> tuple[float, float, float]:
        """Return how much model, memory and window count for a token."""


class Ends:
    """Where rows of different lengths, none of them 0, lie end to end in a flat array.

    >>> ends = Ends([2, 3])
    >>> ends.sum(np.arange(5)).tolist(), ends.spread(np.array([7, 8])).tolist()
    ([1, 9], [7, 7, 8, 8, 8])
    """

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths = np.asarray(lengths)
        stops = np.cumsum(self.lengths)
        self.starts, self.total = stops - self.lengths, int(stops[-1])
        self.slices = [slice(*ends) for ends in zip(self.starts.tolist(), stops.tolist(), strict=True)]

    def spread(self, one: Array) -> Array:
        """Repeat a number of each row (R,) as often as the row is long; a single one stays as it is."""
        return one.repeat(self.lengths) if len(one) > 1 else one

    def sum(self, flat: Array) -> Array:
        """Return each row's sum (R,)."""
        return np.asarray(np.add.reduceat(flat, self.starts))

    def max(self, flat: Array) -> Array:
        """Return each row's greatest number (R,)."""
        return np.asarray(np.maximum.reduceat(flat, self.starts))


@quiet
def read_side_by_side(
    memories: Sequence[OneMemory], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> list[Reading]:
    """Return what each memory expects after one token.

    Parameters
    ----------
    memories
        R of one kind (``TokenMemory.kind``), each with nothing due, that learn and have a window, on the host.
    hidden, logits, current
        (R, n_embd), R times (n_vocab,), (R,): the model's output at these tokens.

    Raises
    ------
    ModelError
        As ``TokenMemory.read``.
    """
    first = memories[0]
    y, directions = first.memory.read_each([one.present for one in memories], hidden)
    top, lse, entropy = summarize(logits, first.count)
    tokens = [one.candidates_of(top[row]) for row, one in enumerate(memories)]
    ends = Ends([len(one) for one in tokens])
    own, product = np.empty(ends.total, np.float32), np.empty(ends.total, np.float32)
    rows = first.rows
    for row, place in enumerate(ends.slices):
        np.take(logits[row], tokens[row], out=own[place], mode="clip")
        memories[row].require_formula(hidden[row : row + 1], own[None, place], tokens[row])
        rows.times(y[row], tokens[row], product[place])
    product -= ends.spread(_each_dot(y, rows.mean))
    product *= np.float32(rows.scale)
    corrected = own + product if rows.softcap is None else with_bound(own, product, rows.softcap)
    spread = ends.spread(lse)
    before = np.exp(own - spread)
    # the other tokens keep their logits, so their mass stays what it was
    rest = np.maximum(1 - ends.sum(before), 0)
    log_z = lse + np.log(rest + ends.sum(np.exp(corrected - spread)))
    for row in np.flatnonzero(~np.isfinite(log_z)).tolist():
        place = ends.slices[row]
        corrected[place], log_z[row] = far_off(own[place], corrected[place], lse[row], rest[row])
    behind = np.exp(corrected - ends.spread(log_z))
    expected = ends.sum(behind * change_of(own, corrected))
    slots, windows, seen = look_up(memories, directions, current)
    features, weights = gated(memories, entropy, slots, seen, current)
    return [
        Reading(
            hidden[one], lse[one], top[one], logits[row][None], tokens[row], own[None, place],
            corrected[None, place], log_z[one], before[None, place], behind[None, place], expected[one],
            slots[row], windows[row], weights[one], features[one],
        )
        for row, place in enumerate(ends.slices)
        for one in (slice(row, row + 1),)
    ]  # fmt: skip


def gated(
    memories: Sequence[OneMemory], entropy: Array, slots: Sequence[Slots], seen: Sequence[Array],
    current: Sequence[int],
) -> tuple[Array, Array]:  # fmt: skip
    """Return what each gate looks at (R, 5), and how much model, memory and window count (R, 3)."""
    similarity, length, confidence = (one.tolist() for one in seen)
    numbers = zip(similarity, entropy.tolist(), length, confidence, strict=True)
    features = [features_of_one(*one) for one in numbers]
    weights = [
        one.weights_of_one(looks_at, len(held.tokens) > 0 and one.settled(token))
        for one, looks_at, held, token in zip(memories, features, slots, current, strict=True)
    ]
    return np.array(features), np.array(weights)


def _each_dot(vectors: Array, other: Array) -> Array:
    """Return the product of each of ``vectors`` (R, n) with ``other`` (n,): BLAS would add by a vector's place."""
    return np.array([vector @ other for vector in vectors], vectors.dtype)


def look_up(
    memories: Sequence[OneMemory], directions: Array, current: Sequence[int]
) -> tuple[list[Slots], list[Ranked], tuple[Array, Array, Array]]:
    """Return what the windows hold, how their slots rank, and the greatest cosine, match length and confidence.

    Each by itself: windows are as long as a session is old, so that little of it would be one step of NumPy for all.
    """
    count = len(memories)
    slots, windows = [NO_SLOTS] * count, [NOTHING_FOUND] * count
    similarity, length, confidence = (np.zeros(count, np.float32) for _ in range(3))
    similarity -= 1
    for row, memory in enumerate(memories):
        held = memory.slots()
        if len(held.tokens):
            slots[row] = held
            features, weights, *found = ranked(memory, held, directions[row], current[row])
            similarity[row], length[row], confidence[row] = found
            one = slice(row, row + 1)
            mean = np.dot(features, weights)
            windows[row] = Ranked(
                weights[None], similarity[one], length[one], confidence[one], features[:, None], mean[None]
            )
    return slots, windows, (similarity, length, confidence)


def ranked(
    memory: OneMemory, slots: Slots, direction: Array, current: int
) -> tuple[Array, Array, float, float, float]:
    """Do ``Ranking.read`` for one query, (d_key,), behind the token ``current``.

    Returns
    -------
    features (3, slots), weights (slots,), and the greatest cosine, match length and confidence.
    """
    ranking: Any = memory.memory.config.ranking
    by_cosine, by_match, by_age = memory.present.gate["rank"].tolist()
    tokens = slots.tokens
    cosine, match, age = features = np.empty((3, len(tokens)), np.float32)
    np.dot(slots.keys, direction, out=cosine)
    match[:] = 0
    age[:] = aged(memory.unlearned + 1, len(tokens))
    weights = cosine * by_cosine
    longest = ranking.longest
    line = slots.behind(longest)
    at = (line == current).nonzero()[0]
    if len(at):
        # the tokens before, newest first; behind the last that counts stands what equals nothing
        came = memory.history(current, longest)
        before = [_NEVER] * longest
        before[: len(came) - 1] = came[-2::-1] if len(came) > 1 else ()
        same = (line[at[:, None] - _steps(longest)] != np.array(before)).argmax(axis=1)
        scores = match_score(1 + same)
        at -= longest
        match[at] = scores
        weights[at] += scores * by_match
    weights += age * by_age
    best = int(weights.argmax())
    weights -= weights[best]
    np.exp(weights, out=weights)
    weights /= np.add.reduce(weights)
    confidence = float(np.add.reduce(weights[tokens == tokens[best]]))
    similarity = min(max(float(np.maximum.reduce(cosine)), -1.0), 1.0)
    return features, weights, similarity, float(match[best]), confidence


@functools.lru_cache(maxsize=4)
def _steps(count: int) -> Array:
    """Return 1 to ``count``."""
    return np.arange(1, count + 1)
