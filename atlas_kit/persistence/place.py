"""The file that a memory is kept in: its name beside a model, whether it can be written, and whose it is by now.

Knows files and states, no session and no engine.
"""

from __future__ import annotations

import contextlib
import errno
import os
import time
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, ConflictError, FileAccessError, InvalidParamError, NoSuchFileError
from atlas_kit.formats.endings import require_ending
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.storage.atomic import lock
from atlas_kit.storage.given import StrPath, same_file
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import access_error
from atlas_kit.storage.urls import require_here

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.persistence.session_state import SessionState


def automatic_path(model: StrPath, folder: StrPath | None = None) -> str:
    """Return where the memory of a model is kept if nobody says: ``a/llama-7b.gguf`` -> ``a/llama-7b_memory.atlas``.

    ``folder``: there instead of beside the model.
    """
    from atlas_kit.formats.atlas import MemoryFile

    where = os.path.dirname(os.fspath(model)) if folder is None else os.fspath(folder)
    return os.path.join(where, MemoryFile.auto_filename(model))


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
        self.file, self._keys = file, Keys() if keys is None else keys
        _check_place(file, model)
        self._stamp, self._opened_ms = _stamp(file), int(time.time() * 1000)

    def require_encrypted(self) -> None:
        """See that a file which is there is encrypted if there is a passphrase or a key, before any work is done.

        Raises
        ------
        InvalidParamError
            It is not: saving would be refused.
        """
        from atlas_kit.formats.opening import open_memory, require_encrypted

        if self._keys.given and os.path.lexists(self.file):
            with open_memory(self.file, self._keys) as memory:
                require_encrypted(memory, self._keys)

    def save(self, state: SessionState, *, backup: bool | int = False, **options: Any) -> bool:
        """Save a session's state; ``options`` are those of ``write_session_state``.

        Returns True when somebody else has written the file since it was read or saved here: then theirs is kept as
        ``NAME.bak``, as with ``backup``.

        Raises
        ------
        ConflictError
            Text was forgotten from the file meanwhile, which this would bring back.
        AtlasError
            As ``write_session_state``.
        """
        from atlas_kit.persistence.session_file import write_session_state

        theirs = _stamp(self.file) not in (None, self._stamp)
        if theirs:
            self._require_nothing_forgotten()
        write_session_state(self.file, state, backup=backup or theirs, **options, **self._keys.options())
        self._stamp = _stamp(self.file)
        return theirs

    def _require_nothing_forgotten(self) -> None:
        from atlas_kit.persistence.session_file import forgotten_at

        forgotten = 0
        with contextlib.suppress(AtlasError):  # what cannot be read is kept aside
            forgotten = forgotten_at(self.file, self._keys)
        if forgotten >= self._opened_ms:
            raise ConflictError(
                "text was forgotten from this memory while it was open here, and saving would bring it back",
                path=self.file,
                hint="Open it again, or save under another name.",
            )

    def holds_text_of_another(self, identity: str) -> bool:
        """Tell whether the file holds what was read or said beside another model, which a save would not keep."""
        from atlas_kit.formats.opening import open_memory

        if not os.path.lexists(self.file):
            return False
        try:
            with open_memory(self.file, self._keys) as file:
                return EPISODES in file and any(file.model_hash) and file.model_hash.hex() != identity
        except AtlasError:
            return False

    def save_episodes(self, episodes: EpisodeArrays, identity: str, **options: Any) -> bool:
        """Save what was read and said, and nothing else: quick; ``options`` are those of ``save_episodes``.

        Returns False when somebody else has written the file meanwhile: then nothing is written, and the next `save`
        keeps theirs.
        """
        from atlas_kit.persistence.session_file import save_episodes

        if _stamp(self.file) not in (None, self._stamp):
            return False
        save_episodes(self.file, episodes, identity=identity, **options, **self._keys.options())
        self._stamp = _stamp(self.file)
        return True


def lock_of_server(file: StrPath) -> contextlib.AbstractContextManager[None]:
    """Return the lock that a server holds as long as it keeps its memory in this file.

    Entering raises ``LockedError`` where one does.
    """
    return lock(f"{os.path.realpath(file)}.server", timeout=1.0)


def _stamp(file: str) -> tuple[int, ...] | None:
    """Return what changes whenever a file is replaced or written to; None where there is none."""
    try:
        info = os.stat(file)
    except OSError:
        return None
    return info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns


def _check_place(file: str, model: str) -> None:
    require_here(file, "a memory that changes is kept in a file on this machine only")
    folder = os.path.dirname(file) or "."
    if not file or "\0" in file:
        raise InvalidParamError(f"{file!r} is not a file name", key="memory_file")
    if os.path.isdir(file):
        raise FileAccessError("this is a folder", path=file, hint="Name a file for the memory.")
    if same_file(file, model):
        raise InvalidParamError("the memory cannot be kept in the model's own file", path=file)
    if file.lower().endswith(".gguf") and not os.path.exists(file):
        raise InvalidParamError(
            "this is the name of a model, and there is none", path=file, hint="Name the memory NAME.atlas."
        )
    if not os.path.exists(file):
        require_ending(file, "atlas")
    if not os.path.isdir(folder):
        raise NoSuchFileError("there is no such folder", path=folder, hint="Create it first.")
    if os.path.exists(file) and not os.path.isfile(file):
        raise FileAccessError("this is not a regular file", path=file, hint="Name a file for the memory.")
    try:
        with contextlib.suppress(FileNotFoundError):
            os.lstat(file)  # an impossible name shows now
        if os.path.exists(file) and not os.access(file, os.W_OK):
            raise PermissionError(errno.EACCES, "")
    except OSError as error:
        raise access_error(error, file, "write") from error
    with lock(file):  # the folder can be written to
        pass
