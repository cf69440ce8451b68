"""While nobody asks, the model's weights and contexts may leave main memory; the next request brings them back."""

from __future__ import annotations

import asyncio
import logging
import time
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.heap import give_back

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.server.conversations import Conversations

log = logging.getLogger("atlas_kit.server")
#: Requests that need no model, and do not count as work: whoever only looks on wakes nobody up.
LOOKING_ON = frozenset({"GET", "HEAD", "OPTIONS"})
#: Seconds between two looks at whether anybody has asked.
LOOK_SECONDS = 0.2


class Sleeper(Protocol):
    """What is seen of a service here."""

    conversations: Conversations
    scheduler: Scheduler
    engine: Engine
    ready: bool
    stopping: bool
    sleep: Sleep


class Sleep:
    """Knows when somebody asked last, lets the model go and brings it back.

    Parameters
    ----------
    service
        Whose model it is.
    seconds
        Without a request, after which it goes; negative: never.
    """

    def __init__(self, service: Sleeper, seconds: float) -> None:
        self._service, self._seconds = service, seconds
        self._goes = False
        self._asking, self._last = 0, time.monotonic()
        self._turn = asyncio.Lock()
        self._watching: asyncio.Task[None] | None = None

    @property
    def sleeping(self) -> bool:
        """Whether the model is gone, or going: who comes now has to bring it back."""
        engine: Engine | None = getattr(self._service, "engine", None)  # none is there until it is loaded
        return self._goes or (engine is not None and engine.asleep)

    def begin(self) -> None:
        """Begin to look at whether anybody asks."""
        self._last = time.monotonic()
        if self._seconds >= 0:
            self._watching = asyncio.create_task(self._watch())

    async def end(self) -> None:
        """Look no more."""
        if self._watching is not None:
            self._watching.cancel()
            await asyncio.wait({self._watching})

    async def __aenter__(self) -> None:
        self._asking += 1
        try:
            if self.sleeping:
                async with self._turn:
                    if self.sleeping:
                        await self._wake()
        except BaseException:  # whoever is refused does not ask any more
            await self.__aexit__()
            raise

    async def __aexit__(self, *_: object) -> None:
        self._asking -= 1
        self._last = time.monotonic()

    @property
    def last(self) -> float:
        """When somebody asked last, on the monotonic clock."""
        return time.monotonic() if self._asking else self._last

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS)
            if not self.sleeping and self._is_idle():
                async with self._turn:
                    try:
                        await self._fall_asleep()
                    except Exception:  # the next time is another try
                        log.exception("the model could not be let go")
                        self._last = time.monotonic()

    def _is_idle(self) -> bool:
        conversations = self._service.conversations
        at_work = self._asking or conversations.waiting or conversations.under_way or self._service.stopping
        return not at_work and time.monotonic() - self._last >= self._seconds

    async def _fall_asleep(self) -> None:
        await self._service.conversations.rest()
        if self._is_idle():  # nobody has come meanwhile
            self._goes = True  # from now on: who comes while it goes waits, and brings it back
            try:
                await asyncio.wrap_future(self._service.scheduler.ask(self._service.engine.sleep))
            finally:
                self._goes = False
            await asyncio.to_thread(give_back)
            log.info("nobody asks: the model leaves main memory until somebody does")

    async def _wake(self) -> None:
        began = time.monotonic()
        await asyncio.wrap_future(self._service.scheduler.ask(self._service.engine.wake))
        log.info("the model is back after %.1f s", time.monotonic() - began)


class Awake:
    """Brings the model back before a request that needs it; plain ASGI, so that streams go through untouched."""

    def __init__(self, app: Any, service: Sleeper) -> None:
        self._app, self._service = app, service

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through."""
        if scope["type"] != "http" or scope["method"] in LOOKING_ON or not self._service.ready:
            await self._app(scope, receive, send)
            return
        async with self._service.sleep:
            await self._app(scope, receive, send)
