"""``/v1/atlas/...``: what the memory does, and what can be done to it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter

from atlas_kit.server.routes.common import TheService

router = APIRouter(prefix="/v1/atlas", tags=["ATLAS"])


@router.get("/status", summary="The memory at a glance")
async def status(service: TheService) -> dict[str, Any]:
    """Return what memories there are, and what became of the one that is kept."""
    service.require_ready()
    kept = service.shared
    return {
        "enabled": service.config.remembers,
        "memory_file": None if kept is None else vars(kept.report),
        "sessions": len(service.conversations.named),
    }
