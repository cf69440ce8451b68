"""Taking turns."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from atlas_kit.server.turns import Passage, Turns
from tests.waiting import LONG


async def some_steps() -> None:
    for _ in range(5):
        await asyncio.sleep(0)


def test_who_comes_first_is_first_but_for_those_who_need_not_queue() -> None:
    async def work() -> list[str]:
        turns, found = Turns(), list[str]()

        async def one(name: str, first: bool) -> None:
            await turns.acquire(first=first)
            found.append(name)
            await asyncio.sleep(0)
            turns.release()

        async with turns:
            tasks = [asyncio.ensure_future(one(name, name == "c")) for name in "abcd"]
            await some_steps()
            assert found == []
        await asyncio.gather(*tasks)
        assert not turns.locked()
        return found

    assert asyncio.run(work()) == ["c", "a", "b", "d"]


@pytest.mark.parametrize("given", [False, True])
def test_who_goes_away_while_waiting_keeps_nobody_else_waiting(given: bool) -> None:
    async def work() -> None:
        turns = Turns()
        await turns.acquire()
        gone = asyncio.ensure_future(turns.acquire())
        last = asyncio.ensure_future(turns.acquire())
        await some_steps()
        if given:
            turns.release()  # it is given to who is cancelled in the same step
        gone.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await gone
        if not given:
            turns.release()
        assert await asyncio.wait_for(last, LONG)
        turns.release()
        assert not turns.locked()

    asyncio.run(work())


def test_a_turn_is_given_back_once() -> None:
    with pytest.raises(RuntimeError, match="nobody's turn"):
        Turns().release()


def test_who_goes_away_as_a_turn_ends_is_passed_over() -> None:
    async def work() -> None:
        turns = Turns()
        await turns.acquire()
        gone = asyncio.ensure_future(turns.acquire())
        last = asyncio.ensure_future(turns.acquire())
        await some_steps()
        gone.cancel()
        turns.release()  # before who was cancelled has got to know of it
        with pytest.raises(asyncio.CancelledError):
            await gone
        assert await asyncio.wait_for(last, LONG)
        turns.release()
        assert not turns.locked()

    asyncio.run(work())


def test_many_pass_at_once_or_one_alone_in_the_order_in_which_they_came() -> None:
    async def work() -> list[str]:
        passage, found = Passage(), list[str]()
        inside = set[str]()

        async def one(name: str) -> None:
            async with passage.through(alone=name.isupper()):
                inside.add(name)
                found.append("".join(sorted(inside)))
                await some_steps()
                inside.discard(name)

        tasks = [asyncio.ensure_future(one(name)) for name in "abCdeFG"]
        await asyncio.gather(*tasks)
        async with passage.through(alone=True):
            pass
        return found

    assert asyncio.run(work()) == ["a", "ab", "C", "d", "de", "F", "G"]


@pytest.mark.parametrize("given", [False, True])
def test_who_gives_up_before_passing_lets_the_next_pass(given: bool) -> None:
    async def work() -> None:
        passage = Passage()

        async def one(alone: bool) -> None:
            async with passage.through(alone=alone):
                pass

        async with passage.through():
            leaves = asyncio.ensure_future(one(True))
            behind = asyncio.ensure_future(one(False))
            await some_steps()
            assert not behind.done()
            if not given:
                leaves.cancel()
                await some_steps()
                assert behind.done()
        if given:
            leaves.cancel()  # in the moment in which it is let in
        await asyncio.wait({leaves, behind}, timeout=LONG)
        assert behind.done()
        assert leaves.cancelled()
        await asyncio.wait_for(one(True), LONG)

    asyncio.run(work())
