"""How many pairs a memory holds: random pairs, three ways to store them, and what is recalled afterwards.

Claims of the paper (arXiv 2505.23735): a matrix holds O(d_k) pairs (proposition 1), with polynomial features of degree
p O(d_k^p) (proposition 2), a deep memory more than a matrix on the same input (theorem 1). ``stream`` shows a memory
the pairs once, ``converge`` until little changes; ``least_squares`` is the best that any matrix could do. Memories to
try are in ``trials.py``.
"""

from __future__ import annotations

import collections
import dataclasses
import itertools
import math
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array as HostArray
from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_whole
from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.features import Polynomial, unit
from atlas_kit.memory.modules import Matrix, parameter_count
from atlas_kit.memory.neural_memory import Memory
from atlas_kit.memory.schedules import Schedule
from atlas_kit.memory.state import MemoryState

PASSES = 300  # of ``converge``
#: A pair counts as held while nine of ten are told apart, or while reads are off by less than a third of a value.
LEVELS = {"accuracy": 0.9, "error": 0.3}


# ---- pairs, and how well they are recalled


def random_pairs(pairs: int, d_k: int, d_v: int, seed: int = 0) -> tuple[HostArray, HostArray]:
    """Return keys (pairs, d_k) and values (pairs, d_v), float32, of length 1 and random direction.

    The first pairs of a seed do not depend on how many follow.
    """
    for name, number in (("pairs", pairs), ("d_k", d_k), ("d_v", d_v)):
        if not is_whole(number, 1):
            raise InvalidParamError(f"{number!r} is not a whole number of at least 1", key=name)
    keys, values = (
        np.random.default_rng((seed, stream)).standard_normal((pairs, d)).astype(np.float32)
        for stream, d in ((1, d_k), (2, d_v))
    )
    return unit(keys), unit(values)


def relative_error(reads: HostArray, values: HostArray) -> HostArray:
    """Return ||y - v|| / ||v|| over all but the first axis: 0 is perfect, 1 what an empty matrix memory has."""
    axes = tuple(range(1, reads.ndim))
    error: HostArray = np.sqrt(((reads - values) ** 2).sum(axis=axes) / (values**2).sum(axis=axes))
    return error


def nearest(reads: HostArray, choices: HostArray) -> HostArray:
    """Return which of ``choices`` (..., m, d_v) each read (..., n, d_v) is nearest to, as (..., n).

    >>> nearest(np.array([[0.9, 0.2], [0.1, 0.3]]), np.eye(2)).tolist()
    [0, 1]
    """
    distance = (choices**2).sum(axis=-1)[..., None, :] - 2 * reads @ choices.swapaxes(-1, -2)
    found: HostArray = np.argmin(distance, axis=-1)
    return found


def accuracy(reads: HostArray, answers: HostArray, choices: HostArray) -> HostArray:
    """Return the share of reads (..., n, d_v) that are nearest to the right one of the choices (..., m, d_v).

    answers: (..., n), the number of the right one.
    """
    share: HostArray = (nearest(reads, choices) == answers).mean(axis=-1)
    return share


def similarity(reads: HostArray, values: HostArray) -> HostArray:
    """Return the cosines (..., n, m) of reads (..., n, d_v) and values (..., m, d_v); 0 for a read of 0."""
    cosines: HostArray = unit(reads) @ unit(values).swapaxes(-1, -2)
    return np.clip(cosines, -1, 1)


def last_within(x: Sequence[float], y: Sequence[float], level: float) -> float:
    """Return the largest x at which y is within ``level``, over log x; NaN when always or never.

    >>> round(last_within([10, 20, 40], [0.0, 0.0, 1.0], 0.5), 3)
    28.284
    """
    inside = [i for i, value in enumerate(y) if value <= level]
    if not inside or inside[-1] == len(y) - 1:
        return math.nan
    i = inside[-1]
    share = (level - y[i]) / (y[i + 1] - y[i])
    return float(x[i] * (x[i + 1] / x[i]) ** share)


@dataclasses.dataclass(frozen=True)
class Recall:
    """How well a memory recalls the pairs that it stored, a mean over all streams.

    Attributes
    ----------
    pairs
        How many.
    accuracy
        Share of reads whose nearest stored value is the right one: exact retrieval, 0 to 1.
    cosine
        Mean cosine of a read and its value, -1 to 1.
    error
        ``relative_error``: ||Y - V|| / ||V||.
    """

    pairs: int
    accuracy: float
    cosine: float
    error: float


def held(curve: Sequence[Recall], measure: str = "accuracy") -> float:
    """Return at how many pairs a measure leaves its level in ``LEVELS``; NaN when it never does, or is never there."""
    sign = -1 if measure == "accuracy" else 1
    y = [sign * getattr(recall, measure) for recall in curve]
    return last_within([recall.pairs for recall in curve], y, sign * LEVELS[measure])


@dataclasses.dataclass(frozen=True, eq=False)
class Stored:
    """Pairs in a memory.

    Attributes
    ----------
    memory, state
        The memory, and its state behind the last pair.
    keys, values
        What was stored, (..., n, d_k) and (..., n, d_v): the leading axes are streams of their own.
    passes
        How often it has seen them.
    final
        Whether this is all that it will see of them: False while ``converge`` goes on.
    """

    memory: Memory
    state: MemoryState
    keys: HostArray
    values: HostArray
    passes: int
    final: bool

    def reads(self) -> HostArray:
        """Return what the memory answers to the keys, (..., n, d_v)."""
        answers: HostArray = self.memory.read(self.state, self.keys)
        return answers

    def recall(self) -> Recall:
        """Measure the reads."""
        reads, values, n = self.reads(), self.values, self.keys.shape[-2]
        rows = (-1, n, values.shape[-1])
        return Recall(
            pairs=n,
            accuracy=float(accuracy(reads, np.arange(n), values).mean()),
            cosine=float((unit(reads) * unit(values)).sum(axis=-1).mean()),
            error=float(relative_error(reads.reshape(rows), values.reshape(rows)).mean()),
        )


# ---- what theory allows


def free_numbers(config: MemoryConfig) -> float:
    """Return the parameters per component of a value, which is what a memory can hold exactly at most, in pairs.

    A matrix has as many as there are independent features, and recalls as many random pairs. Monomials are not all
    independent on keys of length 1, where the squares sum to the constant: those of degree p are worth those of
    p - 2, ... too, so that the highest even and the highest odd degree count.

    >>> from atlas_kit.memory import Features, Identity, Polynomial, ResidualMLP
    >>> parts = [(Identity(), Matrix()), (Polynomial(2), Matrix()), (Identity(), ResidualMLP(width=64))]
    >>> [free_numbers(MemoryConfig(16, 16, Features(map), module)) for map, module in parts]
    [16.0, 152.0, 128.0]
    """
    features, d_in = config.features, config.d_phi
    if isinstance(features.map, Polynomial) and features.normalize_keys:
        d, used = config.d_key, [p for p, a in enumerate(features.map.weights) if a]
        if not features.map.constant:
            used = [p for p in used if p]
        highest = (max((p for p in used if p % 2 == odd), default=None) for odd in (0, 1))
        d_in = sum(math.comb(d + p - 1, p) for p in highest if p is not None)
    if isinstance(config.module, Matrix):
        return float(d_in)
    return parameter_count(config.module, config.d_phi, config.d_v) / config.d_v


# ---- three ways to store pairs


def stream(
    config: MemoryConfig, keys: HostArray, values: HostArray, at: Sequence[int] | None = None
) -> Iterator[Stored]:
    """Show a memory the pairs (..., n, d) once, one after the other; yield it after each number of pairs in ``at``."""
    memory = Memory(config, backend="numpy")
    state = memory.init(keys.shape[:-2])
    ends = sorted(set(at or ())) or [keys.shape[-2]]
    for start, stop in itertools.pairwise([0, *ends]):
        state, _ = memory.observe(state, keys[..., start:stop, :], values[..., start:stop, :])
        behind, _ = memory.flush(state)  # the stream goes on from where tokens still wait for their chunk
        yield Stored(memory, behind, keys[..., :stop, :], values[..., :stop, :], passes=1, final=True)


def converge(
    config: MemoryConfig, keys: HostArray, values: HostArray, passes: int = PASSES
) -> Iterator[Stored]:
    """Show a memory all pairs (..., n, d) again and again, a step per pass (equation 9, c = t); yield it after each.

    Rates are chosen here. Muon's steps have a fixed length, so they shrink; a matrix without it gets the step and
    momentum that are optimal for its features.
    """
    n = keys.shape[-2]
    config = config.replace(omega_window=n, chunk_size=n, step="chunk", theta=0.9, max_norm=1e9, guard=False)
    rates: dict[str, Any] = {}
    if config.use_muon:
        config = config.replace(eta=Schedule("cosine", 0.2, 2e-4, n * passes))
    elif isinstance(config.module, Matrix):
        rates = _heavy_ball(config, keys)
    else:
        config = config.replace(eta=_largest_stable(config, keys), guard=True)
    memory = Memory(config, backend="numpy")
    state = memory.init(keys.shape[:-2])
    for done in range(1, passes + 1):
        state, _ = memory.observe(state, keys, values, **rates)
        yield Stored(memory, state, keys, values, passes=done, final=done == passes)


def last(stored: Iterator[Stored]) -> Stored:
    """Return the last of what ``stream`` or ``converge`` yields, and keep none of the others."""
    return collections.deque(stored, maxlen=1).pop()


def _heavy_ball(config: MemoryConfig, keys: HostArray) -> dict[str, HostArray]:
    """Return eta and theta (..., n) that are optimal for a quadratic with eigenvalues between mu and L."""
    n = keys.shape[-2]
    spectrum = np.linalg.svd(_phi(config, keys), compute_uv=False)
    L = spectrum[..., 0]
    mu = np.maximum(spectrum[..., min(n, round(free_numbers(config))) - 1], 1e-2 * L)
    eta, theta = 4 / (L + mu) ** 2, ((L - mu) / (L + mu)) ** 2
    return {
        name: np.repeat(np.asarray(rate)[..., None], n, axis=-1)
        for name, rate in (("eta", eta), ("theta", theta))
    }


def _largest_stable(config: MemoryConfig, keys: HostArray) -> float:
    """Return a step that gradient descent survives at the start: 1 / the largest eigenvalue of h^T h."""
    module = config.module
    start = module.init(config.d_phi, config.d_v, config.seed)
    _, cache = module.forward(start, _phi(config, keys))
    hidden = module.factors(start, cache, np.zeros((*keys.shape[:-1], config.d_v)))["W_out"][0]
    return float(1 / np.linalg.svd(hidden, compute_uv=False).max() ** 2)


def least_squares(config: MemoryConfig, keys: HostArray, values: HostArray) -> HostArray:
    """Return the reads (..., n, d_v) of the best matrix behind the features of ``config``."""
    phi = _phi(config, keys)
    shape = (-1, *phi.shape[-2:])
    pairs = zip(phi.reshape(shape), values.reshape(-1, *values.shape[-2:]), strict=True)
    reads = np.stack([p @ np.linalg.lstsq(p, v, rcond=None)[0] for p, v in pairs])
    fitted: HostArray = reads.reshape(values.shape)
    return fitted


def _phi(config: MemoryConfig, keys: HostArray) -> HostArray:
    """Return the features (..., n, d_phi) in float64."""
    features = config.features
    constants = features.constants(keys.shape[-1], config.seed)
    projected = features.project(keys.astype(np.float64), constants)
    phi: HostArray = features.phi(projected, constants)
    return phi
