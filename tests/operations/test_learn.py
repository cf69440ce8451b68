"""Reading documents into a memory: pieces, losses, saves, stops, failures."""

from __future__ import annotations

import io
import os
import sys

import numpy as np
import pytest

from atlas_kit.errors import AtlasError, FileAccessError, InvalidParamError, NoSuchFileError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.operations import learn as learning
from atlas_kit.operations.learn import Document, learn

TEXT = "to be or not to be, that is the question\n"


@pytest.fixture
def session():
    """Return a session with a memory on the fake engine."""
    with AtlasSession(FakeEngine(), True) as session:
        yield session


@pytest.fixture
def write(tmp_path):
    """Return a function that writes a document."""

    def write(text: str | bytes, name: str = "a.txt") -> Document:
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return Document(str(path))

    return write


# --- documents --------------------------------------------------------------------------------------------


def test_pieces_end_where_lines_end(write, monkeypatch):
    monkeypatch.setattr(learning, "PIECE", 50)
    text = "a line that is short\n" * 20 + "x" * 130 + "\n\u2603 last"
    document = write(text)
    pieces = list(document.pieces())
    assert "".join(pieces) == text
    assert sum(piece.endswith("\n") for piece in pieces) > 5
    assert document.size == len(text.encode())


def test_a_character_across_two_pieces(write, monkeypatch):
    monkeypatch.setattr(learning, "PIECE", 5)
    assert write("\u2603" * 30).text() == "\u2603" * 30


def test_text_that_is_not_utf8(write):
    assert write(b"caf\xe9 \xff\n").text() == "caf\ufffd \ufffd\n"
    assert write(b"\xef\xbb\xbfhi").text() == "hi"


def test_documents_that_are_none(write, tmp_path):
    for document, kind in (
        (write(b"MZ\0\0"), InvalidParamError),
        (Document(str(tmp_path / "no")), NoSuchFileError),
        (Document(str(tmp_path)), FileAccessError),
        (Document("a\0b"), AtlasError),
    ):
        with pytest.raises(kind) as caught:
            document.check()
        assert "\n" not in str(caught.value)
        with pytest.raises(kind):
            document.text()


def test_standard_input(monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"hi\n")))
    document = Document("-")
    document.check()
    assert (document.size, document.text()) == (None, "hi\n")


# --- learning ---------------------------------------------------------------------------------------------


def test_it_learns_and_saves(session, write):
    saves = []
    result = learn(
        session, [write(TEXT * 20), write(TEXT * 10, "b.txt")], name="m.atlas", save_every=300,
        save=lambda: saves.append(session.memory.tokens_seen),
    )  # fmt: skip
    first, second = result.documents
    assert (first.tokens, second.tokens) == (20 * len(TEXT), 10 * len(TEXT))
    assert result.total.tokens == 30 * len(TEXT)
    assert second.loss < first.loss < first.model_loss
    assert np.isclose(result.total.losses[1], first.losses[1] + second.losses[1])
    assert result.saves == len(saves) == 2 + result.total.tokens // 300  # the first when all is stored
    assert np.all(np.diff(saves) >= 0)
    # each document's last token is followed by nothing, so that it is not learned
    assert saves[-1] == result.total.tokens - 2
    document = result.to_json()
    assert document["memory_file"] == "m.atlas"
    assert [row["tokens"] for row in document["documents"]] == [first.tokens, second.tokens]
    assert document["loss"] < document["loss_model"]
    assert result.exit_code == 0


def test_the_context_is_emptied_between_documents(session, write):
    learn(session, [write(TEXT), write("abc", "b.txt")], save=lambda: None)
    assert bytes(session.context_tokens) == b"abc"


def test_progress(session, write):
    seen = []
    document = write(TEXT * 10)
    learn(
        session, [document], save=lambda: None, progress=lambda now: seen.append((now.read.tokens, now.ended))
    )
    tokens = [count for count, _ in seen]
    assert tokens == sorted(tokens)
    assert [ended for _, ended in seen] == [False] * (len(seen) - 1) + [True]


def test_it_stops_between_batches_and_saves(session, write):
    asked = iter([False] * 7 + [True] * 9)  # before each document is stored, too
    saves = []
    result = learn(
        session, [write(TEXT * 50), write(TEXT, "b.txt")], save=lambda: saves.append(1),
        stop=lambda: next(asked),
    )  # fmt: skip
    assert result.interrupted
    assert result.total.tokens == 4 * session.engine.n_batch
    assert saves == [1, 1]
    assert len(result.documents) == 1


def test_a_save_that_fails_on_the_way_is_told_and_reading_goes_on(session, write):
    troubles, answers = [], iter([FileAccessError("the disk is full"), None, None, None, None, None])

    def save():
        if (error := next(answers)) is not None:
            raise error

    result = learn(
        session, [write(TEXT * 10)], save=save, save_every=100,
        progress=lambda now: troubles.append(now.trouble),
    )  # fmt: skip
    assert sum(trouble is not None for trouble in troubles) == 1
    assert result.total.tokens == 10 * len(TEXT)


def test_the_last_save_must_succeed(session, write):
    def save():
        raise FileAccessError("the disk is full")

    with pytest.raises(FileAccessError):
        learn(session, [write(TEXT)], save=save)


def test_what_was_read_is_saved_when_a_document_fails(session, write, tmp_path):
    saves = []
    late = write(TEXT, "b.txt")
    os.unlink(tmp_path / "b.txt")
    with pytest.raises(NoSuchFileError):
        learn(session, [write(TEXT), late], save=lambda: saves.append(1))
    assert saves == [1, 1]  # when it was stored, and when it was learned


def test_documents_are_stored_before_the_first_is_learned(session, write):
    seen = []

    def save():
        found = [(one.source, one.stop - one.start) for one in session.episodes.episodes]
        seen.append((found, session.memory.tokens_seen))

    documents = [write(TEXT * 3), write("abc", "b.txt")]
    result = learn(session, documents, save=save)
    stored = [(documents[0].name, 3 * len(TEXT)), (documents[1].name, 3)]
    assert seen[0] == (stored, 0)
    assert seen[-1][0] == stored
    assert seen[-1][1] > 0
    assert result.to_json()["stored"] == result.stored == 3 * len(TEXT) + 3


def test_what_is_read_again_is_not_stored_again(session, write):
    learn(session, [write(TEXT)], save=lambda: None)
    learn(session, [write(TEXT)], save=lambda: None)
    assert len(session.episodes) == len(TEXT)
    learn(session, [write(TEXT + "!")], save=lambda: None)
    assert len(session.episodes) == 2 * len(TEXT) + 1


def test_documents_are_only_stored(session, write):
    saves = []
    result = learn(session, [write(TEXT)], save=lambda: saves.append(1), store_only=True)
    assert (saves, result.documents, session.memory.tokens_seen) == ([1], [], 0)
    assert result.stored == len(TEXT)
    with pytest.raises(FileAccessError):
        learn(session, [write("abc", "b.txt")], save=_full, store_only=True)


def _full():
    raise FileAccessError("the disk is full")


def test_standard_input_is_stored_as_it_is_read(session, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TEXT.encode())))
    learn(session, [Document("-")], save=lambda: None)
    assert [(one.source, one.stop) for one in session.episodes.episodes] == [("", len(TEXT))]


def test_nothing_to_read(session, write):
    saves = []
    result = learn(session, [write("")], save=lambda: saves.append(1))
    assert (result.total.tokens, result.total.loss, result.total.model_loss, saves) == (0, None, None, [])


def test_save_every_is_positive(session):
    with pytest.raises(InvalidParamError, match="save_every"):
        learn(session, [], save=lambda: None, save_every=0)


def test_a_file_under_another_name_is_not_stored_again(session, write):
    """But a file that was another one meanwhile is: what was read last counts."""
    learn(session, [write(TEXT, "a.txt")], save=lambda: None, store_only=True)
    learn(session, [write(TEXT, "b.txt"), write(TEXT + "!", "c.txt")], save=lambda: None, store_only=True)
    assert len(session.episodes) == 2 * len(TEXT) + 1
    learn(session, [write(TEXT + "!", "a.txt")], save=lambda: None, store_only=True)
    learn(session, [write(TEXT, "a.txt")], save=lambda: None, store_only=True)
    assert len(session.episodes) == 4 * len(TEXT) + 2
