"""Readings of whitened memories: as many candidates for every token, and what a step needs found on the way.

The candidates of a token are those that the model and the memory's token biases together think most likely. Their rows
of the read-out matrix are gathered once: multiplied with the memory's answer they move the logits, and the mean of the
rows, as their probabilities weigh them, is what the answer's gradient consists of but for the row of the token that
comes. Knows neither sessions nor engines.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.output_matrix import BLOCK_BYTES
from atlas_kit.llama.reading import Reading, change_of, far_off, find, largest, summarize, with_bound
from atlas_kit.llama.side_by_side import OneMemory, gated, look_up
from atlas_kit.memory import WhitenedMemory
from atlas_kit.memory.backend import quiet, to_host

if TYPE_CHECKING:
    from atlas_kit.llama.output_matrix import OutputRows

#: How much a token's bias above zero counts when candidates are chosen: what came lately is worth a look before it is
#: likely. Below zero it does not count: a token that the model finds likely must not lose its correction.
LIFT = 2.0
#: Where the vocabulary is so many times as large as what is summed, sorting that takes less time than a vocabulary.
FEW_TIMES = 4
#: Where it is not so many times as large as the number of candidates, all of it is looked at at once.
MANY_TIMES = 32
#: Biases up to this lift nothing.
LEAST_LIFT = 0.02


class OneWhitened(OneMemory, Protocol):
    """What reading asks of a memory, here."""

    def keys_of(self, hidden: Array) -> Array:
        """Return of what an engine gives (n, width) the states that it learns from (n, n_embd)."""

    @property
    def bias(self) -> Array | None:
        """The tokens' biases (n_vocab,); None: all are zero."""

    @property
    def lift(self) -> tuple[Array, Array] | None:
        """Tokens with biases above ``LEAST_LIFT``, ascending, and ``LIFT`` times these."""


def likely(logits: Array, lift: tuple[Array, Array] | None, count: int) -> Array:
    """Return the ``count`` candidates behind logits (n_vocab,), ascending: the largest when some are lifted.

    ``lift``: tokens (k,), and how far they are lifted (k,), none down; so only those that come to lie above the
    ``count``-th largest of all need a look.
    """
    return likely_and_beside(logits, lift, count)[0]


def likely_and_beside(logits: Array, lift: tuple[Array, Array] | None, count: int) -> tuple[Array, float]:
    """Return the same, and what no logit of the other tokens exceeds."""
    if count >= len(logits):
        return np.arange(len(logits)), -math.inf
    if lift is None or not len(lift[0]):
        return largest(logits, count)
    if len(logits) < MANY_TIMES * count:  # raising a copy of all takes less time than what follows
        raised = logits.copy()
        raised[lift[0]] += lift[1]
        return largest(raised, count)
    found, least = largest(logits, count)
    lifted = logits[lift[0]]
    lifted += lift[1]
    above = (lifted > least).nonzero()[0]
    if not len(above):
        return found, least
    tokens, lifted = lift[0][above], lifted[above]
    place, known = find(found, tokens)
    if np.logical_and.reduce(known):
        return found, least
    own = logits[found]
    own[place[known]] = lifted[known]
    new = ~known
    found, own = np.concatenate((found, tokens[new])), np.concatenate((own, lifted[new]))
    ordered = own.argpartition(len(own) - count)[len(own) - count :]
    least = float(own[ordered[0]])
    found = found[ordered]
    found.sort()
    return found, least


@quiet
def read_whitened(
    memories: Sequence[OneWhitened], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> list[Reading]:
    """Return what each whitened memory expects after one token; as ``read_side_by_side``."""
    first = memories[0]
    y, directions = first.memory.read_each([one.present for one in memories], first.keys_of(hidden))
    _, lse, entropy = summarize(logits, 0)
    count = len(memories)
    top = np.empty((count, first.count), np.int64)
    own = np.empty(top.shape, np.float32)
    beside = []
    for row, one in enumerate(memories):
        top[row], least = likely_and_beside(logits[row], one.lift, first.count)
        beside.append(least)
        logits[row].take(top[row], out=own[row], mode="clip")
        one.require_formula(hidden[row : row + 1], own[row : row + 1], top[row])
    corrected, log_z, before, behind, expected, pull = _moved_each(memories, own, top, y, lse)
    slots, windows, seen = look_up(memories, directions, current)
    features, weights = gated(memories, entropy, slots, seen, current)
    return [
        Reading(
            hidden[one], lse[one], top[one], logits[row][None], top[row], own[one], corrected[one], log_z[one],
            before[one], behind[one], expected[one], slots[row], windows[row], weights[one], features[one], pull[one],
            beside[row],
        )
        for row in range(count)
        for one in (slice(row, row + 1),)
    ]  # fmt: skip


def _moved_each(
    memories: Sequence[OneWhitened], own: Array, top: Array, y: Array, lse: Array
) -> tuple[Array, ...]:
    """Return ``moved`` of one token of each session, and the pull (R, n_embd): of most of them nothing.

    A memory that is not whitened yet corrects nothing, and learns nothing: all that it takes is left out.
    """
    rows, count = memories[0].rows, len(memories)
    knowing = [row for row, one in enumerate(memories) if WhitenedMemory.is_whitened(one.present)]
    if not knowing:
        return unmoved(own, lse, rows.n_embd)
    # as many at a time as leave their rows in the processor's cache
    at_once = max(1, BLOCK_BYTES // (4 * rows.n_embd * top.shape[1]))
    parts = [
        _moved_side_by_side(
            rows, own[some], top[some], y[some], lse[some], [memories[row].bias for row in some]
        )
        for at in range(0, len(knowing), at_once)
        for some in (knowing[at : at + at_once],)
    ]
    of_them = parts[0] if len(parts) == 1 else tuple(map(np.concatenate, zip(*parts, strict=True)))
    if len(knowing) == count:
        return of_them
    found = tuple(array.copy() for array in unmoved(own, lse, rows.n_embd))
    for array, part in zip(found, of_them, strict=True):
        array[knowing] = part
    return found


def unmoved(own: Array, lse: Array, n_embd: int) -> tuple[Array, ...]:
    """Return ``moved`` by nothing, and no pull."""
    before = np.exp(own - lse[:, None])
    return own, lse, before, before, np.zeros(len(own)), np.zeros((len(own), n_embd), np.float32)


def _moved_side_by_side(
    rows: OutputRows, own: Array, top: Array, y: Array, lse: Array, biases: Sequence[Array | None]
) -> tuple[Array, ...]:
    """Return ``moved`` of one token of each session, and the pull (R, n_embd); ``top`` (R, K) are the candidates."""
    block = rows.gathered(top.reshape(-1), keep=True).reshape(*top.shape, rows.n_embd)
    change = np.matmul(block, y[:, :, None])[:, :, 0]
    change -= np.array([one @ rows.mean for one in y], np.float32)[:, None]
    if rows.scale != 1:
        change *= np.float32(rows.scale)
    for row, bias in enumerate(biases):
        if bias is not None:
            change[row] += bias[top[row]]
    found = moved(own, change, lse, rows.softcap)
    return *found, np.matmul(sloped(found[3], found[0], rows.softcap)[:, None, :], block)[:, 0]


def moved(
    own: Array, change: Array, lse: Array, softcap: float | None
) -> tuple[Array, Array, Array, Array, Array]:
    """Return what candidates' logits (n, U), moved by ``change``, come to.

    Returns
    -------
    corrected, log_z, before, behind, expected
        The logits (n, U), log-sum-exp of all (n,), probabilities before and behind (n, U), and the mean move (n,).
    """
    corrected = own + change if softcap is None else with_bound(own, change, softcap)
    spread = lse[:, None]
    before = np.exp(own - spread)
    # the other tokens keep their logits, so their mass stays what it was
    rest = np.maximum(1 - np.add.reduce(before, axis=1), 0)
    behind = corrected - spread
    log_z = lse + np.log(rest + np.add.reduce(np.exp(behind, out=behind), axis=1))
    if not all(map(math.isfinite, log_z.tolist())):
        for row in np.flatnonzero(~np.isfinite(log_z)).tolist():
            corrected[row], log_z[row] = far_off(own[row], corrected[row], lse[row], rest[row])
    np.subtract(corrected, log_z[:, None], out=behind)
    np.exp(behind, out=behind)
    expected = np.add.reduce(behind * (corrected - own), axis=1)
    if not all(map(math.isfinite, expected.tolist())):  # a model rules tokens out
        expected = np.add.reduce(behind * change_of(own, corrected), axis=1)
    return corrected, log_z, before, behind, expected


def sloped(probabilities: Array, corrected: Array, softcap: float | None) -> Array:
    """Return how far each probability moves with the answer's product with its row: less, near a bound."""
    p = probabilities.astype(np.float32)
    return p if softcap is None else np.asarray(p * _slope(corrected, softcap))


def _slope(corrected: Array, softcap: float) -> Array:
    return np.asarray(1 - np.square(corrected / np.float32(softcap)))


@quiet
def correct_all(
    rows: OutputRows, hidden: Array, logits: Array, tops: Array, y: Array, lse: Array, bias: Array | None,
    check: Any, scratch: Array, *, knows: bool,
) -> tuple[Array, ...]:  # fmt: skip
    """Return the candidates (U,) of ``n`` tokens together, and what ``Reading`` says of them.

    Parameters
    ----------
    tops
        (n, K): each token's own candidates; the others of the ``U`` stay for it as they are.
    check
        Called with states, logits and tokens (see ``TokenMemory.require_formula``).
    scratch
        Takes the rows, if it is large enough.
    knows
        Whether the memory is whitened: before, it corrects nothing, and no row is looked at.

    Returns
    -------
    tokens, own, corrected, log_z, before, behind, expected, pull
    """
    flags = np.zeros(rows.n_vocab, np.bool_)
    flags[tops.reshape(-1)] = True
    tokens = np.flatnonzero(flags)
    own = logits[:, tokens]
    check(hidden, own, tokens)
    if not knows:
        return (tokens, own, *unmoved(own, lse, rows.n_embd))
    block = rows(tokens, scratch)
    change = (y @ block.T - (y @ rows.mean)[:, None]) * np.float32(rows.scale)
    if bias is not None:
        change += bias[tokens]
    mine = np.zeros(own.shape, np.bool_)
    np.put_along_axis(mine, np.searchsorted(tokens, tops), True, axis=1)
    change[~mine] = 0
    found = moved(own, change, lse, rows.softcap)
    share = sloped(found[3], found[0], rows.softcap)
    share[~mine] = 0
    return (tokens, own, *found, share @ block)


class Asking(NamedTuple):
    """What a reading of ``n`` tokens says for ``asked_for``."""

    pull: Array
    behind: Array
    corrected: Array
    top: Array

    @classmethod
    def of(cls, reading: Reading) -> Asking:
        """Return what a reading says of the candidates that each token has of its own."""
        assert reading.pull is not None
        behind, corrected = reading.behind, reading.corrected
        if len(reading) > 1:
            places = np.searchsorted(reading.tokens, reading.top)
            behind, corrected = (np.take_along_axis(all_, places, axis=1) for all_ in (behind, corrected))
        return cls(reading.pull, behind, corrected, reading.top)


def asked_for(read: Sequence[Asking], token: Array, rows: OutputRows) -> tuple[Array, Array]:
    """Return what tokens that came, (n,), ask of the memory that read: gradients of the answers and of the biases.

    Parameters
    ----------
    read
        What was read before each came, of ``n`` tokens in all.

    Returns
    -------
    gradient, share
        (n, n_embd): dl/dy. (n, K): dl/dz of the reading's ``top``, which is zero for a token that is none of them.
    """
    pull, behind, corrected, top = (np.concatenate(parts) for parts in zip(*read, strict=True))
    share = sloped(behind, corrected, rows.softcap)
    total = share.sum(axis=1)
    hit = top == token[:, None]  # at most one of each row
    known = hit.any(axis=1)
    factor = known.astype(np.float32)
    if rows.softcap is not None:
        factor[known] *= _slope(corrected[hit], rows.softcap)
    share[hit] -= factor[known]
    gradient = pull - total[:, None] * rows.mean
    came = rows.gathered(token)
    came -= rows.mean
    came *= factor[:, None]
    gradient -= came
    gradient *= np.float32(rows.scale)
    return gradient, share


def bias_step(top: Array, share: Array, size: float) -> tuple[Array, Array]:
    """Return tokens (k,), ascending, and by how much their biases move: ``-size`` times the sum of ``share`` (n, K)."""
    tokens, shares = top.reshape(-1), to_host(share).reshape(-1)
    most = int(tokens.max(initial=0)) + 1
    if most <= FEW_TIMES * len(
        tokens
    ):  # a sum for each token there is takes less time than sorting those that came
        flags = np.zeros(most, np.bool_)
        flags[tokens] = True
        ids = np.flatnonzero(flags)
        return ids, -size * np.bincount(tokens, shares, most)[ids]
    ids, place = np.unique(tokens, return_inverse=True)
    return ids, -size * np.bincount(place.reshape(-1), shares, len(ids))
