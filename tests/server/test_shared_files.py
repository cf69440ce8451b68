"""Files in a store that servers share: what is put late, twice or from a spool of before writes over nothing."""

from __future__ import annotations

import contextlib
import json
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import FileAccessError
from atlas_kit.server import shared_sessions
from atlas_kit.server.keys import Key
from atlas_kit.server.moved import HeldElsewhereError
from atlas_kit.server.shared_files import SharedFile, SharedMemories
from atlas_kit.server.shared_sessions import SharedSessions
from atlas_kit.server.shared_store import SharedStore, spool_of
from atlas_kit.storage.objects import Objects, OtherObjects, objects_at

pytest.importorskip("fsspec", reason="needs the cloud extra")
pytest.importorskip("fastapi", reason="the packages of the server are not installed")

ANNA = Key("", "anna")


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/memories"


@pytest.fixture
def there(address: str) -> Objects:
    return objects_at(address)


@pytest.fixture
def server(address: str, tmp_path: Path) -> Iterator[Any]:
    """Return what makes the store of a server that nothing goes round in; ``kill`` frees its spool."""
    with contextlib.ExitStack() as all_of_them:

        def made(name: str) -> SharedStore:
            found = SharedStore(address, str(tmp_path / name), 10.0, name)
            found.leases.go_round()
            all_of_them.callback(found.close)
            return found

        yield made


class Away:
    """A store that is away, or takes a number of writes and loses the answer."""

    def __init__(self, patch: pytest.MonkeyPatch) -> None:
        self.away, self.unanswered, self._put = False, 0, OtherObjects.put
        for name in ("read", "fetch", "delete", "listed"):
            patch.setattr(OtherObjects, name, self._guarded(getattr(OtherObjects, name)))
        patch.setattr(OtherObjects, "put", self.put)

    def put(self, *given: Any, **more: Any) -> str:
        self._refuse()
        found = self._put(*given, **more)
        if self.unanswered:
            self.unanswered -= 1
            raise FileAccessError("the store does not answer in time")
        return found

    def _refuse(self) -> None:
        if self.away:
            raise FileAccessError("the store cannot be reached")

    def _guarded(self, function: Any) -> Any:
        def guarded(*given: Any, **more: Any) -> Any:
            self._refuse()
            return function(*given, **more)

        return guarded


@pytest.fixture
def away(monkeypatch: pytest.MonkeyPatch) -> Away:
    found = Away(monkeypatch)
    put = found.put
    monkeypatch.setattr(OtherObjects, "put", lambda self, *given, **more: put(self, *given, **more))
    return found


def file_of(store: SharedStore, there: Objects) -> SharedFile:
    found = SharedFile(store, there, "all.atlas")
    found.open()
    return found


def save(file: SharedFile, text: str) -> None:
    Path(file.path).write_text(text)
    file.put()


def text_at(there: Objects, name: str = "all.atlas") -> str | None:
    found = there.read(name)
    return None if found is None else found.data.decode()


def beside(there: Objects) -> list[str]:
    return sorted(text_at(there, one) or "" for one in there.listed("") if "aside" in one)


# --- the shared memory ------------------------------------------------------------------------------------


def test_a_save_without_an_answer_is_ones_own(server: Any, there: Objects, away: Away) -> None:
    store = server("one")
    file = file_of(store, there)
    save(file, "first")
    away.unanswered = 1
    save(file, "second")
    assert (text_at(there), store.waiting()) == ("second", ["all.atlas"])
    store.try_again()
    save(file, "third")
    assert (text_at(there), store.waiting(), file.problem) == ("third", [], None)


def test_a_save_without_an_answer_is_ones_own_after_a_restart(
    server: Any, there: Objects, away: Away
) -> None:
    store = server("one")
    file = file_of(store, there)
    save(file, "first")
    away.unanswered = 1
    save(file, "second")
    away.away = True
    store.try_again()
    save(file, "third")
    store.close()  # it is killed
    away.away = False
    store = server("one")
    file = file_of(store, there)
    assert Path(file.path).read_text() == "third"
    file.put_waiting()
    assert (text_at(there), beside(there), file.problem) == ("third", [], None)


@pytest.mark.parametrize("waits", [True, False])
@pytest.mark.parametrize("begins", ["away", "there"])
def test_a_spool_of_before_writes_over_nothing(
    server: Any, there: Objects, away: Away, waits: bool, begins: str
) -> None:
    store = server("one")
    file = file_of(store, there)
    save(file, "first")
    away.away = waits
    save(file, "second")
    away.away = False
    store.try_again()
    store.leases.end()
    store.close()
    store = server("two")
    save(file_of(store, there), "what two learned")
    store.leases.end()
    store.close()
    store = server("one")
    away.away = begins == "away"
    file = file_of(store, there)
    assert Path(file.path).read_text() == ("second" if begins == "away" else "what two learned")
    away.away = False
    store.try_again()
    if begins == "away":
        save(file, "on from the second")
    assert text_at(there) == "what two learned"
    gone = [*(["on from the second"] if begins == "away" else ["second"] if waits else [])]
    assert beside(there) == gone


def test_one_that_begins_while_the_store_is_away_does_not_write_over_what_is_there(
    server: Any, there: Objects, away: Away
) -> None:
    store = server("two")
    save(file_of(store, there), "what two learned")
    store.leases.end()
    new = server("one")
    away.away = True
    file = file_of(new, there)
    save(file, "a new one")
    away.away = False
    new.try_again()
    file.put_waiting()
    assert (text_at(there), beside(there)) == ("what two learned", ["a new one"])


# --- memories that clients save ---------------------------------------------------------------------------


def test_what_waited_does_not_lose_what_others_have_saved(server: Any, there: Objects, away: Away) -> None:
    store, other = server("one"), server("two")
    mine, theirs = SharedMemories(store), SharedMemories(other)
    away.away = True
    path = os.path.join(mine.folder, "a.atlas")
    Path(path).write_text("mine")
    mine.put(path)
    away.away = False
    other.try_again()
    path = os.path.join(theirs.folder, "a.atlas")
    Path(path).write_text("theirs")
    theirs.put(path)
    store.try_again()
    mine.put_waiting()
    assert (text_at(there, "memories/a.atlas"), beside(there)) == ("mine", ["theirs"])


# --- sessions ---------------------------------------------------------------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let any bytes be a session."""
    monkeypatch.setattr(shared_sessions, "session_info", lambda path, **_: {"name": "anna"})


def learn(sessions: SharedSessions, text: str) -> None:
    """Save a session, as ``write`` does."""
    held = sessions._sessions[sessions.id_of(ANNA)]
    held.waits = True
    sessions._note(sessions.id_of(ANNA))
    Path(sessions.path_of(ANNA)).write_text(text)
    with contextlib.suppress(FileAccessError):
        sessions._put(sessions.id_of(ANNA), held)


def known(sessions: SharedSessions) -> str:
    """Return what a session is that is claimed."""
    sessions.claim(ANNA)
    return Path(sessions.path_of(ANNA)).read_text()


def gone(of: SharedStore, by: SharedStore) -> None:
    """Let a server be taken for gone by another one, of which it knows nothing."""
    by.objects.delete(f"replicas/{of.leases.me}")
    by.leases.go_round()


@pytest.mark.usefixtures("plain")
def test_a_spool_of_before_takes_nothing_from_who_has_the_session_now(
    server: Any,
) -> None:
    first, second = server("one"), server("two")
    sessions = SharedSessions(first)
    sessions.claim(ANNA)
    note = Path(sessions.folder, f"{sessions.id_of(ANNA)}.lease")
    before = {**json.loads(note.read_text()), "waits": True}
    learn(sessions, "saved")
    note.write_text(json.dumps(before))  # it is killed before it writes down that the store has it
    sessions._held.close()
    first.close()
    gone(first, second)
    theirs = SharedSessions(second)
    assert known(theirs) == "saved"
    again = SharedSessions(server("one"))
    again.put_waiting()
    theirs.let_go(theirs.id_of(ANNA))
    theirs.release(theirs.id_of(ANNA))
    assert known(SharedSessions(server("three"))) == "saved"


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize("while_it", ["takes", "deletes"])
def test_one_that_sleeps_while_it_tidies_up_removes_nothing_of_others(
    server: Any, there: Objects, monkeypatch: pytest.MonkeyPatch, while_it: str
) -> None:
    zero, first, second = server("zero"), server("one"), server("two")
    sessions, theirs = SharedSessions(zero), SharedSessions(second)
    sessions.claim(ANNA)
    learn(sessions, "first")
    gone(zero, first)
    sessions = SharedSessions(first)
    if while_it == "deletes":
        sessions.claim(ANNA)
    tidy = sessions._remove_states

    def late(*given: Any, **more: Any) -> None:
        gone(first, second)
        theirs.claim(ANNA)
        learn(theirs, "of the second")
        tidy(*given, **more)

    monkeypatch.setattr(sessions, "_remove_states", late)
    if while_it == "deletes":
        sessions.delete(ANNA, sessions.ticket(ANNA))
    else:
        sessions.claim(ANNA)
    theirs.let_go(theirs.id_of(ANNA))
    theirs.release(theirs.id_of(ANNA))
    assert known(SharedSessions(server("three"))) == "of the second"


@pytest.mark.usefixtures("plain")
def test_a_session_that_was_given_back_without_an_answer_is_taken_anew(
    server: Any, there: Objects, away: Away
) -> None:
    first, second = server("one"), server("two")
    sessions, theirs = SharedSessions(first), SharedSessions(second)
    sessions.claim(ANNA)
    learn(sessions, "first")
    sessions.let_go(sessions.id_of(ANNA))
    away.unanswered = 1
    with pytest.raises(FileAccessError):
        sessions.release(sessions.id_of(ANNA))
    assert known(theirs) == "first"
    first.try_again()
    second.leases.go_round()
    with pytest.raises(HeldElsewhereError, match="two"):
        sessions.claim(ANNA)
    assert not sessions.holds(ANNA)


# --- the spool --------------------------------------------------------------------------------------------


def test_another_endpoint_is_another_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = set()
    for one in (None, "http://one:9000", "http://two:9000"):
        monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)
        monkeypatch.delenv("AWS_ENDPOINT_URL", raising=False)
        if one is not None:
            monkeypatch.setenv("AWS_ENDPOINT_URL", one)
        found.add(spool_of("s3://bucket/memories", str(tmp_path)))
    assert len(found) == 3
