"""Bytes on the terminal: the table of fields, the map drawn to scale, and plain hexadecimal lines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.cli import _render

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.operations.byte_map import MapRegion
    from atlas_kit.operations.hex_line import HexLine

#: The map's width and its largest height, in cells.
COLUMNS, ROWS = 64, 16
#: How many regions are listed below the map.
LISTED = 40
#: Letters for kinds of regions that are common; other kinds get the first free letter of their name.
LETTERS = {"padding": ".", "unused": "?", "garbage": "?", "header": "H", "metadata": "M", "tensor info": "I",
           "tensor": "T"}  # fmt: skip


def hex_blocks(fields: list[HexLine], error: str | None) -> Iterator[_render.Block]:
    """Yield the fields of a file as a table, and what stopped the walk, if anything did."""
    rows = []
    for line in fields:
        data = line.data.hex(" ") + (" ..." if line.size > len(line.data) else "")
        meaning = _render.name(line.meaning)
        rows.append((f"{line.offset:#010x}", line.size, data, line.name, line.type, line.value, meaning))
    yield _render.Table([">offset", ">size", "bytes", "field", "type", "value", "meaning"], rows)
    if error:
        yield _render.Lines([_render.Styled(f"here it ends: {error}", "bad")])


def dump_lines(data: bytes, start: int = 0) -> list[str]:
    """Return bytes as lines of offset, hexadecimal and text."""
    lines = []
    for at in range(0, len(data), 16):
        piece = data[at : at + 16]
        text = "".join(chr(b) if 32 <= b < 127 else "." for b in piece)
        lines.append(f"{start + at:08x}  {piece.hex(' '):<47}  {text}")
    return lines


def map_blocks(regions: list[MapRegion], size: int) -> Iterator[_render.Block]:
    """Yield the picture of a file, what its letters mean, and its regions."""
    if not regions:
        yield "the file is empty"
        return
    letters = _letters(regions)
    cells = max(1, min(size, COLUMNS * ROWS))
    picture = _picture(regions, size, cells, letters)
    yield f"one cell is {_render.exact_size(-(-size // cells))}"
    lines = []
    for row in range(0, cells, COLUMNS):
        lines.append(f"{row * size // cells:>12,}  {picture[row : row + COLUMNS]}")
    yield _render.Lines(lines)
    yield _legend(regions, size, letters)
    shown = [r for r in regions if r.kind != "padding"]
    rows = [(f"{r.offset:,}", f"{r.size:,}", r.kind, _render.name(r.name)) for r in shown[:LISTED]]
    yield _render.Table([">offset", ">size", "kind", "name"], rows)
    if len(shown) > LISTED:
        yield f"... and {len(shown) - LISTED:,} more (--json lists all)"


def _letters(regions: list[MapRegion]) -> dict[str, str]:
    letters: dict[str, str] = {}
    for kind in dict.fromkeys(region.kind for region in regions):
        usual = LETTERS.get(kind)
        free = (c for c in f"{kind.upper()}{kind.lower()}0123456789#*+=" if c.isprintable() and c != " ")
        taken = {*letters.values(), *LETTERS.values()}
        letters[kind] = usual or next((c for c in free if c not in taken), "~")
    return letters


def _picture(regions: list[MapRegion], size: int, cells: int, letters: dict[str, str]) -> str:
    """Return one letter per cell: the kind that has the most bytes in it."""
    best = [(0.0, " ")] * cells
    totals: list[dict[str, float]] = [{} for _ in range(cells)]
    scale = cells / size
    for region in regions:
        start, stop = region.offset * scale, (region.offset + region.size) * scale
        for cell in range(int(start), min(cells, int(stop) + 1)):
            part = min(stop, cell + 1) - max(start, cell)
            if part <= 0:
                continue
            letter = letters[region.kind]
            total = totals[cell][letter] = totals[cell].get(letter, 0.0) + part
            if total > best[cell][0]:
                best[cell] = (total, letter)
    return "".join(letter for _, letter in best)


def _legend(regions: list[MapRegion], size: int, letters: dict[str, str]) -> _render.Table:
    total: dict[str, int] = {}
    count: dict[str, int] = {}
    for region in regions:
        total[region.kind] = total.get(region.kind, 0) + region.size
        count[region.kind] = count.get(region.kind, 0) + 1
    rows = [
        (letters[kind], kind, f"{count[kind]:,}", f"{bytes_:,}", f"{bytes_ / size:.1%}")
        for kind, bytes_ in total.items()
    ]
    return _render.Table(["", "kind", ">parts", ">bytes", ">share"], rows)
