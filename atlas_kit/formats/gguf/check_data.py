"""Looking for numbers that are not finite in tensor data: the slow half of checking a model file."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError
from atlas_kit.formats.gguf.tables import GGMLType, GGMLTypeRow
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.storage.source import CHUNK, Source

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report

_PLAIN = {GGMLType.F16, GGMLType.F32, GGMLType.F64}


def check_values(
    report: Report, source: Source, tensors: list[TensorInfo], data_start: int, byte_order: str
) -> None:
    """Warn of NaN and infinity among the weights (plain types) and the scales (quantised types)."""
    for info in tensors:
        row, nbytes = info.row, info.nbytes
        if row is None or not nbytes or data_start + info.offset + nbytes > source.size:
            continue
        first, count = _not_finite(source, data_start + info.offset, nbytes, row, byte_order)
        if count:
            what = "numbers" if row.dtype else "scales"
            report.warning(
                "tensor-not-finite",
                f"{count} of its {what} are NaN or infinite: the model will answer nonsense",
                "The file is damaged, or training went wrong. Compare its hash with the original's.",
                offset=first,
                key=info.name,
            )


def _not_finite(
    source: Source, start: int, nbytes: int, row: GGMLTypeRow, byte_order: str
) -> tuple[int, int]:
    """Return (offset of the first number that is not finite, how many there are)."""
    first, count, at = -1, 0, start
    step = CHUNK // row.size * row.size
    try:
        for chunk in source.chunks(start, nbytes, step):
            for values, width, inside in _numbers(chunk, row, byte_order):
                bad = ~values
                if bad.any():
                    if first < 0:
                        first = at + int(bad.argmax()) * width + inside
                    count += int(bad.sum())
            at += len(chunk)
    except AtlasError:  # the file became shorter meanwhile
        pass
    return first, count


def _numbers(chunk: bytes, row: GGMLTypeRow, byte_order: str) -> list[tuple[Any, int, int]]:
    """Return (which are finite, bytes from one to the next, bytes before the first) of a chunk."""
    import numpy as np

    if row.type in _PLAIN:
        values = np.frombuffer(chunk, np.dtype(f"{byte_order}{row.dtype}"))
        return [(np.isfinite(values), row.size, 0)]
    if row.type == GGMLType.BF16:
        bits = np.frombuffer(chunk, np.dtype(f"{byte_order}u2"))
        return [((bits & 0x7F80) != 0x7F80, 2, 0)]
    blocks = np.frombuffer(chunk, np.uint8).reshape(-1, row.size)
    out = []
    for inside, width in row.swap or ():
        if width == 2:  # the scales of a block are half-precision numbers
            scales = np.ascontiguousarray(blocks[:, inside : inside + 2]).view(f"{byte_order}f2")[:, 0]
            out.append((np.isfinite(scales), row.size, inside))
    return out
