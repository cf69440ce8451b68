"""How the server is set up: one row for each setting, from which the options, the environment and the files follow.

``--atlas-memory-file`` on the command line is ``atlas-memory-file`` (or with underscores) in a configuration file and
``ATLAS_MEMORY_FILE`` in the environment; rows hold the names without the dashes. Where llama-server has an option of
the same meaning, its spellings and its variable (``LLAMA_ARG_...``) work, too.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.server.config_files import json_object, read_file, read_keys
from atlas_kit.server.config_memory import MemoryRows
from atlas_kit.server.config_rows import Row, row
from atlas_kit.storage.urls import local_path

#: Settings that have the names of ``Sampling``.
SAMPLING = (
    "temperature", "top_k", "top_p", "min_p", "repeat_penalty", "repeat_last_n", "presence_penalty",
    "frequency_penalty", "seed",
)  # fmt: skip


@dataclass(frozen=True)
class ServerConfig(MemoryRows):
    """What can be set about a server; every setting has a default but the model.

    Raises
    ------
    InvalidParamError
        For a setting out of range; ``key`` names it.
    """

    model: str = row(
        "",
        str,
        "The GGUF model.",
        "m",
        "model",
        metavar="FILE",
        variables=("LLAMA_ARG_MODEL",),
        group="Model",
    )
    alias: str | None = row(
        None,
        str,
        "What the model is called in answers.  [default: its file's name]",
        "a",
        "alias",
        metavar="NAME",
        variables=("LLAMA_ARG_ALIAS",),
        group="Model",
    )
    n_ctx: int = row(
        0,
        int,
        "Tokens of context, which the slots share evenly; 0: as trained, at most 4096 for each.",
        "c",
        "ctx-size",
        "n-ctx",
        metavar="N",
        least=0,
        most=1 << 24,
        variables=("LLAMA_ARG_CTX_SIZE",),
        group="Model",
    )
    n_parallel: int = row(
        4,
        int,
        "Slots: requests that are answered at the same time.",
        "np",
        "parallel",
        metavar="N",
        least=1,
        most=256,
        variables=("LLAMA_ARG_N_PARALLEL",),
        group="Model",
    )
    n_threads: int | None = row(
        None,
        int,
        "Threads.  [default: one per CPU]",
        "t",
        "threads",
        metavar="N",
        least=1,
        most=512,
        variables=("LLAMA_ARG_THREADS",),
        group="Model",
    )
    n_batch: int | None = row(
        None,
        int,
        "Tokens that are decoded at a time.",
        "b",
        "batch-size",
        metavar="N",
        least=1,
        most=1 << 16,
        variables=("LLAMA_ARG_BATCH",),
        group="Model",
    )
    n_gpu_layers: int = row(
        0,
        int,
        "Layers that llama.cpp puts on a GPU; -1 for all.",
        "ngl",
        "gpu-layers",
        "n-gpu-layers",
        metavar="N",
        least=-1,
        most=1 << 16,
        variables=("LLAMA_ARG_N_GPU_LAYERS",),
        group="Model",
    )
    chat_template: str | None = row(
        None,
        str,
        "A Jinja chat template instead of the model's own, or the name of one of llama.cpp's, such as chatml.",
        "chat-template",
        metavar="JINJA|NAME",
        variables=("LLAMA_ARG_CHAT_TEMPLATE",),
        group="Model",
    )
    chat_template_file: str | None = row(
        None,
        str,
        "The same, from a file.",
        "chat-template-file",
        metavar="FILE",
        variables=("LLAMA_ARG_CHAT_TEMPLATE_FILE",),
        group="Model",
    )
    chat_template_kwargs: str | None = row(
        None,
        str,
        "What the chat template is given beside, as a JSON object; a request's own goes before it.",
        "chat-template-kwargs",
        metavar="JSON",
        variables=("LLAMA_ARG_CHAT_TEMPLATE_KWARGS",),
        group="Model",
    )
    jinja: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: templates are always Jinja.",
        "jinja",
        off=("no-jinja",),
        variables=("LLAMA_ARG_JINJA",),
        group="Model",
    )
    reasoning: str = row(
        "auto",
        str,
        "Whether a model that can think does so where a request does not say; auto: it does.",
        "reasoning",
        "rea",
        choices=("on", "off", "auto"),
        variables=("LLAMA_ARG_REASONING",),
        group="Model",
    )
    reasoning_format: str = row(
        "auto",
        str,
        "Where thoughts go where a request does not say: none leaves them in the content.",
        "reasoning-format",
        choices=("none", "auto", "deepseek", "deepseek-legacy"),
        variables=("LLAMA_ARG_THINK",),
        group="Model",
    )
    reasoning_budget: int = row(
        -1,
        int,
        "Tokens of thoughts at most where a request does not say; -1: any number.",
        "reasoning-budget",
        metavar="N",
        least=-1,
        most=1 << 24,
        variables=("LLAMA_ARG_THINK_BUDGET",),
        group="Model",
    )
    verbose: bool = row(
        False,
        bool,
        "Let answers tell the prompt as the model read it, as __verbose.",
        "verbose",
        off=("no-verbose",),
        variables=("ATLAS_VERBOSE",),
        group="Model",
    )
    context_shift: bool = row(
        False,
        bool,
        "Let answers without a memory outgrow the context: its older half is dropped.",
        "context-shift",
        off=("no-context-shift",),
        variables=("LLAMA_ARG_CONTEXT_SHIFT",),
        group="Model",
    )
    slot_save_path: str | None = row(
        None,
        str,
        "The folder in which /slots saves contexts.  [default: that of saved memories]",
        "slot-save-path",
        metavar="DIR",
        variables=("ATLAS_SLOT_SAVE_PATH",),
        group="Model",
    )
    tags: str | None = row(
        None,
        str,
        "Words about the model for /v1/models, with commas.",
        "tags",
        metavar="WORDS",
        variables=("LLAMA_ARG_TAGS",),
        group="Model",
    )
    n_ubatch: int | None = row(
        None,
        int,
        "Accepted for llama-server's sake: the batch size decides.",
        "ub",
        "ubatch-size",
        metavar="N",
        least=1,
        most=1 << 16,
        variables=("LLAMA_ARG_UBATCH",),
        group="Model",
    )
    cont_batching: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: requests are always batched as they come.",
        "cont-batching",
        off=("no-cont-batching",),
        variables=("LLAMA_ARG_CONT_BATCHING",),
        group="Model",
    )
    flash_attn: str = row(
        "auto",
        str,
        "Accepted for llama-server's sake: llama.cpp uses it where it can.",
        "fa",
        "flash-attn",
        choices=("on", "off", "auto"),
        variables=("LLAMA_ARG_FLASH_ATTN",),
        group="Model",
    )
    n_threads_batch: int | None = row(
        None,
        int,
        "Accepted for llama-server's sake: the same threads read and generate.",
        "tb",
        "threads-batch",
        metavar="N",
        least=1,
        most=512,
        variables=("LLAMA_ARG_THREADS_BATCH",),
        group="Model",
    )
    mmap: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: the model's file is always mapped.",
        "mmap",
        off=("no-mmap",),
        variables=("LLAMA_ARG_MMAP",),
        group="Model",
    )
    sleep_idle_seconds: int = row(
        -1,
        int,
        "Seconds without a request after which the model leaves main memory until the next one; -1: never.",
        "sleep-idle-seconds",
        metavar="SECONDS",
        least=-1,
        most=1 << 30,
        variables=("LLAMA_ARG_SLEEP_IDLE_SECONDS",),
        group="Model",
    )
    warmup: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: what the first request needs is always loaded before.",
        "warmup",
        off=("no-warmup",),
        variables=("LLAMA_ARG_WARMUP",),
        group="Model",
    )
    kv_unified: bool = row(
        False,
        bool,
        "Let one request have all of the context, which takes as many times the memory as there are slots.",
        "kv-unified",
        off=("no-kv-unified",),
        variables=("LLAMA_ARG_KV_UNIFIED",),
        group="Model",
    )
    embedding: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: /v1/embeddings is always there, beside all else.",
        "embedding",
        "embeddings",
        variables=("LLAMA_ARG_EMBEDDINGS",),
        group="Model",
    )
    pooling: str | None = row(
        None,
        str,
        "How a text's final states become its vector (none: one for each token), instead of as the model's file says.",
        "pooling",
        choices=("none", "mean", "cls", "last"),
        variables=("LLAMA_ARG_POOLING",),
        group="Model",
    )
    n_predict: int = row(
        -1,
        int,
        "Tokens of an answer where a request does not say; -1: until the model ends.",
        "n",
        "n-predict",
        "predict",
        metavar="N",
        least=-1,
        most=1 << 24,
        variables=("LLAMA_ARG_N_PREDICT",),
        group="Model",
    )

    temperature: float = row(
        0.8,
        float,
        "Temperature of requests that do not say.",
        "temp",
        "temperature",
        metavar="X",
        least=0,
        most=100,
        variables=("LLAMA_ARG_TEMP",),
        group="Sampling",
    )
    top_k: int = row(
        40,
        int,
        "The same for top_k; 0: all tokens.",
        "top-k",
        metavar="N",
        least=0,
        most=1 << 24,
        variables=("LLAMA_ARG_TOP_K",),
        group="Sampling",
    )
    top_p: float = row(
        0.95,
        float,
        "The same for top_p.",
        "top-p",
        metavar="X",
        least=0,
        most=1,
        variables=("ATLAS_TOP_P",),
        group="Sampling",
    )
    min_p: float = row(
        0.05,
        float,
        "The same for min_p.",
        "min-p",
        metavar="X",
        least=0,
        most=1,
        variables=("ATLAS_MIN_P",),
        group="Sampling",
    )
    repeat_penalty: float = row(
        1.0,
        float,
        "The same for repeat_penalty; 1: none.",
        "repeat-penalty",
        metavar="X",
        least=0.01,
        most=100,
        variables=("ATLAS_REPEAT_PENALTY",),
        group="Sampling",
    )
    repeat_last_n: int = row(
        64,
        int,
        "The same for repeat_last_n; -1: the whole context.",
        "repeat-last-n",
        metavar="N",
        least=-1,
        most=1 << 20,
        variables=("ATLAS_REPEAT_LAST_N",),
        group="Sampling",
    )
    presence_penalty: float = row(
        0.0,
        float,
        "The same for presence_penalty.",
        "presence-penalty",
        metavar="X",
        least=-100,
        most=100,
        variables=("ATLAS_PRESENCE_PENALTY",),
        group="Sampling",
    )
    frequency_penalty: float = row(
        0.0,
        float,
        "The same for frequency_penalty.",
        "frequency-penalty",
        metavar="X",
        least=-100,
        most=100,
        variables=("ATLAS_FREQUENCY_PENALTY",),
        group="Sampling",
    )
    seed: int = row(
        -1,
        int,
        "Seed of requests that name none; -1 draws one.",
        "s",
        "seed",
        metavar="N",
        least=-(1 << 63),
        most=(1 << 63) - 1,
        variables=("ATLAS_SEED",),
        group="Sampling",
    )

    host: str = row(
        "127.0.0.1",
        str,
        "Address to listen at; several with commas.",
        "host",
        metavar="ADDRESS",
        variables=("LLAMA_ARG_HOST",),
        group="Network",
    )
    port: int = row(
        8080,
        int,
        "Port; 0 takes a free one.",
        "port",
        metavar="N",
        least=0,
        most=65535,
        variables=("LLAMA_ARG_PORT",),
        group="Network",
    )
    api_key: tuple[str, ...] = row(
        (),
        str,
        "A key that requests must carry; may be repeated, or hold several with commas.",
        "api-key",
        metavar="KEY",
        many=True,
        variables=("LLAMA_API_KEY",),
        group="Network",
    )
    api_key_file: str | None = row(
        None,
        str,
        "A file of keys, one a line.",
        "api-key-file",
        metavar="FILE",
        variables=("LLAMA_ARG_API_KEY_FILE",),
        group="Network",
    )
    atlas_admin_key: str | None = row(
        None,
        str,
        "The key that may change what all share: settings of memories, and the shared memory. Without it, the first of "
        "several keys.",
        "atlas-admin-key",
        metavar="KEY",
        variables=("ATLAS_ADMIN_KEY",),
        group="Network",
    )
    cors: tuple[str, ...] = row(
        (),
        str,
        "A web origin that may ask from a browser, *, or localhost with any port; may be repeated.  "
        "[default: any where keys are asked for, else none]",
        "cors-origin",
        "cors-origins",
        metavar="ORIGIN",
        many=True,
        variables=("LLAMA_ARG_CORS_ORIGINS", "ATLAS_CORS_ORIGIN"),
        group="Network",
    )
    sse_ping_interval: int = row(
        30,
        int,
        "Seconds after which a stream that has not begun sends a sign of life; 0 or -1: none.",
        "sse-ping-interval",
        metavar="N",
        least=-1,
        most=1 << 31,
        variables=("LLAMA_ARG_SSE_PING_INTERVAL",),
        group="Network",
    )
    max_body: int = row(
        64 << 20,
        int,
        "Bytes of a request at most.",
        "max-body",
        metavar="BYTES",
        least=1024,
        most=1 << 34,
        variables=("ATLAS_MAX_BODY",),
        group="Network",
    )
    grammars: bool = row(
        True,
        bool,
        "Let requests bring grammars of their own; those that would keep llama.cpp busy for ever are refused. Schemas "
        "and tools make theirs in any case.",
        "grammars",
        off=("no-grammars",),
        group="Network",
    )
    max_queue: int = row(
        256,
        int,
        "Requests that may wait; more are told to try again.",
        "max-queue",
        metavar="N",
        least=0,
        most=1 << 20,
        variables=("ATLAS_MAX_QUEUE",),
        group="Network",
    )
    drain_seconds: float = row(
        10.0,
        float,
        "Seconds that running answers have at a shutdown.",
        "drain-seconds",
        metavar="S",
        least=0,
        most=86400,
        variables=("ATLAS_DRAIN_SECONDS",),
        group="Network",
    )
    metrics: bool = row(
        True,
        bool,
        "Accepted for llama-server's sake: /metrics is always there.",
        "metrics",
        off=("no-metrics",),
        variables=("LLAMA_ARG_ENDPOINT_METRICS",),
        group="Network",
    )
    slots: bool = row(
        True,
        bool,
        "Show /slots.",
        "slots",
        off=("no-slots",),
        variables=("LLAMA_ARG_ENDPOINT_SLOTS",),
        group="Network",
    )
    log_prompts: bool = row(
        False,
        bool,
        "Write prompts and answers into the log, which is never done otherwise.",
        "log-prompts",
        variables=("ATLAS_LOG_PROMPTS",),
        group="Network",
    )
    log_format: str = row(
        "text",
        str,
        "How the log is written: text or JSON lines.",
        "log-format",
        choices=("text", "json"),
        variables=("ATLAS_LOG_FORMAT",),
        group="Network",
    )

    def __post_init__(self) -> None:
        for one in table():
            object.__setattr__(self, one.name, one.check(getattr(self, one.name)))
        json_object(self.chat_template_kwargs)
        if not self.host.strip(" ,"):  # which a socket takes for every address there is
            raise InvalidParamError(
                "no address to listen at is named", key="host", hint="Leave it out, or name one."
            )
        for name in ("atlas_memory_dir", "atlas_memory_file", "slot_save_path"):
            if getattr(self, name) == "":
                raise InvalidParamError(f"{name} is empty", key=name, hint="Leave it out, or name one.")
            if (given := getattr(self, name)) is not None and (here := local_path(given)) is not None:
                object.__setattr__(self, name, here)

    @property
    def sampling(self) -> dict[str, Any]:
        """How tokens are chosen where a request does not say: settings of ``Sampling``."""
        found = {name: getattr(self, name) for name in SAMPLING}
        return {**found, "seed": None if self.seed == -1 else self.seed}

    @property
    def template_variables(self) -> dict[str, Any]:
        """What the chat template is given where a request does not say."""
        return {"enable_thinking": self.reasoning != "off", **json_object(self.chat_template_kwargs)}

    @property
    def n_ctx_slot(self) -> int:
        """Tokens of context of one slot; 0: as many as the model was trained with, within limits."""
        if not self.n_ctx or self.kv_unified:
            return self.n_ctx
        return max(1, self.n_ctx // self.n_parallel)

    @property
    def hosts(self) -> tuple[str, ...]:
        """The addresses to listen at."""
        return tuple(dict.fromkeys(one.strip() for one in self.host.split(",") if one.strip())) or (
            self.host,
        )

    @property
    def origins(self) -> tuple[str, ...]:
        """The web origins that may ask from a browser."""
        return tuple(one.strip() for given in self.cors for one in given.split(",") if one.strip())

    @property
    def keys(self) -> tuple[str, ...]:
        """All API keys; none: everybody may ask."""
        found = [key.strip() for given in self.api_key for key in given.split(",")]
        if self.api_key and not any(
            found
        ):  # an empty variable in a script must not open the server to everybody
            raise InvalidParamError("the API key is empty", key="api_key", hint="Leave it out, or name one.")
        if self.api_key_file is not None:
            found += read_keys(self.api_key_file)
        if self.atlas_admin_key is not None:
            if not self.atlas_admin_key.strip():
                raise InvalidParamError(
                    "the key is empty", key="atlas_admin_key", hint="Leave it out, or name one."
                )
            if not any(found):  # everybody might ask all the rest
                raise InvalidParamError(
                    "there is nobody to tell from whoever has this key", key="atlas_admin_key",
                    hint="Give an API key as well.",
                )  # fmt: skip
            found.append(self.atlas_admin_key.strip())
        return tuple(dict.fromkeys(key for key in found if key))

    @property
    def admin(self) -> str | None:
        """The key that may change what all share; None: there are no keys."""
        if self.atlas_admin_key is not None:
            return self.atlas_admin_key.strip()
        return next(iter(self.keys), None)

    @classmethod
    def from_sources(
        cls,
        options: Mapping[str, Any],
        *,
        file: str | os.PathLike[str] | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> ServerConfig:
        """Return the configuration that options, the environment and a file give, the first of them that says.

        Raises
        ------
        InvalidParamError
            A name is not known, or a value is out of range.
        """
        found = {} if file is None else read_file(file, table())
        for one in table():
            for variable in one.variables:
                if environment is not None and environment.get(variable):
                    value: Any = environment[variable]
                    found[one.name] = value.split(",") if one.many else value
        found.update({name: value for name, value in options.items() if value is not None})
        return cls(**found)


_TABLE: list[Row] = []


def table() -> list[Row]:
    """Return a row for each setting."""
    if not _TABLE:
        memory = dataclasses.fields(MemoryRows)
        own = [one for one in dataclasses.fields(ServerConfig) if one not in memory]
        for one in (*own, *memory):
            more = {"variables": (f"ATLAS_{one.name.upper()}",), **one.metadata}
            _TABLE.append(Row(name=one.name, default=one.default, **more))
    return _TABLE
