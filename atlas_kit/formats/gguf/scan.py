"""Reading a header as far as it goes: the one parser below the strict reader and the tolerant checker.

The header's length is known only when it has been read, so it is loaded through a window that grows with
positioned reads; the tensor data behind it is never touched. What was read before an error is kept.
"""

from __future__ import annotations

import enum
import struct
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import construct as cs

from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    MagicMismatchError,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.foreign import foreign_error
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.layout import Layout, layout
from atlas_kit.formats.gguf.strings import LazyStrings
from atlas_kit.formats.gguf.tables import ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import ArrayValue, LazyArrays, LazyNumbers, MetadataField
from atlas_kit.formats.schema import BufferStream, Span, parse, trace
from atlas_kit.storage.given import Given, takes_source, use_source
from atlas_kit.storage.source import Source, StrPath

FIRST_READ = 1 << 16
LARGEST_READ = 1 << 20

Stage = Literal["prefix", "metadata", "tensors", "done"]


class HeaderStream(BufferStream):
    """A stream over the start of a file that loads more of it when a construct needs more.

    ``buf`` is one ``bytearray`` that only ever grows, so that values can refer to it by offset, and stay
    readable when the file has been closed.
    """

    __slots__ = ("foreseen", "least", "source")

    def __init__(self, source: Source) -> None:
        super().__init__(b"")
        self.foreseen = self.least = 0
        self.far = source.far
        self.buf: Any = bytearray()
        self.source: Source | None = source
        self.end = source.size

    def ensure(self, stop: int) -> int:
        """Load the bytes up to ``stop`` (never past the end of the file); return how far there are bytes."""
        have = len(self.buf)
        stop = min(stop, self.end)
        if stop <= have:
            return stop
        if self.source is None:
            raise FileCorruptError("the header was not read this far", offset=have)
        goal = min(self.end, self._goal(have, stop))
        self.source.prepare(have, goal - have)
        while have < goal:
            piece = self.source.read_upto(have, min(LARGEST_READ, goal - have))
            if not piece:
                raise TruncatedError("the file became shorter while it was being read", offset=have)
            self.buf += piece
            have += len(piece)
        return stop

    def _goal(self, have: int, stop: int) -> int:
        """Return how far to load when ``stop`` is needed: as much ahead as was needed so far, within bounds.

        From far away in few requests instead: up to what is known or foreseen of the header, as far as that is
        sure, and a sixth more, which is never much too much.
        """
        if self.source is None or not self.source.far:
            return max(stop, have + min(max(have, FIRST_READ), LARGEST_READ))
        known = max(stop, self.foreseen)
        if self.least > have:  # a guess of little that was read may be twice too much
            known = min(known, max(stop, self.least))
        return max(known + known // 6, have + FIRST_READ)

    def foresee(self, stop: int, least: int = 0) -> None:
        """Be told where what is being read is likely to end, and how far it goes at least."""
        self.foreseen, self.least = stop, least

    def read(self, count: int | None = -1) -> bytes:
        """Return ``count`` bytes, or none when the file ends before that."""
        size = self.end - self.pos if count is None or count < 0 else count
        if self.ensure(self.pos + size) < self.pos + size:
            return b""
        start, self.pos = self.pos, self.pos + size
        return bytes(self.buf[start : self.pos])


@dataclass
class HeaderScan:
    """What could be read of a header, where reading stopped, and why.

    Attributes
    ----------
    version, byte_order, tensor_count, field_count
        As the file says; ``None`` where reading stopped before.
    fields, tensors
        Every pair and every tensor info that is whole, in the file's order, duplicates included.
    end
        The offset behind the last whole record: the header's size when ``stage`` is ``"done"``.
    stage, error
        Where reading stopped: ``"prefix"``, ``"metadata"``, ``"tensors"``, or ``"done"`` without error.
    alignment, alignment_error
        The alignment in use (32 when the file's own is unusable, with the reason).
    data_start
        Where tensor data starts; ``None`` unless the header is whole.
    """

    path: str | None
    size: int
    version: int | None = None
    byte_order: str = "<"
    tensor_count: int | None = None
    field_count: int | None = None
    fields: list[MetadataField] = field(default_factory=list)
    tensors: list[TensorInfo] = field(default_factory=list)
    end: int = 0
    stage: Stage = "prefix"
    error: AtlasError | None = None
    alignment: int = tables.DEFAULT_ALIGNMENT
    alignment_error: AtlasError | None = None
    data_start: int | None = None
    stream: HeaderStream | None = field(default=None, repr=False)

    @property
    def complete(self) -> bool:
        """Whether the whole header could be read."""
        return self.stage == "done"

    @property
    def layout(self) -> Layout:
        """The schema of this dialect."""
        return layout(self.version or 3, self.byte_order)

    def find(self, key: str) -> MetadataField | None:
        """Return the first pair of that key, or ``None``."""
        return next((item for item in self.fields if item.key == key), None)

    def header_bytes(self, start: int = 0, stop: int | None = None) -> bytes:
        """Return bytes of the header that was read (its first ``end`` bytes)."""
        return (
            b"" if self.stream is None else bytes(self.stream.buf[start : self.end if stop is None else stop])
        )


def version_and_order(head: bytes, path: StrPath | None = None) -> tuple[int, str]:
    """Return (version, byte order) of the first 8 bytes of a file.

    The magic is the same in both byte orders; a version whose low half is zero was written the other way.

    Raises
    ------
    MagicMismatchError, VersionMismatchError, TruncatedError
    """
    if head[:4] != tables.MAGIC[: len(head)] or not head:
        raise MagicMismatchError(
            "this is not a GGUF file: it does not start with GGUF" if head else "the file is empty",
            path=path,
            offset=0,
        )
    if len(head) < 8:
        raise TruncatedError("the file ends inside the first 8 bytes", path=path, offset=len(head))
    (version,) = struct.unpack("<I", head[4:8])
    order = "<"
    if version and version & 0xFFFF == 0:
        (version,) = struct.unpack(">I", head[4:8])
        order = ">"
    if version not in tables.VERSIONS:
        raise VersionMismatchError(
            f"GGUF version {version} is not known (1, 2 and 3 are)", path=path, offset=4
        )
    return version, order


@takes_source
def scan_header(source: Source, *, path: StrPath | None = None) -> HeaderScan:
    """Read a header as far as possible. Never raises for what is in the file: see ``HeaderScan.error``.

    Raises
    ------
    AtlasError
        The file cannot be opened or read at all.
    """
    scan = HeaderScan(source.path if path is None else str(path), source.size)
    stream = HeaderStream(source)
    scan.stream = stream
    try:
        _scan_prefix(scan, stream)
        _scan_fields(scan, stream)
        _find_alignment(scan)
        _scan_tensors(scan, stream)
        scan.stage = "done"
    except AtlasError as error:
        error.path = error.path or scan.path
        scan.error = error
        if scan.stage == "metadata":
            _find_alignment(scan)
    stream.source = None  # from here on nothing is loaded; the values keep what they need
    if scan.complete:
        scan.data_start = align(scan.end, scan.alignment)
    _place_tensors(scan)
    return scan


def align(offset: int, alignment: int) -> int:
    """Return the next multiple of ``alignment`` at or after ``offset``."""
    return -(-offset // alignment) * alignment


def _scan_prefix(scan: HeaderScan, stream: HeaderStream) -> None:
    head = bytes(stream.buf[: stream.ensure(8)])
    try:
        scan.version, scan.byte_order = version_and_order(head)
    except MagicMismatchError as error:
        known = foreign_error(stream.source) if stream.source is not None else None
        raise known or error from None
    prefix = parse(scan.layout.prefix, stream, path=scan.path, what="header")
    scan.tensor_count, scan.field_count = prefix["tensor_count"], prefix["metadata_kv_count"]
    scan.end, scan.stage = stream.pos, "metadata"


def _scan_fields(scan: HeaderScan, stream: HeaderStream) -> None:
    count = scan.field_count or 0
    schema = scan.layout.fields
    early = _early_check(lambda: schema.check(stream, count, "metadata pairs"))
    fit = (stream.end - stream.pos) // schema.smallest
    stream.left = count
    for item in schema.each(stream, min(count, fit)):
        stream.left -= 1
        scan.fields.append(field_of(item, scan.end, stream.pos))
        scan.end = stream.pos
    if early is not None:
        raise early
    scan.stage = "tensors"


def _scan_tensors(scan: HeaderScan, stream: HeaderStream) -> None:
    count = scan.tensor_count or 0
    schema = scan.layout.tensors
    early = _early_check(lambda: schema.check(stream, count, "tensors"))
    fit = (stream.end - stream.pos) // schema.smallest
    for item in schema.each(stream, min(count, fit)):
        scan.tensors.append(
            TensorInfo(
                item["name"],
                tuple(item["dimensions"]),
                item["type"],
                item["offset"],
                scan.end,
                stream.pos - scan.end,
            )
        )
        scan.end = stream.pos
    if early is not None:
        raise early


def _early_check(check: Any) -> AtlasError | None:
    """Return the error of a count that cannot be true; what is there is still read before it is raised."""
    try:
        check()
    except AtlasError as error:
        return error
    return None


def field_of(item: Any, start: int, stop: int) -> MetadataField:
    """Make a field of a pair that the schema has read between two offsets."""
    value, element = item["value"], None
    if item["value_type"] == ValueType.ARRAY:
        value, element = value["array"], value["type"]
    return MetadataField(
        item["key"],
        item["value_type"],
        value,
        element,
        offset=start,
        value_offset=item["value_offset"],
        size=stop - start,
    )


def _find_alignment(scan: HeaderScan) -> None:
    found = scan.find("general.alignment")
    if found is None:
        return
    value = found.items
    reason = None
    if found.type != ValueType.UINT32:
        reason = f"general.alignment must be a u32 and is {found.type_name}"
    elif value == 0 or value & (value - 1):
        reason = f"the alignment must be a power of two and is {value}"
    elif value > tables.MAX_ALIGNMENT:
        reason = f"an alignment of {value} bytes is not reasonable (at most {tables.MAX_ALIGNMENT})"
    if reason is None:
        scan.alignment = value
    else:
        scan.alignment_error = FileCorruptError(
            reason, path=scan.path, offset=found.value_offset, key=found.key
        )


def _place_tensors(scan: HeaderScan) -> None:
    start = scan.data_start or 0
    scan.tensors = [
        TensorInfo(t.name, t.dims, t.type, t.offset, t.info_offset, t.info_size, start, scan.path)
        for t in scan.tensors
    ]


# --- explaining bytes ------------------------------------------------------------------------------------


@dataclass(frozen=True)
class HexRow:
    """One field of a file for ``inspect --hex``: ``data`` holds its first bytes (at most 16)."""

    offset: int
    size: int
    data: bytes
    name: str
    type: str
    value: str
    meaning: str


def hex_fields(given: Given, limit: int | None = 200) -> tuple[list[HexRow], AtlasError | None]:
    """List every field of a header with its bytes, driven by the schema; arrays take one row each.

    Returns the rows (the first ``limit``) and the error that ended the walk, if one did. Text may hold
    surrogate escapes (bytes that are not UTF-8); ``errors.printable`` makes it printable.
    """
    with use_source(given) as source:
        stream = HeaderStream(source)
        try:
            version, order = version_and_order(bytes(stream.buf[: stream.ensure(8)]), source.path)
        except AtlasError as error:
            return [], error
        spans, problem = trace(layout(version, order).header, stream, limit=limit)
        rows = [_hex_row(span, stream, spans, index) for index, span in enumerate(spans)]
        return rows, _our_error(problem, stream, source.path)


def record_fields(scan: HeaderScan, number: int | None, *, tensor: bool = False) -> list[HexRow]:
    """List the fields of one pair or one tensor info by its number, or of what stands before them (``None``)."""
    stream = scan.stream
    if stream is None or scan.version is None:
        return []
    if number is None:
        schema, start, name = scan.layout.prefix, 0, ""
    elif tensor:
        schema, start, name = (
            scan.layout.tensor_info,
            scan.tensors[number].info_offset,
            f"tensor_infos[{number}].",
        )
    else:
        schema, start, name = scan.layout.key_value, scan.fields[number].offset, f"metadata_kv[{number}]."
    spans = [replace(span, name=name + span.name) for span in trace(schema, stream.buf, start)[0]]
    return [_hex_row(span, stream, spans, index) for index, span in enumerate(spans)]


def _hex_row(span: Span, stream: HeaderStream, spans: list[Span], index: int) -> HexRow:
    data = bytes(stream.buf[span.offset : span.offset + min(span.size, 16)])
    meaning = span.note
    if span.name.endswith(".value_type") or span.name.endswith(".value.type"):
        meaning = f"{meaning}: {tables.value_type_name(span.value)}"
    elif span.name.startswith("tensor_infos") and span.name.endswith(".type"):
        row = tables.GGML_TYPE_BY_NUMBER.get(span.value)
        meaning = f"{meaning}: {row.type.name}, {row.meaning}" if row else f"{meaning}: not known"
    elif span.name.endswith((".value", ".value.array")):
        meaning = _value_meaning(span, spans, index) or meaning
    return HexRow(span.offset, span.size, data, span.name, span.type, show(span.value), meaning)


def _value_meaning(span: Span, spans: list[Span], index: int) -> str | None:
    """Return what is known about the key that this value belongs to."""
    owner = span.name.split("].")[0] + "].key"
    key = next((s.value for s in reversed(spans[max(0, index - 4) : index]) if s.name == owner), None)
    row = tables.describe_key(key) if isinstance(key, str) else None
    if row is None or not isinstance(key, str):
        return None
    named = tables.describe_value(key, span.value)
    return f"{row.meaning}: {named}" if named else row.meaning


def _our_error(problem: Exception | None, stream: HeaderStream, path: str | None) -> AtlasError | None:
    if problem is None or isinstance(problem, cs.CancelParsing):
        return None
    if isinstance(problem, AtlasError):
        problem.path = problem.path or path
        return problem
    detail = str(problem).splitlines()[-1] if str(problem) else repr(problem)
    return FileCorruptError(f"the header cannot be read any further: {detail}", path=path, offset=stream.pos)


def show(value: Any, width: int = 60) -> str:
    """Return a value in one short line: arrays by their length and first elements, text quoted and cut."""
    if isinstance(value, ArrayValue):
        return show(value.items, width)
    if isinstance(value, (LazyNumbers, LazyStrings, LazyArrays)):
        first = ", ".join(show(item, 16) for item in value.head(4))
        return f"{len(value)}: [{first}{', ...' if len(value) > 4 else ''}]"
    if isinstance(value, enum.Enum):
        return f"{value.value} ({value.name})"
    if isinstance(value, float):
        return format(value, ".7g")
    if isinstance(value, (str, bytes)):
        text = repr(value)
        return text if len(text) <= width else f"{text[: width - 4]}...{text[-1]}"
    return str(value)


__all__ = [
    "HeaderScan",
    "HeaderStream",
    "HexRow",
    "align",
    "field_of",
    "hex_fields",
    "record_fields",
    "scan_header",
    "show",
    "version_and_order",
]
