"""Which tokens of a request are whose."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import Kind
from atlas_kit.llama import FakeEngine
from atlas_kit.server.said import MOST_SAID, Said, Span, Turn, said_in

ENGINE = FakeEngine()


def texts(said: Said, whole: str) -> list[tuple[Kind, str]]:
    tokens = ENGINE.tokenize(whole)
    found = said.spans(ENGINE, tokens)
    return [
        (kind, b"".join(ENGINE.piece(t) for t in tokens[start:stop]).decode()) for kind, start, stop in found
    ]


def test_each_turn_is_found_in_what_the_template_made_of_it() -> None:
    said = said_in(
        [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": " My cat is grey. "},
            {"role": "assistant", "content": "Grey."},
            {"role": "tool", "content": "12"},
            {"role": "user", "content": "Which colour?"},
        ]
    )
    whole = "<system>Be brief.</><user>My cat is grey.</><assistant>Grey.</><tool>12</><user>Which colour?</>"
    assert texts(said, whole) == [
        (Kind.USER, "My cat is grey."),
        (Kind.ASSISTANT, "Grey."),
        (Kind.TOOL, "12"),
        (Kind.USER, "Which colour?"),
    ]
    assert said.asks


def test_of_a_text_whose_beginning_is_missing_the_end_is_found() -> None:
    said = said_in([{"role": "user", "content": "first"}, {"role": "user", "content": "second"}])
    assert texts(said, "t</><user>second</>") == [(Kind.USER, "second")]


def test_a_turn_that_a_template_wrote_otherwise_hides_those_before_it() -> None:
    said = Said((Turn(Kind.USER, "a"), Turn(Kind.TOOL, "not there"), Turn(Kind.USER, "b")))
    assert texts(said, "<a><b>") == [(Kind.USER, "b")]


def test_the_same_words_said_twice_are_two_turns() -> None:
    said = Said((Turn(Kind.USER, "yes"), Turn(Kind.ASSISTANT, "yes"), Turn(Kind.USER, "yes")))
    spans = said.spans(ENGINE, ENGINE.tokenize("<yes><yes><yes>"))
    assert spans == [Span(Kind.USER, 1, 4), Span(Kind.ASSISTANT, 6, 9), Span(Kind.USER, 11, 14)]


@pytest.mark.parametrize(
    ("source", "length", "kind"),
    [("", MOST_SAID, Kind.USER), ("", MOST_SAID + 1, Kind.DOCUMENT), ("book.txt", 3, Kind.DOCUMENT)],
)
def test_a_text_without_turns_is_talk_or_a_document(source: str, length: int, kind: Kind) -> None:
    assert Said(source=source).spans(ENGINE, [65] * length) == [Span(kind, 0, length)]
    assert not Said(source=source).asks


def test_nothing_is_found_in_nothing() -> None:
    assert Said().spans(ENGINE, []) == []
    assert Said((Turn(Kind.USER, "a"), Turn(Kind.USER, ""))).spans(ENGINE, []) == []


@given(st.lists(st.tuples(st.sampled_from([Kind.USER, Kind.ASSISTANT]), st.text(max_size=12)), max_size=6))
def test_spans_are_in_order_and_hold_what_was_said(turns: list[tuple[Kind, str]]) -> None:
    said = Said(tuple(Turn(kind, text) for kind, text in turns))
    whole = "".join(f"<{text}>" for _, text in turns)
    found = texts(said, whole)
    assert found == [(kind, text) for kind, text in turns if text]
