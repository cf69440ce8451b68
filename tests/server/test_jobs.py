"""Jobs on the event loop: who waits is woken up behind a step, once for all sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler
from atlas_kit.server import jobs as jobs_module
from atlas_kit.server import waking as waking_module
from atlas_kit.server.jobs import Watched, called
from tests.waiting import LONG

SESSIONS, TOKENS = 5, 12


@pytest.fixture(params=[True, False], ids=["keeping the interpreter", "by the loop"])
def counted(request, monkeypatch) -> list[None]:
    """How loops are woken up, and how often they were."""
    rung: list[None] = []
    if not request.param:
        monkeypatch.setattr(waking_module, "_write", lambda: None)

    def waking(loop: asyncio.AbstractEventLoop, answer: Callable[[], object]) -> Callable[[], None]:
        wake_up = waking_module.waking(loop, answer)

        def ring() -> None:
            rung.append(None)
            wake_up()

        return ring

    monkeypatch.setattr(jobs_module, "waking", waking)
    return rung


def test_the_loop_is_woken_up_once_behind_a_step(counted) -> None:
    engine = FakeEngine(n_sequences=SESSIONS)
    sessions = [AtlasSession(engine, None) for _ in range(SESSIONS)]

    async def main() -> list[int]:
        with Scheduler(engine) as scheduler:
            jobs = [
                Watched(
                    scheduler.generate(
                        session, "abc" * 5, max_tokens=TOKENS, sampling=Sampling(temperature=0)
                    ),
                    scheduler,
                )
                for session in sessions
            ]

            async def count(job: Watched) -> int:
                return sum([sum(token.id >= 0 for token in group) async for group in job.tokens()])

            return await asyncio.gather(*map(count, jobs))

    assert asyncio.run(main()) == [TOKENS] * SESSIONS
    assert 0 < len(counted) <= engine.decodes + SESSIONS  # a job may also be done before anybody listens


def test_a_call_on_the_engine_s_thread_is_heard_of_in_every_loop() -> None:
    engine = FakeEngine()

    async def answer(session: AtlasSession, scheduler: Scheduler) -> Any:
        return await called(scheduler, session, lambda: session.position)

    with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
        assert [asyncio.run(answer(session, scheduler)) for _ in range(3)] == [0, 0, 0]


def test_tokens_that_come_quickly_are_looked_for_now_and_then(counted, monkeypatch) -> None:
    """Only a first token and an end are told at once, so that an answer is complete however seldom anybody looks."""
    monkeypatch.setattr(jobs_module, "APART", 60.0)
    engine = FakeEngine()

    async def main() -> list[list[int]]:
        with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
            answers = []
            for _ in range(3):
                job = scheduler.generate(session, "abc" * 5, max_tokens=400, sampling=Sampling(temperature=0))
                watched = Watched(job, scheduler)
                answers.append([token.id async for group in watched.tokens() for token in group])
                assert answers[-1] == [token.id for token in job.tokens]
            return answers

    answers = asyncio.run(asyncio.wait_for(main(), LONG))
    assert [len([token for token in answer if token >= 0]) for answer in answers] == [400] * 3
    assert len(counted) <= 4 * len(answers)
