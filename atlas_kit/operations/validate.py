"""Check files of any known format and collect every finding."""

from __future__ import annotations

import glob
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import (
    AtlasError,
    FileAccessError,
    InvalidParamError,
    KeyRequiredError,
    NoSuchFileError,
    WrongKeyError,
)
from atlas_kit.formats.detect import Format, by_name, detect
from atlas_kit.formats.endings import KINDS
from atlas_kit.formats.findings import Finding
from atlas_kit.formats.foreign import is_dat, recognise
from atlas_kit.formats.imatrix import read_dat
from atlas_kit.operations.inputs import unknown_format
from atlas_kit.storage.given import Given, Progress, name_of, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source
from atlas_kit.storage.urls import is_url, local_path

#: What is looked for in a directory.
SUFFIXES = (".atlas", ".gguf", ".safetensors", ".npz")


@dataclass
class FileReport:
    """The findings about one file; ``ok`` means that there is no error among them.

    ``data_read`` says whether the numbers of a model's tensors were looked at; ``None`` where there are none, or
    where the format has checksums, which are always verified.
    """

    path: str
    format: Format | None = None
    findings: list[Finding] = field(default_factory=list)
    readable: bool = True
    strict: bool = False
    data_read: bool | None = None

    @property
    def ok(self) -> bool:
        """Whether the file can be used as it is."""
        return not any(finding.severity == "error" for finding in self.findings)

    @property
    def exit_code(self) -> int:
        """Return 2 for a file that could not be read, 1 for errors (``strict``: warnings too), else 0."""
        if not self.readable:
            return 2
        worst = ("error", "warning") if self.strict else ("error",)
        return int(any(finding.severity in worst for finding in self.findings))

    def to_json(self) -> dict[str, Any]:
        """Return path, verdict, whether tensor data were read, and findings."""
        findings = [finding.to_json() for finding in self.findings]
        read = {} if self.data_read is None else {"data_read": self.data_read}
        return {**named("path", self.path), "ok": self.ok, **read, "findings": findings}


def expand(names: Sequence[str]) -> Iterator[str]:
    """Yield the files that names stand for: themselves, what a pattern matches, what a directory holds.

    Raises
    ------
    NoSuchFileError
        A pattern matches nothing, or a directory holds no file of a known kind.
    """
    for name in names:
        if is_url(name) and local_path(name) is None:  # what is behind its question mark is no pattern
            yield name
            continue
        name = (local_path(name) or name) if is_url(name) else name
        if os.path.isdir(name):
            found = sorted(_walk(name))
            if not found:
                raise NoSuchFileError(
                    f"the directory holds no file that ends in {', '.join(SUFFIXES)}", path=name
                )
            yield from found
        elif not os.path.lexists(name) and glob.has_magic(name):
            matched = sorted(glob.glob(name, recursive=True))
            if not matched:
                raise NoSuchFileError("the pattern matches no file", path=name)
            yield from expand(matched)
        else:
            yield name


def _walk(folder: str) -> Iterator[str]:
    """Yield what is to be checked below a folder; a folder that cannot be read is itself a finding."""
    denied: list[str] = []
    for place, folders, files in os.walk(folder, onerror=lambda error: denied.append(error.filename)):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            path = os.path.join(place, name)
            if name.lower().endswith(SUFFIXES) and not name.startswith(".") and not _is_special(path):
                yield path
    yield from denied


def _is_special(path: str) -> bool:
    """Tell whether a path is a pipe, a socket or a device, from which nothing may ever come."""
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return False
    return not stat.S_ISREG(mode) and not stat.S_ISDIR(mode)


def validate_file(
    given: Given,
    keys: Keys | None = None,
    *,
    strict: bool = False,
    one_shard: bool = False,
    data: bool = False,
    progress: Progress | None = None,
) -> FileReport:
    """Check one file (of a split model all, unless ``one_shard``); what cannot be read at all is a finding too.

    Parameters
    ----------
    data
        Also read the tensors of a GGUF or safetensors file: NaN, scales that cannot be, zeros that were never
        written, data that are there twice.
    """
    report = FileReport(name_of(given), strict=strict)
    try:
        with use_source(given) as source:
            report.format = detect(source)
            keys = Keys() if keys is None else keys
            report.findings = _check(source, report.format, keys, one_shard, data, progress)
            report.findings += _named_wrongly(source, report.format)
            if report.format in ("gguf", "safetensors"):
                whole = not any(one.code == "vocabulary-only" for one in report.findings)
                report.data_read = data if whole else None
    except AtlasError as error:
        misuse = isinstance(error, InvalidParamError) and report.format != "json"  # or else wrong content
        report.readable = not misuse and not isinstance(error, (FileAccessError, NoSuchFileError))
        report.findings = [_as_finding(error)]
    return report


def _named_wrongly(source: Source, kind: Format | None) -> list[Finding]:
    """Return a warning if the file is whole and of another format than its name says."""
    named_as = by_name(source.path)
    if kind is None or named_as is None or named_as == kind:
        return []
    ending = os.path.splitext(source.name)[1]
    message = f"the name ends in {ending}, and the file is {KINDS[kind][0]}"
    return [Finding("name-misleads", "warning", message, "Programs that go by names will not read it.", 0)]


def _check(
    source: Source, kind: str | None, keys: Keys, one_shard: bool, data: bool, progress: Progress | None
) -> list[Finding]:
    if kind == "gguf":
        from atlas_kit.formats.gguf.check import check_gguf

        return check_gguf(source, deep=data, shards=not one_shard, progress=progress)
    if kind == "safetensors":
        from atlas_kit.formats.safetensors import check_safetensors

        return check_safetensors(source, deep=data, progress=progress)
    if kind == "npz":
        from atlas_kit.formats.npz import check_npz

        return check_npz(source)
    if kind == "json":
        from atlas_kit.operations.interchange import read_carrier

        read_carrier(source, kind)
        return []
    known = recognise(source) if kind is None or source.read_upto(1, 3) not in (b"TLS", b"ATL") else None
    if known is not None and known.name == "zeros" and kind == "atlas":
        known = None  # its entries may follow
    if kind == "atlas" and known is None:
        return _check_atlas(source, keys)
    if source.size == 0:
        empty = unknown_format(source)
        return [Finding("empty-file", "error", empty.message, offset=0, remedy=empty.remedy)]
    if is_dat(source):
        read_dat(source)  # raises where it is cut off
        message = "this is not a model but an importance matrix in the format from before GGUF"
        return [Finding("not-a-model", "note", message, "llama.cpp's quantiser reads it.", 0)]
    error = unknown_format(source)
    code = "unknown-format" if known is None else f"foreign-{known.name}"
    return [Finding(code, "error", error.message, error.hint or "", 0, remedy=error.remedy)]


def _check_atlas(source: Source, keys: Keys) -> list[Finding]:
    from atlas_kit.formats.atlas.check import check_atlas
    from atlas_kit.formats.opening import ask_if_encrypted, fitting_keys

    ask_if_encrypted(source, keys)
    keys = fitting_keys(source, keys)
    findings = check_atlas(source, **keys.options())
    return (
        findings if any(one.severity == "error" for one in findings) else findings + _episodes(source, keys)
    )


def _episodes(source: Source, keys: Keys) -> list[Finding]:
    """Return what is wrong with what was read and said in a file that is whole as a file."""
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.persistence.entry_keys import may_hold_episodes

    if source.read_upto(4, 1) == b"\3" and not keys.given:
        return []
    with MemoryFile.open(source, **keys.options()) as memory:
        if not may_hold_episodes(memory):
            return []
        from atlas_kit.operations.episodes import check_episodes

        return check_episodes(memory)


def _as_finding(error: AtlasError) -> Finding:
    code = "cannot-read"
    if isinstance(error, NoSuchFileError):
        code = "no-such-file"
    elif isinstance(error, (KeyRequiredError, WrongKeyError)):
        code = "wrong-key" if isinstance(error, WrongKeyError) else "key-required"
    return Finding(code, "error", error.message, error.hint or "", error.offset, error.key, error.remedy)
