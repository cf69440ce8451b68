"""Whole numbers of JSON between two bounds, as GBNF. Knows no schemas but their bounds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from atlas_kit.errors import InvalidParamError

#: Digits of a number that has no bound, as of any other in llama.cpp's grammars.
_MOST_DIGITS = 16
_BOUNDS = ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum")


def bounds_of(schema: Mapping[str, Any]) -> tuple[int | None, int | None] | None:
    """Return the least and the greatest whole number that a schema takes; None where it says nothing of that.

    >>> bounds_of({"minimum": 0.5, "exclusiveMaximum": 10}), bounds_of({"maximum": 3}), bounds_of({})
    ((1, 9), (None, 3), None)
    """
    given = {name: schema[name] for name in _BOUNDS if _is_number(schema.get(name))}
    if not given:
        return None
    least = [math.ceil(given["minimum"])] if "minimum" in given else []
    most = [math.floor(given["maximum"])] if "maximum" in given else []
    if "exclusiveMinimum" in given:
        least.append(math.floor(given["exclusiveMinimum"]) + 1)
    if "exclusiveMaximum" in given:
        most.append(math.ceil(given["exclusiveMaximum"]) - 1)
    return max(least, default=None), min(most, default=None)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def between(least: int | None, most: int | None) -> str:
    """Return what takes the whole numbers from ``least`` to ``most``; None: as far as there are digits.

    Raises
    ------
    InvalidParamError
        There is none.

    >>> between(7, 12), between(-3, 0)
    ('[7-9] | "1" ([0-2])', '[0-0] | "-" ([1-3])')
    """
    far = 10**_MOST_DIGITS - 1
    first = min(-far, -far if most is None else most) if least is None else least
    last = max(far, far if least is None else least) if most is None else most
    if first > last:
        raise InvalidParamError(
            "a whole number of this schema has a minimum above its maximum", key="json_schema"
        )
    choices = _of_any_length(max(first, 0), last) if last >= 0 else []
    if first < 0:
        choices.append(f'"-" ({" | ".join(_of_any_length(max(1, -last), -first))})')
    return " | ".join(choices)


def _of_any_length(first: int, last: int) -> list[str]:
    found = []
    while first <= last:
        end = min(last, 10 ** len(str(first)) - 1)
        found.append(_of_one_length(str(first), str(end)))
        first = end + 1
    return found


def _of_one_length(first: str, last: str) -> str:
    rest, low, high = len(first) - 1, first[0], last[0]
    if not first[1:].strip("0") and not last[1:].strip("9"):
        return f"[{low}-{high}]" + (f" [0-9]{{{rest}}}" if rest else "")
    if low == high:
        return f'"{low}" ({_of_one_length(first[1:], last[1:])})'
    choices = [f'"{low}" ({_of_one_length(first[1:], "9" * rest)})']
    if int(high) - int(low) > 1:
        choices.append(f"[{int(low) + 1}-{int(high) - 1}] [0-9]{{{rest}}}")
    choices.append(f'"{high}" ({_of_one_length("0" * rest, last[1:])})')
    return " | ".join(choices)
