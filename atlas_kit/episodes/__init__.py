"""What was read and said, to be found again by its words: documents and turns as token ids, in blocks.

Knows token ids, texts and times; no model, no file and no session. ``Episodes`` is the store, ``EpisodeArrays``
the value of it that is saved.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.episodes.arrays import TURNS, EpisodeArrays, Kind
    from atlas_kit.episodes.store import Episode, Episodes, Found, Segment

_HOMES = {
    "TURNS": "atlas_kit.episodes.arrays",
    "Episode": "atlas_kit.episodes.store",
    "EpisodeArrays": "atlas_kit.episodes.arrays",
    "Episodes": "atlas_kit.episodes.store",
    "Found": "atlas_kit.episodes.store",
    "Kind": "atlas_kit.episodes.arrays",
    "Segment": "atlas_kit.episodes.store",
}

__all__ = ["TURNS", "Episode", "EpisodeArrays", "Episodes", "Found", "Kind", "Segment"]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
