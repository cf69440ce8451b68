"""Bytes that hardly anybody looks at again, on disk and not in memory: a notebook's Out keeps what its cells gave.

They lie in one file of this process that has no name: it is gone with the process, however that ends. Where no disk
takes them they stay in memory, compressed. Knows nothing of what they are.
"""

from __future__ import annotations

import os
import tempfile
import threading
import weakref
import zlib
from typing import IO


class Kept:
    """Some bytes that were put away; their place is free again when nobody has this any more."""

    def __init__(self, shelf: Shelf, at: int, size: int, packed: bytes | None) -> None:
        self._shelf, self._at, self._size, self._packed = shelf, at, size, packed
        if packed is None:
            weakref.finalize(self, shelf._free, at).atexit = False

    def __len__(self) -> int:
        return self._size

    def read(self) -> bytes:
        """Return them.

        Raises
        ------
        OSError
            The disk does not give them back.
        """
        if self._packed is not None:
            return zlib.decompress(self._packed)
        return self._shelf._read(self._at, self._size)


class Shelf:
    """A place for bytes.

    Parameters
    ----------
    folder
        Where its file lies, by default where temporary files do.

    Examples
    --------
    >>> shelf = Shelf()
    >>> kept = [shelf.put(b"to be"), shelf.put(b" or not")]
    >>> b"".join(one.read() for one in kept), shelf.size
    (b'to be or not', 12)
    >>> del kept
    >>> shelf.size
    0
    """

    def __init__(self, folder: str | os.PathLike[str] | None = None) -> None:
        self._folder = folder
        self._file: IO[bytes] | None = None
        self._taken: dict[int, int] = {}  # where something lies -> its bytes
        self._lock = threading.RLock()  # what is collected while it is held frees a place, too

    @property
    def size(self) -> int:
        """Bytes that lie in the file."""
        with self._lock:
            return sum(self._taken.values())

    def put(self, data: bytes) -> Kept:
        """Put bytes away."""
        with self._lock:
            at = self._room(len(data))
            try:
                if self._file is None:
                    self._file = tempfile.TemporaryFile(prefix="atlas-", dir=self._folder)  # noqa: SIM115
                    weakref.finalize(self, self._file.close)
                view, done = memoryview(data), 0
                while done < len(data):
                    done += os.pwrite(self._file.fileno(), view[done:], at + done)
            except OSError:
                return Kept(self, 0, len(data), zlib.compress(data, 1))
            if data:
                self._taken[at] = len(data)
            return Kept(self, at, len(data), None)

    def _room(self, size: int) -> int:
        """Return where so many bytes are free."""
        at = 0
        for start, length in sorted(self._taken.items()):
            if start - at >= size:
                break
            at = start + length
        return at

    def _read(self, at: int, size: int) -> bytes:
        parts, file = [], self._file
        assert file is not None
        while size and (part := os.pread(file.fileno(), size, at)):
            parts.append(part)
            at, size = at + len(part), size - len(part)
        if size:
            raise OSError("what was put away is gone from the disk")
        return b"".join(parts)

    def _free(self, at: int) -> None:
        with self._lock:
            self._taken.pop(at, None)
            if self._file is not None:
                end = max((start + length for start, length in self._taken.items()), default=0)
                os.ftruncate(self._file.fileno(), end)


#: That of this process.
SHELF = Shelf()
