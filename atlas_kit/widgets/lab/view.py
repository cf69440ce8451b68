"""The live view of ``MemoryLab``: what a trace holds, sent to the browser piece by piece as it draws.

Frames are acknowledged (``frame_gate.py``); a page that was loaded again says hello and gets everything from the start.
A view that ends says bye, and when none is left, who made this is told. Knows a trace and who names its tokens; drawing
is in ``static/lab/lab.js``.
"""

from __future__ import annotations

import contextlib
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any

import anywidget
import numpy as np
import traitlets

from atlas_kit.background import start_thread
from atlas_kit.llama.trace import Trace
from atlas_kit.llama.trace_frames import GivenWords, Words, packed
from atlas_kit.widgets.frame_gate import PATIENCE, FrameGate
from atlas_kit.widgets.static_modules import STATIC, joined

#: Tokens that one frame brings at most, some 130 bytes each.
MOST_TOKENS = 4096
#: After a frame the page rests this many times as long as it took to draw it: learning may need the same processor.
REST = 2.0
#: Seconds that the other views have to say that they are still there.
ANSWER_SECONDS = 2.0


class LabView(anywidget.AnyWidget):
    """Numbers, curves, text and the story of a token.

    Parameters
    ----------
    facts
        Is asked for the numbers of the moment with each frame.
    looked_at
        Is told when the last view that was there is gone (False), and when one is there again (True).
    """

    _esm = joined("lab/lab.js")
    _css = STATIC / "lab" / "lab.css"

    state = traitlets.Unicode("idle").tag(sync=True)
    status = traitlets.Unicode().tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    #: ``name``, ``tokens`` seen, ``values`` and effective ``rank``; empty before the first.
    spectrum = traitlets.Dict().tag(sync=True)
    #: What can be shown below the curves, in this order of ``static/lab/lab.js``, and what is.
    panes = traitlets.List(["text", "recall", "matrix", "weights"]).tag(sync=True)
    tab = traitlets.Unicode("text").tag(sync=True)
    #: Runs from before, for comparison: ``name``, ``at`` and ``loss``, the running mean with the memory.
    runs = traitlets.List(traitlets.Dict()).tag(sync=True)
    #: Where what an answer was given was read: ``[first, end, asked]``, numbers of tokens.
    passages = traitlets.List(traitlets.List(traitlets.Int())).tag(sync=True)

    def __init__(
        self, facts: Callable[[], dict[str, Any]], looked_at: Callable[[bool], None] = lambda _: None
    ) -> None:
        self._facts, self._looked_at = facts, looked_at
        #: The views that said hello; whether there was one, and none is left.
        self.views, self.gone = set[str](), False
        self._told = True  # of those who look
        self._lock, self._telling = threading.RLock(), threading.RLock()
        self._gate = FrameGate()
        self._sent_at = self._next = 0.0
        super().__init__()
        self.on_msg(self._answer)

    def take(self, trace: Trace, words: Words | GivenWords) -> None:
        """Show another run from its start; ``words`` is for this view alone, or may be asked by any thread."""
        with self._lock:
            self.look_at(lambda: (trace, words))
            self._sent = 0
            self.spectrum = {}
        self.show()

    def look_at(self, run: Callable[[], tuple[Trace, Words | GivenWords]]) -> None:
        """Have the run that is shown from elsewhere from now on."""
        with self._lock:
            self._run = run
            self._named = set[int]()

    def measured(self, spectrum: dict[str, Any]) -> None:
        """Show a spectrum: ``name``, ``tokens``, ``values`` and effective ``rank``."""
        self.spectrum = spectrum

    @property
    def ready(self) -> bool:
        """Whether it is time for a frame: the last one is on the screen, and the page has rested."""
        return self._gate.ready and time.monotonic() >= self._next

    def show(self) -> None:
        """Show what is new, when the last frame is on the screen."""
        number = self._gate.ask()
        if number is not None:
            self._post(number)

    def _post(self, number: int) -> None:
        with self._lock:
            trace, words = self._run()
            start, end = self._sent, min(len(trace), self._sent + MOST_TOKENS)
            rows, tokens = packed(trace, start, end)
            names = [(int(token), words.name(int(token))) for token in self._unnamed(tokens)]
            content = {
                "kind": "frame",
                "number": number,
                "from": start,
                "texts": words.texts(start, end),
                "names": names,
                "facts": self._facts(),
            }
            self._sent_at = time.monotonic()
            sources = np.ascontiguousarray(trace.source[start:end])
            self.send(content, [rows.tobytes(), tokens.tobytes(), sources.tobytes()])
            self._sent = end
            if end < len(trace):
                self._gate.ask()  # not now: with the acknowledgement

    def _unnamed(self, tokens: np.ndarray[Any, Any]) -> list[int]:
        """Return the tokens that the browser has no name of yet, and count them as named."""
        fresh = [token for token in np.unique(tokens).tolist() if token >= 0 and token not in self._named]
        self._named.update(fresh)
        return fresh

    def _answer(self, _: Any, message: dict[str, Any], __: Any) -> None:
        number: int | None = None
        kind, who = message.get("kind"), str(message.get("view", ""))
        if kind in ("hello", "here"):
            self._came(who)
        if kind == "hello":
            with self._lock:
                self._sent, self._named = 0, set()
                number = self._gate.force()
        elif kind == "bye":
            self._went(who)
        elif kind == "shown":
            now = time.monotonic()
            self._next = now + REST * min(now - self._sent_at, PATIENCE)
            number = self._gate.acknowledge(int(message.get("number", 0)))
        if number is not None:
            self._post(number)

    # --- who looks -------------------------------------------------------------------------------------------

    def _came(self, who: str) -> None:
        with self._lock:
            self.gone = False
            self.views.add(who)
        self._tell()

    def _went(self, who: str) -> None:
        """Ask who is left: a page that was loaded again took its views with it without a word."""
        with self._lock:
            if who not in self.views:
                return
            self.views.clear()
        if self.comm is not None:
            self.send({"kind": "who"})
        view, over = weakref.ref(self), threading.Event()

        def count() -> None:
            if not over.wait(ANSWER_SECONDS):
                _count(view)

        start_thread(count, name="atlas-views", stop=over.set)

    def _nobody(self) -> None:
        with self._lock:
            if self.views or self.gone:
                return
            self.gone = True
        with contextlib.suppress(ReferenceError):  # who made this is gone, too
            self._tell()

    def _tell(self) -> None:
        """Tell whether anybody looks, if that is news; what is told last is how it is, whichever thread comes first."""
        with self._telling:
            with self._lock:
                seen = not self.gone
                news, self._told = seen != self._told, seen
            if news:
                self._looked_at(seen)


def _count(reference: weakref.ref[LabView]) -> None:
    if (view := reference()) is not None:
        view._nobody()
