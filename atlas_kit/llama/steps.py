"""What a session asks of whoever decodes for it, and what it gives: steps, tokens, and the outcome of reading."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.llama.engine import Feed, Outputs

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading

T = TypeVar("T")


class Token(NamedTuple):
    """A generated token.

    ``text`` is what it completes: nothing while a character, or what may become a stop string, is unfinished.
    ``logprob`` is in nats, of the blended distribution before any sampler; None without a memory, unless
    ``top_logprobs`` was asked for. ``top`` are the most likely tokens then, with theirs, the likeliest first.
    """

    id: int
    text: str
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()

    def __str__(self) -> str:
        return self.text


class Later:
    """What is to be done by the time when something else is, by whichever thread comes by first.

    Two threads never ask at once: whoever lends it to another waits for that.

    >>> done = []
    >>> later = Later(lambda: done.append(1))
    >>> later.do(), later.do(), later.require(), done
    (None, None, None, [1])
    """

    __slots__ = ("_error", "_function")

    def __init__(self, function: Callable[[], object]) -> None:
        self._function: Callable[[], object] | None = function
        self._error: Exception | None = None

    def do(self) -> None:
        """Do it, unless that has been tried; ``require`` says why it failed."""
        function, self._function = self._function, None
        if function is None:
            return
        try:
            function()
        except Exception as error:
            self._error = error

    def require(self) -> None:
        """Do it, unless it is done; raise what it failed with, once."""
        self.do()
        error, self._error = self._error, None
        if error is not None:
            raise error


@dataclass(frozen=True)
class Step:
    """What a session asks of the engine: a feed, and whether it needs hidden states.

    ``token`` is what has been generated and waits for this step alone. ``later`` is what is left to do for it, such as
    to learn it: before the outputs are looked at, and best while they are computed.
    """

    feed: Feed
    hidden: bool
    token: Token | None = None
    later: Later | None = None


#: Is given hidden states, logits, tokens and the tokens that followed.
Listener = Callable[[Array, Array, Array, Array], None]
#: Is given what was expected, the tokens that came (n,), and what each gave to them: ``probabilities_of`` (n, 3).
Observer = Callable[["Reading", Array, Array], None]
#: Is given a token that came, and the log-probabilities (n_vocab,) of all that could have come in its place.
Expected = Callable[[int, Array], None]
#: A piece of work in steps: yields what to decode, is sent what came out.
Work = Generator[Step, Outputs, T]


@dataclass(frozen=True)
class Finish:
    """Why generating ended: ``reason`` is ``"stop"`` or ``"length"``; ``stop`` the stop string that was found."""

    reason: str
    stop: str | None = None


@dataclass(frozen=True)
class Fed:
    """What reading a text gave: for each token but the first of a stream, its probabilities.

    Attributes
    ----------
    tokens
        Tokens read.
    seconds
        Time taken.
    logprob
        (n, 2) in nats: what the model alone, and model and memory together, gave to each token that came. Without a
        memory, both are the model's. ``nan`` where nothing was asked (memory off, and no scores wanted).
    """

    tokens: int
    seconds: float
    logprob: Array

    @property
    def loss(self) -> float:
        """Mean loss with the memory in nats per token."""
        return -float(self.logprob[:, 1].mean()) if len(self.logprob) else float("nan")

    @property
    def model_loss(self) -> float:
        """Mean loss of the model alone in nats per token."""
        return -float(self.logprob[:, 0].mean()) if len(self.logprob) else float("nan")

    @property
    def perplexity(self) -> float:
        """``exp(loss)``."""
        return float(np.exp(self.loss))

    @property
    def model_perplexity(self) -> float:
        """``exp(model_loss)``."""
        return float(np.exp(self.model_loss))


@dataclass
class Stats:
    """Counts of a session; see ``AtlasSession.stats``."""

    tokens_read: int = 0
    tokens_generated: int = 0
    seconds_reading: float = 0.0
    seconds_generating: float = 0.0
    rollovers: int = 0
    #: sums of the losses in nats, model alone and blended, and how many tokens they are of
    losses: list[float] = field(default_factory=lambda: [0.0, 0.0])
    scored: int = 0


def scores(logits: Array, tokens: Array) -> Array:
    """Return the log-probabilities (n, 2) of tokens under logits (n, n_vocab), twice."""
    found = np.empty((len(tokens), 2))
    for row, token in enumerate(tokens):
        z = logits[row]
        top = z.max()
        found[row] = float(z[token]) - float(top) - np.log(np.exp(z - top).sum(dtype=np.float64))
    return found


def log_softmax(logits: Array) -> Array:
    """Return the log-probabilities (n_vocab,) of logits (n_vocab,)."""
    z = logits - logits.max()
    found: Array = z - np.float32(np.log(np.exp(z).sum(dtype=np.float64)))
    return found


def likeliest(logp: Array, count: int) -> tuple[tuple[int, float], ...]:
    """Return the ``count`` most likely tokens with their log-probabilities, the likeliest first.

    >>> likeliest(np.log(np.array([0.2, 0.5, 0.3], np.float32)), 2)[0][0]
    1
    """
    if not count:
        return ()
    from atlas_kit.llama.reading import most_likely

    places = most_likely(logp, min(count, len(logp)))
    ordered = places[np.lexsort((places, -logp[places]))]
    return tuple((int(place), float(logp[place])) for place in ordered)


def drawn(
    candidates: Sequence[tuple[int, float]], token: int, most: int
) -> tuple[float, tuple[tuple[int, float], ...]]:
    """Return the logarithms of the probabilities that a token was drawn with, and the likeliest."""
    chances = dict(candidates)
    return math.log(chances.get(token, 1e-45)), tuple((one, math.log(p)) for one, p in candidates[:most])


def common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Return how many of their first tokens two texts share.

    >>> common_length([1, 2, 3], [1, 2, 4, 3])
    2
    """
    most = min(len(one), len(other))
    for place in range(min(most, 8)):  # where they differ, most do from the beginning
        if one[place] != other[place]:
            return place
    differ = np.flatnonzero(np.asarray(one[:most]) != np.asarray(other[:most]))
    return int(differ[0]) if len(differ) else most
