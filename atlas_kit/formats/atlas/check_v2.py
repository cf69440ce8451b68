"""Checking versions 2 and 3: header, index, every record, and what lies between them. Called by ``check``."""

from __future__ import annotations

import hmac
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
from atlas_kit.formats.atlas.check import REPAIR
from atlas_kit.formats.atlas.store import encode_key
from atlas_kit.formats.atlas.verify import Verifier

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atlas_kit.formats._files import Source
    from atlas_kit.formats.atlas.check import Report
    from atlas_kit.formats.atlas.crypto import Cipher, Secret
    from atlas_kit.formats.atlas.entry import Entry
    from atlas_kit.formats.atlas.scan_v2 import BlockHead, Piece

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
            report.add(
                "truncated", "error", f"the header has {size} bytes, and the file ends at byte {len(raw)}",
                "Restore it: atlas-tool recover FILE", len(raw),
            )  # fmt: skip
            return
        try:
            self._header, self._intact = v2.parse_header(raw), raw[:4] == t.MAGIC
        except AtlasError as error:
            if raw[:4] == t.MAGIC and version in (2, 3):
                report.add(
                    "header-checksum", "error", error.message, REPAIR, layout.HEADER_STRUCTS[version].size - 8
                )
            copies = [
                piece.header for piece in self._pieces if piece.header is not None and not piece.foreign
            ]
            self._header = max(copies, key=lambda header: header.generation, default=None)
        header = self._header
        if header is None or not self._intact:
            return
        if checksums.fnv1a(raw[12 : layout.HEADER_V1.size]) != header.checksum:
            report.add(
                "header-fnv",
                "warning",
                "the checksum that version 1 readers know does not fit",
                "Save it anew.",
                8,
            )
        if header.entry_count != min(header.entry_total, t.U32):
            report.add(
                "entry-count", "warning",
                f"entry_count is {header.entry_count}, and entry_total is {header.entry_total}", "Save it anew.", 12,
            )  # fmt: skip
        report.header_facts(header.created_time, header.modified_time, header.model_hash, header.reserved)
        if header.file_flags:
            report.add(
                "unknown-file-flags",
                "note",
                f"the file has flags that are not known: {header.file_flags:#x}",
                "",
                108,
            )
        if header.committed_size > source.size:
            report.add(
                "truncated", "error",
                f"the file ends at byte {source.size}, and its header says {header.committed_size}", REPAIR, source.size,
            )  # fmt: skip

    def _lost_header(self) -> None:
        """Header and index are gone: report what records there are."""
        records = [piece for piece in self._pieces if piece.kind == "record" and not piece.foreign]
        self._report.add(
            "header-lost",
            "error",
            f"neither the header nor an index is intact; {len(records)} records are",
            REPAIR,
            0,
        )

    def _unlock(self, header: v2.Header) -> None:
        from atlas_kit.formats.atlas.crypto import unlock

        report = self._report
        try:
            self._cipher = unlock(header.kdf, header.crypto[6], self._secret)
        except KeyRequiredError as error:
            report.add(
                "contents-not-checked", "note", f"{error.message}: only the outer checksums were checked",
                error.hint or "",
            )  # fmt: skip
        except MissingExtraError as error:
            report.add("contents-not-checked", "note", error.message, error.hint or "")
        except WrongKeyError as error:
            report.add(
                "wrong-key", "error", error.message, error.hint or "Only the outer checksums were checked."
            )
        except AtlasError as error:
            report.add("key-derivation", "error", error.message, REPAIR, 160)
        if self._cipher is None or not self._intact:
            return
        raw = self._source.read(0, layout.HEADER_V3.size)
        if not hmac.compare_digest(self._cipher.header_tag(raw[:216]), raw[216:248]):
            report.add(
                "header-authentication", "error", "the header was altered: its authentication tag does not fit",
                "Do not trust this file; restore it from a backup.", 216,
            )  # fmt: skip

    # --- index ----------------------------------------------------------------------------------------

    def _check_index(self, header: v2.Header) -> dict[int, v2.Record] | None:
        """Check the chain of index blocks; return the newest row of each ordinal, ``None`` where one is unusable."""
        report = self._report
        rows: dict[int, v2.Record] = {}
        offset, limit, newest = header.index_offset, min(header.committed_size, self._source.size), True
        while True:
            block = self._block(header, offset, limit)
            if block is None:
                return None
            if newest and block.header is not None and block.header != header:
                report.add("index-header-copy", "warning", "the index's copy of the header differs from the header",
                           "Save the file anew.", block.first)  # fmt: skip
            sealed = header.version == 3 and self._cipher is None
            if sealed:
                return None
            try:
                records = scan_v2.block_rows(self._source, block, self._cipher)
            except AtlasError as error:
                error.offset = offset
                report.error(
                    "index-authentication", error, "Do not trust this file; restore it from a backup."
                )
                return None
            self._check_order(block, records)
            for row in records:
                rows.setdefault(row.ordinal, row)
            if block.prev_offset == 0:
                return rows
            if block.prev_offset >= offset:
                report.add("index-chain", "error", "an index block points forward", REPAIR, offset)
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
            report.add("index-foreign", "error", "the index block here is not this file's", REPAIR, offset)
            return None
        if offset + layout.INDEX.size > limit or offset < header.header_size:
            report.add(
                "index-outside",
                "error",
                f"the index should be at byte {offset}, outside of the file",
                REPAIR,
                128,
            )
        elif scan_v2.read_block(self._source, offset) is not None:
            report.add(
                "index-checksum", "error", "the index block's checksum does not fit its bytes", REPAIR, offset
            )
        else:
            report.add("index-lost", "error", "there is no intact index block here", REPAIR, offset)
        return None

    def _check_order(self, block: BlockHead, records: list[v2.Record]) -> None:
        report = self._report
        order = [(row.key_hash, row.ordinal) for row in records]
        if any(a > b for a, b in zip(order, order[1:])):  # noqa: B905
            report.add(
                "index-unsorted",
                "error",
                "the index is not sorted: keys cannot be found",
                REPAIR,
                block.first,
            )
        ordinals = {row.ordinal for row in records}
        if len(ordinals) != len(records):
            report.add("index-duplicate", "error", "the index names an ordinal twice", REPAIR, block.first)
        if ordinals and max(ordinals) >= block.next_ordinal:
            report.add(
                "next-ordinal", "warning", "the index would give an ordinal that is in use to the next new entry",
                "Save the file anew.", block.offset,
            )  # fmt: skip

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
                    self._report.add(
                        "duplicate-key", "error", f"the entry at byte {keys[entry.key]} has the same key", REPAIR,
                        row.offset, entry.key,
                    )  # fmt: skip
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
            report.add("index-outside", "error", f"the index names a record at byte {row.offset}, outside of the file",
                       REPAIR, row.offset)  # fmt: skip
            return None
        piece = self._at.get(row.offset)
        if row.offset + layout.ENTRY.size > self._source.size:
            report.add("entry-truncated", "error", "the file ends before this entry", REPAIR, row.offset)
        elif piece is None or piece.kind != "record":
            report.add(
                "entry-head",
                "error",
                "there is no intact record where the index names one",
                REPAIR,
                row.offset,
            )
        elif piece.how:
            report.add("entry-head", "error", f"the record's {piece.how} was hit", REPAIR, row.offset)
        elif piece.payload_offset + piece.stored_size > self._source.size:
            report.add(
                "entry-truncated",
                "error",
                "the file ends inside this entry's payload",
                REPAIR,
                self._source.size,
            )
        elif (piece.head_checksum, piece.ordinal, piece.file_id) != (
            row.head_checksum,
            row.ordinal,
            header.file_id,
        ):
            report.add(
                "entry-swapped", "error",
                "the record here is not the one that the index names: entries were swapped or replaced", REPAIR,
                row.offset,
            )  # fmt: skip
        elif -(-(piece.payload_offset + piece.stored_size - row.offset) // 8) * 8 != row.size:
            report.add(
                "entry-size",
                "error",
                "the index gives the record another size than it has",
                REPAIR,
                row.offset,
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
            self._report.error("entry-authentication" if self._cipher else "entry-head", error)
            return None

    def _check_entry(self, header: v2.Header, row: v2.Record, piece: Piece, entry: Entry) -> None:
        report, at = self._report, row.offset
        raw = encode_key(entry.key)
        if not raw or 0 in raw:
            report.add("bad-key", "error", "the key is empty or contains a NUL", REPAIR, at)
        if checksums.xxh3(raw, header.file_id) != row.key_hash:
            report.add("index-key-hash", "error", "the index has another hash for this key: it cannot be found",
                       REPAIR, at, entry.key)  # fmt: skip
        if entry.attributes & t.REMOVED:
            report.add(
                "entry-removed",
                "error",
                "the index names a record that removes its key",
                REPAIR,
                at,
                entry.key,
            )
        unknown = entry.attributes & ~_KNOWN_ATTRIBUTES
        if unknown:
            report.tally("unknown-attributes", "note", f"with attributes that are not known ({unknown:#x})", "",
                         at, entry.key)  # fmt: skip
        for code, known, value in (
            ("unknown-codec", codecs.BY_ID, entry.codec_id),
            ("unknown-filter", codecs.FILTER_NAMES, entry.filter_id),
            ("unknown-dtype", {0: None, **t.DTYPE_BY_ID}, entry.dtype_id),
        ):
            if value not in known:
                report.tally(code, "warning", f"with {code[8:]} {value}, which is not known",
                             "A newer atlas_kit may read it.", at, entry.key)  # fmt: skip
        report.entry_facts(entry.key, at, entry.type, entry.timestamp)
        if self._cipher is None:
            self._check_place(piece, entry)

    def _check_place(self, piece: Piece, entry: Entry) -> None:
        """Check the alignment of a tensor, and the bytes that should be zero."""
        report = self._report
        plain = entry.dtype_id and not entry.codec_id and not entry.filter_id
        if plain and entry.size and piece.payload_offset % t.ALIGNMENT:
            report.tally(
                "tensor-misaligned", "warning", "whose tensor does not start at a multiple of 64",
                "It opens as a view that is not aligned; save the file anew.", piece.payload_offset, entry.key,
            )  # fmt: skip
        used = layout.ENTRY.size + 8 * len(entry.shape or ()) + len(encode_key(entry.key))
        head = self._source.read(piece.offset + used, piece.payload_offset - piece.offset - used)
        stop = piece.payload_offset + piece.stored_size
        tail = self._source.read_upto(stop, max(0, piece.end - stop))
        if any(head) or any(tail):
            report.tally(
                "padding-not-zero", "note", "with padding that is not zero", "", piece.offset, entry.key
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
            self._report.add(code, "error", error.message, REPAIR, item.piece.payload_offset, key)
        for entry in verifier.skipped:
            self._report.tally(
                "not-unpacked", "note", "that unpack to so much that only their checksums were verified", "",
                entry.offset, entry.key,
            )  # fmt: skip

    # --- totals and the rest --------------------------------------------------------------------------

    def _check_totals(self, header: v2.Header, rows: dict[int, v2.Record], live: list[Live]) -> None:
        named = sum(1 for row in rows.values() if row.offset)
        if named != header.entry_total:
            self._report.add(
                "entry-count", "error", f"the header counts {header.entry_total} entries, and the index {named}",
                REPAIR, 144,
            )  # fmt: skip
        entries = [item.entry for item in live if item.entry is not None]
        total = sum(33 + len(encode_key(entry.key)) + entry.size for entry in entries)
        if len(entries) == named and total != header.total_size:
            self._report.add(
                "total-size", "warning", f"the header gives the entries {header.total_size} bytes, and they have {total}",
                "Save the file anew.", 32,
            )  # fmt: skip

    def _check_rest(
        self, header: v2.Header, rows: dict[int, v2.Record], live: list[Live], *, indexed: bool
    ) -> None:
        """Report the bytes that neither the header nor the index leads to."""
        report = self._report
        if self._intact and self._source.size > header.committed_size:
            report.add(
                "uncommitted-bytes", "warning",
                f"{self._source.size - header.committed_size} bytes follow the committed part",
                "An update did not finish, and is ignored; the next save removes the bytes.", header.committed_size,
            )  # fmt: skip
        used = {item.row.offset for item in live} | {row.offset for row in rows.values()}
        dead, dead_size = 0, 0
        sealed = header.version == 3 and self._cipher is None
        if sealed:
            self._check_sealed()
        for piece in self._pieces:
            if self._intact and piece.offset >= header.committed_size:
                break
            if piece.foreign:
                report.add("foreign-record", "warning", "a record of another file lies here, outside of any payload",
                           "It is ignored when the file is read.", piece.offset)  # fmt: skip
            elif piece.kind == "gap":
                self._gap(piece, header, used, indexed=indexed)
            elif piece.kind == "record" and indexed and piece.offset not in used:
                row = rows.get(piece.ordinal)
                kept = row is not None and row.offset
                if kept and row is not None and piece.generation > self._generation_at(row.offset):
                    report.add("record-not-indexed", "warning", "a newer record of an entry is not in the index",
                               "It is ignored when the file is read.", piece.offset)  # fmt: skip
                dead, dead_size = dead + 1, dead_size + piece.size
        if dead:
            report.add(
                "garbage", "note", f"{dead} records ({dead_size} bytes) are left from updates and removals",
                "`MemoryFile.compact()` (or converting the file) releases them.",
            )  # fmt: skip

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

    def _gap(self, piece: Piece, header: v2.Header, used: set[int], *, indexed: bool) -> None:
        if piece.offset == 0 or any(offset in used for offset in (piece.offset,)):
            return  # reported as header or entry
        if piece.offset == header.index_offset:
            return
        if indexed and any(piece.offset <= offset < piece.end for offset in used):
            return
        severity, hint = ("note", "") if indexed else ("error", REPAIR)
        self._report.add(
            "unknown-bytes", "error" if severity == "error" else "note",
            f"{piece.size} bytes belong to no intact record or index block", hint, piece.offset,
        )  # fmt: skip
