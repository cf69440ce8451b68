"""One entry as a row of a listing: what every command that lists entries says about one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.formats.atlas.tables import data_type_name

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry


@dataclass(frozen=True)
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
