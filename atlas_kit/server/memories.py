"""What can be done to memories by name: saved into files and loaded from them, forked, reset and looked at.

Files that clients name lie in one folder, those of each API key in one of its own. Knows no HTTP but its statuses.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import os
from typing import TYPE_CHECKING, Any, Protocol

from atlas_kit.errors import AtlasError, NoSuchFileError
from atlas_kit.llama.parking import Parked, parked_of, unpark
from atlas_kit.llama.session import DEVICES
from atlas_kit.persistence.session_file import read_session_state, seal, write_session_state
from atlas_kit.server.conversation import Conversation, about, take_over
from atlas_kit.server.file_names import checked_file_name, inside
from atlas_kit.server.jobs import finished
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.problems import ApiError
from atlas_kit.storage.given import use_source
from atlas_kit.storage.source import access_error
from atlas_kit.storage.urls import is_url, last_part

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.token_memory import TokenMemory
    from atlas_kit.operations.forget import Choice, Forgotten
    from atlas_kit.persistence.session_state import SessionState
    from atlas_kit.server.config import ServerConfig
    from atlas_kit.server.conversations import Conversations
    from atlas_kit.server.kept_responses import KeptResponses
    from atlas_kit.server.lifecycle import SharedMemory
    from atlas_kit.server.session_files import SessionFiles
    from atlas_kit.server.shared_files import SharedMemories
    from atlas_kit.server.shared_store import SharedStore
    from atlas_kit.settings.atlas_settings import AtlasSettings
    from atlas_kit.storage.keys import Keys

SUFFIX = ".atlas"


def checked_name(name: str) -> str:
    """Return the file name of a memory that a client names, which may leave out its ending.

    Raises
    ------
    InvalidParamError
        It is longer than 255 bytes, hidden, or holds anything but ordinary characters.

    >>> checked_name("anna")
    'anna.atlas'
    """
    checked_file_name(name, "memory_file")  # what stands before the ending counts, too
    return checked_file_name(name if name.endswith(SUFFIX) else name + SUFFIX, "memory_file")


class Host(Protocol):
    """What memories need to know of a service."""

    config: ServerConfig
    engine: Engine
    conversations: Conversations
    settings: AtlasSettings
    shared: SharedMemory | None
    store: SharedStore | None
    far: SharedMemories | None
    files: SessionFiles
    responses: KeptResponses
    keys: Keys


class Memories:
    """What a service's clients do with memories."""

    def __init__(self, service: Host) -> None:
        self._service = service

    # --- files of a folder ---------------------------------------------------------------------------------

    def require(self, name: str) -> str:
        """Return the file name of a memory.

        Raises
        ------
        ApiError
            The server has no folder of memories (403), or that is no name (400).
        """
        if self._service.config.atlas_memory_dir is None:
            raise ApiError(
                403,
                "This server was started without a folder of memories, so none can be named.",
                param="memory_file",
                code="no_memory_folder",
            )
        return checked_name(name)

    def _folder(self, namespace: str) -> str:
        self.require("a")
        folder = self._service.config.atlas_memory_dir
        assert folder is not None
        return os.path.join(folder, f"key-{namespace}") if namespace else folder

    def path(self, namespace: str, name: str, *, writing: bool = False) -> str:
        """Return where a memory is kept that a client names.

        Raises
        ------
        ApiError
            That is no name, leads out of the folder, or is the server's own file.
        """
        full, folder = self.require(name), self._folder(namespace)
        found = os.fspath(inside(folder, full, "memory_file"))
        if os.path.lexists(found) and not os.path.isfile(found):
            raise ApiError(403, "This is not the name of a memory.", param="memory_file")
        shared = self._service.shared
        if writing and shared is not None and shared.owns(found):
            raise ApiError(
                409, "The server keeps its own memory in this file.", param="memory_file", code="locked"
            )
        return found

    async def files(self, namespace: str) -> list[dict[str, Any]]:
        """Return what is said of each memory in the folder."""
        return await asyncio.to_thread(self._list, self._folder(namespace))

    def _list(self, folder: str) -> list[dict[str, Any]]:
        far = self._service.far
        found = [] if far is None else [self._described(url) for url in far.addresses(folder)]
        with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
            for entry in entries:
                if entry.name.endswith(SUFFIX) and not entry.name.startswith("."):
                    with contextlib.suppress(OSError):
                        if entry.is_file(follow_symlinks=False) and (far is None or far.waits(entry.path)):
                            found.append(self._described(entry.path))
        return sorted(found, key=lambda one: str(one["memory_file"]))

    def _described(self, path: str) -> dict[str, Any]:
        from atlas_kit.persistence.snapshot import describe_memory

        size, modified = _size_of(path)
        found: dict[str, Any] = {
            "memory_file": last_part(path), "bytes": size, "modified": modified,
            "tokens_learned": None, "fits": False, "problem": None,
        }  # fmt: skip
        try:
            description = describe_memory(path, **self._service.keys.options())
        except AtlasError as error:
            return {**found, "problem": error.message}
        fits = description.model_hash == self._service.engine.info.identity
        return {**found, "tokens_learned": max(description.tokens_learned, default=0), "fits": fits}

    async def delete(self, namespace: str, name: str) -> None:
        """Remove a memory's file.

        Raises
        ------
        ApiError, AtlasError
            There is none, or it cannot be removed.
        """
        path = self.path(namespace, name, writing=True)

        far = self._service.far

        def remove() -> None:
            if far is not None:
                far.bring(path)
            try:
                os.unlink(path)
            except FileNotFoundError as error:
                raise _no_such_memory() from error
            except OSError as error:
                raise access_error(error, path, "write") from error
            if far is not None:
                far.put(path)

        await finished(asyncio.to_thread(remove))

    async def save(self, namespace: str, conversation: Conversation, name: str) -> dict[str, Any]:
        """Write what a conversation knows into a file; return what is to be said of that."""
        path = self.path(namespace, name, writing=True)
        conversations = self._service.conversations
        await self._warm(conversation)
        state, _ = await conversations.state(conversation)
        assert state is not None
        several = conversation.key == SHARED and bool(namespace)  # people, of whom one asks
        if several:
            state = without_texts(state)
        info = {**about(conversation), "namespace": None, "name": None}
        await finished(asyncio.to_thread(self._write, path, state, info, window=not several))
        far = self._service.far
        if far is not None and far.waits(path):
            raise ApiError(507, f"The memory was not saved: {far.store.lacking}.", code="not_saved")
        return self._described(path)

    def _write(self, path: str, state: SessionState, info: dict[str, Any], *, window: bool = True) -> None:
        folder = os.path.dirname(path)
        try:
            os.makedirs(folder, mode=0o700, exist_ok=True)
        except OSError as error:
            raise access_error(error, folder, "write") from error
        options: dict[str, Any] = {"codec": "lz4"} if self._service.config.atlas_memory_compress else {}
        secret = self._service.keys.options()
        if secret and os.path.lexists(path):
            seal(path, **secret)
        write_session_state(path, state, metadata={"session": info}, window=window, **options, **secret)
        if self._service.far is not None:
            self._service.far.put(path)

    async def load(self, namespace: str, conversation: Conversation, name: str) -> None:
        """Let a conversation go on with the memory in a file; its own is lost.

        Raises
        ------
        ApiError, AtlasError
            There is none, it is damaged, or another model's.
        """
        state = await asyncio.to_thread(self._read, self.path(namespace, name))
        await self.restore(conversation, state)

    def _read(self, path: str) -> SessionState:
        if self._service.far is not None:
            self._service.far.bring(path)
        if not os.path.isfile(path):
            raise _no_such_memory()
        config = self._service.config
        return read_session_state(
            path, expect_model=self._service.engine.info.identity, optimizer=config.atlas_load_optimizer,
            window=config.atlas_load_window, **self._service.keys.options(),
        )  # fmt: skip

    # --- what requests ask for -----------------------------------------------------------------------------

    async def begin(self, conversation: Conversation, name: str) -> None:
        """Let a conversation that is new begin with the memory in a file."""
        if conversation.version or conversation.requests or conversation.cold:
            return
        state = await asyncio.to_thread(self._read, self.path(conversation.key.namespace, name))
        await self.restore(conversation, state, only_new=True)

    async def save_in_place(self, conversation: Conversation) -> str | None:
        """Save a memory where it is kept anyway; return why the shared one was not saved.

        Raises
        ------
        AtlasError
            A session's cannot be written, or it was deleted meanwhile.
        """
        service = self._service
        if conversation.key != SHARED:
            await service.conversations.save(conversation)
            if service.store is not None and service.files.waits(conversation.key):
                return service.store.lacking
            return None
        assert service.shared is not None
        saved = await service.shared.save(service.conversations, conversation)
        return service.shared.lacking if saved else service.shared.report.last_problem

    async def keep(self, conversation: Conversation, name: str | None) -> dict[str, Any]:
        """Save the memory of an answer: into the file that the request names, or where it is kept anyway.

        The answer is there already, so what goes wrong is told beside it.
        """
        try:
            if name is not None:
                await self.save(conversation.key.namespace, conversation, name)
            elif (problem := await self.save_in_place(conversation)) is not None:
                return {"saved": False, "problem": problem}
        except (AtlasError, ApiError) as error:
            return {"saved": False, "problem": f"The memory was not saved: {error.message}"}
        return {"saved": True}

    # --- what is done to a conversation --------------------------------------------------------------------

    async def target(self, namespace: str, session_id: str | None) -> Conversation:
        """Return the conversation that is meant: a session, or the memory that requests without one share.

        A session is this server's from then on.

        Raises
        ------
        ApiError
            There is none.
        """
        service = self._service
        if session_id is not None:
            key = Key(namespace, session_id)
            await service.conversations.claims.claim(key, begin=False)
            found = service.conversations.find(key, service.settings)
            if found is None:
                raise ApiError(
                    404, "There is no session of this name.", param="session_id", code="session_not_found"
                )
            return found
        if service.shared is None:
            raise ApiError(
                400, "Name a session: requests without one share no memory here.", param="session_id"
            )
        return service.conversations.named[SHARED]

    async def _warm(self, conversation: Conversation) -> None:
        await self._service.conversations.wake(conversation)

    async def restore(
        self, conversation: Conversation, state: SessionState, *, only_new: bool = False
    ) -> None:
        """Let a conversation go on with a state; its own memory and its texts are lost.

        Raises
        ------
        AtlasError
            The state does not fit the model.
        """
        service = self._service
        device = DEVICES[service.config.device]
        parked = await asyncio.to_thread(parked_of, service.engine, state, device)
        await self._replace(conversation, parked, state, only_new)

    async def _replace(
        self, conversation: Conversation, parked: Parked, state: SessionState | None, only_new: bool = False
    ) -> None:
        async with self._service.conversations.resting(conversation):
            if only_new and conversation.version:
                return
            await self._put(conversation, parked, state)
            conversation.unread &= only_new

    async def _put(self, conversation: Conversation, parked: Parked, state: SessionState | None) -> None:
        """Give a conversation that one has to oneself another inside."""
        slot = conversation.slot
        if slot is not None:
            session = slot.session
            ask = self._service.conversations.scheduler.ask(lambda: unpark(session, parked))
            await finished(asyncio.wrap_future(ask))
        requests = conversation.requests
        conversation.forget_texts()
        self._service.conversations.traces.forget(conversation.key)
        if state is not None:
            take_over(conversation, parked, state)
        conversation.parked = parked if slot is None else None
        conversation.requests, conversation.exact = requests, False
        assert parked.memory is not None
        conversation.settings = parked.memory.settings
        conversation.utilization, conversation.measured = None, 0

    async def forget(
        self,
        conversation: Conversation,
        choice: Choice,
        *,
        remove_backups: bool = False,
        remove_answers: bool = False,
        dry_run: bool = False,
    ) -> dict[str, Any]:
        """Forget part of what was read and said, and save what is left; return what went.

        With it goes what else holds text: context, texts and window, and where that is wished backups and the answers
        of the Responses API that the memory has read. What the matrix learned stays.

        Raises
        ------
        ApiError, AtlasError
            Nothing is kept, nothing or too much is meant, or what is left could not be saved.
        """
        removes = remove_answers and not dry_run
        if removes and self._service.store is not None and self._service.store.resting:
            raise ApiError(
                503, "The store of answers cannot be reached now.", code="store_away", retry_after=5
            )
        answers = self._service.responses.forgetting(conversation.key)
        async with answers if removes else contextlib.nullcontext():
            result = await self._forget_episodes(conversation, choice, dry_run)
            found = await self._service.responses.count_of(conversation.key)
            if removes:
                await finished(self._service.responses.forget_of(conversation.key))
        if not dry_run:
            await self._saved_without(conversation, result, remove_backups)
        unused = ("path", "other_texts", "rebuilt_from_tokens")
        return {name: value for name, value in result.to_json().items() if name not in unused} | {
            "backups": result.backups,
            "answers": found,
            "answers_removed": bool(found) and removes,
        }

    async def _forget_episodes(self, conversation: Conversation, choice: Choice, dry_run: bool) -> Forgotten:
        """Forget part of what was read and said, and what else holds text, before the next request."""
        from atlas_kit.operations.forget import forget_episodes
        from atlas_kit.operations.token_words import EngineWords

        service, conversations = self._service, self._service.conversations
        words, device = EngineWords(service.engine), DEVICES[service.config.device]
        await self._warm(conversation)
        async with conversations.resting(conversation):
            state = await conversations.state_at_rest(conversation)
            if state is None or state.episodes is None:
                raise ApiError(404, "This memory keeps no texts.", code="nothing_kept")
            left, result = await asyncio.to_thread(
                forget_episodes, state.episodes, choice, words, dry_run=dry_run
            )
            if result.pieces and not dry_run:
                result.others = [
                    name
                    for name, held in (
                        ("context", state.tokens),
                        ("texts", conversation.branches),
                        ("window", True),
                    )
                    if held
                ]
                new = dataclasses.replace(without_texts(without_window(state)), episodes=left)
                parked = await asyncio.to_thread(parked_of, service.engine, new, device)
                learned, created = conversation.learned, conversation.created
                await finished(self._put(conversation, parked, new))
                conversation.learned, conversation.created = learned, created
                conversations.prefixes.forget(conversation)
        return result

    async def _saved_without(self, conversation: Conversation, result: Forgotten, removes: bool) -> None:
        """Save what is left, so that what was forgotten is in no file either, but for backups."""
        from atlas_kit.persistence.backups import backup_names, remove_backups

        shared = self._service.shared if conversation.key == SHARED else None
        kept = shared is not None or conversation.key.name is not None
        problem = await self.save_in_place(conversation) if kept and result.pieces else None
        if problem is not None:
            raise ApiError(507, f"It is forgotten, but the file still has it: {problem}.", code="not_saved")
        if shared is not None:
            result.backups = await asyncio.to_thread(backup_names, shared.path)
            if removes:
                await asyncio.to_thread(remove_backups, shared.path)
                result.backups_removed = bool(result.backups)

    async def fork(self, conversation: Conversation, key: Key) -> Conversation:
        """Return a new session that knows what another one does: both go on by themselves.

        Raises
        ------
        ApiError
            There is a session of this name.
        """
        conversations = self._service.conversations
        await conversations.claims.claim(key)
        if conversations.find(key, self._service.settings) is not None:
            raise ApiError(409, "There is a session of this name already.", param="session_id", code="exists")
        await self._warm(conversation)
        state, _ = await conversations.state(conversation)
        assert state is not None
        parked = await asyncio.to_thread(
            parked_of, self._service.engine, state, DEVICES[self._service.config.device]
        )
        if conversations.find(key, self._service.settings) is not None:
            raise ApiError(409, "There is a session of this name already.", param="session_id", code="exists")
        conversations.names.begin(key)
        found = conversations.named[key] = conversations.begun(key, conversation.settings)
        take_over(found, parked, state, {"learned": conversation.learned})
        found.version = 1
        return found

    async def reset(self, conversation: Conversation, *, hard: bool) -> None:
        """Forget what was learned; ``hard``: the optimiser, the window, the context and what was read, too.

        A text that is sent again afterwards is learned again.
        """
        await self._warm(conversation)
        conversations = self._service.conversations
        assert conversation.settings is not None
        if hard:
            await self._replace(conversation, conversations.new_inside(conversation.settings), None)
            return
        fresh = conversations.new_memory(conversation.settings)
        async with conversations.resting(conversation):
            memory, slot = conversation.memory, conversation.slot
            assert memory is not None
            if slot is None:
                forget_weights(memory, fresh)
            else:
                session = slot.session
                await finished(
                    asyncio.wrap_future(conversations.scheduler.ask(lambda: _forget(session, fresh)))
                )
            conversation.forget_texts()
            conversation.utilization, conversation.measured = None, 0

    async def info(self, conversation: Conversation) -> dict[str, Any]:
        """Return what can be said of a memory; its matrices are measured on another thread."""
        from atlas_kit.memory.statistics import statistics

        await self._warm(conversation)
        async with self._service.conversations.resting(conversation):
            memory = conversation.memory
            assert memory is not None
            stats, state, config = memory.stats(), memory.pin(), memory.memory.config
        measured = await asyncio.to_thread(statistics, config, state)
        return {**stats, **_numbers(measured)}


def without_texts(state: SessionState) -> SessionState:
    """Return what was learned, without the conversations that it was learned from.

    The window still has the newest tokens: where they are not whose copy it is, it is to be left out, too.
    """
    waiting = {name: array for name, array in state.waiting.items() if name == "log_eta"}
    return dataclasses.replace(
        state, waiting=waiting, tokens=(), position=0, output={}, context=None, texts=(), episodes=None
    )


def without_window(state: SessionState) -> SessionState:
    """Return a state without the window, whose values are the last tokens that were read."""
    from atlas_kit.memory import Memory, snapshot

    arrays = snapshot(state.memory, window=False, copy=False)
    return dataclasses.replace(state, memory=Memory(state.config).restore(arrays))


def _size_of(path: str) -> tuple[int, float]:
    """Return how large a file is, here or at an address, and when it was written, in Unix seconds."""
    if is_url(path):
        with use_source(path) as source:
            return source.size, float(source.modified)
    found = os.stat(path)
    return found.st_size, found.st_mtime


def _no_such_memory() -> NoSuchFileError:
    return NoSuchFileError("there is no memory of this name", key="memory_file")


def _forget(session: Any, fresh: TokenMemory) -> None:
    forget_weights(session.memory, fresh)
    session.forget_context()


def forget_weights(memory: TokenMemory, fresh: TokenMemory) -> None:
    """Let a memory's matrices be as those of a fresh one; window, gate, optimiser and counters stay.

    What is seen and not learned waits for its step, so a memory that had seen much and learned nothing could be neither
    continued nor read from a file.
    """
    state, new = memory.pin(), fresh.state
    if memory.whitened is not None:
        # the window's keys go with the whitening, which is no text's
        parameters = memory.whitened.reset(state, "soft").parameters
        memory.restore(dataclasses.replace(state, parameters=parameters), memory.waiting())
        return
    adaptation = {
        **state.adaptation,
        **{
            f"previous.{name}": array
            for name, array in new.parameters.items()
            if "log_eta" in state.adaptation
        },
    }
    waiting = memory.waiting()
    memory.restore(
        dataclasses.replace(state, parameters=new.parameters, adaptation=adaptation),
        waiting,
    )


def _numbers(measured: Any) -> dict[str, Any]:
    matrices = {
        name: {
            "shape": list(one.spectrum.shape),
            "norm": float(one.norm.mean()),
            "effective_rank": float(one.effective_rank.mean()),
            "utilization": float(one.utilisation.mean()),
        }
        for name, one in measured.matrices.items()
    }
    return {
        "steps": int(measured.steps),
        "steps_rejected": int(measured.steps_rejected),
        "muon_iterations": int(measured.muon_iterations),
        "memory_utilization": float(measured.memory_utilisation),
        "matrices": matrices,
    }
