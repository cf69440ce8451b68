"""Who does the work: this process, processes of this machine, or a Dask cluster; all are given batches in one way.

A worker that dies takes no work with it: what it had is given out again, and a file that kills whoever touches it is
found by being tried alone. Knows no operation and no table.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import os
import queue
import signal
import time
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, CancelledError, Future, wait
from typing import Any, Generic, TypeVar

from atlas_kit.errors import FileAccessError, MissingExtraError
from atlas_kit.storage.urls import shown

_T = TypeVar("_T")
_R = TypeVar("_R")
Work = Callable[[Sequence[_T]], list[_R]]

#: Files given to a worker at once: many where there are many, few near the end, where one batch would be waited for.
LARGEST_BATCH = 64
_BATCHES_AHEAD = 2
#: How often work is given out again after its worker died, before it is tried alone.
TRIES = 3
#: How long a scheduler may take to answer, and how long it may be without any worker, in seconds.
CONNECT_SECONDS, WITHOUT_WORKERS = 10, 120
#: Work that takes so many times what others took, and so many seconds, is given to somebody idle as well.
_SLOW, _SLOW_SECONDS = 4.0, 10.0


class WorkerDiedError(Exception):
    """A worker ended in the middle of its work."""


class Pool(ABC):
    """Somebody who takes calls and gives futures."""

    workers: int

    @abstractmethod
    def submit(self, call: Callable[[Any], Any], batch: Any) -> Any:
        """Give out a batch; the future's ``result`` raises ``WorkerDiedError`` if nobody finished it."""

    @abstractmethod
    def wait(self, futures: set[Any], seconds: float) -> set[Any]:
        """Return those of ``futures`` that are done, after some are or the time has passed."""

    @abstractmethod
    def result(self, future: Any) -> Any:
        """Return what a call gave."""

    def renew(self) -> None:  # noqa: B027 (most need nothing)
        """Be ready again after a worker died."""

    @abstractmethod
    def close(self) -> None:
        """End the workers, whatever they are at."""


class OwnProcess(Pool):
    """No other process: a call is made at once, for ``batch`` items."""

    workers = 1

    def __init__(self, batch: int = 1) -> None:
        self.batch = batch

    def submit(self, call: Callable[[Any], Any], batch: Any) -> Any:
        """Make the call at once."""
        future: Future[Any] = Future()
        future.set_result(call(batch))
        return future

    def wait(self, futures: set[Any], seconds: float) -> set[Any]:
        """Return all: they are done."""
        return set(futures)

    def result(self, future: Any) -> Any:
        """Return what the call gave."""
        return future.result()

    def close(self) -> None:
        """Do nothing."""


class Processes(Pool):
    """Processes of this machine."""

    def __init__(self, workers: int) -> None:
        self.workers = workers
        self._pool: Any = None
        self.renew()

    def renew(self) -> None:
        """Start anew: a pool that has lost a process takes no more work."""
        import multiprocessing
        from concurrent.futures import ProcessPoolExecutor

        self.close()
        context = multiprocessing.get_context(
            "spawn"
        )  # threads of fsspec and NumPy do not live through a fork
        self._pool = ProcessPoolExecutor(self.workers, mp_context=context, initializer=_live_as_its_owner)

    def submit(self, call: Callable[[Any], Any], batch: Any) -> Any:
        """Send a batch to one of them."""
        from concurrent.futures.process import BrokenProcessPool

        try:
            return self._pool.submit(call, batch)
        except BrokenProcessPool:
            future: Future[Any] = Future()
            future.set_exception(WorkerDiedError())
            return future

    def wait(self, futures: set[Any], seconds: float) -> set[Any]:
        """Wait for the first."""
        return wait(futures, timeout=seconds, return_when=FIRST_COMPLETED).done

    def result(self, future: Any) -> Any:
        """Return what came back."""
        from concurrent.futures.process import BrokenProcessPool

        try:
            return future.result()
        except (BrokenProcessPool, CancelledError):
            raise WorkerDiedError from None

    def close(self) -> None:
        """End them, at once."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        processes = list((pool._processes or {}).values())  # a stopped one would never end by itself
        for process in processes:
            with contextlib.suppress(Exception):
                process.kill()
        pool.shutdown(wait=True, cancel_futures=True)
        del pool, processes
        gc.collect()  # which gives back its semaphores, also where the interpreter is not taken apart


def _live_as_its_owner() -> None:
    """Let Ctrl-C be the business of who started the workers, and end when that process does, however it ends."""
    import multiprocessing
    from multiprocessing import connection

    from atlas_kit.background import start_thread

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    owner = multiprocessing.parent_process()
    if owner is None:
        return
    sentinel = owner.sentinel
    told, tell = os.pipe()

    def watch() -> None:  # who waits for work has both ends of its pipe, and never sees that nobody is there
        if sentinel in connection.wait([sentinel, told]):
            os._exit(1)

    start_thread(watch, name="atlas-kit owner", stop=lambda: os.write(tell, b"."))


class DaskCluster(Pool):
    """The workers of a Dask scheduler, wherever they are; Dask itself gives lost work to others."""

    def __init__(self, address: str) -> None:
        try:
            distributed: Any = importlib.import_module("distributed")
        except ImportError:
            raise MissingExtraError("a Dask cluster", "cloud") from None
        self.address = shown(address)
        _require_scheduler(address, self.address)
        self._ready: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._client: Any = distributed.Client(address, timeout=CONNECT_SECONDS, set_as_default=False)
        try:
            self._client.wait_for_workers(1, timeout=WITHOUT_WORKERS)
        except (OSError, TimeoutError):
            self.close()
            raise self._deserted() from None
        self.workers = self._count() or 1
        self._last_seen = time.monotonic()

    def _count(self) -> int:
        with contextlib.suppress(Exception):  # a scheduler that is gone is noticed by its status
            return sum(self._client.nthreads().values())
        return 0

    def _deserted(self) -> FileAccessError:
        return FileAccessError(
            f"the scheduler has had no workers for {WITHOUT_WORKERS} seconds", path=self.address
        )

    def submit(self, call: Callable[[Any], Any], batch: Any) -> Any:
        """Send a batch to the scheduler."""
        future = self._client.submit(call, batch, pure=False, retries=0)
        future.add_done_callback(self._ready.put)
        return future

    def wait(self, futures: set[Any], seconds: float) -> set[Any]:
        """Wait for the first, and notice a scheduler that is gone."""
        ready = set()
        with contextlib.suppress(queue.Empty):
            ready.add(self._ready.get(timeout=seconds))
            while True:
                ready.add(self._ready.get_nowait())
        if not ready and self._client.status not in ("running", "connecting"):
            raise FileAccessError("the scheduler is not there any more", path=self.address)
        if not ready:
            present = self._count()
            if present:
                self._last_seen, self.workers = time.monotonic(), present
            elif time.monotonic() - self._last_seen > WITHOUT_WORKERS:
                raise self._deserted()
        return ready & futures

    def result(self, future: Any) -> Any:
        """Return what came back."""
        from distributed import KilledWorker
        from distributed.client import FutureCancelledError

        try:
            return future.result()
        except (KilledWorker, FutureCancelledError):
            raise WorkerDiedError from None

    def close(self) -> None:
        """Leave the cluster as it was."""
        with contextlib.suppress(Exception):
            self._client.close(timeout=5)


def _require_scheduler(address: str, shown_as: str) -> None:
    """Ask who is at an address: Dask's own client would wait for ever for somebody who is no scheduler.

    Raises
    ------
    FileAccessError
        It is not a valid address, nobody is there, or somebody else.
    """
    import asyncio
    from concurrent.futures import ThreadPoolExecutor

    try:
        with ThreadPoolExecutor(1) as apart:  # a notebook has a loop of its own in this thread
            found = apart.submit(
                lambda: asyncio.run(asyncio.wait_for(_identity(address), CONNECT_SECONDS))
            ).result()
        kind = found.get("type")
    except ValueError:
        raise FileAccessError("the scheduler is not an address", path=shown_as) from None
    except (OSError, TimeoutError, asyncio.TimeoutError):
        raise FileAccessError("the scheduler does not answer", path=shown_as) from None
    except Exception:
        kind = None
    if kind != "Scheduler":
        raise FileAccessError("what answers there is not a Dask scheduler", path=shown_as)


async def _identity(address: str) -> Any:
    distributed: Any = importlib.import_module("distributed")
    with_keys = distributed.Security().get_connection_args("client")
    stream = await distributed.core.connect(address, timeout=CONNECT_SECONDS, **with_keys)
    try:
        await stream.write({"op": "identity", "reply": True})
        return await stream.read()
    finally:
        stream.abort()


def spread(
    pool: Pool, work: Work[_T, _R], items: Sequence[_T], died: Callable[[_T], _R], failed: Callable[[_T, str], _R],
) -> Iterator[_R]:  # fmt: skip
    """Yield what ``work`` makes of each item, in the order in which it comes; ``died`` is for who kills its worker.

    Each item is yielded once, also where slow work was given out twice.
    """
    if isinstance(pool, OwnProcess):
        for start in range(0, len(items), pool.batch):
            yield from work(items[start : start + pool.batch])
        return
    again: deque[tuple[list[_T], int]] = deque()
    rest: deque[_T] = deque(items)
    running: dict[Any, _Batch[_T]] = {}
    open_batches: set[int] = set()
    times: deque[float] = deque(maxlen=99)
    number = 0

    def give(batch: list[_T], tries: int, name: int) -> None:
        running[pool.submit(work, batch)] = _Batch(batch, tries, name, time.monotonic())
        open_batches.add(name)

    while rest or again or open_batches:
        alone = bool(again) and again[0][1] >= TRIES
        while (again or rest) and len(running) < (1 if alone else pool.workers * _BATCHES_AHEAD):
            if alone and running:
                break
            number += 1
            if again:
                batch, tries = again.popleft()
            else:
                size = max(1, min(LARGEST_BATCH, len(rest) // (pool.workers * 8)))
                batch, tries = [rest.popleft() for _ in range(min(size, len(rest)))], 0
            give(batch, tries, number)
            alone = bool(again) and again[0][1] >= TRIES
            if tries >= TRIES:
                break
        broken = False
        for future in pool.wait(set(running), 1.0):
            one = running.pop(future)
            try:
                found = pool.result(future)
            except WorkerDiedError:
                broken = True
                if one.name in open_batches and not any(other.name == one.name for other in running.values()):
                    open_batches.discard(one.name)
                    if one.tries >= TRIES:
                        yield died(one.batch[0])
                    else:
                        again.extend(([item], one.tries + 1) for item in one.batch)
                continue
            except Exception as error:  # it could not be sent, or what came could not be read
                if one.name in open_batches:
                    open_batches.discard(one.name)
                    yield from (
                        failed(item, f"the worker failed: {type(error).__name__}") for item in one.batch
                    )
                continue
            if one.name in open_batches:  # and not done already by somebody faster
                open_batches.discard(one.name)
                times.append((time.monotonic() - one.since) / len(one.batch))
                yield from found
        if broken:
            pool.renew()
        if not rest and not again and times:
            _help(pool, running, open_batches, sorted(times)[len(times) // 2], give)


def _help(
    pool: Pool, running: dict[Any, Any], unfinished: set[int], usual: float, give: Callable[..., None]
) -> None:
    """Give the slowest work to somebody idle as well: its worker may be a machine that hangs."""
    names = [one.name for one in running.values()]
    if len(running) >= pool.workers:
        hanging = [one for one in running.values() if _is_slow(one, usual)]
        if len(hanging) < len(running):
            return
    for one in list(running.values()):
        if one.name in unfinished and names.count(one.name) == 1 and _is_slow(one, usual):
            give(one.batch, one.tries, one.name)
            return


def _is_slow(one: Any, usual: float) -> bool:
    taken = time.monotonic() - one.since
    return bool(taken > max(_SLOW_SECONDS, _SLOW * usual * len(one.batch)))


class _Batch(Generic[_T]):
    """Work that somebody has: its items, how often it was lost, its number, and since when."""

    def __init__(self, batch: list[_T], tries: int, name: int, since: float) -> None:
        self.batch = batch
        self.tries = tries
        self.name = name
        self.since = since
