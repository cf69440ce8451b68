"""One entry, metadata value or tensor that is looked at: its facts, the ways to see it, and how it is saved.

The ways (``views``): ``text``, ``chat``, ``json``, ``matrix``, ``histogram``, ``values`` (a table of its own). What
is sent is bounded whatever the size of the payload. Knows no format.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import loads, plain
from atlas_kit.codecs.text import text_at_start
from atlas_kit.errors import AtlasError, DataTooLargeError, printable
from atlas_kit.explorer.matrix import StoredMatrix

#: Bytes of a payload that are read to be shown; the rest of a larger one is for exporting.
SHOWN = 1 << 24
#: Bytes of text in one answer, children of a JSON node, messages of a chat.
PAGE = 1 << 15
CHILDREN = 200
MESSAGES = 100
_SPEAKER = re.compile(r"^(system|user|human|assistant|bot|ai|tool)\s*:\s?", re.IGNORECASE | re.MULTILINE)
#: Characters without a picture that text needs: line ends, tabs, and the joiners of scripts and emoji.
_KEPT = "\n\t\u200c\u200d\ufe0f"


@dataclass
class Item:
    """What is looked at.

    Attributes
    ----------
    facts
        (label, value) pairs to show.
    start, size
        Its bytes in the file (with head or key).
    read
        Gives the first bytes of the payload, decoded, at most as many as asked for; None where there are none.
    matrix
        Gives its numbers; None for anything but a tensor.
    values
        Name of the table of its elements, for an array.
    exports
        What it can be saved as: suffix -> the file in pieces.
    conversation
        Whether the file says that it is one.
    problem
        What is wrong with it, in one sentence.
    """

    name: str
    kind: str
    facts: list[tuple[str, str]]
    start: int
    size: int
    length: int = 0
    read: Callable[[int], bytes] | None = None
    matrix: Callable[[], StoredMatrix] | None = None
    values: str | None = None
    exports: dict[str, Callable[[], Iterable[bytes]]] = field(default_factory=dict)
    conversation: bool = False
    problem: str | None = None
    _shown: bytes | None = None
    _document: Any = None

    @property
    def shown(self) -> bytes:
        """The first ``SHOWN`` bytes of the payload; damage behind the first byte becomes ``problem``."""
        if self._shown is None:
            self._shown = b"" if self.read is None else self.read(SHOWN)
        return self._shown

    @property
    def is_text(self) -> bool:
        """Whether the payload is UTF-8 text without NUL."""
        start = self.shown[:4096]
        return text_at_start(start, cut=len(start) == 4096) is not None

    def views(self) -> list[str]:
        """Return the ways to see it, the best one first."""
        if self.matrix is not None:
            return ["matrix", "histogram"] if self.values is None else ["values", "histogram"]
        if self.values is not None:
            return ["values"]
        if self.read is None or not self.is_text:
            return []
        found = []
        if self.document() is not None:
            found.append("json")
        if self.messages():
            found.insert(0 if self.conversation or not found else 1, "chat")
        return [*found, "text"]

    def to_json(self) -> dict[str, Any]:
        """Return what is shown beside the views."""
        views = self.views()
        return {
            "name": printable(self.name), "kind": self.kind, "start": self.start, "size": self.size,
            "facts": [[label, printable(value)] for label, value in self.facts], "views": views,
            "values": self.values, "exports": list(self.exports), "problem": self.problem,
        }  # fmt: skip

    # --- text, JSON, chat -----------------------------------------------------------------------------------

    def text(self, start: int) -> dict[str, Any]:
        """Return a page of the text from byte ``start`` on, made safe to show."""
        raw = self.shown[start : start + PAGE + 4]
        page = raw[:PAGE]
        while len(raw) > len(page) > PAGE - 4 and raw[len(page)] & 0xC0 == 0x80:  # not through a character
            page = page[:-1]
        following = start + len(page)
        return {
            "text": visible(page.decode("utf-8", "surrogateescape")), "start": start,
            "next": following if page and following < len(self.shown) else None,
            "size": self.length, "shown": len(self.shown),
        }  # fmt: skip

    def document(self) -> Any:
        """Return the payload parsed, if it is a JSON object or array that is not too long."""
        if self._document is None:
            self._document = (self._parsed(),)
        return self._document[0]

    def _parsed(self) -> Any:
        if self.length > len(self.shown) or self.shown.lstrip()[:1] not in (b"{", b"["):
            return None
        try:
            return loads(self.shown)
        except AtlasError:
            return None

    def node(self, path: list[int], start: int) -> dict[str, Any]:
        """Return the children of the node that ``path`` (places of children) leads to, ``CHILDREN`` at a time."""
        node = self.document()
        for place in path:
            node = _children(node)[place][1]
        children = _children(node)
        start = max(0, start)
        rows = [_child(key, value) for key, value in children[start : start + CHILDREN]]
        return {"path": path, "start": start, "count": len(children), "children": rows}

    def messages(self) -> list[tuple[str, str]]:
        """Return the messages (role, text) if the payload is a conversation, as JSON or as ``User: ...`` lines."""
        document = self.document()
        if document is not None:
            return _messages_of(document)
        if not self.conversation:
            return []
        text = self.shown.decode("utf-8", "replace")
        parts = _SPEAKER.split(text)
        return [
            (role.lower(), body.strip("\n")) for role, body in zip(parts[1::2], parts[2::2], strict=False)
        ]

    def chat(self, start: int) -> dict[str, Any]:
        """Return a page of the messages."""
        messages = self.messages()
        page = messages[max(0, start) : max(0, start) + MESSAGES]
        rows = [{"role": visible(role), "text": visible(text)} for role, text in page]
        return {"start": start, "count": len(messages), "messages": rows}

    # --- saving ---------------------------------------------------------------------------------------------

    def export(self, form: str, limit: int) -> bytes:
        """Return the item as a file of one form.

        Raises
        ------
        DataTooLargeError
            It has more than ``limit`` bytes.
        """
        whole = bytearray()
        for piece in self.exports[form]():
            whole += piece
            if len(whole) > limit:
                raise DataTooLargeError(
                    f"the file would have more than {limit >> 20} MiB, which is too much for the browser",
                    key=self.name, hint="Save it from Python: FileExplorer.export(name, path).",
                )  # fmt: skip
        return bytes(whole)


def visible(text: str) -> str:
    """Return text with everything escaped that would act instead of being seen; lines and joiners stay."""
    if text.isprintable():
        return text
    return "".join(char if char in _KEPT or char.isprintable() else printable(char) for char in text)


def _children(node: Any) -> list[tuple[str, Any]]:
    if isinstance(node, dict):
        return list(node.items())
    if isinstance(node, list):
        return [(str(number), item) for number, item in enumerate(node)]
    return []


def _child(key: str, value: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"key": visible(plain(key)), "count": None}
    if isinstance(value, (dict, list)):
        row.update(type="object" if isinstance(value, dict) else "array", count=len(value), value="")
    elif isinstance(value, str):
        shown = visible(plain(value[:PAGE]))
        row.update(type="string", value=shown + ("…" if len(value) > PAGE else ""))
    else:
        row.update(type="null" if value is None else type(value).__name__, value=str(plain(value)))
        row["value"] = {"None": "null", "True": "true", "False": "false"}.get(row["value"], row["value"])
    return row


def _messages_of(document: Any) -> list[tuple[str, str]]:
    if isinstance(document, dict):
        document = document.get("messages", document.get("conversation"))
    if not isinstance(document, list):
        return []
    found = []
    for item in document:
        if not isinstance(item, dict):
            return []
        role = item.get("role", item.get("from"))
        text = item.get("content", item.get("value", item.get("text")))
        if not isinstance(role, str) or text is None:
            return []
        found.append((role, text if isinstance(text, str) else str(plain(text))))
    return found
