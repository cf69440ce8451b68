"""What is asked of making a file smaller, and what comes of it: for memory files and for models."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.operations.tensor_numbers import Difference

if TYPE_CHECKING:
    from atlas_kit.operations.model_check import ModelCheck
    from atlas_kit.storage.given import Given


@dataclass
class EntryRatio:
    """One entry: payload bytes, stored bytes before and after, and the error of quantising."""

    key: str
    size: int
    stored_before: int
    stored_after: int
    codec: str
    dtype_before: str | None = None
    dtype_after: str | None = None
    error: Difference | None = None
    note: str = ""

    @property
    def ratio(self) -> float | None:
        """Stored bytes now, over payload bytes before."""
        return self.stored_after / self.size if self.size else None

    def to_json(self) -> dict[str, Any]:
        """Return the row as JSON-ready data."""
        return {
            **named("key", self.key),
            "size": self.size,
            "stored_before": self.stored_before,
            "stored_after": self.stored_after,
            "ratio": self.ratio,
            "codec": self.codec,
            "dtype_before": self.dtype_before,
            "dtype_after": self.dtype_after,
            "error": self.error.to_json() if self.error else None,
            "note": self.note,
        }


@dataclass
class Compressed:
    """Sizes of the files, and one row per entry; ``check`` is what a model makes of a text now."""

    source: str
    output: str
    size_before: int
    size_after: int
    entries: list[EntryRatio] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    check: ModelCheck | None = None

    exit_code = 0

    @property
    def ratio(self) -> float | None:
        """Size after over size before."""
        return self.size_after / self.size_before if self.size_before else None

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.source),
            **named("output", self.output),
            **named("source", self.source),  # as version 0.1.0 has it
            "size_before": self.size_before,
            "size_after": self.size_after,
            "ratio": self.ratio,
            "entries": [row.to_json() for row in self.entries],
            **({"notes": self.notes} if self.notes else {}),
            **({"check": self.check.to_json()} if self.check else {}),
        }


@dataclass
class CompressOptions:
    """How to compress: zstd unless ``codec`` says otherwise.

    ``quantize`` is f16, bf16 or q8_0, of a model also a type of ``llama.quantizer.TYPES``; ``None`` keeps numbers as
    they are. ``requantize`` takes a model that is quantised already. ``check`` is a text of whose first
    ``check_tokens`` tokens perplexity and divergence are measured. ``decrypt``: write plain text although the source
    is encrypted or there is a secret.
    """

    codec: str | None = None
    level: int | None = None
    shuffle: bool = True
    quantize: str | None = None
    force: bool = False
    requantize: bool = False
    check: Given | None = None
    check_tokens: int = 2048
    decrypt: bool = False

    @property
    def codec_name(self) -> str:
        """The codec to use."""
        return self.codec or "zstd"
