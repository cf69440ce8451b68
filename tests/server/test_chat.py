"""``/v1/chat/completions`` with an engine that says what a test wants: every shape that clients read."""

from __future__ import annotations

import asyncio
import json
import time

import pytest

from server.conftest import TEMPLATE
from server.scripted import CHATML, ScriptedEngine

HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALLS = (
    'Well.\n<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>\n'
    '<tool_call>\n{"name": "add", "arguments": {"a": 2}}\n</tool_call>'
)


def data_of(text):
    """Return the events of a stream, which ends as it should."""
    assert text.endswith("data: [DONE]\n\n")
    return [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n")[:-2]]


@pytest.fixture
def ask(inside):
    """Return a function that asks a server whose engine says the scripts, and returns the answer."""

    def asked(*scripts, path="/v1/chat/completions", engine=None, status=200, settings=None, **body):
        async def run():
            made = ScriptedEngine(*(scripts or ("Hello!",)), **(engine or {}))
            async with inside(made, **(settings or {})) as server:
                answer = await server.client.post(path, json={"messages": HI, **body})
            assert answer.status_code == status, answer.text
            asked.engine = made
            return data_of(answer.text) if body.get("stream") and status == 200 else answer.json()

        return asyncio.run(run())

    return asked


def joined(chunks, index=0):
    """Return what the deltas of a choice add up to: reasoning, content, calls, and why it ended."""
    reasoning, content, calls, reason = "", "", [], None
    for chunk in chunks:
        for choice in chunk["choices"]:
            if choice["index"] != index:
                continue
            delta = choice["delta"]
            reasoning += delta.get("reasoning_content") or ""
            content += delta.get("content") or ""
            for call in delta.get("tool_calls", ()):
                if "id" in call:
                    assert call["index"] == len(calls)
                    calls.append([call["function"]["name"], ""])
                calls[call["index"]][1] += call["function"]["arguments"]
            reason = choice["finish_reason"] or reason
    return reasoning, content, calls, reason


def test_an_answer_in_one_piece(ask):
    found = ask("Hello!")
    assert found["object"] == "chat.completion"
    assert found["system_fingerprint"].startswith("b")
    [choice] = found["choices"]
    assert choice == {
        "index": 0,
        "message": {"role": "assistant", "content": "Hello!", "refusal": None},
        "logprobs": None,
        "finish_reason": "stop",
    }
    usage = found["usage"]
    assert usage["completion_tokens"] == 6
    assert usage["total_tokens"] == usage["prompt_tokens"] + 6
    assert usage["prompt_tokens_details"] == {"cached_tokens": 0}
    timings = found["timings"]
    assert (timings["prompt_n"], timings["predicted_n"]) == (usage["prompt_tokens"], 6)
    assert found["atlas"]["enabled"] is False


def test_a_stream_is_role_content_end_usage(ask):
    first, *middle, end, usage = ask("Hello!", stream=True, stream_options={"include_usage": True})
    assert first["choices"][0]["delta"] == {"role": "assistant", "content": None}
    assert "".join(chunk["choices"][0]["delta"]["content"] for chunk in middle) == "Hello!"
    assert all(chunk["choices"][0]["finish_reason"] is None for chunk in middle)
    assert (end["choices"][0]["delta"], end["choices"][0]["finish_reason"]) == ({}, "stop")
    assert end["atlas"]["enabled"] is False
    assert usage["choices"] == []
    assert usage["usage"]["completion_tokens"] == 6
    assert len({chunk["id"] for chunk in (first, *middle, end, usage)}) == 1
    assert "usage" not in ask("Hello!", stream=True)[-1]


def test_what_the_memory_did_stands_where_the_answer_ends(ask):
    *others, end, usage = ask(
        "Hello!", stream=True, stream_options={"include_usage": True}, atlas={"enabled": True}
    )
    assert end["choices"][0]["finish_reason"]
    assert end["atlas"]["enabled"] is True
    assert not any("atlas" in chunk for chunk in (*others, usage))


@pytest.mark.parametrize("memory", [False, True])
def test_the_progress_of_a_prompt(ask, memory):
    asked = {"messages": [{"role": "user", "content": "x" * 150}], "engine": {"n_ctx": 512, "n_batch": 64}}
    chunks = ask("Hello!", stream=True, return_progress=True, atlas={"enabled": memory}, **asked)
    told = [chunk["prompt_progress"] for chunk in chunks if "prompt_progress" in chunk]
    assert told == [chunk["prompt_progress"] for chunk in chunks[1 : 1 + len(told)]]  # behind the role
    read = [one["processed"] for one in told]
    assert len(read) > 2
    assert read == sorted(set(read))
    assert (read[0], read[-1], told[0]["time_ms"]) == (0, told[0]["total"], 0)
    assert {one["cache"] for one in told} == {0}
    assert joined(chunks)[1] == "Hello!"
    assert not any("prompt_progress" in chunk for chunk in ask("Hello!", stream=True, **asked))


@pytest.mark.parametrize(
    ("settings", "asked", "tells"),
    [
        ({}, {}, False),
        ({}, {"verbose": True}, True),
        ({"verbose": True}, {}, True),
        ({"verbose": True}, {"verbose": False}, False),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_the_prompt_as_the_model_reads_it_is_told_where_it_is_wanted(ask, settings, asked, tells, stream):
    found = ask("Hello!", stream=stream, settings=settings, n=2, seed=5, **asked)
    told = [one["__verbose"] for one in (found if stream else [found]) if "__verbose" in one]
    assert len(told) == tells * (2 if stream else 1)
    for number, one in enumerate(told):
        assert one["prompt"] == "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n"
        assert (one["content"], one["index"]) == ("Hello!", number)
        assert one["generation_settings"]["seed"] == 5 + number


def test_timings_per_token(ask):
    chunks = ask("Hello!", stream=True, timings_per_token=True)
    assert "timings" not in chunks[0]
    assert chunks[-2]["timings"]["predicted_n"] == 6


@pytest.mark.parametrize("limit", ["max_tokens", "max_completion_tokens", "n_predict"])
def test_a_limit_ends_an_answer(ask, limit):
    found = ask("Hello!", **{limit: 3})
    assert found["choices"][0]["message"]["content"] == "Hel"
    assert found["choices"][0]["finish_reason"] == "length"
    assert ask("Hello!", **{limit: 0})["choices"][0]["message"]["content"] == ""


@pytest.mark.parametrize("stop", ["lo", ["x", "lo"]])
def test_a_stop_string_ends_an_answer(ask, stop):
    found = ask("Hello!", stop=stop)["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ("Hel", "stop")
    assert joined(ask("Hello!", stop=stop, stream=True)) == ("", "Hel", [], "stop")


def test_tool_calls(ask):
    found = ask(CALLS, tools=[TOOL])["choices"][0]
    assert found["finish_reason"] == "tool_calls"
    assert found["message"]["content"] == "Well."
    calls = found["message"]["tool_calls"]
    assert [(call["type"], call["function"]) for call in calls] == [
        ("function", {"name": "add", "arguments": '{"a": 1}'}),
        ("function", {"name": "add", "arguments": '{"a": 2}'}),
    ]
    assert len({call["id"] for call in calls}) == 2
    chunks = ask(CALLS, tools=[TOOL], stream=True)
    assert all(chunk["choices"][0]["delta"] != {"content": ""} for chunk in chunks)
    wanted = ("", "Well.", [["add", '{"a": 1}'], ["add", '{"a": 2}']], "tool_calls")
    assert joined(chunks) == wanted
    for stream in (False, True):
        one = ask(CALLS, tools=[TOOL], parallel_tool_calls=False, stream=stream)
        calls = joined(one)[2] if stream else one["choices"][0]["message"]["tool_calls"]
        assert len(calls) == 1
    only = CALLS.removeprefix("Well.\n")
    assert ask(only, tools=[TOOL])["choices"][0]["message"]["content"] is None
    assert ask(CALLS)["choices"][0]["message"]["content"] == CALLS


def test_the_results_of_tools_are_read(ask):
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"a": 1}'}}
    messages = [
        *HI,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
    ]
    assert ask("Two.", messages=messages, tools=[TOOL])["choices"][0]["message"]["content"] == "Two."


def test_reasoning_is_split_off(ask):
    text = "<think>\nHm.\n</think>\n\nYes."
    message = ask(text)["choices"][0]["message"]
    assert (message["reasoning_content"], message["content"]) == ("Hm.", "Yes.")
    assert joined(ask(text, stream=True)) == ("Hm.", "Yes.", [], "stop")
    message = ask(text, reasoning_format="none")["choices"][0]["message"]
    assert message["content"] == text
    assert "reasoning_content" not in message
    assert ask(text, settings={"reasoning_format": "none"})["choices"][0]["message"] == message
    long = ask(text)["usage"]["prompt_tokens"]
    for asked in ({"reasoning_effort": "none"}, {"chat_template_kwargs": {"enable_thinking": False}}):
        assert ask(text, **asked)["usage"]["prompt_tokens"] > long


@pytest.mark.parametrize("atlas", [None, {"enabled": True, "window_size": 64}])
def test_several_answers_read_the_conversation_once(ask, atlas):
    body = {"n": 3, **({} if atlas is None else {"atlas": atlas})}
    found = ask("One", "Two", "Three", **body)
    assert [choice["message"]["content"] for choice in found["choices"]] == ["One", "Two", "Three"]
    assert [choice["index"] for choice in found["choices"]] == [0, 1, 2]
    usage = found["usage"]
    assert usage["completion_tokens"] == len("OneTwoThree")
    assert usage["prompt_tokens"] == ask("x")["usage"]["prompt_tokens"]
    assert ask.engine.decodes < 10
    chunks = ask("One", "Two", "Three", stream=True, stream_options={"include_usage": True}, **body)
    assert [joined(chunks, index)[1] for index in range(3)] == ["One", "Two", "Three"]
    assert chunks[-1]["usage"] == usage


@pytest.mark.parametrize("opened", [False, True])
def test_thoughts_have_a_budget(ask, opened):
    template = CHATML.replace("assistant\n' }}", "assistant\n<think>\n' }}") if opened else CHATML
    script = "a" * 50 + "</think>Yes." if opened else "<think>" + "a" * 50 + "</think>Yes."
    for budget in (0, 10, 100, -1):
        found = ask(script, thinking_budget=budget, max_tokens=90, engine={"template": template})
        message = found["choices"][0]["message"]
        used = 50 if budget < 0 else min(50, budget)
        assert message.get("reasoning_content", "") == "a" * used
        assert message["content"] == "a" * (50 - used) + ("</think>" if used < 50 else "") + "Yes."
    assert "reasoning_content" not in ask("Hello!", thinking_budget=3)["choices"][0]["message"]
    for asked, used in (
        ({}, 10),
        ({"thinking_budget": 20}, 20),
    ):  # the server's own holds where nothing is said
        engine, settings = {"template": template}, {"reasoning_budget": 10}
        found = ask(script, max_tokens=90, engine=engine, settings=settings, **asked)
        assert found["choices"][0]["message"]["reasoning_content"] == "a" * used


def test_several_answers_come_at_the_same_time(inside):
    class Counting(ScriptedEngine):
        most = 0

        def decode(self, feeds, **more):
            self.most = max(self.most, len(feeds))
            if self.most < 2:
                time.sleep(0.1)  # or the first is done before the second has its turn
            return super().decode(feeds, **more)

    async def run():
        engine = Counting("a" * 400, "b" * 400, n_sequences=2)
        async with inside(engine) as server:
            body = {"messages": HI, "n": 2, "stream": True}
            answer = await server.client.post("/v1/chat/completions", json=body)
        lines = [json.loads(line[6:]) for line in answer.text.splitlines() if line.startswith("data: {")]
        assert {choice["index"] for chunk in lines for choice in chunk["choices"]} == {0, 1}
        assert engine.most == 2  # what is decoded together is not one after the other

    asyncio.run(run())


def test_only_the_first_of_several_answers_is_remembered(inside):
    async def run(count):
        engine = ScriptedEngine("First", *["Other"] * (count - 1), "Again", n_sequences=1)
        async with inside(engine) as server:
            body = {"messages": HI, "n": count, "atlas": {"session_id": "s", "window_size": 64}}
            answer = (await server.client.post("/v1/chat/completions", json=body)).json()
            [conversation] = server.service.conversations.named.values()
            text = engine.shown(conversation.history)
            body["messages"] = [*HI, {"role": "assistant", "content": "First"}, *HI]
            again = (await server.client.post("/v1/chat/completions", json={**body, "n": 1})).json()
        assert text.endswith("assistant\nFirst")
        cached = again["usage"]["prompt_tokens_details"]["cached_tokens"]
        assert cached == answer["usage"]["prompt_tokens"] + len("First")
        return answer["atlas"], again["atlas"]["omega_loss"], again["atlas"]["tokens_seen"]

    assert asyncio.run(run(1)) == asyncio.run(run(3))


def test_logprobs_are_told_for_each_token_that_is_said(ask):
    for stream in (False, True):
        for atlas in ({"enabled": False}, {"enabled": True}):
            found = ask("Hé!", logprobs=True, top_logprobs=2, stream=stream, atlas=atlas)
            if stream:
                parts = [choice["logprobs"] for chunk in found for choice in chunk["choices"]]
                content = [entry for part in parts if part is not None for entry in part["content"]]
            else:
                content = found["choices"][0]["logprobs"]["content"]
            assert bytes(byte for entry in content for byte in entry["bytes"]).decode() == "Hé!"
            assert all(entry["logprob"] <= 0 and len(entry["top_logprobs"]) == 2 for entry in content)
            best = content[0]["top_logprobs"]
            assert best[0]["logprob"] >= best[1]["logprob"]


def test_logprobs_of_what_a_stop_string_swallowed_are_not_told(ask):
    for stream in (False, True):
        found = ask("Hello!", logprobs=True, stop="lo", stream=stream)
        choices = [choice for chunk in found for choice in chunk["choices"]] if stream else found["choices"]
        told = [
            one["token"] for choice in choices if choice["logprobs"] for one in choice["logprobs"]["content"]
        ]
        assert told == ["H", "e", "l"]


def test_a_model_without_a_template_answers(ask):
    found = ask(" Hello\nUser: more", engine={"template": None, "names": []})["choices"][0]
    assert (found["message"]["content"], found["finish_reason"]) == ("Hello", "stop")


def test_a_server_may_take_no_grammars(inside):
    async def run():
        async with inside(ScriptedEngine("{}", template=TEMPLATE, names=()), grammars=False) as server:
            for path, body in (
                ("/v1/chat/completions", {"messages": HI}),
                ("/v1/messages", {"messages": HI, "max_tokens": 9}),
                ("/v1/responses", {"input": "Hi"}),
                ("/v1/completions", {"prompt": "a"}),
                ("/completion", {"prompt": "a", "n_predict": 9}),
            ):
                answer = await server.client.post(path, json={**body, "grammar": 'root ::= "a"'})
                assert (path, answer.status_code) == (path, 403)
            schema = {"type": "json_object"}
            body = {"messages": HI, "response_format": schema, "grammar": ""}
            assert (await server.client.post("/v1/chat/completions", json=body)).status_code == 200

    asyncio.run(run())


def test_formats_of_answers_reach_the_sampler(ask):
    plain = {"template": "{% for m in messages %}{{ m.content }}{% endfor %}"}
    ask("{}", response_format={"type": "json_object"}, engine=plain)
    assert ask.engine.samplings[0].json_schema == {"type": "object"}
    schema = {"type": "object", "properties": {"a": {"type": "string"}}}
    ask("{}", json_schema=schema, engine=plain)
    assert ask.engine.samplings[0].json_schema == schema
    ask("aa", grammar='root ::= "a"+')
    assert ask.engine.samplings[0].grammar == 'root ::= "a"+'


def test_biases_have_several_forms(ask):
    for given in ({"65": 2, "66": False}, [[65, 2], [66, False]], [["A", 2], ["B", False]]):
        ask("x", logit_bias=given)
        assert ask.engine.samplings[0].logit_bias == {65: 2.0, 66: float("-inf")}


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1, -(2**63)])
def test_seeds(ask, seed):
    ask("x", seed=seed, n=2)
    first, second = ask.engine.samplings
    assert first.seed == (None if seed == -1 else seed)
    assert seed == -1 or first.seed != second.seed


@pytest.mark.parametrize(
    ("body", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": "Hi"}, "messages"),
        ({"messages": [{}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [*HI, {"role": "assistant", "content": "a"}, {"role": "assistant"}]}, "messages"),
        ({"functions": [{"name": "f"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"modalities": ["text", "audio"]}, "modalities"),
        ({"response_format": {"type": "sound"}}, "response_format.type"),
        ({"response_format": {"type": "json_object", "schema": 123}}, "response_format.schema"),
        ({"tools": [TOOL], "tool_choice": "never"}, "tool_choice"),
        ({"tools": [{"type": "retrieval"}]}, "tools.0"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"n": 17}, "n"),
        ({"n": 0}, "n"),
        ({"temperature": -1}, "temperature"),
        ({"max_tokens": -2}, "max_tokens"),
        ({"logit_bias": {"65": True}}, "logit_bias"),
        ({"add_generation_prompt": True, "continue_final_message": True}, "continue_final_message"),
        ({"continue_final_message": True}, "continue_final_message"),
        ({"grammar": "root ::= \"a\"", "response_format": {"type": "json_object"}}, "grammar"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_400_and_costs_nothing(ask, body, param):
    for stream in (False, True):
        error = ask(status=400, stream=stream, **body)["error"]
        assert error["param"] == param
        assert error["type"] == "invalid_request_error"
        assert ask.engine.decodes == 0


@pytest.mark.parametrize(
    "body",
    [
        {"user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto", "verbosity": "low"},
        {"prediction": None, "modalities": ["text"], "safety_identifier": "x", "prompt_cache_key": "y"},
        {"parallel_tool_calls": False, "web_search_options": {}, "tool_choice": "none", "tools": []},
        {"temperature": None, "stop": None, "n": None, "logit_bias": None, "tools": None, "seed": None},
        {"logprobs": False, "top_k": -1, "stream_options": None, "response_format": {"type": "text"}},
    ],
)
def test_every_property_of_openai_s_schema_is_accepted(ask, body):
    assert ask(**body)["choices"][0]["message"]["content"] == "Hello!"


def test_a_conversation_that_does_not_fit(ask):
    long = [{"role": "user", "content": "x" * 600}]
    small = {"n_ctx": 512, "n_batch": 64}
    error = ask(status=400, messages=long, engine=small)["error"]
    assert error["code"] == "context_length_exceeded"
    assert error["type"] == "exceed_context_size_error"  # what llama-server's clients look for
    assert error["n_ctx"] == 512 < error["n_prompt_tokens"]
    found = ask("Hello!", messages=long, engine=small, atlas={"enabled": True, "window_size": 64})
    assert found["choices"][0]["message"]["content"] == "Hello!"


def test_an_answer_that_fills_the_context_ends_there_and_goes_on_with_a_memory(ask):
    small = {"n_ctx": 128, "n_batch": 64, "n_sequences": 1}
    found = ask("a" * 1000, engine=small, max_tokens=500)
    assert found["choices"][0]["finish_reason"] == "length"
    assert found["usage"]["total_tokens"] == 128
    found = ask("a" * 1000, engine=small, max_tokens=500, atlas={"enabled": True, "window_size": 64})
    assert found["usage"]["completion_tokens"] == 500
    assert found["atlas"]["left_context_tokens"] > 0


def test_an_answer_without_a_limit_ends_with_the_context_s_length(ask):
    small = {"n_ctx": 128, "n_batch": 64}
    found = ask("a" * 1000, engine=small, atlas={"enabled": True, "window_size": 64})
    assert found["usage"]["completion_tokens"] == 128


def test_tokens_can_be_counted(ask):
    count = ask(path="/v1/chat/completions/input_tokens")["input_tokens"]
    assert ask.engine.decodes == 0
    assert count == ask()["usage"]["prompt_tokens"]
    assert ask(path="/v1/chat/completions/input_tokens", tools=[TOOL])["input_tokens"] > count


def test_an_error_in_a_stream_is_an_event(inside):
    class Failing(ScriptedEngine):
        def decode(self, feeds, *, hidden=False):
            if self.decodes > 4:
                raise RuntimeError("secret /path")
            return super().decode(feeds, hidden=hidden)

    async def run():
        async with inside(Failing("Hello, world")) as server:
            body = {"messages": HI, "stream": True, "n": 2}
            answer = await server.client.post("/v1/chat/completions", json=body)
        return answer.text

    last = asyncio.run(run()).strip().split("\n\n")[-1]
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (error["type"], error["code"]) == ("server_error", "internal_error")
    assert "secret" not in last


# --- with the sample model ------------------------------------------------------------------------------------


@pytest.fixture
def sample(inside, repository):
    """Return a function that asks a server of the sample model, with a memory or without."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from atlas_kit.llama.llama_engine import LlamaEngine

    def asked(*bodies, **settings):
        async def run():
            path = repository / "sample_data" / "models" / "tiny-python.gguf"
            engine = LlamaEngine(path, n_ctx=512, n_sequences=2, n_threads=1)
            async with inside(engine, **settings) as server:
                found = []
                for body in bodies:
                    body = {"messages": HI, "max_tokens": 40, "seed": 1, **body}
                    answer = await server.client.post("/v1/chat/completions", json=body)
                    assert answer.status_code == 200, answer.text
                    found.append(data_of(answer.text) if body.get("stream") else answer.json())
            return found

        return asyncio.run(run())

    return asked


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("atlas", [False, True])
def test_the_sample_model_calls_a_tool_that_it_must_call(sample, atlas):
    schema = {
        "type": "object",
        "properties": {"city": {"enum": ["Rome", "Oslo"]}, "days": {"type": "integer", "maximum": 9}},
        "required": ["city", "days"],
        "additionalProperties": False,
    }
    tools = [{"type": "function", "function": {"name": "weather", "parameters": schema}}, TOOL]
    named = {"type": "function", "function": {"name": "weather"}}
    body = {"tools": tools, "max_tokens": 200}
    required, chosen, streamed = sample(
        {**body, "tool_choice": "required", "parallel_tool_calls": False},
        {**body, "tool_choice": named, "parallel_tool_calls": True},
        {**body, "tool_choice": named, "stream": True},
        atlas=atlas,
    )
    assert required["choices"][0]["finish_reason"] == "tool_calls"
    [call] = chosen["choices"][0]["message"]["tool_calls"]
    arguments = json.loads(call["function"]["arguments"])
    assert call["function"]["name"] == "weather"
    assert set(arguments) == {"city", "days"}
    assert arguments["city"] in ("Rome", "Oslo")
    _, content, [[name, text]], reason = joined(streamed)
    assert (content, name, reason) == ("", "weather", "tool_calls")
    assert set(json.loads(text)) == {"city", "days"}


@pytest.mark.model
@pytest.mark.parametrize("atlas", [False, True])
def test_the_sample_model_follows_a_schema(sample, atlas):
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema, "strict": True}}
    [found] = sample({"response_format": form, "n": 2, "logprobs": True}, atlas=atlas)
    for choice in found["choices"]:
        assert set(json.loads(choice["message"]["content"])) == {"ok"}
        told = b"".join(bytes(one["bytes"]) for one in choice["logprobs"]["content"])
        assert told.decode() == choice["message"]["content"]


@pytest.mark.model
def test_equal_seeds_give_equal_answers_and_the_second_of_two_is_another(sample):
    body = {"n": 2, "temperature": 1, "seed": 7}
    first, second = sample(body, body)
    texts = [[choice["message"]["content"] for choice in one["choices"]] for one in (first, second)]
    assert texts[0] == texts[1]
    assert texts[0][0] != texts[0][1]


@pytest.mark.model
def test_a_copy_goes_on_as_the_session_itself_does(sample):
    for atlas in (False, True):
        [found] = sample({"n": 2, "temperature": 0}, atlas=atlas)
        one, other = (choice["message"]["content"] for choice in found["choices"])
        assert one == other
