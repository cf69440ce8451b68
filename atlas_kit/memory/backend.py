"""Where arrays live: NumPy always, CuPy when it is installed and asked for.

Numeric code takes its namespace ``xp`` from the arrays that it is given; only this file knows the names of the
libraries. Random constants are always drawn on the host, so that every backend uses the same numbers.
"""

from __future__ import annotations

import functools
import os
import sys
import threading
import zlib
from collections.abc import Callable
from types import ModuleType
from typing import Any, ParamSpec, TypeVar

import numpy as np

from atlas_kit.errors import InvalidParamError, MissingExtraError

P = ParamSpec("P")
T = TypeVar("T")
Array = Any  #: a NumPy or CuPy array; the two share their interface, not a base class

_inside = threading.local()

VARIABLE = "ATLAS_KIT_BACKEND"
BACKENDS = ("numpy", "cupy")


def namespace(*arrays: Array) -> Any:
    """Return the library that the arrays belong to: CuPy as soon as one of them is CuPy's, else NumPy.

    Decided by type: ``cupy.ndarray`` has no ``__array_namespace__``.
    """
    for array in arrays:
        library = type(array).__module__.partition(".")[0]
        if library != "numpy" and library in sys.modules and hasattr(array, "__cuda_array_interface__"):
            return sys.modules[library]
    return np


def choose(name: str | None = None) -> Any:
    """Return the array library called ``name``; without a name, what ``ATLAS_KIT_BACKEND`` says, else NumPy.

    Raises
    ------
    InvalidParamError
        For a name that is neither ``numpy`` nor ``cupy``.
    MissingExtraError
        When CuPy is asked for and cannot be imported, or finds no device.
    """
    name = str(name or os.environ.get(VARIABLE) or "numpy").lower()
    if name not in BACKENDS:
        raise InvalidParamError(
            f"{name!r} is not a backend", key="backend", hint=f"Choose one of: {', '.join(BACKENDS)}."
        )
    return np if name == "numpy" else _cupy()


def _cupy() -> ModuleType:
    """Import CuPy and touch the device, so that a machine without one fails here and with one sentence."""
    try:
        import cupy
    except ImportError as error:
        raise MissingExtraError("the cupy backend", "cuda12") from error
    try:
        cupy.zeros(1)
    except Exception as error:  # CuPy raises a different class for each way in which CUDA can be missing
        raise InvalidParamError(
            "CuPy is installed, but it finds no usable CUDA device",
            key="backend",
            hint="Check nvidia-smi, or use the numpy backend.",
        ) from error
    return cupy  # type: ignore[no-any-return]


def quiet(function: Callable[P, T]) -> Callable[P, T]:
    """Let a function meet NaN, infinities and overflow without a word, whatever ``np.seterr`` says.

    For functions that look for such numbers themselves, or whose answer they are.
    """

    @functools.wraps(function)
    def quietly(*args: P.args, **kwargs: P.kwargs) -> T:
        if getattr(_inside, "quiet", False):  # they call each other, and saying it once is enough
            return function(*args, **kwargs)
        _inside.quiet = True
        try:
            with np.errstate(all="ignore"):
                return function(*args, **kwargs)
        finally:
            _inside.quiet = False

    return quietly


def as_numbers(xp: Any, value: object, dtype: Any, key: str) -> Array:
    """Return what a caller gave as ``key`` as an array of the library ``xp`` and the type ``dtype``; no copy if it is.

    Raises
    ------
    InvalidParamError
        For what is no array of numbers, masked entries, and where whole numbers are asked for, others.
    """
    dtype = np.dtype(dtype)
    if type(value) is xp.ndarray and value.dtype == dtype:  # type: ignore[attr-defined]
        return value
    if np.ma.is_masked(value):
        raise InvalidParamError(
            f"{key} has masked entries", key=key, hint="Fill them, and give weights of 0."
        )
    try:
        array = xp.asarray(value)
        if array.dtype.kind == "O":
            array = array.astype(np.float64)
    except (TypeError, ValueError) as error:
        raise InvalidParamError(f"{key} is not an array of numbers", key=key) from error
    if array.dtype.kind not in "biuf":
        raise InvalidParamError(f"{key} holds {array.dtype}, not real numbers", key=key)
    if dtype.kind == "i" and array.size:
        bounds = np.iinfo(dtype)
        if array.dtype.kind not in "iu" or bool(((array < bounds.min) | (array > bounds.max)).any()):
            raise InvalidParamError(f"{key} holds {array.dtype} that are not {dtype}", key=key)
    return array.astype(dtype, copy=False)


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return the array as a NumPy array; a copy only if it lives elsewhere."""
    return array.get() if hasattr(array, "__cuda_array_interface__") else np.asarray(array)


def random_normal(seed: int, stream: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Draw standard normal float64 numbers on the host: the same for a seed and stream name, everywhere, forever.

    ``RandomState`` is the one NumPy generator whose stream is promised never to change; a memory that was
    saved years ago depends on it.
    """
    mixed = zlib.crc32(stream.encode()) ^ (seed & 0xFFFFFFFF)
    return np.random.RandomState(mixed).standard_normal(shape)


def add_scaled(
    product: Array,
    a: Array,
    W: Array,
    q: Array | None = None,
    S: Array | None = None,
    out: Array | None = None,
) -> Array:
    """Return product + a W (+ q S) in ``out``, which may be W; ``product`` is used up.

    Matrices (R, rows, cols); a, q: (R,). One pass over memory on a GPU, where NumPy needs one per operation.

    >>> W = np.array([[[1.0, 2.0]]])
    >>> add_scaled(np.array([[[10.0, 20.0]]]), np.array([0.5]), W, out=W).tolist(), W.tolist()
    ([[[10.5, 21.0]]], [[[10.5, 21.0]]])
    """
    xp = namespace(W)
    a = a[:, None, None]
    q = None if q is None else q[:, None, None]
    if xp.__name__ == "cupy":
        out = product if out is None else out
        one, two, _ = _kernels()
        return one(product, a, W, out) if S is None else two(product, a, W, q, S, out)
    out = xp.empty_like(W) if out is None else out
    if bool((a == 1).all()):
        xp.add(W, product, out=out)
    else:
        xp.multiply(W, a, out=out)
        xp.add(out, product, out=out)
    if S is not None:
        xp.multiply(S, q, out=product)
        xp.add(out, product, out=out)
    return out


def sum_of_squares(array: Array) -> Array:
    """Return the sum of the squares of (R, rows, cols) by row R: (R,).

    >>> sum_of_squares(np.array([[[3.0, 4.0]], [[0.0, 2.0]]])).tolist()
    [25.0, 4.0]
    """
    xp = namespace(array)
    if (
        xp.__name__ == "cupy"
    ):  # in two steps, because one block of threads for each R would leave most of a GPU idle
        _, _, squares = _kernels()
        return squares(array, axis=2).sum(axis=1)
    flat = array.reshape(len(array), 1, array.shape[1] * array.shape[2])
    return (flat @ flat.swapaxes(-1, -2))[:, 0, 0]


@functools.lru_cache(maxsize=1)
def _kernels() -> tuple[Any, Any, Any]:
    """Return CuPy's kernels for the two functions above; they are compiled at their first call."""
    import cupy

    one = cupy.ElementwiseKernel(
        "T product, T a, T W", "T out", "out = product + a * W", "atlas_kit_add_scaled"
    )
    two = cupy.ElementwiseKernel(
        "T product, T a, T W, T q, T S", "T out", "out = product + a * W + q * S", "atlas_kit_add_scaled_two"
    )
    squares = cupy.ReductionKernel("T x", "T y", "x * x", "a + b", "y = a", "0", "atlas_kit_squares")
    return one, two, squares
