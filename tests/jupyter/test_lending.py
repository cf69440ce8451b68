"""Explorers between requests: opened once, given up in time, never closed under a reader."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest

from atlas_kit.errors import NoSuchFileError
from atlas_kit.jupyter import lending
from atlas_kit.jupyter.lending import OpenExplorers


class Counted:
    """In place of an explorer: says when it is closed."""

    opened: list[Counted]

    def __init__(self, path: Path) -> None:
        if path.stat().st_size == 0:
            raise NoSuchFileError("it is empty")
        self.path, self.closed = path, False
        self.opened.append(self)

    def close(self) -> None:
        assert not self.closed
        self.closed = True


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[Counted]:
    """Return what was opened, in order."""
    monkeypatch.setattr(Counted, "opened", [], raising=False)
    monkeypatch.setattr(lending, "Explorer", Counted)
    return Counted.opened


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    """Return four files."""
    paths = [tmp_path / f"{name}.gguf" for name in "abcd"]
    for path in paths:
        path.write_bytes(b"GGUF")
    return paths


def ask(shelf: OpenExplorers, path: Path, view: str = "") -> None:
    with shelf.lend(path, view):
        pass


def test_a_file_is_opened_once(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers()
    for _ in range(3):
        ask(shelf, files[0])
    assert len(opened) == 1
    assert not opened[0].closed


def test_each_view_has_its_own(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers()
    for view in ("one", "two", "one"):
        ask(shelf, files[0], view)
    assert len(opened) == 2


def test_the_least_recently_used_is_closed(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers(limit=2)
    for path in (files[0], files[1], files[0], files[2]):
        ask(shelf, path)
    assert [one.path for one in opened if one.closed] == [files[1]]


@pytest.mark.parametrize("change", ["size", "time", "replaced"])
def test_a_changed_file_is_opened_again(opened: list[Counted], files: list[Path], change: str):
    shelf = OpenExplorers()
    ask(shelf, files[0])
    if change == "size":
        files[0].write_bytes(b"GGUF and more")
    elif change == "time":
        os.utime(files[0], ns=(1, 1))
    else:
        os.replace(files[1], files[0])
    ask(shelf, files[0])
    assert [one.closed for one in opened] == [True, False]


def test_nothing_is_closed_while_it_is_used(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers(limit=1)
    with shelf.lend(files[0]):
        ask(shelf, files[1])
        shelf.close()
        assert not opened[0].closed
    assert all(one.closed for one in opened)


def test_a_file_that_cannot_be_opened_is_tried_again(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers()
    files[0].write_bytes(b"")
    facts = files[0].stat()
    for _ in range(2):
        with pytest.raises(NoSuchFileError):
            ask(shelf, files[0])
    files[0].write_bytes(b"GGUF")
    os.utime(files[0], ns=(facts.st_atime_ns, facts.st_mtime_ns))
    ask(shelf, files[0])
    assert len(opened) == 1


def test_many_threads_share_one(opened: list[Counted], files: list[Path]):
    shelf = OpenExplorers(limit=2)
    start = threading.Barrier(8)

    def work(number: int) -> None:
        start.wait()
        for turn in range(50):
            with shelf.lend(files[(number + turn) % 4]) as explorer:
                assert not explorer.closed

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    shelf.close()
    assert all(one.closed for one in opened)
