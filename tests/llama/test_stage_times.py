"""When two stages pay, and that they do what one does."""

from __future__ import annotations

import math
import threading

import numpy as np
import pytest
from memory_arrays import arrays, assert_same

from atlas_kit.errors import ClosedError, ModelError
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, SessionPool
from atlas_kit.llama.engine import Outputs
from atlas_kit.llama.stage_times import COMPARED, HALF_LIFE, OTHER, OTHER_IN, TRIED, TRIED_IN, StageTimes
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
TEXTS = ["to be or not to be, ", "whether 'tis nobler ", "in the mind to suffer ", "the slings and arrows "]


def measured(fixed, each, beside, sizes):
    times = StageTimes()
    for size in sizes:
        times.decoded(size, fixed + each * size)
        times.went_on(size, beside * size)
    return times


def test_what_was_never_measured_gains_nothing():
    assert not StageTimes().gains(50)
    assert StageTimes().fixed == math.inf


@pytest.mark.parametrize("sizes", [(8,), (8, 8, 8), (100, 101, 100)])
def test_sizes_that_are_the_same_tell_of_no_part(sizes):
    """Then all of a decode counts as fixed, so that what gains by that gains whatever the part is."""
    times = measured(0.0, 0.001, 0.0011, sizes)
    assert times.fixed == pytest.approx(0.001 * sum(sizes) / len(sizes), rel=0.02)
    assert times.gains(max(sizes) + 2)
    assert not measured(0.0, 0.001, 0.0009, sizes).gains(min(sizes))


@pytest.mark.parametrize("fixed", [0.0, 0.020])
def test_the_fixed_part_decides(fixed):
    times = measured(fixed, 0.0003, 0.0005, (512, 50, 25, 25, 50))
    assert times.fixed == pytest.approx(fixed, abs=1e-9)
    assert times.decoding == pytest.approx(5 * fixed + 662 * 0.0003)
    assert not times.gains(1)
    assert times.gains(39) == (fixed == 0)
    assert times.gains(41)


def test_two_stages_are_tried_where_nothing_is_known():
    times = measured(0.0, 0.001, 0.0002, (8,) * 30)
    tried = [times.gains(8) for _ in range(2 * TRIED_IN)]
    assert tried.count(True) == 2 * TRIED
    for _ in range(TRIED):
        times.decoded(4, 0.004)
    assert times.fixed == pytest.approx(0, abs=1e-9)
    assert times.gains(8)
    little = measured(0.0, 0.001, 0.0001, (8,) * 30)
    assert not any(little.gains(8) for _ in range(TRIED_IN))


def test_what_was_long_ago_counts_less():
    times = measured(0.5, 0.0, 0.0001, (1, 100) * 5)
    for _ in range(20 * HALF_LIFE):
        for size in (10, 20):
            times.decoded(size, 0.001 * size)
    assert times.fixed < 1e-3


@pytest.mark.parametrize("two", [0.0005, 0.002])
def test_what_was_faster_lately_is_gone_on_with_and_the_other_is_tried_now_and_then(two):
    """Two stages should gain, and where others keep the processors busy they do not."""
    times, took = measured(0.0, 0.001, 0.0011, (8, 4) * 4), {True: two, False: 0.001}

    def steps(count, sessions=8):
        done = []
        for _ in range(count):
            done.append(times.gains(sessions))
            times.stepped(done[-1], sessions, took[done[-1]] * sessions)
        return done

    first = steps(2 * COMPARED)
    assert first[0]
    assert {True, False} == set(first)
    best = two < 0.001
    assert steps(4 * OTHER_IN).count(best) == 4 * (OTHER_IN - OTHER)
    took[True], took[False] = took[False], took[True]  # the others have come, or gone
    steps(2 * OTHER_IN)
    assert steps(OTHER_IN).count(best) == OTHER
    assert steps(1, sessions=3) == [True]  # another number of sessions is another question


def in_two_stages(monkeypatch, engine, sessions):
    """Return a pool whose sessions generate in two stages, each having begun, and their jobs."""
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1})
    pool = SessionPool(engine)
    jobs = [
        pool.generate(session, text * 2, max_tokens=20, sampling=GREEDY)
        for session, text in zip(sessions, TEXTS, strict=False)
    ]
    while not all(job.tokens for job in jobs):
        pool.step()
    monkeypatch.setattr(StageTimes, "gains", lambda *_: True)
    return pool, jobs


def test_one_half_is_decoded_for_while_the_other_goes_on(monkeypatch):
    threads, batches = set(), []
    engine = FakeEngine(n_ctx=128, n_sequences=4)
    plain = engine.decode

    def decode(feeds, *, hidden=False):
        threads.add(threading.current_thread())
        batches.append(len(feeds))
        return plain(feeds, hidden=hidden)

    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions)
    engine.decode = decode
    pool.run()
    assert max(batches) == 2
    assert threading.current_thread() not in threads
    engine.decode = plain
    for session, job, text in zip(sessions, jobs, TEXTS, strict=True):
        kept = arrays(session)
        session.close()
        with AtlasSession(engine, SMALL) as alone:
            alone.feed_limit = engine.n_batch // 2
            expected = list(alone.generate(text * 2, max_tokens=20, sampling=GREEDY))
            assert [token.id for token in expected] == [token.id for token in job.tokens]
            assert_same(arrays(alone), kept)


def test_outputs_of_long_texts_are_not_copied(monkeypatch):
    """Those of others meanwhile are; and all say what they say alone."""
    copied, most = [], 40 * 4 * (256 + 1 + 32)
    plain = Outputs.copied

    def noted(outputs):
        copied.append(outputs.logits.nbytes)
        return plain(outputs)

    engine = FakeEngine(n_ctx=256, n_sequences=4, n_batch=128)
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions[:2])
    monkeypatch.setattr(Outputs, "copied", noted)
    monkeypatch.setattr("atlas_kit.llama.batch.MOST_COPIED", most)
    jobs += [
        pool.generate(session, text * 8, max_tokens=20, sampling=GREEDY)
        for session, text in zip(sessions[2:], TEXTS[2:], strict=True)
    ]
    pool.run()
    assert copied
    assert max(copied) <= most
    for session, job, text, times in zip(sessions, jobs, TEXTS, (2, 2, 8, 8), strict=True):
        kept = arrays(session)
        session.close()
        with AtlasSession(engine, SMALL) as alone:
            alone.feed_limit = engine.n_batch // 2
            expected = list(alone.generate(text * times, max_tokens=20, sampling=GREEDY))
            assert [token.id for token in expected] == [token.id for token in job.tokens]
            assert_same(arrays(alone), kept)


def test_work_ends_between_its_two_stages(monkeypatch):
    """Cancelled, it goes on to its next token, which the context is owed; with a closed session, it does not."""
    engine = FakeEngine(n_ctx=128, n_sequences=4)
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions)
    pool.step()
    between = [job for job in jobs if job in pool._batches._fresh]
    assert len(between) == 2
    pool.cancel(between[0])
    session = between[0].session
    assert between[0].finish_reason == "cancelled"
    assert len(session._owed) == 1
    said, text = [token.id for token in between[0].tokens], TEXTS[jobs.index(between[0])] * 2
    assert [*session.context_tokens, *session._owed] == [*engine.tokenize(text), *said]
    session.feed("and so on")
    between[1].session.close()
    with pytest.raises(ClosedError):
        pool.run()
    assert [job.finish_reason for job in jobs if job not in between] == ["length"] * 2
    assert not pool._batches._fresh


def test_a_decode_that_fails_beside_others(monkeypatch):
    engine = FakeEngine(n_ctx=128, n_sequences=4)
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions)
    plain = engine.decode

    def decode(feeds, *, hidden=False):
        if any(feed.sequence == sessions[2].sequence for feed in feeds):
            raise ModelError("no")
        return plain(feeds, hidden=hidden)

    engine.decode = decode
    with pytest.raises(ModelError):
        pool.run()
    assert [job.finish_reason for job in jobs] == ["length", "length", "error", "length"]
    assert sessions[2].context_tokens == ()


def test_whoever_has_to_learn_first_is_of_the_half_that_is_next(monkeypatch):
    """Learning is due in both halves, and one at a time has its turn: were it of the other half, nobody would go on."""
    engine = FakeEngine(n_ctx=128, n_sequences=3)
    sessions = [AtlasSession(engine, SMALL) for _ in range(3)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions)
    while not all(session.due for session in sessions):  # they began together
        for job in jobs:
            if not job.session.due:
                job.session.memory.learn(*last_of(job), put_off=True)
    pool._batches.jobs.sort(key=lambda job: -job.session.sequence)
    for _ in range(200):
        pool.step()
    assert [len(job.tokens) for job in jobs] == [20] * 3


def last_of(job):
    """Return a reading of a session's last state, and a token that may have come."""
    memory, rows = job.session.memory, job.session.engine.output_rows()
    hidden = np.ones((1, rows.n_embd), np.float32)
    logits = rows.logits(hidden, rows.whole())
    return memory.read(hidden, logits, np.array([1])), np.array([2])


def test_an_engine_that_somebody_else_uses(monkeypatch):
    """Also whoever takes the steps himself: the other thread would wait for him for ever."""
    engine = FakeEngine(n_ctx=128, n_sequences=4)
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, jobs = in_two_stages(monkeypatch, engine, sessions)
    with engine.lock:
        pool.run()
    assert [len(job.tokens) for job in jobs] == [20] * 4


def test_halves_are_sequences_in_a_row(monkeypatch):
    """Others are decoded one after the other, whatever the order in which the sessions came."""
    engine, batches = FakeEngine(n_ctx=128, n_sequences=4), []
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    pool, _ = in_two_stages(monkeypatch, engine, [sessions[at] for at in (2, 0, 3, 1)])
    plain = engine.decode

    def decode(feeds, *, hidden=False):
        batches.append(sorted(feed.sequence for feed in feeds))
        return plain(feeds, hidden=hidden)

    engine.decode = decode
    for _ in range(8):
        pool.step()
    assert {(0, 1), (2, 3)} <= set(map(tuple, batches))
    assert all(one in ([0, 1], [2, 3], [0], [1], [2], [3]) for one in batches)
