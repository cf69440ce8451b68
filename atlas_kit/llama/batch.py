"""Continuous batching: the work of several sessions on one engine, whose next steps are decoded together.

This is the core that a pool (pool.py, in the caller's thread) and a scheduler (scheduler.py, in a thread of its own)
drive. It belongs to one thread and knows no locks but the engine's. It has one thread of its own, for what goes on
beside: while a small model decodes, memories learn there. And where what memories take is worth it, that thread decodes
for one half of the sessions while the others go on here with copies of what they were given (``stage_times.py``). A
step ends when both are done.
"""

from __future__ import annotations

import contextlib
import operator
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, TypeVar

import numpy as np

from atlas_kit.errors import AtlasError, ClosedError, InvalidParamError
from atlas_kit.llama.arguments import tokens_of
from atlas_kit.llama.engine import Engine, Feed, Outputs
from atlas_kit.llama.helping_hand import HelpingHand
from atlas_kit.llama.interrupts import interrupts_put_off
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.stage_times import StageTimes
from atlas_kit.llama.steps import Finish, Step, Token

T = TypeVar("T")
#: A piece of work in steps, as ``AtlasSession.generating`` gives it. It may also yield a ``Future``: then it goes on
#: between two decodes as soon as that is done, with its result.
AnyWork = Generator[Any, Any, Any]
#: Memories that learn before one decode: so many, or where that is more, this part of all.
LEARN_AT_ONCE, SPREAD = 2, 8
#: The same of those that learn beside a decode. A step comes once in 16 tokens or so: were it more than that part of
#: all, one decode would wait for them and the next have none beside it.
BESIDE_AT_ONCE, BESIDE_SPREAD = 1, 16
#: Texts that are read for one session that generates, from which on as much of them is decoded at once as can be.
MOSTLY = 2
#: Sessions that have said something, from which on another thread learns it beside the decode: to wake that takes as
#: long as to learn for one of them.
WORTH_WAKING = 3
#: Bytes of outputs that are copied so that one half can go on beside the other's decode. Those of a long text beside a
#: large vocabulary are several hundred megabytes: they are used up where they are.
MOST_COPIED = 64 << 20


def between() -> Future[None]:
    """Return what work yields that is to go on when nobody's outputs wait to be read.

    Work that was just sent outputs is not alone with the engine: those of its neighbours are views that any decode
    overwrites.
    """
    now: Future[None] = Future()
    now.set_result(None)
    return now


def require_work(engine: Engine, session: Any, work: Any) -> None:
    """Refuse what is no work, or no session of this engine.

    Raises
    ------
    InvalidParamError
        It is something else.
    """
    if getattr(session, "engine", None) is not engine:
        raise InvalidParamError("the session belongs to another model", key="session")
    if not isinstance(work, Generator):
        raise InvalidParamError(
            f"work cannot be {work!r:.80}",
            key="work",
            hint="Give what session.reading(...) returns, or the like.",
        )


class Job:
    """Work of one session: the tokens so far, and whether it is done, or why it failed. Any thread may look at it.

    Attributes
    ----------
    tokens
        What was generated so far.
    done, error
        Whether it has ended, and what it failed with.
    finish_reason
        None while it goes on, then ``"stop"`` (the model ended its answer, or a stop string came), ``"length"``,
        ``"done"`` (what generates nothing), ``"cancelled"`` or ``"error"``.
    stop
        The stop string that ended it.
    value
        What the work returned.
    learns_last
        Whether a step of the memory that is due behind the work is taken before the job is done; else it waits for
        what comes next, which for a session that nobody goes on with is nothing.
    """

    def __init__(
        self,
        session: AtlasSession,
        work: AnyWork,
        release: Callable[[], None] | None = None,
        *,
        learns_last: bool = True,
    ) -> None:
        self.session, self.work, self.learns_last = session, work, learns_last
        self.tokens: list[Token] = []
        self.done = False
        self.error: BaseException | None = None
        self.finish_reason: str | None = None
        self.stop: str | None = None
        self.value: Any = None
        self.waiting: Step | None = None
        self.pause: Future[Any] | None = None
        self.started = False
        #: What the work returned, while a step of the memory is due that is to be taken before the job is done.
        self.ending: tuple[Any] | None = None
        self._told: Token | None = None  # before its own step, which yields it once more behind that
        #: Goes on with ``value`` elsewhere; the job is done when that is.
        self.afterwards: Callable[[Job], None] | None = None
        self._release = release
        self._changed = threading.Condition()
        self._listeners: list[Callable[[Job], None]] = []

    @property
    def text(self) -> str:
        """The generated text so far."""
        return "".join(token.text for token in list(self.tokens))

    def listen(self, listener: Callable[[Job], None]) -> None:
        """Call ``listener(job)`` when there are new tokens and when it is done, on the thread that does the work.

        Where it is done already, it is called now.
        """
        with self._changed:
            if not (done := self.done):  # else whoever ended it may yet go through the list
                self._listeners.append(listener)
        if done:
            listener(self)

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until the work has ended; False when that takes more than ``timeout`` seconds."""
        with self._changed:
            return self._changed.wait_for(lambda: self.done, timeout)

    def result(self, timeout: float | None = None) -> Any:
        """Wait for the end, and return what the work returned; for generating, that is its ``tokens``.

        Raises
        ------
        TimeoutError
            It takes longer than ``timeout`` seconds.
        AtlasError
            What the work failed with.
        """
        if not self.wait(timeout):
            raise TimeoutError(f"the work has not ended after {timeout:g} seconds")
        if self.error is not None:
            raise self.error
        return self.value

    def __iter__(self) -> Iterator[Token]:
        """Yield each token as it comes; raise what the work failed with."""
        at = 0
        while True:
            with self._changed:
                self._changed.wait_for(lambda at=at: self.done or len(self.tokens) > at)  # type: ignore[misc]
                fresh, done = self.tokens[at:], self.done
            yield from fresh
            at += len(fresh)
            if done and at == len(self.tokens):
                break
        if self.error is not None:
            raise self.error

    # --- what only the thread that does the work calls -------------------------------------------------------

    @property
    def over(self) -> bool:
        """Whether there is nothing left for it to do here."""
        if self.done or self.waiting is not None:
            return self.done
        return self.started and self.pause is None and self.ending is None

    def resume(self) -> list[Token]:
        """Begin, or go on after a pause that is over."""
        found = [] if self.started else self.advance(None)
        while self.pause is not None and self.pause.done():
            pause, self.pause = self.pause, None
            try:
                value = pause.result()
            except BaseException as error:  # the work's own to deal with
                value = error
            found += self.advance(value)
        return found

    def advance(self, outputs: Any) -> list[Token]:
        """Go on until the engine is needed again; return the tokens that came.

        ``outputs`` is what it waited for: ``Outputs``, the result of a pause, or an exception; None to begin.
        """
        found: list[Token] = []
        ended: tuple[str, Any, BaseException | None] | None = None
        if not self.started:
            with self._changed:
                if self.done:  # ended elsewhere, and what it would have used is released
                    return found
                self.started = True
        self.waiting = None
        try:
            failed = isinstance(outputs, BaseException)
            item = self.work.throw(outputs) if failed else self.work.send(outputs)
            while isinstance(item, Token):
                if item is not self._told:
                    found.append(item)
                item = next(self.work)
            if isinstance(item, Future):
                self.pause = item
            else:
                self._require_step(item)
                self.waiting = item
                if item.token is not None and item.token is not self._told:
                    self._told = item.token  # nobody need wait for the decode that only the next one needs
                    found.append(item.token)
        except StopIteration as stopped:
            if self.session.due and self.learns_last:  # in turn: whoever is done next has one, too
                self.ending = (stopped.value,)
            else:
                ended = ("done", stopped.value, None)
        except (Exception, SystemExit, GeneratorExit) as error:  # one session's failure is no other's
            ended = ("error", None, error)
        if found:
            self._add(found)
        if ended is not None:
            self._end(*ended)
        elif found:
            self._tell()
        return found

    def _require_step(self, item: Any) -> None:
        """Refuse what cannot be decoded beside others' steps, or would be decoded into another session's context."""
        engine, own = self.session.engine, isinstance(item, Step) and isinstance(item.feed, Feed)
        if own:
            feed = item.feed
            tokens: Any = feed.tokens
            numbers = (feed.position, feed.outputs, feed.sequence)
            if type(tokens) is list and len(tokens) == 1 and {int} == set(map(type, (*tokens, *numbers))):
                fits = (
                    0 <= tokens[0] < engine.info.n_vocab and 0 <= feed.outputs <= 1
                )  # one of many, each step
                if fits and feed.sequence == self.session.sequence and feed.position >= 0:
                    return
            try:
                tokens = tokens_of(feed.tokens, engine.info.n_vocab)
                fits = 0 < len(tokens) <= engine.n_batch and 0 <= feed.outputs <= len(tokens)
                if fits and feed.sequence == self.session.sequence and operator.index(feed.position) >= 0:
                    return
            except (TypeError, InvalidParamError):
                pass
        what = "a step that is not its session's own" if own else f"{item!r:.80}"
        self.work.close()
        raise InvalidParamError(
            f"the work asked for {what}",
            key="work",
            hint="It may yield its session's steps, tokens and futures.",
        )

    def _add(self, tokens: list[Token]) -> None:
        with self._changed:
            if not self.done:  # nobody waits for it any more
                self.tokens += tokens
                self._changed.notify_all()

    def _end(self, reason: str, value: Any, error: BaseException | None) -> None:
        if self.afterwards is not None and error is None and reason == "done":
            self.value, going, self.afterwards = value, self.afterwards, None
            going(self)
        else:
            self.finish(reason, value, error)

    def learned(self, error: Exception | None) -> None:
        """Be done, now that the step of the memory that was due has been taken, or has failed."""
        assert self.ending is not None
        (value,), self.ending = self.ending, None
        if error is None:
            self._end("done", value, None)
        else:
            self._end("error", None, error)

    def finish(self, reason: str, value: Any = None, error: BaseException | None = None) -> None:
        """Be done; the first call counts."""
        with self._changed:
            if self.done:
                return
            self.finish_reason, self.value, self.error = reason, value, error
            if isinstance(value, Finish):
                self.finish_reason, self.stop, self.value = value.reason, value.stop, self.tokens
            if self._release is not None:
                self._release()  # who sees that it is done may ask for more at once
            self.done = True
            self._changed.notify_all()
        self._tell()

    def _tell(self) -> None:
        for listener in list(self._listeners):
            try:
                listener(self)
            except (Exception, SystemExit):  # whoever listens must not end others' work
                with self._changed, contextlib.suppress(ValueError):  # another thread may tell, too
                    self._listeners.remove(listener)

    def cancel(self, error: BaseException | None = None) -> None:
        """End between two steps: what was generated is kept, a text that was not read to its end is forgotten."""
        step, self.waiting = self.waiting, None
        self.ending = None
        if self.pause is not None:
            self.pause.cancel()
            self.pause = None
        try:
            self.work.close()
            self.session.learn_due()
        except Exception as own:  # what it wanted to say at its end
            error = error or own
        # a token is learned, and the context is given it later; what was read on the side has gone back to what was
        if step is not None and step.token is None and self.session.position == step.feed.position:
            self.session.forget_context()
        self.finish("cancelled", self.tokens, error)


class Batches:
    """The sessions' work on one engine, and which of it is decoded next.

    ``learns_beside``: where there is room, tokens that were said are learned beside their decode, so that until then
    memories lack them: whoever looks into one from outside asks for ``catch_up`` first.
    """

    def __init__(self, engine: Any, *, learns_beside: bool = False) -> None:
        self.engine = engine
        self.jobs: list[Job] = []
        self._queues: dict[AtlasSession, deque[Job]] = {}
        self._other: ThreadPoolExecutor | None = None
        #: What was decoded in the first of two stages, as copies: the second is to come.
        self._fresh: dict[Job, Outputs] = {}
        self._times = StageTimes()
        # a small model leaves processors free while it decodes; threads of a large one would wait for each other
        self._processors = len(os.sched_getaffinity(0))
        self._room_beside = getattr(engine, "n_threads", 1) < self._processors
        self._hand = HelpingHand("atlas-hand") if learns_beside and self._room_beside else None
        self._limits: dict[AtlasSession, int] = {}  # the sessions' own, while they have work here

    def add(self, job: Job) -> None:
        """Add work; of one session, it is done in the order in which it was added."""
        require_work(self.engine, job.session, job.work)
        self._limits.setdefault(job.session, job.session.feed_limit)
        # half a batch each, so that somebody's long text does not keep others waiting for more than one decode
        job.session.feed_limit = max(1, self.engine.n_batch // 2)
        job.session.puts_off, job.session.learns_beside = True, self._hand is not None
        self._queues.setdefault(job.session, deque()).append(job)
        self.jobs.append(job)

    def cancel(self, job: Job, error: BaseException | None = None) -> None:
        """End work between two steps, with an error where there is one; the session may go on with something else."""
        if job in self.jobs:
            self._go_on([job])
            job.cancel(error)
            self._sweep()

    def step(self) -> list[tuple[Job, list[Token]]]:
        """Decode once for as many sessions as fit; return what each of them generated."""
        with interrupts_put_off():
            if len(self.jobs) == 1 and not self._fresh and _only_generates(job := self.jobs[0]):
                tokens = self._go_on_alone(job)
                if job.over:
                    self._sweep()
                return [(job, tokens)]
            begun = time.perf_counter()
            with self.engine.lock:
                events = [(job, job.resume()) for job in list(self.jobs) if self._may_go_on(job)]
                self._end_closed()
                if not (two_stages := self._gains()):
                    events += self._go_on(list(self._fresh))
                among = self._half() if two_stages else self.jobs
                due = self._to_learn(among)
                if not self._room_beside:
                    events += self._learned(due)
                    due = []
                batch = self._batch(due, among)
                ending = [job for job in due if job.ending is not None]
                generates = _size(batch) == len(batch)
                if not two_stages:
                    events += self._one_stage(batch, ending)
            if two_stages:
                events += self._two_stages(batch, ending)
            if generates:
                self._times.stepped(two_stages, len(batch), time.perf_counter() - begun)
            chosen = set(map(id, batch))
            self.jobs = [
                *(job for job in self.jobs if id(job) not in chosen),
                *batch,
            ]  # who waited comes first
            self._sweep()
        return events

    @property
    def ready(self) -> bool:
        """Whether a step has anything to do, now."""
        return any(
            job.waiting is not None or job.over or job.ending is not None or self._may_go_on(job)
            for job in self.jobs
        )

    def catch_up(self) -> None:
        """Let memories learn all that was said."""
        for job in self.jobs:
            if job.waiting is not None and job.waiting.later is not None:
                job.waiting.later.do()

    def abandon(self, error: Exception) -> None:
        """End all work with an error; as nothing of it may be half done, the sessions' contexts are forgotten."""
        for job in list(self.jobs):
            job.waiting = job.pause = job.ending = None
            for end in (job.session.forget_context, job.work.close):
                with contextlib.suppress(Exception):  # what is told is why it ended
                    end()
            job.finish("error", None, error)
        self._fresh.clear()
        self._sweep()

    def _may_go_on(self, job: Job) -> bool:
        """Tell whether a job goes on without the engine: it begins, or its pause is over."""
        if job.pause is not None:
            return job.pause.done()
        return not job.started and self._queues[job.session][0] is job

    def _end_closed(self) -> None:
        """End what waits for sessions that were closed: their sequences may be others' by now."""
        for job in list(self.jobs):
            if job.waiting is not None and job.session.closed:
                self._fresh.pop(job, None)
                job.cancel(ClosedError("the session is closed", path=self.engine.info.path))

    def _to_learn(self, among: list[Job]) -> list[Job]:
        """Choose some of those whose memory's step is due, of whom may be decoded for next.

        Sessions that began together fill their steps together, and all of them at once would keep everybody waiting.
        Those whose turn comes later sit out a decode, and from then on their steps fill at different times. Those that
        have said their last token come last.
        """
        due = [job for job in among if job.waiting is not None and job.session.due]
        due += [job for job in self.jobs if job.ending is not None]
        least, spread = (BESIDE_AT_ONCE, BESIDE_SPREAD) if self._room_beside else (LEARN_AT_ONCE, SPREAD)
        return due[: max(least, -(-len(self.jobs) // spread))]

    def _learned(self, due: list[Job]) -> list[tuple[Job, list[Token]]]:
        """Take memories' steps, on two threads where the processor has them; return what came of those that failed."""
        if len(due) > 1 and self._processors > 1:
            queue = deque(due)
            others = self._beside(_failures, queue)
            failed = [*_failures(queue), *others.result()]
        else:
            failed = _failures(due)
        _end([job for job in due if job.ending is not None], {id(job): error for job, error in failed})
        return [(job, job.advance(error)) for job, error in failed if job.waiting is not None]

    def _learning(self, due: list[Job]) -> Callable[[], dict[int, Exception]]:
        """Take memories' steps on another thread beside a decode, and return what waits for their errors, by job's id.

        The decode does not need them: what it gives is read behind them.
        """
        if not due:
            return dict
        future = self._beside(_failures, due)
        return lambda: {id(job): error for job, error in future.result()}

    def _beside(self, function: Callable[..., T], *args: Any) -> Future[T]:
        """Call a function on the other thread."""
        if self._other is None:
            self._other = ThreadPoolExecutor(1, "atlas-learner")
        return self._other.submit(function, *args)

    def close(self) -> None:
        """End the other threads, if there are any."""
        if self._hand is not None:
            self._hand.close()
        if self._other is not None:
            self._other.shutdown()
            self._other = None

    def _batch(self, learning: list[Job], among: list[Job]) -> list[Job]:
        """Choose whose steps are decoded next: in turn, as long as they fit.

        Who has learning due waits for it.

        Hidden states make every token of a batch an output, so what needs none and is not all outputs already waits
        for a batch of its own.
        """
        chosen: list[Job] = []
        total, wanted, kinds = 0, 0, set[bool]()
        free = set(map(id, learning))
        most, outputs = self._limits_of(among)
        for job in among:
            if (step := job.waiting) is None or (job.session.due and id(job) not in free):
                continue
            size = len(step.feed.tokens)
            kind = None if not step.hidden and step.feed.outputs == size else step.hidden  # None: with either
            if kind is not None and kinds - {kind}:
                continue
            gives = total + size if kind or True in kinds else wanted + step.feed.outputs
            if total + size > most or gives > outputs:
                continue
            if kind is not None:
                kinds.add(kind)
            chosen.append(job)
            total, wanted = total + size, wanted + step.feed.outputs
        return chosen

    def _limits_of(self, among: list[Job]) -> tuple[int, int]:
        """Return how many tokens may be decoded next, and how many outputs they may have.

        As much as the engine takes where nobody generates, or few do beside many whose short text is read at once.
        Else so little that those who generate do not wait long.
        """
        engine, reads, generate = self.engine, 0, 0
        for job in among:
            if (step := job.waiting) is None:
                continue
            if step.token is not None:
                generate += 1
            elif len(step.feed.tokens) < job.session.feed_limit:
                reads += 1
            else:  # a long text has more to come
                reads -= len(among)
        if not generate or reads > MOSTLY * generate:
            return engine.n_together, engine.n_outputs
        return engine.n_batch, engine.n_batch

    def _go_on_alone(self, job: Job) -> list[Token]:
        """Do ``_one_stage`` for the only session there is: few steps, as each is a good part of a small model's."""
        step = job.waiting
        assert step is not None
        with self.engine.lock:
            if step.later is not None:
                step.later.do()
            try:
                outputs: Outputs | AtlasError = self._decode([step])[0]
            except AtlasError as error:
                outputs = error
            begun = time.perf_counter()
            tokens = job.advance(outputs)
            if isinstance(outputs, AtlasError):
                job.session.forget_context()
            elif job.session.memory is not None:
                self._times.went_on(1, time.perf_counter() - begun)
        return tokens

    def _one_stage(self, batch: list[Job], ending: Sequence[Job] = ()) -> list[tuple[Job, list[Token]]]:
        """Decode, and go on with what came; ``ending``: whose memories learn beside that, and who are done then."""
        events, begun, before = [], time.perf_counter(), self._times.decoding
        size = _size(batch)
        for job, outputs in self._decoded(batch, ending):
            events.append((job, job.advance(outputs)))
            if isinstance(outputs, Exception):
                job.session.forget_context()
        if size == len(batch) and any(job.session.memory is not None for job in batch):
            seconds = time.perf_counter() - begun - (self._times.decoding - before)
            self._times.went_on(size, seconds)
        return events

    def _decoded(self, batch: list[Job], ending: Sequence[Job]) -> Iterator[tuple[Job, Outputs | Exception]]:
        """Yield what each step gave, to be used up before the next; where a decode fails, each is tried alone.

        Meanwhile their memories learn what is due; who fails in that gets the error instead.
        """
        if not batch:
            _end(ending, {id(job): error for job, error in _failures(ending)})
            return
        failed: dict[int, Exception] = {}
        pairs = [(job, job.waiting) for job in batch if job.waiting is not None]
        steps = [step for _, step in pairs]
        if (hand := self._hand) is not None:
            later = [step.later for step in steps if step.later is not None]
            if len(later) >= WORTH_WAKING:
                hand.give(later)
            else:
                for one in later:
                    one.do()
        learned = self._learning([*(job for job in batch if job.session.due), *ending])
        try:
            try:
                found = self._decode(steps)
            finally:
                if hand is not None:
                    hand.take_back()
                failed = learned()
                _end(ending, failed)
        except AtlasError as error:
            yield from self._each_alone(pairs, error, failed)
            return
        if len(batch) > 1 and not any(id(job) in failed for job in batch):
            self._read_ahead(steps, batch, found)
        for job, outputs in zip(batch, found, strict=True):
            yield job, failed.get(id(job), outputs)

    def _each_alone(
        self, pairs: Sequence[tuple[Job, Step]], error: AtlasError, failed: dict[int, Exception]
    ) -> Iterator[tuple[Job, Outputs | Exception]]:
        """Yield what each step gives alone where decoding them together failed, to be used up before the next."""
        if len(pairs) == 1:
            job = pairs[0][0]
            yield job, failed.get(id(job), error)
            return
        lost = getattr(error, "emptied", ())
        for job, step in pairs:
            if id(job) in failed or step.feed.sequence in lost:
                yield job, failed.get(id(job), error)
                continue
            try:
                one: Outputs | Exception = self._decode([step])[0]
            except AtlasError as own:
                one = own
            yield job, one

    # --- two stages ------------------------------------------------------------------------------------------

    def _gains(self) -> bool:
        """Whether one half is decoded while the other goes on."""
        if not self._room_beside:
            return False
        return self._times.gains(
            sum(job.waiting is not None and job.session.memory is not None for job in self.jobs)
        )

    def _half(self) -> list[Job]:
        """Return those of one half who wait to be decoded for.

        A half are sequences in a row: llama.cpp decodes those in one go, and others one by one.
        """
        waiting = sorted(
            (job for job in self.jobs if job.waiting is not None), key=lambda job: job.session.sequence
        )
        middle = -(-len(waiting) // 2)
        low, high = (
            [job for job in half if job not in self._fresh] for half in (waiting[:middle], waiting[middle:])
        )
        half = set(low if len(low) >= len(high) else high)
        return [job for job in self.jobs if job in half]  # whoever waited longest comes first

    def _two_stages(self, batch: list[Job], ending: Sequence[Job]) -> list[tuple[Job, list[Token]]]:
        """Decode on the other thread; meanwhile go on with those for whom it was done the last time.

        Memories' steps are taken by whichever thread is done with its own.
        """
        pairs = [(job, job.waiting) for job in batch if job.waiting is not None]
        if self._outputs_of([step for _, step in pairs]) > MOST_COPIED:
            with self.engine.lock:
                return [*self._go_on(list(self._fresh)), *self._one_stage(batch, ending)]
        due = deque([*(job for job in batch if job.session.due), *ending])
        failed: dict[int, Exception] = {}
        decoding = self._beside(self._decode_apart, [step for _, step in pairs], due) if pairs else None
        try:
            for _, step in pairs:
                if step.later is not None:
                    step.later.do()
            events = self._go_on(list(self._fresh))
            failed.update((id(job), error) for job, error in _failures(due))
        finally:
            found, others = decoding.result() if decoding is not None else ([], [])
        failed.update((id(job), error) for job, error in others)
        _end(ending, failed)
        if found is None:  # somebody else uses the engine
            with self.engine.lock:
                found = self._copies([step for _, step in pairs])
        if isinstance(found, AtlasError):
            with self.engine.lock:
                for job, outputs in self._each_alone(pairs, found, failed):
                    events.append((job, job.advance(outputs)))
                    if isinstance(outputs, Exception):
                        job.session.forget_context()
            return events
        for (job, _), outputs in zip(pairs, found, strict=True):
            if (error := failed.get(id(job))) is None:
                self._fresh[job] = outputs
            else:
                events.append((job, job.advance(error)))
                job.session.forget_context()
        return events

    def _outputs_of(self, steps: Sequence[Step]) -> int:
        """Return how many bytes steps give."""
        info = self.engine.info
        rows = sum(len(step.feed.tokens) if step.hidden else step.feed.outputs for step in steps)
        return int(4 * rows * (info.n_vocab + (info.n_embd if any(step.hidden for step in steps) else 0)))

    def _decode_apart(
        self, steps: list[Step], due: deque[Job]
    ) -> tuple[list[Outputs] | AtlasError | None, list[tuple[Job, Exception]]]:
        """Be the other thread: decode, unless the engine is not free, then let memories learn.

        Returns copies of what the steps gave, or why they did not, and whose memory failed.
        """
        found = None
        if self.engine.lock.acquire(blocking=False):
            try:
                found = self._copies(steps)
            finally:
                self.engine.lock.release()
        return found, _failures(due)

    def _copies(self, steps: list[Step]) -> list[Outputs] | AtlasError:
        try:
            return [one.copied() for one in self._decode(steps)]
        except AtlasError as error:
            return error

    def _go_on(self, jobs: list[Job]) -> list[tuple[Job, list[Token]]]:
        """Take the second stage of those that have been through the first one; return what came."""
        begun = time.perf_counter()
        jobs = [job for job in jobs if job in self._fresh]
        if not jobs:
            return []
        found, size = [self._fresh.pop(job) for job in jobs], _size(jobs)
        steps = [job.waiting for job in jobs if job.waiting is not None]
        self._read_ahead(steps, jobs, found)
        events = [(job, job.advance(outputs)) for job, outputs in zip(jobs, found, strict=True)]
        if size == len(jobs):
            self._times.went_on(size, time.perf_counter() - begun)
        return events

    def _read_ahead(self, steps: Sequence[Step], batch: Sequence[Job], found: Sequence[Outputs]) -> None:
        """Let the memories of those that generate read what came, all at once, before each goes on by itself."""
        memories, hidden, logits, tokens = [], [], [], []
        for step, job, outputs in zip(steps, batch, found, strict=True):
            memory = job.session.memory
            if step.token is not None and memory is not None and outputs.hidden is not None:
                memories.append(memory)
                hidden.append(outputs.hidden[-1:])
                logits.append(outputs.logits[-1])
                tokens.append(step.feed.tokens[-1])
        if len(memories) > 1:
            from atlas_kit.llama.reading_ahead import read_ahead

            read_ahead(memories, np.concatenate(hidden), logits, tokens)

    def _decode(self, steps: Sequence[Step]) -> list[Outputs]:
        begun = time.perf_counter()
        found: list[Outputs] = self.engine.decode(
            [step.feed for step in steps], hidden=any(step.hidden for step in steps)
        )
        seconds = time.perf_counter() - begun
        if all(len(step.feed.tokens) == 1 for step in steps):
            self._times.decoded(len(steps), seconds)
        else:  # a text's tokens take less time each
            self._times.decoding += seconds
        return found

    def _sweep(self) -> None:
        """Let go of what has ended."""
        over = [job for job in self.jobs if job.over]
        if not over:
            return
        self._go_on(over)
        for job in over:
            if (
                job.waiting is not None or job.pause is not None or job.ending is not None
            ):  # ended by another thread, which closes no work
                job.cancel()
        gone = set(map(id, over))
        self.jobs = [job for job in self.jobs if id(job) not in gone]
        for job in over:
            queue = self._queues[job.session]
            queue.remove(job)
            if not queue:
                del self._queues[job.session]
                job.session.feed_limit = self._limits.pop(job.session)
                job.session.puts_off = job.session.learns_beside = False


def _only_generates(job: Job) -> bool:
    """Tell whether a token of a job waits to be decoded, and nothing else is to be done for it."""
    step = job.waiting
    return step is not None and step.token is not None and not (job.session.due or job.session.closed)


def _size(jobs: Sequence[Job]) -> int:
    """Return how many tokens wait to be decoded."""
    return sum(len(job.waiting.feed.tokens) for job in jobs if job.waiting is not None)


def _failures(due: Iterable[Job]) -> list[tuple[Job, Exception]]:
    """Take the steps of some memories; return those that failed, each for itself.

    A queue is emptied, also by several threads at once.
    """
    found = []
    for job in _popped(due) if isinstance(due, deque) else due:
        try:
            job.session.learn_due()
        except Exception as error:  # this session's alone
            found.append((job, error))
    return found


def _end(ending: Iterable[Job], failed: dict[int, Exception]) -> None:
    """Let those be done whose memories have taken their last step; ``failed``: why some have not, by job's id."""
    for job in ending:
        if job.ending is not None:
            job.learned(failed.get(id(job)))


def _popped(queue: deque[Job]) -> Iterator[Job]:
    with contextlib.suppress(IndexError):
        while True:
            yield queue.popleft()
