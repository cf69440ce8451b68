"""Requests read without pydantic: the plain ones, which are most of those that a server gets first.

What is taken here, pydantic takes, and means the same by it; what is not, it decides about. So this knows types and
ranges (``light_fields``, made from the schemas), and gives up wherever there is more to say. Knows no HTTP.
"""

from __future__ import annotations

import json
import math
from typing import Any

from atlas_kit.server.light_fields import FIELDS

#: Bytes of a request that are looked through in no time.
MOST_BYTES = 1 << 18


class Unsure(Exception):  # noqa: N818 - it is no error
    """Something is not as plain as it would have to be."""


class Light:
    """Stands for a request's pydantic model: what it does not hold is None."""

    def __init__(self, given: dict[str, Any]) -> None:
        self.__dict__.update(given)

    def __getattr__(self, name: str) -> Any:
        """Return nothing for what was not given."""
        if name.startswith("__"):
            raise AttributeError(name)
        return None

    def model_dump(self, **_: Any) -> dict[str, Any]:
        """Return what was given, as data."""
        return {name: _plain(value) for name, value in vars(self).items() if value is not None}

    chosen = model_dump

    def model_copy(self, *, update: dict[str, Any]) -> Light:
        """Return the request with changes."""
        return Light({**vars(self), **update})


def _plain(value: Any) -> Any:
    if isinstance(value, Light):
        return value.model_dump()
    return [_plain(one) for one in value] if isinstance(value, list) else value


def read(kind: str, body: bytes) -> Light | None:
    """Return a request that is as plain as it is clear; None: that is for others to say.

    Parameters
    ----------
    kind
        The name of its model among the schemas.
    body
        What was sent.
    """
    if len(body) > MOST_BYTES:
        return None
    try:
        given = json.loads(body)
        found = _checked(given, FIELDS[kind])
    except (ValueError, OverflowError, RecursionError, Unsure):
        return None
    return found if isinstance(found, Light) else None


def _checked(value: Any, schema: dict[str, Any]) -> Any:
    """Return a value as pydantic would give it.

    Raises
    ------
    Unsure
        It may not be as the schema says.
    """
    if "anyOf" in schema:
        for one in schema["anyOf"]:
            try:
                return _checked(value, one)
            except Unsure:
                continue
        raise Unsure
    if "enum" in schema or "const" in schema:
        allowed = schema["enum"] if "enum" in schema else [schema["const"]]
        if isinstance(value, str) and value in allowed:
            return value
        raise Unsure
    kind = schema.get("type")
    check = _CHECKS.get(kind)
    if check is None:
        if kind is None and not schema:  # anything
            return value
        raise Unsure
    return check(value, schema)


def _null(value: Any, schema: dict[str, Any]) -> None:
    if value is not None:
        raise Unsure


def _boolean(value: Any, schema: dict[str, Any]) -> bool:
    if not isinstance(value, bool):
        raise Unsure
    return value


def _integer(value: Any, schema: dict[str, Any]) -> int:
    if type(value) is not int or not _within(value, schema):
        raise Unsure
    return value


def _number(value: Any, schema: dict[str, Any]) -> float:
    if type(value) not in (int, float) or not math.isfinite(value) or not _within(value, schema):
        raise Unsure
    return float(value) + 0.0  # -0.0 is 0.0 there


def _within(value: float, schema: dict[str, Any]) -> bool:
    return (
        schema.get("minimum", value) <= value <= schema.get("maximum", value)
        and ("exclusiveMinimum" not in schema or value > schema["exclusiveMinimum"])
        and ("exclusiveMaximum" not in schema or value < schema["exclusiveMaximum"])
    )


def _string(value: Any, schema: dict[str, Any]) -> str:
    if not isinstance(value, str) or not schema.get("minLength", 0) <= len(value) <= schema.get(
        "maxLength", len(value)
    ):
        raise Unsure
    if not value.isascii():
        try:
            value.encode()  # pydantic refuses halves of characters
        except UnicodeEncodeError:
            raise Unsure from None
    return value


def _array(value: Any, schema: dict[str, Any]) -> list[Any]:
    if not isinstance(value, list) or not schema.get("minItems", 0) <= len(value) <= schema.get(
        "maxItems", len(value)
    ):
        raise Unsure
    items = schema.get("items") or {}
    if items == {"type": "integer"}:
        if set(map(type, value)) <= {int}:
            return value
        raise Unsure
    return [_checked(one, items) for one in value] if items else value


def _object(value: Any, schema: dict[str, Any]) -> Any:
    if not isinstance(value, dict):
        raise Unsure
    for name in value:
        _string(name, {})
    known = schema.get("properties")
    if known is None:  # any object
        return value
    if any(name not in value for name in schema.get("required", ())):
        raise Unsure
    found = {}
    for name, one in value.items():
        if name not in known:  # accepted, and others know what of it has a meaning
            raise Unsure
        found[name] = _checked(one, known[name])
    return Light(found)


_CHECKS: dict[Any, Any] = {
    "null": _null,
    "boolean": _boolean,
    "integer": _integer,
    "number": _number,
    "string": _string,
    "array": _array,
    "object": _object,
}
