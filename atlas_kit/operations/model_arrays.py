"""The tensors of a GGUF model as safetensors or npz: as they are stored, or dequantised.

Plain types keep their numbers. A quantised tensor that is not dequantised becomes its blocks: bytes, the last dimension
counting those of a row. What the target cannot say (types, metadata, names that it does not allow) goes along as JSON:
under ``gguf`` in safetensors' metadata, or in the npz array ``__gguf__``; ``model_from_arrays`` reads it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import dumps, is_utf8, named, to_bytes
from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import GGUFFile, TensorInfo
    from atlas_kit.storage.given import Progress

SIDE_TEXT = "gguf"
SIDE_ARRAY = "__gguf__"
#: Safetensors' header is bounded: where all metadata are longer than this, long arrays stay behind.
MOST_SIDE = 32 << 20
LONG_ARRAY = 1000

#: ggml's plain types in the words of safetensors and of NumPy; NumPy has no bfloat16.
PLAIN = {
    "F64": ("F64", "<f8"),
    "F32": ("F32", "<f4"),
    "F16": ("F16", "<f2"),
    "BF16": ("BF16", None),
    "I64": ("I64", "<i8"),
    "I32": ("I32", "<i4"),
    "I16": ("I16", "<i2"),
    "I8": ("I8", "|i1"),
}
_ODD_NAME = re.compile(r"(^|/)\.{0,2}(/|$)|[\\:]")


@dataclass(frozen=True)
class _Array:
    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]


def write_model_arrays(
    model: GGUFFile,
    file: IO[bytes],
    target: str,
    *,
    dequantize: bool = False,
    progress: Progress | None = None,
) -> list[str]:
    """Write a model's tensors as ``target`` (safetensors or npz) in bounded memory; return notes for people.

    Raises
    ------
    InvalidParamError
        Two tensors have one name, or a type cannot be dequantised.
    """
    model.require_all_shards()
    model.require_data()
    names = _names(model, target)
    notes: list[str] = []
    arrays = [_array(model, info, names[info.name], target, dequantize) for info in model.tensor_infos]
    raw = sorted({info.type_name for info in model.tensor_infos if info.row and info.row.dtype is None})
    if raw and not dequantize:
        notes.append(f"tensors of {', '.join(raw)} became their blocks, as bytes: they were not dequantised")
    if target == "npz" and not dequantize and any(i.type_name == "BF16" for i in model.tensor_infos):
        notes.append("NumPy has no bfloat16: such tensors became their bits, as uint16")
    renamed = [name for name, given in names.items() if name != given]
    if renamed:
        notes.append(f"{len(renamed)} tensors have other names, since {target} does not allow theirs")
    if progress:
        arrays = _told(arrays, progress)
    side = _side(model, names, notes)
    if target == "safetensors":
        from atlas_kit.formats.safetensors import NewTensor, write_safetensors

        write_safetensors(
            file, [NewTensor(a.name, a.dtype, a.shape, a.chunks) for a in arrays], {SIDE_TEXT: side}
        )
    else:
        from atlas_kit.formats.npz import NewArray, write_npz

        data = side.encode()
        first = NewArray(SIDE_ARRAY, "|u1", (len(data),), lambda: [data])
        write_npz(file, [first, *(NewArray(a.name, a.dtype, a.shape, a.chunks) for a in arrays)])
    return notes


def _told(arrays: list[_Array], progress: Progress) -> list[_Array]:
    def told(number: int, array: _Array) -> Iterator[bytes]:
        yield from array.chunks()
        progress("writing tensors", number + 1, len(arrays))

    return [_Array(a.name, a.dtype, a.shape, partial(told, number, a)) for number, a in enumerate(arrays)]


def _array(model: GGUFFile, info: TensorInfo, name: str, target: str, dequantize: bool) -> _Array:
    column = 0 if target == "safetensors" else 1
    plain = PLAIN.get(info.type_name)
    dtype = plain[column] if plain else None
    if plain is None:
        if not dequantize:
            shape = (*info.shape[:-1], info.row_bytes or 0)
            return _Array(name, ("U8", "|u1")[column], shape, partial(model.iter_raw, info))
        model.dequantize(info, slice(0, 1))  # says at once what cannot be
        return _Array(name, ("F32", "<f4")[column], info.shape, partial(_numbers, model, info))
    if dtype is None:
        if dequantize:
            return _Array(name, "<f4", info.shape, partial(_numbers, model, info))
        dtype = "<u2"
    return _Array(name, dtype, info.shape, partial(_little, model, info))


def _numbers(model: GGUFFile, info: TensorInfo) -> Iterator[bytes]:
    for piece in model.iter_dequantized(info):
        yield piece.astype("<f4", copy=False).tobytes()


def _little(model: GGUFFile, info: TensorInfo) -> Iterator[bytes]:
    from atlas_kit.formats.gguf.byte_order import swapped_data

    return swapped_data(model, info)() if model.byte_order == ">" else model.iter_raw(info)


def _names(model: GGUFFile, target: str) -> dict[str, str]:
    """Give every tensor a name that the target allows: its own where that can be."""
    from atlas_kit.formats.safetensors import METADATA

    names: dict[str, str] = {}
    taken = {info.name for info in model.tensor_infos}
    for number, info in enumerate(model.tensor_infos):
        if info.name in names:
            raise InvalidParamError("two tensors have this name", path=model.path, key=info.name)
        good = is_utf8(info.name) and info.name not in (METADATA, SIDE_ARRAY, "")
        if target == "npz":
            good = good and info.name.isprintable() and not _ODD_NAME.search(info.name)
        name = info.name if good else f"tensor-{number}"
        while not good and name in taken:
            name += "_"
        taken.add(name)
        names[info.name] = name
    return names


def _side(model: GGUFFile, names: dict[str, str], notes: list[str]) -> str:
    from atlas_kit.operations.gguf_values import field_to_json

    record: dict[str, Any] = {
        "version": model.version,
        "tensors": [
            {"name": names[info.name], "type": info.type_name, "shape": list(info.shape)}
            | (named("gguf_name", info.name) if names[info.name] != info.name else {})
            for info in model.tensor_infos
        ],
        "metadata": [field_to_json(row, head=None) for row in model.fields],
    }
    for item, row in zip(record["metadata"], model.fields, strict=True):
        if row.is_array and any(isinstance(one, str) and not is_utf8(one) for one in row.items):
            item["items_hex"] = [to_bytes(one).hex() for one in row.items]
    text = dumps(record)
    if len(text) > MOST_SIDE:
        long = [row for row in model.fields if row.is_array and row.count > LONG_ARRAY]
        record["metadata"] = [field_to_json(row, head=None) for row in model.fields if row not in long]
        record["left_out"] = [row.key for row in long]
        notes.append(
            f"{len(long)} long arrays of metadata were left out: {', '.join(row.key for row in long)}"
        )
        text = dumps(record)
    return text
