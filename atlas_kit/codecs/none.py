"""Codec 0: the payload as it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def encode_chunks(chunks: Iterable[bytes], level: int | None) -> Iterator[bytes]:
    """Pass the chunks through."""
    yield from chunks


def decode_chunks(chunks: Iterable[bytes], step: int) -> Iterator[bytes]:
    """Pass the chunks through."""
    yield from chunks
