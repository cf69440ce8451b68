"""Which tokens of a request are whose."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.episodes import Kind
from atlas_kit.llama import FakeEngine
from atlas_kit.llama.chat import ChatTemplate
from atlas_kit.server.said import MOST_SAID, Said, Span, said_in
from server.conftest import TEMPLATE
from server.scripted import CHATML, ScriptedEngine

pytest.importorskip("jinja2", reason="jinja2 is not installed")

ENGINE = FakeEngine()


def message(role: str, content: str) -> dict[str, str]:
    return {"role": role, "content": content}


def read(
    messages: list[dict[str, str]], source: str = TEMPLATE, **options: Any
) -> tuple[Any, list[int], Said]:
    """Return the engine, the tokens, and what is said in them."""
    engine = ScriptedEngine(template=source)
    template = ChatTemplate(engine, source)
    placed = template.placed(messages)
    return engine, placed.tokens, said_in(messages, placed, template.placed, **options)


def texts(messages: list[dict[str, str]], source: str = TEMPLATE, **options: Any) -> list[tuple[Kind, str]]:
    engine, tokens, said = read(messages, source, **options)
    return [
        (span.kind, b"".join(engine.piece(t) for t in tokens[span.start : span.stop]).decode())
        for span in said.spans(engine, tokens)
    ]


def test_each_turn_is_found_in_what_the_template_made_of_it() -> None:
    messages = [
        message("system", "Be brief."),
        message("user", " My cat is grey. "),
        message("assistant", "Grey."),
        message("tool", "12"),
        message("user", "Which colour?"),
    ]
    for source in (TEMPLATE, CHATML):
        assert texts(messages, source) == [
            (Kind.USER, "My cat is grey."),
            (Kind.ASSISTANT, "Grey."),
            (Kind.TOOL, "12"),
            (Kind.USER, "Which colour?"),
        ]
    assert read(messages)[2].asks


def test_a_turn_that_a_template_leaves_out_hides_no_other() -> None:
    source = TEMPLATE.replace(
        "<{{ m.role }}>{{ m.content }}</>", "{% if m.role != 'tool' %}<{{ m.content }}>{% endif %}"
    )
    messages = [message("user", "a"), message("tool", "not there"), message("user", "b")]
    assert texts(messages, source) == [(Kind.USER, "a"), (Kind.USER, "b")]


@pytest.mark.parametrize("question", ["user", "assistant", "<assistant>", "</>", "s", "system"])
def test_words_of_the_template_are_told_from_the_same_words_of_a_person(question: str) -> None:
    messages = [message("user", question), message("assistant", "user"), message("user", question)]
    for source in (TEMPLATE, CHATML):
        engine, tokens, said = read(messages, source)
        assert texts(messages, source) == [
            (Kind.USER, question), (Kind.ASSISTANT, "user"), (Kind.USER, question),
        ]  # fmt: skip
        behind = tokens[said.spans(engine, tokens)[-1].stop :]
        assert b"".join(engine.piece(t) for t in behind).decode() in ("</><assistant>", "\nassistant\n")


def test_a_space_that_a_tokenizer_puts_in_front_moves_nothing() -> None:
    class Spaced(ScriptedEngine):
        def tokenize(self, text: str, *, special: bool = False) -> list[int]:
            return super().tokenize(text if special else " " + text, special=special)

    engine = Spaced(template=TEMPLATE)
    template = ChatTemplate(engine)
    messages = [message("user", "one"), message("assistant", "two")]
    placed = template.placed([*messages, message("user", "one")])
    spans = said_in([*messages, message("user", "one")], placed, template.placed).spans(engine, placed.tokens)
    found = ["".join(engine.piece(t).decode() for t in placed.tokens[s.start : s.stop]) for s in spans]
    assert found == ["one", "two", "one"]


def test_the_last_turns_can_be_had_alone_behind_what_the_model_is_told() -> None:
    messages = [
        message("system", "Be brief."), message("user", "one"), message("system", "Be kind."),
        message("assistant", "two"), message("user", "three"),
    ]  # fmt: skip
    engine, _, said = read(messages)
    tokens, alone = said.alone(1)
    assert (
        b"".join(map(engine.piece, tokens))
        == b"<system>Be brief.</><system>Be kind.</><user>three</><assistant>"
    )
    assert [turn.text for turn in alone.turns] == ["three"]
    assert [turn.text for turn in said.alone(2)[1].turns] == ["two", "three"]


def test_thoughts_that_are_sent_back_are_not_said() -> None:
    thoughts = ("<think>", "</think>")
    messages = [
        message("assistant", "<think>Hm.</think>\nYes."), message("assistant", "<think>Cut off"),
        message("user", "a</think>b"),
    ]  # fmt: skip
    assert texts(messages, thoughts=thoughts) == [(Kind.ASSISTANT, "Yes."), (Kind.USER, "a</think>b")]


@pytest.mark.parametrize(
    ("source", "length", "kind"),
    [("", MOST_SAID, Kind.USER), ("", MOST_SAID + 1, Kind.DOCUMENT), ("book.txt", 3, Kind.DOCUMENT)],
)
def test_a_text_without_turns_is_talk_or_a_document(source: str, length: int, kind: Kind) -> None:
    assert Said(source=source).spans(ENGINE, [65] * length) == [Span(kind, 0, length)]
    assert not Said(source=source).asks


def test_nothing_is_found_in_nothing() -> None:
    assert Said().spans(ENGINE, []) == []
    assert texts([message("user", ""), message("user", " ")]) == []


@given(
    st.lists(st.tuples(st.sampled_from(["user", "assistant"]), st.text(max_size=12)), min_size=1, max_size=6),
    st.sampled_from([TEMPLATE, CHATML]),
)
def test_spans_are_in_order_and_hold_what_was_said(turns: list[tuple[str, str]], source: str) -> None:
    messages = [message(role, text) for role, text in turns] + [message("user", "last")]
    kinds = {"user": Kind.USER, "assistant": Kind.ASSISTANT}
    expected = [(kinds[role], text.strip()) for role, text in turns if text.strip()]
    assert texts(messages, source) == [*expected, (Kind.USER, "last")]
