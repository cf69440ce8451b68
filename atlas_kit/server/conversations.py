"""Conversations and the places that they are in: the engine's sequences, main memory, or a file.

A conversation has a memory (or none), and knows the texts that it has read: its branches. The engine has a few
sequences; whoever is to be answered needs one, and the conversation that was used longest ago makes room. Everything
here happens on the event loop, but for what is done to sessions, which the scheduler does on the engine's thread, and
files (session_files.py), which other threads read and write.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import math
import time
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from atlas_kit.errors import (
    AtlasError,
    BusyError,
    ClosedError,
    ConflictError,
    FileAccessError,
    KeyRequiredError,
    OutOfMemoryError,
    WrongKeyError,
)
from atlas_kit.llama.parking import Parked, light_state_of, new_parked, parked_of, state_of
from atlas_kit.llama.session import DEVICES, AtlasSession
from atlas_kit.llama.steps import Stats, common_length
from atlas_kit.server.branches import Spelling, match
from atlas_kit.server.claims import Claims
from atlas_kit.server.conversation import Conversation, Slot, about, gone, take_over, utilization
from atlas_kit.server.jobs import called, finished
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.making import Making
from atlas_kit.server.moved import LeaseLostError
from atlas_kit.server.prefixes import LEAST_SHARED, MOST_BYTES, Prefixes, Reader
from atlas_kit.server.sequences import Sequences
from atlas_kit.server.session_names import SessionNames
from atlas_kit.server.traces import Traces
from atlas_kit.storage.pace import copied

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.server.session_files import SessionFiles
    from atlas_kit.settings.atlas_settings import AtlasSettings

log = logging.getLogger("atlas_kit.server")
#: Temporary conversations that are kept because the next request may go on with one.
MOST_TEMPORARY = 64
#: Seconds until it is tried again to move conversations into files, where that has failed.
RETRY_SECONDS = 30.0
#: Steps of a memory after which it is measured again how much of it is in use.
MEASURE_STEPS = 64
#: Larger matrices are measured only when somebody asks: the next step would have to copy them.
MEASURE_BYTES = 8 << 20
#: Seconds in which contexts are copied when everything is saved.
EXACT_SECONDS = 20.0
#: Tokens that a copy of another context must save at least.
LEAST_COPIED = 4
#: The same where that other one is still being read: whoever waits for it is decoded for later than those who came
#: with it, and of a short text nearly alone.
LEAST_AWAITED = 32


class Conversations:
    """All conversations of one engine.

    Parameters
    ----------
    engine, scheduler
        The model, and what does the work on it.
    most_waiting
        Requests that may wait for a sequence or for their turn; more is a ``BusyError``.
    device
        Where memories compute.
    files
        Keeps the inside of named conversations that leave main memory; None: they stay there.
    warm
        Named conversations that stay in main memory, besides those in sequences.
    cache_bytes
        Bytes of main memory that all conversations outside of sequences may take; None: any number.
    most_named
        Named conversations that one key may have; 0: any number.
    """

    def __init__(
        self,
        engine: Engine,
        scheduler: Scheduler,
        *,
        most_waiting: int = 256,
        device: str = "cpu",
        files: SessionFiles | None = None,
        warm: int = 64,
        cache_bytes: int | None = None,
        most_named: int = 0,
    ) -> None:
        self.engine, self.scheduler = engine, scheduler
        self.spelling = Spelling(engine.piece)
        self.most_waiting = most_waiting
        self.files, self._warm, self._cache_bytes = files, warm, cache_bytes
        self._device = device
        self.named: dict[Key, Conversation] = {}
        self.names = SessionNames(most_named)
        self.claims = Claims()
        self._temporary: list[Conversation] = []
        self.sequences = Sequences(engine, scheduler, device=device)
        self._ask = self.sequences.ask
        self.waiting = 0
        #: Whether a conversation without a memory may lose the beginning of its context.
        self.context_shift = False
        self._ending = False
        self._deleting: Counter[Key] = Counter()
        #: A session that was deleted and one that begins under its name share a file, for a moment.
        self._writing: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        self._tidying: asyncio.Task[None] | None = None
        self._tidy_after = 0.0
        self.spill_problem: str | None = None
        self._measuring: asyncio.Task[None] | None = None
        self.traces = Traces()
        self.prefixes = Prefixes(
            self._ask, MOST_BYTES if cache_bytes is None else min(MOST_BYTES, cache_bytes // 4)
        )
        #: Work for requests that has not ended.
        self.under_way: set[asyncio.Task[None]] = set()
        self.making = Making(self.carry_out)

    async def open(self) -> None:
        """Take all sequences of the engine."""
        await self.sequences.open()

    @property
    def slots(self) -> list[Slot]:
        """The sequences of the engine."""
        return self.sequences.slots

    # --- finding -------------------------------------------------------------------------------------------

    def find(self, key: Key, settings: AtlasSettings | None = None) -> Conversation | None:
        """Return the conversation of a name, also one that is in a file; ``settings``: until that is read."""
        found = self.named.get(key)
        if found is not None or self.files is None or settings is None or key in self._deleting:
            return found
        if self.files.exists(key):
            found = self.named[key] = self.begun(key, settings)
            self.names.add(key)
        return found

    def begun(self, key: Key, settings: AtlasSettings | None, **more: Any) -> Conversation:
        """Return a conversation with nothing inside, unless it is given."""
        ticket = 0 if self.files is None or key.name is None else self.files.ticket(key)
        return Conversation(key, settings, writing=self.writing_of(key), ticket=ticket, **more)

    def writing_of(self, key: Key) -> asyncio.Lock:
        """Return the lock of a session's file; of a temporary conversation, its own."""
        return asyncio.Lock() if key.name is None else self._writing.setdefault(key, asyncio.Lock())

    def named_or_new(self, key: Key, settings: AtlasSettings | None) -> Conversation:
        """Return the conversation of a name, which is started where there is none.

        Raises
        ------
        ApiError
            Its key has as many as it may have.
        """
        found = self.find(key, settings)
        if found is None:
            self.names.begin(key)
            found = self.named[key] = self.new(key, settings)
            found.unread = True
        return found

    @contextlib.asynccontextmanager
    async def asking(self, conversation: Conversation) -> AsyncIterator[None]:
        """Be about to use a conversation: a session that is begun for this goes again where nothing comes of it."""
        conversation.asking += 1
        try:
            yield
        finally:
            conversation.asking -= 1
            if conversation.unread and not conversation.asking and not conversation.closed:
                await finished(self.delete(conversation))

    @property
    def temporary_ones(self) -> tuple[Conversation, ...]:
        """Conversations without a name that the next request may go on with."""
        return tuple(self._temporary)

    def temporary(
        self, namespace: str, settings: AtlasSettings | None, tokens: Sequence[int]
    ) -> Conversation:
        """Return a temporary conversation that can go on with a text: one that has read its beginning, or a new one.

        With a memory, it must have read nothing else: a fresh memory is what was asked for. Without, most of what it
        has read must be of use. It is nobody else's before the next thing that is awaited; take it at once.
        """
        best: Conversation | None = None
        longest = 0
        for one in self._temporary:
            if one.key.namespace != namespace or one.settings != settings or one.taken:
                continue
            known = common_length(one.history, tokens)
            if known <= longest:
                continue
            if settings is not None:
                whole = match(one.history, tokens, self.spelling).known == len(one.history)
                if not whole or len(one.branches) > 1:
                    continue
            elif 2 * known < len(one.history):
                continue  # whoever goes on with that will want the rest
            best, longest = one, known
        source = None if settings is not None else self._source(namespace, tokens, longest)
        if best is None or source is not None:
            best = self._add_temporary(self.new(Key(namespace, None), settings))
            if source is not None:
                best.source = source
                source.followers += 1
        return best

    def _source(self, namespace: str, tokens: Sequence[int], known: int) -> Conversation | None:
        """Return whose context has the longest beginning of a text, where a copy saves reading much of it."""
        info = self.engine.info
        if info.recurrent or info.hybrid:  # nothing can be cut off behind the beginning
            return None
        found: Conversation | None = None
        longest = known + LEAST_COPIED - 1
        for one in self._temporary:
            if one.key.namespace != namespace or one.settings is not None:
                continue
            text = one.history if one.reading is None else one.reading
            shared = common_length(text, tokens)
            if shared > longest and (one.reading is None or shared >= known + LEAST_AWAITED):
                found, longest = one, shared
        return found

    async def follow(self, conversation: Conversation, tokens: Sequence[int]) -> None:
        """Let a new conversation begin with a copy of another one's context, once that has read its text."""
        source, conversation.source = conversation.source, None
        if source is None:
            return
        try:
            if source.reading is not None:
                await source.reached.wait()
            prefix = await self._prefix(source, tokens)
        finally:
            source.followers -= 1
            if not source.followers:
                source.prefix = None
        if prefix is not None and conversation.parked is not None:
            conversation.parked = dataclasses.replace(
                prefix, context=prefix.context[:], owed=[], counts=Stats()
            )
            conversation.history = array("i", prefix.context)
            conversation.branches = [conversation.history]

    async def share(self, conversation: Conversation, tokens: Sequence[int]) -> Reader | None:
        """Let a fresh memory begin with what others have read of its text, and return what reads the rest.

        None: it is not fresh, or there is nothing to be shared. Whoever calls this says when that is read
        (``prefixes.over``).
        """
        settings = conversation.settings
        if settings is None or len(tokens) < LEAST_SHARED or not self._is_fresh(conversation):
            return None
        prefix, reader = await self.prefixes.begin(conversation, settings, tokens)
        if not self._is_fresh(conversation):  # somebody else was quicker
            self.prefixes.over(reader)
            return None
        if prefix is not None:
            conversation.parked = prefix.point.parked(self.engine, counts=True)
            conversation.history = prefix.tokens[:]
            conversation.branches = [conversation.history]
            conversation.learned = len(prefix.tokens)
            conversation.begun = True
            conversation.version += 1
        return reader

    def _is_fresh(self, conversation: Conversation) -> bool:
        """Tell whether a conversation has a memory that has read nothing, and whose inside nobody has."""
        parked = conversation.parked
        return (
            parked is not None
            and parked.memory is not None
            and conversation.key != SHARED
            and not conversation.version
            and not conversation.lock.locked()
            and not parked.memory.tokens_seen
            and self.prefixes.fits(parked.size)
        )

    async def _prefix(self, source: Conversation, tokens: Sequence[int]) -> Parked | None:
        """Return a context that begins as a text does; nothing but what is the same is of any use to its reader."""

        def useful(context: Sequence[int]) -> bool:
            return common_length(context, tokens) >= LEAST_COPIED

        async with source.writing:  # the first of those who want it copies it for all
            if source.prefix is not None and useful(source.prefix.context):
                return source.prefix
            slot, parked = source.slot, source.parked
            if slot is None:
                whole = parked is not None and parked.data is not None and useful(parked.context)
                return parked if whole else None
            session = slot.session

            def copy() -> Parked | None:
                context = list(session.context_tokens)
                if not useful(context):
                    return None
                data = self.engine.save_sequence(session.sequence)
                return Parked(None, True, context, session.position, data)

            source.prefix = await finished(self._ask(copy))
            return source.prefix

    def in_slot(
        self, number: int, namespace: str, settings: AtlasSettings | None, tokens: Sequence[int]
    ) -> Conversation:
        """Return a temporary conversation for a sequence: the one there, if it can go on with a text, or a new one.

        Raises
        ------
        InvalidParamError
            There is no such sequence.
        """
        self.sequences.require(number)
        there = self.slots[number].conversation
        if there in self._temporary and there.key.namespace == namespace and there.settings == settings:
            whole = match(there.history, tokens, self.spelling).known == len(there.history)
            if settings is None or (whole and len(there.branches) <= 1):
                return there
        return self.for_slot(number, namespace, settings)

    def for_slot(self, number: int, namespace: str, settings: AtlasSettings | None = None) -> Conversation:
        """Return a new temporary conversation, which will be in a sequence of a number."""
        found = self._add_temporary(self.new(Key(namespace, None), settings))
        found.wants = number
        return found

    def _add_temporary(self, conversation: Conversation) -> Conversation:
        self._temporary.append(conversation)
        while len(self._temporary) > MOST_TEMPORARY and self._forget_oldest_temporary():
            pass
        return conversation

    def _forget_oldest_temporary(self) -> bool:
        idle = [one for one in self._temporary[:-1] if not one.taken]  # the last is about to be used
        if idle:
            self._forget_temporary(min(idle, key=_last_use))
        return bool(idle)

    def _forget_temporary(self, one: Conversation) -> None:
        self._temporary.remove(one)
        one.closed, one.parked = True, None  # where it is in a sequence, it makes room for the next

    def new(self, key: Key, settings: AtlasSettings | None) -> Conversation:
        """Return a conversation that has read nothing."""
        parked = Parked() if settings is None else self.new_inside(settings)
        return self.begun(key, settings, parked=parked)

    def new_memory(self, settings: AtlasSettings) -> TokenMemory:
        """Return an empty memory."""
        found = self.new_inside(settings).memory
        assert found is not None
        return found

    def new_inside(self, settings: AtlasSettings) -> Parked:
        """Return a session at rest that has read nothing."""
        return new_parked(self.engine, settings, DEVICES[self._device])

    def drop(self, conversation: Conversation) -> None:
        """Forget a conversation and its memory; who uses it now does so to the end."""
        conversation.closed = True
        if self.named.get(conversation.key) is conversation:
            del self.named[conversation.key]
            self.names.discard(conversation.key)
        if not conversation.lock.locked():
            conversation.parked = None

    async def delete(self, conversation: Conversation) -> None:
        """Forget a conversation, its memory, its file, and its text, unless others began with that."""
        self.drop(conversation)
        self.prefixes.forget(conversation)
        self.traces.forget(conversation.key)
        key, files = conversation.key, self.files
        if files is not None and key.name is not None:
            self._deleting[key] += 1  # whoever begins one of this name now does not find the file
            try:
                await finished(self._delete_file(conversation, files))
            finally:
                self._deleting[key] -= 1
                if not self._deleting[key]:
                    del self._deleting[key]
        await self.vacate(conversation)

    async def vacate(self, conversation: Conversation) -> None:
        """Let a conversation that was dropped leave its sequence, unless it is still at work there."""
        slot = conversation.slot
        if slot is not None and not conversation.lock.locked():
            await self.sequences.take(slot)
            await finished(self.sequences.leave(slot))

    async def _delete_file(self, conversation: Conversation, files: SessionFiles) -> None:
        async with conversation.writing:  # what is being written goes, too
            await asyncio.to_thread(files.delete, conversation.key, conversation.ticket)

    # --- leasing -------------------------------------------------------------------------------------------

    @contextlib.asynccontextmanager
    async def lease(self, conversation: Conversation, task: str = "") -> AsyncIterator[Slot]:
        """Have a conversation to oneself, in a sequence of the engine, as soon as it is one's turn.

        Raises
        ------
        BusyError
            Too many wait already.
        ClosedError
            The server ends.
        InvalidParamError
            It was deleted meanwhile.
        """
        with self.queued():
            await conversation.lock.acquire()
        try:
            self._require_open(conversation)
            if conversation.cold:
                await self._warm_up(conversation)
            with self.queued():
                slot = await self.sequences.enter(conversation)
            try:
                self._require_open(conversation)
                slot.task = task
                conversation.requests += 1
                conversation.used = time.time()
                yield slot
            finally:
                conversation.used = time.time()
                slot.task = ""
                await finished(self.sequences.leave(slot))
        finally:
            conversation.lock.release()
            self._tidy_soon()

    @contextlib.asynccontextmanager
    async def resting(self, conversation: Conversation, *, first: bool = False) -> AsyncIterator[None]:
        """Have a conversation to oneself where it is, between two of its requests; nobody moves it meanwhile.

        ``first``: before all of its requests that wait.

        Raises
        ------
        InvalidParamError
            It was deleted meanwhile.
        """
        await conversation.lock.acquire(first=first)
        try:
            if conversation.closed:
                raise gone(conversation)
            async with self.sequences.held(conversation):
                yield
        finally:
            conversation.lock.release()

    def end(self) -> None:
        """Let nobody begin any more: who waits for a sequence is told that the server ends."""
        self._ending = True

    def _require_open(self, conversation: Conversation) -> None:
        if self._ending:
            raise ClosedError("the server is shutting down")
        if conversation.closed:
            raise gone(conversation)

    @contextlib.asynccontextmanager
    async def borrowed(self, namespace: str, task: str) -> AsyncIterator[Slot]:
        """Have a sequence for work that belongs to no conversation, and that leaves its session as it found it: empty.

        Raises
        ------
        BusyError
            Too many wait already.
        """
        nobody = self.new(Key(namespace, None), None)
        async with self.lease(nobody, task) as slot:
            try:
                yield slot
            finally:
                nobody.closed = True
                slot.conversation = nobody.slot = None

    def require_room(self) -> None:
        """Raise ``BusyError`` where too many wait already."""
        if self.waiting >= self.most_waiting and not self._at_once:
            raise BusyError(
                f"{self.waiting} requests wait already, which is the limit", hint="Try again in a moment."
            )

    @contextlib.contextmanager
    def queued(self) -> Iterator[None]:
        """Count as one who waits."""
        self.require_room()
        self.waiting += 1
        try:
            yield
        finally:
            self.waiting -= 1

    @property
    def _at_once(self) -> bool:
        """Whether somebody who comes now would not wait."""
        return self.waiting == 0 and self.sequences.any_free

    async def rest(self) -> None:
        """Take all conversations out of their sequences, between two of their requests."""
        await self.sequences.clear()
        self._tidy_soon()

    # --- work on one ---------------------------------------------------------------------------------------

    async def on(self, conversation: Conversation, function: Callable[[AtlasSession], Any]) -> Any:
        """Call a function with a conversation's session on the engine's thread, in its turn."""
        async with self.lease(conversation) as slot:
            return await called(self.scheduler, slot.session, lambda: function(slot.session))

    async def state(
        self, conversation: Conversation, *, exact: bool = True
    ) -> tuple[SessionState | None, int]:
        """Return what a conversation knows, before the next of its requests, and its version.

        None: that is in a file already.

        ``exact``: with the engine's bytes of the context, which may take a while to copy; else with its tokens, and
        with copies of the memory's arrays that are made beside decoding, where a later step would stop for them.
        """
        async with self.resting(conversation, first=True):
            memory = conversation.memory
            shared = memory is None or memory.pinned
            state = await finished(self._state(conversation, exact))
            if state is not None and not exact and not shared:
                assert memory is not None
                state = await finished(self._copied(state, memory))
            return state, conversation.version

    async def state_at_rest(self, conversation: Conversation) -> SessionState | None:
        """Return what a conversation knows that one has to oneself (``resting``), without the engine's bytes."""
        return await finished(self._state(conversation, False))

    async def _copied(self, state: SessionState, memory: TokenMemory) -> SessionState:
        """Return a state with arrays of its own, so that the memory at rest, whose they were, may write into them."""
        copy = await asyncio.to_thread(state.memory.map, copied)
        memory.release(state.memory)
        return dataclasses.replace(state, memory=copy)

    async def _state(self, conversation: Conversation, exact: bool) -> SessionState | None:
        session = None if conversation.slot is None else conversation.slot.session
        if session is not None:
            if exact:
                state = await called(self.scheduler, session, session.state)
            else:
                state = await self._ask(lambda: light_state_of(session))
        elif conversation.parked is not None:
            state = state_of(self.engine, conversation.parked)
        else:
            return None
        return _with_texts(state, conversation)

    def carry_out(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Let the work for a request go on by itself; what it fails with is for whoever waits for it, if anybody."""
        task = asyncio.ensure_future(work)
        self.under_way.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[None]) -> None:
        self.under_way.discard(task)
        if not task.cancelled():
            task.exception()  # it has been looked at

    def measure(self, conversation: Conversation, memory: TokenMemory) -> None:
        """Find out how much of a memory at rest is in use, on another thread, where it has learned enough since."""
        steps = int(memory.state.counters["steps"])
        busy = self._measuring is not None and not self._measuring.done()
        if busy or not memory.learns or 0 < conversation.measured > steps - MEASURE_STEPS or not steps:
            return
        if sum(int(array.nbytes) for array in memory.state.parameters.values()) > MEASURE_BYTES:
            return
        parameters = memory.pin().parameters

        async def measure() -> None:
            conversation.utilization = await asyncio.to_thread(utilization, parameters)
            conversation.measured = steps

        self._measuring = self.carry_out(measure())

    # --- files ---------------------------------------------------------------------------------------------

    async def save(self, conversation: Conversation, *, exact: bool = True) -> bool:
        """Write a named conversation into its file, where it has changed; tell whether it was written.

        Raises
        ------
        AtlasError
            It cannot be written.
        """
        if self.files is None or conversation.key.name is None:
            return False
        async with conversation.writing:
            clean = conversation.version == conversation.saved and (conversation.exact or not exact)
            if clean or conversation.closed:
                return False
            state, version = await self.state(conversation, exact=exact)
            if state is None or conversation.closed:
                return False
            await finished(asyncio.to_thread(
                self.files.write, conversation.key, state, about(conversation), conversation.ticket
            ))  # fmt: skip
            conversation.saved, conversation.exact = version, exact or not state.tokens
            return True

    async def save_all(self, *, exact: bool = True) -> int:
        """Write all named conversations that have changed; return how many could not be written.

        Those that were used last come first. ``exact``: with the engine's bytes of the context, for so long
        (``EXACT_SECONDS``) that the others are saved, too, before whoever waits for the end loses patience.
        """
        failed, end = 0, time.monotonic() + EXACT_SECONDS
        for one in sorted(self.named.values(), key=_last_use, reverse=True):
            try:
                await self.save(one, exact=exact and time.monotonic() < end)
            except Exception as error:  # the others are saved all the same
                if not one.closed:
                    failed += 1
                    why = error.message if isinstance(error, AtlasError) else "an unexpected error"
                    one.problem = f"The session could not be saved: {why}."
                    log.warning("a session was not saved: %s", why)
        return failed

    async def wake(self, conversation: Conversation) -> None:
        """Bring a conversation into main memory, where it is in a file alone."""
        async with conversation.lock:
            if conversation.cold and not conversation.closed:
                await self._warm_up(conversation)

    async def _warm_up(self, conversation: Conversation) -> None:
        """Bring a conversation back from its file; what is no good is set aside, and it starts anew."""
        await finished(self._read(conversation))

    async def _read(self, conversation: Conversation) -> None:
        files = self.files
        assert files is not None
        assert conversation.settings is not None
        if not conversation.saved and not files.exists(conversation.key):  # it has never read anything
            conversation.parked = self.new_inside(conversation.settings)
            return
        try:
            await self._take_back(conversation, files)
        except Exception as error:
            if conversation.closed:  # its file has gone meanwhile; one that is there now is that of the next
                raise gone(conversation) from None
            # nothing is wrong with the file where too many are open, a disk is away for a moment, or others are at it
            kept = (ConflictError, KeyRequiredError, WrongKeyError)
            if type(error) is FileAccessError or isinstance(error, kept):
                raise
            if isinstance(error, MemoryError):
                raise OutOfMemoryError("there is not enough RAM for this session now") from error
            why = error.message if isinstance(error, AtlasError) else "it is damaged"
            aside = await asyncio.to_thread(files.set_aside, conversation.key)
            log.warning("a session starts anew, its file was set aside as %s: %s", aside, why)
            conversation.problem = f"The saved session could not be used, and starts anew: {why}."
            conversation.parked = self.new_inside(conversation.settings)
            conversation.forget_texts()

    async def _take_back(self, conversation: Conversation, files: SessionFiles) -> None:
        """Read a conversation's file; what is wrong with that is for whoever asks to deal with."""
        state, info = await asyncio.to_thread(files.read, conversation.key, self.engine.info.identity)
        parked = await asyncio.to_thread(parked_of, self.engine, state, DEVICES[self._device])
        take_over(conversation, parked, state, info)
        conversation.size = parked.size
        conversation.version = conversation.saved = max(1, conversation.version)
        conversation.exact = True

    async def bring_back(self, settings: AtlasSettings, count: int) -> None:
        """Bring the sessions that were used last back from their files, before anybody asks for them.

        They may be at work at once: half of the sequences are filled with them, and one at least. What is no good, or
        has no room, is left to whoever asks for it.

        Parameters
        ----------
        settings
            Of memories, until the files are read.
        count
            So many at most.
        """
        files = self.files
        if files is None:
            return
        recent = await asyncio.to_thread(files.recent, min(count, self._warm), self.engine.info.identity)
        room = math.inf if self._cache_bytes is None else self._cache_bytes
        for number, (key, size, used) in enumerate(recent):
            room -= size
            one = self.find(key, settings) if room >= 0 and not self._ending else None
            if one is None:
                return
            async with one.lock:
                if not one.cold or one.closed:
                    continue
                try:
                    await finished(self._take_back(one, files))
                except Exception as error:
                    log.debug("a session stays in its file: %s", error)
                    continue
                one.used = min(one.used, used)
                empty = any(slot.conversation is None and not slot.busy for slot in self.slots)
                if empty and number < max(1, len(self.slots) // 2):
                    await finished(self.sequences.leave(await self.sequences.enter(one)))

    def _tidy_soon(self) -> None:
        if (self._tidying is None or self._tidying.done()) and not self._ending and self._too_much():
            self._tidying = asyncio.ensure_future(self._tidy())

    def _too_much(self) -> Conversation | None:
        """Return the conversation that has to leave main memory next, if one has to."""
        idle = [one for one in self.named.values() if one.parked is not None]
        parked = [*idle, *(one for one in self._temporary if one.parked is not None)]
        kept = [one for one in idle if one.key.name is not None]
        spilled = [one for one in kept if not one.lock.locked()] if self._may_spill else []
        if self.files is not None and len(kept) > self._warm and spilled:
            return min(spilled, key=_last_use)
        if self._cache_bytes is None:
            return None
        if sum(one.size for one in parked) <= self._cache_bytes:
            return None
        spilled += [one for one in self._temporary if one.parked is not None and not one.taken]
        return min(spilled, key=_last_use, default=None)

    @property
    def _may_spill(self) -> bool:
        return self.files is not None and time.monotonic() >= self._tidy_after

    async def _tidy(self) -> None:
        """Move conversations out of main memory until there are as few there as was asked for."""
        while not self._ending and (one := self._too_much()) is not None:
            if one.key.name is None:
                self._forget_temporary(one)
                continue
            try:
                if not await self.spill(one):
                    return  # it was used meanwhile: whoever did so asks for this again
            except LeaseLostError:
                continue  # it is dropped
            except AtlasError as error:
                self._tidy_after = time.monotonic() + RETRY_SECONDS
                self.spill_problem = error.message
                log.warning("sessions stay in main memory: %s", error.message)
            else:
                self.spill_problem = None

    async def spill(self, conversation: Conversation) -> bool:
        """Move a conversation that rests in main memory into its file; tell whether it is there alone.

        Raises
        ------
        AtlasError
            It cannot be written, and stays where it is.
        """
        await self.save(conversation)
        async with conversation.lock:
            clean = conversation.saved == conversation.version and conversation.exact
            if clean and conversation.slot is None and not conversation.closed:
                conversation.parked = None
                conversation.branches, conversation.history = [], array("i")
            return conversation.cold

    async def close(self) -> None:
        """Give the sequences back."""
        self._ending = True
        if self._tidying is not None:
            await asyncio.wait({self._tidying})
        await self.sequences.close()


def _with_texts(state: SessionState, conversation: Conversation) -> SessionState:
    return dataclasses.replace(state, texts=tuple(conversation.branches))


def _last_use(conversation: Conversation) -> float:
    return conversation.used
