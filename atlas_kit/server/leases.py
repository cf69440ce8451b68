"""Who has which session: leases in a store that several servers (replicas) share, taken with conditional writes.

Each session has one small object, its *record*: which replica holds it, a fencing number that goes up each time it is
taken, and where its last saved state is. A save is a conditional write of the record over the version that its holder
knows. Whoever takes a session writes the record, too; so a replica that was away for a while and does not know it
cannot save any more, whatever its clock says, and the worst that can come of a wrong guess is a refusal.

Guessed is only whether another replica is alive. Each one writes an object of its own again every few seconds (its
*beat*), which stands for all leases that it holds: a write for each of them would cost the more the more there are.
Whose beat another replica has seen unchanged for ``seconds`` by its own clock, or does not find, it takes to be gone:
clocks are never compared. A replica that finds its own beat gone, or comes late with it, knows that each of its leases
may be another's, and looks before it uses one.

A replica that is asked for another's session leaves a note beside that one's beat (*wanted*), which is found with the
next round.

Knows nothing of what a session is: it has an id, and its record whatever is to be said of it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import AtlasError, ConflictError, FileCorruptError
from atlas_kit.server.moved import HeldElsewhereError, LeaseLostError
from atlas_kit.storage.objects import ABSENT, Objects

log = logging.getLogger("atlas_kit.server")
#: Rounds in the time of a lease.
ROUNDS = 5
#: How often a record is read anew that another one writes at the same moment.
_TRIES = 5
#: The turn of a lease of which it is not known whether it was given back.
_IN_DOUBT = -2
_BEATS, _RECORDS, _WANTED = "replicas", "sessions", ".wanted"


def clock() -> float:
    """Return seconds that go on while the machine sleeps, where the system counts those."""
    boot = getattr(time, "CLOCK_BOOTTIME", None)
    return time.monotonic() if boot is None else time.clock_gettime(boot)


@dataclass
class LeaseRecord:
    """What the store knows of a session.

    Attributes
    ----------
    fence
        How often it was taken.
    holder, name
        The id of the replica that has it, and what that is called; None: nobody.
    state
        The object with its last saved state; None: nothing was saved.
    about
        What else is to be said of it.
    """

    fence: int = 0
    holder: str | None = None
    name: str = ""
    state: str | None = None
    about: dict[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return it as it is stored: never the same twice, as versions are made from the bytes."""
        return json.dumps({**dataclasses.asdict(self), "mark": os.urandom(8).hex()}).encode()

    @classmethod
    def from_bytes(cls, data: bytes) -> LeaseRecord:
        """Return what is stored.

        Raises
        ------
        FileCorruptError
            It is no record.
        """
        try:
            found = json.loads(data)
            record = cls(*(found[one.name] for one in dataclasses.fields(cls)))
        except (ValueError, TypeError, KeyError) as error:
            raise FileCorruptError("the record of a session is damaged") from error
        state = record.state is None or isinstance(record.state, str)
        if not isinstance(record.fence, int) or not isinstance(record.about, dict) or not state:
            raise FileCorruptError("the record of a session is damaged")
        return record


@dataclass
class Lease:
    """A session that this replica holds: its record, the version of that, and the turn in which that was looked at.

    ``inherited``: whoever held it before did not give it back, and may have left what no record leads to.
    """

    id: str
    record: LeaseRecord
    version: str
    turn: int
    inherited: bool = False

    @property
    def fence(self) -> int:
        """How often the session was taken, this time included."""
        return self.record.fence


class Leases:
    """The leases of one replica. Any thread may ask; of one session, one at a time.

    Parameters
    ----------
    objects
        The store.
    me, name
        The id of this replica, which no other has, and what it is called in messages.
    seconds
        How long a beat counts.
    now
        The clock.
    """

    def __init__(
        self, objects: Objects, me: str, name: str, seconds: float, now: Callable[[], float] = clock
    ) -> None:
        self.objects, self.me, self.name, self.seconds, self._now = objects, me, name, seconds, now
        self._process = os.urandom(8).hex()
        self._beat: str | None = None
        self._beaten = self._looked = float("-inf")
        #: Goes up whenever another replica may have taken what this one holds.
        self.turn = 0
        self._others: dict[str, tuple[str, float]] = {}
        self._asked: dict[str, float] = {}
        self._mine: set[str] = set()
        self._round = threading.Lock()

    # --- being alive -----------------------------------------------------------------------------------------

    @property
    def sure(self) -> bool:
        """Whether no other replica can have taken this one for gone by now."""
        return self._now() - self._beaten < self.seconds / 2

    def go_round(self) -> list[str]:
        """Say that this replica is alive, look who else is, and return the ids of sessions that others want.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        with self._round:
            began = self._now()
            if began - self._beaten > self.seconds:
                self.turn += 1
            self._write_beat()
            self._beaten = began
            return self._look()

    def _write_beat(self) -> None:
        mine = json.dumps({"process": self._process, "name": self.name, "mark": os.urandom(8).hex()}).encode()
        place = f"{_BEATS}/{self.me}"
        try:
            self._beat = self.objects.put(place, mine, self._beat)
        except ConflictError:
            found = self.objects.read(place)
            if found is not None and _process_of(found.data) not in (self._process, None):
                # the spool was copied: of two with one name none could tell whose a lease is
                log.warning("another server goes by the same id: this one has a new one")
                self.me, self._beat = os.urandom(8).hex(), None
            self.turn += 1
            place = f"{_BEATS}/{self.me}"
            self._beat = self.objects.put(place, mine)

    def _look(self) -> list[str]:
        began = self._now()
        found = self.objects.listed(_BEATS)
        late = began - self._looked > self.seconds / 2  # nobody watched: unchanged says nothing
        start, wanted = f"{_BEATS}/{self.me}{_WANTED}/", []
        others: dict[str, tuple[str, float]] = {}
        for name, version in found.items():
            if name.startswith(start):
                wanted.append(name[len(start) :])
            elif name.count("/") == 1 and not name.endswith(_WANTED):
                one = name.partition("/")[2]
                before = self._others.get(one)
                seen = began if before is None or late or before[0] != version else before[1]
                others[one] = version, seen
        self._others, self._looked = others, began
        return wanted

    def is_alive(self, other: str) -> bool:
        """Tell whether a replica has to be taken for alive.

        Raises
        ------
        FileAccessError
            That cannot be found out: the store is away.
        """
        if self._now() - self._looked > self.seconds / 2:
            with self._round:
                self._look()
        if other not in self._others:  # it may have begun since, or the listing may be older than its beat
            beat = self.objects.read(f"{_BEATS}/{other}")
            if beat is not None:
                self._others.setdefault(other, (beat.version, self._now()))
        found = self._others.get(other)
        return found is not None and self._now() - found[1] <= self.seconds

    def end(self) -> None:
        """Give back all leases at once: whose beat is not there holds nothing."""
        with self._round:
            self.objects.delete(f"{_BEATS}/{self.me}")
            self._beat, self._beaten = None, float("-inf")

    # --- holding ---------------------------------------------------------------------------------------------

    def read(self, session: str) -> tuple[LeaseRecord, str] | None:
        """Return the record of a session and its version; None: there is none."""
        found = self.objects.read(f"{_RECORDS}/{session}")
        return None if found is None else (LeaseRecord.from_bytes(found.data), found.version)

    def take(self, session: str, *, begin: bool = True) -> Lease | None:
        """Take a session that nobody holds who is alive; of one that somebody does, leave word that it is wanted.

        ``begin``: also where there is nothing of it yet; else that is None.

        Raises
        ------
        HeldElsewhereError
            Somebody does.
        FileAccessError
            The store is away.
        """
        for _ in range(_TRIES):
            record, version = self.read(session) or (LeaseRecord(), ABSENT)
            holder = record.holder
            if not begin and holder is None and record.state is None and not record.about:
                return None
            if holder not in (None, self.me):
                assert holder is not None
                if self.is_alive(holder):
                    self._ask(holder, session)
                    raise HeldElsewhereError(record.name)
                with contextlib.suppress(
                    AtlasError
                ):  # so that it sees what has become of it when it wakes up
                    self.objects.delete(f"{_BEATS}/{holder}")
            turn = self.turn
            new = dataclasses.replace(record, fence=record.fence + 1, holder=self.me, name=self.name)
            with contextlib.suppress(ConflictError):
                version = self._put(session, new, version)
                self._asked.pop(session, None)
                self._mine.add(session)
                return Lease(session, new, version, turn, inherited=holder is not None)
        raise HeldElsewhereError("several want it at once")

    def confirm(self, lease: Lease) -> None:
        """See that a session is still this replica's.

        Raises
        ------
        LeaseLostError
            It is not.
        FileAccessError
            That cannot be found out: the store is away.
        """
        turn = self.turn
        if lease.turn == turn and self.sure:
            return
        if (
            lease.turn == _IN_DOUBT
        ):  # written anew: what is still under way to the store comes to nothing then
            self.write(lease)
        else:
            self._agree(lease)
        lease.turn = turn

    def write(self, lease: Lease, **changes: Any) -> None:
        """Change the record of a session that this replica holds.

        Raises
        ------
        LeaseLostError
            Another one has taken it: nothing was written.
        FileAccessError
            The store is away.
        """
        new = dataclasses.replace(lease.record, **changes)
        for _ in range(_TRIES):
            try:
                lease.version = self._put(lease.id, new, lease.version)
            except ConflictError:
                self._agree(lease)  # an earlier write may have come through whose answer was lost
            else:
                lease.record = new
                return
        raise LeaseLostError

    def release(self, lease: Lease) -> None:
        """Give a session back.

        Raises
        ------
        LeaseLostError
            Another replica has taken it.
        FileAccessError
            The store is away: before the session is used again, it is found out whose it is.
        """
        lease.turn = _IN_DOUBT
        try:
            self.write(lease, holder=None, name="")
        except LeaseLostError:
            found = self.read(lease.id)
            if found is None or (found[0].holder, found[0].fence) != (None, lease.fence):
                raise
            # an earlier write has given it back, whose answer was lost
        self._mine.discard(lease.id)
        self.unask(lease.id)

    def give_up(self, session: str) -> None:
        """Give a session back of which nobody here has a lease: its record may say that this replica holds it.

        So it is where the session was taken and the answer was lost.

        Raises
        ------
        FileAccessError
            The store is away.
        """
        found = None if session in self._mine else self.read(session)
        if found is not None and found[0].holder == self.me:
            with contextlib.suppress(ConflictError):
                self._put(session, dataclasses.replace(found[0], holder=None, name=""), found[1])
        self.unask(session)

    def unask(self, session: str) -> None:
        """Take away the word that a session is wanted from this replica."""
        with contextlib.suppress(AtlasError):
            self.objects.delete(f"{_BEATS}/{self.me}{_WANTED}/{session}")

    def records(self) -> dict[str, str]:
        """Return the versions of all records, by the ids of the sessions."""
        start = len(_RECORDS) + 1
        return {name[start:]: version for name, version in self.objects.listed(_RECORDS).items()}

    def _agree(self, lease: Lease) -> None:
        found = self.read(lease.id)
        if found is None or (found[0].holder, found[0].fence) != (self.me, lease.fence):
            self._mine.discard(lease.id)
            raise LeaseLostError
        lease.record, lease.version = found

    def _put(self, session: str, record: LeaseRecord, expect: str) -> str:
        return self.objects.put(f"{_RECORDS}/{session}", record.to_bytes(), expect)

    def _ask(self, holder: str, session: str) -> None:
        """Leave word that a session is wanted; once in the time of a lease."""
        now = self._now()
        self._asked = {one: at for one, at in self._asked.items() if now - at < self.seconds}
        if session not in self._asked:
            self.objects.put(f"{_BEATS}/{holder}{_WANTED}/{session}", self.name.encode())
            self._asked[session] = now


def _process_of(data: bytes) -> str | None:
    try:
        found = json.loads(data)["process"]
    except (ValueError, TypeError, KeyError):
        return None
    return found if isinstance(found, str) else None
