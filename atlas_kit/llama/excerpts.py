"""The part of a segment that a question is about: whole sentences and lines.

Knows no model but by the likeness of tokens: what it gives is short, because reading is what costs time.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from atlas_kit.episodes import Episodes, Segment
from atlas_kit.episodes.words import words
from atlas_kit.llama.likeness import Question

#: What the tails of an answer's tokens are raised to: what is like a question there counts less.
ANSWER_POWER = 0.5
_ENDS = (".", "!", "?", "。", "！", "？", "।")


class Window(NamedTuple):
    """A few sentences of a segment: how like a question they are, common words, tokens, absolute positions."""

    score: float
    common: int
    size: int
    start: int
    stop: int


def windows(
    episodes: Episodes, segment: Segment, question: Question, said: frozenset[str], most: int,
    answer: Sequence[int] = (),
) -> list[Window]:  # fmt: skip
    """Return all runs of whole sentences of a segment that are not too long, each with how like a question it is.

    Parameters
    ----------
    said
        The question's words, for a vocabulary whose tokens say nothing alone.
    most
        Tokens at most, together. A sentence that is longer is cut.
    answer
        Tokens of what was answered to it: what is like the question there counts, too.
    """
    spans = _sentences(episodes, segment, most)
    answered = question.nearest(answer) ** np.float32(ANSWER_POWER)
    nearest = [question.nearest(episodes.tokens(start, stop)) for start, stop in spans]
    held = [said.intersection(words(episodes.text(start, stop))) for start, stop in spans]
    found = []
    for first in range(len(spans)):
        together, common = answered, frozenset[str]()
        for last in range(first, len(spans)):
            count = spans[last][1] - spans[first][0]
            if count > most:
                break
            together, common = np.minimum(together, nearest[last]), common | held[last]
            score = question.score(together, segment.stop - segment.start + len(answer))
            found.append(Window(score, len(common), count, spans[first][0], spans[last][1]))
    return found


def grown(episodes: Episodes, segment: Segment, start: int, stop: int, most: int) -> tuple[int, int]:
    """Return a run of sentences with those of its segment around it: as many as there is room for.

    What is asked for stands as often behind what is asked with as before it, so both sides grow in turn.
    """
    spans = _sentences(episodes, segment, most)
    before = [first for first, _ in spans if first < start]
    behind = [last for _, last in spans if last > stop]
    while before or behind:
        if behind and behind[0] - start > most:
            behind = []
        if before and stop - before[-1] > most:
            before = []
        if behind:
            stop = behind.pop(0)
        if before and stop - before[-1] <= most:
            start = before.pop()
    return start, stop


def _sentences(episodes: Episodes, segment: Segment, most: int) -> list[tuple[int, int]]:
    """Return the spans of a segment's sentences and lines; longer ones are cut."""
    spans, start = [], segment.start
    texts = episodes.texts(segment.start, segment.stop)
    end = segment.start + len(texts)
    longest = max(1, most)
    for at in range(segment.start, end):
        behind = at + 1
        text = texts[at - segment.start]
        after = texts[behind - segment.start] if behind < end else " "
        ended = text.endswith("\n") or (
            text.rstrip().endswith(_ENDS) and (after[:1].isspace() or not text.isascii())
        )
        if ended or behind - start >= longest or behind == end:
            spans.append((start, behind))
            start = behind
    return spans
