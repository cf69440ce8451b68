"""Answers and conversations of the Responses API as a file has them."""

from __future__ import annotations

from typing import Any, NamedTuple


class Record(NamedTuple):
    """An answer as it is kept; ``before`` is the number of the one that it goes on from."""

    number: int
    id: str | None
    before: int | None
    session: str | None
    remembers: bool | None
    response: dict[str, Any]
    items: list[dict[str, Any]]
    messages: list[dict[str, Any]]


class Noted(NamedTuple):
    """A conversation as it is kept: the answers that lead to its end, the first of them first."""

    line: list[Record]
    metadata: dict[str, Any]
    created: float
