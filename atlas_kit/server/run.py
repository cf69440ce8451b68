"""The server's life: it listens, loads, answers, and ends in bounded time with the memory saved."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, FileAccessError, MissingExtraError
from atlas_kit.server.app import create_app
from atlas_kit.server.service import Service

if TYPE_CHECKING:
    from atlas_kit.server.config import ServerConfig

log = logging.getLogger("atlas_kit.server")
#: Answers that are told to end have so long to be told.
END_SECONDS = 5


def serve(config: ServerConfig, service: Service | None = None) -> None:
    """Serve a model until SIGTERM or SIGINT; a second one ends the process at once.

    Raises
    ------
    AtlasError
        The model cannot be loaded, the port is taken, or the memory could not be kept where it should be.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("the server", "serve") from error
    service = service or Service(config)
    asyncio.run(_Life(service, uvicorn).whole())


class _Life:
    def __init__(self, service: Service, uvicorn: Any) -> None:
        self._service, self._config = service, service.config
        app = create_app(service)
        settings = uvicorn.Config(
            app, host=self._config.host, port=self._config.port, log_config=None, access_log=False,
            lifespan="off", timeout_graceful_shutdown=int(self._config.drain_seconds) + END_SECONDS,
            server_header=False, timeout_keep_alive=75,
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._server.capture_signals = contextlib.nullcontext  # ours are below
        self._asked = 0
        self._stopping: asyncio.Task[None] | None = None

    async def whole(self) -> None:
        """Listen, load, answer, end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask)
        with contextlib.suppress(AttributeError):
            loop.add_signal_handler(signal.SIGUSR1, lambda: loop.create_task(self._save_now()))
        with _listening(self._config.host, self._config.port) as listener:
            await self._answer(listener)

    async def _answer(self, listener: socket.socket) -> None:
        listening = asyncio.create_task(self._server.serve(sockets=[listener]))
        loading = asyncio.create_task(self._service.start())
        try:
            await asyncio.wait({listening, loading}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done():
                loading.result()
                log.info("listening at %s", _address(listener))
            await listening
        except AtlasError:
            self._server.should_exit = True
            await asyncio.gather(listening, return_exceptions=True)
            raise
        finally:
            if not loading.done():
                await asyncio.gather(loading, return_exceptions=True)
            await self._service.stop()

    def _ask(self) -> None:
        """Begin to end; the second time, end."""
        self._asked += 1
        if self._asked > 1:
            sys.stderr.flush()
            os._exit(128 + signal.SIGTERM)
        log.info("ending: the memory is saved when the last answer is done")
        self._service.stopping = True
        self._stopping = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        """Give running answers their time, then end them, then let the listener end."""
        self._server.should_exit = True
        if not self._service.ready:
            return
        deadline = asyncio.get_running_loop().time() + self._config.drain_seconds
        while len(self._service.scheduler) and asyncio.get_running_loop().time() < deadline:
            await asyncio.sleep(0.05)
        await asyncio.to_thread(self._service.scheduler.end_jobs)

    async def _save_now(self) -> None:
        if self._service.ready:
            await self._service.save()


def _listening(host: str, port: int) -> socket.socket:
    """Return a socket that listens.

    Raises
    ------
    FileAccessError
        Nobody may listen there, or somebody else does.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except (OSError, UnicodeError) as error:
        listener.close()
        why = (getattr(error, "strerror", None) or str(error)).lower()
        raise FileAccessError(
            f"cannot listen at {host}, port {port}: {why}", hint="Choose another port or address."
        ) from error
    return listener


def _address(listener: socket.socket) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
