"""Writing and copying that leave processor and disk to those who wait for them.

Hundreds of megabytes that are written at once keep a core in the kernel, and the disk's queue full, for a tenth of a
second: a model whose threads wait for each other many times a token stands still as long. Written in small parts with
pauses between them, they are hardly noticed. Copying so much takes a processor, too, and threads that share it with
the copier wait for each other far longer than that. What is removed costs as much: the kernel frees a file's pages at
once, 14 ms for 200 MB, so that they are let go before, in parts as well. Knows nothing of what is written.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import threading
import time
from collections.abc import Iterator
from typing import IO, Any

#: Bytes between two pauses, and the seconds of each: 200 MB take about two seconds more.
PART, PAUSE = 1 << 20, 0.01
#: Bytes of a file that is to be removed whose pages go between two pauses.
LET_GO = 1 << 22
#: Bytes that are copied between two pauses, and the seconds of each. Whoever copies may be waited for, so that they are
#: short: 200 MB take one second.
COPIED, COPY_PAUSE = 1 << 18, 0.001


#: Memory that no other process sees, where the system has another kind as well.
_PRIVATE = {"flags": mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS} if hasattr(mmap, "MAP_PRIVATE") else {}


class _Room(mmap.mmap):
    """The memory of a copy that was made here."""


_present = threading.local()


@contextlib.contextmanager
def gently(hurry: threading.Event | None = None) -> Iterator[None]:
    """Let whatever the present thread writes within the block be written in parts, with pauses.

    ``hurry`` ends them once it is set: somebody waits for the file.
    """
    before = getattr(_present, "hurry", None)
    _present.hurry = threading.Event() if hurry is None else hurry
    try:
        yield
    finally:
        _present.hurry = before


class Pace:
    """Pauses of one file; ``wrote`` is told of each piece. Outside of ``gently`` it does nothing."""

    def __init__(self, file: IO[bytes], *, durable: bool = True) -> None:
        self._file, self._durable, self._since, self._synced = file, durable, 0, False
        self._hurry: threading.Event | None = getattr(_present, "hurry", None)

    @property
    def has_synced(self) -> bool:
        """Whether the disk has nearly all that was written, as parts of it were synced."""
        return self._synced

    def wrote(self, count: int) -> None:
        """Take in that ``count`` bytes more were given to the file; return when the next ones may follow."""
        if self._hurry is None:
            return
        self._since += count
        if self._since < PART or self._hurry.is_set():
            return
        self._since = 0
        if self._durable:  # what the disk has by now is not left to one long sync in the end
            self._file.flush()
            with contextlib.suppress(OSError, ValueError):  # the sync in the end says what is wrong
                os.fdatasync(self._file.fileno())
                self._synced = True
        self._hurry.wait(PAUSE)


def copied(array: Any) -> Any:
    """Return a copy of an array of NumPy or CuPy; of a large one in parts, with pauses."""
    import numpy as np

    if array.nbytes <= COPIED or not isinstance(array, np.ndarray) or not array.flags.c_contiguous:
        return array.copy()
    # NumPy asks for huge pages, for which the system may have to move others about: for 200 MB, half a second of a
    # processor, in which whoever looks at those waits
    copy = np.ndarray(array.shape, array.dtype, _Room(-1, array.nbytes, **_PRIVATE))
    old, new = array.reshape(-1), copy.reshape(-1)
    step = max(1, COPIED // array.itemsize)
    for start in range(0, old.size, step):
        new[start : start + step] = old[start : start + step]
        time.sleep(COPY_PAUSE)
    return copy


def give_back(array: Any) -> Any:
    """Free the memory of what ``copied`` has made, in parts, with pauses; nobody looks at it any more.

    Other arrays stay as they are. Freed at once, 200 MB keep a processor in the kernel for 14 ms. Returns the array.
    """
    room = getattr(array, "base", None)
    if isinstance(room, _Room) and hasattr(room, "madvise"):
        for start in range(0, len(room), COPIED):
            room.madvise(mmap.MADV_DONTNEED, start, min(COPIED, len(room) - start))
            time.sleep(COPY_PAUSE)
    return array


def let_go(path: str | os.PathLike[str]) -> None:
    """Let the system forget the pages of a file that is about to be removed; outside of ``gently`` it does nothing.

    A file that has another name stays as it is.
    """
    hurry: threading.Event | None = getattr(_present, "hurry", None)
    if hurry is None or not hasattr(os, "posix_fadvise"):
        return
    with contextlib.suppress(OSError, ValueError):
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            info = os.fstat(file)
            if info.st_nlink > 1 or info.st_size <= LET_GO:
                return
            for start in range(0, info.st_size, LET_GO):
                if hurry.is_set():
                    return
                os.posix_fadvise(file, start, LET_GO, os.POSIX_FADV_DONTNEED)
                hurry.wait(PAUSE)
        finally:
            os.close(file)
