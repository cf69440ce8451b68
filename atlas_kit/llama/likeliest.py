"""The likeliest tokens of model and blend after each of some tokens, for who looks on while a session learns.

The same as the first few of ``Reading.log_probabilities`` row by row over the whole vocabulary, for a small part of the
time: what is neither a candidate nor in the window is less likely than the model's own first few, which are. While a
lab is open this is most of what it costs the thread that learns, so it makes few calls on few numbers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from atlas_kit.codecs.numbers import Array

if TYPE_CHECKING:
    from atlas_kit.llama.reading import Reading


class Likeliest:
    """Finds the ``count`` likeliest tokens.

    One thread may use it at a time: it keeps a table of the vocabulary, and room for numbers.

    >>> found = Likeliest(2)
    >>> tokens, p = found.first(np.array([5, 7, 9]), np.array([[0.125, 0.5, 0.375]]))
    >>> tokens.tolist(), p.tolist()
    ([[7, 9]], [[0.5, 0.375]])
    """

    def __init__(self, count: int) -> None:
        self._count = count
        self._column = np.empty(0, np.intp)  # of each token; -1 between two questions
        # of a whitened memory: where tokens are among its candidates, and among those that its window held
        self._places = self._held = self._distinct = np.empty(0, np.intp)
        # room that is kept: arrays of this size that come and go cost their pages each time
        self._numbers = np.empty(0, np.float32)

    def of(self, reading: Reading) -> tuple[Array, Array]:
        """Return tokens (n, 2, count) of model and blend, likeliest first, and their probabilities; -1 and 0: none."""
        if reading.pull is not None and reading.top.shape[1] >= self._count:
            found = self._of_own(reading)
            if found is not None:
                return found
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

    def _of_own(self, reading: Reading) -> tuple[Array, Array] | None:
        """Return the same of a whitened memory, which moves each token's own candidates only.

        Looked at are those and what the window holds: all others are as likely as for the model, but for the
        normaliser. None where one of these might be among the likeliest.
        """
        top = reading.top
        n, known = top.shape
        rows = np.arange(2 * n)[:, None]
        row = rows[:n]
        lse = reading.lse.astype(np.float32)[:, None]
        model, memory, window = reading.weights.astype(np.float32).T[:, :, None]
        others = model + memory * np.exp(lse - reading.log_z.astype(np.float32)[:, None])
        seen, column, place, at = self._seen(reading)
        # the candidates, a column that is empty, what the window holds, what the vocabulary lacks
        width = known + len(seen) + 2
        z = self._room(2 * n, width)
        at = at + row * len(reading.tokens)
        own = reading.own.take(at, mode="clip")
        own -= lse
        np.exp(own, out=own)
        z[:n, :known], z[:n, known:] = own, -1
        least = own.min(axis=1, keepdims=True)
        own *= model
        moved = reading.behind.take(at, mode="clip").astype(np.float32)
        moved *= memory
        own += moved
        blend = z[n:]
        if len(seen):
            held = blend[:, known + 1 : known + len(seen) + 2]
            for weights, mass in zip(reading.window.weights, held, strict=True):
                mass[:] = np.bincount(column, weights, len(seen) + 1)
            held *= window
            blend[:, known] = 0
            place = place + (row * width + known + 1)  # -1: the empty column
            flat = blend.reshape(-1)
            own += flat.take(place, mode="clip")
            rest = reading.logits.take(seen, axis=1, mode="clip")
            rest -= lse
            np.exp(rest, out=rest)
            rest *= others
            held[:, :-1] += rest
            flat.put(place, -1, mode="clip")  # a token has one column
        blend[:, :known] = own
        blend[:, known] = blend[:, -1] = -1
        where, p = self._largest(z)
        if not (p[n:, -1:] >= others * least).all():
            return None
        tokens = top.take(np.minimum(where, known - 1) + rows % n * known)
        if len(seen):
            tokens = np.where(where < known, tokens, seen.take(where - known - 1, mode="clip"))
        both = tokens.reshape(2, n, -1).transpose(1, 0, 2).astype(np.int32)
        return both, p.reshape(2, n, -1).transpose(1, 0, 2)

    def _seen(self, reading: Reading) -> tuple[Array, Array, Array, Array]:
        """Return the window's distinct tokens (T,), and where tokens are among them and among the candidates.

        Returns
        -------
        seen, column, place, at
            (T,), some of which may have left the window; (slots,): each slot's, T where the vocabulary lacks it;
            (n, K), (n, K): of each row's own candidates the place in ``seen``, -1 of those that are not there, and
            in ``reading.tokens``.
        """
        n_vocab = reading.logits.shape[1]
        if len(self._places) != n_vocab:
            self._places, self._held = np.empty(n_vocab, np.intp), np.full(n_vocab, -1, np.intp)
            self._distinct = np.empty(0, np.int64)
        self._places[reading.tokens] = np.arange(len(reading.tokens))
        tokens, strange = self._sane(reading, int(reading.top[0, 0]))
        if len(self._distinct) > len(tokens):  # most of them have left
            self._held[self._distinct] = -1
            self._distinct = self._distinct[:0]
        held, known = self._held, len(self._distinct)
        column = held.take(tokens)
        new = tokens[column < 0]
        if len(new):
            some = np.arange(len(new))
            held[new] = some  # of each token, one stays
            new = new[held[new] == some]
            held[new] = np.arange(known, known + len(new))
            self._distinct = np.concatenate((self._distinct, new))
            column = held.take(tokens)
        if strange is not None:
            column[strange] = len(self._distinct)
        return self._distinct, column, held.take(reading.top), self._places.take(reading.top)

    def _table(self, n_vocab: int) -> Array:
        if len(self._column) != n_vocab:
            self._column = np.full(n_vocab, -1, np.intp)
        return self._column

    def _room(self, rows: int, columns: int) -> Array:
        """Return an array (rows, columns) of any numbers, until this is asked again."""
        if len(self._numbers) < rows * columns:
            self._numbers = np.empty(rows * columns * 3 // 2, np.float32)
        return self._numbers[: rows * columns].reshape(rows, columns)

    def _sane(self, reading: Reading, instead: int) -> tuple[Array, Array | None]:
        """Return the window's tokens (slots,), ``instead`` of those that the vocabulary lacks, and which these are."""
        tokens, n_vocab = reading.slots.tokens, reading.logits.shape[1]
        # those below zero are large there
        if not len(tokens) or int(tokens.view(np.uint64).max()) < n_vocab:
            return tokens, None
        strange = (tokens < 0) | (tokens >= n_vocab)
        return np.where(strange, instead, tokens), strange

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
        p = np.empty((len(reading), width), np.float32)
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
        if not len(reading.slots.tokens):
            return reading.slots.tokens, names
        tokens, strange = self._sane(reading, int(names[0]))
        table, known = self._table(reading.logits.shape[1]), len(names)
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
        at, best = self._largest(z.copy())
        tokens = names[at] if names.ndim == 1 else names[np.arange(len(z))[:, None], at]
        return np.where(best > -np.inf, tokens, -1).astype(np.int32), best

    def _largest(self, z: Array) -> tuple[Array, Array]:
        """Return the columns of the largest of z (n, T), largest first, and these; z is used up."""
        n, width = z.shape
        row, flat = np.arange(n) * width, z.reshape(-1)
        places, best = np.empty((self._count, n), np.intp), np.empty((self._count, n), z.dtype)
        for place, largest in zip(places, best, strict=True):
            np.add(z.argmax(axis=1), row, out=place)
            flat.take(place, out=largest, mode="clip")
            flat.put(place, -np.inf, mode="clip")
        if np.isnan(best).any():  # a model whose logits are no numbers
            flat[places[::-1].ravel()] = best[::-1].ravel()
            return self._largest(np.nan_to_num(z, nan=-np.inf, posinf=np.inf))
        return (places - row).T, best.T
