"""What every request passes: its id, its key, its size. Plain ASGI, so that streams go through untouched."""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
import secrets
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from atlas_kit.server import logs
from atlas_kit.server.problems import ApiError, unavailable
from atlas_kit.server.streams import told

if TYPE_CHECKING:
    from atlas_kit.server.cors import Pages

#: Paths that are open without a key: what asks whether the server is there, and pages, which ask for a key themselves.
OPEN = frozenset({"/health", "/v1/health", "/ready", "/", "/atlas", "/docs"})
#: Below this lie the files of the pages, which are in every copy of this package.
FILES = "/static/"
_REQUEST_ID = re.compile(r"[\w.:-]{1,128}", re.ASCII)
#: The namespace of requests where no keys are asked for.
NOBODY = ""

Scope = Any
Receive = Any
Send = Any


class Keys:
    """API keys, of which only hashes are kept; a wrong one takes as long to check as a right one."""

    def __init__(self, keys: Iterable[str]) -> None:
        self._digests = [hashlib.sha256(key.encode("utf-8", "surrogatepass")).digest() for key in keys]

    def __bool__(self) -> bool:
        return bool(self._digests)

    def namespace(self, given: str | None) -> str | None:
        """Return the namespace of a key, 16 hexadecimal digits; None where it is wrong."""
        digest = hashlib.sha256((given or "").encode("utf-8", "surrogatepass")).digest()
        right = False
        for one in self._digests:  # all of them, whichever is right
            right |= secrets.compare_digest(one, digest)
        return digest[:8].hex() if right and given else None


class Gate:
    """Refuses requests without a key, and those that are too large; gives each an id, and logs it."""

    def __init__(
        self, app: Any, keys: Keys, max_body: int, pages: Pages | None = None, admin: str | None = None
    ) -> None:
        self._app, self._keys, self._max_body, self._pages = app, keys, max_body, pages
        self._admin = None if admin is None else keys.namespace(admin)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through, or answer it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.lower(): value for name, value in scope["headers"]}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        request_id = given if _REQUEST_ID.fullmatch(given) else f"req_{secrets.token_hex(12)}"
        scope.setdefault("state", {})["request_id"] = request_id
        began, status = time.monotonic(), 0

        async def answer(message: dict[str, Any]) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message = {
                    **message,
                    "headers": [
                        *message.get("headers", ()),
                        (b"x-request-id", request_id.encode()),
                        (b"request-id", request_id.encode()),
                    ],
                }
            await send(message)

        limited = _Limited(receive, self._max_body)

        async def checked(message: dict[str, Any]) -> None:
            if not limited.exceeded:
                await answer(message)
            elif not status:  # whoever read the body took its end for an error of its own
                await refuse(_too_large(self._max_body), scope, answer)

        with logs.about(request_id) as facts:
            try:
                problem = self._problem(scope, headers)
                if problem is not None:
                    await refuse(problem, scope, answer)
                else:
                    # who only asks whether something is there, or how large, may ask that of all that can be read
                    asked = {**scope, "method": "GET"} if scope["method"] == "HEAD" else scope
                    await self._app(asked, limited, checked)
            except TooLargeError:
                await refuse(_too_large(self._max_body), scope, answer)
            except asyncio.CancelledError:  # the listener ends, and this request has not come whole yet
                if status:
                    raise
                await refuse(unavailable("The server is shutting down."), scope, answer)
            except Exception as error:
                problem = told(error)
                if status:
                    raise  # the answer had begun: the connection is cut
                await refuse(problem, scope, answer)
            finally:
                logs.answered(facts, scope["method"], scope["path"], status, time.monotonic() - began)

    def _problem(self, scope: Scope, headers: dict[bytes, bytes]) -> ApiError | None:
        state = scope["state"]
        state["namespace"] = NOBODY
        if self._pages is not None and (problem := self._pages.problem(scope["method"], headers)) is not None:
            return problem
        path = scope["path"]
        is_open = path in OPEN or path.startswith(FILES) or scope["method"] == "OPTIONS"
        if self._keys and not is_open:
            namespace = self._keys.namespace(_key_in(headers))
            if namespace is None:
                return ApiError(401, "The API key is missing or wrong.", code="invalid_api_key", param=None)
            state["namespace"] = namespace
        state["admin"] = self._admin is None or state["namespace"] == self._admin
        size = headers.get(b"content-length", b"0")
        if size.isdigit() and int(size) > self._max_body:
            return _too_large(self._max_body)
        kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
        has_body = b"transfer-encoding" in headers or not size.isdigit() or int(size) > 0
        if scope["method"] == "POST" and has_body and kind != b"application/json":
            return ApiError(415, "The body must be JSON, sent as application/json.")
        return None


class _Name(bytes):
    """A header's name as it is to be written: uvicorn writes what ``lower`` gives."""

    def lower(self) -> bytes:
        """Return it as it is."""
        return self


class Capitals:
    """Writes the names of headers with capitals, as llama-server does, for clients that take them for case-sensitive.

    Only around an application that a listener of HTTP/1.1 calls: within, the names are in lower case. Those that the
    listener itself looks at stay so.
    """

    _ITS_OWN = frozenset({b"content-length", b"transfer-encoding", b"connection"})

    def __init__(self, app: Any) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Let a request through."""

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {
                    **message,
                    "headers": [
                        (name if name in self._ITS_OWN else _Name(name.title()), value)
                        for name, value in message.get("headers", ())
                    ],
                }
            await send(message)

        await self._app(scope, receive, answer)


class TooLargeError(Exception):
    """A body without a stated length is longer than allowed."""


class _Limited:
    """Receives a body, and stops where it is too long."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._left = receive, most
        self.exceeded = False

    async def __call__(self) -> Any:
        message = await self._receive()
        if message["type"] == "http.request":
            self._left -= len(message.get("body", b""))
            if self._left < 0:
                self.exceeded = True
                raise TooLargeError
        return message


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"The request is larger than {most} bytes.", code="request_too_large")


def _key_in(headers: dict[bytes, bytes]) -> str | None:
    """Return the key of a request, as OpenAI's and as Anthropic's clients send it."""
    bearer = headers.get(b"authorization", b"").decode("utf-8", "surrogateescape")
    if bearer[:7].lower() == "bearer ":
        return bearer[7:].strip()
    key = headers.get(b"x-api-key")
    return None if key is None else key.decode("utf-8", "surrogateescape").strip()


def asks_anthropic(scope: Scope) -> bool:
    """Whether errors are told in Anthropic's shape: at its endpoints, and to its clients wherever they ask."""
    return scope["path"].startswith("/v1/messages") or any(
        name.lower() == b"anthropic-version" for name, _ in scope["headers"]
    )


async def refuse(problem: ApiError, scope: Scope, send: Send) -> None:
    """Answer a request with a problem."""
    body = problem.anthropic() if asks_anthropic(scope) else problem.openai()
    data = json.dumps(body).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(data)).encode())]
    headers += [(name.encode(), value.encode()) for name, value in problem.headers.items()]
    await send({"type": "http.response.start", "status": problem.status, "headers": headers})
    await send({"type": "http.response.body", "body": data})
