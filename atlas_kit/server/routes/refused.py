"""What other servers do and this one does not: refused with a sentence, so that nobody waits for it to work."""

from __future__ import annotations

from typing import Any, NamedTuple

from fastapi import APIRouter

from atlas_kit.server.problems import ApiError

router = APIRouter(include_in_schema=False)


class Refused(NamedTuple):
    """Endpoints that share a reason."""

    paths: tuple[str, ...]
    methods: tuple[str, ...]
    status: int
    message: str


_RANKING = (
    "Ranking needs a model with a classification head, and a memory belongs to one that generates text."
)
_FIXED = "What the server is set up with is chosen when it is started."
_TOOLS = "This server runs no commands, and fetches nothing for anybody."
_ROUTER = "A server has one model, as a memory belongs to one: start another server for another model."
_MEDIA = "This server reads and writes text only."
ROWS = (
    Refused(("/rerank", "/reranking", "/v1/rerank", "/v1/reranking"), ("POST",), 501, _RANKING),
    Refused(("/props",), ("POST",), 501, _FIXED),
    Refused(
        ("/lora-adapters",),
        ("POST",),
        501,
        "Adapters cannot be changed while the server runs: a memory belongs to one set of weights.",
    ),
    Refused(("/tools", "/cors-proxy"), ("GET", "POST"), 403, _TOOLS),
    Refused(("/models", "/models/load", "/models/unload"), ("POST",), 501, _ROUTER),
    Refused(("/models",), ("DELETE",), 501, _ROUTER),
    Refused(("/models/sse",), ("GET",), 501, _ROUTER),
    Refused(
        ("/v1/chat/completions/control",),
        ("POST",),
        501,
        "A running answer cannot be steered: end it by closing the connection.",
    ),
    Refused(
        ("/v1/stream", "/v1/streams/lookup"),
        ("GET", "POST", "DELETE"),
        501,
        "A stream that broke off cannot be gone on with: ask again, and what was read is not read twice.",
    ),
    Refused(
        ("/v1/audio/{rest:path}", "/v1/images/{rest:path}", "/v1/videos", "/v1/videos/{rest:path}"),
        ("GET", "POST", "DELETE"),
        501,
        _MEDIA,
    ),
    Refused(("/predict",), ("POST",), 501, "Vertex AI's wrapping is not understood: use /v1/completions."),
)


def _refusing(row: Refused) -> Any:
    async def refuse() -> None:
        raise ApiError(row.status, row.message, code="not_supported" if row.status == 501 else "forbidden")

    return refuse


for _row in ROWS:
    for _path in _row.paths:
        router.add_api_route(_path, _refusing(_row), methods=list(_row.methods))


@router.get("/lora-adapters")
async def adapters() -> list[Any]:
    """Return the adapters in use, which are none."""
    return []
