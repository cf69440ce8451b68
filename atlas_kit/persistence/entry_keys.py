"""The keys under which a saved memory lies in a ``.atlas`` file. Any file is asked for them."""

from __future__ import annotations

from collections.abc import Iterable

#: The entry that describes a memory that learned; ``snapshot`` reads it, and is loaded for such files only.
DESCRIPTION = "atlas_memory"
#: The entry that holds the engine's own bytes of a session's context; ``session_file`` reads it.
CONTEXT = "runtime/context"
#: The entry that holds the texts that a session has read, as tokens; ``session_file`` reads it.
TEXTS = "runtime/texts"
#: The entry that describes the episodes, what was read and said; ``episode_entries`` reads it and their arrays.
EPISODES = "episodes"


def may_hold_episodes(keys: Iterable[str]) -> bool:
    """Tell whether there may be episodes in a file of these keys, or what is left of them without a description."""
    return any(key == EPISODES or key.startswith(f"{EPISODES}.") for key in keys)
