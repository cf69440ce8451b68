"""OpenAI's own Python client, with a server behind a listener; and clients that go away."""

from __future__ import annotations

import asyncio
import json
import socket

import pytest

from server.conftest import busy
from server.scripted import ObligingEngine, ScriptedEngine
from tests.waiting import until

openai = pytest.importorskip("openai", reason="the openai package is not installed")

HI = [{"role": "user", "content": "Hi"}]
TOOL = {
    "type": "function",
    "function": {"name": "add", "parameters": {"type": "object", "properties": {"a": {"type": "integer"}}}},
}
CALL = '<tool_call>\n{"name": "add", "arguments": {"a": 1}}\n</tool_call>'


@pytest.fixture
def connect(serve):
    """Return a function that starts a server whose engine says the scripts, and returns a client of it."""
    clients = []

    def connected(*scripts, **options):
        server = serve(ScriptedEngine(*(scripts or ("Hello!",)), **options), api_key=("secret",))
        clients.append(openai.OpenAI(base_url=f"{server.url}/v1", api_key="secret", max_retries=0))
        connected.server = server
        return clients[-1]

    yield connected
    for client in clients:
        client.close()


def test_a_chat(connect):
    client = connect("Hello!", "<think>Hm</think>Yes")
    found = client.chat.completions.create(model="any", messages=HI)
    assert found.choices[0].message.content == "Hello!"
    assert found.choices[0].message.refusal is None
    assert found.usage.prompt_tokens_details.cached_tokens == 0
    assert found.atlas["enabled"] is False
    found = client.chat.completions.create(model="any", messages=HI, reasoning_effort="low")
    assert found.choices[0].message.reasoning_content == "Hm"


def test_a_chat_as_it_comes(connect):
    client = connect("Hello!", CALL)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(model="m", messages=HI, stream=True, stream_options=options))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks[:-1]) == "Hello!"
    assert (chunks[-1].choices, chunks[-1].usage.completion_tokens) == ([], 6)
    with client.chat.completions.stream(model="m", messages=HI, tools=[TOOL]) as stream:
        for _ in stream:
            pass
        message = stream.get_final_completion().choices[0].message
    [call] = message.tool_calls
    assert (call.function.name, json.loads(call.function.arguments)) == ("add", {"a": 1})


def test_a_parsed_answer(connect):
    pydantic = pytest.importorskip("pydantic")

    class Point(pydantic.BaseModel):
        x: int

    client = connect('{"x": 3}', template="{% for m in messages %}{{ m.content }}{% endfor %}")
    found = client.chat.completions.parse(model="m", messages=HI, response_format=Point)
    assert found.choices[0].message.parsed == Point(x=3)


def test_completions_and_models(connect):
    client = connect("one", "two")
    found = client.completions.create(model="m", prompt="ab", n=2, logprobs=1, echo=True)
    assert [choice.text for choice in found.choices] == ["abone", "abtwo"]
    assert found.choices[0].logprobs.tokens == list("abone")
    texts = ["", ""]
    for chunk in client.completions.create(model="m", prompt=["a", "b"], stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
    assert texts == ["two", "two"]
    [model] = client.models.list().data
    assert client.models.retrieve(model.id).id == model.id


def test_errors_have_their_classes(connect):
    client = connect()
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model="m", messages=HI, temperature=-1)
    assert caught.value.param == "temperature"
    with pytest.raises(openai.BadRequestError) as caught:
        client.completions.create(model="m", prompt="x" * 5000, stream=True)
    assert caught.value.code == "context_length_exceeded"
    with pytest.raises(openai.AuthenticationError):
        client.with_options(api_key="wrong").chat.completions.create(model="m", messages=HI)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("unknown")


def test_a_full_queue_has_its_class(serve):
    server = serve(ScriptedEngine("x", n_sequences=1), max_queue=0)
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client, busy(server):
        with pytest.raises(openai.RateLimitError) as caught:
            client.chat.completions.create(model="m", messages=HI)
        assert caught.value.code == "too_many_requests"
        assert int(caught.value.response.headers["retry-after"]) > 0
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="m", input="Hi", stream=True)


def test_the_client_that_does_not_wait(serve):
    server = serve(ObligingEngine({"add": {"a": 1}}, n_sequences=2))

    async def test():
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=0) as client:
            asked = [client.chat.completions.create(model="m", messages=HI) for _ in range(5)]
            for found in await asyncio.gather(*asked):
                assert found.choices[0].message.content == "It is so."
            async with client.chat.completions.stream(model="m", messages=HI, tools=[TOOL]) as stream:
                kinds = [event.type async for event in stream]
            assert "tool_calls.function.arguments.done" in kinds
            async with client.responses.stream(model="m", input="Hi") as stream:
                assert (await stream.get_final_response()).output_text == "It is so."
            found = await client.embeddings.create(model="m", input=["a", "b"])
            assert [one.index for one in found.data] == [0, 1]
            assert [model.id async for model in client.models.list()] == ["fake.gguf"]

    asyncio.run(test())


def settled(server):
    """Wait until nothing is under way, and return how often was decoded; a test that waits for long has failed."""
    until(lambda: not len(server.service.scheduler))
    return server.service.engine.decodes


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("n", [1, 3])
def test_a_client_that_goes_away_frees_its_slots(serve, stream, n):
    engine = ScriptedEngine("a" * 100_000, n_ctx=1 << 20)
    server = serve(engine)
    body = json.dumps({"messages": HI, "stream": stream, "max_tokens": 100_000, "n": n}).encode()
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as client:
        head = "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
        client.sendall(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        if stream:
            assert client.recv(64)
        until(lambda: engine.decodes >= 5)
    done = settled(server)
    assert done < 50_000
    until(lambda: not any(slot.busy for slot in server.service.conversations.slots))
    found = server.post("/v1/chat/completions", messages=HI, max_tokens=2)
    assert found["usage"]["completion_tokens"] == 2


def test_a_client_that_reads_slowly_holds_nobody_up(serve):
    server = serve(ScriptedEngine("a" * 2000))
    with server.client.stream("POST", "/v1/chat/completions", json={"messages": HI, "stream": True}) as slow:
        lines = slow.iter_lines()
        assert next(lines).startswith("data: ")
        found = server.post("/v1/chat/completions", messages=HI, max_tokens=5)
        assert found["usage"]["completion_tokens"] == 5
        assert list(lines)[-2:] == ["data: [DONE]", ""]
