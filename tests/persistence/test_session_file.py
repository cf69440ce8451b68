"""A session's state in a file: read whole from one opened file, derived once, written without the session."""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import threading

import numpy as np
import pytest
from gguf_builder import BOOL, KV, STR, U32, tiny_llama

from atlas_kit import MemoryFile
from atlas_kit.errors import (
    AtlasError,
    ConflictError,
    FileCorruptError,
    InvalidParamError,
    KeyRequiredError,
    NoSuchFileError,
    WrongModelError,
)
from atlas_kit.formats.atlas import DataType, crypto
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling, memory_choice
from atlas_kit.llama.open_session import open_session
from atlas_kit.persistence import session_file
from atlas_kit.persistence.entry_keys import TEXTS as TEXTS_KEY
from atlas_kit.persistence.session_file import (
    read_session_state,
    saved_settings,
    session_state_bytes,
    write_session_state,
)
from atlas_kit.persistence.snapshot import load_memory, save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings
from atlas_kit.settings.native import FILE_KEY, PREFIX
from atlas_kit.storage.keys import Keys
from atlas_kit.storage.source import LocalSource

GREEDY = Sampling(temperature=0)
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
SECRET = "correct horse"


def state_after(text, settings=SMALL):
    with AtlasSession(FakeEngine(), settings) as session:
        session.feed(text)
        return session.state()


def contents(state):
    """Return all that a state holds, as values that can be compared."""
    groups = state.memory.groups().items()
    arrays = {f"{group}.{name}": array for group, named in groups for name, array in named.items()}
    arrays |= {**state.waiting, **state.output}
    found = {name: (array.dtype.name, array.shape, array.tobytes()) for name, array in arrays.items()}
    plain = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    for name in ("memory", "waiting", "output"):
        del plain[name]
    if state.episodes is not None:
        kept = {f.name: getattr(state.episodes, f.name) for f in dataclasses.fields(state.episodes)}
        plain["episodes"] = {
            name: value.tolist() if hasattr(value, "tolist") else value for name, value in kept.items()
        }
    return {**found, **plain}


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.atlas"


@pytest.fixture(scope="module")
def states():
    """Return two states that differ in settings, arrays, waiting tokens and context."""
    return state_after(TEXT[:45]), state_after(TEXT[30:81], SMALL.replace(blend_ratio=0.25))


def test_a_file_of_bytes_holds_what_one_on_a_disk_does(path, states):
    state = dataclasses.replace(states[1], texts=([1, 2, 3], [4, 5]))
    data = session_state_bytes(state, metadata={"session": {"name": "anna"}})
    write_session_state(path, state, metadata={"session": {"name": "anna"}})
    assert contents(read_session_state(data)) == contents(read_session_state(path)) == contents(state)
    with MemoryFile.load(data) as made, MemoryFile.load(path) as saved:
        assert list(made) == list(saved)
        assert all(made[key].data == saved[key].data for key in saved)
        assert (made.version, made.model_hash) == (saved.version, saved.model_hash)


@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_is_written_is_read(version, states, path):
    secret = {"passphrase": SECRET} if version == 3 else {}
    write_session_state(path, states[0], version=version, **secret)
    assert contents(read_session_state(path, **secret)) == contents(states[0])
    bare = dataclasses.replace(states[0], tokens=(), position=0, output={}, context=None)
    assert contents(read_session_state(path, context=False, **secret)) == contents(bare)
    assert saved_settings(path, **secret) == SMALL.to_json()
    write_session_state(path, bare, **secret)
    assert contents(read_session_state(path, **secret)) == contents(bare)


def test_an_opened_file_stays_open(states, path):
    write_session_state(path, states[0])
    with MemoryFile.open(path) as file:
        assert contents(read_session_state(file)) == contents(states[0])
        assert contents(read_session_state(file)) == contents(states[0])
    assert contents(read_session_state(path.read_bytes())) == contents(states[0])


def test_it_is_written_in_another_thread_while_the_session_goes_on(path):
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:45])
        state = session.state()
        expected = contents(state)
        thread = threading.Thread(target=write_session_state, args=(path, state))
        thread.start()
        session.feed(TEXT * 3)
        thread.join()
    assert contents(read_session_state(path)) == expected


ODD = [
    {"position": -3},
    {"position": 44},
    {"position": "x"},
    {"position": 45.0},
    {"position": True, "tokens": (), "output": {}, "context": None},
    {"position": 1 << 70},
    {"tokens": ("a",) * 45},
    {"tokens": (1.5,) * 45},
    {"tokens": (-1,) * 45},
    {"tokens": 5},
    {"tokens": "abc"},
    {"waiting": 5},
    {"waiting": {"token": np.zeros(3, np.int64)}},
    {"waiting": {"other": np.zeros(3)}},
    {"waiting": {"log_eta": np.asarray(np.nan)}},
    {"waiting": {"recent": np.array(["a"])}},
    {"waiting": {"recent": "a"}},
    {"waiting": {"log_eta": np.zeros((2, 2))}},
    {"output": 5},
    {"output": {"logits": np.zeros((1, 4))}},
    {"output": {"logits": np.full((1, 4), np.nan), "hidden": np.zeros((1, 4))}},
    {"output": {"logits": "x", "hidden": None}},
    {"context": "abc"},
    {"context": 5},
    {"identity": "zz"},
    {"identity": 5},
    {"model": 5},
    {"architecture": None},
    {"settings": 5},
]


@pytest.mark.parametrize("change", ODD, ids=lambda change: f"{next(iter(change.items()))}"[:50])
def test_a_state_made_by_hand_that_could_not_be_read_is_not_written(change, states, path):
    write_session_state(path, states[0])
    before = path.read_bytes()
    with pytest.raises(InvalidParamError) as caught:
        write_session_state(path, dataclasses.replace(states[0], **change))
    assert next(iter(change)) in str(caught.value)
    assert path.read_bytes() == before


def test_a_context_without_an_end_may_be_kept(states, path):
    state = dataclasses.replace(states[0], position=1_000_000)
    numbers = {"position": np.int64(state.position), "tokens": tuple(np.asarray(state.tokens))}
    write_session_state(path, dataclasses.replace(state, **numbers))
    assert contents(read_session_state(path)) == contents(state)


@pytest.mark.parametrize("part", ["waiting", "context"])
def test_only_a_context_can_be_left_out(part, states, path):
    write_session_state(path, states[0])
    loaded = load_memory(path)
    metadata = json.loads(json.dumps(loaded.metadata))
    metadata["runtime"][part] = ["x"]
    save_memory(
        path, loaded.memory, loaded.state, metadata=metadata, model_hash=FakeEngine().info.identity
    )  # fmt: skip
    with pytest.raises(FileCorruptError) as caught:
        read_session_state(path)
    assert ("context=False" in str(caught.value)) == (part == "context")
    if part == "context":
        assert read_session_state(path, context=False).tokens == ()


# --- opened once ------------------------------------------------------------------------------------------


@pytest.fixture
def opened(monkeypatch):
    """Count how often files named ``m.atlas`` are opened, and secrets derived."""
    counts = {"opened": 0, "derived": 0}
    init, master = LocalSource.__init__, crypto._master

    def opening(self, path, *opened):
        counts["opened"] += os.path.basename(path) == "m.atlas"
        init(self, path, *opened)

    def deriving(secret, params):
        counts["derived"] += 1
        return master(secret, params)

    monkeypatch.setattr(LocalSource, "__init__", opening)
    monkeypatch.setattr(crypto, "_master", deriving)
    return counts


def starts(path, keys):
    def by_path():
        return AtlasSession(FakeEngine(), path)

    def by_file():
        return open_session(FakeEngine(), file=str(path), keys=keys, context=True)

    def by_load():
        session = AtlasSession(FakeEngine(), None)
        session.load(path, **keys.options())
        return session

    return {"path": by_path, "file": by_file, "load": by_load}


@pytest.mark.parametrize("start", ["path", "file", "load"])
def test_a_session_opens_its_file_once(start, states, path, opened):
    write_session_state(path, states[0])
    opened.update(opened=0)
    starts(path, Keys())[start]().close()
    assert opened["opened"] == 1


@pytest.mark.parametrize("start", ["file", "load"])
def test_an_encrypted_file_is_derived_once(start, states, path, opened):
    write_session_state(path, states[0], passphrase=SECRET)
    opened.update(opened=0, derived=0)
    starts(path, Keys(SECRET.encode()))[start]().close()
    assert opened == {"opened": 1, "derived": 1}


def test_a_passphrase_that_is_asked_for_is_derived_once(states, path, opened):
    write_session_state(path, states[0], passphrase=SECRET)
    opened.update(derived=0)
    keys = Keys(ask=lambda question, confirm: SECRET.encode())
    open_session(FakeEngine(), file=str(path), keys=keys).close()
    assert opened["derived"] == 1


def test_saving_over_an_encrypted_file_derives_once(states, path, opened):
    write_session_state(path, states[0], passphrase=SECRET)
    opened.update(derived=0)
    write_session_state(path, states[-1], passphrase=SECRET)
    assert opened["derived"] == 1


# --- the memory beside a native model -----------------------------------------------------------------------


@pytest.fixture
def native(states, path):
    """Return an engine whose model asks for the memory in ``m.atlas``, which is there and encrypted."""
    sizes = {"window_size": 64, "memory_dim": 8, "omega_window": 16, "chunk_size": 8, "candidates": 16}
    model = tiny_llama(layers=1).with_kv(
        KV("atlas.version", U32, 1), KV("atlas.enabled", BOOL, 1), KV(FILE_KEY, STR, b"m.atlas"),
        *(KV(PREFIX + name, U32, value) for name, value in sizes.items()),
    )  # fmt: skip
    (path.parent / "model.gguf").write_bytes(model.bytes())
    write_session_state(path, states[0], passphrase=SECRET)
    engine = FakeEngine()
    engine.info = dataclasses.replace(engine.info, path=str(path.parent / "model.gguf"))
    return engine


@pytest.mark.parametrize("memory", [None, True])
def test_an_encrypted_memory_beside_a_native_model_is_opened_once(
    memory, native, states, opened, monkeypatch
):
    opened.update(opened=0, derived=0)
    models, of_native = [], memory_choice.of_native
    monkeypatch.setattr(
        memory_choice, "of_native", lambda engine: (models.append(engine), of_native(engine))[1]
    )
    keys = Keys(ask=lambda question, confirm: SECRET.encode())
    with open_session(native, memory, keys=keys, changes={"blend_ratio": 0.5}) as session:
        assert session.memory.settings.blend_ratio == 0.5
        learned = states[0].memory.parameters["W"]
        np.testing.assert_array_equal(session.memory.state.parameters["W"], learned)
    assert (opened, len(models)) == ({"opened": 1, "derived": 1}, 1)
    with pytest.raises(KeyRequiredError):
        open_session(native, memory)


def test_a_damaged_memory_beside_a_native_model_names_its_backup(native, states, path):
    path.unlink()
    write_session_state(path, states[0])
    shutil.copy(path, f"{path}.bak")
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(AtlasError) as caught:
        open_session(native)
    assert caught.value.remedy.arguments["backup"] == f"{path}.bak"


@pytest.mark.parametrize("good", [True, False])
def test_a_backup_is_opened_once_and_derived_once(good, states, path, opened, monkeypatch):
    write_session_state(path, states[0], passphrase=SECRET)
    backup = f"{path}.bak"
    if good:
        shutil.copy(path, backup)
    else:  # whole, and no session's
        MemoryFile(version=3, passphrase=SECRET).save(backup)
    path.write_bytes(path.read_bytes()[:-100])
    counts = {"backup": 0}
    init = LocalSource.__init__

    def opening(self, name, *args):
        counts["backup"] += os.fspath(name) == backup
        init(self, name, *args)

    monkeypatch.setattr(LocalSource, "__init__", opening)
    keys = Keys(SECRET.encode())
    opened.update(derived=0)
    with pytest.raises(AtlasError) as caught:
        open_session(FakeEngine(), file=str(path), keys=keys)
    assert counts["backup"] == 1
    assert opened["derived"] <= 2  # the damaged file's, as far as that can be told, and the backup's
    assert caught.value.__cause__ is not caught.value
    assert (caught.value.remedy is not None and caught.value.remedy.name == "recover-number") == good
    assert ("None of its backups would load" in str(caught.value)) != good


def test_another_models_memory_beside_a_native_model_can_be_forced(native, states, path):
    path.unlink()
    write_session_state(path, dataclasses.replace(states[0], identity="ab" * 32))
    with pytest.raises(WrongModelError):
        open_session(native)
    open_session(native, force=True).close()


def test_a_memory_that_is_not_beside_its_native_model_is_an_error(native, path):
    path.unlink()
    with pytest.raises(NoSuchFileError, match="not there"):
        open_session(native)


# --- replaced meanwhile -----------------------------------------------------------------------------------


def write_over(source, target):
    """Put another file's bytes into the same file, as ``cp`` does."""
    data = source.read_bytes()
    with open(target, "r+b") as file:
        file.write(data)
        file.truncate()


@pytest.fixture(scope="module")
def written(states, tmp_path_factory):
    """Return the bytes of both states by version."""
    name = tmp_path_factory.mktemp("written") / "m.atlas"
    found = {}
    for version in (1, 2):
        for state in states:
            name.unlink(missing_ok=True)
            write_session_state(name, state, version=version)
            found.setdefault(version, []).append(name.read_bytes())
    return found


@pytest.fixture
def torn(written, tmp_path, path, monkeypatch):
    """Return a function that starts a session while its file is replaced before the n-th read; n counts from 1."""

    def attempt(start, replace, number, version):
        other = tmp_path / "other.atlas"
        for name, data in zip((path, other), written[version], strict=True):
            name.write_bytes(data)
        read, count = LocalSource._pread, 0

        def reading(self, offset, size):
            nonlocal count
            if self.path is not None and os.path.basename(self.path) == "m.atlas":
                count += 1
                if count == number:
                    replace(other, path)
            return read(self, offset, size)

        monkeypatch.setattr(LocalSource, "_pread", reading)
        try:
            with starts(path, Keys())[start]() as session:
                found = contents(session.state())
        except AtlasError as error:
            found = error
        finally:
            monkeypatch.setattr(LocalSource, "_pread", read)
            for name in tmp_path.iterdir():
                name.unlink()
        return found, count >= number

    return attempt


def whole(found, states, context):
    """Tell which of two states a session came to hold."""
    for number, state in enumerate(states):
        kept = (
            state if context else dataclasses.replace(state, tokens=(), position=0, output={}, context=None)
        )
        if contents(kept) == found:
            return number
    raise AssertionError("half of one memory and half of another")


@pytest.mark.parametrize(("start", "version"), [("path", 2), ("file", 1), ("file", 2), ("load", 2)])
def test_a_file_that_is_replaced_while_a_session_starts(start, version, states, torn):
    number, seen = 0, []
    while True:
        number += 1
        found, replaced = torn(start, os.replace, number, version)
        if not replaced:
            break
        assert not isinstance(found, AtlasError), found
        seen.append(whole(found, states, context=start != "path"))
    assert len(seen) >= 3
    assert set(seen) == {0}  # what was opened is read to its end


@pytest.mark.parametrize("version", [1, 2])
def test_a_file_that_is_overwritten_while_a_session_starts(version, states, torn):
    number, refused = 0, 0
    while True:
        number += 1
        found, replaced = torn("file", write_over, number, version)
        if not replaced:
            break
        if isinstance(found, AtlasError):
            refused += 1
            assert "\n" not in str(found)
            assert found.path is not None
        else:
            whole(found, states, context=True)
    assert number > 3
    assert refused


def test_a_replacement_between_two_opens_would_be_found(states, tmp_path, path):
    """The test above can fail: settings of one file beside arrays of another are no state of either."""
    mixed = dataclasses.replace(states[0], settings=states[1].settings)
    with pytest.raises(AssertionError, match="half"):
        whole(contents(mixed), states, context=True)


@pytest.mark.parametrize("version", [1, 2])
def test_overwriting_in_place_is_said(version, states, tmp_path, path):
    for name, state in zip(("m", "n"), states, strict=True):
        write_session_state(tmp_path / f"{name}.atlas", state, version=version)
    with MemoryFile.open(path) as file:
        file.require_unchanged()
        shutil.copyfile(tmp_path / "n.atlas", path)
        with pytest.raises(ConflictError, match="overwritten while it was being read"):
            file.require_unchanged()
    with MemoryFile.open(path) as file, MemoryFile.edit(path) as other:
        other.set("note", "appended, in place")
        other.commit()
        if version == 2:
            file.require_unchanged()
    MemoryFile.open(path.read_bytes()).require_unchanged()


def test_a_file_that_is_touched_while_it_is_read_is_read_once_more(states, path, monkeypatch):
    write_session_state(path, states[0])
    plain, times = session_file.load_memory, []

    def load_memory(file, **options):
        times.append(len(times))
        if len(times) <= touched:
            os.utime(path, (len(times), len(times)))
        return plain(file, **options)

    monkeypatch.setattr(session_file, "load_memory", load_memory)
    touched = session_file.OPENS - 1
    assert contents(read_session_state(path)) == contents(states[0])
    assert len(times) == session_file.OPENS
    times.clear()
    touched = session_file.OPENS
    with pytest.raises(ConflictError):
        read_session_state(path)
    times.clear()
    with MemoryFile.open(path) as file, pytest.raises(ConflictError):
        read_session_state(file)  # it is somebody else's, who may open it again
    assert len(times) == 1


def test_arrays_of_a_read_state_are_its_own(states, path):
    write_session_state(path, states[0])
    state = read_session_state(path)
    expected = contents(state)
    with AtlasSession(FakeEngine(), None) as session:
        session.restore(state)
        session.feed(TEXT * 4)
    assert contents(state) == expected
    assert np.isfinite(state.memory.parameters["W"]).all()


TEXTS = ([], [[1, 2, 3]], [[1, 2], [], [7]], [[5] * 1000, [6]])


@pytest.mark.parametrize("texts", TEXTS, ids=len)
def test_the_texts_that_were_read_come_back(texts, path, states):
    write_session_state(path, dataclasses.replace(states[0], texts=tuple(texts)))
    assert read_session_state(path).texts == tuple(texts)
    assert read_session_state(path, context=False).texts == tuple(texts)
    write_session_state(path, states[1])
    assert read_session_state(path).texts == ()
    assert TEXTS_KEY not in MemoryFile.load(path)


def test_too_much_text_is_kept_from_its_end_on(monkeypatch):
    monkeypatch.setattr(session_file, "MOST_TEXT", 5)
    assert session_file.unpacked_texts(session_file.packed_texts([[1, 2], [3, 4, 5], [6]])) == (
        [3, 4, 5],
        [6],
    )
    assert session_file.unpacked_texts(session_file.packed_texts([[1] * 6])) == ()


@pytest.mark.parametrize(
    "numbers", [[], [1], [1, 2, 5], [2, 1, 1, 5], [-1], [1, -1], [1 << 30], [2, 1 << 30, 1 << 30]], ids=str
)
def test_texts_that_are_damaged_are_left_out(numbers, path, states):
    data = np.asarray(numbers, "<i4").tobytes()
    with pytest.raises(ValueError, match="do not fill"):
        session_file.unpacked_texts(data)
    write_session_state(path, dataclasses.replace(states[0], texts=([1],)))
    with MemoryFile.edit(path) as file:
        file.set(TEXTS_KEY, data, type=DataType.CONTEXT)
    assert contents(read_session_state(path)) == contents(states[0])
