"""What a rescue found and what becomes of it: the list of entries to write, and the account of the rest.

Keys that clash, remains that go to ``lost+found``, and their limits are decided here, for all versions alike.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import printable
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.entry import Entry, FilePayload
from atlas_kit.formats.atlas.store import decode_key, encode_key

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.crypto import Cipher
    from atlas_kit.formats.atlas.store import Info
    from atlas_kit.storage.source import Source

#: Undecodable bytes are kept up to this size each, and in all; larger ones are only reported.
MAX_REMAINS = 16 << 20
MAX_ALL_REMAINS = 64 << 20

LOST_AND_FOUND = "lost+found/"


@dataclass(frozen=True)
class SavedEntry:
    """An entry that was written: from where, how large, and what had to be mended (``how``)."""

    key: str
    size: int
    offset: int
    how: str = "intact"


@dataclass(frozen=True)
class LostPiece:
    """A range that is not what it was: why, whose, and under which key its bytes are kept, if they are."""

    offset: int
    size: int
    why: str
    key: str | None = None
    kept_as: str | None = None


@dataclass
class RescueResult:
    """What ``rescue_atlas`` did: see its fields.

    ``saved`` are the entries that are whole, ``lost_and_found`` the remains that were written beside them,
    ``lost`` what is damaged (also where its remains were kept), ``uncommitted`` the keys of an update that
    never finished. ``intact`` tells that there was nothing to repair.
    """

    path: str | None
    out: str | None
    version: int
    dialect: str
    out_version: int
    dry_run: bool = False
    saved: list[SavedEntry] = field(default_factory=list)
    lost: list[LostPiece] = field(default_factory=list)
    lost_and_found: list[SavedEntry] = field(default_factory=list)
    uncommitted: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    @property
    def intact(self) -> bool:
        """Whether there was nothing to repair."""
        mended = any(entry.how != "intact" for entry in self.saved)
        return not (mended or self.lost or self.lost_and_found or self.notes)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""

        def row(item: SavedEntry | LostPiece) -> dict[str, Any]:
            values = vars(item).items()
            return {name: printable(value) if isinstance(value, str) else value for name, value in values}

        return {
            "path": self.path,
            "out": self.out,
            "version": self.version,
            "dialect": self.dialect,
            "out_version": self.out_version,
            "dry_run": self.dry_run,
            "intact": self.intact,
            "saved": [row(item) for item in self.saved],
            "lost": [row(item) for item in self.lost],
            "lost_and_found": [row(item) for item in self.lost_and_found],
            "uncommitted": [printable(key) for key in self.uncommitted],
            "notes": [printable(note) for note in self.notes],
        }


class RawPayload(FilePayload):
    """A range of a file whose checksum is known not to fit, or that never had one."""

    def __init__(self, source: Source, offset: int, size: int) -> None:
        super().__init__(source, offset, size, 0)

    def _require(self, actual: int) -> None:
        pass


class Plan:
    """What is to be written, as it is found."""

    def __init__(self, source: Source, info: Info, *, max_key: int) -> None:
        self.source = source
        self.info = info
        self.cipher: Cipher | None = None
        self.max_key = max_key
        self.segment = 0  # which of several joined files is being taken
        self.entries: dict[str, tuple[Entry, str]] = {}
        self.run = 0  # which of several runs of entries without a gap is being taken
        self._places: dict[str, tuple[int, int]] = {}
        self.remains: dict[str, tuple[Entry, str]] = {}
        self.lost: list[LostPiece] = []
        self.uncommitted: list[str] = []
        self.notes: list[str] = []
        self._wanted: list[tuple[Entry, str, str]] = []
        self._kept = 0
        self._next: dict[str, int] = {}

    def save(self, entry: Entry, how: str = "intact") -> None:
        """Take an entry whose payload is whole.

        Of two entries with one key the newer one keeps it where files were joined. Within a file, one of them
        is from a file inside a damaged payload: the later one where a gap lies between them, else the first.
        """
        held = self.entries.get(entry.key)
        if held is None:
            self.entries[entry.key] = (entry, how)
            self._places[entry.key] = self.segment, self.run
            return
        winner, other = held, (entry, how)
        segment, run = self._places[entry.key]
        if segment != self.segment and entry.timestamp >= held[0].timestamp:
            winner, other = other, winner
        elif segment == self.segment and run == self.run:
            winner, other = other, winner
            del self.entries[entry.key]  # also its place in the order
        self.entries[entry.key] = winner
        self.notes.append(f'the key "{entry.key}" is there twice')
        if not _same(winner[0], other[0]):
            self.keep(other[0], entry.key, "another entry has the same key")

    def keep(self, entry: Entry, name: str, how: str) -> None:
        """Take remains, to be written as ``lost+found/<name>``; the final key is known after ``finish``."""
        self._wanted.append((entry, name, how))

    def keep_damaged(self, offset: int, size: int, entry: Entry, payload: tuple[int, int], why: str) -> None:
        """Report an entry whose payload is damaged, and keep the payload's bytes as they are."""
        start, length = payload
        self.lost.append(LostPiece(offset, size, why, entry.key))
        if length > 0:
            raw = RawPayload(self.source, start, length)
            self.keep(
                Entry(entry.key, raw, timestamp=entry.timestamp, offset=offset, payload_offset=start),
                entry.key,
                why,
            )

    def keep_gap(
        self, offset: int, size: int, why: str, *, keep: bool = True, key: str | None = None
    ) -> None:
        """Report bytes that are not understood, and keep them unless they are too many or all zero."""
        self.lost.append(LostPiece(offset, size, why, key))
        if not keep or size > MAX_REMAINS or self._kept + size > MAX_ALL_REMAINS or self._blank(offset, size):
            return
        self._kept += size
        entry = Entry("", RawPayload(self.source, offset, size), offset=offset, payload_offset=offset)
        self.keep(entry, str(offset), why)

    def finish(self, limit: int | None) -> None:
        """Give the remains their keys; drop what is over the format's limit of entries."""
        by_offset = {}
        for entry, name, how in self._wanted:
            if limit is not None and len(self.entries) + len(self.remains) >= limit:
                self.notes.append("some remains were left out: the version allows no more entries")
                break
            key = self._free_key(name)
            self.remains[key] = (entry.replace(key=key), how)
            by_offset[entry.offset] = key
        self.lost = [
            LostPiece(piece.offset, piece.size, piece.why, piece.key, by_offset.get(piece.offset))
            for piece in sorted(self.lost, key=lambda piece: piece.offset)
        ]

    def _free_key(self, name: str) -> str:
        raw = encode_key(LOST_AND_FOUND + name).replace(b"\0", b"?")
        for number in range(self._next.get(name, 1), 1 << 30):
            tail = b"" if number == 1 else b"~%d" % number
            key = decode_key(raw[: self.max_key - len(tail)] + tail)
            if key not in self.entries and key not in self.remains:
                self._next[name] = number + 1
                return key
        raise AssertionError("unreachable")

    def _blank(self, offset: int, size: int) -> bool:
        return all(not any(piece) for piece in self.source.chunks(offset, size))


def _same(one: Entry, other: Entry) -> bool:
    facts = [(e.type, e.flags, e.size, e.checksum, e.codec_id, e.dtype_id, e.shape) for e in (one, other)]
    return facts[0] == facts[1]


def max_key_of(version: int) -> int:
    """Return the longest key that a version allows."""
    return t.V1_MAX_KEY if version == 1 else t.MAX_KEY
