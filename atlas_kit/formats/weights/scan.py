"""Reading all weights once, as fast as they come: numbers that are none, ranges of zeros, marks for repetitions.

Each piece is read into one buffer per thread and looked at through views of it, without copies: the largest of
the bits of a number without its sign says whether any is not finite, one word in 64 whether there may be zeros.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import TruncatedError
from atlas_kit.formats.weights.regions import KINDS, Kind, Region
from atlas_kit.formats.weights.repeats import report_repeats, report_shifted
from atlas_kit.formats.weights.zeros import joined, merged, report_zeros
from atlas_kit.storage.given import Progress
from atlas_kit.storage.source import CHUNK, Source

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.findings import Report

#: Bytes from one word to the next of those that are looked at for zeros.
_STEP = 512
#: Bytes that are looked at together, with what is made of them, in a processor's own cache.
_PIECE = CHUNK // 2
#: Words of 16 bits for each mark, about; and bytes of the window that a mark stands for.
_RARE, _WINDOW = 16384, 32
#: Pieces that a thread is given at a time.
_BATCH = 16
#: Shapes of pieces whose views are kept.
_KNOWN = 64
#: Tensors with wrong numbers that are told one by one.
_TOLD = 5
_FACTORS = (0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x27D4EB2F165667C5)


@dataclass
class _Bad:
    """How many numbers of a region are wrong in one way, and where the first one is."""

    count: int = 0
    first: int = -1

    def add(self, count: int, first: int) -> None:
        if count:
            self.first = first if self.first < 0 else min(first, self.first)
            self.count += count


@dataclass
class _Found:
    """What the pieces have shown so far."""

    not_finite: dict[int, _Bad] = field(default_factory=dict)
    absurd: dict[int, _Bad] = field(default_factory=dict)
    zeros: list[tuple[int, int]] = field(default_factory=list)
    marks: list[Any] = field(default_factory=list)
    places: list[Any] = field(default_factory=list)
    windows: bytearray = field(default_factory=bytearray)
    starts: list[int] = field(default_factory=list)


@dataclass(frozen=True)
class _Numbers:
    """One number of each block of a piece; ``lowest`` is the least that is wrong with it, without its sign.

    ``bits`` and ``signed`` are views of the piece, or ``None`` where the bits lie apart and must be put together.
    """

    offset: int
    name: str
    kind: Kind
    limit: int | None
    lowest: int
    bits: np.ndarray[Any, Any] | None
    signed: np.ndarray[Any, Any] | None


@dataclass(frozen=True)
class _Views:
    """A room as pieces of one shape are looked at, made once: small calls of NumPy add up in large files."""

    numbers: list[_Numbers]
    data: np.ndarray[Any, Any]
    sampled: np.ndarray[Any, Any] | None  # words among which zeros are looked for
    sampled_flags: np.ndarray[Any, Any]
    words: np.ndarray[Any, Any]  # what windows may begin with
    words_flags: np.ndarray[Any, Any]
    step: int
    inside: int
    last: int


class _Rooms:
    """What a thread reads and works in, made once: new arrays of this size cost more than what is done with them."""

    def __init__(self, byte_order: str) -> None:
        import numpy as np

        self.order = byte_order
        self.piece = bytearray(_PIECE)
        self.bytes = memoryview(self.piece)
        self.data = np.frombuffer(self.piece, np.uint8)
        self.chosen, self.dead = bytearray(_PIECE // 2), bytearray(_PIECE // _STEP + 1)
        self._known: dict[tuple[object, ...], _Views] = {}

    def views(self, region: Region, size: int) -> _Views:
        """Return the first ``size`` bytes as a piece of a region."""
        key = (region.block, region.numbers, region.matrix, region.plain, size)
        views = self._known.get(key)
        if views is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            views = self._known[key] = self._views(region, size)
        return views

    def _views(self, region: Region, size: int) -> _Views:
        import numpy as np

        data = self.data[:size]
        sampled = data[: size & ~7].view(np.uint64)[:: _STEP // 8] if size >= 8 else None
        words, step, inside = _words(region, data)
        return _Views(
            [self._numbers(region, size // region.block, *number) for number in region.numbers],
            data,
            sampled,
            np.frombuffer(self.dead, np.bool_)[: 0 if sampled is None else len(sampled)],
            words,
            np.frombuffer(self.chosen, np.bool_)[: len(words)],
            step,
            inside,
            min(len(words), (size - _WINDOW - inside) // step + 1) if size > 2 * _WINDOW else 0,
        )

    def _numbers(self, region: Region, blocks: int, offset: int, name: str) -> _Numbers:
        import numpy as np

        kind = KINDS[name]
        limit = kind.absurd if region.matrix or not region.plain else None
        lowest = min(value for value in (kind.not_finite, limit, 1 << 64) if value is not None)
        if name == "iq1_m":
            return _Numbers(offset, name, kind, limit, lowest, None, None)
        buffer: Any = self.data.data
        both = (
            np.ndarray((blocks,), f"{self.order}{sign}{kind.width}", buffer, offset, (region.block,))
            for sign in "ui"
        )
        return _Numbers(offset, name, kind, limit, lowest, *both)


def check_weights(
    report: Report,
    source: Source,
    regions: Sequence[Region],
    byte_order: str = "<",
    progress: Progress | None = None,
) -> None:
    """Read all regions and say what is wrong with their weights.

    Parameters
    ----------
    regions
        In the order of the file, without overlaps, all inside the file.
    progress
        Called with the bytes that were read and all there are.
    """
    regions = [region for region in regions if region.size]
    if not regions:
        return
    found = _scan(source, regions, byte_order, progress)
    _report_numbers(report, regions, found)
    whole = merged(joined(source, found.zeros, regions[0].start, regions[-1].stop))
    report_zeros(report, source, regions, whole, thorough=True)
    if found.marks:
        import numpy as np

        report_repeats(report, source, regions, np.concatenate(found.marks), np.concatenate(found.places))
    bad = [one.first for one in (*found.not_finite.values(), *found.absurd.values())]
    if bad:
        report_shifted(report, source, regions, min(bad))


def _report_numbers(report: Report, regions: Sequence[Region], found: _Found) -> None:
    """Name the first tensors whose numbers are wrong, and say how many more there are."""
    wrong = sorted(found.not_finite.keys() | found.absurd.keys())
    for number in wrong[:_TOLD]:
        _report_one(report, regions[number], found.not_finite.get(number), found.absurd.get(number))
    if len(wrong) > _TOLD:
        report.error(
            "tensor-absurd",
            f"{len(wrong) - _TOLD} more tensors hold numbers like these",
            offset=regions[wrong[_TOLD]].start,
            remedy=None,
        )


def _report_one(report: Report, region: Region, not_finite: _Bad | None, absurd: _Bad | None) -> None:
    what = "numbers" if region.plain else "scales"
    hint = "The file is damaged, or training went wrong. Compare its hash with the original's."
    if not_finite is not None:
        report.error(
            "tensor-not-finite",
            f"{not_finite.count} of its {what} are NaN or infinite: the model will answer nonsense",
            hint,
            offset=not_finite.first,
            key=region.name,
            remedy=None,
        )
    if absurd is not None:
        report.error(
            "tensor-absurd",
            f"{absurd.count} of its {what} are larger than those of any model that works",
            "The file is damaged, or its bytes are shifted. Compare its hash with the original's.",
            offset=absurd.first,
            key=region.name,
            remedy=None,
        )


# --- reading -------------------------------------------------------------------------------------------------


def _scan(source: Source, regions: Sequence[Region], byte_order: str, progress: Progress | None) -> _Found:
    rare = _rare_words(source, regions)
    total, done = sum(region.size for region in regions), 0
    found, local = _Found(), threading.local()

    def work(pieces: list[tuple[int, int, int]]) -> _Found:
        if not hasattr(local, "rooms"):
            local.rooms = _Rooms(byte_order)
        rooms: _Rooms = local.rooms
        out = _Found()
        for number, start, size in pieces:
            region = regions[number]
            try:
                source.read_into(start, rooms.bytes[:size])
            except TruncatedError:  # the file became shorter meanwhile
                break
            views = rooms.views(region, size)
            for numbers in views.numbers:
                _test(out, number, region, start, rooms, views, numbers)
            _find_zeros(out, start, rooms, views)
            if region.matrix and size > 2 * _WINDOW:
                _mark(out, start, rooms, views, rare[_class_of(region)])
        _hash_windows(out)
        return out

    pieces = list(_pieces(regions))
    batches = [pieces[at : at + _BATCH] for at in range(0, len(pieces), _BATCH)]
    with ThreadPoolExecutor(max(1, min(4, os.cpu_count() or 1))) as pool:
        for batch, part in zip(batches, pool.map(work, batches), strict=True):
            for mine, theirs in ((found.not_finite, part.not_finite), (found.absurd, part.absurd)):
                for number, bad in theirs.items():
                    mine.setdefault(number, _Bad()).add(bad.count, bad.first)
            found.zeros += part.zeros
            found.marks += part.marks
            found.places += part.places
            done += sum(size for _, _, size in batch)
            if progress:
                progress("reading tensors", done, total)
    return found


def _pieces(regions: Sequence[Region]) -> Iterator[tuple[int, int, int]]:
    """Yield (number of the region, offset, size): whole blocks, at most ``_PIECE`` bytes."""
    for number, region in enumerate(regions):
        step = max(1, _PIECE // region.block) * region.block
        for start in range(region.start, region.stop, step):
            yield number, start, min(step, region.stop - start, _PIECE)


def _class_of(region: Region) -> tuple[int, str]:
    """Return what regions have in common whose words are alike."""
    return (region.block, region.numbers[0][1] if region.numbers else "")


def _words(region: Region, room: np.ndarray[Any, Any]) -> tuple[np.ndarray[Any, Any], int, int]:
    """Return the words that windows may begin with, the bytes from one to the next, and those before the first."""
    import numpy as np

    if region.plain:
        return room[: len(room) & ~1].view(np.uint16), 2, 0
    inside = 4 if all(offset < 4 for offset, _ in region.numbers) else 0
    buffer: Any = room.data
    found: np.ndarray[Any, Any]
    found = np.ndarray((len(room) // region.block,), np.uint16, buffer, inside, (region.block,))
    return found, region.block, inside


def _rare_words(source: Source, regions: Sequence[Region]) -> dict[tuple[int, str], np.uint16]:
    """Return for each class of regions a word that begins a window now and then: one in some thousands.

    One comparison finds it wherever the bytes are, and what is a rare word depends on how weights are stored.
    """
    import numpy as np

    samples: dict[tuple[int, str], list[Any]] = {}
    matrices = [region for region in regions if region.matrix]
    for region in matrices[:: max(1, len(matrices) // 64)] + matrices[:1]:
        size = min(region.size, 1 << 16) // region.block * region.block
        piece = source.read_upto(
            region.start + (region.size - size) // 2 // region.block * region.block, size
        )
        samples.setdefault(_class_of(region), []).append(_words(region, np.frombuffer(piece, np.uint8))[0])
    out = dict.fromkeys((_class_of(region) for region in matrices), np.uint16(0))
    for kind, words in samples.items():
        count = np.bincount(np.concatenate(words), minlength=65536)
        there = sum(region.size // region.block for region in matrices if _class_of(region) == kind)
        aim = count.sum() / max(16, min(_RARE, there // 512))
        out[kind] = np.uint16(np.abs(count - max(1, aim)).argmin())
    return out


def _test(
    out: _Found,
    number: int,
    region: Region,
    start: int,
    rooms: _Rooms,
    views: _Views,
    numbers: _Numbers,
) -> None:
    """Count the numbers that are not finite, and those at or beyond a limit."""
    import numpy as np

    kind, bits, signed = numbers.kind, numbers.bits, numbers.signed
    if bits is None or signed is None:
        bits = _joined_bits(views.data, region.block, numbers.offset, rooms.order)
        signed = bits.view(np.int16)
    if not len(bits):
        return
    sign = 1 << (8 * kind.width - 1)
    if kind.signed:
        if np.maximum.reduce(signed) < numbers.lowest and np.maximum.reduce(bits) < sign | numbers.lowest:
            return
        bits = bits & bits.dtype.type(sign - 1)
    elif np.maximum.reduce(bits) < numbers.lowest:
        return
    bad, start = bits >= numbers.lowest, start + numbers.offset
    if kind.not_finite is not None:
        wrong = bits >= kind.not_finite
        bad &= ~wrong
        if wrong.any():
            first = start + int(wrong.argmax()) * region.block
            out.not_finite.setdefault(number, _Bad()).add(int(wrong.sum()), first)
    if bad.any():
        out.absurd.setdefault(number, _Bad()).add(int(bad.sum()), start + int(bad.argmax()) * region.block)


def _joined_bits(data: np.ndarray[Any, Any], block: int, offset: int, order: str) -> np.ndarray[Any, Any]:
    """Return the scales of blocks of IQ1_M, of which four bits lie in each of four words."""
    import numpy as np

    buffer: Any = data.data
    parts: Any = np.ndarray((4, len(data) // block), f"{order}u2", buffer, offset, (2, block))
    joined: np.ndarray[Any, Any]
    joined = (parts[0] >> 12) | (parts[1] >> 8 & 0xF0) | (parts[2] >> 4 & 0xF00) | (parts[3] & 0xF000)
    return joined


def _find_zeros(out: _Found, start: int, rooms: _Rooms, views: _Views) -> None:
    """Keep where sampled words are zero several times in a row, or at either end, where the next piece may go on."""
    import numpy as np

    if views.sampled is None:
        if not views.data.any():
            out.zeros.append((start, start + len(views.data)))
        return
    dead = np.equal(views.sampled, 0, out=views.sampled_flags)
    if rooms.dead.find(1, 0, len(dead)) < 0:
        return
    edges = np.flatnonzero(np.diff(np.concatenate(([False], dead, [False])).view(np.int8)))
    first, behind = edges[::2], edges[1::2]
    kept = (behind - first >= 6) | (first == 0) | (behind == len(dead))
    for a, b in zip(first[kept].tolist(), behind[kept].tolist(), strict=True):
        out.zeros.append((start + a * _STEP, start + (b - 1) * _STEP + 8))


def _mark(out: _Found, start: int, rooms: _Rooms, views: _Views, rare: np.uint16) -> None:
    """Keep some windows, chosen by what they begin with: the same ones wherever the bytes are."""
    import numpy as np

    np.equal(views.words, rare, out=views.words_flags)
    find, piece, last, step, inside = rooms.chosen.find, rooms.piece, views.last, views.step, views.inside
    hit = find(1, 0, last)  # much faster than NumPy where there are few
    while hit >= 0:
        at = hit * step + inside
        out.windows += piece[at : at + _WINDOW]
        out.starts.append(start + at)
        hit = find(1, hit + 1, last)


def _hash_windows(out: _Found) -> None:
    """Make marks of the windows that were kept, but for patterns; many at once, as each call of NumPy has its price."""
    import numpy as np

    if not out.starts:
        return
    windows = np.frombuffer(out.windows, np.uint64).reshape(-1, _WINDOW // 8)
    varied = (windows != windows[:, :1]).any(axis=1)
    hashed = windows[varied] * np.array(_FACTORS, np.uint64)
    out.marks.append(np.bitwise_xor.reduce(hashed ^ (hashed >> np.uint64(29)), axis=1))
    out.places.append(np.array(out.starts)[varied])
