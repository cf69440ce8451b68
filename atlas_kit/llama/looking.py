"""What a memory's next step needs, looked for on another thread while its session goes on. Knows no memory."""

from __future__ import annotations

import functools
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

T = TypeVar("T")


class Looking(Generic[T]):
    """At most one thing that is looked for; it belongs to one thread, but for ``found``."""

    def __init__(self) -> None:
        self._future: Future[T] | None = None

    def begin(self, find: Callable[[], T]) -> None:
        """Look for something, in the place of what was looked for before."""
        self._future = _others().submit(find)

    def found(self) -> T | None:
        """Return what is looked for, as soon as it is there; None where nothing is. What ``find`` raises is raised."""
        future = self._future
        return None if future is None else future.result()

    def drop(self) -> None:
        """Look for nothing any more."""
        self._future = None


@functools.cache
def _others() -> ThreadPoolExecutor:
    """Return the thread that looks: one for all, as what it computes would only be slower side by side."""
    return ThreadPoolExecutor(1, "atlas-looking")
