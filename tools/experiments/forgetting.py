"""What decay costs, and what it buys.

Claim (arXiv 2505.23735, equations 10 and 32): the decay alpha lets a memory of fixed size forget, so that it adapts
when the context changes.

Set-up: d_k = d_v = 32, c = 1, token by token, for the Hebbian rule (linear attention) and the Delta rule. "age": 256
random pairs, each seen once, then recall of every pair over its age. "switch": 24 keys that come again and again for
768 tokens; after half of them every key gets another value; each token is read before it is learned. Accuracy: the
share of reads that point most at their own value, among all 256 values, or all 48 old and new ones.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.memory import Memory, presets
from tools.experiments import common
from tools.experiments.common import Row

CLAIM = "decay lets a memory of fixed size forget, and so adapt (eq. 10, 32)"
D, TOKENS, KEYS, SWITCH_TOKENS, BIN = 32, 256, 24, 768, 16
ALPHAS = (1.0, 0.99, 0.97, 0.9)
RULES = {"Hebbian": presets.linear_attention, "Delta rule": presets.delta_rule}
COLOURS = dict(zip(ALPHAS, (common.BLACK, common.BLUE, common.GREEN, common.VERMILLION), strict=True))


def run(seeds: Sequence[int] = (0, 1, 2, 3, 4), quick: bool = False) -> list[Row]:
    """Return rows of part ("age" or "switch"), rule, alpha, seed, at (age or token, middle of 16), accuracy."""
    rows = []
    for rule, preset in RULES.items():
        for alpha in (1.0, 0.97) if quick else ALPHAS:
            memory = Memory(preset(D, D, alpha=alpha))
            rows += _age(rule, alpha, memory, seeds) + _switch(rule, alpha, memory, seeds)
    return rows


def _age(rule: str, alpha: float, memory: Memory, seeds: Sequence[int]) -> list[Row]:
    keys, values = (common.unit(common.normal(seeds, stream, TOKENS, D)) for stream in (1, 2))
    state, _ = memory.observe(memory.init(len(seeds)), keys, values)
    right = _right(memory.read(state, keys), values, np.arange(TOKENS))[:, ::-1]  # by age
    return _binned("age", rule, alpha, seeds, right)


def _switch(rule: str, alpha: float, memory: Memory, seeds: Sequence[int]) -> list[Row]:
    keys, old, new = (common.unit(common.normal(seeds, stream, KEYS, D)) for stream in (3, 4, 5))
    half = SWITCH_TOKENS // 2
    values = np.concatenate([old, new], axis=1)  # (R, 48, d): a key's first and second value
    order = [np.random.default_rng((seed, 6)).integers(0, KEYS, SWITCH_TOKENS) for seed in seeds]
    index = np.stack(order)
    answer = index + KEYS * (np.arange(SWITCH_TOKENS) >= half)
    stream = (
        np.take_along_axis(keys, index[..., None], axis=1),
        np.take_along_axis(values, answer[..., None], axis=1),
    )
    state, reads = memory.init(len(seeds)), []
    for t in range(SWITCH_TOKENS):  # each read before its token is learned
        reads.append(memory.read(state, stream[0][:, t : t + 1]))
        state, _ = memory.observe(state, stream[0][:, t : t + 1], stream[1][:, t : t + 1])
    right = _right(np.concatenate(reads, axis=1), values, answer)
    return _binned("switch", rule, alpha, seeds, right)


def _right(y: np.ndarray, choices: np.ndarray, answers: np.ndarray) -> np.ndarray:
    """Return whether each read points most at its own value, (R, n); length does not count: decay shrinks it."""
    return (y @ choices.swapaxes(-1, -2)).argmax(axis=-1) == answers


def _binned(part: str, rule: str, alpha: float, seeds: Sequence[int], right: np.ndarray) -> list[Row]:
    means = right.reshape(len(seeds), -1, BIN).mean(axis=-1)
    return [
        {
            "part": part,
            "rule": rule,
            "alpha": alpha,
            "seed": seed,
            "at": BIN * j + BIN // 2,
            "accuracy": float(value),
        }
        for seed, row in zip(seeds, means, strict=True)
        for j, value in enumerate(row)
    ]


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return recall of young and old pairs, and before, just after and well after the switch."""
    half = SWITCH_TOKENS // 2
    spans = (
        ("age", "age below 32", 0, 32), ("age", "age from 128", 128, TOKENS),
        ("switch", "before the switch", half - 128, half), ("switch", "to 64 after", half, half + 64),
        ("switch", "from 256 after", half + 256, SWITCH_TOKENS),
    )  # fmt: skip
    out = []
    for rule in common.distinct(rows, "rule"):
        for alpha in common.distinct(rows, "alpha"):
            group = common.select(rows, rule=rule, alpha=alpha)
            entry: Row = {"rule": rule, "alpha": alpha}
            for part, name, low, high in spans:
                inside = [r["accuracy"] for r in group if r["part"] == part and low <= r["at"] < high]
                entry[name] = round(float(np.mean(inside)), 2)
            out.append(entry)
    return out


def figure(rows: Sequence[Row]) -> Any:
    """Draw recall over age and over the switch, a line of panels per rule."""
    fig, axes = common.canvas(
        "Decay rescues the Hebbian rule when values change; the Delta rule forgets by itself",
        panels=2, lines=2, height=6.8, sharey=True,
    )  # fmt: skip
    for i, rule in enumerate(common.distinct(rows, "rule")):
        age, switch = axes[2 * i : 2 * i + 2]
        for alpha in common.distinct(rows, "alpha"):
            group = common.select(rows, rule=rule, alpha=alpha)
            common.line(
                age,
                common.select(group, part="age"),
                "at",
                "accuracy",
                COLOURS[alpha],
                f"alpha {alpha:g}",
                0.1,
            )
            common.line(
                switch,
                common.select(group, part="switch"),
                "at",
                "accuracy",
                COLOURS[alpha],
                band=0.1,
                markersize=0,
            )
        switch.axvline(SWITCH_TOKENS // 2, color=common.GREY, lw=1, ls=":")
        common.label(
            age,
            "age of a pair when it is read [tokens]",
            "accuracy",
            f"{rule}: {TOKENS} pairs, each seen once",
        )
        common.label(
            switch, "token", "", f"{rule}: {KEYS} keys that return; new values at token {SWITCH_TOKENS // 2}"
        )
    axes[0].set_ylim(-0.02, 1.04)
    axes[0].legend(fontsize=8.5, frameon=False)
    return fig
