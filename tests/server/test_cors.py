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
