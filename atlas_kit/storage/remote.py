"""A file at an address as one more ``Source``: few requests, each for a range, of one state of the file.

How a range is had from which store is in ``remote_stores``; here is what is asked for: blocks that are kept while
they may be needed again, more of them at once where somebody says what comes next, and the sentence for whatever
goes wrong. Nothing here knows a format.
"""

from __future__ import annotations

import contextlib
import hashlib
import mmap
import os
import tempfile
import threading
from collections import OrderedDict
from typing import TYPE_CHECKING

from atlas_kit.errors import ConflictError, TruncatedError
from atlas_kit.storage.source import CHUNK, Source
from atlas_kit.storage.urls import chain, last_part, shown

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.storage.remote_stores import Piece, Store

#: The first request: enough for most headers, little enough to be thrown away; by endings, where more is known.
FIRST = 1 << 16
FIRST_OF = {".gguf": 1 << 18, ".atlas": 1 << 13}
#: The least that a later request asks for: a round trip costs more than that many bytes.
LEAST = 1 << 14
#: What bulk reading asks for at once, and the most that any request does.
BULK = 1 << 23
MOST = 1 << 25
#: How many bytes are kept in main memory, in case that they are read again.
KEPT = 1 << 26
#: Views of more than this lie in a temporary file instead.
LARGE_VIEW = 1 << 25


class RemoteSource(Source):
    """A file at an address; its first bytes are read when it is opened, which tells its size and state.

    Attributes
    ----------
    path
        The address as it may be shown; ``url`` has the secrets that it came with.
    requests, received
        How often the store was asked, and how many bytes came.
    """

    path: str
    far = True

    def __init__(self, url: str, store: Store) -> None:
        self.url = url
        self.path = shown(url)
        self._store = store
        self._lock = threading.RLock()
        self._blocks: OrderedDict[int, bytes] = OrderedDict()
        self._kept = 0
        self._next = 0  # where the last request ended: reading on from there is reading in sequence
        self._run = FIRST
        self._wish = (0, 0)
        self.received = 0
        first = store.fetch(0, FIRST_OF.get(os.path.splitext(last_part(url))[1].lower(), FIRST))
        self.size = first.total
        self.state = first.state
        self._modified = first.modified
        self._keep(0, first)
        self._take_identity()

    def _take_identity(self) -> None:
        digest = hashlib.sha256(repr((self.path, self.state)).encode()).digest()
        self.identity = (int.from_bytes(digest[:8], "little"), self.size)

    @property
    def modified(self) -> int:
        """When the file was last changed, Unix seconds; 0 where the store does not tell."""
        return self._modified

    @property
    def requests(self) -> int:
        """How often the store was asked for something."""
        return self._store.requests

    def beside(self, name: str) -> str | None:
        """Return the address of a file of that name in the same folder.

        None where what stands behind the name says more of this file alone: it may be a signature.
        """
        own = last_part(self.url)
        if len(chain(self.url)) > 1 or not own or not self.url.endswith(f"/{own}"):
            return None
        return f"{self.url[: -len(own)]}{name}"

    def prepare(self, offset: int, size: int) -> None:
        """Be told that all of a range is going to be read: the next request for some of it asks for all."""
        self._wish = (offset, min(self.size, offset + size))

    def read_upto(self, offset: int, size: int) -> bytes:
        """Return up to ``size`` bytes at ``offset``, fewer at the end."""
        stop = min(self.size, offset + max(0, size))
        if offset >= stop:
            return b""
        with self._lock:
            found = self._part(offset, stop)
            if len(found) == stop - offset:
                return bytes(found)
            whole = bytearray(found)
            while offset + len(whole) < stop:
                at = offset + len(whole)
                piece = self._part(at, stop) or self._fetch(at, stop)[: stop - at]
                whole += piece
            return bytes(whole)

    def _part(self, start: int, stop: int) -> memoryview | bytes:
        """Return what is at hand from ``start`` on, up to ``stop``."""
        for at, block in reversed(self._blocks.items()):
            if at <= start < at + len(block):
                self._blocks.move_to_end(at)
                return memoryview(block)[start - at : stop - at]
        return b""

    def _fetch(self, start: int, stop: int) -> bytes:
        """Ask the store for the bytes from ``start`` on: to ``stop`` at least, unless that is very much."""
        wished_from, wished_to = self._wish
        if wished_from <= start < wished_to:
            goal = wished_to
        elif start == self._next:
            self._run = min(self._run * 2, CHUNK)
            goal = start + self._run
        else:
            self._run = FIRST
            goal = start + LEAST
        goal = min(self.size, max(stop, goal), start + MOST)
        for at in self._blocks:  # what is at hand already is not asked for again
            if start < at < goal and goal <= at + len(self._blocks[at]):
                goal = at
        piece = self._store.fetch(start, goal - start, self.state)
        if (piece.state, piece.total) != (self.state, self.size):
            raise ConflictError("the file was changed while it was being read", path=self.path)
        if not piece.data:
            raise TruncatedError(
                "the file became shorter while it was being read", path=self.path, offset=start
            )
        return self._keep(start, piece)

    def _keep(self, start: int, piece: Piece) -> bytes:
        self.received += len(piece.data)
        self._next = start + len(piece.data)
        old = self._blocks.pop(start, b"")
        self._blocks[start] = piece.data
        self._kept += len(piece.data) - len(old)
        while self._kept > KEPT and len(self._blocks) > 1:
            self._kept -= len(self._blocks.popitem(last=False)[1])
        return piece.data

    def chunks(self, offset: int, size: int, chunk: int = CHUNK) -> Iterator[bytes]:
        """Yield the bytes of a range in pieces of bounded size, asked for in fewer and larger ones."""
        end = min(self.size, offset + size)
        for start in range(offset, end, BULK):
            stop = min(end, start + BULK)
            self.prepare(start, stop - start)
            yield from super().chunks(start, stop - start, chunk)
        if size > 0 and offset + size > end:
            self.read(max(offset, end), offset + size - max(offset, end))  # which says where the file ends

    def view(self, offset: int, size: int) -> memoryview:
        """Return a view of a copy of a range: in main memory, or in a temporary file where it is large."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise TruncatedError(
                f"{size} bytes are expected, and the file ends at byte {self.size}",
                path=self.path,
                offset=offset,
            )
        if size <= LARGE_VIEW:
            self.prepare(offset, size)
            return memoryview(self.read(offset, size))
        from atlas_kit.storage.remote_stores import room_for

        with tempfile.TemporaryFile() as file:
            for piece in self.chunks(offset, size):
                with room_for(self.path):
                    file.write(piece)
            with room_for(self.path):
                file.flush()
            return memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ))

    def changed(self) -> bool:
        """Tell whether the address now holds other bytes than when it was opened."""
        with contextlib.suppress(Exception):
            now = self._store.look()
            return (now.state, now.total) != (self.state, self.size)
        return True

    def refresh(self) -> None:
        """Take the present size and state as the ones that the source was opened with."""
        with self._lock:
            now = self._store.look()
            if (now.state, now.total) != (self.state, self.size):
                self._blocks.clear()
                self._kept = 0
            self.state, self.size, self._modified = now.state, now.total, now.modified
            self._take_identity()

    def close(self) -> None:
        """Let go of what was read; the connections stay for the next file of the store."""
        with self._lock:
            self._blocks.clear()
            self._kept = 0
            self._store.close()


def open_url(url: str) -> RemoteSource:
    """Open a file at an address.

    Raises
    ------
    NoSuchFileError, FileAccessError
        There is no such file, or it cannot be read; where and why, without what is secret in the address.
    MissingExtraError
        What reads from that kind of store is not installed.
    """
    from atlas_kit.storage.remote_stores import store_of

    return RemoteSource(url, store_of(url))
