"""A thread that does what is left for later while its owner waits for a decode. Knows neither sessions nor engines.

Waking a thread takes a while, all the more where others keep the processors busy. So nobody waits for it to begin:
when the decode is done, its owner does whatever is left, and waits only for what is being done at that moment.
"""

from __future__ import annotations

import contextlib
import queue
import threading
from collections import deque
from collections.abc import Iterable

from atlas_kit.background import start_thread
from atlas_kit.llama.steps import Later


class HelpingHand:
    """Does what it is given until it is closed; it belongs to one thread, which may close it twice.

    >>> hand, done = HelpingHand("example"), []
    >>> hand.give([Later(lambda: done.append(1)), Later(lambda: done.append(2))])
    >>> hand.take_back()
    >>> sorted(done)
    [1, 2]
    >>> hand.close()
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._given: queue.SimpleQueue[deque[Later] | None] = queue.SimpleQueue()
        self._left = deque[Later]()
        self._busy = threading.Lock()  # while something is taken and done
        self._thread: threading.Thread | None = None

    def give(self, things: Iterable[Later]) -> None:
        """Let these be done beside what the caller does; ``take_back`` comes before anybody needs them."""
        self._left = deque(things)
        if not self._left:
            return
        if self._thread is None:
            self._thread = start_thread(self._work, name=self._name, stop=lambda: self._given.put(None))
        self._given.put(self._left)

    def take_back(self) -> None:
        """Do what is left, and wait for what is being done."""
        if self._left or self._busy.locked():
            self._empty(self._left)

    def close(self) -> None:
        """End the thread, if there is one."""
        if self._thread is not None:
            self.take_back()
            self._given.put(None)
            self._thread.join()
            self._thread = None

    def _work(self) -> None:
        while (things := self._given.get()) is not None:
            self._empty(things)

    def _empty(self, things: deque[Later]) -> None:
        with contextlib.suppress(IndexError):
            while True:
                with self._busy:
                    things.popleft().do()
