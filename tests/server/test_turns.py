"""Taking turns."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from atlas_kit.server.turns import Turns


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
        assert await asyncio.wait_for(last, 5)
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
        assert await asyncio.wait_for(last, 5)
        turns.release()
        assert not turns.locked()

    asyncio.run(work())
