"""One chunk of tokens learned: features, errors, recurrence, step, and what to do when the step diverges.

The state's leading axes are flattened to one, R; the chunk's tokens are the last of the window. Equations as in
``update``; nothing here knows how streams are cut or sessions joined.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping
from typing import Any

import numpy as np

from atlas_kit.memory import backend as backends
from atlas_kit.memory import window as ring
from atlas_kit.memory.backend import Array
from atlas_kit.memory.config import RATES, MemoryConfig
from atlas_kit.memory.modules import Factors, Matrix
from atlas_kit.memory.sessions import LearningReport
from atlas_kit.memory.state import MemoryState
from atlas_kit.memory.update import Recurrence, final, matrix_reads, trajectory, window_weights

_LARGE = 1 << 20  # bytes of a parameter from which it is updated in place (see Learner.reuses)
_SMALLER = 0.25  # a diverged step is retried at this fraction of its size
_WORSE = 1.1  # guarded steps may raise the loss of their windows by this factor,
_NOISE = 1e-3  # or, where the loss is next to nothing, to this share of an empty memory's


class Diverged(Exception):  # noqa: N818 - a signal between two files; users see DivergedError
    """In strict mode: the chunk that ends at ``token`` diverged in ``row``."""

    def __init__(self, row: int, token: int) -> None:
        super().__init__(row, token)
        self.row, self.token = row, token


class Learner:
    """Learns chunks for one configuration; holds its constants and no state."""

    def __init__(self, config: MemoryConfig, xp: Any) -> None:
        self.config, self.xp = config, xp
        self.dtype: Any = np.dtype(config.dtype)
        self.fields = config.objective.fields(config.d_v)

    @functools.cached_property
    def constants(self) -> dict[str, Array]:
        """The fixed random numbers of the features, drawn when they are needed: a whitened memory never does."""
        drawn = self.config.features.constants(self.config.d_k, self.config.seed)
        return {name: self.xp.asarray(array, dtype=self.dtype) for name, array in drawn.items()}

    def phi(self, flat: MemoryState, projected: Array) -> Array:
        """Return the features (R, n, d_phi) of projected keys (R, n, d_key)."""
        return self.config.features.phi(projected, self.constants, flat.adaptation.get("mean"))

    def decode(self, stored: Array) -> Array:
        """Return keys or values from the type in which the window stores them."""
        return ring.decode(stored, self.config.stored_dtype, self.config.dtype)

    def reuses(self, flat: MemoryState) -> bool:
        """Tell whether learning writes into the parameters that it is given.

        Worth it when they are large: 17.5 MB copied and updated in place take 7.8 ms of one core, a new array that
        takes the sum 8.5 ms; donated it is 5.8 ms. Not where what was there before may be needed behind the step:
        of several matrices, one that diverges takes back all.
        """
        config = self.config
        if config.use_muon or config.guard or config.eta_adaptation or len(flat.parameters) > 1:
            return False
        return all(array.nbytes >= _LARGE for array in flat.parameters.values())

    def chunk(
        self,
        flat: MemoryState,
        b: int,
        readout: Any,
        queries: Array | None = None,
        reuse: bool = False,
    ) -> tuple[MemoryState, LearningReport, Array | None]:
        """Learn the last b tokens of the window as one chunk; read ``queries`` (R, b, d_k) after each.

        ``reuse``: the parameters and the momentum of ``flat`` may be written to.
        """
        xp, config = self.xp, self.config
        # one step per chunk, at its end, looks no further back than its window
        n = config.omega_window - 1 + b if config.step == "token" else max(config.omega_window, b)
        seen = flat.counters["seen"]
        names = ("key", "valid", "weight", *RATES, *self.fields)
        tokens = ring.latest(flat.window, n, seen, names)
        phi = self.phi(flat, self.decode(tokens["key"]))
        target = {k: self.decode(tokens[k]) if k == "value" else tokens[k] for k in self.fields}

        with np.errstate(over="ignore", invalid="ignore"):  # found below, and never enters the state
            y, cache = config.module.forward(flat.parameters, phi)
            loss, dy = config.objective.evaluate(y, target, readout)
            factors = config.module.factors(flat.parameters, cache, dy)
            rule, weights, stepping = self._rule(flat, tokens, b, n)
            omega_loss = (weights[:, -1] * loss).sum(axis=-1)
            surprise = _surprise(xp, factors, b)
            flat, rule = self._adapt(flat, rule, phi[:, -b:], y[:, -b:], dy[:, -b:])
            guard = None
            if config.guard:
                looked_at = weights.sum(axis=1)  # by any step of the chunk
                guard = _Guard(config, phi, target, readout, looked_at, (looked_at * loss).sum(axis=-1))
            within = config.max_norm if reuse and self.reuses(flat) else 0.0
            new, scale = self._step(flat, factors, rule, stepping, guard, within)
            if config.eta_adaptation:
                new = self._remember(new, scale)
            reads = None if queries is None else self._reads(flat, factors, rule, scale, queries, b)
        if not stepping[:, -1].all():
            omega_loss = xp.where(xp.asarray(stepping[:, -1]), omega_loss, xp.nan).astype(self.dtype)
        loss, valid = loss[:, -b:], tokens["valid"][:, -b:] != 0
        if not bool(valid.all()):
            loss, surprise = (xp.where(valid, x, xp.nan).astype(self.dtype) for x in (loss, surprise))
        counters = {**new.counters, "learned": new.counters["learned"] + b}
        return dataclasses.replace(new, counters=counters), LearningReport(loss, surprise, omega_loss), reads

    def _rule(
        self, flat: MemoryState, tokens: dict[str, Array], b: int, n: int
    ) -> tuple[Recurrence, Array, np.ndarray[Any, Any]]:
        """Return the chunk's recurrence, the window weights (R, s, n), and which steps are made (R, s; host)."""
        xp, config = self.xp, self.config
        steps = tuple(range(b)) if config.step == "token" else (b - 1,)
        at = np.asarray(steps) - b  # counted from the end of the tokens
        stepping = flat.counters["seen"][:, None] + at >= config.warmup_tokens
        gamma = window_weights(steps, n - b, b, config.omega_window, config.gamma)
        # slots that no token has filled yet, and tokens that were left out, have weight 0
        weights = xp.asarray(gamma, dtype=self.dtype) * tokens["weight"][:, None, :]
        alpha, theta, eta = (tokens[name][:, at] for name in RATES)
        if not stepping.all():
            made = xp.asarray(stepping)
            one = xp.ones((), dtype=self.dtype)
            weights = weights * made[..., None]
            alpha, theta, eta = (
                xp.where(made, rate, other) for rate, other in ((alpha, one), (theta, one), (eta, 0 * one))
            )
        momentum = theta if config.has_momentum else None
        return Recurrence.solve(alpha, momentum, eta, weights), weights, stepping

    def _adapt(
        self, flat: MemoryState, rule: Recurrence, phi: Array, y: Array, dy: Array
    ) -> tuple[MemoryState, Recurrence]:
        """Scale eta by what the last chunk's steps did for tokens that they had not seen.

        The hypergradient of Baydin and others (2018), as a cosine: d M_t / d log eta = M_t - a_t M_0, what the steps
        changed beside the decay, against what the new tokens' errors ask for.
        """
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
        a = rule.a[:, -1, None, None]
        previous = {f"previous.{name}": a * array for name, array in flat.parameters.items()}
        adaptation = {**flat.adaptation, **previous, "log_eta": log_eta.astype(self.dtype)}
        rule = dataclasses.replace(rule, e=rule.e * xp.exp(log_eta)[:, None, None])
        return dataclasses.replace(flat, adaptation=adaptation), rule

    def _remember(self, flat: MemoryState, scale: Array) -> MemoryState:
        """Start the next step from the size at which this one did not diverge."""
        xp = self.xp
        bound = float(np.log(self.config.eta_bound))
        smaller = xp.log(xp.where(scale > 0, scale, _SMALLER ** max(1, self.config.retries)))
        log_eta = xp.maximum(flat.adaptation["log_eta"] + smaller, -bound)
        adaptation = {**flat.adaptation, "log_eta": log_eta}
        skipped = (scale == 0)[:, None, None]  # such a chunk changed nothing that could be judged
        for name, array in flat.parameters.items() if bool(skipped.any()) else ():
            adaptation[f"previous.{name}"] = xp.where(skipped, array, adaptation[f"previous.{name}"])
        return dataclasses.replace(flat, adaptation=adaptation)

    def _step(
        self,
        flat: MemoryState,
        factors: dict[str, Factors],
        rule: Recurrence,
        stepping: np.ndarray[Any, Any],
        guard: _Guard | None,
        reuse_within: float,
    ) -> tuple[MemoryState, Array]:
        """Step every parameter; a row whose chunk diverges is retried smaller, then keeps its parameters.

        A row that is skipped loses its momentum: what made it diverge is in there, and would again.

        Returns the state and the size (R,) at which each row stepped, 0 where it was skipped.
        """
        xp, config = self.xp, self.config
        R = len(flat.counters["seen"])
        scale = np.ones(R)
        made = stepping.sum(axis=1)
        parameters, momentum, good = self._try(flat, factors, rule, scale, reuse_within)
        if guard is not None:
            good &= guard.passes(parameters)
        retried, rejected = np.zeros(R, np.int64), np.zeros(R, np.int64)
        for attempt in range(1, config.retries + 2):
            if good.all():
                break
            bad = np.flatnonzero(~good)
            if config.strict:
                raise Diverged(row=int(bad[0]), token=int(flat.counters["seen"][bad[0]]) - 1)
            if attempt > config.retries:
                scale[bad] = 0.0
                rejected[bad] = made[bad]
                for name in parameters:
                    parameters[name][bad] = flat.parameters[name][bad]
                for name in momentum:
                    momentum[name][bad] = 0
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
        self,
        flat: MemoryState,
        factors: dict[str, Factors],
        rule: Recurrence,
        scale: np.ndarray[Any, Any],
        reuse_within: float = 0.0,
    ) -> tuple[dict[str, Array], dict[str, Array], np.ndarray[Any, Any]]:
        """Return the parameters and momenta behind a step, and which rows (R,) are finite and within bounds."""
        size = self.xp.asarray(scale, dtype=self.dtype)
        parameters, momentum = {}, {}
        good = np.ones(len(scale), dtype=bool)
        limit = self.config.max_norm**2
        for name, M in flat.parameters.items():
            step = final(
                M, flat.momentum.get(name), factors[name], rule, self.config.use_muon, size, reuse_within
            )
            parameters[name] = step.parameter
            if step.momentum is not None:
                momentum[name] = step.momentum
            squares = backends.to_host(step.squares).astype(np.float64)
            good &= np.isfinite(squares) & (squares <= limit)
        return parameters, momentum, good

    def _reads(
        self,
        flat: MemoryState,
        factors: dict[str, Factors],
        rule: Recurrence,
        scale: Array,
        queries: Array,
        b: int,
    ) -> Array:
        """Read after every token of the chunk; ``flat`` is the state before it."""
        config, xp = self.config, self.xp
        phi = self.phi(flat, config.features.project(queries, self.constants))
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


def _surprise(xp: Any, factors: dict[str, Factors], b: int) -> Array:
    """Return the norm of each token's gradient: it is an outer product, so no gradient is built. (R, b)."""
    total = 0
    for A, B in factors.values():
        left, right = A[:, -b:], B[:, -b:]
        total = total + (left * left).sum(axis=-1) * (right * right).sum(axis=-1)
    return xp.sqrt(total)
