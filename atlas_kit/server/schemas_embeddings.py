"""What a request for vectors may hold."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from atlas_kit.server.schemas_open import Open

_TEXT: Any = {"type": "string"}
_TOKENS: Any = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_SEVERAL: Any = {"type": "array", "items": {"anyOf": [_TEXT, _TOKENS]}, "minItems": 1, "maxItems": 2048}


class EmbeddingRequest(Open):
    """``POST /v1/embeddings``."""

    input: Any = Field(
        None,
        description="A text, its tokens, or a list of texts and of lists of tokens.",
        json_schema_extra={"anyOf": [_TEXT, _TOKENS, _SEVERAL]},
    )
    content: Any = Field(None, description="The same, by llama-server's older name.")
    model: str | None = Field(
        None, description="A server has one model: of its names, the answer has this one."
    )
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Numbers, or base64 of 32-bit floats, little endian.  [default: float]"
    )
    dimensions: int | None = Field(
        None, ge=1, le=1 << 20, description="Only so many of the first numbers, scaled to the norm again."
    )
    embd_normalize: int | None = Field(
        None,
        ge=-1,
        le=64,
        description="Which norm is 1: 2 Euclidean, 1 the sum, others the p-norm; 0: the largest number is 32,760; "
        "-1: none.  [default: 2]",
    )
    user: str | None = Field(None, description="Accepted, without effect.")
