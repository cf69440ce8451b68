"""Writing in parts with pauses: the same bytes, and none of the pauses where somebody waits."""

from __future__ import annotations

import mmap
import os
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from atlas_kit.formats.atlas import MemoryFile, checksums
from atlas_kit.storage import pace
from atlas_kit.storage.pace import Pace, gently


class Hurry(threading.Event):
    """An event that counts how often it was waited for, and is set after ``most`` of them."""

    def __init__(self, most: int = 1000) -> None:
        super().__init__()
        self.waits, self.most = 0, most

    def wait(self, timeout: float | None = None) -> bool:
        assert timeout == pace.PAUSE
        self.waits += 1
        if self.waits == self.most:
            self.set()
        return self.is_set()


def write(path: Path, hurry: Hurry | None = None, parts: int = 10) -> None:
    data = b"".join(bytes([number]) * pace.PART for number in range(parts))
    file = MemoryFile()
    file.set("large", data)
    if hurry is None:
        file.save(path)
    else:
        with gently(hurry):
            file.save(path)
    with MemoryFile.open(path) as read:
        assert read["large"].data == data


def test_there_is_a_pause_after_each_part(tmp_path: Path) -> None:
    hurry = Hurry()
    write(tmp_path / "a.atlas", hurry)
    assert hurry.waits == 10


def test_the_bytes_are_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("time.time", lambda: 1.7e9)
    write(tmp_path / "a.atlas", Hurry())
    write(tmp_path / "b.atlas")
    assert (tmp_path / "a.atlas").read_bytes() == (tmp_path / "b.atlas").read_bytes()


def test_who_waits_ends_the_pauses(tmp_path: Path) -> None:
    hurry = Hurry(most=3)
    write(tmp_path / "a.atlas", hurry)
    assert hurry.waits == 3


@pytest.mark.parametrize("durable", [True, False])
def test_nothing_happens_outside_of_the_block(tmp_path: Path, durable: bool) -> None:
    hurry = Hurry()
    with gently(hurry):
        pass
    with open(tmp_path / "a", "wb") as file:
        Pace(file, durable=durable).wrote(100 * pace.PART)
    assert hurry.waits == 0


def test_pages_of_what_is_removed_are_let_go_in_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda file, start, size, advice: asked.append((start, size)))
    path, hurry = tmp_path / "a", Hurry()
    path.write_bytes(bytes(2 * pace.LET_GO + 1))
    pace.let_go(path)
    assert not asked  # nobody is to be spared
    with gently(hurry):
        pace.let_go(path)
        assert asked == [(number * pace.LET_GO, pace.LET_GO) for number in range(3)]
        assert hurry.waits == 3
        os.link(path, tmp_path / "b")
        pace.let_go(path)  # it stays under another name
        pace.let_go(tmp_path)
        pace.let_go(tmp_path / "none")
        assert len(asked) == 3
        hurry.set()
        os.unlink(tmp_path / "b")
        pace.let_go(path)
        assert len(asked) == 3
    assert path.read_bytes() == bytes(2 * pace.LET_GO + 1)


def test_what_was_synced_in_parts_is_not_dropped_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[int] = []
    monkeypatch.setattr(
        "atlas_kit.formats.atlas.v2_writer.start_writeback", lambda file, start, size: begun.append(size)
    )
    write(tmp_path / "a.atlas", Hurry())
    assert not begun
    write(tmp_path / "b.atlas")
    assert begun == [10 * pace.PART]


def test_a_save_lets_go_of_the_backup_that_it_replaces(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    gone: list[str] = []
    for module in ("atomic", "backup_files"):
        monkeypatch.setattr(f"atlas_kit.storage.{module}.let_go", lambda path: gone.append(Path(path).name))
    write(tmp_path / "a.atlas", Hurry(), parts=1)
    file = MemoryFile()
    file.set("large", b"x")
    file.save(tmp_path / "a.atlas", backup=True)
    assert gone == ["a.atlas", "a.atlas.bak", "a.atlas"]


def test_another_thread_is_not_slowed(tmp_path: Path) -> None:
    hurry, other = Hurry(), threading.Thread(target=write, args=(tmp_path / "a.atlas",))
    with gently(hurry):
        other.start()
        other.join()
    assert hurry.waits == 0


def test_a_block_within_a_block(tmp_path: Path) -> None:
    outer, inner = Hurry(), Hurry()
    with gently(outer):
        write(tmp_path / "a.atlas", inner, parts=5)
        write_under_outer = MemoryFile()
        write_under_outer.set("large", bytes(6 * pace.PART))
        write_under_outer.save(tmp_path / "b.atlas")
    assert (inner.waits, outer.waits) == (5, 6)


@pytest.mark.parametrize("shape", [(pace.COPIED // 4 + 1,), (5, pace.COPIED // 8), (3, pace.COPIED // 4, 1)])
def test_a_large_array_is_copied_in_parts(shape: tuple[int, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    array = np.random.default_rng(1).normal(size=shape).astype(np.float32)

    class Watched(np.ndarray):
        """An array that sees how much of it is looked at in one go."""

        def __getitem__(self, index: Any) -> Any:
            part = super().__getitem__(index)
            assert part.nbytes <= pace.COPIED
            return part

    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=pauses.append))
    copy = pace.copied(array.view(Watched))
    assert copy.tobytes() == array.tobytes()
    assert not np.shares_memory(copy, array)
    assert pauses == [pace.COPY_PAUSE] * -(-array.nbytes // pace.COPIED)


@pytest.mark.parametrize(
    "array", [np.arange(8.0), np.zeros(0), np.float32(3)[()] * np.ones(()), np.eye(600).T[::2]]
)
def test_other_arrays_are_copied_at_once(array: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=lambda _: pytest.fail("it pauses")))
    copy = pace.copied(array)
    assert (copy == array).all()
    assert not np.shares_memory(copy, array)


def test_nothing_is_written_or_hashed_in_larger_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What takes one call is short beside a token, whether it holds Python's lock or only a processor."""
    sizes: list[int] = []
    new = checksums.xxh3_64

    def watched() -> Any:
        digest = new()

        class Digest:
            def update(self, data: bytes) -> None:
                sizes.append(len(data))
                digest.update(data)

            def intdigest(self) -> int:
                return digest.intdigest()

        return Digest()

    monkeypatch.setattr(checksums, "xxh3_64", watched)
    write(tmp_path / "a.atlas", Hurry())
    assert sum(sizes) >= 10 * pace.PART
    assert max(sizes) <= pace.PART


@pytest.mark.skipif(not hasattr(mmap, "MADV_DONTNEED"), reason="the system takes memory back as a whole")
def test_what_was_copied_is_given_back_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=lambda _: None))
    array = np.ones(5 * pace.COPIED // 8 + 3)
    copy, other, small = pace.copied(array), array[1:], pace.copied(array[:9])
    pauses: list[float] = []
    monkeypatch.setattr(pace, "time", SimpleNamespace(sleep=pauses.append))
    assert pace.give_back(copy) is copy
    assert pauses == [pace.COPY_PAUSE] * 6
    assert not copy.any()  # its pages are gone
    for one in (array, other, small, 7):
        pace.give_back(one)
    assert array.all()
    assert other.all()
    assert small.all()
    assert len(pauses) == 6
