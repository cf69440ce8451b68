"""One thread owns an engine; everybody else sends it messages.

``submit``, ``cancel``, ``save``, ``restore`` and ``call`` may be used from any thread and never wait for a decode:
they put a message into a queue, and the thread reads its queue between two decodes. What comes back is a ``Job``
(batch.py), whose tokens can be iterated, waited for or listened to from any thread.

The thread decodes, then lets each session of the batch do its own work (read, sample, learn), which needs the
decode's outputs. While a scheduler is open, its sessions and its engine are used through it alone: what else is to
happen to a session is a ``call``, and one is opened with ``ask``. Files are written and read on a second thread,
beside decoding; of what is in them the module knows nothing.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from atlas_kit.background import start_thread
from atlas_kit.errors import BusyError, ClosedError
from atlas_kit.llama.arguments import count_of, sampling_of, stops_of
from atlas_kit.llama.batch import AnyWork, Batches, Job, between, require_work
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.llama.session import AtlasSession
from atlas_kit.persistence.session_file import about_session, read_session_state, write_session_state
from atlas_kit.persistence.session_state import SessionState


class Scheduler:
    """Carries out the work of many sessions, asked for by many threads, on one engine.

    Parameters
    ----------
    engine
        The model; it stays open when the scheduler is closed.
    max_jobs
        Work that may be under way at once; more is a ``BusyError``. None: any number.

    Examples
    --------
    >>> from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, Scheduler
    >>> engine = FakeEngine(n_sequences=2)
    >>> with AtlasSession(engine) as session, Scheduler(engine) as scheduler:
    ...     job = scheduler.generate(session, "abc" * 20, max_tokens=3, sampling=Sampling(temperature=0))
    ...     text = "".join(token.text for token in job)
    >>> text, job.finish_reason
    ('abc', 'length')
    """

    def __init__(self, engine: Engine, *, max_jobs: int | None = None) -> None:
        self.engine, self._max_jobs = engine, count_of("max_jobs", max_jobs)
        self._batches = Batches(engine, learns_beside=True)
        self._messages: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._lock = threading.Lock()  # of the three below; never held while anything else is waited for
        self._live: dict[int, Job] = {}
        self._generating: dict[AtlasSession, Job] = {}
        self._closed = False
        self._writer: ThreadPoolExecutor | None = None
        self._stepping = False
        self._after_step: list[Callable[[], None]] = []
        self._thread = start_thread(self._loop, name="atlas-engine", stop=self._end)

    def __len__(self) -> int:
        with self._lock:
            return len(self._live)

    # --- messages --------------------------------------------------------------------------------------------

    def generate(
        self,
        session: AtlasSession,
        prompt: str | Sequence[int] | None = None,
        *,
        sampling: Sampling | None = None,
        **options: Any,
    ) -> Job:
        """Let a session generate; options as of ``AtlasSession.generate``.

        A grammar is built here, in the caller's thread: it holds nobody up, and one that is wrong is no job.

        Raises
        ------
        BusyError, ClosedError, InvalidParamError
            The session has work already, or there is too much of it; the scheduler is closed; a setting is wrong.
        """
        self._require_open()
        count_of("max_tokens", options.get("max_tokens"))
        stops_of(options.get("stop", ()))
        sampler = self.engine.sampler(sampling_of(sampling))
        try:
            work = _closing(sampler, session.generating(prompt, sampler=sampler, **options))
            return self._submit(session, work, sampler=sampler)
        except BaseException:
            sampler.close()
            raise

    def feed(self, session: AtlasSession, text: str | Sequence[int], *, special: bool = False) -> Job:
        """Let a session read a text.

        Raises
        ------
        BusyError, ClosedError
            As of ``generate``.
        """

        def reading() -> AnyWork:
            yield from session.catching_up()
            yield from session.reading(session.tokens_of(text, special), score=False)

        return self._submit(session, reading())

    def submit(self, session: AtlasSession, work: AnyWork, *, learns_last: bool = True) -> Job:
        """Add work in steps, such as ``session.reading(...)``; ``learns_last`` is as of ``Job``.

        Raises
        ------
        BusyError, ClosedError, InvalidParamError
            As of ``generate``; or the session belongs to another engine.
        """
        return self._submit(session, work, learns_last=learns_last)

    def call(
        self,
        session: AtlasSession,
        function: Callable[[], Any],
        *,
        then: Callable[[Any], Any] | None = None,
    ) -> Job:
        """Call a function on the engine's thread as soon as the session has no other work.

        ``then`` is called with its value on another thread, beside decoding, and its own value is the job's: take
        something here, write it there.

        Raises
        ------
        BusyError, ClosedError, InvalidParamError
            There is too much work; the scheduler is closed; the session belongs to another engine.
        """

        def work() -> AnyWork:
            yield from session.catching_up()
            yield between()  # the function may decode
            return function()

        return self._submit(session, work(), alone=False, then=then)

    def ask(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function on the engine's thread between two decodes, such as one that opens a session.

        Raises
        ------
        ClosedError
            The scheduler is closed.
        """
        future: Future[Any] = Future()

        def answer() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                found = function()
            except BaseException as error:  # whoever asked is told, and this thread goes on
                future.set_exception(error)
            else:
                future.set_result(found)

        with self._lock:
            if self._closed:
                raise ClosedError("the scheduler is closed")
            self._messages.put(answer)
        return future

    def save(
        self, session: AtlasSession, path: str | os.PathLike[str], *, context: bool = True, **options: Any
    ) -> Job:
        """Save a session's memory, after the work that it has now; options as of ``AtlasSession.save``.

        Its state is taken on the engine's thread, in a moment, and written on another beside decoding.
        """

        def write(state: SessionState) -> Any:
            return write_session_state(path, state, **options)

        return self.call(session, lambda: session.state(context=context), then=write)

    def restore(self, session: AtlasSession, path: str | os.PathLike[str], **options: Any) -> Job:
        """Let a session go on with a saved memory, after the work that it has now; as ``AtlasSession.load``.

        The file is read beside decoding, behind what ``save`` has begun to write.
        """

        def read() -> SessionState:
            model = self.engine.info.identity
            return read_session_state(path, expect_model=model, backend=session.backend, **options)

        def work() -> AnyWork:
            state = yield self._beside(read)
            with about_session(os.fspath(path)):
                session.restore(state, force=True)  # as far as it is forced, it was above

        return self._submit(session, work(), alone=False)

    def cancel(self, job: Job) -> None:
        """End work between two steps; ``job.wait()`` waits until that has happened. Cancelling twice is fine."""
        self._messages.put(lambda: self._cancel(job))

    def end_jobs(self) -> None:
        """End all work there is now with a ``ClosedError``, and wait until it has ended; new work may follow."""
        jobs = self._alive()
        for job in jobs:
            self._messages.put(lambda job=job: self._batches.cancel(job, ClosedError("the work was ended")))  # type: ignore[misc]
        for job in jobs:
            job.wait()

    def _submit(
        self,
        session: AtlasSession,
        work: AnyWork,
        *,
        alone: bool = True,
        then: Callable[[Any], Any] | None = None,
        sampler: Sampler | None = None,
        learns_last: bool = True,
    ) -> Job:
        require_work(self.engine, session, work)

        def release() -> None:
            with self._lock:
                self._live.pop(id(job), None)
                if self._generating.get(session) is job:
                    del self._generating[session]
            if sampler is not None and not job.started:  # else the work closes it, on its own thread
                sampler.close()

        job = Job(session, work, release, learns_last=learns_last)
        if then is not None:
            job.afterwards = lambda job: self._write(job, then)
        with self._lock:
            if self._closed:
                raise ClosedError("the scheduler is closed")
            if alone and session in self._generating:
                raise BusyError("the session has work already", key="session", hint="Wait until it is done.")
            if self._max_jobs is not None and len(self._live) >= self._max_jobs:
                raise BusyError(_under_way(self._max_jobs), key="max_jobs")
            self._live[id(job)] = job
            if alone:
                self._generating[session] = job
            self._messages.put(lambda: self._add(job))
        return job

    def _require_open(self) -> None:
        with self._lock:
            if self._closed:
                raise ClosedError("the scheduler is closed")

    # --- the engine's thread ---------------------------------------------------------------------------------

    def _loop(self) -> None:
        try:
            self._work()
        finally:
            with self._lock:
                self._closed = True
            self._listen(wait=False)
            for job in list(self._batches.jobs):
                self._batches.cancel(job, ClosedError("the scheduler was closed"))
            self._batches.close()

    def _work(self) -> None:
        while not self._closed:
            self._listen(wait=not self._batches.ready)
            if self._closed:
                break
            self._stepping = True
            try:
                self._batches.step()
            except Exception as error:  # not a session's own
                self._batches.abandon(error)
            finally:
                self._stepping = False
            for tell in self._after_step:
                tell()

    def after_step(self, tell: Callable[[], None]) -> None:
        """Call a function on the engine's thread behind every step, where all sessions have had their turn."""
        self._after_step.append(tell)

    @property
    def in_step(self) -> bool:
        """Whether the thread that asks is the engine's, between whose sessions' turns it is."""
        return self._stepping and threading.current_thread() is self._thread

    def _listen(self, *, wait: bool) -> None:
        """Do what the messages say that have come; ``wait`` for one where there is none."""
        if not wait and self._messages.empty():  # as nearly always
            return
        try:
            message = self._messages.get(block=wait)
            self._batches.catch_up()  # it may look into a memory
            message()
            while True:
                self._messages.get_nowait()()
        except queue.Empty:
            return

    def _add(self, job: Job) -> None:
        if not job.done:
            self._batches.add(job)

    def _cancel(self, job: Job) -> None:
        self._batches.cancel(job)

    def _write(self, job: Job, then: Callable[[Any], Any]) -> None:
        """Go on with what a call gave on the writer's thread."""

        def write() -> None:
            try:
                value = then(job.value)
            except BaseException as error:  # else nobody would hear of it
                job.finish("error", None, error)
            else:
                job.finish("done", value)

        self._beside(write)

    def _beside(self, function: Callable[[], Any]) -> Future[Any]:
        """Call a function on the writer's thread, in turn, and look at its jobs when it is done."""
        if self._writer is None:
            self._writer = ThreadPoolExecutor(1, "atlas-writer")
        future = self._writer.submit(function)
        future.add_done_callback(lambda _: self._messages.put(lambda: None))
        return future

    # --- the end ---------------------------------------------------------------------------------------------

    def _end(self) -> None:
        with self._lock:
            self._closed = True
        self._messages.put(lambda: None)

    def _alive(self) -> list[Job]:
        with self._lock:
            return list(self._live.values())

    def close(self, timeout: float = 10.0) -> bool:
        """End all work with a ``ClosedError``, and the thread; closing twice is fine.

        Sessions are as after ``cancel``; what is being written is written to its end.

        Returns
        -------
        bool
            False where a decode, or what is being written, takes longer than ``timeout`` seconds: the thread ends when
            that is over, and nobody waits for its jobs any more.
        """
        self._end()
        if threading.current_thread() is self._thread:
            return False
        deadline = time.monotonic() + timeout
        self._thread.join(timeout)
        if ended := not self._thread.is_alive():
            for job in self._alive():  # all that is left is being written
                ended = job.wait(max(0.0, deadline - time.monotonic())) and ended
        for job in self._alive():
            job.finish("error", None, ClosedError("the scheduler was closed"))
        if self._writer is not None:
            self._writer.shutdown(wait=False)
        return ended

    def __enter__(self) -> Scheduler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _closing(sampler: Sampler, work: AnyWork) -> AnyWork:
    """Do some work and close its sampler, also where the work has not come as far as that by itself."""
    try:
        return (yield from work)
    finally:
        sampler.close()


def _under_way(count: int) -> str:
    return f"{count} {'job is' if count == 1 else 'jobs are'} under way, which is the limit"
