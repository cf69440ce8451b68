"""``check_atlas``: one damaged file per finding, and agreement with what opening the file says."""

from __future__ import annotations

import random
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import AtlasError
from atlas_kit.formats.atlas import MemoryFile, check_v2, checksums, layout, v2_writer
from atlas_kit.formats.atlas import tables as t
from atlas_kit.formats.atlas.check import check_atlas
from atlas_kit.formats.atlas.entry import Entry, MemoryPayload
from atlas_kit.formats.atlas.store import Info
from atlas_kit.storage.given import open_source
from tools import sample_writers as w

NOW = 1_700_000_000
NOTES = [w.Note(b"first", b"the first payload", 1, NOW), w.Note(b"second", b"{}", 4, NOW + 1),
         w.Note(b"third", b"x" * 300, 2, NOW + 2)]  # fmt: skip
KEY = bytes(range(32))
SECOND = 104 + 33 + 5 + 17  # offset of the second entry


def v1_file(notes: list[w.Note] | None = None, **options: Any) -> bytes:
    options = {"created": NOW, "modified": NOW + 5, **options}
    return w.atlas_v1(NOTES if notes is None else notes, **options)


def patch(data: bytes, at: int, piece: bytes) -> bytes:
    return data[:at] + piece + data[at + len(piece) :]


def sealed_v1(data: bytes, at: int = 0, piece: bytes = b"") -> bytes:
    """Patch a header and make its checksum fit again."""
    data = patch(data, at, piece)
    return patch(data, 8, struct.pack("<I", w.fnv1a(data[12:104])))


def saved(memory: MemoryFile, path: Path) -> bytes:
    memory.save(path, durable=False)
    return path.read_bytes()


def v2_file(path: Path, **options: Any) -> bytes:
    memory = MemoryFile(version=3 if options else 2, created=NOW, **options)
    memory.set("first", "the first payload", timestamp=NOW)
    memory.set("tensor", np.arange(64, dtype="<f4").reshape(8, 8), timestamp=NOW)
    memory.set("packed", "again and again " * 40, codec="zlib", timestamp=NOW)
    return saved(memory, path)


def sealed_v2(data: bytes, **fields: int) -> bytes:
    """Change header fields of a version 2 file and make both checksums fit again."""
    names = layout.names_of(layout.HeaderV2)
    values = dict(zip(names, layout.HEADER_V2.unpack_from(data), strict=True)) | fields
    body = layout.HEADER_V2.pack(*(values[name] for name in names))
    if "checksum" not in fields:
        body = body[:8] + struct.pack("<I", checksums.fnv1a(body[12:104])) + body[12:]
    body = body[:-8] + struct.pack("<Q", checksums.xxh3(body[:-8]))
    return body + data[len(body) :]


def sealed_index(data: bytes, change: Any) -> bytes:
    """Change the rows of a version 2 file's index and make its checksum fit again."""
    at = int.from_bytes(data[128:136], "little")
    fields = layout.INDEX.unpack_from(data, at)
    first = at + layout.INDEX.size + layout.HEADER_V2.size
    stop = at + fields[2]
    rows = [list(row) for row in layout.RECORD.iter_unpack(data[first:stop])]
    body = data[at + 16 : first] + b"".join(layout.RECORD.pack(*row) for row in change(rows))
    return patch(data, at + 8, struct.pack("<Q", checksums.xxh3(body)) + body)


def sealed_record(data: bytes, number: int, *, raw: tuple[int, bytes] | None = None, **fields: int) -> bytes:
    """Change the head of a record; its checksum and the index follow."""
    index = int.from_bytes(data[128:136], "little")
    count = layout.INDEX.unpack_from(data, index)[6]
    first = index + layout.INDEX.size + layout.HEADER_V2.size
    rows = sorted(
        layout.RECORD.iter_unpack(data[first : first + count * layout.RECORD.size]), key=lambda r: r[3]
    )
    at = rows[number][1]
    names = layout.names_of(layout.EntryHeader)
    values = dict(zip(names, layout.ENTRY.unpack_from(data, at), strict=True)) | fields
    data = patch(data, at, layout.ENTRY.pack(*(values[name] for name in names)))
    if raw is not None:
        data = patch(data, at + raw[0], raw[1])
    checksum = checksums.xxh3(data[at + 16 : at + values["payload_offset"]])
    data = patch(data, at + 8, struct.pack("<Q", checksum))

    def change(rows: list[list[int]]) -> list[list[int]]:
        return [[*row[:4], checksum] if row[3] == number else row for row in rows]

    return sealed_index(data, change)


def codes(data: bytes, **options: Any) -> dict[str, str]:
    with open_source(data) as source:
        return {finding.code: finding.severity for finding in check_atlas(source, **options)}


V1_CASES: dict[str, tuple[bytes, dict[str, str]]] = {
    "fine": (v1_file(), {}),
    "no entries": (v1_file([]), {}),
    "empty": (b"", {"empty-file": "error"}),
    "magic": (b"BTLS" + v1_file()[4:], {"bad-magic": "error"}),
    "version": (patch(v1_file(), 4, b"\7"), {"bad-version": "error"}),
    "short": (v1_file()[:50], {"truncated": "error"}),
    "header checksum": (patch(v1_file(), 16, b"?"), {"header-checksum": "error"}),
    "dialect 96": (v1_file(header_size=96), {"dialect-v1-96": "warning"}),
    "dialect crc": (v1_file(checksum=w.crc32), {"dialect-v1-crc32": "warning"}),
    "both dialects": (v1_file(header_size=96, checksum=w.crc32), {"dialect-v1-96-crc32": "warning"}),
    "count": (sealed_v1(v1_file(), 12, b"\7"), {"entry-count": "error"}),
    "too many": (
        sealed_v1(v1_file(), 12, struct.pack("<I", 70_000)),
        {"entry-count": "error", "too-many-entries": "error"},
    ),
    "total size": (sealed_v1(v1_file(), 32, b"\1\1"), {"total-size": "error"}),
    "payload": (patch(v1_file(), 150, b"?"), {"payload-checksum": "error"}),
    "key length": (patch(v1_file(), SECOND, b"\xff\xff"), {"key-length": "error"}),
    "data size": (patch(v1_file(), SECOND + 4, b"\xff\xff"), {"data-size": "error"}),
    "terminator": (patch(v1_file(), SECOND + 38, b"?"), {"key-terminator": "error"}),
    "empty key": (
        sealed_v1(v1_file([w.Note(b"", b"data", 1, NOW)])),
        {"key-length": "error", "entry-count": "error", "total-size": "error"},
    ),
    "NUL in key": (v1_file([w.Note(b"a\0b", b"data", 1, NOW)]), {"bad-key": "error"}),
    "duplicate": (v1_file([NOTES[0], NOTES[0]]), {"duplicate-key": "error"}),
    "not UTF-8": (v1_file([w.Note(b"\xff", b"data", 1, NOW)]), {"key-not-utf8": "note"}),
    "type": (v1_file([w.Note(b"a", b"data", 99, NOW)]), {"unknown-type": "note"}),
    "no time": (
        v1_file([w.Note(b"a", b"data", 1, 0)], created=0),
        {"entry-time-unset": "note", "time-unset": "note"},
    ),
    "future": (
        v1_file([w.Note(b"a", b"data", 1, NOW * 1000)], modified=NOW * 1000),
        {"entry-time-in-future": "note", "time-in-future": "note"},
    ),
    "backwards": (v1_file(modified=NOW - 1), {"modified-before-created": "warning"}),
    "hash as text": (v1_file(model_hash=b"0123456789abcdef" * 2), {"model-hash-text": "note"}),
    "reserved": (sealed_v1(v1_file(), 80, b"old"), {"reserved-not-zero": "note"}),
    "flags": (patch(v1_file(), SECOND + 12, b"\1"), {"flags-not-zero": "note"}),
    "entry reserved": (patch(v1_file(), SECOND + 28, b"\1"), {"entry-reserved-not-zero": "note"}),
    "no payload": (v1_file([w.Note(b"a", b"", 1, NOW)]), {"empty-payload": "warning"}),
    "trailing": (v1_file() + b"more", {"trailing-bytes": "warning"}),
    "joined": (v1_file() + v1_file(), {"trailing-bytes": "warning"}),
    "cut": (
        v1_file()[:-10],
        {
            "entry-truncated": "error",
        },
    ),
    "gap": (v1_file()[:SECOND] + b"garbage" + v1_file()[SECOND:], {"key-length": "error"}),
}


@pytest.mark.parametrize("name", V1_CASES)
def test_version_1(name: str) -> None:
    data, expected = V1_CASES[name]
    assert codes(data) == expected


def test_every_finding_of_a_file_with_several_faults() -> None:
    data = patch(patch(v1_file(), 150, b"?"), SECOND + 4, b"\xff\xff") + b"tail"
    with open_source(sealed_v1(data, 80, b"x")) as source:
        findings = check_atlas(source)
    assert [(f.code, f.offset) for f in findings] == [
        ("reserved-not-zero", 72),
        ("payload-checksum", 142),
        ("data-size", SECOND),
        ("trailing-bytes", len(data) - 4),
    ]
    assert [f.key for f in findings] == [None, "first", "second", None]
    assert all(f.message and f.severity in ("error", "warning", "note") for f in findings)
    assert all(f.advice for f in findings if f.severity != "note")


def test_version_2(tmp_path: Path) -> None:
    good = v2_file(tmp_path / "a.atlas")
    index = int.from_bytes(good[128:136], "little")
    swapped = _swapped(good)
    cases: dict[str, tuple[bytes, dict[str, str]]] = {
        "fine": (good, {}),
        "short": (good[:100], {"truncated": "error"}),
        "header": (patch(good, 16, b"?"), {"header-checksum": "error"}),
        "header lost": (bytes(160) + good[160:], {"bad-magic": "error"}),
        "both lost": (bytes(160) + good[160:index], {"bad-magic": "error", "header-lost": "error"}),
        "fnv": (sealed_v2(good, checksum=1), {"header-fnv": "warning", "index-header-copy": "warning"}),
        "entry_count": (
            sealed_v2(good, entry_count=9),
            {"entry-count": "warning", "index-header-copy": "warning"},
        ),
        "entry_total": (
            sealed_v2(good, entry_total=9, entry_count=9),
            {"entry-count": "error", "index-header-copy": "warning"},
        ),
        "total_size": (
            sealed_v2(good, total_size=9),
            {"total-size": "warning", "index-header-copy": "warning"},
        ),
        "flags": (
            sealed_v2(good, file_flags=8),
            {"unknown-file-flags": "note", "index-header-copy": "warning"},
        ),
        "cut": (good[: index + 30], {"truncated": "error", "index-outside": "error"}),
        "index mark": (patch(good, index, b"?"), {"index-lost": "error", "unknown-bytes": "error"}),
        "index row": (patch(good, index + 240, b"?!"), {"index-checksum": "error", "unknown-bytes": "error"}),
        "index offset": (sealed_v2(good, index_offset=1 << 40), {"index-outside": "error"}),
        "unsorted": (sealed_index(good, lambda rows: rows[::-1]), {"index-unsorted": "error"}),
        "twice": (
            sealed_index(good, lambda rows: [rows[0], [*rows[1][:3], rows[0][3], rows[1][4]], rows[2]]),
            None,
        ),
        "hash": (
            sealed_index(good, lambda rows: [[0, *rows[0][1:]], *rows[1:]]),
            {"index-key-hash": "error"},
        ),
        "outside": (
            sealed_index(good, lambda rows: [[*rows[0][:1], 1 << 30, *rows[0][2:]], *rows[1:]]),
            None,
        ),
        "swapped": (swapped, {"entry-swapped": "error"}),
        "head": (patch(good, 160 + 70, b"?"), {"entry-head": "error"}),
        "mark": (patch(good, 160, b"?"), {"entry-head": "error"}),
        "payload": (patch(good, 160 + 110, b"?"), {"payload-checksum": "error"}),
        "codec": (sealed_record(good, 0, codec=9), {"unknown-codec": "warning"}),
        "filter": (sealed_record(good, 0, filter=9), {"unknown-filter": "warning"}),
        "undecodable": (sealed_record(good, 0, codec=3), {"payload-undecodable": "error"}),
        "bomb": (
            sealed_record(good, 2, data_size=1 << 50),
            {"payload-undecodable": "error", "total-size": "warning"},
        ),
        "attributes": (sealed_record(good, 0, attributes=1 << 20), {"unknown-attributes": "note"}),
        "removed": (sealed_record(good, 0, attributes=1), {"entry-removed": "error"}),
        "dtype": (sealed_record(good, 1, dtype=200), {"unknown-dtype": "warning"}),
        "shape": (sealed_record(good, 1, raw=(104, b"\7")), {"tensor-size": "error"}),
        "type": (sealed_record(good, 0, data_type=77), {"unknown-type": "note"}),
        "padding": (sealed_record(good, 1, raw=(130, b"?")), {"padding-not-zero": "note"}),
        "uncommitted": (good + bytes(50), {"uncommitted-bytes": "warning"}),
    }
    for name, (data, expected) in cases.items():
        found = codes(data)
        if expected is None:
            assert "error" in found.values(), name
        else:
            assert found == expected, name


def _swapped(good: bytes) -> bytes:
    """Make the index name each record by the other's place."""

    def change(rows: list[list[int]]) -> list[list[int]]:
        a, b = rows[0], rows[1]
        return [[a[0], b[1], b[2], a[3], a[4]], [b[0], a[1], a[2], b[3], b[4]], *rows[2:]]

    return sealed_index(good, change)


def test_what_updates_leave_is_a_note(tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    v2_file(path)
    with MemoryFile.open(path) as memory:
        memory["first"] = "changed"
        del memory["packed"]
        memory.commit()
    found = {finding.code: finding for finding in check_atlas(path)}
    assert set(found) == {"garbage"}
    assert found["garbage"].message.startswith("3 records")


def test_misaligned_tensor(tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    entry = Entry("t", MemoryPayload(bytes(64)), size=64, dtype_id=12, shape=(16,), timestamp=NOW)
    original = v2_writer.Writer._head
    with open(path, "wb") as file, pytest.MonkeyPatch.context() as patching:
        patching.setattr(v2_writer.Writer, "_head", lambda *a, **k: original(*a, **(k | {"align": False})))
        v2_writer.write(file, Info(2, "v2", NOW, NOW), [entry], 1, v2_writer.Options(), None)
    assert {f.code: f.severity for f in check_atlas(path)} == {"tensor-misaligned": "warning"}


def test_version_3(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    good = v2_file(tmp_path / "a.atlas", key=KEY)
    index = int.from_bytes(good[128:136], "little")
    assert codes(good, key=KEY) == {}
    assert codes(good) == {"contents-not-checked": "note"}
    assert codes(good, key=bytes(32)) == {"wrong-key": "error"}
    assert codes(good, passphrase="no") == {"wrong-key": "error"}
    assert codes(good, key=b"short") == {"wrong-key": "error", "contents-not-checked": "note"}
    hit = patch(good, 256 + 300, bytes([good[556] ^ 1]))
    assert codes(hit, key=KEY) == {"entry-authentication": "error"}
    assert codes(hit) == {"contents-not-checked": "note", "payload-checksum": "error"}
    altered = patch(good, 24, b"?")  # by somebody who knows about checksums
    altered = patch(altered, 8, struct.pack("<I", checksums.fnv1a(altered[12:104])))
    altered = patch(altered, 248, struct.pack("<Q", checksums.xxh3(altered[:248])))
    assert codes(altered, key=KEY)["header-authentication"] == "error"
    body = (
        good[index + 16 : index + 340]
        + bytes(20)
        + good[index + 360 : index + layout.INDEX.unpack_from(good, index)[2]]
    )
    forged = patch(good, index + 8, struct.pack("<Q", checksums.xxh3(body)) + body)
    assert codes(forged, key=KEY)["index-authentication"] == "error"
    assert codes(good[:index], key=KEY)["truncated"] == "error"


def test_small_files_that_claim_much(tmp_path: Path) -> None:
    import zlib

    path = tmp_path / "bomb.atlas"
    size = 1 << 29
    packer = zlib.compressobj()
    stored = b"".join(packer.compress(bytes(1 << 20)) for _ in range(size >> 20)) + packer.flush()
    entry = Entry("zeros", MemoryPayload(stored), size=size, codec_id=2, offset=0, timestamp=NOW)
    with open(path, "wb") as file:
        v2_writer.write(file, Info(2, "v2", NOW, NOW), [entry], 1, v2_writer.Options(), None)
    findings = {f.code: f.severity for f in check_atlas(path)}
    assert findings in ({}, {"not-unpacked": "note"})


def test_files_of_the_c_library(c_library_files: Path) -> None:
    for path in sorted(c_library_files.glob("*.atlas")):
        assert all(finding.severity == "note" for finding in check_atlas(path)), path


def _fails_to_open(data: bytes, options: dict[str, Any]) -> bool:
    try:
        with MemoryFile.open(data, verify=True, **options) as memory:
            return any(memory[key].key != key for key in list(memory))
    except AtlasError:
        return True


@pytest.mark.parametrize("version", [1, 2, 3])
def test_agrees_with_opening(version: int, tmp_path: Path) -> None:
    """Where opening and reading everything fails there is an error, and where it works there is none."""
    options = {"key": KEY} if version == 3 else {}
    good = v1_file() if version == 1 else v2_file(tmp_path / "a.atlas", **options)
    rng = random.Random(version)
    for _ in range(400):
        data = bytearray(good)
        for _ in range(rng.randint(1, 3)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        if rng.random() < 0.2:
            del data[rng.randrange(len(data)) :]
        with open_source(bytes(data)) as source:
            errors = [f.code for f in check_atlas(source, **options) if f.severity == "error"]
        assert bool(errors) == _fails_to_open(bytes(data), options), errors


def test_shallow_check_does_not_read_payloads(tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    path.write_bytes(patch(v2_file(path), 160 + 110, b"?"))
    assert check_atlas(path, deep=False) == []
    assert [f.code for f in check_atlas(path)] == ["payload-checksum"]


def test_large_files_are_verified_by_two_threads(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_v2, "PARALLEL", 1)
    path = tmp_path / "a.atlas"
    path.write_bytes(patch(v2_file(path), 160 + 110, b"?"))
    assert [(f.code, f.key) for f in check_atlas(path)] == [("payload-checksum", "first")]


def test_tables_are_what_the_check_knows() -> None:
    assert {row.id for row in t.ATTRIBUTES} == {t.REMOVED, t.ENCRYPTED}
