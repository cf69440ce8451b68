"""What one whitened memory expects after one token, number by number.

``read_whitened`` does the same for several sessions; for one, steps of NumPy that hold a row each cost more than what
they compute, and so do the lists around them. Every number is the same to the bit. Knows neither sessions nor engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.gating import features_of_one
from atlas_kit.llama.reading import NO_SLOTS, Reading, summary, with_bound
from atlas_kit.llama.side_by_side import ranked
from atlas_kit.llama.whitened_reading import (
    OneWhitened,
    likely_and_beside,
    moved,
    read_whitened,
    sloped,
    unmoved,
)
from atlas_kit.memory import WhitenedMemory
from atlas_kit.memory.backend import quiet
from atlas_kit.memory.ranking import NOTHING_FOUND, Ranked

if TYPE_CHECKING:
    from atlas_kit.llama.output_matrix import OutputRows


def read_few(
    memories: Sequence[OneWhitened], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> list[Reading]:
    """Do as ``read_whitened``, in whichever way takes less time."""
    if len(memories) == 1:
        return [read_one(memories[0], hidden, logits[0], current[0])]
    return read_whitened(memories, hidden, logits, current)


@quiet
def read_one(one: OneWhitened, hidden: Array, logits: Array, current: int) -> Reading:
    """Return what a memory expects after a token.

    Parameters
    ----------
    hidden, logits
        (1, width), (n_vocab,): the model's output at it.

    Raises
    ------
    ModelError
        As ``TokenMemory.read``.
    """
    memory, state = one.memory, one.present
    assert isinstance(memory, WhitenedMemory)
    y, direction = memory.read_one(state, one.keys_of(hidden)[0])
    lse, entropy = summary(logits)
    top, beside = likely_and_beside(logits, one.lift, one.count)
    own = logits.take(top, mode="clip")
    one.require_formula(hidden, own[None], top)
    lses = np.array([lse])
    if y is None:
        corrected, log_z, before, behind, expected, pull = unmoved(own[None], lses, one.rows.n_embd)
    else:
        corrected, log_z, before, behind, expected, pull = _moved(one.rows, own, top, y, lses, one.bias)
    slots, window = one.slots(), NOTHING_FOUND
    similarity, length, confidence = -1.0, 0.0, 0.0
    if some := len(slots.tokens) > 0:
        looked_at, weights, similarity, length, confidence = ranked(one, slots, direction, current)
        seen = np.array([similarity, length, confidence], np.float32)
        mean = looked_at.dot(weights)
        window = Ranked(weights[None], seen[:1], seen[1:2], seen[2:], looked_at[:, None], mean[None])
    else:
        slots = NO_SLOTS
    features = features_of_one(similarity, entropy, length, confidence)
    share = one.weights_of_one(features, some and one.settled(current))
    return Reading(
        hidden, lses, top[None], logits[None], top, own[None], corrected, log_z, before, behind, expected, slots,
        window, np.array([share]), np.array([features]), pull, beside,
    )  # fmt: skip


def _moved(
    rows: OutputRows, own: Array, top: Array, y: Array, lses: Array, bias: Array | None
) -> tuple[Array, ...]:
    """Return what ``whitened_reading.moved`` says of the candidates, and the pull, with one row each."""
    block = rows.gathered(top, keep=True)
    change = block.dot(y)
    change -= np.float32(y.dot(rows.mean))
    if rows.scale != 1:
        change *= np.float32(rows.scale)
    if bias is not None:
        change += bias[top]
    lse = lses[0]
    corrected = own + change if rows.softcap is None else with_bound(own, change, rows.softcap)
    before = np.exp(own - lse)
    rest = max(1 - np.add.reduce(before), 0)
    behind = corrected - lse
    log_z = lse + np.log(rest + np.add.reduce(np.exp(behind, out=behind)))
    np.subtract(corrected, log_z, out=behind)
    np.exp(behind, out=behind)
    expected = np.add.reduce(behind * (corrected - own))
    if not (math.isfinite(log_z) and math.isfinite(expected)):
        found = moved(own[None], change[None], lses, rows.softcap)
        return *found, sloped(found[3], found[0], rows.softcap) @ block
    pull = sloped(behind, corrected, rows.softcap)
    return (
        corrected[None], np.array([log_z]), before[None], behind[None], np.array([expected]),
        pull.dot(block)[None],
    )  # fmt: skip
