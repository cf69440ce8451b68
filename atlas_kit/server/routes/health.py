"""``/health`` and ``/ready``."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from atlas_kit.server.routes.common import TheService

router = APIRouter(tags=["health"])


@router.get("/health", summary="Whether the server is alive and its model loaded")
@router.get("/v1/health", include_in_schema=False)
@router.get("/ready", summary="Whether requests are answered")
async def health(service: TheService) -> dict[str, Any]:
    """Return ``{"status": "ok"}``; 503 while the model loads and once the server stops.

    Where memories are kept at an address, ``store`` says whether that answers, and how much waits for it.
    """
    return service.health()
