"""Leases of sessions: who may take one when, and what a replica can do that has lost its own and does not know it."""

from __future__ import annotations

import uuid
from typing import Any

import pytest

from atlas_kit.errors import ConflictError, FileAccessError, FileCorruptError
from atlas_kit.server.leases import LeaseRecord, Leases
from atlas_kit.server.moved import HeldElsewhereError, LeaseLostError
from atlas_kit.storage.objects import Objects, objects_at

pytest.importorskip("fsspec", reason="needs the cloud extra")


class Clocks:
    """The clock of each replica: they have nothing in common but how fast they go."""

    def __init__(self) -> None:
        self.passed = 0.0

    def of(self, begin: float) -> Any:
        return lambda: begin + self.passed


@pytest.fixture
def clocks() -> Clocks:
    return Clocks()


@pytest.fixture
def store() -> Objects:
    return objects_at(f"memory://{uuid.uuid4().hex}/leases")


@pytest.fixture
def two(store: Objects, clocks: Clocks) -> tuple[Leases, Leases]:
    first = Leases(store, "one", "replica one", 10, clocks.of(1e6))
    second = Leases(store, "two", "replica two", 10, clocks.of(-5.0))
    first.go_round()
    second.go_round()
    return first, second


def test_a_session_has_one_holder_and_is_asked_for_where_that_is_alive(two: Any, clocks: Clocks) -> None:
    first, second = two
    lease = first.take("anna")
    assert (lease.fence, lease.record.holder) == (1, "one")
    with pytest.raises(HeldElsewhereError, match="replica one"):
        second.take("anna")
    assert first.go_round() == ["anna"]
    first.release(lease)
    assert first.go_round() == []
    assert second.take("anna").fence == 2


def test_a_replica_is_gone_when_its_beat_was_seen_unchanged_for_a_lease(two: Any, clocks: Clocks) -> None:
    first, second = two
    first.take("anna")
    for _ in range(5):
        clocks.passed += 2
        second.go_round()
        with pytest.raises(HeldElsewhereError):
            second.take("anna")
    clocks.passed += 1
    second.go_round()
    assert second.take("anna").fence == 2


def test_who_has_not_watched_takes_nobody_for_gone(two: Any, clocks: Clocks) -> None:
    first, second = two
    first.take("anna")
    clocks.passed += 100
    second.go_round()
    with pytest.raises(HeldElsewhereError):
        second.take("anna")
    third = Leases(second.objects, "three", "replica three", 10, clocks.of(0.0))
    third.go_round()
    with pytest.raises(HeldElsewhereError):
        third.take("anna")


def test_who_wakes_up_late_can_save_nothing_and_knows_it_with_the_next_look(two: Any, clocks: Clocks) -> None:
    first, second = two
    late, other = first.take("anna"), first.take("bert")
    for _ in range(6):
        clocks.passed += 2
        second.go_round()
    taken = second.take("anna")
    with pytest.raises(LeaseLostError):
        first.write(late, state="stale")
    assert second.read("anna")[0].state is None
    second.write(taken, state="new")
    with pytest.raises(LeaseLostError):
        first.write(late, state="stale")
    assert second.read("anna")[0].state == "new"
    assert not first.sure
    with pytest.raises(LeaseLostError):
        first.confirm(late)
    first.confirm(other)  # which nobody has taken
    first.go_round()
    first.confirm(other)
    first.write(other, state="kept")


def test_who_wakes_up_before_anybody_noticed_goes_on(two: Any, clocks: Clocks) -> None:
    first, _ = two
    lease = first.take("anna")
    clocks.passed += 8
    first.go_round()
    assert first.sure
    first.write(lease, state="saved")


def test_a_beat_that_was_taken_away_says_that_others_may_have_the_leases(two: Any, clocks: Clocks) -> None:
    first, second = two
    lease = first.take("anna")
    # a machine that sleeps may not count the time: its clock says that all is well
    second._now = lambda: clocks.passed + 100.0
    second._others["one"] = (second._others["one"][0], 0.0)
    second._looked = second._now()
    assert second.take("anna").fence == 2
    assert first.sure
    first.confirm(lease)
    first.go_round()
    with pytest.raises(LeaseLostError):
        first.confirm(lease)


def test_a_replica_that_has_ended_holds_nothing(two: Any, clocks: Clocks) -> None:
    first, second = two
    first.take("anna")
    first.end()
    second.go_round()
    assert second.take("anna").fence == 2


def test_a_write_whose_answer_was_lost_is_ones_own(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, _ = two
    lease, put = first.take("anna"), first.objects.put

    def lossy(name: str, data: bytes, expect: str | None = None) -> str:
        put(name, data, expect)
        monkeypatch.undo()
        raise FileAccessError("the connection was cut")

    monkeypatch.setattr(first.objects, "put", lossy)
    with pytest.raises(FileAccessError):
        first.write(lease, state="one")
    first.write(lease, state="two")
    assert first.read("anna")[0].state == "two"


def test_two_with_one_id_become_two(store: Objects, clocks: Clocks) -> None:
    first, copy = (Leases(store, "same", name, 10, clocks.of(0.0)) for name in ("first", "copy"))
    first.go_round()
    lease = first.take("anna")
    assert lease is not None
    copy.go_round()
    first.go_round()
    assert first.me != copy.me
    with pytest.raises(LeaseLostError):
        first.confirm(lease)


def test_two_who_take_at_once_do_not_both_get_it(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    read = second.objects.read

    def slow(name: str) -> Any:
        found = read(name)
        if name == "sessions/anna":
            monkeypatch.undo()
            first.take("anna")
        return found

    monkeypatch.setattr(second.objects, "read", slow)
    monkeypatch.setattr(first, "objects", objects_at(first.objects.url))
    with pytest.raises(HeldElsewhereError):
        second.take("anna")


def test_who_only_looks_begins_nothing(two: Any) -> None:
    first, second = two
    assert first.take("anna", begin=False) is None
    assert first.read("anna") is None
    first.take("anna")
    with pytest.raises(HeldElsewhereError):
        second.take("anna", begin=False)


def test_no_two_records_are_the_same_bytes() -> None:
    record = LeaseRecord(3, "one", "replica one", "state", {"a": 1})
    assert record.to_bytes() != record.to_bytes()
    assert LeaseRecord.from_bytes(record.to_bytes()) == record


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff",
        b"7",
        b"{}",
        b"[]",
        b'{"fence": "x"}',
        b'{"fence": 0, "holder": null, "name": "", "state": null, "about": []}',
    ],
)
def test_a_damaged_record_is_told(data: bytes) -> None:
    with pytest.raises(FileCorruptError):
        LeaseRecord.from_bytes(data)


def test_one_that_began_since_the_last_look_is_not_taken_for_gone(two: Any, store: Objects) -> None:
    second = two[1]
    third = Leases(store, "three", "replica three", 10, second._now)
    third.go_round()
    third.take("anna")
    with pytest.raises(HeldElsewhereError, match="replica three"):
        second.take("anna")
    assert third.go_round() == ["anna"]


@pytest.mark.parametrize("when", ["before", "after", "late"])
def test_one_whose_giving_back_had_no_answer_looks_before_it_goes_on(
    two: Any, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    first, second = two
    lease, put, late = first.take("anna"), first.objects.put, list[Any]()

    def lossy(name: str, data: bytes, expect: str | None = None) -> str:
        if when == "after":
            put(name, data, expect)
        late.append((name, data, expect))
        monkeypatch.undo()
        raise FileAccessError("the store does not answer in time")

    monkeypatch.setattr(first.objects, "put", lossy)
    with pytest.raises(FileAccessError):
        first.release(lease)
    if when == "after":
        assert second.take("anna").fence == 2
        with pytest.raises(LeaseLostError):
            first.confirm(lease)
        return
    first.confirm(lease)
    if when == "late":  # it arrives when its sender goes on
        with pytest.raises(ConflictError):
            put(*late[0])
    with pytest.raises(HeldElsewhereError):
        second.take("anna")


def test_giving_back_twice_is_no_loss(two: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = two
    lease, put = first.take("anna"), first.objects.put

    def twice(name: str, data: bytes, expect: str | None = None) -> str:
        monkeypatch.undo()
        put(name, data, expect)
        return str(put(name, data, expect))  # as what speaks to stores does when a connection is cut

    monkeypatch.setattr(first.objects, "put", twice)
    first.release(lease)
    assert second.take("anna").fence == 2


def test_only_what_nobody_here_has_a_lease_of_is_given_up(two: Any) -> None:
    first, second = two
    lease = first.take("anna")
    first.give_up("anna")
    first.confirm(lease)
    with pytest.raises(HeldElsewhereError):
        second.take("anna")
