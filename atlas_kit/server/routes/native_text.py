"""``/tokenize``, ``/detokenize`` and ``/apply-template``: what the model reads, and what its tokens say."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.errors import InvalidParamError, ModelError
from atlas_kit.server.dialogue import normal_messages
from atlas_kit.server.json_response import JsonResponse
from atlas_kit.server.problems import ApiError
from atlas_kit.server.prompts import checked_token, mixed, shown
from atlas_kit.server.routes.common import TheService, prepared
from atlas_kit.server.schemas_native import DetokenizeRequest, TemplateRequest, TokenizeRequest
from atlas_kit.server.service import Service

router = APIRouter(tags=["llama-server"])


@router.post("/tokenize", summary="The tokens of a text", response_model=dict[str, Any])
async def tokenize(request: Request, asked: TokenizeRequest, service: TheService) -> JsonResponse:
    """Return the tokens of a text."""
    service.require_ready()
    return await prepared(request, lambda: JsonResponse(_tokenized(service, asked)))


def _tokenized(service: Service, asked: TokenizeRequest) -> dict[str, Any]:
    if asked.content is None:
        return {"tokens": []}
    tokens = mixed(
        service.engine,
        asked.content,
        begin=bool(asked.add_special),
        special=asked.parse_special is not False,
        key="content",
    )
    if not asked.with_pieces:
        return {"tokens": tokens}
    return {
        "tokens": [
            {"id": token, "piece": _piece(service.engine.piece(token, special=True))} for token in tokens
        ]
    }


def _piece(data: bytes) -> str | list[int]:
    """Return a token's text; where that is a part of a character, its bytes."""
    try:
        return data.decode()
    except UnicodeDecodeError:
        return list(data)


@router.post("/detokenize", summary="The text of tokens", response_model=dict[str, Any])
async def detokenize(request: Request, asked: DetokenizeRequest, service: TheService) -> JsonResponse:
    """Return the text of tokens."""
    service.require_ready()
    return await prepared(request, lambda: JsonResponse(_detokenized(service, asked)))


def _detokenized(service: Service, asked: DetokenizeRequest) -> dict[str, Any]:
    tokens = [checked_token(service.engine, token, "tokens") for token in asked.tokens or ()]
    return {"content": shown(service.engine, tokens)}


@router.post("/apply-template", summary="A conversation as the model reads it")
async def apply_template(asked: TemplateRequest, service: TheService) -> dict[str, Any]:
    """Return the text of a conversation, up to where the model's answer starts."""
    service.require_ready()
    if service.template is None:
        raise ApiError(400, "The model has no chat template.", param="messages", code="no_chat_template")
    messages = normal_messages(asked.messages)
    try:
        text = service.template.text(
            messages,
            answer=asked.add_generation_prompt is not False,
            tools=asked.tools or None,
            variables=asked.chat_template_kwargs,
        )
    except ModelError as error:  # a template may refuse what it is given
        raise InvalidParamError(error.message, key="messages") from error
    begin = shown(service.engine, service.engine.begin)
    # whoever sends it back as a prompt has the begin token put before it
    return {"prompt": text.removeprefix(begin) if begin else text}
