"""Requests have the types that the API's document says: a flag is no number, a text is no number, 12.0 is 12."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from server.conftest import Insider

pytest.importorskip("pydantic", reason="the packages of the server are not installed")


@pytest.mark.parametrize(
    ("path", "body", "place"),
    [
        ("/tokenize", {"content": [True, False]}, "content"),
        ("/detokenize", {"tokens": [True]}, "tokens"),
        ("/detokenize", {"tokens": ["3"]}, "tokens"),
        ("/v1/completions", {"prompt": [True]}, "prompt"),
        ("/v1/completions", {"prompt": "a", "max_tokens": True}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": "12"}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "max_tokens": 1.5}, "max_tokens"),
        ("/v1/completions", {"prompt": "a", "temperature": True}, "temperature"),
        ("/v1/completions", {"prompt": "a", "echo": 1}, "echo"),
        ("/v1/completions", {"prompt": "a", "atlas": {"window_size": "128"}}, "atlas.window_size"),
        ("/v1/messages", {"messages": [{"role": "user", "content": "a"}], "max_tokens": "9"}, "max_tokens"),
    ],
)
def test_another_type_is_refused(inside: Insider, path: str, body: Any, place: str) -> None:
    async def test() -> None:
        async with inside() as server:
            answer = await server.client.post(path, json=body)
            assert answer.status_code == 400
            assert answer.json()["error"]["message"].startswith(place)

    asyncio.run(test())


def test_whole_numbers_may_be_written_with_a_point(inside: Insider) -> None:
    async def test() -> None:
        async with inside() as server:
            body = {"prompt": "a", "max_tokens": 2.0, "temperature": 0.0, "seed": 5, "top_p": 1}
            answer = await server.client.post("/v1/completions", json=body)
            assert answer.json()["usage"]["completion_tokens"] == 2

    asyncio.run(test())
