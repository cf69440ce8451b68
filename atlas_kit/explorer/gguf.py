"""A GGUF model as the explorer shows it: metadata and tensors as tables, arrays as tables of their own.

Opening reads the header. Of the tensor data only what is looked at is read: a page of bytes, the rows of a tile.
"""

from __future__ import annotations

import functools
import io
from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.json_text import dumps, to_bytes
from atlas_kit.codecs.numbers import Array
from atlas_kit.codecs.quantities import exact_size
from atlas_kit.errors import AtlasError, InvalidParamError, TruncatedError, printable
from atlas_kit.explorer.contents import Contents, HexLine, cell, elements
from atlas_kit.explorer.items import Item
from atlas_kit.explorer.matrix import StoredMatrix, as_matrix
from atlas_kit.explorer.regions import RecordRegion, Regions
from atlas_kit.explorer.table import Column, FileTable
from atlas_kit.formats.gguf import GGUFFile, LazyStrings, MetadataField, TensorInfo
from atlas_kit.formats.gguf.scan import record_fields
from atlas_kit.formats.gguf.tables import describe_key, describe_value
from atlas_kit.formats.gguf.tensor_names import layer_and_role
from atlas_kit.operations.gguf_values import plain_value, show_value
from atlas_kit.operations.model_overview import model_overview
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    pass


_PREFIX_END = 24
_METADATA = (
    Column("key", "Key"), Column("type", "Type"), Column("value", "Value"),
    Column("size", "Bytes", "bytes"), Column("offset", "Offset", "hex"),
)  # fmt: skip
_TENSORS = (
    Column("name", "Name"), Column("type", "Type"), Column("shape", "Shape"), Column("weights", "Weights", "number"),
    Column("size", "Bytes", "bytes"), Column("offset", "Offset", "hex"),
)  # fmt: skip
#: (label, key of the overview)
_FACTS = (
    ("Architecture", "architecture"), ("Name", "name"), ("Type", "type"), ("License", "license"),
    ("File type", "file_type"), ("Context length", "context_length"), ("Embedding length", "embedding_length"),
    ("Blocks", "block_count"), ("Attention heads", "head_count"), ("Experts", "expert_count"),
    ("Tokenizer", "tokenizer"), ("Vocabulary", "vocabulary_size"),
)  # fmt: skip
_TOKENS = "tokenizer.ggml.tokens"
#: Arrays that say something of each token, shown beside the tokens.
_OF_TOKENS = (("score", "Score", "tokenizer.ggml.scores"), ("kind", "Kind", "tokenizer.ggml.token_type"))
_TOKEN_KINDS = {1: "normal", 2: "unknown", 3: "control", 4: "user defined", 5: "unused", 6: "byte"}


def _fact(key: str, value: Any) -> str:
    unit = {"context_length": " tokens", "vocabulary_size": " tokens"}.get(key, "")
    return f"{value:,}{unit}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


class GGUFContents(Contents):
    """A GGUF file of which the header was read as far as it goes."""

    kind = "gguf"
    title = "GGUF model"

    def __init__(self, source: Source) -> None:
        self.model = GGUFFile.open(source, shards=False, tolerant=True)
        super().__init__(source, self.model.error or self._cut())
        self._offsets = [field.offset for field in self.model.fields]
        self._info_offsets = [info.info_offset for info in self.model.tensor_infos]
        self._lines = functools.lru_cache(maxsize=256)(self._record_lines)
        fields, infos = self.model.fields, self.model.tensor_infos
        tables = {
            "tensors": FileTable(
                "Tensors", _TENSORS, len(infos), lambda n: _tensor_row(infos[n]),
                lambda name: _column(_TENSORS, name, map(_tensor_row, infos)), ("name", "type", "shape"),
            ),
            "metadata": FileTable(
                "Metadata", _METADATA, len(fields), lambda n: _field_row(fields[n]),
                lambda name: _column(_METADATA, name, map(_field_row, fields)), ("key", "type", "value"),
            ),
        }  # fmt: skip
        self.tables = tables if infos else {"metadata": tables["metadata"]}

    def _cut(self) -> AtlasError | None:
        """Say that tensors lie behind the end of the file: what a download that broke off looks like."""
        ends = [info.file_offset + (info.nbytes or 0) for info in self.model.tensor_infos]
        behind = sum(end > self.model.size for end in ends)
        if not behind:
            return None
        return TruncatedError(
            f"the file ends before the data of {behind} of {len(ends)} tensors: {exact_size(max(ends))} are promised",
            path=self.model.path, offset=self.model.size, hint="Copy or download it again.",
        )  # fmt: skip

    # --- what it is -----------------------------------------------------------------------------------------

    def facts(self) -> list[tuple[str, str]]:
        """Return what the file is, as (name, value) rows."""
        found = model_overview(self.model)
        rows = [("Format", f"GGUF version {found['version']}, {found['byte_order']}")]
        rows += [(label, _fact(key, found[key])) for label, key in _FACTS if found[key] not in (None, "")]
        if found["tensor_count"]:
            kinds = ", ".join(f"{row['count']} {name}" for name, row in found["tensor_types"].items())
            rows.append(("Parameters", f"{found['parameters']:,}"))
            rows.append(
                ("Tensors", f"{found['tensor_count']:,}, {exact_size(found['tensor_bytes'])}: {kinds}")
            )
        rows.append(("Header", f"{found['metadata_count']} keys, {exact_size(found['header_size'])}"))
        rows += [(key, str(value)) for key, value in found["atlas"].items()]
        return rows

    def _make_regions(self) -> Regions:
        model = self.model
        found = [RecordRegion(0, min([_PREFIX_END, *self._offsets[:1], *self._info_offsets[:1]]), "header")]
        found += [RecordRegion(f.offset, f.size, "metadata", n) for n, f in enumerate(model.fields)]
        for number, info in enumerate(model.tensor_infos):
            found.append(RecordRegion(info.info_offset, info.info_size, "tensor info", number))
            if info.nbytes and model.scan.complete:
                found.append(RecordRegion(info.file_offset, info.nbytes, "tensor", number))
        tail = "unused" if model.scan.complete else "damaged"
        return Regions(found, self.source.size, tail=tail)

    def name_of(self, region: RecordRegion) -> str:
        """Return what a region belongs to, by name; empty for what has none."""
        if region.record < 0:
            return {"header": "magic, version, counts"}.get(region.kind, "")
        if region.kind == "metadata":
            return self.model.fields[region.record].key
        return self.model.tensor_infos[region.record].name

    groupings = ("layer", "role", "type")

    def group_of(self, region: RecordRegion, by: str) -> str | None:
        """Return the layer, role or type of a tensor."""
        if region.kind != "tensor" or region.record < 0:
            return None
        return _group(self.model.tensor_infos[region.record], by)

    def groups(self, by: str) -> list[tuple[str, int, int]]:
        """Return (name, count, bytes) of each layer, role or type, in the order of the file."""
        found: dict[str, tuple[int, int]] = {}
        for info in self.model.tensor_infos:
            name = _group(info, by)
            count, size = found.get(name, (0, 0))
            found[name] = count + 1, size + (info.nbytes or 0)
        names = sorted(found, key=_layer_number) if by == "layer" else list(found)
        return [(name, *found[name]) for name in names]

    def place_of(self, region: RecordRegion) -> tuple[str, int] | None:
        """Return the table and the row that a region shows, where there is one."""
        if region.record < 0:
            return None
        return ("metadata" if region.kind == "metadata" else "tensors"), region.record

    def find(self, name: str) -> tuple[str, int] | None:
        """Return the table and the row of a name, or None."""
        for table, names in (
            ("tensors", [info.name for info in self.model.tensor_infos]),
            ("metadata", [field.key for field in self.model.fields]),
        ):
            if name in names:
                return table, names.index(name)
        return None

    # --- bytes ----------------------------------------------------------------------------------------------

    def fields(self, start: int, stop: int) -> list[HexLine]:
        """Return the fields of the layout between two offsets."""
        lines: list[HexLine] = []
        for number in self.regions.between(start, stop):
            lines += self._lines_of(self.regions[number], start, stop)
        return [line for line in lines if line.offset < stop and line.offset + line.size > start]

    def _lines_of(self, region: RecordRegion, start: int, stop: int) -> list[HexLine]:
        if region.kind == "header":
            return self._lines(None, False)
        if region.record >= 0 and region.kind == "metadata":
            lines = self._lines(region.record, False)
            items = self.model.fields[region.record].items
            return [*lines, *_array_lines(items, f"metadata_kv[{region.record}].value.array", start, stop)]
        if region.kind == "tensor info":
            return self._lines(region.record, True)
        if region.kind == "tensor":
            return self._weights(self.model.tensor_infos[region.record], start, stop)
        what = {
            "padding": "zeros up to the next tensor",
            "unused": "after the last part",
            "damaged": "cannot be read",
        }
        return [HexLine(region.offset, region.size, b"", region.kind, "bytes", "", what.get(region.kind, ""))]

    def _record_lines(self, number: int | None, tensor: bool) -> list[HexLine]:
        rows = record_fields(self.model.scan, number, tensor=tensor)
        return [HexLine(r.offset, r.size, r.data, r.name, r.type, r.value, r.meaning or "") for r in rows]

    def _weights(self, info: TensorInfo, start: int, stop: int) -> list[HexLine]:
        """Return the weights, or the blocks of weights, that hold bytes of a range."""
        row, name = info.row, printable(info.name)
        if row is None or info.nbytes is None:
            return []
        place = info.file_offset
        if row.dtype is not None and row.type.name != "BF16":
            return elements(
                self.source, name, info.shape, place, self.model.byte_order + row.dtype, start, stop
            )
        lines = []
        last = -(-min(stop - place, info.nbytes) // row.size)
        for block in range(max(0, (start - place) // row.size), last):
            at, column = divmod(block * row.block, info.row_length)
            raw = self.source.read_upto(place + block * row.size, min(row.size, 16))
            where = (
                f"row {at}, weights {column} to {column + row.block - 1}"
                if row.block > 1
                else f"[{at}, {column}]"
            )
            lines.append(
                HexLine(
                    place + block * row.size, row.size, raw, f"{name} block {block}", row.type.name, "", where
                )
            )
        return lines

    # --- one of them ----------------------------------------------------------------------------------------

    def table(self, name: str) -> FileTable:
        """Return the table of a name."""
        if name.startswith("values:") and name not in self.tables:
            self.tables[name] = self._values(int(name.partition(":")[2]))
        return super().table(name)

    def _values(self, number: int) -> FileTable:
        field = _at(self.model.fields, number)
        columns, parts = [Column("value", "Value")], [field.items]
        if field.key == _TOKENS:
            for name, label, key in _OF_TOKENS:
                beside = self.model.metadata.get(key)
                if beside is not None and beside.is_array and beside.count == field.count:
                    columns.append(Column(name, label, "text" if name == "kind" else "number"))
                    parts.append(beside.items)
        elif not isinstance(field.items, LazyStrings):
            columns = [Column("value", "Value", "number" if hasattr(field.items, "numpy") else "text")]

        def row(index: int) -> list[Any]:
            return [_cell(column, part[index]) for column, part in zip(columns, parts, strict=True)]

        def cells(name: str) -> list[Any]:
            place = [column.name for column in columns].index(name)
            return [_cell(columns[place], value) for value in plain_value(parts[place])]

        return FileTable(printable(field.key), columns, field.count, row, cells, ("value",))

    def item(self, table: str, row: int) -> Item:
        """Return everything about one row of a table."""
        if table == "tensors":
            return self._tensor(_at(self.model.tensor_infos, row))
        if table == "metadata":
            return self._field(row, _at(self.model.fields, row))
        return super().item(table, row)

    def _field(self, number: int, field: MetadataField) -> Item:
        known = describe_key(field.key)
        facts = [("Type", field.type_name)]
        if known is not None:
            facts.append(("Meaning", known.meaning))
        item = Item(field.key, "metadata", facts, field.offset, field.size)
        item.exports["json"] = lambda: [dumps(plain_value(field.items), indent=2).encode() + b"\n"]
        if field.is_array:
            facts.append(("Elements", f"{field.count:,}"))
            item.values = f"values:{number}"
            item.exports["txt"] = lambda: _text_lines(plain_value(field.items))
            if hasattr(field.items, "numpy"):
                item.matrix = lambda: _of_array(np.asarray(field.value))
                item.exports["npy"] = lambda: [_npy(np.asarray(field.value))]
            return item
        named = describe_value(field.key, field.items)
        facts.append(("Value", f"{show_value(field, 400)}{f': {named}' if named else ''}"))
        if isinstance(field.items, str):
            raw = to_bytes(field.items)
            item.length, item.read = len(raw), lambda count: raw[:count]
            item.exports["txt"] = lambda: [raw]
        return item

    def _tensor(self, info: TensorInfo) -> Item:
        shape = " x ".join(map(str, info.shape)) or "scalar"
        facts = [("Type", info.type_name), ("Shape", shape), ("Weights", f"{info.elements:,}")]
        if info.row is not None:
            facts.append(("Stored as", info.row.meaning))
        facts.append(("Bytes", "not known" if info.nbytes is None else exact_size(info.nbytes)))
        item = Item(info.name, "tensor", facts, info.file_offset, info.nbytes or 0)
        try:
            matrix = self.matrix(info)
        except AtlasError as error:
            item.problem = error.message
            return item
        item.matrix = lambda: matrix
        item.exports = {"npy": lambda: self._npy(info), "bin": lambda: self.model.iter_raw(info)}
        return item

    def matrix(self, info: TensorInfo) -> StoredMatrix:
        """Return a tensor to be read in tiles.

        Raises
        ------
        AtlasError
            Its type is not known, or its data is not all there.
        """
        from atlas_kit.formats.gguf.dequantize import dequantize_rows

        row, nbytes = self.model._check(info, self.model)
        order = self.model.byte_order

        def decode(raw: Any) -> Array:
            width = len(raw) // row.size * row.block
            return dequantize_rows(bytes(raw), 1, replace(info, dims=(width,)), row, order)

        def read(offset: int, size: int) -> bytes:
            return self.source.read(info.file_offset + offset, size)

        if nbytes:
            decode(read(0, row.size))  # a type that cannot be dequantised shows now
        return StoredMatrix(
            as_matrix(info.shape), info.shape, info.type_name, row.block, row.size, read, decode
        )

    def _npy(self, info: TensorInfo) -> Iterator[bytes]:
        """Yield a tensor as ``.npy``: plain numbers as they are, blocks as float32."""
        row, _ = self.model._check(info, self.model)
        if row.dtype is not None and row.type.name != "BF16":
            yield _npy_head(self.model.byte_order + row.dtype, info.shape)
            yield from self.model.iter_raw(info)
            return
        yield _npy_head("<f4", info.shape)
        for piece in self.model.iter_dequantized(info):
            yield piece.tobytes()

    def close(self) -> None:
        """Release the file."""
        self.model.close()
        self.source.close()


def _layer_number(name: str) -> tuple[int, int, str]:
    """Return a sort key by which layers come in their order, behind what belongs to none."""
    number = name.rpartition(" ")[2].rpartition(".")[2]
    return (1, int(number), name) if number.isdecimal() else (0, 0, name)


def _group(info: TensorInfo, by: str) -> str:
    if by == "type":
        return info.type_name
    layer, role = layer_and_role(info.name)
    if by == "layer":
        return f"layer {layer}" if layer else "outside of the layers"
    return printable(role)


def _at(rows: Any, number: int) -> Any:
    if not 0 <= number < len(rows):
        raise InvalidParamError(f"there is no row {number}")
    return rows[number]


def _column(columns: tuple[Column, ...], name: str, rows: Iterable[list[Any]]) -> list[Any]:
    place = [column.name for column in columns].index(name)
    return [row[place] for row in rows]


def _field_row(field: MetadataField) -> list[Any]:
    return [cell(field.key), field.type_name, show_value(field, 90), field.size, field.offset]


def _tensor_row(info: TensorInfo) -> list[Any]:
    shape = " x ".join(map(str, info.shape)) or "scalar"
    return [cell(info.name), info.type_name, shape, info.elements, info.nbytes, info.file_offset]


def _cell(column: Column, value: Any) -> Any:
    if column.name == "kind":
        return _TOKEN_KINDS.get(value, str(value))
    if column.kind == "text":
        return cell(value if isinstance(value, str) else dumps(plain_value(value)))
    return float(value) if isinstance(value, float) else int(value)


def _array_lines(items: Any, name: str, start: int, stop: int) -> list[HexLine]:
    """Return the elements of an array in the header that hold bytes of a range."""
    if isinstance(items, LazyStrings):
        return _string_lines(items, name, start, stop)
    if not hasattr(items, "numpy"):
        return []
    import struct

    width = struct.calcsize(items.code)
    first = max(0, (start - items.offset) // width)
    last = min(len(items), -(-(stop - items.offset) // width))
    kind = np.dtype(items.code.lstrip("<>=")).name
    return [
        HexLine(items.offset + n * width, width, b"", f"{name}[{n}]", kind, _show(value), "one element")
        for n, value in enumerate(items[first:last] if last > first else [], first)
    ]


def _string_lines(items: LazyStrings, name: str, start: int, stop: int) -> list[HexLine]:
    width = items.prefix.size
    places: Callable[[int], int] = lambda n: items.offset_of(n) - width  # noqa: E731
    number = max(0, bisect_right(range(len(items)), start, key=places) - 1)
    lines = []
    while number < len(items) and places(number) < stop:
        raw = items.raw(number)
        label = f"{name}[{number}]"
        shown = f'"{printable(items[number])[:80]}"'
        lines.append(
            HexLine(places(number), width + len(raw), b"", label, "str", shown, "a length and a text")
        )
        number += 1
    return lines


def _show(value: Any) -> str:
    return format(value, ".7g") if isinstance(value, float) else str(value)


def _text_lines(values: list[Any]) -> Iterator[bytes]:
    for value in values:
        yield (to_bytes(value) if isinstance(value, str) else dumps(value).encode()) + b"\n"


def _of_array(values: Array) -> StoredMatrix:
    flat = values.reshape(-1)
    raw = np.ascontiguousarray(flat).view(np.uint8) if flat.size else np.empty(0, np.uint8)
    kind, size = flat.dtype, flat.dtype.itemsize

    def read(offset: int, count: int) -> bytes:
        return raw[offset : offset + count].tobytes()

    def decode(data: Any) -> Array:
        with np.errstate(all="ignore"):
            return np.frombuffer(data, kind).astype(np.float32)

    return StoredMatrix((1, flat.size), (flat.size,), str(kind), 1, size, read, decode)


def _npy_head(dtype: str, shape: tuple[int, ...]) -> bytes:
    out = io.BytesIO()
    header = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(out, header)
    return out.getvalue()


def _npy(values: Array) -> bytes:
    return _npy_head(values.dtype.str, values.shape) + values.tobytes()
