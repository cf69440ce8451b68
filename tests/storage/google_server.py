"""A server of a few lines that speaks Google's storage API as far as gcsfs asks for it, with generations."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

BUCKET = "bucket"


class GoogleServer:
    """The running server with one bucket: (bytes, generation) by name, and what was asked of it."""

    def __init__(self) -> None:
        self.objects: dict[str, tuple[bytes, int]] = {}
        self.generation = 1000
        self.asked: list[tuple[str, str]] = []
        self.uploads: dict[str, tuple[str, bytearray, dict[str, str]]] = {}
        self.lock = threading.RLock()
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def put(self, name: str, data: bytes) -> str:
        with self.lock:
            self.generation += 1
            self.objects[name] = data, self.generation
        return f"gs://{BUCKET}/{name}"

    def described(self, name: str) -> dict[str, Any]:
        data, generation = self.objects[name]
        digest = base64.b64encode(hashlib.md5(data).digest()).decode()
        return {
            "kind": "storage#object", "name": name, "bucket": BUCKET, "size": str(len(data)), "md5Hash": digest,
            "generation": str(generation), "etag": f"CAE{generation}=", "updated": "2026-11-30T12:00:00.000Z",
            "timeCreated": "2026-11-30T12:00:00.000Z", "contentType": "application/octet-stream",
        }  # fmt: skip

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def google_serving() -> Iterator[GoogleServer]:
    """Yield a running server; whoever asks it sets ``STORAGE_EMULATOR_HOST`` to its ``endpoint``."""
    server = GoogleServer()
    try:
        yield server
    finally:
        server.stop()


def _handler(server: GoogleServer) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _asked(self) -> tuple[str, dict[str, str]]:
            parts = urlsplit(self.path)
            server.asked.append((self.command, self.path))
            return parts.path, {name: values[-1] for name, values in parse_qs(parts.query).items()}

        def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)

        def _failed(self, status: int) -> None:
            self._answer(status, {"error": {"code": status, "message": f"error {status}"}})

        def _met(self, name: str, asked: dict[str, str]) -> bool:
            wanted = asked.get("ifGenerationMatch")
            now = server.objects.get(name, (b"", 0))[1]
            return wanted is None or int(wanted) == now

        def do_GET(self) -> None:
            path, asked = self._asked()
            found = re.fullmatch(rf"(?:/download)?/storage/v1/b/{BUCKET}/o(?:/(.+))?", path)
            if found is None:
                self._failed(404)
            elif found[1] is None:
                self._list(asked)
            elif (name := unquote(found[1])) not in server.objects:
                self._failed(404)
            elif not self._met(name, asked) or asked.get("generation", str(server.objects[name][1])) != str(
                server.objects[name][1]
            ):
                self._failed(412 if "ifGenerationMatch" in asked else 404)
            elif asked.get("alt") != "media":
                self._answer(200, server.described(name))
            else:
                self._send(server.objects[name][0])

        def _send(self, data: bytes) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
            if not span:
                self._answer(200, data)
                return
            start, stop = int(span[1]), min(len(data), int(span[2] or len(data)) + 1)
            if start >= len(data):
                self._failed(416)
                return
            self._answer(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")

        def _list(self, asked: dict[str, str]) -> None:
            prefix, mark = asked.get("prefix", ""), asked.get("delimiter", "")
            items, folders = [], set()
            for name in sorted(server.objects):
                if not name.startswith(prefix):
                    continue
                rest = name[len(prefix) :]
                if mark and mark in rest:
                    folders.add(prefix + rest.partition(mark)[0] + mark)
                else:
                    items.append(server.described(name))
            self._answer(200, {"kind": "storage#objects", "items": items, "prefixes": sorted(folders)})

        def do_POST(self) -> None:
            path, asked = self._asked()
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            if not path.startswith(f"/upload/storage/v1/b/{BUCKET}/o"):
                self._failed(404)
            elif "upload_id" in asked:
                self._go_on(asked["upload_id"], body)
            elif asked["uploadType"] == "resumable":
                key = f"u{len(server.uploads)}"
                server.uploads[key] = json.loads(body)["name"], bytearray(), asked
                where = (
                    f"{server.endpoint}/upload/storage/v1/b/{BUCKET}/o?uploadType=resumable&upload_id={key}"
                )
                self._answer(200, b"", Location=where)
            elif asked["uploadType"] == "media":
                self._put(asked["name"], body, asked)
            else:
                boundary = re.search(r'boundary="?([^"]+)"?', self.headers["Content-Type"])
                assert boundary
                _, first, second, *_ = body.split(b"--" + boundary[1].encode())
                name = json.loads(re.split(rb"\r?\n\r?\n", first, maxsplit=1)[1])["name"]
                data = re.split(rb"\r?\n\r?\n", second, maxsplit=1)[1]
                self._put(name, data.removesuffix(b"\n").removesuffix(b"\r"), asked)

        do_PUT = do_POST

        def _go_on(self, key: str, body: bytes) -> None:
            name, data, asked = server.uploads[key]
            data += body
            span = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", self.headers.get("Content-Range") or "")
            if span and span[3] != "*" and len(data) >= int(span[3]):
                self._put(name, bytes(data), asked)
            else:
                self._answer(308, b"", Range=f"bytes=0-{len(data) - 1}")

        def _put(self, name: str, data: bytes, asked: dict[str, str]) -> None:
            with server.lock:  # of two that expect the same, one is refused
                if not self._met(name, asked):
                    self._failed(412)
                    return
                server.put(name, data)
                told = server.described(name)
            self._answer(200, told)

        def do_DELETE(self) -> None:
            path, asked = self._asked()
            name = unquote(path.rpartition("/o/")[2])
            if "upload_id" in asked:
                self._answer(204)
            elif name not in server.objects:
                self._failed(404)
            elif not self._met(name, asked):
                self._failed(412)
            else:
                del server.objects[name]
                self._answer(204)

    return Handler
