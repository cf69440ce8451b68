"""Several generations at once, whose tokens come as they come. Knows no conversation and no HTTP."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from atlas_kit.llama.steps import Token


class Speaking(Protocol):
    """What yields tokens as they come, in groups."""

    def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield them; who closes it early ends the work."""


async def together(runs: Sequence[Speaking]) -> AsyncGenerator[tuple[int, list[Token] | None], None]:
    """Yield the tokens of several generations as they come, with their numbers; None is the end of one.

    What one fails with ends all of them, and so does closing the iteration.
    """
    if len(runs) == 1:  # nothing to wait for beside it
        async with contextlib.aclosing(runs[0].tokens()) as groups:
            async for fresh in groups:
                yield 0, fresh
        yield 0, None
        return
    came: asyncio.Queue[tuple[int, list[Token] | BaseException | None]] = asyncio.Queue()

    async def one(number: int, run: Speaking) -> None:
        try:
            async with contextlib.aclosing(run.tokens()) as groups:
                async for tokens in groups:
                    came.put_nowait((number, tokens))
            came.put_nowait((number, None))
        except Exception as error:
            came.put_nowait((number, error))

    tasks = [asyncio.create_task(one(number, run)) for number, run in enumerate(runs)]
    left = len(tasks)
    try:
        while left:
            number, item = await came.get()
            if isinstance(item, BaseException):
                raise item
            left -= item is None
            yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
