"""Sessions that go on where one is: each its own copy of the memory, and the engine's bytes of the context."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.parking import Parked
from atlas_kit.llama.session_states import episodes_of, state_of, token_memory
from atlas_kit.llama.steps import Stats

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.persistence.session_state import SessionState


@dataclass(frozen=True, eq=False)
class Point:
    """Where a session was at one moment, as a value that nobody changes: any number of sessions go on from it.

    Attributes
    ----------
    state
        Its memory, which those who go on copy when they learn; None where it has none.
    learns
        Whether it learns.
    context, position, data
        The tokens in the model's context, where the next one stands in it, and the engine's bytes of it.
    last_output
        The last token's output, from which the next is predicted.
    counts
        What the session had done so far.
    backend
        Where its memory computes.
    size
        Bytes of main memory that it takes.
    """

    state: SessionState | None
    learns: bool
    context: tuple[int, ...]
    position: int
    data: bytes | None
    last_output: Any
    counts: Stats
    backend: str
    size: int

    def parked(self, engine: Engine, *, counts: bool = False) -> Parked:
        """Return a session at rest that goes on from here; ``counts``: as if all so far had been its doing."""
        memory = None if self.state is None else token_memory(engine, self.state, self.backend)
        episodes = None
        if self.state is not None and memory is not None:
            episodes = episodes_of(engine, self.state, memory.settings)
        done = dataclasses.replace(self.counts, losses=list(self.counts.losses)) if counts else Stats()
        # a value of its own, as its reader keeps in it what it expects
        last = None if self.last_output is None else dataclasses.replace(self.last_output)
        return Parked(
            memory, self.learns, list(self.context), self.position, self.data, [], last, done, episodes
        )


def point_of(session: AtlasSession) -> Point:
    """Return where a session is, which goes on undisturbed.

    The session owes its context nothing: it has just read a text, for example.
    """
    data = session.engine.save_sequence(session.sequence) if session.context_tokens else None
    state = None if session.memory is None else state_of(session, context=False)
    last = session._last_output
    if last is not None:  # what was expected after the last token is this memory's own view
        last = dataclasses.replace(last, place=None, reading=None)
    size = 0 if session.memory is None else session.memory.state_bytes
    return Point(
        state, session.learns, session.context_tokens, session.position, data, last, session.counts,
        session.backend, size + len(data or b""),
    )  # fmt: skip


def fork(session: AtlasSession, count: int = 1) -> list[Parked]:
    """Return copies of a session's inside, which goes on undisturbed; what the copies learn is theirs alone."""
    point = point_of(session)
    return [point.parked(session.engine) for _ in range(count)]
