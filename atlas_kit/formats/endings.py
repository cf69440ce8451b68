"""What a file's name promises by its ending, and that nothing else is written under it.

The one rule for all that is written: a name whose ending is known to mean something else is refused; endings that
mean nothing here, and names without one, are whoever's choice. Reads no file.
"""

from __future__ import annotations

import os

from atlas_kit.errors import InvalidParamError, Remedy
from atlas_kit.storage.urls import shown

#: What may be written: how it is called, and the endings that promise it, the usual one first.
KINDS: dict[str, tuple[str, tuple[str, ...]]] = {
    "atlas": ("a memory file", (".atlas",)),
    "gguf": ("a GGUF model", (".gguf", ".atlas-gguf")),
    "safetensors": ("a safetensors file", (".safetensors",)),
    "npz": ("an npz archive", (".npz", ".zip")),
    "npy": ("an npy array", (".npy",)),
    "bytes": ("a tensor's bytes alone", (".bin", ".raw", ".dat")),
    "json": ("JSON", (".json", ".txt")),
    "jsonl": ("JSON lines", (".jsonl", ".ndjson", ".json", ".txt")),
    "markdown": ("Markdown", (".md", ".markdown", ".txt")),
    "html": ("an HTML page", (".html", ".htm")),
    "sqlite": ("a SQLite database", (".sqlite", ".sqlite3", ".db")),
}
#: Endings of what is never written, but is known well enough to mislead.
OTHERS = frozenset({
    ".7z", ".bz2", ".ckpt", ".csv", ".doc", ".docx", ".gz", ".h5", ".hdf5",
    ".key", ".log", ".onnx", ".parquet", ".pdf", ".pickle", ".pkl", ".png", ".pt", ".pth", ".py",
    ".rar", ".tar", ".tgz", ".toml", ".tsv", ".xml", ".xz", ".yaml", ".yml", ".zst",
})  # fmt: skip
_KNOWN = OTHERS | {end for kind, (_, ends) in KINDS.items() if kind != "bytes" for end in ends}


def ending_of(path: str | os.PathLike[str]) -> str:
    """Return the ending of a name in lower case, that of the file itself for one of its backups."""
    return os.path.splitext(os.fsdecode(path).lower().removesuffix(".bak"))[1]


def require_ending(path: object, kind: str) -> None:
    """Refuse to write a kind of file under a name that promises another; what is no path has no name.

    Raises
    ------
    InvalidParamError
        The name's ending means something else.
    """
    if not isinstance(path, (str, os.PathLike)):
        return
    what, fitting = KINDS[kind]
    ending = ending_of(os.fsdecode(path))
    if ending in fitting or ending not in _KNOWN:
        return
    raise InvalidParamError(
        f"the name ends in {ending}, and {what} would be written",
        path=shown(os.fsdecode(path)), remedy=Remedy("fit-ending", ending=fitting[0]),
    )  # fmt: skip


__all__ = ["KINDS", "ending_of", "require_ending"]
