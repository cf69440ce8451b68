"""Where a memory is kept, who wrote it last, and which backup would do."""

from __future__ import annotations

import dataclasses
import os

import pytest

from atlas_kit.errors import ConflictError, FileAccessError, InvalidParamError, NoSuchFileError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.persistence.backups import backup_names, list_backups, newest_good
from atlas_kit.persistence.place import Place, automatic_path
from atlas_kit.persistence.session_file import read_session_state, saved_settings, write_session_state
from atlas_kit.settings.atlas_settings import AtlasSettings

SMALL = AtlasSettings(window_size=16, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)


@pytest.fixture(scope="module")
def states():
    with AtlasSession(FakeEngine(), SMALL) as session:
        found = []
        for text in ("to be or not to be", "that is the question"):
            session.feed(text)
            found.append(session.state(context=False))
    return found


def tokens_in(path):
    return int(read_session_state(path).memory.counters["seen"])


def test_the_automatic_name(tmp_path):
    assert automatic_path("models/llama-7b.gguf") == os.path.join("models", "llama-7b_memory.atlas")
    assert automatic_path("llama-7b.gguf") == "llama-7b_memory.atlas"
    assert automatic_path("a/m.gguf", tmp_path) == str(tmp_path / "m_memory.atlas")


def test_what_somebody_else_wrote_is_kept(states, tmp_path):
    path = str(tmp_path / "m.atlas")
    place = Place(path, "model.gguf")
    assert not place.save(states[0])
    assert not place.save(states[1])
    assert not os.path.exists(path + ".bak")
    write_session_state(path, states[0], metadata={"by": "somebody else"})
    assert place.save(states[1])
    assert tokens_in(path + ".bak") == tokens_in_state(states[0])
    assert tokens_in(path) == tokens_in_state(states[1])


def tokens_in_state(state):
    return int(state.memory.counters["seen"])


def test_what_was_said_to_somebody_else_is_kept_apart(states, tmp_path):
    """Two that save into one file do not mix what they were told, and what the one had is in the backup."""
    from atlas_kit.episodes import Episodes, Kind

    def told(text):
        made = Episodes(lambda token: bytes([token]), 256)
        made.begin(Kind.USER)
        made.append(list(text.encode() * 500))
        return made.arrays()

    path = tmp_path / "m.atlas"
    first, second = Place(str(path), "model.gguf"), Place(str(path), "model.gguf")
    ours, theirs = told("ours is this. "), told("and this is theirs. ")
    assert not first.save(dataclasses.replace(states[0], episodes=theirs))
    assert not first.save(dataclasses.replace(states[0], episodes=theirs))
    assert second.save(dataclasses.replace(states[0], episodes=ours))
    assert read_session_state(path).episodes.tokens.tolist() == ours.tokens.tolist()
    assert b"theirs" not in path.read_bytes().replace(b"\0", b"")
    assert read_session_state(f"{path}.bak").episodes.tokens.tolist() == theirs.tokens.tolist()


def test_what_was_said_is_saved_by_itself(states, tmp_path):
    """A turn is safe without the memory being written; what somebody else wrote meanwhile is left alone."""
    from atlas_kit.episodes import Episodes, Kind

    path, identity = tmp_path / "m.atlas", states[0].identity
    made = Episodes(lambda token: bytes([token]), 256)
    made.begin(Kind.USER)
    made.append(list(b"a question. " * 9))
    first, second = Place(str(path), "model.gguf"), Place(str(path), "model.gguf")
    assert first.save_episodes(made.arrays(), identity)
    assert not second.save_episodes(made.arrays(), identity)
    assert not first.save(dataclasses.replace(states[0], episodes=made.arrays()))
    made.append(list(b"and one more. "))
    assert first.save_episodes(made.arrays(), identity)
    found = read_session_state(path)
    assert found.episodes.tokens.tolist() == made.arrays().tokens.tolist()
    assert int(found.memory.counters["seen"]) == int(states[0].memory.counters["seen"])
    assert not first.save(states[0])


def test_places_that_are_none(tmp_path):
    model = tmp_path / "m.gguf"
    model.write_bytes(b"GGUF")
    for file, error in (
        ("", InvalidParamError), ("a\0b", InvalidParamError), (str(tmp_path), FileAccessError),
        (str(model), InvalidParamError), (str(tmp_path / "new.json"), InvalidParamError),
        (str(tmp_path / "other.gguf"), InvalidParamError), (str(tmp_path / "no" / "m.atlas"), NoSuchFileError),
    ):  # fmt: skip
        with pytest.raises(error):
            Place(file, str(model))


def test_the_newest_backup_that_would_do(states, tmp_path):
    path = tmp_path / "m.atlas"
    assert newest_good(list_backups(path)) is None
    for stamp, content in ((1700000000, None), (1700000100, b"damaged"), (1700000200, "other")):
        backup = tmp_path / f"m_{stamp}.atlas.bak"
        if content is None:
            write_session_state(backup, states[0])
        elif isinstance(content, bytes):
            backup.write_bytes(content)
        else:
            from atlas_kit import MemoryFile

            MemoryFile().save(backup)
    number, found = newest_good(list_backups(path))
    assert (number, os.path.basename(found.path)) == (1, "m_1700000200.atlas.bak")
    number, found = newest_good(list_backups(path, accept=saved_settings))
    assert (number, os.path.basename(found.path)) == (3, "m_1700000000.atlas.bak")


def test_names_of_backups_come_in_the_order_of_the_list(tmp_path):
    path = tmp_path / "a.atlas"
    for number, name in enumerate(
        ("a.atlas.bak", "a_20250131T120000.atlas.bak", "a_17.atlas.bak", "b.atlas.bak")
    ):
        (tmp_path / name).write_bytes(b"damaged")
        os.utime(tmp_path / name, (1000 + number, 1000 + number))
    assert backup_names(path) == ["a_20250131T120000.atlas.bak", "a.atlas.bak", "a_17.atlas.bak"]
    assert [os.path.basename(backup.path) for backup in list_backups(path).backups] == backup_names(path)
    assert backup_names(tmp_path / "none.gguf") == []


def test_what_was_forgotten_meanwhile_is_not_brought_back(states, tmp_path):
    from atlas_kit.episodes import Episodes, Kind
    from atlas_kit.operations.forget import Choice, forget
    from atlas_kit.operations.token_words import EngineWords

    path, made = tmp_path / "m.atlas", Episodes(lambda token: bytes([token]), 256)
    made.begin(Kind.USER)
    made.append(list(b"the blue stone"))
    told = dataclasses.replace(states[0], episodes=made.arrays())
    Place(str(path), "model.gguf").save(told)
    open_one = Place(str(path), "model.gguf")
    forget(str(path), Choice(about="stone"), words=EngineWords(FakeEngine()))
    after = path.read_bytes()
    with pytest.raises(ConflictError, match="would bring it back"):
        open_one.save(dataclasses.replace(states[1], episodes=made.arrays()))
    assert not open_one.save_episodes(made.arrays(), told.identity)
    assert path.read_bytes() == after
    later = Place(str(path), "model.gguf")
    assert not later.save(states[1])
    open_one = Place(str(path), "model.gguf")
    write_session_state(path, states[0])
    assert open_one.save(states[1])  # by somebody who forgot nothing


def test_what_forgets_is_known_of_an_encrypted_memory(states, tmp_path):
    from atlas_kit.storage.keys import Keys

    path, keys = str(tmp_path / "m.atlas"), Keys("secret")
    place = Place(path, "model.gguf", keys)
    place.save(states[0])
    write_session_state(path, states[0], metadata={"forgotten_ms": 4_000_000_000_000}, passphrase="secret")
    with pytest.raises(ConflictError):
        place.save(states[1])
