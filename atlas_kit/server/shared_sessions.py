"""Sessions in a store that several servers share: each in a file of the spool while this server holds its lease.

``claim`` comes before anything else that is done with a session: it takes the lease and brings the file. From then on
the folder has what there is to be known of the session, as if there were no store, until the lease is given back
(``release``) or is found to be lost. What is written goes into the store with it: the state as an object of its own,
and then the session's record, which says that it is the one. A state that no record leads to is nobody's.

    replicas/ID            that a replica is alive
    sessions/SESSION       the record: who holds it, fencing number, which state
    states/SESSION/N-M-X   the M-th state that was saved under fencing number N, by process X: a .atlas file
    talks/SESSION/N-M-X    the text of the conversation, as the Responses API has it
    aside/SESSION/...      what was saved in a spool while another replica had taken the session

A file that the store does not have yet is never thrown away: where another replica has taken the session meanwhile it
is put aside, in the store as soon as that can be reached, and the log says so.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, FileAccessError, FileCorruptError
from atlas_kit.persistence.index_tables import ENDING
from atlas_kit.server.keys import Key
from atlas_kit.server.leases import Lease, LeaseRecord
from atlas_kit.server.moved import LeaseLostError
from atlas_kit.server.session_files import SessionFiles, make_private, session_info
from atlas_kit.server.shared_store import SharedStore
from atlas_kit.storage.atomic import write_atomically

if TYPE_CHECKING:
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.storage.keys import Keys

log = logging.getLogger("atlas_kit.server")
_STATES, _TALKS, _ASIDE, _LEASE, _SUFFIX = "states", "talks", "aside", ".lease", ".atlas"
#: What a record calls the object with the text of the conversation.
_TALK = "talk"
#: What records say of sessions, where that is nobody's secret.
_TOLD = ("namespace", "name", "created", "used", "requests", "learned", "tokens")
#: Records that are read at the same time.
_AT_ONCE = 8


@dataclass
class _Held:
    """A session that this server holds.

    Attributes
    ----------
    lease
        The lease.
    here
        Whether the folder has what the record leads to, or something newer.
    waits, says
        Whether it has a state that the store lacks, and whether it has a text of the conversation that the store lacks.
    number
        Of the last state that was put under this lease.
    keeps
        Whether the state in the store is to stay beside the next one, as it is damaged.
    clears
        Whether the store may still have states of it from before it was deleted.
    leaves
        Whether it is about to be given back, unless somebody claims it before.
    """

    lease: Lease
    here: bool = False
    waits: bool = False
    says: bool = False
    number: int = 0
    keeps: bool = False
    clears: bool = False
    leaves: bool = False

    @property
    def lacking(self) -> bool:
        """Whether something is still to be done in the store."""
        return self.waits or self.says or self.clears


class SharedSessions(SessionFiles):
    """The sessions of one of several servers; everything may be done on any thread.

    Parameters
    ----------
    store
        Where they are.
    lost
        Called with the id of a session that another server has taken over, on any thread.
    codec, most_context, keys
        As of ``SessionFiles``.
    """

    def __init__(
        self,
        store: SharedStore,
        codec: str | None = None,
        most_context: int | None = None,
        keys: Keys | None = None,
    ) -> None:
        super().__init__(store.folder("sessions"), codec, most_context, keys)
        self.store, self._leases, self._objects = store, store.leases, store.objects
        self.lost: Callable[[str], None] = lambda _: None
        #: In the name of whatever this process puts: one that goes on with a spool does not know all that was put from
        #: it, and must write over nothing, as another server's record may lead to it.
        self._mark = os.urandom(4).hex()
        self._sessions: dict[str, _Held] = {}
        self._turns: dict[str, threading.RLock] = {}
        self._making_turns = threading.Lock()
        self._told: dict[str, tuple[str, dict[str, Any]]] = {}
        self._find_left()
        store.add(self)

    def id_of(self, key: Key) -> str:
        """Return the id of a session in the store."""
        return os.path.basename(self.path_of(key)).removesuffix(_SUFFIX)

    @contextlib.contextmanager
    def _turn(self, session: str) -> Iterator[None]:
        """Have the file of a session to oneself."""
        with self._making_turns:
            turn = self._turns.setdefault(session, threading.RLock())
        with turn:
            yield

    # --- holding ---------------------------------------------------------------------------------------------

    def holds(self, key: Key) -> bool:
        """Tell whether this server surely holds a session: then the folder has it, and nobody need be asked."""
        held = self._sessions.get(self.id_of(key))
        if held is None or held.leaves or not held.here:
            return False
        return held.lease.turn == self._leases.turn and self._leases.sure

    def ticket(self, key: Key) -> int:
        """Return the fencing number under which a session is held now; 0: it is not."""
        held = self._sessions.get(self.id_of(key))
        return 0 if held is None else held.lease.fence

    def claim(self, key: Key, begin: bool = True) -> None:
        """Take a session, where it is not held already, and bring its file; ``begin``: also if there is none yet.

        While the store is away, what was held goes on.

        Raises
        ------
        HeldElsewhereError
            Another server has it, and is alive; it was told that the session is wanted.
        FileAccessError
            It is not held, and the store is away.
        """
        session = self.id_of(key)
        with self._turn(session):
            held = self._sessions.get(session)
            if held is not None:
                held.leaves = False
                try:
                    with self.store.asking():
                        self._leases.confirm(held.lease)
                except LeaseLostError:
                    self._lose(session)
                    held = None
                except FileAccessError:
                    if not held.here:
                        raise
                    return
            if held is None:
                with self.store.asking():
                    lease = self._leases.take(session, begin=begin)
                if lease is None:
                    return
                held = self._sessions[session] = _Held(lease)
                self._note(session)
            if not held.here:
                with self.store.asking():
                    self._bring(session, held)
                self._note(session)

    def confirm(self, key: Key, ticket: int) -> None:
        """See that what was done with a session was done while it was held, as far as can be known.

        Raises
        ------
        LeaseLostError
            Another server has it.
        """
        session = self.id_of(key)
        held = self._sessions.get(session)
        if held is None or held.lease.fence != ticket:
            raise LeaseLostError
        if self.holds(key):
            return
        with self._turn(session):
            try:
                with self.store.asking():
                    self._leases.confirm(held.lease)
            except LeaseLostError:
                self._lose(session)
                raise
            except FileAccessError:  # the server goes on; what is saved will be checked
                return

    def _bring(self, session: str, held: _Held) -> None:
        """Bring the state that the record leads to."""
        path, state = self._path(session), held.lease.record.state
        if state is None:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(path)
        elif self._objects.fetch(state, path) is None:
            raise FileAccessError("the store does not have the state that it says this session has")
        held.here = True
        if held.lease.inherited:
            with contextlib.suppress(AtlasError):
                self._remove_states(session, held.lease.fence, but=state)

    def _remove_states(self, session: str, fence: int, but: str | None) -> None:
        """Remove what was put under a fencing number or an earlier one.

        What is of a later one is another server's, which has taken the session while this one was asleep.
        """
        for name in self._objects.listed(f"{_STATES}/{session}"):
            number = name.rpartition("/")[2].partition("-")[0]
            if name not in (but, f"{but}{ENDING}") and number.isdigit() and int(number) <= fence:
                self._objects.delete(name)

    def let_go(self, session: str) -> None:
        """Say that a session is to be given back: whoever uses it from now on claims it first."""
        held = self._sessions.get(session)
        if held is not None:
            held.leaves = True

    def release(self, session: str) -> None:
        """Give a session back that was let go, unless it was claimed since; what waits is put first.

        Raises
        ------
        FileAccessError
            The store is away: it stays.
        """
        with self._turn(session):
            held = self._sessions.get(session)
            if held is None:
                with self.store.asking():
                    self._leases.give_up(session)
                return
            if not held.leaves:
                return
            try:
                if held.lacking:
                    self._put(session, held)
                with self.store.asking():
                    self._leases.release(held.lease)
            except LeaseLostError:
                self._lose(session)
                return
            self._forget(session)

    def _lose(self, session: str) -> None:
        """Take note that another server has taken a session; what the store lacks is put aside."""
        held = self._sessions.pop(session, None)
        if held is None:
            return
        self.store.lost += 1
        path = self._path(session)
        if held.says:
            with contextlib.suppress(OSError):
                os.replace(
                    self._talk_path(session),
                    f"{path}.{time.strftime('%Y%m%d-%H%M%S')}-{held.lease.fence}-talk.aside",
                )
        if held.waits and os.path.lexists(path):
            aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}-{held.lease.fence}-{self._leases.me[:8]}.aside"
            os.replace(path, aside)
            log.warning(
                "another server has taken a session over; what was saved here meanwhile is put aside as %s",
                os.path.basename(aside),
            )
            with contextlib.suppress(AtlasError):
                self._put_aside(aside)
        else:
            log.warning(
                "another server has taken a session over: it starts anew here from what that one saved"
            )
        self._forget(session)
        self.lost(session)

    def _put_aside(self, path: str) -> None:
        session, _, rest = os.path.basename(path).partition(_SUFFIX + ".")
        with self.store.asking():
            self._objects.put_file(f"{_ASIDE}/{session}/{rest.removesuffix('.aside')}{_SUFFIX}", path)
        os.unlink(path)

    def _forget(self, session: str) -> None:
        """Remove what the folder has of a session."""
        self._sessions.pop(session, None)
        path = self._path(session)
        with self._counting:
            if self._contexts is not None:
                self._contexts.pop(path, None)
        for one in (path, path.removesuffix(_SUFFIX) + _LEASE, self._talk_path(session)):
            with contextlib.suppress(OSError):
                os.unlink(one)

    def _path(self, session: str) -> str:
        return os.path.join(self.folder, session + _SUFFIX)

    # --- writing ---------------------------------------------------------------------------------------------

    def write(self, key: Key, state: SessionState, info: dict[str, Any], ticket: int = 0) -> None:
        """Write a session, and put it into the store; while that is away it waits in the folder.

        Raises
        ------
        LeaseLostError
            It is not held any more under the fencing number of ``ticket``: nothing was written.
        AtlasError
            It cannot be written.
        """
        session = self.id_of(key)
        with self._turn(session):
            held = self._require(session, ticket)
            held.waits = True
            self._note(session)  # first: who finds the file finds that it may be newer than the store's
            super().write(key, state, info, ticket)
            try:
                self._put(session, held)
            except LeaseLostError:
                raise
            except FileAccessError as error:
                log.debug("a session waits for the store: %s", error.message)

    def _require(self, session: str, ticket: int) -> _Held:
        held = self._sessions.get(session)
        if held is None or held.lease.fence != ticket:
            raise LeaseLostError
        return held

    def _put(self, session: str, held: _Held) -> None:
        """Put what the folder has of a session.

        Raises
        ------
        LeaseLostError
            Another server has taken it: the file is put aside.
        FileAccessError
            The store is away.
        """
        before, made = held.lease.record, list[str]()
        changes: dict[str, Any] = {"about": dict(before.about)}
        with self.store.asking():
            try:
                if held.waits:
                    changes |= self._put_state(session, held, made)
                if held.says:
                    self._put_talk(session, held, made, changes["about"])
                self._leases.write(held.lease, **changes)
            except LeaseLostError:
                for name in made:
                    with contextlib.suppress(AtlasError):
                        self._objects.delete(name)
                self._lose(session)
                raise
            held.waits = held.says = False
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._talk_path(session))
            self.store.has_put()
            now = held.lease.record
            left = {before.state: now.state, before.about.get(_TALK): now.about.get(_TALK)}
            with contextlib.suppress(AtlasError):
                for old, new in left.items():
                    if old is not None and old != new and not (held.keeps and old == before.state):
                        self._objects.delete(old)
                        if old == before.state:  # somebody may have made one, which has the same text
                            self._objects.delete(old + ENDING)
            if held.clears:
                self._remove_states(session, held.lease.fence, but=now.state)
        held.keeps = held.clears = False
        self._note(session)

    def _put_state(self, session: str, held: _Held, made: list[str]) -> dict[str, Any]:
        path, talk = self._path(session), held.lease.record.about.get(_TALK)
        about: dict[str, Any] = {} if talk is None else {_TALK: talk}
        if not os.path.lexists(path):
            return {"state": None, "about": about}
        if not self._secret:
            info = session_info(path)
            about |= {one: info[one] for one in _TOLD if one in info}
        held.number += 1
        made.append(f"{_STATES}/{session}/{held.lease.fence}-{held.number}-{self._mark}{_SUFFIX}")
        self._objects.put_file(made[-1], path)
        return {"state": made[-1], "about": about}

    def _put_talk(self, session: str, held: _Held, made: list[str], about: dict[str, Any]) -> None:
        about.pop(_TALK, None)
        with open(self._talk_path(session), "rb") as file:
            data = file.read()
        if data:
            held.number += 1
            made.append(f"{_TALKS}/{session}/{held.lease.fence}-{held.number}-{self._mark}")
            self._objects.put(made[-1], data)
            about[_TALK] = made[-1]

    def _talk_path(self, session: str) -> str:
        return self._path(session).removesuffix(_SUFFIX) + ".talk"

    def write_talk(self, key: Key, ticket: int, data: bytes) -> None:
        """Keep the text of a conversation with its session; none: forget it.

        Raises
        ------
        LeaseLostError
            The session is not held any more under the fencing number of ``ticket``: nothing was written.
        AtlasError
            It cannot be written here.
        """
        session = self.id_of(key)
        with self._turn(session):
            held = self._require(session, ticket)
            write_atomically(self._talk_path(session), data)
            held.says = True
            self._note(session)
            try:
                self._put(session, held)
            except LeaseLostError:
                raise
            except FileAccessError as error:
                log.debug("the text of a conversation waits for the store: %s", error.message)

    def read_talk(self, key: Key) -> bytes | None:
        """Return the text of a conversation whose session is held.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        session = self.id_of(key)
        with self._turn(session):
            held = self._sessions.get(session)
            if held is None:
                return None
            if held.says:
                with open(self._talk_path(session), "rb") as file:
                    return file.read() or None
            name = held.lease.record.about.get(_TALK)
            if name is None:
                return None
            with self.store.asking():
                found = self._objects.read(name)
            return None if found is None else found.data

    def waits(self, key: Key) -> bool:
        """Tell whether the folder has something of a session that the store lacks."""
        held = self._sessions.get(self.id_of(key))
        return held is not None and held.lacking

    def waiting(self) -> list[str]:
        """Return the files in the folder that the store lacks."""
        found = [session + _SUFFIX for session, held in list(self._sessions.items()) if held.lacking]
        with contextlib.suppress(OSError):
            found += [one for one in os.listdir(self.folder) if one.endswith(".aside") and _SUFFIX in one]
        return found

    def put_waiting(self) -> None:
        """Put what the store lacks.

        Raises
        ------
        FileAccessError
            It is away.
        """
        for name in self.waiting():
            session = name.partition(_SUFFIX)[0]
            with self._turn(session), contextlib.suppress(LeaseLostError):
                path = os.path.join(self.folder, name)
                held = self._sessions.get(session)
                if name.endswith(".aside"):
                    if os.path.lexists(path):
                        self._put_aside(path)
                elif held is not None and held.lacking:
                    self._put(session, held)

    def delete(self, key: Key, ticket: int = 0) -> bool:
        """Remove a session, here and in the store; tell whether there was one."""
        session = self.id_of(key)
        with self._turn(session):
            held = self._sessions.get(session)
            if held is None or held.lease.fence != ticket:
                return False
            was = super().delete(key)
            if held.lease.record.state is None and not was:
                held.waits = False
                self._note(session)
                return False
            held.waits = held.clears = True
            self._note(session)
            try:
                self._put(session, held)
            except LeaseLostError:
                return False
            except FileAccessError as error:
                log.warning("a deleted session is still in the store, which is away: %s", error.message)
            return True

    def set_aside(self, key: Key) -> str | None:
        """Move a file that is no good out of the way; the store keeps it, too."""
        session = self.id_of(key)
        with self._turn(session):
            held = self._sessions.get(session)
            if held is not None:
                held.keeps = True
            path = self.path_of(key)
            aside = f"{path}.{time.strftime('%Y%m%d-%H%M%S')}-damaged.aside"
            with contextlib.suppress(OSError):
                os.replace(path, aside)
                return os.path.basename(aside)
        return None

    # --- what there is ---------------------------------------------------------------------------------------

    def names(self) -> list[Key]:
        """Return which sessions there are, here and in the store."""
        named = [(one.get("namespace"), one.get("name")) for one in (*self._everywhere(), *self._every())]
        return [Key(key, name) for key, name in named if isinstance(key, str) and isinstance(name, str)]

    def all_infos(self, namespace: str) -> list[dict[str, Any]]:
        """Return what is known about the sessions of a namespace, here and in the store."""
        found = {
            one["name"]: one
            for one in self._everywhere()
            if one.get("namespace") == namespace and isinstance(one.get("name"), str)
        }
        return list({**found, **{one["name"]: one for one in self.infos(namespace)}}.values())

    def _everywhere(self) -> list[dict[str, Any]]:
        """Return what the store says of its sessions; while it is away, what it said last."""
        try:
            with self.store.asking():
                records = self._leases.records()
                changed = [one for one, version in records.items() if self._version_told(one) != version]
                with ThreadPoolExecutor(_AT_ONCE) as pool:
                    read = dict(zip(changed, pool.map(self._described_record, changed), strict=True))
            told = {one: read.get(one) or self._told.get(one) for one in records}
            self._told = {one: found for one, found in told.items() if found is not None}
        except AtlasError as error:
            log.debug("the sessions in the store are not known: %s", error.message)
        return [info for _, info in self._told.values()]

    def _version_told(self, session: str) -> str | None:
        return self._told[session][0] if session in self._told else None

    def _described_record(self, session: str) -> tuple[str, dict[str, Any]] | None:
        try:
            found = self._leases.read(session)
        except FileCorruptError as error:
            log.warning("%s: %s", session, error.message)
            return None
        if found is None:
            return None
        record, version = found
        if record.state is None:
            return version, {}
        if not self._secret:
            return version, record.about
        known = self._told.get(session)
        if known is not None and known[1].get("state") == record.state:
            return version, known[1]
        try:
            info = session_info(f"{self._objects.url}/{record.state}", **self._secret)
        except AtlasError as error:
            log.debug("a session in the store cannot be read: %s", error.message)
            return version, {}
        return version, {**info, "state": record.state}

    # --- what outlives this server ---------------------------------------------------------------------------

    def _note(self, session: str) -> None:
        """Write down what is known of a lease, for the next server that has this spool."""
        held = self._sessions.get(session)
        if held is None:
            return
        lease = held.lease
        found = {
            "record": dataclasses.asdict(lease.record), "version": lease.version, "here": held.here,
            "waits": held.waits, "says": held.says, "clears": held.clears,
            "number": held.number,
        }  # fmt: skip
        make_private(self.folder)
        path = os.path.join(self.folder, session + _LEASE)
        write_atomically(path, json.dumps(found).encode(), durable=held.lacking)

    def _find_left(self) -> None:
        """Go on with what a server held that had this spool before."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith(_LEASE) and not entry.name.startswith("."):
                    session = entry.name.removesuffix(_LEASE)
                    try:
                        with open(entry.path, encoding="utf-8") as file:
                            found = json.load(file)
                        record = LeaseRecord.from_bytes(json.dumps(found["record"]).encode())
                        lease, waits = Lease(session, record, str(found["version"]), -1), bool(found["waits"])
                        whole = waits or record.state is None or os.path.lexists(self._path(session))
                        number = int(found["number"])
                        self._sessions[session] = _Held(
                            lease,
                            bool(found["here"]) and whole,
                            waits,
                            bool(found["says"]),
                            number,
                            clears=bool(found.get("clears")),
                        )
                    except (OSError, ValueError, KeyError, TypeError, AtlasError):
                        log.warning("%s is damaged, and what it belongs to is put aside", entry.name)
        self._set_aside_strange()

    def _set_aside_strange(self) -> None:
        """Put files aside that no lease belongs to."""
        with contextlib.suppress(OSError), os.scandir(self.folder) as entries:
            for entry in entries:
                known = entry.name.removesuffix(_SUFFIX) in self._sessions
                if entry.name.endswith(_SUFFIX) and not entry.name.startswith(".") and not known:
                    os.replace(entry.path, f"{entry.path}.{time.strftime('%Y%m%d-%H%M%S')}-found.aside")
        waiting = self.waiting()
        if waiting:
            log.warning("%d files wait in the spool for the store, of a server before this one", len(waiting))

    def close(self) -> None:
        """Remove what the store has, too, and let another server use the folder; the leases end with the store's."""
        for session, held in list(self._sessions.items()):
            if not held.lacking:
                self._forget(session)
        super().close()
