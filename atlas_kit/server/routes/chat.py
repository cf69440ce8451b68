"""``POST /v1/chat/completions``: a conversation goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.server.generation import Generating, Generation
from atlas_kit.server.routes.common import (
    TheService,
    limit_of,
    namespace_of,
    new_id,
    now,
    sampling_of,
    stops_of,
    usage_of,
)
from atlas_kit.server.schemas import ChatRequest
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import DONE, event, streamed, unless_gone

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/chat/completions", summary="Continue a conversation")
@router.post("/chat/completions", include_in_schema=False)
async def chat(request: Request, asked: ChatRequest, service: TheService) -> Any:
    """Answer the last message of a conversation."""
    service.require_ready()
    answer = _Answer(service, asked, namespace_of(request))
    if asked.stream:
        return await streamed(answer.events())
    return await unless_gone(request, answer.whole())


class _Answer:
    def __init__(self, service: Service, asked: ChatRequest, namespace: str) -> None:
        self._service, self._asked = service, asked
        self._id, self._created = new_id("chatcmpl-"), now()
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        messages = [one.model_dump(exclude_none=True) for one in asked.messages]
        for one in messages:
            if one["role"] == "developer":
                one["role"] = "system"
        tokens = service.template.tokens(messages)
        generation = Generation(
            tokens,
            sampling_of(asked),
            limit_of(service, asked.max_completion_tokens, asked.max_tokens),
            stops_of(asked),
            (asked.top_logprobs or 0) if asked.logprobs else None,
            settings_in(atlas),
            "chat",
        )
        self._runs = [service.generate(namespace, atlas, generation) for _ in range(asked.n or 1)]

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""

        async def one(run: Generating) -> None:
            async for _ in run.tokens():
                pass

        await asyncio.gather(*map(one, self._runs))
        choices = [
            {
                "index": index,
                "message": {"role": "assistant", "content": run.outcome.text, "refusal": None},
                "logprobs": None,
                "finish_reason": run.outcome.finish_reason,
            }
            for index, run in enumerate(self._runs)
        ]
        outcomes = [run.outcome for run in self._runs]
        return self._shape("chat.completion", choices, usage=usage_of(outcomes), atlas=outcomes[0].atlas)

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes: the role, the content, the end, the usage."""
        for index, run in enumerate(self._runs):
            begun = False
            async for tokens in run.tokens():
                if not begun:
                    yield self._chunk(index, {"role": "assistant", "content": ""})
                    begun = True
                text = "".join(token.text for token in tokens)
                if text:
                    yield self._chunk(index, {"content": text})
            if not begun:
                yield self._chunk(index, {"role": "assistant", "content": ""})
            yield self._chunk(index, {}, run.outcome.finish_reason, atlas=run.outcome.atlas)
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            usage = usage_of([run.outcome for run in self._runs])
            yield event(self._shape("chat.completion.chunk", [], usage=usage))
        yield DONE

    def _chunk(self, index: int, delta: dict[str, Any], reason: str | None = None, **more: Any) -> bytes:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": reason}
        return event(self._shape("chat.completion.chunk", [choice], **more))

    def _shape(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.model_name,
            "choices": choices,
            **more,
        }
