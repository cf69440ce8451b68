"""A conversation goes on, as OpenAI's chats do: what is asked for, and the answer, whole or as it comes.

Knows no HTTP.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.llama.steps import Token
from atlas_kit.server.answers import Answer, Part
from atlas_kit.server.dialogue import Asked, Dialogue, dialogue
from atlas_kit.server.dialogue_parts import budget_for, reasoning_format_of
from atlas_kit.server.logprobs import Released, chat_logprobs
from atlas_kit.server.native_answer import told_progress
from atlas_kit.server.outcome import Generation
from atlas_kit.server.problems import ApiError
from atlas_kit.server.request_parts import (
    FINGERPRINT,
    limit_of,
    new_id,
    now,
    prepared,
    sampling_of,
    several,
    stops_of,
    timings_of,
    usage_of,
    verbose_of,
    wants_verbose,
)
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import DONE, GAP, Events, event
from atlas_kit.server.together import together

if TYPE_CHECKING:
    from atlas_kit.server.schemas import ChatRequest


async def chat_answer(service: Service, asked: ChatRequest, namespace: str, size: int | None) -> ChatAnswer:
    """Return the answer to a request, which is yet to be generated.

    Parameters
    ----------
    namespace
        Of the API key.
    size
        Bytes of the request, where it says so.
    """
    service.require_ready()
    # a schema of a few bytes may become a large grammar
    formed = asked.tools or asked.response_format or asked.json_schema
    found = await prepared(service, None if formed else size, lambda: dialogue_of(service, asked))
    return ChatAnswer(service, asked, found, namespace)


def dialogue_of(service: Service, asked: ChatRequest) -> Dialogue:
    """Return what a request asks of the model."""
    extra = asked.model_extra or {}
    for name in ("functions", "function_call"):
        if extra.get(name):
            raise ApiError(400, f"{name} is not supported: use tools.", param=name)
    if extra.get("audio") or "audio" in (extra.get("modalities") or ()):
        raise ApiError(400, "This model answers with text only.", param="modalities")
    if asked.add_generation_prompt and asked.continue_final_message:
        raise ApiError(
            400,
            "An answer is begun or continued: leave out add_generation_prompt, or continue_final_message.",
            param="continue_final_message",
        )
    roles = [message.role for message in asked.messages]
    if asked.continue_final_message and roles[-1] != "assistant":
        raise ApiError(400, "The last message is not the assistant's.", param="continue_final_message")
    if roles[-2:] == ["assistant", "assistant"]:
        raise ApiError(400, "The last two messages are both the assistant's.", param="messages")
    form = asked.response_format
    shape = None if form is None else form.model_dump(exclude_none=True, by_alias=True)
    if asked.json_schema is not None:
        shape = {"type": "json_schema", "json_schema": {"schema": asked.json_schema}}
    goes_on = asked.continue_final_message or asked.add_generation_prompt is not False
    messages = [message.model_dump(exclude_none=True) for message in asked.messages]
    return dialogue(
        service.engine,
        service.template,
        messages,
        Asked(
            tools=asked.tools,
            tool_choice=asked.tool_choice,
            parallel=asked.parallel_tool_calls is not False,
            response_format=shape,
            variables=_variables(asked),
            reasoning_format=reasoning_format_of(service, asked.reasoning_format),
            generation_prompt=goes_on,
            own_grammar=bool(asked.grammar),
        ),
    )


def _variables(asked: ChatRequest) -> dict[str, Any]:
    found = dict(asked.chat_template_kwargs or {})
    if asked.reasoning_effort is not None:
        if asked.reasoning_effort in ("none", "minimal"):
            found.setdefault("enable_thinking", False)
        found.setdefault("reasoning_effort", asked.reasoning_effort)
    return found


class ChatAnswer:
    """Answers the last message of a conversation."""

    def __init__(self, service: Service, asked: ChatRequest, found: Dialogue, namespace: str) -> None:
        self._service, self._asked = service, asked
        self._id, self._created = new_id("chatcmpl-"), now()
        if asked.top_logprobs is not None and not asked.logprobs:
            raise ApiError(400, "top_logprobs needs logprobs to be true.", param="top_logprobs")
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        if found.sampling and asked.grammar:
            raise ApiError(
                400,
                "A grammar and a form that follows from tools or response_format cannot both be followed.",
                param="grammar",
            )
        # the schema at the top is the response format's, which may leave room for thoughts and calls
        plain = asked.model_copy(update={"json_schema": None})
        generation = Generation(
            found.tokens,
            sampling_of(plain, service, **found.sampling),
            limit_of(service, asked.max_completion_tokens, asked.max_tokens, asked.n_predict),
            [*stops_of(asked), *found.stops],
            (asked.top_logprobs or 0) if asked.logprobs else None,
            settings_in(atlas),
            "chat",
            around=budget_for(service, found, asked.thinking_budget),
            progress=bool(asked.stream and asked.return_progress),
            said=found.said,
        )
        count = asked.n or asked.n_cmpl or 1
        self._runs = several(service, namespace, atlas, generation, count)
        self._parsers = [found.parser() for _ in self._runs]
        self._events: dict[tuple[int, str], Events] = {}

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        released = self._released()
        told: list[list[Token]] = [[] for _ in self._runs]
        async with contextlib.aclosing(together(self._runs)) as groups:
            async for number, tokens in groups:
                if tokens is not None:
                    self._parsers[number].add(tokens)
                    told[number] += released[number].add(tokens)
        choices = []
        for number, run in enumerate(self._runs):
            parser, outcome = self._parsers[number], run.outcome
            parser.finish(outcome.finish_reason)
            told[number] += released[number].rest(stopped=outcome.stop is not None)
            choices.append(
                {
                    "index": number,
                    "message": self._message(parser.answer),
                    "logprobs": self._logprobs(told[number]),
                    "finish_reason": parser.finish_reason,
                }
            )
        outcomes = [run.outcome for run in self._runs]
        return self._shape(
            "chat.completion",
            choices,
            usage=usage_of(outcomes),
            timings=timings_of(outcomes[0]),
            atlas=outcomes[0].atlas,
            **self._told(0),
        )

    def _told(self, number: int) -> dict[str, Any]:
        if not wants_verbose(self._service, self._asked):
            return {}
        return {"__verbose": verbose_of(self._service, self._asked, self._runs[number], number)}

    def _released(self) -> list[Released]:
        return [Released(self._service.engine.piece, bool(self._asked.logprobs)) for _ in self._runs]

    def _message(self, answer: Answer) -> dict[str, Any]:
        content: str | None = answer.content
        found: dict[str, Any] = {"role": "assistant", "refusal": None}
        if answer.reasoning:
            found["reasoning_content"] = answer.reasoning
        if answer.calls:
            content = answer.content or None
            found["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": call.arguments},
                }
                for call in answer.calls
            ]
        return {**found, "content": content}

    def _logprobs(self, tokens: Sequence[Token]) -> dict[str, Any] | None:
        if not self._asked.logprobs:
            return None
        return {"content": chat_logprobs(tokens, self._service.engine.piece), "refusal": None}

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the answer as it comes: the role, the content, the end, the usage."""
        begun: set[int] = set()
        quick = not (self._asked.logprobs or self._asked.timings_per_token)
        released = self._released()
        outcomes = [run.outcome for run in self._runs]
        async with contextlib.aclosing(together(self._runs)) as groups:
            async for number, tokens in groups:
                if number not in begun:
                    begun.add(number)
                    yield self._chunk(number, {"role": "assistant", "content": None})
                parser, outcome = self._parsers[number], outcomes[number]
                for one in self._runs[number].progress():
                    yield self._chunk(number, {}, prompt_progress=told_progress(one))
                if tokens is None:
                    parts = parser.finish(outcome.finish_reason)
                    told = released[number].rest(stopped=outcome.stop is not None)
                else:
                    parts, told = parser.add(tokens), released[number].add(tokens)
                if quick:
                    for part in parts:
                        yield self._part(number, part)
                    parts = []
                for delta in _deltas(parts, told):
                    yield self._chunk(number, delta, told=told, **self._timings(outcome))
                    told = []
                if tokens is None:
                    more: dict[str, Any] = {"atlas": outcome.atlas, "timings": timings_of(outcome)}
                    more |= self._told(number)
                    yield self._chunk(number, {}, parser.finish_reason, **more)
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            more = {"usage": usage_of(outcomes), "timings": timings_of(outcomes[0])}
            yield event(self._shape("chat.completion.chunk", [], **more))
        yield DONE

    def _part(self, number: int, part: Part) -> bytes:
        """Return the event of a part alone."""
        if part.kind in ("call", "arguments"):
            return self._chunk(number, _delta(part))
        found = self._events.get((number, part.kind))
        if found is None:
            found = Events(self._shape_of(number, _delta(Part(part.kind, GAP))))
            self._events[number, part.kind] = found
        return found(part.text)

    def _timings(self, outcome: Any) -> dict[str, Any]:
        return {"timings": timings_of(outcome)} if self._asked.timings_per_token else {}

    def _chunk(
        self,
        number: int,
        delta: dict[str, Any],
        reason: str | None = None,
        *,
        told: Sequence[Token] = (),
        **more: Any,
    ) -> bytes:
        return event(self._shape_of(number, delta, reason, told=told, **more))

    def _shape_of(
        self,
        number: int,
        delta: dict[str, Any],
        reason: str | None = None,
        *,
        told: Sequence[Token] = (),
        **more: Any,
    ) -> dict[str, Any]:
        choice = {
            "index": number,
            "delta": delta,
            "logprobs": self._logprobs(told) if told else None,
            "finish_reason": reason,
        }
        return self._shape("chat.completion.chunk", [choice], **more)

    def _shape(self, kind: str, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": kind,
            "created": self._created,
            "model": self._service.name_for(self._asked.model),
            "system_fingerprint": FINGERPRINT,
            "choices": choices,
            **more,
        }


def _deltas(parts: Sequence[Part], told: Sequence[Token]) -> list[dict[str, Any]]:
    """Return what a message goes on with; where only tokens are to be told, it is an empty text."""
    found = [_delta(part) for part in parts]
    return found or ([{"content": ""}] if told else [])


def _delta(part: Part) -> dict[str, Any]:
    if part.kind == "reasoning":
        return {"reasoning_content": part.text}
    if part.kind == "content":
        return {"content": part.text}
    if part.kind == "call":
        function = {"name": part.name, "arguments": ""}
        return {
            "tool_calls": [{"index": part.index, "id": part.id, "type": "function", "function": function}]
        }
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}
