"""Anthropic's Messages API: shapes, events, tools, thoughts, usage, and its own client against a real listener."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from atlas_kit.server.answers import Part
from atlas_kit.server.anthropic_shape import Blocks, chat_messages, stop_of
from atlas_kit.server.problems import ApiError
from atlas_kit.server.streams import kept_awake
from atlas_kit.server.volatile import steady
from server.conftest import TEMPLATE, Insider, Server, busy
from server.scripted import ObligingEngine, ScriptedEngine

TOOL = {
    "name": "weather",
    "description": "Tells the weather.",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "required": ["city"],
    },
}
ASK = [{"role": "user", "content": "Hi"}]
CALL = 'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)


def shape(events: list[Any]) -> list[str]:
    """Return the kinds of events, deltas of the same kind once, without pings."""
    found: list[str] = []
    for one in events:
        kind = one["delta"]["type"] if one["type"] == "content_block_delta" else one["type"]
        if kind != "ping" and (not found or found[-1] != kind):
            found.append(kind)
    return found


# --- the shape of an answer ---------------------------------------------------------------------------------


def test_an_answer_has_every_key(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    found = server.post("/v1/messages", model="any", max_tokens=20, messages=ASK, system="Be kind.")
    assert found["id"].startswith("msg_")
    assert (found["type"], found["role"], found["model"]) == ("message", "assistant", "fake.gguf")
    assert found["content"] == [{"type": "text", "text": "Hello"}]
    assert (found["stop_reason"], found["stop_sequence"]) == ("end_turn", None)
    usage = found["usage"]
    assert usage["input_tokens"] > 10
    assert usage["output_tokens"] == 5
    assert (usage["cache_read_input_tokens"], usage["cache_creation_input_tokens"]) == (0, 0)
    assert found["atlas"]["enabled"] is False


def test_why_an_answer_ended(serve: Server) -> None:
    server = serve(ScriptedEngine("one two three"))
    cut = server.post("/v1/messages", max_tokens=3, messages=ASK)
    assert (cut["stop_reason"], cut["content"][0]["text"]) == ("max_tokens", "one")
    stopped = server.post("/v1/messages", max_tokens=30, messages=ASK, stop_sequences=["three", "two"])
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "two")
    assert stopped["content"][0]["text"] == "one "
    assert stop_of("stop", "\nUser:", ["x"]) == ("end_turn", None)


def test_an_answer_of_nothing_is_an_empty_text(serve: Server) -> None:
    server = serve(ScriptedEngine(""))
    assert server.post("/v1/messages", max_tokens=3, messages=ASK)["content"] == [
        {"type": "text", "text": ""}
    ]
    events = server.events("/v1/messages", max_tokens=3, messages=ASK)
    assert shape(events)[:3] == ["message_start", "content_block_start", "content_block_stop"]


def test_events_come_in_order_and_say_what_the_whole_says(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello there"))
    body = {"max_tokens": 20, "messages": ASK}
    events = server.events("/v1/messages", **body)
    assert shape(events) == [
        "message_start", "content_block_start", "text_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    assert events[1] == {"type": "ping"}
    start = events[0]["message"]
    assert (start["content"], start["stop_reason"], start["usage"]["output_tokens"]) == ([], None, 0)
    assert start["usage"]["input_tokens"] > 0
    text = "".join(one["delta"]["text"] for one in events if one["type"] == "content_block_delta")
    assert text == "Hello there"
    last = events[-2]
    assert last["delta"] == {"stop_reason": "end_turn", "stop_sequence": None}
    assert last["usage"]["output_tokens"] == 11
    assert events[-1]["atlas"]["enabled"] is False


def test_events_have_names(serve: Server) -> None:
    server = serve(ScriptedEngine("Hi"))
    body = {"max_tokens": 5, "messages": ASK, "stream": True}
    with server.client.stream("POST", "/v1/messages", json=body) as answer:
        lines = [line for line in answer.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert names == [json.loads(line.removeprefix("data: "))["type"] for line in lines[1::2]]


def test_what_was_read_is_not_read_again(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    body: dict[str, Any] = {"max_tokens": 20, "system": "Be kind." * 9}
    first = server.post("/v1/messages", messages=ASK, **body)["usage"]
    then = [*ASK, {"role": "assistant", "content": "Hello"}, {"role": "user", "content": "More"}]
    second = server.post("/v1/messages", messages=then, **body)["usage"]
    assert second["cache_read_input_tokens"] >= first["input_tokens"] + 5
    assert second["input_tokens"] < 60
    whole = second["cache_read_input_tokens"] + second["input_tokens"]
    assert server.post("/v1/messages/count_tokens", messages=then, system=body["system"]) == {
        "input_tokens": whole
    }
    start = server.events("/v1/messages", messages=then, **body)[0]["message"]["usage"]
    assert start["cache_read_input_tokens"] == whole


# --- tools and thoughts -------------------------------------------------------------------------------------


def test_a_call_of_a_tool(serve: Server) -> None:
    engine = ScriptedEngine(CALL)
    server = serve(engine)
    body = {"max_tokens": 200, "messages": ASK, "tools": [TOOL]}
    found = server.post("/v1/messages", **body)
    assert found["stop_reason"] == "tool_use"
    text, use = found["content"]
    assert text == {"type": "text", "text": "Let me see."}
    assert (use["type"], use["name"], use["input"]) == ("tool_use", "weather", {"city": "Rome"})
    events = server.events("/v1/messages", **body)
    assert shape(events) == [
        "message_start", "content_block_start", "text_delta", "content_block_stop",
        "content_block_start", "input_json_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip
    starts = [one for one in events if one["type"] == "content_block_start"]
    assert [one["index"] for one in starts] == [0, 1]
    assert starts[1]["content_block"]["input"] == {}
    pieces = [one["delta"].get("partial_json", "") for one in events if one["type"] == "content_block_delta"]
    assert json.loads("".join(pieces)) == {"city": "Rome"}


@pytest.mark.parametrize(
    ("choice", "forced"),
    [({"type": "any"}, True), ({"type": "tool", "name": "weather"}, True), ({"type": "auto"}, False)],
)
def test_a_choice_of_tools_forces_a_call(serve: Server, choice: Any, forced: bool) -> None:
    engine = ScriptedEngine(CALL)
    serve(engine).post("/v1/messages", max_tokens=9, messages=ASK, tools=[TOOL], tool_choice=choice)
    grammar = engine.samplings[0].grammar or "said"
    assert ("said" not in grammar.splitlines()[0]) is forced  # else anything may be said
    assert "weather" in grammar


def test_results_of_tools_stand_right_behind_their_calls() -> None:
    found = chat_messages(
        "Be kind.",
        [
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
            {
                "role": "assistant",
                "content": [
                    {"type": "thinking", "thinking": "Hm.", "signature": ""},
                    {"type": "redacted_thinking", "data": "x"},
                    {"type": "text", "text": "Let me see."},
                    {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Köln"}},
                ],
            },
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "Here:"},
                    {"type": "tool_result", "tool_use_id": "t1", "content": "Sunny"},
                    {
                        "type": "tool_result",
                        "tool_use_id": "t2",
                        "is_error": True,
                        "content": [{"type": "text", "text": "No such city"}],
                    },
                ],
            },
        ],
    )
    call = {"name": "weather", "arguments": '{"city": "Köln"}'}
    assert found == [
        {"role": "system", "content": "Be kind."},
        {"role": "user", "content": "a\nb"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [{"id": "t1", "type": "function", "function": call}],
        },
        {"role": "tool", "tool_call_id": "t1", "content": "Sunny"},
        {"role": "tool", "tool_call_id": "t2", "content": "Error: No such city"},
        {"role": "user", "content": "Here:"},
    ]


def test_a_conversation_with_results_goes_on(serve: Server) -> None:
    engine = ScriptedEngine("It is sunny.")
    server = serve(engine)
    use = {"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}
    result = {"type": "tool_result", "tool_use_id": "t1", "content": "Sunny"}
    sent = [*ASK, {"role": "assistant", "content": [use]}, {"role": "user", "content": [result]}]
    found = server.post("/v1/messages", max_tokens=50, messages=sent, tools=[TOOL])
    assert found["content"] == [{"type": "text", "text": "It is sunny."}]


def test_thoughts_are_blocks_of_their_own(serve: Server) -> None:
    server = serve(ScriptedEngine("<think>Hm.</think>Hello", template=THINKING, names=()))
    body = {"max_tokens": 99, "messages": ASK, "thinking": {"type": "enabled", "budget_tokens": 1024}}
    found = server.post("/v1/messages", **body)
    assert found["content"] == [
        {"type": "thinking", "thinking": "Hm.", "signature": ""},
        {"type": "text", "text": "Hello"},
    ]
    assert 0 < found["usage"]["output_tokens_details"]["thinking_tokens"] < found["usage"]["output_tokens"]
    assert shape(server.events("/v1/messages", **body)) == [
        "message_start", "content_block_start", "thinking_delta", "signature_delta", "content_block_stop",
        "content_block_start", "text_delta", "content_block_stop", "message_delta", "message_stop",
    ]  # fmt: skip


def test_thoughts_end_in_time(serve: Server) -> None:
    server = serve(ScriptedEngine("<think>" + "a" * 50 + "</think>Yes.", template=THINKING))
    body: dict[str, Any] = {
        "max_tokens": 99,
        "messages": ASK,
        "thinking": {"type": "enabled", "budget_tokens": 10},
    }
    thought, said = server.post("/v1/messages", **body)["content"]
    assert thought["thinking"] == "a" * 10
    assert said["text"] == "a" * 40 + "</think>Yes."
    body["thinking"]["budget_tokens"] = "many"
    refused = server.client.post("/v1/messages", json=body)
    assert (refused.status_code, refused.json()["error"]["type"]) == (400, "invalid_request_error")


def test_thoughts_of_before_are_read(serve: Server) -> None:
    server = serve(ScriptedEngine("x", template=THINKING, names=()))
    said: dict[str, Any] = {"role": "assistant", "content": [{"type": "text", "text": "Hello"}]}
    with_thoughts = {
        "role": "assistant",
        "content": [{"type": "thinking", "thinking": "A long thought."}, *said["content"]],
    }
    more = {"role": "user", "content": "More"}
    counts = [
        server.post("/v1/messages/count_tokens", messages=[*ASK, one, more])["input_tokens"]
        for one in (said, with_thoughts)
    ]
    assert counts[1] > counts[0]


def test_thinking_can_be_switched_off(serve: Server) -> None:
    server = serve(ScriptedEngine("x", template=THINKING, names=()))
    counts = [
        server.post("/v1/messages/count_tokens", messages=ASK, **more)["input_tokens"]
        for more in ({}, {"thinking": {"type": "disabled"}}, {"thinking": {"type": "adaptive"}})
    ]
    assert counts[1] > counts[0] == counts[2]


def test_a_schema_for_the_answer(serve: Server) -> None:
    engine = ScriptedEngine("{}", template=TEMPLATE)
    schema = {"type": "object"}
    form = {"format": {"type": "json_schema", "schema": schema}}
    serve(engine).post("/v1/messages", max_tokens=9, messages=ASK, output_config=form)
    assert engine.samplings[0].json_schema == schema


def test_an_answer_that_has_begun_goes_on(serve: Server) -> None:
    server = serve(ScriptedEngine(" there"))
    begun = [*ASK, {"role": "assistant", "content": "Hello"}]
    assert server.post("/v1/messages", max_tokens=9, messages=begun)["content"][0]["text"] == " there"


def test_settings_reach_the_sampler(serve: Server) -> None:
    engine = ScriptedEngine("x")
    settings = {"temperature": 0.5, "top_p": 0.5, "top_k": 7, "seed": 3}
    serve(engine).post("/v1/messages", max_tokens=9, messages=ASK, **settings)
    found = engine.samplings[0]
    assert {name: getattr(found, name) for name in settings} == settings


# --- the memory -----------------------------------------------------------------------------------------------


def test_a_session_remembers(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello", template=TEMPLATE, names=()))
    body = {"max_tokens": 20, "messages": ASK, "atlas": {"session_id": "anna"}}
    found = server.post("/v1/messages", **body)["atlas"]
    assert (found["enabled"], found["session_id"]) == (True, "anna")
    assert server.events("/v1/messages", **body)[-1]["atlas"]["session_id"] == "anna"


def test_metadata_chooses_no_memory(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    server.post("/v1/messages", max_tokens=20, messages=ASK, metadata={"user_id": "anna"})
    assert not server.service.conversations.named


# --- what changes each time -----------------------------------------------------------------------------------

STAMP = "x-anthropic-billing-header: cc_version=2.1.101.{}; cc_entrypoint=cli; cch={};"


def test_a_stamp_leaves_the_prefix_known(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))

    def usage(stamp: str, time: str) -> Any:
        system = [
            {"type": "text", "text": stamp},
            {"type": "text", "text": f"You are an assistant.\nCurrent time: 2026-11-29 {time}\nBe kind."},
        ]
        return server.post("/v1/messages", max_tokens=9, messages=ASK, system=system)["usage"]

    usage(STAMP.format("e51", "a5145"), "21:12:16")
    assert usage(STAMP.format("f52", "00b7e"), "21:12:59")["input_tokens"] == 0


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (STAMP.format("e51", "a5145") + "\nYou are", "You are"),
        (STAMP.format("e51", "a5145") + "You are", "You are"),
        ("Say x-anthropic-billing-header: cch=1; often", "Say x-anthropic-billing-header: cch=1; often"),
        ("Current time: 11/29/2026, 9:12:16 PM (Europe/Berlin, UTC+1:00)", "Current time: 11/29/2026"),
        ("The current date is 2026-11-29 21:12:16.", "The current date is 2026-11-29."),
        ("Today's date: Sun Nov 29 2026", "Today's date: Sun Nov 29 2026"),
        ("It is now 21:12:16 UTC.", ""),
        ("Today is 2026-11-29T21:12:16.123456+01:00", "Today is 2026-11-29"),
        ("<current_time>2026-11-29 21:12:16</current_time>", "<current_time>2026-11-29</current_time>"),
        ("Now run the tests at line 12:34 of a.py", "Now run the tests at line 12:34 of a.py"),
        ("Today's lunch: 12:30", "Today's lunch: 12:30"),
        ("The current track is 3:45 long", "The current track is 3:45 long"),
    ],
)
def test_what_changes_each_time_is_left_out(text: str, expected: str) -> None:
    assert steady(f"{text}\nBe kind.") in (f"{expected}\nBe kind.", f"{expected}Be kind.")


# --- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "role"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            "image input is not",
        ),
        ({"messages": [{"role": "user", "content": [{"text": "x"}]}]}, "no block"),
        ({"messages": [{"role": "user", "content": [{"type": "tool_result"}]}]}, "tool_use_id"),
        ({"messages": [{"role": "assistant", "content": [{"type": "tool_use"}]}]}, "tool_use needs"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "web_search"),
        ({"tools": [{"name": "no name", "input_schema": {}}]}, "name of a function"),
        ({"tool_choice": {"type": "all"}}, "tool_choice"),
        ({"tool_choice": {"type": "tool", "name": ["x"]}}, "not among the tools"),
        ({"messages": [{"role": "user", "content": [{"type": ["x"]}]}]}, "no block"),
        ({"tool_choice": {"type": "tool", "name": "x"}}, "not among the tools"),
        ({"output_config": {"format": {"type": "text"}}}, "output_config"),
        ({"temperature": 200}, "temperature"),
        ({"atlas": {"session_id": ""}}, "session_id"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_is_told_in_anthropics_shape(
    inside: Insider, change: Any, words: str, stream: bool
) -> None:
    async def test() -> None:
        async with inside(ScriptedEngine("x")) as server:
            body = {"max_tokens": 9, "messages": ASK, **change, "stream": stream}
            answer = await server.client.post("/v1/messages", json=body)
            assert answer.status_code == 400, answer.text
            found = answer.json()
            assert (found["type"], found["error"]["type"]) == ("error", "invalid_request_error")
            assert words in found["error"]["message"]

    asyncio.run(test())


def test_a_text_longer_than_the_context(inside: Insider) -> None:
    async def test() -> None:
        async with inside(ScriptedEngine("x", n_ctx=64)) as server:
            body = {"max_tokens": 9, "messages": [{"role": "user", "content": "long " * 20}]}
            answer = await server.client.post("/v1/messages", json=body)
            assert answer.status_code == 400
            assert "context" in answer.json()["error"]["message"]

    asyncio.run(test())


def test_too_many_wait_is_told_before_the_stream_begins(inside: Insider) -> None:
    async def test() -> None:
        engine = ScriptedEngine("x", n_sequences=1)
        async with inside(engine, max_queue=0) as server, server.service.conversations.borrowed("", "test"):
            body = {"max_tokens": 9, "messages": ASK, "stream": True}
            answer = await server.client.post("/v1/messages", json=body)
            assert answer.status_code == 429
            assert answer.json()["error"]["type"] == "rate_limit_error"

    asyncio.run(test())


def test_a_key_in_anthropics_header(serve: Server) -> None:
    server = serve(ScriptedEngine("x"), api_key=("right",))
    body = {"max_tokens": 9, "messages": ASK}
    wrong = server.client.post("/v1/messages", json=body, headers={"x-api-key": "wrong"})
    assert (wrong.status_code, wrong.json()["error"]["type"]) == (401, "authentication_error")
    assert server.client.post("/v1/messages", json=body, headers={"x-api-key": "right"}).status_code == 200


def test_a_failure_in_the_middle_is_an_event(serve: Server) -> None:
    class Failing(ScriptedEngine):
        def sampler(self, sampling: Any) -> Any:
            found, sample = super().sampler(sampling), []
            inner = found.sample

            def failing(logits: Any, index: int | None = None) -> int:
                sample.append(1)
                if len(sample) > 3:
                    raise RuntimeError("/secret/path")
                return int(inner(logits, index))

            found.sample = failing
            return found

    server = serve(Failing("Hello there"))
    events = server.events("/v1/messages", max_tokens=9, messages=ASK)
    assert events[-1]["type"] == "error"
    assert events[-1]["error"]["type"] == "api_error"
    assert "secret" not in json.dumps(events)


def test_blocks_follow_each_other_with_rising_numbers() -> None:
    blocks = Blocks()
    events = blocks.add(
        [
            Part("content", "a"), Part("call", index=0, id="1", name="f"), Part("arguments", '{"x": 1}'),
            Part("call", index=1, id="2", name="g"), Part("arguments", "{"), Part("content", "b"),
        ]
    )  # fmt: skip
    events += blocks.finish()
    assert [one["index"] for one in events if one["type"] == "content_block_stop"] == [0, 1, 2, 3]
    assert [one.get("input", one.get("text")) for one in blocks.content] == ["a", {"x": 1}, {}, "b"]


def test_a_block_of_the_wrong_kind_names_its_place() -> None:
    with pytest.raises(ApiError, match=r"messages\.1\.content\.0: image input") as found:
        chat_messages(None, [*ASK, {"role": "user", "content": [{"type": "image"}]}])
    assert found.value.param == "messages.1.content.0"


def test_a_sign_of_life_while_nothing_comes() -> None:
    async def test() -> None:
        ready = asyncio.Event()

        async def events() -> Any:
            yield b"a"
            await ready.wait()
            yield b"b"

        found = []
        async for one in kept_awake(events(), b".", seconds=0.01):
            found.append(one)
            if one == b".":
                ready.set()
        assert found[0] == b"a"
        assert found[-1] == b"b"
        assert set(found[1:-1]) == {b"."}

    asyncio.run(test())


def test_nothing_goes_on_when_nobody_listens() -> None:
    async def test() -> None:
        ended = []

        async def events() -> Any:
            try:
                yield b"a"
                await asyncio.Event().wait()
            finally:
                ended.append(True)

        awake = kept_awake(events(), b".", seconds=0.01)
        assert await anext(awake) == b"a"
        assert await anext(awake) == b"."
        await awake.aclose()  # type: ignore[attr-defined]
        assert ended == [True]

    asyncio.run(test())


# --- the real client ------------------------------------------------------------------------------------------


@pytest.fixture
def client(serve: Server) -> Any:
    """Return ``client(engine)``: Anthropic's client of a server with that engine."""
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    opened = []

    def connect(engine: Any) -> Any:
        found = anthropic.Anthropic(base_url=serve(engine).url, api_key="any", max_retries=0)
        opened.append(found)
        return found

    yield connect
    for one in opened:
        one.close()


def test_client_asks_and_streams(client: Any) -> None:
    api = client(ScriptedEngine("Hello there"))
    found = api.messages.create(model="any", max_tokens=20, messages=ASK, system="Be kind.")
    assert (found.content[0].text, found.stop_reason) == ("Hello there", "end_turn")
    assert found.usage.input_tokens > 0
    with api.messages.stream(model="any", max_tokens=20, messages=ASK) as stream:
        assert "".join(stream.text_stream) == "Hello there"
        final = stream.get_final_message()
    assert (final.stop_reason, final.usage.output_tokens) == ("end_turn", 11)
    assert api.messages.count_tokens(model="any", messages=ASK).input_tokens > 0


def test_client_uses_tools(client: Any) -> None:
    api = client(ScriptedEngine(CALL, CALL, "It is sunny."))
    sent: list[Any] = list(ASK)
    found = api.messages.create(model="any", max_tokens=200, messages=sent, tools=[TOOL])
    with api.messages.stream(model="any", max_tokens=200, messages=sent, tools=[TOOL]) as stream:
        streamed = stream.get_final_message()
    assert streamed.content[1].input == found.content[1].input == {"city": "Rome"}
    use = found.content[1]
    sent.append({"role": "assistant", "content": found.content})
    sent.append(
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": use.id, "content": "Sunny"}]}
    )
    last = api.messages.create(model="any", max_tokens=200, messages=sent, tools=[TOOL])
    assert last.content[0].text == "It is sunny."


def test_client_gets_thoughts(client: Any) -> None:
    api = client(ScriptedEngine("<think>Hm.</think>Hello", template=THINKING, names=()))
    thinking = {"type": "enabled", "budget_tokens": 1024}
    with api.messages.stream(model="any", max_tokens=2000, messages=ASK, thinking=thinking) as stream:
        found = stream.get_final_message()
    assert [one.type for one in found.content] == ["thinking", "text"]


def test_client_lists_models(client: Any) -> None:
    import anthropic

    api = client(ScriptedEngine("x"))
    [model] = api.models.list()
    assert (model.id, model.type, model.lifecycle) == ("fake.gguf", "model", "active")
    assert model.created_at.tzinfo is not None
    assert api.models.retrieve(model.id) == model
    with pytest.raises(anthropic.NotFoundError) as caught:
        api.models.retrieve("unknown")
    assert caught.value.body == {
        "type": "error", "error": {"type": "not_found_error", "message": "There is no model of this name."},
    }  # fmt: skip


def test_client_runs_tools_itself(client: Any) -> None:
    import anthropic

    asked = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """Tell the weather.

        Args:
            city: Where.
        """
        asked.append(city)
        return "Sunny"

    for stream in (False, True):
        api = client(ObligingEngine({"weather": {"city": "Rome"}}))
        runner = api.beta.messages.tool_runner(
            model="any", max_tokens=200, messages=list(ASK), tools=[weather], stream=stream
        )
        last = [one.get_final_message() if stream else one for one in runner][-1]
        assert last.content[0].text == "It is so."
    assert asked == ["Rome", "Rome"]


def test_client_parses_what_a_schema_shaped(client: Any) -> None:
    import pydantic

    class City(pydantic.BaseModel):
        name: str

    api = client(ScriptedEngine('{"name": "Rome"}', template=TEMPLATE, names=()))
    found = api.messages.parse(model="any", max_tokens=50, messages=ASK, output_format=City)
    assert found.parsed_output == City(name="Rome")


def test_client_has_a_class_for_each_error(serve: Server) -> None:
    anthropic = pytest.importorskip("anthropic", reason="anthropic is not installed")
    server = serve(ScriptedEngine("x", n_sequences=1), api_key=("secret",), max_queue=0, max_body=10_000)
    asked = {"model": "any", "max_tokens": 9, "messages": ASK}
    with anthropic.Anthropic(base_url=server.url, api_key="secret", max_retries=0) as api:
        with pytest.raises(anthropic.AuthenticationError) as caught:
            api.with_options(api_key="wrong").messages.create(**asked)
        assert caught.value.body["error"]["type"] == "authentication_error"
        with pytest.raises(anthropic.RequestTooLargeError):
            api.messages.create(**{**asked, "system": "long " * 4000})
        with pytest.raises(anthropic.NotFoundError):
            api.post("/v1/nothing", cast_to=object, body={})
        with busy(server), pytest.raises(anthropic.RateLimitError) as caught:
            api.messages.create(**asked)
        assert caught.value.body["error"]["type"] == "rate_limit_error"


def test_client_is_told_what_is_wrong(client: Any) -> None:
    import anthropic

    api = client(ScriptedEngine("x"))
    with pytest.raises(anthropic.BadRequestError, match="temperature"):
        api.messages.create(model="any", max_tokens=9, messages=ASK, extra_body={"temperature": 200})


def test_a_grammar_beside_tools_is_refused(serve: Server) -> None:
    server = serve(ScriptedEngine(CALL))
    choice = {"type": "any"}
    body = {
        "max_tokens": 9,
        "messages": ASK,
        "tools": [TOOL],
        "tool_choice": choice,
        "grammar": "root ::= [a]",
    }
    answer = server.client.post("/v1/messages", json=body)
    assert answer.status_code == 400
    assert "grammar" in answer.json()["error"]["message"]


def test_llama_cpps_schema_is_a_form(serve: Server) -> None:
    engine = ScriptedEngine("{}", template=TEMPLATE, names=())
    serve(engine).post(
        "/v1/messages", **{"max_tokens": 9, "messages": ASK, "json_schema": {"type": "object"}}
    )
    assert engine.samplings[0].json_schema == {"type": "object"}


@pytest.mark.model
def test_llama_calls_the_tool_that_it_must(serve: Server, real: Any) -> None:
    server = serve(real("llama", n_ctx=1024, n_batch=128))
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
    tool = {"name": "weather", "input_schema": {**schema, "additionalProperties": False}}
    choice = {"type": "tool", "name": "weather"}
    found = server.post(
        "/v1/messages", max_tokens=300, messages=ASK, tools=[tool], tool_choice=choice, seed=1
    )
    assert found["stop_reason"] == "tool_use"
    assert found["content"][-1]["input"]["city"] in ("Rome", "Bonn")
