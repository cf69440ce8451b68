"""Checking version 1: the header, every entry, and what follows them. Called by ``check``."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.errors import Remedy
from atlas_kit.formats.atlas import checksums, layout, v1
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.check_facts import RECOVER, REWRITE, entry_facts, header_facts
from atlas_kit.formats.atlas.scan_v1 import Walker
from atlas_kit.formats.atlas.store import decode_key

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.scan_v1 import Piece
    from atlas_kit.formats.findings import Report
    from atlas_kit.storage.source import Source


class CheckV1:
    """One check of a version 1 file."""

    def __init__(self, source: Source, report: Report) -> None:
        self._source = source
        self._report = report
        self._dialect = "v1"

    def run(self) -> None:
        """Walk over the file and report."""
        count = total = 0
        keys: dict[bytes, int] = {}
        header: Piece | None = None
        rest: list[Piece] = []  # what follows the last entry that the header counts
        complete = False
        promised = (-1, -1)
        for piece in Walker(self._source).walk():
            if piece.kind == "header" and piece.offset == 0:
                header = piece
                fields = layout.HEADER_V1_SHORT.unpack_from(piece.raw)
                promised = fields[3], fields[6]
                self._header(piece)
            elif complete or (header is not None and (count, total) == promised):
                complete = True
                rest.append(piece)
                continue
            elif piece.kind in ("entry", "damaged", "keyless"):
                count += 1
                total += piece.size if piece.kind != "damaged" else 33 + len(piece.key) + piece.fields[1]
                self._entry(piece, keys)
            else:
                self._other(piece)
        if header is None:
            self._broken_header(count)
        elif not complete and (count, total) != promised:
            self._counts(count, total, promised)
        if rest:
            self._trailing(rest)

    def _header(self, piece: Piece) -> None:
        report, raw = self._report, piece.raw
        self._dialect = piece.dialect
        if piece.dialect != "v1":
            report.append(v1.dialect_warning(piece.dialect))
        packer = layout.HEADER_V1_SHORT if "96" in piece.dialect else layout.HEADER_V1
        _, _, _, count, created, modified, _, model_hash, reserved = packer.unpack_from(raw)
        header_facts(report, created, modified, model_hash, reserved)
        if count > t.V1_MAX_ENTRIES:
            report.error(
                "too-many-entries",
                f"the header counts {count} entries, and version 1 allows {t.V1_MAX_ENTRIES}",
                offset=layout.offset_of("entry_count"),
            )

    def _broken_header(self, count: int) -> None:
        top = self._source.read_upto(0, layout.HEADER_V1.size)
        if len(top) < layout.HEADER_V1_SHORT.size:
            self._report.error(
                "truncated",
                f"the header has 104 bytes, and the file ends at byte {len(top)}",
                offset=len(top),
                remedy=RECOVER,
            )
            return
        stored = int.from_bytes(top[layout.AT["checksum"]], "little")
        actual = checksums.fnv1a(top[layout.SUMMED])
        if actual != stored:
            self._report.error(
                "header-checksum",
                f"the checksum of the header is {actual:08x}, not {stored:08x}; {count} entries follow",
                offset=8,
            )
        said = int.from_bytes(top[layout.AT["entry_count"]], "little")
        if top[:4] == t.MAGIC and said != count:
            self._report.error(
                "entry-count",
                f"the header counts {said} entries, and {count} were found",
                offset=layout.offset_of("entry_count"),
            )

    def _entry(self, piece: Piece, keys: dict[bytes, int]) -> None:
        report, at = self._report, piece.offset
        _, size, data_type, flags, timestamp, _, reserved = piece.fields
        key = decode_key(piece.key)
        if piece.kind == "keyless":
            report.error("bad-key", "the key contains a NUL", offset=at)
            return
        if piece.how and piece.kind == "entry":
            what = {
                "the key's length": "key-length",
                "the payload's length": "data-size",
                "the NUL after the key": "key-terminator",
            }
            code = what.get(piece.how, "bad-length")
            report.error(code, f"{piece.how} is wrong; a repair can fix it", offset=at, key=key)
        elif piece.kind == "damaged":
            cut = piece.end - piece.payload_offset < size
            code = "entry-truncated" if cut else "payload-checksum"
            report.error(code, piece.how, offset=max(at, min(piece.payload_offset, piece.end)), key=key)
        if piece.key in keys:
            report.error(
                "duplicate-key", f"the entry at byte {keys[piece.key]} has the same key", offset=at, key=key
            )
        keys.setdefault(piece.key, at)
        if piece.kind == "entry" and size:
            self._checksum(piece, key)
        entry_facts(report, key, at, data_type, timestamp)
        if size == 0:
            report.tally(
                "empty-payload",
                "warning",
                "without a payload, which the C library does not write",
                offset=at,
                key=key,
                remedy=REWRITE,
            )
        if flags:
            report.tally(
                "flags-not-zero", "note", "with flags, which version 1 does not define", offset=at, key=key
            )
        if reserved:
            report.tally(
                "entry-reserved-not-zero",
                "note",
                "with reserved bytes that are not zero",
                offset=at,
                key=key,
                hint="The C library may leave old bytes there.",
            )

    def _checksum(self, piece: Piece, key: str) -> None:
        """Tell of a payload whose checksum is of the other kind than its header's."""
        crc = self._dialect.endswith("crc32")
        other = checksums.fnv1a if crc else checksums.crc32
        start, stop = piece.payload_offset, piece.payload_offset + piece.fields[1]
        if other(self._source.read(start, stop - start)) != piece.fields[5]:
            return
        theirs, ours = ("FNV-1a", "CRC-32") if crc else ("CRC-32", "FNV-1a")
        self._report.tally(
            "dialect-mixed" if crc else "dialect-v1-crc32",
            "warning",
            f"with {theirs} for a checksum, under a header with {ours}",
            offset=piece.offset,
            key=key,
            hint="The C library may not read the file.",
            remedy=Remedy("canonical"),
        )

    def _other(self, piece: Piece) -> None:
        """Report what is no entry, between the entries that the header counts."""
        if piece.kind == "gap":
            self._gap(piece)
        elif piece.kind == "header" or piece.offset:
            self._report.error(
                "joined-files",
                "another memory file starts here",
                offset=piece.offset,
                hint="Merge the files that they were, if you still have them.",
            )

    def _gap(self, piece: Piece) -> None:
        """Say what is wrong with the entry that should start here."""
        raw = self._source.read_upto(piece.offset, layout.ENTRY_V1.size)
        code, message = "lost-bytes", f"{piece.size} bytes do not belong to any entry that could be found"
        if len(raw) == layout.ENTRY_V1.size:
            length, size = layout.ENTRY_V1.unpack(raw)[:2]
            if not 0 < length <= t.V1_MAX_KEY:
                code, message = "key-length", f"an entry claims a key of {length} bytes; 1 to 256 are allowed"
            elif size > t.V1_MAX_DATA:
                code, message = "data-size", f"an entry claims {size} bytes of payload; 1 GiB is the limit"
            else:
                code, message = "key-terminator", "an entry's key does not end where its length says"
            message += f" ({piece.size} bytes until the next intact entry)"
        else:
            code, message = (
                "entry-truncated",
                f"the file ends inside an entry's header, after {len(raw)} bytes",
            )
        self._report.error(code, message, offset=piece.offset)

    def _counts(self, count: int, total: int, promised: tuple[int, int]) -> None:
        if count != promised[0]:
            self._report.error(
                "entry-count",
                f"the header counts {promised[0]} entries, and {count} were found",
                offset=layout.offset_of("entry_count"),
            )
        if total != promised[1]:
            self._report.error(
                "total-size",
                f"the header gives the entries {promised[1]} bytes, and they have {total}",
                offset=layout.offset_of("total_size"),
            )

    def _trailing(self, rest: list[Piece]) -> None:
        size = rest[-1].end - rest[0].offset
        entries = sum(piece.kind == "entry" for piece in rest)
        joined = any(piece.kind == "header" for piece in rest)
        message = f"{size} bytes follow the last entry"
        if entries or joined:
            what = "another memory file" if joined else f"{entries} more entries"
            message += f"; there is {what} in them" if joined else f"; there are {what} in them"
        self._report.warning(
            "trailing-bytes",
            message,
            offset=rest[0].offset,
            hint="They are ignored when the file is read.",
            remedy=Remedy("rescue-entries"),
        )
