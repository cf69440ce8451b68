"""The memory: reads, and learns while it reads (OmegaNet, Atlas and their special cases).

``Memory`` joins a configuration with its fixed random constants and an array library. It holds no state: every method
takes a ``MemoryState`` and returns a new one. Tokens are observed as a stream; a token waits in the window
until its chunk is full, so that any split of the stream gives the same state, bit by bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from atlas_kit.errors import DivergedError, InvalidParamError
from atlas_kit.memory import backend as backends
from atlas_kit.memory import window as ring
from atlas_kit.memory.backend import Array
from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.modules import Matrix
from atlas_kit.memory.schedules import rate_at
from atlas_kit.memory.state import COUNTERS, MemoryState, restore
from atlas_kit.memory.update import Recurrence, final, matrix_reads, trajectory, window_weights

RATES = ("alpha", "theta", "eta")
_SMALLER = 0.25  # a diverged step is retried at this fraction of its size
_WORSE = 1.1  # a guarded step may raise the loss of its window by this factor,
_NOISE = 1e-3  # or, where the loss is next to nothing, to this share of an empty memory's


@dataclasses.dataclass(frozen=True)
class Report:
    """What happened to the tokens that one call learned.

    Attributes
    ----------
    loss
        Inner loss of each token before it was learned, (*batch, L); NaN pads sessions that learned fewer.
    surprise
        Norm of each token's gradient with respect to the parameters, (*batch, L).
    omega_loss
        The last step's weighted sum of losses over its window (equation 9), (*batch); NaN where none was made.
    """

    loss: Array
    surprise: Array
    omega_loss: Array

    @property
    def learned(self) -> int:
        """How many tokens were learned, at most, in a session."""
        return int(self.loss.shape[-1])


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
        self.config = config
        self.xp: Any = backends.choose(backend)
        self.dtype: Any = np.dtype(config.dtype)
        self._constants = {
            name: self.xp.asarray(array, dtype=self.dtype)
            for name, array in config.features.constants(config.d_k, config.seed).items()
        }
        # a target's fields, and how long the window keeps each: what the exact cache needs, and what learning needs
        self._fields = config.objective.fields(config.d_v)
        long = max(config.window_size, config.recall)
        self._capacity = {
            name: long if name in ("value", "token") else config.recall for name in self._fields
        }
        self._capacity["key"] = long
        self._capacity |= dict.fromkeys(("weight", *RATES), config.recall)

    # ---- states

    def init(self, batch: tuple[int, ...] | int = ()) -> MemoryState:
        """Return an empty state with the leading axes ``batch``: for 50 sessions of 4 layers, (50, 4)."""
        config, xp = self.config, self.xp
        batch = (batch,) if isinstance(batch, int) else tuple(batch)
        start = config.module.init(config.d_phi, config.d_v, config.seed)
        parameters = {
            name: xp.broadcast_to(xp.asarray(array, dtype=self.dtype), batch + array.shape).copy()
            for name, array in start.items()
        }
        momentum = {n: xp.zeros_like(a) for n, a in parameters.items()} if config.has_momentum else {}
        window = {"key": xp.zeros((*batch, self._capacity["key"], config.d_key), self._stored)}
        for name, (shape, kind) in self._fields.items():
            dtype = np.dtype(np.int32) if kind == "int" else self._stored if name == "value" else self.dtype
            window[name] = xp.zeros((*batch, self._capacity[name], *shape), dtype)
        for name in ("weight", *RATES):
            window[name] = xp.zeros((*batch, self._capacity[name]), self.dtype)
        adaptation = {}
        if config.eta_adaptation:
            adaptation["log_eta"] = xp.zeros(batch, self.dtype)
            adaptation |= {f"previous.{name}": array.copy() for name, array in parameters.items()}
        if config.features.centre:
            adaptation["mean"] = xp.zeros((*batch, config.d_key), self.dtype)
        counters = {name: np.zeros(batch, np.int64) for name in COUNTERS}
        return MemoryState(parameters, momentum, window, adaptation, counters)

    def restore(self, arrays: Mapping[str, Array]) -> MemoryState:
        """Return the state that ``snapshot`` took; going on from it is bit-identical to never having stopped.

        Raises
        ------
        InvalidParamError
            For arrays that do not fit the configuration, impossible counters, and parameters that are not finite.
        """
        state = restore(self.init(), arrays)
        count = state.counters
        waiting = count["seen"] - count["learned"]
        if (
            any((value < 0).any() for value in count.values())
            or (waiting < 0).any()
            or (waiting >= self.config.chunk_size).any()
            or (count["filled"] > count["seen"]).any()
            or (count["filled"] < waiting).any()
        ):
            raise InvalidParamError("the counters contradict each other", key="counters")
        for group in ("parameters", "momentum", "adaptation"):
            for name, array in getattr(state, group).items():
                if not bool(self.xp.isfinite(array).all()):
                    raise InvalidParamError(f"{group}.{name} holds NaN or infinity", key=f"{group}.{name}")
        return state

    def reset(self, state: MemoryState, kind: str = "hard") -> MemoryState:
        """Return ``state`` emptied: ``soft`` forgets the parameters only, ``hard`` everything.

        A soft reset keeps optimiser, window and counters.
        """
        if kind not in ("soft", "hard"):
            raise InvalidParamError(f"{kind!r} is no kind of reset", key="kind", hint="Choose soft or hard.")
        empty = self.init(state.batch)
        if kind == "hard":
            return empty
        previous = {n: a for n, a in empty.adaptation.items() if n.startswith("previous.")}
        return dataclasses.replace(
            state, parameters=empty.parameters, adaptation={**state.adaptation, **previous}
        )

    # ---- reading

    def read(self, state: MemoryState, queries: Array) -> Array:
        """Return y = M(phi(q)): queries (*batch, n, d_k), result (*batch, n, d_v)."""
        batch, flat = state.batch, _flat(state)
        q = self._rows(queries, batch, "queries")
        phi = self._phi(flat, self.config.features.project(q, self._constants))
        y, _ = self.config.module.forward(flat.parameters, phi)
        return y.reshape((*batch, *y.shape[1:]))

    def lookup(self, state: MemoryState, queries: Array, sharpness: float = 30.0) -> ring.CacheRead:
        """Read the window as an exact cache: softmax of ``sharpness`` times the cosine of query and key.

        queries: (*batch, n, d_k). Tokens that wait for their chunk are in the window already. Slots come
        in the order of ``state.window``; the leading axes of the result are flattened to one.
        """
        batch, flat, config = state.batch, _flat(state), self.config
        if not config.window_size:
            raise InvalidParamError(
                "this memory keeps no window", key="window_size", hint="Try window_size=1024."
            )
        q = self._rows(queries, batch, "queries")
        mean = flat.adaptation.get("mean")
        features = config.features
        query = features.prepare(features.project(q, self._constants), mean)
        keys = features.prepare(self._decode(flat.window["key"]), mean)
        slots = np.arange(self._capacity["key"])
        age = (flat.counters["seen"][:, None] - 1 - slots) % self._capacity["key"]
        valid = age < np.minimum(flat.counters["filled"], config.window_size)[:, None]
        return ring.lookup(query, keys, self.xp.asarray(valid), sharpness)

    # ---- learning

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
    ) -> tuple[MemoryState, Report]:
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

        Returns
        -------
        The new state, and what was learned. ``state`` itself is unchanged.

        Raises
        ------
        DivergedError
            In strict mode, when a step gives NaN, infinity or an exploding norm.
        InvalidParamError
            For shapes that do not fit.
        """
        tokens, T = self._tokens(state, keys, targets, weights, {"alpha": alpha, "theta": theta, "eta": eta})
        flat = _flat(state)
        R = len(flat.counters["seen"])
        length = _lengths(lengths, state.batch, T)
        waiting = flat.counters["seen"] - flat.counters["learned"]
        groups = np.unique(np.stack([length, waiting]), axis=1).T
        if len(groups) <= 1:
            length = length[:1] if R else np.zeros(1, np.int64)
            new, report = self._observe(flat, tokens, int(length[0]), readout)
            return _shaped(new, state.batch), _shaped_report(report, state.batch)
        parts = []
        for n, phase in groups:
            rows = np.flatnonzero((length == n) & (waiting == phase))
            part = {name: array[rows] for name, array in tokens.items()}
            parts.append((rows, *self._observe(flat[rows], part, int(n), readout)))
        new, report = _join(self.xp, R, parts)
        return _shaped(new, state.batch), _shaped_report(report, state.batch)

    def flush(self, state: MemoryState, *, readout: Any = None) -> tuple[MemoryState, Report]:
        """Learn the tokens that still wait for their chunk to fill, as one shorter chunk."""
        flat = _flat(state)
        waiting = flat.counters["seen"] - flat.counters["learned"]
        parts = []
        for n in np.unique(waiting) if len(waiting) else (0,):
            rows = np.flatnonzero(waiting == n)
            part = flat if len(rows) == len(waiting) else flat[rows]
            report = _no_report(self.xp, len(rows), self.dtype)
            if n:
                part, report, _ = self._learn(part, int(n), readout)
            parts.append((rows, part, report))
        if len(parts) == 1:
            new, report = parts[0][1:]
        else:
            new, report = _join(self.xp, len(waiting), parts)
        return _shaped(new, state.batch), _shaped_report(report, state.batch)

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
    ) -> tuple[MemoryState, Array, Report]:
        """Learn a sequence and read after every token: y_t = M_t(phi(q_t)), the paper's layer.

        queries: (*batch, T, d_k); y: (*batch, T, d_v). A last chunk that is not full is learned too. With
        ``step="chunk"`` all tokens of a chunk are read before its step. A matrix memory without Muon is read
        without building M_t; the others keep one copy of their parameters per token of a chunk.
        """
        tokens, T = self._tokens(state, keys, targets, weights, {"alpha": alpha, "theta": theta, "eta": eta})
        flat = _flat(state)
        q = self._rows(queries, state.batch, "queries")
        if q.shape[1] != T:
            raise InvalidParamError(f"there are {q.shape[1]} queries for {T} tokens", key="queries")
        if (flat.counters["seen"] != flat.counters["learned"]).any():
            raise InvalidParamError(
                "tokens of an earlier call wait for their chunk", key="state", hint="Call flush first."
            )
        reports, reads = (
            [_no_report(self.xp, len(q), self.dtype)],
            [q[:, :0, :1] @ self._zeros(1, self.config.d_v)],
        )
        for start in range(0, T, self.config.chunk_size):
            stop = min(start + self.config.chunk_size, T)
            flat = self._append(flat, {name: array[:, start:stop] for name, array in tokens.items()})
            flat, report, y = self._learn(flat, stop - start, readout, q[:, start:stop])
            reports.append(report)
            reads.append(y)
        y = self.xp.concatenate(reads, axis=1)
        report = _chain(self.xp, reports)
        return (
            _shaped(flat, state.batch),
            y.reshape((*state.batch, T, self.config.d_v)),
            _shaped_report(report, state.batch),
        )

    # ---- one session or many in step, leading axes flattened to R

    def _observe(
        self, flat: MemoryState, tokens: dict[str, Array], length: int, readout: Any
    ) -> tuple[MemoryState, Report]:
        """Observe for rows that share length and phase."""
        reports = [_no_report(self.xp, len(flat.counters["seen"]), self.dtype)]
        start = 0
        while start < length:
            waiting = int((flat.counters["seen"] - flat.counters["learned"])[0])
            stop = min(length, start + self.config.chunk_size - waiting)
            flat = self._append(flat, {name: array[:, start:stop] for name, array in tokens.items()})
            waiting += stop - start
            if waiting == self.config.chunk_size:
                flat, report, _ = self._learn(flat, waiting, readout)
                reports.append(report)
            start = stop
        return flat, _chain(self.xp, reports)

    def _append(self, flat: MemoryState, tokens: dict[str, Array]) -> MemoryState:
        """Write tokens into the window; what is not finite is written as zeros of weight 0."""
        xp, config = self.xp, self.config
        seen, n = flat.counters["seen"], tokens["key"].shape[1]
        finite = xp.ones(tokens["key"].shape[:2], dtype=bool)
        data = [name for name in tokens if name not in RATES and tokens[name].dtype.kind == "f"]
        for name in data:
            finite &= xp.isfinite(tokens[name]).all(axis=tuple(range(2, tokens[name].ndim)))
        bad = backends.to_host(~finite).sum(axis=1)
        fields = dict(tokens)
        if bad.any():
            for name in data:
                spread = finite.reshape(*finite.shape, *(1,) * (fields[name].ndim - 2))
                fields[name] = xp.where(spread, fields[name], 0)
        number = seen[:, None] + np.arange(n)
        for name in RATES:
            if name not in fields:
                fields[name] = xp.asarray(rate_at(getattr(config, name), number), dtype=self.dtype)
        adaptation, averaged = flat.adaptation, flat.counters["averaged"]
        if config.features.centre and (seen < config.warmup_tokens).any():
            counts = finite & xp.asarray(number < config.warmup_tokens)
            total = averaged + backends.to_host(counts).sum(axis=1)
            share = xp.asarray(1.0 / np.maximum(total, 1), dtype=self.dtype)[:, None]
            ahead = (fields["key"] - adaptation["mean"][:, None]) * counts[..., None]
            adaptation = {**adaptation, "mean": adaptation["mean"] + share * ahead.sum(axis=1)}
            averaged = total
        for name in ("key", "value"):
            if name in fields:
                fields[name] = ring.encode(fields[name], config.stored_dtype)
        counters = {
            **flat.counters,
            "seen": seen + n,
            "filled": np.minimum(flat.counters["filled"] + n, self._capacity["key"]),
            "averaged": averaged,
            "dropped": flat.counters["dropped"] + bad,
        }
        return dataclasses.replace(
            flat, window=ring.append(flat.window, fields, seen), adaptation=adaptation, counters=counters
        )

    def _learn(
        self, flat: MemoryState, b: int, readout: Any, queries: Array | None = None
    ) -> tuple[MemoryState, Report, Array | None]:
        """Learn the last b tokens of the window as one chunk; read ``queries`` (R, b, d_k) after each."""
        xp, config = self.xp, self.config
        n = config.omega_window - 1 + b
        seen = flat.counters["seen"]
        names = ("key", "weight", *RATES, *self._fields)
        tokens = ring.latest(flat.window, n, seen, names)
        phi = self._phi(flat, self._decode(tokens["key"]))
        target = {k: self._decode(tokens[k]) if k == "value" else tokens[k] for k in self._fields}

        with np.errstate(over="ignore", invalid="ignore"):  # found below, and never enters the state
            y, cache = config.module.forward(flat.parameters, phi)
            loss, dy = config.objective.evaluate(y, target, readout)
            factors = config.module.factors(flat.parameters, cache, dy)
            rule, weights, stepping = self._rule(flat, tokens, b, n)
            report = Report(
                loss[:, -b:],
                _surprise(xp, factors, b),
                xp.where(stepping[:, -1], (weights[:, -1] * loss).sum(axis=-1), xp.nan).astype(self.dtype),
            )
            flat, rule = self._adapt(flat, rule, phi[:, -b:], y[:, -b:], dy[:, -b:])
            guard = None
            if config.guard:
                guard = _Guard(
                    config, phi, target, readout, weights[:, -1], (weights[:, -1] * loss).sum(axis=-1)
                )
            new, scale = self._step(flat, factors, rule, stepping, guard)
            if config.eta_adaptation:
                new = self._remember(new, scale)
            reads = None if queries is None else self._reads(flat, factors, rule, scale, queries, b)
        counters = {**new.counters, "learned": new.counters["learned"] + b}
        return dataclasses.replace(new, counters=counters), report, reads

    def _rule(
        self, flat: MemoryState, tokens: dict[str, Array], b: int, n: int
    ) -> tuple[Recurrence, Array, Array]:
        """Return the chunk's recurrence, the window weights (R, s, n), and which steps are made (R, s)."""
        xp, config = self.xp, self.config
        steps = tuple(range(b)) if config.step == "token" else (b - 1,)
        at = np.asarray(steps) - b  # counted from the end of the tokens
        seen, filled = flat.counters["seen"][:, None], flat.counters["filled"][:, None]
        stepping = xp.asarray(seen + at >= config.warmup_tokens)
        known = xp.asarray(np.arange(n) >= n - filled)
        gamma = window_weights(steps, n - b, b, config.omega_window, config.gamma)
        token_weights = xp.where(known, tokens["weight"], 0)
        weights = xp.asarray(gamma, dtype=self.dtype) * token_weights[:, None, :] * stepping[..., None]
        one = xp.ones((), dtype=self.dtype)
        alpha, theta = (xp.where(stepping, tokens[name][:, at], one) for name in ("alpha", "theta"))
        eta = xp.where(stepping, tokens["eta"][:, at], 0 * one)
        momentum = theta if config.has_momentum else None
        return Recurrence.solve(alpha, momentum, eta, weights), weights, stepping

    def _adapt(
        self, flat: MemoryState, rule: Recurrence, phi: Array, y: Array, dy: Array
    ) -> tuple[MemoryState, Recurrence]:
        """Scale eta by what the last step did for tokens that it had not seen (hypergradient, by its cosine)."""
        xp, config = self.xp, self.config
        if not config.eta_adaptation:
            return flat, rule
        before, _ = config.module.forward(
            {name: flat.adaptation[f"previous.{name}"] for name in flat.parameters}, phi
        )
        change = y - before
        size = xp.sqrt((change * change).sum(axis=(1, 2)) * (dy * dy).sum(axis=(1, 2)))
        helped = -(change * dy).sum(axis=(1, 2)) / xp.where(size > 0, size, 1)
        helped = xp.where(xp.isfinite(helped), helped, 0)
        bound = float(np.log(config.eta_bound))
        log_eta = xp.clip(flat.adaptation["log_eta"] + config.eta_adaptation * helped, -bound, bound)
        previous = {f"previous.{name}": array for name, array in flat.parameters.items()}
        adaptation = {**flat.adaptation, **previous, "log_eta": log_eta.astype(self.dtype)}
        rule = dataclasses.replace(rule, e=rule.e * xp.exp(log_eta)[:, None, None])
        return dataclasses.replace(flat, adaptation=adaptation), rule

    def _remember(self, flat: MemoryState, scale: Array) -> MemoryState:
        """Start the next step from the size at which this one did not diverge."""
        xp = self.xp
        bound = float(np.log(self.config.eta_bound))
        smaller = xp.log(xp.where(scale > 0, scale, _SMALLER**self.config.retries))
        log_eta = xp.clip(flat.adaptation["log_eta"] + smaller, -bound, bound)
        return dataclasses.replace(flat, adaptation={**flat.adaptation, "log_eta": log_eta})

    def _step(
        self,
        flat: MemoryState,
        factors: dict[str, Any],
        rule: Recurrence,
        stepping: Array,
        guard: _Guard | None,
    ) -> tuple[MemoryState, Array]:
        """Step every parameter; a row whose step diverges is retried smaller, then keeps what it had.

        Returns the state and the size (R,) at which each row stepped, 0 where it was skipped.
        """
        xp, config = self.xp, self.config
        R = len(flat.counters["seen"])
        scale = np.ones(R)
        made = backends.to_host(stepping).sum(axis=1)
        parameters, momentum, good = self._try(flat, factors, rule, scale)
        if guard is not None:
            good &= guard.passes(parameters)
        retried, rejected = np.zeros(R, np.int64), np.zeros(R, np.int64)
        for attempt in range(1, config.retries + 2):
            bad = np.flatnonzero(~good)
            if not bad.size:
                break
            if config.strict:
                raise DivergedError(
                    f"the step at token {int(flat.counters['seen'][bad[0]]) - 1} of row {int(bad[0])} diverged",
                    key="eta",
                    hint="Lower eta, or raise max_norm.",
                )
            if attempt > config.retries:
                scale[bad] = 0.0
                rejected[bad] = made[bad]
                for new, old in ((parameters, flat.parameters), (momentum, flat.momentum)):
                    for name in new:
                        new[name][bad] = old[name][bad]
                break
            retried[bad] += 1
            scale[bad] *= _SMALLER
            part = {name: (A[bad], B[bad]) for name, (A, B) in factors.items()}
            some = dataclasses.replace(rule, p=rule.p[bad], w=rule.w[bad], a=rule.a[bad], e=rule.e[bad])
            again, again_momentum, fine = self._try(flat[bad], part, some, scale[bad])
            for new, tried in ((parameters, again), (momentum, again_momentum)):
                for name in new:
                    new[name][bad] = tried[name]
            good[bad] = fine
            if guard is not None:
                good &= guard.passes(parameters)
        counters = {
            **flat.counters,
            "steps": flat.counters["steps"] + np.where(scale > 0, made, 0),
            "retried": flat.counters["retried"] + retried,
            "rejected": flat.counters["rejected"] + rejected,
        }
        new_state = dataclasses.replace(flat, parameters=parameters, momentum=momentum, counters=counters)
        return new_state, xp.asarray(scale, dtype=self.dtype)

    def _try(
        self, flat: MemoryState, factors: dict[str, Any], rule: Recurrence, scale: np.ndarray[Any, Any]
    ) -> tuple[dict[str, Array], dict[str, Array], np.ndarray[Any, Any]]:
        """Return the parameters and momenta behind a step, and which rows (R,) are finite and within bounds."""
        size = self.xp.asarray(scale, dtype=self.dtype)
        parameters, momentum = {}, {}
        good = np.ones(len(scale), dtype=bool)
        limit = self.config.max_norm**2
        for name, M in flat.parameters.items():
            step = final(M, flat.momentum.get(name), factors[name], rule, self.config.use_muon, size)
            parameters[name] = step.parameter
            if step.momentum is not None:
                momentum[name] = step.momentum
            squares = backends.to_host(step.squares).astype(np.float64)
            good &= np.isfinite(squares) & (squares <= limit)
        return parameters, momentum, good

    def _reads(
        self,
        flat: MemoryState,
        factors: dict[str, Any],
        rule: Recurrence,
        scale: Array,
        queries: Array,
        b: int,
    ) -> Array:
        """Read after every token of the chunk; ``flat`` is the state before it."""
        config, xp = self.config, self.xp
        phi = self._phi(flat, config.features.project(queries, self._constants))
        if config.step == "chunk":
            return config.module.forward(flat.parameters, phi)[0]
        if isinstance(config.module, Matrix) and not config.use_muon:
            y = matrix_reads(flat.parameters["W"], flat.momentum.get("W"), factors["W"], rule, phi, scale)
        else:
            parameters = {
                name: trajectory(M, flat.momentum.get(name), factors[name], rule, config.use_muon, scale)
                for name, M in flat.parameters.items()
            }
            y = config.module.forward(parameters, phi[:, :, None, :])[0][:, :, 0, :]
        skipped = scale == 0
        if bool(skipped.any()):
            y = xp.where(skipped[:, None, None], config.module.forward(flat.parameters, phi)[0], y)
        return y

    # ---- arrays

    @property
    def _stored(self) -> Any:
        """Dtype of stored keys and values; bfloat16 is kept as its bits."""
        return np.dtype(ring.STORAGE[self.config.stored_dtype])

    def _decode(self, array: Array) -> Array:
        return ring.decode(array, self.config.stored_dtype, self.config.dtype)

    def _zeros(self, *shape: int) -> Array:
        return self.xp.zeros(shape, self.dtype)

    def _phi(self, flat: MemoryState, projected: Array) -> Array:
        return self.config.features.phi(projected, self._constants, flat.adaptation.get("mean"))

    def _rows(self, array: Array, batch: tuple[int, ...], key: str) -> Array:
        """Check (*batch, n, d_k) and flatten the leading axes."""
        array = self.xp.asarray(array, dtype=self.dtype)
        if array.ndim != len(batch) + 2 or array.shape[:-2] != batch or array.shape[-1] != self.config.d_k:
            raise InvalidParamError(
                f"{key} have the shape {array.shape}, and (*{batch}, n, {self.config.d_k}) was expected",
                key=key,
            )
        return array.reshape((int(np.prod(batch)), *array.shape[-2:]))

    def _tokens(
        self,
        state: MemoryState,
        keys: Array,
        targets: Array | Mapping[str, Array],
        weights: Array | None,
        rates: dict[str, Array | None],
    ) -> tuple[dict[str, Array], int]:
        """Check everything that describes T tokens, and return it as the window's fields, (R, T, ...)."""
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
            raise InvalidParamError(
                f"targets have {', '.join(sorted(targets))}, and the objective takes {', '.join(self._fields)}",
                key="targets",
            )
        tokens = {"key": self.config.features.project(k, self._constants)}
        extra = {"weight": weights, **rates}
        for name, value in {**targets, **{n: a for n, a in extra.items() if a is not None}}.items():
            shape, kind = self._fields.get(name, ((), "float"))
            array = xp.asarray(value, dtype=np.int32 if kind == "int" else self.dtype)
            if array.shape != (*batch, T, *shape):
                raise InvalidParamError(
                    f"{name} has the shape {array.shape}, and {(*batch, T, *shape)} was expected", key=name
                )
            if name in RATES and not bool(xp.isfinite(array).all()):
                raise InvalidParamError(f"{name} holds NaN or infinity", key=name)
            tokens[name] = array.reshape(R, T, *shape)
        if rates["theta"] is not None and not self.config.has_momentum:
            raise InvalidParamError(
                "theta is given per token, and the memory keeps no momentum",
                key="theta",
                hint="Configure theta as a Schedule or a number above 0.",
            )
        if weights is None:
            tokens["weight"] = xp.ones((R, T), self.dtype)
        return tokens, T


@dataclasses.dataclass(frozen=True)
class _Guard:
    """Tells which rows' window is worse off behind a step."""

    config: MemoryConfig
    phi: Array
    target: Mapping[str, Array]
    readout: Any
    weights: Array
    before: Array

    def passes(self, parameters: Mapping[str, Array]) -> np.ndarray[Any, Any]:
        """Return which rows (R,) may take these parameters; NaN may not."""
        y, _ = self.config.module.forward(parameters, self.phi)
        loss, _ = self.config.objective.evaluate(y, self.target, self.readout)
        after = (self.weights * loss).sum(axis=-1)
        value = self.target.get("value")
        empty = 1.0 if value is None else 0.5 * (value * value).sum(axis=-1)  # 1 nat, for cross-entropy
        noise = _NOISE * (self.weights * empty).sum(axis=-1)
        return backends.to_host(after <= _WORSE * self.before + noise)


# ---- leading axes


def _flat(state: MemoryState) -> MemoryState:
    """Flatten the leading axes to one; views."""
    lead = len(state.batch)
    R = int(np.prod(state.batch))
    return state.map(lambda array: array.reshape(R, *array.shape[lead:]))


def _shaped(flat: MemoryState, batch: tuple[int, ...]) -> MemoryState:
    return flat.map(lambda array: array.reshape((*batch, *array.shape[1:])))


def _shaped_report(report: Report, batch: tuple[int, ...]) -> Report:
    L = report.loss.shape[-1]
    return Report(
        report.loss.reshape((*batch, L)),
        report.surprise.reshape((*batch, L)),
        report.omega_loss.reshape(batch),
    )


def _lengths(lengths: Array | None, batch: tuple[int, ...], T: int) -> np.ndarray[Any, Any]:
    """Return how many tokens each row has, (R,) on the host."""
    if lengths is None:
        return np.full(int(np.prod(batch)), T, np.int64)
    length = backends.to_host(lengths)
    if length.shape != batch or length.dtype.kind not in "iu" or (length < 0).any() or (length > T).any():
        raise InvalidParamError(
            f"lengths must be whole numbers from 0 to {T} of the shape {batch}", key="lengths"
        )
    return length.reshape(-1).astype(np.int64)


def _surprise(xp: Any, factors: dict[str, Any], b: int) -> Array:
    """Return the norm of each token's gradient: it is an outer product, so no gradient is built. (R, b)."""
    total = 0
    for A, B in factors.values():
        left, right = A[:, -b:], B[:, -b:]
        total = total + (left * left).sum(axis=-1) * (right * right).sum(axis=-1)
    return xp.sqrt(total)


def _no_report(xp: Any, rows: int, dtype: Any) -> Report:
    empty = xp.zeros((rows, 0), dtype)
    return Report(empty, empty, xp.full((rows,), xp.nan, dtype))


def _chain(xp: Any, reports: list[Report]) -> Report:
    """Join the reports of chunks that follow each other."""
    if len(reports) == 2:
        return reports[1]
    loss, surprise = (xp.concatenate([getattr(r, n) for r in reports], axis=1) for n in ("loss", "surprise"))
    return Report(loss, surprise, reports[-1].omega_loss)


def _join(
    xp: Any, rows: int, parts: list[tuple[np.ndarray[Any, Any], MemoryState, Report]]
) -> tuple[MemoryState, Report]:
    """Put rows that advanced apart together again; shorter reports are padded with NaN."""
    like = parts[0][1]
    out: dict[str, dict[str, Array]] = {}
    for group, arrays in like.groups().items():
        out[group] = {}
        for name, first in arrays.items():
            whole = (np if group == "counters" else xp).empty((rows, *first.shape[1:]), first.dtype)
            for where, part, _ in parts:
                whole[where] = getattr(part, group)[name]
            out[group][name] = whole
    longest = max(report.learned for _, _, report in parts)
    dtype = parts[0][2].loss.dtype
    loss, surprise = (xp.full((rows, longest), xp.nan, dtype) for _ in range(2))
    omega = xp.full((rows,), xp.nan, dtype)
    for where, _, report in parts:
        loss[where, : report.learned] = report.loss
        surprise[where, : report.learned] = report.surprise
        omega[where] = report.omega_loss
    return MemoryState(**out), Report(loss, surprise, omega)
