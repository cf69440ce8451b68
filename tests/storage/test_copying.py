"""Copies of files with holes: the same bytes, and no more room than before."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from atlas_kit.storage.copying import copy_data, copy_file, data_ranges

SIZE = 64 << 20
PAGE = 4096


def sparse(path: Path, size: int = SIZE) -> bytes:
    """Write a file with data at its start and in its middle, and return those pieces."""
    start, middle = os.urandom(PAGE), os.urandom(3 * PAGE + 5)
    with open(path, "wb") as file:
        file.write(start)
        file.seek(size // 2)
        file.write(middle)
        file.truncate(size)
    if os.stat(path).st_blocks * 512 > size // 2:
        pytest.skip("the file system has no holes")
    return start + middle


def room(path: Path) -> int:
    return os.stat(path).st_blocks * 512


@pytest.fixture(params=["kernel", "other device", "no call", "half"])
def way(request, monkeypatch):
    """Copy with the kernel's help, and without in each way that it may be refused."""
    calls = []

    def half(old: int, new: int, size: int, at: int, to: int) -> int:
        calls.append(size)
        if len(calls) > 1:
            raise OSError(errno.EOPNOTSUPP, "no")
        return os.pwrite(new, os.pread(old, 1001, at), to)

    def refused(*_: object) -> int:
        raise OSError(errno.EXDEV, "another device")

    if request.param == "no call":
        monkeypatch.delattr(os, "copy_file_range", raising=False)
    elif request.param != "kernel":
        monkeypatch.setattr(
            os, "copy_file_range", half if request.param == "half" else refused, raising=False
        )
    return request.param


def test_a_copy_has_the_same_bytes_and_the_same_holes(tmp_path, way):
    old, new = tmp_path / "old", tmp_path / "new"
    sparse(old)
    with open(old, "rb") as a, open(new, "wb") as b:
        copy_file(a.fileno(), b.fileno())
    assert new.read_bytes() == old.read_bytes()
    assert room(new) <= room(old) + 16 * PAGE


def test_a_range_is_put_behind_what_is_there(tmp_path, way):
    old, new = tmp_path / "old", tmp_path / "new"
    sparse(old)
    done: list[int] = []
    with open(old, "rb") as a, open(new, "w+b") as b:
        b.write(b"head")
        b.flush()
        assert copy_data(a.fileno(), b.fileno(), SIZE - 77, start=77, to=4, progress=done.append)
    assert new.read_bytes() == b"head" + old.read_bytes()[77:]
    assert done == sorted(done)
    assert done[-1] <= SIZE - 77
    assert room(new) < SIZE // 2


@pytest.mark.parametrize("data", [b"", b"x", bytes(10 * PAGE), os.urandom(3 * PAGE + 1)])
def test_small_and_plain_files(tmp_path, way, data):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(data)
    with open(old, "rb") as a, open(new, "wb") as b:
        copy_file(a.fileno(), b.fileno())
    assert new.read_bytes() == data


def test_a_file_that_ends_too_soon(tmp_path, way):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_bytes(b"short")
    with open(old, "rb") as a, open(new, "wb") as b:
        assert not copy_data(a.fileno(), b.fileno(), 100)
    assert new.read_bytes() == b"short"


def test_a_file_system_that_knows_no_holes(tmp_path, monkeypatch):
    path = tmp_path / "old"
    path.write_bytes(bytes(PAGE))
    with open(path, "rb") as file:
        assert [*data_ranges(file.fileno(), 0, PAGE)] == [(0, PAGE)]
        monkeypatch.delattr(os, "SEEK_DATA", raising=False)
        assert [*data_ranges(file.fileno(), 5, 100)] == [(5, 100)]
        assert [*data_ranges(file.fileno(), 5, 5)] == []


def test_a_full_disk_is_an_error(tmp_path, monkeypatch):
    old = tmp_path / "old"
    old.write_bytes(os.urandom(PAGE))

    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "full")

    monkeypatch.setattr(os, "copy_file_range", full, raising=False)
    with open(old, "rb") as a, open(tmp_path / "new", "wb") as b, pytest.raises(OSError, match="full"):
        copy_file(a.fileno(), b.fileno())
