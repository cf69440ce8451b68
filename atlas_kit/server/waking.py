"""How another thread wakes an event loop up without giving the interpreter away. Knows neither jobs nor engines.

``call_soon_threadsafe`` writes into a socket, and Python lets others have the interpreter meanwhile. The loop's thread
is just then woken up, takes it, and whoever called waits until everything is sent: with many streams some milliseconds,
in which nothing is decoded. Written by a function that keeps the interpreter, the loop has its turn as soon as the
caller does without Python, as a decode does. On Linux; elsewhere all is as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import sys
import weakref
from collections.abc import Callable
from typing import Any

#: What is added to the number that an eventfd holds.
_ONE = (1).to_bytes(8, sys.byteorder)


class _Number:
    """An eventfd, closed when nobody uses it any more."""

    def __init__(self) -> None:
        self.file = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        weakref.finalize(self, os.close, self.file)


def waking(loop: asyncio.AbstractEventLoop, answer: Callable[[], object]) -> Callable[[], None]:
    """Return a function for any thread that has ``answer`` called in a loop; to be called on the loop's own thread.

    Several calls before the loop has come to it are one. Where the loop is closed, nothing happens.
    """

    def by_the_loop() -> None:
        with contextlib.suppress(RuntimeError):  # it is closed: nobody waits any more
            loop.call_soon_threadsafe(answer)

    if (write := _write()) is None:
        return by_the_loop
    try:
        number = _Number()
    except OSError:  # no more files may be open
        return by_the_loop

    def come() -> None:
        with contextlib.suppress(BlockingIOError):
            os.eventfd_read(number.file)
        answer()

    try:
        loop.add_reader(number.file, come)
    except NotImplementedError:  # a loop that waits for no files
        return by_the_loop
    return lambda: write(number.file, _ONE, len(_ONE))


@functools.cache
def _write() -> Any:
    """Return C's ``write``, called without giving the interpreter away; None where there is no eventfd."""
    if not hasattr(os, "eventfd"):
        return None
    try:
        write = ctypes.PyDLL(None).write
    except (AttributeError, OSError, TypeError):
        return None
    write.argtypes, write.restype = (ctypes.c_int, ctypes.c_char_p, ctypes.c_size_t), ctypes.c_ssize_t
    return write
