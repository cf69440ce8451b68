"""Data that are there twice, as a download leaves them that was resumed too early or begun again in the middle.

Sound models repeat themselves, too: tied matrices that were written twice, layers of a merge, heads and experts
that were copied. Those are whole rows or whole tensors. What a download repeats begins and ends anywhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from atlas_kit.errors import Remedy
from atlas_kit.formats.weights.regions import Region, region_at
from atlas_kit.storage.source import CHUNK, Source

if TYPE_CHECKING:
    import numpy as np

    from atlas_kit.formats.findings import Report

#: Shorter repetitions are chance, or a pattern.
LEAST = 2048
#: Bytes that may be compared to find where repetitions begin and end, one and all of them.
_ONE, _ALL = 1 << 26, 1 << 28
#: Places with the same content that are more than this many are a pattern, and none of them is looked at.
_PATTERN = 4
#: How far before a place its bytes are looked for.
_BEFORE = 1 << 27
#: Repetitions that are told one by one.
_TOLD = 8


def report_repeats(
    report: Report,
    source: Source,
    regions: Sequence[Region],
    marks: np.ndarray[Any, Any],
    places: np.ndarray[Any, Any],
) -> None:
    """Say which bytes are there a second time and should not be.

    Parameters
    ----------
    marks, places
        Hashes of short windows, chosen by their content, and where in the file they are.
    """
    left, told = _ALL, 0
    seen: dict[int, int] = {}  # by distance: how far repetitions are known
    for first, second in _pairs(marks, places):
        distance = second - first
        if distance < LEAST or seen.get(distance, -1) >= first or _is_copy(regions, first, second):
            continue
        start, length = _extent(source, first, second, min(_ONE, left))
        left -= length
        seen[distance] = start + length
        if length >= LEAST and not _whole_rows(regions, first, second, start, length):
            _say(report, regions, start, distance, length)
            told += 1
        if left <= 0 or told >= _TOLD:
            return


def report_resumed(report: Report, source: Source, regions: Sequence[Region], surplus: int) -> bool:
    """Look for the place where a download that is ``surplus`` bytes too long was resumed too early; say so if found.

    Without reading the data: whatever was written twice is ``surplus`` bytes before its second copy. Of a file that
    is far away nothing is looked at: each place would be a journey.
    """
    found = resumed(source, surplus)
    if found is None:
        return False
    _say(report, regions, found[0], surplus, found[1], whole_without=found[1] >= surplus)
    return True


def resumed(source: Source, surplus: int) -> tuple[int, int] | None:
    """Return where bytes begin that stand again ``surplus`` bytes behind it, and how many; ``None`` if there are none.

    They are nearly as many as ``surplus``, or more.
    """
    if surplus < LEAST or source.far:
        return None
    step = max(surplus // 2, source.size // 4096, 1)
    for at in range(0, max(0, source.size - surplus), step):
        first = source.read_upto(at, 64)
        if len(set(first)) > 8 and first == source.read_upto(at + surplus, 64):
            begin, length = _extent(source, at, at + surplus, surplus + step)
            if 10 * length >= 9 * surplus:
                return begin, length
    return None


def report_shifted(report: Report, source: Source, regions: Sequence[Region], offset: int) -> None:
    """Look for the bytes at ``offset``, where numbers begin to be nonsense, in what lies before; say so if found."""
    window = source.read_upto(offset, 48)
    low, stop = max(0, offset - _BEFORE), offset
    while stop > low and len(set(window)) > 8:
        start = max(low, stop - CHUNK)
        at = source.read_upto(start, stop - start + len(window) - 1).rfind(window)
        if at >= 0 and start + at < offset:
            begin, length = _extent(source, start + at, offset, offset - start - at)
            if length >= LEAST:
                _say(report, regions, begin, offset - start - at, length)
            return
        stop = start


def _say(
    report: Report,
    regions: Sequence[Region],
    start: int,
    distance: int,
    length: int,
    *,
    whole_without: bool = False,
) -> None:
    again = start + distance
    region = region_at(regions, again)
    if any(one.code == "data-repeated" and one.offset == again for one in report.findings()):
        return
    what = f"{length} bytes are the same as those at byte {start}"
    if start == 0:
        what += ": a download was begun again in the middle, and what follows is shifted"
    elif abs(length - distance) <= distance // 16:
        what += f": a download was resumed {distance} bytes too early, and what follows is shifted"
    report.error(
        "data-repeated",
        what,
        "Without them the file is whole." if whole_without else "Get the file again.",
        offset=again,
        key=region.name if region else None,
        remedy=Remedy("mend") if whole_without else None,
    )


def _pairs(marks: np.ndarray[Any, Any], places: np.ndarray[Any, Any]) -> list[tuple[int, int]]:
    """Return pairs of places with equal marks, those of one distance together and in their order."""
    import numpy as np

    alone = np.sort(marks)
    if not (alone[1:] == alone[:-1]).any():  # as in most files, and cheap to see
        return []
    order = np.lexsort((places, marks))
    marks, places = marks[order], places[order]
    new = np.flatnonzero(np.concatenate(([True], marks[1:] != marks[:-1])))
    counts = np.diff(np.append(new, len(marks)))
    few = np.repeat((counts > 1) & (counts <= _PATTERN), counts)
    same = np.flatnonzero((marks[1:] == marks[:-1]) & few[1:])
    first, second = places[same], places[same + 1]
    order = np.lexsort((first, second - first))
    return list(zip(first[order].tolist(), second[order].tolist(), strict=True))


def _is_copy(regions: Sequence[Region], first: int, second: int) -> bool:
    """Tell whether both are at the same place of their tensors, as in copies of whole tensors."""
    a, b = region_at(regions, first), region_at(regions, second)
    return a is not None and b is not None and a is not b and first - a.start == second - b.start


def _whole_rows(regions: Sequence[Region], first: int, second: int, start: int, length: int) -> bool:
    a, b = region_at(regions, first), region_at(regions, second)
    if a is None or b is None or a.row != b.row or (first - a.start - second + b.start) % a.row:
        return False
    again = start + second - first
    if start < a.start and again < b.start:  # what lies before both is the same by chance, or padding
        return a.start - start < 64
    return not (
        a.breaks_row(start, before=True)
        or a.breaks_row(start + length, before=False)
        or b.breaks_row(again, before=True)
        or b.breaks_row(again + length, before=False)
    )


def _extent(source: Source, first: int, second: int, most: int) -> tuple[int, int]:
    """Return (start of the first copy, length) of what is equal around two places."""
    import numpy as np

    def equal(a: bytes, b: bytes) -> Any:
        return np.frombuffer(a, np.uint8) == np.frombuffer(b, np.uint8)

    back, step = 0, 4096
    while back < min(most, first):
        size = min(step, first - back)
        same = equal(
            source.read_upto(first - back - size, size), source.read_upto(second - back - size, size)
        )
        if not same.all():
            back += int(same[::-1].argmin())
            break
        back, step = back + size, min(CHUNK, 4 * step)
    ahead, step = 0, 4096
    while ahead < most and second + ahead < source.size:
        b = source.read_upto(second + ahead, step)
        same = equal(source.read_upto(first + ahead, len(b)), b)
        if not same.all():
            ahead += int(same.argmin())
            break
        ahead, step = ahead + len(b), min(CHUNK, 4 * step)
    return first - back, back + ahead
