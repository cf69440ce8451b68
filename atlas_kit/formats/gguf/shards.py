"""Split models: what the files of one model are called, and how many there are.

llama.cpp names shards ``NAME-00001-of-00003.gguf``, counted from 1, and writes ``split.no`` counted from 0,
``split.count`` and ``split.tensors.count`` into each. Only the first has the model's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_kit.errors import FileCorruptError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.values import MetadataField

_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_SHARDS = 99_999


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the file name of shard ``number`` (counted from 1) of ``count``."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def shard_count(metadata: Mapping[str, MetadataField]) -> int:
    """Return how many shards a file says its model has (1 for an unsplit one)."""
    found = metadata.get("split.count")
    value = found.items if found is not None else 1
    return value if isinstance(value, int) and not isinstance(value, bool) else 1


def shard_paths(file: str, count: int) -> list[Path]:
    """Return the paths of all ``count`` shards of the model that ``file`` is one of.

    Raises
    ------
    FileCorruptError
        The file's name does not say which shard it is, or contradicts its metadata.
    """
    path = Path(file)
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise FileCorruptError(
            f"this is one of {count} shards, and its name does not say which",
            path=file,
            key="split.count",
            hint=f"Give it back a name such as {shard_name('model', 1, min(count, _MAX_SHARDS))}.",
        )
    if int(match["count"]) != count:
        raise FileCorruptError(
            f"the name says {int(match['count'])} shards, split.count says {count}",
            path=file,
            key="split.count",
        )
    return [path.with_name(shard_name(match["stem"], no, count)) for no in range(1, count + 1)]
