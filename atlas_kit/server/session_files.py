"""The files of sessions that are not in main memory: one each, in one folder, under the hash of its name.

With a folder of their own, sessions outlive a restart; else the files are in a private one, which goes with the server,
or where that was killed, with the next one that starts. Everything here may be done on any thread; of who uses a
session, the module knows nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import re
import shutil
import stat
import tempfile
import threading
import time
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.errors import AtlasError, FileAccessError, LockedError
from atlas_kit.persistence.session_file import (
    context_bytes,
    drop_context,
    read_session_state,
    seal,
    write_session_state,
)
from atlas_kit.server.keys import Key
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.source import access_error

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.storage.keys import Keys

log = logging.getLogger("atlas_kit.server")
_SUFFIX = ".atlas"
#: Files beside that of a session while it is written: see ``storage/atomic.py``.
_HALF = re.compile(r"\.[0-9a-f]{40}\.atlas\.([0-9a-f]{8}\.tmp|lock)")
#: What the names of private folders begin with, and what is locked in a folder by the server that it belongs to.
_PRIVATE, _OWNER = "atlas-sessions-", "server"


class _Kept(NamedTuple):
    """A context in a file: its bytes, and when its session was used."""

    size: int
    used: float


class Recent(NamedTuple):
    """A session that has a file: how large that is, in bytes, and when it was used."""

    key: Key
    size: int
    used: float


class SessionFiles:
    """Writes and reads sessions.

    Parameters
    ----------
    folder
        Where they are; None: in a temporary folder, which ``close`` removes.
    codec
        How arrays are compressed; None: they are not.
    most_context
        Bytes of models' contexts that all files together may hold; None: any number. Those of the sessions used last
        stay, and the others' texts are read again.
    keys
        What encrypts them.

    Raises
    ------
    LockedError
        Another server uses this folder.
    FileAccessError
        It cannot be made or written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str] | None = None,
        codec: str | None = None,
        most_context: int | None = None,
        keys: Keys | None = None,
    ) -> None:
        self._secret = {} if keys is None else keys.options()
        self._most_context = most_context
        self._contexts: dict[str, _Kept] | None = None  # by path; not looked for yet
        self._counting = threading.Lock()
        self._folder = None if folder is None else os.fspath(folder)
        self._private = folder is None
        self._codec = codec
        self._making = threading.Lock()
        self._held = contextlib.ExitStack()
        self._seen: dict[str, tuple[tuple[int, int], dict[str, Any]]] = {}
        remove_abandoned()
        if folder is not None:
            self._open(os.fspath(folder))

    def _open(self, folder: str) -> None:
        make_private(folder)
        try:
            self._held.enter_context(lock(os.path.join(folder, _OWNER), timeout=1.0))
        except LockedError as error:
            raise LockedError(
                "another server uses this folder of sessions", path=folder, hint="Give each its own folder."
            ) from error
        _remove_halves(folder)

    @property
    def folder(self) -> str:
        """Where the files are; a private folder is made when it is needed first."""
        with self._making:
            if self._folder is None:
                try:
                    self._folder = self._made()
                # another server that starts may take it for abandoned before it is locked
                except (FileAccessError, LockedError):
                    self._folder = self._made()
            return self._folder

    def _made(self) -> str:
        """Return a new private folder, which others can see is in use."""
        try:
            folder = tempfile.mkdtemp(prefix=_PRIVATE)
        except OSError as error:
            raise access_error(error, tempfile.gettempdir(), "write") from error
        self._held.enter_context(lock(os.path.join(folder, _OWNER), timeout=1.0))
        return folder

    @property
    def outlives(self) -> bool:
        """Whether what is written is there after a restart."""
        return not self._private

    def path_of(self, key: Key) -> str:
        """Return the file of a session."""
        name = hashlib.sha256(f"{key.namespace}\0{key.name}".encode("utf-8", "surrogatepass")).hexdigest()[
            :40
        ]
        return os.path.join(self.folder, name + _SUFFIX)

    def exists(self, key: Key) -> bool:
        """Tell whether there is a file of a session.

        Raises
        ------
        FileAccessError
            That cannot be said now: whoever took it for none would write over it.
        """
        if self._folder is None:
            return False
        path = self.path_of(key)
        try:
            return stat.S_ISREG(os.stat(path).st_mode)
        except (FileNotFoundError, NotADirectoryError):
            return False
        except OSError as error:
            raise access_error(error, path) from error

    def ticket(self, key: Key) -> int:
        """Return what says that a session is this server's, and still the same: whoever changes its file has it."""
        return 0

    def waits(self, key: Key) -> bool:
        """Tell whether what was written of a session last is not yet where it is kept for good."""
        return False

    def write(self, key: Key, state: SessionState, info: dict[str, Any], ticket: int = 0) -> None:
        """Write a session; ``info``: what is known about it besides.

        Raises
        ------
        AtlasError
            It cannot be written; an older file of it stays as it was.
        """
        options: dict[str, Any] = {} if self._codec is None else {"codec": self._codec}
        make_private(self.folder)  # somebody may have tidied up
        path, used = self.path_of(key), info.get("used")
        used = float(used) if isinstance(used, (int, float)) else time.time()
        if not self._has_room(path, len(state.context or b""), used):
            state = dataclasses.replace(state, context=None, output={}, position=len(state.tokens))
        if self._secret and os.path.lexists(path):
            seal(path, **self._secret)
        write_session_state(path, state, metadata={"session": info}, force=True, **options, **self._secret)
        with contextlib.suppress(OSError):
            os.utime(path, (used, used))  # files are as old as what is in them

    def _has_room(self, path: str, size: int, used: float) -> bool:
        """Make room for the context of a session that was used at a time; tell whether it may be kept."""
        if self._most_context is None:
            return True
        with self._counting:
            if self._contexts is None:
                self._contexts = self._counted()
            others = {one: kept for one, kept in self._contexts.items() if one != path}
            left = self._most_context - size
            total = sum(kept.size for kept in others.values())
            for one, kept in sorted(others.items(), key=lambda item: item[1].used):
                if total <= left or kept.used > used:
                    break
                with contextlib.suppress(AtlasError):  # a file that is gone, or no good, is in nobody's way
                    drop_context(one, **self._secret)
                    os.utime(one, (kept.used, kept.used))
                total -= kept.size
                del others[one]
            fits = total <= left
            self._contexts = {**others, **({path: _Kept(size, used)} if fits and size else {})}
            return fits

    def _counted(self) -> dict[str, _Kept]:
        """Return the contexts in the files that are there already."""
        found = {}
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    with contextlib.suppress(AtlasError):
                        if size := context_bytes(entry.path, **self._secret):
                            found[entry.path] = _Kept(size, entry.stat().st_mtime)
        return found

    def read(self, key: Key, model: str) -> tuple[SessionState, dict[str, Any]]:
        """Return a session, and what is known about it; ``model``: the identity of the one it must be of.

        Raises
        ------
        AtlasError
            There is none, or it is damaged, or another model's.
        """
        path = self.path_of(key)
        state = read_session_state(path, expect_model=model, **self._secret)
        return state, session_info(path, **self._secret)

    def delete(self, key: Key, ticket: int = 0) -> bool:
        """Remove the file of a session; tell whether there was one.

        Raises
        ------
        FileAccessError
            It cannot be removed.
        """
        if self._folder is None:
            return False
        path = self.path_of(key)
        with self._counting:
            if self._contexts is not None:
                self._contexts.pop(path, None)
        # a server without memories starts without it
        from atlas_kit.persistence.index_places import drop_indexes

        drop_indexes(path)
        try:
            os.unlink(path)
        except FileNotFoundError:
            return False
        except OSError as error:
            raise access_error(error, path, "write") from error
        return True

    def set_aside(self, key: Key) -> str | None:
        """Move a file that is no good out of the way; return its new name, None where there is none."""
        path = self.path_of(key)
        aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}.aside"
        with contextlib.suppress(OSError):
            os.replace(path, aside)
            return os.path.basename(aside)
        return None

    def names(self) -> list[Key]:
        """Return which sessions have files; of damaged ones, nothing."""
        named = [(one.get("namespace"), one.get("name")) for one in self._every()]
        return [Key(key, name) for key, name in named if isinstance(key, str) and isinstance(name, str)]

    def infos(self, namespace: str) -> list[dict[str, Any]]:
        """Return what is known about the sessions of a namespace that have files; of damaged ones, nothing."""
        named = (one for one in self._every() if one.get("namespace") == namespace)
        return [one for one in named if isinstance(one.get("name"), str)]

    def all_infos(self, namespace: str) -> list[dict[str, Any]]:
        """Return the same of sessions that other servers have, too, where they share a store."""
        return self.infos(namespace)

    def _every(self) -> list[dict[str, Any]]:
        """Return what is known about all sessions that have files."""
        found, there = [], set[str]()
        if self._folder is None:
            return []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith("."):
                    found.append(self._described(entry))
                    there.add(entry.name)
        self._seen = {name: kept for name, kept in self._seen.items() if name in there}
        return found

    def recent(self, count: int, model: str) -> list[Recent]:
        """Return the sessions of a model that were used last, the latest first; of damaged files, nothing."""
        from atlas_kit.persistence.snapshot import describe_memory

        found: list[Recent] = []
        if self._folder is None:
            return []
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            files = [one for one in entries if one.name.endswith(_SUFFIX) and not one.name.startswith(".")]
            stamped = [(one.stat(follow_symlinks=False), one.path) for one in files]
            for stat, path in sorted(stamped, key=lambda one: -one[0].st_mtime_ns):
                if len(found) == count:
                    break
                with contextlib.suppress(AtlasError):
                    description = describe_memory(path, **self._secret)
                    info = description.metadata.get("session")
                    info = info if isinstance(info, dict) else {}
                    match info.get("namespace"), info.get("name"):
                        case str(namespace), str(name) if description.model_hash == model:
                            found.append(Recent(Key(namespace, name), stat.st_size, stat.st_mtime))
        return found

    def _described(self, entry: os.DirEntry[str]) -> dict[str, Any]:
        """Return what a file says of its session, read anew when it has changed."""
        try:
            found = entry.stat(follow_symlinks=False)
        except OSError:
            return {}
        stamp = (found.st_mtime_ns, found.st_ino)
        kept = self._seen.get(entry.name)
        if kept is None or kept[0] != stamp:
            try:
                info = session_info(entry.path, **self._secret)
            except AtlasError:
                info = {}
            kept = self._seen[entry.name] = (stamp, {**info, "bytes": found.st_size})
        return kept[1]

    def close(self) -> None:
        """Let another server use the folder; a private one is removed."""
        if self._private and self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
        self._held.close()


def _remove_halves(folder: str) -> None:
    """Remove what a server left that was killed while it wrote: a session that nobody uses again is written by nobody.

    Only names that files of sessions have meanwhile; whoever holds the folder's lock is the only one who writes them.
    """
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            if _HALF.fullmatch(entry.name):
                with contextlib.suppress(OSError):
                    os.unlink(entry.path)


def make_private(folder: str) -> bool:
    """Make a folder that nobody else may look into, and those above it that are missing; tell whether it was.

    Raises
    ------
    FileAccessError
        It cannot be made, or there is something else in its place.
    """
    missing = []
    while not os.path.isdir(folder):
        missing.append(folder)
        above = os.path.dirname(os.path.abspath(folder))
        if above == folder:
            break
        folder = above
    for one in reversed(missing):
        try:
            os.mkdir(one, 0o700)
        except OSError as error:
            if not os.path.isdir(one):  # else somebody was faster
                raise access_error(error, one, "write") from error
    return bool(missing)


def remove_abandoned() -> int:
    """Remove private folders of servers that were killed; return how many.

    A folder is one only if it has a lock that nobody holds, and is this user's own: what others have put under such a
    name stays, and so does what a server is using.
    """
    removed = 0
    with contextlib.suppress(OSError), os.scandir(tempfile.gettempdir()) as entries:
        for entry in entries:
            with contextlib.suppress(OSError, AtlasError):
                if not (entry.name.startswith(_PRIVATE) and entry.is_dir(follow_symlinks=False)):
                    continue
                mine = not hasattr(os, "geteuid") or entry.stat(follow_symlinks=False).st_uid == os.geteuid()
                if mine and os.path.lexists(os.path.join(entry.path, f".{_OWNER}.lock")):
                    with lock(os.path.join(entry.path, _OWNER), timeout=0.0):
                        shutil.rmtree(entry.path)
                        removed += 1
    if removed:
        log.info("folders of sessions that killed servers left were removed: %d", removed)
    return removed


def session_info(file: str | MemoryFile, **secret: Any) -> dict[str, Any]:
    """Return what a file says of the session in it, besides its memory."""
    from atlas_kit.persistence.snapshot import describe_memory

    info = describe_memory(file, **secret).metadata.get("session")
    return info if isinstance(info, dict) else {}
