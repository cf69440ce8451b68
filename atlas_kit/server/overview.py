"""A running server at a glance: what is under way, what came of it lately, and where the sessions are.

Looks at the service from the event loop and waits for nobody. Whoever asks sees the server's sums, and of the sessions
those of their own namespace and the shared one. Knows no HTTP.
"""

from __future__ import annotations

import heapq
import os
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.server.keys import SHARED
from atlas_kit.server.metrics import TIMES

if TYPE_CHECKING:
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.metrics import Metrics, Window
    from atlas_kit.server.service import Service

#: Where a session can be, as ``Conversation.place`` says it.
PLACES = ("sequence", "memory", "file")
#: Sessions that are listed at most, those that were used last.
MOST_LISTED = 100


@dataclass
class Now:
    """How things stand.

    Attributes
    ----------
    running, waiting
        Requests that are answered, and that wait for their turn.
    kv_cache_usage
        The part of all contexts that is filled.
    sessions
        How many named sessions are in a sequence of the model, in main memory, and in a file alone.
    saves, save_failures, save_seconds, last_saved
        How often the memory was saved, or could not be; what that took; and when it last was, in Unix seconds.
    decodes, batch
        What the model has decoded, and how many tokens it takes at most at once.
    """

    running: int = 0
    waiting: int = 0
    kv_cache_usage: float = 0.0
    sessions: dict[str, int] = field(default_factory=lambda: dict.fromkeys(PLACES, 0))
    saves: int = 0
    save_failures: int = 0
    save_seconds: float = 0.0
    last_saved: float | None = None
    decodes: int = 0
    batch: int = 1


def now_of(service: Service) -> Now:
    """Return how things stand; all is nothing while the model loads."""
    found = Now(service.metrics.running, service.metrics.waiting)
    if service.shared is not None:
        report = service.shared.report
        found.saves, found.save_failures = report.saves, report.failed_saves
        found.save_seconds, found.last_saved = report.seconds_saving, report.last_saved
    if not service.ready:
        return found
    engine, conversations = service.engine, service.conversations
    sessions = [slot.session for slot in conversations.slots]
    filled = sum(min(one.position + one.owes, engine.n_ctx) for one in sessions)
    found.kv_cache_usage = min(1.0, filled / max(1, engine.n_ctx * engine.n_sequences))
    for one in conversations.named.values():
        found.sessions[one.place] += 1
    found.decodes, found.batch = engine.decodes, engine.n_batch
    return found


def report(service: Service, seconds: int, namespace: str) -> dict[str, Any]:
    """Return the metrics over the last seconds, and how things stand, as JSON-ready data.

    Parameters
    ----------
    seconds
        The window, 1 to ``LONGEST_WINDOW``.
    namespace
        Of whoever asks: only their sessions are listed.
    """
    metrics = service.metrics
    metrics.refresh()
    window, now = metrics.recent.over(seconds), now_of(service)
    return {
        "object": "atlas.metrics",
        "time": time.time(),
        "uptime_seconds": metrics.clock() - metrics.began,
        "window_seconds": seconds,
        "state": _state(service),
        "requests": {
            "running": now.running,
            "waiting": now.waiting,
            "ended": _whole(window, "requests"),
            "per_second": window.sums["requests"] / window.seconds,
            "by_reason": {
                name.partition(" ")[2]: int(count)
                for name, count in window.sums.items()
                if name.startswith("requests ")
            },
        },
        "tokens": {
            short: {"count": _whole(window, name), "per_second": window.sums[name] / window.seconds}
            for short, name in _TOKENS.items()
        },
        "latency": {name: window.values[name].to_json() for name in TIMES},
        "loss": _loss(window.sums),
        "rollovers": _whole(window, "rollovers"),
        "kv_cache_usage_ratio": now.kv_cache_usage,
        "slots": _slots(service, namespace),
        "sessions": now.sessions,
        "sessions_outlive_a_restart": service.ready and service.files.outlives,
        "memory_file": memory_file(service),
        "totals": totals(metrics),
        "conversations": conversations_of(service, namespace),
    }


_TOKENS = {
    "prompt": "prompt_tokens", "cached": "cached_tokens", "read": "read_tokens",
    "generated": "generated_tokens", "seen": "memory_tokens_seen", "learned": "memory_tokens_learned",
}  # fmt: skip


def _whole(window: Window, name: str) -> int:
    return int(window.sums[name])


def _state(service: Service) -> str:
    if service.stopping:
        return "stopping"
    return "ready" if service.ready else "loading"


def _loss(sums: Any) -> dict[str, Any]:
    """Return the mean losses in nats per token, of the model alone and with the memory."""
    count = int(sums["scored_tokens"])
    if not count:
        return {"tokens": 0, "model": None, "memory": None, "saved": None}
    model, memory = sums["loss_model_nats"] / count, sums["loss_memory_nats"] / count
    return {"tokens": count, "model": model, "memory": memory, "saved": model - memory}


def totals(metrics: Metrics) -> dict[str, Any]:
    """Return what was counted since the start."""
    sums = metrics.totals
    return {
        "requests": sum(metrics.ended.values()),
        "tokens": {short: int(sums[name]) for short, name in _TOKENS.items()},
        "rollovers": int(sums["rollovers"]),
        "loss": _loss(sums),
    }


def memory_file(service: Service) -> dict[str, Any] | None:
    """Return what became of the file of the shared memory; None where none is kept. It has no folder in it."""
    if service.shared is None:
        return None
    return {"name": os.path.basename(service.shared.path), **vars(service.shared.report)}


def _slots(service: Service, namespace: str) -> list[dict[str, Any]]:
    """Return the places in the model, and what is done there; other people's sessions are not named."""
    if not service.ready:
        return []
    found = []
    for slot in service.conversations.slots:
        one = slot.conversation
        mine = one is not None and (one.key.namespace == namespace or one.key == SHARED)
        found.append(
            {
                "id": slot.number,
                "busy": slot.busy,
                "task": slot.task or None,
                "session_id": one.key.name if one is not None and mine else None,
                "context_tokens": min(slot.session.position + slot.session.owes, service.engine.n_ctx),
                "context_size": service.engine.n_ctx,
            }
        )
    return found


def conversations_of(service: Service, namespace: str) -> list[dict[str, Any]]:
    """Return the named sessions of a namespace, and the shared one; the one that was used last comes first.

    Of more than ``MOST_LISTED``, those that were used longest ago are left out.
    """
    if not service.ready:
        return []
    mine = [
        one
        for key, one in service.conversations.named.items()
        if key.namespace == namespace or (key == SHARED and service.shared is not None)
    ]
    newest = heapq.nlargest(MOST_LISTED, mine, key=lambda one: one.used)
    return [_conversation(service, one) for one in newest]


def _length(one: Conversation) -> int:
    """Return how many tokens a conversation's text has, with what is read and said of it just now."""
    last = None if one.slot is None else one.slot.last
    if last is None or last.conversation is not one or not one.lock.locked():
        return len(one.history)
    return last.read_so_far + max(0, int(last.outcome.completion_tokens) - 1)  # the newest is not read yet


def _conversation(service: Service, one: Conversation) -> dict[str, Any]:
    shared = service.shared is not None and service.conversations.named.get(SHARED) is one
    inside: Any = one.inside
    whole = _length(one)
    found: dict[str, Any] = {
        "session_id": None if shared else one.key.name,
        "shared": shared,
        "place": one.place,
        "busy": one.lock.locked(),
        "requests": one.requests,
        "created": one.created,
        "used": one.used,
        "conversation_tokens": whole,
        "not_unlearned_tokens": one.dropped,
        "memory": None,
    }
    if inside is None:
        return found
    session: AtlasSession | None = None if one.slot is None else one.slot.session
    counts = inside.counts
    in_context = min(
        inside.position + inside.owes, service.engine.n_ctx
    )  # a recurrent model's grows without end
    found |= {
        "context_tokens": in_context,
        "context_size": service.engine.n_ctx,
        "left_context_tokens": max(0, whole - in_context),
        "scored_tokens": counts.scored,
        "loss_model_nats": counts.losses[0],
        "loss_memory_nats": counts.losses[1],
        "rollovers": counts.rollovers,
    }
    memory = one.memory
    if memory is None:
        return found
    window = memory.memory.config.window_size
    found["memory"] = {
        "tokens_seen": memory.tokens_seen,
        "window_tokens": min(int(memory.state.counters["filled"]), window),
        "window_size": window,
        "learning_rate": memory.learning_rate,
        "learning_rate_set": memory.settings.learning_rate,
        "learns": memory.learns and (session is None or session.learns),
        "state_bytes": None if one.lock.locked() else memory.state_bytes,
    }
    return found
