"""The long test of the server: its own checks can fail, and it runs for some seconds."""

from __future__ import annotations

import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from tools.soak import checks, runner
from tools.soak import traffic as soak_traffic
from tools.soak.checks import Log, Tolerance, Violations, growth, new_canary, percentiles, strangers
from tools.soak.process import Sample
from tools.soak.traffic import Ask, Reply, Traffic, piece_of, send
from tools.soak.users import DEEDS, WRONG

STAMP = "2026-11-30 00:13:35"


# --- growth --------------------------------------------------------------------------------------------------


def series(function: Any, count: int = 200) -> tuple[list[float], list[float]]:
    times = [5.0 * number for number in range(count)]
    return times, [float(function(one)) for one in times]


@pytest.mark.parametrize(
    ("function", "grows"),
    [
        (lambda second: 300 + 0.1 * second, True),
        (lambda second: 300 + 0.1 * second + 20 * (second % 35 == 0), True),
        (lambda _: 300, False),
        (lambda second: 300 - 0.1 * second, False),
        (lambda second: 300 + second % 40, False),
        (lambda second: 300 + 100 * (second > 300), False),  # a cache that was filled, and stays so
        (lambda second: 300 + 500 * (second == 900), False),
        (lambda second: 300 + 0.02 * second, False),  # within what is allowed
    ],
    ids=["line", "noisy line", "level", "falling", "waves", "step", "peak", "little"],
)
def test_what_grows_is_seen(function: Any, grows: bool) -> None:
    found = growth(*series(function), Tolerance(0.05, 16))
    assert found is not None
    assert found.grows is grows


def test_a_floor_that_rises_is_growth_under_any_waves() -> None:
    tolerance = Tolerance(0, 4, floor=True)
    waves = growth(*series(lambda second: 20 + (second * 7) % 30), tolerance)
    leak = growth(*series(lambda second: 20 + (second * 7) % 30 + second // 100), tolerance)
    assert waves is not None
    assert leak is not None
    assert (waves.grows, leak.grows) == (False, True)


def test_a_slope_is_per_hour_and_few_values_say_nothing() -> None:
    found = growth(*series(lambda second: 10 + second), Tolerance(0, 0))
    assert found is not None
    assert found.slope == pytest.approx(3600)
    assert found.to_json()["slope_per_hour"] == pytest.approx(3600)
    assert growth([1, 2, 3], [1, 2, 3], Tolerance(0, 0)) is None


def sample(second: float, life: int, **more: Any) -> Sample:
    usual = {
        "resident": 300 << 20, "descriptors": 20, "threads": 9, "cpu": second / 3, "memory_files": 3,
        "session_files": 50, "temporary_files": 0,
    }  # fmt: skip
    return Sample(second=second, life=life, **{**usual, **more})


@pytest.mark.parametrize("name", runner.TOLERANCES)
def test_each_figure_of_a_process_may_not_grow(name: str) -> None:
    field = {"resident_mib": "resident"}.get(name, name)
    step = 1 << 20 if field == "resident" else 1
    even = [sample(n, 2) for n in range(400)]
    assert not any(one.grows for one in runner.measured(even).values())
    usual = getattr(even[0], field)
    grown = [sample(n, 2, **{field: usual + step * (n // 2)}) for n in range(400)]
    assert [one for one, found in runner.measured(grown).items() if found.grows] == [name]


def test_growth_is_that_of_the_last_life_after_its_warm_up() -> None:
    before = [sample(n, 1, descriptors=n) for n in range(300)]
    warming = [sample(300 + n, 2, descriptors=10 * n) for n in range(100)]
    even = [sample(400 + n, 2, descriptors=1000) for n in range(300)]
    chosen = runner.last_life([*before, *warming, *even])
    assert chosen[0].second == pytest.approx(300 + 0.3 * 399, abs=1)
    assert not runner.measured([*before, *warming, *even])["descriptors"].grows
    assert runner.last_life([]) == []


# --- words ---------------------------------------------------------------------------------------------------


def test_other_peoples_words_are_seen() -> None:
    chance = random.Random(1)
    mine, other = new_canary(chance), new_canary(chance)
    owners = {mine: "user 1", other: "user 2"}
    assert strangers(f"x = '{mine}'", [mine], owners) == []
    assert strangers(f"x = '{mine}{other}'", [mine], owners) == ["user 2"]
    assert strangers("zqabcdefabcdef", [mine], owners) == []  # nobody's


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (f"{STAMP} INFO POST /v1/completions 200 0.1 s request_id=req_1", None),
        (f"{STAMP} WARNING a session was not saved: cannot write: the disk is full", None),
        (f"{STAMP} INFO POST /CANARY 404 0.1 s", "words"),
        ("    /place/atlas_kit/server/asgi.py:97 in __call__", "traceback"),
        ("Traceback (most recent call last):", "traceback"),
        (f"{STAMP} ERROR something failed", "error"),
        (f"{STAMP} ERROR Cancel 2 running task(s), timeout graceful shutdown exceeded\n", None),
        (f"{STAMP} WARNING a session starts anew, its file was set aside as ab.atlas.aside: why", "damaged"),
        (f"{STAMP} WARNING a session starts anew, its file was set aside as cd.atlas.aside: why", None),
        ("/place/update.py:3: RuntimeWarning: overflow encountered in exp", "not its own"),
    ],
)
def test_lines_of_a_log(line: str, problem: str | None) -> None:
    log = Log({"zq0123456789ab": "user 1"}, harmed={"cd.atlas"})
    found = log.problem(line.replace("CANARY", "zq0123456789ab"))
    assert (found is None) is (problem is None)
    assert problem is None or problem in str(found)


def test_violations_are_counted_and_the_first_are_told() -> None:
    found = Violations()
    for number in range(checks.MOST_TOLD + 5):
        found.add("answer", "x" * 1000, number)
    assert found.count == found.kinds["answer"] == checks.MOST_TOLD + 5
    assert len(found.told) == checks.MOST_TOLD
    assert len(found.told[0]["what"]) < 1000


def test_percentiles() -> None:
    assert percentiles([]) == {}
    assert percentiles(list(range(100))) == {"p50": 50, "p95": 95, "p99": 99, "most": 99}


# --- answers -------------------------------------------------------------------------------------------------


def judged(ask: Ask, reply: Reply, sent: float = 0.0, faults: Any = ()) -> dict[str, int]:
    traffic = Traffic()
    traffic.owners["zq0123456789ab"] = "somebody"
    for kind, begin, end in faults:
        with traffic.during(kind) as fault:
            pass
        fault.begin, fault.end = begin, end
    traffic.judge(ask, reply, sent, sent + 1, {"zqmine"})
    return dict(traffic.violations.kinds)


AWAY = [("end", 100, 110)]


@pytest.mark.parametrize(
    ("ask", "reply", "sent", "faults", "right"),
    [
        (Ask("a", "/"), Reply(200), 0, (), True),
        (Ask("a", "/"), Reply(500), 0, AWAY, False),
        (Ask("a", "/"), Reply(500), 105, AWAY, False),
        (Ask("a", "/", expect={400}), Reply(400), 0, (), True),
        (Ask("a", "/", expect={400}), Reply(200), 0, (), False),
        (Ask("a", "/"), Reply(503), 0, AWAY, False),
        (Ask("a", "/"), Reply(503), 105, AWAY, True),
        (Ask("a", "/"), Reply(200, why="told"), 99, AWAY, True),
        (Ask("a", "/"), Reply(200, why="told"), 0, AWAY, False),
        (Ask("a", "/"), Reply(0, why="refused"), 105, AWAY, True),
        (Ask("a", "/"), Reply(0, why="refused"), 0, AWAY, False),
        (Ask("a", "/"), Reply(0, why="cut"), 99.5, AWAY, False),  # it was there before, and was not told
        (Ask("a", "/"), Reply(0, why="cut"), 99.5, [("kill", 100, 110)], True),
        (Ask("a", "/"), Reply(0, why="no answer in time"), 105, AWAY, False),
        (Ask("a", "/"), Reply(200, why="a stream has no end"), 105, AWAY, False),
        (Ask("a", "/", saves=True), Reply(507), 105, [("full disk", 100, 110)], True),
        (Ask("a", "/", saves=True), Reply(507), 0, [("full disk", 100, 110)], False),
        (Ask("a", "/"), Reply(507), 105, [("full disk", 100, 110)], False),
    ],
)
def test_answers_are_judged_by_what_goes_on(
    ask: Ask, reply: Reply, sent: float, faults: Any, right: bool
) -> None:
    assert judged(ask, reply, sent, faults) == ({} if right else {"answer": 1})


def test_violations_are_told_as_they_come() -> None:
    said: list[str] = []
    Traffic(said.append).wrong("answer", "x" * 1000)
    assert len(said) == 1
    assert "answer: xxx" in said[0]
    assert len(said[0]) < 400


def test_an_answer_with_somebody_elses_word_is_a_violation() -> None:
    assert judged(Ask("a", "/"), Reply(200, "x = zq0123456789ab")) == {"leak": 1}


def served(replies: list[bytes], ask: Ask) -> tuple[Reply, Traffic]:
    """Send a request to a server of one answer."""
    traffic = Traffic()

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        for part in replies:
            writer.write(part)
            await writer.drain()
        writer.close()

    async def both() -> Reply:
        server = await asyncio.start_server(answer, "127.0.0.1", 0)
        async with server:
            port = server.sockets[0].getsockname()[1]
            return await send(traffic, port, "key", ask, {"zqmine"})

    return asyncio.run(both()), traffic


HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n"


@pytest.mark.parametrize(
    ("family", "body", "why"),
    [
        ("openai", b'data: {"choices": [{"text": "a"}]}\n\ndata: [DONE]\n\n', ""),
        ("openai", b'data: {"choices": [{"text": "a"}]}\n\n', "a stream has no end"),
        ("openai", b'data: {"error": {"code": "shutting_down"}}\n\n', "told"),
        ("openai", b'data: {"error": {"code": "memory_diverged"}}\n\n', "an event tells of an error"),
        ("anthropic", b'event: message_stop\ndata: {"type": "message_stop"}\n\n', ""),
        ("anthropic", b'data: {"type": "error", "error": {"type": "overloaded_error"}}\n\n', "told"),
        ("responses", b'event: response.incomplete\ndata: {"response": {"error": null}}\n\n', ""),
        ("responses", b'data: {"response": {"error": {"code": "shutting_down"}}}\n\n', "told"),
        ("native", b'data: {"content": "a", "stop": true}\n\n', ""),
    ],
)
def test_how_streams_end(family: str, body: bytes, why: str) -> None:
    reply, traffic = served([HEAD, body], Ask("a", "/", {}, stream=family))
    assert (reply.status, reply.why) == (200, why)
    assert bool(traffic.violations.count) is bool(why)


def test_words_are_whole_that_come_in_parts() -> None:
    parts = [b'data: {"choices": [{"delta": {"content": "zq012345"}}]}\n\n', b'data: {"choices": [{"delta": '
             b'{"content": "6789ab"}}]}\n\ndata: [DONE]\n\n']  # fmt: skip
    reply, _ = served([HEAD, *parts], Ask("a", "/", {}, stream="openai"))
    assert "zq0123456789ab" in reply.text
    assert piece_of({"type": "response.output_text.delta", "delta": "a"}) == "a"
    assert piece_of({"type": "content_block_delta", "delta": {"text": "b"}}) == "b"
    assert piece_of({"content": "c", "stop": False}) == "c"


def test_connections_that_fail() -> None:
    reply, _ = served([b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"], Ask("a", "/", {}))
    assert (reply.status, reply.why) == (0, "cut")
    traffic = Traffic()
    reply = asyncio.run(send(traffic, 1, "key", Ask("a", "/"), ()))
    assert (reply.why, traffic.violations.kinds["answer"]) == ("refused", 1)


def test_time_in_which_the_machine_stands_still_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    traffic = Traffic()

    async def stand_still() -> float:
        beating = asyncio.create_task(traffic.beat())
        await asyncio.sleep(0.01)
        before = traffic.clock()
        monkeypatch.setattr(soak_traffic, "STILL", -1.0)  # so that being late by nothing is standing still
        await asyncio.sleep(1.1)
        beating.cancel()
        return traffic.clock() - before

    passed = asyncio.run(stand_still())
    assert traffic.stalls == 1
    assert passed < 1.1 + 60
    traffic.stalled += 1000
    assert traffic.clock() < traffic.began


# --- the whole -----------------------------------------------------------------------------------------------


def test_users_do_everything_that_is_asked_of_them() -> None:
    assert len({deed for _, deed in DEEDS}) == len(DEEDS) > 15
    assert all(status in (400, 404) for _, _, status in WRONG)
    assert [runner.seconds_of(one) for one in ("90", "10m", "24h", "1.5h")] == [90, 600, 86400, 5400]


def run(tmp_path: Path, repository: Path, *options: str) -> tuple[int, dict[str, Any], str]:
    """Run the test of the server; return its exit code, report and words."""
    place = tmp_path / "soak.json"
    done = subprocess.run(
        [sys.executable, "-m", "tools.soak", "--json", str(place), *options],
        cwd=repository, capture_output=True, text=True, timeout=900, check=False,
    )  # fmt: skip
    return done.returncode, json.loads(place.read_text(encoding="utf-8")), done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.model
def test_it_runs_for_some_seconds(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("fastapi", reason="the packages of the server are not installed")
    code, found, said = run(
        tmp_path, repository, "--time", "20", "--users", "12", "--think", "1", "--interval", "2"
    )
    assert code == 0, said
    assert found["verdict"] == "passed"
    assert found["traffic"]["requests"] > 20
    assert sum(found["faults"]["done"].values()) >= 1
    assert "requests" in said


@pytest.mark.slow
@pytest.mark.model
def test_one_that_is_ended_reports_what_it_saw(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("llama_cpp", reason="llama-cpp-python is not installed")
    pytest.importorskip("fastapi", reason="the packages of the server are not installed")
    place = tmp_path / "soak.json"
    command = [sys.executable, "-m", "tools.soak", "--time", "1h", "--users", "4", "--think", "0.2", "--keep"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen([*command, "--json", str(place)], cwd=repository, env=environment) as process:
        while not any(b" 200 " in log.read_bytes() for log in tmp_path.glob("*/server.log")):
            assert process.poll() is None
            time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait() == 0
    found = json.loads(place.read_text(encoding="utf-8"))
    assert found["verdict"] == "passed"
    assert found["seconds"] < 3600
    assert found["faults"]["lives"] >= 1


@pytest.mark.slow
@pytest.mark.model
def test_a_server_that_does_not_start_is_a_violation(tmp_path: Path, repository: Path) -> None:
    pytest.importorskip("fastapi", reason="the packages of the server are not installed")
    model = tmp_path / "no-model.gguf"
    model.write_bytes(b"GGUF")
    code, found, said = run(tmp_path, repository, "--time", "2", "--users", "1", "--model", str(model))
    assert code == 1
    assert "the server ended at its start" in said
    assert found["violations"]["kinds"]["start"] >= 1


def test_what_is_told_in_a_stream_that_waited_is_what_it_would_have_been_told_at_once():
    gone = b'{"error":{"message":"The session was deleted meanwhile.","type":"invalid_request_error","code":null}}'
    waited, begun = (
        b":\n\ndata: " + gone + b"\n\n",
        b'data: {"choices":[{"text":"a"}]}\n\ndata: ' + gone + b"\n\n",
    )

    def read(body: bytes, expect: set[int]) -> Reply:
        answer = soak_traffic.Answer(0.0, 200, streamed=True, body=body)
        return soak_traffic.read(answer, Ask("", "/v1/completions", {}, stream="openai", expect=expect))

    assert read(waited, {200, 400}).status == 400
    assert not read(waited, {200, 400}).why
    assert read(waited, {200}).why == "an event tells of an error"
    assert read(begun, {200, 400}).why == "an event tells of an error"
