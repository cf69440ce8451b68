"""Several sessions on one model in the caller's own thread: each step decodes once for all of them.

A pool is the synchronous face of batch.py, for scripts and notebooks that want to look on between two steps; it
belongs to one thread. What many threads share is a ``Scheduler`` (scheduler.py), which drives the same core.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from atlas_kit.errors import BusyError
from atlas_kit.llama.batch import AnyWork, Batches, Job
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.steps import Token


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
        self._batches = Batches(engine)

    def __len__(self) -> int:
        return len(self._batches.jobs)

    def generate(
        self, session: AtlasSession, prompt: str | Sequence[int] | None = None, **options: Any
    ) -> Job:
        """Let a session generate; options as of ``AtlasSession.generate``."""
        return self.submit(session, session.generating(prompt, **options))

    def feed(self, session: AtlasSession, text: str | Sequence[int], *, special: bool = False) -> Job:
        """Let a session read a text."""
        return self.submit(session, session.reading(session.tokens_of(text, special), score=False))

    def submit(self, session: AtlasSession, work: AnyWork, *, learns_last: bool = True) -> Job:
        """Add work in steps; ``learns_last`` is as of ``Job``.

        Raises
        ------
        InvalidParamError
            When the session belongs to another engine.
        BusyError
            When it has work already.
        """
        if any(job.session is session for job in self._batches.jobs):
            raise BusyError("the session has work already", key="session", hint="Wait until it is done.")
        job = Job(session, work, learns_last=learns_last)
        self._batches.add(job)
        return job

    def cancel(self, job: Job) -> None:
        """Stop work between two steps; the session may go on with something else."""
        self._batches.cancel(job)

    def step(self) -> list[tuple[Job, list[Token]]]:
        """Decode once for as many sessions as fit; return what each of them generated."""
        return self._batches.step()

    def stream(self) -> Iterator[tuple[Job, Token]]:
        """Go on until all work is done; yields each token with its job."""
        while self._batches.jobs:
            for job, tokens in self.step():
                for token in tokens:
                    yield job, token

    def run(self) -> None:
        """Go on until all work is done; raise the first error."""
        jobs = list(self._batches.jobs)
        for _ in self.stream():
            pass
        for job in jobs:
            if job.error is not None:
                raise job.error
