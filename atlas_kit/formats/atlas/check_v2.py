"""Checking versions 2 and 3: header, index, every record, and what lies between them. Called by ``check``."""

from __future__ import annotations

import bisect
import hmac
import itertools
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, NamedTuple

from atlas_kit.codecs import table as codecs
from atlas_kit.errors import (
    AtlasError,
    AuthenticationError,
    ChecksumMismatchError,
    KeyRequiredError,
    MissingExtraError,
    WrongKeyError,
)
from atlas_kit.formats.atlas import checksums, layout, scan_v2, v2
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.check_facts import (
    DISTRUST,
    RECOVER,
    RESCUE,
    REWRITE,
    SAVE,
    entry_facts,
    header_facts,
)
from atlas_kit.formats.atlas.store import encode_key
from atlas_kit.formats.atlas.verify import Verifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atlas_kit.formats.atlas.crypto import Cipher, Secret
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.formats.atlas.scan_v2 import BlockHead, Piece
    from atlas_kit.formats.findings import Report
    from atlas_kit.storage.source import Source

#: From this many stored bytes on, payloads are verified by two threads (hashing and reading release the GIL).
PARALLEL = 1 << 24

_KNOWN_ATTRIBUTES = t.REMOVED | t.ENCRYPTED


class Live(NamedTuple):
    """An entry that the index names, with its intact head."""

    row: v2.Record
    piece: Piece
    entry: Entry | None  # None where it is sealed and there is no key


class CheckV2:
    """One check of a version 2 or 3 file."""

    def __init__(self, source: Source, secret: Secret | None, report: Report, *, deep: bool) -> None:
        self._source = source
        self._secret = secret
        self._report = report
        self._deep = deep
        self._pieces = list(scan_v2.Walker(source).walk())
        self._at = {piece.offset: piece for piece in self._pieces if piece.kind != "gap"}
        self._header: v2.Header | None = None
        self._intact = False  # the header is intact, and believed
        self._cipher: Cipher | None = None

    def run(self) -> None:
        """Check and report everything."""
        scan_v2.own_files(self._pieces)
        self._check_header()
        if self._header is None:
            if self._source.size >= layout.HEADER_V2.size:
                self._lost_header()
            return
        if self._header.version == 3:
            self._unlock(self._header)
        rows = self._check_index(self._header)
        live = [] if rows is None else self._check_rows(self._header, rows)
        if self._deep:
            self._check_payloads(live)
        if rows is not None:
            self._check_totals(self._header, rows, live)
        self._check_rest(self._header, rows or {}, live, indexed=rows is not None)

    # --- header ---------------------------------------------------------------------------------------

    def _check_header(self) -> None:
        report, source = self._report, self._source
        raw = source.read_upto(0, layout.HEADER_V3.size)
        version = int.from_bytes(raw[4:8], "little")
        if raw[:4] == t.MAGIC and version in (2, 3) and len(raw) < layout.HEADER_STRUCTS[version].size:
            size = layout.HEADER_STRUCTS[version].size
            report.error(
                "truncated",
                f"the header has {size} bytes, and the file ends at byte {len(raw)}",
                offset=len(raw),
                remedy=RECOVER,
            )
            return
        try:
            self._header, self._intact = v2.parse_header(raw), raw[:4] == t.MAGIC
        except AtlasError as error:
            if raw[:4] == t.MAGIC and version in (2, 3):
                report.error("header-checksum", error.message, offset=layout.HEADER_STRUCTS[version].size - 8)
            copies = [
                piece.header for piece in self._pieces if piece.header is not None and not piece.foreign
            ]
            self._header = max(copies, key=lambda header: header.generation, default=None)
        header = self._header
        if header is None or not self._intact:
            return
        if checksums.fnv1a(raw[layout.SUMMED]) != header.checksum:
            report.warning(
                "header-fnv", "the checksum that version 1 readers know does not match", offset=8, hint=SAVE
            )
        if header.entry_count != min(header.entry_total, t.U32):
            report.warning(
                "entry-count",
                f"entry_count is {header.entry_count}, and entry_total is {header.entry_total}",
                offset=layout.offset_of("entry_count"),
                hint=SAVE,
            )
        header_facts(report, header.created_time, header.modified_time, header.model_hash, header.reserved)
        if header.file_flags:
            report.note(
                "unknown-file-flags",
                f"the file has flags that are not known: {header.file_flags:#x}",
                offset=108,
            )
        if header.committed_size > source.size:
            report.error(
                "truncated",
                f"the file ends at byte {source.size}, and its header says {header.committed_size}",
                offset=source.size,
            )

    def _lost_header(self) -> None:
        """Header and index are gone: report what records there are."""
        records = [piece for piece in self._pieces if piece.kind == "record" and not piece.foreign]
        self._report.error(
            "header-lost", f"neither the header nor an index is intact; {len(records)} records are", offset=0
        )

    def _unlock(self, header: v2.Header) -> None:
        from atlas_kit.formats.atlas.crypto import unlock

        report = self._report
        try:
            self._cipher = unlock(header.kdf, header.crypto[6], self._secret)
        except KeyRequiredError as error:
            report.note(
                "contents-not-checked",
                f"{error.message}: only the outer checksums were checked",
                hint=error.hint or "",
                remedy=error.remedy,
            )
        except MissingExtraError as error:
            report.note("contents-not-checked", error.message, hint=error.hint or "", remedy=error.remedy)
        except WrongKeyError as error:
            report.error(
                "wrong-key",
                error.message,
                hint=error.hint or ("" if error.remedy else "Only the outer checksums were checked."),
                remedy=error.remedy,
            )
        except AtlasError as error:
            hint = (
                error.hint
                or "A newer atlas_kit may know it; if the file is damaged, restore it from a backup."
            )
            report.error("key-derivation", error.message, hint, offset=layout.offset_of("salt"), remedy=None)
        if self._cipher is None or not self._intact:
            return
        raw = self._source.read(0, layout.HEADER_V3.size)
        if not hmac.compare_digest(self._cipher.header_tag(raw[layout.TAGGED]), raw[layout.AT["header_tag"]]):
            report.error(
                "header-authentication",
                "the header was altered: its authentication tag does not match",
                offset=layout.offset_of("header_tag"),
                hint=DISTRUST,
                remedy=None,
            )

    # --- index ----------------------------------------------------------------------------------------

    def _check_index(self, header: v2.Header) -> dict[int, v2.Record] | None:
        """Check the chain of index blocks; return the newest row of each ordinal (``None``: unusable)."""
        report = self._report
        rows: dict[int, v2.Record] = {}
        offset, limit, newest = header.index_offset, min(header.committed_size, self._source.size), True
        while True:
            block = self._block(header, offset, limit)
            if block is None:
                return None
            if newest and block.header is not None and block.header != header:
                report.warning(
                    "index-header-copy",
                    "the index's copy of the header differs from the header",
                    offset=block.first,
                    hint=SAVE,
                )
            sealed = header.version == 3 and self._cipher is None
            if sealed:
                return None
            try:
                records = scan_v2.block_rows(self._source, block, self._cipher)
            except AtlasError as error:
                error.offset = offset
                report.raised("index-authentication", error, DISTRUST, remedy=None)
                return None
            self._check_order(block, records)
            for row in records:
                rows.setdefault(row.ordinal, row)
            if block.prev_offset == 0:
                return rows
            if block.prev_offset >= offset:
                report.error("index-chain", "an index block points forward", offset=offset)
                return None
            offset, limit, newest = block.prev_offset, offset, False

    def _block(self, header: v2.Header, offset: int, limit: int) -> BlockHead | None:
        report = self._report
        piece = self._at.get(offset)
        if (
            piece is not None
            and piece.kind == "index"
            and piece.block is not None
            and offset + piece.size <= limit
        ):
            if piece.file_id == header.file_id and piece.generation <= header.generation and offset % 8 == 0:
                return piece.block
            report.error("index-foreign", "the index block here is not this file's", offset=offset)
            return None
        if offset + layout.INDEX.size > limit or offset < header.header_size:
            report.error(
                "index-outside",
                f"the index should be at byte {offset}, outside of the file",
                offset=layout.offset_of("index_offset"),
            )
        elif scan_v2.read_block(self._source, offset) is not None:
            report.error(
                "index-checksum", "the index block's checksum does not match its bytes", offset=offset
            )
        else:
            report.error("index-lost", "there is no intact index block here", offset=offset)
        return None

    def _check_order(self, block: BlockHead, records: list[v2.Record]) -> None:
        report = self._report
        order = [(row.key_hash, row.ordinal) for row in records]
        if any(a > b for a, b in itertools.pairwise(order)):
            report.error(
                "index-unsorted", "the index is not sorted: keys cannot be found", offset=block.first
            )
        ordinals = {row.ordinal for row in records}
        if len(ordinals) != len(records):
            report.error("index-duplicate", "the index names an ordinal twice", offset=block.first)
        if ordinals and max(ordinals) >= block.next_ordinal:
            report.warning(
                "next-ordinal",
                "the index would give the next new entry an ordinal that is already in use",
                offset=block.offset,
                hint=SAVE,
            )

    # --- records --------------------------------------------------------------------------------------

    def _check_rows(self, header: v2.Header, rows: dict[int, v2.Record]) -> list[Live]:
        live: list[Live] = []
        keys: dict[str, int] = {}
        for ordinal in sorted(rows):
            row = rows[ordinal]
            if not row.offset:
                continue
            piece = self._named(header, row)
            if piece is None:
                continue
            entry = self._open(piece)
            if entry is None and self._cipher is not None:
                continue
            live.append(Live(row, piece, entry))
            if entry is not None:
                self._check_entry(header, row, piece, entry)
                if entry.key in keys:
                    self._report.error(
                        "duplicate-key",
                        f"the entry at byte {keys[entry.key]} has the same key",
                        offset=row.offset,
                        key=entry.key,
                    )
                keys.setdefault(entry.key, row.offset)
        return live

    def _named(self, header: v2.Header, row: v2.Record) -> Piece | None:
        """Return the record that an index row names, if it is that one and its head is intact."""
        report = self._report
        if (
            row.offset < header.header_size
            or row.offset + row.size > header.committed_size
            or row.size < layout.ENTRY.size
        ):
            report.error(
                "index-outside",
                f"the index names a record at byte {row.offset}, outside of the file",
                offset=row.offset,
            )
            return None
        piece = self._at.get(row.offset)
        if row.offset + layout.ENTRY.size > self._source.size:
            report.error("entry-truncated", "the file ends before this entry", offset=row.offset)
        elif piece is None or piece.kind != "record":
            report.error(
                "entry-head", "there is no intact record where the index names one", offset=row.offset
            )
        elif piece.how:
            report.error("entry-head", f"the record's {piece.how} was hit", offset=row.offset)
        elif piece.payload_offset + piece.stored_size > self._source.size:
            report.error(
                "entry-truncated", "the file ends inside this entry's payload", offset=self._source.size
            )
        elif (piece.head_checksum, piece.ordinal, piece.file_id) != (
            row.head_checksum,
            row.ordinal,
            header.file_id,
        ):
            report.error(
                "entry-swapped",
                "the record here is not the one that the index names: entries were swapped or replaced",
                offset=row.offset,
            )
        elif -(-(piece.payload_offset + piece.stored_size - row.offset) // 8) * 8 != row.size:
            report.error(
                "entry-size", "the index gives the record another size than it has", offset=row.offset
            )
        else:
            return piece
        return None

    def _open(self, piece: Piece) -> Entry | None:
        if self._header is not None and self._header.version == 3 and self._cipher is None:
            return None
        try:
            if self._cipher is not None and not piece.attributes & t.ENCRYPTED:
                raise AuthenticationError("an entry of an encrypted file is not sealed", offset=piece.offset)
            return scan_v2.open_record(self._source, piece, self._cipher)
        except AtlasError as error:
            error.offset = piece.offset
            self._report.raised("entry-authentication" if self._cipher else "entry-head", error)
            return None

    def _check_entry(self, header: v2.Header, row: v2.Record, piece: Piece, entry: Entry) -> None:
        report, at = self._report, row.offset
        raw = encode_key(entry.key)
        if not raw or 0 in raw:
            report.error("bad-key", "the key is empty or contains a NUL", offset=at)
        if checksums.xxh3(raw, header.file_id) != row.key_hash:
            report.error(
                "index-key-hash",
                "the index has another hash for this key: it cannot be found",
                offset=at,
                key=entry.key,
            )
        if entry.attributes & t.REMOVED:
            report.error(
                "entry-removed", "the index names a record that removes its key", offset=at, key=entry.key
            )
        unknown = entry.attributes & ~_KNOWN_ATTRIBUTES
        if unknown:
            report.tally(
                "unknown-attributes",
                "note",
                f"with attributes that are not known ({unknown:#x})",
                offset=at,
                key=entry.key,
            )
        for code, known, value in (
            ("unknown-codec", codecs.BY_ID, entry.codec_id),
            ("unknown-filter", codecs.FILTER_NAMES, entry.filter_id),
            ("unknown-dtype", {0: None, **t.DTYPE_BY_ID}, entry.dtype_id),
        ):
            if value not in known:
                report.tally(
                    code,
                    "warning",
                    f"with {code[8:]} {value}, which is not known",
                    offset=at,
                    key=entry.key,
                    hint="A newer atlas_kit may read it.",
                )
        entry_facts(report, entry.key, at, entry.type, entry.timestamp)
        if self._cipher is None:
            self._check_place(piece, entry)

    def _check_place(self, piece: Piece, entry: Entry) -> None:
        """Check the alignment of a tensor, and the bytes that should be zero."""
        report = self._report
        plain = entry.dtype_id and not entry.codec_id and not entry.filter_id
        if plain and entry.size and piece.payload_offset % t.ALIGNMENT:
            report.tally(
                "tensor-misaligned",
                "warning",
                "whose tensor does not start at a multiple of 64",
                offset=piece.payload_offset,
                key=entry.key,
                hint="It opens as a view that is not aligned; save the file anew.",
            )
        used = layout.ENTRY.size + 8 * len(entry.shape or ()) + len(encode_key(entry.key))
        head = self._source.read(piece.offset + used, piece.payload_offset - piece.offset - used)
        stop = piece.payload_offset + piece.stored_size
        tail = self._source.read_upto(stop, max(0, piece.end - stop))
        if any(head) or any(tail):
            report.tally(
                "padding-not-zero",
                "note",
                "with padding that is not zero",
                offset=piece.offset,
                key=entry.key,
            )

    def _check_payloads(self, live: list[Live]) -> None:
        """Verify every payload, with two threads where there is much to read."""
        verifier = Verifier(self._source.size)

        def problem(item: Live) -> AtlasError | None:
            if item.entry is not None:
                return verifier.problem(item.entry)
            entry = scan_v2.open_record(self._source, item.piece, None)  # sealed: the outer checksum
            try:
                for _ in entry.payload.chunks():
                    pass
            except AtlasError as error:
                return error
            return None

        problems: Iterable[AtlasError | None]
        if sum(item.piece.stored_size for item in live) >= PARALLEL and len(live) > 1:
            with ThreadPoolExecutor(2) as pool:
                problems = list(pool.map(problem, live))
        else:
            problems = map(problem, live)
        for item, error in zip(live, problems, strict=True):
            if error is None:
                continue
            key = None if item.entry is None else item.entry.key
            code = "payload-undecodable"
            if isinstance(error, AuthenticationError):
                code = "entry-authentication"
            elif isinstance(error, ChecksumMismatchError):
                code = "payload-checksum"
            elif "tensor" in error.message:
                code = "tensor-size"
            self._report.error(code, error.message, offset=item.piece.payload_offset, key=key)
        for entry in verifier.skipped:
            self._report.tally(
                "not-unpacked",
                "note",
                "that unpack to so much that only their checksums were verified",
                offset=entry.offset,
                key=entry.key,
            )

    # --- totals and the rest --------------------------------------------------------------------------

    def _check_totals(self, header: v2.Header, rows: dict[int, v2.Record], live: list[Live]) -> None:
        named = sum(1 for row in rows.values() if row.offset)
        if named != header.entry_total:
            self._report.error(
                "entry-count",
                f"the header counts {header.entry_total} entries, and the index {named}",
                offset=layout.offset_of("entry_total"),
            )
        entries = [item.entry for item in live if item.entry is not None]
        total = sum(33 + len(encode_key(entry.key)) + entry.size for entry in entries)
        if len(entries) == named and total != header.total_size:
            self._report.warning(
                "total-size",
                f"the header gives the entries {header.total_size} bytes, and they have {total}",
                offset=layout.offset_of("total_size"),
                hint=SAVE,
            )

    def _check_rest(
        self, header: v2.Header, rows: dict[int, v2.Record], live: list[Live], *, indexed: bool
    ) -> None:
        """Report the bytes that neither the header nor the index leads to."""
        report = self._report
        if self._intact and self._source.size > header.committed_size:
            report.warning(
                "uncommitted-bytes",
                f"{self._source.size - header.committed_size} bytes follow the committed part",
                offset=header.committed_size,
                hint="An update did not finish, and is ignored; the next save removes the bytes.",
                remedy=RESCUE,
            )
        named = {row.offset for row in rows.values()}
        used = sorted(named)
        dead, dead_size = 0, 0
        sealed = header.version == 3 and self._cipher is None
        if sealed:
            self._check_sealed()
        for piece in self._pieces:
            if self._intact and piece.offset >= header.committed_size:
                break
            if piece.foreign:
                report.warning(
                    "foreign-record",
                    "a record of another file lies here, outside of any payload",
                    offset=piece.offset,
                    hint="It is ignored when the file is read.",
                    remedy=RESCUE,
                )
            elif piece.kind == "gap":
                self._gap(piece, header, used, indexed=indexed)
            elif piece.kind == "record" and indexed and piece.offset not in named:
                row = rows.get(piece.ordinal)
                kept = row is not None and row.offset
                if kept and row is not None and piece.generation > self._generation_at(row.offset):
                    report.warning(
                        "record-not-indexed",
                        "a newer record of an entry is not in the index",
                        offset=piece.offset,
                        hint="It is ignored when the file is read.",
                    )
                dead, dead_size = dead + 1, dead_size + piece.size
        if dead:
            report.note(
                "garbage",
                f"{dead} records ({dead_size} bytes) are left from updates and removals",
                hint="Rewriting the file releases them.",
                remedy=REWRITE,
            )

    def _generation_at(self, offset: int) -> int:
        piece = self._at.get(offset)
        return piece.generation if piece is not None else t.U64

    def _check_sealed(self) -> None:
        """Verify the outer checksums of the newest records, without a key."""
        newest: dict[int, Piece] = {}
        for piece in self._pieces:
            if piece.kind == "record" and not piece.foreign and not piece.how:
                held = newest.get(piece.ordinal)
                if held is None or held.generation <= piece.generation:
                    newest[piece.ordinal] = piece
        if self._deep:
            rows = [
                Live(v2.Record(0, p.offset, p.size, p.ordinal, p.head_checksum), p, None)
                for p in newest.values()
            ]
            self._check_payloads(rows)

    def _gap(self, piece: Piece, header: v2.Header, used: list[int], *, indexed: bool) -> None:
        """Report bytes that are neither record nor index block, unless something led to them."""
        inside = bisect.bisect_left(used, piece.end) > bisect.bisect_left(used, piece.offset)
        if piece.offset == 0 or piece.offset == header.index_offset or inside:
            return
        message = f"{piece.size} bytes do not belong to any intact record or index block"
        if indexed:  # all that is alive was found
            self._report.note("unknown-bytes", message, offset=piece.offset)
        else:
            self._report.error("unknown-bytes", message, offset=piece.offset)
