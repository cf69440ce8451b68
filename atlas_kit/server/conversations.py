"""Conversations and the places that they are in: the engine's sequences, main memory, or a file.

A conversation has a memory (or none), and knows the texts that it has read: its branches. The engine has a few
sequences; whoever is to be answered needs one, and the conversation that was used longest ago makes room. Everything
here happens on the event loop, but for what is done to sessions, which the scheduler does on the engine's thread.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from array import array
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from atlas_kit.errors import BusyError, InvalidParamError
from atlas_kit.llama.parking import Parked, park, unpark
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.steps import common_length
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.server.branches import Match, Spelling, match
from atlas_kit.server.jobs import called

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.settings.atlas_settings import AtlasSettings

#: Texts that a conversation remembers to have read; of more, the oldest is forgotten, and would be read anew.
MOST_BRANCHES = 64
#: Temporary conversations that are kept because the next request may go on with one.
MOST_TEMPORARY = 64


class Key(NamedTuple):
    """Which conversation: the namespace of the API key, and the name in it; None: a temporary one."""

    namespace: str
    name: str | None


@dataclass(eq=False)
class Conversation:
    """A memory, the texts that it has read, and where it is now.

    Attributes
    ----------
    key
        Its name.
    settings
        Of its memory; None: it has none.
    branches
        The tokens of each text that it has read, the one that was read last at the end.
    history
        The tokens that its context was read from: the context holds the end of them.
    parked
        Its inside while it is in no sequence.
    wants
        The number of the sequence that it shall be in next; None: any.
    slot
        Where it is else.
    dropped
        Tokens that were learned and that no branch goes on with: they are not unlearned.
    """

    key: Key
    settings: AtlasSettings | None
    branches: list[array[int]] = field(default_factory=list)
    history: array[int] = field(default_factory=lambda: array("i"))
    parked: Parked | None = None
    slot: Slot | None = None
    wants: int | None = None
    dropped: int = 0
    requests: int = 0
    created: float = field(default_factory=time.time)
    used: float = field(default_factory=time.time)
    closed: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)

    def known(self, tokens: Sequence[int], spelling: Spelling) -> tuple[int, Match]:
        """Return the branch (or -1) that the longest part of a text is known from, and how much of it."""
        best, longest = -1, Match(0, 0)
        for number, branch in enumerate(self.branches):
            if common_length(branch, tokens) >= longest.wanted or best < 0:
                found = match(branch, tokens, spelling)
                if found.wanted > longest.wanted:
                    best, longest = number, found
        return best, longest

    def remember(self, tokens: Sequence[int], follows: int) -> None:
        """Take note of a text that was read; ``follows``: the branch that it goes on from, -1 for none."""
        text = array("i", tokens)
        if follows >= 0:
            old = self.branches[follows]
            if len(old) <= len(text) and old == text[: len(old)]:
                del self.branches[follows]
        self.branches.append(text)
        del self.branches[:-MOST_BRANCHES]
        self.history = text


class Answered(Protocol):
    """What was generated in a slot last, as ``generation`` has it."""

    @property
    def asked(self) -> Any:
        """What was asked for."""

    @property
    def read_so_far(self) -> int:
        """How many tokens of the text are read or known by now."""

    outcome: Any


@dataclass(eq=False)
class Slot:
    """One sequence of the engine, whose conversation is in it, and what was generated there last."""

    number: int
    session: AtlasSession
    conversation: Conversation | None = None
    busy: bool = False
    task: str = ""
    last: Answered | None = None


class Conversations:
    """All conversations of one engine.

    Parameters
    ----------
    engine, scheduler
        The model, and what does the work on it.
    most_waiting
        Requests that may wait for a sequence or for their turn; more is a ``BusyError``.
    warm
        Named conversations that stay in main memory.
    spill
        Is given a conversation that leaves main memory, and keeps its inside; None: it is lost.
    device
        Where memories compute.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        *,
        most_waiting: int = 256,
        device: str = "cpu",
    ) -> None:
        self.engine, self.scheduler = engine, scheduler
        self.spelling = Spelling(engine.piece)
        self.most_waiting = most_waiting
        self._device = device
        self.named: dict[Key, Conversation] = {}
        self._temporary: list[Conversation] = []
        self.slots: list[Slot] = []
        self._freed = asyncio.Condition()
        self.waiting = 0
        #: Whether a conversation without a memory may lose the beginning of its context.
        self.context_shift = False

    async def open(self) -> None:
        """Take all sequences of the engine."""
        for number in range(self.engine.n_sequences):
            make = self.scheduler.ask(lambda: AtlasSession(self.engine, None, device=self._device))
            self.slots.append(Slot(number, await asyncio.wrap_future(make)))

    # --- finding -------------------------------------------------------------------------------------------

    def find(self, key: Key) -> Conversation | None:
        """Return the conversation of a name."""
        return self.named.get(key)

    def named_or_new(self, key: Key, settings: AtlasSettings | None) -> Conversation:
        """Return the conversation of a name, which is started where there is none."""
        found = self.named.get(key)
        if found is None:
            found = self.named[key] = self._new(key, settings)
        return found

    @property
    def temporary_ones(self) -> tuple[Conversation, ...]:
        """Conversations without a name that the next request may go on with."""
        return tuple(self._temporary)

    def temporary(
        self, namespace: str, settings: AtlasSettings | None, tokens: Sequence[int]
    ) -> Conversation:
        """Return a temporary conversation that can go on with a text: one that has read its beginning, or a new one.

        With a memory, it must have read nothing else: a fresh memory is what was asked for.
        """
        best: Conversation | None = None
        longest = 0
        for one in self._temporary:
            if one.key.namespace != namespace or one.settings != settings or one.lock.locked():
                continue
            known = common_length(one.history, tokens)
            if known <= longest:
                continue
            if settings is not None:
                whole = match(one.history, tokens, self.spelling).known == len(one.history)
                if not whole or len(one.branches) > 1:
                    continue
            best, longest = one, known
        if best is None:
            best = self._new(Key(namespace, None), settings)
            self._temporary.append(best)
            if len(self._temporary) > MOST_TEMPORARY:
                self._forget_oldest_temporary()
        return best

    def in_slot(
        self, number: int, namespace: str, settings: AtlasSettings | None, tokens: Sequence[int]
    ) -> Conversation:
        """Return a temporary conversation for a sequence: the one there, if it can go on with a text, or a new one.

        Raises
        ------
        InvalidParamError
            There is no such sequence.
        """
        if not 0 <= number < len(self.slots):
            raise InvalidParamError(
                f"there is no slot {number}", key="id_slot", hint=f"Choose 0 to {len(self.slots) - 1}."
            )
        there = self.slots[number].conversation
        if there in self._temporary and there.key.namespace == namespace and there.settings == settings:
            whole = match(there.history, tokens, self.spelling).known == len(there.history)
            if settings is None or (whole and len(there.branches) <= 1):
                return there
        return self.for_slot(number, namespace, settings)

    def for_slot(self, number: int, namespace: str, settings: AtlasSettings | None = None) -> Conversation:
        """Return a new temporary conversation, which will be in a sequence of a number."""
        found = self._new(Key(namespace, None), settings)
        found.wants = number
        self._temporary.append(found)
        if len(self._temporary) > MOST_TEMPORARY:
            self._forget_oldest_temporary()
        return found

    def _forget_oldest_temporary(self) -> None:
        idle = [one for one in self._temporary if not one.lock.locked() and one.requests]
        if idle:
            oldest = min(idle, key=lambda one: one.used)
            self._temporary.remove(oldest)
            oldest.closed, oldest.parked = True, None

    def _new(self, key: Key, settings: AtlasSettings | None) -> Conversation:
        memory = None if settings is None else self.new_memory(settings)
        return Conversation(key, settings, parked=Parked(memory))

    def new_memory(self, settings: AtlasSettings) -> TokenMemory:
        """Return an empty memory."""
        from atlas_kit.llama.session import DEVICES

        return TokenMemory(self.engine.output_rows(), settings, DEVICES[self._device])

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation and its memory; who uses it now does so to the end."""
        conversation.closed = True
        self.named.pop(conversation.key, None)

    # --- leasing -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lease(self, conversation: Conversation, task: str = "") -> AsyncIterator[Slot]:
        """Have a conversation to oneself, in a sequence of the engine, as soon as it is one's turn.

        Raises
        ------
        BusyError
            Too many wait already.
        InvalidParamError
            It was dropped meanwhile.
        """
        with self._queued():
            await conversation.lock.acquire()
        try:
            if conversation.closed:
                raise InvalidParamError("the session was deleted meanwhile", key="session_id")
            with self._queued():
                slot = await self._slot_of(conversation)
            slot.task = task
            try:
                conversation.requests += 1
                conversation.used = time.time()
                yield slot
            finally:
                conversation.used = time.time()
                slot.task = ""
                await asyncio.shield(self._release(slot))
        finally:
            conversation.lock.release()

    @contextlib.asynccontextmanager
    async def borrowed(self, namespace: str, task: str) -> AsyncIterator[Slot]:
        """Have a sequence for work that belongs to no conversation, and that leaves its session as it found it: empty.

        Raises
        ------
        BusyError
            Too many wait already.
        """
        nobody = self._new(Key(namespace, None), None)
        async with self.lease(nobody, task) as slot:
            try:
                yield slot
            finally:
                nobody.closed = True
                slot.conversation = nobody.slot = None

    def require_room(self) -> None:
        """Raise ``BusyError`` where too many wait already."""
        if self.waiting >= self.most_waiting:
            raise BusyError(
                f"{self.waiting} requests wait already, which is the limit", hint="Try again in a moment."
            )

    @contextlib.contextmanager
    def _queued(self) -> Iterator[None]:
        self.require_room()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    def _places(self, conversation: Conversation) -> list[Slot]:
        """Return the sequences that a conversation may take now."""
        places = self.slots if conversation.slot is None else [conversation.slot]
        wants = conversation.wants if conversation.slot is None else None
        return [one for one in places if not one.busy and wants in (None, one.number)]

    async def _slot_of(self, conversation: Conversation) -> Slot:
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
        try:
            if slot.conversation is not conversation:
                await self._move_in(slot, conversation)
        except BaseException:
            await asyncio.shield(self._release(slot))
            raise
        return slot

    async def _move_in(self, slot: Slot, conversation: Conversation) -> None:
        """Let a conversation take over a sequence; who was there is parked."""
        before, inside = slot.conversation, conversation.parked
        assert inside is not None

        def move() -> Parked:
            left = park(slot.session)
            unpark(slot.session, inside)
            return left

        left = await called(self.scheduler, slot.session, move)
        if before is not None:
            before.slot = None
            before.parked = None if before.closed else left
        slot.conversation, conversation.slot, conversation.parked = conversation, slot, None
        async with self._freed:
            self._freed.notify_all()  # who was in it may go elsewhere now

    async def _release(self, slot: Slot) -> None:
        async with self._freed:
            slot.busy = False
            self._freed.notify_all()

    # --- work on one ---------------------------------------------------------------------------------------

    async def on(self, conversation: Conversation, function: Callable[[AtlasSession], Any]) -> Any:
        """Call a function with a conversation's session on the engine's thread, in its turn."""
        async with self.lease(conversation) as slot:
            return await called(self.scheduler, slot.session, lambda: function(slot.session))

    async def close(self) -> None:
        """Give the sequences back."""
        for slot in self.slots:
            await asyncio.wrap_future(self.scheduler.ask(slot.session.close))
        self.slots = []


def _age(slot: Slot) -> float:
    return 0.0 if slot.conversation is None else slot.conversation.used
