"""Who may ask from a browser: pages of which web origins (CORS, https://fetch.spec.whatwg.org). Plain ASGI.

No cookie ever names anybody here: a page that does not know a key cannot use one. So where keys are asked for, any page
may try; without keys only those that the server was started for, as any page in a browser could else read what the
memory knows.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Headers = list[tuple[bytes, bytes]]
#: This machine, as browsers name it.
_LOCALHOST = re.compile(rb"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
_METHODS = b"GET, POST, DELETE, OPTIONS"
#: What a page may read of an answer's header beside what every page may.
_EXPOSED = b"x-request-id, request-id, retry-after"


class Cors:
    """Tells browsers which pages may ask, and answers their question beforehand.

    Parameters
    ----------
    app
        What answers the requests.
    origins
        Web origins such as ``https://example.org``; ``*`` is any, ``localhost`` this machine with any port.
    anybody
        Where there are no ``origins``, any may ask.
    """

    def __init__(self, app: Any, origins: Sequence[str], *, anybody: bool = False) -> None:
        self._app = app
        self._any = "*" in origins or (anybody and not origins)
        self._localhost = "localhost" in origins
        self._origins = frozenset(one.encode("utf-8", "surrogateescape") for one in origins)

    def _allows(self, origin: bytes) -> bool:
        if self._any or origin in self._origins:
            return True
        return self._localhost and _LOCALHOST.fullmatch(origin) is not None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer a browser's question beforehand."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = headers.get(b"origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        told: Headers = [(b"vary", b"Origin")]
        if allowed := self._allows(origin):
            told += [(b"access-control-allow-origin", origin), (b"access-control-allow-credentials", b"true")]
        if scope["method"] == "OPTIONS" and b"access-control-request-method" in headers:
            if allowed:
                told += [(b"access-control-allow-methods", _METHODS), (b"access-control-max-age", b"600")]
                # by name: a star does not stand for Authorization
                if wanted := headers.get(b"access-control-request-headers"):
                    told.append((b"access-control-allow-headers", wanted))
            told.append((b"content-length", b"0"))
            await send({"type": "http.response.start", "status": 200, "headers": told})
            await send({"type": "http.response.body", "body": b""})
            return
        if allowed:
            told.append((b"access-control-expose-headers", _EXPOSED))

        async def answer(message: dict[str, Any]) -> None:
            if message["type"] == "http.response.start":
                message = {**message, "headers": [*message.get("headers", ()), *told]}
            await send(message)

        await self._app(scope, receive, answer)
