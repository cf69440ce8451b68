"""Positioned reads, atomic writes, backups and locks."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from atlas_kit.errors import AtlasError, FileAccessError, LockedError, NoSuchFileError, TruncatedError
from atlas_kit.storage import atomic
from atlas_kit.storage.given import open_source
from atlas_kit.storage.source import Source
from tests.waiting import LONG


def names(folder: Path) -> list[str]:
    return sorted(os.listdir(folder))


# --- Source ----------------------------------------------------------------------------------------------


@pytest.fixture(params=["file", "bytes", "pipe"])
def source(request: pytest.FixtureRequest, tmp_path: Path) -> Source:
    data = bytes(range(100))
    if request.param == "bytes":
        return open_source(data)
    path = tmp_path / "f"
    if request.param == "file":
        path.write_bytes(data)
        return open_source(path)
    os.mkfifo(path)
    writer = threading.Thread(target=path.write_bytes, args=(data,))
    writer.start()
    try:
        # a reader that comes first sees an empty pipe, so let the writer be there
        fd = os.open(path, os.O_RDONLY)
        try:
            return open_source(f"/dev/fd/{fd}")
        finally:
            os.close(fd)
    finally:
        writer.join()


def test_reads(source: Source) -> None:
    assert source.size == 100
    assert source.read(10, 5) == bytes(range(10, 15))
    assert source.read(100, 0) == b""
    assert source.read_upto(95, 50) == bytes(range(95, 100))
    assert source.read_upto(500, 50) == b""
    assert bytes(source.view(10, 5)) == bytes(range(10, 15))
    assert source.view(10, 5).readonly
    assert b"".join(source.chunks(1, 98, chunk=10)) == bytes(range(1, 99))


@pytest.mark.parametrize(("offset", "size"), [(0, 101), (99, 2), (100, 1), (10**18, 1), (5, 1 << 62)])
def test_beyond_the_end(source: Source, offset: int, size: int) -> None:
    with pytest.raises(TruncatedError) as caught:
        source.read(offset, size)
    assert caught.value.offset == offset
    assert caught.value.path == source.path
    with pytest.raises(TruncatedError):
        source.view(offset, size)


def test_a_view_outlives_its_source(tmp_path: Path) -> None:
    (tmp_path / "f").write_bytes(b"x" * 10_000)
    with open_source(tmp_path / "f") as source:
        view = source.view(0, 10_000)
    assert bytes(view) == b"x" * 10_000


def test_a_file_that_shrinks(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 10_000)
    source = open_source(path)
    os.truncate(path, 100)
    assert source.read(0, 100) == b"x" * 100
    for read in (source.read, source.view):
        with pytest.raises(TruncatedError, match="shorter"):
            read(50, 100)
    assert source.changed()


@pytest.mark.parametrize(
    ("make", "kind", "words"),
    [
        (lambda p: p / "absent", NoSuchFileError, "no such file"),
        (lambda p: p, FileAccessError, "directory"),
        (lambda p: p / "file" / "x", FileAccessError, "not a directory"),
        (lambda p: p / ("n" * 300), FileAccessError, "too long"),
        (lambda p: f"{p}/a\0b", FileAccessError, "valid path"),
        (lambda p: "/dev/zero", FileAccessError, "it is a device"),  # it has no end
    ],
)
def test_what_cannot_be_opened(tmp_path: Path, make, kind: type[AtlasError], words: str) -> None:  # type: ignore[no-untyped-def]
    (tmp_path / "file").touch()
    with pytest.raises(kind, match=words):
        open_source(make(tmp_path))


def test_a_loop_of_links(tmp_path: Path) -> None:
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(FileAccessError, match="loop"):
        open_source(tmp_path / "a")


@pytest.mark.parametrize("change", ["replaced", "written", "removed", "touched"])
def test_changed(tmp_path: Path, change: str) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"one")
    source = open_source(path)
    assert not source.changed()
    if change == "replaced":
        atomic.write_atomically(path, b"two")
    elif change == "written":
        path.write_bytes(b"two!")
    elif change == "removed":
        path.unlink()
    else:
        os.utime(path, ns=(1, 1))
    assert source.changed()


# --- atomic writes ---------------------------------------------------------------------------------------


def test_a_new_file(tmp_path: Path) -> None:
    path = tmp_path / "f"
    mask = os.umask(0o027)
    try:
        atomic.write_atomically(path, b"data")
    finally:
        os.umask(mask)
    assert path.read_bytes() == b"data"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert names(tmp_path) == ["f"]


def test_an_error_leaves_everything_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"old")

    def fail() -> None:
        with atomic.atomic_write(path, backup=True) as file:
            file.write(b"new")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert path.read_bytes() == b"old"
    assert names(tmp_path) == ["f"]


def test_permissions_and_links_are_kept(tmp_path: Path) -> None:
    path, link = tmp_path / "f", tmp_path / "link"
    path.write_bytes(b"old")
    path.chmod(0o604)
    link.symlink_to("f")
    atomic.write_atomically(link, b"new")
    assert link.is_symlink()
    assert path.read_bytes() == b"new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o604


def test_backup(tmp_path: Path) -> None:
    path = tmp_path / "f.atlas"
    for number in range(3):
        atomic.write_atomically(path, b"%d" % number, backup=True)
    assert path.read_bytes() == b"2"
    assert atomic.backup_name(path).read_bytes() == b"1"
    assert names(tmp_path) == ["f.atlas", "f.atlas.bak"]


def test_backup_without_hard_links(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "f"
    path.write_bytes(b"old")
    atomic.write_atomically(path, b"new", backup=True)
    assert (path.read_bytes(), (tmp_path / "f.bak").read_bytes()) == (b"new", b"old")


@pytest.mark.parametrize("where", ["missing/f", "file/f", "."])
def test_where_nothing_can_be_written(tmp_path: Path, where: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(FileAccessError, match="cannot write"):
        atomic.write_atomically(tmp_path / where, b"x")
    assert names(tmp_path) == ["file"]


def test_what_killed_writers_left_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "f"
    for name in (".f.abcd1_9x.tmp", ".f.123.bak.tmp", ".f.lock"):
        (tmp_path / name).touch()
    atomic.write_atomically(path, b"x")
    assert names(tmp_path) == ["f"]


def test_temporary_files_of_other_names_stay(tmp_path: Path) -> None:
    """ "f.bak" is another file with another lock, although its temporary files begin with ".f." as well."""
    with atomic.atomic_write(tmp_path / "f.bak") as file:
        file.write(b"bak")
        atomic.write_atomically(tmp_path / "f", b"f")
    assert (tmp_path / "f.bak").read_bytes() == b"bak"


# --- locks -----------------------------------------------------------------------------------------------


def test_lock_excludes_and_goes_away(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with atomic.lock(path):
        with pytest.raises(LockedError, match="another process"), atomic.lock(path, timeout=0.05):
            pass
        with pytest.raises(LockedError), atomic.lock(tmp_path / "." / "f", timeout=0):
            pass
    with atomic.lock(path, timeout=0):
        pass
    assert names(tmp_path) == []


def test_lock_goes_through_links(tmp_path: Path) -> None:
    (tmp_path / "f").touch()
    (tmp_path / "link").symlink_to("f")
    with atomic.lock(tmp_path / "f"), pytest.raises(LockedError), atomic.lock(tmp_path / "link", timeout=0):
        pass


def test_many_threads_one_lock(tmp_path: Path) -> None:
    """The lock file comes and goes; nobody may hold the lock of a file that is gone."""
    inside, worst, done = 0, 0, 0
    guard = threading.Lock()

    def work() -> None:
        nonlocal inside, worst, done
        for _ in range(20):
            with atomic.lock(tmp_path / "f", timeout=LONG):
                with guard:
                    inside += 1
                    worst = max(worst, inside)
                with guard:
                    inside -= 1
                    done += 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (worst, done) == (1, 80)
    assert names(tmp_path) == []
