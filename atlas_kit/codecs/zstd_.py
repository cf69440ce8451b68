"""Codec 3: one Zstandard frame (RFC 8878)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from atlas_kit.errors import FileCorruptError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

DEFAULT_LEVEL = 3

#: A frame may ask its reader for a large window: refuse more than this.
MAX_WINDOW = 1 << 27


def encode_chunks(chunks: Iterable[bytes], level: int | None) -> Iterator[bytes]:
    """Compress a stream of chunks to one frame."""
    import zstandard

    encoder = zstandard.ZstdCompressor(level=DEFAULT_LEVEL if level is None else level).compressobj()
    for chunk in chunks:
        yield encoder.compress(chunk)
    yield encoder.flush()


def decode_chunks(chunks: Iterable[bytes], step: int) -> Iterator[bytes]:
    """Decompress a frame in pieces of at most ``step`` bytes."""
    import zstandard

    source: Any = _Stream(chunks)
    try:
        with zstandard.ZstdDecompressor(max_window_size=MAX_WINDOW).stream_reader(source) as reader:
            while piece := reader.read(step):
                yield piece
    except zstandard.ZstdError as error:
        raise FileCorruptError("the zstd data is damaged") from error


class _Stream:
    """A file-like object over chunks, which is what the reader takes."""

    def __init__(self, chunks: Iterable[bytes]) -> None:
        self._chunks = iter(chunks)

    def read(self, size: int) -> bytes:
        return next(self._chunks, b"")
