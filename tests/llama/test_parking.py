"""Sessions that leave their sequence and come back, and contexts that are placed behind a known text."""

from __future__ import annotations

import numpy as np
import pytest
from memory_arrays import arrays, assert_same

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.llama.parking import Parked, park, unpark
from atlas_kit.llama.steps import common_length, likeliest, log_softmax
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)


def tokens_of(text):
    return list(text.encode())


def said(session, count=12):
    return [token.id for token in session.generate(max_tokens=count, sampling=GREEDY) if token.id >= 0]


# --- parking ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, SMALL])
@pytest.mark.parametrize("length", [1, 30, 85])
def test_a_parked_session_goes_on_in_another_sequence(memory, length, open_engine):
    engine = open_engine(n_sequences=3)
    with AtlasSession(engine, memory) as straight, AtlasSession(engine, memory) as first, AtlasSession(
        engine, None
    ) as second:  # fmt: skip
        straight.feed(TEXT[:length])
        first.feed(TEXT[:length])
        second.feed("something else that is in the way")
        parked = park(first)
        assert first.memory is None
        assert not first.context_tokens
        unpark(second, parked)
        assert second.context_tokens == straight.context_tokens
        assert second.tokens_read == straight.tokens_read
        assert said(second) == said(straight)
        # llama.cpp lays a cache out anew when it is loaded, and its sums of float16 depend on the order
        if memory is not None and isinstance(engine, FakeEngine):
            assert_same(arrays(second), arrays(straight))


def test_what_the_engine_does_not_take_back_is_read_again_and_not_learned(monkeypatch):
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as straight, AtlasSession(engine, SMALL) as session:
        straight.feed(TEXT[:40])
        session.feed(TEXT[:40])
        parked = park(session)
        seen = parked.memory.tokens_seen
        monkeypatch.setattr(engine, "load_sequence", lambda sequence, data: False)
        unpark(session, parked)
        expected = said(straight)
        assert said(session) == expected
        assert session.memory.tokens_seen == seen + len(expected)


def test_an_empty_session_can_be_parked():
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as session:
        parked = park(session)
        assert parked.data is None
        assert parked.size == parked.memory.state_bytes
        unpark(session, parked)
        session.feed("abc")
        unpark(session, Parked())
        assert session.memory is None
        assert not session.context_tokens


def test_the_size_counts_memory_and_context():
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT[:30])
        memory = session.memory.state_bytes
        parked = park(session)
        assert parked.size == memory + len(parked.data)


# --- placing ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", [1, 20, 39, 40])
@pytest.mark.parametrize("memory", [None, SMALL])
def test_a_context_is_cut_back_without_learning(keep, memory, open_engine):
    engine = open_engine()
    history = tokens_of(TEXT[:40])
    with AtlasSession(engine, memory) as session, AtlasSession(engine, None) as fresh:
        session.feed(history)
        fresh.feed(history[:keep])
        seen = None if memory is None else session.memory.tokens_seen
        session.run(session.placing(list(session.context_tokens), list(fresh.context_tokens)))
        assert session.context_tokens == fresh.context_tokens
        if memory is not None:
            assert session.memory.tokens_seen == seen
        session.memory = None
        assert said(session) == said(fresh)


def test_a_context_that_stands_there_already_costs_nothing():
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as session:
        session.feed(TEXT[:40])
        decodes = engine.decodes
        session.run(session.placing(tokens_of(TEXT[:40]), tokens_of(TEXT[:40])))
        assert engine.decodes == decodes


def test_another_text_is_read_and_not_learned():
    engine = FakeEngine()
    with AtlasSession(engine, SMALL) as session, AtlasSession(engine, None) as fresh:
        session.feed(TEXT[:40])
        seen = session.memory.tokens_seen
        other = tokens_of("all that glisters is not gold")
        session.run(session.placing(tokens_of(TEXT[:40]), other))
        assert list(session.context_tokens) == other
        assert session.memory.tokens_seen == seen
        fresh.feed(other)
        session.memory = None
        assert said(session) == said(fresh)


@pytest.mark.parametrize("back", [0, 3, 20, 60])
def test_a_context_that_has_rolled_over_is_cut_back(back):
    engine = FakeEngine(n_ctx=32, n_batch=16)
    history = tokens_of(TEXT)
    with AtlasSession(engine, SMALL) as session:
        session.feed(history)
        assert len(session.context_tokens) < len(history)
        seen = session.memory.tokens_seen
        wanted = history[: len(history) - back]
        session.run(session.placing(history, wanted))
        context = list(session.context_tokens)
        assert context
        assert context == wanted[len(wanted) - len(context) :]
        assert session.memory.tokens_seen == seen
        assert session.open_output()


def test_a_text_longer_than_the_context_leaves_room_for_an_answer():
    engine = FakeEngine(n_ctx=32, n_batch=16)
    with AtlasSession(engine, SMALL) as session:
        session.run(session.placing([], tokens_of(TEXT)))
        assert 0 < len(session.context_tokens) < engine.n_ctx
        assert list(session.context_tokens) == tokens_of(TEXT)[-len(session.context_tokens) :]


def test_a_model_that_forgets_nothing_reads_anew(monkeypatch):
    engine = FakeEngine()
    with AtlasSession(engine, None) as session:
        session.feed(TEXT[:40])
        forget = engine.forget
        monkeypatch.setattr(
            engine,
            "forget",
            lambda sequence, start=0, end=-1: False if start else forget(sequence, start, end),
        )
        session.run(session.placing(tokens_of(TEXT[:40]), tokens_of(TEXT[:10])))
        assert list(session.context_tokens) == tokens_of(TEXT[:10])


# --- log-probabilities -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("memory", [None, SMALL])
def test_tokens_tell_the_likeliest_others(memory):
    with AtlasSession(FakeEngine(), memory) as session:
        session.feed(TEXT[:40])
        work = session.generating(None, max_tokens=3, sampling=GREEDY, top_logprobs=4)
        tokens, item = [], None
        try:
            while True:
                item = session._next(work, item)
                if not hasattr(item, "feed"):
                    tokens.append(item)
        except StopIteration:
            pass
    for token in tokens:
        assert len(token.top) == 4
        assert token.top[0] == (token.id, token.logprob)
        assert [p for _, p in token.top] == sorted((p for _, p in token.top), reverse=True)
        assert sum(np.exp(p) for _, p in token.top) <= 1 + 1e-6


def test_log_probabilities_sum_to_one():
    logp = log_softmax(np.array([1000.0, 1001.0, -5.0], np.float32))
    assert np.exp(logp).sum() == pytest.approx(1)
    assert [token for token, _ in likeliest(logp, 5)] == [1, 0, 2]
    assert likeliest(logp, 0) == ()


@pytest.mark.parametrize(
    ("one", "other", "same"), [([], [], 0), ([1], [], 0), ([1, 2], [1, 2], 2), ([1, 2, 3], [1, 9, 3], 1)]
)
def test_common_length(one, other, same):
    assert common_length(one, other) == same
