"""Arrays from anywhere: what contradicts itself is refused with a sentence, what does not is harmless."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from episode_builder import BYTES, N_VOCAB, loaded, say, store
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import EpisodeArrays, Kind
from atlas_kit.episodes.arrays import DTYPES, source_name
from atlas_kit.errors import AtlasError, InvalidParamError


def good() -> EpisodeArrays:
    """Two documents and a turn of 300, 100 and 20 tokens."""
    episodes = store()
    for number, (size, kind, source) in enumerate([(300, 0, "a.txt"), (100, 0, "b.txt"), (20, 1, "")]):
        say(episodes, "word " * (size // 5), Kind(kind), source, number)
    return episodes.arrays()


def changed(name: str, at: int, value: int) -> EpisodeArrays:
    row = getattr(good(), name).copy()
    row[at] = value
    return dataclasses.replace(good(), **{name: row})


CASES = {
    "a token outside": (changed("tokens", 3, N_VOCAB), "token 258 is not one"),
    "the largest token": (changed("tokens", 3, 2**32 - 1), "is not one"),
    "a block behind the end": (changed("block_start", -1, 420), "starts at 420, behind the 420"),
    "a block far behind": (changed("block_start", -1, 2**32 - 1), "behind the 420"),
    "a block twice": (changed("block_start", 2, 0), "one behind another"),
    "descending blocks": (changed("block_start", 1, 299), "one behind another"),
    "no first block": (changed("block_start", 0, 1), "first block"),
    "an episode within a block": (changed("episode_start", 1, 301), "where a block starts"),
    "descending episodes": (changed("episode_start", 1, 400), "one behind another"),
    "a kind that is none": (changed("kind", 1, 77), "kind 77"),
    "a source that is none": (changed("source", 1, 3), "source 3"),
    "a time before time": (changed("time_ms", 1, -(2**63)), "1970 and 9999"),
    "a time after time": (changed("time_ms", 1, 2**63 - 1), "1970 and 9999"),
    "a position below zero": (changed("position", 0, -(2**63)), "outside"),
    "a position beyond": (changed("position", 2, 2**63 - 1), "outside"),
    "positions that overlap": (changed("position", 1, 299), "overlap"),
    "no line": (changed("line", 0, 0), "lines"),
    "a large block": (
        dataclasses.replace(good(), block_start=np.array([0, 300, 400], np.uint32)),
        "at most 128",
    ),
    "no blocks": (dataclasses.replace(good(), block_start=np.zeros(0, np.uint32)), "first block"),
    "no tokens": (dataclasses.replace(good(), tokens=np.zeros(0, np.uint32)), "first block"),
    "a short row": (dataclasses.replace(good(), kind=np.zeros(2, np.uint8)), "kind must have one"),
    "floats": (dataclasses.replace(good(), time_ms=np.full(3, np.nan)), "time_ms must be a row of int64"),
    "objects": (dataclasses.replace(good(), tokens=np.array([None])), "tokens must be a row"),
    "two dimensions": (dataclasses.replace(good(), tokens=np.zeros((2, 2), np.uint32)), "row"),
    "no array": (dataclasses.replace(good(), tokens=[1, 2]), "row"),
    "an end before the tokens": (dataclasses.replace(good(), end=419), "said to be number 419"),
    "an end below zero": (dataclasses.replace(good(), end=-1), "end must be"),
    "an end that is none": (dataclasses.replace(good(), end=None), "end must be"),
    "an end beyond": (dataclasses.replace(good(), end=2**70), "end must be"),
    "more dropped than gone": (dataclasses.replace(good(), dropped=1), "only 0 are gone"),
    "a name twice": (dataclasses.replace(good(), sources=("a", "b", "a")), "same name"),
    "a name that cannot be shown": (dataclasses.replace(good(), sources=("a\x1b[2J", "b", "")), "printable"),
    "half a character as a name": (dataclasses.replace(good(), sources=("\ud800", "b", "")), "printable"),
    "a long name": (dataclasses.replace(good(), sources=("a" * 1025, "b", "")), "1024"),
    "no name": (dataclasses.replace(good(), sources=(None, "b", "")), "printable"),
    "too many names": (dataclasses.replace(good(), sources=tuple("abcd")), "more than the 3 episodes"),
}


@pytest.mark.parametrize(("arrays", "sentence"), CASES.values(), ids=CASES.keys())
def test_what_contradicts_itself_is_refused(arrays, sentence):
    with pytest.raises(InvalidParamError, match=sentence):
        loaded(arrays)


def test_what_holds_is_taken():
    good().check()
    good().check(BYTES)
    assert len(loaded(good())) == 420


ROWS = st.one_of(
    st.lists(st.integers(0, 300), max_size=6),
    st.lists(st.sampled_from([0, 1, 2, 127, 128, 129, 255, 2**31, 2**32 - 1]), max_size=6),
)


@given(st.dictionaries(st.sampled_from(sorted(DTYPES)), ROWS), st.integers(-2, 10**6), st.integers(0, 5))
def test_random_arrays_are_refused_or_harmless(rows, end, dropped):
    arrays = dataclasses.replace(
        good(),
        **{name: np.array(row, np.int64).astype(DTYPES[name]) for name, row in rows.items()},
        end=end,
        dropped=dropped,
    )
    try:
        episodes = loaded(arrays)
    except AtlasError:
        return
    episodes.search("word", 5)
    episodes.append(b"more words")
    episodes.forget(about="more words")
    episodes.arrays().check(N_VOCAB)
    for block in range(episodes.blocks):
        episodes.segment(block)


@pytest.mark.slow
def test_a_million_tiny_blocks_are_harmless():
    n = 1_000_000
    starts = np.arange(n, dtype=np.uint32)
    arrays = EpisodeArrays(
        tokens=np.full(n, ord("x"), np.uint32),
        block_start=starts,
        episode_start=starts,
        kind=np.ones(n, np.uint8),
        source=np.zeros(n, np.uint32),
        time_ms=np.zeros(n, np.int64),
        position=starts.astype(np.int64),
        line=np.ones(n, np.uint32),
        sources=("",),
        end=n,
    )
    episodes = loaded(arrays, limit=n)
    assert [hit.segment.start for hit in episodes.search("x", 2)] == [n - 1, n - 2]
    episodes.append(b"y")
    assert len(episodes) < n


def test_a_name_is_kept_as_it_can_be_shown():
    assert source_name("a\nb") == "a\\x0ab"
    assert source_name("x" * 2000 + ".txt").endswith("x.txt")
    assert len(source_name("x" * 2000)) == 1024
