"""The pane "What it recalled" of ``MemoryLab``: a question, its answer as it comes, and the pieces that it was given.

A question is answered in a thread of its own, so that the notebook goes on meanwhile. Knows neither model nor session:
who answers is given; or nobody, where it only shows what is asked elsewhere. Drawing is in ``static/lab/recalled.js``.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator
from typing import TYPE_CHECKING, Any

import anywidget
import traitlets

from atlas_kit.llama.steps import Step, Token
from atlas_kit.settings.atlas_settings import RECALLS
from atlas_kit.widgets.lab.recollection import Recollection
from atlas_kit.widgets.live import sentence
from atlas_kit.widgets.newest import Newest
from atlas_kit.widgets.static_modules import STATIC, joined

if TYPE_CHECKING:
    from atlas_kit.llama.asking import Answer

#: Seconds between two looks at an answer that is still coming.
EVERY = 0.2
#: Characters of a question.
LONGEST = 4000

#: Is given a question, the mode of recall, ``stale()`` and who is told each token; raises ``StoppedError`` when stale.
Ask = Callable[[str, str, Callable[[], bool], Callable[[Token], None]], Recollection]


class StoppedError(Exception):
    """Nobody waits for the answer any more."""


def watched(
    work: Generator[Step | Token, Any, Answer], stale: Callable[[], bool], told: Callable[[Token], None]
) -> Generator[Step | Token, Any, Answer]:
    """Do work in steps as it is; ``told`` gets each token.

    Raises
    ------
    StoppedError
        It is ``stale``, which is asked before each step.
    """
    outputs: Any = None
    try:
        while True:
            item = work.send(outputs)
            if stale():
                raise StoppedError
            if isinstance(item, Token):
                told(item)
            outputs = yield item
    except StopIteration as done:
        answer: Answer = done.value
        return answer
    finally:
        work.close()


class RecallPane(anywidget.AnyWidget):
    """A field for a question, and what came of the last one.

    Parameters
    ----------
    ask
        Answers; None: what is asked elsewhere is shown here, and there is no field.
    shown
        Is told what is shown: what came of a question, or nothing any more.
    """

    _esm = joined("lab/recalled.js")
    _css = STATIC / "lab" / "lab.css"

    modes = traitlets.List(list(RECALLS)).tag(sync=True)
    mode = traitlets.Unicode("auto").tag(sync=True)
    #: Tokens that can be found again; -1: this memory keeps none.
    stored = traitlets.Int(0).tag(sync=True)
    busy = traitlets.Bool(False).tag(sync=True)
    closed = traitlets.Bool(False).tag(sync=True)
    #: Whether there is a field for a question.
    asks = traitlets.Bool(True).tag(sync=True)
    error = traitlets.Unicode().tag(sync=True)
    #: ``Recollection.to_json``; ``question``, ``text`` and ``done`` while it comes; empty before the first.
    answer = traitlets.Dict().tag(sync=True)

    def __init__(
        self, ask: Ask | None, shown: Callable[[Recollection | None], None] = lambda _: None
    ) -> None:
        self._shown = shown
        self._ask, self._lock, self._asked = ask, threading.RLock(), 0
        self._newest = Newest(lambda _, error: self._end(self._asked, sentence(error)))
        #: What came of the last question; None before the first.
        self.last: Recollection | None = None
        super().__init__(asks=ask is not None)
        self.on_msg(self._answer)

    def put(self, question: str) -> None:
        """Have a question answered in the background; one that is still being answered is stopped for it."""
        ask = self._ask
        with self._lock:
            if self.closed or ask is None:
                return
            self._asked += 1
            number, mode = self._asked, self.mode
            self.busy, self.error = True, ""

            def job(stale: Callable[[], bool]) -> None:
                said, seen = "", 0.0

                def told(token: Token) -> None:
                    nonlocal said, seen
                    said += token.text
                    if time.monotonic() >= seen + EVERY:
                        seen = time.monotonic()
                        self.answer = {"question": question, "text": said, "done": False}

                try:
                    came = ask(question[:LONGEST], mode, stale, told)
                    with self._lock:
                        if stale():  # another memory is shown since its last step
                            raise StoppedError
                        self.take(came)
                    self._end(number)
                except StoppedError:
                    self._show()
                    self._end(number, "Stopped.")
                except Exception as error:  # a pane never ends in a traceback
                    self._show()
                    self._end(number, sentence(error))

            self._newest.submit("question", job)

    def _end(self, number: int, error: str = "") -> None:
        """Say that a question is done with, unless another one came meanwhile."""
        with self._lock:
            if number == self._asked:
                self.busy, self.error = False, error

    def take(self, recollection: Recollection) -> None:
        """Show what came of a question."""
        self.last, self.stored = recollection, recollection.stored
        self._show()

    def _show(self) -> None:
        self.answer = {} if self.last is None else self.last.to_json()
        self._shown(self.last)

    def clear(self) -> None:
        """Show another memory, which nobody has asked yet."""
        with self._lock:
            self.stop()
            self.last, self.error = None, ""
            self._show()

    def stop(self) -> None:
        """Stop the question that is being answered, before its next step."""
        self._newest.stop("question")

    def disable(self) -> None:
        """Answer no more."""
        self.stop()
        self.closed = True

    def wait(self, timeout: float | None = None) -> bool:
        """Wait until no question is being answered; False if one still is after ``timeout`` seconds."""
        return self._newest.wait(timeout)

    def _answer(self, _: Any, message: dict[str, Any], __: Any) -> None:
        if message.get("kind") == "ask":
            self.put(str(message.get("question", "")))
        elif message.get("kind") == "stop":
            self.stop()
