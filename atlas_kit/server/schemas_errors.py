"""What an answer that tells of an error holds: for the OpenAPI document."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, Field

from atlas_kit.server.problems import TYPES


class ErrorDetail(BaseModel):
    """What went wrong."""

    message: str = Field(description="One sentence.")
    type: str = Field(description="The kind of error, which follows from the status.")
    param: str | None = Field(description="The property that is at fault.")
    code: str | None = Field(description="A word for programs.")
    n_prompt_tokens: int | None = Field(None, description="Tokens of a text that the context cannot hold.")
    n_ctx: int | None = Field(None, description="Tokens that it holds.")


class ErrorBody(BaseModel):
    """An error, as OpenAI's clients read it."""

    error: ErrorDetail


class MessagesErrorDetail(BaseModel):
    """What went wrong."""

    type: str
    message: str


class MessagesErrorBody(BaseModel):
    """An error, as Anthropic's clients read it."""

    type: str
    error: MessagesErrorDetail


_SAID = {
    400: "The request makes no sense.",
    401: "The API key is missing or wrong.",
    403: "The server does not offer this, or not without a folder of memories.",
    404: "There is nothing of this name.",
    405: "This endpoint takes another method.",
    409: "It contradicts what is there: another model's memory, a damaged file, one that is in use.",
    413: "The request is too large.",
    415: "The body is not JSON.",
    429: "Too many requests wait; the header retry-after says when to try again.",
    500: "Something went wrong in the server, whose log has more under the request's id.",
    501: "This server, or this model, cannot do that.",
    503: "The model is still loading, or the server is shutting down.",
    507: "There is no room left where memories are kept.",
}


def documented(*, messages: bool = False) -> dict[int | str, dict[str, Any]]:
    """Return the answers that tell of errors, for the routes of a family: one shape, whatever the status."""
    model = MessagesErrorBody if messages else ErrorBody
    said = "\n".join(f"- {status}: {_SAID[status]}" for status in TYPES)
    return {"default": {"model": model, "description": f"An error.\n\n{said}"}}
