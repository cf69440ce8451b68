"""Checking a memory file of any version: every finding, not only the first.

What is an error: something cannot be read, is not what was written, or is lost. What is a warning: it can be
read, and does not follow the specification. What is a note: worth knowing. The walk over damaged files is
shared with rescuing (``scan_v1``, ``scan_v2``); version 2 and 3 are checked in ``check_v2``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError
from atlas_kit.formats._files import Source, StrPath
from atlas_kit.formats._findings import Finding, Severity
from atlas_kit.formats.atlas import checksums, layout, v1
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.store import decode_key

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.scan_v1 import Piece

REPAIR = "Rescue what is intact with: atlas-tool repair FILE -o OUT"
CONVERT = "Write it anew with: atlas-tool convert"

#: A time this far ahead of now is a wrong clock or a wrong unit (milliseconds).
FUTURE = 366 * 86_400

_HEX = frozenset(b"0123456789abcdefABCDEF")


def check_atlas(
    path: StrPath | Source,
    *,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
    deep: bool = True,
) -> list[Finding]:
    """Check a file and return all findings, in the order of their offsets where they have one.

    Parameters
    ----------
    path
        The file, or a ``Source`` over it.
    passphrase, key
        The secret of a version 3 file; without it only what is not encrypted is checked.
    deep
        Off: do not read the payloads of version 2 and 3 (their heads and the index are always checked).

    Raises
    ------
    NoSuchFileError, FileAccessError
        The file cannot be read at all. Everything else is a finding.
    """
    source = path if isinstance(path, Source) else Source(path)
    try:
        findings = _check(source, passphrase, key, deep)
    finally:
        if source is not path:
            source.close()
    return sorted(findings, key=lambda finding: -1 if finding.offset is None else finding.offset)


def _check(source: Source, passphrase: str | bytes | None, key: bytes | None, deep: bool) -> list[Finding]:
    top = source.read_upto(0, layout.HEADER_V1.size)
    if not top:
        return [Finding("empty-file", "error", "the file is empty", "Restore it: atlas-tool recover FILE")]
    report = Report()
    version = int.from_bytes(top[4:8], "little")
    if top[:4] != t.MAGIC:
        report.add("bad-magic", "error", "the file does not start with ATLS", REPAIR, 0)
    elif version not in (1, 2, 3):
        report.add(
            "bad-version", "error", f"the file says version {version}, and there are 1 to 3",
            f"A newer atlas_kit may read it. If the file is damaged: {REPAIR}", 4,
        )  # fmt: skip
    if version in (2, 3) or (version != 1 and _looks_like_v2(source)):
        from atlas_kit.formats.atlas.check_v2 import CheckV2
        from atlas_kit.formats.atlas.crypto import Secret

        try:
            secret = Secret.of(passphrase, key)
        except AtlasError as error:
            secret = None
            report.add("wrong-key", "error", error.message, error.hint or "")
        CheckV2(source, secret, report, deep=deep).run()
    else:
        CheckV1(source, report).run()
    return report.findings()


def _looks_like_v2(source: Source) -> bool:
    """Tell whether there is a version 2 record where the first one would be."""
    from atlas_kit.formats.atlas.scan_v2 import Walker

    walker = Walker(source)
    places = (0, *(layout.HEADER_STRUCTS[version].size for version in (2, 3)))
    return any(walker.at(at) is not None for at in places if at < source.size)


class Report:
    """Collects findings; what may be true of thousands of entries is reported once, with their number."""

    def __init__(self) -> None:
        self._findings: list[Finding] = []
        self._tallies: dict[str, list[int]] = {}
        self._first: dict[str, tuple[Severity, str, str, int | None, str | None]] = {}
        self._now = int(time.time())

    def add(
        self,
        code: str,
        severity: Severity,
        message: str,
        hint: str = "",
        offset: int | None = None,
        key: str | None = None,
    ) -> None:
        """Add a finding."""
        self._findings.append(Finding(code, severity, message, hint, offset, key))

    def error(self, code: str, error: AtlasError, hint: str = REPAIR) -> None:
        """Add an error that was raised below."""
        self.add(code, "error", error.message, hint, error.offset, error.key)

    def tally(
        self,
        code: str,
        severity: Severity,
        message: str,
        hint: str = "",
        offset: int | None = None,
        key: str | None = None,
    ) -> None:
        """Count something that many entries may have in common; ``message`` follows "N entries"."""
        tally = f"{code} {message}"
        self._tallies.setdefault(tally, [0])[0] += 1
        self._first.setdefault(tally, (severity, message, hint, offset, key))

    def findings(self) -> list[Finding]:
        """Return everything that was found."""
        counted = []
        for tally, (number,) in self._tallies.items():
            severity, message, hint, offset, key = self._first[tally]
            who = "1 entry" if number == 1 else f"{number} entries"
            if number > 1:
                hint = f"The first one is at byte {offset}. {hint}".strip()
            counted.append(
                Finding(
                    tally.split()[0], severity, f"{who} {message}", hint, offset, key if number == 1 else None
                )
            )
        return self._findings + counted

    # --- what all versions have in common --------------------------------------------------------------

    def header_facts(self, created: int, modified: int, model_hash: bytes, reserved: bytes) -> None:
        """Look at the header's times, hash and reserved bytes."""
        for name, value, offset in (("created", created, 16), ("modified", modified, 24)):
            if value == 0:
                self.add("time-unset", "note", f"the file does not say when it was {name}", "", offset)
            elif value > self._now + FUTURE:
                self.add(
                    "time-in-future", "note", f"the file says it was {name} in the far future ({value})",
                    "Times are in seconds since 1970; was it written in milliseconds?", offset,
                )  # fmt: skip
        if created and modified and modified < created:
            self.add(
                "modified-before-created", "warning",
                f"the file was modified ({modified}) before it was created ({created})", "", 24,
            )  # fmt: skip
        if any(model_hash) and all(byte in _HEX for byte in model_hash):
            self.add(
                "model-hash-text", "note", "the model hash is the first half of a hash written as text",
                "The field holds 32 raw bytes.", 40,
            )  # fmt: skip
        if any(reserved):
            self.add("reserved-not-zero", "note", "the header's reserved bytes are not zero", "", 72)

    def entry_facts(self, key: str, offset: int, data_type: int, timestamp: int) -> None:
        """Look at what a reader takes as it is: key, type, time."""
        if data_type not in t.DATA_TYPE_NAMES:
            self.tally("unknown-type", "note", f"of type {data_type}, which has no name", "", offset, key)
        if timestamp == 0:
            self.tally("entry-time-unset", "note", "without a time", "", offset, key)
        elif timestamp > self._now + FUTURE:
            self.tally("entry-time-in-future", "note", "with a time in the far future", "", offset, key)
        if not key.isascii() and any(0xDC80 <= ord(char) <= 0xDCFF for char in key):
            self.tally("key-not-utf8", "note", "with a key that is not UTF-8", "", offset, key)


class CheckV1:
    """One check of a version 1 file."""

    def __init__(self, source: Source, report: Report) -> None:
        self._source = source
        self._report = report

    def run(self) -> None:
        """Walk over the file and report."""
        from atlas_kit.formats.atlas.scan_v1 import Walker

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
        if piece.dialect != "v1":
            finding = v1.dialect_warning(piece.dialect)
            report.add(finding.code, finding.severity, finding.message, finding.hint, finding.offset)
        packer = layout.HEADER_V1_SHORT if "96" in piece.dialect else layout.HEADER_V1
        _, _, _, count, created, modified, _, model_hash, reserved = packer.unpack_from(raw)
        report.header_facts(created, modified, model_hash, reserved)
        if count > t.V1_MAX_ENTRIES:
            report.add(
                "too-many-entries", "error",
                f"the header counts {count} entries, and version 1 allows {t.V1_MAX_ENTRIES}", REPAIR, 12,
            )  # fmt: skip

    def _broken_header(self, count: int) -> None:
        top = self._source.read_upto(0, layout.HEADER_V1.size)
        if len(top) < layout.HEADER_V1_SHORT.size:
            self._report.add(
                "truncated", "error", f"the header has 104 bytes, and the file ends at byte {len(top)}",
                "Restore it: atlas-tool recover FILE", len(top),
            )  # fmt: skip
            return
        stored = int.from_bytes(top[8:12], "little")
        actual = checksums.fnv1a(top[12:])
        self._report.add(
            "header-checksum", "error",
            f"the header's checksum is {actual:08x}, and the file says {stored:08x}; {count} entries follow",
            REPAIR, 8,
        )  # fmt: skip
        said = int.from_bytes(top[12:16], "little")
        if top[:4] == t.MAGIC and said != count:
            self._report.add(
                "entry-count",
                "error",
                f"the header counts {said} entries, and {count} were found",
                REPAIR,
                12,
            )

    def _entry(self, piece: Piece, keys: dict[bytes, int]) -> None:
        report, at = self._report, piece.offset
        length, size, data_type, flags, timestamp, _, reserved = piece.fields
        key = decode_key(piece.key)
        if piece.kind == "keyless":
            report.add("bad-key", "error", "the key contains a NUL", REPAIR, at)
            return
        if piece.how and piece.kind == "entry":
            what = {"the key's length": "key-length", "the payload's length": "data-size",
                    "the NUL after the key": "key-terminator"}  # fmt: skip
            code = what.get(piece.how, "bad-length")
            report.add(code, "error", f"{piece.how} is wrong; repair can put it right", REPAIR, at, key)
        elif piece.kind == "damaged":
            cut = piece.end - piece.payload_offset < size
            code = "entry-truncated" if cut else "payload-checksum"
            report.add(code, "error", piece.how, REPAIR, max(at, min(piece.payload_offset, piece.end)), key)
        if piece.key in keys:
            report.add(
                "duplicate-key",
                "error",
                f"the entry at byte {keys[piece.key]} has the same key",
                REPAIR,
                at,
                key,
            )
        keys.setdefault(piece.key, at)
        report.entry_facts(key, at, data_type, timestamp)
        if size == 0:
            report.tally("empty-payload", "warning", "without a payload, which the C library does not write",
                         CONVERT, at, key)  # fmt: skip
        if flags:
            report.tally("flags-not-zero", "note", "with flags, which version 1 does not define", "", at, key)
        if reserved:
            report.tally("entry-reserved-not-zero", "note", "with reserved bytes that are not zero",
                         "The C library may leave old bytes there.", at, key)  # fmt: skip

    def _other(self, piece: Piece) -> None:
        """Report what is no entry, between the entries that the header counts."""
        if piece.kind == "gap":
            self._gap(piece)
        elif piece.kind == "header" or piece.offset:
            self._report.add(
                "joined-files", "error", "another memory file starts here", f"Join them with merge, or: {REPAIR}",
                piece.offset,
            )  # fmt: skip

    def _gap(self, piece: Piece) -> None:
        """Say what is wrong with the entry that should start here."""
        raw = self._source.read_upto(piece.offset, layout.ENTRY_V1.size)
        code, message = "lost-bytes", f"{piece.size} bytes belong to no entry that could be found"
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
        self._report.add(code, "error", message, REPAIR, piece.offset)

    def _counts(self, count: int, total: int, promised: tuple[int, int]) -> None:
        if count != promised[0]:
            self._report.add(
                "entry-count", "error", f"the header counts {promised[0]} entries, and {count} were found",
                REPAIR, 12,
            )  # fmt: skip
        if total != promised[1]:
            self._report.add(
                "total-size", "error",
                f"the header gives the entries {promised[1]} bytes, and they have {total}", REPAIR, 32,
            )  # fmt: skip

    def _trailing(self, rest: list[Piece]) -> None:
        size = rest[-1].end - rest[0].offset
        entries = sum(piece.kind == "entry" for piece in rest)
        joined = any(piece.kind == "header" for piece in rest)
        message = f"{size} bytes follow the last entry"
        if entries or joined:
            what = "another memory file" if joined else f"{entries} more entries"
            message += f"; there is {what} in them" if joined else f"; there are {what} in them"
        self._report.add(
            "trailing-bytes", "warning", message,
            "They are ignored when the file is read; `atlas-tool repair` rescues entries from them.",
            rest[0].offset,
        )  # fmt: skip
