r"""Lists of hashes as ``sha256sum`` writes and checks them: one line a file, names as bytes.

A line is the hash in hexadecimal, two spaces (a space and ``*`` for what some systems call binary), and the name. A
name with a backslash or an end of line has ``\\``, ``\n`` and ``\r`` in it, and a backslash before the whole line.
Lines of BSD and of openssl (``SHA256 (name) = ...``) are read, too, and so is what Windows makes of such a file.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, field
from typing import Any

from atlas_kit.codecs.json_text import named, to_bytes
from atlas_kit.errors import AtlasError, FileCorruptError
from atlas_kit.operations.hash import new_digest
from atlas_kit.storage.given import Progress, takes_source
from atlas_kit.storage.source import Source, open_path

#: Longer files are no lists of hashes.
MOST = 256 << 20
#: Which hashes have how many hexadecimal digits, where neither a line nor the caller says which it is: the usual one
#: first. The files tell: ``b2sum`` and ``sha512sum`` write lists that look the same.
_BY_LENGTH = {32: ("md5", "xxh3-128"), 40: ("sha1",), 64: ("sha256",), 128: ("sha512", "blake2b")}
_BY_TAG = {
    "MD5": "md5",
    "SHA1": "sha1",
    "SHA256": "sha256",
    "SHA512": "sha512",
    "BLAKE2B": "blake2b",
    "XXH3": "xxh3-64",
    "XXH128": "xxh3-128",
}
_PLAIN = re.compile(rb"[ \t]*(\\?)([0-9A-Fa-f]{16,128})[ \t][ *]?(.+)", re.DOTALL)
_TAGGED = re.compile(rb"[ \t]*(\\?)([A-Za-z0-9-]+) ?\((.+)\) ?= ?([0-9A-Fa-f]{16,128})[ \t]*", re.DOTALL)
_ESCAPES = {b"\\\\": b"\\", b"\\n": b"\n", b"\\r": b"\r"}


@dataclass(frozen=True)
class Listed:
    """One line of a list: a file's name, its hash, and which hash that is, or which ``others`` it may be."""

    name: str
    algorithm: str
    digest: str
    others: tuple[str, ...] = field(default=(), compare=False)


@dataclass
class Checked:
    """A file of a list; ``problem`` says why it could not be read, and is empty where it could."""

    name: str
    ok: bool
    problem: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the file as JSON-ready data."""
        return {**named("name", self.name), "ok": self.ok, "problem": self.problem or None}


@dataclass
class ManifestCheck:
    """What became of the files of a list; ``malformed`` lines were left out, ``ignored`` files are not there."""

    path: str
    files: list[Checked] = field(default_factory=list)
    malformed: int = 0
    ignored: int = 0
    strict: bool = False
    note: str = ""

    @property
    def different(self) -> int:
        """Files whose hash is another one."""
        return sum(not file.ok and not file.problem for file in self.files)

    @property
    def unread(self) -> int:
        """Files that could not be read."""
        return sum(bool(file.problem) for file in self.files)

    @property
    def exit_code(self) -> int:
        """Return 1 where a file differs or cannot be read (``strict``: or a line is malformed), or none was checked."""
        wrong = self.different or self.unread or not self.files or (self.strict and self.malformed)
        return int(bool(wrong))

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {
            **named("path", self.path),
            "ok": not self.exit_code,
            "files": [file.to_json() for file in self.files],
            "malformed": self.malformed,
            "ignored": self.ignored,
        }


def manifest_line(name: str, digest: str) -> bytes:
    """Return the line for a file, as coreutils write it."""
    raw = to_bytes(name)
    escaped = raw.replace(b"\\", b"\\\\").replace(b"\n", b"\\n").replace(b"\r", b"\\r")
    return (b"" if escaped == raw else b"\\") + digest.encode() + b"  " + escaped + b"\n"


@takes_source
def read_manifest(source: Source, algorithm: str | None = None) -> tuple[list[Listed], int]:
    """Return the files of a list, and how many lines are not of its form.

    Parameters
    ----------
    algorithm
        Which hash it is where a line does not say; else it follows from how long it is.

    Raises
    ------
    FileCorruptError
        No line is of that form.
    """
    listed, malformed = [], 0
    for line in _lines(source):
        if not line.strip() or line.startswith(b"#"):
            continue
        found = _parse(line, algorithm)
        if found is None:
            malformed += 1
        else:
            listed.append(found)
    if not listed:
        raise FileCorruptError(
            "this is no list of hashes: no line has a hash and a name", path=source.name,
            hint="Such a list is what sha256sum prints.",
        )  # fmt: skip
    return listed, malformed


def _lines(source: Source) -> list[bytes]:
    data = source.read(0, min(source.size, MOST))
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):  # a shell of Windows
        data = data.decode("utf-16", "replace").encode()
    data = data.removeprefix(b"\xef\xbb\xbf")
    return [line.removesuffix(b"\r") for line in data.split(b"\n")]


def _parse(line: bytes, algorithm: str | None) -> Listed | None:
    tagged = _TAGGED.fullmatch(line)
    kind, others = algorithm, tuple[str, ...]()
    if tagged is not None:
        escaped, tag, name, digest = tagged.groups()
        kind = _BY_TAG.get(tag.decode().upper().replace("-", ""))
        if kind is None:
            return None
    else:
        plain = _PLAIN.fullmatch(line)
        if plain is None:
            return None
        escaped, digest, name = plain.groups()
        kinds = (algorithm,) if algorithm else _BY_LENGTH.get(len(digest), (None,))
        kind, others = kinds[0], tuple(filter(None, kinds[1:]))
    if kind is None or len(digest) != 2 * new_digest(kind).digest_size:
        return None
    if escaped:
        if re.search(rb"\\(?![\\nr])", re.sub(rb"\\\\", b"", name)):
            return None
        name = re.sub(rb"\\[\\nr]", lambda match: _ESCAPES[match[0]], name)
    if b"\0" in name:
        return None
    return Listed(os.fsdecode(name), kind, digest.decode().lower(), others)


@takes_source
def check_manifest(
    source: Source, algorithm: str | None = None, *, ignore_missing: bool = False, strict: bool = False,
    progress: Progress | None = None,
) -> ManifestCheck:  # fmt: skip
    """Hash the files of a list, as their names say from the current directory, and compare.

    Raises
    ------
    FileCorruptError
        It is no list of hashes.
    """
    listed, malformed = read_manifest(source, algorithm)
    result = ManifestCheck(source.name, malformed=malformed, strict=strict)
    known: dict[str, str] = {}
    for number, one in enumerate(listed):
        if ignore_missing and not os.path.lexists(one.name):
            result.ignored += 1
            continue
        result.files.append(_check(one, known))
        if progress:
            progress("checking files", number + 1, len(listed))
    result.note = _which(listed, known, result)
    folder = os.path.dirname(source.path or "")
    if folder and result.files and result.unread == len(result.files):
        beside = [one for one in listed if os.path.lexists(os.path.join(folder, one.name))]
        if beside:
            result.note = f"names are looked for from the current directory, and the files lie in {folder}"
    return result


def _check(one: Listed, known: dict[str, str]) -> Checked:
    """Hash one file; ``known`` are the hashes that lists of the usual ones turned out to be."""
    kinds = [known[one.algorithm]] if one.algorithm in known else [one.algorithm, *one.others]
    digests = {kind: new_digest(kind) for kind in kinds}
    try:
        with open_path(one.name) as file:
            for chunk in file.chunks(0, file.size):
                for digest in digests.values():
                    digest.update(chunk)
    except AtlasError as error:
        return Checked(one.name, False, error.message)
    for kind, digest in digests.items():
        if str(digest.hexdigest()) == one.digest:
            if one.others:
                known[one.algorithm] = kind
            return Checked(one.name, True)
    return Checked(one.name, False)


def _which(listed: list[Listed], known: dict[str, str], result: ManifestCheck) -> str:
    """Say which hash the lines are, where that is not the usual one or nothing shows it."""
    for one in listed:
        if not one.others or known.get(one.algorithm) == one.algorithm:
            continue
        if one.algorithm in known:
            return f"the hashes are of {known[one.algorithm]}, which the lines do not say"
        if result.different:
            tried = " and ".join((one.algorithm, *one.others))
            return f"the lines do not say which hash they are, and {tried} were tried"
    return ""
