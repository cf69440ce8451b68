"""A limit for thoughts: once a model has thought for so many tokens, the mark that ends them is put in its mouth."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.sampling import Floats, Sampler

#: Far below any logit, and no infinity, which some samplers cannot take.
_NEVER = -1e9


class Budget:
    """A sampler that ends thoughts in time; a grammar and the penalties of the one within see every token.

    Parameters
    ----------
    sampler
        Chooses all other tokens.
    engine
        Whose tokens they are.
    marks
        What stands around thoughts.
    thinking
        The answer begins within them.
    most
        Tokens that they may have.
    """

    def __init__(
        self, sampler: Sampler, engine: Engine, marks: tuple[str, str], thinking: bool, most: int
    ) -> None:
        self._sampler, self._engine, self._most = sampler, engine, most
        self._open, self._close = (mark.encode() for mark in marks)
        self._end: list[int] = list(engine.tokenize(marks[1], special=True))
        self._thinking, self._over, self._said, self._count = thinking, False, b"", 0
        self._forced: list[int] = []
        self.candidates: list[tuple[int, float]] = []
        self.few = 0  # it may have to say what nobody would choose

    def accept(self, tokens: Iterable[int]) -> None:
        """Take note of tokens that stand before what is chosen."""
        self._sampler.accept(tokens)

    def sample(self, logits: Floats, index: int | None = None) -> int:
        """Choose a token, or the next one of the mark that ends the thoughts."""
        token = self._sample(logits, index)
        self.candidates = self._sampler.candidates
        return token

    def sample_among(self, tokens: Array, logits: Floats) -> int:
        """Do what nobody asks of one who wants to see all."""
        raise NotImplementedError

    def _sample(self, logits: Floats, index: int | None) -> int:
        if self._over:
            return self._sampler.sample(logits, index)
        if self._thinking and self._count >= self._most and not self._forced:
            self._forced = self._end[:]
        if self._forced:
            token = self._sampler.sample(_only(self._forced.pop(0), logits))
        else:
            token = self._sampler.sample(logits, index)
        self._look(token)
        return token

    def _look(self, token: int) -> None:
        """Follow where the answer is: before its thoughts, within or behind them."""
        self._said += self._engine.piece(token, special=True)
        if self._thinking:
            self._count += 1
            self._over = self._close in self._said
            self._said = self._said[-2 * len(self._close) :]
            return
        begun = self._said.lstrip()
        if begun.startswith(self._open):
            self._thinking, self._said = True, b""
        else:
            self._over = not self._open.startswith(begun)

    def close(self) -> None:
        """Free the sampler within."""
        self._sampler.close()


def _only(token: int, logits: Floats) -> Floats:
    found: Floats = np.full(len(logits), _NEVER, np.float32)
    found[token] = 0.0
    return found
