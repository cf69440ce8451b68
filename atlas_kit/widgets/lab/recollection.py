"""A question, its answer and the pieces of what was read that it was given: as data, as lines and as HTML.

It is made of an answer of this process, or of what a server tells of one of its own. Knows no widgets: the live view
and what stands where nothing runs say the same, because it is said here.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import AtlasError
from atlas_kit.widgets.base import CODE

if TYPE_CHECKING:
    from atlas_kit.llama.asking import Answer
    from atlas_kit.llama.recalling import Piece, Recall

#: Lines of a piece that a terminal shows.
MOST_LINES = 8


@dataclass(frozen=True)
class Recollection:
    """What came of a question.

    Attributes
    ----------
    answer
        With the pieces that it was given, and what else was judged.
    recall
        How the memory was asked.
    stored
        Tokens that could be found again then.
    read_at
        For the ``start`` of each piece that was read in the run that is shown, the number of its token there.
    """

    answer: Answer
    recall: Recall
    stored: int
    read_at: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of_server(cls, told: Any) -> Recollection:
        """Return what a server says of an answer (``atlas.recalled`` of its trace).

        Raises
        ------
        ValueError
            That is not what a server says.
        """
        from atlas_kit.llama.asking import Answer
        from atlas_kit.llama.recalling import Recall, Recalled

        try:
            recall, seconds = told["recall"], float(told["seconds"])
            chosen = Recall(mode=recall["mode"], gate=float(recall["gate"]))
            recalled = Recalled(
                tuple(map(_piece, told["recalled"])), tuple(map(_piece, told["candidates"])),
                _number(recall["gain"]), _text(recall["reason"]),
            )  # fmt: skip
            answer = Answer(
                _text(told["question"]), _text(told["answer"]), recalled, (), str(told["finish_reason"]),
                seconds, seconds,
            )  # fmt: skip
            stored = told["stored_tokens"]
            return cls(answer, chosen, -1 if stored is None else int(stored))
        except (AtlasError, LookupError, TypeError, ValueError, OverflowError, OSError) as error:
            raise ValueError("this is not what a server recalled") from error

    @property
    def gate(self) -> float | None:
        """Nats per token that a piece had to gain; None where that was not asked."""
        return self.recall.gate if self.recall.mode == "auto" else None

    @property
    def others(self) -> list[Piece]:
        """What was judged and not taken, the likeliest first."""
        return [piece for piece in self.answer.recalled.candidates if piece not in self.answer.pieces]

    @property
    def rest(self) -> str:
        """What to call them, and how many they are; empty where there are none."""
        count = len(self.others)
        if not count:
            return ""
        return f"{count} {'other ' if self.answer.pieces else ''}candidate{'s' if count > 1 else ''}"

    @property
    def why(self) -> str:
        """Why nothing was recalled, as a sentence; empty where something was."""
        recalled = self.answer.recalled
        if recalled.pieces:
            return ""
        if self.recall.mode == "off":
            return "Nothing was recalled: recall is off."
        if not self.stored:
            return "Nothing was recalled: nothing has been stored yet."
        if recalled.gain is None or self.gate is None:
            return f"Nothing was recalled: {recalled.reason}."
        return (
            f"Nothing was recalled: the best piece gains {recalled.gain:+.2f} nats per token, "
            f"and the gate asks for {self.gate:+.2f}."
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data for the page."""
        return {
            "question": self.answer.question,
            "text": self.answer.text,
            "done": True,
            "why": self.why,
            "gate": self.gate,
            "seconds": round(self.answer.seconds, 2),
            "pieces": [self._data(piece) for piece in self.answer.pieces],
            "rest": self.rest,
            "others": [self._data(piece) for piece in self.others],
        }

    def _data(self, piece: Piece) -> dict[str, Any]:
        found = {"text": piece.text, "place": piece.place, "gain": piece.gain, "score": round(piece.score, 2)}
        return {**found, "at": self.read_at.get(piece.start)}

    def lines(self) -> list[str]:
        """Return it as plain lines."""
        found = [f"asked: {self.answer.question}", *_indented(self.answer.text or "(it said nothing)")]
        if self.why:
            found.append(self.why)
        for piece in self.answer.pieces:
            found.append(f"recalled from {piece.place}{_gain(piece)}:")
            found += _indented(piece.text, MOST_LINES)
        if self.rest:
            found.append(f"{self.rest} read and not taken")
        return found

    def html(self) -> str:
        """Return it as a piece of HTML that loads nothing and runs nothing; other candidates are folded."""
        parts = [
            '<section style="margin:.8em 0 0"><h4 style="margin:0 0 .3em">What it recalled</h4>',
            f'<p style="margin:0;font-weight:600">{html.escape(self.answer.question)}</p>',
            f'<p style="margin:0 0 .4em;white-space:pre-wrap">{html.escape(self.answer.text)}</p>',
        ]
        if self.why:
            parts.append(f"<p>{html.escape(self.why)}</p>")
        parts += map(_block, self.answer.pieces)
        if self.others:
            parts.append(
                f"<details><summary>{self.rest}</summary>{''.join(map(_block, self.others))}</details>"
            )
        return "".join([*parts, "</section>"])


def _piece(told: Any) -> Piece:
    """Return a piece as a server tells it."""
    from atlas_kit.llama.recalling import Piece

    whole = {name: int(told[name]) for name in ("time_ms", "start", "stop", "line")}
    text = {name: _text(told[name]) for name in ("text", "kind", "source")}
    piece = Piece(**text, **whole, score=_number(told["score"]) or 0.0, gain=_number(told["gain"]))  # type: ignore[arg-type]
    if not piece.place:  # which no time gives that there is not
        raise ValueError("this is no place")
    return piece


def _text(told: Any) -> str:
    if not isinstance(told, str):
        raise TypeError("this is no text")
    return told


def _number(told: Any) -> float | None:
    if told is not None and not math.isfinite(told):
        raise ValueError("this is no number")
    return None if told is None else float(told)


def _gain(piece: Piece) -> str:
    return "" if piece.gain is None else f", {piece.gain:+.2f} nats per token"


def _indented(text: str, most: int | None = None) -> list[str]:
    """Return the lines of a text behind four spaces, ``most`` at most."""
    lines = text.strip("\n").splitlines()
    shown = lines if most is None or len(lines) <= most else [*lines[: most - 1], "..."]
    return [f"    {line}".rstrip() for line in shown]


def _block(piece: Piece) -> str:
    return (
        f'<p style="margin:.3em 0 .1em">{html.escape(piece.place + _gain(piece))}</p>'
        f'<pre style="white-space:pre-wrap;overflow-wrap:anywhere;{CODE};margin:0;border:1px solid #8888;'
        f'padding:6px">{html.escape(piece.text)}</pre>'
    )
