"""Write the field tables of the specifications from the schemas; called by cog inside ``formats/*.md``.

The layouts (``layout.py``) and tables (``tables.py``) of each format are the only place where an offset, a
width or a number stands; this turns their rows into Markdown. Knows nothing of any one format.
"""

from __future__ import annotations

import dataclasses
import enum
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

#: Words for the columns of tables whose field names are too short for a reader of the specification.
TITLES = {"id": "number", "max_ratio": "largest ratio", "note": "meaning", "size": "bytes", "numpy": "NumPy"}
#: Columns that only the code needs.
INTERNAL = {"levels", "module", "safetensors"}


def markdown_table(titles: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Format rows as a Markdown table; a bar inside a cell is escaped."""
    lines = [titles, ["---"] * len(titles), *rows]
    cells = [[str(cell).replace("|", "\\|") for cell in line] for line in lines]
    return "\n".join(f"| {' | '.join(line)} |" for line in cells)


def layout_table(format_name: str, layout: str) -> str:
    """Return the field table of one fixed layout of ``atlas_kit.formats.<format>.layout``."""
    from atlas_kit.formats._construct import field_rows

    schema = getattr(importlib.import_module(f"atlas_kit.formats.{format_name}.layout"), layout)
    rows = [(f.offset, f"`{f.name}`", f.type, f.note) for f in field_rows(schema)]
    return markdown_table(["offset", "field", "type", "meaning"], rows)


def rows_table(format_name: str, table: str) -> str:
    """Return one table of numbers: a tuple of dataclass rows, or an enumeration."""
    rows = _find(format_name, table)
    if isinstance(rows, type) and issubclass(rows, enum.Enum):
        return markdown_table(["number", "name"], [(member.value, f"`{member.name}`") for member in rows])
    rows = list(rows.values()) if isinstance(rows, dict) else list(rows)
    names = [f.name for f in dataclasses.fields(rows[0]) if f.name not in INTERNAL]
    names = [name for name in names if any(getattr(row, name) not in ("", None) for row in rows)]
    cells = [[_cell(name, getattr(row, name)) for name in names] for row in rows]
    return markdown_table([TITLES.get(name, name) for name in names], cells)


def _find(format_name: str, table: str) -> Any:
    for module in (f"atlas_kit.formats.{format_name}.tables", "atlas_kit.codecs.table"):
        found = getattr(importlib.import_module(module), table, None)
        if found is not None:
            return found
    raise LookupError(f"no table {table} for {format_name}")


def _cell(name: str, value: object) -> str:
    if name in {"name", "numpy"} and value:
        return f"`{value}`"
    return str(value)


def emit(format_name: str, layout: str) -> None:
    """Print a layout's table into the page that cog is working on."""
    import cog

    cog.outl(layout_table(format_name, layout))


def emit_rows(format_name: str, table: str) -> None:
    """Print a table of numbers, with its name in bold, into the page that cog is working on."""
    import cog

    cog.outl(f"\n**{table.replace('_', ' ').capitalize()}**\n\n{rows_table(format_name, table)}\n")
