"""A side way out of a session: read, go back, read something else, and leave no trace in the session.

What is read there nobody learns or stores. It begins with an empty context; the engine's bytes of the session's own
are kept meanwhile, which takes far less time than to read it again.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import ModelError
from atlas_kit.llama.steps import Stats, Work

if TYPE_CHECKING:
    from atlas_kit.llama.inside import Inside


#: What the last branch began with, and the engine's bytes of it.
_begun: weakref.WeakKeyDictionary[Any, tuple[tuple[int, ...], bytes]] = weakref.WeakKeyDictionary()


class Place(NamedTuple):
    """Where a branch was: its tokens, the next one's position, and the engine's bytes where they are needed."""

    context: tuple[int, ...]
    position: int
    data: bytes | None


class Branch:
    """What a session reads and says on the side.

    Parameters
    ----------
    session
        It owes its context nothing (``catching_up`` was done).
    """

    def __init__(self, session: Inside) -> None:
        self._session, engine = session, session.engine
        if session._last_output is not None:
            session._last_output.keep()
        self._was = (
            session._context, session._position, session._last_output, session.memory, session.learns,
            session.observer, session._counts,
        )  # fmt: skip
        #: What is read and said here, which does not count as the session's.
        self.counts = Stats()
        self._watched = None if session.memory is None else session.memory.watched
        self._saved = engine.save_sequence(session.sequence) if session._context else b""
        session._aside = session.memory
        session.observer, session.learns, session._counts, session.memory = None, False, self.counts, None
        session._context, session._position, session._last_output = [], 0, None
        session._owed = []  # what is owed to a context that nobody goes on from
        engine.forget(session.sequence)

    def remember(self) -> None:
        """Begin where the session is, and let its memory answer, too; it does not learn.

        Raises
        ------
        ModelError
            The engine does not take its own bytes back.
        """
        session, context = self._session, self._was[0]
        session.engine.forget(session.sequence)
        if context and not session.engine.load_sequence(session.sequence, self._saved):
            raise ModelError("the context cannot be restored", path=session.engine.info.path)
        session._context, session._position = context[:], self._was[1]
        session._last_output, session.memory = self._was[2], self._was[3]
        if session.memory is not None and self._watched is not None:
            session.memory.watched = self._watched

    def blend(self, tokens: Sequence[int]) -> None:
        """Let the session's memory answer behind what was read here, too; it does not learn.

        Parameters
        ----------
        tokens
            The last that were read, one or more: what comes next is looked up as what followed them.
        """
        session = self._session
        session.memory, session._last_output = self._was[3], None
        if session.memory is not None:
            session.memory.watched = np.asarray(tokens, np.int64)

    def begin(self, tokens: Sequence[int]) -> Work[None]:
        """Read what every question begins with; the engine's bytes of it are kept for the next question.

        They are also put back where it was just read: a cache that was loaded is laid out anew, and sums of float16
        depend on their order, so that the first question would be judged otherwise than the same one later.
        """
        session, engine = self._session, self._session.engine
        kept = _begun.get(engine)
        if kept is None or kept[0] != tuple(tokens):
            yield from self.read(tokens)
            kept = _begun[engine] = tuple(tokens), engine.save_sequence(session.sequence)
        if not tokens:
            return
        if not engine.load_sequence(session.sequence, kept[1]):
            del _begun[engine]
            raise ModelError("the context cannot be restored", path=engine.info.path)
        session._context, session._position, session._last_output = list(tokens), len(tokens), None

    def plain(self, tokens: Sequence[int]) -> list[int]:
        """Return tokens without control tokens, which a file that somebody made may hold."""
        piece = self._session.engine.piece
        return [token for token in tokens if piece(token)]

    def text(self, tokens: Sequence[int]) -> str:
        """Return the text of tokens, without control tokens."""
        return b"".join(map(self._session.engine.piece, tokens)).decode("utf-8", "replace")

    def written(self, *parts: str | Sequence[int]) -> list[int]:
        """Return the tokens of some parts as one text, without control tokens.

        Where parts meet, that is what a text has there. Behind a space that is a token of its own a small model reads
        a question worse.
        """
        engine = self._session.engine
        row = [
            part.encode() if isinstance(part, str) else b"".join(map(engine.piece, part)) for part in parts
        ]
        return engine.tokenize(b"".join(row).decode("utf-8", "replace"))

    def read(self, tokens: Sequence[int]) -> Work[None]:
        """Read tokens, of which nobody wants to know anything."""
        session, limit = self._session, self._limit
        for at in range(0, len(tokens), limit):
            yield from session._decoded(list(tokens[at : at + limit]), 0, hidden=False)

    def likelihood(self, tokens: Sequence[int], asked: Sequence[int]) -> Work[float]:
        """Read ``tokens`` (one or more) and what follows them; return the log-probability of that in nats."""
        every, first = [*tokens, *asked], len(tokens) - 1  # of those whose outputs are wanted
        total, limit = 0.0, self._limit
        for at in range(0, len(every), limit):
            part = every[at : at + limit]
            wanted = at + len(part) - max(at, first)
            out = yield from self._session._decoded(part, max(0, wanted), hidden=False)
            if wanted > 0:
                following = every[at + len(part) - wanted + 1 : at + len(part) + 1]
                total += _log_probability(out.logits[: len(following)], following)
        return total

    @property
    def _limit(self) -> int:
        return min(self._session.feed_limit, self._session.engine.n_batch)

    def place(self) -> Place:
        """Return where it is, to come back to it from what lies behind it."""
        session = self._session
        data = None if session.engine.can_shift else session.engine.save_sequence(session.sequence)
        return Place(tuple(session._context), session._position, data)

    def back(self, place: Place) -> None:
        """Go to where it was.

        Raises
        ------
        ModelError
            The engine does not take its own bytes back.
        """
        session = self._session
        if place.position == session._position and place.context == tuple(session._context):
            return
        if place.data is None:
            back = session.engine.forget(session.sequence, place.position)
        else:
            back = session.engine.load_sequence(session.sequence, place.data)
        if not back:
            raise ModelError("the context cannot be restored", path=session.engine.info.path)
        session._context, session._position, session._last_output = list(place.context), place.position, None

    def close(self) -> None:
        """Let the session go on where it was.

        Raises
        ------
        ModelError
            The engine does not take its own bytes back; the session's context is empty then.
        """
        session = self._session
        session._context, session._position, session._last_output = self._was[:3]
        session.memory, session.learns, session.observer, session._counts = self._was[3:]
        session._owed, session._said, session._aside = [], None, None
        if session.memory is not None and self._watched is not None:
            session.memory.watched = self._watched
        if session.closed:
            return
        session.engine.forget(session.sequence)
        if session._context and not session.engine.load_sequence(session.sequence, self._saved):
            session.forget_context()
            raise ModelError("the context cannot be restored", path=session.engine.info.path)


def _log_probability(logits: Array, tokens: Sequence[int]) -> float:
    total = 0.0
    for row, token in zip(logits, tokens, strict=True):
        top = float(row.max())
        total += float(row[token]) - top - float(np.log(np.exp(row - top).sum(dtype=np.float64)))
    return total
