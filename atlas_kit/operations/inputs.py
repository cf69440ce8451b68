"""What every operation is given: a file by path, by content or opened already, and the keys that open encrypted ones.

``open_given`` hides the difference between formats where a command does not care: JSON documents,
safetensors and npz files come back as memory files, like ``.atlas`` files do.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import (
    AtlasError,
    InvalidParamError,
    MagicMismatchError,
    NoSuchFileError,
    Remedy,
)
from atlas_kit.formats.detect import detect
from atlas_kit.formats.endings import KINDS, require_ending
from atlas_kit.formats.foreign import foreign_error
from atlas_kit.formats.opening import open_memory
from atlas_kit.storage.given import Given, open_source, takes_source, use_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source, StrPath

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import MemoryFile
    from atlas_kit.formats.gguf import GGUFFile


class Opened:
    """An input that was recognised and opened.

    ``kind`` is atlas, gguf, safetensors, npz or json; ``recorded`` the ``.atlas`` version that a file of the
    last three kinds says it came from.
    """

    def __init__(self, source: Source, kind: str, file: Any, recorded: int | None = None) -> None:
        self.source = source
        self.name = source.name
        self.kind = kind
        self.file = file
        self.recorded = recorded
        self.owns_source = True

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
        """Release the file; a source that was open before stays so."""
        self.file.close()
        if self.owns_source:
            self.source.close()

    def __enter__(self) -> Opened:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def open_given(given: Given, keys: Keys | None = None, *, one_shard: bool = False) -> Opened:
    """Open a file of any format that holds entries or tensors; with ``one_shard`` no more of a model than this file.

    Raises
    ------
    MagicMismatchError
        It is none of them.
    """
    source = open_source(given)
    try:
        opened = _open(source, Keys() if keys is None else keys, one_shard)
    except BaseException:
        if source is not given:
            source.close()
        raise
    opened.owns_source = source is not given
    return opened


def _open(source: Source, keys: Keys, one_shard: bool) -> Opened:
    kind = detect(source)
    if kind == "atlas":
        return Opened(source, kind, open_memory(source, keys))
    if kind == "gguf":
        from atlas_kit.formats.gguf import GGUFFile

        return Opened(source, kind, GGUFFile.open(source, shards=not one_shard))
    if kind in ("json", "safetensors", "npz"):
        from atlas_kit.operations.interchange import read_carrier

        try:
            return Opened(source, kind, *read_carrier(source, kind))
        except AtlasError as error:  # what only a key or an array is wrong with does not know the file
            error.path = error.path or source.path
            raise
    raise unknown_format(source)


@takes_source
def require_kind(source: Source, kinds: Sequence[str], only: str) -> str:
    """Return the format of a file, which must be one of ``kinds``; ``only`` says so, as a clause.

    Raises
    ------
    MagicMismatchError
        No reader recognises the file.
    InvalidParamError
        It is of another format.
    """
    kind = detect(source)
    if kind is None:
        raise unknown_format(source)
    if kind not in kinds:
        can = "atlas" in kinds and kind != "gguf"
        raise InvalidParamError(
            f"{only}, and this is {KINDS[kind][0]}", path=source.name,
            hint="Convert it to .atlas first." if can else None,
        )  # fmt: skip
    return kind


@takes_source
def unknown_format(source: Source) -> MagicMismatchError:
    """Return the error for a file that no reader recognises."""
    if source.size == 0:
        if source.path is None:
            return MagicMismatchError("nothing came through standard input", path=source.name)
        return MagicMismatchError("the file is empty", path=source.name, remedy=Remedy("recover"))
    known = foreign_error(source)
    if known is not None:
        known.path, known.offset = source.name, None
        return known
    return MagicMismatchError(
        "this is not a file of a known format",
        path=source.name,
        hint="Known are .atlas, GGUF, safetensors, npz and the JSON that .atlas files are converted to.",
        remedy=Remedy("repair-if-damaged"),
    )


def is_new(path: StrPath, any_name: bool) -> bool:
    """Tell whether a memory file is to be made: there is none, and it is called ``*.atlas`` unless ``any_name``.

    Raises
    ------
    NoSuchFileError
        There is none, and it is not called so; files of similar names are the hint.
    InvalidParamError
        Its name promises another kind of file.
    """
    if os.path.lexists(path):
        return False
    if any_name or os.fsdecode(path).lower().endswith(".atlas"):
        require_ending(path, "atlas")
        return True
    import difflib

    folder, name = os.path.split(os.fsdecode(path))
    close: list[str] = []
    with contextlib.suppress(OSError):
        close = difflib.get_close_matches(name, os.listdir(folder or "."), 3)
    hint = f"Similar: {', '.join(os.path.join(folder, one) for one in close)}." if close else None
    raise NoSuchFileError("there is no such file", path=path, hint=hint, remedy=Remedy("new-file"))


@contextlib.contextmanager
def memory_to_change(path: StrPath, any_name: bool, only: str) -> Iterator[tuple[Given, bool]]:
    """Yield a memory file that is to be changed, opened, and False; or the path of one to be made, and True.

    ``any_name`` and ``only`` are what ``is_new`` and ``require_kind`` take, and these are the errors.
    """
    if is_new(path, any_name):
        yield path, True
        return
    with use_source(path) as source:
        require_kind(source, ["atlas"], only)
        yield source, False


def require_metadata(model: GGUFFile, keys: Iterable[str]) -> None:
    """Refuse to change metadata of a shard that has none of the model's: only the first one's count.

    Raises
    ------
    InvalidParamError
    """
    from atlas_kit.formats.gguf.shards import SPLIT_KEYS, shard_count, shard_paths

    number = model.get("split.no")
    count = shard_count(model.metadata)
    if count < 2 or number in (0, None) or all(key in SPLIT_KEYS for key in keys):
        return
    first = shard_paths(model.path or "", count)[0]
    raise InvalidParamError(
        "this is not the first shard of the model, and only the first one's metadata count",
        path=model.path, remedy=Remedy("first-shard", first=str(first)),
    )  # fmt: skip
