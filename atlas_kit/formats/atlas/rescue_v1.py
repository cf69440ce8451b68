"""From the pieces of a version 1 file to a rescue plan."""

from __future__ import annotations

from typing import TYPE_CHECKING

from atlas_kit.formats.atlas import layout, v1
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.rescue_plan import Plan
from atlas_kit.formats.atlas.store import Info, decode_key

if TYPE_CHECKING:
    from atlas_kit.formats.atlas.scan_v1 import Piece
    from atlas_kit.storage.source import Source

#: Times outside of this are not believed when the header's checksum does not vouch for them: 2000 to 2200.
PLAUSIBLE = range(946_684_800, 7_258_118_400)


def plan_v1(source: Source, pieces: list[Piece], max_key: int) -> Plan:
    """Decide what becomes of each piece."""
    entries = [piece for piece in pieces if piece.kind == "entry"]
    info, notes = _info_of(pieces, entries)
    plan = Plan(source, info, max_key=max_key)
    plan.notes += notes
    headers = 0
    for piece in pieces:
        if piece.kind == "header":
            headers += 1
            plan.segment += 1
        elif piece.kind == "bad-header":
            plan.run += 1
            plan.keep_gap(piece.offset, piece.size, "the header is damaged", keep=False)
        elif piece.kind == "gap":
            plan.run += 1
            plan.keep_gap(
                piece.offset, piece.size, "these bytes do not belong to any entry that could be found"
            )
        else:
            plan.run += piece.kind == "damaged"
            _take(plan, piece)
    top = pieces[0] if pieces and pieces[0].kind == "header" else None
    if top is not None and headers == 1 and not plan.lost:
        promised = layout.HEADER_V1_SHORT.unpack_from(top.raw)[3]
        if promised != len(entries):
            plan.notes.append(f"the header counts {promised} entries, and {len(entries)} are there")
    if headers > 1:
        plan.notes.append(f"{headers} files are joined here; their entries are rescued into one")
    return plan


def _take(plan: Plan, piece: Piece) -> None:
    key = decode_key(piece.key)
    entry = v1.entry_of(plan.source, piece.offset, piece.fields, key)
    if piece.kind == "entry":
        plan.save(entry, f"mended: {piece.how}" if piece.how else "intact")
    elif piece.kind == "keyless":
        plan.keep_gap(piece.offset, piece.payload_offset - piece.offset, "the key is damaged", keep=False)
        plan.keep(entry, str(piece.offset), "the key is damaged; the payload is whole")
    else:
        start = min(piece.payload_offset, piece.end)
        plan.keep_damaged(piece.offset, piece.size, entry, (start, piece.end - start), piece.how)


def _info_of(pieces: list[Piece], entries: list[Piece]) -> tuple[Info, list[str]]:
    """Return what the header says; where it is damaged, what of it can be believed."""
    top = pieces[0] if pieces else None
    if top is not None and top.kind == "header":
        return _parse(top.raw, top.dialect), []
    times = [piece.fields[4] for piece in entries if piece.fields[4] in PLAUSIBLE]
    created, modified = min(times, default=0), max(times, default=0)
    if top is None or top.kind != "bad-header" or len(top.raw) < 72:
        return Info(1, "v1", created, modified), ["the header is missing; its times are those of the entries"]
    proven = _with_counts(top.raw, entries)
    if proven is not None:
        return proven, ["the header's counts were wrong; the rest of it is confirmed by its checksum"]
    info = _parse(top.raw.ljust(layout.HEADER_V1.size, b"\0"), "v1")
    info.reserved = bytes(32)
    if info.created in PLAUSIBLE and info.modified in PLAUSIBLE:
        return info, ["the header's checksum does not match; its times and model hash are kept as they are"]
    return Info(1, "v1", created, modified), ["the header is damaged; its times are those of the entries"]


def _parse(raw: bytes, dialect: str) -> Info:
    packer = layout.HEADER_V1_SHORT if "96" in dialect else layout.HEADER_V1
    _, _, _, _, created, modified, total, model_hash, reserved = packer.unpack_from(raw)
    return Info(1, dialect, created, modified, model_hash, reserved.ljust(32, b"\0"), total_size=total)


def _with_counts(raw: bytes, entries: list[Piece]) -> Info | None:
    """Put the counts that the entries have into the header, and see whether its checksum fits then."""
    total = sum(33 + len(piece.key) + piece.fields[1] for piece in entries)
    for dialect, (size, checksum) in v1.DIALECTS.items():
        packer = layout.HEADER_V1_SHORT if "96" in dialect else layout.HEADER_V1
        if len(raw) < size:
            continue
        fields = packer.unpack_from(raw)
        for count, sum_ in ((len(entries), fields[6]), (fields[3], total), (len(entries), total)):
            body = packer.pack(t.MAGIC, 1, 0, count & t.U32, *fields[4:6], sum_, *fields[7:])
            if checksum(body[layout.SUMMED.start :]) == fields[2]:
                return _parse(body, dialect)
    return None
