"""One text to be generated, whichever API asked for it: what is read, what is chosen, and what came of it.

An endpoint makes a ``Generation`` and turns its ``Piece``s and its ``Outcome`` into its own shape. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import ClosedError, InvalidParamError
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.memory.muon import STEPS
from atlas_kit.server.conversations import SHARED, Conversation, Slot
from atlas_kit.server.jobs import Watched, finished
from atlas_kit.server.problems import ApiError, unavailable

if TYPE_CHECKING:
    from atlas_kit.llama.batch import AnyWork
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token
    from atlas_kit.llama.token_memory import Reading
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.metrics import Metrics, Request


@dataclass(frozen=True)
class Generation:
    """What is asked for.

    Attributes
    ----------
    tokens
        The whole text so far.
    sampling, max_tokens, stops
        How tokens are chosen, how many at most (None: until the model ends), and strings that end the text.
    top_logprobs
        Log-probabilities of so many most likely tokens; None: none are told.
    changes
        Settings of the memory that differ for this conversation.
    task
        What the request is called in lists of what is under way.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""


@dataclass
class Outcome:
    """What came of it, filled while it goes on.

    Attributes
    ----------
    prompt_tokens, cached_tokens, read_tokens
        Tokens of the text that was sent; of them, those that were known already; and those that were read now.
    tokens
        What was generated, end included.
    finish_reason, stop
        ``"stop"`` or ``"length"``, and the stop string that ended it.
    seconds_waiting, seconds_reading, seconds_generating
        Until it was its turn; until the first token; from then to the end.
    atlas
        What the memory did, as the ``atlas`` object of an answer.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    read_tokens: int = 0
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    stop: str | None = None
    seconds_waiting: float = 0.0
    seconds_reading: float = 0.0
    seconds_generating: float = 0.0
    atlas: dict[str, Any] = field(default_factory=dict)

    @property
    def text(self) -> str:
        """What was generated."""
        return "".join(token.text for token in self.tokens)

    @property
    def completion_tokens(self) -> int:
        """How many tokens were generated; the text that was held back at the end is none."""
        return sum(token.id >= 0 for token in self.tokens)


Hook = Callable[[Conversation], Awaitable[dict[str, Any] | None]]


class Generating:
    """Carries out a generation with a conversation's memory.

    Iterate ``tokens()``; ``outcome`` is complete after the last. Closing the iteration early ends the work within a
    step. The work is a task of its own, so that whoever listens may be cancelled at any moment: a sequence is given
    back, and what was read is noted, when the work has really ended.

    Parameters
    ----------
    conversations
        Where conversations are.
    choose
        Returns the one that goes on; called when the work begins.
    asked, metrics
        What is asked for, and what counts it.
    remembers
        Whether that conversation has a memory, so that the text may be longer than the context.
    before, after
        Called with the conversation before it is its turn, and when it is over: what ``after`` returns goes into the
        ``atlas`` object.
    """

    def __init__(
        self,
        conversations: Conversations,
        choose: Callable[[], Conversation],
        asked: Generation,
        metrics: Metrics,
        *,
        remembers: bool,
        before: Hook | None = None,
        after: Hook | None = None,
    ) -> None:
        self._conversations, self._choose, self._asked = conversations, choose, asked
        self._metrics, self._before, self._after = metrics, before, after
        self.outcome = Outcome(prompt_tokens=len(asked.tokens))
        limit = conversations.engine.n_ctx
        if not asked.tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if not remembers and len(asked.tokens) >= limit:
            raise ApiError(
                400,
                f"The prompt has {len(asked.tokens)} tokens, and the context holds {limit}. A memory reads texts "
                'of any length: ask for one with "atlas": {"enabled": true}.',
                param="prompt",
                code="context_length_exceeded",
            )
        # first, so that a grammar that cannot be followed costs neither a wait nor any reading
        self._sampler: Sampler = conversations.engine.sampler(asked.sampling)
        self._news = asyncio.Event()
        self._job: Watched | None = None
        self._fresh: list[Token] = []
        self._at = 0
        self._watch: Request | None = None
        self._began = self._first = 0.0
        self._blend = Blend()

    async def tokens(self) -> AsyncIterator[list[Token]]:
        """Yield the tokens as they come, in groups.

        Raises
        ------
        ApiError, AtlasError
            The request cannot be carried out, or is not to the end.
        """
        task = self._conversations.carry_out(self._work())
        task.add_done_callback(lambda _: self._news.set())
        try:
            while True:
                over = task.done()
                self._pull()
                if self._fresh:
                    fresh, self._fresh = self._fresh, []
                    yield fresh
                elif over:
                    break
                else:
                    await self._news.wait()
                    self._news.clear()
        finally:
            if self._job is not None:
                if not self._job.job.done:
                    self._job.cancel()
            elif not task.done():
                task.cancel()  # it waits for its turn
        task.result()

    def _pull(self) -> None:
        """Take note of the tokens that came since."""
        if self._job is None or not (fresh := self._job.job.tokens[self._at :]):
            return
        if not self._at:
            self._first = time.monotonic()
            self.outcome.seconds_reading = self._first - self._began
        self._at += len(fresh)
        self.outcome.tokens += fresh
        self._fresh += fresh
        if self._watch is not None:
            self._watch.came(fresh)

    async def _work(self) -> None:
        began = time.monotonic()
        try:
            with self._metrics.request(self._asked, self.outcome) as watch:
                conversation = self._choose()
                if self._before is not None:
                    await self._before(conversation)
                async with self._conversations.lease(conversation, self._asked.task) as slot:
                    self.outcome.seconds_waiting = time.monotonic() - began
                    watch.begins(slot.session)
                    self._watch = watch
                    await self._answer(slot, conversation)
            if self._after is not None:
                self.outcome.atlas.update(await self._after(conversation) or {})
        except ClosedError as error:
            raise unavailable("The server is shutting down.") from error
        finally:
            self._watch = None
            self._sampler.close()

    async def _answer(self, slot: Slot, conversation: Conversation) -> None:
        asked, outcome, session = self._asked, self.outcome, slot.session
        scheduler = self._conversations.scheduler
        self._began = time.monotonic()
        follows, found = conversation.known(asked.tokens, self._conversations.spelling)
        known = list(conversation.branches[follows][: found.known]) if follows >= 0 else []
        fresh = list(asked.tokens[found.wanted :])
        outcome.cached_tokens = found.wanted
        before, steps = session.tokens_read, _steps(session)
        tuned = self._tune(session, conversation)
        steps_of_work = self._steps(session, list(conversation.history), known, fresh)
        try:
            self._job = Watched(scheduler.submit(session, steps_of_work), scheduler, self._news)
            await finished(self._job.over())
            self._pull()
            outcome.finish_reason, outcome.stop = self._job.job.finish_reason, self._job.job.stop
        finally:
            session.observer = None
            now = time.monotonic()
            outcome.seconds_generating = now - (self._first or now)
            outcome.read_tokens = session.tokens_read - before
            if self._job is not None:
                self._remember(conversation, self._job.job.stop is not None, known, fresh, follows)
            outcome.atlas = atlas_statistics(
                session, conversation, outcome, blend=self._blend.mean, steps=_steps(session) - steps
            )
            if session.memory is not None:
                self._conversations.measure(conversation, session.memory)
                if tuned is not None:
                    session.memory.retune(tuned)
        if self._job.job.error is not None:
            raise self._job.job.error

    def _steps(
        self, session: AtlasSession, history: list[int], known: list[int], fresh: list[int]
    ) -> AnyWork:
        """Read what is new, and generate."""
        asked = self._asked
        if known or session.context_tokens:
            yield from session.placing(history, known)
        if fresh:
            yield from session.reading(fresh, score=False)
        session.observer = self._blend
        return (
            yield from session.generating(
                None,
                max_tokens=asked.max_tokens,
                stop=asked.stops,
                sampler=self._sampler,
                top_logprobs=asked.top_logprobs,
            )
        )

    def _tune(self, session: AtlasSession, conversation: Conversation) -> dict[str, Any] | None:
        """Let the memory take over the settings that a request names; return those that come back after it.

        A session keeps them. The memory that all share does not: what one asks for is not for the others.
        """
        memory = session.memory
        if not self._asked.changes or memory is None:
            return None
        was = {name: getattr(memory.settings, name) for name in self._asked.changes}
        memory.retune(self._asked.changes)
        if conversation.key == SHARED:
            return was
        if memory.settings != conversation.settings:
            conversation.settings = memory.settings
            conversation.version += 1
        return None

    def _remember(
        self, conversation: Conversation, stopped: bool, known: list[int], fresh: list[int], follows: int
    ) -> None:
        """Take note of what was read and said, also where it was cut short."""
        read = fresh[: self.outcome.read_tokens]
        said = [token.id for token in self.outcome.tokens if token.id >= 0]
        if stopped and said:
            said.pop()  # what completed a stop string ends the text, and is not read
        conversation.learned += len(read) + len(said)
        if known or read or said:
            conversation.remember([*known, *read, *said], follows)


class Blend:
    """Adds up how much of the predictions was the memory's and the window's: a session's observer."""

    def __init__(self) -> None:
        self._sum, self._count = 0.0, 0

    def __call__(self, reading: Reading, tokens: Any, probabilities: Any) -> None:
        """Take in the predictions of some tokens."""
        self._sum += float(reading.weights[:, 1:].sum())
        self._count += len(tokens)

    @property
    def mean(self) -> float | None:
        """The mean weight of memory and window together, 0 to 1; None where nothing was predicted."""
        return self._sum / self._count if self._count else None


def _steps(session: AtlasSession) -> int:
    """Return how many steps a session's memory has taken."""
    return 0 if session.memory is None else int(session.memory.state.counters["steps"])


def atlas_statistics(
    session: AtlasSession, conversation: Conversation, outcome: Outcome, *, blend: float | None, steps: int
) -> dict[str, Any]:
    """Return what a memory did for an answer: the ``atlas`` object.

    Parameters
    ----------
    blend
        The mean weight of memory and window in the predictions of this answer.
    steps
        Steps that the memory took while it read the text and answered.
    """
    in_context = len(session.context_tokens)
    whole = len(conversation.history)
    gone = max(0, whole - in_context)
    found: dict[str, Any] = {
        "enabled": session.memory is not None,
        "session_id": conversation.key.name,
        "conversation_tokens": whole,
        "context_tokens": in_context,
        "left_context_tokens": gone,
        "covered_by_memory_tokens": 0,
        "not_unlearned_tokens": conversation.dropped,
        "cached_tokens": outcome.cached_tokens,
        "recalled": [],
    }
    if conversation.problem is not None:
        found["problem"], conversation.problem = conversation.problem, None
    memory = session.memory
    if memory is None:
        return found
    stats = memory.stats()
    filled = stats["window"] / stats["window_size"] if stats["window_size"] else 0.0
    # the window holds what came last, and the context the end of that
    covered = stats["tokens_learned"] if memory.learns else max(0, stats["window"] - in_context)
    losses = session.stats
    return {
        **found,
        "covered_by_memory_tokens": min(gone, covered),
        "memory_utilization": conversation.utilization,
        "window_fill_ratio": filled,
        "omega_loss": losses["loss"],
        "model_loss": losses["loss_model"],
        "muon_iterations": steps * STEPS if memory.settings.use_muon else 0,
        "blend_ratio_actual": blend,
        "tokens_learned": stats["tokens_learned"],
        "tokens_seen": stats["tokens_seen"],
        "state_bytes": stats["state_bytes"],
    }


def checked_session_id(name: Any) -> str:
    """Return a session's name.

    Raises
    ------
    InvalidParamError
        It is empty, longer than 128 characters, or holds characters that cannot be printed.
    """
    if not isinstance(name, str) or not 0 < len(name) <= 128 or not name.isprintable():
        raise InvalidParamError(
            "a session_id has 1 to 128 printable characters", key="session_id", hint="Choose another."
        )
    return name
