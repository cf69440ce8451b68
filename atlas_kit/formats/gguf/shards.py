"""Split models: what the files of one model are called, and how many there are.

llama.cpp names shards ``NAME-00001-of-00003.gguf``, counted from 1, and writes ``split.no`` counted from 0,
``split.count`` and ``split.tensors.count`` into each. Only the first has the model's metadata.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_kit.errors import FileCorruptError, Remedy
from atlas_kit.formats.gguf import tables
from atlas_kit.storage.parts import SliceSource
from atlas_kit.storage.urls import last_part

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.scan import HeaderScan
    from atlas_kit.formats.gguf.values import MetadataField
    from atlas_kit.storage.source import Source, StrPath

#: What only a split model has; without these keys a shard's metadata are those of the whole model.
SPLIT_KEYS = ("split.no", "split.count", "split.tensors.count")

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
    """Return the paths of all shards of the model that ``file`` is one of; raises what ``shard_names`` does."""
    path = Path(file)
    return [path.with_name(name) for name in shard_names(file, count)]


def has_others(source: Source) -> bool:
    """Tell whether other files may lie beside a source, so that a shard is looked at with the others."""
    return source.beside("other") is not None


def shard_names(file: str, count: int) -> list[str]:
    """Return what all ``count`` shards of the model are called that ``file`` (a path or an address) is one of.

    Raises
    ------
    FileCorruptError
        The file's name does not say which shard it is, or contradicts its metadata.
    """
    match = _NAME.fullmatch(last_part(file))
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
    return [shard_name(match["stem"], no, count) for no in range(1, count + 1)]


def takes_place_of(out: StrPath, metadata: Mapping[str, MetadataField]) -> bool:
    """Tell whether a path has the name of the very shard whose metadata these are: a set that it completes."""
    match = _NAME.fullmatch(Path(out).name)
    number = metadata.get("split.no")
    return (
        match is not None
        and number is not None
        and (int(match["no"]) - 1, int(match["count"])) == (number.items, shard_count(metadata))
    )


def end_of_data(scan: HeaderScan, source: Source) -> int:
    """Return where a whole file ends by its header: behind its last tensor, or behind the next file's padding.

    The padding behind the last tensor counts where another GGUF file starts behind it.
    """
    ends = [info.file_offset + (info.nbytes or 0) for info in scan.tensors]
    end = max(ends, default=scan.end)
    step = scan.alignment
    for place in (end, -(-end // step) * step):
        if source.read_upto(place, len(tables.MAGIC)) == tables.MAGIC:
            return place
    return end


def cut(source: Source) -> list[Source]:
    """Return the GGUF files that lie one after the other in a source: one, unless shards were joined with ``cat``.

    What follows the last one's data belongs to it.

    Raises
    ------
    AtlasError
        A header is damaged.
    """
    from atlas_kit.formats.gguf.scan import scan_header

    found: list[Source] = []
    start = 0
    while True:
        rest = SliceSource(source, start, source.size - start) if start else source
        scan = scan_header(rest)
        if scan.error is not None:
            scan.error.offset = None if scan.error.offset is None else start + scan.error.offset
            raise scan.error
        end = end_of_data(scan, rest)
        if not 0 < end < rest.size or rest.read_upto(end, len(tables.MAGIC)) != tables.MAGIC:
            return [*found, rest]
        found.append(SliceSource(source, start, end))
        start += end


def require_single(source: Source, scan: HeaderScan) -> None:
    """Refuse a file of several shards that lie one after the other.

    Raises
    ------
    FileCorruptError
    """
    end = end_of_data(scan, source)
    if 0 < end < source.size and source.read_upto(end, len(tables.MAGIC)) == tables.MAGIC:
        raise FileCorruptError(
            "several GGUF files lie in this one, one after the other, as `cat` puts them",
            path=source.path, offset=end, remedy=Remedy("join-shards"),
        )  # fmt: skip


def stem_of(file: str) -> str:
    """Return a model's path without what a shard's name, or any GGUF file's, ends with."""
    path = Path(file)
    match = _NAME.fullmatch(path.name)
    return str(path.with_name(match["stem"])) if match else re.sub(r"(?i)\.gguf\Z", "", file)
