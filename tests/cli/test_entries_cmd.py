"""``ls``, ``get``, ``set`` and ``rm``."""

from __future__ import annotations

import ast
import io
import json
import os

import numpy as np
import pytest
from test_main_cmd import tool

from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile, edit_metadata

pytest_plugins = ["cli_fixtures"]

ODD = "bad\udcff\x1b[31m[bold]"


def test_ls_lists_keys_in_order(files, run_cli, quiet):
    assert run_cli("ls", files.v1, "no*such").exit_code == 1
    assert run_cli("ls", files.v1, "no*such", "-0").exit_code == 1
    assert run_cli("ls", files.gguf, "no*such", "general.*").exit_code == 0
    result = run_cli("ls", files.v1)
    assert result.stdout == "greeting\nprefs\nblob\ncaf\u00e9/\U0001f9e0\nbad\\xff\\x1b[31m[bold]\n"
    assert quiet(result.stdout)


def test_ls_null_gives_exact_bytes(files):
    done = tool("ls", "-0", files.v1)
    assert done.stdout.split(b"\0")[:-1][-1] == b"bad\xff\x1b[31m[bold]"


@pytest.mark.parametrize(
    ("patterns", "keys"), [(["g*"], ["greeting"]), (["blob", "pre?s"], ["prefs", "blob"]), (["nothing*"], [])]
)
def test_ls_patterns(files, run_cli, patterns, keys):
    assert run_cli("ls", files.v1, *patterns).stdout.split() == keys


def test_ls_long(files, run_cli):
    lines = run_cli("ls", "-l", files.coded).stdout.splitlines()
    assert lines[0].split() == ["type", "size", "stored", "codec", "time", "tensor", "key"]
    weights = next(line for line in lines if line.endswith("weights"))
    assert "float32 8 x 64" in weights
    assert any("lz4+shuffle" in line for line in lines)
    assert any(line.startswith("type 99") for line in lines)


def test_ls_json(files, run_cli, parse_json):
    rows = parse_json(run_cli("ls", files.v2, "--json").stdout)
    by_key = {row["key"]: row for row in rows}
    assert by_key["weights"]["dtype"] == "float32"
    assert by_key["weights"]["shape"] == [8, 64]
    assert by_key["blob"]["type"] == 99
    assert by_key["blob"]["flags"] == 7
    odd = by_key["bad\\xff\\x1b[31m[bold]"]
    assert bytes.fromhex(odd["key_hex"]) == ODD.encode("utf-8", "surrogateescape")


def test_ls_of_a_model(files, run_cli, parse_json):
    names = run_cli("ls", files.gguf).stdout.split("\n")
    assert "general.name" in names
    assert "token_embd.weight" in names
    kinds = {row["kind"] for row in parse_json(run_cli("ls", files.gguf, "--json").stdout)}
    assert kinds == {"metadata", "tensor"}
    assert "F32   4 x 64" in run_cli("ls", "-l", files.gguf).stdout


def test_ls_reads_standard_input(files):
    assert tool("ls", "-", stdin=files.v1.read_bytes()).stdout.startswith(b"greeting\n")


# --- get -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["v1", "v2", "coded"])
def test_get_gives_exact_bytes(files, which):
    assert tool("get", getattr(files, which), "blob").stdout == bytes(range(256))


@pytest.mark.parametrize(("given", "printed"), [("-inf", "-Infinity"), ("nan", "NaN"), ("1.5", "1.5")])
def test_get_prints_numbers_as_they_can_be_set(samples, run_cli, given, printed):
    model = samples / "gguf" / "tiny.gguf"
    assert run_cli("set", model, "tiny.x", "--type", "f32", "--", given).exit_code == 0
    assert run_cli("get", model, "tiny.x").stdout == printed
    assert run_cli("set", model, "tiny.x", "--", printed).exit_code == 0


def test_get_to_a_file_never_overwrites_silently(files, run_cli):
    out = files.folder / "out.bin"
    assert run_cli("get", files.v1, "blob", "-o", out).exit_code == 0
    assert out.read_bytes() == bytes(range(256))
    again = run_cli("get", files.v1, "greeting", "-o", out)
    assert again.exit_code == 2
    assert "exists already" in again.stderr
    assert out.read_bytes() == bytes(range(256))
    assert run_cli("get", files.v1, "greeting", "-o", out, "--force").exit_code == 0
    assert out.read_bytes() == b"hello\nworld\n"


def test_get_never_overwrites_its_input(files, run_cli):
    before = files.v1.read_bytes()
    assert run_cli("get", files.v1, "blob", "-o", files.v1, "--force").exit_code == 2
    assert files.v1.read_bytes() == before


def test_get_npy(files):
    array = np.load(io.BytesIO(tool("get", files.v2, "weights", "--npy").stdout), allow_pickle=False)
    with MemoryFile.open(files.v2) as memory:
        assert np.array_equal(array, memory["weights"].array())
    done = tool("get", files.v2, "blob", "--npy")
    assert done.returncode == 2
    assert b"not a tensor" in done.stderr


def test_get_json(files, run_cli, parse_json):
    assert parse_json(run_cli("get", files.v1, "prefs", "--json").stdout)["json"]["theme"] == "dark"
    assert parse_json(run_cli("get", files.v2, "nan", "--json").stdout)["base64"]
    assert run_cli("get", files.v1, "prefs", "--json", "-o", "x").exit_code == 2


def test_get_of_a_missing_key_names_similar_ones(files, run_cli):
    result = run_cli("get", files.v1, "greting")
    assert result.exit_code == 2
    assert "Similar: greeting" in result.stderr


def test_get_from_a_model(files, parse_json):
    assert tool("get", files.gguf, "general.name").stdout == b"tiny"
    assert tool("get", files.gguf, "llama.context_length").stdout == b"128"
    tokens = tool("get", files.gguf, "tokenizer.ggml.tokens").stdout.split(b"\n")
    assert tokens == [b"<s>", b"a", "\u00e9".encode(), b"\x1b[31m", b""]
    with GGUFFile.open(files.gguf) as model:
        assert (
            tool("get", files.gguf, "token_embd.weight").stdout == model.array("token_embd.weight").tobytes()
        )
    value = parse_json(tool("get", files.gguf, "tokenizer.ggml.tokens", "--json").stdout.decode())
    assert value["value"][3] == "\x1b[31m"


def test_damaged_payload_is_not_given_as_good(files, run_cli):
    data = bytearray(files.v1.read_bytes())
    at = data.index(b"hello\nworld")
    data[at] ^= 1
    files.v1.write_bytes(data)
    result = run_cli("get", files.v1, "greeting")
    assert result.exit_code == 2
    assert "checksum" in result.stderr
    assert "hello" not in result.stdout


# --- set -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_set_keeps_place_type_and_flags(files, run_cli, which):
    path = getattr(files, which)
    result = run_cli("set", path, "blob", "new", "--timestamp", "77")
    assert result.exit_code == 0
    assert result.stdout == "replaced blob (type 99, 3 bytes)\n"
    with MemoryFile.open(path) as memory:
        assert list(memory)[2] == "blob"
        entry = memory["blob"]
        assert (entry.data, entry.type, entry.flags, entry.timestamp) == (b"new", 99, 7, 77)


def test_set_makes_a_file(tmp_path, run_cli, parse_json):
    path = tmp_path / "new.atlas"
    result = run_cli("set", path, "k", "v", "--json")
    row = parse_json(result.stdout)
    assert row["created_file"] is True
    assert row["type"] == "text"
    with MemoryFile.open(path) as memory:
        assert memory.version == 2
        assert memory["k"].text == "v"


@pytest.mark.parametrize("version", [1, 2])
def test_set_makes_a_file_of_a_version(tmp_path, run_cli, version):
    path = tmp_path / "new.atlas"
    assert run_cli("set", path, "k", "v", "--to", f"atlas-v{version}").exit_code == 0
    with MemoryFile.open(path) as memory:
        assert memory.version == version


def test_set_from_standard_input_and_file(files):
    data = bytes(range(256)) * 3
    assert tool("set", files.v2, "in", "-", stdin=data).returncode == 0
    (files.folder / "value.bin").write_bytes(data)
    assert tool("set", files.v2, "file", "--from", files.folder / "value.bin").returncode == 0
    with MemoryFile.open(files.v2) as memory:
        assert memory["in"].data == memory["file"].data == data
        assert memory["in"].type == 0


@pytest.mark.parametrize("kind", ["Q8_0", "Q4_0", "BF16", "F16"])
def test_get_npy_gives_numbers_and_raw_what_is_stored(files, kind, run_cli):
    import gguf

    path, number = files.folder / "q.gguf", gguf.GGMLQuantizationType[kind]
    values = np.linspace(-1, 1, 128, dtype=np.float32).reshape(2, 64)
    data = values.astype(np.float16) if kind == "F16" else gguf.quants.quantize(values, number)
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("t", data, raw_dtype=number)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    done = run_cli("get", path, "t", "--npy")
    array = np.load(io.BytesIO(done.output), allow_pickle=False)
    assert array.shape == (2, 64)
    assert array.dtype == (np.float16 if kind == "F16" else np.float32)
    assert np.array_equal(array, data if kind == "F16" else gguf.quants.dequantize(data, number))
    assert (kind in done.stderr) == (kind != "F16")
    raw = run_cli("get", path, "t", "--npy", "--raw")
    assert np.load(io.BytesIO(raw.output), allow_pickle=False).tobytes() == data.tobytes()
    assert raw.stderr == ""
    assert run_cli("get", path, "t", "--raw").exit_code == 2
    assert run_cli("get", path, "general.architecture", "--npy").exit_code == 2


def test_get_npy_of_entries(files, run_cli):
    for key, dtype in (("brain", np.float32), ("blocks", np.float32), ("half", np.float16)):
        array = np.load(io.BytesIO(run_cli("get", files.v2, key, "--npy").output), allow_pickle=False)
        assert array.dtype == dtype
    raw = np.load(io.BytesIO(run_cli("get", files.v2, "brain", "--npy", "--raw").output), allow_pickle=False)
    assert raw.dtype == np.uint16


def test_get_gives_one_token_a_line(files, run_cli):
    tokens = ["a\nb", "\r\n", "\\n", "\\", "\u2028", "\x85\x0b", "", "\t", "plain \u00e9"]
    assert run_cli("set", files.gguf, "x.tokens", json.dumps(tokens), "--type", "arr[str]").exit_code == 0
    text = run_cli("get", files.gguf, "x.tokens").stdout
    lines = text.splitlines()
    assert len(lines) == text.count("\n") == len(tokens)
    assert [ast.literal_eval('"' + line.replace('"', '\\"') + '"') for line in lines] == tokens


def test_the_content_hash_does_not_cover_reserved_space(files, run_cli, parse_json):
    def content():
        return parse_json(run_cli("hash", files.gguf, "--json").stdout)[0]["content"]

    before, copy = content(), files.folder / "copy.gguf"
    copy.write_bytes(files.gguf.read_bytes())
    edit_metadata(files.gguf, [], in_place=False, reserve=500)
    assert files.gguf.stat().st_size > copy.stat().st_size
    assert run_cli("diff", files.gguf, copy).exit_code == 0
    assert content() == before


def test_set_npy(files):
    out = io.BytesIO()
    np.save(out, np.arange(6, dtype=np.int32).reshape(2, 3))
    assert tool("set", files.v2, "t", "-", "--npy", stdin=out.getvalue()).returncode == 0
    with MemoryFile.open(files.v2) as memory:
        assert memory["t"].dtype == "int32"
        assert memory["t"].shape == (2, 3)
    objects = io.BytesIO()
    np.save(objects, np.array([{}], dtype=object), allow_pickle=True)
    done = tool("set", files.v2, "t", "-", "--npy", stdin=objects.getvalue())
    assert done.returncode == 2
    assert b"internal" not in done.stderr


def test_set_backup_keeps_the_old_file(files, run_cli):
    before = files.v1.read_bytes()
    assert run_cli("set", files.v1, "k", "v", "--backup").exit_code == 0
    assert (files.folder / "one.atlas.bak").read_bytes() == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["k", "v", "--type", "nonsense"], "no entry type"), (["", "v"], "at least one byte"),
     (["k" * 300, "v"], "300 bytes"), (["k", ""], "empty payload")],
)  # fmt: skip
def test_set_refuses_what_version_1_does_not_allow(files, run_cli, arguments, words):
    before = files.v1.read_bytes()
    result = run_cli("set", files.v1, *arguments)
    assert result.exit_code == 2
    assert words in result.stderr
    assert files.v1.read_bytes() == before


def test_set_in_a_model(files, run_cli):
    assert run_cli("set", files.gguf, "general.name", "other name").exit_code == 0
    assert run_cli("set", files.gguf, "llama.context_length", "0x200").exit_code == 0
    assert run_cli("set", files.gguf, "x.list", "[1, 2, 3]", "--type", "arr[i32]").exit_code == 0
    assert run_cli("set", files.gguf, "x.flag", "true", "--type", "bool").exit_code == 0
    with GGUFFile.open(files.gguf) as model:
        assert model.get("general.name") == "other name"
        assert model.metadata["llama.context_length"].type_name == "u32"
        assert model.get("llama.context_length") == 512
        assert list(model.get("x.list")) == [1, 2, 3]
        assert model.get("x.flag") is True
        assert model.array("output_norm.weight").tolist() == [1.0] * 64


@pytest.mark.parametrize(
    "arguments",
    [["llama.context_length", "many"], ["llama.context_length", "-1"], ["x", "y", "--type", "nope"],
     ["x", "not json", "--type", "arr[str]"], ["x", "maybe", "--type", "bool"], ["x", "1", "--codec", "lz4"]],
)  # fmt: skip
def test_set_in_a_model_refuses_nonsense(files, run_cli, arguments):
    before = files.gguf.read_bytes()
    result = run_cli("set", files.gguf, *arguments)
    assert result.exit_code == 2
    assert "internal" not in result.stderr
    assert files.gguf.read_bytes() == before


def test_set_in_another_format_is_refused(files, run_cli):
    run_cli("convert", files.v1, files.folder / "a.json")
    result = run_cli("set", files.folder / "a.json", "k", "v")
    assert result.exit_code == 2
    assert "Convert it to .atlas first" in result.stderr


# --- rm ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("which", ["v1", "v2"])
def test_rm(files, run_cli, which):
    path = getattr(files, which)
    result = run_cli("rm", path, "blob", ODD)
    assert result.exit_code == 0
    assert result.stdout == "removed blob\nremoved bad\\xff\\x1b[31m[bold]\n"
    with MemoryFile.open(path) as memory:
        assert "blob" not in memory
        assert ODD not in memory
        assert "greeting" in memory


def test_rm_is_all_or_nothing(files, run_cli):
    before = files.v1.read_bytes()
    assert run_cli("rm", files.v1, "blob", "nope").exit_code == 2
    assert files.v1.read_bytes() == before
    assert run_cli("rm", files.v1, "blob", "nope", "--ignore-missing").exit_code == 0


def test_rm_dry_run_and_glob(files, run_cli, parse_json):
    before = files.v2.read_bytes()
    result = run_cli("rm", files.v2, "--glob", "b*", "-n", "--json")
    assert [row["key"] for row in parse_json(result.stdout)["removed"]] == [
        "blob", "bad\\xff\\x1b[31m[bold]", "brain", "blocks",
    ]  # fmt: skip
    assert files.v2.read_bytes() == before
    assert run_cli("rm", files.v2, "--glob", "b*").exit_code == 0
    with MemoryFile.open(files.v2) as memory:
        assert not [key for key in memory if key.startswith("b")]


def test_rm_from_a_model(files, run_cli):
    assert run_cli("rm", files.gguf, "general.name").exit_code == 0
    with GGUFFile.open(files.gguf) as model:
        assert "general.name" not in model.metadata
        assert len(model.tensors) == 2


def test_encrypted_files(tmp_path):
    path = tmp_path / "secret.atlas"
    secret = {"ATLAS_PASSPHRASE": "open sesame"}
    assert tool("set", path, "k", "v", "--to", "atlas-v3", **secret).returncode == 0
    assert tool("get", path, "k", **secret).stdout == b"v"
    for environment, words in (({}, b"ATLAS_PASSPHRASE"), ({"ATLAS_PASSPHRASE": "no"}, b"not the one")):
        done = tool("get", path, "k", **environment)
        assert done.returncode == 2
        assert words in done.stderr
    (tmp_path / "pass").write_text("open sesame\nmore\n")
    assert tool("get", path, "k", "--passphrase-file", tmp_path / "pass").stdout == b"v"
    (tmp_path / "key").write_bytes(os.urandom(31))
    done = tool("get", path, "k", "--key-file", tmp_path / "key")
    assert done.returncode == 2
    assert b"exactly 32 bytes" in done.stderr
