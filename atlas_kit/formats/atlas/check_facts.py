"""What a check of every version looks at, header fields and facts of an entry, and what it advises to do.

Knows nothing about how a version lays them out: the values are handed in.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from atlas_kit.errors import Remedy
from atlas_kit.formats.atlas import layout
from atlas_kit.formats.atlas import tables as t

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report

REPAIR = Remedy("repair")
RECOVER = Remedy("recover")
REWRITE = Remedy("rewrite")
RESCUE = Remedy("rescue-entries")
#: What only a file without errors can be treated with.
WRITTEN_ANEW = (REWRITE, Remedy("canonical"))
SAVE = "Saving the file again fixes this."
DISTRUST = "Do not trust this file; restore it from a backup."

#: A time this far ahead of now is a wrong clock or a wrong unit (milliseconds).
FUTURE = 366 * 86_400

_HEX = frozenset(b"0123456789abcdefABCDEF")


def header_facts(report: Report, created: int, modified: int, model_hash: bytes, reserved: bytes) -> None:
    """Look at the header's times, hash and reserved bytes."""
    now = int(time.time())
    for name, value, offset in (("created", created, 16), ("modified", modified, 24)):
        if value == 0:
            report.note("time-unset", f"the file does not say when it was {name}", offset=offset)
        elif value > now + FUTURE:
            message = f"the file says it was {name} in the far future ({value})"
            hint = "Times are in seconds since 1970; was it written in milliseconds?"
            report.note("time-in-future", message, offset=offset, hint=hint)
    if created and modified and modified < created:
        message = f"the file was modified ({modified}) before it was created ({created})"
        report.warning("modified-before-created", message, offset=24)
    if any(model_hash) and all(byte in _HEX for byte in model_hash):
        message = "the model hash is the first half of a hash written as text"
        report.note(
            "model-hash-text",
            message,
            offset=layout.offset_of("model_hash"),
            hint="The field holds 32 raw bytes.",
        )
    if any(reserved):
        report.note(
            "reserved-not-zero",
            "the header's reserved bytes are not zero",
            offset=layout.offset_of("reserved"),
        )


def entry_facts(report: Report, key: str, offset: int, data_type: int, timestamp: int) -> None:
    """Look at what a reader takes as it is: key, type, time."""
    if data_type not in t.DATA_TYPE_NAMES:
        report.tally(
            "unknown-type", "note", f"of type {data_type}, which has no name", offset=offset, key=key
        )
    if timestamp == 0:
        report.tally("entry-time-unset", "note", "without a time", offset=offset, key=key)
    elif timestamp > time.time() + FUTURE:
        report.tally("entry-time-in-future", "note", "with a time in the far future", offset=offset, key=key)
    if not key.isascii() and any(0xDC80 <= ord(char) <= 0xDCFF for char in key):
        report.tally("key-not-utf8", "note", "with a key that is not UTF-8", offset=offset, key=key)
