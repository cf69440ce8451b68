"""What a request of Anthropic's Messages API may hold."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from atlas_kit.server.schemas import Generate
from atlas_kit.server.schemas_open import Open


class AnthropicMessage(Open):
    """One message of a conversation."""

    role: str = Field(min_length=1, max_length=32, description="user or assistant.")
    content: str | list[dict[str, Any]]


class MessagesRequest(Generate):
    """``POST /v1/messages``."""

    messages: list[AnthropicMessage] = Field(
        min_length=1, max_length=100_000, description="The conversation, whole."
    )
    system: str | list[dict[str, Any]] | None = Field(
        None,
        description="What the assistant is told first. What changes from request to request (a billing header, the "
        "time of day in a line with the current date) is left out.",
    )
    tools: list[dict[str, Any]] | None = Field(
        None, max_length=512, description="Tools that the model may call: name, description, input_schema."
    )
    tool_choice: dict[str, Any] | None = Field(None, description="auto, any, none, or tool with its name.")
    stop_sequences: list[str] | None = Field(
        None, max_length=64, description="Strings before which the answer ends."
    )
    thinking: dict[str, Any] | None = Field(
        None,
        description="type: enabled, adaptive or disabled, where the model's template knows thoughts; budget_tokens: "
        "tokens of thoughts at most, which are ended then.",
    )
    output_config: dict[str, Any] | None = Field(
        None, description="format: a JSON schema that the answer must follow."
    )
    metadata: dict[str, Any] | None = Field(
        None, description="Accepted, without effect: it never chooses a memory."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="More that the template is given.")
