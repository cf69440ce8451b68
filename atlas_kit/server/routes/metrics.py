"""``/metrics`` for Prometheus, and the same as JSON, once or every second. None of them waits for the model."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Query, Request, Response
from starlette.responses import JSONResponse

from atlas_kit.server.metrics import LONGEST_WINDOW
from atlas_kit.server.overview import conversations_of, memory_file, report, totals
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.streams import event, streamed

router = APIRouter(tags=["metrics"])
Window = Annotated[
    int, Query(ge=1, le=LONGEST_WINDOW, description="Seconds over which rates and percentiles are taken.")
]


def _exposition(request: Request) -> Response:
    """Return the text that Prometheus reads; an application has one registry."""
    from atlas_kit.server.exposition import CONTENT_TYPE, Exposition

    state = request.app.state
    if getattr(state, "exposition", None) is None:
        state.exposition = Exposition(state.service)
    headers = {"process-start-time-unix": str(int(state.service.started))}
    return Response(state.exposition.scraped(), media_type=CONTENT_TYPE, headers=headers)


@router.get(
    "/metrics",
    summary="Metrics for Prometheus",
    response_class=Response,
    responses={200: {"content": {"text/plain": {}}}},
)
async def prometheus(request: Request) -> Response:
    """Return this server's metrics, and the same under llama-server's names, in Prometheus' text format."""
    return _exposition(request)


@router.get(
    "/v1/atlas/metrics",
    summary="Metrics over a window of time",
    responses={200: {"content": {"text/plain": {}}}},
)
async def metrics(
    request: Request,
    service: TheService,
    format: Literal["json", "prometheus"] = "json",
    window: Window = 60,
) -> Any:
    """Return rates and percentiles over the last seconds, how things stand, and your sessions."""
    if format == "prometheus":
        return _exposition(request)
    return JSONResponse(report(service, window, namespace_of(request)))


@router.get(
    "/v1/atlas/metrics/stream",
    summary="Metrics every second",
    response_class=Response,
    responses={200: {"content": {"text/event-stream": {}}}},
)
async def stream(
    request: Request,
    service: TheService,
    window: Window = 10,
    interval: Annotated[float, Query(ge=0.2, le=60, description="Seconds between two events.")] = 1.0,
) -> Any:
    """Send the metrics as server-sent events, until the client goes or the server stops."""

    async def events() -> AsyncIterator[bytes]:
        loop, namespace = asyncio.get_running_loop(), namespace_of(request)
        due = loop.time()
        while True:
            yield event(report(service, window, namespace))
            due = max(due + interval, loop.time())
            while not service.stopping and (left := due - loop.time()) > 0:
                await asyncio.sleep(min(left, 0.25))
            if service.stopping:
                yield event(report(service, window, namespace))
                return

    return await streamed(events())


@router.get("/v1/atlas/stats", summary="Totals since the start")
async def stats(request: Request, service: TheService) -> dict[str, Any]:
    """Return what was counted since the server was started, what became of the memory file, and your sessions."""
    service.metrics.refresh()
    return {
        "object": "atlas.stats",
        "uptime_seconds": service.metrics.clock() - service.metrics.began,
        **totals(service.metrics),
        "memory_file": memory_file(service),
        "sessions": conversations_of(service, namespace_of(request)),
    }
