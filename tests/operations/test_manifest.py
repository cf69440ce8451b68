"""Lists of hashes: what coreutils write is checked, what is written coreutils check, and the codes are theirs."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import FileCorruptError
from atlas_kit.operations.manifest import Listed, manifest_line, read_manifest

NAMES = [
    "a.gguf",
    "with space",
    "back\\slash",
    "new\nline",
    "cr\r",
    " lead",
    "*star",
    "\udcff.bin",
    "ü",
    "-x",
    "#x",
]


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return names in the current directory, odd ones among them, in the order of a list."""
    monkeypatch.chdir(tmp_path)
    for number, name in enumerate(NAMES):
        Path(name).write_bytes(b"content %d" % number)
    return [f"./{name}" if name.startswith("-") else name for name in NAMES]


def coreutils(*line: str, **options: Any) -> subprocess.CompletedProcess[bytes]:
    if shutil.which(line[0]) is None:
        pytest.skip("coreutils is not installed")
    return subprocess.run(line, capture_output=True, check=False, **options)


def test_a_list_is_what_sha256sum_writes(files: list[str], run_cli: Callable[..., Any]) -> None:
    ours = run_cli("hash", "--manifest", "--", *files)
    assert ours.exit_code == 0, ours.stderr
    assert ours.output == coreutils("sha256sum", "--", *files).stdout
    Path("SUMS").write_bytes(ours.output)
    assert coreutils("sha256sum", "--check", "--strict", "SUMS").returncode == 0
    assert run_cli("hash", "--check", "SUMS").exit_code == 0


@pytest.mark.parametrize("program", ["sha256sum", "sha512sum", "sha1sum", "md5sum", "b2sum"])
@pytest.mark.parametrize("options", [[], ["--binary"], ["--tag"]])
def test_lists_of_coreutils_are_checked(
    files: list[str], run_cli: Callable[..., Any], program: str, options: list[str]
) -> None:
    Path("SUMS").write_bytes(coreutils(program, *options, "--", *files).stdout)
    chosen = ["-a", "blake2b"] if program == "b2sum" else []
    result = run_cli("hash", "--check", "SUMS", *chosen)
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(": OK\n") == len(files)
    assert result.stderr == ""
    assert run_cli("hash", "--check", "SUMS", "--quiet", *chosen).stdout == ""


def sums(algorithm: str, names: list[str]) -> bytes:
    return b"".join(
        manifest_line(name, hashlib.new(algorithm, Path(name).read_bytes()).hexdigest()) for name in names
    )


def test_a_list_that_does_not_say_which_hash_it_is(files: list[str], run_cli: Callable[..., Any]) -> None:
    Path("SUMS").write_bytes(sums("blake2b", files))
    result = run_cli("hash", "--check", "SUMS")
    assert result.exit_code == 0, result.stderr
    assert result.stdout.count(": OK\n") == len(files)
    assert "the hashes are of blake2b, which the lines do not say" in result.stderr
    Path(files[0]).write_bytes(b"changed")  # the first, when it is not known yet which hash it is
    Path(files[3]).write_bytes(b"changed")
    result = run_cli("hash", "--check", "SUMS")
    assert result.exit_code == 1
    assert result.stdout.count(": FAILED\n") == 2
    assert "the hashes are of blake2b" in result.stderr
    for name in files:
        Path(name).write_bytes(b"changed")
    result = run_cli("hash", "--check", "SUMS")
    assert result.exit_code == 1
    assert "do not say which hash they are, and sha512 and blake2b were tried" in result.stderr
    assert run_cli("hash", "--check", "SUMS", "-a", "blake2b").exit_code == 1


def test_lists_of_two_kinds_do_not_mix(files: list[str], run_cli: Callable[..., Any]) -> None:
    Path("SUMS").write_bytes(sums("sha512", files[:2]) + sums("blake2b", files[2:4]))
    result = run_cli("hash", "--check", "SUMS")
    assert result.exit_code == 1
    assert result.stdout.count(": OK\n") == 2
    assert "blake2b" not in result.stderr


def test_a_list_of_xxhsum(files: list[str], run_cli: Callable[..., Any]) -> None:
    lines = [manifest_line(name, xxhash.xxh3_128_hexdigest(Path(name).read_bytes())) for name in files]
    Path("SUMS").write_bytes(b"".join(lines))
    result = run_cli("hash", "--check", "SUMS")
    assert result.exit_code == 0
    assert "the hashes are of xxh3-128" in result.stderr


def test_what_is_wrong_is_said_as_sha256sum_says_it(files: list[str], run_cli: Callable[..., Any]) -> None:
    Path("SUMS").write_bytes(run_cli("hash", "--manifest", "a.gguf", "with space", "ü").output)
    Path("with space").write_bytes(b"other")
    for options in ([], ["--quiet"]):
        ours = run_cli("hash", "--check", "SUMS", *options)
        theirs = coreutils("sha256sum", "--check", "SUMS", *options, env={"LC_ALL": "C.UTF-8", **os.environ})
        assert ours.exit_code == theirs.returncode == 1
        assert ours.output == theirs.stdout
        assert ours.stderr.replace("atlas-tool", "sha256sum") == theirs.stderr.decode()
    Path("a.gguf").unlink()
    Path("SUMS").write_bytes(Path("SUMS").read_bytes() + b"no line of a list\n")
    ours = run_cli("hash", "--check", "SUMS")
    theirs = coreutils("sha256sum", "--check", "SUMS", env={"LC_ALL": "C.UTF-8", **os.environ})
    assert ours.exit_code == theirs.returncode == 1
    assert ours.output == theirs.stdout
    assert "a.gguf: there is no such file" in ours.stderr
    for words in (
        "1 line is improperly formatted",
        "1 listed file could not be read",
        "1 computed checksum did NOT",
    ):
        assert words in ours.stderr
        assert words in theirs.stderr.decode()


def test_missing_files_and_strictness(files: list[str], run_cli: Callable[..., Any]) -> None:
    line = run_cli("hash", "--manifest", "a.gguf").output
    Path("SUMS").write_bytes(line + line.replace(b"a.gguf", b"gone") + b"junk\n")
    assert run_cli("hash", "-c", "SUMS").exit_code == 1
    assert run_cli("hash", "-c", "SUMS", "--ignore-missing").exit_code == 0
    assert run_cli("hash", "-c", "SUMS", "--ignore-missing", "--strict").exit_code == 1
    found = json.loads(run_cli("hash", "-c", "SUMS", "--json").stdout)[0]
    assert (found["ok"], found["malformed"]) == (False, 1)
    assert [row["ok"] for row in found["files"]] == [True, False]
    Path("a.gguf").unlink()
    none = run_cli("hash", "-c", "SUMS", "--ignore-missing")
    assert none.exit_code == 1
    assert "no file was verified" in none.stderr
    Path("folder").mkdir()
    Path("SUMS").write_bytes(line.replace(b"a.gguf", b"folder"))
    assert "folder: FAILED open or read" in run_cli("hash", "-c", "SUMS").stdout


def test_no_list_at_all(files: list[str], run_cli: Callable[..., Any]) -> None:
    for data in (b"", b"\n\n", b"hello", b"\0" * 100, bytes(range(256)) * 40, b"# only a remark\n"):
        Path("SUMS").write_bytes(data)
        result = run_cli("hash", "--check", "SUMS")
        assert result.exit_code == 2
        assert "no list of hashes" in result.stderr
    assert run_cli("hash", "--check", "nothing").exit_code == 2
    for line in (
        ["--quiet", "a.gguf"],
        ["--check", "--manifest", "a.gguf"],
        ["--manifest", "--json", "a.gguf"],
    ):
        assert run_cli("hash", *line).exit_code == 2


def test_a_list_in_another_folder(files: list[str], run_cli: Callable[..., Any]) -> None:
    Path("down").mkdir()
    Path("down/x").write_bytes(b"x")
    Path("down/SUMS").write_bytes(manifest_line("x", hashlib.sha256(b"x").hexdigest()))
    result = run_cli("hash", "--check", "down/SUMS")
    assert result.exit_code == 1
    assert "the files lie in down" in result.stderr
    both = run_cli("hash", "--manifest", "a.gguf").output
    Path("SUMS").write_bytes(both)
    assert run_cli("hash", "--check", "SUMS", "down/SUMS").exit_code == 1
    assert run_cli("hash", "--check", "-", stdin=both).exit_code == 0


DIGEST = hashlib.sha256(b"x").hexdigest()


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (f"{DIGEST}  x", Listed("x", "sha256", DIGEST)),
        (f"{DIGEST} *x", Listed("x", "sha256", DIGEST)),
        (f"{DIGEST} x", Listed("x", "sha256", DIGEST)),
        (f"  {DIGEST}  x", Listed("x", "sha256", DIGEST)),
        (f"{DIGEST.upper()}  x\r", Listed("x", "sha256", DIGEST)),
        (f"\ufeff{DIGEST}  x", Listed("x", "sha256", DIGEST)),
        (f"SHA256 (x) = {DIGEST}", Listed("x", "sha256", DIGEST)),
        (f"SHA2-256(x)= {DIGEST}", None),
        (f"SHA256(x)= {DIGEST}", Listed("x", "sha256", DIGEST)),
        (f"SHA256 (a) b) = {DIGEST}", Listed("a) b", "sha256", DIGEST)),
        (f"\\{DIGEST}  a\\\\n\\nb\\r", Listed("a\\n\nb\r", "sha256", DIGEST)),
        (f"\\{DIGEST}  a\\tb", None),
        (f"\\{DIGEST}  a\\", None),
        (f"{DIGEST}  a\\nb", Listed("a\\nb", "sha256", DIGEST)),
        (f"{DIGEST[:-1]}  x", None),
        (f"{DIGEST}x  x", None),
        (f"{DIGEST}", None),
        (f"MD5 (x) = {DIGEST}", None),
        (f"CRC (x) = {DIGEST}", None),
        (f"{DIGEST}  a\0b", None),
        ("d41d8cd98f00b204e9800998ecf8427e  x", Listed("x", "md5", "d41d8cd98f00b204e9800998ecf8427e")),
    ],
)
def test_lines(line: str, found: Listed | None) -> None:
    data = line.encode()
    if found is None:
        with pytest.raises(FileCorruptError):
            read_manifest(data)
    else:
        assert read_manifest(data) == ([found], 0)


def test_a_list_from_a_shell_of_windows() -> None:
    text = f"{DIGEST}  x\r\n{DIGEST} *y\r\n"
    assert [one.name for one in read_manifest(text.encode("utf-16"))[0]] == ["x", "y"]


@given(st.binary(min_size=1, max_size=40).filter(lambda raw: b"\0" not in raw))
def test_any_name_comes_back(raw: bytes) -> None:
    name = os.fsdecode(raw)
    assert read_manifest(manifest_line(name, DIGEST)) == ([Listed(name, "sha256", DIGEST)], 0)


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_refused(data: bytes) -> None:
    try:
        listed, malformed = read_manifest(data)
    except FileCorruptError:
        return
    assert listed
    assert malformed >= 0
