"""Files that a server keeps in a store under their own names: memories that clients save, and the shared memory.

Memories that clients save by name are everybody's: whoever saves last has saved, as in a folder, and each reading asks
the store first. The shared memory (``SharedFile``) has one server: it is leased, and each save is put only over the
version that was read or put before, which is noted in the spool, as the file there outlives the server. Where somebody
else has written it, theirs stays, and what is saved here goes beside it under a name of its own.

What the store does not take waits in the spool, with a mark beside it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import threading
import time
from typing import TYPE_CHECKING

from atlas_kit.errors import ConflictError, FileAccessError, LockedError
from atlas_kit.server.leases import Lease
from atlas_kit.server.moved import HeldElsewhereError, LeaseLostError
from atlas_kit.server.shared_store import SharedStore
from atlas_kit.storage.atomic import write_atomically
from atlas_kit.storage.objects import ABSENT, Objects, objects_at

if TYPE_CHECKING:
    from atlas_kit.server.config import ServerConfig

log = logging.getLogger("atlas_kit.server")
_WAITS, _BASE, _SUFFIX = ".waits", ".base", ".atlas"
#: Where things go that are written over, or were not to be.
_ASIDE = "aside"
#: Where memories are that clients save.
MEMORIES = "memories"
#: Writes without an answer that are remembered: the store may have carried out any of them, and it is one's own.
_MOST_TRIED = 63
#: The lease of the memory that a file holds.
_LEASE = "memory"


class SharedMemories:
    """Files that are everybody's, such as memories that clients save by name; all may be done on any thread.

    Parameters
    ----------
    store
        Where they are.
    name
        Of their folder.
    stay
        Whether they stay in the spool when the store has them.
    """

    def __init__(self, store: SharedStore, name: str = MEMORIES, *, stay: bool = True) -> None:
        self.store, self._objects = store, store.objects
        self._folder, self._stay = name, stay
        self.folder = store.folder(name)
        self._turn = threading.RLock()
        store.add(self)

    def _name(self, path: str) -> str:
        return f"{self._folder}/{os.path.relpath(path, self.folder).replace(os.sep, '/')}"

    def bring(self, path: str) -> None:
        """Bring the newest state of a file, unless what is here waits for the store; one that is not there goes here.

        While the store is away, what was brought before stands for it.

        Raises
        ------
        FileAccessError
            It is away, and nothing was brought.
        """
        with self._turn:
            if os.path.lexists(path + _WAITS):
                return
            try:
                os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
                with self.store.asking():
                    if self._objects.fetch(self._name(path), path) is None:
                        with contextlib.suppress(FileNotFoundError):
                            os.unlink(path)
            except FileAccessError:
                if not os.path.lexists(path):
                    raise

    def read(self, path: str) -> bytes | None:
        """Return what is in a small file, which is not brought here; None: there is none.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        with self._turn:
            if os.path.lexists(path + _WAITS):
                with contextlib.suppress(FileNotFoundError), open(path, "rb") as file:
                    return file.read()
                return None
        with self.store.asking():
            found = self._objects.read(self._name(path))
        return None if found is None else found.data

    def put(self, path: str) -> None:
        """Put a file that was written or removed, now or when the store is back."""
        with self._turn:
            with open(path + _WAITS, "wb"):
                pass
            with contextlib.suppress(FileAccessError):
                self._put(path)

    def waits(self, path: str) -> bool:
        """Tell whether the store lacks a file that was saved."""
        return os.path.lexists(path + _WAITS)

    def _put(self, path: str, *, late: bool = False) -> None:
        with self.store.asking():
            if os.path.lexists(path):
                if late and self._stay:
                    self._keep_beside(path)
                self._objects.put_file(self._name(path), path)
                self.store.has_put()
            else:
                self._objects.delete(self._name(path))
        os.unlink(path + _WAITS)
        if not self._stay:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)

    def _keep_beside(self, path: str) -> None:
        """Keep what the store has of a file that has waited: somebody else may have saved it since."""
        copy = f"{path}.{os.urandom(4).hex()}.there"
        try:
            if self._objects.fetch(self._name(path), copy) is not None and _digest(copy) != _digest(path):
                stem, end = os.path.splitext(self._name(path))
                beside = f"{_ASIDE}/{stem}.{time.strftime('%Y%m%d-%H%M%S')}-{os.urandom(4).hex()}{end}"
                self._objects.put_file(beside, copy)
                log.warning("what the store had of a memory that has waited is kept as %s", beside)
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)

    def names(self, folder: str) -> list[str]:
        """Return the paths here of all files of a folder, there and waiting here.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        with self.store.asking():
            found = self._objects.listed(self._name(folder).removesuffix("/."))
        there = {os.path.join(self.folder, *name.split("/")[1:]) for name in found}
        return sorted(there.union(self.waiting_in(folder)))

    def waiting_in(self, folder: str) -> list[str]:
        """Return the files of a folder that the store lacks."""
        return [path for path in self._marked() if path.startswith(folder + os.sep)]

    def addresses(self, folder: str) -> list[str]:
        """Return the addresses of the memories in a folder, of which the newest is not here.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        start = self._name(folder).removesuffix("/.")
        with self.store.asking():
            found = self._objects.listed(start)
        own = [name for name in found if name.count("/") == start.count("/") + 1 and name.endswith(_SUFFIX)]
        return [
            f"{self._objects.url}/{name}"
            for name in own
            if not self.waits(os.path.join(folder, name.rpartition("/")[2]))
        ]

    def waiting(self) -> list[str]:
        """Return the names of the files that the store lacks."""
        return [os.path.basename(path) for path in self._marked()]

    def _marked(self) -> list[str]:
        return [
            os.path.join(folder, name.removesuffix(_WAITS))
            for folder, _, names in os.walk(self.folder)
            for name in names
            if name.endswith(_WAITS)
        ]

    def put_waiting(self) -> None:
        """Put what the store lacks.

        Raises
        ------
        FileAccessError
            It is away.
        """
        for path in self._marked():
            with self._turn:
                if os.path.lexists(path + _WAITS):
                    self._put(path, late=True)


class SharedFile:
    """One file that this server alone writes, in a store; everything may be done on any thread.

    Parameters
    ----------
    store
        Has the lease, and the spool.
    objects, name
        Where it is.

    Attributes
    ----------
    path
        The file in the spool.
    problem
        What became of it that somebody should know.
    """

    def __init__(self, store: SharedStore, objects: Objects, name: str) -> None:
        self._store, self._objects, self._name = store, objects, name
        self.path = os.path.join(store.folder("memory"), name)
        self.problem: str | None = None
        self._lease: Lease | None = None
        self._version, self._tried = self._noted_base()
        self._aside: str | None = None
        self._turn = threading.RLock()
        store.add(self)

    def open(self) -> None:
        """Take the lease, and bring the file. While the store is away, what is in the spool goes on.

        Raises
        ------
        LockedError
            Another server has it, and is alive.
        """
        until = time.monotonic() + 1.5 * self._store.leases.seconds + 1
        while True:
            try:
                with self._store.asking():
                    self._take()
                    return
            except HeldElsewhereError as error:
                if time.monotonic() > until:
                    raise LockedError(
                        f"another server keeps its memory in this file: {error.holder}",
                        path=f"{self._objects.path}/{self._name}",
                        hint="Name another file.",
                    ) from error
            except ConflictError:
                continue
            except FileAccessError as error:
                log.warning("the memory goes on from what is in the spool: %s", error.message)
                return
            time.sleep(self._store.leases.seconds / 10)

    def _take(self) -> None:
        """Take the lease, and see what the store has: newer than what waits here, that is put aside."""
        leases = self._store.leases
        self._lease = leases.take(_LEASE)
        assert self._lease is not None
        if self._waits and os.path.lexists(self.path):
            found = self._objects.listed(self._name).get(self._name, ABSENT)
            if found in (self._version, ABSENT) or self._is_ones_own():
                self._note_base(found)
                return
            self._begin_aside()
            self._put()
            self._aside = None
            os.unlink(self.path)
        version = self._objects.fetch(self._name, self.path) or ABSENT
        if not version:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self.path)
        self._note_base(version)

    # --- what the file here has come from ----------------------------------------------------------------------

    def _noted_base(self) -> tuple[str, list[str]]:
        """Return the version that the file here goes on from, and the digests of what may have been put since."""
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            with open(self.path + _BASE, encoding="utf-8") as file:
                found = json.load(file)
            if isinstance(found["version"], str):
                return found["version"], [str(one) for one in found["tried"]]
        return ABSENT, []

    def _note_base(self, version: str, *tried: str) -> None:
        self._version, self._tried = version, list(tried)
        text = json.dumps({"version": version, "tried": self._tried})
        write_atomically(self.path + _BASE, text.encode())

    def _is_ones_own(self) -> bool:
        """Tell whether what the store has was put from here, by a write whose answer was lost; go on from it then."""
        if not self._tried:
            return False
        copy = f"{self.path}.{os.urandom(4).hex()}.there"
        try:
            version = self._objects.fetch(self._name, copy)
            if version is None or _digest(copy) not in self._tried:
                return False
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(copy)
        self._version = version
        return True

    def _put_over(self) -> None:
        """Put the file over the version that it goes on from.

        Raises
        ------
        ConflictError
            Somebody else has written it.
        """
        self._note_base(self._version, *self._tried[-_MOST_TRIED:], _digest(self.path))
        try:
            version = self._objects.put_file(self._name, self.path, self._version)
        except ConflictError:
            if not self._is_ones_own():
                raise
            version = self._objects.put_file(self._name, self.path, self._version)
        self._note_base(version)

    @property
    def _waits(self) -> bool:
        return os.path.lexists(self.path + _WAITS)

    def _begin_aside(self) -> None:
        """Let what is saved here go beside what somebody else has written."""
        stem, end = os.path.splitext(self._name)
        self._aside = f"{stem}.{time.strftime('%Y%m%d-%H%M%S')}-{self._store.leases.me[:8]}.aside{end}"
        self.problem = (
            f"somebody else has written {self._name}; what is saved here is {self._aside} beside it"
        )
        log.warning("%s", self.problem)

    def put(self) -> None:
        """Put the file that was written, now or when the store is back."""
        with self._turn:
            with open(self.path + _WAITS, "wb"):
                pass
            with contextlib.suppress(FileAccessError):
                self._put()

    @property
    def lacking(self) -> str | None:
        """What the store lacks, in words; None: it has the last save."""
        if self._waits:
            return self._store.lacking
        return self.problem

    def _put(self) -> None:
        with self._store.asking():
            if self._aside is None:
                try:
                    if self._lease is None:  # the store was away when it began
                        self._lease = self._store.leases.take(_LEASE)
                    else:
                        self._store.leases.confirm(self._lease)
                    assert self._lease is not None
                    self._put_over()
                    self._store.leases.write(self._lease, about={"version": self._version})
                except (LeaseLostError, HeldElsewhereError, ConflictError):
                    self._begin_aside()
            if self._aside is not None:
                self._objects.put_file(self._aside, self.path)
        self._store.has_put()
        os.unlink(self.path + _WAITS)

    def waiting(self) -> list[str]:
        """Return the name of the file, where the store lacks it."""
        return [self._name] if self._waits else []

    def put_waiting(self) -> None:
        """Put what the store lacks.

        Raises
        ------
        FileAccessError
            It is away.
        """
        with self._turn:
            if self._waits and os.path.lexists(self.path):
                self._put()


def _digest(path: str) -> str:
    with open(path, "rb") as file:
        found = hashlib.sha256()
        while piece := file.read(1 << 20):
            found.update(piece)
        return found.hexdigest()


def opened(config: ServerConfig) -> tuple[SharedStore, SharedMemories, ServerConfig]:
    """Return the store that a server is set up with, which goes round, and the memories that clients save there.

    The set-up has a folder of the spool in the address's place.

    Raises
    ------
    InvalidParamError, MissingExtraError
        Nothing can be written to such an address.
    """
    assert config.memory_address is not None
    store = _begun(config, config.memory_address)
    memories = SharedMemories(store)
    return store, memories, dataclasses.replace(config, atlas_memory_dir=memories.folder)


def shared_file(config: ServerConfig, url: str) -> tuple[SharedStore, SharedFile]:
    """Return the memory that is kept in the file at an address, and a store for its lease, which lies beside it.

    Raises
    ------
    InvalidParamError, MissingExtraError
        Nothing can be written to such an address.
    """
    above, _, last = url.rpartition("/")
    store = _begun(config, f"{url}.server")
    return store, SharedFile(store, objects_at(above), last)


def _begun(config: ServerConfig, url: str) -> SharedStore:
    found = SharedStore(url, config.atlas_memory_spool, config.atlas_lease_seconds, config.atlas_replica_name)
    found.begin()
    return found
