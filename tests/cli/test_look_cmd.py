"""``inspect``, ``validate``, ``repair`` and ``recover``."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_main_cmd import tool

from atlas_kit.formats.atlas import MemoryFile

pytest_plugins = ["cli_fixtures"]


def flip(path, offset, bit=1):
    data = bytearray(path.read_bytes())
    data[offset] ^= bit
    path.write_bytes(data)


# --- inspect -------------------------------------------------------------------------------------------


def test_overview_of_a_memory_file(files, run_cli, quiet):
    result = run_cli("inspect", files.v1)
    assert result.exit_code == 0
    assert quiet(result.stdout)
    facts = dict(line.split("  ", 1) for line in result.stdout.splitlines()[:9])
    assert facts["format"].strip() == ".atlas memory file, version 1"
    assert facts["entries"].strip() == "5"
    assert "ab" * 32 in result.stdout
    assert "2 text" in result.stdout
    assert "2023-11-14 22:13:20 UTC" in result.stdout


def test_overview_of_a_coded_file(files, run_cli, parse_json):
    text = run_cli("inspect", files.coded).stdout
    assert "of the payload" in text
    assert "1 zstd" in text
    facts = parse_json(run_cli("inspect", files.coded, "--json").stdout)
    assert facts["codecs"] == {"none": 13, "lz4": 2, "zlib": 1, "zstd": 1}
    assert facts["tensor_count"] == 11


def test_overview_lists_the_first_entries_only(tmp_path, run_cli):
    path = tmp_path / "many.atlas"
    with MemoryFile() as memory:
        for number in range(50):
            memory[f"k{number}"] = "x"
        memory.save(path)
    assert "... and 30 more (--entries)" in run_cli("inspect", path).stdout
    assert "k49" in run_cli("inspect", path, "--entries").stdout


def test_overview_of_a_model(files, run_cli, parse_json):
    result = run_cli("inspect", files.gguf)
    for words in ("GGUF model, version 3, little-endian", "llama", "tiny", "320", "2 F32"):
        assert words in result.stdout
    facts = parse_json(run_cli("inspect", files.gguf, "--json").stdout)
    assert facts["parameters"] == 320
    assert facts["tensor_types"] == {"F32": {"count": 2, "bytes": 1280}}
    assert facts["context_length"] == 128


@pytest.mark.parametrize("target", ["json", "safetensors", "npz"])
def test_overview_of_other_formats(files, run_cli, target):
    path = files.folder / f"a.{target}"
    run_cli("convert", files.v1, path)
    result = run_cli("inspect", path)
    assert result.exit_code == 0
    assert f"{target}, of an .atlas file of version 1" in result.stdout
    assert "greeting" in result.stdout


def test_keys_entries_tensors(files, run_cli, quiet):
    assert run_cli("inspect", files.v2, "--keys").stdout.splitlines()[0] == "greeting"
    tensors = run_cli("inspect", files.v2, "--tensors").stdout
    assert "weights" in tensors
    assert "greeting" not in tensors
    model = run_cli("inspect", files.gguf, "--keys")
    assert "tokenizer.ggml.tokens" in model.stdout
    assert '4 x ["<s>", "a", "\u00e9", "\\x1b[31m"]' in model.stdout
    assert quiet(model.stdout)
    assert "token_embd.weight" in run_cli("inspect", files.gguf, "--tensors").stdout


def test_stats(files, run_cli, parse_json):
    stats = {
        row["name"]: row
        for row in parse_json(run_cli("inspect", files.v2, "--stats", "--json").stdout)["stats"]
    }
    with MemoryFile.open(files.v2) as memory:
        weights = memory["weights"].array().astype(np.float64)
    for name, expected in (
        ("min", weights.min()),
        ("max", weights.max()),
        ("mean", weights.mean()),
        ("std", weights.std()),
    ):
        assert stats["weights"][name] == pytest.approx(expected, rel=1e-9)
    assert (stats["nan"]["nan"], stats["nan"]["inf"], stats["nan"]["max"]) == (1, 1, 1.5)
    assert stats["none"]["count"] == 0
    assert stats["none"]["mean"] is None
    assert stats["scalar"]["std"] == 0
    model = parse_json(run_cli("inspect", files.gguf, "--stats", "--json").stdout)["stats"]
    assert model[1]["mean"] == 1
    assert run_cli("inspect", files.gguf, "--stats").exit_code == 0


@pytest.mark.parametrize("key", ["greeting", "blob", "weights", "nan", "prefs", "bad\udcff\x1b[31m[bold]"])
def test_one_entry(files, run_cli, key, quiet, parse_json):
    result = run_cli("inspect", files.v2, "--entry", key)
    assert result.exit_code == 0
    assert quiet(result.stdout)
    assert (
        parse_json(run_cli("inspect", files.v2, "--entry", key, "--json").stdout)["entry"]["problem"] is None
    )


def test_one_damaged_entry(files, run_cli):
    flip(files.v1, files.v1.read_bytes().index(b"hello\nworld"))
    assert "damaged: " in run_cli("inspect", files.v1, "--entry", "greeting").stdout


@pytest.mark.parametrize("key", ["general.name", "tokenizer.ggml.tokens", "token_embd.weight"])
def test_one_part_of_a_model(files, run_cli, key, quiet):
    result = run_cli("inspect", files.gguf, "--entry", key)
    assert result.exit_code == 0
    assert quiet(result.stdout)


@pytest.mark.parametrize("which", ["v1", "v2", "gguf"])
def test_hex_names_every_byte_of_the_header(files, run_cli, parse_json, which, quiet):
    path = getattr(files, which)
    fields = parse_json(run_cli("inspect", path, "--hex", "--json").stdout)["fields"]
    assert fields[0]["offset"] == 0
    assert fields[0]["name"].endswith("magic")
    data = path.read_bytes()
    for row in fields:
        assert bytes.fromhex(row["bytes"]) == data[row["offset"] : row["offset"] + min(row["size"], 16)]
    assert any(row["meaning"] for row in fields)
    assert quiet(run_cli("inspect", path, "--hex").stdout)
    assert len(run_cli("inspect", path, "--hex", "--limit", "3").stdout.splitlines()) == 4


@pytest.mark.parametrize("which", ["v1", "v2", "coded", "gguf"])
def test_map_covers_the_file(files, run_cli, parse_json, which):
    path = getattr(files, which)
    regions = parse_json(run_cli("inspect", path, "--map", "--json").stdout)["regions"]
    position = 0
    for region in regions:
        assert region["offset"] == position
        position += region["size"]
    assert position == path.stat().st_size
    text = run_cli("inspect", path, "--map").stdout
    assert "one cell is " in text
    assert "100.0%" not in text


def test_bytes_of_damaged_files_can_be_seen(files, run_cli):
    files.gguf.write_bytes(files.gguf.read_bytes()[:300])
    files.v1.write_bytes(files.v1.read_bytes()[:200])
    for path in (files.gguf, files.v1):
        for option in ("--hex", "--map"):
            result = run_cli("inspect", path, option)
            assert result.exit_code in (0, 1)
            assert result.stdout
    assert "here it ends" in run_cli("inspect", files.gguf, "--hex").stdout
    partly = run_cli("inspect", files.gguf)
    assert partly.exit_code == 1
    assert "damaged: " in partly.stdout


def test_inspect_standard_input(files):
    for path in (files.v2, files.gguf):
        assert tool("inspect", "-", stdin=path.read_bytes()).returncode == 0
    assert tool("inspect", "-", "--hex", stdin=files.v1.read_bytes()).returncode == 2


@pytest.mark.parametrize("damaged", [False, True])
def test_what_comes_through_a_pipe_is_called_by_its_path(files, damaged):
    if damaged:
        flip(files.v2, 0)
    script = f"""cat "$1" | {sys.executable} -m atlas_kit inspect /dev/stdin; exec 3< <(cat "$1")
{sys.executable} -m atlas_kit validate /dev/fd/3 --json; {sys.executable} -m atlas_kit inspect - < "$1"; true"""
    done = subprocess.run(["bash", "-c", script, "-", files.v2], capture_output=True, text=True, check=True)
    said = done.stdout + done.stderr
    assert '"path": "/dev/fd/3"' in said
    for name in ("/dev/stdin", "-"):
        where = f"atlas-tool: {name}: " if damaged else f"file        {name}\n"
        assert where in said


def test_a_shard_that_comes_through_a_pipe_is_looked_at_alone():
    shard = Path("sample_data/gguf/tiny-split-00001-of-00002.gguf").resolve()
    done = tool("inspect", "/dev/stdin", "--json", stdin=shard.read_bytes())
    assert (done.returncode, done.stderr) == (0, b"")
    found = json.loads(done.stdout)
    assert (found["path"], found["shards"]) == ("/dev/stdin", [])


def test_inspect_an_encrypted_file_without_its_key(files):
    secret = {"ATLAS_PASSPHRASE": "p"}
    path = files.folder / "s.atlas"
    tool("convert", files.v1, path, "--to", "atlas-v3", **secret)
    done = tool("inspect", path)
    assert done.returncode == 0, done.stderr
    assert b"version 3, encrypted" in done.stdout
    assert b"passphrase" in done.stdout
    assert b"greeting" not in done.stdout
    assert tool("inspect", path, "--entries").returncode == 2
    assert b"greeting" in tool("inspect", path, **secret).stdout


def test_inspect_real_models(vocabularies, run_cli, quiet):
    for path in vocabularies:
        for options in ([], ["--keys"], ["--hex"], ["--map"]):
            result = run_cli("inspect", path, *options)
            assert result.exit_code == 0
            assert quiet(result.stdout)


# --- validate ------------------------------------------------------------------------------------------


def test_validate_good_files(files, run_cli, parse_json):
    result = run_cli("validate", files.v1, files.v2, files.coded, "--json")
    assert result.exit_code == 0, result.stdout
    reports = parse_json(result.stdout)
    assert [report["path"] for report in reports] == [str(files.v1), str(files.v2), str(files.coded)]
    assert all(report["ok"] is True for report in reports)
    severities = {finding["severity"] for report in reports for finding in report["findings"]}
    assert severities == {"note"}  # of the type 99 and the key that is not UTF-8
    assert "3 files, 0 with errors" in run_cli("validate", files.v1, files.v2, files.coded).stdout


def test_validate_json_shape(files, run_cli, parse_json):
    flip(files.v1, files.v1.read_bytes().index(b"hello\nworld"))
    flip(files.v1, files.v1.read_bytes().index(b"theme"))
    result = run_cli("validate", files.v1, "--json")
    assert result.exit_code == 1
    (report,) = parse_json(result.stdout)
    assert list(report) == ["path", "ok", "findings"]
    assert report["ok"] is False
    assert len(report["findings"]) >= 2  # all of them, not the first
    for finding in report["findings"]:
        assert {"code", "severity", "offset", "message", "hint"} <= set(finding)
        assert finding["severity"] in ("error", "warning", "note")
        assert finding["message"]
    assert {finding["key"] for finding in report["findings"]} >= {"greeting", "prefs"}


def test_validate_text(files, run_cli, quiet):
    flip(files.v1, files.v1.read_bytes().index(b"x\x1b]0;title"))
    result = run_cli("validate", files.v1, files.v2)
    assert f"{files.v1}: not ok" in result.stdout
    assert f"{files.v2}: ok" in result.stdout
    assert quiet(result.stdout)
    assert str(files.v2) not in run_cli("validate", "-q", files.v1, files.v2).stdout


def test_validate_folders_and_patterns(files, run_cli, parse_json):
    inner = files.folder / "in" / "ner"
    inner.mkdir(parents=True)
    (inner / "x.atlas").write_bytes(files.v1.read_bytes())
    (inner / "notes.txt").write_text("not looked at")
    paths = [r["path"] for r in parse_json(run_cli("validate", files.folder / "in", "--json").stdout)]
    assert paths == [str(inner / "x.atlas")]
    paths = [
        r["path"] for r in parse_json(run_cli("validate", f"{files.folder}/**/*.atlas", "--json").stdout)
    ]
    assert str(inner / "x.atlas") in paths
    assert str(files.v1) in paths
    for nothing in (f"{files.folder}/*.nope", str(files.folder / "in" / "ner" / "..")):
        (inner / "x.atlas").unlink(missing_ok=True)
        assert run_cli("validate", nothing).exit_code == 2


@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize(
    ("harm", "advice"),
    [
        (lambda data: bytes(64) + data[64:], "Rescue what is intact with: atlas-tool repair {} -o OUT"),
        (
            lambda data: data[:60],
            "Restore an earlier version, if there is a backup: atlas-tool recover {} --restore latest",
        ),
        (
            lambda data: data[:6],
            "Restore an earlier version, if there is a backup: atlas-tool recover {} --restore latest",
        ),
        (
            lambda data: b"",
            "Restore an earlier version, if there is a backup: atlas-tool recover {} --restore latest",
        ),
    ],
    ids=["header lost", "cut off in the header", "cut off at once", "empty"],
)
def test_every_command_names_the_same_remedy(files, run_cli, version, harm, advice):
    path = getattr(files, version)
    path.write_bytes(harm(path.read_bytes()))
    said = run_cli("validate", path).stdout
    assert f"      {advice.format(path)}\n" in said
    commands = [["convert", path, files.folder / "out.json"], ["ls", path]]
    if path.stat().st_size < 64:  # else there are entries left, which inspect shows: see test_report_inspect
        commands.append(["inspect", path])
    for command in commands:
        result = run_cli(*command)
        assert result.exit_code == 2
        assert result.stderr.endswith(f". {advice.format(path)}\n")


def test_what_nobody_knows_has_the_same_advice_everywhere(tmp_path, run_cli):
    path = tmp_path / "what.bin"
    for data, advice in ((bytes(200), "If the file is damaged, try: atlas-tool repair"),
                         (b"", "Restore an earlier version, if there is a backup: atlas-tool recover")):  # fmt: skip
        path.write_bytes(data)
        assert f"{advice} {path}" in run_cli("validate", path).stdout
        assert f"{advice} {path}" in run_cli("inspect", path).stderr


def test_validate_goes_on_where_a_folder_or_a_pipe_is_in_the_way(files, run_cli, parse_json, monkeypatch):
    os.mkfifo(files.folder / "pipe.atlas")
    walk = os.walk

    def denied(folder, onerror):
        yield from walk(folder, onerror=onerror)
        onerror(PermissionError(13, "no", str(files.folder / "closed")))

    monkeypatch.setattr(os, "walk", denied)
    result = run_cli("validate", files.folder, "--json")
    assert result.exit_code == 2
    reports = {Path(report["path"]).name: report for report in parse_json(result.stdout)}
    assert reports["one.atlas"]["ok"]
    assert not reports["closed"]["ok"]
    assert "pipe.atlas" not in reports


def test_validate_what_cannot_be_read(files, run_cli, parse_json):
    result = run_cli("validate", files.v1, files.folder / "missing.atlas", "--json")
    assert result.exit_code == 2
    reports = parse_json(result.stdout)
    assert reports[0]["ok"] is True
    assert reports[1]["ok"] is False
    assert reports[1]["findings"][0]["code"] == "no-such-file"


@pytest.mark.parametrize(
    "content", [b"", b"hello", b"ATLS", b"GGUF", b"GGUF\3\0\0\0" + b"\xff" * 16, bytes(500)]
)
@pytest.mark.parametrize("suffix", ["atlas", "gguf", "dat"])
def test_validate_rubbish(tmp_path, run_cli, content, suffix):
    path = tmp_path / f"x.{suffix}"
    path.write_bytes(content)
    result = run_cli("validate", path)
    assert result.exit_code == 1, result.stdout + result.stderr
    assert "not ok" in result.stdout
    assert "internal" not in result.stderr


@pytest.mark.parametrize("target", ["json", "safetensors", "npz"])
def test_validate_other_formats(files, run_cli, target):
    path = files.folder / f"a.{target}"
    run_cli("convert", files.v1, path)
    assert run_cli("validate", path).exit_code == 0
    path.write_bytes(path.read_bytes()[:-40])
    assert run_cli("validate", path).exit_code == 1


def test_validate_vocabularies_are_fine(vocabularies, run_cli, parse_json):
    reports = parse_json(run_cli("validate", *vocabularies, "--json").stdout)
    assert len(reports) == 5
    for report in reports:
        assert report["ok"]
        assert any(finding["severity"] == "note" for finding in report["findings"])


def test_validate_standard_input(files):
    assert tool("validate", "-", stdin=files.v2.read_bytes()).returncode == 0
    assert tool("validate", "-", stdin=files.v2.read_bytes()[:-9]).returncode == 1


def test_strict_minds_warnings(files, run_cli):
    files.v1.write_bytes(files.v1.read_bytes() + b"trailing")
    assert run_cli("validate", files.v1).exit_code == 0
    assert run_cli("validate", "--strict", files.v1).exit_code == 1


# --- repair --------------------------------------------------------------------------------------------


def test_repair_a_cut_file(files, run_cli, parse_json):
    whole = files.v1.read_bytes()
    files.v1.write_bytes(whole[:-20])
    before = files.v1.read_bytes()
    out = files.folder / "out.atlas"
    dry = run_cli("repair", files.v1, "--dry-run", "--json")
    assert dry.exit_code == 1
    assert not out.exists()
    result = run_cli("repair", files.v1, "-o", out, "--json")
    assert result.exit_code == 1
    assert parse_json(dry.stdout)["saved_count"] == parse_json(result.stdout)["saved_count"] == 4
    with MemoryFile.open(out) as memory:
        assert memory["blob"].data == bytes(range(256))
    assert files.v1.read_bytes() == before


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_repair_a_wrong_count(files, run_cli, which):
    path = getattr(files, which)
    flip(path, 12)
    out = files.folder / "out.atlas"
    assert run_cli("repair", path, "-o", out).exit_code == 1  # the header was damaged
    assert run_cli("repair", out, "-n").exit_code == 0
    assert run_cli("validate", out).exit_code == 0
    with MemoryFile.open(out) as memory:
        assert memory["blob"].data == bytes(range(256))


def test_repair_refusals(files, run_cli):
    before = files.v1.read_bytes()
    for arguments in ([files.v1], [files.v1, "-o", files.v1], [files.v1, "-o", files.v1, "--force"],
                      [files.v1, "-o", files.v2]):  # fmt: skip
        assert run_cli("repair", *arguments).exit_code == 2
    assert files.v1.read_bytes() == before


@pytest.mark.parametrize("output", ["-", "/dev/stdout", "/dev/fd/1", "fifo"])
@pytest.mark.parametrize("given", ["-", "/dev/stdin"])
def test_repair_to_standard_output(files, given, output):
    flip(files.v1, 300)
    before = after = ""
    if output == "fifo":
        output = os.fspath(files.folder / "fifo")
        os.mkfifo(output)
        before, after = f"cat {output} & ", f"> {output}; wait"
    script = f"{before}{sys.executable} -m atlas_kit repair {given} -o {output} {after}"
    done = subprocess.run(
        ["bash", "-c", script], input=files.v1.read_bytes(), capture_output=True, check=False
    )
    out = files.folder / "out.atlas"
    assert b"-> " not in done.stdout
    assert b"damaged" in done.stderr
    assert b"saved 4 entries, 1 piece was damaged" in done.stderr
    out.write_bytes(done.stdout)
    assert tool("validate", out).returncode == 0
    assert tool("get", "-", "greeting", stdin=done.stdout).stdout == b"hello\nworld\n"


def test_repair_into_a_redirected_file_and_as_json(files, parse_json):
    out = files.folder / "out.atlas"
    with open(out, "wb") as file:
        done = subprocess.run([sys.executable, "-m", "atlas_kit", "repair", files.v1, "-o", "/dev/stdout", "--json"],
                              stdout=file, stderr=subprocess.PIPE, check=False)  # fmt: skip
    assert done.returncode == 0
    assert parse_json(done.stderr.decode())["saved_count"] == 5
    assert tool("validate", out).returncode == 0
    done = tool("repair", files.v1, "-o", "-", "--dry-run")
    assert (done.stdout.splitlines()[-1], done.stderr) == (b"would save 5 entries", b"")


def test_other_products_are_alone_on_standard_output(files):
    for arguments in (["convert", files.v1, "/dev/stdout", "--to", "json"], ["compress", files.v1, "-o", "/dev/stdout"],
                      ["merge", files.v1, files.v2, "-o", "/dev/stdout", "--prefer", "first"],
                      ["get", files.v1, "blob", "-o", "/dev/stdout"]):  # fmt: skip
        done = tool(*arguments)
        assert (done.returncode, done.stderr) == (0, b"")
        assert b"-> " not in done.stdout
        plain = tool(*("-" if argument == "/dev/stdout" else argument for argument in arguments))
        assert len(done.stdout) == len(plain.stdout) > 100


def test_repair_a_model(files, run_cli):
    files.gguf.write_bytes(files.gguf.read_bytes()[:-300])
    out = files.folder / "out.gguf"
    result = run_cli("repair", files.gguf, "-o", out)
    assert result.exit_code == 1
    assert "output_norm.weight" in result.stdout
    assert run_cli("ls", out).exit_code == 0
    assert run_cli("repair", files.gguf, "--dry-run").exit_code == 1


def test_repair_an_encrypted_file(files):
    secret = {"ATLAS_PASSPHRASE": "p"}
    path, out = files.folder / "s.atlas", files.folder / "o.atlas"
    tool("convert", files.v1, path, "--to", "atlas-v3", **secret)
    path.write_bytes(path.read_bytes()[:-30])
    assert tool("repair", path, "-o", out).returncode == 2
    assert tool("repair", path, "-o", out, **secret).returncode in (0, 1)
    assert tool("get", out, "greeting", **secret).stdout == b"hello\nworld\n"


def test_long_keys_are_shortened_in_tables_only(files, run_cli, parse_json):
    key = "k" * 5000 + "-end"
    assert run_cli("set", files.v2, key, "v").exit_code == 0
    assert run_cli("set", files.gguf, key, "v", "--type", "str").exit_code == 0
    for path in (files.v2, files.gguf):
        for options in ("--entries", "--hex", "--map"):
            result = run_cli("inspect", path, options)
            assert result.exit_code == 0
            assert max(map(len, result.stdout.splitlines())) < 400
        assert "-end" in run_cli("inspect", path, "--entries").stdout
        assert key in run_cli("inspect", path, "--keys").stdout or path == files.gguf
        assert key in run_cli("inspect", path, "--entries", "--json").stdout
        missing = run_cli("get", path, f"no {key}")
        assert missing.exit_code == 2
        assert len(missing.stderr) < 2200


# --- recover -------------------------------------------------------------------------------------------


@pytest.fixture
def history(files, run_cli):
    """Return a file with a previous version, an older dated one, and a damaged one."""
    old = files.v1.read_bytes()
    run_cli("set", files.v1, "greeting", "second", "--backup")
    (files.folder / "one_1500000000.atlas.bak").write_bytes(old)
    (files.folder / "one_20200101T000000.atlas.bak").write_bytes(old[:-5])
    (files.folder / "someone_1.atlas.bak").write_bytes(old)
    os.utime(files.folder / "one.atlas.bak", (1_750_000_000, 1_750_000_000))
    return old


def test_recover_lists(files, history, run_cli, parse_json):
    result = run_cli("recover", files.v1, "--json")
    assert result.exit_code == 0
    names = [os.path.basename(b["path"]) for b in parse_json(result.stdout)["backups"]]
    assert names == ["one.atlas.bak", "one_20200101T000000.atlas.bak", "one_1500000000.atlas.bak"]
    assert [b["ok"] for b in parse_json(result.stdout)["backups"]] == [True, False, True]
    assert "2020-01-01 00:00:00 UTC" in run_cli("recover", files.v1).stdout


@pytest.mark.parametrize("which", ["latest", "1", "3", "one_1500000000.atlas.bak"])
def test_recover_restores_and_keeps_what_was_there(files, history, run_cli, parse_json, which):
    now = files.v1.read_bytes()
    result = run_cli("recover", files.v1, "--restore", which, "--json")
    assert result.exit_code == 0
    assert files.v1.read_bytes() == history
    with open(parse_json(result.stdout)["kept"], "rb") as kept:
        assert kept.read() == now
    assert (files.folder / "one.atlas.bak").read_bytes() == history


def test_recover_refuses_damaged_backups(files, history, run_cli):
    now = files.v1.read_bytes()
    assert run_cli("recover", files.v1, "--restore", "2").exit_code == 2
    assert files.v1.read_bytes() == now
    assert run_cli("recover", files.v1, "--restore", "2", "--force").exit_code == 0
    assert run_cli("recover", files.v1, "--restore", "99").exit_code == 2


def test_recover_to_another_name(files, history, run_cli):
    now = files.v1.read_bytes()
    out = files.folder / "old.atlas"
    assert run_cli("recover", files.v1, "--restore", "latest", "-o", out).exit_code == 0
    assert out.read_bytes() == history
    assert files.v1.read_bytes() == now
    assert run_cli("recover", files.v1, "--restore", "latest", "-o", out).exit_code == 2
    assert run_cli("recover", files.v1, "-o", out).exit_code == 2


def test_recover_a_file_that_is_gone(files, history, run_cli):
    files.v1.unlink()
    assert run_cli("recover", files.v1, "--restore", "latest").exit_code == 0
    assert files.v1.read_bytes() == history
    assert run_cli("recover", files.folder / "nothing.atlas").exit_code == 1
    assert run_cli("recover", files.folder / "no" / "folder.atlas").exit_code == 2


@pytest.fixture
def torn(files):
    """Return a model whose header was half overwritten when its editor died, and its bytes before."""
    from atlas_kit.formats.gguf.journal import Journal, journal_path

    old = files.gguf.read_bytes()
    head = old[:256]
    new = head[:32] + b"half of a new header and the other half" + head[71:]
    journal_path(files.gguf).write_bytes(Journal(head, new).encoded())
    files.gguf.write_bytes(new[:52] + old[52:])
    return old


def test_recover_offers_the_journal_of_an_interrupted_edit(files, torn, run_cli, parse_json):
    broken = files.gguf.read_bytes()
    result = run_cli("inspect", files.gguf)
    assert "--restore journal" in result.stdout + result.stderr
    assert parse_json(run_cli("recover", files.gguf, "--json").stdout)["interrupted"] is True
    listed = run_cli("recover", files.gguf)
    assert listed.exit_code == 0
    assert "--restore journal" in listed.stdout
    assert files.gguf.read_bytes() == broken
    assert run_cli("recover", files.gguf, "--restore", "journal", "-o", "x.gguf").exit_code == 2
    assert run_cli("recover", files.gguf, "--restore", "journal").exit_code == 0
    assert files.gguf.read_bytes() == torn
    assert sorted(p.name for p in files.folder.iterdir() if p.name.startswith(".")) == []
    again = run_cli("recover", files.gguf, "--restore", "journal")
    assert again.exit_code == 2
    assert "no edit of this file was interrupted" in again.stderr
    assert run_cli("recover", files.gguf).exit_code == 1


def test_recover_knows_backups_of_models(files, run_cli, parse_json):
    before = files.gguf.read_bytes()
    assert run_cli("set", files.gguf, "general.name", "x" * 5000, "--backup").exit_code == 0
    listed = parse_json(run_cli("recover", files.gguf, "--json").stdout)["backups"]
    assert [Path(backup["path"]).name for backup in listed] == ["model.gguf.bak"]
    changed = files.gguf.read_bytes()
    restored = parse_json(run_cli("recover", files.gguf, "--restore", "latest", "--json").stdout)
    assert files.gguf.read_bytes() == before
    assert Path(restored["kept"]).read_bytes() == changed
    assert re.fullmatch(r"model_\d+\.gguf\.bak", Path(restored["kept"]).name)
    assert len(parse_json(run_cli("recover", files.gguf, "--json").stdout)["backups"]) == 2


def test_a_text_with_the_name_of_a_model(run_cli, tmp_path):
    path = tmp_path / "x.gguf"
    path.write_text("plain text")
    done = run_cli("inspect", path)
    assert done.exit_code == 2
    assert "not a GGUF file: it does not start with GGUF" in done.stderr
