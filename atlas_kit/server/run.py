"""The server's life: it listens, loads, answers, and ends in bounded time with the memory saved."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import importlib.util
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, FileAccessError, MissingExtraError
from atlas_kit.server.app import ROUTES, begun_app, guarded, visit_routes
from atlas_kit.server.asgi import Capitals
from atlas_kit.server.heads import protocol
from atlas_kit.server.light import First
from atlas_kit.server.loading import Loading, share_one_heap
from atlas_kit.server.service import Service

if TYPE_CHECKING:
    from atlas_kit.server.config import ServerConfig

log = logging.getLogger("atlas_kit.server")
#: Answers that are told to end have so long to be told.
END_SECONDS = 5
#: So long a thread may compute in Python while another wants to. Each time the event loop sends something it gives the
#: interpreter away, and beside an engine's thread that is busy with memories it would wait for it 5 ms each time.
SWITCH_SECONDS = 0.0005
#: So long after the start, what only some requests need is loaded, and later where requests are under way: until so
#: many seconds after it.
LATER_SECONDS, LATEST_SECONDS = 0.5, 30.0
#: How often it is looked whether requests are under way.
REST_SECONDS = 0.05
#: Modules that are loaded then, beside the application.
LATER = (
    *(f"server.routes.{name}" for name in ROUTES), "server.exposition", "server.recall", "server.memory_views",
    "server.chat_answer", "llama.token_memory", "llama.trace_frames", "persistence.snapshot",
)  # fmt: skip
#: New objects after which garbage is looked for during the start, which makes none: ten times as many as imports make.
START_OBJECTS = 1_000_000
#: Saving has so long at the end, before the process ends without it.
SAVE_SECONDS = 60


def serve(config: ServerConfig, service: Service | None = None, loading: Loading | None = None) -> None:
    """Serve a model until SIGTERM, SIGINT or SIGHUP; a second of the first two ends the process at once.

    ``loading`` is the model, where somebody has begun to load it.

    Raises
    ------
    AtlasError
        The model cannot be loaded, the port is taken, or the memory could not be kept where it should be, which is
        known at the start or at the end.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingExtraError("the server", "serve") from error
    if importlib.util.find_spec("fastapi") is None:  # it is imported later, when the server listens already
        raise MissingExtraError("the server", "serve")
    if loading is None:
        share_one_heap()
    service = service or Service(config, None if loading is None else lambda _: loading.engine())
    with contextlib.ExitStack() as opened:
        listeners: list[socket.socket] = []
        for host in config.hosts:  # all at one port, also where that is any free one
            port = listeners[0].getsockname()[1] if listeners else config.port
            one = _listening(host, port, beside_others=len(config.hosts) > 1)
            listeners.append(opened.enter_context(one))
        sys.setswitchinterval(SWITCH_SECONDS)
        often = gc.get_threshold()
        gc.set_threshold(START_OBJECTS, *often[1:])
        gc.enable()  # it is off for short runs (cli/main.py): a server would keep all that it ever answered
        service.begin_loading()  # llama.cpp does not need Python meanwhile, which imports the rest
        try:
            asyncio.run(_Life(service, uvicorn, listeners, often).whole())
        finally:
            gc.set_threshold(*often)
    if service.unsaved:  # whoever watches the process should not take this for a good end
        raise FileAccessError(
            "the server has ended, and what it learned since it last saved is lost", hint="Its log says why."
        )
    if service.unput:
        raise FileAccessError(
            f"the server has ended, and its store lacks {service.unput} of what it saved",
            hint="It is kept here for the next server that starts with the same address: the log says where.",
        )


class _Life:
    def __init__(
        self, service: Service, uvicorn: Any, listeners: Sequence[socket.socket], often: tuple[int, int, int]
    ) -> None:
        self._often = often
        self._service, self._config, self._listeners = service, service.config, listeners
        self._complete: Callable[[], None] = lambda: None
        self._first = First(service, self._build)
        settings = uvicorn.Config(
            Capitals(guarded(self._first, service)), log_config=None, access_log=False, lifespan="off", ws="none",
            timeout_graceful_shutdown=int(self._config.drain_seconds) + END_SECONDS,
            server_header=False, timeout_keep_alive=75, http=protocol(),
        )  # fmt: skip
        self._server = uvicorn.Server(settings)
        self._server.capture_signals = contextlib.nullcontext  # ours are below
        self._asked = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()

    def _build(self) -> Any:
        """Return the application, which is a third of all that is imported, and which plain requests do not need."""
        app, self._complete = begun_app(self._service, inner=True)
        return app

    async def whole(self) -> None:
        """Listen, load, answer, end."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._ask)
        with contextlib.suppress(AttributeError):
            loop.add_signal_handler(signal.SIGUSR1, lambda: self._start(self._save_now()))
        hangup = getattr(signal, "SIGHUP", None)
        if (
            hangup is not None and signal.getsignal(hangup) is not signal.SIG_IGN
        ):  # which nohup wants to stay so
            loop.add_signal_handler(hangup, self._hang_up)
        listening = self._start(self._server.serve(sockets=list(self._listeners)))
        loading, asked = self._start(self._service.start()), self._start(self._asked.wait())
        try:
            await asyncio.wait({listening, loading, asked}, return_when=asyncio.FIRST_COMPLETED)
            if loading.done() and not asked.done():
                loading.result()
                log.info("listening at %s", " and ".join(map(_address, self._listeners)))
                self._start(self._settle())
                gc.freeze()  # what was imported stays
                gc.set_threshold(*self._often)
                await asyncio.wait({listening, asked}, return_when=asyncio.FIRST_COMPLETED)
            await self._end(loading)
            await asyncio.wait({listening})
            listening.result()
        finally:
            asked.cancel()
            self._server.should_exit = True
            await asyncio.gather(listening, return_exceptions=True)
            await self._stop()

    async def _settle(self) -> None:
        """Load what plain requests do not need: one piece after another, each when none of them is under way."""
        began = time.monotonic()
        await asyncio.sleep(LATER_SECONDS)
        await self._rest(began)
        app = await self._first.whole()
        for piece in (*map(_importing, LATER), *self._service.later()):
            await self._rest(began)
            try:
                await asyncio.to_thread(piece)
            except (
                AtlasError
            ) as error:  # llama.cpp takes the file, and something else in it is not as it should be
                log.warning("%s", error)
        self._complete()
        await asyncio.to_thread(visit_routes, app)
        gc.freeze()  # what is there now stays: later collections, which stop all streams, need not look at it

    async def _rest(self, began: float) -> None:
        """Wait until no request is under way, but not for ever."""
        while self._service.conversations.under_way and time.monotonic() < began + LATEST_SECONDS:
            await asyncio.sleep(REST_SECONDS)

    def _start(self, work: Any) -> asyncio.Task[Any]:
        task: asyncio.Task[Any] = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task

    def _ask(self) -> None:
        """Begin to end; the second time, end."""
        if self._asked.is_set():
            sys.stderr.flush()
            os._exit(128 + signal.SIGTERM)
        log.info("ending: the memory is saved when the last answer is done")
        self._service.stopping = True
        self._asked.set()

    def _hang_up(self) -> None:
        """Begin to end: the terminal was closed, of which shell and system may both tell."""
        if not self._asked.is_set():
            self._ask()

    async def _end(self, loading: asyncio.Task[Any]) -> None:
        """Give running answers their time, then end them, then let the listener end."""
        self._service.stopping = True
        self._server.should_exit = True
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._config.drain_seconds
        if not loading.done():  # nothing has been learned yet
            await asyncio.wait({loading}, timeout=self._config.drain_seconds)
            if not loading.done():
                log.warning("the model is still being loaded: ending without it")
                os._exit(0)
        if not self._service.ready:
            return
        under_way = self._service.conversations.under_way
        while under_way and loop.time() < deadline:
            await asyncio.sleep(0.05)
        try:
            await asyncio.wait_for(self._service.end_work(), END_SECONDS)
        except asyncio.TimeoutError:
            log.warning("some answers do not end")

    async def _stop(self) -> None:
        """Save and end; where that hangs, end."""
        try:
            await asyncio.wait_for(self._service.stop(), SAVE_SECONDS)
        except asyncio.TimeoutError:
            log.critical("the memory could not be saved in %d s", SAVE_SECONDS)
            os._exit(1)

    async def _save_now(self) -> None:
        if self._service.ready and await self._service.save():
            log.info("all is saved, as SIGUSR1 asked")


def _importing(name: str) -> Callable[[], object]:
    return lambda: importlib.import_module(f"atlas_kit.{name}")


def _listening(host: str, port: int, *, beside_others: bool = False) -> socket.socket:
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
        if family == socket.AF_INET6 and beside_others:  # which may be the same port's of version 4
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
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
