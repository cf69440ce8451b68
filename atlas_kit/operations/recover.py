"""Find the backups of a memory file or a model and put one back, losing nothing on the way.

Backups are ``NAME.atlas.bak`` (the previous save) and ``NAME_<timestamp>.atlas.bak`` (history), as written by
this library and by the C library's roadmap, and the same with ``.gguf``. An edit of a model in place that was
interrupted has left a journal beside the file, which is a backup of its header.
"""

from __future__ import annotations

import os
import re
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError, KeyNotFoundError, TruncatedError
from atlas_kit.formats.detect import detect
from atlas_kit.operations.inputs import Keys, check_output, same_file
from atlas_kit.storage.files import Source, StrPath, access_error, atomic_write, lock

#: What ``restore_backup`` calls the journal of an interrupted edit.
JOURNAL = "journal"


@dataclass
class Backup:
    """One backup: its time is in its name, or else the file's own."""

    path: str
    size: int
    time: int
    ok: bool
    entries: int | None
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the backup as JSON-ready data."""
        return {**named("path", self.path), "size": self.size, "time": self.time, "ok": self.ok,
                "entries": self.entries, "problem": self.problem}  # fmt: skip


@dataclass
class Backups:
    """The backups of a file, the newest first; ``interrupted`` when an edit in place must be undone."""

    path: str
    exists: bool
    backups: list[Backup] = field(default_factory=list)
    interrupted: bool = False

    @property
    def exit_code(self) -> int:
        """Return 1 when there is nothing to put back."""
        return int(not self.backups and not self.interrupted)

    def to_json(self) -> dict[str, Any]:
        """Return the list as JSON-ready data."""
        backups = [backup.to_json() for backup in self.backups]
        return {**named("path", self.path), "exists": self.exists, "interrupted": self.interrupted,
                "backups": backups}  # fmt: skip


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


def list_backups(path: StrPath, keys: Keys | None = None) -> Backups:
    """List the backups of a memory file or a model, which need not exist any more.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    target = Path(path)
    stem, suffix = _stem_and_suffix(target)
    pattern = re.compile(rf"{re.escape(stem)}(?:_(?P<time>\d[\dT_\-]*))?{re.escape(suffix)}", re.DOTALL)
    result = Backups(os.fsdecode(path), os.path.lexists(path), interrupted=_is_interrupted(path))
    try:
        names = os.listdir(target.parent)
    except OSError as error:
        raise access_error(error, target.parent) from error
    for name in names:
        match = pattern.fullmatch(name)
        plain = name == f"{target.name}.bak"
        if match or plain:
            stamp = match["time"] if match else None
            result.backups.append(_describe(target.parent / name, stamp, keys or Keys()))
    result.backups.sort(key=lambda backup: (-backup.time, backup.path))
    return result


def _stem_and_suffix(target: Path) -> tuple[str, str]:
    """Return what comes before the time in the name of a backup, and what comes after it."""
    for suffix in (".atlas", ".gguf"):
        if target.name.endswith(suffix):
            return target.name.removesuffix(suffix), f"{suffix}.bak"
    return target.name, ".atlas.bak"


def _is_interrupted(path: StrPath) -> bool:
    from atlas_kit.formats.gguf.journal import is_interrupted

    return os.path.isfile(path) and is_interrupted(path)


def _describe(path: Path, stamp: str | None, keys: Keys) -> Backup:
    when = _time_of(stamp)
    try:
        info = os.stat(path)
    except OSError as error:
        return Backup(str(path), 0, when or 0, False, None, str(access_error(error, path)))
    backup = Backup(str(path), info.st_size, int(info.st_mtime) if when is None else when, True, None)
    try:
        backup.entries = _count_model(path) if detect(path) == "gguf" else _count_entries(path, keys)
    except AtlasError as error:
        backup.ok, backup.problem = False, error.message
    return backup


def _count_entries(path: Path, keys: Keys) -> int:
    """Return the number of entries of a memory file, each of which is verified."""
    from atlas_kit.formats.atlas import MemoryFile

    with MemoryFile.open(path, **keys.options()) as memory:
        for entry in memory.entries():
            entry.verify()
        return len(memory)


def _count_model(path: Path) -> int:
    """Return the number of metadata keys and tensors of a model, whose data must all be there."""
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(path, shards=False) as model:
        for info in model.tensor_infos:
            end = info.file_offset + (info.nbytes or 0)
            if end > model.size:
                raise TruncatedError("the file ends before the data of a tensor", path=path, key=info.name)
        return len(model.metadata) + len(model.tensor_infos)


def _time_of(stamp: str | None) -> int | None:
    """Return the Unix seconds that a name's stamp says: seconds themselves, or ``20250131T120000`` (UTC)."""
    if stamp is None:
        return None
    digits = re.sub(r"\D", "", stamp)
    if len(digits) == 14:
        try:
            return int(time.mktime(time.strptime(digits, "%Y%m%d%H%M%S")) - time.timezone)
        except (ValueError, OverflowError):
            return None
    return int(digits) if len(digits) < 14 else None


def restore_backup(
    path: StrPath, which: str, output: StrPath | None = None, *, force: bool = False, keys: Keys | None = None
) -> Restored:
    """Put a backup back, in place of the file or as ``output``; or undo an edit that was interrupted.

    The file that is there now is kept as ``NAME_<timestamp>.atlas.bak`` first; the backup itself stays.

    Parameters
    ----------
    which
        ``latest`` (the newest that is intact), a number of the list from 1, a backup's path or name, or
        ``journal`` for the header that an interrupted edit in place was replacing.
    force
        Restore a damaged backup too, and overwrite ``output``.

    Raises
    ------
    KeyNotFoundError
        There is no such backup.
    FileCorruptError
        The backup is damaged.
    """
    if which == JOURNAL:
        return _undo_edit(path, output)
    chosen = _choose(list_backups(path, keys), which)
    if not chosen.ok and not force:
        raise FileCorruptError(
            f"the backup is damaged: {chosen.problem}", path=chosen.path,
            hint="Rescue it with atlas-tool repair, or use --force to restore it as it is.",
        )  # fmt: skip
    target = os.fsdecode(path if output is None else output)
    if output is not None:
        check_output(output, [chosen.path], force)
    elif same_file(path, chosen.path):
        raise InvalidParamError("the backup is the file itself", path=target)
    with lock(target), Source(chosen.path) as source:
        kept = _keep(Path(target)) if output is None and os.path.lexists(target) else None
        with atomic_write(target, locked=True) as file:
            for chunk in source.chunks(0, source.size):
                file.write(chunk)
    return Restored(chosen.path, target, kept)


def _undo_edit(path: StrPath, output: StrPath | None) -> Restored:
    """Put the header back that an interrupted edit in place was replacing."""
    from atlas_kit.formats.gguf.journal import journal_path, recover_journal

    if output is not None:
        raise InvalidParamError("a journal is put back in place, not to another file", path=path)
    if not _is_interrupted(path) or not recover_journal(path):
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
    raise KeyNotFoundError(
        f"there is no backup {which}", path=listed.path, hint="List them with: atlas-tool recover FILE"
    )


def _keep(target: Path) -> str:
    """Keep the present file under a name with the time, by a second link or a copy."""
    stem, suffix = _stem_and_suffix(target)
    now = int(time.time())
    name = target.with_name(f"{stem}_{now}{suffix}")
    while os.path.lexists(name):
        now += 1
        name = target.with_name(f"{stem}_{now}{suffix}")
    try:
        os.link(os.path.realpath(target), name)
    except OSError:
        import shutil

        try:
            shutil.copy2(target, name)
        except OSError as error:
            raise access_error(error, name, "write") from error
    return str(name)
