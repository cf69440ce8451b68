"""Lines over a logarithmic axis, drawn twice: as SVG for a live page, and with matplotlib for papers.

Colours are told apart with every common kind of colour vision, and neighbouring lines have other dashes, so that
nothing hangs on colour. Knows no widgets and no memories.
"""

from __future__ import annotations

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

#: Okabe and Ito's palette without black and yellow, which vanish on a dark and on a white page.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
WIDTH, HEIGHT = 560, 330
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 26, 44
_INK, _FAINT, _RULE = (
    f"var(--jp-{name},{colour})"
    for name, colour in (("ui-font-color1", "#222"), ("ui-font-color2", "#666"), ("border-color2", "#ddd"))
)


@dataclass(frozen=True)
class Line:
    """A curve: its name, its points, and where on x it is marked (NaN: nowhere)."""

    name: str
    x: Sequence[float]
    y: Sequence[float]
    mark: float = math.nan


@dataclass(frozen=True)
class Chart:
    """What is drawn. y goes from 0 to 1; ``level`` is a horizontal line, ``limits`` are named vertical ones."""

    title: str
    x_label: str
    y_label: str
    lines: Sequence[Line]
    level: float
    limits: Sequence[tuple[float, str]] = ()

    @property
    def span(self) -> tuple[float, float]:
        """Ends of the x axis."""
        at = [x for line in self.lines for x in line.x] + [x for x, _ in self.limits]
        low, high = min(at, default=2), max(at, default=64)
        return float(low), float(max(high, 2 * low))


def style(number: int) -> tuple[str, str]:
    """Return colour and dashes of a line; twelve differ."""
    return COLOURS[number % len(COLOURS)], DASHES[number % len(DASHES)]


def ticks(low: float, high: float) -> list[int]:
    """Return powers of two within the ends."""
    return [2**p for p in range(math.ceil(math.log2(low)), math.floor(math.log2(high)) + 1)]


def svg(chart: Chart) -> str:
    """Return the chart as SVG that takes the colours of a JupyterLab theme; the newest line is the boldest."""
    low, high = chart.span

    def place(x: float, y: float) -> tuple[float, float]:
        share = math.log(x / low) / math.log(high / low)
        return (
            _LEFT + share * (WIDTH - _LEFT - _RIGHT),
            _TOP + (1 - min(max(y, 0.0), 1.0)) * (HEIGHT - _TOP - _BOTTOM),
        )

    parts = [*_axes(chart, place), *_limits(chart, place)]
    for number, line in enumerate(chart.lines):
        parts.append(_line(line, style(number), place, chart.level, newest=number == len(chart.lines) - 1))
    parts += _legend(chart.lines)
    height = HEIGHT + 18 * len(chart.lines)
    return (
        f'<svg role="img" viewBox="0 0 {WIDTH} {height}" style="width:100%;max-width:{WIDTH}px;font:12px '
        f'var(--jp-ui-font-family,system-ui,sans-serif)"><title>{html.escape(chart.title)}</title>'
        f"{''.join(parts)}</svg>"
    )


def _text(x: float, y: float, text: str, anchor: str = "middle", fill: str = _INK, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" style="fill:{fill}" {more}>{html.escape(text)}</text>'


def _rule(start: tuple[float, float], end: tuple[float, float], stroke: str, dashes: str = "") -> str:
    (x1, y1), (x2, y2) = start, end
    return (
        f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" '
        f'style="stroke:{stroke};stroke-dasharray:{dashes or "none"}"/>'
    )


def _axes(chart: Chart, place: Any) -> list[str]:
    low, high = chart.span
    parts = []
    for y in (0, 0.25, 0.5, 0.75, 1):
        start, end = place(low, y), place(high, y)
        parts += [_rule(start, end, _RULE), _text(start[0] - 6, start[1] + 4, f"{y:g}", "end", _FAINT)]
    for x in ticks(low, high):
        at = place(x, 0)
        parts += [_rule(at, (at[0], at[1] + 4), _FAINT), _text(at[0], at[1] + 17, f"{x:,}", fill=_FAINT)]
    parts.append(_rule(place(low, chart.level), place(high, chart.level), _FAINT, "1 4"))
    middle = (_TOP + HEIGHT - _BOTTOM) / 2
    parts.append(_text((_LEFT + WIDTH - _RIGHT) / 2, HEIGHT - 8, chart.x_label))
    parts.append(_text(12, middle, chart.y_label, more=f'transform="rotate(-90 12 {middle})"'))
    return parts


def _limits(chart: Chart, place: Any) -> list[str]:
    parts = []
    for x, name in chart.limits:
        top, bottom = place(x, 1), place(x, 0)
        right = top[0] > WIDTH / 2
        parts.append(_rule((top[0], top[1] - 6), bottom, _INK, "4 3"))
        parts.append(_text(top[0] + (3 if right else -3), _TOP - 12, name, "end" if right else "start"))
    return parts


def _line(line: Line, look: tuple[str, str], place: Any, level: float, newest: bool) -> str:
    colour, dashes = look
    points = ["{:.1f},{:.1f}".format(*place(x, y)) for x, y in zip(line.x, line.y, strict=True)]
    points += points if len(points) == 1 else []  # a line to itself is a dot
    drawn = (
        f'<polyline points="{" ".join(points)}" style="fill:none;stroke:{colour};stroke-width:{3 if newest else 1.8};'
        f'stroke-dasharray:{dashes or "none"};stroke-linejoin:round;stroke-linecap:round"/>'
    )
    if math.isnan(line.mark):
        return drawn
    x, y = place(line.mark, level)
    return drawn + f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" style="fill:{colour};stroke:{_INK}"/>'


def _legend(lines: Sequence[Line]) -> list[str]:
    parts = []
    for number, line in enumerate(lines):
        colour, dashes = style(number)
        y = HEIGHT + 10 + 18 * number
        parts.append(
            f'<line x1="{_LEFT}" y1="{y}" x2="{_LEFT + 34}" y2="{y}" '
            f'style="stroke:{colour};stroke-width:3;stroke-dasharray:{dashes or "none"}"/>'
        )
        parts.append(_text(_LEFT + 42, y + 4, line.name, "start"))
    return parts


def draw(axes: Any, chart: Chart) -> None:
    """Draw the chart on matplotlib axes, in the ink of their style: it is seen on a light page and on a dark one."""
    ink = axes.xaxis.label.get_color()
    axes.set_xscale("log", base=2)
    for number, line in enumerate(chart.lines):
        colour, dashes = style(number)
        pattern = (0, tuple(float(part) / 2 for part in dashes.split())) if dashes else "-"
        axes.plot(line.x, line.y, color=colour, linestyle=pattern, lw=1.8, label=line.name)
        if not math.isnan(line.mark):
            axes.plot([line.mark], [chart.level], "o", color=colour, markeredgecolor=ink, ms=6)
    axes.axhline(chart.level, color="#888888", lw=0.8, ls=":")
    for x, name in chart.limits:
        axes.axvline(x, color=ink, lw=1, ls="--")
        axes.annotate(name, (x, 1.06), ha="center", fontsize=8.5, annotation_clip=False)
    low, high = chart.span
    axes.set_xlim(low, high)
    axes.set_ylim(-0.02, 1.04)
    axes.set_xticks(ticks(low, high), [f"{x:,}" for x in ticks(low, high)])
    axes.set_xlabel(chart.x_label)
    axes.set_ylabel(chart.y_label)
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(visible=True, color=ink, alpha=0.2, lw=0.7)
    axes.set_axisbelow(True)
    if chart.lines:
        axes.legend(fontsize=8.5, frameon=False, loc="upper center", bbox_to_anchor=(0.5, -0.16))
