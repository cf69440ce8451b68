"""Mending a damaged GGUF file: a copy that keeps everything intact and that stock llama.cpp can read again.

``salvage`` finds the records, ``placement`` the tensors' data; here duplicates, nested arrays and wrong types
are put right, and a new file is laid out. The input is never touched. What cannot be kept goes to a
lost-and-found file beside the output.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import IO, Any, Literal

from atlas_kit.errors import FileCorruptError, InvalidParamError, printable
from atlas_kit.formats.findings import Finding
from atlas_kit.formats.gguf import check_model, tables
from atlas_kit.formats.gguf.check import MAPPED_ALIGNMENT, check_gguf, read_records
from atlas_kit.formats.gguf.layout import layout
from atlas_kit.formats.gguf.lost_file import Lost, lost_name, write_lost
from atlas_kit.formats.gguf.placement import Placement, correct_infos, place, running
from atlas_kit.formats.gguf.rebuild import rebuild
from atlas_kit.formats.gguf.salvage import Salvage, TailSource, salvage
from atlas_kit.formats.gguf.scan import align, scan_header
from atlas_kit.formats.gguf.tables import ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.formats.weights.repeats import resumed
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.given import Given, Progress, name_of, same_file, use_source
from atlas_kit.storage.source import Source, StrPath

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

#: Actions that tell of a loss; all others tell of something put right.
_LOSSES = {"record-left-out", "records-gone"}
_LOSSES |= {f"tensor-{how}" for how in ("left-out", "damaged", "missing", "dropped")}

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
    of it is zeros now) or ``dropped`` (not in the output). ``spare``: another tensor of the output is the
    same in all, so that nothing is lost with it. ``why`` says it in words, where it is not intact.
    """

    name: str
    state: State
    nbytes: int
    missing: int
    offset: int | None
    why: str = ""
    spare: bool = False

    @property
    def lost(self) -> bool:
        """Whether bytes of it are not in the output."""
        return self.state != "intact" and not self.spare

    def to_json(self) -> dict[str, Any]:
        """Return the fate as JSON-ready data."""
        return {
            "name": printable(self.name),
            "state": self.state,
            "nbytes": self.nbytes,
            "missing": self.missing,
            "offset": self.offset,
            "why": self.why,
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
    written
        Whether there is an output.
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
    written: bool = False

    @property
    def changed(self) -> bool:
        """Whether there was anything to mend."""
        return bool(self.actions)

    @property
    def mended(self) -> int:
        """Actions by which something was put right, not left out or filled with zeros."""
        return sum(action.code not in _LOSSES for action in self.actions)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            "path": self.path,
            "out": self.out if self.written else None,
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
    lost: list[Lost] = field(default_factory=list)


def mend_gguf(
    given: Given,
    out: StrPath | None,
    *,
    dry_run: bool = False,
    drop_damaged: bool = False,
    only_changed: bool = False,
    deep: bool = False,
    progress: Callable[[int], object] | None = None,
    reading: Progress | None = None,
) -> MendResult:
    """Write a mended copy of a GGUF file; tensor data is copied in bounded memory.

    Parameters
    ----------
    out
        The new file; may be ``None`` on a dry run. What was lost goes to ``OUT.lost.json``; where nothing
        was, one that an earlier repair left there is removed.
    dry_run
        Only say what would be done.
    drop_damaged
        Leave out tensors of which bytes are missing, instead of filling them up with zeros (which keeps the
        model loadable).
    only_changed
        Write nothing where there is nothing to mend.
    deep
        Also look at all tensor data, before and after: nothing of that can be mended, but said.
    progress
        Called with the number of bytes of tensor data written since the last call.
    reading
        Called while tensor data are looked at.

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
        result = MendResult(source.path, None if out is None else os.fspath(out))
        result.before = check_gguf(source, deep=deep, progress=reading)
        twice = _written_twice(source)
        if twice is not None:
            _take_out(source, out, result, *twice, dry_run=dry_run, progress=progress)
            if result.written and out is not None:
                result.after = check_gguf(out, deep=deep, progress=reading)
            return result
        plan = _plan(source, result, drop_damaged=drop_damaged)
        result.saved += sum(fate.state == "intact" for fate in result.tensors)
        result.lost += sum(fate.lost for fate in result.tensors)
        if dry_run or out is None or (only_changed and not result.changed):
            return result
        try:
            with atomic_write(out) as file:
                _write(file, plan, progress)
                result.lost_file = write_lost(out, result.path, plan.lost)  # it must not come too late
        except BaseException:
            if result.lost_file is not None:
                lost_name(out).unlink(missing_ok=True)
            raise
        result.written = True
    result.after = check_gguf(out, deep=deep, progress=reading)
    return result


# --- bytes that a download wrote twice ------------------------------------------------------------------------


def _written_twice(source: Source) -> tuple[int, int] | None:
    """Return where a download that is too long was resumed too early, and how many bytes it wrote again.

    The header is sound, and the file is longer than its tensors by just as many bytes: without them it is whole.
    """
    if source.size > _MOST_GROWTH or read_records(source) is None:
        return None
    scan = scan_header(source)
    if scan.data_start is None:
        return None
    ends = [scan.data_start + info.offset + (info.nbytes or 0) for info in scan.tensors]
    if not ends or any(info.nbytes is None for info in scan.tensors):
        return None
    last = max(ends)
    alignment = _declared_alignment(scan.fields) or tables.DEFAULT_ALIGNMENT
    for surplus in dict.fromkeys((source.size - align(last, alignment), source.size - last)):
        found = resumed(source, surplus)
        if found is not None and found[1] >= surplus and found[0] + surplus < last:
            return found[0], surplus
    return None


def _take_out(
    source: Source, out: StrPath | None, result: MendResult, start: int, size: int, *, dry_run: bool,
    progress: Callable[[int], object] | None,
) -> None:  # fmt: skip
    """Write the file without bytes that are there twice."""
    message = f"{size} bytes that a download wrote twice were taken out"
    result.actions.append(MendAction("repeated-removed", message, start + size))
    scan = scan_header(source)
    result.saved = len(scan.fields) + len(scan.tensors)
    result.tensors = [
        TensorFate(info.name, "intact", info.nbytes or 0, 0, (scan.data_start or 0) + info.offset)
        for info in scan.tensors
    ]
    if dry_run or out is None:
        return
    with atomic_write(out) as file:
        for first, stop in ((0, start), (start + size, source.size)):
            for chunk in source.chunks(first, stop - first):
                file.write(chunk)
                if progress is not None:
                    progress(len(chunk))
        write_lost(out, result.path, [])
    result.written = True


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
    tensors = _correct(result, list(found.tensors), found, declared)
    sizes = _sizes(tensors, found.source.size)
    damaged = _is_damaged(found)
    misfits = tuple(info.offset for info in tensors) != running(sizes, declared or tables.DEFAULT_ALIGNMENT)
    placed = place(tensors, sizes, found.end, found.source, declared, shifted=damaged or misfits)
    cut = _is_cut(found, sum(sizes))
    if cut:
        placed = replace(placed, data_start=align(found.end, placed.alignment), starts=(None,) * len(sizes))
    _count_gone(plan, result, found, placed, cut=cut)
    if not placed.exact and damaged and found.tensors:
        message = "records of the header are damaged, so the place of all data is a guess: compare hashes"
        result.actions.append(MendAction("placement-uncertain", message, found.end))
    _choose_alignment(plan, result, placed, declared, found.end)
    _tell_placement(result, placed, tensors, sizes, found.end)
    _take_tensors(plan, result, tensors, sizes, placed, drop_damaged=drop_damaged or cut)
    tail = align(placed.stop, placed.alignment) if tensors else found.end
    readable = bool(tensors) or not found.tensor_count  # what nobody finds a tensor in is no part of a model
    if readable and not cut and not any(piece.there < piece.nbytes for piece in plan.pieces):
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
    found.end = _behind_zeros(found)
    add = result.actions.append
    for name in rebuild(found):
        message = (
            "its record is lost and was made again: the other layers and the room for its data leave one"
        )
        add(MendAction("record-rebuilt", message, key=name))
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


def _behind_zeros(found: Salvage) -> int:
    """Return where the header may end if zeros took the place of its last tensor infos: no padding is so long."""
    short = (found.tensor_count or 0) - len(found.tensors)
    if not found.tensors or not 0 < short <= _PLAUSIBLE_COUNT:
        return found.end
    alignment = _declared_alignment(found.fields) or tables.DEFAULT_ALIGNMENT
    behind = found.source.read_upto(found.end, short * _LONGEST_INFO)
    zeros = len(behind) - len(behind.lstrip(b"\0"))
    stop = found.end + zeros
    stop -= stop % alignment
    return stop if stop > align(found.end, alignment) and zeros < len(behind) else found.end


def _is_damaged(found: Salvage) -> bool:
    """Tell whether records of the header are lost or had wrong lengths, so that bytes may be lacking."""
    counts = (found.field_count, found.tensor_count)
    return bool(
        found.lost or found.healed or found.cut_out or counts != (len(found.fields), len(found.tensors))
    )


def _is_cut(found: Salvage, data: int) -> bool:
    """Tell whether the file ends inside its header: what follows the last record is at most a piece of one."""
    rest = found.source.size - found.end
    short = len(found.fields) < (found.field_count or 0) or len(found.tensors) < (found.tensor_count or 0)
    return short and rest < _LONGEST_INFO and (rest < data or not found.tensors)


def _count_gone(plan: _Plan, result: MendResult, found: Salvage, placed: Placement, *, cut: bool) -> None:
    """Note the records that the header counts and that are nowhere, and what is left of one at a file's end.

    A count alone may be wrong, too: records are gone where there is more to show for it, which is that the
    file ends among them, that bytes cannot be read, or that the tensors found are not all that the data is.
    """
    source, missing = found.source, len(found.lost)
    if cut and source.size > found.end:
        why, missing = "the file was cut off inside this record", missing + 1
        _lose(plan, result, found.end, source.size, why, source.read(found.end, source.size - found.end))
    gone = {
        "metadata pairs": (found.field_count or 0) - len(found.fields) if missing or cut else 0,
        "tensors": (found.tensor_count or 0) - len(found.tensors),
    }
    if not missing and not cut and found.tensors and (placed.exact or placed.stop >= source.size):
        gone["tensors"] = 0
    for what, count in gone.items():
        if not 0 < count <= _PLAUSIBLE_COUNT:
            continue
        more = max(0, count - missing)
        missing = max(0, missing - count)
        if more:
            message = f"{count} {what} that the header promises are gone"
            result.actions.append(MendAction("records-gone", message, found.end))
            plan.lost.append(Lost({"offset": found.end, "records": more, "why": message}))
            result.lost += more


def _lose(
    plan: _Plan, result: MendResult, start: int, stop: int, why: str, raw: bytes, key: str | None = None
) -> None:
    """Note a record that is left out, with its bytes."""
    facts: dict[str, Any] = {"offset": start, "size": stop - start, "why": why}
    if key is not None:
        facts["key"] = printable(key)
    plan.lost.append(Lost(facts, [raw]))
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
    if complete and len(tensors) == len({info.name.partition("\0")[0] for info in tensors}):
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
    new = max(new, MAPPED_ALIGNMENT)  # below it some backends of llama.cpp abort
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
    first: dict[str, _Piece] = {}
    filled = 0
    for info, nbytes, start in zip(tensors, sizes, placed.starts, strict=True):
        there = 0 if start is None else max(0, min(nbytes, plan.source.size - start))
        piece, missing = _Piece(info, nbytes, start, there), nbytes - there
        name = info.name.partition("\0")[0]  # as llama.cpp reads it
        if not info.name or name in first:
            _leave_out(plan, result, piece, first.get(name))
            continue
        first[name] = piece
        state: State = "intact" if not missing else "damaged" if there else "missing"
        filled += missing
        if missing and (drop_damaged or filled > limit):
            filled -= missing
            state = "dropped"
        else:
            plan.pieces.append(piece)
        why = f"{missing:,} of {nbytes:,} bytes are missing" if missing else ""
        result.tensors.append(TensorFate(info.name, state, nbytes, missing, start, why))
        if missing:
            _lose_tensor(plan, piece, state, why)
            message = (
                f"{missing} of its {nbytes} bytes are not in the file: "
                f"{'it was left out' if state == 'dropped' else 'they are zeros now'}"
            )
            result.actions.append(MendAction(f"tensor-{state}", message, start, info.name))


def _leave_out(plan: _Plan, result: MendResult, piece: _Piece, twin: _Piece | None) -> None:
    """Leave out a tensor without a name, or the second of a name; its data is kept unless the first has it."""
    info = piece.info
    spare = twin is not None and _equal(plan.source, piece, twin)
    why = "it has no name"
    if twin is not None:
        why = f"a tensor before it has the same name and {'is equal to it' if spare else 'other data'}"
    code = "duplicate-removed" if spare else "tensor-left-out"
    result.actions.append(MendAction(code, why, info.info_offset, info.name))
    missing = piece.nbytes - piece.there
    result.tensors.append(TensorFate(info.name, "dropped", piece.nbytes, missing, piece.start, why, spare))
    if not spare:
        _lose_tensor(plan, piece, "dropped", why)


def _equal(source: Source, one: _Piece, other: _Piece) -> bool:
    """Tell whether two tensors are the same in all but their place."""
    shapes = [(piece.info.dims, piece.info.type, piece.nbytes, piece.there) for piece in (one, other)]
    if shapes[0] != shapes[1]:
        return False
    if one.start is None or other.start is None or one.start == other.start:
        return one.start == other.start
    pairs = zip(source.chunks(one.start, one.there), source.chunks(other.start, other.there), strict=True)
    return all(bytes(a) == bytes(b) for a, b in pairs)


def _lose_tensor(plan: _Plan, piece: _Piece, state: State, why: str) -> None:
    """Note a tensor that is not what it was; the data of one that is not in the output is kept."""
    info = piece.info
    facts = {
        "tensor": printable(info.name),
        "state": state,
        "why": why,
        "offset": piece.start,
        "size": piece.nbytes,
        "missing": piece.nbytes - piece.there,
        "dims": list(info.dims),
        "type": info.type_name,
    }
    kept = state == "dropped" and piece.there and piece.start is not None
    data = plan.source.chunks(piece.start or 0, piece.there) if kept else None
    plan.lost.append(Lost(facts, data))


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
