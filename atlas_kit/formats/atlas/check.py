"""Checking a memory file of any version: every finding, not only the first.

What is an error: something cannot be read, is not what was written, or is lost. What is a warning: it can be
read, and does not follow the specification. What is a note: worth knowing. The walk over damaged files is
shared with rescuing (``scan_v1``, ``scan_v2``); version 2 and 3 are checked in ``check_v2``.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.findings import Finding, Severity
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    pass

REPAIR = "Rescue what is intact with: atlas-tool repair FILE -o OUT"
RECOVER = "Restore an earlier version with: atlas-tool recover FILE"
SAVE = "Saving the file anew puts it right."
DISTRUST = "Do not trust this file; restore it from a backup."
CONVERT = "Write it anew with: atlas-tool convert"

#: A time this far ahead of now is a wrong clock or a wrong unit (milliseconds).
FUTURE = 366 * 86_400

_HEX = frozenset(b"0123456789abcdefABCDEF")


def check_atlas(
    path: Given,
    *,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
    deep: bool = True,
) -> list[Finding]:
    """Check a file and return all findings, in the order of their offsets where they have one.

    Parameters
    ----------
    path
        The file, its content, or an opened source of it.
    passphrase, key
        The secret of a version 3 file; without it only what is not encrypted is checked.
    deep
        Off: do not read the payloads of version 2 and 3 (their heads and the index are always checked).

    Raises
    ------
    NoSuchFileError, FileAccessError
        The file cannot be read at all. Everything else is a finding.
    """
    with use_source(path) as source:
        findings = _check(source, passphrase, key, deep)
    return sorted(findings, key=lambda finding: -1 if finding.offset is None else finding.offset)


def _check(source: Source, passphrase: str | bytes | None, key: bytes | None, deep: bool) -> list[Finding]:
    top = source.read_upto(0, layout.HEADER_V1.size)
    if not top:
        return [Finding("empty-file", "error", "the file is empty", RECOVER)]
    report = Report()
    version = int.from_bytes(top[4:8], "little")
    if top[:4] != t.MAGIC:
        report.error("bad-magic", "the file does not start with ATLS", 0)
    elif version not in (1, 2, 3):
        report.error(
            "bad-version",
            f"the file says version {version}, and there are 1 to 3",
            4,
            hint=f"A newer atlas_kit may read it. If the file is damaged: {REPAIR}",
        )
    if version in (2, 3) or (version != 1 and _looks_like_v2(source)):
        from atlas_kit.formats.atlas.check_v2 import CheckV2
        from atlas_kit.formats.atlas.crypto import Secret

        try:
            secret = Secret.of(passphrase, key)
        except AtlasError as error:
            secret = None
            report.error("wrong-key", error.message, hint=error.hint or "")
        CheckV2(source, secret, report, deep=deep).run()
    else:
        from atlas_kit.formats.atlas.check_v1 import CheckV1

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

    def error(
        self,
        code: str,
        message: str,
        offset: int | None = None,
        key: str | None = None,
        *,
        hint: str = REPAIR,
    ) -> None:
        """Add an error."""
        self._findings.append(Finding(code, "error", message, hint, offset, key))

    def warning(
        self, code: str, message: str, offset: int | None = None, key: str | None = None, *, hint: str = ""
    ) -> None:
        """Add a warning."""
        self._findings.append(Finding(code, "warning", message, hint, offset, key))

    def note(
        self, code: str, message: str, offset: int | None = None, key: str | None = None, *, hint: str = ""
    ) -> None:
        """Add a note."""
        self._findings.append(Finding(code, "note", message, hint, offset, key))

    def append(self, finding: Finding) -> None:
        """Add a finding that was made elsewhere."""
        self._findings.append(finding)

    def raised(self, code: str, error: AtlasError, hint: str = REPAIR) -> None:
        """Add an error that was raised below."""
        self.error(code, error.message, error.offset, error.key, hint=hint)

    def tally(
        self,
        code: str,
        severity: Severity,
        message: str,
        offset: int | None,
        key: str | None = None,
        *,
        hint: str = "",
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
                self.note("time-unset", f"the file does not say when it was {name}", offset)
            elif value > self._now + FUTURE:
                message = f"the file says it was {name} in the far future ({value})"
                hint = "Times are in seconds since 1970; was it written in milliseconds?"
                self.note("time-in-future", message, offset, hint=hint)
        if created and modified and modified < created:
            message = f"the file was modified ({modified}) before it was created ({created})"
            self.warning("modified-before-created", message, 24)
        if any(model_hash) and all(byte in _HEX for byte in model_hash):
            message = "the model hash is the first half of a hash written as text"
            self.note(
                "model-hash-text",
                message,
                layout.offset_of("model_hash"),
                hint="The field holds 32 raw bytes.",
            )
        if any(reserved):
            self.note(
                "reserved-not-zero", "the header's reserved bytes are not zero", layout.offset_of("reserved")
            )

    def entry_facts(self, key: str, offset: int, data_type: int, timestamp: int) -> None:
        """Look at what a reader takes as it is: key, type, time."""
        if data_type not in t.DATA_TYPE_NAMES:
            self.tally("unknown-type", "note", f"of type {data_type}, which has no name", offset, key)
        if timestamp == 0:
            self.tally("entry-time-unset", "note", "without a time", offset, key)
        elif timestamp > self._now + FUTURE:
            self.tally("entry-time-in-future", "note", "with a time in the far future", offset, key)
        if not key.isascii() and any(0xDC80 <= ord(char) <= 0xDCFF for char in key):
            self.tally("key-not-utf8", "note", "with a key that is not UTF-8", offset, key)
