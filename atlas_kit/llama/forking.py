"""A second session that goes on where one is: its own copy of the memory, and the engine's bytes of the context."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING

from atlas_kit.llama.parking import Parked
from atlas_kit.llama.session_states import state_of, token_memory

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession


def fork(session: AtlasSession, count: int = 1) -> list[Parked]:
    """Return copies of a session's inside, which goes on undisturbed; what the copies learn is theirs alone.

    The session owes its context nothing: it has just read a text, for example.
    """
    data = session.engine.save_sequence(session.sequence) if session.context_tokens else None
    state = None if session.memory is None else state_of(session, context=False)
    last = session._last_output
    found = []
    for _ in range(count):
        memory = None if state is None else token_memory(session.engine, state, session.backend)
        # what was expected after the last token is the first memory's own view
        own = None if last is None else dataclasses.replace(last, place=None, reading=None)
        found.append(
            Parked(memory, session.learns, list(session.context_tokens), session.position, data, [], own)
        )
    return found
