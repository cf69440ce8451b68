"""What two memories make of one text: the model reads it once, both look at the same states, and nothing is learned.

Per token of the text it tells how likely the model alone, the model with memory A and the model with memory B held it,
and how far the two blended predictions are apart over the whole vocabulary. Knows no widgets.
"""

from __future__ import annotations

import codecs
import contextlib
import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.middle_layers import require
from atlas_kit.llama.reading import Reading, most_likely, summarize
from atlas_kit.llama.session import AtlasSession
from atlas_kit.llama.session_states import token_memory
from atlas_kit.llama.steps import scores
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.memory import MemoryState
from atlas_kit.persistence.session_file import about_session, read_session_state
from atlas_kit.storage.given import name_of
from atlas_kit.storage.source import Source

Progress = Callable[[int, int], None]

#: Whose predictions are compared, in this order along the axes of length 3.
WHO = ("model", "a", "b")
#: Tokens whose predictions are compared together: what is held in memory is this times window and vocabulary.
STEP = 16
#: Most likely tokens that are kept of each prediction.
TOP = 6
_LOG_2 = math.log(2)


@dataclass(frozen=True, eq=False)
class Behaviour:
    """The same text under the model alone, with memory A and with memory B.

    A text of n + 1 tokens has n predictions; row i is about token i + 1, as expected after token i.

    Attributes
    ----------
    tokens, pieces
        (n + 1,) token numbers, a begin token included, and their texts: joined, they are the text.
    logprob
        (n, 3) in nats: what model, A and B gave to the token that came.
    js
        (n,) in nats: Jensen-Shannon divergence of A's and B's predictions, 0 (the same) to log 2.
    kl_ab, kl_ba
        (n,) in nats: Kullback-Leibler divergences D(A || B) and D(B || A).
    top, top_p
        (n, 3, k) and (n, 3, k, 3): the most likely tokens of model, A and B, best first, and the probability
        that model, A and B give to each.
    weights, parts
        (n, 2, 3) for A and B: how much model, memory and window counted in the blend, and what each of the three gave
        to the token that came.
    """

    tokens: Array
    pieces: tuple[str, ...]
    logprob: Array
    js: Array
    kl_ab: Array
    kl_ba: Array
    top: Array
    top_p: Array
    weights: Array
    parts: Array

    def __len__(self) -> int:
        return len(self.js)

    @property
    def perplexity(self) -> dict[str, float]:
        """The perplexity of the text under ``model``, ``a`` and ``b``."""
        return dict(zip(WHO, np.exp(-self.logprob.mean(axis=0)).tolist(), strict=True))

    @property
    def gain(self) -> Array:
        """(n,) in nats: by how much B held the token that came for likelier than A."""
        return np.asarray(self.logprob[:, 2] - self.logprob[:, 1])

    def largest(self, count: int = 10, by: str = "js") -> list[int]:
        """Return the rows where A and B differ most, greatest first; rows without a difference are left out.

        ``by``: ``"js"``, the whole predictions, or ``"gain"``, the token that came (in either direction).
        """
        if by not in ("js", "gain"):
            raise InvalidParamError(
                f"{by!r} is not a measure of difference", key="by", hint="Choose js or gain."
            )
        size = np.abs(getattr(self, by))
        order = np.argsort(-size, kind="stable")[:count]
        return [int(row) for row in order if size[row] > 0]

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return {
            "tokens": self.tokens.tolist(),
            "pieces": list(self.pieces),
            "perplexity": self.perplexity,
            **{name: getattr(self, name).tolist() for name in ("logprob", "js", "kl_ab", "kl_ba")},
            "largest": self.largest(),
        }


def compare_behaviour(
    engine: Engine | AtlasSession,
    a: Any,
    b: Any,
    text: str | Sequence[int],
    *,
    progress: Progress | None = None,
    force: bool = False,
    **secret: Any,
) -> Behaviour:
    """Read a text beside two memories, and see where they expect different things.

    Nothing is learned, and sessions stay as they were: the memories are copies, and the text is read from an empty
    context, in a free sequence of the engine or aside in a session.

    Parameters
    ----------
    engine
        A model that is open, with a free sequence; or a session, which lends its own and gets it back as it was.
    a, b
        What ``memory_beside`` takes: a path, a session, a ``TokenMemory``, a snapshot; None for the model alone.
    text
        At least one token behind the begin token.
    progress
        Is called with how many of how many tokens are read; what it raises ends the comparison.
    force
        Compare memories of another model, too, if they fit.
    secret
        ``passphrase`` or ``key`` of encrypted files.

    Raises
    ------
    InvalidParamError
        The text is too short, or the engine has no free sequence.
    AtlasError
        A memory cannot be loaded, or does not fit the model.

    Examples
    --------
    >>> from atlas_kit.llama import AtlasSession, FakeEngine
    >>> engine = FakeEngine(n_ctx=512)
    >>> with AtlasSession(engine) as a, AtlasSession(engine) as b:
    ...     _ = a.feed("to be or not to be, that is the question. " * 8)
    ...     _ = b.feed("it was the best of times, it was the worst of times. " * 8)
    ...     found = compare_behaviour(engine, a, b, "it was the best of times")
    >>> found.perplexity["b"] < found.perplexity["a"]
    True
    """
    model = engine.engine if isinstance(engine, AtlasSession) else engine
    watchers = [_Watcher(memory_beside(model, given, force=force, **secret)) for given in (a, b)]
    with _reader(engine) as session:
        tokens = session.tokens_of(text)
        if len(tokens) < 2:
            raise InvalidParamError("the text is too short to compare", key="text", hint="Give a longer one.")
        rows = _Rows()

        def listen(hidden: Array, logits: Array, current: Array, following: Array) -> None:
            for at in range(0, len(following), STEP):
                part = slice(at, at + STEP)
                rows.add(watchers, hidden[part], logits[part], current[part], following[part])
                if progress is not None:
                    progress(rows.count, len(tokens) - 1)

        session.run(session.reading(tokens, listen=listen))
    return rows.behaviour(np.asarray(tokens), tuple(pieces_of(model, tokens)))


def memory_beside(engine: Engine, given: Any, *, force: bool = False, **secret: Any) -> TokenMemory | None:
    """Return a copy of a memory that can look at this model's states; None stays None.

    Parameters
    ----------
    given
        A ``.atlas`` file, by path, as bytes or opened; an ``AtlasSession`` or ``TokenMemory``; or anything with
        ``settings``, ``memory_state()`` and ``waiting``, as snapshots have.
    force
        Load another model's memory, too.
    secret
        ``passphrase`` or ``key`` of an encrypted file.

    Raises
    ------
    AtlasError
        The memory cannot be loaded, or does not fit.
    """
    if given is None:
        return None
    if isinstance(given, (str, os.PathLike, bytes, Source)):
        kept = read_session_state(
            given, context=False, expect_model=engine.info.identity, force=force, backend="numpy", **secret
        )
        with about_session(name_of(given)):
            return token_memory(engine, kept)
    if isinstance(given, AtlasSession):
        given = given.memory
        if given is None:
            return None
    if isinstance(given, TokenMemory):
        settings, state, waiting = given.settings, given.state, given.waiting()
    elif hasattr(given, "memory_state") and getattr(given, "settings", None) is not None:
        settings, state, waiting = given.settings, given.memory_state(), getattr(given, "waiting", {})
    else:
        raise InvalidParamError(
            f"{type(given).__name__} does not say which model it belongs to",
            key="memory",
            hint="Give a .atlas file, a session, or a snapshot of one.",
        )
    require(engine, settings)
    memory = TokenMemory(engine.output_rows(), settings, None)
    _require_fit(memory, state)
    memory.restore(
        state.map(memory.memory.xp.array), waiting
    )  # learning may write into a session's own arrays
    return memory


def _require_fit(memory: TokenMemory, state: MemoryState) -> None:
    for group, arrays in memory.state.groups().items():
        found = {name: tuple(array.shape) for name, array in getattr(state, group).items()}
        if found != {name: tuple(array.shape) for name, array in arrays.items()}:
            raise InvalidParamError(
                f"the {group} of this memory are not of the shape that the model and the settings ask for",
                key=group,
                hint="This memory belongs to another model.",
            )


@contextlib.contextmanager
def _reader(engine: Engine | AtlasSession) -> Iterator[AtlasSession]:
    """Lend a session with an empty context."""
    if not isinstance(engine, AtlasSession):
        with AtlasSession(engine, None) as session:
            yield session
        return
    with engine.aside():
        engine.forget_context()
        yield engine
        engine.run(engine.reading(()))  # nobody listens any more


class _Watcher:
    """One memory, or none, that looks at what the model gives."""

    def __init__(self, memory: TokenMemory | None) -> None:
        self._memory = memory
        self._readings: list[tuple[Reading, int]] = []  # of each row its reading, and the place there

    def read(self, hidden: Array, logits: Array, current: Array, following: Array) -> tuple[Array, Array]:
        """Return weights (n, 3) and the probabilities (n, 3) that model, memory and window gave to what came."""
        if self._memory is None:
            p = np.exp(scores(logits, following)[:, :1])
            return np.tile([1.0, 0.0, 0.0], (len(p), 1)), np.pad(p, ((0, 0), (0, 2)))
        self._readings = []
        weights, parts = [], []
        for at in range(0, len(following), self._memory.room):  # the steps in which a session reads
            step = slice(at, at + self._memory.room)
            reading = self._memory.read(hidden[step], logits[step], current[step])
            self._readings += [(reading, row) for row in range(len(reading))]
            weights.append(reading.weights)
            parts.append(self._memory.watch(reading, following[step]))
        return np.concatenate(weights), np.concatenate(parts)

    def distribution(self, row: int, model: Array) -> Array:
        """Return the blended prediction (n_vocab,) in float64; ``model`` is the model's own."""
        if self._memory is None:
            return model
        reading, place = self._readings[row]
        p = np.exp(reading.log_probabilities(place).astype(np.float64))
        return np.asarray(p / p.sum())


class _Rows:
    """Collects what was found per prediction."""

    def __init__(self) -> None:
        self._found: dict[str, list[Array]] = {}
        self.count = 0

    def add(
        self, watchers: list[_Watcher], hidden: Array, logits: Array, current: Array, following: Array
    ) -> None:
        """Take in a few tokens that follow each other."""
        _, lse, _ = summarize(logits, 0)
        looked = [watcher.read(hidden, logits, current, following) for watcher in watchers]
        for row, token in enumerate(following):
            model = np.exp(logits[row].astype(np.float64) - lse[row])
            model /= model.sum()
            three = [model, *(watcher.distribution(row, model) for watcher in watchers)]
            kept: dict[str, Any] = _row(three, int(token))
            kept["weights"] = [weights[row] for weights, _ in looked]
            kept["parts"] = [parts[row] for _, parts in looked]
            for name, value in kept.items():
                self._found.setdefault(name, []).append(np.asarray(value))
        self.count += len(following)

    def behaviour(self, tokens: Array, pieces: tuple[str, ...]) -> Behaviour:
        """Return everything that was collected."""
        return Behaviour(tokens, pieces, **{name: np.stack(rows) for name, rows in self._found.items()})


def _row(three: list[Array], token: int) -> dict[str, Any]:
    """Compare the predictions (n_vocab,) of model, A and B; ``token`` came."""
    _, a, b = three
    top = np.stack([_best(p, TOP) for p in three])
    return {
        "logprob": np.log([max(float(p[token]), 1e-300) for p in three]),
        "js": jensen_shannon(a, b),
        "kl_ab": kullback_leibler(a, b),
        "kl_ba": kullback_leibler(b, a),
        "top": top,
        "top_p": np.stack([p[top] for p in three], axis=-1),
    }


def _best(p: Array, count: int) -> Array:
    """Return the ``count`` likeliest tokens of p (n_vocab,), likeliest first; the lower number first of equals."""
    found = np.sort(most_likely(p, min(count, len(p))))
    return np.asarray(found[np.argsort(-p[found], kind="stable")])


def kullback_leibler(p: Array, q: Array) -> float:
    """Return D(p || q) in nats of two distributions (n,); infinite where q rules out what p allows.

    >>> round(kullback_leibler(np.array([0.5, 0.5]), np.array([0.25, 0.75])), 6)  # 0.5 log 2 + 0.5 log(2/3)
    0.143841
    """
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    here = p > 0
    with np.errstate(divide="ignore"):
        ratio = np.log(p[here]) - np.log(q[here])
    return max(0.0, float(p[here] @ ratio))


def jensen_shannon(p: Array, q: Array) -> float:
    """Return the Jensen-Shannon divergence in nats, 0 to log 2: the mean of D(p || m) and D(q || m), m = (p + q) / 2.

    >>> round(jensen_shannon(np.array([1.0, 0.0]), np.array([0.0, 1.0])), 6)  # log 2
    0.693147
    """
    # m itself is not formed: half of the smallest number is 0, and log(p / m) is log 2 - log(1 + q / p) without it
    p, q = np.asarray(p, np.float64), np.asarray(q, np.float64)
    larger, smaller = np.maximum(p, q), np.minimum(p, q)
    here = larger > 0
    larger = larger[here]
    share = smaller[here] / larger  # 0 to 1
    log_share = np.log(np.where(share > 0, share, 1))  # of 0 times log 0 the limit is 0
    # x log(x / m) + y log(y / m) of x = larger and y = share x, by x: at least 0 in each place
    both = (1 + share) * (_LOG_2 - np.log1p(share)) + share * log_share
    both = np.where(share < 1, np.maximum(both, 0), 0)
    return min(float(larger @ both) / 2, _LOG_2)


def pieces_of(engine: Engine, tokens: Sequence[int]) -> list[str]:
    """Return the text of each token; a character of several tokens stands with its last."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    found = [decoder.decode(engine.piece(int(token), special=True)) for token in tokens]
    if found:
        found[-1] += decoder.decode(b"", final=True)
    return found
