"""What one decode of llama.cpp reads and gives: tokens, their positions and sequences, and rows of outputs.

They lie in NumPy, so that many sequences are filled in at once; so do the rows that it gives. Knows no model.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from atlas_kit.llama.engine import Feed


class LlamaBatch:
    """A batch of at most ``size`` tokens, each in one sequence; ``struct`` is what ``llama_decode`` takes."""

    def __init__(self, api: Any, size: int) -> None:
        self._tokens, self._positions, self._sequences = (np.zeros(size, np.int32) for _ in range(3))
        self._counts = np.ones(size, np.int32)
        self._outputs = np.zeros(size, np.int8)
        first, step = self._sequences.ctypes.data, self._sequences.itemsize
        self._places = np.arange(first, first + size * step, step, dtype=np.uintp)
        self.struct = api.llama_batch()
        for name, array in (
            ("token", self._tokens),
            ("pos", self._positions),
            ("n_seq_id", self._counts),
            ("seq_id", self._places),
            ("logits", self._outputs),
        ):
            kind = type(getattr(self.struct, name))
            setattr(self.struct, name, array.ctypes.data_as(kind))

    def fill(self, feeds: Sequence[Feed], *, all_outputs: bool = False) -> None:
        """Take the tokens of some feeds, one behind the other; ``all_outputs``: each of them becomes an output."""
        tokens: list[int] = []
        positions: list[int] = []
        sequences: list[int] = []
        outputs: list[int] = []
        for feed in feeds:
            count = len(feed.tokens)
            tokens += feed.tokens
            if count == 1:
                positions.append(feed.position)
                sequences.append(feed.sequence)
                outputs.append(feed.outputs)
                continue
            positions += range(feed.position, feed.position + count)
            sequences += [feed.sequence] * count
            outputs += [0] * (count - feed.outputs) + [1] * feed.outputs
        total = self.struct.n_tokens = len(tokens)
        self._tokens[:total] = tokens
        self._positions[:total] = positions
        self._sequences[:total] = sequences
        self._outputs[:total] = 1 if all_outputs else outputs


class Rows:
    """Rows of numbers that llama.cpp keeps, as NumPy sees them; the view is made anew only when they have moved."""

    def __init__(self) -> None:
        self._address, self._known = 0, np.empty((0, 0), np.float32)

    def rows(self, pointer: Any, count: int, width: int) -> Any:
        """Return the first ``count`` rows, (count, width), of what a pointer to floats points to."""
        if not count:
            return np.empty((0, width), np.float32)
        address = ctypes.addressof(pointer.contents)
        if address != self._address or count > len(self._known):
            self._address, self._known = address, np.ctypeslib.as_array(pointer, (count, width))
        return self._known[:count]
