"""The ``atlas`` object of an answer: what a memory did for it, and what was read again. Knows no HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.outcome import Outcome
    from atlas_kit.server.recall import Question


class Blend:
    """Adds up how much of the predictions was the memory's and the window's: a session's observer."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def __call__(self, reading: Reading, tokens: Any, probabilities: Any) -> None:
        """Take in the predictions of some tokens."""
        if len(tokens) == 1:  # numbers one by one take less time than an array of two
            _, memory, window = reading.weights[0].tolist()
            self._sum += memory + window
        else:
            self._sum += float(reading.weights[:, 1:].sum())
        self._count += len(tokens)

    @property
    def mean(self) -> float | None:
        """The mean weight of memory and window together, 0 to 1; None where nothing was predicted."""
        return self._sum / self._count if self._count else None


def recalled_for(question: Question) -> dict[str, Any]:
    """Return what was read again for an answer, and why, as a part of the ``atlas`` object."""
    found = question.recalled
    return {
        "recalled": [piece.to_json() for piece in found.pieces],
        "earlier": [piece.to_json() for piece in found.earlier],
        "recall": {"reason": found.reason, "gain": found.gain, "judged": len(found.candidates)},
    }


def steps_of(session: AtlasSession) -> int:
    """Return how many steps a session's memory has taken."""
    return 0 if session.memory is None else int(session.memory.state.counters["steps"])


def atlas_statistics(
    session: AtlasSession, conversation: Conversation, outcome: Outcome, *, blend: float | None, steps: int
) -> dict[str, Any]:
    """Return what a memory did for an answer: the ``atlas`` object.

    Parameters
    ----------
    blend
        The mean weight of memory and window in the predictions of this answer.
    steps
        Steps that the memory took while it read the text and answered.
    """
    in_context = len(session.context_tokens) + session.owes
    whole = len(conversation.history)
    gone = max(0, whole - in_context)
    found: dict[str, Any] = {
        "enabled": session.memory is not None,
        "session_id": conversation.key.name,
        "conversation_tokens": whole,
        "context_tokens": in_context,
        "left_context_tokens": gone,
        "covered_by_memory_tokens": 0,
        "not_unlearned_tokens": conversation.dropped,
        "cached_tokens": outcome.cached_tokens,
        "recalled": [],
    }
    if conversation.problem is not None:
        found["problem"], conversation.problem = conversation.problem, None
    memory = session.memory
    if memory is None:
        return found
    from atlas_kit.memory.muon import STEPS

    stats = memory.stats()
    filled = stats["window"] / stats["window_size"] if stats["window_size"] else 0.0
    # the window holds what came last, and the context the end of that
    covered = stats["tokens_learned"] if memory.learns else max(0, stats["window"] - in_context)
    losses = session.stats
    return {
        **found,
        "covered_by_memory_tokens": min(gone, covered),
        "memory_utilization": conversation.utilization,
        "window_fill_ratio": filled,
        "omega_loss": losses["loss"],
        "model_loss": losses["loss_model"],
        "muon_iterations": steps * STEPS if memory.settings.use_muon else 0,
        "blend_ratio_actual": blend,
        "tokens_learned": stats["tokens_learned"],
        "tokens_seen": stats["tokens_seen"],
        "state_bytes": stats["state_bytes"],
    }
