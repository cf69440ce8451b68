"""Find the backups of a memory file or a model and put one back, losing nothing on the way.

Backups are ``NAME.atlas.bak`` (the previous save) and ``NAME_<timestamp>.atlas.bak`` (history), as written by
this library and by the C library's roadmap, and the same with ``.gguf``. An edit of a model in place that was
interrupted has left a journal beside the file, which is a backup of its header.
"""

from __future__ import annotations

import contextlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.codecs.quantities import parse_time
from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyRequiredError,
    Remedy,
)
from atlas_kit.formats.detect import detect, is_encrypted
from atlas_kit.formats.endings import require_ending
from atlas_kit.persistence.backups import Backup, Backups, is_interrupted_edit, keep_aside, list_backups
from atlas_kit.storage.atomic import atomic_write, lock
from atlas_kit.storage.copying import copy_data
from atlas_kit.storage.given import check_output, open_source, same_file
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import StrPath

#: What ``restore_backup`` calls the journal of an interrupted edit.
JOURNAL = "journal"


@dataclass
class Restored:
    """What was restored where, and under which name the file that was there is kept."""

    backup: str
    path: str
    kept: str | None

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        kept = {"kept": None} if self.kept is None else named("kept", self.kept)
        return {**named("backup", self.backup), **named("path", self.path), **kept}


def restore_backup(
    path: StrPath, which: str, output: StrPath | None = None, *, force: bool = False, keys: Keys | None = None,
    decrypt: bool = False,
) -> Restored:  # fmt: skip
    """Put a backup back, in place of the file or as ``output``; or undo an edit that was interrupted.

    The file that is there now is kept as ``NAME_<timestamp>.atlas.bak`` first; the backup itself stays.

    Parameters
    ----------
    which
        ``latest`` (the newest that is intact), a number of the list from 1, a backup's path or name, a date or time
        (the newest from then or before), or ``journal`` for the header that an interrupted edit in place was replacing.
    force
        Restore a damaged backup too, and overwrite ``output``.
    decrypt
        Restore a backup that is not encrypted although the file is, or although there is a secret.

    Raises
    ------
    KeyNotFoundError
        There is no such backup.
    FileCorruptError
        The backup is damaged.
    KeyRequiredError
        It is encrypted with another passphrase or key than was given.
    InvalidParamError
        It is not encrypted, and should be.
    """
    if which == JOURNAL:
        return _undo_edit(path, output)
    chosen = _choose(list_backups(path, keys), which)
    if chosen.locked and not force:
        raise KeyRequiredError(
            f"the backup cannot be checked: {chosen.problem}", path=chosen.path,
            remedy=Remedy("restore-locked"),
        )  # fmt: skip
    if not chosen.ok and not force:
        raise FileCorruptError(
            f"the backup is damaged: {chosen.problem}", path=chosen.path,
            remedy=Remedy("restore-damaged"),
        )  # fmt: skip
    if not decrypt:
        _require_as_secret(path, chosen.path, Keys() if keys is None else keys)
    target = os.fsdecode(path if output is None else output)
    if output is not None:
        check_output(output, [chosen.path], force)
        require_ending(output, detect(chosen.path) or "atlas")
    elif same_file(path, chosen.path):
        raise InvalidParamError("the backup is the file itself", path=target)
    with lock(target), open_source(chosen.path) as source:
        kept = keep_aside(Path(target)) if output is None and os.path.lexists(target) else None
        with atomic_write(target, locked=True) as file:
            fd = source.fileno()
            if fd is None:
                for chunk in source.chunks(0, source.size):
                    file.write(chunk)
            elif not copy_data(fd, file.fileno(), source.size):
                raise ConflictError("the backup was changed while it was being restored", path=chosen.path)
    return Restored(chosen.path, target, kept)


def _require_as_secret(path: StrPath, backup: str, keys: Keys) -> None:
    """See that what was encrypted does not become plain text by an old backup."""
    encrypted: dict[StrPath, bool | None] = {}
    for name in (path, backup):
        with contextlib.suppress(AtlasError):  # one of them may be gone, or not be readable
            encrypted[name] = is_encrypted(name)
    if encrypted.get(backup) is False and (encrypted.get(path) or keys.given):
        raise InvalidParamError(
            "the backup is not encrypted, and the file is" if encrypted.get(path) else
            "a passphrase or key was given, and the backup is not encrypted",
            path=backup,
            remedy=Remedy("restore-plain"),
        )  # fmt: skip


def _undo_edit(path: StrPath, output: StrPath | None) -> Restored:
    """Put the header back that an interrupted edit in place was replacing."""
    from atlas_kit.formats.gguf.journal import journal_path, recover_journal

    if output is not None:
        raise InvalidParamError("a journal is put back in place, not to another file", path=path)
    if not is_interrupted_edit(path) or not recover_journal(path):
        raise KeyNotFoundError("no edit of this file was interrupted", path=path)
    return Restored(str(journal_path(path)), os.fsdecode(path), None)


def _choose(listed: Backups, which: str) -> Backup:
    if which == "latest":
        for backup in listed.backups:
            if backup.ok:
                return backup
        if listed.backups:
            return listed.backups[0]
        raise KeyNotFoundError("there is no backup of this file", path=listed.path)
    if which.isdecimal() and 1 <= int(which) <= len(listed.backups):
        return listed.backups[int(which) - 1]
    for backup in listed.backups:
        if which in (backup.path, os.path.basename(backup.path)) or same_file(which, backup.path):
            return backup
    when = _moment_of(which)
    if when is not None:
        before = [backup for backup in listed.backups if backup.time <= when]
        if not before:
            raise KeyNotFoundError(
                f"there is no backup from {which} or before", path=listed.path, remedy=Remedy("list-backups")
            )
        return next((backup for backup in before if backup.ok), before[0])
    raise KeyNotFoundError(f"there is no backup {which}", path=listed.path, remedy=Remedy("list-backups"))


def _moment_of(text: str) -> int | None:
    """Return the Unix seconds of a date or time; of a date, the end of the day."""
    milliseconds = parse_time(text)
    if milliseconds is None:
        return None
    return milliseconds // 1000 + (86_399 if len(text) <= len("2026-11-30") else 0)
