"""Answers that later requests go on from by their ids, and the texts of conversations: in main memory, and bounded.

Each answer knows the one before it, so that a long conversation is kept once however many ids lead into it.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import OrderedDict
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import BusyError

if TYPE_CHECKING:
    from atlas_kit.server.conversation import Conversation

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
        Whose memory has read it.
    size
        Bytes of its own part, about.
    """

    response: dict[str, Any]
    items: list[dict[str, Any]]
    messages: list[dict[str, Any]]
    before: Kept | None = None
    conversation: Conversation | None = None
    size: int = 0

    def text(self) -> list[dict[str, Any]]:
        """Return all messages so far."""
        return [message for one in self._line() for message in one.messages]

    def items_so_far(self) -> list[dict[str, Any]]:
        """Return all items so far, those that were sent and those that were said."""
        return [item for one in self._line() for item in (*one.items, *one.response.get("output", ()))]

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
    """The text of a conversation: its last answer, what a client noted, and a lock for whoever adds to it."""

    last: Kept | None = None
    metadata: dict[str, Any] = field(default_factory=dict)
    created: float = field(default_factory=time.time)
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    waiting: int = 0


class KeptResponses:
    """Answers and conversations, each API key's apart.

    Parameters
    ----------
    most, most_conversations, most_bytes
        How many are kept; of more, those are forgotten that were used longest ago.
    most_waiting
        Requests of one conversation that may wait for their turn.
    """

    def __init__(
        self,
        most: int = MOST_RESPONSES,
        most_conversations: int = MOST_CONVERSATIONS,
        most_bytes: int = MOST_BYTES,
        most_waiting: int = 256,
    ) -> None:
        self._most_waiting = most_waiting
        self._most, self._most_conversations, self._most_bytes = most, most_conversations, most_bytes
        self._found: OrderedDict[tuple[str, str], Kept] = OrderedDict()
        self._threads: OrderedDict[tuple[str, str], Thread] = OrderedDict()
        self._bytes = 0

    def __len__(self) -> int:
        return len(self._found)

    def keep(self, namespace: str, kept: Kept) -> None:
        """Let an answer be found by its id."""
        self._found[namespace, kept.response["id"]] = kept
        self._bytes += kept.size
        while len(self._found) > self._most or (self._bytes > self._most_bytes and len(self._found) > 1):
            _, old = self._found.popitem(last=False)
            self._bytes -= old.size

    def find(self, namespace: str, name: str) -> Kept | None:
        """Return the answer of an id."""
        kept = self._found.get((namespace, name))
        if kept is not None:
            self._found.move_to_end((namespace, name))
        return kept

    def delete(self, namespace: str, name: str) -> bool:
        """Forget the id of an answer; what goes on from it stays whole. Tell whether there was one."""
        kept = self._found.pop((namespace, name), None)
        if kept is not None:
            self._bytes -= kept.size
        return kept is not None

    @contextlib.asynccontextmanager
    async def turn(self, namespace: str, name: str) -> AsyncIterator[Thread]:
        """Have the text of a conversation to oneself, as soon as it is one's turn; set ``last`` to go on with it.

        Raises
        ------
        BusyError
            Too many wait for theirs already.
        """
        thread = self._threads.setdefault((namespace, name), Thread())
        self._threads.move_to_end((namespace, name))
        if thread.waiting > self._most_waiting:
            raise BusyError(
                f"the queue of this conversation is full: it holds {self._most_waiting}",
                hint="Try again in a moment.",
            )
        thread.waiting += 1
        try:
            async with thread.lock:
                yield thread
        finally:
            thread.waiting -= 1
            self._forget_threads()

    def thread(self, namespace: str, name: str) -> Thread | None:
        """Return the text of a conversation, to be looked at."""
        return self._threads.get((namespace, name))

    def forget(self, namespace: str, name: str) -> None:
        """Forget the text of a conversation."""
        self._threads.pop((namespace, name), None)

    def _forget_threads(self) -> None:
        for key in list(self._threads):
            if len(self._threads) <= self._most_conversations:
                break
            if not self._threads[key].waiting:
                del self._threads[key]
