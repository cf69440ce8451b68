"""As much of Google's store as is asked for here: objects with generations, and writes that expect one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit


class _Handler(BaseHTTPRequestHandler):
    server: Any
    protocol_version = "HTTP/1.1"

    def log_message(self, *given: Any) -> None:
        """Nothing."""

    def _answer(self, status: int, body: bytes | dict[str, Any] = b"") -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        kind = "application/octet-stream" if isinstance(body, bytes) else "application/json"
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _told(self, key: str) -> dict[str, Any]:
        data, generation = self.server.objects[key]
        link = f"http://127.0.0.1:{self.server.server_port}/download/storage/v1/b/bucket/o/{key}?alt=media"
        return {
            "kind": "storage#object", "name": key, "bucket": "bucket", "size": str(len(data)), "mediaLink": link,
            "generation": str(generation), "timeCreated": "2026-11-30T12:00:00Z", "updated": "2026-11-30T12:00:00Z",
        }  # fmt: skip

    def do_GET(self) -> None:
        asked = urlsplit(self.path)
        query = parse_qs(asked.query)
        key = unquote(asked.path.partition("/o/")[2])
        with self.server.lock:
            if not key:
                prefix = query.get("prefix", [""])[0]
                found = [self._told(one) for one in sorted(self.server.objects) if one.startswith(prefix)]
                self._answer(200, {"kind": "storage#objects", "items": found})
            elif key not in self.server.objects:
                self._answer(404, {"error": {"code": 404, "message": "Not Found"}})
            elif asked.path.startswith("/download") or "alt" in query:
                self._answer(200, self.server.objects[key][0])
            else:
                self._answer(200, self._told(key))

    def do_POST(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        data = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        key = query["name"][0]
        with self.server.lock:
            now = self.server.objects.get(key, (b"", 0))[1]
            if query.get("ifGenerationMatch", [str(now)])[0] != str(now):
                self._answer(412, {"error": {"code": 412, "message": "conditionNotMet"}})
                return
            self.server.generation += 1
            self.server.objects[key] = data, self.server.generation
            self._answer(200, self._told(key))

    def do_DELETE(self) -> None:
        key = unquote(urlsplit(self.path).path.partition("/o/")[2])
        with self.server.lock:
            self._answer(204 if self.server.objects.pop(key, None) else 404)


@contextmanager
def gcs_serving() -> Iterator[str]:
    """Yield the address of a running server with one bucket."""
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    server.objects, server.generation, server.lock = {}, 1, threading.RLock()
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
