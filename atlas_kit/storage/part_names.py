"""Names of the pieces of a file that was cut by its bytes: ``x.gguf.part1of3``, ``x.gguf.aa``, ``x-split-b``, ``xab``.

Says which piece a name means, finds the others beside it, and names those that are missing. Looks at names only and
opens nothing. Letters count as those of coreutils' ``split``: aa, ab ... zz, or aa ... yz, zaaa where it had to widen.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass

_WORD = r"[._ -]?(?:part|split|chunk|piece|segment)[._ -]?"
_PATTERNS = (
    re.compile(
        rf"(?P<stem>.+?{_WORD})(?P<no>\d{{1,6}}|[a-z]{{1,4}})(?:(?P<of>[._ -]?of[._ -]?)(?P<count>\d{{1,6}}))?"
        r"(?P<tail>\.[A-Za-z]\w*)?",
        re.IGNORECASE,
    ),
    re.compile(r"(?P<stem>.+\.)(?P<no>\d{1,6}|[a-z]{1,4})"),
    re.compile(r"(?P<stem>.*?[^a-z0-9.])(?P<no>[a-z]{2,4}|\d{2,6})"),
    re.compile(r"(?P<stem>.*\.gguf|x)(?P<no>[a-z]{2,4}|\d{2,6})"),
    re.compile(r"(?P<stem>.+)(?P<no>[a-z]{2}|\d{2})"),
)
#: More missing pieces than this mean a name that only looks like that of a piece.
_MOST_MISSING = 1000
#: Endings that look like the letters of a piece, and mean something else where the pieces do not reach that far.
_ENDINGS = frozenset({
    "bak", "bin", "bz", "cfg", "csv", "db", "gguf", "gz", "ini", "js", "json", "lock", "log", "md", "npz",
    "old", "orig", "png", "py", "sh", "sig", "so", "tar", "tmp", "txt", "xz", "yaml", "yml", "zip", "zst",
})  # fmt: skip


@dataclass(frozen=True)
class PartName:
    """Which piece a name means: ``text`` is its number or its letters, ``count`` how many it says there are."""

    pattern: int
    stem: str
    text: str
    of: str = ""
    count: int | None = None
    tail: str = ""
    count_text: str = ""

    @property
    def kind(self) -> tuple[object, ...]:
        """What the pieces of one file have in common."""
        return self.pattern, self.stem, self.text.isdecimal(), self.of, self.count, self.tail

    def renumbered(self, text: str) -> str:
        """Return the name of another piece."""
        return f"{self.stem}{text}{self.of}{self.count_text}{self.tail}"


def part_name(name: str, pattern: int | None = None) -> PartName | None:
    """Return which piece a file's name means, ``None`` where it is not that of a piece."""
    for number, expression in enumerate(_PATTERNS):
        match = expression.fullmatch(name) if pattern in (None, number) else None
        if match is None:
            continue
        found = match.groupdict()
        text = found["no"]
        if not text.isdecimal() and text not in (text.lower(), text.upper()):
            continue
        count = found.get("count")
        return PartName(
            number, found["stem"], text, found.get("of") or "", int(count) if count else None,
            found.get("tail") or "", count or "",
        )  # fmt: skip
    return None


@dataclass(frozen=True)
class Parts:
    """The pieces of one file in order, and the names of those that should be there and are not."""

    paths: list[str]
    missing: list[str]


def parts_beside(path: str) -> Parts | None:
    """Return all pieces of the file that ``path`` is one of, by their names; ``None`` where it looks like none."""
    folder, name = os.path.split(path)
    own = part_name(name)
    if own is None:
        return None
    found = []
    with os.scandir(folder or ".") as entries:
        for entry in entries:
            other = part_name(entry.name, own.pattern)
            if other is not None and other.kind == own.kind and entry.is_file():
                found.append(other)
    ordered = _without_endings(_in_order([part for part in found if _fits(part.text, own.text)]))
    missing = _missing(ordered)
    if len(ordered) < 2 or len(missing) > _MOST_MISSING:
        return None
    return Parts(
        [os.path.join(folder, part.renumbered(part.text)) for part in ordered],
        [os.path.join(folder, name) for name in missing],
    )


def _fits(text: str, own: str) -> bool:
    """Tell whether two pieces may be of one file by how long their letters are."""
    return own.isdecimal() or len(text) == len(own) or len(text) % 2 == len(own) % 2 == 0


def _without_endings(ordered: list[PartName]) -> list[PartName]:
    """Leave out what lies behind a gap and has an ending that has a meaning of its own (``model.gguf.md``)."""
    widens = _widens(ordered)
    while len(ordered) > 1 and ordered[-1].text in _ENDINGS:
        last, before = (_index(part.text, widens) for part in (ordered[-1], ordered[-2]))
        if last == before + 1:
            break
        ordered = ordered[:-1]
    return ordered


def parts_of(paths: Sequence[str]) -> Parts | None:
    """Return the given pieces in order; ``None`` where their names are not those of pieces of one file."""
    found: dict[PartName, str] = {}
    for path in paths:
        own = part_name(os.path.basename(path))
        if own is None or any(own.kind != other.kind for other in found) or own in found:
            return None
        found[own] = path
    ordered = _in_order(list(found))
    folder = os.path.dirname(paths[0])
    return Parts([found[part] for part in ordered], [os.path.join(folder, n) for n in _missing(ordered)])


def _in_order(parts: list[PartName]) -> list[PartName]:
    widens = _widens(parts)
    return sorted(parts, key=lambda part: _index(part.text, widens))


def _widens(parts: list[PartName]) -> bool:
    """Tell whether ``split`` went on with longer letters (or digits) when two were no longer enough."""
    lengths = {len(part.text) for part in parts}
    return len(lengths) > 1 and min(lengths) == 2 and all(length % 2 == 0 for length in lengths)


def _index(text: str, widens: bool) -> int:
    digits = "0123456789" if text.isdecimal() else "abcdefghijklmnopqrstuvwxyz"
    values = [digits.index(char) for char in text.lower()]
    base, last, before = len(digits), len(digits) - 1, 0
    if widens:
        steps = len(text) // 2 - 1  # so many letters z in front say how often it widened
        if values[:steps] == [last] * steps:
            before = sum((base - 1) * base ** (1 + step) for step in range(steps))
            values = values[steps:]
    number = 0
    for value in values:
        number = number * base + value
    return before + number


def _text(index: int, like: str, widens: bool) -> str:
    """Return the number or the letters of a piece, as wide as ``like`` where nothing was widened."""
    if like.isdecimal() and not widens:
        return f"{index:0{len(like)}d}" if like.startswith("0") else str(index)
    digits = "0123456789" if like.isdecimal() else "abcdefghijklmnopqrstuvwxyz"
    base, front, width = len(digits), "", len(like)
    while widens and index >= (base - 1) * base ** (1 + len(front)):
        index -= (base - 1) * base ** (1 + len(front))
        front += digits[-1]
        width += 1
    found = ""
    for _ in range(width):
        index, value = divmod(index, base)
        found = digits[value] + found
    return (front + found).upper() if like.isupper() else front + found


def _missing(ordered: list[PartName]) -> list[str]:
    """Return the names of pieces that are not there, up to the last one that is, or that there is said to be."""
    widens = _widens(ordered)
    there = {_index(part.text, widens): part for part in ordered}
    count = ordered[0].count
    first = 0 if 0 in there or not ordered[0].text.isdecimal() else 1
    last = max(there) if count is None else first + count - 1
    last = min(last, first + len(there) + 2 * _MOST_MISSING)
    like = ordered[0].text
    return [
        ordered[0].renumbered(_text(index, like, widens))
        for index in range(first, last + 1)
        if index not in there
    ]
