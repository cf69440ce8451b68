"""What is intact of a damaged memory file, to be looked at as if it were one. Writes nothing; ``rescue`` does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from atlas_kit.formats.atlas.file import MemoryFile
from atlas_kit.formats.atlas.rescue import plan_of
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.crypto import Cipher
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.formats.atlas.rescue_plan import Plan


class _Remains:
    """The entries of a rescue plan as a store."""

    def __init__(self, source: Source, plan: Plan) -> None:
        self.source = source
        self.info = plan.info
        self.cipher: Cipher | None = plan.cipher
        self._entries = {key: entry for key, (entry, _) in plan.entries.items()}

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> Entry | None:
        return self._entries.get(key)

    def entries(self) -> Iterator[Entry]:
        return iter(self._entries.values())

    def keys(self) -> Iterator[str]:
        return iter(self._entries)


def open_remains(
    source: Source, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> MemoryFile:
    """Return the entries that ``rescue_atlas`` would save as a memory file to be read, none where nothing is left.

    Raises
    ------
    MagicMismatchError, KeyRequiredError, WrongKeyError
        As ``rescue_atlas`` does.
    """
    return MemoryFile.of_store(_Remains(source, plan_of(source, passphrase=passphrase, key=key)))
