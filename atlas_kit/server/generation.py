"""One text to be generated, whichever API asked for it: what is read, what is chosen, and what came of it.

An endpoint makes a ``Generation`` and turns its ``Piece``s and its ``Outcome`` into its own shape. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from atlas_kit.errors import ClosedError, InvalidParamError
from atlas_kit.llama.batch import between
from atlas_kit.llama.forking import fork
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.llama.steps import likeliest
from atlas_kit.server.branches import Match
from atlas_kit.server.conversations import Conversation, Key, Slot
from atlas_kit.server.jobs import Watched
from atlas_kit.server.problems import ApiError

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array
    from atlas_kit.llama.batch import AnyWork
    from atlas_kit.llama.parking import Parked
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Token
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.metrics import Metrics


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
    score_prompt
        Also tell the log-probabilities of the text's own tokens.
    reuse
        False: nothing that is known of the text is used, and all of it is read.
    slot
        The sequence that it is to be generated in.
    around
        Makes another sampler of the sampler.
    """

    tokens: Sequence[int]
    sampling: Sampling = field(default_factory=Sampling)
    max_tokens: int | None = None
    stops: Sequence[str] = ()
    top_logprobs: int | None = None
    changes: Mapping[str, Any] = field(default_factory=dict)
    task: str = ""
    score_prompt: bool = False
    reuse: bool = True
    slot: int | None = None
    around: Callable[[Sampler], Sampler] | None = None


class Scored(NamedTuple):
    """A token of the text that was sent; the first has no log-probability, nor has one that was read before."""

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()


@dataclass
class Outcome:
    """What came of it, filled while it goes on.

    Attributes
    ----------
    prompt_tokens, cached_tokens, read_tokens
        Tokens of the text that was sent; of them, those that were known already; and those that were read now.
    prompt
        The text's own tokens, where their log-probabilities were asked for.
    shared
        The text was read for another answer to the same.
    tokens
        What was generated, end included.
    finish_reason, stop
        ``"stop"`` or ``"length"``, and the stop string that ended it.
    truncated, slot
        Whether the context was too small for it, and the number of the sequence that it happened in.
    seconds_waiting, seconds_reading, seconds_generating
        Until it was its turn; until the first token; from then to the end.
    atlas
        What the memory did, as the ``atlas`` object of an answer.
    """

    prompt_tokens: int = 0
    cached_tokens: int = 0
    read_tokens: int = 0
    prompt: list[Scored] = field(default_factory=list)
    shared: bool = False
    tokens: list[Token] = field(default_factory=list)
    finish_reason: str | None = None
    stop: str | None = None
    truncated: bool = False
    slot: int = -1
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


class Generating:
    """Carries out a generation with a conversation's memory.

    Iterate it for the tokens as they come; ``outcome`` is complete after the last. Closing the iteration early ends
    the work within a step.
    """

    def __init__(
        self, conversations: Conversations, conversation: Conversation, asked: Generation, metrics: Metrics
    ) -> None:
        self._conversations, self._conversation, self._asked = conversations, conversation, asked
        self._metrics, self._cut = metrics, False
        self._read_so_far: Callable[[], int] = lambda: 0
        self.outcome = Outcome(prompt_tokens=len(asked.tokens))
        limit = conversations.engine.n_ctx
        if not asked.tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if conversation.settings is None and not conversations.engine.info.recurrent:
            if len(asked.tokens) > limit or (len(asked.tokens) == limit and asked.max_tokens != 0):
                raise ApiError(
                    400,
                    f"The prompt of {len(asked.tokens)} tokens exceeds the available context size of {limit} tokens. "
                    'A memory reads texts of any length: ask for one with "atlas": {"enabled": true}.',
                    param="prompt",
                    code="context_length_exceeded",
                )
            room = limit - len(asked.tokens)
            if not conversations.context_shift and (asked.max_tokens is None or asked.max_tokens > room):
                # only what has a memory may forget its beginning, unless it was asked for
                self._asked, self._cut = dataclasses.replace(asked, max_tokens=room), True
        conversations.require_room()
        self._copies: list[Copy] = []
        self._seen: list[Scored] = []
        # first, so that a grammar that cannot be followed costs neither a wait nor any reading
        self._sampler: Sampler = conversations.engine.sampler(asked.sampling)
        if asked.around is not None:
            self._sampler = asked.around(self._sampler)
        self._sampler.accept(asked.tokens)

    @property
    def asked(self) -> Generation:
        """What was asked for."""
        return self._asked

    @property
    def read_so_far(self) -> int:
        """How many tokens of the text are read or known by now."""
        return min(self.outcome.prompt_tokens, self.outcome.cached_tokens + self._read_so_far())

    @property
    def conversation(self) -> Conversation:
        """Whose memory reads and answers."""
        return self._conversation

    def copy(self, sampling: Sampling) -> Copy:
        """Return another answer to the same text, which is read once.

        It goes on from a copy of the state behind the text: the conversation learns nothing of it.
        """
        asked = dataclasses.replace(
            self._asked, sampling=sampling, score_prompt=False, changes={}, reuse=True
        )
        found = Copy(self._conversations, self._conversation, asked, self._metrics)
        self._copies.append(found)
        return found

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens as they come, in groups."""
        began = time.monotonic()
        try:
            with self._metrics.request(self._asked, self.outcome) as watch:
                async with self._conversations.lease(self._conversation, self._asked.task) as slot:
                    self.outcome.seconds_waiting = time.monotonic() - began
                    watch.begins(slot.session)
                    async with contextlib.aclosing(self._answer(slot)) as answer:
                        async for fresh in answer:
                            watch.came(fresh)
                            yield fresh
        finally:
            self._sampler.close()
            for copy in self._copies:
                copy.give(None)  # where it was not given any

    async def _answer(self, slot: Slot) -> AsyncGenerator[list[Token], None]:
        asked, outcome, conversation = self._asked, self.outcome, self._conversation
        session, began = slot.session, time.monotonic()
        self._tune(session)
        follows, found = conversation.known(asked.tokens, self._conversations.spelling)
        if asked.score_prompt and session.memory is None:
            follows, found = -1, Match(0, 0)  # what was read before is read again: nobody learns it twice
        if not asked.reuse:
            follows, found = -1, Match(0, 0)
        known = list(conversation.branches[follows][: found.known]) if follows >= 0 else []
        fresh = list(asked.tokens[found.wanted :])
        outcome.cached_tokens = found.wanted
        before, first = session.tokens_read, 0.0
        rollovers, outcome.slot, slot.last = session.stats["rollovers"], slot.number, self
        self._read_so_far = lambda: session.tokens_read - before
        self._loop = asyncio.get_running_loop()
        work = self._work(session, list(conversation.history), known, fresh)
        job = Watched(self._conversations.scheduler.submit(session, work), self._conversations.scheduler)
        try:
            async with contextlib.aclosing(job.tokens()) as groups:
                async for came in groups:
                    if not first:
                        first = time.monotonic()
                        outcome.seconds_reading = first - began
                        outcome.prompt = self._scored()
                    outcome.tokens += came
                    yield came
            outcome.prompt = self._scored()
            outcome.finish_reason, outcome.stop = job.job.finish_reason, job.job.stop
        finally:
            await job.over()
            outcome.seconds_generating = time.monotonic() - (first or began)
            outcome.read_tokens = session.tokens_read - before
            self._read_so_far = lambda: outcome.read_tokens
            shifted = session.stats["rollovers"] > rollovers
            outcome.truncated = shifted or (self._cut and outcome.finish_reason == "length")
            self._remember(job, known, fresh, follows)
            outcome.atlas = self._statistics(session)

    def _work(self, session: AtlasSession, history: list[int], known: list[int], fresh: list[int]) -> AnyWork:
        """Read what is new, and generate."""
        asked = self._asked
        if known or session.context_tokens:
            yield from session.placing(history, known)
        if fresh:
            yield from session.reading(fresh, score=asked.score_prompt, expected=self._expected())
        if self._copies:
            yield between()
            copies = fork(session, len(self._copies))
            for copy, parked in zip(self._copies, copies, strict=True):
                self._loop.call_soon_threadsafe(copy.give, parked)
        return (
            yield from session.generating(
                None,
                max_tokens=asked.max_tokens,
                stop=asked.stops,
                sampler=self._sampler,
                top_logprobs=asked.top_logprobs,
            )
        )

    def _expected(self) -> Callable[[int, Array], None] | None:
        """Return what takes down the log-probabilities of the text's tokens while they are read."""
        if not self._asked.score_prompt:
            return None
        count = self._asked.top_logprobs or 0

        def take(token: int, logp: Array) -> None:
            self._seen.append(Scored(token, float(logp[token]), likeliest(logp, count)))

        return take

    def _scored(self) -> list[Scored]:
        """Return all of the text's tokens, also those that nothing is known about."""
        if not self._asked.score_prompt:
            return []
        known, tokens = self._seen, self._asked.tokens
        return [*(Scored(token) for token in tokens[: len(tokens) - len(known)]), *known]

    def _tune(self, session: AtlasSession) -> None:
        """Let the memory take over the settings that a request names."""
        if not self._asked.changes or session.memory is None:
            return
        session.memory.retune(self._asked.changes)
        self._conversation.settings = session.memory.settings

    def _remember(self, job: Watched, known: list[int], fresh: list[int], follows: int) -> None:
        """Take note of what was read and said, also where it was cut short."""
        conversation, outcome = self._conversation, self.outcome
        read = fresh[: outcome.read_tokens]
        said = [token.id for token in job.job.tokens if token.id >= 0]
        if job.job.stop is not None and said:
            said.pop()  # what completed a stop string ends the text, and is not read
        if follows >= 0:
            conversation.dropped += max(0, len(conversation.branches[follows]) - len(known))
        if known or read or said:
            conversation.remember([*known, *read, *said], follows)

    def _statistics(self, session: AtlasSession) -> dict[str, Any]:
        return atlas_statistics(session, self._conversation, self.outcome)


class Copy(Generating):
    """Another answer to the same text, from a copy of the state behind it; see ``Generating.copy``."""

    def __init__(
        self, conversations: Conversations, conversation: Conversation, asked: Generation, metrics: Metrics
    ) -> None:
        super().__init__(conversations, conversation, asked, metrics)
        self.outcome.shared = True
        self._given = asyncio.Event()
        self._parked: Parked | None = None

    def give(self, parked: Parked | None) -> None:
        """Let it begin; None: it cannot, where it has not begun."""
        if not self._given.is_set():
            self._parked = parked
            self._given.set()

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens as they come, in groups, once the text was read."""
        try:
            await self._given.wait()
            if self._parked is None:
                raise ClosedError("the text was not read to its end")
            whole, text = self._conversation, array("i", self._asked.tokens)
            own = Conversation(Key(whole.key.namespace, None), whole.settings, [text], text, self._parked)
            self._conversation, self._parked = own, None
            try:
                async with contextlib.aclosing(super().tokens()) as groups:
                    async for fresh in groups:
                        yield fresh
            finally:
                own.closed = True
        finally:
            self._sampler.close()


class Speaking(Protocol):
    """What yields tokens as they come, in groups."""

    def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield them; who closes it early ends the work."""


async def together(runs: Sequence[Speaking]) -> AsyncGenerator[tuple[int, list[Token] | None], None]:
    """Yield the tokens of several generations as they come, with their numbers; None is the end of one.

    What one fails with ends all of them, and so does closing the iteration.
    """
    came: asyncio.Queue[tuple[int, list[Token] | BaseException | None]] = asyncio.Queue()

    async def one(number: int, run: Speaking) -> None:
        try:
            async with contextlib.aclosing(run.tokens()) as groups:
                async for tokens in groups:
                    came.put_nowait((number, tokens))
            came.put_nowait((number, None))
        except Exception as error:
            came.put_nowait((number, error))

    tasks = [asyncio.create_task(one(number, run)) for number, run in enumerate(runs)]
    left = len(tasks)
    try:
        while left:
            number, item = await came.get()
            if isinstance(item, BaseException):
                raise item
            left -= item is None
            yield number, item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def atlas_statistics(session: AtlasSession, conversation: Conversation, outcome: Outcome) -> dict[str, Any]:
    """Return what a memory did for an answer: the ``atlas`` object."""
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
    memory = session.memory
    if memory is None:
        return found
    stats = memory.stats()
    filled = stats["window"] / stats["window_size"] if stats["window_size"] else 0.0
    covered = stats["tokens_learned"] if memory.learns else stats["window"]
    losses = session.stats
    return {
        **found,
        "covered_by_memory_tokens": min(gone, covered),
        "memory_utilization": min(1.0, stats["tokens_seen"] / max(1, stats["window_size"])),
        "window_fill_ratio": filled,
        "omega_loss": losses["loss"],
        "model_loss": losses["loss_model"],
        "muon_iterations": 5 if memory.settings.use_muon else 0,
        "blend_ratio_actual": _blend(memory),
        "tokens_learned": stats["tokens_learned"],
        "tokens_seen": stats["tokens_seen"],
        "state_bytes": stats["state_bytes"],
    }


def _blend(memory: Any) -> float | None:
    """Return how much of the last prediction was the window's and the memory's together."""
    return None if isinstance(memory.settings.blend_ratio, str) else float(memory.settings.blend_ratio)


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
