"""Search the text of entries and the values of metadata for a regular expression, line by line."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.codecs.text import as_text
from atlas_kit.errors import InvalidParamError
from atlas_kit.operations.inputs import open_given
from atlas_kit.operations.names import matches
from atlas_kit.storage.given import Given
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry
    from atlas_kit.formats.gguf import GGUFFile


@dataclass(frozen=True)
class Match:
    """A line that matches: of which key, its number from 1 (0: the key itself), its text, and where in it."""

    key: str
    line: int
    text: str
    spans: tuple[tuple[int, int], ...]

    def to_json(self) -> dict[str, Any]:
        """Return the match as JSON-ready data."""
        return {**named("key", self.key), "line": self.line, **named("text", self.text),
                "spans": [list(span) for span in self.spans]}  # fmt: skip


@dataclass
class Found:
    """The matches in one file; ``keys`` has each key with a match once."""

    path: str
    matches: list[Match] = field(default_factory=list)

    @property
    def exit_code(self) -> int:
        """Return 1 when nothing was found."""
        return int(not self.matches)

    @property
    def keys(self) -> list[str]:
        """Each key with a match, once."""
        return list(dict.fromkeys(match.key for match in self.matches))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {**named("path", self.path), "matches": [match.to_json() for match in self.matches]}


@dataclass(frozen=True)
class GrepOptions:
    """How to search: without case, the pattern as plain text, in keys too, in these keys or this shard only."""

    ignore_case: bool = False
    fixed: bool = False
    in_keys: bool = False
    only: tuple[str, ...] = ()
    one_shard: bool = False


def compiled(pattern: str, options: GrepOptions) -> re.Pattern[str]:
    """Return a pattern to search with.

    Raises
    ------
    InvalidParamError
        It is no regular expression.
    """
    try:
        return re.compile(
            re.escape(pattern) if options.fixed else pattern, re.I if options.ignore_case else 0
        )
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidParamError(
            f"the pattern is not a regular expression: {error}", key=pattern[:80],
            hint="Search for it as plain text if that is meant.",
        ) from error  # fmt: skip


def grep_file(
    given: Given, pattern: re.Pattern[str], options: GrepOptions | None = None, keys: Keys | None = None
) -> Found:
    """Search one file: entries that are text, or the metadata of a model (each element of an array is a line)."""
    options = options or GrepOptions()
    with open_given(given, keys, one_shard=options.one_shard) as opened:
        found = Found(opened.name)
        lines = (
            _of_model(opened.gguf, options) if opened.kind == "gguf" else _of_memory(opened.memory, options)
        )
        for key, number, text in lines:
            spans = tuple(match.span() for match in pattern.finditer(text))
            if spans:
                found.matches.append(Match(key, number, text, spans))
    return found


def _of_memory(memory: Any, options: GrepOptions) -> Iterator[tuple[str, int, str]]:
    for entry in memory.entries():
        if not matches(entry.key, options.only):
            continue
        if options.in_keys:
            yield entry.key, 0, entry.key
        for number, line in enumerate(_lines(entry), 1):
            yield entry.key, number, line


def _lines(entry: Entry) -> Sequence[str]:
    """Return the lines of an entry, none of one that is no text."""
    if entry.dtype_id:
        return ()
    text = as_text(bytes(entry.data))
    return () if text is None else text.split("\n")


def _of_model(model: GGUFFile, options: GrepOptions) -> Iterator[tuple[str, int, str]]:
    from atlas_kit.codecs.json_text import dumps
    from atlas_kit.operations.gguf_values import plain_value

    for row in model.fields:
        if not matches(row.key, options.only):
            continue
        if options.in_keys:
            yield row.key, 0, row.key
        if isinstance(row.items, str):
            yield from ((row.key, number, line) for number, line in enumerate(row.items.split("\n"), 1))
        elif not row.is_array:
            yield row.key, 1, dumps(row.items)
        else:
            for number, item in enumerate(plain_value(row.items), 1):
                yield row.key, number, item if isinstance(item, str) else dumps(item)
    if options.in_keys:
        yield from (
            (info.name, 0, info.name) for info in model.tensor_infos if matches(info.name, options.only)
        )


__all__ = ["Found", "GrepOptions", "Match", "compiled", "grep_file"]
