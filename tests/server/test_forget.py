"""What was said is forgotten on purpose over HTTP; who may change what all share; how many sessions one has."""

from __future__ import annotations

import json
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from server.conftest import Server, fake_engine
from server.test_recall import FACT, QUESTION, chat, engine, filled, kept, recalled
from tests.waiting import until

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

CAT = "My cat is called Tom."


def all_bytes(folder: Path) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file())


def refused(server: Any, path: str, status: int, key: str | None = None, **body: Any) -> Any:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    answer = server.client.post(path, json=body, headers=headers)
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def texts_in(folder: Path) -> bytes:
    """Return the tokens in a folder's files as text: those of the engine of bytes, in whatever width."""
    return all_bytes(folder).replace(b"\0", b"")


@pytest.mark.parametrize("place", ["slot", "memory"])
def test_a_session_forgets_what_something_is_about(serve: Server, tmp_path: Path, place: str) -> None:
    server = serve(engine(), atlas_memory_dir=str(tmp_path), atlas_recall="always")
    for text in (CAT, FACT):
        chat(server, text)
    filled(server)
    if place == "memory":
        for other in ("bert", "carl", "dora"):
            chat(server, "zum", other)
    server.post("/v1/atlas/sessions/anna/save")
    assert b"lighthouse keeper" in texts_in(tmp_path)
    path = "/v1/atlas/sessions/anna/forget"
    dry = server.post(path, about="lighthouse", dry_run=True)
    assert dry["dry_run"] is True
    assert FACT in kept(server)
    found = server.post(path, about="lighthouse")
    assert (found["turns"], found["tokens"]) == (1, len(FACT)) == (dry["turns"], dry["tokens"])
    assert found["session_id"] == "anna"
    assert found["pieces"][0]["text"] == FACT
    assert {"texts", "window"} <= set(found["also_removed"])
    assert FACT not in kept(server)
    assert CAT in kept(server)
    assert b"lighthouse keeper" not in texts_in(tmp_path)
    assert b"called Tom" in texts_in(tmp_path)
    assert server.get("/v1/atlas/memory", session_id="anna")["memory"]["tokens_learned"] > 0
    assert FACT not in recalled(chat(server, QUESTION))
    server.stop()
    again = serve(engine(), atlas_memory_dir=str(tmp_path), atlas_recall="always")
    assert FACT not in recalled(chat(again, QUESTION))
    assert CAT in recalled(chat(again, "What is my cat called?"))


@pytest.mark.parametrize("kept_in_files", [True, False])
def test_answers_that_hold_the_text_are_told_of_and_go_where_that_is_wished(
    serve: Server, tmp_path: Path, kept_in_files: bool
) -> None:
    server = serve(engine(), **({"atlas_memory_dir": str(tmp_path)} if kept_in_files else {}))
    ask = {"max_output_tokens": 4, "temperature": 0}
    first = server.post("/v1/responses", input=FACT, atlas={"session_id": "anna"}, **ask)
    other = server.post("/v1/responses", input=CAT, atlas={"session_id": "bert"}, **ask)
    talk = server.post("/v1/conversations")
    server.post("/v1/responses", input=FACT, conversation=talk["id"], **ask)
    path = "/v1/atlas/sessions/anna/forget"
    dry = server.post(path, about="lighthouse", remove_answers=True, dry_run=True)
    assert (dry["answers"], dry["answers_removed"]) == (1, False)
    stays = server.post(path, about="lighthouse")
    assert (stays["turns"], stays["answers"], stays["answers_removed"]) == (1, 1, False)
    assert server.get(f"/v1/responses/{first['id']}")["id"] == first["id"]
    gone = server.post(path, about="lighthouse", remove_answers=True)
    assert (gone["answers"], gone["answers_removed"]) == (1, True)
    assert server.client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert server.get(f"/v1/responses/{other['id']}")["id"] == other["id"]
    assert len(server.get(f"/v1/conversations/{talk['id']}/items")["data"]) == 2
    found = server.post(f"/v1/atlas/sessions/{talk['id']}/forget", about="lighthouse", remove_answers=True)
    assert found["answers_removed"]
    assert server.get(f"/v1/conversations/{talk['id']}/items")["data"] == []
    if kept_in_files:
        assert b"lighthouse" not in texts_in(tmp_path)
        assert b"called Tom" in texts_in(tmp_path)


def test_documents_and_what_is_old_are_forgotten(serve: Server) -> None:
    server = serve(engine())
    body = {"prompt": FACT, "max_tokens": 0}
    server.post("/v1/completions", **body, atlas={"session_id": "anna", "source": "north.txt"})
    chat(server, CAT)
    path = "/v1/atlas/memory/forget"
    nothing = server.post(path, session_id="anna", source="south.txt")
    assert (nothing["tokens"], nothing["pieces"]) == (0, [])
    assert server.post(path, session_id="anna", source="north.txt")["documents"] == 1
    assert kept(server) == [CAT, "Fine."]
    assert server.post(path, session_id="anna", before="2020-01-01T00:00:00Z")["tokens"] == 0
    tomorrow = time.strftime("%Y-%m-%d", time.gmtime(time.time() + 2 * 86400))
    assert server.post(path, session_id="anna", before=tomorrow, about="cat")["turns"] == 1
    assert server.post(path, session_id="anna", before=tomorrow)["left"] == {
        "tokens": 0, "documents": 0, "turns": 0,
    }  # fmt: skip
    assert kept(server) == []


def test_what_cannot_be_forgotten_is_refused(serve: Server, tmp_path: Path) -> None:
    server = serve(engine())
    chat(server, CAT)
    path = "/v1/atlas/sessions/anna/forget"
    refused(server, path, 400)
    refused(server, path, 400, about="...")
    refused(server, path, 400, before="yesterday")
    refused(server, "/v1/atlas/sessions/bert/forget", 404, about="cat")
    refused(server, "/v1/atlas/memory/forget", 400, about="cat")
    refused(
        serve(engine(), atlas_memory_file=str(tmp_path / "m.atlas"), atlas_episode_tokens=0),
        "/v1/atlas/memory/forget",
        404,
        about="cat",
    )


def test_the_shared_memory_forgets_and_its_backups_with_it(serve: Server, tmp_path: Path) -> None:
    file = tmp_path / "m.atlas"
    server = serve(engine(), atlas_memory_file=str(file), atlas_recall="always")
    chat(server, FACT, None)
    filled(server, None)
    server.post("/v1/atlas/memory/save")
    chat(server, CAT, None)
    server.post("/v1/atlas/memory/save")
    found = server.post("/v1/atlas/memory/forget", about="lighthouse")
    assert found["session_id"] is None
    assert found["backups"]
    assert b"lighthouse keeper" not in file.read_bytes().replace(b"\0", b"")
    found = server.post("/v1/atlas/memory/forget", about="lighthouse", remove_backups=True)
    assert found["backups_removed"] is True
    assert b"lighthouse keeper" not in texts_in(tmp_path)
    assert CAT in recalled(chat(server, "What is my cat called?", None))


def test_who_comes_meanwhile_waits(serve: Server) -> None:
    """A request behind it goes on with what is left."""
    server = serve(engine(), atlas_recall="always")
    chat(server, FACT)
    for _ in range(3):
        server.post("/v1/atlas/sessions/anna/forget", about="lighthouse")
        chat(server, FACT)
        assert kept(server).count(FACT) == 1


@pytest.mark.parametrize("by", ["conversation", "previous_response_id", "shared"])
def test_an_answer_under_way_is_waited_for_and_not_written_back(
    serve: Server, tmp_path: Path, by: str
) -> None:
    """What comes behind goes on with what is left."""
    settings: Any = {"atlas_memory_persist": True} if by == "shared" else {}
    server = serve(engine("Fine.", "Slow " * 50, "Fine."), atlas_memory_dir=str(tmp_path), **settings)
    more: dict[str, Any] = {"temperature": 0, "max_output_tokens": 300}
    if by == "conversation":
        more["conversation"] = "anna"
    elif by == "previous_response_id":
        more["atlas"] = {"session_id": "anna"}
    first = server.post("/v1/responses", input=FACT, **more)
    on: dict[str, Any] = {} if by == "conversation" else {"previous_response_id": first["id"]}
    path = "/v1/atlas/memory/forget" if by == "shared" else "/v1/atlas/sessions/anna/forget"
    with ThreadPoolExecutor(2) as others:
        with server.client.stream(
            "POST", "/v1/responses", json={**more, **on, "input": CAT, "stream": True}
        ) as answer:
            lines = answer.iter_lines()
            next(line for line in lines if "output_text.delta" in line)
            forgets = others.submit(server.post, path, about="lighthouse", remove_answers=True)
            until(
                lambda: any(passage._waiting for passage in list(server.service.responses._passages.values()))
            )
            asks = {**more, "input": "More", **({} if by == "conversation" else {"conversation": "bert"})}
            behind = others.submit(server.client.post, "/v1/responses", json={**asks, **on})
            last = [line for line in lines if line.startswith("data: ")][-1]
        found = forgets.result()
        assert behind.result().status_code == (200 if by == "conversation" else 400)
    assert found["answers"] == 2
    assert found["answers_removed"] is True
    one = json.loads(last.removeprefix("data: "))["response"]
    assert one["status"] == "completed"
    for gone in (first, one):
        assert server.client.get(f"/v1/responses/{gone['id']}").status_code == 404
    if by == "conversation":
        said = server.get("/v1/conversations/anna/items")["data"]
        assert [item["content"][0]["text"] for item in said] == ["Fine.", "More"]
        assert FACT not in kept(server)
    server.stop()
    assert b"lighthouse keeper" not in texts_in(tmp_path)


# --- what all share ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "allowed", "others"),
    [
        ({"api_key": ("one,two",)}, "one", ["two"]),
        ({"api_key": ("one", "two"), "atlas_admin_key": "two"}, "two", ["one"]),
        ({"api_key": ("one",), "atlas_admin_key": "boss"}, "boss", ["one"]),
    ],
)
def test_only_the_administrator_changes_what_all_share(
    serve: Server, tmp_path: Path, settings: Any, allowed: str, others: list[str]
) -> None:
    server = serve(fake_engine(), atlas_memory_file=str(tmp_path / "m.atlas"), **settings)
    asked: list[tuple[str, Any]] = [
        ("/v1/atlas/config", {"blend_ratio": 0.5}),
        ("/v1/atlas/memory/reset", {"mode": "hard"}),
        ("/v1/atlas/memory/forget", {"about": "cat"}),
    ]
    for path, body in asked:
        for key in others:
            assert refused(server, path, 403, key, **body)["code"] == "not_admin"
        answer = server.client.post(path, json=body, headers={"Authorization": f"Bearer {allowed}"})
        assert answer.status_code == 200, answer.text
    for key in others:  # what is one's own is one's own
        headers = {"Authorization": f"Bearer {key}"}
        body = {"prompt": "a", "max_tokens": 1, "atlas": {"session_id": "anna"}}
        assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
        for path in ("/v1/atlas/sessions/anna/forget", "/v1/atlas/sessions/anna/reset"):
            assert server.client.post(path, json={"about": "cat"}, headers=headers).status_code == 200


@pytest.mark.parametrize("keys", [(), ("one",)])
def test_where_one_person_asks_nobody_is_refused(serve: Server, keys: tuple[str, ...]) -> None:
    server = serve(fake_engine(), headers={"Authorization": "Bearer one"} if keys else None, api_key=keys)
    assert server.post("/v1/atlas/config", blend_ratio=0.5)["settings"]["blend_ratio"] == 0.5


# --- how many sessions ---------------------------------------------------------------------------------------


def begin(server: Any, name: str, key: str = "one") -> int:
    body = {"prompt": "a", "max_tokens": 1, "atlas": {"session_id": name}}
    headers = {"Authorization": f"Bearer {key}"}
    return int(server.client.post("/v1/completions", json=body, headers=headers).status_code)


def test_a_key_has_so_many_sessions_and_no_more(serve: Server, tmp_path: Path) -> None:
    settings: Any = {"api_key": ("one,two",), "atlas_max_sessions": 2, "atlas_memory_dir": str(tmp_path)}
    server = serve(fake_engine(), **settings)
    assert [begin(server, name) for name in ("a", "b", "a", "c")] == [200, 200, 200, 403]
    assert begin(server, "c", "two") == 200
    headers = {"Authorization": "Bearer one"}
    answer = server.client.post("/v1/atlas/sessions/a/fork", json={"session_id": "d"}, headers=headers)
    assert answer.json()["error"]["code"] == "too_many_sessions"
    assert server.client.delete("/v1/atlas/sessions/a", headers=headers).status_code == 200
    assert [begin(server, name) for name in ("c", "a")] == [200, 403]
    server.stop()
    again = serve(fake_engine(), **settings)
    until(lambda: again.service.conversations.names._names)
    assert [begin(again, name) for name in ("e", "b", "c")] == [403, 200, 200]


def test_a_conversation_is_a_session_once_something_is_answered_in_it(serve: Server) -> None:
    """Those that hold text alone, or are answered without a memory, take nobody's place."""
    server = serve(engine(), atlas_max_sessions=1)
    user = {"type": "message", "role": "user", "content": "Hi"}
    names = [server.post("/v1/conversations", items=[user])["id"] for _ in range(3)]
    ask = {"input": "More", "max_output_tokens": 1}
    assert server.get("/v1/atlas/sessions")["data"] == []
    for name in names:
        server.post("/v1/responses", conversation=name, atlas={"enabled": False}, **ask)
    assert server.get("/v1/atlas/sessions")["data"] == []
    server.post("/v1/responses", conversation=names[0], **ask)
    error = refused(server, "/v1/responses", 403, conversation=names[1], **ask)
    assert error["code"] == "too_many_sessions"
    assert "conversations" in error["message"]
    assert (
        len(server.get(f"/v1/conversations/{names[1]}/items")["data"]) == 3
    )  # what it has, and nothing of that
    assert server.client.delete(f"/v1/conversations/{names[0]}").is_success
    server.post("/v1/responses", conversation=names[1], **ask)
    assert [one["id"] for one in server.get("/v1/atlas/sessions")["data"]] == [names[1]]


def test_any_number_of_sessions(serve: Server) -> None:
    server = serve(fake_engine(), atlas_max_sessions=0)
    assert {begin(server, str(number)) for number in range(20)} == {200}
