"""The checksums of the format: FNV-1a/32 (and its impostor, CRC-32) in version 1, XXH3-64 afterwards."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING, Any

from fnv_hash_fast import fnv1a_32
from xxhash import xxh3_64, xxh3_64_intdigest

if TYPE_CHECKING:
    from collections.abc import Iterable


def fnv1a(data: bytes) -> int:
    """Return FNV-1a/32, which the C library calls ``atlas_crc32``."""
    return int(fnv1a_32(data))


def crc32(data: bytes) -> int:
    """Return CRC-32, which a writer stores who believed the name (dialect ``v1-crc32``)."""
    return zlib.crc32(data)


def xxh3(data: Any, seed: int = 0) -> int:
    """Return XXH3-64 of a buffer."""
    return xxh3_64_intdigest(data, seed)


def xxh3_of_chunks(chunks: Iterable[bytes]) -> int:
    """Return XXH3-64 of a stream."""
    digest = xxh3_64()
    for chunk in chunks:
        digest.update(chunk)
    return digest.intdigest()


__all__ = ["crc32", "fnv1a", "xxh3", "xxh3_64", "xxh3_of_chunks"]
