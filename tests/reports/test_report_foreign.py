"""Files that are something else: every command says what they are, and what to do."""

from __future__ import annotations

import base64
import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import pytest
import report_files as built
import zstandard

from atlas_kit.cli._group import COMMANDS as ALL_COMMANDS

WHOLE = built.model().bytes()

#: name -> (content, what is said, what to do)
FOREIGN: dict[str, tuple[Callable[[], bytes], str, str]] = {
    "web page": (built.web_page, 'a web page ("Some-7B-GGUF at main")', "/resolve/"),
    "web page with a mark": (lambda: b"\xef\xbb\xbf \n<HTML>", "a web page, and not a model", "/resolve/"),
    "pointer": (built.lfs_pointer, "a git-lfs pointer of a file of 98362432 bytes", "git lfs pull"),
    "json error": (lambda: b'{"error": "Repository not found"}', 'an error message ("Repository not found")', "login"),
    "json error of an api": (lambda: b'{"error":{"message":"no such key","code":404}}', '"no such key"', "address"),
    "xml error": (
        lambda: b'<?xml version="1.0"?><Error><Code>AccessDenied</Code></Error>', '("AccessDenied")', "refused",
    ),
    "text error": (lambda: b"Entry not found", 'an error message ("Entry not found")', "address"),
    "headers": (lambda: b"HTTP/1.1 302 Found\r\nLocation: x\r\n\r\n", "HTTP/1.1 302 Found", "without the headers"),
    "ggml": (lambda: built.old_ggml(b"lmgg"), "(GGML, without a version)", "Get the model as GGUF"),
    "ggmf": (lambda: built.old_ggml(b"fmgg", 1), "(GGMF, version 1)", "Get the model as GGUF"),
    "ggjt 1": (lambda: built.old_ggml(version=1), "(GGJT, version 1)", "Get the model as GGUF"),
    "ggjt 3": (built.old_ggml, "(GGJT, version 3)", "convert_llama_ggml_to_gguf.py"),
    "lora": (lambda: built.old_ggml(b"algg", 1), "a LoRA adapter in a former format", "Get"),
    "whisper": (lambda: b"lmgg" + (51865).to_bytes(4, "little") + bytes(99), "whisper.cpp", "whisper.cpp reads it"),
    "session": (lambda: b"nsgg\x09\0\0\0" + bytes(99), "a saved session of llama.cpp", "beside the model"),
    "pytorch": (built.pytorch, "a PyTorch file", "convert_hf_to_gguf.py"),
    "old pytorch": (lambda: b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19." + bytes(50), "a PyTorch file", "convert_hf"),
    "pickle": (lambda: b"\x80\x04\x95\x10\0\0\0\0\0\0\0}.", "a Python pickle", "convert_hf_to_gguf.py"),
    "gzip": (lambda: gzip.compress(WHOLE, mtime=0), "a gzip archive", "gunzip"),
    "xz": (lambda: lzma.compress(WHOLE), "an xz archive", "unxz"),
    "bzip2": (lambda: bz2.compress(WHOLE), "a bzip2 archive", "bunzip2"),
    "zstd": (lambda: zstandard.compress(WHOLE), "a zstd archive", "unzstd"),
    "zip": (lambda: built.pytorch("model.gguf"), 'a zip archive ("model.gguf")', "unzip"),
    "mark": (lambda: b"\xef\xbb\xbf" + WHOLE, "a GGUF file behind a byte order mark", "atlas-tool repair"),
    "saved as text": (
        lambda: b"\xef\xbb\xbf" + WHOLE.decode("utf-8", "replace").encode(), "saved as text", "Get it again",
    ),
    "utf-16": (lambda: "GGUF\3".encode("utf-16"), "saved as text (UTF-16)", "Get it again"),
    "something before it": (lambda: b"x" * 100 + WHOLE, "begins only at byte 100", "atlas-tool repair"),
    "base64": (lambda: base64.encodebytes(WHOLE), "a GGUF model in base64", "base64 -d"),
    "base64 in one line": (lambda: base64.b64encode(WHOLE), "a GGUF model in base64", "base64 -d"),
    "hexadecimal": (lambda: WHOLE.hex().encode(), "a GGUF model in hexadecimal digits", "xxd -r -p"),
    "hexadecimal with spaces": (lambda: WHOLE.hex(" ").encode(), "a GGUF model in hexadecimal", "xxd -r -p"),
    "a dump": (
        lambda: b"00000000: 4747 5546 0300 0000 1d00 0000 0000 0000  GGUF....\n" * 30, "in hexadecimal", "xxd -r.",
    ),
    "zeros": (lambda: bytes(9000), "begins with 9000 zeros", "Get it again"),
    "few zeros": (lambda: bytes(1000), "a file of 1000 zeros and nothing else", "Get it again"),
}  # fmt: skip
#: Commands that are given no such file, or make it into a memory's text.
OTHER = {"completion", "recover", "serve", "run", "learn", "ask", "forget", "perplexity", "recall"}
COMMANDS = tuple(name for name in ALL_COMMANDS if name not in OTHER)


def _arguments(command: str, path: Path, folder: Path) -> list[object]:
    more = {
        "get": ["key"], "convert": [folder / "out.atlas"], "compress": ["-o", folder / "out.bin"],
        "diff": [path], "set": ["key", "value"], "rm": ["key"], "append": ["key", "value"], "rename": ["key", "new"],
        "import": [path.with_suffix(".json")], "export": ["-o", folder / "out.md"],
        "merge": [path, "-o", folder / "out"], "split": ["--max-size", "1K"], "join": ["-o", folder / "out"],
        "repair": ["-o", folder / "out"],
        "encrypt": ["--key-file", folder / "key"], "decrypt": ["--key-file", folder / "key"],
        "rekey": ["--key-file", folder / "key", "--new-key-file", folder / "key"],
    }  # fmt: skip
    if command == "grep":
        return [command, "x", path]
    return [command, path, *more.get(command, [])]


@pytest.mark.parametrize("name", FOREIGN)
@pytest.mark.parametrize("suffix", ["gguf", "atlas", "bin"])
def test_validate_says_what_it_is(name: str, suffix: str, tmp_path: Path, run_cli) -> None:
    make, what, hint = FOREIGN[name]
    if name == "zeros" and suffix == "atlas":
        what, hint = "[", ""  # there may be entries behind them
    if name == "few zeros" and suffix == "atlas":
        hint = "atlas-tool recover"  # nobody downloads a memory
    path = tmp_path / f"model.{suffix}"
    path.write_bytes(make())
    result = run_cli("validate", path)
    assert result.exit_code == 1
    assert what in result.stdout
    if hint != "atlas-tool repair" or suffix == "gguf":
        assert hint in result.stdout


@pytest.fixture
def beside(tmp_path: Path) -> None:
    """Put beside the file what commands need besides it."""
    (tmp_path / "key").write_bytes(bytes(32))
    (tmp_path / "model.json").write_text('{"key": "a", "text": "b"}')


@pytest.mark.usefixtures("beside")
@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("name", ["web page", "pointer", "json error", "ggjt 3", "pytorch", "gzip", "zip"])
def test_every_command_says_what_it_is(name: str, command: str, tmp_path: Path, run_cli) -> None:
    make, what, hint = FOREIGN[name]
    for suffix in ("gguf", "bin"):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(make())
        result = run_cli(*_arguments(command, path, tmp_path))
        said = result.stdout + result.stderr
        assert result.exit_code in (1, 2), said
        assert what in said
        assert hint in said
        assert path.read_bytes() == make()


@pytest.mark.parametrize("name", ["web page", "pointer", "gzip", "pytorch", "ggjt 3"])
def test_there_is_nothing_to_repair_in_it(name: str, tmp_path: Path, run_cli) -> None:
    make, what, hint = FOREIGN[name]
    for suffix in ("gguf", "bin"):
        path = tmp_path / f"model.{suffix}"
        path.write_bytes(make())
        result = run_cli("repair", path, "-o", tmp_path / "out.gguf")
        assert result.exit_code == 2
        assert what in result.stderr
        assert hint in result.stderr


def test_a_mark_before_a_model_is_taken_off(tmp_path: Path, run_cli) -> None:
    for name in ("mark", "something before it"):
        path, out = tmp_path / "model.gguf", tmp_path / f"{name}.gguf"
        path.write_bytes(FOREIGN[name][0]())
        assert run_cli("repair", path, "-o", out).exit_code == 1
        assert run_cli("validate", out).exit_code == 0


def test_a_piece_without_a_beginning(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.gguf.part2of3"
    path.write_bytes(WHOLE[20_000:30_000])
    said = run_cli("validate", path).stdout
    assert "a piece of a file that was cut up" in said
    assert f"atlas-tool join {path}" in said


def test_files_that_were_put_together(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "cat.gguf"
    path.write_bytes(built.joined_shards())
    said = run_cli("validate", path).stdout
    assert "another GGUF file begins here" in said
    assert f"atlas-tool join {path}" in said
    path.write_bytes(built.doubled())
    assert "the whole file is there twice" in run_cli("validate", path).stdout


def test_a_name_that_misleads(tmp_path: Path, run_cli) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(WHOLE)
    result = run_cli("validate", path)
    assert result.exit_code == 0
    assert "the name ends in .safetensors, and the file is a GGUF model" in result.stdout


def test_a_safetensors_file_does_not_become_a_model(tmp_path, run_cli):
    from atlas_kit.formats.safetensors import NewTensor, write_safetensors

    path = tmp_path / "model.safetensors"
    with open(path, "wb") as file:
        write_safetensors(file, [NewTensor("a", "F32", (2,), lambda: [bytes(8)])], {})
    ran = run_cli("convert", path, tmp_path / "model.gguf")
    assert ran.exit_code == 2
    assert "convert_hf_to_gguf.py" in ran.stderr
    assert not (tmp_path / "model.gguf").exists()
