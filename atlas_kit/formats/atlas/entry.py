"""One entry of a memory file: what it is called, what it is, and its payload, read when it is asked for.

Knows how payloads are stored (codec, filter, checksum, dtype); knows nothing of headers and indexes.
"""

from __future__ import annotations

import contextlib
import json
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.codecs import table as codecs
from atlas_kit.errors import (
    AtlasError,
    ChecksumMismatchError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    Remedy,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import checksums, tables
from atlas_kit.formats.atlas.tables import DataType

if TYPE_CHECKING:
    from collections.abc import Iterator

    import numpy as np

    from atlas_kit.storage.source import Source

#: ``Entry.data`` refuses payloads that unpack to more than this *and* to over 1,000 times their stored size.
SUSPICIOUS_SIZE = 1 << 28
SUSPICIOUS_RATIO = 1_000


class Payload(Protocol):
    """Where an entry's stored bytes are."""

    size: int

    def read(self) -> bytes:
        """Return the stored bytes; raise when their checksum is wrong."""
        ...

    def chunks(self) -> Iterator[bytes]:
        """Yield the stored bytes; raise at the end when their checksum is wrong."""
        ...

    def view(self) -> memoryview:
        """Return the stored bytes without a copy where possible, unchecked."""
        ...


class MemoryPayload:
    """Bytes at hand: an entry that was set and not saved yet."""

    def __init__(self, data: bytes | memoryview) -> None:
        self._data = data
        self.size = len(data)

    def read(self) -> bytes:
        """Return the bytes."""
        return bytes(self._data)

    def chunks(self, step: int = codecs.STEP) -> Iterator[bytes]:
        """Yield the bytes in pieces of ``step``, without copying."""
        view = memoryview(self._data)
        for start in range(0, self.size, step):
            yield view[start : start + step]  # type: ignore[misc]  # buffers do as well

    def view(self) -> memoryview:
        """Return the bytes."""
        return memoryview(self._data)

    def part(self, start: int, size: int) -> bytes:
        """Return some of the bytes."""
        return bytes(memoryview(self._data)[start : start + size])


class FilePayload:
    """A range of a file with its XXH3-64 (version 2)."""

    def __init__(self, source: Source, offset: int, size: int, checksum: int) -> None:
        self._source = source
        self.offset = offset
        self.size = size
        self.checksum = checksum

    def _require(self, actual: int) -> None:
        if actual != self.checksum:
            raise ChecksumMismatchError(
                f"the payload's checksum is {actual:016x}, and the file says {self.checksum:016x}",
                path=self._source.path,
                offset=self.offset,
                remedy=Remedy("repair"),
            )

    def read(self) -> bytes:
        """Return the stored bytes, checked."""
        data = self._source.read(self.offset, self.size)
        self._require(checksums.xxh3(data))
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the stored bytes in pieces of bounded size; check at the end."""
        digest = checksums.xxh3_64()
        for piece in self._source.chunks(self.offset, self.size):
            digest.update(piece)
            yield piece
        self._require(int(digest.intdigest()))

    def view(self) -> memoryview:
        """Map the stored bytes."""
        return self._source.view(self.offset, self.size)

    def part(self, start: int, size: int) -> bytes:
        """Return some of the stored bytes, which nothing checks: the checksum is of all."""
        return self._source.read(self.offset + start, size)


class FnvPayload(FilePayload):
    """A range of a file with its FNV-1a/32 (version 1); CRC-32 is accepted (dialect ``v1-crc32``)."""

    def read(self) -> bytes:
        """Return the bytes, checked."""
        data = self._source.read(self.offset, self.size)
        actual = checksums.fnv1a(data)
        if actual != self.checksum and checksums.crc32(data) != self.checksum:
            raise ChecksumMismatchError(
                f"the payload's checksum is {actual:08x}, and the file says {self.checksum:08x}",
                path=self._source.path,
                offset=self.offset,
                remedy=Remedy("repair"),
            )
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the bytes (read at once: the checksum has no incremental form)."""
        yield from MemoryPayload(self.read()).chunks()


class Entry:
    """An entry: key, type, flags, timestamp, and a payload that is read when it is asked for.

    Immutable; ``replace`` makes a changed copy. Entries of a file stay readable while they are held, also
    after the file was saved again.

    Attributes
    ----------
    key
        The key; bytes that are not UTF-8 appear as surrogate escapes (PEP 383).
    type, flags, timestamp
        As stored: see ``DataType``; flags belong to the application; Unix seconds.
    size, stored_size
        Bytes of the payload, decoded and as stored.
    dtype, shape
        Of a tensor, else ``None``.
    offset, payload_offset
        Where the record and its stored payload start in the file; ``None`` before the entry is saved.
    checksum
        Of the stored payload: FNV-1a/32 in version 1, XXH3-64 in version 2; 0 before the entry is saved.
    """

    __slots__ = (
        "attributes",
        "checksum",
        "codec_id",
        "dtype_id",
        "filter_id",
        "flags",
        "item_size",
        "key",
        "offset",
        "payload",
        "payload_offset",
        "reserved",
        "shape",
        "size",
        "timestamp",
        "type",
        "wanted",
    )

    def __init__(
        self,
        key: str,
        payload: Payload,
        *,
        type: int = DataType.GENERIC,  # the format's word
        flags: int = 0,
        timestamp: int = 0,
        size: int | None = None,
        codec_id: int = 0,
        filter_id: int = 0,
        item_size: int = 0,
        dtype_id: int = 0,
        shape: tuple[int, ...] | None = None,
        attributes: int = 0,
        reserved: int = 0,
        offset: int | None = None,
        payload_offset: int | None = None,
        checksum: int = 0,
        wanted: dict[str, Any] | None = None,
    ) -> None:
        self.key = key
        self.payload = payload
        self.type = type
        self.flags = flags
        self.timestamp = timestamp
        self.size = payload.size if size is None else size
        self.codec_id = codec_id
        self.filter_id = filter_id
        self.item_size = item_size
        self.dtype_id = dtype_id
        self.shape = shape
        self.attributes = attributes
        self.reserved = reserved
        self.offset = offset
        self.payload_offset = payload_offset
        self.checksum = checksum
        self.wanted = wanted  # how to store it, where that differs from the file's default

    def __repr__(self) -> str:
        what = f"{self.dtype}{list(self.shape)}" if self.shape is not None else f"{self.size} bytes"
        return f"<Entry {self.key!r} {tables.data_type_name(self.type)} {what}>"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Entry):
            return NotImplemented
        mine = (self.key, self.type, self.flags, self.timestamp, self.size, self.dtype_id, self.shape)
        theirs = (
            other.key,
            other.type,
            other.flags,
            other.timestamp,
            other.size,
            other.dtype_id,
            other.shape,
        )
        return mine == theirs and self.data == other.data

    __hash__ = None  # type: ignore[assignment]

    # --- what it is -----------------------------------------------------------------------------------

    @property
    def stored_size(self) -> int:
        """Bytes of the payload as stored."""
        return self.payload.size

    @property
    def codec(self) -> str:
        """Name of the codec; ``unknown-9`` for one that this version does not know."""
        codec = codecs.BY_ID.get(self.codec_id)
        return codec.name if codec else f"unknown-{self.codec_id}"

    @property
    def filter(self) -> str:
        """Name of the filter."""
        return codecs.FILTER_NAMES.get(self.filter_id, f"unknown-{self.filter_id}")

    @property
    def dtype(self) -> str | None:
        """Name of the element type of a tensor, else ``None``."""
        if not self.dtype_id:
            return None
        row = tables.DTYPE_BY_ID.get(self.dtype_id)
        return row.name if row else f"unknown-{self.dtype_id}"

    def replace(self, **changes: Any) -> Entry:
        """Return a copy with some attributes changed (``key``, ``type``, ``flags``, ``timestamp`` ...)."""
        values = {name: getattr(self, name) for name in self.__slots__}
        values.update(changes)
        return Entry(values.pop("key"), values.pop("payload"), **values)

    # --- what it holds --------------------------------------------------------------------------------

    @property
    def data(self) -> bytes:
        """The payload, decoded and checked.

        Raises
        ------
        ChecksumMismatchError, FileCorruptError
            The stored bytes are damaged.
        VersionMismatchError
            The codec or filter is not one that this version knows.
        """
        with self._telling():
            if not self.codec_id and not self.filter_id:
                data = self.payload.read()
                if len(data) != self.size:
                    raise FileCorruptError(
                        f"the payload has {len(data)} bytes, not the {self.size} it claims"
                    )
                return data
            if self.size > SUSPICIOUS_SIZE and self.size > SUSPICIOUS_RATIO * self.stored_size:
                raise DataTooLargeError(
                    f"{self.stored_size} stored bytes claim to unpack to {self.size}",
                    hint="Read it in pieces with Entry.chunks().",
                )
            # in pieces: decoders copy what they have not used yet, which makes one large piece quadratic
            return b"".join(self._decoded(MemoryPayload(self.payload.read()).chunks()))

    def chunks(self) -> Iterator[bytes]:
        """Yield the decoded payload in pieces of about a MiB; damage raises, at the end at the latest."""
        with self._telling():
            yield from self._decoded(self.payload.chunks())

    def part(self, start: int, size: int) -> bytes:
        """Return a range of a payload that is stored as it is, and read no more.

        Its checksum, which is of all of it, is not looked at.

        Raises
        ------
        InvalidParamError
            The range is not in it, or it is compressed or encrypted.
        """
        payload = self.payload
        if self.codec_id or self.filter_id or not isinstance(payload, (MemoryPayload, FilePayload)):
            raise InvalidParamError("only what is stored as it is can be read in part", key=self.key)
        if start < 0 or size < 0 or start + size > self.size:
            raise InvalidParamError(f"there are no {size} bytes at {start} in it", key=self.key)
        with self._telling():
            return payload.part(start, size) if size else b""

    def verify(self) -> None:
        """Read the whole payload, check its checksum and that it can be decoded; raise otherwise."""
        for _ in self.chunks():
            pass
        if self.shape is not None:
            self._require_shape()

    @property
    def text(self) -> str:
        """The payload as text: UTF-8, other bytes as surrogate escapes."""
        return self.data.decode("utf-8", "surrogateescape")

    def json(self) -> Any:
        """Return the payload parsed as JSON."""
        try:
            return json.loads(self.data)
        except (ValueError, RecursionError) as error:
            raise FileCorruptError(f"the payload is not JSON: {error}", key=self.key) from error

    def array(self, *, verify: bool = False) -> np.ndarray[Any, Any]:
        """Return the tensor as a read-only array of ``shape``.

        Without a copy where it is stored uncompressed (a view of the mapped file, 64-byte aligned).
        ``bfloat16`` comes as ``uint16``, ``q8_0`` as bytes, shape ``(..., n // 32 * 34)``; see ``numbers``.

        Parameters
        ----------
        verify
            Check the checksum first, which reads the whole payload.
        """
        import numpy as np

        with self._telling():
            if verify:
                self.verify()
            row, shape = self._require_shape()
            raw = self.payload.view() if not self.codec_id and not self.filter_id else self.data
            if len(raw) != self.size:
                raise FileCorruptError(f"the payload has {len(raw)} bytes, not the {self.size} it claims")
            if row.block > 1:
                shape = (*shape[:-1], shape[-1] // row.block * row.size)
            try:
                array = np.frombuffer(raw, np.dtype(row.numpy)).reshape(shape)
            except ValueError as error:  # more dimensions, or larger ones beside a 0, than NumPy allows
                raise FileCorruptError(
                    f"NumPy has no arrays of {len(shape)} dimensions like these: {error}"
                ) from error
            array.flags.writeable = False
            return array

    def numbers(self) -> np.ndarray[Any, Any]:
        """Return the tensor's numbers in a dtype that NumPy computes with (bfloat16 and q8_0 as float32)."""
        from atlas_kit.codecs import numbers

        array = self.array()
        if self.dtype == "bfloat16":
            return numbers.from_bfloat16(array)
        if self.dtype == "q8_0":
            return numbers.from_q8_0(array)
        return array

    # --- inside ---------------------------------------------------------------------------------------

    def _require_shape(self) -> tuple[tables.DType, tuple[int, ...]]:
        row = tables.DTYPE_BY_ID.get(self.dtype_id)
        if self.shape is None or not self.dtype_id:
            raise InvalidParamError("the entry is not a tensor", key=self.key, hint="Use .data or .text.")
        if row is None:
            raise VersionMismatchError(f"the dtype {self.dtype_id} is not one that this version knows")
        if tables.tensor_bytes(row, self.shape) != self.size:
            raise FileCorruptError(
                f"the tensor has {self.size} bytes, which is not what {row.name}{list(self.shape)} needs"
            )
        return row, self.shape

    def _decoded(self, stored: Iterator[bytes]) -> Iterator[bytes]:
        codec = codecs.BY_ID.get(self.codec_id)
        if codec is None or self.filter_id not in codecs.FILTER_NAMES:
            what = f"codec {self.codec_id}" if codec is None else f"filter {self.filter_id}"
            raise VersionMismatchError(
                f"the {what} is not one that this version knows", hint="A newer atlas_kit may read it."
            )
        if not codec.plausible(self.stored_size, self.size):
            raise FileCorruptError(f"{self.stored_size} bytes of {codec.name} cannot unpack to {self.size}")
        return codecs.decode_stream(
            stored, codec, self.size, shuffle_size=self.item_size if self.filter_id else 0
        )

    @contextlib.contextmanager
    def _telling(self) -> Iterator[None]:
        """Add the entry's key and place to errors from below."""
        try:
            yield
        except AtlasError as error:
            error.key = self.key if error.key is None else error.key
            error.offset = self.payload_offset if error.offset is None else error.offset
            error.path = getattr(getattr(self.payload, "_source", None), "path", None) or error.path
            raise


def make_entry(
    key: str,
    value: Any,
    *,
    type: int | None = None,  # the format's word
    flags: int | None = None,
    timestamp: int = 0,
    dtype: str | None = None,
    shape: tuple[int, ...] | None = None,
    wanted: dict[str, Any] | None = None,
) -> Entry:
    """Make an entry of a Python value.

    ``str`` becomes UTF-8 of type text, ``dict`` and ``list`` JSON of type metadata, arrays tensors of type
    context, bytes generic. Arrays are kept by reference until the file is saved, not copied. ``dtype`` and
    ``shape`` give a type to raw bytes (or ``bfloat16`` to an array of ``uint16``).
    """
    if isinstance(value, Entry):
        changes: dict[str, Any] = {"key": key}
        if type is not None:
            changes["type"] = type
        if flags is not None:
            changes["flags"] = flags
        if wanted:
            changes["wanted"] = wanted
        return value.replace(**changes)
    default, data, row = DataType.GENERIC, b"", None
    if isinstance(value, str):
        try:
            default, data = DataType.TEXT, value.encode("utf-8", "surrogateescape")
        except UnicodeEncodeError as error:
            raise InvalidParamError(f"the text cannot be stored as UTF-8: {error.reason}", key=key) from None
    elif isinstance(value, (dict, list)):
        default, data = (
            DataType.METADATA,
            json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass"),
        )
    elif isinstance(value, (bytes, bytearray)):
        data = bytes(value)
    elif hasattr(value, "__array__") or isinstance(value, memoryview):
        default, data, row, shape = _from_array(value, dtype, shape)
    else:
        raise InvalidParamError(
            f"a value of type {value.__class__.__name__} cannot be stored",
            key=key,
            hint="Give str, bytes, dict, list or array.",
        )
    if row is None and (dtype is not None or shape is not None):
        row = _dtype_row(dtype)
        shape = (len(data) // row.size * row.block,) if shape is None else tuple(shape)
    if row is not None and shape is not None and tables.tensor_bytes(row, shape) != len(data):
        raise InvalidParamError(
            f"{len(data)} bytes are not a {row.name} tensor of shape {list(shape)}", key=key
        )
    return Entry(
        key,
        MemoryPayload(data),
        type=int(default if type is None else type),
        flags=flags or 0,
        timestamp=timestamp,
        dtype_id=row.id if row else 0,
        shape=shape if row else None,
        wanted=wanted,
    )


def _dtype_row(name: str | None) -> tables.DType:
    row = tables.DTYPE_BY_NAME.get(name or "uint8")
    if row is None:
        raise InvalidParamError(f'there is no dtype "{name}"', hint=f"Use {', '.join(tables.DTYPE_BY_NAME)}.")
    return row


def _from_array(
    value: Any, dtype: str | None, shape: tuple[int, ...] | None
) -> tuple[DataType, Any, tables.DType, tuple[int, ...]]:
    import numpy as np

    array = np.asarray(value)
    name = dtype or ("bfloat16" if array.dtype.name == "bfloat16" else array.dtype.name)
    row = _dtype_row(name)
    if array.dtype.name != "bfloat16":
        array = array.astype(array.dtype.newbyteorder("<"), copy=False)
    if dtype is None and np.dtype(row.numpy).itemsize != array.dtype.itemsize:
        raise InvalidParamError(f"arrays of {array.dtype} cannot be stored", hint="Convert the array first.")
    shape = tuple(array.shape) if shape is None else tuple(shape)
    flat: Any = np.ascontiguousarray(array).reshape(-1)
    return DataType.CONTEXT, memoryview(flat.view(np.uint8) if array.size else b""), row, shape
