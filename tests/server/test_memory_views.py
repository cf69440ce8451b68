"""``memory_views.py``: a memory as a file, and its matrices in pieces."""

from __future__ import annotations

import asyncio
import base64
import threading
from typing import Any

import numpy as np
import pytest

from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from atlas_kit.llama import AtlasSession
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.persistence.snapshot import describe_memory, load_memory
from atlas_kit.server import memory_views
from atlas_kit.server.keys import SHARED
from tests.server.conftest import Insider, Server, fake_engine
from tests.server.test_atlas import KEYS, ONE, TEXT, TWO, ask, refused
from tests.waiting import until

FILE, MATRIX = "/v1/atlas/memory/file", "/v1/atlas/memory/matrix"


def numbers_of(found: Any) -> np.ndarray:
    """Return the numbers of an answer, (rows, columns)."""
    return np.frombuffer(base64.b64decode(found["numbers"]), "<f4").reshape(found["size"])


def memory_of(server: Any, name: str = "anna") -> Any:
    """Return the memory itself of a session at rest."""
    (found,) = (one for key, one in server.service.conversations.named.items() if key.name == name)
    return found.memory


# --- as a file -------------------------------------------------------------------------------------------------


def test_a_file_holds_what_the_memory_does_and_goes_on_elsewhere(serve: Server, tmp_path):
    server = serve()
    ask(server, "anna", TEXT * 2)
    answer = server.client.get(FILE, params={"session_id": "anna"})
    assert answer.status_code == 200
    assert answer.headers["content-type"] == "application/octet-stream"
    assert answer.headers["content-disposition"] == 'attachment; filename="anna.atlas"'
    assert int(answer.headers["content-length"]) == len(answer.content)
    loaded, kept = load_memory(answer.content), memory_of(server)
    for name, array in kept.state.parameters.items():
        assert np.array_equal(loaded.state.parameters[name], array), name
    assert loaded.description.model_hash == server.service.engine.info.identity
    state = read_session_state(answer.content)
    assert [len(text) for text in state.texts] == [2 * len(TEXT) + 3]
    info = describe_memory(answer.content).metadata["session"]
    assert (info["name"], info["namespace"]) == (None, None)  # whose it was there is nobody's business here
    path = tmp_path / "anna.atlas"
    path.write_bytes(answer.content)
    with AtlasSession(fake_engine(), memory=path) as session:
        assert session.memory.tokens_seen == kept.tokens_seen
    assert server.service.memory_views._under_way == 0


def test_nothing_is_written_to_any_disk(serve: Server, tmp_path, monkeypatch):
    server = serve(atlas_memory_dir=str(tmp_path))
    ask(server, "anna")

    def refuse(*given: Any, **options: Any) -> None:
        raise AssertionError("a file was written")

    monkeypatch.setattr("atlas_kit.storage.atomic.atomic_write", refuse)
    monkeypatch.setattr("tempfile.mkstemp", refuse)
    assert server.client.get(FILE, params={"session_id": "anna"}).status_code == 200


def test_the_shared_memorys_file_has_nobodys_words(serve: Server, tmp_path):
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    ask(server)
    answer = server.client.get(FILE)
    assert answer.headers["content-disposition"] == 'attachment; filename="memory.atlas"'
    state = read_session_state(answer.content)
    assert (state.tokens, state.texts) == ((), ())
    assert load_memory(answer.content).description.tokens_learned[0] > 0


def test_the_shared_memory_gives_no_key_the_words_of_another(serve: Server, tmp_path):
    server = serve(
        **KEYS, headers=ONE, atlas_memory_file=str(tmp_path / "m.atlas"), atlas_memory_dir=str(tmp_path)
    )
    ask(server)
    words = server.service.engine.tokenize(TEXT)
    ring = server.service.conversations.named[SHARED].memory.state.window["token"]
    assert set(ring.tolist()) & set(words)  # there they are
    server.client.headers.update(TWO)
    data = [server.client.get(FILE).content]
    server.post("/v1/atlas/memory/save", memory_file="copy")
    server.post("/v1/atlas/memory/load", memory_file="copy", session_id="mine")
    data.append(server.client.get(FILE, params={"session_id": "mine"}).content)
    for one in data:
        state = read_session_state(one)
        assert not set(state.memory.window["token"].ravel().tolist()) & set(words)
        assert (state.tokens, state.texts) == ((), ())
        assert not {"token", "recent"} & {name for name, array in state.waiting.items() if array.size}
        assert load_memory(one).description.tokens_learned[0] > 0


def test_a_memory_that_has_not_changed_is_not_sent_again(serve: Server):
    server = serve()
    ask(server, "anna")
    given = {"session_id": "anna"}
    tag = server.client.get(FILE, params=given).headers["etag"]
    again = server.client.get(FILE, params=given, headers={"if-none-match": f'"other", {tag}'})
    assert (again.status_code, again.content, again.headers["etag"]) == (304, b"", tag)
    ask(server, "anna", "and now for something else")
    changed = server.client.get(FILE, params=given, headers={"if-none-match": tag})
    assert changed.status_code == 200
    assert changed.headers["etag"] != tag
    server.post("/v1/atlas/sessions/anna/reset")
    assert server.client.get(FILE, params=given).headers["etag"] != changed.headers["etag"]
    ask(server, "other")
    assert server.client.get(FILE, params={"session_id": "other"}).headers["etag"] != tag


def test_a_session_in_a_file_is_sent_as_well(serve: Server, tmp_path):
    first = serve(atlas_memory_dir=str(tmp_path))
    ask(first, "anna")
    tag = first.client.get(FILE, params={"session_id": "anna"}).headers["etag"]
    first.stop()
    server = serve(atlas_memory_dir=str(tmp_path))
    answer = server.client.get(FILE, params={"session_id": "anna"}, headers={"if-none-match": tag})
    assert answer.status_code == 200  # a tag means nothing to another server
    assert load_memory(answer.content).description.tokens_learned[0] > 0


@pytest.mark.parametrize("path", [FILE, MATRIX])
def test_a_memory_is_seen_by_its_own_key_alone(serve: Server, path):
    server = serve(**KEYS, headers=ONE)
    ask(server, "anna")
    own = server.client.get(path, params={"session_id": "anna"})
    assert own.status_code == 200
    other = server.client.get(path, params={"session_id": "anna"}, headers=TWO)
    nowhere = server.client.get(path, params={"session_id": "nobody"})
    assert other.status_code == nowhere.status_code == 404
    assert other.json() == nowhere.json()
    wrong = server.client.get(path, params={"session_id": "anna"}, headers={"authorization": "Bearer three"})
    assert wrong.status_code == 401


@pytest.mark.parametrize("path", [FILE, MATRIX])
def test_where_there_is_no_memory_that_is_told(serve: Server, path):
    server = serve()
    assert refused(server, f"{path}?session_id=nobody", 404, "GET")["code"] == "session_not_found"
    assert "Name a session" in refused(server, path, 400, "GET")["message"]
    server.service.stopping = True
    refused(server, path, 503, "GET")
    server.service.stopping = False


def test_a_memory_that_is_too_large_or_one_too_many_is_refused(serve: Server, monkeypatch):
    server = serve()
    ask(server, "anna")
    size = memory_of(server).state_bytes
    monkeypatch.setattr(memory_views, "MOST_BYTES", size - 1)
    assert refused(server, f"{FILE}?session_id=anna", 413, "GET")["code"] == "too_large"
    monkeypatch.setattr(memory_views, "MOST_BYTES", 3 * size)
    server.service.memory_views._under_way = 2 * size + 1
    assert server.client.get(FILE, params={"session_id": "anna"}).headers["retry-after"] == "5"
    assert refused(server, f"{FILE}?session_id=anna", 429, "GET")["code"] == "too_many_requests"
    assert server.service.memory_views._under_way == 2 * size + 1
    server.service.memory_views._under_way = 0
    assert server.client.get(FILE, params={"session_id": "anna"}).status_code == 200


def test_a_client_that_goes_away_gives_its_share_back(serve: Server, monkeypatch):
    server = serve()
    ask(server, "anna")
    monkeypatch.setattr("atlas_kit.server.routes.memory_views._PIECE", 64)
    with server.client.stream("GET", FILE, params={"session_id": "anna"}) as answer:
        next(answer.iter_raw())
    until(lambda: server.service.memory_views._under_way == 0)


# --- as matrices -----------------------------------------------------------------------------------------------


def test_a_matrix_is_seen_whole_in_part_and_number_by_number(serve: Server):
    server = serve()
    ask(server, "anna", TEXT * 3)
    memory = memory_of(server)
    while not int(memory.state.counters["steps"]):  # it learns when its states are whitened
        before = memory.tokens_seen
        ask(server, "anna", TEXT * 3)
        memory = memory_of(server)
        assert memory.tokens_seen > before
    name, array = next(iter(memory.state.parameters.items()))
    whole = server.get(MATRIX, session_id="anna")
    assert whole["names"] == list(memory.state.parameters)
    assert (whole["session_id"], whole["name"], whole["shape"]) == ("anna", name, list(array.shape))
    assert whole["steps"] == int(memory.state.counters["steps"]) > 0
    assert whole["tokens_seen"] == memory.tokens_seen
    assert whole["largest"] == pytest.approx(float(np.abs(array).max()), rel=1e-6)
    rows, columns = array.shape
    assert whole["box"] == [0, 0, rows, columns]
    assert np.abs(numbers_of(whole)).max() == pytest.approx(whole["largest"], rel=1e-6)
    box = {"top": 1, "left": 2, "bottom": 3, "right": 10_000}
    part = server.get(MATRIX, session_id="anna", name=name, columns=512, **box)
    assert part["block"] == [1, 1]
    assert np.array_equal(numbers_of(part), array[1:3, 2:])
    coarse = server.get(MATRIX, session_id="anna", rows=1, columns=1)
    assert abs(numbers_of(coarse)[0, 0]) == pytest.approx(whole["largest"], rel=1e-6)
    assert coarse["block"] == [rows, columns]


@pytest.mark.parametrize(
    ("query", "status"),
    [
        ("name=nothing", 404), ("top=5&bottom=5", 400), ("top=99999", 400), ("rows=513", 400), ("rows=0", 400),
        ("top=-1", 400),
    ],
)  # fmt: skip
def test_what_is_no_part_of_a_matrix_is_refused(serve: Server, query, status):
    server = serve()
    ask(server, "anna")
    refused(server, f"{MATRIX}?session_id=anna&{query}", status, "GET")


def test_a_matrix_is_seen_while_its_memory_learns(serve: Server):
    engine, permits = fake_engine(), threading.Semaphore(0)
    decode = engine.decode

    def slow(*arguments: Any, **options: Any) -> Any:
        assert permits.acquire(timeout=LONG)
        return decode(*arguments, **options)

    engine.decode = slow  # type: ignore[method-assign]
    server = serve(engine)
    asking = threading.Thread(target=lambda: ask(server, "anna", TEXT * 2, 100))
    asking.start()
    for _ in range(6):  # the text is read, and the answer has begun
        permits.release()
    until(lambda: server.service.metrics.running)
    found: list[Any] = []
    looking = threading.Thread(target=lambda: found.append(server.get(MATRIX, session_id="anna")))
    looking.start()
    for _ in range(30):  # far fewer than the answer takes
        permits.release()
        looking.join(1)
        if found:
            break
    looking.join(LONG)
    assert asking.is_alive()
    assert found[0]["tokens_seen"] > 0
    for _ in range(200):
        permits.release()
    asking.join(LONG)
    assert memory_of(server).tokens_seen > found[0]["tokens_seen"]


def test_looking_changes_nothing(inside: Insider):
    async def answers(look: bool) -> list[str]:
        async with inside() as server:
            said = []
            for text in (TEXT, TEXT + "to be or "):
                body = {"prompt": text, "max_tokens": 12, "temperature": 0, "atlas": {"session_id": "anna"}}
                said.append(
                    (await server.client.post("/v1/completions", json=body)).json()["choices"][0]["text"]
                )
                if look:
                    for path in (FILE, MATRIX):
                        found = await server.client.get(path, params={"session_id": "anna"})
                        assert found.status_code == 200
            return said

    assert asyncio.run(answers(look=True)) == asyncio.run(answers(look=False))
