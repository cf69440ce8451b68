"""What a request leaves behind that was refused, or that went away before its turn: nothing."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path
from typing import Any

import pytest

from server.conftest import Insider, fake_engine

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

USER = {"messages": [{"role": "user", "content": "Hi"}]}
ANNA = {"atlas": {"session_id": "anna"}}
SMALL = {"max_tokens": 1, "temperature": 0}


async def sessions(server: Any) -> list[str]:
    found = (await server.client.get("/v1/atlas/sessions")).json()["data"]
    names = [one["id"] for one in found]
    assert sorted(names) == sorted(
        name for all_ in server.service.conversations.names._names.values() for name in all_
    )
    return names


BAD: list[tuple[str, dict[str, Any]]] = [
    ("/v1/completions", {"prompt": "a", "temperature": -1, **ANNA}),
    ("/v1/completions", {"prompt": "", "n": 2, **ANNA}),
    ("/v1/completions", {"prompt": [], **ANNA}),
    ("/v1/completions", {"prompt": [100_000], **ANNA}),
    ("/v1/completions", {"prompt": "a", "grammar": "root ::= nothing", **ANNA}),
    ("/v1/completions", {"prompt": "a", "best_of": 1, "n": 2, **ANNA}),
    ("/v1/completions", {"prompt": "a", "atlas": {"session_id": "anna", "memory_file": "none"}}),
    ("/v1/completions", {"prompt": "a", "atlas": {"session_id": "anna", "enabled": False}}),
    ("/v1/completions", {"prompt": "a", "atlas": {"session_id": "anna", "window_size": 1}}),
    ("/v1/chat/completions", {**USER, "response_format": {"type": "json_schema"}, **ANNA}),
    ("/v1/chat/completions", {**USER, "tools": [{"type": "function"}], **ANNA}),
    ("/v1/chat/completions", {"messages": [], **ANNA}),
    ("/v1/messages", {**USER, "max_tokens": -5, **ANNA}),
    ("/v1/messages", {"messages": [{"role": "nobody", "content": "a"}], "max_tokens": 1, **ANNA}),
    ("/completion", {"prompt": "a", "id_slot": 99, **ANNA}),
    ("/completion", {"prompt": "a", "n_probs": -1, **ANNA}),
    ("/infill", {"input_prefix": 7, **ANNA}),
    ("/v1/responses", {"input": [], "conversation": "anna"}),
    ("/v1/responses", {"input": "a", "conversation": "anna", "grammar": "root ::= nothing"}),
    ("/v1/responses", {"input": "a", "conversation": "anna", "background": True}),
    ("/v1/responses", {"input": "a", "conversation": "anna", "previous_response_id": "resp_1"}),
    ("/v1/responses", {"input": "a", "conversation": "anna", "tool_choice": "required"}),
    ("/v1/atlas/memory/load", {"session_id": "anna", "memory_file": "none"}),
    ("/v1/atlas/sessions/none/fork", {"session_id": "anna"}),
]  # fmt: skip


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_refused_begins_no_session(inside: Insider, tmp_path: Path, stream: bool) -> None:
    async def test() -> None:
        async with inside(fake_engine(), atlas_memory_dir=str(tmp_path)) as server:
            for path, body in BAD:
                answer = await server.client.post(path, json={**body, **({"stream": True} if stream else {})})
                assert 400 <= answer.status_code < 500, (path, body, answer.text)
                assert await sessions(server) == [], (path, body)
                assert (await server.client.get("/v1/conversations/anna")).status_code == 404, (path, body)

    asyncio.run(test())


@pytest.mark.parametrize("stream", [False, True])
def test_who_has_no_room_in_the_queue_begins_no_session(inside: Insider, stream: bool) -> None:
    async def test() -> None:
        async with inside(fake_engine(n_sequences=1), max_queue=0) as server:  # noqa: SIM117
            async with server.service.conversations.borrowed("", "test"):
                for path, body in (
                    ("/v1/chat/completions", {**USER, **ANNA}),
                    ("/v1/responses", {"input": "Hi", "conversation": "anna"}),
                    ("/v1/atlas/memory/load", {"session_id": "anna", "memory_file": "none"}),
                ):
                    answer = await server.client.post(path, json={**body, "stream": stream})
                    assert answer.status_code in (403, 429)
                    assert await sessions(server) == []
                    assert (await server.client.get("/v1/conversations/anna")).status_code == 404

    asyncio.run(test())


@pytest.mark.parametrize("begun", [False, True])
def test_who_goes_away_before_its_turn_leaves_no_session(inside: Insider, begun: bool) -> None:
    """But one that was there stays, whoever goes away."""

    async def test() -> None:
        async with inside(fake_engine(n_sequences=1)) as server:
            body = {"prompt": "a" * 100, **SMALL, **ANNA}
            if begun:
                await server.client.post("/v1/completions", json=body)
            async with server.service.conversations.borrowed("", "test"):
                asking = [
                    asyncio.ensure_future(server.client.post("/v1/completions", json=body)) for _ in range(2)
                ]
                while server.service.conversations.waiting < 2:
                    await asyncio.sleep(0.01)
                assert await sessions(server) == ["anna"]
                for one in asking:
                    one.cancel()
                    await asyncio.wait({one})
                    with contextlib.suppress(asyncio.CancelledError):
                        await one
                while server.service.conversations.under_way:
                    await asyncio.sleep(0.01)
                assert await sessions(server) == (["anna"] if begun else [])

    asyncio.run(test())


def test_who_waits_on_a_session_keeps_it(inside: Insider) -> None:
    """One that begins it goes away, and one that came behind is answered."""

    async def test() -> None:
        async with inside(fake_engine(n_sequences=1)) as server:
            body = {"prompt": "abc", **SMALL, **ANNA}
            async with server.service.conversations.borrowed("", "test"):
                first, second = [
                    asyncio.ensure_future(server.client.post("/v1/completions", json=body)) for _ in range(2)
                ]
                while server.service.conversations.waiting < 2:
                    await asyncio.sleep(0.01)
                first.cancel()
                await asyncio.wait({first})
            assert (await second).status_code == 200
            assert await sessions(server) == ["anna"]

    asyncio.run(test())


def test_a_refused_memory_leaves_nothing_of_its_session(inside: Insider, tmp_path: Path) -> None:
    """Where the memory is found and then there is no room for the request, its session goes again, too."""

    async def test() -> None:
        async with inside(fake_engine(n_sequences=1), atlas_memory_dir=str(tmp_path), max_queue=0) as server:
            body = {"prompt": "abc", **SMALL}
            bert = {"atlas": {"session_id": "bert", "memory_file": "kept", "save_memory": True}}
            saved = await server.client.post(
                "/v1/atlas/memory/save", json={"session_id": "bert", "memory_file": "kept"}
            )
            assert saved.status_code == 404
            assert (
                await server.client.post("/v1/completions", json={**body, "atlas": {"session_id": "bert"}})
            ).is_success
            saved = await server.client.post(
                "/v1/atlas/memory/save", json={"session_id": "bert", "memory_file": "kept"}
            )
            assert saved.is_success
            async with server.service.conversations.borrowed("", "test"):
                bert["atlas"]["session_id"] = "anna"
                assert (await server.client.post("/v1/completions", json={**body, **bert})).status_code == 429
            assert await sessions(server) == ["bert"]
            loaded = await server.client.post(
                "/v1/atlas/memory/load", json={"session_id": "anna", "memory_file": "kept"}
            )
            assert loaded.is_success
            async with server.service.conversations.borrowed("", "test"):
                assert (await server.client.post("/v1/completions", json={**body, **ANNA})).status_code == 429
            assert sorted(await sessions(server)) == ["anna", "bert"]

    asyncio.run(test())
