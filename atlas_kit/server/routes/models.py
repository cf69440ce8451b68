"""``/v1/models``."""

from __future__ import annotations

from datetime import datetime, timezone
from typing import Any

from fastapi import APIRouter

from atlas_kit.server.problems import ApiError
from atlas_kit.server.routes.common import TheService
from atlas_kit.server.service import Service

router = APIRouter(tags=["models"])


def _model(service: Service) -> dict[str, Any]:
    info = service.engine.info
    return {
        "id": service.model_name,
        # Anthropic's clients read what has no meaning for OpenAI's, and the other way round
        "type": "model",
        "display_name": service.model_name,
        "created_at": datetime.fromtimestamp(int(service.started), timezone.utc).isoformat(),
        "lifecycle": "active",
        "max_input_tokens": service.engine.n_ctx,
        "aliases": list(service.aliases),
        "tags": [tag for tag in (service.config.tags or "").split(",") if tag],
        "object": "model",
        "created": int(service.started),
        "owned_by": "atlas_kit",
        "meta": {
            "n_vocab": info.n_vocab,
            "n_ctx": service.engine.n_ctx,
            "n_ctx_train": info.n_ctx_train,
            "n_embd": info.n_embd,
            "n_params": info.n_params,
            "size": info.size,
        },
    }


@router.get("/v1/models", summary="The model")
@router.get("/models", include_in_schema=False)
async def models(service: TheService) -> dict[str, Any]:
    """Return the list of models, which is one."""
    service.require_ready()
    name = service.model_name
    # some of llama-server's clients read the first list, which is Ollama's
    own = {"name": name, "model": name, "type": "model", "capabilities": ["completion"]}
    page = {"has_more": False, "first_id": name, "last_id": name}
    return {"models": [own], "object": "list", "data": [_model(service)], **page}


@router.get("/v1/models/{name:path}", summary="The model of a name")
async def model(name: str, service: TheService) -> dict[str, Any]:
    """Return the model, where that is its name."""
    service.require_ready()
    if name != service.model_name and name not in service.aliases:
        raise ApiError(404, "There is no model of this name.", param="model", code="model_not_found")
    return _model(service)
