"""A GGUF model of the safetensors or npz file that one was converted to: the way back of ``model_arrays``.

What the arrays cannot say stands in the record that went along. Arrays win over it: one whose numbers were changed, or
that was dequantised, is written as it is now; one that is gone stays away. An untouched file gives the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.codecs.json_text import loads, name_from
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.shards import SPLIT_KEYS
from atlas_kit.operations.model_arrays import PLAIN, SIDE_ARRAY, SIDE_TEXT

if TYPE_CHECKING:
    from atlas_kit.formats.gguf import MetadataField
    from atlas_kit.formats.gguf.write import TensorSource
    from atlas_kit.formats.npz import NpzFile
    from atlas_kit.formats.safetensors import SafetensorsFile
    from atlas_kit.storage.given import Progress, StrPath
    from atlas_kit.storage.source import Source


class _Array(NamedTuple):
    """An array of the file: ggml's plain type or None (bytes), shape in NumPy's order, bytes."""

    type: str | None
    shape: tuple[int, ...]
    size: int
    chunks: Callable[[], Iterable[Any]]


def holds_model(source: Source, kind: str) -> bool:
    """Tell whether a file has the record of a model with it."""
    try:
        with _opened(source, kind) as file:
            return _record(file) is not None
    except AtlasError:
        return False


def write_model_of_arrays(
    source: Source, kind: str, path: StrPath, progress: Progress | None = None
) -> tuple[int, list[str]]:
    """Write the model; return its size and notes for people.

    Raises
    ------
    FileCorruptError
        The record, or an array, makes no sense.
    InvalidParamError
        The record is without some of the model's metadata.
    """
    from atlas_kit.formats.gguf.write import write_gguf

    with _opened(source, kind) as file:
        text = _record(file)
        if text is None:
            raise FileCorruptError("the file has no record of a model", path=source.name)
        record = loads(text, what="record of the model", path=source.name)
        try:
            fields, tensors, changed, version = _planned(record, _arrays(file), source)
        except (KeyError, TypeError, AttributeError, ValueError, OverflowError) as error:
            raise FileCorruptError("the record of the model is damaged", path=source.name) from error
        total = sum(tensor.nbytes for tensor in tensors)

        def told(done: int) -> None:
            if progress:
                progress("writing the model", done, total)

        size = write_gguf(path, fields, tensors, version=version, progress=told)
    notes = []
    if changed:
        notes.append(
            f"{changed} tensors are others than the model had when it was converted (numbers, added or gone)"
        )
    return size, notes


def _planned(
    record: Any, arrays: dict[str, _Array], source: Source
) -> tuple[list[MetadataField], list[TensorSource], int, int]:
    """Return the model's fields and tensors, how many tensors are others than it had, and its version."""
    left_out = [str(key) for key in record.get("left_out", ())]
    if left_out:
        raise InvalidParamError(
            f"metadata of the model were too long to go along, and are not in this file: {', '.join(left_out)}",
            path=source.name,
        )
    fields = [_field(item) for item in record["metadata"] if item["key"] not in SPLIT_KEYS]
    items = {item["name"]: item for item in record["tensors"]}
    tensors, changed = [], 0
    for name, item in items.items():
        if name not in arrays:
            changed += 1
            continue
        tensor, same = _tensor(item, arrays.pop(name), source)
        tensors.append(tensor)
        changed += not same
    for name, array in arrays.items():
        new = {"name": name, "type": array.type, "shape": [*array.shape]}
        tensors.append(_tensor(new, array, source)[0])
        changed += 1
    version = record["version"] if record["version"] in tables.WRITABLE_VERSIONS else 3
    return fields, tensors, changed, version


def _opened(source: Source, kind: str) -> Any:
    if kind == "npz":
        from atlas_kit.formats.npz import NpzFile

        return NpzFile.open(source)
    from atlas_kit.formats.safetensors import SafetensorsFile

    return SafetensorsFile.open(source)


def _record(file: NpzFile | SafetensorsFile) -> str | bytes | None:
    from atlas_kit.formats.safetensors import SafetensorsFile

    if isinstance(file, SafetensorsFile):
        return file.metadata.get(SIDE_TEXT)
    return b"".join(file.chunks(SIDE_ARRAY)) if SIDE_ARRAY in file.members else None


def _arrays(file: NpzFile | SafetensorsFile) -> dict[str, _Array]:
    """Return the arrays, those of npz in the order and byte order that GGUF has."""
    from atlas_kit.formats.safetensors import SafetensorsFile

    if isinstance(file, SafetensorsFile):
        names = {row[0]: name for name, row in PLAIN.items()}
        return {
            info.name: _Array(names.get(info.dtype), info.shape, info.size, partial(file.chunks, info.name))
            for info in file.tensors.values()
        }
    found = {}
    for name, member in file.members.items():
        if name == SIDE_ARRAY:
            continue
        kinds = {row[1]: kind for kind, row in PLAIN.items() if row[1]}
        kind = kinds.get(member.dtype.newbyteorder("<").str)
        plain = member.dtype.byteorder != ">" and not member.fortran_order
        chunks = partial(file.chunks, name) if plain else partial(_turned, file, name)
        found[name] = _Array(kind, member.shape, member.size, chunks)
    return found


def _turned(file: NpzFile, name: str) -> list[bytes]:
    array = file.array(name)
    return [array.astype(array.dtype.newbyteorder("<"), order="C").tobytes()]


def _field(item: dict[str, Any]) -> MetadataField:
    from atlas_kit.formats.gguf import MetadataField

    kind = tables.value_type_of_name(item["type"])
    if kind is None:
        raise FileCorruptError(
            f"the record has a value of the unknown type {item['type']!r}", key=item["key"]
        )
    key, value = name_from(item, "key"), item["value"]
    if "items_hex" in item:
        value = [bytes.fromhex(one).decode("utf-8", "surrogateescape") for one in item["items_hex"]]
    elif kind[0] == tables.ValueType.STRING:
        value = name_from(item, "value")
    elif tables.ValueType.FLOAT32 in kind or tables.ValueType.FLOAT64 in kind:
        value = [float(one) for one in value] if isinstance(value, list) else float(value)
    return MetadataField.make(key, value, *kind)


def _tensor(item: dict[str, Any], array: _Array, source: Source) -> tuple[TensorSource, bool]:
    """Return a tensor, and whether it is of the type and shape that the model had."""
    from atlas_kit.formats.gguf.write import TensorSource

    name = name_from(item, "gguf_name") if "gguf_name" in item else item["name"]
    types = {row.type.name: row for row in tables.GGML_TYPES}
    row = types.get(str(item["type"]))
    if (
        row is not None
        and array.type != item["type"]
        and array.size == tables.tensor_nbytes(tuple(item["shape"][::-1]), int(row.type))
    ):  # blocks as bytes, or bfloat16 as its bits
        dims = tuple(item["shape"][::-1])
        return TensorSource(name, dims, int(row.type), array.chunks, array.size), True
    if array.type is None:
        raise FileCorruptError("the array is of a type that tensors do not have", path=source.name, key=name)
    same = array.type == item["type"] and list(array.shape) == item["shape"]
    kind = int(types[array.type].type)
    return TensorSource(name, array.shape[::-1], kind, array.chunks, array.size), same


__all__ = ["holds_model", "write_model_of_arrays"]
