"""What sessions go through token by token, and what they recall, while somebody looks on; nothing is taken down else.

The engine's thread appends, the event loop looks at what is there. A trace holds what was read since the first of those
who look on came; where it grows too long, another begins.
"""

from __future__ import annotations

import base64
import contextlib
from collections import deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.server.keys import SHARED, Key

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.session import AtlasSession
    from atlas_kit.llama.trace import Trace

#: Tokens of one trace, of some 130 bytes each.
MOST_TOKENS = 100_000
#: Tokens that one piece brings at most.
MOST_AT_ONCE = 2048
#: Answers of which it is known what was recalled for them; whoever comes later gets these.
MOST_ANSWERS = 16


class _Looked:
    """The trace of a session, what it recalled for its answers, and how many look on."""

    def __init__(self) -> None:
        self.viewers = 0
        self.answers: deque[dict[str, Any]] = deque(maxlen=MOST_ANSWERS)
        self.answered = 0
        self.begin()

    def begin(self) -> None:
        """Begin another trace."""
        from atlas_kit.llama.trace import Trace

        self.trace: Trace = Trace()


class Traces:
    """The traces of the sessions that somebody looks at."""

    def __init__(self) -> None:
        self._looked: dict[Key, _Looked] = {}

    @property
    def anybody(self) -> bool:
        """Whether anybody looks at any session."""
        return bool(self._looked)

    def take(
        self,
        key: Key,
        reading: Reading,
        tokens: Array,
        probabilities: Array,
        session: AtlasSession | None = None,
    ) -> None:
        """Take down what was expected of some tokens that came, where somebody looks on; on the engine's thread.

        ``session`` has read them: with it, it is taken down where its window knew them from.
        """
        looked = self._looked.get(key)
        if looked is None:
            return
        if len(looked.trace) + len(tokens) > MOST_TOKENS:
            looked.begin()
        from atlas_kit.llama.trace import sources

        trace = looked.trace
        known = None if session is None else sources(session, reading, tokens, trace)
        trace(reading, tokens, probabilities, known)

    def recalled(self, key: Key, told: dict[str, Any]) -> None:
        """Take down what was recalled for an answer, where somebody looks on."""
        if (looked := self._looked.get(key)) is not None:
            looked.answers.append(told)
            looked.answered += 1

    def forget(self, key: Key) -> None:
        """Forget what a session has read and recalled: whoever looks on sees what comes from now on."""
        for one, looked in self._looked.items():
            if one == key or (key == SHARED and one.namespace == SHARED.namespace):
                looked.answers.clear()
                looked.begin()

    @contextlib.contextmanager
    def looking(self, key: Key, engine: Engine, told: dict[str, Any] | None = None) -> Iterator[View]:
        """Look at a session, also at one that has not begun; ``told`` is what it recalled last."""
        looked = self._looked.setdefault(key, _Looked())
        looked.viewers += 1
        if told is not None and not looked.answered:
            self.recalled(key, told)
        try:
            yield View(looked, engine)
        finally:
            looked.viewers -= 1
            if not looked.viewers and self._looked.get(key) is looked:
                del self._looked[key]


class View:
    """What one of those who look on has seen so far."""

    def __init__(self, looked: _Looked, engine: Engine) -> None:
        self._looked, self._engine, self._answered = looked, engine, 0
        self._begin(looked.trace)

    def _begin(self, trace: Trace) -> None:
        from atlas_kit.llama.trace_frames import Words

        self._trace, self._words, self._at = trace, Words(self._engine, trace), 0
        self._named: set[int] = set()

    def piece(self) -> dict[str, Any] | None:
        """Return what came since the last piece as JSON-ready data; None: nothing.

        ``from`` is 0 where a trace begins. ``rows`` and ``tokens`` are little-endian float32 (n, 20) and int32 (n, 13)
        in base64, as ``trace_frames.packed`` gives them; ``sources`` are int32 (n,): the numbers in the trace of the
        tokens that the window knew them from, or -1. ``names`` are those of tokens that had none yet.
        """
        if self._trace is not self._looked.trace:
            self._begin(self._looked.trace)
        start, end = self._at, min(len(self._trace), self._at + MOST_AT_ONCE)
        if start == end:
            return None
        from atlas_kit.llama.trace_frames import packed

        rows, tokens = packed(self._trace, start, end)
        fresh = sorted({int(token) for token in tokens.ravel() if token >= 0} - self._named)
        self._named.update(fresh)
        self._at = end
        return {
            "object": "atlas.trace",
            "from": start,
            "texts": self._words.texts(start, end),
            "names": [(token, self._words.name(token)) for token in fresh],
            "rows": base64.b64encode(rows.astype("<f4").tobytes()).decode(),
            "tokens": base64.b64encode(tokens.astype("<i4").tobytes()).decode(),
            "sources": base64.b64encode(self._trace.source[start:end].astype("<i4").tobytes()).decode(),
        }

    def answers(self) -> list[dict[str, Any]]:
        """Return what was recalled for the answers since the last call, oldest first."""
        looked = self._looked
        count = min(looked.answered - self._answered, len(looked.answers))
        self._answered = looked.answered
        return list(looked.answers)[len(looked.answers) - count :]
