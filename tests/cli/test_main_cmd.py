"""The frame around the commands: version, help, exit codes, errors in one line, completion, odd names."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from atlas_kit import __version__
from atlas_kit.cli import main as cli_main
from atlas_kit.cli._group import COMMANDS

pytest_plugins = ["cli_fixtures"]


def tool(*args, stdin=b"", cwd=None, **env):
    """Run atlas-tool as a process, with bytes in and out."""
    full = {**os.environ, "PYTHONUTF8": "1", "TERM": "dumb", "PYTHONWARNINGS": "error", **env}
    return subprocess.run(
        [sys.executable, "-m", "atlas_kit", *args], input=stdin, capture_output=True, cwd=cwd, env=full,
        timeout=120, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--version", "-V"])
def test_version(option, capsys):
    assert cli_main.run([option]) == 0
    assert capsys.readouterr().out == f"atlas-tool {__version__}\n"


@pytest.mark.parametrize("argument", ["--version", "--help"])
def test_version_and_help_import_nothing_heavy(argument):
    code = (
        "import sys; from atlas_kit.cli.main import run; run([sys.argv[1]])\n"
        "heavy = {'numpy', 'rich', 'construct', 'gguf', 'lz4', 'zstandard', 'cryptography'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run([sys.executable, "-c", code, argument], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_version_does_not_import_click():
    code = (
        "import sys; from atlas_kit.cli.main import run; run(['--version']); sys.exit('click' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 0


def test_a_small_inspection_imports_neither_numpy_nor_rich(files):
    code = (
        "import sys; from atlas_kit.cli.main import run; run(['inspect', sys.argv[1]])\n"
        "sys.exit(','.join(sorted({'numpy', 'rich', 'gguf'} & set(sys.modules))) or 0)"
    )
    for path in (files.v1, files.v2, files.gguf):
        done = subprocess.run([sys.executable, "-c", code, path], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_an_example(name, run_cli):
    result = run_cli(name, "--help")
    assert result.exit_code == 0
    lines = result.stdout.splitlines()
    assert lines[2].strip().endswith((".", ","))
    assert "  Examples:" in lines
    example = lines[lines.index("  Examples:") + 1]
    assert "atlas-tool " in example


def test_group_help_lists_commands_and_exit_codes(run_cli):
    result = run_cli("--help")
    assert result.exit_code == 0
    for name, row in COMMANDS.items():
        assert f"{name} " in result.stdout
        assert row.summary in result.stdout
    for line in ("0  fine", "1  findings or differences", "2  misuse, or a file that cannot be read"):
        assert line in result.stdout


@pytest.mark.parametrize(
    "arguments",
    [[], ["nope"], ["inspect"], ["inspect", "--nope", "x"], ["diff", "a"],
     ["get", "a"], ["set", "a", "b"], ["set", "a", "b", "c", "--from", "d"], ["rm", "a"],
     ["convert", "a"], ["merge", "a"],
     ["compress", "a"], ["diff", "-", "-"], ["completion", "tcsh"], ["hash"], ["validate"],
     ["hash", "-", "-"], ["validate", "-", "-"], ["set", "-", "k", "v"], ["rm", "-", "k"], ["recover", "-"]],
)  # fmt: skip
def test_misuse_is_two(arguments, run_cli):
    result = run_cli(*arguments)
    assert result.exit_code == 2
    assert "Traceback" not in result.stdout + result.stderr
    if arguments:
        assert result.stdout == ""
        assert result.stderr.startswith("atlas-tool: ")
        assert result.stderr.count("\n") == 1


READERS = [["inspect"], ["ls"], ["get", "{}", "k"], ["hash"], ["compress", "{}", "-o", "out.atlas"],
           ["convert", "{}", "out.json"], ["diff", "{}", "{}"], ["merge", "{}", "{}", "-o", "out.atlas"],
           ["rm", "{}", "k"], ["repair", "{}", "--dry-run"]]  # fmt: skip


@pytest.mark.parametrize("command", READERS, ids=lambda c: c[0])
@pytest.mark.parametrize("what", ["missing", "folder", "empty", "text", "magic", "zeros", "forbidden"])
def test_bad_files_give_one_sentence_and_two(command, what, run_cli, tmp_path, monkeypatch):
    if what == "magic" and command[0] == "repair":
        pytest.skip("a magic number is a rest of a file, from which an empty one can be made")
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad\x1b[31m\n.atlas"
    if what == "folder":
        path.mkdir()
    elif what != "missing":
        content = {"empty": b"", "text": b"some text\n" * 50, "magic": b"ATLS", "zeros": bytes(4096)}
        path.write_bytes(content.get(what, b"ATLS"))
    if what == "forbidden":
        if os.geteuid() == 0:
            pytest.skip("root may read everything")
        path.chmod(0)
    arguments = [part.replace("{}", str(path)) for part in command]
    result = run_cli(*(arguments if "{}" in "".join(command) else [*arguments, path]))
    assert result.exit_code == 2, result.stdout + result.stderr
    assert result.stdout == ""
    assert result.stderr.startswith("atlas-tool: ")
    assert "internal error" not in result.stderr
    assert result.stderr.count("\n") == 1
    assert "\x1b" not in result.stderr
    assert not (tmp_path / "out.atlas").exists()


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (MemoryError(), 2, "not enough memory"),
        (RecursionError("x"), 2, "nested too deeply"),
        (OSError(28, "No space left on device", "f\x1b"), 2, "f\\x1b: no space left on device"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "bad"), 2, "not utf-8"),
        (ZeroDivisionError("oh"), 2, "internal error: ZeroDivisionError: oh"),
        (KeyboardInterrupt(), 130, "interrupted"),
        (BrokenPipeError(), 141, ""),
    ],
)
def test_every_failure_becomes_one_line(error, code, words, monkeypatch, capsys):
    def fail(args):
        raise error

    monkeypatch.setattr(cli_main, "_invoke", fail)
    assert cli_main.run(["ls", "x"]) == code
    err = capsys.readouterr().err
    assert words in err
    assert err.count("\n") == (1 if words else 0)
    assert "Traceback" not in err


def test_debug_shows_where(monkeypatch, capsys):
    monkeypatch.setenv("ATLAS_KIT_DEBUG", "1")
    assert cli_main.run(["ls", "/nowhere/at/all"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_module_and_script_are_the_same(files):
    done = tool("ls", files.v1)
    assert done.returncode == 0
    assert done.stderr == b""
    assert done.stdout.splitlines()[0] == b"greeting"


def test_closed_pipe_is_quiet(files):
    process = subprocess.Popen(
        [sys.executable, "-m", "atlas_kit", "inspect", files.v2, "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    process.stdout.close()
    error = process.stderr.read()
    process.stderr.close()
    assert process.wait() == 141
    assert error == b""


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
@pytest.mark.parametrize("closed", ["<&-", ">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams(files, closed):
    script = f"""{sys.executable} -m atlas_kit "$@" {closed}"""
    runs = [(["inspect", files.v2], 0), (["inspect", "-"], 2), (["get", files.v2, "no such key"], 2)]
    for arguments, code in (*runs, (["set", files.v2, "k", "v"], 0)):
        done = subprocess.run(["bash", "-c", script, "-", *arguments], capture_output=True,
                              stdin=subprocess.DEVNULL, check=False)  # fmt: skip
        output = done.stdout + done.stderr
        assert b"Traceback" not in output
        assert b"internal error" not in output
        assert done.returncode == code
    assert tool("validate", files.v2).returncode == 0


def test_full_disk_behind_stdout(files):
    with open("/dev/full", "wb") as full:
        done = subprocess.run(
            [sys.executable, "-m", "atlas_kit", "ls", files.v1],
            stdout=full,
            stderr=subprocess.PIPE,
            check=False,
        )
    assert done.returncode == 2
    assert done.stderr == b"atlas-tool: no space left on device\n"


def test_file_names_that_are_not_utf8(files):
    name = os.fsencode(files.folder) + b"/odd\xff\x1b[31m\nname.atlas"
    assert tool("set", name, b"k\xfe", b"v\xff").returncode == 0
    assert tool("get", name, b"k\xfe").stdout == b"v\xff"
    for arguments in (["inspect", name], ["ls", "-l", name], ["validate", name], ["hash", name]):
        done = tool(*arguments)
        assert done.returncode == 0, done.stderr
        assert b"\x1b" not in done.stdout
        assert b"\xff" not in done.stdout


def test_ascii_terminal_shows_escapes(files):
    done = tool("ls", files.v1, PYTHONUTF8="0", PYTHONIOENCODING="ascii", LC_ALL="C")
    assert done.returncode == 0
    assert b"caf\\xe9/\\U0001f9e0" in done.stdout


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_script(shell, run_cli):
    result = run_cli("completion", shell)
    assert result.exit_code == 0
    assert "_ATLAS_TOOL_COMPLETE" in result.stdout


@pytest.mark.parametrize(("words", "index", "expected"), [
    ("atlas-tool in", "1", b"inspect"),
    ("atlas-tool convert --t", "2", b"--to"),
    ("atlas-tool convert --to at", "3", b"atlas-v2"),
])  # fmt: skip
def test_completion_answers(words, index, expected):
    done = tool(COMP_WORDS=words, COMP_CWORD=index, _ATLAS_TOOL_COMPLETE="bash_complete")
    assert done.returncode == 0
    assert expected in done.stdout


def test_pipes_and_devices_can_be_read_and_written(files):
    """``<(command)`` is read once, ``/dev/stdout`` is written to, and neither is replaced by a file."""
    script = f"""tool() {{ {sys.executable} -m atlas_kit "$@"; }}; set -e
    tool diff -q <(cat "$1") "$1"
    tool convert "$1" /dev/stdout --to atlas-v1 | tool diff -q - "$1"
    tool convert "$1" /dev/null --to json >&2
    tool get "$1" greeting -o /dev/null
    test -c /dev/null
    """
    done = subprocess.run(["bash", "-c", script, "-", files.v1], capture_output=True, check=False)
    assert (done.returncode, done.stdout) == (0, b""), done.stderr


@pytest.mark.skipif(not os.path.exists("/proc/version"), reason="no /proc here")
def test_files_that_hide_their_size(run_cli):
    import hashlib
    from pathlib import Path

    result = run_cli("hash", "--file-only", "/proc/version")
    assert hashlib.sha256(Path("/proc/version").read_bytes()).hexdigest() in result.stdout


def test_narrow_terminals_get_long_lines(files, monkeypatch, capsys):
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    monkeypatch.setenv("COLUMNS", "5")
    assert cli_main.run(["inspect", str(files.v1)]) == 0
    assert ".atlas memory file, version 1" in capsys.readouterr().out


def test_errors_name_the_key_even_a_short_one(run_cli, tmp_path):
    path = tmp_path / "x.safetensors"
    header = b'{"a":{"dtype":"F32","shape":"?","data_offsets":[0,8]}}'
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    assert f'{path}: at byte 8: "a": ' in run_cli("ls", path).stderr


def test_errors_in_other_formats_name_the_file(run_cli, tmp_path):
    import numpy as np

    pickled = tmp_path / "p.npz"
    np.savez(pickled, x=np.array([{}], dtype=object))
    empty_key = tmp_path / "e.safetensors"
    header = b'{"":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}}'
    empty_key.write_bytes(len(header).to_bytes(8, "little") + header + bytes(8))
    for path in (pickled, empty_key):
        result = run_cli("ls", path)
        assert result.exit_code == 2
        assert str(path) in result.stderr
