"""atlas_kit: see, check, rescue, convert, shrink and compare the memory of a local language model.

Importing this package costs nothing: every public name is loaded when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit._version import __version__
from atlas_kit.lazy_names import lazy_names

if TYPE_CHECKING:
    from atlas_kit.errors import AtlasError, ErrorCode
    from atlas_kit.formats.atlas import DataType, Entry, MemoryFile
    from atlas_kit.formats.detect import detect, open_file
    from atlas_kit.formats.gguf import GGUFFile
    from atlas_kit.memory import Memory, MemoryConfig
    from atlas_kit.persistence.snapshot import load_memory, save_memory

_HOMES = {
    "AtlasError": "atlas_kit.errors",
    "DataType": "atlas_kit.formats.atlas",
    "Entry": "atlas_kit.formats.atlas",
    "ErrorCode": "atlas_kit.errors",
    "GGUFFile": "atlas_kit.formats.gguf",
    "Memory": "atlas_kit.memory",
    "MemoryConfig": "atlas_kit.memory",
    "MemoryFile": "atlas_kit.formats.atlas",
    "detect": "atlas_kit.formats.detect",
    "load_memory": "atlas_kit.persistence.snapshot",
    "open_file": "atlas_kit.formats.detect",
    "save_memory": "atlas_kit.persistence.snapshot",
}

__all__ = [
    "AtlasError",
    "DataType",
    "Entry",
    "ErrorCode",
    "GGUFFile",
    "Memory",
    "MemoryConfig",
    "MemoryFile",
    "__version__",
    "detect",
    "load_memory",
    "open_file",
    "save_memory",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES, "__version__")
