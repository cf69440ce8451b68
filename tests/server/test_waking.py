"""A loop is woken up by another thread that keeps the interpreter, and the file for it is closed with the last user."""

from __future__ import annotations

import asyncio
import gc
import os
import threading

import pytest

from atlas_kit.server import waking as waking_module
from atlas_kit.server.waking import waking
from tests.waiting import LONG


@pytest.fixture(params=["eventfd", "no eventfd", "no file is left"])
def opened(request, monkeypatch) -> list[int]:
    """The files that were opened to wake loops up."""
    found: list[int] = []
    if request.param == "eventfd" and hasattr(os, "eventfd"):
        make = os.eventfd

        def noted(*given: int) -> int:
            found.append(make(*given))
            return found[-1]

        monkeypatch.setattr(os, "eventfd", noted)
    elif request.param == "no eventfd":
        monkeypatch.setattr(waking_module, "_write", lambda: None)
    elif request.param == "no file is left":

        def refused(*_: int) -> int:
            raise OSError("too many open files")

        monkeypatch.setattr(os, "eventfd", refused, raising=False)
    return found


def test_a_loop_answers_on_its_own_thread_and_nothing_stays_open(opened) -> None:
    async def main() -> tuple[list[int], object]:
        answered: list[int] = []
        came = asyncio.Event()

        def answer() -> None:
            answered.append(threading.get_ident())
            came.set()

        wake_up = waking(asyncio.get_running_loop(), answer)
        for _ in range(3):
            came.clear()
            other = threading.Thread(target=wake_up)
            other.start()
            await asyncio.wait_for(came.wait(), LONG)
            other.join()
        return answered, wake_up

    answered, wake_up = asyncio.run(main())
    assert answered == [threading.get_ident()] * 3
    wake_up()  # type: ignore[operator]  # the loop is closed, and nobody hears it
    for number in opened:
        assert os.fstat(number)
    del wake_up
    gc.collect()
    for number in opened:
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(number)
