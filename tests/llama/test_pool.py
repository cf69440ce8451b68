"""Several sessions in one batch: the same tokens as alone, in turn, and one's failure is no other's."""

from __future__ import annotations

import pytest

from atlas_kit.errors import BusyError, ClosedError, InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, SessionPool
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
PROMPTS = ["to be or not to be, that is the question", "whether 'tis nobler in the mind " * 3, "a"]


def ids(tokens):
    return [token.id for token in tokens if token.id >= 0]


@pytest.mark.parametrize("memory", [None, SMALL, "mixed"])
@pytest.mark.parametrize("kind", ["fake", "llama", "lfm2"])
def test_sessions_generate_what_they_would_alone(kind, memory, request):
    options = {"n_ctx": 64, "n_batch": 32, "n_sequences": 3}
    engine = FakeEngine(**options) if kind == "fake" else request.getfixturevalue("real")(kind, **options)
    memories = [None, SMALL, None] if memory == "mixed" else [memory] * 3
    alone = []
    for prompt, one in zip(PROMPTS, memories, strict=True):
        with AtlasSession(engine, one) as session:
            session.feed_limit = 16  # as in a pool
            alone.append(ids(session.generate(prompt, max_tokens=20, sampling=GREEDY)))
    sessions = [AtlasSession(engine, one) for one in memories]
    pool = SessionPool(engine)
    jobs = [
        pool.generate(session, prompt, max_tokens=20, sampling=GREEDY)
        for session, prompt in zip(sessions, PROMPTS, strict=True)
    ]
    assert len(pool) == 3
    pool.run()
    assert len(pool) == 0
    assert all(job.done and job.error is None for job in jobs)
    assert [ids(job.tokens) for job in jobs] == alone
    for session in sessions:
        session.close()


def test_work_joins_ends_and_is_cancelled():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b:
        pool = SessionPool(engine)
        first = pool.generate(a, PROMPTS[0], max_tokens=50, sampling=GREEDY)
        while len(first.tokens) < 5:
            pool.step()
        second = pool.feed(b, PROMPTS[1])
        with pytest.raises(BusyError, match="has work already"):
            pool.generate(b, "x")
        while not second.done:
            pool.step()
        assert len(b.context_tokens) == len(PROMPTS[1])
        pool.cancel(first)
        pool.cancel(first)
        assert first.done
        assert len(pool) == 0
        expected = ids(a.generate(" and so on", max_tokens=5, sampling=GREEDY))
        kept = a.context_tokens
    with AtlasSession(engine, SMALL) as a:
        count = len(ids(first.tokens))
        assert ids(a.generate(PROMPTS[0], max_tokens=count, sampling=GREEDY)) == ids(first.tokens)
        assert ids(a.generate(" and so on", max_tokens=5, sampling=GREEDY)) == expected
        assert a.context_tokens == kept


def test_a_text_that_was_not_read_to_its_end_is_forgotten():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as session:
        pool = SessionPool(engine)
        job = pool.feed(session, PROMPTS[1])
        pool.step()
        assert 0 < len(session.context_tokens) < len(PROMPTS[1])
        pool.cancel(job)
        assert session.context_tokens == ()


def test_one_failure_is_no_others():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, None) as b:
        pool = SessionPool(engine)
        wrong = pool.generate(a, "abc", sampling=Sampling(grammar="root ::= [a]"))
        right = pool.generate(b, "abc", max_tokens=5, sampling=GREEDY)
        with pytest.raises(InvalidParamError, match="cannot follow a grammar"):
            pool.run()
        assert isinstance(wrong.error, InvalidParamError)
        assert len(ids(right.tokens)) == 5


def test_a_decode_that_fails_ends_the_work_in_it(monkeypatch):
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as session:
        session.feed(PROMPTS[0])
        pool = SessionPool(engine)
        job = pool.generate(session, "abc", max_tokens=5)

        def fail(*_, **__):
            raise ModelError("no")

        monkeypatch.setattr(engine, "decode", fail)
        with pytest.raises(ModelError):
            pool.run()
        assert job.done
        assert session.context_tokens == ()
        assert session.memory.tokens_seen > 0


def test_a_session_of_another_engine():
    with AtlasSession(FakeEngine(), None) as session, pytest.raises(InvalidParamError, match="another model"):
        SessionPool(FakeEngine()).generate(session, "x")


def test_a_session_that_is_closed_takes_its_work_with_it():
    engine = FakeEngine(n_ctx=256, n_sequences=1)
    a = AtlasSession(engine, None)
    pool = SessionPool(engine)
    job = pool.feed(a, PROMPTS[1] * 2)
    pool.step()
    assert not job.done
    a.close()
    with AtlasSession(engine, None) as b:  # has its sequence now
        b.feed("abc")
        decodes = engine.decodes
        with pytest.raises(ClosedError, match="session is closed"):
            pool.run()
        assert engine.decodes == decodes
        assert len(ids(b.generate("abc", max_tokens=3, sampling=GREEDY))) == 3


def test_a_session_reads_as_much_at_once_as_before_when_its_work_is_over():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, None) as session:
        limit = session.feed_limit
        pool = SessionPool(engine)
        job = pool.generate(session, PROMPTS[0], max_tokens=5, sampling=GREEDY)
        assert session.feed_limit < limit
        pool.run()
        assert session.feed_limit == limit
        job = pool.generate(session, PROMPTS[0], max_tokens=5, sampling=GREEDY)
        pool.step()
        pool.cancel(job)
        assert session.feed_limit == limit
