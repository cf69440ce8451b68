"""What was read and said, to be found again by its words: documents and turns as token ids, in blocks.

Knows token ids, texts and times; no model, no file and no session. ``Episodes`` is the store, ``EpisodeArrays``
the value of it that is saved.
"""

from __future__ import annotations

from atlas_kit.episodes.arrays import TURNS, EpisodeArrays, Kind
from atlas_kit.episodes.store import Episode, Episodes, Found, Segment

__all__ = ["TURNS", "Episode", "EpisodeArrays", "Episodes", "Found", "Kind", "Segment"]
