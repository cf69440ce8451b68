"""Give out the histories of a memory file: as Markdown, JSON lines or an SQLite database, in one file or one each."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from atlas_kit.codecs.json_text import dumps, named
from atlas_kit.codecs.quantities import utc
from atlas_kit.errors import InvalidParamError, Remedy, printable
from atlas_kit.formats.atlas.tables import DataType, data_type_name
from atlas_kit.formats.endings import require_ending
from atlas_kit.operations import chats, secrecy
from atlas_kit.operations.inputs import open_given
from atlas_kit.operations.names import matches
from atlas_kit.operations.outputs import Output, file_names, is_path, make_folder, output_file, output_name
from atlas_kit.storage.given import Given, check_output
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry, MemoryFile
    from atlas_kit.operations.token_words import Words

FORMATS = ("markdown", "jsonl", "sqlite")
#: What a file name's ending says.
SUFFIXES = {".md": "markdown", ".markdown": "markdown", ".jsonl": "jsonl", ".ndjson": "jsonl",
            ".sqlite": "sqlite", ".sqlite3": "sqlite", ".db": "sqlite"}  # fmt: skip
_SUFFIX_OF = {"markdown": ".md", "jsonl": ".jsonl", "sqlite": ".sqlite"}
#: The key under which what was read and said beside a model is given out.
EPISODES_KEY = "episodes"


class History(NamedTuple):
    """One history to give out. ``exact``: its messages alone give the same bytes again."""

    key: str
    type: int
    flags: int
    time: int
    chat: chats.Chat
    text: str
    exact: bool

    def to_json(self) -> dict[str, Any]:
        """Return the history as an object of which ``import`` makes the same entry."""
        facts: dict[str, Any] = {
            **named("key", self.key),
            "type": _type_name(self.type),
            "timestamp": self.time,
        }
        if (said := utc(self.time)) and self.time:
            facts["time"] = said
        if self.flags:
            facts["flags"] = self.flags
        if not self.exact or not self.chat.messages:
            return {**facts, "text": self.text}
        if self.chat.form != "text":
            facts["form"] = self.chat.form
            if self.chat.style != "spaced":
                facts["json_style"] = self.chat.style
            if self.chat.around:
                facts["around"] = self.chat.around
        return {**facts, "messages": [message.to_json() for message in self.chat.messages]}


def _type_name(number: int) -> str | int:
    name = data_type_name(number)
    return number if name.startswith("type ") else name


@dataclass
class Exported:
    """What was given out, in which format and where; ``skipped`` are keys of entries that hold no text."""

    path: str
    format: str
    output: str
    files: list[str]
    keys: list[str]
    messages: int
    skipped: list[str]

    @property
    def exit_code(self) -> int:
        """Return 1 when there was nothing to give out."""
        return int(not self.keys)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.path),
            "format": self.format,
            **named("output", self.output),
            "files": [named("path", name) for name in self.files],
            "keys": [named("key", key) for key in self.keys],
            "messages": self.messages,
            "skipped": [named("key", key) for key in self.skipped],
        }


def format_of(output: Output, wanted: str | None, each: bool) -> str:
    """Return the format: as asked for, by the suffix of the output, or Markdown on standard output and in a folder.

    Raises
    ------
    InvalidParamError
        Nothing says it.
    """
    if wanted is not None:
        if wanted not in FORMATS:
            raise InvalidParamError(f'there is no format "{wanted}"', hint=f"Use {', '.join(FORMATS)}.")
        return wanted
    if each or not is_path(output):
        return "markdown"
    found = SUFFIXES.get(os.path.splitext(os.fsdecode(output).lower())[1])
    if found is None:
        raise InvalidParamError(
            "the output's name does not say its format", path=output,
            remedy=Remedy("choose-format", formats=", ".join(FORMATS)),
        )  # fmt: skip
    return found


def export_chats(
    given: Given, output: Output, patterns: Sequence[str] = (), *, to: str | None = None, each: bool = False,
    force: bool = False, decrypt: bool = False, words: Words | None = None, keys: Keys | None = None,
) -> Exported:  # fmt: skip
    """Write the histories of a memory file.

    Parameters
    ----------
    output
        A file, a stream, or with ``each`` a folder, which is made.
    patterns
        Keys, or patterns of them; by default all entries of type conversation. Entries of other types that are named
        are given out if they are text.
    to
        The format; by default what the name of ``output`` says.
    each
        Write a file of its own for each history.
    force
        Overwrite files that are there.
    decrypt
        Write plain text to files although the memory is encrypted.
    words
        Those of a model: what was said beside it is a history, too.

    Raises
    ------
    InvalidParamError
        The file is encrypted, the output would not be, and ``decrypt`` is off.
    FileAccessError
        An output exists, and ``force`` is off.
    """
    how = format_of(output, to, each)
    keys = Keys() if keys is None else keys
    is_file = is_path(output)
    if each and not is_file:
        raise InvalidParamError("one file for each history needs a folder, and not standard output")
    with open_given(given, keys) as opened:
        memory = opened.memory
        if is_file:
            secrecy.require_plain(
                how,
                encrypted=memory.version == secrecy.ENCRYPTED,
                keys=keys,
                decrypt=decrypt,
                path=opened.name,
            )
        skipped: list[str] = []
        histories = [*_histories(memory, patterns, skipped), *_said(memory, words)]
        name = output_name(output)
        count = sum(len(one.chat.messages) for one in histories)
        result = Exported(opened.name, how, name, [], [one.key for one in histories], count, skipped)
        if each:
            result.files = _write_each(histories, name, how, given, force)
        elif histories:
            if is_file:
                check_output(name, [given], force)
                require_ending(name, how)
                result.files = [name]
            with output_file(output) as file:
                _write(histories, file, how)
    return result


def _histories(memory: MemoryFile, patterns: Sequence[str], skipped: list[str]) -> Iterator[History]:
    for entry in memory.entries():
        named_by_key = bool(patterns) and matches(entry.key, patterns)
        if not (named_by_key if patterns else entry.type == DataType.CONVERSATION):
            continue
        history = None if entry.dtype_id else _history(entry)
        if history is None:
            skipped.append(entry.key)
        else:
            yield history


def _history(entry: Entry) -> History | None:
    data = bytes(entry.data)
    chat = chats.chat_of(data)
    if chat is None:
        return None
    exact = chat.payload() == data
    return History(
        entry.key, int(entry.type), entry.flags, entry.timestamp, chat, data.decode("utf-8"), exact
    )


def _said(memory: MemoryFile, words: Words | None) -> Iterator[History]:
    """Yield what was said beside a model, as one history."""
    if words is None:
        return
    from atlas_kit.operations.episodes import texts_of
    from atlas_kit.persistence.episode_entries import read_episodes

    arrays = read_episodes(memory)
    turns = [] if arrays is None else [one for one in texts_of(arrays, words) if one.kind != "document"]
    if turns:
        messages = [chats.Message(one.kind, one.text.rstrip("\n")) for one in turns]
        chat = chats.Chat(messages)
        time = turns[-1].time_ms // 1000
        text = chats.text_of(messages) or ""
        yield History(EPISODES_KEY, DataType.CONVERSATION, 0, time, chat, text, True)


# --- formats ---------------------------------------------------------------------------------------------


def _write_each(histories: list[History], folder: str, how: str, given: Given, force: bool) -> list[str]:
    names = file_names([one.key for one in histories], _SUFFIX_OF[how])
    make_folder(folder)
    paths = [os.path.join(folder, name) for name in names]
    for path in paths:  # all or none, as far as names go
        check_output(path, [given], force)
    for history, path in zip(histories, paths, strict=True):
        with output_file(path) as file:
            _write([history], file, how)
    return paths


def _write(histories: list[History], file: IO[bytes], how: str) -> None:
    if how == "sqlite":
        _write_sqlite(histories, file)
        return
    for number, one in enumerate(histories):
        text = dumps(one.to_json()) + "\n" if how == "jsonl" else ("\n" if number else "") + _markdown(one)
        file.write(text.encode("utf-8", "replace"))


def _markdown(one: History) -> str:
    """Return a history for people: a heading, when, and who said what."""
    lines = [f"# {printable(one.key)}", ""]
    if one.time and (said := utc(one.time)):
        lines += [f"*{said}*", ""]
    for message in one.chat.messages:
        if message.role:
            lines += [f"**{printable(message.role[:1].upper() + message.role[1:])}:**", ""]
        lines += [message.content.strip("\n"), ""]
    return "\n".join(lines)


_TABLES = """
CREATE TABLE conversations (
  id INTEGER PRIMARY KEY, key TEXT NOT NULL, type TEXT NOT NULL, flags INTEGER NOT NULL,
  timestamp INTEGER NOT NULL, time TEXT, text TEXT NOT NULL
);
CREATE TABLE messages (
  conversation INTEGER NOT NULL REFERENCES conversations(id), number INTEGER NOT NULL,
  role TEXT NOT NULL, content TEXT NOT NULL, more TEXT, PRIMARY KEY (conversation, number)
);
"""


def _write_sqlite(histories: list[History], file: IO[bytes]) -> None:
    import sqlite3
    import tempfile

    with tempfile.TemporaryDirectory(prefix="atlas-kit-") as folder:
        path = os.path.join(folder, "export.sqlite")
        with closing(sqlite3.connect(path)) as database:
            database.executescript(_TABLES)
            for number, one in enumerate(histories, 1):
                database.execute(
                    "INSERT INTO conversations VALUES (?, ?, ?, ?, ?, ?, ?)",
                    (number, printable(one.key), str(_type_name(one.type)), one.flags,
                     min(one.time, (1 << 63) - 1), utc(one.time) if one.time else None, _text(one.text)),
                )  # fmt: skip
                database.executemany(
                    "INSERT INTO messages VALUES (?, ?, ?, ?, ?)",
                    [(number, at, _text(message.role), _text(message.content),
                      dumps(message.more) if message.more else None)
                     for at, message in enumerate(one.chat.messages, 1)],
                )  # fmt: skip
            database.commit()
        with open(path, "rb") as made:
            while piece := made.read(1 << 20):
                file.write(piece)


def _text(text: str) -> str:
    return text.encode("utf-8", "replace").decode("utf-8")


__all__ = ["FORMATS", "Exported", "export_chats", "format_of"]
