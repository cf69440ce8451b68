"""Feature maps phi: what a memory sees of a key before its first matrix (arXiv 2505.23735, eq. 5).

A map is a frozen specification without arrays; its random constants are drawn on the host from a seed and
handed back to it. Row-vector convention: x (..., n, d_in) gives phi (..., n, d_phi), a memory reads
y = phi @ W. Nothing here knows about memories, states or updates.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar, NamedTuple, Protocol

import numpy as np

from atlas_kit.codecs.numbers import Array as HostArray
from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_number, is_whole
from atlas_kit.memory.backend import Array, namespace, quiet, random_normal

#: Above this, one token's features alone take 64 MiB in float32: a typing error, not a plan.
MAX_FEATURES = 2**24

# Products of degree 2 are made in a scratch of at most this size, and without it where it would be larger.
# Measured on one core with d = 64 in float32, in copies of the output, with and without: 3.7 and 12 at 64 tokens,
# where a call per variable is all overhead, 1.9 and 2.1 at 192, 1.9 and 1.2 at 1,024. The scratch stays, one per
# thread: giving memory of this size back made the C library return its pages to the system at every call, which
# alone cost some 15 copies.
_SCRATCH_BYTES = 3 << 19
# Batch rows of at least this many tokens get a feature-major matrix each, fewer share one (see `_monomials`).
_TOKENS_OWN_MATRIX = 16
# Tokens that are projected by one product on a GPU (see `_product`).
_BLOCK_TOKENS = 16
_CACHE_LINE = 64

_thread = threading.local()


class FeatureMap(Protocol):
    """What every feature map offers; all of them are frozen dataclasses of JSON-able fields."""

    kind: ClassVar[str]

    def d_out(self, d_in: int) -> int:
        """Return the number of features of an input of width ``d_in``."""

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return the map's random constants, float64 on the host, always the same for a seed."""

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Map x (..., n, d_in) to phi (..., n, d_out) of the same dtype; ``normalize``: to length 1."""


def unit(x: Array) -> Array:
    """Return x (..., d) divided by its L2 norm along the last axis; zero vectors stay zero.

    Norms are taken in x's own type: a vector longer than float32 can square (1e19) becomes zero.

    >>> unit(np.array([[3.0, 4.0], [0.0, 0.0]])).tolist()
    [[0.6, 0.8], [0.0, 0.0]]
    """
    return x / _length(x)


def _length(x: Array) -> Array:
    """Return the norms (..., 1) of x (..., d), with 1 in place of 0 so that they can be divided by."""
    xp = namespace(x)
    return _positive(xp.sqrt((x * x).sum(axis=-1, keepdims=True)))


def _positive(norm: Array) -> Array:
    """Replace zeros by ones; adding a truth value keeps the dtype under every NumPy, ``where`` does not."""
    return norm + (norm == 0)


def _check_whole(value: object, key: str, least: int = 1) -> None:
    """Refuse anything but a whole number of at least ``least``; True is not a number here."""
    if not is_whole(value, least):
        raise InvalidParamError(f"{value!r} is not a whole number of at least {least}", key=key)


def _check_flag(value: object, key: str) -> None:
    """Refuse anything but True and False, so that a specification survives JSON unchanged."""
    if not isinstance(value, bool):
        raise InvalidParamError(f"{value!r} is neither true nor false", key=key)


def _check_features(features: object) -> None:
    """Refuse numbers of features below 1 and above the limit."""
    _check_whole(features, "features")
    if features > MAX_FEATURES:  # type: ignore[operator]
        raise InvalidParamError(f"{features:,} features are more than {MAX_FEATURES:,}", key="features")


# ----------------------------------------------------------------------------------------------- monomials


def _block_rows(d: int, p: int) -> int:
    """Return how many monomials of degree exactly p there are in d variables."""
    return math.comb(d + p - 1, p)


def _count(d: int, degree: int, constant: bool) -> int:
    """Return how many monomials of degree 1 (0 with ``constant``) to ``degree`` there are in d variables.

    Raises
    ------
    InvalidParamError
        When there are more than ``MAX_FEATURES``.
    """
    _check_whole(d, "d_in")
    # C(2m, m) >= 2^m: beyond this the count is too large for sure, and may be too large to count
    countable = min(d, degree) <= MAX_FEATURES.bit_length()
    total = math.comb(d + degree, degree) - (not constant) if countable else None
    if total is None or total > MAX_FEATURES:
        many = "more" if total is None else f"{total:,}"
        raise InvalidParamError(
            f"degree {degree} of {d} inputs makes {many} features, and the limit is {MAX_FEATURES:,}",
            key="degree",
            hint="Lower the degree, or put a projection in front.",
        )
    return total


def _gather_plan(d: int, p: int) -> tuple[HostArray, HostArray]:
    """Return each degree-p monomial's first variable, and where the rest of it stands in degree p-1.

    >>> [index.tolist() for index in _gather_plan(3, 2)]
    [[0, 0, 0, 1, 1, 2], [0, 1, 2, 1, 2, 2]]
    """
    rest = _block_rows(d, p - 1)
    sizes = [_block_rows(d - i, p - 1) for i in range(d)]
    lead = np.repeat(np.arange(d, dtype=np.intp), sizes)
    suffix = np.concatenate([np.arange(rest - size, rest, dtype=np.intp) for size in sizes])
    return lead, suffix


@lru_cache(maxsize=16)
def _gather_plan_on(xp: Any, device: int, d: int, p: int) -> tuple[Array, Array]:
    """Return the plan as arrays of ``xp``; ``device`` only tells the cache on which of several they lie."""
    lead, suffix = _gather_plan(d, p)
    return xp.asarray(lead), xp.asarray(suffix)


@lru_cache(maxsize=16)
def _cyclic_places(d: int) -> HostArray:
    """Return where each x_i x_j, i <= j, stands in the list of all x_m x_(m + k mod d), by k <= d/2, then m.

    >>> _cyclic_places(3).tolist()  # xx yy zz xy yz zx -> xx xy xz yy yz zz
    [0, 3, 5, 1, 4, 2]
    """
    i, j = np.triu_indices(d)
    k = j - i
    return np.where(k <= d // 2, k * d + i, (d - k) * d + j)


@lru_cache(maxsize=16)
def _square_places(d: int) -> HostArray:
    """Return where each x_i x_j, i <= j, stands in the square of all products, with the factors as in the cycles.

    >>> _square_places(3).tolist()  # xx xy xz, yx yy yz, zx zy zz: xz is a product of z's row
    [0, 1, 6, 4, 5, 8]
    """
    i, j = np.triu_indices(d)
    return np.where(j - i <= d // 2, i * d + j, j * d + i)


class _Block(NamedTuple):
    """The monomials of one degree: their places among all, and how they grow out of the degree before."""

    start: int
    stop: int
    ratio: float  #: the factor of each product; of degree 0 and 1 their coefficient
    used: bool  #: whether a degree from here on has a coefficient
    zero: bool  #: whether this degree's own coefficient is zero


@lru_cache(maxsize=64)
def _layout(d: int, coefficients: tuple[float, ...], constant: bool) -> tuple[_Block, ...]:
    """Return the blocks of degree 0 (empty without ``constant``), 1, ..., p.

    Degree p grows out of degree p-1, so a zero in between counts as 1 until the higher degrees are made.
    """
    _count(d, len(coefficients) - 1, constant)
    last = max(p for p, a in enumerate(coefficients) if a)
    blocks = [_Block(0, int(constant), coefficients[0], constant, False)]
    for p, a in enumerate(coefficients[1:], start=1):
        start = blocks[-1].stop
        before = (coefficients[p - 1] or 1.0) if p > 1 else 1.0
        blocks.append(_Block(start, start + _block_rows(d, p), (a or 1.0) / before, p <= last, a == 0))
    return tuple(blocks)


def _inverse_norm(x: Array, coefficients: Sequence[float], constant: bool) -> Array:
    """Return 1 / ||phi|| (N,) for inputs x (N, d), without a look at phi; 1 where phi is zero.

    ||phi||^2 = sum_p a_p^2 h_p(x_1^2, ..., x_d^2), because the squares of all monomials of degree p add up to
    the complete homogeneous symmetric polynomial h_p of the squares. Newton's identities give it from power
    sums, p h_p = sum_{k=1..p} P_k h_{p-k}, and no term is negative, so nothing cancels.
    """
    xp = namespace(x)
    squares = x * x
    powers = squares
    power_sums = [squares.sum(axis=1)]
    symmetric: list[Array] = [1.0, power_sums[0]]
    start = coefficients[0] * coefficients[0] if constant else 0.0
    total = symmetric[1] * (coefficients[1] * coefficients[1]) + start
    for p, a in enumerate(coefficients[2:], start=2):
        powers = powers * squares
        h = powers.sum(axis=1)
        power_sums.append(h)
        for k in range(1, p):
            h = h + power_sums[k - 1] * symmetric[p - k]
        symmetric.append(h * (1.0 / p))
        total += h * (a * a / p)
    return xp.sqrt(1.0 / (total if start else _positive(total)))


def _monomials(
    x: Array,
    coefficients: tuple[float, ...],
    constant: bool,
    scale: Array | None = None,
    normalize: bool = False,
) -> Array:
    """Return all monomials of x up to a degree, ordered by degree, then lexicographically, times a_degree.

    On NumPy the result is feature-major in memory (a transposed view): there a monomial of all tokens is one
    contiguous run, which is what makes the map cost a few copies, and matrix products take either order.

    Parameters
    ----------
    x
        (..., n, d): inputs.
    coefficients
        a_0, a_1, ..., a_p, not all zero.
    constant
        Whether the monomial 1 (degree 0) is among the results.
    scale, normalize
        (..., n): a factor for each token's features; or the factor that makes them a unit vector.

    Returns
    -------
    (..., n, d_phi) of x's dtype.
    """
    xp = namespace(x)
    n, d = x.shape[-2:]
    layout = _layout(d, coefficients, constant)
    shape = (*x.shape[:-1], layout[-1].stop)
    num_tokens = math.prod(x.shape[:-1])
    x = xp.ascontiguousarray(x.reshape(num_tokens, d))
    factors = None if scale is None else scale.reshape(num_tokens)
    if normalize:
        factors = _inverse_norm(x, coefficients, constant)
    if xp is not np:  # on a GPU an element costs the same in either order, and CuPy copies transposed batches
        out = xp.empty((num_tokens, shape[-1]), dtype=x.dtype)
        _fill_row_major(xp, x, layout, factors, out)
        return out.reshape(shape)
    if n == 1:
        out = np.empty((num_tokens, shape[-1]), x.dtype)
        _fill_token_major(x, layout, factors, out)
        return out.reshape(shape)
    # A matrix of its own for each batch row: in one shared matrix a row's features lie far apart, and batched
    # products (50 x 64 tokens) took 10 to 30% longer.
    height = n if n >= _TOKENS_OWN_MATRIX else max(num_tokens, 1)
    out = _empty((num_tokens // height, shape[-1], height), x.dtype)
    for i, matrix in enumerate(out):
        tokens = slice(i * height, (i + 1) * height)
        _fill_feature_major(x[tokens].T.copy(), layout, None if factors is None else factors[tokens], matrix)
    return out.swapaxes(1, 2).reshape(shape)


def _product(x: Array, matrix: Array) -> Array:
    """Return x @ matrix, (..., n, d) by (d, m), each token's bits the same whatever tokens come with it.

    BLAS chooses its way to add by the shape of a product, and within one also by where a row stands: OpenBLAS for
    Haswell and Zen takes rows 12 and 4 or 6, 6 and 4 at a time, and adds in another order in each. So every token on
    the host is a product of its own, vector by matrix. Measured with one thread, d = 2,048 and m = 64: one token takes
    5 us instead of 47 in a block of 16, and 16 tokens 66 instead of 46, of the 6,000 that learning them takes.
    """
    xp = namespace(x)
    if xp is np:
        tokens = np.ascontiguousarray(x)[..., None, :]
        return (tokens @ matrix)[..., 0, :]
    num_tokens = math.prod(x.shape[:-1])
    num_blocks = -(-num_tokens // _BLOCK_TOKENS)
    rows = xp.ascontiguousarray(x).reshape(num_tokens, x.shape[-1])
    if num_tokens % _BLOCK_TOKENS:
        filled = xp.zeros((num_blocks * _BLOCK_TOKENS, x.shape[-1]), dtype=x.dtype)
        filled[:num_tokens] = rows
        rows = filled
    product = rows.reshape(num_blocks, _BLOCK_TOKENS, x.shape[-1]) @ matrix
    return product.reshape(-1, matrix.shape[-1])[:num_tokens].reshape(*x.shape[:-1], matrix.shape[-1])


def _empty(shape: tuple[int, ...], dtype: Any) -> HostArray:
    """Return an uninitialised NumPy array on a cache line: vector stores across lines took twice the time."""
    dtype = np.dtype(dtype)
    size = math.prod(shape) * dtype.itemsize
    raw = np.empty(size + _CACHE_LINE, dtype=np.uint8)
    start = -raw.__array_interface__["data"][0] % _CACHE_LINE
    array: HostArray = np.ndarray(shape, dtype, raw, start)
    return array


def _scratch(shape: tuple[int, ...], dtype: Any) -> HostArray:
    """Return an uninitialised array of at most ``_SCRATCH_BYTES``, valid until this thread asks again."""
    buffer = getattr(_thread, "buffer", None)
    if buffer is None:
        buffer = _thread.buffer = _empty((_SCRATCH_BYTES,), np.uint8)
    array: HostArray = np.ndarray(shape, dtype, buffer)
    return array


def _fill_feature_major(
    x: HostArray, layout: Sequence[_Block], factors: HostArray | None, out: HostArray
) -> None:
    """Fill out (d_phi, N) with the monomials of x (d, N), each token's multiplied by its factor (N,).

    The monomials of degree p that begin with x_i are x_i times those of degree p-1 in x_i, ..., x_d, and
    these are the end of the block before. The coefficients' ratio travels with x_i, factors with degree 0 and 1.
    """
    before = out[:0]
    for p, (start, stop, ratio, used, _) in enumerate(layout):
        block = out[start:stop]
        if not used:
            continue
        if p < 2:
            factor = ratio if factors is None else factors if ratio == 1.0 else factors * ratio
        if p == 0:
            block[...] = factor
        elif p == 1:
            np.multiply(x, factor, out=block)
        elif p == 2:
            _fill_products(x, before, ratio, block)
        else:
            scaled = x * ratio
            at = 0
            for i in range(len(x)):
                rest = before[len(before) - _block_rows(len(x) - i, p - 1) :]
                np.multiply(scaled[i], rest, out=block[at : at + len(rest)])
                at += len(rest)
        before = block
    for start, stop, _, _, zero in layout:
        if zero:
            out[start:stop] = 0


def _fill_token_major(
    x: HostArray, layout: Sequence[_Block], factors: HostArray | None, out: HostArray
) -> None:
    """Fill out (N, d_phi) with the monomials of x (N, d), to the bit as ``_fill_feature_major`` does its transpose.

    For batch rows of one token each: in a matrix by features they would lie as far apart as there are rows, and BLAS
    rounds a vector with gaps in another way than one without.
    """
    if len(layout) > 3 or any(zero and used for _, _, _, used, zero in layout):
        turned = np.empty(out.shape[::-1], out.dtype)
        _fill_feature_major(x.T.copy(), layout, factors, turned)
        out[:] = turned.T
        return
    before = out[:, :0]
    for p, (start, stop, ratio, used, _) in enumerate(layout):
        block = out[:, start:stop]
        if not used:
            block[:] = 0
        elif p < 2:
            factor: Any = (
                ratio if factors is None else (factors if ratio == 1.0 else factors * ratio)[:, None]
            )
            block[:] = x * factor if p else factor
        else:
            squares = (x * ratio)[:, :, None] * before[:, None, :]
            squares.reshape(len(x), -1).take(_square_places(x.shape[1]), 1, block, "clip")
        before = block


def _fill_products(x: HostArray, before: HostArray, ratio: float, block: HostArray) -> None:
    """Fill the block of degree 2 from x (d, N) and the block before, which is x times each token's factor.

    One token: the square of all products. Few tokens: the products of x with itself turned by k = 0 ... d/2 places
    are a few long loops, and bringing their rows into order is one more. Many: one loop for each variable. All give
    the ratio to the same one of a product's two variables, so that a token's features do not depend on how many come
    with it.
    """
    d, num_tokens = x.shape
    if num_tokens == 1:
        (x * ratio * before[:, 0]).reshape(-1).take(_square_places(d), 0, block[:, 0], "clip")
        return
    half = d // 2 + 1
    places = (half + 3) * d
    if 0 < places * num_tokens * x.itemsize <= _SCRATCH_BYTES:
        scratch = _scratch((places, num_tokens), x.dtype)
        products, twice, scaled = scratch[: half * d], scratch[half * d : -d], scratch[-d:]
        np.multiply(x, ratio, out=scaled)
        twice[:d] = before
        twice[d:] = before
        row = num_tokens * x.itemsize
        turned = np.ndarray((half, d * num_tokens), x.dtype, scratch, half * d * row, (row, x.itemsize))
        np.multiply(scaled.reshape(-1), turned, out=products.reshape(half, -1))
        # Without mode="clip" NumPy checks the indices first and copies the result once more.
        products.take(_cyclic_places(d), 0, block, "clip")
        return
    scaled = np.multiply(x, ratio, out=_empty(x.shape, x.dtype))
    at = 0
    for i in range(d):
        near = min(half, d - i)
        np.multiply(scaled[i], before[i : i + near], out=block[at : at + near])
        if near < d - i:
            np.multiply(before[i], scaled[i + near :], out=block[at + near : at + d - i])
        at += d - i


def _fill_row_major(xp: Any, x: Array, layout: Sequence[_Block], factors: Array | None, out: Array) -> None:
    """Fill out (N, d_phi) with the monomials of x (N, d) in as few operations as there can be.

    The recursion, layout and factors are those of `_fill_feature_major`.
    """
    device = getattr(getattr(x, "device", None), "id", -1)
    before = out[:, :0]
    for p, (start, stop, ratio, used, _) in enumerate(layout):
        block = out[:, start:stop]
        if not used:
            continue
        if p < 2:
            factor = ratio if factors is None else factors[:, None] * ratio
            block[...] = factor if p == 0 else x * factor
        else:
            lead, suffix = _gather_plan_on(xp, device, x.shape[1], p)
            xp.multiply(xp.take(x * ratio, lead, axis=1), xp.take(before, suffix, axis=1), out=block)
        before = block
    for start, stop, _, _, zero in layout:
        if zero:
            out[:, start:stop] = 0


# ---------------------------------------------------------------------------------------------------- maps


@dataclass(frozen=True)
class Identity:
    """phi(x) = x: a linear memory of O(d) pairs (proposition 1).

    >>> Identity().apply(np.array([[3.0, 4.0]]), {}, normalize=True).tolist()
    [[0.6, 0.8]]
    """

    kind: ClassVar[str] = "identity"

    def d_out(self, d_in: int) -> int:
        """Return ``d_in``."""
        _check_whole(d_in, "d_in")
        return d_in

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return nothing: the map has no constants."""
        return {}

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Return x (..., n, d_in) itself, or each token divided by its length."""
        return unit(x) if normalize else x


@dataclass(frozen=True)
class Polynomial:
    """phi_p(x) = [a_|b| x^b], |b| <= p: every monomial once, by degree, then lexicographically (eq. 5).

    A matrix memory behind it holds O(d^p) pairs (proposition 2). On NumPy phi is a transposed view of a
    feature-major array.

    >>> phi = Polynomial(degree=2).apply(np.array([[2.0, 3.0]]), {})  # 1, x, y, x^2/2, xy/2, y^2/2
    >>> phi.tolist()
    [[1.0, 2.0, 3.0, 2.0, 3.0, 4.5]]

    Parameters
    ----------
    degree
        p >= 1.
    coefficients
        (a_0, ..., a_p), zeros allowed; None stands for the paper's first values 1/i!.
    constant
        Whether the monomial 1 is a feature.

    Raises
    ------
    InvalidParamError
        For a degree below 1, a wrong number of coefficients, or coefficients that leave no feature.
    """

    degree: int = 2
    coefficients: tuple[float, ...] | None = None
    constant: bool = True
    kind: ClassVar[str] = "polynomial"

    def __post_init__(self) -> None:
        _check_whole(self.degree, "degree")
        _check_flag(self.constant, "constant")
        if self.coefficients is None:
            return
        if not isinstance(self.coefficients, (tuple, list)) or not all(map(is_number, self.coefficients)):
            raise InvalidParamError(
                f"{self.coefficients!r} is not a list of finite numbers", key="coefficients"
            )
        if len(self.coefficients) != self.degree + 1:
            raise InvalidParamError(
                f"degree {self.degree} needs {self.degree + 1} coefficients, a_0 to a_{self.degree}, "
                f"and there are {len(self.coefficients)}",
                key="coefficients",
            )
        if not any(self.coefficients[not self.constant :]):
            raise InvalidParamError(
                "all coefficients are zero, so that no feature is left", key="coefficients"
            )
        object.__setattr__(self, "coefficients", tuple(float(a) for a in self.coefficients))

    @property
    def weights(self) -> tuple[float, ...]:
        """The coefficients in use: (a_0, ..., a_p)."""
        return self.coefficients or tuple(1 / math.factorial(i) for i in range(self.degree + 1))

    def d_out(self, d_in: int) -> int:
        """Return binomial(d_in + p, p), one less without the constant.

        Raises
        ------
        InvalidParamError
            When that is more than ``MAX_FEATURES``.

        Examples
        --------
        >>> Polynomial(2).d_out(64), Polynomial(2, constant=False).d_out(64)
        (2145, 2144)
        """
        return _count(d_in, self.degree, self.constant)

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return nothing: the map has no constants."""
        return {}

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Return phi (..., n, d_phi) of x (..., n, d_in); ``normalize`` costs no pass over phi."""
        return _monomials(x, self.weights, self.constant, normalize=normalize)


@dataclass(frozen=True)
class Exponential:
    """phi*: features whose product is exp(x . y), the paper's map of infinite degree, cut to finite size.

    ``random``: positive random features (arXiv 2009.14794, lemma 1), phi = exp(w x - |x|^2 / 2) / sqrt(m) with
    w ~ N(0, I); phi(x) . phi(y) is exp(x . y) on average over w. ``taylor``: all monomials x^b / sqrt(b!) up
    to a degree p, so that phi(x) . phi(y) = sum_{j <= p} (x . y)^j / j!. `kernel_error` states the error.

    >>> taylor = Exponential(method="taylor", degree=2)
    >>> x, y = taylor.apply(np.array([[1.0, 2.0], [0.5, 0.25]]), taylor.constants(2, seed=0))
    >>> round(float(x @ y), 12)  # x . y = 1: 1 + 1 + 1/2
    2.5

    Parameters
    ----------
    method
        ``random`` or ``taylor``.
    features
        m, the number of random directions (``random`` only).
    degree
        p, the last degree kept (``taylor`` only).

    Raises
    ------
    InvalidParamError
        For another method, and for numbers below 1.
    """

    method: str = "random"
    features: int = 1024
    degree: int = 4
    kind: ClassVar[str] = "exponential"

    def __post_init__(self) -> None:
        if self.method not in ("random", "taylor"):
            raise InvalidParamError(
                f"{self.method!r} is not a way to compute the exponential map",
                key="method",
                hint="Choose random or taylor.",
            )
        _check_features(self.features)
        _check_whole(self.degree, "degree")

    def d_out(self, d_in: int) -> int:
        """Return m, or the number of monomials; `InvalidParamError` beyond ``MAX_FEATURES``."""
        if self.method == "random":
            _check_whole(d_in, "d_in")
            return self.features
        return _count(d_in, self.degree, constant=True)

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return ``directions`` (d_in, m), standard normal; for ``taylor`` ``weights`` (d_phi,), 1/sqrt(b!)."""
        if self.method == "random":
            return {"directions": random_normal(seed, "features/exponential", (d_in, self.features))}
        self.d_out(d_in)  # refuses what would not fit before making it
        return {"weights": _taylor_weights(d_in, self.degree)}

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Return phi (..., n, d_phi) of x (..., n, d_in)."""
        xp = namespace(x)
        squared = xp.sum(x * x, axis=-1)
        if self.method == "random":
            exponent = x @ constants["directions"]
            if normalize:  # a common factor falls out; taking the largest one out keeps exp from overflowing
                return unit(xp.exp(exponent - xp.max(exponent, axis=-1, keepdims=True)))
            exponent -= (0.5 * squared)[..., None] + 0.5 * math.log(self.features)
            return xp.exp(exponent)
        scale = 1.0 / xp.sqrt(_truncated_exp(squared, self.degree)) if normalize else None
        phi = _monomials(x, (1.0,) * (self.degree + 1), constant=True, scale=scale)
        phi *= constants["weights"]
        return phi

    def kernel_error(self, x: Array, y: Array) -> Array:
        """Return how far phi(x) . phi(y) is from exp(x . y), for x and y of the same shape (..., d_in).

        ``random``: the standard deviation over the directions relative to exp(x . y),
        sqrt((exp(|x + y|^2) - 1) / m). ``taylor``: an upper bound of the absolute error, Lagrange's remainder
        |r|^(p+1) / (p+1)! exp(max(r, 0)) with r = x . y.

        >>> error = Exponential(method="taylor", degree=1).kernel_error(np.array([1.0]), np.array([-1.0]))
        >>> float(error)  # |exp(-1) - (1 - 1)| = 0.37 <= 1 / 2!
        0.5
        """
        xp = namespace(x, y)
        if self.method == "random":
            return xp.sqrt(xp.expm1(xp.sum((x + y) ** 2, axis=-1)) / self.features)
        r = xp.sum(x * y, axis=-1)
        remainder = xp.abs(r) ** (self.degree + 1) / math.factorial(self.degree + 1)
        return remainder * xp.exp(xp.maximum(r, 0.0 * r))


def _truncated_exp(r: Array, degree: int) -> Array:
    """Return sum_{j <= degree} r^j / j! by Horner's rule."""
    total = 1.0 + 0.0 * r
    for j in range(degree, 0, -1):
        total = 1.0 + total * r / j
    return total


def _taylor_weights(d: int, degree: int) -> HostArray:
    """Return 1 / sqrt(prod_i b_i!) for each monomial b up to a degree, in the order of the features.

    >>> _taylor_weights(2, 2).round(3).tolist()  # 1, x, y, x^2, xy, y^2
    [1.0, 1.0, 1.0, 0.707, 1.0, 0.707]
    """
    lead_before, repeats, factorials = np.arange(d), np.ones(d), np.ones(d)
    blocks = [np.ones(1), factorials]
    for p in range(2, degree + 1):
        lead, suffix = _gather_plan(d, p)
        # how often a monomial's first variable occurs in it: once more than in the rest that begins with it
        repeats = np.where(lead_before[suffix] == lead, repeats[suffix] + 1, 1)
        factorials = factorials[suffix] * repeats
        lead_before = lead
        blocks.append(factorials)
    return 1 / np.sqrt(np.concatenate(blocks))


@dataclass(frozen=True)
class RandomFourier:
    """Features whose product is a Gaussian of the distance, exp(-kappa |x - y|^2 / 2), on average.

    phi = sqrt(2/m) cos(w x + b), w ~ N(0, kappa I), b uniform (Rahimi and Recht 2007, algorithm 1);
    the error of a product falls as 1/sqrt(m).

    >>> half = {"directions": np.zeros((1, 2)), "phases": np.array([0.0, np.pi / 3])}
    >>> RandomFourier(features=2).apply(np.array([[7.0]]), half).round(3).tolist()  # cos 0 and cos 60 degrees
    [[1.0, 0.5]]

    Parameters
    ----------
    features
        m.
    kappa
        The inverse square of the kernel's width; for unit vectors exp(kappa (cos - 1)).

    Raises
    ------
    InvalidParamError
        For fewer than one feature, and for a kappa that is not positive.
    """

    features: int = 2048
    kappa: float = 4.0
    kind: ClassVar[str] = "random-fourier"

    def __post_init__(self) -> None:
        _check_features(self.features)
        if not is_number(self.kappa) or self.kappa <= 0:
            raise InvalidParamError(f"{self.kappa!r} is not a positive number", key="kappa")

    def d_out(self, d_in: int) -> int:
        """Return m."""
        _check_whole(d_in, "d_in")
        return self.features

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return ``directions`` (d_in, m) ~ N(0, kappa) and ``phases`` (m,), uniform in (-pi, pi]."""
        directions = random_normal(seed, "features/random-fourier/directions", (d_in, self.features))
        # The angle of a normal point in the plane is uniform: no second kind of random number to keep frozen.
        sine, cosine = random_normal(seed, "features/random-fourier/phases", (2, self.features))
        return {"directions": math.sqrt(self.kappa) * directions, "phases": np.arctan2(sine, cosine)}

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Return phi (..., n, m) of x (..., n, d_in)."""
        xp = namespace(x)
        phi = x @ constants["directions"]
        phi += constants["phases"]
        phi = xp.cos(phi)
        phi *= math.sqrt(2 / self.features)
        return unit(phi) if normalize else phi


@dataclass(frozen=True)
class WinnerTakeAll:
    """Sparse codes: of a random projection only the ``active`` largest activations of a token stay.

    Exactly ``active`` features of each token are not zero. Of equal activations the first win (all of a zero
    vector's are equal), on every library alike.

    >>> square = {"directions": np.array([[1.0, 0.0, -1.0, 0.0], [0.0, 1.0, 0.0, -1.0]])}
    >>> WinnerTakeAll(features=4, active=2).apply(np.array([[0.25, -0.5]]), square).tolist()
    [[1.0, 0.0, 0.0, 1.0]]
    >>> WinnerTakeAll(features=4, active=2, binary=False).apply(np.array([[0.25, -0.5]]), square).tolist()
    [[1.0, 0.0, 0.0, 1.25]]

    Parameters
    ----------
    features
        The number of random directions.
    active
        How many win; at most ``features``.
    binary
        Winners become 1; otherwise their activations, shifted so that the weakest winner's is 1.

    Raises
    ------
    InvalidParamError
        For numbers below 1, and for more winners than features.
    """

    features: int = 4096
    active: int = 32
    binary: bool = True
    kind: ClassVar[str] = "winner-take-all"

    def __post_init__(self) -> None:
        _check_features(self.features)
        _check_whole(self.active, "active")
        _check_flag(self.binary, "binary")
        if self.active > self.features:
            raise InvalidParamError(f"{self.active} of {self.features} features cannot win", key="active")

    def d_out(self, d_in: int) -> int:
        """Return ``features``."""
        _check_whole(d_in, "d_in")
        return self.features

    def constants(self, d_in: int, seed: int) -> dict[str, HostArray]:
        """Return ``directions`` (d_in, features), standard normal."""
        return {"directions": random_normal(seed, "features/winner-take-all", (d_in, self.features))}

    def apply(self, x: Array, constants: Mapping[str, Array], normalize: bool = False) -> Array:
        """Return phi (..., n, features) of x (..., n, d_in); activations that are not a number never win."""
        xp = namespace(x)
        activation = x @ constants["directions"]
        weakest = self._weakest(activation)
        wins = activation > weakest
        # Ties at the threshold: which of them a partition leaves on which side differs between libraries.
        ties = activation == weakest
        places = self.active - xp.sum(wins, axis=-1, keepdims=True)
        wins |= ties & (xp.cumsum(ties, axis=-1) <= places)
        if self.binary:
            phi = wins.astype(x.dtype)
            return phi * (1 / math.sqrt(self.active)) if normalize else phi
        phi = xp.where(wins, activation - weakest + 1.0, xp.zeros_like(activation))
        return unit(phi) if normalize else phi

    def _weakest(self, activation: Array) -> Array:
        """Return the ``active``-th largest activation (..., 1) of each token."""
        first = self.features - self.active
        return namespace(activation).partition(activation, first, axis=-1)[..., first : first + 1]


FEATURE_MAPS: dict[str, type[FeatureMap]] = {
    feature_map.kind: feature_map
    for feature_map in (Identity, Polynomial, Exponential, RandomFourier, WinnerTakeAll)
}


# ------------------------------------------------------------------------------------------- the whole front


@dataclass(frozen=True)
class Features:
    """Everything between a raw key and the memory: a fixed random projection, centring, L2 norms and the map.

    >>> features = Features(map=Polynomial(degree=2), normalize=True)
    >>> phi = features.phi(np.array([[0.0, 2.0]]), {})  # 1, x, y, x^2/2, xy/2, y^2/2 at (0, 1), by sqrt(9/4)
    >>> phi.round(4).tolist()
    [[0.6667, 0.0, 0.6667, 0.0, 0.0, 0.3333]]

    Parameters
    ----------
    map
        The feature map.
    projection
        The width of a random projection in front of it ("memory_dim"); None: keys stay as they are.
    centre
        Whether `prepare` subtracts the mean it is given.
    normalize_keys
        Whether projected keys are divided by their length.
    normalize
        Whether features are divided by their length.

    Raises
    ------
    InvalidParamError
        For a map that is none, and for a projection narrower than 1.
    """

    map: FeatureMap = Polynomial()
    projection: int | None = None
    centre: bool = False
    normalize_keys: bool = True
    normalize: bool = False
    kind: ClassVar[str] = "features"

    def __post_init__(self) -> None:
        if type(self.map) not in FEATURE_MAPS.values():
            raise InvalidParamError(
                f"{self.map!r} is not a feature map",
                key="map",
                hint=f"Choose one of: {', '.join(FEATURE_MAPS)}.",
            )
        if self.projection is not None:
            _check_whole(self.projection, "projection")
        for flag in ("centre", "normalize_keys", "normalize"):
            _check_flag(getattr(self, flag), flag)

    def d_key(self, d_k: int) -> int:
        """Return the width of a key of ``d_k`` numbers after the projection."""
        _check_whole(d_k, "d_k")
        return self.projection or d_k

    def d_phi(self, d_k: int) -> int:
        """Return the number of features; `InvalidParamError` beyond ``MAX_FEATURES``."""
        return self.map.d_out(self.d_key(d_k))

    def constants(self, d_k: int, seed: int) -> dict[str, HostArray]:
        """Return the map's constants and ``projection`` (d_k, d_key) ~ N(0, 1/d_key), float64 on the host.

        The scale keeps lengths and angles on average (Johnson and Lindenstrauss 1984).
        """
        found = self.map.constants(self.d_key(d_k), seed)
        if self.projection is None:
            return found
        drawn = random_normal(seed, "features/projection", (d_k, self.projection))
        return {**found, "projection": drawn / math.sqrt(self.projection)}

    @quiet
    def project(self, k: Array, constants: Mapping[str, Array]) -> Array:
        """Return keys k (..., n, d_k) as p (..., n, d_key); a token's does not depend on the others, to the bit."""
        return k if self.projection is None else _product(k, constants["projection"])

    @quiet
    def prepare(self, p: Array, mean: Array | None = None) -> Array:
        """Return projected keys p (..., n, d_key) less their mean (..., d_key), then of length 1."""
        if self.centre and mean is not None:
            p = p - mean[..., None, :]
        return unit(p) if self.normalize_keys else p

    @quiet
    def phi(self, p: Array, constants: Mapping[str, Array], mean: Array | None = None) -> Array:
        """Return the features (..., n, d_phi) of projected keys p (..., n, d_key).

        The maps with random directions multiply by them in one product, so that a token's features may differ in
        the last bits with the number of tokens n and its place among them (not with the leading axes); and
        ``WinnerTakeAll`` may choose another of two activations that are alike to these bits. Learning always sees
        whole chunks.
        """
        return self.map.apply(self.prepare(p, mean), constants, self.normalize)
