"""The vectorised walk over string arrays finds exactly what a plain walk finds, for any bytes at all."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import TruncatedError
from atlas_kit.formats.gguf import strings
from atlas_kit.formats.gguf.scan import HeaderStream
from atlas_kit.formats.gguf.strings import LazyStrings, _walk_plain, _walk_vector, walk_strings
from atlas_kit.formats.schema import BufferStream
from atlas_kit.storage.given import open_source

PREFIXES = [struct.Struct(code) for code in ("<Q", ">Q", "<I", ">I")]

#: Texts that fool a search for lengths: empty, NULs inside, lookalikes of lengths, 255/256 boundaries.
TRICKY = st.one_of(
    st.binary(max_size=12),
    st.sampled_from(
        [b"", b"\0" * 8, b"\1" + b"\0" * 7, b"\0" * 7 + b"\1", b"\3\0\0\0", b"a" * 255, b"b" * 256]
    ),
    st.binary(min_size=250, max_size=260),
    st.lists(st.sampled_from([0, 0, 0, 1, 5, 255]), max_size=40).map(bytes),
)


def encode(texts: list[bytes], prefix: struct.Struct) -> bytes:
    return b"".join(prefix.pack(len(text)) + text for text in texts)


def both(data: bytes, pos: int, count: int, prefix: struct.Struct) -> tuple[object, object]:
    """Return what each walk makes of the same bytes: offsets, or the error's offset."""
    found = []
    for walk in (_walk_plain, _walk_vector):
        try:
            found.append([int(at) for at in walk(BufferStream(data, pos), count, prefix)])
        except TruncatedError as error:
            found.append(("truncated", error.offset))
    return found[0], found[1]


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p.format)
@given(
    texts=st.lists(TRICKY, min_size=1, max_size=120),
    before=st.binary(max_size=9),
    after=st.binary(max_size=40),
)
def test_walks_agree_on_real_arrays(
    prefix: struct.Struct, texts: list[bytes], before: bytes, after: bytes
) -> None:
    data = before + encode(texts, prefix) + after
    plain, vector = both(data, len(before), len(texts), prefix)
    assert plain == vector
    assert LazyStrings(BufferStream(data), vector, prefix).encoded() == encode(texts, prefix)


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p.format)
@given(data=st.binary(max_size=400), count=st.integers(1, 60))
def test_walks_agree_on_noise(prefix: struct.Struct, data: bytes, count: int) -> None:
    plain, vector = both(data, 0, count, prefix)
    assert plain == vector


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p.format)
@given(
    texts=st.lists(TRICKY, min_size=1, max_size=60),
    flips=st.lists(st.tuples(st.integers(0, 10_000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 30),
)
def test_walks_agree_on_damaged_arrays(prefix, texts, flips, cut) -> None:
    data = bytearray(encode(texts, prefix))
    for place, value in flips:
        data[place % len(data)] = value
    raw = bytes(data[: max(len(data) - cut, 0)])
    plain, vector = both(raw, 0, len(texts), prefix)
    assert plain == vector


def test_windows_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same offsets whatever the window's size: strings and lengths straddle its edges."""
    prefix = PREFIXES[0]
    texts = [bytes([65 + i % 26]) * (i * 7 % 61) for i in range(3000)]
    data = encode(texts, prefix)
    wanted = list(_walk_plain(BufferStream(data), len(texts), prefix))
    for window in (64, 65, 100, 1000, 4096):
        monkeypatch.setattr(strings, "WINDOW", window)
        assert _walk_vector(BufferStream(data), len(texts), prefix).tolist() == wanted
        assert list(_walk_plain(BufferStream(data), len(texts), prefix)) == wanted


@pytest.mark.parametrize(
    "texts",
    [
        [b""] * 20_000,
        [b"a" * 300] * 2_000,
        [b"", b"a"] * 10_000,
        [b"\0" * 9] * 10_000,
        [b"\1" + b"\0" * 20] * 5_000,
    ],
    ids=["empty", "long", "mixed", "nul", "lookalike"],
)
def test_pathological_arrays_take_few_rounds(texts: list[bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the trick does not work, plain steps take over in growing bursts: no vector set-up per string."""
    calls = 0
    real = strings._Walk._plain_steps

    def counted(self, *args):
        nonlocal calls
        calls += 1
        return real(self, *args)

    monkeypatch.setattr(strings._Walk, "_plain_steps", counted)
    data = encode(texts, PREFIXES[0])
    found = _walk_vector(BufferStream(data), len(texts), PREFIXES[0])
    assert found[-1] == len(data)
    assert calls < 100


def test_a_count_that_cannot_fit_is_refused_before_allocating() -> None:
    with pytest.raises(TruncatedError, match="strings is promised"):
        walk_strings(BufferStream(bytes(64)), 1 << 60, PREFIXES[0])


@pytest.mark.parametrize("prefix", PREFIXES, ids=lambda p: p.format)
def test_an_empty_array_may_stand_behind_a_long_one(prefix: struct.Struct) -> None:
    long = [b"word"] * strings.SHORT
    stream = BufferStream(encode(long, prefix) + b"behind")
    walk_strings(stream, len(long), prefix)
    end = stream.pos
    assert list(walk_strings(stream, 0, prefix)) == [end]
    assert stream.pos == end


def test_a_growing_window_gives_the_same(tmp_path) -> None:
    texts = [b"token%d" % i for i in range(30_000)]
    data = encode(texts, PREFIXES[0])
    path = tmp_path / "strings"
    path.write_bytes(data)
    with open_source(path) as source:
        stream = HeaderStream(source)
        offsets = walk_strings(stream, len(texts), PREFIXES[0])
        found = LazyStrings(stream, offsets, PREFIXES[0])
        assert list(found.iter_raw()) == texts


def test_lazy_strings_behave_like_a_list() -> None:
    texts = ["", "a", "\udcff", "日本", "e" * 300]
    data = encode([t.encode("utf-8", "surrogateescape") for t in texts], PREFIXES[0])
    stream = BufferStream(data)
    found = LazyStrings(stream, walk_strings(stream, len(texts), PREFIXES[0]), PREFIXES[0])
    assert found == texts
    assert list(found) == found.tolist() == texts == found[:]
    assert (found[-1], found[1:3], len(found), "日本" in found) == (texts[-1], texts[1:3], 5, True)
    assert found.raw(2) == b"\xff"
    assert found.head(2) == texts[:2]
    assert data[found.offset_of(3) :].startswith("日本".encode())
    assert "5 strings" in repr(found)
    with pytest.raises(IndexError):
        found[5]
    assert found != [*texts, "x"]
