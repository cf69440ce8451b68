"""States of a session: what is held does not change, what is not held is donated, and going back is exact."""

from __future__ import annotations

import dataclasses
import threading

import numpy as np
import pytest
from memory_arrays import arrays, assert_same

from atlas_kit.errors import InvalidParamError, ModelError, WrongModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.parking import park, parked_of, unpark
from atlas_kit.memory import learning
from atlas_kit.persistence.session_file import read_session_state, session_state_bytes
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)


def go_on(session, count=10):
    found = [token for token in session.generate(max_tokens=count, sampling=GREEDY) if token.id >= 0]
    return [token.id for token in found], [token.logprob for token in found]


def held(state):
    """Return every array of a state, by name."""
    groups = state.memory.groups().items()
    found = {f"{group}.{name}": array for group, named in groups for name, array in named.items()}
    return {**found, **state.waiting, **state.output}


@pytest.fixture(params=["plain", "in place"])
def session(request, monkeypatch):
    """Return a session; ``in place``: its parameters are written to, as large ones are."""
    if request.param == "in place":
        monkeypatch.setattr(learning, "_LARGE", 0)
    with AtlasSession(FakeEngine(), SMALL) as opened:
        yield opened


@pytest.mark.parametrize("read", [0, 1, 45, 64])
def test_a_state_does_not_change_while_the_session_goes_on(session, read):
    session.feed(TEXT[:read])
    state = session.state()
    before = {name: np.array(array) for name, array in held(state).items()}
    session.feed(TEXT * 4)
    assert len(TEXT * 4) >= 4 * SMALL.window_size
    for name, array in held(state).items():
        np.testing.assert_array_equal(array, before[name], err_msg=name)


def test_nothing_is_copied_for_a_state(session):
    session.feed(TEXT)
    state = session.state(context=False)
    assert state.memory is session.memory.state
    assert (state.tokens, state.output, state.context) == ((), {}, None)


def test_a_step_donates_what_nobody_holds(session, monkeypatch):
    donated, step = [], session.memory.memory.step

    def observing(*args, donate, **options):
        donated.append(donate)
        return step(*args, donate=donate, **options)

    monkeypatch.setattr(session.memory.memory, "step", observing)
    session.feed(TEXT[:40])
    session.state()
    session.state()
    session.feed(TEXT[:40])
    # the first token has none before it, and a step has 8: four steps, then one that copies, then donation again
    assert donated == [True] * 4 + [False] + [True] * 4


@pytest.mark.parametrize("hold", [False, True])
def test_arrays_are_used_again_unless_they_are_held(session, hold):
    session.feed(TEXT)
    before = session.state().memory if hold else session.memory.state
    session.feed(TEXT[:8])
    assert np.shares_memory(before.window["key"], session.memory.state.window["key"]) is not hold


@pytest.mark.parametrize("read", [1, 9, 45])
def test_going_back_is_exact(session, read):
    session.feed(TEXT[:read])
    state, before = session.state(), arrays(session)
    expected = go_on(session)
    for _ in range(2):  # also the second time: what was restored is not written to
        session.feed(TEXT)
        session.restore(state)
        assert_same(arrays(session), before)
        assert go_on(session) == expected
    with AtlasSession(FakeEngine(), None) as other:
        other.restore(state)
        assert go_on(other) == expected


def test_two_sessions_go_their_own_ways_from_one_state(session):
    session.feed(TEXT)
    state = session.state()
    with AtlasSession(FakeEngine(), None) as one, AtlasSession(FakeEngine(), None) as other:
        one.restore(state)
        other.restore(state)
        one.feed("something else entirely, again and again. " * 3)
        expected = go_on(session)
        assert go_on(other) == expected


def test_the_context_may_stay_behind(session):
    session.feed(TEXT)
    state = session.state()
    with AtlasSession(FakeEngine(), None) as other:
        other.restore(state, context=False)
        assert other.context_tokens == ()
        assert_same(arrays(other), arrays(session))


def test_a_state_of_another_model(session):
    session.feed(TEXT)
    state = session.state()
    engine = FakeEngine(seed=5)
    engine.info = dataclasses.replace(engine.info, identity="ab" * 32)
    with AtlasSession(engine, None) as other:
        with pytest.raises(WrongModelError):
            other.restore(state)
        assert other.memory is None
        other.restore(state, force=True)
        assert other.context_tokens == session.context_tokens
    with AtlasSession(FakeEngine(n_embd=8), SMALL) as other:
        before = arrays(other)
        with pytest.raises(InvalidParamError, match="the model's have 8"):
            other.restore(state, force=True)
        assert_same(arrays(other), before)


def test_no_memory_and_no_session(session):
    state = session.state()
    assert "no context" in repr(state)
    with AtlasSession(FakeEngine(), None) as other, pytest.raises(InvalidParamError, match="no memory"):
        other.state()
    for ask in (other.state, lambda: other.restore(state)):
        with pytest.raises(ModelError, match="closed"):
            ask()


def test_a_state_is_read_in_another_thread_while_the_session_goes_on(session):
    session.feed(TEXT[:45])
    state, seen, stop = session.state(), set(), threading.Event()

    def look():
        while not stop.is_set():
            seen.add(tuple(array.tobytes() for array in held(state).values()))

    thread = threading.Thread(target=look)
    thread.start()
    for _ in range(3):
        session.feed(TEXT)
    stop.set()
    thread.join()
    assert len(seen) == 1


def test_a_context_that_the_engine_does_not_take_back_is_an_error_and_leaves_an_empty_one(monkeypatch):
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:40])
        learned = session.state(context=False).memory
        with monkeypatch.context() as refusing:
            refusing.setattr(session.engine, "load_sequence", lambda sequence, data: False)
            with pytest.raises(ModelError, match="cannot be restored"):
                session.state()
        assert (session.position, session.context_tokens) == (0, ())
        assert session.memory.state is learned
        session.feed(TEXT[40:60])
        assert session.position == 20
        with monkeypatch.context() as refusing:
            refusing.setattr(session.engine, "load_sequence", lambda sequence, data: False)
            with pytest.raises(ModelError, match="cannot be restored"), session.aside():
                session.feed(TEXT[:10])
        assert (session.position, session.context_tokens) == (0, ())


@pytest.mark.parametrize("took_back", [True, False])
@pytest.mark.parametrize("error", [ModelError("the decode failed"), KeyboardInterrupt()])
def test_a_context_that_cannot_be_read_again_leaves_the_session_as_it_was(error, took_back, monkeypatch):
    with AtlasSession(FakeEngine(), SMALL) as other:
        other.feed(TEXT * 2)
        state = dataclasses.replace(other.state(), context=None)  # so that its tokens are read again
    with AtlasSession(FakeEngine(), SMALL) as expected:
        expected.feed(TEXT[:40])
        following = go_on(expected)
    with AtlasSession(FakeEngine(n_batch=32), SMALL) as session:
        session.feed(TEXT[:40])
        before, memory, context = arrays(session), session.memory, session.context_tokens
        decode, count = session.engine.decode, 0

        def failing(feeds, **options):
            nonlocal count
            count += 1
            if count == 2:
                raise error
            return decode(feeds, **options)

        with monkeypatch.context() as broken:
            broken.setattr(session.engine, "decode", failing)
            if not took_back:
                broken.setattr(session.engine, "load_sequence", lambda sequence, data: False)
            with pytest.raises(type(error)):
                session.restore(state)
        assert count == 2
        assert session.memory is memory
        assert_same(arrays(session), before)
        if took_back:
            assert (session.position, session.context_tokens) == (40, context)
        assert go_on(session)[0] == following[0]  # where the engine does not take it back, it is read again
        assert session.context_tokens[:40] == context


def test_what_is_owed_is_parked_too():
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:40])
        expected = session.context_tokens
        session.forget_context()
        session._owed = list(expected)  # as where reading a cleared context again was cut short
        unpark(session, park(session))
        session.run(session.catching_up())
        assert session.context_tokens == expected


def test_a_context_of_another_build_is_read_again() -> None:
    """Its bytes may mean something else there; the tokens are the same."""
    engine = FakeEngine(n_sequences=1)
    engine.info = dataclasses.replace(engine.info, build="one 1.0")
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT[:40])
        state = session.state()
        said = [token.id for token in session.generate(max_tokens=4, sampling=GREEDY)]
    assert state.build == "one 1.0"
    file = session_state_bytes(state)
    for build, decodes in (("one 1.0", 0), ("one 1.1", 2)):
        other = FakeEngine(n_sequences=1)
        other.info = dataclasses.replace(other.info, build=build)
        kept = read_session_state(file)
        assert kept.build == "one 1.0"
        assert (parked_of(other, kept).data is None) == (build != "one 1.0")
        with AtlasSession(other, None) as session:
            session.restore(kept)
            assert other.decodes == decodes
            assert [token.id for token in session.generate(max_tokens=4, sampling=GREEDY)] == said
