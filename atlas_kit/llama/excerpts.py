"""The part of a segment that a question is about: whole sentences and lines.

Knows no model but by the likeness of tokens: what it gives is short, because reading is what costs time.
"""

from __future__ import annotations

import numpy as np

from atlas_kit.episodes import Episodes, Segment
from atlas_kit.episodes.words import words
from atlas_kit.llama.likeness import Question

_ENDS = (".", "!", "?", "。", "！", "？", "।")


def excerpt(
    episodes: Episodes, segment: Segment, question: Question, said: frozenset[str], most: int
) -> tuple[int, int]:
    """Return the absolute positions of the sentences of a segment that are most like a question.

    Parameters
    ----------
    said
        The question's words, for a vocabulary whose tokens say nothing alone.
    most
        Tokens at most, together. A sentence that is longer is cut.
    """
    spans = _sentences(episodes, segment, most)
    nearest = [question.nearest(episodes.tokens(start, stop)) for start, stop in spans]
    held = [said.intersection(words(episodes.text(start, stop))) for start, stop in spans]
    best, found = (-1.0, 0, 0), (0, 0)
    for first in range(len(spans)):
        together, common = np.ones(len(question.tails), np.float32), frozenset[str]()
        for last in range(first, len(spans)):
            count = spans[last][1] - spans[first][0]
            if count > most:
                break
            together, common = np.minimum(together, nearest[last]), common | held[last]
            # of those that are as like, the longest: what is asked for stands near what is asked with
            rank = (question.score(together, segment.stop - segment.start), len(common), count)
            if rank > best:
                best, found = rank, (first, last)
    return spans[found[0]][0], spans[found[1]][1]


def _sentences(episodes: Episodes, segment: Segment, most: int) -> list[tuple[int, int]]:
    """Return the spans of a segment's sentences and lines; longer ones are cut."""
    spans, start = [], segment.start
    tokens = episodes.tokens(segment.start, segment.stop)
    texts = [episodes.text(at, at + 1) for at in range(segment.start, segment.stop)]
    half = max(1, most // 2)
    for at in range(segment.start, segment.stop):
        behind = at + 1
        text = texts[at - segment.start]
        after = texts[behind - segment.start] if behind < segment.stop else " "
        ended = text.endswith("\n") or (
            text.rstrip().endswith(_ENDS) and (after[:1].isspace() or not text.isascii())
        )
        if ended or behind - start >= half or behind == segment.start + len(tokens):
            spans.append((start, behind))
            start = behind
    return spans
