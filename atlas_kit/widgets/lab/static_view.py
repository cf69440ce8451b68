"""``MemoryLab`` where nothing runs: as lines of text, as a figure for a paper, as HTML with the text coloured."""

from __future__ import annotations

import html
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.explorer.pooling import pool
from atlas_kit.llama.trace import EXPERTS
from atlas_kit.memory.statistics import matrix_statistics
from atlas_kit.widgets import colour, saved
from atlas_kit.widgets.base import CODE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.snapshots import Snapshots
    from atlas_kit.llama.trace import Trace
    from atlas_kit.llama.trace_frames import GivenWords, Words
    from atlas_kit.settings.atlas_settings import AtlasSettings
    from atlas_kit.widgets.lab.history import History
    from atlas_kit.widgets.lab.matrix_pane import MatrixPane
    from atlas_kit.widgets.lab.recall_pane import RecallPane


#: Okabe and Ito's colours, as ``static/lab/lab.css`` has them: model, memory, window; surprise.
COLOURS, SURPRISE = ("#6b6b6b", "#0072b2", "#e69f00"), (213, 94, 0)
#: Nats at which a token's colour is strongest, as in ``static/lab/text.js``.
FULL = 8.0
#: Tokens of the running mean, and of the text that a page shows.
SPAN, MOST_TOKENS = 256, 3000


class ShownRun(Protocol):
    """What is shown of any lab."""

    trace: Trace

    @property
    def words(self) -> Words | GivenWords:
        """How its tokens are spelled."""

    @property
    def history(self) -> History:
        """What came, and its losses."""

    @property
    def state(self) -> str:
        """What the run does."""

    @property
    def error(self) -> str:
        """What went wrong last, as a sentence, or nothing."""

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the moment."""


class ShownAttached(ShownRun, Protocol):
    """What is shown of a lab that looks on."""

    recalled: RecallPane


class ShownLab(ShownAttached, Protocol):
    """What is shown of a lab: ``MemoryLab``, which can do more."""

    session: AtlasSession
    matrices: MatrixPane

    @property
    def snapshots(self) -> Snapshots:
        """The memory at several moments of the run."""


def running_mean(values: Array, span: int = SPAN) -> Array:
    """Return the exponentially weighed mean (n, k) of values (n, k) over about ``span`` rows; NaN rows count nothing.

    >>> running_mean(np.array([[1.0], [3.0]]), 2).round(4).tolist()  # (1/2 * 1 + 3) / (1/2 + 1)
    [[1.0], [2.3333]]
    """
    keep, found = 1 - 1 / span, np.full(values.shape, np.nan)
    total, weight = np.zeros(values.shape[1]), 0.0
    for row, value in enumerate(values.astype(np.float64)):
        if not np.isnan(value).any():
            total, weight = keep * total + value, keep * weight + 1
        if weight:
            found[row] = total / weight
    return found


def named(settings: AtlasSettings) -> str:
    """Return what a run with some settings is called."""
    rate = f"learning rate {settings.learning_rate:.4g}" if settings.learning_rate else "window alone"
    parts = [rate, f"window {settings.window_size:,}" if settings.window_size else "no window"]
    if settings.features == "polynomial":
        parts.append(f"degree {settings.polynomial_degree}")
    if settings.use_muon:
        parts.append("Muon")
    return ", ".join(parts)


def page(lab: ShownLab) -> str:
    """Return the run as a page to look around in without a kernel: curves, text, matrix, what was recalled."""
    name, array = lab.matrices.in_view()
    found = matrix_statistics(array.astype(np.float32))
    positive = found.spectrum[found.spectrum > 0]
    spectrum = saved.Curve("log10 of the singular value", np.arange(1, len(positive) + 1), np.log10(positive))
    title = f"Singular values: effective rank {float(found.effective_rank):.1f} of {len(found.spectrum)}"
    matrix = saved.Panel(
        "Matrix", saved.matrix(array, name) + saved.curves([spectrum], "rank", "logarithm to base 10", title)
    )
    return _page(lab, f"MemoryLab: {lab.session.engine.info.name}", text(lab), [matrix])


def attached_page(lab: ShownAttached, what: str) -> str:
    """Return what was seen of a session as a page to look around in without a kernel."""
    return _page(lab, f"MemoryLab: {what}", attached_text(lab, what), [])


def _page(lab: ShownAttached, title: str, words: str, more: list[saved.Panel]) -> str:
    last = lab.recalled.last
    panels = [
        saved.Panel("Curves", _summary(lab) + _curves(lab)),
        saved.Panel("Text", coloured(lab) or "<p>Nothing has been read yet.</p>"),
        *more,
        *([] if last is None else [saved.Panel("Recall", last.html())]),
        saved.Panel("In words", saved.text(words)),
    ]
    return saved.page(title, panels)


def _summary(lab: ShownRun) -> str:
    """Return the numbers that stand above the curves."""
    history, facts = lab.history, lab.facts()
    rows = [("tokens read", f"{len(history.tokens):,}")]
    if history.scored:
        model, memory = history.mean
        rows += [
            ("the model alone", f"{model:.3f} nats, perplexity {np.exp(model):.1f}"),
            ("with the memory", f"{memory:.3f} nats, perplexity {np.exp(memory):.1f}"),
            ("the memory saves", f"{model - memory:+.3f} nats per token"),
        ]
    if facts["context"]:
        rows.append(("the model's own context", f"holds the first {facts['context']:,} tokens"))
    return saved.facts(rows)


def _curves(lab: ShownRun) -> str:
    history, weights = lab.history, lab.trace.weights
    both = running_mean(np.stack((history.loss_model, history.loss), axis=1))
    at = np.arange(len(both))
    model, memory, _ = COLOURS
    lines = [
        saved.Curve(name, at, both[:, column], colour)
        for column, name, colour in ((1, "with memory", memory), (0, "model alone", model))
    ]
    mean = running_mean(weights, 64) if len(weights) else weights
    counts = [
        saved.Curve(name, np.arange(len(mean)), 100 * mean[:, column], COLOURS[column])
        for column, name in enumerate(EXPERTS)
    ]
    losses = saved.curves(lines, "tokens read", "nats, running mean", "Loss", wild=_calm(both))
    return losses + saved.curves(counts, "tokens read", "percent", "Who counts")


def _calm(both: Array) -> int:
    """Return the number of the token from which on a curve of losses is calm, as in ``static/lab/curves.js``."""
    return min(48, len(both) // 4)


def text(lab: ShownLab) -> str:
    """Return how things stand, in four lines, and what was asked last."""
    history, facts = lab.history, lab.facts()
    lines = [f"MemoryLab: {lab.session.engine.info.name}, {lab.state}"]
    read = f"{len(history.tokens):,} tokens read"
    if facts["total"]:
        read += f", {facts['at']:,} of {facts['total']:,} of this text"
    lines.append(read)
    lines += _mean(history)
    if 0 < len(history.tokens) <= facts["context"]:
        lines.append(f"all of it is still in the model's own context of {facts['context']:,} tokens")
    lines.append(
        f"window {facts['window']:,} of {facts['window_size']:,}; learning rate {facts['learning_rate']:.3g}; "
        f"{len(lab.snapshots)} snapshots"
    )
    if lab.error:
        lines.append(f"error: {lab.error}")
    if lab.recalled.last is not None:
        lines += lab.recalled.last.lines()
    return "\n".join(lines)


def _mean(history: History) -> list[str]:
    if not history.scored:
        return []
    model, memory = history.mean
    return [
        f"loss {model:.3f} nats without memory, {memory:.3f} with it: {model - memory:+.3f} saved per token "
        f"(perplexity {np.exp(model):.1f} -> {np.exp(memory):.1f})"
    ]


def attached_text(lab: ShownAttached, what: str) -> str:
    """Return how things stand for who looks on: ``what`` is looked at; and what was asked last."""
    history, facts = lab.history, lab.facts()
    lines = [f"MemoryLab: {what}, {lab.state}"]
    lines.append(f"{len(history.tokens):,} tokens seen from here, {facts['seen']:,} by the memory")
    lines += _mean(history)
    lines.append(f"window {facts['window']:,} of {facts['window_size']:,}")
    if lab.error:
        lines.append(f"error: {lab.error}")
    if lab.recalled.last is not None:
        lines += lab.recalled.last.lines()
    return "\n".join(lines)


def sheet(lab: ShownRun) -> tuple[list[str], list[list[Any]]]:
    """Return a row for each token that was read: its number, id and text, and its losses in nats."""
    history = lab.history
    count = len(history.tokens)
    rows = [
        [at, int(token), text, *(None if np.isnan(loss) else float(loss) for loss in losses)]
        for at, (token, text, *losses) in enumerate(
            zip(history.tokens, lab.words.texts(0, count), history.loss_model, history.loss, strict=False)
        )
    ]
    return ["number", "token", "text", "nats without memory", "nats with memory"], rows


def attached_figure(lab: ShownRun) -> Figure:
    """Return loss curves and weights in one figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    above, below = figure.subplots(2, 1, height_ratios=(1.6, 1))
    _losses(above, lab.history)
    _weights(below, lab.trace.weights)
    return figure


def figure(lab: ShownLab) -> Figure:
    """Return loss curves, weights, the matrix and its spectrum in one figure."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 6.2), layout="constrained")
    grid = figure.add_gridspec(2, 3, height_ratios=(1.15, 1))
    history = lab.history
    _losses(figure.add_subplot(grid[0, :], label="loss"), history, lab.facts()["context"])
    _weights(figure.add_subplot(grid[1, 0], label="weights"), lab.trace.weights)
    name, matrix = lab.matrices.in_view()
    _matrix(figure, figure.add_subplot(grid[1, 1], label="matrix"), name, matrix)
    _spectrum(figure.add_subplot(grid[1, 2], label="spectrum"), name, matrix)
    return figure


def _losses(axes: Axes, history: History, context: int = 0) -> None:
    axes.set(xlabel="tokens read", ylabel="loss (nats, running mean)")
    axes.spines[["top", "right"]].set_visible(False)
    if not history.scored:
        axes.text(0.5, 0.5, "nothing has been read yet", ha="center", va="center", transform=axes.transAxes)
        return
    both = running_mean(np.stack((history.loss_model, history.loss), axis=1))
    at = np.arange(len(both))
    model, memory = history.mean
    for column, (name, mean, style) in enumerate(
        (("model alone", model, "--"), ("with memory", memory, "-"))
    ):
        label = f"{name}: {mean:.3f} nats, perplexity {np.exp(mean):.1f}"
        axes.plot(at, both[:, column], style, color=COLOURS[column], lw=1.6, label=label)
    better = both[:, 1] <= both[:, 0]
    axes.fill_between(at, both[:, 0], both[:, 1], where=better, color=COLOURS[1], alpha=0.18, lw=0)
    axes.fill_between(at, both[:, 0], both[:, 1], where=~better, color=COLOURS[2], alpha=0.3, lw=0)
    set_limits(axes, both)
    axes.margins(x=0)
    if context:
        end = min(context, len(both) - 1)
        axes.axvspan(0, end, color="#808080", alpha=0.1, lw=0)
        whole = context >= len(both) - 1
        says = "all of it in the model's own context" if whole else f"context full: {context:,} tokens"
        at_end = {"ha": "right", "xytext": (-4, -4)} if whole else {"ha": "left", "xytext": (4, -4)}
        axes.annotate(
            says, (end, 1), xycoords=("data", "axes fraction"), textcoords="offset points", va="top",
            fontsize=8, color="#6b6b6b", **at_end,
        )  # fmt: skip
    early = context and len(both) <= context and model < memory
    title = (
        "So far the model's own context holds everything"
        if early
        else f"The memory saves {model - memory:.3f} nats per token"
    )
    axes.set_title(title, loc="left", fontweight="bold")
    axes.legend(fontsize=9, framealpha=0.85, loc="best")


def set_limits(axes: Axes, both: Array) -> None:
    """Give losses a scale that the wild first ones do not press flat; where these are cut off, say so."""
    calm = both[_calm(both) :]
    low, high, most = np.nanmin(calm), np.nanmax(calm), np.nanmax(both)
    axes.set_ylim(max(0.0, low - 0.1), high + 0.1)
    if most > high + 0.1:
        axes.annotate(
            f"▴ up to {most:.1f}", (0, 1), xycoords="axes fraction", xytext=(4, -20), textcoords="offset points",
            va="top", fontsize=8, color="#6b6b6b",
        )  # fmt: skip


def _weights(axes: Axes, weights: Array) -> None:
    axes.set(title="Who counts", xlabel="tokens read", ylim=(0, 1))
    if len(weights) < 2:
        return
    mean = running_mean(weights, 64)
    axes.stackplot(
        np.arange(len(mean)), np.nan_to_num(mean).T, labels=EXPERTS, colors=COLOURS, alpha=0.75, lw=0
    )
    axes.margins(x=0)
    # below: on what it names it could not be read
    axes.legend(
        fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.28), ncols=3, columnspacing=1, handlelength=1
    )


def _matrix(figure: Figure, axes: Axes, name: str, matrix: Array) -> None:
    axes.set(title=f"{name}, {matrix.shape[0]:,} x {matrix.shape[1]:,}")
    shown = pool(matrix, 256, 512)
    limit = float(np.abs(shown[np.isfinite(shown)]).max(initial=0)) or 1.0
    extent = (-0.5, matrix.shape[1] - 0.5, matrix.shape[0] - 0.5, -0.5)
    picture = axes.imshow(
        shown,
        cmap=colour.colormap(),
        vmin=-limit,
        vmax=limit,
        extent=extent,
        aspect="auto",
        interpolation="nearest",
    )
    figure.colorbar(picture, ax=axes, fraction=0.05)


def _spectrum(axes: Axes, name: str, matrix: Array) -> None:
    found = matrix_statistics(matrix.astype(np.float32))
    axes.set(title="Singular values", xlabel="rank")
    axes.spines[["top", "right"]].set_visible(False)
    positive = found.spectrum[found.spectrum > 0]
    if len(positive):
        axes.semilogy(np.arange(1, len(positive) + 1), positive, color=COLOURS[1])
        note = f"effective rank {float(found.effective_rank):.1f}"
        axes.text(0.96, 0.95, note, ha="right", va="top", transform=axes.transAxes)


def coloured(lab: ShownRun) -> str:
    """Return the newest text as HTML, each token coloured by its loss with the memory; a title says both losses."""
    history, trace = lab.history, lab.trace
    end = len(trace)
    start = max(0, end - MOST_TOKENS)
    parts = []
    for at, piece in enumerate(lab.words.texts(start, end), start):
        model, memory = float(history.loss_model[at]), float(history.loss[at])
        if np.isnan(memory):
            parts.append(html.escape(piece))
            continue
        alpha = 0.66 * min(1.0, memory / FULL)
        colours = ",".join(map(str, SURPRISE))
        parts.append(
            f'<span style="background:rgba({colours},{alpha:.2f})" '
            f'title="{model:.2f} nats without memory, {memory:.2f} with it">{html.escape(piece)}</span>'
        )
    if not parts:
        return ""
    note = "The text; the stronger the colour, the more surprising a token was with the memory (0 to 8 nats)."
    return (
        f'<p style="margin:.6em 0 .2em">{note}</p><pre style="white-space:pre-wrap;overflow-wrap:anywhere;'
        f'{CODE};max-height:24em;overflow-y:auto;border:1px solid #8888;padding:6px">{"".join(parts)}</pre>'
    )
