"""GGUF metadata as JSON-ready data and as short text, and text from the command line as GGUF values."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError, printable

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import MetadataField, TensorInfo

#: Arrays longer than this are shown by their first elements in overviews.
HEAD = 8


def plain_value(value: Any) -> Any:
    """Return a field's ``items`` as Python lists, numbers and text; inner arrays as lists."""
    inner = getattr(value, "items", None)
    if inner is not None and not callable(inner):  # an array inside an array
        return plain_value(inner)
    if hasattr(value, "tolist"):
        return value.tolist()
    if isinstance(value, (list, tuple)) or (hasattr(value, "head") and hasattr(value, "__len__")):
        return [plain_value(item) for item in value]
    return value


def field_to_json(field: MetadataField, *, head: int | None = HEAD) -> dict[str, Any]:
    """Return a metadata field; of a long array the first ``head`` elements (``None``: all)."""
    row: dict[str, Any] = {**named("key", field.key), "type": field.type_name}
    if field.is_array:
        row["count"] = field.count
        if head is None or field.count <= head:
            row["value"] = plain_value(field.items)
        else:
            row["first"] = [plain_value(item) for item in field.head(head)]
        return row
    row.update(named("value", field.items) if isinstance(field.items, str) else {"value": field.items})
    return row


def tensor_to_json(info: TensorInfo) -> dict[str, Any]:
    """Return what a tensor's info says; ``shape`` is in NumPy's order."""
    return {
        **named("name", info.name),
        "type": info.type_name,
        "shape": list(info.shape),
        "offset": info.file_offset,
        "size": info.nbytes,
    }


def show_value(field: MetadataField, width: int = 60) -> str:
    """Return a field's value in one line: text as it is, arrays by length and first elements."""
    if not field.is_array:
        return _short(field.items, width)
    first = ", ".join(_short(plain_value(item), 20, quote=True) for item in field.head(4))
    return f"{field.count:,} x [{first}{', ...' if field.count > 4 else ''}]"


def _short(value: Any, width: int, quote: bool = False) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return format(value, ".7g")
    text = printable(value) if isinstance(value, str) else str(value)
    text = text if len(text) <= width else f"{text[: width - 3]}..."
    return f'"{text}"' if quote and isinstance(value, str) else text


def parse_value(text: str, kind: int, element: int | None, key: str) -> Any:
    """Return what the text of a command line means as a value of a type; arrays are given as JSON.

    Raises
    ------
    InvalidParamError
        The text is not such a value.
    """
    from atlas_kit.formats.gguf import ValueType

    try:
        if kind == ValueType.STRING:
            return text
        if kind == ValueType.ARRAY:
            value = json.loads(text)
            if not isinstance(value, list):
                raise ValueError("not a list")
            return value
        if kind == ValueType.BOOL:
            return {"true": True, "1": True, "false": False, "0": False}[text.strip().lower()]
        if kind in (ValueType.FLOAT32, ValueType.FLOAT64):
            return float(text)
        return int(text, 0)
    except (ValueError, KeyError, RecursionError) as error:
        from atlas_kit.formats.gguf.tables import value_type_name

        name = value_type_name(kind, element)
        hint = 'Arrays are written as JSON: ["a", "b"].' if kind == ValueType.ARRAY else None
        raise InvalidParamError(f"{text[:40]!r} is not a value of type {name}", key=key, hint=hint) from error
