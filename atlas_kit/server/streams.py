"""Answers as they come: server-sent events, and answers in one piece that end when the client goes away."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable
from json.encoder import encode_basestring
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_kit.server.problems import problem_of

if TYPE_CHECKING:
    from fastapi import Request
    from starlette.responses import Response

    from atlas_kit.server.problems import ApiError

log = logging.getLogger("atlas_kit.server")
T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
#: What says nothing but that the server is there.
COMMENT = b":\n\n"


class ClientGoneError(Exception):
    """The client closed the connection: nobody waits for the answer."""


def written(data: Any) -> str:
    """Return data as JSON; numbers that JSON has no word for are null."""
    try:
        return json.dumps(data, ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    except ValueError:
        finite = json.loads(json.dumps(data), parse_constant=lambda _: None)
        return json.dumps(finite, ensure_ascii=False, separators=(",", ":"))


def event(data: Any, name: str | None = None) -> bytes:
    """Return an event with JSON in it."""
    text = written(data)
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {text}\n\n".encode("utf-8", "replace")


#: Stands in an event for a text that follows.
GAP = "\0"


class Events:
    """Writes the events of a stream that differ in one text only: all around it is written once."""

    def __init__(self, data: Any) -> None:
        """Take the event's data, with ``GAP`` in the place of the text."""
        self._before, self._behind = event(data).split(b'"\\u0000"')

    def __call__(self, text: str) -> bytes:
        """Return the event with a text in it."""
        return self._before + encode_basestring(text).encode("utf-8", "replace") + self._behind


def told(error: BaseException) -> ApiError:
    """Return what a client is told; what nobody expected is written to the log."""
    problem = problem_of(error)
    if problem.status >= 500 and problem.code == "internal_error":
        log.error("an unexpected error", exc_info=error)
    return problem


#: What every stream is sent with.
STREAM_HEADERS = {"cache-control": "no-cache", "x-accel-buffering": "no"}
STREAM_TYPE = "text/event-stream"


async def streamed(events: AsyncIterator[bytes], *, anthropic: bool = False) -> Response:
    """Return a response that sends events, once the first is there; see ``begun``."""
    from starlette.responses import StreamingResponse

    body = await begun(events, anthropic=anthropic)

    class Closing(StreamingResponse):
        """Ends the work as soon as the client goes away, also where it was just sent something."""

        async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
            await send_while_wanted(self.stream_response(send), body, receive)

    return Closing(body, media_type=STREAM_TYPE, headers=STREAM_HEADERS)


async def begun(events: AsyncIterator[bytes], *, anthropic: bool = False) -> AsyncGenerator[bytes, None]:
    """Return events, of which the first is there.

    It is waited for, so that what is wrong with a request is an error with its own status; later ones that
    fail end the stream with an event that says so.
    """
    try:
        first = await anext(events)
    except BaseException:
        await _close(events)
        raise

    async def whole() -> AsyncGenerator[bytes, None]:
        try:
            yield first
            async for one in events:
                yield one
        except Exception as error:
            problem = told(error)
            yield event(problem.anthropic(), "error") if anthropic else event(problem.openai())
        finally:
            await _close(events)

    return whole()


async def ahead(steps: AsyncGenerator[T, None]) -> AsyncGenerator[T, None]:
    """Yield what something yields that goes on however slowly that is taken; closing this early ends it.

    For work that keeps others waiting until it is done: a client that reads slowly is none of their business.
    """
    came: asyncio.Queue[T | None] = asyncio.Queue()

    async def work() -> None:
        async with contextlib.aclosing(steps):
            async for one in steps:
                came.put_nowait(one)

    task = asyncio.create_task(work())
    task.add_done_callback(lambda _: came.put_nowait(None))
    try:
        while (one := await came.get()) is not None:
            yield one
        task.result()
    finally:
        if not task.done():
            task.cancel()
            await asyncio.wait({task})
        if not task.cancelled():
            task.exception()  # it has been looked at


async def send_while_wanted(work: Awaitable[None], body: AsyncGenerator[bytes, None], receive: Any) -> None:
    """Carry out what sends a body, and end the body's work as soon as the client goes away."""
    sending = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({sending, gone}, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            sending.result()
    finally:
        sending.cancel()
        gone.cancel()
        await asyncio.gather(sending, gone, return_exceptions=True)
        await body.aclose()


async def _close(events: AsyncIterator[bytes]) -> None:
    close = getattr(events, "aclose", None)
    if close is not None:
        await close()


async def kept_awake(
    events: AsyncIterator[bytes], sign: bytes, seconds: float = 10.0
) -> AsyncIterator[bytes]:
    """Yield events, and a sign of life wherever none comes for so long: a long prompt takes its time."""
    waiting: asyncio.Task[bytes] | None = None
    try:
        while True:
            waiting = waiting or asyncio.ensure_future(anext(events))
            done, _ = await asyncio.wait({waiting}, timeout=seconds)
            if not done:
                yield sign
                continue
            one, waiting = waiting, None
            try:
                found = one.result()
            except StopAsyncIteration:
                return
            yield found
    finally:
        if waiting is not None:
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        close = getattr(events, "aclose", None)
        if close is not None:
            await close()


async def begun_awake(events: AsyncIterator[bytes], seconds: float) -> AsyncIterator[bytes]:
    """Yield events, and comments until the first comes: proxies cut what is silent for long; 0 or less: none.

    Behind the first there is no silence of that length, and nothing is spent on watching for it.
    """
    waiting = asyncio.ensure_future(anext(events))
    try:
        while not (await asyncio.wait({waiting}, timeout=seconds if seconds > 0 else None))[0]:
            yield COMMENT
        try:
            first = waiting.result()
        except StopAsyncIteration:
            return
        yield first
        async for one in events:
            yield one
    finally:
        if not waiting.done():
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
        await _close(events)


async def unless_gone(request: Request, work: Awaitable[T]) -> T:
    """Wait for an answer in one piece; where the client goes away first, the work is cancelled.

    Raises
    ------
    ClientGoneError
        It went.
    """
    return await while_wanted(request.receive, work)


async def while_wanted(receive: Any, work: Awaitable[T]) -> T:
    """Do as ``unless_gone`` does, with what a request is received by."""
    task = asyncio.ensure_future(work)
    gone = asyncio.ensure_future(_gone(receive))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            return task.result()
        raise ClientGoneError
    finally:
        gone.cancel()
        if not task.done():
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
        elif not task.cancelled():
            task.exception()  # it has been looked at, also where nobody waits any more


async def _gone(receive: Any) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
