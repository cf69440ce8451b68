"""What is left for later is done once, by whoever comes by first, and before anybody looks."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from memory_arrays import arrays

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler
from atlas_kit.llama import batch as batch_module
from atlas_kit.llama.helping_hand import HelpingHand
from atlas_kit.llama.stage_times import StageTimes
from atlas_kit.llama.steps import Later
from atlas_kit.settings.atlas_settings import AtlasSettings

GREEDY = Sampling(temperature=0)
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=8, chunk_size=8, candidates=16)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer "
LONG_WAIT = 120


@pytest.fixture
def hand():
    made = HelpingHand("test-hand")
    yield made
    made.close()


def test_everything_is_done_once(hand):
    done = []
    for number in range(200):
        things = [Later(lambda what=(number, place): done.append(what)) for place in range(5)]
        hand.give(things)
        hand.take_back()
        assert len(done) == 5 * (number + 1)
        for one in things:
            one.require()
    assert sorted(done) == [(number, place) for number in range(200) for place in range(5)]


def test_what_another_thread_has_begun_is_waited_for_and_nothing_else(hand):
    begun, go_on, done = threading.Event(), threading.Event(), []

    def long():
        done.append(threading.current_thread().name)
        begun.set()
        assert go_on.wait(LONG_WAIT)

    hand.give([Later(long), Later(lambda: done.append(threading.current_thread().name))])
    assert begun.wait(LONG_WAIT)
    timer = threading.Timer(0.05, go_on.set)
    timer.start()
    hand.take_back()
    assert go_on.is_set()
    assert done[0] == "test-hand"
    assert len(done) == 2
    timer.join()


def test_a_thread_that_does_not_come_is_not_waited_for(monkeypatch):
    monkeypatch.setattr("atlas_kit.llama.helping_hand.start_thread", lambda *_, **__: None)
    hand, done = HelpingHand("nobody"), []
    hand.give([Later(lambda: done.append(1)), Later(lambda: done.append(2))])
    hand.take_back()
    assert done == [1, 2]


def test_what_it_failed_with_is_said_once_to_whoever_needs_it(hand):
    later, others = Later(lambda: 1 / 0), []
    hand.give([later, Later(lambda: others.append(1))])
    hand.take_back()
    assert others == [1]
    with pytest.raises(ZeroDivisionError):
        later.require()
    later.require()


@pytest.fixture
def room(monkeypatch):
    """There are processors that a decode leaves free, whatever machine this is; one decode is for all."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setattr(StageTimes, "gains", lambda *_: False)


@pytest.mark.usefixtures("room")
def test_memories_learn_beside_the_decode(monkeypatch):
    """Several sessions at once end as each does alone, and another thread has learned for them."""
    learned_by = set()
    count = batch_module.WORTH_WAKING + 1

    class Slow(FakeEngine):
        """Leaves the other thread time to come."""

        def decode(self, feeds, *, hidden=False):
            found = super().decode(feeds, hidden=hidden)
            threading.Event().wait(0.002)
            return found

    real = AtlasSession._settled

    def settled(self, was, token):
        learned_by.add(threading.current_thread().name)
        return real(self, was, token)

    monkeypatch.setattr(AtlasSession, "_settled", settled)
    prompts = [TEXT[number:] + TEXT for number in range(count)]
    engine = Slow(n_sequences=count)
    sessions = [AtlasSession(engine, SMALL) for _ in prompts]
    with Scheduler(engine) as scheduler:
        jobs = [
            scheduler.generate(session, prompt, max_tokens=60, sampling=GREEDY)
            for session, prompt in zip(sessions, prompts, strict=True)
        ]
        found = [[token.id for token in job.result(LONG_WAIT)] for job in jobs]
    assert "atlas-hand" in learned_by
    for session, prompt, tokens in zip(sessions, prompts, found, strict=True):
        alone = AtlasSession(FakeEngine(), SMALL)
        assert [one.id for one in alone.generate(prompt, max_tokens=60, sampling=GREEDY)] == tokens
        session.learn_due()
        alone.learn_due()
        kept, wanted = arrays(session), arrays(alone)
        assert kept.keys() == wanted.keys()
        for name, array in kept.items():  # NumPy adds in an order that depends on how much is read at once
            np.testing.assert_allclose(array, wanted[name], rtol=1e-3, atol=1e-5, err_msg=name)
        assert session.counts.losses == pytest.approx(alone.counts.losses)
        assert session.counts.scored == alone.counts.scored


@pytest.mark.usefixtures("room")
@pytest.mark.parametrize("count", [1, 4])
def test_who_looks_from_outside_sees_all_that_was_said(count):
    engine = FakeEngine(n_sequences=count)
    sessions = [AtlasSession(engine, SMALL) for _ in range(count)]
    with Scheduler(engine) as scheduler:
        jobs = [scheduler.generate(one, TEXT, max_tokens=200, sampling=GREEDY) for one in sessions]

        def look():
            return [
                (one.memory.tokens_seen, one.tokens_read - 1 + len(job.tokens))
                for one, job in zip(sessions, jobs, strict=True)
                if job.tokens
            ]

        seen = []
        while not all(job.done for job in jobs):
            seen += scheduler.ask(look).result(LONG_WAIT)
        for job in jobs:
            job.result(LONG_WAIT)
    assert seen
    assert all(learned == said for learned, said in seen)


@pytest.mark.usefixtures("room")
def test_a_memory_that_fails_beside_a_decode_ends_its_own_answer():
    engine = FakeEngine(n_sequences=4)
    sessions = [AtlasSession(engine, SMALL) for _ in range(4)]
    with Scheduler(engine) as scheduler:
        for session in sessions:
            scheduler.feed(session, TEXT).result(LONG_WAIT)
        learn, calls = sessions[1].memory.learn, []

        def failing(*args, **options):
            calls.append(1)
            if len(calls) == 4:
                raise RuntimeError("no")
            return learn(*args, **options)

        sessions[1].memory.learn = failing
        jobs = [scheduler.generate(one, max_tokens=40, sampling=GREEDY) for one in sessions]
        with pytest.raises(RuntimeError, match="no"):
            jobs[1].result(LONG_WAIT)
        assert [len(jobs[number].result(LONG_WAIT)) for number in (0, 2, 3)] == [40, 40, 40]
        assert len(jobs[1].tokens) == 4  # the one that was not learned was told already
