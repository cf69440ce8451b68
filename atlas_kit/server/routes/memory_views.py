"""``/v1/atlas/memory/file`` and ``.../matrix``: a memory to be taken along, or looked at."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import StreamingResponse

from atlas_kit.server.memory_views import MOST_LINES, Part
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_atlas import Matrix

router = APIRouter(prefix="/v1/atlas/memory", tags=["ATLAS"])
#: Bytes that go to a client at once.
_PIECE = 1 << 18
_KIND = "application/octet-stream"
Which = Annotated[
    str | None,
    Query(min_length=1, max_length=128, description="The session; without it, the shared memory."),
]


class _Sent(StreamingResponse):
    """Bytes that are sent piece by piece, and given back at the end, also where the client went away."""

    def __init__(self, data: bytes, headers: dict[str, str], release: Any) -> None:
        super().__init__(_pieces(data), media_type=_KIND, headers=headers)
        self._release = release

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._release()


def _pieces(data: bytes) -> Iterator[memoryview]:
    view = memoryview(data)
    for start in range(0, len(view), _PIECE):
        yield view[start : start + _PIECE]


@router.get(
    "/file",
    summary="A memory as a file",
    response_class=Response,
    responses={
        200: {
            "content": {_KIND: {"schema": {"type": "string", "format": "binary"}}},
            "description": "A `.atlas` file of version 2.",
        },
        304: {"description": "The memory is still what `If-None-Match` says.", "content": None},
    },
)
async def file(request: Request, service: TheService, session_id: Which = None) -> Response:
    """Return a memory as it is now as a `.atlas` file, which other programs can compare, load and go on with.

    The server writes it nowhere. Of the shared memory, the file has what was learned, and no conversation; nor the
    window with the newest tokens, where several keys share it.
    """
    service.require_ready()
    target = await service.memories.target(namespace_of(request), session_id)
    views = service.memory_views
    tag = await views.tag(target)
    headers = {"etag": tag, "cache-control": "private, no-cache"}
    if tag in re.split(r"\s*,\s*", request.headers.get("if-none-match", "")):
        return Response(status_code=304, headers=headers)
    data = await views.file(target, namespace_of(request))
    name = re.sub(r"[^A-Za-z0-9_-]+", "-", session_id or "memory").strip("-") or "memory"
    headers |= {
        "content-length": str(len(data)), "content-disposition": f'attachment; filename="{name}.atlas"',
    }  # fmt: skip
    return _Sent(data, headers, lambda: views.release(data))


@router.get("/matrix", summary="A part of a memory's matrices")
async def matrix(
    request: Request,
    service: TheService,
    session_id: Which = None,
    name: Annotated[
        str | None, Query(min_length=1, max_length=64, description="The matrix; without it, the first.")
    ] = None,
    top: Annotated[int, Query(ge=0, lt=1 << 31, description="The part's first row.")] = 0,
    left: Annotated[int, Query(ge=0, lt=1 << 31, description="Its first column.")] = 0,
    bottom: Annotated[
        int | None, Query(ge=1, lt=1 << 31, description="The row behind its last; without it, all rows.")
    ] = None,
    right: Annotated[
        int | None,
        Query(ge=1, lt=1 << 31, description="The column behind its last; without it, all columns."),
    ] = None,
    rows: Annotated[int, Query(ge=1, le=MOST_LINES, description="Rows that are sent at most.")] = 256,
    columns: Annotated[int, Query(ge=1, le=MOST_LINES, description="Columns that are sent at most.")] = 256,
) -> Matrix:
    """Return what is in a part of a memory's matrix, also while the memory learns."""
    service.require_ready()
    target = await service.memories.target(namespace_of(request), session_id)
    part = Part(top, left, bottom, right, rows, columns)
    found = await service.memory_views.matrix(target, name, part)
    return Matrix(session_id=target.key.name, **found)
