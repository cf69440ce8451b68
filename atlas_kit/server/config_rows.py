"""What is known of one setting of the server, and how a value of it is checked, whoever gave it."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.errors import InvalidParamError


@dataclass(frozen=True)
class Row:
    """One setting: its name, its other names, default, range and what it means in one line; ``off`` switch it off."""

    name: str
    words: tuple[str, ...]
    default: Any
    kind: type
    help: str
    metavar: str = ""
    least: float | None = None
    most: float | None = None
    choices: tuple[str, ...] = ()
    many: bool = False
    variables: tuple[str, ...] = ()
    off: tuple[str, ...] = ()
    group: str = ""

    def check(self, value: Any) -> Any:
        """Return a value in the setting's own type.

        Raises
        ------
        InvalidParamError
            It is of another type, or out of range.
        """
        if value is None:  # nobody says
            return self.default
        if self.many:
            values = value if isinstance(value, (list, tuple)) else [value]
            return tuple(self._one(item) for item in values)
        return self._one(value)

    def _one(self, value: Any) -> Any:
        try:
            found = as_bool(value) if self.kind is bool else _scalar(value, self.kind)
        except (TypeError, ValueError, OverflowError) as error:
            raise InvalidParamError(f"{self.name} is {value!r}", key=self.name, hint=self._allowed) from error
        small = self.least is not None and found < self.least
        if small or (self.most is not None and found > self.most) or found != found:
            raise InvalidParamError(f"{self.name} is {value!r}", key=self.name, hint=self._allowed)
        if self.choices and found not in self.choices:
            raise InvalidParamError(f"{self.name} is {value!r}", key=self.name, hint=self._allowed)
        return found

    @property
    def _allowed(self) -> str:
        if self.choices:
            return f"Choose {', '.join(self.choices)}."
        if self.kind is bool:
            return "Choose true or false."
        if self.least is not None and self.most is not None:
            return f"Choose {self.least:.10g} to {self.most:.10g}."
        if self.least is not None:
            return f"Choose {self.least:.10g} or more."
        return "Give a number." if self.kind in (int, float) else "Give a text."


def _scalar(value: Any, kind: type) -> Any:
    """Return a text or a number; what is neither, or would lose its fraction, is an error."""
    if isinstance(value, bool) or not isinstance(value, (str, int, float, os.PathLike)):
        raise TypeError
    found = os.fspath(value) if isinstance(value, os.PathLike) else kind(value)
    if (kind is int and isinstance(value, float) and found != value) or (kind is str and "\0" in found):
        raise ValueError
    return found


def as_bool(value: Any) -> bool:
    """Return what a word or a number says: yes or no."""
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on", "enabled"):
        return True
    if text in ("0", "false", "no", "off", "disabled", ""):
        return False
    raise ValueError(text)


def row(default: Any, kind: type, help: str, *words: str, **more: Any) -> Any:
    """Return a field of the configuration, with what its ``Row`` is made from."""
    return field(default=default, metadata={"kind": kind, "help": help, "words": words, **more})
