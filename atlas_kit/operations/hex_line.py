"""One field of a file's bytes, as every format shows it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from atlas_kit.codecs.json_text import plain


@dataclass(frozen=True)
class HexLine:
    """One field of the file: ``data`` are its first bytes, ``meaning`` is what the specification says."""

    offset: int
    size: int
    data: bytes
    name: str
    type: str
    value: str
    meaning: str

    def to_json(self) -> dict[str, Any]:
        """Return the field as JSON-ready data."""
        return {"offset": self.offset, "size": self.size, "bytes": self.data.hex(), "name": self.name,
                "type": self.type, "value": plain(self.value), "meaning": self.meaning}  # fmt: skip
