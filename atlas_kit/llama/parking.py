"""A session's memory and context taken out of its engine, so that another one may have its sequence, and put back.

What is parked is a live session at rest and no file: nothing is copied but the engine's own bytes of the context. Its
memory belongs to whoever holds the value, and to one session at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.steps import Stats

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.token_memory import TokenMemory


@dataclass(eq=False)
class Parked:
    """A session at rest.

    Attributes
    ----------
    memory
        Its memory, None where it has none.
    learns
        Whether it learns.
    context
        The tokens in the model's context.
    position
        Where the next one stands in it.
    data
        The engine's bytes of the context; None: it is to be read again.
    counts
        What the session has done so far.
    """

    memory: TokenMemory | None = None
    learns: bool = True
    context: list[int] = field(default_factory=list)
    position: int = 0
    data: bytes | None = None
    owed: list[int] = field(default_factory=list)
    last_output: Any = None
    counts: Stats = field(default_factory=Stats)

    @property
    def size(self) -> int:
        """Bytes of main memory that it takes."""
        memory = 0 if self.memory is None else self.memory.state_bytes
        return memory + (0 if self.data is None else len(self.data))


def park(session: AtlasSession) -> Parked:
    """Take a session's inside out; it is as new then, without a memory."""
    data = session.engine.save_sequence(session.sequence) if session._context else None
    parked = Parked(
        session.memory, session.learns, session._context, session._position, data, session._owed,
        session._last_output, session._counts,
    )  # fmt: skip
    session.memory, session.learns, session._counts = None, True, Stats()
    session.forget_context()
    return parked


def unpark(session: AtlasSession, parked: Parked) -> None:
    """Put what was parked into a session, whose own inside is lost.

    Where the engine does not take its bytes back, the context is owed: it is read again before anything else.
    """
    session.forget_context()
    session.memory, session.learns, session._counts = parked.memory, parked.learns, parked.counts
    if not parked.context:
        session._owed = parked.owed  # a context that was cleared to be read again, and was cut short
        return
    if parked.data is not None and session.engine.load_sequence(session.sequence, parked.data):
        session._context, session._position = parked.context, parked.position
        session._owed, session._last_output = parked.owed, parked.last_output
    else:
        session._owed = [*parked.context, *parked.owed]
