"""Answers in a file: found again, forgotten for good, bounded, and damaged files."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.server.kept_responses import Kept, KeptResponses
from atlas_kit.server.response_file import FILE_NAME, LOOK_EVERY, ResponseFile
from atlas_kit.server.response_forms import Sealed
from atlas_kit.storage.keys import Keys

Open = Callable[..., ResponseFile]


@pytest.fixture
def opened(tmp_path: Path) -> Iterator[Open]:
    """Return what opens the file of this test; whatever was opened before is closed first."""
    files: list[ResponseFile] = []

    def open_file(**bounds: Any) -> ResponseFile:
        for one in files:
            one.close()
        files.append(ResponseFile(tmp_path, **bounds))
        return files[-1]

    yield open_file
    for one in files:
        one.close()


def answer(name: str, before: Kept | None = None, **more: Any) -> Kept:
    """Return an answer whose text is its name."""
    return Kept({"id": name}, [{"text": name}], [{"role": "user", "content": name}], before, **more)


def found(responses: KeptResponses, name: str) -> Kept | None:
    """Return the answer of an id."""
    return asyncio.run(responses.find("", name))


def test_nobody_else_can_read_any_of_its_files(opened: Open, tmp_path: Path) -> None:
    old = os.umask(0o022)
    try:
        KeptResponses(file=opened()).keep("", answer("first"))
        files = sorted(tmp_path.iterdir())
        assert [one.name for one in files] == [FILE_NAME, f"{FILE_NAME}-shm", f"{FILE_NAME}-wal"]
        assert [one.stat().st_mode & 0o777 for one in files] == [0o600] * 3
    finally:
        os.umask(old)


def test_answers_are_found_with_what_led_to_them(opened: Open) -> None:
    responses = KeptResponses(file=opened())
    first = answer("first", session="anna", remembers=True)
    responses.keep("", first)
    responses.keep("", answer("second", first))
    responses.keep("", answer("other", first))
    responses = KeptResponses(file=opened())
    second, other = found(responses, "second"), found(responses, "other")
    assert second is not None
    assert other is not None
    assert [one["content"] for one in second.text()] == ["first", "second"]
    assert second.before is other.before
    assert second.before is not None
    assert (second.before.session, second.before.remembers) == ("anna", True)
    assert (second.session, second.remembers) == (None, None)
    assert asyncio.run(responses.find("other", "second")) is None


def test_what_main_memory_forgot_is_found_in_the_file(opened: Open) -> None:
    responses = KeptResponses(most=2, file=opened())
    for number in range(5):
        responses.keep("", answer(str(number)))
    assert len(responses) == 2
    assert all(found(responses, str(number)) is not None for number in range(5))
    assert len(responses) == 2


def test_what_is_deleted_is_in_no_file(opened: Open, tmp_path: Path) -> None:
    file = opened()
    responses = KeptResponses(file=file)
    kept, secret = answer("kept"), answer("a canary that sings")
    for one in (kept, secret, answer("last", kept)):
        responses.keep("", one)

    async def test() -> None:
        assert await responses.delete("", "a canary that sings")
        assert not await responses.delete("", "a canary that sings")
        assert await responses.delete("", "kept")
        assert await responses.find("", "kept") is None

    asyncio.run(test())
    assert asyncio.run(responses.find("", "last")) is not None
    for path in tmp_path.iterdir():
        assert b"canary" not in path.read_bytes()
    last = found(KeptResponses(file=opened()), "last")
    assert last is not None
    assert [one["content"] for one in last.text()] == ["kept", "last"]  # what goes on from it stays whole


def test_a_conversation_that_is_forgotten_takes_its_text_along(opened: Open, tmp_path: Path) -> None:
    responses = KeptResponses(file=opened())

    async def test() -> None:
        async with responses.turn("", "anna") as thread:
            thread.last = answer("", Kept({}, [], [{"role": "user", "content": "a canary"}]))
        responses.forget("", "anna")
        assert await responses.thread("", "anna") is None

    asyncio.run(test())
    responses.close()
    assert all(b"canary" not in path.read_bytes() for path in tmp_path.iterdir())


def test_the_file_is_bounded(opened: Open, tmp_path: Path) -> None:
    responses = KeptResponses(most=1, file=opened(most=10, most_conversations=3))
    last: Kept | None = None

    async def talk() -> None:
        for number in range(LOOK_EVERY):
            async with responses.turn("", str(number % 8)) as thread:
                thread.last = answer(f"said {number}")

    for number in range(LOOK_EVERY):
        last = answer(str(number), last)
        responses.keep("", last)
    asyncio.run(talk())
    responses = KeptResponses(file=opened())
    known = [number for number in range(LOOK_EVERY) if found(responses, str(number)) is not None]
    assert known == list(range(LOOK_EVERY - 10, LOOK_EVERY))
    newest = found(responses, str(known[-1]))
    assert newest is not None
    assert len(newest.text()) == LOOK_EVERY
    opened().close()
    database = sqlite3.connect(tmp_path / FILE_NAME)
    assert database.execute("SELECT count(*) FROM conversations").fetchone()[0] <= 8
    database.close()


def test_the_file_has_so_many_bytes_at_most(opened: Open, tmp_path: Path) -> None:
    responses = KeptResponses(file=opened(most_bytes=20_000))
    for number in range(LOOK_EVERY):
        responses.keep("", answer(f"{number} " + "x" * 500))
    opened().close()
    database = sqlite3.connect(tmp_path / FILE_NAME)
    size = "SELECT sum(length(response) + length(items) + length(messages)) FROM answers"
    assert 0 < database.execute(size).fetchone()[0] <= 20_000
    database.close()


@pytest.mark.parametrize(
    "damage", [b"no database at all" * 100, b"", b"SQLite format 3\x00" + b"\xff" * 5000]
)
def test_a_file_that_is_no_good_is_set_aside(
    opened: Open, tmp_path: Path, damage: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).write_bytes(damage)
    responses = KeptResponses(file=opened())
    responses.keep("", answer("one"))
    assert found(KeptResponses(file=opened()), "one") is not None
    aside = list(tmp_path.glob("*.aside"))
    assert [one.read_bytes() for one in aside] == ([damage] if damage else [])
    assert ("set aside" in caplog.text) == bool(damage)


def test_a_file_that_cannot_be_opened_is_done_without(
    opened: Open, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / FILE_NAME).mkdir()
    responses = KeptResponses(file=opened())
    responses.keep("", answer("one"))
    assert found(responses, "one") is not None
    assert found(responses, "two") is None
    assert caplog.text.count("do not outlive") == 1


def test_a_full_disk_is_said_once(opened: Open, caplog: pytest.LogCaptureFixture) -> None:
    file = opened()
    pages = file._thread.submit(lambda: file._database.execute("PRAGMA max_page_count = 8").fetchone())  # type: ignore[union-attr]
    pages.result()
    responses = KeptResponses(file=file)
    for number in range(20):
        responses.keep("", answer(f"{number} " + "x" * 10_000))
    assert all(found(responses, f"{number} " + "x" * 10_000) is not None for number in range(20))
    file.close()
    assert caplog.text.count("are not kept") == 1


def test_closing_twice_and_asking_afterwards_is_fine(opened: Open) -> None:
    file = opened()
    responses = KeptResponses(file=file)
    responses.keep("", answer("one"))
    responses.close()
    responses.close()
    responses.keep("", answer("two"))
    assert found(responses, "two") is not None
    assert found(responses, "three") is None
    assert found(KeptResponses(file=opened()), "one") is not None


KEYS = Keys(key=bytes(range(32)))


def test_a_row_that_was_altered_or_moved_is_no_answer(opened: Open, tmp_path: Path) -> None:
    responses = KeptResponses(file=opened(keys=KEYS))
    for name in ("first", "second", "third"):
        responses.keep("", answer(name))
    responses.close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        rows = database.execute("SELECT response, items, messages FROM answers ORDER BY n").fetchall()
        database.execute("UPDATE answers SET response = ?, items = ?, messages = ? WHERE n = 1", rows[1])
        database.execute("UPDATE answers SET messages = zeroblob(40) WHERE n = 2")
    responses = KeptResponses(file=opened(keys=KEYS))
    assert found(responses, "first") is None
    assert found(responses, "second") is None
    third = found(responses, "third")
    assert third is not None
    assert third.response == {"id": "third"}


@pytest.mark.parametrize("keys", [None, KEYS])
def test_sealed_or_not_all_that_is_asked_of_it_is_the_same(opened: Open, keys: Keys | None) -> None:
    file = opened(keys=keys, most=3)
    responses = KeptResponses(file=file)
    for number in range(5):
        responses.keep("", answer(str(number), session=("anna", "ben")[number % 2], remembers=True))
    assert file.count_of("", "anna").result() == 3
    assert file.count_of("other", "anna").result() == 0
    file.forget_of("", "anna").result()
    assert file.count_of("", "anna").result() == 0
    assert file.count_of("", "ben").result() == 2
    file.note("", "anna", None, {"a": "b"}, 1.5)
    noted = file.noted("", "anna").result()
    assert noted is not None
    assert (noted.metadata, noted.created, noted.line) == ({"a": "b"}, 1.5, [])
    assert file.hide("", "1").result()
    assert not file.hide("", "1").result()
    for number in range(LOOK_EVERY):
        responses.keep("", answer(f"more {number}"))
    assert file.find("", "3").result() == []  # the oldest went


def test_what_cannot_be_read_is_not_sealed_and_gone(opened: Open, tmp_path: Path) -> None:
    responses = KeptResponses(file=opened())
    for name in ("a canary", "kept"):
        responses.keep("", answer(name))
    opened().note("", "anna", None, {"a": "b"}, 1.0)
    opened().close()
    with contextlib.closing(sqlite3.connect(tmp_path / FILE_NAME)) as database, database:
        database.execute("UPDATE answers SET response = '{half a canary' WHERE n = 1")
        database.execute("UPDATE conversations SET metadata = 'a canary'")
    file = opened(keys=KEYS)
    assert file.find("", "a canary").result() == []
    assert file.find("", "kept").result()[0].messages == [{"role": "user", "content": "kept"}]
    noted = file.noted("", "anna").result()
    assert noted is not None
    assert noted.metadata == {}
    file.close()
    assert all(b"canary" not in path.read_bytes() for path in tmp_path.iterdir())


def test_a_disk_that_is_full_while_it_is_sealed_loses_nothing(
    opened: Open, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    responses = KeptResponses(file=opened())
    responses.keep("", answer("kept"))
    responses.close()
    before = (tmp_path / FILE_NAME).read_bytes()

    def full(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patch:
        patch.setattr(Sealed, "columns", full)
        assert opened(keys=KEYS).find("", "kept").result() == []
    assert (tmp_path / FILE_NAME).read_bytes() == before
    assert len(opened(keys=KEYS).find("", "kept").result()) == 1
