"""The backups of a memory file or a model: their names, and whether each is good.

Backups are ``NAME.atlas.bak`` (the previous save) and ``NAME_<timestamp>.atlas.bak`` (history), as written by
this library and by the C library's roadmap, and the same with ``.gguf``.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, KeyRequiredError, TruncatedError, WrongKeyError
from atlas_kit.formats.detect import detect
from atlas_kit.storage.backup_files import (
    age_of,
    keep_aside,
    make_room,
    places,
    prune,
    time_of,
)
from atlas_kit.storage.given import StrPath, open_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source, access_error
from atlas_kit.storage.urls import require_here

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile


@dataclass
class Backup:
    """One backup: its time is in its name, or else the file's own.

    ``accepted``: whether it is whole, and is what ``list_backups`` was asked to look for. ``locked``: whether it can
    only be looked at with another passphrase or key.
    """

    path: str
    size: int
    time: int
    ok: bool
    entries: int | None
    problem: str = ""
    accepted: bool = True
    locked: bool = False

    def to_json(self) -> dict[str, Any]:
        """Return the backup as JSON-ready data."""
        return {**named("path", self.path), "size": self.size, "time": self.time, "ok": self.ok,
                "entries": self.entries, "problem": self.problem,
                "locked": self.locked}  # fmt: skip


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


def list_backups(
    path: StrPath, keys: Keys | None = None, *, accept: Callable[[MemoryFile], object] | None = None
) -> Backups:
    """List the backups of a memory file or a model, which need not exist any more; ask for a passphrase if need be.

    Each is opened once. ``accept`` is called with a memory file that is whole, and raises ``AtlasError`` for one that
    does not do.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    require_here(path, "backups are beside files on this machine only")
    result = Backups(os.fsdecode(path), os.path.lexists(path), interrupted=is_interrupted_edit(path))
    keys = Keys() if keys is None else keys
    found = []
    for place, stamp in sorted(places(path)):  # the first one that is encrypted is asked about
        age, backup = _describe(place, stamp, keys, accept)
        found.append((-age, backup.path, backup))
    result.backups = [backup for *_, backup in sorted(found, key=lambda one: one[:2])]
    return result


def backup_names(path: StrPath) -> list[str]:
    """Return the names of a file's backups, which lie beside it, the newest first; whether they are whole is not said.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    found = []
    for place, stamp in places(path):
        with contextlib.suppress(OSError):  # it went away
            found.append((-age_of(stamp, os.stat(place)), place.name))
    return [name for _, name in sorted(found)]


def remove_backups(path: StrPath, names: Sequence[str] | None = None) -> None:
    """Remove a file's backups, or only those of ``names``, for what can be read in them.

    Raises
    ------
    FileAccessError
        One cannot be removed.
    """
    for name in backup_names(path) if names is None else names:
        place = beside(path, name)
        try:
            os.unlink(place)
        except FileNotFoundError:
            continue
        except OSError as error:
            raise access_error(error, place, "write") from error


def beside(path: StrPath, name: str) -> str:
    """Return the path of a file that lies beside another: beside the file itself, not beside a link to it."""
    return os.path.join(os.path.dirname(os.path.realpath(os.fsdecode(path))), name)


def newest_good(listed: Backups) -> tuple[int, Backup] | None:
    """Return the newest backup that is whole and was accepted, with its number from 1; None where none is."""
    good = ((number, backup) for number, backup in enumerate(listed.backups, 1) if backup.accepted)
    return next(good, None)


def is_interrupted_edit(path: StrPath) -> bool:
    """Tell whether an edit of a model in place has left its journal."""
    from atlas_kit.formats.gguf.journal import is_interrupted

    return os.path.isfile(path) and is_interrupted(path)


def _describe(
    path: Path, stamp: str, keys: Keys, accept: Callable[[MemoryFile], object] | None
) -> tuple[int, Backup]:
    """Return when a backup is from, to sort by, and what is known of it."""
    when = time_of(stamp)
    try:
        info = os.stat(path)
    except OSError as error:
        problem = str(access_error(error, path))
        return (when or 0) * 1_000_000_000, Backup(
            str(path), 0, when or 0, False, None, problem, accepted=False
        )
    backup = Backup(str(path), info.st_size, int(info.st_mtime) if when is None else when, True, None)
    try:
        with open_source(path) as source:
            _look_into(source, keys, backup, accept)
    except AtlasError as error:
        backup.ok, backup.accepted, backup.problem = False, False, error.message
        backup.locked = isinstance(error, (KeyRequiredError, WrongKeyError))
    return age_of(stamp, info), backup


def _look_into(
    source: Source, keys: Keys, backup: Backup, accept: Callable[[MemoryFile], object] | None
) -> None:
    """Verify all of a backup, count what it holds, and see whether it does."""
    if detect(source) == "gguf":
        backup.entries, backup.accepted = _count_model(source), accept is None
        return
    from atlas_kit.formats.opening import open_memory

    with open_memory(source, keys) as memory:
        for entry in memory.entries():
            entry.verify()
        backup.entries = len(memory)
        if accept is not None:
            try:
                accept(memory)
            except AtlasError:
                backup.accepted = False


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


__all__ = [
    "Backup",
    "Backups",
    "backup_names",
    "beside",
    "is_interrupted_edit",
    "keep_aside",
    "list_backups",
    "make_room",
    "newest_good",
    "prune",
    "remove_backups",
]
