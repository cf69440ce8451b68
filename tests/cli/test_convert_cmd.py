"""``convert``: every target and back, byte for byte where that is promised."""

from __future__ import annotations

import io
import json

import numpy as np
import pytest
from test_main_cmd import tool

from atlas_kit.formats.atlas import MemoryFile

pytest_plugins = ["cli_fixtures"]

SECRET = {"ATLAS_PASSPHRASE": "pass"}


def convert(run_cli, source, target, *options):
    result = run_cli("convert", source, target, *options)
    assert result.exit_code == 0, result.stderr
    return target


@pytest.mark.parametrize("which", ["v1", "v2", "coded"])
def test_json_and_back_gives_the_same_bytes(files, run_cli, which):
    source = getattr(files, which)
    document = convert(run_cli, source, files.folder / "d.json")
    back = convert(run_cli, document, files.folder / "back.atlas")
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("through", ["safetensors", "npz"])
@pytest.mark.parametrize("which", ["v1", "v2"])
def test_carriers_and_back_give_the_same_bytes(files, run_cli, which, through):
    source = getattr(files, which)
    carrier = convert(run_cli, source, files.folder / f"c.{through}")
    back = convert(run_cli, carrier, files.folder / "back.atlas")
    assert back.read_bytes() == source.read_bytes()


@pytest.mark.parametrize("through", ["safetensors", "npz"])
def test_carriers_keep_codecs(files, run_cli, through):
    carrier = convert(run_cli, files.coded, files.folder / f"c.{through}")
    back = convert(run_cli, carrier, files.folder / "back.atlas")
    assert run_cli("diff", "--strict", files.coded, back).exit_code == 0
    with MemoryFile.open(back) as memory:
        assert memory["chat"].codec == "lz4"
        assert memory["grid-zstd"].filter == "shuffle"


def test_json_is_readable(files, run_cli):
    document = json.loads(convert(run_cli, files.v2, files.folder / "d.json").read_text())
    entries = {entry["key"]: entry for entry in document["entries"]}
    assert entries["greeting"]["text"] == "hello\nworld\n"
    assert entries["prefs"]["json"]["size"] == [1, 2.5, None]
    assert entries["blob"]["base64"]
    assert entries["half"]["values"][0][0] == pytest.approx(
        float(str(np.float16(entries["half"]["values"][0][0])))
    )
    assert entries["brain"]["dtype"] == "bfloat16"
    assert "values" in entries["brain"]
    assert "base64" in entries["nan"]  # JSON has no NaN
    assert entries["ints"]["values"] == [[-1, 2], [3, 2**40]]


def test_edited_json(files, run_cli):
    path = convert(run_cli, files.coded, files.folder / "d.json")
    document = json.loads(path.read_text())
    by_key = {entry["key"]: entry for entry in document["entries"]}
    by_key["chat"]["text"] = "short now " * 100
    by_key["prefs"]["json"]["theme"] = "light"
    by_key["half"]["values"] = [[1.5, -2.0]]
    del by_key["half"]["shape"]
    document["entries"].append({"key": "new", "text": "made by hand"})
    document["entries"].remove(by_key["blob"])
    path.write_text(json.dumps(document, indent=4))
    with MemoryFile.open(convert(run_cli, path, files.folder / "e.atlas")) as memory:
        assert memory["chat"].text == "short now " * 100
        assert memory["chat"].codec == "lz4"
        assert memory["prefs"].data.startswith(b'{"theme": "light"')
        assert memory["half"].array().tolist() == [[1.5, -2.0]]
        assert memory["new"].text == "made by hand"
        assert "blob" not in memory


@pytest.mark.parametrize(
    "document",
    ["[]", "{}", '{"entries": 5}', '{"entries": [5]}', '{"entries": [{}]}', '{"entries": [{"key": "a"}]}',
     '{"entries": [{"key": "a", "text": 5}]}', '{"entries": [{"key": "a", "text": "x", "base64": "eA=="}]}',
     '{"entries": [{"key": "a", "base64": "?"}]}', '{"entries": [{"key": "", "text": "x"}]}',
     '{"entries": [{"key": "a", "text": "x"}, {"key": "a", "text": "y"}]}',
     '{"entries": [{"key": "a", "text": "x", "type": "odd"}]}',
     '{"entries": [{"key": "a", "text": "x", "type": -1}]}',
     '{"entries": [{"key": "a", "text": "x", "timestamp": 1.5}]}',
     '{"entries": [{"key": "a", "text": "x", "codec": "rar"}]}',
     '{"entries": [{"key": "a", "text": "x", "codec": "zstd", "level": 99}]}',
     '{"entries": [{"key": "a", "text": "x", "codec": "zstd", "level": "high"}]}',
     '{"entries": [{"key": "a", "text": "x", "codec": "unknown-77"}]}',
     '{"entries": [{"key": "a", "values": [[1], [2, 3]], "dtype": "float32"}]}',
     '{"entries": [{"key": "a", "values": ["x"], "dtype": "int8"}]}',
     '{"entries": [{"key": "a", "values": [300], "dtype": "int8"}]}',
     '{"entries": [{"key": "a", "values": [1], "dtype": "q8_0"}]}',
     '{"entries": [{"key": "a", "base64": "eA==", "dtype": "float32", "shape": [1]}]}',
     '{"entries": [{"key": "a", "base64": "eA==", "dtype": "float32", "shape": "x"}]}',
     '{"entries": [{"key": "a", "stored_base64": "eA==", "codec": "unknown-9", "size": -4}]}',
     '{"entries": [], "version": 9}', '{"entries": [], "model_hash": "zz"}',
     '{"entries": [], "created": true}',
     '{"entries": [], "format": "other"}', '{"entries": [{"key": "a", "text": NaN}]}', '{"entries": [', "{",
     '{"entries": [{"key": "a", "json": [1], "json_style": "odd"}]}'],
)  # fmt: skip
def test_bad_documents(document, run_cli, tmp_path):
    path = tmp_path / "d.json"
    path.write_text(document)
    result = run_cli("convert", path, tmp_path / "out.atlas")
    assert result.exit_code == 2, result.stdout
    assert result.stderr.count("\n") == 1
    assert "internal" not in result.stderr
    assert not (tmp_path / "out.atlas").exists()


def test_deep_documents_end_in_a_sentence(run_cli, tmp_path):
    path = tmp_path / "d.json"
    path.write_text('{"entries":' + "[" * 100_000)
    result = run_cli("convert", path, tmp_path / "out.atlas")
    assert result.exit_code == 2
    assert "nested too deeply" in result.stderr


def test_versions(files, run_cli):
    v2 = convert(run_cli, files.v1, files.folder / "a.atlas")
    with MemoryFile.open(v2) as memory:
        assert memory.version == 2
    v1 = convert(run_cli, v2, files.folder / "b.atlas", "--to", "atlas-v1")
    assert v1.read_bytes() == files.v1.read_bytes()


def test_version_1_says_what_it_cannot_hold(files, run_cli, parse_json):
    result = run_cli("convert", files.v2, files.folder / "x.atlas", "--to", "atlas-v1", "--json")
    assert "version 1 has no tensors" in parse_json(result.stdout)["notes"][0]
    with MemoryFile.open(files.folder / "x.atlas") as memory:
        assert np.load(io.BytesIO(memory["weights"].data)).shape == (8, 64)


def test_version_3(files):
    assert tool("convert", files.v2, files.folder / "s.atlas", "--to", "atlas-v3").returncode == 2
    done = tool("convert", files.v2, files.folder / "s.atlas", "--to", "atlas-v3", **SECRET)
    assert done.returncode == 0, done.stderr
    assert b"greeting" not in (files.folder / "s.atlas").read_bytes()
    call = "convert", files.folder / "s.atlas", files.folder / "p.atlas"
    assert tool(*call, "--decrypt", **SECRET).returncode == 0
    assert (files.folder / "p.atlas").read_bytes() == files.v2.read_bytes()
    (files.folder / "key").write_bytes(bytes(range(32)))
    done = tool(
        "convert", files.folder / "s.atlas", files.folder / "k.atlas", "--to", "atlas-v3",
        "--new-key-file", files.folder / "key", **SECRET,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (
        tool("get", files.folder / "k.atlas", "greeting", "--key-file", files.folder / "key").stdout
        == b"hello\nworld\n"
    )
    assert tool("get", files.folder / "k.atlas", "greeting", **SECRET).returncode == 2


def test_codec_options(files, run_cli):
    target = convert(run_cli, files.coded, files.folder / "n.atlas", "--codec", "none")
    with MemoryFile.open(target) as memory:
        assert {entry.codec for entry in memory.values()} == {"none"}
    assert run_cli("diff", "--strict", files.coded, target).exit_code == 0
    assert run_cli("convert", files.v1, files.folder / "x.json", "--codec", "lz4").exit_code == 2
    assert (
        run_cli("convert", files.v1, files.folder / "x.atlas", "--to", "atlas-v1", "--codec", "lz4").exit_code
        == 2
    )


def test_overwriting(files, run_cli):
    target = files.folder / "t.json"
    target.write_text("precious")
    result = run_cli("convert", files.v1, target)
    assert result.exit_code == 2
    assert "--force" in result.stderr
    assert target.read_text() == "precious"
    assert run_cli("convert", files.v1, target, "--force").exit_code == 0
    before = files.v1.read_bytes()
    link = files.folder / "link.atlas"
    link.symlink_to(files.v1)
    for output in (files.v1, link):
        assert run_cli("convert", files.v1, output, "--force").exit_code == 2
    assert files.v1.read_bytes() == before


def test_standard_input_and_output(files):
    done = tool("convert", "-", "-", "--to", "json", stdin=files.v1.read_bytes())
    assert done.returncode == 0
    assert json.loads(done.stdout)["version"] == 1
    back = tool("convert", "-", "-", "--to", "atlas-v1", stdin=done.stdout)
    assert back.stdout == files.v1.read_bytes()
    assert tool("convert", files.v1, "-").returncode == 2


def test_unknown_suffix(files, run_cli):
    result = run_cli("convert", files.v1, files.folder / "x.what")
    assert result.exit_code == 2
    assert "--to" in result.stderr


def test_model_to_native_and_back(files, run_cli):
    native = convert(run_cli, files.gguf, files.folder / "n.gguf", "--to", "atlas-gguf")
    assert "atlas.version" in run_cli("ls", native).stdout
    stock = convert(run_cli, native, files.folder / "s.gguf")
    assert stock.read_bytes() == files.gguf.read_bytes()
    for arguments in ((files.gguf, files.folder / "x.gguf"), (files.gguf, files.folder / "x.atlas"),
                      (files.v1, files.folder / "x.gguf")):  # fmt: skip
        assert run_cli("convert", *arguments).exit_code == 2


@pytest.mark.parametrize(
    "options",
    [["--auto"], ["--window-size", "64"], ["--no-use-muon"], ["--auto", "--blend-ratio", "0.5"]],
    ids=lambda options: options[-1],
)
def test_settings_make_a_model_native(run_cli, samples, tmp_path, options):
    model = samples / "gguf" / "tiny.gguf"
    native = convert(run_cli, model, tmp_path / "n.gguf", *options)
    assert "atlas.memory.window_size" in run_cli("ls", native).stdout
    assert convert(run_cli, native, tmp_path / "s.gguf").read_bytes() == model.read_bytes()


def test_a_memory_goes_beside_a_native_model(run_cli, samples, tmp_path, parse_json):
    from atlas_kit.memory import Memory
    from atlas_kit.persistence.snapshot import save_memory
    from atlas_kit.settings.atlas_settings import AtlasSettings

    model, memory = samples / "gguf" / "tiny.gguf", tmp_path / "session.atlas"
    learner = Memory(AtlasSettings(window_size=16).memory_config(32))
    identity = run_cli("hash", "--identity", model).stdout.split()[0]
    save_memory(memory, learner, learner.init(), model_hash=identity)
    result = run_cli("convert", model, tmp_path / "n.gguf", "--memory", memory, "--json")
    assert result.exit_code == 0, result.stderr
    assert parse_json(result.stdout)["memory"] == str(tmp_path / "n.atlas")
    assert (tmp_path / "n.atlas").read_bytes() == memory.read_bytes()


def test_a_memory_of_nobody_is_refused(run_cli, samples, tmp_path):
    model, memory = samples / "gguf" / "tiny.gguf", samples / "atlas" / "learned.atlas"
    result = run_cli("convert", model, tmp_path / "n.gguf", "--memory", memory)
    assert result.exit_code == 2
    assert "does not say whose it is" in result.stderr
    assert list(tmp_path.glob("n.*")) == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--auto", "--config", "x.json"], "give one of them"),
        (["--window-size", "0", "--learning-rate", "0"], "no memory"),
        (["--config", "none.json"], "no such file"),
        (["--to", "gguf", "--auto"], "no settings of a memory"),
        (["--to", "json", "--auto"], "converts to atlas-gguf"),
    ],
)
def test_settings_that_cannot_be(run_cli, samples, tmp_path, options, words):
    result = run_cli("convert", samples / "gguf" / "tiny.gguf", tmp_path / "n.gguf", *options)
    assert result.exit_code == 2
    assert words in result.stderr
    assert result.stderr.count("\n") == 1
    assert list(tmp_path.glob("n.*")) == []


@pytest.mark.parametrize("name", ["empty", "llama-7b_memory", "types_and_bytes", "thousand"])
def test_files_of_the_c_library(c_library_files, tmp_path, run_cli, name):
    source = c_library_files / f"{name}.atlas"
    for through in ("json", "safetensors", "npz"):
        middle = convert(run_cli, source, tmp_path / f"m.{through}")
        back = convert(run_cli, middle, tmp_path / f"{through}.atlas")
        assert back.read_bytes() == source.read_bytes()
    v2 = convert(run_cli, source, tmp_path / "v2.atlas")
    assert convert(run_cli, v2, tmp_path / "v1.atlas", "--to", "atlas-v1").read_bytes() == source.read_bytes()


def test_bytes_behind_the_last_entry_are_not_dropped_silently(run_cli, samples, tmp_path):
    path = samples / "atlas" / "llama-7b_memory.atlas"
    path.write_bytes(path.read_bytes() + b"rest")
    done = run_cli("convert", path, tmp_path / "out.json")
    assert done.exit_code == 0
    assert b"4 bytes follow the last entry; they were not taken over" in done.output
