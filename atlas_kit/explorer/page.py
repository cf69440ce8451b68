"""Pages of plain HTML with their style in them, which load nothing and run nothing: what is saved, exported and mailed.

A notebook that nobody trusts, an exported page and a mail show such a page alike: tabs are radio buttons, and values
stand in what appears under the pointer. A page has an end, whatever it is made of. Knows neither files nor widgets.
"""

from __future__ import annotations

import base64
import html
import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array

#: Characters of a page, and rows of a table in it.
MOST = 1_500_000
MOST_ROWS = 300
#: Points of a curve, and how many of them say their values.
POINTS, READINGS = 240, 100
#: Okabe and Ito's colours that can be seen on white and on black; the dashes tell them apart in print.
COLOURS = ("#0072b2", "#d55e00", "#7f7f7f", "#009e73", "#cc79a7", "#56b4e9")
DASHES = ("", "7 4", "2 3", "9 3 2 3")
#: How many times the spread of a calm curve all of it may have until its wild beginning is cut off, as in a live lab.
WILD = 3
_WIDE, _HIGH, _LEFT, _BOTTOM, _TOP = 900, 260, 64, 34, 12


@dataclass(frozen=True)
class Panel:
    """One tab of a page: its name, and its content as HTML, such as the functions below make it."""

    label: str
    body: str


@dataclass(frozen=True)
class Curve:
    """A line: its name, its points (NaN leaves a gap), and its colour where its place does not give it one."""

    name: str
    x: Any
    y: Any
    colour: str = ""


# --- the page -----------------------------------------------------------------------------------------------

#: ``--ak-night`` makes of a matrix's light colours what ``widgets/colour.py`` has for a dark page, nearly.
_STYLE = """
.ak{color:var(--jp-ui-font-color1,light-dark(#222,#e4e6ea));background:none;
font:13px/1.45 var(--jp-ui-font-family,system-ui,sans-serif);padding:8px 10px;max-width:100%;box-sizing:border-box}
.ak h3{font-size:1.15em;margin:0 0 .4em}.ak p{margin:.4em 0}.ak figure{margin:.4em 0}
.ak form{margin:0}.ak .ak-name{display:inline-block;padding:4px 12px;cursor:pointer;border-bottom:3px solid transparent}
.ak .ak-name input{position:absolute;opacity:0}.ak .ak-name:has(:checked){border-bottom-color:#1976d2;font-weight:600}
.ak .ak-name:has(:focus-visible){outline:2px solid #1976d2}.ak .ak-panel{padding:8px 0 0;overflow:auto}
.ak table.ak-table{border-collapse:collapse;font-size:12.5px;margin:0}.ak .ak-scroll{overflow:auto;max-height:34em}
.ak .ak-table th,.ak .ak-table td{text-align:left;padding:2px 14px 2px 0;border-bottom:1px solid #8884;
vertical-align:top;max-width:38em;overflow-wrap:anywhere;white-space:pre-wrap}
.ak .ak-table th,.ak .ak-table .ak-w{white-space:nowrap}.ak .ak-table th{font-weight:600}
.ak .ak-table .ak-n{text-align:right;font-variant-numeric:tabular-nums}
.ak .ak-dim{opacity:.75}.ak .ak-bad{color:light-dark(#b3261e,#ff8a80)}
.ak pre{margin:0;white-space:pre-wrap;overflow-wrap:anywhere;max-height:34em;overflow:auto;
font-family:var(--jp-code-font-family,ui-monospace,monospace);background:none;color:inherit}
.ak svg{max-width:100%;height:auto;display:block}.ak svg text{fill:currentColor;font-size:12px}
.ak .ak-at>:not(rect){opacity:0;pointer-events:none}.ak .ak-at:hover>*{opacity:1}.ak .ak-cells rect{fill:transparent;
width:var(--w);height:var(--h)}.ak .ak-cells rect:hover{stroke:currentColor}.ak img{max-width:100%}
[data-jp-theme-light="false"] .ak .ak-shades,[data-md-color-scheme="slate"] .ak .ak-shades{filter:var(--ak-night)}
.ak{--ak-night:invert(1) hue-rotate(202deg) saturate(2.5) contrast(.925) brightness(1.2) hue-rotate(-12deg)
saturate(.65)}
@supports selector(:has(*)){.ak .ak-panel{display:none}}
"""
#: A panel is seen while the radio button of its number is chosen; browsers without ``:has`` show all of them.
_TABS = 24
_STYLE += ",".join(
    f".ak:has(.ak-name:nth-child({n}) input:checked) .ak-panel:nth-child({n})" for n in range(1, _TABS + 1)
)
_STYLE += "{display:block}"


def page(title: str, panels: Sequence[Panel], chosen: str = "") -> str:
    """Return a page with a tab for each panel, ``chosen`` the name of the one that is open at first.

    What would make it longer than ``MOST`` is left out, from its end, with a word in its place.
    """
    shown: list[Panel] = []
    length = 0
    for panel in panels:
        length += len(panel.body)
        body = panel.body if length <= MOST else '<p class="ak-dim">This is too much for a saved page.</p>'
        length -= len(panel.body) * (length > MOST)
        shown.append(Panel(panel.label, body))
    labels = [panel.label for panel in shown[:_TABS]]
    at = labels.index(chosen) if chosen in labels else 0
    checked = ' checked="checked"'
    heads = "".join(
        f'<label class="ak-name"><input type="radio" name="tab"{checked * (number == at)}/>'
        f"{html.escape(label)}</label>"
        for number, label in enumerate(labels)
    )
    bodies = "".join(
        f'<div class="ak-panel" role="region" aria-label="{html.escape(panel.label)}">{panel.body}</div>'
        for panel in shown[:_TABS]
    )
    # buttons of one form are a group of their own, so that no page needs a name; "dialog" sends nothing anywhere
    return (
        f'<section class="ak" aria-label="{html.escape(title)}"><style>{_STYLE}</style><h3>{html.escape(title)}</h3>'
        f'<form method="dialog" role="radiogroup" aria-label="What to look at">{heads}</form>'
        f"<div>{bodies}</div></section>"
    )


def part(body: str) -> str:
    """Return what a panel holds as a piece of its own, with the style that it needs."""
    return f'<section class="ak"><style>{_STYLE}</style>{body}</section>'


def document(body: str, title: str) -> str:
    """Return a page as a file of its own that any browser opens."""
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{html.escape(title)}</title>'
        "<style>:root{color-scheme:light dark}body{margin:12px;background:light-dark(#fff,#16181d)}"
        "@media (prefers-color-scheme:dark){.ak .ak-shades{filter:var(--ak-night)}}</style></head>"
        f"<body>{body}</body></html>"
    )


# --- what is in a panel -------------------------------------------------------------------------------------


def number(value: float) -> str:
    """Return a number as people read it: five digits."""
    if isinstance(value, int) or (math.isfinite(value) and value == round(value) and abs(value) < 1e9):
        return f"{value:,.0f}"
    return f"{value:.5g}"


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, (int, float, np.number)) and not isinstance(value, bool):
        return f'<td class="ak-n">{number(value if isinstance(value, int) else float(value))}</td>'
    words = str(value)
    whole = ' class="ak-w"' if len(words) <= 16 else ""  # a word of a few letters is not to be cut in two
    return f"<td{whole}><bdi>{html.escape(words)}</bdi></td>"


def table(columns: Sequence[str], rows: Iterable[Sequence[Any]], total: int | None = None) -> str:
    """Return rows of numbers and texts as a table; of more than ``MOST_ROWS`` the first, and how many there are."""
    shown: list[str] = []
    rest = 0
    for row in rows:
        if len(shown) < MOST_ROWS:
            shown.append(f"<tr>{''.join(map(_cell, row))}</tr>")
        else:
            rest += 1
    count = len(shown) + rest if total is None else total
    note = f'<p class="ak-dim">The first {len(shown):,} of {count:,}.</p>' if count > len(shown) else ""
    head = "".join(f'<th scope="col">{html.escape(column)}</th>' for column in columns)
    return (
        f'<div class="ak-scroll" tabindex="0"><table class="ak-table"><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(shown)}</tbody></table></div>{note}"
    )


def facts(pairs: Iterable[Sequence[str]]) -> str:
    """Return names and values, one pair a line."""
    rows = "".join(
        f'<tr><th scope="row">{html.escape(label)}</th><td><bdi>{html.escape(value)}</bdi></td></tr>'
        for label, value in pairs
    )
    return f'<table class="ak-table"><tbody>{rows}</tbody></table>'


def text(words: str) -> str:
    """Return text as it stands."""
    return f'<pre tabindex="0">{html.escape(words)}</pre>'


def picture(png: bytes, alt: str) -> str:
    """Return a PNG file as an element."""
    source = base64.b64encode(png).decode("ascii")
    return f'<img src="data:image/png;base64,{source}" alt="{html.escape(alt)}"/>'


def curves(lines: Sequence[Curve], x_label: str, y_label: str, title: str, *, wild: float = 0) -> str:
    """Return lines as a picture that says the values under the pointer.

    ``wild``: what comes before this x may be large; where it would press the rest flat it is cut off, and it is said.
    """
    drawn = [(line, *_thinned(line)) for line in lines if len(line.x)]
    finite = [(x[good], y[good]) for _, x, y in drawn if (good := np.isfinite(x) & np.isfinite(y)).any()]
    if not finite:
        return '<p class="ak-dim">There is nothing to draw yet.</p>'
    low_x, high_x = (float(pick([pick(x) for x, _ in finite])) for pick in (min, max))
    low, most = (float(pick([pick(y) for _, y in finite])) for pick in (min, max))
    high = most
    calm = [some for x, y in finite if len(some := y[x >= wild])]
    if wild and calm:
        least, largest = (float(pick([pick(y) for y in calm])) for pick in (min, max))
        if most - low > WILD * max(largest - least, 0.5):
            high = largest + 0.08 * (largest - low)
    cut = most > high
    high_x, high = high_x if high_x > low_x else low_x + 1, high if high > low else low + 1

    def across(x: float) -> float:
        return _LEFT + (x - low_x) / (high_x - low_x) * (_WIDE - _LEFT - 24)

    def down(y: float) -> float:
        return _TOP + (high - y) / (high - low) * (_HIGH - _TOP - _BOTTOM)

    parts = [
        f'<line x1="{_LEFT}" x2="{_WIDE - 24}" y1="{down(y):.1f}" y2="{down(y):.1f}" stroke="#8884"/>'
        f'<text x="{_LEFT - 6}" y="{down(y) + 4:.1f}" text-anchor="end">{number(y)}</text>'
        for y in ticks(low, high)
    ]
    parts += [
        f'<text x="{across(x):.1f}" y="{_HIGH - 18}" text-anchor="middle">{number(x)}</text>'
        for x in ticks(low_x, high_x)
    ]
    looks = [
        f'stroke="{html.escape(line.colour or COLOURS[at % len(COLOURS)])}" '
        f'stroke-dasharray="{DASHES[at % len(DASHES)]}"'
        for at, (line, *_) in enumerate(drawn)
    ]
    if cut:  # a picture in the picture: what leaves it is not drawn
        wide, tall = _WIDE - _LEFT - 24, _HIGH - _TOP - _BOTTOM + 2
        place = f'x="{_LEFT}" y="{_TOP}" width="{wide}" height="{tall}"'
        parts.append(f'<svg {place} viewBox="{_LEFT} {_TOP} {wide} {tall}">')
    for style, (_, xs, ys) in zip(looks, drawn, strict=True):
        for run in _runs(xs, ys):
            points = " ".join(f"{across(x):.1f},{down(y):.1f}" for x, y in run)
            parts.append(f'<polyline points="{points}" fill="none" stroke-width="1.8" {style}/>')
    if cut:
        parts.append(f'</svg><text x="{_LEFT + 6}" y="{_TOP + 26}">▴ up to {number(_short(most))}</text>')
    parts += _readings(drawn, across)
    legend = "".join(
        f'<span style="margin-right:1.4em;display:inline-block"><svg width="26" height="8" style="display:inline">'
        f'<line x1="0" x2="26" y1="4" y2="4" stroke-width="3" {style}/></svg> {html.escape(line.name)}</span>'
        for style, (line, *_) in zip(looks, drawn, strict=True)
    )
    return (
        f"<figure><figcaption><b>{html.escape(title)}</b> "
        f'<span class="ak-dim">{html.escape(y_label)}</span></figcaption>'
        f'<svg viewBox="0 0 {_WIDE} {_HIGH + 8}" width="{_WIDE}" role="img" aria-label="{html.escape(title)}">'
        f'{"".join(parts)}<text x="{_WIDE / 2}" y="{_HIGH}" text-anchor="middle">{html.escape(x_label)}</text></svg>'
        f"<div>{legend}</div></figure>"
    )


def ticks(low: float, high: float, most: int = 6) -> list[float]:
    """Return round values from ``low`` to ``high``, at most so many.

    >>> ticks(8, 2000), ticks(2.02, 3.41), ticks(-0.3, 0.1)
    ([500.0, 1000.0, 1500.0, 2000.0], [2.5, 3.0], [-0.3, -0.2, -0.1, 0.0, 0.1])
    """
    least = (high - low) / most
    power = 10.0 ** math.floor(math.log10(least))
    step = next(power * times for times in (1, 2, 5, 10) if power * times >= least * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    digits = max(0, -math.floor(math.log10(step)))
    return [round(at * step, digits) for at in range(first, last + 1)]


def _short(value: float) -> float:
    return float(f"{value:.3g}")


def _thinned(line: Curve) -> tuple[Array, Array]:
    """Return at most ``POINTS`` points of a line, the first and the last among them."""
    x, y = np.asarray(line.x, np.float64), np.asarray(line.y, np.float64)
    at = np.unique(np.linspace(0, len(x) - 1, min(len(x), POINTS)).astype(np.int64))
    return x[at], y[at]


def _runs(xs: Array, ys: Array) -> list[list[tuple[float, float]]]:
    """Return the parts of a line between its gaps."""
    runs: list[list[tuple[float, float]]] = [[]]
    for x, y in zip(xs.tolist(), ys.tolist(), strict=True):
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run + run if len(run) == 1 else run for run in runs if run]


def _readings(drawn: Sequence[tuple[Curve, Array, Array]], across: Callable[[float], float]) -> list[str]:
    """Return a strip for each point of the longest line, which says all values there when it is pointed at."""
    xs = max((x for _, x, _ in drawn), key=len)
    xs = xs[np.unique(np.linspace(0, len(xs) - 1, min(len(xs), READINGS)).astype(np.int64))]
    edges = [across(x) for x in xs.tolist()]
    parts = []
    for at, (x, edge) in enumerate(zip(xs.tolist(), edges, strict=True)):
        left = (edges[at - 1] + edge) / 2 if at else edge
        right = (edge + edges[at + 1]) / 2 if at + 1 < len(edges) else edge
        said = [number(_short(x) if x != round(x) else x)]
        for line, others, ys in drawn:
            value = float(ys[int(np.abs(others - x).argmin())])
            said.append(f"{line.name} {'–' if math.isnan(value) else number(value)}")
        anchor, shift = ("end", -6) if edge > _WIDE / 2 else ("start", 6)
        parts.append(
            f'<g class="ak-at"><rect x="{left:.1f}" width="{max(1.0, right - left):.1f}" y="{_TOP}" '
            f'height="{_HIGH - _TOP - _BOTTOM}" fill="transparent"/><line x1="{edge:.1f}" x2="{edge:.1f}" y1="{_TOP}" '
            f'y2="{_HIGH - _BOTTOM}" stroke="currentColor"/><text x="{edge + shift:.1f}" y="{_TOP + 10}" '
            f'text-anchor="{anchor}">{html.escape(" · ".join(said))}</text></g>'
        )
    return parts


def bars(
    counts: Sequence[int],
    ends: tuple[float, float],
    title: str,
    say: Callable[[float], str] = "{:.4g}".format,
) -> str:
    """Return how often values occur between two ends, as bars that say their counts under the pointer.

    ``say`` writes a value, with its unit where it has one.
    """
    (low, high), most = ends, max(counts, default=0) or 1
    wide, parts = 640 / max(1, len(counts)), []
    for at, count in enumerate(counts):
        tall = 0.0 if not count else max(1.5, count / most * 150)
        start, end = (low + (high - low) * (at + n) / len(counts) for n in (0, 1))
        parts.append(
            f'<rect x="{at * wide:.1f}" y="{160 - tall:.1f}" width="{max(1.0, wide - 1):.1f}" height="{tall:.1f}" '
            f'fill="{COLOURS[0]}"><title>{count:,} from {say(start)} to {say(end)}</title></rect>'
        )
    return (
        f'<figure><figcaption><b>{html.escape(title)}</b></figcaption><svg viewBox="0 0 640 180" width="640" '
        f'role="img" aria-label="{html.escape(title)}">{"".join(parts)}'
        f'<text x="0" y="176">{html.escape(say(low))}</text>'
        f'<text x="640" y="176" text-anchor="end">{html.escape(say(high))}</text></svg></figure>'
    )


#: From nothing to much: Okabe and Ito's blue over yellow to vermilion is told apart by all eyes, and by lightness. The
#: page is seen through what is little, so that "nothing" stands out neither on a light page nor on a dark one.
_HEAT = (
    (0.0, (120, 180, 220, 51)),
    (0.35, (120, 180, 220, 255)),
    (0.65, (240, 200, 90, 255)),
    (1.0, (190, 60, 0, 255)),
)


def heat(share: float) -> str:
    """Return the colour of a share from 0 to 1, with its opacity as the fourth part.

    >>> heat(0), heat(1)
    ('#78b4dc33', '#be3c00ff')
    """
    share = min(max(share, 0.0), 1.0)
    (low, a), (high, b) = next(pair for pair in itertools.pairwise(_HEAT) if share <= pair[1][0])
    part = (share - low) / (high - low)
    return "#" + "".join(f"{round(x + part * (y - x)):02x}" for x, y in zip(a, b, strict=True))


def _shortened(name: str, most: int = 24) -> str:
    """Return a name that fits beside a picture: the middle of a long one is left out."""
    return name if len(name) <= most else f"{name[: most // 2 - 1]}…{name[-most // 2 :]}"


def heatmap(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: dict[tuple[int, int], tuple[float | None, str]],
    title: str,
) -> str:
    """Return a grid of shares (0 to 1) as coloured boxes, each of which says its text under the pointer.

    ``cells``: (row, column) -> (share, text); without a share it is an empty frame, with one that is not finite it has
    the colour of the text, and what is not in it is nothing.
    """
    rows, columns = ([_shortened(name) for name in names] for names in (rows, columns))
    longest = max((len(name) for name in columns), default=0)
    left, top = 12 + 7 * max((len(name) for name in rows), default=0), 12 + 6 * longest
    wide, high = 34, 18 if len(rows) <= 40 else 11
    parts = [
        f'<text x="{left - 6}" y="{top + (at + 0.75) * high:.0f}" text-anchor="end">{html.escape(name)}</text>'
        for at, name in enumerate(rows)
        if high > 12 or at % 4 == 0
    ]
    for at, name in enumerate(columns):
        x = left + (at + 0.6) * wide
        parts.append(f'<text transform="translate({x:.0f} {top - 6}) rotate(-50)">{html.escape(name)}</text>')
    frame = 'fill="transparent" stroke="#888" stroke-dasharray="3 2"'
    for (row, column), (share, said) in cells.items():
        look = frame if share is None else f'fill="{heat(share) if math.isfinite(share) else "currentColor"}"'
        parts.append(
            f'<rect x="{left + column * wide}" y="{top + row * high}" width="{wide - 1}" height="{high - 1}" '
            f"{look}><title>{html.escape(said)}</title></rect>"
        )
    size = left + len(columns) * wide + max(60, 5 * longest), top + len(rows) * high + 4
    return (
        f'<figure><figcaption><b>{html.escape(title)}</b></figcaption><svg viewBox="0 0 {size[0]} {size[1]}" '
        f'width="{size[0]}" role="img" aria-label="{html.escape(title)}">{"".join(parts)}</svg></figure>'
    )
