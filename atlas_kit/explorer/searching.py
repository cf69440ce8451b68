"""Looking for a text or for bytes across a file of any size: piece by piece, so that whoever asks can stop.

Knows no format. A text is looked for in UTF-8, and where upper and lower case are the same, A to Z are.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.storage.source import Source

#: Bytes that one question looks at, in pieces of so many.
BUDGET, PIECE = 1 << 26, 1 << 22
#: Bytes of what is looked for.
MOST = 4096
_HEX = re.compile(r"^(?:0x)?(?:[0-9a-f]{2}[\s:,]*)+$", re.IGNORECASE)


def needle(text: str, form: str) -> bytes:
    """Return the bytes that are meant: of a ``text``, or of ``hex`` digits.

    >>> needle("00 ff", "hex").hex(), needle("é", "text").hex()
    ('00ff', 'c3a9')
    """
    if form == "hex":
        if not _HEX.match(text.strip()):
            raise InvalidParamError(
                "these are no bytes in hexadecimal digits, such as 47 47 55 46", key="text"
            )
        found = bytes.fromhex(re.sub(r"[\s:,]", "", text.strip().removeprefix("0x").removeprefix("0X")))
    else:
        found = text.encode("utf-8", "surrogateescape")
    if not 0 < len(found) <= MOST:
        raise InvalidParamError(f"what is looked for has from 1 to {MOST:,} bytes", key="text")
    return found


def search(
    source: Source, wanted: bytes, start: int, *, any_case: bool = False, back: bool = False
) -> dict[str, Any]:
    """Return where bytes stand from an offset on, or with ``back`` before it.

    Returns
    -------
    dict
        ``offset`` and ``size`` where they are; else ``next``, the offset at which to go on looking, or None at the end.
    """
    if any_case:
        wanted = wanted.lower()
    size = source.size
    start = max(0, min(start, size))
    left = BUDGET
    at = start
    while left > 0 and (at > 0 if back else at < size):
        low = max(0, at - PIECE) if back else at
        # what begins in a piece may end behind it
        raw = source.read_upto(low, (at - low if back else PIECE) + len(wanted) - 1)
        data = raw.lower() if any_case else raw
        place = data.rfind(wanted, 0, at - low + len(wanted) - 1) if back else data.find(wanted)
        if place >= 0:
            return {"offset": low + place, "size": len(wanted), "next": None}
        left -= PIECE
        at = low if back else at + PIECE
    done = at <= 0 if back else at >= size
    return {"offset": None, "size": len(wanted), "next": None if done else at}
