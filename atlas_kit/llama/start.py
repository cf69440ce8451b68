"""How a session starts: which memory it has, from which file, and what to say when that file is no good.

Commands (and whatever else offers a memory by file name) share these decisions; ``AtlasSession`` itself only does
what it is told.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
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
from atlas_kit.llama import keeping
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.session import AtlasSession
from atlas_kit.operations._inputs import Keys, same_file
from atlas_kit.operations.settings import AtlasSettings


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
        memory = bool(file or changes or config) or is_native(engine)
    if not memory:
        return AtlasSession(engine, None, device=device, learn=learn)
    if file is not None and _holds_memory(engine, file, keys, force):
        session = AtlasSession(engine, None, device=device, learn=learn)
        try:
            load(session, file, context=context, force=force, keys=keys)
            assert session.memory is not None
            session.memory.retune(_different(session.memory.settings, config, changes))
        except BaseException:
            session.close()
            raise
        return session
    if file is not None and not learn:
        raise NoSuchFileError("there is no memory to read from yet", path=file, hint="Let it learn first.")
    kind: Any = memory if config is None else config
    return AtlasSession(engine, kind, device=device, learn=learn, **changes)


def _different(
    settings: AtlasSettings, config: AtlasSettings | None, changes: Mapping[str, Any]
) -> dict[str, Any]:
    """Return which settings somebody wants otherwise than a loaded memory has them."""
    wanted = {**(config.to_json() if config is not None else {}), **changes}
    have = settings.to_json()
    return {name: value for name, value in wanted.items() if value != have[name]}


def is_native(engine: Engine) -> bool:
    """Tell whether the model file itself asks for a memory."""
    if not Path(engine.info.path).is_file():
        return False
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.operations.native_model import native_settings

    with GGUFFile.open(engine.info.path) as file:
        return native_settings(file)[0] is not None


def check_place(file: str, model: str) -> None:
    """Raise where a memory could not be saved, before anything is read for it.

    Raises
    ------
    FileAccessError, InvalidParamError
        There is no such folder, it cannot be written to, or the name is a folder's or the model's own.
    """
    folder = os.path.dirname(file) or "."
    if os.path.isdir(file):
        raise FileAccessError("this is a folder", path=file, hint="Name a file for the memory.")
    if same_file(file, model):
        raise InvalidParamError("the memory cannot be kept in the model's own file", path=file)
    if not os.path.isdir(folder):
        raise NoSuchFileError("there is no such folder", path=folder, hint="Make it first.")
    if not os.access(folder, os.W_OK) or (os.path.exists(file) and not os.access(file, os.W_OK)):
        raise FileAccessError("the memory could not be saved here: permission denied", path=file)


def _holds_memory(engine: Engine, file: str, keys: Keys, force: bool) -> bool:
    """Tell whether a file has a memory; see that a new one could be put into a file that has none."""
    if not os.path.lexists(file):
        return False
    from atlas_kit.operations._inputs import open_memory
    from atlas_kit.operations.inspect import LEARNED

    try:
        with open_memory(file, keys) as opened:
            if LEARNED in opened:
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
    from atlas_kit.operations.recover import list_backups

    try:
        backups = list_backups(file, keys).backups
    except AtlasError:
        return error
    for number, backup in enumerate(backups, 1):
        if not backup.ok:
            continue
        try:
            keeping.settings_of(backup.path, **keys.options())
        except AtlasError:
            continue
        error.hint = f"{backup.path} would load: atlas-tool recover {file} --restore {number}"
        return error
    if backups:
        error.hint = f"{error.hint or ''} None of its backups would load.".strip()
    return error
