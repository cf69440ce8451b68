"""Renaming and removing tensors and metadata keys of a model, in place where only its header changes.

New names change the header alone, and go the way of ``edit``: in place where they fit. A tensor that is removed takes
its data along: the file is written anew, whole or not at all.
"""

from __future__ import annotations

import dataclasses
import os
from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from atlas_kit.errors import FileCorruptError, InvalidParamError, KeyNotFoundError, Remedy
from atlas_kit.formats.gguf.edit import (
    EditResult,
    check_alignment,
    check_key,
    grow,
    overwrite,
    padding_for,
    plan_in_place,
    rewrite,
    room_of,
)
from atlas_kit.formats.gguf.file import GGUFFile
from atlas_kit.formats.gguf.journal import recover_journal
from atlas_kit.formats.gguf.split import joined, write_whole
from atlas_kit.formats.gguf.tables import MAX_TENSOR_NAME, PAD_KEY
from atlas_kit.formats.gguf.write import Progress, TensorSource, rebuilt_header, write_with_header
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.given import Given, as_it_is_now, path_of
from atlas_kit.storage.source import StrPath, resolved

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.tensors import TensorInfo
    from atlas_kit.formats.gguf.values import MetadataField

#: What becomes of a name: another one, or ``None`` where it goes.
Names = Mapping[str, str | None]


def edit_names(
    given: Given,
    *,
    keys: Names | None = None,
    tensors: Names | None = None,
    out: StrPath | None = None,
    backup: bool | int = False,
    progress: Progress | None = None,
) -> EditResult:
    """Rename and remove metadata keys and tensors, all of them or none.

    Parameters
    ----------
    keys, tensors
        Old name to new name, or to ``None`` for what is removed.
    out
        Write the result here (of a split model one file) and leave the model alone; else the file itself is changed.
    backup
        Keep the file that was there before.

    Raises
    ------
    KeyNotFoundError
        There is no such key or tensor.
    InvalidParamError
        A new name is taken, empty or too long, or a tensor's name occurs twice; tensors of a split model are changed
        in place.
    """
    keys, tensors = keys or {}, tensors or {}
    path = path_of(given) if out is None else None
    if out is not None:
        with GGUFFile.open(given) as model:
            if model.path is not None and resolved(out) == os.path.realpath(model.path):
                raise InvalidParamError("the output is the input itself", path=out)
            fields, infos = _changed(model, keys, tensors)
            if model.is_split or len(infos) != len(model.tensor_infos):
                return _write_anew(model, fields, infos, out, backup, locked=False, progress=progress)
            header = rebuilt_header(model, fields, list(infos.values()))
            padding = padding_for(model, header)
            size = write_with_header(out, model, header, padding, backup=backup, progress=progress)
            return EditResult(os.fspath(out), "rewritten", len(header), size, 0)
    assert path is not None
    if not os.path.exists(path):
        GGUFFile.open(path, shards=False)  # raises our error, before a lock file would be made
    with lock(path):
        recover_journal(path, locked=True)
        with GGUFFile.open(as_it_is_now(given), shards=False) as file:
            if tensors:
                _require_one_file(file)
            fields, infos = _changed(file, keys, tensors)
            if len(infos) != len(file.tensor_infos):
                return _write_anew(file, fields, infos, path, backup, locked=True, progress=progress)
            listed = list(infos.values())
            plan = plan_in_place(file, fields, listed)
            if plan is not None:
                return overwrite(file, plan, int(backup))
            grown = None if backup else grow(file, fields, listed)
            if grown is not None:
                return grown
            return rewrite(file, fields, path, room_of(file), backup, True, progress, listed)


def _require_one_file(file: GGUFFile) -> None:
    try:
        file.require_all_shards()
    except InvalidParamError as error:
        error.hint, error.remedy = (
            "Write the result to a new file, or join the shards first.",
            Remedy("join-shards"),
        )
        raise


def _changed(
    model: GGUFFile, keys: Names, tensors: Names
) -> tuple[list[MetadataField], dict[int, TensorInfo]]:
    """Return the metadata and, by their place, the tensors that are left, under their new names."""
    model.require_writable()
    fields = []
    for item in model.fields:
        if item.key == PAD_KEY:
            continue
        new = keys.get(item.key, item.key)
        if new is not None:
            fields.append(item if new == item.key else item.renamed(new))
    infos = {}
    for place, info in enumerate(model.tensor_infos):
        name = tensors.get(info.name, info.name)
        if name is not None:
            infos[place] = info if name == info.name else dataclasses.replace(info, name=name)
    check_names(model, keys, tensors)
    if len(infos) == len(model.tensor_infos):
        check_alignment(model, fields)
    return fields, infos


def check_names(model: GGUFFile, keys: Names, tensors: Names) -> None:
    """Raise as ``edit_names`` does where a name is not there, taken, or not allowed."""
    _check_names(model, Counter(item.key for item in model.fields), keys, "key")
    for old, new in keys.items():
        check_key(old if new is None else new, removing=new is None)
    _check_names(model, Counter(info.name for info in model.tensor_infos), tensors, "tensor")
    for name in tensors.values():
        size = 1 if name is None else len(name.encode("utf-8", "surrogateescape"))
        if not 0 < size <= MAX_TENSOR_NAME:
            raise InvalidParamError(
                f"a tensor's name has 1 to {MAX_TENSOR_NAME} bytes, and this one {size}",
                path=model.path,
                key=name,
            )


def _check_names(model: GGUFFile, before: Counter[str], names: Names, what: str) -> None:
    after = before.copy()
    for old, new in names.items():
        count = before[old]
        if not count:
            raise KeyNotFoundError(f"there is no such {what}", path=model.path, key=old)
        if new is not None and count > 1:
            raise InvalidParamError(
                f"this {what} occurs more than once", path=model.path, key=old, hint="Repair the file first."
            )
        after[old] -= count
    for new in names.values():
        if new is None:
            continue
        after[new] += 1
        if after[new] > 1:
            raise InvalidParamError(f"there would be two of this {what}", path=model.path, key=new)


def _write_anew(
    model: GGUFFile,
    fields: list[MetadataField],
    infos: dict[int, TensorInfo],
    out: StrPath,
    backup: bool | int,
    *,
    locked: bool,
    progress: Progress | None,
) -> EditResult:
    """Write a file with the tensors that are left, one after the other."""
    old = model.tensor_infos
    try:
        sources = [TensorSource.from_file(model, old[place], info.name) for place, info in infos.items()]
        whole = joined(model, fields, sources)
    except FileCorruptError as error:
        error.hint = error.hint or "Repair the file first."
        raise
    size = write_whole(out, model, whole, backup=backup, locked=locked, progress=progress)
    return EditResult(os.fspath(out), "rewritten", len(whole.header), size, 0)
