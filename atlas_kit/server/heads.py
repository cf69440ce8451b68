"""What comes before a request's body is bounded: in bytes, and in the time that it may take.

uvicorn's parser (httptools) knows no limits: whoever sends a header without an end would fill main memory, before any
key is asked for. Knows nothing of what is asked.
"""

from __future__ import annotations

import asyncio
from typing import Any

#: Bytes of a request's first line and its headers; h11, uvicorn's other parser, has the same limit.
MOST_BYTES = 64 << 10
#: Seconds that they may take, and in which a new connection has to begin.
MOST_SECONDS = 60.0


def protocol(seconds: float = MOST_SECONDS) -> Any:
    """Return what uvicorn takes as ``http``: its own protocol with limits, or the name of the one that has them."""
    try:
        from uvicorn.protocols.http.httptools_impl import STATUS_LINE, HttpToolsProtocol
    except ImportError:
        return "h11"
    from atlas_kit.server.problems import ApiError
    from atlas_kit.server.streams import written

    class Bounded(HttpToolsProtocol):
        """Refuses heads that are too large, and ends connections whose head takes too long."""

        _taken = 0  # bytes of the present head
        _whole = False
        _timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait()

        def connection_lost(self, exc: Exception | None) -> None:
            self._wait_no_more()
            super().connection_lost(exc)

        def data_received(self, data: bytes) -> None:
            was = self._whole
            super().data_received(data)
            if self._whole or self.transport.is_closing():
                return
            self._taken = len(data) if was else self._taken + len(data)
            if self._taken > MOST_BYTES:
                self._refuse()
            elif self._timer is None:
                self._wait()

        def on_message_begin(self) -> None:
            self._whole, self._parsed = False, 0
            super().on_message_begin()

        def on_url(self, url: bytes) -> None:
            self._count(len(url))
            super().on_url(url)

        def on_header(self, name: bytes, value: bytes) -> None:
            self._count(len(name) + len(value) + 4)
            super().on_header(name, value)

        def on_headers_complete(self) -> None:
            self._whole, self._taken = True, 0
            self._wait_no_more()
            super().on_headers_complete()

        def send_400_response(self, msg: str) -> None:
            if self._parsed > MOST_BYTES:
                self._refuse()
            else:
                super().send_400_response(msg)

        _parsed = 0

        def _count(self, size: int) -> None:
            self._parsed += size
            if self._parsed > MOST_BYTES:
                raise ValueError("the head is too large")  # which the parser makes an error of its own

        def _refuse(self) -> None:
            problem = ApiError(431, f"The headers are larger than {MOST_BYTES:,} bytes.", code="too_large")
            body = written(problem.openai()).encode()
            head = b"content-type: application/json\r\nconnection: close\r\ncontent-length: %d\r\n\r\n"
            self.transport.write(STATUS_LINE[431] + head % len(body) + body)
            self.transport.close()

        def _wait(self) -> None:
            self._timer = self.loop.call_later(seconds, self._too_slow)

        def _wait_no_more(self) -> None:
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

        def _too_slow(self) -> None:
            self._timer = None
            if not self.transport.is_closing():
                self.transport.close()

    return Bounded
