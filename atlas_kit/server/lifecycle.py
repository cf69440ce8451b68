"""The memory that outlives a restart: loaded at the start, saved while running and at the end.

A file that is no good never keeps the server from starting: it is set aside, the newest good backup is used, and what
happened is told in ``SharedMemory.report``. Files are written beside decoding, from a state that stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import stat
import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    FileCorruptError,
    KeyRequiredError,
    LockedError,
    NoSuchFileError,
    Remedy,
    WrongKeyError,
    WrongModelError,
)
from atlas_kit.llama.parking import Parked, new_parked, parked_of
from atlas_kit.persistence.auto_save import AutoSave
from atlas_kit.persistence.backups import list_backups, make_room, newest_good, prune
from atlas_kit.persistence.place import Place, automatic_path, lock_of_server
from atlas_kit.persistence.session_file import read_session_state, seal
from atlas_kit.server.conversation import Conversation, about, take_over
from atlas_kit.server.jobs import finished
from atlas_kit.server.keys import SHARED
from atlas_kit.server.session_files import make_private, session_info
from atlas_kit.storage.atomic import atomic_write
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.pace import gently, give_back

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.llama.engine import Engine
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.server.config import ServerConfig
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.shared_files import SharedFile
    from atlas_kit.settings.atlas_settings import AtlasSettings

log = logging.getLogger("atlas_kit.server")


@dataclass
class Report:
    """What became of the memory's file: for the log and ``/v1/atlas/status``."""

    loaded: bool = False
    set_aside: str | None = None
    backup: str | None = None
    problem: str | None = None
    saves: int = 0
    failed_saves: int = 0
    seconds_saving: float = 0.0
    last_saved: float | None = None
    last_seconds: float | None = None
    last_problem: str | None = None


class _Held(NamedTuple):
    """What a file holds: the inside of a conversation, its texts among the rest, and what is said of it."""

    parked: Parked
    state: SessionState
    info: dict[str, Any]


class SharedMemory:
    """The file of the memory that requests without a session share; ``close`` lets another server use it.

    Parameters
    ----------
    config, engine, settings
        How the server is set up, the model, and what a new memory is like.
    far
        Where the file is put after each save, if it is kept at an address; it is open.

    Raises
    ------
    LockedError
        Another server uses that file.
    AtlasError
        It can be no memory's: a folder, the model itself, or in a folder that there is not. One that may only be read
        is no error: ``report`` says so, and it is tried again with each save.
    """

    def __init__(
        self,
        config: ServerConfig,
        engine: Engine,
        settings: AtlasSettings,
        keys: Keys | None = None,
        far: SharedFile | None = None,
    ) -> None:
        self._keys = Keys() if keys is None else keys
        self._config, self._engine, self._settings = config, engine, settings
        self._far = far
        given = config.atlas_memory_file if far is None else far.path
        self.path = given or automatic_path(engine.info.path, config.atlas_memory_dir)
        self.report = Report()
        self._policy = AutoSave(seconds=config.atlas_auto_save_interval)
        self._saving = asyncio.Lock()
        self._hurry = threading.Event()
        self._held = contextlib.ExitStack()
        self._place: Place | None = None
        try:
            self._place = self._opened()
        except (LockedError, NoSuchFileError):
            raise
        except FileAccessError as error:
            if os.path.lexists(self.path) and not os.path.isfile(self.path):
                raise
            self.report.last_problem = error.message
            log.warning("%s cannot be saved now: %s", os.path.basename(self.path), error.message)

    def _opened(self) -> Place:
        """Return the place of the file, which is this server's from now on."""
        place = Place(self.path, self._engine.info.path, self._keys)
        try:
            self._held.enter_context(lock_of_server(self.path))
        except LockedError as error:
            raise LockedError(
                "another server keeps its memory in this file", path=self.path, hint="Name another file."
            ) from error
        return place

    def configure(self, config: ServerConfig) -> None:
        """Save as often as is wanted from now on."""
        if config.atlas_auto_save_interval != self._config.atlas_auto_save_interval:
            self._policy = AutoSave(seconds=config.atlas_auto_save_interval)
        self._config = config

    def owns(self, path: str | os.PathLike[str]) -> bool:
        """Tell whether a file is the memory's, one of its backups, or what was set aside of it."""
        own, other = os.path.realpath(self.path), os.path.realpath(path)
        if os.path.dirname(own) != os.path.dirname(other):
            return False
        own, other = os.path.basename(own), os.path.basename(other)
        dated = other.startswith(f"{os.path.splitext(own)[0]}_") and other.endswith(".bak")
        return other == own or other.startswith(f"{own}.") or dated

    def close(self) -> None:
        """Let another server use the file."""
        self._held.close()

    # --- the start -----------------------------------------------------------------------------------------

    def load(self) -> Conversation:
        """Return the conversation that goes on with what the file holds, or a new one."""
        found = Conversation(SHARED, self._settings)
        held: _Held | None = None
        if os.path.lexists(self.path):
            try:
                seal(self.path, **self._keys.options())
                held = self._read(self.path)
                self.report.loaded = True
            except (KeyRequiredError, WrongKeyError) as error:  # nothing is wrong with the file
                error.hint, error.remedy = None, Remedy("give-server-key")
                raise
            except Exception as error:  # whatever a file does to its reader, the server starts
                self._set_aside(error)
                held = self._newest_backup()
        found.problem = self.report.problem
        if held is None:
            from atlas_kit.llama.session import DEVICES

            found.parked = new_parked(self._engine, self._settings, DEVICES[self._config.device])
            return found
        assert held.parked.memory is not None
        try:
            held.parked.memory.retune(self._config.changes)
        except AtlasError as error:
            log.warning("the memory keeps its own settings: %s", error.message)
        take_over(found, held.parked, held.state, held.info)
        found.version = 1
        if self.report.backup is None:
            found.saved = 1
            self._policy.saved(1)
        return found

    def _read(self, file: str | MemoryFile) -> _Held:
        """Return what a file holds; it fits, or this raises."""
        from atlas_kit.llama.session import DEVICES

        config = self._config
        state = read_session_state(
            file, expect_model=self._engine.info.identity, optimizer=config.atlas_load_optimizer,
            window=config.atlas_load_window, **self._keys.options(),
        )  # fmt: skip
        info = session_info(file, **self._keys.options())
        return _Held(parked_of(self._engine, state, DEVICES[config.device]), state, info)

    def _set_aside(self, error: Exception) -> None:
        """Move a file that is no good out of the way; what is said has no folder in it."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        why = "is another model's" if isinstance(error, WrongModelError) else "cannot be used"
        what = error.message if isinstance(error, AtlasError) else "it is damaged"
        aside, number = f"{self.path}.{stamp}.aside", 1
        while os.path.lexists(aside):
            number += 1
            aside = f"{self.path}.{stamp}-{number}.aside"
        self.report.problem = f"{os.path.basename(self.path)} {why}: {what}"
        try:
            os.replace(self.path, aside)
            self.report.set_aside = os.path.basename(aside)
        except OSError as failed:
            self.report.problem += f"; it could not be set aside: {failed.strerror}"
        log.warning("%s", self.report.problem)

    def _newest_backup(self) -> _Held | None:
        """Return what the newest good backup holds."""

        def accept(file: MemoryFile) -> None:
            try:
                self._read(file)
            except AtlasError:
                raise
            except Exception as error:
                raise FileCorruptError("the backup is damaged", path=file.path) from error

        with contextlib.suppress(AtlasError):
            found = newest_good(list_backups(self.path, self._keys, accept=accept))
            if found is not None:
                read = self._read(found[1].path)
                self.report.backup, self.report.loaded = os.path.basename(found[1].path), True
                self.report.problem = (
                    f"{self.report.problem}; it goes on from its backup {self.report.backup}"
                )
                log.warning("the memory goes on from its backup %s", self.report.backup)
                self._put_back(found[1].path)
                return read
        return None

    def _put_back(self, backup: str) -> None:
        """Let the file be a copy of a backup: a server that is killed before its next save begins with that again."""
        if os.path.lexists(self.path):  # what is no good could not be moved
            return
        with contextlib.suppress(OSError, AtlasError):
            info = os.stat(backup)
            with open(backup, "rb") as source, atomic_write(self.path) as file:
                if hasattr(os, "fchmod"):
                    os.fchmod(file.fileno(), stat.S_IMODE(info.st_mode))
                shutil.copyfileobj(source, file, 1 << 20)

    # --- saving --------------------------------------------------------------------------------------------

    async def save(
        self,
        conversations: Conversations,
        conversation: Conversation,
        *,
        exact: bool = True,
        waited_for: bool = True,
    ) -> bool:
        """Save what is known now; tell whether that worked, which is in the report, too.

        ``exact``: with the engine's bytes of the context, so that the next start need not read it again.
        ``waited_for``: somebody waits, so that it is written at once. Otherwise it is written so that those who wait
        for tokens do not notice.
        """
        if waited_for:
            self.hurry()
        else:
            self._hurry = threading.Event()
        pace = contextlib.nullcontext() if waited_for else gently(self._hurry)
        async with self._saving:
            began = time.monotonic()
            try:
                state, version = await conversations.state(conversation, exact=exact)
                if state is None:
                    return True
                await finished(asyncio.to_thread(self._write, state, about(conversation), pace))
            except Exception as error:
                self._failed(error)
                return False
            self.report.saves += 1
            self.report.last_saved, self.report.last_seconds = time.time(), time.monotonic() - began
            self.report.seconds_saving += self.report.last_seconds
            self.report.last_problem = None
            conversation.saved = version
            conversation.exact = exact or not state.tokens
            self._policy.saved(version)
            log.info("memory saved: %s", os.path.basename(self.path))
            return True

    def _failed(self, error: Exception) -> None:
        self.report.failed_saves += 1
        self.report.last_problem = error.message if isinstance(error, AtlasError) else "an unexpected error"
        known = isinstance(error, AtlasError)
        log.warning(
            "the memory was not saved: %s", self.report.last_problem, exc_info=None if known else error
        )

    def hurry(self) -> None:
        """Let a save that takes its time be written at once."""
        self._hurry.set()

    def _write(
        self, state: SessionState, info: dict[str, Any], pace: contextlib.AbstractContextManager[None]
    ) -> None:
        if self._place is None:
            self._place = self._opened()
        make_private(os.path.dirname(os.path.realpath(self.path)))  # somebody may have tidied up
        count = self._config.atlas_memory_backup_count
        if count > 1 and os.path.lexists(self.path):
            make_room(self.path)
        options: dict[str, Any] = {"codec": "lz4"} if self._config.atlas_memory_compress else {}
        with pace:
            self._place.save(state, backup=count > 0, metadata={"session": info}, **options)
            prune(self.path, count)
        if self._far is not None:
            self._far.put()
        state.memory.map(give_back)

    @property
    def lacking(self) -> str | None:
        """Why what was saved last is not where the file is kept; None: it is."""
        return None if self._far is None else self._far.lacking

    def due(self, conversation: Conversation) -> bool:
        """Tell whether it is time for a save."""
        return self._config.atlas_auto_save and self._policy.due(conversation.version)

    def changed(self, conversation: Conversation) -> bool:
        """Tell whether there is anything to be saved."""
        return conversation.version != conversation.saved or not conversation.exact
