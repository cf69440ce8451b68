"""Build ``formats/vectors/atlas.json`` and ``atlas-c.json``: `.atlas` files in hexadecimal with what they mean.

Version 1 comes from ``sample_writers``, which shares no code with the library. Compressed payloads differ
with the version of the compression libraries, so vectors that hold some keep their bytes while these mean
the same. The files in ``atlas-c.json`` were written by the C library: their bytes are given and always kept,
only their meaning is written again.

    python tools/make_vectors.py            # write the files again
    python tools/make_vectors.py --check    # exit 1 when that would change one
"""

from __future__ import annotations

import json
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from tools import sample_writers as w  # noqa: E402
from tools.make_sample_data import repeatable  # noqa: E402

FOLDER = ROOT / "formats" / "vectors"
FILE = FOLDER / "atlas.json"
C_FILE = FOLDER / "atlas-c.json"
NOW = 1_700_000_000
PASSPHRASE = "correct horse battery staple"
KEY = bytes(range(32))

ABOUT = [
    "Each vector is a whole small file as hex, and what a reader must find in it, or the error to report.",
    'Keys and payloads are text where they are UTF-8, else {"bytes": hex}. Payloads are decoded, decrypted.',
    "Integers beyond 2^53 are written as decimal strings. shape: the slowest running dimension first.",
    "built: a writer that is given these values in this order writes exactly these bytes (times included).",
    'secret: {"passphrase": text} or {"key": hex}. error: the C library\'s enum; offset: where.',
    "read: what must be done for the error to show: open the file, or verify every payload.",
]
C_ABOUT = [
    "Files of version 1 that the C library wrote, as hex, and what a reader must find in them.",
    "The conventions are those of atlas.json. The bytes are given and never built again.",
]


def text_or_bytes(raw: bytes) -> Any:
    """Write bytes the way the vectors do."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return {"bytes": raw.hex()}


def number(value: int) -> int | str:
    """Write an integer the way the vectors do."""
    return value if value < 1 << 53 else str(value)


def meaning(memory: Any) -> dict[str, Any]:
    """Say what a file means (used by the test as well)."""
    entries = []
    for e in memory.values():
        row: dict[str, Any] = {
            "key": text_or_bytes(e.key.encode("utf-8", "surrogateescape")),
            "type": e.type,
            "flags": e.flags,
            "timestamp": number(e.timestamp),
            "data": text_or_bytes(e.data),
        }
        if memory.version > 1:
            row |= {"codec": e.codec, "filter": e.filter}
        if e.dtype is not None:
            row |= {"dtype": e.dtype, "shape": list(e.shape)}
        entries.append(row)
    return {
        "version": memory.version,
        "dialect": memory.dialect,
        "created": memory.created,
        "modified": memory.modified,
        "model_hash": memory.model_hash.hex(),
        "warnings": [w.code for w in memory.warnings],
        "entries": entries,
    }


def valid(name: str, what: str, raw: bytes, *, built: bool = False, **secret: Any) -> dict[str, Any]:
    """Return one vector of a good file."""
    from atlas_kit.formats.atlas import MemoryFile

    row = {"name": name, "what": what, "hex": raw.hex(), "valid": True}
    if secret:
        row["secret"] = {k: v.hex() if isinstance(v, bytes) else v for k, v in secret.items()}
    return {**row, "built": built, **meaning(MemoryFile.load(raw, **secret))}


def invalid(
    name: str, what: str, raw: bytes, error: str, offset: int | None, read: str = "open", **secret: Any
) -> dict[str, Any]:
    """Return one vector of a bad file."""
    row = {"name": name, "what": what, "hex": raw.hex(), "valid": False}
    if secret:
        row["secret"] = {k: v.hex() if isinstance(v, bytes) else v for k, v in secret.items()}
    return {**row, "read": read, "error": error, "offset": offset}


# --- the files -------------------------------------------------------------------------------------------


def saved(fill: Callable[[Any], None], *, then: Callable[[Any], None] | None = None, **options: Any) -> bytes:
    """Make a memory, save it, change it and commit, and return the file's bytes."""
    from atlas_kit.formats.atlas import MemoryFile

    with repeatable(), tempfile.TemporaryDirectory() as folder:
        memory = MemoryFile(created=NOW, **options)
        fill(memory)
        path = Path(folder) / "vector.atlas"
        memory.save(path)
        if then:
            then(memory)
            memory.commit()
        return path.read_bytes()


SEED = [
    w.Note(b"chat_history", b"User: Hello\nAssistant: Hi! How can I help?", 2, NOW),
    w.Note(b"user_prefs", b'{"theme":"dark","language":"en"}', 4, NOW + 1),
]
ODD = [
    w.Note(b"\xff\xfe", bytes(range(0, 256, 5)), 0, NOW),
    w.Note("ключ".encode(), "значение".encode(), 1, NOW + 1),
    w.Note(b"k" * 256, b"\0", 3, 2**64 - 1),
    w.Note(b"type 99", b"kept", 99, 0),
    w.Note(b"largest type", b"kept", 2**32 - 1, 0),
]


def version_1() -> list[dict[str, Any]]:
    """Return the good files of version 1."""
    one = [w.Note(b"key", b"data", 1, NOW)]
    crc = {"checksum": w.crc32}
    return [
        valid("v1-empty", "no entries", w.atlas_v1([], created=NOW), built=True),
        valid("v1-seed", "the C library's own example", w.atlas_v1(SEED, created=NOW), built=True),
        valid("v1-odd", "odd keys, types, times", w.atlas_v1(ODD, created=NOW), built=True),
        valid("v1-model", "with a model hash", w.atlas_v1(one, created=1, modified=NOW, model_hash=KEY)),
        valid("v1-96", "dialect: a header of 96 bytes", w.atlas_v1(one, created=NOW, header_size=96)),
        valid("v1-crc32", "dialect: CRC-32 checksums", w.atlas_v1(one, created=NOW, **crc)),
        valid("v1-96-crc32", "both dialects", w.atlas_v1(one, created=NOW, header_size=96, **crc)),
        valid("v1-trailing", "bytes after the last entry", w.atlas_v1(one, created=NOW) + b"more"),
    ]


def notes(memory: Any) -> None:
    """Fill in two plain entries."""
    memory.set("greeting", "hello", timestamp=NOW)
    memory.set("raw", b"\x00\xff", type=99, flags=7, timestamp=NOW + 1)


def tensors(memory: Any) -> None:
    """Fill in tensors."""
    memory.set("f32", struct.pack("<6f", *range(6)), dtype="float32", shape=(2, 3), type=3, timestamp=NOW)
    memory.set("bf16", bytes.fromhex("803f0040c0bf"), dtype="bfloat16", shape=(3,), type=3, timestamp=NOW)
    memory.set(
        "q8_0", bytes.fromhex("003c") + bytes(range(32)), dtype="q8_0", shape=(32,), type=3, timestamp=NOW
    )
    memory.set("scalar", struct.pack("<q", -5), dtype="int64", shape=(), type=3, timestamp=NOW)
    memory.set("empty", b"", dtype="uint8", shape=(0, 4), type=3, timestamp=NOW)


def packed(codec: str) -> Callable[[Any], None]:
    """Return a filler of one compressed text and one compressed, shuffled tensor."""

    def fill(memory: Any) -> None:
        memory.set("text", "again and again, " * 8, timestamp=NOW, codec=codec)
        values = struct.pack("<64i", *range(1000, 1064))
        memory.set("numbers", values, dtype="int32", shape=(8, 8), type=3, timestamp=NOW, codec=codec)

    return fill


def update(memory: Any) -> None:
    """Change, remove and add."""
    memory.set("n0", "changed", timestamp=NOW + 2)
    del memory["n1"]
    memory.set("new", "added", timestamp=NOW + 3)


def many(memory: Any) -> None:
    """Fill in enough entries that a small update does not fold the index."""
    for n in range(10):
        memory.set(f"n{n}", str(n), timestamp=NOW)


def version_2() -> list[dict[str, Any]]:
    """Return the good files of version 2."""
    updated = saved(many, then=update)
    return [
        valid("v2-empty", "no entries", saved(lambda m: None), built=True),
        valid("v2-minimal", "a text, and bytes of an unnamed type", saved(notes), built=True),
        valid("v2-tensors", "tensors, 64-byte aligned; 0-d and empty ones too", saved(tensors), built=True),
        *(valid(f"v2-{codec}", f"payloads compressed with {codec}, numbers shuffled", saved(packed(codec)))
          for codec in ("lz4", "zlib", "zstd")),
        valid("v2-updated", "two index blocks: one entry changed, one removed, one added", updated),
        valid("v2-unfinished", "an update that never finished follows", updated + b"\x89ATLE\r\n\x1a"),
    ]  # fmt: skip


def version_3() -> list[dict[str, Any]]:
    """Return the good files of version 3."""
    by_words = {"version": 3, "passphrase": PASSPHRASE}
    return [
        valid("v3-passphrase", "sealed with a passphrase", saved(notes, **by_words), passphrase=PASSPHRASE),
        valid("v3-key", "sealed with a key file", saved(packed("zlib"), version=3, key=KEY), key=KEY),
        valid("v3-updated", "with an update", saved(many, then=update, version=3, key=KEY), key=KEY),
    ]


def pair(memory: Any) -> None:
    """Fill in two entries of the same size."""
    memory.set("a", "first", timestamp=NOW)
    memory.set("b", "other", timestamp=NOW)


def flipped(raw: bytes, at: int) -> bytes:
    """Return the bytes with one bit flipped."""
    return raw[:at] + bytes([raw[at] ^ 1]) + raw[at + 1 :]


def bad_files() -> list[dict[str, Any]]:
    """Return the bad files of every version."""
    v1, v2 = w.atlas_v1(SEED, created=NOW), saved(notes)
    v3 = saved(pair, version=3, key=KEY)
    from atlas_kit.formats.atlas import MemoryFile

    first = next(iter(MemoryFile.open(v2).values()))
    entries = list(MemoryFile.open(v3, key=KEY).values())
    assert first.offset is not None
    assert first.payload_offset is not None
    one, two = entries[0].offset, entries[1].offset
    assert one is not None
    assert two is not None
    mixed = w.Note(b"key", b"data", 1, NOW)
    twice = w.atlas_v1([mixed, mixed], created=NOW)
    return [
        invalid("empty-file", "no bytes at all", b"", "MAGIC_MISMATCH", 0),
        invalid("bad-magic", "GGUF is not ATLS", b"GGUF" + v1[4:], "MAGIC_MISMATCH", 0),
        invalid("version-4", "a version of the future", v1[:4] + b"\4" + v1[5:], "VERSION_MISMATCH", 4),
        invalid("v1-header-cut", "the header is cut off", v1[:80], "FILE_CORRUPT", 0),
        invalid("v1-header-flip", "a bit of the header flipped", flipped(v1, 20), "CHECKSUM_MISMATCH", 8),
        invalid("v1-cut", "the last entry is cut off", v1[:-5], "FILE_CORRUPT", 104 + 33 + 12 + 42),
        invalid("v1-duplicate", "a key twice", twice, "FILE_CORRUPT", 104 + 33 + 3 + 4),
        invalid("v1-payload-flip", "a bit of a payload flipped", flipped(v1, 160), "CHECKSUM_MISMATCH",
                104 + 33 + 12, "verify"),
        invalid("v2-header-cut", "the header is cut off", v2[:120], "FILE_CORRUPT", 0),
        invalid("v2-header-flip", "a bit of the header flipped", flipped(v2, 150), "CHECKSUM_MISMATCH", 0),
        invalid("v2-cut", "the file is cut off", v2[:-8], "FILE_CORRUPT", len(v2) - 8),
        invalid("v2-head-flip", "a bit of an entry's head flipped", flipped(v2, first.offset + 70),
                "CHECKSUM_MISMATCH", first.offset, "verify"),
        invalid("v2-payload-flip", "a bit of a payload flipped", flipped(v2, first.payload_offset),
                "CHECKSUM_MISMATCH", first.payload_offset, "verify"),
        invalid("v3-no-secret", "no key was given", v3, "FILE_ACCESS", None),
        invalid("v3-wrong-key", "a wrong key was given", v3, "FILE_ACCESS", None, key=bytes(32)),
        invalid("v3-wrong-kind", "a passphrase, not a key", v3, "FILE_ACCESS", None, passphrase="x"),
        invalid("v3-cut", "the file is cut off", v3[:-8], "FILE_CORRUPT", len(v3) - 8, key=KEY),
        invalid("v3-swapped", "two entries changed places", v3[:one] + v3[two : two + two - one] + v3[one:two]
                + v3[two + two - one :], "CHECKSUM_MISMATCH", one, "verify", key=KEY),
        invalid("v3-flip", "a bit of a sealed payload flipped", flipped(v3, two - 12), "CHECKSUM_MISMATCH",
                None, "verify", key=KEY),
    ]  # fmt: skip


def kept(row: dict[str, Any]) -> dict[str, Any]:
    """Return the published vector of that name if it means the same, else the new one."""
    from atlas_kit.formats.atlas import MemoryFile

    old = json.loads(FILE.read_text(encoding="utf-8"))["vectors"] if FILE.exists() else []
    for other in old:
        if {**other, "hex": ""} == {**row, "hex": ""}:
            secret = {"key": KEY} if row["version"] == 3 else {}
            found = meaning(MemoryFile.load(bytes.fromhex(other["hex"]), **secret))
            if found == {name: row[name] for name in found}:
                return dict(other)
    return row


def vectors() -> str:
    """Return the whole file's text."""
    rows = [*version_1(), *version_2(), *version_3(), *bad_files()]
    rows = [kept(row) if any(e.get("codec", "none") != "none" for e in row.get("entries", ())) else row
            for row in rows]  # fmt: skip
    return (
        json.dumps({"format": "atlas", "about": ABOUT, "vectors": rows}, indent=1, ensure_ascii=False) + "\n"
    )


def c_rows() -> list[dict[str, Any]]:
    """Return the published vectors of the C library's files as they stand."""
    rows: list[dict[str, Any]] = json.loads(C_FILE.read_text(encoding="utf-8"))["vectors"]
    return rows


def c_library_files() -> dict[str, bytes]:
    """Return the files that the C library wrote, by name (also for tests and ``fuzz.py``)."""
    return {f"{row['name']}.atlas": bytes.fromhex(row["hex"]) for row in c_rows()}


def c_vectors() -> str:
    """Return the text of ``atlas-c.json``: the given bytes, their meaning anew, one entry a line."""
    rows = [
        valid(row["name"], row["what"], bytes.fromhex(row["hex"]), built=row["built"]) for row in c_rows()
    ]
    parts = []
    for row in rows:
        entries = row.pop("entries")
        head = json.dumps(row, indent=1, ensure_ascii=False).removesuffix("\n}").replace("\n", "\n  ")
        lines = ",\n".join(f"    {json.dumps(entry, ensure_ascii=False)}" for entry in entries)
        parts.append(f'  {head},\n   "entries": [' + (f"\n{lines}\n   ]" if lines else "]") + "\n  }")
    about = json.dumps(C_ABOUT, indent=1, ensure_ascii=False).replace("\n", "\n ")
    return f'{{\n "format": "atlas",\n "about": {about},\n "vectors": [\n' + ",\n".join(parts) + "\n ]\n}\n"


def main() -> int:
    """Write the files, or see that they are what would be written."""
    texts = {FILE: vectors(), C_FILE: c_vectors()}
    if "--check" in sys.argv:
        return int(any(not f.exists() or f.read_text(encoding="utf-8") != text for f, text in texts.items()))
    for file, text in texts.items():
        file.write_text(text, encoding="utf-8")
        print(f"{file.relative_to(ROOT)}: {len(json.loads(text)['vectors'])} vectors")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
