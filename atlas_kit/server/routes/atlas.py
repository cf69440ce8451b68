"""``/v1/atlas/...``: what the memory does, and what can be done to it."""

from __future__ import annotations

import asyncio
from typing import Annotated, Any

from fastapi import APIRouter, Body, Path, Query, Request

from atlas_kit.server.conversation import Conversation
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.problems import ApiError
from atlas_kit.server.routes.common import TheService, namespace_of, require_admin
from atlas_kit.server.schemas_atlas import (
    Config,
    ConfigChange,
    DeleteRequest,
    Done,
    ForgetRequest,
    ForgetShared,
    ForgottenAnswer,
    ForkRequest,
    ListRequest,
    LoadRequest,
    MemoryAnswer,
    ResetRequest,
    SavedMemories,
    SavedMemory,
    SaveRequest,
    Session,
    Sessions,
    Status,
)
from atlas_kit.server.service import Service
from atlas_kit.server.session_names import checked_session_id
from atlas_kit.server.standing import config_of, memory_of, sessions_of, status_of

router = APIRouter(prefix="/v1/atlas", tags=["ATLAS"])
#: A session in a path; names may hold slashes.
Name = Annotated[str, Path(description="The session's name.", max_length=128)]
Which = Annotated[
    str | None,
    Query(min_length=1, max_length=128, description="The session; without it, the shared memory."),
]


@router.get("/status", summary="The memory at a glance")
async def status(service: TheService) -> Status:
    """Return what memories there are, and what became of the one that is kept."""
    service.require_ready()
    return Status(**status_of(service))


@router.get("/config", summary="How memories are set up")
async def config(service: TheService) -> Config:
    """Return the settings of new memories, and which can be changed."""
    service.require_ready()
    return Config(**config_of(service))


@router.post("/config", summary="Change settings of memories")
async def change(request: Request, service: TheService, asked: ConfigChange) -> Config:
    """Change settings of new memories and of the shared one; what decides their sizes stays.

    Where there are several API keys, this is for the administrator's.
    """
    service.require_ready()
    require_admin(request)
    await service.configure(asked.model_dump(exclude_none=True))
    return Config(**config_of(service))


@router.get("/memory", summary="A memory")
async def memory(request: Request, service: TheService, session_id: Which = None) -> MemoryAnswer:
    """Return counts, sizes and settings of a session's memory, or of the shared one."""
    service.require_ready()
    target = await service.memories.target(namespace_of(request), session_id)
    return MemoryAnswer(**memory_of(target))


@router.get("/memory/info", summary="A memory, measured")
async def info(request: Request, service: TheService, session_id: Which = None) -> MemoryAnswer:
    """Return the same with what its matrices hold: norms, effective ranks, and how much of them is in use."""
    service.require_ready()
    target = await service.memories.target(namespace_of(request), session_id)
    measured = await service.memories.info(target)
    return MemoryAnswer(**{**memory_of(target), "memory": measured})


@router.post("/memory/save", summary="Save a memory")
async def save(request: Request, service: TheService, asked: SaveRequest) -> SavedMemory | Done:
    """Save a memory under a name, or where it is kept anyway."""
    service.require_ready()
    namespace = namespace_of(request)
    target = await service.memories.target(namespace, asked.session_id)
    if asked.memory_file is not None:
        found = await service.memories.save(namespace, target, asked.memory_file)
        return SavedMemory(**{**found, "object": "atlas.memory.saved", "session_id": asked.session_id})
    return await _saved(service, target)


async def _saved(service: Service, target: Conversation) -> Done:
    if (problem := await service.memories.save_in_place(target)) is not None:
        raise ApiError(507, f"The memory was not saved: {problem}.", code="not_saved")
    return Done(object="atlas.memory.saved", session_id=target.key.name)


@router.post("/memory/load", summary="Go on with a saved memory")
async def load(request: Request, service: TheService, asked: LoadRequest) -> Done:
    """Let a session, or the shared memory, go on with a saved one; a session that there is not is begun with it."""
    service.require_ready()
    namespace, memories = namespace_of(request), service.memories
    memories.require(asked.memory_file)
    if asked.session_id is None:
        require_admin(request)
        target = await memories.target(namespace, None)
    else:
        key = Key(namespace, checked_session_id(asked.session_id))
        await service.conversations.claims.claim(key)
        target = service.conversations.named_or_new(key, service.settings)
    async with service.conversations.asking(target):
        await memories.load(namespace, target, asked.memory_file)
    return Done(object="atlas.memory.loaded", session_id=asked.session_id, memory_file=asked.memory_file)


@router.post("/memory/list", summary="The saved memories")
async def listed(
    request: Request, service: TheService, asked: Annotated[ListRequest | None, Body()] = None
) -> SavedMemories:
    """Return the memories that can be loaded by name."""
    service.require_ready()
    return SavedMemories(
        data=[SavedMemory(**one) for one in await service.memories.files(namespace_of(request))]
    )


@router.post("/memory/delete", summary="Remove a saved memory")
async def delete(request: Request, service: TheService, asked: DeleteRequest) -> Done:
    """Remove the file of a memory; whoever goes on with what was in it is not disturbed."""
    service.require_ready()
    await service.memories.delete(namespace_of(request), asked.memory_file)
    return Done(object="atlas.memory.deleted", memory_file=asked.memory_file)


@router.post("/memory/reset", summary="Forget what was learned")
@router.delete("/memory/reset", summary="Forget what was learned", operation_id="reset_by_delete")
async def reset(
    request: Request, service: TheService, asked: Annotated[ResetRequest | None, Body()] = None
) -> Done:
    """Let a memory be as new; a text that is sent again is learned again."""
    service.require_ready()
    target = await service.memories.target(namespace_of(request), None if asked is None else asked.session_id)
    if target.key == SHARED:
        require_admin(request)
    await service.memories.reset(target, hard=asked is not None and asked.mode == "hard")
    return Done(object="atlas.memory.reset", session_id=target.key.name)


@router.post("/memory/forget", summary="Forget part of what was read and said")
async def forget_part(request: Request, service: TheService, asked: ForgetShared) -> ForgottenAnswer:
    """Forget documents, what something is about, or what is old; of the shared memory, or of a session's.

    The text is then in no file of the memory, but for its backups; answers of the Responses API may hold it, too. What
    was learned from it stays.
    """
    service.require_ready()
    target = await service.memories.target(namespace_of(request), asked.session_id)
    if target.key == SHARED:
        require_admin(request)
    return await _forgotten(service, target, asked, asked.remove_backups)


async def _forgotten(
    service: Service, target: Conversation, asked: ForgetRequest, remove_backups: bool = False
) -> ForgottenAnswer:
    from atlas_kit.operations.forget import Choice, time_of

    before = None if asked.before is None else time_of(asked.before)
    found = await service.memories.forget(
        target,
        Choice(asked.source, asked.about, before),
        remove_backups=remove_backups,
        remove_answers=asked.remove_answers,
        dry_run=asked.dry_run,
    )
    return ForgottenAnswer(session_id=target.key.name, **found)


@router.get("/sessions", summary="The sessions")
async def sessions(request: Request, service: TheService) -> Sessions:
    """Return the named sessions of the API key, the one that was used last first."""
    service.require_ready()
    files = await asyncio.to_thread(service.files.all_infos, namespace_of(request))
    return Sessions(data=[Session(**one) for one in sessions_of(service, namespace_of(request), files)])


@router.post(
    "/sessions/{session_id:path}/fork", summary="A second session that knows what the first one does"
)
async def fork(request: Request, service: TheService, session_id: Name, asked: ForkRequest) -> Session:
    """Begin a session with what another one knows; both go on by themselves."""
    namespace = namespace_of(request)
    source = await _session(service, namespace, session_id)
    key = Key(namespace, checked_session_id(asked.session_id))
    await service.memories.fork(source, key)
    return _described(service, namespace, key)


@router.post("/sessions/{session_id:path}/save", summary="Save a session")
async def save_session(request: Request, service: TheService, session_id: Name) -> Done:
    """Write a session into its file now."""
    target = await _session(service, namespace_of(request), session_id)
    return await _saved(service, target)


@router.post("/sessions/{session_id:path}/reset", summary="Forget what a session learned")
async def reset_session(
    request: Request,
    service: TheService,
    session_id: Name,
    asked: Annotated[ResetRequest | None, Body()] = None,
) -> Session:
    """Let the memory of a session be as new."""
    namespace = namespace_of(request)
    target = await _session(service, namespace, session_id)
    await service.memories.reset(target, hard=asked is not None and asked.mode == "hard")
    return _described(service, namespace, target.key)


@router.post("/sessions/{session_id:path}/forget", summary="Forget part of what a session holds")
async def forget_of_session(
    request: Request, service: TheService, session_id: Name, asked: ForgetRequest
) -> ForgottenAnswer:
    """Forget documents, what something is about, or what is old; what was learned from it stays."""
    target = await _session(service, namespace_of(request), session_id)
    return await _forgotten(service, target, asked)


@router.get("/sessions/{session_id:path}", summary="A session")
async def session(request: Request, service: TheService, session_id: Name) -> Session:
    """Return what there is to say of a session."""
    namespace = namespace_of(request)
    target = await _session(service, namespace, session_id)
    return _described(service, namespace, target.key)


@router.delete("/sessions/{session_id:path}", summary="Forget a session")
async def forget(request: Request, service: TheService, session_id: Name) -> Done:
    """Forget a session, its memory and its file."""
    target = await _session(service, namespace_of(request), session_id)
    await service.conversations.delete(target)
    return Done(object="atlas.session.deleted", session_id=session_id)


async def _session(service: Service, namespace: str, name: str) -> Conversation:
    service.require_ready()
    return await service.memories.target(namespace, checked_session_id(name))


def _described(service: Service, namespace: str, key: Key) -> Session:
    found: list[dict[str, Any]] = sessions_of(
        service, namespace, service.files.infos(namespace), only=key.name
    )
    if not found:
        raise ApiError(404, "There is no session of this name.", param="session_id", code="session_not_found")
    return Session(**found[0])
