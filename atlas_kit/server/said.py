"""What a request says: which turns and documents are kept in the memory's episodes, and what of it is the question.

An API gives the texts (``Said``); here they are found again among the tokens that the model reads. Knows no HTTP.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.episodes import Kind

if TYPE_CHECKING:
    from atlas_kit.llama.engine import Engine

_KINDS = {"user": Kind.USER, "assistant": Kind.ASSISTANT, "tool": Kind.TOOL}
#: Tokens of a text without turns that is still taken for something that a person says.
MOST_SAID = 256


class Turn(NamedTuple):
    """A text and whose it is."""

    kind: Kind
    text: str


class Span(NamedTuple):
    """Where a turn stands among tokens."""

    kind: Kind
    start: int
    stop: int


@dataclass(frozen=True)
class Said:
    """What a request says.

    Attributes
    ----------
    turns
        Its texts, in order; none: it is one text, without anything around it.
    source
        What that text is called, where it is a document's.
    alone
        Returns the tokens of what the model is told at the beginning and of so many turns at the end.
    """

    turns: tuple[Turn, ...] = ()
    source: str = ""
    alone: Callable[[int], Sequence[int]] = lambda count: ()

    @property
    def asks(self) -> bool:
        """Whether it ends with something that a user wants to know."""
        return bool(self.turns) and self.turns[-1].kind == Kind.USER

    def spans(self, engine: Engine, tokens: Sequence[int]) -> list[Span]:
        """Return which tokens are whose, in order; turns of which no token is among them are left out."""
        if not self.turns:
            kind = Kind.DOCUMENT if self.source or len(tokens) > MOST_SAID else Kind.USER
            return [Span(kind, 0, len(tokens))] if tokens else []
        pieces = [engine.piece(token, special=True) for token in tokens]
        starts, at = [], 0
        for piece in pieces:
            starts.append(at)
            at += len(piece)
        whole, found, end = b"".join(pieces), [], at
        for turn in reversed(self.turns):
            text = turn.text.encode("utf-8", "replace")
            place = whole.rfind(text, 0, end) if text else -1
            if place < 0:
                if text:
                    break
                continue
            span = _inside(starts, place, place + len(text), at)
            if span is not None:
                found.append(Span(turn.kind, *span))
            end = place
        return found[::-1]


def _inside(starts: Sequence[int], first: int, behind: int, end: int) -> tuple[int, int] | None:
    """Return the tokens between two places in bytes: those that begin within."""
    import bisect

    start, stop = bisect.bisect_left(starts, first), bisect.bisect_left(starts, min(behind, end))
    return (start, stop) if start < stop else None


def said_in(
    messages: Sequence[Mapping[str, Any]], tokens: Callable[[list[Any]], Sequence[int]] | None = None
) -> Said:
    """Return what is said in messages whose contents are texts; what a system is told is not talk.

    ``tokens`` makes tokens of messages.
    """
    turns = [
        Turn(_KINDS[one["role"]], one["content"].strip()) for one in messages if one.get("role") in _KINDS
    ]

    def alone(count: int) -> Sequence[int]:
        told = [one for one in messages[:-count] if one.get("role") == "system"]
        return () if tokens is None else tokens([*told, *messages[-count:]])

    return Said(tuple(turns), alone=alone)
