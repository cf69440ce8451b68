"""Answers in channels: the same parts come out however they are cut, and grammars force a call."""

from __future__ import annotations

import pytest

from atlas_kit.llama.chat import ChatTemplate
from atlas_kit.llama.steps import Token
from atlas_kit.server.channels import ChannelParser, channel_rules
from atlas_kit.server.dialogue import Asked, dialogue
from server.scripted import ScriptedEngine

TEMPLATE = (
    "{% for m in messages %}<|start|>{{ m.role }}<|message|>{{ m.content }}<|end|>{% endfor %}"
    "{% if tools %}{{ tools | tojson }}{% endif %}<|start|>assistant{# <|channel|> #}"
)
NAMES = ["<|start|>", "<|message|>", "<|end|>", "<|channel|>", "<|constrain|>", "<|call|>", "<|return|>"]
THOUGHT = "<|channel|>analysis<|message|>Hm, so.<|end|><|start|>assistant"
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = '<|channel|>commentary to=functions.add <|constrain|>json<|message|>{"a": 1}'
USER = {"role": "user", "content": "Hi"}


def taken_apart(text, size, **options):
    parser = ChannelParser(**options)
    for at in range(0, len(text), size):
        parser.add([Token(1, text[at : at + size])])
    parser.finish("stop")
    answer = parser.answer
    calls = [(call.name, call.arguments) for call in answer.calls]
    return answer.reasoning, answer.content, calls, parser.finish_reason


@pytest.mark.parametrize("size", [1, 2, 5, 1000])
@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        (f"{THOUGHT}<|channel|>final<|message|>Yes. ", ("Hm, so.", "Yes. ", [], "stop")),
        (f"{THOUGHT}{CALL}", ("Hm, so.", "", [("add", '{"a": 1}')], "tool_calls")),
        (
            ' to=functions.add<|channel|>commentary json<|message|>{"a": 1}<|call|>',
            ("", "", [("add", '{"a": 1}')], "tool_calls"),
        ),
        (
            f"<|channel|>commentary<|message|>First this.<|end|><|start|>assistant{CALL}<|call|>",
            ("", "First this.", [("add", '{"a": 1}')], "tool_calls"),
        ),
        ("No channels here", ("", "No channels here", [], "stop")),
        ("<|channel|>analysis<|message|>Cut sho", ("Cut sho", "", [], "stop")),
        ("", ("", "", [], "stop")),
    ],
)
def test_channels_are_taken_apart(text, wanted, size):
    assert taken_apart(text, size) == wanted


def test_thoughts_may_stay_in_the_text():
    text = f"{THOUGHT}<|channel|>final<|message|>Yes."
    assert taken_apart(text, 3, split=False) == ("", "Hm, so.Yes.", [], "stop")


def test_a_dialogue_in_channels():
    engine = ScriptedEngine("", template=TEMPLATE, names=NAMES)
    found = dialogue(engine, ChatTemplate(engine), [USER], Asked(tools=[TOOL]))
    assert engine.shown(found.tokens).startswith("[<|start|>]user[<|message|>]Hi[<|end|>]")
    assert '"add"' in engine.shown(found.tokens)
    assert found.sampling == {}
    parser = found.parser()
    parser.add([Token(token, engine.piece(token).decode()) for token in engine.tokenize(CALL, special=True)])
    parser.finish("stop")
    assert [(call.name, call.arguments) for call in parser.answer.calls] == [("add", '{"a": 1}')]
    none = dialogue(engine, ChatTemplate(engine), [USER], Asked(tools=[TOOL], tool_choice="none"))
    assert "add" not in engine.shown(none.tokens)
    assert found.budget(engine, 5) is None


@pytest.mark.model
def test_a_grammar_allows_thoughts_and_then_what_is_asked_for(real):
    from atlas_kit.llama.sampling import Sampling

    engine = real()
    shape = {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}
    for schemas, form in (({"add": {"type": "object"}}, None), ({}, shape)):
        engine.sampler(Sampling(grammar=channel_rules(schemas, form))).close()
    made = ScriptedEngine("", template=TEMPLATE, names=NAMES)
    for asked in (
        Asked(tools=[TOOL], tool_choice="required"),
        Asked(tools=[TOOL], tool_choice={"type": "function", "function": {"name": "add"}}),
        Asked(tools=[TOOL], response_format={"type": "json_schema", "json_schema": {"schema": shape}}),
    ):
        found = dialogue(made, ChatTemplate(made), [USER], asked)
        engine.sampler(Sampling(**found.sampling)).close()
        assert ("functions.add" in found.sampling["grammar"]) is (asked.tools is not None)
        assert ("shape" in found.sampling["grammar"]) is (asked.response_format is not None)
