"""What a checker reports: the same shape for every format."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from atlas_kit.errors import Remedy, advice, printable

Severity = Literal["error", "warning", "note"]


@dataclass(frozen=True)
class Finding:
    """One observation about a file.

    ``code`` is a stable kebab-case word for programs, ``message`` says in plain words what was found,
    ``hint`` what to know or to do, ``remedy`` what the library can do about it, ``offset`` is the byte
    offset in the file (``None`` where no byte is to blame) and ``key`` the entry, metadata key or tensor
    concerned.
    """

    code: str
    severity: Severity
    message: str
    hint: str = ""
    offset: int | None = None
    key: str | None = None
    remedy: Remedy | None = None

    @property
    def advice(self) -> str:
        """The hint and the remedy in plain words; empty where there is neither."""
        return advice(self.hint, self.remedy)

    def to_json(self) -> dict[str, Any]:
        """Return the finding as JSON-ready data."""
        return {
            "code": self.code,
            "severity": self.severity,
            "offset": self.offset,
            "key": None if self.key is None else printable(self.key),
            "message": printable(self.message),
            "hint": printable(self.advice),
            "remedy": None if self.remedy is None else self.remedy.to_json(),
        }
