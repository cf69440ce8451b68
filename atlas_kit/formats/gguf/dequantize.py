"""Turning stored weights into float32: plain types with NumPy, quantised ones with ``gguf.quants``."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.tables import GGMLType, GGMLTypeRow

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.gguf.tensors import TensorInfo

#: What turns stored blocks into float32, by the name of their type: is given where the blocks are, where the numbers
#: go, and how many of them there are. It must give what NumPy gives here, to the bit.
Native = Mapping[str, Callable[[int, int, int], None]]


def dequantize_rows(
    data: bytes | bytearray,
    rows: int,
    info: TensorInfo,
    row: GGMLTypeRow,
    byte_order: str,
    native: Native | None = None,
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return ``rows`` rows of a tensor as float32, shape ``(rows, dims[0])``.

    ``native``: somebody else's functions, which take the place of NumPy's for types that they know.

    Raises
    ------
    InvalidParamError
        ``gguf.quants`` cannot dequantise this type, or cannot in this byte order.
    """
    import numpy as np

    width = info.row_length
    if row.type == GGMLType.BF16:
        high = np.frombuffer(data, np.dtype(byte_order + "u2")).astype(np.uint32)
        return (high << 16).view(np.float32).reshape(rows, width)
    if row.dtype is not None:
        plain = np.frombuffer(data, np.dtype(byte_order + row.dtype))
        with np.errstate(over="ignore"):  # a float64 beyond float32 becomes infinity
            return plain.astype(np.float32).reshape(rows, width)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, row.size)
    if byte_order == ">":
        blocks = _swapped(blocks, info, row)
    if native is not None and row.type.name in native:
        values = np.empty(len(blocks) * row.block, np.float32)
        native[row.type.name](blocks.ctypes.data, values.ctypes.data, values.size)
        return values.reshape(rows, width)
    quick = {GGMLType.Q6_K: _q6_k, GGMLType.Q8_0: _q8_0}.get(row.type)
    if quick is not None:
        with np.errstate(all="ignore"):  # damaged blocks hold NaN and infinity: they are shown, not warned of
            return np.asarray(quick(blocks), np.float32).reshape(rows, width)
    from gguf import GGMLQuantizationType, quants

    try:
        kind = GGMLQuantizationType(int(row.type))
        with np.errstate(all="ignore"):  # damaged blocks hold NaN and infinity: they are shown, not warned of
            values = quants.dequantize(blocks.reshape(rows, -1), kind)
    except (NotImplementedError, ValueError) as error:
        raise InvalidParamError(
            f"{row.type.name} cannot be dequantised", key=info.name, hint="Its raw blocks can be read."
        ) from error
    return np.ascontiguousarray(values, np.float32).reshape(rows, width)


#: Blocks that are taken together: what they become (0.5 MB) stays in the processor's cache.
_GROUP = 512


def _q6_k(blocks: Any) -> Any:
    """Return blocks (n, 210) of Q6_K as float32 (n, 256), to the bit what ``gguf.quants`` makes of them.

    Three times as fast: most models keep their output matrix in this type, and a memory reads rows of it while text
    is generated. A block has the lower four bits of its 256 values, the upper two, 16 scales, and a scale of these.
    """
    import numpy as np

    values = np.empty((len(blocks), 256), np.float32)
    for start in range(0, len(blocks), _GROUP):
        part = blocks[start : start + _GROUP]
        n = len(part)
        low = np.ascontiguousarray(part[:, :128]).reshape(n, 2, 64)
        high = np.ascontiguousarray(part[:, 128:192]).reshape(n, 2, 32)
        q = np.empty((n, 2, 4, 32), np.uint8)
        for quarter, shift in enumerate((4, 2, 0, -2)):
            q[:, :, quarter] = high << shift if shift >= 0 else high >> -shift
        q &= 0x30
        halves = q.reshape(n, 2, 2, 64)
        halves[:, :, 0] |= low & 0x0F
        halves[:, :, 1] |= low >> 4
        scales = part[:, 192:208].view(np.int8).astype(np.float32)
        scales *= np.ascontiguousarray(part[:, 208:]).view("<f2").astype(np.float32)
        found = (q.view(np.int8) - np.int8(32)).reshape(n, 16, 16)
        np.multiply(found, scales[:, :, None], out=values[start : start + n].reshape(n, 16, 16))
    return values


def _q8_0(blocks: Any) -> Any:
    """Return blocks (n, 34) of Q8_0, a scale and 32 whole numbers, as float32 (n, 32), as ``gguf.quants`` does."""
    import numpy as np

    values = np.empty((len(blocks), 32), np.float32)
    for start in range(0, len(blocks), 8 * _GROUP):
        part = blocks[start : start + 8 * _GROUP]
        scale = np.ascontiguousarray(part[:, :2]).view("<f2").astype(np.float32)
        np.multiply(part[:, 2:].view(np.int8), scale, out=values[start : start + len(part)])
    return values


def _swapped(blocks: Any, info: TensorInfo, row: GGMLTypeRow) -> Any:
    """Return blocks with their multi-byte numbers in the other byte order."""
    if row.swap is None:
        raise InvalidParamError(f"{row.type.name} of a big-endian file cannot be dequantised", key=info.name)
    blocks = blocks.copy()
    for offset, size in row.swap:
        blocks[:, offset : offset + size] = blocks[:, offset : offset + size][:, ::-1].copy()
    return blocks
