"""Walking a version 1 file that may be damaged: every byte becomes part of exactly one ``Piece``.

Version 1 has no marks between entries. What a reader has to go by is the shape of an entry (a plausible key
length, a NUL where the key ends and none before) and the payload's 32-bit checksum; together they leave
next to no room for chance. The walk follows the chain of lengths while it holds, and searches for the next
entry that proves itself where it does not. Checking, rescuing and drawing all use this walk.
"""

from __future__ import annotations

import bisect
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from atlas_kit.formats.atlas import checksums, layout, v1
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.schema import dtype_of

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.storage.source import Source

_HEAD = layout.ENTRY_V1.size
_REACH = _HEAD + t.V1_MAX_KEY + 1
_MIN = _HEAD + 2  # a key of one byte and its NUL
_HEADER = layout.HEADER_V1.size
_SHORT = layout.HEADER_V1_SHORT.size

#: FNV-1a/32 of nothing.
EMPTY_FNV = 0x811C9DC5

#: How much the search looks at in one step.
STEP = 1 << 20

#: Times beyond the year 2200 are a sign that these bytes are no entry.
MAX_TIME = 7_258_118_400

#: How much the walk from entry to entry reads at a time.
AHEAD = 1 << 18

#: Payloads up to this size are hashed all at once, with NumPy.
SMALL = 64

#: What may be spent on hashing what only looks like an entry: bytes, beyond a multiple of the file.
BUDGET = 1 << 28
BUDGET_RATIO = 8

#: What looking for the end of an entry byte by byte may cost in all (about 10 MB/s).
CRAWL = 3 << 20


@dataclass
class Piece:
    """A range of the file and what it is.

    ``kind`` is ``header``, ``bad-header``, ``entry`` (the payload proves itself), ``keyless`` (it does, but
    the key is damaged), ``damaged`` (a readable entry whose payload does not fit its checksum, or is cut off)
    or ``gap``. ``fields`` are the entry header's, lengths as they really are; ``how`` says what was mended.
    """

    kind: str
    offset: int
    size: int
    fields: tuple[int, ...] = ()
    key: bytes = b""
    payload_offset: int = 0
    how: str = ""
    dialect: str = ""
    raw: bytes = b""
    whole: bool = False  # damaged, but where it ends is certain

    @property
    def end(self) -> int:
        """Where the piece ends."""
        return self.offset + self.size


class Walker:
    """One walk over one file."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._size = source.size
        self._crc_first = False
        self._base, self._window = 0, b""
        self._memo: dict[int, bool] = {}
        self._budget = BUDGET + BUDGET_RATIO * self._size
        self._crawl = CRAWL
        self._next_entry = (0, -1)  # no entry proves itself in [first, second), and one does at second
        self._next_header = (0, -1)
        self._steps: dict[int, list[int]] = {}
        self._expected: int | None = None  # how long the file should be
        self._anchored = False  # whether a header or an entry was seen: a later header may then be nested

    def walk(self) -> Iterator[Piece]:
        """Yield the pieces in order; they cover the file."""
        at = 0
        for piece in self._begin():
            yield piece
            at = piece.end
        while at < self._size:
            piece = self._next(at)
            self._anchored = True
            yield piece
            at = piece.end

    # --- the top --------------------------------------------------------------------------------------

    def _begin(self) -> list[Piece]:
        header = self._header_at(0)
        if header is not None:
            self._anchored = True
            self._crc_first = "crc32" in header.dialect
            self._expected = header.end + int.from_bytes(header.raw[layout.AT["total_size"]], "little")
            return [header]
        start = self._first_entry()
        self._anchored = start is not None
        if start is None:
            found = min(self._find_entry(0), self._find_header(0))
            tail = self._read(0, 4) == t.MAGIC and found > _HEADER + SMALL
            start = min(found, self._size, _HEADER) if tail or found - _HEADER > SMALL else found
        if not start:
            return []
        return [Piece("bad-header", 0, start, raw=self._read(0, min(start, _HEADER)))]

    def starts(self) -> bool:
        """Tell whether an intact entry is where the first one would be, whatever the header says."""
        pieces = [self._parse(start) for start in (0, _HEADER, _SHORT)]
        return any(piece is not None and self._fits(piece) for piece in pieces)

    def _first_entry(self) -> int | None:
        """Return where the entries start although the header is damaged or missing, if that is certain."""
        places = (0, _HEADER, _SHORT)
        for start in places:
            piece = self._parse(start)
            if piece is not None and self._fits(piece):
                return start
        for start in places:
            piece = self._parse(start)
            if piece is not None and piece.end <= self._size and self._begins(piece.end):
                return start
        after = min(self._find_entry(0), self._find_header(0))
        for start in places:
            if start + _MIN <= after and self._solve(start, after) is not None:
                return start
        return None

    def _header_at(self, at: int) -> Piece | None:
        """Return the intact header that starts here."""
        top = self._read(at, _HEADER)
        if top[:8] != t.MAGIC + b"\1\0\0\0":
            return None
        dialect = v1.dialect_of(top)
        if dialect is None:
            return None
        return Piece("header", at, v1.DIALECTS[dialect][0], dialect=dialect, raw=top)

    # --- step by step ---------------------------------------------------------------------------------

    def _next(self, at: int) -> Piece:
        """Return the piece that starts here."""
        piece = self._parse(at)
        if piece is not None and self._fits(piece):
            piece.kind = "entry"
            return piece
        header = self._header_at(at)
        if header is not None:  # several files, one after the other
            return header
        if piece is not None and self._extent_is_known(piece):
            return piece
        if self._read(at, 4) == t.MAGIC:
            for size in (_HEADER, _SHORT):
                following = self._parse(at + size)
                if following is not None and self._fits(following):
                    return Piece("bad-header", at, size, raw=self._read(at, size))
        found = self._resync(at + 1, piece.end if piece is not None else None)
        solved = self._solve(at, found)
        if solved is not None:
            return solved
        if piece is None:
            return Piece("gap", at, found - at)
        if piece.end <= found:
            piece.how = "the payload's checksum does not match"
        else:
            missing = piece.end - found
            piece.size = found - at
            piece.how = f"{missing} of {piece.fields[1]} payload bytes are missing"
        return piece if piece.payload_offset <= piece.end else Piece("gap", at, found - at)

    def _extent_is_known(self, piece: Piece) -> bool:
        """Tell whether it is certain where an entry with a damaged payload ends; put its size right."""
        moved = 0 if self._expected is None else self._size - self._expected
        end = piece.end + moved
        if moved and piece.payload_offset < end <= self._size and (end == self._size or self._proven(end)):
            piece.size += moved  # bytes were cut out of this payload, or put in, and nowhere else
            piece.how = (
                f"{-moved} bytes of it are missing" if moved < 0 else f"{moved} foreign bytes are in it"
            )
        elif piece.end > self._size or not (self._proven(piece.end) if moved else self._begins(piece.end)):
            return False
        else:
            piece.how = "the payload's checksum does not match"
        piece.whole = True
        return True

    def _parse(self, at: int) -> Piece | None:
        """Return the entry that has its shape here, whether its payload fits (or is there) or not."""
        raw = self._read(at, _REACH)
        if len(raw) < _MIN:
            return None
        fields = layout.ENTRY_V1.unpack_from(raw)
        length, size = fields[0], fields[1]
        stop = _HEAD + length
        if not 0 < length <= t.V1_MAX_KEY or size > t.V1_MAX_DATA or stop >= len(raw) or raw[stop]:
            return None
        key = raw[_HEAD:stop]
        if 0 in key:
            return None
        return Piece("damaged", at, stop + 1 + size, fields, key, at + stop + 1)

    def _fits(self, piece: Piece) -> bool:
        """Tell whether the payload proves itself; never hashes a place twice."""
        known = self._memo.get(piece.offset)
        if known is None:
            known = self._proves(piece.payload_offset, piece.fields[1], piece.fields[5])
            self._memo[piece.offset] = known
        return known

    def _proves(self, start: int, size: int, checksum: int) -> bool:
        if start + size > self._size:
            return False
        if size == 0:  # CRC-32 of nothing is 0, which is everywhere
            return checksum == EMPTY_FNV or (self._crc_first and checksum == 0)
        data = self._read(start, size)
        first, second = checksums.fnv1a, checksums.crc32
        if self._crc_first:
            first, second = second, first
        return first(data) == checksum or second(data) == checksum

    def _begins(self, at: int, depth: int = 4) -> bool:
        """Tell whether something starts here that makes the piece before it end here.

        Numbers in a payload can have the shape of an entry: one that does not prove itself must lead to one
        that does, or to the file's end.
        """
        if at == self._size:  # by chance, when as many bytes were cut out as follow this entry
            return self._expected in (None, self._size)
        if self._header_at(at) is not None:
            return True
        piece = self._parse(at)
        if piece is None:
            return False
        if self._proven(at):
            return True
        if piece.end > self._size:  # cut off: nothing left to lead to, so it must make sense
            return piece.fields[2] < 1 << 16 and piece.fields[4] < MAX_TIME
        return depth > 0 and self._begins(piece.end, depth - 1)

    # --- solving for lengths --------------------------------------------------------------------------

    def _solve(self, at: int, found: int) -> Piece | None:
        """Mend an entry whose lengths or NUL were hit: what the checksum confirms is right."""
        raw = self._read(at, _REACH)
        if len(raw) < _MIN:
            return None
        fields = layout.ENTRY_V1.unpack_from(raw)
        size = fields[1]
        # a key with a NUL in it last: it is the least likely reading
        starts = sorted(self._key_ends(raw, fields[0]), key=lambda way: 0 in raw[_HEAD : _HEAD + way[0]])
        for length, how in starts:
            begin = at + _HEAD + length + 1
            ends = [found, self._find_header(at + 1), self._size]
            if 0 < size <= t.V1_MAX_DATA:
                ends.insert(0, begin + size)
            keyless = 0 in raw[_HEAD : _HEAD + length]
            for end in dict.fromkeys(ends):
                possible = begin < end <= (found if keyless else self._size) and self._spend(end - begin)
                if possible and self._proves(begin, end - begin, fields[5]):
                    return self._mended(at, raw, fields, length, end, how)
        for length, how in starts:
            begin = at + _HEAD + length + 1
            crawled = None if 0 in raw[_HEAD : _HEAD + length] else self._crawl_to(begin, found, fields[5])
            if crawled is not None:
                return self._mended(at, raw, fields, length, crawled, how)
        return None

    @staticmethod
    def _key_ends(raw: bytes, length: int) -> list[tuple[int, str]]:
        """Return the lengths that the key may have: what the field says, and where the first NUL is."""
        out = []
        if 0 < length <= t.V1_MAX_KEY and _HEAD + length < len(raw):
            out.append((length, "" if raw[_HEAD + length] == 0 else "the NUL after the key"))
        nul = raw.find(b"\0", _HEAD + 1)
        if nul > 0 and nul - _HEAD != length:
            out.append((nul - _HEAD, "the key's length"))
        return out

    @staticmethod
    def _mended(at: int, raw: bytes, fields: tuple[int, ...], length: int, end: int, how: str) -> Piece:
        key = raw[_HEAD : _HEAD + length]
        begin = at + _HEAD + length + 1
        whats = [how] if how else []
        if end - begin != fields[1]:
            whats.append("the payload's length")
        kind = "entry"
        if 0 in key:
            kind, whats = "keyless", ["the key is damaged"]
        mended = (length, end - begin, *fields[2:])
        return Piece(kind, at, end - at, mended, key, begin, " and ".join(whats))

    def _crawl_to(self, begin: int, limit: int, checksum: int) -> int | None:
        """Return the end in ``(begin, limit)`` at which FNV-1a becomes the checksum, byte by byte."""
        size = min(limit - begin, self._crawl)
        if size <= 0:
            return None
        self._crawl -= size
        value = EMPTY_FNV
        for place, byte in enumerate(self._read(begin, size), begin + 1):
            value = (value ^ byte) * 0x01000193 & 0xFFFFFFFF
            if value == checksum:
                return place
        return None

    # --- searching ------------------------------------------------------------------------------------

    def _resync(self, at: int, claimed: int | None) -> int:
        """Return where the next piece that proves itself starts (the file's end when there is none).

        A `.atlas` file may be the payload of an entry: when the entry around it is damaged, its header shows
        that what follows is not ours, unless nothing of ours comes after it (then files were joined).
        """
        while True:
            entry, header = self._find_entry(at), self._find_header(at)
            if entry <= header or not self._anchored:
                return min(entry, header)
            nested = self._header_at(header)
            assert nested is not None
            total = int.from_bytes(nested.raw[layout.AT["total_size"]], "little")
            end = nested.end + total
            inside = claimed is not None and (claimed > self._size or end <= claimed)
            if self._expected is not None:
                # joined, this file would be too long or short by one number of bytes; nested, by the other
                inside = inside or abs(self._size - self._expected) <= abs(header - self._expected)
            if end > self._size:
                if not inside:
                    return header
                at = self._chain(nested.end, self._size)
                continue
            if not inside and self._find_entry(end) >= self._find_header(end):
                return header
            at = end if self._expected == self._size else self._chain(nested.end, end)

    def _chain(self, at: int, stop: int) -> int:
        """Follow entries that prove themselves, at most to ``stop``."""
        while at < stop and (piece := self._parse(at)) is not None and self._proven(at):
            at = piece.end
        return at

    def _find_header(self, at: int) -> int:
        """Return the offset of the first intact header from here on, else the file's end."""
        known, found = self._next_header
        if known <= at <= found:
            return found
        base = at
        while base < self._size:
            window = self._source.read_upto(base, STEP + 8)
            place = window.find(t.MAGIC)
            while 0 <= place < STEP:
                if window[place + 4 : place + 8] == b"\1\0\0\0" and self._header_at(base + place) is not None:
                    self._next_header = (at, base + place)
                    return base + place
                place = window.find(t.MAGIC, place + 1)
            base += STEP
        self._next_header = (at, self._size)
        return self._size

    def _find_entry(self, at: int) -> int:
        """Return the offset of the first entry from here on that proves itself, else the file's end."""
        known, found = self._next_entry
        if known <= at <= found:
            return found
        base = at // STEP * STEP
        while base < self._size:
            places = self._candidates(base)
            for place in places[bisect.bisect_left(places, at) :]:
                if self._proven(place):
                    self._next_entry = (at, place)
                    return place
            base += STEP
        self._next_entry = (at, self._size)
        return self._size

    def _proven(self, at: int) -> bool:
        if at not in self._memo:
            piece = self._parse(at)
            if piece is None or not self._spend(piece.fields[1]):
                return False
            return self._fits(piece)
        return self._memo[at]

    def _spend(self, size: int) -> bool:
        """Take from the hashing budget: files can be made in which every byte looks like an entry."""
        cost = size + 512  # looking at it costs something, too
        if cost > self._budget:
            return False
        self._budget -= cost
        return True

    def _candidates(self, base: int) -> list[int]:
        """Return the offsets in ``[base, base + STEP)`` where something has the shape of an entry."""
        held = self._steps.get(base)
        if held is None:
            raw = self._source.read_upto(base, STEP + _REACH + SMALL + 8)
            if len(self._steps) > 8:
                self._steps.clear()
            held = self._steps[base] = _shapes(raw, base, self._size)
        return held

    def _read(self, at: int, size: int) -> bytes:
        """Return up to ``size`` bytes, small ones from a window that moves with the walk."""
        if size > AHEAD // 2:
            return self._source.read_upto(at, size)
        place = at - self._base
        if place < 0 or place + size > len(self._window):
            if place >= 0 and self._base + len(self._window) >= self._size:
                return self._window[place : place + size]
            ahead = (
                AHEAD if 0 <= place <= len(self._window) + _REACH else _REACH
            )  # only where reads are neighbours
            self._base, self._window, place = at, self._source.read_upto(at, max(size, ahead)), 0
        return self._window[place : place + size]


def _shapes(raw: bytes, base: int, file_size: int) -> list[int]:
    """Find what has the shape of an entry; small payloads must also fit their checksum."""
    import numpy as np

    a = np.frombuffer(raw, np.uint8)
    fields: Any = dtype_of(layout.EntryV1).fields
    size_at, checksum_at = fields["data_size"][1], fields["checksum"][1]
    top = size_at + 3  # the highest byte of the payload's size: at most 1 GiB
    count = min(STEP, len(a) - _MIN + 1)
    if count <= 0:
        return []
    low, high = a[:count], a[1 : count + 1]
    mask = ((low != 0) & (high == 0)) | ((low == 0) & (high == 1))  # 1 to 256
    mask &= (a[2 : count + 2] == 0) & (a[3 : count + 3] == 0) & (a[top : count + top] <= 0x40)
    at = np.flatnonzero(mask)
    zeros = np.flatnonzero(a == 0)
    if not len(at) or not len(zeros):
        return []
    length = a[at].astype(np.int64) + (a[at + 1].astype(np.int64) << 8)
    place = np.searchsorted(zeros, at + _HEAD)
    nul = zeros[np.minimum(place, len(zeros) - 1)]
    keep = nul == at + _HEAD + length
    at, length = at[keep], length[keep]
    size = _u32(a, at + size_at)
    keep = (size <= t.V1_MAX_DATA) & (base + at + _HEAD + 1 + length + size <= file_size)
    at, length, size = at[keep], length[keep], size[keep]
    small = np.flatnonzero(size <= SMALL)
    if len(small):
        stored = _u32(a, at[small] + checksum_at)
        wrong = ~_small_fit(a, at[small] + _HEAD + 1 + length[small], size[small], stored)
        keep = np.ones(len(at), bool)
        keep[small[wrong]] = False
        at = at[keep]
    return (at + base).tolist()  # type: ignore[no-any-return]


def _u32(a: Any, at: Any) -> Any:
    import numpy as np

    return sum(a[at + i].astype(np.int64) << (8 * i) for i in range(4))


def _small_fit(a: Any, start: Any, size: Any, wanted: Any) -> Any:
    """Tell for many short ranges at once whether FNV-1a or CRC-32 is what is wanted."""
    import numpy as np

    table = _crc_table()
    fnv = np.full(len(start), EMPTY_FNV, np.uint32)
    crc = np.full(len(start), 0xFFFFFFFF, np.uint32)
    for i in range(SMALL):
        active = np.flatnonzero(size > i)
        if not len(active):
            break
        byte = a[start[active] + i].astype(np.uint32)
        fnv[active] = (fnv[active] ^ byte) * np.uint32(0x01000193)
        crc[active] = table[(crc[active] ^ byte) & 0xFF] ^ (crc[active] >> np.uint32(8))
    return (fnv == wanted) | ((~crc == wanted) & (size > 0))


def _crc_table() -> Any:
    import numpy as np

    table = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        table = np.where(table & 1, (table >> np.uint32(1)) ^ np.uint32(0xEDB88320), table >> np.uint32(1))
    return table
