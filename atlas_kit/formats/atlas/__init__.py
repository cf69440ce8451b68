"""The `.atlas` memory file, versions 1 to 3: ``MemoryFile`` and its parts. See ``formats/atlas.md``."""

from atlas_kit.formats.atlas.entry import Entry
from atlas_kit.formats.atlas.file import MemoryFile
from atlas_kit.formats.atlas.tables import DataType

__all__ = ["DataType", "Entry", "MemoryFile"]
