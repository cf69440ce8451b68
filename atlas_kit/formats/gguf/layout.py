"""The bytes of a GGUF header as a construct schema: the single source for reading, writing and explaining.

``layout(version, byte_order)`` gives the schema of one dialect. Names are the specification's
(``docs/gguf.md`` of ggml). Everything that is read a million times is still declared here: ``Record`` plans
a ``Struct`` once and then reads it without construct's bookkeeping, and the array constructs leave their
elements where they are and only find out where they end. Knows nothing about files.
"""

from __future__ import annotations

import functools
import struct
from array import array
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import construct as cs

from atlas_kit.errors import FileCorruptError, InvalidParamError, TruncatedError
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.strings import LazyStrings, walk_strings
from atlas_kit.formats.gguf.tables import GGMLType, ValueType
from atlas_kit.formats.gguf.values import LazyArrays, LazyNumbers, OddNaN
from atlas_kit.formats.schema import BufferStream, struct_of


def _need(stream: BufferStream, size: int, what: str) -> int:
    """Return where ``size`` more bytes end, or raise when the file ends before that."""
    stop = stream.pos + size
    if stream.ensure(stop) < stop:
        left = max(stream.end - stream.pos, 0)
        raise TruncatedError(f"{what} of {size} bytes is promised, and {left} are left", offset=stream.pos)
    return stop


# --- leaves ------------------------------------------------------------------------------------------------


class Known(cs.Adapter):
    """A number with names: known ones become members of ``members``, unknown ones stay numbers."""

    def __init__(self, subcon: Any, members: Any) -> None:
        super().__init__(subcon)
        self.members = {int(member): member for member in members}

    def _decode(self, obj: int, context: Any, path: str) -> int:
        return int(obj) if obj not in self.members else self.members[obj]

    def _encode(self, obj: int, context: Any, path: str) -> int:
        return int(obj)


class BoolByte(cs.Adapter):
    """One byte: 0 and 1 become ``bool``, anything else stays a number, so that it goes back unchanged."""

    type_label = "bool"

    def _decode(self, obj: int, context: Any, path: str) -> bool | int:
        return bool(obj) if obj < 2 else obj

    def _encode(self, obj: Any, context: Any, path: str) -> int:
        return int(obj)


class ExactFloat(cs.Adapter):
    """A float whose NaNs keep their bits: the processor may change a signalling NaN in passing."""

    def _parse(self, stream: Any, context: Any, path: str) -> float:
        size = self.subcon.length
        stop = _need(stream, size, "a number")
        raw = bytes(stream.buf[stream.pos : stop])
        stream.pos = stop
        value: float = struct.unpack(self.subcon.fmtstr, raw)[0]
        return value if value == value else OddNaN(raw)

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        if isinstance(obj, OddNaN) and len(obj.raw) == self.subcon.length:
            stream.write(obj.raw)
            return obj
        return self.subcon._build(obj, stream, context, path)


class Text(cs.Construct):
    """A length, then so many bytes of UTF-8 (any bytes survive as surrogate escapes)."""

    type_label = "str"

    def __init__(self, length: Any) -> None:
        super().__init__()
        self.length = length
        self.prefix = struct.Struct(length.fmtstr)

    def _parse(self, stream: Any, context: Any, path: str) -> str:
        start = stream.pos
        body = _need(stream, self.prefix.size, "a string's length")
        (size,) = self.prefix.unpack_from(stream.buf, start)
        if size > tables.MAX_STRING or size > stream.end - body:
            left = stream.end - body
            raise TruncatedError(
                f"a string of {size} bytes is promised, and {left} bytes are left", offset=start
            )
        stop = body + size
        stream.ensure(stop)
        stream.pos = stop
        return str(stream.buf[body:stop], "utf-8", "surrogateescape")

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        raw = encode_text(obj)
        self.length._build(len(raw), stream, context, path)
        stream.write(raw)
        return obj

    def _sizeof(self, context: Any, path: str) -> int:
        raise cs.SizeofError("a string has no fixed size", path=path)


def encode_text(text: str | bytes) -> bytes:
    """Return the bytes of a string (the reverse of reading it)."""
    if isinstance(text, str):
        return text.encode("utf-8", "surrogateescape")
    if isinstance(text, (bytes, bytearray, memoryview)):
        return bytes(text)
    raise InvalidParamError(f"a string is needed, not {type(text).__name__}")


class Dimensions(cs.Adapter):
    """The number of dimensions, checked before anybody believes it."""

    def _decode(self, obj: int, context: Any, path: str) -> int:
        if obj > tables.MAX_DIMS:
            raise FileCorruptError(
                f"a tensor of {obj} dimensions is not possible: at most {tables.MAX_DIMS} are allowed",
                offset=context.get("_offset"),
                key=context.get("name"),
            )
        return obj

    def _encode(self, obj: int, context: Any, path: str) -> int:
        return obj


class UnknownType(cs.Construct):
    """Stands where the size of a value cannot be known, so that reading must end."""

    type_label = "unknown"

    def __init__(self, field: str) -> None:
        super().__init__()
        self.field = field

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        raise FileCorruptError(
            f"value type {context[self.field]} is not known, so what follows cannot be found",
            offset=stream.pos,
            key=context.get("key"),
        )

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        raise InvalidParamError(f"value type {context[self.field]} cannot be written")


# --- arrays ------------------------------------------------------------------------------------------------


class _Items(cs.Construct):
    """What array constructs share: the count is checked before anything is allocated."""

    def _count(self, stream: Any, context: Any, smallest: int, what: str) -> int:
        count = int(context["len"])
        left = max(stream.end - stream.pos, 0)
        if count > tables.MAX_ARRAY or count > left // smallest:
            raise TruncatedError(
                f"an array of {count} {what} is promised, and {left} bytes are left", offset=stream.pos
            )
        return count

    def _sizeof(self, context: Any, path: str) -> int:
        raise cs.SizeofError("an array has no fixed size", path=path)


class NumberItems(_Items):
    """The elements of an array of numbers; left in place, read with NumPy or ``struct`` when asked for."""

    def __init__(self, element: Any, label: str) -> None:
        super().__init__()
        self.element = element
        self.type_label = f"{label}[]"

    def _parse(self, stream: Any, context: Any, path: str) -> LazyNumbers:
        size = self.element.sizeof()
        count = self._count(stream, context, size, "numbers")
        start = stream.pos
        if self.type_label == "f32[]" and stream.before is not None and len(stream.before) == count + 1:
            stream.foresee(start + 2 * count * size)  # scores of tokens, behind which stand their types
        stop = _need(stream, count * size, "an array")
        stream.pos = stop
        return LazyNumbers(stream, start, count, self.element)

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        if isinstance(obj, LazyNumbers) and obj.code == LazyNumbers.code_of(self.element):
            stream.write(obj.encoded())
        else:
            for value in obj.tolist() if hasattr(obj, "tolist") else obj:
                self.element._build(value, stream, context, path)
        return obj


class StringItems(_Items):
    """The elements of an array of strings; only where each starts is found out."""

    type_label = "str[]"

    def __init__(self, text: Text) -> None:
        super().__init__()
        self.text = text

    def _parse(self, stream: Any, context: Any, path: str) -> LazyStrings:
        count = self._count(stream, context, self.text.prefix.size, "strings")
        return LazyStrings(stream, walk_strings(stream, count, self.text.prefix), self.text.prefix)

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        if isinstance(obj, LazyStrings) and obj.prefix.format == self.text.prefix.format:
            stream.write(obj.encoded())
        else:
            pack = self.text.prefix.pack
            for item in obj.iter_raw() if isinstance(obj, LazyStrings) else obj:
                raw = encode_text(item)
                stream.write(pack(len(raw)))
                stream.write(raw)
        return obj


class ArrayItems(_Items):
    """The elements of an array of arrays; checked down to the last, and kept as they are nested."""

    type_label = "arr[]"

    def __init__(self, head: struct.Struct, sizes: dict[int, int], text: Text) -> None:
        super().__init__()
        self.head = head  # type and length of one inner array
        self.sizes = sizes
        self.text = text
        self.array: Any = None  # the schema of one inner array: set when it exists

    def _parse(self, stream: Any, context: Any, path: str) -> LazyArrays:
        count = self._count(stream, context, self.head.size, "arrays")
        return LazyArrays(stream, self._skip_arrays(stream, count, 1), self.array)

    def _skip_arrays(self, stream: Any, count: int, depth: int) -> array[int]:
        """Walk over ``count`` arrays; return where each starts, and the end."""
        if depth > tables.MAX_DEPTH:
            raise FileCorruptError(f"arrays are nested more than {tables.MAX_DEPTH} deep", offset=stream.pos)
        offsets = array("q")
        for _ in range(count):
            offsets.append(stream.pos)
            stop = _need(stream, self.head.size, "an array's head")
            element, size = self.head.unpack_from(stream.buf, stream.pos)
            stream.pos = stop
            self._skip_items(stream, element, size, depth)
        offsets.append(stream.pos)
        return offsets

    def _skip_items(self, stream: Any, element: int, count: int, depth: int) -> None:
        context = {"len": count, "type": element}
        if element in self.sizes:
            self._count(stream, context, self.sizes[element], "numbers")
            stream.pos = _need(stream, count * self.sizes[element], "an array")
        elif element == ValueType.STRING:
            self._count(stream, context, self.text.prefix.size, "strings")
            walk_strings(stream, count, self.text.prefix)
        elif element == ValueType.ARRAY:
            self._count(stream, context, self.head.size, "arrays")
            self._skip_arrays(stream, count, depth + 1)
        else:
            UnknownType("type")._parse(stream, context, "")

    def _build(self, obj: Any, stream: Any, context: Any, path: str) -> Any:
        if isinstance(obj, LazyArrays) and obj.array is self.array:
            stream.write(obj.encoded())
        else:
            for item in obj:
                fields = {"type": item.element_type, "len": len(item.value), "array": item.value}
                self.array._build(fields, stream, context, path)
        return obj


# --- records -----------------------------------------------------------------------------------------------

_Reader = Callable[[Any, Any], Any]


class Record(cs.Struct):
    """A ``Struct`` whose reading is planned once.

    construct makes a context, a path and several calls for every field; a file of 80,000 tiny records would
    take seconds. The plan is derived from the same fields, and reads a record in a few microseconds.
    """

    def __init__(self, *fields: Any) -> None:
        super().__init__(*fields)
        self._plan: list[tuple[str, _Reader]] = []

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        if not self._plan:
            self._plan = [(field.name, _reader(field)) for field in self.subcons]
        values = cs.Container()
        for name, read in self._plan:
            values[name] = read(stream, values)
        return values


def _reader(con: Any) -> _Reader:
    """Return a function that reads one field from (stream, the record's fields so far)."""
    while isinstance(con, cs.Renamed):
        con = con.subcon
    if isinstance(con, cs.FormatField):
        return _number_reader(con)
    if isinstance(con, cs.Adapter) and not isinstance(con, ExactFloat):
        inner, decode = _reader(con.subcon), con._decode
        return lambda stream, values: decode(inner(stream, values), values, "")
    if isinstance(con, cs.Switch):
        key, default = con.keyfunc, _reader(con.default)
        cases = {case: _reader(sub) for case, sub in con.cases.items()}
        return lambda stream, values: cases.get(key(values), default)(stream, values)
    if isinstance(con, cs.Array):
        count, element = con.count, _reader(con.subcon)
        return lambda stream, values: [element(stream, values) for _ in range(count(values))]
    parse = con._parse
    return lambda stream, values: parse(stream, values, "")


def _number_reader(con: Any) -> _Reader:
    number = struct.Struct(con.fmtstr)
    size, unpack = number.size, number.unpack_from

    def read(stream: Any, values: Any) -> Any:
        start = stream.pos
        stop = start + size
        if stream.ensure(stop) < stop:
            _need(stream, size, "a number")
        stream.pos = stop
        return unpack(stream.buf, start)[0]

    return read


class Records(cs.Array):
    """An array of records; ``smallest`` is the least a record takes, to check the count before reading."""

    def __init__(self, count: Any, subcon: Any, smallest: int) -> None:
        super().__init__(count, subcon)
        self.smallest = smallest

    def check(self, stream: Any, count: int, what: str) -> None:
        """Raise unless ``count`` records can be in the rest of the file."""
        left = max(stream.end - stream.pos, 0)
        if count > left // self.smallest:
            raise TruncatedError(f"{count} {what} are promised, and {left} bytes are left", offset=stream.pos)

    def each(self, stream: Any, count: int) -> Iterator[Any]:
        """Yield record after record; what was read before an error is not lost."""
        parse = self.subcon._parse
        for _ in range(count):
            yield parse(stream, {}, "")

    def _parse(self, stream: Any, context: Any, path: str) -> Any:
        count = int(cs.evaluate(self.count, context))
        self.check(stream, count, "records")
        return list(self.each(stream, count))


# --- the schema --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Layout:
    """The schema of one dialect: ``header`` is the whole, the others are its parts."""

    version: int
    byte_order: str
    prefix: Any  # magic, version and the two counts
    key_value: Any
    tensor_info: Any
    header: Any
    text: Text
    array: Any
    scalars: dict[ValueType, Any]
    fields: Records
    tensors: Records


@functools.cache
def layout(version: int = 3, byte_order: str = "<") -> Layout:
    """Return the schema of GGUF ``version`` (1, 2 or 3) in ``byte_order`` (``"<"`` or ``">"``)."""
    little = byte_order == "<"

    def number(name: str) -> Any:
        return getattr(cs, f"{name}{'l' if little else 'b'}")

    u32, i32, u64 = number("Int32u"), number("Int32s"), number("Int64u")
    size = u32 if version == 1 else u64
    text = Text(size)
    # fmt: off
    scalars: dict[ValueType, Any] = {
        ValueType.UINT8:   number("Int8u"),
        ValueType.INT8:    number("Int8s"),
        ValueType.UINT16:  number("Int16u"),
        ValueType.INT16:   number("Int16s"),
        ValueType.UINT32:  u32,
        ValueType.INT32:   i32,
        ValueType.FLOAT32: ExactFloat(number("Float32")),
        ValueType.BOOL:    BoolByte(number("Int8u")),
        ValueType.UINT64:  u64,
        ValueType.INT64:   number("Int64s"),
        ValueType.FLOAT64: ExactFloat(number("Float64")),
    }
    value_type = Known(i32, ValueType)
    array_head = ("type" / value_type, "len" / size)
    inner = ArrayItems(
        struct_of(cs.Struct(*array_head)), {int(t): con.sizeof() for t, con in scalars.items()}, text
    )
    items: dict[int, Any] = {
        t: NumberItems(con, tables.value_type_name(t)) for t, con in scalars.items()
    }
    items |= {ValueType.STRING: StringItems(text), ValueType.ARRAY: inner}
    array_value = inner.array = Record(
        "type"  / value_type * "value type of the elements",
        "len"   / size       * "number of elements",
        "array" / cs.Switch(cs.this.type, items, default=UnknownType("type"))
                                     * "the elements, one after the other, without padding",
    )
    key_value = Record(
        "key"          / text       * "name of the value: lower case words separated by dots",
        "value_type"   / value_type * "what kind of value follows",
        "value_offset" / cs.Tell    * "",
        "value"        / cs.Switch(cs.this.value_type,
                                   scalars | {ValueType.STRING: text, ValueType.ARRAY: array_value},
                                   default=UnknownType("value_type")) * "the value",
    )
    tensor_info = Record(
        "name"         / text                        * "name of the tensor, at most 63 bytes",
        "_offset"      / cs.Tell                     * "",
        "n_dimensions" / Dimensions(u32)             * "number of dimensions, at most 4",
        "dimensions"   / cs.Array(cs.this.n_dimensions, size)
                                                     * "length of each dimension, the fastest running first",
        "type"         / Known(i32, GGMLType)        * "how the numbers are stored",
        "offset"       / u64                         * "where the data is, from the start of all tensor data",
    )
    prefix = (
        "magic"             / cs.Const(tables.MAGIC) * "the letters GGUF, in this order for both byte orders",
        "version"           / u32                    * "version of the format: 1, 2 or 3",
        "tensor_count"      / size                   * "number of tensors in this file",
        "metadata_kv_count" / size                   * "number of key-value pairs",
    )
    # fmt: on
    fields = Records(cs.this.metadata_kv_count, key_value, text.prefix.size + i32.sizeof() + 1)
    least = text.prefix.size + u32.sizeof() + i32.sizeof() + u64.sizeof()
    tensors = Records(cs.this.tensor_count, tensor_info, least)
    header = cs.Struct(*prefix, "metadata_kv" / fields, "tensor_infos" / tensors)
    return Layout(
        version, byte_order, cs.Struct(*prefix), key_value, tensor_info, header, text, array_value, scalars,
        fields, tensors,
    )  # fmt: skip
