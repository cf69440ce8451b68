"""Episodes in what commands do to memory files: shown, checked, compared, joined, kept, mended, read as text."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest

from atlas_kit.episodes import EpisodeArrays, Episodes, Kind
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.operations.compress import CompressOptions, compress_file
from atlas_kit.operations.convert import ConvertOptions, convert_file
from atlas_kit.operations.diff import diff_files
from atlas_kit.operations.episodes import joined, texts_of
from atlas_kit.operations.get import get_value
from atlas_kit.operations.inspect import inspect_file
from atlas_kit.operations.merge import merge_files
from atlas_kit.operations.repair import repair_file
from atlas_kit.operations.rm import remove_keys
from atlas_kit.operations.token_words import EngineWords
from atlas_kit.operations.validate import validate_file
from atlas_kit.persistence.entry_keys import EPISODES
from atlas_kit.persistence.episode_entries import put_episodes, read_episodes
from atlas_kit.persistence.session_file import read_session_state, write_session_state
from atlas_kit.persistence.tables import part_key

TEXT = "to be or not to be, that is the question\n"
BOOK = (Kind.DOCUMENT, "a.txt", TEXT * 9, 1000)
TALK = (Kind.USER, "", "where is the parcel?", 2000)
REPLY = (Kind.ASSISTANT, "", "Under the stone.", 3000)
WORDS = EngineWords(FakeEngine())


def arrays_of(*episodes) -> EpisodeArrays:
    made = Episodes(FakeEngine().piece, 257)
    for kind, source, text, when in episodes:
        made.begin(kind, source, when)
        made.append(list(text.encode()))
    return made.arrays()


@pytest.fixture(scope="module")
def state():
    with AtlasSession(FakeEngine(), True) as session:
        session.feed(TEXT)
        return session.state(context=False)


@pytest.fixture
def memory(tmp_path, state):
    """Return a function that writes a memory with episodes."""

    def write(name, *episodes, **options):
        path = tmp_path / f"{name}.atlas"
        write_session_state(path, dataclasses.replace(state, episodes=arrays_of(*episodes)), **options)
        return path

    return write


def texts_in(path):
    with MemoryFile.open(path) as file:
        return [one.text for one in texts_of(read_episodes(file), WORDS)]


# --- inspect, validate, get -------------------------------------------------------------------------------


def test_inspect_says_what_can_be_read(memory):
    found = inspect_file(memory("m", BOOK, TALK, REPLY)).overview
    tokens = len(arrays_of(BOOK, TALK, REPLY))
    expected = f"{tokens} tokens of 1 document and 2 turns of talk can be read from this file"
    assert found["episodes"] == {"tokens": tokens, "documents": 1, "turns": 2, "summary": expected}
    assert "episodes" not in inspect_file(memory("n")).overview


def test_inspect_says_it_of_damaged_ones_too(memory):
    path = memory("m", BOOK)
    with MemoryFile.edit(path) as file:
        file.set(part_key(0, "kind"), np.full(1, 9, np.uint8))
    found = inspect_file(path).overview
    assert found["episodes"]["summary"].startswith("what was read cannot be read: the episodes contradict")


def test_validate_knows_the_entries(memory):
    path = memory("m", BOOK, TALK)
    assert validate_file(path).findings == []
    with MemoryFile.edit(path) as file:
        file.set(part_key(0, "episode_start"), np.asarray([0, 7], np.uint32))
    report = validate_file(path)
    assert (report.ok, report.exit_code) == (False, 1)
    (finding,) = (one for one in report.findings if one.severity == "error")
    assert (finding.code, finding.key) == ("episodes", EPISODES)
    assert "an episode must start where a block starts" in finding.message
    sealed = memory("s", BOOK, passphrase="x")
    assert {finding.code for finding in validate_file(sealed).findings} == {"contents-not-checked"}


def test_text_without_its_description_is_told_of(memory):
    path = memory("m", BOOK, TALK)
    remove_keys(path, [EPISODES])
    report = validate_file(path)
    assert [finding.key for finding in report.findings if finding.severity == "error"] == [EPISODES]
    found = inspect_file(path).overview["episodes"]
    assert "the description of the episodes is missing" in found["summary"]


def test_validate_warns_of_tiny_blocks(tmp_path):
    starts = np.arange(5000, dtype=np.uint32)
    one = np.asarray([1], np.uint32)
    arrays = EpisodeArrays(
        np.zeros(5000, np.uint32), starts, one - 1, np.zeros(1, np.uint8), one - 1, one.astype(np.int64),
        np.zeros(1, np.int64), one, ("",), 5000,
    )  # fmt: skip
    with MemoryFile.edit(tmp_path / "m.atlas", create=True) as file:
        put_episodes(file, arrays)
    report = validate_file(tmp_path / "m.atlas")
    assert report.ok
    assert [finding.code for finding in report.findings] == ["small-blocks"]
    assert "cut into 5,000 blocks" in report.findings[0].message


def test_get_gives_numbers_and_with_a_model_text(memory):
    path = memory("m", BOOK, TALK)
    with get_value(path, part_key(0, "tokens")) as value:
        assert value.array()[:5].tolist() == list(b"to be")
    with get_value(path, EPISODES, words=WORDS) as value:
        text = b"".join(value.chunks()).decode()
        assert value.info()["episodes"][1]["text"] == "where is the parcel?"
    assert text.startswith("[document a.txt:1, 1970-01-01 00:00:01 UTC]\nto be or")
    assert "\n\n[user, 1970-01-01 00:00:02 UTC]\nwhere is the parcel?\n" in text
    json.dumps(value.info())


# --- diff ---------------------------------------------------------------------------------------------------


def change_of(first, second):
    changes = [change for change in diff_files(first, second).changes if change.name.startswith(EPISODES)]
    assert len(changes) < 2
    return (changes[0].what, changes[0].details) if changes else None


def test_diff_counts_what_came_and_went(memory):
    first, second = memory("a", BOOK, TALK), memory("b", BOOK, REPLY, TALK)
    assert change_of(first, second) == ("changed", [("tokens", 389, 405), ("turns added", None, 1)])
    assert change_of(second, first) == ("changed", [("tokens", 405, 389), ("turns removed", 1, None)])
    assert change_of(first, first) is None
    assert diff_files(first, first).same > 0
    third = memory("c", TALK)
    assert change_of(first, third) == ("changed", [("tokens", 389, 20), ("documents removed", 1, None)])
    none = memory("d")
    assert change_of(first, none)[0] == "removed"
    assert change_of(none, first)[0] == "added"
    longer = memory("e", (*BOOK[:2], TEXT * 12, BOOK[3]), TALK)
    assert change_of(first, longer) == ("changed", [("tokens", 389, 512), ("grown", None, 1)])


def test_diff_does_not_mind_how_they_are_stored(memory):
    assert diff_files(memory("a", BOOK, TALK), memory("b", BOOK, TALK, codec="zlib")).changes == []
    assert change_of(memory("a", BOOK, TALK), memory("c", BOOK, TALK, version=1)) is None


def test_diff_of_damaged_episodes_compares_the_entries(memory):
    first, second = memory("a", BOOK, TALK), memory("b", BOOK, TALK)
    with MemoryFile.edit(second) as file:
        file.remove(part_key(0, "kind"))
    assert change_of(first, second) == ("removed", [("size", 2, None)])


# --- merge --------------------------------------------------------------------------------------------------


def test_merge_joins_them_by_time(memory, tmp_path):
    first, second = memory("a", BOOK, REPLY), memory("b", TALK, BOOK)
    result = merge_files([first, second], tmp_path / "out.atlas")
    assert texts_in(tmp_path / "out.atlas") == [BOOK[2], TALK[2], REPLY[2]]
    assert not any(conflict.key.startswith(EPISODES) for conflict in result.conflicts)
    assert result.notes == ["what was read and said was joined: 405 tokens of 2 inputs"]
    assert len(read_session_state(tmp_path / "out.atlas").episodes) == 405


def test_merge_keeps_those_of_one(memory, tmp_path):
    for order in (("a", "b"), ("b", "a")):
        paths = {"a": memory("a", BOOK, REPLY), "b": memory("b")}
        result = merge_files([paths[name] for name in order], tmp_path / "out.atlas", force=True)
        assert texts_in(tmp_path / "out.atlas") == [BOOK[2], REPLY[2]]
        assert result.notes == []


@pytest.mark.parametrize(("prefer", "taken"), [("first", BOOK), ("last", TALK), ("newest", TALK)])
def test_merge_takes_those_of_one_model(prefer, taken, memory, tmp_path, state):
    first = memory("a", BOOK)
    other = dataclasses.replace(state, identity="ab" * 32, episodes=arrays_of(TALK))
    write_session_state(tmp_path / "b.atlas", other)
    result = merge_files([first, tmp_path / "b.atlas"], tmp_path / "out.atlas", prefer=prefer)
    assert texts_in(tmp_path / "out.atlas") == [taken[2]]
    assert any("what was read and said is that of" in note for note in result.notes)


@pytest.mark.parametrize("prefer", ["first", "last", "newest"])
@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_merge_takes_one_learned_memory_whole(prefer, order, memory, tmp_path):
    paths = {"a": memory("a", BOOK), "b": memory("b", TALK, window=False)}
    with MemoryFile.open(paths["b"]) as file:
        held = [*file]
    inputs = [paths[name] for name in order]
    result = merge_files(inputs, tmp_path / "out.atlas", prefer=prefer)
    assert texts_in(tmp_path / "out.atlas") == [BOOK[2], TALK[2]]
    read_session_state(tmp_path / "out.atlas")  # it can be loaded
    if prefer != "newest":
        taken = order[0 if prefer == "first" else -1]
        with MemoryFile.open(tmp_path / "out.atlas") as file:
            assert (set(file) == set(held)) is (taken == "b")
        assert [count for path, count in result.taken if path == str(paths[taken])] != [0]


def test_joined_of_the_same_is_the_same():
    arrays = arrays_of(BOOK, TALK, REPLY)
    both = joined([arrays, arrays])
    both.check()
    assert np.array_equal(both.tokens, arrays.tokens)
    assert np.array_equal(both.block_start, arrays.block_start)
    assert joined([EpisodeArrays.empty(), EpisodeArrays.empty()]).end == 0
    dropped = Episodes.from_arrays(arrays, FakeEngine().piece, 257, limit=512)
    dropped.begin(Kind.USER)
    dropped.append([65] * 500)
    again = joined([dropped.arrays(), arrays])
    again.check()
    assert again.dropped == dropped.dropped > 0


# --- compress, convert, repair --------------------------------------------------------------------------------


def test_compress_keeps_them(memory, tmp_path):
    path = memory("m", *[BOOK] * 20)
    compress_file(path, tmp_path / "out.atlas", CompressOptions(quantize="q8_0"))
    assert texts_in(tmp_path / "out.atlas") == texts_in(path)
    with MemoryFile.open(tmp_path / "out.atlas") as file:
        tokens = file[part_key(0, "tokens")]
        assert tokens.dtype == "uint32"
        assert tokens.stored_size < tokens.size // 4


@pytest.mark.parametrize("name", ["v1.atlas", "m.json", "m.safetensors", "m.npz"])
def test_convert_there_and_back_keeps_them(name, memory, tmp_path):
    path = memory("m", BOOK, TALK, REPLY)
    version = ConvertOptions(to="atlas-v1" if name == "v1.atlas" else None)
    convert_file(path, tmp_path / name, version)
    convert_file(tmp_path / name, tmp_path / "back.atlas", ConvertOptions(to="atlas-v2"))
    assert texts_in(tmp_path / "back.atlas") == [BOOK[2], TALK[2], REPLY[2]]
    assert read_session_state(tmp_path / "back.atlas").episodes.end == 405


@pytest.mark.parametrize("secret", [{}, {"passphrase": "x"}], ids=["plain", "encrypted"])
def test_repair_mends_what_lost_a_part(secret, memory, tmp_path):
    from atlas_kit.storage.keys import Keys

    keys = Keys(b"x") if secret else None
    path = memory("m", (*BOOK[:2], TEXT * 2000, 1), TALK, (*BOOK[:2], TEXT * 9, 5), **secret)
    with MemoryFile.open(path, **secret) as file:
        entry = file[part_key(0, "tokens")]
        place = entry.offset + entry.size // 2
    data = bytearray(path.read_bytes())
    data[place] ^= 0xFF
    path.write_bytes(data)
    with pytest.raises(Exception, match=r".*"):
        read_session_state(path, **secret)
    result = repair_file(path, tmp_path / "out.atlas", keys=keys)
    assert result.exit_code == 1
    assert any("of what was read and said" in note for note in result.rescue.notes)
    left = read_session_state(tmp_path / "out.atlas", **secret).episodes
    assert left.kind.tolist() == [1, 0]
    assert bytes(left.tokens[:20].tolist()).decode() == TALK[2]
    assert validate_file(tmp_path / "out.atlas", keys).ok


def test_what_is_removed_is_gone_from_the_bytes(memory):
    path = memory("m", BOOK, TALK)
    text = np.frombuffer(TALK[2].encode(), np.uint8).astype("<u4").tobytes()
    assert text in path.read_bytes()
    remove_keys(path, ["episodes*"], glob=True)
    assert text not in path.read_bytes()
    assert read_session_state(path).episodes is None


def test_repair_leaves_whole_ones_alone(memory, tmp_path):
    path = memory("m", BOOK, TALK)
    result = repair_file(path, tmp_path / "out.atlas")
    assert (result.exit_code, result.rescue.notes) == (0, [])
    assert not (tmp_path / "out.atlas").exists()
    assert texts_in(path) == [BOOK[2], TALK[2]]
