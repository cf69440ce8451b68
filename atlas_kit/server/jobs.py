"""From the scheduler's threads to the event loop: waiting for a job, and reading its tokens as they come."""

from __future__ import annotations

import asyncio
import itertools
import math
import operator
from collections import deque
from collections.abc import AsyncGenerator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakKeyDictionary

from atlas_kit.server.waking import waking

if TYPE_CHECKING:
    from atlas_kit.llama.batch import Job
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.llama.steps import Token

T = TypeVar("T")
#: Seconds between two looks at what is new, while it comes more often than that. A small model makes a token in a
#: millisecond, and the loop takes a sixth of that to send it: several together take as long as one, and so many a
#: second no screen shows.
APART = 0.015

_numbers = itertools.count()
_number = operator.attrgetter("number")


class Watched:
    """A job as the event loop sees it; made and used on the loop's thread.

    ``changed`` is set whenever there are new tokens, and when the job is done.
    """

    def __init__(self, job: Job, scheduler: Scheduler, changed: asyncio.Event | None = None) -> None:
        self.job, self._scheduler = job, scheduler
        self._loop = asyncio.get_running_loop()
        self.number = next(_numbers)
        self._changed = asyncio.Event() if changed is None else changed
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._told = self._begun = False
        self._bell = _bell_of(scheduler, self._loop)
        job.listen(self._hear)

    def _hear(self, job: Job) -> None:
        """Have the loop woken up, on the thread that does the work: once, however many tokens have come."""
        if job.done or not self._begun:
            self._begun = self._bell.pressing = True
        if not self._told:
            self._told = True
            self._bell.fresh.append(self)
        if not self._scheduler.in_step:
            self._bell.ring()

    def wake(self) -> None:
        """Tell who waits that something has come."""
        self._told = False  # first: what comes from now on is told anew
        self._changed.set()
        if self.job.done and not self._ended.done():
            self._ended.set_result(None)

    def cancel(self) -> None:
        """End it within a step."""
        self._scheduler.cancel(self.job)

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens that came since, until the job is done; raise what it failed with.

        Who stops listening before the end cancels the job.
        """
        at = 0
        try:
            while True:
                done = self.job.done
                fresh = self.job.tokens[at:]
                if fresh:
                    at += len(fresh)
                    yield fresh
                elif done:
                    break
                else:
                    await self._changed.wait()
                    self._changed.clear()
        finally:
            if not self.job.done:
                self.cancel()
        if self.job.error is not None:
            raise self.job.error

    async def end(self) -> Any:
        """Wait until the job has ended, and return its value; who stops waiting cancels it."""
        try:
            await self.over()
        finally:
            if not self.job.done:
                self.cancel()
        if self.job.error is not None:
            raise self.job.error
        return self.job.value

    async def over(self) -> None:
        """Wait until nothing of the job is under way any more, also after it was cancelled."""
        if not self.job.done:
            await asyncio.shield(self._ended)


class _Bell:
    """Wakes a loop up, for all jobs at once that have something new.

    Woken at each token, the loop would take the interpreter's lock from the engine's thread, which still has the
    others' to choose. Where it was woken twice within ``APART``, it looks by itself every so often from then on, until
    nothing has come. A job's first token and its end do not wait for that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.loop = loop
        self.fresh: deque[Watched] = deque()
        #: Whether some of it is not to wait.
        self.pressing = False
        self._rung = self._looks = False  # whether the loop will answer; whether by itself
        self._looking: asyncio.TimerHandle | None = None
        self._answered = -math.inf
        self._wake_up = waking(loop, self._answer)

    def ring(self) -> None:
        """Wake the loop up, where there is something and it has not been told yet."""
        if not self.fresh or (self._rung and not (self._looks and self.pressing)):
            return
        self._looks, self._rung = False, True
        self._wake_up()

    def _answer(self) -> None:
        if self._looking is not None:
            self._looking.cancel()
            self._looking = None
        looked, self._rung = self._looks, False  # first: what comes from now on is told anew
        self._looks = self.pressing = False
        if not self.fresh:
            return
        fresh = []
        while self.fresh:
            fresh.append(self.fresh.popleft())
        for one in sorted(
            fresh, key=_number
        ):  # who was there first is told first, however they came to have something
            one.wake()
        before, self._answered = self._answered, self.loop.time()
        if looked or self._answered - before < APART:
            self._looks = self._rung = True
            self._looking = self.loop.call_later(APART, self._answer)


_bells: WeakKeyDictionary[Scheduler, _Bell] = WeakKeyDictionary()


def _bell_of(scheduler: Scheduler, loop: asyncio.AbstractEventLoop) -> _Bell:
    """Return what wakes a loop up behind each step of a scheduler."""
    found = _bells.get(scheduler)
    if found is None or found.loop is not loop:
        found = _bells[scheduler] = _Bell(loop)
        scheduler.after_step(found.ring)
    return found


async def finished(work: Awaitable[T]) -> T:
    """Carry work to its end, also where whoever waits is cancelled, which it hears of afterwards."""
    task = asyncio.ensure_future(work)
    cancelled: asyncio.CancelledError | None = None
    while not task.done():
        try:
            await asyncio.wait({task})
        except asyncio.CancelledError as error:
            cancelled = error
    if cancelled is not None:
        if not task.cancelled():
            task.exception()  # it has been looked at: nobody else will
        raise cancelled
    return task.result()


async def called(scheduler: Scheduler, session: Any, function: Callable[[], Any]) -> Any:
    """Call a function on the engine's thread when the session has no other work; return its value.

    It is carried out, and waited for, also where whoever asks is cancelled.
    """
    watched = Watched(scheduler.call(session, function), scheduler)
    await finished(watched.over())
    if watched.job.error is not None:
        raise watched.job.error
    return watched.job.value
