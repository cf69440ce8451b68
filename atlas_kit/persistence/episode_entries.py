"""How episodes lie in a ``.atlas`` file: what was read and said, as tokens in parts.

A part holds the tokens between two multiples of ``PART_TOKENS`` positions, so that one that is full does not change
when more is read, and saving writes the last one. Knows no model and no session; follows
``formats/atlas-episodes.md``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from atlas_kit.codecs.json_text import loads
from atlas_kit.codecs.numbers import Array
from atlas_kit.errors import (
    AtlasError,
    DataTooLargeError,
    FileCorruptError,
    InvalidParamError,
    Remedy,
    VersionMismatchError,
)
from atlas_kit.formats.atlas.tables import DataType
from atlas_kit.persistence import tables
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.index_places import drop_indexes
from atlas_kit.persistence.tables import PART_ARRAYS, PART_TOKENS, is_part_key, part_key
from atlas_kit.storage.urls import is_url

if TYPE_CHECKING:
    from atlas_kit.episodes import EpisodeArrays
    from atlas_kit.formats.atlas import Entry, MemoryFile

#: The largest description that is written and read: names of files fill it.
MAX_DESCRIPTION = 1 << 24
#: More tokens are not read: a file of a few megabytes could claim any number.
MOST_TOKENS = 1 << 26


class EpisodeCounts(NamedTuple):
    """How much of what was read and said is in a file."""

    tokens: int
    documents: int
    turns: int

    @property
    def amount(self) -> str:
        """In words: ``1,234 tokens of 2 documents and 1 turn of talk``."""
        documents = f"{self.documents:,} document{'s' * (self.documents != 1)}"
        turns = f"{self.turns:,} turn{'s' * (self.turns != 1)} of talk"
        what = " and ".join(
            text for text, count in ((documents, self.documents), (turns, self.turns)) if count
        )
        return f"{self.tokens:,} token{'s' * (self.tokens != 1)} of {what}"

    @property
    def summary(self) -> str:
        """One line: ``1,234 tokens of 2 documents and 1 turn of talk can be read from this file``."""
        return f"{self.amount} can be read from this file"

    def to_json(self) -> dict[str, Any]:
        """Return it as JSON-ready data."""
        return {**self._asdict(), "summary": self.summary}


def counts_of(arrays: EpisodeArrays) -> EpisodeCounts:
    """Count what there is of episodes; a document that something was forgotten from is one still."""
    document = arrays.kind == 0
    same = np.zeros(len(document), bool)
    same[1:] = np.logical_and.reduce(
        [row[1:] == row[:-1] for row in (arrays.kind, arrays.source, arrays.time_ms)]
    )
    return EpisodeCounts(len(arrays), int((document & ~same).sum()), int((~document).sum()))


# --- writing -------------------------------------------------------------------------------------------


def put_episodes(
    file: MemoryFile, arrays: EpisodeArrays | None, *, codec: str | None = None, level: int | None = None
) -> bool:
    """Put episodes into an opened file, in place of those that it has; what is there already is left as it is.

    Where something goes of what could be read, the file's indexes go, too: they hold its words.

    Parameters
    ----------
    arrays
        None: there are none, and what the file has of them is removed.

    Returns
    -------
    Whether nothing that could be read from the file before is gone: then its changes may be appended to it.

    Raises
    ------
    InvalidParamError
        The episodes contradict themselves.
    """
    grown = had = EPISODES in file
    kept: set[str] = set()
    if arrays is not None and (len(arrays) or arrays.end):
        arrays.check()
        parts = []
        for number, part in _parts(arrays):
            parts.append(number)
            for name, array in part.items():
                if not len(array):
                    continue  # version 1 has no empty payloads
                key = part_key(number, name)
                kept.add(key)
                before = _held(file.get(key))
                if before is not None and _same(before, array):
                    if codec in (None, file[key].codec):
                        continue
                elif name == "tokens" and key in file:
                    grown = grown and before is not None and _begins(array, before)
                file.set(key, array, type=DataType.CONTEXT, codec=codec, level=level)
        description = {
            "format": tables.EPISODES_FORMAT,
            "version": tables.EPISODES_VERSION,
            "tokens": len(arrays),
            "parts": parts,
            "sources": list(arrays.sources),
            "end": arrays.end,
            "dropped": arrays.dropped,
        }
        kept.add(EPISODES)
        if len(json.dumps(description)) > MAX_DESCRIPTION:
            raise DataTooLargeError("the names of the episodes' sources are too large", key=EPISODES)
        file.set(EPISODES, description, type=DataType.METADATA)
    for key in list(file):
        if key not in kept and (is_part_key(key) or (key == EPISODES and _is_ours(file))):
            file.remove(key)
            grown = False
    if had and not grown and file.path is not None and not is_url(file.path):
        drop_indexes(file.path)
    return grown


def _parts(arrays: EpisodeArrays) -> Iterator[tuple[int, dict[str, Array]]]:
    """Yield the number and the arrays of each part."""
    if not len(arrays):
        return
    starts = arrays.episode_start.astype(np.int64)
    blocks = arrays.block_start.astype(np.int64)
    # no episode is cut by a hole, so its tokens stand where its first one does, and on
    lengths = np.diff(starts, append=len(arrays))
    first, last = arrays.position // PART_TOKENS, (arrays.position + lengths - 1) // PART_TOKENS
    numbers = sorted({n for a, b in zip(first.tolist(), last.tolist(), strict=True) for n in range(a, b + 1)})
    bounds = np.asarray([*numbers, numbers[-1] + 1], np.int64) * PART_TOKENS
    # the index of the first token at or behind a position: behind the episodes before it, and into the one it is in
    held = np.searchsorted(arrays.position, bounds, side="right") - 1
    at = np.where(held < 0, 0, starts[held] + np.minimum(bounds - arrays.position[held], lengths[held]))
    for number, begin, end in zip(numbers, at[:-1].tolist(), at[1:].tolist(), strict=True):
        e0, e1 = np.searchsorted(starts, (begin, end)).tolist()
        b0, b1 = np.searchsorted(blocks, (begin, end)).tolist()
        yield (
            number,
            {
                "tokens": arrays.tokens[begin:end],
                "block_start": (blocks[b0:b1] - begin).astype(np.uint32),
                "episode_start": (starts[e0:e1] - begin).astype(np.uint32),
                **{row.name: getattr(arrays, row.name)[e0:e1] for row in PART_ARRAYS[3:]},
            },
        )


def _held(entry: Entry | None) -> Array | None:
    """Return the array that an entry holds; None where it holds none that can be read."""
    if entry is None or entry.dtype is None:
        return None
    try:
        return entry.array(verify=True)
    except AtlasError:
        return None


def _same(one: Array, two: Array) -> bool:
    return one.dtype.name == two.dtype.name and np.array_equal(one, two)


def _begins(longer: Array, shorter: Array) -> bool:
    return (
        shorter.ndim == 1 and len(shorter) <= len(longer) and np.array_equal(longer[: len(shorter)], shorter)
    )


# --- reading -------------------------------------------------------------------------------------------


def _is_ours(file: MemoryFile) -> bool:
    """Tell whether the entry ``episodes`` is one of these, and not some other program's."""
    entry = file.get(EPISODES)
    if entry is None or entry.type != DataType.METADATA or entry.size > MAX_DESCRIPTION:
        return False
    try:
        document = loads(entry.data)
    except AtlasError:
        return False
    return isinstance(document, dict) and document.get("format") == tables.EPISODES_FORMAT


def read_episodes(file: MemoryFile) -> EpisodeArrays | None:
    """Read the episodes of an opened file; None where there are none.

    Raises
    ------
    FileCorruptError
        Something is missing, too much, or contradicts the rest; ``key`` names the entry.
    VersionMismatchError
        They were saved in a newer form.
    """
    from atlas_kit.episodes import EpisodeArrays

    description = _described(file)
    if description is None:
        return None
    known = {EPISODES}
    found: dict[str, list[Array]] = {row.name: [np.zeros(0, row.type)] for row in PART_ARRAYS}
    before = 0
    for number in description["parts"]:
        part = read_part(file, number)
        for name, array in part.items():
            known.add(part_key(number, name))
            shift = before if name.endswith("_start") else 0
            found[name].append(array + np.uint32(shift) if shift else array)
        before += len(part["tokens"])
        if before > description["tokens"]:
            break
    if before != description["tokens"]:
        raise _damaged(file, EPISODES, f"the parts do not hold the {description['tokens']:,} tokens it names")
    for key in file:
        if is_part_key(key) and key not in known:
            raise _damaged(file, key, "the episodes have no such part")
    arrays = EpisodeArrays(
        **{name: np.concatenate(pieces) for name, pieces in found.items()},
        sources=tuple(description["sources"]),
        end=description["end"],
        dropped=description["dropped"],
    )
    try:
        arrays.check()
    except InvalidParamError as error:
        raise _damaged(file, EPISODES, error.message) from error
    return arrays


def find_counts(file: MemoryFile) -> EpisodeCounts | None:
    """Count the episodes of an opened file; None where there are none.

    Raises
    ------
    FileCorruptError, VersionMismatchError
        There are some, and they cannot be read.
    """
    arrays = read_episodes(file)
    return None if arrays is None or not len(arrays) else counts_of(arrays)


def _described(file: MemoryFile) -> dict[str, Any] | None:
    entry = file.get(EPISODES)
    if entry is None:
        for key in file:
            if is_part_key(key):
                raise _damaged(file, EPISODES, "the description of the episodes is missing")
        return None
    if entry.type != DataType.METADATA:
        return None  # something of another program that chose the same key
    if entry.size > MAX_DESCRIPTION:
        raise _damaged(file, EPISODES, f"the description has {entry.size:,} bytes, which is too many")
    try:
        document = loads(entry.data, what="description of the episodes")
    except FileCorruptError as error:
        raise _damaged(file, EPISODES, error.message) from error
    if not isinstance(document, dict) or document.get("format") != tables.EPISODES_FORMAT:
        if any(map(is_part_key, file)):
            raise _damaged(file, EPISODES, "this is not the description of episodes")
        return None
    version = document.get("version")
    if isinstance(version, int) and version > tables.EPISODES_VERSION:
        raise VersionMismatchError(
            f"the episodes are of version {version}, and this library reads {tables.EPISODES_VERSION}",
            path=file.path, key=EPISODES, hint="A newer atlas_kit may read it.",
        )  # fmt: skip
    for row in tables.EPISODES_FIELDS:
        value = document.get(row.name, ...)
        if not isinstance(value, tables.JSON_TYPES[row.type]) or isinstance(value, bool):
            what = "is missing" if value is ... else f"is not a {row.type}"
            raise _damaged(file, EPISODES, f'the field "{row.name}" {what}')
    if version != tables.EPISODES_VERSION:
        raise _damaged(file, EPISODES, f"{version} is not a version of episodes")
    if not 0 <= document["tokens"] <= MOST_TOKENS:
        raise _damaged(file, EPISODES, f"it cannot hold {document['tokens']:,} tokens")
    parts = document["parts"]
    if not all(type(number) is int and number >= 0 for number in parts) or sorted({*parts}) != parts:
        raise _damaged(file, EPISODES, 'the field "parts" is not a list of ascending numbers')
    if len(parts) > len(file):  # before anything looks for that many
        raise _damaged(file, EPISODES, f"a file of {len(file)} entries cannot hold {len(parts)} parts")
    return document


def read_part(file: MemoryFile, number: int) -> dict[str, Array]:
    """Read the arrays of one part, in which starts count from the part's first token.

    Raises
    ------
    FileCorruptError
        One is damaged, of another type, or too large.
    """
    part = {row.name: _read(file, part_key(number, row.name), row) for row in PART_ARRAYS}
    tokens = len(part["tokens"])
    if not 0 < tokens <= PART_TOKENS:
        raise _damaged(
            file,
            part_key(number, "tokens"),
            f"a part of episodes has 1 to {PART_TOKENS:,} tokens, and this one has {tokens:,}",
        )
    if int(part["tokens"].max()) >= 1 << 31:  # llama.cpp's tokens have a sign
        raise _damaged(
            file, part_key(number, "tokens"), f"{part['tokens'].max()} is no token of any vocabulary"
        )
    for name in ("block_start", "episode_start"):
        if len(part[name]) and int(part[name].max()) >= tokens:
            raise _damaged(file, part_key(number, name), f"a start lies behind the part's {tokens:,} tokens")
    if (part["position"] // PART_TOKENS != number).any():
        raise _damaged(
            file, part_key(number, "position"), "an episode does not begin in the part that holds it"
        )
    return part


def _read(file: MemoryFile, key: str, row: tables.KeptRow) -> Array:
    entry: Entry | None = file.get(key)
    if entry is None:
        return np.zeros(0, row.type)  # what lacks it will be found to contradict itself
    if entry.size > 8 * PART_TOKENS + 1024:  # before anything is unpacked
        raise _damaged(file, key, f"an array of {entry.size:,} bytes is too large for a part of episodes")
    if entry.dtype is None:
        from atlas_kit.persistence.snapshot import npy_array

        array = npy_array(file, entry)
    else:
        array = entry.array(verify=True)
    if array.dtype.name != row.type or array.ndim != 1:
        raise _damaged(
            file, key, f"the array is {array.dtype.name}{list(array.shape)}, not a row of {row.type}"
        )
    return array


def _damaged(file: MemoryFile, key: str, message: str) -> FileCorruptError:
    return FileCorruptError(message, path=file.path, key=key, remedy=Remedy("repair"))
