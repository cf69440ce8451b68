"""Tensor infos that are lost from a header, made again where everything around them leaves one possibility.

The layers of a model are alike: what stands between two tensors in one layer stands between the same two in the
others, and the room that is left for its data must fit to the byte. Where two answers fit, there is none.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from atlas_kit.formats.gguf.salvage import LostRange, Salvage
from atlas_kit.formats.gguf.scan import align
from atlas_kit.formats.gguf.tables import DEFAULT_ALIGNMENT, MAX_ALIGNMENT
from atlas_kit.formats.gguf.tensors import TensorInfo

#: More lost infos than this are not looked for, nor as many in one place.
MOST = 64
_LAYERED = re.compile(r"(.*?\.)(\d+)(\..+)", re.DOTALL)

#: Name without its layer: what is before the layer's number, and what follows it.
Kind = tuple[str, str]


@dataclass(frozen=True)
class _Gap:
    """Room in the data between two tensors of the table: before the one at ``index``, at ``offset`` for ``size``."""

    index: int
    offset: int
    size: int
    lost: LostRange | None


def rebuild(found: Salvage) -> list[str]:
    """Put the infos that can be made again into ``found``; return their names."""
    count = (found.tensor_count or 0) - len(found.tensors)
    if not 0 < count <= MOST or len(found.tensors) < 2:
        return []
    made: list[str] = []
    for gap in reversed([*_gaps(found)]):
        plans = {
            plan
            for plan in _plans(found.tensors, gap.index)
            if len(plan) <= count and _fits(found, plan, gap)
        }
        if len(plans) != 1:
            continue
        plan = plans.pop()
        at = gap.lost.start if gap.lost is not None else _behind(found.tensors, gap.index)
        placed, offset = [], gap.offset
        for info in plan:
            placed.append(replace(info, offset=offset, info_offset=at))
            offset = align(offset + (info.nbytes or 0), _alignment(found))
        found.tensors[gap.index : gap.index] = placed
        if gap.lost is not None:
            found.lost.remove(gap.lost)
        else:
            found.cut_out = True
        made[:0] = [info.name for info in plan]
        count -= len(plan)
    return made


def _alignment(found: Salvage) -> int:
    value = next((f.items for f in found.fields if f.key == "general.alignment"), DEFAULT_ALIGNMENT)
    good = isinstance(value, int) and 0 < value <= MAX_ALIGNMENT and not value & (value - 1)
    return int(value) if good else DEFAULT_ALIGNMENT  # type: ignore[arg-type]


def _behind(tensors: Sequence[TensorInfo], index: int) -> int:
    """Return where the info before an index ends."""
    before = tensors[max(0, index - 1)]
    return before.info_offset + before.info_size


def _gaps(found: Salvage) -> Iterator[_Gap]:
    """Yield the room that no known tensor has, in tables whose data are in the order of their infos."""
    alignment, at = _alignment(found), 0
    for index, info in enumerate(found.tensors):
        if info.nbytes is None or info.offset < at:
            return  # another order, or damage that has to do with other things
        if info.offset > at:
            start = _behind(found.tensors, index) if index else -1
            between = [one for one in found.lost if start <= one.start and one.stop <= info.info_offset]
            if index or between:
                yield _Gap(index, at, info.offset - at, between[-1] if between else None)
        at = align(info.offset + info.nbytes, alignment)


def _fits(found: Salvage, plan: tuple[TensorInfo, ...], gap: _Gap) -> bool:
    """Tell whether tensors have the room that is left for their data, and for their infos, exactly."""
    known = {info.name for info in found.tensors}
    if any(info.name in known or info.nbytes is None for info in plan):
        return False
    if sum(align(info.nbytes or 0, _alignment(found)) for info in plan) != gap.size:
        return False
    if gap.lost is None:
        return True
    text = found.layout.tensor_info
    sizes = (len(text.build(info.to_schema())) for info in plan)
    return sum(sizes) == gap.lost.stop - gap.lost.start


def _split(name: str) -> tuple[Kind, int] | None:
    match = _LAYERED.fullmatch(name)
    return None if match is None else ((match[1], match[3]), int(match[2]))


def _plans(tensors: Sequence[TensorInfo], index: int) -> Iterator[tuple[TensorInfo, ...]]:
    """Yield what may have stood before the tensor at an index."""
    yield from _as_elsewhere(tensors, index)
    for one in _missing(tensors):
        yield (one,)


def _as_elsewhere(tensors: Sequence[TensorInfo], index: int) -> Iterator[tuple[TensorInfo, ...]]:
    """Yield what stands between the same two tensors of other layers, renamed to the layers here."""
    before = _split(tensors[index - 1].name) if index else None
    behind = _split(tensors[index].name)
    if before is None or behind is None:
        return
    split = [_split(info.name) for info in tensors]
    for start, one in enumerate(split):
        if one is None or one[0] != before[0] or start == index - 1:
            continue
        shift = before[1] - one[1]
        between: list[TensorInfo] = []
        for place in range(start + 1, min(len(tensors), start + 2 + MOST)):
            other = split[place]
            if other is None:
                break
            if other[0] == behind[0] and other[1] + shift == behind[1]:
                if between:
                    yield tuple(between)
                break
            name = f"{other[0][0]}{other[1] + shift}{other[0][1]}"
            between.append(_bare(tensors[place], name))


def _missing(tensors: Sequence[TensorInfo]) -> Iterator[TensorInfo]:
    """Yield the tensors that one layer lacks and all others have, of each type that they have there."""
    kinds: dict[Kind, dict[int, TensorInfo]] = defaultdict(dict)
    layers: dict[str, set[int]] = defaultdict(set)
    for info in tensors:
        split = _split(info.name)
        if split is not None:
            kinds[split[0]][split[1]] = info
            layers[split[0][0]].add(split[1])
    for (first, last), there in kinds.items():
        lacking = layers[first] - set(there)
        shapes = {info.dims for info in there.values()}
        if len(lacking) != 1 or len(there) < 2 or len(shapes) != 1:
            continue
        name = f"{first}{lacking.pop()}{last}"
        for info in there.values():
            yield _bare(info, name)


def _bare(info: TensorInfo, name: str) -> TensorInfo:
    """Return an info that says what a tensor is and not where."""
    return replace(info, name=name, offset=0, info_offset=-1, info_size=-1, data_start=0, path=None)


__all__ = ["rebuild"]
