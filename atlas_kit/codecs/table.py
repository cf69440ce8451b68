"""The lookup table of codecs and filters, and decoding with a bound on time and memory."""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.codecs import shuffle
from atlas_kit.errors import FileCorruptError, InvalidParamError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

#: Size of the pieces in which payloads are coded.
STEP = 1 << 20


@dataclass(frozen=True)
class Codec:
    """One row: the number in the file, the name, the largest ratio the method can reach, what it is."""

    id: int
    name: str
    max_ratio: int
    note: str
    levels: range
    module: str

    @property
    def _code(self) -> Any:
        return importlib.import_module(f"atlas_kit.codecs.{self.module}")

    def encode_chunks(self, chunks: Iterable[bytes], level: int | None = None) -> Iterator[bytes]:
        """Encode a stream in bounded memory."""
        if level is not None and self.levels and level not in self.levels:
            low, high = self.levels[0], self.levels[-1]
            raise InvalidParamError(f"{self.name} has no level {level}", hint=f"Use {low} to {high}.")
        encoded: Iterator[bytes] = self._code.encode_chunks(chunks, level)
        return encoded

    def encode(self, data: bytes, level: int | None = None) -> bytes:
        """Encode a whole payload."""
        return b"".join(self.encode_chunks([data], level))

    def decode_chunks(self, chunks: Iterable[bytes], size: int) -> Iterator[bytes]:
        """Decode a stream to exactly ``size`` bytes, in pieces; stop at the first byte too many.

        Raises
        ------
        FileCorruptError
            The stream is damaged, or is not ``size`` bytes long.
        """
        total = 0
        for piece in self._code.decode_chunks(chunks, STEP):
            total += len(piece)
            if total > size:
                raise FileCorruptError(
                    f"the {self.name} data unpacks to more than the {size} bytes it claims"
                )
            yield piece
        if total != size:
            raise FileCorruptError(f"the {self.name} data unpacks to {total} bytes, not the {size} it claims")

    def plausible(self, stored_size: int, size: int) -> bool:
        """Tell whether ``stored_size`` bytes can unpack to ``size`` at all."""
        if self.max_ratio == 1:
            return stored_size == size
        return size <= (stored_size + 64) * self.max_ratio


@dataclass(frozen=True)
class Filter:
    """One row of the filters: applied to the payload before its codec."""

    id: int
    name: str
    note: str


# fmt: off
CODECS = (
    Codec(0, "none",      1, "the payload as it is",         range(0),      "none"),
    Codec(1, "lz4",     255, "an LZ4 frame",                 range(-16, 17), "lz4_"),
    Codec(2, "zlib",  1_032, "a zlib stream (RFC 1950)",     range(10),     "zlib_"),
    Codec(3, "zstd", 43_691, "a Zstandard frame (RFC 8878)", range(-7, 23), "zstd_"),
)
FILTERS = (
    Filter(0, "none",    "no filter"),
    Filter(1, "shuffle", "byte shuffle of elements of `item_size` bytes"),
)
# fmt: on

BY_ID = {codec.id: codec for codec in CODECS}
BY_NAME = {codec.name: codec for codec in CODECS}
FILTER_NAMES = {row.id: row.name for row in FILTERS}


def by_name(name: str) -> Codec:
    """Return the codec of that name, or say which there are."""
    try:
        return BY_NAME[name]
    except KeyError:
        raise InvalidParamError(f'there is no codec "{name}"', hint=f"Use {', '.join(BY_NAME)}.") from None


def encode_stream(
    chunks: Iterable[bytes], codec: Codec, *, level: int | None = None, shuffle_size: int = 0
) -> Iterator[bytes]:
    """Filter (when ``shuffle_size`` > 1) and encode a stream."""
    if shuffle_size > 1:
        chunks = shuffle.shuffle_chunks(chunks, shuffle_size)
    return codec.encode_chunks(chunks, level)


def decode_stream(
    chunks: Iterable[bytes], codec: Codec, size: int, *, shuffle_size: int = 0
) -> Iterator[bytes]:
    """Decode a stream to exactly ``size`` bytes and undo its filter (when ``shuffle_size`` > 1)."""
    pieces = codec.decode_chunks(chunks, size)
    return shuffle.unshuffle_chunks(pieces, shuffle_size) if shuffle_size > 1 else pieces
