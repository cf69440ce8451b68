"""A server whose model leaves main memory while nobody asks."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

import pytest

from atlas_kit.llama import FakeEngine
from server.conftest import TEMPLATE, Server, fake_engine
from server.scripted import ScriptedEngine
from tests.waiting import LONG, until

pytest.importorskip("fastapi", reason="the packages of the server are not installed")


def asleep(server: Any) -> bool:
    return bool(server.get("/props")["is_sleeping"])


def wait(server: Any) -> None:
    until(lambda: asleep(server))


def say(server: Any, text: str, session: str | None = None, **options: Any) -> Any:
    atlas = {} if session is None else {"atlas": {"session_id": session}}
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 4, "temperature": 0}
    return server.post("/v1/chat/completions", **body, **atlas, **options)


def test_who_is_never_told_to_sleep_does_not(serve: Server) -> None:
    server = serve(fake_engine())
    time.sleep(0.5)
    assert not asleep(server)


def test_an_idle_server_sleeps_until_somebody_asks(serve: Server) -> None:
    engine = fake_engine()
    server = serve(engine, sleep_idle_seconds=0)
    wait(server)
    assert engine.asleep
    for path in (
        "/health",
        "/ready",
        "/v1/models",
        "/slots",
        "/metrics",
        "/v1/atlas/status",
        "/v1/atlas/sessions",
    ):
        assert server.client.get(path).status_code == 200
    assert asleep(server)
    assert say(server, "a")["choices"][0]["message"]["content"]
    wait(server)


def test_conversations_go_on_behind_a_sleep(serve: Server) -> None:
    def talk(**settings: Any) -> list[Any]:
        engine = ScriptedEngine("one", "two", "three", template=TEMPLATE, names=(), n_ctx=256)
        server = serve(engine, **settings)
        found = []
        for text in ("a", "b", "c"):
            answer = say(server, text, "anna")
            memory = server.get("/v1/atlas/memory", session_id="anna")["memory"]
            found.append((answer["choices"], answer["usage"], memory["tokens_seen"]))
            if settings:
                wait(server)
        return found

    assert talk(sleep_idle_seconds=0) == talk()


def test_a_request_that_comes_while_it_falls_asleep_is_answered(
    serve: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    sleep = FakeEngine.sleep

    def slowly(self: FakeEngine) -> None:
        time.sleep(0.05)
        sleep(self)

    monkeypatch.setattr(FakeEngine, "sleep", slowly)
    server = serve(fake_engine(), sleep_idle_seconds=0)
    for number in range(12):
        assert say(server, str(number), "anna")["usage"]["completion_tokens"]
        time.sleep(0.03 * (number % 5))


def test_it_sleeps_again_behind_a_request_that_came_while_it_fell_asleep(
    serve: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    falling, go_on = threading.Event(), threading.Event()
    sleep = FakeEngine.sleep

    def held(self: FakeEngine) -> None:
        falling.set()
        assert go_on.wait(LONG)
        sleep(self)

    monkeypatch.setattr(FakeEngine, "sleep", held)
    engine = fake_engine()
    server = serve(engine, sleep_idle_seconds=0)
    assert falling.wait(LONG)
    threading.Timer(0.2, go_on.set).start()
    assert say(server, "a")["choices"]
    until(lambda: engine.asleep)  # not only said to be


def test_a_long_answer_keeps_it_awake(serve: Server) -> None:
    engine = fake_engine(n_ctx=4096)
    server = serve(engine, sleep_idle_seconds=0)
    body = {"prompt": "a", "max_tokens": 2000, "stream": True, "ignore_eos": True}
    body["stream_options"] = {"include_usage": True}
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        events = [line.removeprefix("data: ") for line in answer.iter_lines() if line.startswith("data: {")]
    # a slow reader gets many tokens in one event
    assert json.loads(events[-1])["usage"]["completion_tokens"] == 2000
    wait(server)


def test_metrics_of_a_sleeping_server_are_those_from_before(serve: Server) -> None:
    server = serve(fake_engine(), sleep_idle_seconds=0)
    say(server, "a")
    wait(server)
    rates = []
    for _ in range(3):
        text = server.client.get("/metrics").text
        (line,) = [one for one in text.splitlines() if one.startswith("llamacpp:predicted_tokens_seconds ")]
        rates.append(float(line.split()[1]))
    assert rates[0] > 0
    assert rates[1:] == [0, 0]
    assert asleep(server)


def test_a_model_that_cannot_be_brought_back_is_told_of(
    serve: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_kit.errors import ModelError

    engine = fake_engine()
    server = serve(engine, sleep_idle_seconds=0)
    wait(server)

    def fail() -> None:
        raise ModelError("the model's file was replaced while it was not in use", path="/secret/a.gguf")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "wake", fail)
        answer = server.client.post("/v1/completions", json={"prompt": "a"})
        assert answer.status_code == 500
        assert "secret" not in answer.text
    assert say(server, "a")["choices"]
    wait(server)


def test_a_server_that_sleeps_ends_and_has_saved(serve: Server, tmp_path: Any) -> None:
    server = serve(fake_engine(), sleep_idle_seconds=0, atlas_memory_dir=str(tmp_path))
    say(server, "remember", "anna")
    wait(server)
    server.stop()
    again = serve(fake_engine(), atlas_memory_dir=str(tmp_path))
    assert [one["id"] for one in again.get("/v1/atlas/sessions")["data"]] == ["anna"]


def test_who_sleeps_is_the_model_s_own_word(serve: Server) -> None:
    """Where it has woken by itself, nobody says that it sleeps; and it falls asleep again."""
    engine = fake_engine()
    server = serve(engine, sleep_idle_seconds=0)
    wait(server)
    assert server.get("/props")["is_sleeping"] is True
    server.service.sleep._seconds = 60
    engine.wake()
    assert server.get("/props")["is_sleeping"] is False
    server.service.sleep._seconds = 0
    wait(server)
