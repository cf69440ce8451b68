"""What model, memory and window expect after a token, and the arithmetic on a model's logits that it takes.

Knows nothing of states, engines or sessions: ``token_memory.py`` makes readings, and learns from them.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.memory.backend import namespace, to_host
from atlas_kit.memory.ranking import Ranked, Ranking

#: So many numbers are summed in float64, which takes no time.
FEW = 1 << 13


class Slots:
    """What the window holds: unit keys (slots, d_key) on the device, tokens that followed (slots,), oldest first."""

    def __init__(self, keys: Array, tokens: Array) -> None:
        self.keys, self.tokens = keys, tokens
        self._behind: Array | None = None

    @functools.cached_property
    def distinct(self) -> tuple[Array, Array]:
        """The tokens that occur, ascending, and for each slot which of them it holds."""
        seen, place = np.unique(self.tokens, return_inverse=True)
        return seen, place.reshape(-1)

    @functools.cached_property
    def bounds(self) -> tuple[int, int]:
        """The least and the greatest token that occur; they may come from a file that says anything."""
        return int(self.tokens.min()), int(self.tokens.max())

    def behind(self, longest: int) -> Array:
        """Return (slots + longest,): each slot's own token where it is known, behind as many that equal none."""
        if self._behind is None or len(self._behind) != len(self.tokens) + longest:
            self._behind = np.full(len(self.tokens) + longest, -2)
            self._behind[longest + 1 :] = self.tokens[:-1]
        return self._behind


class SlotRow:
    """The window's slots in a row, oldest first, kept up step by step.

    The state's ring wraps around and holds float16; making unit vectors of 32,768 keys takes as long as looking 16
    queries up. So they lie in arrays with room behind them, and move to new ones when it is used up.
    """

    def __init__(self, size: int, keys: Array, tokens: Array) -> None:
        self._size = size
        self.slots = Slots(keys, np.asarray(to_host(tokens), np.int64))
        self._move()

    def _move(self) -> None:
        """Begin new arrays; the old ones may be looked at elsewhere."""
        was, room = self.slots, self._size + max(256, self._size // 8)
        self._end = len(was.tokens)
        self._keys = namespace(was.keys).empty((room, was.keys.shape[1]), was.keys.dtype)
        self._tokens = np.empty(room, np.int64)
        self._keys[: self._end], self._tokens[: self._end] = was.keys, was.tokens

    def append(self, keys: Array, tokens: Array) -> None:
        """Take in the newest slots."""
        count = len(tokens)
        if self._end + count > len(self._tokens):
            self._move()
        new = slice(self._end, self._end + count)
        self._keys[new], self._tokens[new] = keys, to_host(tokens)
        self._end += count
        held = slice(max(0, self._end - self._size), self._end)
        self.slots = Slots(self._keys[held], self._tokens[held])


NO_SLOTS = Slots(np.empty((0, 0), np.float32), np.empty(0, np.int64))


class NoReadout:
    """For a memory that never learns: its objective is asked for a loss all the same."""

    def evaluate(self, y: Array, targets: Mapping[str, Array]) -> tuple[Array, Array]:
        """Return no loss and no gradient of answers (n, n_embd)."""
        return y[..., 0] * 0, y * 0


@dataclasses.dataclass(eq=False)
class Reading:
    """What model, memory and window expect after each of ``n`` tokens.

    Attributes
    ----------
    hidden, lse, top
        (n, n_embd), (n,) in nats, (n, K): state, log-sum-exp of the logits, most likely tokens.
    logits
        (n, n_vocab) as the model gave them.
    tokens, own, corrected
        (U,) ascending, (n, U), (n, U): the candidates, their logits, and these behind the memory.
    log_z
        (n,): log-sum-exp of all logits behind the memory.
    before, behind
        (n, U): the candidates' probabilities, as the model has them, and behind the memory.
    expected
        (n,): how far the memory moves the candidates' logits, in the mean of the probabilities behind it.
    slots, window
        What the window holds, and how its slots rank for each token.
    weights
        (n, 3): how much model, memory and window count; they sum to 1.
    features
        (n, 5): what the gate looks at.
    pull
        (n, n_embd): the mean of the candidates' rows, as ``behind`` weighs them; of whitened memories only.
    beside
        Of a single token: no logit is larger of those that are no candidates'; None: not known.
    """

    hidden: Array
    lse: Array
    top: Array
    logits: Array
    tokens: Array
    own: Array
    corrected: Array
    log_z: Array
    before: Array
    behind: Array
    expected: Array
    slots: Slots
    window: Ranked
    weights: Array
    features: Array
    pull: Array | None = None
    beside: float | None = None

    def __len__(self) -> int:
        return len(self.lse)

    def log_probabilities(self, row: int = 0) -> Array:
        """Return the blended log-probability (n_vocab,) of every token after one of the tokens."""
        model, memory, window = self.weights[row].tolist()
        # beside the candidates, model and memory differ by the normaliser only
        model_log = math.log(model) - float(self.lse[row]) if model > 0 else -math.inf
        memory_log = math.log(memory) - float(self.log_z[row]) if memory > 0 else -math.inf
        logp: Array = self.logits[row] + np.float32(np.logaddexp(model_log, memory_log))
        if memory > 0:
            mixed = self.before[row] * model
            mixed += self.behind[row] * memory
            mixed += 1e-30
            logp[self.tokens] = np.log(mixed, out=mixed)
        if window > 0:
            seen, place = self.slots.distinct
            mass = np.bincount(place, self.window.weights[row], len(seen))
            mass = mass * window
            mass += np.exp(logp[seen], dtype=np.float64)
            mass += 1e-30
            logp[seen] = np.log(mass, out=mass)
        return logp

    def likeliest(self, count: int, row: int = 0) -> tuple[Array, Array] | None:
        """Return tokens with their blended log-probabilities, the ``count`` likeliest of all among them.

        Looked at are the candidates, what the window holds, and whatever the model finds likelier than the least of the
        ``count`` likeliest among these: all other tokens have the model's logits. None where these are not so many.
        """
        tokens, logits, own = self.tokens, self.logits[row], self.own[row]
        model, memory, window = self.weights[row].tolist()
        model_log = math.log(model) - float(self.lse[row]) if model > 0 else -math.inf
        memory_log = math.log(memory) - float(self.log_z[row]) if memory > 0 else -math.inf
        others = float(np.logaddexp(model_log, memory_log))  # what is added to all other logits
        chance = self.before[row] * model
        chance += self.behind[row] * memory
        beside = math.inf if self.beside is None or len(tokens) < count else self.beside
        if window > 0:
            # of the rest, whatever is less likely with all that it can have needs no look
            apart = (1 + 1e-3) * math.exp(beside + others) if beside + others < 0 else math.inf
            more, mass = self._beside(tokens, chance, apart, count, window, row)
            if len(more):
                tokens, own = np.concatenate((tokens, more)), np.concatenate((own, logits[more]))
                chance = np.concatenate((chance, np.exp(own[len(chance) :] + others) + mass))
        if len(tokens) < count:
            return None
        least = _least(chance, count)
        if not least > 0:
            return None
        bound = np.float32(math.log(least) - others)
        if not bound >= beside:
            likelier = (logits > bound).nonzero()[0]
            if len(likelier) > np.count_nonzero(own > bound):
                likelier = likelier[~np.isin(likelier, tokens)]
                tokens = np.concatenate((tokens, likelier))
                chance = np.concatenate((chance, np.exp(logits[likelier] + others)))
        places = (chance >= least).nonzero()[0]
        return tokens[places], np.log(chance[places]).astype(np.float32)

    def _beside(
        self, tokens: Array, chance: Array, apart: float, count: int, window: float, row: int
    ) -> tuple[Array, Array]:
        """Add what the window gives to the candidates' chances; return who else may be likely, and what it gives them.

        ``apart``: what all others have beside it at most; inf: nobody knows.
        """
        weights, n_vocab = self.window.weights[row], self.logits.shape[1]
        # where there are few tokens, a sum for each takes less time than finding those that occur
        dense = n_vocab <= FEW and self.slots.bounds[0] >= 0 and self.slots.bounds[1] < n_vocab
        if dense:
            every: Array = np.bincount(self.slots.tokens, weights, n_vocab)
            every *= window
            chance += every[tokens]
            if (least := _least(chance, count) - apart if apart < math.inf else 0.0) > 0:
                every[tokens] = 0
                new = (every >= least).nonzero()[0]
                return new, every[new]
        seen, place = self.slots.distinct
        mass: Array = np.bincount(place, weights, len(seen))
        mass *= window
        where, known = find(tokens, seen)
        if not dense:
            chance[where[known]] += mass[known]
        new = ~known
        if apart < math.inf and new.any():
            new &= mass >= _least(chance, count) - apart
        return seen[new], mass[new]

    def probabilities_of(self, token: Array) -> Array:
        """Return (n, 3): what the model alone, the model with the memory, and the window gave to ``token`` (n,)."""
        return self.outcome(token, None)[0]

    def outcome(self, token: Array, ranking: Ranking | None) -> tuple[Array, Array]:
        """Return ``probabilities_of`` tokens that came, and what is learned from them.

        Returns
        -------
        probabilities, slope
            (n, 3), and (n, 4): d log p / dw of the ranking's weights, with p what the window gave; and ``gain``.
        """
        if len(token) == 1:
            return self._outcome_of_one(int(token[0]), ranking)
        hits, (place, known) = self.hits(token), find(self.tokens, token)
        every = np.arange(len(token))
        own = self.logits[every, token].astype(np.float64)
        behind = np.where(known, self.corrected[every, place], own) if len(self.tokens) else own
        found = np.empty((len(token), 3))
        np.exp(own - self.lse, out=found[:, 0])
        np.exp(behind - self.log_z, out=found[:, 1])
        found[:, 2] = (self.window.weights * hits).sum(axis=1)
        slope = np.zeros((len(token), 4))
        if ranking is not None:
            slope[:, :-1] = ranking.slope(self.window, hits)
        slope[:, -1] = self._gain(place, known)
        return found, slope

    def _outcome_of_one(self, token: int, ranking: Ranking | None) -> tuple[Array, Array]:
        """Return ``outcome`` of one token: numbers one by one take less time than arrays of one."""
        slope = np.zeros((1, 4))
        places = (self.slots.tokens == token).nonzero()[0]
        right = 0.0
        if len(places):
            weights = self.window.weights[0, places]
            right = float(np.add.reduce(weights))
            if ranking is not None:
                slope[:, :-1] = ranking.slope_of_some(self.window, places, weights, right)
        own, place = float(self.logits[0, token]), int(self.tokens.searchsorted(token))
        behind, change = own, 0.0
        if place < len(self.tokens) and self.tokens[place] == token:
            behind = float(self.corrected[0, place])
            change = behind - float(self.own[0, place])
            change = change if math.isfinite(change) else 0.0  # a model rules it out
        slope[0, -1] = change - float(self.expected[0])
        model = math.exp(own - float(self.lse[0]))
        return np.array([[model, math.exp(behind - float(self.log_z[0])), right]]), slope

    def gain(self, token: Array) -> Array:
        """Return (n,): d log p(token) / d g, were the memory's correction g times as large, at g = 1, per nat.

        ``change_token - sum_u p_u change_u`` over the candidates; out of sample, since reading comes before learning.
        """
        return self._gain(*find(self.tokens, token))

    def _gain(self, place: Array, known: Array) -> Array:
        if not len(self.tokens):
            return np.zeros(len(place))
        every = np.arange(len(place))
        change = change_of(self.own[every, place], self.corrected[every, place])
        return np.asarray(np.where(known, change, 0) - self.expected)

    def hits(self, token: Array) -> Array:
        """Return (n, slots): which slots hold the token that came."""
        return np.equal(self.slots.tokens, token[:, None])

    def blended(self, probabilities: Array) -> Array:
        """Return the blended probability (n,) from what ``probabilities_of`` gave."""
        mixed: Array = (self.weights * probabilities).sum(axis=1)
        return mixed

    def log_gave(self, p: Array) -> Array:
        """Return the log-probabilities (n, 2), by the model and blended, from what ``probabilities_of`` gave."""
        if len(p) == 1:  # numbers one by one take less time than arrays of one
            gave, weights = p[0].tolist(), self.weights[0].tolist()
            mixed = sum([one * weight for one, weight in zip(gave, weights, strict=True)])
            return np.log([[max(gave[0], 1e-300), max(mixed, 1e-300)]])
        both: Array = np.empty((len(p), 2))
        both[:, 0], both[:, 1] = p[:, 0], self.blended(p)
        np.maximum(both, 1e-300, out=both)
        return np.asarray(np.log(both, out=both))


def _least(chance: Array, count: int) -> float:
    """Return the ``count``-th largest of some numbers."""
    ordered, at = chance.copy(), len(chance) - count
    ordered.partition(at)
    return float(ordered[at])


def change_of(own: Array, corrected: Array) -> Array:
    """Return how far logits were moved; 0 where a model rules a token out, by -inf."""
    with np.errstate(invalid="ignore"):
        change = corrected - own
    return change if np.isfinite(change).all() else np.where(own > -np.inf, change, 0)


def far_off(own: Array, corrected: Array, lse: float, rest: float) -> tuple[Array, float]:
    """Return corrected logits (U,) and the log-sum-exp, where steps far too large correct by more than exp can hold.

    Parameters
    ----------
    own, corrected
        The model's logits of the candidates, and these behind the memory; what is no number does not count.
    lse, rest
        The log-sum-exp of all of the model's logits, and the probability of all but the candidates.
    """
    corrected = np.where(np.isnan(corrected) | (corrected == np.inf), own, corrected)
    parts = np.append(corrected.astype(np.float64) - lse, np.log(rest))
    largest = parts.max()
    return corrected, float(lse + largest + np.log(np.exp(parts - largest).sum()))


def with_bound(own: Array, change: Array, softcap: float) -> Array:
    """Return logits that a model has bounded by ``softcap``, moved by ``change`` before the bound."""
    cap = np.float32(softcap)
    bounded = np.clip(own / cap, -1 + 1e-6, 1 - 1e-6)
    return np.asarray(cap * np.tanh(np.arctanh(bounded) + change / cap))


def summarize(logits: Sequence[Array] | Array, count: int) -> tuple[Array, Array, Array]:
    """Return the ``count`` most likely tokens (n, count), log-sum-exp (n,) and entropy (n,) in nats.

    >>> top, lse, entropy = summarize(np.log(np.array([[1.0, 2.0, 1.0]], np.float32)), 1)
    >>> top.tolist(), lse.round(4).tolist(), entropy.round(4).tolist()  # log 4; 1/2 log 2 + 1/2 log 4
    ([[1]], [1.3863], [1.0397])
    """
    n = len(logits)
    lse, entropy = np.empty(n), np.empty(n)
    top = np.empty((n, count), np.int64)
    with np.errstate(invalid="ignore"):
        for row in range(n):  # row by row: the temporaries then stay in the processor's cache
            lse[row], entropy[row] = summary(logits[row])
            if count:
                top[row] = most_likely(logits[row], count)
    return top, lse, entropy


def summary(z: Array) -> tuple[float, float]:
    """Return log-sum-exp and entropy of logits (n_vocab,), in nats."""
    largest = np.maximum.reduce(z)
    below = z - largest
    e = np.exp(below)
    # the sum of many is made in pairs: as exact as the logits, and twice as fast
    total = float(np.add.reduce(e, dtype=np.float64 if len(e) <= FEW else None))
    logarithm = math.log(total)
    # never positive, so that nothing cancels however large the logits are
    mean = float(e @ below)
    if not math.isfinite(mean):  # a model may rule tokens out: -inf times 0
        mean = float(e @ np.where(e > 0, below, 0))
    return float(largest) + logarithm, logarithm - mean / total


def most_likely(z: Array, count: int) -> Array:
    """Return the places of the ``count`` largest of z (n_vocab,), in no order; ties as they come.

    Where z is long, the ``count``-th largest of the maxima of blocks bounds what can be among them, so that two
    passes find some hundred numbers to sort instead of all.

    >>> sorted(most_likely(np.array([3.0, 1.0, 2.0, 5.0]), 2).tolist())
    [0, 3]
    """
    n = len(z)
    if count >= n:
        return np.arange(n)
    places = _at_least(z, count)
    if places is not None:
        first = len(places) - count
        return np.asarray(places[z[places].argpartition(first)[first:]])
    return z.argpartition(n - count)[n - count :]


def _at_least(z: Array, count: int) -> Array | None:
    """Return ascending places of which the ``count`` largest of z are some; None where nothing bounds them."""
    size = len(z) // (4 * count)
    if size >= 8:
        blocks = len(z) // size
        # of numbers that lie apart, so that the maxima of all blocks are taken side by side
        maxima = np.maximum.reduce(z[: blocks * size].reshape(size, blocks), axis=0)
        maxima.partition(blocks - count)
        places = (z >= maxima[blocks - count]).nonzero()[0]
        if len(places) >= count:  # fewer only where some are no numbers
            return np.asarray(places)
    return None


def largest(z: Array, count: int) -> tuple[Array, float]:
    """Return the places of the ``count`` largest of z (n,), ascending, and the least of these; ties as they come.

    >>> largest(np.array([3.0, 1.0, 2.0, 5.0]), 2)[0].tolist()
    [0, 3]
    """
    places = _at_least(z, count)
    numbers = z if places is None else z[places]
    ordered = numbers.copy()
    ordered.partition(len(ordered) - count)
    least = ordered[len(ordered) - count]
    above = (numbers >= least).nonzero()[0]
    if len(above) == count:
        return above if places is None else places[above], float(least)
    found = most_likely(z, count)
    found.sort()
    return found, float(np.minimum.reduce(z[found]))


def find(ascending: Array, wanted: Array) -> tuple[Array, Array]:
    """Return the places of ``wanted`` in ``ascending``, and which of them are there."""
    if not len(ascending):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), np.bool_)
    place = np.minimum(ascending.searchsorted(wanted), len(ascending) - 1)
    return place, ascending[place] == wanted
