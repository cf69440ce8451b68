"""One entry as a row of a listing: what every command that lists entries says about one."""

from __future__ import annotations

import marshal
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from operator import attrgetter
from typing import TYPE_CHECKING, Any, overload

from atlas_kit.codecs.json_text import named
from atlas_kit.formats.atlas.tables import data_type_name

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry


@dataclass(frozen=True, slots=True)
class EntryRow:
    """What an entry's header says; nothing of the payload is read for it."""

    key: str
    type: int
    flags: int
    timestamp: int
    size: int
    stored_size: int
    codec: str
    filter: str
    dtype: str | None
    shape: tuple[int, ...] | None
    offset: int | None
    payload_offset: int | None
    checksum: int

    @classmethod
    def of(cls, entry: Entry) -> EntryRow:
        """Make the row of an entry."""
        return cls(
            entry.key,
            int(entry.type),
            entry.flags,
            entry.timestamp,
            entry.size,
            entry.stored_size,
            entry.codec,
            entry.filter,
            entry.dtype,
            entry.shape,
            entry.offset,
            entry.payload_offset,
            entry.checksum,
        )

    @property
    def type_name(self) -> str:
        """Return ``text`` for 1, ``type 99`` for what has no name."""
        return data_type_name(self.type)

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {
            **named("key", self.key),
            "type": self.type,
            "type_name": self.type_name,
            "flags": self.flags,
            "timestamp": self.timestamp,
            "size": self.size,
            "stored_size": self.stored_size,
            "codec": self.codec,
            "filter": self.filter,
            "dtype": self.dtype,
            "shape": None if self.shape is None else list(self.shape),
            "offset": self.offset,
            "payload_offset": self.payload_offset,
            "checksum": f"{self.checksum:x}",
        }


_fields = attrgetter(*(field.name for field in fields(EntryRow)))


class PackedRows(Sequence[EntryRow]):
    """Rows of any number of entries, 150 bytes each and not a kilobyte: they become objects when they are asked for."""

    def __init__(self, rows: Iterable[EntryRow]) -> None:
        self._rows = [marshal.dumps(_fields(row)) for row in rows]

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> EntryRow: ...
    @overload
    def __getitem__(self, index: slice) -> list[EntryRow]: ...

    def __getitem__(self, index: int | slice) -> EntryRow | list[EntryRow]:
        if isinstance(index, slice):
            return [EntryRow(*marshal.loads(row)) for row in self._rows[index]]
        return EntryRow(*marshal.loads(self._rows[index]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)
