"""Metadata values: fields as they were read (decoded on access) or as they are to be written.

Knows the value types and how Python values map to them; knows neither files nor the layout.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, overload

import construct as cs

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.strings import LazyStrings
from atlas_kit.formats.gguf.tables import ValueType, value_type_name
from atlas_kit.formats.schema import scalar_dtype

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.schema import BufferStream


class OddNaN(float):
    """A NaN that remembers its bits."""

    raw: bytes

    def __new__(cls, raw: bytes) -> OddNaN:
        """Make a NaN of the bytes ``raw`` (4 or 8, in the file's byte order)."""
        self = super().__new__(cls, "nan")
        self.raw = raw
        return self


class LazyNumbers(Sequence[Any]):
    """An array of numbers in the header's bytes; ``numpy()`` views it, indexing needs no NumPy."""

    __slots__ = ("_count", "_stream", "code", "element", "offset")

    def __init__(self, stream: BufferStream, offset: int, count: int, element: Any) -> None:
        self._stream = stream
        self.offset = offset
        self._count = count
        self.element = element
        self.code = self.code_of(element)

    @staticmethod
    def code_of(element: Any) -> str:
        """Return the struct code of one element, taken from the schema."""
        while isinstance(element, cs.Adapter):
            element = element.subcon
        return str(element.fmtstr)

    def numpy(self) -> np.ndarray[Any, Any]:
        """Return a read-only view, shape ``(count,)``; booleans that are neither 0 nor 1 stay ``uint8``."""
        import numpy as np

        dtype = scalar_dtype(self.element)
        values: np.ndarray[Any, Any] = np.frombuffer(self._stream.buf, dtype, self._count, self.offset)
        values.flags.writeable = False
        if self.is_bool and not (values > 1).any():
            return values.view(np.bool_)
        return values

    @property
    def is_bool(self) -> bool:
        """Whether the elements are booleans."""
        return getattr(self.element, "type_label", None) == "bool"

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> Any: ...
    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            places = range(*index.indices(self._count))
            return self._some(places.start, len(places)) if places.step == 1 else [self[i] for i in places]
        return self._some(range(self._count)[index], 1)[0]

    def _some(self, first: int, count: int) -> list[Any]:
        size = struct.calcsize(self.code)
        values = struct.unpack_from(
            f"{self.code[0]}{count}{self.code[1:]}", self._stream.buf, self.offset + first * size
        )
        return [bool(v) if v < 2 else v for v in values] if self.is_bool else list(values)

    def tolist(self) -> list[Any]:
        """Return all elements as Python numbers."""
        return self._some(0, self._count)

    def head(self, count: int) -> list[Any]:
        """Return the first ``count`` elements as Python numbers, without NumPy."""
        return self[:count]

    def encoded(self) -> bytes:
        """Return the elements' bytes as they are in the file."""
        stop = self.offset + self._count * struct.calcsize(self.code)
        return bytes(self._stream.buf[self.offset : stop])

    def __repr__(self) -> str:
        shown = ", ".join(map(repr, self.head(6)))
        return f"<{self._count} numbers: {shown}{', ...' if self._count > 6 else ''}>"


class ArrayValue:
    """One array inside an array: its element type and its elements."""

    __slots__ = ("_items", "element_type")

    def __init__(self, element_type: int, items: Any) -> None:
        self.element_type = element_type
        self._items = items

    @property
    def value(self) -> Any:
        """The elements (NumPy array, ``LazyStrings`` or ``LazyArrays``)."""
        return self._items.numpy() if isinstance(self._items, LazyNumbers) else self._items

    @property
    def items(self) -> Any:
        """The elements as the schema takes them."""
        return self._items

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"ArrayValue({value_type_name(self.element_type)}, {self._items!r})"


class LazyArrays(Sequence[ArrayValue]):
    """An array of arrays, exactly as nested; each inner array is parsed when it is asked for."""

    __slots__ = ("_offsets", "_stream", "array")

    def __init__(self, stream: BufferStream, offsets: Sequence[int], array: Any) -> None:
        self._stream = stream
        self._offsets = offsets
        self.array = array

    def __len__(self) -> int:
        return len(self._offsets) - 1

    @overload
    def __getitem__(self, index: int) -> ArrayValue: ...
    @overload
    def __getitem__(self, index: slice) -> list[ArrayValue]: ...
    def __getitem__(self, index: int | slice) -> ArrayValue | list[ArrayValue]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        self._stream.seek(self._offsets[range(len(self))[index]])
        inner = self.array._parse(self._stream, {}, "")
        return ArrayValue(inner["type"], inner["array"])

    def __iter__(self) -> Iterator[ArrayValue]:
        return (self[i] for i in range(len(self)))

    def head(self, count: int) -> list[ArrayValue]:
        """Return the first ``count`` inner arrays."""
        return self[:count]

    @property
    def offset(self) -> int:
        """Where the first inner array is in the file."""
        return self._offsets[0]

    def encoded(self) -> bytes:
        """Return the elements' bytes as they are in the file."""
        return bytes(self._stream.buf[self._offsets[0] : self._offsets[-1]])

    def __repr__(self) -> str:
        return f"<{len(self)} arrays>"


_Lazy = (LazyNumbers, LazyStrings, LazyArrays)


class MetadataField:
    """One key-value pair.

    Attributes
    ----------
    key, type, element_type
        ``element_type`` is ``None`` unless ``type`` is ``ARRAY``.
    offset, value_offset, size
        Where the pair starts in the file, where its value does, and the bytes of the whole pair; all -1
        for a field that was made and not read.
    """

    __slots__ = ("_value", "element_type", "key", "offset", "size", "type", "value_offset")

    def __init__(
        self,
        key: str,
        type: int,
        value: Any,
        element_type: int | None = None,
        *,
        offset: int = -1,
        value_offset: int = -1,
        size: int = -1,
    ) -> None:
        self.key = key
        self.type = type
        self.element_type = element_type
        self._value = value
        self.offset = offset
        self.value_offset = value_offset
        self.size = size

    @property
    def value(self) -> Any:
        """The value: a number, ``bool``, ``str``, NumPy array, ``LazyStrings`` or ``LazyArrays``."""
        return self._value.numpy() if isinstance(self._value, LazyNumbers) else self._value

    @property
    def items(self) -> Any:
        """The value as the schema takes it; never imports NumPy."""
        return self._value

    @property
    def type_name(self) -> str:
        """The type's short name, such as ``u32`` or ``arr[str]``."""
        return value_type_name(self.type, self.element_type)

    @property
    def is_array(self) -> bool:
        """Whether the value is an array."""
        return self.type == ValueType.ARRAY

    @property
    def count(self) -> int:
        """Number of elements (1 for anything but an array)."""
        return len(self._value) if self.is_array else 1

    def head(self, count: int) -> list[Any]:
        """Return the first elements as plain Python values, without NumPy (``[value]`` for a scalar)."""
        if not self.is_array:
            return [self._value]
        return self._value.head(count) if isinstance(self._value, _Lazy) else list(self._value[:count])

    def renamed(self, key: str) -> MetadataField:
        """Return the same value under another key."""
        return MetadataField(key, self.type, self._value, self.element_type)

    def to_schema(self) -> dict[str, Any]:
        """Return the pair as the schema builds it."""
        value = self._value
        if self.is_array:
            value = {"type": self.element_type, "len": len(value), "array": value}
        return {"key": self.key, "value_type": self.type, "value": value}

    def __repr__(self) -> str:
        return f"MetadataField({self.key!r}, {self.type_name}, {self._value!r})"

    @classmethod
    def make(
        cls,
        key: str,
        value: Any,
        type: int | None = None,
        element_type: int | None = None,
    ) -> MetadataField:
        """Make a field to be written; types that are not given are inferred (see ``infer_type``)."""
        if isinstance(value, MetadataField):
            value = value.items
        if type is None:
            type, inferred = infer_type(value)
            element_type = inferred if element_type is None else element_type
        elif type == ValueType.ARRAY and element_type is None:
            element_type = infer_type(value)[1]
        value, element_type = _fitted(value, type, element_type, key)
        return cls(key, type, value, element_type)


_SIGNED = (ValueType.INT32, ValueType.INT64)
_NUMPY_TYPES = {
    "u1": ValueType.UINT8,
    "i1": ValueType.INT8,
    "u2": ValueType.UINT16,
    "i2": ValueType.INT16,
    "u4": ValueType.UINT32,
    "i4": ValueType.INT32,
    "u8": ValueType.UINT64,
    "i8": ValueType.INT64,
    "f4": ValueType.FLOAT32,
    "f8": ValueType.FLOAT64,
    "b1": ValueType.BOOL,
}
_BITS = {
    ValueType.UINT8: (0, 8),
    ValueType.INT8: (1, 8),
    ValueType.UINT16: (0, 16),
    ValueType.INT16: (1, 16),
    ValueType.UINT32: (0, 32),
    ValueType.INT32: (1, 32),
    ValueType.UINT64: (0, 64),
    ValueType.INT64: (1, 64),
}


def infer_type(value: Any) -> tuple[ValueType, ValueType | None]:
    """Return (type, element type) that suit a Python value.

    ``bool`` -> BOOL; ``int`` -> UINT32 (INT32 when negative), 64 bits when needed; ``float`` -> FLOAT32;
    ``str``/``bytes`` -> STRING; NumPy arrays and numbers by dtype; lists by their elements (integers:
    INT32, as llama.cpp expects in most arrays, wider when needed).

    Raises
    ------
    InvalidParamError
        Nothing suits: an empty or mixed list, ``None``, a dict.
    """
    dtype = getattr(value, "dtype", None)
    if dtype is not None:
        found = _NUMPY_TYPES.get(f"{dtype.kind}{dtype.itemsize}")
        if found is None:
            raise InvalidParamError(f"GGUF has no type for NumPy's {dtype}")
        return (ValueType.ARRAY, found) if getattr(value, "ndim", 0) else (found, None)
    if isinstance(value, LazyStrings):
        return ValueType.ARRAY, ValueType.STRING
    if isinstance(value, LazyArrays):
        return ValueType.ARRAY, ValueType.ARRAY
    if isinstance(value, LazyNumbers):
        kind = "b" if value.is_bool else scalar_dtype(value.element).kind
        return ValueType.ARRAY, _NUMPY_TYPES[f"{kind}{struct.calcsize(value.code)}"]
    if isinstance(value, (list, tuple)):
        return ValueType.ARRAY, _infer_elements(value)
    return _infer_scalar(value), None


def _infer_scalar(value: Any) -> ValueType:
    if isinstance(value, bool):
        return ValueType.BOOL
    if isinstance(value, int):
        order = (ValueType.UINT32, ValueType.INT32, ValueType.UINT64, ValueType.INT64)
        for candidate in order:
            if _in_range(value, candidate):
                return candidate
        raise InvalidParamError(f"{value} does not fit in 64 bits")
    if isinstance(value, float):
        return ValueType.FLOAT32
    if isinstance(value, (str, bytes)):
        return ValueType.STRING
    raise InvalidParamError(f"GGUF has no type for a value of type {type(value).__name__}")


def _infer_elements(values: Sequence[Any]) -> ValueType:
    if not values:
        raise InvalidParamError(
            "the element type of an empty array cannot be guessed", hint="Give the type, such as arr[str]."
        )
    if all(isinstance(v, bool) for v in values):
        return ValueType.BOOL
    if all(isinstance(v, int) and not isinstance(v, bool) for v in values):
        for candidate in (*_SIGNED, ValueType.UINT64):
            if all(_in_range(v, candidate) for v in (min(values), max(values))):
                return candidate
        raise InvalidParamError("the numbers do not fit in 64 bits")
    if all(isinstance(v, (int, float)) and not isinstance(v, bool) for v in values):
        return ValueType.FLOAT32
    if all(isinstance(v, (str, bytes)) for v in values):
        return ValueType.STRING
    if all(isinstance(v, (list, tuple, ArrayValue)) or hasattr(v, "dtype") for v in values):
        return ValueType.ARRAY
    raise InvalidParamError("the elements of an array must all be of one kind")


def _in_range(value: int, kind: ValueType) -> bool:
    signed, bits = _BITS[kind]
    return -(1 << (bits - 1)) <= value < 1 << (bits - 1) if signed else 0 <= value < 1 << bits


def _fitted(value: Any, kind: int, element: int | None, key: str) -> tuple[Any, int | None]:
    """Check that a value fits its type; return what the schema takes."""
    if kind != ValueType.ARRAY:
        if hasattr(value, "dtype") and getattr(value, "ndim", 0) == 0:
            value = value.item()
        return _fitted_scalar(value, kind, key), None
    if element not in ValueType.__members__.values():
        raise InvalidParamError(f"element type {element} cannot be written", key=key)
    if isinstance(value, _Lazy):
        return value, element
    if hasattr(value, "tolist"):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidParamError(f"{value_type_name(kind, element)} needs a list of values", key=key)
    if element == ValueType.ARRAY:
        return [_inner(item, key) for item in value], element
    return [_fitted_scalar(item, int(element or 0), key) for item in value], element


def _inner(item: Any, key: str) -> ArrayValue:
    if isinstance(item, ArrayValue):
        return item
    element = infer_type(item)[1]
    value, element_type = _fitted(item, ValueType.ARRAY, element, key)
    return ArrayValue(int(element_type or 0), value)


def _fitted_scalar(value: Any, kind: int, key: str) -> Any:
    name = value_type_name(kind)
    if kind == ValueType.STRING:
        if not isinstance(value, (str, bytes)):
            raise InvalidParamError(f"{name} needs text, not {type(value).__name__}", key=key)
        return value.decode("utf-8", "surrogateescape") if isinstance(value, bytes) else value
    if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise InvalidParamError(f"{name} needs a number, not {type(value).__name__}", key=key)
        return _fitted_float(value, kind, key)
    if kind == ValueType.BOOL:
        if isinstance(value, int) and 0 <= value < 256:  # a byte 2 that was read stays a byte 2
            return value
        raise InvalidParamError(f"{name} needs true or false, not {value!r}", key=key)
    if kind not in ValueType.__members__.values() or kind == ValueType.ARRAY:
        raise InvalidParamError(f"value type {kind} cannot be written", key=key)
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidParamError(f"{name} needs a whole number, not {value!r}", key=key)
    if not _in_range(value, ValueType(kind)):
        raise InvalidParamError(f"{value} does not fit in {name}", key=key)
    return value


def _fitted_float(value: float, kind: int, key: str) -> float:
    if isinstance(value, OddNaN):
        return value
    try:
        struct.pack("<f" if kind == ValueType.FLOAT32 else "<d", value)
        return float(value)
    except (OverflowError, struct.error) as error:
        raise InvalidParamError(f"{value} does not fit in {value_type_name(kind)}", key=key) from error
