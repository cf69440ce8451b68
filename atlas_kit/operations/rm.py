"""Remove entries of a memory file, or metadata keys and tensors of a model, all of them or none."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.formats.opening import edit_memory, open_memory, require_encrypted
from atlas_kit.operations import secrecy
from atlas_kit.operations.episodes import is_of_episodes
from atlas_kit.operations.inputs import require_kind, require_metadata
from atlas_kit.operations.names import matches, no_match, not_found
from atlas_kit.operations.outputs import Output, check_place, output_name, scratch_path, write_memory_file
from atlas_kit.persistence.entry_keys import CONTEXT, TEXTS
from atlas_kit.storage.given import takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


@dataclass
class Removed:
    """The keys that were (or, in a dry run, would be) removed; ``output`` is ``None`` in place."""

    path: str
    keys: list[str]
    dry_run: bool
    output: str | None = None

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        removed = [named("key", key) for key in self.keys]
        return {
            **named("path", self.path),
            **named("output", self.path if self.output is None else self.output),
            "removed": removed,
            "dry_run": self.dry_run,
        }


@takes_source
def remove_keys(
    source: Source, wanted: Sequence[str], *, glob: bool = False, ignore_missing: bool = False,
    dry_run: bool = False, backup: bool | int = False, keys: Keys | None = None, output: Output | None = None,
    force: bool = False,
) -> Removed:  # fmt: skip
    """Remove keys from a file.

    Parameters
    ----------
    glob
        ``wanted`` are patterns.
    ignore_missing
        Do not mind keys that are not there.
    output
        Write the file without them here, and leave this one as it is.

    Raises
    ------
    KeyNotFoundError
        A key is not there; then nothing was removed.
    """
    kind = require_kind(source, ["atlas", "gguf"], "keys can be removed from .atlas and GGUF files")
    keys = Keys() if keys is None else keys
    check_place(source, output, kind, force=force, backup=backup, dry_run=dry_run)
    if kind == "gguf":
        secrecy.require_no_secret(keys, path=source.name)
        chosen = _from_model(source, wanted, glob, ignore_missing, dry_run, backup, output)
    else:
        chosen = _from_memory(source, wanted, glob, ignore_missing, dry_run, backup, output, keys)
    return Removed(source.name, chosen, dry_run, None if output is None else output_name(output))


def _from_memory(
    source: Source, wanted: Sequence[str], glob: bool, ignore_missing: bool, dry_run: bool, backup: bool | int,
    output: Output | None, keys: Keys,
) -> list[str]:  # fmt: skip
    if dry_run or output is not None:
        with open_memory(source, keys) as memory:
            chosen = _choose(memory, wanted, glob, ignore_missing, source)
            if output is not None and not dry_run:
                require_encrypted(memory, keys)
                for key in chosen:
                    memory.remove(key)
                write_memory_file(memory, output)
        return chosen
    with edit_memory(source, keys, backup=backup) as memory:
        chosen = _choose(memory, wanted, glob, ignore_missing, source)
        for key in chosen:
            memory.remove(key)
        if memory.version > 1 and any(key in (CONTEXT, TEXTS) or is_of_episodes(key) for key in chosen):
            memory.save(backup=backup)  # whole: what somebody read and said is not to stay in its bytes
    return chosen


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
        raise no_match(missing[0], source.name) if glob else not_found(missing[0], names, source.name)
    return chosen


def _from_model(
    source: Source, wanted: Sequence[str], glob: bool, ignore_missing: bool, dry_run: bool, backup: bool | int,
    output: Output | None,
) -> list[str]:  # fmt: skip
    from atlas_kit.formats.gguf import Delete, GGUFFile, edit_metadata
    from atlas_kit.formats.gguf.edit import check_key
    from atlas_kit.formats.gguf.tables import PAD_KEY
    from atlas_kit.formats.gguf.tensor_edit import edit_names

    with GGUFFile.open(source, shards=output is not None) as model:
        others = [name for name in wanted if not _choose(model.tensors, [name], glob, True, source)]
        if output is None and others:
            require_metadata(model, others)
        if not glob and PAD_KEY in wanted and PAD_KEY in model.metadata:
            check_key(PAD_KEY)
        known = [key for key in (*model.metadata, *model.tensors) if key != PAD_KEY]
        chosen = _choose(known, wanted, glob, ignore_missing, source)
        keys = [name for name in chosen if name in model.metadata]
        tensors = [name for name in chosen if name in model.tensors]
    if dry_run:
        return chosen
    names: Any = {"keys": dict.fromkeys(keys), "tensors": dict.fromkeys(tensors)}
    if output is not None:
        with scratch_path(output, ".gguf") as path:
            edit_names(source, **names, out=path)
    elif tensors:
        edit_names(source, **names, backup=backup)
    elif keys:
        edit_metadata(source, [Delete(key) for key in keys], backup=backup)
    return chosen
