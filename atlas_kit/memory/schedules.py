"""Rates alpha, theta and eta over time: a number, or a schedule over the tokens that the memory has learned.

Time is counted in tokens since the memory was empty, so a stream may be cut anywhere.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, fields
from typing import Any

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory._checks import is_number, is_whole
from atlas_kit.memory.backend import Array, namespace

KINDS = ("constant", "linear", "cosine", "exponential", "inverse-sqrt")


@dataclass(frozen=True)
class Schedule:
    """A rate that moves from ``start`` towards ``end``; with f = min(t / tokens, 1), at token t it is

    - ``constant``: start (end and tokens mean nothing);
    - ``linear``: start + (end - start) f;
    - ``cosine``: end + (start - end) (1 + cos(pi f)) / 2;
    - ``exponential``: start (end / start)^f, both of them positive;
    - ``inverse-sqrt``: start / sqrt(1 + t / tokens), never below end, which it meets late if ever.

    Parameters
    ----------
    kind
        One of these names.
    start, end
        Rates at token 0 and in the limit.
    tokens
        Length of the way in tokens, 1 or more.

    Raises
    ------
    InvalidParamError
        For an unknown kind, a rate that is no finite number, or a length below 1.

    Examples
    --------
    >>> import numpy as np
    >>> Schedule("linear", 1.0, 0.0, tokens=4).at(np.array([0, 1, 4, 9])).tolist()
    [1.0, 0.75, 0.0, 0.0]
    >>> Schedule("cosine", 3.0, 1.0, tokens=4).at(np.array([0, 2, 4])).round(12).tolist()
    [3.0, 2.0, 1.0]
    >>> Schedule("exponential", 8.0, 2.0, tokens=2).at(np.array([0, 1, 2])).round(12).tolist()
    [8.0, 4.0, 2.0]
    >>> Schedule("inverse-sqrt", 6.0, 1.5, tokens=1).at(np.array([0, 3, 8, 99])).tolist()
    [6.0, 3.0, 2.0, 1.5]
    """  # noqa: D400 - the sentence ends with the list

    kind: str
    start: float
    end: float = 0.0
    tokens: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise InvalidParamError(
                f"{self.kind!r} is not a schedule", key="kind", hint=f"Choose one of: {', '.join(KINDS)}."
            )
        for key in ("start", "end"):
            object.__setattr__(self, key, _number(getattr(self, key), key))
        if not is_whole(self.tokens) or not is_number(self.tokens):
            raise InvalidParamError(f"tokens is {self.tokens!r}, not a whole number", key="tokens")
        if self.kind != "constant" and self.tokens == 0:
            raise InvalidParamError(
                f"a schedule of kind {self.kind!r} needs a length", key="tokens", hint="Give 1 or more."
            )
        if self.kind == "exponential" and min(self.start, self.end) <= 0:
            raise InvalidParamError("an exponential schedule joins two positive rates", key="end")
        if self.kind == "inverse-sqrt" and self.start < max(self.end, 0.0):
            raise InvalidParamError(
                "an inverse-sqrt schedule falls from start, so end is not above it", key="end"
            )

    def at(self, t: Array) -> Array:
        """Return the rate at token numbers t (any shape), float64; before token 0 it is ``start``."""
        xp = namespace(t)
        if self.kind == "constant":
            return xp.full(t.shape, self.start, dtype="float64")
        way = xp.maximum(t, 0) / float(self.tokens)
        if self.kind == "inverse-sqrt":
            return xp.maximum(self.start / xp.sqrt(1.0 + way), self.end)
        way = xp.minimum(way, 1.0)
        if self.kind == "exponential":
            # Powers of each rate, not of their ratio, which the smallest and largest floats do not have.
            return self.start ** (1.0 - way) * self.end**way
        if self.kind == "cosine":
            way = 0.5 - 0.5 * xp.cos(math.pi * way)
        return self.start * (1.0 - way) + self.end * way


Rate = float | Schedule  #: what a configuration accepts for alpha, theta and eta


def rate_at(rate: Rate, t: Array, dtype: Any = "float64") -> Array:
    """Return the rate at token numbers t (any shape), as an array of that shape and of the dtype.

    >>> import numpy as np
    >>> rate_at(0.5, np.array([[0, 1]])).tolist()
    [[0.5, 0.5]]
    """
    if isinstance(rate, Schedule):
        return rate.at(t).astype(dtype, copy=False)
    return namespace(t).full(t.shape, rate, dtype=dtype)


def to_json(rate: Rate) -> float | dict[str, Any]:
    """Return a number as it is, a schedule as an object of its fields."""
    return asdict(rate) if isinstance(rate, Schedule) else float(rate)


def from_json(value: object, key: str = "rate") -> Rate:
    """Read what ``to_json`` wrote; ``key`` is the setting's name in messages.

    Raises
    ------
    InvalidParamError
        For anything that is neither a finite number nor an object with a schedule's fields.
    """
    if not isinstance(value, dict):
        return _number(value, key)
    known = {field.name for field in fields(Schedule)}
    unknown, missing = sorted(map(str, value.keys() - known)), sorted({"kind", "start"} - value.keys())
    if unknown or missing:
        what = f"does not know {unknown[0]!r}" if unknown else f"lacks {missing[0]!r}"
        raise InvalidParamError(
            f"a schedule {what}", key=key, hint="Its fields are kind, start, end and tokens."
        )
    return Schedule(**value)


def _number(value: object, key: str) -> float:
    """Return a finite Python float; a NumPy scalar would turn float32 arrays into float64."""
    if not is_number(value):
        raise InvalidParamError(f"{key} is {value!r}, not a finite number", key=key)
    return float(value)
