"""How a session starts: which memory it has, from which file, and what to say when that file is no good.

Commands (and whatever else offers a memory by file name) share these decisions; ``AtlasSession`` itself only does
what it is told.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Mapping
from typing import Any

from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    FileCorruptError,
    InvalidParamError,
    KeyNotFoundError,
    KeyRequiredError,
    MagicMismatchError,
    NoSuchFileError,
    WrongModelError,
)
from atlas_kit.llama import session_file
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.session import AtlasSession
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.given import same_file
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import access_error


def open_session(
    engine: Engine,
    memory: bool | str | None = None,
    *,
    file: str | None = None,
    config: AtlasSettings | None = None,
    changes: Mapping[str, Any] | None = None,
    device: str = "cpu",
    learn: bool = True,
    context: bool = False,
    force: bool = False,
    keys: Keys | None = None,
) -> AtlasSession:
    """Return a session with the memory that somebody asked for.

    Parameters
    ----------
    memory
        False: none. True or ``"auto"``: as for ``AtlasSession``. None: one if a file, a setting or an ATLAS-native
        model asks for it.
    file
        Where the memory is kept. If it holds one already, that one goes on, with the sizes that it has; if it does
        not exist, or holds other entries only, a new memory starts.
    config, changes
        All settings; single ones, which stand above them.
    context
        Also go on with the context that was saved.
    force
        Take another model's memory, too.

    Raises
    ------
    WrongModelError
        The file's memory is another model's.
    FileCorruptError
        It is damaged; the hint names a backup that would load.
    InvalidParamError
        Settings do not fit, or ``learn`` is off and there is nothing to read from.
    """
    changes = dict(changes or {})
    keys = keys or Keys()
    if memory is None:
        memory = bool(file or changes or config) or session_file.of_native(engine)[0] is not None
    if not memory:
        return AtlasSession(engine, None, device=device, learn=learn)
    if file is not None and _holds_memory(engine, file, keys, force):
        session = AtlasSession(engine, None, device=device, learn=learn)
        try:
            load(session, file, context=context, force=force, keys=keys)
            assert session.memory is not None
            session.memory.retune({**(config.to_json() if config is not None else {}), **changes})
        except BaseException:
            session.close()
            raise
        return session
    if file is not None and not learn:
        raise NoSuchFileError("there is no memory to read from yet", path=file, hint="Let it learn first.")
    kind: Any = memory if config is None else config
    return AtlasSession(engine, kind, device=device, learn=learn, **changes)


class Place:
    """The file that a session's memory is kept in; make it before the memory is loaded from there.

    Parameters
    ----------
    file, model
        The paths of the memory, and of the model beside which it is.
    keys
        What encrypts it.

    Raises
    ------
    AtlasError
        A memory could not be saved there: no such folder, no permission, no file's name, or the model's own.
    """

    def __init__(self, file: str, model: str, keys: Keys | None = None) -> None:
        self.file, self._keys = file, keys or Keys()
        _check_place(file, model)
        self._stamp = _stamp(file)

    def save(self, session: AtlasSession, *, backup: bool = False, **options: Any) -> bool:
        """Save a session's memory; ``options`` are those of ``AtlasSession.save``.

        Returns True when somebody else has written the file since it was read or saved here: then theirs is kept as
        ``NAME.bak``, as with ``backup``.
        """
        theirs = _stamp(self.file) not in (None, self._stamp)
        session.save(self.file, backup=backup or theirs, **options, **self._keys.options())
        self._stamp = _stamp(self.file)
        return theirs


def _stamp(file: str) -> tuple[int, ...] | None:
    """Return what changes whenever a file is replaced or written to; None where there is none."""
    try:
        info = os.stat(file)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _check_place(file: str, model: str) -> None:
    folder = os.path.dirname(file) or "."
    if not file or "\0" in file:
        raise InvalidParamError(f"{file!r} is no name of a file", key="memory_file")
    if os.path.isdir(file):
        raise FileAccessError("this is a folder", path=file, hint="Name a file for the memory.")
    if same_file(file, model):
        raise InvalidParamError("the memory cannot be kept in the model's own file", path=file)
    if not os.path.isdir(folder):
        raise NoSuchFileError("there is no such folder", path=folder, hint="Make it first.")
    if os.path.exists(file) and not os.path.isfile(file):
        raise FileAccessError("this is no regular file", path=file, hint="Name a file for the memory.")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(file)  # an impossible name shows now
        if os.path.exists(file) and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, "")
    except OSError as error:
        raise access_error(error, file, "write") from error
    with lock(file):  # the folder can be written to
        pass


def _holds_memory(engine: Engine, file: str, keys: Keys, force: bool) -> bool:
    """Tell whether a file has a memory; see that a new one could be put into a file that has none."""
    if not os.path.lexists(file):
        return False
    from atlas_kit.formats.opening import open_memory
    from atlas_kit.persistence.entry_keys import DESCRIPTION

    try:
        with open_memory(file, keys) as opened:
            if DESCRIPTION in opened:
                return True
            expected = bytes.fromhex(engine.info.identity)
            if any(opened.model_hash) and opened.model_hash != expected and not force:
                raise WrongModelError(
                    opened.model_hash, expected, path=opened.path, hint="Use --force to put this memory in."
                )
            return False
    except (FileCorruptError, MagicMismatchError) as error:
        raise _with_backup(error, file, keys) from error


def load(session: AtlasSession, file: str, *, context: bool, force: bool = False, keys: Keys) -> None:
    """Do ``session.load``, asking for a passphrase if need be, and naming a backup if the file is damaged.

    Raises
    ------
    AtlasError
        As ``AtlasSession.load``.
    """
    try:
        try:
            session.load(file, context=context, force=force, **keys.options())
        except KeyRequiredError:
            if not keys.ask_for(file):
                raise
            session.load(file, context=context, force=force, **keys.options())
    except WrongModelError as error:
        error.hint = "Use --force to try it all the same."
        raise
    except (FileCorruptError, MagicMismatchError, KeyNotFoundError) as error:
        raise _with_backup(error, file, keys) from error


def _with_backup(error: AtlasError, file: str, keys: Keys) -> AtlasError:
    """Return the error, its hint naming the newest backup that holds a memory which could be loaded."""
    from atlas_kit.persistence.backups import list_backups

    try:
        backups = list_backups(file, keys).backups
    except AtlasError:
        return error
    for number, backup in enumerate(backups, 1):
        if not backup.ok:
            continue
        try:
            session_file.settings_of(backup.path, **keys.options())
        except AtlasError:
            continue
        error.hint = f"{backup.path} would load: atlas-tool recover {file} --restore {number}"
        return error
    if backups:
        error.hint = f"{error.hint or ''} None of its backups would load.".strip()
    return error
