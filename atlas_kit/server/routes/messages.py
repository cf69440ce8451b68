"""``POST /v1/messages`` and ``/v1/messages/count_tokens``: the model as Anthropic's clients know one.

Of the system prompt, what assistants put there anew for each request is left out, because nothing behind it could be
known again: Claude Code's line ``x-anthropic-billing-header: ...``, and the time of day in lines that tell the current
date and time. The date stays. See ``server/volatile.py``.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.server.anthropic_shape import Blocks, chat_choice, chat_messages, chat_tools, stop_of
from atlas_kit.server.dialogue import Asked, Dialogue, dialogue
from atlas_kit.server.dialogue_parts import budget_for, reasoning_format_of, sampling_for, shape_of
from atlas_kit.server.outcome import Generation, Outcome
from atlas_kit.server.problems import ApiError
from atlas_kit.server.request_parts import limit_of, new_id, stops_of
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_messages import MessagesRequest
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import event, kept_awake, streamed, unless_gone
from atlas_kit.server.talk import Talk, foreseen

router = APIRouter(tags=["Anthropic"])
#: Keeps a connection awake while a long prompt is read.
PING = event({"type": "ping"}, "ping")


@router.post("/v1/messages", summary="Answer a conversation, as Anthropic's API does")
async def messages(request: Request, asked: MessagesRequest, service: TheService) -> Any:
    """Answer the last message of a conversation."""
    service.require_ready()
    found = await asyncio.to_thread(_dialogue, service, asked)
    answer = _Answer(service, asked, found, namespace_of(request))
    if asked.stream:
        return await streamed(kept_awake(answer.events(), PING), anthropic=True)
    return await unless_gone(request, answer.whole())


@router.post("/v1/messages/count_tokens", summary="Count the tokens of a conversation")
async def count_tokens(asked: MessagesRequest, service: TheService) -> dict[str, int]:
    """Return how many tokens would be read."""
    service.require_ready()
    found = await asyncio.to_thread(_dialogue, service, asked)
    return {"input_tokens": len(found.tokens)}


def _dialogue(service: Service, asked: MessagesRequest) -> Dialogue:
    sent = [one.model_dump(exclude_none=True) for one in asked.messages]
    choice, parallel = chat_choice(asked.tool_choice)
    wanted = Asked(
        tools=chat_tools(asked.tools) or None,
        tool_choice=choice,
        parallel=parallel,
        response_format=shape_of(asked, _format(asked)),
        variables={**_thinking(asked), **(asked.chat_template_kwargs or {})},
        reasoning_format=reasoning_format_of(service),
        own_grammar=bool(asked.grammar),
    )
    return dialogue(service.engine, service.template, chat_messages(asked.system, sent), wanted)


def _format(asked: MessagesRequest) -> dict[str, Any] | None:
    form = (asked.output_config or {}).get("format")
    if form is None:
        return None
    if not isinstance(form, dict) or form.get("type") != "json_schema":
        raise ApiError(400, "output_config.format: its type is json_schema.", param="output_config.format")
    return form


def _thinking(asked: MessagesRequest) -> dict[str, Any]:
    """Return what templates call it; where nothing is said, the template decides."""
    kind = (asked.thinking or {}).get("type")
    return {} if kind is None else {"enable_thinking": kind != "disabled"}


def _budget(asked: MessagesRequest) -> int | None:
    """Return how many tokens thoughts may have; None: any number."""
    thinking = asked.thinking or {}
    most = thinking.get("budget_tokens")
    if most is None or thinking.get("type") != "enabled":
        return None
    if isinstance(most, bool) or not isinstance(most, int) or most < 0:
        raise ApiError(400, "thinking.budget_tokens is a number of tokens.", param="thinking.budget_tokens")
    return most


class _Answer:
    def __init__(self, service: Service, asked: MessagesRequest, found: Dialogue, namespace: str) -> None:
        self._service, self._id, self._model = service, new_id("msg_"), service.name_for(asked.model)
        self._sequences = [stop for stop in asked.stop_sequences or () if stop]
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        generation = Generation(
            found.tokens,
            sampling_for(asked, service, found),
            limit_of(service, asked.max_tokens),
            [*self._sequences, *stops_of(asked), *found.stops],
            changes=settings_in(atlas),
            task="messages",
            around=budget_for(service, found, _budget(asked)),
            said=found.said,
        )
        self._foreseen = foreseen(service, namespace, atlas, found.tokens) if asked.stream else 0
        self._talk = Talk(service.generate(namespace, atlas, generation), found.parser())
        self._blocks = Blocks()

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        async with contextlib.aclosing(self._talk.parts()) as groups:
            async for _, parts in groups:
                self._blocks.add(parts)
        self._blocks.finish()
        reason, sequence = self._stop()
        outcome = self._talk.outcome
        usage = _usage(outcome, outcome.cached_tokens, self._talk.reasoning_tokens)
        return {**self._message(reason, sequence, usage), "atlas": outcome.atlas}

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes, in Anthropic's events; the last one has the ``atlas`` object."""
        await self._talk.ready()
        outcome = self._talk.outcome
        # what is known already may be less when it is this request's turn: the last event says
        usage = _usage(outcome, self._foreseen, 0)
        yield _named({"type": "message_start", "message": self._message(None, None, usage)})
        yield PING
        async with contextlib.aclosing(self._talk.parts()) as groups:
            async for _, parts in groups:
                for one in self._blocks.add(parts):
                    yield _named(one)
        for one in self._blocks.finish():
            yield _named(one)
        reason, sequence = self._stop()
        yield _named(
            {
                "type": "message_delta",
                "delta": {"stop_reason": reason, "stop_sequence": sequence},
                "usage": _usage(outcome, outcome.cached_tokens, self._talk.reasoning_tokens),
            }
        )
        yield _named({"type": "message_stop", "atlas": outcome.atlas})

    def _stop(self) -> tuple[str, str | None]:
        return stop_of(self._talk.finish_reason, self._talk.outcome.stop, self._sequences)

    def _message(self, reason: str | None, sequence: str | None, usage: dict[str, Any]) -> dict[str, Any]:
        return {
            "id": self._id,
            "type": "message",
            "role": "assistant",
            "model": self._model,
            "content": list(self._blocks.content),
            "stop_reason": reason,
            "stop_sequence": sequence,
            "usage": usage,
        }


def _named(data: dict[str, Any]) -> bytes:
    return event(data, data["type"])


def _usage(outcome: Outcome, cached: int, thinking: int) -> dict[str, Any]:
    """Return what an answer took; ``input_tokens`` leaves out what was known, as Anthropic counts."""
    return {
        "input_tokens": outcome.prompt_tokens - cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": cached,
        "output_tokens": outcome.completion_tokens,
        "output_tokens_details": {"thinking_tokens": thinking},
    }
