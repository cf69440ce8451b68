"""Whether bytes are text: UTF-8 without NUL. The one rule for all that tells text from other payloads."""

from __future__ import annotations

import codecs


def as_text(data: bytes) -> str | None:
    r"""Return the text that bytes are, ``None`` where they are none.

    Examples
    --------
    >>> as_text(b"a line"), as_text(b"\xff"), as_text(b"a\0b")
    ('a line', None, None)
    """
    if b"\0" in data:
        return None
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return None


def text_at_start(start: bytes, *, cut: bool) -> str | None:
    r"""Return the text that a payload begins with, ``None`` where it is none; ``cut``: more follows ``start``.

    A character that the cut went through is left out.

    Examples
    --------
    >>> text_at_start(b"caf\xc3", cut=True), text_at_start(b"caf\xc3", cut=False)
    ('caf', None)
    """
    if b"\0" in start:
        return None
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(start, final=not cut)
    except UnicodeDecodeError:
        return None
