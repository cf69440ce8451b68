"""The safetensors format: a length, a JSON header, and tensors without gaps; read lazily, written in order.

Follows the format description of the ``safetensors`` project. Every number of the header is checked before
it is used. Knows nothing of memory files; element types are safetensors' own names (``F32``).
"""

from __future__ import annotations

import json
import math
import struct
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError, KeyNotFoundError, TruncatedError
from atlas_kit.formats.findings import Finding, Report
from atlas_kit.storage.given import Given, Progress, open_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: The header's own length, the first field of the file.
LENGTH = struct.Struct("<Q")
#: What the reference implementation accepts; a header is text, and this is a lot of it.
MAX_HEADER = 100_000_000
#: Data starts at a multiple of this; the header is padded with spaces.
ALIGNMENT = 8
METADATA = "__metadata__"
MAX_DIMS = 64

#: Bits per element.
BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "I16": 16, "U16": 16, "F16": 16, "BF16": 16,
    "I32": 32, "U32": 32, "F32": 32, "I64": 64, "U64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip


@dataclass(frozen=True)
class TensorInfo:
    """One tensor of the header: ``offset`` is in the file, ``size`` in bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int
    size: int


@dataclass
class SafetensorsFile:
    """An opened file. Tensors are in the order of their data."""

    source: Source
    tensors: dict[str, TensorInfo] = field(default_factory=dict)
    metadata: dict[str, str] = field(default_factory=dict)
    data_start: int = 0
    owns_source: bool = True

    @classmethod
    def open(cls, given: Given) -> SafetensorsFile:
        """Read and check the header of a file, by path, by content, or of a source that is open already and stays so.

        Raises
        ------
        FileCorruptError
            The header contradicts itself or the file's size. ``TruncatedError`` when data are missing.
        """
        source = open_source(given)
        try:
            file = _read(source)
        except AtlasError as error:
            error.path = error.path or source.path
            if source is not given:
                source.close()
            raise
        file.owns_source = source is not given
        return file

    def view(self, name: str) -> memoryview:
        """Return the bytes of a tensor without copying them."""
        info = self._info(name)
        return self.source.view(info.offset, info.size)

    def chunks(self, name: str) -> Iterator[bytes]:
        """Yield the bytes of a tensor in pieces of bounded size."""
        info = self._info(name)
        return self.source.chunks(info.offset, info.size)

    def _info(self, name: str) -> TensorInfo:
        try:
            return self.tensors[name]
        except KeyError:
            raise KeyNotFoundError("there is no such tensor", path=self.source.path, key=name) from None

    def close(self) -> None:
        """Release the file; views that are in use stay valid."""
        if self.owns_source:
            self.source.close()

    def __enter__(self) -> SafetensorsFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def tensor_size(dtype: str, shape: Iterable[int]) -> int | None:
    """Return the bytes of a tensor, or ``None`` where the type is unknown or does not fill whole bytes."""
    bits = BITS.get(dtype)
    if bits is None:
        return None
    for dim in shape:
        bits *= dim
    return None if bits % 8 else bits // 8


def header_length(source: Source) -> int:
    """Return the length of the JSON header, checked against the file."""
    if source.size < LENGTH.size + 2:
        raise TruncatedError("the file is too short for a safetensors header", offset=0)
    (length,) = LENGTH.unpack(source.read(0, LENGTH.size))
    if length > MAX_HEADER:
        raise FileCorruptError(
            f"the header claims {length} bytes, more than the {MAX_HEADER} allowed", offset=0
        )
    if length > source.size - LENGTH.size:
        raise TruncatedError(f"the header claims {length} bytes, and the file ends before that", offset=0)
    return int(length)


def _read(source: Source) -> SafetensorsFile:
    length = header_length(source)
    header = _parse_json(source.read(LENGTH.size, length))
    start = LENGTH.size + length
    file = SafetensorsFile(source, data_start=start)
    file.metadata = _read_metadata(header.pop(METADATA, {}))
    infos = [_read_info(name, value, start) for name, value in header.items()]
    infos.sort(key=lambda info: (info.offset, info.size))
    position = start
    for info in infos:
        if info.offset != position:
            raise FileCorruptError(
                f"the tensor starts at byte {info.offset}, and the one before it ends at {position}",
                key=info.name,
                offset=info.offset,
            )
        position += info.size
        file.tensors[info.name] = info
    if position > source.size:
        raise TruncatedError(f"the tensors need {position} bytes, and the file has {source.size}")
    if position < source.size:
        raise FileCorruptError(f"{source.size - position} bytes follow the last tensor", offset=position)
    return file


def remains(source: Source) -> tuple[SafetensorsFile, int]:
    """Return what is intact of a damaged file, and how many tensors there were, as far as its header can be read.

    Tensors are intact whose rows of the header make sense and whose bytes are all there and no other's.
    """
    try:
        length = header_length(source)
    except FileCorruptError:  # cut off inside, or another length
        length = max(0, min(source.size - LENGTH.size, MAX_HEADER))
    start = LENGTH.size + length
    file = SafetensorsFile(source, data_start=start, owns_source=False)
    header = _leading_items(source.read_upto(LENGTH.size, length))
    try:
        file.metadata = _read_metadata(header.pop(METADATA, {}))
    except FileCorruptError:
        file.metadata = {}
    infos = []
    for name, value in header.items():
        try:
            infos.append(_read_info(name, value, start))
        except FileCorruptError:
            continue
    position = start
    for info in sorted(infos, key=lambda info: (info.offset, info.size)):
        if position <= info.offset and info.offset + info.size <= source.size:
            file.tensors[info.name] = info
            position = info.offset + info.size
    return file, len(header)


def _leading_items(raw: bytes) -> dict[str, Any]:
    """Return the pairs of a JSON object up to where it is damaged; of two with one name the first."""
    text, decoder = raw.decode("utf-8", "replace"), json.JSONDecoder()
    found: dict[str, Any] = {}
    at = 1 if text[:1] == "{" else len(text)
    try:
        while at < len(text):
            at += len(text[at:]) - len(text[at:].lstrip(" \t\r\n,")) if text[at] in " \t\r\n," else 0
            name, at = decoder.raw_decode(text, at)
            at = text.index(":", at) + 1
            while text[at] in " \t\r\n":
                at += 1
            value, at = decoder.raw_decode(text, at)
            if isinstance(name, str):
                found.setdefault(name, value)
    except (ValueError, IndexError, RecursionError):
        pass
    return found


def _parse_json(raw: bytes) -> dict[str, Any]:
    if raw[:1] != b"{":
        raise FileCorruptError("the header does not start with a brace", offset=LENGTH.size)
    try:
        header = json.loads(raw.decode("utf-8"), object_pairs_hook=_no_duplicates)
    except UnicodeDecodeError as error:
        raise FileCorruptError("the header is not UTF-8", offset=LENGTH.size + error.start) from error
    except RecursionError as error:
        raise FileCorruptError("the header is nested too deeply", offset=LENGTH.size) from error
    except ValueError as error:
        raise FileCorruptError(f"the header is not valid JSON: {error}", offset=LENGTH.size) from error
    if not isinstance(header, dict):
        raise FileCorruptError("the header is not a JSON object", offset=LENGTH.size)
    return header


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        for name, _ in pairs:
            if name in seen:
                raise FileCorruptError("the header names this twice", key=name, offset=LENGTH.size)
            seen.add(name)
    return made


def _read_metadata(value: Any) -> dict[str, str]:
    if not isinstance(value, dict) or not all(isinstance(item, str) for item in value.values()):
        raise FileCorruptError(f"{METADATA} is not a map of text to text", offset=LENGTH.size)
    return value


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _read_info(name: str, value: Any, start: int) -> TensorInfo:
    """Check one tensor's row of the header."""

    def wrong(what: str) -> FileCorruptError:
        return FileCorruptError(what, key=name, offset=LENGTH.size)

    if not isinstance(value, dict):
        raise wrong("the header says nothing usable about this tensor")
    dtype, shape, offsets = value.get("dtype"), value.get("shape"), value.get("data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise wrong(f"the element type {str(dtype)[:40]!r} is not known")
    if not isinstance(shape, list) or len(shape) > MAX_DIMS or not all(map(_is_count, shape)):
        raise wrong("the shape is not a list of sizes")
    if not isinstance(offsets, list) or len(offsets) != 2 or not all(map(_is_count, offsets)):
        raise wrong("data_offsets is not a pair of offsets")
    size = tensor_size(dtype, shape)
    if size is None or offsets[1] - offsets[0] != size:
        raise wrong(f"{offsets[1] - offsets[0]} bytes are not what {dtype}{shape} needs")
    return TensorInfo(name, dtype, tuple(shape), start + offsets[0], size)


# --- writing -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class NewTensor:
    """A tensor to write; ``chunks`` yields its bytes when the time comes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    chunks: Callable[[], Iterable[bytes]]


def write_safetensors(
    file: IO[bytes], tensors: Iterable[NewTensor], metadata: dict[str, str] | None = None
) -> None:
    """Write a file in bounded memory; wide elements first, so that every tensor is aligned to its elements.

    Raises
    ------
    InvalidParamError
        Two tensors share a name, a type is unknown, or a tensor's bytes do not fit its shape.
    """
    ordered = sorted(tensors, key=lambda tensor: -BITS.get(tensor.dtype, 0))
    header: dict[str, Any] = {METADATA: metadata} if metadata else {}
    position = 0
    for tensor in ordered:
        size = tensor_size(tensor.dtype, tensor.shape)
        if size is None:
            raise InvalidParamError(f"safetensors cannot hold {tensor.dtype}", key=tensor.name)
        if tensor.name in header or tensor.name == METADATA:
            raise InvalidParamError("this name is taken already", key=tensor.name)
        header[tensor.name] = {
            "dtype": tensor.dtype,
            "shape": list(tensor.shape),
            "data_offsets": [position, position + size],
        }
        position += size
    raw = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode("utf-8")
    raw += b" " * (-len(raw) % ALIGNMENT)
    if len(raw) > MAX_HEADER:
        raise InvalidParamError(f"the header would have {len(raw)} bytes, and {MAX_HEADER} are allowed")
    file.write(LENGTH.pack(len(raw)))
    file.write(raw)
    for tensor in ordered:
        written = sum(file.write(piece) for piece in tensor.chunks())
        begin, end = header[tensor.name]["data_offsets"]
        if written != end - begin:
            raise InvalidParamError(f"{written} bytes came for {end - begin}", key=tensor.name)


# --- checking ------------------------------------------------------------------------------------------


#: Kinds (``formats.weights.regions``) of the types whose numbers may be NaN.
_KINDS = {"F16": "f16", "BF16": "bf16", "F32": "f32", "F64": "f64", "F8_E4M3": "e4m3", "F8_E5M2": "e5m2"}


def check_safetensors(given: Given, *, deep: bool = False, progress: Progress | None = None) -> list[Finding]:
    """Return what is wrong with a file; the format has no checksums, so only its structure and its numbers can be.

    ``deep`` reads all numbers; without it only such destroyed data are found as show at next to no cost.
    """
    try:
        with SafetensorsFile.open(given) as file:
            report = Report()
            for info in file.tensors.values():
                if _is_misaligned(info):
                    report.append(_misaligned(info))
            _check_data(report, file, deep=deep, progress=progress)
            return report.findings()
    except FileCorruptError as error:
        code = "truncated" if isinstance(error, TruncatedError) else "safetensors-header"
        hint = "Download or copy the file again." if isinstance(error, TruncatedError) else error.hint or ""
        return [Finding(code, "error", error.message, hint, error.offset, error.key, error.remedy)]


def _check_data(report: Report, file: SafetensorsFile, *, deep: bool, progress: Progress | None) -> None:
    from atlas_kit.formats.weights.regions import Region

    regions = []
    for info in file.tensors.values():
        item = max(1, BITS[info.dtype] // 8)
        matrix = len(info.shape) > 1 and info.size > 0
        row = max(item, info.size // max(1, math.prod(info.shape[:-1]))) if matrix else info.size
        numbers = ((0, _KINDS[info.dtype]),) if info.dtype in _KINDS else ()
        regions.append(Region(info.name, info.offset, info.size, row, item, numbers, matrix))
    if deep:
        from atlas_kit.formats.weights.scan import check_weights

        check_weights(report, file.source, regions, progress=progress)
    else:
        from atlas_kit.formats.weights.zeros import quick_zeros, report_zeros

        report_zeros(report, file.source, regions, quick_zeros(file.source, regions), thorough=False)


def _is_misaligned(info: TensorInfo) -> bool:
    return bool(info.offset % max(1, BITS[info.dtype] // 8))


def _misaligned(info: TensorInfo) -> Finding:
    return Finding(
        "tensor-misaligned",
        "note",
        "the tensor's bytes do not start at a multiple of its element size, so views of it are slower",
        "Writing the file again with wide elements first puts this right.",
        info.offset,
        info.name,
    )
