"""Room inside a file without copying it: the kernel moves the extents, where the file system can (ext4, XFS).

Who has mapped the file or goes on reading it would find other bytes where it was; ``sole_user`` tells whether
there is anybody. Knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
from functools import cache
from typing import Any

_COLLAPSE, _INSERT = 0x08, 0x20
_CANNOT = {
    errno.EOPNOTSUPP,
    errno.ENOSYS,
    errno.EINVAL,
    errno.EPERM,
    errno.EFBIG,
    errno.ETXTBSY,
    errno.ENOSPC,
}


@cache
def _fallocate() -> Any:
    import ctypes  # here, because every opening of a model imports this module

    try:
        function = ctypes.CDLL(None, use_errno=True).fallocate
    except (OSError, AttributeError):  # not Linux
        return None
    function.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)
    return function


def block_size(fd: int) -> int:
    """Return what offset and size of a range must be multiples of."""
    return max(4096, os.fstatvfs(fd).f_bsize)


def insert_range(fd: int, offset: int, size: int) -> bool:
    """Move everything from ``offset`` on back by ``size`` bytes, which read as zeros then; tell whether that was done.

    Raises
    ------
    OSError
        The disk failed.
    """
    return _change(fd, _INSERT, offset, size)


def collapse_range(fd: int, offset: int, size: int) -> bool:
    """Take ``size`` bytes out of a file, so that what is behind them moves up; tell whether that was done.

    Raises
    ------
    OSError
        The disk failed.
    """
    return _change(fd, _COLLAPSE, offset, size)


def _change(fd: int, mode: int, offset: int, size: int) -> bool:
    function = _fallocate()
    if function is None:
        return False
    import ctypes

    while function(fd, mode, offset, size):
        code = ctypes.get_errno()
        if code in _CANNOT:
            return False
        if code != errno.EINTR:
            raise OSError(code, os.strerror(code))
    return True


def sole_user(fd: int) -> bool:
    """Tell whether nobody but this descriptor, open for reading, has the file open or mapped.

    A lease is given to its only user alone; it is handed back at once.
    """
    if not hasattr(fcntl, "F_SETLEASE"):
        return False
    try:
        fcntl.fcntl(fd, fcntl.F_SETSIG, signal.SIGURG)  # who opens it now would end this process by SIGIO
        fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_WRLCK)
    except OSError:
        return False
    finally:
        with contextlib.suppress(OSError):  # there was none
            fcntl.fcntl(fd, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    return True
