"""``/v1/atlas/trace``: what a session reads and says, with what was expected of each token, and what it recalls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request, Response

from atlas_kit.server.keys import SHARED, Key, looked_at
from atlas_kit.server.problems import ApiError
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.session_names import checked_session_id
from atlas_kit.server.streams import event, streamed

router = APIRouter(prefix="/v1/atlas", tags=["ATLAS"])
#: Seconds from one look to the next.
LOOK_SECONDS = 0.2
#: A line that means nothing, so that whoever is between does not take the stream for dead.
_ALIVE = b": nothing yet\n\n"
_ALIVE_SECONDS = 15.0


@router.get(
    "/trace",
    summary="A session token by token, as it reads",
    response_class=Response,
    responses={
        200: {
            "description": "Server-sent events. `atlas.trace`: `from`, `texts`, `names`, and `rows`, `tokens` and "
            "`sources` in base64. `atlas.recalled`: `question`, `answer`, `finish_reason`, `seconds`, `stored_tokens` "
            "(that can be found again; null: none are kept), `recalled` (the pieces: `text`, `kind`, `source`, `line`, "
            "`time_ms` in Unix time, `start` and `stop` in tokens, `score`, and `gain` in nats per token of the "
            "question), `candidates` (all pieces that were judged), and `recall` (`mode`, `gate`, `reason`, `gain`, "
            "`judged`).",
            "content": {"text/event-stream": {}},
        }
    },
)
async def trace(
    request: Request,
    service: TheService,
    session_id: Annotated[
        str | None,
        Query(min_length=1, max_length=128, description="The session; without it, the shared memory."),
    ] = None,
) -> Any:
    """Send what the memory of a session learns from now on, until the client goes or the server stops.

    An event of the object `atlas.trace` has the texts of some tokens, their losses with and without the memory, how
    much model, memory and window gave to each and counted, which earlier one of these tokens the window knew each from,
    and the likeliest tokens. One of `atlas.recalled` comes behind each answer of a chat, message or response: the
    question, the answer, and the pieces of what was read or said earlier that it was given, with their places, or why
    there are none. Whoever comes while others look on first gets what these have seen; whoever comes first, what was
    recalled last since the start, if there is that. A key sees its own requests alone.
    """
    service.require_ready()
    if session_id is not None:
        meant = Key(namespace_of(request), checked_session_id(session_id))
    elif service.shared is not None:
        meant = SHARED
    else:
        raise ApiError(
            404, "There is no shared memory: name a session.", param="session_id", code="not_found"
        )

    key, conversation = looked_at(meant, namespace_of(request)), service.conversations.named.get(meant)
    told = None if conversation is None else conversation.told.get(key)

    async def events() -> AsyncIterator[bytes]:
        loop = asyncio.get_running_loop()
        with service.conversations.traces.looking(key, service.engine, told) as view:
            yield _ALIVE
            said = loop.time()
            while not service.stopping:
                if (piece := view.piece()) is not None:
                    yield event(piece)
                    said = loop.time()
                    continue
                for answer in view.answers():
                    yield event(answer)
                    said = loop.time()
                if loop.time() - said > _ALIVE_SECONDS:
                    yield _ALIVE
                    said = loop.time()
                await asyncio.sleep(LOOK_SECONDS)

    return await streamed(events())
