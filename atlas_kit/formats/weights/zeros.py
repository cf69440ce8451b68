"""Ranges of zeros, and which of them are lost data: what a downloader had reserved and never filled.

Zeros are nothing unusual in a model: biases, rows of tokens that no text has, whole matrices of an adapter that
was not trained. Those begin and end where rows and tensors do. What was not downloaded begins anywhere.
Needs no NumPy.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from atlas_kit.errors import TruncatedError
from atlas_kit.formats.weights.regions import Region, touched
from atlas_kit.storage.source import CHUNK, Source

if TYPE_CHECKING:
    from atlas_kit.formats.findings import Report

#: Shorter ranges are not looked at.
LEAST = 4096
#: How many places of a file are looked at where its data are not read.
SAMPLES = 64
#: Holes that are looked at: a file may have millions.
_HOLES = 4096
#: How far a range of zeros is followed where data are not read: whoever has lost so much need not know how much.
_FAR = 1 << 29

#: Tensors with a row for each token: tokens that are not used are the last ones, and zeros.
_ROWS_OF_TOKENS = re.compile(r"emb|output|lm_head|wte")

_NUMBER = re.compile(r"\d+")

Range = tuple[int, int]


def quick_zeros(source: Source, regions: Sequence[Region]) -> list[Range]:
    """Return ranges of zeros that show without reading the data: holes, the end, and around some sampled places.

    None of a file that is far away, where each place would be a journey.
    """
    if not regions or source.far:
        return []
    low, high = regions[0].start, min(source.size, max(region.stop for region in regions))
    holes = (hole for hole in islice(source.holes(low, high), _HOLES) if hole[1] - hole[0] >= LEAST)
    found = [extended(source, *hole, low, high) for hole in holes]
    read = 0
    for page in (high - LEAST, *(low + (high - low) * number // SAMPLES for number in range(SAMPLES))):
        start, stop = max(low, page), min(high, page + LEAST)
        if any(a <= start and stop <= b for a, b in found) or any(source.read_upto(start, stop - start)):
            continue
        found.append(extended(source, start, stop, low, high))
        read += found[-1][1] - found[-1][0]
        if read >= _FAR:
            break
    return merged(found)


def extended(source: Source, start: int, stop: int, low: int, high: int) -> Range:
    """Return a range of zeros with all the zeros beside it, between two bounds."""
    first, step = max(low, start - _FAR), LEAST
    while start > first:
        piece = source.read_upto(max(first, start - step), min(step, start - first))
        kept = len(piece.rstrip(b"\0"))
        start -= len(piece) - kept
        if kept or not piece:
            break
        step = min(CHUNK, 4 * step)
    last, step = min(high, stop + _FAR), LEAST
    while stop < last:
        piece = source.read_upto(stop, min(step, last - stop))
        kept = len(piece.lstrip(b"\0"))
        stop += len(piece) - kept
        if kept or not piece:
            break
        step = min(CHUNK, 4 * step)
    return start, stop


def merged(ranges: Iterable[Range]) -> list[Range]:
    """Return ranges in their order, those that touch as one."""
    out: list[Range] = []
    for start, stop in sorted(ranges):
        if out and start <= out[-1][1]:
            out[-1] = out[-1][0], max(out[-1][1], stop)
        else:
            out.append((start, stop))
    return out


def report_zeros(
    report: Report, source: Source, regions: Sequence[Region], ranges: Sequence[Range], *, thorough: bool
) -> None:
    """Say which ranges of zeros are lost data; ``thorough`` also tells of what is only odd.

    Parameters
    ----------
    ranges
        Whole ranges of zeros, as ``quick_zeros`` or a scan has found them.
    """
    matrices = [region for region in regions if region.matrix and region.size]
    lost: list[tuple[Range, list[Region]]] = []
    dead: list[Region] = []
    for start, stop in ranges:
        under = [region for region in touched(regions, start, stop) if region.matrix]
        if stop - start >= LEAST and under and _is_lost(source, matrices, under, start, stop):
            lost.append(((start, stop), under))
        elif thorough:
            dead += _odd(report, under, start, stop)
        elif stop - start >= LEAST and matrices and start <= matrices[0].start and matrices[-1].stop <= stop:
            dead += matrices
    if dead and len(dead) == len(matrices) and _is_reserved(source, dead):
        report.error(
            "tensor-zeroed",
            f"all weights are zeros, and nothing was ever written in their place: {named_some(dead)}",
            "A download that reserved the room and did not fill it leaves this. Get the file again.",
            offset=dead[0].start,
            key=dead[0].name,
            remedy=None,
        )
    elif dead:
        report.warning(
            "tensor-all-zeros",
            f"all weights are zeros: {named_some(dead)}",
            _hint(matrices, dead),
            offset=dead[0].start,
            key=dead[0].name,
        )
    for (start, stop), under in lost:
        end = " up to the end of the data" if stop >= regions[-1].stop else ""
        report.error(
            "tensor-zeroed",
            f"{stop - start} bytes of weights{end} are zeros and cut rows short: {named_some(under)}",
            "A download or copy that was not finished leaves this. Get the file again.",
            offset=start,
            key=under[0].name,
            remedy=None,
        )


def _hint(matrices: Sequence[Region], dead: Sequence[Region]) -> str:
    """Return what zeros mean: programs load them, and whether they are rightful shows by the layers beside them."""
    zeros = {region.name for region in dead}
    kinds = {_NUMBER.sub("#", name) for name in zeros}
    alive = any(_NUMBER.sub("#", region.name) in kinds for region in matrices if region.name not in zeros)
    if alive:
        return (
            "Programs load it, and other layers hold numbers there: unless this one was switched off on purpose "
            "(pruned), its data are lost. Compare the hash with the original's."
        )
    return "Programs load it. Right for an adapter that was not trained, or a part that is not used; otherwise lost."


def _is_reserved(source: Source, regions: Sequence[Region]) -> bool:
    """Tell whether most of the regions' place in the file is a hole."""
    low, high = regions[0].start, regions[-1].stop
    empty = sum(stop - start for start, stop in islice(source.holes(low, high), _HOLES))
    return 2 * empty > high - low


def _is_lost(
    source: Source, matrices: Sequence[Region], under: Sequence[Region], start: int, stop: int
) -> bool:
    """Tell whether no sound model has these zeros: they begin or end inside a row, or pass from matrix to matrix."""
    first, last = under[0], under[-1]
    cuts = first.breaks_row(max(start, first.start), before=True) or last.breaks_row(
        min(stop, last.stop), before=False
    )
    if len(under) == 1:
        covered = min(stop, first.stop) - max(start, first.start)
        if covered < first.size and stop >= matrices[-1].stop:  # where a download that stopped leaves them
            return cuts or 10 * covered > first.size or not _ROWS_OF_TOKENS.search(first.name)
        return cuts and covered >= 2 * first.row
    whole = start <= first.start and stop >= last.stop
    return cuts or not whole or not _all_dead(source, matrices, under)


def _all_dead(source: Source, matrices: Sequence[Region], but: Sequence[Region]) -> bool:
    """Tell whether the other matrices are zeros, too, as in a template without weights."""
    names = {region.name for region in but}
    return all(_is_dead(source, region) for region in matrices if region.name not in names)


def _is_dead(source: Source, region: Region) -> bool:
    places = (region.start, region.start + region.size // 2, region.stop - min(256, region.size))
    try:
        return not any(any(source.read_upto(at, min(256, region.stop - at))) for at in places)
    except TruncatedError:
        return False


def named_some(regions: Sequence[Region]) -> str:
    """Return the names of three regions, and how many more there are."""
    more = f" and {len(regions) - 3} more" if len(regions) > 3 else ""
    return ", ".join(region.name for region in regions[:3]) + more


def _odd(report: Report, under: Sequence[Region], start: int, stop: int) -> list[Region]:
    """Warn of matrices of which a large part is zeros; return those that are nothing else."""
    dead = []
    for region in under:
        covered = min(stop, region.stop) - max(start, region.start)
        if covered == region.size:
            dead.append(region)
        elif 4 * covered >= region.size and covered >= LEAST:
            report.warning(
                "tensor-many-zeros",
                f"{covered} of its {region.size} bytes, in one piece, are zeros",
                "Rows of tokens that are not used may be; more than that is lost.",
                offset=max(start, region.start),
                key=region.name,
            )
    return dead


def joined(source: Source, ranges: Iterable[Range], low: int, high: int) -> Iterator[Range]:
    """Yield whole ranges of zeros from parts of them with unread gaps of up to two kilobytes in between."""
    current: Range | None = None
    for start, stop in sorted(ranges):
        if current is not None and start <= current[1] + 2048 and _zeros(source, current[1], start):
            current = current[0], max(current[1], stop)
            continue
        if current is not None and current[1] - current[0] >= LEAST - 1024:
            yield extended(source, *current, low, high)
        current = start, stop
    if current is not None and current[1] - current[0] >= LEAST - 1024:
        yield extended(source, *current, low, high)


def _zeros(source: Source, start: int, stop: int) -> bool:
    return stop <= start or not any(source.read_upto(start, stop - start))
