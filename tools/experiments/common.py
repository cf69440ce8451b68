"""What the experiments share: seeded data, means over seeds, the look of a figure, where results lie.

An experiment is a module with ``run(seeds, quick) -> rows``, ``summary(rows) -> rows`` (the few numbers that
the README shows) and ``figure(rows)``. Rows are flat dictionaries, one per seed and measurement. Seeds are
the leading axis of one batched memory, so that they cost little more than one.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from atlas_kit.memory.capacity import accuracy as accuracy
from atlas_kit.memory.capacity import relative_error as relative_error

Row = dict[str, Any]
RESULTS = Path(__file__).resolve().parent / "results"

# Okabe and Ito's palette: told apart with every common kind of colour vision, and in grey by lightness.
BLUE, VERMILLION, GREEN, ORANGE, PINK, SKY, BLACK = (
    "#0072B2", "#D55E00", "#009E73", "#E69F00", "#CC79A7", "#56B4E9", "#000000"
)  # fmt: skip
GREY = "#777777"


# ---- data


def normal(seeds: Sequence[int], stream: int, *shape: int) -> np.ndarray:
    """Return standard normal numbers (seeds, *shape), float32; a seed's numbers do not depend on its company."""
    draws = [np.random.default_rng((seed, stream)).standard_normal(shape) for seed in seeds]
    return np.stack(draws).astype(np.float32)


def unit(x: np.ndarray) -> np.ndarray:
    """Return x with its last axis scaled to length 1."""
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


def rotations(seeds: Sequence[int], stream: int, d: int) -> np.ndarray:
    """Return random orthogonal matrices (seeds, d, d): a key -> value map that keeps lengths."""
    return np.linalg.qr(normal(seeds, stream, d, d).astype(np.float64))[0].astype(np.float32)


# ---- measures


def slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the exponent b of the power law y = a x^b that fits best."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


# ---- rows


def select(rows: Iterable[Row], **want: Any) -> list[Row]:
    """Return the rows that have these values."""
    return [row for row in rows if all(row.get(key) == value for key, value in want.items())]


def distinct(rows: Iterable[Row], key: str) -> list[Any]:
    """Return the values of a column in the order in which they appear."""
    return list(dict.fromkeys(row[key] for row in rows))


def over_seeds(rows: Iterable[Row], by: Sequence[str], value: str) -> list[Row]:
    """Return one row per combination of ``by`` with mean, least and most of ``value`` over the rest."""
    groups: dict[tuple[Any, ...], list[float]] = {}
    for row in rows:
        groups.setdefault(tuple(row[key] for key in by), []).append(row[value])
    return [
        {**dict(zip(by, key, strict=True)), "mean": float(np.mean(v)), "low": min(v), "high": max(v)}
        for key, v in groups.items()
    ]


def best(rows: Sequence[Row], by: Sequence[str], over: Sequence[str], value: str) -> list[Row]:
    """Keep, for each combination of ``by``, the rows of the setting ``over`` with the least mean ``value``."""
    kept = []
    for key in dict.fromkeys(tuple(row[name] for name in by) for row in rows):
        group = select(rows, **dict(zip(by, key, strict=True)))
        means = over_seeds(group, over, value)
        winner = min(means, key=lambda row: row["mean"] if math.isfinite(row["mean"]) else math.inf)
        kept += select(group, **{name: winner[name] for name in over})
    return kept


def load(name: str, folder: Path = RESULTS) -> list[Row]:
    """Read an experiment's rows back from its CSV file."""
    with (folder / f"{name}.csv").open(newline="", encoding="utf-8") as stream:
        return [{key: _value(text) for key, text in row.items()} for row in csv.DictReader(stream)]


def _value(text: str) -> Any:
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


# ---- figures


def canvas(
    title: str, panels: int = 2, height: float = 4.2, lines: int = 1, **options: Any
) -> tuple[Any, Any]:
    """Return a white figure with ``lines`` times ``panels`` axes under a title that says what was found."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, height), layout="constrained", facecolor="white")
    axes = figure.subplots(lines, panels, squeeze=False, **options).ravel()
    figure.suptitle(title, x=0.012, ha="left", fontsize=11.5, fontweight="bold")
    for ax in axes:
        ax.spines[["top", "right"]].set_visible(False)
        ax.grid(visible=True, color="#e6e6e6", linewidth=0.7)
        ax.set_axisbelow(True)
        ax.tick_params(labelsize=9)
    return figure, axes


def label(ax: Any, x: str, y: str, title: str = "") -> None:
    """Name the axes of one panel."""
    ax.set_xlabel(x, fontsize=9.5)
    ax.set_ylabel(y, fontsize=9.5)
    if title:
        ax.set_title(title, fontsize=10, loc="left")


def line(
    ax: Any,
    rows: Sequence[Row],
    x: str,
    y: str,
    colour: str,
    name: str = "",
    band: float = 0.15,
    **options: Any,
) -> None:
    """Draw the mean over seeds, and a band from the least to the most (none for ``band=0``)."""
    points = sorted(over_seeds(rows, [x], y), key=lambda row: row[x])
    at = [row[x] for row in points]
    style = {"linewidth": 1.8, "marker": "o", "markersize": 3.5, **options}
    ax.plot(at, [row["mean"] for row in points], color=colour, label=name or None, **style)
    if band:
        low, high = ([r[end] for r in points] for end in ("low", "high"))
        ax.fill_between(at, low, high, color=colour, alpha=band, lw=0)


def entries(ax: Any) -> tuple[list[Any], list[str]]:
    """Return handles and names for a legend, from the line that ends highest to the one that ends lowest."""
    named = zip(*ax.get_legend_handles_labels(), strict=True)
    handles, names = zip(*sorted(named, key=lambda entry: -entry[0].get_ydata()[-1]), strict=True)
    return list(handles), list(names)


def plain_ticks(axis: Any, at: Sequence[float], text: Callable[[float], str] = "{:g}".format) -> None:
    """Put ticks of a logarithmic axis where the measurements are, as plain numbers."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(list(at), [text(value) for value in at])
    axis.set_minor_locator(NullLocator())
