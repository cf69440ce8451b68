"""``/v1/conversations``: conversations of the Responses API, each the text and the session of one name."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from pydantic import Field
from starlette.responses import Response

from atlas_kit.server.conversation import Conversation
from atlas_kit.server.json_response import JsonResponse
from atlas_kit.server.kept_responses import Kept, Thread
from atlas_kit.server.problems import ApiError
from atlas_kit.server.request_parts import new_id
from atlas_kit.server.response_items import chat_messages, listed, page
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_open import Open
from atlas_kit.server.schemas_responses import Metadata
from atlas_kit.server.service import Service
from atlas_kit.server.session_names import checked_session_id

router = APIRouter(prefix="/v1/conversations", tags=["OpenAI"])


class ConversationRequest(Open):
    """What a conversation begins with."""

    items: list[dict[str, Any]] | None = Field(None, max_length=10_000, description="What was said before.")
    metadata: Metadata | None = Field(None, description="Given back with the conversation.")


class ItemsRequest(Open):
    """What is added to a conversation."""

    items: list[dict[str, Any]] = Field(min_length=1, max_length=10_000)


@router.post("", summary="Begin a conversation", response_model=dict[str, Any])
async def create(request: Request, asked: ConversationRequest, service: TheService) -> Response:
    """Return a name that no conversation has; its memory begins with the first answer."""
    service.require_ready()
    name = new_id("conv_")
    messages = chat_messages(asked.items or [])
    async with service.responses.turn(namespace_of(request), name) as thread:
        thread.metadata = asked.metadata or {}
        if messages:
            thread.last = Kept({}, listed(asked.items or []), messages)
            thread.last.measure()
        return JsonResponse(_shape(name, thread, None))


@router.get("/{name}", summary="A conversation", response_model=dict[str, Any])
async def retrieve(request: Request, name: str, service: TheService) -> Response:
    """Return what is known of a conversation."""
    service.require_ready()
    return JsonResponse(_shape(name, *await _found(service, namespace_of(request), name)))


@router.post("/{name}", summary="Change what is noted of a conversation", response_model=dict[str, Any])
async def update(request: Request, name: str, asked: ConversationRequest, service: TheService) -> Response:
    """Replace the metadata."""
    service.require_ready()
    namespace = namespace_of(request)
    _, session = await _found(service, namespace, name)
    async with service.responses.turn(namespace, name) as thread:
        thread.metadata = asked.metadata or {}
        return JsonResponse(_shape(name, thread, session))


@router.delete("/{name}", summary="Forget a conversation and its memory")
async def delete(request: Request, name: str, service: TheService) -> dict[str, Any]:
    """Forget the text, the session and its memory; answers that were stored stay."""
    service.require_ready()
    namespace = namespace_of(request)
    await _found(service, namespace, name)
    async with service.responses.turn(namespace, name):
        service.responses.forget(namespace, name)
        await service.forget(namespace, name)
    return {"id": name, "object": "conversation.deleted", "deleted": True}


@router.get("/{name}/items", summary="What was said in a conversation")
async def items(
    request: Request, name: str, service: TheService, limit: int = 20, order: str = "desc", after: str = ""
) -> Response:
    """Return what was sent and said."""
    service.require_ready()
    thread, _ = await _found(service, namespace_of(request), name)
    found = [] if thread is None or thread.last is None else thread.last.items_so_far()
    return JsonResponse(page(found, limit, order, after))


@router.post("/{name}/items", summary="Add to a conversation")
async def add(request: Request, name: str, asked: ItemsRequest, service: TheService) -> Response:
    """Add items, which the model reads with the next answer."""
    service.require_ready()
    namespace = namespace_of(request)
    await _found(service, namespace, name)
    messages, sent = chat_messages(asked.items), listed(asked.items)
    async with service.responses.turn(namespace, name) as thread:
        service.responses.require_room(thread)
        thread.last = Kept({}, sent, messages, thread.last).read_as(thread.last)
        thread.last.measure()
    return JsonResponse(page(sent, 100, "asc", ""))


@router.get("/{name}/items/{item}", summary="Something that was said in a conversation")
async def item(request: Request, name: str, item: str, service: TheService) -> Response:
    """Return one of the items."""
    service.require_ready()
    thread, _ = await _found(service, namespace_of(request), name)
    return JsonResponse(_split(thread, item)[0])


@router.delete("/{name}/items/{item}", summary="Leave something out of a conversation")
async def leave_out(request: Request, name: str, item: str, service: TheService) -> dict[str, Any]:
    """Go on without one of the items; what the memory has read of it stays learned."""
    service.require_ready()
    namespace = namespace_of(request)
    _, session = await _found(service, namespace, name)
    async with service.responses.turn(namespace, name) as thread:
        _, left = _split(thread, item)
        thread.last = Kept({}, left, chat_messages(left)).read_as(thread.last)
        return _shape(name, thread, session)


def _split(thread: Thread | None, name: str) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return an item of a conversation, and all others."""
    items = [] if thread is None or thread.last is None else thread.last.items_so_far()
    found = next((one for one in items if one["id"] == name), None)
    if found is None:
        raise ApiError(404, f"There is no item {name[:128]!r}.", param="item_id", code="not_found")
    return found, [one for one in items if one is not found]


async def _found(service: Service, namespace: str, name: str) -> tuple[Thread | None, Conversation | None]:
    """Return a conversation's text and its session, one of which there is."""
    thread = await service.responses.thread(namespace, name)
    session = await service.session(namespace, checked_session_id(name, "conversation_id"))
    if thread is None and session is None:
        raise ApiError(
            404, f"There is no conversation {name[:128]!r}.", param="conversation_id", code="not_found"
        )
    return thread, session


def _shape(name: str, thread: Thread | None, session: Conversation | None) -> dict[str, Any]:
    created = thread.created if session is None and thread is not None else session and session.created
    return {
        "id": name,
        "object": "conversation",
        "created_at": int(created or 0),
        "metadata": {} if thread is None else thread.metadata,
    }
