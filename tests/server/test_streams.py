"""Streams of events: signs of life while nothing comes, and what becomes of the work when nobody listens."""

from __future__ import annotations

import asyncio
import contextlib
import gc
from collections.abc import AsyncGenerator
from typing import Any

import pytest

from atlas_kit.server.streams import COMMENT, ahead, begun_awake, while_wanted


class Events:
    """Three events, of which the first comes when it is let."""

    def __init__(self) -> None:
        self.let, self.closed = asyncio.Event(), False

    async def all(self) -> AsyncGenerator[bytes, None]:
        try:
            await self.let.wait()
            for number in range(3):
                yield str(number).encode()
        finally:
            self.closed = True


@pytest.mark.parametrize("seconds", [0.001, 0, -1])
def test_a_stream_that_has_not_begun_gives_signs_of_life(seconds: float) -> None:
    async def run() -> list[bytes]:
        events, found = Events(), []
        if seconds <= 0:
            events.let.set()
        async for one in begun_awake(events.all(), seconds):
            found.append(one)
            if found == [COMMENT, COMMENT]:
                events.let.set()
        assert events.closed
        return found

    found = asyncio.run(run())
    signs = [one for one in found if one == COMMENT]
    assert found[len(signs) :] == [b"0", b"1", b"2"]
    assert len(signs) >= 2 if seconds > 0 else not signs


@pytest.mark.parametrize("begun", [False, True])
def test_whoever_stops_listening_ends_the_work(begun: bool) -> None:
    async def run() -> None:
        events = Events()
        if begun:
            events.let.set()
        awake = begun_awake(events.all(), 0.001)
        assert await anext(awake) == (b"0" if begun else COMMENT)
        await awake.aclose()
        assert events.closed

    asyncio.run(run())


def test_what_fails_before_the_first_event_is_raised() -> None:
    async def fails() -> AsyncGenerator[bytes, None]:
        raise ValueError("no")
        yield b""

    async def nothing() -> AsyncGenerator[bytes, None]:
        return
        yield b""

    async def run() -> None:
        with pytest.raises(ValueError, match="no"):
            await anext(begun_awake(fails(), 1))
        assert [one async for one in begun_awake(nothing(), 1)] == []

    asyncio.run(run())


@pytest.mark.parametrize("steps", range(1, 5))
def test_what_fails_as_its_client_goes_is_nobodys_trouble(steps: int) -> None:
    told: list[Any] = []

    async def test() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))

        async def fail() -> None:
            raise ValueError

        async def stay() -> dict[str, str]:
            await asyncio.sleep(60)
            return {"type": "http.disconnect"}

        waiting = asyncio.ensure_future(while_wanted(stay, fail()))
        for _ in range(steps):
            await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        gc.collect()

    asyncio.run(test())
    assert told == []


def test_work_goes_on_ahead_of_who_takes_it() -> None:
    done = list[str]()

    async def steps() -> AsyncGenerator[int, None]:
        try:
            for number in range(5):
                yield number
                await asyncio.sleep(0)
            done.append("whole")
        finally:
            done.append("closed")

    async def whole() -> None:
        async with contextlib.aclosing(ahead(steps())) as taken:
            assert await anext(taken) == 0
            while len(done) < 2:  # nobody takes the next one
                await asyncio.sleep(0)
            assert [one async for one in taken] == [1, 2, 3, 4]

    asyncio.run(whole())
    assert done == ["whole", "closed"]


def test_who_closes_what_goes_on_ahead_ends_it() -> None:
    done = list[str]()

    async def steps() -> AsyncGenerator[int, None]:
        try:
            yield 1
            await asyncio.Event().wait()
        finally:
            done.append("closed")

    async def early() -> None:
        async with contextlib.aclosing(ahead(steps())) as taken:
            assert await anext(taken) == 1
        assert done == ["closed"]

    asyncio.run(early())


def test_what_goes_wrong_ahead_is_raised_behind_what_came() -> None:
    async def steps() -> AsyncGenerator[int, None]:
        yield 1
        raise ValueError("no")

    async def failing() -> None:
        taken = ahead(steps())
        assert await anext(taken) == 1
        with pytest.raises(ValueError, match="no"):
            await anext(taken)

    asyncio.run(failing())
