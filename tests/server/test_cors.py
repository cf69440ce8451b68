"""Pages in browsers: which may ask, and what they are told."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from tests.server.conftest import Insider

ASKS = {
    "origin": "https://page.example",
    "access-control-request-method": "POST",
    "access-control-request-headers": "authorization, content-type",
}


def headers_of(inside: Insider, method: str, path: str, headers: dict[str, str], **settings: Any) -> Any:
    """Return the status and header of an answer."""

    async def ask() -> Any:
        async with inside(**settings) as server:
            answer = await server.client.request(method, path, headers=headers)
            return answer.status_code, answer.headers

    return asyncio.run(ask())


@pytest.mark.parametrize(
    ("settings", "allowed"),
    [
        ({}, False),
        ({"cors": ("https://page.example",)}, True),
        ({"cors": ("https://other.example, https://page.example",)}, True),
        ({"cors": ("https://other.example",)}, False),
        ({"cors": ("localhost",)}, False),
        ({"cors": ("*",)}, True),
        ({"api_key": ("secret",)}, True),  # a page that knows the key may ask from anywhere
        ({"api_key": ("secret",), "cors": ("localhost",)}, False),
    ],
)
def test_a_page_may_ask_where_the_server_says_so(settings: Any, allowed: bool, inside: Insider) -> None:
    status, found = headers_of(inside, "OPTIONS", "/v1/chat/completions", ASKS, **settings)
    assert status == 200
    assert found["vary"] == "Origin"
    assert found.get("access-control-allow-origin") == ("https://page.example" if allowed else None)
    assert found.get("access-control-allow-methods") == ("GET, POST, DELETE, OPTIONS" if allowed else None)
    # by name: browsers do not take a star for Authorization
    wanted = "authorization, content-type" if allowed else None
    assert found.get("access-control-allow-headers") == wanted


def test_answers_and_refusals_can_be_read_by_a_page_that_may_ask(inside: Insider) -> None:
    origin = {"origin": "https://page.example"}
    for path, key, status in (("/health", "", 200), ("/props", "wrong", 401), ("/props", "secret", 200)):
        headers = {**origin, "authorization": f"Bearer {key}"}
        answered, found = headers_of(inside, "GET", path, headers, api_key=("secret",))
        assert answered == status
        assert found["access-control-allow-origin"] == "https://page.example"
        assert "x-request-id" in found["access-control-expose-headers"]


def test_who_is_no_page_is_told_nothing_of_pages(inside: Insider) -> None:
    status, found = headers_of(inside, "GET", "/health", {}, cors=("*",))
    assert status == 200
    assert not [name for name in found if name.startswith("access-control") or name == "vary"]


EVIL = {"origin": "https://page.example"}


@pytest.mark.parametrize(
    ("headers", "settings", "status"),
    [
        (EVIL, {}, 403),
        ({**EVIL, "content-type": "text/plain"}, {}, 403),
        ({"origin": "null"}, {}, 403),
        ({"origin": "http://["}, {}, 403),
        ({**EVIL, "sec-fetch-site": "same-site"}, {}, 403),
        ({**EVIL, "sec-fetch-site": "same-origin"}, {}, 200),  # behind a proxy that has another name
        ({"origin": "http://server"}, {}, 200),
        ({"origin": "http://SERVER", "content-type": "text/plain"}, {}, 200),
        (EVIL, {"cors": ("https://page.example",)}, 200),
        ({**EVIL, "authorization": "Bearer secret"}, {"api_key": ("secret",)}, 200),
        ({}, {}, 200),
    ],
)
def test_a_page_that_was_not_allowed_to_ask_changes_nothing(
    headers: dict[str, str], settings: Any, status: int, inside: Insider
) -> None:
    """Browsers send a POST without a body to any address, and only keep the answer from the page."""

    async def ask() -> Any:
        async with inside(**settings) as server:
            named = {"model": "m", "prompt": "a", "max_tokens": 1, "atlas": {"session_id": "anna"}}
            key = {"authorization": headers["authorization"]} if "authorization" in headers else {}
            await server.client.post("/v1/completions", json=named, headers=key)
            answer = await server.client.post("/v1/atlas/sessions/anna/reset", headers=headers)
            return answer.status_code

    assert asyncio.run(ask()) == status


@pytest.mark.parametrize(
    ("host", "settings", "status"),
    [
        ("page.example:8080", {}, 403),
        ("page.example.", {}, 403),
        ("127.0.0.1.page.example", {}, 403),
        ("localhost:8080", {}, 200),
        ("127.0.0.1:8080", {}, 200),
        ("[::1]:8080", {}, 200),
        ("192.168.0.7", {}, 200),
        ("atlas.localhost", {}, 200),
        ("atlas", {}, 200),
        ("page.example", {"cors": ("https://page.example",)}, 200),
        ("page.example", {"cors": ("*",)}, 200),
        ("page.example", {"host": "0.0.0.0"}, 200),
        ("page.example", {"host": "127.0.0.1,192.168.0.7"}, 200),
        ("page.example", {"host": "localhost,::1"}, 403),
    ],
)
def test_no_page_makes_this_machine_its_own_server(
    host: str, settings: Any, status: int, inside: Insider
) -> None:
    """To a browser, a page whose name leads here is of the same origin, and may read every answer."""
    answered, _ = headers_of(inside, "GET", "/v1/atlas/sessions", {"host": host}, **settings)
    assert answered == status


def test_with_a_key_a_server_may_have_any_name(inside: Insider) -> None:
    headers = {"host": "page.example", "authorization": "Bearer secret"}
    assert headers_of(inside, "GET", "/v1/atlas/sessions", headers, api_key=("secret",))[0] == 200
