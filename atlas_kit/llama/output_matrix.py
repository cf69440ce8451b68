"""Rows of a model's read-out matrix W_out, dequantised when they are needed and kept in a bounded cache.

A whole float32 matrix of 128,256 x 2,048 is a gigabyte and multiplying with it costs as much as the model's own
output layer; what a memory corrects in one step are some hundred tokens.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Concatenate, NamedTuple, ParamSpec, TypeVar

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import FileCorruptError, InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.formats.gguf.dequantize import Native


P = ParamSpec("P")
T = TypeVar("T")

#: What the cache may hold, in bytes: 8,192 rows of a 2,048-wide model.
CACHE_BYTES = 64 << 20
#: A model's matrix of no more bytes is dequantised at once: that takes some milliseconds, and looking for the missing
#: rows of every token a tenth of one.
WHOLE_BYTES = 8 << 20
#: Rows that are multiplied at a time, in bytes: they stay in the processor's cache.
BLOCK_BYTES = 1 << 20
#: Rows that the mean row is estimated from.
SAMPLE = 1024
#: Rows that their covariance is estimated from, its directions that are told apart, the power that evens it out, and
#: what is added to the variances, as a share of their mean. More of each costs seconds and gains nothing.
COVARIANCE_SAMPLE, COVARIANCE_RANK, EVENING, COVARIANCE_RIDGE = 512, 128, -0.7, 0.1
#: The same power and share where it is known how the gradients themselves vary.
KNOWN_EVENING, KNOWN_RIDGE = -0.5, 0.1
#: A step of size 1 on the answer of one state moves the logit of its token by about this much.
MOVED_LOGIT = 2.0


def _alone(method: Callable[Concatenate[OutputRows, P], T]) -> Callable[Concatenate[OutputRows, P], T]:
    """Let one thread at a time look into the cache: another might put new rows where it looks."""

    @functools.wraps(method)
    def locked(self: OutputRows, *args: P.args, **kwargs: P.kwargs) -> T:
        with self._lock:
            return method(self, *args, **kwargs)

    return locked  # type: ignore[return-value]  # what wraps a method calls its first parameter otherwise


class OutputRows:
    """Rows of W_out by token, for example (700, 2048) of a model with 128,256 tokens.

    Parameters
    ----------
    matrix
        Gives float32 rows (n, n_embd) for token numbers (n,), ascending and without repetition.
    n_vocab, n_embd
        Shape of the matrix.
    bias
        (n_vocab,) what the model adds to its logits, or None; or what returns that.
    scale, softcap
        What the model does to them then: ``scale * (W_out h + bias)``, then ``cap tanh(z / cap)``.
    cache_bytes
        Bound of the cache.
    whole_bytes
        A matrix of no more is brought into the cache as a whole when its first rows are asked for.
    is_control
        Tells whether a token is none of a text, but begins or ends a turn or something else.
    """

    def __init__(
        self, matrix: Any, n_vocab: int, n_embd: int, *, bias: Array | Callable[[], Array | None] | None = None,
        scale: float = 1.0, softcap: float | None = None, cache_bytes: int = CACHE_BYTES, whole_bytes: int = 0,
        is_control: Callable[[int], bool] = lambda token: False,
    ) -> None:  # fmt: skip
        self._matrix, self.is_control = matrix, is_control
        self.n_vocab, self.n_embd = n_vocab, n_embd
        self._bias, self.scale, self.softcap = bias, scale, softcap
        #: Whether the matrix has been looked at; what need not be known yet can wait until it is.
        self.opened = True
        capacity = max(1, min(n_vocab, cache_bytes // (4 * n_embd)))
        self._rows = np.empty((capacity, n_embd), np.float32)
        self._slot_of = np.full(n_vocab, -1, np.int32)  # token -> slot
        self._token_in = np.full(capacity, -1, np.int64)  # slot -> token
        self._used = np.zeros(capacity, np.int64)  # slot -> when it was last asked for
        self._clock = 0
        self._oldest = np.empty(0, np.int64)  # slots in the order in which they will be needed, oldest first
        self._sorted = 0  # when that order was made
        self._block_rows = max(16, min(capacity, BLOCK_BYTES // (4 * n_embd)))
        self._blocks = threading.local()
        self._at_once = 4 * n_vocab * n_embd <= min(whole_bytes, cache_bytes)
        self._complete = False  # whether it holds all rows
        self._lock = threading.RLock()  # memories that learn and memories that read may be on two threads
        self._mean: Array | None = None
        self._evening: Evening | None = None
        self._sampled: Array | None = None

    @property
    def bias(self) -> Array | None:
        """What the model adds to its logits (n_vocab,), or None."""
        return self._bias() if callable(self._bias) else self._bias

    @property
    def cached_bytes(self) -> int:
        """Bytes of the rows that the cache holds now."""
        return int((self._token_in >= 0).sum()) * 4 * self.n_embd

    @_alone
    def let_go(self) -> None:
        """Free the rows that the cache holds; they are brought in again when they are asked for."""
        self._rows = np.empty_like(self._rows)  # no page of which is in use yet
        self._slot_of.fill(-1)
        self._token_in.fill(-1)
        self._used.fill(0)
        self._oldest, self._sorted, self._complete = np.empty(0, np.int64), 0, False

    @property
    def _block(self) -> Array:
        """The array of the thread that asks into which rows are gathered: what it keeps there no other overwrites."""
        found: Array | None = getattr(self._blocks, "rows", None)
        if found is None:
            found = self._blocks.rows = np.empty((self._block_rows, self.n_embd), np.float32)
        return found

    @_alone
    def __call__(self, tokens: Array, out: Array | None = None) -> Array:
        """Return the rows (n, n_embd) of ``tokens`` (n,), ascending and without repetition.

        ``out`` may take them, where it is large enough: new arrays of that size cost more than the rows. What is
        returned must not be written to.
        """
        count = len(tokens)
        out = np.empty((count, self.n_embd), np.float32) if out is None or len(out) < count else out[:count]
        if count > len(self._rows):  # more than the cache holds: nothing to gain from it
            slots = self._slot_of[tokens]
            out[slots >= 0] = self._rows[slots[slots >= 0]]
            out[slots < 0] = self._matrix(tokens[slots < 0])
            return out
        slots = self._slots(tokens)
        if count == self.n_vocab:
            return self._rows
        return np.take(self._rows, slots, axis=0, out=out, mode="clip")  # other modes copy once more

    @_alone
    def product(self, vectors: Array, tokens: Array) -> Array:
        """Return ``vectors`` (n, n_embd) times the rows of ``tokens`` (U,), (n, U), without building these rows."""
        if len(tokens) > len(self._rows) or len(tokens) == self.n_vocab:
            return np.asarray(vectors @ self(tokens).T)
        slots = self._slots(tokens)
        result = np.empty((len(vectors), len(tokens)), np.float32)
        rows = self._block
        for start in range(0, len(tokens), len(rows)):
            part = slots[start : start + len(rows)]
            block = np.take(self._rows, part, axis=0, out=rows[: len(part)], mode="clip")
            result[:, start : start + len(part)] = vectors @ block.T
        return result

    @_alone
    def times(self, vector: Array, tokens: Array, out: Array) -> None:
        """Put the product of ``vector`` (n_embd,) with the rows of ``tokens`` (U,) into ``out`` (U,)."""
        if len(tokens) > len(self._rows) or len(tokens) == self.n_vocab:
            np.dot(self(tokens), vector, out=out)
            return
        slots, rows = self._slots(tokens), self._block
        size = len(rows)
        for start in range(0, len(tokens), size):
            part = slots[start : start + size]
            block = np.take(self._rows, part, axis=0, out=rows[: len(part)], mode="clip")
            np.dot(block, vector, out=out[start : start + size])

    @_alone
    def gathered(self, tokens: Array, *, keep: bool = False) -> Array:
        """Return the rows (n, n_embd) of ``tokens`` (n,), in any order and repeated as they are.

        ``keep``: in an array that the thread's next call may overwrite, where they have room; else in a new one, whose
        pages take longer to come by than the rows.
        """
        # where all have room, a row's slot is its token
        slots = tokens if self._complete else self._slot_of[tokens]
        if not self._complete:
            if (slots < 0).any():
                distinct, place = np.unique(tokens, return_inverse=True)
                if len(distinct) > len(self._rows):
                    return np.asarray(self(distinct)[place])
                slots = self._slots(distinct)[place]
            self._clock += 1
            self._used[slots] = self._clock
        out = self._block[: len(slots)] if keep and len(slots) <= self._block_rows else None
        return self._rows.take(slots, axis=0, out=out, mode="clip")

    def _slots(self, tokens: Array) -> Array:
        """Return where in the cache the rows of ``tokens`` lie, after bringing in those that are missing."""
        slots = self._slot_of[tokens]
        if self._complete:
            return slots
        self._clock += 1
        here = slots >= 0
        if here.all():
            self._used[slots] = self._clock
            return slots
        self._used[slots[here]] = self._clock
        missing = tokens[~here]
        if self._at_once:
            missing = np.flatnonzero(self._slot_of < 0)
        self._keep(missing, self._matrix(missing))
        return np.asarray(self._slot_of[tokens])

    def _keep(self, tokens: Array, rows: Array) -> None:
        """Put rows into the slots that were used longest ago; where all have room, a row's slot is its token."""
        count = len(tokens)
        oldest = tokens if len(self._rows) == self.n_vocab else self._longest_unused(count)
        evicted = self._token_in[oldest]
        self._slot_of[evicted[evicted >= 0]] = -1
        self._rows[oldest] = rows
        self._slot_of[tokens] = oldest
        self._token_in[oldest] = tokens
        self._used[oldest] = self._clock
        # where all have room, nothing is dropped any more, and nobody asks what was used when
        self._complete = len(self._rows) == self.n_vocab and bool((self._token_in >= 0).all())

    def _longest_unused(self, count: int) -> Array:
        """Return the ``count`` slots that were used longest ago; they are sorted once for many misses."""
        queue = self._oldest[self._used[self._oldest] <= self._sorted]  # the others were used since
        if len(queue) < count:
            enough = min(len(self._used), max(count, len(self._used) // 4))
            queue = np.argpartition(self._used, enough - 1)[:enough]
            queue = queue[np.argsort(self._used[queue], kind="stable")]
            self._sorted = self._clock - 1  # what this call uses is not for it to drop
        self._oldest = queue[count:]
        return queue[:count]

    def whole(self) -> Array:
        """Return the whole matrix (n_vocab, n_embd), which is not kept."""
        matrix: Array = self._matrix(np.arange(self.n_vocab))
        return matrix

    def logits(self, hidden: Array, rows: Array, tokens: Array | None = None) -> Array:
        """Return what the model makes of states (n, n_embd) for ``rows`` of ``tokens`` (all: None): (n, len(rows))."""
        z = hidden @ rows.T
        if self.bias is not None:
            z += self.bias if tokens is None else self.bias[tokens]
        z *= np.float32(self.scale)
        if self.softcap is not None:
            z = np.float32(self.softcap) * np.tanh(z / np.float32(self.softcap))
        return np.asarray(z)

    @property
    def mean(self) -> Array:
        """The mean row (n_embd,), estimated from ``SAMPLE`` rows spread over the vocabulary."""
        if self._mean is None:
            count = min(SAMPLE, self.n_vocab)
            tokens = _spread(self.n_vocab, count)
            self._mean = self._matrix(tokens).mean(axis=0)
        return self._mean

    def even(self, gradients: Array) -> Array:
        """Return ``g Q`` (n, n_embd): steps on answers made even over the rows' directions, of one size in all models.

        ``Q = (C + ridge) ** EVENING`` of the rows' covariance C, scaled so that ``MOVED_LOGIT`` holds.
        """
        if self._evening is None:
            self._evening = self._made_even()
        return self._evening(gradients)

    @_alone
    def prepare(self) -> None:
        """Find out now what ``mean`` and ``even`` are made of, which takes some ten milliseconds once."""
        if self._evening is None:
            self._evening = self._made_even()
        assert self.mean is not None

    def evening(self, directions: Array, rest: float) -> Evening:
        """Return what makes steps even over the directions in which gradients vary, of one size in all models.

        Parameters
        ----------
        directions, rest
            (k, n_embd) at right angles, each as long as the root of the mean square in it, and the mean square in all
            directions beside them.
        """
        found, rest = directions.astype(np.float64), max(0.0, rest)
        square = np.square(found).sum(axis=1)
        kept = square > 1e-9 * max(float(square.sum()), 1e-30)
        square, found = square[kept], found[kept] / np.sqrt(square[kept])[:, None]
        total = float(square.sum()) + rest * (self.n_embd - len(directions))
        if not total > 1e-30:
            return Evening(np.float32(0), np.zeros((self.n_embd, 0), np.float32), np.zeros(0, np.float32))
        ridge = KNOWN_RIDGE * total / self.n_embd
        even, others = (square + ridge) ** KNOWN_EVENING, (rest + ridge) ** KNOWN_EVENING
        rows = self._sample()
        moved = others * float(np.square(rows).sum()) / len(rows)
        moved += float((np.square(rows @ found.T).mean(axis=0) * (even - others)).sum())
        moved *= self.scale**2
        if not moved > 0:
            return Evening(np.float32(0), np.zeros((self.n_embd, 0), np.float32), np.zeros(0, np.float32))
        size = MOVED_LOGIT / moved
        return Evening(
            np.float32(size * others),
            np.ascontiguousarray(found.T, np.float32),
            (size * (even - others)).astype(np.float32),
        )

    def _sample(self) -> Array:
        """Return rows spread over the vocabulary (n, n_embd), less their mean."""
        if self._sampled is None:
            count = min(COVARIANCE_SAMPLE, self.n_vocab)
            tokens = _spread(self.n_vocab, count)
            rows = self._matrix(tokens).astype(np.float64)
            rows -= rows.mean(axis=0)
            self._sampled = rows
        return self._sampled

    def _made_even(self) -> Evening:
        """Return Q of the rows alone."""
        rows = self._sample()
        # the products of the rows have the variances of their covariance, and are fewer
        variance, mixed = np.linalg.eigh(rows @ rows.T / len(rows))
        total, rank = float(np.maximum(variance, 0).sum()), min(COVARIANCE_RANK, self.n_embd, len(rows) - 1)
        if not total > 1e-30:  # rows that do not differ: nothing can be corrected
            return Evening(np.float32(0), np.zeros((self.n_embd, 0), np.float32), np.zeros(0, np.float32))
        kept = np.flatnonzero(variance > 1e-9 * total)[::-1][:rank]
        variance, mixed = variance[kept], mixed[:, kept]
        directions = rows.T @ mixed / np.sqrt(len(rows) * variance)
        others = max(1, self.n_embd - len(kept))
        left = max(0.0, total - float(variance.sum())) / others
        ridge = COVARIANCE_RIDGE * total / self.n_embd
        even, rest = (variance + ridge) ** EVENING, (left + ridge) ** EVENING
        moved = self.scale**2 * (float((even * variance).sum()) + rest * left * others)
        size = MOVED_LOGIT / moved
        return Evening(
            np.float32(size * rest), directions.astype(np.float32), (size * (even - rest)).astype(np.float32)
        )


class Evening(NamedTuple):
    """What steps are multiplied with: ``Q = rest + V diag(more) V^T``.

    >>> Evening(np.float32(1), np.array([[1.0], [0.0]]), np.array([2.0]))(np.array([[1.0, 1.0]])).tolist()
    [[3.0, 1.0]]
    """

    rest: np.float32
    directions: Array
    more: Array

    def __call__(self, gradients: Array) -> Array:
        """Return ``g Q`` (n, n_embd)."""
        return np.asarray(
            gradients * self.rest + ((gradients @ self.directions) * self.more) @ self.directions.T
        )


#: Architectures that divide their logits by ``logit_scale``; the others multiply.
DIVIDING = ("granite", "minicpm")


def logit_scale(architecture: str, value: float | None) -> float:
    """Return the factor on the logits that an architecture makes of its ``logit_scale``.

    >>> logit_scale("granite", 8.0), logit_scale("command-r", 0.0625), logit_scale("llama", None)
    (0.125, 0.0625, 1.0)
    """
    if not value:
        return 1.0
    return 1 / value if architecture.startswith(DIVIDING) else value


def _spread(n_vocab: int, count: int) -> Array:
    """Return about ``count`` tokens in equal distances; ``np.unique`` would import NumPy's masked arrays for it."""
    tokens = np.linspace(0, n_vocab - 1, count).astype(np.int64)
    return tokens[np.diff(tokens, prepend=-1) > 0]


def rows_of_model(file: GGUFFile, *, native: Native | None = None, **options: Any) -> OutputRows:
    """Return the read-out rows of a GGUF model: ``output.weight``, or the embedding where the two are tied.

    ``native`` is as of ``dequantize_rows``.

    Raises
    ------
    InvalidParamError
        The model has neither, or its type cannot be dequantised.
    """
    from atlas_kit.formats.gguf.dequantize import dequantize_rows

    name = next((n for n in ("output.weight", "token_embd.weight") if n in file.tensors), None)
    if name is None:
        raise InvalidParamError("the model has no output matrix", path=file.path, key="output.weight")
    info = file.tensor(name)
    kind = info.row
    if kind is None or len(info.dims) != 2:
        raise FileCorruptError("this matrix cannot be read", path=file.path, key=name)

    def matrix(tokens: Array) -> Array:
        if len(tokens) == info.rows:
            return file.dequantize(info)
        data = file.gather(info, tokens.tolist())
        return dequantize_rows(data, len(tokens), info, kind, file.byte_order, native)

    matrix(np.zeros(1, np.int64))  # a type that cannot be dequantised shows now
    options.setdefault("whole_bytes", WHOLE_BYTES)
    bias = file.dequantize("output.bias").ravel() if "output.bias" in file.tensors else None
    return OutputRows(matrix, info.rows, info.row_length, bias=bias, **options)


def rows_found_later(find: Callable[[], OutputRows], n_vocab: int, n_embd: int, **options: Any) -> OutputRows:
    """Return the read-out rows of a model whose file is read when the first row is asked for, by ``find``.

    Its logits are neither scaled nor capped, and of this shape. Whoever asks for a row may get what ``find`` raises,
    and ``FileCorruptError`` where the file says something else.
    """

    @functools.cache
    def found() -> OutputRows:
        rows = find()
        if (rows.n_vocab, rows.n_embd, rows.scale, rows.softcap) != (n_vocab, n_embd, 1.0, None):
            raise FileCorruptError(
                "the output matrix is not the one of the loaded model", key="output.weight"
            )
        late.opened = True
        return rows

    late = OutputRows(
        lambda tokens: found()._matrix(tokens), n_vocab, n_embd, bias=lambda: found().bias, whole_bytes=WHOLE_BYTES,
        **options,
    )  # fmt: skip
    late.opened = False
    return late
