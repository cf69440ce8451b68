"""The files of sessions: private folders, and what a server that was killed leaves of them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from atlas_kit.errors import LockedError
from atlas_kit.server.keys import Key
from atlas_kit.server.session_files import SessionFiles, remove_abandoned
from tests.conftest import tool_environment

PROGRAM = """
import sys, time
from atlas_kit.server.session_files import SessionFiles
files = SessionFiles()
print(files.folder, flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return the folder that temporary ones are made in."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def test_a_private_folder_goes_with_its_server(temporary: Path) -> None:
    files = SessionFiles()
    assert not files.exists(Key("", "anna"))
    assert os.listdir(temporary) == []  # it is made when it is needed
    folder = Path(files.folder)
    assert folder.parent == temporary
    assert folder.stat().st_mode & 0o777 == 0o700
    files.close()
    assert os.listdir(temporary) == []


def test_what_a_killed_server_left_is_removed_by_the_next(temporary: Path) -> None:
    killed = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, text=True,
        env={**tool_environment(), "TMPDIR": str(temporary)},
    )  # fmt: skip
    assert killed.stdout is not None
    with killed, killed.stdout:
        folder = Path(killed.stdout.readline().strip())
        (folder / "a.atlas").write_bytes(b"a session")
        assert remove_abandoned() == 0  # its owner lives
        assert folder.is_dir()
        killed.send_signal(signal.SIGKILL)
    assert folder.is_dir()
    SessionFiles().close()
    assert not folder.exists()


def test_halves_that_a_killed_server_left_are_removed(temporary: Path) -> None:
    folder = temporary / "sessions"
    name = "0123456789" * 4 + ".atlas"
    left = [f".{name}.1234abcd.tmp", f".{name}.lock"]
    kept = [name, f"{name}.20261130-001500.aside", ".notes.1234abcd.tmp", "a.tmp"]
    folder.mkdir()
    for one in (*left, *kept):
        (folder / one).touch()
    SessionFiles(folder).close()
    assert sorted(os.listdir(folder)) == sorted(kept)
    first = SessionFiles(folder)
    (folder / left[0]).touch()
    with pytest.raises(LockedError):
        SessionFiles(folder)
    assert (folder / left[0]).exists()  # its owner may be writing it
    first.close()


def test_a_folder_that_is_in_use_stays(temporary: Path) -> None:
    first = SessionFiles()
    folder = Path(first.folder)
    SessionFiles(temporary / "sessions").close()
    assert folder.is_dir()
    first.close()


def test_what_is_not_a_servers_stays(temporary: Path) -> None:
    elsewhere = temporary / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / ".server.lock").touch()
    (temporary / "atlas-sessions-link").symlink_to(elsewhere)
    (temporary / "atlas-sessions-file").touch()
    (temporary / "atlas-sessions-mine").mkdir()
    (temporary / "atlas-sessions-mine" / "notes").touch()  # no lock: nobody's that we know
    assert remove_abandoned() == 0
    assert len(os.listdir(temporary)) == 4
    assert (elsewhere / ".server.lock").exists()


def test_another_users_folder_stays(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = temporary / "atlas-sessions-theirs"
    folder.mkdir()
    (folder / ".server.lock").touch()
    with monkeypatch.context() as patch:
        patch.setattr(os, "geteuid", lambda: os.getuid() + 1)
        assert remove_abandoned() == 0
    assert folder.is_dir()
    assert remove_abandoned() == 1
    assert not folder.exists()
