"""What a session went through, token by token: losses with and without the memory, who knew, what was expected.

A ``Trace`` is a session's observer. It only appends, so that other threads may look at what is there already; a token
takes some 130 bytes. Knows no widgets.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.likeliest import Likeliest

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading
    from atlas_kit.llama.session import AtlasSession


#: Most likely tokens that are kept of each prediction.
TOP = 6
#: Predictions, in this order along the axis of length 2, and experts along that of length 3.
WHO, EXPERTS = ("model", "blended"), ("model", "memory", "window")
_FIRST_ROOM = 1024
#: Tokens that a memory may have learned unseen before its numbers begin anew.
_MOST_GAP = 1 << 16


class Places:
    """Where in a trace the tokens are that a memory learned, by their numbers in the memory."""

    def __init__(self) -> None:
        self._first, self._numbers = 0, array("i")

    def put(self, start: int, number: int, count: int) -> None:
        """Take down that the tokens from ``start`` on of a memory are those from ``number`` on of the trace."""
        gap = start - self._first - len(self._numbers)  # what was learned while nobody took it down
        if not self._numbers or not 0 <= gap <= _MOST_GAP:
            self._first, self._numbers, gap = start, array("i"), 0
        self._numbers.extend([-1] * gap)
        self._numbers.extend(range(number, number + count))

    def at(self, token: int) -> int:
        """Return the number in the trace of a memory's token; -1: it is not in it."""
        place = token - self._first
        return self._numbers[place] if 0 <= place < len(self._numbers) else -1


class Trace:
    """What was expected of each token of a stream before it came.

    Attributes
    ----------
    tokens
        (n,): the tokens; the first of a stream has no prediction, and NaN in what follows.
    loss
        (n, 2) in nats: of the model alone, and of the blended prediction.
    parts
        (n, 3): the probability that model, memory and window gave to the token.
    weights
        (n, 3): how much each of them counted.
    top, top_p
        (n, 2, 6): the most likely tokens of the model alone and of the blend, likeliest first, and their
        probabilities; -1 and 0 where there is none.
    source
        (n,): the number in this trace of the token that the window knew it from; -1 where it did not.
    places
        Where in this trace the tokens are that the memory learned.

    Examples
    --------
    >>> from atlas_kit.llama import AtlasSession, FakeEngine
    >>> with AtlasSession(FakeEngine()) as session:
    ...     session.observer = trace = Trace()
    ...     _ = session.feed("to be or not to be, " * 20)
    >>> gap = trace.loss[-20:].mean(axis=0)
    >>> len(trace), bool(gap[1] < gap[0])
    (399, True)
    """

    def __init__(self) -> None:
        self._count = 0
        self.places = Places()
        self._likeliest = Likeliest(TOP)
        self._columns: dict[str, Array] = {
            name: np.empty((_FIRST_ROOM, *shape), dtype) for name, (shape, dtype) in _COLUMNS.items()
        }

    def __len__(self) -> int:
        return self._count

    def __getattr__(self, name: str) -> Array:
        if name not in _COLUMNS:
            raise AttributeError(name)
        count = self._count  # first: what is counted is there, also in newer columns
        return self._columns[name][:count]

    def begin(self, token: int) -> None:
        """Take in a token that nothing came before."""
        nothing: dict[str, Array] = {name: np.full((1, *shape), np.nan if dtype is np.float32 else -1, dtype)
                   for name, (shape, dtype) in _COLUMNS.items()}  # fmt: skip
        self._append({**nothing, "tokens": np.asarray([token])})

    def __call__(
        self, reading: Reading, tokens: Array, probabilities: Array, source: Array | None = None
    ) -> None:
        """Take in what was expected of some tokens that came; see ``session.Observer``."""
        loss = np.empty((len(tokens), 2))
        loss[:, 0], loss[:, 1] = probabilities[:, 0], reading.blended(probabilities)
        np.log(np.maximum(loss, 1e-300, out=loss), out=loss)
        top, top_p = self._likeliest.of(reading)
        self._append(
            {
                "tokens": tokens,
                "loss": np.negative(loss, out=loss),
                "parts": probabilities,
                "weights": reading.weights,
                "top": top,
                "top_p": top_p,
                **({} if source is None else {"source": source}),
            }
        )

    def extend(self, rows: Mapping[str, Array]) -> None:
        """Take in rows that another trace had: an array for each of its attributes."""
        self._append(dict(rows))

    def rows(self) -> dict[str, Array]:
        """Return all that there is, as ``extend`` takes it."""
        count = self._count
        return {name: array[:count] for name, array in self._columns.items()}

    def _append(self, rows: dict[str, Array]) -> None:
        count = len(rows["tokens"])
        end = self._count + count
        if end > len(self._columns["tokens"]):
            self._columns = {name: _grown(array, end) for name, array in self._columns.items()}
        for name, column in self._columns.items():
            column[self._count : end] = rows.get(name, -1)
        self._count = end


_COLUMNS: dict[str, tuple[tuple[int, ...], type]] = {
    "tokens": ((), np.int32),
    "loss": ((2,), np.float32),
    "parts": ((3,), np.float32),
    "weights": ((3,), np.float32),
    "top": ((2, TOP), np.int32),
    "top_p": ((2, TOP), np.float32),
    "source": ((), np.int32),
}
#: What of the window's weight a token's source must have.
_LEAST = 0.1


def _grown(array: Array, least: int) -> Array:
    """Return a copy with room behind it; the old one may be looked at elsewhere."""
    room = np.empty((max(least, 2 * len(array)), *array.shape[1:]), array.dtype)
    room[: len(array)] = array
    return room


def follow(
    session: AtlasSession,
    tokens: Sequence[int],
    trace: Trace,
    after: Callable[[], None] | None = None,
    *,
    stores: bool = False,
) -> None:
    """Read tokens and trace all of them, also the one that nothing came before.

    ``after`` is called after each step of the memory, on this thread. ``stores``: the episode that is open goes on with
    what is read.

    Raises
    ------
    AtlasError
        When the session cannot read on; the trace then ends where it stopped.
    """
    if not tokens:
        return
    unscored = [] if session.open_output() else [tokens[0]]

    def observe(reading: Reading, came: Array, probabilities: Array) -> None:
        while unscored:
            trace.begin(unscored.pop())
        trace(reading, came, probabilities, sources(session, reading, came, trace))
        if after is not None:
            after()

    before, session.observer = session.observer, observe
    try:
        session.run(session.reading(tokens, stores=stores))
        while unscored:  # it was the only one
            trace.begin(unscored.pop())
    finally:
        session.observer = before


def sources(session: AtlasSession, reading: Reading, came: Array, trace: Trace) -> Array:
    """Return the numbers (n,) in a trace of the tokens that the window knew the next ``n`` from; -1: it did not.

    For observers, before the trace takes them in. The window's slots are the tokens that the memory learned up to the
    step that the present ones are in, oldest first.
    """
    found = np.full(len(came), -1, np.int32)
    memory, slots = session.memory, reading.slots.tokens
    if memory is None:
        return found
    chunk, seen = memory.settings.chunk_size, memory.tokens_seen
    waits = chunk - memory.room
    if session.learns:  # with those that came, which may have filled the step
        waits = waits or chunk
        trace.places.put(seen - len(came), len(trace), len(came))
    if not len(slots):
        return found
    weights = reading.window.weights
    heavy = (weights >= _LEAST).ravel().nonzero()[0]  # few: their sum is 1 at most
    rows, places = heavy // len(slots), heavy % len(slots)
    best: dict[int, tuple[float, int]] = {}  # of each row, the oldest of equals
    hit = slots[places] == came[rows]
    for row, place, weight in zip(
        rows[hit].tolist(), places[hit].tolist(), weights.take(heavy[hit]).tolist(), strict=True
    ):
        if row not in best or weight > best[row][0]:
            best[row] = weight, place
    start, known = seen - waits - len(slots), trace.tokens
    for row, (_, place) in best.items():
        number = trace.places.at(start + place)
        # a memory that was put back holds others there
        if 0 <= number < len(known) and known[number] == came[row]:
            found[row] = number
    return found
