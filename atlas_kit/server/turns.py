"""Taking turns at something: in the order in which one came, but for those whose turn is next whenever it is over."""

from __future__ import annotations

import asyncio
from collections import deque


class Turns:
    """A lock like ``asyncio.Lock``, which hands itself on to who waits."""

    def __init__(self) -> None:
        self._held = False
        self._waiting: deque[asyncio.Future[None]] = deque()

    def locked(self) -> bool:
        """Tell whether it is somebody's turn."""
        return self._held

    async def acquire(self, *, first: bool = False) -> bool:
        """Wait for one's turn; ``first``: before all who wait by now."""
        if not self._held:
            self._held = True
            return True
        mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        (self._waiting.appendleft if first else self._waiting.append)(mine)
        try:
            await mine
        except asyncio.CancelledError:
            if mine.done() and not mine.cancelled():
                self.release()  # it was given to who does not want it any more
            elif mine in self._waiting:  # else somebody's turn ended meanwhile, and this one was passed over
                self._waiting.remove(mine)
            raise
        return True

    def release(self) -> None:
        """Let it be the next one's turn."""
        if not self._held:
            raise RuntimeError("it is nobody's turn")
        while self._waiting:
            one = self._waiting.popleft()
            if not one.done():
                one.set_result(None)
                return
        self._held = False

    async def __aenter__(self) -> None:
        await self.acquire()

    async def __aexit__(self, *_: object) -> None:
        self.release()
