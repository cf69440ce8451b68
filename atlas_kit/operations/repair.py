"""Rescue what is intact in a damaged file, into a new file. The damaged file is never touched."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError, KeyRequiredError, Remedy
from atlas_kit.formats.detect import detect
from atlas_kit.operations import secrecy
from atlas_kit.operations.outputs import Output, is_path, scratch_path
from atlas_kit.storage.given import Given, check_output, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.rescue import RescueResult
    from atlas_kit.formats.gguf.mend import MendResult
    from atlas_kit.storage.given import Progress


@dataclass
class Repaired:
    """What was done: ``rescue`` of a memory file, or ``mend`` of a GGUF model."""

    path: str
    output: str | None
    dry_run: bool
    rescue: RescueResult | None = None
    mend: MendResult | None = None

    @property
    def kind(self) -> str:
        """Return atlas or gguf."""
        return "gguf" if self.mend is not None else "atlas"

    @property
    def saved(self) -> int:
        """Entries, or metadata keys and tensors, that are whole in the new file."""
        if self.rescue is not None:
            return len(self.rescue.saved)
        return self.mend.saved if self.mend else 0

    @property
    def lost(self) -> int:
        """Pieces of the old file that are damaged, some of which may have been saved from elsewhere."""
        if self.rescue is not None:
            return len(self.rescue.lost)
        return self.mend.lost if self.mend else 0

    @property
    def exit_code(self) -> int:
        """Return 1 when something was damaged, 0 when all is there."""
        return int(self.lost > 0)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        result = self.rescue or self.mend
        details = result.to_json() if result is not None else {}
        output = named("output", self.output) if self.output is not None else {"output": None}
        summary = {"dry_run": self.dry_run, "saved_count": self.saved, "lost_count": self.lost}
        return {**details, **named("path", self.path), **output, "format": self.kind, **summary}


@dataclass
class RepairOptions:
    """``version``: of a rescued memory file. ``drop_damaged``: leave damaged tensors out of a model.

    ``decrypt``: write plain text although the file is encrypted or there is a secret.
    """

    dry_run: bool = False
    force: bool = False
    version: int | None = None
    drop_damaged: bool = False
    decrypt: bool = False


def repair_file(
    given: Given, output: Output | None, options: RepairOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Repaired:  # fmt: skip
    """Repair a file into ``output``, which may be ``None`` for a dry run.

    Raises
    ------
    InvalidParamError
        There is no output, it is the input, or the file is of a kind that cannot be repaired.
    MagicMismatchError
        Nothing of a file of a known kind is left.
    """
    options, keys = options or RepairOptions(), Keys() if keys is None else keys
    if output is None and not options.dry_run:
        raise InvalidParamError("the repaired file needs a name", remedy=Remedy("name-output"))
    if isinstance(output, (str, os.PathLike)):
        check_output(output, [given], options.force or options.dry_run)
    with use_source(given) as source:
        return _repaired(source, output, options, keys, progress)


def _repaired(
    source: Source, output: Output | None, options: RepairOptions, keys: Keys, progress: Progress | None
) -> Repaired:
    kind = detect(source)
    if kind is None and source.name.lower().endswith(".gguf"):
        kind = "gguf"  # its first bytes are damaged
    if kind == "gguf" and not options.dry_run and output is not None and not is_path(output):
        raise InvalidParamError("a repaired model goes to a file: what was lost is written beside it")
    if kind in ("safetensors", "npz", "json"):
        raise InvalidParamError(
            f"{kind} files cannot be repaired", path=source.name, hint="Only .atlas and GGUF files can."
        )
    if source.size == 0:
        raise InvalidParamError("the file is empty: there is nothing to rescue", path=source.name)
    name = None if output is None else os.fsdecode(output) if isinstance(output, (str, os.PathLike)) else "-"
    result = Repaired(source.name, name, options.dry_run)
    if options.dry_run or output is None:
        _repair(source, None, kind, options, keys, result, progress)
        return result
    with scratch_path(output, f".{kind or 'atlas'}") as path:
        _repair(source, path, kind, options, keys, result, progress, durable=is_path(output))
    return result


def _repair(
    source: Source, path: Any, kind: str | None, options: RepairOptions, keys: Keys, result: Repaired,
    progress: Progress | None, *, durable: bool = True,
) -> None:  # fmt: skip
    if kind == "gguf":
        secrecy.require_no_secret(keys, path=source.name)
        result.mend = _mend(source, path, options, progress)
        return
    from atlas_kit.formats.atlas.rescue import rescue_atlas

    def rescue() -> RescueResult:
        version = options.version
        if keys.given:
            version = secrecy.output_version(
                version,
                secrecy.ENCRYPTED,
                encrypted=False,
                keys=keys,
                decrypt=options.decrypt,
                path=source.name,
            )
        return rescue_atlas(
            source, path, dry_run=options.dry_run, version=version, durable=durable, **keys.options()
        )

    try:
        result.rescue = rescue()
    except KeyRequiredError:
        if not keys.ask_for(source.name):
            raise
        result.rescue = rescue()
    if path is not None:
        _mend_episodes(path, keys, result.rescue, durable)


def _mend_episodes(path: Any, keys: Keys, rescue: RescueResult, durable: bool) -> None:
    """Put together again what is left of the episodes in a file that was rescued: some of their parts may be lost."""
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.operations.episodes import mend_episodes

    with MemoryFile.open(path, **keys.options()) as memory:
        note = mend_episodes(memory)
        if note is not None:
            rescue.notes.append(note)
            memory.save(durable=durable)


def _mend(source: Source, path: Any, options: RepairOptions, progress: Progress | None) -> MendResult:
    from atlas_kit.formats.gguf.mend import mend_gguf

    if source.path is None:
        raise InvalidParamError("a model is repaired from a file, not from standard input")
    if options.version is not None:
        raise InvalidParamError("a version can be chosen only for a memory file", path=source.name)
    total, done = source.size, 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress("mending", done, total)

    return mend_gguf(source, path, dry_run=options.dry_run, drop_damaged=options.drop_damaged, progress=told)
