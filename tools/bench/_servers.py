"""Servers that are measured, each a process of its own with the command line of llama-server; knows no measurement.

The peer is llama.cpp's own server (``tools/build_llama.py --server``). Where it cannot be built it is the one inside
xllamacpp, which needs half as much processor time again for a token: a result names which one it was.
"""

from __future__ import annotations

import contextlib
import http.client
import importlib.metadata
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tools import build_llama
from tools.bench._http import RequestFailedError

ROOT = Path(__file__).resolve().parent.parent.parent
#: What ``atlas-tool serve`` is started with.
OURS = (sys.executable, "-m", "atlas_kit", "serve")
TICKS = os.sysconf("SC_CLK_TCK") if hasattr(os, "sysconf") else 100

#: xllamacpp's server with the command line of llama-server, as far as it is used here.
XLLAMACPP = """
import argparse, signal
import xllamacpp
parser = argparse.ArgumentParser()
for name, type in (("-m", str), ("-c", int), ("-np", int), ("-t", int), ("--host", str), ("--port", int)):
    parser.add_argument(name, type=type)
given = parser.parse_args()
params = xllamacpp.CommonParams()
params.model.path, params.n_ctx, params.n_parallel = given.m, given.c, given.np
params.hostnames, params.port, params.endpoint_metrics = [given.host], given.port, True
params.cpuparams.n_threads = params.cpuparams_batch.n_threads = given.t
params.kv_unified = False
server = xllamacpp.Server(params)
signal.pause()
"""


@dataclass(frozen=True)
class Peer:
    """A server to compare with: what it is, and how its command line begins."""

    name: str
    version: str
    command: tuple[str, ...]
    options: tuple[str, ...] = ()


def find_peer(path: str | None = None) -> Peer:
    """Return llama.cpp's own server, or the one inside xllamacpp where there is none.

    Raises
    ------
    SystemExit
        Neither is there.
    """
    try:
        version = importlib.metadata.version("llama-cpp-python")
    except importlib.metadata.PackageNotFoundError:
        version = "none"
    native = Path(path) if path else build_llama.server_path(version)
    if build_llama.starts(native):
        return Peer("llama-server", version, (str(native),), ("--metrics", "--no-ui"))
    if path:
        raise SystemExit(f"{path} is no server that runs here")
    try:
        version = importlib.metadata.version("xllamacpp")
    except importlib.metadata.PackageNotFoundError:
        raise SystemExit(
            "There is no server to compare with: python tools/build_llama.py --server builds one, "
            "or pip install xllamacpp"
        ) from None
    return Peer("xllamacpp", version, (sys.executable, "-c", XLLAMACPP))


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port: int = found.getsockname()[1]
        return port


class Server:
    """A server that runs until it is closed.

    Parameters
    ----------
    command
        Its command line without ``--host`` and ``--port``.
    wait
        Whether to wait until it is ready.

    Raises
    ------
    RequestFailedError
        It ended before it was ready, with the end of what it said.
    """

    def __init__(self, command: Sequence[str], *, wait: bool = True) -> None:
        self.port = free_port()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - it lives as long as the process
        self.started = time.perf_counter()
        environment = {name: value for name, value in os.environ.items() if name not in _OWN}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        self.process = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(self.port)],
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        if wait:
            try:
                self.wait_until_ready()
            except BaseException:
                self.close()
                raise

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def wait_until_ready(self, seconds: float = 600.0) -> None:
        """Wait until it says that it is well."""
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if self.process.poll() is not None:
                raise RequestFailedError(f"a server ended with {self.process.returncode}: {self.log()}")
            connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
            with contextlib.suppress(OSError, http.client.HTTPException), contextlib.closing(connection):
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            time.sleep(0.01)  # each look costs the server something
        raise RequestFailedError(f"a server is not ready after {seconds:.0f} s: {self.log()}")

    def log(self, size: int = 2000) -> str:
        """Return the end of what it said."""
        at = os.fstat(self._log.fileno()).st_size
        return os.pread(self._log.fileno(), size, max(0, at - size)).decode(errors="replace")

    def cpu(self) -> float:
        """Return the processor time that it has used, in seconds."""
        with open(f"/proc/{self.process.pid}/stat", encoding="utf-8") as file:
            fields = file.read().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / TICKS

    def resident(self) -> int:
        """Return its memory, in bytes."""
        with open(f"/proc/{self.process.pid}/statm", encoding="ascii") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    def stop(self, seconds: float = 120.0) -> int:
        """Ask it to end, as systemd does, and return its exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    def close(self) -> None:
        """End it whatever it does."""
        try:
            self.stop(30)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
        self._log.close()


#: What this process says to its own NumPy and about its own modules, and a server must not inherit: one that is
#: installed has its modules compiled, and a start that compiles them takes a third longer.
_OWN = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "PYTHONDONTWRITEBYTECODE")


@contextlib.contextmanager
def running(*commands: Sequence[str]) -> Iterator[list[Server]]:
    """Run servers beside each other; an idle one costs the others nothing but memory."""
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(Server(command)) for command in commands]
