"""One thread owns the engine: what many threads ask of it comes out as if each session had been alone."""

from __future__ import annotations

import contextlib
import dataclasses
import random
import sys
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import pytest
from memory_arrays import arrays, assert_same

from atlas_kit.errors import BusyError, ClosedError, ErrorCode, InvalidParamError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler, SessionPool
from atlas_kit.llama import scheduler as scheduler_module
from atlas_kit.llama.batch import Job
from atlas_kit.llama.branching import Branch
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.stage_times import StageTimes
from atlas_kit.llama.steps import Step
from atlas_kit.persistence import snapshot
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer "
LONG_WAIT = 120


def ids(tokens):
    return [token.id for token in tokens if token.id >= 0]


@pytest.fixture(params=[False, True], ids=["one stage", "two stages"])
def stages(request, monkeypatch):
    """Whoever generates is decoded for in one half of the steps and goes on in the other, or both in each."""
    monkeypatch.setattr(StageTimes, "gains", lambda _, sessions: request.param and sessions > 0)


class Gate(FakeEngine):
    """Decodes when it is told to."""

    def __init__(self, **options):
        super().__init__(**options)
        self.open, self.entered = threading.Event(), threading.Event()

    def decode(self, feeds, *, hidden=False):
        self.entered.set()
        assert self.open.wait(LONG_WAIT)
        return super().decode(feeds, hidden=hidden)


def told(job, what):
    """Return an event that is set as soon as ``what(job)`` holds, looked at after each step of the job."""
    event = threading.Event()
    job.listen(lambda job: what(job) and event.set())
    return event


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("memory", [None, SMALL], ids=["plain", "memory"])
@pytest.mark.parametrize("kind", ["fake", "llama"])
def test_sessions_give_what_they_would_alone(kind, memory, request):
    options = {"n_ctx": 64, "n_batch": 32, "n_sequences": 4}
    engine = FakeEngine(**options) if kind == "fake" else request.getfixturevalue("real")(kind, **options)
    prompts, alone, kept = [TEXT[at : at + 20 + 9 * at] for at in range(4)], [], []
    for prompt in prompts:
        with AtlasSession(engine, memory) as session:
            session.feed_limit = 16  # as beside others
            alone.append(ids(session.generate(prompt, max_tokens=30, sampling=GREEDY)))
            kept.append(None if memory is None else arrays(session))
    sessions = [AtlasSession(engine, memory) for _ in prompts]
    with Scheduler(engine) as scheduler:
        jobs = [
            scheduler.generate(session, prompt, max_tokens=30, sampling=GREEDY)
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        assert [ids(job) for job in jobs] == alone
        assert [ids(job.result(LONG_WAIT)) for job in jobs] == alone
    if kind == "fake" and memory is not None:  # to the bit
        for session, expected in zip(sessions, kept, strict=True):
            assert_same(arrays(session), expected)


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("seed", [0, *(pytest.param(n, marks=pytest.mark.slow) for n in (1, 2, 3))])
def test_many_threads_submit_and_cancel_at_random(seed):
    engine = FakeEngine(n_ctx=48, n_batch=32, n_sequences=6)
    sessions = [AtlasSession(engine, SMALL if at % 2 else None) for at in range(6)]
    done = {at: [] for at in range(6)}  # (prompt, tokens, cancelled)
    failures = []

    def client(at, scheduler):
        chance = random.Random(seed * 100 + at)
        try:
            for _ in range(6):
                start, length = chance.randrange(40), chance.randrange(1, 60)
                prompt = TEXT[start : start + length]
                sampling = Sampling(seed=chance.randrange(99), temperature=chance.choice([0.0, 1.0]))
                count = chance.randrange(1, 40)
                job = scheduler.generate(sessions[at], prompt, max_tokens=count, sampling=sampling)
                if chance.random() < 0.5:
                    after = chance.randrange(0, 12)
                    reached = told(job, lambda job, after=after: job.done or len(job.tokens) >= after)
                    if after:
                        assert reached.wait(LONG_WAIT)
                    scheduler.cancel(job)
                assert job.wait(LONG_WAIT)
                done[at].append((prompt, sampling, ids(job.tokens), job.finish_reason))
        except BaseException as error:
            failures.append(error)

    with Scheduler(engine) as scheduler:
        threads = [threading.Thread(target=client, args=(at, scheduler)) for at in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(LONG_WAIT)
        assert not failures
        assert len(scheduler) == 0
    for at, session in enumerate(sessions):
        with AtlasSession(FakeEngine(n_ctx=48, n_batch=32), SMALL if at % 2 else None) as alone:
            alone.feed_limit = 16
            for prompt, sampling, tokens, reason in done[at]:
                if reason == "cancelled" and not tokens:
                    break  # how much of the prompt was read is not told
                again = list(alone.generate(prompt, max_tokens=len(tokens), sampling=sampling))
                assert ids(again) == tokens
            else:
                assert alone.context_tokens == session.context_tokens + tuple(session._owed)
                if alone.memory is not None:
                    assert_same(arrays(session), arrays(alone))


def test_nobody_waits_for_a_decode_to_submit_or_cancel():
    engine = Gate(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, None) as b, Scheduler(engine) as scheduler:
        first = scheduler.generate(a, TEXT, max_tokens=5, sampling=GREEDY)
        assert engine.entered.wait(LONG_WAIT)
        second = scheduler.generate(b, TEXT, max_tokens=5, sampling=GREEDY)  # while the engine is in a decode
        scheduler.cancel(second)
        with AtlasSession(engine, None):
            pass
        assert not first.wait(0)
        engine.open.set()
        assert len(ids(first.result(LONG_WAIT))) == 5
        assert second.wait(LONG_WAIT)
        assert second.finish_reason == "cancelled"


@pytest.mark.usefixtures("stages")
def test_cancelled_in_the_prompt():
    engine = Gate(n_ctx=256)
    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        job = scheduler.generate(session, TEXT, max_tokens=5, sampling=GREEDY)
        assert engine.entered.wait(LONG_WAIT)
        scheduler.cancel(job)
        engine.open.set()
        assert job.wait(LONG_WAIT)
        assert (job.finish_reason, job.tokens, session.context_tokens) == ("cancelled", [], ())
        seen = session.memory.tokens_seen
        again = scheduler.generate(session, "whole again", max_tokens=4, sampling=GREEDY)
        assert len(ids(again.result(LONG_WAIT))) == 4
        assert session.memory.tokens_seen == seen + len("whole again") - 1 + 4


@pytest.mark.usefixtures("stages")
def test_cancelled_in_a_branch():
    """What the session has in its context stays: nothing of the branch is a part of it."""
    engine = Gate(n_ctx=256)
    engine.open.set()
    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        scheduler.feed(session, TEXT[:100]).result(LONG_WAIT)
        held = session.context_tokens

        def aside():
            branch = Branch(session)
            try:
                yield from branch.read(list(b"read on the side"))
                yield from branch.read(list(b"and more"))
            finally:
                branch.close()

        engine.open.clear()
        engine.entered.clear()
        job = scheduler.submit(session, aside())
        assert engine.entered.wait(LONG_WAIT)
        scheduler.cancel(job)
        engine.open.set()
        assert job.wait(LONG_WAIT)
        assert (job.finish_reason, session.context_tokens) == ("cancelled", held)
        assert len(ids(scheduler.generate(session, max_tokens=3, sampling=GREEDY).result(LONG_WAIT))) == 3


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("shiftable", [True, False])
@pytest.mark.parametrize("count", [3, 17, 30])
def test_cancelled_while_generating(count, shiftable):
    """Also in the middle of a roll-over; the memory is as if it had stopped there by itself."""
    engine = FakeEngine(n_ctx=48, n_batch=32, shiftable=shiftable)
    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        decodes, job = [], scheduler.generate(session, TEXT[:40], sampling=GREEDY)

        def stop(job):
            if len(job.tokens) == count:
                decodes.append(engine.decodes)
                scheduler.cancel(job)

        job.listen(stop)
        assert job.wait(LONG_WAIT)
        if decodes:
            assert (
                engine.decodes <= decodes[0] + 3
            )  # the one in progress, and no more for the sake of the end
        tokens = ids(job.tokens)
        more = ids(scheduler.generate(session, " and so on", max_tokens=8, sampling=GREEDY).result(LONG_WAIT))
        kept = arrays(session)
        context = session.context_tokens
    with AtlasSession(FakeEngine(n_ctx=48, n_batch=32, shiftable=shiftable), SMALL) as session:
        session.feed_limit = 16
        assert ids(session.generate(TEXT[:40], max_tokens=len(tokens), sampling=GREEDY)) == tokens
        assert ids(session.generate(" and so on", max_tokens=8, sampling=GREEDY)) == more
        assert session.context_tokens == context
        assert_same(arrays(session), kept)


def test_busy():
    engine = Gate(n_ctx=256)
    with AtlasSession(engine) as a, AtlasSession(engine) as b, Scheduler(engine, max_jobs=2) as scheduler:
        first = scheduler.feed(a, TEXT)
        with pytest.raises(BusyError, match="has work already") as caught:
            scheduler.generate(a, TEXT)
        assert caught.value.code == ErrorCode.BUSY
        assert not isinstance(caught.value, InvalidParamError)
        second = scheduler.feed(b, TEXT)
        with pytest.raises(BusyError, match="2 jobs are under way"):
            scheduler.call(b, lambda: None)
        engine.open.set()
        first.result(LONG_WAIT)
        second.result(LONG_WAIT)
        assert scheduler.call(b, lambda: 7).result(LONG_WAIT) == 7


@pytest.mark.usefixtures("stages")
def test_closed():
    engine = Gate(n_ctx=256)
    session = AtlasSession(engine, SMALL)
    scheduler = Scheduler(engine)
    job = scheduler.generate(session, TEXT)
    saving = scheduler.call(session, lambda: 1)
    assert engine.entered.wait(LONG_WAIT)
    assert not scheduler.close(timeout=0.01)  # a decode that takes its time holds up nobody
    for one in (job, saving):
        with pytest.raises(ClosedError, match="scheduler was closed"):
            one.result(LONG_WAIT)
    with pytest.raises(ClosedError) as caught:
        scheduler.generate(session, TEXT)
    assert caught.value.code == ErrorCode.CLOSED
    with pytest.raises(ClosedError):
        scheduler.call(session, lambda: 1)
    engine.open.set()
    assert scheduler.close()
    assert scheduler.close()
    assert len(ids(session.generate("abc", max_tokens=3, sampling=GREEDY))) == 3
    session.close()


@pytest.mark.usefixtures("stages")
def test_one_failure_is_no_others():
    engine = FakeEngine(n_ctx=256)

    def broken():
        yield from ()
        raise RuntimeError("own fault")

    with AtlasSession(engine) as a, AtlasSession(engine) as b, Scheduler(engine) as scheduler:
        right = scheduler.generate(b, TEXT, max_tokens=20, sampling=GREEDY)
        wrong = scheduler.submit(a, broken())
        with pytest.raises(RuntimeError, match="own fault"):
            wrong.result(LONG_WAIT)
        with pytest.raises(InvalidParamError, match="max_tokens"):
            scheduler.generate(a, "abc", max_tokens=-1)  # at once
        with pytest.raises(InvalidParamError, match="cannot follow a grammar"):  # at once
            scheduler.generate(a, "abc", sampling=Sampling(grammar="root ::= [a]"))
        assert len(ids(right.result(LONG_WAIT))) == 20
        assert len(ids(scheduler.generate(a, "abc", max_tokens=3, sampling=GREEDY).result(LONG_WAIT))) == 3


@pytest.mark.usefixtures("stages")
def test_a_decode_that_fails_empties_only_whose_feed_failed():
    engine = FakeEngine(n_ctx=64, n_batch=64, n_sequences=3)
    plain = engine.decode

    def decode(feeds, *, hidden=False):
        if any(66 in feed.tokens for feed in feeds):
            raise ModelError("no room")
        return plain(feeds, hidden=hidden)

    engine.decode = decode
    sessions = [AtlasSession(engine, None) for _ in range(3)]
    with Scheduler(engine) as scheduler:
        jobs = [
            scheduler.generate(session, text, max_tokens=5, sampling=GREEDY)
            for session, text in zip(sessions, ("aaa", "aBa", "ccc"), strict=True)
        ]
        for job in jobs:
            job.wait(LONG_WAIT)
    assert [job.error is None for job in jobs] == [True, False, True]
    assert sessions[1].context_tokens == ()
    assert [len(session.context_tokens + tuple(session._owed)) for session in sessions] == [8, 0, 8]


@pytest.mark.usefixtures("stages")
def test_why_it_ended():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine) as session, Scheduler(engine) as scheduler:
        length = scheduler.generate(session, "abc" * 20, max_tokens=3, sampling=GREEDY)
        length.result(LONG_WAIT)
        stop = scheduler.generate(session, stop=["zz", "ca"], max_tokens=50, sampling=GREEDY)
        stop.result(LONG_WAIT)
        read = scheduler.feed(session, "abc")
        read.result(LONG_WAIT)
    assert (length.finish_reason, length.stop, length.text) == ("length", None, "abc")
    assert (stop.finish_reason, stop.stop) == ("stop", "ca")
    assert (read.finish_reason, read.tokens) == ("done", [])


@pytest.mark.usefixtures("stages")
def test_saving_and_restoring(tmp_path):
    engine, path = FakeEngine(n_ctx=256), tmp_path / "m.atlas"
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b, Scheduler(engine) as scheduler:
        first = scheduler.generate(a, TEXT, max_tokens=20, sampling=GREEDY)
        saved = scheduler.save(a, path)  # after it
        saved.result(LONG_WAIT)
        assert first.done
        scheduler.restore(b, path).result(LONG_WAIT)
        jobs = [scheduler.generate(one, max_tokens=9, sampling=GREEDY) for one in (a, b)]
        assert ids(jobs[0].result(LONG_WAIT)) == ids(jobs[1].result(LONG_WAIT))
        with pytest.raises(InvalidParamError, match="no memory"), AtlasSession(engine, None) as plain:
            scheduler.save(plain, path).result(LONG_WAIT)


def test_what_is_taken_here_is_written_elsewhere():
    engine, seen = FakeEngine(n_ctx=256), []
    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        go = threading.Event()

        def write(value):
            seen.append(threading.current_thread().name)
            assert go.wait(LONG_WAIT)
            return value * 2

        def take():
            seen.append(threading.current_thread().name)
            return 21

        writing = scheduler.call(session, take, then=write)
        scheduler.generate(session, TEXT, max_tokens=3, sampling=GREEDY).result(LONG_WAIT)  # meanwhile
        assert not writing.done
        go.set()
        assert writing.result(LONG_WAIT) == 42
        failing = scheduler.call(session, take, then=lambda value: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            failing.result(LONG_WAIT)
    assert seen[0] == "atlas-engine"
    assert seen[1].startswith("atlas-writer")


def test_a_session_is_opened_between_two_decodes():
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as a, Scheduler(engine) as scheduler:
        job = scheduler.generate(a, TEXT, max_tokens=50, sampling=GREEDY)
        b = scheduler.ask(lambda: AtlasSession(engine, None)).result(LONG_WAIT)
        with pytest.raises(InvalidParamError, match="not a device"):
            scheduler.ask(lambda: AtlasSession(engine, device="abacus")).result(LONG_WAIT)
        assert len(ids(scheduler.generate(b, TEXT, max_tokens=5, sampling=GREEDY).result(LONG_WAIT))) == 5
        scheduler.call(b, b.close).result(LONG_WAIT)
        with pytest.raises(ClosedError, match="session is closed"):
            scheduler.feed(b, "abc").result(LONG_WAIT)
        assert len(ids(job.result(LONG_WAIT))) == 50
    with pytest.raises(ClosedError):
        scheduler.ask(list)


@pytest.mark.usefixtures("stages")
def test_work_that_fails_when_it_is_cancelled():
    engine = Gate(n_ctx=256)

    def work(session):
        try:
            yield from session.reading(list(TEXT.encode()))
        finally:
            raise RuntimeError("at the end")

    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        job = scheduler.submit(session, work(session))
        assert engine.entered.wait(LONG_WAIT)
        scheduler.cancel(job)
        engine.open.set()
        with pytest.raises(RuntimeError, match="at the end"):
            job.result(LONG_WAIT)
        assert session.context_tokens == ()
        assert (
            len(ids(scheduler.generate(session, "abc", max_tokens=2, sampling=GREEDY).result(LONG_WAIT))) == 2
        )


def test_the_right_session_of_the_right_engine():
    with (
        AtlasSession(FakeEngine()) as session,
        Scheduler(FakeEngine()) as scheduler,
        pytest.raises(InvalidParamError, match="another model"),
    ):
        scheduler.feed(session, "abc")


@pytest.mark.usefixtures("stages")
def test_an_engine_that_breaks_ends_its_work_and_nothing_else():
    engine = FakeEngine(n_ctx=256)
    plain, broken = engine.decode, threading.Event()

    def decode(feeds, *, hidden=False):
        if broken.is_set():
            raise OSError("not an error of ours")
        return plain(feeds, hidden=hidden)

    engine.decode = decode
    with AtlasSession(engine, SMALL) as session, Scheduler(engine) as scheduler:
        broken.set()
        with pytest.raises(OSError, match="not an error of ours"):
            scheduler.feed(session, TEXT).result(LONG_WAIT)
        broken.clear()
        assert (
            len(ids(scheduler.generate(session, TEXT, max_tokens=5, sampling=GREEDY).result(LONG_WAIT))) == 5
        )


def test_a_result_that_takes_too_long():
    engine = Gate()
    with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
        job = scheduler.feed(session, "abc")
        with pytest.raises(TimeoutError, match=r"0\.01 seconds"):
            job.result(0.01)
        engine.open.set()
        job.result(LONG_WAIT)


def test_a_listener_that_fails_is_left_out():
    engine, heard = FakeEngine(n_ctx=256), []
    with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
        job = scheduler.generate(session, TEXT, max_tokens=5, sampling=GREEDY)
        job.listen(lambda job: 1 / 0) if not job.done else None
        assert len(ids(job.result(LONG_WAIT))) == 5
        job.listen(lambda job: heard.append(job.done))
    assert heard == [True]


@pytest.mark.usefixtures("stages")
def test_a_neighbours_prompt_makes_no_outputs():
    """Hidden states make every token of a batch an output: what needs none is decoded apart."""
    engine, calls = FakeEngine(n_ctx=256, n_batch=64, n_sequences=3), []
    plain = engine.decode

    def decode(feeds, *, hidden=False):
        calls.append((hidden, [(len(feed.tokens), feed.outputs) for feed in feeds]))
        return plain(feeds, hidden=hidden)

    engine.decode = decode
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, None) as b, Scheduler(engine) as scheduler:
        jobs = [scheduler.generate(s, TEXT, max_tokens=9, sampling=GREEDY) for s in (a, b)]
        for job in jobs:
            job.result(LONG_WAIT)
    assert any(hidden for hidden, _ in calls)
    for hidden, feeds in calls:
        assert not hidden or all(size == outputs for size, outputs in feeds)
    assert np.sum([outputs for hidden, feeds in calls if not hidden for _, outputs in feeds]) <= 20


@pytest.mark.usefixtures("stages")
def test_a_call_decodes_when_nobodys_outputs_wait():
    """Who owes a token catches up in a batch with others; the function runs when all of them have read theirs."""
    engine = FakeEngine(n_ctx=256)
    with AtlasSession(engine, SMALL) as alone:
        alone.feed_limit = engine.n_batch // 2
        expected = ids(alone.generate(TEXT, max_tokens=9, sampling=GREEDY))
        kept = arrays(alone)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b, Scheduler(engine) as scheduler:
        first = scheduler.generate(a, TEXT, sampling=GREEDY)
        first.listen(lambda job: len(job.tokens) == 3 and scheduler.cancel(job))
        assert first.wait(LONG_WAIT)
        assert a._owed
        both = scheduler.ask(  # in one burst
            lambda: (
                scheduler.call(a, lambda: a.feed("zzzz")),
                scheduler.generate(b, TEXT, max_tokens=9, sampling=GREEDY),
            )
        )
        called, job = both.result(LONG_WAIT)
        called.result(LONG_WAIT)
        assert ids(job.result(LONG_WAIT)) == expected
        assert bytes(a.context_tokens).endswith(b"zzzz")
    assert_same(arrays(b), kept)


def test_a_sampler_is_closed_by_the_thread_that_uses_it():
    engine, closed = Gate(n_ctx=256), []
    plain = engine.sampler

    def sampler(sampling):
        made = plain(sampling)
        made.close = lambda: closed.append((sampling.seed, threading.current_thread().name))
        return made

    engine.sampler = sampler
    with AtlasSession(engine, None) as a, AtlasSession(engine, None) as b:
        scheduler = Scheduler(engine)
        scheduler.generate(a, TEXT, sampling=Sampling(seed=1))
        assert engine.entered.wait(LONG_WAIT)
        scheduler.generate(b, TEXT, sampling=Sampling(seed=2))  # never begins
        assert not scheduler.close(timeout=0.01)
        assert [seed for seed, _ in closed] == [2]
        engine.open.set()
        assert scheduler.close(LONG_WAIT)
    assert set(closed[1:]) == {(1, "atlas-engine")}


def test_closing_waits_for_all_that_is_written_together(monkeypatch):
    now, waited, go = [0.0], [], threading.Event()

    def wait(job, timeout=None):
        waited.append(timeout)
        now[0] += timeout
        return False

    engine = FakeEngine()
    with AtlasSession(engine, None) as session:
        scheduler = Scheduler(engine)
        began = [threading.Event() for _ in range(3)]
        for event in began:
            scheduler.call(session, event.set, then=lambda _: go.wait(LONG_WAIT))
        for event in began:
            assert event.wait(LONG_WAIT)
        monkeypatch.setattr(
            scheduler_module, "time", SimpleNamespace(monotonic=lambda: now[0]), raising=False
        )
        monkeypatch.setattr(Job, "wait", wait)
        assert not scheduler.close(timeout=5)
        go.set()
    assert waited == [5, 0, 0]


def test_a_listener_that_comes_at_the_end_is_called_once():
    with AtlasSession(FakeEngine(), None) as session:
        heard = []
        job = Job(session, iter(()), release=lambda: job.listen(heard.append))  # done, and nobody told yet
        job.finish("done")
    assert heard == [job]


def test_a_listener_that_fails_in_two_threads_at_once():
    with AtlasSession(FakeEngine(), None) as session:
        job, both = Job(session, iter(())), threading.Barrier(2)

        def fail(job):
            both.wait(LONG_WAIT)
            raise RuntimeError("own fault")

        job.listen(fail)
        with ThreadPoolExecutor(2) as threads:
            for told in [threads.submit(job._tell) for _ in range(2)]:
                told.result(LONG_WAIT)


def test_work_that_fails_at_its_end_when_the_engine_breaks():
    engine = FakeEngine(n_ctx=256)
    plain, broken = engine.decode, threading.Event()

    def decode(feeds, *, hidden=False):
        if broken.is_set():
            raise OSError("not an error of ours")
        return plain(feeds, hidden=hidden)

    def work(session):
        try:
            yield from session.reading(list(TEXT.encode()))
        finally:
            raise RuntimeError("at the end")

    engine.decode = decode
    with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
        broken.set()
        with pytest.raises(OSError, match="not an error of ours"):
            scheduler.submit(session, work(session)).result(LONG_WAIT)
        broken.clear()
        job = scheduler.generate(session, TEXT, max_tokens=5, sampling=GREEDY)
        assert len(ids(job.result(LONG_WAIT))) == 5


def test_a_file_is_read_beside_decoding(tmp_path, monkeypatch):
    engine, path = FakeEngine(n_ctx=256), tmp_path / "m.atlas"
    entered, go = threading.Event(), threading.Event()
    plain = snapshot.load_memory

    def load_memory(*given, **options):
        assert threading.current_thread().name.startswith("atlas-writer")
        entered.set()
        assert go.wait(LONG_WAIT)
        return plain(*given, **options)

    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b, Scheduler(engine) as scheduler:
        scheduler.feed(a, TEXT).result(LONG_WAIT)
        scheduler.save(a, path).result(LONG_WAIT)
        monkeypatch.setattr(snapshot, "load_memory", load_memory)
        restored = scheduler.restore(b, path)
        after = scheduler.call(b, lambda: b.context_tokens)
        assert entered.wait(LONG_WAIT)
        scheduler.generate(a, max_tokens=3, sampling=GREEDY).result(LONG_WAIT)  # meanwhile
        assert not restored.done
        assert not after.done
        go.set()
        restored.result(LONG_WAIT)
        assert after.result(LONG_WAIT) == tuple(TEXT.encode())
        with pytest.raises(OSError, match=r"none\.atlas"):
            scheduler.restore(b, tmp_path / "none.atlas").result(LONG_WAIT)
        scheduler.call(b, b.close).result(LONG_WAIT)
        with pytest.raises(ClosedError, match="session is closed"):
            scheduler.restore(b, path).result(LONG_WAIT)


def test_a_restore_that_is_cancelled_or_closed_while_it_reads(tmp_path, monkeypatch):
    engine, path = FakeEngine(n_ctx=256), tmp_path / "m.atlas"
    entered, go = threading.Event(), threading.Event()
    plain = snapshot.load_memory

    def load_memory(*given, **options):
        entered.set()
        assert go.wait(LONG_WAIT)
        return plain(*given, **options)

    with AtlasSession(engine, SMALL) as session:
        session.feed("abc")
        session.save(path)
        session.feed("def")
        monkeypatch.setattr(snapshot, "load_memory", load_memory)
        with Scheduler(engine) as scheduler:
            first = scheduler.restore(session, path)
            assert entered.wait(LONG_WAIT)
            scheduler.cancel(first)
            assert first.wait(LONG_WAIT)
            assert first.finish_reason == "cancelled"
            second = scheduler.restore(session, path)  # behind the first in the writer's queue
        with pytest.raises(ClosedError, match="scheduler was closed"):
            second.result(LONG_WAIT)
        go.set()
        assert bytes(session.context_tokens) == b"abcdef"


def test_a_callback_that_would_exit_ends_its_own_job_only():
    engine = FakeEngine(n_ctx=256, n_sequences=2)
    with AtlasSession(engine, SMALL) as a, AtlasSession(engine, SMALL) as b, Scheduler(engine) as scheduler:
        other = scheduler.generate(b, TEXT, max_tokens=20, sampling=GREEDY)
        for job in (
            scheduler.call(a, lambda: 1, then=lambda value: sys.exit(3)),
            scheduler.call(a, lambda: sys.exit(3)),
        ):
            assert job.wait(LONG_WAIT)
            assert isinstance(job.error, SystemExit)
        with pytest.raises(SystemExit):
            scheduler.ask(lambda: sys.exit(3)).result(LONG_WAIT)
        scheduler.generate(a, TEXT, max_tokens=2, sampling=GREEDY).listen(lambda job: sys.exit(3))
        assert len(ids(other.result(LONG_WAIT))) == 20
        assert len(ids(scheduler.generate(b, TEXT, max_tokens=5, sampling=GREEDY).result(LONG_WAIT))) == 5


def feeding(**change):
    return Step(dataclasses.replace(Feed(0, [1], 0, 0), **change), False)


MALFORMED = {
    "a number": lambda session: 5,
    "nothing": lambda session: None,
    "a step without a feed": lambda session: Step(None, False),
    "a step of another session": lambda session: feeding(sequence=session.sequence + 1),
    "a step that never fits": lambda session: feeding(sequence=session.sequence, tokens=[1] * 999),
    "a step without tokens": lambda session: feeding(sequence=session.sequence, tokens=[]),
    "a step of words": lambda session: feeding(sequence=session.sequence, tokens=["a"]),
    "a step of strange tokens": lambda session: feeding(sequence=session.sequence, tokens=[99999]),
    "a step at a strange place": lambda session: feeding(sequence=session.sequence, position="x"),
    "a step somewhere else": lambda session: feeding(sequence=session.sequence, position=99),
    "strange outputs": lambda session: feeding(sequence=session.sequence, outputs=2),
    "a future that would exit": lambda session: failed_future(SystemExit()),
    "a future that was interrupted": lambda session: failed_future(GeneratorExit()),
}


def failed_future(error):
    future = Future()
    future.set_exception(error)
    return future


@pytest.mark.usefixtures("stages")
@pytest.mark.parametrize("facade", [Scheduler, SessionPool])
@pytest.mark.parametrize("what", MALFORMED)
def test_malformed_work_fails_alone(what, facade):
    engine = FakeEngine(n_sequences=3)
    ended = []
    with (
        AtlasSession(engine, None) as odd,
        AtlasSession(engine, SMALL) as fine,
        AtlasSession(engine) as alone,
    ):
        expected = ids(alone.generate(TEXT, max_tokens=8, sampling=GREEDY))
        odd.feed("abc")

        def work():
            try:
                yield from odd.reading([1, 2, 3], score=False)
                yield MALFORMED[what](odd)
            finally:
                ended.append(odd)

        with contextlib.ExitStack() as stack:
            driver = facade(engine)
            if facade is Scheduler:
                stack.enter_context(driver)
            good = driver.generate(fine, TEXT, max_tokens=8, sampling=GREEDY)
            bad = driver.submit(odd, work())
            if facade is SessionPool:
                with contextlib.suppress(BaseException):
                    driver.run()
            assert bad.wait(LONG_WAIT)
            assert ids(good.result(LONG_WAIT))[:2] == expected[:2]
            assert (bad.finish_reason, ended) == ("error", [odd])
            kinds = {"a step somewhere else": ModelError}
            kinds |= dict.fromkeys([w for w in MALFORMED if "future" in w], BaseException)
            assert isinstance(bad.error, kinds.get(what, InvalidParamError))
            again = driver.generate(fine, max_tokens=2, sampling=GREEDY)
            if facade is SessionPool:
                driver.run()
            assert len(ids(again.result(LONG_WAIT))) == 2
        assert len(list(odd.generate("abc", max_tokens=2, sampling=GREEDY))) >= 2


@pytest.mark.parametrize("facade", [Scheduler, SessionPool])
@pytest.mark.parametrize("work", [5, None, [1, 2], "abc"], ids=repr)
def test_what_is_no_work_is_refused_at_once(work, facade):
    engine = FakeEngine()
    with AtlasSession(engine, None) as session, contextlib.ExitStack() as stack:
        driver = facade(engine)
        if facade is Scheduler:
            stack.enter_context(driver)
        with pytest.raises(InvalidParamError, match="work cannot be"):
            driver.submit(session, work)
        with pytest.raises(InvalidParamError, match="another model"):
            driver.submit(5, session.reading([1]))
        assert len(driver) == 0
