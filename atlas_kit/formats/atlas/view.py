"""Showing a memory file's bytes: every field with its place and meaning, and the file as a map of regions.

Driven by the schemas in ``layout`` and the walks in ``scan_v1`` and ``scan_v2``, so that a damaged file shows
what is left of it. Prints nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import construct as cs

from atlas_kit.codecs import table as codecs
from atlas_kit.codecs.quantities import utc
from atlas_kit.errors import AtlasError, FileCorruptError
from atlas_kit.formats.atlas import checksums, layout, scan_v1, scan_v2, v1, v2
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.store import decode_key
from atlas_kit.formats.schema import Span, trace
from atlas_kit.storage.given import Given, use_source
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

#: Bytes of a payload that its row shows.
PREVIEW = 48

#: Rows of an index block that are listed; the rest is one row.
INDEX_ROWS = 16

#: Payloads up to this size are hashed to say whether their checksum fits.
HASHED = 1 << 26

_HEAD_V1 = cs.Struct(*layout.FullEntryV1.subcons[:-1])
_HEAD_V2 = cs.Struct(*layout.FullEntry.subcons[:-2])


@dataclass(frozen=True)
class AtlasRegion:
    """A range of bytes of one kind.

    ``kind`` is one of ``header``, ``entry`` (its head and key), ``payload``, ``index``, ``padding``,
    ``garbage`` (what updates left), ``uncommitted``, ``trailing`` and ``damaged``; ``name`` is the key where
    there is one.
    """

    offset: int
    size: int
    kind: str
    name: str = ""


# --- the map -----------------------------------------------------------------------------------------------


def byte_map(
    path: Given, *, passphrase: str | bytes | None = None, key: bytes | None = None
) -> list[AtlasRegion]:
    """Return the regions of a file in order; they cover every byte exactly once.

    With its secret, the entries of a version 3 file have their names.
    """
    with use_source(path) as source:
        regions = _map_v1(source) if _is_v1(source) else _map_v2(source, _cipher(source, passphrase, key))
        return [region for region in regions if region.size]


def _map_v1(source: Source) -> Iterator[AtlasRegion]:
    left: int | None = None  # entries that the header still promises
    for piece in scan_v1.Walker(source).walk():
        name = decode_key(piece.key)
        if left == 0:
            yield AtlasRegion(piece.offset, piece.size, "trailing", name)
        elif piece.kind == "header":
            left = layout.HEADER_V1_SHORT.unpack_from(piece.raw)[3] if piece.offset == 0 else left
            yield AtlasRegion(piece.offset, piece.size, "header", "")
        elif piece.kind in ("entry", "keyless", "damaged"):
            left = None if left is None else left - 1
            start = min(piece.payload_offset, piece.end)
            kind = "damaged" if piece.kind == "damaged" else "payload"
            yield AtlasRegion(piece.offset, start - piece.offset, "entry", name)
            yield AtlasRegion(start, piece.end - start, kind, name)
        else:
            yield AtlasRegion(
                piece.offset, piece.size, "damaged", "the header" if piece.kind == "bad-header" else ""
            )


def _map_v2(source: Source, cipher: Any) -> Iterator[AtlasRegion]:
    pieces = list(scan_v2.Walker(source).walk())
    files = scan_v2.own_files(pieces)
    live: set[int] = set()
    committed = source.size
    newest = {}
    for file_id, mine in files.items():
        state = scan_v2.state_of(source, mine, cipher)
        live |= {piece.offset for piece in (*state.live, *state.unproven)}
        if state.header is not None:
            newest[file_id] = state.header.index_offset
            if state.header_intact and pieces[0].header is state.header:
                committed = state.header.committed_size
    chain = _chain(pieces, newest)
    for piece in pieces:
        if piece.offset >= committed:
            yield AtlasRegion(piece.offset, piece.size, "uncommitted", _name(source, piece, cipher))
        elif piece.kind == "gap" or piece.foreign:
            yield AtlasRegion(piece.offset, piece.size, "damaged", "")
        elif piece.kind == "record":
            yield from _record(source, piece, cipher, alive=piece.offset in live)
        elif piece.kind == "index" and piece.block is not None:
            size = min(piece.block.size, piece.size)
            kind = "index" if piece.offset in chain else "garbage"
            name = f"{piece.block.num_records} records of commit {piece.generation}"
            yield AtlasRegion(piece.offset, size, kind, name if kind == "index" else f"old index: {name}")
            yield AtlasRegion(piece.offset + size, piece.size - size, "padding", "")
        else:
            kind = "header" if piece.kind == "header" else "damaged"
            yield AtlasRegion(piece.offset, piece.size, kind, "" if kind == "header" else "an index block")


def _chain(pieces: list[scan_v2.Piece], newest: dict[int, int]) -> set[int]:
    """Return the offsets of the index blocks that are in use."""
    blocks = {piece.offset: piece.block for piece in pieces if piece.block is not None}
    chain: set[int] = set()
    for start in newest.values():
        at = start
        while at not in chain and (block := blocks.get(at)) is not None:
            chain.add(at)
            at = block.prev_offset
    return chain


def _record(source: Source, piece: scan_v2.Piece, cipher: Any, *, alive: bool) -> Iterator[AtlasRegion]:
    name = _name(source, piece, cipher)
    if not alive:
        yield AtlasRegion(piece.offset, piece.size, "garbage", name)
        return
    start = min(piece.payload_offset, piece.end)
    stop = min(start + piece.stored_size, piece.end)
    whole = stop - start == piece.stored_size
    yield AtlasRegion(piece.offset, start - piece.offset, "entry", name)
    fits = whole and (piece.stored_size > HASHED or _payload_fits(source, piece))
    yield AtlasRegion(start, stop - start, "payload" if fits else "damaged", name)
    yield AtlasRegion(stop, piece.end - stop, "padding", "")


def _payload_fits(source: Source, piece: scan_v2.Piece) -> bool:
    wanted = v2.Fields._make(layout.ENTRY.unpack(source.read(piece.offset, layout.ENTRY.size))).data_checksum
    return bool(checksums.xxh3_of_chunks(source.chunks(piece.payload_offset, piece.stored_size)) == wanted)


def _name(source: Source, piece: scan_v2.Piece, cipher: Any) -> str:
    if piece.kind != "record":
        return ""
    if piece.attributes & t.ENCRYPTED and cipher is None:
        return f"entry {piece.ordinal}"
    try:
        return scan_v2.open_record(source, piece, cipher).key
    except AtlasError:
        return f"entry {piece.ordinal}"


# --- the fields --------------------------------------------------------------------------------------------


def hex_fields(
    path: Given,
    limit: int | None = 200,
    *,
    passphrase: str | bytes | None = None,
    key: bytes | None = None,
) -> tuple[list[Span], AtlasError | None]:
    """List the fields of a file in file order, the first ``limit`` of them.

    A payload is one row with its first bytes. ``note`` says what the field is and what its value means: times
    as dates, numbers by their names, checksums with whether they fit. Fields inside sealed heads (version 3,
    with the secret) stand at the place of their encrypted bytes.

    Returns
    -------
    spans, error
        The fields, and the first damage that was met on the way, if any.
    """
    with use_source(path) as source:
        rows = _rows_v1(source) if _is_v1(source) else _rows_v2(source, _cipher(source, passphrase, key))
        spans: list[Span] = []
        error: AtlasError | None = None
        for span in rows:
            if limit is not None and len(spans) >= limit:
                break
            spans.append(span)
            if error is None and span.name.startswith("damaged"):
                error = FileCorruptError(
                    f"{span.size} bytes are damaged: {span.note}", path=source.path, offset=span.offset
                )
        return spans, error


def record_fields(
    source: Source, offset: int, name: str, *, version: int, cipher: Any = None, first: int = 0
) -> list[Span]:
    """List the fields of the header, entry or index block that starts at ``offset`` of an intact file.

    Nothing of the payload is read, so nothing is said of its checksum. Of an index block, the records from
    number ``first`` on are listed.
    """
    if offset == 0:
        schema = layout.HEADERS[version]
        raw = source.read_upto(0, layout.HEADER_STRUCTS[version].size)
        if version == 1 and (v1.dialect_of(raw) or "").startswith("v1-96"):
            schema, raw = layout.HeaderV1Short, raw[: layout.HEADER_V1_SHORT.size]
        return list(_spans(schema, raw, 0, name, _always()))
    if version == 1:
        length, size = layout.ENTRY_V1.unpack(source.read(offset, layout.ENTRY_V1.size))[:2]
        raw = source.read(offset, layout.ENTRY_V1.size + length + 1)
        stop = min(offset + len(raw) + size, source.size)
        head = _spans(_HEAD_V1, raw, offset, name, _always())
        return [*head, _payload(source, offset + len(raw), stop, f"{name}.data", "")]
    block = scan_v2.read_block(source, offset)
    if block is not None:
        return list(_index_rows(source, block, name, cipher, first))
    piece = scan_v2.Walker(source).at(offset)
    return [] if piece is None else list(_record_rows(source, piece, name, cipher, hashed=-1))


def _rows_v1(source: Source) -> Iterator[Span]:
    number = 0
    for piece in scan_v1.Walker(source).walk():
        if piece.kind == "header":
            schema = layout.HeaderV1Short if "96" in piece.dialect else layout.HeaderV1
            yield from _spans(
                schema, piece.raw[: piece.size], piece.offset, "header", _always(header_checksum=True)
            )
        elif piece.kind in ("entry", "keyless", "damaged") and piece.payload_offset <= piece.end:
            name = f"entries[{number}]"
            number += 1
            raw = source.read(piece.offset, piece.payload_offset - piece.offset)
            fit = piece.kind != "damaged"
            checks = _always(entry_checksum=fit)
            mended = piece.how and fit  # the lengths in the file are not the right ones
            yield from _spans(layout.EntryV1 if mended else _HEAD_V1, raw, piece.offset, name, checks)
            yield _payload(source, piece.payload_offset, piece.end, f"{name}.data", "" if fit else piece.how)
        else:
            yield _damaged(
                source, piece.offset, piece.size, "the header" if piece.kind == "bad-header" else ""
            )


def _rows_v2(source: Source, cipher: Any) -> Iterator[Span]:
    number = blocks = 0
    for piece in scan_v2.Walker(source).walk():
        if piece.kind == "header" and piece.header is not None:
            raw = source.read(piece.offset, piece.size)
            schema = layout.HEADERS[piece.header.version]
            fnv = checksums.fnv1a(raw[layout.SUMMED]) == piece.header.checksum
            yield from _spans(schema, raw, piece.offset, "header", _always(header_checksum=fnv))
        elif piece.kind == "record":
            yield from _record_rows(source, piece, f"entries[{number}]", cipher)
            number += 1
        elif piece.kind == "index" and piece.block is not None:
            yield from _index_rows(source, piece.block, f"index[{blocks}]", cipher)
            blocks += 1
            stop = piece.offset + piece.block.size
            if stop < piece.end:
                yield Span(stop, piece.end - stop, f"index[{blocks - 1}].end", b"", "bytes", "zeros")
        else:
            yield _damaged(source, piece.offset, piece.size, "")


def _record_rows(
    source: Source, piece: scan_v2.Piece, name: str, cipher: Any, hashed: int = HASHED
) -> Iterator[Span]:
    raw = source.read(piece.offset, piece.payload_offset - piece.offset)
    stop = min(piece.payload_offset + piece.stored_size, piece.end)
    fits: bool | None = None
    if stop - piece.payload_offset < piece.stored_size:
        fits = False
    elif piece.stored_size <= hashed:
        fits = _payload_fits(source, piece)
    checks = _always(head_checksum=not piece.how, data_checksum=fits)
    mended = t.ENTRY_SYNC + raw[8:] if piece.how == "mark" else raw  # the schema insists on the mark
    yield from _spans(_HEAD_V2, mended, piece.offset, name, checks)
    why = "" if fits is not False else "its checksum does not match"
    if piece.attributes & t.ENCRYPTED and not why:
        yield from _sealed_rows(source, piece, name, cipher)
    else:
        yield _payload(source, piece.payload_offset, stop, f"{name}.data", why)
    if stop < piece.end:
        yield Span(stop, piece.end - stop, f"{name}.end", b"", "bytes", "zeros up to a multiple of 8")


def _sealed_rows(source: Source, piece: scan_v2.Piece, name: str, cipher: Any) -> Iterator[Span]:
    at = piece.payload_offset
    prefix = source.read(at, min(layout.SEAL.size, piece.stored_size))
    yield from _spans(layout.SealPrefix, prefix, at, f"{name}.seal", _always())
    if len(prefix) < layout.SEAL.size:
        return
    head_size = layout.SEAL.unpack(prefix)[4]
    head_at, stop = at + len(prefix), at + piece.stored_size
    data_at = min(head_at + head_size, stop)
    inner = _inner_head(source, piece, cipher, head_at, data_at, prefix)
    if inner is None:
        yield Span(
            head_at, data_at - head_at, f"{name}.sealed_head", b"", "bytes", "key, type, time: encrypted"
        )
    else:
        yield from _spans(_HEAD_V2, inner, head_at, f"{name}.sealed_head", _always(head_checksum=True))
        tag = data_at - t.TAG_SIZE
        yield Span(
            tag, t.TAG_SIZE, f"{name}.sealed_head.tag", b"", "16 bytes", "authenticates the sealed head"
        )
    yield Span(
        data_at,
        stop - data_at,
        f"{name}.sealed_data",
        b"",
        "bytes",
        "the stored payload and a tag: encrypted",
    )


def _inner_head(
    source: Source, piece: scan_v2.Piece, cipher: Any, start: int, stop: int, prefix: bytes
) -> bytes | None:
    if cipher is None:
        return None
    aad = source.read(piece.offset + 24, piece.payload_offset - piece.offset - 24)
    try:
        inner: bytes = cipher.open(layout.SEAL.unpack(prefix)[6], source.read(start, stop - start), aad)
    except AtlasError:
        return None
    return inner


def _index_rows(
    source: Source, block: scan_v2.BlockHead, name: str, cipher: Any, first: int = 0
) -> Iterator[Span]:
    raw = source.read(block.offset, layout.INDEX.size)
    yield from _spans(layout.IndexHeader, raw, block.offset, name, _always(head_checksum=True))
    assert block.header is not None
    copy = block.offset + layout.INDEX.size
    yield Span(
        copy, block.first - copy, f"{name}.header", b"", "bytes", "a copy of the header as of this commit"
    )
    stop = block.offset + block.size
    if block.header.version == 3:
        yield Span(
            block.first, stop - block.first, f"{name}.records", b"", "bytes", "nonce, records, tag: encrypted"
        )
        return
    last = min(block.num_records, first + INDEX_ROWS)
    for number in range(first, last):
        at = block.first + number * layout.RECORD.size
        row = source.read(at, layout.RECORD.size)
        yield from _spans(layout.IndexRecord, row, at, f"{name}.records[{number}]", _always())
    at = block.first + last * layout.RECORD.size
    if at < stop:
        yield Span(at, stop - at, f"{name}.records", b"", "bytes", f"{block.num_records - last} more records")


def _payload(source: Source, start: int, stop: int, name: str, why: str) -> Span:
    preview = source.read_upto(start, min(PREVIEW, stop - start))
    if why:
        return Span(start, stop - start, f"damaged {name}", preview, "bytes", why)
    return Span(start, stop - start, name, preview, "bytes", "the payload")


def _damaged(source: Source, offset: int, size: int, what: str) -> Span:
    preview = source.read_upto(offset, min(PREVIEW, size))
    return Span(offset, size, f"damaged {what}".strip(), preview, "bytes", "nothing intact was found here")


# --- what values mean --------------------------------------------------------------------------------------


def _spans(
    schema: Any, raw: bytes, offset: int, name: str, meaning: Callable[[str, Any], str]
) -> Iterator[Span]:
    at = 0
    for span in trace(schema, raw)[0]:
        yield _placed(span, offset, name, meaning)
        at = span.offset + span.size
    if at < len(raw):  # a field contradicts the schema
        yield Span(
            offset + at, len(raw) - at, f"{name}.rest", raw[at : at + PREVIEW], "bytes", "the rest of it"
        )


def _placed(span: Span, offset: int, name: str, meaning: Callable[[str, Any], str]) -> Span:
    """Move a span to its place in the file, and say what its value means."""
    parts = [part for part in span.name.split(".") if part not in ("", "None")]  # array elements have no name
    field = parts[-1]
    if parts[0] == "header":
        parts = parts[1:]
    said = meaning(field, span.value)
    note = f"{span.note}: {said}" if said else span.note
    return replace(span, offset=span.offset + offset, name=".".join([name, *parts]), note=note)


def _always(**checks: bool | None) -> Callable[[str, Any], str]:
    """Return a function that says what a value means; ``checks`` are the checksums that were verified."""
    of_block = ("header_checksum", "entry_checksum", "head_checksum")

    def meaning(field: str, value: Any) -> str:
        fit = checks.get(field)
        if field == "checksum":
            fit = next((checks[name] for name in of_block if name in checks), None)
        elif field == "header_checksum":
            fit = True  # else it would not have been taken for a header
        if fit is not None:
            return "it fits" if fit else "it does NOT match"
        return _meaning(field, value)

    return meaning


def _meaning(field: str, value: Any) -> str:
    if field in ("timestamp", "created_time", "modified_time"):
        return _date(value)
    if field in _NAMES:
        return _NAMES[field].get(value, "not known")
    if field == "attributes":
        return ", ".join(row.name for row in t.ATTRIBUTES if value & row.id)
    if field == "model_hash":
        return value.hex() if any(value) else "unset"
    if field == "key":
        return decode_key(value)
    return ""


_NAMES: dict[str, dict[int, str]] = {
    "data_type": t.DATA_TYPE_NAMES,
    "codec": {codec.id: codec.name for codec in codecs.CODECS},
    "filter": codecs.FILTER_NAMES,
    "dtype": {0: "plain bytes", **{row.id: row.name for row in t.DTYPES}},
    "kdf": {row.id: row.name for row in t.KDFS},
}


def _date(seconds: int) -> str:
    return utc(seconds, "%Y-%m-%dT%H:%M:%SZ") or ("far in the future" if seconds else "unset")


# --- opening -----------------------------------------------------------------------------------------------


def _is_v1(source: Source) -> bool:
    """Tell which walk to use: what the header says, or what is there where it is damaged."""
    top = source.read_upto(0, layout.HEADER_V1.size)
    if top[:4] == t.MAGIC and top[4:8] in (b"\2\0\0\0", b"\3\0\0\0"):
        return False
    if top[:8] == t.MAGIC + b"\1\0\0\0" and v1.dialect_of(top) is not None:
        return True
    walker = scan_v2.Walker(source)
    places = (0, *(layout.HEADER_STRUCTS[version].size for version in (2, 3)))
    return not any(walker.at(at) is not None for at in places if at < source.size)


def _cipher(source: Source, passphrase: str | bytes | None, key: bytes | None) -> Any:
    """Return the keys of an encrypted file, where the secret is given and the header is intact."""
    if passphrase is None and key is None:
        return None
    from atlas_kit.formats.atlas.crypto import Secret, unlock

    try:
        header = v2.parse_header(source.read_upto(0, layout.HEADER_V3.size), path=source.path)
    except AtlasError:
        return None
    if header.version != 3:
        return None
    return unlock(header.kdf, header.crypto[6], Secret.of(passphrase, key))
