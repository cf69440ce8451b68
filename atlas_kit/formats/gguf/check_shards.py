"""The shards of a split model: all there, sound, in their order, and together what the first one promises."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from atlas_kit.errors import AtlasError, NoSuchFileError, Remedy
from atlas_kit.formats.gguf.shards import SPLIT_KEYS, shard_name
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.storage.given import open_source
from atlas_kit.storage.source import Source
from atlas_kit.storage.urls import is_url, last_part

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Finding, Report
    from atlas_kit.formats.gguf.values import MetadataField

Fields = Mapping[str, "MetadataField"]
#: Pairs, tensor infos and the end of a sound header.
Records = tuple[list["MetadataField"], list[TensorInfo], int]
#: ``split.count`` is a u16.
MAX_COUNT = 1 << 16
#: Shards at addresses that are missing or broken, after which no others are asked for.
_LOST_ASKED = 16
_NAME = re.compile(r"(?s)(.*)-(\d{5})-of-(\d{5})\.gguf")
Check = Callable[[Source], "tuple[list[Finding], Records | None]"]


def check_shards(
    report: Report, source: Source, check: Check, known: Fields, tensors: list[TensorInfo], count: int
) -> list[TensorInfo] | None:
    """Look at the other shards of a split model; return the tensors of all, ``None`` if some are missing.

    ``check`` returns what is wrong with one shard by itself, and its records if its header is sound.
    """
    match = _NAME.fullmatch(last_part(source.name))
    if match is None or match[2] != "00001" or int(match[3]) != count:
        wanted = shard_name("NAME", 1, count)
        message = f"the first shard of {count} must have a name such as {wanted}: llama.cpp refuses any other"
        if report.has("files-joined"):  # the others lie in this file, and no name helps
            report.error("shard-name-wrong", message, remedy=Remedy("join-shards"), key="split.count")
        else:
            report.error("shard-name-wrong", message, "Give the file this name.", key="split.count")
        return None
    total, seen = list(tensors), {info.name for info in tensors}
    whole, lost = True, 0
    for number in range(2, count + 1):
        found = _other_shard(report, check, source, shard_name(match[1], number, count), number, count)
        if found is None:
            whole = False
            lost += 1
            if (
                source.far and lost == _LOST_ASKED
            ):  # what claims thousands of shards is not asked for all of them
                return None
            continue
        for info in found:
            if info.name in seen:
                message = f"shard {number} holds a tensor that an earlier one holds, too"
                report.error("tensor-duplicate", message, key=info.name)
            seen.add(info.name)
        total += found
    if not whole:
        return None
    promised = known.get("split.tensors.count")
    if promised is None:
        report.error(
            "key-missing", "the shards do not say how many tensors they hold", key="split.tensors.count"
        )
    elif promised.items != len(seen):
        message = f"the shards hold {len(seen)} tensors together, and {promised.items} are promised"
        report.error("split-count-wrong", message, offset=promised.value_offset, key=promised.key)
    return total


def check_others(report: Report, source: Source, fields: list[MetadataField]) -> None:
    """See that the other shards lie beside one that is not the first, by its name."""
    said = {item.key: item.items for item in reversed(fields) if item.key in SPLIT_KEYS}
    number, count = said.get("split.no"), said.get("split.count")
    match = _NAME.fullmatch(last_part(source.name))
    if match is None or not isinstance(number, int) or not 0 < number < MAX_COUNT or int(match[3]) != count:
        return
    lost = 0
    for other in range(1, int(match[3]) + 1):
        if source.far and lost == _LOST_ASKED:
            return
        name = shard_name(match[1], other, int(match[3]))
        if other != number + 1 and not _is_there(source, name):
            lost += 1
            report.error("shard-missing", f"shard {other} is missing: {name}", "Put all into one folder.")


def _is_there(source: Source, name: str) -> bool:
    place = source.beside(name)
    if place is None or not is_url(place):
        return place is not None and os.path.exists(place)
    try:
        open_source(place).close()
    except NoSuchFileError:
        return False
    except AtlasError:  # it is, and somebody else's finding
        pass
    return True


def _other_shard(
    report: Report, check: Check, beside: Source, name: str, number: int, count: int
) -> list[TensorInfo] | None:
    """Return the tensors of another shard, ``None`` when it is missing or broken."""
    try:
        opened = open_source(beside.beside(name) or name)
    except NoSuchFileError:
        report.error("shard-missing", f"shard {number} is missing: {name}", "Put all into one folder.")
        return None
    except AtlasError:
        report.error("shard-missing", f"shard {number} cannot be read: {name}")
        return None
    with contextlib.suppress(AtlasError), opened as source:
        findings, records = check(source)
        worst = next((f for f in findings if f.severity == "error"), None)
        if worst is None and records is not None:
            fields, tensors, _ = records
            said = next((item.items for item in fields if item.key == "split.no"), None)
            of = next((item.items for item in fields if item.key == "split.count"), None)
            if of is not None and of != count:
                message = f"{name} says that there are {of} shards, and the first one says {count}"
                report.warning("split-count-differs", message, key="split.count")
            if said == number - 1:
                return tensors
            message = f"{name} should be shard {number} and says that it is number {said} (counted from 0)"
            report.error("shard-wrong", message, "Do the files belong to one model?", key="split.no")
            return None
        message = f"shard {number} ({name}) is broken{': ' + worst.message if worst else ''}"
        report.error("shard-broken", message, f"Validate {name} for all of it.")
        return None
    report.error("shard-missing", f"shard {number} cannot be read: {name}")
    return None
