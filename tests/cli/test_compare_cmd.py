"""``diff``, ``merge``, ``compress`` and ``hash``."""

from __future__ import annotations

import hashlib

import numpy as np
import pytest
from test_main_cmd import tool

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile

pytest_plugins = ["cli_fixtures"]


def changed(files, **changes):
    """Return a copy of the version 2 file with changes (``None`` removes)."""
    path = files.folder / "changed.atlas"
    with MemoryFile.open(files.v2) as memory:
        for key, value in changes.items():
            if value is None:
                memory.remove(key)
            else:
                memory.set(key, value, timestamp=1)
        memory.save(path)
    return path


# --- diff ----------------------------------------------------------------------------------------------


def test_same_content_in_other_clothes(files, run_cli):
    run_cli("convert", files.v1, files.folder / "a.atlas")
    run_cli("convert", files.v1, files.folder / "a.json")
    run_cli("compress", files.v1, "-o", files.folder / "c.atlas")
    for other in ("a.atlas", "a.json", "c.atlas"):
        result = run_cli("diff", "--strict", files.v1, files.folder / other)
        assert result.exit_code == 0, result.stdout
        assert result.stdout == "no difference in 5 items\n"


def test_what_differs_can_be_written_as_a_page(files, run_cli, parse_json, sample_data):
    page = files.folder / "page.html"
    models = [sample_data / f"gguf/{name}.gguf" for name in ("tiny", "micro")]
    result = run_cli("diff", *models, "--html", page)
    assert result.exit_code == 1
    assert result.stdout.startswith("12 of 12 tensors differ; ")
    assert "Error of each tensor, by layer" in page.read_text(encoding="utf-8")
    assert run_cli("diff", *models, "--html", page).exit_code == 2  # it is there already
    same = run_cli("diff", files.v1, files.v1, "--html", page, "--force", "--json")
    assert same.exit_code == 0
    assert parse_json(same.stdout)["sentence"] == "0 differ, 5 are the same."
    assert run_cli("diff", files.v1, models[0], "--html", page, "-f").exit_code == 2
    streamed = run_cli("diff", files.v1, files.v1, "--html", "-")
    assert streamed.stdout.startswith("<!doctype html>")


def test_text_json_tensors_and_keys(files, run_cli, parse_json):
    with MemoryFile.open(files.v2) as memory:
        weights = memory["weights"].array().copy()
    weights[3, 7] += 0.5
    prefs = b'{"theme": "light", "size": [1, 2.5, null, true], "new": {}}'
    other = changed(
        files, greeting="hello\nmoon\n", prefs=prefs, weights=weights, half=None, extra="x", blob=b"\0\1\2"
    )
    result = run_cli("diff", files.v2, other)
    assert result.exit_code == 1
    expected = ["~ greeting", "    -world", "    +moon", "    ~ $.theme: dark -> light"]
    expected += ["    + $.size[3]: true", "    + $.new: {}", "- half", "+ extra", "~ blob"]
    for line in expected:
        assert line in result.stdout.splitlines()
    assert "max 0.5, relative L2" in result.stdout
    changes = {c["name"]: c for c in parse_json(run_cli("diff", files.v2, other, "--json").stdout)["changes"]}
    assert changes["weights"]["numbers"]["max_abs"] == pytest.approx(0.5, rel=1e-6)
    assert changes["weights"]["numbers"]["differing"] == 1
    assert 0.9 < changes["weights"]["numbers"]["cosine"] < 1
    assert changes["half"]["what"] == "removed"
    assert run_cli("diff", files.v2, other, "-q").stdout == ""


def test_tolerance(files, run_cli):
    with MemoryFile.open(files.v2) as memory:
        other = changed(
            files,
            weights=memory["weights"].array() + np.float32(0.001),
            prefs=b'{"theme": "dark", "size": [1.0005, 2.5, null]}',
        )
    assert run_cli("diff", files.v2, other).exit_code == 1
    with MemoryFile.open(other) as memory:
        memory.set("prefs", memory["prefs"].data, type=4)
        memory.save()
    assert run_cli("diff", files.v2, other, "--tolerance", "0.01").exit_code == 0
    assert run_cli("diff", files.v2, other, "--tolerance", "0.0001").exit_code == 1
    assert run_cli("diff", files.v2, other, "--tolerance", "-1").exit_code == 2


def test_nan_equals_nan_and_nothing_else(files, run_cli):
    other = changed(files, nan=np.array([np.nan, np.inf, np.nan], np.float32))
    result = run_cli("diff", files.v2, other, "--tolerance", "1e30")
    assert result.exit_code == 1
    assert "1 of 3 numbers differ: max inf" in result.stdout


def test_renamed_and_moved(files, run_cli):
    path = files.folder / "r.atlas"
    with MemoryFile.open(files.v1) as memory:
        memory.rename("greeting", "salute")
        memory.save(path)
    result = run_cli("diff", files.v1, path)
    assert result.exit_code == 1
    assert "> greeting -> salute" in result.stdout
    moved = files.folder / "m.atlas"
    with MemoryFile.open(files.v1) as memory:
        entry = memory["greeting"]
        memory.remove("greeting")
        memory.set("greeting", entry)
        memory.save(moved)
    assert run_cli("diff", files.v1, moved).exit_code == 0
    strict = run_cli("diff", "--strict", files.v1, moved)
    assert strict.exit_code == 1
    assert strict.stdout.count("^ ") == 1
    assert "^ greeting" in strict.stdout


def test_times_count_only_when_strict(files, run_cli):
    path = files.folder / "t.atlas"
    with MemoryFile.open(files.v1) as memory:
        memory.set("greeting", memory["greeting"].data, type=1, timestamp=5)
        memory.save(path)
    assert run_cli("diff", files.v1, path).exit_code == 0
    assert "timestamp: 1700000000 -> 5" in run_cli("diff", "--strict", files.v1, path).stdout


def test_model_hash_counts(files, run_cli):
    path = files.folder / "h.atlas"
    with MemoryFile.open(files.v1) as memory:
        memory.model_hash = "cd" * 32
        memory.save(path)
    assert "~ header header" in run_cli("diff", files.v1, path).stdout


def test_hostile_text_is_escaped(files, run_cli, quiet):
    other = changed(files, **{"bad\udcff\x1b[31m[bold]": b"y\x1b]0;other\x07\n\tz"})
    assert quiet(run_cli("diff", files.v2, other).stdout)


def test_models(files, run_cli, parse_json):
    other = files.folder / "other.gguf"
    other.write_bytes(files.gguf.read_bytes())
    assert run_cli("diff", files.gguf, other).exit_code == 0
    run_cli("set", other, "general.name", "new")
    run_cli("set", other, "tokenizer.ggml.tokens", '["<s>", "b", "c"]')
    run_cli("set", other, "x", "1", "--type", "u32")
    result = run_cli("diff", files.gguf, other)
    assert result.exit_code == 1
    for line in ("    value: tiny -> new", "    length: 4 -> 3", "+ metadata x"):
        assert line in result.stdout.splitlines()
    quantised = files.folder / "q.gguf"
    assert run_cli("compress", files.gguf, "-o", quantised, "--quantize", "q8_0").exit_code == 0
    changes = parse_json(run_cli("diff", files.gguf, quantised, "--json").stdout)["changes"]
    tensor = next(c for c in changes if c["name"] == "token_embd.weight")
    assert 0 < tensor["numbers"]["max_abs"] < 0.05
    result = run_cli("diff", files.gguf, files.v1)
    assert result.exit_code == 2
    assert "cannot be compared" in result.stderr


# --- merge ---------------------------------------------------------------------------------------------


@pytest.fixture
def two(tmp_path):
    a, b = MemoryFile(version=1, created=10), MemoryFile(created=20)
    a.set("same", "x", timestamp=1)
    a.set("both", "from a", timestamp=9)
    a.set("only a", "a", timestamp=2)
    b.set("both", "from b", timestamp=3)
    b.set("same", "x", timestamp=5)
    b.set("only b", "b", timestamp=4)
    a.save(tmp_path / "a.atlas")
    b.save(tmp_path / "b.atlas")
    return tmp_path / "a.atlas", tmp_path / "b.atlas", tmp_path / "out.atlas"


@pytest.mark.parametrize(("prefer", "winner"), [("first", "a"), ("last", "b"), ("newest", "a")])
def test_merge(two, run_cli, parse_json, prefer, winner):
    a, b, out = two
    result = run_cli("merge", a, b, "-o", out, "--prefer", prefer, "--json")
    assert result.exit_code == 0, result.stderr
    summary = parse_json(result.stdout)
    assert [c["key"] for c in summary["conflicts"]] == ["both"]
    assert summary["conflicts"][0]["taken"].endswith(f"{winner}.atlas")
    with MemoryFile.open(out) as memory:
        assert list(memory) == ["same", "both", "only a", "only b"]
        assert memory["both"].text == f"from {winner}"
        assert memory.version == 2
        assert memory.created == 10


def test_merge_versions_and_overwriting(two, run_cli):
    a, b, out = two
    assert run_cli("merge", a, b, "-o", out, "--to", "atlas-v1").exit_code == 0
    with MemoryFile.open(out) as memory:
        assert memory.version == 1
    assert run_cli("merge", a, b, "-o", out).exit_code == 2
    assert run_cli("merge", a, b, "-o", a, "--force").exit_code == 2
    assert run_cli("merge", a, b, "-o", out, "--force").exit_code == 0


def test_merge_to_standard_output(two):
    a, b, _ = two
    done = tool("merge", a, "-", "-o", "-", stdin=b.read_bytes())
    assert done.returncode == 0
    assert tool("get", "-", "only b", stdin=done.stdout).stdout == b"b"


def test_merge_of_different_models(two, run_cli, files):
    a, _, out = two
    with MemoryFile.open(a) as memory:
        memory.model_hash = "cd" * 32
        memory.save()
    assert "different models" in run_cli("merge", files.v1, a, "-o", out).stdout
    assert run_cli("merge", files.v1, files.gguf, "-o", out, "--force").exit_code == 2


# --- compress ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", ["lz4", "zlib", "zstd", "none"])
def test_compress_is_lossless(files, run_cli, parse_json, codec):
    out = files.folder / "c.atlas"
    result = run_cli("compress", files.coded, "-o", out, "--codec", codec, "--json")
    assert result.exit_code == 0, result.stderr
    assert run_cli("diff", "--strict", files.coded, out).exit_code == 0
    rows = {row["key"]: row for row in parse_json(result.stdout)["entries"]}
    assert rows["blob"]["codec"] == "none"  # 256 different bytes do not get smaller
    assert all(row["stored_after"] <= row["size"] for row in rows.values())
    if codec != "none":
        assert rows["chat"]["codec"] == codec
        assert rows["chat"]["ratio"] < 0.5


def test_chat_compresses_to_under_half_with_lz4(tmp_path, run_cli, parse_json):
    words = sorted({*dir(str), *dir(dict), "the", "model", "said", "that", "it", "could", "not", "see"})
    rng = np.random.default_rng(3)
    text = "\n".join(" ".join(rng.choice(words, 12)) for _ in range(400))
    with MemoryFile() as memory:
        memory["chat"] = text
        memory.save(tmp_path / "a.atlas")
    result = run_cli("compress", tmp_path / "a.atlas", "-o", tmp_path / "b.atlas", "--codec", "lz4", "--json")
    assert parse_json(result.stdout)["ratio"] < 0.5


def test_levels_and_shuffle(files, run_cli, parse_json):
    def size(*options):
        result = run_cli(
            "compress", files.coded, "-o", files.folder / "x.atlas", "--force", "--json", *options
        )
        assert result.exit_code == 0, result.stderr
        rows = {row["key"]: row for row in parse_json(result.stdout)["entries"]}
        return rows["grid-none" if "grid-none" in rows else "grid-zlib"]["stored_after"]

    assert size() < size("--no-shuffle")
    assert size("--codec", "zlib", "--level", "9") <= size("--codec", "zlib", "--level", "1")
    assert run_cli("compress", files.coded, "-o", files.folder / "y.atlas", "--level", "999").exit_code == 2


@pytest.mark.parametrize(
    ("how", "dtype", "bound"), [("f16", "float16", 2e-3), ("bf16", "bfloat16", 2e-2), ("q8_0", "q8_0", 2e-2)]
)
def test_quantize(files, run_cli, parse_json, how, dtype, bound):
    out = files.folder / "q.atlas"
    result = run_cli("compress", files.v2, "-o", out, "--quantize", how, "--json")
    assert result.exit_code == 0, result.stderr
    rows = {row["key"]: row for row in parse_json(result.stdout)["entries"]}
    weights = rows["weights"]
    assert (weights["dtype_before"], weights["dtype_after"]) == ("float32", dtype)
    assert 0 < weights["error"]["max_abs"] < bound
    assert 0 < weights["error"]["relative_l2"] < bound
    with MemoryFile.open(files.v2) as before, MemoryFile.open(out) as after:
        gap = np.abs(before["weights"].numbers() - after["weights"].numbers().astype(np.float32)).max()
        assert weights["error"]["max_abs"] == pytest.approx(gap, rel=1e-6)
        assert after["ints"] == before["ints"]
        assert after["nan"].dtype == "float32"
        assert after["greeting"] == before["greeting"]
    assert "cannot represent" in rows["nan"]["note"] or "whole blocks" in rows["nan"]["note"]


@pytest.mark.parametrize(("how", "kind"), [("f16", "F16"), ("bf16", "BF16"), ("q8_0", "Q8_0")])
def test_quantize_a_model(files, run_cli, how, kind):
    out = files.folder / "q.gguf"
    result = run_cli("compress", files.gguf, "-o", out, "--quantize", how)
    assert result.exit_code == 0, result.stderr
    with GGUFFile.open(files.gguf) as before, GGUFFile.open(out) as after:
        assert after.tensor("token_embd.weight").type_name == kind
        assert after.tensor("output_norm.weight").type_name == "F32"
        assert after.get("general.name") == "tiny"
        assert np.allclose(
            before.dequantize("token_embd.weight"), after.dequantize("token_embd.weight"), atol=0.03
        )
    verdicts = [run_cli("validate", path).stdout.replace(str(path), "") for path in (files.gguf, out)]
    assert verdicts[0] == verdicts[1]
    assert out.stat().st_size < files.gguf.stat().st_size


def test_quantize_a_model_agrees_with_ggml(files, run_cli):
    from gguf import GGMLQuantizationType, quants

    out = files.folder / "q.gguf"
    run_cli("compress", files.gguf, "-o", out, "--quantize", "q8_0")
    with GGUFFile.open(files.gguf) as before, GGUFFile.open(out) as after:
        expected = quants.quantize(before.dequantize("token_embd.weight"), GGMLQuantizationType.Q8_0)
        assert np.array_equal(after.array("token_embd.weight"), expected)


def test_compress_refusals(files, run_cli):
    out = files.folder / "o.atlas"
    assert run_cli("compress", files.gguf, "-o", files.folder / "o.gguf").exit_code == 2
    assert run_cli("compress", files.gguf, "-o", out, "--quantize", "f16", "--codec", "lz4").exit_code == 2
    assert run_cli("compress", files.v1, "-o", files.v1, "--force").exit_code == 2
    assert run_cli("compress", files.v1, "-o", files.v2).exit_code == 2
    assert not out.exists()


def test_compress_to_standard_output(files):
    done = tool("compress", "-", "-o", "-", stdin=files.coded.read_bytes())
    assert done.returncode == 0
    assert tool("diff", "-", files.coded, stdin=done.stdout).returncode == 0


# --- hash ----------------------------------------------------------------------------------------------


def test_hash(files, run_cli, parse_json):
    (result,) = parse_json(run_cli("hash", files.v1, "--json").stdout)
    assert result["file"] == hashlib.sha256(files.v1.read_bytes()).hexdigest()
    parts = {part["name"]: part["hash"] for part in result["parts"]}
    assert parts["blob"] == hashlib.sha256(bytes(range(256))).hexdigest()
    run_cli("convert", files.v1, files.folder / "a.atlas")
    run_cli("convert", files.v1, files.folder / "c.json")
    assert "content" in run_cli("hash", files.folder / "c.json").stdout
    run_cli("convert", files.v1, files.folder / "c.atlas", "--codec", "zlib", "--level", "9")
    paths = [files.folder / "a.atlas", files.folder / "c.atlas"]
    others = parse_json(run_cli("hash", *paths, "--json").stdout)
    assert {other["content"] for other in others} == {result["content"]}
    assert result["file"] not in {other["file"] for other in others}


@pytest.mark.parametrize("algorithm", ["sha256", "sha512", "blake2b", "sha1", "md5", "xxh3-64", "xxh3-128"])
def test_hash_algorithms(files, run_cli, algorithm):
    result = run_cli("hash", files.gguf, "-a", algorithm)
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert [line.split()[1] for line in lines] == ["file", "content", "part", "part"]
    assert lines[2].endswith("token_embd.weight")
    assert run_cli("hash", "--file-only", files.gguf, "-a", algorithm).stdout.count("\n") == 1


def test_identity(files, run_cli, parse_json):
    lines = run_cli("hash", "--identity", files.gguf, files.gguf).stdout.splitlines()
    assert len(lines) == 2
    value, what, name = lines[0].split("  ")
    assert (len(value), what, name) == (64, "identity", str(files.gguf))
    native = files.folder / "native.gguf"
    assert run_cli("convert", files.gguf, native, "--window-size", "8").exit_code == 0
    (row,) = parse_json(run_cli("hash", "--identity", native, "--json").stdout)
    assert row == {"path": str(native), "identity": value, "full": False}
    (row,) = parse_json(run_cli("hash", "--identity", "--full", native, "--json").stdout)
    assert row["full"]
    assert row["identity"] != value


@pytest.mark.parametrize(
    "options", [["--full"], ["--identity", "--file-only"], ["--identity", "-a", "sha256"]], ids=str
)
def test_identity_stands_alone(files, run_cli, options):
    result = run_cli("hash", files.gguf, *options)
    assert result.exit_code == 2
    assert result.stderr.count("\n") == 1


def test_only_models_have_an_identity(files, run_cli):
    for path in (files.v1, files.folder / "none.gguf"):
        result = run_cli("hash", "--identity", path)
        assert result.exit_code == 2
        assert result.stderr.count("\n") == 1
