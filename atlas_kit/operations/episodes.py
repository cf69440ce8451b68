"""The episodes in memory files as commands see them: counted, compared, joined, put together again, read as text.

Two files' parts are never mixed: episodes are one thing, whatever entries they lie in.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from atlas_kit.errors import AtlasError
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.tables import is_part_key

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.findings import Finding
    from atlas_kit.storage.given import Progress

#: Blocks of fewer tokens on average are no text that was cut up: they make the search slow.
SMALL_BLOCKS = 8
#: Fewer blocks than this do no harm, however small.
FEW_BLOCKS = 1000


def is_of_episodes(key: str) -> bool:
    """Tell whether an entry of this key belongs to episodes."""
    return key == EPISODES or is_part_key(key)


def readable(memory: MemoryFile) -> dict[str, Any] | None:
    """Return how much of what was read and said a file holds as text, if it holds any."""
    from atlas_kit.persistence.episode_entries import find_counts

    try:
        counts = find_counts(memory)
    except AtlasError as error:
        return {"summary": f"what was read cannot be read: {error.message}"}
    return None if counts is None else counts.to_json()


def check_episodes(memory: MemoryFile) -> list[Finding]:
    """Return what is wrong with the episodes in a file."""
    from atlas_kit.formats.findings import Finding
    from atlas_kit.persistence.episode_entries import read_episodes

    try:
        arrays = read_episodes(memory)
    except AtlasError as error:
        key = error.key or EPISODES
        return [Finding("episodes", "error", error.message, error.hint or "", None, key, error.remedy)]
    if arrays is None:
        return []
    blocks = len(arrays.block_start)
    if blocks < FEW_BLOCKS or len(arrays) >= SMALL_BLOCKS * blocks:
        return []
    return [
        Finding(
            "small-blocks",
            "warning",
            f"the {len(arrays):,} tokens of the episodes are cut into {blocks:,} blocks",
            "Searching in so many takes long; no text is cut so small.",
            key=EPISODES,
        )
    ]


# --- single episodes -----------------------------------------------------------------------------------


class One(NamedTuple):
    """One document or turn: what it is, from where and when, and its tokens as bytes."""

    kind: int
    source: str
    time_ms: int
    line: int
    data: bytes

    @property
    def tokens(self) -> int:
        """Number of tokens."""
        return len(self.data) // 4


def each(arrays: EpisodeArrays | None) -> Iterator[One]:
    """Yield the episodes of a file, in order."""
    if arrays is None:
        return
    bounds = [*arrays.episode_start.tolist(), len(arrays)]
    rows = zip(
        arrays.kind.tolist(),
        arrays.source.tolist(),
        arrays.time_ms.tolist(),
        arrays.line.tolist(),
        strict=True,
    )
    for number, (kind, source, time_ms, line) in enumerate(rows):
        data = arrays.tokens[bounds[number] : bounds[number + 1]].astype("<u4").tobytes()
        yield One(kind, arrays.sources[source], time_ms, line, data)


def counted_changes(
    first: EpisodeArrays | None, second: EpisodeArrays | None
) -> list[tuple[str, int | None, int | None]]:
    """Return how many documents and turns went and came, as (name, before, after); one that grew came and went not."""
    gone, come = Counter(each(first)), Counter(each(second))
    gone, come = gone - come, come - gone
    grown = 0
    by_head: dict[tuple[Any, ...], list[One]] = {}
    for one in come:
        by_head.setdefault(one[:4], []).append(one)
    for one in list(gone):
        longer = next((o for o in by_head.get(one[:4], ()) if come[o] and o.data.startswith(one.data)), None)
        if longer is not None:
            gone[one] -= 1
            come[longer] -= 1
            grown += 1
    rows: list[tuple[str, int | None, int | None]] = []
    tokens = (0 if first is None else len(first), 0 if second is None else len(second))
    if tokens[0] != tokens[1]:
        rows.append(("tokens", *tokens))
    for name, turns in (("documents", False), ("turns", True)):
        came, went = (sum(n for one, n in some.items() if (one.kind > 0) is turns) for some in (come, gone))
        rows += [(f"{name} added", None, came)] if came else []
        rows += [(f"{name} removed", went, None)] if went else []
    if grown:
        rows.append(("grown", None, grown))
    return rows


# --- joining and mending ----------------------------------------------------------------------------------


def joined(several: Sequence[EpisodeArrays]) -> EpisodeArrays:
    """Return the episodes of several files as one, by time; what several of them have is there once."""
    import numpy as np

    from atlas_kit.episodes import EpisodeArrays

    rows: dict[str, list[Any]] = {
        name: [] for name in ("block_start", "episode_start", "kind", "source", "time_ms", "line")
    }
    tokens: list[Any] = []
    sources: dict[str, int] = {}
    found = [(one, arrays, n) for arrays in several for n, one in enumerate(each(arrays))]
    seen: set[One] = set()
    at = 0
    for one, arrays, number in sorted(found, key=lambda item: item[0].time_ms):
        if one in seen:
            continue
        seen.add(one)
        begin = int(arrays.episode_start[number])
        blocks = arrays.block_start[
            np.searchsorted(arrays.block_start, begin) : np.searchsorted(
                arrays.block_start, begin + one.tokens
            )
        ]
        rows["block_start"] += [int(block) - begin + at for block in blocks]
        rows["episode_start"].append(at)
        rows["kind"].append(one.kind)
        rows["source"].append(sources.setdefault(one.source, len(sources)))
        rows["time_ms"].append(one.time_ms)
        rows["line"].append(one.line)
        tokens.append(np.frombuffer(one.data, "<u4"))
        at += one.tokens
    dropped = sum(arrays.dropped for arrays in several)
    kinds = {"kind": np.uint8, "time_ms": np.int64}
    made = {name: np.asarray(values, kinds.get(name, np.uint32)) for name, values in rows.items()}
    return EpisodeArrays(
        tokens=np.concatenate([np.zeros(0, np.uint32), *tokens]).astype(np.uint32),
        position=made["episode_start"].astype(np.int64) + dropped,
        sources=tuple(sources),
        end=at + dropped,
        dropped=dropped,
        **made,
    )


def mend_episodes(memory: MemoryFile) -> str | None:
    """Put together again what is left of the episodes in an opened file, where parts are lost; say so in a sentence."""
    from atlas_kit.persistence.episode_entries import counts_of, put_episodes
    from atlas_kit.persistence.episode_salvage import holds_episodes, salvaged_episodes

    if not holds_episodes(memory):
        return None
    arrays = salvaged_episodes(memory)
    if arrays is None:
        return None
    put_episodes(memory, arrays)
    if not len(arrays):
        return "nothing of what was read and said could be saved"
    return f"of what was read and said, {counts_of(arrays).amount} could be saved"


# --- as text --------------------------------------------------------------------------------------------


class Text(NamedTuple):
    """One document or turn as text."""

    kind: str
    source: str
    time_ms: int
    line: int
    tokens: int
    text: str

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return self._asdict()


def texts_of(arrays: EpisodeArrays, words: Any, progress: Progress | None = None) -> Iterator[Text]:
    """Yield what was read and said as text; ``words`` are those of the model (``operations.token_words.Words``)."""
    import numpy as np

    from atlas_kit.episodes import Kind

    arrays.check(len(words))
    for number, one in enumerate(each(arrays)):
        data = b"".join(map(words.piece, np.frombuffer(one.data, "<u4").tolist()))
        yield Text(
            Kind(one.kind).name.lower(),
            one.source,
            one.time_ms,
            one.line,
            one.tokens,
            data.decode("utf-8", "replace"),
        )
        if progress:
            progress("reading", number + 1, len(arrays.kind))
