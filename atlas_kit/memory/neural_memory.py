"""The memory: reads, and learns while it reads (OmegaNet, Atlas and their special cases).

``Memory`` joins a configuration with its fixed random constants and an array library. It holds no state: every method
takes a ``MemoryState`` and returns a new one. Tokens are observed as a stream; a token waits in the window
until its chunk is full, so that a state depends on its session's tokens alone, bit by bit: not on the split of the
stream, nor on the sessions beside it, nor on whether it was saved in between. What is read depends on the state and on
all queries of the call, but not on other sessions: among another number of queries, one may differ in its last bits.
(All this on one machine with one number of threads: BLAS may add in another order on another.)
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from atlas_kit.errors import DivergedError, InvalidParamError
from atlas_kit.memory import backend as backends
from atlas_kit.memory import window as ring
from atlas_kit.memory.backend import Array
from atlas_kit.memory.config import RATES, MemoryConfig, most_of
from atlas_kit.memory.gate import Gate
from atlas_kit.memory.learning import Diverged, Learner
from atlas_kit.memory.objectives import Readout
from atlas_kit.memory.schedules import rate_at
from atlas_kit.memory.sessions import (
    LearningReport,
    alike,
    chain,
    flattened,
    flattened_group,
    join,
    no_report,
    real_lengths,
    shaped,
    shaped_report,
)
from atlas_kit.memory.state import COUNTERS, MemoryState, restore

_ENDLESS = 1 << 62  # tokens; a counter beyond it could overflow


class Memory:
    """A test-time memory: configuration, constants and array library; states go in and come out.

    Parameters
    ----------
    config
        What the memory is.
    backend
        ``"numpy"`` or ``"cupy"``; by default what ``ATLAS_KIT_BACKEND`` says, else NumPy.

    Examples
    --------
    The Delta rule by hand: key (1, 0), value (2, 4), eta 1/2. The empty memory reads (0, 0), its error is
    (-2, -4), so the first row of W becomes 1/2 (2, 4):

    >>> import numpy as np
    >>> from atlas_kit.memory import presets
    >>> memory = Memory(presets.delta_rule(2, 2, eta=0.5))
    >>> state = memory.init()
    >>> k, v = np.array([[1.0, 0.0]]), np.array([[2.0, 4.0]])
    >>> state, report = memory.observe(state, k, v)
    >>> state.parameters["W"].tolist()
    [[1.0, 2.0], [0.0, 0.0]]
    >>> report.loss.tolist()  # 1/2 (2^2 + 4^2)
    [10.0]
    >>> state, report = memory.observe(state, k, v)
    >>> report.loss.tolist()  # half of the error, a quarter of the loss
    [2.5]
    >>> memory.read(state, k).tolist()
    [[1.5, 3.0]]
    """

    def __init__(self, config: MemoryConfig, backend: str | None = None) -> None:
        if not isinstance(config, MemoryConfig):
            raise InvalidParamError(
                f"{type(config).__name__} is not a MemoryConfig",
                key="config",
                hint="Try presets.atlas(d_k, d_v).",
            )
        self.config = config
        self.xp: Any = backends.choose(backend)
        self.dtype: Any = np.dtype(config.dtype)
        self._learner = Learner(config, self.xp)
        # a target's fields, and how long the window keeps each: what the exact cache needs, and what learning needs
        self._fields = self._learner.fields
        long = max(config.window_size, config.recall)
        self._capacity = {
            name: long if name in ("value", "token") else config.recall for name in self._fields
        }
        self._capacity |= dict.fromkeys(("key", "valid"), long)
        self._capacity |= dict.fromkeys(("weight", *RATES), config.recall)

    def __repr__(self) -> str:
        return f"Memory({self.config!r}, {self.xp.__name__!r})"

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle and copy as what it is made of; the constants are drawn again."""
        return Memory, (self.config, self.xp.__name__)

    # ---- states

    def init(self, batch: tuple[int, ...] | int = ()) -> MemoryState:
        """Return an empty state with the leading axes ``batch``: for 50 sessions of 4 layers, (50, 4)."""
        config, xp = self.config, self.xp
        axes = np.atleast_1d(np.asarray(batch))
        axes = axes if axes.size else axes.astype(np.int64)
        if axes.ndim != 1 or axes.dtype.kind not in "iu" or (axes < 0).any():
            raise InvalidParamError(
                f"{batch!r} are not leading axes",
                key="batch",
                hint="Give whole numbers such as 50 or (50, 4).",
            )
        batch = tuple(axes.tolist())
        start = config.module.init(config.d_phi, config.d_v, config.seed)
        parameters = {name: xp.array(array, dtype=self.dtype) for name, array in start.items()}
        if batch:
            parameters = {
                name: xp.broadcast_to(array, batch + array.shape).copy() for name, array in parameters.items()
            }
        return self._filled(batch, parameters, xp.zeros)

    def _like(self) -> MemoryState:
        """Return what looks like an empty state, with a single number behind each array: to compare with, only."""
        config, xp = self.config, self.xp

        def nothing(shape: tuple[int, ...], dtype: Any) -> Array:
            return xp.broadcast_to(xp.zeros((), dtype), shape)

        shapes = config.module.shapes(config.d_phi, config.d_v)
        return self._filled(
            (), {name: nothing(shape, self.dtype) for name, shape in shapes.items()}, nothing, copy=False
        )

    def _filled(
        self, batch: tuple[int, ...], parameters: dict[str, Array], zeros: Callable[..., Array], *,
        copy: bool = True,
    ) -> MemoryState:  # fmt: skip
        """Return a state with these parameters that has seen nothing."""
        config, xp = self.config, self.xp
        momentum = {n: zeros(a.shape, a.dtype) for n, a in parameters.items()} if config.has_momentum else {}
        window = {"key": zeros((*batch, self._capacity["key"], config.d_key), self._stored)}
        for name, (shape, kind) in self._fields.items():
            dtype = np.dtype(np.int32) if kind == "int" else self._stored if name == "value" else self.dtype
            window[name] = zeros((*batch, self._capacity[name], *shape), dtype)
        window["valid"] = zeros((*batch, self._capacity["valid"]), np.uint8)
        for name in ("weight", *RATES):
            window[name] = zeros((*batch, self._capacity[name]), self.dtype)
        adaptation = {}
        if config.eta_adaptation:
            adaptation["log_eta"] = zeros(batch, self.dtype)
            adaptation |= {
                f"previous.{name}": array.copy() if copy else array for name, array in parameters.items()
            }
        if config.features.centre:
            adaptation["mean"] = zeros((*batch, config.d_key), self.dtype)
        counters = {name: np.zeros(batch, np.int64) for name in COUNTERS}
        gate = {}
        if config.gate is not None:
            w = config.gate.init(int(np.prod(batch)), xp, config.dtype)["w"]
            gate["w"] = w.reshape((*batch, *w.shape[1:]))
        if config.ranking is not None:
            start = xp.asarray(config.ranking.start, self.dtype)
            gate["rank"] = xp.broadcast_to(start, (*batch, len(config.ranking.start))).copy()
            if config.ranking.metric:
                one = xp.eye(config.d_key, dtype=self.dtype)
                gate["metric"] = xp.broadcast_to(one, (*batch, *one.shape)).copy()
        return MemoryState(parameters, momentum, window, adaptation, gate, counters)

    @backends.quiet
    def restore(self, arrays: Mapping[str, Array]) -> MemoryState:
        """Return the state that ``snapshot`` took; going on from it is bit-identical to never having stopped.

        Raises
        ------
        InvalidParamError
            For arrays that do not fit the configuration, impossible counters, and parameters that are not finite.
        """
        state = restore(self._like(), arrays)
        count = state.counters
        waiting = count["seen"] - count["learned"]
        if (
            any(((value < 0) | (value >= _ENDLESS)).any() for value in count.values())
            or (waiting < 0).any()
            or (waiting >= self.config.chunk_size).any()
            or (count["filled"] > count["seen"]).any()
            or (count["filled"] < waiting).any()
        ):
            raise InvalidParamError("the counters contradict each other", key="counters")
        for array in state.window.values():  # copies; slots that hold no token must not be learned
            slots = array.shape[len(state.batch)]
            age = (count["seen"][..., None] - 1 - np.arange(slots)) % slots
            array[self.xp.asarray(age >= count["filled"][..., None])] = 0
        for group in ("parameters", "momentum", "window", "adaptation", "gate"):
            for name, array in getattr(state, group).items():
                stored = group == "window" and name in ("key", "value")
                if not bool(self.xp.isfinite(self._learner.decode(array) if stored else array).all()):
                    raise InvalidParamError(f"{group}.{name} holds NaN or infinity", key=f"{group}.{name}")
        return state

    def reset(self, state: MemoryState, kind: str = "hard") -> MemoryState:
        """Return ``state`` emptied: ``soft`` forgets the parameters only, ``hard`` everything.

        A soft reset keeps optimiser, window and counters.
        """
        if kind not in ("soft", "hard"):
            raise InvalidParamError(
                f"{kind!r} is not a kind of reset", key="kind", hint="Choose soft or hard."
            )
        empty = self.init(state.batch)
        if kind == "hard":
            return empty
        previous = {n: a for n, a in empty.adaptation.items() if n.startswith("previous.")}
        return dataclasses.replace(
            state, parameters=empty.parameters, adaptation={**state.adaptation, **previous}
        )

    def turned(
        self, state: MemoryState, states: Array, drawn: Array, responsibility: Array
    ) -> dict[str, Array]:
        """Return what of ``state.gate`` is new where a metric is learned (see ``Ranking.turned``): here, none is."""
        return {}

    # ---- reading

    @backends.quiet
    def read(self, state: MemoryState, queries: Array) -> Array:
        """Return y = M(phi(q)): queries (*batch, n, d_k), result (*batch, n, d_v)."""
        batch = state.batch
        q = self._rows(queries, batch, "queries")
        y = self._answers(state, self.config.features.project(q, self._learner.constants))
        return y.reshape((*batch, *y.shape[1:]))

    @backends.quiet
    def read_and_direct(self, state: MemoryState, queries: Array) -> tuple[Array, Array]:
        """Return ``read`` and ``directions`` of the same queries (n, d_k), which are projected once."""
        projected = self.config.features.project(self._rows(queries, (), "queries"), self._learner.constants)
        return self._answers(state, projected)[0], self._directions(state, projected)

    @backends.quiet
    def read_each(self, states: Sequence[MemoryState], queries: Array) -> tuple[Array, Array]:
        """Return ``read_and_direct`` of sessions that ask one query each (R, d_k): (R, d_v), and (R, d_key).

        To the bit what each gets alone; the features of all are made together.
        """
        config, constants = self.config, self._learner.constants
        rows = self._rows(queries[:, None], (len(states),), "queries")
        projected = config.features.project(rows, constants)
        means = [state.adaptation["mean"] for state in states if "mean" in state.adaptation]
        mean = self.xp.stack(means) if means else None
        phi = config.features.phi(projected, constants, mean)
        answers = self.xp.empty((len(states), config.d_v), self.dtype)
        for row, state in enumerate(states):
            parameters = flattened_group(state.parameters, ())
            answers[row] = config.module.forward(parameters, phi[row : row + 1])[0][0, 0]
        query = projected[:, 0]
        return answers, self.unit(query if mean is None else query - mean)

    def _answers(self, state: MemoryState, projected: Array) -> Array:
        """Read for projected queries (R, n, d_key): (R, n, d_v)."""
        batch = state.batch
        mean = flattened_group({n: state.adaptation[n] for n in ("mean",) if n in state.adaptation}, batch)
        phi = self.config.features.phi(projected, self._learner.constants, mean.get("mean"))
        y: Array = self.config.module.forward(flattened_group(state.parameters, batch), phi)[0]
        return y

    @backends.quiet
    def lookup(self, state: MemoryState, queries: Array, sharpness: float = 30.0) -> ring.CacheRead:
        """Read the window as an exact cache: softmax of ``sharpness`` times the cosine of query and key.

        queries: (*batch, n, d_k). Tokens that wait for their chunk are in the window already; those that were left out
        because they are not finite are not. The result knows what the slots hold: ``.values()`` for values,
        ``.distribution(vocabulary)`` and ``.probability(tokens)`` for tokens, all with the axes ``batch`` in front.

        >>> import numpy as np
        >>> memory = Memory(MemoryConfig(2, 1, window_size=4))
        >>> state, _ = memory.observe(memory.init(), np.eye(2), np.array([[5.0], [7.0]]))
        >>> memory.lookup(state, np.array([[0.0, 3.0]]), sharpness=50.0).values().tolist()
        [[7.0]]
        """
        batch, flat, config = state.batch, flattened(state), self.config
        if not config.window_size:
            raise InvalidParamError(
                "this memory keeps no window", key="window_size", hint="Try window_size=1024."
            )
        q = self._rows(queries, batch, "queries")
        query = config.features.project(q, self._learner.constants)
        keys = self._learner.decode(flat.window["key"])
        if "mean" in flat.adaptation:  # lengths make no difference to a cosine, the origin does
            mean = flat.adaptation["mean"][:, None, :]
            query, keys = query - mean, keys - mean
        slots = np.arange(self._capacity["key"])
        age = (flat.counters["seen"][:, None] - 1 - slots) % self._capacity["key"]
        recent = age < np.minimum(flat.counters["filled"], config.window_size)[:, None]
        valid = self.xp.asarray(recent) & (flat.window["valid"] != 0)
        found = ring.lookup(query, keys, valid, sharpness)
        content = (
            flat.window["token"] if "token" in flat.window else self._learner.decode(flat.window["value"])
        )
        arrays = (found.weights, found.similarity, content)
        return ring.CacheRead(*(array.reshape((*batch, *array.shape[1:])) for array in arrays))

    @backends.quiet
    def remembered(self, state: MemoryState, newest: int | None = None) -> tuple[Array, Array]:
        """Return what the window of one session holds, oldest first: unit keys (slots, d_key), tokens (slots,).

        Slots that hold no usable token have a key of zeros. ``newest``: only the last so many.
        """
        if state.batch:
            raise InvalidParamError(
                "this is the window of several sessions, and one was asked for",
                key="state",
                hint="Try state[0].",
            )
        flat, config = flattened(state), self.config
        count = min(int(flat.counters["filled"][0]), config.window_size)
        count = count if newest is None else min(count, newest)
        kept = ring.latest(flat.window, count, flat.counters["seen"], ("key", "token", "valid"))
        keys = self._learner.decode(kept["key"])[0]
        if "mean" in flat.adaptation:
            keys = keys - flat.adaptation["mean"]
        return self.unit(keys) * (kept["valid"][0] != 0)[:, None], kept["token"][0]

    @backends.quiet
    def directions(self, state: MemoryState, queries: Array) -> Array:
        """Return queries (n, d_k) as what ``remembered`` keys are compared with: unit vectors (n, d_key)."""
        rows = self._rows(queries, (), "queries")
        return self._directions(state, self.config.features.project(rows, self._learner.constants))

    def _directions(self, state: MemoryState, projected: Array) -> Array:
        query = projected[0]
        if "mean" in state.adaptation:
            query = query - state.adaptation["mean"][None]
        return self.unit(query)

    @staticmethod
    def unit(vectors: Array) -> Array:
        """Return vectors (n, d) of length 1; those of no or no finite length become zeros."""
        scale, known = ring.inverse_length(vectors)
        if type(vectors) is np.ndarray and known.all():
            return vectors * scale[:, None]
        return backends.namespace(vectors).where(known[:, None], vectors * scale[:, None], 0)

    # ---- blending

    @backends.quiet
    def blend(self, state: MemoryState, features: Array, predictions: Array) -> Array:
        """Return the gate's mixture of what several experts predict, such as model, memory and window.

        features: (*batch, n, gate.features), see ``gate_features``; predictions: (*batch, n, experts, ...).
        """
        gate, rows = self._gate(state)
        f, p = (array.reshape((-1, *array.shape[len(state.batch) :])) for array in (features, predictions))
        mixed = gate.blend(rows, f, p)
        return mixed.reshape((*state.batch, *mixed.shape[1:]))

    @backends.quiet
    def learn_blend(
        self, state: MemoryState, features: Array, probabilities: Array, mask: Array | None = None
    ) -> tuple[MemoryState, Array]:
        """Take one step of the gate towards the experts that were right; returns the state and the loss (*batch, n).

        probabilities: (*batch, n, experts), what each expert gave to the token that came. ``mask`` (*batch, n): which
        tokens count.
        """
        gate, rows = self._gate(state)
        given = [features, probabilities] if mask is None else [features, probabilities, mask]
        new, loss = gate.update(
            rows, *(array.reshape((-1, *array.shape[len(state.batch) :])) for array in given)
        )
        w = {**state.gate, "w": new["w"].reshape(state.gate["w"].shape)}
        return dataclasses.replace(state, gate=w), loss.reshape((*state.batch, loss.shape[-1]))

    def _gate(self, state: MemoryState) -> tuple[Gate, dict[str, Array]]:
        if self.config.gate is None:
            raise InvalidParamError("this memory has no gate", key="gate", hint="Configure gate=Gate().")
        return self.config.gate, flattened_group(state.gate, state.batch)

    # ---- learning

    @backends.quiet
    def observe(
        self,
        state: MemoryState,
        keys: Array,
        targets: Array | Mapping[str, Array],
        *,
        readout: Any = None,
        weights: Array | None = None,
        alpha: Array | None = None,
        theta: Array | None = None,
        eta: Array | None = None,
        lengths: Array | None = None,
        donate: bool = False,
    ) -> tuple[MemoryState, LearningReport]:
        """Take in T tokens, and learn from every chunk that they complete.

        Parameters
        ----------
        keys
            (*batch, T, d_k).
        targets
            Values (*batch, T, d_v), or the objective's fields by name: for ``CrossEntropy`` ``token`` (*batch, T),
            ``hidden`` (*batch, T, d_v) and ``lse`` (*batch, T).
        readout
            For ``CrossEntropy``: the rows of the read-out matrix, or an object with ``evaluate``.
        weights
            (*batch, T), multiplies gamma of each token; 0 leaves a token out of every gradient.
        alpha, theta, eta
            (*batch, T): the rates of these tokens instead of the configuration's.
        lengths
            (*batch): how many of the T tokens are real, for sessions that advance unevenly. The rest is ignored.
        donate
            The arrays of ``state`` may become those of the new state, also when an error is raised: do not use it
            again, nor a state that shares arrays with it (by ``flush``, ``reset`` or selection). Saves a copy of the
            parameters and the window; the results are the same, bit by bit.

        Returns
        -------
        The new state, and what was learned. ``state`` itself is unchanged unless it was donated.

        Raises
        ------
        DivergedError
            In strict mode, when a chunk gives NaN, infinity or an exploding norm; it names session and token.
        InvalidParamError
            For shapes that do not fit.
        """
        rates = {"alpha": alpha, "theta": theta, "eta": eta}
        tokens, length = self._tokens(state, keys, targets, weights, rates, lengths)
        flat = flattened(state)
        R = len(flat.counters["seen"])
        waiting = flat.counters["seen"] - flat.counters["learned"]
        if alike(length) and alike(waiting):
            n = int(length[0]) if R else 0
            if not donate:
                flat = self._own(flat, parameters=bool((waiting + n >= self.config.chunk_size).any()))
            with _told(state.batch):
                new, report = self._observe(flat, tokens, n, readout)
            return shaped(new, state.batch), shaped_report(report, state.batch)
        parts = []
        for n, phase in np.unique(np.stack([length, waiting]), axis=1).T:
            rows = np.flatnonzero((length == n) & (waiting == phase))
            part = {name: array[rows] for name, array in tokens.items()}
            with _told(state.batch, rows):
                parts.append((rows, *self._observe(flat[rows], part, int(n), readout)))
        new, report = join(self.xp, R, parts)
        return shaped(new, state.batch), shaped_report(report, state.batch)

    @backends.quiet
    def flush(self, state: MemoryState, *, readout: Any = None) -> tuple[MemoryState, LearningReport]:
        """Learn the tokens that still wait for their chunk to fill, as one shorter chunk."""
        flat = flattened(state)
        waiting = flat.counters["seen"] - flat.counters["learned"]
        parts = []
        for n in np.unique(waiting) if len(waiting) else (0,):
            rows = np.flatnonzero(waiting == n)
            part = flat if len(rows) == len(waiting) else flat[rows]
            report = no_report(self.xp, len(rows), self.dtype)
            if n:
                with _told(state.batch, rows):
                    part, report, _ = self._learner.chunk(part, int(n), readout)
            parts.append((rows, part, report))
        new, report = parts[0][1:] if len(parts) == 1 else join(self.xp, len(waiting), parts)
        return shaped(new, state.batch), shaped_report(report, state.batch)

    @backends.quiet
    def scan(
        self,
        state: MemoryState,
        keys: Array,
        targets: Array | Mapping[str, Array],
        queries: Array,
        *,
        readout: Any = None,
        weights: Array | None = None,
        alpha: Array | None = None,
        theta: Array | None = None,
        eta: Array | None = None,
    ) -> tuple[MemoryState, Array, LearningReport]:
        """Learn a sequence and read after every token: y_t = M_t(phi(q_t)), the paper's layer.

        queries: (*batch, T, d_k); y: (*batch, T, d_v). All sessions have T tokens; a last chunk that is not full is
        learned too. With ``step="chunk"`` all tokens of a chunk are read before its step. A matrix memory without
        Muon is read without building M_t; the others keep one copy of their parameters per token of a chunk.
        """
        rates = {"alpha": alpha, "theta": theta, "eta": eta}
        tokens, _ = self._tokens(state, keys, targets, weights, rates)
        T = tokens["key"].shape[1]
        flat = self._own(flattened(state), parameters=False)
        q = self._rows(queries, state.batch, "queries")
        if q.shape[1] != T:
            raise InvalidParamError(f"there are {q.shape[1]} queries for {T} tokens", key="queries")
        if (flat.counters["seen"] != flat.counters["learned"]).any():
            raise InvalidParamError(
                "tokens of an earlier call wait for their chunk", key="state", hint="Call flush first."
            )
        reports = [no_report(self.xp, len(q), self.dtype)]
        reads = [self.xp.zeros((len(q), 0, self.config.d_v), self.dtype)]
        for start in range(0, T, self.config.chunk_size):
            stop = min(start + self.config.chunk_size, T)
            flat = self._append(flat, {name: array[:, start:stop] for name, array in tokens.items()})
            with _told(state.batch):
                flat, report, y = self._learner.chunk(flat, stop - start, readout, q[:, start:stop])
            reports.append(report)
            reads.append(y)
        y = self.xp.concatenate(reads, axis=1)
        report = chain(self.xp, reports)
        return (
            shaped(flat, state.batch),
            y.reshape((*state.batch, T, self.config.d_v)),
            shaped_report(report, state.batch),
        )

    # ---- one session or many in step, leading axes flattened to R

    def _own(self, flat: MemoryState, parameters: bool = True) -> MemoryState:
        """Return a state whose window, and parameters and momentum where learning reuses them, may be written to."""
        groups = ("window", "parameters", "momentum")
        copied = groups if parameters and self._learner.reuses(flat) else groups[:1]
        return dataclasses.replace(
            flat, **{group: {n: a.copy() for n, a in getattr(flat, group).items()} for group in copied}
        )

    def _observe(
        self, flat: MemoryState, tokens: dict[str, Array], length: int, readout: Any
    ) -> tuple[MemoryState, LearningReport]:
        """Observe for rows that share length and phase; the arrays of ``flat`` are ours (see ``_own``)."""
        if isinstance(readout, Readout) and readout.ids is None and length:
            # an unknown token that is found only when its chunk is full would stay in the window
            readout.find(tokens["token"][:, :length])
        reports = []
        start = 0
        while start < length:
            waiting = int((flat.counters["seen"] - flat.counters["learned"])[0])
            stop = min(length, start + self.config.chunk_size - waiting)
            flat = self._append(flat, {name: array[:, start:stop] for name, array in tokens.items()})
            waiting += stop - start
            if waiting == self.config.chunk_size:
                flat, report, _ = self._learner.chunk(flat, waiting, readout, reuse=True)
                reports.append(report)
            start = stop
        if not reports:
            return flat, no_report(self.xp, len(flat.counters["seen"]), self.dtype)
        return flat, chain(self.xp, reports)

    def _append(self, flat: MemoryState, tokens: dict[str, Array]) -> MemoryState:
        """Write tokens into the window's own arrays; what is not finite is written as zeros of weight 0."""
        xp, config = self.xp, self.config
        seen, n = flat.counters["seen"], tokens["key"].shape[1]
        fields, finite = dict(tokens), xp.ones(tokens["key"].shape[:2], dtype=bool)
        data = [name for name in tokens if name not in RATES and tokens[name].dtype.kind == "f"]
        stored = [name for name in tokens if name in ("key", "value")]
        for name in stored:
            fields[name] = ring.encode(tokens[name], config.stored_dtype)
        for name in data:
            # what becomes infinite in a narrow window would be learned as such
            kept = self._learner.decode(fields[name]) if name in stored else fields[name]
            finite &= xp.isfinite(kept).all(axis=tuple(range(2, kept.ndim)))
        bad = backends.to_host(~finite).sum(axis=1)
        if bad.any():
            for name in data:  # the bits of 0 are 0 in every type of the window
                spread = finite.reshape(*finite.shape, *(1,) * (fields[name].ndim - 2))
                fields[name] = xp.where(spread, fields[name], xp.zeros((), fields[name].dtype))
        number = seen[:, None] + np.arange(n)
        fields["valid"] = finite.astype(np.uint8)
        if "weight" not in fields:
            fields["weight"] = finite.astype(self.dtype)
        for name in RATES:
            if name not in fields:
                fields[name] = xp.asarray(rate_at(getattr(config, name), number, self.dtype))
        adaptation, averaged = flat.adaptation, flat.counters["averaged"]
        if config.features.centre and (seen < config.warmup_tokens).any():
            counts = finite & xp.asarray(number < config.warmup_tokens)
            counted, mean = backends.to_host(counts), adaptation["mean"]
            for t in np.flatnonzero(counted.any(axis=0)):  # one by one: no split of the stream changes a bit
                averaged = averaged + counted[:, t]
                share = xp.asarray(counted[:, t] / np.maximum(averaged, 1), dtype=self.dtype)[:, None]
                mean = mean + share * xp.where(counts[:, t, None], tokens["key"][:, t] - mean, 0)
            adaptation = {**adaptation, "mean": mean}
        counters = {
            **flat.counters,
            "seen": seen + n,
            "filled": np.minimum(flat.counters["filled"] + n, self._capacity["key"]),
            "averaged": averaged,
            "dropped": flat.counters["dropped"] + bad,
        }
        return dataclasses.replace(
            flat,
            window=ring.append(flat.window, fields, seen, copy=False),
            adaptation=adaptation,
            counters=counters,
        )

    # ---- arrays

    @property
    def _stored(self) -> Any:
        """Dtype of stored keys and values; bfloat16 is kept as its bits."""
        return np.dtype(ring.STORAGE[self.config.stored_dtype])

    def _rows(self, array: Array, batch: tuple[int, ...], key: str) -> Array:
        """Check (*batch, n, d_k) and flatten the leading axes."""
        array = backends.as_numbers(self.xp, array, self.dtype, key)
        if array.ndim != len(batch) + 2 or array.shape[:-2] != batch or array.shape[-1] != self.config.d_k:
            wanted = ", ".join(map(str, (*batch, "n", self.config.d_k)))
            raise InvalidParamError(
                f"{key} have the shape {array.shape}, and ({wanted}) was expected", key=key
            )
        return array.reshape((int(np.prod(batch)), *array.shape[-2:]))

    def _tokens(
        self,
        state: MemoryState,
        keys: Array,
        targets: Array | Mapping[str, Array],
        weights: Array | None,
        rates: dict[str, Array | None],
        lengths: Array | None = None,
    ) -> tuple[dict[str, Array], np.ndarray[Any, Any]]:
        """Check all that describes T tokens; return the window's fields (R, T, ...), and how many are real (R,)."""
        xp, batch = self.xp, state.batch
        k = self._rows(keys, batch, "keys")
        R, T = k.shape[:2]
        if not isinstance(targets, Mapping):
            if set(self._fields) != {"value"}:
                raise InvalidParamError(
                    f"targets must be a mapping with {', '.join(self._fields)}", key="targets"
                )
            targets = {"value": targets}
        if set(targets) != set(self._fields):
            found = ", ".join(sorted(map(str, targets)))
            raise InvalidParamError(
                f"targets have {found}, and the objective takes {', '.join(self._fields)}",
                key="targets",
            )
        tokens = {"key": self.config.features.project(k, self._learner.constants)}
        extra = {"weight": weights, **rates}
        for name, value in {**targets, **{n: a for n, a in extra.items() if a is not None}}.items():
            shape, kind = self._fields.get(name, ((), "float"))
            array = backends.as_numbers(xp, value, np.int32 if kind == "int" else self.dtype, name)
            if array.shape != (*batch, T, *shape):
                raise InvalidParamError(
                    f"{name} has the shape {array.shape}, and {(*batch, T, *shape)} was expected", key=name
                )
            tokens[name] = array.reshape(R, T, *shape)
        if rates["theta"] is not None and not self.config.has_momentum:
            raise InvalidParamError(
                "theta is given per token, and the memory keeps no momentum",
                key="theta",
                hint="Configure theta as a Schedule or a number above 0.",
            )
        length = real_lengths(lengths, batch, T)
        for name in RATES:
            if name in tokens:
                given = backends.to_host(tokens[name])[np.arange(T) < length[:, None]]
                if not ((given >= 0) & (given <= most_of(name))).all():
                    raise InvalidParamError(
                        f"{name} must be from 0 to {most_of(name):g} everywhere", key=name
                    )
        return tokens, length


@contextlib.contextmanager
def _told(batch: tuple[int, ...], rows: np.ndarray[Any, Any] | None = None) -> Iterator[None]:
    """Turn a row that diverged into an error that names its session; ``rows`` are the rows that were learned."""
    try:
        yield
    except Diverged as diverged:
        row = diverged.row if rows is None else int(rows[diverged.row])
        index = tuple(map(int, np.unravel_index(row, batch))) if batch else ()
        who = f" of session {', '.join(map(str, index))}" if index else ""
        raise DivergedError(
            f"the chunk{who} that ends at token {diverged.token} diverged",
            key="eta",
            hint="Lower eta, or raise max_norm.",
        ) from None
