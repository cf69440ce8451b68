"""``/v1/responses``: OpenAI's Responses API, where an answer goes on from an earlier one by its id.

``previous_response_id`` and ``conversation`` say both which text goes on and whose memory has read it. Texts are kept
by ``server/kept_responses.py``; where a conversation's is not there any more, but its session is, the session's own
text goes on.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncGenerator, AsyncIterator
from typing import TYPE_CHECKING, Any

from fastapi import APIRouter, Request
from starlette.responses import Response

from atlas_kit.errors import InvalidParamError
from atlas_kit.server.dialogue import Asked, Dialogue, dialogue
from atlas_kit.server.dialogue_parts import budget_for, reasoning_format_of, sampling_for, shape_of
from atlas_kit.server.json_response import JsonResponse
from atlas_kit.server.kept_responses import Kept
from atlas_kit.server.logprobs import Released, chat_logprobs
from atlas_kit.server.native_answer import told_progress
from atlas_kit.server.outcome import Generation, Outcome
from atlas_kit.server.problems import SESSION, ApiError, naming
from atlas_kit.server.request_parts import (
    limit_of,
    new_id,
    now,
    sampling_of,
    stops_of,
    timings_of,
)
from atlas_kit.server.response_items import Output, chat_messages, chat_tools, listed, page, said, text_format
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_responses import ResponsesRequest
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.session_names import checked_session_id
from atlas_kit.server.streams import ahead, event, kept_awake, streamed, told, unless_gone
from atlas_kit.server.talk import Talk

if TYPE_CHECKING:
    from atlas_kit.server.conversation import Conversation

router = APIRouter(tags=["OpenAI"])
#: A comment, which clients skip.
_AWAKE = b": the answer is on its way\n\n"
_LOGPROBS = "message.output_text.logprobs"


@router.post("/v1/responses", summary="Answer, and remember what was said")
@router.post("/responses", include_in_schema=False)
async def create(request: Request, asked: ResponsesRequest, service: TheService) -> Any:
    """Answer a text, on its own or as what comes next in a conversation."""
    service.require_ready()
    answer = _Answer(service, asked, namespace_of(request))
    if asked.stream:
        return await streamed(kept_awake(answer.events(), _AWAKE))
    return JsonResponse(await unless_gone(request, answer.whole()))


@router.post("/v1/responses/input_tokens", summary="Count the tokens of a request for an answer")
@router.post("/responses/input_tokens", include_in_schema=False)
async def input_tokens(request: Request, asked: ResponsesRequest, service: TheService) -> dict[str, Any]:
    """Return how many tokens would be read."""
    service.require_ready()
    answer = _Answer(service, asked, namespace_of(request))
    found = await answer.count()
    return {"object": "response.input_tokens", "input_tokens": found}


@router.get("/v1/responses/{name}", summary="An answer of before")
@router.get("/responses/{name}", include_in_schema=False)
async def retrieve(request: Request, name: str, service: TheService, stream: bool = False) -> Response:
    """Return an answer that was stored."""
    service.require_ready()
    if stream:
        raise ApiError(400, "An answer that is complete is not streamed again.", param="stream")
    return JsonResponse((await _kept(service, namespace_of(request), name)).response)


@router.delete("/v1/responses/{name}", summary="Forget an answer")
@router.delete("/responses/{name}", include_in_schema=False)
async def delete(request: Request, name: str, service: TheService) -> dict[str, Any]:
    """Forget the id of an answer; what a memory has learned of it is not unlearned."""
    service.require_ready()
    if not await service.responses.delete(namespace_of(request), name):
        raise _not_found(name)
    return {"id": name, "object": "response", "deleted": True}


@router.get("/v1/responses/{name}/input_items", summary="What an answer was asked with")
async def input_items(
    request: Request, name: str, service: TheService, limit: int = 20, order: str = "desc", after: str = ""
) -> Response:
    """Return the items that were sent for an answer."""
    service.require_ready()
    return JsonResponse(page((await _kept(service, namespace_of(request), name)).items, limit, order, after))


@router.post("/v1/responses/{name}/cancel", include_in_schema=False)
async def cancel(name: str) -> None:
    """Refuse: nothing is answered in the background."""
    raise ApiError(400, "Only an answer in the background can be cancelled: close the connection.")


@router.post("/v1/responses/compact", include_in_schema=False)
async def compact() -> None:
    """Refuse: a memory is what holds what the context cannot."""
    raise ApiError(501, "Conversations are not compacted: a memory reads texts of any length.")


async def _kept(service: Service, namespace: str, name: str) -> Kept:
    found = await service.responses.find(namespace, name)
    if found is None:
        raise _not_found(name)
    return found


def _not_found(name: str) -> ApiError:
    return ApiError(404, f"There is no response with the id {name[:128]!r}.", param="id", code="not_found")


class _Answer:
    """One request, from what it says to what is kept of it."""

    def __init__(self, service: Service, asked: ResponsesRequest, namespace: str) -> None:
        self._service, self._asked, self._namespace = service, asked, namespace
        _require_possible(asked)
        self._name = asked.conversation_name
        self._named = SESSION
        if asked.atlas is None or asked.atlas.session_id is None:
            self._named = "previous_response_id" if self._name is None else "conversation"
        if self._name is not None:
            checked_session_id(self._name, "conversation")
        self._tools, self._choice, self._offered = chat_tools(asked.tools, asked.tool_choice)
        self._format = shape_of(asked, text_format(asked.text))
        self._messages = chat_messages(asked.input)
        self._logprobs = asked.top_logprobs is not None or _LOGPROBS in (asked.include or ())
        self._id, self._created = new_id("resp_"), now()
        self._output = Output()
        self._before: Kept | None = None
        self._response: dict[str, Any] = {}

    # --- answering -----------------------------------------------------------------------------------------

    async def count(self) -> int:
        """Return how many tokens would be read."""
        async with self._turn():
            return len((await self._read()).tokens)

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""
        async with contextlib.aclosing(self._steps()) as steps:
            async for _ in steps:
                pass
        return self._response

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes, in OpenAI's events; the last one has the whole of it."""
        number = 0
        async with contextlib.aclosing(ahead(self._steps())) as steps:
            try:
                async for one in steps:
                    yield event({**one, "sequence_number": number}, one["type"])
                    number += 1
            except Exception as error:
                if not number:
                    raise  # nothing was sent yet: it is an error with its own status
                problem = told(error)
                failed = {
                    **self._shape("failed", self._output.items),
                    "error": {"code": problem.code or "server_error", "message": problem.message},
                }
                last = {"type": "response.failed", "response": failed, "sequence_number": number}
                yield event(last, "response.failed")

    async def _steps(self) -> AsyncGenerator[dict[str, Any], None]:
        """Answer; yield the events, without their numbers."""
        async with self._turn() as thread:
            found = await self._read()
            talk = Talk(self._generate(found), found.parser())
            await talk.ready()
            empty = self._shape("in_progress", [])
            yield {"type": "response.created", "response": empty}
            yield {"type": "response.in_progress", "response": empty}
            released, piece = Released(self._service.engine.piece), self._service.engine.piece
            async with contextlib.aclosing(talk.parts()) as groups:
                async for tokens, parts in groups:
                    for now_read in self._run.progress():
                        more = {"response": empty, "prompt_progress": told_progress(now_read)}
                        yield {"type": "response.in_progress", **more}
                    out = chat_logprobs(released.add(tokens), piece) if self._logprobs else []
                    for one in self._output.add(parts, out):
                        if self._asked.timings_per_token and one["type"].endswith(".delta"):
                            one["timings"] = timings_of(talk.outcome)
                        yield one
            cut = talk.finish_reason == "length"
            rest = released.rest(stopped=talk.outcome.stop is not None)
            status = "incomplete" if cut else "completed"
            for one in self._output.finish(status, chat_logprobs(rest, piece) if self._logprobs else []):
                yield one
            self._end(status, talk)
            if thread is not None:
                thread.last = self._keep(talk)
            elif self._asked.store is not False:
                self._keep(talk)
            await self._service.responses.settled()
            timings = self._response["timings"]
            yield {"type": f"response.{status}", "response": self._response, "timings": timings}

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[Any]:
        """Have the text of the conversation to oneself, where there is one, and know what came before."""
        responses, atlas = self._service.responses, self._asked.atlas
        chosen = None if atlas is None else atlas.session_id
        if self._name is not None:
            self._service.conversations.require_room()
            async with responses.turn(self._namespace, self._name) as thread:
                responses.require_room(thread)
                sessions = {chosen or self._name, None if thread.last is None else thread.last.session}
                async with responses.reading(self._namespace, sessions):
                    self._before = thread.last
                    yield thread
            return
        previous = await self._previous()
        before = None if previous is None else previous.session
        sessions = {chosen or before, before}
        async with responses.reading(self._namespace, sessions):
            self._before = await self._previous()  # it may be forgotten meanwhile
            yield None

    async def _previous(self) -> Kept | None:
        """Return the answer that this one goes on from by its id; None: there is to be none."""
        if (previous := self._asked.previous_response_id) is None:
            return None
        found = await self._service.responses.find(self._namespace, previous)
        if found is None:
            raise ApiError(
                400,
                f"There is no response with the id {previous!r} to go on from: it was not stored, or so many "
                "came since that it was forgotten. Send the whole conversation.",
                param="previous_response_id",
                code="previous_response_not_found",
            )
        return found

    async def _read(self) -> Dialogue:
        """Return what is read: the text so far and what is new, or what comes behind a session's own text."""
        asked = Asked(
            tools=self._tools or None,
            tool_choice=self._choice,
            parallel=self._asked.parallel_tool_calls is not False,
            response_format=self._format,
            variables={**_effort(self._asked), **(self._asked.chat_template_kwargs or {})},
            reasoning_format=reasoning_format_of(self._service),
            own_grammar=bool(self._asked.grammar),
        )
        first = self._asked.instructions
        told_first = [{"role": "system", "content": first}] if first else []
        so_far = [] if self._before is None else self._before.text()
        messages = [*told_first, *so_far, *self._messages]
        if not messages or not (so_far or self._messages):
            raise ApiError(400, "The input is empty.", param="input")
        try:
            found = await asyncio.to_thread(
                dialogue, self._service.engine, self._service.template, messages, asked
            )
        except InvalidParamError as error:
            if (error.key or "").startswith("messages"):
                raise InvalidParamError(error.message, key="input", hint=error.hint) from error
            raise
        if self._before is None and self._name is not None:
            return await self._behind_session(found)
        return found

    async def _behind_session(self, found: Dialogue) -> Dialogue:
        """Let the new message follow what the session of the conversation has read, where its text is not kept."""
        if [one["role"] for one in self._messages] != ["user"] or self._tools:
            return found
        with naming("conversation"):
            history = await self._service.history_of(self._namespace, str(self._name))
        if not history:
            return found
        template, content = self._service.template, self._messages[0]["content"]
        following = await asyncio.to_thread(template.following, content, self._asked.instructions or None)
        return dataclasses.replace(found, tokens=[*history, *following])

    def _generate(self, found: Dialogue) -> Any:
        asked, service = self._asked, self._service
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        if self._name is not None and atlas.get("enabled") is not False:
            atlas.setdefault("session_id", self._name)
        generation = Generation(
            found.tokens,
            sampling_for(asked, service, found),
            limit_of(service, asked.max_output_tokens, asked.max_tokens),
            [*stops_of(asked), *found.stops],
            (asked.top_logprobs or 0) if self._logprobs else None,
            settings_in(atlas),
            "responses",
            around=budget_for(service, found, asked.thinking_budget),
            progress=bool(asked.stream and asked.return_progress),
            said=found.said,
        )
        self._run = service.generate(
            self._namespace, atlas, generation, goes_on=self._goes_on(atlas), named=self._named
        )
        return self._run

    def _goes_on(self, atlas: dict[str, Any]) -> Conversation | None:
        """Return the conversation whose memory has read what came before, unless another one is asked for.

        Where that is a session, or is forgotten by the time that it is looked for, ``atlas`` says what takes its place.
        """
        before = self._before
        if before is None or before.remembers is None:
            return None
        if atlas.get("session_id") is not None or atlas.get("memory_file") is not None:
            return None
        if atlas.get("enabled") not in (None, before.remembers):
            return None
        if before.session is not None:
            atlas["session_id"] = before.session
            return None
        atlas["enabled"] = before.remembers
        return before.conversation

    # --- the shape of an answer ----------------------------------------------------------------------------

    def _end(self, status: str, talk: Talk) -> None:
        self._response = {
            **self._shape(status, self._output.items),
            "usage": _usage(talk.outcome, talk.reasoning_tokens),
            "timings": timings_of(talk.outcome),
            "atlas": talk.outcome.atlas,
        }

    def _keep(self, talk: Talk) -> Kept:
        kept = Kept(
            self._response,
            listed(self._asked.input),
            [*self._messages, *said(talk.answer)],
            self._before,
            self._run.conversation,
        )
        kept.measure()
        if self._asked.store is not False:
            self._service.responses.keep(self._namespace, kept)
        return kept

    def _shape(self, status: str, output: list[dict[str, Any]]) -> dict[str, Any]:
        asked = self._asked
        defaults = sampling_of(asked, self._service)
        text = asked.text or {}
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": now() if status == "completed" else None,
            "status": status,
            "background": False,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "instructions": asked.instructions,
            "max_output_tokens": asked.max_output_tokens,
            "max_tool_calls": None,
            "model": self._service.name_for(asked.model),
            "output": output,
            "parallel_tool_calls": asked.parallel_tool_calls is not False,
            "previous_response_id": asked.previous_response_id,
            "conversation": None if self._name is None else {"id": self._name},
            "reasoning": {"effort": _word((asked.reasoning or {}).get("effort")), "summary": None},
            "service_tier": "default",
            "store": asked.store is not False,
            "temperature": defaults.temperature,
            "text": {
                "format": text.get("format") or {"type": "text"},
                "verbosity": _word(text.get("verbosity")),
            },
            "tool_choice": asked.tool_choice or "auto",
            "tools": self._offered,
            "top_logprobs": asked.top_logprobs or 0,
            "top_p": defaults.top_p,
            "truncation": asked.truncation or "disabled",
            "usage": None,
            "user": asked.user,
            "metadata": asked.metadata or {},
        }


def _require_possible(asked: ResponsesRequest) -> None:
    """Refuse what cannot be done, rather than leave it out."""
    if asked.conversation is not None and asked.previous_response_id is not None:
        raise ApiError(
            400,
            "previous_response_id and conversation both say what goes on: give one of them.",
            param="previous_response_id",
        )
    if asked.background:
        raise ApiError(400, "Nothing is answered in the background.", param="background")
    if asked.prompt is not None:
        raise ApiError(400, "There are no stored prompts: send instructions and input.", param="prompt")
    if asked.n is not None and asked.n > 1:
        raise ApiError(400, "A response is one answer: n is 1.", param="n")


def _word(value: Any) -> str | None:
    return value if isinstance(value, str) else None


def _effort(asked: ResponsesRequest) -> dict[str, Any]:
    """Return how much the model is to think, as templates call it."""
    effort = (asked.reasoning or {}).get("effort")
    if not isinstance(effort, str):
        return {}
    return {
        "reasoning_effort": effort,
        **({"enable_thinking": False} if effort in ("none", "minimal") else {}),
    }


def _usage(outcome: Outcome, reasoning: int) -> dict[str, Any]:
    """Return what an answer took, in tokens."""
    return {
        "input_tokens": outcome.prompt_tokens,
        "input_tokens_details": {"cached_tokens": outcome.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": outcome.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": reasoning},
        "total_tokens": outcome.prompt_tokens + outcome.completion_tokens,
    }
