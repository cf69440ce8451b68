"""Which conversation is meant: a name inside the namespace of an API key."""

from __future__ import annotations

from typing import NamedTuple


class Key(NamedTuple):
    """Which conversation: the namespace of the API key, and the name in it; None: a temporary one."""

    namespace: str
    name: str | None


#: The conversation that requests without a session share where a memory is kept; no API key has this namespace.
SHARED = Key("shared", None)


def looked_at(key: Key, namespace: str) -> Key:
    """Return under which key what a conversation reads for an API key is looked at.

    What the shared memory reads is everybody's in what was learned of it, and nobody else's word for word.
    """
    return Key(SHARED.namespace, namespace) if key == SHARED and namespace else key
