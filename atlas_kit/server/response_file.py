"""Answers and the texts of conversations in a file, so that their ids outlive a restart: one SQLite database.

Everything is done on one thread of its own, in the order in which it was asked for; nobody waits for a disk but who
asks for something that is only there. A file that is no good is set aside, and what cannot be written is told in the
log: a server goes on without. With a key the rows are sealed (response_forms.py); what an earlier server left there
unsealed is sealed when the file is opened, and what was sealed with another key is left alone.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import sqlite3
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

from atlas_kit.errors import AtlasError, AuthenticationError, MissingExtraError
from atlas_kit.server.response_forms import Form, Plain, Sealed
from atlas_kit.server.response_records import Noted, Record
from atlas_kit.storage.keys import Keys

log = logging.getLogger("atlas_kit.server")
T = TypeVar("T")

FILE_NAME = "responses.sqlite"
#: Answers that can be found by their ids, conversations, and bytes of JSON of both; of more, the oldest are forgotten.
MOST_ANSWERS = 100_000
MOST_CONVERSATIONS = 10_000
MOST_BYTES = 1 << 30
#: Answers that come between two looks at how much there is.
LOOK_EVERY = 256

_TABLES = """
CREATE TABLE IF NOT EXISTS answers (
    n INTEGER PRIMARY KEY, namespace TEXT NOT NULL, id TEXT, before INTEGER, session TEXT, remembers INTEGER,
    response TEXT NOT NULL, items TEXT NOT NULL, messages TEXT NOT NULL
);
CREATE UNIQUE INDEX IF NOT EXISTS answers_by_id ON answers (namespace, id) WHERE id IS NOT NULL;
CREATE TABLE IF NOT EXISTS conversations (
    namespace TEXT NOT NULL, name TEXT NOT NULL, last INTEGER, metadata TEXT NOT NULL, created REAL NOT NULL,
    used REAL NOT NULL, PRIMARY KEY (namespace, name)
);
CREATE TABLE IF NOT EXISTS seal (kdf INTEGER, log2_n INTEGER, r INTEGER, p INTEGER, salt BLOB, proof BLOB);
"""
#: What no id and no conversation leads to goes; a text that a later answer goes on from stays.
_SWEEP = """
WITH RECURSIVE alive (n) AS (
    SELECT n FROM answers WHERE id IS NOT NULL
    UNION SELECT last FROM conversations WHERE last IS NOT NULL
    UNION SELECT answers.before FROM answers JOIN alive ON answers.n = alive.n WHERE answers.before IS NOT NULL
)
DELETE FROM answers WHERE n NOT IN (SELECT n FROM alive)
"""
_COLUMNS = "n, id, before, session, remembers, response, items, messages"
_LINE = f"""
WITH RECURSIVE line (n) AS (
    VALUES (?)
    UNION SELECT answers.before FROM answers JOIN line ON answers.n = line.n WHERE answers.before IS NOT NULL
)
SELECT {_COLUMNS} FROM answers WHERE n IN (SELECT n FROM line) ORDER BY n
"""


class ResponseFile:
    """Writes and finds answers and conversations.

    Parameters
    ----------
    folder
        Where the file is; nobody else writes there.
    most, most_conversations, most_bytes
        How much is kept.
    keys
        What seals it; None, or none given: it is kept as it is.

    Raises
    ------
    MissingExtraError
        It is to be sealed, and ``cryptography`` is not installed.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        most: int = MOST_ANSWERS,
        most_conversations: int = MOST_CONVERSATIONS,
        most_bytes: int = MOST_BYTES,
        keys: Keys | None = None,
    ) -> None:
        self._keys = Keys() if keys is None else keys
        self._form: Form = Plain()
        self._path = os.path.join(os.fspath(folder), FILE_NAME)
        self._most, self._most_conversations, self._most_bytes = most, most_conversations, most_bytes
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="atlas-responses")
        self._database: sqlite3.Connection | None = None
        self._failing = self._swept = False
        self._until_look = LOOK_EVERY
        self._next = self._thread.submit(self._open).result()

    def _open(self) -> int:
        """Open the file, or a new one; return the number of the next answer."""
        for again in (False, True):
            try:
                with contextlib.suppress(OSError):  # SQLite gives its other files the rights of this one
                    os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o600))
                    os.chmod(self._path, 0o600)
                database = self._database = sqlite3.connect(self._path, isolation_level=None)
                database.execute(
                    "PRAGMA secure_delete = ON"
                )  # what is forgotten is not left between the pages
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                database.execute("PRAGMA temp_store = MEMORY")
                database.executescript(_TABLES)
                if database.execute("PRAGMA quick_check(1)").fetchone() != ("ok",):
                    raise sqlite3.DatabaseError("the database is damaged")
                self._form = self._formed(database)
                return int(database.execute("SELECT coalesce(max(n), 0) + 1 FROM answers").fetchone()[0])
            except MissingExtraError:
                self._let_go()
                raise
            except AtlasError as error:  # it is sealed, and this is not the key
                self._let_go()
                log.warning("%s is left as it is: %s", FILE_NAME, error.message)
                break
            except sqlite3.Error as error:
                self._let_go()
                if again or not self._set_aside(error):
                    break
        log.warning("answers do not outlive a restart: %s cannot be used", FILE_NAME)
        return 1

    def _let_go(self) -> None:
        database, self._database = self._database, None
        if database is not None:
            database.close()

    def _formed(self, database: sqlite3.Connection) -> Form:
        """Return how the rows are to be read and written; those that are to be sealed and are not are sealed now.

        Raises
        ------
        AtlasError
            They are sealed, and this is not the key.
        """
        found = database.execute("SELECT kdf, log2_n, r, p, salt, proof FROM seal").fetchone()
        if found is None and not self._keys.given:
            return Plain()
        from atlas_kit.formats.atlas.crypto import Cipher, KdfParams, Secret, unlock

        secret = Secret.of(**self._keys.options())
        if found is not None:
            *how, proof = found
            return Sealed(unlock(KdfParams(*how), proof, secret))
        assert secret is not None
        cipher = Cipher.fresh(secret)
        form, how = Sealed(cipher), cipher.params
        with database:
            database.execute("BEGIN")
            for (number,) in database.execute("SELECT n FROM answers").fetchall():
                row = database.execute(f"SELECT {_COLUMNS} FROM answers WHERE n = ?", (number,)).fetchone()
                try:
                    columns = form.columns(_record(Plain(), row))
                except ValueError:  # nobody could read it
                    database.execute("DELETE FROM answers WHERE n = ?", (number,))
                    continue
                database.execute(
                    "UPDATE answers SET id = ?, session = ?, response = ?, items = ?, messages = ? WHERE n = ?",
                    (*columns, number),
                )
            rows = database.execute("SELECT rowid, name, metadata FROM conversations").fetchall()
            for row, name, metadata in rows:
                with contextlib.suppress(ValueError):
                    metadata = json.loads(metadata)
                noted = form.name(name), form.noted(name, metadata if isinstance(metadata, dict) else {}), row
                database.execute("UPDATE conversations SET name = ?, metadata = ? WHERE rowid = ?", noted)
            values = how.kdf, how.log2_n, how.r, how.p, how.salt, cipher.check
            database.execute("INSERT INTO seal VALUES (?, ?, ?, ?, ?, ?)", values)
        database.execute("VACUUM")  # nothing of what it was before is left between the pages
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        return form

    def _set_aside(self, error: sqlite3.Error) -> bool:
        """Move a file that is no database out of the way; tell whether a new one may be tried."""
        if not isinstance(error, sqlite3.DatabaseError) or isinstance(error, sqlite3.OperationalError):
            return False
        aside = f"{self._path}.{time.strftime('%Y%m%d-%H%M%S')}.aside"
        for end in ("-wal", "-shm"):
            with contextlib.suppress(OSError):
                os.unlink(self._path + end)
        with contextlib.suppress(OSError):
            os.replace(self._path, aside)
            log.warning("%s is damaged and was set aside: %s", FILE_NAME, os.path.basename(aside))
            return True
        return False

    def new_number(self) -> int:
        """Return a number that no answer has; the numbers of what comes later are higher."""
        self._next += 1
        return self._next - 1

    # --- what is asked, from any thread ----------------------------------------------------------------------

    def put(self, namespace: str, record: Record) -> None:
        """Keep an answer; without an ``id``, for what leads to it alone."""
        name, session, *parts = self._form.columns(record)
        row = record.number, namespace, name, record.before, session, record.remembers, *parts

        def write(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO answers VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", row)
            self._until_look -= 1
            if self._until_look <= 0:
                self._until_look = LOOK_EVERY
                self._make_room(database)

        self._submit(write, None)

    def hide(self, namespace: str, name: str) -> Future[bool]:
        """Forget the id of an answer, and its text where nothing goes on from it; tell whether there was one."""

        def write(database: sqlite3.Connection) -> bool:
            where = (namespace, self._form.name(name))
            found = database.execute("UPDATE answers SET id = NULL WHERE namespace = ? AND id = ?", where)
            if found.rowcount:
                self._sweep(database)
            return found.rowcount > 0

        return self._submit(write, False)

    def find(self, namespace: str, name: str) -> Future[list[Record]]:
        """Return the answers that lead to the one of an id, that last; none where there is none."""

        def read(database: sqlite3.Connection) -> list[Record]:
            ask = "SELECT n FROM answers WHERE namespace = ? AND id = ?"
            found = database.execute(ask, (namespace, self._form.name(name))).fetchone()
            return [] if found is None else self._line(database, found[0])

        return self._submit(read, [])

    def note(
        self,
        namespace: str,
        name: str,
        last: int | None,
        metadata: dict[str, Any],
        created: float,
        *,
        sweep: bool = False,
    ) -> None:
        """Keep a conversation; ``last`` is the number of its last answer. ``sweep``: something of it was left out."""
        hidden, noted = self._form.name(name), self._form.noted(name, metadata)
        row = (namespace, hidden, last, noted, created, time.time())

        def write(database: sqlite3.Connection) -> None:
            database.execute("INSERT OR REPLACE INTO conversations VALUES (?, ?, ?, ?, ?, ?)", row)
            if sweep:
                self._sweep(database)

        self._submit(write, None)

    def noted(self, namespace: str, name: str) -> Future[Noted | None]:
        """Return the conversation of a name."""

        def read(database: sqlite3.Connection) -> Noted | None:
            ask = "SELECT last, metadata, created FROM conversations WHERE namespace = ? AND name = ?"
            found = database.execute(ask, (namespace, self._form.name(name))).fetchone()
            if found is None:
                return None
            last, metadata, created = found
            line = [] if last is None else self._line(database, last)
            return Noted(line, self._form.notes(name, metadata), created)

        return self._submit(read, None)

    def forget(self, namespace: str, name: str) -> None:
        """Forget a conversation, and what only it leads to."""

        def write(database: sqlite3.Connection) -> None:
            where = (namespace, self._form.name(name))
            database.execute("DELETE FROM conversations WHERE namespace = ? AND name = ?", where)
            self._sweep(database)

        self._submit(write, None)

    def count_of(self, namespace: str, session: str | None) -> Future[int]:
        """Return how many answers a session's memory has read; None: the memory that all share."""
        who, values = self._read_by(namespace, session)

        def read(database: sqlite3.Connection) -> int:
            return int(database.execute(f"SELECT count(*) FROM answers WHERE {who}", values).fetchone()[0])

        return self._submit(read, 0)

    def forget_of(self, namespace: str, session: str | None) -> Future[None]:
        """Forget the answers that a session's memory has read, but for those that another session goes on from."""
        who, values = self._read_by(namespace, session)

        def write(database: sqlite3.Connection) -> None:
            mine = f"last IN (SELECT n FROM answers WHERE {who}) OR (namespace = ? AND name IS ?)"
            database.execute(
                f"UPDATE conversations SET last = NULL WHERE {mine}",
                (*values, namespace, self._form.name(session)),
            )
            database.execute(f"UPDATE answers SET id = NULL WHERE {who}", values)
            self._sweep(database)

        return self._submit(write, None)

    def close(self) -> None:
        """Write what is left to be written, and end; what is asked afterwards is not there."""

        def end() -> None:
            database, self._database = self._database, None
            if database is not None:
                database.close()

        with contextlib.suppress(RuntimeError):  # closed before
            self._thread.submit(end)
        self._thread.shutdown()

    # --- on the thread ---------------------------------------------------------------------------------------

    def _submit(self, work: Callable[[sqlite3.Connection], T], nothing: T) -> Future[T]:
        """Do something when it is its turn; ``nothing`` is what comes of it where that fails."""

        def turn() -> T:
            if self._database is None:
                return nothing
            try:
                with self._database as database:
                    database.execute("BEGIN")
                    found = work(database)
                if self._swept:  # what is gone is not left in the log of changes, either
                    database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
                self._swept = self._failing = False
            except (sqlite3.Error, ValueError, TypeError, AuthenticationError) as error:
                if not self._failing:  # said once, until it works again
                    log.warning("answers are not kept in %s: %s", FILE_NAME, error)
                self._failing = True
                return nothing
            return found

        try:
            return self._thread.submit(turn)
        except RuntimeError:  # it is closed
            done: Future[T] = Future()
            done.set_result(nothing)
            return done

    def _read_by(self, namespace: str, session: str | None) -> tuple[str, tuple[Any, ...]]:
        """Return the condition that answers were read by a session's memory, and its values."""
        if session is None:
            return "session IS NULL AND remembers = 1", ()
        return "namespace = ? AND session = ?", (namespace, self._form.name(session))

    def _line(self, database: sqlite3.Connection, last: int) -> list[Record]:
        """Return the answers that lead to one, that last."""
        return [_record(self._form, row) for row in database.execute(_LINE, (last,))]

    def _sweep(self, database: sqlite3.Connection) -> None:
        database.execute(_SWEEP)
        self._swept = True

    def _make_room(self, database: sqlite3.Connection) -> None:
        """Forget the oldest, until what is left is not too much."""
        many = "SELECT count(*) FROM conversations"
        over = database.execute(many).fetchone()[0] - self._most_conversations
        self._drop_conversations(database, over)
        over = database.execute("SELECT count(id) FROM answers").fetchone()[0] - self._most
        self._hide_oldest(database, over)
        self._sweep(database)
        sized = "SELECT coalesce(sum(length(response) + length(items) + length(messages)), 0) FROM answers"
        while database.execute(sized).fetchone()[0] > self._most_bytes:
            answers = database.execute("SELECT count(id) FROM answers").fetchone()[0]
            conversations = database.execute(many).fetchone()[0]
            if answers + conversations <= 1:
                return
            self._hide_oldest(database, -(-answers // 10))
            self._drop_conversations(database, -(-conversations // 10))
            self._sweep(database)

    def _hide_oldest(self, database: sqlite3.Connection, count: int) -> None:
        oldest = "SELECT n FROM answers WHERE id IS NOT NULL ORDER BY n LIMIT ?"
        if count > 0:
            database.execute(f"UPDATE answers SET id = NULL WHERE n IN ({oldest})", (count,))

    def _drop_conversations(self, database: sqlite3.Connection, count: int) -> None:
        oldest = "SELECT rowid FROM conversations ORDER BY used LIMIT ?"
        if count > 0:
            database.execute(f"DELETE FROM conversations WHERE rowid IN ({oldest})", (count,))


def _record(form: Form, row: Sequence[Any]) -> Record:
    """Return an answer from its row, as ``_COLUMNS`` has it."""
    number, name, before, session, remembers, response, items, messages = row
    remembered = None if remembers is None else bool(remembers)
    return form.record(number, before, remembered, (name, session, response, items, messages))
