"""Faults: kill -9 while saving, a full disk, a read-only folder, two writers, a file that changes."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.errors import AtlasError, ConflictError, FileAccessError, LockedError, TruncatedError
from atlas_kit.formats.atlas import MemoryFile
from tests.waiting import LONG

KEY = bytes(range(32))
VERSIONS = [1, 2, 3]
KILLS = 36  # for each version and way of writing: 324 in all, and 40 of GGUF
POSIX = pytest.mark.skipif(sys.platform == "win32", reason="needs fork and signals")

pytestmark = [POSIX]


def filled(version: int, state: int) -> MemoryFile:
    """A memory whose whole content says which state it is."""
    memory = MemoryFile(version=version, key=KEY)
    for number in range(40):
        memory[f"k{number}"] = f"{state}:{number}:" + "x" * (number * 97 % 4000)
    return memory


def state_of(path: Path) -> int:
    """Which state a file holds, all of it; fails when it is a mixture, or damaged."""
    memory = MemoryFile.load(path, key=KEY)
    texts = [e.text for e in memory.values()]
    assert len(texts) == 40
    states = {text.split(":")[0] for text in texts}
    assert len(states) == 1, f"a mixture: {states}"
    for number, text in enumerate(texts):
        assert text == f"{states.copy().pop()}:{number}:" + "x" * (number * 97 % 4000)
    return int(states.pop())


def save_for_ever(path: Path, version: int, how: str) -> None:
    """Save one state after the other until killed (the child's part)."""
    state = 0
    while True:
        state += 1
        if how == "save":
            filled(version, state).save(path, durable=state % 2 == 0)
        elif how == "edit":
            with MemoryFile.edit(path, key=KEY) as memory:
                memory.update({e.key: e for e in filled(version, state).values()})
        else:
            memory = MemoryFile.open(path, key=KEY)
            memory.update({e.key: e for e in filled(version, state).values()})
            memory.save(backup=True)


def kill_in_the_middle(work: Callable[[], None], rng: random.Random) -> None:
    """Fork a child that works, and kill it after some milliseconds."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
        finally:
            os._exit(1)
    time.sleep(rng.uniform(0.002, 0.06))
    os.kill(pid, signal.SIGKILL)
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status), "the child failed on its own"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["save", "edit", "backup"])
def test_kill_while_saving(tmp_path: Path, version: int, how: str) -> None:
    """Whatever moment it is: afterwards the file is the old or the new one, whole, and can be saved again."""
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    rng = random.Random(version)
    seen = set()
    for kills in range(1, 20 * KILLS + 1):  # more on a busy machine, where few children come as far as saving
        kill_in_the_middle(lambda: save_for_ever(path, version, how), rng)
        seen.add(state_of(path))
        if how == "backup" and (tmp_path / "f.atlas.bak").exists():
            state_of(tmp_path / "f.atlas.bak")
        if kills >= KILLS and len(seen) > 1:
            break
    assert len(seen) > 1, "nothing was ever saved"
    with MemoryFile.edit(path, key=KEY, timeout=5) as memory:
        memory["k0"] = memory["k0"].text
    filled(version, 0).save(path)
    assert set(os.listdir(tmp_path)) <= {"f.atlas", "f.atlas.bak"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("version", [2, 3])
def test_kill_at_every_write_of_a_commit(tmp_path: Path, version: int) -> None:
    """Stop a commit after each of its system calls in turn: old until the last write, then new."""
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    original = path.read_bytes()

    def run(calls: int) -> bool:
        """Commit in a child that dies at its ``calls``-th truncation or flush; tell whether it did."""
        pid = os.fork()
        if pid == 0:
            left = calls

            def count(event: str, args: tuple[Any, ...]) -> None:
                nonlocal left
                if event in ("os.truncate", "atlas.call"):
                    left -= 1
                    if left < 0:
                        os.kill(os.getpid(), signal.SIGKILL)

            fsync = os.fsync

            def counted_fsync(fd: int) -> None:
                sys.audit("atlas.call")
                fsync(fd)
                sys.audit("atlas.call")

            sys.addaudithook(count)
            os.fsync = counted_fsync
            memory = MemoryFile.open(path, key=KEY)
            memory.update({e.key: e for e in filled(version, 1).values()})
            memory.commit()
            os._exit(0)
        _, status = os.waitpid(pid, 0)
        assert os.WIFSIGNALED(status) or status == 0
        return os.WIFSIGNALED(status)

    states = []
    for calls in range(20):
        path.write_bytes(original)
        killed = run(calls)
        states.append(state_of(path))
        if not killed:
            break
    assert states[0] == 0
    assert states[-1] == 1
    assert states == sorted(states)


@pytest.mark.parametrize("version", [2, 3])
def test_a_commit_cut_off_anywhere(tmp_path: Path, version: int) -> None:
    """A commit's bytes arrive up to any point, header last: the old state until that is there."""
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    old = path.read_bytes()
    memory = MemoryFile.open(path, key=KEY)
    memory.update({e.key: e for e in filled(version, 1).values()})
    memory.commit()
    new = path.read_bytes()
    header = 160 if version == 2 else 256
    for size in range(len(old), len(new), 1009):
        path.write_bytes(old[:header] + new[header:size])
        assert state_of(path) == 0
    path.write_bytes(new)
    assert state_of(path) == 1


# --- a full disk -----------------------------------------------------------------------------------------


@contextmanager
def disk_full(size: int) -> Iterator[None]:
    """No file can grow beyond so many bytes."""
    old = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, old[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, old)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["save", "commit", "edit", "backup"])
@pytest.mark.parametrize("room", [0, 100, 5_000, 100_000, 130_000])
def test_a_full_disk(tmp_path: Path, version: int, how: str, room: int) -> None:
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    before = path.read_bytes()
    memory = MemoryFile.open(path, key=KEY)
    memory["large"] = os.urandom(400_000)

    def write() -> None:
        if how == "edit":
            with MemoryFile.edit(path, key=KEY) as other:
                other["large"] = os.urandom(400_000)
        elif how == "backup":
            memory.save(backup=True)
        else:
            getattr(memory, how)()

    with disk_full(room), pytest.raises(FileAccessError, match="cannot write") as caught:
        write()
    assert caught.value.path == str(path)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["f.atlas"]
    assert state_of(path) == 0
    if how == "edit":  # the other one's attempt left its time on the file
        memory = MemoryFile.open(path, key=KEY)
        memory["large"] = b"x"
    memory.commit()  # there is room again
    assert len(MemoryFile.load(path, key=KEY)) == 41


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="mounting needs root")
@pytest.mark.parametrize("version", VERSIONS)
def test_a_disk_that_is_really_full(tmp_path: Path, version: int) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", disk], capture_output=True, check=False
    ).returncode:
        pytest.skip("no file system can be mounted here")
    try:
        path = disk / "f.atlas"
        filled(version, 0).save(path)
        before = path.read_bytes()
        memory = MemoryFile.open(path, key=KEY)
        memory["large"] = os.urandom(250_000)
        for write in (memory.commit, memory.save):
            with pytest.raises(FileAccessError, match="disk is full"):
                write()
            assert path.read_bytes() == before
            assert os.listdir(disk) == ["f.atlas"]
        del memory["large"]
        memory["k0"] = memory["k0"].text
        memory.commit()
        assert state_of(path) == 0
    finally:
        subprocess.run(["umount", "-l", disk], check=True)


# --- folders and files that cannot be written ------------------------------------------------------------


def as_nobody(work: Callable[[], None]) -> str:
    """Run in a child that is not root (whom permissions do not stop); return the error that it told of."""
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            if os.geteuid() == 0:
                os.setgid(65534)
                os.setuid(65534)
            work()
            os.write(write_end, b"no error")
        except AtlasError as error:
            os.write(write_end, f"{type(error).__name__}: {error}".encode())
        except BaseException as error:
            os.write(write_end, f"FOREIGN {error!r}".encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with open(read_end, "rb") as pipe:
        told = pipe.read().decode()
    os.waitpid(pid, 0)
    return told


@pytest.fixture
def open_folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that other users can reach."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        os.chmod(folder, 0o755)
        yield Path(folder)
        os.chmod(folder, 0o755)


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("how", ["save", "commit", "edit", "new"])
def test_a_read_only_folder(open_folder: Path, how: str) -> None:
    path = open_folder / "f.atlas"
    filled(2, 0).save(path)
    os.chmod(path, 0o444)
    os.chmod(open_folder, 0o555)
    before = path.read_bytes()

    def work() -> None:
        if how == "edit":
            with MemoryFile.edit(path) as memory:
                memory["a"] = "b"
        elif how == "new":
            filled(2, 1).save(open_folder / "new.atlas")
        else:
            memory = MemoryFile.open(path)
            memory["a"] = "b"
            getattr(memory, how)()

    told = as_nobody(work)
    assert told.startswith("FileAccessError")
    assert "permission" in told
    assert str(open_folder) in told
    assert path.read_bytes() == before
    assert os.listdir(open_folder) == ["f.atlas"]


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_file_that_may_not_be_read(open_folder: Path) -> None:
    path = open_folder / "f.atlas"
    filled(2, 0).save(path)
    os.chmod(path, 0)
    told = as_nobody(lambda: MemoryFile.open(path).close())
    assert told.startswith("FileAccessError")
    assert "permission" in told


def test_reading_from_a_read_only_folder_needs_no_writing(open_folder: Path) -> None:
    path = open_folder / "f.atlas"
    filled(2, 0).save(path)
    os.chmod(open_folder, 0o555)
    assert as_nobody(lambda: MemoryFile.load(path).close()) == "no error"


# --- two processes at once -------------------------------------------------------------------------------


def _compete(path: Path, name: str, rounds: int, results: Any) -> None:
    """Change one's own key again and again, opening before and committing after (a child's part)."""
    won = conflicts = 0
    for number in range(rounds):
        try:
            memory = MemoryFile.open(path, key=KEY)
            memory[f"{name}{number}"] = name
            memory.commit() if number % 2 else memory.save()
            won += 1
        except (ConflictError, LockedError):
            conflicts += 1
    results.put((name, won, conflicts))


@pytest.mark.slow
@pytest.mark.parametrize("version", VERSIONS)
def test_two_processes_saving_at_once(tmp_path: Path, version: int) -> None:
    """What a process was told is saved is there at the end; it is told of conflicts instead."""
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    children = [context.Process(target=_compete, args=(path, name, 50, results)) for name in "pq"]
    for child in children:
        child.start()
    told = [results.get(timeout=300) for _ in children]
    for child in children:
        child.join()
    memory = MemoryFile.load(path, key=KEY)
    for name, won, conflicts in told:
        assert won + conflicts == 50
        assert sum(key.startswith(name) for key in memory) == won
    assert len(memory) == 40 + sum(won for _, won, _ in told)
    assert os.listdir(tmp_path) == ["f.atlas"]


def _reading(path: Path, seconds: float, results: Any) -> None:
    """Open and read all while others write, for some seconds and at least four times (a child's part)."""
    end, seen = time.monotonic() + seconds, 0
    try:
        while seen <= 3 or time.monotonic() < end:
            state_of(path)
            seen += 1
        results.put(seen)
    except BaseException as error:
        results.put(repr(error))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["save", "edit"])
def test_readers_beside_a_writer_see_whole_states(tmp_path: Path, version: int, how: str) -> None:
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    reader = context.Process(target=_reading, args=(path, 1.5, results))
    reader.start()
    pid = os.fork()
    if pid == 0:
        save_for_ever(path, version, how)
    seen = results.get(timeout=LONG)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    reader.join()
    assert isinstance(seen, int), seen


# --- a file that changes while it is read ----------------------------------------------------------------


def _spoil(path: Path, how: str) -> None:
    size = path.stat().st_size
    if how == "truncated":
        os.truncate(path, size // 3)
    elif how == "emptied":
        os.truncate(path, 0)
    else:
        path.write_bytes(os.urandom(size))


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten"])
@pytest.mark.parametrize("after", [0, 1, 5, 39])
def test_spoiled_while_reading(tmp_path: Path, version: int, how: str, after: int) -> None:
    """No SIGBUS and nothing wrong: each entry is what it was, or one of our errors."""
    path = tmp_path / "f.atlas"
    filled(version, 0).save(path)
    want = [e.data for e in MemoryFile.open(path, key=KEY).values()]
    memory = MemoryFile.open(path, key=KEY)
    entries = list(memory.values())
    errors = 0
    for number, e in enumerate(entries):
        if number == after:
            _spoil(path, how)
        try:
            assert e.data == want[number]
        except AtlasError:
            errors += 1
    assert errors
    for use in (lambda: list(memory), lambda: memory["k39"].data, lambda: MemoryFile.load(path, key=KEY)):
        with contextlib.suppress(AtlasError):
            use()

    def change() -> None:
        memory["k0"] = "new"
        memory.commit()

    with pytest.raises(AtlasError):
        change()


def test_a_view_of_a_truncated_file_is_refused_before_it_is_made(tmp_path: Path) -> None:
    """A view made earlier is the one thing that the operating system can take away (as documented)."""
    memory = MemoryFile()
    memory["t"] = np.zeros(100_000)
    memory.save(tmp_path / "f")
    e = MemoryFile.open(tmp_path / "f")["t"]
    os.truncate(tmp_path / "f", 1000)
    with pytest.raises(TruncatedError):
        e.array()


@pytest.fixture
def tiny(sample_data: Path, tmp_path: Path) -> Path:
    source = sample_data / "gguf" / "tiny.gguf"
    if not source.exists():
        pytest.skip("sample_data/ was not built")
    return Path(shutil.copy(source, tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("how", ["truncated", "emptied", "overwritten"])
def test_gguf_spoiled_while_reading(tiny: Path, how: str) -> None:
    from atlas_kit.formats.gguf import GGUFFile, hash_tensors

    file = GGUFFile.open(tiny)
    other = GGUFFile.open(tiny)
    _spoil(tiny, how)
    errors = 0
    uses: list[Callable[[], Any]] = [lambda f=f: f.items for f in file.fields]  # type: ignore[misc]
    for info in file.tensor_infos:
        uses += [
            lambda i=info: sum(map(len, file.iter_raw(i))),  # type: ignore[misc]
            lambda i=info: file.dequantize(i),  # type: ignore[misc]
        ]
    uses += [lambda: hash_tensors(other), lambda: GGUFFile.open(tiny)]
    for use in uses:
        try:
            use()
        except AtlasError:
            errors += 1
    assert errors
    if how != "overwritten":
        with pytest.raises(AtlasError):
            other.array(other.tensor_infos[-1].name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_kill_while_editing_gguf(tiny: Path, tmp_path: Path) -> None:
    """Metadata edits, in place and rewriting, killed at any moment: the model is whole, old or new."""
    from atlas_kit.formats.gguf import GGUFFile, Set, edit_metadata, hash_tensors, recover_journal

    def digests() -> dict[str, str]:
        with GGUFFile.open(tiny) as file:
            return {name: str(digest) for name, digest in hash_tensors(file).by_name().items()}

    want = digests()
    first = GGUFFile.open(tiny).get("general.name")
    names = ["a", "a somewhat longer name " * 3]

    def work() -> None:
        number = 0
        while True:
            number += 1
            edit_metadata(tiny, [Set("general.name", names[number % 2])])

    rng = random.Random(1)
    seen = set()
    for _ in range(40):
        kill_in_the_middle(work, rng)
        recover_journal(tiny)
        seen.add(GGUFFile.open(tiny).get("general.name"))
        assert digests() == want
    assert set(names) & seen
    assert seen <= {first, *names}
