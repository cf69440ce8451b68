"""One conversation, document or stream: a model's context of fixed size, and a memory of what has left it.

``AtlasSession`` feeds text to an engine, lets the memory read along, and generates from the blended prediction. What
it asks of the engine it states as steps (``Step``), which it carries out itself or leaves to what
decodes several sessions together (batch.py).
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.episodes import Kind
from atlas_kit.errors import ClosedError, InvalidParamError, ModelError
from atlas_kit.llama import arguments, memory_choice, session_states
from atlas_kit.llama.choosing import Chosen, choose, choose_blended
from atlas_kit.llama.engine import COPIED, Engine, Feed, Outputs
from atlas_kit.llama.interrupts import interrupts_put_off
from atlas_kit.llama.last_output import LastOutput
from atlas_kit.llama.loading import claim, engine_of
from atlas_kit.llama.placing import placing
from atlas_kit.llama.sampling import Sampler, Sampling
from atlas_kit.llama.steps import (
    Expected,
    Fed,
    Finish,
    Later,
    Listener,
    Observer,
    Stats,
    Step,
    Token,
    Work,
    log_softmax,
    scores,
)
from atlas_kit.llama.text_stream import TextStream
from atlas_kit.persistence.session_file import about_session, read_session_state, write_session_state
from atlas_kit.persistence.session_state import SessionState
from atlas_kit.settings.atlas_settings import AtlasSettings

if TYPE_CHECKING:
    from atlas_kit.episodes import Episodes
    from atlas_kit.llama.asking import Answer
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.token_memory import TokenMemory

T = TypeVar("T")

ROLLOVERS = ("auto", "shift", "refeed")
DEVICES = {"cpu": "numpy", "cuda": "cupy"}


class AtlasSession:
    """A language model with a memory.

    Sessions that share an engine may be used in different threads, which take turns; one session belongs to one thread.

    Parameters
    ----------
    model
        The path of a GGUF file, or an engine that is open already (then it stays open).
    memory
        None or False: none. True: one with the settings that the model carries, if it is ATLAS-native, or the
        defaults. ``"auto"``: what ``recommend()`` says (``atlas_kit.settings.recommend``). ``AtlasSettings``:
        those. A path: the memory in that ``.atlas`` file.
    window, blend_ratio, settings
        Single settings that differ: ``window`` is ``window_size``; any name of ``AtlasSettings``.
    device
        Where the memory computes: ``"cpu"``, or ``"cuda"`` with CuPy. llama.cpp's own place is ``n_gpu_layers``.
    rollover
        What happens when the context is full: ``"shift"`` drops its older half and moves the rest down, ``"refeed"``
        reads the newer half again, ``"auto"`` shifts where the model can.
    learn
        False: the memory answers, and nothing changes it.
    engine_options
        For loading: ``n_ctx``, ``n_gpu_layers``, ``n_threads`` and the others of ``LlamaEngine``.

    Raises
    ------
    AtlasError
        The model or the memory cannot be loaded, or a setting is out of range.

    Examples
    --------
    >>> from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
    >>> with AtlasSession(FakeEngine(), memory=True) as session:
    ...     fed = session.feed("to be or not to be, " * 20)
    ...     text = "".join(map(str, session.generate(max_tokens=12, sampling=Sampling(temperature=0))))
    >>> text
    'to be or not'
    """

    def __init__(
        self,
        model: str | os.PathLike[str] | Engine,
        memory: bool | str | os.PathLike[str] | AtlasSettings | None = True,
        window: int | None = None,
        blend_ratio: float | str | None = None,
        *,
        device: str = "cpu",
        rollover: str = "auto",
        learn: bool = True,
        engine_options: dict[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        if device not in tuple(DEVICES):
            raise InvalidParamError(f"{device!r} is not a device", key="device", hint="Choose cpu or cuda.")
        if rollover not in ROLLOVERS:
            raise InvalidParamError(
                f"{rollover!r} is not a rollover mode", key="rollover", hint=f"Choose {', '.join(ROLLOVERS)}."
            )
        self.backend, self._rollover, self.learns = DEVICES[device], rollover, learn
        self._owns = isinstance(model, (str, os.PathLike))
        self.engine = engine_of(model, engine_options or {})
        self.memory: TokenMemory | None = None
        self.sequence, self.keeps = -1, 0  # tokens at the beginning of a context that stay when it is full
        self._closed = False
        try:
            self.sequence = claim(self.engine)
            for name, value in (("window_size", window), ("blend_ratio", blend_ratio)):
                if value is not None:
                    settings[name] = value
            self._start(memory, settings)
        except BaseException:
            self.close()
            raise

    def _start(self, memory: Any, changes: dict[str, Any]) -> None:
        self._context: list[int] = []  # the tokens in the engine's context; of an endless one, the last
        self._position = 0  # of the next token
        self._last_output: LastOutput | None = None
        self._owed: list[int] = []  # tokens that the memory knows and the context lacks
        self._said: Token | None = None  # generated, and waiting for its decode
        self._listen: Listener | None = None
        self._expected: Expected | None = None
        #: Looks at each step of the memory before the next one, on the thread that reads.
        self.observer: Observer | None = None
        #: Tokens that are decoded at a time; a pool or a scheduler makes it smaller.
        self.feed_limit = self.engine.n_batch
        #: Steps of the memory that fill while text is generated wait for ``learn_due``, or for what needs them.
        self.puts_off = False
        #: What is learned of a token that was said waits, too: for its decode, beside which there is time for it.
        self.learns_beside = False
        self._later: Later | None = None
        self._aside: TokenMemory | None = None  # the memory, while something is read on the side
        self.blends = True  # what the memory expects counts in what is said
        #: What was read and said, to be found again; None: nobody keeps it.
        self.episodes: Episodes | None = None
        self.talked: list[tuple[str, str]] = []  # what was asked and answered since the context was emptied
        self._open_episode: tuple[Kind, str] | None = None
        self._counts = Stats()
        chosen, path = memory_choice.choose(self.engine, memory, changes)
        if path is not None:
            self.load(path, context=False)
            assert self.memory is not None
            self.memory.retune(changes if chosen is None else chosen.to_json())
        elif chosen is not None:
            self.memory = session_states.new_memory(self.engine, chosen, self.backend)
            self.episodes = session_states.new_episodes(self.engine, chosen)

    # --- reading -------------------------------------------------------------------------------------------

    def feed(
        self,
        text: str | Sequence[int],
        *,
        special: bool = False,
        score: bool = True,
        progress: Callable[[Fed], None] | None = None,
        kind: Kind | None = Kind.DOCUMENT,
        source: str = "",
    ) -> Fed:
        """Read a text (or tokens): it enters the context, and the memory learns it.

        Parameters
        ----------
        special
            Names of control tokens in the text (``<|end|>``) become those tokens.
        score
            Also report what the tokens' probabilities were when there is no memory, which then costs logits for
            all of them.
        progress
            Called after each batch with what it gave.
        kind, source
            As what it is kept in the episodes, to be found again: a document, of that name, or a turn. What is fed
            next as the same goes on with it. None: it is not kept.

        Raises
        ------
        ModelError
            When llama.cpp fails.
        """
        tokens = self.tokens_of(text, special)
        started = time.perf_counter()
        parts: list[Array] = []

        def told(part: Array) -> None:
            parts.append(part)
            if progress is not None:
                progress(Fed(len(part), time.perf_counter() - started, part))

        if kind is not None:
            self._begin_episode(kind, source)
        self.run(self.reading(tokens, score=score, told=told, stores=kind is not None))
        fed = Fed(
            len(tokens), time.perf_counter() - started, np.concatenate(parts) if parts else np.empty((0, 2))
        )
        self._counts.seconds_reading += fed.seconds
        return fed

    def perplexity(self, text: str | Sequence[int]) -> Fed:
        """Read a text and return what it was to model and memory; the same as ``feed``, by the name for it."""
        return self.feed(text)

    def reading(
        self,
        tokens: Sequence[int],
        *,
        score: bool = True,
        told: Callable[[Array], None] | None = None,
        listen: Listener | None = None,
        expected: Expected | None = None,
        progress: Callable[[int], None] | None = None,
        stores: bool = False,
    ) -> Work[None]:
        """Read tokens in steps.

        ``told`` gets the log-probabilities (n, 2) of those that could be scored. ``listen`` gets what a memory would:
        hidden (n, n_embd), logits (n, n_vocab), the tokens (n,) and those that followed (n,). ``expected`` gets, for
        each token that could be scored, its number and the log-probabilities (n_vocab,) of all that could have come.
        ``progress`` gets after each step how many tokens are read. ``stores``: the episode that is open goes on with
        them.
        """
        if len(self._owed) != 1 or not tokens:  # a single one is read together with what follows it
            yield from self.catching_up()
        at, self._listen, self._expected = 0, listen, expected
        remembers = self.memory is not None or listen is not None
        try:
            while at < len(tokens):
                yield from self._make_room()
                room = min(self.feed_limit, self.engine.n_batch)
                if not self.engine.info.recurrent:
                    room = min(room, self.engine.n_ctx - self._position)
                if self._owed and room == 1:
                    yield from self.catching_up()
                    continue
                owed = len(self._owed)
                fresh = list(tokens[at : at + room - owed])
                at, part = at + len(fresh), [*self._owed, *fresh]
                every = remembers or score
                count = len(part) if every else (1 if at == len(tokens) else 0)
                outputs = yield from self._decoded(part, count)
                self._owed = []
                self._counts.tokens_read += len(fresh)
                try:
                    logprob = self._take(part, outputs, every)
                except BaseException:
                    # read, but what comes next would be learned as following an older token
                    self.forget_context()
                    raise
                if stores:
                    self._store(fresh)
                if told is not None and len(logprob):
                    told(logprob)
                if progress is not None:
                    progress(at)
        finally:
            self._listen = self._expected = None

    def remember(self, kind: Kind, text: str | Sequence[int], source: str = "") -> None:
        """Keep a turn or a document in the episodes, where there are any, without reading it.

        Nothing is kept of control tokens, nor by a session that does not learn.
        """
        self._open_episode = None
        self._begin_episode(kind, source)
        self._store(self.engine.tokenize(text) if isinstance(text, str) else text)

    def _begin_episode(self, kind: Kind, source: str) -> None:
        """Begin an episode, unless the last one was the same."""
        if self.episodes is not None and self.learns and self._open_episode != (kind, source):
            self.episodes.begin(kind, source)
            self._open_episode = kind, source

    def _store(self, tokens: Sequence[int]) -> None:
        if self.episodes is not None and self.learns:
            self.episodes.append([token for token in tokens if self.engine.piece(token)])

    def _decoded(self, tokens: list[int], outputs: int, *, hidden: bool | None = None) -> Work[Outputs]:
        """Append tokens to the context; ``hidden``: with their states, where None asks whether anybody needs them."""
        self._require_open()
        if hidden is None:
            hidden = self.memory is not None or self._listen is not None
        feed = Feed(self.sequence, tokens, self._position, outputs)
        found = yield Step(feed, hidden, self._said, self._later)
        self._position += len(tokens)
        self._context.extend(tokens)
        del self._context[: -self.engine.n_ctx]
        return found

    def _require_open(self) -> None:
        if self._closed:  # its sequence may be another session's by now
            raise ClosedError("the session is closed", path=self.engine.info.path)

    def _take(self, part: list[int], outputs: Outputs, every: bool) -> Array:
        """Learn from the outputs of some tokens that followed each other, the last one's still open."""
        if not every:
            if len(outputs.logits):
                self._last_output = self._output_at(
                    outputs, outputs.index + len(outputs.logits) - 1, part[-1]
                )
            return np.empty((0, 2))
        found = []
        if self._last_output is not None:
            found.append(self._settle(part[0]))
        hidden = outputs.hidden
        following = np.asarray(part[1:], np.int64)
        if self._listen is not None and hidden is not None:
            self._listen(hidden[:-1], outputs.logits[:-1], np.asarray(part[:-1], np.int64), following)
            found.append(np.empty((0, 2)))
        elif self.memory is None:
            found.append(self._scored(outputs.logits[:-1], following))
        else:
            assert hidden is not None
            found.append(self._learn_rows(hidden, outputs.logits, np.asarray(part), following))
        last = outputs.index + len(part) - 1
        self._last_output = self._output_at(outputs, last, part[-1])
        logprob: Array = np.concatenate(found)
        self._count(logprob)
        return logprob

    def _output_at(self, outputs: Outputs, index: int, token: int) -> LastOutput:
        """Keep the last row of some outputs: copies, because the engine's next decode overwrites them.

        Who decodes for several (batch.py) lets a text go on before that; without a memory, which keeps what it reads,
        it is copied when the text ends.
        """
        hidden = None if outputs.hidden is None else outputs.hidden[-1:]
        views = outputs.index != COPIED
        found = LastOutput(
            hidden, outputs.logits[-1:], (index, self.engine.decodes) if views else None, token
        )
        if len(outputs.logits) > 1 or (
            views and (self._said is None or not self.puts_off or self.memory is not None)
        ):
            found.keep()
        return found

    def _learn_rows(self, hidden: Array, logits: Array, tokens: Array, following: Array) -> Array:
        """Read and learn rows whose next tokens are known; return their log-probabilities (n, 2)."""
        assert self.memory is not None
        steps = self.memory.follow(hidden, logits, tokens, following, learn=self.learns)
        return np.concatenate([np.empty((0, 2)), *(self._learned(*step) for step in steps)])

    def _learned(self, reading: Reading, tokens: Array, p: Array) -> Array:
        """Return the log-probabilities (n, 2) of tokens that came, and tell who looks on."""
        if self.observer is not None:
            self.observer(reading, tokens, p)
        if self._expected is not None:
            for row, token in enumerate(tokens):
                self._expected(int(token), reading.log_probabilities(row))
        return reading.log_gave(p)

    def _scored(self, logits: Array, tokens: Array) -> Array:
        """Return the log-probabilities (n, 2) of tokens that came without a memory, and tell who looks on."""
        if self._expected is not None:
            for row, token in enumerate(tokens):
                self._expected(int(token), log_softmax(logits[row]))
        return scores(logits, tokens)

    def _settle(self, token: int) -> Array:
        """Close the open output: this token came. Returns its log-probabilities (1, 2)."""
        was, self._last_output = self._last_output, None
        assert was is not None
        return self._settled(was, token)

    def _settled(self, was: LastOutput, token: int) -> Array:
        """Return the log-probabilities (1, 2) of a token that came behind an output, and learn it."""
        if self._listen is not None and was.hidden is not None:
            self._listen(was.hidden, was.logits, np.asarray([was.token]), np.asarray([token]))
            return np.empty((0, 2))
        if self.memory is None:
            return self._scored(was.logits.reshape(1, -1), np.asarray([token]))
        reading, came = self._reading_of(was), np.asarray([token])
        if not self.learns:
            return self._learned(reading, came, self.memory.watch(reading, came))
        return self._learned(reading, came, self.memory.learn(reading, came, put_off=self.puts_off))

    @property
    def due(self) -> bool:
        """Whether a step of the memory is full and was put off."""
        return self.memory is not None and self.memory.due

    @property
    def owes(self) -> int:
        """How many tokens the context lacks that were read or said: they are read before whatever comes next."""
        return len(self._owed)

    def learn_due(self) -> None:
        """Take the step of the memory that was put off, if one was."""
        if self.memory is not None:
            self.memory.commit()

    def _reading_of(self, was: LastOutput) -> Reading:
        if was.reading is None:
            assert self.memory is not None
            assert was.hidden is not None
            was.reading = self.memory.read(was.hidden, was.logits, np.asarray([was.token]))
        return was.reading

    def _count(self, logprob: Array) -> None:
        for column, total in enumerate((logprob[0] if len(logprob) == 1 else logprob.sum(axis=0)).tolist()):
            self._counts.losses[column] -= total
        self._counts.scored += len(logprob)

    # --- context -------------------------------------------------------------------------------------------

    def _kept(self) -> int:
        """Return how many tokens at the beginning of the context stay when it is full."""
        begin = self.engine.begin
        least = len(begin) if tuple(self._context[: len(begin)]) == begin else 0
        return max(least, min(self.keeps, len(self._context), self.engine.n_ctx - 4))

    def _make_room(self) -> Work[None]:
        """Drop the older half of the context if it is full, but for its beginning (``keeps``)."""
        if self._position < self.engine.n_ctx or self.engine.info.recurrent:
            return
        keep, drop = self._kept(), self.room
        self._counts.rollovers += 1
        if self._rollover == "shift" or (self._rollover == "auto" and self.engine.can_shift):
            self.engine.shift(self.sequence, keep, drop)
            del self._context[keep : keep + drop]
            self._position -= drop
            return
        kept = self._context[:keep] + self._context[keep + drop :]
        self.engine.forget(self.sequence)
        self._context, self._position = [], 0
        self._owed[:0] = kept
        for at in range(0, len(kept), self.engine.n_batch):
            part = kept[at : at + self.engine.n_batch]
            yield from self._decoded(part, 0, hidden=False)
            del self._owed[: len(part)]

    def catching_up(self) -> Work[None]:
        """Read, in steps, what the memory has learned and the context lacks since work was cancelled."""
        while self._owed:
            yield from self._make_room()
            room = self.engine.n_batch
            if not self.engine.info.recurrent:
                room = min(room, self.engine.n_ctx - self._position)
            part = self._owed[:room]
            last = len(part) == len(self._owed)
            outputs = yield from self._decoded(part, int(last))
            del self._owed[: len(part)]
            if last:
                self._last_output = self._output_at(outputs, outputs.index, part[-1])

    def placing(self, history: Sequence[int], tokens: Sequence[int]) -> Work[None]:
        """Let the context end behind ``tokens``, all of which the memory knows, in steps: nothing is learned.

        What the context has of them stays, and what lies behind goes; the memory does not unlearn it.

        Parameters
        ----------
        history
            What the context was read from: it holds the end of that.
        tokens
            What it shall have been read from.
        """
        return placing(self, history, tokens)

    def run(self, work: Work[T]) -> T:
        """Carry out work alone: every step is a decode of its own."""
        step: Step | None = None
        try:
            while True:
                step = self._next(work, step)
        except StopIteration as done:
            result: T = done.value
            return result

    def _next(self, work: Generator[Any, Any, Any], item: Step | Token | None) -> Any:
        """Do what some work asked for, and return what it asks for next.

        Threads take turns: outputs are views, which the engine's next decode overwrites.
        """
        with self.engine.lock, interrupts_put_off():
            return work.send(self._decode(item) if isinstance(item, Step) else None)

    def _decode(self, step: Step) -> Outputs:
        try:
            return self.engine.decode([step.feed], hidden=step.hidden)[0]
        except BaseException:
            self.forget_context()  # it may be half read; the memory is whole
            raise

    def forget_context(self) -> None:
        """Empty the model's context; the memory stays."""
        if self.sequence >= 0:
            self.engine.forget(self.sequence)
        self._context, self._position, self._last_output = [], 0, None
        self._owed, self.talked = [], []
        self._open_episode = None

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave no trace of what is read and generated within: nothing is learned, and the context comes back.

        Raises
        ------
        ModelError
            The engine does not take its own context back.
        """
        self._require_open()
        self.run(self.catching_up())
        state = self._context[:], self._position, self.memory, self.learns, self._counts
        was, saved = self._last_output, self.engine.save_sequence(self.sequence)
        watched = None if self.memory is None else self.memory.watched
        observer, self.observer = self.observer, None
        self.learns, self._counts = False, Stats()
        try:
            yield
        finally:
            self._context, self._position, self.memory, self.learns, self._counts = state
            self._last_output, self.observer = was, observer
            self._owed = []  # what was cancelled within; all else was caught up above
            if self.memory is not None and watched is not None:
                self.memory.watched = watched
            self.engine.forget(self.sequence)
            if self._context and not self.engine.load_sequence(self.sequence, saved):
                self.forget_context()
                raise ModelError("the context cannot be restored", path=self.engine.info.path)

    def reset(self) -> None:
        """Empty the context and the memory."""
        self.forget_context()
        if self.memory is not None:
            self.memory.reset()
            self.episodes = session_states.new_episodes(self.engine, self.memory.settings)
        self._counts = Stats()

    # --- generating ----------------------------------------------------------------------------------------

    def generate(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        special: bool = False,
    ) -> Iterator[Token]:
        """Read a prompt, then yield token after token.

        Parameters
        ----------
        prompt
            Read first; None goes on from what was read before.
        max_tokens
            None: until the model ends its answer.
        stop
            Strings before which the text ends; they are not yielded.
        sampling
            How tokens are chosen: temperature, seed, grammar and the others.
        special
            As for ``feed``.

        Raises
        ------
        InvalidParamError
            When there is nothing to go on from.
        """
        work = self.generating(
            prompt, max_tokens=max_tokens, stop=stop, sampling=sampling, special=special, stores=True
        )
        item: Step | Token | None = None
        with contextlib.closing(work), contextlib.suppress(StopIteration):
            while True:
                item = self._next(work, item)
                if isinstance(item, Token):
                    yield item

    def generating(
        self,
        prompt: str | Sequence[int] | None = None,
        *,
        max_tokens: int | None = None,
        stop: str | Sequence[str] = (),
        sampling: Sampling | None = None,
        special: bool = False,
        sampler: Sampler | None = None,
        top_logprobs: int | None = None,
        stores: bool = False,
        leaves_last: bool = False,
    ) -> Generator[Step | Token, Any, Finish]:
        """Do ``generate`` in steps: yields a step, and is sent its outputs, or a token; returns why it ended.

        ``sampler`` takes the place of ``sampling``, and is closed at the end. ``top_logprobs``: tokens tell their
        log-probabilities, and those of so many of the most likely tokens. ``stores``: the prompt is kept in the
        episodes as what a user said, and the rest as what was answered. ``leaves_last``: the last of ``max_tokens``
        tokens is decoded with what follows it (``owes``), which may be nothing.
        """
        max_tokens = arguments.count_of("max_tokens", max_tokens)
        top_logprobs = arguments.count_of("top_logprobs", top_logprobs)
        text = TextStream(arguments.stops_of(stop))
        # first, so that a grammar that cannot be followed costs no reading
        sampler = self.engine.sampler(arguments.sampling_of(sampling)) if sampler is None else sampler
        count, reason, said_so_far = 0, "length", list[int]()
        started = time.perf_counter()
        try:
            yield from self.catching_up()
            if prompt is not None and (tokens := self.tokens_of(prompt, special)):
                if stores:
                    self._begin_episode(Kind.USER, "")
                yield from self.reading(tokens, score=False, stores=stores)
            if self._last_output is None:
                raise InvalidParamError("there is no text to continue", key="prompt", hint="Give a prompt.")
            started = time.perf_counter()
            while max_tokens is None or count < max_tokens:
                token, logprob, top = self._choose(sampler, top_logprobs)
                if self.engine.is_end(token):
                    reason = "stop"
                    break
                count += 1
                said_so_far.append(token)
                said = Token(token, text.add(self.engine.piece(token)), logprob, top)
                if text.stopped:
                    yield said
                    reason = "stop"
                    break
                yield from self._advance(said, decoded=not (leaves_last and count == max_tokens))
                yield said
            if not text.stopped and (rest := text.rest()):
                yield Token(-1, rest, None)
            return Finish(reason, text.found)
        finally:
            sampler.close()
            if stores and said_so_far:
                self._begin_episode(Kind.ASSISTANT, "")
                self._store(said_so_far)
            if self._last_output is not None and self.puts_off:
                self._last_output.keep()
            self._counts.tokens_generated += count
            self._counts.seconds_generating += time.perf_counter() - started if count else 0.0

    def _choose(self, sampler: Sampler, most: int | None) -> Chosen:
        self._require_open()
        was = self._last_output
        assert was is not None
        if self.memory is not None and self.blends:
            return choose_blended(sampler, self._reading_of(was), most)
        index, decode = was.place or (-1, -1)
        return choose(sampler, was.logits[0], index if decode == self.engine.decodes else None, most)

    def _advance(self, said: Token, decoded: bool = True) -> Generator[Step, Outputs, None]:
        """Append a generated token; where this is cut short, or it is not ``decoded``, the context still owes it."""
        was, self._last_output = self._last_output, None
        if (memory := self.memory) is not None:
            assert was is not None
            later = Later(lambda: self._count(self._settled(was, said.id)))
            # whoever looks on does so in turn, and a step that gets full is known before the batch is made
            if decoded and self.learns_beside and memory.room > 1 and self._unwatched:
                self._later = later
            else:
                later.require()
        self._owed = [said.id]
        if not decoded:
            return
        self._said = said
        try:
            yield from self.catching_up()
        finally:
            self._said, left, self._later = None, self._later, None
            if left is not None:
                left.require()

    @property
    def _unwatched(self) -> bool:
        """Whether nobody is told of each token that is learned."""
        return self.observer is None and self._listen is None and self._expected is None

    def ask(self, question: str, **options: Any) -> Answer:
        """Answer a question from what was read and said, however long ago (``atlas_kit.llama.asking``).

        What helps with it is found in the episodes and put in front of it in a branch; question and answer then enter
        the conversation without that.

        Parameters
        ----------
        options
            ``recall``: how the memory is asked, a ``Recall``. ``keep=False``: leave no trace, so that each of several
            questions is asked alone. ``max_tokens``, ``stop``, ``sampling`` (greedy), ``system``: as for ``generate``
            and the chat template. ``told``: is called with each token as it comes.

        Raises
        ------
        InvalidParamError
            When the question is empty or an option is out of range.
        ModelError
            When llama.cpp fails.
        """
        from atlas_kit.llama.asking import ask

        if (found := ask(self, question, **options)) is None:
            raise ClosedError("the question was given up before anything was answered")
        return found

    # --- saving ------------------------------------------------------------------------------------------

    def state(self, *, context: bool = True) -> SessionState:
        """Return what this session knows now, as a value that stays as it is while the session goes on.

        The memory's arrays are not copied: the next step copies those that it would write into.

        Parameters
        ----------
        context
            Also what the model has in its context, with llama.cpp's own copy of it.

        Raises
        ------
        InvalidParamError
            When this session has no memory.
        """
        self._require_open()
        self.run(self.catching_up())
        return session_states.state_of(self, context=context)

    def restore(self, state: SessionState, *, context: bool = True, force: bool = False) -> None:
        """Go on from a state, this session's or another's of the same model.

        Raises
        ------
        WrongModelError
            When it is another model's, unless ``force``.
        InvalidParamError
            When it does not fit; the session is then as it was.
        """
        self._require_open()
        session_states.require_state(state)
        if not force:
            state.require_model(self.engine.info.identity)
        memory = session_states.token_memory(self.engine, state, self.backend)
        episodes = session_states.episodes_of(self.engine, state, memory.settings)
        # another model's cache is of no use, though it may have the same shape
        own = state.identity == self.engine.info.identity
        self.adopt(
            memory,
            state.tokens if context else (),
            state.position,
            dict(state.output) if own else {},
            state.context_for(self.engine.info.identity, self.engine.info.build),
        )
        self.episodes = episodes

    def save(self, path: str | os.PathLike[str], *, context: bool = True, **options: Any) -> Any:
        """Write the memory into a ``.atlas`` file; other entries of the file stay, and it is replaced whole.

        Parameters
        ----------
        context
            Also keep what the model had in its context, so that a session that loads the file goes on with the very
            same tokens. It takes the size of llama.cpp's cache.
        options
            Of ``atlas_kit.save_memory``: ``version``, ``codec``, ``dtype``, ``backup``, ``passphrase`` and others.

        Raises
        ------
        InvalidParamError
            When this session has no memory.
        WrongModelError
            When the file holds the memory of another model, unless ``force=True``.
        """
        if self.memory is None:
            self._require_open()
            raise InvalidParamError("this session has no memory to save", path=path, hint="Try memory=True.")
        return write_session_state(path, self.state(context=context), **options)

    def load(
        self, path: str | os.PathLike[str], *, context: bool = True, force: bool = False, **options: Any
    ) -> None:
        """Go on with the memory in a ``.atlas`` file, and, where it was kept, with the context.

        Raises
        ------
        WrongModelError
            When it is another model's, unless ``force``.
        AtlasError
            When the file is damaged or does not fit; the session is then as it was.
        """
        self._require_open()
        state = read_session_state(
            path, context=context, expect_model=self.engine.info.identity, force=force, backend=self.backend,
            **options,
        )  # fmt: skip
        with about_session(os.fspath(path)):
            self.restore(state, force=True)  # as far as it is forced, it was above

    @property
    def own_memory(self) -> TokenMemory | None:
        """The memory, also while something is read on the side without it; other threads may look, too."""
        return self._aside or self.memory

    @property
    def position(self) -> int:
        """Where the next token will stand in the model's context."""
        return self._position

    @property
    def room(self) -> int:
        """Tokens until the context is full; where it is, how many are dropped then; 0: it has no end."""
        half = max(1, (self.engine.n_ctx - self._kept()) // 2)
        return 0 if self.engine.info.recurrent else max(0, self.engine.n_ctx - self._position) or half

    @property
    def context_tokens(self) -> tuple[int, ...]:
        """The tokens in the model's context."""
        return tuple(self._context)

    def open_output(self) -> dict[str, Array]:
        """Return the last token's output, from which the next is predicted: state and logits."""
        width = None if self.memory is None else self.memory.width
        return {} if self._last_output is None else self._last_output.arrays(width)

    def adopt(
        self,
        memory: TokenMemory,
        tokens: Sequence[int],
        position: int,
        output: dict[str, Array],
        context: bytes | None,
    ) -> None:
        """Take over a memory and, if there are ``tokens``, the context that it was saved with.

        The engine's own bytes bring the context back as it was. Where they do not fit (another version of llama.cpp,
        another context size), the tokens are read again; where that fails, the session is as it was.
        """
        session_states.adopt(self, memory, tokens, position, output, context)

    # --- the rest ------------------------------------------------------------------------------------------

    @property
    def stats(self) -> dict[str, Any]:
        """Counts and sizes as JSON-ready data; losses in nats per token."""
        return session_states.stats_of(self)

    def tokens_of(self, text: str | Sequence[int], special: bool = False) -> list[int]:
        """Return the tokens of a text, behind a begin token where the context is empty."""
        if isinstance(text, str):
            tokens = self.engine.tokenize(text, special=special)
        else:
            tokens = arguments.tokens_of(text, self.engine.info.n_vocab)
        if not self._context and tokens and tuple(tokens[: len(self.engine.begin)]) != self.engine.begin:
            tokens = [*self.engine.begin, *tokens]
        return tokens

    @property
    def tokens_read(self) -> int:
        """How many tokens were read, those of a text that was cut short included."""
        return self._counts.tokens_read

    @property
    def counts(self) -> Stats:
        """A copy of what was counted so far; other threads may look, too."""
        return dataclasses.replace(self._counts, losses=list(self._counts.losses))

    @property
    def closed(self) -> bool:
        """Whether ``close`` was called."""
        return self._closed

    def close(self) -> None:
        """Give the sequence back, and close the model if this session opened it; closing twice is fine."""
        if self._closed:
            return
        self._closed = True
        if self.sequence >= 0:
            self.engine.forget(self.sequence)
            self.engine.taken.discard(self.sequence)
            self.sequence = -1
        if self._owns:
            self.engine.close()

    def __enter__(self) -> AtlasSession:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
