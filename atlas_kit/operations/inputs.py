"""What every operation is given: a file by path or by content, and the keys that open encrypted ones.

``open_given`` hides the difference between formats where a command does not care: JSON documents,
safetensors and npz files come back as memory files, like ``.atlas`` files do.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    InvalidParamError,
    MagicMismatchError,
    Remedy,
)
from atlas_kit.formats.detect import detect
from atlas_kit.formats.opening import open_memory
from atlas_kit.storage.given import Given, name_of, size_of
from atlas_kit.storage.keys import Keys

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.gguf import GGUFFile


class Opened:
    """An input that was recognised and opened.

    ``kind`` is atlas, gguf, safetensors, npz or json; ``recorded`` the ``.atlas`` version that a file of the
    last three kinds says it came from.
    """

    def __init__(self, name: str, kind: str, file: Any, recorded: int | None = None) -> None:
        self.name = name
        self.kind = kind
        self.file = file
        self.recorded = recorded

    @property
    def memory(self) -> MemoryFile:
        """Return the file as a memory file, or say that it is a model."""
        if self.kind == "gguf":
            raise InvalidParamError(
                "this is a GGUF model file, and the command works on memory files", path=self.name
            )
        memory: MemoryFile = self.file
        return memory

    @property
    def gguf(self) -> GGUFFile:
        """Return the file as a model file."""
        model: GGUFFile = self.file
        return model

    def close(self) -> None:
        """Release the file."""
        self.file.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_given(given: Given, keys: Keys | None = None) -> Opened:
    """Open a file of any format that holds entries or tensors.

    Raises
    ------
    MagicMismatchError
        It is none of them.
    """
    keys = keys or Keys()
    kind, name = detect(given), name_of(given)
    if kind == "atlas":
        return Opened(name, kind, open_memory(given, keys))
    if kind == "gguf":
        from atlas_kit.formats.gguf import GGUFFile

        model = GGUFFile.from_bytes(given) if isinstance(given, bytes) else GGUFFile.open(given)
        return Opened(name, kind, model)
    if kind in ("json", "safetensors", "npz"):
        from atlas_kit.operations.interchange import read_carrier

        try:
            return Opened(name, kind, *read_carrier(given, kind))
        except AtlasError as error:  # what only a key or an array is wrong with does not know the file
            error.path = error.path or (None if isinstance(given, bytes) else name)
            raise
    raise unknown_format(given)


def unknown_format(given: Given) -> MagicMismatchError:
    """Return the error for a file that no reader recognises."""
    if size_of(given) == 0:
        return MagicMismatchError("the file is empty", path=name_of(given))
    return MagicMismatchError(
        "this is not a file of a known format",
        path=name_of(given),
        hint="Known are .atlas, GGUF, safetensors, npz and the JSON that .atlas files are converted to.",
        remedy=Remedy("repair-if-damaged"),
    )
