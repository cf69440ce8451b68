"""Requests and what is noted of them: each has a kind, what may come of it, and a time; knows no server.

Every answer is looked through for words that are somebody else's, and judged by what was going on meanwhile: a
server that is killed cuts connections, one that ends says 503, and a full disk is a 507 for whoever saves.
"""

from __future__ import annotations

import asyncio
import json
import socket
from array import array
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

from tools.bench._http import Answer, Exchange, RequestFailedError
from tools.soak.checks import Violations, percentiles, strangers

#: Nobody waits longer for an answer of this model, with a hundred tokens, however busy the machine is.
TIMEOUT = 240.0
#: Seconds around a fault in which its effects are still those of the fault.
SLACK = 1.0
#: This process does not need so many seconds for anything by itself.
STILL = 3.0
OK = frozenset({200})
#: How streams end, by the API's family.
ENDS: dict[str | None, tuple[str, ...]] = {
    "openai": ("data: [DONE]",),
    "anthropic": ("event: message_stop",),
    "responses": ("event: response.completed", "event: response.incomplete"),
    "native": ('"stop":true', '"stop": true'),
    None: ("",),
}


@dataclass(frozen=True)
class Ask:
    """A request, and what may come of it.

    Attributes
    ----------
    kind
        What it is called in the report.
    expect
        Statuses that are right.
    stream
        The family of its events; None: it is answered at once.
    saves
        Whether it writes into the folder of memories, which may be full.
    raw
        Bytes to send in place of a proper request.
    """

    kind: str
    path: str
    body: Any = None
    method: str = "POST"
    expect: Collection[int] = OK
    stream: str | None = None
    saves: bool = False
    raw: bytes | None = None


@dataclass
class Reply:
    """What came of a request; ``status`` 0: nothing, and ``why`` says how that went."""

    status: int
    text: str = ""
    document: Any = None
    why: str = ""


class Talk(Exchange):
    """An exchange that can be read slowly."""

    def __init__(self, request: bytes, pause: float = 0.0) -> None:
        super().__init__(request)
        self._pause = pause
        self.transport: asyncio.Transport | None = None

    @property
    def received(self) -> bytes:
        """What has come so far, head and all."""
        return bytes(self._received)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Send the request."""
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        """Take what came, and no more for a while."""
        super().data_received(data)
        if self._pause and self.transport is not None and not self.done.done():
            self.transport.pause_reading()
            asyncio.get_running_loop().call_later(self._pause, self._go_on)

    def leave(self) -> None:
        """Hang up, whatever goes on; nobody asks for the answer any more."""
        if self.done.done():
            self.done.cancelled() or self.done.exception()  # it has been looked at
        self.close()

    def _go_on(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()


def request_bytes(port: int, key: str, ask: Ask) -> bytes:
    """Return what is sent."""
    if ask.raw is not None:
        return ask.raw
    content = b"" if ask.body is None else json.dumps(ask.body).encode()
    head = (
        f"{ask.method} {ask.path} HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\nAuthorization: Bearer {key}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    )
    return head.encode() + content


@dataclass
class Fault:
    """What was done to the server, and how long its effects may be seen; ``end`` is infinite until it is over."""

    kind: str
    begin: float
    end: float = float("inf")


@dataclass
class Times:
    """What is known of one kind of request."""

    statuses: Counter[str] = field(default_factory=Counter)
    seconds: array[float] = field(default_factory=lambda: array("f"))
    first: array[float] = field(default_factory=lambda: array("f"))

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        found: dict[str, Any] = {
            "count": self.statuses.total(), "statuses": dict(sorted(self.statuses.items())),
            "seconds": percentiles(self.seconds),
        }  # fmt: skip
        return {**found, "seconds_to_first": percentiles(self.first)} if self.first else found


#: What a stream says where its server ends.
AWAY_CODES = frozenset({"unavailable", "shutting_down"})
#: Faults in which a server is away, and those in which nothing can be saved.
AWAY = frozenset({"kill", "end"})
NO_ROOM = frozenset({"full disk", "read-only folder"})


class Traffic:
    """All requests of a test, judged.

    Parameters
    ----------
    tell
        Is told of each violation at once.

    Attributes
    ----------
    owners
        Whose each canary is.
    heard
        How often a user got their own canary back: what shows that this check can see.
    """

    def __init__(self, tell: Callable[[str], None] | None = None) -> None:
        self.began = perf_counter()
        self._tell = tell
        self.violations = Violations()
        self.owners: dict[str, str] = {}
        self.kinds: dict[str, Times] = {}
        self.faults: list[Fault] = []
        self.heard = 0
        self.over = False
        #: Connections that clients have now.
        self.connected = 0
        #: How often the machine stood still, and seconds of it: nobody is to blame for what was late then.
        self.stalls, self.stalled = 0, 0.0

    def clock(self) -> float:
        """Return seconds of a clock that stands still when this process does, for everything that must be in time."""
        return perf_counter() - self.stalled

    async def beat(self) -> None:
        """Notice when this process, and so the machine, stands still."""
        while True:
            before = perf_counter()
            await asyncio.sleep(1)
            late = perf_counter() - before - 1
            if late > STILL:
                self.stalls += 1
                self.stalled += late

    def second(self) -> float:
        """Return the seconds since the start."""
        return perf_counter() - self.began

    def wrong(self, kind: str, what: str) -> None:
        """Note a violation."""
        self.violations.add(kind, what, self.second())
        if self._tell is not None:
            self._tell(f"{self.second():9.1f} s  {kind}: {what[:300]}")

    @contextmanager
    def during(self, kind: str) -> Iterator[Fault]:
        """Let requests know that something is done to the server."""
        fault = Fault(kind, perf_counter())
        self.faults.append(fault)
        try:
            yield fault
        finally:
            fault.end = perf_counter()

    def meanwhile(self, sent: float, ended: float) -> list[Fault]:
        """Return the faults whose effects a request may have seen."""
        return [one for one in self.faults if one.begin <= ended + SLACK and one.end + SLACK >= sent]

    def of(self, kind: str) -> Times:
        """Return what is known of a kind of request."""
        return self.kinds.setdefault(kind, Times())

    def judge(self, ask: Ask, reply: Reply, sent: float, ended: float, own: Collection[str]) -> None:
        """Note a request, and what is wrong with what came of it."""
        self.of(ask.kind).statuses[str(reply.status) if reply.status else reply.why] += 1
        others = strangers(reply.text, own, self.owners)
        if others:
            self.wrong("leak", f"{ask.kind}: an answer has a word in it that is {', '.join(others)}'s alone")
        self.heard += any(one in reply.text for one in own)
        if not self._is_right(ask, reply, sent, ended):
            said = reply.why or f"status {reply.status}"
            self.wrong("answer", f"{ask.kind} {ask.method} {ask.path}: {said}: {reply.text[:300]}")

    def _is_right(self, ask: Ask, reply: Reply, sent: float, ended: float) -> bool:
        faults = self.meanwhile(sent, ended)
        away = [one for one in faults if one.kind in AWAY]
        if reply.status == 507:
            return ask.saves and any(one.kind in NO_ROOM for one in faults)
        if reply.status == 503 or reply.why == "told":
            return bool(away)
        if reply.why in ("refused", "cut"):
            # one that is asked to end tells everybody who was there; who comes later may find nobody
            return any(one.kind == "kill" or sent >= one.begin - 0.1 for one in away)
        return not reply.why and reply.status in ask.expect

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON."""
        return {kind: one.to_json() for kind, one in sorted(self.kinds.items())}


async def send(
    traffic: Traffic, port: int, key: str, ask: Ask, own: Collection[str], *, pause: float = 0.0
) -> Reply:
    """Send a request, wait for what comes of it, and let it be judged."""
    sent = perf_counter()
    talk = Talk(request_bytes(port, key, ask), pause)
    answer: Answer | None = None
    why = ""
    traffic.connected += 1
    try:
        loop = asyncio.get_running_loop()
        if pause:  # a small buffer, so that the server notices
            small = socket.socket()
            small.setblocking(False)
            small.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await loop.sock_connect(small, ("127.0.0.1", port))
            await loop.create_connection(lambda: talk, sock=small)
        else:
            await loop.create_connection(lambda: talk, "127.0.0.1", port)
        answer = await _in_time(traffic, talk)
    except asyncio.TimeoutError:  # before OSError: from Python 3.11 on it is one
        why = "no answer in time"
    except OSError:
        why = "refused"
    except RequestFailedError:
        why = "cut"
    finally:
        traffic.connected -= 1
        talk.leave()
    ended = perf_counter()
    reply = (
        Reply(0, talk.received.decode("utf-8", "replace"), why=why) if answer is None else read(answer, ask)
    )
    traffic.judge(ask, reply, sent, ended, own)
    if answer is not None and not reply.why and reply.status == 200:
        times = traffic.of(ask.kind)
        times.seconds.append(ended - sent)
        if answer.arrivals:
            times.first.append(answer.arrivals[0] - sent)
    return reply


async def _in_time(traffic: Traffic, talk: Talk) -> Answer:
    began = traffic.clock()
    while (left := TIMEOUT - (traffic.clock() - began)) > 0:
        done, _ = await asyncio.wait({talk.done}, timeout=min(left, 30.0))
        if done:
            return talk.done.result()
    raise asyncio.TimeoutError


def read(answer: Answer, ask: Ask) -> Reply:
    """Return what an answer says: its document, or the last one of its events with one; and all text in it."""
    body = answer.body.decode("utf-8", "replace")
    if not answer.streamed:
        try:
            document = json.loads(body) if body else None
        except ValueError:
            document = None
        return Reply(answer.status, body, document)
    events = []
    for line in body.splitlines():
        if line.startswith("data: {"):
            try:
                events.append(json.loads(line[6:]))
            except ValueError:
                return Reply(answer.status, body, why="an event is no JSON")
    text = body + "\n" + "".join(map(piece_of, events))
    if (error := error_in(events)) is not None:
        if (
            error.get("type") == "invalid_request_error"
            and 400 in ask.expect
            and not any(map(piece_of, events))
        ):
            return Reply(400, text)  # while it waited for its turn, a sign of life had begun the stream
        away = error.get("code") in AWAY_CODES or error.get("type") == "overloaded_error"
        return Reply(answer.status, text, why="told" if away else "an event tells of an error")
    ended = any(one in body for one in ENDS[ask.stream])
    document = next((one for one in reversed(events) if "atlas" in one or "response" in one), None)
    return Reply(answer.status, text, document, "" if ended else "a stream has no end")


def error_in(events: Collection[dict[str, Any]]) -> dict[str, Any] | None:
    """Return what the events of a stream say that went wrong."""
    for event in events:
        for place in (event, event.get("response")):
            if isinstance(place, dict) and isinstance(place.get("error"), dict):
                found: dict[str, Any] = place["error"]
                return found
        if event.get("type") == "error":
            return event
    return None


def piece_of(event: dict[str, Any]) -> str:
    """Return the text in an event of any family, so that words are whole that several events bring."""
    choice: Any = next(iter(event.get("choices") or []), {})
    delta = choice.get("delta") or event.get("delta") or {}
    if isinstance(delta, str):
        return delta
    found = choice.get("text") or delta.get("content") or delta.get("text") or event.get("content") or ""
    return found if isinstance(found, str) else ""
