"""What all requests share: they may hold more than is listed, and what is listed has the type that is listed."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel, ConfigDict, model_validator

#: Beyond this, a floating-point number says nothing of units.
_EXACT = 1 << 53


class Open(BaseModel):
    """A request that may hold more than is listed; what is listed has the type that the API's document says."""

    model_config = ConfigDict(extra="allow", strict=True)

    @model_validator(mode="before")
    @classmethod
    def _whole_numbers(cls, given: Any) -> Any:
        """Take 12.0 where an integer is asked for: JSON has one kind of number."""
        if not isinstance(given, Mapping):
            return given
        return {name: int(value) if _is_whole(value) else value for name, value in given.items()}


def _is_whole(value: Any) -> bool:
    return isinstance(value, float) and abs(value) <= _EXACT and value.is_integer()
