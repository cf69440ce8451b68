"""Arrays of strings at NumPy speed: where each one starts, found without decoding any.

A length of 1 to 255 is one non-zero byte beside seven (version 1: three) NULs. All places in a window that
look like such a length are found with a few vector operations; then ``candidate[i + 1] == candidate[i] +
width + length[i]`` is checked for all of them at once. Walking from the known first length, that proves a
run of them by induction; where a run breaks (an empty string, one of 256 bytes or more, NULs in the text)
plain steps with every check take over. So the result is exact, whatever the bytes are.
"""

from __future__ import annotations

import itertools
import sys
from array import array
from collections.abc import Iterator, Sequence
from struct import Struct
from typing import TYPE_CHECKING, Any, overload

from atlas_kit.errors import TruncatedError

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.schema import BufferStream

#: Bytes looked at in one round of vector operations: the temporaries stay in the second-level cache.
WINDOW = 1 << 18
#: Importing NumPy costs as much as a plain walk over this many strings.
WORTH_NUMPY = 1 << 17
#: Below this, setting up a round costs more than plain steps.
SHORT = 64
_LONGEST_BURST = 4096
#: Bytes of a string of which nothing is known yet, its length included: fewer than most vocabularies have.
_USUAL = 14
#: So many bytes of an array say how long its strings are.
_SAMPLE = 1 << 10
#: An array of so many strings that has more than a few pairs behind it is a vocabulary.
_VOCABULARY, _FEW = 1 << 12, 4
#: At least this part of what is likely is asked for; of an array of which less than one string in so many was read no
#: more than so many bytes for each, which most vocabularies have.
_SURE, _TELLING, _FEWEST = 0.8, 8, 12.5


def walk_strings(stream: BufferStream, count: int, prefix: Struct) -> Sequence[int]:
    """Find ``count`` strings from where ``stream`` stands, and move past them.

    Parameters
    ----------
    prefix
        The struct of one length (``<Q``, ``>Q``, ``<I``, ``>I``), derived from the schema.

    Returns
    -------
    sequence of int
        ``count + 1`` offsets: of each string's length field, and of the end.

    Raises
    ------
    TruncatedError
        A string, or the sum of them, does not fit in the file.
    """
    left = stream.end - stream.pos
    if count > left // prefix.size:
        raise TruncatedError(
            f"an array of {count} strings is promised, and {max(left, 0)} bytes are left",
            offset=stream.pos,
        )
    if count:
        _foresee(stream, stream.pos, (), 0, count, prefix.size)
    vector = count >= SHORT and ("numpy" in sys.modules or count > WORTH_NUMPY)
    walk = _walk_vector if vector else _walk_plain
    offsets: Any = walk(stream, count, prefix)
    if count >= SHORT:
        stream.before = offsets
    stream.pos = int(offsets[count])
    stream.foresee(stream.pos)
    stream.ensure(stream.pos)
    found: Sequence[int] = offsets
    return found


def _window(stream: BufferStream, pos: int, count: int) -> int:
    """Return up to where to look for ``count`` strings at first: what is at hand tells how much more to ask for."""
    stop = min(stream.end, pos + min(WINDOW, count * 24 + 64))
    return min(stop, len(stream.buf)) if stream.far and len(stream.buf) >= pos + _SAMPLE else stop


def _foresee(
    stream: BufferStream, pos: int, offsets: Sequence[int], done: int, count: int, width: int
) -> None:
    """Say where the array probably ends, and how far it goes at least.

    That is told by the strings that were read last: vocabularies begin with short ones, and some with long ones, so
    that a small part of them says little. Of a second array the first tells where its strings get longer: a merge is
    a token and a space, in the same order. Behind a vocabulary, unless it is among the last pairs, stands at least
    one number for each of its tokens.
    """
    left, sure = count - done, 0.0
    before, more = stream.before, 0
    if before is not None:
        at = done * (len(before) - 1) // count
        usual = (int(before[-1]) - int(before[at])) / max(1, len(before) - 1 - at) + 1
        sure = 1.0
    else:
        usual = float(_USUAL)
        more = 4 * count if count >= _VOCABULARY and stream.left > _FEW else 0
    if done >= SHORT:
        recent = (pos - int(offsets[done // 2])) / (done - done // 2)
        if before is None:
            usual, sure = recent, _SURE if done * _TELLING >= count else min(_SURE, _FEWEST / recent)
        else:  # what was read says by how much the strings of this array are longer than those
            again = done * (len(before) - 1) // count
            usual += (
                (pos - int(offsets[0])) / done - (int(before[again]) - int(before[0])) / max(1, again) - 1
            )
    least = max(width + 1.0, sure * usual)
    stream.foresee(pos + int(left * usual) + more, pos + int(left * least) + more)


def _too_long(offset: int, length: int, left: int) -> TruncatedError:
    return TruncatedError(
        f"a string of {length} bytes is promised, and {max(left, 0)} bytes are left", offset=offset
    )


def _walk_plain(stream: BufferStream, count: int, prefix: Struct) -> array[int]:
    offsets = array("q")
    pos, end, width, unpack = stream.pos, stream.end, prefix.size, prefix.unpack_from
    loaded = 0
    for _ in range(count):
        if pos + width > loaded:
            _foresee(stream, pos, offsets, len(offsets), count, width)
            loaded = stream.ensure(_window(stream, pos, count - len(offsets)))
            if pos + width > loaded:
                raise _too_long(pos, width, loaded - pos)
        length = unpack(stream.buf, pos)[0]
        if length > end - pos - width:
            raise _too_long(pos, length, end - pos - width)
        offsets.append(pos)
        pos += width + length
    offsets.append(pos)
    return offsets


def _walk_vector(stream: BufferStream, count: int, prefix: Struct) -> np.ndarray[Any, np.dtype[np.int64]]:
    import numpy as np

    offsets = np.empty(count + 1, np.int64)
    walk = _Walk(stream, prefix, offsets, count)
    while walk.done < count:
        walk.round()
    offsets[count] = walk.pos
    return offsets


class _Walk:
    """The state of one vectorised walk: ``done`` strings are known, the next length is at ``pos``."""

    def __init__(self, stream: BufferStream, prefix: Struct, offsets: Any, count: int) -> None:
        self.stream = stream
        self.prefix = prefix
        self.offsets = offsets
        self.count = count
        self.done = 0
        self.pos = stream.pos
        self.burst = 1  # plain steps to take at the next break; doubles while runs stay short

    def round(self) -> None:
        """Walk the strings of one window."""
        import numpy as np

        _foresee(self.stream, self.pos, self.offsets, self.done, self.count, self.prefix.size)
        stop = self.stream.ensure(_window(self.stream, self.pos, self.count - self.done))
        size = stop - self.pos
        if size < self.prefix.size:
            raise _too_long(self.pos, self.prefix.size, size)
        window = np.frombuffer(self.stream.buf, np.uint8, size, self.pos)
        starts, ends = _candidates(window, self.prefix)
        del window  # a bytearray cannot grow while a view of it exists
        self._follow(starts, ends, size)
        if self.pos > self.stream.end:
            last = int(self.offsets[self.done - 1])
            left = self.stream.end - last - self.prefix.size
            raise _too_long(last, self.pos - last - self.prefix.size, left)

    def _follow(self, starts: Any, ends: Any, size: int) -> None:
        """Go through one window of ``size`` bytes: runs of candidates at once, plain steps between them."""
        import numpy as np

        base, at, width = self.pos, 0, self.prefix.size
        breaks = np.flatnonzero(starts[1:] != ends[:-1])  # the run ends after candidate breaks[k]
        while self.done < self.count and at + width <= size:
            index = int(starts.searchsorted(at))
            if index == len(starts) or starts[index] != at:
                at = self._plain_steps(base, at, size)
                continue
            cut = int(breaks.searchsorted(index))
            last = int(breaks[cut]) if cut < len(breaks) else len(starts) - 1
            take = min(last - index + 1, self.count - self.done)
            np.add(starts[index : index + take], base, out=self.offsets[self.done : self.done + take])
            self.done += take
            at = int(ends[index + take - 1])
            if take >= SHORT:
                self.burst = 1
        self.pos = base + at

    def _plain_steps(self, base: int, at: int, size: int) -> int:
        width, unpack, end = self.prefix.size, self.prefix.unpack_from, self.stream.end
        for _ in range(self.burst):
            if self.done == self.count or at + width > size:
                break
            length = unpack(self.stream.buf, base + at)[0]
            if length > end - base - at - width:
                raise _too_long(base + at, length, end - base - at - width)
            self.offsets[self.done] = base + at
            self.done += 1
            at += width + length
        self.burst = min(self.burst * 2, _LONGEST_BURST)
        return at


def _candidates(window: Any, prefix: Struct) -> tuple[Any, Any]:
    """Return (where a length of 1..255 may stand, where its string would end) in a window of bytes."""
    import numpy as np

    width = prefix.size
    zero = window == 0
    run = zero[:-1] & zero[1:]  # run[i]: bytes i and i+1 are NUL
    if width == 8:
        run = run[:-2] & run[2:]  # i .. i+3
        run = run[:-3] & run[3:]  # i .. i+6
    else:
        run = run[:-1] & zero[2:]  # i .. i+2
    places = len(window) - width + 1
    if prefix.format.startswith("<"):  # the low byte comes first, the NULs after it
        low = 0
        found = run[1:] & ~zero[:places]
    else:
        low = width - 1
        found = run[:places] & ~zero[low:]
    starts = np.flatnonzero(found)
    return starts, starts + window[starts + low] + width


class LazyStrings(Sequence[str]):
    """A read-only array of strings: offsets into the header's bytes; decoding happens on access.

    Bytes that are not UTF-8 come out as surrogate escapes (PEP 383) and go back as the same bytes.
    """

    __slots__ = ("_offsets", "_stream", "prefix")

    def __init__(self, stream: BufferStream, offsets: Sequence[int], prefix: Struct) -> None:
        self._stream = stream
        self._offsets = offsets
        self.prefix = prefix

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def raw(self, index: int) -> bytes:
        """Return the bytes of one string."""
        index = range(len(self))[index]
        start = int(self._offsets[index]) + self.prefix.size
        return bytes(self._stream.buf[start : int(self._offsets[index + 1])])

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        return self.raw(index).decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        for raw in self.iter_raw():
            yield raw.decode("utf-8", "surrogateescape")

    def iter_raw(self) -> Iterator[bytes]:
        """Yield the bytes of every string, fast."""
        width, step = self.prefix.size, 4096
        for first in range(0, len(self), step):
            places = [int(at) for at in self._offsets[first : first + step + 1]]
            block = bytes(self._stream.buf[places[0] : places[-1]])
            base = places[0]
            for start, stop in itertools.pairwise(places):
                yield block[start + width - base : stop - base]

    def tolist(self) -> list[str]:
        """Return all strings, decoded."""
        return list(self)

    def head(self, count: int) -> list[str]:
        """Return the first ``count`` strings."""
        return self[:count]

    def encoded(self) -> bytes:
        """Return the array's bytes as they are in the file (lengths and texts)."""
        return bytes(self._stream.buf[int(self._offsets[0]) : int(self._offsets[len(self)])])

    @property
    def offset(self) -> int:
        """Where the first length field is in the file."""
        return int(self._offsets[0])

    def offset_of(self, index: int) -> int:
        """Return where the text of one string starts in the file."""
        return int(self._offsets[range(len(self))[index]]) + self.prefix.size

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (LazyStrings, list, tuple)):
            return len(self) == len(other) and all(a == b for a, b in zip(self, other, strict=True))
        return NotImplemented

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        shown = ", ".join(repr(text) for text in self.head(3))
        return f"<{len(self)} strings: {shown}{', ...' if len(self) > 3 else ''}>"
