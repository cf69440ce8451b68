"""Entries of a memory file as people write them in JSON or JSON lines, read as records.

Accepted is what people write by hand: a list of messages, objects with a key and messages (or text, or JSON), a table
from keys to any of these, one object a line; what ``export`` gives out, and what other programs export. What is wrong
is said with its place. Knows no memory file to put them in.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import (
    digits,
    json_bytes,
    loads,
    name_from,
    pairs_once,
    refuse_constant,
    to_utf8,
)
from atlas_kit.codecs.quantities import parse_time
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError
from atlas_kit.formats.atlas.tables import DATA_TYPE_BY_NAME, U32, U64, DataType
from atlas_kit.operations import chats
from atlas_kit.operations.json_document import JSON_STYLES, entry_from_json
from atlas_kit.storage.given import Given, use_source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry

#: What a record's content may stand under.
_CONTENTS = ("messages", "text", "json")
#: What an entry has in a memory file that was converted to JSON, where it is no text.
_EXACT = ("base64", "values", "stored_base64")


@dataclass
class Record:
    """One entry to be made: where it stands in its source, and what it is.

    ``entry``: one that is made already, of numbers or bytes. ``source``: the name of the file, as soon as all of it is
    read.
    """

    where: str
    key: str
    payload: bytes
    chat: chats.Chat | None
    type: int
    flags: int | None
    timestamp: int | None
    entry: Entry | None = None
    source: str | None = None


def read_records(given: Given, form: str = "text") -> list[Record]:
    """Return the entries that a JSON file or JSON lines describe.

    Raises
    ------
    InvalidParamError
        It is neither, or something in it makes no sense.
    """
    with use_source(given) as source:
        data, name = _utf8(source.read(0, source.size)), source.name
    stem = os.path.splitext(os.path.basename(name))[0] if name != "-" else "conversation"
    try:
        records = _read(data, name, stem, form)
    except AtlasError as error:
        error.path = error.path or name
        raise
    for record in records:
        record.source = name
    return records


def _utf8(data: bytes) -> bytes:
    """Return text in UTF-8 without a byte order mark, also of what a shell of Windows has written in UTF-16."""
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        data = data.decode("utf-16", "replace").encode()
    return data.removeprefix(b"\xef\xbb\xbf")


def _read(data: bytes, name: str, stem: str, form: str) -> list[Record]:
    if name.lower().endswith((".jsonl", ".ndjson")) or _is_lines(data):
        return list(_of_lines(data, stem, form))
    return list(_of_value(loads(data, what="JSON", unique=True), stem, form))


def _is_lines(data: bytes) -> bool:
    """Tell whether data is one value of JSON a line, and not one over several lines."""
    lines = [line for line in data.splitlines() if line.strip()]
    if len(lines) < 2:
        return False
    try:
        return isinstance(json.loads(lines[0]), (dict, list))
    except (ValueError, RecursionError):
        return False


def _of_lines(data: bytes, stem: str, form: str) -> Iterator[Record]:
    values = []
    for number, line in enumerate(re.split(rb"\r\n|\r|\n", data), 1):  # none of them is inside a value
        if not line.strip():
            continue
        where = f"line {number}"
        try:
            values.append(
                (where, json.loads(line, parse_constant=refuse_constant, object_pairs_hook=pairs_once))
            )
        except json.JSONDecodeError as error:
            raise InvalidParamError(f"{where} is not JSON (column {error.colno}): {error.msg}") from error
        except UnicodeDecodeError as error:
            raise InvalidParamError(f"{where} is not UTF-8 text") from error
        except (ValueError, RecursionError) as error:
            why = digits(error) if isinstance(error, ValueError) else "it is nested too deeply"
            raise InvalidParamError(f"{where} is not JSON that can be read: {why}") from error
    yield from _of_items(values, stem, form)


def _of_value(value: Any, stem: str, form: str) -> Iterator[Record]:
    if isinstance(value, list):
        yield from _of_items([(f"item {number}", one) for number, one in enumerate(value, 1)], stem, form)
        return
    if not isinstance(value, dict):
        raise InvalidParamError("the JSON is neither a list nor an object")
    for several in ("conversations", "entries"):
        inside = value.get(several)
        if isinstance(inside, list) and "messages" not in value:
            what = several.removesuffix("s") if several == "conversations" else "entry"
            items = [(f"{what} {number}", one) for number, one in enumerate(inside, 1)]
            yield from _of_items(items, stem, form)
            return
    if any(name in value for name in ("messages", "key")) or is_message(value):
        yield _record(value, "the object", stem, form)
        return
    for key, one in value.items():
        yield _of_pair(key, one, form)


def is_message(value: Any) -> bool:
    """Tell whether a value is one message, and no conversation."""
    return chats.is_message(value) and "messages" not in value and "key" not in value


def _of_items(items: list[tuple[str, Any]], stem: str, form: str) -> Iterator[Record]:
    """Yield one entry of messages, or one for each item."""
    if items and is_message(items[0][1]):
        messages = [chats.message_from(one, where) for where, one in items]
        with _with_place(items[0][0]):
            made = _made({}, items[0][0], stem, chats.Chat(messages, "text" if form == "text" else "list"))
        yield made
        return
    width = len(str(len(items)))
    for number, (where, one) in enumerate(items, 1):
        default = stem if len(items) == 1 else f"{stem}/{number:0{width}}"
        if isinstance(one, list):
            one = {"messages": one}
        yield _record(one, where, default, form)


def _of_pair(key: str, value: Any, form: str) -> Record:
    """Return the entry of a table from keys to contents."""
    where = f'"{key[:60]}"'
    if isinstance(value, str):
        return _record({"key": key, "text": value}, where, key, form)
    if isinstance(value, dict) and "messages" in value:
        return _record({**value, "key": key}, where, key, form)
    if isinstance(value, list) and value and all(map(chats.is_message, value)):
        return _record({"key": key, "messages": value}, where, key, form)
    return _record({"key": key, "json": value}, where, key, form)


@contextlib.contextmanager
def _with_place(where: str) -> Iterator[None]:
    """Say where it is what no bytes can be made of."""
    try:
        yield
    except FileCorruptError as error:
        raise InvalidParamError(f"{where}: {error.message}", hint=error.hint) from error


def _record(value: Any, where: str, default: str, form: str) -> Record:
    with _with_place(where):
        return _record_of(value, where, default, form)


def _record_of(value: Any, where: str, default: str, form: str) -> Record:
    if not isinstance(value, dict):
        raise InvalidParamError(f'{where} is not an object with "messages", "text" or "json"')
    if is_message(value):
        value = {"messages": [value]}
    if any(name in value for name in _EXACT):
        return _exact(value, where, default)
    value = _of_other_programs(value)
    given = [name for name in _CONTENTS if name in value]
    if len(given) != 1:
        said = " and ".join(f'"{name}"' for name in given) or 'no "messages", "text" or "json"'
        raise InvalidParamError(f"{where} has {said}", hint="An entry has exactly one of them.")
    key = _key_of(value, where, default)
    if given[0] == "messages":
        return _made(value, where, key, _chat(value, where, form))
    if given[0] == "text":
        if not isinstance(value["text"], str):
            raise InvalidParamError(f'the "text" of {where} is not text')
        return _made(value, where, key, None, to_utf8(value["text"]))
    style = JSON_STYLES.get(str(value.get("json_style", "spaced")))
    if style is None:
        raise InvalidParamError(f'the "json_style" of {where} is not one of {", ".join(JSON_STYLES)}')
    return _made(value, where, key, None, json_bytes(value["json"], **style))


def _of_other_programs(value: dict[str, Any]) -> dict[str, Any]:
    """Return a conversation as other programs export theirs (Claude, ChatGPT) in the words that are used here."""
    found = dict(value)
    if isinstance(value.get("chat_messages"), list):
        found["messages"] = [
            {"role": one.get("sender"), "content": one.get("text") or one.get("content")}
            if isinstance(one, dict) else one
            for one in value["chat_messages"]
        ]  # fmt: skip
        found |= {"title": value["name"]} if value.get("name") else {}
        found |= {"time": value["created_at"]} if "created_at" in value else {}
    elif isinstance(value.get("mapping"), dict):
        found["messages"] = _branch(value["mapping"], value.get("current_node"))
        if isinstance(value.get("create_time"), (int, float)) and "time" not in value:
            found["time"] = int(value["create_time"])
    return found


def _branch(nodes: dict[str, Any], last: Any) -> list[Any]:
    """Return the messages from the first to the current one, of a tree in which each node names its parent."""
    if last not in nodes:
        last = next(reversed(nodes), None)
    messages, seen = [], set()
    while isinstance(last, str) and last in nodes and last not in seen and isinstance(nodes[last], dict):
        seen.add(last)
        message, last = nodes[last].get("message"), nodes[last].get("parent")
        author = message.get("author") if isinstance(message, dict) else None
        content = message.get("content") if isinstance(message, dict) else None
        parts = content.get("parts") if isinstance(content, dict) else None
        text = "\n".join(part for part in parts or () if isinstance(part, str))
        if isinstance(author, dict) and text.strip():
            messages.append({"role": author.get("role"), "content": text})
    return messages[::-1]


def _exact(value: dict[str, Any], where: str, default: str) -> Record:
    """Return an entry of numbers or bytes, as a memory file that was converted to JSON has them."""
    key = _key_of(value, where, default)
    try:
        entry = entry_from_json({**value, "key": key})
    except AtlasError as error:
        raise InvalidParamError(f"{where}: {error.message}") from error
    return Record(where, entry.key, b"", None, int(entry.type), None, None, entry)


def _key_of(value: dict[str, Any], where: str, default: str) -> str:
    if "key_hex" in value:
        return name_from(value, "key")
    for name in ("key", "title", "id"):
        if name in value:
            if name != "key" and not value[name]:  # programs write null for what has no title
                continue
            if not isinstance(value[name], str):
                raise InvalidParamError(f'the "{name}" of {where} is not text')
            if not value[name]:
                raise InvalidParamError(f'the "{name}" of {where} is empty')
            if "\0" in value[name]:
                raise InvalidParamError(f'the "{name}" of {where} holds a NUL, and keys have none')
            return str(value[name])
    return default


def _chat(value: dict[str, Any], where: str, form: str) -> chats.Chat:
    messages = value["messages"]
    if not isinstance(messages, list) or not messages:
        raise InvalidParamError(f'the "messages" of {where} are not a list with at least one message')
    made = [chats.message_from(one, f"message {number} of {where}") for number, one in enumerate(messages, 1)]
    said = value.get("form", "text" if form == "text" else "list")
    style, around = value.get("json_style", "spaced"), value.get("around", {})
    if said not in ("text", "list", "object") or style not in JSON_STYLES or not isinstance(around, dict):
        raise InvalidParamError(f'the "form" of {where} is not one that export writes')
    return chats.Chat(made, said, style, around)


def _made(
    value: dict[str, Any], where: str, key: str, chat: chats.Chat | None, payload: bytes = b""
) -> Record:
    if chat is None:
        chat = chats.chat_of(payload)
        speaks = chat is not None and any(one.role for one in chat.messages)
        usual = DataType.METADATA if "json" in value else DataType.CONVERSATION if speaks else DataType.TEXT
    else:
        usual, payload = DataType.CONVERSATION, chat.payload()
    return Record(
        where, key, payload, chat, _type(value, where, usual), _whole(value, "flags", where, U32),
        _time(value, where),
    )  # fmt: skip


def _type(value: dict[str, Any], where: str, usual: int) -> int:
    kind = value.get("type", int(usual))
    if isinstance(kind, str) and kind in DATA_TYPE_BY_NAME:
        return DATA_TYPE_BY_NAME[kind]
    if type(kind) is int and 0 <= kind <= U32:
        return kind
    raise InvalidParamError(
        f'the "type" of {where} is not one', hint=f"Use a number, or {', '.join(DATA_TYPE_BY_NAME)}."
    )


def _whole(value: dict[str, Any], name: str, where: str, most: int) -> int | None:
    number = value.get(name)
    if number is not None and (type(number) is not int or not 0 <= number <= most):
        raise InvalidParamError(f'the "{name}" of {where} is not a whole number from 0 to {most}')
    return number


def _time(value: dict[str, Any], where: str) -> int | None:
    """Return when an entry is from: seconds since 1970, or a date and time in ISO 8601."""
    if "timestamp" in value or type(value.get("time")) is int:
        return _whole(value, "timestamp" if "timestamp" in value else "time", where, U64)
    said = value.get("time")
    if said is None:
        return None
    milliseconds = parse_time(str(said))
    if milliseconds is None:
        raise InvalidParamError(
            f'the "time" of {where} is not a date and time', hint="Write 2026-11-30T14:00:00Z, or seconds."
        )
    return milliseconds // 1000


__all__ = ["Record", "is_message", "read_records"]
