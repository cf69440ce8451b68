"""The part of a segment that a question is about: whole sentences and lines around the question's rarer words.

Knows episodes and words, and no model: what it gives is short, because reading is what costs time.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from atlas_kit.episodes import Episodes, Segment
from atlas_kit.episodes.words import words

_ENDS = (".", "!", "?", "。", "！", "？", "।")


class Excerpt(NamedTuple):
    """A range of absolute token positions, and the words in it."""

    start: int
    stop: int
    words: frozenset[str]


def rarities(texts: Sequence[str], asked: Collection[str]) -> dict[str, float]:
    """Return how much each word of a question tells, by in how few of some texts it stands.

    >>> found = rarities(["the bridge", "the lake", "the road"], {"the", "lake"})
    >>> found["lake"] > 3 * found["the"]
    True
    """
    held = [set(words(text)) for text in texts]
    weights = {}
    for word in asked:
        count = sum(word in one for one in held)
        weights[word] = math.log(1 + (len(held) - count + 0.5) / (count + 0.5))
    return weights


def excerpt(episodes: Episodes, segment: Segment, weights: Mapping[str, float], most: int) -> Excerpt:
    """Return the sentences of a segment, ``most`` tokens together, that hold most of some words.

    Parameters
    ----------
    weights
        How much each word counts, once.
    most
        Tokens at most. A segment that is no longer is returned whole; a sentence that is longer is cut.
    """
    spans = _sentences(episodes, segment, most)
    held = [frozenset(words(episodes.text(start, stop))) for start, stop in spans]
    best, found = (-1.0, 0), (0, 0)
    for first in range(len(spans)):
        together: frozenset[str] = frozenset()
        for last in range(first, len(spans)):
            if spans[last][1] - spans[first][0] > most:
                break
            together |= held[last]
            # of those that hold the same, the longest: what is asked for stands near what is asked with
            rank = (sum(weights.get(word, 0.0) for word in together), spans[last][1] - spans[first][0])
            if rank > best:
                best, found = rank, (first, last)
    first, last = found
    inside = frozenset().union(*held[first : last + 1])
    return Excerpt(spans[first][0], spans[last][1], inside)


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
