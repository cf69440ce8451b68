"""Indexes beside memories in a bucket: how often the store is asked for a question, and how much comes."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

pytest.importorskip("s3fs", reason="needs the cloud extra")
pytest.importorskip("moto", reason="needs the cloud extra, and moto")
pytest.importorskip("flask_cors", reason="needs the cloud extra, and flask-cors")

from atlas_kit.episodes import Kind
from atlas_kit.fleet.files import found
from atlas_kit.llama import FakeEngine
from atlas_kit.operations.many_memories import JoinedIndexes, gather, search_memories
from atlas_kit.operations.memory_indexes import Memory, make_indexes, memories_of
from tests.operations.test_memory_indexes import DOCUMENTS, Words, write
from tests.storage.s3_server import S3Server, s3_serving


@pytest.fixture(scope="module")
def running() -> Iterator[S3Server]:
    with s3_serving() as server:
        yield server


@pytest.fixture
def s3(running: S3Server, monkeypatch: pytest.MonkeyPatch) -> S3Server:
    import s3fs

    for name, value in running.environment.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()
    return running


@pytest.fixture(scope="module")
def engine() -> FakeEngine:
    return FakeEngine(n_ctx=600, n_batch=64)


def test_small_memories_take_one_request_each(s3: S3Server, engine: FakeEngine, tmp_path: Path) -> None:
    for number in range(12):
        write(engine, tmp_path / "m.atlas", [
            (Kind.DOCUMENT, "notes", f"The bridge number {number} was built in {1900 + number}.", number),
        ])  # fmt: skip
        s3.put(f"few/deep {number} #ü/m.atlas", (tmp_path / "m.atlas").read_bytes())

    def listed() -> list[Memory]:
        return memories_of([one for one in found(["s3://bucket/few/**"]) if one.name.endswith(".atlas")])

    assert len(make_indexes(listed(), Words(engine), engine.info.identity).made) == 12
    memories = listed()
    s3.forget()
    result = search_memories(memories, ["Which bridge was built in 1907?"], count=1)
    ((_, (best,)),) = result.questions
    assert best.text == "The bridge number 7 was built in 1907."
    assert best.source == "s3://bucket/few/deep 7 #ü/m.atlas: notes"
    asked = [place for _, place in s3.asked]
    assert len(asked) == 12
    assert all(place.endswith(".atlas.idx") for place in asked)


def test_of_a_large_memory_little_is_read(s3: S3Server, engine: FakeEngine, tmp_path: Path) -> None:
    text = "".join(path.read_text() for path in sorted(DOCUMENTS.glob("*.py")))
    said = [(Kind.DOCUMENT, f"part {n}", f"{text[n * 20_000 : (n + 1) * 20_000]}", n) for n in range(15)]
    memory = write(engine, tmp_path / "large.atlas", said)
    url = s3.put("large.atlas", (tmp_path / "large.atlas").read_bytes())
    (remote,) = memories_of(list(found(["s3://bucket/large.atla[s]"])))
    assert remote.name == url
    make_indexes([remote, memory], Words(engine), engine.info.identity)
    size = Path(f"{memory.name}.idx").stat().st_size
    gathered = gather([remote], engine.info.identity)
    index = gathered.parts[0].index
    s3.forget()
    episodes = JoinedIndexes(gathered.parts).episodes(engine.piece)
    best = episodes.search("ambiguous option prefix", 3)
    texts = [episodes.text(one.segment.start, one.segment.stop) for one in best]
    near = gather([memory], engine.info.identity)
    plain = JoinedIndexes(near.parts).episodes(engine.piece)
    assert [one.segment[:3] for one in plain.search("ambiguous option prefix", 3)] == [
        one.segment[:3] for one in best
    ]
    assert texts == [plain.text(one.segment.start, one.segment.stop) for one in best]
    requests, received = index.received
    assert requests <= 14
    assert received < 0.25 * size
    assert len(s3.asked) <= 12
    assert all(place == "/bucket/large.atlas.idx" for _, place in s3.asked)
    gathered.close()


def test_what_was_put_anew_is_read_itself(s3: S3Server, engine: FakeEngine, tmp_path: Path) -> None:
    write(engine, tmp_path / "m.atlas", [(Kind.USER, "", "The lantern is green.", 1)])
    s3.put("anew/m.atlas", (tmp_path / "m.atlas").read_bytes())
    make_indexes(memories_of(list(found(["s3://bucket/anew/*.atlas"]))), Words(engine), engine.info.identity)
    write(engine, tmp_path / "m.atlas", [(Kind.USER, "", "The lantern is yellow.", 1)])
    s3.put("anew/m.atlas", (tmp_path / "m.atlas").read_bytes())
    s3.file_system().invalidate_cache()
    import s3fs

    s3fs.S3FileSystem.clear_instance_cache()
    memories = memories_of(list(found(["s3://bucket/anew/*.atlas"])))
    gathered = gather(memories, engine.info.identity, words=(engine.piece, engine.info.n_vocab))
    assert gathered.indexed == 0
    episodes = JoinedIndexes(gathered.parts).episodes(engine.piece)
    (best,) = episodes.search("lantern", 1)
    assert episodes.text(*best.segment[:2]) == "The lantern is yellow."
