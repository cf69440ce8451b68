"""How memories stand, as the answers of ``/v1/atlas/...`` say it. Looks at the service, and waits for nobody."""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, Any

from atlas_kit.server.conversation import Conversation
from atlas_kit.server.keys import SHARED
from atlas_kit.server.overview import memory_file, now_of, totals
from atlas_kit.server.service import TUNABLE

if TYPE_CHECKING:
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.server.service import Service

#: Below so many free bytes, the status says that the disk is nearly full.
LOW_DISK = 256 << 20


def config_of(service: Service) -> dict[str, Any]:
    """Return how memories are set up."""
    config = service.config
    return {
        "enabled": config.remembers,
        "shared": service.shared is not None,
        "settings": service.settings.to_json(),
        "tunable": list(TUNABLE),
        "auto_save": config.atlas_auto_save,
        "auto_save_interval": config.atlas_auto_save_interval,
        "backup_count": config.atlas_memory_backup_count,
        "compress": config.atlas_memory_compress,
        "warm_sessions": config.atlas_warm_sessions,
    }


def status_of(service: Service) -> dict[str, Any]:
    """Return what memories there are, how they learn, and what became of the one that is kept."""
    settings, conversations = service.settings, service.conversations
    service.metrics.refresh()
    now, kept = now_of(service), conversations.named.get(SHARED)
    memory = None if kept is None else kept.memory
    stats = None if memory is None else memory.stats()
    learns = settings.learning_rate > 0
    summed = totals(service.metrics)
    with_memory = [one for one in conversations.named.values() if one.memory is not None]
    return {
        "enabled": service.config.remembers,
        "state": "stopping" if service.stopping else "ready",
        "memory_modules": {
            "count": len(with_memory) + sum(one.settings is not None for one in conversations.temporary_ones),
            "learns": learns,
            "features": settings.features,
            "polynomial_degree": settings.polynomial_degree,
            "memory_dim": settings.memory_dim,
            "tokens_learned": None if stats is None else stats["tokens_learned"],
            "tokens_seen": None if stats is None else stats["tokens_seen"],
            "state_bytes": None if stats is None else stats["state_bytes"],
            "memory_utilization": None if kept is None else kept.utilization,
        },
        "sliding_window": {
            "window_size": settings.window_size,
            "filled": None if stats is None else stats["window"],
            "fill_ratio": None
            if stats is None or not stats["window_size"]
            else stats["window"] / stats["window_size"],
            "omega_window": settings.omega_window,
            "blend_ratio": settings.blend_ratio,
        },
        "optimization": {
            "learning_rate": settings.learning_rate,
            "adapted_learning_rate": None if stats is None else stats["learning_rate"],
            "use_muon": settings.use_muon,
            "chunk_size": settings.chunk_size,
            "warmup_tokens": settings.warmup_tokens,
            **_steps(memory),
        },
        "performance": {
            "running": now.running,
            "waiting": now.waiting,
            "uptime_seconds": service.metrics.clock() - service.metrics.began,
            **summed,
        },
        "memory_file": _file(service),
        "store": None if (store := service.store or service.memory_store) is None else store.status(),
        "sessions": {
            **now.sessions,
            "outlive_a_restart": service.files.outlives,
            "problem": conversations.spill_problem or service.session_problem,
        },
    }


def _steps(memory: TokenMemory | None) -> dict[str, int | None]:
    """Return how the shared memory's steps went: one that diverges is tried again smaller, and at last left out."""
    counters = {} if memory is None else memory.state.counters
    names = {
        "steps": "steps", "steps_retried": "retried", "steps_rejected": "rejected", "tokens_dropped": "dropped",
    }  # fmt: skip
    return {said: int(counters[name].sum()) if counters else None for said, name in names.items()}


def _file(service: Service) -> dict[str, Any] | None:
    found, shared = memory_file(service), service.shared
    if found is None or shared is None:
        return found
    found["lacking"] = shared.lacking
    with contextlib.suppress(OSError):
        free = shutil.disk_usage(os.path.dirname(shared.path) or ".").free
        found |= {"disk_free_bytes": free, "disk_is_nearly_full": free < LOW_DISK}
    with contextlib.suppress(OSError):
        found["bytes"] = os.path.getsize(shared.path)
    return found


def memory_of(conversation: Conversation) -> dict[str, Any]:
    """Return what there is to say of a memory without measuring it."""
    memory = conversation.memory
    return {
        "session_id": conversation.key.name,
        "place": conversation.place,
        "conversation_tokens": len(conversation.history),
        "not_unlearned_tokens": conversation.dropped,
        "memory": None if memory is None or conversation.lock.locked() else memory.stats(),
        "problem": conversation.problem,
    }


def sessions_of(
    service: Service, namespace: str, files: list[dict[str, Any]], only: str | None = None
) -> list[dict[str, Any]]:
    """Return the named sessions of a namespace, the one that was used last first; ``files``: those in files."""
    found: dict[str, dict[str, Any]] = {}
    for info in files:
        tokens, learned = int(info.get("tokens", 0)), int(info.get("learned", 0))
        found[info["name"]] = {
            "id": info["name"],
            "place": "file",
            "busy": False,
            "created": info.get("created", 0.0),
            "used": info.get("used", 0.0),
            "requests": int(info.get("requests", 0)),
            "conversation_tokens": tokens,
            "not_unlearned_tokens": max(0, learned - tokens),
        }
    for key, one in service.conversations.named.items():
        if key.namespace != namespace or key.name is None or (one.cold and key.name in found):
            continue
        busy, memory = one.lock.locked(), one.memory
        found[key.name] = {
            "id": key.name,
            "place": one.place,
            "busy": busy,
            "created": one.created,
            "used": one.used,
            "requests": one.requests,
            "conversation_tokens": len(one.history),
            "not_unlearned_tokens": one.dropped,
            "tokens_learned": None if memory is None or busy else int(memory.stats()["tokens_learned"]),
        }
    chosen = [one for name, one in found.items() if only is None or name == only]
    return sorted(chosen, key=lambda one: -float(one["used"]))
