"""A grammar's rules as llama.cpp reads them, so that what they would make of it is known before it begins.

The same parser as in llama.cpp's ``llama-grammar.cpp``, to the letter where it matters: groups and repetitions become
rules of their own. What llama.cpp does not understand is None here: it says itself what is wrong.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from atlas_kit.errors import InvalidParamError

#: Parts of all rules together, repetitions written out.
MOST_PARTS = 1 << 20
#: Rules that llama.cpp looks through for one that begins with itself, as often as others begin with them.
MOST_LOOKED_THROUGH = 1 << 22
#: llama.cpp refuses more repetitions than this, or takes them for endless.
_MOST_TIMES = 2000
_LAST = 0x10FFFF
_SPACE = re.compile(r"(?:[ \t]|#[^\r\n\0]*)*")
_SPACES = re.compile(r"(?:[ \t\r\n]|#[^\r\n\0]*)*")
_NAME = re.compile(r"[a-zA-Z0-9-]+")
_INT = re.compile(r"[0-9]+")
_TOKEN = re.compile(r"!?<(?:\[[0-9]+\]>|[^>\0]*>)")
_ESCAPED = re.compile(r"\\(?:x([0-9a-fA-F]{2})|u([0-9a-fA-F]{4})|U([0-9a-fA-F]{8})|([trn\\\"\[\]-]))")
_NAMED = {"t": "\t", "r": "\r", "n": "\n"}


class Chars(NamedTuple):
    """One character of some ranges, ends included; no ranges: a token by its number, or what nobody knows."""

    ranges: tuple[tuple[int, int], ...]


#: A part of a rule: a character, or the number of another rule.
Part = Chars | int


@dataclass
class Rules:
    """The rules of a grammar: of each, its alternatives.

    Attributes
    ----------
    rules
        Each a list of alternatives, which are lists of parts.
    root
        The number of the first one.
    """

    rules: list[list[list[Part]]] = field(default_factory=list)
    root: int = 0

    def require_bounded(self, key: str) -> None:
        """Refuse rules that llama.cpp would look through for ever, before it says whether one begins with itself.

        Raises
        ------
        InvalidParamError
            They begin with each other in too many ways.
        """
        empty = [any(not one for one in rule) for rule in self.rules]
        cost: list[int | None] = [None] * len(self.rules)
        for first in range(len(self.rules)):
            todo = [first]
            open_ones = set[int]()
            while todo:
                number = todo[-1]
                if cost[number] is not None:
                    todo.pop()
                    continue
                begins = self._begins(number, empty)
                missing = [one for one in begins if cost[one] is None and one not in open_ones]
                if number not in open_ones and missing:
                    open_ones.add(number)
                    todo += missing
                    continue
                todo.pop()
                # one that begins with itself is found, and then all is over: it costs what was looked through till then
                cost[number] = 1 + sum(cost[one] or 0 for one in begins)
                if (cost[number] or 0) > MOST_LOOKED_THROUGH:
                    raise InvalidParamError(
                        "the rules of this grammar begin with each other in too many ways", key=key
                    )

    def _begins(self, number: int, empty: list[bool]) -> list[int]:
        """Return the rules that a rule may begin with."""
        found = []
        for parts in self.rules[number]:
            for part in parts:
                if isinstance(part, Chars):
                    break
                found.append(part)
                if not empty[part]:
                    break
        return found


@dataclass
class _Open:
    """A rule that is being read: the number, its alternatives, and where its last part begins."""

    number: int
    alternatives: list[list[Part]]
    last: int = 0
    before: int = 0  # rules that there were before it


class _NotUnderstoodError(Exception):
    """llama.cpp will say what is wrong."""


def rules_of(grammar: str, key: str = "grammar") -> Rules | None:
    """Return the rules of a grammar; None where llama.cpp does not understand it.

    Raises
    ------
    InvalidParamError
        Its repetitions, written out, are too long.
    """
    try:
        return _Parser(grammar, key).parse()
    except _NotUnderstoodError:
        return None


class _Parser:
    def __init__(self, text: str, key: str) -> None:
        self._text, self._key = text + "\0", key
        self._ids: dict[str, int] = {}
        self._made = 0
        self._rules: dict[int, list[list[Part]]] = {}
        self._size = 0

    def parse(self) -> Rules:
        at = self._skip(_SPACES, 0)
        while self._text[at] != "\0":
            at = self._rule(at)
        if at != len(self._text) - 1 or "root" not in self._ids:
            raise _NotUnderstoodError
        if set(self._rules) != set(range(len(self._ids))):
            raise _NotUnderstoodError
        return Rules([self._rules[number] for number in range(len(self._ids))], self._ids["root"])

    def _rule(self, at: int) -> int:
        """Read one rule, groups within it as rules of their own; return where the next one begins."""
        name, at = self._match(_NAME, at)
        at = self._skip(_SPACE, at)
        if not self._text.startswith("::=", at):
            raise _NotUnderstoodError
        at = self._skip(_SPACES, at + 3)
        open_ones = [_Open(self._id(name), [[]])]
        once = 1  # rules that the last part is made of
        while True:
            rule, nested = open_ones[-1], len(open_ones) > 1
            space = _SPACES if nested else _SPACE
            parts, mark = rule.alternatives[-1], self._text[at]
            if mark == '"':
                rule.last, once = len(parts), 1
                at = self._literal(at + 1, parts)
            elif mark == "[":
                rule.last, once = len(parts), 1
                at = self._class(at + 1, parts)
            elif mark in "<!":
                rule.last, once = len(parts), 1
                _, at = self._match(_TOKEN, at)
                parts.append(Chars(()))
            elif (found := _NAME.match(self._text, at)) is not None:
                rule.last, once, at = len(parts), 1, found.end()
                parts.append(self._id(found[0]))
            elif mark == ".":
                rule.last, once, at = len(parts), 1, at + 1
                parts.append(Chars(((0, _LAST),)))
            elif mark == "(":
                at = self._skip(_SPACES, at + 1)
                before = len(self._ids)
                open_ones.append(_Open(self._new_id(name), [[]], before=before))
                continue
            elif mark in "*+?{":
                at, least, most = self._times(at)
                self._repeat(name, parts, rule.last, least, most, once)
                once *= max(1, least if most is None or most == 0 else most)
            elif mark == "|":
                rule.alternatives.append([])
                rule.last, at = 0, self._skip(_SPACES, at + 1)
                continue
            else:
                self._rules[rule.number] = rule.alternatives
                if not nested:
                    return self._end_of_line(at)
                if mark != ")":
                    raise _NotUnderstoodError
                open_ones.pop()
                outer = open_ones[-1]
                once, nested = max(1, len(self._ids) - rule.before), len(open_ones) > 1
                outer.last = len(outer.alternatives[-1])
                outer.alternatives[-1].append(rule.number)
                at, space = at + 1, _SPACES if nested else _SPACE
            self._grow(1)
            at = self._skip(space, at)

    def _end_of_line(self, at: int) -> int:
        if self._text[at] not in "\r\n\0":
            raise _NotUnderstoodError
        if self._text[at] != "\0":
            at += 2 if self._text.startswith("\r\n", at) else 1
        return self._skip(_SPACES, at)

    def _literal(self, at: int, parts: list[Part]) -> int:
        while self._text[at] != '"':
            code, at = self._char(at)
            parts.append(Chars(((code, code),)))
            self._grow(1)
        return at + 1

    def _class(self, at: int, parts: list[Part]) -> int:
        others = self._text[at] == "^"
        at += others
        ranges = []
        while self._text[at] != "]":
            first, at = self._char(at)
            last = first
            if self._text[at] == "-" and self._text[at + 1] != "]":
                last, at = self._char(at + 1)
            ranges.append((first, last))
        if ranges:  # an empty one adds nothing
            found = tuple(sorted(one for one in ranges if one[0] <= one[1]))
            parts.append(Chars(all_but(found) if others else found))
        return at + 1

    def _char(self, at: int) -> tuple[int, int]:
        char = self._text[at]
        if char == "\0":
            raise _NotUnderstoodError
        if char != "\\":
            return ord(char), at + 1
        found = _ESCAPED.match(self._text, at)
        if found is None:
            raise _NotUnderstoodError
        digits = found[1] or found[2] or found[3]
        code = int(digits, 16) if digits else ord(_NAMED.get(found[4], found[4]))
        return code, found.end()

    def _times(self, at: int) -> tuple[int, int, int | None]:
        """Return where a repetition ends, how often it repeats at least, and at most (None: endlessly)."""
        mark = self._text[at]
        if mark != "{":
            return at + 1, int(mark == "+"), 1 if mark == "?" else None
        digits, at = self._match(_INT, self._skip(_SPACES, at + 1))
        least, at = _number(digits), self._skip(_SPACES, at)
        most: int | None = least
        if self._text[at] == ",":
            at, most = self._skip(_SPACES, at + 1), None
            if self._text[at].isdigit() and self._text[at].isascii():
                digits, at = self._match(_INT, at)
                most, at = _number(digits), self._skip(_SPACES, at)
        if self._text[at] != "}" or least > _MOST_TIMES:
            raise _NotUnderstoodError
        return at + 1, least, None if most is not None and most > _MOST_TIMES else most

    def _repeat(
        self, name: str, parts: list[Part], last: int, least: int, most: int | None, once: int
    ) -> None:
        repeated = parts[last:]
        if not repeated:
            raise _NotUnderstoodError
        times = most or least or 1
        if once * times > _MOST_TIMES or (most is not None and most < least):
            raise _NotUnderstoodError
        self._grow(len(repeated) * times)
        if least:
            parts.extend(repeated * (least - 1))
        else:
            del parts[last:]
        before: int | None = None
        for _ in range(1 if most is None else most - least):
            number = self._new_id(name)
            more = number if most is None else before
            self._rules[number] = [[*repeated, *([] if more is None else [more])], []]
            before = number
        if before is not None:
            parts.append(before)

    def _grow(self, count: int) -> None:
        self._size += count
        if self._size > MOST_PARTS:
            raise InvalidParamError(
                f"the repetitions of a grammar may stand for {MOST_PARTS:,} characters and rules at most",
                key=self._key,
            )

    def _id(self, name: str) -> int:
        return self._ids.setdefault(name, len(self._ids))

    def _new_id(self, base: str) -> int:
        number = len(self._ids)
        self._ids[f"{base}_{number}"] = number
        return number

    def _skip(self, space: re.Pattern[str], at: int) -> int:
        found = space.match(self._text, at)
        assert found is not None  # it matches nothing as well
        return found.end()

    def _match(self, pattern: re.Pattern[str], at: int) -> tuple[str, int]:
        found = pattern.match(self._text, at)
        if found is None:
            raise _NotUnderstoodError
        return found[0], found.end()


def _number(digits: str) -> int:
    return int(digits.lstrip("0")[:20] or "0")


def all_but(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return all characters that are in none of some ranges, as ranges in order."""
    found, at = [], 0
    for first, last in sorted(ranges):
        if first > at:
            found.append((at, first - 1))
        at = max(at, last + 1)
    if at <= _LAST:
        found.append((at, _LAST))
    return tuple(found)
