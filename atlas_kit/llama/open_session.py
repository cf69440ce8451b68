"""How a session starts: which memory it has, from which file, and what to say when that file is no good.

Commands (and whatever else offers a memory by file name) share these decisions; ``AtlasSession`` itself only does
what it is told.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Mapping
from typing import Any

from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    KeyNotFoundError,
    MagicMismatchError,
    NoSuchFileError,
    Remedy,
    WrongModelError,
)
from atlas_kit.llama import memory_choice
from atlas_kit.llama.engine import Engine
from atlas_kit.llama.session import DEVICES, AtlasSession
from atlas_kit.llama.session_states import episodes_of
from atlas_kit.persistence.entry_keys import DESCRIPTION
from atlas_kit.persistence.session_file import about_session, read_session_state
from atlas_kit.persistence.session_state import SessionState
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.urls import is_url


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
    keys = Keys() if keys is None else keys
    native: tuple[AtlasSettings | None, str | None] | None = None
    if memory is None:
        memory = bool(file or changes or config)
        if not memory:
            native = memory_choice.of_native(engine)
            memory = native[0] is not None
    if not memory:
        return AtlasSession(engine, None, device=device, learn=learn)
    if file is not None and (is_url(file) or os.path.lexists(file)):
        with _naming_a_backup(file, keys):
            state = _read(
                engine, file, DEVICES.get(device, "numpy"), context=context, force=force, keys=keys,
                required=False,
            )  # fmt: skip
        if state is not None:
            retuned = {**(config.to_json() if config is not None else {}), **changes}
            return _going_on(engine, state, file, keys, retuned, device=device, learn=learn)
    if file is not None and not learn:
        raise NoSuchFileError("there is no memory to read from yet", path=file, hint="Learn something first.")
    if memory is True and config is None:
        config, sidecar = memory_choice.native_or_default(
            memory_choice.of_native(engine) if native is None else native, changes
        )
        changes = {}
        if sidecar is not None:
            with _naming_a_backup(sidecar, keys):
                state = _read(
                    engine, sidecar, DEVICES.get(device, "numpy"), context=False, force=force, keys=keys
                )
            assert state is not None
            return _going_on(engine, state, sidecar, keys, config.to_json(), device=device, learn=learn)
    kind: Any = memory if config is None else config
    return AtlasSession(engine, kind, device=device, learn=learn, **changes)


def _going_on(
    engine: Engine, state: SessionState, file: str, keys: Keys, retuned: Mapping[str, Any], **how: Any
) -> AtlasSession:
    """Return a session that goes on from what a file held, with some settings changed."""
    session = AtlasSession(engine, None, **how)
    try:
        _restore(session, state, file, keys)
        assert session.memory is not None
        before = session.memory.settings.episode_tokens
        session.memory.retune(retuned)
        if session.memory.settings.episode_tokens != before:
            session.episodes = episodes_of(engine, state, session.memory.settings)
    except BaseException:
        session.close()
        raise
    return session


def load(session: AtlasSession, file: str, *, context: bool, force: bool = False, keys: Keys) -> None:
    """Do ``session.load``, asking for a passphrase if need be, and naming a backup if the file is damaged.

    Raises
    ------
    AtlasError
        As ``AtlasSession.load``.
    """
    with _naming_a_backup(file, keys):
        state = _read(session.engine, file, session.backend, context=context, force=force, keys=keys)
    assert state is not None
    _restore(session, state, file, keys)


def _read(
    engine: Engine, file: str, backend: str, *, context: bool, force: bool, keys: Keys, required: bool = True
) -> SessionState | None:
    """Return the state in a file, which is opened once.

    None, unless one is required: it holds other entries only, and a new memory could be put into it.
    """
    from atlas_kit.formats.opening import open_memory

    identity = engine.info.identity
    with open_memory(file, keys) as opened:
        if not required and DESCRIPTION not in opened:
            expected = bytes.fromhex(identity)
            if any(opened.model_hash) and opened.model_hash != expected and not force:
                raise WrongModelError(
                    opened.model_hash, expected, path=opened.path, remedy=Remedy("force-into-file")
                )
            return None
        try:
            return read_session_state(
                opened, context=context, expect_model=identity, force=force, backend=backend
            )
        except WrongModelError as error:
            error.hint, error.remedy = None, Remedy("force-load")
            raise


def _restore(session: AtlasSession, state: SessionState, file: str, keys: Keys) -> None:
    with _naming_a_backup(file, keys), about_session(file):
        session.restore(state, force=True)  # as far as it is forced, it was read


@contextlib.contextmanager
def _naming_a_backup(file: str, keys: Keys) -> Iterator[None]:
    """Let an error about a damaged file name a backup that would load."""
    try:
        yield
    except (FileCorruptError, MagicMismatchError, KeyNotFoundError) as error:
        _name_a_backup(error, file, keys)
        raise


def _name_a_backup(error: AtlasError, file: str, keys: Keys) -> None:
    """Let the error name the newest backup that holds a memory which could be loaded."""
    from atlas_kit.persistence.backups import list_backups, newest_good

    try:
        listed = list_backups(file, keys, accept=memory_choice.settings_of)
    except AtlasError:
        return
    if found := newest_good(listed):
        number, backup = found
        error.hint = None
        error.remedy = Remedy("recover-number", backup=backup.path, file=file, number=str(number))
    elif listed.backups:
        error.hint = f"{error.hint or ''} None of its backups would load.".strip()
