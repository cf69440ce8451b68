"""Add to an entry of a memory file: a line of text, or a message of a history."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import loads, named
from atlas_kit.codecs.text import as_text
from atlas_kit.errors import FileCorruptError, InvalidParamError, Remedy
from atlas_kit.formats.atlas.tables import DataType
from atlas_kit.formats.opening import edit_memory
from atlas_kit.operations import chats
from atlas_kit.operations.inputs import memory_to_change
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry


@dataclass
class Appended:
    """What was added to which entry, and its size now; ``messages`` is their number in a history."""

    path: str
    key: str
    created_file: bool
    created: bool
    size: int
    messages: int | None

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {**named("path", self.path), **named("key", self.key), "created_file": self.created_file,
                "created": self.created, "size": self.size, "messages": self.messages}  # fmt: skip


@dataclass
class AppendOptions:
    """How to add. ``role``: as a message of this role. ``exact``: the bytes alone, without a line break before them.

    ``new``: make the file if there is none, whatever its name.
    """

    role: str | None = None
    exact: bool = False
    new: bool = False
    backup: bool | int = False


def append_value(
    path: StrPath, key: str, value: bytes, options: AppendOptions | None = None, keys: Keys | None = None
) -> Appended:
    """Add to an entry, which is made if there is none.

    Text begins on a line of its own; a message is added in the form that the history has, text or JSON.

    Raises
    ------
    InvalidParamError
        The entry is a tensor; a message is to be added to what is no history, or a line to a history in JSON.
    """
    options, keys = options or AppendOptions(), Keys() if keys is None else keys
    with (
        memory_to_change(path, options.new, "only entries of .atlas files can be added to") as (given, new),
        edit_memory(given, keys, create=new, backup=options.backup) as memory,
    ):
        held = memory.get(key)
        if held is not None and held.dtype_id:
            raise InvalidParamError(
                "the entry is a tensor, to which no text can be added", path=path, key=key
            )
        chat: chats.Chat | None = None
        if options.role is not None:
            chat = _history(held, key)
            chat.messages.append(chats.Message(*_said(options.role, value, key)))
            payload = chat.payload()
        else:
            if held is not None and not options.exact:
                _require_text(bytes(held.data), value, path, key)
            payload = _line(b"" if held is None else bytes(held.data), value, options.exact)
        usual = DataType.GENERIC if as_text(payload) is None else DataType.TEXT
        usual = DataType.CONVERSATION if chat is not None else usual
        memory.set(
            key, payload, type=int(usual) if held is None else int(held.type),
            flags=None if held is None else held.flags,
        )  # fmt: skip
    messages = None if chat is None else len(chat.messages)
    return Appended(os.fsdecode(path), key, new, held is None, len(payload), messages)


def _history(held: Entry | None, key: str) -> chats.Chat:
    if held is None:
        return chats.Chat([])
    chat = chats.chat_of(bytes(held.data))
    if chat is None:
        raise InvalidParamError("the entry is no history, to which a message could be added", key=key)
    if not chat.has_speakers and held.size and held.type != DataType.CONVERSATION:
        raise InvalidParamError(
            "the entry is no history, to which a message could be added", key=key,
            hint="Leave the role out to add a line of text.",
        )  # fmt: skip
    if chat.messages and chat.form == "text":  # the line break that ends the text is not the message's
        chat.messages[-1].content = chat.messages[-1].content.removesuffix("\n")
    return chat


def _said(role: str, value: bytes, key: str) -> tuple[str, str]:
    try:
        text = value.decode("utf-8")
    except UnicodeDecodeError:
        raise InvalidParamError("a message is text, and this is not UTF-8", key=key) from None
    if not role.strip():
        raise InvalidParamError("a role is a word such as user or assistant", key=key)
    return chats.ROLES.get(role.lower(), role), text.removesuffix("\n")


def _require_text(data: bytes, value: bytes, path: StrPath, key: str) -> None:
    """Refuse a line below what it would make unreadable: bytes that are no text, and JSON, histories in it foremost."""
    if data and as_text(data) is None:
        raise InvalidParamError(
            "the entry is not text, and a line of text below it would make it unreadable",
            path=path, key=key, remedy=Remedy("append-exact"),
        )  # fmt: skip
    chat = chats.chat_of(data)
    if chat is not None and chat.form != "text":
        raise InvalidParamError(
            "the entry is a history in JSON, and a line of text below it would make it unreadable",
            path=path, key=key, remedy=Remedy("append-message"),
        )  # fmt: skip
    if _is_json(data) and not _is_json(value):  # or else lines of JSON
        raise InvalidParamError(
            "the entry is JSON, and a line of text below it would make it unreadable",
            path=path, key=key, remedy=Remedy("append-exact"),
        )  # fmt: skip


def _is_json(data: bytes) -> bool:
    """Tell whether bytes are an object or a list of JSON."""
    if data.lstrip()[:1] not in (b"{", b"["):
        return False
    try:
        loads(data)
    except FileCorruptError:
        return False
    return True


def _line(before: bytes, value: bytes, exact: bool) -> bytes:
    """Return a text with another one below it."""
    between = b"" if exact or not before or before.endswith(b"\n") else b"\n"
    return before + between + value


__all__ = ["AppendOptions", "Appended", "append_value"]
