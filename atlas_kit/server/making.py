"""What chooses tokens is made beside the event loop where that takes long: nobody else's tokens wait for it.

A grammar is read, and followed through the whole vocabulary to bound what it costs: that may take seconds. So it is
made on another thread, of a few at a time, and before the request queues for anything else: one that cannot be followed
costs neither a wait for its turn nor any reading.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any

from atlas_kit.server.jobs import finished

if TYPE_CHECKING:
    from atlas_kit.llama.sampling import Sampler, Sampling

#: Samplers that are made at once; more threads would only take the interpreter's lock from the event loop.
AT_ONCE = 2
#: Tokens that penalties take note of on the event loop.
FEW = 4096


def takes_long(sampling: Sampling, tokens: int) -> bool:
    """Tell whether what chooses tokens is to be made beside the event loop, behind so many tokens."""
    if sampling.grammar is not None or sampling.json_schema is not None:
        return True
    return bool(sampling.looks_back) and tokens > FEW


class Making:
    """Makes what chooses tokens.

    Parameters
    ----------
    carry_out
        Lets work go on by itself, which the server waits for when it ends.
    """

    def __init__(self, carry_out: Callable[[Coroutine[Any, Any, None]], asyncio.Task[None]]) -> None:
        self._carry_out = carry_out
        self._room = asyncio.Semaphore(AT_ONCE)

    async def beside(self, make: Callable[[], Sampler]) -> Sampler:
        """Return what a function makes, on another thread as soon as there is room.

        Where whoever waits is cancelled, it is freed when it is there.
        """
        made: list[Sampler] = []

        async def work() -> None:
            async with self._room:
                made.append(await finished(asyncio.to_thread(make)))

        task = self._carry_out(work())
        try:
            await asyncio.wait({task})
            task.result()
            return made.pop()
        except asyncio.CancelledError:

            def free(_: Any) -> None:
                for one in made:
                    one.close()

            task.add_done_callback(free)
            raise
