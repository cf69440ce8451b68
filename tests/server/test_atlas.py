"""``/v1/atlas/...``: what is said of memories, and what can be done to them."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError
from atlas_kit.persistence.session_file import read_session_state
from server.conftest import Server, fake_engine
from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
KEYS = {"api_key": ("one,two",)}
ONE, TWO = {"authorization": "Bearer one"}, {"authorization": "Bearer two"}


def ask(server: Any, session: str | None = None, prompt: str = TEXT, count: int = 3, **atlas: Any) -> Any:
    options = {**({} if session is None else {"session_id": session}), **atlas}
    return server.post("/v1/completions", prompt=prompt, max_tokens=count, temperature=0, atlas=options)


def refused(server: Any, path: str, status: int, method: str = "POST", **body: Any) -> Any:
    answer = server.client.request(method, path, **({"json": body} if method != "GET" else {}))
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"].endswith(".")
    assert "/" not in error["message"].replace("/v1", "")
    return error


# --- what an answer says -------------------------------------------------------------------------------------


def test_an_answer_says_what_the_memory_did(serve: Server) -> None:
    server = serve(engine=fake_engine(n_ctx=64))
    first = ask(server, "anna", TEXT * 8)["atlas"]
    whole = 8 * len(TEXT) + 3
    assert first["session_id"] == "anna"
    assert first["conversation_tokens"] == first["context_tokens"] + first["left_context_tokens"] == whole
    assert first["covered_by_memory_tokens"] == first["left_context_tokens"] > 0
    assert (first["not_unlearned_tokens"], first["recalled"], first["cached_tokens"]) == (0, [], 0)
    assert 0 < first["blend_ratio_actual"] <= 1
    assert first["muon_iterations"] == 0
    assert first["tokens_seen"] == whole - 1  # of the last one, it is not known yet what follows
    assert first["tokens_learned"] == whole // 16 * 16
    for _ in range(100):
        again = ask(server, "anna", TEXT * 8, 0)["atlas"]
        if again["memory_utilization"] is not None:
            break
    info = server.get("/v1/atlas/memory/info", session_id="anna")["memory"]
    assert again["memory_utilization"] == pytest.approx(info["memory_utilization"])
    assert again["not_unlearned_tokens"] == 3


def test_a_conversation_s_answers_are_not_learned(serve: Server) -> None:
    server = serve(engine=fake_engine())
    messages, read = [{"role": "user", "content": TEXT}], 0
    for _ in range(3):
        options = {"session_id": "anna", "recall": "off"}
        more = {"max_tokens": 64, "ignore_eos": True, "temperature": 0}
        answer = server.post("/v1/chat/completions", messages=messages, atlas=options, **more)
        messages += [{"role": "assistant", "content": answer["choices"][0]["message"]["content"]},
                     {"role": "user", "content": TEXT}]  # fmt: skip
        usage, atlas = answer["usage"], answer["atlas"]
        read += usage["prompt_tokens"] - usage["prompt_tokens_details"]["cached_tokens"] + 1
        assert usage["completion_tokens"] > 16
        # what was said is no news, and what is behind a whole step waits for the next one
        assert atlas["tokens_seen"] <= read
    assert 0 < atlas["tokens_learned"] <= atlas["tokens_seen"]


def test_without_learning_the_window_alone_covers(serve: Server) -> None:
    server = serve(engine=fake_engine(n_ctx=64), atlas_learning_rate=0, atlas_window=100)
    found = ask(server, "anna", TEXT * 4, 0)["atlas"]
    assert found["tokens_learned"] == 0
    assert found["left_context_tokens"] > 100
    # 100 tokens, of which those in the context are no news
    assert 100 - 64 - 16 <= found["covered_by_memory_tokens"] <= 100 - found["context_tokens"] + 16


def test_muon_iterations_are_those_of_the_answer(serve: Server) -> None:
    server = serve(atlas_muon=True)
    first, second = (ask(server, "anna", TEXT * count, 0)["atlas"] for count in (7, 8))
    # the first 512 tokens say how states are whitened, and what comes behind them is learned
    assert first["muon_iterations"] == 5 * ((7 * len(TEXT) - 512) // 16)
    assert second["muon_iterations"] == 5 * ((8 * len(TEXT) - 512) // 16 - (7 * len(TEXT) - 512) // 16)


def test_a_fixed_blend_is_the_blend(serve: Server) -> None:
    server = serve(atlas_blend="0.25", atlas_learning_rate=0)
    assert ask(server, "anna", TEXT * 2)["atlas"]["blend_ratio_actual"] == pytest.approx(0.25)
    assert ask(server, "anna", TEXT * 2, 0)["atlas"]["blend_ratio_actual"] is None


def test_without_a_memory_there_is_little_to_say(serve: Server) -> None:
    found = ask(serve())["atlas"]
    assert found["enabled"] is False
    assert found["not_unlearned_tokens"] == 0


# --- namespaces ----------------------------------------------------------------------------------------------


def test_sessions_of_two_keys_and_two_names_never_meet(serve: Server) -> None:
    """Canaries: what one session was told, no other says, lists, loads or has settings of."""
    server = serve(engine=fake_engine(n_ctx=512), **KEYS)
    canaries = {(key, name): f"canary-{n}-{key}{name} " * 6 for n, (key, name) in enumerate(
        (key, name) for key in ("one", "two") for name in ("anna", "ben")
    )}  # fmt: skip
    for (key, name), canary in canaries.items():
        server.client.headers.update({"authorization": f"Bearer {key}"})
        ratio = {"one": 0.25, "two": 0.75}[key]
        ask(server, name, canary, 1, blend_ratio=ratio)
    for (key, name), canary in canaries.items():
        server.client.headers.update({"authorization": f"Bearer {key}"})
        listed = server.get("/v1/atlas/sessions")["data"]
        assert {one["id"] for one in listed} == {"anna", "ben"}
        settings = server.get("/v1/atlas/memory", session_id=name)["memory"]["settings"]
        assert settings["blend_ratio"] == {"one": 0.25, "two": 0.75}[key]
        for other in canaries.values():
            cached = ask(server, name, other, 0)["usage"]["prompt_tokens_details"]["cached_tokens"]
            if other is canary:
                assert cached >= len(canary)
            else:
                assert len("canary-") <= cached < len("canary-0-oneanna ")
        answer = ask(server, name, canary[:20], 24)["choices"][0]["text"]
        for other in set(canaries.values()) - {canary}:
            assert other[:16] not in answer
    server.client.headers.update(ONE)
    server.client.request("DELETE", "/v1/atlas/sessions/anna")
    server.client.headers.update(TWO)
    assert {one["id"] for one in server.get("/v1/atlas/sessions")["data"]} == {"anna", "ben"}


def test_without_a_memory_nobody_learns_what_another_key_has_sent(serve: Server) -> None:
    server = serve(**KEYS)
    for headers, cached in ((ONE, 0), (ONE, len(TEXT)), (TWO, 0)):
        server.client.headers.update(headers)
        assert ask(server)["usage"]["prompt_tokens_details"]["cached_tokens"] == cached


@pytest.mark.parametrize("name", ["", "x" * 129, "a\nb", 7])
def test_names_of_sessions_are_checked(name: Any, serve: Server) -> None:
    refused(serve(), "/v1/completions", 400, prompt="a", atlas={"session_id": name})


@pytest.mark.parametrize("name", ["anna/2", "über", "a b", "..", "%2e", "fork"])
def test_names_of_sessions_may_be_anything_else(name: str, serve: Server) -> None:
    from urllib.parse import quote

    server = serve()
    ask(server, name)
    assert server.get(f"/v1/atlas/sessions/{quote(name, safe='')}".replace("..", "%2E%2E"))["id"] == name


# --- sessions ------------------------------------------------------------------------------------------------


def test_a_session_is_listed_forked_reset_and_deleted(serve: Server) -> None:
    server = serve()
    assert server.get("/v1/atlas/sessions") == {"object": "list", "data": []}
    ask(server, "anna", TEXT * 2)
    one = server.get("/v1/atlas/sessions/anna")
    assert (one["id"], one["requests"], one["place"]) == ("anna", 1, "sequence")
    assert one["conversation_tokens"] == 2 * len(TEXT) + 3

    fork = server.post("/v1/atlas/sessions/anna/fork", session_id="ben")
    assert fork["conversation_tokens"] == one["conversation_tokens"]
    refused(server, "/v1/atlas/sessions/anna/fork", 409, session_id="ben")
    for name in ("anna", "ben"):
        assert ask(server, name, TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(
            TEXT
        )
    ask(server, "ben", TEXT * 2 + "only ben", 0)
    assert server.get("/v1/atlas/memory", session_id="anna")["conversation_tokens"] == 2 * len(TEXT)

    was = server.get("/v1/atlas/memory", session_id="anna")["memory"]["tokens_learned"]
    for mode, learned, window in (("soft", was, True), ("hard", 0, False)):
        server.post("/v1/atlas/sessions/anna/reset", mode=mode)
        memory = server.get("/v1/atlas/memory", session_id="anna")["memory"]
        assert (memory["tokens_learned"], memory["window"] > 0) == (learned, window)
        matrices = server.get("/v1/atlas/memory/info", session_id="anna")["memory"]["matrices"]
        assert matrices["W"]["norm"] == 0
        assert ask(server, "anna", TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0

    assert {one["id"] for one in server.get("/v1/atlas/sessions")["data"]} == {"anna", "ben"}
    assert server.client.delete("/v1/atlas/sessions/anna").json()["object"] == "atlas.session.deleted"
    assert [one["id"] for one in server.get("/v1/atlas/sessions")["data"]] == ["ben"]
    for method, path in (("GET", "anna"), ("DELETE", "anna"), ("POST", "anna/save"), ("POST", "anna/reset")):
        assert refused(server, f"/v1/atlas/sessions/{path}", 404, method)["code"] == "session_not_found"
    assert ask(server, "anna", TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0


@pytest.mark.parametrize("turns", [0, 3])
@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_a_session_that_was_reset_outlives_a_restart(
    mode: str, turns: int, serve: Server, tmp_path: Path
) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna", TEXT * 2)
    server.post("/v1/atlas/sessions/anna/reset", mode=mode)
    for turn in range(turns):
        ask(server, "anna", f"{turn} {TEXT}", 0)
    was = server.get("/v1/atlas/memory", session_id="anna")["memory"]
    server.stop()
    server = serve(atlas_memory_dir=str(tmp_path))
    assert "problem" not in ask(server, "anna", f"{turns - 1} {TEXT}"[: 9 * turns] or " ", 0)["atlas"]
    memory = server.get("/v1/atlas/memory", session_id="anna")["memory"]
    assert memory["tokens_learned"] == was["tokens_learned"]
    assert memory["window"] - was["window"] in (0, 1)
    assert not [one for one in os.listdir(tmp_path / "sessions") if one.endswith(".aside")]


def test_sessions_in_files_are_listed_and_deleted_too(serve: Server, tmp_path: Path) -> None:
    settings = {"atlas_memory_dir": str(tmp_path), "atlas_warm_sessions": 1}
    server = serve(**settings)
    for name in ("anna", "ben", "cleo", "dora"):
        ask(server, name)
    server.stop()
    server = serve(**settings)
    listed = server.get("/v1/atlas/sessions")["data"]
    assert [(one["id"], one["place"], one["requests"]) for one in listed] == [
        ("dora", "sequence", 1),  # whoever was there last is brought back before anybody asks
        *((name, "file", 1) for name in ("cleo", "ben", "anna")),
    ]
    assert server.get("/v1/atlas/sessions/ben")["conversation_tokens"] == len(TEXT) + 3
    server.client.delete("/v1/atlas/sessions/ben")
    server.post("/v1/atlas/sessions/anna/save")
    assert ask(server, "cleo", count=0)["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT)
    server.stop()
    server = serve(**settings)
    assert {one["id"] for one in server.get("/v1/atlas/sessions")["data"]} == {"anna", "cleo", "dora"}


# --- files that clients name ---------------------------------------------------------------------------------


def test_a_file_may_be_called_filename(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna", TEXT)
    saved = server.post("/v1/atlas/memory/save", session_id="anna", filename="document_analysis.atlas")
    assert saved["memory_file"] == "document_analysis.atlas"
    assert (tmp_path / "document_analysis.atlas").is_file()
    server.post("/v1/atlas/memory/load", session_id="ben", filename="document_analysis")
    assert ask(server, "ben", TEXT, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT)
    both = {"memory_file": "document_analysis", "filename": "of-nobody"}
    server.post("/v1/atlas/memory/load", session_id="cleo", **both)
    server.post("/v1/atlas/memory/delete", filename="document_analysis")
    assert server.post("/v1/atlas/memory/list")["data"] == []
    for body in ({}, {"filename": None}, {"filename": ""}, {"filename": 3}):
        refused(server, "/v1/atlas/memory/load", 400, **body)
    schemas = server.get("/openapi.json")["components"]["schemas"]
    for name in ("LoadRequest", "DeleteRequest"):
        assert {"required": ["filename"]} in schemas[name]["anyOf"]
        assert "required" not in schemas[name]


def test_memories_are_saved_listed_loaded_and_deleted(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna", TEXT * 2)
    saved = server.post("/v1/atlas/memory/save", session_id="anna", memory_file="diary")
    assert saved["memory_file"] == "diary.atlas"
    assert (tmp_path / "diary.atlas").is_file()
    listed = server.post("/v1/atlas/memory/list")["data"]
    assert [(one["memory_file"], one["fits"]) for one in listed] == [("diary.atlas", True)]
    assert listed[0]["tokens_learned"] == (2 * len(TEXT) + 3) // 16 * 16

    server.post("/v1/atlas/memory/load", session_id="ben", memory_file="diary")
    assert ask(server, "ben", TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(TEXT)
    loaded = ask(server, "cleo", TEXT * 2, 0, memory_file="diary.atlas")
    assert loaded["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(TEXT)
    # a session that there is goes on with its own
    ask(server, "cleo", TEXT * 2 + "more", 0, memory_file="diary")
    assert ask(server, "cleo", TEXT * 2 + "more", 0)["atlas"]["conversation_tokens"] == 2 * len(TEXT) + 4

    server.post("/v1/atlas/memory/delete", memory_file="diary.atlas")
    assert server.post("/v1/atlas/memory/list")["data"] == []
    for path in ("load", "delete"):
        error = refused(server, f"/v1/atlas/memory/{path}", 404, memory_file="diary", session_id="dora")
        assert error["code"] == "not_found"
    refused(server, "/v1/completions", 404, prompt="a", atlas={"session_id": "dora", "memory_file": "diary"})
    assert "dora" not in {one["id"] for one in server.get("/v1/atlas/sessions")["data"]}


def test_a_request_may_name_a_memory_and_save_it(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna", TEXT * 2)
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file="diary")
    size = os.stat(tmp_path / "diary.atlas").st_mtime_ns
    unsaved = ask(server, prompt=TEXT * 2 + "one", memory_file="diary")
    assert unsaved["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(TEXT)
    assert "saved" not in unsaved["atlas"]
    assert os.stat(tmp_path / "diary.atlas").st_mtime_ns == size
    for text, cached in (("2", 2 * len(TEXT)), ("2, and 3", 2 * len(TEXT) + 1)):
        answer = ask(server, prompt=TEXT * 2 + text, count=0, memory_file="diary", save_memory=True)
        assert answer["atlas"]["saved"] is True
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert ask(server, "anna", save_memory=True)["atlas"]["saved"] is True
    assert server.get("/v1/atlas/sessions/anna")["id"] == "anna"
    for atlas in ({"save_memory": True}, {"enabled": False, "save_memory": True}):
        refused(server, "/v1/completions", 400, prompt="a", atlas=atlas)
    for atlas in ({"enabled": False, "session_id": "a"}, {"enabled": False, "memory_file": "diary"}):
        refused(server, "/v1/completions", 400, prompt="a", atlas=atlas)


def test_without_a_folder_no_memory_can_be_named(serve: Server) -> None:
    server = serve()
    ask(server, "anna")
    for path, body in {
        "/v1/atlas/memory/save": {"session_id": "anna", "memory_file": "a"},
        "/v1/atlas/memory/load": {"session_id": "anna", "memory_file": "a"},
        "/v1/atlas/memory/delete": {"memory_file": "a"},
        "/v1/atlas/memory/list": {},
        "/v1/completions": {"prompt": "a", "atlas": {"memory_file": "a"}},
    }.items():
        assert refused(server, path, 403, **body)["code"] == "no_memory_folder"


@pytest.mark.parametrize(
    "name",
    [
        "../a", "a/b", "/etc/passwd", "..", ".", ".hidden", "a\\b", "a\0b", "a\nb", "a\x7f", "a\u202eb", "a\u2215b",
        "a\uff0fb", "a\u2024\u2024b", "a\u200bb", " a", "-a", "~/a:b", "aux", "C:a", "a*", "\ue000", "\ud800",
        "x" * 250 + "\u00fcx.atlas", ".atlas",
    ],
    ids=ascii,
)  # fmt: skip
def test_names_that_lead_elsewhere_are_refused(name: str, serve: Server, tmp_path: Path) -> None:
    inside = tmp_path / "inside"
    server = serve(atlas_memory_dir=str(inside))
    ask(server, "anna")
    before = sorted(os.listdir(tmp_path)), sorted(os.listdir(inside))
    for path in ("save", "load", "delete"):
        body = {"session_id": "anna", "memory_file": name}
        import json

        answer = server.client.post(
            f"/v1/atlas/memory/{path}", content=json.dumps(body), headers={"content-type": "application/json"}
        )
        assert answer.status_code == 400, answer.text
        assert str(tmp_path) not in answer.text
    assert (sorted(os.listdir(tmp_path)), sorted(os.listdir(inside))) == before


@pytest.mark.parametrize("name", ["anna", "Das Tagebuch", "日記", "a-b_c (2)", "x" * 249, "a.b"])
def test_other_names_are_names(name: str, serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna")
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file=name)
    assert (tmp_path / f"{name}.atlas").is_file()
    server.post("/v1/atlas/memory/delete", memory_file=name)
    assert not (tmp_path / f"{name}.atlas").exists()


def test_links_out_of_the_folder_are_refused(serve: Server, tmp_path: Path) -> None:
    inside, outside = tmp_path / "inside", tmp_path / "outside.atlas"
    inside.mkdir()
    outside.write_bytes(b"a secret")
    (inside / "link.atlas").symlink_to(outside)
    (inside / "folder.atlas").mkdir()
    (inside / "dangling.atlas").symlink_to(tmp_path / "made.atlas")
    server = serve(atlas_memory_dir=str(inside))
    ask(server, "anna")
    for name in ("link", "folder", "dangling"):
        for path in ("save", "load", "delete"):
            status = 403 if name == "folder" else 400
            refused(server, f"/v1/atlas/memory/{path}", status, session_id="anna", memory_file=name)
    assert outside.read_bytes() == b"a secret"
    assert not (tmp_path / "made.atlas").exists()
    assert server.post("/v1/atlas/memory/list")["data"] == []


def test_each_key_has_a_folder_of_its_own(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path), **KEYS)
    server.client.headers.update(ONE)
    ask(server, "anna", TEXT * 2)
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file="diary")
    server.client.headers.update(TWO)
    assert server.post("/v1/atlas/memory/list")["data"] == []
    refused(server, "/v1/atlas/memory/load", 404, session_id="anna", memory_file="diary")
    refused(server, "/v1/atlas/memory/delete", 404, memory_file="diary")
    server.client.headers.update(ONE)
    assert len(server.post("/v1/atlas/memory/list")["data"]) == 1


def test_the_servers_own_file_is_its_own(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path), atlas_memory_file=str(tmp_path / "own.atlas"))
    ask(server)
    server.post("/v1/atlas/memory/save")
    assert (tmp_path / "own.atlas").is_file()
    refused(server, "/v1/atlas/memory/save", 409, memory_file="own")
    refused(server, "/v1/atlas/memory/delete", 409, memory_file="own")


def test_a_copy_of_the_shared_memory_has_nobody_elses_texts(serve: Server, tmp_path: Path) -> None:
    """A key that saves it, and has the file sent to it, must not read what other keys have written."""
    own = str(tmp_path / "own.atlas")
    server = serve(atlas_memory_dir=str(tmp_path), atlas_memory_file=own, api_key=("one", "two"))
    one, two = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    body = {"prompt": TEXT, "max_tokens": 1}
    assert server.client.post("/v1/completions", json=body, headers=one).status_code == 200
    for path, asked in (("save", {}), ("load", {"session_id": "mine"})):
        asked = {"memory_file": "copy", **asked}
        assert server.client.post(f"/v1/atlas/memory/{path}", json=asked, headers=two).status_code == 200
    [file] = tmp_path.glob("key-*/copy.atlas")
    state = read_session_state(file)
    assert (state.texts, state.tokens, state.context) == ((), (), None)
    answer = server.client.get("/v1/atlas/memory", params={"session_id": "mine"}, headers=two)
    assert answer.json()["conversation_tokens"] == 0


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (InvalidParamError("the session was deleted meanwhile", key="session_id"), 400),
        (FileAccessError("cannot write: no space left on device", path="/secret/place"), 507),
    ],
    ids=["deleted", "full"],
)
def test_why_a_session_was_not_saved(
    error: AtlasError, status: int, serve: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna")

    async def fail(*_: Any, **__: Any) -> None:
        raise error

    monkeypatch.setattr(server.service.conversations, "save", fail)
    answer = server.client.post("/v1/atlas/sessions/anna/save")
    assert answer.status_code == status
    assert error.message in answer.json()["error"]["message"].lower()
    assert "/secret" not in answer.text


def test_a_damaged_memory_is_not_loaded(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna", TEXT * 2)
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file="a")
    data = (tmp_path / "a.atlas").read_bytes()
    (tmp_path / "a.atlas").write_bytes(data[:-100])
    (tmp_path / "b.atlas").write_bytes(b"nothing")
    for name in ("a", "b"):
        answer = server.client.post("/v1/atlas/memory/load", json={"session_id": "anna", "memory_file": name})
        assert 400 <= answer.status_code < 500, answer.text
        assert str(tmp_path) not in answer.text
    # the session goes on with its own
    assert ask(server, "anna", TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 2 * len(
        TEXT
    )
    assert [one["problem"] is None for one in server.post("/v1/atlas/memory/list")["data"]].count(False) >= 1


# --- the shared memory, settings, status ---------------------------------------------------------------------


def test_the_shared_memory_is_what_is_meant_without_a_session(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    ask(server, prompt=TEXT * 2)
    assert ask(server, prompt=TEXT * 2, count=0)["usage"]["prompt_tokens_details"][
        "cached_tokens"
    ] == 2 * len(TEXT)
    memory = server.get("/v1/atlas/memory")
    assert memory["session_id"] is None
    assert memory["memory"]["tokens_seen"] > 2 * len(TEXT)
    assert server.get("/v1/atlas/sessions")["data"] == []
    assert ask(server, "default", TEXT * 2, 0)["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    server.client.request("DELETE", "/v1/atlas/memory/reset", json={"mode": "hard"})
    assert server.get("/v1/atlas/memory")["memory"]["tokens_seen"] == 0
    refused(serve(), "/v1/atlas/memory", 400, "GET")


def test_settings_of_one_request_are_not_for_others(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    before = server.get("/v1/atlas/memory")["memory"]
    assert ask(server, prompt=TEXT * 2, blend_ratio=0.5)["atlas"]["blend_ratio_actual"] is not None
    assert server.get("/v1/atlas/memory")["memory"]["settings"] == before["settings"]
    error = refused(server, "/v1/completions", 400, prompt="a", atlas={"window_size": 64})
    assert "keeps its sizes" in error["message"]
    ask(server, "anna", blend_ratio=0.5)
    assert server.get("/v1/atlas/memory", session_id="anna")["memory"]["settings"]["blend_ratio"] == 0.5
    assert server.get("/v1/atlas/config")["settings"]["blend_ratio"] == "adaptive"


def test_some_settings_can_be_changed_and_others_are_refused(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    changed = server.post("/v1/atlas/config", blend_ratio=0.5, learning_rate=0.1, auto_save_interval=60)
    assert (changed["settings"]["blend_ratio"], changed["settings"]["learning_rate"]) == (0.5, 0.1)
    assert changed["auto_save_interval"] == 60
    assert server.get("/v1/atlas/memory")["memory"]["settings"]["blend_ratio"] == 0.5
    ask(server, "anna")
    assert server.get("/v1/atlas/memory", session_id="anna")["memory"]["settings"]["learning_rate"] == 0.1
    assert refused(server, "/v1/atlas/config", 400, window_size=64)["code"] == "not_tunable"
    assert refused(server, "/v1/atlas/config", 400, nonsense=1)["code"] == "unknown_setting"
    for name, value in {
        "blend_ratio": 2,
        "learning_rate": -1,
        "auto_save_interval": 0,
        "use_muon": "x",
    }.items():
        refused(server, "/v1/atlas/config", 400, **{name: value})
    assert server.get("/v1/atlas/config") == changed


def test_the_status_says_how_memories_stand(serve: Server, tmp_path: Path) -> None:
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    ask(server, prompt=TEXT * 2)
    ask(server, "anna")
    server.post("/v1/atlas/memory/save")
    status = server.get("/v1/atlas/status")
    assert status["state"] == "ready"
    assert status["memory_modules"]["count"] == 2
    assert status["memory_modules"]["tokens_learned"] == (2 * len(TEXT) + 3) // 16 * 16
    assert status["sliding_window"]["filled"] > 0
    assert status["optimization"]["chunk_size"] == 16
    assert status["performance"]["requests"] == 2
    assert status["memory_file"]["saves"] == 1
    assert status["memory_file"]["disk_free_bytes"] > 0
    assert status["sessions"]["outlive_a_restart"] is False
    assert str(tmp_path) not in str(status)


def test_two_requests_on_one_session_queue(serve: Server) -> None:
    server = serve()

    async def both() -> list[Any]:
        import httpx

        async with httpx.AsyncClient(base_url=server.url, timeout=LONG) as client:
            body = {"prompt": TEXT, "max_tokens": 5, "temperature": 0, "atlas": {"session_id": "anna"}}
            return await asyncio.gather(*(client.post("/v1/completions", json=body) for _ in range(4)))

    answers = [one.json() for one in asyncio.run(both())]
    assert sorted(one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in answers) == [
        0,
        *[len(TEXT)] * 3,
    ]
