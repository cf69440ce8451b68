"""Ctrl-C that waits until what must not be cut in half is done."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from typing import Any


@contextlib.contextmanager
def interrupts_put_off() -> Iterator[None]:
    """Let Ctrl-C wait until the block ends: a memory that has taken in half a step would be good for nothing."""
    main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGINT) if main else None
    if not callable(handler):
        yield
        return
    asked: list[tuple[int, Any]] = []
    signal.signal(signal.SIGINT, lambda number, frame: asked.append((number, frame)))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, handler)
        for number, frame in asked:
            handler(number, frame)
