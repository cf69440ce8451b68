"""Everything that a running server has: the model, its scheduler, conversations and the memory that is kept.

Loading takes its time, so the service is there first, and ``ready`` later. Knows no HTTP.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError, InvalidParamError
from atlas_kit.server import logs
from atlas_kit.server.conversations import Conversation, Conversations, Key
from atlas_kit.server.dialogue import transcript
from atlas_kit.server.generation import Generating, Generation, checked_session_id
from atlas_kit.server.kept_responses import KeptResponses
from atlas_kit.server.lifecycle import SHARED, SharedMemory
from atlas_kit.server.metrics import Metrics, Request
from atlas_kit.server.problems import ApiError, unavailable

if TYPE_CHECKING:
    from atlas_kit.llama.chat import ChatTemplate
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.scheduler import Scheduler
    from atlas_kit.server.config import ServerConfig
    from atlas_kit.settings.atlas_settings import AtlasSettings

log = logging.getLogger("atlas_kit.server")


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
    template: ChatTemplate

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
        self.shared: SharedMemory | None = None
        self.responses = KeptResponses()
        self._saver: asyncio.Task[None] | None = None

    # --- life ------------------------------------------------------------------------------------------------

    async def start(self) -> None:
        """Load the model and the memory.

        Raises
        ------
        AtlasError
            The model cannot be loaded, or the memory could not be saved where it is to be kept.
        """
        from atlas_kit.llama.scheduler import Scheduler

        began = time.monotonic()
        self.engine = await asyncio.to_thread(self._open_engine, self.config)
        for note in self.engine.notes:
            log.info("%s", note)
        self.template = await asyncio.to_thread(self._chat_template)
        self.settings = await asyncio.to_thread(_settings, self.config, self.engine)
        self.scheduler = Scheduler(self.engine)
        self.conversations = Conversations(
            self.engine, self.scheduler, most_waiting=self.config.max_queue, device=self.config.device
        )
        self.conversations.context_shift = self.config.context_shift
        if self.config.persists:
            self.shared = SharedMemory(self.config, self.engine, self.settings)
            kept = await asyncio.to_thread(self.shared.load)
            self.conversations.named[SHARED] = kept
            self._saver = asyncio.create_task(self._save_now_and_then())
        await self.conversations.open()
        self.ready = True
        log.info("ready after %.1f s: %s", time.monotonic() - began, self.engine.info.description)

    async def stop(self) -> None:
        """Save the memory, and end all work."""
        self.stopping = True
        if self._saver is not None:
            self._saver.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._saver
        if self.ready:
            self.ready = False
            await self.save()
        if hasattr(self, "scheduler"):
            await asyncio.to_thread(self.scheduler.close)
        if hasattr(self, "engine"):
            await asyncio.to_thread(self.engine.close)

    async def save(self) -> bool:
        """Save the shared memory where it has changed; tell whether there is anything that could not be saved."""
        kept = self.conversations.named.get(SHARED)
        if self.shared is None or kept is None or not self.shared.changed(kept):
            return True
        return await self.shared.save(self.conversations, kept)

    async def _save_now_and_then(self) -> None:
        while True:
            await asyncio.sleep(1)
            kept = self.conversations.named.get(SHARED)
            if self.shared is not None and kept is not None and self.shared.due(kept):
                await self.shared.save(self.conversations, kept)

    def _chat_template(self) -> ChatTemplate:
        from atlas_kit.llama.chat import ChatTemplate

        source = self.config.chat_template
        if self.config.chat_template_file is not None:
            from atlas_kit.storage.given import open_source

            with open_source(self.config.chat_template_file) as file:
                source = file.read(0, file.size).decode("utf-8", "replace")
        if source is None and self.engine.info.chat_template is None:
            log.info("the model has no chat template: conversations are read as a transcript")
            return transcript(self.engine)
        try:
            return ChatTemplate(self.engine, source)
        except AtlasError as error:
            if source is not None:
                raise
            log.warning(
                "the model's chat template cannot be used, and a transcript stands in: %s", error.message
            )
            return transcript(self.engine)

    # --- what requests ask -----------------------------------------------------------------------------------

    def require_ready(self) -> None:
        """Raise ``ApiError`` (503) until the model is loaded, and once the server stops."""
        if self.stopping:
            raise unavailable("The server is shutting down.")
        if not self.ready:
            raise unavailable()

    @property
    def model_name(self) -> str:
        """What the model is called in answers."""
        return min(self.aliases, default=os.path.basename(self.config.model))

    @property
    def aliases(self) -> tuple[str, ...]:
        """All names that were given to it; the first by the alphabet is the one in answers, as in llama-server."""
        given = (self.config.alias or "").split(",")
        return tuple(sorted({name.strip() for name in given if name.strip()}))

    def conversation(
        self, namespace: str, atlas: dict[str, Any], tokens: list[int], slot: int | None = None
    ) -> Conversation:
        """Return the conversation that a request belongs to.

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
        enabled = atlas.get("enabled")
        name = atlas.get("session_id")
        if enabled is None:
            enabled = self.config.remembers or name is not None
        if name is not None:
            key = Key(namespace, checked_session_id(name))
            if not enabled:
                raise ApiError(
                    400, "A session has a memory: leave out enabled, or session_id.", param="atlas.enabled"
                )
            found = self.conversations.find(key)
            return found or self.conversations.named_or_new(key, self._settings_for(atlas))
        if not enabled:
            return self._temporary(namespace, None, tokens, slot)
        if self.config.persists:
            return self.conversations.named[SHARED]
        return self._temporary(namespace, self._settings_for(atlas), tokens, slot)

    def _temporary(
        self, namespace: str, settings: AtlasSettings | None, tokens: list[int], slot: int | None
    ) -> Conversation:
        if slot is not None:
            return self.conversations.in_slot(slot, namespace, settings, tokens)
        return self.conversations.temporary(namespace, settings, tokens)

    def _settings_for(self, atlas: dict[str, Any]) -> AtlasSettings:
        return self.settings.replace(**settings_in(atlas))

    async def history_of(self, namespace: str, name: str) -> list[int]:
        """Return the tokens that the session of a name has read last; none where there is no such session."""
        found = self.conversations.find(Key(namespace, checked_session_id(name)))
        return [] if found is None else list(found.history)

    def generate(
        self,
        namespace: str,
        atlas: dict[str, Any],
        asked: Generation,
        *,
        goes_on: Conversation | None = None,
    ) -> Generating:
        """Begin to generate; iterate the result's ``tokens()``.

        ``goes_on`` is the conversation of a request before, which this one continues unless it was closed meanwhile.

        Raises
        ------
        ApiError, AtlasError
            The request cannot be carried out.
        """
        self.require_ready()
        # what is to be scored must be read, and so by somebody who does not know it yet
        known = [] if asked.score_prompt else list(asked.tokens)
        conversation = goes_on
        if conversation is None or conversation.closed:
            conversation = self.conversation(namespace, atlas, known, asked.slot)
        return Generating(self.conversations, conversation, asked, self.metrics)

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
    "window_size", "blend_ratio", "learning_rate", "polynomial_degree", "use_muon", "warmup_tokens",
)  # fmt: skip


def settings_in(atlas: dict[str, Any]) -> dict[str, Any]:
    """Return the settings of a memory in a request's ``atlas`` object."""
    return {name: atlas[name] for name in SETTINGS if atlas.get(name) is not None}


def _settings(config: ServerConfig, engine: Engine) -> AtlasSettings:
    from atlas_kit.server.config import memory_settings

    return memory_settings(config, engine.info.path)


def load_engine(config: ServerConfig) -> Engine:
    """Load the model that is configured, with llama.cpp.

    Raises
    ------
    AtlasError
        It cannot be loaded, or none is named.
    """
    from atlas_kit.llama.loading import open_engine

    if not config.model:
        raise InvalidParamError("no model is named", key="model", hint="Name a GGUF file.")
    options: dict[str, Any] = {
        "n_ctx": None if not config.n_ctx else max(1, config.n_ctx // config.n_parallel),
        "n_sequences": config.n_parallel,
        "n_gpu_layers": config.n_gpu_layers,
        "n_threads": config.n_threads,
        "n_batch": config.n_batch,
    }
    return open_engine(config.model, **{name: one for name, one in options.items() if one is not None})
