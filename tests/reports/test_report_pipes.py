"""Standard input and output wherever a file may stand, and what is said where they make no sense."""

from __future__ import annotations

import io
from pathlib import Path

import pytest

from atlas_kit.formats.atlas import MemoryFile
from tests.conftest import SAMPLES

pytest.importorskip("cryptography")

MODEL = (SAMPLES / "gguf" / "tiny.gguf").read_bytes()


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("key").write_bytes(bytes(32))
    Path("new").write_bytes(bytes(range(32)))
    return tmp_path


def plain() -> bytes:
    memory = MemoryFile()
    memory.set("greeting", "hello")
    memory.set("other", "more")
    return memory.to_bytes()


def keys_of(data: bytes, **secret: object) -> list[str]:
    with MemoryFile.open(io.BytesIO(data).read(), **secret) as memory:
        return list(memory)


def test_what_is_changed_elsewhere_may_come_through_a_pipe(folder, run_cli):
    key, new = ["--key-file", "key"], ["--new-key-file", "new"]
    secret = run_cli("encrypt", "-", "-o", "-", *key, stdin=plain())
    assert secret.exit_code == 0, secret.stderr
    assert keys_of(secret.output, key=bytes(32)) == ["greeting", "other"]
    other = run_cli("rekey", "-", "-o", "-", *key, *new, stdin=secret.output)
    assert keys_of(other.output, key=bytes(range(32))) == ["greeting", "other"]
    back = run_cli("decrypt", "-", "-o", "-", "--key-file", "new", stdin=other.output)
    assert keys_of(back.output) == ["greeting", "other"]
    renamed = run_cli("rename", "-", "other", "another", "-o", "-", stdin=back.output)
    assert keys_of(renamed.output) == ["greeting", "another"]
    less = run_cli("rm", "-", "another", "-o", "-", stdin=renamed.output)
    assert keys_of(less.output) == ["greeting"]


def test_a_model_may_come_through_a_pipe(folder, run_cli):
    for line in (
        ["rm", "-", "general.name", "-o", "-"],
        ["rename", "-", "general.name", "general.x", "-o", "-"],
    ):
        ran = run_cli(*line, stdin=MODEL)
        assert ran.exit_code == 0, ran.stderr
        assert ran.output[:4] == b"GGUF"
        assert b"general.name" not in ran.output


@pytest.mark.parametrize(
    "line",
    ["encrypt - --key-file key", "decrypt -", "rekey -", "rename - greeting x", "rm - greeting", "set - greeting x",
     "append - greeting x", "recover -"],
)  # fmt: skip
def test_what_is_changed_in_place_is_a_file(folder, run_cli, line):
    ran = run_cli(*line.split(), stdin=plain())
    assert ran.exit_code == 2
    assert "standard input is not a file" in ran.stderr
    assert ran.output == b""


def test_a_plan_for_what_comes_through_a_pipe(folder, run_cli):
    assert "would remove greeting" in run_cli("rm", "-", "greeting", "-n", stdin=plain()).stdout
    assert "would rename" in run_cli("rename", "-", "greeting", "x", "-n", stdin=plain()).stdout


@pytest.mark.parametrize("command", ["inspect", "ls", "hash", "export", "validate"])
def test_nothing_that_comes_is_no_file_with_backups(folder, run_cli, command):
    ran = run_cli(command, "-", stdin=b"")
    assert ran.exit_code in (1, 2)
    said = ran.stdout + ran.stderr
    assert "nothing came through standard input" in said
    assert "recover" not in said


def test_shards_are_files(folder, run_cli):
    Path("m.gguf").write_bytes(MODEL)
    ran = run_cli("split", "m.gguf", "--max-tensors", "3", "-o", "-")
    assert ran.exit_code == 2
    assert "shards are files" in ran.stderr
    assert sorted(path.name for path in folder.iterdir()) == ["key", "m.gguf", "new"]


def test_a_full_device_is_named(folder, run_cli):
    if not Path("/dev/full").exists():
        pytest.skip("the system has no /dev/full")
    Path("m.atlas").write_bytes(plain())
    for line in (["convert", "m.atlas", "/dev/full", "--to", "json"], ["get", "m.atlas", "greeting", "-o", "/dev/full"],
                 ["merge", "m.atlas", "-", "-o", "/dev/full"]):  # fmt: skip
        ran = run_cli(*line, stdin=plain())
        assert ran.exit_code == 2
        assert "/dev/full: cannot write: the disk is full" in ran.stderr
