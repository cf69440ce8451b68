"""What answers the first requests, while the application that answers all of them is not there yet.

FastAPI and pydantic take as long to be imported as a small model takes to be loaded. A plain request for a
completion or a chat, or whether the server is well, needs neither: it is answered here by the very functions that the
application calls. Everything else waits until the application is there, and from then on it gets all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from atlas_kit.server.asgi import asks_anthropic
from atlas_kit.server.streams import (
    STREAM_HEADERS,
    STREAM_TYPE,
    ClientGoneError,
    begun,
    send_while_wanted,
    told,
    while_wanted,
    written,
)

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from atlas_kit.server.light_requests import Light
    from atlas_kit.server.service import Service

Scope = Any
Receive = Any
Send = Any
#: Paths that ask whether the server is well.
HEALTH = frozenset({"/health", "/v1/health", "/ready"})
#: The models of requests at the paths that are answered here.
MODELS = {
    "/v1/completions": "CompletionRequest",
    "/v1/chat/completions": "ChatRequest",
    "/chat/completions": "ChatRequest",
}


class First:
    """Answers plain requests until the application is there, and lets it answer the others.

    Parameters
    ----------
    service
        What does the work.
    build
        Makes the application; it is called once, on a thread of its own.
    """

    def __init__(self, service: Service, build: Callable[[], Any]) -> None:
        self._service, self._build = service, build
        self._app: Any = None
        self._building: asyncio.Task[Any] | None = None

    async def whole(self) -> Any:
        """Return the application, once it is there."""
        if self._app is None:
            if self._building is None:
                self._building = asyncio.ensure_future(asyncio.to_thread(self._build))
            self._app = await asyncio.shield(self._building)
        return self._app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request, or let the application do it."""
        if self._app is None and scope["type"] == "http":
            if scope["path"] in HEALTH and scope["method"] == "GET":
                await self._answer(self._health(), scope, send)
                return
            if scope["path"] in MODELS and scope["method"] == "POST":
                body = _Body(receive)
                if (asked := await self._read(scope, body)) is not None:
                    await self._answer(self._generate(scope, asked, body, send), scope, send)
                    return
                receive = body.again
        await self._pass_on(scope, receive, send)

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        ended = False

        async def watched(message: dict[str, Any]) -> None:
            nonlocal ended
            await send(message)
            ended = message["type"] == "http.response.body" and not message.get("more_body", False)

        try:
            await (await self.whole())(scope, receive, watched)
        except Exception:
            if not ended:  # else the application has told the client and the log of it
                raise

    async def _read(self, scope: Scope, body: _Body) -> Light | None:
        from atlas_kit.server.light_requests import MOST_BYTES, read

        if not await body.complete(MOST_BYTES):
            return None
        return read(MODELS[scope["path"]], bytes(body.data))

    async def _answer(self, work: Awaitable[dict[str, Any] | None], scope: Scope, send: Send) -> None:
        """Send what work gives as JSON, unless it has sent something itself."""
        headers: dict[str, str] = {}
        try:
            found, status = await work, 200
        except ClientGoneError:
            found, status = {}, 499  # nobody reads it
        except Exception as error:
            problem = told(error)
            found = problem.anthropic() if asks_anthropic(scope) else problem.openai()
            status, headers = problem.status, dict(problem.headers)
        if found is not None:
            data = written(found).encode("utf-8", "replace")
            headers = {**headers, "content-length": str(len(data)), "content-type": "application/json"}
            await send({"type": "http.response.start", "status": status, "headers": _encoded(headers)})
            await send({"type": "http.response.body", "body": data})

    async def _health(self) -> dict[str, Any]:
        return self._service.health()

    async def _generate(self, scope: Scope, asked: Any, body: _Body, send: Send) -> dict[str, Any] | None:
        from atlas_kit.server.request_parts import awake

        answer: Any
        if MODELS[scope["path"]] == "ChatRequest":
            from atlas_kit.server.chat_answer import chat_answer as begin
        else:
            from atlas_kit.server.completion_answer import completion as begin  # type: ignore[assignment]
        answer = await begin(self._service, asked, scope["state"]["namespace"], len(body.data))
        if not asked.stream:
            found: dict[str, Any] = await while_wanted(body.receive, answer.whole())
            return found
        events = await begun(awake(self._service, asked, answer.events()))
        await send_while_wanted(_sent(events, send), events, body.receive)
        return None


async def _sent(events: AsyncGenerator[bytes, None], send: Send) -> None:
    """Send events as a response."""
    headers = {**STREAM_HEADERS, "content-type": f"{STREAM_TYPE}; charset=utf-8"}
    await send({"type": "http.response.start", "status": 200, "headers": _encoded(headers)})
    async for one in events:
        await send({"type": "http.response.body", "body": one, "more_body": True})
    await send({"type": "http.response.body", "body": b"", "more_body": False})


def _encoded(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]


class _Body:
    """Receives a body, and can give the same messages once more to somebody else."""

    def __init__(self, receive: Receive) -> None:
        self.receive = receive
        self.data = bytearray()
        self._messages: list[dict[str, Any]] = []
        self._given = 0

    async def complete(self, most: int) -> bool:
        """Receive all of it; False where it is longer, or does not come to its end."""
        while True:
            message = await self.receive()
            self._messages.append(message)
            if message["type"] != "http.request":
                return False
            self.data += message.get("body", b"")
            if len(self.data) > most:
                return False
            if not message.get("more_body", False):
                return True

    async def again(self) -> dict[str, Any]:
        """Give the messages from the first on."""
        if self._given < len(self._messages):
            self._given += 1
            return self._messages[self._given - 1]
        found: dict[str, Any] = await self.receive()
        return found
