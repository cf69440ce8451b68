"""``MemoryLab``: a memory that learns while a model reads, live, with everything that one would like to see of it.

Learning runs in one background thread (``live.Runner``); what it shows is collected by ``llama/trace.py`` and sent by
``lab/view.py``. Here are the controls, and what they do to the session.
"""

from __future__ import annotations

import math
import os
import re
import sys
import time
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ipywidgets
import numpy as np

from atlas_kit import heap
from atlas_kit.episodes import Episodes, Kind
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import memory_choice
from atlas_kit.llama.asking import Answer, asking
from atlas_kit.llama.recalling import Recall, recall_of
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.session_states import new_memory
from atlas_kit.llama.snapshots import Snapshots
from atlas_kit.llama.trace import Trace, follow
from atlas_kit.llama.trace_frames import GivenWords, Words
from atlas_kit.memory import MemoryState
from atlas_kit.persistence.session_file import session_state_bytes, write_session_state
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.widgets import ending
from atlas_kit.widgets.base import Shown, is_watched
from atlas_kit.widgets.lab import share
from atlas_kit.widgets.lab import static_view as static
from atlas_kit.widgets.lab.controls import Controls
from atlas_kit.widgets.lab.history import History
from atlas_kit.widgets.lab.matrix_pane import MatrixPane
from atlas_kit.widgets.lab.past import Past
from atlas_kit.widgets.lab.read_at import ReadAt
from atlas_kit.widgets.lab.recall_pane import RecallPane, watched
from atlas_kit.widgets.lab.recollection import Recollection
from atlas_kit.widgets.lab.shared_model import Loan
from atlas_kit.widgets.lab.view import LabView
from atlas_kit.widgets.live import STOP_SECONDS, Runner, Turns, sentence
from atlas_kit.widgets.remote import is_address

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.steps import Token


#: Settings that act at once, because they leave the arrays as they are.
LIVE = ("learning_rate", "blend_ratio", "use_muon")
#: Seconds that a step of the run may take, because Stop waits for it; and its tokens at most. Fewer than 64 at a time
#: cost llama.cpp twice the time, more than 256 save nothing.
STEP_SECONDS, MOST_TOKENS = 0.45, 256

#: Characters that are cut into tokens before anybody asks what goes on.
SOON = 500_000

#: Runs that are kept for comparison at most, the tokens that one must have, and the points of its curve.
MOST_RUNS, LEAST_RUN, POINTS = 5, 32, 240
#: A string that names a file and is no text: one word with an ending.
_FILE_NAME = re.compile(r"(?=.{3,1024}$)[^\s<>\"|?*]*[^\s<>\"|?*./\\]\.[A-Za-z][A-Za-z0-9]{0,5}")

#: The lab that reads with an engine, by the engine's id: it is alive as long as its lab.
_LABS: weakref.WeakValueDictionary[int, MemoryLab] = weakref.WeakValueDictionary()


class MemoryLab(Shown, ipywidgets.VBox):  # type: ignore[misc]
    """A live memory beside a model.

    Parameters
    ----------
    model
        An ``AtlasSession`` with a memory; or a path of a GGUF file or an engine, for which one is opened. Of a
        file there is one engine in a process, and one lab reads with it: the newest. The address of a running server
        (``"http://127.0.0.1:8080"``) gives an ``AttachedLab``, which looks on; it takes ``session`` and ``key``.
    text
        What it reads: a string, or a file as a ``Path``; a string that looks like a file's name, such as
        ``"docs/guide.md"``, is one.
    documents
        Texts to choose from: paths, or a mapping of names to strings or paths.
    height
        Of the matrix, in CSS pixels.
    snapshot_every
        Tokens from one snapshot to the next; the distance doubles whenever there are too many.
    options
        For ``AtlasSession``, where one is opened: ``window``, ``blend_ratio``, any name of ``AtlasSettings``. A file
        that asks for no settings of its own gets those that ``recommend`` says; ``memory=True`` takes the defaults.

    Raises
    ------
    InvalidParamError
        The session has no memory.
    AtlasError
        The model or a document cannot be read.

    Examples
    --------
    >>> from atlas_kit.llama import FakeEngine
    >>> lab = MemoryLab(FakeEngine(), "to be or not to be, " * 20)
    >>> lab.run()
    >>> without, with_memory = lab.history.mean
    >>> lab.state, len(lab.history.tokens), with_memory < without
    ('done', 400, True)
    >>> lab.close()
    """

    def __new__(cls, model: Any = None, *arguments: Any, **options: Any) -> Any:
        """Return a lab; for the address of a server one that looks on."""
        if is_address(model):
            from atlas_kit.widgets.lab.attached import AttachedLab

            return AttachedLab(model, *arguments, **options)
        return super().__new__(cls)

    def __init__(
        self,
        model: AtlasSession | Engine | str | os.PathLike[str],
        text: str | os.PathLike[str] = "",
        *,
        documents: Sequence[str | os.PathLike[str]] | Mapping[str, Any] = (),
        height: int = 220,
        snapshot_every: int = 256,
        **options: Any,
    ) -> None:
        content, source = _given(text)
        self._owns = not isinstance(model, AtlasSession)
        self._loan: Loan | None = None
        self._past: Past | None = None  # what is still known when it is closed, or had to make room
        if isinstance(model, AtlasSession):
            if model.memory is None:
                raise _no_memory()
            displaced, self.session = _displace(model.engine), model
        else:
            displaced, self.session = self._open(model, options)
        assert self.session.memory is not None
        self._wanted: AtlasSettings = self.session.memory.settings
        self._snapshots = Snapshots(snapshot_every)
        self._text, self._at = "", 0
        self._source, self._typed = "", 0  # what is read, and how many texts had no name
        self._kept, self._end = 0, 0  # tokens of it that can be found again; where the episodes ended then
        self._tokens: list[int] = []
        self._busy = ""  # what takes long now
        #: The text that was cut last, and its tokens: one that is read again is not cut again.
        self._cut_of, self._all, self._begins = "", list[int](), False
        self._portion, self._goal = MOST_TOKENS // 4, 0.0
        self._cell, self._displayed = ending.cell(), False
        self._waited_for, self._unseen = (
            0,
            False,
        )  # runs that somebody waits for; paused because nobody looked
        self._rates: deque[tuple[float, int]] = deque(maxlen=16)
        self._build(documents, height)
        self._begin()
        super().__init__([self.controls, self.view, self.recalled, self.matrices])
        self.add_class("atlas-memory-lab")
        self.recalled.add_class("atlas-lab-recall")
        self.matrices.add_class("atlas-lab-matrix")
        self._take(content, source)
        _LABS[id(self.session.engine)] = self
        ending.replace(self)
        if displaced:
            self._tell("An earlier MemoryLab on this model was stopped: two cannot read at the same time.")

    def _open(self, model: Any, options: dict[str, Any]) -> tuple[bool, AtlasSession]:
        """Open a session; also tell whether another lab had to make room for it."""
        displaced = False

        def clear(engine: Engine) -> None:
            nonlocal displaced
            displaced = _displace(engine, for_good=True)

        if isinstance(model, (str, os.PathLike)):
            # llama.cpp leaves one processor to the page, or both wait for each other
            free = max(1, len(os.sched_getaffinity(0)) - 1) if hasattr(os, "sched_getaffinity") else None
            self._loan = Loan(
                model, {"n_threads": free, **(options.pop("engine_options", None) or {})}, clear
            )
            # whoever drops the last reference to a lab gives its model back
            self._returned = weakref.finalize(self, self._loan.give_back)
            self._returned.atexit = False
        try:
            engine = model if self._loan is None else self._loan.engine
            options = {"memory": True if self._loan is None else _recommended(engine), **options}
            _check(engine, options)
            displaced = _displace(engine, for_good=self._loan is not None) or displaced
            session = AtlasSession(engine, **options)
        except BaseException:
            if self._loan is not None:
                self._loan.give_back()
            raise
        return displaced, session

    def _build(self, documents: Any, height: int) -> None:
        lab = weakref.proxy(self)  # neither runner nor view must keep the lab alive
        self.view = LabView(lambda: lab.facts(), lambda seen: lab._looked_at(seen))
        self.runner = Runner(
            lambda: lab._read(), lambda: lab._frame(), lambda: lab._changed(), lambda: lab.view.ready
        )
        self.view.observe(lambda _: lab.state == "running" and lab._frame(), "tab")
        self.controls = Controls(_documents(documents), self._wanted, self._on)
        self.recalled = RecallPane(lambda *asked: lab._answer(*asked), lambda last: lab._show_passages(last))
        self.matrices = MatrixPane(
            self._state, self.view.measured, lambda error: self._tell(error=error), height
        )

    # --- for Python ------------------------------------------------------------------------------------------

    @property
    def state(self) -> str:
        """What the run does: idle, running, paused, done or failed."""
        return self.runner.state

    @property
    def error(self) -> str:
        """What went wrong last, as a sentence, or nothing."""
        return str(self.view.error)

    @property
    def lock(self) -> Turns:
        """Hold it (``with lab.lock:``) to use the session while a run goes on: it waits between two steps."""
        return self.runner.lock

    @property
    def settings(self) -> AtlasSettings:
        """The settings in force."""
        if self._past is not None and self._past.settings is not None:
            return self._past.settings
        assert self.session.memory is not None
        return self.session.memory.settings

    @property
    def trace(self) -> Trace:
        """What was read, and what was expected of it."""
        return self._trace if self._past is None else self._past.trace

    @property
    def words(self) -> Words | GivenWords:
        """How it is spelled."""
        return self._words if self._past is None else self._past.words

    @property
    def history(self) -> History:
        """What came, and its losses."""
        trace = self.trace
        count, loss = len(trace), trace.loss
        return History(trace.tokens[:count].copy(), loss[:count, 0].copy(), loss[:count, 1].copy())

    @property
    def snapshots(self) -> Snapshots:
        """The memory at several moments of the run, oldest first, the present last unless it runs."""
        return self._snapshots

    @property
    def text_to_read(self) -> str:
        """The text; a new one, or a file's path, is read from its beginning at the next start."""
        return self._text if self._past is None else self._past.text

    @text_to_read.setter
    def text_to_read(self, text: str | os.PathLike[str]) -> None:
        self._take(*_given(text))

    def _take(self, text: str, source: str) -> None:
        """Have a text to read; what is found of it again is said to be of ``source``."""
        self.stop()
        if not source and text:
            self._typed += 1
            source = "text" if self._typed == 1 else f"text {self._typed}"
        self._text, self._tokens, self._at = text, [], 0
        self._source, self._kept = source, 0
        self.controls.show_text(text)
        self.view.show()

    def start(self) -> None:
        """Read in the background: on from where it stands, or again from the beginning when it was done."""
        self._unseen = False
        self._prepare()
        self.runner.start()

    def pause(self) -> None:
        """Stop after the step in progress; ``start`` goes on."""
        self._unseen = False
        self.runner.pause()

    def stop(self) -> None:
        """Stop, and go back to the beginning of the text; the memory keeps what it has learned."""
        self._unseen = False
        self.runner.stop()
        self._at, self._tokens = 0, []

    def step(self, count: int = 1) -> None:
        """Read as many tokens as the memory learns at a time, ``count`` times, and wait for it."""
        self._step(count)
        self.runner.wait()

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until nothing runs; False if it still does after ``timeout`` seconds."""
        return self.runner.wait(timeout)

    def run(self, tokens: int | None = None) -> None:
        """Read the text to its end, or so many tokens of it, and return then; no page is needed.

        Raises
        ------
        AtlasError
            What the session raises.
        """
        self._prepare(tokens)
        self._waited_for += 1
        try:
            self.runner.run(self._enough)
        finally:
            self._waited_for -= 1

    def reset(self, *, keep: str = "") -> None:
        """Stop and forget everything: memory, context, history. Settings that changed since then act now.

        The curve of the run stays for comparison, as ``keep`` or by its settings; the last ``MOST_RUNS`` do.
        """
        self.stop()
        with self.lock:
            self._keep_run(keep)
            session = self.session
            session.memory = new_memory(session.engine, self._wanted, session.backend)
            session.reset()
            self._begin()
        self._tell()

    @property
    def runs(self) -> list[str]:
        """The names of the runs that are shown for comparison."""
        return [run["name"] for run in self.view.runs]

    def forget_runs(self, *names: str) -> None:
        """Show runs of these names no longer, or none at all."""
        self.view.runs = [run for run in self.view.runs if names and run["name"] not in names]

    def _keep_run(self, name: str) -> None:
        history = self.history
        if history.scored < LEAST_RUN:
            return
        memory = static.running_mean(history.loss[:, None])[:, 0]
        at = np.unique(np.linspace(1, len(memory) - 1, POINTS).astype(int))
        at = at[np.isfinite(memory[at])]
        taken = {run["name"] for run in self.view.runs}
        name = base = name or static.named(self.settings)
        number = 2
        while name in taken:
            name, number = f"{base} ({number})", number + 1
        run = {"name": name, "at": at.tolist(), "loss": [round(float(one), 4) for one in memory[at]]}
        self.view.runs = [*self.view.runs, run][-MOST_RUNS:]

    def set(self, **changes: Any) -> None:
        """Change settings: step size, blend and Muon at once, those that decide what the arrays are at the next reset.

        Raises
        ------
        InvalidParamError
            For a setting that does not exist or is out of range; then nothing changes.
        """
        wanted = self._wanted.replace(**changes)
        with self.lock:
            assert self.session.memory is not None
            self.session.memory.retune(self._at_once(changes))
            self._wanted = wanted
        self.controls.show_settings(wanted)
        self._tell()

    def _at_once(self, changes: Mapping[str, Any]) -> dict[str, Any]:
        found = {name: value for name, value in changes.items() if name in LIVE}
        if "learning_rate" in found and bool(found["learning_rate"]) != bool(self.settings.learning_rate):
            del found["learning_rate"]  # with or without a learned memory: other arrays
        return found

    def ask(self, question: str, *, recall: Recall | None = None, **options: Any) -> Answer:
        """Ask about what was read, between two steps and as if in a new conversation, and wait for the answer.

        Nothing of it is learned or stored, and reading goes on where it stood. The pane shows what was recalled.

        Parameters
        ----------
        recall
            How the memory is asked; by default as its settings say.
        options
            ``max_tokens``, ``stop``, ``sampling``, ``template`` and the others of ``AtlasSession.ask``.

        Raises
        ------
        AtlasError
            What the session raises.
        """
        chosen = recall_of(self.settings) if recall is None else recall
        self.recalled.take(self._recollection(question, chosen, lambda: False, lambda _: None, **options))
        self.view.tab = "recall"
        assert self.answer is not None
        return self.answer

    @property
    def answer(self) -> Answer | None:
        """The last answer, with the pieces that it was given; None before the first."""
        return None if self.recalled.last is None else self.recalled.last.answer

    def _answer(
        self, question: str, mode: str, stale: Callable[[], bool], told: Callable[[Token], None]
    ) -> Recollection:
        """Answer what the pane asks."""
        return self._recollection(question, recall_of(self.settings, mode=mode), stale, told)

    def _recollection(
        self,
        question: str,
        recall: Recall,
        stale: Callable[[], bool],
        told: Callable[[Token], None],
        **options: Any,
    ) -> Recollection:
        session = self.session
        with self.lock:
            stored = self._stored()
            with session.aside():
                session.forget_context()  # what is in it would not be looked for
                work = asking(session, question, recall=recall, keep=False, **options)
                answer = session.run(watched(work, stale, told))  # type: ignore[arg-type]
        places = {
            piece.start: place
            for piece in (*answer.pieces, *answer.recalled.candidates)
            if (place := self._read_at.number(piece.start)) is not None
        }
        return Recollection(answer, recall, stored, places)

    def _show_passages(self, recollection: Recollection | None) -> None:
        """Mark on curve and text where what the last answer was given was read."""
        pieces = () if recollection is None else recollection.answer.pieces
        spans = [
            (self._read_at.number(piece.start), self._read_at.number(piece.stop - 1)) for piece in pieces
        ]
        asked = max(0, len(self.trace) - 1)
        self.view.passages = [
            [first, last + 1, asked] for first, last in spans if first is not None and last is not None
        ]

    def _stored(self) -> int:
        """Return how many tokens can be found again."""
        return -1 if self.session.episodes is None else len(self.session.episodes)

    def save(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Write the memory into a ``.atlas`` file, between two steps; options as for ``AtlasSession.save``."""
        with self.lock:
            state = None if self._past is None else self._past.session_state
            if state is None:
                self.session.save(path, **options)
            else:  # another lab reads with the model: what was learned is still here, and no context
                options.pop("context", None)
                write_session_state(path, state, **options)
        self._tell(f"Saved to {os.fspath(path)}.")

    def load(self, path: str | os.PathLike[str], **options: Any) -> None:
        """Stop, and go on with the memory in a ``.atlas`` file; options as for ``AtlasSession.load``."""
        with self.lock:
            self.session.load(path, **options)  # what fails changes nothing: a run goes on
            self.stop()
            self._wanted = self.settings
            self._begin()
        self.controls.show_settings(self._wanted)
        self._tell(f"Loaded {os.fspath(path)}.")

    def export(self, path: str | os.PathLike[str]) -> None:
        """Write what is shown into a file to pass on: ``.png``, ``.svg``, ``.gif``, ``.csv`` or ``.html``.

        Raises
        ------
        AtlasError
            Its name ends otherwise, there is nothing to animate, or it cannot be written.
        """
        with self.lock:
            share.write(self, path)
        self._tell(f"Saved to {os.fspath(path)}.")

    def close(self) -> None:
        """End the thread, close every view, and the session if it was opened here."""
        if not hasattr(self, "matrices"):  # ipywidgets also closes what could not be made
            return
        self._leave()
        with self.lock:  # a step may still be in progress
            self._put_away()
        if not sys.is_finalizing():
            self.controls.show_text("")
            self.matrices.forget()
        ending.close(*self.controls.parts(), *self.matrices.parts(), self.recalled, self.view)
        ending.close_looks(self)
        super().close()

    def _put_away(self) -> None:
        """Have the model no longer, and what was read on the shelf: it can still be told."""
        if (
            self._past is None and not sys.is_finalizing()
        ):  # nobody asks afterwards, and nothing can be imported
            session, memory = self.session, None
            if self._owns and not session.closed:
                memory = session_state_bytes(session.state(context=False), codec="lz4")
            self._past = past = Past.of(
                self.facts(), self.settings, self._trace, self._words, self._text, memory
            )
            self.view.look_at(lambda: (past.trace, past.words))
            del self._trace, self._words
            self._text, self._tokens, self._cut_of, self._all = "", [], "", []
            self._snapshots.clear()  # there is no way back without the model
        if self._owns:
            if not self.session.closed:
                self.session.forget_context()
            self.session.close()
            self.session.memory = self.session.episodes = None
        if self._loan is not None:
            self._loan.give_back()
        heap.give_back()  # else the C library keeps what was free for the next lab, in pieces that do not fit

    def _leave(self) -> None:
        self.recalled.disable()
        self.runner.close()
        self.matrices.stop()
        if _LABS.get(id(self.session.engine)) is self:
            del _LABS[id(self.session.engine)]

    def _make_room(self, *, for_good: bool) -> None:
        """Read no more, because another lab reads with the model now; ``for_good``: it needs the session's place."""
        self._leave()
        with self.lock:  # its step is over
            if for_good and self._owns:
                self._put_away()
        self.runner.wait(STOP_SECONDS)  # and what its thread says of that
        if for_good and self._is_gone():
            self.close()
            return
        self.controls.disable()
        self._tell("Another MemoryLab reads with this model now; run this cell again to take it back.")

    def _is_gone(self) -> bool:
        """Tell whether nobody sees this lab: it was never shown, its last view is gone, or its cell runs again."""
        cell = ending.cell()
        if self._cell is not None and cell is not None and self._cell[0] == cell[0] and self._cell != cell:
            return True
        return self.view.gone or not (self.view.views or self._displayed)

    def _looked_at(self, seen: bool) -> None:
        """Rest while no page shows this, and go on when one does again; a run that Python waits for goes on."""
        if self.runner.closed:
            if not seen:
                self.close()
        elif seen and self._unseen:
            self.start()
        elif not seen and self.runner.wanted and not self._waited_for:
            self._unseen = True
            self.runner.pause()

    # --- the run ---------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Begin a history."""
        engine = self.session.engine
        #: Tokens of this history that the model's own context holds; 0: nobody knows, or it has no end.
        self._context = 0 if engine.info.recurrent else max(0, engine.n_ctx - self.session.position)
        self._trace = Trace()
        self._words = Words(self.session.engine, self._trace)
        self._snapshots.clear()
        self._snapshots.offer(self.session)
        self.view.take(self._trace, Words(self.session.engine, self._trace))
        self.matrices.begin()
        self._kept = self._end = 0
        self._read_at = ReadAt()
        self.recalled.clear()
        self.recalled.stored, self.recalled.mode = self._stored(), self.settings.recall

    def _prepare(self, tokens: int | None = None) -> None:
        """Have tokens to read, from the beginning if there are no more; ``tokens``: how many of them."""
        if self.runner.closed:
            raise InvalidParamError("this lab is closed", hint="Make a new one.")
        if not self._text:
            raise _no_text()
        if not self.runner.alive and (self._at >= len(self._tokens) or self._cut_of is not self._text):
            self._tokens, self._at = [], 0
        self._goal = math.inf if tokens is None else self._at + tokens

    def _cut(self) -> None:
        """Cut the text into tokens, on the thread that reads: ten million characters take seconds."""
        text = self._text
        begins = not self.session.context_tokens  # then a begin token comes first
        known = self._all if self._cut_of is text and begins is self._begins else None
        if known is None and len(text) > SOON:
            self._busy = f"Cutting {len(text):,} characters into tokens ..."
            self._tell(self._busy)
        try:
            tokens = self.session.tokens_of(text) if known is None else known
        finally:
            self._busy = ""
        if not tokens:
            raise _no_text()
        if _holds(self.session.episodes, tokens):
            self._kept = len(tokens)
        self._tokens, self._cut_of, self._all, self._begins = tokens, text, tokens, begins
        if len(text) > SOON and not self.runner.closed:
            self._tell()

    def _enough(self) -> bool:
        return len(self._tokens) > self._at >= self._goal

    def _step(self, count: int = 1) -> None:
        self._prepare(count * self.settings.chunk_size)
        self.runner.start(self._enough)

    def _read(self) -> bool:
        """Read a portion: one step of the runner."""
        if not self._tokens or self._cut_of is not self._text:
            self._cut()
            return True
        whole = self._whole()
        count = int(min(whole, self._goal - self._at, len(self._tokens)))
        stores = self._at >= self._kept  # a text that is read again is stored once
        if not stores:
            count = min(count, self._kept - self._at)
        elif stores := self.session.learns:
            self._open_document()
        part, before = self._tokens[self._at : self._at + count], len(self.trace)
        episodes = self.session.episodes
        end = 0 if episodes is None else episodes.end
        started = time.thread_time()
        try:
            follow(self.session, part, self.trace, self.runner.frame, stores=stores)
        finally:
            self._at += len(self.trace) - before
            self._kept = max(self._kept, self._at)
            self._end = 0 if episodes is None else episodes.end
            if self._end > end:
                kept = [at for at, token in enumerate(part) if self.session.engine.piece(token)]
                self._read_at.add(end, [before + at for at in kept[: self._end - end]])
        self._rates.append((time.monotonic(), len(self.trace)))
        if count == whole:  # by the time of the processor: a busy machine must not make batches small
            rate = count / max(time.thread_time() - started, 1e-6)
            self._portion = _portion(rate, self.session.engine.n_batch)
        self._snapshots.offer(self.session)
        return self._at < len(self._tokens)

    def _open_document(self) -> None:
        """Have what is read kept in the episode of this text; if something else was stored since, in another one."""
        episodes = self.session.episodes
        if episodes is not None and (self._at == 0 or episodes.end != self._end):
            episodes.begin(Kind.DOCUMENT, self._source)

    def _whole(self) -> int:
        """Return how many tokens to read now: about a portion, but no small rest of a step or of the context.

        The memory learns a step in one piece, and llama.cpp takes twice as long for 60 tokens as for 128.
        """
        memory, room = self.session.memory, self.session.room
        assert memory is not None
        whole = self._portion + memory.room % memory.settings.chunk_size + (self.session.position == 0)
        return room if 0 < room < 1.5 * whole else whole

    def _frame(self) -> None:
        self.view.show()
        if self.view.tab == "recall":  # else nobody sees it
            self.recalled.stored = self._stored()
        self.matrices.frame(len(self.trace), seen=self.view.tab == "matrix")

    def _changed(self) -> None:
        """Say what the run does now; when it rests, show all of it."""
        state, error = self.runner.state, self.runner.error
        self.view.state = state
        closed = self.runner.closed  # then there is nothing to press, and somebody else says why
        if not closed:
            self.controls.show_state(state)
        if state == "running":
            self._rates.clear()
            self._tell(self._busy)
            return
        if self._past is None:
            self._snapshots.keep(self.session)
        if not closed:
            self._tell(_SAID.get(state, ""), error=error)
        self.view.show()
        self.recalled.stored = self._stored()
        self.matrices.show()
        self.matrices.measure(len(self.trace))

    def facts(self) -> dict[str, Any]:
        """Return the numbers of the moment as JSON-ready data."""
        if self._past is not None:
            return self._past.facts
        memory = self.session.memory
        assert memory is not None
        size = memory.settings.window_size
        return {
            "at": self._at,
            "total": len(self._tokens),
            "context": self._context,
            "seen": memory.tokens_seen,
            "window": min(int(memory.state.counters["filled"]), size),
            "window_size": size,
            "learning_rate": memory.learning_rate,
            "learning_rate_set": memory.settings.learning_rate,
            "speed": self._speed(),
        }

    def _state(self) -> MemoryState:
        if self._past is not None and (learned := self._past.memory) is not None:
            return learned
        assert self.session.memory is not None
        return self.session.memory.state

    def _speed(self) -> float:
        """Return tokens per second lately."""
        rates = list(self._rates)
        if len(rates) < 2:
            return 0.0
        (start, first), (end, last) = rates[0], rates[-1]
        return (last - first) / max(end - start, 1e-6)

    def _tell(self, said: str = "", *, error: str = "") -> None:
        """Say something in the status line; what waits for the next reset is always said."""
        waiting = [
            name
            for name in self._wanted.to_json()
            if getattr(self._wanted, name) != getattr(self.settings, name)
        ]
        names = ", ".join(
            f"{_NAMES.get(name, name)} {_plain(getattr(self._wanted, name))}" for name in waiting
        )
        later = f"From the next Reset on: {names}." if waiting else ""
        self.view.status = " ".join(filter(None, (said, later)))
        self.view.error = error

    # --- the controls ----------------------------------------------------------------------------------------

    def _on(self, what: str, value: Any = None, name: str = "") -> None:
        """Do what a control asks for; what goes wrong stands in the status line. ``name``: of a text that has one."""
        if what not in ("pause", "stop"):
            self.recalled.stop()  # what needs the session does not wait for an answer
        orders: dict[str, Callable[[], None]] = {
            "start": self.start,
            "pause": self.pause,
            "step": self._step,
            "stop": self.stop,
            "reset": self.reset,
            "settings": lambda: self.set(**value),
            "text": lambda: self._read_next(value, name),
            "save": lambda: (self.export if share.is_shared(value) else self.save)(_named(value)),
            "load": lambda: self.load(_named(value)),
        }
        try:
            orders[what]()
        except Exception as error:  # a control never ends in a traceback
            self._tell(error=sentence(error))

    def _read_next(self, text: str | os.PathLike[str], name: str) -> None:
        """Take a text from a control: what somebody types is a text, whatever it looks like."""
        if isinstance(text, str):
            self._take(text, name)
        else:
            self.text_to_read = text

    # --- without a page --------------------------------------------------------------------------------------

    def _repr_mimebundle_(self, **options: Any) -> Any:
        self._displayed = self._displayed or is_watched()
        ending.shown(self)
        return super()._repr_mimebundle_(**options)

    def text(self) -> str:
        """Return how things stand, in a few lines."""
        return static.text(self)

    def sheet(self) -> tuple[Sequence[str], Iterable[Sequence[Any]]]:
        """Return a row for each token that was read, with its losses."""
        return static.sheet(self)

    def figure(self) -> Figure:
        """Return loss curves, weights, matrix and spectrum as a matplotlib figure of its own."""
        with self.lock:
            return static.figure(self)

    def static_bundle(self) -> dict[str, str]:
        """Return what is saved of the lab as it is now; a run rests meanwhile: a page that saves waits."""
        with self.lock:
            return super().static_bundle()

    def html(self) -> str:
        """Return curves, the text coloured by surprise, matrix and what was recalled, to look around in."""
        with self.lock:
            return static.page(self)


_SAID = {
    "paused": "Paused; Start continues.",
    "done": "Read to the end; Start reads the text once more, with what the memory knows now.",
}
_NAMES = {
    "window_size": "window",
    "polynomial_degree": "degree",
    "use_muon": "Muon",
    "learning_rate": "learning rate",
}


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "on" if value else "off"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _portion(rate: float, n_batch: int) -> int:
    """Return how many tokens to read at a time at ``rate`` tokens per second: a power of two.

    >>> [_portion(rate, 512) for rate in (1, 5, 40, 200, 9000)]
    [1, 2, 16, 64, 256]
    """
    return min(1 << int(math.log2(max(1.0, rate * STEP_SECONDS))), MOST_TOKENS, n_batch)


def _recommended(engine: Engine) -> Any:
    """Return which memory a model's file gets: its own settings where it has some, else what is recommended for it."""
    return True if memory_choice.of_native(engine) != (None, None) else "auto"


def _no_text() -> InvalidParamError:
    return InvalidParamError("there is no text to read", key="text", hint="Type one, or choose a document.")


def _no_memory() -> InvalidParamError:
    return InvalidParamError("this session has no memory", key="memory", hint="Open it with memory=True.")


def _check(engine: Engine, options: dict[str, Any]) -> None:
    """Refuse settings that a session would refuse, while another lab still has the model."""
    names = {"window": "window_size"}
    own = ("memory", "device", "rollover", "learn")
    changes = {names.get(name, name): value for name, value in options.items() if name not in own}
    chosen = {name: value for name, value in changes.items() if value is not None}
    if memory_choice.choose(engine, options["memory"], chosen) == (None, None):
        raise _no_memory()


def _displace(engine: Engine, *, for_good: bool = False) -> bool:
    """Stop the lab that reads with an engine; True if there was one that may be seen. ``for_good``: whoever has it."""
    other = _LABS.get(id(engine))
    if other is None:
        return False
    other._make_room(for_good=for_good or len(engine.taken) >= engine.n_sequences)
    return other.comm is not None


def _documents(given: Any) -> dict[str, Any]:
    """Return texts to choose from by name."""
    return dict(given) if isinstance(given, Mapping) else {Path(one).name: Path(one) for one in given}


def _holds(episodes: Episodes | None, tokens: list[int]) -> bool:
    """Tell whether a whole document is one that can be found again."""
    return episodes is not None and any(
        one.kind == Kind.DOCUMENT
        and one.stop - one.start == len(tokens)
        and episodes.tokens(one.start, one.stop) == tokens
        for one in episodes.episodes
    )


def _content(path: str | os.PathLike[str]) -> str:
    from atlas_kit.storage.given import open_source

    with open_source(path) as source:
        return source.read(0, source.size).decode("utf-8", "surrogateescape")


def _given(text: str | os.PathLike[str]) -> tuple[str, str]:
    """Return a text and the name of its file, if it has one.

    >>> _given("to be or not to be")
    ('to be or not to be', '')
    """
    if isinstance(text, str) and not (_FILE_NAME.fullmatch(text) or _is_file(text)):
        return text, ""
    return _content(text), os.fspath(text)


def _is_file(text: str) -> bool:
    return 0 < len(text) < 1024 and "\0" not in text and os.path.isfile(text)


def _named(path: str) -> str:
    if not path.strip():
        raise InvalidParamError("there is no file name", key="path", hint="Type one, such as memory.atlas.")
    return path.strip()
