"""The funnel between construct and the rest: derived layouts, errors, field tables, traces."""

from __future__ import annotations

import struct

import construct as cs
import numpy as np
import pytest

from atlas_kit.errors import FileCorruptError, TruncatedError
from atlas_kit.formats import schema as c
from atlas_kit.formats.atlas import layout

# fmt: off
Small = cs.Struct(
    "magic" / cs.Const(b"AB") * "the mark",
    "a"     / cs.Int32ul      * "a number",
    "b"     / cs.Int16ul,
    "raw"   / cs.Bytes(3)     * "some bytes",
)
# fmt: on
Listed = cs.Struct("n" / cs.Int8ul, "items" / cs.Array(cs.this.n, "item" / cs.Int16ul * "one of them"))


def test_struct_and_dtype() -> None:
    raw = b"AB" + struct.pack("<IH", 7, 8) + b"xyz"
    assert c.struct_of(Small).unpack(raw) == (b"AB", 7, 8, b"xyz")
    row = np.frombuffer(raw, c.dtype_of(Small))[0]
    assert (row["a"], row["b"]) == (7, 8)
    assert c.dtype_of(Small).itemsize == c.struct_of(Small).size == Small.sizeof() == 11


@pytest.mark.parametrize("con", [cs.Int64ul, cs.Int32sb, cs.Float16l, cs.Float64b, cs.Int8sn, cs.Int32ul])
def test_scalar_dtype(con: cs.Construct) -> None:
    dtype = c.scalar_dtype(con)
    assert dtype.itemsize == con.sizeof()
    assert np.frombuffer(con.build(3), dtype)[0] == 3


def test_mixed_orders_have_no_struct() -> None:
    with pytest.raises(TypeError):
        c.struct_of(cs.Struct("a" / cs.Int32ul, "b" / cs.Int32ub))


@pytest.mark.parametrize(
    "schema",
    [layout.HeaderV1, layout.HeaderV1Short, layout.EntryV1, layout.HeaderV2, layout.HeaderV3,
     layout.EntryHeader, layout.IndexHeader, layout.IndexRecord, layout.SealPrefix],
)  # fmt: skip
def test_every_layout_has_one_meaning(schema: cs.Struct) -> None:
    """Construct, struct and the field table agree on offsets and sizes; every field has a note."""
    rows = c.field_rows(schema)
    assert [row.name for row in rows] == list(layout.names_of(schema))
    assert all(row.note for row in rows)
    assert rows[-1].offset + rows[-1].size == schema.sizeof() == c.struct_of(schema).size
    values = range(1, 1 + len(rows))
    fields = {
        row.name: value if row.type.startswith("u") else bytes([value]) * row.size
        for row, value in zip(rows, values, strict=True)
    }
    fields |= {sub.name: None for sub in schema.subcons if "Const" in repr(sub)}
    raw = schema.build({k: v for k, v in fields.items() if v is not None})
    parsed = schema.parse(raw)
    assert c.struct_of(schema).unpack(raw) == tuple(parsed[row.name] for row in rows)


def test_sizes_of_the_specification() -> None:
    sizes = {1: 104, 2: 160, 3: 256}
    assert {version: schema.sizeof() for version, schema in layout.HEADERS.items()} == sizes
    assert layout.HEADER_V1_SHORT.size == 96
    assert layout.ENTRY_V1.size == 32
    top = c.field_rows(layout.HeaderV1)
    for version in (2, 3):
        assert c.field_rows(layout.HEADERS[version])[: len(top)] == top


def test_errors_say_where() -> None:
    with pytest.raises(TruncatedError, match="header is cut off in field b") as caught:
        c.parse(Small, b"AB\0\0\0\0\1", path="f", what="header")
    assert caught.value.path == "f"
    with pytest.raises(FileCorruptError, match="field magic"):
        c.parse(Small, bytes(11))


def test_trace_shows_the_good_part() -> None:
    spans, error = c.trace(Listed, b"\x03\1\0\2\0")
    assert [(s.offset, s.size, s.value) for s in spans] == [(0, 1, 3), (1, 2, 1), (3, 2, 2)]
    assert spans[1].name.startswith("items")
    assert spans[1].note == "one of them"
    assert error is not None
    spans, error = c.trace(Listed, b"\x03\1\0\2\0\3\0", limit=2)
    assert len(spans) == 2
    assert error is None
