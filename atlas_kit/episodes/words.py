"""The words of a text, as they are looked up: the same for what is stored and for what is asked."""

from __future__ import annotations

import re

_WORD = re.compile(r"[^\W_]+")


def words(text: str) -> list[str]:
    """Return the words of a text in their order."""
    return _WORD.findall(text.casefold())
