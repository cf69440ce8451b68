"""The bytes of `.atlas`, as construct schemas: the single source of every offset and width.

Follows ``formats/atlas.md``. Hot loops take their ``struct.Struct`` from these schemas (``struct_of``), and
what patches or points at a header field asks ``AT``; the notes become the specification's tables and the hex
view's words.
"""

from __future__ import annotations

from typing import Any

import construct as cs

from atlas_kit.formats.atlas.tables import ENTRY_SYNC, INDEX_SYNC, MAGIC
from atlas_kit.formats.schema import field_rows, struct_of

u8, u32, u64 = cs.Int8ul, cs.Int32ul, cs.Int64ul

# fmt: off
_HEADER_TOP = (
    "magic"         / cs.Const(MAGIC)  * "`ATLS`",
    "version"       / u32              * "1, 2 or 3",
    "checksum"      / u32              * "FNV-1a/32 over header bytes [12, 104)",
    "entry_count"   / u32              * "number of entries",
    "created_time"  / u64              * "Unix seconds",
    "modified_time" / u64              * "Unix seconds",
    "total_size"    / u64              * "sum over entries of 32 + key_length + 1 + data_size",
    "model_hash"    / cs.Bytes(32)     * "hash of the model that the memory belongs to; zero when unset",
)
_RESERVED = "reserved" / cs.Bytes(32)  * "zero"

HeaderV1 = cs.Struct(*_HEADER_TOP, _RESERVED)

#: Dialect ``v1-96``: what a reader of the C header's comment would write.
HeaderV1Short = cs.Struct(*_HEADER_TOP, "reserved" / cs.Bytes(24) * "zero")

EntryV1 = cs.Struct(
    "key_length" / u32 * "bytes of the key, without its NUL: 1 to 256",
    "data_size"  / u32 * "bytes of the payload: 1 to 1 GiB",
    "data_type"  / u32 * "what the entry is for",
    "flags"      / u32 * "0 in version 1",
    "timestamp"  / u64 * "Unix seconds",
    "checksum"   / u32 * "FNV-1a/32 of the payload",
    "reserved"   / u32 * "0 (the C library may leave old bytes here: ignore)",
)

_HEADER_MORE = (
    "header_size"    / u32 * "160 in version 2, 256 in version 3",
    "file_flags"     / u32 * "no bits are assigned yet",
    "file_id"        / u64 * "the same in every record of this file",
    "generation"     / u64 * "number of commits so far, from 1",
    "index_offset"   / u64 * "where the newest index block starts",
    "committed_size" / u64 * "where the committed part of the file ends",
    "entry_total"    / u64 * "number of entries (entry_count, without its limit)",
)
_HEADER_END = "header_checksum" / u64 * "XXH3-64 over all header bytes before this field"

HeaderV2 = cs.Struct(*_HEADER_TOP, _RESERVED, *_HEADER_MORE, _HEADER_END)

HeaderV3 = cs.Struct(
    *_HEADER_TOP, _RESERVED, *_HEADER_MORE,
    "kdf"        / u8           * "0 raw key file, 1 scrypt",
    "log2_n"     / u8           * "scrypt cost N = 2^log2_n",
    "scrypt_r"   / u8           * "scrypt block size",
    "scrypt_p"   / u8           * "scrypt parallelism",
    "cipher"     / u32          * "1: AES-256-GCM",
    "salt"       / cs.Bytes(16) * "random; salts the key derivation",
    "key_check"  / cs.Bytes(16) * "tells a wrong key from a damaged file",
    "reserved3"  / cs.Bytes(24) * "zero",
    "header_tag" / cs.Bytes(32) * "HMAC-SHA256 over header bytes [0, 216)",
    _HEADER_END,
)

EntryHeader = cs.Struct(
    "sync"           / cs.Const(ENTRY_SYNC) * "`89 41 54 4C 45 0D 0A 1A`",
    "head_checksum"  / u64 * "XXH3-64 over record bytes [16, payload_offset)",
    "data_checksum"  / u64 * "XXH3-64 of the stored payload",
    "file_id"        / u64 * "the header's file_id",
    "ordinal"        / u64 * "place of the entry in the order; kept by updates",
    "generation"     / u64 * "the commit that wrote this record",
    "stored_size"    / u64 * "bytes of the payload in the file",
    "data_size"      / u64 * "bytes of the payload when decoded",
    "timestamp"      / u64 * "Unix seconds",
    "data_type"      / u32 * "what the entry is for",
    "flags"          / u32 * "kept for the application",
    "key_length"     / u32 * "bytes of the key, without its NUL",
    "payload_offset" / u32 * "where the payload starts, from the start of the record",
    "attributes"     / u32 * "bits, see below",
    "reserved"       / u32 * "the field of the same name in version 1, kept",
    "codec"          / u8  * "see below",
    "filter"         / u8  * "see below",
    "item_size"      / u8  * "element size for the filter, 0 without one",
    "dtype"          / u8  * "element type of a tensor, 0 for plain bytes",
    "rank"           / u8  * "number of dimensions",
    "padding"        / cs.Bytes(3) * "zero",
)

IndexHeader = cs.Struct(
    "sync"         / cs.Const(INDEX_SYNC) * "`89 41 54 4C 49 0D 0A 1A`",
    "checksum"     / u64 * "XXH3-64 over block bytes [16, size)",
    "size"         / u64 * "bytes of the whole block",
    "file_id"      / u64 * "the header's file_id",
    "generation"   / u64 * "the commit that wrote this block",
    "prev_offset"  / u64 * "where the next older block starts, 0 for none",
    "count"        / u64 * "number of records in this block",
    "next_ordinal" / u64 * "ordinal for the next new entry",
)

IndexRecord = cs.Struct(
    "key_hash"      / u64 * "XXH3-64 of the key, seeded with file_id",
    "record_offset" / u64 * "where the entry record starts, 0 when removed",
    "record_size"   / u64 * "bytes of the entry record with its padding",
    "ordinal"       / u64 * "the entry's ordinal",
    "head_checksum" / u64 * "the entry's head_checksum",
)

SealPrefix = cs.Struct(
    "kdf"        / u8           * "as in the header",
    "log2_n"     / u8           * "as in the header",
    "scrypt_r"   / u8           * "as in the header",
    "scrypt_p"   / u8           * "as in the header",
    "head_size"  / u32          * "bytes of the sealed head, tag included",
    "salt"       / cs.Bytes(16) * "as in the header",
    "head_nonce" / cs.Bytes(12) * "random",
    "data_nonce" / cs.Bytes(12) * "random",
)
# fmt: on


def _gap(header: Any) -> int:
    used: int = EntryHeader.sizeof() + 8 * header.rank + header.key_length + 1
    return int(header.payload_offset) - used


#: Entry of version 1 with its key and payload, for the hex view and the vectors.
FullEntryV1 = cs.Struct(
    "header" / EntryV1,
    "key" / cs.Bytes(cs.this.header.key_length) * "the key",
    "nul" / cs.Const(b"\0") * "ends the key",
    "data" / cs.Bytes(cs.this.header.data_size) * "the payload",
)

#: Entry record of versions 2 and 3, likewise.
FullEntry = cs.Struct(
    "header" / EntryHeader,
    "shape" / cs.Array(cs.this.header.rank, u64 * "one dimension of the tensor"),
    "key" / cs.Bytes(cs.this.header.key_length) * "the key",
    "nul" / cs.Const(b"\0") * "ends the key",
    "padding" / cs.Bytes(lambda this: max(0, _gap(this.header))) * "zeros up to the payload",
    "data" / cs.Bytes(cs.this.header.stored_size) * "the stored payload",
    "end" / cs.Bytes(lambda this: -(this.header.payload_offset + this.header.stored_size) % 8) * "zeros",
)

HEADER_V1 = struct_of(HeaderV1)
HEADER_V1_SHORT = struct_of(HeaderV1Short)
HEADER_V2 = struct_of(HeaderV2)
HEADER_V3 = struct_of(HeaderV3)
ENTRY_V1 = struct_of(EntryV1)
ENTRY = struct_of(EntryHeader)
INDEX = struct_of(IndexHeader)
RECORD = struct_of(IndexRecord)
SEAL = struct_of(SealPrefix)

#: The place of every header field; the versions agree on the fields that they share.
AT = {row.name: slice(row.offset, row.offset + row.size) for row in field_rows(HeaderV3)}
#: What the FNV-1a checksum covers (all versions), and what version 3's tag does.
SUMMED = slice(AT["entry_count"].start, HEADER_V1.size)
TAGGED = slice(0, AT["header_tag"].start)

HEADERS = {1: HeaderV1, 2: HeaderV2, 3: HeaderV3}
HEADER_STRUCTS = {1: HEADER_V1, 2: HEADER_V2, 3: HEADER_V3}


def offset_of(field: str) -> int:
    """Return where a header field starts."""
    return AT[field].start


def patched(header: bytes, field: str, value: bytes) -> bytes:
    """Return a header's bytes with another value of one field."""
    place = AT[field]
    return header[: place.start] + value + header[place.stop :]


def names_of(schema: cs.Struct) -> tuple[str, ...]:
    """Return the field names of a fixed layout, in order."""
    return tuple(sub.name for sub in schema.subcons)
