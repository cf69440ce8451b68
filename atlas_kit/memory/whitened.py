"""The memory beside a language model that is cheap to read and to learn: linear on whitened states.

    x = (s - origin) P        phi = x, cut to a length        y = phi W        key = the first numbers of x, of length 1

P comes from the covariance of the first ``after`` states: its largest directions, each divided by its spread. Every
chunk takes one step ``W -= eta phi^T g Q``, with g the gradients with respect to y that the reading has found already
(nothing is learned from but the chunk's own tokens), and Q what makes steps even over the directions of the answers.
Whoever learns brings g Q; the memory keeps some of the g themselves and finds the directions in which they vary, of
which Q can be made (``sampled`` of ``WhitenedMatrix``): after so many gradients, and whenever twice as many have come.
The paper (arXiv 2505.23735) has no such memory: it is equation 10 with c as long as the chunk, on other coordinates.
States are those of ``Memory`` and are saved as such. Knows no language model, tokens or files.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import backend as backends
from atlas_kit.memory import window as ring
from atlas_kit.memory.backend import Array
from atlas_kit.memory.config import RATES, MemoryConfig
from atlas_kit.memory.modules import MOST_LENGTH, WhitenedMatrix, cut
from atlas_kit.memory.muon import newton_schulz
from atlas_kit.memory.neural_memory import Memory
from atlas_kit.memory.state import MemoryState

#: What ``varying`` returns: directions and the rest.
Found = tuple[Array, float]
#: Added to the variances, as a share of their mean: directions that few states tell apart are no better than noise.
RIDGE = 0.1
#: The first states of a text are unlike all others.
UNLIKE = 8
#: Between these, a length is a number like any other in float32, too.
LEAST_SQUARE, MOST_SQUARE = 1e-30, 1e30


class WhitenedMemory(Memory):
    """A memory whose module is ``WhitenedMatrix``: for one session at a time, and sessions side by side.

    Raises
    ------
    InvalidParamError
        When the configuration has another module.
    """

    def __init__(self, config: MemoryConfig, backend: str | None = None) -> None:
        super().__init__(config, backend)
        module = config.module
        if not isinstance(module, WhitenedMatrix) or config.d_k != config.d_v:
            raise InvalidParamError("this is no whitened memory", key="module", hint="Use Memory.")
        if config.d_key > min(module.rank, config.d_v) or config.recall < module.after + config.chunk_size:
            raise InvalidParamError(
                "a key cannot be wider than the rank, and the states to whiten must be kept", key="module"
            )
        self.after, self._d_key = module.after, config.d_key

    @staticmethod
    def is_whitened(state: MemoryState) -> bool:
        """Whether the whitening was made already: before, nothing is learned."""
        return int(state.counters["averaged"]) > 0

    # ---- reading

    def read(self, state: MemoryState, queries: Array) -> Array:
        """Return y (n, d_v) for states (n, d_k)."""
        return self.read_and_direct(state, queries)[0]

    @backends.quiet
    def read_and_direct(self, state: MemoryState, queries: Array) -> tuple[Array, Array]:
        """Return y (n, d_v) and the window's queries (n, d_key)."""
        x = self._whitened(state.parameters, queries)
        return cut(x) @ state.parameters["W"], self.unit(x[:, : self.config.d_key])

    @backends.quiet
    def read_each(self, states: Sequence[MemoryState], queries: Array) -> tuple[Array, Array]:
        """Return ``read_and_direct`` of sessions that ask one query each (R, d_k), to the bit as alone."""
        config = self.config
        x = self.xp.empty((len(states), states[0].parameters["W"].shape[0]), self.dtype)
        y = self.xp.empty((len(states), config.d_v), self.dtype)
        for row, state in enumerate(states):
            parameters = state.parameters
            self.xp.dot(queries[row] - parameters["origin"][0], parameters["P"], out=x[row])
        knowing = [row for row, state in enumerate(states) if self.is_whitened(state)]
        if len(knowing) < len(states):
            y[:] = 0  # W is zero until then
        if knowing:
            phi = cut(x)
            for row in knowing:
                self.xp.dot(phi[row], states[row].parameters["W"], out=y[row])
        if self.xp is not np:
            return y, self.unit(x[:, : config.d_key])
        return y, np.array([self._unit_of_one(one[: config.d_key]) for one in x])

    def read_one(self, state: MemoryState, query: Array) -> tuple[Array | None, Array]:
        """Return ``read_each`` of one session and its query (d_k,), on the host: y, None for zeros, and (d_key,)."""
        parameters, y = state.parameters, None
        x = (query - parameters["origin"][0]).dot(parameters["P"])
        if self.is_whitened(state):
            # what is far from being too long stays as it is; how its length is rounded decides about the rest
            phi = x if x.dot(x) < 0.99 * MOST_LENGTH**2 else cut(x[None])[0]
            y = phi.dot(parameters["W"])
        return y, self._unit_of_one(x[: self._d_key])

    def _unit_of_one(self, vector: Array) -> Array:
        """Return ``unit`` of one vector (d,) on the host: a product takes less time than sums of rows."""
        square = vector.dot(vector)
        if not LEAST_SQUARE < square < MOST_SQUARE:
            return self.unit(vector[None])[0]
        return vector * (1 / np.sqrt(square))

    def directions(self, state: MemoryState, queries: Array) -> Array:
        """Return states (n, d_k) as what the window's keys are compared with, (n, d_key)."""
        return self.unit(self._whitened(state.parameters, queries)[:, : self.config.d_key])

    @staticmethod
    def _whitened(parameters: Mapping[str, Array], states: Array) -> Array:
        return (states - parameters["origin"]) @ parameters["P"]

    # ---- learning

    @backends.quiet
    def step(
        self,
        state: MemoryState,
        hidden: Array,
        targets: Mapping[str, Array],
        *,
        gradient: Array | None = None,
        slopes: Array | None = None,
        bias: tuple[Array, Array] | None = None,
        eta: float = 0.0,
        donate: bool = False,
        later: Callable[[Callable[[], Found]], object] | None = None,
    ) -> MemoryState:
        """Take in one chunk, and learn from it if the states are whitened.

        Parameters
        ----------
        hidden
            (n, d_k), at most ``chunk_size`` states.
        targets
            ``token`` (n,) and ``lse`` (n,), which the window keeps.
        gradient
            (n, d_v): dl/dy of the answers, made even over their directions; None: nothing is learned.
        slopes
            (n, d_v): the same as it was before it was made even, of which some are kept; None: none are.
        bias
            Ascending tokens (k,) on the host, and what is added to their biases (k,).
        eta
            The step size.
        donate
            As for ``observe``: the arrays of the window may be written to; all others are new ones anyway.
        later
            Is given what finds the directions in which gradients vary, whenever a sample is full: some milliseconds
            that nothing needs before the next step, for which ``with_directions`` takes what it returns. None: they
            are in the new state already.

        Returns
        -------
        The new state, whitened when ``after`` tokens have come.
        """
        config, xp, n = self.config, self.xp, len(hidden)
        hidden = hidden.astype(self.dtype, copy=False)
        gradient = None if gradient is None else gradient.astype(self.dtype, copy=False)
        finite = xp.isfinite(hidden).all(axis=1)
        good = bool(finite.all())
        if not good:  # zeros of no weight, as elsewhere
            hidden = xp.where(finite[:, None], hidden, 0)
            gradient = None if gradient is None else xp.where(finite[:, None], gradient, 0)
        parameters = dict(state.parameters)
        x = self._whitened(parameters, hidden)
        seen = state.counters["seen"]
        valid = finite.astype(np.uint8)
        fields = {
            "key": ring.encode(self._kept(x, finite), config.stored_dtype),
            "token": targets["token"].astype(np.int32),
            "hidden": hidden,
            "lse": targets["lse"].astype(self.dtype),
            "valid": valid,
            "weight": finite.astype(self.dtype),
        }
        window = ring.append(
            {name: array[None] for name, array in state.window.items() if name not in RATES},
            {name: array[None] for name, array in fields.items()},
            seen.reshape(1),
            copy=not donate,
        )
        counters = {
            **state.counters,
            "seen": seen + n,
            "learned": state.counters["learned"] + n,
            "filled": np.minimum(state.counters["filled"] + n, self._capacity["key"]),
            "dropped": state.counters["dropped"] + (0 if good else n - int(finite.sum())),
        }
        if gradient is not None and self.is_whitened(state):
            if slopes is not None and "slopes" in parameters:
                taken = int(counters["steps"]) + int(counters["rejected"])
                slopes = slopes.astype(self.dtype, copy=False)
                slopes = xp.where((finite & xp.isfinite(slopes).all(axis=1))[:, None], slopes, 0)
                self._sample(parameters, slopes, taken, later)
            made = self._learn(parameters, cut(x), gradient, bias, eta)
            name = "steps" if made else "rejected"
            counters[name] = counters[name] + 1
        counters = {name: np.asarray(count) for name, count in counters.items()}
        new = dataclasses.replace(
            state,
            parameters=parameters,
            window={**state.window, **{name: array[0] for name, array in window.items()}},
            counters=counters,
        )
        if not self.is_whitened(state) and int(counters["filled"]) >= self.after:
            new = self._whiten(new)
        return new

    def _kept(self, x: Array, finite: Array) -> Array:
        """Return the keys of whitened states, those that are no numbers as zeros."""
        return self.unit(x[:, : self.config.d_key]) * finite[:, None]

    def _learn(
        self, parameters: dict[str, Array], phi: Array, gradient: Array, bias: tuple[Array, Array] | None,
        eta: float,
    ) -> bool:  # fmt: skip
        """Take a step, and say whether one was taken: not if it is no number or leads too far."""
        xp = self.xp
        step = (self.dtype.type(-eta) * phi).T @ gradient
        if self.config.use_muon:
            step = self.dtype.type(eta) * newton_schulz(step)
        W = xp.add(parameters["W"], step, out=step)
        squares = float(xp.vdot(W, W))
        if not squares <= self.config.max_norm**2:
            return False
        parameters["W"] = W
        if bias is not None and "bias" in parameters:
            ids, change = (xp.asarray(array) for array in bias)
            biases = parameters["bias"].copy()  # an array that somebody else may hold, however many steps ago
            biases[0, ids] += change.astype(self.dtype)
            parameters["bias"] = biases
        return True

    def _sample(
        self,
        parameters: dict[str, Array],
        slopes: Array,
        taken: int,
        later: Callable[[Callable[[], Found]], object] | None,
    ) -> None:
        """Keep the gradients of a chunk behind ``taken`` others, if it is one of the sample, and use a full sample."""
        room = len(parameters["slopes"])
        place, full = sampled(taken, max(1, room // self.config.chunk_size))
        if place is not None:
            kept = parameters["slopes"].copy()  # somebody else may hold it, however many steps ago
            at = place * self.config.chunk_size
            kept[at : at + len(slopes)] = slopes[: max(0, room - at)]
            parameters["slopes"] = kept
        if full:
            sample, before = (backends.to_host(parameters[name]) for name in ("slopes", "directions"))
            find = functools.partial(varying, sample, before, float(parameters["rest"][0, 0]))
            if later is None:
                parameters.update(self._found(find()))
            else:
                later(find)

    def _found(self, found: Found) -> dict[str, Array]:
        directions, rest = found
        return {
            "directions": self.xp.asarray(directions, dtype=self.dtype),
            "rest": self.xp.full((1, 1), rest, self.dtype),
        }

    def with_directions(self, state: MemoryState, found: Found) -> MemoryState:
        """Return a state with the directions in which gradients vary, which were looked for beside its last step."""
        return dataclasses.replace(state, parameters={**state.parameters, **self._found(found)})

    def _whiten(self, state: MemoryState) -> MemoryState:
        """Return the state with P and origin made from the states that it keeps, and with the keys that follow."""
        config, xp = self.config, self.xp
        filled, seen = int(state.counters["filled"]), state.counters["seen"]
        lead = {name: state.window[name][None] for name in ("hidden", "valid")}
        kept = {name: array[0] for name, array in ring.latest(lead, filled, seen.reshape(1)).items()}
        known = backends.to_host(kept["valid"]) != 0
        states = backends.to_host(kept["hidden"]).astype(np.float64)
        origin, P = whitening(states[known], state.parameters["P"].shape[1])
        parameters = {
            **state.parameters,
            "origin": xp.asarray(origin[None], dtype=self.dtype),
            # in the order in which a file gives it back: products of another have other last bits
            "P": xp.ascontiguousarray(xp.asarray(P, dtype=self.dtype)),
        }
        x = self._whitened(parameters, kept["hidden"])
        keys = ring.encode(self._kept(x, xp.asarray(known)), config.stored_dtype)
        window = ring.append(
            {"key": state.window["key"][None]}, {"key": keys[None]}, (seen - filled).reshape(1)
        )
        counters = {**state.counters, "averaged": np.asarray(max(1, int(known.sum())))}
        return dataclasses.replace(
            state, parameters=parameters, window={**state.window, "key": window["key"][0]}, counters=counters
        )

    # ---- what it cannot

    def observe(self, *_: Any, **__: Any) -> NoReturn:
        """Raise ``InvalidParamError``: ``step`` learns."""
        raise InvalidParamError("a whitened memory learns by step()", key="module")

    flush = scan = observe

    def reset(self, state: MemoryState, kind: str = "hard") -> MemoryState:
        """Return ``state`` emptied as ``Memory.reset`` does; ``soft`` keeps the whitening: the keys need it."""
        new = super().reset(state, kind)
        if kind == "hard":
            return new
        kept = {name: state.parameters[name] for name in ("P", "origin")}
        return dataclasses.replace(new, parameters={**new.parameters, **kept})


def sampled(taken: int, room: int) -> tuple[int | None, bool]:
    """Return where the chunk behind ``taken`` others goes in a sample of ``room`` chunks, and whether it fills that.

    All of the first ``room`` chunks are sampled, of as many behind them all as well, then every second of twice as
    many, every fourth of four times as many, and so on; a full sample is written over.

    >>> [sampled(taken, 2) for taken in range(8)]
    [(0, False), (1, True), (0, False), (1, True), (0, False), (None, False), (1, False), (None, True)]
    """
    if taken < room:
        return taken, taken + 1 == room
    apart = 1 << (taken // room).bit_length() - 1
    begun = room * apart
    place, between = divmod(taken - begun, apart)
    return None if between else place, taken + 1 == 2 * begun


def varying(sample: Array, directions: Array, rest: float) -> tuple[Array, float]:
    """Return in which directions gradients vary, from a sample of them and what was found from those before.

    Parameters
    ----------
    sample
        (n, d).
    directions, rest
        What this function returned for the samples before, which count as much as this one: (k, d), each as long as
        the root of the mean square in it, and the mean square in all directions beside them. 0: there were none.

    Examples
    --------
    >>> found, rest = varying(np.array([[3.0, 0, 0], [0, 1, 0], [-3, 0, 0], [0, -1, 0]]), np.zeros((1, 3)), 0.0)
    >>> np.square(found).round(6).tolist(), round(rest, 6)
    ([[4.5, 0.0, 0.0]], 0.25)
    """
    k, d = directions.shape
    gradients = sample.astype(np.float64)
    # one of an odd step must not be all that is seen: a gradient is a few rows' difference, and none is much longer
    length = np.sqrt(np.einsum("nd,nd->n", gradients, gradients))
    most = 4 * np.median(length) if len(length) else 0.0
    gradients *= np.where(length > most, most / np.where(length > 0, length, 1), 1)[:, None]
    gradients /= np.sqrt(max(1, len(gradients)))
    if directions.any():
        gradients = np.concatenate((gradients, directions.astype(np.float64))) / np.sqrt(2)
    beside = rest * (d - k) / 2
    n = len(gradients)
    if n < d:
        square, mixed = np.linalg.eigh(gradients @ gradients.T)
    else:
        square, mixed = np.linalg.eigh(gradients.T @ gradients)
    largest = np.arange(len(square) - 1, max(-1, len(square) - 1 - k), -1)
    square = np.maximum(square[largest], 0)
    found = np.zeros((k, d))
    if n < d:  # the products of the gradients have the same squares
        found[: len(largest)] = (gradients.T @ mixed[:, largest]).T
    else:
        found[: len(largest)] = (mixed[:, largest] * np.sqrt(square)).T
    left = max(0.0, float(np.square(gradients).sum() - square.sum())) + beside
    return found, left / max(1, d - k)


def whitening(states: Array, rank: int) -> tuple[Array, Array]:
    """Return origin (d,) and P (d, rank), float64, that whiten states (n, d) to a mean square length of 1.

    >>> origin, P = whitening(np.array([[0.0, 5], [4, 5]] * 8), 1)
    >>> origin.tolist(), (P / abs(P).max()).round(3).tolist()
    ([2.0, 5.0], [[1.0], [0.0]])
    """
    some = states[UNLIKE:] if len(states) > 2 * UNLIKE else states
    d = states.shape[1]
    if not len(some):
        return np.zeros(d), np.eye(d)[:, :rank]
    origin = some.mean(axis=0)
    x = some - origin
    ridge = RIDGE * float(np.square(x).sum()) / x.size
    if not ridge > 0:
        return origin, np.eye(d)[:, :rank]
    n = len(x)
    if n > d or n <= rank:
        variance, directions = np.linalg.eigh(x.T @ x / n)
        largest = np.arange(d - 1, d - 1 - rank, -1)
        variance, directions = np.maximum(variance[largest], 0), directions[:, largest]
    else:  # the states' products have the same variances, and are fewer: seconds, where states are wide
        variance, mixed = np.linalg.eigh(x @ x.T / n)
        largest = np.arange(n - 1, n - 1 - rank, -1)
        variance = np.maximum(variance[largest], 0)
        length = np.sqrt(n * variance)
        directions = x.T @ mixed[:, largest] / np.where(length > 0, length, np.inf)
    P = directions / np.sqrt(variance + ridge)
    # which of two opposite directions it is, is not the library's to say
    P *= np.where(P[np.abs(P).argmax(axis=0), np.arange(rank)] < 0, -1.0, 1.0)
    length = float(np.sqrt(np.square(x @ P).sum(axis=1).mean()))
    return origin, P / length if length > 0 else P
