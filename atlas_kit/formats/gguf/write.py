"""Writing GGUF: headers by the schema, tensor data in bounded memory, files made atomically."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import IO, TYPE_CHECKING, Any

import construct as cs

from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.layout import Layout, layout
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.tables import GGMLType, ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.copying import copy_data
from atlas_kit.storage.source import CHUNK, Source, StrPath

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.gguf.file import GGUFFile

#: Reports how many bytes of tensor data have been written so far.
Progress = Callable[[int], None]


@dataclass(frozen=True)
class FileRange:
    """Bytes of another file, copied inside the kernel where that is possible."""

    source: Source
    offset: int
    size: int


@dataclass(frozen=True)
class TensorSource:
    """A tensor to be written.

    ``dims`` has the fastest running dimension first. ``data`` is bytes (in the file's byte order), a NumPy
    array (converted to it), a ``FileRange``, or a function that returns an iterable of bytes.
    """

    name: str
    dims: tuple[int, ...]
    type: int
    data: Any
    nbytes: int

    @classmethod
    def from_array(cls, name: str, array: np.ndarray[Any, Any], type: int | None = None) -> TensorSource:
        """Make one of a NumPy array, shape in NumPy's order.

        ``type`` is needed for bfloat16 (``uint16`` array) and for quantised data (``uint8`` blocks, the last
        dimension counting bytes).
        """
        found = _PLAIN.get(f"{array.dtype.kind}{array.dtype.itemsize}") if type is None else type
        row = tables.GGML_TYPE_BY_NUMBER.get(-1 if found is None else int(found))
        if found is None or row is None:
            raise InvalidParamError(f"no tensor type is known for {array.dtype}", key=name)
        shape = tuple(int(n) for n in array.shape)
        if row.dtype is None:
            if not shape or array.dtype.itemsize != 1 or shape[-1] % row.size:
                raise InvalidParamError(f"{row.type.name} needs uint8 blocks of {row.size} bytes", key=name)
            shape = (*shape[:-1], shape[-1] // row.size * row.block)
        elif array.dtype.itemsize != row.size:
            raise InvalidParamError(f"{row.type.name} needs {row.size} bytes a number", key=name)
        return cls(name, shape[::-1], int(found), array, int(array.nbytes))

    @classmethod
    def from_file(cls, file: GGUFFile, info: TensorInfo, name: str | None = None) -> TensorSource:
        """Make one of a tensor in an opened file (of the same byte order as the new one)."""
        info, shard = file._place(info)
        _, nbytes = file._check(info, shard)
        data = FileRange(shard.source, info.file_offset, nbytes)
        return cls(info.name if name is None else name, info.dims, info.type, data, nbytes)


_PLAIN = {
    "f4": GGMLType.F32,
    "f2": GGMLType.F16,
    "f8": GGMLType.F64,
    "i1": GGMLType.I8,
    "i2": GGMLType.I16,
    "i4": GGMLType.I32,
    "i8": GGMLType.I64,
}


def write_gguf(
    path: StrPath,
    fields: Iterable[MetadataField],
    tensors: Sequence[TensorSource] = (),
    *,
    version: int = 3,
    byte_order: str = "<",
    backup: bool | int = False,
    progress: Progress | None = None,
) -> int:
    """Write a GGUF file atomically and return its size.

    Tensors are placed in the given order, each at a multiple of ``general.alignment`` (32 if there is no
    such field), without gaps: what llama.cpp asks for.

    Raises
    ------
    InvalidParamError
        Duplicate or empty keys, duplicate names, more than 4 dimensions, data of another size than promised.
    VersionMismatchError
        Only versions 2 and 3 are written.
    FileAccessError
        The file cannot be written; an existing one is untouched.
    """
    schema = writable_layout(version, byte_order)
    fields = list(fields)
    _check_unique([f.key for f in fields], "key")
    step = alignment_of(fields)
    header = build_header(schema, fields, placed(tensors, step))
    return write_laid_out(path, header, tensors, step, byte_order, backup=backup, progress=progress)


def write_laid_out(
    path: StrPath,
    header: bytes,
    tensors: Sequence[TensorSource],
    step: int,
    byte_order: str = "<",
    *,
    backup: bool | int = False,
    locked: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write a header, and the tensors that it lists, as ``placed`` lays them out; return the file's size."""
    try:
        with atomic_write(path, backup=backup, locked=locked) as out:
            out.write(header)
            _pad(out, len(header), step)
            _write_data(out, tensors, step, byte_order, progress)
            return out.tell()
    except AtlasError as error:
        error.path = error.path or os.fspath(path)
        raise


def writable_layout(version: int, byte_order: str) -> Layout:
    """Return the schema of a version that may be written."""
    if version not in tables.WRITABLE_VERSIONS:
        raise VersionMismatchError(f"GGUF version {version} can be read and not written")
    return layout(version, byte_order)


def build_header(schema: Layout, fields: Iterable[MetadataField], tensors: Iterable[TensorInfo]) -> bytes:
    """Return a header's bytes (without the padding behind it)."""
    metadata = [item.to_schema() for item in fields]
    infos = [info.to_schema() for info in tensors]
    return build(
        schema.header,
        {
            "version": schema.version,
            "tensor_count": len(infos),
            "metadata_kv_count": len(metadata),
            "metadata_kv": metadata,
            "tensor_infos": infos,
        },
    )


def build(schema: Any, value: Any) -> bytes:
    """Build bytes by a schema; construct's errors become ours."""
    try:
        return bytes(schema.build(value))
    except (cs.ConstructError, OverflowError) as error:
        detail = str(error).splitlines()[-1] if str(error) else type(error).__name__
        raise InvalidParamError(f"this cannot be written as GGUF: {detail}") from error


def alignment_of(fields: Iterable[MetadataField]) -> int:
    """Return the alignment that a list of fields asks for.

    Raises
    ------
    InvalidParamError
        It is not a u32, not a power of two, or larger than 1 MiB.
    """
    for item in fields:
        if item.key == "general.alignment":
            value = item.items
            good = item.type == ValueType.UINT32 and 0 < value <= tables.MAX_ALIGNMENT
            if not good or value & (value - 1):
                raise InvalidParamError(
                    f"the alignment must be a u32 and a power of two up to {tables.MAX_ALIGNMENT}",
                    key=item.key,
                )
            return int(value)
    return tables.DEFAULT_ALIGNMENT


def _check_unique(names: list[str], what: str) -> None:
    seen = set()
    for name in names:
        if name in seen:
            raise InvalidParamError(f"this {what} appears twice", key=name)
        if not name and what == "key":
            raise InvalidParamError("a key must not be empty")
        seen.add(name)


def placed(tensors: Sequence[TensorSource], step: int) -> list[TensorInfo]:
    """Return the infos of tensors that lie in this order, each at a multiple of ``step``, without gaps.

    Raises
    ------
    InvalidParamError
        Two have one name, or one has too many dimensions, or another size than its type and shape need.
    """
    _check_unique([t.name for t in tensors], "tensor")
    infos, offset = [], 0
    for tensor in tensors:
        expected = tables.tensor_nbytes(tensor.dims, tensor.type)
        if len(tensor.dims) > tables.MAX_DIMS:
            raise InvalidParamError(f"at most {tables.MAX_DIMS} dimensions are allowed", key=tensor.name)
        if expected is not None and expected != tensor.nbytes:
            raise InvalidParamError(
                f"{tensor.nbytes} bytes are given, its shape and type need {expected}", key=tensor.name
            )
        infos.append(TensorInfo(tensor.name, tuple(tensor.dims), tensor.type, offset))
        offset = align(offset + tensor.nbytes, step)
    return infos


def _write_data(
    out: IO[bytes], tensors: Sequence[TensorSource], step: int, byte_order: str, progress: Progress | None
) -> None:
    total = 0
    for tensor in tensors:
        written = 0
        if isinstance(tensor.data, FileRange):
            written = copy_range(tensor.data.source, tensor.data.offset, tensor.data.size, out)
        else:
            for piece in _pieces(tensor.data, byte_order):
                out.write(piece)
                written += len(piece)
        if written != tensor.nbytes:
            raise InvalidParamError(
                f"{tensor.nbytes} bytes were promised and {written} came", key=tensor.name
            )
        _pad(out, written, step)
        total += written
        if progress is not None:
            progress(total)


def _pieces(data: Any, byte_order: str) -> Iterator[Any]:
    if callable(data):
        yield from data()
    elif hasattr(data, "dtype"):
        import numpy as np

        flat = np.ascontiguousarray(data, data.dtype.newbyteorder(byte_order)).reshape(-1)
        raw = flat.view(np.uint8)
        for start in range(0, len(raw), CHUNK):
            yield raw[start : start + CHUNK].data
    else:
        view = memoryview(data).cast("B")
        for start in range(0, len(view), CHUNK):
            yield view[start : start + CHUNK]


def _pad(out: IO[bytes], written: int, step: int) -> None:
    out.write(bytes(-written % step))


def copy_range(
    source: Source, offset: int, size: int, out: IO[bytes], progress: Progress | None = None
) -> int:
    """Append a range of an opened file to ``out`` in bounded memory; return the number of bytes.

    The kernel copies (and shares the blocks, on file systems that can) where both are real files.

    Raises
    ------
    TruncatedError
        The source ends before that.
    ConflictError
        The source was changed meanwhile.
    """
    if offset + size > source.size:
        raise TruncatedError(
            f"{size} bytes are expected, and the file ends at byte {source.size}",
            path=source.path,
            offset=offset,
        )
    done = _copy_in_kernel(source, offset, size, out, progress)
    for piece in source.chunks(offset + done, size - done):
        out.write(piece)
        done += len(piece)
        if progress is not None:
            progress(done)
    if not source.far and source.changed():  # of what is far, each answer is held against the first
        raise ConflictError("the file was changed while it was being copied", path=source.path)
    return size


def _copy_in_kernel(source: Source, offset: int, size: int, out: IO[bytes], progress: Progress | None) -> int:
    """Copy as much as can be copied from file to file, holes as holes; return how much that was."""
    fd = source.fileno()
    if fd is None or size == 0:
        return 0
    try:
        to_fd = out.fileno()
    except OSError:  # a file in memory
        return 0
    out.flush()
    start = out.tell()
    if os.fstat(to_fd).st_size > start:  # what is there would shine through the holes
        return 0
    done = size if copy_data(fd, to_fd, size, start=offset, to=start, progress=progress) else 0
    out.seek(start + done)
    return done


def write_with_header(
    path: StrPath,
    file: GGUFFile,
    header: bytes,
    padding: bytes,
    *,
    backup: bool | int = False,
    locked: bool = False,
    progress: Progress | None = None,
) -> int:
    """Write ``header`` and ``padding``, then everything behind the header of ``file`` as it is.

    Offsets of tensors are relative to where their data starts, so nothing in it needs to change.
    """
    source = file.source
    start = min(file.data_start, source.size)
    with atomic_write(path, backup=backup, locked=locked) as out:
        out.write(header)
        out.write(padding)
        copy_range(source, start, source.size - start, out, progress)
        if source.changed():
            raise ConflictError("the file was changed while it was being copied", path=source.path)
        return out.tell()


def rebuilt_header(
    file: GGUFFile, fields: Sequence[MetadataField], tensors: Sequence[TensorInfo] | None = None
) -> bytes:
    """Return the header of ``file`` with other metadata; what was read and kept goes in byte for byte.

    ``tensors`` are other infos than its own.
    """
    scan = file.scan
    if not scan.complete:
        raise FileCorruptError("a damaged header cannot be edited", path=file.path, remedy=Remedy("mend"))
    schema = scan.layout
    kept = {id(item) for item in scan.fields}
    parts = [
        build(
            schema.prefix,
            {
                "version": schema.version,
                "tensor_count": scan.tensor_count if tensors is None else len(tensors),
                "metadata_kv_count": len(fields),
            },
        )
    ]
    for item in fields:
        if id(item) in kept:
            parts.append(scan.header_bytes(item.offset, item.offset + item.size))
        else:
            parts.append(build(schema.key_value, item.to_schema()))
    if tensors is None:
        infos = scan.tensors[0].info_offset if scan.tensors else scan.end
        parts.append(scan.header_bytes(infos, scan.end))
    else:
        parts += [build(schema.tensor_info, info.to_schema()) for info in tensors]
    return b"".join(parts)
