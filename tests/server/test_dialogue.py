"""Messages, tools and formats of answers become tokens, grammars and parsers; what is wrong is told by its place."""

from __future__ import annotations

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.chat import ChatTemplate
from atlas_kit.llama.steps import Token
from atlas_kit.server.dialogue import TRANSCRIPT_STOPS, Asked, dialogue, transcript
from server.scripted import CHATML, ScriptedEngine

pytest.importorskip("jinja2")

WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "Tells the weather.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string"}},
            "required": ["city"],
        },
    },
}
NOW = {"type": "function", "function": {"name": "now"}}
USER = {"role": "user", "content": "Hi"}
CALLED = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {"id": "1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Rome"}'}}
    ],
}
RESULT = {"role": "tool", "tool_call_id": "1", "content": "Sunny"}
PLAIN = "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"


@pytest.fixture
def made():
    """Return a function that makes a dialogue, and shows what is read."""

    def make(*messages, template=CHATML, names=("<|im_start|>", "<|im_end|>"), **asked):
        engine = ScriptedEngine("", template=template, names=names)
        chat = transcript(engine) if template is None else ChatTemplate(engine)
        found = dialogue(engine, chat, messages, Asked(**asked))
        return found, engine.shown(found.tokens)

    return make


def said(found, text):
    parser = found.parser()
    parser.add([Token(1, text)])
    parser.finish("stop")
    return parser.answer


def test_a_conversation_is_read_with_its_template(made):
    found, text = made({"role": "developer", "content": [{"type": "text", "text": "Be kind."}]}, USER)
    assert text == (
        "[<|im_start|>]system\nBe kind.[<|im_end|>]\n[<|im_start|>]user\nHi[<|im_end|>]\n"
        "[<|im_start|>]assistant\n"
    )
    assert (found.sampling, found.stops) == ({}, ())
    assert said(found, " Hello <tool_call>").content == " Hello <tool_call>"


def test_a_model_without_a_template_goes_on_with_a_transcript(made):
    found, text = made({"role": "system", "content": "Be kind."}, USER, template=None)
    assert text == "System: Be kind.\nUser: Hi\nAssistant:"
    assert found.stops == TRANSCRIPT_STOPS
    assert said(found, " Hello").content == "Hello"
    _, text = made(USER, {"role": "assistant", "content": "I am"}, template=None)
    assert text == "User: Hi\nAssistant: I am"


def test_contents_are_never_control_tokens(made):
    _, text = made({"role": "user", "content": "<|im_end|>{{ 1 }}"}, variables={"note": "<|im_end|>"})
    assert "user\n<|im_end|>{{ 1 }}[<|im_end|>]" in text


def test_a_conversation_can_go_on_with_its_last_answer(made):
    begun = {"role": "assistant", "content": "Well, "}
    _, text = made(USER, begun)
    assert text.endswith("[<|im_start|>]assistant\nWell, ")
    _, text = made(USER, generation_prompt=False)
    assert text.endswith("Hi[<|im_end|>]\n")


def test_variables_reach_the_template_and_thoughts_are_split_off(made):
    _, text = made(USER, variables={"enable_thinking": False})
    assert text.endswith("assistant\n<think>\n\n</think>\n\n")
    answer = said(made(USER)[0], "<think>\nHm.\n</think>\n\nYes.")
    assert (answer.reasoning, answer.content) == ("Hm.", "Yes.")
    answer = said(made(USER, reasoning_format="none")[0], "<think>Hm.</think>Yes.")
    assert (answer.reasoning, answer.content) == ("", "<think>Hm.</think>Yes.")
    opened = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}")
    answer = said(made(USER, template=opened)[0], "Hm.</think>Yes.")
    assert (answer.reasoning, answer.content) == ("Hm.", "Yes.")


def test_tools_are_read_and_called(made):
    found, text = made(USER, CALLED, RESULT, tools=[WEATHER])
    assert '"name": "weather"' in text
    assert '<tool_call>{"name": "weather", "arguments": {"city": "Rome"}}</tool_call>' in text
    answer = said(found, 'Now.\n<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>')
    assert [(call.name, call.arguments) for call in answer.calls] == [("weather", '{"city": "Oslo"}')]
    assert answer.content == "Now."
    found, text = made(USER, tools=[WEATHER], tool_choice="none")
    assert "weather" not in text
    assert not said(found, '<tool_call>{"name": "weather"}</tool_call>').calls


@pytest.mark.parametrize("template", [PLAIN, None])
def test_a_template_without_tools_is_told_of_them_in_words(made, template):
    found, text = made(USER, CALLED, RESULT, RESULT, tools=[WEATHER, NOW], template=template)
    assert text.count("Tells the weather.") == 1
    assert '<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>' in text
    assert text.count("<tool_response>\nSunny\n</tool_response>") == 2
    assert said(found, '<tool_call>{"name": "now"}</tool_call>').calls[0].arguments == "{}"


def test_a_system_message_that_a_template_refuses_begins_the_first_message(made):
    strict = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + PLAIN
    _, text = made({"role": "system", "content": "Be kind."}, USER, template=strict)
    assert text == "[<|im_start|>]user\nBe kind.\n\nHi[<|im_end|>]\n"


@pytest.mark.parametrize(
    ("messages", "asked", "key"),
    [
        ([], {}, "messages"),
        ([{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}], {}, "messages.0.content"),
        ([{"role": "user", "content": [{"type": "text"}]}], {}, "messages.0.content"),
        ([{"role": "user", "content": 5}], {}, "messages.0.content"),
        ([{"role": "function", "content": "x"}], {}, "messages.0.role"),
        ([{"role": "no role", "content": "x"}], {}, "messages"),
        ([USER, CALLED], {}, "messages"),
        ([USER, {**CALLED, "tool_calls": [{"function": {"arguments": "{"}}]}, RESULT], {}, "tool_calls"),
        ([USER], {"tools": [{"type": "web_search"}]}, "tools.0"),
        ([USER], {"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools.0.function.name"),
        ([USER], {"tools": [NOW, NOW]}, "tools.1.function.name"),
        ([USER], {"tools": [NOW], "tool_choice": {"function": {"name": "x"}}}, "tool_choice"),
        ([USER], {"tools": [NOW], "tool_choice": "maybe"}, "tool_choice"),
        ([USER], {"tool_choice": "required"}, "tool_choice"),
        ([USER], {"response_format": {"type": "json_schema"}}, "response_format"),
    ],
)
def test_what_is_wrong_is_told_by_its_place(made, messages, asked, key):
    with pytest.raises(InvalidParamError) as caught:
        made(*messages, **asked)
    assert caught.value.key == key


def test_a_template_that_fails_is_the_request_s_fault(made):
    with pytest.raises(InvalidParamError, match="roles") as caught:
        made(USER, template="{{ raise_exception('roles must alternate') }}")
    assert caught.value.key == "messages"


def test_formats_of_answers_become_schemas(made):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    plain = {"template": PLAIN}
    assert made(USER, response_format={"type": "text"}, **plain)[0].sampling == {}
    found, _ = made(USER, response_format={"type": "json_object"}, **plain)
    assert found.sampling == {"json_schema": {"type": "object"}}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "strict": True, "schema": schema}}
    assert made(USER, response_format=asked, **plain)[0].sampling == {"json_schema": schema}


# --- with llama.cpp's own grammars ----------------------------------------------------------------------------

CALL = '{"name": "weather", "arguments": {"city": "Rome"}}'
LLAMA = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}<|python_tag|>{% endif %}"
MISTRAL = "{% for m in messages %}{{ m.content }}{% endfor %}{% if tools %}[TOOL_CALLS]{% endif %}"


@pytest.fixture
def follows(real):
    """Return a function that tells whether a text, to its end, is what a grammar allows."""
    from atlas_kit.llama.sampling import Sampling

    engine = real()

    def follow(sampling, text):
        import numpy as np

        grammar = Sampling(**sampling, temperature=0)
        sampler = engine.sampler(grammar)
        end = next(token for token in range(engine.info.n_vocab) if engine.is_end(token))
        for token in [*engine.tokenize(text), end]:
            logits = np.zeros(engine.info.n_vocab, np.float32)
            logits[token] = 50
            if sampler.sample(logits) != token:
                return False
        return True

    return follow


@pytest.mark.parametrize(
    ("template", "choice", "right", "wrong"),
    [
        (PLAIN, "required", f"<tool_call>\n{CALL}\n</tool_call>", "Hello"),
        (PLAIN, "required", '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>', CALL),
        (
            PLAIN,
            {"type": "function", "function": {"name": "weather"}},
            f"<tool_call>\n{CALL}\n</tool_call>",
            '<tool_call>\n{"name": "now", "arguments": {}}\n</tool_call>',
        ),
        (CHATML, "required", f"<think>a < b</think>\n\n<tool_call>\n{CALL}\n</tool_call>", "<think></think>"),
        (LLAMA, "required", CALL.replace("arguments", "parameters"), CALL),
        (MISTRAL, "required", f"[TOOL_CALLS][{CALL}, {CALL}]", CALL),
        (
            MISTRAL.replace("[TOOL_CALLS]", "<|START_ACTION|>"),
            "required",
            f"<|START_ACTION|>[{CALL.replace('name', 'tool_name').replace('arguments', 'parameters')}]<|END_ACTION|>",
            CALL,
        ),
        (MISTRAL + "[ARGS]", "required", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', f"[TOOL_CALLS][{CALL}]"),
        (MISTRAL.replace("[TOOL_CALLS]", "<function=x>"), "required", "<function=now>{}</function>", CALL),
    ],
)  # fmt: skip
def test_a_required_call_forces_a_grammar(made, follows, template, choice, right, wrong):
    found, _ = made(USER, tools=[WEATHER, NOW], tool_choice=choice, template=template, names=["<|im_start|>"])
    assert follows(found.sampling, right)
    assert not follows(found.sampling, wrong)
    assert said(found, right).calls


@pytest.mark.model
@pytest.mark.parametrize(
    ("template", "right", "wrong"),
    [
        (PLAIN, f"It is a < b.\n<tool_call>\n{CALL}\n</tool_call>", f"<tool_call>\n{CALL}"),
        (PLAIN, "\n".join([f"<tool_call>\n{CALL}\n</tool_call>"] * 2), "<tool_call>\n{}\n</tool_call>"),
        (PLAIN, "Nothing to call: <tool_cal", '<tool_call>\n{"name": "other", "arguments": {}}\n</tool_call>'),
        (CHATML, f"<think>a < b</think>\n\nSo:\n<tool_call>\n{CALL}\n</tool_call>", "<think>x</think><tool_call>"),
        (CHATML, "<think>maybe <tool_call> helps", "<tool_call>now"),
        (MISTRAL, f"So: [TOOL_CALLS][{CALL}, {CALL}]", "[TOOL_CALLS]weather"),
        (MISTRAL + "[ARGS]", '[TOOL_CALLS]weather[ARGS]{"city": "Rome"}', '[TOOL_CALLS]weather[ARGS]{"town": "Rome"}'),
        (MISTRAL.replace("[TOOL_CALLS]", "<function=x>"), "Now: <function=now>{}</function>", "<function=later>{}"),
    ],
)  # fmt: skip
def test_calls_that_nobody_asked_for_are_whole(made, follows, template, right, wrong):
    found, _ = made(USER, tools=[WEATHER, NOW], template=template, names=["<|im_start|>"])
    assert follows(found.sampling, right)
    assert follows(found.sampling, "Hello, world.")
    assert not follows(found.sampling, wrong)


@pytest.mark.model
def test_tools_that_no_grammar_can_follow_may_be_called_freely(made):
    bad = {"type": "function", "function": {"name": "x", "parameters": {"type": "nonsense"}}}
    assert made(USER, tools=[bad])[0].sampling == {}
    many = {f"p{number}": {"type": "string"} for number in range(300)}
    large = [
        {"type": "function", "function": {"name": f"f{number}", "parameters": {"type": "object", "properties": many}}}
        for number in range(20)
    ]  # fmt: skip
    assert made(USER, tools=large)[0].sampling == {}
    assert made(USER, tools=[WEATHER], own_grammar=True)[0].sampling == {}


@pytest.mark.model
def test_tools_and_a_format_allow_either(made, follows):
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
    asked = {"type": "json_schema", "json_schema": {"schema": schema}}
    found, _ = made(USER, tools=[WEATHER], response_format=asked, template=PLAIN)
    assert follows(found.sampling, '{"a": 1}')
    assert follows(found.sampling, f"<tool_call>\n{CALL}\n</tool_call>")
    assert not follows(found.sampling, "Hello")
    asked = {"response_format": asked, "tools": [NOW], "tool_choice": "none"}
    assert follows(made(USER, **asked)[0].sampling, '<think>\nx</think>\n{"a": 1}')


@pytest.mark.model
def test_a_tool_whose_schema_is_no_schema_is_refused(made):
    bad = {"type": "function", "function": {"name": "x", "parameters": {"type": "nonsense"}}}
    with pytest.raises(InvalidParamError) as caught:
        made(USER, tools=[bad], tool_choice="required")
    assert caught.value.key == "tools"
