"""Answers that later requests go on from by their ids, and the texts of conversations: in main memory, and bounded.

Each answer knows the one before it, so that a long conversation is kept once however many ids lead into it. What
main memory has forgotten, or a server before this one knew, is found in a file, where there is one (response_file.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections import OrderedDict
from collections.abc import AsyncIterator, Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any
from weakref import WeakValueDictionary

from atlas_kit.errors import BusyError, DataTooLargeError
from atlas_kit.server.claims import Claims
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.problems import ApiError
from atlas_kit.server.response_records import Record
from atlas_kit.server.turns import Passage

if TYPE_CHECKING:
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.response_file import ResponseFile
    from atlas_kit.server.shared_responses import SharedResponses

#: Answers that are found by their ids, conversations whose text is kept, and bytes of JSON that both may take.
MOST_RESPONSES = 1000
MOST_CONVERSATIONS = 1000
MOST_BYTES = 256 << 20


@dataclass(eq=False)
class Kept:
    """An answer, with what was asked for it.

    Attributes
    ----------
    response
        As the client was given it.
    items
        What was sent, as a client may list it.
    messages
        What was sent and what was said, as messages; those of ``before`` come first.
    before
        The answer that it goes on from.
    conversation
        Whose memory has read it, while that is known.
    session, remembers
        The name of that, where it has one, and whether it has a memory; None: nobody has read it.
    size
        Bytes of its own part, about.
    number
        Of its row in the file.
    """

    response: dict[str, Any]
    items: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    before: Kept | None = None
    conversation: Conversation | None = None
    session: str | None = None
    remembers: bool | None = None
    size: int = 0
    number: int | None = None

    def __post_init__(self) -> None:
        if self.conversation is not None:
            self.session = self.conversation.key.name
            self.remembers = self.conversation.settings is not None

    def read_as(self, other: Kept | None) -> Kept:
        """Say that whoever has read another one goes on with this; return it."""
        if other is not None:
            self.conversation, self.session, self.remembers = (
                other.conversation,
                other.session,
                other.remembers,
            )
        return self

    def text(self) -> list[dict[str, Any]]:
        """Return all messages so far."""
        return [message for one in self._line() for message in one.messages]

    def items_so_far(self) -> list[dict[str, Any]]:
        """Return all items so far, those that were sent and those that were said."""
        return [item for one in self._line() for item in (*one.items, *one.response.get("output", ()))]

    def measure(self) -> None:
        """Find out how large its own part is."""
        self.size = len(json.dumps([self.items, self.messages, self.response]))

    def _line(self) -> list[Kept]:
        """Return what leads here, the first of it first."""
        found: list[Kept] = []
        one: Kept | None = self
        while one is not None:
            found.append(one)
            one = one.before
        return found[::-1]


@dataclass(eq=False)
class Thread:
    """The text of a conversation: its last answer, what a client noted, and a lock for whoever adds to it.

    ``size`` is in bytes, about; ``begun``: there is something that it keeps, or was; ``ticket``: the fencing
    number of its session, where servers share those.
    """

    last: Kept | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    size: int = 0
    begun: bool = False
    created: float = field(default_factory=time.time)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0
    ticket: int = 0

    def measure(self) -> None:
        """Find out how large it is, with all that was said."""
        said = 0 if self.last is None else sum(one.size for one in self.last._line())
        self.size = said + len(json.dumps(self.metadata))


def _passage(key: Key) -> Key:
    """Return under which key those wait for each other who read a session's answers and who forget them."""
    return SHARED if key.name is None else key


def _is_of(key: Key, namespace: str, kept: Kept) -> bool:
    """Tell whether a memory has read an answer."""
    if key.name is None:
        return kept.session is None and bool(kept.remembers)
    return (namespace, kept.session) == key


class KeptResponses:
    """Answers and conversations, each API key's apart.

    Parameters
    ----------
    most, most_conversations, most_bytes
        How many are kept; of more, those are forgotten that were used longest ago.
    most_waiting
        Requests of one conversation that may wait for their turn.
    file
        Keeps all of it, too; None: nothing outlives the server.
    far, claims
        Keeps all of it for several servers instead, and says which conversations are this one's.
    """

    def __init__(
        self,
        most: int = MOST_RESPONSES,
        most_conversations: int = MOST_CONVERSATIONS,
        most_bytes: int = MOST_BYTES,
        most_waiting: int = 256,
        file: ResponseFile | None = None,
        far: SharedResponses | None = None,
        claims: Claims | None = None,
    ) -> None:
        self._most_waiting = most_waiting
        self._most, self._most_conversations, self._most_bytes = most, most_conversations, most_bytes
        self._found: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._threads: OrderedDict[tuple[str, str], Thread] = OrderedDict()
        self._bytes = 0
        self._passages: WeakValueDictionary[Key, Passage] = WeakValueDictionary()
        self._file, self._far = file, far
        self._claims = Claims() if claims is None else claims
        #: What came from the file, so that several ids that lead into one conversation share it.
        self._loaded: WeakValueDictionary[int, Kept] = WeakValueDictionary()

    def __len__(self) -> int:
        return len(self._found)

    def keep(self, namespace: str, kept: Kept) -> None:
        """Let an answer be found by its id."""
        self._write(namespace, kept, kept.response["id"])
        self._hold(namespace, kept)

    def _hold(self, namespace: str, kept: Kept) -> None:
        self._found[namespace, kept.response["id"]] = kept
        self._bytes += kept.size
        while len(self._found) > self._most or (self._bytes > self._most_bytes and len(self._found) > 1):
            _, old = self._found.popitem(last=False)
            self._bytes -= old.size

    async def find(self, namespace: str, name: str) -> Kept | None:
        """Return the answer of an id."""
        kept = self._found.get((namespace, name))
        if self._far is not None:
            return await self._find_far(self._far, namespace, name)
        if kept is not None:
            self._found.move_to_end((namespace, name))
        elif self._file is not None:
            kept = self._linked(await asyncio.wrap_future(self._file.find(namespace, name)))
            if kept is not None and (namespace, name) not in self._found:
                self._hold(namespace, kept)
        return kept

    async def _find_far(self, far: SharedResponses, namespace: str, name: str) -> Kept | None:
        """Return the answer of an id, which another server may have made or forgotten."""
        try:
            found = self._linked(await asyncio.wrap_future(far.find(namespace, name)))
        except ApiError:
            if (namespace, name) not in self._found:
                raise
            return self._found[namespace, name]  # the store is away
        old = self._found.pop((namespace, name), None)
        self._bytes -= 0 if old is None else old.size
        if found is not None:
            self._hold(namespace, found)
        return found

    async def settled(self) -> None:
        """Wait until what was kept is found by all servers that share a store."""
        if self._far is not None:
            await asyncio.gather(*map(asyncio.wrap_future, self._far.settled()))

    def is_busy(self, key: Key) -> bool:
        """Tell whether something is done to the text of a conversation."""
        thread = self._threads.get((key.namespace, str(key.name)))
        return (thread is not None and thread.waiting > 0) or (
            self._far is not None and self._far.is_noting(key)
        )

    async def delete(self, namespace: str, name: str) -> bool:
        """Forget the id of an answer; what goes on from it stays whole. Tell whether there was one."""
        kept = self._found.pop((namespace, name), None)
        if kept is not None:
            self._bytes -= kept.size
        file = self._far or self._file
        hidden = file is not None and await asyncio.wrap_future(file.hide(namespace, name))
        return kept is not None or hidden

    @contextlib.asynccontextmanager
    async def turn(self, namespace: str, name: str) -> AsyncIterator[Thread]:
        """Have the text of a conversation to oneself, as soon as it is one's turn; set ``last`` to go on with it.

        Raises
        ------
        BusyError
            Too many wait for theirs already.
        """
        await self._claims.claim(Key(namespace, name))
        found = await self.thread(namespace, name)
        new = Thread(ticket=self._claims.ticket(Key(namespace, name)))
        thread = found or self._threads.setdefault((namespace, name), new)
        self._threads.move_to_end((namespace, name))
        if thread.waiting > self._most_waiting:
            raise BusyError(
                f"the queue of this conversation is full: it holds {self._most_waiting}",
                hint="Try again in a moment.",
            )
        thread.waiting += 1
        try:
            async with thread.lock:
                before = thread.last, thread.metadata
                try:
                    yield thread
                finally:
                    changed = thread.last is not before[0] or thread.metadata is not before[1]
                    if changed:
                        thread.begun = True
                        thread.measure()
                    if changed and self._threads.get((namespace, name)) is thread:
                        self._note(namespace, name, thread, before[0])
        finally:
            thread.waiting -= 1
            if not thread.begun and not thread.waiting and self._threads.get((namespace, name)) is thread:
                del self._threads[namespace, name]  # nothing came of the request that began it
            self._forget_threads()

    async def thread(self, namespace: str, name: str) -> Thread | None:
        """Return the text of a conversation, to be looked at."""
        key, file = Key(namespace, name), self._far or self._file
        await self._claims.claim(key, begin=False)
        found = self._threads.get((namespace, name))
        ticket = self._claims.ticket(key)
        if found is not None and found.ticket != ticket and not found.waiting:
            del self._threads[namespace, name]  # another server may have added to it since
            found = None
        if found is None and file is not None:
            noted = await asyncio.wrap_future(file.noted(namespace, name))
            found = self._threads.get((namespace, name))  # somebody else may have been faster
            if found is None and noted is not None:
                found = Thread(self._linked(noted.line), noted.metadata, begun=True, created=noted.created)
                found.ticket = ticket
                found.measure()
                self._threads[namespace, name] = found
                self._forget_threads(found)
        return found

    def forget(self, namespace: str, name: str) -> None:
        """Forget the text of a conversation."""
        thread = self._threads.pop((namespace, name), None)
        if self._far is not None:
            key = Key(namespace, name)
            self._far.forget(key, self._claims.ticket(key) if thread is None else thread.ticket)
        if self._file is not None:
            self._file.forget(namespace, name)

    @contextlib.asynccontextmanager
    async def reading(self, namespace: str, sessions: Collection[str | None]) -> AsyncIterator[None]:
        """Go on from answers that the memories of some sessions have read, and keep what comes of it.

        Whoever forgets those answers waits for that, and whoever comes behind waits for them. None: no session.
        """
        keys = sorted({_passage(Key(namespace, one)) for one in sessions}, key=str)  # all in one order
        async with contextlib.AsyncExitStack() as stack:
            for key in keys:
                await stack.enter_async_context(self._passages.setdefault(key, Passage()).through())
            yield

    @contextlib.asynccontextmanager
    async def forgetting(self, key: Key) -> AsyncIterator[None]:
        """Have the answers of a session to oneself: what is under way there has ended, and was kept."""
        passage = self._passages.setdefault(_passage(key), Passage())
        async with passage.through(alone=True):
            yield

    async def count_of(self, key: Key) -> int:
        """Return how many answers the memory of a session, or the shared one, has read: they hold its text, too."""
        file = self._far or self._file
        if file is not None:
            return await asyncio.wrap_future(file.count_of(*key))
        return sum(_is_of(key, namespace, kept) for (namespace, _), kept in self._found.items())

    async def forget_of(self, key: Key) -> None:
        """Forget those answers, and the text of conversations that they lead to."""
        for where in [where for where, kept in self._found.items() if _is_of(key, where[0], kept)]:
            self._bytes -= self._found.pop(where).size
        for where, thread in self._threads.items():
            if where == key or (thread.last is not None and _is_of(key, where[0], thread.last)):
                thread.last = None
                thread.measure()
        file = self._far or self._file
        if file is not None:
            await asyncio.wrap_future(file.forget_of(*key))

    def close(self) -> None:
        """Write what is left to be written."""
        file = self._far or self._file
        if file is not None:
            file.close()

    def require_room(self, thread: Thread) -> None:
        """Refuse to let a conversation grow that takes all the bytes there are for them.

        Raises
        ------
        DataTooLargeError
            It does.
        """
        if thread.size >= self._most_bytes:
            raise DataTooLargeError(
                f"this conversation has {thread.size} bytes, and may have {self._most_bytes}",
                key="conversation",
            )

    def _forget_threads(self, but: Thread | None = None) -> None:
        size = sum(one.size for one in self._threads.values())
        for key in list(self._threads)[:-1]:  # the last is in use
            if len(self._threads) <= self._most_conversations and size <= self._most_bytes:
                break
            if not self._threads[key].waiting and self._threads[key] is not but:
                size -= self._threads.pop(key).size

    # --- the file --------------------------------------------------------------------------------------------

    def _write(self, namespace: str, kept: Kept, name: str | None) -> None:
        """Write an answer, and first those that lead to it."""
        if self._far is not None and name is not None:
            self._far.keep(namespace, self._records(self._far, kept))
        if self._file is None:
            return
        for one in kept._line():
            if one.number is None or (one is kept and name is not None):
                one.number = self._file.new_number() if one.number is None else one.number
                before = None if one.before is None else one.before.number
                self._file.put(
                    namespace,
                    Record(
                        one.number, name if one is kept else None, before, one.session, one.remembers, one.response,
                        one.items, one.messages,
                    ),
                )  # fmt: skip
                self._loaded[one.number] = one

    def _records(self, far: SharedResponses, kept: Kept) -> list[Record]:
        """Return an answer behind all that lead to it, each with a number."""
        found: list[Record] = []
        for one in kept._line():
            one.number = far.new_number() if one.number is None else one.number
            self._loaded[one.number] = one
            before = None if one.before is None else one.before.number
            name = one.response.get("id")
            found.append(
                Record(
                    one.number,
                    name,
                    before,
                    one.session,
                    one.remembers,
                    one.response,
                    one.items,
                    one.messages,
                )
            )
        return found

    def _note(self, namespace: str, name: str, thread: Thread, before: Kept | None) -> None:
        if self._far is not None:
            line = [] if thread.last is None else self._records(self._far, thread.last)
            self._far.note(Key(namespace, name), thread.ticket, line, thread.metadata, thread.created)
        if self._file is None:
            return
        last, number = thread.last, None
        if last is not None:
            self._write(namespace, last, None)
            number = last.number
        goes_on = before is None or (last is not None and before in last._line())
        self._file.note(namespace, name, number, thread.metadata, thread.created, sweep=not goes_on)

    def _linked(self, line: list[Record]) -> Kept | None:
        """Return the last of some answers, each with the one that it goes on from."""
        found: Kept | None = None
        known: dict[int | None, Kept] = {}
        for one in line:
            kept = self._loaded.get(one.number)
            if kept is None:
                size = len(str(one[5:]))
                kept = Kept(
                    one.response, one.items, one.messages, known.get(one.before), None, one.session, one.remembers,
                    size, one.number,
                )  # fmt: skip
                self._loaded[one.number] = kept
            known[one.number] = found = kept
        return found
