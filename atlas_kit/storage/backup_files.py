"""The names of a file's backups, and keeping them: ``NAME.bak`` is the newest, older ones have their time in the name.

``talk.atlas.bak``, then ``talk_1795311908.atlas.bak``: that is what this library writes and the C library's roadmap
says, and the same with ``.gguf``. Knows nothing of what is in a file.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from typing import TYPE_CHECKING, NamedTuple

from atlas_kit.storage.copying import copy_file
from atlas_kit.storage.pace import let_go
from atlas_kit.storage.source import StrPath, access_error, resolved

if TYPE_CHECKING:  # every opening of a file imports this module, and pathlib takes a tenth of its time
    from pathlib import Path

#: As many backups as there will ever be.
ALL = 1 << 31


class BackupPlace(NamedTuple):
    """Where a backup is, and the time in its name, which may be empty."""

    path: Path
    stamp: str


def backup_name(path: StrPath) -> Path:
    """Return the name under which the previous version of ``path`` is kept: ``NAME.bak``."""
    from pathlib import Path

    path = Path(path)
    return path.with_name(path.name + ".bak")


def places(path: StrPath) -> list[BackupPlace]:
    """Return where the backups of a file are.

    They lie beside the file itself, not beside a link to it.

    Raises
    ------
    FileAccessError
        The folder cannot be read.
    """
    from pathlib import Path

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
            found.append(BackupPlace(target.parent / name, (match["time"] if match else None) or ""))
    return found


def _is_anothers(target: Path, name: str) -> bool:
    """Tell whether a backup is of another file there is: of ``talk_2.atlas``, beside ``talk.atlas``."""
    own = name.removesuffix(".bak")
    return own != target.name and os.path.lexists(target.with_name(own))


def _stem_and_suffix(target: Path) -> tuple[str, str]:
    """Return what comes before the time in the name of a backup, and what comes after it."""
    for suffix in (".atlas", ".gguf"):
        if target.name.endswith(suffix):
            return target.name.removesuffix(suffix), f"{suffix}.bak"
    return target.name, ".atlas.bak"


def time_of(stamp: str) -> int | None:
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


def age_of(stamp: str, info: os.stat_result) -> int:
    """Return when a backup is from, in nanoseconds, to sort by.

    That is the time in its name, or else its own; and its own where both are a moment apart, since of several in one
    second the names are those of the seconds after it.
    """
    when = time_of(stamp)
    if when is None or abs(when - int(info.st_mtime)) < 60:
        return info.st_mtime_ns
    return when * 1_000_000_000


def make_room(path: StrPath) -> None:
    """Keep ``NAME.bak``, which the next save replaces, under a name with its time.

    Raises
    ------
    FileAccessError
        It cannot be renamed.
    """
    from pathlib import Path

    target = Path(os.path.realpath(path))
    before = backup_name(target)
    try:
        os.rename(before, name_with_time(target, int(os.stat(before).st_mtime)))
    except FileNotFoundError:
        return
    except OSError as error:
        raise access_error(error, before, "write") from error


def prune(path: StrPath, count: int) -> list[str]:
    """Remove the oldest backups of a file until there are ``count``; return the names of those that went.

    ``NAME.bak`` is the newest, and what cannot be removed stays.
    """
    from pathlib import Path

    target = Path(os.path.realpath(path))
    stem, suffix = _stem_and_suffix(target)
    pattern = re.compile(rf"{re.escape(stem)}_(?P<time>\d[\dT_\-]*){re.escape(suffix)}", re.DOTALL)
    dated = []
    with contextlib.suppress(OSError):
        for name in os.listdir(target.parent):
            if (match := pattern.fullmatch(name)) and not _is_anothers(target, name):
                dated.append((age_of(match["time"], os.stat(target.with_name(name))), name))
    dated.sort(reverse=True)
    gone = []
    for _, name in dated[max(0, count - os.path.lexists(f"{target}.bak")) :]:
        let_go(target.with_name(name))
        with contextlib.suppress(OSError):
            os.unlink(target.with_name(name))
            gone.append(name)
    return gone


def name_with_time(target: Path, when: int) -> Path:
    """Return the name of a backup of this time, or of a later second where there is one already."""
    stem, suffix = _stem_and_suffix(target)
    name = target.with_name(f"{stem}_{when}{suffix}")
    while os.path.lexists(name):
        when += 1
        name = target.with_name(f"{stem}_{when}{suffix}")
    return name


def keep_aside(target: Path) -> str:
    """Keep the present file under a name with the time, by a second link or a copy."""
    from pathlib import Path

    if target.is_symlink():
        target = Path(os.path.realpath(target))
    name = name_with_time(target, int(time.time()))
    try:
        os.link(target, name)
    except OSError:
        try:
            _link_or_copy(target, name, None)
        except OSError as error:
            with contextlib.suppress(OSError):
                name.unlink()
            raise access_error(error, name, "write") from error
    return str(name)


def keep_backup(path: StrPath, count: int = 1, *, copy_of: int | None = None) -> None:
    """Make ``NAME.bak`` the present file, without a moment in which neither exists.

    Parameters
    ----------
    count
        How many backups there will be. 1: the one that was there goes. More: it is kept under a name with its time;
        what is too much is for ``prune``, when the new file is in its place.
    copy_of
        The file will be changed in place, so that a second name of it would not do: an open handle of it.

    Raises
    ------
    FileAccessError
        It cannot be written; then nothing has changed.
    """
    from pathlib import Path

    target = Path(resolved(path))
    temporary = target.with_name(f".{stem_of(target)}.{os.getpid()}.bak.tmp")
    try:
        with contextlib.suppress(FileNotFoundError):
            temporary.unlink()
        try:
            _link_or_copy(target, temporary, copy_of)
            if count > 1:
                make_room(target)
            else:
                let_go(backup_name(target))
            os.replace(temporary, backup_name(target))
        except BaseException:
            with contextlib.suppress(OSError):
                temporary.unlink()
            raise
    except OSError as error:
        raise access_error(error, backup_name(target), "write") from error


def _link_or_copy(target: Path, name: Path, copy_of: int | None) -> None:
    if copy_of is None:
        with contextlib.suppress(OSError):
            os.link(target, name)
            return
    import shutil

    with contextlib.ExitStack() as opened:  # a file system without hard links
        old = opened.enter_context(open(target, "rb")).fileno() if copy_of is None else copy_of
        new = opened.enter_context(open(name, "xb"))
        copy_file(old, new.fileno())
        os.fsync(new.fileno())
    shutil.copystat(target, name)


def stem_of(target: Path) -> str:
    """Return what the names of files beside ``target`` start with; a long name leaves no room for more."""
    raw = os.fsencode(target.name)
    if len(raw) <= 200:
        return target.name
    import hashlib

    return hashlib.sha256(raw).hexdigest()[:32]
