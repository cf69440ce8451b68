"""Where arrays live: NumPy always, CuPy when it is installed and asked for.

Numeric code takes its namespace ``xp`` from the arrays that it is given; only this file knows the names of the
libraries. Random constants are always drawn on the host, so that every backend uses the same numbers.
"""

from __future__ import annotations

import os
import sys
import zlib
from types import ModuleType
from typing import Any

import numpy as np

from atlas_kit.errors import InvalidParamError, MissingExtraError

Array = Any  #: a NumPy or CuPy array; the two share their interface, not a base class

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
    name = (name or os.environ.get(VARIABLE) or "numpy").lower()
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


def to_host(array: Array) -> np.ndarray[Any, Any]:
    """Return the array as a NumPy array; a copy only if it lives elsewhere."""
    return array.get() if hasattr(array, "get") else np.asarray(array)


def random_normal(seed: int, stream: str, shape: tuple[int, ...]) -> np.ndarray[Any, Any]:
    """Draw standard normal float64 numbers on the host: the same for a seed and stream name, everywhere, forever.

    ``RandomState`` is the one NumPy generator whose stream is promised never to change; a memory that was
    saved years ago depends on it.
    """
    mixed = zlib.crc32(stream.encode()) ^ (seed & 0xFFFFFFFF)
    return np.random.RandomState(mixed).standard_normal(shape)
