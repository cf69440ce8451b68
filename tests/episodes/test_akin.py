"""Words near in meaning: which stand in for one that is asked for, and what that does to a search."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.episodes.akin import Akin

#: Directions of some words: those of one family of meaning share one, more or less.
MEANINGS = {
    "insect": (1.0, 0.0, 0.0), "wasp": (0.9, 0.2, 0.0), "bird": (0.7, 0.7, 0.0), "stairs": (0.0, 0.0, 1.0),
    "steps": (0.0, 0.1, 0.9), "the": (0.5, 0.5, 0.5), "boats": (0.0, 1.0, 0.0), "insects": (1.0, 0.1, 0.0),
}  # fmt: skip


def vectors(words: Sequence[str]) -> np.ndarray:
    rows = np.array([MEANINGS.get(word, (0.0, 0.0, 0.0)) for word in words], np.float32).reshape(-1, 3)
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-9)


def test_what_is_near_counts_by_how_near_it_is() -> None:
    known = ["stairs", "wasp", "zzyzx", "bird", "insect"]
    (near,) = Akin(vectors).nearest(["insect"], known)
    weights = {known[number]: weight for number, weight in zip(near.numbers, near.weights, strict=True)}
    assert sorted(weights) == ["bird", "wasp"]  # neither itself nor what is nothing like it
    assert 0 < weights["bird"] < weights["wasp"] < 1


def test_nothing_stands_in_for_empty_words_and_for_unknown_ones() -> None:
    for near in Akin(vectors).nearest(["the", "zzyzx"], ["wasp", "bird"]):
        assert not len(near.numbers)
        assert not len(near.weights)


def test_nothing_is_known_yet() -> None:
    (near,) = Akin(vectors).nearest(["insect"], [])
    assert not len(near.numbers)


def test_words_that_come_later_are_looked_up_once() -> None:
    asked: list[str] = []

    def watched(words: Sequence[str]) -> np.ndarray:
        asked.extend(words)
        return vectors(words)

    akin, known = Akin(watched), ["wasp"]
    akin.nearest(["insect"], known)
    known += ["bird", "stairs"]
    (near,) = akin.nearest(["insect"], known)
    assert [known[number] for number in near.numbers] == ["wasp", "bird"]
    assert asked.count("wasp") == asked.count("bird") == 1


def store(*texts: str, with_vectors: bool = True) -> Episodes:
    found = Episodes(lambda token: bytes([token]), 256, vectors=vectors if with_vectors else None)
    for text in texts:
        found.begin(Kind.DOCUMENT, text.split()[0])
        found.append(text.encode())
    return found


TEXTS = ("One: the wasp is caught with beer.", "Two: the boats are dry.", "Three: many steps lead up there.")


def test_what_is_asked_in_other_words_is_found() -> None:
    question = "Which insect is meant?"
    alone = store(*TEXTS, with_vectors=False).search("insect stairs", 3)
    assert not alone
    assert [one.segment.source for one in store(*TEXTS).search(question, 1)] == ["One:"]
    assert [one.segment.source for one in store(*TEXTS).search("Which stairs?", 1)] == ["Three:"]


def test_the_word_itself_is_worth_more() -> None:
    found = store(*TEXTS, "Four: an insect is small.").search("insect", 4)
    assert [one.segment.source for one in found] == ["Four:", "One:"]
    assert found[0].score > found[1].score > 0


def test_words_of_one_family_are_not_counted_twice() -> None:
    texts = ("One: insects live here.", "Two: nothing of it.")
    score = store(*texts).search("insect", 1)[0].score
    assert score == pytest.approx(store(*texts, with_vectors=False).search("insect", 1)[0].score)


def test_near_says_what_stands_in() -> None:
    episodes = store(*TEXTS)
    assert set(episodes.near("insect")) == {"wasp"}  # birds are nowhere in it
    assert episodes.near("zzyzx") == {}
    assert store(*TEXTS, with_vectors=False).near("insect") == {}
    assert episodes.near("insect", kinds=[Kind.USER]) == {}


def test_only_what_is_searched_stands_in() -> None:
    episodes = store(*TEXTS)
    episodes.begin(Kind.USER)
    episodes.append(b"I saw a bird.")
    assert set(episodes.near("insect", kinds=[Kind.USER])) == {"bird"}
    assert episodes.search("insect", 1, kinds=[Kind.USER])[0].segment.kind == Kind.USER


def test_scores_are_the_same_for_any_split_and_after_loading() -> None:
    whole = store(*TEXTS)
    in_parts = Episodes(lambda token: bytes([token]), 256, vectors=vectors)
    for text in TEXTS:
        in_parts.begin(Kind.DOCUMENT, text.split()[0])
        in_parts.append(text[:7].encode())
        in_parts.search("stairs", 1)
        in_parts.append(text[7:].encode())
    loaded = Episodes.from_arrays(whole.arrays(), lambda token: bytes([token]), 256, vectors=vectors)
    expected = [(one.segment[:2], one.score) for one in whole.search("insect or stairs", 3)]
    for other in (in_parts, loaded):
        assert [(one.segment[:2], one.score) for one in other.search("insect or stairs", 3)] == expected
