"""Jobs on the event loop: who waits is woken up behind a step, once for all sessions."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler
from atlas_kit.server import jobs as jobs_module
from atlas_kit.server.jobs import Watched, called

SESSIONS, TOKENS = 5, 12


def test_the_loop_is_woken_up_once_behind_a_step() -> None:
    engine = FakeEngine(n_sequences=SESSIONS)
    sessions = [AtlasSession(engine, None) for _ in range(SESSIONS)]
    rung = 0

    async def main() -> list[int]:
        loop = asyncio.get_running_loop()
        wake_up: Callable[..., Any] = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal rung
            rung += 1
            return wake_up(*arguments, **options)

        loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
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
    assert 0 < rung <= engine.decodes + SESSIONS  # a job may also be done before anybody listens


def test_a_call_on_the_engine_s_thread_is_heard_of_in_every_loop() -> None:
    engine = FakeEngine()

    async def answer(session: AtlasSession, scheduler: Scheduler) -> Any:
        return await called(scheduler, session, lambda: session.position)

    with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
        assert [asyncio.run(answer(session, scheduler)) for _ in range(3)] == [0, 0, 0]


def test_tokens_that_come_quickly_are_looked_for_now_and_then(monkeypatch) -> None:
    """Only a first token and an end are told at once, so that an answer is complete however seldom anybody looks."""
    monkeypatch.setattr(jobs_module, "APART", 60.0)
    engine, rung = FakeEngine(), 0

    async def main() -> list[list[int]]:
        loop = asyncio.get_running_loop()
        wake_up: Callable[..., Any] = loop.call_soon_threadsafe

        def counted(*arguments: Any, **options: Any) -> Any:
            nonlocal rung
            rung += 1
            return wake_up(*arguments, **options)

        with AtlasSession(engine, None) as session, Scheduler(engine) as scheduler:
            loop.call_soon_threadsafe = counted  # type: ignore[method-assign]
            answers = []
            for _ in range(3):
                job = scheduler.generate(session, "abc" * 5, max_tokens=400, sampling=Sampling(temperature=0))
                watched = Watched(job, scheduler)
                answers.append([token.id async for group in watched.tokens() for token in group])
                assert answers[-1] == [token.id for token in job.tokens]
            return answers

    answers = asyncio.run(asyncio.wait_for(main(), 30))
    assert [len([token for token in answer if token >= 0]) for answer in answers] == [400] * 3
    assert rung <= 4 * len(answers)
