"""Whether learning from the last c tokens beats learning from the last one, when tokens are alike.

Claim (arXiv 2505.23735, equation 9): a memory that is fitted to a window of the context (Omega rule) recalls the
context better than one fitted to the last token (the Delta rule, c = 1).

Set-up: a matrix memory, d_k = d_v = 32, token by token. Keys follow k_t = rho k_{t-1} + sqrt(1 - rho^2) n_t, scaled
to length 1, so that neighbours are alike when rho is near 1. Within a context of 256 tokens values are a fixed
rotation of the keys plus 10% noise; the stream is two contexts with different rotations. After the second: error
against the noiseless values of all its tokens, and of its last 16. For every c the step size is the best of a sweep.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.memory import Memory, presets
from tools.experiments import common
from tools.experiments.common import Row

CLAIM = "fitting the last c tokens recalls a context better than fitting the last one (eq. 9)"
D, CONTEXT, RECENT, NOISE = 32, 256, 16, 0.1
ETAS = (0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.0)
COLOURS = (common.SKY, common.BLUE, common.VERMILLION, common.BLACK)


def run(seeds: Sequence[int] = (0, 1, 2), quick: bool = False) -> list[Row]:
    """Return rows of rho, c, eta, seed, error (all tokens of the context), error_recent (its last 16)."""
    rows = []
    etas = (0.15, 0.6, 1.0) if quick else ETAS
    for rho in (0.95,) if quick else (0.0, 0.8, 0.95, 0.99):
        keys, values, clean = stream(seeds, rho)
        sweep = np.repeat(etas, len(seeds))  # every step size and seed is a row of one batch
        keys, values, clean = (np.tile(array, (len(etas), 1, 1)) for array in (keys, values, clean))
        rates = np.tile(sweep[:, None], (1, keys.shape[1]))
        for c in (1, 16) if quick else (1, 2, 4, 8, 16, 32, 64, 128, 256, 512):
            memory = Memory(presets.delta_rule(D, D, omega_window=c))
            state, _ = memory.observe(memory.init(len(sweep)), keys, values, eta=rates)
            y, truth = memory.read(state, keys[:, -CONTEXT:]), clean[:, -CONTEXT:]
            everything = common.relative_error(y, truth)
            recent = common.relative_error(y[:, -RECENT:], truth[:, -RECENT:])
            rows += [
                {"rho": rho, "c": c, "eta": float(eta), "seed": seeds[i % len(seeds)],
                 "error": float(everything[i]), "error_recent": float(recent[i])}
                for i, eta in enumerate(sweep)
            ]  # fmt: skip
    return rows


def stream(seeds: Sequence[int], rho: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return keys, values and noiseless values of two contexts, each (seeds, 512, 32)."""
    noise = common.normal(seeds, 1, 2 * CONTEXT, D)
    keys = noise.copy()
    for t in range(1, keys.shape[1]):
        keys[:, t] = rho * keys[:, t - 1] + math.sqrt(1 - rho * rho) * noise[:, t]
    keys = common.unit(keys)
    maps = [common.rotations(seeds, stream, D) for stream in (2, 3)]
    clean = np.concatenate([keys[:, :CONTEXT] @ maps[0], keys[:, CONTEXT:] @ maps[1]], axis=1)
    return keys, clean + NOISE * common.unit(common.normal(seeds, 4, 2 * CONTEXT, D)), clean


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return, per correlation, the Delta rule's error, the best window's and the longest window's."""
    out = []
    for rho in common.distinct(rows, "rho"):
        means = common.over_seeds(
            common.best(common.select(rows, rho=rho), ["c"], ["eta"], "error"), ["c"], "error"
        )
        recent = common.over_seeds(
            common.best(common.select(rows, rho=rho), ["c"], ["eta"], "error"), ["c"], "error_recent"
        )
        at, at_recent = ({row["c"]: row["mean"] for row in m} for m in (means, recent))
        winner = min(at, key=at.__getitem__)
        out.append(
            {"rho": rho, "error, c=1": round(at[1], 3), "best c": winner, "error, best c": round(at[winner], 3),
             "error, c=512": round(at[512], 3) if 512 in at else "",
             "last 16 tokens, c=1": round(at_recent[1], 3), "last 16 tokens, best c": round(at_recent[winner], 3)}
        )  # fmt: skip
    return out


def figure(rows: Sequence[Row]) -> Any:
    """Draw recall of the whole context and of its last tokens over c, one line per correlation."""
    fig, axes = common.canvas(
        "The more alike the tokens, the more a window helps, until it reaches past the context", sharey=True
    )
    tuned = common.best(rows, ["rho", "c"], ["eta"], "error")
    windows = common.distinct(rows, "c")
    for ax, value, title in (
        (axes[0], "error", f"All {CONTEXT} tokens of the context"),
        (axes[1], "error_recent", f"Its last {RECENT} tokens"),
    ):
        ax.set_xscale("log")
        ax.set_yscale("log")
        for rho, colour in zip(common.distinct(rows, "rho"), COLOURS, strict=False):
            common.line(ax, common.select(tuned, rho=rho), "c", value, colour, f"correlation {rho:g}")
        ax.axvline(CONTEXT, color=common.GREY, lw=1, ls=":")
        common.plain_ticks(ax.xaxis, windows)
        common.plain_ticks(ax.yaxis, (0.02, 0.05, 0.1, 0.2, 0.5, 1))
        common.label(ax, "tokens in the window, c  (1: Delta rule)", "", title)
    axes[0].set_ylabel("relative error of recall (1: nothing learned)", fontsize=9.5)
    axes[1].annotate(
        "length of\na context", (CONTEXT, axes[1].get_ylim()[1]), xytext=(-4, -4), textcoords="offset points",
        ha="right", va="top", fontsize=8.5, color=common.GREY,
    )  # fmt: skip
    axes[0].legend(fontsize=8.5, frameon=False)
    return fig
