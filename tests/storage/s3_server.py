"""An S3 server (moto's) in a thread, which counts what is asked of it. Needs the development packages."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from tests.waiting import LONG

BUCKET = "bucket"
#: What the stores' own tools look for in the environment.
CREDENTIALS = {
    "AWS_ACCESS_KEY_ID": "test-key",
    "AWS_SECRET_ACCESS_KEY": "test-geheim",
    "AWS_DEFAULT_REGION": "us-east-1",
    "AWS_EC2_METADATA_DISABLED": "true",
}


class S3Server:
    """The running server with one bucket."""

    def __init__(self, latency: float = 0.0) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
        from werkzeug.serving import make_server

        self.latency = latency
        self.asked: list[tuple[str, str]] = []
        self.fails: list[int] = []
        self.refuses: Callable[[str, str], bool] = lambda method, path: False
        self._app = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", 0, self._answer, threaded=True)
        self.endpoint = f"http://127.0.0.1:{self._server.port}"
        self._thread = threading.Thread(target=self._server.serve_forever, daemon=True)
        self._thread.start()

    def _answer(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        asked = environ["REQUEST_METHOD"], environ["PATH_INFO"]
        self.asked.append(asked)
        time.sleep(self.latency)
        if self.fails or self.refuses(*asked):
            start(f"{self.fails.pop(0) if self.fails else 503} Slow Down", [("Content-Length", "0")])
            return []
        answer: Iterable[bytes] = self._app(environ, start)
        return answer

    @property
    def environment(self) -> dict[str, str]:
        return {**CREDENTIALS, "AWS_ENDPOINT_URL": self.endpoint}

    def file_system(self) -> Any:
        import s3fs

        return s3fs.S3FileSystem(
            key=CREDENTIALS["AWS_ACCESS_KEY_ID"],
            secret=CREDENTIALS["AWS_SECRET_ACCESS_KEY"],
            endpoint_url=self.endpoint,
            skip_instance_cache=True,
        )

    def put(self, key: str, data: bytes) -> str:
        """Put a file into the bucket, and return its address."""
        self.file_system().pipe(f"{BUCKET}/{key}", data)
        return f"s3://{BUCKET}/{key}"

    def forget(self) -> None:
        self.asked = []

    def stop(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@contextmanager
def s3_serving(latency: float = 0.0) -> Iterator[S3Server]:
    import requests

    server = S3Server(latency)
    try:
        requests.post(f"{server.endpoint}/moto-api/reset", timeout=LONG)
        server.file_system().mkdir(BUCKET)
        server.forget()
        yield server
    finally:
        server.stop()
