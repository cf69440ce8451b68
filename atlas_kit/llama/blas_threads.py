"""One BLAS thread while a model is loaded, for the whole process, and what was there before once the last is closed.

BLAS threads wait for each other spinning and giving the processor away by turns. Beside llama.cpp's threads, or any
busy process, the one that is needed then waits for a turn: with two BLAS threads on two processors a session learnt at
0.4 to 0.8 of its speed with one (measured once, on two cores of an AMD EPYC). The number of threads belongs to the
process, so several models hold one limit together. A memory without a model keeps the threads that BLAS has: on a
quiet machine large products gain from them, and on a shared one ``OPENBLAS_NUM_THREADS=1`` is better. Knows nothing
about models.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
from collections.abc import Callable, Iterator

#: What NumPy's BLAS may be (OpenBLAS, or one on OpenMP), and reads when it is loaded.
VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS")
_begun_with_one = False


class SharedLimit:
    """A limit that lasts as long as anyone holds it.

    Parameters
    ----------
    impose
        Imposes the limit and returns what takes it back. Called when the first comes; what it returned is called when
        the last goes. Both happen under a lock, so that they never cross.
    """

    def __init__(self, impose: Callable[[], Callable[[], object]]) -> None:
        self._impose = impose
        self._take_back: Callable[[], object] | None = None
        self._holders = 0
        # reentrant: a collected engine lets go in whatever thread is running, this one too
        self._lock = threading.RLock()

    def hold(self) -> Callable[[], None]:
        """Hold the limit; return what lets it go (again and again does nothing more)."""
        with self._lock:
            if not self._holders:
                self._take_back = self._impose()
            self._holders += 1
        held = True

        def let_go() -> None:
            nonlocal held
            with self._lock:
                if not held:
                    return
                held = False
                self._holders -= 1
                if not self._holders and self._take_back is not None:
                    take_back, self._take_back = self._take_back, None
                    take_back()

        return let_go


@contextlib.contextmanager
def one_thread_from_the_start() -> Iterator[None]:
    """Import NumPy inside this block, and its BLAS makes no threads, which would spin while a process starts.

    For a process that has a model for as long as it runs. Two processors that load a model and import modules lose a
    tenth of a second to them. The user's own choice stays, and child processes inherit nothing.
    """
    global _begun_with_one
    if "numpy" in sys.modules or any(name in os.environ for name in VARIABLES):
        yield
        return
    os.environ[VARIABLES[0]] = "1"
    try:
        yield
    finally:
        os.environ.pop(VARIABLES[0], None)
        _begun_with_one = "numpy" in sys.modules and "OPENBLAS" in _blas_of_numpy()


def _blas_of_numpy() -> str:
    """Return the name of NumPy's BLAS in capitals; nothing where it does not tell."""
    try:
        from numpy.__config__ import CONFIG

        return str(CONFIG["Build Dependencies"]["blas"]["name"]).upper()
    except (ImportError, KeyError, TypeError):
        return ""


def _impose() -> Callable[[], object]:
    if _begun_with_one:  # there is nothing to limit, and looking for it takes some milliseconds
        return lambda: None
    try:
        from threadpoolctl import threadpool_limits
    except ImportError:  # part of the extra, and still nothing to fail for
        return lambda: None
    restore: Callable[[], object] = threadpool_limits(limits=1, user_api="blas").restore_original_limits
    return restore


_one_thread = SharedLimit(_impose)


def one_blas_thread() -> Callable[[], None]:
    """Give NumPy's products one thread until what this returns is called; holders are counted."""
    return _one_thread.hold()
