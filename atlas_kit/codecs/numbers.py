"""Number formats that NumPy lacks: bfloat16 (half a float32) and q8_0 (blocks of 32 int8 and a scale).

The q8_0 bytes are ggml's: a float16 scale ``d = max|x| / 127``, then ``round(x / d)``.
"""

from __future__ import annotations

from typing import Any

import numpy as np

#: A NumPy array of any shape and type, defined here for the whole package. The memory calls it ``HostArray``: there,
#: ``backend.Array`` may be on a device.
Array = np.ndarray[Any, Any]

Q8_0_BLOCK = 32
Q8_0 = np.dtype([("d", "<f2"), ("q", "i1", (Q8_0_BLOCK,))])


def to_bfloat16(array: Array) -> Array:
    """Round float32 to bfloat16 (nearest, ties to even; NaN stays NaN), as ``uint16`` of the same shape."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    nan = (bits & 0x7FFFFFFF) > 0x7F800000
    return np.where(nan, ((bits >> 16) | 0x40).astype(np.uint16), rounded)


def from_bfloat16(array: Array) -> Array:
    """Widen bfloat16, given as ``uint16``, to float32."""
    return (array.astype(np.uint32) << 16).view(np.float32)


def to_q8_0(array: Array) -> Array:
    """Quantise ``(..., n)`` float32, ``n`` a multiple of 32, to ``(..., n // 32 * 34)`` bytes.

    For example ``(4, 64)`` gives ``(4, 68)``. Not finite numbers cannot be represented.
    """
    array = np.ascontiguousarray(array, np.float32)
    blocks = array.reshape(-1, Q8_0_BLOCK)
    peak = np.abs(blocks).max(axis=1, initial=0)
    scale = peak / np.float32(127)
    inverse = np.divide(1, scale, out=np.zeros_like(scale), where=scale != 0)
    out = np.empty(len(blocks), Q8_0)
    out["d"] = scale
    scaled = blocks * inverse[:, None]
    # ggml rounds halves away from zero
    out["q"] = np.trunc(scaled + np.copysign(np.float32(0.5), scaled))
    rows = array.shape[-1] // Q8_0_BLOCK * Q8_0.itemsize
    return out.view(np.uint8).reshape(*array.shape[:-1], rows)


def from_q8_0(array: Array) -> Array:
    """Undo ``to_q8_0``: ``(..., n // 32 * 34)`` bytes to ``(..., n)`` float32."""
    blocks = np.ascontiguousarray(array).reshape(-1, Q8_0.itemsize).view(Q8_0).reshape(-1)
    numbers = blocks["q"].astype(np.float32) * blocks["d"].astype(np.float32)[:, None]
    columns = array.shape[-1] // Q8_0.itemsize * Q8_0_BLOCK
    return numbers.reshape(*array.shape[:-1], columns)
