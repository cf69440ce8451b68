"""Walking a version 2 or 3 file that may be damaged: every byte becomes part of exactly one ``Piece``.

Records and index blocks start with a mark and carry checksums of their own; the walk steps from one to the
next, and searches for the next mark where nothing intact follows. ``state_of`` decides which of the records
are the file's present state, from whatever is left of header and index. Payloads are not read here.
"""

from __future__ import annotations

import bisect
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import checksums, layout, v2
from atlas_kit.formats.atlas import tables as t

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from atlas_kit.formats.atlas.crypto import Cipher
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.storage.source import Source

_HEAD = layout.ENTRY.size
_REC = layout.RECORD.size
_unpack = layout.ENTRY.unpack_from
_MARKS = re.compile(b"|".join(map(re.escape, (t.ENTRY_SYNC, t.INDEX_SYNC, t.MAGIC))))

#: How much the search for marks looks at in one step.
STEP = 1 << 20

#: What is read of a record at first; longer heads (long keys) are read again.
FIRST = 512

#: What may be spent on hashing what only looks like a record: bytes, beyond a multiple of the file.
BUDGET = 1 << 28
BUDGET_RATIO = 8


class BlockHead(NamedTuple):
    """The fields of an index block, and the copy of the header that it holds."""

    offset: int
    size: int
    file_id: int
    generation: int
    prev_offset: int
    num_records: int
    next_ordinal: int
    header: v2.Header | None
    first: int  # offset of the first record (of the seal in version 3)


@dataclass
class Piece:
    """A range of the file and what it is: ``header``, ``record``, ``index``, ``copy`` (of a header), ``gap``.

    ``how`` says what of the head had to be mended: ``mark``, or ``checksum`` (an index must vouch for that).
    """

    kind: str
    offset: int
    size: int
    file_id: int = 0
    ordinal: int = 0
    generation: int = 0
    head_checksum: int = 0
    attributes: int = 0
    payload_offset: int = 0  # in the file
    stored_size: int = 0
    how: str = ""
    header: v2.Header | None = None
    block: BlockHead | None = None
    foreign: bool = False  # lies inside another record's extent, or belongs to no file that is joined here

    @property
    def end(self) -> int:
        """Where the piece ends."""
        return self.offset + self.size


class Walker:
    """One walk over one file."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._size = source.size
        self._window = v2.Window(source)
        self._budget = BUDGET + BUDGET_RATIO * self._size
        self._ids: set[int] = set()
        self._steady = False  # the file has the length that its header says: nothing was cut out or put in
        self._marks_at, self._marks = -1, [0]

    def walk(self) -> Iterator[Piece]:
        """Yield the pieces in order; they cover the file."""
        at = 0
        limit = 0  # end of the extent of the last damaged record: foreign records before it are its payload
        while at < self._size:
            piece = self.at(at) or self._lenient(at) or self._gap(at)
            if piece.kind != "gap" and piece.offset < limit and piece.file_id not in self._ids:
                piece = Piece("gap", at, piece.size)
            if piece.header is not None and at == 0:
                self._steady = piece.header.committed_size == self._size
            if piece.kind == "record" and not (self._steady and self._followed(piece)):
                begin = piece.payload_offset + piece.stored_size
                if not self._payload_fits(piece):
                    limit, begin = max(limit, piece.end), piece.payload_offset
                piece.size = min(self._own_mark(begin, piece.end, piece.file_id), self._size) - at
            if piece.kind == "header" and at and (piece.file_id in self._ids or self.at(piece.end) is None):
                piece.kind = "copy"  # what is left of an index block
            if piece.kind != "gap":
                self._ids.add(piece.file_id)
            yield piece
            at = piece.end

    # --- what is here ---------------------------------------------------------------------------------

    def at(self, at: int) -> Piece | None:
        """Return the intact header, record head or index block that starts here."""
        raw = self._window.read(at, min(FIRST, self._size - at))
        if raw[:8] == t.ENTRY_SYNC:
            return self._record(at, raw)
        if raw[:8] == t.INDEX_SYNC:
            return self._index(at, raw)
        if raw[:4] == t.MAGIC and raw[4:8] in (b"\2\0\0\0", b"\3\0\0\0"):
            return self._header(at, raw)
        return None

    def _header(self, at: int, raw: bytes) -> Piece | None:
        try:
            header = v2.parse_header(raw)
        except AtlasError:
            return None
        return Piece(
            "header", at, header.header_size, header.file_id, generation=header.generation, header=header
        )

    def _record(self, at: int, raw: bytes, *, how: str = "") -> Piece | None:
        head = self._head(at, raw)
        if head is None:
            return None
        f = head.fields
        size = f.payload_offset + f.stored_size
        size = min(size + -size % t.RECORD_ALIGNMENT, self._size - at)
        return Piece(
            "record", at, size, f.file_id, f.ordinal, f.generation, f.head_checksum, f.attributes,
            at + f.payload_offset, f.stored_size, how,
        )  # fmt: skip

    def _head(self, at: int, raw: bytes) -> v2.EntryHead | None:
        length = head_length(raw)
        if length is None or at + length > self._size or not self._spend(length):
            return None
        if length > len(raw):
            raw = raw[:16] + self._source.read(at + 16, length - 16)
        try:
            return v2.parse_head(raw, at, None)
        except AtlasError:
            return None

    def _lenient(self, at: int) -> Piece | None:
        """Return the record that starts here although its mark or its head's checksum was hit."""
        raw = self._window.read(at, min(FIRST, self._size - at))
        length = head_length(raw)
        if (
            length is None
            or at + length > self._size
            or v2.Fields._make(_unpack(raw)).file_id not in self._ids
        ):
            return None
        piece = self._record(at, t.ENTRY_SYNC + raw[8:], how="mark")
        if piece is None and self._spend(length):
            checksum = checksums.xxh3(self._source.read(at + 16, length - 16)).to_bytes(8, "little")
            piece = self._record(at, t.ENTRY_SYNC + checksum + raw[16:], how="checksum")
            if piece is not None and not self._payload_fits(piece):
                return None
        return piece

    def _index(self, at: int, raw: bytes) -> Piece | None:
        block = read_block(self._source, at, raw)
        if block is None or not self._spend(block.size) or not block_fits(self._source, block):
            return None
        size = min(block.size + -block.size % t.RECORD_ALIGNMENT, self._size - at)
        return Piece(
            "index", at, size, block.file_id, generation=block.generation, header=block.header, block=block
        )

    # --- extents and searching ------------------------------------------------------------------------

    def _followed(self, piece: Piece) -> bool:
        """Tell whether something of ours follows a record, so that its extent is certain."""
        if piece.end >= self._size:
            return False
        following = self.at(piece.end)
        if following is None or following.kind == "header":
            return following is not None and following.file_id not in (*self._ids, piece.file_id)
        return following.file_id == piece.file_id

    def _payload_fits(self, piece: Piece) -> bool:
        if piece.payload_offset + piece.stored_size > self._size or not self._spend(piece.stored_size):
            return False
        wanted = v2.Fields._make(_unpack(self._source.read(piece.offset, _HEAD))).data_checksum
        chunks = self._source.chunks(piece.payload_offset, piece.stored_size)
        return bool(checksums.xxh3_of_chunks(chunks) == wanted)

    def _own_mark(self, at: int, end: int, file_id: int) -> int:
        """Return where the file goes on inside a damaged payload (bytes were cut out), else ``end``."""
        while (place := self._mark(at)) < end:
            piece = self.at(place)
            if piece is not None and piece.file_id == file_id and piece.kind != "header":
                return place
            at = place + 1
        return end

    def _gap(self, at: int) -> Piece:
        place = self._mark(at + 1)
        while place < self._size and self.at(place) is None:
            place = self._mark(place + 1)
        return Piece("gap", at, min(place, self._size) - at)

    def _mark(self, at: int) -> int:
        """Return the offset of the first mark or magic number from here on, else the file's end."""
        base = at // STEP * STEP
        while base < self._size:
            if base != self._marks_at:
                window = self._source.read_upto(base, STEP + 7)
                self._marks = [base + m.start() for m in _MARKS.finditer(window) if m.start() < STEP]
                self._marks_at = base
            place = bisect.bisect_left(self._marks, at)
            if place < len(self._marks):
                return self._marks[place]
            base += STEP
        return self._size

    def _spend(self, size: int) -> bool:
        """Take from the hashing budget: files can be made in which every byte starts a record."""
        cost = size + 256
        if cost > self._budget:
            return False
        self._budget -= cost
        return True


def head_length(raw: bytes) -> int | None:
    """Return how long the head says it is, if that makes sense."""
    if len(raw) < _HEAD:
        return None
    f = v2.Fields._make(_unpack(raw))
    need = _HEAD + 8 * f.rank + f.key_length + 1
    if f.key_length > t.MAX_KEY or not need <= f.payload_offset <= need + t.ALIGNMENT:
        return None
    return int(f.payload_offset)


# --- index blocks ------------------------------------------------------------------------------------------


def read_block(source: Source, at: int, raw: bytes | None = None) -> BlockHead | None:
    """Read the head of the index block that starts here, if its sizes make sense (not its checksum)."""
    raw = source.read_upto(at, FIRST) if raw is None else raw
    if len(raw) < layout.INDEX.size or raw[:8] != t.INDEX_SYNC:
        return None
    _, _, size, file_id, generation, prev_offset, count, next_ordinal = layout.INDEX.unpack_from(raw)
    place = layout.INDEX.size
    header = None
    for version in (2, 3):
        length = layout.HEADER_STRUCTS[version].size
        sealed = t.NONCE_SIZE + t.TAG_SIZE if version == 3 else 0
        if size == place + length + sealed + count * _REC and at + size <= source.size:
            try:
                header = v2.parse_header(raw[place : place + length])
            except AtlasError:
                continue
            first = at + place + length
            return BlockHead(at, size, file_id, generation, prev_offset, count, next_ordinal, header, first)
    return None


def block_fits(source: Source, block: BlockHead) -> bool:
    """Tell whether an index block's checksum fits."""
    wanted = layout.INDEX.unpack(source.read(block.offset, layout.INDEX.size))[1]
    return bool(checksums.xxh3_of_chunks(source.chunks(block.offset + 16, block.size - 16)) == wanted)


def block_rows(source: Source, block: BlockHead, cipher: Cipher | None) -> list[v2.Record]:
    """Return the rows of an index block.

    Raises
    ------
    AuthenticationError
        The block is sealed, and was altered or belongs to another file.
    """
    raw = source.read(block.first, block.offset + block.size - block.first)
    if block.header is not None and block.header.version == 3:
        if cipher is None:
            return []
        raw = cipher.open_index(raw, source.read(block.offset + 16, block.first - block.offset - 16))
    return [v2.Record(*fields) for fields in layout.RECORD.iter_unpack(raw)]


# --- which records are the present state --------------------------------------------------------------


@dataclass
class State:
    """What is left of one file: its header (or the newest copy of it), and its records by what they are."""

    file_id: int
    header: v2.Header | None = None
    header_intact: bool = False
    complete: bool = False  # whether the whole index is there
    newest: int = -1  # the commit that the complete index describes
    next_ordinal: int = 0
    rows: dict[int, v2.Record] = field(default_factory=dict)
    as_of: dict[int, int] = field(default_factory=dict)  # up to which commit the row of an ordinal tells
    live: list[Piece] = field(default_factory=list)  # in order
    older: list[Piece] = field(default_factory=list)  # what is left of an entry whose newest state is lost
    unproven: list[Piece] = field(default_factory=list)  # the head's checksum was hit, and nothing vouches
    uncommitted: list[Piece] = field(default_factory=list)
    missing: list[v2.Record] = field(default_factory=list)  # rows of the index without their record
    problems: list[AtlasError] = field(default_factory=list)


def own_files(pieces: Iterable[Piece]) -> dict[int, list[Piece]]:
    """Return the files that these pieces are, in order: id and pieces; mark all other pieces as foreign.

    Usually that is one. Joined files (``cat a b``) follow each other; what lies between the records of a file
    is a file inside a damaged payload, and is not ours.
    """
    pieces = [piece for piece in pieces if piece.kind != "gap" or piece.size]
    last: dict[int, int] = {}
    weight: dict[int, int] = {}
    first: dict[int, int] = {}
    joined: set[int] = set()
    before: Piece | None = None
    for number, piece in enumerate(pieces):
        if piece.kind != "gap":
            first.setdefault(piece.file_id, number)
            last[piece.file_id] = number
            weight[piece.file_id] = weight.get(piece.file_id, 0) + piece.size
            if piece.kind == "header" and (before is None or before.kind != "gap"):
                joined.add(piece.file_id)
        before = piece
    if not first:
        return {}
    main = pieces[0].file_id if pieces[0].kind == "header" else max(weight, key=lambda i: weight[i])
    own, end = [main], last[main]
    header = pieces[0].header
    # where an intact header says how long its file is, what begins before that end is inside a payload
    stop = header.committed_size if header is not None and header.committed_size <= pieces[-1].end else 0
    for file_id in sorted(first, key=lambda i: first[i]):
        begins = pieces[first[file_id]].offset
        if file_id != main and begins >= stop and (file_id in joined or first[file_id] > end):
            own.append(file_id)
            end = max(end, last[file_id])
    files: dict[int, list[Piece]] = {file_id: [] for file_id in sorted(own, key=lambda i: first[i])}
    for piece in pieces:
        if piece.kind != "gap":
            piece.foreign = piece.file_id not in files
            if not piece.foreign:
                files[piece.file_id].append(piece)
    return files


def state_of(source: Source, mine: list[Piece], cipher: Cipher | None = None) -> State:
    """Decide which of one file's records are its present state, from whatever is left of header and index."""
    state = State(mine[0].file_id)
    blocks = [piece.block for piece in mine if piece.block is not None]
    for piece in mine:
        if piece.kind == "header":
            state.header, state.header_intact = piece.header, True
            break
    if state.header is not None:
        blocks = [block for block in blocks if block.generation <= state.header.generation]
    else:
        copies = [piece.header for piece in mine if piece.header is not None]
        state.header = max(copies, key=lambda header: header.generation, default=None)
    _read_rows(source, state, blocks, cipher)
    committed = state.header.generation if state.header is not None and state.header_intact else t.U64
    by_ordinal: dict[int, list[Piece]] = {}
    for piece in mine:
        if piece.kind == "record" and piece.generation > committed:
            state.uncommitted.append(piece)
        elif piece.kind == "record":
            by_ordinal.setdefault(piece.ordinal, []).append(piece)
    for ordinal in sorted(by_ordinal.keys() | state.rows.keys()):
        records = sorted(by_ordinal.get(ordinal, []), key=lambda piece: (-piece.generation, piece.offset))
        _choose(state, records, state.rows.get(ordinal))
    return state


def _read_rows(source: Source, state: State, blocks: list[BlockHead], cipher: Cipher | None) -> None:
    """Fill in the newest row of each ordinal, and which commit it speaks for."""
    blocks = sorted(blocks, key=lambda block: -block.generation)
    by_offset = {block.offset: block for block in blocks}
    chain: list[BlockHead] = []
    block = blocks[0] if blocks else None
    if block is not None and state.header is not None and block.generation != state.header.generation:
        block = None  # the newest block is lost
    while block is not None and (not chain or block.offset < chain[-1].offset):
        chain.append(block)
        state.complete = block.prev_offset == 0
        block = by_offset.get(block.prev_offset)
    linked = {block.offset for block in chain}
    for block in chain if state.complete else blocks:
        state.next_ordinal = max(state.next_ordinal, block.next_ordinal)
        # behind a hole in the chain, a block speaks for its own commit only
        as_of = chain[0].generation if block.offset in linked else block.generation
        try:
            rows = block_rows(source, block, cipher)
        except AtlasError as error:
            error.offset = block.offset
            state.problems.append(error)
            state.complete = False
            continue
        for row in rows:
            if row.ordinal not in state.rows:
                state.rows[row.ordinal], state.as_of[row.ordinal] = row, as_of
    if state.header is not None and state.header.version == 3 and cipher is None:
        state.complete = False
    state.newest = chain[0].generation if chain and state.complete else -1


def _choose(state: State, records: list[Piece], row: v2.Record | None) -> None:
    """Sort the records of one ordinal (newest first) into the lists of ``state``."""
    live: Piece | None = None
    gone = False
    as_of = state.newest if row is None else state.as_of[row.ordinal]
    newer = [piece for piece in records if piece.generation > as_of]
    if newer:
        live = newer[0]
    elif row is not None and row.offset:
        live = next((piece for piece in records if piece.head_checksum == row.head_checksum), None)
        if live is None:
            hit = [piece for piece in records if piece.how == "checksum"][:1]
            rest = [piece for piece in records if piece not in hit]
            state.unproven += hit
            state.missing += [] if hit else [row]
            state.older += [piece for piece in rest[:1] if not piece.attributes & t.REMOVED]
            return
    elif row is not None or state.complete:
        gone = True
    elif records:
        live = records[0]
    removed = live is None or gone or live.attributes & t.REMOVED
    if live is not None and not removed:
        vouched = row is not None and row.head_checksum == live.head_checksum
        (state.live if live.how != "checksum" or vouched else state.unproven).append(live)


def open_record(source: Source, piece: Piece, cipher: Cipher | None) -> Entry:
    """Make an ``Entry`` of a record piece, mending its mark or its head's checksum.

    Raises
    ------
    AtlasError
        The record is sealed, and was altered or belongs elsewhere.
    """
    raw = source.read(piece.offset, piece.payload_offset - piece.offset)
    if piece.how:
        raw = t.ENTRY_SYNC + piece.head_checksum.to_bytes(8, "little") + raw[16:]
    head = v2.parse_head(raw, piece.offset, source)
    if piece.attributes & t.ENCRYPTED and cipher is not None:
        return v2.open_sealed(source, piece.offset, head, cipher)
    return v2.plain_entry(source, piece.offset, head)
