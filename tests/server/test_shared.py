"""Servers that share a store, in one process: sessions go from one to the other, and neither forgets or mixes any."""

from __future__ import annotations

import asyncio
import contextlib
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import FileAccessError, LockedError
from atlas_kit.server import shared_claims
from atlas_kit.server.leases import Leases
from atlas_kit.storage.objects import OtherObjects, objects_at
from server.conftest import Inside, Insider
from server.test_conversations import turns

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
pytest.importorskip("fsspec", reason="needs the cloud extra")

SMALL = {"max_tokens": 4, "temperature": 0}


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/memories"


@pytest.fixture
def replica(inside: Insider, address: str, tmp_path: Path) -> Any:
    """Return what starts a server with a name; each name has a spool of its own."""

    @contextlib.asynccontextmanager
    async def start(name: str, **settings: Any) -> AsyncIterator[Inside]:
        given = {
            "atlas_memory_dir": address, "atlas_memory_spool": str(tmp_path / name), "atlas_lease_seconds": 4.0,
            "atlas_replica_name": name,
        }  # fmt: skip
        async with inside(**{**given, **settings}) as server:
            yield server

    return start


async def say(server: Inside, prompt: str, session: str = "anna", status: int = 200, **more: Any) -> Any:
    body = {"prompt": prompt, **SMALL, "atlas": {"session_id": session, **more}}
    answer = await server.client.post("/v1/completions", json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


async def history(server: Inside, session: str = "anna") -> str:
    """Return what a session has read last, as text."""
    tokens = await server.service.history_of("", session)
    return b"".join(map(server.service.engine.piece, tokens)).decode("utf-8", "replace")


async def names(server: Inside) -> set[str]:
    found = await server.client.get("/v1/atlas/sessions")
    return {one["id"] for one in found.json()["data"]}


async def status(server: Inside) -> dict[str, Any]:
    found: dict[str, Any] = (await server.client.get("/v1/atlas/status")).json()["store"]
    return found


def test_a_session_goes_where_it_is_asked_for(replica: Any) -> None:
    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            await say(one, "a word that only one has heard")
            said = await history(one)
            assert "only one" in said
            for _ in range(2):
                assert await history(two) == said
                await say(two, said + " and two")
                said = await history(two)
                assert await history(one) == said
                await say(one, said + " and one")
                said = await history(one)
            assert said.count("and two") == said.count("and one") == 2
            assert await names(one) == await names(two) == {"anna"}

    asyncio.run(test())


def test_a_clock_that_is_put_back_keeps_no_session(replica: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ahead:
        """The time of day, an hour ahead."""

        time = staticmethod(lambda: time.time() + 3600)

    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            with monkeypatch.context() as patch:
                patch.setattr(shared_claims, "time", Ahead)
                await say(one, "a word")
            assert "a word" in await history(two)

    asyncio.run(test())


def test_sessions_outlive_all_servers(replica: Any, tmp_path: Path) -> None:
    async def test() -> None:
        async with replica("one") as one:
            await say(one, "what is to be kept")
            said = await history(one)
        assert not list((tmp_path / "one").rglob("*.atlas"))
        async with replica("three") as three:
            assert await names(three) == {"anna"}
            assert await history(three) == said

    asyncio.run(test())


def test_one_that_is_deleted_is_gone_for_all(replica: Any) -> None:
    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            await say(one, "a secret", save_memory=True)
            assert await names(two) == {"anna"}
            assert (await two.client.delete("/v1/atlas/sessions/anna")).status_code == 200
            assert await names(one) == await names(two) == set()
            for name in ("anna", "nobody"):  # who only asks for one begins none
                assert (await one.client.get(f"/v1/atlas/sessions/{name}")).status_code == 404
            store = two.service.store
            assert store is not None
            assert len(store.objects.listed("sessions")) == 1
            await say(one, "something else")
            assert "secret" not in await history(two)
            assert len(store.objects.listed("states")) <= 1

    asyncio.run(test())


def test_a_session_that_is_at_work_elsewhere_is_waited_for_and_then_refused(
    replica: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_claims, "PATIENCE", 0.1)

    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            await say(one, "a begin")
            conversation = await one.service.session("", "anna")
            async with one.service.conversations.resting(conversation):
                refused = await say(two, "a word", status=503)
            assert refused["error"]["code"] == "session_elsewhere"
            assert "one" in refused["error"]["message"]
            shared_claims.PATIENCE = 10.0
            await say(two, "a begin and more")

    asyncio.run(test())


def test_who_lost_a_session_in_the_middle_of_an_answer_says_so_and_keeps_nothing(replica: Any) -> None:
    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            await say(one, "the beginning", save_memory=True)
            kept = await history(one)
            leases: Leases = two.service.store.leases
            late = one.service.conversations.named[next(iter(one.service.conversations.named))]
            async with one.service.conversations.resting(late):  # as one that is paused
                task = asyncio.ensure_future(say(one, "stale", status=503))
                await turns()
                leases.is_alive = lambda other: False  # type: ignore[method-assign]
                await say(two, kept + " goes on", save_memory=True)
                one.service.store.leases._beaten = float("-inf")
            refused = await task
            assert refused["error"]["code"] in ("session_moved", "file_in_use", "session_elsewhere")
            del leases.is_alive
            assert "stale" not in await history(one)
            assert "goes on" in await history(one)

    asyncio.run(test())


class Switch:
    """A store that can be away."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.away = False
        for name in ("read", "put", "fetch", "delete", "listed"):
            monkeypatch.setattr(OtherObjects, name, self._guarded(getattr(OtherObjects, name)))

    def _guarded(self, function: Any) -> Any:
        def guarded(*given: Any, **more: Any) -> Any:
            if self.away:
                raise FileAccessError("the store cannot be reached")
            return function(*given, **more)

        return guarded


@pytest.fixture
def switch(monkeypatch: pytest.MonkeyPatch) -> Switch:
    return Switch(monkeypatch)


def test_while_the_store_is_away_the_server_goes_on_and_tells(replica: Any, switch: Switch) -> None:
    async def test() -> None:
        async with replica("one") as one:
            await say(one, "before", save_memory=True)
            assert (await status(one))["reachable"]
            switch.away = True
            told = await say(one, "before and meanwhile", save_memory=True)
            assert told["atlas"]["saved"] is False
            assert "store" in told["atlas"]["problem"]
            found = await status(one)
            assert (found["reachable"], found["waiting"]) == (False, 1)
            assert (await one.client.get("/ready")).json()["store"] == {"reachable": False, "waiting": 1}
            scraped = (await one.client.get("/metrics")).text
            assert "store_reachable 0.0" in scraped
            refused = await say(one, "who are you", session="bert", status=503)
            assert refused["error"]["code"] == "store_away"
            plain = await one.client.post("/v1/completions", json={"prompt": "nobody", **SMALL})
            assert plain.status_code == 200
            switch.away = False
            while (await status(one))["waiting"]:
                await asyncio.sleep(0.05)
            assert (await status(one))["reachable"]
            await say(one, "who are you", session="bert")
        async with replica("two") as two:
            assert "meanwhile" in await history(two)

    asyncio.run(test())


def test_what_the_store_did_not_take_waits_for_the_next_server(
    replica: Any, switch: Switch, caplog: pytest.LogCaptureFixture
) -> None:
    async def test() -> None:
        async with replica("one") as one:
            await say(one, "before", save_memory=True)
            switch.away = True
            await say(one, "before and meanwhile")
        assert one.service.unput == 1
        assert "stays in" in caplog.text
        async with replica("one") as one:  # still away
            assert "meanwhile" in await history(one)
        switch.away = False
        async with replica("one") as one:
            while (await status(one))["waiting"]:
                await asyncio.sleep(0.05)
        async with replica("two") as two:
            assert "meanwhile" in await history(two)

    asyncio.run(test())


def test_where_the_store_has_moved_on_both_are_kept(replica: Any, switch: Switch) -> None:
    async def test() -> None:
        async with replica("one") as one:
            await say(one, "before", save_memory=True)
            switch.away = True
            await say(one, "before and meanwhile")
        switch.away = False
        async with replica("two") as two:
            await say(two, "before and elsewhere", save_memory=True)
            async with replica("one") as one:
                while (await status(one))["waiting"]:
                    await asyncio.sleep(0.05)
                assert "elsewhere" in await history(one)
                assert "meanwhile" not in await history(one)
            aside = two.service.store.objects.listed("aside")
            assert len(aside) == 1

    asyncio.run(test())


def test_a_store_that_is_away_from_the_start_keeps_no_server_from_starting(
    replica: Any, switch: Switch
) -> None:
    async def test() -> None:
        switch.away = True
        async with replica("one") as one:
            await say(one, "hello", status=503)
            switch.away = False
            one.service.store.try_again()
            while not (await status(one))["reachable"]:
                await asyncio.sleep(0.05)
            await say(one, "hello")

    asyncio.run(test())


# --- memories under names of their own --------------------------------------------------------------------


def test_memories_that_clients_save_are_there_for_all(replica: Any, switch: Switch) -> None:
    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            await say(one, "what anna knows")
            saved = await one.client.post(
                "/v1/atlas/memory/save", json={"session_id": "anna", "memory_file": "kept"}
            )
            assert saved.status_code == 200, saved.text
            listed = (await two.client.post("/v1/atlas/memory/list")).json()["data"]
            assert [(row["memory_file"], row["fits"]) for row in listed] == [("kept.atlas", True)]
            load = {"session_id": "carl", "memory_file": "kept"}
            assert (await two.client.post("/v1/atlas/memory/load", json=load)).status_code == 200
            assert "what anna knows" in await history(two, "carl")
            switch.away = True
            refused = await two.client.post(
                "/v1/atlas/memory/save", json={"session_id": "carl", "memory_file": "late"}
            )
            assert refused.status_code == 507
            switch.away = False
            while (await status(two))["waiting"]:
                await asyncio.sleep(0.05)
            one.service.store.try_again()
            assert len((await one.client.post("/v1/atlas/memory/list")).json()["data"]) == 2
            assert (
                await one.client.post("/v1/atlas/memory/delete", json={"memory_file": "kept"})
            ).status_code == 200
            assert (await two.client.post("/v1/atlas/memory/load", json=load)).status_code == 404

    asyncio.run(test())


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_shared_memory_may_be_at_an_address(
    replica: Any, address: str, switch: Switch, kind: str
) -> None:
    settings: dict[str, Any] = (
        {"atlas_memory_file": f"{address}/all.atlas", "atlas_memory_dir": None}
        if kind == "file"
        else {"atlas_memory_persist": True}
    )
    name = "all.atlas" if kind == "file" else "fake_memory.atlas"

    async def tell(server: Inside, prompt: str) -> Any:
        body = {"prompt": prompt, **SMALL, "atlas": {"save_memory": True}}
        return (await server.client.post("/v1/completions", json=body)).json()["atlas"]

    async def learned(server: Inside) -> int:
        found = (await server.client.get("/v1/atlas/memory")).json()["memory"]["tokens_seen"]
        assert isinstance(found, int)
        return found

    async def test() -> None:
        async with replica("one", **settings) as one:
            assert (await tell(one, "what all know"))["saved"]
            first = await learned(one)
            with pytest.raises(LockedError, match="one"):
                async with replica("two", **settings):
                    pass
            switch.away = True
            told = await tell(one, "and meanwhile")
            assert (told["saved"], "away" in told["problem"]) == (False, True)
            second = await learned(one)
            assert second > first > 0
        assert one.service.unput == 1
        switch.away = False
        async with replica("one", **settings) as one:
            assert await learned(one) == second
            while (await status(one))["waiting"]:
                await asyncio.sleep(0.05)
        async with replica("two", **settings) as two:
            assert await learned(two) == second
            objects_at(address).put(name, b"somebody else's")
            told = await tell(two, "not over that")
            assert "somebody else" in told["problem"]
        assert objects_at(address).read(name).data == b"somebody else's"  # type: ignore[union-attr]
        beside = [one for one in objects_at(address).listed("") if one.endswith(".aside.atlas")]
        assert len(beside) == 1

    asyncio.run(test())


# --- answers and conversations ----------------------------------------------------------------------------


async def respond(server: Inside, text: str, status: int = 200, **more: Any) -> Any:
    answer = await server.client.post("/v1/responses", json={"input": text, "max_output_tokens": 3, **more})
    assert answer.status_code == status, answer.text
    return answer.json()


@pytest.mark.parametrize("sealed", [False, True])
def test_an_answer_is_gone_on_from_at_another_server(
    replica: Any, address: str, tmp_path: Path, sealed: bool
) -> None:
    settings: dict[str, Any] = {}
    if sealed:
        pytest.importorskip("cryptography", reason="cryptography is not installed")
        (tmp_path / "key").write_bytes(bytes(range(32)))
        settings["atlas_key_file"] = str(tmp_path / "key")

    async def test() -> None:
        async with replica("one", **settings) as one, replica("two", **settings) as two:
            first = await respond(one, "heron", atlas={"session_id": "anna"})
            second = await respond(two, "otter", previous_response_id=first["id"])
            assert second["atlas"]["session_id"] == "anna"
            third = await respond(one, "stoat", previous_response_id=second["id"])
            said = await history(two)
            assert [said.count(f"<user>{word}</>") for word in ("heron", "otter", "stoat")] == [1, 1, 1]
            assert (await two.client.get(f"/v1/responses/{third['id']}")).json()["output"] == third["output"]
            store = objects_at(address)
            found = [store.read(name) for name in store.listed("answers")]
            stored = b"".join(one.data for one in found if one is not None)
            assert (b"heron" in stored) != sealed
            assert (await two.client.delete(f"/v1/responses/{second['id']}")).status_code == 200
            await respond(one, "shrew", 400, previous_response_id=second["id"])
            fourth = await respond(one, "shrew", previous_response_id=third["id"])
        async with replica("three", **settings) as three:
            await respond(three, "badger", previous_response_id=fourth["id"])
            assert "<user>otter</>" in await history(three)
            forgotten = {"about": "heron", "remove_answers": True}
            told = await three.client.post("/v1/atlas/sessions/anna/forget", json=forgotten)
            assert told.json()["answers"] == 4
            assert not objects_at(address).listed("answers")
            await respond(three, "again", 400, previous_response_id=fourth["id"])

    asyncio.run(test())


def test_a_conversation_goes_on_at_another_server(replica: Any) -> None:
    async def items(server: Inside) -> list[str]:
        found = (await server.client.get("/v1/conversations/talk/items?order=asc")).json()["data"]
        return [one["content"][0]["text"] for one in found if one["role"] == "user"]

    async def test() -> None:
        async with replica("one") as one, replica("two") as two:
            made = (await one.client.post("/v1/conversations", json={"metadata": {"a": "b"}})).json()
            assert (await two.client.get(f"/v1/conversations/{made['id']}")).json()["metadata"] == {"a": "b"}
            for server, word in ((one, "heron"), (two, "otter"), (one, "stoat")):
                await respond(server, word, conversation="talk")
            assert await items(two) == ["heron", "otter", "stoat"]
            assert (await history(two, "talk")).count("<user>otter</>") == 1
            assert (await two.client.delete("/v1/conversations/talk")).status_code == 200
            assert (await one.client.get("/v1/conversations/talk")).status_code == 404
            assert (await one.client.delete(f"/v1/conversations/{made['id']}")).status_code == 200

    asyncio.run(test())


def test_answers_wait_for_the_store_as_all_else_does(replica: Any, switch: Switch) -> None:
    async def test() -> None:
        async with replica("one") as one:
            first = await respond(one, "heron", conversation="talk")
            switch.away = True
            second = await respond(one, "otter", conversation="talk")
            assert (await status(one))["waiting"] >= 2
            refused = await respond(one, "stoat", 503, previous_response_id="resp_none")
            assert refused["error"]["code"] == "store_away"
        assert one.service.unput >= 2
        switch.away = False
        async with replica("one") as one:
            while (await status(one))["waiting"]:
                await asyncio.sleep(0.05)
        async with replica("two") as two:
            for name in (first["id"], second["id"]):
                assert (await two.client.get(f"/v1/responses/{name}")).status_code == 200
            await respond(two, "stoat", conversation="talk")
            assert "<user>otter</>" in await history(two, "talk")

    asyncio.run(test())
