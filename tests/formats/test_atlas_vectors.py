"""The published vectors of formats/vectors/atlas*.json: read, written again, built, refused."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import AtlasError, ErrorCode
from atlas_kit.formats.atlas import MemoryFile
from tools.make_vectors import meaning

ROOT = Path(__file__).resolve().parents[2]
VECTORS = [
    vector
    for name in ("atlas.json", "atlas-c.json")
    for vector in json.loads((ROOT / "formats" / "vectors" / name).read_text(encoding="utf-8"))["vectors"]
]
VALID = [pytest.param(v, id=v["name"]) for v in VECTORS if v["valid"]]
INVALID = [pytest.param(v, id=v["name"]) for v in VECTORS if not v["valid"]]
BUILT = [pytest.param(v, id=v["name"]) for v in VECTORS if v.get("built")]


def secret_of(vector: dict[str, Any]) -> dict[str, Any]:
    secret = dict(vector.get("secret", {}))
    if secret:
        pytest.importorskip("cryptography")
    if "key" in secret:
        secret["key"] = bytes.fromhex(secret["key"])
    return secret


def raw_of(value: Any) -> bytes:
    return value.encode() if isinstance(value, str) else bytes.fromhex(value["bytes"])


@pytest.mark.parametrize("vector", VALID)
def test_values(vector: dict[str, Any]) -> None:
    memory = MemoryFile.load(bytes.fromhex(vector["hex"]), **secret_of(vector))
    found = meaning(memory)
    assert found == {name: vector[name] for name in found}


@pytest.mark.parametrize("vector", BUILT)
def test_built_from_the_values(tmp_path: Path, vector: dict[str, Any]) -> None:
    memory = MemoryFile(
        version=vector["version"],
        created=vector["created"],
        model_hash=vector["model_hash"],
        **secret_of(vector),
    )
    for row in vector["entries"]:
        memory.set(
            raw_of(row["key"]).decode("utf-8", "surrogateescape"),
            raw_of(row["data"]),
            type=row["type"],
            flags=row["flags"],
            timestamp=int(row["timestamp"]),
            dtype=row.get("dtype"),
            shape=tuple(row["shape"]) if "shape" in row else None,
        )
    memory.save(tmp_path / "f")
    assert (tmp_path / "f").read_bytes().hex() == vector["hex"]


@pytest.mark.parametrize("vector", VALID)
def test_written_again(tmp_path: Path, vector: dict[str, Any]) -> None:
    """Reading and rewriting an untouched file gives the same bytes, but for dialects, garbage and nonces."""
    secret = secret_of(vector)
    raw = bytes.fromhex(vector["hex"])
    MemoryFile.open(raw, **secret).save(tmp_path / "f")
    again = (tmp_path / "f").read_bytes()
    if vector["version"] < 3 and not vector["warnings"] and vector["name"] != "v2-updated":
        assert again == raw
    found = meaning(MemoryFile.load(again, **secret))
    assert found["entries"] == vector["entries"]
    assert (found["created"], found["modified"]) == (vector["created"], vector["modified"])
    assert found["warnings"] == []


@pytest.mark.parametrize("vector", INVALID)
def test_refused(vector: dict[str, Any]) -> None:
    raw, secret = bytes.fromhex(vector["hex"]), secret_of(vector)
    if vector["read"] == "verify":
        MemoryFile.open(raw, **secret)
    with pytest.raises(AtlasError) as caught:
        MemoryFile.open(raw, verify=vector["read"] == "verify", **secret)
    assert caught.value.code == ErrorCode[vector["error"]]
    assert vector["offset"] is None or caught.value.offset == vector["offset"]


def test_every_version_codec_and_type_has_one() -> None:
    valid = [v for v in VECTORS if v["valid"]]
    rows = [row for v in valid for row in v["entries"]]
    assert {v["dialect"] for v in valid} == {"v1", "v1-96", "v1-crc32", "v1-96-crc32", "v2", "v3"}
    assert {row.get("codec") for row in rows} >= {"none", "lz4", "zlib", "zstd"}
    assert {row["type"] for row in rows} >= {0, 1, 2, 3, 4, 99}


def test_the_generator_still_makes_these() -> None:
    pytest.importorskip("cryptography")
    done = subprocess.run([sys.executable, "tools/make_vectors.py", "--check"], cwd=ROOT, check=False)
    assert done.returncode == 0, "run: python tools/make_vectors.py"
