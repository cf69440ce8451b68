"""Quantise the weight matrices of a GGUF model: f16, bf16 or q8_0, everything else copied.

Follows llama.cpp's choice of tensors: only floating-point tensors of two or more dimensions whose name ends
in ``weight``; norms, biases and the like stay as they are, and so does what a target cannot represent.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.operations.compressed import Compressed, CompressOptions, EntryRatio
from atlas_kit.operations.outputs import Output, scratch_path
from atlas_kit.operations.tensor_numbers import difference

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile, MetadataField, TensorInfo, TensorSource
    from atlas_kit.operations.inputs import Opened
    from atlas_kit.storage.given import Progress

_FLOATS = ("F32", "F16", "BF16", "F64")
#: What ``general.file_type`` says of a model stored mostly in a type.
_FILE_TYPES = {"F16": 1, "Q8_0": 7, "BF16": 32}
_F16_MAX = 65504.0


def quantize_model(
    opened: Opened, output: Output, options: CompressOptions, progress: Progress | None
) -> Compressed:
    """Write a model whose weight matrices take fewer bits.

    Raises
    ------
    InvalidParamError
        No way to quantise was chosen, a codec was, or the model is big-endian.
    """
    from atlas_kit.formats.gguf import GGUFFile, write_gguf

    model = opened.gguf
    _require_possible(model, opened.name, options)
    target = str(options.quantize).upper()
    rows: list[EntryRatio] = []
    sources = []
    for number, info in enumerate(model.tensor_infos):
        row, source = _plan(model, info, target)
        rows.append(row)
        sources.append(source)
        if progress:
            progress("looking at tensors", number + 1, len(model.tensor_infos))
    total = sum(source.nbytes for source in sources)
    told: Callable[[int], None] | None = None
    if progress:
        told = lambda done: progress("quantising", done, total)  # noqa: E731
    with scratch_path(output, ".gguf") as path:
        write_gguf(path, _fields(model, target), sources, version=max(2, model.version), progress=told)
        size = os.stat(path).st_size
        with GGUFFile.open(path, shards=False) as made:
            for row in rows:
                _measure(model, made, row)
    name = os.fsdecode(output) if isinstance(output, (str, os.PathLike)) else "-"
    return Compressed(opened.name, name, model.size, size, rows)


def _require_possible(model: GGUFFile, name: str, options: CompressOptions) -> None:
    if options.codec is not None or options.level is not None:
        raise InvalidParamError("GGUF has no codecs", path=name, remedy=Remedy("quantise"))
    if options.quantize is None:
        raise InvalidParamError(
            "a GGUF model cannot be made smaller without loss", path=name,
            remedy=Remedy("quantise"),
        )  # fmt: skip
    if model.byte_order != "<":
        raise InvalidParamError("big-endian models cannot be quantised", path=name)
    if model.error is not None:
        raise model.error
    model.require_all_shards()


def _plan(model: GGUFFile, info: TensorInfo, target: str) -> tuple[EntryRatio, TensorSource]:
    from atlas_kit.formats.gguf import GGMLType, TensorSource
    from atlas_kit.formats.gguf.tables import tensor_nbytes

    size = info.nbytes or 0
    row = EntryRatio(info.name, size, size, size, "none", info.type_name, info.type_name)
    keep = TensorSource.from_file(model, info)
    if info.type_name not in _FLOATS or len(info.dims) < 2 or not info.name.endswith("weight"):
        return row, keep
    nbytes = tensor_nbytes(info.dims, GGMLType[target])
    if nbytes is None:
        row.note = f"kept: rows of {info.dims[0]} weights are not whole blocks of 32"
    elif nbytes >= size:
        row.note = "kept: it is as small already"
    elif not _representable(model, info, target):
        row.note = f"kept: it holds numbers that {target} cannot represent"
    else:
        row.dtype_after, row.stored_after = target, nbytes
        data = _pieces(model, info, target)
        return row, TensorSource(info.name, info.dims, GGMLType[target], data, nbytes)
    return row, keep


def _representable(model: GGUFFile, info: TensorInfo, target: str) -> bool:
    import numpy as np

    limit = {"F16": _F16_MAX, "Q8_0": _F16_MAX * 127}.get(target, np.inf)
    for piece in model.iter_dequantized(info):
        peak = np.abs(piece).max(initial=0.0)
        if not np.isfinite(peak) or peak > limit:
            return False
    return True


def _pieces(model: GGUFFile, info: TensorInfo, target: str) -> Callable[[], Iterator[bytes]]:
    def pieces() -> Iterator[bytes]:
        import numpy as np

        from atlas_kit.codecs import numbers

        for rows in model.iter_dequantized(info):
            array: Any = np.ascontiguousarray(rows, np.float32)
            if target == "Q8_0":
                yield numbers.to_q8_0(array).tobytes()
            elif target == "BF16":
                yield numbers.to_bfloat16(array).tobytes()
            else:
                yield array.astype("<f2").tobytes()

    return pieces


def _fields(model: GGUFFile, target: str) -> list[MetadataField]:
    """Return the metadata with the two keys that speak of the tensors' types brought up to date."""
    from atlas_kit.formats.gguf import MetadataField, ValueType
    from atlas_kit.formats.gguf.shards import SPLIT_KEYS

    fields = []
    for row in model.fields:
        if row.key in SPLIT_KEYS:  # what comes out is one file
            continue
        if row.key == "general.file_type":
            row = MetadataField.make(row.key, _FILE_TYPES[target], ValueType.UINT32)
        fields.append(row)
    if target == "Q8_0" and "general.quantization_version" not in model.metadata:
        fields.append(MetadataField.make("general.quantization_version", 2, ValueType.UINT32))
    return fields


def _measure(model: GGUFFile, made: GGUFFile, row: EntryRatio) -> None:
    if row.dtype_before == row.dtype_after:
        return
    before, after = model.tensor(row.key), made.tensor(row.key)
    row.error = difference(
        (piece.reshape(-1) for piece in model.iter_dequantized(before)),
        (piece.reshape(-1) for piece in made.iter_dequantized(after)),
    )
