"""Sessions that are claimed before they are used: without a store that servers share, all are this one's.

``shared_claims.py`` has what is done where that is not so.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.keys import Key


class Claims:
    """All sessions are this server's."""

    async def claim(self, key: Key, *, begin: bool = True) -> None:
        """Wait until this server holds a session; ``begin``: also if there is none of this name yet."""

    async def confirm(self, conversation: Conversation) -> None:
        """See that a session was this server's while it was used."""

    def ticket(self, key: Key) -> int:
        """Return the fencing number under which a session is held; without a store there is none."""
        return 0
