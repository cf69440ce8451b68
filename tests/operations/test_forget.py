"""Forgetting: what was said is gone from all bytes of a memory's file, and the rest goes on."""

from __future__ import annotations

import dataclasses
import itertools
import json

import numpy as np
import pytest

from atlas_kit.episodes import Episodes, Kind
from atlas_kit.errors import ConflictError, InvalidParamError, KeyNotFoundError, LockedError, WrongModelError
from atlas_kit.formats.atlas import MemoryFile
from atlas_kit.llama import AtlasSession, FakeEngine, Sampling
from atlas_kit.operations import forget as operation
from atlas_kit.operations.forget import Choice, forget, time_of
from atlas_kit.operations.token_words import EngineWords
from atlas_kit.persistence.place import lock_of_server
from atlas_kit.persistence.session_file import read_session_state, write_session_state
from atlas_kit.persistence.snapshot import save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings

SECRET = "the parcel lies under the blue stone"
TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind. \n"
SMALL = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
WORDS = EngineWords(FakeEngine())
NOON = time_of("2026-11-30T12:00")
EPISODES = (
    (Kind.DOCUMENT, "plays/hamlet.txt", TEXT * 20, NOON),
    (Kind.USER, "", f"remember: {SECRET}", NOON + 1000),
    (Kind.ASSISTANT, "", "I will.", NOON + 2000),
    (Kind.DOCUMENT, "letters.txt", TEXT * 4 + f"{SECRET}\n" + TEXT * 6, NOON + 3000),
)


def store() -> Episodes:
    made = Episodes(FakeEngine().piece, 257)
    for kind, source, text, when in EPISODES:
        made.begin(kind, source, when)
        made.append(list(text.encode()))
    return made


def in_bytes(data: bytes, text: str) -> bool:
    """Tell whether a text can be read somewhere in a file: as it is, or as token ids of any width."""
    raw = text.encode()
    forms = [np.frombuffer(raw, np.uint8).astype(kind).tobytes() for kind in ("u1", "<u2", "<u4", "<u8")]
    as_json = json.dumps(list(raw))[1:-1].encode()
    return any(form in data for form in (*forms, as_json))


def all_bytes(path, **secret) -> bytes:
    """Return a file's bytes, and those of every entry, decoded: arrays in JSON are in base64."""
    import base64
    import re

    with MemoryFile.load(path, **secret) as file:
        parts = [entry.data for entry in file.entries()]
    for part in list(parts):
        parts += [base64.b64decode(text) for text in re.findall(rb'"data": ?"([A-Za-z0-9+/=]*)"', part)]
    return path.read_bytes() + b"\0\0\0\0\0\0\0\0".join(parts)


@pytest.fixture(scope="module")
def state():
    """A session whose context, texts, window and waiting tokens all hold the secret."""
    with AtlasSession(FakeEngine(), SMALL) as session:
        session.feed(SECRET)
        found = session.state()
    return dataclasses.replace(found, episodes=store().arrays(), texts=(list(SECRET.encode()),))


@pytest.fixture
def path(tmp_path, state):
    write_session_state(tmp_path / "m.atlas", state, metadata={"note": "kept"})
    return tmp_path / "m.atlas"


@pytest.mark.parametrize(
    ("choice", "gone", "stays"),
    [
        (Choice(source="letters.txt"), (0, 1, 2), (3,)),
        (Choice(about="Parcel stone"), (0, 2), (1,)),
        (Choice(before_ms=NOON + 3000), (3,), (0, 1, 2)),
        (Choice(source="letters.txt", before_ms=NOON), (0, 1, 2, 3), ()),
        (Choice(source="hamlet.txt"), (1, 2, 3), (0,)),
    ],
    ids=["source", "about", "before", "both", "base name"],
)  # fmt: skip
def test_what_is_chosen_goes(choice, gone, stays, path):
    """``gone`` and ``stays`` are the numbers of the episodes that stay and go whole."""
    result = forget(str(path), choice, words=WORDS)
    assert result.exit_code == int(not stays)
    arrays = read_session_state(path).episodes
    assert arrays is not None
    starts = [*arrays.episode_start.tolist(), len(arrays)]
    texts = [bytes(arrays.tokens[a:b].tolist()).decode() for a, b in itertools.pairwise(starts)]
    assert all(EPISODES[number][2] in texts for number in gone)
    assert not any(EPISODES[number][2] in texts for number in stays)
    assert (result.left.tokens if result.left else len(arrays)) == len(arrays)
    assert sum(piece.tokens for piece in result.pieces) + len(arrays) == len(store())


@pytest.mark.parametrize("version", [1, 2, 3])
def test_it_is_gone_from_the_bytes(version, state, tmp_path):
    path, secret = tmp_path / "m.atlas", {"passphrase": "x"} if version == 3 else {}
    write_session_state(path, state, version=version, **secret)
    assert in_bytes(all_bytes(path, **secret), SECRET)
    from atlas_kit.storage.keys import Keys

    result = forget(
        str(path),
        Choice(about="parcel blue stone"),
        words=WORDS,
        keys=Keys(*map(str.encode, secret.values())),
    )
    assert result.others == ["context", "texts", "window"]
    assert not in_bytes(all_bytes(path, **secret), SECRET)
    assert not in_bytes(all_bytes(path, **secret), SECRET[:20])
    left = read_session_state(path, **secret)
    assert (left.tokens, left.texts, left.context) == ((), (), None)
    assert MemoryFile.open(path, **secret).version == version


def test_the_session_goes_on_with_what_it_learned(path, state):
    forget(str(path), Choice(source="letters.txt"), words=WORDS)
    with AtlasSession(FakeEngine(), path) as session:
        assert session.memory is not None
        kept = session.memory.state
        assert all(
            np.array_equal(kept.parameters[name], array) for name, array in state.memory.parameters.items()
        )
        session.feed(TEXT)
        assert "".join(map(str, session.generate(max_tokens=3, sampling=Sampling(temperature=0))))
    with MemoryFile.open(path) as file:
        assert file["atlas_memory"].json()["metadata"]["note"] == "kept"


@pytest.mark.parametrize("length", [50, 1500])
@pytest.mark.parametrize(
    "kind", [{"features": "polynomial"}, {"features": "whitened"}], ids=["paper", "whitened"]
)
def test_a_memory_of_any_kind_goes_on(kind, length, tmp_path):
    """Also one that has not seen enough yet to know how to whiten."""
    path = tmp_path / "m.atlas"
    settings = SMALL.replace(**kind)
    with AtlasSession(FakeEngine(), settings) as session:
        session.feed(("now is the winter of our discontent. " * 50)[:length])
        state = dataclasses.replace(session.state(), episodes=store().arrays())
    write_session_state(path, state)
    assert forget(str(path), Choice(about="parcel"), words=WORDS).others == ["context", "window"]
    assert not in_bytes(all_bytes(path), "discontent")
    with AtlasSession(FakeEngine(), path) as session:
        for _ in range(3):
            assert np.isfinite(session.feed(TEXT * 8).logprob).all()
        assert session.memory.tokens_seen > length


def test_what_it_learned_is_learned_again(path, state):
    """It is what a new memory is that has read what is left, and no number is from what went."""
    result = forget(str(path), Choice(source="letters.txt"), engine=FakeEngine())
    left = read_session_state(path)
    assert result.rebuilt == len(left.episodes)
    with AtlasSession(FakeEngine(), SMALL) as session:
        for number, (_, _, text, _) in enumerate(EPISODES[:3]):
            if number < 2:
                session.forget_context()
            session.feed(text)
        expected = session.state(context=False)
    for group, arrays in expected.memory.groups().items():
        for name, array in arrays.items():
            assert np.array_equal(left.memory.groups()[group][name], array), name
    assert dict(left.settings) == dict(state.settings)
    assert left.tokens == ()


def test_a_dry_run_changes_nothing(path):
    before = path.read_bytes()
    result = forget(str(path), Choice(about="parcel stone"), words=WORDS, dry_run=True)
    assert path.read_bytes() == before
    assert [piece.kind for piece in result.pieces] == ["user", "document"]
    assert result.pieces[0].text == f"remember: {SECRET}"
    assert result.pieces[1].source == "letters.txt"
    assert result.others == ["context", "texts", "window"]
    assert result.to_json()["dry_run"] is True
    assert result.to_json()["turns"] == 1
    done = forget(str(path), Choice(about="parcel stone"), words=WORDS)
    assert (done.pieces, done.counts, done.left) == (result.pieces, result.counts, result.left)


def test_without_words_places_are_shown_and_no_text(path):
    result = forget(str(path), Choice(before_ms=NOON + 1), dry_run=True)
    assert [(piece.source, piece.text) for piece in result.pieces] == [("plays/hamlet.txt", None)]
    with pytest.raises(InvalidParamError, match="its model"):
        forget(str(path), Choice(about="stone"))


def test_nothing_is_forgotten_where_nothing_is_meant(path):
    before = path.read_bytes()
    for choice in (Choice(source="hamlot.txt"), Choice(before_ms=5), Choice(about="unheard of")):
        result = forget(str(path), choice, words=WORDS)
        assert (result.exit_code, result.pieces, result.counts) == (1, [], None)
        assert result.similar == (["plays/hamlet.txt"] if choice.source else [])
    assert path.read_bytes() == before
    with pytest.raises(InvalidParamError):
        forget(str(path), Choice())


def test_a_name_that_two_documents_have_is_asked_back(path, state):
    episodes = store()
    episodes.begin(Kind.DOCUMENT, "other/hamlet.txt", 5)
    episodes.append(list(b"x"))
    write_session_state(path, dataclasses.replace(state, episodes=episodes.arrays()))
    with pytest.raises(InvalidParamError, match=r"plays/hamlet\.txt, other/hamlet\.txt"):
        forget(str(path), Choice(source="hamlet.txt"))
    result = forget(str(path), Choice(source="other/hamlet.txt"))
    assert result.counts is not None
    assert result.to_json()["alike"] == ["plays/hamlet.txt"]


def test_everything_can_be_forgotten(path):
    result = forget(str(path), Choice(before_ms=time_of("2100-01-01")))
    assert result.left is None
    assert result.to_json()["left"] == {"tokens": 0, "documents": 0, "turns": 0}
    left = read_session_state(path).episodes
    assert left is not None
    assert len(left) == 0
    assert left.end == len(store())  # positions count on
    assert forget(str(path), Choice(before_ms=time_of("2100-01-01"))).exit_code == 1


def test_backups_are_named_and_removed_when_asked(path, state):
    write_session_state(path, state, backup=True)
    path.with_name("m_20260101T000000.atlas.bak").write_bytes(path.read_bytes())
    path.with_name("other.atlas.bak").write_bytes(b"")
    result = forget(str(path), Choice(source="letters.txt"))
    assert sorted(result.backups) == ["m.atlas.bak", "m_20260101T000000.atlas.bak"]
    assert not result.backups_removed
    assert in_bytes(path.with_name("m.atlas.bak").read_bytes(), SECRET)
    again = forget(str(path), Choice(source="letters.txt"), remove_backups=True, dry_run=True)
    assert not again.backups_removed
    again = forget(str(path), Choice(source="letters.txt"), remove_backups=True)
    assert (again.exit_code, again.backups_removed) == (0, True)
    assert sorted(one.name for one in path.parent.iterdir()) == ["m.atlas", "other.atlas.bak"]


def test_backups_behind_a_link_go_and_those_of_other_memories_stay(path, state):
    others = path.with_name("m_2.atlas"), path.with_name("m_2.atlas.bak")
    for other in others:
        other.write_bytes(path.read_bytes())
    path.with_name("m.atlas.bak").write_bytes(path.read_bytes())
    folder = path.with_name("elsewhere")
    folder.mkdir()
    link = folder / "link.atlas"
    try:
        link.symlink_to(path)
    except OSError:
        pytest.skip("there are no links here")
    result = forget(str(link), Choice(source="letters.txt"), remove_backups=True)
    assert (result.backups, result.backups_removed) == (["m.atlas.bak"], True)
    assert not path.with_name("m.atlas.bak").exists()
    assert all(other.exists() for other in others)


def test_other_texts_in_the_file_are_named(path):
    with MemoryFile.edit(path) as file:
        file.set("chat", f"User: {SECRET}", type=2)
    assert forget(str(path), Choice(source="letters.txt")).texts == ["chat"]
    with MemoryFile.open(path) as file:
        assert file["chat"].text == f"User: {SECRET}"


def test_nothing_is_forgotten_behind_the_back_of_a_server(path):
    before = path.read_bytes()
    with lock_of_server(path):
        assert forget(str(path), Choice(source="letters.txt"), dry_run=True).pieces
        with pytest.raises(LockedError, match="a server keeps its memory in this file"):
            forget(str(path), Choice(source="letters.txt"))
    assert path.read_bytes() == before
    assert forget(str(path), Choice(source="letters.txt")).pieces


def test_a_memory_that_changes_meanwhile_is_not_written_over(path, state, monkeypatch):
    plain = operation._without_text

    def changed(*given):
        write_session_state(path, state, metadata={"by": "somebody else"})
        return plain(*given)

    monkeypatch.setattr(operation, "_without_text", changed)
    with pytest.raises(ConflictError):
        forget(str(path), Choice(source="letters.txt"))
    assert len(read_session_state(path).episodes) == len(store())


def test_a_file_without_episodes_is_said(path, state):
    write_session_state(path, dataclasses.replace(state, episodes=None))
    with pytest.raises(KeyNotFoundError, match="nothing of what was read"):
        forget(str(path), Choice(source="letters.txt"))


def test_episodes_without_a_memory_can_be_forgotten(tmp_path):
    from atlas_kit.persistence.episode_entries import put_episodes, read_episodes

    path = tmp_path / "e.atlas"
    with MemoryFile.edit(path, create=True) as file:
        put_episodes(file, store().arrays())
    result = forget(str(path), Choice(source="letters.txt"))
    assert not result.learned
    assert not in_bytes(path.read_bytes(), TEXT + SECRET)
    with MemoryFile.open(path) as file:
        assert len(read_episodes(file)) == result.left.tokens


def test_the_memory_of_another_model_is_refused(path, state):
    class Other(FakeEngine):
        def __init__(self):
            super().__init__()
            self.info = dataclasses.replace(self.info, identity="ab" * 32)

    before = path.read_bytes()
    with pytest.raises(WrongModelError):
        forget(str(path), Choice(source="letters.txt"), engine=Other())
    assert path.read_bytes() == before
    forget(str(path), Choice(source="letters.txt"), engine=Other(), force=True)
    assert read_session_state(path).identity == "ab" * 32


def test_how_it_was_saved_stays(path, state):
    write_session_state(path, state, codec="zlib", dtype="float16", optimizer=False)
    forget(str(path), Choice(source="letters.txt"))
    with MemoryFile.open(path) as file:
        description = file["atlas_memory"].json()
        assert (description["dtype"], description["optimizer"]) == ("float16", False)
        assert {entry.codec for entry in file.entries() if entry.size > 1000 and entry.dtype_id} == {"zlib"}


def test_dates():
    assert time_of("2026-11-30") == time_of("2026-11-30T00:00:00Z".replace("Z", "+00:00"))
    assert time_of("2026-11-30T01:00+01:00") == time_of("2026-11-30")
    for odd in ("yesterday", "", "2026-13-01", "30.11.2026"):
        with pytest.raises(InvalidParamError, match="not a date"):
            time_of(odd)


def test_a_memory_that_no_session_made_is_refused(tmp_path):
    from atlas_kit.memory import Memory, presets
    from atlas_kit.persistence.episode_entries import put_episodes

    memory = Memory(presets.delta_rule(4, 3, window_size=8))
    path = tmp_path / "m.atlas"
    save_memory(path, memory, memory.init())
    with MemoryFile.edit(path) as file:
        put_episodes(file, store().arrays())
    with pytest.raises(InvalidParamError, match="not made beside"):
        forget(str(path), Choice(source="letters.txt"))
