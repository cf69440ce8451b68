"""Codecs and filters: whatever goes in comes out, in bounded memory; damage and bombs are our errors."""

from __future__ import annotations

import contextlib
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import payloads

from atlas_kit.codecs import shuffle, table
from atlas_kit.errors import AtlasError, FileCorruptError, InvalidParamError

COMPRESSING = [codec for codec in table.CODECS if codec.id]
PIECES = st.integers(1, 70_000)


def cut(data: bytes, size: int) -> list[bytes]:
    return [data[i : i + size] for i in range(0, len(data), size)]


@pytest.mark.parametrize("codec", table.CODECS, ids=lambda c: c.name)
@given(data=payloads(), into=PIECES, out=PIECES, shuffle_size=st.sampled_from((0, 1, 2, 4, 8, 255)))
def test_round_trip(codec: table.Codec, data: bytes, into: int, out: int, shuffle_size: int) -> None:
    stored = b"".join(table.encode_stream(cut(data, into), codec, shuffle_size=shuffle_size))
    back = table.decode_stream(cut(stored, out), codec, len(data), shuffle_size=shuffle_size)
    assert b"".join(back) == data
    assert codec.plausible(len(stored), len(data))


@pytest.mark.slow
@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
def test_levels(codec: table.Codec) -> None:
    data = b"the same words over and over, " * 500
    for level in codec.levels:
        stored = codec.encode(data, level)
        assert b"".join(codec.decode_chunks([stored], len(data))) == data
    for level in (codec.levels[0] - 1, codec.levels[-1] + 1):
        with pytest.raises(InvalidParamError, match="no level"):
            codec.encode(data, level)


@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
@given(data=payloads(min_size=1), where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit(codec: table.Codec, data: bytes, where: float, bit: int) -> None:
    """A codec need not notice (the checksum does); only our errors and the right size come out."""
    stored = bytearray(codec.encode(data))
    stored[int(where * len(stored))] ^= 1 << bit
    with contextlib.suppress(AtlasError):
        assert len(b"".join(codec.decode_chunks([bytes(stored)], len(data)))) == len(data)


@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
@pytest.mark.parametrize("chunk", [1, 7, 1 << 20])
def test_cut_off_and_followed_by_more(codec: table.Codec, chunk: int) -> None:
    data = np.random.default_rng(1).bytes(3000) + bytes(3000)
    stored = codec.encode(data)
    for bad in (b"", stored[:1], stored[: len(stored) // 2], stored[:-1], stored + b"x", stored + stored):
        with pytest.raises(FileCorruptError):
            b"".join(codec.decode_chunks(cut(bad, chunk), len(data)))


@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
@pytest.mark.parametrize("claim", [0, 5999, 6001, 10**15])
def test_another_size_than_claimed(codec: table.Codec, claim: int) -> None:
    stored = codec.encode(bytes(6000))
    with pytest.raises(FileCorruptError, match="claims"):
        b"".join(codec.decode_chunks([stored], claim))


@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
def test_a_bomb_is_stopped_early(codec: table.Codec) -> None:
    stored = codec.encode(bytes(200_000_000))
    tracemalloc.start()
    try:
        with pytest.raises(FileCorruptError):
            for _ in codec.decode_chunks([stored], 1000):
                pass
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 8 * table.STEP + 2 * len(stored)


@pytest.mark.slow
@pytest.mark.parametrize("codec", COMPRESSING, ids=lambda c: c.name)
def test_max_ratio_is_no_exaggeration(codec: table.Codec) -> None:
    for size in (1, 1000, 1 << 20, 1 << 27):
        best = min(len(codec.encode(bytes(size), level)) for level in (codec.levels[-1], None))
        assert codec.plausible(best, size)


def test_shuffle_by_hand() -> None:
    """The example of the specification: first bytes, second bytes, and what is left."""
    assert b"".join(shuffle.shuffle_chunks([b"ABabCDcdx"], 4)) == b"ACBDacbdx"
    assert b"".join(shuffle.unshuffle_chunks([b"ACBDacbdx"], 4)) == b"ABabCDcdx"


def test_shuffle_works_in_blocks() -> None:
    size = shuffle.BLOCK * 2
    data = np.arange(shuffle.BLOCK + 3, dtype="<u2").tobytes()
    shuffled = b"".join(shuffle.shuffle_chunks([data], 2))
    first = np.frombuffer(data[:size], "u1")
    assert shuffled[:size] == first[0::2].tobytes() + first[1::2].tobytes()
    last = np.frombuffer(data[size:], "u1")
    assert shuffled[size:] == last[0::2].tobytes() + last[1::2].tobytes()


def test_zlib_dictionaries_are_refused() -> None:
    encoder = zlib.compressobj(zdict=b"dictionary")
    stored = encoder.compress(b"dictionary") + encoder.flush()
    with pytest.raises(FileCorruptError):
        b"".join(table.by_name("zlib").decode_chunks([stored], 10))


def test_names() -> None:
    assert [codec.name for codec in table.CODECS] == ["none", "lz4", "zlib", "zstd"]
    with pytest.raises(InvalidParamError, match="lzma"):
        table.by_name("lzma")
