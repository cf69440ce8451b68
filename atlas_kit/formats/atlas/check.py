"""Checking a memory file of any version: every finding, not only the first.

What is an error: something cannot be read, is not what was written, or is lost. What is a warning: it can be
read, and does not follow the specification. What is a note: worth knowing. The walk over damaged files is
shared with rescuing (``scan_v1``, ``scan_v2``); version 1 is checked in ``check_v1``, version 2 and 3 in ``check_v2``.
"""

from __future__ import annotations

from dataclasses import replace

from atlas_kit.errors import AtlasError, Remedy
from atlas_kit.formats.atlas import layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.check_facts import RECOVER, REPAIR, WRITTEN_ANEW
from atlas_kit.formats.findings import Finding, Report
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.source import Source


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
    if any(finding.severity == "error" for finding in findings):  # it cannot be converted as it is
        findings = [replace(f, remedy=None, hint="") if f.remedy in WRITTEN_ANEW else f for f in findings]
    return sorted(findings, key=lambda finding: -1 if finding.offset is None else finding.offset)


def _check(source: Source, passphrase: str | bytes | None, key: bytes | None, deep: bool) -> list[Finding]:
    top = source.read_upto(0, layout.HEADER_V1.size)
    if not top:
        return [Finding("empty-file", "error", "the file is empty", remedy=RECOVER)]
    report = Report(remedy=REPAIR)
    version = int.from_bytes(top[4:8], "little")
    if top[:4] != t.MAGIC:
        report.error("bad-magic", "the file does not start with ATLS", offset=0)
    elif version not in (1, 2, 3):
        report.error(
            "bad-version",
            f"the file says version {version}, and only versions 1 to 3 exist",
            offset=4,
            hint="A newer atlas_kit may read it.",
            remedy=Remedy("repair-if-damaged"),
        )
    if version in (2, 3) or (version != 1 and _looks_like_v2(source)):
        from atlas_kit.formats.atlas.check_v2 import CheckV2
        from atlas_kit.formats.atlas.crypto import Secret

        try:
            secret = Secret.of(passphrase, key)
        except AtlasError as error:
            secret = None
            report.error("wrong-key", error.message, hint=error.hint or "", remedy=error.remedy)
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
