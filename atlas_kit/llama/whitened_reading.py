"""Readings of whitened memories: as many candidates for every token, and what a step needs found on the way.

The candidates of a token are those that the model and the memory's token biases together think most likely. Their rows
of the read-out matrix are gathered once: multiplied with the memory's answer they move the logits, and the mean of the
rows, as their probabilities weigh them, is what the answer's gradient consists of but for the row of the token that
comes. Knows neither sessions nor engines.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.reading import Reading, change_of, far_off, most_likely, summarize, with_bound
from atlas_kit.llama.side_by_side import OneMemory, look_up
from atlas_kit.memory import gate_features
from atlas_kit.memory.backend import quiet, to_host

if TYPE_CHECKING:
    from atlas_kit.llama.output_matrix import OutputRows

#: How much a token's bias above zero counts when candidates are chosen: what came lately is worth a look before it is
#: likely. Below zero it does not count: a token that the model finds likely must not lose its correction.
LIFT = 2.0
#: Biases up to this lift nothing.
LEAST_LIFT = 0.02

#: Sessions whose candidates' rows are looked at together.
TOGETHER = 8


class OneWhitened(OneMemory, Protocol):
    """What reading asks of a memory, here."""

    @property
    def bias(self) -> Array | None:
        """The tokens' biases (n_vocab,); None: all are zero."""

    @property
    def lift(self) -> tuple[Array, Array] | None:
        """Tokens with biases above zero, and ``LIFT`` times these."""


def likely(logits: Array, lift: tuple[Array, Array] | None, count: int) -> Array:
    """Return the ``count`` candidates behind logits (n_vocab,), ascending: the largest when some are lifted.

    ``lift``: tokens (k,), and how far they are lifted (k,), none down; so only those that come to lie above the
    ``count``-th largest of all need a look.
    """
    if count >= len(logits):
        return np.arange(len(logits))
    found = most_likely(logits, count)
    if lift is not None and len(lift[0]):
        lifted = logits[lift[0]] + lift[1]
        above = (lifted > logits[found].min()).nonzero()[0]
        if len(above):
            tokens, lifted = lift[0][above], lifted[above]
            tokens = np.concatenate((tokens, np.setdiff1d(found, tokens)))
            lifted = np.concatenate((lifted, logits[tokens[len(lifted) :]]))
            found = tokens[np.argpartition(lifted, len(lifted) - count)[len(lifted) - count :]]
    found.sort()
    return found


@quiet
def read_whitened(
    memories: Sequence[OneWhitened], hidden: Array, logits: Sequence[Array], current: Sequence[int]
) -> list[Reading]:
    """Return what each whitened memory expects after one token; as ``read_side_by_side``."""
    first, count = memories[0], len(memories)
    rows = first.rows
    y, directions = first.memory.read_each([one.state for one in memories], hidden)
    _, lse, entropy = summarize(logits, 0)
    found = _Moved(count, first.count, rows.n_embd)
    for start in range(0, count, TOGETHER):
        found.move(memories, slice(start, min(start + TOGETHER, count)), hidden, logits, y, lse)
    slots, windows, seen = look_up(memories, directions, current)
    features = gate_features(*seen[:1], entropy, *seen[1:])
    weights = first.weights_of(
        np.concatenate([one.state.gate["w"][None] for one in memories]),
        features[:, None],
        np.array([len(held.tokens) > 0 for held in slots]),
    )
    return [
        Reading(
            hidden[one], lse[one], found.top[one], logits[row][None], found.top[row], found.own[one],
            found.corrected[one], found.log_z[one], found.before[one], found.behind[one], found.expected[one],
            slots[row], windows[row], weights[one], features[one], found.share[one], found.pull[one],
        )
        for row in range(count)
        for one in (slice(row, row + 1),)
    ]  # fmt: skip


class _Moved:
    """The candidates of sessions, and what their memories make of them: arrays as in ``Reading``, a row a session."""

    def __init__(self, count: int, candidates: int, width: int) -> None:
        shape = (count, candidates)
        self.top = np.empty(shape, np.int64)
        self.own, self.corrected, self.share = (np.empty(shape, np.float32) for _ in range(3))
        self.before, self.behind = np.empty(shape), np.empty(shape)
        self.log_z, self.expected = np.empty(count), np.empty(count)
        self.pull = np.empty((count, width), np.float32)

    def move(
        self, memories: Sequence[OneWhitened], part: slice, hidden: Array, logits: Sequence[Array], y: Array,
        lse: Array,
    ) -> None:  # fmt: skip
        """Fill in some sessions: few enough that their rows of the matrix stay in the processor's cache."""
        rows, count = memories[0].rows, self.top.shape[1]
        top, own = self.top[part], self.own[part]
        change = np.empty_like(own)
        blocks = []
        for place, row in enumerate(range(part.start, part.stop)):
            one = memories[row]
            top[place] = likely(logits[row], one.lift, count)
            np.take(logits[row], top[place], out=own[place], mode="clip")
            one.require_formula(hidden[row : row + 1], own[place : place + 1], top[place])
            blocks.append(rows.gathered(top[place]))
            np.dot(blocks[place], y[row], out=change[place])
            change[place] -= y[row] @ rows.mean
        change *= np.float32(rows.scale)
        for place, one in enumerate(memories[part]):
            if one.bias is not None:
                change[place] += one.bias[top[place]]
        found = moved(own, change, lse[part], rows.softcap)
        kept: tuple[Array, ...] = (self.corrected, self.log_z, self.before, self.behind, self.expected)
        for array, values in zip(kept, found, strict=True):
            array[part] = values
        self.share[part] = _sloped(self.behind[part], self.corrected[part], rows.softcap)
        for place, row in enumerate(range(part.start, part.stop)):
            np.dot(self.share[row], blocks[place], out=self.pull[row])


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
    rest = np.maximum(1 - before.sum(axis=1), 0)
    log_z = lse + np.log(rest + np.exp(corrected - spread).sum(axis=1))
    for row in np.flatnonzero(~np.isfinite(log_z)).tolist():
        corrected[row], log_z[row] = far_off(own[row], corrected[row], lse[row], rest[row])
    behind = np.exp(corrected - log_z[:, None])
    expected = (behind * change_of(own, corrected)).sum(axis=1)
    return corrected, log_z, before, behind, expected


def _sloped(probabilities: Array, corrected: Array, softcap: float | None) -> Array:
    """Return how far each probability moves with the answer's product with its row: less, near a bound."""
    p = probabilities.astype(np.float32)
    return p if softcap is None else np.asarray(p * (1 - np.square(corrected / np.float32(softcap))))


@quiet
def correct_all(
    rows: OutputRows, hidden: Array, logits: Array, tops: Array, y: Array, lse: Array, bias: Array | None,
    check: Any, scratch: Array,
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

    Returns
    -------
    tokens, own, corrected, log_z, before, behind, expected, share, pull
    """
    flags = np.zeros(rows.n_vocab, np.bool_)
    flags[tops.reshape(-1)] = True
    tokens = np.flatnonzero(flags)
    own = logits[:, tokens]
    check(hidden, own, tokens)
    block = rows(tokens, scratch)
    change = (y @ block.T - (y @ rows.mean)[:, None]) * np.float32(rows.scale)
    if bias is not None:
        change += bias[tokens]
    mine = np.zeros(own.shape, np.bool_)
    places = np.searchsorted(tokens, tops)
    np.put_along_axis(mine, places, True, axis=1)
    change[~mine] = 0
    found = moved(own, change, lse, rows.softcap)
    share = _sloped(found[3], found[0], rows.softcap)
    share[~mine] = 0
    return (tokens, own, *found, np.take_along_axis(share, places, axis=1), share @ block)


def asked_for(waited: Mapping[str, Array], rows: OutputRows) -> tuple[Array, Array]:
    """Return what tokens ask of the memory that read them: gradients of its answers and of the biases.

    Parameters
    ----------
    waited
        ``token`` (n,), ``top``, ``share`` and ``pull`` (see ``Reading``), ``probabilities`` (n, 3) of the tokens.

    Returns
    -------
    gradient, share
        (n, n_embd): dl/dy. (n, K): dl/dz of the reading's ``top``, with z the logits before a bound.
    """
    token, share = waited["token"], waited["share"].copy()
    total = share.sum(axis=1)
    row, place = (waited["top"] == token[:, None]).nonzero()
    row, first = np.unique(row, return_index=True)  # more candidates than there were may be repeated
    place = place[first]
    factor = np.zeros(len(token), np.float32)
    factor[row] = 1
    if rows.softcap is not None:
        behind = np.maximum(waited["probabilities"][row, 1], 1e-30)
        factor[row] = np.minimum(share[row, place] / behind, 1)
    share[row, place] -= factor[row]
    gradient = waited["pull"] - (total - factor)[:, None] * rows.mean
    gradient -= rows.gathered(token) * factor[:, None]
    gradient *= np.float32(rows.scale)
    return gradient, share


def bias_step(top: Array, share: Array, size: float) -> tuple[Array, Array]:
    """Return tokens (k,), ascending, and by how much their biases move: ``-size`` times the sum of ``share`` (n, K)."""
    ids, place = np.unique(top, return_inverse=True)
    return ids, -size * np.bincount(place.reshape(-1), to_host(share).reshape(-1), len(ids))
