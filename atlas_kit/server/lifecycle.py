"""The memory that outlives a restart: loaded at the start, saved while running and at the end.

A file that is no good never keeps the server from starting: it is set aside, the newest good backup is used, and what
happened is told in ``MemoryFile.report``. Files are written beside decoding, from a state that stays as it was.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from array import array
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, NoSuchFileError, WrongModelError
from atlas_kit.llama.parking import Parked
from atlas_kit.llama.session_states import token_memory
from atlas_kit.persistence.auto_save import AutoSave
from atlas_kit.persistence.place import Place, automatic_path
from atlas_kit.persistence.session_file import read_session_state
from atlas_kit.server.conversations import Conversation, Key
from atlas_kit.server.jobs import called

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.llama.engine import Engine
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.server.config import ServerConfig
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.settings.atlas_settings import AtlasSettings

log = logging.getLogger("atlas_kit.server")
#: The conversation that requests without a session share where a memory is kept.
SHARED = Key("", "default")


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


class SharedMemory:
    """The file of the memory that requests without a session share.

    Parameters
    ----------
    config, engine, settings
        How the server is set up, the model, and what a new memory is like.

    Raises
    ------
    AtlasError
        A memory could not be saved where it is to be kept, or another server uses that file.
    """

    def __init__(self, config: ServerConfig, engine: Engine, settings: AtlasSettings) -> None:
        self._config, self._engine, self._settings = config, engine, settings
        self.path = config.atlas_memory_file or automatic_path(engine.info.path, config.atlas_memory_dir)
        self.report = Report()
        self._place = Place(self.path, engine.info.path)
        self._policy = AutoSave(seconds=config.atlas_auto_save_interval)
        self._saving = asyncio.Lock()

    # --- the start -----------------------------------------------------------------------------------------

    def load(self) -> Conversation:
        """Return the conversation that goes on with what the file holds, or a new one."""
        found = Conversation(SHARED, self._settings)
        if os.path.lexists(self.path):
            state = self._state_of_file()
            if state is not None:
                self._take_over(found, state)
                return found
        from atlas_kit.llama.session import DEVICES
        from atlas_kit.llama.token_memory import TokenMemory

        memory = TokenMemory(self._engine.output_rows(), self._settings, DEVICES[self._config.device])
        found.parked = Parked(memory)
        return found

    def _state_of_file(self) -> SessionState | None:
        try:
            state = self._read(self.path)
        except AtlasError as error:
            self._set_aside(error)
            return self._newest_backup()
        self.report.loaded = True
        return state

    def _read(self, file: str | MemoryFile) -> SessionState:
        state = read_session_state(file, expect_model=self._engine.info.identity)
        token_memory(self._engine, state)  # it fits, or the next one is tried
        return state

    def _set_aside(self, error: AtlasError) -> None:
        """Move a file that is no good out of the way; what is said has no folder in it."""
        stamp = time.strftime("%Y%m%d-%H%M%S")
        why = "is another model's" if isinstance(error, WrongModelError) else "cannot be used"
        aside = f"{self.path}.{stamp}.aside"
        self.report.problem = f"{os.path.basename(self.path)} {why}: {error.message}"
        try:
            os.replace(self.path, aside)
            self.report.set_aside = os.path.basename(aside)
        except OSError as failed:
            self.report.problem += f"; it could not be set aside: {failed.strerror}"
        log.warning("%s", self.report.problem)

    def _newest_backup(self) -> SessionState | None:
        from atlas_kit.persistence.backups import list_backups, newest_good

        with contextlib.suppress(AtlasError):
            found = newest_good(list_backups(self.path, accept=self._read))
            if found is not None:
                state = self._read(found[1].path)
                self.report.backup, self.report.loaded = os.path.basename(found[1].path), True
                log.warning("the memory goes on from its backup %s", self.report.backup)
                return state
        return None

    def _take_over(self, conversation: Conversation, state: SessionState) -> None:
        memory = token_memory(self._engine, state)
        with contextlib.suppress(AtlasError):
            memory.retune(self._config.changes)
        conversation.settings = memory.settings
        conversation.parked = Parked(
            memory, True, list(state.tokens), state.position, state.context, [], None
        )
        if state.tokens:
            conversation.branches = [array("i", state.tokens)]
            conversation.history = conversation.branches[0]
        self._policy.saved(memory.tokens_seen)

    # --- saving --------------------------------------------------------------------------------------------

    async def save(self, conversations: Conversations, conversation: Conversation) -> bool:
        """Save what is known now; tell whether that worked, which is in the report, too."""
        async with self._saving:
            began = time.monotonic()
            try:
                state = await state_of(conversations, conversation)
                await asyncio.to_thread(self._write, state)
            except AtlasError as error:
                self.report.failed_saves += 1
                self.report.last_problem = error.message
                log.warning("the memory was not saved: %s", error.message)
                return False
            self.report.saves += 1
            self.report.last_saved, self.report.last_seconds = time.time(), time.monotonic() - began
            self.report.seconds_saving += self.report.last_seconds
            self.report.last_problem = None
            self._policy.saved(seen(conversation))
            log.info("memory saved: %s", os.path.basename(self.path))
            return True

    def _write(self, state: SessionState) -> None:
        count = self._config.atlas_memory_backup_count
        self._place.save(state, backup=count > 0, codec="lz4" if self._config.atlas_memory_compress else None)

    def due(self, conversation: Conversation) -> bool:
        """Tell whether it is time for a save."""
        return self._config.atlas_auto_save and self._policy.due(seen(conversation))

    def changed(self, conversation: Conversation) -> bool:
        """Tell whether there is anything to be saved."""
        return self._policy.changed(seen(conversation))


async def state_of(conversations: Conversations, conversation: Conversation) -> SessionState:
    """Return a conversation's state, between two of its requests."""
    async with conversations.lease(conversation, "save") as slot:
        state: SessionState = await called(conversations.scheduler, slot.session, slot.session.state)
        return state


def seen(conversation: Conversation) -> int:
    """Return how many tokens a conversation's memory has taken in."""
    inside: Any = conversation.parked if conversation.slot is None else conversation.slot.session
    return 0 if inside is None or inside.memory is None else inside.memory.tokens_seen


def require_name(name: str) -> None:
    """Refuse a file name from a client that is more than a name.

    Raises
    ------
    NoSuchFileError
        It is empty, hidden, too long, or leads elsewhere.
    """
    plain = name.isprintable() and os.sep not in name and "\\" not in name and not name.startswith(".")
    if not plain or not 0 < len(name.encode("utf-8", "replace")) <= 255:
        raise NoSuchFileError("this is not the name of a memory", key="filename")
