"""Mending a damaged GGUF file: a copy that keeps everything intact and that stock llama.cpp can read again.

``salvage`` finds the records, ``placement`` the tensors' data; here duplicates, nested arrays and wrong types
are put right, and a new file is laid out. The input is never touched. What cannot be kept goes to a
lost-and-found file beside the output.
"""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, Any, Literal

from atlas_kit.errors import FileCorruptError, InvalidParamError, printable
from atlas_kit.formats.findings import Finding
from atlas_kit.formats.gguf import check_model, tables
from atlas_kit.formats.gguf.check import MAPPED_ALIGNMENT, check_gguf, read_records
from atlas_kit.formats.gguf.layout import layout
from atlas_kit.formats.gguf.placement import Placement, correct_infos, place, running
from atlas_kit.formats.gguf.salvage import Salvage, TailSource, salvage
from atlas_kit.formats.gguf.scan import align, scan_header
from atlas_kit.formats.gguf.tables import ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.storage.atomic import atomic_write, write_atomically
from atlas_kit.storage.given import Given, name_of, same_file, use_source
from atlas_kit.storage.source import Source, StrPath

#: Of one lost record so many bytes are kept in the lost-and-found file.
_MAX_LOST = 1 << 20
#: Tensors are not filled up with zeros beyond so many times the file, when their sizes and offsets disagree
#: (one of them is damaged), or beyond so many bytes at all.
_MAX_GROWTH = 16
_LEAST_GROWTH = 1 << 20
_MOST_GROWTH = 1 << 40
_ZEROS = bytes(1 << 16)
#: No tensor info is longer than this: name, four dimensions and the rest.
_LONGEST_INFO = 1024
#: Counts above this are damage, not records that were lost.
_PLAUSIBLE_COUNT = 1 << 20

State = Literal["intact", "damaged", "missing", "dropped"]


@dataclass(frozen=True)
class MendAction:
    """One thing that was put right: ``offset`` is where in the input, ``key`` the key or tensor."""

    code: str
    message: str
    offset: int | None = None
    key: str | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the action as JSON-ready data."""
        return {
            "code": self.code,
            "message": printable(self.message),
            "offset": self.offset,
            "key": None if self.key is None else printable(self.key),
        }


@dataclass(frozen=True)
class TensorFate:
    """What became of one tensor.

    ``intact`` (all bytes there), ``damaged`` (``missing`` bytes at its end are zeros now), ``missing`` (all
    of it is zeros now) or ``dropped`` (not in the output).
    """

    name: str
    state: State
    nbytes: int
    missing: int
    offset: int | None

    def to_json(self) -> dict[str, Any]:
        """Return the fate as JSON-ready data."""
        return {
            "name": printable(self.name),
            "state": self.state,
            "nbytes": self.nbytes,
            "missing": self.missing,
            "offset": self.offset,
        }


@dataclass
class MendResult:
    """What was done, what was kept and what was lost.

    Attributes
    ----------
    saved, lost
        Records (metadata pairs and tensors) that are whole in the output, and that are not.
    before, after
        Findings about the input and about the output (empty on a dry run).
    lost_file
        The lost-and-found file, if one was written.
    """

    path: str | None
    out: str | None
    saved: int = 0
    lost: int = 0
    actions: list[MendAction] = field(default_factory=list)
    tensors: list[TensorFate] = field(default_factory=list)
    before: list[Finding] = field(default_factory=list)
    after: list[Finding] = field(default_factory=list)
    lost_file: str | None = None

    @property
    def changed(self) -> bool:
        """Whether there was anything to mend."""
        return bool(self.actions)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "path": self.path,
            "out": self.out,
            "saved": self.saved,
            "lost": self.lost,
            "actions": [action.to_json() for action in self.actions],
            "tensors": [tensor.to_json() for tensor in self.tensors],
            "before": [finding.to_json() for finding in self.before],
            "after": [finding.to_json() for finding in self.after],
            "lost_file": self.lost_file,
        }


@dataclass
class _Piece:
    """A tensor on its way: ``start`` in the input (``None``: nowhere), bytes there and bytes needed."""

    info: TensorInfo
    nbytes: int
    start: int | None
    there: int


@dataclass
class _Plan:
    """The new file: its pairs, its tensors and where everything comes from."""

    source: Source
    version: int
    byte_order: str
    fields: list[MetadataField]
    raw: Callable[[int, int], bytes]
    same_dialect: bool
    pieces: list[_Piece] = field(default_factory=list)
    alignment: int = tables.DEFAULT_ALIGNMENT
    tail: tuple[int, int] = (0, 0)
    lost: list[dict[str, Any]] = field(default_factory=list)


def mend_gguf(
    given: Given,
    out: StrPath | None,
    *,
    dry_run: bool = False,
    drop_damaged: bool = False,
    progress: Callable[[int], object] | None = None,
) -> MendResult:
    """Write a mended copy of a GGUF file; tensor data is copied in bounded memory.

    Parameters
    ----------
    out
        The new file; may be ``None`` on a dry run. What had to be left out goes to ``OUT.lost.json``.
    dry_run
        Only say what would be done.
    drop_damaged
        Leave out tensors of which bytes are missing, instead of filling them up with zeros (which keeps the
        model loadable).
    progress
        Called with the number of bytes of tensor data written since the last call.

    Raises
    ------
    FileCorruptError
        Nothing of a GGUF file could be found.
    InvalidParamError
        ``out`` is the input.
    """
    if out is None and not dry_run:
        raise InvalidParamError("a mended copy needs a name", path=name_of(given))
    if out is not None and same_file(given, out):
        raise InvalidParamError(
            "the input is never overwritten", path=name_of(given), hint="Give the mended copy another name."
        )
    with use_source(given) as source:
        result = MendResult(source.path, None if out is None else os.fspath(out), before=check_gguf(source))
        plan = _plan(source, result, drop_damaged=drop_damaged)
        result.saved += sum(fate.state == "intact" for fate in result.tensors)
        result.lost += sum(fate.state != "intact" for fate in result.tensors)
        if dry_run or out is None:
            return result
        with atomic_write(out) as file:
            _write(file, plan, progress)
    if plan.lost:
        result.lost_file = os.fspath(Path(out).with_name(Path(out).name + ".lost.json"))
        content = {"file": result.path, "lost": plan.lost}
        write_atomically(result.lost_file, json.dumps(content, indent=1, ensure_ascii=True).encode() + b"\n")
    result.after = check_gguf(out)
    return result


# --- planning ---------------------------------------------------------------------------------------------


def _plan(source: Source, result: MendResult, *, drop_damaged: bool) -> _Plan:
    found = _find(source, result)
    plan = _Plan(
        found.source,
        3 if found.version == 1 else found.version,
        found.byte_order,
        [],
        found.raw,
        same_dialect=found.version != 1,
    )
    if found.version == 1:
        result.actions.append(MendAction("version-upgraded", "version 1 was rewritten as version 3", 4))
    for gap in found.lost:
        _lose(plan, result, gap.start, gap.stop, gap.why, found.raw(gap.start, gap.stop))
    _keep_fields(plan, result, found)
    declared = _declared_alignment(plan.fields)
    tensors = _correct(result, _keep_tensors(result, found.tensors), found, declared)
    sizes = _sizes(tensors, found.source.size)
    damaged = _is_damaged(found)
    misfits = tuple(info.offset for info in tensors) != running(sizes, declared or tables.DEFAULT_ALIGNMENT)
    placed = place(tensors, sizes, found.end, found.source, declared, shifted=damaged or misfits)
    if _is_cut(found, sum(sizes)):
        placed = replace(placed, data_start=align(found.end, placed.alignment), starts=(None,) * len(sizes))
        _lose_rest(plan, result, found)
    if not placed.exact and damaged and found.tensors:
        message = "records of the header are damaged, so the place of all data is a guess: compare hashes"
        result.actions.append(MendAction("placement-uncertain", message, found.end))
    _choose_alignment(plan, result, placed, declared, found.end)
    _tell_placement(result, placed, tensors, sizes, found.end)
    _take_tensors(plan, result, tensors, sizes, placed, drop_damaged=drop_damaged)
    tail = align(placed.stop, placed.alignment) if tensors else found.end
    if not any(piece.there < piece.nbytes for piece in plan.pieces):
        plan.tail = (tail, max(0, found.source.size - tail))
    return plan


def _find(source: Source, result: MendResult) -> Salvage:
    """Return the records of the file: the header's own if it is sound, else all that can be found."""
    sound = read_records(source)
    if sound is not None:
        scan = scan_header(source)
        return Salvage(
            source, scan.version or 3, scan.byte_order, tensor_count=scan.tensor_count,
            field_count=scan.field_count, fields=scan.fields, tensors=scan.tensors, end=scan.end,
            stream=scan.stream,
        )  # fmt: skip
    found = salvage(source)
    if not found.fields and not found.tensors:
        raise FileCorruptError(
            "nothing of a GGUF file could be found in it", path=source.path, hint="Is it the right file?"
        )
    add = result.actions.append
    if found.base:
        add(MendAction("prefix-removed", f"{found.base} bytes before the magic were removed", 0))
    if not found.head_ok:
        add(MendAction("magic-restored", f"magic and version were written anew (version {found.version})", 0))
    for what, offset, promised, there in (
        ("metadata pairs", 16, found.field_count, len(found.fields)),
        ("tensors", 8, found.tensor_count, len(found.tensors)),
    ):
        if promised != there:
            add(
                MendAction(
                    "count-corrected", f"the header promised {promised} {what}; {there} were found", offset
                )
            )
    for name in found.healed:
        add(MendAction("length-corrected", "a wrong length inside this record was found out", key=name))
    return found


def _is_damaged(found: Salvage) -> bool:
    """Tell whether records of the header are lost or had wrong lengths, so that bytes may be lacking."""
    counts = (found.field_count, found.tensor_count)
    return bool(found.lost or found.healed or counts != (len(found.fields), len(found.tensors)))


def _is_cut(found: Salvage, data: int) -> bool:
    """Tell whether the file ends inside its header: what follows the last record is a piece of one."""
    rest = found.source.size - found.end
    short = len(found.fields) < (found.field_count or 0) or len(found.tensors) < (found.tensor_count or 0)
    return short and 0 < rest < _LONGEST_INFO and (rest < data or not found.tensors)


def _lose_rest(plan: _Plan, result: MendResult, found: Salvage) -> None:
    """Note the piece of a record at the end of a file that was cut off, and how many records are gone."""
    size = found.source.size
    raw = found.source.read(found.end, size - found.end)
    _lose(plan, result, found.end, size, "the file was cut off inside this record", raw)
    gone = max(0, (found.field_count or 0) - len(found.fields))
    gone += max(0, (found.tensor_count or 0) - len(found.tensors))
    result.lost += gone - 1 if gone <= _PLAUSIBLE_COUNT else 0


def _lose(
    plan: _Plan, result: MendResult, start: int, stop: int, why: str, raw: bytes, key: str | None = None
) -> None:
    """Note a record that is left out, with its bytes."""
    entry: dict[str, Any] = {"offset": start, "size": stop - start, "why": why}
    if key is not None:
        entry["key"] = printable(key)
    entry["base64"] = base64.b64encode(raw[:_MAX_LOST]).decode()
    plan.lost.append(entry)
    result.lost += 1
    result.actions.append(
        MendAction("record-left-out", f"{stop - start} bytes were left out: {why}", start, key)
    )


def _keep_fields(plan: _Plan, result: MendResult, found: Salvage) -> None:
    """Choose the pairs that go into the new file."""
    seen: dict[str, bytes] = {}
    wanted = _wanted_types(found.fields)
    for item in found.fields:
        start, stop = item.offset, item.offset + item.size
        value = found.raw(start, stop)
        if not item.key:
            _lose(plan, result, start, stop, "its key is empty", value)
        elif item.key in seen:
            if value == seen[item.key]:
                message = "the second of two equal pairs was left out"
                result.actions.append(MendAction("duplicate-removed", message, start, item.key))
            else:
                _lose(plan, result, start, stop, "another pair before it has the same key", value, item.key)
        elif item.element_type == ValueType.ARRAY:
            _lose(
                plan,
                result,
                start,
                stop,
                "it is an array of arrays, which llama.cpp refuses",
                value,
                item.key,
            )
        else:
            plan.fields.append(_with_type(item, wanted.get(item.key), result))
            result.saved += 1
        seen.setdefault(item.key, value)


def _wanted_types(fields: list[MetadataField]) -> dict[str, ValueType]:
    name = next(
        (f.items for f in fields if f.key == "general.architecture" and f.type == ValueType.STRING), ""
    )
    return check_model.required_types(str(name))


def _with_type(item: MetadataField, wanted: ValueType | None, result: MendResult) -> MetadataField:
    """Return a pair in the type that llama.cpp takes, if its number can be written so without loss."""
    if wanted is None or item.type == wanted or item.is_array or isinstance(item.items, str):
        return item
    value = item.items
    if wanted == ValueType.STRING or (wanted == ValueType.BOOL and value not in (0, 1)):
        return item
    if wanted == ValueType.FLOAT32:
        value = float(value)
    elif value != int(value):
        return item
    else:
        value = bool(value) if wanted == ValueType.BOOL else int(value)
    try:
        made = MetadataField.make(item.key, value, wanted)
    except InvalidParamError:  # too large for the type
        return item
    message = f"the value was written as {made.type_name} instead of {item.type_name}"
    result.actions.append(MendAction("type-corrected", message, item.value_offset, item.key))
    return made


def _declared_alignment(fields: list[MetadataField]) -> int | None:
    item = next((f for f in fields if f.key == "general.alignment"), None)
    if item is None:
        return tables.DEFAULT_ALIGNMENT
    value = item.items
    if item.type != ValueType.UINT32 or not 0 < value <= tables.MAX_ALIGNMENT or value & (value - 1):
        return None
    return int(value)


def _keep_tensors(result: MendResult, tensors: list[TensorInfo]) -> list[TensorInfo]:
    """Leave out tensors without a name and all but the first of one name, except for their place."""
    seen: set[str] = set()
    kept = []
    for info in tensors:
        if not info.name or info.name in seen:
            message = "a tensor before it has the same name" if info.name else "it has no name"
            result.actions.append(MendAction("tensor-left-out", message, info.info_offset, info.name))
            result.tensors.append(TensorFate(info.name, "dropped", info.nbytes or 0, 0, None))
        kept.append(info)
        seen.add(info.name)
    return kept


def _correct(
    result: MendResult, tensors: list[TensorInfo], found: Salvage, declared: int | None
) -> list[TensorInfo]:
    """Put right shapes and types that follow from the tensors around them."""
    alignment = declared or tables.DEFAULT_ALIGNMENT
    complete = not found.lost and len(tensors) == found.tensor_count
    corrections = correct_infos(tensors, found.end, found.source.size, alignment, complete=complete)
    for index, info, what in corrections:
        old = tensors[index]
        message = (
            f"its {what} was damaged ({_describe(old)}) and follows from its neighbours: {_describe(info)}"
        )
        result.actions.append(MendAction("tensor-corrected", message, old.info_offset, old.name))
        tensors[index] = info
    if complete and len(tensors) == len({info.name for info in tensors}):
        _restore_names(result, tensors)
    return tensors


def _restore_names(result: MendResult, tensors: list[TensorInfo]) -> None:
    """Give a tensor whose name nobody knows the name of the one that is missing, if they are alike."""
    missing = [f.key for f in result.before if f.code == "tensor-missing" and f.severity == "error"]
    unexpected = {f.key for f in result.before if f.code == "tensor-unexpected" and f.severity == "error"}
    for index, info in enumerate(tensors):
        if info.name not in unexpected:
            continue
        alike = [name for name in missing if name is not None and _alike(name, info.name)]
        if len(alike) != 1:
            continue
        missing.remove(alike[0])
        message = f"its name was damaged and is {alike[0]} now: that tensor was missing"
        result.actions.append(MendAction("name-restored", message, info.info_offset, info.name))
        tensors[index] = replace(info, name=alike[0])


def _alike(one: str, other: str) -> bool:
    """Tell whether two names differ only in a few letters."""
    return len(one) == len(other) and sum(a != b for a, b in zip(one, other, strict=True)) * 2 < len(one)


def _describe(info: TensorInfo) -> str:
    return f"{' x '.join(map(str, info.dims))} {info.type_name}"


def _sizes(tensors: list[TensorInfo], size: int) -> list[int]:
    """Return the bytes of each tensor; of an unknown type, those up to the next one's offset."""
    offsets = sorted({info.offset for info in tensors} | {size})
    out = []
    for info in tensors:
        nbytes = info.nbytes
        if nbytes is None:
            after = next((offset for offset in offsets if offset > info.offset), info.offset)
            nbytes = after - info.offset if after < size else 0
        out.append(nbytes)
    return out


def _choose_alignment(
    plan: _Plan, result: MendResult, placed: Placement, declared: int | None, end: int
) -> None:
    """Settle the alignment of the new file, and the key that says so."""
    item = next((f for f in plan.fields if f.key == "general.alignment"), None)
    new = placed.alignment
    unmappable = align(end, new) % MAPPED_ALIGNMENT != 0
    if new < MAPPED_ALIGNMENT and (unmappable or declared is None or declared > new):
        new = MAPPED_ALIGNMENT
    plan.alignment = new
    right = item is not None and item.type == ValueType.UINT32 and item.items == new
    if right or (item is None and new == tables.DEFAULT_ALIGNMENT):
        return
    made = MetadataField.make("general.alignment", new, ValueType.UINT32)
    if item is None:
        plan.fields.append(made)
        message = f"the tensors are aligned to {new} bytes, and the file did not say so"
        result.actions.append(MendAction("alignment-corrected", message, key=made.key))
        return
    plan.fields[plan.fields.index(item)] = made
    message = f"the alignment is {new} now and was {item.items!r} ({item.type_name})"
    result.actions.append(MendAction("alignment-corrected", message, item.value_offset, item.key))


def _tell_placement(
    result: MendResult, placed: Placement, tensors: list[TensorInfo], sizes: list[int], end: int
) -> None:
    """Say what will be different about the tensors' places."""
    if not tensors:
        return
    add = result.actions.append
    if placed.data_start != align(end, placed.alignment) and placed.exact:
        add(MendAction("padding-restored", "the padding before the tensor data was missing", end))
    wanted = running(sizes, placed.alignment)
    for info, offset in zip(tensors, wanted, strict=True):
        if info.offset != offset:
            message = f"its offset {info.offset} is {offset} now"
            if placed.kind == "declared":
                message += " (the data was there, with a gap or in another order)"
            add(MendAction("offset-corrected", message, info.info_offset + info.info_size - 8, info.name))


def _take_tensors(
    plan: _Plan,
    result: MendResult,
    tensors: list[TensorInfo],
    sizes: list[int],
    placed: Placement,
    *,
    drop_damaged: bool,
) -> None:
    """Choose the tensors that go into the new file, and say what became of each."""
    truthful = all(
        info.offset == offset for info, offset in zip(tensors, running(sizes, placed.alignment), strict=True)
    )
    limit = _MOST_GROWTH if truthful else max(plan.source.size * _MAX_GROWTH, _LEAST_GROWTH)
    seen: set[str] = set()
    filled = 0
    for info, nbytes, start in zip(tensors, sizes, placed.starts, strict=True):
        if not info.name or info.name in seen:
            continue
        seen.add(info.name)
        there = 0 if start is None else max(0, min(nbytes, plan.source.size - start))
        missing = nbytes - there
        state: State = "intact" if not missing else "damaged" if there else "missing"
        filled += missing
        if missing and (drop_damaged or filled > limit):
            filled -= missing
            state = "dropped"
        else:
            plan.pieces.append(_Piece(info, nbytes, start, there))
        result.tensors.append(TensorFate(info.name, state, nbytes, missing, start))
        if missing:
            message = (
                f"{missing} of its {nbytes} bytes are not in the file: "
                f"{'it was left out' if state == 'dropped' else 'they are zeros now'}"
            )
            result.actions.append(MendAction(f"tensor-{state}", message, start, info.name))


# --- writing ----------------------------------------------------------------------------------------------


def _write(file: IO[bytes], plan: _Plan, progress: Callable[[int], object] | None) -> None:
    schema = layout(plan.version, plan.byte_order)
    sizes = [piece.nbytes for piece in plan.pieces]
    head = schema.prefix.build(
        {"version": plan.version, "tensor_count": len(plan.pieces), "metadata_kv_count": len(plan.fields)}
    )
    file.write(head)
    for item in plan.fields:
        if item.offset >= 0 and plan.same_dialect:
            file.write(plan.raw(item.offset, item.offset + item.size))
        else:
            file.write(schema.key_value.build(item.to_schema()))
    for piece, offset in zip(plan.pieces, running(sizes, plan.alignment), strict=True):
        file.write(schema.tensor_info.build({**piece.info.to_schema(), "offset": offset}))
    if plan.pieces:
        _pad(file, plan.alignment)
    for piece in plan.pieces:
        if piece.start is not None:
            for chunk in plan.source.chunks(piece.start, piece.there):
                file.write(chunk)
                if progress is not None:
                    progress(len(chunk))
        _zeros(file, piece.nbytes - piece.there)
        _pad(file, plan.alignment)
    for chunk in plan.source.chunks(*plan.tail):
        file.write(chunk)


def _pad(file: IO[bytes], alignment: int) -> None:
    _zeros(file, -file.tell() % alignment)


def _zeros(file: IO[bytes], count: int) -> None:
    if count <= len(_ZEROS):
        file.write(_ZEROS[:count])
    else:  # a hole costs no space on most file systems
        file.seek(count - 1, os.SEEK_CUR)
        file.write(_ZEROS[:1])


__all__ = ["MendAction", "MendResult", "TailSource", "TensorFate", "mend_gguf"]
