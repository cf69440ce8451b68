"""Quantise the weight matrices of a GGUF model, and say how far each is from what it was.

f16, bf16 and q8_0 are a rounding of each number, made here: only floating-point tensors of two or more dimensions whose
name ends in ``weight``; norms, biases and the like stay as they are, and so does what a target cannot represent. All
other types are made by llama.cpp's own quantiser (``llama/quantizer``).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.operations.compressed import Compressed, CompressOptions, EntryRatio
from atlas_kit.operations.outputs import Output, output_name, scratch_path
from atlas_kit.operations.tensor_numbers import difference

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile, MetadataField, TensorInfo, TensorSource
    from atlas_kit.operations.inputs import Opened
    from atlas_kit.operations.model_check import ModelCheck
    from atlas_kit.storage.given import Progress, StrPath

#: What is a rounding of each number.
CASTS = ("f16", "bf16", "q8_0")
#: What the ``gguf`` package quantises where llama.cpp is not installed.
BY_GGUF = ("q4_0", "q4_1", "q5_0", "q5_1", "tq1_0", "tq2_0")
_FLOATS = ("F32", "F16", "BF16", "F64")
#: What ``general.file_type`` says of a model stored mostly in a type.
_FILE_TYPES = {
    "F16": 1,
    "Q8_0": 7,
    "BF16": 32,
    "Q4_0": 2,
    "Q4_1": 3,
    "Q5_0": 8,
    "Q5_1": 9,
    "TQ1_0": 36,
    "TQ2_0": 37,
}
_F16_MAX = 65504.0


def quantize_model(
    opened: Opened, output: Output, options: CompressOptions, progress: Progress | None
) -> Compressed:
    """Write a model whose weight matrices take fewer bits.

    Raises
    ------
    InvalidParamError
        No way to quantise was chosen, a codec was, or the model is big-endian, or quantised already; or the text to
        check it with is empty.
    MissingExtraError, ModelError
        llama.cpp is needed and not installed, or refuses the model.
    """
    from atlas_kit.formats.gguf import GGUFFile

    model = opened.gguf
    _require_possible(model, opened.name, options)
    if options.check is not None:
        from atlas_kit.operations.model_check import require_text

        require_text(options.check)
    name = output_name(output)
    result = Compressed(opened.name, name, model.size, 0)
    with scratch_path(output, ".gguf") as path:
        if str(options.quantize) in CASTS:
            result.entries = _cast(model, path, options, progress)
        else:
            result.notes.append(_quantise(model, path, options, progress))
            result.entries = _rows(model, path)
        result.size_after = os.stat(path).st_size
        with GGUFFile.open(path, shards=False) as made:
            for number, row in enumerate(result.entries):
                _measure(model, made, row)
                if progress:
                    progress("measuring errors", number + 1, len(result.entries))
        if options.check is not None:
            result.check = _checked(model, path, options, progress)
    return result


def _checked(
    model: GGUFFile, made: StrPath, options: CompressOptions, progress: Progress | None
) -> ModelCheck:
    from atlas_kit.operations.model_check import check_models

    assert options.check is not None
    return check_models(
        model.shards[0].path or "", made, options.check, tokens=options.check_tokens, progress=progress
    )


# --- types that llama.cpp makes ------------------------------------------------------------------------------


def _quantise(model: GGUFFile, path: StrPath, options: CompressOptions, progress: Progress | None) -> str:
    """Let llama.cpp quantise a model, or the ``gguf`` package where there is no llama.cpp; say which."""
    from atlas_kit.errors import MissingExtraError
    from atlas_kit.llama.quantizer import Job, quantize
    from atlas_kit.storage.atomic import atomic_write

    kind = str(options.quantize)
    experts = any("_exps." in info.name for info in model.tensor_infos)
    job = Job(model.shards[0].path or "", kind, options.requantize, pure=kind == "mxfp4" and not experts)
    told = (lambda done, count: progress("quantising", done, count)) if progress else None
    try:
        with atomic_write(path) as out:
            quantize(job, out, told)
    except MissingExtraError:
        if kind not in BY_GGUF:
            raise
        _cast(model, path, options, progress)
        return "quantised by the gguf package, every matrix to the same type: llama.cpp is not installed"
    return "quantised by llama.cpp, which chooses the type of each tensor"


def _rows(model: GGUFFile, path: StrPath) -> list[EntryRatio]:
    from atlas_kit.formats.gguf import GGUFFile

    rows = []
    with GGUFFile.open(path, shards=False) as made:
        for info in model.tensor_infos:
            size = info.nbytes or 0
            row = EntryRatio(info.name, size, size, size, "none", info.type_name, info.type_name)
            if info.name in made.tensors:
                new = made.tensors[info.name]
                row.stored_after, row.dtype_after = new.nbytes or 0, new.type_name
            rows.append(row)
    return rows


# --- types that are a rounding of each number, or that the gguf package makes -----------------------------------


def _cast(
    model: GGUFFile, path: StrPath, options: CompressOptions, progress: Progress | None
) -> list[EntryRatio]:
    from atlas_kit.formats.gguf import write_gguf

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
    write_gguf(path, _fields(model, target), sources, version=max(2, model.version), progress=told)
    return rows


def _require_possible(model: GGUFFile, name: str, options: CompressOptions) -> None:
    if options.codec is not None or options.level is not None:
        raise InvalidParamError("GGUF has no codecs", path=name, remedy=Remedy("quantise"))
    if options.quantize is None:
        raise InvalidParamError(
            "a GGUF model cannot be made smaller without loss", path=name,
            remedy=Remedy("quantise"),
        )  # fmt: skip
    if options.check is not None and model.path is None:
        raise InvalidParamError("llama.cpp checks models that lie in a file", path=name)
    if model.byte_order != "<":
        raise InvalidParamError("big-endian models cannot be quantised", path=name)
    if model.error is not None:
        raise model.error
    model.require_all_shards()
    if options.quantize in CASTS:
        return
    if model.path is None:
        raise InvalidParamError("llama.cpp quantises models that lie in a file", path=name)
    model.require_data()
    quantised = [info for info in model.tensor_infos if info.row is not None and info.row.dtype is None]
    if quantised and not options.requantize:
        raise InvalidParamError(
            f"the model is quantised already ({quantised[0].type_name}): its errors would add up",
            path=name, remedy=Remedy("requantise"),
        )  # fmt: skip


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
        row.note = f"kept: rows of {info.dims[0]} weights are not whole blocks"
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
            elif target == "F16":
                yield array.astype("<f2").tobytes()
            else:
                yield _by_gguf(array, target)

    return pieces


def _by_gguf(rows: Any, target: str) -> bytes:
    import numpy as np
    from gguf import GGMLQuantizationType, quants

    with np.errstate(all="ignore"):
        return bytes(quants.quantize(rows, GGMLQuantizationType[target]).tobytes())


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
    if target not in ("F16", "BF16") and "general.quantization_version" not in model.metadata:
        fields.append(MetadataField.make("general.quantization_version", 2, ValueType.UINT32))
    return fields


def _measure(model: GGUFFile, made: GGUFFile, row: EntryRatio) -> None:
    if row.dtype_before == row.dtype_after:
        return
    before, after = model.tensor(row.key), made.tensor(row.key)
    try:
        row.error = difference(
            (piece.reshape(-1) for piece in model.iter_dequantized(before)),
            (piece.reshape(-1) for piece in made.iter_dequantized(after)),
        )
    except InvalidParamError as error:  # a type that nobody here can turn into numbers
        row.note = f"its error is not known: {error.message}"
