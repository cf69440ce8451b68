"""What a checker reports: the same shape for every format."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, replace
from typing import Any, Literal

from atlas_kit.errors import AtlasError, Remedy, advice, printable

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


class Report:
    """Findings as they are made; what may be true of thousands of parts is bounded, or counted and said once.

    Parameters
    ----------
    remedy
        What helps against an error that does not say otherwise.
    most
        Findings of one code that are listed one by one; then one line says how many more there are.
    """

    def __init__(self, *, remedy: Remedy | None = None, most: int | None = None) -> None:
        self._remedy = remedy
        self._most = most
        self._findings: list[Finding] = []
        self._counts: Counter[str] = Counter()
        self._tallies: Counter[tuple[str, str]] = Counter()
        self._first: dict[tuple[str, str], Finding] = {}

    def add(
        self,
        code: str,
        severity: Severity,
        message: str,
        hint: str = "",
        *,
        offset: int | None = None,
        key: str | None = None,
        remedy: Remedy | None = None,
    ) -> None:
        """Add one finding."""
        self.append(Finding(code, severity, message, hint, offset, key, remedy))

    def has(self, code: str) -> bool:
        """Tell whether a finding of this code was made."""
        return self._counts[code] > 0

    def append(self, finding: Finding) -> None:
        """Add a finding that was made elsewhere."""
        self._counts[finding.code] += 1
        if self._most is None or self._counts[finding.code] <= self._most:
            self._findings.append(finding)

    def error(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        offset: int | None = None,
        key: str | None = None,
        remedy: Remedy | Literal["usual"] | None = "usual",
    ) -> None:
        """Add something that is broken or lost."""
        helps = self._remedy if remedy == "usual" else remedy
        self.add(code, "error", message, hint, offset=offset, key=key, remedy=helps)

    def warning(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        offset: int | None = None,
        key: str | None = None,
        remedy: Remedy | None = None,
    ) -> None:
        """Add something that is wrong and that readers put up with."""
        self.add(code, "warning", message, hint, offset=offset, key=key, remedy=remedy)

    def note(
        self,
        code: str,
        message: str,
        hint: str = "",
        *,
        offset: int | None = None,
        key: str | None = None,
        remedy: Remedy | None = None,
    ) -> None:
        """Add something worth knowing."""
        self.add(code, "note", message, hint, offset=offset, key=key, remedy=remedy)

    def raised(
        self,
        code: str,
        error: AtlasError,
        hint: str = "",
        *,
        remedy: Remedy | Literal["usual"] | None = "usual",
    ) -> None:
        """Add an error that was raised below."""
        self.error(code, error.message, hint, offset=error.offset, key=error.key, remedy=remedy)

    def tally(
        self,
        code: str,
        severity: Severity,
        message: str,
        *,
        offset: int | None,
        key: str | None = None,
        hint: str = "",
        remedy: Remedy | None = None,
    ) -> None:
        """Count something that many entries may have in common; ``message`` follows "N entries"."""
        self._tallies[code, message] += 1
        if (code, message) not in self._first:
            self._first[code, message] = Finding(code, severity, message, hint, offset, key, remedy)

    def errors(self) -> list[Finding]:
        """Return the findings that are errors."""
        return [finding for finding in self.findings() if finding.severity == "error"]

    def findings(self) -> list[Finding]:
        """Return everything that was found: one by one, then what is left out of that, then what was counted."""
        found = list(self._findings)
        severity = {finding.code: finding.severity for finding in found}
        for code, count in self._counts.items():
            if self._most is not None and count > self._most:
                more = count - self._most
                found.append(Finding(code, severity[code], f"and {more} more of the same kind"))
        for tally, number in self._tallies.items():
            one = self._first[tally]
            if number == 1:
                found.append(replace(one, message=f"1 entry {one.message}"))
            else:
                hint = f"The first one is at byte {one.offset}. {one.hint}".strip()
                message = f"{number} entries {one.message}"
                found.append(replace(one, message=message, hint=hint, key=None))
        return found
