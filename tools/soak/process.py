"""The server that is tried: one address, one folder, and as many lives as faults give it. Knows no clients.

It runs with the command line of ``atlas-tool serve``, may write into a file system of its own that can be filled up
(where a small one can be mounted, else its files' sizes are limited), and obeys permissions also where it is root.
"""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from tools.bench._servers import _OWN, OURS, ROOT, TICKS, free_port

#: MiB of the file system that memories are in.
DISK = 512
DRAIN = 3
#: Two clients' keys, so that equal names of sessions are different sessions.
KEYS = ("soak-key-of-the-first", "soak-key-of-the-second")


@dataclass(frozen=True)
class Sample:
    """What a server uses: seconds since the start of the test; bytes; counts."""

    second: float
    life: int
    resident: int
    descriptors: int
    threads: int
    cpu: float
    memory_files: int
    session_files: int
    temporary_files: int


class Disk:
    """The folder of memories, which can be full, or only be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(mode=0o700)
        mount = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m,mode=0700", "atlas-soak", str(folder)]
        self.own = (
            shutil.which("mount") is not None
            and not subprocess.run(mount, capture_output=True, check=False).returncode
        )
        self._ballast = folder / "ballast"

    @property
    def how(self) -> str:
        """How it becomes full."""
        return f"a file system of {DISK} MiB is filled" if self.own else "the size of files is limited"

    def fill(self, process: int) -> None:
        """Let there be no room, for a server's process."""
        if not self.own:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
            return
        with open(self._ballast, "ab", buffering=0) as file:
            for size in (1 << 20, 1 << 12):
                with contextlib.suppress(OSError):
                    while file.write(bytes(size)) == size:
                        pass

    def empty(self, process: int) -> None:
        """Let there be room again."""
        if not self.own:
            resource.prlimit(process, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        self._ballast.unlink(missing_ok=True)

    def close(self) -> None:
        """Let go of the file system."""
        if self.own:
            subprocess.run(["umount", str(self.folder)], capture_output=True, check=False)


class Server:
    """A server with one address, over all its lives.

    Parameters
    ----------
    folder
        Where its model, its memories, its temporary files and its log are.
    model
        The model that it gets a copy of.
    heard
        Is told each line of the log, on another thread.
    """

    def __init__(self, folder: Path, model: Path, heard: Callable[[str], None]) -> None:
        self.port = free_port()
        self.folder, self._heard = folder, heard
        self.model, self.temporary = folder / "model.gguf", folder / "temporary"
        shutil.copy(model, self.model)
        self.disk = Disk(folder / "memories")
        self.memories = self.disk.folder
        self.sessions, self.shared = self.memories / "sessions", self.memories / "shared.atlas"
        self.temporary.mkdir()
        self.life = 0
        self.saved = threading.Event()
        self.process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None
        self._log = open(folder / "server.log", "a", encoding="utf-8")  # noqa: SIM115 - as long as this lives

    @property
    def obeys_permissions(self) -> bool:
        """Whether a folder that may only be read is so for the server, too."""
        return os.geteuid() != 0 or shutil.which("setpriv") is not None

    def command(self, port: int | None = None) -> list[str]:
        """Return its command line."""
        drop = ["setpriv", "--bounding-set=-dac_override,-dac_read_search"]
        as_anyone = drop if os.geteuid() == 0 and self.obeys_permissions else []
        return [
            *as_anyone, *OURS, "-m", str(self.model), "-np", "4", "-t", "1", "--host", "127.0.0.1",
            "--port", str(port or self.port), "--drain-seconds", str(DRAIN), "--api-key", ",".join(KEYS),
            "--atlas-memory-file", str(self.shared), "--atlas-memory-dir", str(self.memories),
            "--atlas-auto-save-interval", "5", "--atlas-warm-sessions", "12", "--cache-ram", "64",
        ]  # fmt: skip

    def environment(self) -> dict[str, str]:
        """Return the variables that it runs with."""
        found = {name: value for name, value in os.environ.items() if name not in _OWN}
        path = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
        return {**found, "TMPDIR": str(self.temporary), "PYTHONPATH": path}

    def start(self) -> None:
        """Begin a life; it is ready later."""
        assert self.process is None
        self.life += 1
        self.process = subprocess.Popen(
            self.command(), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            text=True, errors="replace", env=self.environment(),
        )  # fmt: skip
        self._reader = threading.Thread(target=self._read, args=(self.process,), daemon=True)
        self._reader.start()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stderr is not None
        with process.stderr:
            for line in process.stderr:
                self._log.write(line)
                if "all is saved" in line:
                    self.saved.set()
                self._heard(line)
        self._log.flush()

    def signal(self, number: int) -> None:
        """Send a signal."""
        if self.process is not None:
            self.process.send_signal(number)

    @property
    def over(self) -> int | None:
        """The exit code of a life that is over."""
        return None if self.process is None else self.process.poll()

    def buried(self) -> int:
        """Return the exit code of a life that is over, and make room for the next."""
        assert self.process is not None
        assert self._reader is not None
        code = self.process.wait()
        self._reader.join(10)
        self.process = None
        return code

    def sample(self, second: float, connected: int = 0) -> Sample | None:
        """Return what it uses now; None where it is not there.

        ``connected``: connections that clients have, which are not counted among its descriptors.
        """
        if self.process is None or self.process.poll() is not None:
            return None
        place = f"/proc/{self.process.pid}"
        try:
            with open(f"{place}/statm", encoding="ascii") as file:
                resident = int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            with open(f"{place}/stat", encoding="utf-8") as file:
                fields = file.read().rpartition(")")[2].split()
            descriptors = len(os.listdir(f"{place}/fd")) - connected
        except (OSError, IndexError):
            return None
        cpu = (int(fields[11]) + int(fields[12])) / TICKS
        return Sample(
            second, self.life, resident, descriptors, int(fields[17]), cpu, _count(self.memories),
            _count(self.sessions, ".atlas"), sum(len(files) for _, _, files in os.walk(self.temporary)),
        )  # fmt: skip

    def close(self) -> None:
        """End whatever there is."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            self.buried()
        self._log.close()
        self.disk.close()


def _count(folder: Path, ending: str = "") -> int:
    """Return how many files there are, those aside that a fault of ours has brought about."""
    with contextlib.suppress(OSError):
        return sum(
            one.is_file() and one.name.endswith(ending) and not one.name.endswith(".aside")
            for one in folder.iterdir()
        )
    return 0


def leftovers(folder: Path) -> list[str]:
    """Return what a server that has ended well should not have left."""
    return sorted(one.name for one in folder.rglob("*") if one.name.endswith((".tmp", ".lock")))
