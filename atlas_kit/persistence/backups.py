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
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import AtlasError, TruncatedError
from atlas_kit.formats.detect import detect
from atlas_kit.storage.given import StrPath, open_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.pace import let_go
from atlas_kit.storage.source import Source, access_error

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile


@dataclass
class Backup:
    """One backup: its time is in its name, or else the file's own.

    ``accepted``: whether it is whole, and is what ``list_backups`` was asked to look for.
    """

    path: str
    size: int
    time: int
    ok: bool
    entries: int | None
    problem: str = ""
    accepted: bool = True

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
    result = Backups(os.fsdecode(path), os.path.lexists(path), interrupted=is_interrupted_edit(path))
    keys = Keys() if keys is None else keys
    for place, stamp in sorted(_places(path)):  # the first one that is encrypted is asked about
        result.backups.append(_describe(place, stamp, keys, accept))
    result.backups.sort(key=lambda backup: (-backup.time, backup.path))
    return result


def backup_names(path: StrPath) -> list[str]:
    """Return the names of a file's backups, which lie beside it, the newest first; whether they are whole is not said.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    found = []
    for place, stamp in _places(path):
        with contextlib.suppress(OSError):  # it went away
            when = _time_of(stamp)
            found.append((-int(os.stat(place).st_mtime) if when is None else -when, place.name))
    return [name for _, name in sorted(found)]


def _places(path: StrPath) -> list[tuple[Path, str]]:
    """Return where the backups of a file are, each with the time in its name, which may be empty.

    They lie beside the file itself, not beside a link to it.
    """
    target = Path(path)
    if target.is_symlink():
        target = Path(os.path.realpath(path))
    stem, suffix = _stem_and_suffix(target)
    pattern = re.compile(rf"{re.escape(stem)}(?:_(?P<time>\d[\dT_\-]*))?{re.escape(suffix)}", re.DOTALL)
    try:
        names = os.listdir(target.parent)
    except OSError as error:
        raise access_error(error, target.parent) from error
    found = []
    for name in names:
        match = pattern.fullmatch(name)
        if name == f"{target.name}.bak" or (match and not _is_anothers(target, name)):
            found.append((target.parent / name, (match["time"] if match else None) or ""))
    return found


def _is_anothers(target: Path, name: str) -> bool:
    """Tell whether a backup is of another file there is: of ``talk_2.atlas``, beside ``talk.atlas``."""
    own = name.removesuffix(".bak")
    return own != target.name and os.path.lexists(target.with_name(own))


def newest_good(listed: Backups) -> tuple[int, Backup] | None:
    """Return the newest backup that is whole and was accepted, with its number from 1; None where none is."""
    good = ((number, backup) for number, backup in enumerate(listed.backups, 1) if backup.accepted)
    return next(good, None)


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


def _describe(path: Path, stamp: str, keys: Keys, accept: Callable[[MemoryFile], object] | None) -> Backup:
    when = _time_of(stamp)
    try:
        info = os.stat(path)
    except OSError as error:
        return Backup(str(path), 0, when or 0, False, None, str(access_error(error, path)), accepted=False)
    backup = Backup(str(path), info.st_size, int(info.st_mtime) if when is None else when, True, None)
    try:
        with open_source(path) as source:
            _look_into(source, keys, backup, accept)
    except AtlasError as error:
        backup.ok, backup.accepted, backup.problem = False, False, error.message
    return backup


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


def _time_of(stamp: str) -> int | None:
    """Return the Unix seconds that a name's stamp says: seconds themselves, or ``20250131T120000`` (UTC)."""
    if not stamp:
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
            if (match := pattern.fullmatch(name)) and not _is_anothers(target, name):
                dated.append((_time_of(match["time"]) or 0, name))
    dated.sort(reverse=True)
    gone = []
    for _, name in dated[max(0, count - os.path.lexists(f"{target}.bak")) :]:
        let_go(target.with_name(name))
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
    if target.is_symlink():
        target = Path(os.path.realpath(target))
    name = _name_with_time(target, int(time.time()))
    try:
        os.link(target, name)
    except OSError:
        import shutil

        try:
            shutil.copy2(target, name)
        except OSError as error:
            raise access_error(error, name, "write") from error
    return str(name)
