"""``/props`` and ``/slots``: what the server is set up with, what it does, and contexts that are saved."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from array import array
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request

from atlas_kit.errors import AtlasError, WrongModelError
from atlas_kit.formats.atlas.tables import MAGIC
from atlas_kit.llama.parking import Parked, unpark
from atlas_kit.llama.sampling import Sampling
from atlas_kit.llama.session import AtlasSession
from atlas_kit.persistence.session_file import read_session_state, seal, write_session_state
from atlas_kit.server.conversation import Conversation, Slot
from atlas_kit.server.file_names import inside
from atlas_kit.server.native_answer import settings_of
from atlas_kit.server.problems import ApiError
from atlas_kit.server.prompts import shown
from atlas_kit.server.request_parts import FINGERPRINT
from atlas_kit.server.routes.common import TheService, namespace_of
from atlas_kit.server.schemas_native import SlotRequest
from atlas_kit.server.service import Service
from atlas_kit.server.slot_files import SlotContext, is_slot_file, loadable, read, written
from atlas_kit.storage.atomic import write_atomically

router = APIRouter(tags=["llama-server"])


@router.get("/props", summary="What the server is set up with")
async def props(service: TheService) -> dict[str, Any]:
    """Return the model, the defaults of requests, and what the server can do."""
    service.require_ready()
    engine, config = service.engine, service.config
    n_predict = config.n_predict
    return {
        "default_generation_settings": {
            "params": settings_of(
                Sampling(**config.sampling), whole=False, n_predict=n_predict, max_tokens=n_predict
            ),
            "n_ctx": engine.n_ctx,
        },
        "total_slots": engine.n_sequences,
        "model_alias": service.model_name,
        "model_path": os.path.basename(config.model),
        "modalities": {"vision": False, "audio": False, "video": False},
        "endpoint_slots": config.slots,
        "endpoint_props": False,
        "endpoint_metrics": True,
        "chat_template": None if service.template is None else service.template.source,
        "bos_token": shown(engine, engine.begin),
        "eos_token": shown(engine, engine.end_tokens[:1]),
        "build_info": FINGERPRINT,
        "is_sleeping": service.sleep.sleeping,
        "cors_proxy_enabled": False,
    }


@router.get("/slots", summary="What the slots do")
async def slots(service: TheService, fail_on_no_slot: str | None = None) -> list[dict[str, Any]]:
    """Return a row for each slot; never what is read or said in it."""
    service.require_ready()
    if not service.config.slots:
        raise ApiError(501, "This server does not show its slots.", code="not_supported")
    found = service.conversations.slots
    if fail_on_no_slot and all(one.busy for one in found):
        raise ApiError(503, "No slot is free.", code="unavailable", retry_after=1)
    return [_row(service, one) for one in found]


def _row(service: Service, slot: Slot) -> dict[str, Any]:
    found: dict[str, Any] = {
        "id": slot.number,
        "n_ctx": service.engine.n_ctx,
        "speculative": False,
        "is_processing": slot.busy,
    }
    last = slot.last
    if last is None:
        return found
    outcome, asked = last.outcome, last.asked
    most = -1 if asked.max_tokens is None else asked.max_tokens
    said = outcome.completion_tokens if slot.busy else 0
    found |= {
        "n_prompt_tokens": outcome.prompt_tokens,
        "n_prompt_tokens_processed": last.read_so_far - outcome.cached_tokens,
        "n_prompt_tokens_cache": outcome.cached_tokens,
        "params": settings_of(asked.sampling, whole=False, n_predict=most, max_tokens=most),
        "next_token": [
            {
                "has_next_token": slot.busy,
                "has_new_line": any("\n" in token.text for token in outcome.tokens),
                "n_remain": max(0, most - said) if slot.busy and most >= 0 else -1,
                "n_decoded": said,
            }
        ],
    }
    return found


@router.post("/slots/{number}", summary="Save, restore or erase what is in a slot")
async def act(
    request: Request, number: str, service: TheService, asked: SlotRequest | None = None, action: str = ""
) -> dict[str, Any]:
    """Save the context (and memory) of a slot's conversation, put one back that was saved, or empty it."""
    service.require_ready()
    config = service.config
    kept = config.slot_save_path or config.atlas_memory_dir
    if kept is None:
        raise ApiError(
            501, "This server has no folder for the contexts of slots (slot_save_path).", code="not_supported"
        )
    slots = service.conversations.slots
    if not number.isascii() or not number.isdigit() or len(number) > 4 or int(number) >= len(slots):
        raise ApiError(
            400, f"There is no slot of this number; the last is {len(slots) - 1}.", param="id_slot"
        )
    slot, namespace = slots[int(number)], namespace_of(request)
    if action == "erase":
        return await _erase(service, slot, namespace)
    if action not in ("save", "restore"):
        raise ApiError(400, "The action is save, restore or erase.", param="action")
    folder = Path(kept, namespace)  # nobody meets another key's files
    path = inside(folder, (asked.filename if asked is not None else None) or "")
    if action == "save":
        await asyncio.to_thread(_require_replaceable, service, path)
        return await _save(service, slot, namespace, path)
    return await _restore(service, slot, namespace, path)


def _require_replaceable(service: Service, path: Path) -> None:
    """Refuse a name whose file is something else than a context: the server's own memory, a model, a folder."""
    if service.shared is not None and service.shared.owns(path):
        raise ApiError(
            409, "The server keeps its own memory under this name.", param="filename", code="locked"
        )
    if not os.path.lexists(path):
        return
    begin = b"?"
    if path.is_file():
        with contextlib.suppress(OSError), open(path, "rb") as file:
            begin = file.read(len(MAGIC))
    if begin not in (b"", MAGIC) and not is_slot_file(begin):
        raise ApiError(
            409, "There is a file of this name, and it is no context.", param="filename", code="exists"
        )


def _conversation_in(slot: Slot, namespace: str) -> Conversation:
    found = slot.conversation
    if found is None:
        raise ApiError(400, "There is nothing in this slot.", param="id_slot")
    if found.key.namespace != namespace:
        raise ApiError(403, "What is in this slot is another key's.", param="id_slot")
    return found


async def _save(service: Service, slot: Slot, namespace: str, path: Path) -> dict[str, Any]:
    began = time.monotonic()
    conversation = _conversation_in(slot, namespace)

    def state(session: AtlasSession) -> Any:
        session.run(session.catching_up())
        if session.memory is not None:
            return session.state()
        return SlotContext(list(session.context_tokens), service.engine.save_sequence(session.sequence))

    secret = service.keys.options()

    def write(found: Any) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(found, SlotContext):
            if secret:
                raise ApiError(
                    400, "Without a memory a slot is saved unencrypted, and this server encrypts its files.",
                    code="not_encrypted",
                )  # fmt: skip
            write_atomically(path, written(found))
        else:
            if path.exists():
                seal(path, **secret)
            write_session_state(path, found, **secret)
        return path.stat().st_size

    found = await service.conversations.on(conversation, state)
    size = await asyncio.to_thread(write, found)
    return {
        "id_slot": slot.number,
        "filename": path.name,
        "n_saved": len(found.tokens),
        "n_written": size,
        "timings": {"save_ms": 1000 * (time.monotonic() - began)},
    }


async def _restore(service: Service, slot: Slot, namespace: str, path: Path) -> dict[str, Any]:
    began = time.monotonic()
    engine, conversations = service.engine, service.conversations
    if not await asyncio.to_thread(path.is_file):
        raise ApiError(400, "There is no file of this name.", param="filename", code="not_found")
    size = path.stat().st_size

    def state() -> Any:
        with open(path, "rb") as file:
            if is_slot_file(file.read(4)):
                file.seek(0)
                return read(file.read(), engine.info.n_vocab, engine.n_ctx)
        return read_session_state(path, expect_model=engine.info.identity, **service.keys.options())

    try:
        found = await asyncio.to_thread(state)
    except WrongModelError:
        raise
    except AtlasError as error:
        raise ApiError(400, f"The file cannot be used: {error.message}.", param="filename") from error
    conversation = conversations.for_slot(slot.number, namespace)
    if isinstance(found, SlotContext):
        tokens = found.tokens

        def load(session: AtlasSession) -> None:
            data = loadable(found.data, engine.save_sequence(session.sequence))
            unpark(session, Parked(context=list(tokens), position=len(tokens), data=data))

        await conversations.on(conversation, load)
    else:
        await conversations.on(conversation, lambda session: session.restore(found))
        session = slot.session
        tokens = list(session.context_tokens)
        conversation.settings = None if session.memory is None else session.memory.settings
    if tokens:
        conversation.remember(array("i", tokens), -1)
    return {
        "id_slot": slot.number,
        "filename": path.name,
        "n_restored": len(tokens),
        "n_read": size,
        "timings": {"restore_ms": 1000 * (time.monotonic() - began)},
    }


async def _erase(service: Service, slot: Slot, namespace: str) -> dict[str, Any]:
    """Empty a slot's context; what a memory has learned, it keeps."""
    conversation = _conversation_in(slot, namespace)
    count = 0

    def forget(session: AtlasSession) -> None:
        nonlocal count
        count = len(session.context_tokens)
        session.forget_context()
        conversation.history = array("i")
        if session.memory is None:
            conversation.branches = []

    await service.conversations.on(conversation, forget)
    return {"id_slot": slot.number, "n_erased": count}
