"""OpenAI's Responses API: shapes, events, tools, thoughts, what goes on from what, and its own client."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from atlas_kit.errors import BusyError
from atlas_kit.server.kept_responses import Kept, KeptResponses
from atlas_kit.server.problems import ApiError
from atlas_kit.server.response_items import chat_messages, chat_tools, listed
from server.conftest import TEMPLATE, Insider, Server, fake_engine
from server.scripted import ScriptedEngine

TOOL = {
    "type": "function",
    "name": "weather",
    "description": "Tells the weather.",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    "strict": True,
}
CALL = 'Let me see.<tool_call>\n{"name": "weather", "arguments": {"city": "Rome"}}\n</tool_call>'
THINKING = (
    "{% for m in messages %}<{{ m.role }}>{% if m.reasoning_content %}<think>{{ m.reasoning_content }}</think>"
    "{% endif %}{{ m.content }}</>{% endfor %}{% if add_generation_prompt %}<assistant>"
    "{% if enable_thinking is defined and not enable_thinking %}<think></think>{% endif %}{% endif %}"
)
MESSAGE = [
    "response.created", "response.in_progress", "response.output_item.added", "response.content_part.added",
    "response.output_text.delta", "response.output_text.done", "response.content_part.done",
    "response.output_item.done", "response.completed",
]  # fmt: skip


def plain(*scripts: str, **options: Any) -> ScriptedEngine:
    """Return an engine whose conversations a memory can read."""
    return ScriptedEngine(*scripts, **{"template": TEMPLATE, "names": (), **options})


def kinds(events: list[Any]) -> list[str]:
    """Return the kinds of events, deltas that follow each other once."""
    found: list[str] = []
    for one in events:
        if not (one["type"].endswith(".delta") and found and found[-1] == one["type"]):
            found.append(one["type"])
    return found


def text_of(response: Any) -> str:
    """Return the text of an answer."""
    return "".join(
        part["text"] for item in response["output"] if item["type"] == "message" for part in item["content"]
    )


# --- the shape of an answer ---------------------------------------------------------------------------------


def test_an_answer_has_every_key(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    found = server.post(
        "/v1/responses", model="any", input="Hi", instructions="Be kind.", max_output_tokens=20,
        metadata={"a": "b"}, temperature=0.5,
    )  # fmt: skip
    assert found["id"].startswith("resp_")
    item = found["output"][0]
    assert item["id"].startswith("msg_")
    assert item == {
        "id": item["id"],
        "type": "message",
        "status": "completed",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "Hello", "annotations": [], "logprobs": []}],
    }
    usage = found["usage"]
    assert usage["input_tokens"] + 5 == usage["total_tokens"]
    assert usage["output_tokens"] == 5
    assert usage["input_tokens_details"] == {"cached_tokens": 0, "cache_write_tokens": 0}
    expected = {
        "object": "response", "status": "completed", "error": None, "incomplete_details": None,
        "instructions": "Be kind.", "max_output_tokens": 20, "model": "fake.gguf", "temperature": 0.5,
        "metadata": {"a": "b"}, "store": True, "tools": [], "tool_choice": "auto", "parallel_tool_calls": True,
        "previous_response_id": None, "conversation": None, "text": {"format": {"type": "text"}, "verbosity": None},
        "truncation": "disabled",
    }  # fmt: skip
    assert {key: found[key] for key in expected} == expected
    assert found["atlas"]["enabled"] is False


def test_an_answer_that_was_cut_short(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    found = server.post("/v1/responses", input="Hi", max_output_tokens=2)
    assert (found["status"], found["incomplete_details"]) == ("incomplete", {"reason": "max_output_tokens"})
    assert (found["output"][0]["status"], text_of(found)) == ("incomplete", "He")
    events = server.events("/v1/responses", input="Hi", max_output_tokens=2)
    assert events[-1]["type"] == "response.incomplete"


def test_events_come_in_order_and_end_with_the_whole(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    events = server.events("/v1/responses", input="Hi")
    assert kinds(events) == MESSAGE
    assert [one["sequence_number"] for one in events] == list(range(len(events)))
    assert (events[0]["response"]["status"], events[0]["response"]["usage"]) == ("in_progress", None)
    last = events[-1]["response"]
    assert "".join(one["delta"] for one in events if one["type"] == "response.output_text.delta") == "Hello"
    assert text_of(last) == "Hello"
    item = last["output"][0]
    assert all(one.get("item_id", item["id"]) == item["id"] for one in events)
    assert all(one.get("output_index", 0) == one.get("content_index", 0) == 0 for one in events)
    assert last["atlas"]["enabled"] is False
    assert server.get(f"/v1/responses/{last['id']}") == last


def test_events_have_names(serve: Server) -> None:
    server = serve(ScriptedEngine("Hi"))
    with server.client.stream("POST", "/v1/responses", json={"input": "Hi", "stream": True}) as answer:
        lines = [line for line in answer.iter_lines() if line]
    names = [line.removeprefix("event: ") for line in lines[::2]]
    assert names == [json.loads(line.removeprefix("data: "))["type"] for line in lines[1::2]]


def test_an_answer_of_nothing_is_an_empty_message(serve: Server) -> None:
    server = serve(ScriptedEngine(""))
    assert text_of(server.post("/v1/responses", input="Hi")) == ""
    assert kinds(server.events("/v1/responses", input="Hi")) == [
        kind for kind in MESSAGE if kind != "response.output_text.delta"
    ]


def test_logprobs_of_the_text(serve: Server) -> None:
    server = serve(ScriptedEngine("Hey"))
    more = {"include": ["message.output_text.logprobs"], "top_logprobs": 2}
    part = server.post("/v1/responses", input="Hi", **more)["output"][0]["content"][0]
    assert [one["token"] for one in part["logprobs"]] == ["H", "e", "y"]
    assert all(one["logprob"] <= 0 and len(one["top_logprobs"]) == 2 for one in part["logprobs"])
    events = server.events("/v1/responses", input="Hi", **more)
    told = [entry for one in events if one["type"].endswith("text.delta") for entry in one["logprobs"]]
    assert [one["token"] for one in told] == ["H", "e", "y"]


def test_a_schema_for_the_text(serve: Server) -> None:
    engine = plain("{}")
    form = {"type": "json_schema", "name": "thing", "schema": {"type": "object"}, "strict": True}
    found = serve(engine).post("/v1/responses", input="Hi", text={"format": form})
    assert engine.samplings[-1].json_schema == {"type": "object"}
    assert found["text"]["format"] == form


def test_tokens_are_counted(serve: Server) -> None:
    server = serve(ScriptedEngine("Hello"))
    body = {"input": "Hi", "instructions": "Be kind."}
    found = server.post("/v1/responses/input_tokens", **body)
    assert found == {
        "object": "response.input_tokens",
        "input_tokens": server.post("/v1/responses", **body)["usage"]["input_tokens"],
    }


# --- tools and thoughts -------------------------------------------------------------------------------------


def test_a_call_of_a_function(serve: Server) -> None:
    server = serve(ScriptedEngine(CALL))
    body = {"input": "Hi", "tools": [TOOL, {"type": "web_search"}]}
    found = server.post("/v1/responses", **body)
    message, call = found["output"]
    assert message["content"][0]["text"] == "Let me see."
    assert (call["type"], call["name"], call["status"]) == ("function_call", "weather", "completed")
    assert json.loads(call["arguments"]) == {"city": "Rome"}
    assert found["tools"] == [TOOL]  # what the model was not told of is not named
    events = server.events("/v1/responses", **body)
    assert kinds(events) == [
        *MESSAGE[:-1], "response.output_item.added", "response.function_call_arguments.delta",
        "response.function_call_arguments.done", "response.output_item.done", "response.completed",
    ]  # fmt: skip
    added = [one for one in events if one["type"] == "response.output_item.added"]
    assert [one["output_index"] for one in added] == [0, 1]
    assert added[1]["item"]["arguments"] == ""


@pytest.mark.parametrize(
    ("choice", "forced"),
    [
        ("required", True),
        ({"type": "function", "name": "weather"}, True),
        ("auto", False),
        ("none", False),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            True,
        ),
    ],
)
def test_a_choice_of_tools_forces_a_call(serve: Server, choice: Any, forced: bool) -> None:
    engine = ScriptedEngine(CALL)
    other = {"type": "function", "name": "other", "parameters": {"type": "object"}}
    serve(engine).post("/v1/responses", input="Hi", tools=[TOOL, other], tool_choice=choice)
    grammar = engine.samplings[0].grammar or "said"
    assert ("said" not in grammar.splitlines()[0]) is forced  # else anything may be said
    if isinstance(choice, dict):
        assert "other" not in grammar


def test_results_of_functions_go_on(serve: Server) -> None:
    server = serve(ScriptedEngine(CALL, "It is sunny."))
    first = server.post("/v1/responses", input="Hi", tools=[TOOL])
    call = first["output"][1]
    result = {"type": "function_call_output", "call_id": call["call_id"], "output": "Sunny"}
    by_id = server.post("/v1/responses", input=[result], tools=[TOOL], previous_response_id=first["id"])
    assert text_of(by_id) == "It is sunny."
    whole = [{"role": "user", "content": "Hi"}, *first["output"], result]
    again = server.post("/v1/responses", input=whole, tools=[TOOL])
    assert again["usage"]["input_tokens"] == by_id["usage"]["input_tokens"]


def test_thoughts_are_items_of_their_own(serve: Server) -> None:
    server = serve(plain("<think>Hm.</think>Hello", template=THINKING))
    found = server.post("/v1/responses", input="Hi")
    thought, message = found["output"]
    assert thought["content"] == [{"type": "reasoning_text", "text": "Hm."}]
    assert (thought["summary"], message["content"][0]["text"]) == ([], "Hello")
    usage = found["usage"]
    assert 0 < usage["output_tokens_details"]["reasoning_tokens"] < usage["output_tokens"]
    assert kinds(server.events("/v1/responses", input="Hi")) == [
        *MESSAGE[:4], "response.reasoning_text.delta", "response.reasoning_text.done", *MESSAGE[6:8], *MESSAGE[2:],
    ]  # fmt: skip


def test_effort_none_leaves_thoughts_out(serve: Server) -> None:
    server = serve(plain("x", template=THINKING))
    counts = [
        server.post("/v1/responses/input_tokens", input="Hi", reasoning=reasoning)["input_tokens"]
        for reasoning in (None, {"effort": "none"})
    ]
    assert counts[0] < counts[1]


def test_items_become_messages() -> None:
    found = chat_messages(
        [
            {"role": "developer", "content": "Be kind."},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hi"}]},
            {"type": "reasoning", "id": "rs_1", "summary": [], "content": [{"type": "reasoning_text", "text": "Hm."}]},
            {"type": "reasoning", "id": "rs_2", "summary": [], "encrypted_content": "x"},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Let me see."}]},
            {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "c1", "output": [{"type": "input_text", "text": "Sunny"}]},
        ]
    )  # fmt: skip
    assert found == [
        {"role": "developer", "content": "Be kind."},
        {"role": "user", "content": "Hi"},
        {
            "role": "assistant",
            "content": "Let me see.",
            "reasoning_content": "Hm.",
            "tool_calls": [
                {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": "{}"}}
            ],
        },
        {"role": "tool", "tool_call_id": "c1", "content": "Sunny"},
    ]


def test_tools_of_other_servers_are_left_out() -> None:
    tools, choice, named = chat_tools([{"type": "web_search"}, TOOL], "auto")
    assert [one["function"]["name"] for one in tools] == ["weather"]
    assert (choice, named) == ("auto", [TOOL])
    assert chat_tools([{"type": "web_search"}], "auto") == ([], None, [])
    with pytest.raises(ApiError, match="web_search"):
        chat_tools([{"type": "web_search"}], {"type": "web_search"})


# --- going on -----------------------------------------------------------------------------------------------


def test_an_answer_goes_on_by_its_id(serve: Server) -> None:
    server = serve(ScriptedEngine("One", "Two", "Three"))
    first = server.post("/v1/responses", input="Hi", instructions="Be kind.")
    second = server.post("/v1/responses", input="More", previous_response_id=first["id"])
    third = server.post("/v1/responses", input="And", previous_response_id=second["id"])
    assert third["previous_response_id"] == second["id"]
    spoken = [("Hi", "One"), ("More", "Two")]
    whole = [
        item
        for asked, answered in spoken
        for item in ({"role": "user", "content": asked}, {"role": "assistant", "content": answered})
    ]
    count = server.post("/v1/responses/input_tokens", input=[*whole, {"role": "user", "content": "And"}])
    assert third["usage"]["input_tokens"] == count["input_tokens"]  # and without the instructions of before
    assert third["usage"]["input_tokens_details"]["cached_tokens"] > 30


def test_two_answers_go_on_from_one(serve: Server) -> None:
    server = serve(ScriptedEngine("One", "Two", "Three"))
    first = server.post("/v1/responses", input="Hi")
    others = [server.post("/v1/responses", input="More", previous_response_id=first["id"]) for _ in range(2)]
    assert [text_of(one) for one in others] == ["Two", "Three"]
    assert others[0]["usage"]["input_tokens"] == others[1]["usage"]["input_tokens"]


def test_the_memory_goes_on_with_an_id(serve: Server) -> None:
    server = serve(plain("One", "Two"), atlas=True)
    first = server.post("/v1/responses", input="Hi")
    second = server.post("/v1/responses", input="More", previous_response_id=first["id"])
    assert second["atlas"]["tokens_seen"] > first["atlas"]["tokens_seen"] + 5
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"]


def test_the_session_goes_on_with_an_id(serve: Server) -> None:
    server = serve(plain("One", "Two", "Three"))
    first = server.post("/v1/responses", input="Hi", atlas={"session_id": "anna"})
    second = server.post("/v1/responses", input="More", previous_response_id=first["id"])
    assert second["atlas"]["session_id"] == "anna"
    other = server.post(
        "/v1/responses", input="More", previous_response_id=first["id"], atlas={"session_id": "bert"}
    )
    assert other["atlas"]["session_id"] == "bert"
    off = server.post(
        "/v1/responses", input="More", previous_response_id=first["id"], atlas={"enabled": False}
    )
    assert off["atlas"]["enabled"] is False


def test_a_memory_that_is_forgotten_reads_the_text_again(serve: Server) -> None:
    server = serve(plain("One", "Two"))
    first = server.post("/v1/responses", input="Hi", atlas={"enabled": True})
    kept = server.run(server.service.responses.find("", first["id"]))
    assert kept is not None
    assert kept.conversation is not None
    kept.conversation.closed = True
    server.service.conversations._temporary.clear()
    second = server.post("/v1/responses", input="More", previous_response_id=first["id"])
    assert second["atlas"]["enabled"] is True
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == 0
    # of the last one, it is not known yet what follows
    assert second["atlas"]["tokens_seen"] >= second["usage"]["input_tokens"] - 1


def test_a_session_that_is_deleted_begins_anew(serve: Server) -> None:
    server = serve(plain("One", "Two"))
    first = server.post("/v1/responses", input="Hi", conversation="anna")
    server.client.delete("/v1/conversations/anna")
    second = server.post("/v1/responses", input="More", previous_response_id=first["id"])
    assert second["atlas"]["session_id"] == "anna"
    assert second["usage"]["input_tokens_details"]["cached_tokens"] == 0


def test_a_conversation_is_a_session(serve: Server) -> None:
    server = serve(plain("One", "Two"))
    first = server.post("/v1/responses", input="Hi", conversation="anna")
    assert (first["conversation"], first["atlas"]["session_id"]) == ({"id": "anna"}, "anna")
    second = server.post("/v1/responses", input="More", conversation={"id": "anna"}, store=False)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"]
    assert server.client.get(f"/v1/responses/{second['id']}").status_code == 404
    third = server.events("/v1/responses", input="And", conversation="anna")[-1]["response"]
    assert third["usage"]["input_tokens"] > second["usage"]["total_tokens"]


def test_a_conversation_goes_on_where_only_its_session_is_left(serve: Server) -> None:
    server = serve(plain("One", "Two"))
    first = server.post("/v1/responses", input="Hi", conversation="anna")
    server.service.responses = KeptResponses()
    second = server.post("/v1/responses", input="More", conversation="anna")
    assert second["usage"]["input_tokens_details"]["cached_tokens"] >= first["usage"]["total_tokens"]
    third = server.post("/v1/responses", input="And", conversation="anna")
    assert third["atlas"]["session_id"] == "anna"


def test_requests_of_one_conversation_follow_each_other(inside: Insider) -> None:
    async def test() -> None:
        async with inside(plain("One", "Two", "Three")) as server:
            bodies = [{"input": f"Text {number}", "conversation": "anna"} for number in range(3)]
            answers = await asyncio.gather(
                *(server.client.post("/v1/responses", json=body) for body in bodies)
            )
            counts = sorted(one.json()["usage"]["input_tokens"] for one in answers)
            assert counts[0] + 10 < counts[1] < counts[2] - 10

    asyncio.run(test())


def test_neither_user_nor_cache_key_chooses_a_memory(serve: Server) -> None:
    server = serve(plain("One"))
    server.post("/v1/responses", input="Hi", user="anna", prompt_cache_key="anna", safety_identifier="anna")
    assert not server.service.conversations.named


def test_every_key_has_its_own_answers(serve: Server) -> None:
    server = serve(plain("One"), api_key=("a", "b"))
    keys = [{"authorization": f"Bearer {key}"} for key in ("a", "b")]
    body = {"input": "canary", "conversation": "anna"}
    found = server.client.post("/v1/responses", json=body, headers=keys[0]).json()
    path = f"/v1/responses/{found['id']}"
    assert server.client.get(path, headers=keys[0]).status_code == 200
    assert server.client.get(path, headers=keys[1]).status_code == 404
    assert server.client.delete(path, headers=keys[1]).status_code == 404
    other = {"input": "Hi", "previous_response_id": found["id"]}
    assert server.client.post("/v1/responses", json=other, headers=keys[1]).status_code == 400
    mine = server.client.post("/v1/responses", json={**body, "input": "Hi"}, headers=keys[1]).json()
    assert mine["usage"]["input_tokens"] < found["usage"]["total_tokens"]


def test_what_was_sent_is_listed_and_forgotten(serve: Server) -> None:
    server = serve(ScriptedEngine("One"))
    sent = [
        {"role": "user", "content": "Hi"},
        {"role": "assistant", "content": "Yes?"},
        {"role": "user", "content": "x"},
    ]
    name = server.post("/v1/responses", input=sent)["id"]
    found = server.get(f"/v1/responses/{name}/input_items", order="asc", limit=2)
    assert [one["content"][0]["text"] for one in found["data"]] == ["Hi", "Yes?"]
    assert found["has_more"]
    rest = server.get(f"/v1/responses/{name}/input_items", order="asc", after=found["last_id"])
    assert [one["content"][0]["text"] for one in rest["data"]] == ["x"]
    assert server.client.delete(f"/v1/responses/{name}").json()["deleted"] is True
    assert server.client.get(f"/v1/responses/{name}").status_code == 404
    unknown = server.client.post("/v1/responses", json={"input": "Hi", "previous_response_id": name})
    assert unknown.json()["error"]["code"] == "previous_response_not_found"


def test_what_is_not_stored_is_not_found(serve: Server) -> None:
    server = serve(ScriptedEngine("One"))
    found = server.post("/v1/responses", input="Hi", store=False)
    assert found["store"] is False
    assert server.client.get(f"/v1/responses/{found['id']}").status_code == 404


def test_kept_answers_are_bounded() -> None:
    responses = KeptResponses(most=3, most_bytes=100)
    last: Kept | None = None
    for number in range(5):
        last = Kept({"id": str(number)}, [], [{"role": "user", "content": str(number)}], last, size=10)
        responses.keep("", last)
    found = [asyncio.run(responses.find("", str(number))) is not None for number in range(5)]
    assert found == [False] * 2 + [True] * 3
    assert last is not None
    assert [one["content"] for one in last.text()] == list("01234")  # what led there is still whole
    responses.keep("", Kept({"id": "large"}, [], [], size=99))
    assert len(responses) == 1


def test_conversations_are_bounded() -> None:
    async def test() -> None:
        responses = KeptResponses(most_conversations=2)
        for name in ("a", "b", "c"):
            async with responses.turn("", name) as thread:
                thread.last = Kept({"id": name}, [], [])
        async with responses.turn("", "a") as thread:
            assert thread.last is None
        async with responses.turn("", "c") as thread:
            assert thread.last is not None

    asyncio.run(test())


@pytest.mark.parametrize("metadata", [b'{"\\ud800": 1}', b'{"a": "\\ud800"}'])
def test_half_a_character_in_a_note_is_no_failure(metadata: bytes, inside: Insider) -> None:
    async def test() -> None:
        async with inside(plain("Hello")) as server:
            headers, content = {"content-type": "application/json"}, b'{"metadata": ' + metadata + b"}"
            path = "/v1/conversations"
            for _ in range(2):  # to begin one, and to note something else
                answer = await server.client.post(path, content=content, headers=headers)
                assert answer.status_code == 200, answer.text
                path = f"/v1/conversations/{answer.json()['id']}"
            assert (await server.client.get(path)).status_code == 200

    asyncio.run(test())


def test_what_conversations_hold_is_bounded(inside: Insider) -> None:
    """Items and notes need no model, so a client could fill main memory with them in no time."""

    async def test() -> None:
        async with inside(plain("Hello")) as server:
            service, items = server.service, [{"role": "user", "content": "x" * 1000}]
            service.responses = KeptResponses(most_bytes=5000)
            names = []
            for body in (
                {"items": items},
                {"metadata": {"a": "x" * 1000}},
                {"items": items},
                {"items": items},
            ):
                answer = await server.client.post("/v1/conversations", json=body)
                names.append(answer.json()["id"])
            there = [(await server.client.get(f"/v1/conversations/{name}")).status_code for name in names]
            assert there[0] == 404
            assert there[-1] == 200
            path = f"/v1/conversations/{names[-1]}/items"
            found = [(await server.client.post(path, json={"items": items})).status_code for _ in range(6)]
            assert found[0] == 200
            assert found[-1] == 400
            answer = await server.client.post(path, json={"items": items})
            assert answer.json()["error"]["code"] == "too_large"
            more = {"input": "Hi", "conversation": names[-1]}
            assert (await server.client.post("/v1/responses", json=more)).status_code == 400
            assert (await server.client.delete(f"/v1/conversations/{names[-1]}")).status_code == 200

    asyncio.run(test())


def test_not_everybody_may_wait_for_a_conversation() -> None:
    async def test() -> None:
        responses = KeptResponses(most_waiting=1)
        async with responses.turn("", "a"):
            waiting = asyncio.ensure_future(_one_turn(responses))
            await asyncio.sleep(0)
            with pytest.raises(BusyError, match="is full: it holds 1"):
                await _one_turn(responses)
        await waiting

    asyncio.run(test())


async def _one_turn(responses: KeptResponses) -> None:
    async with responses.turn("", "a"):
        pass


def test_listed_items_have_ids() -> None:
    found = listed("Hi")
    assert found[0]["content"] == [{"type": "input_text", "text": "Hi"}]
    assert found[0]["id"]


def test_conversations_are_begun_listed_and_forgotten(serve: Server) -> None:
    server = serve(plain("One", "Two"))
    begun = server.post(
        "/v1/conversations", items=[{"role": "user", "content": "Before"}], metadata={"topic": "x"}
    )
    assert begun["id"].startswith("conv_")
    path = f"/v1/conversations/{begun['id']}"
    assert server.get(path) == begun
    server.post("/v1/responses", input="Hi", conversation=begun["id"])
    added = server.post(f"{path}/items", items=[{"role": "user", "content": "Between"}])
    assert [one["content"][0]["text"] for one in added["data"]] == ["Between"]
    found = server.post("/v1/responses", input="More", conversation=begun["id"])
    items = server.get(f"{path}/items", order="asc")["data"]
    texts = [one["content"][0]["text"] for one in items]
    assert texts == ["Before", "Hi", "One", "Between", "More", "Two"]
    assert len({one["id"] for one in items}) == len(items)
    assert found["usage"]["input_tokens_details"]["cached_tokens"] > 30
    between = items[3]
    assert server.get(f"{path}/items/{between['id']}") == between
    left = server.client.delete(f"{path}/items/{between['id']}")
    assert (left.status_code, left.json()["id"]) == (200, begun["id"])
    assert server.client.get(f"{path}/items/{between['id']}").status_code == 404
    assert server.get(f"{path}/items", order="asc")["data"] == [one for one in items if one is not between]
    again = server.post("/v1/responses", input="On", conversation=begun["id"])["usage"]
    # both go on with a message of the user behind the gap
    before = "<user>Before</><user>Hi</><assistant>One</><user>"
    assert again["input_tokens_details"]["cached_tokens"] == len(before)
    assert server.post(path, metadata={"topic": "y"})["metadata"] == {"topic": "y"}
    assert server.client.delete(path).json() == {
        "id": begun["id"], "object": "conversation.deleted", "deleted": True,
    }  # fmt: skip
    assert server.client.get(path).status_code == 404
    assert not server.service.conversations.named


def test_a_session_is_a_conversation_without_its_text(serve: Server) -> None:
    server = serve(plain("One"))
    server.post("/v1/completions", prompt="x", max_tokens=1, atlas={"session_id": "anna"})
    assert server.get("/v1/conversations/anna")["id"] == "anna"
    assert server.get("/v1/conversations/anna/items")["data"] == []


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("POST", ""),
        ("DELETE", ""),
        ("GET", "/items"),
        ("POST", "/items"),
        ("GET", "/items/a"),
        ("DELETE", "/items/a"),
    ],
)
def test_there_is_no_such_conversation(inside: Insider, method: str, path: str) -> None:
    async def test() -> None:
        async with inside(fake_engine()) as server:
            body = {"json": {"items": [{"role": "user", "content": "x"}]}} if method == "POST" else {}
            answer = await server.client.request(method, f"/v1/conversations/conv_x{path}", **body)
            assert answer.status_code == 404
            assert answer.json()["error"]["code"] == "not_found"

    asyncio.run(test())


def test_how_long_it_took_is_told(serve: Server) -> None:
    server = serve(ScriptedEngine("Hey"))
    events = server.events("/v1/responses", input="Hi", timings_per_token=True)
    deltas = [one for one in events if one["type"].endswith(".delta")]
    assert all("predicted_per_second" in one["timings"] for one in (*deltas, events[-1]))
    assert events[-1]["response"]["timings"]["predicted_n"] == 3


# --- what is wrong --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({}, "input", "empty"),
        ({"input": []}, "input", "empty"),
        ({"input": 3}, None, "input"),
        ({"input": [{"type": "web_search_call"}]}, "input.0", "web_search_call"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input.0", "item_reference"),
        ({"input": [{"role": "tool", "content": "x"}]}, "input.0", "role"),
        ({"input": [{"role": "user", "content": 3}]}, "input.0.content", "list of parts"),
        (
            {"input": [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}]},
            "input.0.content.0",
            "image input is not supported",
        ),
        ({"input": [{"type": "function_call", "name": "x"}]}, "input.0", "call_id"),
        ({"input": [{"type": "function_call_output"}]}, "input.0", "call_id"),
        (
            {"input": [{"type": "function_call", "name": "x", "call_id": "1", "arguments": "{}"}]},
            "input",
            "results are missing",
        ),
        ({"input": "x", "previous_response_id": "resp_x"}, "previous_response_id", "go on from"),
        ({"input": "x", "previous_response_id": "r", "conversation": "c"}, "previous_response_id", "one of them"),
        ({"input": "x", "conversation": "a\nb"}, "conversation", "name of a conversation"),
        ({"input": "x", "conversation": ""}, "conversation", "name of a conversation"),
        ({"input": "x", "atlas": {"session_id": "a\nb"}}, "atlas.session_id", "session_id"),
        ({"input": "x", "conversation": "c", "atlas": {"session_id": "a\nb"}}, "atlas.session_id", "session_id"),
        ({"input": "x", "background": True}, "background", "background"),
        ({"input": "x", "prompt": {"id": "p"}}, "prompt", "prompts"),
        ({"input": "x", "n": 2}, "n", "one answer"),
        ({"input": "x", "tools": [{"type": "function"}]}, "tools.0", "name"),
        ({"input": "x", "tool_choice": "required"}, "tool_choice", "none"),
        ({"input": "x", "tool_choice": {"type": "mcp"}}, "tool_choice", "mcp"),
        ({"input": "x", "text": {"format": {"type": "xml"}}}, "text.format", "json_schema"),
        ({"input": "x", "text": {"format": {"type": "json_schema"}}}, "text.format", "schema"),
        ({"input": "x", "max_output_tokens": -1}, "max_output_tokens", "at least 0"),
        ({"input": "long " * 100}, "prompt", "context"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("stream", [False, True])
def test_what_is_wrong_has_a_place(
    inside: Insider, body: Any, param: str | None, words: str, stream: bool
) -> None:
    async def test() -> None:
        async with inside(fake_engine()) as server:
            answer = await server.client.post("/v1/responses", json={**body, "stream": stream})
            assert answer.status_code == 400, answer.text
            error = answer.json()["error"]
            assert words in error["message"]
            assert param is None or error["param"] == param

    asyncio.run(test())


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/responses/resp_x", 404),
        ("DELETE", "/v1/responses/resp_x", 404),
        ("GET", "/v1/responses/resp_x/input_items", 404),
        ("POST", "/v1/responses/resp_x/cancel", 400),
        ("POST", "/v1/responses/compact", 501),
    ],
)
def test_what_there_is_not(inside: Insider, method: str, path: str, status: int) -> None:
    async def test() -> None:
        async with inside(fake_engine()) as server:
            answer = await server.client.request(method, path)
            assert answer.status_code == status
            assert answer.json()["error"]["message"]

    asyncio.run(test())


def test_a_failure_in_the_middle_is_the_last_event(serve: Server) -> None:
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
    events = server.events("/v1/responses", input="Hi")
    last = events[-1]
    assert (last["type"], last["response"]["status"]) == ("response.failed", "failed")
    assert last["sequence_number"] == len(events) - 1
    assert "secret" not in json.dumps(events)
    assert server.client.get(f"/v1/responses/{last['response']['id']}").status_code == 404


def test_too_many_wait_is_told_before_the_stream_begins(inside: Insider) -> None:
    async def test() -> None:
        engine = ScriptedEngine("x", n_sequences=1)
        async with inside(engine, max_queue=0) as server, server.service.conversations.borrowed("", "test"):
            for more in ({}, {"conversation": "anna"}):
                body = {"input": "Hi", "stream": True, **more}
                answer = await server.client.post("/v1/responses", json=body)
                assert answer.status_code == 429

    asyncio.run(test())


@pytest.mark.parametrize("path", ["/v1/responses", "/v1/chat/completions", "/v1/completions", "/v1/messages"])
@pytest.mark.parametrize("stream", [False, True])
def test_too_many_sessions_is_said_of_the_property_that_names_one(
    inside: Insider, path: str, stream: bool
) -> None:
    async def test() -> None:
        async with inside(plain("One"), atlas_max_sessions=1) as server:
            first = await server.client.post("/v1/responses", json={"input": "Hi", "conversation": "anna"})
            assert first.status_code == 200
            body = {
                "input": "Hi", "prompt": "Hi", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4,
                "stream": stream,
            }  # fmt: skip
            named: list[tuple[dict[str, Any], str]] = [
                ({"atlas": {"session_id": "bert"}}, "atlas.session_id")
            ]
            if path == "/v1/responses":
                del body["prompt"]  # there, it is another thing
                named.append(({"conversation": "bert"}, "conversation"))
                named.append(({"conversation": "c", "atlas": {"session_id": "bert"}}, "atlas.session_id"))
            for more, param in named:
                answer = await server.client.post(path, json={**body, **more})
                assert answer.status_code == 403, answer.text
                if path != "/v1/messages":  # Anthropic's errors have no place for it
                    assert answer.json()["error"]["param"] == param

    asyncio.run(test())


def test_a_session_that_is_gone_is_said_of_the_answer_that_was_gone_on_from(inside: Insider) -> None:
    async def test() -> None:
        async with inside(plain("One", "Two"), atlas_max_sessions=1) as server:
            post = server.client.post
            asked = {"input": "Hi", "atlas": {"session_id": "anna"}}
            first = (await post("/v1/responses", json=asked)).json()
            await server.client.delete("/v1/atlas/sessions/anna")
            await post("/v1/responses", json={"input": "Hi", "atlas": {"session_id": "bert"}})
            on = {"input": "More", "previous_response_id": first["id"]}
            answer = await post("/v1/responses", json=on)
            assert (answer.status_code, answer.json()["error"]["param"]) == (403, "previous_response_id")

    asyncio.run(test())


@pytest.mark.parametrize("named", ["conversation", "previous_response_id"])
def test_a_client_that_reads_slowly_keeps_nobody_waiting(inside: Insider, named: str) -> None:
    """What goes on from its answer, and who forgets it, wait for the work and not for the client."""

    async def test() -> None:
        async with inside(plain("One two three", "Two", "Three")) as server:
            post, app = server.client.post, server.client._transport.app  # type: ignore[attr-defined]
            more: dict[str, Any] = {"atlas": {"session_id": "anna"}}
            if named == "conversation":
                more = {"conversation": "anna"}
            body = json.dumps({"input": "Hi", "stream": True, **more}).encode()
            wanted, sent = asyncio.Event(), list[bytes]()
            asked, never = iter([{"type": "http.request", "body": body, "more_body": False}]), asyncio.Event()

            async def receive() -> Any:
                if (one := next(asked, None)) is None:
                    await never.wait()
                return one

            async def send(message: Any) -> None:
                sent.append(message.get("body", b""))
                if b"response.created" in sent[-1]:
                    await wanted.wait()  # the network takes no more of it

            scope = {
                "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST",
                "scheme": "http", "path": "/v1/responses", "raw_path": b"/v1/responses", "query_string": b"",
                "headers": [(b"content-type", b"application/json"), (b"host", b"server")],
                "client": ("127.0.0.1", 1), "server": ("server", 80), "root_path": "",
            }  # fmt: skip
            slow = asyncio.create_task(app(scope, receive, send))
            while not any(b"response.created" in one for one in sent):
                await asyncio.sleep(0.01)
            path = "/v1/atlas/sessions/anna/forget"
            found = await asyncio.wait_for(post(path, json={"about": "Hi", "remove_answers": True}), 60)
            assert found.status_code == 200
            assert found.json()["answers"] == 1
            next_one = await asyncio.wait_for(post("/v1/responses", json={"input": "More", **more}), 60)
            assert next_one.status_code == 200
            assert not slow.done()
            wanted.set()
            await asyncio.wait_for(slow, 60)
            events = [one for one in b"".join(sent).split(b"\n\n") if one]
            last = json.loads(events[-1].partition(b"data: ")[2])
            assert (last["type"], text_of(last["response"])) == ("response.completed", "One two three")

    asyncio.run(test())


def test_a_client_that_goes_away_ends_its_conversation_only(serve: Server) -> None:
    server = serve(plain("One two three " * 50, n_sequences=1))
    body = {"input": "Hi", "conversation": "anna", "stream": True}
    with server.client.stream("POST", "/v1/responses", json=body) as answer:
        next(answer.iter_lines())
    found = server.post("/v1/responses", input="More", conversation="anna", max_output_tokens=3)
    assert text_of(found) == "One"


# --- the real client ------------------------------------------------------------------------------------------


@pytest.fixture
def client(serve: Server) -> Any:
    """Return ``client(engine)``: OpenAI's client of a server with that engine."""
    openai = pytest.importorskip("openai", reason="openai is not installed")
    opened = []

    def connect(engine: Any, **settings: Any) -> Any:
        found = openai.OpenAI(base_url=serve(engine, **settings).url + "/v1", api_key="any", max_retries=0)
        opened.append(found)
        return found

    yield connect
    for one in opened:
        one.close()


def test_client_asks_streams_and_goes_on(client: Any) -> None:
    api = client(ScriptedEngine("Hello there"))
    first = api.responses.create(model="any", input="Hi", instructions="Be kind.")
    assert (first.output_text, first.status) == ("Hello there", "completed")
    with api.responses.stream(model="any", input="More", previous_response_id=first.id) as stream:
        text = "".join(one.delta for one in stream if one.type == "response.output_text.delta")
        final = stream.get_final_response()
    assert text == final.output_text == "Hello there"
    assert final.usage.input_tokens_details.cached_tokens > 0
    assert api.responses.retrieve(final.id).output_text == "Hello there"
    assert next(iter(api.responses.input_items.list(final.id))).content[0].text == "More"
    api.responses.delete(final.id)
    assert api.responses.input_tokens.count(model="any", input="Hi").input_tokens > 0


def test_client_uses_functions(client: Any) -> None:
    api = client(ScriptedEngine(CALL, CALL, "It is sunny."))
    with api.responses.stream(model="any", input="Hi", tools=[TOOL]) as stream:
        kinds_seen = [one.type for one in stream]
        final = stream.get_final_response()
    assert "response.function_call_arguments.delta" in kinds_seen
    first = api.responses.create(model="any", input="Hi", tools=[TOOL])
    for one in (first, final):
        assert json.loads(one.output[1].arguments) == {"city": "Rome"}
    result = {"type": "function_call_output", "call_id": first.output[1].call_id, "output": "Sunny"}
    last = api.responses.create(model="any", input=[result], tools=[TOOL], previous_response_id=first.id)
    assert last.output_text == "It is sunny."


def test_client_parses_what_a_schema_shaped(client: Any) -> None:
    import pydantic

    class City(pydantic.BaseModel):
        name: str

    api = client(plain('{"name": "Rome"}'))
    found = api.responses.parse(model="any", input="Hi", text_format=City)
    assert found.output_parsed == City(name="Rome")


def test_client_gets_thoughts(client: Any) -> None:
    api = client(plain("<think>Hm.</think>Hello", template=THINKING))
    with api.responses.stream(model="any", input="Hi") as stream:
        final = stream.get_final_response()
    assert [one.type for one in final.output] == ["reasoning", "message"]
    assert final.output[0].content[0].text == "Hm."
    again = api.responses.create(
        model="any",
        input=[{"role": "user", "content": "Hi"}, *final.output, {"role": "user", "content": "More"}],
    )
    assert again.output_text == "Hello"


def test_client_begins_a_conversation(client: Any) -> None:
    api = client(plain("Hello"))
    begun = api.conversations.create(metadata={"topic": "x"})
    api.responses.create(model="any", input="Hi", conversation=begun.id)
    assert [one.role for one in api.conversations.items.list(begun.id, order="asc")] == ["user", "assistant"]
    assert api.conversations.retrieve(begun.id).metadata == {"topic": "x"}
    assert api.conversations.delete(begun.id).deleted


def test_client_keeps_a_conversation(client: Any) -> None:
    api = client(plain("Hello"))
    first = api.responses.create(model="any", input="Hi", conversation="anna")
    second = api.responses.create(model="any", input="More", conversation="anna")
    assert second.conversation.id == "anna"
    assert second.usage.input_tokens > first.usage.total_tokens
    assert second.atlas["session_id"] == "anna"


def test_a_grammar_beside_tools_is_refused(serve: Server) -> None:
    server = serve(ScriptedEngine(CALL))
    choice = "required"
    body = {"input": "Hi", "tools": [TOOL], "tool_choice": choice, "grammar": "root ::= [a]"}
    answer = server.client.post("/v1/responses", json=body)
    assert answer.status_code == 400
    assert "grammar" in answer.json()["error"]["message"]


def test_llama_cpps_schema_is_a_form(serve: Server) -> None:
    engine = ScriptedEngine("{}", template=TEMPLATE, names=())
    serve(engine).post("/v1/responses", **{"input": "Hi", "json_schema": {"type": "object"}})
    assert engine.samplings[0].json_schema == {"type": "object"}


@pytest.mark.model
def test_llama_follows_a_schema_and_remembers(serve: Server, real: Any) -> None:
    server = serve(real("llama", n_ctx=256, n_batch=64))
    schema = {"type": "object", "properties": {"city": {"enum": ["Rome", "Bonn"]}}, "required": ["city"]}
    form = {"type": "json_schema", "name": "city", "schema": {**schema, "additionalProperties": False}}
    body = {"text": {"format": form}, "max_output_tokens": 200, "conversation": "anna"}
    first = server.post("/v1/responses", input="Hi", **body)
    assert json.loads(text_of(first))["city"] in ("Rome", "Bonn")
    second = server.post("/v1/responses", input="More", **body)
    assert second["usage"]["input_tokens_details"]["cached_tokens"] > first["usage"]["input_tokens"]
    assert second["atlas"]["tokens_seen"] > first["atlas"]["tokens_seen"]


def test_a_conversation_goes_on_after_a_restart(serve: Server, tmp_path: Any) -> None:
    first = serve(plain("One"), atlas_memory_dir=str(tmp_path))
    told = first.post("/v1/responses", input="My name is Anna.", conversation="anna")
    first.stop()
    second = serve(plain("Two"), atlas_memory_dir=str(tmp_path))
    found = second.post("/v1/responses", input="And yours?", conversation="anna")
    assert found["usage"]["input_tokens_details"]["cached_tokens"] >= told["usage"]["total_tokens"]
    assert found["atlas"]["tokens_seen"] > told["atlas"]["tokens_seen"]
    assert second.client.delete("/v1/conversations/anna").status_code == 200
    second.stop()
    third = serve(plain("Three"), atlas_memory_dir=str(tmp_path))
    assert third.client.get("/v1/conversations/anna").status_code == 404


def test_thoughts_end_in_time(serve: Server) -> None:
    server = serve(ScriptedEngine("<think>" + "a" * 50 + "</think>Yes.", template=THINKING))
    found = server.post("/v1/responses", input="Hi", thinking_budget=10, max_output_tokens=90)
    thought = next(item for item in found["output"] if item["type"] == "reasoning")
    assert thought["content"][0]["text"] == "a" * 10
    assert text_of(found) == "a" * 40 + "</think>Yes."


def test_an_id_can_be_gone_on_from_after_a_restart(serve: Server, tmp_path: Any) -> None:
    first = serve(plain("One", "Two"), atlas_memory_dir=str(tmp_path))
    told = first.post("/v1/responses", input="My name is Anna.", atlas={"session_id": "anna"})
    gone = first.post("/v1/responses", input="Secret")
    assert first.client.delete(f"/v1/responses/{gone['id']}").status_code == 200
    first.stop()
    second = serve(plain("Three"), atlas_memory_dir=str(tmp_path))
    assert second.client.get(f"/v1/responses/{told['id']}").json() == told
    assert second.client.get(f"/v1/responses/{gone['id']}").status_code == 404
    found = second.post("/v1/responses", input="And yours?", previous_response_id=told["id"])
    assert found["atlas"]["session_id"] == "anna"
    assert found["usage"]["input_tokens_details"]["cached_tokens"] >= told["usage"]["total_tokens"]
    listed = second.client.get(f"/v1/responses/{found['id']}/input_items").json()["data"]
    assert [one["content"][0]["text"] for one in listed] == ["And yours?"]


@pytest.mark.parametrize("atlas", [False, True])
def test_an_id_of_no_session_is_read_again_after_a_restart(serve: Server, tmp_path: Any, atlas: bool) -> None:
    first = serve(plain("One"), atlas_memory_dir=str(tmp_path))
    told = first.post("/v1/responses", input="My name is Anna.", atlas={"enabled": atlas})
    first.stop()
    second = serve(plain("Two"), atlas_memory_dir=str(tmp_path))
    found = second.post("/v1/responses", input="And yours?", previous_response_id=told["id"])
    assert found["usage"]["input_tokens"] > told["usage"]["total_tokens"]
    assert found["atlas"]["enabled"] is atlas


def test_what_was_said_in_a_conversation_is_listed_after_a_restart(serve: Server, tmp_path: Any) -> None:
    first = serve(plain("One"), atlas_memory_dir=str(tmp_path))
    name = first.post("/v1/conversations", metadata={"for": "Anna"})["id"]
    first.post("/v1/responses", input="Hi", conversation=name, store=False)
    first.client.post(
        f"/v1/conversations/{name}/items", json={"items": [{"role": "user", "content": "More"}]}
    )
    before = first.client.get(f"/v1/conversations/{name}/items").json()
    first.stop()
    second = serve(plain("Two"), atlas_memory_dir=str(tmp_path))
    assert second.client.get(f"/v1/conversations/{name}").json()["metadata"] == {"for": "Anna"}
    assert second.client.get(f"/v1/conversations/{name}/items").json() == before
    assert len(before["data"]) == 3


def test_nobody_finds_another_keys_answer_after_a_restart(serve: Server, tmp_path: Any) -> None:
    keys = {"api_key": ("one", "two"), "atlas_memory_dir": str(tmp_path)}
    first = serve(plain("One"), headers={"authorization": "Bearer one"}, **keys)
    told = first.post("/v1/responses", input="Hi")
    first.stop()
    second = serve(plain("Two"), headers={"authorization": "Bearer two"}, **keys)
    assert second.client.get(f"/v1/responses/{told['id']}").status_code == 404


@pytest.mark.parametrize(
    ("change", "status"),
    [
        ({"user": "half \ud800"}, 200),
        ({"metadata": {"a": "\ud800"}}, 200),
        ({"metadata": {"a": float("nan")}}, 200),
        ({"reasoning": {"effort": "\ud800"}}, 200),
        ({"tool_choice": {"type": "\ud800"}}, 400),
        ({"tool_choice": {"type": ["a"]}}, 400),
        ({"tool_choice": {"type": "allowed_tools", "tools": 3}}, 400),
        ({"input": [{"type": ["a"]}]}, 400),
        ({"input": [{"type": "message", "role": ["a"], "content": "x"}]}, 400),
        ({"input": [{"role": "user", "content": [{"type": ["a"]}]}]}, 400),
        ({"text": {"format": {"type": ["a"]}}}, 400),
    ],
)
def test_odd_values_are_no_failures(inside: Insider, change: Any, status: int) -> None:
    async def test() -> None:
        async with inside(plain("Hello")) as server:
            for stream in (False, True):
                body = json.dumps({"input": "Hi", **change, "stream": stream})
                headers = {"content-type": "application/json"}
                answer = await server.client.post("/v1/responses", content=body, headers=headers)
                assert answer.status_code == status or (stream and answer.status_code == 200), answer.text
                assert "internal_error" not in answer.text
                assert "NaN" not in answer.text

    asyncio.run(test())


def test_what_is_nested_too_deeply_is_the_requests_fault(inside: Insider) -> None:
    async def test() -> None:
        schema: Any = {"type": "object"}
        for _ in range(600):
            schema = {"a": schema}
        async with inside(plain("Hello")) as server:
            form = {"type": "json_schema", "name": "x", "schema": schema}
            for body in (
                {"input": "Hi", "text": {"format": form}},
                {"input": "Hi", "tools": [{"type": "function", "name": "f", "parameters": schema}]},
            ):
                answer = await server.client.post("/v1/responses", json=body)
                assert answer.status_code in (200, 400), answer.text

    asyncio.run(test())
