"""Work that goes on beside a notebook: one thread, started, paused and stopped from any other, with frames for a page.

Knows neither what the work is nor what a frame shows. Between two steps the lock is handed to whoever waits for it,
so that a save or a reset sees the work whole; an exception ends the run as a sentence and never the kernel.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable, Iterator

from atlas_kit.background import start_thread
from atlas_kit.errors import AtlasError, InvalidParamError

STATES = ("idle", "running", "paused", "done", "failed")
#: Seconds that ``stop`` waits for the step in progress.
STOP_SECONDS = 0.5
#: Seconds between two frames, and the share of the time that they may take. Whatever a frame shows, JupyterLab spends
#: some 60 ms on its acknowledgement, because the kernel is busy and idle again.
FRAME_SECONDS, FRAME_SHARE = 0.35, 0.1


class Turns:
    """A re-entrant lock. The thread at work takes it last: whoever else waits comes first."""

    def __init__(self) -> None:
        self._lock = threading.RLock()
        self._changed = threading.Condition()
        self._waiting = 0

    def __enter__(self) -> Turns:
        with self._changed:
            self._waiting += 1
        try:
            self._lock.acquire()
        finally:  # also when the kernel is interrupted here
            with self._changed:
                self._waiting -= 1
                self._changed.notify_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._lock.release()

    @contextlib.contextmanager
    def last(self) -> Iterator[None]:
        """Hold the lock after all who wait for it."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting)
        with self._lock:
            yield


class Runner:
    """Does steps of work until there are no more, or until it is told to stop.

    Parameters
    ----------
    work
        One step; False: that was the last.
    on_frame
        Shows how things stand, on the thread that works. Called between steps, and by ``frame`` within one; never more
        often than ``ready`` allows, nor so often that it takes more than a tenth of the time.
    on_state
        Called after each change of ``state``, on any thread.
    ready
        Whether a frame can be shown now: the page has drawn the last one.

    Attributes
    ----------
    state
        One of ``STATES``: ``idle`` before the first step and after ``stop``, ``done`` when nothing is left to do.
    error
        A sentence after a failure, else empty.
    lock
        Held while a step is done. Hold it to look at what the work changes.

    Examples
    --------
    >>> left = [3, 2, 1]
    >>> runner = Runner(lambda: bool(left.pop()) and bool(left))
    >>> runner.run()
    >>> runner.state, left
    ('done', [])
    """

    def __init__(
        self,
        work: Callable[[], bool],
        on_frame: Callable[[], None] | None = None,
        on_state: Callable[[], None] | None = None,
        ready: Callable[[], bool] = lambda: True,
    ) -> None:
        self._work, self._on_frame, self._on_state, self._ready = work, on_frame, on_state, ready
        self.lock = Turns()
        self.state, self.error = "idle", ""
        self.failure: Exception | None = None
        self._changed = threading.Condition()
        self._thread: threading.Thread | None = None
        self._wanted = False  # to run
        self._then = "idle"  # the state when it is no longer wanted to
        self._enough: Callable[[], bool] | None = None
        self._next_frame = 0.0
        self._closed = False

    @property
    def alive(self) -> bool:
        """Whether a thread is at work."""
        return self._thread is not None

    @property
    def wanted(self) -> bool:
        """Whether it works, and nobody has told it to stop after the step in progress."""
        return self._wanted

    @property
    def closed(self) -> bool:
        """Whether it has ended for good."""
        return self._closed

    # --- orders, from any thread ---------------------------------------------------------------------------

    def start(self, enough: Callable[[], bool] | None = None) -> None:
        """Work in the background, to the end or until it is ``enough``, which is asked after each step.

        While it works already, only that changes.

        Raises
        ------
        InvalidParamError
            After ``close``.
        """
        with self._changed:
            if self._closed:
                raise InvalidParamError("this is closed", hint="Make a new one.")
            self._wanted, self._enough = True, enough
            if self._thread is not None:
                return
            self._set("running")
            # the thread knows the runner by a weak reference: one that is dropped ends it
            reference = weakref.ref(self)
            self._thread = start_thread(
                lambda: _loop(reference), name="atlas-live", stop=lambda: _halt(reference)
            )
        self._tell()

    def pause(self) -> None:
        """Stop after the step in progress; ``start`` goes on from there."""
        self._halt("paused")

    def stop(self) -> bool:
        """Stop after the step in progress; True if it ended within half a second, else it ends by itself."""
        self._halt("idle")
        return self.wait(STOP_SECONDS)

    def _halt(self, then: str) -> None:
        with self._changed:
            self._wanted, self._then = False, then
            if self._thread is not None or (then == "paused" and self.state != "running"):
                return
            self._set(then)
        self._tell()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False if it still does after ``timeout`` seconds."""
        if threading.current_thread() is self._thread:
            return False
        with self._changed:
            return self._changed.wait_for(lambda: self._thread is None, timeout)

    def run(self, enough: Callable[[], bool] | None = None) -> None:
        """Work, and return when it is done or paused; what the work raises is raised here, too."""
        self.start(enough)
        try:
            self.wait()
        except KeyboardInterrupt:
            self.pause()
            raise
        if self.failure is not None:
            raise self.failure

    def close(self) -> None:
        """End for good."""
        with self._changed:
            self._closed = True
        self.stop()

    # --- the thread ----------------------------------------------------------------------------------------

    def frame(self) -> None:
        """Show a frame if it is time for one."""
        now = time.monotonic()
        if self._on_frame is None or now < self._next_frame or not self._ready():
            return
        self._on_frame()
        took = time.monotonic() - now
        self._next_frame = now + max(FRAME_SECONDS, took / FRAME_SHARE)

    def _turn(self) -> bool:
        """Do a step; False ends the thread."""
        try:
            with self.lock.last():
                if not self._wanted:
                    return self._rest(self._then)
                more = self._work()
                if self._enough is not None and self._enough():
                    self._halt("paused")
            self.frame()
        except Exception as error:  # whatever it is, the kernel lives and the page says so
            return self._rest("failed", error)
        if not more:  # or it was stopped within the step, and what was left is gone
            return self._rest("done" if self._wanted or self._then != "idle" else "idle")
        return True

    def _rest(self, state: str, failure: Exception | None = None) -> bool:
        """End with a state; True if somebody has said ``start`` meanwhile."""
        with self._changed:
            self._wanted, self._enough = False, None
            self._set(state, failure)
        self._tell()
        with self._changed:
            again = self._wanted
            if again:
                self._set("running")
            else:
                self._thread = None
                self._changed.notify_all()
        if again:
            self._tell()
        return again

    def _set(self, state: str, failure: Exception | None = None) -> None:
        self.state, self.failure = state, failure
        self.error = "" if failure is None else sentence(failure)

    def _tell(self) -> None:
        if self._on_state is None:
            return
        try:
            self._on_state()
        except Exception as error:  # a page that cannot be told must not end the run
            self.error = self.error or sentence(error)


def _halt(reference: weakref.ref[Runner]) -> None:
    if (runner := reference()) is not None:
        runner._halt("idle")


def _loop(reference: weakref.ref[Runner]) -> None:
    while (runner := reference()) is not None and runner._turn():
        del runner


def sentence(error: BaseException) -> str:
    """Return what went wrong as a sentence for a status line."""
    text = str(error) or "no details are known"
    return text if isinstance(error, (AtlasError, OSError)) else f"{type(error).__name__}: {text}"
