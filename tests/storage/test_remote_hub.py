"""Files on the hub: huggingface_hub against a server of a few lines that speaks its API, in a process of its own.

Where the hub is, is read when huggingface_hub is imported, so each look is a run of ``atlas-tool``.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

pytest.importorskip("huggingface_hub", reason="needs the cloud extra")

REPOSITORY = Path(__file__).parents[2]
SAMPLES = REPOSITORY / "sample_data"
FILES = {
    "tiny.gguf": (SAMPLES / "gguf" / "tiny.gguf").read_bytes(),
    "deep/m.atlas": (SAMPLES / "atlas" / "llama-7b_memory.atlas").read_bytes(),
    "README.md": b"# a model\n",
}
COMMIT = "c" * 40


class Hub:
    """The running hub with one model, whose large files lie on another path, as on a content network."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), _handler(self))
        self._server.daemon_threads = True
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05})
        self._thread.start()

    def tool(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        self.asked.clear()
        environment = {
            **os.environ, "HF_ENDPOINT": self.endpoint, "HF_TOKEN": "hf_geheim", "PYTHONPATH": str(REPOSITORY),
            "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HOME": "/nonexistent", "HF_HUB_DISABLE_XET": "1",
        }  # fmt: skip
        return subprocess.run(
            [sys.executable, "-m", "atlas_kit", *arguments],
            env=environment, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _described(name: str) -> dict[str, Any]:
    data = FILES[name]
    return {"type": "file", "path": name, "size": len(data), "oid": hashlib.sha1(data).hexdigest()}


def _handler(hub: Hub) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *_: Any) -> None: ...

        def _answer(self, status: int, body: Any = b"", **headers: str) -> None:
            data = body if isinstance(body, bytes) else json.dumps(body).encode()
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)

        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length") or 0))
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(f"{self.command} {path}")
            if re.fullmatch(r"/api/models/owner/model(/revision/main)?", path):
                self._answer(200, {"id": "owner/model", "sha": COMMIT, "siblings": []})
            elif tree := re.fullmatch(r"/api/models/owner/model/tree/[^/]+(?:/(.*))?", path):
                self._tree(tree[1] or "", recursive="recursive=true" in self.path.lower())
            elif path.startswith("/api/models/owner/model/paths-info/"):
                self._answer(200, [_described(name) for name in FILES])
            elif (file := re.fullmatch(r"/owner/model/resolve/[^/]+/(.*)", path)) and file[1] in FILES:
                self._answer(302, Location=f"/network/{file[1]}?Signature=geheim", X_Repo_Commit=COMMIT)
            elif path.startswith("/network/"):
                self._send(FILES[path.removeprefix("/network/")])
            else:
                kind = "RepoNotFound" if "owner/model" not in path else "EntryNotFound"
                self._answer(404, {"error": "not found"}, X_Error_Code=kind)

        do_HEAD = do_GET

        def _tree(self, folder: str, *, recursive: bool) -> None:
            inside = f"{folder}/" if folder else ""
            rows, folders = [], set()
            for name in FILES:
                if name.startswith(inside):
                    rest = name[len(inside) :]
                    if "/" in rest:
                        folders.add(inside + rest.partition("/")[0])
                    if recursive or "/" not in rest:
                        rows.append(_described(name))
            rows += [{"type": "directory", "path": one, "oid": "d" * 40, "size": 0} for one in folders]
            if rows:
                self._answer(200, rows)
            else:
                self._answer(404, {"error": "not found"}, X_Error_Code="EntryNotFound")

        def _send(self, data: bytes) -> None:
            span = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("Range") or "")
            if not span:
                self._answer(200, data)
                return
            start, stop = int(span[1]), min(len(data), int(span[2]) + 1)
            self._answer(206, data[start:stop], Content_Range=f"bytes {start}-{stop - 1}/{len(data)}")

    return Handler


@pytest.fixture(scope="module")
def hub() -> Iterator[Hub]:
    running = Hub()
    try:
        yield running
    finally:
        running.stop()


@pytest.mark.slow
def test_a_model_and_a_memory_on_the_hub(hub: Hub) -> None:
    shown = hub.tool("inspect", "hf://owner/model/tiny.gguf", "--json")
    assert shown.returncode == 0, shown.stderr
    assert json.loads(shown.stdout)["path"] == "hf://owner/model/tiny.gguf"
    assert len([one for one in hub.asked if "/network/" in one]) == 1
    assert len(hub.asked) <= 8
    entry = hub.tool("get", "hf://owner/model/deep/m.atlas", "user_prefs")
    assert entry.returncode == 0, entry.stderr
    assert entry.stdout
    for result in (shown, entry):
        assert "geheim" not in result.stdout + result.stderr


@pytest.mark.slow
def test_all_files_of_a_model(hub: Hub) -> None:
    result = hub.tool("validate", "hf://owner/model/**", "--json", "--workers", "1")
    rows = [json.loads(line) for line in result.stdout.splitlines()]
    assert {row["path"]: row["ok"] for row in rows} == {
        "hf://owner/model/README.md": False,
        "hf://owner/model/deep/m.atlas": True,
        "hf://owner/model/tiny.gguf": True,
    }, result.stderr


@pytest.mark.slow
def test_what_is_not_on_the_hub(hub: Hub) -> None:
    for name in ("hf://owner/model/none.gguf", "hf://owner/other/x.gguf"):
        result = hub.tool("inspect", name)
        assert result.returncode == 2
        assert "there is no such file" in result.stderr
        assert "Traceback" not in result.stderr
        assert "geheim" not in result.stderr
