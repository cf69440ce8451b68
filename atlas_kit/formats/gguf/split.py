"""Splitting a model into shards that llama.cpp loads, and joining shards into one file.

The layout of a shard is that of ``llama-gguf-split``: the first has all metadata, each says which one it is under
``split.*``, and tensors keep their order. Joining drops these keys: a file that is split and joined has its old bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.shards import SPLIT_KEYS
from atlas_kit.formats.gguf.tables import DEFAULT_ALIGNMENT, ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.formats.gguf.write import (
    Progress,
    TensorSource,
    alignment_of,
    placed,
    rebuilt_header,
    write_laid_out,
)

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.file import GGUFFile
    from atlas_kit.storage.source import StrPath

#: ``split.count`` is a u16.
MAX_SHARDS = 65_535


@dataclass(frozen=True)
class Whole:
    """What a model is as one file: its metadata, its tensors in order, and the header that lists them."""

    fields: list[MetadataField]
    tensors: list[TensorSource]
    infos: list[TensorInfo]
    header: bytes
    alignment: int

    @property
    def data_size(self) -> int:
        """Bytes of tensor data with the padding behind each."""
        return sum(align(tensor.nbytes, self.alignment) for tensor in self.tensors)


def joined(
    model: GGUFFile,
    fields: Sequence[MetadataField] | None = None,
    tensors: Sequence[TensorSource] | None = None,
) -> Whole:
    """Return a model as one file, however many shards it lies in.

    ``fields`` and ``tensors`` stand in for its own.

    Raises
    ------
    VersionMismatchError
        Version 1 is read-only.
    InvalidParamError, TruncatedError, FileCorruptError
        Tensors that cannot be written anew: of one name, of an unknown type, or not there.
    """
    model.require_writable()
    model.require_all_shards()
    first = model.shards[0]
    kept = [item for item in (first.fields if fields is None else fields) if item.key not in SPLIT_KEYS]
    sources = (
        [TensorSource.from_file(model, info) for info in model.tensor_infos]
        if tensors is None
        else list(tensors)
    )
    step = alignment_of(kept)
    infos = placed(sources, step)
    return Whole(kept, sources, infos, rebuilt_header(first, kept, infos), step)


def write_whole(
    path: StrPath,
    model: GGUFFile,
    whole: Whole,
    *,
    backup: bool | int = False,
    locked: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write what ``joined`` returned as one file; return its size."""
    return write_laid_out(
        path, whole.header, whole.tensors, whole.alignment, model.byte_order,
        backup=backup, locked=locked, progress=progress,
    )  # fmt: skip


@dataclass(frozen=True)
class Shard:
    """One shard to be written, ``number`` counted from 1; ``size`` is that of its file."""

    number: int
    tensors: list[TensorSource]
    size: int
    whole: Whole


def plan_shards(
    model: GGUFFile,
    *,
    max_size: int | None = None,
    max_tensors: int | None = None,
    metadata_alone: bool = False,
) -> list[Shard]:
    """Deal the tensors of a model out to shards, in their order.

    Parameters
    ----------
    max_size
        No file is larger, in bytes, except for one that a single tensor (or the metadata) is too large for.
    max_tensors
        No shard has more tensors.
    metadata_alone
        The first shard has no tensor.

    Raises
    ------
    InvalidParamError
        A limit is not positive, or there would be more shards than can be counted.
    """
    for limit in (max_size, max_tensors):
        if limit is not None and limit < 1:
            raise InvalidParamError("a shard has at least one tensor and one byte")
    whole = joined(model)
    shards: list[Shard] = []
    build = _headers(model, whole)
    held: list[TensorSource] = []
    header, data = build(0), 0

    def close() -> None:
        nonlocal held, header, data
        shards.append(Shard(len(shards) + 1, held, align(header, whole.alignment) + data, whole))
        held, header, data = [], build(len(shards)), 0

    if metadata_alone and whole.tensors:
        close()
    for tensor in whole.tensors:
        info = _info_size(model, tensor)
        more = align(tensor.nbytes, whole.alignment)
        full = max_tensors is not None and len(held) >= max_tensors
        if max_size is not None and align(header + info, whole.alignment) + data + more > max_size:
            full = True
        if full and held:
            close()
        held.append(tensor)
        header, data = header + info, data + more
    if held or not shards:
        close()
    if len(shards) > MAX_SHARDS:
        raise InvalidParamError(
            f"that makes {len(shards):,} shards, and at most {MAX_SHARDS:,} can be counted",
            path=model.path, hint="Allow larger shards.",
        )  # fmt: skip
    return shards


def _headers(model: GGUFFile, whole: Whole) -> Callable[[int], int]:
    """Return a function that says how long the header of a shard is, without its tensors."""
    first = len(rebuilt_header(model.shards[0], _fields(whole, 0, 1), []))
    other = len(rebuilt_header(model.shards[0], _fields(whole, 1, 1), []))
    return lambda number: other if number else first


def _info_size(model: GGUFFile, tensor: TensorSource) -> int:
    info = TensorInfo(tensor.name, tensor.dims, tensor.type, 0)
    return len(model.shards[0].scan.layout.tensor_info.build(info.to_schema()))


def _fields(whole: Whole, index: int, count: int) -> list[MetadataField]:
    """Return the metadata of shard ``index`` (counted from 0)."""
    kept = whole.fields
    if index:  # each is read with its own alignment
        kept = [f for f in kept if f.key == "general.alignment" and whole.alignment != DEFAULT_ALIGNMENT]
    return [
        *kept,
        MetadataField("split.no", ValueType.UINT16, index),
        MetadataField("split.count", ValueType.UINT16, count),
        MetadataField("split.tensors.count", ValueType.INT32, len(whole.tensors)),
    ]


def write_shard(
    path: StrPath, model: GGUFFile, shard: Shard, count: int, progress: Progress | None = None
) -> int:
    """Write one of the ``count`` shards that ``plan_shards`` returned; return its size."""
    whole = shard.whole
    header = rebuilt_header(
        model.shards[0], _fields(whole, shard.number - 1, count), placed(shard.tensors, whole.alignment)
    )
    return write_laid_out(path, header, shard.tensors, whole.alignment, model.byte_order, progress=progress)
