"""Who may ask from a browser: pages of which web origins (CORS, https://fetch.spec.whatwg.org). Plain ASGI.

No cookie ever names anybody here: a page that does not know a key cannot use one. So where keys are asked for, any page
may try; without keys only those that the server was started for, as any page in a browser could else read what the
memory knows. What browsers send without asking beforehand, a POST without JSON, is refused from other pages. A server
for this machine alone answers to this machine's names only: to a browser, a page that lets its own name lead here (DNS
rebinding) is of the same origin.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Mapping, Sequence
from typing import Any

from atlas_kit.server.problems import ApiError

Headers = list[tuple[bytes, bytes]]
#: This machine, as browsers name it.
_LOCALHOST = re.compile(rb"https?://(localhost|127\.0\.0\.1|\[::1\])(:\d+)?")
_METHODS = b"GET, POST, DELETE, OPTIONS"
#: What a page may read of an answer's header beside what every page may.
_EXPOSED = b"x-request-id, request-id, retry-after"


class Pages:
    """Which pages may ask.

    Parameters
    ----------
    origins
        Web origins such as ``https://example.org``; ``*`` is any, ``localhost`` this machine with any port.
    anybody
        Where there are no ``origins``, any may ask.
    hosts
        Addresses that the server listens at, where nothing but them protects it; none: something else does.
    """

    def __init__(self, origins: Sequence[str], *, anybody: bool = False, hosts: Sequence[str] = ()) -> None:
        self._any = "*" in origins or (anybody and not origins)
        self._localhost = "localhost" in origins
        self._origins = frozenset(one.encode("utf-8", "surrogateescape") for one in origins)
        here = bool(hosts) and all(map(_is_loopback, hosts)) and "*" not in origins
        self._names = {_name_in(one.partition("://")[2]) for one in origins} if here else None

    def allows(self, origin: bytes) -> bool:
        """Tell whether the pages of an origin may ask."""
        if self._any or origin in self._origins:
            return True
        return self._localhost and _LOCALHOST.fullmatch(origin) is not None

    def problem(self, method: str, headers: Mapping[bytes, bytes]) -> ApiError | None:
        """Return why a request is not answered that a page may have sent without being allowed to."""
        host = headers.get(b"host", b"").decode("latin-1")
        name = _name_in(host)
        if self._names is not None and not _is_no_domain(name) and name not in self._names:
            return ApiError(
                403, "This server is for its own machine, and has no such name.", code="unknown_host"
            )
        origin = headers.get(b"origin")
        asked_before = headers.get(b"content-type", b"").split(b";")[0].strip().lower() == b"application/json"
        if origin is None or method in ("GET", "HEAD", "OPTIONS") or asked_before or self.allows(origin):
            return None
        site = headers.get(b"sec-fetch-site", b"").lower()  # a proxy may have changed the host
        same = origin.decode("latin-1").partition("://")[2].lower() == host.lower()
        if site == b"same-origin" or (not site and same):
            return None
        return ApiError(403, "Pages of this origin may not ask here.", code="unknown_origin")


class Cors:
    """Tells browsers which ``pages`` may ask, and answers their question beforehand."""

    def __init__(self, app: Any, pages: Pages) -> None:
        self._app, self._pages = app, pages

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        """Let a request through, or answer a browser's question beforehand."""
        headers = dict(scope["headers"]) if scope["type"] == "http" else {}
        origin = headers.get(b"origin")
        if origin is None:
            await self._app(scope, receive, send)
            return
        told: Headers = [(b"vary", b"Origin")]
        if allowed := self._pages.allows(origin):
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


def _name_in(host: str) -> str:
    """Return the name or the address in a ``Host``, without its port."""
    host = host.strip().lower()
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return (host if host.count(":") > 1 else host.partition(":")[0]).rstrip(".")


def _is_no_domain(name: str) -> bool:
    """Tell whether a name is none that somebody could let lead here: an address, or one without a domain."""
    return "." not in name or name.endswith(".localhost") or _address(name) is not None


def _is_loopback(host: str) -> bool:
    address = _address(host)
    return host == "localhost" or (address is not None and address.is_loopback)


def _address(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None
