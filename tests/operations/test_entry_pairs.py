"""The entries of two files by key: whatever their orders are, and however many may wait."""

from __future__ import annotations

import random

import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.operations import entry_pairs
from atlas_kit.operations.diff import diff_files
from atlas_kit.operations.entry_pairs import Pairs


def made(keys: list[str], **changed: str) -> MemoryFile:
    memory = MemoryFile(created=1)
    for key in keys:
        memory.set(key, changed.get(key, f"value of {key}"), timestamp=1)
    return memory


@pytest.mark.parametrize("waiting", [0, 1, 5, 1000])
@pytest.mark.parametrize("seed", range(6))
def test_every_key_once(waiting: int, seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(entry_pairs, "WAITING", waiting)
    rng = random.Random(seed)
    keys = [f"k{number}" for number in range(40)]
    first, second = rng.sample(keys, 30), rng.sample(keys, 30)
    if seed % 2:
        second = [key for key in first if key in second] + [key for key in second if key not in first]
    pairs = Pairs(made(first), made(second))
    found = {number: (a.key, b.key) for number, a, b in pairs}
    both = [(number, key) for number, key in enumerate(first) if key in second]
    assert dict(sorted(found.items())) == {number: (key, key) for number, key in both}
    assert sorted(pairs.removed) == sorted(key for key in first if key not in second)
    assert sorted(pairs.added) == sorted(key for key in second if key not in first)


@pytest.mark.parametrize("waiting", [0, 1000])
def test_changes_come_in_the_order_of_the_first_file(
    waiting: int, tmp_path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(entry_pairs, "WAITING", waiting)
    keys = [f"k{number}" for number in range(20)]
    made(keys).save(tmp_path / "a.atlas")
    made(keys[::-1], k3="x", k7="y", k19="z").save(tmp_path / "b.atlas")
    result = diff_files(tmp_path / "a.atlas", tmp_path / "b.atlas")
    assert [change.name for change in result.changes] == ["k3", "k7", "k19"]
    assert result.same == 17
