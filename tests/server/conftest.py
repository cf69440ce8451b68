"""Servers to test with: the application in this process, or behind a real listener in a thread.

``inside(...)`` is for one request and its answer, and for what the service does: the client calls the application.
``serve(...)`` is for whatever needs a wire: streams as they come, clients that go away, real client libraries.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import threading
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import AbstractAsyncContextManager
from typing import Any, TypeVar

import pytest

from atlas_kit.llama import FakeEngine
from atlas_kit.server import ServerConfig, Service
from tests.waiting import LONG

T = TypeVar("T")
#: Every message in brackets with its role: short, so that the fake engine's small contexts hold a conversation.
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}</>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
#: A test that waits so long for an answer has failed.
SECONDS = LONG


def fake_engine(chat_template: str | None = TEMPLATE, **options: Any) -> FakeEngine:
    """Return a fake engine with a chat template and room for a short conversation."""
    found = FakeEngine(**{"n_ctx": 256, "n_sequences": 2, "n_batch": 64, **options})
    found.info = dataclasses.replace(found.info, chat_template=chat_template)
    return found


def make_service(engine: Any = None, **settings: Any) -> Service:
    """Return a service that is not started: with a fake engine, or ``engine``."""
    config = ServerConfig(**{"model": "folder/fake.gguf", "drain_seconds": 5, **settings})
    return Service(config, open_engine=lambda _: fake_engine() if engine is None else engine)


@dataclasses.dataclass
class Inside:
    """An application in this process: ``client`` is an ``httpx.AsyncClient`` that calls it."""

    service: Service
    client: Any


Insider = Callable[..., AbstractAsyncContextManager[Inside]]


@pytest.fixture
def inside() -> Insider:
    """Return ``inside(engine=None, **settings)``: an async context manager with an ``Inside``.

    >>> async def test() -> None:
    ...     async with inside(atlas=True) as server:
    ...         answer = await server.client.post("/v1/completions", json={"prompt": "a", "max_tokens": 1})
    >>> asyncio.run(test())  # doctest: +SKIP
    """
    httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")
    from atlas_kit.server.app import running

    @contextlib.asynccontextmanager
    async def open_inside(engine: Any = None, **settings: Any) -> AsyncIterator[Inside]:
        service = make_service(engine, **settings)
        async with running(service) as app:
            transport = httpx.ASGITransport(app, raise_app_exceptions=False)
            async with httpx.AsyncClient(
                transport=transport, base_url="http://server", timeout=SECONDS, verify=False
            ) as client:
                yield Inside(service, client)

    return open_inside


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave tests that start a listener to `make test`: there are hundreds, and each takes a tenth of a second."""
    for item in items:
        if "serve" in getattr(item, "fixturenames", ()):
            item.add_marker(pytest.mark.slow)


def _prompt(server: Any) -> Any:
    """Return uvicorn's server so that it looks more often than ten times a second whether it is to end."""

    class Prompt(server):  # type: ignore[misc]
        async def main_loop(self) -> None:
            ticks = 0
            while not await self.on_tick(ticks // 10):
                ticks += 1
                await asyncio.sleep(0.01)

    return Prompt


class Live:
    """A server with a listener, on a thread of its own.

    Attributes
    ----------
    url
        Where it listens, without a slash at the end.
    service
        What answers; it belongs to the server's loop: see ``run``.
    client
        An ``httpx.Client`` with that address.
    """

    def __init__(self, service: Service, headers: dict[str, str] | None = None) -> None:
        import httpx

        self.service = service
        self._started = threading.Event()
        self._failed: BaseException | None = None
        self._thread = threading.Thread(target=lambda: asyncio.run(self._whole()), name="test-server")
        self._thread.start()
        if not self._started.wait(SECONDS) or self._failed is not None:
            self.stop()
            raise AssertionError("the server did not start") from self._failed
        # nothing here speaks TLS, and reading the authorities' certificates takes longer than most tests
        self.client = httpx.Client(base_url=self.url, timeout=SECONDS, headers=headers, verify=False)

    async def _whole(self) -> None:
        import uvicorn

        from atlas_kit.server.app import create_app

        self.loop = asyncio.get_running_loop()
        config = uvicorn.Config(
            create_app(self.service), host="127.0.0.1", port=0, log_config=None, lifespan="off",
            timeout_graceful_shutdown=5,
        )  # fmt: skip
        self._server = _prompt(uvicorn.Server)(config)
        self._server.capture_signals = contextlib.nullcontext  # type: ignore[method-assign,assignment]
        try:
            await self.service.start()
            listening = asyncio.create_task(self._server.serve())
            while not self._server.started and not listening.done():
                await asyncio.sleep(0.01)
            host, port = self._server.servers[0].sockets[0].getsockname()[:2]
            self.url = f"http://{host}:{port}"
            self._started.set()
            await listening
        except BaseException as error:
            self._failed = error
        finally:
            await self.service.stop()
            self._started.set()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """Carry out a coroutine on the server's loop, and return what it gives."""
        return asyncio.run_coroutine_threadsafe(work, self.loop).result(SECONDS)

    def post(self, path: str, **body: Any) -> Any:
        """Post JSON, which must succeed; return the JSON that comes back."""
        answer = self.client.post(path, json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def get(self, path: str, **parameters: Any) -> Any:
        """Return the JSON at a path."""
        answer = self.client.get(path, params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def events(self, path: str, **body: Any) -> list[Any]:
        """Post JSON with ``stream``; return the data of the events, without the ``[DONE]`` at their end."""
        with self.client.stream("POST", path, json={**body, "stream": True}) as answer:
            assert answer.status_code == 200, answer.read()
            assert answer.headers["content-type"].startswith("text/event-stream")
            data = [line[6:] for line in answer.iter_lines() if line.startswith("data: ")]
        return [json.loads(one) for one in data if one != "[DONE]"]

    def stop(self) -> None:
        """End the server, and save what it keeps."""
        if hasattr(self, "client"):
            self.client.close()
        self.service.stopping = True  # streams that last as long as the server end now
        if hasattr(self, "_server"):
            self._server.should_exit = True
        self._thread.join(SECONDS)
        assert not self._thread.is_alive(), "the server does not end"


@contextlib.contextmanager
def busy(server: Live) -> Iterator[None]:
    """Take one of a server's sequences meanwhile."""
    taken = server.service.conversations.borrowed("", "test")
    server.run(taken.__aenter__())
    try:
        yield
    finally:
        server.run(taken.__aexit__(None, None, None))


Server = Callable[..., Live]


@pytest.fixture
def serve() -> Iterator[Server]:
    """Return ``serve(engine=None, headers=None, **settings)``: a running server, which ends with the test."""
    for name in ("httpx", "uvicorn", "fastapi"):
        pytest.importorskip(name, reason="the packages of the server are not installed")
    running: list[Live] = []

    def start(engine: Any = None, headers: dict[str, str] | None = None, **settings: Any) -> Live:
        running.append(Live(make_service(engine, **settings), headers))
        return running[-1]

    yield start
    for one in running:
        one.stop()
