"""Indexes beside memories: what is found with them is what is found without, and only what is needed is read."""

from __future__ import annotations

import dataclasses
import os
import random
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.errors import AtlasError, FileCorruptError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.llama import FakeEngine
from atlas_kit.llama.likeness import FarLikeness, Likeness
from atlas_kit.llama.recalling import Recall, candidates
from atlas_kit.operations.episodes import joined
from atlas_kit.operations.many_memories import JoinedIndexes, _named, gather, search_memories, session_over
from atlas_kit.operations.memory_indexes import ENCRYPTED, Memory, find_index, make_indexes
from atlas_kit.operations.validate import validate_file
from atlas_kit.persistence.episode_entries import put_episodes
from atlas_kit.persistence.episode_index import IndexPart, _decoded, _encoded
from atlas_kit.persistence.index_places import CACHE_VARIABLE, beside, cached, drop_indexes
from atlas_kit.storage.given import name_of

DOCUMENTS = Path(__file__).parents[2] / "sample_data" / "documents"
QUESTIONS = [
    "How is a file opened?", "Which colour has the lantern?", "install the installer", "ü", "京",
    "我住在哪里", "error errors", "the", "xyzzy", "Who?", "CamelCase snake_case sources.list", "1932 512MB",
]  # fmt: skip


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(n_ctx=600, n_batch=64)


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "cache"))
    return tmp_path / "cache"


def _beside(name: str) -> str:
    return f"{name}.idx"


class Words:
    def __init__(self, engine: FakeEngine) -> None:
        self.piece, self._count = engine.piece, engine.info.n_vocab

    def __len__(self) -> int:
        return self._count


def write(engine: FakeEngine, path: Path, said: Sequence[tuple[Kind, str, str, int]], **how: Any) -> Memory:
    """Write a memory of what was read and said, and return it as a listing knows it."""
    episodes = Episodes(engine.piece, engine.info.n_vocab)
    for kind, source, text, time_ms in said:
        episodes.begin(kind, source, time_ms)
        episodes.append(engine.tokenize(text))
    with MemoryFile(version=2, model_hash=bytes.fromhex(engine.info.identity)) as file:
        put_episodes(file, episodes.arrays())
        file.save(path)
    return listed(path)


def listed(path: Path) -> Memory:
    info = path.stat()
    return Memory(str(path), info.st_size, str(info.st_mtime_ns))


@pytest.fixture
def memories(engine: FakeEngine, tmp_path: Path) -> list[Memory]:
    """Four memories: documents, talk whose times lie between each other, other scripts, and one line."""
    random.seed(3)
    text = (DOCUMENTS / "argparse.py").read_text()
    talk: list[tuple[Kind, str, str, int]] = []
    for number in range(40):
        talk += [
            (
                Kind.USER,
                "",
                f"The lantern {number} is green. Which colour has lantern {number}?",
                5000 + 7 * number,
            ),
            (
                Kind.ASSISTANT,
                "",
                f"Lantern {number} is {random.choice(('green', 'red'))}.",
                5001 + 7 * number,
            ),
        ]
    return [
        write(engine, tmp_path / "a.atlas", [
            (Kind.DOCUMENT, "argparse.py", text[:9000], 5050),
            (Kind.DOCUMENT, "", text[9000:12000], 4000),
            (Kind.DOCUMENT, "argparse.py", text[:9000], 5050),  # read twice in one moment
        ]),
        write(engine, tmp_path / "b.atlas", talk),
        write(engine, tmp_path / "ü c.atlas", [
            (Kind.DOCUMENT, "cities", "我住在北京大学。東京タワー。 İstanbul'da. Ünïcödé ü.\n" * 9, 5100),
            (Kind.TOOL, "shell", "CamelCase snake_case installers installed sources.list 512MB\n" * 3, 5030),
        ]),
        write(engine, tmp_path / "d.atlas", [(Kind.USER, "", "Who built the bridge in 1932?", 1)]),
    ]  # fmt: skip


def whole(engine: FakeEngine, memories: Sequence[Memory]) -> Episodes:
    """What all of them hold, read whole and put together: what an index must not differ from."""
    from atlas_kit.persistence.episode_entries import read_episodes

    several = []
    for memory in memories:
        with MemoryFile.open(memory.name) as file:
            arrays = read_episodes(file)
        assert arrays is not None
        sources = tuple(_named(name_of(memory.name), arrays.sources))
        several.append(dataclasses.replace(arrays, sources=sources))
    arrays = joined(several)
    return Episodes.from_arrays(arrays, engine.piece, engine.info.n_vocab, limit=max(512, len(arrays)))


def indexed(engine: FakeEngine, memories: Sequence[Memory]) -> None:
    result = make_indexes(memories, Words(engine), engine.info.identity)
    assert (len(result.made), result.left_out) == (len(memories), [])


@pytest.mark.parametrize("with_index", [(0, 1, 2, 3), (1, 3), ()])
def test_the_same_is_found_with_an_index_and_without(
    engine: FakeEngine, memories: list[Memory], with_index: tuple[int, ...]
) -> None:
    plain = whole(engine, memories)
    indexed(engine, [memories[number] for number in with_index])
    gathered = gather(memories, engine.info.identity, words=(engine.piece, engine.info.n_vocab))
    assert (gathered.indexed, gathered.files) == (len(with_index), 4)
    with session_over(engine, gathered) as session:
        far = session.episodes
        assert far is not None
        for question in QUESTIONS:
            for kinds in (None, [Kind.USER, Kind.ASSISTANT]):
                expected = plain.search(question, 12, kinds=kinds)
                found = far.search(question, 12, kinds=kinds)
                assert found == expected, question
                assert [far.text(*one.segment[:2]) for one in found] == [
                    plain.text(*one.segment[:2]) for one in expected
                ]
            recall = Recall(candidates=20, read=2000)
            assert candidates(engine, far, question, recall) == candidates(engine, plain, question, recall)
        assert any(candidates(engine, far, question, recall) for question in QUESTIONS)
        assert far.follows().tolist() == plain.follows().tolist()
        assert [far.segment(block) for block in range(far.blocks)] == [
            plain.segment(block) for block in range(plain.blocks)
        ]
        assert far.episodes == plain.episodes
        assert far.tokens(0, far.end) == plain.tokens(0, plain.end)
    gathered.close()


def test_likeness_is_the_same(engine: FakeEngine, memories: list[Memory]) -> None:
    indexed(engine, memories)
    gathered = gather(memories, engine.info.identity)
    indexes = JoinedIndexes(gathered.parts)
    far, near, plain = indexes.episodes(engine.piece), Likeness(engine), whole(engine, memories)
    likeness = FarLikeness(engine, *indexes.token_counts(), len(far), indexes.token_blocks)
    for question in QUESTIONS:
        asked = engine.tokenize(question)
        one, two = likeness.question(far.arrays(), asked), near.question(plain.arrays(), asked)
        assert np.array_equal(one.tails, two.tails)
        assert likeness.search(far.arrays(), one, 9) == near.search(plain.arrays(), two, 9)


def test_a_search_without_a_model_shows_text_and_place(engine: FakeEngine, memories: list[Memory]) -> None:
    with pytest.raises(AtlasError, match="none of the 4 files") as caught:
        search_memories(memories, ["bridge"])
    assert "it has no index" in str(caught.value)
    indexed(engine, memories)
    result = search_memories(memories, ["Who built the bridge?", "北京", "xyzzy"], count=2)
    (_, bridge), (_, city), (_, nothing) = result.questions
    assert bridge[0].text == "Who built the bridge in 1932?"
    assert bridge[0].place == f"user in {memories[3].name}, 1970-01-01 00:00 UTC"
    assert city[0].source == f"{memories[2].name}: cities"
    assert "北京大学" in city[0].text
    assert nothing == []
    assert result.exit_code == 0
    assert search_memories(memories, ["xyzzy"]).exit_code == 1


def test_memories_of_several_models_keep_their_own_words(engine: FakeEngine, tmp_path: Path) -> None:
    """Token 65 of one model is not that of another; without a model both are searched."""
    one = write(engine, tmp_path / "one.atlas", [(Kind.DOCUMENT, "one", "The harbour lies in the north.", 1)])
    two = write(engine, tmp_path / "two.atlas", [(Kind.DOCUMENT, "two", "The harbour lies in the south.", 2)])
    with MemoryFile.edit(two.name) as file:
        file.model_hash = bytes(range(32))
    two = listed(tmp_path / "two.atlas")
    indexed(engine, [one])

    class Shouted(Words):
        def __init__(self, engine: FakeEngine) -> None:
            super().__init__(engine)
            self.piece = lambda token: engine.piece(token).upper()

    assert make_indexes([two], Shouted(engine), bytes(range(32)).hex()).left_out == []
    ((_, found),) = search_memories([one, two], ["harbour"]).questions
    assert {piece.text for piece in found} == {
        "The harbour lies in the north.",
        "THE HARBOUR LIES IN THE SOUTH.",
    }
    gathered = gather([one, two], engine.info.identity)
    assert gathered.left_out == [f"{two.name}: it is another model's"]


def test_an_index_of_another_state_is_not_used(
    engine: FakeEngine, memories: list[Memory], tmp_path: Path
) -> None:
    indexed(engine, memories)
    assert make_indexes(memories, Words(engine), engine.info.identity).kept == [one.name for one in memories]
    write(engine, tmp_path / "d.atlas", [(Kind.USER, "", "Anna Rask built the bridge.", 3)])
    changed = [*memories[:3], listed(tmp_path / "d.atlas")]
    assert find_index(changed[3]) is None
    gathered = gather(changed, engine.info.identity, words=(engine.piece, engine.info.n_vocab))
    assert gathered.indexed == 3
    found = JoinedIndexes(gathered.parts).episodes(engine.piece).search("Who built the bridge?", 1)
    assert found[0].segment.time_ms == 3
    result = make_indexes(changed, Words(engine), engine.info.identity)
    assert (len(result.kept), result.made) == (3, [beside(changed[3].name)])


def test_of_an_encrypted_memory_no_index_is_made(
    engine: FakeEngine, memories: list[Memory], tmp_path: Path
) -> None:
    with MemoryFile.open(memories[3].name) as file:
        file.encrypt_with(passphrase="geheim")
        file.save(tmp_path / "secret.atlas", version=3)
    secret = listed(tmp_path / "secret.atlas")
    result = make_indexes([secret], Words(engine), engine.info.identity)
    assert result.left_out == [f"{secret.name}: {ENCRYPTED}"]
    assert (result.exit_code, os.path.exists(_beside(secret.name))) == (1, False)


def test_where_nothing_can_be_written_the_index_lies_in_the_users_folder(
    engine: FakeEngine, memories: list[Memory], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_kit.operations import memory_indexes

    save = memory_indexes._save

    def refused(made: MemoryFile, place: str) -> None:
        if not place.startswith(str(own_cache)):
            raise AtlasError("permission is denied")
        save(made, place)

    monkeypatch.setattr(memory_indexes, "_save", refused)
    result = make_indexes(memories[:1], Words(engine), engine.info.identity)
    assert result.cached == [cached(memories[0].name)]
    assert stat.S_IMODE(own_cache.stat().st_mode) == 0o700
    assert find_index(memories[0]) is not None
    assert drop_indexes(memories[0].name) == [cached(memories[0].name)]
    assert find_index(memories[0]) is None


def test_where_no_index_can_be_written_at_all_that_is_said(
    engine: FakeEngine, memories: list[Memory], own_cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from atlas_kit.operations import memory_indexes

    own_cache.write_text("a file, and no folder")

    def refused(made: MemoryFile, place: str) -> None:
        raise AtlasError("the disk is full")

    monkeypatch.setattr(memory_indexes, "_save", refused)
    result = make_indexes(memories, Words(engine), engine.info.identity)
    assert (result.made, len(result.left_out)) == ([], 4)


def test_nothing_is_sent_to_a_web_server(engine: FakeEngine, memories: list[Memory], own_cache: Path) -> None:
    pytest.importorskip("aiohttp", reason="needs the cloud extra")
    from tests.storage.web_server import Page, serving

    data = Path(memories[3].name).read_bytes()
    with serving({"/m.atlas": Page(data)}, 0.0) as web:
        for address in (web.url("/m.atlas"), web.url("/m.atlas?X-Amz-Signature=geheim")):
            memory = Memory(address, len(data), '"one"')
            result = make_indexes([memory], Words(engine), engine.info.identity)
            assert result.left_out == []
            part = find_index(memory)
            assert part is not None
            part.close()
        assert {method for method, _, _ in web.asked} == {"GET"}
        assert not any(".idx" in place and "?" in place for _, place, _ in web.asked)
    assert beside("https://example.org/m.atlas") == "https://example.org/m.atlas.idx"
    assert beside("https://example.org/m.atlas?sig=x") is None


def test_who_may_not_read_the_memory_may_not_read_its_index(
    engine: FakeEngine, memories: list[Memory]
) -> None:
    os.chmod(memories[0].name, 0o600)
    indexed(engine, memories)
    assert stat.S_IMODE(os.stat(_beside(memories[0].name)).st_mode) == 0o600


def test_what_is_forgotten_is_in_no_index(engine: FakeEngine, memories: list[Memory]) -> None:
    from atlas_kit.operations.encryption import encrypt_file
    from atlas_kit.operations.forget import Choice, forget
    from atlas_kit.storage.keys import Keys

    indexed(engine, memories)
    forget(memories[2].name, Choice(source="nothing of this name"))
    forget(memories[2].name, Choice(source="cities"), dry_run=True)
    assert os.path.exists(_beside(memories[2].name))
    forget(memories[2].name, Choice(source="cities"))
    assert not os.path.exists(_beside(memories[2].name))
    encrypt_file(memories[3].name, Keys(b"geheim"))
    assert not os.path.exists(_beside(memories[3].name))
    assert os.path.exists(_beside(memories[0].name))


def test_an_index_is_a_sound_file(engine: FakeEngine, memories: list[Memory]) -> None:
    indexed(engine, memories)
    for memory in memories:
        assert validate_file(_beside(memory.name)).ok


def test_a_damaged_index_is_as_good_as_none(engine: FakeEngine, memories: list[Memory]) -> None:
    """Every byte of it may be hit: nothing but an AtlasError comes of that, or all is read from the memory."""
    indexed(engine, memories[3:])
    place = Path(f"{memories[3].name}.idx")
    sound = place.read_bytes()
    random.seed(7)
    for number in range(150):
        data = bytearray(sound)
        if number % 3:
            data[random.randrange(len(data))] ^= 1 << random.randrange(8)
        else:
            del data[random.randrange(len(data)) :]
        place.write_bytes(data)
        gathered = gather(memories[3:], engine.info.identity, words=(engine.piece, engine.info.n_vocab))
        try:
            episodes = JoinedIndexes(gathered.parts).episodes(engine.piece)
            for one in episodes.search("Who built the bridge?", 3):
                episodes.text(one.segment.start, one.segment.stop)
        except AtlasError:
            continue


def test_numbers_are_written_and_read() -> None:
    rows = np.array([[0, 1], [127, 128], [16383, 16384], [1 << 30, 5]])
    data, at = _encoded(rows, np.array([0, 1, 4]))
    assert _decoded(data).tolist() == rows.ravel().tolist()
    assert _decoded(data[: at[1]]).tolist() == [0, 1]
    assert (at[0], at[-1]) == (0, len(data))
    steps = np.array([[3, 1], [200, 2]])  # the example of formats/atlas-index.md
    assert _encoded(steps, np.array([0, 2]))[0].hex(" ") == "03 01 c8 01 02"
    for wrong in (b"\x80", b"\x81\x82\x83\x84\x85\x06"):
        with pytest.raises(FileCorruptError):
            _decoded(wrong)


def test_something_else_is_no_index(memories: list[Memory]) -> None:
    with pytest.raises(FileCorruptError, match="this is no index"):
        IndexPart(memories[0].name)
