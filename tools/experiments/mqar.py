"""Associative recall of many pairs from one reading, for every preset.

Claim (arXiv 2505.23735, section 6, on the MQAR task of Arora and others): the more a memory learns about its context
(Omega rule, polynomial features, Muon), the more pairs it recalls; the paper's Atlas comes close to attention.

Set-up: 128 key words and 128 value words with random embeddings of length 1, d_k = d_v = 16. A sequence shows pairs
(key word, value word), every key word once, and then asks for values; an answer is right when the read is nearest to
the right one of the 128 value words. "pairs": 4 to 64 pairs, all asked. "length": 8 pairs are asked, and 0 to 112
that nobody asks for follow them. Presets run once over the sequence with their own rates; attention is the softmax
over all pairs (the library's exact cache, sharpness 30). "1/i!": the paper's first polynomial coefficients (1, 1,
1/2) instead of the presets' (0, 1/2, 1). Nothing is trained: the paper's models have trained projections, gates and
rates, so levels cannot be compared with its table, only the order of the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.memory import Features, Memory, MemoryConfig, Polynomial, presets
from tools.experiments import common
from tools.experiments.common import Row

CLAIM = "Omega rule, polynomial features and Muon each recall more pairs; Atlas comes close to attention (section 6)"
D, WORDS, ASKED = 16, 128, 8
PAIRS, FILLERS = (4, 8, 12, 16, 24, 32, 48, 64), (0, 8, 24, 56, 112)
ATTENTION, FIRST = "attention", "omega_net, 1/i!"
LINES = {
    ATTENTION: (common.BLACK, "-"),
    "linear_attention": (common.GREY, ":"),
    "delta_rule": (common.SKY, "-"),
    "titans": (common.BLUE, "--"),
    "omega_net": (common.GREEN, "-"),
    FIRST: (common.GREEN, "--"),
    "atlas": (common.VERMILLION, "-"),
    "atlas_pp": (common.PINK, "-"),
}


def run(seeds: Sequence[int] = (0, 1, 2, 3, 4), quick: bool = False) -> list[Row]:
    """Return rows of part ("pairs" or "length"), memory, pairs, length, seed, accuracy."""
    rows = []
    names = (ATTENTION, "delta_rule", "titans", "omega_net", FIRST) if quick else tuple(LINES)
    for name in names:
        for pairs in (8, 32) if quick else PAIRS:
            rows += _recall("pairs", name, pairs, 0, seeds)
        for filler in (0, 56) if quick else FILLERS:
            rows += _recall("length", name, ASKED, filler, seeds)
    return rows


def _recall(part: str, name: str, asked: int, filler: int, seeds: Sequence[int]) -> list[Row]:
    key_words, value_words = (common.unit(common.normal(seeds, stream, WORDS, D)) for stream in (1, 2))
    draws = [np.random.default_rng((seed, 3)) for seed in seeds]
    length = asked + filler
    words = np.stack([rng.permutation(WORDS)[:length] for rng in draws])
    answers = np.stack([rng.integers(0, WORDS, length) for rng in draws])
    keys = np.take_along_axis(key_words, words[..., None], axis=1)
    values = np.take_along_axis(value_words, answers[..., None], axis=1)
    y = _read(name, keys, values, keys[:, :asked])
    right = common.accuracy(y, answers[:, :asked], value_words)
    return [
        {"part": part, "memory": name, "pairs": asked, "length": length, "seed": seed, "accuracy": float(a)}
        for seed, a in zip(seeds, right, strict=True)
    ]


def _read(name: str, keys: np.ndarray, values: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """Return what a memory reads that saw the pairs once."""
    if name == ATTENTION:
        memory = Memory(MemoryConfig(D, D, window_size=keys.shape[1]))
        state, _ = memory.observe(memory.init(len(keys)), keys, values)
        return memory.lookup(state, queries).values()
    if name == FIRST:
        config = presets.omega_net(D, D, features=Features(map=Polynomial(degree=2), normalize=True))
    else:
        config = presets.PRESETS[name](D, D)
    memory = Memory(config)
    state, _ = memory.observe(memory.init(len(keys)), keys, values)
    state, _ = memory.flush(state)
    return memory.read(state, queries)


def summary(rows: Sequence[Row]) -> list[Row]:
    """Return each memory's accuracy at some numbers of pairs and lengths."""
    out = []
    for name in common.distinct(rows, "memory"):
        group = common.select(rows, memory=name)
        means = common.over_seeds(common.select(group, part="pairs"), ["pairs"], "accuracy")
        at = {row["pairs"]: row["mean"] for row in means}
        by_length = {
            row["length"]: row["mean"]
            for row in common.over_seeds(common.select(group, part="length"), ["length"], "accuracy")
        }
        out.append(
            {"memory": name, **{f"{n} pairs": round(at[n], 2) for n in (8, 16, 32, 64) if n in at},
             **{f"{ASKED} oldest of {n}": round(by_length[n], 2) for n in (16, 32, 120) if n in by_length}}
        )  # fmt: skip
    return out


def figure(rows: Sequence[Row]) -> Any:
    """Draw accuracy over the number of pairs, and over the length of the sequence."""
    fig, axes = common.canvas(
        "Read once, weighted squares and the Omega rule keep 9 of 10 pairs; older rules lose most",
        sharey=True, height=4.6,
    )  # fmt: skip
    for name in common.distinct(rows, "memory"):
        colour, dash = LINES[name]
        for ax, part, x in ((axes[0], "pairs", "pairs"), (axes[1], "length", "length")):
            common.line(
                ax, common.select(rows, memory=name, part=part), x, "accuracy", colour, name, 0, ls=dash
            )
    axes[0].set_xscale("log")
    axes[1].set_xscale("log")
    common.plain_ticks(axes[0].xaxis, common.distinct(common.select(rows, part="pairs"), "pairs"))
    common.plain_ticks(axes[1].xaxis, common.distinct(common.select(rows, part="length"), "length"))
    common.label(
        axes[0], "pairs in the sequence, all asked", "accuracy (chance: 1/128)", f"Words of {D} numbers"
    )
    common.label(axes[1], "pairs in the sequence, the 8 oldest asked", "", "Forgetting")
    fig.legend(*common.entries(axes[0]), loc="outside right center", fontsize=8.5, frameon=False)
    return fig
