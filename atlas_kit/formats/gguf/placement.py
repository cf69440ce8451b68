"""Where the tensor data of a damaged file really is: the reading of its header that fits its size best.

Offsets may be wrong, padding may be missing, the alignment may be a lie. Each combination predicts where the
file should end; the one under which most tensors lie inside the file without sharing bytes, and which ends
where the file does, wins. Ties go to what the header says.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace

from atlas_kit.formats.gguf import tables
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.tensors import TensorInfo
from atlas_kit.storage.source import Source


@dataclass(frozen=True)
class Placement:
    """Where each tensor starts in the file (``None``: nowhere), and how that was found out.

    ``kind`` is ``"declared"`` when the header's own offsets are used and ``"running"`` when they are computed
    from the sizes; ``alignment`` is the one that the file was written with; ``stop`` is where data ends;
    ``exact`` whether that is where the file ends.
    """

    data_start: int
    alignment: int
    starts: tuple[int | None, ...]
    kind: str
    stop: int
    exact: bool = True


@dataclass(frozen=True)
class _Reading:
    offsets: tuple[int, ...]
    alignment: int
    kind: str


def running(sizes: list[int], alignment: int) -> tuple[int, ...]:
    """Return the offsets that llama.cpp wants: each behind the padded tensors before it."""
    out, total = [], 0
    for size in sizes:
        out.append(total)
        total = align(total + size, alignment)
    return tuple(out)


def correct_infos(
    tensors: list[TensorInfo], end: int, size: int, alignment: int, *, complete: bool
) -> list[tuple[int, TensorInfo, str]]:
    """Find tensors whose shape or type is damaged and follows from the others.

    Between two sound neighbours there is exactly one place for a tensor, and often only one shape or type
    that fills it. A place that is merely too large may have held another tensor, too, unless all that were
    counted are there (``complete``). Behind the last tensor there is no neighbour, only the end of the file,
    and a file that was cut off or appended to is likelier than a damaged shape: there only a tensor of the
    same kind in another layer counts. Returns (index, corrected info, what was wrong).
    """
    out = []
    data_end = size - align(end, alignment)
    known = _Known(tensors, alignment)
    low = 0
    for index, info in enumerate(tensors):
        last = index + 1 == len(tensors)
        high = data_end if last else tensors[index + 1].offset
        sound = info.nbytes is not None and align(info.offset + info.nbytes, alignment) == align(
            high, alignment
        )
        if sound and info.offset == low:
            low = high
            continue
        if not last and not _fits(tensors, index + 1, alignment, data_end):
            low = align(info.offset + (info.nbytes or 0), alignment)
            continue
        room = high - low
        too_large = info.nbytes is None or info.nbytes > room
        better = None
        if room > 0 and (too_large or complete):
            cut = last and info.nbytes is not None
            better = known.like_sibling(info, room) if cut else known.fill(info, room, certain=too_large)
        if better is not None:
            names = (("shape", info.dims, better[0]), ("type", info.type, better[1]))
            wrong = [what for what, old, new in names if old != new]
            if wrong:
                new = replace(info, dims=better[0], type=better[1], offset=low)
                out.append((index, new, " and ".join(wrong)))
        low = high
    return out


def _fits(tensors: list[TensorInfo], index: int, alignment: int, data_end: int) -> bool:
    """Tell whether a tensor ends where the next one starts."""
    info = tensors[index]
    high = tensors[index + 1].offset if index + 1 < len(tensors) else data_end
    return info.nbytes is not None and align(info.offset + info.nbytes, alignment) == align(high, alignment)


class _Known:
    """Shapes and types that occur in the file: by name without the layer, and at all."""

    def __init__(self, tensors: list[TensorInfo], alignment: int) -> None:
        self.alignment = alignment
        self.types = sorted({info.type for info in tensors if info.row is not None})
        self.shapes = {info.dims for info in tensors}
        self.siblings: dict[str, list[TensorInfo]] = {}
        for info in tensors:
            self.siblings.setdefault(_without_layer(info.name), []).append(info)

    def full(self, dims: tuple[int, ...], kind: int, room: int) -> bool:
        """Tell whether a tensor takes up exactly ``room`` bytes."""
        nbytes = tables.tensor_nbytes(dims, kind)
        return nbytes is not None and (nbytes == room or align(nbytes, self.alignment) == room)

    def like_sibling(self, info: TensorInfo, room: int) -> tuple[tuple[int, ...], int] | None:
        """Return the (shape, type) that fits ``room``: its own, or that of its kind in another layer."""
        for other in (info, *self.siblings[_without_layer(info.name)]):
            if self.full(other.dims, other.type, room):
                return other.dims, other.type
        return None

    def fill(self, info: TensorInfo, room: int, *, certain: bool) -> tuple[tuple[int, ...], int] | None:
        """Return the (shape, type) nearest to a tensor's own that takes up exactly ``room`` bytes."""
        alike = self.like_sibling(info, room)
        if alike is not None:
            return alike
        for kind in self.types:
            if self.full(info.dims, kind, room):
                return info.dims, kind
        found = set(_resized(info, room))
        for candidates in (found & self.shapes, found if certain else set()):
            if len(candidates) == 1:
                return candidates.pop(), info.type
        return None


def _resized(info: TensorInfo, room: int) -> Iterator[tuple[int, ...]]:
    """Yield the shapes with one length changed so that the tensor takes up ``room`` bytes."""
    for place in range(len(info.dims)):
        step = info.row.block if place == 0 and info.row is not None else 1
        one = (*info.dims[:place], step, *info.dims[place + 1 :])
        nbytes = tables.tensor_nbytes(one, info.type)
        if nbytes and room % nbytes == 0:
            yield (*info.dims[:place], room // nbytes * step, *info.dims[place + 1 :])


def _without_layer(name: str) -> str:
    return re.sub(r"\.\d+\.", ".N.", name)


def place(
    tensors: list[TensorInfo],
    sizes: list[int],
    end: int,
    source: Source,
    declared: int | None,
    *,
    shifted: bool = False,
) -> Placement:
    """Find the tensors' data.

    Parameters
    ----------
    end
        Where the header ends.
    declared
        The header's alignment, ``None`` if that is unusable.
    shifted
        Bytes of the header may be lost or too many, so that the data need not be aligned any more.
    """
    if not tensors:
        return Placement(end, declared or tables.DEFAULT_ALIGNMENT, (), "declared", end)
    best: tuple[tuple[int, ...], Placement] | None = None
    for reading in _readings(tensors, sizes, declared):
        first = align(end, reading.alignment)
        starts = [first, align(end, declared or first or 1), align(end, 32), end]
        if shifted:
            starts += _counted_from_the_end(reading, sizes, end, source)
        for data_start in dict.fromkeys(starts):
            score, placed = _judge(reading, sizes, data_start, end, source)
            if declared and not _may_start(placed, align(end, declared), source):
                continue
            score = (*score, reading.kind == "declared", reading.alignment == declared, data_start == first)
            if best is None or score > best[0]:
                best = score, placed
    assert best is not None
    return best[1]


def _may_start(placed: Placement, first: int, source: Source) -> bool:
    """Tell whether the data may start before ``first``, where the header says that it does.

    A file that lost a few bytes at its end also looks whole when all data is moved up by as many. So the
    padding must be missing beyond doubt: the file ends where it then should, and what is there is no padding.
    """
    gap = source.read_upto(placed.data_start, max(first - placed.data_start, 0))
    return placed.data_start >= first or (placed.exact and any(gap))


def _counted_from_the_end(reading: _Reading, sizes: list[int], end: int, source: Source) -> Iterator[int]:
    """Yield the starts with which the data ends where the file does, behind nothing but padding."""
    last = max(o + s for o, s in zip(reading.offsets, sizes, strict=True))
    for stop in (last, align(last, reading.alignment)):
        start = source.size - stop
        if end <= start < end + reading.alignment and not any(source.read(end, start - end)):
            yield start


def _readings(tensors: list[TensorInfo], sizes: list[int], declared: int | None) -> Iterator[_Reading]:
    """Yield ways to read the offsets, the likeliest first."""
    offsets = tuple(info.offset for info in tensors)
    powers = [1 << power for power in range(tables.MAX_ALIGNMENT.bit_length())]
    likely = [alignment for alignment in (declared, tables.DEFAULT_ALIGNMENT) if alignment]
    candidates = list(dict.fromkeys((*likely, *reversed(powers))))
    agreeing = [alignment for alignment in candidates if running(sizes, alignment) == offsets]
    for alignment in agreeing[:4]:
        yield _Reading(offsets, alignment, "declared")
    if not agreeing:
        yield _Reading(offsets, likely[0], "declared")
        for alignment in dict.fromkeys((*likely, 64, 16, 8, 1)):
            yield _Reading(running(sizes, alignment), alignment, "running")


def _judge(
    reading: _Reading, sizes: list[int], data_start: int, end: int, source: Source
) -> tuple[tuple[int, ...], Placement]:
    """Return (how well a reading fits, where it puts the tensors)."""
    starts: list[int | None] = [None] * len(sizes)
    offsets = reading.offsets
    # by their ends: one tensor of absurd size must not push out all that start inside it
    order = sorted(range(len(sizes)), key=lambda index: (offsets[index] + sizes[index], offsets[index]))
    strict = offsets != running(sizes, reading.alignment)
    free, whole = 0, 0
    for index in order:
        offset, size = offsets[index], sizes[index]
        inside = data_start + offset < source.size or not size
        if offset < free or not inside or (strict and offset % min(reading.alignment, 32)):
            continue
        starts[index] = data_start + offset
        free = offset + size
        whole += data_start + free <= source.size
    last = max((o + s for o, s in zip(reading.offsets, sizes, strict=True)), default=0)
    exact = source.size in (data_start + last, data_start + align(last, reading.alignment))
    gap = source.read_upto(end, max(data_start - end, 0)) if data_start - end <= tables.MAX_ALIGNMENT else b""
    placement = Placement(
        data_start, reading.alignment, tuple(starts), reading.kind, min(data_start + free, source.size), exact
    )
    return (whole, exact, not any(gap)), placement
