"""``POST /v1/chat/completions``: a conversation goes on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.server.chat_answer import chat_answer, dialogue_of
from atlas_kit.server.request_parts import awake
from atlas_kit.server.routes.common import TheService, namespace_of, prepared, size_of
from atlas_kit.server.schemas import ChatRequest
from atlas_kit.server.streams import streamed, unless_gone

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Continue a conversation")
@router.post("/chat/completions", include_in_schema=False)
async def chat(request: Request, asked: ChatRequest, service: TheService) -> Any:
    """Answer the last message of a conversation."""
    answer = await chat_answer(service, asked, namespace_of(request), size_of(request))
    if asked.stream:
        return await streamed(awake(service, asked, answer.events()))
    return await unless_gone(request, answer.whole())


@router.post("/v1/chat/completions/input_tokens", summary="Count a conversation's tokens")
@router.post("/chat/completions/input_tokens", include_in_schema=False)
async def input_tokens(request: Request, asked: ChatRequest, service: TheService) -> dict[str, Any]:
    """Return how many tokens the model would read."""
    service.require_ready()
    found = await prepared(request, lambda: dialogue_of(service, asked))
    return {"object": "chat.completion.input_tokens", "input_tokens": len(found.tokens)}
