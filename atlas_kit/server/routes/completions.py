"""``POST /v1/completions``: plain text goes on."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.server.generation import Generating, Generation
from atlas_kit.server.problems import ApiError
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
from atlas_kit.server.schemas import CompletionRequest
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import DONE, event, streamed, unless_gone

router = APIRouter(tags=["OpenAI"])


@router.post("/v1/completions", summary="Continue a text")
async def completions(request: Request, asked: CompletionRequest, service: TheService) -> Any:
    """Continue one text or several."""
    service.require_ready()
    answer = _Answer(service, asked, namespace_of(request))
    if asked.stream:
        return await streamed(answer.events())
    return await unless_gone(request, answer.whole())


class _Answer:
    def __init__(self, service: Service, asked: CompletionRequest, namespace: str) -> None:
        self._service, self._asked = service, asked
        self._id, self._created = new_id("cmpl-"), now()
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        prompts = _prompts(service, asked.prompt)
        self._texts = [text for _, text in prompts for _ in range(asked.n or 1)]
        limit = limit_of(service, asked.max_tokens if asked.max_tokens is not None else 16)
        self._runs: list[Generating] = []
        for tokens, _ in prompts:
            generation = Generation(
                tokens,
                sampling_of(asked, service),
                limit,
                stops_of(asked),
                asked.logprobs,
                settings_in(atlas),
                "completion",
            )
            self._runs += [service.generate(namespace, atlas, generation) for _ in range(asked.n or 1)]

    async def whole(self) -> dict[str, Any]:
        """Return the answer in one piece."""

        async def one(run: Generating) -> None:
            async for _ in run.tokens():
                pass

        await asyncio.gather(*map(one, self._runs))
        choices = []
        for index, run in enumerate(self._runs):
            text = run.outcome.text
            if self._asked.echo:
                text = self._texts[index] + text
            choices.append(self._choice(index, text, run, run.outcome.finish_reason))
        return self._shape(
            choices,
            usage=usage_of([run.outcome for run in self._runs]),
            atlas=self._runs[0].outcome.atlas,
        )

    async def events(self) -> AsyncIterator[bytes]:
        """Yield the answer as it comes."""
        for index, run in enumerate(self._runs):
            if self._asked.echo:
                yield event(self._shape([self._choice(index, self._texts[index], None, None)]))
            async for tokens in run.tokens():
                text = "".join(token.text for token in tokens)
                if text or self._asked.logprobs is not None:
                    yield event(self._shape([self._choice(index, text, None, None)]))
            last = self._choice(index, "", None, run.outcome.finish_reason)
            yield event(self._shape([last], atlas=run.outcome.atlas))
        options = self._asked.stream_options
        if options is not None and options.include_usage:
            yield event(self._shape([], usage=usage_of([run.outcome for run in self._runs])))
        yield DONE

    def _choice(self, index: int, text: str, run: Generating | None, reason: str | None) -> dict[str, Any]:
        return {"text": text, "index": index, "logprobs": None, "finish_reason": reason}

    def _shape(self, choices: list[Any], **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "text_completion",
            "created": self._created,
            "model": self._service.model_name,
            "choices": choices,
            **more,
        }


def _prompts(service: Service, given: Any) -> list[tuple[list[int], str]]:
    """Return the tokens and the text of each prompt."""
    several: list[Any] = (
        given if isinstance(given, list) and given and not isinstance(given[0], int) else [given]
    )
    if len(several) > 64:
        raise ApiError(400, "At most 64 prompts are possible.", param="prompt")
    found = []
    engine = service.engine
    for one in several:
        if isinstance(one, str):
            tokens = [*engine.begin, *engine.tokenize(one)]
            found.append((tokens, one))
        else:
            if any(not 0 <= token < engine.info.n_vocab for token in one):
                raise ApiError(400, "A token lies outside the vocabulary.", param="prompt")
            text = b"".join(engine.piece(token) for token in one).decode("utf-8", "replace")
            found.append((list(one), text))
    return found
