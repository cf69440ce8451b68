"""``--backup`` makes a backup, whatever the command and however it changes the file; with dates, and a count."""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

import pytest
from gguf_builder import tiny_llama

from atlas_kit.cli._group import COMMANDS
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.storage import backup_files
from tests.conftest import SAMPLES
from tests.reports.command_table import options_of

pytest_plugins = ["tests.cli.model_fixtures", "tests.cli.cli_fixtures"]

WITH_BACKUP = [name for name in COMMANDS if "--backup" in options_of(name)]

#: How each of them is called, so that it changes a memory file, or a model: in place, and to another size.
ON_MEMORY = {
    "set": ["set", "FILE", "key", "VALUE"],
    "rm": ["rm", "FILE", "--glob", "k*"],
    "rename": ["rename", "FILE", "key", "other"],
    "append": ["append", "FILE", "key", "VALUE"],
    "import": ["import", "FILE", "JSON"],
    "learn": ["learn", "MODEL", "TEXT", "--memory-file", "FILE"],
    "run": ["run", "MODEL", "-p", "What?", "--max-tokens", "2", "--no-chat", "--memory-file", "FILE"],
}
ON_MODEL = {
    "set": [["set", "FILE", "general.name", "VALUE"], ["set", "FILE", "general.name", "VALUE" * 90],
            ["set", "FILE", "llama.context_length", "77"]],
    "rm": [["rm", "FILE", "general.name"]],
    "rename": [["rename", "FILE", "general.name", "general.other"]],
}  # fmt: skip


@pytest.fixture
def folder(tmp_path, fake):
    (tmp_path / "text.txt").write_text("to be or not to be\n")
    (tmp_path / "fake.gguf").write_bytes(tiny_llama(tokenizer="none").bytes())
    (tmp_path / "chat.json").write_text('[{"role": "user", "content": "Hello"}]')
    memory = MemoryFile()
    memory.update({"key": "value", "kept": "value"})
    memory.save(tmp_path / "memory.atlas")
    shutil.copy(SAMPLES / "gguf" / "tiny.gguf", tmp_path / "model.gguf")
    return tmp_path


def filled(call, folder, file):
    places = {"FILE": file, "MODEL": folder / "fake.gguf", "TEXT": folder / "text.txt"}
    places["JSON"] = folder / "chat.json"
    return [places.get(word, word) for word in call]


def backups_of(path: Path) -> list[Path]:
    return [place.path for place in backup_files.places(path)]


def test_no_command_is_forgotten():
    assert set(WITH_BACKUP) == set(ON_MEMORY), "say here how the command is called, or in ON_MODEL"


@pytest.mark.parametrize("option", [["--backup"], ["--backups", "1"], ["--backups", "3"]])
@pytest.mark.parametrize("name", WITH_BACKUP)
def test_a_memory_file_has_a_backup(folder, run_cli, name, option):
    path = folder / "memory.atlas"
    if name in ("learn", "run"):
        path = folder / "learned.atlas"
        assert run_cli(*filled(ON_MEMORY["learn"], folder, path)).exit_code == 0
    before = path.read_bytes()
    ran = run_cli(*filled(ON_MEMORY[name], folder, path), *option)
    assert ran.exit_code == 0, ran.stderr
    assert path.read_bytes() != before
    assert [place.read_bytes() for place in backups_of(path)] == [before]
    assert path.with_name(path.name + ".bak").read_bytes() == before


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, calls in ON_MODEL.items() for number in range(len(calls))]
)
def test_a_model_has_a_backup(folder, run_cli, name, number):
    path = folder / "model.gguf"
    before = path.read_bytes()
    ran = run_cli(*filled(ON_MODEL[name][number], folder, path), "--backup")
    assert ran.exit_code == 0, ran.stderr
    assert path.read_bytes() != before
    assert (folder / "model.gguf.bak").read_bytes() == before
    assert os.stat(path).st_ino != os.stat(folder / "model.gguf.bak").st_ino
    assert [row.path for row in [*backup_files.places(path)]] == [folder / "model.gguf.bak"]
    back = run_cli("recover", path, "--restore", "latest")
    assert back.exit_code == 0, back.stderr
    assert path.read_bytes() == before


def test_what_changes_nothing_makes_no_backup(folder, run_cli):
    path = folder / "model.gguf"
    with GGUFFile.open(path) as model:
        name = model.metadata["general.name"].items
    assert run_cli("set", path, "general.name", name, "--backup").exit_code == 0
    assert backups_of(path) == []


@pytest.mark.parametrize("kind", ["memory.atlas", "model.gguf"])
@pytest.mark.parametrize("count", [None, 1, 3])
def test_older_backups_have_dates_and_a_count(folder, run_cli, kind, count, parse_json):
    """Newest first, however many are made within one second; the oldest go where there are too many."""
    path, contents = folder / kind, []
    key = "key" if kind.endswith(".atlas") else "general.name"
    for number in range(6):
        contents.append(path.read_bytes())
        option = ["--backup"] if count is None else ["--backups", count]
        assert run_cli("set", path, key, f"value {number}", *option).exit_code == 0
    listed = parse_json(run_cli("recover", path, "--json").stdout)["backups"]
    kept = [Path(one["path"]).read_bytes() for one in listed]
    assert kept == contents[::-1][:count]
    assert all(one["ok"] for one in listed)
    names = [Path(one["path"]).name for one in listed]
    assert names[0] == f"{kind}.bak"
    stem, suffix = kind.split(".")
    assert all(name.startswith(f"{stem}_1") and name.endswith(f".{suffix}.bak") for name in names[1:])
    last = len(kept)
    assert run_cli("recover", path, "--restore", last).exit_code == 0
    assert path.read_bytes() == kept[-1]


def test_a_backup_of_another_file_is_not_removed(folder, run_cli):
    shutil.copy(folder / "memory.atlas", folder / "memory_1.atlas")
    shutil.copy(folder / "memory.atlas", folder / "memory_1.atlas.bak")
    for number in range(4):
        assert run_cli("set", folder / "memory.atlas", "key", number, "--backups", "2").exit_code == 0
    assert (folder / "memory_1.atlas.bak").exists()
    assert len(backups_of(folder / "memory.atlas")) == 2


@pytest.mark.parametrize("kind", ["memory.atlas", "model.gguf"])
def test_without_room_for_a_backup_nothing_changes(folder, run_cli, monkeypatch, kind):
    path = folder / kind
    key = "key" if kind.endswith(".atlas") else "general.name"
    assert run_cli("set", path, key, "first", "--backup").exit_code == 0
    before = {one.name: one.read_bytes() for one in folder.iterdir()}

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(backup_files, "_link_or_copy", full)
    ran = run_cli("set", path, key, "other", "--backup")
    assert ran.exit_code == 2
    assert "memory.atlas.bak: cannot write: the disk is full" in ran.stderr.replace(
        "model.gguf", "memory.atlas"
    )
    assert {one.name: one.read_bytes() for one in folder.iterdir()} == before


def test_a_copy_is_whole_without_the_system_s_help(folder, monkeypatch):
    """A file system that cannot copy by itself, or stops in the middle."""
    path, calls = folder / "large", []
    path.write_bytes(os.urandom(3_000_000))

    def half(old: int, new: int, size: int, at: int, to: int) -> int:
        calls.append(size)
        if len(calls) > 1:
            raise OSError(errno.EXDEV, "Invalid cross-device link")
        return os.pwrite(new, os.pread(old, 1_000_001, at), to)

    monkeypatch.setattr(os, "copy_file_range", half, raising=False)
    with open(path, "rb") as file:
        backup_files.keep_backup(path, copy_of=file.fileno())
    assert (folder / "large.bak").read_bytes() == path.read_bytes()


def test_a_date_means_the_newest_from_then_or_before(folder, run_cli):
    path = folder / "memory.atlas"
    for day in (10, 12, 14):
        memory = MemoryFile()
        memory["day"] = str(day)
        memory.save(path)
        os.utime(path, (1_700_000_000 + day * 86_400,) * 2)  # 14 November 2023 and ten days more
        assert run_cli("set", path, "other", "x", "--backup").exit_code == 0
    for which, day in (
        ("2023-11-25", 10),
        ("2023-11-26", 12),
        ("2023-11-27T23:00:00Z", 12),
        ("2026-01-01", 14),
    ):
        ran = run_cli("recover", path, "--restore", which, "-o", folder / "back.atlas", "-f")
        assert ran.exit_code == 0, ran.stderr
        with MemoryFile.open(folder / "back.atlas") as memory:
            assert memory["day"].text == str(day), which
    ran = run_cli("recover", path, "--restore", "2023-11-23")
    assert ran.exit_code == 2
    assert "no backup from 2023-11-23 or before" in ran.stderr


def test_a_backup_with_another_secret_is_not_damaged(folder, run_cli, parse_json):
    path, one, two = folder / "memory.atlas", folder / "one.txt", folder / "two.txt"
    one.write_text("one\n")
    two.write_text("two\n")
    memory = MemoryFile(version=3, passphrase=b"one")
    memory["day"] = "1"
    memory.save(path)
    assert run_cli("set", path, "day", "2", "--backup", "--passphrase-file", one).exit_code == 0
    assert run_cli("rekey", path, "--passphrase-file", one, "--new-passphrase-file", two).exit_code == 0
    before = path.read_bytes()
    for secret in ((), ("--passphrase-file", two)):
        listed = run_cli("recover", path, *secret)
        assert listed.exit_code == 0
        assert "damaged" not in listed.stdout
        assert "not checked: the " in listed.stdout
        assert parse_json(run_cli("recover", path, *secret, "--json").stdout)["backups"][0]["locked"] is True
        refused = run_cli("recover", path, "--restore", "latest", *secret)
        assert refused.exit_code == 2
        assert "damaged" not in refused.stderr
        assert "the backup cannot be checked" in refused.stderr
        assert "--force" in refused.stderr
    assert path.read_bytes() == before
    assert run_cli("recover", path, "--restore", "1", "--passphrase-file", one).exit_code == 0
    assert run_cli("get", path, "day", "--passphrase-file", one).stdout == "1"


# --- files with holes -------------------------------------------------------------------------------------------


@pytest.fixture
def sparse(folder):
    """A model that a downloader has reserved room for, most of which is a hole."""
    path = folder / "sparse.gguf"
    path.write_bytes((SAMPLES / "gguf" / "tiny.gguf").read_bytes())
    os.truncate(path, 256 << 20)
    if os.stat(path).st_blocks * 512 > 1 << 20:
        pytest.skip("the file system has no holes")
    return path


def small(path: Path) -> bool:
    return os.stat(path).st_blocks * 512 < 1 << 20


def test_a_backup_of_a_sparse_file_is_sparse(sparse, run_cli, monkeypatch):
    def no_links(*_: object, **__: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", no_links)
    for value in ("in place", "x" * 200_000):  # the second does not fit, so that the file is written anew
        assert run_cli("set", sparse, "general.name", value, "--backups", "3").exit_code == 0
        assert small(sparse)
    assert len([*sparse.parent.glob("sparse*.bak")]) == 2
    assert all(small(path) for path in sparse.parent.glob("sparse*.bak"))
    size = sparse.stat().st_size
    ran = run_cli("recover", sparse, "--restore", "latest", "--force")
    assert ran.exit_code == 0, ran.stderr
    assert sparse.stat().st_size < size
    assert small(sparse)
    assert all(small(path) for path in sparse.parent.glob("sparse*.bak"))
    assert (
        run_cli(
            "recover", sparse, "--restore", "latest", "-o", sparse.with_name("out.gguf"), "--force"
        ).exit_code
        == 0
    )
    assert small(sparse.with_name("out.gguf"))
