"""What requests may hold, with units and ranges: pydantic models, from which the OpenAPI document is generated.

Properties that are not listed are accepted and have no effect, as in OpenAI's own schema, which grows.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from atlas_kit.server.schemas_open import Open
from atlas_kit.server.schemas_sampling import SamplingOptions

Prompt = str | list[int] | list[str] | list[list[int]] | list[int | str | list[int | str]]


class AtlasOptions(Open):
    """The memory beside the model."""

    enabled: bool | None = Field(
        None,
        description="Whether a memory takes part. Default: as the server was started, or true with a session_id.",
    )
    session_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The memory that goes on: a name of your own, private to your API key.",
    )
    window_size: int | None = Field(None, ge=64, le=8192, description="Tokens that the exact window keeps.")
    blend_ratio: float | None = Field(
        None,
        ge=0,
        le=1,
        description="Weight of the window's prediction; without it, it is learned while reading.",
    )
    learning_rate: float | None = Field(None, gt=0, le=0.1, description="Step size of the learned memory.")
    polynomial_degree: int | None = Field(None, ge=1, le=3, description="Degree of the feature map.")
    use_muon: bool | None = Field(None, description="Orthogonalise the steps (Newton-Schulz).")
    warmup_tokens: int | None = Field(
        None, ge=0, le=1 << 24, description="Tokens that are watched before the memory learns."
    )
    recall: Literal["auto", "off", "always"] | None = Field(
        None,
        description="Read again, before an answer, what was read or said earlier: auto where it helps, off, or always.",
    )
    recall_segments: int | None = Field(None, ge=1, le=16, description="Pieces that are read again at most.")
    recall_gate: float | None = Field(
        None, ge=-100, le=100, description="Nats per token of the question that a piece must gain."
    )
    source: str | None = Field(
        None, max_length=255, description="What the text of a completion is called: a document's name."
    )
    replaces: bool | None = Field(
        None,
        description="This text corrects the one before it: what that said else is no longer recalled.",
    )
    memory_file: str | None = Field(
        None,
        min_length=1,
        max_length=255,
        description="A saved memory, by its file name, that a new session starts with.",
    )
    save_memory: bool | None = Field(None, description="Save the session's memory after the answer.")

    def chosen(self) -> dict[str, Any]:
        """Return what was given."""
        return self.model_dump(exclude_none=True)


class StreamOptions(Open):
    """How a stream ends."""

    include_usage: bool | None = Field(None, description="Send the usage in a last chunk.")


class Generate(SamplingOptions):
    """What all requests for a text share."""

    model: str | None = Field(
        None, description="A server has one model: of its names, the answer has this one."
    )
    max_tokens: int | None = Field(
        None,
        ge=-1,
        le=1 << 24,
        description="Tokens of the answer at most; -1: until the model ends it. Default: as many as the context holds.",
    )
    n_predict: int | None = Field(None, ge=-1, le=1 << 24, description="The same as max_tokens.")
    temperature: float | None = Field(
        None, ge=0, le=100, description="0 takes the likeliest token each time."
    )
    top_p: float | None = Field(
        None, ge=0, le=1, description="Only the likeliest tokens that have this probability together."
    )
    top_k: int | None = Field(
        None, ge=-1, le=1 << 24, description="Only so many of the likeliest tokens; 0 or -1: all."
    )
    min_p: float | None = Field(
        None, ge=0, le=1, description="Only tokens that are so many times as likely as the likeliest."
    )
    seed: int | None = Field(
        None, ge=-(1 << 63), lt=1 << 63, description="Of the random numbers; -1 draws one."
    )
    presence_penalty: float | None = Field(
        None, ge=-100, le=100, description="Taken from the logit of every token that came."
    )
    frequency_penalty: float | None = Field(
        None, ge=-100, le=100, description="The same, as often as it came."
    )
    repeat_penalty: float | None = Field(
        None, ge=0.01, le=100, description="Divides the logits of tokens that came lately."
    )
    repeat_last_n: int | None = Field(
        None, ge=-1, le=1 << 20, description="Tokens that the penalties look back."
    )
    logit_bias: dict[str, Any] | list[Any] | None = Field(
        None,
        description="Token (or a text): what is added to its logit, false to forbid it; also as a list of pairs.",
    )
    stop: str | list[str] | None = Field(None, description="Strings before which the answer ends.")
    stream: bool | None = Field(None, description="Send the answer as it comes.")
    stream_options: StreamOptions | None = None
    n: int | None = Field(
        None,
        ge=1,
        le=16,
        description="Answers to the same prompt, which is read once; a session remembers the first of them.",
    )
    n_cmpl: int | None = Field(None, ge=1, le=16, description="The same as n.")
    user: str | None = Field(None, description="Accepted, without effect: it never chooses a memory.")
    grammar: str | None = Field(
        None, max_length=1 << 16, description="A GBNF grammar that the answer must follow."
    )
    json_schema: dict[str, Any] | None = Field(None, description="A JSON schema that the answer must follow.")
    timings_per_token: bool | None = Field(
        None, description="Tell in each part of a stream how long it took so far."
    )
    return_progress: bool | None = Field(None, description="Stream how much of the prompt is read.")
    sse_ping_interval: int | None = Field(
        None,
        ge=-1,
        le=1 << 31,
        description="Seconds after which a stream that has not begun sends a sign of life; 0 or -1: none.",
    )
    verbose: bool | None = Field(
        None, description="Tell the prompt as the model read it, and all settings, as __verbose."
    )
    atlas: AtlasOptions | None = Field(None, description="The memory beside the model.")


class CompletionRequest(Generate):
    """``POST /v1/completions``."""

    prompt: Prompt = Field(
        description="The text to continue: a string, tokens, a mixture of both, or a list of those."
    )
    echo: bool | None = Field(None, description="Repeat the prompt before the answer.")
    logprobs: int | None = Field(
        None, ge=0, le=20, description="Tell the log-probabilities of so many likeliest tokens."
    )
    suffix: str | None = Field(None, description="The text behind the answer, where the model can fill in.")
    best_of: int | None = Field(
        None,
        ge=0,
        le=16,
        description="Generate so many answers and give the n whose tokens were likeliest, by their mean.",
    )


class ChatMessage(Open):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=32)
    content: str | list[dict[str, Any]] | None = None


class ResponseFormat(Open):
    """The shape of the answer."""

    type: Literal["text", "json_object", "json_schema"] = "text"
    json_schema: dict[str, Any] | None = None
    schema_: Annotated[dict[str, Any] | None, Field(alias="schema")] = None


ThinkingBudget = Annotated[
    int | None,
    Field(ge=-1, le=1 << 24, description="Tokens of thoughts at most, which are ended then; -1: any number."),
]


class ChatRequest(Generate):
    """``POST /v1/chat/completions``."""

    messages: list[ChatMessage] = Field(
        min_length=1, max_length=10000, description="The conversation, whole."
    )
    max_completion_tokens: int | None = Field(None, ge=-1, le=1 << 24, description="The same as max_tokens.")
    logprobs: bool | None = Field(None, description="Tell the tokens' log-probabilities.")
    top_logprobs: int | None = Field(None, ge=0, le=20, description="And those of so many likeliest tokens.")
    response_format: ResponseFormat | None = None
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=128, description="Functions that the model may call."
    )
    tool_choice: str | dict[str, Any] | None = Field(None, description="none, auto, required, or a function.")
    parallel_tool_calls: bool | None = Field(None, description="Whether several calls may come at once.")
    reasoning_effort: str | None = Field(
        None,
        max_length=32,
        description="Given to the chat template; none asks for an answer without thoughts.",
    )
    reasoning_format: Literal["none", "auto", "deepseek", "deepseek-legacy"] | None = Field(
        None,
        description="Where thoughts go: none leaves them in the content, the others put them into reasoning_content.",
    )
    thinking_budget: ThinkingBudget = None
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="What the chat template is given beside, such as enable_thinking."
    )
    add_generation_prompt: bool | None = Field(
        None, description="False: the text ends behind the last message."
    )
    continue_final_message: bool | None = Field(
        None, description="Go on with the last message, which is the assistant's."
    )
