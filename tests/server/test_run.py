"""The life of a server's process: signals under load, ports, and what is left when it is killed."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import InvalidParamError, MissingExtraError
from atlas_kit.llama import FakeEngine
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.server import ServerConfig, Service, run
from tests.conftest import tool_environment
from tests.waiting import LONG, free_port

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")

#: A server with the fake engine, whose steps take as long as is said.
PROGRAM = """
import json, logging, os, sys, time
from atlas_kit.errors import AtlasError
from atlas_kit.llama import FakeEngine
from atlas_kit.server import Service, ServerConfig, serve

settings, step, loading, held = json.loads(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]), sys.argv[4]

class Slow(FakeEngine):
    def decode(self, *given, **more):
        time.sleep(step)
        while os.path.exists(held):
            time.sleep(0.01)
        return super().decode(*given, **more)

def open_engine(config):
    time.sleep(loading)
    return Slow(n_ctx=256, n_sequences=4, n_batch=64)

logging.basicConfig(level=logging.INFO, stream=sys.stderr)
config = ServerConfig(**settings)
try:
    serve(config, Service(config, open_engine=open_engine))
except AtlasError as error:
    sys.exit(error.message)
"""
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SECONDS = LONG


class Process:
    """A server in a process of its own."""

    def __init__(
        self,
        step: float = 0.0,
        loading: float = 0.0,
        wait: bool = True,
        held: Path = Path("/nonexistent"),
        **settings: Any,
    ) -> None:
        """``held``: no step is done while this file is there."""
        port = settings.setdefault("port", free_port())
        given = {"model": "fake.gguf", "drain_seconds": 1, **settings}
        self.process = subprocess.Popen(
            [sys.executable, "-c", PROGRAM, json.dumps(given), str(step), str(loading), str(held)],
            env=tool_environment(), stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        self.url = f"http://127.0.0.1:{port}"
        self.log: list[str] = []
        self._reader = threading.Thread(target=self._read)
        self._reader.start()
        if wait:
            self.until(self._answers)

    def _read(self) -> None:
        assert self.process.stderr is not None
        self.log.extend(iter(self.process.stderr.readline, ""))

    def _answers(self) -> bool:
        assert self.process.poll() is None, "".join(self.log)
        try:
            return bool(httpx.get(f"{self.url}/ready").status_code == 200)
        except httpx.HTTPError:
            return False

    def until(self, true: Callable[[], Any]) -> None:
        """Wait until something is true."""
        end = time.monotonic() + SECONDS
        while not true():
            assert time.monotonic() < end, "".join(self.log)
            time.sleep(0.02)

    def post(self, prompt: str, count: int, **more: Any) -> Any:
        body = {"prompt": prompt, "max_tokens": count, "temperature": 0, **more}
        return httpx.post(f"{self.url}/v1/completions", json=body, timeout=SECONDS)

    def signal(self, number: int) -> None:
        self.process.send_signal(number)

    def end(self) -> int:
        """Wait for the end; return the exit code."""
        code = self.process.wait(SECONDS)
        self._reader.join()
        assert self.process.stderr is not None
        self.process.stderr.close()
        return code


@pytest.fixture
def start() -> Iterator[Callable[..., Process]]:
    """Return a function that starts a server; whatever is left of it is killed."""
    started: list[Process] = []

    def start_one(**options: Any) -> Process:
        started.append(Process.__new__(Process))
        started[-1].__init__(**options)  # type: ignore[misc]
        return started[-1]

    yield start_one
    for one in started:
        if one.process.poll() is None:
            one.process.kill()
        if one.process.stderr is not None and not one.process.stderr.closed:
            one.end()


class Load:
    """Clients that ask one thing after the other, streamed or not, until the server is gone."""

    def __init__(self, server: Process, clients: int = 6, count: int = 200) -> None:
        self.answered = 0
        self.unexpected: list[str] = []
        self._server, self._count, self._over = server, count, False
        self._threads = [threading.Thread(target=self._ask, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def _ask(self, number: int) -> None:
        turn = 0
        while not self._over:
            turn += 1
            atlas = {} if number % 2 else {"session_id": f"client {number}"}
            # a few texts: a server keeps so many of each memory, and others are to be there afterwards
            body = {
                "prompt": f"{number}:{turn % 8} {TEXT}", "max_tokens": self._count, "temperature": 0, "atlas": atlas,
                "stream": number % 3 == 0,
            }  # fmt: skip
            try:
                with httpx.stream(
                    "POST", f"{self._server.url}/v1/completions", json=body, timeout=SECONDS
                ) as one:
                    text = "".join(one.iter_text())
            except httpx.HTTPError:
                continue
            if one.status_code == 200 and ("[DONE]" in text or '"usage"' in text):
                self.answered += 1
            elif one.status_code not in (503,) and '"code":"unavailable"' not in text.replace(" ", ""):
                self.unexpected.append(f"{one.status_code} {text[-300:]}")

    def stop(self) -> None:
        self._over = True
        for thread in self._threads:
            thread.join()


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_server_ends_well_under_load(number: int, start: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    settings = {"atlas_memory_file": str(path), "atlas_memory_dir": str(tmp_path)}
    server = start(step=0.002, **settings)
    server.post(TEXT * 3, 0)
    server.post(TEXT * 3, 0, atlas={"session_id": "anna"})
    load = Load(server)
    server.until(lambda: load.answered > 3)
    server.signal(number)
    code = server.end()
    load.stop()
    assert code == 0, "".join(server.log)
    assert load.unexpected == []
    assert "Traceback" not in "".join(server.log)
    again = start(**settings)
    for atlas in ({}, {"session_id": "anna"}):
        usage = again.post(TEXT * 3, 0, atlas=atlas).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == 3 * len(TEXT)
    again.signal(signal.SIGTERM)
    assert again.end() == 0
    assert not [name for name in os.listdir(tmp_path) if name.endswith((".tmp", ".lock", ".aside"))]


@pytest.mark.slow
def test_a_killed_server_leaves_the_last_saved_memory_whole(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    settings = {
        "atlas_memory_file": str(path), "atlas_memory_dir": str(tmp_path), "atlas_auto_save_interval": 1,
    }  # fmt: skip
    for turn in range(3):
        server = start(**settings)
        known = f"turn {turn}. " + TEXT * 2
        for atlas in ({}, {"session_id": "anna"}):
            server.post(known, 0, atlas=atlas)
        server.signal(signal.SIGUSR1)
        load = Load(server, count=20)
        server.until(lambda server=server: any("all is saved" in line for line in server.log))
        server.process.kill()
        assert server.end() == -signal.SIGKILL
        load.stop()
        assert load.unexpected == []
        state = read_session_state(path)  # whole
        assert tuple(map(ord, known)) in set(map(tuple, state.texts))
    server = start(**settings)
    for atlas in ({}, {"session_id": "anna"}):
        usage = server.post(known, 0, atlas=atlas).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == len(known)
    status = httpx.get(f"{server.url}/v1/atlas/status").json()
    assert status["memory_file"]["problem"] is None
    assert {one["id"] for one in httpx.get(f"{server.url}/v1/atlas/sessions").json()["data"]} >= {"anna"}


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return a folder on a disk of its own, of 2 MiB."""
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        pytest.skip("mounting needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", folder]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("no file system can be mounted here")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.slow
def test_a_disk_that_is_really_full(start: Any, disk: Path) -> None:
    """Load goes on, what was saved stays, and all is saved once there is room again."""
    path = disk / "m.atlas"
    settings = {"atlas_memory_file": str(path), "atlas_memory_dir": str(disk), "atlas_auto_save": False}
    server = start(**settings)
    for atlas in ({}, {"session_id": "anna"}):
        server.post(TEXT * 2, 0, atlas=atlas)
    server.signal(signal.SIGUSR1)
    server.until(lambda: any("all is saved" in line for line in server.log))
    before = path.read_bytes()
    ballast = disk / "ballast"
    with open(ballast, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while file.write(bytes(4096)):
            pass
    load = Load(server, clients=3, count=10)
    server.until(lambda: load.answered > 3)
    server.signal(signal.SIGUSR1)
    for what in ("the memory was not saved", "a session was not saved"):
        server.until(lambda what=what: any(what in line and "disk is full" in line for line in server.log))
    answered = load.answered
    server.until(lambda: load.answered > answered)
    load.stop()
    assert load.unexpected == []
    assert path.read_bytes() == before
    assert not list(disk.rglob("*.tmp"))
    server.signal(signal.SIGTERM)
    assert server.end() == 1  # and not 0: something is lost
    assert "what it learned since it last saved is lost" in server.log[-1]
    assert "Traceback" not in "".join(server.log)
    assert path.read_bytes() == before
    ballast.unlink()
    again = start(**settings)
    for atlas in ({}, {"session_id": "anna"}):
        usage = again.post(TEXT * 2, 0, atlas=atlas).json()["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] == usage["prompt_tokens"]
        again.post(f"more {TEXT}", 0, atlas=atlas)
    again.signal(signal.SIGTERM)
    assert again.end() == 0


@pytest.mark.slow
def test_a_second_signal_ends_at_once(start: Any, tmp_path: Path) -> None:
    server = start(step=0.05, drain_seconds=600, atlas_memory_file=str(tmp_path / "m.atlas"))
    gone = []

    def ask() -> None:
        try:
            server.post(TEXT, 100_000)
        except httpx.HTTPError as error:
            gone.append(error)

    asking = threading.Thread(target=ask)
    asking.start()
    server.until(lambda: httpx.get(f"{server.url}/v1/atlas/status").json()["performance"]["running"])
    server.signal(signal.SIGTERM)
    server.until(lambda: any("ending" in line for line in server.log))
    assert server.process.poll() is None
    server.signal(signal.SIGTERM)
    assert server.end() == 128 + signal.SIGTERM
    asking.join()
    assert len(gone) == 1


@pytest.mark.slow
def test_answers_may_end_before_the_server_does(start: Any, tmp_path: Path) -> None:
    held = tmp_path / "held"
    server = start(held=held, drain_seconds=600)
    held.touch()
    found: list[Any] = []
    asking = threading.Thread(target=lambda: found.append(server.post(TEXT, 60)))
    asking.start()
    server.until(lambda: httpx.get(f"{server.url}/v1/atlas/status").json()["performance"]["running"])
    server.signal(signal.SIGTERM)
    server.until(lambda: any("ending" in line for line in server.log))
    assert not found
    held.unlink()
    assert server.end() == 0
    asking.join()
    assert found[0].status_code == 200
    assert found[0].json()["choices"][0]["finish_reason"] in ("length", "stop")


@pytest.mark.slow
def test_a_terminal_that_is_closed_loses_nothing(start: Callable[..., Process], tmp_path: Path) -> None:
    kept = tmp_path / "m.atlas"
    was = signal.signal(signal.SIGHUP, signal.SIG_DFL)  # whoever runs the tests may have ignored it
    try:
        server = start(atlas_memory_file=str(kept))
    finally:
        signal.signal(signal.SIGHUP, was)
    assert server.post(TEXT, 4).status_code == 200
    server.signal(signal.SIGHUP)
    server.signal(signal.SIGHUP)
    assert server.end() == 0
    assert read_session_state(kept).texts


@pytest.mark.slow
def test_nohup_keeps_a_server_running(start: Callable[..., Process]) -> None:
    was = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        server = start()
    finally:
        signal.signal(signal.SIGHUP, was)
    server.signal(signal.SIGHUP)
    assert server.post(TEXT, 4).status_code == 200
    server.signal(signal.SIGTERM)
    assert server.end() == 0


@pytest.mark.slow
def test_saving_on_request(start: Any, tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    server = start(atlas_memory_file=str(path), atlas_auto_save=False)
    server.post(TEXT, 0)
    server.signal(signal.SIGUSR1)
    server.until(path.exists)
    assert read_session_state(path).texts == (list(map(ord, TEXT)),)
    server.signal(signal.SIGTERM)
    assert server.end() == 0


@pytest.mark.slow
def test_a_server_that_still_loads_says_so_and_can_be_ended(start: Any) -> None:
    server = start(loading=600, wait=False, drain_seconds=0)
    answers = []

    def answers_503() -> bool:
        try:
            answers.append(httpx.get(f"{server.url}/health"))
        except httpx.HTTPError:
            return False
        return True

    server.until(answers_503)
    assert answers[-1].status_code == 503
    assert answers[-1].json()["error"]["code"] == "unavailable"
    server.signal(signal.SIGTERM)
    assert server.end() == 0


def test_a_server_collects_its_garbage_though_short_commands_do_not() -> None:
    seen = []

    def open_engine(_: Any) -> Any:
        seen.append(gc.isenabled())
        raise InvalidParamError("that is all")

    config = ServerConfig(model="fake.gguf", port=0)
    gc.disable()
    try:
        with pytest.raises(InvalidParamError, match="that is all"):
            run.serve(config, Service(config, open_engine=open_engine))
    finally:
        gc.enable()
    assert seen == [True]


def test_what_is_loaded_later_waits_for_requests_but_not_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    import uvicorn

    async def wait() -> None:
        service = Service(ServerConfig(model="fake.gguf"), open_engine=lambda _: FakeEngine())
        await service.start()
        try:
            life = run._Life(service, uvicorn, [], gc.get_threshold())
            request = asyncio.ensure_future(asyncio.sleep(60))
            service.conversations.under_way.add(request)
            resting = asyncio.ensure_future(life._rest(time.monotonic()))
            await asyncio.sleep(3 * run.REST_SECONDS)
            assert not resting.done()
            await asyncio.wait_for(life._rest(time.monotonic() - run.LATEST_SECONDS), 60)
            service.conversations.under_way.clear()
            await asyncio.wait_for(resting, 60)
            request.cancel()
        finally:
            await service.stop()

    asyncio.run(wait())


@pytest.mark.slow
def test_a_port_that_is_taken_is_one_sentence(start: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        server = start(wait=False, port=taken.getsockname()[1])
        assert server.end() == 1
    assert len(server.log) == 1
    assert "cannot listen at" in server.log[0]


@pytest.mark.slow
def test_a_second_server_on_one_file_refuses_to_start(start: Any, tmp_path: Path) -> None:
    settings = {"atlas_memory_file": str(tmp_path / "m.atlas")}
    first = start(**settings)
    second = start(wait=False, **settings)
    assert second.end() == 1
    assert "another server keeps its memory in this file" in second.log[-1]
    assert "Traceback" not in "".join(second.log)
    assert first.post(TEXT, 1).status_code == 200


@pytest.mark.slow
def test_a_server_listens_at_several_addresses_and_writes_the_names_of_headers_with_capitals(
    start: Any,
) -> None:
    server = start(host="127.0.0.1,127.0.0.2")
    assert server.post(TEXT, 1).status_code == 200
    answer = httpx.get(f"{server.url.replace('127.0.0.1', '127.0.0.2')}/metrics")
    assert answer.status_code == 200
    names = {name for name, _ in answer.headers.raw}
    assert {b"Process-Start-Time-Unix", b"Content-Type", b"X-Request-Id"} <= names
    assert any("http://127.0.0.1:" in line and "http://127.0.0.2:" in line for line in server.log)


# --- its memory ----------------------------------------------------------------------------------------------

#: Five threads take memory at the same time, and the C library tells how many heaps it has.
HEAPS = """
import ctypes, sys, threading
from atlas_kit.server.run import share_one_heap

share_one_heap()
libc, barrier = ctypes.CDLL(None), threading.Barrier(6)
libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
libc.fopen.restype, libc.fopen.argtypes = ctypes.c_void_p, [ctypes.c_char_p] * 2

def take():
    barrier.wait()
    for _ in range(1000):
        libc.malloc(1000)
    barrier.wait()

for _ in range(5):
    threading.Thread(target=take).start()
barrier.wait()
barrier.wait()
file = ctypes.c_void_p(libc.fopen(sys.argv[1].encode(), b"w"))
libc.malloc_info(0, file)
libc.fclose(file)
print(open(sys.argv[1]).read().count("<heap nr="))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only glibc has heaps of threads")
@pytest.mark.parametrize(("wish", "least", "most"), [(None, 1, 1), ("4", 2, 4)])
def test_threads_share_one_heap_unless_somebody_wants_more(
    tmp_path: Path, wish: str | None, least: int, most: int
) -> None:
    environment = tool_environment() | ({} if wish is None else {"MALLOC_ARENA_MAX": wish})
    if wish is None:
        environment.pop("MALLOC_ARENA_MAX", None)
    done = subprocess.run(
        [sys.executable, "-c", HEAPS, str(tmp_path / "info.xml")],
        env=environment,
        capture_output=True,
        text=True,
    )
    if "malloc_info" in done.stderr:
        pytest.skip("the C library tells nothing of its heaps")
    assert done.returncode == 0, done.stderr
    assert least <= int(done.stdout) <= most


def test_a_server_without_its_application_does_not_begin(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fastapi", None)  # as where it is not installed
    with pytest.raises(MissingExtraError, match="not installed"):
        run.serve(ServerConfig(model="m"), Service(ServerConfig(model="m")))
