"""How a request may want tokens to be chosen: llama-server's names, ranges and forms, shared by every API.

The ranges are those of ``Sampling``; nothing out of them reaches llama.cpp.
"""

from __future__ import annotations

from pydantic import Field

from atlas_kit.server.schemas_open import Open


class SamplingOptions(Open):
    """llama-server's samplers beyond OpenAI's."""

    ignore_eos: bool | None = Field(None, description="Choose no token that ends the answer.")
    typical_p: float | None = Field(
        None, ge=0, le=1, description="Only the most typical tokens that have this probability together."
    )
    top_n_sigma: float | None = Field(
        None,
        ge=-1,
        le=100,
        description="Only tokens within so many standard deviations of the largest logit.",
    )
    xtc_probability: float | None = Field(
        None, ge=0, le=1, description="How often the likeliest of several likely tokens are left out."
    )
    xtc_threshold: float | None = Field(
        None, ge=0, le=1, description="What is likely for that; above 0.5: nothing is left out."
    )
    dynatemp_range: float | None = Field(
        None, ge=0, le=100, description="How far the temperature follows the entropy."
    )
    dynatemp_exponent: float | None = Field(None, ge=0.01, le=100, description="By which power of it.")
    dry_multiplier: float | None = Field(
        None, ge=0, le=100, description="Penalty on what goes on with a repetition; 0: none."
    )
    dry_base: float | None = Field(
        None, ge=1, le=100, description="How the penalty grows with the repetition's length."
    )
    dry_allowed_length: int | None = Field(
        None, ge=0, le=1 << 20, description="Tokens of a repetition that cost nothing."
    )
    dry_penalty_last_n: int | None = Field(
        None,
        ge=-1,
        le=1 << 16,
        description="Tokens that are searched for repetitions; -1: the whole context.",
    )
    dry_sequence_breakers: list[str] | None = Field(
        None, min_length=1, max_length=16, description="Strings that a repetition does not reach across."
    )
    mirostat: int | None = Field(None, ge=0, le=2, description="Version of Mirostat; 0: the other samplers.")
    mirostat_tau: float | None = Field(None, ge=0, le=100, description="Its target surprise, in bits.")
    mirostat_eta: float | None = Field(None, ge=0, le=1, description="Its learning rate.")
    adaptive_target: float | None = Field(
        None, ge=-1, le=1, description="Probability that the sampler adaptive_p aims at; negative: none."
    )
    adaptive_decay: float | None = Field(None, ge=0, le=0.99, description="How long that one remembers.")
    samplers: str | list[str] | None = Field(
        None, max_length=22, description="The samplers that take part, in their order: names, or letters."
    )
    min_keep: int | None = Field(None, ge=0, le=1 << 20, description="Tokens that samplers leave at least.")
