"""From a session to a plain ``SessionState``, and from one to the memory beside a model. Knows no file."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import AtlasError, InvalidParamError, ModelError
from atlas_kit.llama.last_output import last_output_of
from atlas_kit.llama.middle_layers import fitting, require
from atlas_kit.persistence.session_state import SessionState
from atlas_kit.settings.atlas_settings import AtlasSettings

if TYPE_CHECKING:
    from atlas_kit.episodes import Episodes
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.inside import Inside
    from atlas_kit.llama.steps import Work
    from atlas_kit.llama.token_memory import TokenMemory


class OpenSession(Protocol):
    """What a state is made of: ``AtlasSession``, which knows more."""

    engine: Engine
    memory: TokenMemory | None
    episodes: Episodes | None
    sequence: int

    @property
    def position(self) -> int:
        """Where the next token will stand in the model's context."""

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """The tokens in the model's context."""

    def forget_context(self) -> None:
        """Empty the model's context; the memory stays."""

    def open_output(self) -> dict[str, Array]:
        """Return the last token's output, from which the next is predicted."""


def state_of(session: OpenSession, *, context: bool = True) -> SessionState:
    """Return what a session knows; see ``AtlasSession.state``."""
    memory, info = session.memory, session.engine.info
    if memory is None:
        raise InvalidParamError("this session has no memory to save", key="memory", hint="Try memory=True.")
    kept: dict[str, Any] = {}
    if context and session.context_tokens:
        with session.engine.lock:
            data = session.engine.save_sequence(session.sequence)
            # Loading lays the cache out anew, and sums of float16 depend on their order: so that going on and loading
            # give the same tokens, this session goes on from what it saved, too.
            if not session.engine.load_sequence(session.sequence, data):
                session.forget_context()
                raise ModelError("the context cannot be restored", path=info.path)
        kept = {
            "tokens": session.context_tokens,
            "position": session.position,
            "output": session.open_output(),
            "context": data,
            "build": info.build,
        }
    return SessionState(
        memory.memory.config,
        memory.pin(),
        memory.settings.to_json(),
        memory.waiting(),
        info.identity,
        info.name,
        info.architecture,
        episodes=None if session.episodes is None else session.episodes.arrays(),
        **kept,
    )


def new_episodes(engine: Engine, settings: AtlasSettings) -> Episodes | None:
    """Return an empty store of what is read and said; None where the settings want none."""
    if not settings.episode_tokens:
        return None
    from atlas_kit.episodes.store import LEAST_LIMIT, Episodes

    limit = max(LEAST_LIMIT, settings.episode_tokens)
    return Episodes(engine.piece, engine.info.n_vocab, limit=limit)


def episodes_of(engine: Engine, state: SessionState, settings: AtlasSettings) -> Episodes | None:
    """Return the episodes of a state, or an empty store where it has none or another model's.

    Raises
    ------
    InvalidParamError
        They contradict themselves or the vocabulary.
    """
    if not settings.episode_tokens or state.episodes is None or state.identity != engine.info.identity:
        return new_episodes(engine, settings)
    from atlas_kit.episodes.store import LEAST_LIMIT, Episodes

    limit = max(LEAST_LIMIT, settings.episode_tokens)
    return Episodes.from_arrays(state.episodes, engine.piece, engine.info.n_vocab, limit=limit)


def require_state(state: SessionState) -> None:
    """Refuse what is no state, or one that was put together by hand and holds no tokens as its context."""
    if not isinstance(state, SessionState):
        raise InvalidParamError(
            f"a state cannot be {state!r:.80}", key="state", hint="Give what session.state() returned."
        )
    if not all(isinstance(token, (int, np.integer)) for token in state.tokens):
        raise InvalidParamError("a token of the context is not a whole number", key="context")


def new_memory(engine: Engine, settings: AtlasSettings, backend: str | None = "numpy") -> TokenMemory:
    """Return a memory beside a model that has read nothing; it looks at middle layers only where the model gives them.

    Raises
    ------
    InvalidParamError
        When the settings do not fit the model.
    """
    from atlas_kit.llama.token_memory import TokenMemory

    return TokenMemory(engine.output_rows(), fitting(engine, settings), backend)


def token_memory(engine: Engine, state: SessionState, backend: str | None = "numpy") -> TokenMemory:
    """Return the memory of a state beside a model.

    Raises
    ------
    InvalidParamError
        When it is not of the kind that its settings and the model ask for.
    ModelError
        It looks at states that the model does not give here.
    """
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.memory.backend import namespace

    settings = AtlasSettings.from_saved(state.settings)
    require(engine, settings)
    memory = TokenMemory(engine.output_rows(), settings, backend, state.memory)
    _require_fit(memory, state)
    arrays = state.memory
    if any(namespace(array) is not memory.memory.xp for array in arrays.parameters.values()):
        from atlas_kit.memory import snapshot

        arrays = memory.memory.restore(snapshot(arrays, copy=False))  # onto another device
    try:
        memory.restore(arrays, state.waiting)
    except (TypeError, ValueError, AttributeError, KeyError) as error:
        if isinstance(error, AtlasError):
            raise
        raise InvalidParamError(f"what waits to be learned makes no sense: {error}", key="waiting") from error
    return memory


def _require_fit(memory: TokenMemory, state: SessionState) -> None:
    config, expected = state.config, memory.memory.config
    for name in ("d_k", "d_v"):
        if getattr(config, name) != getattr(expected, name):
            raise InvalidParamError(
                f"the memory corrects states of {getattr(config, name)} numbers, the model's have "
                f"{getattr(expected, name)}",
                key=name,
                hint="This memory belongs to another model.",
            )
    if config != expected:
        raise InvalidParamError("the memory is not of the kind that its settings describe", key="runtime")


def adopt(
    session: Inside, memory: TokenMemory, tokens: Sequence[int], position: int, output: dict[str, Array],
    context: bytes | None,
) -> None:  # fmt: skip
    """Do ``AtlasSession.adopt``."""
    n_vocab = session.engine.info.n_vocab
    if any(not 0 <= token < n_vocab for token in tokens):
        raise InvalidParamError("a token of the context lies outside the vocabulary", key="context")
    shapes = {"logits": (1, n_vocab), "hidden": (1, memory.width)}
    if output and {name: array.shape for name, array in output.items()} != shapes:
        raise InvalidParamError("the last output does not fit this model", key="open")
    was = session.memory, session._context, session._position, session._last_output, session._owed
    saved = session.engine.save_sequence(session.sequence) if tokens and session._context else b""
    session.forget_context()
    session.memory = memory
    fits = len(tokens) <= session.engine.n_ctx and (position == len(tokens) or session.engine.info.recurrent)
    try:
        exact = fits and context is not None and bool(tokens and output)
        if exact and session.engine.load_sequence(session.sequence, context or b""):
            session._context, session._position = list(tokens), position
            session._last_output = last_output_of(output, tokens[-1])
            return
        session.engine.forget(session.sequence)
        session.run(_read_again(session, list(tokens)[-session.engine.n_ctx :]))
    except BaseException:
        session.forget_context()
        session.memory, session._context, session._position, session._last_output, session._owed = was
        if session._context and not session.engine.load_sequence(session.sequence, saved):
            session._owed = [*session._context, *session._owed]  # read again before anything else
            session._context, session._position, session._last_output = [], 0, None
        raise


def _read_again(session: Inside, tokens: list[int]) -> Work[None]:
    """Read tokens that the memory knows already."""
    for at in range(0, len(tokens), session.engine.n_batch):
        part = tokens[at : at + session.engine.n_batch]
        last = at + len(part) == len(tokens)
        outputs = yield from session._decoded(part, int(last))
        if last and outputs.hidden is not None:
            session._last_output = session._output_at(outputs, outputs.index, part[-1])


def stats_of(session: Inside) -> dict[str, Any]:
    """Return counts and sizes; see ``AtlasSession.stats``."""
    counts, memory = session._counts, session.memory
    scored = max(1, counts.scored)
    found: dict[str, Any] = {
        "model": session.engine.info.name,
        "tokens_read": counts.tokens_read,
        "tokens_generated": counts.tokens_generated,
        "read_per_second": _ratio(counts.tokens_read, counts.seconds_reading),
        "generated_per_second": _ratio(counts.tokens_generated, counts.seconds_generating),
        "context": len(session._context),
        "n_ctx": session.engine.n_ctx,
        "rollovers": counts.rollovers,
        "loss_model": counts.losses[0] / scored if counts.scored else None,
        "loss": counts.losses[1] / scored if counts.scored else None,
        "memory": None,
    }
    if memory is not None:
        found["memory"] = memory.stats()
    return found


def _ratio(count: int, seconds: float) -> float | None:
    return count / seconds if seconds > 0 else None
