"""Where blocks start: at most 128 tokens, at line ends, the same however a text comes in."""

from __future__ import annotations

import itertools

import pytest
from episode_builder import as_lists, say, store
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import Kind
from atlas_kit.episodes.cut import BLOCK_TOKENS

TEXTS = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=20),
        st.sampled_from(
            ["one line.\n", "words and words ", "No. 3.5 is next. ", "猫が好き。", "x" * 70, "\n\n"]
        ),
    ),
    min_size=1,
    max_size=60,
)


def blocks(text: str) -> list[str]:
    episodes = store()
    say(episodes, text, Kind.DOCUMENT)
    starts = [*episodes.arrays().block_start.tolist(), len(episodes)]
    return [episodes.text(a, b) for a, b in itertools.pairwise(starts)]


@given(TEXTS, st.data())
def test_any_split_of_a_stream_gives_the_same_blocks(texts, data):
    whole, split = store(limit=4096), store(limit=4096)
    for number in range(0, len(texts), 20):
        tokens = "".join(texts[number : number + 20]).encode("utf-8", "replace")
        for episodes in (whole, split):
            episodes.begin(Kind.DOCUMENT if number % 40 else Kind.USER, "a.txt", number)
        whole.append(tokens)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(tokens)), max_size=8)))
        for start, stop in itertools.pairwise([0, *cuts, len(tokens)]):
            split.append(tokens[start:stop])
            if data.draw(st.booleans()):
                split.search("words", 2)
    assert as_lists(whole.arrays()) == as_lists(split.arrays())
    assert whole.search("words", 9) == split.search("words", 9)


@given(TEXTS)
def test_blocks_are_not_too_large_nor_too_small(texts):
    episodes = store()
    say(episodes, "".join(texts) * 9, Kind.DOCUMENT)
    starts = [*episodes.arrays().block_start.tolist(), len(episodes)]
    sizes = [b - a for a, b in itertools.pairwise(starts)]
    assert max(sizes) <= BLOCK_TOKENS
    assert min(sizes[:-1], default=BLOCK_TOKENS) > BLOCK_TOKENS // 2


def test_blocks_end_with_lines():
    found = blocks("A line of some words.\n" * 30)
    assert len(found) > 4
    assert all(text.endswith(".\n") and len(text) <= BLOCK_TOKENS for text in found)


def test_without_lines_they_end_with_sentences():
    found = blocks("There are 3.5 litres in it, says e.g.the label. " * 12)
    assert all(text.rstrip().endswith("label.") for text in found)


def test_without_sentences_they_end_with_words():
    found = blocks("seventy " * 60)
    assert {text.strip().replace("seventy", "").strip() for text in found} == {""}


@pytest.mark.parametrize("character", ["é", "猫", "🐈"])
def test_no_character_is_cut(character):
    found = blocks(character * 300)
    assert "".join(found) == character * 300


def test_the_blocks_of_what_is_no_text_end_all_the_same():
    episodes = store()
    episodes.begin(Kind.DOCUMENT)
    episodes.append(b"\x80" * 1000)
    assert episodes.blocks == 8
