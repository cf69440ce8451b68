"""Sessions that several servers share, as the event loop sees them: claimed before use, handed over, found to be lost.

A request says which session it is going to use, and waits until this server holds it: at once where it does already,
else for the store, or for the server that has the session to give it back. That one saves it between two of its
requests, and drops it. Where a session turns out to be another server's, whatever is in main memory of it is dropped,
and whoever was being answered from that is told so.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError, ConflictError, FileAccessError
from atlas_kit.server.claims import Claims
from atlas_kit.server.jobs import finished
from atlas_kit.server.moved import HeldElsewhereError, LeaseLostError
from atlas_kit.server.problems import ApiError

if TYPE_CHECKING:
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.keys import Key
    from atlas_kit.server.shared_sessions import SharedSessions

log = logging.getLogger("atlas_kit.server")
#: Seconds between two looks at whether a session is free.
LOOK_SECONDS = 0.1
#: Leases that are waited for a session which another server has: one that is gone has given it up by then.
PATIENCE = 1.5
#: Seconds that a session stays which was claimed and is not used yet.
GRACE_SECONDS = 0.5
#: Seconds in which a session's requests that come one behind the other keep it from being handed over.
BUSY_SECONDS = 5.0


class SharedClaims(Claims):
    """Some sessions are other servers'.

    Parameters
    ----------
    conversations, files
        What is in main memory, and in the spool. It is made on the event loop.
    """

    def __init__(self, conversations: Conversations, files: SharedSessions) -> None:
        self._conversations, self._files = conversations, files
        self._loop = asyncio.get_running_loop()
        self._seconds = files.store.leases.seconds
        self._claimed: dict[str, float] = {}
        self._keys: dict[str, Key] = {}
        self._leaving: set[str] = set()
        #: Tells whether something is done to what else belongs to a session.
        self.is_busy: Callable[[Key], bool] = lambda key: False
        files.lost = lambda session: self._call(self._drop, session)

    def wanted(self, session: str) -> None:
        """Take in, on any thread, that another server wants a session."""
        self._call(self._begin_to_leave, session)

    async def claim(self, key: Key, *, begin: bool = True) -> None:
        """Wait until this server holds a session; ``begin``: also if there is none of this name yet.

        Raises
        ------
        ApiError
            Another server has it, and does not give it back in time (503); or it is not known who has it, as the store
            is away (503).
        """
        if key.name is None or self._files.holds(key):
            return
        until = self._loop.time() + PATIENCE * self._seconds + 1
        while True:
            try:
                await finished(asyncio.to_thread(self._files.claim, key, begin))
            except HeldElsewhereError as error:
                if self._loop.time() > until:
                    raise ApiError(
                        503,
                        f"This session is at work on another server, {error.holder}, which will give it back when it "
                        "can. Ask again.",
                        param="session_id",
                        code="session_elsewhere",
                        retry_after=max(1, round(self._seconds / 5)),
                    ) from error
            except ConflictError:
                pass  # somebody was faster: it is looked at again
            except FileAccessError as error:
                raise ApiError(
                    503,
                    "The store of sessions cannot be reached now, and this server does not hold this one. "
                    "Ask again later.",
                    param="session_id",
                    code="store_away",
                    retry_after=max(1, round(self._seconds / 3)),
                ) from error
            else:
                self._claimed[self._files.id_of(key)] = time.time()
                self._keys[self._files.id_of(key)] = key
                one = self._conversations.named.get(key)
                if one is not None and one.ticket != self._files.ticket(key):  # it is of an earlier lease
                    self._drop_one(one)
                return
            await asyncio.sleep(LOOK_SECONDS)

    async def confirm(self, conversation: Conversation) -> None:
        """See that a session was this server's while it was used.

        Raises
        ------
        ApiError
            It was not: what was answered comes from what is not the newest, and is kept nowhere (503).
        """
        key, ticket = conversation.key, conversation.ticket
        if key.name is None:
            return
        try:
            if conversation.moved:
                raise LeaseLostError
            if self._files.ticket(key) != ticket or not self._files.holds(key):
                await finished(asyncio.to_thread(self._files.confirm, key, ticket))
        except LeaseLostError as error:
            raise ApiError(
                503,
                "Another server has taken this session over while this was answered, and nothing of it is kept. "
                "Ask again.",
                param="session_id",
                code="session_moved",
                retry_after=1,
            ) from error

    def ticket(self, key: Key) -> int:
        """Return the fencing number under which a session is held; 0: it is not."""
        return self._files.ticket(key)

    # --- what other servers do -------------------------------------------------------------------------------

    def _call(self, function: object, session: str) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(function, session)  # type: ignore[arg-type]

    def _named(self, session: str) -> Conversation | None:
        key = self._keys.get(session)
        if key is not None:
            return self._conversations.named.get(key)
        for key, one in self._conversations.named.items():
            if key.name is not None and self._files.id_of(key) == session:
                return one
        return None

    def _drop(self, session: str) -> None:
        """Drop what is in main memory of a session that another server has."""
        one = self._named(session)
        if one is not None:
            self._drop_one(one)

    def _drop_one(self, one: Conversation) -> None:
        self._leave_memory(one)
        self._conversations.carry_out(self._conversations.vacate(one))

    def _leave_memory(self, one: Conversation) -> None:
        one.moved = True
        self._conversations.drop(one)
        self._conversations.names.add(one.key)  # it is there, if not here

    def _begin_to_leave(self, session: str) -> None:
        if session not in self._leaving:
            self._leaving.add(session)
            self._conversations.carry_out(self._hand_over(session))

    async def _hand_over(self, session: str) -> None:
        """Give a session back, between two of its requests."""
        try:
            one, claimed = self._named(session), self._claimed.pop(session, 0.0)
            if one is None or one.used < claimed:
                left = claimed + GRACE_SECONDS - time.time()
                await asyncio.sleep(min(left, GRACE_SECONDS))  # the clock may have been put back
            one = self._named(session)
            if one is None:
                key = self._keys.get(session)
                if key is not None and self.is_busy(key):
                    return
                self._files.let_go(session)
            elif not await self._is_free(one, session):
                return  # it is wanted still, which the next round finds
            await finished(asyncio.to_thread(self._files.release, session))
        except AtlasError as error:
            log.info("a session that another server wants stays for now: %s", error.message)
        finally:
            self._leaving.discard(session)

    async def _is_free(self, one: Conversation, session: str) -> bool:
        """Save a session and let it leave main memory; tell whether nobody has used it meanwhile."""
        until = self._loop.time() + BUSY_SECONDS
        while (one.asking or self.is_busy(one.key)) and self._loop.time() < until:
            await asyncio.sleep(LOOK_SECONDS / 2)
        await self._conversations.save(one)
        async with one.lock:
            if one.closed or one.saved != one.version or self.is_busy(one.key):
                return False
            self._files.let_go(session)
            self._leave_memory(one)
            one.parked = None
        await self._conversations.vacate(one)
        return True
