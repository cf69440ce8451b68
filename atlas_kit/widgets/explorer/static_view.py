"""The explorer without JavaScript: the summary as text and as a page, the byte map as a picture."""

from __future__ import annotations

import html as markup
import re
from typing import TYPE_CHECKING, Any

from atlas_kit.explorer.regions import KINDS
from atlas_kit.widgets.static_modules import STATIC

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.explorer.explorer import Explorer

_STYLE = dict(
    re.findall(
        r"--ax-([a-z-]+): (#[0-9a-f]{6});", (STATIC / "explorer" / "explorer.css").read_text(encoding="utf-8")
    )
)
#: The colour of each kind of region: Okabe and Ito's.
COLOURS = {kind: _STYLE[kind.replace(" ", "-")] for kind in KINDS}
HATCHED = ("damaged", "garbage", "uncommitted", "trailing", "unused")
_WIDTH, _HEIGHT, _LEAST = 1000, 40, 2.5


def text(explorer: Explorer) -> str:
    """Return the summary in a few lines."""
    summary = explorer.answer({"op": "summary"})[0]
    lines = [f"{summary['name']}: {summary['title']}"]
    lines += [f"  {label}: {value}" for label, value in summary["facts"][:12]]
    if summary["problem"]:
        lines.append(f"  {summary['problem']['error']}. {summary['problem']['hint'] or ''}".rstrip())
    return "\n".join(lines)


def html(explorer: Explorer) -> str:
    """Return the summary as HTML that loads nothing: facts, and the byte map as SVG."""
    summary = explorer.answer({"op": "summary"})[0]
    quote = markup.escape
    rows = "".join(
        f'<tr><th scope="row" style="text-align:left;padding-right:1.5em">{quote(label)}</th>'
        f'<td style="text-align:left"><bdi>{quote(value)}</bdi></td></tr>'
        for label, value in summary["facts"]
    )
    problem = ""
    if summary["problem"]:
        hint = summary["problem"]["hint"] or ""
        problem = f"<p><strong>{quote(summary['problem']['error'])}.</strong> {quote(hint)}</p>"
    caption = quote(f"{summary['name']}: {summary['title']}")
    return (
        f'<figure style="margin:0">{_svg(explorer, caption)}<figcaption><strong>{caption}</strong></figcaption>'
        f"{problem}<table>{rows}</table></figure>"
    )


def _svg(explorer: Explorer, caption: str) -> str:
    data: dict[str, Any] = explorer.answer({"op": "map", "bins": 400})[0]
    size = max(1, data.get("size", 0))
    boxes = []
    for item in sorted(data.get("items", []), key=lambda i: -i["size"]):
        x = min(item["offset"] / size * _WIDTH, _WIDTH - _LEAST)
        wide = max(_LEAST, item["size"] / size * _WIDTH)
        named = f": {item['name']}" if item.get("name") else ""
        title = markup.escape(f"{item['kind']}{named}, {item['size']:,} bytes at {item['offset']:,}")
        boxes.append(
            f'<rect x="{x:.1f}" y="0" width="{wide:.1f}" height="{_HEIGHT}" fill="{COLOURS[item["kind"]]}">'
            f"<title>{title}</title></rect>"
        )
    legend = "".join(
        f'<span style="margin-right:1.2em"><span style="display:inline-block;width:.8em;height:.8em;'
        f'background:{COLOURS[row["kind"]]}"></span> {row["kind"]} {100 * row["size"] / size:.1f} %</span>'
        for row in data.get("totals", [])
    )
    return (
        f'<svg viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%" height="{_HEIGHT}" preserveAspectRatio="none" role="img" '
        f'aria-label="Byte map of {caption}">{"".join(boxes)}</svg><div style="font-size:90%">{legend}</div>'
    )


def figure(explorer: Explorer) -> Figure:
    """Return the byte map as a matplotlib figure."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    summary = explorer.answer({"op": "summary"})[0]
    data: dict[str, Any] = explorer.answer({"op": "map", "bins": 1200})[0]
    size = max(1, data.get("size", 0))
    made = Figure(figsize=(9, 1.9), layout="constrained")
    axes = made.add_subplot()
    for item in sorted(data.get("items", []), key=lambda i: -i["size"]):
        hatch = "////" if item["kind"] in HATCHED else None
        axes.broken_barh(
            [(item["offset"], max(item["size"], size / 400))], (0, 1), facecolors=COLOURS[item["kind"]], hatch=hatch,
            edgecolor="#555" if hatch else "none", linewidth=0,
        )  # fmt: skip
    axes.set_xlim(0, size)
    axes.set_yticks([])
    axes.set_xlabel("byte")
    axes.set_title(f"{summary['name']} ({summary['title']})", loc="left", fontsize=10, parse_math=False)
    handles = [
        Patch(facecolor=COLOURS[row["kind"]], hatch="////" if row["kind"] in HATCHED else None,
              label=f"{row['kind']} {100 * row['size'] / size:.1f} %")
        for row in data.get("totals", [])
    ]  # fmt: skip
    if handles:
        made.legend(
            handles=handles, loc="outside lower center", ncols=min(6, len(handles)), fontsize=8, frameon=False
        )
    return made
