"""Room made inside a model's file by its file system: no byte of the data changes, whatever happens meanwhile."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from gguf_builder import tiny_llama

from atlas_kit.errors import FileAccessError, FileCorruptError
from atlas_kit.formats.gguf import GGUFFile, Set, edit, edit_metadata, journal
from atlas_kit.formats.gguf.check import check_gguf, is_ok
from atlas_kit.formats.gguf.journal import Journal, journal_path, recover_journal
from atlas_kit.formats.gguf.tables import PAD_KEY
from atlas_kit.storage import ranges

TINY = tiny_llama()
DATA = {str(tensor.name): tensor.payload for tensor in TINY.tensors}
LONG = Set("general.name", "n" * 3000)


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "m.gguf"
    path.write_bytes(TINY.bytes())
    with open(tmp_path / "probe", "w+b") as probe:
        probe.write(bytes(8192))
        probe.flush()
        with open(tmp_path / "probe", "rb") as alone:
            movable = ranges.insert_range(probe.fileno(), 0, 4096)
            assert not ranges.sole_user(alone.fileno())
        if not movable:
            pytest.skip("this file system cannot move data inside a file")
    monkeypatch.setattr(edit, "_LARGE", 0)
    return path


def whole(path: Path, name: str) -> bool:
    with GGUFFile.open(path) as file:
        assert {info.name: file.array(info).tobytes() for info in file.tensor_infos} == DATA
        return bool(file.metadata["general.name"].items == name)


def test_only_the_header_is_written(model: Path) -> None:
    inode, size = model.stat().st_ino, model.stat().st_size
    result = edit_metadata(model, [LONG])
    assert result.mode == "in-place"
    assert model.stat().st_ino == inode
    assert 1 << 16 < model.stat().st_size - size < 1 << 18
    assert whole(model, LONG.value)
    assert is_ok(check_gguf(model))
    assert not journal_path(model).exists()
    before = model.stat().st_size
    again = edit_metadata(model, [Set("general.name", "m" * 9000)], in_place=True)
    assert (again.mode, model.stat().st_size) == ("in-place", before)
    assert whole(model, "m" * 9000)
    with GGUFFile.open(model) as file:
        assert [item.key for item in file.fields].count(PAD_KEY) == 1


def test_it_is_for_large_files(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(edit, "_LARGE", 1 << 30)
    assert edit_metadata(model, [LONG]).mode == "rewritten"


@pytest.mark.parametrize("how", ["open", "mapped", "for writing", "another name", "backup"])
def test_a_file_that_others_use_is_replaced_instead(model: Path, how: str) -> None:
    """What a program has mapped must not move; a second name and a backup keep the old bytes."""
    import mmap

    old, other = model.read_bytes(), model.with_name("other")
    reader = open(model, "r+b" if how == "for writing" else "rb")  # noqa: SIM115 (closed below)
    view = None
    if how == "mapped":
        view = mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ)
    if how in ("mapped", "another name", "backup"):
        reader.close()
    if how == "another name":
        os.link(model, other)
    result = edit_metadata(model, [LONG], backup=how == "backup")
    assert result.mode == "rewritten"
    assert whole(model, LONG.value)
    seen = {"mapped": lambda: bytes(view or b""), "another name": other.read_bytes,
            "backup": lambda: Path(f"{model}.bak").read_bytes()}.get(how, reader.read)  # fmt: skip
    assert seen() == old
    if view is not None:
        view.close()
    reader.close()
    with GGUFFile.open(model) as file:
        room = edit_metadata(file.source, [Set("general.name", "m" * 9000)])
    assert room.mode == "in-place", "a file that had to be replaced has room from then on"


def killed(work: Callable[[], Any], *places: tuple[Any, str]) -> bool:
    """Run something in a process that is killed when it comes to one of the places; tell whether it was."""
    child = os.fork()
    if not child:

        def end(*_: object, **__: object) -> None:
            os.kill(os.getpid(), signal.SIGKILL)

        try:
            for owner, name in places:
                setattr(owner, name, end)
            work()
        finally:
            os._exit(0)
    return os.WIFSIGNALED(os.waitpid(child, 0)[1])


def after_insertion() -> None:
    insert = ranges.insert_range

    def inserted(*arguments: int) -> bool:
        assert insert(*arguments)
        os.kill(os.getpid(), signal.SIGKILL)
        return True

    journal.insert_range = inserted


def half_a_header() -> None:
    def write(file: Any, offset: int, data: bytes) -> None:
        os.pwrite(file.fileno(), data[: len(data) // 2], offset)
        os.kill(os.getpid(), signal.SIGKILL)

    journal._write_at = write  # type: ignore[assignment]


@pytest.mark.parametrize("moment", ["journal written", "data moved", "half a header", "header written"])
def test_a_kill_at_any_moment(model: Path, moment: str) -> None:
    old = model.read_bytes()

    def work() -> None:
        {"data moved": after_insertion, "half a header": half_a_header}.get(moment, lambda: None)()
        edit_metadata(model, [LONG])

    places = {"journal written": [(journal, "insert_range")], "header written": [(journal, "_drop")]}
    assert killed(work, *places.get(moment, []))
    if moment in ("data moved", "half a header"):
        with pytest.raises(FileCorruptError, match="interrupted"):
            GGUFFile.open(model)
        assert killed(lambda: recover_journal(model), (journal, "collapse_range")), (
            "a kill while it is put back"
        )
        assert recover_journal(model)
    else:
        assert not recover_journal(model)
    assert not journal_path(model).exists()
    if moment == "header written":
        assert whole(model, LONG.value)
    else:
        assert model.read_bytes() == old


@pytest.mark.parametrize("blocks", [1, 3, 9])
def test_a_power_cut_while_the_data_moves(model: Path, blocks: int) -> None:
    """The extents are moved from behind: a first part of the file may still be where it was."""
    old = model.read_bytes()
    with GGUFFile.open(model) as file:
        header = old[: file.data_start]
    new = header + bytes(8192)
    journal_path(model).write_bytes(Journal(bytes(8192) + header, new, 8192, len(old)).encoded())
    with open(model, "r+b") as file:
        assert ranges.insert_range(file.fileno(), 4096 * blocks, 8192)
    with pytest.raises(FileCorruptError, match="interrupted"):
        GGUFFile.open(model)
    assert recover_journal(model)
    assert model.read_bytes() == old


def test_a_full_disk(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The data has been moved, and the new header cannot be written: all is put back."""
    old, write = model.read_bytes(), journal._write_at

    def full(file: Any, offset: int, data: bytes) -> None:
        if offset == 0:
            write(file, offset, data[:700])
            raise OSError(28, "No space left on device")
        write(file, offset, data)

    monkeypatch.setattr(journal, "_write_at", full)
    with pytest.raises(FileAccessError, match="full"):
        edit_metadata(model, [LONG])
    assert model.read_bytes() == old
    assert not journal_path(model).exists()


def test_a_file_system_that_cannot(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(journal, "insert_range", lambda *_: False)
    assert edit_metadata(model, [LONG]).mode == "rewritten"
    assert whole(model, LONG.value)
    assert not journal_path(model).exists()


def test_a_journal_of_another_file_does_no_harm(model: Path) -> None:
    old = model.read_bytes()
    header = old[:1000]
    for size, start in ((len(old), old[::-1][:1000]), (len(old) - 4096, old[::-1][:1000]), (5, header)):
        journal_path(model).write_bytes(Journal(bytes(4096) + start, bytes(5096), 4096, size).encoded())
        assert not recover_journal(model)
        assert model.read_bytes() == old
        assert not journal_path(model).exists()


@pytest.mark.parametrize("moment", ["data moved", "half a header"])
def test_every_look_at_an_interrupted_edit_names_the_journal(model: Path, moment: str, run_cli: Any) -> None:
    """Zeros at the beginning are the edit's, and not what a download left: to get the file again would be wrong."""

    def work() -> None:
        {"data moved": after_insertion, "half a header": half_a_header}[moment]()
        edit_metadata(model, [LONG])

    old = model.read_bytes()
    assert killed(work)
    for line in (["inspect"], ["validate"], ["validate", "--data"], ["repair", "-n"], ["ls"], ["hash"]):
        ran = run_cli(line[0], model, *line[1:])
        said = ran.stdout + ran.stderr
        assert ran.exit_code in (1, 2)
        assert f"atlas-tool recover {model} --restore journal" in said
        assert "Get it again" not in said
        assert "atlas-tool repair" not in said
    assert run_cli("recover", model, "--restore", "journal").exit_code == 0
    assert model.read_bytes() == old
