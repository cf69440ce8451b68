"""Conversations and where they are: leases, moves, and what a text that is sent again costs."""

from __future__ import annotations

import asyncio
from typing import Any


def test_a_text_that_is_sent_again_is_not_read_again(serve: Any) -> None:
    server = serve()
    for cached in (0, 48):
        answer = server.post("/v1/completions", prompt="abcdef" * 8, max_tokens=4)
        assert answer["usage"]["prompt_tokens_details"]["cached_tokens"] == cached
    assert [len(one["choices"]) for one in server.events("/v1/completions", prompt="a", max_tokens=2)]


def test_a_session_remembers_what_it_has_read(inside: Any) -> None:
    async def test() -> None:
        async with inside(atlas=True) as server:
            body = {"prompt": "xyz" * 20, "max_tokens": 2, "atlas": {"session_id": "anna"}}
            for cached in (0, 60):
                answer = await server.client.post("/v1/completions", json=body)
                assert answer.status_code == 200, answer.text
                assert answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"] == cached

    asyncio.run(test())
