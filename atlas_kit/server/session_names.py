"""How many named sessions each API key has, in main memory and in files, so that none has them without end."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.server.keys import Key
from atlas_kit.server.problems import ApiError


class SessionNames:
    """The names of sessions by the namespace of their key.

    Parameters
    ----------
    most
        Sessions that one key may have; 0: any number.
    """

    def __init__(self, most: int = 0) -> None:
        self._most = most
        self._names: dict[str, set[str]] = {}

    def add(self, key: Key) -> None:
        """Take note of a session that is there."""
        if key.name is not None:
            self._names.setdefault(key.namespace, set()).add(key.name)

    def update(self, keys: Iterable[Key]) -> None:
        """Take note of several."""
        for key in keys:
            self.add(key)

    def begin(self, key: Key) -> None:
        """Take note of a session that begins; see ``require_room``."""
        self.require_room(key)
        self.add(key)

    def require_room(self, key: Key) -> None:
        """Refuse a session that is not there yet, where there is no room for another.

        Raises
        ------
        ApiError
            Its key has as many as it may have.
        """
        names = self._names.get(key.namespace, ())
        if key.name is not None and self._most and len(names) >= self._most and key.name not in names:
            raise ApiError(
                403,
                f"There are {len(names):,} named sessions and conversations of this API key already, which is the "
                "limit. Delete some, or ask without a name.",
                param="session_id",
                code="too_many_sessions",
            )

    def discard(self, key: Key) -> None:
        """Take note of a session that is gone."""
        names = self._names.get(key.namespace)
        if names is not None and key.name is not None:
            names.discard(key.name)
            if not names:
                del self._names[key.namespace]


def checked_session_id(name: Any, named: str = "session_id") -> str:
    """Return a session's name; ``named`` is the property that has it.

    Raises
    ------
    InvalidParamError
        It is empty, longer than 128 characters, or holds characters that cannot be printed.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.isprintable():
        what = "a session_id" if named.endswith("session_id") else "the name of a conversation"
        raise InvalidParamError(
            f"{what} has 1 to 128 printable characters", key=named, hint="Choose another."
        )
    return name
