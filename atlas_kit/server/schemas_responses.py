"""What a request of OpenAI's Responses API may hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from atlas_kit.server.schemas import Generate, ThinkingBudget
from atlas_kit.server.schemas_open import Open

#: What a client notes for itself.
Metadata = dict[str, str | float | bool | None]


class ConversationName(Open):
    """A conversation, by its name."""

    id: str = Field(min_length=1, max_length=128)


class ResponsesRequest(Generate):
    """``POST /v1/responses``."""

    input: str | list[dict[str, Any]] = Field(
        default=[],
        description="A text, or items: messages, function_call, function_call_output, reasoning. With "
        "previous_response_id or conversation only what is new.",
    )
    instructions: str | None = Field(
        None, description="What the model is told first; the ones of before do not count any more."
    )
    previous_response_id: str | None = Field(
        None,
        min_length=1,
        max_length=128,
        description="The answer that this one goes on from: its text, and the memory that has read it.",
    )
    conversation: str | ConversationName | None = Field(
        None,
        description="The conversation that goes on: its text, and the session of this name, which is private to your "
        "API key.",
    )
    max_output_tokens: int | None = Field(
        None, ge=0, le=1 << 24, description="Tokens of the answer at most, thoughts included."
    )
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=512, description="Functions that the model may call. Other tools are left out."
    )
    tool_choice: str | dict[str, Any] | None = Field(
        None, description="none, auto, required, a function, or allowed_tools."
    )
    parallel_tool_calls: bool | None = Field(None, description="Whether several calls may come at once.")
    text: dict[str, Any] | None = Field(
        None,
        description="format: text, json_object, or json_schema with a schema that the answer must follow.",
    )
    reasoning: dict[str, Any] | None = Field(
        None, description="effort: how much the model thinks, where its template knows that."
    )
    thinking_budget: ThinkingBudget = None
    include: list[str] | None = Field(
        None, max_length=64, description="message.output_text.logprobs tells log-probabilities."
    )
    top_logprobs: int | None = Field(
        None, ge=0, le=20, description="Tell log-probabilities of so many likeliest tokens."
    )
    store: bool | None = Field(
        None, description="Whether the answer can be gone on from by its id.  [default: true]"
    )
    truncation: Literal["auto", "disabled"] | None = Field(
        None, description="Accepted, without effect: a memory reads texts of any length."
    )
    background: bool | None = Field(None, description="Not supported.")
    prompt: dict[str, Any] | None = Field(None, description="Not supported: there are no stored prompts.")
    metadata: Metadata | None = Field(None, description="Given back with the answer.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="More that the template is given.")

    @property
    def conversation_name(self) -> str | None:
        """The name of the conversation."""
        return self.conversation.id if isinstance(self.conversation, ConversationName) else self.conversation
