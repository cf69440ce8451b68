"""Going on with what was read: it is read again in front of its beginning, and leaves no trace."""

from __future__ import annotations

import pytest

from atlas_kit.episodes import Kind
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.llama.completing import complete
from atlas_kit.llama.recalling import Recall, Recalled
from atlas_kit.llama.steps import Token

SETTINGS = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
CODE = "The code of Bamiru is 4711."


@pytest.fixture
def session():
    with AtlasSession(FakeEngine(n_ctx=400, n_batch=64), SETTINGS) as session:
        session.remember(Kind.DOCUMENT, f"{CODE}\n" + "The lake is deep and cold.\n" * 9)
        yield session


def begun(text):
    return list(text.encode())


def test_what_was_read_stands_in_front(session, monkeypatch):
    seen = []
    generating = AtlasSession.generating
    monkeypatch.setattr(
        AtlasSession, "generating",
        lambda self, **options: seen.append(bytes(self.context_tokens).decode()) or generating(self, **options),
    )  # fmt: skip
    _, recalled = complete(session, begun("The code of Bamiru is "), 4, recall=Recall("always", tokens=32))
    assert CODE in recalled.pieces[0].text
    assert seen[0].startswith(f"\n{CODE}")
    assert seen[0].endswith("\nThe code of Bamiru is ")


@pytest.mark.parametrize("mode", ["always", "auto", "off"])
def test_it_leaves_no_trace(session, mode):
    session.feed("A text that goes on.", kind=None)
    memory, counts = session.memory, session.stats["tokens_read"]
    before = (
        session.context_tokens,
        session.position,
        memory.tokens_seen,
        len(session.episodes),
        session.learns,
    )
    first, _ = complete(session, begun("The code of Bamiru is "), 4, recall=Recall(mode, tokens=32))
    assert before == (
        session.context_tokens, session.position, memory.tokens_seen, len(session.episodes), session.learns,
    )  # fmt: skip
    assert session.memory is memory
    assert session.stats["tokens_read"] == counts
    assert complete(session, begun("The code of Bamiru is "), 4, recall=Recall(mode, tokens=32))[0] == first


def test_where_nothing_is_found_it_goes_on_with_the_context(session):
    session.feed("The lake is deep and", kind=None)
    with session.aside():
        expected = "".join(map(str, session.generate(begun("x"), max_tokens=4, sampling=None)))
    assert isinstance(expected, str)
    text, recalled = complete(session, begun("x"), 4)
    assert recalled == Recalled(reason="nothing was found")
    assert text


def test_the_memory_answers_behind_what_was_read_again(session, monkeypatch):
    seen = []
    generating = AtlasSession.generating

    def seeing(self, **options):
        seen.append((self.memory, self.learns, bytes(self.memory.watched.tolist())))
        return generating(self, **options)

    monkeypatch.setattr(AtlasSession, "generating", seeing)
    memory = session.memory
    complete(session, begun("The code of Bamiru is "), 4, recall=Recall("always", tokens=32))
    assert seen == [(memory, False, b"The code of Bamiru is")]  # what is looked up is what followed that
    assert len(memory.watched) == 0


@pytest.fixture
def windowed():
    """A session whose window still holds what its context does not."""
    with AtlasSession(FakeEngine(n_ctx=400, n_batch=64), SETTINGS) as session:
        session.feed("The lake is deep and cold.\n" * 4 + f"{CODE}\n" + "A hill stands there.\n")
        session.forget_context()
        yield session


@pytest.mark.parametrize("surer", [0, 1])
def test_what_the_window_holds_is_asked_for_both_ways_and_the_surer_is_told(windowed, monkeypatch, surer):
    answers, generating = [], AtlasSession.generating

    def sure(self, **options):
        number, said = len(answers), []
        answers.append((bytes(self.context_tokens).decode(), said))
        outputs, work = None, generating(self, **options)
        while True:
            try:
                item = work.send(outputs)
            except StopIteration as done:
                return done.value
            if isinstance(item, Token):
                item = item._replace(text=str(number), logprob=-1.0 - (number != surer))
                said.append(item)
            outputs = yield item

    monkeypatch.setattr(AtlasSession, "generating", sure)
    memory, before = windowed.memory, windowed.memory.tokens_seen
    text, recalled = complete(
        windowed, begun("The code of Bamiru is "), 3, recall=Recall("always", tokens=32)
    )
    assert CODE in recalled.pieces[0].text
    assert [CODE in context for context, _ in answers] == [True, False]
    assert text == str(surer) * 3
    assert (windowed.memory, memory.tokens_seen, windowed.context_tokens) == (memory, before, ())
    assert len(memory.watched) == 0
