"""ATLAS-native GGUF: a stock model that carries ``atlas.*`` keys, and the way back to the original bytes.

Stock llama.cpp ignores keys that it does not know and refuses tensors that it does not know, so only keys
are added, behind all others. With them goes what the way back needs: the size of the original, the hash of
its bytes before the tensor data, and its padding where that was not zeros. See ``formats/gguf.md``.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import xxhash

from atlas_kit.errors import FileCorruptError, InvalidParamError, Remedy
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.edit import padding_for
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.shards import takes_place_of
from atlas_kit.formats.gguf.split import joined
from atlas_kit.formats.gguf.tables import PAD_KEY, ValueType
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.formats.gguf.write import Progress, rebuilt_header, write_laid_out, write_with_header
from atlas_kit.storage.given import Given
from atlas_kit.storage.source import StrPath

PREFIX = "atlas."
ATLAS_VERSION = 1
_SIZE, _HASH = "atlas.source.size", "atlas.source.hash"
_PADDING, _ADDED = "atlas.source.padding", "atlas.source.added"
_TYPES = {row.key: row.type for row in tables.ATLAS_KEYS if not row.key.startswith("atlas.source.")}


@dataclass(frozen=True)
class NativeResult:
    """What a conversion did.

    ``keys`` were added (or removed). ``exact`` tells, on the way back, whether the result has the bytes of
    the original (``None``: the file does not say what it was made from).
    """

    path: str
    size: int
    keys: tuple[str, ...]
    exact: bool | None = None
    notes: tuple[str, ...] = ()


def is_native(file: GGUFFile) -> bool:
    """Tell whether a model carries the two required ``atlas.*`` keys."""
    return "atlas.version" in file.metadata and "atlas.enabled" in file.metadata


def to_native(
    path: Given,
    out: StrPath,
    *,
    values: Mapping[str, Any] | None = None,
    backup: bool | int = False,
    progress: Progress | None = None,
) -> NativeResult:
    """Convert a stock GGUF file to an ATLAS-native one: all metadata and tensors kept, our keys added.

    A split model becomes one file, from any of its shards; only where ``out`` has the name of its first shard, that
    shard alone is written, to lie beside the others.

    Parameters
    ----------
    values
        ``atlas.*`` values to set (the prefix may be left out): they replace what is derived from the model
        (``layer_count``, ``head_count``, ``seq_length``) and add to it. ``config`` may be a dict.

    Raises
    ------
    InvalidParamError
        The file is ATLAS-native already, or a value does not fit.
    """
    with _opened(path, out) as file:
        file.require_writable()
        _check_convertible(file)
        added = _atlas_fields(file, dict(values or {}))
        if file.is_split:
            size = _joined_native(file, out, added, backup, progress)
        else:
            original = file.source.read(0, min(file.data_start, file.size))
            added += _source_fields(original, file.header_size, file.size, [item.key for item in added])
            header = rebuilt_header(file, [*file.fields, *added])
            padding = padding_for(file, header)
            size = write_with_header(out, file, header, padding, backup=backup, progress=progress)
        return NativeResult(
            os.fspath(out), size, tuple(item.key for item in added), notes=_tensor_notes(file)
        )


def _opened(path: Given, out: StrPath) -> GGUFFile:
    """Open all of a model, or one shard where it is to be written as that shard of another set."""
    with GGUFFile.open(path, shards=False) as file:
        alone = takes_place_of(out, file.metadata)
    return GGUFFile.open(path, shards=not alone)


def _joined_native(
    file: GGUFFile, out: StrPath, added: list[MetadataField], backup: bool | int, progress: Progress | None
) -> int:
    """Write the shards of a model as one ATLAS-native file; its original is the one that they join to."""
    whole = joined(file)
    original = whole.header + bytes(-len(whole.header) % whole.alignment)
    size = len(original) + whole.data_size
    added += _source_fields(original, len(whole.header), size, [item.key for item in added])
    header = rebuilt_header(file.shards[0], [*whole.fields, *added], whole.infos)
    return write_laid_out(
        out, header, whole.tensors, whole.alignment, file.byte_order, backup=backup, progress=progress
    )


def _check_convertible(file: GGUFFile) -> None:
    if is_native(file) or _HASH in file.metadata:
        raise InvalidParamError(
            "this file is ATLAS-native already", path=file.path, hint="Change its atlas.* keys with set."
        )
    if not file.is_split and file.get("split.no", 0) != 0:
        raise InvalidParamError("only the first shard of a split model carries metadata", path=file.path)


def _tensor_notes(file: GGUFFile) -> tuple[str, ...]:
    strange = [info.name for info in file.tensor_infos if info.name.startswith(PREFIX)]
    if not strange:
        return ()
    return (f"{len(strange)} tensors are named atlas.*: stock llama.cpp does not load a model with such",)


def _derived(file: GGUFFile) -> dict[str, int]:
    """Return the values that follow from the model itself."""
    architecture = file.architecture
    found = {}
    for key, name in (
        ("atlas.layer_count", "block_count"),
        ("atlas.head_count", "attention.head_count"),  # an array where layers differ: then left out
        ("atlas.seq_length", "context_length"),
    ):
        item = file.metadata.get(f"{architecture}.{name}")
        value = None if item is None else item.items
        if isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 32:
            found[key] = value
    return found


def _atlas_fields(file: GGUFFile, values: dict[str, Any]) -> list[MetadataField]:
    wanted: dict[str, Any] = {"atlas.version": ATLAS_VERSION, "atlas.enabled": True, **_derived(file)}
    for name, value in values.items():
        key = name if name.startswith(PREFIX) else PREFIX + name
        if key in file.metadata:
            raise InvalidParamError(
                "the file has this key already", path=file.path, key=key, hint="Change it with set."
            )
        if key.startswith("atlas.source.") or key == PAD_KEY:
            raise InvalidParamError("this key is written by the conversion itself", key=key)
        wanted[key] = json.dumps(value) if key == "atlas.config" and not isinstance(value, str) else value
    fields = []
    for key, value in wanted.items():
        if key not in file.metadata:  # what somebody else has written stays, and stays where it is
            kind = tables.value_type_of_name(_TYPES[key]) if key in _TYPES else None
            fields.append(MetadataField.make(key, value, *(kind or (None, None))))
    return fields


def _source_fields(original: bytes, header_size: int, size: int, added: list[str]) -> list[MetadataField]:
    """Return the keys that make the way back exact; ``original`` is all before the tensor data."""
    padding = original[header_size:]
    fields = [
        MetadataField(_SIZE, ValueType.UINT64, size),
        MetadataField(_HASH, ValueType.STRING, xxhash.xxh3_128_hexdigest(original)),
    ]
    if padding.strip(b"\0"):
        fields.append(MetadataField(_PADDING, ValueType.STRING, padding.hex()))
    keys = [*added, *(item.key for item in fields), _ADDED]
    fields.append(MetadataField(_ADDED, ValueType.ARRAY, keys, ValueType.STRING))
    return fields


def to_stock(
    path: Given, out: StrPath, *, backup: bool | int = False, progress: Progress | None = None
) -> NativeResult:
    """Convert an ATLAS-native GGUF file back to the stock file that it was made from, byte for byte.

    Metadata that was edited meanwhile stays edited; ``exact`` is then ``False``. A file that does not say
    what it was made from loses all its ``atlas.*`` keys.

    Raises
    ------
    InvalidParamError
        The file is not ATLAS-native.
    """
    with _opened(path, out) as file:
        file.require_writable()
        if file.is_split:
            raise InvalidParamError(
                "the model is in several files", path=file.path, remedy=Remedy("join-shards")
            )
        if not any(item.key.startswith(PREFIX) for item in file.fields):
            raise InvalidParamError("this file is not ATLAS-native: it has no atlas.* keys", path=file.path)
        kept, header, padding, exact = _stock_header(file)
        remaining = {id(item) for item in kept}
        removed = tuple(item.key for item in file.fields if id(item) not in remaining)
        size = write_with_header(out, file, header, padding, backup=backup, progress=progress)
        return NativeResult(os.fspath(out), size, removed, exact, _tensor_notes(file))


def _stock_header(file: GGUFFile) -> tuple[list[MetadataField], bytes, bytes, bool | None]:
    """Return (fields, header, padding, whether they are the original's)."""
    added = file.metadata.get(_ADDED)
    if added is None or added.element_type != ValueType.STRING:
        fields = [item for item in file.fields if not item.key.startswith(PREFIX)]
        header = rebuilt_header(file, fields)
        return fields, header, padding_for(file, header), None
    ours = set(added.items)
    fields = [item for item in file.fields if item.key not in ours]
    wanted = file.get(_HASH)
    header = rebuilt_header(file, fields)
    padding = _stock_padding(file, header)
    if xxhash.xxh3_128_hexdigest(header + padding) == wanted:
        return fields, header, padding, True
    # an edit in place may have left atlas.pad behind
    fields = [item for item in fields if item.key != PAD_KEY]
    header = rebuilt_header(file, fields)
    padding = _stock_padding(file, header)
    return fields, header, padding, xxhash.xxh3_128_hexdigest(header + padding) == wanted


def _stock_padding(file: GGUFFile, header: bytes) -> bytes:
    """Return the padding that the original had: its length from its size, its bytes if they were kept."""
    needed = align(len(header), file.alignment) - len(header)
    tail = file.size - min(file.data_start, file.size)
    size = file.get(_SIZE)
    if isinstance(size, int) and (tail == 0 or not file.tensor_infos):  # it may have ended in its padding
        length = size - tail - len(header)
        needed = length if 0 <= length <= needed else needed
    kept = file.get(_PADDING)
    if isinstance(kept, str):
        try:
            raw = bytes.fromhex(kept)
        except ValueError as error:
            raise FileCorruptError("this is not hex", path=file.path, key=_PADDING) from error
        if len(raw) == needed:
            return raw
    return bytes(needed)
