"""The first requests, answered before the application is there, as it answers them."""

from __future__ import annotations

import asyncio
import json
import math
import subprocess
import sys
from typing import Any

import pytest

from tests.waiting import LONG

pytest.importorskip("fastapi", reason="the packages of the server are not installed")
httpx = pytest.importorskip("httpx", reason="the packages of the server are not installed")

from atlas_kit.server.app import begun_app, guarded  # noqa: E402
from atlas_kit.server.light import First  # noqa: E402
from atlas_kit.server.light_fields import FIELDS  # noqa: E402
from atlas_kit.server.light_requests import MOST_BYTES, Light, read  # noqa: E402
from tests.server.conftest import make_service  # noqa: E402
from tools import light_fields  # noqa: E402

HALF = "\ud800"
VALUES = [
    None, True, False, 0, 1, -1, 2, 16, 17, 0.5, 1.0, -0.0, 1e9, 1e300, 2**63, -(2**63), 2**70, 10**400,
    math.nan, math.inf, "", "a",
    "none", "auto", "\u00e9\u4e2d", HALF, "x" * 40, "x" * 300, [], [1], [True], [1.0], ["a"], [HALF], [1, "a"],
    [[1]], [["a"]], [[1], "a"], [None], {}, {"a": 1}, {HALF: 1}, {"5": -1.5}, [[5, 1]], [{"role": "user"}],
    [{"role": "user", "content": "hi"}], [{"role": "user", "content": [{"type": "text", "text": "hi"}]}],
    [{"role": "user", "content": 5}], [{"content": "hi"}], [{"role": ""}], [{"role": "user", "name": "anna"}],
    {"include_usage": True}, {"include_usage": 1}, {"enabled": True, "session_id": "anna"}, {"session_id": ""},
    {"window_size": 64}, {"window_size": 64.0}, {"window_size": 3}, {"recall": "off"}, {"recall": "maybe"}, {"more": 1},
]  # fmt: skip
LEAST = {
    "CompletionRequest": {"prompt": "a"},
    "ChatRequest": {"messages": [{"role": "user", "content": "a"}]},
}


def pydantic_of(kind: str, given: Any) -> Any:
    """Return what pydantic makes of a request; None where it refuses it."""
    from pydantic import ValidationError

    from atlas_kit.server import schemas

    try:
        return getattr(schemas, kind)(**given).model_dump(exclude_none=True)
    except ValidationError:
        return None


def test_fields_are_those_of_the_schemas() -> None:
    assert light_fields.OUT.read_text(encoding="utf-8") == light_fields.written(), (
        "python -m tools.light_fields"
    )
    assert set(FIELDS) == set(LEAST)


@pytest.mark.parametrize("kind", sorted(LEAST))
def test_what_is_taken_pydantic_takes_for_the_same(kind: str) -> None:
    taken = 0
    for name in [*FIELDS[kind]["properties"], "response_format", "functions", "no_such_name"]:
        for value in VALUES:
            given = {**LEAST[kind], name: value}
            found = read(kind, json.dumps(given).encode())
            if found is None:
                continue
            taken += 1
            expected = pydantic_of(kind, json.loads(json.dumps(given)))
            assert found.model_dump() == expected, (name, value)
            assert repr(sorted(found.model_dump().items())) == repr(sorted(expected.items())), (
                name,
                value,
            )  # types, too
    assert taken > 300


@pytest.mark.parametrize("kind", sorted(LEAST))
@pytest.mark.parametrize(
    "body",
    [
        b"", b"{", b"[]", b"null", b'"a"', b"5", b"{}", b"\xff", b'{"prompt": "a", "messages": 5}', b"[" * 100_000,
        b'{"prompt": ' + b"[" * 5000 + b"]" * 5000 + b"}", b'{"n": 1}', b'{"messages": []}',
        b'{"prompt": "' + b"a" * MOST_BYTES + b'"}', b"9" * 10_000,
    ],
)  # fmt: skip
def test_what_is_no_plain_request_is_left_to_others(kind: str, body: bytes) -> None:
    assert read(kind, body) is None


def test_what_was_not_given_is_nothing() -> None:
    found = read("CompletionRequest", b'{"prompt": "a", "atlas": {"enabled": true}, "temperature": 0}')
    assert isinstance(found, Light)
    assert found.stream is None
    assert found.atlas.chosen() == {"enabled": True}
    assert isinstance(found.temperature, float)
    assert found.model_copy(update={"prompt": "b"}).prompt == "b"
    with pytest.raises(AttributeError):
        getattr(found, "__no_such_name__")  # noqa: B009


# --- answers ----------------------------------------------------------------------------------------------------


class Both:
    """The same service behind what answers first, and behind the application alone."""

    def __init__(self, **settings: Any) -> None:
        self.service = make_service(**settings)
        self.built = 0

    async def __aenter__(self) -> Both:
        await self.service.start()
        self.first = First(self.service, self._build)
        self.light = self._client(guarded(self.first, self.service))
        self.full = self._client(begun_app(self.service)[0])
        return self

    def _build(self) -> Any:
        self.built += 1
        return begun_app(self.service, inner=True)[0]

    @staticmethod
    def _client(app: Any) -> Any:
        transport = httpx.ASGITransport(app, raise_app_exceptions=False)
        return httpx.AsyncClient(transport=transport, base_url="http://server", timeout=LONG, verify=False)

    async def __aexit__(self, *_: object) -> None:
        await self.light.aclose()
        await self.full.aclose()
        await self.service.stop()


def same(answer: Any) -> Any:
    """Return what of an answer is the same each time."""
    headers = {name: answer.headers[name] for name in answer.headers if "request-id" not in name}
    headers.pop("content-length", None)
    lines = [line.removeprefix("data: ") for line in answer.text.splitlines() if line]
    events = [without_times(json.loads(one)) if one[:1] == "{" else one for one in lines]
    return answer.status_code, headers, joined(events) if len(events) > 1 else events


def joined(events: list[Any]) -> tuple[str, list[Any]]:
    """Return the text of a stream, and what else its events say: how tokens are grouped is a matter of time."""
    text, rest = "", []
    for one in events:
        choice = one["choices"][0] if isinstance(one, dict) and one["choices"] else {}
        part = choice.get("text") or (choice.get("delta") or {}).get("content") or ""
        text += part
        if not part:
            rest.append(one)
    return text, rest


def without_times(data: Any) -> Any:
    """Return an answer without what differs from one to the next."""
    if isinstance(data, dict):
        left = (
            "id",
            "created",
            "timings",
            "prompt",
            "id_slot",
            "cached_tokens",
            "conversation_tokens",
            "context_tokens",
        )
        return {name: without_times(one) for name, one in data.items() if name not in left}
    return [without_times(one) for one in data] if isinstance(data, list) else data


ASKED = [
    ("/v1/completions", {"prompt": "def", "max_tokens": 4, "temperature": 0}),
    ("/v1/completions", {"prompt": "def", "max_tokens": 4, "temperature": 0, "stream": True}),
    ("/v1/completions", {"prompt": [1, 2, 3], "max_tokens": 3, "temperature": 0, "logprobs": 2, "echo": True}),
    ("/v1/completions", {"prompt": ["a", "b"], "max_tokens": 2, "temperature": 0, "n": 2, "seed": 1}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 2, "temperature": 0, "stop": ["x"], "logit_bias": {"5": -100}}),
    ("/v1/completions", {"prompt": "", "max_tokens": 2}),
    ("/v1/completions", {"prompt": [5000], "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "best_of": 1, "n": 2}),
    ("/v1/completions", {"prompt": "a" * 1000, "max_tokens": 2}),
    ("/v1/completions", {"prompt": "a", "logit_bias": {"5": "no"}}),
    ("/v1/completions", {"prompt": "a", "atlas": {"enabled": False, "session_id": "anna"}}),
    ("/v1/completions", {"prompt": "a", "max_tokens": 3, "temperature": 0, "atlas": {"enabled": True}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0}),
    ("/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 4, "temperature": 0,
                           "stream": True, "stream_options": {"include_usage": True}}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2, "temperature": 0,
                              "logprobs": True, "top_logprobs": 2}),
    ("/v1/chat/completions", {"messages": [{"role": "robot", "content": [{"type": "image_url"}]}]}),
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "hi"}], "tool_choice": "required"}),
]  # fmt: skip


@pytest.mark.parametrize(("path", "body"), ASKED)
def test_answers_are_those_of_the_application(path: str, body: dict[str, Any]) -> None:
    async def ask() -> None:
        async with Both() as both:
            light = await both.light.post(path, json=body)
            assert both.built == 0
            assert same(light) == same(await both.full.post(path, json=body))

    asyncio.run(ask())


@pytest.mark.parametrize(
    ("method", "path", "content"),
    [
        ("POST", "/v1/completions", b"{"),
        ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": -5}'),
        ("POST", "/v1/completions", b'{"prompt": "a", "max_tokens": 2.0, "temperature": 0, "cache_prompt": true}'),
        ("POST", "/v1/chat/completions", b'{"messages": []}'),
        ("POST", "/v1/chat/completions", b'{"messages": [{"role": "user", "content": "a"}], "functions": [1]}'),
        ("GET", "/v1/models", b""),
        ("GET", "/no/such/path", b""),
        ("PUT", "/v1/completions", b"{}"),
        ("GET", "/v1/completions", b""),
        ("POST", "/health", b"{}"),
    ],
)  # fmt: skip
def test_everything_else_waits_for_the_application(method: str, path: str, content: bytes) -> None:
    async def ask() -> None:
        async with Both() as both:
            headers = {"content-type": "application/json"}
            light = await both.light.request(method, path, content=content, headers=headers)
            assert both.built == 1
            full = await both.full.request(method, path, content=content, headers=headers)
            assert same(light) == same(full)
            plain = {"prompt": "a", "max_tokens": 1}
            assert (await both.light.post("/v1/completions", json=plain)).status_code == 200
            assert both.built == 1

    asyncio.run(ask())


def test_health_needs_no_application() -> None:
    async def ask() -> None:
        async with Both() as both:
            for path in ("/health", "/v1/health", "/ready"):
                for method in ("GET", "HEAD"):
                    assert same(await both.light.request(method, path)) == same(
                        await both.full.request(method, path)
                    )
            both.service.stopping = True
            assert same(await both.light.get("/health")) == same(await both.full.get("/health"))
            assert both.built == 0

    asyncio.run(ask())


def test_errors_have_the_shape_that_the_client_knows() -> None:
    async def ask() -> None:
        async with Both() as both:
            headers = {"anthropic-version": "2023-06-01"}
            for body in ({"prompt": [5000]}, {"prompt": "a", "best_of": 1, "n": 2}):
                light = await both.light.post("/v1/completions", json=body, headers=headers)
                assert light.json()["type"] == "error"
                assert both.built == 0
                assert same(light) == same(
                    await both.full.post("/v1/completions", json=body, headers=headers)
                )
            both.service.stopping = True
            light = await both.light.get("/health", headers=headers)
            assert same(light) == same(await both.full.get("/health", headers=headers))

    asyncio.run(ask())


def test_keys_and_sizes_hold_for_the_first_requests_too() -> None:
    async def ask() -> None:
        async with Both(api_key=("secret",), max_body=4096) as both:
            body = {"prompt": "a", "max_tokens": 1, "temperature": 0}
            for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Bearer secret"}):
                light = await both.light.post("/v1/completions", json=body, headers=headers)
                full = await both.full.post("/v1/completions", json=body, headers=headers)
                assert same(light) == same(full)
            assert light.status_code == 200
            headers = {"authorization": "Bearer secret"}
            large = {"prompt": "a" * 5000}
            light = await both.light.post("/v1/completions", json=large, headers=headers)
            assert light.status_code == 413
            assert light.headers["x-request-id"].startswith("req_")
            assert both.built == 0

    asyncio.run(ask())


def test_an_unexpected_error_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    async def ask() -> None:
        async with Both() as both:
            both.service.generate = None  # type: ignore[method-assign, assignment]
            light = await both.light.post("/v1/completions", json={"prompt": "a"})
            assert light.status_code == 500
            full = await both.full.post("/v1/completions", json={"prompt": "a"})
            assert same(light) == same(full)
            await both.first.whole()
            passed = await both.light.post("/v1/completions", json={"prompt": "a"})
            assert same(passed) == same(full)

    asyncio.run(ask())
    assert [record.getMessage() for record in caplog.records].count("an unexpected error") == 3


def test_a_client_that_goes_away_ends_the_work() -> None:
    async def ask() -> None:
        async with Both() as both:
            body = json.dumps({"prompt": "a", "max_tokens": 200, "ignore_eos": True, "stream": True}).encode()
            scope = {
                "type": "http", "method": "POST", "path": "/v1/completions", "state": {"namespace": ""},
                "headers": [(b"content-length", str(len(body)).encode())],
            }  # fmt: skip
            sent: list[Any] = []
            gone = asyncio.Event()

            async def receive() -> Any:
                if not sent and not gone.is_set() and not receive.__dict__.get("given"):
                    receive.__dict__["given"] = True
                    return {"type": "http.request", "body": body, "more_body": False}
                await gone.wait()
                return {"type": "http.disconnect"}

            async def send(message: Any) -> None:
                sent.append(message)
                gone.set()

            await asyncio.wait_for(both.first(scope, receive, send), 60)
            assert not both.service.conversations.under_way
            assert len(sent) < 200

    asyncio.run(ask())


FIRST_ANSWER = """
import asyncio, sys
from atlas_kit.llama import FakeEngine
from atlas_kit.server.config import ServerConfig
from atlas_kit.server.run import First, guarded
from atlas_kit.server.service import Service

async def main():
    engine = FakeEngine(n_ctx=256, n_sequences=2)
    service = Service(ServerConfig(model="m", atlas={atlas}), open_engine=lambda _: engine)
    await service.start()
    body = b'{{"prompt": "a", "max_tokens": 2, "stream": true}}'
    headers = [(b"content-type", b"application/json")]
    scope = {{"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}}
    given = iter([{{"type": "http.request", "body": body, "more_body": False}}])
    async def receive():
        for one in given:
            return one
        await asyncio.sleep(60)
    sent = []
    async def send(message):
        sent.append(message)
    await guarded(First(service, lambda: 1 / 0), service)(scope, receive, send)
    assert sent[0]["status"] == 200, sent
    print("\\n".join(sorted(sys.modules)))
    await service.stop()

asyncio.run(main())
"""
#: What takes long to be imported, and what it is for.
HEAVY = {
    "fastapi", "pydantic", "pydantic_core", "starlette", "anyio", "jinja2", "construct", "llama_cpp",
    "prometheus_client", "httpx", "numpy.ma", "lz4", "zstandard", "email.message", "xml", "sqlite3", "unittest",
}  # fmt: skip
#: Modules of ours that the first answer needs none of.
OWN = {
    "atlas_kit.server.schemas", "atlas_kit.server.recall", "atlas_kit.server.memories", "atlas_kit.server.memory_views",
    "atlas_kit.server.embedding", "atlas_kit.server.dialogue", "atlas_kit.server.answers", "atlas_kit.llama.trace",
    "atlas_kit.llama.asking", "atlas_kit.llama.recalling", "atlas_kit.llama.likeness", "atlas_kit.persistence.snapshot",
    "atlas_kit.formats.gguf.file", "atlas_kit.formats.atlas",
}  # fmt: skip
#: And those that only a memory needs.
OF_MEMORIES = {
    "atlas_kit.memory",
    "atlas_kit.llama.token_memory",
    "atlas_kit.llama.whitened_reading",
    "atlas_kit.episodes.store",
}


@pytest.mark.parametrize("atlas", [False, True])
def test_what_is_not_imported_before_the_first_answer(atlas: bool) -> None:
    code = FIRST_ANSWER.format(atlas=atlas)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    found = set(run.stdout.split())
    assert "atlas_kit.server.completion_answer" in found
    assert sorted(found & HEAVY) == []
    assert sorted(found & OWN) == []
    assert (found >= OF_MEMORIES) if atlas else not found & OF_MEMORIES
