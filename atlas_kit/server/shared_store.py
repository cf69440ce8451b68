"""The store that a server's memory is kept in when its directory is an address, and the folder that stands before it.

Everything is worked on in files of this machine, in a folder that is called the *spool*. What is saved is written
there first, and then put into the store, whole. While the store is away the server goes on, and what is saved waits in
the spool; it is tried again after a while, which doubles, and a last time when the server ends. What is left then stays
in the spool, and the next server that is given it puts it first. A spool is one server's: it keeps the id by which the
others know that one, so that who starts again goes on with what it held.

Here is what all of that has in common: the folder, whether the store answers, and the thread that goes round. Sessions
are ``shared_sessions.py``'s; who holds what, ``leases.py``'s.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

from atlas_kit.background import start_thread
from atlas_kit.errors import AtlasError, ConflictError, FileAccessError, LockedError
from atlas_kit.server.leases import ROUNDS, Leases, clock
from atlas_kit.server.session_files import make_private
from atlas_kit.storage.atomic import lock, write_atomically
from atlas_kit.storage.objects import REFUSALS, objects_at

log = logging.getLogger("atlas_kit.server")
#: Seconds until a store that was away is tried again: the first time, and at most.
FIRST_WAIT, LONGEST_WAIT = 1.0, 30.0
#: Spools of one address that servers on this machine may have at the same time.
MOST_SPOOLS = 64
_ID = "replica.json"
#: What says where the stores of a scheme are, if not where its maker has them; the first that is set counts.
_S3, _GOOGLE = ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL"), ("STORAGE_EMULATOR_HOST",)
_ENDPOINTS = {"s3": _S3, "s3a": _S3, "gs": _GOOGLE, "gcs": _GOOGLE}


class Waiting(Protocol):
    """Something that has files in the spool which the store lacks."""

    def put_waiting(self) -> None:
        """Put what waits.

        Raises
        ------
        FileAccessError
            The store is away.
        """

    def waiting(self) -> list[str]:
        """Return the names of the files in the spool that wait."""


def spool_of(url: str, folder: str | None) -> str:
    """Return the folder in which the spools of an address are: each address has one of its own."""
    if folder is None:
        state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
        folder = os.path.join(state, "atlas-kit", "spool")
    # the same bucket at another endpoint is another store
    places = [
        os.environ[one] for one in _ENDPOINTS.get(url.partition(":")[0].lower(), ()) if os.environ.get(one)
    ]
    address = "\0".join([url.rstrip("/"), *places[:1]])
    return os.path.join(folder, hashlib.sha256(address.encode("utf-8", "surrogatepass")).hexdigest()[:16])


class SharedStore:
    """The store of a server and its spool; ``begin`` lets it go round, ``close`` gives everything back.

    Parameters
    ----------
    url
        Where it is.
    folder
        Where spools are; None: in the user's folder for such things.
    seconds
        How long a lease counts without a sign of life.
    name
        What this server is called in messages to whoever asks another one.

    Raises
    ------
    InvalidParamError, MissingExtraError
        Nothing can be written to such an address.
    FileAccessError, LockedError
        There is no folder for the spool.
    """

    def __init__(self, url: str, folder: str | None, seconds: float, name: str | None = None) -> None:
        self.objects = objects_at(url)
        self._held = contextlib.ExitStack()
        self.spool = self._opened(spool_of(url, folder))
        self._stop = threading.Event()
        self._threads: list[threading.Thread] = []
        self._puts: list[Waiting] = []
        #: Called with the ids of sessions that other replicas want, on the thread that goes round.
        self.wanted: Callable[[str], None] = lambda _: None
        self._probed = False
        self.leases = Leases(self.objects, self._identity(), name or socket.gethostname(), seconds)
        #: What is wrong with the store; None: it answered last time.
        self.problem: str | None = None
        self.away_since: float | None = None
        self.last_put: float | None = None
        self.puts = self.failures = self.lost = 0
        self._wait, self._again = FIRST_WAIT, float("-inf")

    # --- the spool -------------------------------------------------------------------------------------------

    def _opened(self, above: str) -> str:
        try:
            make_private(above)
        except FileAccessError as error:
            above = os.path.join(tempfile.gettempdir(), f"atlas-spool-{os.path.basename(above)}")
            log.warning("what waits for the store is kept in %s: %s", above, error.message)
            make_private(above)
        for number in range(1, MOST_SPOOLS + 1):
            folder = os.path.join(above, str(number))
            make_private(folder)
            with contextlib.suppress(LockedError):
                self._held.enter_context(lock(os.path.join(folder, "spool"), timeout=0.0))
                return folder
        raise LockedError("all folders for what waits for the store are in use", path=above)

    def folder(self, name: str) -> str:
        """Return a folder in the spool, which is made."""
        found = os.path.join(self.spool, name)
        make_private(found)
        return found

    def _identity(self) -> str:
        """Return the id that the server had which had this spool before, or a new one."""
        path = os.path.join(self.spool, _ID)
        with (
            contextlib.suppress(OSError, ValueError, KeyError, TypeError),
            open(path, encoding="utf-8") as file,
        ):
            found = json.load(file)
            if found["store"] == self.objects.path and isinstance(found["id"], str):
                return str(found["id"])
        return self._new_identity(os.urandom(8).hex())

    def _new_identity(self, found: str) -> str:
        text = json.dumps({"store": self.objects.path, "id": found})
        write_atomically(os.path.join(self.spool, _ID), text.encode())
        return found

    # --- whether the store answers ---------------------------------------------------------------------------

    @contextlib.contextmanager
    def asking(self) -> Iterator[None]:
        """Ask the store for something, and take note of whether it answered.

        Raises
        ------
        FileAccessError
            It does not, or did not lately: it is left alone for a while.
        """
        if self.resting:
            raise FileAccessError(f"the store of memories is away: {self.problem}")
        try:
            yield
        except ConflictError:
            self._answers()
            raise
        except AtlasError as error:
            if isinstance(error, FileAccessError):
                self._fails(error.message)
            raise
        self._answers()

    @property
    def resting(self) -> bool:
        """Whether the store was away a moment ago, and is not asked again yet."""
        return self.problem is not None and clock() < self._again

    def try_again(self) -> None:
        """Let the store be asked at once."""
        self._again = float("-inf")

    def _answers(self) -> None:
        if self.problem is not None:
            log.warning("the store of memories is back")
        self.problem, self.away_since, self._wait = None, None, FIRST_WAIT

    def _fails(self, why: str) -> None:
        self.failures += 1
        if self.problem is None:
            self.away_since = time.time()
            log.warning("the store of memories is away: %s; what is saved waits in %s", why, self.spool)
        self.problem = why
        if clock() >= self._again:  # several may have asked at once
            self._again, self._wait = clock() + self._wait, min(2 * self._wait, LONGEST_WAIT)

    def status(self) -> dict[str, Any]:
        """Return how things stand."""
        return {
            "address": self.objects.path,
            "replica": self.leases.name,
            "reachable": self.problem is None,
            "problem": self.problem,
            "away_since": self.away_since,
            "conditional_writes": self.objects.conditional,
            "waiting": len(self.waiting()),
            "last_put": self.last_put,
            "puts": self.puts,
            "failures": self.failures,
            "leases_lost": self.lost,
        }

    def brief(self) -> dict[str, Any]:
        """Return the least of that."""
        return {"reachable": self.problem is None, "waiting": len(self.waiting())}

    def waiting(self) -> list[str]:
        """Return the names of the files in the spool that the store lacks."""
        return [name for one in self._puts for name in one.waiting()]

    @property
    def lacking(self) -> str:
        """What is said of something that waits for the store."""
        return f"the store is away ({self.problem}), and gets it when it is back"

    def has_put(self) -> None:
        """Take note that something was saved in the store."""
        self.puts, self.last_put = self.puts + 1, time.time()

    # --- going round -----------------------------------------------------------------------------------------

    def add(self, one: Waiting) -> None:
        """Let what somebody has in the spool be put when the store is back."""
        self._puts.append(one)

    def begin(self) -> None:
        """Go round from now on.

        Raises
        ------
        FileAccessError
            The store answers, and will have nothing of it: there is no such bucket, or permission is denied.
        """
        try:
            self.objects.read(f"probes/{self.leases.me}")
        except AtlasError as error:
            if error.message in REFUSALS:
                self._held.close()
                raise
        self._go_round()
        for work, what in ((self._work, "atlas-leases"), (self._put, "atlas-store")):
            self._threads.append(start_thread(work, name=what, stop=self._stop.set))

    def _work(self) -> None:
        while not self._stop.wait(self.leases.seconds / ROUNDS):
            self._go_round()

    def _go_round(self) -> None:
        """Say that this server is alive, and hear what others want."""
        me = self.leases.me
        try:
            with self.asking():
                if not self._probed:
                    self._probed = True
                    if not self.objects.probe(f"probes/{me}"):
                        log.warning(
                            "this store has no conditional writes: one server only may keep its memory in it"
                        )
                wanted = self.leases.go_round()
        except AtlasError as error:
            log.debug("the store was not asked: %s", error.message)
            return
        except Exception:
            log.exception("the round of the leases failed")
            return
        if self.leases.me != me:
            self._new_identity(self.leases.me)
        for one in wanted:
            self.wanted(one)

    def _put(self) -> None:
        """Put what waits, as soon as the store is back."""
        while not self._stop.wait(min(1.0, self.leases.seconds / ROUNDS)):
            if not self.resting:
                self._put_once()

    def _put_once(self) -> bool:
        for one in self._puts:
            if not one.waiting():
                continue
            try:
                one.put_waiting()
            except AtlasError as error:
                log.debug("what waits was not put: %s", error.message)
                return False
            except Exception:
                log.exception("what waits was not put")
                return False
        return True

    def end(self) -> list[str]:
        """Put what waits, give back all leases, and return what is left in the spool."""
        self._stop.set()
        for thread in self._threads:
            thread.join()
        if self.waiting():
            self.try_again()
            self._put_once()
        left = self.waiting()
        for name in left:
            log.warning("the store does not have %s yet: it stays in %s", name, self.spool)
        with contextlib.suppress(AtlasError), self.asking():
            self.leases.end()
        if not left:
            with contextlib.suppress(OSError):
                os.unlink(os.path.join(self.spool, _ID))
        return left

    def close(self) -> None:
        """Let another server use the spool."""
        self._held.close()
