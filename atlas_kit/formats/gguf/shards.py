"""Split models: which files belong together, and whether they do.

llama.cpp names shards ``NAME-00001-of-00003.gguf``, counted from 1, and writes ``split.no`` counted from 0,
``split.count`` and ``split.tensors.count`` into each. Only the first has the model's metadata.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from atlas_kit.errors import FileCorruptError, NoSuchFileError

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.file import GGUFFile

_NAME = re.compile(r"(?P<stem>.*)-(?P<no>\d{5})-of-(?P<count>\d{5})\.gguf", re.DOTALL)
_MAX_SHARDS = 99_999


def shard_name(stem: str, number: int, count: int) -> str:
    """Return the file name of shard ``number`` (counted from 1) of ``count``."""
    return f"{stem}-{number:05d}-of-{count:05d}.gguf"


def shard_count(file: GGUFFile) -> int:
    """Return how many shards the file says its model has (1 for an unsplit one)."""
    found = file.metadata.get("split.count")
    value = found.items if found is not None else 1
    return value if isinstance(value, int) and not isinstance(value, bool) else 1


def shard_paths(file: GGUFFile) -> list[Path]:
    """Return the paths of all shards of the model that ``file`` is one of.

    Raises
    ------
    FileCorruptError
        The file's name does not say which shard it is, or contradicts its metadata.
    """
    path = Path(file.path or "")
    count = shard_count(file)
    match = _NAME.fullmatch(path.name)
    if match is None:
        raise FileCorruptError(
            f"this is one of {count} shards, and its name does not say which",
            path=file.path,
            key="split.count",
            hint=f"Give it back a name such as {shard_name('model', 1, min(count, _MAX_SHARDS))}.",
        )
    if int(match["count"]) != count:
        raise FileCorruptError(
            f"the name says {int(match['count'])} shards, split.count says {count}",
            path=file.path,
            key="split.count",
        )
    return [path.with_name(shard_name(match["stem"], no, count)) for no in range(1, count + 1)]


def join(file: GGUFFile) -> GGUFFile:
    """Open all shards of the model that ``file`` (already open) is one of, as one model.

    Raises
    ------
    NoSuchFileError
        A shard is missing.
    FileCorruptError
        A shard belongs to another model, or the tensors do not add up.
    """
    from atlas_kit.formats.gguf.file import GGUFFile

    paths = shard_paths(file)
    missing = [path for path in paths if not path.exists()]
    if missing:
        names = ", ".join(path.name for path in missing[:3]) + (", ..." if len(missing) > 3 else "")
        raise NoSuchFileError(
            f"{len(missing)} of {len(paths)} shards of this model are missing: {names}",
            path=file.path,
            hint="Put all shards into one folder, or look at this one alone (shards=False).",
        )
    opened: list[GGUFFile] = []
    model: GGUFFile | None = None
    try:
        for number, path in enumerate(paths):
            is_asked = path == Path(file.path or "")
            shard = file if is_asked else GGUFFile.open(path, shards=False)
            opened.append(shard)
            _check_shard(shard, number, len(paths), file)
        model = GGUFFile(opened[0].source, opened[0].scan, owns_source=False)
        model.path = file.path
        model._adopt(tuple(opened))
        _check_total(model)
    except BaseException:
        for shard in opened:
            shard.close()
        raise
    if file not in opened:  # its name counts further than there are shards
        file.close()
    return model


def _check_shard(shard: GGUFFile, number: int, count: int, asked: GGUFFile) -> None:
    for key, wanted in (("split.no", number), ("split.count", count)):
        found = shard.metadata.get(key)
        if found is None or found.items != wanted:
            got = "is missing" if found is None else f"is {found.items}"
            raise FileCorruptError(
                f"this file should be shard {number + 1} of {count}: {key} {got} instead of {wanted}",
                path=shard.path,
                offset=None if found is None else found.value_offset,
            )
    if shard.byte_order != asked.byte_order:
        raise FileCorruptError("the shards have different byte orders", path=shard.path)


def _check_total(model: GGUFFile) -> None:
    promised = {
        os.fspath(shard.path or ""): shard.metadata["split.tensors.count"].items
        for shard in model.shards
        if "split.tensors.count" in shard.metadata
    }
    total = sum(len(shard.tensor_infos) for shard in model.shards)
    for path, count in promised.items():
        if count != total:
            raise FileCorruptError(
                f"the shards hold {total} tensors together, split.tensors.count says {count}",
                path=path,
                key="split.tensors.count",
                hint="A shard may belong to another model.",
            )
    if len(model.tensors) != total:
        seen: set[str] = set()
        for info in model.tensor_infos:
            if info.name in seen:
                raise FileCorruptError("two shards hold this tensor", path=info.path, key=info.name)
            seen.add(info.name)
