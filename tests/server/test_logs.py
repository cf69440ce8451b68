"""``logs.py``: a line for each request, what belongs to it, and what is never in it."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import logging
import os
import re
from collections.abc import Iterator
from typing import Any

import pytest

pytest.importorskip("fastapi", reason="the packages of the server are not installed")

from atlas_kit.errors import DivergedError
from atlas_kit.server import ServerConfig, logs
from tests.server.conftest import Insider

SECRET = "canary-7c1f"


@contextlib.contextmanager
def written(**settings: Any) -> Iterator[io.StringIO]:
    """Give what the server writes into its log."""
    names = ("atlas_kit.server", "uvicorn", "asyncio")
    levels = {name: logging.getLogger(name).level for name in names}
    stream = io.StringIO()
    handler = logs.set_up(ServerConfig(**{"model": "fake", "log_format": "json", **settings}), stream)
    try:
        yield stream
    finally:
        for name, level in levels.items():
            logging.getLogger(name).removeHandler(handler)
            logging.getLogger(name).setLevel(level)


def lines(stream: io.StringIO, logger: str = "atlas_kit.server.access") -> list[Any]:
    """Return the lines of a logger, as objects."""
    found = [json.loads(line) for line in stream.getvalue().splitlines()]
    return [one for one in found if one["logger"] == logger]


def test_a_request_is_one_line_with_its_id_and_its_tokens(inside: Insider):
    async def whole() -> None:
        with written() as stream:
            async with inside(atlas=True) as server:
                body = {"prompt": f"{SECRET} " * 9, "max_tokens": 3, "temperature": 0}
                answer = await server.client.post("/v1/completions", json=body)
                usage = answer.json()["usage"]
        (line,) = lines(stream)
        assert line["request_id"] == answer.headers["x-request-id"]
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line["time"])
        assert (line["level"], line["method"], line["path"], line["status"]) == (
            "info", "POST", "/v1/completions", 200,
        )  # fmt: skip
        assert line["prompt_tokens"] == usage["prompt_tokens"]
        assert line["generated_tokens"] == usage["completion_tokens"]
        assert (line["cached_tokens"], line["reason"], line["task"]) == (0, "length", "completion")
        assert line["seconds"] >= line["seconds_reading"] > 0
        assert SECRET not in stream.getvalue()

    asyncio.run(whole())


def test_a_stream_is_one_line_too_and_several_answers_are_added_up(inside: Insider):
    async def whole() -> None:
        with written() as stream:
            async with inside() as server:
                body = {
                    "prompt": "to be or not",
                    "max_tokens": 3,
                    "n": 2,
                    "stream": True,
                    "logit_bias": {"256": -100},
                }
                await server.client.post("/v1/completions", json=body, headers={"x-request-id": "mine-1"})
        (line,) = lines(stream)
        assert line["request_id"] == "mine-1"
        assert line["generated_tokens"] == 6
        assert line["prompt_tokens"] == 2 * len("to be or not")

    asyncio.run(whole())


def test_prompts_and_answers_are_written_only_where_that_is_wanted(inside: Insider):
    async def whole() -> None:
        with written(log_prompts=True) as stream:
            async with inside(log_prompts=True) as server:
                body = {"prompt": SECRET, "max_tokens": 3, "temperature": 0}
                answer = (await server.client.post("/v1/completions", json=body)).json()
        (line,) = lines(stream)
        assert line["prompt"] == SECRET
        assert line["answer"] == answer["choices"][0]["text"]

    asyncio.run(whole())


@pytest.mark.parametrize("log_format", ["text", "json"])
@pytest.mark.parametrize(
    ("path", "body", "headers"),
    [
        ("/v1/completions", {"prompt": f"{SECRET} " * 200}, {}),
        ("/v1/completions", {"prompt": {SECRET: SECRET}}, {}),
        (
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": SECRET}], "stop": [1, SECRET]},
            {},
        ),
        ("/v1/completions", {"prompt": "a"}, {"authorization": f"Bearer {SECRET}"}),
        ("/v1/completions", {"prompt": "a"}, {"x-api-key": SECRET}),
        ("/v1/completions", {"prompt": "a"}, {"x-request-id": f"{SECRET} with spaces"}),
        ("/v1/completions", {"prompt": "a", "grammar": SECRET}, {}),
    ],
)
def test_no_prompt_and_no_key_is_in_the_log_when_something_is_wrong(
    inside: Insider, log_format, path, body, headers
):
    async def whole() -> None:
        with written(log_format=log_format) as stream:
            async with inside(api_key=("right",) if headers else ()) as server:
                answer = await server.client.post(path, json=body, headers=headers)
                assert 400 <= answer.status_code < 500
        assert str(answer.status_code) in stream.getvalue()
        assert SECRET not in stream.getvalue()

    asyncio.run(whole())


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_that_nobody_expected_is_told_with_its_place_and_without_its_words(inside: Insider, stream):
    async def whole() -> None:
        with written() as log:
            async with inside() as server:

                def fail(*_: Any) -> None:
                    raise KeyError(f"no {SECRET} here")

                server.service.generate = fail  # type: ignore[method-assign]
                answer = await server.client.post(
                    "/v1/completions", json={"prompt": SECRET, "stream": stream}
                )
        assert answer.status_code == 500
        assert answer.json()["error"]["code"] == "internal_error"
        (line,) = lines(log)
        assert (line["status"], line["request_id"]) == (500, answer.headers["x-request-id"])
        (error,) = lines(log, "atlas_kit.server")[1:]  # the first says that the server is ready
        assert error["level"] == "error"
        assert error["request_id"] == line["request_id"]
        assert error["error"]["said"] == "KeyError"
        assert error["error"]["traceback"][-1].endswith("in fail")
        assert SECRET not in log.getvalue()
        assert SECRET not in answer.text

    asyncio.run(whole())


def record(error: BaseException) -> logging.LogRecord:
    return logging.LogRecord(
        "atlas_kit.server", logging.ERROR, "", 0, "it failed", (), (type(error), error, None)
    )


def test_what_the_library_and_the_system_say_is_kept():
    known, system = DivergedError("the memory diverged"), OSError(28, os.strerror(28))
    assert logs.JsonLines().error(record(known)) == ["DivergedError: the memory diverged"]
    assert logs.JsonLines().error(record(system)) == ["OSError: [Errno 28] No space left on device"]
    assert logs.JsonLines(words=True).error(record(KeyError("a"))) == ["KeyError: 'a'"]


def test_what_caused_an_error_is_told_first():
    error = DivergedError("the memory diverged")
    error.__cause__ = ValueError(SECRET)
    error.__cause__.__context__ = error  # a ring
    assert logs.TextLines().format(record(error)).splitlines()[1:] == [
        "    ValueError",
        "    DivergedError: the memory diverged",
    ]


@pytest.mark.parametrize("path", ["/health", "/ready", "/metrics", "/v1/atlas/metrics"])
def test_what_machines_look_at_all_the_time_is_not_written(inside: Insider, path):
    async def whole() -> None:
        with written() as stream:
            async with inside() as server:
                assert (await server.client.get(path)).status_code == 200
                assert lines(stream) == []
                server.service.stopping = True
                answer = await server.client.get(path)
        assert [line["status"] for line in lines(stream)] == [503] * (answer.status_code == 503)

    asyncio.run(whole())


def test_a_path_cannot_look_like_a_line(inside: Insider):
    async def whole() -> None:
        with written(log_format="text") as stream:
            async with inside() as server:
                await server.client.get("/a%0a2026-01-01 INFO all is well%1b[31m")
        text = stream.getvalue()
        (line,) = [one for one in text.splitlines() if "all is well" in one]
        assert "GET /a\\n2026-01-01" in line
        assert "\x1b" not in text

    asyncio.run(whole())


ODD = "a b\n\x1b[31m" + "".join(map(chr, (0x85, 0x9B, 0x2028, 0x202E, 0xD800, 0xE0001))) + "\u00e9\u6f22"


@pytest.mark.parametrize("formatter", [logs.TextLines, logs.JsonLines])
def test_whatever_is_written_is_one_line_that_moves_no_cursor(formatter: Any):
    made = logging.LogRecord("atlas_kit.server", logging.INFO, "", 0, "done", (), None)
    made.facts = {"path": "/x", "prompt": ODD, "answer": ODD.replace(" ", "")}
    line = formatter().format(made)
    assert line.isprintable()
    assert "\u00e9\u6f22" in line
    if formatter is logs.JsonLines:
        assert json.loads(line)["prompt"] == ODD


def test_text_lines_are_for_people():
    made = logging.LogRecord("atlas_kit.server", logging.INFO, "", 0, "memory saved: %s", ("a.atlas",), None)
    made.facts = {"request_id": "req_1", "prompt": "two words", "status": 200}
    assert re.fullmatch(
        r'\d{4}-\d\d-\d\d \d\d:\d\d:\d\d INFO memory saved: a.atlas request_id=req_1 prompt="two words"',
        logs.TextLines().format(made),
    )


def test_facts_outside_a_request_belong_to_nobody():
    logs.note(prompt_tokens=3)
    with logs.about("one") as facts:
        logs.note(prompt_tokens=3, task=None)
        logs.note(prompt_tokens=4, reason="stop")
    assert facts == {"request_id": "one", "prompt_tokens": 7, "reason": "stop"}


def test_requests_at_once_keep_their_facts_apart(inside: Insider):
    async def whole() -> None:
        with written() as stream:
            async with inside() as server:
                sizes = [3, 5, 8, 13]
                await asyncio.gather(
                    *(
                        server.client.post("/v1/completions", json={"prompt": "a" * n, "max_tokens": 1})
                        for n in sizes
                    )
                )
        found = lines(stream)
        assert sorted(line["prompt_tokens"] for line in found) == sizes
        assert len({line["request_id"] for line in found}) == 4

    asyncio.run(whole())
