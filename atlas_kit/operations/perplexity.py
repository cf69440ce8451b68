"""Perplexity of a text with and without memories: one pass of the model, and every memory reads the same outputs.

``none`` is the model alone, ``window`` the exact window, ``omega`` the learned memory, ``atlas`` both. ``knn`` is the
unbounded rival: a kNN-LM over the whole history, with states of full width and the same online gate; ``knn-fixed`` the
same with one weight, the best of ``WEIGHTS`` in hindsight.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.session import DEVICES, AtlasSession
from atlas_kit.llama.session_states import new_memory
from atlas_kit.llama.steps import scores
from atlas_kit.llama.token_memory import TokenMemory
from atlas_kit.settings.atlas_settings import AtlasSettings

Progress = Callable[[int, int], None]

KINDS = ("none", "window", "knn-fixed", "knn", "omega", "atlas")
NOTES = {
    "none": "the model alone",
    "window": "exact window",
    "knn-fixed": "kNN-LM, whole history, one weight",
    "knn": "kNN-LM, whole history, online gate",
    "omega": "learned memory",
    "atlas": "learned memory and exact window",
}
#: What a fixed weight is chosen from, in hindsight and on the tokens that count: the rival's best case.
WEIGHTS = tuple(round(0.05 * step, 2) for step in range(1, 19))
#: Sharpness of the kNN-LM: the best of 10, 20, 30 and 50 on every document that was tried.
KNN_SHARPNESS = 20.0
#: Steps of the curve over positions.
BINS = 8


@dataclass
class Score:
    """What one memory made of the texts."""

    kind: str
    perplexity: float
    perplexity_after: float | None
    state_bytes: int
    seconds: float
    weight: float | None = None
    curve: list[float] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        """Return the score as JSON-ready data."""
        found = {
            "perplexity": self.perplexity,
            "perplexity_after": self.perplexity_after,
            "state_bytes": self.state_bytes,
            "seconds": self.seconds,
            "curve": self.curve,
        }
        return found if self.weight is None else {**found, "weight": self.weight}


@dataclass
class Comparison:
    """The perplexity of texts under several memories.

    Attributes
    ----------
    tokens, scored_after
        Tokens that were predicted, and those of them behind position ``after`` of their text.
    edges
        The positions between which the curve's points lie.
    documents
        For each text its name, tokens, and perplexity per memory (all, and behind ``after``).
    seconds
        What the model itself took.
    """

    model: str
    n_ctx: int
    after: int
    tokens: int
    scored_after: int
    edges: list[int]
    settings: AtlasSettings
    results: dict[str, Score]
    documents: list[dict[str, Any]]
    seconds: float
    notes: list[str] = field(default_factory=list)

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the comparison as JSON-ready data."""
        return {
            "model": self.model,
            "n_ctx": self.n_ctx,
            "after": self.after,
            "tokens": self.tokens,
            "tokens_after": self.scored_after,
            "settings": self.settings.to_json(),
            "edges": self.edges,
            "results": {kind: score.to_json() for kind, score in self.results.items()},
            "documents": self.documents,
            "seconds_model": self.seconds,
        }


class Rival:
    """One memory that listens, and what it gave to each token: model, memory, window, blended."""

    def __init__(self, kind: str, memory: TokenMemory | None) -> None:
        self.kind, self.memory, self.seconds = kind, memory, 0.0
        self.parts: list[Array] = []

    def listen(self, hidden: Array, logits: Array, tokens: Array, following: Array) -> None:
        """Read what followed some tokens, step by step (see ``AtlasSession.reading``)."""
        started = time.perf_counter()
        if self.memory is None:
            self.parts.append(np.exp(scores(logits, following))[:, [0, 0, 0, 1]])
        else:
            for reading, _, p in self.memory.follow(hidden, logits, tokens, following):
                mixed = reading.blended(p)
                if not reading.window.weights.shape[1]:  # an empty window has no say, whatever its weight
                    p[:, 2] = p[:, 0]
                self.parts.append(np.column_stack((p, mixed)))
        self.seconds += time.perf_counter() - started

    @property
    def found(self) -> Array:
        """(n, 4): what model, memory, window and all together gave to each token."""
        return np.concatenate(self.parts) if self.parts else np.empty((0, 4))


def settings_of(kind: str, base: AtlasSettings, tokens: int, n_embd: int) -> AtlasSettings | None:
    """Return the memory of a kind: ``base`` with a part left out, or the kNN-LM over ``tokens`` tokens."""
    if kind == "none":
        return None
    if kind == "window":
        return base.replace(learning_rate=0)
    if kind == "omega":
        return base.replace(window_size=0)
    if kind.startswith("knn"):
        return AtlasSettings(
            window_size=max(tokens, 1), learning_rate=0, memory_dim=min(n_embd, 4096), ranking=False,
            sharpness=KNN_SHARPNESS,
        )  # fmt: skip
    return base


def compare(
    engine: Engine,
    texts: Sequence[tuple[str, str]],
    kinds: Sequence[str] = ("none", "window", "atlas"),
    *,
    settings: AtlasSettings | None = None,
    after: int = 4096,
    limit: int | None = None,
    device: str = "cpu",
    rollover: str = "auto",
    progress: Progress | None = None,
) -> Comparison:
    """Read texts and say what each memory would have made of them.

    Parameters
    ----------
    texts
        (name, text) each; every one starts with an empty context and empty memories.
    kinds
        Names in ``KINDS``.
    after
        Also score the tokens from this position of their text on.
    limit
        Read at most so many tokens of each text.
    progress
        Is told tokens read and all tokens.

    Raises
    ------
    InvalidParamError
        For an unknown kind, or texts without tokens.
    """
    for kind in kinds:
        if kind not in KINDS:
            raise InvalidParamError(
                f"there is no memory {kind!r}", key="memory", hint=f"Choose {', '.join(KINDS)}."
            )
    if after < 0:
        raise InvalidParamError(f"after is {after}", key="after", hint="Choose 0 or more.")
    if limit is not None and limit < 1:
        raise InvalidParamError(f"limit is {limit}", key="limit", hint="Choose 1 or more.")
    if device not in DEVICES:
        raise InvalidParamError(f"{device!r} is not a device", key="device", hint="Choose cpu or cuda.")
    if not texts or not kinds:
        raise InvalidParamError(
            "there is no text or no memory to compare", key="texts" if kinds else "memory"
        )
    base = settings or AtlasSettings()
    documents = [(name, engine.tokenize(text)[:limit]) for name, text in texts]
    total = sum(len(tokens) for _, tokens in documents)
    if any(len(tokens) < 2 for _, tokens in documents):
        name = next(name for name, tokens in documents if len(tokens) < 2)
        raise InvalidParamError("this text is too short to be predicted", path=name, key="text")
    runs, done, seconds = [], 0, 0.0
    for _, tokens in documents:
        rivals = _rivals(engine, kinds, base, len(tokens), DEVICES[device])
        started = time.perf_counter()

        def listen(*outputs: Array, rivals: list[Rival] = rivals) -> None:
            nonlocal done
            for rival in rivals:
                rival.listen(*outputs)
            done += len(outputs[-1])
            if progress is not None:
                progress(done, total)

        with AtlasSession(engine, None, rollover=rollover) as session:
            session.run(session.reading([*engine.begin, *tokens], listen=listen))
        seconds += time.perf_counter() - started - sum(rival.seconds for rival in rivals)
        runs.append({rival.kind: rival for rival in rivals})
    return _judge(engine, documents, kinds, base, after, runs, seconds)


def _rivals(
    engine: Engine, kinds: Sequence[str], base: AtlasSettings, tokens: int, backend: str
) -> list[Rival]:
    found = []
    for kind in dict.fromkeys("knn" if kind == "knn-fixed" else kind for kind in kinds):
        settings = settings_of(kind, base, tokens, engine.info.n_embd)
        memory = None if settings is None else new_memory(engine, settings, backend)
        found.append(Rival(kind, memory))
    return found


def _judge(
    engine: Engine, documents: list[tuple[str, list[int]]], kinds: Sequence[str], base: AtlasSettings, after: int,
    runs: list[dict[str, Rival]], seconds: float,
) -> Comparison:  # fmt: skip
    begin = len(engine.begin)
    # position of the predicted token in its text
    positions = [np.arange(1 - begin, len(tokens)) for _, tokens in documents]
    where = np.concatenate(positions)
    late = where >= after
    longest = int(where.max()) + 1
    edges = np.unique(np.linspace(0, longest, BINS + 1).astype(int)).tolist()
    results, losses = {}, {}
    for kind in dict.fromkeys(kinds):
        rivals = [run["knn" if kind == "knn-fixed" else kind] for run in runs]
        p = np.concatenate([rival.found for rival in rivals])
        weight = _best_weight(p, late if late.any() else ~late) if kind == "knn-fixed" else None
        mixed = p[:, 3] if weight is None else (1 - weight) * p[:, 0] + weight * p[:, 2]
        nats = losses[kind] = -np.log(np.maximum(mixed, 1e-300))
        state = max((rival.memory.state_bytes for rival in rivals if rival.memory is not None), default=0)
        results[kind] = Score(
            kind, _perplexity(nats), _perplexity(nats[late]) if late.any() else None, state,
            seconds + sum(rival.seconds for rival in rivals), weight,
            [_perplexity(nats[(where >= a) & (where < b)]) for a, b in pairwise(edges)],
        )  # fmt: skip
    return Comparison(
        engine.info.name, engine.n_ctx, after, len(where), int(late.sum()), edges, base, results,
        _per_document(documents, positions, losses, after), seconds,
    )  # fmt: skip


def _per_document(
    documents: list[tuple[str, list[int]]], positions: list[Array], losses: dict[str, Array], after: int
) -> list[dict[str, Any]]:
    found, at = [], 0
    for (name, _), where in zip(documents, positions, strict=True):
        late = where >= after
        part = slice(at, at + len(where))
        at += len(where)
        scores = {
            kind: {
                "perplexity": _perplexity(nats[part]),
                "perplexity_after": _perplexity(nats[part][late]) if late.any() else None,
            }
            for kind, nats in losses.items()
        }
        found.append({"name": name, "tokens": len(where), "results": scores})
    return found


def _best_weight(p: Array, counted: Array) -> float:
    losses = [
        -np.log(np.maximum((1 - w) * p[counted, 0] + w * p[counted, 2], 1e-300)).mean() for w in WEIGHTS
    ]
    return WEIGHTS[int(np.argmin(losses))]


def _perplexity(nats: Array) -> float:
    return float(np.exp(nats.mean())) if len(nats) else float("nan")
