"""The numbers of the `.atlas` format: marks, limits, types, attributes, dtypes. Rows, no behaviour."""

from __future__ import annotations

import enum
from dataclasses import dataclass

MAGIC = b"ATLS"
ENTRY_SYNC = b"\x89ATLE\r\n\x1a"
INDEX_SYNC = b"\x89ATLI\r\n\x1a"

#: Limits of version 1, as the C library enforces them.
V1_MAX_ENTRIES = 65_536
V1_MAX_KEY = 256
V1_MAX_DATA = 1 << 30

#: Limits of versions 2 and 3.
MAX_KEY = 65_535
ALIGNMENT = 64  # of uncompressed tensors, in the file
RECORD_ALIGNMENT = 8
U32 = 0xFFFFFFFF
U64 = 0xFFFFFFFFFFFFFFFF


class DataType(enum.IntEnum):
    """What an entry is for. Other numbers occur and are kept."""

    GENERIC = 0
    TEXT = 1
    CONVERSATION = 2
    CONTEXT = 3
    METADATA = 4


@dataclass(frozen=True)
class Row:
    """One row of a table: the number in the file, its name, what it means."""

    id: int
    name: str
    note: str


# fmt: off
DATA_TYPES = (
    Row(0, "generic",      "bytes without further meaning"),
    Row(1, "text",         "plain text"),
    Row(2, "conversation", "chat history"),
    Row(3, "context",      "model or memory state"),
    Row(4, "metadata",     "data about the session, usually JSON"),
)

REMOVED   = 1 << 0
ENCRYPTED = 1 << 1
ATTRIBUTES = (
    Row(REMOVED,   "removed",   "the key was removed by this record; there is no payload"),
    Row(ENCRYPTED, "encrypted", "the payload is a sealed record (version 3)"),
)


@dataclass(frozen=True)
class DType:
    """One row of the element types: bytes per block of ``block`` elements, the NumPy dtype that views it."""

    id: int
    name: str
    size: int
    numpy: str
    safetensors: str
    note: str = ""
    block: int = 1


DTYPES = (
    DType(1,  "bool",       1, "?",   "BOOL"),
    DType(2,  "uint8",      1, "u1",  "U8"),
    DType(3,  "int8",       1, "i1",  "I8"),
    DType(4,  "uint16",     2, "<u2", "U16"),
    DType(5,  "int16",      2, "<i2", "I16"),
    DType(6,  "uint32",     4, "<u4", "U32"),
    DType(7,  "int32",      4, "<i4", "I32"),
    DType(8,  "uint64",     8, "<u8", "U64"),
    DType(9,  "int64",      8, "<i8", "I64"),
    DType(10, "float16",    2, "<f2", "F16"),
    DType(11, "bfloat16",   2, "<u2", "BF16", "the upper half of a float32; NumPy views it as uint16"),
    DType(12, "float32",    4, "<f4", "F32"),
    DType(13, "float64",    8, "<f8", "F64"),
    DType(14, "complex64",  8, "<c8", "C64"),
    DType(15, "complex128", 16, "<c16", ""),
    DType(32, "q8_0",       34, "u1", "", "blocks of 32: a float16 scale, 32 int8; viewed as u1", block=32),
)
# fmt: on

DTYPE_BY_ID = {row.id: row for row in DTYPES}
DTYPE_BY_NAME = {row.name: row for row in DTYPES}
DATA_TYPE_NAMES = {row.id: row.name for row in DATA_TYPES}
DATA_TYPE_BY_NAME = {row.name: row.id for row in DATA_TYPES}


def data_type_name(value: int) -> str:
    """Return ``text`` for 1, ``type 99`` for what has no name."""
    return DATA_TYPE_NAMES.get(value, f"type {value}")


def tensor_bytes(dtype: DType, shape: tuple[int, ...]) -> int | None:
    """Return the payload size of a tensor, or ``None`` where its rows do not divide into blocks."""
    count = 1
    for dim in shape:
        count *= dim
    if dtype.block > 1 and (not shape or shape[-1] % dtype.block):
        return None
    return count // dtype.block * dtype.size


KDF_RAW = 0
KDF_SCRYPT = 1
KDFS = (
    Row(KDF_RAW, "raw key", "the 32 bytes of a key file"),
    Row(KDF_SCRYPT, "scrypt", "from a passphrase"),
)
CIPHER_AES_256_GCM = 1
SCRYPT_LOG2_N = 15
SCRYPT_R = 8
SCRYPT_P = 1
#: Work memory that a file may ask scrypt to use: 128 * N * r * p bytes.
SCRYPT_MAX_MEMORY = 1 << 28  # about a second
NONCE_SIZE = 12
TAG_SIZE = 16
