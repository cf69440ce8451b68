"""Codec 2: a zlib stream (RFC 1950)."""

from __future__ import annotations

import zlib
from typing import TYPE_CHECKING

from atlas_kit.errors import FileCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_LEVEL = 6


def encode_chunks(chunks: Iterable[bytes], level: int | None) -> Iterator[bytes]:
    """Compress a stream of chunks to one stream."""
    encoder = zlib.compressobj(DEFAULT_LEVEL if level is None else level)
    for chunk in chunks:
        yield encoder.compress(chunk)
    yield encoder.flush()


def decode_chunks(chunks: Iterable[bytes], step: int) -> Iterator[bytes]:
    """Decompress a stream in pieces of at most ``step`` bytes."""
    decoder = zlib.decompressobj()
    try:
        for chunk in chunks:
            if decoder.eof:
                raise FileCorruptError("there are bytes after the end of the zlib stream")
            piece = decoder.decompress(chunk, step)
            while piece:
                yield piece
                piece = decoder.decompress(decoder.unconsumed_tail, step)
            if decoder.unused_data:
                raise FileCorruptError("there are bytes after the end of the zlib stream")
    except zlib.error as error:
        raise FileCorruptError("the zlib data is damaged") from error
    if not decoder.eof:
        raise FileCorruptError("the zlib data is cut off")
