"""How many pairs a memory holds.

Claim (arXiv 2505.23735): a matrix memory holds O(d_k) pairs (proposition 1), with features of degree p O(d_k^p)
(proposition 2), and a deep memory more than a matrix on the same input (theorem 1).

Set-up: random keys and values of length 1, d_v = d_k, hidden width 4 d_k. A memory sees all pairs 300 times
("converged": full-batch steps; heavy-ball rates from the features' spectrum for the matrices, which least squares
checks; Muon with a falling step for the MLPs) or once ("one pass": the Omega rule with c = 16, best of three step
sizes). Two measures, because they differ: ``error`` ||M(k) - v|| / ||v|| at most 0.3, and ``accuracy`` of the nearest
stored value at least 0.9. "degree 2, reweighted" has the coefficients (0, 1/2, 1) instead of the paper's first values
(1, 1, 1/2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.memory import (
    Features,
    GatedMLP,
    Identity,
    Matrix,
    MemoryConfig,
    Polynomial,
    ResidualMLP,
    capacity,
)
from tools.experiments import common
from tools.experiments.common import Row

CLAIM = (
    "O(d_k) pairs in a matrix, O(d_k^p) with features of degree p, more in a deep memory (prop. 1, 2; th. 1)"
)
ERROR, ACCURACY = 0.3, 0.9
MODELS = {
    "matrix": (Features(map=Identity()), Matrix()),
    "degree 2": (Features(map=Polynomial(degree=2), normalize=True), Matrix()),
    "degree 2, reweighted": (
        Features(map=Polynomial(degree=2, coefficients=(0.0, 0.5, 1.0)), normalize=True),
        Matrix(),
    ),
    "MLP": (Features(map=Identity()), ResidualMLP(residual=False)),
    "gated MLP": (Features(map=Identity()), GatedMLP(residual=False)),
}
COLOURS = {
    "matrix": common.BLUE,
    "degree 2": common.VERMILLION,
    "degree 2, reweighted": common.ORANGE,
    "MLP": common.GREEN,
    "gated MLP": common.PINK,
}
_SHARES = (0.5, 0.7, 0.85, 1.0, 1.2, 1.5, 2.0, 3.0)  # of the pairs that the free numbers allow
_ONE_PASS = (0.25, 0.375, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8)  # times d_k
_STREAMS = 6  # per seed in one pass, where the number of pairs is small


def run(seeds: Sequence[int] = (0, 1, 2), quick: bool = False) -> list[Row]:
    """Return recall over the number of pairs: rows of model, d_k, training, eta, pairs, seed, error, accuracy."""
    rows = []
    models = ("matrix", "degree 2", "MLP") if quick else tuple(MODELS)
    for model in models:
        linear = isinstance(MODELS[model][1], Matrix)
        for d in (8,) if quick else (4, 8, 16, 24):
            sizes = [share * free_numbers(model, d) for share in _SHARES]
            for training in ("least squares", "converged") if linear else ("converged",):
                rows += _until_it_fails(model, d, training, {}, seeds, sizes)
            if quick:
                continue
            sizes = [times * d for times in _ONE_PASS]
            # A step of Muon has a fixed size, and changes a read by eta times the length of the hidden layer.
            muon = [round(e / math.sqrt(4 * d), 3) for e in (0.2, 0.4, 0.8)]
            for eta in (0.15, 0.3, 0.6) if linear else muon:
                rows += _until_it_fails(model, d, "one pass", {"eta": eta}, seeds, sizes)
    return rows


def free_numbers(model: str, d: int) -> float:
    """Return the parameters per component of a value: exact recall of more pairs would need more equations."""
    return capacity.free_numbers(_config(model, d))


def _until_it_fails(
    model: str,
    d: int,
    training: str,
    settings: dict[str, float],
    seeds: Sequence[int],
    sizes: Sequence[float],
) -> list[Row]:
    """Store more and more pairs until both measures fail for every seed."""
    rows = []
    for pairs in dict.fromkeys(max(2, round(size)) for size in sizes):
        streams = _STREAMS if training == "one pass" else 1
        keys, values = (
            common.unit(common.normal(seeds, stream, streams, pairs, d)).reshape(-1, pairs, d)
            for stream in (1, 2)
        )
        y = _TRAININGS[training](model, keys, values, **settings)
        error, right = (
            measure.reshape(-1, streams).mean(axis=1)
            for measure in (common.relative_error(y, values), common.accuracy(y, np.arange(pairs), values))
        )
        rows += [
            {"model": model, "d_k": d, "training": training, "eta": settings.get("eta", ""), "pairs": pairs,
             "seed": seed, "error": float(e), "accuracy": float(a)}
            for seed, e, a in zip(seeds, error, right, strict=True)
        ]  # fmt: skip
        if (right < ACCURACY).all() and (error > ERROR).all() and pairs > 1.5 * d:
            break
    return rows


def _config(model: str, d: int, **settings: Any) -> MemoryConfig:
    features, module = MODELS[model]
    return MemoryConfig(d, d, features, module, **settings)


def _least_squares(model: str, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the best reads that any matrix could give."""
    return capacity.least_squares(_config(model, keys.shape[-1]), keys, values)


def _converged(model: str, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the reads after many full-batch steps: Muon for an MLP."""
    config = _config(model, keys.shape[-1], use_muon=not isinstance(MODELS[model][1], Matrix))
    return capacity.last(capacity.converge(config, keys, values)).reads()


def _one_pass(model: str, keys: np.ndarray, values: np.ndarray, eta: float) -> np.ndarray:
    """Return the reads after one pass: gradient descent for a matrix, Muon for an MLP; a step per token."""
    config = _config(model, keys.shape[-1], eta=eta, omega_window=16)
    if not isinstance(config.module, Matrix):
        config = config.replace(use_muon=True, guard=True)
    return capacity.last(capacity.stream(config, keys, values)).reads()


_TRAININGS = {"least squares": _least_squares, "converged": _converged, "one pass": _one_pass}


def capacities(rows: Sequence[Row]) -> list[Row]:
    """Return the most pairs by each measure: rows of model, d_k, training, measure, eta, seed, pairs (NaN: beyond)."""
    out = []
    keys = dict.fromkeys((r["model"], r["d_k"], r["training"], r["eta"], r["seed"]) for r in rows)
    for model, d, training, eta, seed in keys:
        group = common.select(rows, model=model, d_k=d, training=training, eta=eta, seed=seed)
        pairs = [row["pairs"] for row in group]
        lost = [1 - row["accuracy"] for row in group]
        for measure, y, level in (
            ("error", [row["error"] for row in group], ERROR),
            ("accuracy", lost, 1 - ACCURACY),
        ):
            out.append(
                {"model": model, "d_k": d, "training": training, "measure": measure, "eta": eta, "seed": seed,
                 "pairs": capacity.last_within(pairs, y, level)}
            )  # fmt: skip
    return out


def _by_width(found: Sequence[Row], model: str, training: str, measure: str) -> list[Row]:
    """Return mean, least and most pairs at each d_k, of the step size that holds most; NaN is left out."""
    rows = []
    for d in common.distinct(common.select(found, model=model), "d_k"):
        group = common.select(found, model=model, d_k=d, training=training, measure=measure)
        means = [row for row in common.over_seeds(group, ["d_k", "eta"], "pairs") if np.isfinite(row["mean"])]
        if means:
            rows.append(max(means, key=lambda row: row["mean"]))
    return rows


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return the capacity at d_k = 8 and 16 in pairs, and its exponent over d_k."""
    found = capacities(rows)
    out = []
    for training, measure in (
        ("least squares", "error"), ("converged", "error"), ("converged", "accuracy"), ("one pass", "accuracy")
    ):  # fmt: skip
        for model in common.distinct(rows, "model"):
            points = _by_width(found, model, training, measure)
            if not points:
                continue
            at = {row["d_k"]: row["mean"] for row in points}
            widths = list(at)
            entry = {"memory": model, "training": training, "measure": measure}
            entry |= {f"pairs at d_k={d}": round(at[d], 1) if d in at else "" for d in (8, 16)}
            entry["free numbers at 16"] = round(free_numbers(model, 16))
            entry["exponent"] = round(common.slope(widths, list(at.values())), 2) if len(widths) > 2 else ""
            out.append(entry)
    return out


def figure(rows: Sequence[Row]) -> Any:
    """Draw capacity over d_k by both measures, after many passes and after one."""
    found = capacities(rows)
    fig, axes = common.canvas(
        "Squares of the key lift a matrix from d_k pairs to d_k²/2, once training converges",
        panels=3, sharex=True, sharey=True,
    )  # fmt: skip
    widths = common.distinct(rows, "d_k")
    panels = (
        ("converged", "error", f"Converged: error at most {ERROR}"),
        ("converged", "accuracy", f"Converged: nearest value, accuracy {ACCURACY}"),
        ("one pass", "accuracy", f"One pass: nearest value, accuracy {ACCURACY}"),
    )
    for ax, (training, measure, title) in zip(axes, panels, strict=True):
        ax.set_xscale("log")
        ax.set_yscale("log")
        for model in common.distinct(rows, "model"):
            points = _by_width(found, model, training, measure)
            if not points:
                continue
            at, mean = [r["d_k"] for r in points], [r["mean"] for r in points]
            ax.plot(at, mean, color=COLOURS[model], lw=1.8, marker="o", ms=4, label=model)
            ax.fill_between(
                at,
                [r["low"] for r in points],
                [r["high"] for r in points],
                color=COLOURS[model],
                alpha=0.15,
                lw=0,
            )
        d = np.array([min(widths), max(widths)], float)
        ax.plot(d, d, color=common.GREY, lw=1, ls=":")
        d = np.linspace(d[0], d[-1], 20)
        ax.plot(d, d**2 / 2, color=common.GREY, lw=1, ls="--")
        common.label(ax, "width of a key, d_k", "", title)
        common.plain_ticks(ax.xaxis, widths)
    axes[0].set_ylabel("pairs held", fontsize=9.5)
    last = max(widths)
    axes[0].annotate(
        "d_k", (last, last), xytext=(-4, -12), textcoords="offset points", fontsize=8.5, color=common.GREY
    )
    axes[0].annotate(
        "d_k²/2",
        (5.2, 5.2**2 / 2),
        xytext=(0, -12),
        textcoords="offset points",
        fontsize=8.5,
        color=common.GREY,
    )
    axes[0].legend(*common.entries(axes[0]), fontsize=8.5, frameon=False, loc="upper left")
    return fig
