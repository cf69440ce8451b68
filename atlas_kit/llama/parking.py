"""A session's memory and context taken out of its engine, so that another one may have its sequence, and put back.

What is parked is a live session at rest and no file: nothing is copied but the engine's own bytes of the context. Its
memory belongs to whoever holds the value, and to one session at a time. A file takes it as a ``SessionState``.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.last_output import last_output_of
from atlas_kit.llama.session_states import episodes_of, new_episodes, new_memory, token_memory
from atlas_kit.llama.steps import Stats
from atlas_kit.persistence.session_state import SessionState

if TYPE_CHECKING:
    from atlas_kit.episodes import Episodes
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.settings.atlas_settings import AtlasSettings


#: What a token takes that was read or said and is kept.
TOKEN_BYTES = 4


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
    episodes
        What it has read and said, to be found again; None where nobody keeps it.
    """

    memory: TokenMemory | None = None
    learns: bool = True
    context: list[int] = field(default_factory=list)
    position: int = 0
    data: bytes | None = None
    owed: list[int] = field(default_factory=list)
    last_output: Any = None
    counts: Stats = field(default_factory=Stats)
    episodes: Episodes | None = None

    @property
    def owes(self) -> int:
        """How many tokens the context lacks that were read or said."""
        return len(self.owed)

    @property
    def size(self) -> int:
        """Bytes of main memory that it takes."""
        memory = 0 if self.memory is None else self.memory.state_bytes
        if self.episodes is not None:
            from atlas_kit.llama.likeness import bytes_of

            memory += TOKEN_BYTES * len(self.episodes) + bytes_of(self.episodes)
        return memory + (0 if self.data is None else len(self.data))


def new_parked(engine: Engine, settings: AtlasSettings, device: str | None = "numpy") -> Parked:
    """Return a session at rest with a memory of this kind that has read nothing."""
    memory = new_memory(engine, settings, device)
    return Parked(memory, episodes=new_episodes(engine, settings))


def park(session: AtlasSession, *, context: bool = True) -> Parked:
    """Take a session's inside out; it is as new then, without a memory.

    ``context``: with the engine's bytes of the context, without which it is read again.
    """
    if context and session._owed and session._context and session.memory is not None:
        # what is written into a file goes on from its last token's output
        with contextlib.suppress(AtlasError):  # then all of the context is read again
            session.run(session.catching_up())
    kept = context and bool(session._context)
    data = session.engine.save_sequence(session.sequence) if kept else None
    parked = Parked(
        session.memory, session.learns, session._context, session._position, data, session._owed,
        session._last_output, session._counts, session.episodes,
    )  # fmt: skip
    session.memory, session.learns, session._counts, session.episodes = None, True, Stats(), None
    session.forget_context()
    return parked


def unpark(session: AtlasSession, parked: Parked) -> None:
    """Put what was parked into a session, whose own inside is lost.

    Where the engine does not take its bytes back, the context is owed: it is read again before anything else.
    """
    session.forget_context()
    session.memory, session.learns, session._counts = parked.memory, parked.learns, parked.counts
    session.episodes = parked.episodes
    if not parked.context:
        session._owed = parked.owed  # a context that was cleared to be read again, and was cut short
        return
    if parked.data is not None and _taken_back(session, parked.data):
        session._context, session._position = parked.context, parked.position
        session._owed, session._last_output = parked.owed, parked.last_output
    else:
        session.forget_context()
        session._owed = [*parked.context, *parked.owed]


def _taken_back(session: AtlasSession, data: bytes) -> bool:
    try:
        return session.engine.load_sequence(session.sequence, data)
    except Exception:  # it can be read again, and whoever waits for the sequence needs it
        return False


def state_of(engine: Engine, parked: Parked) -> SessionState:
    """Return what is parked as a plain state, which stays as it is while a session goes on with it.

    Where the context is to be read again before anything else, the state has its tokens and not the engine's bytes.

    Raises
    ------
    InvalidParamError
        It has no memory.
    """
    if parked.memory is None:
        raise InvalidParamError("this session has no memory to save", key="memory")
    was = parked.last_output
    whole = parked.data is not None and not parked.owed and was is not None and was.hidden is not None
    output = {}
    if whole:
        output = {"logits": was.logits.reshape(1, -1), "hidden": was.hidden[:, : parked.memory.width]}
    return _state(engine, parked.memory, parked.episodes, [*parked.context, *parked.owed], output, parked)


def light_state_of(session: AtlasSession) -> SessionState:
    """Return a session's state without the engine's bytes of the context, which take long to copy.

    The tokens of the context are there, so that whoever goes on from the state reads them again.

    Raises
    ------
    InvalidParamError
        It has no memory.
    """
    if session.memory is None:
        raise InvalidParamError("this session has no memory to save", key="memory")
    tokens = [*session.context_tokens, *session._owed]
    return _state(session.engine, session.memory, session.episodes, tokens, {}, None)


def _state(
    engine: Engine,
    memory: TokenMemory,
    episodes: Episodes | None,
    tokens: list[int],
    output: dict[str, Any],
    parked: Parked | None,
) -> SessionState:
    info, exact = engine.info, parked is not None and bool(output)
    return SessionState(
        memory.memory.config,
        memory.pin(),
        memory.settings.to_json(),
        memory.waiting(),
        info.identity,
        info.name,
        info.architecture,
        tokens=tuple(tokens),
        position=parked.position if parked is not None and exact else len(tokens),
        output=output,
        context=parked.data if parked is not None and exact else None,
        build=info.build,
        episodes=None if episodes is None else episodes.arrays(),
    )


def parked_of(engine: Engine, state: SessionState, device: str = "numpy") -> Parked:
    """Return a session at rest that goes on from a state.

    Raises
    ------
    InvalidParamError
        The memory or the context does not fit the model.
    """
    memory = token_memory(engine, state, device)
    episodes = episodes_of(engine, state, memory.settings)
    tokens, n_vocab = list(state.tokens), engine.info.n_vocab
    if any(not 0 <= token < n_vocab for token in tokens):
        raise InvalidParamError("a token of the context lies outside the vocabulary", key="context")
    fits = len(tokens) <= engine.n_ctx and (state.position == len(tokens) or engine.info.recurrent)
    data = state.context_for(engine.info.identity, engine.info.build)
    if not tokens or not fits or data is None:
        return Parked(memory, context=tokens[-engine.n_ctx :], episodes=episodes)
    shapes = {"logits": (1, n_vocab), "hidden": (1, memory.width)}
    if {name: array.shape for name, array in state.output.items()} != shapes:
        return Parked(memory, context=tokens, episodes=episodes)
    last = last_output_of(state.output, tokens[-1])
    return Parked(memory, True, tokens, state.position, data, last_output=last, episodes=episodes)
