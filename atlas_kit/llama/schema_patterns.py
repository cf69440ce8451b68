r"""Regular expressions of JSON schemas, written so that llama.cpp's converter makes grammars of them.

The converter copies classes such as ``\d`` and escapes such as ``\.`` to where they mean nothing, and lets ``.`` and
``[^a]`` take the quotation mark that ends the string. So each of them is written as a class of plain characters, and
what JSON has to escape as it stands in JSON.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.grammar_rules import all_but

Ranges = list[tuple[int, int]]
_LAST = 0x10FFFF
_CLASSES: dict[str, Ranges] = {
    "d": [(48, 57)],
    "w": [(48, 57), (65, 90), (95, 95), (97, 122)],
    "s": [(9, 13), (32, 32), (0xA0, 0xA0)],
}
_NAMED = {"n": 10, "r": 13, "t": 9, "f": 12, "v": 11}
#: What JSON has no plain character for in a string, and what it writes behind a backslash instead.
_IN_JSON = {34: r"[\x22]", 92: r"[\x5C]", 9: "t", 10: "n", 12: "f", 13: "r"}
#: A dollar sign at the end that stands for itself.
_ESCAPE_AT_END = re.compile(r"(?<!\\)(?:\\\\)*\\\$\Z")
_NUMBER = re.compile(r"x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})")
_TIMES = re.compile(r"(?:[*+?]|\{[\d, ]*\})(\??)")


class NotFollowedError(Exception):
    """A pattern has something that no grammar can follow, such as a look ahead."""


def plain_pattern(pattern: str) -> str:
    r"""Return a regular expression for the text of a JSON string that matches another one, from end to end.

    Raises
    ------
    NotFollowedError
        No grammar can follow it.
    InvalidParamError
        It is no regular expression.

    >>> print(plain_pattern(r"^\d{3}\.[a-f]+?(?:x|y)$"))
    ^[0-9]{3}[\x2E][a-f]+(x|y)$
    """
    begins, ends = pattern.startswith("^"), pattern.endswith("$") and not _ESCAPE_AT_END.search(pattern)
    inside = _plain(pattern[begins : len(pattern) - ends])
    if begins and ends:
        return f"^{inside}$"
    anything = f"{_written([(0, _LAST)])}*"
    return f"^{'' if begins else anything}({inside}){'' if ends else anything}$"


def _plain(pattern: str) -> str:
    found, at, depth = list[str](), 0, 0
    while at < len(pattern):
        char = pattern[at]
        if pattern.startswith("(?:", at):
            found.append("(")
            at, depth = at + 3, depth + 1
        elif pattern.startswith("(?", at) or char in "^$":
            raise NotFollowedError
        elif char in "()|":
            found.append(char)
            at, depth = at + 1, depth + (char == "(") - (char == ")")
            if depth < 0:
                raise _invalid(pattern[:at])
        elif (times := _TIMES.match(pattern, at)) is not None:
            # how greedy it is says nothing of what matches
            found.append(times[0].removesuffix("?") if times[1] else times[0])
            at = times.end()
        elif char == "[":
            ranges, at = _class(pattern, at + 1)
            found.append(_written(ranges))
        elif char == ".":
            found.append(_written(all_but([(10, 10), (13, 13)])))
            at += 1
        elif char == "\\":
            ranges, at = _escape(pattern, at + 1)
            found.append(_written(ranges))
        else:
            found.append(char if char.isalnum() or char in " _" else _written([(ord(char), ord(char))]))
            at += 1
    if depth:
        raise _invalid(pattern)
    return "".join(found)


def _class(pattern: str, at: int) -> tuple[Ranges, int]:
    """Return what a class takes, and where it ends."""
    begin, ranges = at, Ranges()
    others = pattern.startswith("^", at)
    at += others
    while at < len(pattern) and pattern[at] != "]":
        some, at = _one(pattern, at)
        is_range = pattern.startswith("-", at) and pattern[at + 1 : at + 2] not in ("", "]")
        if is_range and len(some) == 1 and some[0][0] == some[0][1]:
            last, at = _one(pattern, at + 1)
            if len(last) != 1 or last[0][0] != last[0][1] or last[0][0] < some[0][0]:
                raise _invalid(pattern[begin - 1 : at])
            some = [(some[0][0], last[0][1])]
        ranges += some
    if at >= len(pattern):
        raise _invalid(pattern[begin - 1 : begin + 2])
    return ([*all_but(ranges)] if others else ranges), at + 1


def _one(pattern: str, at: int) -> tuple[Ranges, int]:
    """Return what a character of a class stands for, and where the next one is."""
    if pattern[at] == "\\":
        return _escape(pattern, at + 1, in_class=True)
    return [(ord(pattern[at]), ord(pattern[at]))], at + 1


def _escape(pattern: str, at: int, *, in_class: bool = False) -> tuple[Ranges, int]:
    """Return what stands behind a backslash, and where that ends."""
    char = pattern[at : at + 1]
    if char.lower() in _CLASSES:
        ranges = _CLASSES[char.lower()]
        return (ranges if char.islower() else [*all_but(ranges)]), at + 1
    if (number := _NUMBER.match(pattern, at)) is not None:
        code = int(number[1] or number[2], 16)
        return [(code, code)], number.end()
    code = _NAMED.get(char, -1)
    if code < 0 and in_class and char == "b":
        code = 8
    if code < 0:
        if not char:
            raise _invalid("\\")
        if char.isalnum():
            raise NotFollowedError
        code = ord(char)
    return [(code, code)], at + 1


def _written(ranges: Iterable[tuple[int, int]]) -> str:
    """Return a class of characters as they stand in a JSON string."""
    outside = all_but(ranges)
    plain = all_but([*outside, (0, 31), (34, 34), (92, 92), (0xD800, 0xDFFF)])
    choices = ["[" + "".join(map(_range, plain)) + "]"] if plain else []
    behind = [
        text for code, text in _IN_JSON.items() if not any(first <= code <= last for first, last in outside)
    ]
    choices += [rf"[\x5C]{text}" for text in behind]
    if not choices:
        raise NotFollowedError
    return choices[0] if plain and not behind else f"({'|'.join(choices)})"


def _range(ends: tuple[int, int]) -> str:
    first, last = ends
    return _spelled(first) if first == last else f"{_spelled(first)}-{_spelled(last)}"


def _spelled(code: int) -> str:
    char = chr(code)
    if code < 128:
        return char if char.isalnum() or char in " _" else f"\\x{code:02X}"
    return f"\\u{code:04X}" if code < 0x10000 else f"\\U{code:08X}"


def _invalid(what: str) -> InvalidParamError:
    return InvalidParamError(
        f"a pattern of this schema is no regular expression: {what[:40]}", key="json_schema"
    )
