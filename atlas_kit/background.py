"""Threads that work beside the caller's own, and are told to end before the interpreter does.

A daemon thread that is inside compiled code when the interpreter ends is unwound through that code; what is C++ there
(NumPy's, llama.cpp's) answers by ending the process with SIGABRT. So whoever starts a thread here says how it is
stopped. Knows nothing of what the threads do.
"""

from __future__ import annotations

import atexit
import contextlib
import threading
import time
from collections.abc import Callable

#: Seconds that the threads have, together, to end after they are told to.
END_SECONDS = 10.0

_running: dict[threading.Thread, Callable[[], object]] = {}
_lock = threading.Lock()


def start_thread(target: Callable[[], object], *, name: str, stop: Callable[[], object]) -> threading.Thread:
    """Start a daemon thread that calls ``target``, and that is stopped and waited for when the interpreter ends.

    Parameters
    ----------
    target
        The work. What it raises goes to ``threading.excepthook``, as of any thread.
    stop
        Asks the work to end soon, from another thread, without waiting. It is called only while the work goes on.
    """

    def work() -> None:
        try:
            target()
        finally:
            with _lock:
                _running.pop(thread, None)

    thread = threading.Thread(target=work, name=name, daemon=True)
    with _lock:
        _running[thread] = stop
    try:
        thread.start()
    except BaseException:
        with _lock:
            _running.pop(thread, None)
        raise
    return thread


@atexit.register
def _end_all() -> None:
    """Stop all threads, then wait for them, and for those that they start meanwhile."""
    deadline = time.monotonic() + END_SECONDS
    while True:
        with _lock:
            running = list(_running.items())
        if not running or time.monotonic() > deadline:
            return
        for _, stop in running:
            with contextlib.suppress(Exception):  # the others are to be stopped all the same
                stop()
        for thread, _ in running:
            thread.join(max(0.0, deadline - time.monotonic()))
