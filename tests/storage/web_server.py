"""A web server of a few lines that serves bytes from memory, counts what it sends, and misbehaves on request."""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

LATENCY = 0.03


@dataclass
class Page:
    """What is at one path, and how the server behaves when it is asked for."""

    data: bytes = b""
    etag: str | None = '"one"'
    ranges: bool = True
    fails: list[int] = field(default_factory=list)  # answers that come first
    cuts: list[int] = field(default_factory=list)  # after how many bytes the first answers end
    hangs: int = 0  # how many requests are not answered
    drips: float = 0.0  # seconds between one byte and the next
    to: str | None = None  # redirected there
    password: str | None = None  # base64 of user:password
    headers: dict[str, str] = field(default_factory=dict)
    before: Callable[[Page], None] | None = None  # called before each answer
    careful: bool = True  # minds If-Match
    gets_only: bool = False  # refuses HEAD


class WebServer:
    """The running server; ``url`` of a path, and what was asked of it."""

    def __init__(self, pages: dict[str, Page], latency: float = LATENCY) -> None:
        self.pages = pages
        self.latency = latency
        self.asked: list[tuple[str, str, str | None]] = []
        self.sent = 0
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def url(self, path: str) -> str:
        return f"http://127.0.0.1:{self.port}{path}"

    def forget(self) -> None:
        """Count from now on."""
        self.asked, self.sent = [], 0

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def serving(pages: dict[str, Page], latency: float = LATENCY) -> Iterator[WebServer]:
    server = WebServer(pages, latency)
    try:
        yield server
    finally:
        server.stop()


def _handler(server: WebServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            wanted = self.headers.get("Range")
            server.asked.append((self.command, self.path, wanted))
            time.sleep(server.latency)
            page = server.pages.get(self.path.partition("?")[0])
            if page is None:
                self.answer(404)
                return
            if page.before is not None:
                page.before(page)
            if page.hangs:
                page.hangs -= 1
                time.sleep(1.5)
                self.close_connection = True
            elif page.gets_only and self.command == "HEAD":
                self.answer(403)
            elif page.fails:
                self.answer(page.fails.pop(0), **page.headers)
            elif page.password and self.headers.get("Authorization") != f"Basic {page.password}":
                self.answer(401)
            elif page.to:
                self.answer(302, Location=page.to)
            else:
                self.send(page, wanted)

        def send(self, page: Page, wanted: str | None) -> None:
            match_, size = self.headers.get("If-Match"), len(page.data)
            if page.careful and match_ and match_ != page.etag:
                self.answer(412)
                return
            head = {**({"ETag": page.etag} if page.etag else {}), **page.headers}
            head.setdefault("Last-Modified", formatdate(1_700_000_000, usegmt=True))
            asked = re.fullmatch(r"bytes=(\d+)-(\d+)", wanted or "")
            if not asked or not page.ranges:
                self.answer(200, page.data, page, **head)
                return
            start, stop = int(asked[1]), min(size, int(asked[2]) + 1)
            if start >= size:
                self.answer(416, **{"Content-Range": f"bytes */{size}"})
                return
            head.setdefault("Content-Range", f"bytes {start}-{stop - 1}/{size}")
            self.answer(206, page.data[start:stop], page, **head)

        def answer(self, status: int, body: bytes = b"", page: Page | None = None, **head: str) -> None:
            self.send_response(status)
            for name, value in head.items():
                self.send_header(name, value)
            if "Content-Length" in head:  # it lies
                self.close_connection = True
            else:
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "HEAD":
                return
            if page is not None and page.cuts:
                body = body[: page.cuts.pop(0)]
                self.close_connection = True
            server.sent += len(body)
            if page is None or not page.drips:
                self.wfile.write(body)
                return
            for at in range(len(body)):
                time.sleep(page.drips)
                try:
                    self.wfile.write(body[at : at + 1])
                except OSError:  # nobody waits for it any more
                    return

    return Handler
