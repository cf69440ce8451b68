"""``metrics.py``, ``exposition.py``, ``overview.py`` and ``routes/metrics.py``: what is counted, and how it is told."""

from __future__ import annotations

import asyncio
import json
import threading
from collections import Counter
from typing import Any

import pytest

from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from prometheus_client.parser import text_string_to_metric_families

from atlas_kit.errors import DivergedError
from atlas_kit.server.metrics import COUNTERS, LONGEST_WINDOW, TIMES, Distribution, Metrics, Values
from atlas_kit.server.outcome import Generation, Outcome
from tests.server.conftest import Insider, Server, fake_engine
from tests.waiting import until

TEXT = "to be or not to be, that is the question. " * 3


class Clock:
    """Seconds that pass when they are told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Counts:
    """What a session counts."""

    def __init__(self) -> None:
        self.tokens_read = self.rollovers = self.scored = 0
        self.losses = [0.0, 0.0]


class Session:
    """A session that counts and has no memory."""

    def __init__(self) -> None:
        self.counts, self.memory = Counts(), None


class Said:
    """A token."""

    def __init__(self, id: int = 1) -> None:
        self.id = id


def samples(text: str) -> dict[str, float]:
    """Return each sample of an exposition, its labels behind its name."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            labels = ",".join(f"{key}={value}" for key, value in sorted(one.labels.items()))
            found[one.name + (f"{{{labels}}}" if labels else "")] = one.value
    return found


# --- counting --------------------------------------------------------------------------------------------------


def test_a_request_is_timed_from_its_arrival_to_its_end():
    clock, outcome = Clock(), Outcome(prompt_tokens=7)
    metrics, session = Metrics(clock), Session()
    with metrics.request(Generation([1], task="chat"), outcome) as request:
        assert (metrics.waiting, metrics.running) == (1, 0)
        clock.now += 2
        request.begins(session)
        assert (metrics.waiting, metrics.running) == (0, 1)
        clock.now += 3
        request.came([Said()])
        clock.now += 1
        request.came([Said(), Said(), Said(-1)])  # the last one is text that was held back
        outcome.finish_reason, outcome.cached_tokens = "stop", 4
    assert (metrics.waiting, metrics.running) == (0, 0)
    sums = {name: one.sum for name, one in metrics.times.items()}
    assert sums == {
        "request_queue_time_seconds": 2,
        "time_to_first_token_seconds": 5,
        "inter_token_latency_seconds": 1,
        "e2e_request_latency_seconds": 6,
    }
    assert metrics.times["inter_token_latency_seconds"].cumulative()[-1] == ("+Inf", 2)
    assert metrics.totals["generated_tokens"] == 3
    assert metrics.totals["prompt_tokens"] == 7
    assert metrics.totals["cached_tokens"] == 4
    assert metrics.ended == {("chat", "stop"): 1}
    assert metrics.longest == 10


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (GeneratorExit(), "cancelled"),
        (asyncio.CancelledError(), "cancelled"),
        (DivergedError("no"), "error"),
    ],
)
def test_why_a_request_ended_is_told_once(error, reason):
    told = []
    metrics = Metrics(told=told.append)

    def fail():
        with metrics.request(Generation([1]), Outcome()):
            raise error

    with pytest.raises(type(error)):
        fail()
    assert metrics.ended == {("other", reason): 1}
    assert [one.reason for one in told] == [reason]


def test_what_a_session_does_is_counted_while_it_does_it_and_never_twice():
    metrics, session = Metrics(Clock()), Session()
    session.counts.tokens_read, session.counts.losses = 100, [50.0, 40.0]  # of earlier requests
    with metrics.request(Generation([1]), Outcome()) as request:
        request.begins(session)
        session.counts.tokens_read, session.counts.scored = 110, 10
        session.counts.losses = [70.0, 45.0]
        metrics.refresh()
        assert metrics.totals["read_tokens"] == 10
        metrics.refresh()
        session.counts.tokens_read = 109  # as another thread may see it for a moment
        metrics.refresh()
        session.counts.tokens_read = 111
    assert metrics.totals["read_tokens"] == 11
    assert metrics.totals["scored_tokens"] == 10
    assert metrics.totals["loss_model_nats"] == 20
    assert metrics.totals["loss_memory_nats"] == 5


def test_a_window_forgets():
    clock = Clock()
    metrics = Metrics(clock)
    metrics.add("generated_tokens", 30)
    metrics.observe("e2e_request_latency_seconds", 2.0)
    clock.now += 9
    metrics.add("generated_tokens", 5)
    window = metrics.recent.over(10)
    assert window.sums["generated_tokens"] == 35
    assert window.seconds == 9
    clock.now += 1.5
    assert metrics.recent.over(10).sums["generated_tokens"] == 5
    assert metrics.recent.over(10).seconds == 9.5
    assert metrics.recent.over(60).values["e2e_request_latency_seconds"].count == 1
    clock.now += LONGEST_WINDOW - 2
    metrics.add("generated_tokens", 1)
    assert metrics.recent.over(LONGEST_WINDOW).sums["generated_tokens"] == 6
    clock.now += 1
    metrics.add("generated_tokens", 1)
    clock.now += 9
    metrics.add("generated_tokens", 1)
    assert len(metrics.recent._seconds) == 3
    assert metrics.totals["generated_tokens"] == 38


def test_nothing_is_divided_by_no_time():
    assert Metrics(Clock()).recent.over(1).seconds == 1


def test_a_distribution_holds_its_bounds():
    one = Distribution((0.1, 1.0))
    for value in (0.05, 0.1, 0.5, 1.0, 5.0):
        one.add(value)
    one.add(0.2, 3)
    assert one.cumulative() == [("0.1", 2), ("1.0", 7), ("+Inf", 8)]
    assert one.sum == pytest.approx(7.25)


@pytest.mark.parametrize("share", [0.01, 0.5, 0.9, 0.99])
def test_percentiles_are_within_five_percent(share):
    values = Values()
    for number in range(1, 1001):
        values.add(number / 1000)
    assert values.percentile(share) == pytest.approx(share, rel=0.055)
    assert Values().percentile(share) is None


def test_values_of_two_seconds_are_those_of_both():
    one, other, both = Values(), Values(), Values()
    for value in (0.0, 0.3, 4.0):
        one.add(value)
        both.add(value)
    other.add(0.7, 5)
    both.add(0.7, 5)
    one.update(other)
    assert one.to_json() == both.to_json()
    assert one.to_json()["count"] == 8


# --- what is told ----------------------------------------------------------------------------------------------


async def asked(server: Any, text: str = TEXT, **more: Any) -> Any:
    body = {"prompt": text, "max_tokens": 4, "temperature": 0, **more}
    answer = await server.client.post("/v1/completions", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_the_exposition_says_what_was_done(inside: Insider):
    async def whole() -> None:
        async with inside(atlas=True) as server:
            first = await asked(server, atlas={"session_id": "anna"})
            second = await asked(server, TEXT + first["choices"][0]["text"], atlas={"session_id": "anna"})
            answer = await server.client.get("/metrics")
            assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
            assert answer.headers["process-start-time-unix"] == str(int(server.service.started))
            found = samples(answer.text)
            usage = [first["usage"], second["usage"]]
            prompt = sum(one["prompt_tokens"] for one in usage)
            cached = sum(one["prompt_tokens_details"]["cached_tokens"] for one in usage)
            assert cached > len(TEXT)
            assert found["prompt_tokens_total"] == prompt
            assert found["cached_tokens_total"] == cached
            assert found["read_tokens_total"] == prompt - cached
            assert found["generated_tokens_total"] == 8
            assert found["requests_total{reason=length,task=completion}"] == 2
            assert found["e2e_request_latency_seconds_count"] == 2
            assert found["time_to_first_token_seconds_bucket{le=+Inf}"] == 2
            assert found["inter_token_latency_seconds_count"] == 6
            assert found["request_queue_time_seconds_count"] == 2
            assert found["num_requests_running"] == found["num_requests_waiting"] == 0
            assert 0 < found["kv_cache_usage_ratio"] < 1
            assert found["sessions{place=sequence}"] == 1
            assert found["sessions{place=memory}"] == found["sessions{place=file}"] == 0
            assert found["memory_tokens_seen_total"] == second["atlas"]["tokens_seen"]
            assert found["memory_tokens_learned_total"] == second["atlas"]["tokens_learned"]
            assert found["scored_tokens_total"] > len(TEXT) - 2
            mean = found["loss_memory_nats_total"] / found["scored_tokens_total"]
            assert mean == pytest.approx(second["atlas"]["omega_loss"])
            assert found["ready"] == 1

    asyncio.run(whole())


def test_every_family_has_a_help_line_and_no_name_comes_twice(inside: Insider):
    async def whole() -> None:
        async with inside() as server:
            await asked(server)
            text = (await server.client.get("/metrics")).text
            kinds = Counter(line.split()[2] for line in text.splitlines() if line.startswith("# TYPE"))
            helped = {line.split()[2] for line in text.splitlines() if line.startswith("# HELP")}
            assert max(kinds.values()) == 1
            assert set(kinds) == helped
            assert {f"{name}_total" for name in COUNTERS} <= set(kinds)
            assert set(TIMES) <= set(kinds)

    asyncio.run(whole())


def test_the_names_of_llama_server_are_there(inside: Insider):
    counters = {
        "prompt_tokens_total", "prompt_tokens_cached_total", "prompt_seconds_total", "tokens_predicted_total",
        "tokens_predicted_seconds_total", "n_decode_total", "n_tokens_max", "spec_decode_num_draft_tokens_total",
        "spec_decode_num_accepted_tokens_total", "spec_decode_num_drafts_total",
    }  # fmt: skip
    gauges = {
        "prompt_tokens_seconds", "predicted_tokens_seconds", "requests_processing", "requests_deferred",
        "n_busy_slots_per_decode", "kv_cache_usage_ratio",
    }  # fmt: skip

    async def whole() -> None:
        async with inside() as server:
            answer = await asked(server)
            text = (await server.client.get("/metrics")).text
            for name in counters | gauges:
                kind = "counter" if name in counters else "gauge"
                assert f"# TYPE llamacpp:{name} {kind}\n" in text
                assert f"# HELP llamacpp:{name} " in text
            values = dict(line.split(" ") for line in text.splitlines() if line.startswith("llamacpp:"))
            assert float(values["llamacpp:prompt_tokens_total"]) == answer["usage"]["prompt_tokens"]
            assert float(values["llamacpp:tokens_predicted_total"]) == 4
            assert float(values["llamacpp:n_tokens_max"]) == answer["usage"]["total_tokens"]
            assert float(values["llamacpp:n_decode_total"]) == server.service.engine.decodes
            assert float(values["llamacpp:predicted_tokens_seconds"]) > 0
            assert float(values["llamacpp:n_busy_slots_per_decode"]) > 0

    asyncio.run(whole())


def test_vectors_are_read_and_nothing_is_generated(inside: Insider):
    async def whole() -> None:
        async with inside() as server:
            answer = await server.client.post("/v1/embeddings", json={"input": ["to be", "or not"]})
            found = samples((await server.client.get("/metrics")).text)
            assert found["requests_total{reason=done,task=embedding}"] == 1
            assert found["read_tokens_total"] == answer.json()["usage"]["prompt_tokens"] == 11
            assert found["llamacpp:prompt_tokens_total"] == 11
            assert found["generated_tokens_total"] == found["num_requests_running"] == 0

    asyncio.run(whole())


def test_two_applications_count_for_themselves(inside: Insider):
    async def whole() -> None:
        async with inside() as one, inside() as other:
            await asked(one)
            found = [samples((await server.client.get("/metrics")).text) for server in (one, other)]
            assert [each["generated_tokens_total"] for each in found] == [4, 0]

    asyncio.run(whole())


def test_a_saved_memory_is_counted(inside: Insider, tmp_path):
    async def whole() -> None:
        async with inside(atlas_memory_file=str(tmp_path / "m.atlas")) as server:
            await asked(server)
            assert await server.service.save()
            found = samples((await server.client.get("/metrics")).text)
            assert found["saves_total"] == 1
            assert found["save_failures_total"] == 0
            assert found["save_seconds_total"] > 0
            assert found["last_save_time_seconds"] >= server.service.started
            stats = (await server.client.get("/v1/atlas/stats")).json()
            assert stats["memory_file"]["name"] == "m.atlas"
            assert stats["memory_file"]["saves"] == 1
            assert str(tmp_path) not in json.dumps(stats)
            assert stats["sessions"][0]["shared"]
            assert stats["sessions"][0]["session_id"] is None

    asyncio.run(whole())


def test_the_report_covers_its_window(inside: Insider):
    async def whole() -> None:
        async with inside(atlas=True) as server:
            clock = Clock()
            server.service.metrics = Metrics(clock)
            await asked(server)
            clock.now += 30
            url = "/v1/atlas/metrics"
            early = (await server.client.get(url, params={"window": 10})).json()
            late = (await server.client.get(url, params={"window": 60})).json()
            assert early["tokens"]["generated"] == {"count": 0, "per_second": 0}
            assert early["latency"]["time_to_first_token_seconds"]["p50"] is None
            assert early["loss"] == {"tokens": 0, "model": None, "memory": None, "saved": None}
            assert late["tokens"]["generated"] == {"count": 4, "per_second": 4 / 30}
            assert late["requests"]["by_reason"] == {"length": 1}
            assert late["requests"]["per_second"] == 1 / 30
            assert late["latency"]["e2e_request_latency_seconds"]["count"] == 1
            assert late["loss"]["saved"] == pytest.approx(late["loss"]["model"] - late["loss"]["memory"])
            assert late["totals"]["tokens"]["generated"] == early["totals"]["tokens"]["generated"] == 4
            text = (await server.client.get(url, params={"format": "prometheus"})).text
            assert samples(text)["generated_tokens_total"] == 4

    asyncio.run(whole())


@pytest.mark.parametrize("query", [{"window": 0}, {"window": LONGEST_WINDOW + 1}, {"format": "xml"}])
def test_a_window_that_is_none_is_refused(inside: Insider, query):
    async def whole() -> None:
        async with inside() as server:
            answer = await server.client.get("/v1/atlas/metrics", params=query)
            assert answer.status_code == 400
            assert answer.json()["error"]["param"] == next(iter(query))

    asyncio.run(whole())


def test_of_many_sessions_the_newest_are_listed(inside: Insider, monkeypatch):
    monkeypatch.setattr("atlas_kit.server.overview.MOST_LISTED", 2)

    async def whole() -> None:
        async with inside() as server:
            for name in ("anna", "bert", "cora"):
                await asked(server, atlas={"session_id": name})
            report = (await server.client.get("/v1/atlas/metrics")).json()
            assert [one["session_id"] for one in report["conversations"]] == ["cora", "bert"]
            assert sum(report["sessions"].values()) == 3

    asyncio.run(whole())


def test_nobody_sees_other_peoples_sessions(inside: Insider):
    async def whole() -> None:
        async with inside(api_key=("one", "two")) as server:
            for key, name in (("one", "anna"), ("two", "bert")):
                server.client.headers["authorization"] = f"Bearer {key}"
                await asked(server, atlas={"session_id": name})
            for key, name, other in (("one", "anna", "bert"), ("two", "bert", "anna")):
                server.client.headers["authorization"] = f"Bearer {key}"
                for path in ("/v1/atlas/metrics", "/v1/atlas/stats"):
                    text = (await server.client.get(path)).text
                    assert name in text
                    assert other not in text
                slots = (await server.client.get("/v1/atlas/metrics")).json()["slots"]
                assert Counter(slot["session_id"] for slot in slots)[name] == 1
            server.client.headers["authorization"] = "Bearer three"
            for path in ("/metrics", "/v1/atlas/metrics", "/v1/atlas/metrics/stream", "/v1/atlas/stats"):
                assert (await server.client.get(path)).status_code == 401

    asyncio.run(whole())


def test_metrics_are_there_before_the_model(inside: Insider):
    async def whole() -> None:
        async with inside() as server:
            server.service.ready = False
            assert samples((await server.client.get("/metrics")).text)["ready"] == 0
            assert (await server.client.get("/v1/atlas/metrics")).json()["state"] == "loading"
            server.service.ready = True

    asyncio.run(whole())


def test_a_scrape_does_not_wait_for_the_model(serve: Server):
    """The engine's thread is held in the middle of a decode; metrics are told all the same."""
    engine = fake_engine()
    decode, held, go_on = engine.decode, threading.Event(), threading.Event()

    def slow(*args: Any, **options: Any) -> Any:
        held.set()
        assert go_on.wait(LONG)
        return decode(*args, **options)

    engine.decode = slow  # type: ignore[method-assign]
    server = serve(engine, atlas=True)
    answers: list[Any] = []
    body = {"prompt": TEXT, "max_tokens": 2, "atlas": {"session_id": "anna"}}
    asking = threading.Thread(target=lambda: answers.append(server.post("/v1/completions", **body)))
    asking.start()
    try:
        assert held.wait(LONG)
        found = samples(server.client.get("/metrics").text)
        assert found["num_requests_running"] == 1
        assert found["llamacpp:requests_processing"] == 1
        report = server.get("/v1/atlas/metrics")
        assert report["requests"]["running"] == 1
        assert report["conversations"][0]["busy"]
        assert [slot["task"] for slot in report["slots"] if slot["busy"]] == ["completion"]
    finally:
        go_on.set()
        asking.join(LONG)
    assert answers[0]["usage"]["completion_tokens"] == 2
    until(lambda: samples(server.client.get("/metrics").text)["num_requests_running"] == 0)


def test_the_stream_goes_on_until_the_server_stops(serve: Server):
    server = serve(atlas=True)
    frames: list[Any] = []
    with server.client.stream("GET", "/v1/atlas/metrics/stream", params={"interval": 0.2}) as answer:
        assert answer.headers["content-type"].startswith("text/event-stream")
        for line in answer.iter_lines():
            if not line.startswith("data: "):
                continue
            frames.append(json.loads(line[6:]))
            if len(frames) == 2:
                server.post(
                    "/v1/completions", prompt=TEXT, max_tokens=3, temperature=0, atlas={"session_id": "anna"}
                )
            if frames[-1]["totals"]["requests"]:
                server.service.stopping = True
    assert frames[0]["totals"]["tokens"]["generated"] == 0
    assert frames[-1]["totals"]["tokens"]["generated"] == 3
    assert frames[-1]["conversations"][0]["session_id"] == "anna"
    assert [frames[0]["state"], frames[-1]["state"]] == ["ready", "stopping"]


def test_a_client_that_leaves_is_a_request_that_was_cancelled(serve: Server):
    server = serve(fake_engine(n_ctx=1 << 20))  # or the answer may be over before it has left
    body = {"prompt": TEXT, "max_tokens": 1 << 19, "stream": True, "temperature": 0}
    with server.client.stream("POST", "/v1/completions", json=body) as answer:
        next(answer.iter_lines())
    found: Any = None

    def none_runs() -> bool:
        nonlocal found
        found = samples(server.client.get("/metrics").text)
        return not found["num_requests_running"]

    until(none_runs)
    assert found["requests_total{reason=cancelled,task=completion}"] == 1


def test_while_a_text_is_answered_again_nothing_of_it_has_left_the_context(serve: Server):
    """The longer text that was there before is none of it any more."""
    engine = fake_engine()
    decode, held, go_on, left = engine.decode, threading.Event(), threading.Event(), [10**6]

    def slow(*args: Any, **options: Any) -> Any:
        left[0] -= 1
        if not left[0]:
            held.set()
            assert go_on.wait(LONG)
        return decode(*args, **options)

    engine.decode = slow  # type: ignore[method-assign]
    server = serve(engine, atlas=True)
    body = {"prompt": TEXT, "max_tokens": 60, "ignore_eos": True, "atlas": {"session_id": "anna"}}
    server.post("/v1/completions", **body)
    (before,) = server.get("/v1/atlas/metrics")["conversations"]
    assert before["conversation_tokens"] > len(TEXT) + 50
    left[0] = 5
    asking = threading.Thread(target=lambda: server.post("/v1/completions", **body))
    asking.start()
    try:
        assert held.wait(LONG)
        (now,) = server.get("/v1/atlas/metrics")["conversations"]
        assert now["busy"]
        assert now["left_context_tokens"] == 0
        assert len(TEXT) <= now["conversation_tokens"] < before["conversation_tokens"]
    finally:
        go_on.set()
        asking.join(LONG)
    (after,) = server.get("/v1/atlas/metrics")["conversations"]
    assert after["conversation_tokens"] == before["conversation_tokens"]
