"""The sliding window: the last tokens of each row, in rings, and an exact cache that reads them.

The Omega rule (arXiv 2505.23735, eq. 9) learns from the last ``c`` tokens, so their keys and targets are kept
anyway; ``lookup`` makes the same tokens readable as an exact memory (softmax over ``theta cos``).
A ring is a dict of arrays ``(R, capacity, ...)``: ``R`` rows side by side, each field with its own capacity;
token number ``j`` lies in slot ``j mod capacity``. Knows nothing of objectives, models or files.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any

import numpy as np

from atlas_kit.codecs.numbers import Array as HostArray
from atlas_kit.errors import InvalidParamError
from atlas_kit.memory.backend import Array, namespace, quiet

#: How a field may be stored, and the array type that holds it: bfloat16 is the upper half of a float32.
STORAGE = {"float64": "float64", "float32": "float32", "float16": "float16", "bfloat16": "uint16"}

Ring = dict[str, Array]
#: (R,) int64 on the host: a token number per row
Positions = HostArray


def append(
    ring: Mapping[str, Array], fields: Mapping[str, Array], position: Positions, copy: bool = True
) -> Ring:
    """Write the tokens ``position .. position + n - 1`` into the ring.

    Parameters
    ----------
    ring
        Field name -> ``(R, capacity, ...)``.
    fields
        Some or all names -> ``(R, n, ...)`` in the field's own (stored) type; ``n`` may be 0, and of more
        tokens than a field's capacity the last ones survive. For example ``{"key": (2, 16, 64)}``.
    position
        ``(R,)`` host integers: the number of the first new token; rows may differ.
    copy
        True: the result owns all of its arrays and ``ring`` stays as it is. False: the ring's own arrays
        are written to.

    Raises
    ------
    InvalidParamError
        For a field that the ring does not have, and for a shape or type that does not fit it.

    Examples
    --------
    Capacity 3, tokens 0 to 2 there, tokens 3 and 4 new: they replace 0 and 1.

    >>> ring = {"token": np.array([[10, 11, 12]])}
    >>> append(ring, {"token": np.array([[13, 14]])}, np.array([3]))["token"]
    array([[13, 14, 12]])
    """
    _check_fields(ring, fields)
    out = {name: array.copy() if copy else array for name, array in ring.items()}
    start = _common(position)
    for name, new in fields.items():
        buffer = out[name]
        capacity = buffer.shape[1]
        count = min(new.shape[1], capacity)
        if not count or not len(position):
            continue
        lost = new.shape[1] - count
        new = new[:, lost:]
        if start is not None:
            slot = (start + lost) % capacity
            fit = min(count, capacity - slot)
            buffer[:, slot : slot + fit] = new[:, :fit]
            if fit < count:
                buffer[:, : count - fit] = new[:, fit:]
        else:
            first = (position + lost) % capacity
            buffer[_slots(first, count, capacity, namespace(buffer))] = new
    return out


def latest(
    ring: Mapping[str, Array], n: int, position: Positions, names: Iterable[str] | None = None
) -> Ring:
    """Return the ``n`` tokens before ``position``, oldest first: name -> ``(R, n, ...)``.

    ``names`` picks fields, all by default. The arrays are new and in the stored type. Slots before token 0
    give whatever lies there; the caller masks them.

    Raises
    ------
    InvalidParamError
        When a field holds fewer than ``n`` tokens.

    Examples
    --------
    Capacity 3 after token 4 was written, so the ring holds 3, 4, 2:

    >>> latest({"token": np.array([[13, 14, 12]])}, 2, np.array([5]))["token"]
    array([[13, 14]])
    """
    out = {}
    start = _common(position)
    for name in ring if names is None else names:
        buffer = ring[name]
        capacity = buffer.shape[1]
        if not 0 <= n <= capacity:
            raise InvalidParamError(
                f'the last {n} tokens of "{name}" were asked for; it keeps {capacity}', key="n"
            )
        xp = namespace(buffer)
        if not n or not len(position):
            out[name] = buffer[:, :n].copy()
            continue
        if start is not None:
            slot = (start - n) % capacity
            fit = min(n, capacity - slot)
            if fit == n:
                out[name] = buffer[:, slot : slot + n].copy()
            else:
                out[name] = xp.concatenate((buffer[:, slot:], buffer[:, : n - fit]), axis=1)
        else:
            out[name] = buffer[_slots((position - n) % capacity, n, capacity, xp)]
    return out


def _common(position: Positions) -> int | None:
    """Return where all rows stand, if they do at one position: slices are faster than index arrays then."""
    if len(position) > 1 and not bool((position == position[0]).all()):
        return None
    return int(position[0]) if len(position) else 0


def _slots(first: Positions, count: int, capacity: int, xp: Any) -> tuple[Array, Array]:
    """Return the index pair ``(R, 1), (R, count)`` of ``count`` slots from ``first`` on, wrapped around."""
    slots = (first[:, None] + np.arange(count)) % capacity  # host integers: positions never live on a device
    return xp.arange(len(first))[:, None], xp.asarray(slots)


def _check_fields(ring: Mapping[str, Array], fields: Mapping[str, Array]) -> None:
    for name, new in fields.items():
        if name not in ring:
            raise InvalidParamError(f'the window has no field "{name}"', key=name)
        buffer = ring[name]
        if new.ndim != buffer.ndim or new.shape[:1] + new.shape[2:] != buffer.shape[:1] + buffer.shape[2:]:
            raise InvalidParamError(
                f'shape {new.shape} does not fit "{name}" of shape {buffer.shape}', key=name
            )
        if not np.can_cast(
            new.dtype, buffer.dtype, "same_kind"
        ):  # such as numbers into bfloat16's bit patterns
            raise InvalidParamError(
                f'{new.dtype} does not fit "{name}" of {buffer.dtype}', key=name, hint="Use encode() first."
            )


@quiet
def encode(array: Array, dtype: str) -> Array:
    """Return the array as it is stored in a field of type ``dtype`` (a name in ``STORAGE``); the same shape.

    bfloat16 is rounded to nearest, ties to even, from float32, and comes as ``uint16``. What is too large
    for the type becomes infinite; NaN stays NaN.

    Raises
    ------
    InvalidParamError
        For an unknown type.

    Examples
    --------
    1 is 0x3f800000 as float32; 1 + 2^-8 = 0x3f808000 lies halfway between two bfloat16: the even one is
    taken.

    >>> [hex(b) for b in encode(np.array([1.0, 1 + 2**-8, 1 + 3 * 2**-8], np.float32), "bfloat16").tolist()]
    ['0x3f80', '0x3f80', '0x3f82']
    """
    check_storage(dtype)
    if dtype != "bfloat16":
        return array.astype(dtype, copy=False)
    xp = namespace(array)
    bits = array.astype(xp.float32, copy=False).view(xp.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    # rounding's carry would turn some NaN into an infinity, so a NaN keeps its upper half, made quiet
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return xp.where(nan, (bits >> 16) | 0x40, rounded).astype(xp.uint16)


@quiet
def decode(array: Array, dtype: str, compute_dtype: str = "float32") -> Array:
    """Return a field stored as ``dtype`` in ``compute_dtype``; no copy where that is its type already.

    >>> decode(np.array([0x3f80, 0x3f82], np.uint16), "bfloat16").tolist()
    [1.0, 1.015625]
    """
    check_storage(dtype)
    if dtype == "bfloat16":
        xp = namespace(array)
        array = (array.astype(xp.uint32) << 16).view(xp.float32)
    return array.astype(compute_dtype, copy=False)


def check_storage(dtype: str, key: str = "window_dtype") -> None:
    """Raise ``InvalidParamError`` about the setting ``key`` unless ``dtype`` is a name in ``STORAGE``."""
    if dtype not in STORAGE:
        raise InvalidParamError(
            f"{dtype!r} is not a storage type", key=key, hint=f"Choose one of: {', '.join(STORAGE)}."
        )


@dataclass(frozen=True, eq=False)
class CacheRead:
    """What ``lookup`` found: how much each of ``n`` queries looks at each slot.

    Attributes
    ----------
    weights
        ``(..., n, capacity)``: at least 0; they sum to 1, or to 0 where no slot is valid.
    similarity
        ``(..., n)``: the greatest cosine, -1 where no slot is valid.
    content
        What the slots hold, if the caller said so: values ``(..., capacity, d_v)`` or tokens ``(..., capacity)``. Slots
        that are not valid must hold finite numbers, as those of a ring that started as zeros do.
    """

    weights: Array
    similarity: Array
    content: Array | None = None

    @quiet
    def values(self) -> Array:
        """Return the weighted mean ``(..., n, d_v)`` of the slots' values."""
        return self.weights @ self._content(self.weights.ndim, "values")

    def distribution(self, vocabulary: int) -> Array:
        """Return the distribution ``(..., n, vocabulary)`` over the next token that the slots' tokens make.

        The weight of tokens outside ``0 .. vocabulary - 1`` is left out.

        >>> read = CacheRead(np.array([[[0.5, 0.25, 0.25]]]), np.array([[1.0]]), np.array([[2, 0, 2]]))
        >>> read.distribution(4).tolist()
        [[[0.25, 0.0, 0.75, 0.0]]]
        """
        xp = namespace(self.weights)
        tokens = self._content(self.weights.ndim - 1, "tokens")
        *lead, n, capacity = self.weights.shape
        if not self.weights.size or not vocabulary:
            return xp.zeros((*lead, n, vocabulary), self.weights.dtype)
        rows = math.prod(lead)
        tokens, all_weights = tokens.reshape(rows, capacity), self.weights.reshape(rows, n, capacity)
        known = (tokens >= 0) & (tokens < vocabulary)
        start = xp.arange(rows * n, dtype=xp.int64).reshape(rows, n, 1) * vocabulary
        index = start + xp.where(known, tokens, 0)[:, None, :]
        weights = xp.where(known[:, None, :], all_weights, 0)
        # bincount adds in float64, and is the one scatter-add that both libraries have fast
        sums = xp.bincount(index.ravel(), weights.ravel(), rows * n * vocabulary)
        return sums.reshape((*lead, n, vocabulary)).astype(self.weights.dtype, copy=False)

    def probability(self, of: Array) -> Array:
        """Return the weight ``(..., n)`` on slots whose token equals ``of (..., n)``; builds no vocabulary.

        >>> read = CacheRead(np.array([[[0.5, 0.25, 0.25]]]), np.array([[1.0]]), np.array([[2, 0, 2]]))
        >>> read.probability(np.array([[2]])).tolist()
        [[0.75]]
        """
        xp = namespace(self.weights)
        tokens = self._content(self.weights.ndim - 1, "tokens")
        return xp.where(tokens[..., None, :] == of[..., :, None], self.weights, 0).sum(axis=-1)

    def _content(self, axes: int, what: str) -> Array:
        if self.content is None or self.content.ndim != axes:
            raise InvalidParamError(f"the window that was read has no {what}", key="content")
        return self.content


@quiet
def lookup(
    query: Array, keys: Array, valid: Array, sharpness: float = 30.0, *, normalized: bool = False
) -> CacheRead:
    """Read the window as an exact cache: softmax over ``sharpness * cos(query, key)`` of the valid slots.

    Parameters
    ----------
    query
        ``(R, n, d)``, for example ``(2, 16, 64)``.
    keys
        ``(R, capacity, d)``, for example ``(2, 1024, 64)``, in the type of ``query`` (see ``decode``).
    valid
        ``(R, capacity)`` bool: the slots that may be read. What lies in the others does not matter.
    sharpness
        The ``theta`` of the softmax, above 0.
    normalized
        Keys and queries are finite and have length 1 already.

    Notes
    -----
    Lengths are taken in the type of the arrays. A query or key of no length (in float32: below 1e-19) has
    cosine 0 with everything, and so has a query whose length is not finite (in float32: above 1e19); a slot
    with such a key is not read.

    Raises
    ------
    InvalidParamError
        When ``sharpness`` is not a finite number above 0.

    Examples
    --------
    The cosines are 1 and 0; with sharpness ln 3 the slots weigh 3 : 1. The third slot is empty.

    >>> keys = np.array([[[5.0, 0.0], [0.0, 1.0], [7.0, 7.0]]])
    >>> read = lookup(np.array([[[2.0, 0.0]]]), keys, np.array([[True, True, False]]), math.log(3))
    >>> read.weights.round(6).tolist(), read.similarity.tolist()
    ([[[0.75, 0.25, 0.0]]], [[1.0]])
    """
    if not isinstance(sharpness, Real) or not 0 < sharpness < math.inf:
        raise InvalidParamError(f"{sharpness} is not a finite number above 0", key="sharpness")
    xp = namespace(query, keys)
    rows, n, _ = query.shape
    if not keys.shape[1]:  # no library takes the maximum of nothing
        return CacheRead(xp.zeros((rows, n, 0), query.dtype), xp.full((rows, n), -1, query.dtype))
    # slots that are not valid may hold anything
    if normalized:
        cosine = query @ keys.swapaxes(-1, -2)
    else:
        scale, known = inverse_length(query)
        query = xp.where(known[..., None], query * scale[..., None], 0)
        # the products are fewer than the numbers in the keys, so they are scaled in their place
        scale, known = inverse_length(keys)
        valid = valid & known
        cosine = query @ keys.swapaxes(-1, -2)
        cosine *= scale[:, None, :]
    cosine = xp.where(valid[:, None, :], cosine, -xp.inf)
    top = cosine.max(axis=-1)
    found = valid.any(axis=-1)[:, None]
    # -inf - 0 keeps the weight of a slot that is not valid at exp(-inf) = 0, also where all are so
    cosine -= xp.where(found, top, 0)[..., None]
    cosine *= min(float(sharpness), float(xp.finfo(cosine.dtype).max))
    weights = xp.exp(cosine, out=cosine)
    weights /= xp.where(found, weights.sum(axis=-1), 1)[..., None]
    return CacheRead(weights, xp.clip(top, -1, 1))  # -inf, where no slot is valid, becomes -1


@functools.lru_cache
def _tiny(dtype: Any) -> float:
    return float(np.finfo(dtype).tiny)


def inverse_length(x: Array) -> tuple[Array, Array]:
    """Return ``1 / |x|`` of vectors ``x (..., d)``, 0 for no length, and which lengths are finite."""
    xp = namespace(x)
    square = xp.einsum("...d,...d->...", x, x)
    known = square < xp.inf
    if xp is np and square.size == 1 and _tiny(x.dtype) <= square.item() < math.inf:
        return 1 / np.sqrt(square), known
    # below the normal range a square has too few digits left to divide by
    usable = known & (square >= _tiny(x.dtype))
    if xp is np and usable.all():  # as nearly always
        return 1 / np.sqrt(square), known
    return xp.where(usable, 1 / xp.sqrt(xp.where(usable, square, 1)), 0), known
