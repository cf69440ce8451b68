"""A thread that does the newest of what it is asked: slow figures are made beside the notebook, never in its way.

Knows nothing of widgets. The thread ends when nothing is left to do, so a widget that is dropped leaves none behind.
"""

from __future__ import annotations

import threading
from collections.abc import Callable

from atlas_kit.background import start_thread

#: Is given ``stale()``: whether the result is no longer wanted.
Job = Callable[[Callable[[], bool]], None]


class Newest:
    """Jobs by name, one at a time; of several with one name that wait, the newest is done.

    Long jobs ask ``stale()`` now and then and return early. What a job raises goes to ``failed(name, error)``.
    """

    def __init__(self, failed: Callable[[str, Exception], None]) -> None:
        self._failed = failed
        self._changed = threading.Condition()
        self._waiting: dict[str, Job] = {}
        self._thread: threading.Thread | None = None
        self._at_work = ""
        self._stops = 0

    def submit(self, name: str, job: Job) -> None:
        """Do ``job`` soon; an older one of this name that still waits is forgotten."""
        with self._changed:
            self._waiting[name] = job
            if self._thread is None:
                self._thread = start_thread(self._work, name="atlas-figures", stop=self.stop)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing is left to do; False if that took longer than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def stop(self, *names: str) -> None:
        """Forget what waits, and tell the job at work that it is stale: those of these names, by default all."""
        with self._changed:
            for name in names or tuple(self._waiting):
                self._waiting.pop(name, None)
            if not names or self._at_work in names:
                self._stops += 1

    def _work(self) -> None:
        while (found := self._next()) is not None:
            name, job, stale = found
            try:
                job(stale)
            except Exception as error:  # the thread must go on: others wait
                self._failed(name, error)

    def _next(self) -> tuple[str, Job, Callable[[], bool]] | None:
        with self._changed:
            if not self._waiting:
                self._thread = None
                self._changed.notify_all()
                return None
            name, stops = next(iter(self._waiting)), self._stops
            self._at_work = name
            return name, self._waiting.pop(name), lambda: self._stops != stops or name in self._waiting
