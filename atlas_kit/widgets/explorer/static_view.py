"""The explorer without JavaScript: the summary as text, all that was looked at as a page, the byte map as a picture."""

from __future__ import annotations

import html as markup
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.quantities import size as in_words
from atlas_kit.codecs.quantities import utc
from atlas_kit.errors import InvalidParamError
from atlas_kit.explorer.regions import KINDS
from atlas_kit.widgets import saved
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
_WIDTH, _HEIGHT, _LEAST, _MARK = 1000, 40, 2.5, 4
#: Errors that have a mark on the map.
MOST_MARKS = 100
#: Characters of a text, and messages, in a saved page.
MOST_TEXT = 30_000


@dataclass
class Seen:
    """What was looked at last: the name of a tab, the order of each table, and the row that was chosen."""

    tab: str = "summary"
    orders: dict[str, dict[str, Any]] = field(default_factory=dict)
    chosen: tuple[str, int] | None = None


def text(explorer: Explorer) -> str:
    """Return the summary in a few lines."""
    summary = explorer.answer({"op": "summary"})[0]
    lines = [f"{summary['name']}: {summary['title']}"]
    lines += [f"  {label}: {value}" for label, value in summary["facts"][:12]]
    if summary["problem"]:
        lines.append(f"  {summary['problem']['error']}. {summary['problem']['hint'] or ''}".rstrip())
    return "\n".join(lines)


def html(explorer: Explorer, seen: Seen | None = None) -> str:
    """Return what there is to see as HTML that loads and runs nothing: tabs as in the explorer, values on hover."""
    seen = seen or Seen()
    summary = explorer.answer({"op": "summary", "check": True})[0]  # a small file is checked, as it is live
    title = f"{summary['name']}: {summary['title']}"
    panels = {"summary": saved.Panel("Summary", _problem(summary) + saved.facts(summary["facts"]))}
    if (
        explorer.passphrase is not None
    ):  # what a passphrase protects does not go into a notebook that is passed on
        note = "<p>The file is encrypted: what is in it is not saved with the notebook.</p>"
        panels["summary"] = saved.Panel("Summary", note + panels["summary"].body)
        summary["tables"] = {}
    elif seen.chosen is not None and (item := _item(explorer, *seen.chosen)) is not None:
        panels["item"] = item
    for name in summary["tables"]:
        panels[name] = _table(explorer, name, seen.orders.get(name, {}))
    findings = explorer.answer({"op": "validate", "start": False})[0]
    if explorer.passphrase is not None:
        findings = {"state": "unknown"}  # they name what is in the file
    if findings["state"] == "done":
        panels["findings"] = saved.Panel("Findings", _findings(findings))
        said = f"<p>{markup.escape(findings['sentence'])}</p>" if findings["findings"] else ""
        panels["summary"] = saved.Panel("Summary", said + panels["summary"].body)
    at = "item" if "item" in panels and seen.tab in summary["tables"] else seen.tab
    chosen = panels[at].label if at in panels else "Summary"
    page = saved.page(title, list(panels.values()), chosen)
    hurt = [row for row in findings.get("findings", []) if row["severity"] == "error"]
    return page.replace("<form ", f"{_svg(explorer, markup.escape(title), hurt)}<form ", 1)


def _problem(found: dict[str, Any]) -> str:
    """Return what is wrong with the file as a paragraph; empty where nothing is."""
    if not found["problem"]:
        return ""
    hint, error = markup.escape(found["problem"]["hint"] or ""), found["problem"]["error"]
    return f"<p><strong>{markup.escape(error[:1].upper() + error[1:])}.</strong> {hint}</p>"


def _table(explorer: Explorer, name: str, order: dict[str, Any]) -> saved.Panel:
    """Return a table as it was sorted and filtered."""
    reply = explorer.answer({"op": "rows", "table": name, "count": saved.MOST_ROWS, **order})[0]
    if "error" in reply:
        return saved.Panel(name, saved.text(reply["error"]))
    columns = reply["columns"]
    rows = [
        [_cell(value, c["kind"]) for value, c in zip(row[1:], columns, strict=True)] for row in reply["rows"]
    ]
    note = ""
    if order.get("filter"):
        note = f"<p>{reply['matched']:,} of {reply['total']:,}: {markup.escape(str(order['filter']))}</p>"
    body = saved.table([column["label"] for column in columns], rows, reply["matched"])
    return saved.Panel(reply["title"], note + body)


def sheet(explorer: Explorer, seen: Seen) -> tuple[list[str], list[list[Any]]]:
    """Return the whole table that is looked at, as numbers and texts; elsewhere the summary."""
    if seen.tab not in explorer.contents.tables:
        return ["", "value"], explorer.answer({"op": "summary"})[0]["facts"]
    order = seen.orders.get(seen.tab, {})
    rows: list[list[Any]] = []
    while True:
        reply = explorer.answer({"op": "rows", "table": seen.tab, "start": len(rows), "count": 500, **order})[
            0
        ]
        if "error" in reply:
            raise InvalidParamError(reply["error"])
        rows += [row[1:] for row in reply["rows"]]
        if len(rows) >= reply["matched"] or not reply["rows"]:
            return [column["label"] for column in reply["columns"]], rows


def _cell(value: Any, kind: str) -> Any:
    """Return a cell as the explorer shows it."""
    if value is None:
        return None
    if kind == "bytes":
        return in_words(value)
    if kind == "hex":
        return hex(value)
    if kind == "time":
        return (utc(value, "%Y-%m-%d %H:%M:%S") or "far in the future") if value else "unset"
    return value


def _item(explorer: Explorer, table: str, row: int) -> saved.Panel | None:
    """Return what was chosen: its facts, and its text, conversation or numbers."""
    item = explorer.answer({"op": "item", "table": table, "row": row})[0]
    if "error" in item:
        return None
    where = {"table": table, "row": row}
    parts = [f"<h4>{markup.escape(item['name'])}</h4>", saved.facts(item["facts"])]
    if item["problem"]:
        parts.append(f"<p><strong>{markup.escape(item['problem'])}</strong></p>")
    views = item["views"]
    if "chat" in views:
        reply = explorer.answer({"op": "chat", **where})[0]
        parts += [
            saved.table(["who", "what"], [[m["role"], m["text"][:MOST_TEXT]] for m in reply["messages"]])
        ]
    elif "text" in views:
        parts.append(saved.text(explorer.answer({"op": "text", **where})[0]["text"][:MOST_TEXT]))
    elif "values" in views:
        parts.append(_table(explorer, item["values"], {}).body)
    elif "matrix" in views:
        parts.append(_matrix(explorer, item["name"], where))
    if "histogram" in views:
        found = explorer.answer({"op": "histogram", **where})[0]
        if found.get("counts"):
            parts.append(
                saved.bars(
                    found["counts"], (found["edges"][0], found["edges"][1]), f"The values of {item['name']}"
                )
            )
    label = item["name"] if len(item["name"]) <= 28 else f"{item['name'][:10]}…{item['name'][-16:]}"
    return saved.Panel(label, "".join(parts))


def _matrix(explorer: Explorer, name: str, where: dict[str, Any]) -> str:
    found = explorer.item(**where).matrix
    if found is None:
        return ""
    matrix = found()
    rows, columns = matrix.shape
    tile, blocks, _ = matrix.sampled_tile(0, rows, 0, columns, saved.PIXELS, saved.PIXELS)
    return saved.matrix(tile, name, shape=(rows, columns), blocks=(int(blocks[0]), int(blocks[1])))


def _findings(found: dict[str, Any]) -> str:
    rows = [
        [
            row["severity"],
            row["code"],
            row["offset"],
            f"{row['key']}: " * bool(row["key"]) + row["message"],
            row["hint"],
        ]
        for row in found["findings"]
    ]
    said = f"<p><strong>{markup.escape(found['sentence'])}</strong></p>"
    return said + (saved.table(["", "code", "byte", "what was found", "what to do"], rows) if rows else "")


def _svg(explorer: Explorer, caption: str, hurt: list[dict[str, Any]]) -> str:
    """Return the byte map, with a red mark where an error was found."""
    data: dict[str, Any] = explorer.answer({"op": "map", "bins": 400})[0]
    size = max(1, data.get("size", 0))
    boxes = []
    for item in sorted(data.get("items", []), key=lambda i: -i["size"]):
        x = min(item["offset"] / size * _WIDTH, _WIDTH - _LEAST)
        wide = max(_LEAST, item["size"] / size * _WIDTH)
        named = f": {item['name']}" if item.get("name") and explorer.passphrase is None else ""
        title = markup.escape(f"{item['kind']}{named}, {item['size']:,} bytes at {item['offset']:,}")
        boxes.append(
            f'<rect x="{x:.1f}" y="0" width="{wide:.1f}" height="{_HEIGHT}" fill="{COLOURS[item["kind"]]}">'
            f"<title>{title}</title></rect>"
        )
    for row in hurt[:MOST_MARKS]:
        if row["offset"] is not None:
            x = min(row["offset"] / size * _WIDTH, _WIDTH - _MARK)
            title = markup.escape(f"byte {row['offset']:,}: {row['message']}")
            boxes.append(
                f'<rect x="{x:.1f}" y="0" width="{_MARK}" height="{_HEIGHT}" fill="#c00"><title>{title}</title></rect>'
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
