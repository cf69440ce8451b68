"""``ask``: several questions one after the other, and what happens to those that nobody waits for any more."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from atlas_kit.episodes import Kind
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.operations.ask import ask


@pytest.fixture
def session() -> Iterator[AtlasSession]:
    settings = AtlasSettings(window_size=64, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)
    with AtlasSession(FakeEngine(n_ctx=400, n_batch=64), settings) as session:
        session.remember(Kind.DOCUMENT, "The bridge was built in 1932.\n", "notes.txt")
        yield session


@pytest.mark.parametrize("tokens", [1, 3])
def test_an_answer_is_stopped_between_two_tokens(session: AtlasSession, tokens: int) -> None:
    told: list[object] = []
    questions = ("Who built the bridge?", "When?")
    result = ask(session, questions, told=told.append, stop=lambda: len(told) > tokens, max_tokens=50)
    assert result.interrupted
    (answer,) = result.answers
    assert (answer.reason, len(answer.tokens)) == ("cancelled", tokens)
    assert result.to_json()["interrupted"] is True
    assert len(ask(session, questions, max_tokens=2).answers) == 2


def test_what_was_stopped_before_it_said_anything_is_no_answer(session: AtlasSession) -> None:
    asked: list[object] = []
    result = ask(session, ["Who?"], told=asked.append, stop=lambda: bool(asked), max_tokens=5)
    assert (result.answers, result.interrupted) == ([], True)
