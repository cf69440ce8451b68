"""A server with a key: no file that it writes shows what was said, and without the key nothing of it is lost."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError, KeyRequiredError, Remedy, WrongKeyError
from atlas_kit.formats.atlas import MemoryFile
from server.conftest import Server, make_service

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

SECRET = "the parcel lies under the blue stone"
TEXT = f"to be or not to be, {SECRET}. "


@pytest.fixture
def key(tmp_path: Path) -> str:
    (tmp_path / "key").write_bytes(bytes(range(32)))
    return str(tmp_path / "key")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "memories").mkdir()
    return tmp_path / "memories"


def settings(folder: Path, **more: Any) -> dict[str, Any]:
    return {"atlas_memory_dir": str(folder), "atlas_memory_file": str(folder / "shared.atlas"), **more}


def talk(server: Any) -> None:
    """Say a secret to the shared memory and to a session, and save that under a name."""
    for atlas in ({}, {"session_id": "anna"}):
        server.post("/v1/completions", prompt=TEXT, max_tokens=2, temperature=0, atlas=atlas)
    server.post("/v1/atlas/sessions/anna/save")
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file="diary")
    server.post("/v1/responses", input=TEXT, max_output_tokens=2)


def shown(folder: Path) -> list[str]:
    """Return the files in which the secret can be read: as it is, or as token ids."""
    raw = SECRET.encode()
    forms = [np.frombuffer(raw, np.uint8).astype(kind).tobytes() for kind in ("u1", "<u2", "<u4", "<u8")]
    forms.append(json.dumps(list(raw))[1:-1].encode())
    files = [path for path in folder.rglob("*") if path.is_file()]
    return [path.name for path in files if any(form in path.read_bytes() for form in forms)]


def test_no_file_shows_what_was_said(serve: Server, folder: Path, key: str) -> None:
    server = serve(**settings(folder, atlas_key_file=key, atlas_memory_backup_count=2))
    talk(server)
    server.stop()
    files = sorted(folder.rglob("*.atlas"))
    assert [path.name for path in files if path.parent == folder] == ["diary.atlas", "shared.atlas"]
    assert len(files) == 3
    for path in files:
        assert MemoryFile.open(path, key=bytes(range(32))).version == 3
    assert shown(folder) == []


def test_it_goes_on_after_a_restart(serve: Server, folder: Path, key: str) -> None:
    server = serve(**settings(folder, atlas_key_file=key))
    talk(server)
    server.stop()
    server = serve(**settings(folder, atlas_key_file=key))
    assert server.get("/v1/atlas/status")["memory_file"]["loaded"] is True
    for atlas in ({}, {"session_id": "anna"}):
        found = server.post("/v1/completions", prompt=TEXT, max_tokens=0, atlas=atlas)
        assert found["usage"]["prompt_tokens_details"]["cached_tokens"] == len(TEXT)
    listed = {one["memory_file"]: one for one in server.post("/v1/atlas/memory/list")["data"]}
    assert listed["diary.atlas"]["fits"] is True
    server.post("/v1/atlas/memory/load", session_id="ben", memory_file="diary")
    talk(server)
    assert shown(folder) == []


def test_without_the_key_nothing_is_set_aside(serve: Server, folder: Path, key: str, tmp_path: Path) -> None:
    server = serve(**settings(folder, atlas_key_file=key))
    talk(server)
    server.stop()
    before = {path: path.read_bytes() for path in folder.rglob("*.atlas")}
    with pytest.raises(AssertionError) as refused:
        serve(**settings(folder))
    assert isinstance(refused.value.__cause__, KeyRequiredError)
    assert refused.value.__cause__.remedy == Remedy("give-server-key")
    (tmp_path / "other").write_bytes(bytes(32))
    with pytest.raises(AssertionError) as refused:
        serve(**settings(folder, atlas_key_file=str(tmp_path / "other")))
    assert isinstance(refused.value.__cause__, WrongKeyError)
    server = serve(atlas_memory_dir=str(folder))
    asked = {"prompt": TEXT, "max_tokens": 2, "atlas": {"session_id": "anna"}}
    answer = server.client.post("/v1/completions", json=asked)
    assert (answer.status_code, answer.json()["error"]["code"]) == (409, "encrypted")
    server.stop()
    assert {path: path.read_bytes() for path in folder.rglob("*.atlas")} == before


def test_what_was_saved_without_a_key_is_encrypted_with_the_next_save(
    serve: Server, folder: Path, key: str
) -> None:
    server = serve(**settings(folder, atlas_memory_backup_count=0))
    talk(server)
    server.stop()
    names = {path.name for path in folder.rglob("*.atlas")}
    assert names <= set(shown(folder))
    server = serve(**settings(folder, atlas_key_file=key, atlas_memory_backup_count=0))
    talk(server)
    server.stop()
    assert names.isdisjoint(shown(folder))


def test_kept_answers_outlive_a_restart_encrypted(serve: Server, folder: Path, key: str) -> None:
    ask: dict[str, Any] = {"max_output_tokens": 2, "temperature": 0}
    server = serve(**settings(folder, atlas_key_file=key))
    first = server.post("/v1/responses", input=TEXT, atlas={"session_id": f"about {SECRET}"}, **ask)
    talk = server.post("/v1/conversations", metadata={"note": SECRET})["id"]
    server.post("/v1/responses", input=TEXT, conversation=talk, **ask)
    for path in folder.rglob("*sqlite*"):  # not even while it runs
        assert SECRET.encode() not in path.read_bytes()
        assert first["id"].encode() not in path.read_bytes()
    server.stop()
    assert shown(folder) == []
    again = serve(**settings(folder, atlas_key_file=key))
    assert again.get(f"/v1/responses/{first['id']}") == first
    assert again.get(f"/v1/conversations/{talk}")["metadata"] == {"note": SECRET}
    assert len(again.get(f"/v1/conversations/{talk}/items")["data"]) == 2
    on = again.post("/v1/responses", input="More", previous_response_id=first["id"], **ask)
    assert on["atlas"]["session_id"] == f"about {SECRET}"
    found = again.post(f"/v1/atlas/sessions/about {SECRET}/forget", about="parcel", remove_answers=True)
    assert found["answers"] == 2
    assert again.client.get(f"/v1/responses/{first['id']}").status_code == 404
    assert again.client.delete(f"/v1/conversations/{talk}").is_success
    again.stop()
    assert shown(folder) == []


def test_answers_that_were_kept_without_a_key_are_encrypted_at_once(
    serve: Server, folder: Path, key: str
) -> None:
    server = serve(**settings(folder))
    first = server.post("/v1/responses", input=TEXT, max_output_tokens=2)
    talk = server.post(
        "/v1/conversations", metadata={"note": SECRET}, items=[{"role": "user", "content": SECRET}]
    )
    gone = server.post("/v1/responses", input=f"{SECRET} once more", max_output_tokens=2)
    server.client.delete(f"/v1/responses/{gone['id']}")
    server.stop()
    assert "responses.sqlite" in shown(folder)
    server = serve(**settings(folder, atlas_key_file=key))
    assert not {name for name in shown(folder) if "sqlite" in name}
    assert server.get(f"/v1/responses/{first['id']}") == first
    assert server.get(f"/v1/conversations/{talk['id']}")["metadata"] == {"note": SECRET}
    assert server.client.get(f"/v1/responses/{gone['id']}").status_code == 404


def test_answers_of_another_key_are_left_alone(
    serve: Server, folder: Path, key: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    only = {"atlas_memory_dir": str(folder)}
    server = serve(**only, atlas_key_file=key)
    first = server.post("/v1/responses", input=TEXT, max_output_tokens=2)
    server.stop()
    file = next(folder.rglob("responses.sqlite"))
    before = file.read_bytes()
    (tmp_path / "other").write_bytes(bytes(32))
    for other in ({}, {"atlas_key_file": str(tmp_path / "other")}):
        caplog.clear()
        server = serve(**only, **other)
        assert "responses.sqlite is left as it is" in caplog.text
        assert server.client.get(f"/v1/responses/{first['id']}").status_code == 404
        kept = server.post("/v1/responses", input=TEXT, max_output_tokens=2)  # in main memory
        assert server.get(f"/v1/responses/{kept['id']}") == kept
        server.stop()
        assert file.read_bytes() == before
    again = serve(**only, atlas_key_file=key)
    assert again.get(f"/v1/responses/{first['id']}") == first


def test_a_slot_without_a_memory_is_not_saved_in_the_clear(serve: Server, folder: Path, key: str) -> None:
    server = serve(slot_save_path=str(folder), atlas_key_file=key)
    server.post("/completion", prompt=TEXT, n_predict=2, id_slot=0)
    answer = server.client.post("/slots/0?action=save", json={"filename": "slot.bin"})
    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "not_encrypted")
    assert shown(folder) == []


def test_a_key_that_is_none_is_said(folder: Path) -> None:
    import asyncio

    (folder / "short").write_bytes(b"abc")
    with pytest.raises(InvalidParamError, match="exactly 32 bytes"):
        asyncio.run(make_service(atlas_key_file=str(folder / "short")).start())
