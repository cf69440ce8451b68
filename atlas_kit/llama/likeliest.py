"""The likeliest tokens of model and blend after each of some tokens, for who looks on while a session learns.

The same as the first few of ``Reading.log_probabilities`` row by row over the whole vocabulary, for a small part of the
time: what is neither a candidate nor in the window is less likely than the model's own first few, which are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading

#: Columns go side by side in groups of so many, whose maxima bound what can be among the likeliest.
_GROUPS = 32


class Likeliest:
    """Finds the ``count`` likeliest tokens, 32 at most.

    One thread may use it at a time: it keeps a table of the vocabulary.

    >>> found = Likeliest(2)
    >>> tokens, p = found.first(np.array([5, 7, 9]), np.array([[0.125, 0.5, 0.375]]))
    >>> tokens.tolist(), p.tolist()
    ([[7, 9]], [[0.5, 0.375]])
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._column = np.empty(0, np.intp)  # of each token; -1 between two questions

    def of(self, reading: Reading) -> tuple[Array, Array]:
        """Return tokens (n, 2, count) of model and blend, likeliest first, and their probabilities; -1 and 0: none."""
        some = reading.top
        if min(some.shape[1], len(reading.tokens)) >= self._count:
            names, before, behind = reading.tokens, reading.before, reading.behind
        else:
            some, names, before, behind = self._wider(reading)
        n = len(some)
        tokens, p = np.empty((n, 2, self._count), np.int32), np.empty((n, 2, self._count), np.float32)
        tokens[:, 0], own = self.first(some, reading.logits[np.arange(n)[:, None], some])
        p[:, 0] = np.exp(own - reading.lse.astype(np.float32)[:, None])
        tokens[:, 1], p[:, 1] = self.first(*self._blend(reading, names, before, behind))
        np.maximum(p, 0, out=p)  # what is there in no place, or no number
        return tokens, p

    def _wider(self, reading: Reading) -> tuple[Array, Array, Array, Array]:
        """Return the model's likeliest (n, count), and candidates, where the memory corrects fewer or is none.

        Returns
        -------
        some, names, before, behind
            (n, count), (U,), (n, U), (n, U): as ``top``, ``tokens``, ``before`` and ``behind`` of a reading.
        """
        from atlas_kit.llama.reading import most_likely

        some = np.stack([most_likely(row, self._count) for row in reading.logits])
        names = np.union1d(reading.tokens, some)
        logits = reading.logits[:, names]
        corrected = logits.copy()
        corrected[:, np.searchsorted(names, reading.tokens)] = reading.corrected
        return some, names, np.exp(logits - reading.lse[:, None]), np.exp(corrected - reading.log_z[:, None])

    def _blend(self, reading: Reading, names: Array, before: Array, behind: Array) -> tuple[Array, Array]:
        """Return tokens (T,), in no order, and their blended probabilities (n, T or more): candidates and window."""
        model, memory, window = reading.weights.astype(np.float32).T[:, :, None]
        known = len(names)
        column, names = self._columns(names, reading)
        width = len(names)
        p = np.empty((len(reading), -(-max(width, 1) // _GROUPS) * _GROUPS), np.float32)
        p[:, width:] = -1
        p[:, :known] = behind
        p[:, :known] *= memory
        p[:, :known] += before.astype(np.float32, order="C") * model
        if width > known:  # in the window and no candidates: they have the model's logits
            lse = reading.lse[:, None]
            factor = model + memory * np.exp(lse - reading.log_z[:, None])
            p[:, known:width] = np.exp(reading.logits[:, names[known:]] - lse.astype(np.float32))
            p[:, known:width] *= factor.astype(np.float32)
        if len(column):
            mass = np.array([np.bincount(column, row, width + 1) for row in reading.window.weights])
            mass *= window
            p[:, :width] += mass[:, :width]
        return names, p

    def _columns(self, names: Array, reading: Reading) -> tuple[Array, Array]:
        """Return the column (slots,) of each slot's token, and the tokens of all columns, ``names`` first.

        A token that the vocabulary lacks, which a damaged memory may hold, has the column behind the last.
        """
        tokens, n_vocab = reading.slots.tokens, reading.logits.shape[1]
        if not len(tokens):
            return tokens, names
        strange = None
        if int(tokens.view(np.uint64).max()) >= n_vocab:  # those below zero are large there
            strange = (tokens < 0) | (tokens >= n_vocab)
            tokens = np.where(strange, names[0], tokens)
        if len(self._column) != n_vocab:
            self._column = np.full(n_vocab, -1, np.intp)
        table, known = self._column, len(names)
        table[names] = np.arange(known)
        column = table[tokens]
        new = tokens[column < 0]
        if len(new):
            some = np.arange(len(new))
            table[new] = some  # of each token, one stays
            new = new[table[new] == some]
            table[new] = np.arange(known, known + len(new))
            names = np.concatenate((names, new))
            column = table[tokens]
        table[names] = -1
        if strange is not None:
            column[strange] = len(names)
        return column, names

    def first(self, names: Array, z: Array) -> tuple[Array, Array]:
        """Return the likeliest of ``names`` and their logits or probabilities z (n, T), likeliest first; -1: none.

        ``names`` is (n, T), or (T,) or fewer, the same for all rows; what lies behind these is smaller in z.
        """
        n, count = len(z), self._count
        if z.shape[1] % _GROUPS:
            z = np.pad(z, ((0, 0), (0, -z.shape[1] % _GROUPS)), constant_values=-np.inf)
        width = z.shape[1]
        # the largest of each group is one of the numbers: at least `count` of all are no smaller than the bound
        largest, groups = z, width
        while groups % 2 == 0 and groups > _GROUPS:
            groups //= 2
            largest = np.maximum(largest[:, :groups], largest[:, groups:])
        bound = np.partition(largest, groups - count, axis=1)[:, groups - count, None]
        places = (z >= bound).ravel().nonzero()[0]
        rows, some = places // width, z.ravel()[places]
        start = rows.searchsorted(np.arange(n + 1))
        if (start[1:] - start[:-1]).min() < count:  # a model whose logits are no numbers
            return self.first(names, np.nan_to_num(z, nan=-np.inf))
        place = np.lexsort((-some, rows))[start[:-1, None] + np.arange(count)]
        at, last = places[place] % width, names.shape[-1] - 1
        found = np.minimum(at, last)
        tokens = names[found] if names.ndim == 1 else names[np.arange(n)[:, None], found]
        return np.where(at <= last, tokens, -1).astype(np.int32), some[place]
