"""``heads.py``: what comes before a body is bounded, in bytes and in time."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atlas_kit.server.heads import MOST_BYTES, protocol

uvicorn = pytest.importorskip("uvicorn", reason="the packages of the server are not installed")
pytest.importorskip("httptools", reason="the packages of the server are not installed")


async def app(scope: Any, receive: Any, send: Any) -> None:
    """Answer with the number of bytes that came."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"8")]})
    await send({"type": "http.response.body", "body": b"%8d" % size})


@contextlib.asynccontextmanager
async def listening(**options: Any) -> AsyncIterator[int]:
    config = uvicorn.Config(
        app, port=0, log_config=None, access_log=False, lifespan="off", ws="none", http=protocol(**options)
    )
    server = uvicorn.Server(config)
    server.capture_signals = contextlib.nullcontext
    task = asyncio.create_task(server.serve())
    while not server.started:
        await asyncio.sleep(0.01)
    try:
        yield server.servers[0].sockets[0].getsockname()[1]
    finally:
        server.should_exit = True
        await task


async def told(port: int, *parts: bytes) -> bytes:
    """Send parts until the other side closes; return what it said."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    with contextlib.suppress(ConnectionError):
        for part in parts:
            writer.write(part)
            await writer.drain()
            await asyncio.sleep(0)
    found = b""
    with contextlib.suppress(ConnectionError):
        while piece := await asyncio.wait_for(reader.read(4096), 60):
            found += piece
    writer.close()
    return found


HEAD = b"POST / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n"


@pytest.mark.parametrize(
    "sent",
    [
        [HEAD, b"x: " + b"a" * (MOST_BYTES + 1), b"\r\n\r\n"],
        [HEAD, b"x: " + b"a" * MOST_BYTES + b"\r\n\r\n"],
        [HEAD, *(b"x%d: a\r\n" % number for number in range(MOST_BYTES // 4)), b"\r\n"],
        [b"GET /" + b"a" * (2 * MOST_BYTES) + b" HTTP/1.1\r\nhost: a\r\n\r\n"],
        [HEAD, b"x: ", *[b"a" * 100_000] * 100],  # without an end
    ],
    ids=["one", "at once", "many", "address", "endless"],
)
def test_a_head_that_is_too_large_is_refused(sent: list[bytes]) -> None:
    async def test() -> None:
        async with listening() as port:
            answer = await told(port, *sent)
            head, _, body = answer.partition(b"\r\n\r\n")
            # a system may throw the answer away with what it did not read any more
            assert not answer or head.startswith(b"HTTP/1.1 431 ")
            assert not answer or json.loads(body)["error"]["code"] == "too_large"
            assert (await told(port, HEAD + b"\r\n")).startswith(b"HTTP/1.1 200")

    asyncio.run(test())


def test_a_small_endless_head_is_told_why() -> None:
    async def test() -> None:
        async with listening() as port:
            answer = await told(port, HEAD, b"x: " + b"a" * MOST_BYTES)
            assert answer.startswith(b"HTTP/1.1 431 ")

    asyncio.run(test())


@pytest.mark.parametrize("size", [0, 10, 1_000_000])
def test_bodies_and_heads_that_are_large_enough_go_through(size: int) -> None:
    async def test() -> None:
        async with listening() as port:
            head = HEAD + b"x: " + b"a" * (MOST_BYTES - 100) + b"\r\ncontent-length: %d\r\n\r\n" % size
            for parts in ([head + b"b" * size], [head[:7], head[7:], b"b" * size]):
                answer = await told(port, *parts)
                assert answer.endswith(b"%8d" % size)

    asyncio.run(test())


def test_several_requests_of_one_connection_are_counted_each_by_itself() -> None:
    async def test() -> None:
        async with listening() as port:
            one = b"POST / HTTP/1.1\r\nhost: a\r\nx: " + b"a" * 50_000 + b"\r\ncontent-length: 3\r\n\r\nabc"
            answer = await told(port, *[one] * 4, HEAD + b"\r\n")
            assert answer.count(b"HTTP/1.1 200") == 5

    asyncio.run(test())


@pytest.mark.parametrize("sent", [b"", b"GET / HTTP/1.1\r\nhost"])
def test_who_does_not_begin_or_does_not_go_on_is_let_go(sent: bytes) -> None:
    async def test() -> None:
        async with listening(seconds=0.05) as port:
            assert await told(port, sent) == b""

    asyncio.run(test())


def test_a_head_that_came_in_time_leaves_its_body_all_the_time() -> None:
    async def test() -> None:
        async with listening(seconds=1.0) as port:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(HEAD + b"content-length: 2\r\n\r\n")
            await asyncio.sleep(1.5)
            writer.write(b"ab")
            assert (await reader.read()).endswith(b"%8d" % 2)
            writer.close()

    asyncio.run(test())
