"""See that files change while somebody looks at them: one thread, and a glance at each file every two seconds.

A notebook's page hears nothing of a file by itself, and asking the kernel over and over would have it look busy and
never idle; so the kernel looks, and speaks only if there is news. Knows nothing of what is in the files.
"""

from __future__ import annotations

import contextlib
import threading
import weakref
from typing import Protocol

from atlas_kit.background import start_thread

#: Seconds between two glances.
EVERY_SECONDS = 2.0


class Watcher(Protocol):
    """What looks at a file."""

    def glance(self) -> None:
        """Look whether the file has changed; called from another thread."""


_lock = threading.Lock()
_watchers: weakref.WeakSet[Watcher] = weakref.WeakSet()
_wake = threading.Event()
_thread: threading.Thread | None = None


def watch(watcher: Watcher) -> None:
    """Have it glance every now and then, until it is let go or gone."""
    global _thread
    with _lock:
        _watchers.add(watcher)
        if _thread is None:
            _thread = start_thread(_work, name="atlas-watching", stop=_stop)


def let_go(watcher: Watcher) -> None:
    """Have it glance no more."""
    with _lock:
        _watchers.discard(watcher)


def look() -> None:
    """Let everyone glance once. What goes wrong for one (its page is gone, its file cannot be asked) stays its own."""
    for watcher in tuple(_watchers):
        with contextlib.suppress(Exception):
            watcher.glance()


def is_idle() -> bool:
    """Tell whether no thread looks."""
    return _thread is None


def end(timeout: float) -> None:
    """Let everyone go, and wait so many seconds for the thread."""
    thread = _thread
    _stop()
    if thread is not None:
        thread.join(timeout)


def _stop() -> None:
    with _lock:
        _watchers.clear()
    _wake.set()


def _work() -> None:
    global _thread
    while True:
        _wake.wait(EVERY_SECONDS)
        _wake.clear()
        with _lock:
            if not _watchers:
                _thread = None
                return
        look()
