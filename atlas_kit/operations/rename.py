"""Give an entry of a memory file, or a metadata key of a model, another key."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs.json_text import named
from atlas_kit.errors import InvalidParamError
from atlas_kit.formats.detect import detect
from atlas_kit.formats.opening import edit_memory
from atlas_kit.operations import secrecy
from atlas_kit.operations.get import not_found
from atlas_kit.operations.inputs import unknown_format
from atlas_kit.storage.given import takes_source
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.gguf.edit import Change


@dataclass
class Renamed:
    """Which key is now called what, and whether an entry of the new key had to go for it."""

    path: str
    key: str
    new_key: str
    replaced: bool

    exit_code = 0

    def to_json(self) -> dict[str, Any]:
        """Return the result as JSON-ready data."""
        return {**named("path", self.path), **named("key", self.key), **named("new_key", self.new_key),
                "replaced": self.replaced}  # fmt: skip


@takes_source
def rename_key(
    source: Source, key: str, new_key: str, *, force: bool = False, backup: bool | int = False,
    keys: Keys | None = None,
) -> Renamed:  # fmt: skip
    """Rename a key; an entry keeps everything else.

    Parameters
    ----------
    force
        Replace an entry that has the new key.

    Raises
    ------
    KeyNotFoundError
        There is no such key.
    InvalidParamError
        The new key is taken, and ``force`` is off; or both are the same.
    """
    keys = Keys() if keys is None else keys
    kind = detect(source)
    if kind not in ("atlas", "gguf"):
        if kind is None:
            raise unknown_format(source)
        raise InvalidParamError(
            f"keys can be renamed in .atlas and GGUF files, and this is {kind}", path=source.path
        )
    if key == new_key:
        raise InvalidParamError("the new key is the old one", path=source.path, key=key)
    if kind == "gguf":
        secrecy.require_no_secret(keys, path=source.name)
        return _in_model(source, key, new_key, force, backup)
    with edit_memory(source, keys, backup=backup) as memory:
        if key not in memory:
            raise not_found(key, memory, source.name)
        taken = new_key in memory
        if taken and not force:
            raise _taken(source, new_key)
        if taken:
            memory.remove(new_key)
        memory.rename(key, new_key)
    return Renamed(source.name, key, new_key, taken)


def _in_model(source: Source, key: str, new_key: str, force: bool, backup: bool | int) -> Renamed:
    from atlas_kit.formats.gguf import Delete, GGUFFile, Rename, edit_metadata

    with GGUFFile.open(source, shards=False) as model:
        if key not in model.metadata:
            raise not_found(key, model.metadata, source.name)
        taken = new_key in model.metadata
    if taken and not force:
        raise _taken(source, new_key)
    changes: list[Change] = [Rename(key, new_key)]
    if taken:
        changes.insert(0, Delete(new_key))
    edit_metadata(source, changes, backup=backup)
    return Renamed(source.name, key, new_key, taken)


def _taken(source: Source, key: str) -> InvalidParamError:
    return InvalidParamError(
        "there is an entry of the new key already", path=source.path, key=key,
        hint="Remove it first, or have it replaced.",
    )  # fmt: skip


__all__ = ["Renamed", "rename_key"]
