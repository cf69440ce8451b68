"""How much of a text is known: compared by its bytes, wherever tokens were cut otherwise."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.server.branches import Match, Spelling, match

#: Pieces that can be put together in several ways; 9 is a control token.
PIECES = {1: b"a", 2: b"b", 3: b"ab", 4: b"ba", 5: b"aba", 6: "ü".encode(), 7: b"\xc3", 8: b"\xbc", 9: b""}
SPELLED = Spelling(PIECES.__getitem__)


def text_of(tokens: Sequence[int]) -> bytes:
    return b"".join(map(SPELLED, tokens))


TOKENS = st.lists(st.sampled_from(sorted(PIECES)), max_size=12)


@given(TOKENS, TOKENS)
def test_what_matches_is_the_same_and_as_long_as_it_can_be(known: list[int], wanted: list[int]) -> None:
    found = match(known, wanted, SPELLED)
    assert text_of(known[: found.known]) == text_of(wanted[: found.wanted])
    longest = max(
        len(text_of(known[:one]))
        for one in range(len(known) + 1)
        for other in range(len(wanted) + 1)
        if text_of(known[:one]) == text_of(wanted[:other])
    )
    assert len(text_of(known[: found.known])) == longest


@given(TOKENS, TOKENS)
def test_a_text_that_goes_on_is_known_whole(known: list[int], more: list[int]) -> None:
    assert match(known, [*known, *more], SPELLED).wanted >= len(known)


@pytest.mark.parametrize(
    ("known", "wanted", "found"),
    [
        ([], [], Match(0, 0)),
        ([], [1], Match(0, 0)),
        ([3, 1], [5], Match(2, 1)),
        ([3, 1, 2], [5, 9], Match(2, 1)),
        ([7, 8], [6], Match(2, 1)),  # a character in halves
        ([7], [6], Match(0, 0)),
        ([9, 1], [9, 1], Match(2, 2)),
        ([9], [1], Match(0, 0)),
        ([1, 9], [1, 1], Match(1, 1)),
    ],
)
def test_examples(known: list[int], wanted: list[int], found: Match) -> None:
    assert match(known, wanted, SPELLED) == found


def test_a_control_token_is_no_text() -> None:
    assert SPELLED(9) == b"\xff9\xff"
    assert SPELLED(9) not in {SPELLED(token) for token in PIECES if token != 9}
