"""Writing versions 2 and 3: entry records, index blocks, whole files, and commits that append.

See "Updating" and "Version 3" of ``formats/atlas.md``. Reading is in ``v2``.
"""

from __future__ import annotations

import itertools
import os
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from atlas_kit.codecs import table as codecs
from atlas_kit.errors import InvalidParamError, KeyTooLongError
from atlas_kit.formats.atlas import checksums, layout
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.entry import Entry, MemoryPayload
from atlas_kit.formats.atlas.store import Info, encode_key
from atlas_kit.formats.atlas.v2 import Header, StoreV2
from atlas_kit.storage.atomic import start_writeback
from atlas_kit.storage.pace import Pace

if TYPE_CHECKING:
    from collections.abc import Iterable

    from atlas_kit.formats.atlas.crypto import Cipher

_HEAD = layout.ENTRY.size


class Options(NamedTuple):
    """How payloads that must be (re-)encoded are stored. ``recode``: also those that are already stored."""

    codec: str = "none"
    level: int | None = None
    shuffle: bool = True
    recode: bool = False


#: Up to this size a payload is encoded in memory.
IN_MEMORY = 1 << 26

#: From this size on a payload is written first and its head afterwards.
LARGE = 1 << 22

#: In pieces of this size it is hashed and then written while it is still in the cache: measured quicker than
#: hashing it in another thread, which reads the same memory a second time.
PIECE = 1 << 19


class Writer:
    """Writes records and index blocks to a file, and remembers the rows for the index."""

    def __init__(
        self,
        file: IO[bytes],
        position: int,
        file_id: int,
        generation: int,
        cipher: Cipher | None,
        *,
        durable: bool = True,
    ) -> None:
        self._file = file
        self._durable = durable
        self.position = position
        self._file_id = file_id
        self._generation = generation
        self._cipher = cipher
        self.rows: list[tuple[int, int, int, int, int]] = []

    def write_entry(self, entry: Entry, ordinal: int, options: Options) -> None:
        """Write one entry record."""
        raw_key = require_key(entry.key)
        encoded = _encode(entry, options)
        attributes = entry.attributes & ~(t.REMOVED | t.ENCRYPTED)
        if self._cipher:
            self._write_sealed(entry, raw_key, ordinal, encoded, attributes)
            return
        start = self.position
        head = self._head(entry, raw_key, ordinal, encoded, attributes)
        if isinstance(encoded.stored, (bytes, memoryview)) and len(encoded.stored) < LARGE:
            raw, head_checksum = _finish_head(head, len(encoded.stored), checksums.xxh3(encoded.stored))
            size = len(raw) + len(encoded.stored)
            self._file.write(b"".join((raw, encoded.stored, bytes(-size % 8))))
        else:
            stored, checksum = self._write_payload(head, encoded.stored)
            if encoded.shrinks_not(stored, entry.size):
                self._file.seek(start)
                self._file.truncate()
                encoded = _Encoded(0, 0, 0, entry.chunks())
                head = self._head(entry, raw_key, ordinal, encoded, attributes)
                stored, checksum = self._write_payload(head, encoded.stored)
            raw, head_checksum = _finish_head(head, stored, checksum)
            size = len(raw) + stored
            self._file.write(bytes(-size % 8))
            self._file.seek(start)
            self._file.write(raw)
            self._file.seek(start + size + -size % 8)
        self._row(raw_key, ordinal, start, size + -size % 8, head_checksum)

    def _write_payload(self, head: _Head, stored: Any) -> tuple[int, int]:
        """Write a large payload behind the place of its head; return its size and checksum."""
        self._file.write(bytes(head.payload_offset))
        start = self.position + head.payload_offset
        if isinstance(stored, (bytes, memoryview)):
            stored = MemoryPayload(stored).chunks(PIECE)
        size, digest, pace = 0, checksums.xxh3_64(), Pace(self._file, durable=self._durable)
        for chunk in stored:
            digest.update(chunk)
            self._file.write(chunk)
            size += len(chunk)
            pace.wrote(len(chunk))
        if self._durable and not pace.has_synced:  # else it would only drop all of these pages at once
            start_writeback(self._file, start, size)
        return size, digest.intdigest()

    def _write_sealed(
        self, entry: Entry, raw_key: bytes, ordinal: int, encoded: _Encoded, attributes: int
    ) -> None:
        cipher = self._cipher
        assert cipher is not None
        stored = encoded.whole
        if encoded.shrinks_not(len(stored), entry.size):
            stored = b"".join(entry.chunks())
            encoded = _Encoded(0, 0, 0, stored)
        inner_head = self._head(entry, raw_key, ordinal, encoded, attributes, align=False)
        inner, _ = _finish_head(inner_head, len(stored), checksums.xxh3(stored))
        head_size = len(inner) + t.TAG_SIZE
        total = layout.SEAL.size + head_size + len(stored) + t.TAG_SIZE
        outer = _Head(
            self._file_id, ordinal, self._generation, payload_offset=_HEAD + 1, attributes=t.ENCRYPTED
        )
        # what the tags are bound to must be final before sealing: everything but the two checksums
        aad = _pack_head(outer, total, 0)[24:]
        head_nonce, data_nonce = os.urandom(t.NONCE_SIZE), os.urandom(t.NONCE_SIZE)
        k = cipher.params
        sealed_head = cipher.seal(head_nonce, inner, aad)
        sealed_data = cipher.seal(data_nonce, stored, aad + sealed_head[-t.TAG_SIZE :])
        prefix = layout.SEAL.pack(k.kdf, k.log2_n, k.r, k.p, head_size, k.salt, head_nonce, data_nonce)
        body = b"".join((prefix, sealed_head, sealed_data))
        raw, head_checksum = _finish_head(outer, total, checksums.xxh3(body))
        size = len(raw) + total
        start = self.position
        self._file.write(b"".join((raw, body, bytes(-size % 8))))
        self._row(raw_key, ordinal, start, size + -size % 8, head_checksum)

    def write_removal(self, key: str, ordinal: int) -> None:
        """Write the record that says that a key was removed."""
        raw_key = encode_key(key)
        entry, nothing = Entry(key, MemoryPayload(b"")), _Encoded(0, 0, 0, b"")
        if self._cipher:
            self._write_sealed(entry, raw_key, ordinal, nothing, t.REMOVED)
        else:
            start = self.position
            head = self._head(entry, raw_key, ordinal, nothing, t.REMOVED)
            raw, head_checksum = _finish_head(head, 0, checksums.xxh3(b""))
            self._file.write(raw + bytes(-len(raw) % 8))
            self._row(raw_key, ordinal, start, len(raw) + -len(raw) % 8, head_checksum)
        self.rows[-1] = (self.rows[-1][0], 0, 0, ordinal, 0)

    def write_index(
        self, header: Header, older: Iterable[tuple[int, ...]], prev_offset: int, next_ordinal: int
    ) -> Header:
        """Write the index block over the new rows and ``older`` ones; return the header to commit."""
        newest = {row[3]: row for row in older}
        newest.update((row[3], row) for row in self.rows)
        rows = sorted(
            (row for row in newest.values() if row[1] or prev_offset), key=lambda row: (row[0], row[3])
        )
        pack = layout.RECORD.pack
        records = b"".join([pack(*row) for row in rows])
        offset = self.position
        head = layout.INDEX.size + layout.HEADER_STRUCTS[header.version].size
        size = head + len(records) + (t.NONCE_SIZE + t.TAG_SIZE if self._cipher else 0)
        end = offset + size + -size % 8
        header = header._replace(index_offset=offset, committed_size=end, generation=self._generation)
        top = layout.INDEX.pack(
            t.INDEX_SYNC, 0, size, self._file_id, self._generation, prev_offset, len(rows), next_ordinal
        )
        copy = header.pack(self._cipher)
        if self._cipher:
            records = self._cipher.seal_index(records, top[16:] + copy)
        body = b"".join((top[16:], copy, records))
        self._file.write(top[:8] + checksums.xxh3(body).to_bytes(8, "little") + body + bytes(-size % 8))
        self.position = end
        return header

    def _row(self, raw_key: bytes, ordinal: int, start: int, size: int, head_checksum: int) -> None:
        self.rows.append((checksums.xxh3(raw_key, self._file_id), start, size, ordinal, head_checksum))
        self.position = start + size

    def _head(
        self,
        entry: Entry,
        raw_key: bytes,
        ordinal: int,
        encoded: _Encoded,
        attributes: int,
        *,
        align: bool = True,
    ) -> _Head:
        shape = entry.shape or ()
        offset = _HEAD + 8 * len(shape) + len(raw_key) + 1
        if align and entry.dtype_id and not encoded.codec_id and not encoded.filter_id:
            offset += -(self.position + offset) % t.ALIGNMENT
        return _Head(
            self._file_id, ordinal, self._generation, entry.size, entry.timestamp, entry.type, entry.flags,
            len(raw_key), offset, attributes, entry.reserved, encoded.codec_id, encoded.filter_id,
            encoded.item_size, entry.dtype_id, shape, raw_key,
        )  # fmt: skip


class _Head(NamedTuple):
    """What a record's head says, before its payload's size and checksum are known."""

    file_id: int
    ordinal: int
    generation: int
    data_size: int = 0
    timestamp: int = 0
    data_type: int = 0
    flags: int = 0
    key_length: int = 0
    payload_offset: int = 0
    attributes: int = 0
    reserved: int = 0
    codec: int = 0
    filter: int = 0
    item_size: int = 0
    dtype: int = 0
    shape: tuple[int, ...] = ()
    key: bytes = b""


def _pack_head(head: _Head, stored_size: int, data_checksum: int) -> bytes:
    fixed = layout.ENTRY.pack(
        t.ENTRY_SYNC, 0, data_checksum, head.file_id, head.ordinal, head.generation, stored_size,
        head.data_size, head.timestamp, head.data_type, head.flags, head.key_length, head.payload_offset,
        head.attributes, head.reserved, head.codec, head.filter, head.item_size, head.dtype,
        len(head.shape), bytes(3),
    )  # fmt: skip
    shape = b"".join([dim.to_bytes(8, "little") for dim in head.shape])
    return b"".join((fixed, shape, head.key)).ljust(head.payload_offset, b"\0")


def _finish_head(head: _Head, stored_size: int, data_checksum: int) -> tuple[bytes, int]:
    """Return the record's bytes up to its payload, and their checksum."""
    raw = _pack_head(head, stored_size, data_checksum)
    checksum = checksums.xxh3(raw[16:])
    return raw[:8] + checksum.to_bytes(8, "little") + raw[16:], checksum


class _Encoded(NamedTuple):
    codec_id: int
    filter_id: int
    item_size: int
    stored: bytes | memoryview | Iterable[bytes]

    def shrinks_not(self, stored: int, size: int) -> bool:
        """Tell whether the codec did not pay, so that the payload is better stored as it is."""
        return self.codec_id != 0 and self.codec_id in codecs.BY_ID and stored >= size > 0

    @property
    def whole(self) -> bytes:
        """The stored bytes at once."""
        if isinstance(self.stored, (bytes, memoryview)):
            return bytes(self.stored)
        return b"".join(self.stored)


def _encode(entry: Entry, options: Options) -> _Encoded:
    """Choose how an entry is stored, and encode it."""
    wanted = entry.wanted or {}
    from_file = entry.offset is not None
    if from_file and not wanted and not options.recode:
        payload = entry.payload
        stored = payload.read() if payload.size <= IN_MEMORY else payload.chunks()
        return _Encoded(entry.codec_id, entry.filter_id, entry.item_size, stored)
    if entry.codec_id not in codecs.BY_ID or entry.filter_id not in codecs.FILTER_NAMES:
        stored = entry.payload.read()  # not ours to decode: keep as it is
        return _Encoded(entry.codec_id, entry.filter_id, entry.item_size, stored)
    codec = codecs.by_name(wanted.get("codec") or options.codec)
    level = wanted.get("level", options.level)
    shuffle = wanted.get("shuffle", options.shuffle)
    row = t.DTYPE_BY_ID.get(entry.dtype_id)
    item = row.size if shuffle and row is not None and row.block == 1 and row.size > 1 and codec.id else 0
    if codec.id == 0 and isinstance(entry.payload, MemoryPayload) and not entry.codec_id:
        return _Encoded(0, 0, 0, entry.payload.view())
    if entry.size > IN_MEMORY:
        encoded = codecs.encode_stream(entry.chunks(), codec, level=level, shuffle_size=item)
        return _Encoded(codec.id, 1 if item else 0, item, encoded)
    data = entry.data
    if codec.id:
        best = b"".join(codecs.encode_stream([data], codec, level=level, shuffle_size=item))
        if len(best) < len(data):
            return _Encoded(codec.id, 1 if item else 0, item, best)
    return _Encoded(0, 0, 0, data)


def require_key(key: str) -> bytes:
    """Return a key's bytes if version 2 allows it."""
    raw = encode_key(key)
    if not raw or 0 in raw:
        raise InvalidParamError("a key must have at least one byte and no NUL", key=key)
    if len(raw) > t.MAX_KEY:
        raise KeyTooLongError(f"the key has {len(raw)} bytes, and version 2 allows {t.MAX_KEY}", key=key)
    return raw


def write(
    file: IO[bytes],
    info: Info,
    entries: Iterable[Entry],
    count: int,
    options: Options,
    cipher: Cipher | None,
    *,
    durable: bool = True,
) -> None:
    """Write a whole file of version 2 (or, with a cipher, 3)."""
    version = 3 if cipher else 2
    # of the entries, too: a file that holds a copy of another made in the same second must not share its id
    entries = iter(entries)
    first = list(itertools.islice(entries, 64))
    entries = itertools.chain(first, entries)
    seed = [n.to_bytes(8, "little") for n in (info.created, info.modified, count, info.total_size)]
    seed += [
        encode_key(e.key) + e.size.to_bytes(8, "little") + e.timestamp.to_bytes(8, "little") for e in first
    ]
    seed.append(os.urandom(8) if cipher else b"")
    file_id = checksums.xxh3(b"".join(seed) + info.model_hash)
    size = layout.HEADER_STRUCTS[version].size
    file.write(bytes(size))
    writer = Writer(file, size, file_id, 1, cipher, durable=durable)
    total = ordinal = 0
    for entry in entries:
        writer.write_entry(entry, ordinal, options)
        ordinal += 1
        total += 33 + len(encode_key(entry.key)) + entry.size
    header = Header(
        t.MAGIC, version, 0, 0, info.created, info.modified, total, info.model_hash, info.reserved, size,
        info.file_flags, file_id, 1, 0, 0, ordinal,
    )  # fmt: skip
    header = writer.write_index(header, (), 0, ordinal)
    file.seek(0)
    file.write(header.pack(cipher))
    file.seek(0, 2)


def commit(
    store: StoreV2,
    file: IO[bytes],
    changed: Iterable[Entry],
    removed: Iterable[str],
    *,
    modified: int,
    model_hash: bytes,
    options: Options,
) -> Header:
    """Append changes to an open file; the last write, the header, commits ("Updating" in the specification).

    The caller holds the lock and has seen that ``store`` is what the file holds.
    """
    header = store.header
    file.truncate(header.committed_size)  # what an unfinished update left
    file.seek(header.committed_size)
    writer = Writer(file, header.committed_size, header.file_id, header.generation + 1, store.cipher)
    next_ordinal = max(block.next_ordinal for block in store.blocks)
    total, count = header.total_size, header.entry_total
    gone = set()
    for key in removed:
        hit = store.find_row(encode_key(key))
        if hit is not None:
            writer.write_removal(key, hit[0].ordinal)
            gone.add(hit[0].ordinal)
            total -= 33 + len(encode_key(key)) + hit[1].size
            count -= 1
    for entry in changed:
        raw = encode_key(entry.key)
        hit = store.find_row(raw)
        if hit is None or hit[0].ordinal in gone:
            ordinal, next_ordinal, count = next_ordinal, next_ordinal + 1, count + 1
        else:
            ordinal = hit[0].ordinal
            total -= 33 + len(raw) + hit[1].size
        writer.write_entry(entry, ordinal, options)
        total += 33 + len(raw) + entry.size
    # fold older blocks into the new one while they are not much larger: a chain of logarithmic length
    fold = len(writer.rows)
    older: dict[int, tuple[int, ...]] = {}
    prev_offset = 0
    for block in store.blocks:
        if block.num_records > 2 * fold and not store.cipher:
            prev_offset = block.offset
            break
        fold += block.num_records
        for row in layout.RECORD.iter_unpack(store.records_of(block, 0, block.num_records)):
            older.setdefault(row[3], row)
    header = header._replace(
        modified_time=modified, model_hash=model_hash, total_size=total, entry_total=count
    )
    header = writer.write_index(header, older.values(), prev_offset, next_ordinal)
    file.flush()
    os.fsync(file.fileno())
    file.seek(0)
    file.write(header.pack(store.cipher))
    file.flush()
    os.fsync(file.fileno())
    return header
