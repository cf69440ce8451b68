"""Rescue what is intact in a damaged file, into a new file. The damaged file is never touched."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import FileAccessError, FileCorruptError, InvalidParamError, KeyRequiredError, Remedy
from atlas_kit.formats.detect import detect
from atlas_kit.formats.endings import require_ending
from atlas_kit.formats.foreign import recognise
from atlas_kit.formats.gguf.lost_file import lost_name, write_lost
from atlas_kit.operations import secrecy
from atlas_kit.operations.outputs import (
    Output,
    address_of,
    is_path,
    is_stream,
    output_name,
    published_at,
    require_free,
    scratch_path,
)  # fmt: skip
from atlas_kit.operations.validate import validate_file
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source, StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.rescue import RescueResult
    from atlas_kit.formats.findings import Finding
    from atlas_kit.formats.gguf.mend import MendResult
    from atlas_kit.storage.given import Progress


@dataclass
class Repaired:
    """What was done: ``rescue`` of a memory file, or ``mend`` of a GGUF model.

    Attributes
    ----------
    before, after
        What is wrong with the file, and with the new one (empty on a dry run).
    data_read
        Whether the numbers of a model's tensors were looked at; ``None`` for a memory file, which has checksums.
    output
        The new file; ``None`` where nothing is written.
    stream
        Whether that is a stream, to which a file that is whole is passed on.
    """

    path: str
    output: str | None
    dry_run: bool
    stream: bool = False
    rescue: RescueResult | None = None
    mend: MendResult | None = None
    before: list[Finding] = field(default_factory=list)
    after: list[Finding] = field(default_factory=list)
    data_read: bool | None = None

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
    def mended(self) -> int:
        """Things that were put right, apart from what was lost."""
        if self.rescue is not None:
            mended = sum(entry.how != "intact" for entry in self.rescue.saved)
            return mended + len(self.rescue.notes) + len(self.rescue.uncommitted)
        return self.mend.mended if self.mend else 0

    @property
    def intact(self) -> bool:
        """Whether nothing was wrong, so that there was nothing to repair."""
        if self.rescue is not None:
            return self.rescue.intact
        return self.mend is not None and not self.mend.changed

    @property
    def passed_on(self) -> bool:
        """Whether the new file holds all of one that was whole: it is a stream, or was to be of another version."""
        other = self.rescue is not None and self.rescue.version != self.rescue.out_version
        return self.intact and (self.stream or other)

    @property
    def exit_code(self) -> int:
        """Return 1 when something was mended or lost, 0 when nothing was wrong."""
        return int(not self.intact)

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        result = self.rescue or self.mend
        details = result.to_json() if result is not None else {}
        output = named("output", self.output) if self.output is not None else {"output": None}
        summary = {"dry_run": self.dry_run, "intact": self.intact, "saved_count": self.saved}
        counts = {"mended_count": self.mended, "lost_count": self.lost}
        findings = {
            "before": [finding.to_json() for finding in self.before],
            "after": [finding.to_json() for finding in self.after],
        }
        return {
            **details,
            **named("path", self.path),
            **output,
            "format": self.kind,
            **({} if self.data_read is None else {"data_read": self.data_read}),
            **summary,
            **counts,
            **findings,
        }


@dataclass
class RepairOptions:
    """``version``: of a rescued memory file. ``drop_damaged``: leave damaged tensors out of a model.

    ``decrypt``: write plain text although the file is encrypted or there is a secret. ``data``: look at the numbers of
    a model's tensors, too.
    """

    dry_run: bool = False
    force: bool = False
    version: int | None = None
    drop_damaged: bool = False
    decrypt: bool = False
    data: bool = False


def repair_file(
    given: Given, output: Output | None, options: RepairOptions | None = None, keys: Keys | None = None,
    progress: Progress | None = None,
) -> Repaired:  # fmt: skip
    """Repair a file into ``output``, which may be ``None`` for a dry run.

    Where nothing is wrong no file is written, unless another version or plain text is asked for; a stream is
    passed on, as nothing could be made of an empty one.

    Raises
    ------
    FileCorruptError
        Something is wrong, and nothing of that can be mended.
    FileAccessError
        The output, or the file of what an earlier repair lost beside it, exists already.
    InvalidParamError
        There is no output, it is the input, or the file is of a kind that cannot be repaired.
    MagicMismatchError
        Nothing of a file of a known kind is left.
    """
    options, keys = options or RepairOptions(), Keys() if keys is None else keys
    if output is None and not options.dry_run:
        raise InvalidParamError("the repaired file needs a name", remedy=Remedy("name-output"))
    require_free(output, [given], options.force or options.dry_run)
    with use_source(given) as source:
        return _repaired(source, output, options, keys, progress)


def _repaired(
    source: Source, output: Output | None, options: RepairOptions, keys: Keys, progress: Progress | None
) -> Repaired:
    kind = detect(source)
    if kind is None and source.name.lower().endswith(".gguf"):
        kind = "gguf"  # its first bytes are damaged
    if kind in ("safetensors", "npz", "json"):
        raise InvalidParamError(
            f"{kind} files cannot be repaired", path=source.name, hint="Only .atlas and GGUF files can."
        )
    known = recognise(source) if kind is None or source.read_upto(0, 4) not in (b"ATLS", b"GGUF") else None
    if known is not None and known.lost:
        raise InvalidParamError(f"this is {known.what}", path=source.name, hint=known.hint)
    if source.size == 0:
        raise InvalidParamError("the file is empty: there is nothing to rescue", path=source.name)
    if output is not None and not options.dry_run and (url := address_of(output)) is not None:
        with published_at(url) as path:
            result = _repaired(source, path, options, keys, progress)
            if result.output is not None:
                result.output = output_name(output)
            return result
    place = output if is_path(output) and not is_stream(output) else None
    if kind == "gguf" and not options.dry_run and output is not None and place is None:
        raise InvalidParamError("a repaired model goes to a file: what was lost is written beside it")
    if place is not None and not options.force and not options.dry_run:
        _require_no_lost_file(place)
    require_ending(output, "gguf" if kind == "gguf" else "atlas")
    name = None if output is None else output_name(output)
    result = Repaired(source.name, name, options.dry_run, output is not None and place is None)
    repair = _mend if kind == "gguf" else _rescue
    if options.dry_run or output is None:
        repair(source, None, options, keys, result, progress)
    elif place is not None:
        repair(source, place, options, keys, result, progress)
        if kind != "gguf" and (not result.intact or result.passed_on):
            write_lost(place, source.path, [])  # one of an earlier output under this name
    else:
        with scratch_path(output, f".{kind or 'atlas'}") as path:
            repair(source, path, options, keys, result, progress, stream=True)
    if result.intact and not result.passed_on:
        result.output = None
    return result


def _require_no_lost_file(output: StrPath) -> None:
    """Refuse to write beside what an earlier repair lost: it would be taken for what this one lost."""
    lost = lost_name(output)
    if os.path.lexists(lost):
        raise FileAccessError("the file exists already", path=lost, remedy=Remedy("overwrite-sidecar"))


def _errors(findings: list[Finding]) -> list[Finding]:
    return [finding for finding in findings if finding.severity == "error"]


def _rescue(
    source: Source, path: StrPath | None, options: RepairOptions, keys: Keys, result: Repaired,
    progress: Progress | None, *, stream: bool = False,
) -> None:  # fmt: skip
    from atlas_kit.formats.atlas.rescue import rescue_atlas

    result.before = validate_file(source, keys).findings
    wrong = _errors(result.before)

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
            source, path, dry_run=options.dry_run, version=version, durable=not stream,
            unless_intact=not stream and not wrong, **keys.options(),
        )  # fmt: skip

    try:
        result.rescue = rescue()
    except KeyRequiredError as error:
        if not keys.ask_for(source.name):
            error.path = error.path or source.name
            raise
        result.rescue = rescue()
    if result.rescue.intact:  # but for what is written anew in any file
        result.rescue.notes += [f"put right: {one.message}" for one in wrong if one.code != "episodes"]
        if options.dry_run:
            result.rescue.notes += [f"{one.message}" for one in wrong if one.code == "episodes"]
    if path is not None and (result.passed_on or not result.rescue.intact or wrong):
        _mend_episodes(path, keys, result.rescue, durable=not stream)
        result.after = validate_file(path, keys).findings
        if result.rescue.intact:
            result.rescue.notes += [one.message for one in wrong]


def _mend_episodes(path: StrPath, keys: Keys, rescue: RescueResult, *, durable: bool) -> None:
    """Put together again what is left of the episodes in a file that was rescued: some of their parts may be lost."""
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.operations.episodes import mend_episodes

    with MemoryFile.open(path, **keys.options()) as memory:
        note = mend_episodes(memory)
        if note is not None:
            rescue.notes.append(note)
            memory.save(durable=durable)


def _mend(
    source: Source, path: StrPath | None, options: RepairOptions, keys: Keys, result: Repaired,
    progress: Progress | None, *, stream: bool = False,
) -> None:  # fmt: skip
    from atlas_kit.formats.gguf.journal import check_journal
    from atlas_kit.formats.gguf.mend import mend_gguf

    secrecy.require_no_secret(keys, path=source.name)
    if source.path is None:
        raise InvalidParamError("a model is repaired from a file, not from standard input")
    if options.version is not None:
        raise InvalidParamError("a version can be chosen only for a memory file", path=source.name)
    check_journal(source.path)
    total, done = source.size, 0

    def told(more: int) -> None:
        nonlocal done
        done += more
        if progress:
            progress("mending", done, total)

    result.mend = mend_gguf(
        source, path, dry_run=options.dry_run, drop_damaged=options.drop_damaged, only_changed=not stream,
        deep=options.data, progress=told, reading=progress,
    )  # fmt: skip
    result.before, result.after, result.data_read = result.mend.before, result.mend.after, options.data
    wrong = _errors(result.before)
    if wrong and not result.mend.changed:
        first, more = wrong[0], len(wrong) - 1
        others = f" ({more} more {'errors' if more > 1 else 'error'} of the kind)" if more else ""
        raise FileCorruptError(
            f"a repair cannot help: {first.message}{others}",
            path=source.name,
            offset=first.offset,
            key=first.key,
            hint=first.hint,
            remedy=first.remedy,
        )
