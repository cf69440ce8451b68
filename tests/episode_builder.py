"""A vocabulary for tests: every byte is a token, and two more are control tokens."""

from __future__ import annotations

from typing import Any

from atlas_kit.episodes import EpisodeArrays, Episodes, Kind
from atlas_kit.episodes.arrays import DTYPES

BYTES = 256
N_VOCAB = BYTES + 2
CONTROL = BYTES + 1


def piece(token: int) -> bytes:
    return bytes([token]) if token < BYTES else b""


def store(limit: int = 100_000) -> Episodes:
    return Episodes(piece, N_VOCAB, limit=limit)


def loaded(arrays: EpisodeArrays, limit: int = 100_000) -> Episodes:
    return Episodes.from_arrays(arrays, piece, N_VOCAB, limit=limit)


def say(episodes: Episodes, text: str, kind: Kind = Kind.USER, source: str = "", time_ms: int = 1000) -> None:
    episodes.begin(kind, source, time_ms)
    episodes.append(text.encode())


def found(episodes: Episodes, question: str, count: int = 1, **options: Any) -> list[str]:
    """Return the texts of what is found."""
    return [
        episodes.text(f.segment.start, f.segment.stop) for f in episodes.search(question, count, **options)
    ]


def as_lists(arrays: EpisodeArrays) -> dict[str, Any]:
    """Return all that a value holds, to be compared."""
    lists = {name: getattr(arrays, name).tolist() for name in DTYPES}
    return {**lists, "sources": arrays.sources, "end": arrays.end, "dropped": arrays.dropped}
