"""How answers stand in the rows of their file: as they are, or sealed with the server's key.

Sealed, names are looked up by a keyed hash, and everything that was said or noted is encrypted and bound to its row,
with keys that are made like those of encrypted memory files. What can still be seen: how many answers there are, how
long, which goes on from which, under which API key's hash, and when conversations were used. Knows no SQL.
"""

from __future__ import annotations

import hmac
import json
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.server.response_records import Record

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.crypto import Cipher

#: ``id, session, response, items, messages`` of a row.
Columns = tuple[Any, Any, Any, Any, Any]


class Form(Protocol):
    """How values stand in the columns."""

    def name(self, text: str | None) -> Any:
        """Return what a name is looked up by."""

    def columns(self, record: Record) -> Columns:
        """Return ``id, session, response, items, messages`` as they are stored."""

    def record(self, number: int, before: int | None, remembers: bool | None, columns: Columns) -> Record:
        """Return an answer from its row."""

    def noted(self, name: str, metadata: dict[str, Any]) -> Any:
        """Return the notes of a conversation as they are stored."""

    def notes(self, name: str, stored: Any) -> dict[str, Any]:
        """Return the notes of a conversation from its row."""


class Plain:
    """As they are."""

    def name(self, text: str | None) -> str | None:
        """Return the name."""
        return text

    def columns(self, record: Record) -> Columns:
        """Return what is said as JSON."""
        response, items, messages = map(json.dumps, record[5:])
        return record.id, record.session, response, items, messages

    def record(self, number: int, before: int | None, remembers: bool | None, columns: Columns) -> Record:
        """Return an answer from its row."""
        name, session, *parts = columns
        response, items, messages = map(json.loads, parts)
        return Record(number, name, before, session, remembers, response, items, messages)

    def noted(self, name: str, metadata: dict[str, Any]) -> str:
        """Return the notes as JSON."""
        return json.dumps(metadata)

    def notes(self, name: str, stored: Any) -> dict[str, Any]:
        """Return the notes of a conversation from its row."""
        found: dict[str, Any] = json.loads(stored)
        return found


class Sealed:
    """Encrypted.

    Parameters
    ----------
    cipher
        The file's keys.
    """

    def __init__(self, cipher: Cipher) -> None:
        self._cipher = cipher

    def name(self, text: str | None) -> bytes | None:
        """Return a keyed hash of the name."""
        if text is None:
            return None
        return hmac.digest(self._cipher.header_tag(b"name"), text.encode("utf-8", "surrogatepass"), "sha256")

    def columns(self, record: Record) -> Columns:
        """Return what is said, sealed; the session's own name is sealed with it."""
        where = f"answer {record.number}"
        inside = [record.id, record.session, record.response], record.items, record.messages
        response, items, messages = (self._seal(part, f"{where} {at}") for at, part in enumerate(inside))
        return self.name(record.id), self.name(record.session), response, items, messages

    def record(self, number: int, before: int | None, remembers: bool | None, columns: Columns) -> Record:
        """Return an answer from its row.

        Raises
        ------
        AuthenticationError
            It was altered, or is another row's.
        """
        hidden, _, *parts = columns
        first, items, messages = (self._open(part, f"answer {number} {at}") for at, part in enumerate(parts))
        name, session, response = first
        return Record(
            number, None if hidden is None else name, before, session, remembers, response, items, messages
        )

    def noted(self, name: str, metadata: dict[str, Any]) -> bytes:
        """Return the notes, sealed."""
        return self._seal(metadata, f"conversation {name}")

    def notes(self, name: str, stored: Any) -> dict[str, Any]:
        """Return the notes of a conversation from its row.

        Raises
        ------
        AuthenticationError
            They were altered, or are another conversation's.
        """
        found: dict[str, Any] = self._open(stored, f"conversation {name}")
        return found

    def _seal(self, value: Any, where: str) -> bytes:
        return self._cipher.seal_index(json.dumps(value).encode(), where.encode("utf-8", "surrogatepass"))

    def _open(self, stored: Any, where: str) -> Any:
        data = stored if isinstance(stored, bytes) else b""
        return json.loads(self._cipher.open_index(data, where.encode("utf-8", "surrogatepass")))
