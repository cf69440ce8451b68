"""Everything that is wrong, odd or worth knowing about a GGUF file, in one pass over its header.

The verdict (no finding of severity ``error``) is meant to be stock llama.cpp's: would it load the file, and
decode with it? Where llama.cpp stops at the first problem, all are listed. Rules about the bytes are here;
``check_model`` knows what llama.cpp asks of a model's keys, vocabulary and tensors. Nothing is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from atlas_kit.errors import (
    AtlasError,
    MagicMismatchError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.findings import Finding, Report
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.salvage import Salvage, salvage
from atlas_kit.formats.gguf.scan import HeaderScan, align, scan_header
from atlas_kit.formats.gguf.shards import has_others
from atlas_kit.formats.gguf.tables import ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.storage.given import Given, Progress, use_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.check_shards import Records
    from atlas_kit.formats.gguf.values import MetadataField

#: Findings of one code that are listed one by one; then one line says how many more there are.
MAX_PER_CODE = 200
#: What the CPU backend of llama.cpp wants of the address of mapped weights.
MAPPED_ALIGNMENT = 32
_INT64_MAX = (1 << 63) - 1
#: Tensor types of a llama.cpp of October 2026; it refuses numbers beyond.
GGML_TYPE_COUNT = 43
_MEND = Remedy("mend")
_EDITS = ("set-value", "set-type", "set-missing", "change-value", "remove-tensor", "rename-tensor",
          "remove-prefix")  # fmt: skip
_ANEW = "Copy or download it again."


def is_ok(findings: Sequence[Finding]) -> bool:
    """Tell whether stock llama.cpp should load the file: nothing of severity ``error`` was found."""
    return not any(finding.severity == "error" for finding in findings)


def check_gguf(
    given: Given, *, deep: bool = False, shards: bool = True, progress: Progress | None = None
) -> list[Finding]:
    """List everything that is wrong, odd or worth knowing about a GGUF file.

    Parameters
    ----------
    deep
        Also read all tensor data: numbers that are none, zeros that were never written, data that are there twice.
        Without it only what shows of that at next to no cost is found.
    shards
        Of the first shard of a split model, also look at the others.
    progress
        Called while tensor data are read.

    Returns
    -------
    list of Finding
        In the order of the file: header, metadata, tensors, then the model as a whole.

    Raises
    ------
    AtlasError
        The file cannot be opened or read at all.
    """
    from atlas_kit.formats.gguf.journal import check_journal

    with use_source(given) as source:
        report = Report(most=MAX_PER_CODE)
        try:
            check_journal(source.path)
        except AtlasError as error:
            report.error("edit-interrupted", error.message, error.hint or "", offset=0, remedy=error.remedy)
            return report.findings()  # all that is odd besides comes of it, and goes with it
        return _followable(
            _check(source, report, deep=deep, shards=shards, progress=progress).findings(), source
        )


def _followable(findings: list[Finding], source: Source) -> list[Finding]:
    """Leave out remedies that cannot be followed.

    Nothing can be set in a file that must be mended first, and nothing mended in one of which no record is left.
    """
    if _MEND not in [finding.remedy for finding in findings] or _is_editable(source):
        return findings
    found = salvage(source)
    hopeless = not found.fields and not found.tensors
    out = []
    for finding in findings:
        if finding.remedy == _MEND:
            changed = replace(finding, remedy=None, hint=finding.hint or _ANEW) if hopeless else finding
        elif finding.remedy is not None and finding.remedy.name in _EDITS:
            changed = replace(finding, remedy=None, hint=_ANEW if hopeless else "Mend the file first.")
        else:
            changed = finding
        out.append(changed)
    return out


def _is_editable(source: Source) -> bool:
    """Tell whether the header can be read as far as an edit of it needs."""
    from atlas_kit.formats.gguf.file import GGUFFile

    try:
        with GGUFFile.open(source, shards=False):
            return True
    except AtlasError:
        return False


def check_structure(source: Source) -> tuple[list[Finding], HeaderScan]:
    """Return what is broken in a file's bytes, as far as that shows at once, and the header that they really hold.

    Nothing that only concerns llama.cpp is looked at. The header is the one that was read, or, where it contradicts
    itself and all its records can be found, what it should say.
    """
    report = Report(most=MAX_PER_CODE)
    scan = scan_header(source)
    records = _check_bytes(scan, source, report)
    if records is None or records.tensors is scan.tensors or not records.whole:
        return report.errors(), scan
    start = align(records.end, scan.alignment)
    tensors = [replace(info, data_start=start, path=scan.path) for info in records.tensors]
    mended = replace(scan, fields=records.fields, tensors=tensors, end=records.end, data_start=start)
    return report.errors(), replace(mended, stage="done", error=None)


def _check(source: Source, report: Report, *, deep: bool, shards: bool, progress: Progress | None) -> Report:
    scan = scan_header(source)
    records = _check_bytes(scan, source, report, deep=deep, progress=progress)
    if records is None or not records.whole:
        return report  # what is missing may be in the part that cannot be read
    from atlas_kit.formats.gguf.check_model import check_model
    from atlas_kit.formats.gguf.check_shards import check_others, check_shards

    join = (
        partial(check_shards, report, source, partial(_sound_records, deep=deep, progress=progress))
        if shards and has_others(source)
        else None
    )
    check_model(report, records.fields, records.tensors, join, source.path)
    if join is not None and source.path is not None:
        check_others(report, source, records.fields)
    return report


def _check_bytes(
    scan: HeaderScan, source: Source, report: Report, *, deep: bool = False, progress: Progress | None = None
) -> _Records | None:
    """Check what holds for any GGUF file; return its records if there are any."""
    records = _records(scan, source, report)
    if records is None:
        return None
    _check_pairs(report, records.fields)
    alignment = _check_alignment(report, records.fields)
    _check_infos(report, records.tensors)
    if not records.whole:
        return records
    data_start = align(records.end, alignment)
    _check_placement(report, source, records.tensors, alignment, data_start, records.end)
    from atlas_kit.formats.gguf.check_data import check_signs, check_values

    if deep:
        check_values(report, source, records.tensors, data_start, scan.byte_order, progress)
    else:
        check_signs(report, source, records.tensors, data_start)
    return records


def _sound_records(
    source: Source, *, deep: bool, progress: Progress | None
) -> tuple[list[Finding], Records | None]:
    """Return what is wrong with one shard by itself, and its records if the header is sound."""
    return check_gguf(source, deep=deep, shards=False, progress=progress), read_records(source)


def read_records(source: Source) -> Records | None:
    """Return (pairs, tensor infos, end of the header) of a sound header, ``None`` of any other."""
    scan = scan_header(source)
    sound = scan.complete and not _suspicious(scan, source)
    return (scan.fields, scan.tensors, scan.end) if sound else None


# --- header ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Records:
    """The records to check; ``whole`` unless more of them are behind something that cannot be read."""

    fields: list[MetadataField]
    tensors: list[TensorInfo]
    end: int
    whole: bool = True


def _records(scan: HeaderScan, source: Source, report: Report) -> _Records | None:
    """Return the header's own records, or all that can be found when it contradicts itself."""
    if not _check_start(scan, report):
        return None
    own = _Records(scan.fields, scan.tensors, scan.end)
    if scan.complete and not _suspicious(scan, source):
        return own
    found = salvage(source)
    if _is_broken(scan, found, source):
        _explain_stop(scan, found, report)
        return _Records(found.fields, found.tensors, found.end, whole=False)
    wrong_count = _check_counts(scan, found, report)
    if scan.error is not None and not wrong_count:
        _explain_stop(scan, found, report)
    if scan.complete and not scan.tensors and not found.tensors:
        return own  # llama.cpp reads what is counted and no more
    return _Records(
        found.fields, found.tensors, found.end, whole=bool(found.tensors or not found.tensor_count)
    )


def _is_broken(scan: HeaderScan, found: Salvage, source: Source) -> bool:
    """Tell whether the last record that there is cannot be read, so that no count is to blame."""
    if scan.error is None or found.end != scan.end or found.lost or found.healed:
        return False
    return any(source.read_upto(scan.end, 8))


def _check_start(scan: HeaderScan, report: Report) -> bool:
    """Check magic, version and byte order; return whether there is anything to look at behind them."""
    error = scan.error
    if scan.stage == "prefix" and error is not None:
        if isinstance(error, MagicMismatchError):
            code = "file-empty" if scan.size == 0 else "not-gguf"
            hint = error.hint or ("" if error.remedy else "Is it the right file, and complete?")
            report.error(code, error.message, hint, offset=0, remedy=error.remedy)
        elif isinstance(error, VersionMismatchError):
            report.error("version-unknown", error.message, remedy=_MEND, offset=4)
        else:
            hint = _ANEW
            report.error(
                "header-truncated", "the file ends inside its first 24 bytes", hint, offset=scan.size
            )
        return False
    if scan.version == 1:
        hint = "Convert the model again if you can."
        message = "GGUF version 1 is no longer read by llama.cpp"
        report.error("version-1", message, hint, offset=4, remedy=_MEND)
    if scan.byte_order == ">":
        report.error(
            "big-endian",
            "the file was written for big-endian machines: llama.cpp on this one refuses it",
            remedy=Remedy("to-byte-order", order="little"),
            offset=4,
        )
    return True


def _suspicious(scan: HeaderScan, source: Source) -> bool:
    """Tell whether a header that could be read may still be one whose counts are wrong."""
    behind = 0
    for info in scan.tensors:
        if not info.name and info.offset != behind:
            return True  # padding that was read as a tensor
        behind = align(info.offset + (info.nbytes or 0), scan.alignment)
    head = source.read_upto(scan.end, 256)
    if scan.version == 1 or scan.byte_order == ">" or len(head) < 16:
        return False
    size = int.from_bytes(head[:8], "little")
    return (
        0 < size <= len(head) - 8
        and head[8 : 8 + size].isascii()
        and head[8 : 8 + size].decode().isprintable()
    )


def _check_counts(scan: HeaderScan, found: Salvage, report: Report) -> bool:
    """Compare the counts with what is there; return whether one of them explains why reading stopped."""
    wrong = False
    counts = (
        ("metadata-count-wrong", "metadata pairs", 16, found.field_count, len(found.fields)),
        ("tensor-count-wrong", "tensors", 8, found.tensor_count, len(found.tensors)),
    )
    for code, what, offset, promised, there in counts:
        offset = offset if scan.version != 1 else {16: 12, 8: 8}[offset]
        if promised is None or promised == there or found.lost:
            continue
        harmless = scan.complete and not found.tensors and promised < there
        report.add(
            code,
            "warning" if harmless else "error",
            f"the header promises {promised} {what}, and the file holds {there}",
            "Is the file complete?" if promised > there else "",
            offset=offset,
            remedy=_MEND,
        )
        wrong = True
    return wrong


def _explain_stop(scan: HeaderScan, found: Salvage, report: Report) -> None:
    error = scan.error
    assert error is not None
    where = error.offset if error.offset is not None else scan.end
    what = "metadata" if scan.stage == "metadata" else "tensor list"
    if found.lost or found.healed:
        for name in found.healed:
            report.error(
                "record-length-wrong",
                f"a length in the {what} is wrong: {error.message}",
                remedy=_MEND,
                offset=where,
                key=name,
            )
        for gap in found.lost:
            message = f"{gap.stop - gap.start} bytes of the {what} make no sense: {error.message}"
            report.error("record-damaged", message, "The rest can be read.", remedy=_MEND, offset=gap.start)
        return
    if isinstance(error, TruncatedError):
        message = f"the {what} is cut off, or a length in it is wrong: {error.message}"
        report.error(
            "header-truncated",
            message,
            _ANEW,
            remedy=_MEND,
            offset=where,
            key=error.key,
        )
        return
    report.error(
        "header-invalid",
        f"the {what} cannot be read: {error.message}",
        remedy=_MEND,
        offset=where,
        key=error.key,
    )


# --- metadata --------------------------------------------------------------------------------------------


def _check_pairs(report: Report, fields: list[MetadataField]) -> None:
    seen: dict[str, MetadataField] = {}
    for item in fields:
        if not item.key:
            report.error("key-empty", "a metadata pair has an empty key", remedy=_MEND, offset=item.offset)
        elif item.key in seen:
            same = item.items == seen[item.key].items if not item.is_array else False
            message = (
                f"this key is there twice{', with the same value' if same else ''}: llama.cpp refuses that"
            )
            report.error("key-duplicate", message, remedy=_MEND, offset=item.offset, key=item.key)
        seen.setdefault(item.key, item)
        if "\0" in item.key or not item.key.isprintable():
            message = "the key holds bytes that are not printable text"
            report.warning("key-unprintable", message, offset=item.offset, key=item.key)
        if item.is_array and item.element_type == ValueType.ARRAY:
            report.error(
                "array-nested",
                "an array of arrays: the format allows it and llama.cpp refuses the file",
                "Store the arrays one by one, or as JSON text.",
                remedy=_MEND,
                offset=item.value_offset,
                key=item.key,
            )
        _check_value(report, item)


def _check_value(report: Report, item: MetadataField) -> None:
    if item.type == ValueType.BOOL and item.items not in (0, 1):
        message = f"a boolean must be 0 or 1 and is {int(item.items)}"
        report.warning("bool-invalid", message, offset=item.value_offset, key=item.key)
    elif item.type == ValueType.STRING and not _is_text(item.items):
        message = "the text is not valid UTF-8"
        report.warning("text-not-utf8", message, offset=item.value_offset, key=item.key)
    elif item.is_array and item.element_type == ValueType.BOOL and item.items.encoded().strip(b"\0\1"):
        message = "an array of booleans holds numbers other than 0 and 1"
        report.warning("bool-invalid", message, offset=item.value_offset, key=item.key)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _check_alignment(report: Report, fields: list[MetadataField]) -> int:
    """Check ``general.alignment``; return the alignment to go on with."""
    item = next((item for item in fields if item.key == "general.alignment"), None)
    if item is None:
        return tables.DEFAULT_ALIGNMENT
    value, where = item.items, item.value_offset
    if item.type != ValueType.UINT32:
        message = f"the alignment must be a u32 and is {item.type_name}"
        report.error("alignment-invalid", message, remedy=_MEND, offset=where, key=item.key)
        return tables.DEFAULT_ALIGNMENT
    if value == 0 or value & (value - 1):
        message = f"the alignment must be a power of two and is {value}"
        report.error("alignment-invalid", message, remedy=_MEND, offset=where, key=item.key)
        return tables.DEFAULT_ALIGNMENT
    if value > tables.MAX_ALIGNMENT:
        message = f"an alignment of {value} bytes wastes space: up to so much before each tensor"
        report.warning("alignment-large", message, remedy=_MEND, offset=where, key=item.key)
    return int(value)


# --- tensors ---------------------------------------------------------------------------------------------


def _check_infos(report: Report, tensors: list[TensorInfo]) -> None:
    seen: set[str] = set()
    for info in tensors:
        name, _, rest = info.name.partition("\0")
        if len(info.name.encode("utf-8", "surrogateescape")) > tables.MAX_TENSOR_NAME:
            message = f"the name has more than {tables.MAX_TENSOR_NAME} bytes"
            remedy = None if "\0" in info.name else Remedy("rename-tensor", key=info.name)
            report.error("tensor-name-long", message, remedy=remedy, offset=info.info_offset, key=info.name)
        if rest or not name:
            message = "the name is empty or holds a NUL"
            report.warning("tensor-name-odd", message, offset=info.info_offset, key=info.name)
        if name in seen:
            message = "two tensors have this name: llama.cpp refuses that"
            report.error("tensor-duplicate", message, remedy=_MEND, offset=info.info_offset, key=info.name)
        seen.add(name)
        _check_shape(report, info)


def _check_shape(report: Report, info: TensorInfo) -> None:
    where, row = info.info_offset, info.row
    if any(dim > _INT64_MAX for dim in info.dims) or info.elements >= _INT64_MAX:
        shape = " x ".join(map(str, info.dims))
        report.error(
            "tensor-too-large", f"{shape} numbers are more than can be counted", offset=where, key=info.name
        )
    elif info.elements == 0:
        report.warning("tensor-empty", "the tensor has no elements", offset=where, key=info.name)
    if row is None:
        _check_unknown_type(report, info)
    elif (info.dims[0] if info.dims else 1) % row.block:
        report.error(
            "tensor-row-not-blocks",
            f"rows of {info.dims[0] if info.dims else 1} numbers are not whole blocks of {row.block}, "
            f"as {row.type.name} needs",
            "The shape or the type is wrong: convert the model again.",
            offset=where,
            key=info.name,
        )


def _check_unknown_type(report: Report, info: TensorInfo) -> None:
    where = info.info_offset
    if info.type in tables.REMOVED_GGML_TYPES:
        message = f"type {info.type} ({tables.REMOVED_GGML_TYPES[info.type]}) was removed from llama.cpp"
        hint = "Quantise the original model again."
        report.error("tensor-type-removed", message, hint, offset=where, key=info.name)
    elif 0 <= info.type < GGML_TYPE_COUNT:
        message = f"tensor type {info.type} is newer than this program: its size cannot be checked"
        report.note("tensor-type-new", message, "Update atlas_kit.", offset=where, key=info.name)
    else:
        message = f"tensor type {info.type} is not known (llama.cpp knows 0 to {GGML_TYPE_COUNT - 1})"
        hint = "The file is damaged, or made for a newer or another program."
        report.error("tensor-type-unknown", message, hint, offset=where, key=info.name)


def _check_placement(
    report: Report, source: Source, tensors: list[TensorInfo], alignment: int, data_start: int, end: int
) -> None:
    """Check that the tensors lie one after the other, each padded, and inside the file."""
    size = source.size
    if not tensors:
        if size > end and not _joined(report, source, end):
            _trailing(report, source, end)
        return
    _check_mapping(report, alignment, data_start)
    if data_start > size:
        message = f"tensor data should start at byte {data_start}, and the file ends at {size}"
        report.error("tensor-data-missing", message, _ANEW, offset=size)
    expected: int | None = 0
    missing: list[TensorInfo] = []
    for info in tensors:
        nbytes, start = info.nbytes, info.offset
        if expected is not None and start != expected:
            _misplaced(report, info, expected, alignment)
            if data_start + start > size:  # nonsense: go on as if it had been right
                start = expected
        if nbytes is None:
            expected = None  # of unknown size: where the next one starts cannot be told
            continue
        expected = align(start + nbytes, alignment)
        if data_start <= size < data_start + info.offset + nbytes:
            missing.append(info)
    if missing:
        _missing(report, missing, data_start, size)
    if expected is not None and size > data_start + expected:
        from atlas_kit.formats.gguf.check_data import check_surplus

        end = data_start + expected
        if not _joined(report, source, end) and not check_surplus(report, source, tensors, data_start, end):
            _trailing(report, source, end)


def _missing(report: Report, missing: list[TensorInfo], data_start: int, size: int) -> None:
    """Say what a file that was cut off has lost, in one line however many tensors that is."""

    def lost(info: TensorInfo) -> int:
        return min(data_start + info.offset + (info.nbytes or 0) - size, info.nbytes or 0)

    first = min(missing, key=lambda info: info.offset)
    message = f"{lost(first)} of the tensor's {first.nbytes} bytes are past the end of the file"
    others = [info for info in missing if info is not first]
    if others:
        number = f"{len(others)} more tensors" if len(others) > 1 else "one more tensor"
        message += f", and {sum(map(lost, others))} bytes of {number}"
    report.error(
        "tensor-data-missing",
        message,
        _ANEW,
        remedy=_MEND,
        offset=data_start + first.offset,
        key=first.name,
    )


def _check_mapping(report: Report, alignment: int, data_start: int) -> None:
    if alignment >= MAPPED_ALIGNMENT:
        return
    if data_start % MAPPED_ALIGNMENT:
        report.error(
            "alignment-unmappable",
            f"tensor data starts at byte {data_start}, which is not a multiple of {MAPPED_ALIGNMENT} (the alignment is "
            f"{alignment}): llama.cpp aborts when it maps the file",
            "It loads where mapping is turned off.",
            remedy=_MEND,
            offset=data_start,
            key="general.alignment",
        )
    else:
        message = f"an alignment of {alignment} is below {MAPPED_ALIGNMENT}: some backends of llama.cpp abort"
        report.warning("alignment-small", message, remedy=_MEND, key="general.alignment")


def _misplaced(report: Report, info: TensorInfo, expected: int, alignment: int) -> None:
    if info.offset % alignment:
        code, what = "tensor-offset-unaligned", f"is not a multiple of {alignment}"
    elif info.offset > expected:
        code, what = "tensor-gap", f"leaves {info.offset - expected} bytes unused"
    else:
        code, what = "tensor-overlap", "does not follow the tensor before it"
    report.error(
        code,
        f"its offset {info.offset} {what}: llama.cpp wants {expected}",
        remedy=_MEND,
        offset=info.info_offset + info.info_size - 8,
        key=info.name,
    )


def _joined(report: Report, source: Source, end: int) -> bool:
    """Tell, and say, whether another GGUF file begins where this one ends."""
    size = source.size
    at = end - 64 + source.read_upto(max(0, end - 64), 192).find(tables.MAGIC) if end >= 64 else -1
    if at >= end - 64 and source.read_upto(at + 4, 4) in (b"\1\0\0\0", b"\2\0\0\0", b"\3\0\0\0"):
        if source.read_upto(at, 4096) == source.read_upto(0, min(4096, at)) and 2 * at == size:
            message = "the whole file is there twice, one after the other"
            report.warning("file-doubled", message, "Only the first half is read.", offset=at)
            return True
        message = "another GGUF file begins here: shards or files were put together, as with cat"
        report.warning("files-joined", message, offset=at, remedy=Remedy("join-shards"))
        return True
    return False


def _trailing(report: Report, source: Source, end: int) -> None:
    message = f"{source.size - end} bytes follow what the header describes"
    hint = "llama.cpp ignores them; tools that rewrite the file drop them."
    report.note("trailing-bytes", message, hint, offset=end)


__all__ = ["check_gguf", "is_ok", "read_records"]
