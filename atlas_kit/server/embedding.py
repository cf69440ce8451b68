"""Vectors of texts, on a sequence of the engine that is borrowed for it. Knows no HTTP."""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_kit.llama.pooling import pooled_states
from atlas_kit.server.jobs import Watched, finished
from atlas_kit.server.outcome import Generation, Outcome

if TYPE_CHECKING:
    from concurrent.futures import Future

    from atlas_kit.codecs.numbers import Array
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.metrics import Metrics


#: How a model says in its file that its states are pooled; others are not for one vector of a text.
_POOLINGS = {1: "mean", 2: "cls", 3: "last"}


@dataclass(frozen=True)
class TextForm:
    """How a text becomes a vector.

    Attributes
    ----------
    pooling
        ``"mean"``, ``"last"``, ``"cls"`` or ``"none"``.
    end
        Tokens behind a text, where the model was trained so.
    """

    pooling: str = "mean"
    end: tuple[int, ...] = ()


def text_form(path: str, chosen: str | None) -> TextForm:
    """Return how texts become vectors with a model: as was chosen, else as its file says, else by their mean."""
    if not os.path.isfile(path):
        return TextForm(chosen or "mean")
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(path) as file:
        own = _POOLINGS.get(file.get(f"{file.get('general.architecture')}.pooling_type"), "mean")
        end = file.get("tokenizer.ggml.eos_token_id") if file.get("tokenizer.ggml.add_eos_token") else None
    return TextForm(chosen or own, () if end is None else (int(end),))


async def embedded(
    conversations: Conversations,
    namespace: str,
    texts: Sequence[Sequence[int]],
    metrics: Metrics,
    pooling: str = "mean",
) -> list[Array]:
    """Return the pooled final states of each text; who stops waiting ends the work.

    Raises
    ------
    AtlasError
        Too many requests wait already, or the model failed.
    """
    scheduler = conversations.scheduler

    def others_first() -> Future[None]:
        return scheduler.ask(lambda: None)

    asked = Generation([token for text in texts for token in text], task="embedding")
    outcome = Outcome(prompt_tokens=len(asked.tokens))
    found: list[list[Array]] = []

    async def work() -> None:
        with metrics.request(asked, outcome) as watch:
            async with conversations.borrowed(namespace, "embedding") as slot:
                watch.begins(slot.session)
                began = time.monotonic()
                states = pooled_states(slot.session, texts, others_first, pooling)
                job = Watched(scheduler.submit(slot.session, states), scheduler)
                try:
                    found.append(await job.end())
                finally:
                    await finished(job.over())
                outcome.seconds_reading, outcome.read_tokens = time.monotonic() - began, outcome.prompt_tokens
                metrics.add("read_tokens", outcome.read_tokens)

    await conversations.carry_out(work())
    return found[0]
