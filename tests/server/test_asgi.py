"""What every request passes: keys, sizes, kinds, methods and ids."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from atlas_kit.server.asgi import Gate, Keys
from tests.server.conftest import Insider, Server

JSON = {"content-type": "application/json"}
ASKED = b'{"prompt": "a", "max_tokens": 1}'


def answers_of(inside: Insider, *asked: tuple[str, str, dict[str, Any]], **settings: Any) -> list[Any]:
    """Return what a server answers to requests, each a method, a path and arguments of httpx."""

    async def ask() -> list[Any]:
        async with inside(**settings) as server:
            return [await server.client.request(method, path, **more) for method, path, more in asked]

    return asyncio.run(ask())


async def in_pieces(data: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(data), 1000):
        yield data[start : start + 1000]


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/messages", "/tokenize", "/v1/atlas/config"])
def test_a_body_that_is_too_large(path: str, whole: bool, inside: Insider) -> None:
    """A body in pieces does not say how large it is."""
    data = b'{"prompt": "' + b"a" * 5000 + b'"}'
    content: Any = data if whole else in_pieces(data)
    [answer] = answers_of(inside, ("POST", path, {"content": content, "headers": JSON}), max_body=2000)
    assert answer.status_code == 413
    assert "larger than 2000 bytes" in answer.json()["error"]["message"]
    assert "x-request-id" in answer.headers


@pytest.mark.parametrize("whole", [True, False], ids=["whole", "in pieces"])
@pytest.mark.parametrize(
    ("kind", "status"),
    [
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        (None, 415),
    ],
)
def test_the_kind_of_a_body(kind: str | None, status: int, whole: bool, inside: Insider) -> None:
    content: Any = ASKED if whole else in_pieces(ASKED)
    headers = {} if kind is None else {"content-type": kind}
    [answer] = answers_of(inside, ("POST", "/v1/completions", {"content": content, "headers": headers}))
    assert answer.status_code == status, answer.text


@pytest.mark.parametrize(
    "data",
    [
        b"\x1f\x8b\x08\0\0",
        b"{",
        b"\xff",
        b"[" * 100_000,
        b'{"seed": ' + b"4" * 5000 + b"}",
        b'"\\ud800',
        b" ",
    ],
    ids=["compressed", "cut", "bytes", "deep", "digits", "surrogate", "space"],
)
def test_what_is_no_json_is_said_so(data: bytes, inside: Insider) -> None:
    [answer] = answers_of(inside, ("POST", "/v1/completions", {"content": data, "headers": JSON}))
    assert answer.status_code == 400
    assert answer.json()["error"]["message"] == "The body is not JSON."
    assert answer.json()["error"]["code"] == "invalid_json"


@pytest.mark.parametrize("path", ["/health", "/", "/v1/models", "/v1/atlas/sessions", "/static/chat.js"])
def test_who_only_asks_whether_something_is_there(path: str, serve: Server) -> None:
    """Balancers and health checks (wget --spider) do so."""
    server = serve()
    there, asked = server.client.get(path), server.client.head(path)
    assert asked.status_code == there.status_code
    assert asked.content == b""
    assert server.client.get("/health").json() == {"status": "ok"}  # on the same connection


def test_whether_something_is_there_needs_a_key_too(inside: Insider) -> None:
    found = answers_of(inside, ("HEAD", "/v1/models", {}), ("HEAD", "/health", {}), api_key=("secret",))
    assert [one.status_code for one in found] == [401, 200]


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 401),
        ({"authorization": "secret"}, 401),
        ({"authorization": "Basic c2VjcmV0"}, 401),
        ({"authorization": "Bearer"}, 401),
        ({"authorization": "Bearer secre"}, 401),
        ({"authorization": "Bearer secrets"}, 401),
        ({"authorization": "Bearer Secret"}, 401),
        ({"x-api-key": ""}, 401),
        ({"authorization": b"Bearer \xff\xfe"}, 401),
        ({"authorization": "Bearer secret"}, 200),
        ({"AUTHORIZATION": "bearer   secret "}, 200),
        ({"x-api-key": "secret"}, 200),
        ({"authorization": "Basic c2VjcmV0", "x-api-key": "secret"}, 200),
    ],
)
def test_keys(headers: dict[str, Any], status: int, inside: Insider) -> None:
    [answer] = answers_of(inside, ("GET", "/v1/models", {"headers": headers}), api_key=("secret", "other"))
    assert answer.status_code == status
    assert "secret" not in answer.text


@pytest.mark.parametrize(
    "path",
    [
        "//v1/models", "/v1/models/", "/V1/models", "/health/", "/health/../v1/models", "/static", "/staticx",
        "/docs/../v1/models", "/openapi.json", "/redoc", "/v1/health/x", "/none",
    ],
)  # fmt: skip
def test_no_spelling_of_a_path_needs_no_key(path: str, inside: Insider) -> None:
    [answer] = answers_of(inside, ("GET", f"http://server{path}", {}), api_key=("secret",))
    assert answer.status_code in (401, 404)
    assert answer.status_code == 401 or "no such endpoint" in answer.text


@pytest.mark.parametrize("given", ["a", "a-b_c.d:1", "x" * 128])
def test_a_request_keeps_its_id(given: str, inside: Insider) -> None:
    [answer] = answers_of(inside, ("GET", "/health", {"headers": {"x-request-id": given}}))
    assert answer.headers["x-request-id"] == answer.headers["request-id"] == given


@pytest.mark.parametrize("given", ["", "a b", "x" * 129, b"\xe4", "a\tb", "<b>"])
def test_an_id_that_could_be_taken_for_something_else_is_replaced(given: Any, inside: Insider) -> None:
    [answer] = answers_of(inside, ("GET", "/health", {"headers": {"x-request-id": given}}))
    assert answer.headers["x-request-id"].startswith("req_")


def test_a_request_that_never_comes_whole_is_told_that_the_server_ends() -> None:
    sent: list[Any] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await receive()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append(message)

    async def ask() -> None:
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/tokenize",
            "headers": [(b"content-type", b"application/json")],
        }
        task = asyncio.ensure_future(Gate(app, Keys(()), 100)(scope, receive, send))
        await asyncio.sleep(0)
        task.cancel()  # as a listener does in the end
        await task

    asyncio.run(ask())
    assert [message.get("status") for message in sent] == [503, None]
    assert b"shutting down" in sent[1]["body"]
