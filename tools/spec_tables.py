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
    from atlas_kit.formats.schema import field_rows

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


# --- GGUF: records of varying size, and tables whose rows need words of their own --------------------------


def gguf_record_table(part: str) -> str:
    """Return the field table of a part of a GGUF header (a field of ``layout.Layout`` that is a ``Struct``).

    Sizes vary, so there are no offsets. Types are those of versions 2 and 3, and of 1 where it differs.
    """
    from atlas_kit.formats.gguf.layout import layout
    from atlas_kit.formats.schema import type_name

    rows = []
    for new, old in zip(getattr(layout(3), part).subcons, getattr(layout(1), part).subcons, strict=True):
        if not new.docs:  # places that the reader notes down take no bytes
            continue
        names = [_gguf_type(con, type_name) for con in (new, old)]
        kind = names[0] if names[0] == names[1] else f"{names[0]} ({names[1]} in version 1)"
        rows.append((f"`{new.name}`", kind, new.docs))
    return markdown_table(["field", "type", "meaning"], rows)


def _gguf_type(con: Any, type_name: Any) -> str:
    import construct as cs

    while isinstance(con, cs.Renamed):
        con = con.subcon
    if isinstance(con, cs.Array):
        return f"{type_name(con.subcon)} each"
    return "as the type says" if isinstance(con, cs.Switch) else str(type_name(con))


def gguf_value_types() -> str:
    """Return the table of metadata value types."""
    from atlas_kit.formats.gguf import tables

    rows = [
        (int(r.type), f"`{r.type.name}`", r.short, "varies" if r.size is None else r.size, r.meaning, r.since)
        for r in tables.VALUE_TYPES
    ]
    return markdown_table(["number", "name", "short", "bytes", "meaning", "since version"], rows)


def gguf_tensor_types() -> str:
    """Return the table of tensor types."""
    from atlas_kit.formats.gguf import tables

    rows = [
        (int(r.type), f"`{r.type.name}`", r.block, r.size, f"{r.bits_per_weight:.4g}", r.meaning)
        for r in tables.GGML_TYPES
    ]
    return markdown_table(
        ["number", "name", "weights a block", "bytes a block", "bits a weight", "meaning"], rows
    )


def gguf_keys(table: str) -> str:
    """Return the table of known keys: ``KNOWN_KEYS`` or ``ATLAS_KEYS``."""
    from atlas_kit.formats.gguf import tables

    rows = [(f"`{row.key}`", row.type, row.meaning) for row in getattr(tables, table)]
    return markdown_table(["key", "type", "meaning"], rows)


def emit_gguf(name: str, *arguments: str) -> None:
    """Print what ``gguf_<name>`` returns into the page that cog is working on."""
    import cog

    cog.outl(globals()[f"gguf_{name}"](*arguments))


# --- a learned memory in a .atlas file: its description and its arrays --------------------------------------


def memory_fields() -> str:
    """Return the fields of the description."""
    from atlas_kit.persistence.tables import DESCRIPTION_FIELDS

    rows = [(f"`{row.name}`", row.type, row.note) for row in DESCRIPTION_FIELDS]
    return markdown_table(["field", "type", "meaning"], rows)


def memory_runtime() -> str:
    """Return what a session keeps beside its memory."""
    from atlas_kit.persistence.tables import RUNTIME_FIELDS

    rows = [(f"`{row.name}`", row.type, "" if row.optional else "always", row.note) for row in RUNTIME_FIELDS]
    return markdown_table(["field", "type", "there", "meaning"], rows)


def memory_episode_fields() -> str:
    """Return the fields of the description of episodes."""
    from atlas_kit.persistence.tables import EPISODES_FIELDS

    rows = [(f"`{row.name}`", row.type, row.note) for row in EPISODES_FIELDS]
    return markdown_table(["field", "type", "meaning"], rows)


def memory_kept(table: str) -> str:
    """Return the arrays in ``WAITING``, ``OPEN`` or ``PART_ARRAYS``."""
    from atlas_kit.persistence import tables

    rows = [(f"`{row.name}`", row.type, tables.shape_of(row), row.note) for row in getattr(tables, table)]
    return markdown_table(["array", "type", "shape", "meaning"], rows)


def memory_index_fields() -> str:
    """Return the fields of the description of an index."""
    from atlas_kit.persistence.index_tables import FIELDS

    return markdown_table(
        ["field", "type", "meaning"], [(f"`{row.name}`", row.type, row.note) for row in FIELDS]
    )


def memory_index_arrays() -> str:
    """Return the entries of an index that are read whole."""
    from atlas_kit.persistence.index_tables import ARRAYS
    from atlas_kit.persistence.tables import shape_of

    rows = [(f"`{row.name}`", row.type, shape_of(row), row.note) for row in ARRAYS]
    return markdown_table(["entry", "type", "shape", "meaning"], rows)


def memory_index_ranges() -> str:
    """Return the entries of an index of which ranges are read."""
    from atlas_kit.persistence.index_tables import RANGES

    return markdown_table(
        ["entry", "holds", "meaning"], [(f"`{row.name}`", row.type, row.note) for row in RANGES]
    )


def memory_arrays() -> str:
    """Return the arrays of a layer."""
    from atlas_kit.memory.arrays import ARRAYS

    types = {"compute": "as `dtype`", "stored": "as `window_dtype`"}
    rows = [
        (f"`{row.name}`", types.get(row.type, row.type), ", ".join(("*batch*", *row.shape)),
         row.when or "always", "yes" if row.large else "", row.note)
        for row in ARRAYS
    ]  # fmt: skip
    return markdown_table(["array", "type", "shape", "when", "large", "meaning"], rows)


def memory_conditions() -> str:
    """Return what the words in the column "when" ask of a configuration."""
    from atlas_kit.memory.arrays import CONDITIONS

    return markdown_table(["when", "the configuration says"], CONDITIONS.items())


def memory_symbols() -> str:
    """Return what the words in the column "shape" stand for."""
    from atlas_kit.memory.arrays import SYMBOLS

    return markdown_table(["shape", "is"], SYMBOLS.items())


def memory_limits() -> str:
    """Return what arrays can be rounded to."""
    from atlas_kit.formats.atlas.tables import DTYPE_BY_NAME
    from atlas_kit.persistence.snapshot import LIMITS

    rows = [
        (f"`{name}`", f"{8 * DTYPE_BY_NAME[name].size / DTYPE_BY_NAME[name].block:g}", f"{limit:.1%}")
        for name, limit in LIMITS.items()
    ]
    return markdown_table(["dtype", "bits a number", "largest relative error of an array"], rows)


def memory_example() -> str:
    """Save a small memory beside a chat, and return what atlas-tool says of the file."""
    import json
    import tempfile
    from pathlib import Path
    from unittest import mock

    import numpy as np

    from atlas_kit import MemoryFile
    from atlas_kit.memory import Memory, presets
    from atlas_kit.persistence.snapshot import save_memory
    from tools import reference
    from tools.make_sample_data import NOW

    memory = Memory(presets.delta_rule(4, 3, window_size=8))
    state, _ = memory.observe(memory.init(), np.eye(4), np.ones((4, 3)))
    lines = ["```console"]
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", SOURCE_DATE_EPOCH=str(NOW)):
        path = Path(folder) / "llama-7b_memory.atlas"
        with MemoryFile.edit(path, create=True) as file:
            file.set("chat_history", "User: Hello\n", type=2)
        save_memory(path, memory, state, metadata={"model": "llama-7b"})
        command = "atlas-tool inspect llama-7b_memory.atlas"
        output = reference.run(command, path.parent).stdout
        lines += [f"$ {command}", *(line.rstrip() for line in output.splitlines()), "```", "", "```json"]
        with MemoryFile.open(path) as file:
            lines += [json.dumps(file["atlas_memory"].json(), indent=1), "```"]
    return "\n".join(lines)


def emit_memory(name: str, *arguments: str) -> None:
    """Print what ``memory_<name>`` returns into the page that cog is working on."""
    import cog

    cog.outl(globals()[f"memory_{name}"](*arguments))
