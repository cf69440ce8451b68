"""Everything that a running server has: the model, its scheduler, conversations and the memory that is kept.

Loading takes its time, so the service is there first, and ``ready`` later. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import importlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import cached_property
from typing import TYPE_CHECKING, Any

from atlas_kit.background import start_thread
from atlas_kit.errors import AtlasError, InvalidParamError, LockedError
from atlas_kit.server import logs
from atlas_kit.server.conversation import Conversation
from atlas_kit.server.conversations import Conversations
from atlas_kit.server.generation import Generating
from atlas_kit.server.kept_responses import KeptResponses
from atlas_kit.server.keys import SHARED, Key
from atlas_kit.server.loading import load_engine
from atlas_kit.server.metrics import Metrics, Request
from atlas_kit.server.outcome import Generation
from atlas_kit.server.problems import SESSION, ApiError, naming, unavailable
from atlas_kit.server.session_files import SessionFiles, make_private
from atlas_kit.server.session_names import checked_session_id
from atlas_kit.server.sleeping import Sleep
from atlas_kit.storage.keys import Keys, key_from_file
from atlas_kit.storage.urls import is_url

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.server.config import ServerConfig
    from atlas_kit.server.embedding import TextForm
    from atlas_kit.server.lifecycle import SharedMemory
    from atlas_kit.server.memories import Memories
    from atlas_kit.server.memory_views import MemoryViews
    from atlas_kit.server.shared_files import SharedFile, SharedMemories
    from atlas_kit.server.shared_store import SharedStore
    from atlas_kit.settings.atlas_settings import AtlasSettings

log = logging.getLogger("atlas_kit.server")
#: What the first request needs, and what it needs with a memory. It is imported while llama.cpp loads the model, which
#: more would hold up: threads of one process wait for each other where they ask the system for memory.
FIRST = (
    "numpy.ctypeslib", "atlas_kit.llama.llama_engine", "atlas_kit.llama.llama_sampler",
    "atlas_kit.server.light_requests", "atlas_kit.server.completion_answer",
)  # fmt: skip
FIRST_OF_MEMORIES = (
    "atlas_kit.llama.token_memory", "atlas_kit.episodes.store", "numpy.random",
)  # fmt: skip
#: Seconds that the start waits for sessions that are brought back; the others come while it answers already.
BRING_BACK_SECONDS = 1.0
#: Settings of memories that can be changed while the server runs.
TUNABLE = ("blend_ratio", "learning_rate", "use_muon", "auto_save", "auto_save_interval")


class Service:
    """What a server does, without the protocol.

    Parameters
    ----------
    config
        How it is set up.
    open_engine
        Loads the model: another one than llama.cpp's, in tests.
    """

    engine: Engine
    scheduler: Scheduler
    conversations: Conversations
    settings: AtlasSettings
    files: SessionFiles

    def __init__(
        self, config: ServerConfig, open_engine: Callable[[ServerConfig], Engine] | None = None
    ) -> None:
        self.config = config
        self._open_engine = open_engine or load_engine
        self.started = time.time()
        self.metrics = Metrics(told=self._note)
        self.ready = False
        self.failed: str | None = None
        self.stopping = False
        #: Whether something that was to outlive the server did not, as it was not saved at its end.
        self.unsaved = False
        #: How many saves a store did not take that is away.
        self.unput = 0
        self.shared: SharedMemory | None = None
        #: Where memories are kept, if their directory is an address, those among them that clients save by name, and
        #: the store beside the shared memory's file, if that is at one of its own.
        self.store: SharedStore | None = None
        self.far: SharedMemories | None = None
        self.memory_store: SharedStore | None = None
        self.responses = KeptResponses(most_waiting=config.max_queue)
        self._loading: Future[Engine] | None = None
        self._saver: asyncio.Task[None] | None = None
        self._stop_saving = asyncio.Event()
        #: Is taken by a request that begins.
        self.turn = asyncio.Lock()
        self.session_problem: str | None = None
        #: What encrypts the files of memories and sessions.
        self.keys = Keys()
        self.sleep = Sleep(self, config.sleep_idle_seconds)

    @cached_property
    def memories(self) -> Memories:
        """What can be done to memories by name."""
        from atlas_kit.server.memories import Memories

        return Memories(self)

    @cached_property
    def memory_views(self) -> MemoryViews:
        """A memory for whoever looks on."""
        from atlas_kit.server.memory_views import MemoryViews

        return MemoryViews(self)

    @cached_property
    def template(self) -> ChatTemplate:
        """How conversations become texts; of a model that brings it, it is compiled for the first of them."""
        return self._chat_template()

    @cached_property
    def text_form(self) -> TextForm:
        """How texts become vectors."""
        from atlas_kit.server.embedding import text_form

        return text_form(self.engine.info.path, self.config.pooling)

    # --- life ------------------------------------------------------------------------------------------------

    def begin_loading(self) -> None:
        """Load the model on a thread of its own, while the caller does something else; ``start`` waits for it."""
        loading: Future[Engine] = Future()
        loading.set_running_or_notify_cancel()  # it is not given up when whoever waits is cancelled

        def load() -> None:
            try:
                loading.set_result(self._open_engine(self.config))
            except BaseException as error:  # whoever waits is told
                loading.set_exception(error)

        self._loading = loading
        start_thread(load, name="atlas-loading", stop=lambda: None)

    async def start(self) -> None:
        """Load the model and the memory.

        Raises
        ------
        AtlasError
            The model cannot be loaded, or the memory could not be saved where it is to be kept.
        """
        from atlas_kit.llama.scheduler import Scheduler

        began = time.monotonic()
        if self._loading is None:
            self.begin_loading()
        assert self._loading is not None
        self._import_meanwhile()
        self.engine = await asyncio.wrap_future(self._loading)
        for note in self.engine.notes:
            log.info("%s", note)
        if self.config.atlas_key_file is not None:
            self.keys = Keys(key=await asyncio.to_thread(key_from_file, self.config.atlas_key_file))
        if self.config.chat_template or self.config.chat_template_file is not None:
            await asyncio.to_thread(lambda: self.template)  # what is wrong with it is said now
        elif self.engine.info.chat_template is None:
            log.info("the model has no chat template: conversations are read as a transcript")
        self.settings = await asyncio.to_thread(
            memory_settings, self.config, self.engine.info.path, self.engine.metadata
        )
        if self.config.memory_address is not None:
            from atlas_kit.server.shared_files import opened

            self.store, self.far, self.config = await asyncio.to_thread(opened, self.config)
        self.files = await asyncio.to_thread(self._session_files)
        self.responses = await asyncio.to_thread(self._kept_responses)
        if self.config.persists:
            from atlas_kit.server.lifecycle import SharedMemory

            there = await asyncio.to_thread(self._memory_at_address)
            self.shared = SharedMemory(self.config, self.engine, self.settings, self.keys, there)
        self.scheduler = Scheduler(self.engine)
        self.conversations = Conversations(
            self.engine, self.scheduler, most_waiting=self.config.max_queue, device=self.config.device,
            files=self.files, warm=self.config.atlas_warm_sessions,
            cache_bytes=None if self.config.cache_ram < 0 else self.config.cache_ram << 20,
            most_named=self.config.atlas_max_sessions,
        )  # fmt: skip
        self.conversations.context_shift = self.config.context_shift
        if self.store is not None:
            from atlas_kit.server.shared_claims import SharedClaims
            from atlas_kit.server.shared_responses import SharedResponses
            from atlas_kit.server.shared_sessions import SharedSessions

            assert isinstance(self.files, SharedSessions)
            claims = SharedClaims(self.conversations, self.files)
            far = SharedResponses(self.files, self.keys)
            self.conversations.claims, self.store.wanted = claims, claims.wanted
            self.responses = KeptResponses(most_waiting=self.config.max_queue, far=far, claims=claims)
            claims.is_busy = self.responses.is_busy
        if self.shared is not None:
            self.conversations.named[SHARED] = await asyncio.to_thread(self.shared.load)
        await asyncio.gather(self._open_conversations(), asyncio.to_thread(self._warm_up))
        self._saver = asyncio.create_task(self._save_now_and_then())
        self.ready = True
        self.sleep.begin()
        log.info("ready after %.1f s: %s", time.monotonic() - began, self.engine.info.description)

    def _import_meanwhile(self) -> None:
        """Import what the first request needs, while the model is loaded."""
        for name in FIRST + (FIRST_OF_MEMORIES if self.config.remembers else ()):
            importlib.import_module(name)

    def _prepare(self) -> None:
        """Find out what the first turn of a conversation would have to wait for else."""
        importlib.import_module("atlas_kit.server.chat_answer")
        with contextlib.suppress(AtlasError):  # whoever needs it is told
            assert self.template
            self.engine.output_rows().prepare()

    async def _open_conversations(self) -> None:
        """Take the sequences, and bring back who used them last: for a moment, the start waits for that, too."""
        await self.conversations.open()
        if self.files.outlives:
            back = self.conversations.bring_back(self.settings, self.engine.n_sequences)
            preparing = asyncio.ensure_future(asyncio.to_thread(self._prepare))
            await asyncio.wait({self.conversations.carry_out(back), preparing}, timeout=BRING_BACK_SECONDS)
            self.conversations.carry_out(self._count_sessions())

    async def _count_sessions(self) -> None:
        """Find out which sessions are in files, while the server answers already."""
        self.conversations.names.update(await asyncio.to_thread(self.files.names))

    def _warm_up(self) -> None:
        """Load what the first request needs, so that it does not wait for it."""
        if self.config.remembers:
            self.conversations.new_memory(self.settings)

    def _session_files(self) -> SessionFiles:
        """Return where sessions are that are not in main memory: a folder that may not be written to is not used."""
        codec = "lz4" if self.config.atlas_memory_compress else None
        folder = self.config.atlas_memory_dir
        most = None if self.config.atlas_context_disk < 0 else self.config.atlas_context_disk << 20
        if self.store is not None:
            from atlas_kit.server.shared_sessions import SharedSessions

            return SharedSessions(self.store, codec, most, self.keys)
        if folder is not None:
            try:
                if make_private(folder):
                    log.info("the folder of memories was made: %s", folder)
                return SessionFiles(os.path.join(folder, "sessions"), codec, most, self.keys)
            except LockedError:
                raise
            except AtlasError as error:
                self.session_problem = f"sessions do not outlive a restart: {error.message}"
                log.warning("%s", self.session_problem)
        return SessionFiles(None, codec, most, self.keys)

    def _memory_at_address(self) -> SharedFile | None:
        """Return the file of the shared memory, if that is kept at an address: open, and this server's."""
        from atlas_kit.persistence.place import automatic_path

        file = self.config.atlas_memory_file
        if self.store is None and not is_url(file):
            return None
        from atlas_kit.server.shared_files import SharedFile, shared_file

        if file is None:
            assert self.store is not None
            name = os.path.basename(automatic_path(self.engine.info.path))
            found = SharedFile(self.store, self.store.objects, name)
        elif is_url(file):
            self.memory_store, found = shared_file(self.config, file)
        else:
            return None
        found.open()
        return found

    def _kept_responses(self) -> KeptResponses:
        """Return where answers are that later requests go on from: in a file, where sessions outlive a restart."""
        if not self.files.outlives or self.store is not None:
            return self.responses
        from atlas_kit.server.response_file import ResponseFile

        return KeptResponses(
            most_waiting=self.config.max_queue, file=ResponseFile(self.files.folder, keys=self.keys)
        )

    def later(self) -> list[Callable[[], object]]:
        """Return what has not been found out about the model, as nobody has asked; each in a call of its own."""
        found: list[Callable[[], object]] = [lambda: self.template, lambda: self.text_form]
        if self.config.remembers:
            found.append(lambda: self.engine.output_rows().prepare())
        return [*found, lambda: self.engine.info.identity]

    async def stop(self) -> None:
        """End all work, and save what is to be kept; stopping twice is fine."""
        self.stopping = True
        stores = [one for one in (self.store, self.memory_store) if one is not None]
        for store in stores:
            store.hurry()
        await self.sleep.end()
        if self._saver is not None:
            await self._end_saver(self._saver)
            self._saver = None
        if hasattr(self, "conversations"):
            await self.end_work()
            if self.ready:
                self.ready = False
                self.unsaved = not await self.save()
            with contextlib.suppress(AtlasError):
                await self.conversations.close()
        ended = not hasattr(self, "scheduler") or await asyncio.to_thread(self.scheduler.close)
        if hasattr(self, "engine") and ended:  # else it is still at work, and its memory in use
            await asyncio.to_thread(self.engine.close)
        if self.shared is not None:
            self.shared.close()
        await asyncio.to_thread(self.responses.close)
        for store in stores:
            self.unput += len(await asyncio.to_thread(store.end))
        if hasattr(self, "files"):
            await asyncio.to_thread(self.files.close)
        for store in stores:
            store.close()
        self.store = self.memory_store = None

    async def _end_saver(self, saver: asyncio.Task[None]) -> None:
        """Let what is being saved be saved, and no more."""
        self._stop_saving.set()
        if self.shared is not None:
            self.shared.hurry()
        await asyncio.wait({saver})

    async def end_work(self) -> None:
        """Let no more work begin, end what there is, and wait until it has ended."""
        self.conversations.end()
        while self.conversations.under_way:
            await asyncio.to_thread(self.scheduler.end_jobs)
            if left := set(self.conversations.under_way):
                await asyncio.wait(left, timeout=0.1)

    async def save(self, *, exact: bool = True) -> bool:
        """Save the shared memory and all sessions that are kept, where they have changed; tell whether all were."""
        kept = self.conversations.named.get(SHARED)
        well = True
        if self.shared is not None and kept is not None and self.shared.changed(kept):
            well = await self.shared.save(self.conversations, kept, exact=exact)
        if self.files.outlives:
            well = not await self.conversations.save_all(exact=exact) and well
        return well

    async def _save_now_and_then(self) -> None:
        """Save what has changed, every so many seconds; decoding goes on meanwhile."""
        last = time.monotonic()
        while not self._stop_saving.is_set():
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._stop_saving.wait(), 1.0)
                return
            now = time.monotonic()
            try:
                kept = self.conversations.named.get(SHARED)
                if self.shared is not None and kept is not None and self.shared.due(kept):
                    await self.shared.save(self.conversations, kept, exact=False, waited_for=False)
                if now - last >= self.config.atlas_auto_save_interval:
                    last = now
                    if self.files.outlives and self.config.atlas_auto_save:
                        await self.conversations.save_all(exact=False)
            except Exception:  # the next time is another try
                log.exception("saving failed")

    def _chat_template(self) -> ChatTemplate:
        from atlas_kit.llama.chat import ChatTemplate
        from atlas_kit.server.dialogue import transcript

        source = self.config.chat_template or None
        if self.config.chat_template_file is not None:
            from atlas_kit.storage.given import open_source

            with open_source(self.config.chat_template_file) as file:
                source = file.read(0, file.size).decode("utf-8-sig", "replace")
            if not source.strip():  # every conversation would be empty
                raise InvalidParamError("this chat template is empty", path=self.config.chat_template_file)
        if source is None and self.engine.info.chat_template is None:
            return transcript(self.engine)
        try:
            return ChatTemplate(self.engine, source, self.config.template_variables)
        except AtlasError as error:
            if source is not None:
                raise
            log.warning(
                "the model's chat template cannot be used, and a transcript stands in: %s", error.message
            )
            return transcript(self.engine)

    async def configure(self, changes: Mapping[str, Any]) -> None:
        """Change settings of new memories, of the shared one, and of saving.

        Raises
        ------
        ApiError, AtlasError
            There is no such setting, it cannot be changed now, or it is out of range; then nothing has changed.
        """
        for name in changes:
            if name not in TUNABLE:
                known = name in self.settings.to_json()
                why = "decides what memories are like from their start" if known else "is no setting"
                raise ApiError(
                    400, f"{name} {why}. Now can be changed: {', '.join(TUNABLE)}.", param=name,
                    code="not_tunable" if known else "unknown_setting",
                )  # fmt: skip
        own = {
            f"atlas_{name}": value
            for name, value in changes.items()
            if name in ("auto_save", "auto_save_interval")
        }
        tuned = {name: value for name, value in changes.items() if f"atlas_{name}" not in own}
        settings, config = self.settings.replace(**tuned), dataclasses.replace(self.config, **own)
        if tuned:
            self.conversations.new_memory(self.settings).retune(tuned)  # or it is refused
            if (kept := self.conversations.named.get(SHARED)) is not None:
                async with self.conversations.resting(kept):
                    if kept.memory is not None:
                        kept.memory.retune(tuned)
                        kept.settings, kept.version = kept.memory.settings, kept.version + 1
        self.settings, self.config = settings, config
        if self.shared is not None:
            self.shared.configure(config)

    # --- what requests ask -----------------------------------------------------------------------------------

    def require_ready(self) -> None:
        """Raise ``ApiError`` (503) until the model is loaded, and once the server stops."""
        if self.stopping:
            raise unavailable("The server is shutting down.")
        if not self.ready:
            raise unavailable()

    def health(self) -> dict[str, Any]:
        """Return what is said of a server that is well; of its store, too, where it has one: it goes on without.

        Raises
        ------
        ApiError
            It is not: see ``require_ready``.
        """
        self.require_ready()
        store = self.store or self.memory_store
        return {"status": "ok", **({} if store is None else {"store": store.brief()})}

    @property
    def model_name(self) -> str:
        """What the model is called in answers."""
        return min(self.aliases, default=os.path.basename(self.config.model))

    @property
    def aliases(self) -> tuple[str, ...]:
        """All names that were given to it; the first by the alphabet is the one in answers, as in llama-server."""
        given = (self.config.alias or "").split(",")
        return tuple(sorted({name.strip() for name in given if name.strip()}))

    def name_for(self, asked: str | None) -> str:
        """Return what the model is called in the answer to a request: as it was asked for, if that is its name."""
        return asked if asked in self.aliases else self.model_name

    def conversation(
        self, namespace: str, atlas: Mapping[str, Any], tokens: Sequence[int], slot: int | None = None
    ) -> Conversation:
        """Return the conversation that a request belongs to; it must be leased before anything else is awaited.

        Parameters
        ----------
        namespace
            Of the API key.
        atlas
            The request's ``atlas`` object: ``enabled``, ``session_id`` and settings.
        tokens
            The text that it sends.
        slot
            The sequence that is asked for, where the conversation is nobody's.
        """
        name = atlas.get("session_id")
        if name is not None:
            key = Key(namespace, checked_session_id(name))
            return self.conversations.named_or_new(key, self._settings_for(atlas))
        if not self._remembers(atlas):
            return self._temporary(namespace, None, tokens, slot)
        if self.config.persists and atlas.get("memory_file") is None:
            return self.conversations.named[SHARED]
        if atlas.get("memory_file") is not None:  # a memory of its own, which no other request goes on with
            return self.conversations.new(Key(namespace, None), self._settings_for(atlas))
        return self._temporary(namespace, self._settings_for(atlas), tokens, slot)

    def _temporary(
        self, namespace: str, settings: AtlasSettings | None, tokens: Sequence[int], slot: int | None
    ) -> Conversation:
        if slot is not None:
            return self.conversations.in_slot(slot, namespace, settings, tokens)
        return self.conversations.temporary(namespace, settings, tokens)

    def _remembers(self, atlas: Mapping[str, Any]) -> bool:
        """Tell whether a request wants a memory.

        Raises
        ------
        ApiError, InvalidParamError
            What it says of the memory does not go together.
        """
        enabled, name, file = (atlas.get(one) for one in ("enabled", "session_id", "memory_file"))
        if name is not None:
            checked_session_id(name)
        if file is not None:
            self.memories.require(file)
        for what, given in (("session_id", name), ("memory_file", file)):
            if given is not None and enabled is False:
                raise ApiError(
                    400, f"Leave out enabled, or {what}: it names a memory.", param="atlas.enabled"
                )
        self._settings_for(atlas)
        if enabled is None:
            return self.config.remembers or name is not None or file is not None
        return bool(enabled)

    def _settings_for(self, atlas: Mapping[str, Any]) -> AtlasSettings:
        changes = settings_in(atlas)
        return self.settings.replace(**changes) if changes else self.settings

    async def session(self, namespace: str, name: str) -> Conversation | None:
        """Return the session of a name, as soon as this server holds it."""
        key = Key(namespace, checked_session_id(name))
        await self.conversations.claims.claim(key, begin=False)
        return self.conversations.find(key, self.settings)

    async def history_of(self, namespace: str, name: str) -> list[int]:
        """Return the tokens that the session of a name has read last; none where there is no such session."""
        found = await self.session(namespace, name)
        if found is None:
            return []
        await self.conversations.wake(found)
        return list(found.history)

    async def forget(self, namespace: str, name: str) -> None:
        """Forget the session of a name, its memory and its file, where there is one."""
        found = await self.session(namespace, name)
        if found is not None:
            await self.conversations.delete(found)

    def generate(
        self,
        namespace: str,
        atlas: Mapping[str, Any],
        asked: Generation,
        *,
        goes_on: Conversation | None = None,
        named: str = SESSION,
    ) -> Generating:
        """Begin to generate; iterate the result's ``tokens()``.

        ``goes_on`` is the conversation of a request before, which this one continues unless it was closed meanwhile.
        ``named`` is the property of the request that names the session.

        Raises
        ------
        ApiError, AtlasError
            The request cannot be carried out.
        """
        self.require_ready()
        with naming(named):
            remembers = self._remembers(atlas)
            if (name := atlas.get("session_id")) is not None:  # before anything of the answer is sent
                self.conversations.names.require_room(Key(namespace, name))
        if asked.slot is not None:
            self.conversations.sequences.require(asked.slot)
        if goes_on is not None:
            remembers = goes_on.settings is not None
        if atlas.get("replaces"):
            asked = dataclasses.replace(asked, replaces=True)

        name = atlas.get("session_id")
        key = None if name is None else Key(namespace, checked_session_id(name))

        def choose() -> Conversation:
            if goes_on is not None and not goes_on.closed:
                return goes_on
            # what is to be scored must be read, and so by somebody who does not know it yet
            known = [] if asked.score_prompt else asked.tokens
            return self.conversation(namespace, atlas, known, asked.slot)

        async def begin(conversation: Conversation) -> None:
            await self.memories.begin(conversation, atlas["memory_file"])

        async def keep(conversation: Conversation) -> dict[str, Any]:
            return await self.memories.keep(conversation, atlas.get("memory_file"))

        if atlas.get("save_memory"):
            goes_somewhere = atlas.get("session_id") is not None or atlas.get("memory_file") is not None
            if not remembers or not (goes_somewhere or self.config.persists):
                raise ApiError(
                    400,
                    "Name a session_id or a memory_file whose memory is saved.",
                    param="atlas.save_memory",
                )
        return Generating(
            self.conversations, choose, asked, self.metrics,
            remembers=remembers,
            key=key,
            before=None if atlas.get("memory_file") is None else begin,
            after=keep if atlas.get("save_memory") else None,
            namespace=namespace,
            recalls=len(self.config.keys) <= 1,
            named=named,
        )  # fmt: skip

    def _note(self, request: Request) -> None:
        """Let the log's line about a request tell its tokens, and its text only where that is wanted."""
        asked, outcome = request.asked, request.outcome
        logs.note(
            task=asked.task or None, reason=request.reason, prompt_tokens=outcome.prompt_tokens,
            cached_tokens=outcome.cached_tokens, generated_tokens=request.generated,
            seconds_waiting=round(outcome.seconds_waiting, 4), seconds_reading=round(outcome.seconds_reading, 4),
            seconds_generating=round(outcome.seconds_generating, 4),
        )  # fmt: skip
        if self.config.log_prompts:
            prompt = b"".join(self.engine.piece(token) for token in asked.tokens)
            logs.note(prompt=prompt.decode("utf-8", "replace"), answer=outcome.text)


#: Settings of a memory that a request may name.
SETTINGS = (
    "window_size", "blend_ratio", "learning_rate", "polynomial_degree", "use_muon", "warmup_tokens", "recall",
    "recall_segments", "recall_gate",
)  # fmt: skip


def settings_in(atlas: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a memory in a request's ``atlas`` object."""
    return {name: atlas[name] for name in SETTINGS if atlas.get(name) is not None}


def memory_settings(
    config: ServerConfig, model: str, metadata: Callable[[str], str | None] | None = None
) -> AtlasSettings:
    """Return the settings of memories that nobody has chosen others for.

    Parameters
    ----------
    metadata
        Gives a value of the model's file by its key, where the model is loaded.
    """
    from atlas_kit.settings.atlas_settings import AtlasSettings

    if config.atlas_auto:
        from atlas_kit.settings.recommend import recommend

        return recommend(model).settings.replace(**config.changes)
    native = None
    silent = metadata is not None and metadata("atlas.version") is None
    if os.path.isfile(model) and not silent:
        from atlas_kit.formats.gguf import GGUFFile
        from atlas_kit.settings.native import native_settings

        with GGUFFile.open(model) as file:
            native = native_settings(file)[0]
    return (native or AtlasSettings()).replace(**config.changes)
