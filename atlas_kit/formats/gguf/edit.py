"""Changing metadata: set, delete and rename keys, in place where the new header fits, else by a new file.

In place nothing but the header is written: what is left over of its old space is filled with the key
``atlas.pad``, so that tensor data stays where it is, and the next edit can use that room. A journal
(``journal.py``) makes an interrupted edit recoverable. A new file is written atomically, its tensor data
copied in bounded memory. Values that are not touched keep their bytes, whatever they are.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from atlas_kit.errors import AtlasError, DataTooLargeError, InvalidParamError, KeyNotFoundError, Remedy
from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.journal import grow_start, recover_journal, replace_start
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.tables import PAD_KEY, ValueType
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.formats.gguf.values import MetadataField
from atlas_kit.formats.gguf.write import Progress, rebuilt_header, write_with_header
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.backup_files import keep_backup, prune
from atlas_kit.storage.given import Given, as_it_is_now, path_of
from atlas_kit.storage.ranges import block_size, sole_user
from atlas_kit.storage.source import StrPath, resolved

_MAX_KEY = 65_535
#: Room that is left for later edits where a large file had to be moved or written anew, and what is large: a smaller
#: one is copied in no time.
_ROOM, _LARGE = 1 << 16, 1 << 26


@dataclass(frozen=True)
class Set:
    """Give ``key`` a value. Without a type, an existing key keeps its own and a new one's is inferred."""

    key: str
    value: Any
    type: int | None = None
    element_type: int | None = None


@dataclass(frozen=True)
class Delete:
    """Remove ``key`` (every pair of that key)."""

    key: str


@dataclass(frozen=True)
class Rename:
    """Give the value of ``key`` another key; its place among the others stays."""

    key: str
    new_key: str


Change = Set | Delete | Rename


@dataclass(frozen=True)
class EditResult:
    """What an edit did.

    ``mode`` is ``"in-place"`` (only the header was written), ``"rewritten"`` (a whole file was) or
    ``"unchanged"``. ``reserved`` is the room that ``atlas.pad`` holds for later edits.
    """

    path: str
    mode: Literal["in-place", "rewritten", "unchanged"]
    header_size: int
    bytes_written: int
    reserved: int


def edit_metadata(
    given: Given,
    changes: Iterable[Change],
    out: StrPath | None = None,
    *,
    in_place: bool | None = None,
    reserve: int = 0,
    backup: bool | int = False,
    progress: Progress | None = None,
) -> EditResult:
    """Change the metadata of one GGUF file (of a split model: of this shard).

    Parameters
    ----------
    given
        The file's path, or a source of it that is open already: it stays so, and is read if its file has not changed.
    out
        Write the result here and leave the file alone. ``None`` changes the file itself.
    in_place
        ``None``: overwrite only the header where it fits, or can be made to fit by moving the data of a large file
        (``grow``), else replace the file by a new one. ``True``: fail where it does not fit. ``False``: always
        a new file.
    reserve
        When a new file is written, leave this many bytes of room for later edits in place. 0 is none, but for a large
        file that is replaced by a new one, which is to be for once.
    backup
        Keep what is there as ``NAME.bak``, as a copy where only the header is written; a number above 1: and so many
        in all, older ones with their time in the name.

    Raises
    ------
    KeyNotFoundError
        A key to delete or rename does not exist.
    InvalidParamError
        A value does not fit its type, a new key exists already, a change would move tensor data.
    DataTooLargeError
        ``in_place=True`` and the new header does not fit the old space.
    VersionMismatchError
        Version 1 is read-only.
    """
    changes = list(changes)
    path = path_of(given)
    if out is not None and resolved(out) == os.path.realpath(path):
        out, in_place = None, False
    if out is not None:
        if in_place:
            raise InvalidParamError("an edit in place has no other output file", path=path)
        with GGUFFile.open(given, shards=False) as file:
            return rewrite(file, changed(file, changes), out, reserve, backup, False, progress)
    if not os.path.exists(path):
        GGUFFile.open(path, shards=False)  # raises our error, before a lock file would be made
    with lock(path):
        recover_journal(path, locked=True)
        with GGUFFile.open(as_it_is_now(given), shards=False) as file:
            fields = changed(file, changes)
            if in_place is not False:
                plan = plan_in_place(file, fields)
                if plan is not None:
                    return overwrite(file, plan, int(backup))
                grown = None if backup else grow(file, fields)
                if grown is not None:
                    return grown
                if in_place:
                    raise DataTooLargeError(
                        "the new header does not fit the old one's space",
                        path=path,
                        hint="Let the file be rewritten, with some room reserved for later edits.",
                    )
            return rewrite(file, fields, path, reserve or room_of(file), backup, True, progress)


def changed(file: GGUFFile, changes: Sequence[Change]) -> list[MetadataField]:
    """Return the fields of ``file`` after ``changes``, without ``atlas.pad``; the file is not touched."""
    file.require_writable()
    fields = [item for item in file.fields if item.key != PAD_KEY]
    try:
        for change in changes:
            key = change.new_key if isinstance(change, Rename) else change.key
            check_key(key, removing=isinstance(change, Delete))
            if isinstance(change, Set):
                _set(fields, change)
            elif isinstance(change, Delete):
                _find(fields, change.key)
                fields = [item for item in fields if item.key != change.key]
            else:
                _rename(fields, change)
    except AtlasError as error:
        error.path = error.path or file.path
        raise
    check_alignment(file, fields)
    return fields


def check_key(key: str, *, removing: bool = False) -> None:
    """Raise where a file must not get this key (``removing``: where none can have it)."""
    size = len(key.encode("utf-8", "surrogateescape"))
    if not 0 < size <= _MAX_KEY:
        raise InvalidParamError(f"a key has 1 to {_MAX_KEY} bytes", key=key)
    if key == PAD_KEY and not removing:
        raise InvalidParamError("this key is kept for reserved space", key=key)


def _find(fields: list[MetadataField], key: str) -> int:
    found = [index for index, item in enumerate(fields) if item.key == key]
    if not found:
        raise KeyNotFoundError("there is no such key", key=key)
    return found[0]


def _only(fields: list[MetadataField], key: str) -> int:
    index = _find(fields, key)
    if any(item.key == key for item in fields[index + 1 :]):
        raise InvalidParamError("this key occurs more than once", key=key, remedy=Remedy("mend"))
    return index


def _set(fields: list[MetadataField], change: Set) -> None:
    if all(item.key != change.key for item in fields):
        fields.append(MetadataField.make(change.key, change.value, change.type, change.element_type))
        return
    index = _only(fields, change.key)
    kind, element = change.type, change.element_type
    if kind is None:
        kind = fields[index].type
        element = fields[index].element_type if element is None else element
    try:
        fields[index] = MetadataField.make(change.key, change.value, kind, element)
    except InvalidParamError as error:
        if change.type is None and not error.hint:
            error.hint = f"The key is a {fields[index].type_name} so far; give a type to change that."
        raise


def _rename(fields: list[MetadataField], change: Rename) -> None:
    index = _only(fields, change.key)
    if any(item.key == change.new_key for item in fields):
        raise InvalidParamError(f"there is a key {change.new_key!r} already", key=change.key)
    fields[index] = fields[index].renamed(change.new_key)


def check_alignment(file: GGUFFile, fields: list[MetadataField]) -> None:
    """Tensor data is laid out for one alignment; another one needs the data to be moved."""
    from atlas_kit.formats.gguf.write import alignment_of

    if alignment_of(fields) != file.alignment and file.tensor_infos:
        raise InvalidParamError(
            "another alignment would move the tensor data",
            path=file.path,
            key="general.alignment",
            hint="It can be chosen only when the model is made.",
        )


# --- how it gets into the file -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Plan:
    """A header that takes the place of the old one: its bytes, their room, and what ``atlas.pad`` holds of that."""

    header: bytes
    space: int
    reserved: int


def _pad_field(size: int) -> MetadataField:
    """Return the pair ``atlas.pad`` that takes ``size`` bytes of header (at least ``_pad_least``)."""
    return MetadataField(PAD_KEY, ValueType.STRING, " " * (size - _pad_least()))


def _pad_least() -> int:
    return 8 + len(PAD_KEY) + 4 + 8  # key length, key, type, text length (versions 2 and 3)


def plan_in_place(
    file: GGUFFile, fields: list[MetadataField], tensors: list[TensorInfo] | None = None
) -> Plan | None:
    """Return the new header if it can take the place of the old one exactly, else ``None``.

    ``tensors`` are the infos of the same tensors under other names.

    Readers find tensor data at the next multiple of the alignment behind the header, so the new header must
    end within one alignment step before the data. Where it is shorter, ``atlas.pad`` fills the space.
    """
    space = min(file.data_start, file.size)
    header = rebuilt_header(file, fields, tensors)
    left = space - len(header)
    if left < 0:
        return None
    ends_well = align(len(header), file.alignment) == align(space, file.alignment)
    if ends_well or (not file.tensor_infos and left < _pad_least()):
        return Plan(header, space, 0)
    if left < _pad_least():  # alignments below 32 leave gaps that no pair fits in
        return None
    return Plan(rebuilt_header(file, [*fields, _pad_field(left)], tensors), space, left)


def overwrite(file: GGUFFile, plan: Plan, backups: int) -> EditResult:
    """Write a planned header over the old one, and keep so many backups."""
    path = file.path or ""
    old = file.source.read(0, plan.space)
    keep = old[len(plan.header) :] if len(plan.header) == file.header_size else b""
    new = plan.header + (keep or bytes(plan.space - len(plan.header)))
    if new == old:
        return EditResult(path, "unchanged", len(plan.header), 0, plan.reserved)
    if backups:
        keep_backup(path, backups, copy_of=file.source.fileno())
    replace_start(path, old, new)
    if backups > 1:
        prune(path, backups)
    return EditResult(path, "in-place", len(plan.header), len(new), plan.reserved)


def room_of(file: GGUFFile) -> int:
    """Return the room to leave in a file that had to be written anew: of a large one, so that it is once only."""
    return _ROOM if file.size >= _LARGE else 0


def grow(
    file: GGUFFile, fields: list[MetadataField], tensors: list[TensorInfo] | None = None
) -> EditResult | None:
    """Put a longer header into a large file whose data the file system can move; ``None`` where it is not done.

    That takes as long for 20 GiB as for one. Nobody else may have the file open: what a program has mapped would move
    under its feet. A file with several names keeps its bytes under the others, so it is not touched either.
    """
    source, fd, path = file.source, file.source.fileno(), file.path
    if fd is None or path is None or not file.tensor_infos or not _LARGE <= file.size == source.size:
        return None
    space, header = file.data_start, rebuilt_header(file, fields, tensors)
    step = max(block_size(fd), file.alignment)
    grown = align(max(len(header) + _pad_least() + _ROOM - space, step), step)
    reserved = space + grown - len(header)
    new = rebuilt_header(file, [*fields, _pad_field(reserved)], tensors)
    if os.fstat(fd).st_nlink != 1 or not sole_user(fd) or source.changed():
        return None
    if not grow_start(path, source.read(0, space), new, file.size):
        return None
    return EditResult(path, "in-place", len(new), len(new), reserved)


def rewrite(
    file: GGUFFile,
    fields: list[MetadataField],
    out: StrPath,
    reserve: int,
    backup: bool | int,
    locked: bool,
    progress: Progress | None,
    tensors: list[TensorInfo] | None = None,
) -> EditResult:
    """Write a new file with another header and the same data."""
    if reserve > 0:
        reserve = max(reserve, _pad_least())
        fields = [*fields, _pad_field(reserve)]
    header = rebuilt_header(file, fields, tensors)
    padding = padding_for(file, header)
    size = write_with_header(out, file, header, padding, backup=backup, locked=locked, progress=progress)
    return EditResult(os.fspath(out), "rewritten", len(header), size, max(reserve, 0))


def padding_for(file: GGUFFile, header: bytes) -> bytes:
    """Return the padding to write behind a new header of ``file``.

    The old padding where its length is right (it need not be zeros), none where the file had none because
    it ends with its header.
    """
    old = file.source.read_upto(file.header_size, file.data_start - file.header_size)
    if not file.tensor_infos and file.size < file.data_start and not old:
        return b""
    needed = align(len(header), file.alignment) - len(header)
    return old if len(old) == needed else bytes(needed)


__all__ = [
    "Change",
    "Delete",
    "EditResult",
    "Rename",
    "Set",
    "changed",
    "edit_metadata",
    "padding_for",
    "tables",
]
