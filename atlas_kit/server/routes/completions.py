"""``POST /v1/completions``: plain text goes on."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.server.completion_answer import completion
from atlas_kit.server.request_parts import awake
from atlas_kit.server.routes.common import TheService, namespace_of, size_of
from atlas_kit.server.schemas import CompletionRequest
from atlas_kit.server.streams import streamed, unless_gone

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/completions", summary="Continue a text")
async def completions(request: Request, asked: CompletionRequest, service: TheService) -> Any:
    """Continue one text or several."""
    answer = await completion(service, asked, namespace_of(request), size_of(request))
    if asked.stream:
        return await streamed(awake(service, asked, answer.events()))
    return await unless_gone(request, answer.whole())
