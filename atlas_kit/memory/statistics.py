"""What can be said about a state: spectra, ranks, fill; how far two states are apart; their weighted merge."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array as HostArray
from atlas_kit.errors import InvalidParamError
from atlas_kit.memory.backend import Array, namespace, quiet, to_host
from atlas_kit.memory.config import MemoryConfig
from atlas_kit.memory.modules import OF_STEPS, learned_matrices
from atlas_kit.memory.muon import STEPS
from atlas_kit.memory.state import MemoryState

_SQUARED = 400  # sums of squares of numbers from 2^-400 to 2^400 have all their digits in float64


@dataclasses.dataclass(frozen=True, eq=False)
class MatrixStatistics:
    """One parameter matrix; all of shape (*batch) but ``spectrum``.

    Attributes
    ----------
    norm
        Frobenius norm.
    spectrum
        Singular values in descending order, (*batch, min(rows, cols)).
    effective_rank
        exp of the entropy of the singular values' shares (Roy and Vetterli 2007): 1 to min(rows, cols), 0 for zero.
    utilisation
        ``effective_rank / min(rows, cols)``.
    """

    norm: HostArray
    spectrum: HostArray
    effective_rank: HostArray
    utilisation: HostArray


@dataclasses.dataclass(frozen=True, eq=False)
class Statistics:
    """A state in numbers, per session.

    Attributes
    ----------
    tokens_seen, tokens_learned, steps, steps_retried, steps_rejected, tokens_dropped
        Counters of the state.
    muon_iterations
        Newton-Schulz iterations so far.
    window_fill
        Share of the window that holds tokens, 0 to 1.
    memory_utilisation
        Mean utilisation of the parameter matrices, 0 to 1.
    eta_factor
        What the adaptation multiplies eta by, 1 without it.
    nbytes
        Bytes of the state's arrays, all sessions together.
    matrices
        By parameter name.
    """

    tokens_seen: HostArray
    tokens_learned: HostArray
    steps: HostArray
    steps_retried: HostArray
    steps_rejected: HostArray
    tokens_dropped: HostArray
    muon_iterations: HostArray
    window_fill: HostArray
    memory_utilisation: HostArray
    eta_factor: HostArray
    nbytes: int
    matrices: dict[str, MatrixStatistics]

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values."""
        return {k: _plain(v) for k, v in dataclasses.asdict(self).items()}


@quiet
def statistics(config: MemoryConfig, state: MemoryState) -> Statistics:
    """Measure a state. Costs a singular value decomposition of every parameter matrix."""
    matrices = {name: matrix_statistics(array) for name, array in state.parameters.items()}
    count = state.counters
    capacity = state.window["key"].shape[len(state.batch)]
    size = config.window_size or capacity
    log_eta = state.adaptation.get("log_eta")
    return Statistics(
        tokens_seen=count["seen"],
        tokens_learned=count["learned"],
        steps=count["steps"],
        steps_retried=count["retried"],
        steps_rejected=count["rejected"],
        tokens_dropped=count["dropped"],
        muon_iterations=count["steps"] * (STEPS if config.use_muon else 0),
        window_fill=np.minimum(count["filled"], size) / size,
        memory_utilisation=np.mean(
            [matrices[name].utilisation for name in learned_matrices(state.parameters)], axis=0
        ),
        eta_factor=np.ones(state.batch) if log_eta is None else np.exp(to_host(log_eta)),
        nbytes=state.nbytes,
        matrices=matrices,
    )


@quiet
def matrix_statistics(matrix: Array) -> MatrixStatistics:
    """Measure matrices (*batch, rows, cols).

    A rank-one matrix uses one of its two directions; the identity both:

    >>> m = matrix_statistics(np.array([[[3.0, 0.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 1.0]]]))
    >>> m.effective_rank.round(6).tolist(), m.utilisation.round(6).tolist()
    ([1.0, 2.0], [0.5, 1.0])
    """
    xp = namespace(matrix)
    spectrum = to_host(xp.linalg.svd(matrix, compute_uv=False)).astype(np.float64)
    scaled, exponent = _scaled(spectrum, (-1,))
    total = scaled.sum(axis=-1, keepdims=True)
    share = scaled / np.where(total > 0, total, 1)
    entropy = -(share * np.log(np.where(share > 0, share, 1))).sum(axis=-1)
    most = spectrum.shape[-1]
    rank = np.where(total[..., 0] > 0, np.clip(np.exp(entropy), 1, most), 0.0)
    norm = np.ldexp(np.sqrt((scaled * scaled).sum(axis=-1)), exponent[..., 0])
    return MatrixStatistics(norm, spectrum, rank, rank / max(1, most))


@dataclasses.dataclass(frozen=True, eq=False)
class Distance:
    """How far matrix b is from matrix a, per session: float64 arrays of shape (*batch).

    Attributes
    ----------
    max_abs
        Greatest absolute difference.
    relative
        ||b - a|| / ||a||, Frobenius; 0 when both are zero, infinite when only a is.
    cosine
        Of the two as vectors; 1 when both are zero, 0 when one is.
    """

    max_abs: HostArray
    relative: HostArray
    cosine: HostArray


@quiet
def distance(a: MemoryState, b: MemoryState) -> dict[str, Distance]:
    """Compare the parameters of two states of one shape, by name."""
    _alike(a, b)
    lead = len(a.batch)
    return {name: matrix_distance(array, b.parameters[name], lead) for name, array in a.parameters.items()}


@quiet
def merge(states: Sequence[MemoryState], weights: Sequence[float] | None = None) -> MemoryState:
    """Return the weighted mean of the states' parameters, with the rest of the heaviest.

    A memory's parameters are sums of what tokens added, so a mean of two memories of a matrix module reads as the mean
    of their reads; for deep modules it is a heuristic. Momentum is averaged likewise. The window cannot be
    averaged: window, adaptation, gate and counters come from the state with the greatest weight (the first of equals).
    The states must come from one configuration, seed included, and centred memories have different means, so that
    their features do not mean the same: merge those that share a warm-up. Memories that were whitened by different
    texts are refused; what a whitened one makes its steps with comes from the heaviest, too.

    Parameters
    ----------
    weights
        Not negative, one per state; normalised to sum to 1. By default all alike.

    Raises
    ------
    InvalidParamError
        For no states, states of different shapes, memories that were not whitened alike, and weights that do not fit.
    """
    states = list(states)
    if not states:
        raise InvalidParamError("there is nothing to merge", key="states")
    try:
        shares = np.ones(len(states)) if weights is None else np.asarray(weights, dtype=np.float64)
    except (TypeError, ValueError):
        shares = np.empty(0)
    total = shares.sum() if shares.shape == (len(states),) else np.nan
    if not np.isfinite(total) or total <= 0 or (shares < 0).any():
        raise InvalidParamError(
            f"{len(states)} weights of at least 0, not all 0, were expected", key="weights"
        )
    shares = shares / total
    for other in states[1:]:
        _alike(states[0], other)
    heaviest = states[int(np.argmax(shares))]
    groups = {
        group: {
            name: sum(float(w) * getattr(state, group)[name] for w, state in zip(shares, states, strict=True))
            for name in getattr(heaviest, group)
        }
        for group in ("parameters", "momentum")
    }
    if "origin" in heaviest.parameters:
        kept = OF_STEPS & heaviest.parameters.keys()
        groups["parameters"] |= {name: heaviest.parameters[name] for name in kept}
    # as a restore does: the difference of merged parameters to one state's earlier ones would say nothing
    previous = {
        f"previous.{n}": a for n, a in groups["parameters"].items() if "log_eta" in heaviest.adaptation
    }
    return dataclasses.replace(heaviest, **groups, adaptation={**heaviest.adaptation, **previous})


def _alike(a: MemoryState, b: MemoryState) -> None:
    for group in ("parameters", "momentum"):
        shapes = [{n: tuple(x.shape) for n, x in getattr(s, group).items()} for s in (a, b)]
        if shapes[0] != shapes[1]:
            raise InvalidParamError(
                f"the states differ in their {group}: {shapes[0]} and {shapes[1]}", key=group
            )
    if "origin" in a.parameters and not all(
        np.array_equal(to_host(a.parameters[name]), to_host(b.parameters[name])) for name in ("P", "origin")
    ):
        raise InvalidParamError(
            "the states were whitened by different texts, so that their matrices do not mean the same",
            key="states",
            hint="Merge memories that began with the same text.",
        )


@quiet
def matrix_distance(a: Array, b: Array, lead: int = 0) -> Distance:
    """Compare two arrays (*batch, ...) of one shape over all axes but the first ``lead``.

    >>> d = matrix_distance(np.array([[3.0, 0.0]]), np.array([[0.0, 4.0]]))
    >>> float(d.max_abs), float(d.relative), float(d.cosine)  # 4; 5 / 3; orthogonal
    (4.0, 1.6666666666666667, 0.0)
    """
    x, y = (to_host(array).astype(np.float64) for array in (a, b))
    axes = tuple(range(lead, x.ndim))
    greatest = np.abs(y - x).max(axis=axes, initial=0.0)
    (a, of_a), (b, _), (d, of_d) = (_scaled(z, axes) for z in (x, y, y - x))
    norm_a, norm_b, norm_d = (np.sqrt((z * z).sum(axis=axes)) for z in (a, b, d))
    more = (of_d - of_a).reshape(norm_a.shape)
    relative = np.where(norm_d == 0, 0.0, np.ldexp(norm_d / norm_a, more))
    product = norm_a * norm_b
    cosine = (a * b).sum(axis=axes) / product
    cosine = np.where(product > 0, np.clip(cosine, -1, 1), 1.0 * (norm_a == norm_b))
    return Distance(greatest, relative, cosine)


def _scaled(x: HostArray, axes: tuple[int, ...]) -> tuple[HostArray, np.ndarray[Any, Any]]:
    """Return x / 2^e and e, with axes of length 1: 0 where the squares of x fit into float64, as they nearly always do.

    Divided by a power of two, numbers keep their digits.
    """
    exponent = np.frexp(np.abs(x).max(axis=axes, keepdims=True, initial=0.0))[1]
    exponent = np.where(np.abs(exponent) < _SQUARED, 0, exponent)
    return (np.ldexp(x, -exponent) if exponent.any() else x), exponent


def _plain(value: Any) -> Any:
    """Turn arrays into lists and scalars, at any depth."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return value.tolist() if isinstance(value, np.ndarray) else value
