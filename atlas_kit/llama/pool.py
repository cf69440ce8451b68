"""Several sessions on one model: their next steps are decoded together (continuous batching).

Work may join and end at any time. Each session has a sequence, a context and a memory of its own; what they share is
the model and the time that one decode takes. A pool belongs to one thread.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.llama.engine import Engine, Outputs
from atlas_kit.llama.session import AtlasSession, Step, Token, interrupts_put_off


@dataclass(eq=False)
class Job:
    """Work of one session in a pool: the tokens so far, and whether it is done, or why it failed."""

    session: AtlasSession
    work: Generator[Any, Any, Any] = field(repr=False)
    tokens: list[Token] = field(default_factory=list)
    done: bool = False
    error: Exception | None = None
    waiting: Step | None = field(default=None, repr=False)

    @property
    def text(self) -> str:
        """The generated text so far."""
        return "".join(token.text for token in self.tokens)

    def advance(self, outputs: Outputs | Exception | None) -> list[Token]:
        """Go on until the engine is needed again; return the tokens that came."""
        found: list[Token] = []
        try:
            failed = isinstance(outputs, Exception)
            item = self.work.throw(outputs) if failed else self.work.send(outputs)  # type: ignore[arg-type]
            while isinstance(item, Token):
                found.append(item)
                item = next(self.work)
            self.waiting = item
        except StopIteration:
            self.done, self.waiting = True, None
        except Exception as error:  # one session's failure is no other's
            self.done, self.waiting, self.error = True, None, error
        self.tokens += found
        return found


class SessionPool:
    """Carries out the work of several sessions that share an engine.

    Examples
    --------
    >>> from atlas_kit.llama import FakeEngine, Sampling
    >>> engine = FakeEngine(n_sequences=2)
    >>> with AtlasSession(engine) as a, AtlasSession(engine) as b:
    ...     pool = SessionPool(engine)
    ...     jobs = [pool.generate(s, "abc" * 20, max_tokens=3, sampling=Sampling(temperature=0)) for s in (a, b)]
    ...     pool.run()
    >>> [job.text for job in jobs]
    ['abc', 'abc']
    """

    def __init__(self, engine: Engine) -> None:
        self.engine = engine
        self._jobs: list[Job] = []

    def __len__(self) -> int:
        return len(self._jobs)

    def generate(
        self, session: AtlasSession, prompt: str | Sequence[int] | None = None, **options: Any
    ) -> Job:
        """Let a session generate; options as of ``AtlasSession.generate``."""
        return self.submit(session, session.generating(prompt, **options))

    def feed(self, session: AtlasSession, text: str | Sequence[int], *, special: bool = False) -> Job:
        """Let a session read a text."""
        return self.submit(session, session.reading(session.tokens_of(text, special), score=False))

    def submit(self, session: AtlasSession, work: Generator[Any, Any, Any]) -> Job:
        """Add work in steps.

        Raises
        ------
        InvalidParamError
            When the session belongs to another engine, or has work already.
        """
        if session.engine is not self.engine:
            raise InvalidParamError("the session belongs to another model", key="session")
        if any(job.session is session for job in self._jobs):
            raise InvalidParamError(
                "the session has work already", key="session", hint="Wait until it is done."
            )
        # half a batch each, so that somebody's long text does not keep others waiting for more than one decode
        session.feed_limit = max(1, self.engine.n_batch // 2)
        job = Job(session, work)
        self._jobs.append(job)
        return job

    def cancel(self, job: Job) -> None:
        """Stop work between two steps; the session may go on with something else."""
        if job in self._jobs:
            if job.tokens and job.waiting is not None:
                self._finish(job, job.waiting)
            job.work.close()
            job.done, job.waiting = True, None
            if not job.tokens:  # a text that was not read to its end
                job.session.forget_context()
            self._jobs.remove(job)

    def _finish(self, job: Job, step: Step) -> None:
        """Decode the token that the memory has learned already, up to where it is yielded."""
        item: Any = step
        try:
            with self.engine.lock:
                while isinstance(item, Step):
                    item = job.work.send(self.engine.decode([item.feed], hidden=item.hidden)[0])
            job.tokens.append(item)
        except StopIteration:
            return
        except AtlasError:
            job.session.forget_context()

    def step(self) -> list[tuple[Job, list[Token]]]:
        """Decode once for as many sessions as fit; return what each of them generated."""
        with self.engine.lock, interrupts_put_off():
            return self._step()

    def _step(self) -> list[tuple[Job, list[Token]]]:
        events = [(job, job.advance(None)) for job in self._jobs if job.waiting is None and not job.done]
        batch = self._batch()
        if batch:
            steps = [job.waiting for job in batch if job.waiting is not None]
            outputs: Sequence[Outputs | Exception]
            try:
                outputs = self.engine.decode([s.feed for s in steps], hidden=any(s.hidden for s in steps))
            except AtlasError as error:
                outputs = [error] * len(batch)
            for job, output in zip(batch, outputs, strict=True):
                events.append((job, job.advance(output)))
                if isinstance(output, Exception):
                    job.session.forget_context()
            self._jobs = [*(job for job in self._jobs if job not in batch), *batch]  # who waited comes first
        self._jobs = [job for job in self._jobs if not job.done]
        return events

    def _batch(self) -> list[Job]:
        """Choose whose steps are decoded next: in turn, as long as they fit."""
        chosen, total = [], 0
        for job in self._jobs:
            if job.waiting is None:
                continue
            size = len(job.waiting.feed.tokens)
            if total + size <= self.engine.n_batch:
                chosen.append(job)
                total += size
        return chosen

    def stream(self) -> Iterator[tuple[Job, Token]]:
        """Go on until all work is done; yields each token with its job."""
        while self._jobs:
            for job, tokens in self.step():
                for token in tokens:
                    yield job, token

    def run(self) -> None:
        """Go on until all work is done; raise the first error."""
        jobs = list(self._jobs)
        for _ in self.stream():
            pass
        for job in jobs:
            if job.error is not None:
                raise job.error
