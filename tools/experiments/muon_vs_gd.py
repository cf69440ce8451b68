"""Whether Muon learns what gradient descent leaves out, when keys are ill-conditioned.

Claim (arXiv 2505.23735, equations 32 and 33): Muon approximates second-order information, so that the memory is
optimised better than by gradient descent at the same cost in gradients.

Set-up: d_k = d_v = 32; component i of a key has the standard deviation i^-s, so that the keys' covariance has the
condition 32^(2s); values are a fixed rotation of the keys. 512 tokens, the Omega rule with c = 16, momentum 0 or 0.9,
every step size of a sweep, for a matrix and an MLP of 64 hidden units. Two errors: of tokens as they come, before
each is learned (``online``, where the strong directions count most), and of keys with every direction alike
(``rare``).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.memory import Features, Identity, Matrix, Memory, MemoryConfig, ResidualMLP, statistics
from tools.experiments import common
from tools.experiments.common import Row

CLAIM = "Muon (eq. 33) optimises the memory better than gradient descent on the same gradients"
D, TOKENS, WINDOW, BIN = 32, 512, 16, 64
MODULES = {"matrix": Matrix(), "MLP": ResidualMLP(width=64, residual=False)}
ETAS = {
    "gradient descent": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
    "Muon": (0.001, 0.003, 0.01, 0.03, 0.1, 0.3),
}
SPREADS = (0.0, 0.5, 1.0, 1.5)
SHOWN = 1.0  # the spread whose course over the tokens is kept
LINES = {  # rule, momentum: colour, dash
    ("gradient descent", 0.0): (common.SKY, "--"),
    ("gradient descent", 0.9): (common.BLUE, "-"),
    ("Muon", 0.0): (common.VERMILLION, "-"),
    ("Muon", 0.9): (common.ORANGE, "--"),
}


def run(seeds: Sequence[int] = (0, 1, 2), quick: bool = False) -> list[Row]:
    """Return rows of module, condition, rule, momentum, eta, seed, token, online, rare, effective_rank, rejected."""
    rows = []
    for module in ("matrix",) if quick else MODULES:
        for spread in (SHOWN,) if quick else SPREADS:
            for rule in ETAS:
                for momentum in (0.0,) if quick else (0.0, 0.9):
                    rows += _sweep(module, spread, rule, momentum, seeds)
    return rows


def data(seeds: Sequence[int], spread: float) -> tuple[np.ndarray, ...]:
    """Return keys and values of a stream, and of keys with all directions alike."""
    scale = np.arange(1, D + 1, dtype=np.float32) ** np.float32(-spread)
    scale /= np.linalg.norm(scale)  # the mean square length of a key is 1
    maps = common.rotations(seeds, 3, D)
    keys, every = common.normal(seeds, 1, TOKENS, D) * scale, common.unit(common.normal(seeds, 2, 256, D))
    return keys, keys @ maps, every, every @ maps


def _sweep(module: str, spread: float, rule: str, momentum: float, seeds: Sequence[int]) -> list[Row]:
    """Learn one stream per seed and step size, all as rows of one batch."""
    sweep = np.repeat(ETAS[rule], len(seeds))
    keys, values, every, answers = (np.tile(a, (len(ETAS[rule]), 1, 1)) for a in data(seeds, spread))
    config = MemoryConfig(
        D, D, Features(map=Identity(), normalize_keys=False), MODULES[module], theta=momentum,
        omega_window=WINDOW, use_muon=rule == "Muon",
    )  # fmt: skip
    memory = Memory(config)
    state, rates = memory.init(len(sweep)), np.tile(sweep[:, None], (1, BIN))
    size = (values**2).sum(axis=-1).mean(axis=1)
    rows = []
    for start in range(0, TOKENS, BIN):
        now = slice(start, start + BIN)
        state, report = memory.observe(state, keys[:, now], values[:, now], eta=rates)
        if spread != SHOWN and start + BIN < TOKENS:
            continue
        online = np.sqrt(2 * report.loss.astype(np.float64).mean(axis=1) / size)
        rare = common.relative_error(memory.read(state, every), answers)
        rank = statistics(config, state).matrices["W" if module == "matrix" else "W_out"].effective_rank
        rows += [
            {"module": module, "condition": round(D ** (2 * spread)), "rule": rule, "momentum": momentum,
             "eta": float(eta), "seed": seeds[i % len(seeds)], "token": start + BIN, "online": _bounded(online[i]),
             "rare": _bounded(rare[i]), "effective_rank": float(rank[i]),
             "rejected": int(state.counters["rejected"][i])}
            for i, eta in enumerate(sweep)
        ]  # fmt: skip
    return rows


def _bounded(error: float) -> float:
    """Return 10 for the error of a memory that diverged."""
    return float(min(error, 10.0)) if np.isfinite(error) else 10.0


def _tuned(rows: Sequence[Row], measure: str) -> list[Row]:
    """Return the end of the stream at the best step size of every module, condition, rule and momentum."""
    ends = common.select(rows, token=max(row["token"] for row in rows))
    return common.best(ends, ["module", "condition", "rule", "momentum"], ["eta"], measure)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return what each rule reaches with its best step size, tuned for each measure apart."""
    out = []
    online, rare = (_tuned(rows, measure) for measure in ("online", "rare"))
    shown = round(D ** (2 * SHOWN))
    keys = ((m, c) for m in common.distinct(rows, "module") for c in common.distinct(rows, "condition"))
    for module, condition in keys:
        if module != "matrix" and condition != shown:
            continue
        for rule, momentum in LINES:
            want = {"module": module, "condition": condition, "rule": rule, "momentum": momentum}
            a, b = common.select(online, **want), common.select(rare, **want)
            if not a:
                continue
            early = common.select(rows, **want, eta=b[0]["eta"], token=2 * BIN)
            rank = round(_mean(early, "effective_rank"), 1) if early else ""
            out.append(
                {"memory": module, "condition": condition, "rule": rule, "momentum": momentum,
                 "online error": _mean(a, "online"), "eta (online)": a[0]["eta"],
                 "rare error": _mean(b, "rare"), "eta (rare)": b[0]["eta"],
                 "rank after 128 tokens": rank}
            )  # fmt: skip
    return out


def _mean(rows: Sequence[Row], key: str) -> float:
    value = float(np.mean([row[key] for row in rows]))
    return round(value, 3) if value >= 0.01 else float(f"{value:.1g}")


def figure(rows: Sequence[Row]) -> Any:
    """Draw error over tokens, over step sizes and over the condition, and the memory's effective rank."""
    fig, axes = common.canvas(
        "Ill-conditioned keys are where Muon pays; on well-conditioned ones gradient descent is better",
        panels=2, lines=2, height=7.4,
    )  # fmt: skip
    shown = common.select(rows, module="matrix", condition=round(D ** (2 * SHOWN)))
    tuned = _tuned(rows, "rare")
    last = max(row["token"] for row in rows)
    for (rule, momentum), (colour, dash) in LINES.items():
        want = {"rule": rule, "momentum": momentum}
        best = common.select(tuned, module="matrix", condition=round(D ** (2 * SHOWN)), **want)
        if not best:
            continue
        name, style = f"{rule}, momentum {momentum:g}", {"ls": dash}
        course = common.select(shown, **want, eta=best[0]["eta"])
        common.line(axes[0], course, "token", "rare", colour, name, **style)
        common.line(axes[1], course, "token", "effective_rank", colour, **style)
        common.line(axes[2], common.select(shown, **want, token=last), "eta", "rare", colour, **style)
        for module, marker in (("matrix", "o"), ("MLP", "s")):
            group = common.select(tuned, module=module, **want)
            if group:
                common.line(axes[3], group, "condition", "rare", colour, marker=marker, markersize=5, **style)
    for ax in (axes[0], axes[2], axes[3]):
        ax.set_yscale("log")
        common.plain_ticks(ax.yaxis, (0.01, 0.03, 0.1, 0.3, 1, 3, 10))
    for ax in axes[2:]:
        ax.set_xscale("log")
    axes[0].set_ylim(0.003, 1.2)
    common.plain_ticks(axes[0].yaxis, (0.003, 0.01, 0.03, 0.1, 0.3, 1))
    axes[3].set_ylim(0.0002, 2)
    common.plain_ticks(axes[3].yaxis, (0.001, 0.01, 0.1, 1))
    common.plain_ticks(axes[2].xaxis, ETAS["gradient descent"])
    common.plain_ticks(axes[3].xaxis, common.distinct(rows, "condition"), "{:,}".format)
    error = "relative error, all directions alike"
    common.label(axes[0], "tokens learned", error, "Matrix, condition 1,024, best step size of each")
    common.label(axes[1], "tokens learned", "effective rank of W (at most 32)", "Directions in use")
    common.label(axes[2], "step size, eta", error, "Matrix, condition 1,024, after 512 tokens (10: diverged)")
    common.label(
        axes[3],
        "condition of the keys' covariance",
        error,
        "Best step size of each: matrix (dots), MLP (squares)",
    )
    axes[0].legend(*common.entries(axes[0]), fontsize=8.5, frameon=False)
    return fig
