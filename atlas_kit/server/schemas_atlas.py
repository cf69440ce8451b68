"""What the requests and answers of ``/v1/atlas/...`` hold, with units and ranges, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from atlas_kit.server.schemas_open import Open


class Answer(BaseModel):
    """An answer, which may hold more than is listed."""

    model_config = ConfigDict(extra="allow")


SessionId = Field(
    None,
    min_length=1,
    max_length=128,
    description="The session that is meant; without it, the shared memory.",
)
MemoryFile = Field(
    min_length=1, max_length=255, description="A name in the server's folder of memories, without a path."
)


class ConfigChange(Open):
    """``POST /v1/atlas/config``: settings to change now."""

    blend_ratio: float | Literal["adaptive"] | None = Field(
        None, description="Weight of the window's prediction, 0 to 1, or adaptive: learned while reading."
    )
    learning_rate: float | None = Field(None, ge=0, le=100, description="Step size of the learned memory.")
    use_muon: bool | None = Field(None, description="Orthogonalise the steps (Newton-Schulz).")
    auto_save: bool | None = Field(None, description="Save while running, too.")
    auto_save_interval: float | None = Field(
        None, ge=1, le=86400 * 365, description="Seconds between two saves of what has changed."
    )


class Config(Answer):
    """How memories are set up."""

    object: Literal["atlas.config"] = "atlas.config"
    enabled: bool = Field(description="Whether requests have a memory where they do not say.")
    shared: bool = Field(description="Whether requests without a session share a memory that is kept.")
    settings: dict[str, Any] = Field(description="Of new memories, under their usual names.")
    tunable: list[str] = Field(description="What can be changed while the server runs.")
    auto_save: bool
    auto_save_interval: float = Field(description="Seconds.")
    backup_count: int = Field(description="Older versions of the shared memory that are kept.")
    compress: bool
    warm_sessions: int = Field(description="Named sessions that stay in main memory.")


class Status(Answer):
    """The memory at a glance."""

    object: Literal["atlas.status"] = "atlas.status"
    enabled: bool
    state: str = Field(description="loading, ready or stopping.")
    memory_modules: dict[str, Any] = Field(description="What kind of memories there are, and how many.")
    sliding_window: dict[str, Any] = Field(
        description="The exact window of new memories, and of the shared one."
    )
    optimization: dict[str, Any] = Field(description="How memories learn.")
    performance: dict[str, Any] = Field(description="What was done since the start.")
    memory_file: dict[str, Any] | None = Field(
        description="What became of the shared memory's file; null where none is kept."
    )
    sessions: dict[str, Any] = Field(description="Named sessions, and where they are.")


class MemoryAnswer(Answer):
    """One memory."""

    object: Literal["atlas.memory"] = "atlas.memory"
    session_id: str | None = Field(description="null: the memory that requests without a session share.")
    place: str = Field(description="sequence, memory or file: where it is now.")
    conversation_tokens: int
    not_unlearned_tokens: int = Field(description="Tokens that were learned and are not of the present text.")
    memory: dict[str, Any] | None = Field(description="Counts, sizes and settings.")


class SaveRequest(Open):
    """Save a memory under a name; without a name, where it is kept."""

    session_id: str | None = SessionId
    memory_file: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="A name in the server's folder of memories; without it, the file that it is kept in anyway.",
    )


class LoadRequest(Open):
    """Go on with a saved memory."""

    session_id: str | None = SessionId
    memory_file: str = MemoryFile


class DeleteRequest(Open):
    """Remove a saved memory."""

    memory_file: str = MemoryFile


class ResetRequest(Open):
    """Forget."""

    session_id: str | None = SessionId
    mode: Literal["soft", "hard"] = Field(
        "soft", description="soft: what was learned; hard: the optimiser, the window and the context, too."
    )


class ListRequest(Open):
    """Which memories are saved."""


class SavedMemory(Answer):
    """A memory in the folder."""

    memory_file: str
    bytes: int
    modified: float = Field(description="Unix seconds.")
    tokens_learned: int | None
    fits: bool = Field(description="Whether it is this model's.")
    problem: str | None = None


class SavedMemories(Answer):
    """The memories in the folder."""

    object: Literal["list"] = "list"
    data: list[SavedMemory]


class Done(Answer):
    """What was done."""

    object: str
    session_id: str | None = None
    memory_file: str | None = None


class Session(Answer):
    """A named session."""

    object: Literal["atlas.session"] = "atlas.session"
    id: str
    place: str = Field(description="sequence, memory or file: where it is now.")
    busy: bool
    created: float = Field(description="Unix seconds.")
    used: float = Field(description="Unix seconds.")
    requests: int
    conversation_tokens: int
    not_unlearned_tokens: int | None = None
    tokens_learned: int | None = None


class Sessions(Answer):
    """The sessions of an API key."""

    object: Literal["list"] = "list"
    data: list[Session]


class ForkRequest(Open):
    """A new session that knows what another one does."""

    session_id: str = Field(min_length=1, max_length=128, description="The name of the new session.")
