"""litellm, which speaks to servers in each of their APIs, with this one behind it; ``ATLAS_URL`` says where."""

from __future__ import annotations

import asyncio
import os

import litellm
import pytest

URL, OBLIGING = os.environ["ATLAS_URL"], os.environ["ATLAS_OBLIGING_URL"]
HI = [{"role": "user", "content": "Hi"}]
#: What litellm calls the servers that it knows, and where it looks for their API.
CHAT = {
    "openai": "/v1", "anthropic": "", "hosted_vllm": "/v1", "llamafile": "/v1", "lm_studio": "/v1",
    "openai/responses": "/v1", "text-completion-openai": "/v1",
}  # fmt: skip
TOOL = {
    "type": "function",
    "function": {
        "name": "magic_function",
        "description": "Applies a magic function.",
        "parameters": {"type": "object", "properties": {"input": {"type": "integer"}}, "required": ["input"]},
    },
}


def at(name, url=URL, **more):
    """Return the arguments for a server that litellm calls so."""
    said = {"model": f"{name}/any", "api_base": url + CHAT[name], "api_key": "secret", "num_retries": 0}
    return {**said, "messages": HI, **more}


@pytest.mark.parametrize("name", CHAT)
def test_a_chat(name):
    found = litellm.completion(**at(name, OBLIGING, max_tokens=20))
    assert found.choices[0].message.content == "It is so."
    assert found.usage.completion_tokens == 9
    chunks = litellm.completion(**at(name, OBLIGING, max_tokens=20, stream=True))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == "It is so."


@pytest.mark.parametrize("name", CHAT)
def test_a_chat_beside_others(name):
    async def all_of_them():
        asked = [litellm.acompletion(**at(name, OBLIGING, max_tokens=20)) for _ in range(4)]
        return [found.choices[0].message.content for found in await asyncio.gather(*asked)]

    assert asyncio.run(all_of_them()) == ["It is so."] * 4


@pytest.mark.parametrize("name", ["openai", "anthropic", "hosted_vllm", "openai/responses"])
def test_a_tool(name):
    asked = at(name, OBLIGING, tools=[TOOL], max_tokens=200)
    message = litellm.completion(**asked).choices[0].message
    [call] = message.tool_calls
    assert (call.function.name, call.function.arguments) == ("magic_function", '{"input": 3}')
    whole = litellm.stream_chunk_builder(list(litellm.completion(**asked, stream=True)))
    [call] = whole.choices[0].message.tool_calls
    assert (call.function.name, call.function.arguments) == ("magic_function", '{"input": 3}')
    asked["messages"] = [*HI, message, {"role": "tool", "tool_call_id": call.id, "content": "5"}]
    assert litellm.completion(**asked).choices[0].message.content == "It is so."


@pytest.mark.parametrize("name", CHAT)
def test_errors_have_their_classes(name):
    with pytest.raises(litellm.BadRequestError):
        litellm.completion(**at(name, temperature=-1))
    long = [{"role": "user", "content": "many words " * 20_000}]
    with pytest.raises(litellm.ContextWindowExceededError):
        litellm.completion(**at(name, messages=long, max_tokens=20))
    with pytest.raises(litellm.AuthenticationError):
        litellm.completion(**{**at(name), "api_key": "wrong"})


def test_a_form():
    schema = {
        "type": "object",
        "properties": {"n": {"enum": [7]}},
        "required": ["n"],
        "additionalProperties": False,
    }
    form = {"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}}
    found = litellm.completion(**at("openai", response_format=form, max_tokens=50))
    assert found.choices[0].message.content.replace(" ", "") == '{"n":7}'


def test_texts_vectors_responses_and_messages():
    said = {"api_base": f"{URL}/v1", "api_key": "secret"}
    found = litellm.text_completion(model="text-completion-openai/any", prompt="def", max_tokens=4, **said)
    assert found.usage.completion_tokens == 4
    found = litellm.embedding(model="openai/any", input=["a", "b"], **said)
    assert len({len(one["embedding"]) for one in found.data}) == 1
    found = litellm.responses(model="openai/any", input="Hi", max_output_tokens=16, **said)
    assert found.usage.output_tokens <= 16
    found = asyncio.run(
        litellm.anthropic.messages.acreate(
            model="anthropic/any", api_base=URL, api_key="secret", max_tokens=9, messages=HI
        )
    )
    assert found["usage"]["output_tokens"] <= 9
