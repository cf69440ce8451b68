"""Remove entries of a memory file or metadata keys of a model, all of them or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.detect import detect
from atlas_kit.formats.opening import edit_memory
from atlas_kit.operations import secrecy
from atlas_kit.operations.episodes import is_of_episodes
from atlas_kit.operations.get import not_found
from atlas_kit.operations.inputs import require_metadata, unknown_format
from atlas_kit.operations.ls import matches
from atlas_kit.persistence.entry_keys import CONTEXT, TEXTS
from atlas_kit.storage.given import takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass
class Removed:
    """The keys that were (or, in a dry run, would be) removed."""

    path: str
    keys: list[str]
    dry_run: bool

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        removed = [named("key", key) for key in self.keys]
        return {**named("path", self.path), "removed": removed, "dry_run": self.dry_run}


@takes_source
def remove_keys(
    source: Source, wanted: Sequence[str], *, glob: bool = False, ignore_missing: bool = False,
    dry_run: bool = False, backup: bool = False, keys: Keys | None = None,
) -> Removed:  # fmt: skip
    """Remove keys from a file.

    Parameters
    ----------
    glob
        ``wanted`` are patterns.
    ignore_missing
        Do not mind keys that are not there.

    Raises
    ------
    KeyNotFoundError
        A key is not there; then nothing was removed.
    """
    kind = detect(source)
    keys = Keys() if keys is None else keys
    if kind == "gguf":
        secrecy.require_no_secret(keys, path=source.name)
        return _from_model(source, wanted, glob, ignore_missing, dry_run, backup)
    if kind is None:
        raise unknown_format(source)
    if kind != "atlas":
        raise InvalidParamError(
            f"keys can be removed from .atlas and GGUF files, and this is {kind}", path=source.path
        )
    if dry_run:
        from atlas_kit.formats.opening import open_memory

        with open_memory(source, keys) as memory:
            return Removed(source.name, _choose(memory, wanted, glob, ignore_missing, source), True)
    with edit_memory(source, keys, backup=backup) as memory:
        chosen = _choose(memory, wanted, glob, ignore_missing, source)
        for key in chosen:
            memory.remove(key)
        if memory.version > 1 and any(key in (CONTEXT, TEXTS) or is_of_episodes(key) for key in chosen):
            memory.save(backup=backup)  # whole: what somebody read and said is not to stay in its bytes
    return Removed(source.name, chosen, False)


def _choose(
    known: Iterable[str], wanted: Sequence[str], glob: bool, ignore_missing: bool, source: Source
) -> list[str]:
    names = dict.fromkeys(known)
    if glob:
        chosen = [name for name in names if matches(name, wanted)]
        missing = [p for p in wanted if not any(matches(name, [p]) for name in names)]
    else:
        chosen = [name for name in dict.fromkeys(wanted) if name in names]
        missing = [name for name in wanted if name not in names]
    if missing and not ignore_missing:
        raise not_found(missing[0], names, source.name)
    return chosen


def _from_model(
    source: Source, wanted: Sequence[str], glob: bool, ignore_missing: bool, dry_run: bool, backup: bool
) -> Removed:
    from atlas_kit.formats.gguf import Delete, GGUFFile, edit_metadata

    with GGUFFile.open(source, shards=False) as model:
        require_metadata(model, wanted)
        chosen = _choose(model.metadata, wanted, glob, ignore_missing, source)
    if chosen and not dry_run:
        edit_metadata(source, [Delete(key) for key in chosen], backup=backup)
    return Removed(source.name, chosen, dry_run)
