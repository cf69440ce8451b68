"""What llama-server's own endpoints take: ``/completion``, ``/infill``, ``/tokenize`` and the others."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from atlas_kit.server.schemas import Generate
from atlas_kit.server.schemas_open import Open

_COUNT = 1 << 24


class NativeOptions(Generate):
    """What ``/completion`` and ``/infill`` share beyond what every API has."""

    n_predict: int | None = Field(
        None, ge=-1, le=_COUNT, description="Tokens of the answer at most; -1: as the server was started."
    )
    max_completion_tokens: int | None = Field(None, ge=-1, le=_COUNT, description="The same as n_predict.")
    n_cmpl: int | None = Field(None, ge=1, le=16, description="Answers to each prompt.")
    n_probs: int | None = Field(
        None, ge=0, le=1000, description="Tell the log-probabilities of so many likeliest tokens."
    )
    logprobs: int | bool | None = Field(None, ge=0, le=1000, description="The same as n_probs.")
    post_sampling_probs: bool | None = Field(
        None, description="Tell the probabilities that were drawn from, after all samplers."
    )
    cache_prompt: bool | None = Field(
        None, description="False: read the whole prompt, also what was read before. A memory learns it again."
    )
    id_slot: int | None = Field(
        None,
        ge=-1,
        le=255,
        description="The slot that it shall happen in, where no session is named; -1: any.",
    )
    return_tokens: bool | None = Field(None, description="Tell the numbers of the generated tokens.")
    response_fields: list[str] | None = Field(
        None, max_length=256, description="Only these fields of the answer; a/b is the field b of a."
    )
    t_max_predict_ms: int | None = Field(
        None,
        ge=-1,
        le=1 << 40,
        description="After so many milliseconds, the next line break ends the answer.",
    )
    n_indent: int | None = Field(
        None, ge=0, le=1000, description="A line with less space at its beginning ends the answer."
    )
    n_keep: int | None = Field(
        None,
        ge=-1,
        le=_COUNT,
        description="Tokens of the prompt that stay in a context that is full; -1: all of them.",
    )
    n_discard: int | None = Field(
        None,
        ge=0,
        le=_COUNT,
        description="Accepted: a context that is full drops the older half of what is behind n_keep.",
    )
    n_cache_reuse: int | None = Field(None, ge=0, le=_COUNT, description="Accepted, without effect.")


class NativeRequest(NativeOptions):
    """``POST /completion``."""

    prompt: Any = Field(
        description="The text to continue: a string, tokens, a list of both mixed, or a list of such prompts."
    )


class Extra(Open):
    """A file beside the one that is filled in."""

    text: str = Field(description="What is in it.")
    filename: str | None = Field(None, description="What it is called.")


class InfillRequest(NativeOptions):
    """``POST /infill``."""

    input_prefix: str = Field(description="The text before the gap.")
    input_suffix: str = Field(description="The text behind it.")
    input_extra: list[Extra] | None = Field(None, max_length=1024, description="Other files, for context.")
    prompt: str | None = Field(None, description="How the text in the gap begins.")


class TokenizeRequest(Open):
    """``POST /tokenize``."""

    content: str | list[str | int] | None = Field(None, description="The text, or strings and tokens mixed.")
    add_special: bool | None = Field(None, description="Put the begin token before it.")
    parse_special: bool | None = Field(
        None, description="Names of control tokens become those tokens, unless this is false."
    )
    with_pieces: bool | None = Field(None, description="Tell each token's text, too.")


class DetokenizeRequest(Open):
    """``POST /detokenize``."""

    tokens: list[int] | None = Field(None, description="The tokens.")


class TemplateRequest(Open):
    """``POST /apply-template``."""

    messages: list[dict[str, Any]] = Field(min_length=1, max_length=10000, description="The conversation.")
    tools: list[dict[str, Any]] | None = Field(None, max_length=128, description="Functions for it.")
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="What the template asks for beside."
    )
    add_generation_prompt: bool | None = Field(
        None, description="False: the text ends behind the last message."
    )


class SlotRequest(Open):
    """``POST /slots/{id}``."""

    filename: str | None = Field(None, description="The file to save to, or to restore from.")
