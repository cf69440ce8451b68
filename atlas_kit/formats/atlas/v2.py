"""Versions 2 and 3: header, entry records, index blocks, commits. See ``formats/atlas.md``.

Opening reads the header and the head of the newest index block; a key is found by interpolation in the
sorted index and confirmed by its record, with a handful of positioned reads whatever the number of entries.
"""

from __future__ import annotations

import time
from collections import namedtuple
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple, cast

from atlas_kit.errors import (
    AtlasError,
    AuthenticationError,
    ChecksumMismatchError,
    FileCorruptError,
    Remedy,
    TruncatedError,
    VersionMismatchError,
)
from atlas_kit.formats.atlas import checksums, layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.entry import Entry, FilePayload, MemoryPayload
from atlas_kit.formats.atlas.store import Info, decode_key, encode_key
from atlas_kit.formats.findings import Finding

if TYPE_CHECKING:
    from collections.abc import Iterator

    from atlas_kit.formats.atlas.crypto import Cipher, KdfParams, Secret
    from atlas_kit.storage.source import Source

_REPAIR = Remedy("repair")

#: An index of up to this many bytes is read whole and checked on opening; a larger one when a key is missing.
SMALL_INDEX = 1 << 16

#: Records that one step of the search reads.
PROBE = 48

#: What is read of a record at first: enough for the whole of a small entry.
FIRST_READ = 1 << 12

_HEAD = layout.ENTRY.size
_REC = layout.RECORD.size
#: The fixed fields of an entry record, named by the schema.
Fields = cast("Any", namedtuple)("Fields", layout.names_of(layout.EntryHeader))


class Header(NamedTuple):
    """The fields of a version 2 header, and version 3's key-derivation part (empty in version 2)."""

    magic: bytes
    version: int
    checksum: int
    entry_count: int
    created_time: int
    modified_time: int
    total_size: int
    model_hash: bytes
    reserved: bytes
    header_size: int
    file_flags: int
    file_id: int
    generation: int
    index_offset: int
    committed_size: int
    entry_total: int
    crypto: tuple[Any, ...] = ()

    @property
    def kdf(self) -> KdfParams:
        """How the keys of a version 3 file are derived."""
        from atlas_kit.formats.atlas.crypto import KdfParams

        kdf, log2_n, r, p, _, salt = self.crypto[:6]
        return KdfParams(kdf, log2_n, r, p, salt)

    def pack(self, cipher: Cipher | None) -> bytes:
        """Return the header's bytes with all its checksums (and, sealed, its authentication tag)."""
        packer = layout.HEADER_STRUCTS[self.version]
        top = (*self[:2], 0, min(self.entry_total, t.U32), *self[4:9], packer.size, *self[10:16])
        if cipher is None:
            body = packer.pack(*top, 0)
        else:
            k = cipher.params
            crypto = (k.kdf, k.log2_n, k.r, k.p, t.CIPHER_AES_256_GCM, k.salt, cipher.check, bytes(24))
            body = packer.pack(*top, *crypto, bytes(32), 0)
        fnv = checksums.fnv1a(body[layout.SUMMED])
        body = layout.patched(body, "checksum", fnv.to_bytes(4, "little"))
        if cipher is not None:
            body = layout.patched(body, "header_tag", cipher.header_tag(body[layout.TAGGED]))
        return body[:-8] + checksums.xxh3(body[:-8]).to_bytes(8, "little")


def parse_header(raw: bytes, *, path: str | None = None, offset: int = 0) -> Header:
    """Parse a header of version 2 or 3 and verify its checksum.

    Raises
    ------
    TruncatedError, ChecksumMismatchError
        The header is cut off, or not what was written.
    """
    version = int.from_bytes(raw[4:8], "little")
    packer = layout.HEADER_STRUCTS.get(version, layout.HEADER_V2)
    if len(raw) < packer.size:
        raise TruncatedError(
            f"the header has {packer.size} bytes, and {len(raw)} are there",
            path=path,
            offset=offset,
            remedy=Remedy("recover"),
        )
    fields = packer.unpack_from(raw)
    if raw[:4] != t.MAGIC or checksums.xxh3(raw[: packer.size - 8]) != fields[-1] or fields[9] != packer.size:
        raise ChecksumMismatchError(
            "the header's checksum does not match its bytes", path=path, offset=offset, remedy=_REPAIR
        )
    return Header._make((*fields[:16], fields[16:-1]))


class Block(NamedTuple):
    """One index block: where it is, and its records where they are already in memory."""

    offset: int
    size: int
    generation: int
    prev_offset: int
    num_records: int
    next_ordinal: int
    first: int  # offset of the first record
    records: bytes | None
    checksum: int


class Record(NamedTuple):
    """One row of the index."""

    key_hash: int
    offset: int
    size: int
    ordinal: int
    head_checksum: int


class EntryHead(NamedTuple):
    """The fields of an entry record's header, its shape and key, and the raw bytes up to the payload."""

    fields: Any
    shape: tuple[int, ...]
    key: bytes
    raw: bytes


class SealedPayload:
    """The sealed payload of a version 3 entry; decrypted when it is read."""

    def __init__(self, source: Source, offset: int, sealed: int, open_: Any, checksum: int) -> None:
        self._source = source
        self._offset = offset
        self._sealed = sealed
        self._open = open_
        self._checksum = checksum
        self.size = sealed - t.TAG_SIZE

    def read(self) -> bytes:
        """Return the stored bytes, decrypted and authenticated."""
        data: bytes = self._open(self._source.read(self._offset, self._sealed))
        if checksums.xxh3(data) != self._checksum:
            raise ChecksumMismatchError("the payload is not what was sealed", path=self._source.path)
        return data

    def chunks(self) -> Iterator[bytes]:
        """Yield the stored bytes (nothing is given out before all of it is authenticated)."""
        yield from MemoryPayload(self.read()).chunks()

    def view(self) -> memoryview:
        """Return the stored bytes."""
        return memoryview(self.read())


class StoreV2:
    """A version 2 or 3 file opened for reading."""

    def __init__(self, source: Source, secret: Secret | None = None, *, cipher: Cipher | None = None) -> None:
        self.source = source
        self.header, raw = self._read_header()
        self.cipher = cipher
        if self.header.version == 3:
            self._unlock(raw, secret)
        header = self.header
        if header.committed_size > source.size:
            source.refresh()  # a commit may have come between opening the file and reading its header
        if header.committed_size > source.size:
            raise TruncatedError(
                f"the file ends at byte {source.size}, and its header says {header.committed_size}",
                path=source.path, offset=source.size, remedy=_REPAIR,
            )  # fmt: skip
        if header.entry_total * _HEAD > header.committed_size:
            raise FileCorruptError(
                f"the header counts {header.entry_total} entries, for which the file is too small",
                path=source.path, offset=layout.offset_of("entry_total"), remedy=_REPAIR,
            )  # fmt: skip
        self.blocks = self._read_blocks()
        self._checked = all(block.records is not None for block in self.blocks)
        self.info = Info(
            header.version, f"v{header.version}", header.created_time, header.modified_time,
            header.model_hash, header.reserved, header.total_size, header.file_flags, header.generation,
        )  # fmt: skip
        if source.size > header.committed_size:
            self.info.warnings.append(
                Finding(
                    "uncommitted-bytes", "warning",
                    f"{source.size - header.committed_size} bytes follow the committed part",
                    "An update did not finish, and is ignored; the next save removes the bytes.",
                    header.committed_size, remedy=Remedy("rescue-entries"),
                )
            )  # fmt: skip

    # --- opening --------------------------------------------------------------------------------------

    def _read_header(self) -> tuple[Header, bytes]:
        """Read the header; a commit may be writing it at this very moment, so a bad one is read again."""
        for attempt in range(4):
            raw = self.source.read_upto(0, layout.HEADER_V3.size)
            try:
                return parse_header(raw, path=self.source.path), raw
            except ChecksumMismatchError:
                if attempt == 3:
                    raise
                time.sleep(0.002)
        raise AssertionError("unreachable")

    def _unlock(self, raw: bytes, secret: Secret | None) -> None:
        import hmac

        from atlas_kit.formats.atlas.crypto import unlock

        if self.header.crypto[4] != t.CIPHER_AES_256_GCM:
            raise VersionMismatchError(
                f"the cipher {self.header.crypto[4]} is not one that this version knows",
                path=self.source.path,
                offset=layout.offset_of("cipher"),
            )
        try:
            if self.cipher is None:
                self.cipher = unlock(self.header.kdf, self.header.crypto[6], secret)
        except AtlasError as error:
            error.path = self.source.path
            raise
        if not hmac.compare_digest(self.cipher.header_tag(raw[layout.TAGGED]), raw[layout.AT["header_tag"]]):
            raise AuthenticationError(
                "the header was altered: its authentication tag does not match",
                path=self.source.path,
                offset=layout.offset_of("header_tag"),
            )

    def _read_blocks(self) -> list[Block]:
        blocks: list[Block] = []
        offset = self.header.index_offset
        limit = self.header.committed_size
        while offset:
            block = self.read_block(offset, limit)
            blocks.append(block)
            if block.prev_offset >= offset:  # always older, so always before: no loops
                raise FileCorruptError(
                    "an index block points forward", path=self.source.path, offset=offset, remedy=_REPAIR
                )
            offset, limit = block.prev_offset, offset
        if not blocks:
            raise FileCorruptError(
                "the header names no index",
                path=self.source.path,
                offset=layout.offset_of("index_offset"),
                remedy=_REPAIR,
            )
        return blocks

    def read_block(self, offset: int, limit: int) -> Block:
        """Read the head of an index block (all of it where it is small or sealed)."""
        source, path = self.source, self.source.path
        head = layout.INDEX.size + self.header.header_size
        if offset % 8 or offset < self.header.header_size or offset + head > limit:
            raise FileCorruptError(
                f"the index block at {offset} is outside the file",
                path=path,
                offset=layout.offset_of("index_offset"),
                remedy=_REPAIR,
            )
        raw = source.read_upto(offset, min(SMALL_INDEX, limit - offset))
        fields = layout.INDEX.unpack_from(raw)
        sync, checksum, size, file_id, generation, prev_offset, count, next_ordinal = fields
        sealed = t.NONCE_SIZE + t.TAG_SIZE if self.cipher else 0
        if sync != t.INDEX_SYNC or file_id != self.header.file_id or size != head + sealed + _REC * count:
            raise FileCorruptError("there is no index block here", path=path, offset=offset, remedy=_REPAIR)
        if offset + size > limit:
            raise TruncatedError("the index block is cut off", path=path, offset=offset, remedy=_REPAIR)
        records = None
        if size <= len(raw) or self.cipher:
            raw = raw[:size] if size <= len(raw) else source.read(offset, size)
            if checksums.xxh3(memoryview(raw)[16:]) != checksum:
                raise ChecksumMismatchError(
                    "the index block's checksum does not match its bytes",
                    path=path,
                    offset=offset,
                    remedy=_REPAIR,
                )
            records = raw[head:]
            if self.cipher:
                try:
                    records = self.cipher.open_index(records, raw[16:head])
                except AtlasError as error:
                    error.path, error.offset = path, offset
                    raise
        return Block(
            offset, size, generation, prev_offset, count, next_ordinal, offset + head, records, checksum
        )

    # --- finding --------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return self.header.entry_total

    def find(self, key: str) -> Entry | None:
        """Return the entry of that key."""
        hit = self.find_row(encode_key(key))
        if hit is None and not self._checked:
            self.check_blocks()  # a damaged index must not look like a missing key
        return None if hit is None else hit[1]

    def find_row(self, raw: bytes) -> tuple[Record, Entry] | None:
        """Return the index row and the entry for a key's bytes."""
        wanted = checksums.xxh3(raw, self.header.file_id)
        key = decode_key(raw)
        shadowed: set[int] = set()
        for block in self.blocks:
            for row in self._rows_of(block, wanted):
                if row.ordinal in shadowed:
                    continue
                shadowed.add(row.ordinal)
                if row.offset:
                    entry = self.entry_at(row)
                    if entry.key == key:
                        return row, entry
        return None

    def records_of(self, block: Block, first: int, count: int) -> bytes:
        """Return the packed rows ``first`` to ``first + count`` of an index block."""
        if block.records is not None:
            return block.records[first * _REC : (first + count) * _REC]
        return self.source.read(block.first + first * _REC, count * _REC)

    def _rows_of(self, block: Block, wanted: int) -> Iterator[Record]:
        """Yield the rows of one key hash: interpolation search, as the hashes are evenly spread."""
        unpack = layout.RECORD.unpack_from
        low, high, low_hash, high_hash = 0, block.num_records, 0, t.U64  # the first match is in [low, high]
        steps = 0
        while high - low > PROBE:
            steps += 1
            if steps <= 8:
                guess = low + (high - low) * (wanted - low_hash) // max(1, high_hash - low_hash)
            else:  # a file whose hashes are not evenly spread: halve instead
                guess = (low + high) // 2
            first = max(low, min(guess - PROBE // 2, high - PROBE))
            rows = self.records_of(block, first, PROBE)
            first_hash, last_hash = unpack(rows)[0], unpack(rows, (PROBE - 1) * _REC)[0]
            if wanted <= first_hash:
                high, high_hash = first, first_hash
            elif wanted > last_hash:
                low, low_hash = first + PROBE, last_hash
            else:
                low, high = first, first + PROBE
        while low < block.num_records:
            count = min(PROBE, block.num_records - low)
            for fields in layout.RECORD.iter_unpack(self.records_of(block, low, count)):
                if fields[0] > wanted:
                    return
                if fields[0] == wanted:
                    yield Record(*fields)
            low += count
            if low > high + PROBE and fields[0] < wanted:  # not sorted: a damaged index
                return

    def check_blocks(self) -> None:
        """Verify the checksums of index blocks that opening did not read whole."""
        for block in self.blocks:
            if block.records is None:
                data = self.source.chunks(block.offset + 16, block.size - 16)
                if checksums.xxh3_of_chunks(data) != block.checksum:
                    raise ChecksumMismatchError(
                        "the index block's checksum does not match its bytes",
                        path=self.source.path, offset=block.offset, remedy=_REPAIR,
                    )  # fmt: skip
        self._checked = True

    def rows(self) -> list[Record]:
        """Return the index rows of all live entries, in the order of the entries."""
        if not self._checked:
            self.check_blocks()
        newest: dict[int, tuple[int, ...]] = {}
        for block in self.blocks:
            data = self.records_of(block, 0, block.num_records)
            for fields in layout.RECORD.iter_unpack(data):
                newest.setdefault(fields[3], fields)
        rows = [Record(*newest[ordinal]) for ordinal in sorted(newest) if newest[ordinal][1]]
        if len(rows) != self.header.entry_total:
            raise FileCorruptError(
                f"the header counts {self.header.entry_total} entries, and the index {len(rows)}",
                path=self.source.path, offset=layout.offset_of("entry_total"), remedy=_REPAIR,
            )  # fmt: skip
        end = self.header.header_size
        for row in sorted(rows, key=itemgetter(1)):
            if row.offset < end:  # or reading every entry could take the square of the file's size
                raise FileCorruptError(
                    "the index names records that overlap", path=self.source.path, offset=row.offset,
                    remedy=_REPAIR,
                )  # fmt: skip
            end = row.offset + row.size
        return rows

    # --- reading records ------------------------------------------------------------------------------

    def entry_at(self, row: Record, window: Window | None = None) -> Entry:
        """Read and check the head of the record that an index row points to; return its entry."""
        source = self.source
        if row.size < _HEAD or row.offset + row.size > self.header.committed_size:
            raise FileCorruptError(
                f"the index points outside the file, to {row.offset}", path=source.path, remedy=_REPAIR
            )
        raw = (window or source).read(row.offset, min(row.size, FIRST_READ))
        head = parse_head(raw, row.offset, source, size=row.size)
        fields = head.fields
        if (
            fields.head_checksum != row.head_checksum
            or fields.ordinal != row.ordinal
            or fields.file_id != self.header.file_id
        ):
            kind = AuthenticationError if self.cipher else ChecksumMismatchError
            raise kind(
                "this record is not the one that the index names: entries were swapped or replaced",
                path=source.path, offset=row.offset, remedy=_REPAIR,
            )  # fmt: skip
        if self.cipher:
            return open_sealed(source, row.offset, head, self.cipher)
        return plain_entry(source, row.offset, head)

    def entries(self) -> Iterator[Entry]:
        """Yield every entry in order."""
        window = Window(self.source)
        for row in self.rows():
            yield self.entry_at(row, window)

    def keys(self) -> Iterator[str]:
        """Yield every key in order."""
        for entry in self.entries():
            yield entry.key

    @property
    def live_size(self) -> int:
        """Bytes of header, live records and the newest index block: the size after compacting, about."""
        return self.header.header_size + sum(row.size for row in self.rows()) + self.blocks[0].size


class Window:
    """Positioned reads of neighbouring small ranges, from pieces of a few hundred KiB."""

    SIZE = 1 << 18

    def __init__(self, source: Source) -> None:
        self._source = source
        self._base = 0
        self._data = b""

    def read(self, offset: int, size: int) -> bytes:
        """Return exactly ``size`` bytes at ``offset``."""
        place = offset - self._base
        if place < 0 or place + size > len(self._data):
            ahead = (
                self.SIZE if 0 <= place <= len(self._data) + 64 else size
            )  # only where reads are neighbours
            self._base, self._data, place = offset, self._source.read_upto(offset, max(size, ahead)), 0
        data = self._data[place : place + size]
        return data if len(data) == size else self._source.read(offset, size)


def parse_head(raw: bytes, offset: int, source: Source | None, size: int | None = None) -> EntryHead:
    """Parse and check a record's head of which ``raw`` is the beginning (more is read where needed).

    ``size`` is the record's size where it is known from the index.

    Raises
    ------
    FileCorruptError, ChecksumMismatchError
        There is no intact record head here.
    """
    path = source.path if source else None
    if len(raw) < _HEAD or raw[:8] != t.ENTRY_SYNC:
        raise FileCorruptError("there is no entry record here", path=path, offset=offset, remedy=_REPAIR)
    fields = Fields._make(layout.ENTRY.unpack_from(raw))
    rank, key_length, payload_offset = fields.rank, fields.key_length, fields.payload_offset
    need = _HEAD + 8 * rank + key_length + 1
    end = payload_offset + fields.stored_size
    end += -end % t.RECORD_ALIGNMENT
    if (
        key_length > t.MAX_KEY
        or not need <= payload_offset <= need + t.ALIGNMENT
        or (size is not None and end != size)
    ):
        raise FileCorruptError(
            "the record's lengths contradict each other", path=path, offset=offset, remedy=_REPAIR
        )
    if payload_offset > len(raw):
        if source is None:
            raise TruncatedError("the record's head is cut off", path=path, offset=offset)
        raw = source.read(offset, payload_offset)
    if checksums.xxh3(raw[16:payload_offset]) != fields.head_checksum:
        raise ChecksumMismatchError(
            "the checksum of the record's head does not match its bytes",
            path=path,
            offset=offset,
            remedy=_REPAIR,
        )
    place = _HEAD + 8 * rank
    shape = tuple(int.from_bytes(raw[i : i + 8], "little") for i in range(_HEAD, place, 8))
    return EntryHead(fields, shape, raw[place : place + key_length], raw[:payload_offset])


def plain_entry(source: Source, offset: int, head: EntryHead) -> Entry:
    """Make an ``Entry`` of the head of a record that is not sealed."""
    f = head.fields
    start = offset + f.payload_offset
    return _entry(head, offset, start, FilePayload(source, start, f.stored_size, f.data_checksum))


def open_sealed(source: Source, offset: int, outer: EntryHead, cipher: Cipher) -> Entry:
    """Decrypt the head of a sealed record; its payload is decrypted when it is read.

    Raises
    ------
    AuthenticationError
        The record was altered, or belongs to another place, file or state.
    """
    path, f = source.path, outer.fields
    start = offset + f.payload_offset
    if not f.attributes & t.ENCRYPTED or f.stored_size < layout.SEAL.size + 2 * t.TAG_SIZE:
        raise AuthenticationError("an entry of an encrypted file is not sealed", path=path, offset=offset)
    prefix = layout.SEAL.unpack(source.read(start, layout.SEAL.size))
    head_size, salt, head_nonce, data_nonce = prefix[4:]
    k = cipher.params
    if (*prefix[:4], salt) != (k.kdf, k.log2_n, k.r, k.p, k.salt):  # a rescuer will rely on these
        raise AuthenticationError("the sealed entry names another key", path=path, offset=start)
    sealed = f.stored_size - layout.SEAL.size - head_size
    if sealed < t.TAG_SIZE or head_size < t.TAG_SIZE:
        raise FileCorruptError("the sealed record's lengths contradict each other", path=path, offset=offset)
    sealed_head = source.read(start + layout.SEAL.size, head_size)
    aad = outer.raw[24:]
    try:
        inner = parse_head(cipher.open(head_nonce, sealed_head, aad), offset, None)
    except AtlasError as error:
        error.path, error.offset = path, offset
        raise
    binding = aad + sealed_head[-t.TAG_SIZE :]
    front = checksums.xxh3_64(source.read(start, layout.SEAL.size) + sealed_head)

    def unseal(data: bytes) -> bytes:
        # the index vouches for this checksum only: nothing else ties the record to *this* state of the file
        whole = front.copy()
        whole.update(data)
        if whole.intdigest() != f.data_checksum:
            raise AuthenticationError(
                "the record is not the one that the index names", path=path, offset=offset, remedy=_REPAIR
            )
        return cipher.open(data_nonce, data, binding)

    payload = SealedPayload(
        source,
        start + layout.SEAL.size + head_size,
        sealed,
        unseal,
        inner.fields.data_checksum,
    )
    return _entry(inner, offset, None, payload)


def _entry(head: EntryHead, offset: int, payload_offset: int | None, payload: Any) -> Entry:
    f = head.fields
    return Entry(
        decode_key(head.key),
        payload,
        type=f.data_type,
        flags=f.flags,
        timestamp=f.timestamp,
        size=f.data_size,
        codec_id=f.codec,
        filter_id=f.filter,
        item_size=f.item_size,
        dtype_id=f.dtype,
        shape=head.shape if f.dtype else None,
        attributes=f.attributes,
        reserved=f.reserved,
        offset=offset,
        payload_offset=payload_offset,
        checksum=f.data_checksum,
    )
