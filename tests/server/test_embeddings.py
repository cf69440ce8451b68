"""Vectors of texts over HTTP, and the endpoints that are refused."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from typing import Any

import numpy as np
import pytest

from atlas_kit.llama import FakeEngine
from atlas_kit.llama.engine import Feed
from atlas_kit.llama.pooling import normalised, pooled_states
from atlas_kit.server.embedding import TextForm, embedded, text_form
from server.conftest import Insider, Server, fake_engine


def expected(text: str) -> list[float]:
    """Return what a text's vector is, decoded byte by byte."""
    engine = FakeEngine(n_ctx=256)
    states = []
    for position, token in enumerate(text.encode()):
        out = engine.decode([Feed(0, [token], position, 1)], hidden=True)[0].hidden
        assert out is not None
        states.append(out[0].astype(np.float64))
    mean = np.mean(states, axis=0)
    found: list[float] = (mean / np.linalg.norm(mean)).tolist()
    return found


def test_mean_of_the_states_of_each_text(serve: Server) -> None:
    server = serve()
    texts = [
        "to be or not to be",
        "x",
        "a text that is longer than half a batch of tokens is decoded in parts",
    ]
    found = server.post("/v1/embeddings", input=texts, model="any")
    assert [one["index"] for one in found["data"]] == [0, 1, 2]
    for one, text in zip(found["data"], texts, strict=True):
        assert one["object"] == "embedding"
        assert one["embedding"] == pytest.approx(expected(text), abs=1e-5)
    count = sum(map(len, texts))
    assert found["usage"] == {"prompt_tokens": count, "total_tokens": count}
    assert (found["object"], found["model"]) == ("list", "fake.gguf")


def test_text_and_its_tokens_give_the_same(serve: Server) -> None:
    server = serve()
    text = "abc def"
    shapes: list[Any] = [
        text, [text], list(text.encode()), [list(text.encode())], ["abc", 32, "def"],
        {"prompt_string": text}, [{"content": [{"type": "text", "text": "abc "}, {"type": "text", "text": "def"}]}],
    ]  # fmt: skip
    found = [server.post("/v1/embeddings", input=shape)["data"] for shape in shapes]
    assert all(one == found[0] for one in found)
    assert len(found[0]) == 1


def test_base64_is_the_same_numbers(serve: Server) -> None:
    server = serve()
    numbers = server.post("/v1/embeddings", input="abc")["data"][0]["embedding"]
    text = server.post("/v1/embeddings", input="abc", encoding_format="base64")["data"][0]["embedding"]
    assert list(struct.unpack(f"<{len(numbers)}f", base64.b64decode(text))) == numbers


def test_dimensions_cut_and_renormalise(serve: Server) -> None:
    server = serve()
    whole = np.asarray(server.post("/v1/embeddings", input="abc")["data"][0]["embedding"])
    cut = server.post("/v1/embeddings", input="abc", dimensions=5)["data"][0]["embedding"]
    assert cut == pytest.approx((whole[:5] / np.linalg.norm(whole[:5])).tolist(), abs=1e-6)


def states_of(text: str) -> Any:
    """Return the final states of a text's bytes (tokens, n_embd)."""
    engine = FakeEngine(n_ctx=256, n_batch=256)
    found = engine.decode([Feed(0, list(text.encode()), 0, len(text))], hidden=True)[0].hidden
    assert found is not None
    return found.copy()


@pytest.mark.parametrize(("pooling", "at"), [("last", -1), ("cls", 0)])
def test_the_state_of_one_token_stands_for_a_text(pooling: str, at: int, serve: Server) -> None:
    server, text = (
        serve(pooling=pooling),
        "a text that is longer than half a batch of tokens is decoded in parts",
    )
    found = server.post("/v1/embeddings", input=[text, "x"])["data"]
    for one, said in zip(found, (text, "x"), strict=True):
        state = states_of(said)[at]
        assert one["embedding"] == pytest.approx((state / np.linalg.norm(state)).tolist(), abs=1e-5)


def test_a_vector_for_each_token(serve: Server) -> None:
    server, text = (
        serve(pooling="none"),
        "a text that is longer than half a batch of tokens is decoded in parts",
    )
    found = server.post("/embeddings", input=[text, "x"])
    assert np.asarray(found[0]["embedding"]) == pytest.approx(states_of(text), abs=1e-5)
    assert np.asarray(found[1]["embedding"]).shape == (1, states_of("x").shape[1])
    refused = server.client.post("/v1/embeddings", json={"input": text})
    assert refused.status_code == 400
    assert "/embeddings" in refused.json()["error"]["message"]


@pytest.mark.parametrize(
    ("facts", "chosen", "pooling", "end"),
    [
        ({}, None, "mean", ()),
        ({"llama.pooling_type": 3, "tokenizer.ggml.add_eos_token": True}, None, "last", (2,)),
        ({"llama.pooling_type": 3, "tokenizer.ggml.add_eos_token": False}, "mean", "mean", ()),
        ({"llama.pooling_type": 4}, None, "mean", ()),
    ],
)
def test_how_texts_become_vectors_is_in_the_model_s_file(
    facts: dict[str, Any], chosen: str | None, pooling: str, end: tuple[int, ...], tmp_path: Any
) -> None:
    from atlas_kit.formats.gguf.edit import Set, edit_metadata
    from tools.make_random_model import make_model

    path = make_model(tmp_path / "m.gguf", "llama", size="tiny")
    edit_metadata(path, [Set("tokenizer.ggml.eos_token_id", 2, 4), *(Set(*one) for one in facts.items())])
    assert text_form(str(path), chosen) == TextForm(pooling, end)
    assert text_form("nowhere.gguf", chosen) == TextForm(chosen or "mean")


def test_a_token_that_ends_each_text(inside: Insider) -> None:
    async def test() -> None:
        async with inside(pooling="last") as server:
            server.service.text_form = TextForm("last", (33,))
            asked = ["ab", [97, 98, 33], [97, "b"], "ab!"]
            answer = await server.client.post("/v1/embeddings", json={"input": asked})
            first, *others = (one["embedding"] for one in answer.json()["data"])
            assert all(one == first for one in others[:2])
            assert others[2] != first
            assert (await server.client.post("/v1/embeddings", json={"input": ""})).status_code == 400

    asyncio.run(test())


@pytest.mark.parametrize(("norm", "size"), [(1, 1.0), (2, 1.0), (3, 1.0), (0, 32760.0)])
def test_norms(norm: int, size: float) -> None:
    vectors = np.array([[3.0, -4.0, 1e-3], [0.0, 0.0, 0.0]])
    found = normalised(vectors, norm)
    length = np.abs(found[0]).max() if norm == 0 else (np.abs(found[0]) ** norm).sum() ** (1 / norm)
    assert length == pytest.approx(size)
    assert found[1].tolist() == [0, 0, 0]
    assert normalised(vectors, -1) is vectors


def test_norm_of_a_request(serve: Server) -> None:
    server = serve()
    plain = np.asarray(server.post("/v1/embeddings", input="abc", embd_normalize=-1)["data"][0]["embedding"])
    usual = server.post("/v1/embeddings", input="abc")["data"][0]["embedding"]
    assert np.linalg.norm(plain) != pytest.approx(1)
    assert usual == pytest.approx((plain / np.linalg.norm(plain)).tolist(), abs=1e-6)


def test_native_shape(serve: Server) -> None:
    server = serve()
    one = server.post("/v1/embeddings", input="abc")["data"][0]["embedding"]
    shape = [{"index": 0, "embedding": [one]}]
    assert server.post("/embedding", content="abc") == shape
    assert server.post("/embeddings", input=["abc"]) == shape
    assert server.post("/v1/embeddings", content="abc") == shape


@pytest.mark.parametrize(
    ("body", "param", "code"),
    [
        ({}, "input", None),
        ({"input": ""}, "input", None),
        ({"input": []}, "input", None),
        ({"input": ["a", ""]}, "input", None),
        ({"input": 3}, "input", None),
        ({"input": [1, 257]}, "input", None),
        ({"input": [1, -1]}, "input", None),
        ({"input": [True]}, "input", None),
        ({"input": ["a"] * 2049}, "input", None),
        ({"input": {"content": "a"}}, "input", None),
        ({"input": {"content": [{"type": "image_url"}]}}, "input", None),
        ({"content": [{"prompt_string": "a", "multimodal_data": ["AAAA"]}]}, "input", None),
        ({"input": "a" * 257}, "input", "context_length_exceeded"),
        ({"input": "a", "dimensions": 33}, "dimensions", None),
        ({"input": "a", "dimensions": 0}, "dimensions", "invalid_value"),
        ({"input": "a", "encoding_format": "hex"}, "encoding_format", "invalid_value"),
        ({"input": "a", "embd_normalize": 65}, "embd_normalize", "invalid_value"),
        ({"input": "half \ud800"}, "input", None),
    ],
)
def test_what_cannot_be_embedded(inside: Insider, body: Any, param: str, code: str | None) -> None:
    async def test() -> None:
        async with inside() as server:
            answer = await server.client.post(
                "/v1/embeddings", content=json.dumps(body), headers={"content-type": "application/json"}
            )
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert (error["param"], error["code"]) == (param, code)

    asyncio.run(test())


def test_same_vector_beside_other_work(inside: Insider) -> None:
    async def test() -> None:
        async with inside(fake_engine(n_sequences=3)) as server:
            post = server.client.post
            body = {"input": ["one text of some length, which takes parts", "another"]}
            alone = (await post("/v1/embeddings", json=body)).json()
            writing = [
                post("/v1/completions", json={"prompt": "abc" * 9, "max_tokens": 40, "seed": seed})
                for seed in (1, 2)
            ]
            found = await asyncio.gather(*writing, *(post("/v1/embeddings", json=body) for _ in range(4)))
            assert all(one.status_code == 200 for one in found)
            assert all(one.json() == alone for one in found[2:])

    asyncio.run(test())


def test_leaves_nothing_behind(inside: Insider) -> None:
    async def test() -> None:
        async with inside(fake_engine(n_sequences=1), atlas=True) as server:

            async def write(prompt: str) -> Any:
                body = {"prompt": prompt, "max_tokens": 8, "temperature": 0, "atlas": {"session_id": "anna"}}
                return (await server.client.post("/v1/completions", json=body)).json()

            await write("abc" * 9)
            await server.client.post("/v1/embeddings", json={"input": "canary " * 9})
            conversations = server.service.conversations
            assert [slot.conversation for slot in conversations.slots] == [None]
            assert conversations.slots[0].session.context_tokens == ()
            again = await write("abc" * 9)
            assert again["usage"]["prompt_tokens_details"]["cached_tokens"] == 27
            assert again["atlas"]["tokens_seen"] < 60

    asyncio.run(test())


def test_nothing_goes_on_when_nobody_waits(inside: Insider) -> None:
    async def test() -> None:
        async with inside(fake_engine(n_sequences=1)) as server:
            conversations = server.service.conversations
            texts = [list(b"a text of some length, which takes parts")] * 2000
            task = asyncio.ensure_future(embedded(conversations, "", texts, server.service.metrics))
            while not len(server.service.scheduler):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert not len(server.service.scheduler)
            assert not conversations.under_way
            assert conversations.slots[0].session.context_tokens == ()
            assert (await server.client.post("/v1/embeddings", json={"input": "abc"})).status_code == 200

    asyncio.run(test())


def test_too_many_wait(inside: Insider) -> None:
    async def test() -> None:
        engine = fake_engine(n_sequences=1)
        async with inside(engine, max_queue=0) as server, server.service.conversations.borrowed("", "test"):
            assert (await server.client.post("/v1/embeddings", json={"input": "abc"})).status_code == 429

    asyncio.run(test())


def test_ended_early_leaves_an_empty_sequence() -> None:
    from atlas_kit.llama import AtlasSession

    engine = FakeEngine(n_ctx=256, n_batch=8)
    with AtlasSession(engine, None) as session:
        work = pooled_states(session, [list(b"a text in parts")], lambda: None)
        next(work)
        next(work)
        assert len(engine.save_sequence(session.sequence)) > 8
        work.close()
        assert len(engine.save_sequence(session.sequence)) == 8


def test_openai_client(serve: Server) -> None:
    openai = pytest.importorskip("openai", reason="openai is not installed")
    server = serve()
    client = openai.OpenAI(base_url=server.url + "/v1", api_key="any")
    found = client.embeddings.create(model="any", input=["abc", "abd"])  # asks for base64 by itself
    assert found.data[0].embedding == pytest.approx(expected("abc"), abs=1e-6)
    assert found.usage.prompt_tokens == 6
    client.close()


@pytest.mark.model
def test_llama_gives_the_mean_of_its_states(serve: Server, real: Any) -> None:
    engine = real("llama", n_ctx=64, n_batch=16)
    server = serve(engine)
    tokens = list(range(5, 35))
    found = server.post("/v1/embeddings", input=[tokens, tokens[:7], tokens])["data"]
    assert found[0]["embedding"] == found[2]["embedding"]
    short = np.asarray(found[1]["embedding"])
    assert np.linalg.norm(short) == pytest.approx(1, abs=1e-5)
    states = []
    for position, token in enumerate(tokens[:7]):
        states.append(engine.decode([Feed(0, [token], position, 1)], hidden=True)[0].hidden[0].copy())
    mean = np.mean(states, axis=0)
    assert short == pytest.approx(mean / np.linalg.norm(mean), abs=1e-3)


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("POST", "/rerank", 501),
        ("POST", "/v1/rerank", 501),
        ("POST", "/reranking", 501),
        ("POST", "/v1/reranking", 501),
        ("POST", "/props", 501),
        ("POST", "/lora-adapters", 501),
        ("POST", "/v1/audio/transcriptions", 501),
        ("POST", "/v1/images/generations", 501),
        ("POST", "/models/load", 501),
        ("GET", "/tools", 403),
        ("POST", "/cors-proxy", 403),
    ],
)
def test_refused_with_a_sentence(inside: Insider, method: str, path: str, status: int) -> None:
    async def test() -> None:
        async with inside() as server:
            answer = await server.client.request(method, path, **({"json": {}} if method == "POST" else {}))
            assert answer.status_code == status
            assert answer.json()["error"]["message"].endswith(".")

    asyncio.run(test())


def test_no_adapters(inside: Insider) -> None:
    async def test() -> None:
        async with inside() as server:
            assert (await server.client.get("/lora-adapters")).json() == []

    asyncio.run(test())
