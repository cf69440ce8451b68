"""What is left of episodes in a file that lost a part: whole episodes, in order, and nothing that is not so."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.persistence import episode_entries
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.episode_entries import put_episodes, read_episodes
from atlas_kit.persistence.episode_salvage import holds_episodes, salvaged_episodes
from atlas_kit.persistence.tables import PART_ARRAYS, is_part_key, part_key

#: Lengths of the episodes; parts have 256 tokens.
LENGTHS = (100, 300, 50, 400, 200, 90)


@pytest.fixture(autouse=True)
def small_parts(monkeypatch):
    monkeypatch.setattr(episode_entries, "PART_TOKENS", 256)


@pytest.fixture
def file():
    made = Episodes(lambda token: bytes([token]), 256)
    for number, length in enumerate(LENGTHS):
        made.begin(Kind(number % 2), f"{number}.txt" if number % 2 == 0 else "", number)
        made.append([64 + number] * length)
    memory = MemoryFile()
    put_episodes(memory, made.arrays())
    return memory


def runs(arrays):
    """Return (which episode, its tokens, its time) of each that is left."""
    bounds = [*arrays.episode_start.tolist(), len(arrays)]
    found = []
    for number, (a, b) in enumerate(itertools.pairwise(bounds)):
        assert len(set(arrays.tokens[a:b].tolist())) == 1
        found.append((int(arrays.tokens[a]) - 64, b - a, int(arrays.time_ms[number])))
    return found


def test_what_is_whole_is_left_alone(file):
    assert salvaged_episodes(file) is None
    assert salvaged_episodes(MemoryFile()) is None
    assert holds_episodes(file)
    assert not holds_episodes(MemoryFile())


@pytest.mark.parametrize(
    ("name", "lost"),
    [
        (row.name, part)
        for row in PART_ARRAYS
        for part in range(5)
        if row.name == "tokens" or (row.name != "block_start" and part != 2)  # no episode begins there
    ],
)
def test_a_part_that_is_lost_takes_its_episodes_with_it(name, lost, file):
    """Episodes begin in the parts 0, 0, 1, 1, 3 and 4 and end in 0, 1, 1, 3, 4 and 4."""
    whole = read_episodes(file)
    file.remove(part_key(lost, name))
    left = salvaged_episodes(file)
    left.check()
    assert left.end == whole.end
    ends = np.cumsum(LENGTHS)
    begins = ends - LENGTHS
    expected = []
    for number, (begin, end) in enumerate(zip(begins.tolist(), ends.tolist(), strict=True)):
        if begin // 256 == lost:
            continue  # it begins there
        kept = min(end, lost * 256) - begin if begin < lost * 256 else end - begin
        expected.append((number, kept, number))
    assert runs(left) == expected
    put_episodes(file, left)
    assert runs(read_episodes(file)) == expected
    assert salvaged_episodes(file) is None


def test_without_a_description_the_names_are_lost_and_no_token(file):
    whole = read_episodes(file)
    file.remove(EPISODES)
    assert holds_episodes(file)
    left = salvaged_episodes(file)
    assert np.array_equal(left.tokens, whole.tokens)
    assert (left.sources, left.end) == (("",), whole.end)


@pytest.mark.parametrize(
    "value", [b"{", b"[]", {"sources": 5, "end": "x"}, {"sources": ["a\x1b[2J"], "end": -1}]
)
def test_a_description_that_is_no_use(value, file):
    file.set(EPISODES, value, type=4)
    left = salvaged_episodes(file)
    left.check()
    assert len(left) == sum(LENGTHS)


def test_hostile_parts_are_left_out(file):
    file.set(part_key(1, "block_start"), np.asarray([5, 4, 3], np.uint32))
    file.set(part_key(4, "kind"), np.full(2, 77, np.uint8))
    left = salvaged_episodes(file)
    left.check()
    assert runs(left) == [(0, 100, 0), (1, 156, 1)] + [(4, 80, 4)] * 0 + runs(left)[2:]
    assert {number for number, _, _ in runs(left)} == {0, 1, 4}


def test_nothing_is_left_where_no_part_is_whole(file):
    for key in list(file):
        if is_part_key(key) and key.endswith(".tokens"):
            file.remove(key)
    left = salvaged_episodes(file)
    assert len(left) == 0
    put_episodes(file, left)
    assert not holds_episodes(file)
