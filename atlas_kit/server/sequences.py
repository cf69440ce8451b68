"""The engine's sequences, and which conversation is in which: who comes in, and who makes room for that.

Everything here happens on the event loop, but for what is done to sessions, which the scheduler does on the engine's
thread. Whose turn it is, and what lies in files, is ``conversations.py``'s.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.parking import Parked, park, unpark
from atlas_kit.llama.session import AtlasSession
from atlas_kit.server.conversation import Conversation, Slot, gone
from atlas_kit.server.jobs import finished

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler


class Sequences:
    """The sequences of one engine.

    Parameters
    ----------
    engine, scheduler
        The model, and what does the work on it.
    device
        Where memories compute.

    Attributes
    ----------
    slots
        The sequences, by their numbers.
    """

    def __init__(self, engine: Engine, scheduler: Scheduler, *, device: str = "cpu") -> None:
        self.engine, self.scheduler, self._device = engine, scheduler, device
        self.slots: list[Slot] = []
        self._freed = asyncio.Condition()

    async def open(self) -> None:
        """Take all sequences of the engine."""
        for number in range(self.engine.n_sequences):
            make = self.scheduler.ask(lambda: AtlasSession(self.engine, None, device=self._device))
            self.slots.append(Slot(number, await asyncio.wrap_future(make)))

    def require(self, number: int) -> None:
        """Refuse a number that is no sequence's.

        Raises
        ------
        InvalidParamError
            There is no such sequence.
        """
        if not 0 <= number < len(self.slots):
            raise InvalidParamError(
                f"there is no slot {number}", key="id_slot", hint=f"Choose 0 to {len(self.slots) - 1}."
            )

    @property
    def any_free(self) -> bool:
        """Whether there is one that nobody works in."""
        return any(not slot.busy for slot in self.slots)

    def _places(self, conversation: Conversation) -> list[Slot]:
        """Return the sequences that a conversation may take now."""
        places = self.slots if conversation.slot is None else [conversation.slot]
        wants = conversation.wants if conversation.slot is None else None
        return [one for one in places if not one.busy and wants in (None, one.number)]

    async def enter(self, conversation: Conversation) -> Slot:
        """Return the sequence that a conversation is in by now, taken for it."""
        async with self._freed:
            # it may be about to leave the sequence that it is in, for somebody else's sake
            await self._freed.wait_for(lambda: bool(self._places(conversation)))
            # packed into the lowest ones: batches of sequences without gaps are decoded fastest
            free = self._places(conversation)
            empty = [one for one in free if one.conversation is None]
            slot = conversation.slot or (empty[0] if empty else min(free, key=_age))
            conversation.wants = None
            slot.busy = True
        if slot.conversation is not conversation:
            try:
                # to its end: half a move would leave a memory in two places, or in none
                await finished(self._move_in(slot, conversation))
            except BaseException:
                await finished(self.leave(slot))
                raise
        return slot

    async def _move_in(self, slot: Slot, conversation: Conversation) -> None:
        """Let a conversation take over a sequence; who was there is parked."""
        before, inside, session = slot.conversation, conversation.parked, slot.session
        if inside is None:
            raise gone(conversation)

        def move() -> Parked | None:
            left = None if before is None else park(session)
            try:
                unpark(session, inside)
            except BaseException:
                if left is not None:
                    unpark(session, left)
                raise
            return left

        left = await self.ask(move)
        if before is not None:
            before.slot, before.parked = None, None if before.closed else left
            before.size = 0 if left is None else left.size
        slot.conversation, conversation.slot, conversation.parked = conversation, slot, None
        async with self._freed:
            self._freed.notify_all()  # who was in it may go elsewhere now

    @contextlib.asynccontextmanager
    async def held(self, conversation: Conversation) -> AsyncIterator[None]:
        """Have the sequence that a conversation is in, if it is in one, between two of its requests."""
        slot = conversation.slot
        if slot is not None:
            async with self._freed:
                was = slot
                await self._freed.wait_for(lambda: conversation.slot is not was or not was.busy)
                slot = conversation.slot  # it may have left for somebody else's sake
                if slot is not None:
                    slot.busy = True
        try:
            yield
        finally:
            if slot is not None:
                await finished(self.leave(slot))

    async def clear(self) -> None:
        """Take all conversations out of their sequences, between two of their requests."""
        for slot in self.slots:
            await self.take(slot)
            try:
                await finished(self._move_out(slot))
            finally:
                await self._release(slot)

    async def _move_out(self, slot: Slot) -> None:
        """Park whoever is in a sequence."""
        before = slot.conversation
        if before is not None:
            left = await self.ask(lambda: park(slot.session))
            slot.conversation = before.slot = None
            before.parked, before.size = None if before.closed else left, left.size

    async def take(self, slot: Slot) -> None:
        """Have a sequence to oneself as soon as it is free."""
        async with self._freed:
            await self._freed.wait_for(lambda: not slot.busy)
            slot.busy = True

    async def leave(self, slot: Slot) -> None:
        """Give a sequence back; what is in it stays, unless it was deleted."""
        left = slot.conversation
        if left is not None and left.closed:
            slot.conversation = left.slot = None
            with contextlib.suppress(AtlasError):  # the scheduler is closed
                await self.ask(lambda: park(slot.session, context=False))
        await self._release(slot)

    async def _release(self, slot: Slot) -> None:
        async with self._freed:
            slot.busy = False
            self._freed.notify_all()

    async def ask(self, function: Callable[[], Any]) -> Any:
        """Call a function on the engine's thread between two decodes."""
        return await asyncio.wrap_future(self.scheduler.ask(function))

    async def close(self) -> None:
        """Give all of them back to the engine."""
        for slot in self.slots:
            await asyncio.wrap_future(self.scheduler.ask(slot.session.close))
        self.slots = []


def _age(slot: Slot) -> float:
    return 0.0 if slot.conversation is None else slot.conversation.used
