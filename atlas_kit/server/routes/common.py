"""What endpoints share: the service, who asks, and how large a request is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, TypeVar

from fastapi import Depends, Request

from atlas_kit.server import request_parts
from atlas_kit.server.problems import ApiError
from atlas_kit.server.service import Service


async def the_service(request: Request) -> Service:
    """Return the service that answers; not waiting, but a coroutine: FastAPI calls others on a thread of their own."""
    found: Service = request.app.state.service
    return found


T = TypeVar("T")
TheService = Annotated[Service, Depends(the_service)]


def namespace_of(request: Request) -> str:
    """Return the namespace of whoever asks: that of the API key."""
    found: str = request.scope["state"]["namespace"]
    return found


def require_admin(request: Request) -> None:
    """Refuse to let whoever asks change what others share.

    Raises
    ------
    ApiError
        It is not the administrator's key.
    """
    if not request.scope["state"]["admin"]:
        raise ApiError(
            403, "All keys share this, and only the administrator's may change it.", code="not_admin"
        )


async def prepared(request: Request, function: Callable[[], T]) -> T:
    """Call what reads a request's texts; see ``request_parts.prepared``."""
    service: Service = request.app.state.service
    return await request_parts.prepared(service, size_of(request), function)


def size_of(request: Request) -> int | None:
    """Return how many bytes a request says that it has."""
    size = request.headers.get("content-length", "")
    return int(size) if size.isdigit() else None
