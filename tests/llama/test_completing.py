"""Going on with what was read: it is read again in front of its beginning, and leaves no trace."""

from __future__ import annotations

import pytest

from atlas_kit.episodes import Kind
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.llama.completing import complete
from atlas_kit.llama.recalling import Recall, Recalled

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
