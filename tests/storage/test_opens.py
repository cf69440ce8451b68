"""A file that is given to an operation is opened once, however much is asked of it; what is lent stays open."""

from __future__ import annotations

import os
import re
import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from atlas_kit.errors import FileAccessError, InvalidParamError, MagicMismatchError, NoSuchFileError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.formats.gguf import GGUFFile
from atlas_kit.operations.compress import CompressOptions, compress_file
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.operations.diff import diff_files
from atlas_kit.operations.get import get_value
from atlas_kit.operations.hash import hash_file, identify_model
from atlas_kit.operations.inspect import Wanted, inspect_file
from atlas_kit.operations.ls import list_file
from atlas_kit.operations.merge import merge_files
from atlas_kit.operations.repair import RepairOptions, repair_file
from atlas_kit.operations.rm import remove_keys
from atlas_kit.operations.set import SetOptions, set_value
from atlas_kit.operations.validate import validate_file
from atlas_kit.settings.recommend import recommend
from atlas_kit.storage import atomic
from atlas_kit.storage import given as given_module
from atlas_kit.storage.given import open_source
from atlas_kit.storage.source import BytesSource, LocalSource, Source

SAMPLES = Path(__file__).parents[2] / "sample_data"
MODEL = SAMPLES / "models" / "tiny-python.gguf"
ALL = Wanted(entries=True, keys=True, tensors=True, stats=True, hex=True, map=True)
DRY = RepairOptions(dry_run=True)


@pytest.fixture
def files(tmp_path: Path) -> dict[str, str]:
    """One file of each format, and a model in two shards."""
    made = {}
    for suffix, sample in ((".atlas", "atlas/all-types.atlas"), (".gguf", "gguf/tiny.gguf")):
        made[suffix] = shutil.copy(SAMPLES / sample, tmp_path / f"f{suffix}")
    for suffix in (".safetensors", ".npz", ".json"):
        made[suffix] = str(tmp_path / f"f{suffix}")
        convert_file(made[".atlas"], made[suffix])
    for number in (1, 2):
        name = f"tiny-split-{number:05d}-of-00002.gguf"
        made[f"shard {number}"] = shutil.copy(SAMPLES / "gguf" / name, tmp_path / name)
    return made


@contextmanager
def counted(monkeypatch: pytest.MonkeyPatch) -> Iterator[Counter[str]]:
    """Count how often each file is opened below Python's own opening of modules; to be written to: under ``NAME+``."""
    opens: Counter[str] = Counter()
    plain, builtin = os.open, open

    def os_open(path: Any, flags: int, *args: Any, **kwargs: Any) -> int:
        writing = flags & (os.O_WRONLY | os.O_RDWR)
        opens[os.path.basename(os.fspath(path)) + ("+" if writing else "")] += 1
        return plain(path, flags, *args, **kwargs)

    def open_(path: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not isinstance(path, int):
            writing = set(mode) & set("wax+")
            opens[os.path.basename(os.fspath(path)) + ("+" if writing else "")] += 1
        return builtin(path, mode, *args, **kwargs)

    with monkeypatch.context() as patched:
        patched.setattr(os, "open", os_open)
        patched.setattr("builtins.open", open_)
        patched.setattr("io.open", open_)
        yield opens


SUFFIXES = [".atlas", ".gguf", ".safetensors", ".npz", ".json"]
#: What each operation does with one file.
OPERATIONS: dict[str, Any] = {
    "inspect": inspect_file,
    "validate": validate_file,
    "list": list_file,
    "hash": hash_file,
}


@pytest.mark.parametrize("suffix", SUFFIXES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_file_is_opened_once(
    name: str, suffix: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    OPERATIONS[name](files[suffix])  # modules are imported now
    with counted(monkeypatch) as opens:
        OPERATIONS[name](files[suffix])
    assert opens[f"f{suffix}"] == 1


@pytest.mark.parametrize("suffix", [".atlas", ".gguf", ".safetensors"])
@pytest.mark.parametrize("wanted", [Wanted(hex=True, map=True), ALL], ids=["hex and map", "all"])
def test_every_view_of_a_file_shares_one_opening(
    wanted: Wanted, suffix: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with counted(monkeypatch) as opens:
        result = inspect_file(files[suffix], wanted)
    assert result.fields
    assert result.regions
    assert opens[f"f{suffix}"] == 1


def test_each_shard_is_opened_once(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    names = [Path(files[f"shard {number}"]).name for number in (1, 2)]
    for operation in (inspect_file, validate_file, list_file, hash_file):
        with counted(monkeypatch) as opens:
            operation(files["shard 1"])
        assert [opens[name] for name in names] == [1, 1]
    with counted(monkeypatch) as opens, GGUFFile.open(files["shard 2"]) as model:
        assert len(model.shards) == 2
    assert [opens[name] for name in names] == [1, 1]


def test_what_writes_opens_its_inputs_once(
    files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory, model = files[".atlas"], files[".gguf"]
    other = shutil.copy(memory, tmp_path / "other.atlas")
    with counted(monkeypatch) as opens:
        diff_files(memory, other)
    assert (opens["f.atlas"], opens["other.atlas"]) == (1, 1)
    with counted(monkeypatch) as opens:
        merge_files([memory, other], tmp_path / "merged.atlas")
    assert (opens["f.atlas"], opens["other.atlas"]) == (1, 1)
    for path in (memory, model):
        with counted(monkeypatch) as opens:
            repair_file(path, None, DRY)
        assert opens[Path(path).name] == 1
    with counted(monkeypatch) as opens:
        convert_file(memory, tmp_path / "v1.atlas", ConvertOptions(to="atlas-v1"))
        compress_file(memory, tmp_path / "small.atlas")
        convert_file(model, tmp_path / "native.gguf", ConvertOptions(to="atlas-gguf"))
        compress_file(model, tmp_path / "small.gguf", CompressOptions(quantize="f16"))
    assert (opens["f.atlas"], opens["f.gguf"]) == (2, 2)
    with counted(monkeypatch) as opens:
        recommend(MODEL)
        identify_model(MODEL)
        with get_value(MODEL, "general.architecture"):
            pass
    assert opens[MODEL.name] == 3


@pytest.mark.parametrize("suffix", [".atlas", ".gguf"])
@pytest.mark.parametrize("backup", [False, True], ids=["in place", "anew"])
def test_what_changes_a_file_reads_it_once(
    backup: bool, suffix: str, files: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    path, name = files[suffix], f"f{suffix}"
    key = "general.name" if suffix == ".gguf" else "greeting"
    set_value(path, key, b"first", SetOptions())  # modules are imported now
    remove_keys(path, [key], dry_run=True)
    with counted(monkeypatch) as opens:
        stored = set_value(path, key, b"hello", SetOptions(backup=backup))
    assert (stored.replaced, opens[name]) == (True, 1)
    with counted(monkeypatch) as opens:
        remove_keys(path, [key], dry_run=True)
    assert (opens[name], opens[f"{name}+"]) == (1, 0)
    with counted(monkeypatch) as opens:
        assert remove_keys(path, [key], backup=backup).keys == [key]
    assert opens[name] == 1
    assert key not in {row.key for row in (list_file(path).entries or list_file(path).metadata)}


@pytest.mark.parametrize("suffix", [".atlas", ".gguf"])
def test_an_edit_reads_the_file_that_is_there_when_it_has_the_lock(
    suffix: str, files: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = files[suffix]
    newer = shutil.copy(path, tmp_path / f"newer{suffix}")
    keys = ("general.name", "general.author") if suffix == ".gguf" else ("one", "two")
    set_value(newer, keys[0], b"theirs", SetOptions())
    taken = atomic.lock

    @contextmanager
    def lock(target: Any, **options: Any) -> Iterator[None]:
        with taken(target, **options):
            if Path(target).name == f"f{suffix}" and os.path.exists(newer):
                os.replace(newer, path)  # what another writer did while we waited
            yield

    monkeypatch.setattr(atomic, "lock", lock)
    monkeypatch.setattr("atlas_kit.formats.gguf.edit.lock", lock)
    set_value(path, keys[1], b"ours", SetOptions())
    assert not os.path.exists(newer)
    for key, value in zip(keys, (b"theirs", b"ours"), strict=True):
        with get_value(path, key) as found:
            assert value in b"".join(bytes(piece) for piece in found.chunks())


def test_only_a_file_can_be_changed_in_place(files: dict[str, str]) -> None:
    data = BytesSource(Path(files[".atlas"]).read_bytes())
    with pytest.raises(InvalidParamError, match="only a file can be changed"), MemoryFile.edit(data):
        pass
    with pytest.raises(InvalidParamError, match="only a file can be changed"):
        remove_keys(data, ["greeting"], ignore_missing=True)


# --- what may be given -----------------------------------------------------------------------------------


def test_a_path_its_bytes_and_a_source_give_the_same(files: dict[str, str]) -> None:
    for suffix in SUFFIXES:
        path = files[suffix]
        data = Path(path).read_bytes()
        by_path = list_file(path).to_json()
        assert by_path == list_file(BytesSource(data, path)).to_json()
        assert validate_file(data).findings == validate_file(path).findings
        with open_source(path) as source:
            assert list_file(source).to_json() == by_path
            assert validate_file(source).ok
            assert source.read(0, 4) == data[:4]  # still open


def test_what_is_lent_stays_open_when_something_fails(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"neither")
    with open_source(path) as source:
        for use in (list_file, GGUFFile.open, MemoryFile.open):
            with pytest.raises(MagicMismatchError):
                use(source)
            assert source.read(0, 7) == b"neither"


def test_what_was_opened_is_closed_again(files: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    closed: list[str] = []
    made: list[Source] = []
    plain_init, plain_close = LocalSource.__init__, LocalSource.close

    def init(self: LocalSource, *args: Any) -> None:
        plain_init(self, *args)
        made.append(self)

    def close(self: LocalSource) -> None:
        if self.fileno() is not None:
            closed.append(self.path)
        plain_close(self)

    monkeypatch.setattr(LocalSource, "__init__", init)
    monkeypatch.setattr(LocalSource, "close", close)
    for suffix in SUFFIXES:
        inspect_file(files[suffix])
    inspect_file(files["shard 1"])
    assert sorted(closed) == sorted(source.path or "" for source in made)


def test_a_missing_file_is_a_finding_of_validate_and_an_error_elsewhere(tmp_path: Path) -> None:
    missing = tmp_path / "none.atlas"
    assert [finding.code for finding in validate_file(missing).findings] == ["no-such-file"]
    with pytest.raises(NoSuchFileError):
        inspect_file(missing)


def test_a_memory_opened_from_a_source_saves_to_its_path(files: dict[str, str]) -> None:
    with open_source(files[".atlas"]) as source, MemoryFile.open(source) as memory:
        memory["new"] = "value"
        memory.save()
        assert memory["new"].text == "value"
        assert source.changed()
    with MemoryFile.open(files[".atlas"]) as memory:
        assert memory["new"].text == "value"


def test_a_source_is_a_seekable_stream(tmp_path: Path) -> None:
    data = bytes(range(256)) * 400
    (tmp_path / "f").write_bytes(data)
    with open_source(tmp_path / "f") as local:
        for source in (local, BytesSource(data)):
            with source.stream() as stream:
                assert stream.read(3) == data[:3]
                assert stream.seek(-5, os.SEEK_END) == len(data) - 5
                assert stream.read() == data[-5:]
                assert stream.seek(70_000) == 70_000
                assert stream.seek(2, os.SEEK_CUR) == 70_002
                assert stream.read(10) == data[70_002:70_012]
                with pytest.raises((OSError, ValueError)):
                    stream.seek(-1)
            assert source.read(0, 2) == data[:2]


def test_a_duplicate_reads_the_same_file_and_is_closed_by_itself(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"first")
    with open_source(path) as source:
        second = source.duplicate()
        (tmp_path / "g").write_bytes(b"another")
        os.replace(tmp_path / "g", path)
        source.close()
        assert second.read(0, second.size) == b"first"
        second.close()
        with pytest.raises(FileAccessError):
            source.duplicate()
    data = BytesSource(b"bytes")
    data.duplicate().close()
    assert data.read(0, 5) == b"bytes"


def test_only_one_module_tells_a_path_from_bytes() -> None:
    package = Path(given_module.__file__).parents[1]
    asked = re.compile(r"isinstance\((given|path|source|first|second), (bytes|Source|\(bytes)")
    deciding = [path.name for path in package.rglob("*.py") if asked.search(path.read_text(encoding="utf-8"))]
    assert deciding == ["given.py"]
