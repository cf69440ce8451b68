"""What a request says: which turns and documents are kept in the memory's episodes, and what of it is the question.

An API gives the texts and where the chat template put them (``Said``); here they are found among the tokens that the
model reads. Knows no HTTP.
"""

from __future__ import annotations

import bisect
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from atlas_kit.episodes import Kind

if TYPE_CHECKING:
    from atlas_kit.llama.chat import Place, Placed
    from atlas_kit.llama.engine import Engine
    from atlas_kit.llama.steps import Token

_KINDS = {"user": Kind.USER, "assistant": Kind.ASSISTANT, "tool": Kind.TOOL}
#: Tokens of a text without turns that is still taken for something that a person says.
MOST_SAID = 256
#: Takes the thoughts out of an answer: its text without them, or None where it has none.
Spoken: TypeAlias = "Callable[[Sequence[Token]], str | None]"


class Turn(NamedTuple):
    """A text, whose it is, and where it stands; None: nobody knows."""

    kind: Kind
    text: str
    place: Place | None = None


class Span(NamedTuple):
    """Where a turn stands among tokens, and its number."""

    kind: Kind
    start: int
    stop: int
    turn: int = 0


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
        Returns what the model is told at the beginning and so many turns at the end, as tokens and what is said in
        them.
    spoken
        Takes the thoughts out of the answer; None: there are none.
    """

    turns: tuple[Turn, ...] = ()
    source: str = ""
    alone: Callable[[int], tuple[Sequence[int], Said]] = lambda count: ((), Said())
    spoken: Spoken | None = None

    @property
    def asks(self) -> bool:
        """Whether it ends with something that a user wants to know."""
        return bool(self.turns) and self.turns[-1].kind == Kind.USER

    def spans(self, engine: Engine, tokens: Sequence[int]) -> list[Span]:
        """Return which tokens are whose, in order; turns of which no token is among them are left out."""
        if not self.turns:
            kind = Kind.DOCUMENT if self.source or len(tokens) > MOST_SAID else Kind.USER
            return [Span(kind, 0, len(tokens))] if tokens else []
        found: list[Span] = []
        plain: tuple[tuple[int, int], bytes, list[int]] | None = None
        for number, (kind, text, place) in enumerate(self.turns):
            if place is None or not text:
                continue
            if plain is None or plain[0] != place[:2]:
                plain = place[:2], *_joined(engine, tokens[place.first : place.last])
            _, whole, starts = plain
            first, behind = max(0, len(whole) - place.before), max(0, len(whole) - place.behind)
            wanted = text.encode("utf-8", "replace")
            at = whole.rfind(
                wanted, first, behind
            )  # a template may put something in front of it, or take space away
            if at >= 0:
                first, behind = at, at + len(wanted)
            start, stop = (place.first + bisect.bisect_left(starts, one) for one in (first, behind))
            if start < stop:
                found.append(Span(kind, start, stop, number))
        return found


def _joined(engine: Engine, tokens: Sequence[int]) -> tuple[bytes, list[int]]:
    """Return the text of tokens, and where in it each begins."""
    pieces = [engine.piece(token, special=True) for token in tokens]
    return b"".join(pieces), list(itertools.accumulate(map(len, pieces), initial=0))[:-1]


def said_in(
    messages: Sequence[Mapping[str, Any]],
    placed: Placed,
    read: Callable[[list[Any]], Placed],
    *,
    thoughts: tuple[str, str] | None = None,
    spoken: Spoken | None = None,
) -> Said:
    """Return what is said in messages whose contents are texts; what a system is told is not talk, nor are thoughts.

    Parameters
    ----------
    placed
        The tokens of the messages, and where each stands.
    read
        Makes that of other messages.
    thoughts
        What stands around thoughts.
    """
    numbers = [number for number, one in enumerate(messages) if one.get("role") in _KINDS]
    turns = []
    for number in numbers:
        kind, text = _KINDS[messages[number]["role"]], messages[number]["content"]
        if thoughts is not None and kind == Kind.ASSISTANT:
            text = text.rpartition(thoughts[1])[2]
            text = "" if text.lstrip().startswith(thoughts[0]) else text
        turns.append(Turn(kind, text.strip(), placed.places.get(number)))

    def alone(count: int) -> tuple[Sequence[int], Said]:
        first = numbers[-count]
        some = [one for one in messages[:first] if one.get("role") == "system"] + list(messages[first:])
        found = read(some)
        return found.tokens, said_in(some, found, read, thoughts=thoughts)

    return Said(tuple(turns), alone=alone, spoken=spoken)
