"""The backups of a memory file or a model: their names, and whether each is good.

Backups are ``NAME.atlas.bak`` (the previous save) and ``NAME_<timestamp>.atlas.bak`` (history), as written by
this library and by the C library's roadmap, and the same with ``.gguf``.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, TruncatedError
from atlas_kit.formats.detect import detect
from atlas_kit.storage.given import StrPath, open_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source, access_error


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


def list_backups(path: StrPath, keys: Keys | None = None) -> Backups:
    """List the backups of a memory file or a model, which need not exist any more; ask for a passphrase if need be.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    target = Path(path)
    stem, suffix = _stem_and_suffix(target)
    pattern = re.compile(rf"{re.escape(stem)}(?:_(?P<time>\d[\dT_\-]*))?{re.escape(suffix)}", re.DOTALL)
    result = Backups(os.fsdecode(path), os.path.lexists(path), interrupted=is_interrupted_edit(path))
    try:
        names = os.listdir(target.parent)
    except OSError as error:
        raise access_error(error, target.parent) from error
    for name in sorted(names):  # the first one that is encrypted is asked about
        match = pattern.fullmatch(name)
        plain = name == f"{target.name}.bak"
        if match or plain:
            stamp = match["time"] if match else None
            result.backups.append(_describe(target.parent / name, stamp, Keys() if keys is None else keys))
    result.backups.sort(key=lambda backup: (-backup.time, backup.path))
    return result


def newest_good(
    path: StrPath, keys: Keys | None = None, *, accept: Callable[[str], object] | None = None
) -> tuple[int, Backup] | None:
    """Return the newest backup that is whole, with its number in ``list_backups`` from 1; None where none is.

    ``accept`` is called with a backup's path, and raises ``AtlasError`` for one that does not do.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    for number, backup in enumerate(list_backups(path, keys).backups, 1):
        if backup.ok:
            try:
                if accept is not None:
                    accept(backup.path)
            except AtlasError:
                continue
            return number, backup
    return None


def _stem_and_suffix(target: Path) -> tuple[str, str]:
    """Return what comes before the time in the name of a backup, and what comes after it."""
    for suffix in (".atlas", ".gguf"):
        if target.name.endswith(suffix):
            return target.name.removesuffix(suffix), f"{suffix}.bak"
    return target.name, ".atlas.bak"


def is_interrupted_edit(path: StrPath) -> bool:
    """Tell whether an edit of a model in place has left its journal."""
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
        with open_source(path) as source:
            backup.entries = (
                _count_model(source) if detect(source) == "gguf" else _count_entries(source, keys)
            )
    except AtlasError as error:
        backup.ok, backup.problem = False, error.message
    return backup


def _count_entries(source: Source, keys: Keys) -> int:
    """Return the number of entries of a memory file, each of which is verified."""
    from atlas_kit.formats.opening import open_memory

    with open_memory(source, keys) as memory:
        for entry in memory.entries():
            entry.verify()
        return len(memory)


def _count_model(source: Source) -> int:
    """Return the number of metadata keys and tensors of a model, whose data must all be there."""
    from atlas_kit.formats.gguf import GGUFFile

    with GGUFFile.open(source, shards=False) as model:
        for info in model.tensor_infos:
            end = info.file_offset + (info.nbytes or 0)
            if end > model.size:
                raise TruncatedError(
                    "the file ends before the data of a tensor", path=source.path, key=info.name
                )
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


def make_room(path: StrPath) -> None:
    """Keep ``NAME.bak``, which the next save replaces, under a name with its time.

    Raises
    ------
    FileAccessError
        It cannot be renamed.
    """
    target = Path(os.path.realpath(path))
    before = target.with_name(target.name + ".bak")
    try:
        os.rename(before, _name_with_time(target, int(os.stat(before).st_mtime)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise access_error(error, before, "write") from error


def prune(path: StrPath, count: int) -> list[str]:
    """Remove the oldest backups of a file until there are ``count``; return the names of those that went.

    ``NAME.bak`` is the newest, and what cannot be removed stays.
    """
    target = Path(os.path.realpath(path))
    stem, suffix = _stem_and_suffix(target)
    pattern = re.compile(rf"{re.escape(stem)}_(?P<time>\d[\dT_\-]*){re.escape(suffix)}", re.DOTALL)
    dated = []
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if match := pattern.fullmatch(name):
                dated.append((_time_of(match["time"]) or 0, name))
    dated.sort(reverse=True)
    gone = []
    for _, name in dated[max(0, count - os.path.lexists(f"{target}.bak")) :]:
        with contextlib.suppress(OSError):
            os.unlink(target.with_name(name))
            gone.append(name)
    return gone


def _name_with_time(target: Path, when: int) -> Path:
    """Return the name of a backup of this time, or of a later second where there is one already."""
    stem, suffix = _stem_and_suffix(target)
    name = target.with_name(f"{stem}_{when}{suffix}")
    while os.path.lexists(name):
        when += 1
        name = target.with_name(f"{stem}_{when}{suffix}")
    return name


def keep_aside(target: Path) -> str:
    """Keep the present file under a name with the time, by a second link or a copy."""
    name = _name_with_time(target, int(time.time()))
    try:
        os.link(os.path.realpath(target), name)
    except OSError:
        import shutil

        try:
            shutil.copy2(target, name)
        except OSError as error:
            raise access_error(error, name, "write") from error
    return str(name)
