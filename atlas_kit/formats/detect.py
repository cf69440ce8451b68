"""Which format a file is in: by its first bytes, then by its name. Imports no format."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, Literal

from atlas_kit.errors import MagicMismatchError
from atlas_kit.formats.foreign import recognise
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.source import Source, StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.gguf import GGUFFile

Format = Literal["atlas", "gguf", "safetensors", "npz", "json"]

#: What a memory file of version 3 starts with: the mark and the version.
_ENCRYPTED = b"ATLS\x03\0\0\0"
#: Suffixes, for files whose content does not tell (damaged, empty, or not there yet).
SUFFIXES: dict[str, Format] = {
    ".atlas": "atlas",
    ".gguf": "gguf",
    ".safetensors": "safetensors",
    ".npz": "npz",
    ".json": "json",
}


def detect(given: Given) -> Format | None:
    """Return the format of a file (or of the bytes of one), ``None`` when nothing tells.

    Raises
    ------
    NoSuchFileError, FileAccessError
        The file cannot be read.
    """
    with use_source(given) as source:
        found = by_content(source.read_upto(0, 64), source.size)
        if found == "npz" and by_name(source.path) != "npz" and not _holds_arrays(source):
            return None
        if found in ("json", None):  # a page or an error that was saved under a model's name is none
            known = recognise(source)
            if known is not None and known.lost:
                return None
        return found or by_name(source.path)


def is_encrypted(given: Given) -> bool | None:
    """Tell whether a memory file is encrypted, by its first bytes; ``None`` for what is no memory file.

    Raises
    ------
    NoSuchFileError, FileAccessError
        The file cannot be read.
    """
    with use_source(given) as source:
        start = source.read_upto(0, 8)
    return start == _ENCRYPTED if start[:4] == _ENCRYPTED[:4] else None


def _holds_arrays(source: Source) -> bool:
    """Tell whether the first entry of a zip archive is a NumPy array."""
    head = source.read_upto(0, 1 << 10)
    return head[30 : 30 + int.from_bytes(head[26:28], "little")].endswith(b".npy")


def by_content(head: bytes, size: int) -> Format | None:
    """Return the format that a file's first bytes (64 are enough) show."""
    if head[:4] == b"ATLS" or head[:8] in (b"\x89ATLE\r\n\x1a", b"\x89ATLI\r\n\x1a"):
        return "atlas"
    if head[:4] == b"GGUF":
        return "gguf"
    if head[:4] == b"PK\x03\x04":
        return "npz"
    length = int.from_bytes(head[:8], "little")
    if head[8:9] == b"{" and 2 <= length <= size - 8:
        return "safetensors"
    if head.lstrip()[:1] in (b"{", b"["):
        return "json"
    return None


def by_name(path: StrPath | None) -> Format | None:
    """Return the format that a file's name says, backups (``.atlas.bak``) included."""
    name = os.fsdecode(path or "").lower()
    if name.endswith(".bak"):
        name = name[: -len(".bak")]
    return SUFFIXES.get(os.path.splitext(name)[1])


def open_file(path: StrPath, **secret: Any) -> MemoryFile | GGUFFile:
    """Open a memory file or a model file, whichever it is.

    Raises
    ------
    MagicMismatchError
        It is neither.
    """
    found = detect(path)
    if found == "gguf":
        from atlas_kit.formats.gguf import GGUFFile

        return GGUFFile.open(path)
    if found == "atlas":
        from atlas_kit.formats.atlas import MemoryFile

        return MemoryFile.open(path, **secret)
    raise MagicMismatchError("this is neither a .atlas nor a GGUF file", path=path, offset=0)
