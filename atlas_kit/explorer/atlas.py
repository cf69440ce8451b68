"""A memory file as the explorer shows it: its entries as a table, from the index alone until one is looked at.

A file that cannot be opened is walked instead, where it is small enough: what is intact is shown, what is not is
marked. Payloads are read when they are looked at.
"""

from __future__ import annotations

import functools
from bisect import bisect_right
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from atlas_kit.codecs.numbers import Array
from atlas_kit.codecs.quantities import exact_size
from atlas_kit.errors import AtlasError, KeyRequiredError, Remedy, WrongKeyError
from atlas_kit.explorer.contents import Contents, HexLine, cell, date, elements
from atlas_kit.explorer.entry import first_bytes, is_plain, matrix_of, npy
from atlas_kit.explorer.index import ROW, columns_of, live_rows
from atlas_kit.explorer.items import Item
from atlas_kit.explorer.regions import KINDS, RecordRegion, Regions
from atlas_kit.explorer.table import Column, FileTable
from atlas_kit.formats.atlas import MemoryFile, layout, rescue, v2, view
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.schema import Span
from atlas_kit.operations.entry_rows import EntryRow
from atlas_kit.operations.episodes import readable
from atlas_kit.operations.inspect_parts import learned_memory, value_text
from atlas_kit.persistence.entry_keys import DESCRIPTION, EPISODES
from atlas_kit.storage.source import Source

if TYPE_CHECKING:
    from atlas_kit.formats.atlas import Entry
    from atlas_kit.formats.atlas.v1 import StoreV1


#: A damaged file of up to this many bytes is walked when it is opened; a larger one shows its bytes.
WALKED = 1 << 25
_COLUMNS = (
    Column("key", "Key"), Column("type", "Type"), Column("tensor", "Tensor"), Column("size", "Bytes", "bytes"),
    Column("time", "Time", "time"),
)  # fmt: skip


class AtlasContents(Contents):
    """A memory file: intact, sealed, or damaged."""

    kind = "atlas"
    title = "ATLAS memory"

    def __init__(self, source: Source, passphrase: str | bytes | None = None) -> None:
        super().__init__(source)
        self.memory: MemoryFile | None = None
        self.passphrase = passphrase
        self._secret: dict[str, Any] = {} if passphrase is None else {"passphrase": passphrase}
        self._spans: list[HexLine] = []  # of a damaged file
        self._found: list[view.AtlasRegion] = []
        self._rescued: list[Entry] = []
        self._index: Array | None = None
        try:
            self._open()
        except KeyRequiredError as error:
            self.problem, self.locked = error, True
        except WrongKeyError:
            raise
        except AtlasError as error:
            self.problem = error
        if self.memory is None and source.size <= WALKED:
            self._walk()

    def _open(self) -> None:
        memory = MemoryFile.open(self.source, **self._secret)
        store = memory.store
        assert store is not None
        self.memory = memory
        self._lines = functools.lru_cache(maxsize=256)(self._record_lines)
        if isinstance(store, v2.StoreV2):
            self._index = live_rows(store)
            self._places = self._index["record_offset"].astype(np.int64)
            sizes = np.minimum(self._index["record_size"], store.source.size).astype(np.int64)
        else:
            entries = cast("StoreV1", store)._offsets
            self._places = np.fromiter(entries.values(), np.int64, len(entries))
            sizes = np.diff(self._places, append=store.source.size)
            self._keys = list(entries)
        self._sizes = sizes
        self._list("Entries")

    def _walk(self) -> None:
        """Take from a damaged file what is there."""
        self._found = view.byte_map(self.source, **self._secret)
        spans, _ = view.hex_fields(self.source, None, **self._secret)
        self._spans = [_line(self.source, span) for span in spans]
        try:
            self._rescued = rescue.intact_entries(self.source, **self._secret)
        except AtlasError:
            return  # nothing is left, or a passphrase is needed
        self._rescued.sort(key=lambda entry: entry.offset or 0)
        places = [(entry.offset or 0, entry.payload_offset, entry.stored_size) for entry in self._rescued]
        self._places = np.array([start for start, _, _ in places], np.int64)
        self._sizes = np.array([(at or start) + size - start for start, at, size in places], np.int64)
        self._list("Intact entries")
        if self.problem is not None and self._rescued:
            self.problem.hint, self.problem.remedy = "What is intact is shown.", Remedy("repair")

    def _list(self, title: str) -> None:
        count = len(self._places)
        table = FileTable(title, _COLUMNS, count, self._row, self._column, ("key", "type", "tensor"))
        self.tables = {"entries": table}

    # --- what it is -----------------------------------------------------------------------------------------

    def facts(self) -> list[tuple[str, str]]:
        """Return what the file is, as (name, value) rows."""
        memory = self.memory
        if memory is None:
            sealed = [("Encrypted", "yes: give its passphrase to see more")] if self.locked else []
            intact = [("Intact entries", f"{len(self._rescued):,}")] if self.tables else []
            return sealed + intact
        rows = [
            ("Format", f"ATLAS memory, version {memory.version} ({memory.dialect})"),
            ("Entries", f"{len(self._places):,}"),
            ("Created", date(memory.created)),
            ("Modified", date(memory.modified)),
            ("Model", memory.model_hash.hex() if any(memory.model_hash) else "any: no model hash is set"),
        ]
        if memory.version > 1:
            unused = max(
                0, self.source.size - int(self._sizes.sum()) - layout.HEADER_STRUCTS[memory.version].size
            )
            rows.append(("Commits", f"{memory.generation:,}"))
            rows.append(
                ("Beside entries", f"{exact_size(unused)}: index, padding, and what updates left behind")
            )
        learned = learned_memory(memory) if len(self._places) < 1000 and DESCRIPTION in memory else None
        if learned:
            rows.append(("Memory", str(learned.get("summary", ""))))
        found = readable(memory) if len(self._places) < 1000 and EPISODES in memory else None
        if found:
            rows.append(("Readable", str(found["summary"])))
        rows += [("Note", finding.message) for finding in memory.warnings]
        return rows

    def _make_regions(self) -> Regions:
        if self.memory is None:
            found = [RecordRegion(r.offset, r.size, r.kind, n) for n, r in enumerate(self._found)]
            return Regions(found, self.source.size)
        count = len(self._places)
        fixed, tail = self._fixed_regions()
        own = np.column_stack(
            [self._places, self._sizes, np.full(count, KINDS.index("entry")), np.arange(count)]
        )
        rows = np.array([(r.offset, r.size, KINDS.index(r.kind), -1) for r in fixed], np.int64)
        return Regions.of_rows(np.concatenate([own, rows]), self.source.size, "garbage", tail)

    def _fixed_regions(self) -> tuple[list[RecordRegion], str]:
        """Return header, index blocks and what is behind the committed part; and the kind of what is behind all."""
        store = self.memory.store if self.memory else None
        if not isinstance(store, v2.StoreV2):
            end = self._end_v1()  # corrects the size of the last entry
            start = int(self._places[0]) if len(self._places) else layout.HEADER_V1.size
            return [
                RecordRegion(0, start, "header"),
                RecordRegion(end, self.source.size - end, "trailing"),
            ], "trailing"
        committed = store.header.committed_size
        found = [RecordRegion(0, store.header.header_size, "header")]
        found += [RecordRegion(block.offset, block.size, "index") for block in store.blocks]
        return [*found, RecordRegion(committed, self.source.size - committed, "uncommitted")], "uncommitted"

    def _end_v1(self) -> int:
        if not len(self._places):
            return self.source.size
        entry = self._entry(len(self._places) - 1)
        end = (entry.payload_offset or 0) + entry.size
        self._sizes[-1] = end - self._places[-1]
        return end

    def name_of(self, region: RecordRegion) -> str:
        """Return what a region belongs to, by name; empty for what has none."""
        if region.record < 0:
            return ""
        if self.memory is None:
            return self._found[region.record].name
        try:
            return self._entry(region.record).key
        except AtlasError:
            return f"entry {region.record}"

    def place_of(self, region: RecordRegion) -> tuple[str, int] | None:
        """Return the table and the row that a region shows, where there is one."""
        if self.memory is not None:
            return None if region.record < 0 else ("entries", region.record)
        number = bisect_right(self._rescued, region.offset, key=lambda entry: entry.offset or 0) - 1
        inside = number >= 0 and region.offset < self._places[number] + self._sizes[number]
        return ("entries", number) if inside else None

    def find(self, name: str) -> tuple[str, int] | None:
        """Return the table and the row of a name, or None."""
        if self.memory is not None:
            entry = self.memory.get(name)
        else:
            entry = next((entry for entry in self._rescued if entry.key == name), None)
        if entry is None or entry.offset is None:
            return None
        places = np.flatnonzero(self._places == entry.offset)
        return ("entries", int(places[0])) if len(places) else None

    # --- bytes ----------------------------------------------------------------------------------------------

    def fields(self, start: int, stop: int) -> list[HexLine]:
        """Return the fields of the layout between two offsets."""
        if self.memory is None:
            first = max(0, bisect_right(self._spans, start, key=lambda line: line.offset) - 1)
            lines = [line for line in self._spans[first : first + stop - start + 1] if line.offset < stop]
        else:
            lines = []
            for number in self.regions.between(start, stop):
                lines += self._lines_of(self.regions[number], start, stop)
        return [line for line in lines if line.offset < stop and line.offset + line.size > start]

    def _lines_of(self, region: RecordRegion, start: int, stop: int) -> list[HexLine]:
        if region.kind == "entry":
            lines = self._lines(region.offset, f"entries[{region.record}]", 0)
            return [*lines, *self._weights(region.record, start, stop)]
        if region.kind == "header":
            return self._lines(0, "header", 0)
        if region.kind == "index":
            assert self.memory is not None
            head = layout.INDEX.size + layout.HEADER_STRUCTS[self.memory.version].size
            first = max(0, (start - region.offset - head) // ROW.itemsize)
            lines = []
            for step in range(first, first + (stop - start) // ROW.itemsize + 2, view.INDEX_ROWS):
                lines += self._lines(region.offset, "index", step)
            return list({(line.offset, line.size): line for line in lines}.values())
        what = {"garbage": "left by updates, or padding", "uncommitted": "an update that did not finish"}
        return [HexLine(region.offset, region.size, b"", region.kind, "bytes", "", what.get(region.kind, ""))]

    def _record_lines(self, offset: int, name: str, first: int) -> list[HexLine]:
        assert self.memory is not None
        cipher = self.memory.store.cipher if self.memory.store else None
        version = self.memory.version
        spans = view.record_fields(self.source, offset, name, version=version, cipher=cipher, first=first)
        return [_line(self.source, span) for span in spans]

    def _weights(self, number: int, start: int, stop: int) -> list[HexLine]:
        """Return the numbers of a plain tensor that hold bytes of a range."""
        try:
            entry = self._entry(number)
        except AtlasError:
            return []
        row = t.DTYPE_BY_ID.get(entry.dtype_id)
        if row is None or row.block > 1 or not is_plain(entry):
            return []
        if row.name == "bfloat16" or t.tensor_bytes(row, entry.shape or ()) != entry.size:
            return []
        name = f"entries[{number}].data"
        return elements(
            self.source, name, entry.shape or (), entry.payload_offset or 0, row.numpy, start, stop
        )

    # --- entries --------------------------------------------------------------------------------------------

    def _entry(self, number: int) -> Entry:
        if self.memory is None:
            return self._rescued[number]
        store = self.memory.store
        if isinstance(store, v2.StoreV2):
            assert self._index is not None
            return store.entry_at(v2.Record(*(int(value) for value in self._index[number])))
        assert store is not None
        entry = store.find(self._keys[number])
        assert entry is not None
        return entry

    def _row(self, number: int) -> list[Any]:
        try:
            return _cells(EntryRow.of(self._entry(number)))
        except AtlasError as error:
            return [cell(f"(damaged: {error.message})"), "", "", int(self._sizes[number]), None]

    def _column(self, name: str) -> Any:
        place = [column.name for column in _COLUMNS].index(name)
        return self._all[place]

    @functools.cached_property
    def _all(self) -> list[Any]:
        store = self.memory.store if self.memory is not None else None
        if isinstance(store, v2.StoreV2) and store.cipher is None:
            assert self._index is not None
            return columns_of(self.source, self._places)
        return list(zip(*map(self._row, range(len(self._places))), strict=True)) or [()] * len(_COLUMNS)

    def item(self, table: str, row: int) -> Item:
        """Return everything about one row of a table."""
        self.table(table).check(row)
        start, size = int(self._places[row]), int(self._sizes[row])
        try:
            entry = self._entry(row)
        except AtlasError as error:
            return Item(f"entry {row}", "entry", [], start, size, problem=error.message)
        return self._entry_item(entry, start, size)

    def _entry_item(self, entry: Entry, start: int, size: int) -> Item:
        shown = EntryRow.of(entry)
        facts = [
            ("Type", shown.type_name),
            ("Time", date(shown.timestamp)),
            ("Payload", exact_size(shown.size)),
        ]
        if shown.stored_size != shown.size or shown.codec != "none":
            how = shown.codec if shown.filter == "none" else f"{shown.codec} with {shown.filter}"
            facts.append(("Stored", f"{exact_size(shown.stored_size)}, {how}"))
        if shown.dtype is not None:
            facts.append(("Tensor", _tensor_text(shown)))
        if shown.flags:
            facts.append(("Flags", f"{shown.flags:#x}"))
        facts.append(("Checksum", f"{shown.checksum:x}"))
        facts.append(("Offset", f"{start:,} ({start:#x})"))
        item = Item(entry.key, "entry", facts, start, size, entry.size)
        item.conversation = entry.type == t.DataType.CONVERSATION
        item.exports = {"bin": entry.chunks}
        if entry.dtype_id:
            self._add_matrix(item, entry)
        else:
            item.read = lambda count: first_bytes(self.source, entry, item, count)
            if item.is_text:
                item.exports = {
                    "json" if item.document() is not None else "txt": entry.chunks,
                    **item.exports,
                }
        return item

    def _add_matrix(self, item: Item, entry: Entry) -> None:
        try:
            matrix = matrix_of(self.source, entry)
        except AtlasError as error:
            item.problem = error.message
            return
        item.matrix = lambda: matrix
        item.exports = {"npy": lambda: npy(entry), **item.exports}

    def close(self) -> None:
        """Release the file."""
        if self.memory is not None:
            self.memory.close()
        self.source.close()


def _cells(row: EntryRow) -> list[Any]:
    return [cell(row.key), row.type_name, _tensor_text(row), row.size, row.timestamp]


def _tensor_text(row: EntryRow) -> str:
    if row.dtype is None:
        return ""
    return f"{row.dtype} {' x '.join(map(str, row.shape or ())) or 'scalar'}"


def _line(source: Source, span: Span) -> HexLine:
    data = source.read_upto(span.offset, min(span.size, 16))
    return HexLine(
        span.offset, span.size, data, span.name, span.type, value_text(span.value), span.note or ""
    )
