"""Answers and conversations in a store that several servers share, so that their ids are good at each of them.

An answer is one object, with all that led to it: so no other object is needed to go on from it, and one that is
forgotten takes its text along, but for what has gone on from it. Beside it is an empty object by which the answers that
a session's memory has read are found. A conversation is kept with its session, whose lease says who may add to it
(``shared_sessions.py``). Both are sealed where the server has a key.

    answers/ID                 an answer, with what led to it
    answered/SESSION/ID        that the memory of a session has read it

Nothing is forgotten because there is much: an expiry rule of the bucket for ``answers/`` and ``answered/`` does that.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from atlas_kit.errors import AtlasError, FileAccessError
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.problems import ApiError
from atlas_kit.server.response_records import Noted, Record
from atlas_kit.server.shared_files import SharedMemories
from atlas_kit.storage.atomic import write_atomically
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.server.shared_sessions import SharedSessions

log = logging.getLogger("atlas_kit.server")
T = TypeVar("T")
#: Objects that are asked for at the same time.
_AT_ONCE = 8


class SharedResponses:
    """Keeps and finds answers and conversations; what is asked is answered on threads of its own.

    Parameters
    ----------
    sessions
        Has the store, and the leases of conversations.
    keys
        What seals them; None, or none given: they are kept as they are.
    """

    def __init__(self, sessions: SharedSessions, keys: Keys | None = None) -> None:
        self._sessions = sessions
        self._answers = SharedMemories(sessions.store, "answers", stay=False)
        self._read_by = SharedMemories(sessions.store, "answered", stay=False)
        self._keys = Keys() if keys is None else keys
        self._pool = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="atlas-responses")
        self._writing: set[Future[None]] = set()
        self._noting: Counter[Key] = Counter()

    def new_number(self) -> int:
        """Return a number that no answer has, at no server."""
        return int.from_bytes(os.urandom(7), "little")

    # --- answers -----------------------------------------------------------------------------------------------

    def keep(self, namespace: str, line: Sequence[Record]) -> None:
        """Keep an answer that has an id: the last of those that lead to it."""
        last = line[-1]
        assert last.id is not None
        path, data = self._path(namespace, last.id), self._sealed([list(one) for one in line], last.id)

        def write() -> None:
            write_atomically(path, data)
            self._answers.put(path)
            if last.session is not None or last.remembers:
                mark = os.path.join(self._marks(namespace, last.session), os.path.basename(path))
                os.makedirs(os.path.dirname(mark), mode=0o700, exist_ok=True)
                write_atomically(mark, b"")
                self._read_by.put(mark)

        self._write(write, "an answer")

    def find(self, namespace: str, name: str) -> Future[list[Record]]:
        """Return the answers that lead to the one of an id, that last; none where there is none."""

        def read() -> list[Record]:
            with _away_said():
                data = self._answers.read(self._path(namespace, name))
            return [] if data is None else _records(self._opened(data, name))

        return self._pool.submit(read)

    def hide(self, namespace: str, name: str) -> Future[bool]:
        """Forget an answer; tell whether there was one."""

        def write() -> bool:
            path = self._path(namespace, name)
            with _away_said():
                data = self._answers.read(path)
            if data is None:
                return False
            self._remove(self._answers, path)
            with contextlib.suppress(AtlasError, ValueError, TypeError, IndexError):
                last = _records(self._opened(data, name))[-1]
                if last.session is not None or last.remembers:
                    marks = self._marks(namespace, last.session)
                    self._remove(self._read_by, os.path.join(marks, os.path.basename(path)))
            return True

        return self._pool.submit(write)

    def _remove(self, files: SharedMemories, path: str) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.makedirs(os.path.dirname(path), mode=0o700, exist_ok=True)
        files.put(path)

    def count_of(self, namespace: str, session: str | None) -> Future[int]:
        """Return how many answers a session's memory has read; None: the memory that all share.

        While the store is away, those that wait for it are all that is known.
        """

        def read() -> int:
            marks = self._marks(namespace, session)
            try:
                return len(self._read_by.names(marks))
            except FileAccessError:
                return len(self._read_by.waiting_in(marks))

        return self._pool.submit(read)

    def forget_of(self, namespace: str, session: str | None) -> Future[None]:
        """Forget the answers that a session's memory has read; what has gone on from them elsewhere stays whole."""

        def write() -> None:
            with _away_said():
                marks = self._read_by.names(self._marks(namespace, session))
            for mark in marks:
                self._remove(self._answers, os.path.join(self._answers.folder, os.path.basename(mark)))
                self._remove(self._read_by, mark)
            if session is not None:
                key = Key(namespace, session)
                noted = self._noted(key)
                if noted is not None:
                    self._note(key, self._sessions.ticket(key), [], noted.metadata, noted.created)

        return self._pool.submit(write)

    # --- conversations -----------------------------------------------------------------------------------------

    def note(
        self, key: Key, ticket: int, line: Sequence[Record], metadata: dict[str, Any], created: float
    ) -> None:
        """Keep a conversation: what leads to its end, and what a client noted."""
        given = [*line], dict(metadata), created
        self._noting[key] += 1
        self._write(lambda: self._note(key, ticket, *given), "a conversation", key)

    def _note(
        self, key: Key, ticket: int, line: Sequence[Record], metadata: dict[str, Any], created: float
    ) -> None:
        found = {"line": [list(one) for one in line], "metadata": metadata, "created": created}
        self._sessions.write_talk(key, ticket, self._sealed(found, str(key.name)))

    def noted(self, namespace: str, name: str) -> Future[Noted | None]:
        """Return the conversation of a name, whose session is held."""
        return self._pool.submit(self._noted, Key(namespace, name))

    def _noted(self, key: Key) -> Noted | None:
        with _away_said():
            data = self._sessions.read_talk(key)
        if data is None:
            return None
        found = self._opened(data, str(key.name))
        return Noted(_records(found["line"]), found["metadata"], found["created"])

    def forget(self, key: Key, ticket: int) -> None:
        """Forget a conversation."""
        self._noting[key] += 1
        self._write(lambda: self._sessions.write_talk(key, ticket, b""), "a conversation", key)

    # --- on other threads --------------------------------------------------------------------------------------

    def is_noting(self, key: Key) -> bool:
        """Tell whether a conversation is being written."""
        return self._noting[key] > 0

    def settled(self) -> list[Future[None]]:
        """Return what is being written: who waits for all of it knows that the other servers find it."""
        return [*self._writing]

    def _write(self, work: Callable[[], None], what: str, key: Key | None = None) -> None:
        def turn() -> None:
            try:
                work()
            except (AtlasError, OSError, ValueError) as error:
                log.warning("%s is not kept: %s", what, error)
            finally:
                if key is not None:
                    self._noting[key] -= 1

        with contextlib.suppress(RuntimeError):  # it is closed
            future = self._pool.submit(turn)
            self._writing.add(future)
            future.add_done_callback(self._writing.discard)

    def close(self) -> None:
        """Write what is left to be written, and end."""
        self._pool.shutdown()

    # --- how they are stored -----------------------------------------------------------------------------------

    def _path(self, namespace: str, name: str) -> str:
        return os.path.join(self._answers.folder, _hash(namespace, name))

    def _marks(self, namespace: str, session: str | None) -> str:
        key = SHARED if session is None else Key(namespace, session)
        return os.path.join(self._read_by.folder, self._sessions.id_of(key) if key.name else SHARED.namespace)

    def _sealed(self, value: Any, where: str) -> bytes:
        data = json.dumps(value).encode()
        if not self._keys.given:
            return data
        from atlas_kit.formats.atlas.crypto import Cipher, Secret

        secret = Secret.of(**self._keys.options())
        assert secret is not None
        cipher = Cipher.fresh(secret)
        how = cipher.params
        head = [how.kdf, how.log2_n, how.r, how.p, how.salt.hex(), cipher.check.hex()]
        return (
            json.dumps(head).encode()
            + b"\n"
            + cipher.seal_index(data, where.encode("utf-8", "surrogatepass"))
        )

    def _opened(self, data: bytes, where: str) -> Any:
        if not self._keys.given:
            return json.loads(data)
        from atlas_kit.formats.atlas.crypto import KdfParams, Secret, unlock

        head, _, sealed = data.partition(b"\n")
        kdf, log2_n, r, p, salt, check = json.loads(head)
        params = KdfParams(kdf, log2_n, r, p, bytes.fromhex(salt))
        cipher = unlock(params, bytes.fromhex(check), Secret.of(**self._keys.options()))
        return json.loads(cipher.open_index(sealed, where.encode("utf-8", "surrogatepass")))


def _hash(namespace: str, name: str) -> str:
    return hashlib.sha256(f"{namespace}\0{name}".encode("utf-8", "surrogatepass")).hexdigest()[:40]


def _records(found: list[list[Any]]) -> list[Record]:
    return [Record(*one) for one in found]


@contextlib.contextmanager
def _away_said() -> Any:
    """Say to a client that the store is away."""
    try:
        yield
    except FileAccessError as error:
        raise ApiError(
            503,
            "The store of answers cannot be reached now. Ask again later.",
            code="store_away",
            retry_after=5,
        ) from error
