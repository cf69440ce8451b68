"""The memory that outlives a restart: loaded, saved, set aside, backed up, and never in the way of a start."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import AtlasError, DivergedError, LockedError
from atlas_kit.memory import WhitenedMemory
from atlas_kit.persistence.backups import list_backups
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.server import lifecycle
from atlas_kit.storage import pace
from server.conftest import Server, fake_engine, make_service
from tests.waiting import LONG, until

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "


def ask(server: Any, prompt: str = TEXT * 2, count: int = 2, **atlas: Any) -> Any:
    return server.post("/v1/completions", prompt=prompt, max_tokens=count, temperature=0, atlas=atlas)


def cached(server: Any, prompt: str = TEXT * 2) -> int:
    found: int = ask(server, prompt, 0)["usage"]["prompt_tokens_details"]["cached_tokens"]
    return found


def report(server: Any) -> Any:
    return server.get("/v1/atlas/status")["memory_file"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "memories" / "m.atlas"


@pytest.fixture
def kept(path: Path, serve: Server) -> Path:
    """Return a file that a server has kept; its folder holds nothing else."""
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path))
    ask(server)
    server.stop()
    assert os.listdir(path.parent) == ["m.atlas"]
    return path


def test_a_conversation_goes_on_after_a_restart(serve: Server, path: Path) -> None:
    """Also one that was longer than the context: its second turn is not learned again."""
    path.parent.mkdir()
    text = TEXT * 8
    server = serve(engine=fake_engine(n_ctx=128), atlas_memory_file=str(path))
    ask(server, text)
    ask(server, TEXT[:10] + "a branch")
    first = ask(server, text, 0)["atlas"]
    server.stop()
    server = serve(engine=fake_engine(n_ctx=128), atlas_memory_file=str(path))
    assert report(server)["loaded"] is True
    assert cached(server, TEXT[:10] + "a branch") == len("to be or n" + "a branch")
    answer = ask(server, text + "and on", 0)
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == len(text)
    assert answer["atlas"]["tokens_seen"] == first["tokens_seen"] + len("and on")
    assert answer["atlas"]["not_unlearned_tokens"] == first["not_unlearned_tokens"]


def test_what_is_kept_goes_on_bit_by_bit(serve: Server, kept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "copy.atlas"
    shutil.copy(kept, copy)
    server = serve(atlas_memory_file=str(kept))
    ask(server, TEXT * 2 + "and so on, " * 5)
    server.stop()
    both = serve(atlas_memory_file=str(copy))
    ask(both, TEXT * 2 + "and so on, " * 5)
    both.stop()
    one, other = (read_session_state(file) for file in (kept, copy))
    for group, arrays in one.memory.groups().items():
        for name, array in arrays.items():
            assert array.tobytes() == other.memory.groups()[group][name].tobytes(), (group, name)


def damage_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-200])


def damage_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def damage_all(path: Path) -> None:
    path.write_bytes(b"nothing of the kind")


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [damage_end, damage_bit, damage_all, empty], ids=lambda one: one.__name__)
@pytest.mark.parametrize("backup", [True, False], ids=["backup", "alone"])
def test_a_file_that_is_no_good_is_set_aside(harm: Any, backup: bool, serve: Server, kept: Path) -> None:
    if backup:
        shutil.copy(kept, f"{kept}.bak")
    harm(kept)
    harmed = kept.read_bytes()
    server = serve(atlas_memory_file=str(kept))
    found = report(server)
    assert found["set_aside"].startswith("m.atlas.")
    assert (kept.parent / found["set_aside"]).read_bytes() == harmed
    assert found["backup"] == ("m.atlas.bak" if backup else None)
    assert found["loaded"] is backup
    assert str(kept.parent) not in str(found)
    first = ask(server, count=0)
    assert first["atlas"]["problem"] == found["problem"]
    assert first["usage"]["prompt_tokens_details"]["cached_tokens"] == (2 * len(TEXT) if backup else 0)
    assert "problem" not in ask(server, count=0)["atlas"]
    server.stop()
    assert cached(serve(atlas_memory_file=str(kept))) == 2 * len(TEXT)


def test_the_newest_backup_that_is_good_is_taken(serve: Server, kept: Path) -> None:
    shutil.copy(kept, kept.with_name("m_1600000000.atlas.bak"))
    shutil.copy(kept, kept.with_name("m_1700000000.atlas.bak"))
    shutil.copy(kept, f"{kept}.bak")
    damage_end(kept)
    damage_bit(Path(f"{kept}.bak"))
    damage_all(kept.with_name("m_1700000000.atlas.bak"))
    server = serve(atlas_memory_file=str(kept))
    assert report(server)["backup"] == "m_1600000000.atlas.bak"
    assert cached(server) == 2 * len(TEXT)


def test_a_server_that_is_killed_after_it_went_on_from_a_backup_does_so_again(
    serve: Server, kept: Path, tmp_path: Path
) -> None:
    """Else the next one would find no file, begin anew, and put that over the backup."""
    shutil.copy(kept, f"{kept}.bak")
    damage_end(kept)
    serve(atlas_memory_file=str(kept))  # it is not stopped, and so has saved nothing
    left = tmp_path / "left"
    left.mkdir()
    for name in os.listdir(kept.parent):
        if name.startswith("m.atlas"):
            shutil.copy(kept.parent / name, left / name)
    server = serve(atlas_memory_file=str(left / "m.atlas"))
    assert report(server)["loaded"]
    assert cached(server) == 2 * len(TEXT)


def test_another_models_memory_is_set_aside(serve: Server, kept: Path) -> None:
    server = serve(engine=fake_engine(seed=1, n_embd=16), atlas_memory_file=str(kept))
    # the fake engine has one identity: its memory does not fit
    assert "m.atlas" in report(server)["problem"]
    assert cached(server) == 0


def test_whatever_a_file_does_to_its_reader_the_server_starts(
    serve: Server, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise ZeroDivisionError

    monkeypatch.setattr(lifecycle, "read_session_state", fail)
    server = serve(atlas_memory_file=str(kept))
    assert report(server)["set_aside"]
    assert ask(server)["usage"]["completion_tokens"] == 2


@pytest.mark.parametrize("name", ["itself", "a link"])
def test_two_servers_never_keep_one_file(name: str, serve: Server, kept: Path) -> None:
    serve(atlas_memory_file=str(kept))
    other = kept
    if name == "a link":
        other = kept.with_name("other.atlas")
        other.symlink_to(kept)

    async def second() -> None:
        service = make_service(atlas_memory_file=str(other))
        try:
            await service.start()
        finally:
            await service.stop()

    with pytest.raises(LockedError, match="another server keeps its memory in this file"):
        asyncio.run(second())


@pytest.mark.parametrize("place", ["", "missing/m.atlas"])
def test_what_can_be_no_memory_is_refused_at_the_start(place: str, tmp_path: Path) -> None:
    async def start() -> None:
        service = make_service(atlas_memory_file=str(tmp_path / place))
        try:
            await service.start()
        finally:
            await service.stop()

    with pytest.raises(AtlasError):
        asyncio.run(start())


@pytest.mark.parametrize("count", [0, 1, 3])
def test_backups_are_rotated(count: int, serve: Server, path: Path) -> None:
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path), atlas_memory_backup_count=count)
    sizes = []
    for number in range(5):
        ask(server, f"{number}" * 20)
        server.post("/v1/atlas/memory/save")
        sizes.append(read_session_state(path).texts)
    found = [read_session_state(one.path).texts for one in list_backups(path).backups]
    assert len(found) == count
    assert found == sizes[-2 : -2 - count : -1] or sorted(map(len, found)) == sorted(
        map(len, sizes[-1 - count : -1])
    )
    assert len(os.listdir(path.parent)) == count + 2  # and the lock


def test_saved_memories_can_be_compressed(serve: Server, path: Path, tmp_path: Path) -> None:
    path.parent.mkdir()
    other = tmp_path / "plain.atlas"
    for file, compress in ((path, True), (other, False)):
        server = serve(atlas_memory_file=str(file), atlas_memory_compress=compress)
        ask(server, "a" * 200)
        server.stop()
    assert path.stat().st_size < 0.8 * other.stat().st_size
    assert cached(serve(atlas_memory_file=str(path)), "a" * 200) == 200


@pytest.mark.parametrize("what", ["optimizer", "window"])
def test_parts_need_not_be_loaded(what: str, serve: Server, kept: Path) -> None:
    server = serve(atlas_memory_file=str(kept), **{f"atlas_load_{what}": False})
    memory = server.get("/v1/atlas/memory")["memory"]
    assert memory["tokens_learned"] == (2 * len(TEXT) + 2) // 16 * 16
    assert (memory["window"] == 0) is (what == "window")
    assert cached(server) == 2 * len(TEXT)
    assert ask(server, TEXT * 2 + "goes on" * 8)["usage"]["completion_tokens"] == 2


# --- saving while running ------------------------------------------------------------------------------------


def test_only_what_has_changed_is_saved_now_and_then(serve: Server, path: Path) -> None:
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path), atlas_auto_save_interval=1)
    ask(server)
    # a save may have begun in the middle of what was read; the file is there a moment before the report says so
    until(lambda: report(server)["saves"] and len(read_session_state(path).tokens) == 2 * len(TEXT) + 2)

    def rests() -> bool:
        saves = report(server)["saves"]
        time.sleep(2.5)
        return bool(report(server)["saves"] == saves)

    assert any(rests() for _ in range(3))  # the report of the last save may be on its way
    # what was saved beside decoding has the tokens of the context, and everything else
    state = read_session_state(path)
    assert len(state.tokens) == 2 * len(TEXT) + 2
    assert state.context is None
    server.stop()
    assert read_session_state(path).context is not None


@pytest.mark.parametrize("ends", ["a save", "the end"])
def test_a_save_that_takes_its_time_hurries_when_somebody_waits(
    serve: Server, path: Path, monkeypatch: pytest.MonkeyPatch, ends: str
) -> None:
    monkeypatch.setattr("atlas_kit.formats.atlas.v2_writer.LARGE", 1)
    monkeypatch.setattr(pace, "PART", 1)
    monkeypatch.setattr(pace, "PAUSE", 3600)
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path), atlas_auto_save_interval=1)
    ask(server)
    until(lambda: any(name.endswith(".tmp") for name in os.listdir(path.parent)))
    assert report(server)["saves"] == 0
    if ends == "a save":
        server.post("/v1/atlas/memory/save")
        assert report(server)["saves"] >= 1
    server.stop()
    assert read_session_state(path).context is not None


def test_saving_waits_for_an_answer_and_not_the_other_way_round(serve: Server, path: Path) -> None:
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path))

    async def both() -> list[Any]:
        import httpx

        async with httpx.AsyncClient(base_url=server.url, timeout=LONG) as client:
            body = {"prompt": TEXT, "max_tokens": 40, "temperature": 0}
            asked = [client.post("/v1/completions", json={**body, "prompt": TEXT + str(n)}) for n in range(6)]
            saved = [client.post("/v1/atlas/memory/save", json={}) for _ in range(6)]
            return await asyncio.gather(*asked, *saved)

    assert [one.status_code for one in asyncio.run(both())] == [200] * 12
    assert report(server)["failed_saves"] == 0


def full(*_: Any, **__: Any) -> Any:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_a_full_disk_is_said_and_serving_goes_on(
    serve: Server, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = kept.read_bytes()
    server = serve(atlas_memory_file=str(kept))
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        ask(server, TEXT * 2 + "more")
        error = server.client.post("/v1/atlas/memory/save", json={})
        assert error.status_code == 507
        assert str(kept.parent) not in error.text
        found = report(server)
        assert (found["failed_saves"], found["saves"]) == (1, 0)
        assert "full" in found["last_problem"] or "space" in found["last_problem"]
        assert kept.read_bytes() == before
        assert ask(server, TEXT * 2 + "more", 1)["usage"]["completion_tokens"] == 1
    server.post("/v1/atlas/memory/save")
    assert report(server)["last_problem"] is None
    assert kept.read_bytes() != before


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read and write everything")
def test_a_folder_that_may_only_be_read_is_no_hindrance(serve: Server, kept: Path) -> None:
    kept.parent.chmod(0o500)
    try:
        server = serve(atlas_memory_file=str(kept))
        assert report(server)["last_problem"]
        assert cached(server) == 2 * len(TEXT)
        ask(server, TEXT * 2 + "more")
    finally:
        kept.parent.chmod(0o700)
    server.post("/v1/atlas/memory/save")


def test_a_place_that_cannot_be_written_at_the_start_is_tried_again(
    serve: Server, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_kit.errors import FileAccessError

    def refuse(*_: Any) -> Any:
        raise FileAccessError("cannot write: permission denied", path=kept)

    with monkeypatch.context() as patch:
        patch.setattr(lifecycle, "Place", refuse)
        server = serve(atlas_memory_file=str(kept))
        assert report(server)["last_problem"] == "cannot write: permission denied"
        assert cached(server) == 2 * len(TEXT)
        ask(server, TEXT * 2 + "more")
        assert server.client.post("/v1/atlas/memory/save", json={}).status_code == 507
    server.post("/v1/atlas/memory/save")
    assert report(server)["last_problem"] is None


@pytest.mark.parametrize("persist", [True, False])
def test_a_folder_of_memories_that_is_missing_is_made(
    persist: bool, serve: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "new" / "memories"
    settings = {"atlas_memory_dir": str(folder), "atlas_memory_persist": persist}
    with caplog.at_level("INFO", "atlas_kit.server"):
        server = serve(**settings)
    assert [one.message for one in caplog.records if "folder" in one.message] == [
        f"the folder of memories was made: {folder}"
    ]
    for one in (folder.parent, folder, folder / "sessions"):
        assert one.stat().st_mode & 0o777 == 0o700
    ask(server, session_id="anna")
    ask(server)
    server.post("/v1/atlas/memory/save", session_id="anna", memory_file="a")
    server.stop()
    assert len(list(folder.glob("*.atlas"))) == 1 + persist
    caplog.clear()
    with caplog.at_level("INFO", "atlas_kit.server"):
        server = serve(**settings)
    assert not [one for one in caplog.records if "was made" in one.message]
    assert ask(server, TEXT * 2, 0, session_id="anna")["usage"]["prompt_tokens_details"]["cached_tokens"]


def test_sessions_are_served_where_their_folder_cannot_be_made(serve: Server, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"in the way")
    server = serve(atlas_memory_dir=str(tmp_path / "file"))
    status = server.get("/v1/atlas/status")["sessions"]
    assert status["outlive_a_restart"] is False
    assert "do not outlive" in status["problem"]
    assert str(tmp_path) not in status["problem"]
    assert ask(server, session_id="anna")["atlas"]["session_id"] == "anna"


def test_a_clock_that_jumps_stops_no_saving(
    serve: Server, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Intervals are of a clock that nobody sets; names of backups and times in files may be of any day."""
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path), atlas_auto_save_interval=1)
    real = time.time
    for days, number in ((0, 1), (-4000, 2), (4000, 3), (-1, 4)):
        monkeypatch.setattr(time, "time", lambda days=days: real() + days * 86400)
        ask(server, f"{number} " * 20, session_id="anna")
        ask(server, f"{number} " * 20)
        server.post("/v1/atlas/memory/save")
        assert server.get("/v1/atlas/sessions")["data"][0]["id"] == "anna"
    server.stop()
    monkeypatch.undo()
    again = serve(atlas_memory_file=str(path))
    assert cached(again, "4 " * 20) == 40
    assert report(again)["problem"] is None


def test_a_model_that_was_replaced_leaves_its_memory_alone(serve: Server, kept: Path, tmp_path: Path) -> None:
    """The file belongs to the model before, and so do the sessions: neither is used, and neither is lost."""
    settings = {"atlas_memory_file": str(kept), "atlas_memory_dir": str(tmp_path)}
    server = serve(**settings)
    ask(server, session_id="anna")
    server.stop()
    engine = fake_engine()
    engine.info = dataclasses.replace(engine.info, identity="ab" * 32)
    server = serve(engine=engine, **settings)
    found = report(server)
    assert "is another model's" in found["problem"]
    assert cached(server) == 0
    answer = ask(server, session_id="anna")
    assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == 0
    assert "starts anew" in answer["atlas"]["problem"]
    server.stop()
    for folder, name in ((kept.parent, found["set_aside"]), (tmp_path / "sessions", None)):
        aside = [one for one in os.listdir(folder) if one.endswith(".aside")]
        assert len(aside) == 1
        assert name in (None, aside[0])
    os.replace(kept.parent / found["set_aside"], kept)
    assert cached(serve(**settings)) == 2 * len(TEXT)


def test_a_step_that_diverges_ends_an_answer_and_not_the_session(
    serve: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = serve()
    ask(server, session_id="anna")
    was = server.get("/v1/atlas/memory", session_id="anna")["memory"]["tokens_learned"]

    def diverge(*_: Any, **__: Any) -> Any:
        raise DivergedError("the chunk that ends at token 5 diverged")

    text = TEXT * 2 + "the rest of it. " * 4
    with monkeypatch.context() as patch:
        patch.setattr(WhitenedMemory, "step", diverge)
        for stream in (False, True):
            body = {"prompt": text, "max_tokens": 3, "stream": stream, "atlas": {"session_id": "anna"}}
            answer = server.client.post("/v1/completions", json=body)
            assert (answer.status_code, answer.json()["error"]["code"]) == (500, "memory_diverged")
        assert ask(server)["usage"]["completion_tokens"] == 2  # others go on
    again = ask(server, text + "and on. " * 4, session_id="anna")
    assert again["usage"]["completion_tokens"] == 2
    assert server.get("/v1/atlas/memory", session_id="anna")["memory"]["tokens_learned"] > was


@pytest.mark.model
def test_a_model_file_that_is_replaced_while_it_is_served(
    serve: Server, tmp_path: Path, repository: Path
) -> None:
    """What was opened is served to the end, the rows that memories read from it among the rest."""
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    from atlas_kit.llama.loading import open_engine

    path, other = tmp_path / "model.gguf", tmp_path / "other"
    shutil.copy(repository / "sample_data" / "models" / "tiny-python.gguf", path)
    server = serve(engine=open_engine(str(path), n_ctx=256, n_sequences=2), atlas=True)
    first = ask(server, "def mean(values):", 8, session_id="anna")
    other.write_bytes(b"another model, or half of one")
    os.replace(other, path)
    assert ask(server, "def mean(values):", 8, session_id="ben")["choices"] == first["choices"]
    again = ask(
        server, "def mean(values):\n    return " + "sum(values) / len(values)\n" * 8, 8, session_id="anna"
    )
    assert again["atlas"]["tokens_learned"] > 0


def test_the_status_says_which_steps_diverged(
    serve: Server, kept: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert serve().get("/v1/atlas/status")["optimization"]["steps_rejected"] is None
    server = serve(atlas_memory_file=str(kept))
    ask(server, TEXT * 8)
    before = server.get("/v1/atlas/status")["optimization"]
    assert before["steps"] > 0
    assert (before["steps_retried"], before["steps_rejected"], before["tokens_dropped"]) == (0, 0, 0)

    with monkeypatch.context() as patch:
        patch.setattr(WhitenedMemory, "_learn", lambda *_: False)
        assert ask(server, "No: " + TEXT * 3, 4)["usage"]["completion_tokens"] == 4
        after = server.get("/v1/atlas/status")["optimization"]
    assert after["steps_rejected"] > 0
    assert after["steps_retried"] == 0  # a step of these memories is taken or not
    assert after["steps"] == before["steps"]
    assert ask(server, "Yes: " + TEXT * 4, 4)["usage"]["completion_tokens"] == 4
    assert server.get("/v1/atlas/status")["optimization"]["steps"] > after["steps"]


@pytest.mark.parametrize("muon", [False, True])
@pytest.mark.parametrize("rate", [5, 99.9, 100])
def test_a_step_size_that_is_too_large_is_no_error(rate: float, muon: bool, serve: Server) -> None:
    """Warnings are errors in the tests, also on the engine's thread: none of NumPy's reaches the log."""
    server = serve(atlas_learning_rate=rate, atlas_muon=muon)
    for number in range(4):
        found = ask(server, f"{number} {TEXT * 2}", 8, session_id="anna")
        assert np.isfinite(found["atlas"]["omega_loss"])
    info = server.get("/v1/atlas/memory/info", session_id="anna")["memory"]
    assert all(np.isfinite(one["norm"]) for one in info["matrices"].values())
    assert 0 <= info["memory_utilization"] <= 1


def test_a_folder_that_somebody_removed_is_made_again(serve: Server, path: Path) -> None:
    path.parent.mkdir()
    server = serve(atlas_memory_file=str(path))
    ask(server)
    shutil.rmtree(path.parent)
    server.post("/v1/atlas/memory/save")
    assert read_session_state(path).texts


@pytest.mark.parametrize("text", ["", " \n", "\ufeff"])
def test_an_empty_chat_template_is_refused_at_the_start(text: str, tmp_path: Path) -> None:
    (tmp_path / "template.jinja").write_text(text, encoding="utf-8")

    async def start() -> None:
        service = make_service(chat_template_file=str(tmp_path / "template.jinja"))
        try:
            await service.start()
        finally:
            await service.stop()

    with pytest.raises(AtlasError, match="chat template is empty"):
        asyncio.run(start())
