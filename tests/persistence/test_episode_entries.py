"""Episodes in a file: written in parts of which only the new ones are written, read whole, refused where they lie."""

from __future__ import annotations

import dataclasses
import json
import os
import random
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from atlas_kit.episodes import EpisodeArrays, Episodes, Kind
from atlas_kit.episodes.arrays import DTYPES
from atlas_kit.errors import (
    AtlasError,
    FileCorruptError,
    InvalidParamError,
    VersionMismatchError,
    WrongModelError,
)
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.persistence import episode_entries
from atlas_kit.persistence.entry_keys import DESCRIPTION, EPISODES
from atlas_kit.persistence.episode_entries import find_counts, put_episodes, read_episodes
from atlas_kit.persistence.episode_salvage import salvaged_episodes
from atlas_kit.persistence.session_file import (
    read_session_state,
    save_episodes,
    session_state_bytes,
    write_session_state,
)
from atlas_kit.persistence.tables import PART_ARRAYS, is_part_key, part_key
from atlas_kit.settings.atlas_settings import AtlasSettings

TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. "
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
SECRET = "correct horse"


def piece(token: int) -> bytes:
    return bytes([token])


def store(*episodes: tuple[Kind, str, str], limit: int = 1_000_000) -> Episodes:
    """Return a store of episodes, whose tokens are bytes."""
    made = Episodes(piece, 256, limit=limit)
    for number, (kind, source, text) in enumerate(episodes):
        made.begin(kind, source, 1_700_000_000_000 + number)
        made.append(list(text.encode()))
    return made


def some(count: int = 9, size: int = 100) -> Episodes:
    kinds = (Kind.DOCUMENT, Kind.USER, Kind.ASSISTANT)
    return store(
        *(
            (kinds[n % 3], f"book{n}.txt" * (n % 3 == 0), f"{n}: {TEXT}" * (n * size // 85 + 1))
            for n in range(count)
        )
    )


def values(arrays: EpisodeArrays | None) -> object:
    if arrays is None:
        return None
    rows = {name: (getattr(arrays, name).dtype.name, getattr(arrays, name).tolist()) for name in DTYPES}
    return rows, arrays.sources, arrays.end, arrays.dropped


def in_bytes(data: bytes, text: str) -> bool:
    """Tell whether a text can be read somewhere in a file: as it is, or as token ids of any width."""
    raw = text.encode()
    forms = [np.frombuffer(raw, np.uint8).astype(kind).tobytes() for kind in ("u1", "<u2", "<u4", "<u8")]
    as_json = json.dumps(list(raw))[1:-1].encode()
    return any(form in data for form in (*forms, as_json, as_json.replace(b" ", b"")))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "m.atlas"


@pytest.fixture(scope="module")
def state():
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(TEXT[:45])
        return dataclasses.replace(session.state(context=False), episodes=None)


@pytest.fixture
def small_parts(monkeypatch):
    monkeypatch.setattr(episode_entries, "PART_TOKENS", 256)


def with_episodes(state, episodes: Episodes | None):
    return dataclasses.replace(state, episodes=None if episodes is None else episodes.arrays())


# --- what is written is read ------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", [None, "zlib"])
@pytest.mark.parametrize("version", [1, 2, 3])
def test_what_is_written_is_read(version, codec, state, path, small_parts):
    secret = {"passphrase": SECRET} if version == 3 else {}
    options = {} if codec is None or version == 1 else {"codec": codec}
    for episodes in (some(), some(2), None, store((Kind.USER, "", "x")), Episodes(piece, 256)):
        written = with_episodes(state, episodes)
        write_session_state(path, written, version=version, **secret, **options)
        found = read_session_state(path, **secret).episodes
        expected = written.episodes
        assert values(found) == (values(expected) if expected is not None and expected.end else None)
    assert EPISODES not in MemoryFile.load(path, **secret)


def test_random_episodes_come_back(small_parts):
    rng = np.random.default_rng(0)
    for _ in range(60):
        episodes = Episodes(piece, 256, limit=2048)
        for number in range(rng.integers(1, 12)):
            episodes.begin(Kind(rng.integers(0, 5)), rng.choice(["", "a", "b"]), number)
            episodes.append(rng.integers(32, 127, rng.integers(1, 600)))
        if rng.integers(2):
            episodes.forget(before_ms=int(rng.integers(0, 5)))
        file = MemoryFile()
        put_episodes(file, episodes.arrays())
        assert values(read_episodes(MemoryFile.open(file.to_bytes()))) == values(
            episodes.arrays() if episodes.end else None
        )


def test_a_file_without_episodes_keeps_its_bytes(state, monkeypatch):
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    plain = session_state_bytes(state)
    assert session_state_bytes(with_episodes(state, Episodes(piece, 256))) == plain
    assert session_state_bytes(with_episodes(state, some())) != plain
    assert b"episodes" not in plain


def test_the_same_episodes_are_the_same_bytes_however_they_were_saved(state, path, small_parts):
    """What lies in the entries depends on what was read, not on how often that was saved."""
    episodes = Episodes(piece, 256)
    for number in range(12):
        episodes.begin(Kind.USER, "", number)
        episodes.append(list((f"{number} {TEXT}" * 2).encode()))
        write_session_state(path, with_episodes(state, episodes))
    with (
        MemoryFile.load(path) as many,
        MemoryFile.load(session_state_bytes(with_episodes(state, episodes))) as once,
    ):
        keys = [key for key in once if is_part_key(key) or key == EPISODES]
        assert sorted(keys) == sorted(key for key in many if is_part_key(key) or key == EPISODES)
        assert all(many[key].data == once[key].data for key in keys)


def test_episodes_can_be_left_out(state, path):
    write_session_state(path, with_episodes(state, some()))
    with MemoryFile.edit(path) as file:
        file.set(part_key(0, "kind"), np.zeros(1, np.uint8))
    with pytest.raises(FileCorruptError):
        read_session_state(path)
    assert read_session_state(path, episodes=False).episodes is None


def test_a_state_with_something_else_for_episodes_is_not_written(state, path):
    for odd in ("text", 5, (1, 2)):
        with pytest.raises(InvalidParamError, match="episodes"):
            write_session_state(path, dataclasses.replace(state, episodes=odd))
    broken = dataclasses.replace(some().arrays(), end=3)
    with pytest.raises(InvalidParamError, match="episodes"):
        write_session_state(path, dataclasses.replace(state, episodes=broken))
    assert not path.exists()


# --- a save appends ---------------------------------------------------------------------------------------


def read_and_grown(state, path, **options):
    """Save a large store, and again with a little more; return both files' bytes and the tokens of the second."""
    episodes = some(9, 20_000)
    write_session_state(path, with_episodes(state, episodes), **options)
    before = path.read_bytes()
    episodes.begin(Kind.USER, "", 9)
    episodes.append(list(b"and then one more question"))
    write_session_state(path, with_episodes(state, episodes), **options)
    return before, path.read_bytes(), episodes.arrays()


@pytest.mark.parametrize("secret", [{}, {"passphrase": SECRET}], ids=["plain", "encrypted"])
def test_a_save_appends_what_is_new(secret, state, path):
    inode = None
    before, after, arrays = read_and_grown(state, path, **secret)
    header = 256 if secret else 160
    assert after[header : len(before)] == before[header:]  # nothing was written over but the header
    assert 0 < len(after) - len(before) < len(before) // 2
    assert values(read_session_state(path, **secret).episodes) == values(arrays)
    inode = os.stat(path).st_ino
    write_session_state(path, dataclasses.replace(state, episodes=arrays), backup=True, **secret)
    assert os.stat(path).st_ino != inode
    assert (path.parent / "m.atlas.bak").read_bytes() == after


def test_a_file_that_is_open_stays_what_it_was(state, path):
    episodes = some(9, 20_000)
    write_session_state(path, with_episodes(state, episodes))
    expected = values(episodes.arrays())
    with MemoryFile.open(path) as file:
        episodes.append(list(TEXT.encode()))
        write_session_state(path, with_episodes(state, episodes))
        assert values(read_session_state(file).episodes) == expected
    assert values(read_session_state(path).episodes) == values(episodes.arrays()) != expected


def test_saves_do_not_pile_up(state, path):
    """What later saves replaced goes again, and a file is never twice as large as what it holds."""
    episodes = some(9, 20_000)
    whole = appended = 0
    for number in range(60):
        episodes.begin(Kind.USER, "", number)
        episodes.append(list(f"question {number}".encode()))
        inode = os.stat(path).st_ino if path.exists() else None
        write_session_state(path, with_episodes(state, episodes))
        with MemoryFile.open(path) as file:
            assert file.garbage <= file.file_size // 2
            assert len(file.store.blocks) < 12
        appended += os.stat(path).st_ino == inode
        whole += os.stat(path).st_ino != inode
    assert appended > 30
    assert whole > 1


@pytest.mark.parametrize("gone", ["forgotten", "dropped", "context", "texts"])
def test_what_goes_is_gone_from_the_bytes(gone, state, path):
    secret = "the parcel lies under the blue stone"
    episodes = store((Kind.DOCUMENT, "a.txt", TEXT * 600), (Kind.USER, "", secret), limit=60_000)
    kept: dict[str, object] = {}
    if gone == "texts":
        episodes.forget(about="parcel blue stone")
        kept = {"texts": (list(secret.encode()),)}
    if gone == "context":
        episodes.forget(about="parcel blue stone")
        output = {"logits": np.zeros((1, 256), np.float32), "hidden": np.zeros((1, 8), np.float32)}
        kept = {"tokens": (1, 2), "position": 2, "output": output, "context": secret.encode()}
    write_session_state(path, dataclasses.replace(with_episodes(state, episodes), **kept))
    assert in_bytes(path.read_bytes(), secret)
    if gone == "forgotten":
        assert episodes.forget(about="parcel stone") == len(secret)
    if gone == "dropped":
        episodes = Episodes.from_arrays(episodes.arrays(), piece, 256, limit=512)
        episodes.begin(Kind.USER, "")
        episodes.append(list(b"y" * 500))
    write_session_state(path, with_episodes(state, episodes))
    assert not in_bytes(path.read_bytes(), secret)
    assert values(read_session_state(path).episodes) == values(episodes.arrays())


def test_an_encrypted_file_shows_no_text(state, path):
    text = "the parcel lies under the blue stone"
    episodes = store((Kind.DOCUMENT, "diary of anna.txt", TEXT * 30 + text))
    write_session_state(
        path, dataclasses.replace(with_episodes(state, episodes), texts=(list(text.encode()),))
    )
    plain = path.read_bytes()
    os.unlink(path)
    assert in_bytes(plain, text)
    assert in_bytes(plain, "diary of anna")
    write_session_state(path, with_episodes(state, episodes), passphrase=SECRET)
    episodes.append(list(b" and more of it"))
    write_session_state(path, with_episodes(state, episodes), passphrase=SECRET)
    sealed = path.read_bytes()
    assert not in_bytes(sealed, text)
    assert not in_bytes(sealed, "diary of anna")
    assert not in_bytes(sealed, "tis nobler")
    assert b"episodes" not in sealed


def test_a_turn_is_appended_by_itself(state, path):
    """It costs what it is, and at most the part that it is in; the memory is not written again."""
    episodes = some(9, 20_000)
    save_episodes(path, episodes.arrays(), identity=state.identity)
    assert DESCRIPTION not in MemoryFile.load(path)
    write_session_state(path, with_episodes(state, episodes))
    inode, memory, grown = os.stat(path).st_ino, contents_of(path), []
    for number in range(40):
        episodes.begin(Kind.USER, "", number)
        episodes.append(list(TEXT.encode()))
        before = os.path.getsize(path)
        save_episodes(path, episodes.arrays(), identity=state.identity)
        grown.append(os.path.getsize(path) - before)
        assert values(read_session_state(path).episodes) == values(episodes.arrays())
        with MemoryFile.open(path) as file:
            assert file.garbage <= file.file_size // 2
    assert os.stat(path).st_ino != inode  # it was written whole now and then
    assert sum(size < 300_000 for size in grown) == 40
    assert contents_of(path) == memory


def contents_of(path):
    with MemoryFile.load(path) as file:
        return {entry.key: entry.data for entry in file.entries() if not entry.key.startswith(EPISODES)}


def test_episodes_of_another_model_are_not_mixed_in(state, path):
    write_session_state(path, with_episodes(state, some()))
    before = path.read_bytes()
    with pytest.raises(WrongModelError):
        save_episodes(path, some(2).arrays(), identity="ab" * 32)
    assert path.read_bytes() == before


def test_what_went_is_gone_when_episodes_are_saved_by_themselves(state, path):
    secret = "the parcel lies under the blue stone"
    episodes = store((Kind.DOCUMENT, "a.txt", TEXT * 600), (Kind.USER, "", secret))
    write_session_state(path, with_episodes(state, episodes))
    assert in_bytes(path.read_bytes(), secret)
    episodes.forget(about="parcel")
    save_episodes(path, episodes.arrays(), identity=state.identity)
    assert not in_bytes(path.read_bytes(), secret)


def test_episodes_are_saved_by_themselves_encrypted(state, path):
    episodes = some(3)
    for _ in range(2):
        save_episodes(path, episodes.arrays(), identity=state.identity, passphrase=SECRET)
        episodes.append(list(TEXT.encode()))
    assert MemoryFile.open(path, passphrase=SECRET).version == 3
    assert not in_bytes(path.read_bytes(), "tis nobler")


# --- killed while it saves --------------------------------------------------------------------------------

WRITER = """
import dataclasses, sys
sys.path[:0] = [{tests!r}]
from test_episode_entries import Kind, TEXT, read_session_state, some, with_episodes, write_session_state
path = sys.argv[1]
state = read_session_state(path)
episodes = some(9, 20_000)
print("ready", flush=True)
for number in range(100_000):
    episodes.begin(Kind.USER, "", number)
    episodes.append(list(f"question {{number}} {{TEXT}}".encode()))
    write_session_state(path, with_episodes(state, episodes))
    print(len(episodes), flush=True)
"""


def test_killed_while_it_saves_it_leaves_one_state_whole(state, path, tmp_path):
    """Every save that was finished is there, and what a killed one had written is not."""
    write_session_state(path, with_episodes(state, some(9, 20_000)))
    script = tmp_path / "writer.py"
    script.write_text(WRITER.format(tests=os.path.dirname(__file__)))
    lengths = {len(some(9, 20_000))}
    for pause in (0.0, 0.003, 0.011, 0.02, 0.037, 0.05):
        with subprocess.Popen([sys.executable, script, path], stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "ready\n"
            process.stdout.readline()
            time.sleep(pause)
            os.kill(process.pid, signal.SIGKILL)
            said = [int(line) for line in process.stdout.read().split("\n")[:-1]]
        found = read_session_state(path).episodes
        assert found is not None
        assert len(found) >= max(said, default=0)
        text = bytes(found.tokens.tolist()).decode()
        assert text.startswith("0: to be")
        assert text.endswith(TEXT)
        last = int(text.rsplit("question ", 1)[1].split()[0]) if "question " in text[-200:] else -1
        episodes = some(9, 20_000)
        for number in range(last + 1):
            episodes.begin(Kind.USER, "", number)
            episodes.append(list(f"question {number} {TEXT}".encode()))
        assert values(found) == values(episodes.arrays())
        lengths.add(len(found))
        write_session_state(path, with_episodes(state, some(9, 20_000)))
    assert len(lengths) > 1


def test_an_append_that_breaks_off_anywhere_leaves_the_older_state(state, path, tmp_path):
    """The bytes of a save that lack its end, wherever it broke off, are the file before it."""
    before, after, arrays = read_and_grown(state, path)
    older = values(read_session_state(before).episodes)
    copy = tmp_path / "cut.atlas"
    for at in np.linspace(len(before), len(after) - 1, 25).astype(int).tolist():
        copy.write_bytes(before[:160] + after[160:at])  # the header is written last
        assert values(read_session_state(copy).episodes) == older
    episodes = Episodes.from_arrays(arrays, piece, 256)
    episodes.append(list(b"!"))
    write_session_state(copy, with_episodes(state, episodes))
    assert values(read_session_state(copy).episodes) == values(episodes.arrays())


# --- hostile files ----------------------------------------------------------------------------------------


def u32(*numbers):
    return np.asarray(numbers, np.uint32)


def described(**changes):
    return lambda document: document.update(changes)


HOSTILE = {
    "a token behind the last": {"episode_start": u32(0, 5000)},
    "an offset outside": {"block_start": u32(0, 1 << 31)},
    "overlapping starts": {"block_start": u32(0, 50, 40)},
    "the same start twice": {"block_start": u32(0, 50, 50)},
    "no start at the first token": {"block_start": u32(1)},
    "an episode within a block": {"episode_start": u32(0, 1, 2)},
    "blocks without end": {"block_start": u32(0)},
    "an unknown kind": {"kind": np.full(3, 9, np.uint8)},
    "no such source": {"source": u32(0, 7, 0)},
    "a time in the year 10000": {"time_ms": np.full(3, 1 << 60)},
    "a time before 1970": {"time_ms": np.full(3, -5)},
    "positions that overlap": {"position": np.asarray([0, 1, 2])},
    "a position in another part": {"position": np.asarray([0, 1 << 40, (1 << 40) + 5])},
    "a negative position": {"position": np.asarray([-5, 1, 2])},
    "line 0": {"line": u32(0, 1, 1)},
    "too few kinds": {"kind": np.zeros(1, np.uint8)},
    "a float for a token": {"tokens": np.zeros(50, np.float32)},
    "another type of integer": {"tokens": np.zeros(50, np.int64)},
    "a token of no vocabulary": {"tokens": np.full(340, 1 << 31, np.uint32)},
    "a table of tokens": {"tokens": np.zeros((5, 10), np.uint32)},
    "no tokens": {"tokens": None},
    "no kinds": {"kind": None},
    "too many tokens": {"tokens": np.zeros(70_000, np.uint32)},
    "bytes": {"tokens": b"abc"},
    "half of an .npy": {"tokens": b"\x93NUMPY\x01\x00"},
    "an array of 1 GiB": {"tokens": np.zeros(1 << 20, np.uint32)},
    "other tokens than it says": {EPISODES: described(tokens=5)},
    "more tokens than can be": {EPISODES: described(tokens=1 << 50)},
    "a negative number of tokens": {EPISODES: described(tokens=-1)},
    "true for a number": {EPISODES: described(tokens=True)},
    "parts without end": {EPISODES: described(parts=list(range(1000)))},
    "a part twice": {EPISODES: described(parts=[0, 0])},
    "parts the wrong way": {EPISODES: described(parts=[1, 0])},
    "a part that is text": {EPISODES: described(parts=["0"])},
    "a part that is not there": {EPISODES: described(parts=[0, 5])},
    "no parts": {EPISODES: described(parts=[], tokens=0)},
    "sources that are numbers": {EPISODES: described(sources=[1, 2, 3])},
    "a source twice": {EPISODES: described(sources=["a", "a"])},
    "more sources than episodes": {EPISODES: described(sources=list("abcdef"))},
    "a source that moves the cursor": {EPISODES: described(sources=["a\x1b[2J", "b"])},
    "an end before the last token": {EPISODES: described(end=3)},
    "an end without end": {EPISODES: described(end=1 << 70)},
    "more dropped than gone": {EPISODES: described(dropped=5)},
    "no end": {EPISODES: lambda document: document.pop("end")},
    "version 0": {EPISODES: described(version=0)},
    "an extra part": {part_key(7, "tokens"): np.zeros(3, np.uint32)},
    "no description": {EPISODES: None},
    "half a description": {EPISODES: b'{"format": "atlas-kit/episodes"'},
    "a list for a description": {EPISODES: b"[]"},
}


def harm(file: MemoryFile, change: dict[str, object]) -> None:
    for name, value in change.items():
        key = name if "." in name or name == EPISODES else part_key(0, name)
        if value is None:
            file.remove(key)
        elif callable(value):
            document = file[key].json()
            value(document)
            file.set(key, document)
        else:
            file.set(key, value, type=4 if key == EPISODES else 3)


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
@pytest.mark.parametrize("version", [1, 2])
def test_hostile_files_are_an_error_with_a_sentence(version, change, state, path):
    episodes = store((Kind.DOCUMENT, "a.txt", TEXT * 2), (Kind.USER, "", TEXT), (Kind.ASSISTANT, "", TEXT))
    write_session_state(path, with_episodes(state, episodes), version=version)
    with MemoryFile.edit(path) as file:
        harm(file, change)
    with pytest.raises(AtlasError) as caught:
        read_session_state(path)
    error = caught.value
    assert len(str(error)) < 400
    assert "\n" not in str(error)
    assert error.message[-1] != "."
    assert error.path == str(path)
    assert (error.key or "").startswith("episodes")
    with pytest.raises(AtlasError), MemoryFile.open(path) as file:
        find_counts(file)


def odd_number(rng, array):
    info = np.iinfo(array.dtype)
    array[rng.randrange(len(array))] = rng.choice([info.min, info.max, 0, 1, min(300, info.max)])
    return array


ODD_VALUES = (0, -1, 257, 1 << 32, 1 << 62, 1 << 70, True, None, "x", [], {}, [1], ["a"], 1.5, "a\x1b")
ODD_ARRAYS = (
    odd_number,
    odd_number,
    lambda rng, array: array[: rng.randrange(len(array) + 1)],
    lambda rng, array: array.astype(rng.choice(["u1", "<u2", "<u4", "<i8", "<f4"])),
    lambda rng, array: np.concatenate([array, array]),
)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_is_wrong_is_an_error_or_harmless(seed, small_parts):
    """Also for who puts together what is left: that is whole, whatever it was made of."""
    rng, refused = random.Random(seed), 0
    arrays = some(6, 200).arrays()
    for _ in range(60):
        file = MemoryFile()
        put_episodes(file, arrays)
        key = rng.choice([*file])
        if key == EPISODES:
            document = file[key].json()
            document[rng.choice([*document])] = rng.choice(ODD_VALUES)
            file.set(key, document)
        elif rng.random() < 0.2:
            file.remove(key)
        else:
            file.set(key, rng.choice(ODD_ARRAYS)(rng, file[key].array().copy()))
        try:
            read_episodes(file)
        except AtlasError:
            refused += 1
        left = salvaged_episodes(file)
        if left is not None:
            put_episodes(file, left)
            assert values(read_episodes(file)) == values(left if left.end else None)
    assert 30 < refused < 60


def test_an_array_that_is_missing_is_named(state, path):
    write_session_state(path, with_episodes(state, some()))
    with MemoryFile.edit(path) as file:
        file.remove(part_key(0, "time_ms"))
    with pytest.raises(FileCorruptError, match="time_ms"):
        read_session_state(path)


def test_a_newer_form_is_said(state, path):
    write_session_state(path, with_episodes(state, some()))
    with MemoryFile.edit(path) as file:
        harm(file, {EPISODES: described(version=2)})
    with pytest.raises(VersionMismatchError, match="version 2"):
        read_session_state(path)


def test_as_many_tiny_blocks_as_a_file_can_hold_are_read():
    """They are as many as they are: nothing about them grows with their square, or this would not end."""
    count = 1_000_000
    tokens, starts = np.zeros(count, np.uint32), np.arange(count, dtype=np.uint32)
    ones = np.ones(count, np.uint32)
    arrays = EpisodeArrays(
        tokens, starts, starts, np.zeros(count, np.uint8), 0 * ones, starts.astype(np.int64),
        starts.astype(np.int64), ones, ("",), count,
    )  # fmt: skip
    file = MemoryFile()
    put_episodes(file, arrays)
    assert values(read_episodes(MemoryFile.open(file.to_bytes()))) == values(arrays)


def test_an_entry_of_another_program_is_left_alone(state, path):
    with MemoryFile.edit(path, create=True) as file:
        file.set(EPISODES, "of a podcast")
    write_session_state(path, state)
    assert read_session_state(path).episodes is None
    assert MemoryFile.load(path)[EPISODES].text == "of a podcast"


def test_counts(state, path):
    write_session_state(path, with_episodes(state, some()))
    with MemoryFile.open(path) as file:
        counts = find_counts(file)
    assert counts is not None
    assert (counts.documents, counts.turns) == (3, 6)
    summary = counts.summary
    assert (
        summary == f"{counts.tokens:,} tokens of 3 documents and 6 turns of talk can be read from this file"
    )
    episodes = store(
        (Kind.DOCUMENT, "a.txt", f"{TEXT * 9}one stone {TEXT * 9}"), (Kind.DOCUMENT, "b.txt", TEXT)
    )
    assert episodes.forget(about="stone")
    assert len(episodes.episodes) == 3
    assert episode_entries.counts_of(episodes.arrays())[1:] == (2, 0)
    assert episode_entries.counts_of(EpisodeArrays.empty()) == (0, 0, 0)
    one = episode_entries.EpisodeCounts(1, 0, 1)
    assert one.summary == "1 token of 1 turn of talk can be read from this file"
    assert {row.name for row in PART_ARRAYS} == set(DTYPES)
    assert all(np.dtype(DTYPES[row.name]).name == row.type for row in PART_ARRAYS)
