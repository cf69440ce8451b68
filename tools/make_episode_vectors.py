"""Build ``formats/vectors/atlas-episodes.json`` and ``formats/atlas-episodes.schema.json``.

python tools/make_episode_vectors.py            # write both files again
python tools/make_episode_vectors.py --check    # exit 1 when that would change one
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from atlas_kit.episodes.arrays import DTYPES, EpisodeArrays  # noqa: E402
from atlas_kit.formats.atlas import MemoryFile  # noqa: E402
from atlas_kit.persistence.entry_keys import EPISODES  # noqa: E402
from atlas_kit.persistence.episode_entries import put_episodes  # noqa: E402
from atlas_kit.persistence.tables import PART_TOKENS, episodes_schema, part_key  # noqa: E402

VECTORS = ROOT / "formats" / "vectors" / "atlas-episodes.json"
SCHEMA = ROOT / "formats" / "atlas-episodes.schema.json"
NOW = 1_700_000_000

ABOUT = [
    "Each vector is a whole .atlas file as hex, and the episodes that a reader must find in it, or the error.",
    "Arrays are those of all parts together: starts count from the first token of all.",
    "built: a writer that is given these values at this time writes exactly these bytes.",
    "error: the C library's enum.",
]


def arrays_of(episodes: list[tuple[int, str, int, int, int, list[int]]], dropped: int = 0) -> EpisodeArrays:
    """Return episodes of (kind, source, time, position, line, lengths of the blocks), whose tokens count up."""
    rows: dict[str, list[int]] = {name: [] for name in DTYPES}
    sources: dict[str, int] = {}
    end = 0
    for kind, source, time_ms, position, line, blocks in episodes:
        at = len(rows["tokens"])
        rows["episode_start"].append(at)
        for length in blocks:
            rows["block_start"].append(len(rows["tokens"]))
            rows["tokens"] += [(position + n) % 251 for n in range(length)]
        number = sources.setdefault(source, len(sources))
        for name, value in (("kind", kind), ("source", number), ("time_ms", time_ms), ("position", position)):
            rows[name].append(value)
        rows["line"].append(line)
        end = position + sum(blocks)
    made = {name: np.asarray(rows[name], dtype) for name, dtype in DTYPES.items()}
    return EpisodeArrays(**made, sources=tuple(sources), end=end, dropped=dropped)


def meaning(arrays: EpisodeArrays) -> dict[str, Any]:
    """Say what episodes are (used by the test as well)."""
    rows = {name: getattr(arrays, name).tolist() for name in DTYPES}
    return {**rows, "sources": list(arrays.sources), "end": arrays.end, "dropped": arrays.dropped}


def written(
    arrays: EpisodeArrays, change: Callable[[MemoryFile], object] | None = None, version: int = 2
) -> str:
    """Return a file with episodes as hex; ``change`` is applied to it first."""
    with tempfile.TemporaryDirectory() as folder, mock.patch.dict("os.environ", SOURCE_DATE_EPOCH=str(NOW)):
        path = Path(folder) / "m.atlas"
        file = MemoryFile(version=version)
        put_episodes(file, arrays)
        if change is not None:
            change(file)
        file.save(path)
        return path.read_bytes().hex()


def described(**fields: object) -> Callable[[MemoryFile], object]:
    """Return what changes fields of the description."""
    return lambda file: file.set(EPISODES, {**file[EPISODES].json(), **fields})


def holding(name: str, *values: int, part: int = 0) -> Callable[[MemoryFile], object]:
    """Return what puts other numbers into an array of a part."""
    return lambda file: file.set(part_key(part, name), np.asarray(values, DTYPES[name]))


DAY = 1_700_000_000_000
TALK = [
    (0, "book.txt", DAY, 0, 1, [70, 66, 12]),
    (1, "", DAY + 5000, 148, 1, [9]),
    (2, "", DAY + 9000, 157, 1, [31]),
]
#: What is left of more: an episode reaches from one part into the next, another lost its beginning, and a part is gone.
LEFT = [
    (1, "", DAY, PART_TOKENS - 40, 1, [30, 64]),
    (0, "notes.md", DAY + 1000, PART_TOKENS + 200, 17, [128, 100]),
    (4, "", DAY + 2000, 3 * PART_TOKENS, 1, [1]),
]
HARMS: dict[str, tuple[str, Callable[[MemoryFile], object], str]] = {
    "version": ("of a version that does not exist yet", described(version=2), "VERSION_MISMATCH"),
    "tokens": ("fewer tokens than the description says", described(tokens=500), "FILE_CORRUPT"),
    "part": ("a part that is not there", described(parts=[0, 1]), "FILE_CORRUPT"),
    "extra": ("a part that the description does not name", described(parts=[], tokens=0), "FILE_CORRUPT"),
    "sources": ("an episode of a source without a name", described(sources=["book.txt"]), "FILE_CORRUPT"),
    "control": ("a name that moves a terminal's cursor", described(sources=["\x1b[2J", ""]), "FILE_CORRUPT"),
    "end": ("an end before the last token", described(end=20), "FILE_CORRUPT"),
    "offset": ("an episode that begins behind the last token", holding("episode_start", 0, 148, 999), "FILE_CORRUPT"),
    "overlap": ("blocks that overlap", holding("block_start", 0, 136, 70, 148, 157), "FILE_CORRUPT"),
    "block": ("a block of more than 128 tokens", holding("block_start", 0, 148, 157), "FILE_CORRUPT"),
    "within": ("an episode that begins within a block", holding("episode_start", 0, 148, 158), "FILE_CORRUPT"),
    "kind": ("an unknown kind", holding("kind", 0, 1, 9), "FILE_CORRUPT"),
    "positions": ("positions that overlap", holding("position", 0, 100, 157), "FILE_CORRUPT"),
    "place": ("an episode of another part", holding("position", 0, 148, PART_TOKENS), "FILE_CORRUPT"),
    "short": ("a time is missing", holding("time_ms", DAY, DAY), "FILE_CORRUPT"),
    "missing": ("the tokens are missing", lambda file: file.remove(part_key(0, "tokens")), "FILE_CORRUPT"),
    "alone": ("the description is missing", lambda file: file.remove(EPISODES), "FILE_CORRUPT"),
}  # fmt: skip


def vectors() -> str:
    """Return the vectors' text."""
    rows: list[dict[str, Any]] = []
    for name, what, arrays, version in (
        ("v2-talk", "a document and two turns", arrays_of(TALK), 2),
        (
            "v2-left",
            "two parts, and a later one, of what is left of more",
            arrays_of(LEFT, dropped=60_000),
            2,
        ),
        ("v1-talk", "the same as v2-talk in version 1", arrays_of(TALK), 1),
    ):
        row = {
            "name": name,
            "what": what,
            "hex": written(arrays, version=version),
            "valid": True,
            "built": True,
        }
        rows.append({**row, "version": version, "time": NOW, **meaning(arrays)})
    for name, (what, change, error) in HARMS.items():
        harmed = written(arrays_of(TALK), change)
        rows.append({"name": name, "what": what, "hex": harmed, "valid": False, "error": error})
    document = {"format": "atlas-episodes", "about": ABOUT, "vectors": rows}
    text = json.dumps(document, ensure_ascii=False, separators=(",", ":"))
    return text.replace('{"name":', '\n{"name":').replace('"about":', '\n"about":') + "\n"


def main() -> int:
    """Write the files, or see that they are what would be written."""
    schema = json.dumps(episodes_schema(), indent=1, ensure_ascii=False) + "\n"
    stale = 0
    for path, text in ((VECTORS, vectors()), (SCHEMA, schema)):
        if "--check" in sys.argv:
            stale |= int(not path.exists() or path.read_text(encoding="utf-8") != text)
            continue
        path.write_text(text, encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: {len(text):,} characters")
    return stale


if __name__ == "__main__":
    raise SystemExit(main())
