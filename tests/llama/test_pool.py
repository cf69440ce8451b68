"""Several sessions in one batch: the same tokens as alone, in turn, and one's failure is no other's."""

from __future__ import annotations

import contextlib

import pytest
from memory_arrays import arrays, assert_same

from atlas_kit.errors import BusyError, ClosedError, DivergedError, InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, SessionPool
from atlas_kit.llama.batch import BESIDE_AT_ONCE, LEARN_AT_ONCE
from atlas_kit.llama.stage_times import StageTimes
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
PROMPTS = ["to be or not to be, that is the question", "whether 'tis nobler in the mind " * 3, "a"]


def ids(tokens):
    return [token.id for token in tokens if token.id >= 0]


@pytest.fixture(params=[False, True], ids=["one stage", "two stages"])
def stages(request, monkeypatch):
    """Whoever generates is decoded for in one half of the steps and goes on in the other, or both in each."""
    monkeypatch.setattr(StageTimes, "gains", lambda _, sessions: request.param and sessions > 0)


@pytest.mark.usefixtures("stages")
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


@pytest.mark.parametrize(
    ("processors", "threads", "at_once"),
    [(1, 1, LEARN_AT_ONCE), (2, 1, BESIDE_AT_ONCE), (2, 2, LEARN_AT_ONCE)],
)
def test_memories_that_fill_together_learn_in_turns(processors, threads, at_once, monkeypatch):
    """Eight sessions fill a step with the same token; whenever their turn comes, each learns what it does alone."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    engine = FakeEngine(n_ctx=64, n_sequences=8)
    engine.n_threads = threads
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(AtlasSession(engine, SMALL))
        alone.feed_limit = engine.n_batch // 2  # as in a pool
        expected = ids(alone.generate(PROMPTS[0], max_tokens=20, sampling=GREEDY))
        learned = arrays(alone)
        alone.close()
        sessions = [stack.enter_context(AtlasSession(engine, SMALL)) for _ in range(8)]
        commits, memory = [], sessions[0].memory.memory
        assert all(session.memory.memory is memory for session in sessions)
        step = memory.step
        monkeypatch.setattr(memory, "step", lambda *args, **more: (commits.append(1), step(*args, **more))[1])
        pool = SessionPool(engine)
        jobs = [
            pool.generate(one, PROMPTS[0], max_tokens=20, sampling=GREEDY, stop="never") for one in sessions
        ]
        while not all(job.tokens for job in jobs):
            pool.step()
        most = 0
        while len(pool):
            commits.clear()
            pool.step()
            most = max(most, len(commits))
        assert most == at_once
        assert [ids(job.tokens) for job in jobs] == [expected] * 8
        for session in sessions:
            assert not session.puts_off
            assert_same(arrays(session), learned)


@pytest.mark.usefixtures("stages")
def test_a_step_that_was_put_off_is_taken_when_work_is_cancelled():
    engine = FakeEngine(n_ctx=64, n_sequences=4)
    with contextlib.ExitStack() as stack:
        sessions = [stack.enter_context(AtlasSession(engine, SMALL)) for _ in range(4)]
        pool = SessionPool(engine)
        jobs = [pool.generate(one, PROMPTS[0], sampling=GREEDY) for one in sessions]
        while not any(session.due for session in sessions):
            pool.step()
        late = next(job for job in jobs if job.session.due)
        seen = late.session.memory.tokens_seen
        pool.cancel(late)
        assert not late.session.due
        assert late.session.memory.tokens_seen == seen
        assert len(late.session.memory.waiting().get("token", ())) == 0
        for job in jobs:
            pool.cancel(job)


@pytest.mark.usefixtures("stages")
def test_a_memory_that_cannot_learn_ends_its_own_work_alone(monkeypatch):
    def fails():
        if one.due:
            raise DivergedError("the chunk diverged")

    engine = FakeEngine(n_ctx=64, n_sequences=2)
    with AtlasSession(engine, SMALL) as one, AtlasSession(engine, SMALL) as other:
        pool = SessionPool(engine)
        jobs = [pool.generate(s, PROMPTS[0], max_tokens=20, sampling=GREEDY) for s in (one, other)]
        while not all(job.tokens for job in jobs):
            pool.step()
        monkeypatch.setattr(one.memory, "commit", fails)
        while len(pool):
            pool.step()
        assert jobs[0].finish_reason == "error"
        assert isinstance(jobs[0].error, DivergedError)
        assert jobs[1].finish_reason == "length"


@pytest.mark.usefixtures("stages")
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


@pytest.mark.usefixtures("stages")
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


@pytest.mark.usefixtures("stages")
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


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("memory", [None, SMALL], ids=["plain", "memory"])
@pytest.mark.parametrize(("n_ctx", "n_batch"), [(256, 32), (64, 32), (16, 8), (64, 2)])
def test_a_last_token_is_read_with_what_follows_it(n_ctx, n_batch, memory):
    """It costs no decode of its own, and nothing that is said or learned changes, over turns and full contexts."""
    said, learned, decodes, texts = [], [], [], []
    for leaves_last in (False, True):
        engine = FakeEngine(n_ctx=n_ctx, n_batch=n_batch, n_sequences=3)
        sessions = [AtlasSession(engine, memory) for _ in range(3)]
        pool = SessionPool(engine)
        for turn in range(4):
            jobs = [
                pool.submit(one, one.generating(
                    prompt[turn:][:30] or "b", max_tokens=5 + at, sampling=GREEDY, leaves_last=leaves_last
                ))
                for at, (one, prompt) in enumerate(zip(sessions, PROMPTS, strict=True))
            ]  # fmt: skip
            pool.run()
            assert [job.finish_reason for job in jobs] == ["length"] * 3
            assert all(not session.due and session.owes == leaves_last for session in sessions)
            said.append([ids(job.tokens) for job in jobs])
        decodes.append(engine.decodes)
        for session in sessions:
            session.run(session.catching_up())
            texts.append((session.context_tokens, session.tokens_read))
            if memory is not None:
                learned.append(arrays(session))
    assert said[:4] == said[4:]
    assert texts[:3] == texts[3:]
    assert decodes[1] < decodes[0] or n_batch == 2
    for one, other in zip(learned[:3], learned[3:], strict=True):
        assert_same(one, other)


@pytest.mark.parametrize(("processors", "threads"), [(1, 1), (2, 1), (2, 2)])
@pytest.mark.parametrize("how", ["ends", "fails", "cancelled", "abandoned"])
def test_a_memorys_last_step_is_taken_before_its_job_is_done(how, processors, threads, monkeypatch):
    """In turn: eight that end with the same token do not keep a ninth waiting for eight steps."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(processors)))
    engine = FakeEngine(n_ctx=64, n_sequences=9)
    engine.n_threads = threads
    sessions = [AtlasSession(engine, SMALL) for _ in range(8)]
    other = AtlasSession(engine, None)
    commits, memory = [], sessions[0].memory.memory
    step = memory.step

    def counted(*args, **more):
        commits.append(1)
        if how == "fails" and len(commits) > steps + 2:
            raise DivergedError("too far")
        return step(*args, **more)

    monkeypatch.setattr(memory, "step", counted)
    pool, steps = SessionPool(engine), 8 * 2
    jobs = [
        pool.submit(
            one, one.generating("to be or", max_tokens=17, sampling=GREEDY, leaves_last=True, stop="never")
        )
        for one in sessions
    ]
    ninth = pool.generate(other, "a", max_tokens=60, sampling=GREEDY)
    while not any(job.done or job.ending for job in jobs):
        pool.step()
    assert not any(job.done for job in jobs)
    assert all(len(ids(job.tokens)) == 17 for job in jobs if job.ending)
    if how == "cancelled":
        for job in jobs:
            pool.cancel(job)
        assert not any(session.due for session in sessions)
    elif how == "abandoned":
        pool._batches.abandon(ModelError("broken"))
        assert all(isinstance(job.error, ModelError) for job in jobs)
    else:
        while len(pool):
            pool.step()
        assert len(ids(ninth.tokens)) == 60
    assert len(pool) == (how == "cancelled")
    assert all(job.done for job in jobs)
    if how == "fails":
        assert sum(isinstance(job.error, DivergedError) for job in jobs) > 0
    elif how == "ends":
        assert [job.finish_reason for job in jobs] == ["length"] * 8
        assert all(not session.due and session.owes == 1 for session in sessions)


def test_a_last_step_may_wait_for_what_comes_next():
    """Nothing is lost: whoever goes on, or looks at the memory, takes it first."""
    learned = []
    for learns_last in (True, False):
        session = AtlasSession(FakeEngine(n_ctx=64), SMALL)
        pool, due = SessionPool(session.engine), 0
        for turn in range(12):  # of which some end with a full step
            work = session.generating("b", max_tokens=8 + turn % 3, sampling=GREEDY, leaves_last=True)
            job = pool.submit(session, work, learns_last=learns_last)
            pool.run()
            assert job.finish_reason == "length"
            due += session.due
        assert (due > 0) == (not learns_last)
        learned.append(arrays(session))
    assert_same(*learned)


@pytest.mark.parametrize("memory", [None, SMALL], ids=["plain", "memory"])
def test_texts_that_come_together_are_read_together(memory):
    """As many tokens as the engine takes; but where most generate, few enough that they do not wait long."""
    engine = FakeEngine(n_ctx=64, n_sequences=12, n_batch=16, n_together=200, n_outputs=64)
    sizes, decode = [], engine.decode

    def counted(feeds, *, hidden=False):
        sizes.append([len(feed.tokens) for feed in feeds])
        return decode(feeds, hidden=hidden)

    engine.decode = counted
    sessions = [AtlasSession(engine, memory) for _ in range(12)]
    with contextlib.ExitStack() as stack:
        alone = stack.enter_context(AtlasSession(FakeEngine(n_ctx=64, n_batch=16), memory))
        alone.feed_limit = 8
        expected = ids(alone.generate("to be or", max_tokens=12, sampling=GREEDY))
    pool = SessionPool(engine)
    first = [pool.generate(one, "to be or", max_tokens=12, sampling=GREEDY) for one in sessions[:8]]
    pool.step()
    assert sizes == [[8] * 8]  # 64 outputs with a memory, and all that there are without
    late = [pool.generate(one, "to be or", max_tokens=12, sampling=GREEDY) for one in sessions[8:]]
    while not all(job.tokens for job in late):
        pool.step()
    assert max(sum(size) for size in sizes[1:]) <= 16
    pool.run()
    assert [ids(job.tokens) for job in (*first, *late)] == [expected] * 12


def test_long_texts_keep_nobody_waiting_who_generates():
    engine = FakeEngine(n_ctx=512, n_sequences=9, n_batch=16, n_together=200, n_outputs=64)
    sizes, decode = [], engine.decode

    def counted(feeds, *, hidden=False):
        sizes.append(sum(len(feed.tokens) for feed in feeds))
        return decode(feeds, hidden=hidden)

    engine.decode = counted
    sessions = [AtlasSession(engine, None) for _ in range(9)]
    pool = SessionPool(engine)
    first = pool.generate(sessions[0], "to be or", max_tokens=200, sampling=GREEDY)
    while not first.tokens:
        pool.step()
    sizes.clear()
    late = [pool.feed(one, PROMPTS[1]) for one in sessions[1:]]
    while not all(job.done for job in late):
        pool.step()
    assert max(sizes[:-1]) <= 16  # but for their last parts, which are short
    pool.run()
    sizes.clear()
    for one in sessions[1:]:
        pool.feed(one, PROMPTS[1])
    pool.run()
    assert max(sizes) == 64


def test_outputs_are_bounded_where_texts_are_scored():
    engine = FakeEngine(n_ctx=64, n_sequences=12, n_batch=16, n_together=200, n_outputs=20)
    sessions = [AtlasSession(engine, None) for _ in range(12)]
    pool, told = SessionPool(engine), []
    for one in sessions:
        pool.submit(one, one.reading(one.tokens_of("to be or", False), score=True, told=told.append))
    pool.run()
    assert engine.decodes == 6
    assert [len(one) for one in told] == [7] * 12
