"""Vectors of texts, on a sequence of the engine that is borrowed for it. Knows no HTTP."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_kit.llama.pooling import mean_states
from atlas_kit.server.generation import Generation, Outcome
from atlas_kit.server.jobs import Watched, finished

if TYPE_CHECKING:
    from concurrent.futures import Future

    from atlas_kit.codecs.numbers import Array
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.metrics import Metrics


async def embedded(
    conversations: Conversations, namespace: str, texts: Sequence[Sequence[int]], metrics: Metrics
) -> Array:
    """Return the mean final state of each text, (len(texts), n_embd); who stops waiting ends the work.

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
    found: list[Array] = []

    async def work() -> None:
        with metrics.request(asked, outcome) as watch:
            async with conversations.borrowed(namespace, "embedding") as slot:
                watch.begins(slot.session)
                began = time.monotonic()
                job = Watched(
                    scheduler.submit(slot.session, mean_states(slot.session, texts, others_first)), scheduler
                )
                try:
                    found.append(await job.end())
                finally:
                    await finished(job.over())
                outcome.seconds_reading, outcome.read_tokens = time.monotonic() - began, outcome.prompt_tokens
                metrics.add("read_tokens", outcome.read_tokens)

    await conversations.carry_out(work())
    return found[0]
