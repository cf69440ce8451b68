"""What is left of the episodes in a file of which parts are lost: the parts that are whole, put together again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from atlas_kit.codecs.json_text import loads
from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import AtlasError
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.episode_entries import read_episodes, read_part
from atlas_kit.persistence.tables import PART_ARRAYS, is_part_key

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.formats.atlas import MemoryFile


def holds_episodes(file: MemoryFile) -> bool:
    """Tell whether there is anything of episodes in a file."""
    return EPISODES in file or any(map(is_part_key, file))


def salvaged_episodes(file: MemoryFile) -> EpisodeArrays | None:
    """Return what is left of the episodes in an opened file; None where they are whole, or there are none.

    An episode that begins in a part that is lost goes with it; one that ends there is cut short.
    """
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.episodes.arrays import source_name

    try:
        read_episodes(file)
    except AtlasError:
        description = _description(file)
    else:
        return None
    numbers = sorted({int(key.split(".")[1]) for key in file if is_part_key(key)})
    sources: dict[str, int] = {}
    found: dict[str, list[Array]] = {row.name: [np.zeros(0, row.type)] for row in PART_ARRAYS}
    before, last, stop = 0, -2, 0
    for number in numbers:
        try:
            part = _whole(read_part(file, number), joins=last == number - 1)
        except AtlasError:
            continue
        if part is None or len({len(part[row.name]) for row in PART_ARRAYS[2:]}) > 1:
            continue
        names = [source_name(name) for name in description["sources"]]
        part["source"] = np.asarray(
            [
                sources.setdefault(names[one] if one < len(names) else "", len(sources))
                for one in part["source"].tolist()
            ],
            np.uint32,
        )
        pieces = {**part}
        for name in ("block_start", "episode_start"):
            pieces[name] = part[name] + np.uint32(before)
        trial = _together(found, pieces, sources, stop)
        try:
            arrays = EpisodeArrays(**trial)
            arrays.check()
        except AtlasError:
            continue
        for name, array in pieces.items():
            found[name].append(array)
        before, last, stop = before + len(part["tokens"]), number, arrays.end
    if not before:
        return EpisodeArrays.empty()
    return EpisodeArrays(**_together(found, {}, sources, max(stop, description["end"])))


def _together(
    found: dict[str, list[Array]], more: dict[str, Array], sources: dict[str, int], end: int
) -> dict[str, Any]:
    """Return what ``EpisodeArrays`` is made of, with positions that end where the last token does."""
    rows = {
        name: np.concatenate([*pieces, *([more[name]] if more else [])]) for name, pieces in found.items()
    }
    starts, places = rows["episode_start"], rows["position"]
    if len(starts):
        end = max(end, int(places[-1]) + len(rows["tokens"]) - int(starts[-1]))
    used, source = np.unique(rows["source"], return_inverse=True)
    names = list(sources)
    rows["source"] = source.astype(np.uint32)
    return {**rows, "sources": tuple(names[number] for number in used), "end": end}


def _whole(part: dict[str, Array], *, joins: bool) -> dict[str, Array] | None:
    """Return a part without what belongs to an episode that began in another, unless that is there."""
    if joins or (len(part["episode_start"]) and not part["episode_start"][0]):
        return part
    if not len(part["episode_start"]):
        return None
    cut = part["episode_start"][0]
    return {
        **part,
        "tokens": part["tokens"][cut:],
        "block_start": part["block_start"][part["block_start"] >= cut] - cut,
        "episode_start": part["episode_start"] - cut,
    }


def _description(file: MemoryFile) -> dict[str, Any]:
    """Return the names and the end that the description names, as far as they can be believed."""
    document: Any = None
    try:
        entry = file.get(EPISODES)
        document = None if entry is None else loads(entry.data)
    except AtlasError:
        pass
    document = document if isinstance(document, dict) else {}
    sources, end = document.get("sources"), document.get("end")
    names = sources if isinstance(sources, list) and all(isinstance(name, str) for name in sources) else []
    return {"sources": names, "end": end if type(end) is int and 0 <= end < 1 << 62 else 0}
