"""Answers in one piece that every client can read, whatever was sent and is given back in them."""

from __future__ import annotations

from typing import Any

from starlette.responses import JSONResponse

from atlas_kit.server.streams import written


class JsonResponse(JSONResponse):
    """JSON as the standard has it: numbers are finite, and characters whole."""

    def render(self, content: Any) -> bytes:
        """Return the body."""
        return written(content).encode("utf-8", "replace")
