r"""Chats as messages: what an entry of a memory file says, and entries made of messages.

A history is text, ``User: ...`` and ``Assistant: ...`` at the beginnings of lines as the C library's example has it, or
JSON: a list of objects with ``role`` and ``content``, or an object with such a list in ``messages``. Knows no file.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import json_bytes, to_utf8
from atlas_kit.codecs.text import as_text
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.atlas.tables import DataType
from atlas_kit.operations.json_document import JSON_STYLES

#: What stands before the colon at the beginning of a line, and the role that it means.
ROLES = {
    "user": "user", "human": "user", "assistant": "assistant", "ai": "assistant", "bot": "assistant",
    "model": "assistant", "system": "system", "developer": "developer", "tool": "tool", "function": "function",
}  # fmt: skip
_SPEAKER = re.compile(rf"^({'|'.join(ROLES)})[ \t]*:[ \t]?", re.IGNORECASE | re.MULTILINE)


@dataclass
class Message:
    """One message: who says it (empty where nobody is named), what, and what else its JSON has."""

    role: str
    content: str
    more: dict[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the message as an object of JSON."""
        return {"role": self.role, "content": self.content, **self.more}


@dataclass
class Chat:
    """A history: its messages, and how they are written in the entry (``text``, ``list`` or ``object``)."""

    messages: list[Message]
    form: str = "text"
    style: str = "spaced"
    around: dict[str, Any] = field(default_factory=dict)

    @property
    def has_speakers(self) -> bool:
        """Whether anybody is named in it."""
        return any(message.role for message in self.messages)

    @property
    def text(self) -> str:
        """All contents, one below the other."""
        return "\n".join(message.content for message in self.messages)

    def payload(self) -> bytes:
        """Return the bytes of an entry; text where it says the same when it is read again, or else JSON."""
        if self.form == "text":
            text = text_of(self.messages)
            if text is not None:
                return to_utf8(text)
        messages = [message.to_json() for message in self.messages]
        value = {**self.around, "messages": messages} if self.form == "object" else messages
        return json_bytes(value, **JSON_STYLES[self.style])


def text_of(messages: list[Message]) -> str | None:
    """Return messages as text with a speaker at the beginning of each; None where that would not say the same."""
    parts = [
        f"{one.role[:1].upper()}{one.role[1:]}: {one.content}" if one.role else one.content
        for one in messages
    ]
    text = "\n".join(parts)
    return text if messages_in(text) == messages else None


def messages_in(text: str) -> list[Message]:
    """Return the messages of a text; what no speaker is named for comes first, as a message of nobody."""
    found = list(_SPEAKER.finditer(text))
    begin = text[: found[0].start()].removesuffix("\n") if found else text
    messages = [Message("", begin)] if begin or text[:1] == "\n" else []
    ends = [*(one.start() - 1 for one in found[1:]), len(text)]
    for one, end in zip(found, ends, strict=False):
        messages.append(Message(ROLES[one[1].lower()], text[one.end() : end]))
    return messages


def chat_of(data: bytes) -> Chat | None:
    """Return the history that an entry's payload is, None where it is no text."""
    text = as_text(data)
    if text is None:
        return None
    if text.lstrip()[:1] in ("[", "{"):
        chat = _of_json(text)
        if chat is not None:
            return chat
    return Chat(messages_in(text))


def _of_json(text: str) -> Chat | None:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    messages = value.get("messages") if isinstance(value, dict) else value
    if not isinstance(messages, list) or not messages or not all(map(is_message, messages)):
        return None
    styles = (name for name, how in JSON_STYLES.items() if json.dumps(value, **how) == text)
    around = (
        {name: item for name, item in value.items() if name != "messages"} if isinstance(value, dict) else {}
    )
    form = "object" if isinstance(value, dict) else "list"
    return Chat([message_from(one, "") for one in messages], form, next(styles, "spaced"), around)


def is_message(value: Any) -> bool:
    """Tell whether a value of JSON looks like a message."""
    return isinstance(value, dict) and isinstance(value.get("role", value.get("from")), str)


def message_from(value: Any, where: str) -> Message:
    """Return the message that an object of JSON is.

    Parameters
    ----------
    where
        What to call its place in an error.

    Raises
    ------
    InvalidParamError
        It is none: the sentence says what is missing or wrong.
    """
    if not isinstance(value, dict):
        raise InvalidParamError(f"{where} is not an object with a role and a content")
    more = dict(value)
    names = ("role", "content") if "role" in more or "from" not in more else ("from", "value")
    role, content = more.pop(names[0], None), more.pop(names[1], None)
    if content is None and isinstance(more.get("text"), str):
        content = more.pop("text")
    if role is None:
        raise InvalidParamError(f'{where} has no "role"')
    if not isinstance(role, str):
        raise InvalidParamError(f'the "role" of {where} is not a word such as user or assistant')
    if content is None and not more:
        raise InvalidParamError(f'{where} has no "content"')
    if isinstance(content, list):
        content = _of_parts(content, where)
    if content is None:  # a call of a tool, for example
        content = ""
    if not isinstance(content, str):
        raise InvalidParamError(f'the "content" of {where} is not text')
    return Message(ROLES.get(role.lower(), role), content, more)


def _of_parts(parts: list[Any], where: str) -> str:
    """Return the text of a content that is a list of parts."""
    texts = []
    for number, part in enumerate(parts, 1):
        text = part.get("text") if isinstance(part, dict) else part
        if not isinstance(text, str):
            raise InvalidParamError(f'part {number} of the "content" of {where} is not text')
        texts.append(text)
    return "\n".join(texts)


def joined(first: Chat, second: Chat) -> Chat | None:
    """Return one history of two: their common beginning once, then what only the first has, then the second's.

    Of two texts without speakers the lines are joined so. None where only one of them has speakers.
    """
    if first.has_speakers != second.has_speakers:
        return None
    if not first.has_speakers:
        lines = [text.removesuffix("\n").split("\n") for text in (first.text, second.text)]
        end = "\n" if first.text.endswith("\n") or second.text.endswith("\n") else ""
        return Chat([Message("", "\n".join(_one_of_two(*lines)) + end)])
    ours, theirs = (_without_end(one) for one in (first, second))
    messages = _one_of_two(ours, theirs)
    return Chat(messages, first.form, first.style, {**second.around, **first.around})


def _one_of_two(first: list[Any], second: list[Any]) -> list[Any]:
    common = 0
    for one, other in zip(first, second, strict=False):
        if one != other:
            break
        common += 1
    return [*first, *second[common:]]


def _without_end(chat: Chat) -> list[Message]:
    """Return the messages; the line break that ends a text is not the last message's."""
    if chat.form != "text" or not chat.messages:
        return chat.messages
    *before, last = chat.messages
    return [*before, Message(last.role, last.content.removesuffix("\n"), last.more)]


def is_history(type_id: int, is_tensor: bool) -> bool:
    """Tell whether an entry of this type may hold a history."""
    return not is_tensor and type_id in (DataType.CONVERSATION, DataType.TEXT)
