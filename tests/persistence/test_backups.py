"""Backups that are rotated: how many are kept, and under which names."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.persistence.backups import backup_names, list_backups, make_room, newest_good, prune

NOW = 1_700_000_000


def save(path: Path, number: int, count: int) -> None:
    """Save one version after the other, as a server does."""
    if count > 1:
        make_room(path)
    memory = MemoryFile()
    memory["number"] = str(number)
    memory.save(path, backup=count > 0)
    os.utime(path, (NOW + number, NOW + number))
    prune(path, count)


def number_in(path: str) -> int:
    return int(MemoryFile.load(path)["number"].text)


@pytest.mark.parametrize("count", [0, 1, 2, 3, 5])
def test_so_many_older_versions_are_kept(count: int, tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    for number in range(8):
        save(path, number, count)
    assert number_in(str(path)) == 7
    found = list_backups(path).backups
    assert [number_in(one.path) for one in found] == list(range(6, 6 - count, -1))
    assert len(os.listdir(tmp_path)) == 1 + count
    if count:
        Path(found[0].path).write_bytes(b"ATLA damaged")
        good = newest_good(list_backups(path))
        assert good is None if count == 1 else number_in(good[1].path) == 5


def test_versions_of_one_second_are_all_kept(tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    for number in range(4):
        save(path, number, 3)
        os.utime(path, (NOW, NOW))
    assert sorted(number_in(one.path) for one in list_backups(path).backups) == [0, 1, 2]


def test_nothing_but_backups_of_this_file_goes(tmp_path: Path) -> None:
    path = tmp_path / "m.atlas"
    for name in ("m_old.atlas.bak", "m2_1.atlas.bak", "m_1.gguf.bak", "m_5.atlas"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "m_1.atlas.bak").write_bytes(b"x")
    assert prune(path, 0) == ["m_1.atlas.bak"]
    assert len(os.listdir(tmp_path)) == 4


def test_where_there_is_no_backup_there_is_room(tmp_path: Path) -> None:
    make_room(tmp_path / "m.atlas")
    assert prune(tmp_path / "none" / "m.atlas", 3) == []


def test_the_backup_of_another_memory_is_its_own(tmp_path: Path) -> None:
    for name in ("talk.atlas", "talk_2.atlas", "talk_2.atlas.bak", "talk_3.atlas.bak"):
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "talk.atlas"
    assert backup_names(path) == ["talk_3.atlas.bak"]
    assert backup_names(tmp_path / "talk_2.atlas") == ["talk_2.atlas.bak"]
    assert prune(path, 0) == ["talk_3.atlas.bak"]
    assert (tmp_path / "talk_2.atlas.bak").exists()


def test_backups_lie_beside_what_a_link_leads_to(tmp_path: Path) -> None:
    folder = tmp_path / "there"
    folder.mkdir()
    for number in range(3):
        save(folder / "m.atlas", number, 2)
    link = tmp_path / "link.atlas"
    try:
        link.symlink_to(folder / "m.atlas")
    except OSError:
        pytest.skip("there are no links here")
    assert backup_names(link) == ["m.atlas.bak", f"m_{NOW}.atlas.bak"]
    assert [number_in(one.path) for one in list_backups(link).backups] == [1, 0]
