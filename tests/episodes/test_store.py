"""The store of episodes, on a vocabulary of bytes."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.episodes import EpisodeArrays, Episodes, Kind
from atlas_kit.errors import InvalidParamError

BYTES = 256


def piece(token: int) -> bytes:
    """Bytes are tokens; two more are control tokens."""
    return bytes([token]) if token < BYTES else b""


def store(limit: int = 100_000) -> Episodes:
    return Episodes(piece, BYTES + 2, limit=limit)


def say(episodes: Episodes, text: str, kind: Kind = Kind.USER, source: str = "", time_ms: int = 1000) -> None:
    episodes.begin(kind, source, time_ms)
    episodes.append(text.encode())


def test_what_was_read_is_found_with_its_place():
    episodes = store()
    say(
        episodes,
        "The lighthouse is red.\n" * 9 + "The harbour master is called Ines.\n",
        Kind.DOCUMENT,
        "a.txt",
    )
    say(episodes, "My cat is called Tom.", time_ms=2000)
    (found,) = episodes.search("Who is the harbour master?", 1)
    assert "Ines" in episodes.text(*found.segment[:2])
    assert found.segment[2:5] == (Kind.DOCUMENT, "a.txt", 1000)
    assert found.segment.line > 1
    (turn,) = episodes.search("What is the cat called?", 3, kinds={Kind.USER})
    assert episodes.text(turn.segment.start, turn.segment.stop) == "My cat is called Tom."


def test_what_is_saved_goes_on_as_it_was():
    episodes = store()
    say(episodes, "One line of it.\n" * 40, Kind.DOCUMENT, "a.txt")
    arrays = episodes.arrays()
    arrays.check(BYTES + 2)
    other = Episodes.from_arrays(arrays, piece, BYTES + 2)
    for each in (episodes, other):
        each.append(b"And more of it.\n" * 40)
    assert len(arrays) == 640
    assert other.episodes == episodes.episodes
    np.testing.assert_array_equal(other.arrays().block_start, episodes.arrays().block_start)
    assert episodes.arrays().extends(arrays)


def test_forgotten_text_is_in_no_array():
    episodes = store()
    say(episodes, "Nothing of note.\n" * 20, Kind.DOCUMENT, "a.txt")
    say(episodes, "My password is swordfish.")
    say(episodes, "What a nice day.", Kind.ASSISTANT)
    chosen = episodes.select(about="swordfish")
    assert [episodes.text(s.start, s.stop) for s in chosen] == ["My password is swordfish."]
    assert episodes.forget(about="swordfish") == 25
    arrays = episodes.arrays()
    arrays.check(BYTES + 2)
    assert b"swordfish" not in bytes(arrays.tokens.astype(np.uint8))
    assert episodes.search("password swordfish", 3) == []
    assert [e.kind for e in episodes.episodes] == [Kind.DOCUMENT, Kind.ASSISTANT]
    assert episodes.text(episodes.end - 16, episodes.end) == "What a nice day."


def test_documents_go_before_turns():
    episodes = store(limit=1024)
    say(episodes, "My name is Ada.")
    say(episodes, "A line of the book.\n" * 500, Kind.DOCUMENT, "book.txt")
    assert len(episodes) <= 1024
    assert episodes.dropped == 15 + 10_000 - len(episodes)
    assert episodes.episodes[0].start == 0
    assert episodes.search("What is my name?", 1)[0].segment.kind == Kind.USER
    episodes.arrays().check(BYTES + 2)
    assert episodes.segment(episodes.blocks - 1).line > 400


def test_arrays_of_nothing():
    EpisodeArrays.empty().check(1)
    assert Episodes.from_arrays(EpisodeArrays.empty(), piece, BYTES).search("anything", 3) == []


def test_tokens_outside_the_vocabulary_are_refused():
    with pytest.raises(InvalidParamError, match="from 0 to 257"):
        store().append([1, 258])
