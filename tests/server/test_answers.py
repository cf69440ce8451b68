"""Generated texts taken apart: however they are cut into tokens, the same parts come out."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.llama.steps import Token
from atlas_kit.server.answers import HERMES, AnswerParser, CallFormat, call_format, thought_tags

THINK = ("<think>", "</think>")
LLAMA = call_format(
    '{% if tools %}Respond with {"name": function name, "parameters": dictionary of argument name and its value}.'
    "{% endif %}"
)
COMMAND = call_format("{{ tools }}<|START_ACTION|>")
MISTRAL = call_format("{% if tools %}[AVAILABLE_TOOLS]{% endif %}[TOOL_CALLS]")
NAMED = call_format("{% if tools %}{% endif %}[TOOL_CALLS]name[ARGS]{}")
FUNCTIONARY = call_format("{% if tools %}<function=example>{}</function>{% endif %}")
TOOLS = {"add": {"properties": {"a": {"type": "integer"}, "note": {"type": "string"}}}, "now": {}}
CALL = '{"name": "add", "arguments": {"a": [1, {"b": "}\\"{"}]}}'


def taken_apart(text, size, reason="stop", **options):
    """Return the reasoning, the content, the calls and the end of a text that comes in pieces of ``size``."""
    parser = AnswerParser(tools=TOOLS, **options)
    parts = []
    for at in range(0, len(text), size):
        parts += parser.add([Token(1, text[at : at + size])])
    parts += parser.finish(reason)
    for number, call in enumerate(parser.answer.calls):
        assert sum(part.kind == "call" and part.index == number for part in parts) == 1
        pieces = [part.text for part in parts if part.kind == "arguments" and part.index == number]
        assert "".join(pieces) == call.arguments
    calls = [(call.name, call.arguments) for call in parser.answer.calls]
    said = "".join(part.text for part in parts if part.kind == "content")
    assert said == parser.answer.content
    return parser.answer.reasoning, said, calls, parser.finish_reason


@pytest.mark.parametrize("size", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize(
    ("text", "options", "wanted"),
    [
        (" Hello\n", {}, ("", " Hello\n", [], "stop")),
        (" Hello\n", {"strip": True}, ("", "Hello\n", [], "stop")),
        ("<think>a", {}, ("", "<think>a", [], "stop")),
        ("<think>\nA b\n</think>\n\nC d", {"thoughts": THINK}, ("A b", "C d", [], "stop")),
        ("A b\n</think>\n\nC d", {"thoughts": THINK, "thinking": True}, ("A b", "C d", [], "stop")),
        ("<th</think>", {"thoughts": THINK}, ("", "<th</think>", [], "stop")),
        ("<think>never <ends", {"thoughts": THINK}, ("never <ends", "", [], "stop")),
        (
            f"Let me see.\n<tool_call>\n{CALL}\n</tool_call>",
            {"calls": HERMES},
            ("", "Let me see.", [("add", '{"a": [1, {"b": "}\\"{"}]}')], "tool_calls"),
        ),
        (
            "<think>x</think>\n<tool_call>\n{\"name\": \"now\"}\n</tool_call>\n"
            "<tool_call>{\"arguments\": {\"a\": 1}, \"name\": \"add\"}</tool_call>\n",
            {"calls": HERMES, "thoughts": THINK},
            ("x", "", [("now", "{}"), ("add", '{"a": 1}')], "tool_calls"),
        ),
        ("<tool_call>\nno json</tool_call>", {"calls": HERMES}, ("", "no json</tool_call>", [], "stop")),
        ("a <tool b\n", {"calls": HERMES}, ("", "a <tool b\n", [], "stop")),
        (
            '<tool_call>{"name": "add", "arguments": "{\\"a\\": 2}"}</tool_call>',
            {"calls": HERMES},
            ("", "", [("add", '{"a": 2}')], "tool_calls"),
        ),
        (
            '{"type": "function", "name": "add", "parameters": {"a": 2}}',
            {"calls": LLAMA},
            ("", "", [("add", '{"a": 2}')], "tool_calls"),
        ),
        (
            '<|python_tag|>{"name": "add", "parameters": {"a": 2}}; {"name": "now", "parameters": {}}',
            {"calls": LLAMA},
            ("", "", [("add", '{"a": 2}'), ("now", "{}")], "tool_calls"),
        ),
        ('{"name": "Ada", "age": 3}', {"calls": LLAMA}, ("", '{"name": "Ada", "age": 3}', [], "stop")),
        ('{"x": 1} and so on', {"calls": LLAMA}, ("", '{"x": 1} and so on', [], "stop")),
        ("{", {"calls": LLAMA}, ("", "{", [], "stop")),
        (
            '[TOOL_CALLS][{"name": "add", "arguments": {"a": 2}, "id": "abcdefghi"}, {"name": "now"}]',
            {"calls": MISTRAL},
            ("", "", [("add", '{"a": 2}'), ("now", "{}")], "tool_calls"),
        ),
        (
            '[TOOL_CALLS]add[ARGS]{"a": 2}[TOOL_CALLS]now[ARGS]{}',
            {"calls": NAMED},
            ("", "", [("add", '{"a": 2}'), ("now", "{}")], "tool_calls"),
        ),
        (
            '<function=add>{"a": 2}</function>',
            {"calls": FUNCTIONARY},
            ("", "", [("add", '{"a": 2}')], "tool_calls"),
        ),
        (
            "<tool_call>\n<function=add>\n<parameter=a>\n2\n</parameter>\n<parameter=note>\n3\n</parameter>\n"
            "</function>\n</tool_call>",
            {"calls": HERMES},
            ("", "", [("add", '{"a": 2, "note": "3"}')], "tool_calls"),
        ),
        (
            "<tool_call>\n<function=now>\n</function>\n</tool_call>",
            {"calls": HERMES},
            ("", "", [("now", "{}")], "tool_calls"),
        ),
        (
            '<|START_ACTION|>[{"tool_call_id": "0", "tool_name": "add", "parameters": {"a": 2}}]<|END_ACTION|>',
            {"calls": COMMAND},
            ("", "", [("add", '{"a": 2}')], "tool_calls"),
        ),
        (
            '[TOOL_CALLS]{"a": 1} is no call',
            {"calls": MISTRAL},
            ("", '{"a": 1} is no call', [], "stop"),
        ),
    ],
)  # fmt: skip
def test_the_same_parts_come_out_however_a_text_is_cut(text, options, wanted, size):
    assert taken_apart(text, size, **options) == wanted


def test_a_call_that_is_cut_short_keeps_what_has_come():
    found = taken_apart('<tool_call>{"name": "add", "arguments": {"a": 1', 3, "length", calls=HERMES)
    assert found == ("", "", [("add", '{"a": 1')], "length")
    found = taken_apart('<tool_call>{"name": "ad', 3, "length", calls=HERMES)
    assert found == ("", '{"name": "ad', [], "length")


def test_the_name_comes_before_the_arguments_and_these_in_pieces():
    parser = AnswerParser(calls=HERMES, tools=TOOLS)
    kinds = []
    for char in '<tool_call>{"name": "add", "arguments": {"a": 12}}</tool_call>':
        kinds += [part.kind for part in parser.add([Token(1, char)])]
    assert kinds == ["call", *["arguments"] * len('{"a": 12}')]


def test_control_tokens_have_no_text_and_are_known_by_their_names():
    names = {7: "[TOOL_CALLS]", 8: "<|other|>"}
    parser = AnswerParser(calls=MISTRAL, tools=TOOLS, name_of=lambda token: names.get(token, ""))
    parser.add([Token(8, ""), Token(7, ""), Token(1, '[{"name": "now", "arguments": {}}]'), Token(-1, "")])
    parser.finish("stop")
    [call] = parser.answer.calls
    assert (call.name, call.arguments, len(call.id), parser.answer.content) == ("now", "{}", 9, "")


def test_forms_follow_from_templates():
    assert call_format("{{ messages }}") is None
    assert call_format("{{ tools }}") is None
    assert call_format("{{ tools }}<tool_call>") == HERMES
    assert call_format("{{ tools }}<tool_call><arg_key>") is None
    assert call_format("{{ tools }}<|tool_call|>").closes == "<|/tool_call|>"
    assert (LLAMA.bare, LLAMA.arguments, MISTRAL.short_ids, NAMED.named) == (
        True,
        "parameters",
        True,
        "[ARGS]",
    )
    assert thought_tags("a</think>b") == THINK
    assert thought_tags("a") is None
    assert CallFormat("x").new_id().startswith("call_")


def test_arguments_are_json_whatever_is_in_them():
    inner = {"text": 'a "b" {c} [d], \\ e\n', "list": [[], {}, [1.5, None, True]], "empty": {}}
    text = json.dumps({"name": "add", "arguments": inner})
    _, _, [(name, arguments)], _ = taken_apart(f"<tool_call>{text}</tool_call>", 1, calls=HERMES)
    assert (name, json.loads(arguments)) == ("add", inner)


PIECES = [
    "<tool_call>", "</tool_call>", "<think>", "</think>", "[TOOL_CALLS]", "[ARGS]", "<function=add>", "</function>",
    "<parameter=a>", "</parameter>", "<|python_tag|>", '{"name": "add"', '"arguments": {', '"parameters": {', '"a": 1',
    "}", "{", "[", "]", ",", ":", '"', "\\", " ", "\n", "x", "<", "now", "add",
]  # fmt: skip


@given(
    text=st.lists(st.sampled_from(PIECES), max_size=14).map("".join),
    form=st.sampled_from([None, HERMES, LLAMA, MISTRAL, NAMED, FUNCTIONARY]),
    thinks=st.booleans(),
    size=st.integers(1, 9),
)
def test_any_text_is_taken_apart_the_same_however_it_is_cut(text, form, thinks, size):
    options = {"calls": form, "thoughts": THINK if thinks else None}
    assert taken_apart(text, size, **options) == taken_apart(text, 1000, **options)
