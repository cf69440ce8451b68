"""What a memory file on disk offers to ``MemoryFile``, whatever its version."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from atlas_kit.errors import InvalidParamError

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.formats.atlas.crypto import Cipher
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.formats.findings import Finding
    from atlas_kit.storage.source import Source


@dataclass
class Info:
    """What a header says, in the words of all versions."""

    version: int
    dialect: str
    created: int = 0
    modified: int = 0
    model_hash: bytes = bytes(32)
    reserved: bytes = bytes(32)
    total_size: int = 0
    file_flags: int = 0
    generation: int = 0
    garbage: int = 0
    warnings: list[Finding] = field(default_factory=list)


class Store(Protocol):
    """A file opened for reading: its entries by key and in order."""

    source: Source
    info: Info

    @property
    def cipher(self) -> Cipher | None:
        """The keys of a version 3 file."""
        ...

    def __len__(self) -> int: ...

    def find(self, key: str) -> Entry | None:
        """Return the entry of that key."""
        ...

    def entries(self) -> Iterator[Entry]:
        """Yield every entry in order."""
        ...

    def keys(self) -> Iterator[str]:
        """Yield every key in order."""
        ...


def encode_key(key: str) -> bytes:
    """Return a key's bytes (surrogate escapes become the bytes that they stand for)."""
    try:
        return key.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise InvalidParamError("the key holds half a surrogate pair, which has no bytes", key=key) from None


def canonical_key(key: str) -> str:
    """Return the one spelling of a key: escaped bytes that are UTF-8 together become their character."""
    return key if key.isascii() else decode_key(encode_key(key))


def decode_key(raw: bytes) -> str:
    """Return a key as text, losslessly."""
    return raw.decode("utf-8", "surrogateescape")
