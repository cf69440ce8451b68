"""``sample_data/`` is what its builder builds, and every file is what the manifest says."""

from __future__ import annotations

import hashlib
import json

import pytest

from atlas_kit import GGUFFile, MemoryFile
from tests.conftest import SAMPLES
from tools import make_sample_data as maker


@pytest.fixture(scope="module")
def built() -> dict[str, maker.Sample]:
    return {sample.path: sample for sample in maker.samples()}


def paths() -> list[str]:
    folders = ("atlas", "gguf", "broken", "text")
    files = (path for folder in folders for path in sorted((SAMPLES / folder).iterdir()))
    return [path.relative_to(SAMPLES).as_posix() for path in files]


def manifest_rows() -> dict[str, dict[str, object]]:
    """Read MANIFEST.toml; its lines are ``name = JSON``, so that Python 3.10 needs no TOML reader."""
    rows: list[dict[str, object]] = []
    for line in (SAMPLES / "MANIFEST.toml").read_text(encoding="utf-8").splitlines():
        if line == "[[file]]":
            rows.append({})
        elif line and not line.startswith("#"):
            name, value = line.split(" = ", 1)
            rows[-1][name] = json.loads(value)
    return {str(row["path"]): row for row in rows}


MANIFEST = manifest_rows()


def test_nothing_is_missing_and_nothing_is_left_over(built):
    assert set(paths()) == set(built) == set(MANIFEST)


def test_the_manifest_is_toml():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no TOML reader")
    read = tomllib.loads((SAMPLES / "MANIFEST.toml").read_text(encoding="utf-8"))
    assert {row["path"]: row for row in read["file"]} == MANIFEST


@pytest.mark.parametrize("path", paths())
def test_hashes_are_right(path):
    data = (SAMPLES / path).read_bytes()
    assert MANIFEST[path]["size"] == len(data)
    assert MANIFEST[path]["sha256"] == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("path", paths())
def test_the_builder_gives_the_same_bytes(path, built):
    made_with = MANIFEST[path].get("made_with", [])
    if made_with != maker.versions(built[path].made_with):
        # another version of a compressor may pack the same content differently
        pytest.skip(f"built with {', '.join(made_with)}: the content is compared instead")
    assert built[path].data == (SAMPLES / path).read_bytes(), "run `make samples` and look at the difference"


def test_the_builder_gives_the_same_content(built):
    path = "atlas/assistant.atlas"
    here, again = (MemoryFile.load(data) for data in ((SAMPLES / path).read_bytes(), built[path].data))
    assert list(here) == list(again)
    for mine, other in zip(here.values(), again.values(), strict=True):
        facts = ("type", "flags", "timestamp", "size", "codec", "filter", "dtype", "shape", "data")
        assert [getattr(mine, name) for name in facts] == [getattr(other, name) for name in facts]


def test_the_example_is_the_c_librarys_own(c_library_files):
    name = "llama-7b_memory.atlas"
    assert (SAMPLES / "atlas" / name).read_bytes() == (c_library_files / name).read_bytes()


def test_both_byte_orders_hold_the_same_values():
    little, big = (GGUFFile.open(SAMPLES / "gguf" / name) for name in ("micro.gguf", "big-endian.gguf"))
    assert (little.byte_order, big.byte_order) == ("<", ">")
    assert list(little.tensors) == list(big.tensors)
    for name in little.tensors:
        assert little.dequantize(name).tolist() == big.dequantize(name).tolist()


# --- what atlas-tool says ---------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [p for p in paths() if not p.startswith("text/")])
def test_validate_finds_what_the_manifest_says(path, run_cli, monkeypatch):
    monkeypatch.chdir(SAMPLES)
    options = ["--passphrase-file", "text/passphrase.txt"] if "secret" in path else []
    ran = run_cli("validate", "--json", path, *options)
    (verdict,) = json.loads(ran.stdout)
    assert verdict["path"] == path
    assert sorted({finding["code"] for finding in verdict["findings"]}) == sorted(MANIFEST[path]["codes"])
    severities = {finding["severity"] for finding in verdict["findings"]}
    assert verdict["ok"] == ("error" not in severities)
    assert ran.exit_code == (1 if "error" in severities else 0)


@pytest.mark.parametrize("expected", sorted(p.name for p in (SAMPLES / "expected").glob("*.txt")))
def test_output_is_as_expected(expected):
    assert maker.output_of(maker.EXPECTED[expected]) == (SAMPLES / "expected" / expected).read_text("utf-8")


def test_every_expected_output_is_there():
    names = {path.name for path in (SAMPLES / "expected").iterdir()}
    pictures = {"inspect.svg", "explorer.png", "memory-lab.png", "memory-compare.png", "server-page.png"}
    assert names == {*maker.EXPECTED, *pictures}
    assert max((SAMPLES / "expected" / name).stat().st_size for name in pictures) < 200_000
