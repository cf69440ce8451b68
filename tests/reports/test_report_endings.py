"""What a command writes fits the ending of the name that it is given, or nothing is written.

Swept: every command that writes, with names of every format. A file is either what its name says or is not there.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.detect import by_name, detect
from tests.conftest import SAMPLES
from tests.reports.command_table import MODELS, READ_ONLY, SERVES, WRITING, options_of

pytest.importorskip("cryptography")

ENDINGS = [".atlas", ".gguf", ".json", ".safetensors", ".npz", ".npy", ".md", ".sqlite", ".html", ".pdf"]
FITTING = {"atlas": {".atlas"}, "gguf": {".gguf"}}

#: From the output: what writes a memory file there.
MEMORIES = {
    "convert": lambda out: ["convert", "m.atlas", out, "--to", "atlas-v2"],
    "convert-v3": lambda out: ["convert", "m.atlas", out, "--to", "atlas-v3", "--key-file", "key"],
    "repair": lambda out: ["repair", "cut.atlas", "-o", out],
    "repair-to": lambda out: ["repair", "m.atlas", "-o", out, "--to", "atlas-v1"],
    "compress": lambda out: ["compress", "m.atlas", "-o", out],
    "merge": lambda out: ["merge", "m.atlas", "other.atlas", "-o", out],
    "set": lambda out: ["set", out, "key", "value", "--new"],
    "append": lambda out: ["append", out, "key", "value", "--new"],
    "import": lambda out: ["import", out, "chat.jsonl", "--new"],
    "rename": lambda out: ["rename", "m.atlas", "greeting", "welcome", "-o", out],
    "rm": lambda out: ["rm", "m.atlas", "greeting", "-o", out],
    "recover": lambda out: ["recover", "m.atlas", "--restore", "latest", "-o", out],
    "encrypt": lambda out: ["encrypt", "m.atlas", "-o", out, "--key-file", "key"],
    "decrypt": lambda out: ["decrypt", "s.atlas", "-o", out, "--key-file", "key"],
    "rekey": lambda out: ["rekey", "s.atlas", "-o", out, "--key-file", "key", "--new-key-file", "new"],
    "join": lambda out: ["join", "parts.aa", "parts.ab", "-o", out],
}  # fmt: skip
#: ... and a model.
MODEL = {
    "convert": lambda out: ["convert", "model.gguf", out, "--to", "atlas-gguf"],
    "convert-order": lambda out: ["convert", "model.gguf", out, "--to", "gguf", "--byte-order", "big"],
    "repair": lambda out: ["repair", "cut.gguf", "-o", out],
    "compress": lambda out: ["compress", "model.gguf", "-o", out, "--quantize", "q8_0"],
    "rename": lambda out: ["rename", "model.gguf", "general.name", "general.title", "-o", out],
    "rm": lambda out: ["rm", "model.gguf", "general.name", "-o", out],
    "join": lambda out: ["join", "shard-00001-of-00002.gguf", "-o", out],
}
#: What ``export``, ``convert`` and ``get`` write under names of other formats.
OTHERS = {
    "export": (lambda out: ["export", "m.atlas", "-o", out, "--to", "markdown"], {".md"}),
    "export-sqlite": (lambda out: ["export", "m.atlas", "-o", out, "--to", "sqlite"], {".sqlite"}),
    "convert-json": (lambda out: ["convert", "m.atlas", out, "--to", "json"], {".json"}),
    "convert-npz": (lambda out: ["convert", "model.gguf", out, "--to", "npz"], {".npz"}),
    "diff": (lambda out: ["diff", "m.atlas", "other.atlas", "--html", out], {".html"}),
    "diff-models": (lambda out: ["diff", "model.gguf", "model.gguf", "--html", out], {".html"}),
    "get-npy": (lambda out: ["get", "m.atlas", "tensor", "--npy", "-o", out], {".npy"}),
    "get-tensor": (lambda out: ["get", "m.atlas", "tensor", "-o", out], set()),
}


@pytest.fixture
def folder(tmp_path, monkeypatch, run_cli):
    memory = MemoryFile()
    memory.set("greeting", "User: hello", type=2)
    memory.set("tensor", bytes(16), dtype="float32", shape=(4,))
    data = memory.to_bytes()
    for name in ("m.atlas", "m.atlas.bak", "other.atlas"):
        (tmp_path / name).write_bytes(data)
    (tmp_path / "cut.atlas").write_bytes((SAMPLES / "broken" / "truncated.atlas").read_bytes())
    (tmp_path / "parts.aa").write_bytes(data[:100])
    (tmp_path / "parts.ab").write_bytes(data[100:])
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "new").write_bytes(bytes(range(32)))
    secret = MemoryFile(version=3, key=bytes(32))
    secret.set("hidden", "x")
    secret.save(tmp_path / "s.atlas")
    (tmp_path / "chat.jsonl").write_text('{"key": "new", "text": "x"}\n')
    shutil.copy(SAMPLES / "gguf" / "tiny.gguf", tmp_path / "model.gguf")
    model = (tmp_path / "model.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(model[:-40])
    monkeypatch.chdir(tmp_path)
    half = json.loads(run_cli("inspect", "model.gguf", "--json").stdout)["tensor_count"] // 2 + 1
    assert run_cli("split", "model.gguf", "--max-tensors", half, "-o", "shard").exit_code == 0
    return tmp_path


def test_every_command_that_writes_is_swept():
    here = {name.split("-")[0] for table in (MEMORIES, MODEL, OTHERS) for name in table}
    by_session = {"run", "learn", "forget"}  # the file of --memory-file; tests/persistence/test_place.py
    assert here | by_session >= {*WRITING, *MODELS} - {"split"}  # whose names are its own
    reading = {name for name in [*READ_ONLY, *SERVES] if "--output" in options_of(name)}
    assert reading <= here


def _swept(run_cli, arguments, fitting: set[str], folder: Path) -> None:
    before = {path.name for path in folder.iterdir()}
    for ending in ENDINGS:
        out = folder / f"out{ending}"
        ran = run_cli(*arguments(out.name))
        if ending in fitting:
            assert ran.exit_code in (0, 1), ran.stderr
            assert out.exists()
            assert by_name(out) is None or detect(out) == by_name(out)
        else:
            assert ran.exit_code == 2, (ending, ran.stderr)
            assert f"ends in {ending}, and " in ran.stderr or "--npy makes it an array" in ran.stderr
            assert "atlas-tool convert" in ran.stderr or "--npy" in ran.stderr
            assert len(ran.stderr.splitlines()) == 1
            assert {path.name for path in folder.iterdir()} == before
        for path in folder.glob("out*"):
            path.unlink()
    ran = run_cli(*arguments("out"))
    assert ran.exit_code in (0, 1), ran.stderr  # a name without an ending promises nothing


@pytest.mark.parametrize("command", MEMORIES)
def test_memory_files(folder, run_cli, command):
    _swept(run_cli, MEMORIES[command], {".atlas"}, folder)


@pytest.mark.parametrize("command", MODEL)
def test_models(folder, run_cli, command):
    _swept(run_cli, MODEL[command], {".gguf"}, folder)


@pytest.mark.parametrize("command", OTHERS)
def test_other_formats(folder, run_cli, command):
    arguments, fitting = OTHERS[command]
    _swept(run_cli, arguments, fitting, folder)


def test_a_plan_is_refused_as_the_deed_is(folder, run_cli):
    for line in (["repair", "cut.atlas", "-o", "x.json", "-n"],
                 ["rename", "m.atlas", "greeting", "x", "-o", "x.npz", "-n"],
                 ["rm", "m.atlas", "greeting", "-o", "x.gguf", "-n"],
                 ["join", "parts.aa", "parts.ab", "-o", "x.json", "-n"]):  # fmt: skip
        assert run_cli(*line).exit_code == 2


def test_what_is_changed_in_place_keeps_its_name(folder, run_cli):
    (folder / "m.atlas").rename(folder / "odd.json")
    assert run_cli("set", "odd.json", "greeting", "good day").exit_code == 0
    assert detect(folder / "odd.json") == "atlas"
