"""One text to be generated, whichever API asked for it: what is read, what is chosen, and what came of it.

An endpoint makes a ``Generation`` and turns its ``Piece``s and its ``Outcome`` into its own shape. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import time
from array import array
from collections.abc import AsyncGenerator, Awaitable, Callable, Generator, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import ClosedError
from atlas_kit.llama.batch import between
from atlas_kit.llama.forking import fork, point_of
from atlas_kit.llama.inside import unlearned
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.llama.steps import likeliest
from atlas_kit.server.atlas_object import Blend, atlas_statistics, recalled_for, steps_of
from atlas_kit.server.branches import Match, match
from atlas_kit.server.conversation import Conversation, Slot
from atlas_kit.server.jobs import Watched, finished
from atlas_kit.server.keeping import Keeping
from atlas_kit.server.keys import SHARED, Key, looked_at
from atlas_kit.server.making import takes_long
from atlas_kit.server.outcome import Generation, Outcome, Progress, Scored
from atlas_kit.server.problems import SESSION, ApiError, naming, too_long, unavailable
from atlas_kit.server.said import Said, Span

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array
    from atlas_kit.llama.batch import AnyWork
    from atlas_kit.llama.parking import Parked
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.steps import Finish, Token
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.metrics import Metrics, Request
    from atlas_kit.server.prefixes import Reader
    from atlas_kit.server.recall import Question


#: Tokens that are looked through beside the event loop, and those that are kept there.
LONG, MANY = 2048, 256


Hook = Callable[[Conversation], Awaitable["dict[str, Any] | None"]]


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
    key
        The session that goes on, where it has a name: it is claimed first.
    before, after
        Called with the conversation before it is its turn, and when it is over: what ``after`` returns goes into the
        ``atlas`` object.
    namespace
        Of the API key that asks.
    recalls
        Whether the shared memory may give back word for word what it read: it has read nothing of others.
    named
        The property of the request that names the session.
    """

    def __init__(
        self,
        conversations: Conversations,
        choose: Callable[[], Conversation],
        asked: Generation,
        metrics: Metrics,
        *,
        remembers: bool,
        key: Key | None = None,
        before: Hook | None = None,
        after: Hook | None = None,
        namespace: str = "",
        recalls: bool = True,
        named: str = SESSION,
    ) -> None:
        self._namespace, self._recalls, self._named = namespace, recalls, named
        self._conversations, self._choose, self._asked = conversations, choose, asked
        self._remembers, self._key, self._before, self._after = remembers, key, before, after
        self._metrics, self._cut = metrics, False
        self._read_so_far: Callable[[], int] = lambda: 0
        self.outcome = Outcome(prompt_tokens=len(asked.tokens))
        limit = conversations.engine.n_ctx
        if not asked.tokens:
            raise ApiError(400, "The prompt is empty.", param="prompt")
        if not remembers and not conversations.engine.info.recurrent:
            if len(asked.tokens) > limit or (len(asked.tokens) == limit and asked.max_tokens != 0):
                raise too_long(
                    f"The prompt of {len(asked.tokens)} tokens exceeds the available context size of {limit} tokens. "
                    'A memory reads texts of any length: ask for one with "atlas": {"enabled": true}.',
                    len(asked.tokens),
                    limit,
                    param="prompt",
                )
            room = limit - len(asked.tokens)
            if not conversations.context_shift and (asked.max_tokens is None or asked.max_tokens > room):
                # only what has a memory may forget its beginning, unless it was asked for
                self._asked, self._cut = dataclasses.replace(asked, max_tokens=room), True
        conversations.require_room()
        self._copies: list[Copy] = []
        self._seen: list[Scored] = []
        self._sampler: Sampler | None = None
        if not takes_long(asked.sampling, len(asked.tokens)):
            self._sampler = self._made()
        self._conversation: Conversation | None = None
        self._told: Conversation | None = None
        self._reader: Reader | None = None
        self._news = asyncio.Event()
        self._job: Watched | None = None
        self._fresh: list[Token] = []
        self._at = 0
        self._watch: Request | None = None
        self._began = self._first = self._said = 0.0
        self._blend = Blend()
        self._answering = False
        self._question: Question | None = None
        #: How much of what is to be read stands before the question, and what keeps that.
        self._ahead: tuple[int, Callable[[], None]] = 0, lambda: None
        self._progress: list[Progress] = []
        self._progress_told = 0

    def _made(self) -> Sampler:
        """Make what chooses tokens."""
        asked = self._asked
        found: Sampler = self._conversations.engine.sampler(asked.sampling)
        if asked.around is not None:
            found = asked.around(found)
        found.accept(asked.tokens)
        return found

    async def ready(self) -> Sampler:
        """Make what chooses tokens, where it is not made yet; who sends something before the tokens waits for it.

        Raises
        ------
        InvalidParamError
            The grammar cannot be followed.
        """
        if self._sampler is None:
            with self._conversations.queued():
                self._sampler = await self._conversations.making.beside(self._made)
        return self._sampler

    @property
    def asked(self) -> Generation:
        """What was asked for."""
        return self._asked

    @property
    def read_so_far(self) -> int:
        """How many tokens of the text are read or known by now."""
        return min(self.outcome.prompt_tokens, self.outcome.cached_tokens + self._read_so_far())

    def progress(self) -> list[Progress]:
        """Return what is new about how much of the text is read; first, what was known before."""
        found = self._progress[self._progress_told :]
        self._progress_told += len(found)
        return found

    def _reads(self, count: int) -> None:
        """Take note of how much is read, on the engine's thread."""
        known = self.outcome.cached_tokens
        seconds = time.monotonic() - self._began if count else 0.0
        self._progress.append(Progress(self.outcome.prompt_tokens, known, known + count, seconds))
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._news.set)

    @property
    def conversation(self) -> Conversation | None:
        """Whose memory reads and answers; None: that is not decided yet."""
        return self._conversation

    def copy(self, sampling: Sampling) -> Copy:
        """Return another answer to the same text, which is read once.

        It goes on from a copy of the state behind the text: the conversation learns nothing of it.
        """
        asked = dataclasses.replace(
            self._asked, sampling=sampling, score_prompt=False, changes={}, reuse=True
        )
        found = Copy(self, asked)
        self._copies.append(found)
        return found

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens as they come, in groups.

        Raises
        ------
        ApiError, AtlasError
            The request cannot be carried out, or is not to the end.
        """
        task = self._conversations.carry_out(self._carry_out())
        task.add_done_callback(lambda _: self._news.set())
        noted = 0
        try:
            while True:
                over = task.done()
                self._pull()
                if self._fresh:
                    fresh, self._fresh = self._fresh, []
                    yield fresh
                elif noted < len(self._progress):
                    noted = len(self._progress)
                    yield []
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
            if (
                not task.done()
            ):  # who closes this early finds the work ended, unless they are cancelled once more
                await asyncio.wait({task})
        with naming(self._named):
            task.result()

    def _pull(self) -> None:
        """Take note of the tokens that came since."""
        if self._job is None or not (fresh := self._job.job.tokens[self._at :]):
            return
        if not self._at:
            self._first = time.monotonic()
            self.outcome.seconds_reading = self._first - self._began
            self.outcome.prompt = self._scored()
            if self._told is not None:
                self._told.reached.set()
            self._reads_no_more()
        self._at += len(fresh)
        self.outcome.tokens += fresh
        self._fresh += fresh
        if self._watch is not None:
            self._watch.came(fresh)

    async def _carry_out(self) -> None:
        began = time.monotonic()
        try:
            await self.ready()
            claims = self._conversations.claims
            with self._metrics.request(self._asked, self.outcome) as watch:
                if self._key is not None:
                    await claims.claim(self._key)
                conversation = self._conversation = self._choose()
                async with self._conversations.asking(conversation):
                    await self._take_turn(conversation, watch, began)
                await claims.confirm(conversation)
            if self._after is not None:
                self.outcome.atlas.update(await self._after(conversation) or {})
        except ClosedError as error:
            raise unavailable("The server is shutting down.") from error
        finally:
            self._watch = None
            self._reads_no_more()
            if self._told is not None:
                self._told.ends()
            self._free()
            for copy in self._copies:
                copy.give(None)  # where it was not given any

    async def _take_turn(self, conversation: Conversation, watch: Request, began: float) -> None:
        """Have the conversation to oneself as soon as it is one's turn, and answer."""
        if not conversation.taken:
            self._told = conversation
            conversation.begins(self._asked.tokens)
        if self._before is not None:
            await self._before(conversation)
        await self._conversations.follow(conversation, self._asked.tokens)
        if self._shares(conversation):
            self._reader = await self._conversations.share(conversation, self._asked.tokens)
        async with self._conversations.lease(conversation, self._asked.task) as slot:
            self.outcome.seconds_waiting = time.monotonic() - began
            watch.begins(slot.session)
            self._watch = watch
            await self._answer(slot, conversation)

    def _free(self) -> None:
        if self._sampler is not None:
            self._sampler.close()

    def _shares(self, conversation: Conversation) -> bool:
        """Tell whether a fresh memory may begin with what others have read, and they with what it reads."""
        asked, settings = self._asked, conversation.settings
        if self._told is None or self._before is not None or not asked.reuse or asked.score_prompt:
            return False
        return settings is not None and settings.replace(**asked.changes) == settings

    def _reads_no_more(self) -> None:
        if self._reader is not None:
            self._conversations.prefixes.over(self._reader)

    async def _answer(self, slot: Slot, conversation: Conversation) -> None:
        asked, outcome, session = self._asked, self.outcome, slot.session
        scheduler = self._conversations.scheduler
        self._began = time.monotonic()
        spelling = self._conversations.spelling
        follows, found = conversation.known(asked.tokens, spelling)
        since, conversation.begun = 0 if conversation.begun else found.wanted, False
        spans = await self._spans(session, conversation)
        branch = conversation.branches[follows] if follows >= 0 else array("i")
        shared, left = found, branch
        if asked.replaces:
            shared, left = match(conversation.history, asked.tokens, spelling), conversation.history
        keeping = Keeping(
            session, asked.said or Said(), asked.tokens, spans, since,
            common=shared.wanted, left=left[shared.known :], replaces=asked.replaces,
            returned=conversation.branched and follows != len(conversation.branches) - 1,
        )  # fmt: skip
        self._question = await self._asks(session, keeping)
        if not asked.reuse or (asked.score_prompt and session.memory is None):
            follows, found = -1, Match(0, 0)  # what was read before is read again: nobody learns it twice
        known = list(conversation.branches[follows][: found.known]) if follows >= 0 else []
        fresh = list(asked.tokens[found.wanted :])
        outcome.cached_tokens = found.wanted
        before, steps, rollovers = session.tokens_read, steps_of(session), session.stats["rollovers"]
        outcome.slot, slot.last = slot.number, self
        # what is read on the side counts for itself
        self._read_so_far = lambda: max(0, session.tokens_read - before)
        self._loop = asyncio.get_running_loop()
        if asked.progress:
            self._reads(0)
        tuned = self._tune(session, conversation)
        if unread := keeping.unread:
            self._ahead = max(0, unread[-1].stop - found.wanted), lambda: keeping.read(unread[-1].stop)
        work = self._work(session, list(conversation.history), known, fresh)
        try:
            # a memory without a name is mostly let go behind its only answer, which need not wait for a step of it
            lasts = conversation.key == SHARED or conversation.key.name is not None
            job = scheduler.submit(session, work, learns_last=lasts)
            self._job = Watched(job, scheduler, self._news)
            await finished(self._job.over())
            self._pull()
            outcome.prompt = self._scored()
            outcome.finish_reason, outcome.stop = self._job.job.finish_reason, self._job.job.stop
        finally:
            session.observer = None
            ended = time.monotonic()
            first = self._first or ended
            if not self._first:  # it only read, or was ended while it did
                outcome.seconds_reading = ended - self._began
            if self._question is not None and self._said:
                # behind that, an answer made on the side is read for the conversation
                ended = min(ended, max(self._said, first + 0.001))
            outcome.seconds_generating = ended - first
            outcome.read_tokens = session.tokens_read - before
            self._read_so_far = lambda: outcome.read_tokens
            shifted = session.stats["rollovers"] > rollovers
            outcome.truncated = shifted or (self._cut and outcome.finish_reason == "length")
            read, said = list[int](), list[int]()
            if self._job is not None:
                read, said = self._remember(
                    conversation, self._job.job.stop is not None, known, fresh, follows
                )
            outcome.atlas = atlas_statistics(
                session, conversation, outcome, blend=self._blended, steps=steps_of(session) - steps
            )
            if self._question is not None:
                outcome.atlas |= recalled_for(self._question)
            self._show_recalled(session, conversation)
            if session.memory is not None:
                self._conversations.measure(conversation, session.memory)
                if tuned is not None:
                    session.memory.retune(tuned)
            if self._job is not None:
                await self._keep(keeping, found.wanted + len(read), len(said))
                conversation.branched |= keeping.left_out
        if self._job.job.error is not None:
            raise self._job.job.error

    def _work(self, session: AtlasSession, history: list[int], known: list[int], fresh: list[int]) -> AnyWork:
        """Read what is new, and generate."""
        asked = self._asked
        session.keeps = asked.keeps
        if known or session.context_tokens:
            yield from session.placing(history, known)
        session.observer = partial(self._look, session)
        reader, question = self._reader, self._question
        if question is not None:
            told = self._reads if asked.progress else None
            ahead, keep = self._ahead
            yield from session.catching_up()  # it may be answered on the side
            return (
                yield from question.answering(
                    session, fresh, self._generating(session), told, ahead=ahead, keep=keep
                )
            )
        if reader is not None and session.memory is not None and [*known, *fresh] == list(asked.tokens):
            yield from self._reading(session, reader, len(known))
        elif fresh:
            yield from session.reading(
                fresh,
                score=asked.score_prompt,
                expected=self._expected(),
                progress=self._reads if asked.progress else None,
            )
        if self._copies:
            yield from session.catching_up()
            yield between()
            copies = fork(session, len(self._copies))
            for copy, parked in zip(self._copies, copies, strict=True):
                self._loop.call_soon_threadsafe(copy.give, parked)
        return (yield from self._generating(session)(()))

    def _generating(self, session: AtlasSession) -> Callable[[Sequence[int]], Generator[Any, Any, Finish]]:
        """Return what reads tokens and says what follows.

        What a conversation answers is not learned: a model that learns its own words begins the next answer like them
        (see ``llama/asking.py``). It is kept in the episodes all the same.
        """
        asked = self._asked
        talks = asked.said is not None and bool(asked.said.turns)
        begun: list[Sampler] = []

        def work(tokens: Sequence[int]) -> Generator[Any, Any, Finish]:
            self._answering = True
            if begun:  # an answer that is asked for once more; the first one's is closed
                self._sampler = self._made()
            sampler = self._sampler
            assert sampler is not None
            begun.append(sampler)
            try:
                if tokens:
                    yield from session.reading(tokens, score=False)
                with unlearned(session) if talks else contextlib.nullcontext():
                    return (
                        yield from session.generating(
                            max_tokens=asked.max_tokens,
                            stop=asked.stops,
                            sampler=sampler,
                            top_logprobs=asked.top_logprobs,
                            leaves_last=self._question is None,
                        )
                    )
            finally:
                self._answering, self._said = False, time.monotonic()

        return work

    async def _spans(self, session: AtlasSession, conversation: Conversation) -> list[Span]:
        """Return which of the text's tokens are whose, where anybody keeps that."""
        said, shared, tokens = self._asked.said, conversation.key == SHARED, self._asked.tokens
        if said is None or session.episodes is None or (shared and not self._recalls):
            return []
        if len(tokens) < LONG:
            return said.spans(session.engine, tokens)
        return await asyncio.to_thread(said.spans, session.engine, tokens)

    async def _asks(self, session: AtlasSession, keeping: Keeping) -> Question | None:
        """Return the question that the memory is asked with; None where there is none, or nothing to be asked."""
        asked, memory, episodes = self._asked, session.memory, session.episodes
        if asked.said is None or not asked.said.asks or not keeping.spans or episodes is None:
            return None
        if memory is None or asked.max_tokens == 0 or asked.score_prompt:
            return None
        if self._copies or self.outcome.shared:
            return None
        if asked.changes.get("recall", memory.settings.recall) == "off":
            return None
        unread = keeping.unread
        if not len(episodes) and sum(span.stop - span.start for span in unread) < session.engine.n_ctx:
            return None  # there is nothing but what will be in the context
        from atlas_kit.server.recall import question_of

        # the indexes are made, and the text written, beside the others' tokens; to their end: who comes next uses them
        return await finished(
            asyncio.to_thread(question_of, session.engine, episodes, asked.said, len(unread))
        )

    async def _keep(self, keeping: Keeping, end: int, said: int) -> None:
        """Keep what was read up to a token of the text, and so many tokens of the answer, to be found again."""
        tokens, count = self.outcome.tokens, self.outcome.completion_tokens
        answer = tokens if said >= count else [token for token in tokens if token.id >= 0][:said]

        def keep() -> None:
            keeping.read(end)
            keeping.answered(answer)

        if keeping.left + len(answer) < MANY and not keeping.takes_long:
            keep()
        else:
            await finished(asyncio.to_thread(keep))

    @property
    def _blended(self) -> float | None:
        """The mean weight of memory and window in the answer: none on the side, and where a question is unrelated."""
        asked = self._question
        alone = asked is not None and (asked.aside or asked.recalled.unrelated) and self._said
        return 0.0 if alone else self._blend.mean

    def _reading(self, session: AtlasSession, reader: Reader, at: int) -> AnyWork:
        """Read the rest of a text in parts, and stop where others want to go on by themselves."""
        reached, start = self._conversations.prefixes.reached, at
        while at < len(reader.text):
            end = reader.stop(at, session.feed_limit)
            yield from session.reading(reader.text[at:end])
            at = end
            if self._asked.progress:
                self._reads(at - start)
            if reader.wants(at):
                yield between()
                try:
                    point = point_of(session)
                except Exception:  # the others read it themselves
                    self._loop.call_soon_threadsafe(reader.give, at, None)
                else:
                    self._loop.call_soon_threadsafe(reached, reader, at, point)

    def _look(self, session: AtlasSession, reading: Reading, tokens: Any, probabilities: Any) -> None:
        """Take note of what was expected of tokens that came, on the engine's thread."""
        if self._answering:
            self._blend(reading, tokens, probabilities)
        if self._conversation is not None and self._conversations.traces.anybody:
            key = looked_at(self._conversation.key, self._namespace)
            self._conversations.traces.take(key, reading, tokens, probabilities, session)

    def _show_recalled(self, session: AtlasSession, conversation: Conversation) -> None:
        """Tell those who look on, and who comes next, what was recalled for the answer."""
        if self._asked.max_tokens == 0 or (conversation.key.name is None and conversation.key != SHARED):
            return
        from atlas_kit.server.recall import told_of

        outcome, seconds = self.outcome, time.monotonic() - self._began
        told = told_of(
            session, self._asked.said, self._question, outcome.text, outcome.finish_reason, seconds
        )
        if told is not None:
            key = looked_at(conversation.key, self._namespace)
            conversation.told[key] = told
            self._conversations.traces.recalled(key, told)

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
    ) -> tuple[list[int], list[int]]:
        """Take note of what was read and said, also where it was cut short; return both."""
        count = self.outcome.read_tokens
        read = fresh[:count]
        said = [token.id for token in self.outcome.tokens if token.id >= 0]
        if stopped and said:
            said.pop()  # what completed a stop string ends the text, and is not read
        if self._question is not None and self._question.aside:
            # it was said in a branch, and is read behind its question, if nobody ended that
            said = said[: max(0, count - len(fresh))]
            self.outcome.read_tokens = len(read)
        conversation.learned += len(read) + len(said)
        if known or read or said:
            conversation.remember([*known, *read, *said], follows)
        return read, said


class Copy(Generating):
    """Another answer to the same text, from a copy of the state behind it; see ``Generating.copy``."""

    def __init__(self, whole: Generating, asked: Generation) -> None:
        super().__init__(whole._conversations, self._own, asked, whole._metrics, remembers=whole._remembers)
        self.outcome.shared = True
        self._whole = whole
        self._given = asyncio.Event()
        self._parked: Parked | None = None

    def give(self, parked: Parked | None) -> None:
        """Let it begin; None: it cannot, where it has not begun."""
        if not self._given.is_set():
            self._parked = parked
            self._given.set()

    def _own(self) -> Conversation:
        """Return a conversation that knows the text, and that nobody else goes on with."""
        whole, text = self._whole.conversation, array("i", self._asked.tokens)
        if self._parked is None or whole is None:
            raise ClosedError("the text was not read to its end")
        found = Conversation(Key(whole.key.namespace, None), whole.settings, [text], text, self._parked)
        self._parked = None
        found.learned = len(text)
        return found

    async def tokens(self) -> AsyncGenerator[list[Token], None]:
        """Yield the tokens as they come, in groups, once the text was read."""
        try:
            await self._given.wait()
            try:
                async with contextlib.aclosing(super().tokens()) as groups:
                    async for fresh in groups:
                        yield fresh
            finally:
                if self.conversation is not None:
                    self.conversation.closed = True
        finally:
            self._free()
