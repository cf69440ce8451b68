"""``POST /v1/embeddings``, and llama-server's own ``/embeddings`` and ``/embedding``."""

from __future__ import annotations

import asyncio
import base64
from typing import Any

import numpy as np
from fastapi import APIRouter, Request
from starlette.responses import Response

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.pooling import normalised
from atlas_kit.server.embedding import embedded
from atlas_kit.server.json_response import JsonResponse
from atlas_kit.server.problems import ApiError, too_long
from atlas_kit.server.prompts import tokens_of
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_embeddings import EmbeddingRequest
from atlas_kit.server.service import Service
from atlas_kit.server.streams import unless_gone

router = APIRouter(tags=["OpenAI"])
#: Texts of one request at most, as OpenAI has it.
MOST_TEXTS = 2048


@router.post("/v1/embeddings", summary="Vectors of texts")
async def embeddings(request: Request, asked: EmbeddingRequest, service: TheService) -> Response:
    """Return a vector for each text: the mean of the model's final states, with the Euclidean norm 1."""
    if asked.input is None and asked.content is not None:  # llama-server's own shape goes with its own name
        return await native(request, asked, service)
    service.require_ready()
    if service.text_form.pooling == "none":
        raise ApiError(
            400, "With the pooling none a text has a vector for each token: ask for them at /embeddings.",
            param="input", code="not_supported",
        )  # fmt: skip
    texts, vectors = await _vectors(request, asked, service)
    data = [
        {"object": "embedding", "index": index, "embedding": _written(rows[0], asked.encoding_format)}
        for index, rows in enumerate(vectors)
    ]
    count = sum(map(len, texts))
    usage = {"prompt_tokens": count, "total_tokens": count}
    name = service.name_for(asked.model)
    return JsonResponse({"object": "list", "data": data, "model": name, "usage": usage})


@router.post("/embeddings", include_in_schema=False)
@router.post("/embedding", summary="Vectors of texts, in llama-server's own shape", tags=["llama-server"])
async def native(request: Request, asked: EmbeddingRequest, service: TheService) -> Response:
    """Return for each text a list with its vector, or where nothing is pooled with those of all of its tokens."""
    _, vectors = await _vectors(request, asked, service)
    found = [
        {"index": index, "embedding": [_written(vector, asked.encoding_format) for vector in rows]}
        for index, rows in enumerate(vectors)
    ]
    return JsonResponse(found)


async def _vectors(
    request: Request, asked: EmbeddingRequest, service: Service
) -> tuple[list[list[int]], list[Array]]:
    """Return the tokens of each text, and its vectors (1, d); (tokens, d) where nothing is pooled."""
    service.require_ready()
    width = service.engine.info.n_embd
    if asked.dimensions is not None and asked.dimensions > width:
        raise ApiError(400, f"The model's vectors have {width} dimensions.", param="dimensions")
    given = asked.content if asked.input is None else asked.input
    texts = await asyncio.to_thread(_texts, service, given)
    pooling = service.text_form.pooling
    work = embedded(service.conversations, namespace_of(request), texts, service.metrics, pooling)
    found = [np.atleast_2d(one)[:, : asked.dimensions] for one in await unless_gone(request, work)]
    if not all(np.isfinite(one).all() for one in found):
        raise ApiError(500, "The model's states are not finite.", code="not_finite")
    if pooling == "none":
        return texts, found  # as the model has them
    norm = 2 if asked.embd_normalize is None else asked.embd_normalize
    return texts, [normalised(one, norm) for one in found]


def _written(vector: Any, form: str | None) -> list[float] | str:
    if form == "base64":
        return base64.b64encode(vector.astype("<f4").tobytes()).decode("ascii")
    numbers: list[float] = vector.tolist()
    return numbers


def _texts(service: Service, given: Any) -> list[list[int]]:
    """Return the tokens of each text."""
    several = isinstance(given, list) and not any(map(_is_token, given))
    texts = given if several else [given]
    if not texts or len(texts) > MOST_TEXTS:
        raise ApiError(400, f"A request has 1 to {MOST_TEXTS} texts.", param="input")
    info, limit = service.engine.info, service.engine.n_ctx
    found = [_tokens(service, one) for one in texts]
    for tokens in found:
        if not tokens:
            raise ApiError(400, "A text is empty.", param="input")
        if len(tokens) > limit and not info.recurrent:
            raise too_long(
                f"The input is too large: a text has {len(tokens)} tokens, and the context holds {limit}.",
                len(tokens),
                limit,
                param="input",
            )
    return found


def _tokens(service: Service, given: Any) -> list[int]:
    """Return the tokens of one text: a string, tokens, both mixed, or an object with parts of text."""
    engine = service.engine
    if isinstance(given, dict):
        given = _text_of(given)
    if isinstance(given, str):
        tokens = tokens_of(engine, given, "input")
        return [*engine.begin, *tokens, *service.text_form.end] if tokens else []
    if not isinstance(given, list):
        raise ApiError(400, "The input is a text, tokens, or a list of either.", param="input")
    found: list[int] = []
    for number, one in enumerate(given):
        if isinstance(one, str):
            found += [*(engine.begin if number == 0 else ()), *tokens_of(engine, one, "input")]
        elif not _is_token(one) or not 0 <= one < engine.info.n_vocab:
            raise ApiError(400, "A token lies outside the vocabulary.", param="input")
        else:
            found.append(one)
    return [*found, *service.text_form.end] if given and isinstance(given[-1], str) else found


def _text_of(given: dict[str, Any]) -> str:
    if isinstance(given.get("prompt_string"), str):
        if given.get("multimodal_data"):
            raise ApiError(400, "Only text can be embedded: leave out multimodal_data.", param="input")
        return str(given["prompt_string"])
    parts = given.get("content")
    if not isinstance(parts, list) or not all(
        isinstance(part, dict) and part.get("type") == "text" and isinstance(part.get("text"), str)
        for part in parts
    ):
        raise ApiError(400, "Only text can be embedded.", param="input")
    return "".join(part["text"] for part in parts)


def _is_token(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
