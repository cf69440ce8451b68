"""Whether the weights of a model are there: all of them read, or only what shows without reading them.

Which bytes are numbers is said here; what destroyed weights look like is known in ``formats.weights``.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from atlas_kit.formats.gguf.tables import SCALES, GGMLType, GGMLTypeRow
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.weights.regions import Region
from atlas_kit.storage.given import Progress
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report

_PLAIN = {GGMLType.F16: "f16", GGMLType.BF16: "bf16", GGMLType.F32: "f32", GGMLType.F64: "f64"}


def regions_of(tensors: Sequence[TensorInfo], data_start: int, size: int) -> list[Region]:
    """Return where the tensors' bytes lie, in the order of the file; tensors that are not whole are left out."""
    found = []
    for info in tensors:
        row, nbytes, start = info.row, info.nbytes, data_start + info.offset
        if row is None or not nbytes or start + nbytes > size:
            continue
        matrix = info.rows > 1
        length = info.row_bytes if matrix and info.row_bytes else nbytes
        plain = row.dtype is not None
        found.append(Region(info.name, start, nbytes, length, row.size, _numbers(row), matrix, plain))
    found.sort(key=lambda region: region.start)
    return [
        region
        for before, region in zip([None, *found], found, strict=False)
        if before is None or region.start >= before.stop
    ]


def _numbers(row: GGMLTypeRow) -> tuple[tuple[int, str], ...]:
    if row.type in _PLAIN:
        return ((0, _PLAIN[row.type]),)
    scales = SCALES.get(row.type, ())
    if row.type == GGMLType.Q8_1:  # its second number is a sum, which may be large
        return scales
    return tuple((offset, "f16scale" if kind == "f16" else kind) for offset, kind in scales)


def check_values(
    report: Report,
    source: Source,
    tensors: Sequence[TensorInfo],
    data_start: int,
    byte_order: str,
    progress: Progress | None = None,
) -> None:
    """Read all weights: NaN, infinity, impossible scales, zeros that were never written, data that are there twice."""
    from atlas_kit.formats.weights.scan import check_weights

    check_weights(report, source, regions_of(tensors, data_start, source.size), byte_order, progress)


def check_signs(report: Report, source: Source, tensors: Sequence[TensorInfo], data_start: int) -> None:
    """Look for destroyed weights where that costs next to nothing: holes, a zeroed end, zeros at sampled places."""
    from atlas_kit.formats.weights.zeros import quick_zeros, report_zeros

    regions = regions_of(tensors, data_start, source.size)
    report_zeros(report, source, regions, quick_zeros(source, regions), thorough=False)


def check_surplus(
    report: Report, source: Source, tensors: Sequence[TensorInfo], data_start: int, end: int
) -> bool:
    """Tell, and say, whether what follows the data is there because a download was resumed too early."""
    from atlas_kit.formats.weights.repeats import report_resumed

    regions = regions_of(tensors, data_start, source.size)
    return report_resumed(report, source, regions, source.size - end)
