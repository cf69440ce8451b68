"""llama-server's own ``/completion`` and ``/infill``, so that its clients work."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.llama.sampling import Sampling
from atlas_kit.server.generation import Generating
from atlas_kit.server.native_answer import NativeAnswer, chosen_fields
from atlas_kit.server.outcome import Generation
from atlas_kit.server.problems import ApiError
from atlas_kit.server.prompts import gap, prompts_of, shown
from atlas_kit.server.request_parts import (
    awake,
    reseeded,
    sampling_of,
    several,
    stops_of,
)
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.said import Said
from atlas_kit.server.schemas_native import InfillRequest, NativeOptions, NativeRequest
from atlas_kit.server.service import Service, settings_in
from atlas_kit.server.streams import event, streamed, unless_gone
from atlas_kit.server.together import together

router = APIRouter(tags=["llama-server"])
#: Answers to one request at most.
MOST_ANSWERS = 128
#: What llama-server takes and this server does not: ignoring it would answer something else.
REFUSED = (
    "lora", "backend_sampling", "grammar_lazy", "grammar_triggers", "preserved_tokens", "chat_format", "chat_parser",
    "generation_prompt", "parse_tool_calls", "speculative", "image_data", "multimodal_data",
)  # fmt: skip


@router.post("/completion", summary="Continue a text, in llama-server's own shape")
@router.post("/completions", include_in_schema=False)
async def completion(request: Request, asked: NativeRequest, service: TheService) -> Any:
    """Continue one text or several."""
    service.require_ready()
    prompts, one = prompts_of(service.engine, asked.prompt)
    return await _answered(request, service, asked, prompts, one, "completion")


@router.post("/infill", summary="Fill a gap in a text")
async def infill(request: Request, asked: InfillRequest, service: TheService) -> Any:
    """Write what stands between two texts, with a model that was trained for it."""
    service.require_ready()
    engine = service.engine
    files = [(one.filename or "tmp", one.text) for one in asked.input_extra or ()]
    room = max(1, engine.n_ctx - min(_limit(service, asked) or 0, engine.n_ctx // 2) - 1)
    tokens = gap(engine, asked.input_prefix, asked.input_suffix, asked.prompt or "", files, room)
    if tokens is None:
        raise ApiError(
            501,
            "This model cannot fill in: its vocabulary has no tokens for the text before and behind a gap.",
            code="not_supported",
        )
    return await _answered(request, service, asked, [tokens], True, "infill")


async def _answered(
    request: Request, service: Service, asked: NativeOptions, prompts: list[list[int]], one: bool, task: str
) -> Any:
    for name in REFUSED:
        if (asked.model_extra or {}).get(name):
            raise ApiError(501, f"{name} is not supported.", param=name, code="not_supported")
    answers = _Answers(service, asked, namespace_of(request), prompts, task)
    if asked.stream:
        return await streamed(awake(service, asked, answers.events()))
    found = await unless_gone(request, answers.whole())
    return found[0] if one and len(found) == 1 else found


def _limit(service: Service, asked: NativeOptions) -> int | None:
    """Return how many tokens an answer may have; None: until the model ends it."""
    given = (asked.n_predict, asked.max_completion_tokens, asked.max_tokens)
    found = next((one for one in given if one is not None), -1)
    found = service.config.n_predict if found == -1 else found
    return None if found < 0 else found


class _Answers:
    """The answers to one request."""

    def __init__(
        self, service: Service, asked: NativeOptions, namespace: str, prompts: list[list[int]], task: str
    ) -> None:
        self._service, self._asked, self._prompts = service, asked, prompts
        count = asked.n_cmpl or asked.n or 1
        if len(prompts) * count > MOST_ANSWERS:
            raise ApiError(400, f"At most {MOST_ANSWERS} answers can be asked for at once.", param="n_cmpl")
        self._probabilities = int(asked.logprobs or 0) if asked.n_probs is None else asked.n_probs
        self._stops, self._limit = stops_of(asked), _limit(service, asked)
        asked.grammar = asked.grammar or None  # its clients send an empty one for none
        sampling = sampling_of(asked, service, tells=bool(asked.post_sampling_probs and self._probabilities))
        self._answers: list[NativeAnswer] = []
        for tokens in prompts:
            for number, run in enumerate(self._runs(namespace, tokens, sampling, count, task)):
                self._answers.append(
                    NativeAnswer(
                        run,
                        len(self._answers),
                        service.engine.piece,
                        reseeded(sampling, number),
                        probabilities=self._probabilities,
                        milliseconds=asked.t_max_predict_ms or 0,
                        indent=asked.n_indent or 0,
                    )
                )

    def _runs(
        self, namespace: str, tokens: list[int], sampling: Sampling, count: int, task: str
    ) -> Sequence[Generating]:
        asked = self._asked
        atlas = asked.atlas.chosen() if asked.atlas is not None else {}
        slot = None if asked.id_slot in (None, -1) else asked.id_slot
        generation = Generation(
            tokens,
            sampling,
            self._limit,
            self._stops,
            self._probabilities or None,
            settings_in(atlas),
            task,
            reuse=asked.cache_prompt is not False,
            slot=slot,
            progress=bool(asked.stream and asked.return_progress),
            keeps=len(tokens) if asked.n_keep == -1 else min(asked.n_keep or 0, len(tokens)),
            said=None if task == "infill" else Said(source=atlas.get("source") or ""),
        )
        return several(self._service, namespace, atlas, generation, count)

    async def whole(self) -> list[dict[str, Any]]:
        """Return the answers in one piece."""
        async with contextlib.aclosing(together(self._answers)) as groups:
            async for _ in groups:
                pass
        return [self._last(answer, None) for answer in self._answers]

    async def events(self) -> AsyncGenerator[bytes, None]:
        """Yield the frames of a stream: progress, one for each token, and the answers' last."""
        timed = bool(self._asked.timings_per_token)
        counts, rests = [0] * len(self._answers), [""] * len(self._answers)
        async with contextlib.aclosing(together(self._answers)) as groups:
            async for number, found in groups:
                answer = self._answers[number]
                for one in answer.run.progress():
                    yield event(answer.progress(one, timed=timed))
                if found is None:
                    yield event(self._last(answer, rests[number]))
                    continue
                for token in found:
                    if token.id < 0:  # text that was held back belongs to no token
                        rests[number] += token.text
                        continue
                    counts[number] += 1
                    yield event(answer.frame(token, counts[number], timed=timed))

    def _last(self, answer: NativeAnswer, rest: str | None) -> dict[str, Any]:
        asked, prompt = self._asked, answer.run.asked.tokens
        found = answer.whole(
            streamed=rest,
            model=self._service.model_name,
            prompt=shown(self._service.engine, prompt),
            tokens=bool(asked.return_tokens),
            ends=self._service.engine.end_tokens if asked.ignore_eos else (),
            n_predict=-1 if self._limit is None else self._limit,
            max_tokens=-1 if self._limit is None else self._limit,
            n_keep=asked.n_keep or 0,
            n_discard=asked.n_discard or 0,
            n_probs=self._probabilities,
            stop=self._stops,
            stream=bool(asked.stream),
            timings_per_token=bool(asked.timings_per_token),
        )
        return chosen_fields(found, asked.response_fields)
