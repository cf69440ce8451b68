"""``traces.py`` and ``routes/trace.py``: who looks on sees each token, and nobody else's."""

from __future__ import annotations

import base64
import json
import queue
import threading
from typing import Any

import numpy as np
import pytest

from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.server.keys import Key
from atlas_kit.server.traces import Traces
from tests.server.conftest import TEMPLATE, Live, Server
from tests.server.scripted import ScriptedEngine

TEXT = "to be or not to be, that is the question. "


class Onlooker:
    """One who looks on, on a thread: ``rows`` come as they are sent."""

    def __init__(self, server: Live, **parameters: Any) -> None:
        self.pieces: queue.Queue[Any] = queue.Queue()
        self._begun = threading.Event()
        self._thread = threading.Thread(target=self._look, args=(server, parameters))
        self._thread.start()
        assert self._begun.wait(LONG)

    def _look(self, server: Live, parameters: dict[str, Any]) -> None:
        with server.client.stream("GET", "/v1/atlas/trace", params=parameters) as answer:
            for line in answer.iter_lines():
                self._begun.set()
                if line.startswith("data: "):
                    self.pieces.put(json.loads(line[6:]))

    def text(self, length: int) -> str:
        """Return the text that came, when it is as long as that."""
        found = ""
        while len(found) < length:
            found += "".join(self.pieces.get(timeout=LONG)["texts"])
        return found

    def traced(self, until: Any) -> list[Any]:
        """Return the pieces of the trace that come until their text is as it shall be."""
        found: list[Any] = []
        while not until("".join("".join(one["texts"]) for one in found)):
            piece = self.pieces.get(timeout=LONG)
            found += [piece] if piece["object"] == "atlas.trace" else []
        return found

    def recalled(self, question: str) -> Any:
        """Return what was recalled for the answer to a question."""
        while True:
            piece = self.pieces.get(timeout=LONG)
            if piece["object"] == "atlas.recalled" and piece["question"] == question:
                return piece

    def end(self) -> None:
        self._thread.join(LONG)
        assert not self._thread.is_alive()


FACT = "The lighthouse keeper of Skagen is called Bertram."
QUESTION = "What is the lighthouse keeper called?"


def scripted() -> ScriptedEngine:
    return ScriptedEngine("Fine.", template=TEMPLATE, names=(), n_ctx=512)


def chat(server: Live, text: str, headers: Any = None, session: str | None = "anna", **atlas: Any) -> Any:
    answer = server.client.post(
        "/v1/chat/completions",
        json={
            "messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0,
            "atlas": {"enabled": True, **({} if session is None else {"session_id": session}), **atlas},
        },
        headers=headers,
    )  # fmt: skip
    assert answer.status_code == 200, answer.text
    return answer.json()


def filled(server: Live, **options: Any) -> None:
    """Say a fact, and so much else that it leaves the context."""
    chat(server, FACT, **options)
    for _ in range(4):
        chat(server, "zum zam zim zem " * 12, **options)


def numbers(piece: Any) -> tuple[Any, Any]:
    rows = np.frombuffer(base64.b64decode(piece["rows"]), "<f4").reshape(-1, 20)
    tokens = np.frombuffer(base64.b64decode(piece["tokens"]), "<i4").reshape(-1, 13)
    return rows, tokens


def test_what_a_session_reads_and_says_is_told_with_its_losses(serve: Server):
    server = serve()
    onlooker = Onlooker(server, session_id="anna")
    no_letters = {str(token): -100 for token in range(128, 257)}  # and not the end
    body = {"max_tokens": 5, "temperature": 0, "logit_bias": no_letters, "atlas": {"session_id": "anna"}}
    answer = server.post("/v1/completions", prompt=TEXT, **body)
    said = TEXT + answer["choices"][0]["text"]
    length = len(said.encode()) - 1  # nothing was expected of the first
    pieces: list[Any] = []
    while sum(len(one["texts"]) for one in pieces) < length:
        pieces.append(onlooker.pieces.get(timeout=LONG))
    assert [one["from"] for one in pieces] == np.cumsum([0, *(len(p["texts"]) for p in pieces[:-1])]).tolist()
    assert "".join("".join(one["texts"]) for one in pieces) == said[1:]
    rows = np.concatenate([numbers(one)[0] for one in pieces])
    tokens = np.concatenate([numbers(one)[1] for one in pieces])
    assert bytes(tokens[:, -1].tolist()).decode() == said[1:]
    names = dict(pair for one in pieces for pair in one["names"])
    assert names[ord("o")] == "o"
    assert {int(token) for token in tokens.ravel() if token >= 0} <= set(names)
    assert rows[:, 1].mean() == pytest.approx(answer["atlas"]["omega_loss"], rel=1e-4)
    assert rows[:, 0].mean() == pytest.approx(answer["atlas"]["model_loss"], rel=1e-4)
    assert 0 <= answer["atlas"]["blend_ratio_actual"] <= 1
    server.service.stopping = True
    onlooker.end()


def sources(pieces: Any) -> Any:
    return np.concatenate([np.frombuffer(base64.b64decode(one["sources"]), "<i4") for one in pieces])


def test_who_looks_on_is_told_where_the_window_knew_a_token_from(serve: Server):
    """Also a session that learned before anybody looked, and that answered in between, which is not learned."""
    server = serve(scripted())
    body = {"max_tokens": 0, "temperature": 0, "atlas": {"session_id": "anna"}}
    server.post("/v1/completions", prompt="Nobody looks on yet. " * 4, **body)
    onlooker = Onlooker(server, session_id="anna")
    pieces: list[Any] = []
    parts = [
        "The keeper of Skagen lit the lamp. " * 6,
        "Another evening; the keeper of Skagen lit the lamp again. " * 3,
    ]
    for part in parts:
        server.post("/v1/completions", prompt=part, **body)
        chat(server, "Hm?", recall="off")
    pieces = onlooker.traced(lambda text: text.count("Fine.") == 2)
    came = np.concatenate([numbers(one)[1][:, -1] for one in pieces])
    weights = np.concatenate([numbers(one)[0][:, 5:8] for one in pieces])
    found = sources(pieces)
    known = np.flatnonzero(found >= 0)
    assert len(known) > 100
    assert (found[known] < known).all()
    assert (came[found[known]] == came[known]).all()
    assert (weights[known, 2] > 0).all()
    text = "".join("".join(one["texts"]) for one in pieces)
    again = [at for at in known if at >= text.index("Another")]
    assert any(
        found[at] < text.index("Another") for at in again
    )  # behind an answer, it still knows the first text
    server.service.stopping = True
    onlooker.end()


def test_a_memory_that_begins_anew_points_at_nothing_that_it_has_lost(serve: Server):
    server = serve(scripted())
    onlooker = Onlooker(server, session_id="anna")
    body = {"max_tokens": 0, "temperature": 0, "atlas": {"session_id": "anna"}}
    text = "The keeper of Skagen lit the lamp. " * 4
    server.post("/v1/completions", prompt=text, **body)
    onlooker.text(len(text) - 1)
    server.post("/v1/atlas/memory/reset", session_id="anna", mode="hard")
    server.post("/v1/completions", prompt=text, **body)
    pieces = onlooker.traced(lambda read: len(read) >= len(text) - 1)
    first = pieces[0]["from"]
    found = sources(pieces)
    assert ((found < 0) | (found >= first)).all()
    server.service.stopping = True
    onlooker.end()


def test_two_look_on_and_the_one_who_comes_later_sees_it_from_the_start(serve: Server):
    server = serve()
    first = Onlooker(server, session_id="anna")
    body = {"max_tokens": 1, "temperature": 0, "atlas": {"session_id": "anna"}}
    server.post("/v1/completions", prompt=TEXT, **body)
    length = len(TEXT) - 1
    assert first.text(length).startswith(TEXT[1:])
    second = Onlooker(server, session_id="anna")
    assert second.text(length).startswith(TEXT[1:])
    assert len(server.service.conversations.traces._looked) == 1
    server.service.stopping = True
    first.end()
    second.end()
    assert not server.service.conversations.traces._looked


def test_nobody_sees_what_another_key_or_another_session_reads(serve: Server):
    server = serve(api_key=("one", "two"), headers={"authorization": "Bearer one"})
    mine, other = Onlooker(server, session_id="anna"), Onlooker(server, session_id="bert")
    strange = {"authorization": "Bearer two"}
    for headers, text in ((strange, "canary " * 6), ({}, TEXT)):
        body = {"prompt": text, "max_tokens": 1, "temperature": 0, "atlas": {"session_id": "anna"}}
        assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert mine.text(len(TEXT) - 1).startswith(TEXT[1:])
    assert mine.pieces.empty()
    assert other.pieces.empty()
    assert server.client.get("/v1/atlas/trace", headers={"authorization": "Bearer no"}).status_code == 401
    server.service.stopping = True
    mine.end()
    other.end()


def test_the_shared_memory_is_looked_at_without_a_name(serve: Server, tmp_path):
    server = serve(atlas_memory_file=str(tmp_path / "m.atlas"))
    onlooker = Onlooker(server)
    server.post("/v1/completions", prompt=TEXT, max_tokens=1, temperature=0)
    assert onlooker.text(len(TEXT) - 1).startswith(TEXT[1:])
    server.service.stopping = True
    onlooker.end()


def test_nobody_sees_what_the_shared_memory_reads_for_another_key(serve: Server, tmp_path):
    file, keys = str(tmp_path / "m.atlas"), ("one", "two")
    server = serve(atlas_memory_file=file, api_key=keys, headers={"authorization": "Bearer one"})
    onlooker, strange = Onlooker(server), {"authorization": "Bearer two"}
    for headers, text in ((strange, "canary " * 6), ({}, TEXT)):
        body = {"prompt": text, "max_tokens": 1, "temperature": 0}
        assert server.client.post("/v1/completions", json=body, headers=headers).status_code == 200
    assert onlooker.text(len(TEXT) - 1).startswith(TEXT[1:])
    server.service.stopping = True
    onlooker.end()


def test_where_nothing_is_shared_a_session_must_be_named(serve: Server):
    server = serve()
    answer = server.client.get("/v1/atlas/trace")
    assert (answer.status_code, answer.json()["error"]["param"]) == (404, "session_id")
    assert server.client.get("/v1/atlas/trace", params={"session_id": "a\nb"}).status_code == 400


def test_a_trace_that_grows_too_long_begins_again(monkeypatch):
    monkeypatch.setattr("atlas_kit.server.traces.MOST_TOKENS", 50)
    engine, traces, key = FakeEngine(n_ctx=256), Traces(), Key("", "anna")
    with AtlasSession(engine) as session:
        session.observer = lambda *what: traces.take(key, *what)
        session.feed("nobody looks on")
        with traces.looking(key, engine) as view:
            assert view.piece() is None
            session.feed("x" * 20)
            session.feed("y" * 20)
            piece = view.piece()
            assert piece is not None
            assert (piece["from"], "".join(piece["texts"])) == (0, "x" * 20 + "y" * 20)
            assert view.piece() is None
            session.feed("z" * 40)
            piece = view.piece()
            assert piece is not None
            assert piece["from"] == 0
            assert set("".join(piece["texts"])) == {"z"}
    assert not traces._looked


def test_what_was_recalled_for_an_answer_is_told_behind_it(serve: Server):
    server = serve(scripted())
    filled(server)
    onlooker = Onlooker(server, session_id="anna")
    answer = chat(server, QUESTION, recall="always")
    told = onlooker.recalled(QUESTION)
    assert (told["answer"], told["finish_reason"]) == (answer["choices"][0]["message"]["content"], "stop")
    assert told["recalled"] == answer["atlas"]["recalled"]
    assert [piece["text"] for piece in told["recalled"]] == [FACT]
    assert told["recalled"][0] in told["candidates"]
    assert (told["recall"]["mode"], told["recall"]["judged"]) == ("always", len(told["candidates"]))
    assert told["stored_tokens"] > len(FACT)
    late = Onlooker(server, session_id="anna")
    assert late.recalled(QUESTION) == told
    chat(server, "And now?", recall="off")
    for one in (onlooker, late):
        told = one.recalled("And now?")
        assert (told["recalled"], told["recall"]["mode"]) == ([], "off")
    server.service.stopping = True
    onlooker.end()
    late.end()


@pytest.mark.parametrize("shared", [False, True])
def test_the_first_who_comes_gets_what_was_recalled_last_for_the_same_key(serve: Server, tmp_path, shared):
    file = {"atlas_memory_file": str(tmp_path / "m.atlas")} if shared else {}
    mine, strange = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    server = serve(scripted(), api_key=("one", "two"), headers=mine, **file)
    session = None if shared else "anna"
    named = {} if shared else {"session_id": session}
    filled(server, session=session)
    chat(server, QUESTION, mine, session, recall="always")
    chat(server, "Hello?", strange, session, recall="off")
    onlooker = Onlooker(server, **named)
    told = onlooker.pieces.get(timeout=LONG)
    assert (told["object"], told["question"]) == ("atlas.recalled", QUESTION)
    assert onlooker.pieces.empty()
    server.service.stopping = True
    onlooker.end()
    server.service.stopping = False
    way = "/v1/atlas/memory/reset"
    server.post(way, mode="soft", **named)
    onlooker = Onlooker(server, **named)
    chat(server, "And now?", mine, session, recall="off")
    first = onlooker.pieces.get(timeout=LONG)
    while first["object"] == "atlas.trace":
        first = onlooker.pieces.get(timeout=LONG)
    assert first["question"] == "And now?"
    server.service.stopping = True
    onlooker.end()


def test_a_text_that_goes_on_asks_nothing(serve: Server):
    server = serve(scripted())
    onlooker = Onlooker(server, session_id="anna")
    body = {"max_tokens": 1, "temperature": 0, "atlas": {"session_id": "anna"}}
    server.post("/v1/completions", prompt=TEXT, **body)
    chat(server, "Hello?")
    first = onlooker.pieces.get(timeout=LONG)
    while first["object"] == "atlas.trace":
        first = onlooker.pieces.get(timeout=LONG)
    assert first["question"] == "Hello?"
    server.service.stopping = True
    onlooker.end()


@pytest.mark.parametrize("shared", [False, True])
def test_nobody_sees_what_was_recalled_for_another_key(serve: Server, tmp_path, shared):
    file = {"atlas_memory_file": str(tmp_path / "m.atlas")} if shared else {}
    mine, strange = ({"authorization": f"Bearer {key}"} for key in ("one", "two"))
    server = serve(scripted(), api_key=("one", "two"), headers=mine, **file)
    session = None if shared else "anna"
    onlooker = Onlooker(server, **({} if shared else {"session_id": session}))
    filled(server, headers=strange, session=session)
    chat(server, QUESTION, strange, session, recall="always")
    chat(server, "Hello?", mine, session)
    seen = []
    while not seen or seen[-1]["object"] != "atlas.recalled":
        seen.append(onlooker.pieces.get(timeout=LONG))
    assert seen[-1]["question"] == "Hello?"
    assert "Skagen" not in json.dumps([one for one in seen if one["object"] == "atlas.recalled"])
    assert onlooker.pieces.empty()
    server.service.stopping = True
    onlooker.end()


@pytest.mark.parametrize("way", ["forget", "delete", "reset"])
def test_what_is_forgotten_is_shown_to_nobody_who_comes_later(serve: Server, way):
    server = serve(scripted())
    filled(server)
    onlooker = Onlooker(server, session_id="anna")
    chat(server, QUESTION, recall="always")
    onlooker.recalled(QUESTION)
    if way == "forget":
        server.post("/v1/atlas/sessions/anna/forget", about="Skagen")
    elif way == "reset":
        server.post("/v1/atlas/memory/reset", session_id="anna", mode="hard")
    else:
        assert server.client.delete("/v1/atlas/sessions/anna").status_code == 200
    late = Onlooker(server, session_id="anna")
    chat(server, "Hello?", recall="off")
    seen = []
    while not seen or seen[-1]["object"] != "atlas.recalled":
        seen.append(late.pieces.get(timeout=LONG))
    said = "".join("".join(one.get("texts", [])) for one in seen) + json.dumps(seen[-1])
    assert "Skagen" not in said
    assert "lighthouse" not in said
    server.service.stopping = True
    onlooker.end()
    late.end()


def test_no_more_answers_are_kept_than_a_few(monkeypatch):
    monkeypatch.setattr("atlas_kit.server.traces.MOST_ANSWERS", 3)
    traces, key = Traces(), Key("", "anna")
    traces.recalled(key, {"number": -1})  # nobody looks on
    with traces.looking(key, FakeEngine()) as view:
        assert view.answers() == []
        for number in range(5):
            traces.recalled(key, {"number": number})
        assert [one["number"] for one in view.answers()] == [2, 3, 4]
        assert view.answers() == []
        traces.recalled(key, {"number": 5})
        assert [one["number"] for one in view.answers()] == [5]
        traces.forget(key)
        assert view.answers() == []
        traces.recalled(key, {"number": 6})
        assert [one["number"] for one in view.answers()] == [6]
