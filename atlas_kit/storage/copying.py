"""Bytes from one opened file to another inside the kernel, and holes as holes.

Where the file system can, both share their blocks, which costs neither time nor room. What a file has no blocks for
gets none in the copy: a sparse file of a terabyte is not filled up by keeping it. Knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Callable, Iterator

#: Bytes are copied in steps of this size.
STEP = 64 << 20
_PIECE = 1 << 20
_NO_KERNEL_COPY = {
    errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EBADF, errno.EPERM, errno.ETXTBSY
}  # fmt: skip


def data_ranges(fd: int, start: int, stop: int) -> Iterator[tuple[int, int]]:
    """Yield the ranges of (start, stop) that hold data; all of it where the file system cannot tell."""
    hole, data = getattr(os, "SEEK_HOLE", None), getattr(os, "SEEK_DATA", None)
    at = start
    while at < stop:
        try:
            if hole is None or data is None:
                raise OSError(errno.EINVAL, "")
            first = os.lseek(fd, at, data)
            end = os.lseek(fd, first, hole)
        except OSError as error:
            if error.errno != errno.ENXIO:  # no data behind here; else: nobody knows
                yield at, stop
            return
        if first >= stop:
            return
        yield first, min(end, stop)
        at = end


def copy_data(
    old: int, new: int, size: int, *, start: int = 0, to: int = 0,
    progress: Callable[[int], object] | None = None,
) -> bool:  # fmt: skip
    """Copy a range of one file into another at ``to``, behind which the other has nothing yet.

    Parameters
    ----------
    old, new
        Descriptors. The position of ``old`` may change.
    progress
        Called with the number of bytes that are done.

    Returns
    -------
    bool
        False where the old file ended before that; what was there is copied.

    Raises
    ------
    OSError
        The disk is full or failed.
    """
    kernel = hasattr(os, "copy_file_range")
    for first, stop in data_ranges(old, start, start + size):
        at = first
        while at < stop:
            count = 0
            if kernel:
                try:
                    count = os.copy_file_range(old, new, min(STEP, stop - at), at, to + at - start)
                except OSError as error:
                    if error.errno not in _NO_KERNEL_COPY:
                        raise
                    kernel = False
            if not count:  # at the end of the file, or what the kernel does not copy
                piece = os.pread(old, min(_PIECE, stop - at), at)
                if not piece:
                    break
                count = os.pwrite(new, piece, to + at - start)
            at += count
            if progress is not None:
                progress(at - start)
    whole = os.fstat(old).st_size >= start + size
    with contextlib.suppress(OSError):  # a pipe
        if whole and os.fstat(new).st_size < to + size:
            os.ftruncate(new, to + size)
    return whole


def copy_file(old: int, new: int) -> None:
    """Copy a whole file into an empty one.

    Raises
    ------
    OSError
        The disk is full or failed.
    """
    copy_data(old, new, os.fstat(old).st_size)


__all__ = ["copy_data", "copy_file", "data_ranges"]
