"""What chooses tokens is made beside the event loop: a grammar that takes long stops nobody else."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.sampling import Sampling
from atlas_kit.server.making import AT_ONCE, FEW, takes_long
from server.conftest import Insider
from server.scripted import ScriptedEngine
from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

GRAMMAR = {"grammar": 'root ::= "a"*'}
HI = [{"role": "user", "content": "Hi"}]
APIS: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "Hi", **GRAMMAR}),
    ("/v1/chat/completions", {"messages": HI, **GRAMMAR}),
    ("/v1/chat/completions", {"messages": HI, "n": 2, **GRAMMAR}),
    ("/v1/chat/completions", {"messages": HI, "response_format": {"type": "json_object"}}),
    ("/v1/messages", {"messages": HI, "max_tokens": 4, **GRAMMAR}),
    ("/v1/responses", {"input": "Hi", "text": {"format": {"type": "json_object"}}}),
    ("/completion", {"prompt": "Hi", **GRAMMAR}),
]


class Slow(ScriptedEngine):
    """Makes samplers of grammars as slowly as a test wants, and notes how many at once and where."""

    def __init__(self, **options: Any) -> None:
        super().__init__("Fine.", **options)
        self.go, self.began = threading.Event(), threading.Event()
        self.wrong = False
        self.inside = self.most = self.made = 0
        self.closed = 0
        self._lock = threading.Lock()

    def sampler(self, sampling: Any) -> Any:
        if not takes_long(sampling, 1):
            return super().sampler(sampling)
        assert threading.current_thread() is not threading.main_thread()
        with self._lock:
            self.inside += 1
            self.most = max(self.most, self.inside)
        self.began.set()
        assert self.go.wait(LONG)
        with self._lock:
            self.inside -= 1
            self.made += 1
        if self.wrong:
            raise InvalidParamError("there are too many ways to read a text by this grammar", key="grammar")
        found, engine = super().sampler(sampling), self
        close = found.close

        def closing() -> None:
            engine.closed += 1
            close()

        found.close = closing
        return found


async def until(what: Any) -> None:
    for _ in range(6000):
        if what():
            return
        await asyncio.sleep(0.01)
    raise AssertionError


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), APIS)
def test_others_are_answered_meanwhile(
    inside: Insider, path: str, body: dict[str, Any], stream: bool
) -> None:
    async def test() -> None:
        engine = Slow()
        async with inside(engine, metrics=True) as server:
            slow = asyncio.ensure_future(server.client.post(path, json={**body, "stream": stream}))
            await until(engine.began.is_set)
            other = await server.client.post("/v1/completions", json={"prompt": "Hi", "max_tokens": 2})
            assert other.json()["choices"][0]["text"] == "Fi"
            assert (await server.client.get("/metrics")).status_code == 200
            assert not slow.done()
            engine.go.set()
            assert (await slow).status_code == 200
            await until(lambda: not server.service.conversations.under_way)
            assert engine.closed >= engine.made

    asyncio.run(test())


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(("path", "body"), APIS)
def test_a_grammar_that_cannot_be_followed_is_refused_before_anything_is_sent(
    inside: Insider, path: str, body: dict[str, Any], stream: bool
) -> None:
    """Though every sequence is taken: it waits for none, and no session begins."""

    async def test() -> None:
        engine = Slow(n_sequences=1)
        engine.wrong = True
        engine.go.set()
        async with inside(engine) as server, server.service.conversations.borrowed("", "test"):
            asked = {**body, "stream": stream, "atlas": {"session_id": "anna"}}
            answer = await server.client.post(path, json=asked)
            assert answer.status_code == 400
            error = answer.json()["error"]
            assert "too many ways" in error["message"]
            assert error["type"] == "invalid_request_error"
            assert (await server.client.get("/v1/atlas/sessions")).json()["data"] == []
            assert server.service.conversations.waiting == 0

    asyncio.run(test())


def test_few_are_made_at_once_and_no_more_than_may_wait(inside: Insider) -> None:
    async def test() -> None:
        engine = Slow()
        async with inside(engine, max_queue=AT_ONCE + 2) as server:
            body = {"prompt": "Hi", "max_tokens": 1, **GRAMMAR}
            asked = [
                asyncio.ensure_future(server.client.post("/v1/completions", json=body)) for _ in range(12)
            ]
            await until(lambda: sum(one.done() for one in asked) == 12 - AT_ONCE - 2)
            assert {one.result().status_code for one in asked if one.done()} == {429}
            await until(lambda: engine.inside == AT_ONCE)
            engine.go.set()
            left = [(await one).status_code for one in asked]
            assert left.count(200) == AT_ONCE + 2
            assert engine.most == AT_ONCE

    asyncio.run(test())


def test_who_goes_away_meanwhile_leaves_nothing(inside: Insider) -> None:
    async def test() -> None:
        engine = Slow()
        async with inside(engine) as server:
            body = {"prompt": "Hi", "atlas": {"session_id": "anna"}, **GRAMMAR}
            leaves = asyncio.ensure_future(server.client.post("/v1/completions", json=body))
            await until(engine.began.is_set)
            leaves.cancel()
            await asyncio.wait({leaves})
            engine.go.set()
            await until(lambda: not server.service.conversations.under_way)
            assert engine.made == 1
            assert engine.closed == 1
            assert server.service.conversations.waiting == 0
            assert (await server.client.get("/v1/atlas/sessions")).json()["data"] == []

    asyncio.run(test())


def test_the_server_ends_when_it_is_made(inside: Insider) -> None:
    async def test() -> None:
        engine = Slow()
        async with inside(engine) as server:
            asked = asyncio.ensure_future(
                server.client.post("/v1/completions", json={"prompt": "Hi", **GRAMMAR})
            )
            await until(engine.began.is_set)
            stops = asyncio.ensure_future(server.service.stop())
            await asyncio.sleep(0.05)
            assert not stops.done()  # the model is not let go of while it is in use
            engine.go.set()
            await stops
            assert (await asked).status_code == 503

    asyncio.run(test())


def test_a_schema_becomes_a_grammar_beside_the_loop(inside: Insider, monkeypatch: pytest.MonkeyPatch) -> None:
    from atlas_kit.server import chat_answer

    threads: list[bool] = []
    dialogue_of = chat_answer.dialogue_of

    def noted(*args: Any) -> Any:
        threads.append(threading.current_thread() is threading.main_thread())
        return dialogue_of(*args)

    monkeypatch.setattr(chat_answer, "dialogue_of", noted)

    async def test() -> None:
        engine = Slow()
        engine.go.set()
        tool = {"type": "function", "function": {"name": "f"}}
        async with inside(engine) as server:
            for more in ({"response_format": {"type": "json_object"}}, {"tools": [tool]}, {}):
                body = {"messages": HI, "max_tokens": 1, **more}
                assert (await server.client.post("/v1/chat/completions", json=body)).status_code == 200

    asyncio.run(test())
    assert threads == [False, False, True]


def test_what_takes_long() -> None:
    assert not takes_long(Sampling(), 1 << 20)
    assert takes_long(Sampling(grammar="root ::= [a]"), 1)
    assert takes_long(Sampling(json_schema={"type": "object"}), 1)
    assert takes_long(Sampling(repeat_penalty=1.1, repeat_last_n=-1), FEW + 1)
    assert not takes_long(Sampling(repeat_penalty=1.1, repeat_last_n=-1), FEW)
