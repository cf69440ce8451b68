"""Sessions at rest: out of their sequence and back, into plain states and back, whatever the engine does."""

from __future__ import annotations

import contextlib
from typing import Any

import pytest

from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.likeness import likeness_of
from atlas_kit.llama.parking import Parked, light_state_of, park, parked_of, state_of, unpark
from atlas_kit.llama.steps import Step
from atlas_kit.settings.atlas_settings import AtlasSettings

SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
GREEDY = Sampling(temperature=0)


def go_on(session: AtlasSession, count: int = 12) -> list[int]:
    return [token.id for token in session.generate(max_tokens=count, sampling=GREEDY)]


def expected(text: str, memory: Any = SMALL) -> list[int]:
    with AtlasSession(FakeEngine(), memory) as session:
        session.feed(text)
        return go_on(session)


@pytest.mark.parametrize("memory", [SMALL, None], ids=["memory", "none"])
@pytest.mark.parametrize("text", [TEXT[:40], TEXT * 2], ids=["short", "rolled over"])
def test_what_is_parked_goes_on_where_it_was(memory: Any, text: str) -> None:
    with AtlasSession(FakeEngine(), memory) as session:
        session.feed(text)
        read = session.tokens_read
        parked = park(session)
        assert session.memory is None
        assert session.context_tokens == ()
        assert session.tokens_read == 0
        session.feed("something else")
        unpark(session, parked)
        assert session.tokens_read == read
        assert go_on(session) == expected(text, memory)


@pytest.mark.parametrize("how", ["no bytes", "refused", "raises"])
def test_a_context_that_is_not_taken_back_is_read_again(how: str, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT[:40])
        assert session.memory is not None
        seen = session.memory.tokens_seen
        parked = park(session, context=how != "no bytes")
        if how == "refused":
            monkeypatch.setattr(engine, "load_sequence", lambda *_: False)
        elif how == "raises":
            monkeypatch.setattr(engine, "load_sequence", lambda *_: 1 / 0)
        unpark(session, parked)
        assert go_on(session) == expected(TEXT[:40])
        assert session.memory.tokens_seen == seen + 12


@pytest.mark.parametrize("text", [TEXT[:40], TEXT * 2], ids=["short", "rolled over"])
@pytest.mark.parametrize("light", [False, True])
def test_a_state_is_what_is_parked(light: bool, text: str) -> None:
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(text)
        if light:
            state = light_state_of(session)
            session.feed("what comes later changes nothing. " * 4)
        else:
            state = state_of(session.engine, park(session))
        assert (state.context is None) is light
    with AtlasSession(FakeEngine(), None) as session:
        parked = parked_of(session.engine, state)
        unpark(session, parked)
        assert go_on(session) == expected(text)


def test_a_state_of_what_is_owed_has_its_tokens() -> None:
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:40])
        generating = session.generate(max_tokens=5, sampling=GREEDY)
        next(generating)
        generating.close()
        parked = park(session)
        parked.owed = [65]  # as where the decode of a token was cut short
        state = state_of(session.engine, parked)
        assert (list(state.tokens[-1:]), state.context, state.output) == ([65], None, {})
        again = parked_of(session.engine, state)
        assert again.context == [*parked.context, 65]
        assert again.data is None


@pytest.mark.parametrize("memory", [SMALL, None])
def test_a_last_token_that_was_left_is_decoded_for_a_memory_that_may_be_saved(memory: Any) -> None:
    with AtlasSession(FakeEngine(), memory) as session:
        session.feed(TEXT[:40])
        session.run(_steps_of(session.generating(max_tokens=3, sampling=GREEDY, leaves_last=True)))
        assert session.owes == 1
        context = [*session.context_tokens, *session._owed]
        parked = park(session)
        assert [*parked.context, *parked.owed] == context
        assert parked.owes == (memory is None)
        if memory is not None:
            state = state_of(session.engine, parked)
            assert (list(state.tokens), state.position) == (context, len(context))
            assert state.output


def test_a_last_token_that_cannot_be_decoded_costs_the_context(monkeypatch: pytest.MonkeyPatch) -> None:
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:40])
        session.run(_steps_of(session.generating(max_tokens=3, sampling=GREEDY, leaves_last=True)))
        seen = session.memory.tokens_seen if session.memory is not None else 0

        def fail(*_: Any, **__: Any) -> Any:
            raise ModelError("out of order")

        monkeypatch.setattr(session.engine, "decode", fail)
        parked = park(session)
        assert (parked.context, parked.owed, parked.data) == ([], [], None)
        assert parked.memory is not None
        assert parked.memory.tokens_seen == seen


def _steps_of(work: Any) -> Any:
    """Return the steps of some work that also tells tokens."""
    outputs = None
    with contextlib.suppress(StopIteration):
        while True:
            item = work.send(outputs)
            outputs = (yield item) if isinstance(item, Step) else None


def test_without_a_memory_there_is_no_state() -> None:
    with AtlasSession(FakeEngine(), None) as session:
        session.feed(TEXT)
        with pytest.raises(InvalidParamError, match="no memory"):
            light_state_of(session)
        with pytest.raises(InvalidParamError, match="no memory"):
            state_of(session.engine, park(session))


@pytest.mark.parametrize("n_ctx", [32, 128])
def test_a_context_of_another_size_is_read_again(n_ctx: int) -> None:
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:60])
        state = state_of(session.engine, park(session))
    engine = FakeEngine(n_ctx=n_ctx)
    parked = parked_of(engine, state)
    assert len(parked.context) == min(n_ctx, 60)
    with AtlasSession(engine, None) as session:
        unpark(session, parked)
        assert len(go_on(session, 3)) == 3


def test_the_size_counts_memory_context_and_episodes() -> None:
    assert Parked().size == 0
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT)
        parked = park(session)
        assert parked.memory is not None
        assert parked.data is not None
        assert parked.size == parked.memory.state_bytes + len(parked.data) + 4 * len(TEXT)  # of its episodes
        assert parked.episodes is not None
        before, likeness = parked.size, likeness_of(session.engine, parked.episodes)
        likeness.question(parked.episodes.arrays(), ())
        assert parked.size == before + likeness.bytes > before
