"""Passphrases asked for on a terminal: once for each command that meets an encrypted file, and never shown."""

from __future__ import annotations

import os
import re
import select
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.formats.atlas import MemoryFile

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

SECRET = b"open sesame"
TYPED = SECRET + b"\n"
END = b"\x04"  # Ctrl-D


@pytest.fixture
def locked(tmp_path: Path) -> Path:
    """Return an encrypted file with one entry."""
    path = tmp_path / "locked.atlas"
    memory = MemoryFile(version=3, passphrase=SECRET)
    memory.set("greeting", "hello")
    memory.save(path)
    return path


def on_a_terminal(*arguments: Any, answers: tuple[bytes, ...] = (TYPED,)) -> tuple[int, str]:
    """Run atlas-tool on a terminal, answering the questions in turn; return its status and the screen."""
    try:
        leader, follower = pty.openpty()
    except OSError:  # a bare chroot has none
        pytest.skip("this system has no pseudo-terminals")
    environment = {name: value for name, value in os.environ.items() if name != "ATLAS_PASSPHRASE"}
    tool = subprocess.Popen(
        [sys.executable, "-m", "atlas_kit", *map(os.fspath, arguments)],
        stdin=follower, stdout=follower, stderr=follower, start_new_session=True,
        env={**environment, "TERM": "dumb"},
    )  # fmt: skip
    os.close(follower)
    screen, answered = b"", 0
    try:
        while select.select([leader], [], [], 120)[0]:
            try:
                piece = os.read(leader, 4096)
            except OSError:  # Linux says so when nobody has the other end open
                break
            if not piece:
                break
            screen += piece
            asked = len(re.findall(rb"(?:Passphrase for [^\r\n]*|New passphrase|The same again): ", screen))
            if answered < asked and answered < len(answers) and screen.rstrip().endswith(b":"):
                os.write(leader, answers[answered])
                answered += 1
        else:
            tool.kill()  # it waits for something else
    finally:
        os.close(leader)
    return tool.wait(120), screen.decode()


@pytest.mark.parametrize(
    ("command", "said"),
    [
        (["ls"], "greeting"),
        pytest.param(["get", "greeting"], "hello", marks=pytest.mark.slow),
        pytest.param(["validate"], ": ok", marks=pytest.mark.slow),
        (["set", "greeting", "bye"], ""),
        pytest.param(["inspect", "--hex"], "greeting", marks=pytest.mark.slow),
        pytest.param(["inspect", "--map"], "greeting", marks=pytest.mark.slow),
        (["inspect", "--hex", "--map", "--entries"], "greeting"),
    ],
    ids=["ls", "get", "validate", "set", "hex", "map", "every view"],
)
def test_a_passphrase_is_asked_for_once_and_not_shown(locked: Path, command: list[str], said: str) -> None:
    name, *rest = command
    status, screen = on_a_terminal(name, locked, *rest)
    assert status == 0, screen
    assert screen.count("Passphrase for") == 1
    assert said in screen.partition("Passphrase for")[2]
    assert SECRET.decode() not in screen
    with MemoryFile.open(locked, passphrase=SECRET) as memory:
        assert memory["greeting"].text == ("bye" if name == "set" else "hello")


@pytest.mark.parametrize(
    "restore", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["list", "restore"]
)
def test_backups_are_opened_with_one_passphrase_for_all(locked: Path, restore: bool) -> None:
    for number in (1, 2):
        shutil.copy(locked, locked.with_name(f"locked_{number}.atlas.bak"))
    before = locked.read_bytes()
    locked.unlink()
    status, screen = on_a_terminal("recover", locked, *(["--restore", "latest"] if restore else []))
    assert status == 0, screen
    assert screen.count("Passphrase for") == 1
    said = screen.partition("Passphrase for")[2]
    if restore:
        assert "restored" in said
        assert locked.read_bytes() == before
    else:
        assert said.count(" ok ") == 2, screen


def test_what_is_not_encrypted_asks_nothing(tmp_path: Path) -> None:
    path = tmp_path / "open.atlas"
    MemoryFile().save(path)
    shutil.copy(path, tmp_path / "open.atlas.bak")
    for command in (["inspect", path, "--hex", "--map"], ["recover", path]):
        status, screen = on_a_terminal(*command)
        assert (status, screen.count("Passphrase")) == (0, 0), screen


def test_a_file_with_a_key_file_needs_no_passphrase(tmp_path: Path) -> None:
    path = tmp_path / "keyed.atlas"
    memory = MemoryFile(version=3, key=bytes(32))
    memory.set("greeting", "hello")
    memory.save(path)
    for options in (["--hex"], ["--map"]):
        status, screen = on_a_terminal("inspect", path, *options)
        assert (status, screen.count("Passphrase"), screen.count("greeting")) == (0, 0, 0), screen


def test_a_wrong_answer_is_an_error(locked: Path) -> None:
    status, screen = on_a_terminal("ls", locked, answers=(b"wrong\n",))
    assert status != 0
    assert screen.count("Passphrase for") == 1
    assert "greeting" not in screen


EMPTY = "A passphrase has at least one character. Try again, or stop with Ctrl-C."
DIFFERENT = "The two passphrases are not the same. Enter the new one again."


def test_nothing_is_no_passphrase(locked: Path) -> None:
    status, screen = on_a_terminal("ls", locked, answers=(b"\n", b"\n", TYPED))
    assert (status, screen.count("Passphrase for"), screen.count(EMPTY)) == (0, 3, 2)
    assert "greeting" in screen


def test_a_new_passphrase_is_asked_for_until_it_is_entered_twice(tmp_path: Path) -> None:
    path = tmp_path / "new.atlas"
    answers = (b"\n", TYPED, b"open sesam\n", TYPED, b"\n", TYPED, TYPED)
    status, screen = on_a_terminal("set", path, "greeting", "hello", "--to", "atlas-v3", answers=answers)
    assert (status, screen.count("New passphrase: ")) == (0, 4)
    assert (screen.count(EMPTY), screen.count(DIFFERENT)) == (1, 2)
    assert "Error" not in screen
    assert "sesam" not in screen
    with MemoryFile.open(path, passphrase=SECRET) as memory:
        assert memory["greeting"].text == "hello"


def test_a_question_can_be_left(tmp_path: Path) -> None:
    path = tmp_path / "new.atlas"
    status, screen = on_a_terminal(
        "set", path, "k", "v", "--to", "atlas-v3", answers=(TYPED, b"other\n", END)
    )
    assert (status, screen.splitlines()[-1]) == (130, "atlas-tool: interrupted")
    assert list(tmp_path.iterdir()) == []
