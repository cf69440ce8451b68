"""Taking turns at something: in the order in which one came, but for those whose turn is next whenever it is over."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator


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


class Passage:
    """A way that many go at once, or one alone; who came first goes first."""

    def __init__(self) -> None:
        self._inside, self._alone = 0, False
        self._waiting: deque[tuple[asyncio.Future[None], bool]] = deque()

    @contextlib.asynccontextmanager
    async def through(self, *, alone: bool = False) -> AsyncIterator[None]:
        """Go that way; ``alone``: with nobody else on it, neither those who came before nor those who come."""
        if self._waiting or not self._open(alone):
            mine: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append((mine, alone))
            try:
                await mine
            except asyncio.CancelledError:
                if mine.done() and not mine.cancelled():
                    self._leave(alone)  # it was let in, and does not want it any more
                else:
                    with contextlib.suppress(ValueError):  # it was passed over
                        self._waiting.remove((mine, alone))
                    self._let_in()
                raise
        else:
            self._enter(alone)
        try:
            yield
        finally:
            self._leave(alone)

    def _open(self, alone: bool) -> bool:
        return not self._alone and not (alone and self._inside)

    def _enter(self, alone: bool) -> None:
        self._inside, self._alone = self._inside + 1, alone

    def _leave(self, alone: bool) -> None:
        self._inside -= 1
        self._alone &= not alone
        self._let_in()

    def _let_in(self) -> None:
        while self._waiting and self._open(self._waiting[0][1]):
            one, alone = self._waiting.popleft()
            if not one.done():
                self._enter(alone)
                one.set_result(None)
