"""What the requests and answers of ``/v1/atlas/...`` hold, with units and ranges, for the OpenAPI document."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

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
Filename = Field(
    None,
    min_length=1,
    max_length=255,
    description="The same as memory_file, which counts where both are sent.",
)


class NamesFile(Open):
    """A request that names a file in the folder of memories, as ``memory_file`` or as ``filename``."""

    filename: str | None = Filename

    @model_validator(mode="before")
    @classmethod
    def _under_either_name(cls, sent: Any) -> Any:
        if isinstance(sent, dict) and sent.get("memory_file") is None and sent.get("filename") is not None:
            return {**sent, "memory_file": sent["filename"]}
        return sent


def _either(schema: dict[str, Any]) -> None:
    """Let a schema say that one of both names is required."""
    schema["required"] = [name for name in schema.get("required", ()) if name != "memory_file"]
    schema["anyOf"] = [{"required": ["memory_file"]}, {"required": ["filename"]}]
    if not schema["required"]:
        del schema["required"]


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
    store: dict[str, Any] | None = Field(
        description="The address that memories are kept at, and what waits for it; null where that is a folder."
    )
    sessions: dict[str, Any] = Field(description="Named sessions, and where they are.")


class MemoryAnswer(Answer):
    """One memory."""

    object: Literal["atlas.memory"] = "atlas.memory"
    session_id: str | None = Field(description="null: the memory that requests without a session share.")
    place: str = Field(description="sequence, memory or file: where it is now.")
    conversation_tokens: int
    not_unlearned_tokens: int = Field(
        description="Tokens read or said that are not of the present text: what was learned of them stays."
    )
    memory: dict[str, Any] | None = Field(description="Counts, sizes and settings.")


class SaveRequest(NamesFile):
    """Save a memory under a name; without a name, where it is kept."""

    session_id: str | None = SessionId
    memory_file: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="A name in the server's folder of memories; without it, the file that it is kept in anyway.",
    )


class LoadRequest(NamesFile):
    """Go on with a saved memory."""

    model_config = ConfigDict(json_schema_extra=_either)

    session_id: str | None = SessionId
    memory_file: str = MemoryFile


class DeleteRequest(NamesFile):
    """Remove a saved memory."""

    model_config = ConfigDict(json_schema_extra=_either)

    memory_file: str = MemoryFile


class ResetRequest(Open):
    """Forget."""

    session_id: str | None = SessionId
    mode: Literal["soft", "hard"] = Field(
        "soft",
        description="soft: what was learned; hard: optimiser, window, context and what was read, too.",
    )


class ForgetRequest(Open):
    """Forget part of what was read and said: what all of these hold for that are given."""

    source: str | None = Field(None, min_length=1, max_length=1024, description="The document of this name.")
    about: str | None = Field(
        None,
        min_length=1,
        max_length=4096,
        description="Words that all occur in a turn, or in a part of a document.",
    )
    before: str | None = Field(
        None,
        min_length=1,
        max_length=64,
        description="What was read or said before this date or time, in ISO 8601; UTC where no zone is named.",
    )
    remove_answers: bool = Field(
        False,
        description="Remove all answers of the Responses API that this memory has read, too: they may hold the text, "
        "and what goes on from them is read again.",
    )
    dry_run: bool = Field(False, description="Only say what would be forgotten.")


class ForgetShared(ForgetRequest):
    """Forget part of what the shared memory, or a session's, holds."""

    session_id: str | None = SessionId
    remove_backups: bool = Field(
        False, description="Remove the backups of the shared memory's file, too: they may hold the text."
    )


class ForgottenAnswer(Answer):
    """What was, or would be, forgotten."""

    object: Literal["atlas.memory.forgotten"] = "atlas.memory.forgotten"
    session_id: str | None = Field(description="null: the memory that requests without a session share.")
    dry_run: bool
    tokens: int = Field(description="Tokens that went.")
    documents: int
    turns: int
    pieces: list[dict[str, Any]] = Field(
        description="What went: kind, source, line, time_ms (Unix time), tokens, and the beginning of the text."
    )
    left: dict[str, int] = Field(description="Tokens, documents and turns that are left.")
    also_removed: list[str] = Field(
        description="What else went because it holds text: context, texts, window."
    )
    backups: list[str] = Field(
        description="Backups of the shared memory's file, which may still hold the text."
    )
    backups_removed: bool
    answers: int = Field(
        description="Answers of the Responses API that this memory has read, which may still hold the text."
    )
    answers_removed: bool


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


class Matrix(Answer):
    """A part of a matrix of a memory, pooled so that it fits a screen."""

    object: Literal["atlas.memory.matrix"] = "atlas.memory.matrix"
    session_id: str | None = Field(description="null: the memory that requests without a session share.")
    names: list[str] = Field(description="All matrices of the memory.")
    name: str = Field(description="The one that this is a part of.")
    shape: list[int] = Field(description="Rows and columns of the whole matrix.")
    dtype: str = Field(description="The type of its numbers.")
    tokens_seen: int = Field(description="Tokens that the memory had taken in by then.")
    steps: int = Field(description="Steps that it had taken by then.")
    largest: float = Field(description="The largest finite magnitude in the whole matrix.")
    box: list[int] = Field(description="The part: its first row and column, and those behind its last ones.")
    size: list[int] = Field(description="Rows and columns that are sent.")
    block: list[int] = Field(description="Rows and columns of the matrix that each number stands for.")
    numbers: str = Field(
        description="Little-endian float32, row by row, in base64: of each block, the number farthest from zero."
    )
