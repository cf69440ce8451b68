"""``GGUFFile``: a model file opened for reading, whole or in shards; nothing is read that is not asked for.

Opening reads the header only. Tensors come as read-only views of the mapped file (plain types), as raw
blocks (quantised types), dequantised, or as chunks of bytes. Writing is in ``edit`` and ``write``.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    NoSuchFileError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.journal import check_journal
from atlas_kit.formats.gguf.scan import HeaderScan, scan_header
from atlas_kit.formats.gguf.shards import has_others, require_single, shard_count, shard_names
from atlas_kit.formats.gguf.tables import GGMLType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.storage.given import Given, open_source
from atlas_kit.storage.source import CHUNK, Source
from atlas_kit.storage.urls import last_part

if TYPE_CHECKING:
    from atlas_kit.codecs.numbers import Array


#: Shards at addresses that are opened at once.
_AT_ONCE = 8
#: No bytes back up the other dimensions of an empty tensor: this one is believed, larger ones are not.
_LARGEST_EMPTY = 1 << 24


class GGUFFile:
    """One GGUF model, opened for reading (use ``GGUFFile.open``).

    Attributes
    ----------
    path
        The file that was opened.
    shards
        The files that make up the model, in order, each a ``GGUFFile`` of its own; ``(self,)`` for an
        unsplit model. Everything else below speaks of the whole model: metadata and header of the first
        shard, tensors of all.
    size
        Bytes of all shards together.
    version, byte_order, alignment, header_size, data_start
        ``byte_order`` is ``"<"`` or ``">"``; ``header_size`` ends behind the last tensor info,
        ``data_start`` is where tensor data starts.
    fields, tensor_infos
        Every pair and tensor info in the file's order, duplicates included.
    metadata, tensors
        The same by key and by name; of duplicates the first.
    error
        Why the header could be read only in part (``open(..., tolerant=True)``), else ``None``.
    """

    def __init__(self, source: Source, scan: HeaderScan, *, owns_source: bool = True) -> None:
        self._source = source
        self._owns_source = owns_source
        self.scan = scan
        self.path = scan.path
        self.size = scan.size
        self.version = scan.version or 0
        self.byte_order = scan.byte_order
        self.alignment = scan.alignment
        self.header_size = scan.end
        self.data_start = scan.data_start if scan.data_start is not None else scan.end
        self.error: AtlasError | None = scan.error or scan.alignment_error
        self.fields: list[MetadataField] = scan.fields
        self.tensor_infos: list[TensorInfo] = scan.tensors
        self.metadata: Mapping[str, MetadataField] = _first_of((f.key, f) for f in scan.fields)
        self.tensors: Mapping[str, TensorInfo] = _first_of((t.name, t) for t in scan.tensors)
        self.shards: tuple[GGUFFile, ...] = (self,)
        self._owners: dict[str, GGUFFile] = {}
        self._homes: dict[int, GGUFFile] = {}

    # --- opening and closing ---------------------------------------------------------------------------

    @classmethod
    def open(cls, given: Given, *, shards: bool = True, tolerant: bool = False) -> GGUFFile:
        """Open a GGUF file; of a split model any shard, which opens all of them.

        Parameters
        ----------
        given
            Its path, its content (of a split model this one shard), or a source that is open already and stays so.
        shards
            ``False`` opens this one file only, whatever it says about others.
        tolerant
            Show what is whole of a damaged header instead of raising; ``error`` says what is wrong.

        Raises
        ------
        NoSuchFileError, FileAccessError
            The file, or a shard of the model, cannot be opened.
        MagicMismatchError, VersionMismatchError, TruncatedError, FileCorruptError
            It is not a GGUF file, or its header is damaged (``offset`` says where), or the shards do not
            belong together.
        ConflictError
            The header makes no sense because another process is just changing it.
        """
        source = open_source(given)
        try:
            check_journal(source.path)
            file = cls(source, scan_header(source), owns_source=source is not given)
            if file.error is not None and not tolerant:
                if source.changed():
                    raise ConflictError("the file was changed while it was being read", path=source.path)
                raise file.error
            if shards and file.error is None and has_others(source) and shard_count(file.metadata) > 1:
                return _join(file)
        except BaseException:
            if source is not given:
                source.close()
            raise
        return file

    @classmethod
    def from_bytes(cls, data: bytes, *, tolerant: bool = False) -> GGUFFile:
        """Open a GGUF file that is in memory; of a split model this one shard."""
        return cls.open(data, tolerant=tolerant)

    @classmethod
    def of_shards(cls, shards: Sequence[GGUFFile]) -> GGUFFile:
        """Make one model of its shards, all of them in order and opened one by one; it closes them.

        Raises
        ------
        FileCorruptError
            A shard belongs to another model, or the tensors do not add up.
        """
        for number, shard in enumerate(shards):
            _check_shard(shard, number, len(shards), shards[0])
        model = cls(shards[0].source, shards[0].scan, owns_source=False)
        model._adopt(tuple(shards))
        _check_total(model)
        return model

    def _adopt(self, shards: tuple[GGUFFile, ...]) -> None:
        """Become the model that ``shards`` (opened one by one) make up."""
        self.shards = shards
        self.size = sum(shard.size for shard in shards)
        self.tensor_infos = [info for shard in shards for info in shard.tensor_infos]
        self.tensors = _first_of((info.name, info) for info in self.tensor_infos)
        for shard in shards:
            for name in shard.tensors:
                self._owners.setdefault(name, shard)
            for info in shard.tensor_infos:
                self._homes[id(info)] = shard

    def close(self) -> None:
        """Release the files; metadata stays readable, views in use keep their map alive."""
        if self._owns_source:
            self._source.close()
        for shard in self.shards:
            if shard is not self:
                shard.close()

    def __enter__(self) -> GGUFFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path!r}: {len(self.fields)} values, {len(self.tensor_infos)} tensors>"

    # --- about the model ---------------------------------------------------------------------------------

    @property
    def architecture(self) -> str | None:
        """The model family (``general.architecture``), or ``None``."""
        value = self.get("general.architecture")
        return value if isinstance(value, str) else None

    @property
    def is_vocabulary_only(self) -> bool:
        """Whether the file holds a tokenizer and no tensors."""
        return not self.tensor_infos and "tokenizer.ggml.model" in self.metadata

    @property
    def is_split(self) -> bool:
        """Whether the model is made of several shards."""
        return len(self.shards) > 1

    @property
    def source(self) -> Source:
        """The opened file (of the first shard)."""
        return self._source

    def get(self, key: str, default: Any = None) -> Any:
        """Return the value of a metadata key, or ``default``."""
        found = self.metadata.get(key)
        return default if found is None else found.value

    def tensor(self, name: str) -> TensorInfo:
        """Return a tensor's info.

        Raises
        ------
        KeyNotFoundError
        """
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyNotFoundError("there is no tensor with that name", path=self.path, key=name) from None

    # --- tensor data -------------------------------------------------------------------------------------

    def array(self, name: str | TensorInfo) -> Array:
        """Return a tensor as a read-only view of the file, without copying.

        Shape is ``info.shape``; bfloat16 comes as ``uint16``. A quantised tensor comes as its raw blocks:
        ``uint8``, the last dimension counting bytes (32 rows of 4096 Q8_0 weights: ``(32, 4352)``).

        Raises
        ------
        KeyNotFoundError
            There is no such tensor.
        TruncatedError
            The file ends before the tensor's data.
        FileCorruptError
            The type is unknown, or the rows are not whole blocks.
        """
        import numpy as np

        info, shard = self._place(name)
        row, nbytes = self._check(info, shard)
        data = shard._source.view(info.file_offset, nbytes)
        if row.dtype is not None:
            return np.frombuffer(data, np.dtype(self.byte_order + row.dtype)).reshape(info.shape)
        return np.frombuffer(data, np.uint8).reshape((*info.shape[:-1], info.row_bytes or 0))

    def gather(self, name: str | TensorInfo, rows: Sequence[int]) -> bytearray:
        """Return the stored bytes of some rows of a tensor, seen as a matrix of rows of ``dims[0]`` weights.

        They are read, not mapped: touched pages of a view stay in the process's memory.
        """
        info, shard = self._place(name)
        self._check(info, shard)
        width = info.row_bytes or 0
        return shard._source.gather([info.file_offset + row * width for row in rows], width)

    def iter_raw(self, name: str | TensorInfo, chunk: int = CHUNK) -> Iterator[bytes]:
        """Yield a tensor's bytes in pieces of at most ``chunk`` bytes."""
        info, shard = self._place(name)
        _, nbytes = self._check(info, shard)
        return shard._source.chunks(info.file_offset, nbytes, chunk)

    def require_data(self) -> None:
        """Raise ``TruncatedError`` where the file ends before its tensors do; no tensor is read for it.

        Tensors of unknown types have no size that could be missing.
        """
        for info in self.tensor_infos:
            if info.nbytes is not None:
                self._check(*self._place(info))

    def dequantize(self, name: str | TensorInfo, rows: slice | None = None) -> Array:
        """Return a tensor, or some of its rows, as float32.

        Parameters
        ----------
        rows
            Which rows of the tensor seen as a matrix of ``info.rows`` rows of ``dims[0]`` weights; then
            the result has that shape. Memory stays in proportion to the rows asked for.

        Raises
        ------
        InvalidParamError
            The type cannot be dequantised.
        """
        from atlas_kit.formats.gguf.dequantize import dequantize_rows

        info, shard = self._place(name)
        row, _ = self._check(info, shard)
        start, stop, step = (slice(None) if rows is None else rows).indices(info.rows)
        if step != 1:
            raise InvalidParamError("rows must be a range without steps", key=info.name)
        width = info.row_bytes or 0
        count = max(stop - start, 0)
        data = shard._source.read(info.file_offset + start * width, count * width)
        values = dequantize_rows(data, count, info, row, self.byte_order)
        return values.reshape(info.shape) if rows is None else values

    def iter_dequantized(self, name: str | TensorInfo, elements: int = 1 << 20) -> Iterator[Array]:
        """Yield a tensor as float32 in blocks of whole rows of about ``elements`` weights."""
        info, _ = self._place(name)
        step = max(1, elements // max(1, info.row_length))
        if info.elements == 0:
            return
        for start in range(0, info.rows, step):
            yield self.dequantize(info, slice(start, start + step))

    def _place(self, name: str | TensorInfo) -> tuple[TensorInfo, GGUFFile]:
        """Return a tensor's info and the shard that holds its data."""
        if isinstance(name, TensorInfo):  # shards cut out of one file have its path in common
            home = self._homes.get(id(name))
            return name, home or next((s for s in self.shards if s.path == name.path), self)
        return self.tensor(name), self._owners.get(name, self)

    def _check(self, info: TensorInfo, shard: GGUFFile) -> tuple[tables.GGMLTypeRow, int]:
        row, nbytes = info.row, info.nbytes
        if row is None:
            raise FileCorruptError(
                f"tensor {info.type_name} cannot be read: its size is not known",
                path=shard.path,
                key=info.name,
                offset=info.info_offset,
                hint="Its metadata and the other tensors can; a newer atlas_kit may know the type.",
            )
        if nbytes is None:
            raise FileCorruptError(
                f"rows of {info.row_length} weights are not whole blocks of {row.block} ({row.type.name})",
                path=shard.path,
                key=info.name,
                offset=info.info_offset,
            )
        if nbytes == 0 and max(info.dims) > _LARGEST_EMPTY:
            raise FileCorruptError(
                f"an empty tensor with a dimension of {max(info.dims)} cannot be",
                path=shard.path,
                key=info.name,
                offset=info.info_offset,
            )
        if info.file_offset + nbytes > shard.size:
            raise TruncatedError(
                f"the tensor's data should end at byte {info.file_offset + nbytes}, the file ends at "
                f"{shard.size}",
                path=shard.path,
                key=info.name,
                offset=info.file_offset,
                hint="Copy or download it again.",
                remedy=Remedy("mend"),
            )
        return row, nbytes

    # --- writing back --------------------------------------------------------------------------------------

    def require_all_shards(self) -> None:
        """Raise where this is one shard that was opened alone: it is not the model."""
        count = shard_count(self.metadata)
        if count > 1 and not self.is_split:
            raise InvalidParamError(
                f"this is one of {count} shards, and a part of the model only",
                path=self.source.name, hint="Give the path of one that lies in a folder with the others.",
            )  # fmt: skip

    def require_writable(self) -> None:
        """Raise unless this version may be written (version 1 is read-only)."""
        if self.version not in tables.WRITABLE_VERSIONS:
            raise VersionMismatchError(
                f"GGUF version {self.version} can be read and not written",
                path=self.path,
                hint="Convert the model again with a current llama.cpp.",
            )


def _first_of(pairs: Any) -> dict[str, Any]:
    """Make a dict in which the first of duplicate keys wins (the raw lists keep the others)."""
    found: dict[str, Any] = {}
    for key, value in pairs:
        found.setdefault(key, value)
    return found


__all__ = ["GGMLType", "GGUFFile", "TensorInfo"]


# --- split models ---------------------------------------------------------------------------------------


def _join(file: GGUFFile) -> GGUFFile:
    """Open all shards of the model that ``file`` (already open) is one of, as one model.

    Raises
    ------
    NoSuchFileError
        A shard is missing.
    FileCorruptError
        A shard belongs to another model, or the tensors do not add up.
    """
    count = shard_count(file.metadata)
    require_single(file.source, file.scan)
    own = last_part(file.path or "")
    names = shard_names(file.path or "", count)
    found: list[GGUFFile | AtlasError] = []
    step = _AT_ONCE if file.source.far else len(names)
    with ThreadPoolExecutor(_AT_ONCE if file.source.far else 1) as pool:
        for at in range(0, len(names), step):  # what claims thousands of shards is not asked for all of them
            some = names[at : at + step]
            found += pool.map(lambda name: file if name == own else _beside(file.source, name), some)
            if any(isinstance(shard, NoSuchFileError) for shard in found):
                break
    opened = [shard for shard in found if isinstance(shard, GGUFFile)]
    try:
        missing = [
            name for name, shard in zip(names, found, strict=False) if isinstance(shard, NoSuchFileError)
        ]
        if missing:
            first = ", ".join(missing[:3]) + (", ..." if len(missing) > 3 else "")
            are = "is" if len(missing) == 1 else "are"
            raise NoSuchFileError(
                f"{len(missing)} of {count} shards of this model {are} missing: {first}",
                path=file.path,
                hint="Put all shards into one folder.",
                remedy=Remedy("one-shard"),
            )
        for shard in found:
            if isinstance(shard, AtlasError):
                raise shard
        model = GGUFFile.of_shards(opened)
        model.path = file.path
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    if file not in opened:  # its name counts further than there are shards
        file.close()
    return model


def _check_shard(shard: GGUFFile, number: int, count: int, asked: GGUFFile) -> None:
    for key, wanted in (("split.no", number), ("split.count", count)):
        found = shard.metadata.get(key)
        if found is None or found.items != wanted:
            got = "is missing" if found is None else f"is {found.items}"
            raise FileCorruptError(
                f"this file should be shard {number + 1} of {count}: {key} {got} instead of {wanted}",
                path=shard.path,
                offset=None if found is None else found.value_offset,
            )
    if shard.byte_order != asked.byte_order:
        raise FileCorruptError("the shards have different byte orders", path=shard.path)


def _check_total(model: GGUFFile) -> None:
    promised = {
        os.fspath(shard.path or ""): shard.metadata["split.tensors.count"].items
        for shard in model.shards
        if "split.tensors.count" in shard.metadata
    }
    total = sum(len(shard.tensor_infos) for shard in model.shards)
    for path, count in promised.items():
        if count != total:
            raise FileCorruptError(
                f"the shards hold {total} tensors together, split.tensors.count says {count}",
                path=path,
                key="split.tensors.count",
                hint="A shard may belong to another model.",
            )
    if len(model.tensors) != total:
        seen: set[str] = set()
        for info in model.tensor_infos:
            if info.name in seen:
                raise FileCorruptError("two shards hold this tensor", path=info.path, key=info.name)
            seen.add(info.name)


def _beside(source: Source, name: str) -> GGUFFile | AtlasError:
    """Open the shard of that name beside another one; what is wrong with it is the answer, too."""
    try:
        return GGUFFile.open(source.beside(name) or name, shards=False)
    except AtlasError as error:
        return error
