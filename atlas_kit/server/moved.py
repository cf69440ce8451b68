"""What is said of a session that is another server's now. Imports next to nothing, as every server needs it."""

from __future__ import annotations

from atlas_kit.errors import ConflictError


class HeldElsewhereError(ConflictError):
    """Another server has the session, and is alive; ``holder`` is what it is called."""

    def __init__(self, holder: str) -> None:
        super().__init__(f"another server has this session now: {holder}")
        self.holder = holder


class LeaseLostError(ConflictError):
    """Another server has taken the session since."""

    def __init__(self) -> None:
        super().__init__("another server has taken this session over", hint="Ask again.")
