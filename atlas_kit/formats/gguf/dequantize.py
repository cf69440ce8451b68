"""Turning stored weights into float32: plain types with NumPy, quantised ones with ``gguf.quants``."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.tables import GGMLType, GGMLTypeRow

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.gguf.tensors import TensorInfo


def dequantize_rows(
    data: bytes, rows: int, info: TensorInfo, row: GGMLTypeRow, byte_order: str
) -> np.ndarray[Any, np.dtype[np.float32]]:
    """Return ``rows`` rows of a tensor as float32, shape ``(rows, dims[0])``.

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
        return plain.astype(np.float32).reshape(rows, width)
    blocks = np.frombuffer(data, np.uint8).reshape(-1, row.size)
    if byte_order == ">":
        blocks = _swapped(blocks, info, row)
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


def _swapped(blocks: Any, info: TensorInfo, row: GGMLTypeRow) -> Any:
    """Return blocks with their multi-byte numbers in the other byte order."""
    if row.swap is None:
        raise InvalidParamError(f"{row.type.name} of a big-endian file cannot be dequantised", key=info.name)
    blocks = blocks.copy()
    for offset, size in row.swap:
        blocks[:, offset : offset + size] = blocks[:, offset : offset + size][:, ::-1].copy()
    return blocks
