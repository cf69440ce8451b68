"""``hex_fields`` and ``byte_map``: every byte has one place, whole files and damaged ones alike."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.atlas.view import byte_map, hex_fields
from tools import sample_writers as w
from tools.bench import repair_score as score

NOW = 1_700_000_000
KEY = score.KEY
V1 = w.atlas_v1([w.Note(b"first", b"the payload", 1, NOW), w.Note(b"second", b"{}", 99, 0)], created=NOW)


def require_tiles(data: bytes, **secret: Any) -> None:
    """Both views cover every byte exactly once, in order."""
    at = 0
    for region in byte_map(data, **secret):
        assert region.offset == at
        assert region.size > 0
        at += region.size
    assert at == len(data)
    at = 0
    for span in hex_fields(data, None, **secret)[0]:
        assert span.offset == at, span
        at += span.size
    assert at == len(data)


def v2_file(path: Path, **secret: Any) -> MemoryFile:
    memory = MemoryFile(version=3 if secret else 2, created=NOW, **secret)
    memory.set("first", "the payload", timestamp=NOW)
    memory.set("tensor", np.zeros((2, 3), "<f4"), timestamp=NOW)
    memory.save(path, durable=False)
    return memory


def test_map_of_version_1() -> None:
    assert [(r.offset, r.size, r.kind, r.name) for r in byte_map(V1 + b"tail")] == [
        (0, 104, "header", ""),
        (104, 38, "entry", "first"),
        (142, 11, "payload", "first"),
        (153, 39, "entry", "second"),
        (192, 2, "payload", "second"),
        (194, 4, "trailing", ""),
    ]
    damaged = V1[:145] + b"?" + V1[146:]
    assert [r.kind for r in byte_map(damaged)] == ["header", "entry", "damaged", "entry", "payload"]
    assert byte_map(bytes(104) + V1[104:])[0].kind == "damaged"


def test_map_of_version_2(tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    memory = v2_file(path)
    before = path.read_bytes()
    kinds = ["header", "entry", "payload", "padding", "entry", "payload", "index"]
    assert [r.kind for r in byte_map(path)] == kinds
    assert [r.name for r in byte_map(path) if r.kind == "payload"] == ["first", "tensor"]
    memory["first"] = "changed"
    memory.commit()
    regions = byte_map(path)
    assert [r.kind for r in regions][:2] == ["header", "garbage"]
    assert {r.name for r in regions if r.kind == "garbage"} == {"first", "old index: 2 records of commit 1"}
    unfinished = before[:160] + path.read_bytes()[160:]
    assert [r.kind for r in byte_map(unfinished)][-2:] == ["uncommitted", "uncommitted"]
    assert byte_map(bytes(160) + before[160:])[0].kind == "damaged"


def test_map_of_version_3(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    path = tmp_path / "a.atlas"
    v2_file(path, key=KEY)
    assert [r.name for r in byte_map(path) if r.kind == "entry"] == ["entry 0", "entry 1"]
    assert [r.name for r in byte_map(path, key=KEY) if r.kind == "entry"] == ["first", "tensor"]


def test_fields_of_version_1() -> None:
    spans, error = hex_fields(V1)
    assert error is None
    found = {span.name: span for span in spans}
    assert found["header.checksum"].note.endswith(": it fits")
    assert found["header.created_time"].note.endswith(": 2023-11-14T22:13:20Z")
    assert found["entries[0].key_length"].value == 5
    assert found["entries[0].data_type"].note.endswith(": text")
    assert found["entries[1].data_type"].note.endswith(": not known")
    assert found["entries[1].timestamp"].note.endswith(": unset")
    assert found["entries[0].checksum"].note.endswith(": it fits")
    assert (found["entries[0].data"].offset, found["entries[0].data"].value) == (142, b"the payload")
    assert hex_fields(V1, 5)[0] == spans[:5]


def test_fields_of_damage() -> None:
    spans, error = hex_fields(V1[:145] + b"?" + V1[146:])
    assert error is not None
    assert error.offset == 142
    found = {span.name: span for span in spans}
    assert found["entries[0].checksum"].note.endswith(": it does NOT match")
    assert "damaged entries[0].data" in found


def test_fields_of_version_2(tmp_path: Path) -> None:
    path = tmp_path / "a.atlas"
    v2_file(path)
    found = {span.name: span for span in hex_fields(path)[0]}
    assert found["header.header_checksum"].note.endswith(": it fits")
    assert found["entries[0].head_checksum"].note.endswith(": it fits")
    assert found["entries[0].data_checksum"].note.endswith(": it fits")
    assert found["entries[1].dtype"].note.endswith(": float32")
    assert [found[f"entries[1].shape[{i}]"].value for i in range(2)] == [2, 3]
    assert found["entries[1].key"].note.endswith(": tensor")
    assert found["index[0].count"].value == 2
    assert found["index[0].records[1].ordinal"].size == 8


def test_fields_inside_a_seal(tmp_path: Path) -> None:
    pytest.importorskip("cryptography")
    path = tmp_path / "a.atlas"
    v2_file(path, key=KEY)
    closed = {span.name for span in hex_fields(path)[0]}
    assert "entries[0].sealed_head" in closed
    opened = {span.name: span for span in hex_fields(path, key=KEY)[0]}
    assert opened["entries[0].sealed_head.key"].value == b"first"
    assert opened["entries[0].seal.kdf"].note.endswith(": raw key")


def test_views_cover_every_file(c_library_files: Path) -> None:
    for path in c_library_files.glob("*.atlas"):
        require_tiles(path.read_bytes())


@pytest.mark.slow
@pytest.mark.parametrize("version", [1, 2, 3])
def test_views_cover_damaged_files(version: int) -> None:
    secret: dict[str, Any] = {"key": KEY} if version == 3 else {}
    rng = random.Random(version)
    for _ in range(8):
        sample = score.sample(rng, version)
        require_tiles(sample.data, **secret)
        for kind in score.INJURIES.values():
            data, _ = kind(rng, sample)
            require_tiles(data, **secret)


def test_nothing_at_all() -> None:
    for data in (b"", b"?", b"ATLS", bytes(300)):
        require_tiles(data)
