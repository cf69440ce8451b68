"""``MemoryCompare`` where nothing runs: as lines of text, as a figure for a paper, as HTML."""

from __future__ import annotations

import html
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.json_text import brief
from atlas_kit.explorer.pooling import pool
from atlas_kit.operations import compare as numbers
from atlas_kit.operations.compare import Side, WindowDifference
from atlas_kit.operations.diff import Change, Comparison
from atlas_kit.widgets import colour, saved
from atlas_kit.widgets.base import CODE

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.memory.statistics import MatrixStatistics
    from atlas_kit.operations.behaviour import Behaviour
    from atlas_kit.widgets.compare.panes import CompareTable
    from atlas_kit.widgets.matrix import MatrixView

#: A, B and their difference: Okabe and Ito's blue and vermilion, and grey; with dashes, so that print shows them, too.
LINES = {"a": ("#0072b2", "-"), "b": ("#d55e00", "--"), "b-a": ("#555555", ":")}
#: What a row of a table starts with.
MARKS = {"added": "+", "removed": "−", "changed": "~", "renamed": ">", "moved": "^"}
#: Rows and columns of a picture.
PICTURE = 512
#: Tokens of the probe that the page shows.
MOST_TOKENS = 4000


class ShownBehaviour(Protocol):
    """What two memories made of a text: ``BehaviourPane``, which can do more."""

    result: Behaviour | None


class ShownComparison(Protocol):
    """What is shown of a comparison: ``MemoryCompare``, which can do more."""

    a: Side
    b: Side
    views: list[MatrixView]
    table: CompareTable
    window: CompareTable
    settings: CompareTable
    entries: CompareTable

    @property
    def sealed(self) -> bool:
        """Whether a passphrase or key has opened what is compared."""

    @property
    def behaviour(self) -> ShownBehaviour:
        """What the two made of a text."""

    @property
    def matrix(self) -> str:
        """The name of the matrix in view; "" where there is none."""

    def rows(self) -> list[numbers.MatrixRow]:
        """Return how every matrix differs."""

    def spectrum(self, which: str) -> MatrixStatistics | None:
        """Return the singular values of the matrix in view; ``which``: ``"a"``, ``"b"``, ``"b-a"``."""

    def text(self) -> str:
        """Return the comparison in plain lines."""


def titles(a: str, b: str) -> dict[str, str]:
    """Return what to call A, B and their difference; the label A needs no second A."""
    named = (letter if letter == label else f"{letter}: {label}" for letter, label in (("A", a), ("B", b)))
    return dict(zip(("a", "b", "b-a"), (*named, "B − A"), strict=True))


def shape(size: Sequence[int]) -> str:
    """Return ``2,144 x 256``."""
    return " x ".join(f"{n:,}" for n in size)


def heading(a: Side, b: Side) -> str:
    """Return which two are compared, as HTML."""
    parts = []
    for name, side in zip(titles(a.label, b.label).values(), (a, b), strict=False):
        kind = f" <span style='opacity:.75'>{html.escape(side.kind)}</span>" if side.kind else ""
        parts.append(f"<div><b>{html.escape(name)}</b>{kind}</div>")
    return f"<div style='line-height:1.5'>{''.join(parts)}</div>"


def window_sentence(found: WindowDifference) -> str:
    """Say what two windows share."""
    slots = f"{found.shared:,} slots are the same in both (key and token), "
    slots += f"of {found.slots_a:,} in A and {found.slots_b:,} in B"
    if found.tokens_shared is None:
        return f"{slots}."
    tokens = f"{found.tokens_shared:,} tokens occur in both"
    return f"{slots}; {tokens}."


def entry_rows(found: Comparison, most: int) -> list[dict[str, Any]]:
    """Return the changes between two files as rows of a table."""
    rows = []
    for number, change in enumerate(found.changes[:most]):
        before, after = _sides_of(change)
        name = change.name if change.part == "entry" else f"{change.part} {change.name}"
        rows.append({
            "id": str(number), "what": change.what, "mark": MARKS[change.what], "name": name,
            "before": before, "after": after,
        })  # fmt: skip
    return rows


def _sides_of(change: Change) -> tuple[str, str]:
    """Return in a few lines what a change was before, and what it is after."""
    before, after = [], []
    for name, x, y in change.details:
        before += [] if x is None else [f"{name}: {brief(x)}"]
        after += [] if y is None else [f"{name}: {brief(y)}"]
    if change.numbers is not None:
        n = change.numbers
        after.append(f"{n.differing:,} of {n.count:,} numbers differ, relative L2 {n.relative_l2:.4g}")
    for path, _, x, y in change.paths:
        if path.startswith("$.metadata.runtime.waiting"):  # what waits for its step, in base64
            continue
        before += [] if x is None else [f"{path}: {brief(x)}"]
        after += [] if y is None else [f"{path}: {brief(y)}"]
    before += [line[1:] for line in change.lines if line.startswith("-")]
    after += [line[1:] for line in change.lines if line.startswith("+")]
    if change.new_name is not None:
        after.append(change.new_name)
    return "\n".join(before), "\n".join(after)


# --- text -----------------------------------------------------------------------------------------------


def text(compare: ShownComparison) -> str:
    """Return the comparison in plain lines."""
    a, b = compare.a, compare.b
    names = titles(a.label, b.label)
    lines = [
        name + (side.kind and f", {side.kind}") for name, side in zip(names.values(), (a, b), strict=False)
    ]
    lines += numbers.not_comparable(a, b)
    lines += [_row_line(row) for row in compare.rows()]
    if a.window is not None and b.window is not None:
        lines.append(f"window: {window_sentence(numbers.compare_windows(a.window, b.window))}")
    differing = numbers.compare_facts(a, b)
    if differing:
        lines.append(
            f"settings: {', '.join(path for path, *_ in differing[:6])}{' ...' * (len(differing) > 6)}"
        )
    found = compare.behaviour.result
    if found is not None:
        p = found.perplexity
        lines.append(f"perplexity of the probe: model alone {p['model']:.2f}, A {p['a']:.2f}, B {p['b']:.2f}")
        for row_ in found.largest(5, by="gain"):
            _, x, y = np.exp(found.logprob[row_])
            lines.append(
                f"  {found.pieces[row_ + 1]!r}: A {x:.1%}, B {y:.1%}; predictions {found.js[row_]:.3f} nats apart"
            )
    return "\n".join(lines)


def _row_line(row: numbers.MatrixRow) -> str:
    size = shape(row.shape_a or row.shape_b or ())
    if row.shape_a and row.shape_b and row.shape_a != row.shape_b:
        size += f" and {shape(row.shape_b)}"
    facts = (
        ("max |A|", row.max_a), ("max |B|", row.max_b), ("max |B - A|", row.max_difference),
        ("relative L2", row.relative), ("cosine", row.cosine),
    )  # fmt: skip
    return (
        f"{row.name} {size}: {', '.join(f'{name} {value:.4g}' for name, value in facts if value is not None)}"
    )


# --- figure ---------------------------------------------------------------------------------------------


def figure(compare: ShownComparison) -> Figure:
    """Return A, B and B - A in one colour scale, and their singular values."""
    from matplotlib.figure import Figure

    name = compare.matrix
    names = titles(compare.a.label, compare.b.label)
    matrices = {
        "a": compare.a.matrices.get(name),
        "b": compare.b.matrices.get(name),
        "b-a": numbers.difference(compare.a, compare.b, name),
    }
    result = compare.behaviour.result
    made = Figure(figsize=(10, 8.6 if result is not None else 6.4), layout="constrained")
    grid = made.add_gridspec(
        3 if result is not None else 2, 3, height_ratios=[1.15, 1, 0.7][: 2 + (result is not None)]
    )
    limit = compare.views[0].vmax or 1.0
    transform = compare.views[0].transform
    axes, image = [], None
    for column, (which, matrix) in enumerate(matrices.items()):
        axis = made.add_subplot(grid[0, column])
        axes.append(axis)
        axis.set_title(names[which], fontsize=10)
        if matrix is None or not matrix.size:
            axis.set_axis_off()
            axis.text(0.5, 0.5, "cannot be shown", ha="center", va="center", transform=axis.transAxes)
            continue
        image = axis.imshow(
            pool(matrix, PICTURE, PICTURE), aspect="auto", interpolation="nearest",
            cmap=colour.colormap(), norm=colour.norm(limit, transform), extent=(0, matrix.shape[1], matrix.shape[0], 0),
        )  # fmt: skip
        axis.set_xlabel(f"{name}: column", fontsize=9)
        if column == 0:
            axis.set_ylabel("row", fontsize=9)
        axis.tick_params(labelsize=8)
    if image is not None:
        bar = made.colorbar(image, ax=axes, shrink=0.9, ticks=colour.ticks(limit, transform), format="%.3g")
        bar.ax.tick_params(labelsize=8)
    _spectra(made.add_subplot(grid[1, :]), compare, names)
    if result is not None:
        _gain(made.add_subplot(grid[2, :]), compare)
    return made


def _spectra(axis: Any, compare: ShownComparison, names: dict[str, str]) -> None:
    for which, (line_colour, dash) in LINES.items():
        found = compare.spectrum(which)
        if found is None or not found.spectrum.size or not found.spectrum[0]:
            continue
        values = np.where(found.spectrum > found.spectrum[0] * 1e-7, found.spectrum, np.nan)
        label = f"{names[which]}, effective rank {float(found.effective_rank):.1f}"
        axis.plot(np.arange(1, len(values) + 1), values, dash, color=line_colour, label=label, linewidth=1.6)
    axis.set_yscale("log")
    axis.set_xlabel("singular value number", fontsize=9)
    axis.set_ylabel("singular value", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.3)
    if axis.lines:
        axis.legend(fontsize=8, frameon=False)


def _gain(axis: Any, compare: ShownComparison) -> None:
    found = compare.behaviour.result
    assert found is not None
    at, gain = np.arange(1, len(found) + 1), found.gain
    for which, part in (("a", np.minimum(gain, 0)), ("b", np.maximum(gain, 0))):
        axis.fill_between(
            at, part, step="mid", color=LINES[which][0], linewidth=0, label=f"{which.upper()} likelier"
        )
    axis.axhline(0, color="#555555", linewidth=0.6)
    axis.set_xlabel("token of the probe text", fontsize=9)
    axis.set_ylabel("log p(B) − log p(A)", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.legend(fontsize=8, frameon=False, ncols=2)


# --- page -----------------------------------------------------------------------------------------------


def page(compare: ShownComparison) -> str:
    """Return matrices, spectra, tables and the coloured probe as HTML that loads and runs nothing."""
    names = titles(compare.a.label, compare.b.label)
    panels = [
        saved.Panel("Pictures", _matrices(compare, names) + _spectra_page(compare, names)),
        saved.Panel("Numbers", _rows_page(compare.table)),
        saved.Panel("Window", _rows_page(compare.window)),
        saved.Panel("Settings", _rows_page(compare.settings)),
    ]
    if not compare.sealed:  # what a passphrase protects does not go into a notebook that is passed on
        panels.append(saved.Panel("Entries", _rows_page(compare.entries)))
    if compare.behaviour.result is not None:
        panels.append(saved.Panel("Behaviour", _gain_page(compare) + _probe(compare)))
    panels.append(saved.Panel("In words", saved.text(compare.text())))
    return saved.page(f"{names['a']} and {names['b']}", panels)


def _matrices(compare: ShownComparison, names: dict[str, str]) -> str:
    name = compare.matrix
    matrices = {
        "a": compare.a.matrices.get(name),
        "b": compare.b.matrices.get(name),
        "b-a": numbers.difference(compare.a, compare.b, name),
    }
    limit, transform = compare.views[0].vmax or 1.0, compare.views[0].transform
    parts = [
        saved.matrix(np.asarray(matrix), f"{names[which]}, {name}", limit, transform, most=saved.FEW)
        for which, matrix in matrices.items()
        if matrix is not None and matrix.ndim == 2
    ]
    boxes = "".join(f'<div style="min-width:0">{part}</div>' for part in parts)
    columns = "repeat(auto-fit,minmax(min(100%,170px),1fr))"  # of one size, and in one row where it fits
    return (
        f'<div style="display:grid;grid-template-columns:{columns};gap:14px;max-width:1100px">{boxes}</div>'
    )


def _spectra_page(compare: ShownComparison, names: dict[str, str]) -> str:
    lines = []
    for which in LINES:
        found = compare.spectrum(which)
        if found is None or not found.spectrum.size or not found.spectrum[0]:
            continue
        some = found.spectrum > found.spectrum[0] * 1e-7
        values = np.log10(found.spectrum, where=some, out=np.full(found.spectrum.shape, np.nan))
        label = f"{names[which]}, effective rank {float(found.effective_rank):.1f}"
        lines.append(saved.Curve(label, np.arange(1, len(values) + 1), values))
    if not lines:
        return ""
    return saved.curves(lines, "singular value number", "logarithm to base 10", "Singular values")


def _rows_page(table: CompareTable) -> str:
    """Return a table of the widget as it is."""
    if not table.rows:
        return '<p class="ak-dim">There is nothing to compare here.</p>'
    rows = ([row.get(column["key"]) for column in table.columns] for row in table.rows)
    return saved.table([column["label"] for column in table.columns], rows)


def _gain_page(compare: ShownComparison) -> str:
    found = compare.behaviour.result
    assert found is not None
    line = saved.Curve("log p(B) − log p(A)", np.arange(1, len(found) + 1), found.gain)
    return saved.curves([line], "token of the probe text", "above 0: likelier in B", "What the two expect")


def _probe(compare: ShownComparison) -> str:
    found = compare.behaviour.result
    if found is None:
        return ""
    gain = found.gain[:MOST_TOKENS]
    most = float(np.abs(gain).max(initial=0.0)) or 1.0
    spans = [html.escape(found.pieces[0])]
    for piece, value, (_, a, b) in zip(found.pieces[1:], gain, np.exp(found.logprob), strict=False):
        share = abs(float(value)) / most
        rgb, line = ("0 114 178", "dotted #0072b2") if value < 0 else ("230 130 0", "solid #c04f00")
        style = f"background:rgb({rgb} / {0.55 * share:.2f});border-bottom:2px {line}" if share > 0.04 else ""
        title = html.escape(f"A {a:.1%}, B {b:.1%}", quote=True)
        spans.append(f'<span style="{style}" title="{title}">{html.escape(piece)}</span>')
    a, b = (html.escape(side.label) for side in (compare.a, compare.b))
    return (
        '<figure style="margin:8px 0"><figcaption>The probe text: '
        f"blue and dotted where {a} held the token for likelier, orange and solid where {b} did.</figcaption>"
        f'<pre style="white-space:pre-wrap;line-height:1.8;{CODE}">{"".join(spans)}</pre></figure>'
    )
