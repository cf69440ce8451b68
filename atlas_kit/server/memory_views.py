"""A memory for whoever looks at it from elsewhere: whole as a file, or its matrices in pieces that fit a screen.

Neither changes what is looked at, and nothing of it touches a disk: what an encrypted disk keeps stays there. How much
may be under way at once is bounded. Knows no HTTP but its statuses.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import secrets
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atlas_kit.explorer.pooling import block, pool
from atlas_kit.persistence.session_file import session_state_bytes
from atlas_kit.server.conversation import about
from atlas_kit.server.jobs import finished
from atlas_kit.server.keys import SHARED
from atlas_kit.server.memories import without_texts
from atlas_kit.server.problems import ApiError

if TYPE_CHECKING:
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.server.memories import Host

#: Bytes of files that are on their way to clients at once, all together; one alone must fit, too.
MOST_BYTES = 1 << 30
#: Rows and columns of the largest piece of a matrix: a megabyte.
MOST_LINES = 512


class Part(NamedTuple):
    """A part of a matrix, and into how many rows and columns it is to be pooled at most."""

    top: int = 0
    left: int = 0
    bottom: int | None = None
    right: int | None = None
    rows: int = MOST_LINES
    columns: int = MOST_LINES


class MemoryViews:
    """What a service's clients see of memories."""

    def __init__(self, service: Host) -> None:
        self._service = service
        self._under_way = 0
        self._secret = secrets.token_bytes(16)  # so that no tag of before a restart is taken for one of today

    # --- as a file -----------------------------------------------------------------------------------------

    async def tag(self, conversation: Conversation) -> str:
        """Return what changes when a memory does, as an ``ETag`` has it."""
        memory = await self._memory(conversation)
        known = (
            conversation.key.namespace, conversation.key.name, conversation.created, conversation.version,
            memory.tokens_seen, memory.settings.to_json(),
        )  # fmt: skip
        digest = hashlib.blake2b(json.dumps(known).encode(), key=self._secret, digest_size=12)
        return f'"{digest.hexdigest()}"'

    async def file(self, conversation: Conversation, namespace: str) -> bytes:
        """Return a ``.atlas`` file of a memory as it is between two requests; ``release`` it when it is sent.

        Of the shared memory, it has what was learned, and not the conversations; nor, where there are several keys, of
        which that with this ``namespace`` asks, the window with the newest tokens.

        Raises
        ------
        ApiError
            It is too large (413), or others are being sent that leave no room for it (429).
        """
        memory = await self._memory(conversation)
        size = memory.state_bytes
        if size > MOST_BYTES:
            raise ApiError(
                413,
                f"This memory takes more than {MOST_BYTES >> 20} MiB: save it under a name.",
                code="too_large",
            )
        if self._under_way + size > MOST_BYTES:
            raise ApiError(
                429, "Other memories are being sent: try again in a moment.",
                code="too_many_requests", retry_after=5,
            )  # fmt: skip
        self._under_way += size
        try:
            state, _ = await self._service.conversations.state(conversation, exact=False)
            if state is None:
                raise _moved()
            info = {**about(conversation), "namespace": None, "name": None}
            if conversation.key == SHARED:
                state = without_texts(state)
            window = conversation.key != SHARED or not namespace
            make = asyncio.to_thread(session_state_bytes, state, metadata={"session": info}, window=window)
            data: bytes = await finished(make)
            self._under_way += len(data)
            return data
        finally:
            self._under_way -= size

    def release(self, data: bytes) -> None:
        """Take note that a file is sent, or need not be."""
        self._under_way -= len(data)

    async def _memory(self, conversation: Conversation) -> TokenMemory:
        await self._service.conversations.wake(conversation)
        async with self._service.conversations.resting(conversation):
            memory = conversation.memory
            if memory is None:
                raise _moved()
            return memory

    # --- as matrices ---------------------------------------------------------------------------------------

    async def matrix(self, conversation: Conversation, name: str | None, part: Part) -> dict[str, Any]:
        """Return a part of a matrix of a memory, pooled, as JSON-ready data.

        While the memory learns it is looked at between two of its steps, so that its answer is not waited for.

        Parameters
        ----------
        name
            Of the matrix; None: the first.
        part
            Of the matrix; what leads out of it is cut off.

        Returns
        -------
        ``numbers`` are little-endian float32 (``size``), row by row, in base64; each stands for a ``block`` of the
        matrix, and is the one farthest from zero.

        Raises
        ------
        ApiError
            There is no matrix of this name, or the part is empty.
        """
        conversations = self._service.conversations
        slot = conversation.slot
        if slot is not None and slot.task and slot.conversation is conversation:
            # its own request is under way, so that the session's memory is its memory, wherever that goes next
            memory = slot.session.own_memory
            if memory is None:
                raise _moved()
            at_work = memory
            look = conversations.scheduler.ask(lambda: _copied(at_work, name))
            found = await asyncio.wrap_future(look)
        else:
            await conversations.wake(conversation)
            async with conversations.resting(conversation):
                resting = conversation.memory
                if resting is None:
                    raise _moved()
                found = await finished(asyncio.to_thread(_copied, resting, name))
        return await asyncio.to_thread(_piece, found, part)


class _Copied(NamedTuple):
    """A matrix of a memory as it was at one moment."""

    names: list[str]
    name: str
    matrix: np.ndarray[Any, Any]
    tokens: int
    steps: int


def _copied(memory: TokenMemory, name: str | None) -> _Copied:
    state = memory.state
    names = [one for one, array in state.parameters.items() if array.ndim == 2]
    if not names:
        raise ApiError(404, "This memory has no matrices.", param="name", code="not_found")
    chosen = names[0] if name is None else name
    if chosen not in names:
        raise ApiError(404, "The memory has no matrix of this name.", param="name", code="not_found")
    from atlas_kit.memory.backend import to_host

    matrix = np.array(to_host(state.parameters[chosen]))
    return _Copied(names, chosen, matrix, memory.tokens_seen, int(state.counters["steps"]))


def _piece(found: _Copied, part: Part) -> dict[str, Any]:
    rows, columns = found.matrix.shape
    top, left = max(0, part.top), max(0, part.left)
    bottom = rows if part.bottom is None else min(part.bottom, rows)
    right = columns if part.right is None else min(part.right, columns)
    if top >= bottom or left >= right:
        raise ApiError(400, f"There is nothing in this part of {rows} x {columns} numbers.", param="bottom")
    numbers = pool(found.matrix[top:bottom, left:right], part.rows, part.columns).astype("<f4")
    finite = np.abs(found.matrix[np.isfinite(found.matrix)])
    return {
        "object": "atlas.memory.matrix",
        "names": found.names,
        "name": found.name,
        "shape": [rows, columns],
        "dtype": str(found.matrix.dtype),
        "tokens_seen": found.tokens,
        "steps": found.steps,
        "largest": float(finite.max(initial=0.0)),
        "box": [top, left, bottom, right],
        "size": list(numbers.shape),
        "block": [block(bottom - top, part.rows), block(right - left, part.columns)],
        "numbers": base64.b64encode(numbers.tobytes()).decode(),
    }


def _moved() -> ApiError:
    """Return what is told where a memory went into its file again in the moment that it was asked for."""
    return ApiError(409, "The memory is being moved: try again.", param="session_id", code="moved")
