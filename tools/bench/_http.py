"""A client that asks a server for streams and notes when their parts come; knows no server.

Client and server share the processors here, so what the client costs is missing to both servers, and weighs more on
the faster one: 20 us for a token, where httpx takes 80 and a server of a small model 400. It keeps bytes and times, and
takes apart what was received after the end. A request is a connection, as with most programs that use such a server.
"""

from __future__ import annotations

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

#: A token of a billion weights takes longer than this with busy neighbours, but not a whole request.
TIMEOUT = 900.0


class RequestFailedError(Exception):
    """A server that did not do what it was asked for."""


@dataclass
class Answer:
    """What came back: all times are those of ``time.perf_counter``, in seconds.

    ``first`` is the moment of the first visible text; ``arrivals`` are those of everything that had an event in it.
    """

    sent: float
    status: int = 0
    streamed: bool = False
    body: bytes = b""
    first: float = float("nan")
    ended: float = float("nan")
    arrivals: list[float] = field(default_factory=list)

    def json(self) -> Any:
        """Return the body as JSON."""
        return json.loads(self.body)

    def events(self) -> list[dict[str, Any]]:
        """Return the events of a stream, without the mark at its end.

        Raises
        ------
        RequestFailedError
            The stream was cut, or the server says in it that it failed.
        """
        data = [line[6:] for line in self.body.splitlines() if line.startswith(b"data: ")]
        if not data or data[-1].strip() != b"[DONE]":
            raise RequestFailedError(f"a stream has no end: {self.body[-200:]!r}")
        found = [json.loads(line) for line in data[:-1]]
        for event in found:
            if "error" in event:
                raise RequestFailedError(f"a stream failed: {event['error']}")
        return found

    def usage(self) -> dict[str, Any]:
        """Return the usage that the last event of a stream tells, or the whole answer."""
        documents = self.events() if self.streamed else [self.json()]
        found: dict[str, Any] | None = next(
            (event["usage"] for event in reversed(documents) if event.get("usage")), None
        )
        if found is None:
            raise RequestFailedError("an answer tells no usage")
        return found

    def text(self) -> str:
        """Return the text of a stream's first choice."""
        return "".join(map(text_of, self.events()))


def text_of(event: dict[str, Any]) -> str:
    """Return the text in one event, of a completion or a chat."""
    choice: dict[str, Any] = next(iter(event.get("choices") or []), {})
    delta = choice.get("delta") or {}
    return choice.get("text") or delta.get("content") or delta.get("reasoning_content") or ""


def unchunked(data: bytes) -> bytes:
    """Return what a body in chunks says."""
    parts: list[bytes] = []
    at = 0
    while True:
        end = data.index(b"\r\n", at)
        size = int(data[at:end].partition(b";")[0], 16)
        if not size:
            return b"".join(parts)
        parts.append(data[end + 2 : end + 2 + size])
        at = end + 2 + size + 2


class Exchange(asyncio.Protocol):
    """One request on a connection of its own; ``await done`` for its ``Answer``."""

    def __init__(self, request: bytes) -> None:
        self._request = request
        self._received = bytearray()
        self._body = -1  # where it begins
        self._looked = 0  # how far a first text was looked for
        self._transport: asyncio.Transport | None = None
        self._expected: int | None = None  # bytes of head and body
        self._chunked = False
        self.answer = Answer(time.perf_counter())
        self.done: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        """Note when something came, and whether it was the last."""
        now = time.perf_counter()
        received, answer = self._received, self.answer
        received += data
        if self._body < 0:
            self._read_head()
        if answer.streamed and b"data: " in data:
            answer.arrivals.append(now)
            if answer.first != answer.first:
                self._look_for_text(now)
        if self._chunked:
            if data.endswith(b"\r\n0\r\n\r\n") or received.endswith(b"\r\n0\r\n\r\n"):
                self._finish(now)
        elif self._expected is not None and len(received) >= self._expected:
            self._finish(now)

    def connection_lost(self, error: Exception | None) -> None:
        """Take the end of the connection for the end of the answer, where the head says no other."""
        if self.done.done():
            return
        if self._body >= 0 and not self._chunked and self._expected is None and error is None:
            self._finish(time.perf_counter())
        else:
            self.done.set_exception(RequestFailedError(f"a connection was cut: {error or 'by the server'}"))

    def close(self) -> None:
        """Hang up, as a client that has seen enough."""
        if self._transport is not None:
            self._transport.abort()
        self.done.cancel()

    def _read_head(self) -> None:
        end = self._received.find(b"\r\n\r\n")
        if end < 0:
            return
        self._body = self._looked = end + 4
        first, *lines = self._received[:end].decode("latin-1").split("\r\n")
        self.answer.status = int(first.split()[1])
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self._chunked = headers.get("transfer-encoding", "").lower() == "chunked"
        self.answer.streamed = headers.get("content-type", "").startswith("text/event-stream")
        if "content-length" in headers:
            self._expected = self._body + int(headers["content-length"])

    def _look_for_text(self, now: float) -> None:
        end = self._received.rfind(b"\n") + 1
        part = bytes(self._received[self._looked : max(end, self._looked)])
        for line in part.splitlines():
            if line.startswith(b"data: {"):
                try:
                    event = json.loads(line[6:])
                except ValueError:  # a frame's border inside of an event
                    continue
                if text_of(event):
                    self.answer.first = now
                    return
        self._looked += len(part)

    def _finish(self, now: float) -> None:
        self.answer.ended = now
        body = bytes(self._received[self._body :])
        self.answer.body = unchunked(body) if self._chunked else body
        if self._transport is not None:
            self._transport.close()
        if not self.done.done():
            self.done.set_result(self.answer)


def request(port: int, method: str, path: str, body: Any = None) -> bytes:
    """Return a request's bytes; a body is sent as JSON."""
    content = b"" if body is None else json.dumps(body).encode()
    head = (
        f"{method} {path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nContent-Type: application/json\r\n"
        f"Content-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


async def begin(port: int, path: str, body: Any = None, method: str = "POST") -> Exchange:
    """Connect and send; return the exchange that goes on by itself."""
    sending = request(port, method, path, body)
    _, exchange = await asyncio.get_running_loop().create_connection(
        lambda: Exchange(sending), "127.0.0.1", port
    )
    return exchange


async def ask(port: int, path: str, body: Any = None, method: str = "POST") -> Answer:
    """Send a request and wait for the whole answer.

    Raises
    ------
    RequestFailedError
        The status is not 200, the connection was cut, or nothing came in a quarter of an hour.
    """
    try:
        exchange = await begin(port, path, body, method)
        answer = await asyncio.wait_for(exchange.done, TIMEOUT)
    except (OSError, asyncio.TimeoutError) as error:
        raise RequestFailedError(f"{method} {path}: {type(error).__name__} {error}") from error
    if answer.status != 200:
        said = answer.body[:300].decode(errors="replace")
        raise RequestFailedError(f"{method} {path}: status {answer.status}, {said}")
    return answer
