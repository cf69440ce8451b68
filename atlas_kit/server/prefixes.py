"""Beginnings of texts that many fresh memories share: read and learned once, by whoever comes first.

A memory that begins with a text is the same whoever reads that text. So the one who reads it stops where others want
to go on by themselves, and what it is then is kept as a value that nobody changes: each of them begins with it, the
same to the bit as if it had read that part itself. Where that is, is known from texts that begin alike: of those that
are being read, at once; of those that were read before, the second one to come stops for the third.

Texts are compared inside the namespace of an API key alone, so that no answer tells by its time what others sent.
Which session is whose, the module does not know.
"""

from __future__ import annotations

import asyncio
import time
import weakref
from array import array
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.llama.steps import common_length

if TYPE_CHECKING:
    from atlas_kit.llama.forking import Point
    from atlas_kit.server.conversation import Conversation
    from atlas_kit.settings.atlas_settings import AtlasSettings

#: Tokens that a beginning must save at least: bringing a memory and a context over takes a while, too.
LEAST_SHARED = 64
#: Beginnings that are kept, and bytes of main memory that they may take.
MOST_KEPT, MOST_BYTES = 16, 1 << 30
#: A single one takes at most this part of them: stopping copies as much while others wait.
SHARE = 4
#: Texts that were read lately and are compared with new ones, and how many tokens of each.
MOST_RECENT, MOST_COMPARED = 64, 1 << 15


class Kind(NamedTuple):
    """Who may share: the same API key's memories of the same settings."""

    namespace: str
    settings: AtlasSettings


@dataclass(eq=False)
class Prefix:
    """A beginning that was read, and what a fresh memory is behind it; ``owner`` read it."""

    kind: Kind
    tokens: array[int]
    point: Point
    owner: weakref.ref[Conversation]
    used: float = field(default_factory=time.monotonic)


class Reader:
    """A text that a fresh memory reads, and the places where it stops for others.

    ``stop`` and ``wants`` are the engine's thread's own, all else is the event loop's.
    """

    def __init__(self, kind: Kind, text: array[int], owner: Conversation, start: int) -> None:
        self.kind, self.text, self.owner = kind, text, weakref.ref(owner)
        self._stops: set[int] = set()
        self._upto = start
        #: The places where it has stopped already.
        self.behind: set[int] = set()
        self._waiting: dict[int, asyncio.Future[Prefix | None]] = {}
        self.ended = False

    # --- the engine's thread ---------------------------------------------------------------------------------

    def stop(self, at: int, limit: int) -> int:
        """Return where the part of the text ends that begins at a place, and is of so many tokens at most."""
        stops = (place for place in self._stops if place > at)
        self._upto = min(*stops, at + limit, len(self.text))
        return self._upto

    def wants(self, place: int) -> bool:
        """Tell whether somebody goes on from a place."""
        return place in self._stops

    def add(self, place: int) -> bool:
        """Let it stop at a place, unless it is too late for that; tell whether it will, or has."""
        if place >= self._upto:
            self._stops.add(place)
        return place in self._stops

    # --- the event loop --------------------------------------------------------------------------------------

    def came(self, place: int) -> asyncio.Future[Prefix | None]:
        """Return what will be the prefix that ends at a place; None where the text is not read that far."""
        found = self._waiting.get(place)
        if found is None:
            found = self._waiting[place] = asyncio.get_running_loop().create_future()
        return found

    def give(self, place: int, prefix: Prefix | None) -> None:
        """Let those go on who wait for a place."""
        self.behind.add(place)
        waiting = self._waiting.pop(place, None)
        if waiting is not None and not waiting.done():
            waiting.set_result(prefix)

    def end(self) -> None:
        """Take note that no more of the text is read for others."""
        self.ended = True
        for place in list(self._waiting):
            self.give(place, None)


class Prefixes:
    """What is shared, and who reads what.

    Parameters
    ----------
    ask
        Calls a function on the engine's thread between two decodes.
    most_bytes
        Bytes of main memory that may be kept.
    """

    def __init__(self, ask: Callable[[Callable[[], Any]], Any], most_bytes: int = MOST_BYTES) -> None:
        self._ask, self._most_bytes = ask, most_bytes
        self._kept: list[Prefix] = []
        self._reading: list[Reader] = []
        self._recent: deque[Reader] = deque(maxlen=MOST_RECENT)

    def __iter__(self) -> Iterator[Prefix]:
        return iter(self._kept)

    def fits(self, size: int) -> bool:
        """Tell whether what takes so many bytes may be shared."""
        return size <= self._most_bytes // SHARE

    async def begin(
        self, conversation: Conversation, settings: AtlasSettings, tokens: Sequence[int]
    ) -> tuple[Prefix | None, Reader]:
        """Return the longest beginning of a text that a fresh memory need not read, and what reads the rest.

        Whoever calls this reads the text at once, or ends the reader.
        """
        kind, text = Kind(conversation.key.namespace, settings), array("i", tokens[:MOST_COMPARED])
        while True:
            best = self._longest(kind, text)
            known = 0 if best is None else len(best.tokens)
            alike = self._alike(self._reading, kind, text, to_come=True)
            if alike is None or alike[1] < known + LEAST_SHARED:
                break
            reader, place = alike
            came = reader.came(place)
            if not await self._ask(partial(reader.add, place)):
                reader.give(place, None)  # it is further by now
                continue
            found = await asyncio.shield(came)
            if found is not None:
                best, known = found, place
                break
        if best is not None:
            best.used = time.monotonic()
        reader = Reader(kind, array("i", tokens), conversation, known)
        alike = self._alike((*self._reading, *self._recent), kind, text)
        if alike is not None and alike[1] >= known + LEAST_SHARED:
            reader.add(alike[1])  # two begin alike: a third may
        self._reading.append(reader)
        return best, reader

    def _longest(self, kind: Kind, text: array[int]) -> Prefix | None:
        found = [
            one
            for one in self._kept
            if one.kind == kind and len(one.tokens) <= len(text) and one.tokens == text[: len(one.tokens)]
        ]
        return max(found, key=lambda one: len(one.tokens), default=None)

    def _alike(
        self, readers: Sequence[Reader], kind: Kind, text: array[int], *, to_come: bool = False
    ) -> tuple[Reader, int] | None:
        """Return who has the longest beginning of a text, and how long that is; ``to_come``: and is not behind it."""
        best: tuple[Reader, int] | None = None
        for one in readers:
            if one.kind != kind or one.text[0] != text[0]:
                continue
            shared = common_length(one.text, text)
            if (best is None or shared > best[1]) and not (to_come and shared in one.behind):
                best = one, shared
        return best

    def reached(self, reader: Reader, place: int, point: Point) -> None:
        """Take what a fresh memory is behind the beginning of a text."""
        found = Prefix(reader.kind, reader.text[:place], point, reader.owner)
        self._kept.append(found)
        while len(self._kept) > MOST_KEPT or sum(one.point.size for one in self._kept) > self._most_bytes:
            self._kept.remove(min(self._kept, key=lambda one: one.used))
        reader.give(place, found)

    def over(self, reader: Reader) -> None:
        """Take note that a text is read, or is not read any further."""
        if not reader.ended:
            reader.end()
            self._reading.remove(reader)
            del reader.text[MOST_COMPARED:]
            self._recent.append(reader)

    def forget(self, owner: Conversation) -> None:
        """Forget the texts that a conversation has read, which is deleted."""
        self._kept = [one for one in self._kept if one.owner() is not owner]
        kept = [one for one in self._recent if one.owner() is not owner]
        self._recent.clear()
        self._recent.extend(kept)
