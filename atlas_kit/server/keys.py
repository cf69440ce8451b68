"""Which conversation is meant: a name inside the namespace of an API key."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Which conversation: the namespace of the API key, and the name in it; None: a temporary one."""

    namespace: str
    name: str | None


#: The conversation that requests without a session share where a memory is kept; no API key has this namespace.
SHARED = Key("shared", None)
