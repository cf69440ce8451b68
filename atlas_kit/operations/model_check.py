"""What two versions of one model make of a text: perplexity of each, and how far their predictions are apart.

For a model before and after it was quantised. Both read the same tokens in windows that start anew, and each token but
a window's first is predicted. The divergence is Kullback-Leibler's from the first model's predictions to the second's,
over the whole vocabulary, as ``llama-perplexity --kl-divergence`` measures it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.engine import Engine, Feed
from atlas_kit.storage.given import Given, Progress, name_of, use_source

if TYPE_CHECKING:
    from atlas_kit.storage.source import StrPath

#: Tokens of a window.
WINDOW = 512
#: Predictions that are compared at once: what is held in memory is this times the vocabulary.
_ROWS = 16
#: Bytes of a text that are read for a token: more than any tokenizer makes of one.
_BYTES = 64


@dataclass(frozen=True)
class ModelCheck:
    """Two models on one text: ``tokens`` were predicted; divergences in nats; ``same_top`` is a share of the tokens."""

    text: str
    tokens: int
    perplexity_before: float
    perplexity_after: float
    kl_mean: float
    kl_99: float
    kl_max: float
    same_top: float

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return asdict(self)


def check_models(
    before: StrPath, after: StrPath, text: Given, *, tokens: int = 2048, threads: int | None = None,
    progress: Progress | None = None,
) -> ModelCheck:  # fmt: skip
    """Let two models read the first ``tokens`` tokens of a text.

    Raises
    ------
    InvalidParamError
        The text has fewer than two tokens, or the models have different vocabularies.
    MissingExtraError, ModelError
        llama.cpp is not installed, or does not load one of them.
    """
    from atlas_kit.llama.llama_engine import LlamaEngine

    with use_source(text) as source:
        content = source.read_upto(0, tokens * _BYTES).decode("utf-8", "replace")
    with contextlib.ExitStack() as stack:
        first, second = (
            stack.enter_context(LlamaEngine(path, n_ctx=WINDOW, n_threads=threads))
            for path in (before, after)
        )
        return compare_engines(
            first, second, first.tokenize(content)[:tokens], name=name_of(text), progress=progress
        )


def require_text(text: Given) -> None:
    """Refuse a text that cannot be read or is empty, before a model is quantised.

    Raises
    ------
    InvalidParamError, NoSuchFileError, FileAccessError
        It is empty, or not there, or cannot be read.
    """
    with use_source(text) as source:
        if not source.read_upto(0, _BYTES):
            raise InvalidParamError("the text has too few tokens to predict any", path=name_of(text))


def different_vocabularies() -> InvalidParamError:
    """Return why two models cannot be compared on a text whose tokens are not the same in both."""
    return InvalidParamError(
        "the two models have different vocabularies",
        hint="One predicts other tokens than the other, so that there is no divergence between their predictions.",
    )


def compare_engines(
    first: Engine, second: Engine, tokens: Sequence[int], *, name: str = "-", progress: Progress | None = None
) -> ModelCheck:
    """Compare what two engines, with contexts of ``WINDOW`` tokens, predict of a text's tokens."""
    if first.info.n_vocab != second.info.n_vocab or any(
        first.piece(token) != second.piece(token) for token in set(tokens)
    ):
        raise different_vocabularies()
    begin = list(first.begin)
    step = min(WINDOW, first.n_ctx, second.n_ctx) - len(begin)
    sums = _Sums()
    for start in range(0, len(tokens), step):
        window = begin + list(tokens[start : start + step])
        for engine in (first, second):
            engine.forget(0)
        _read_window(first, second, window, sums)
        if progress:
            progress("comparing predictions", min(start + step, len(tokens)), len(tokens))
    if not sums.count:
        raise InvalidParamError("the text has too few tokens to predict any", path=name)
    return sums.result(name)


def _read_window(first: Engine, second: Engine, window: list[int], sums: _Sums) -> None:
    size = min(first.n_batch, second.n_batch)
    for at in range(0, len(window), size):
        piece = window[at : at + size]
        feed = Feed(0, piece, at, len(piece))
        (ours,), (theirs,) = first.decode([feed]), second.decode([feed])
        coming = np.asarray(window[at + 1 : at + 1 + len(piece)], np.int64)
        for row in range(0, len(coming), _ROWS):
            some = coming[row : row + _ROWS]
            stop = row + len(some)
            sums.add(_log_softmax(ours.logits[row:stop]), _log_softmax(theirs.logits[row:stop]), some)


def _log_softmax(logits: Array) -> Array:
    x = np.asarray(logits, np.float64)
    x = x - x.max(axis=1, keepdims=True)
    found: Array = x - np.log(np.exp(x).sum(axis=1, keepdims=True))
    return found


class _Sums:
    """What is added up over the tokens of a text."""

    def __init__(self) -> None:
        self.count = self.same = 0
        self.loss = [0.0, 0.0]
        self.divergences: list[Array] = []

    def add(self, ours: Array, theirs: Array, tokens: Array) -> None:
        """Take some predictions, as log-probabilities (n, vocabulary), and the (n,) tokens that came."""
        rows = np.arange(len(tokens))
        self.count += len(tokens)
        self.loss[0] -= float(ours[rows, tokens].sum())
        self.loss[1] -= float(theirs[rows, tokens].sum())
        p = np.exp(ours)
        # rounding alone can make it negative
        self.divergences.append(np.maximum((p * np.where(p > 0, ours - theirs, 0.0)).sum(axis=1), 0.0))
        self.same += int(np.count_nonzero(ours.argmax(axis=1) == theirs.argmax(axis=1)))

    def result(self, name: str) -> ModelCheck:
        """Return means over all tokens."""
        before, after = (_exp(loss / self.count) for loss in self.loss)
        found = np.concatenate(self.divergences)
        return ModelCheck(
            name, self.count, before, after, float(found.mean()), float(np.quantile(found, 0.99)),
            float(found.max()), self.same / self.count,
        )  # fmt: skip


def _exp(value: float) -> float:
    return math.exp(value) if value < 700 else math.inf
