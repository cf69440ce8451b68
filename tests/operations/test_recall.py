"""What a memory recalls: the text with its facts, and answers that are counted rightly."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, AtlasSettings, FakeEngine
from atlas_kit.operations import recall as recalling
from atlas_kit.operations.recall import filler_text, recall

TEMPLATE = "Call {name} {value}."


@pytest.fixture
def session():
    """Return a session whose window holds some 2,000 tokens."""
    settings = AtlasSettings(window_size=2048, learning_rate=0, sharpness=60.0, blend_ratio=0.9)
    with AtlasSession(FakeEngine(n_embd=64), settings) as session:
        yield session


@pytest.mark.slow
def test_the_window_recalls_and_the_model_alone_does_not(session):
    result = recall(session, facts=4, distances=[64, 900, 4000], template=TEMPLATE)
    near, middle, far = result.rows
    assert (near.reach, middle.reach, far.reach) == ("window", "window", "nothing")
    assert [row.facts for row in result.rows] == [4, 4, 4]
    assert [row.right_model for row in result.rows] == [0, 0, 0]
    assert near.right == middle.right == 4
    assert far.right == 0
    assert near.nats < near.nats_model
    assert result.chance_value == 1 / 9000
    assert result.chance_planted == 1 / 4
    document = result.to_json()
    assert document["results"][0]["accuracy"] == 1.0
    assert document["results"][0]["accuracy_model"] == 0.0
    assert document["template"] == TEMPLATE


def test_the_same_seed_gives_the_same_test(session):
    first = recall(session, facts=2, distances=[30], seed=3)
    session.reset()
    assert recall(session, facts=2, distances=[30], seed=3).rows == first.rows
    session.reset()
    assert recall(session, facts=2, distances=[30], seed=4).example != first.example


def test_asking_leaves_no_trace(session):
    recall(session, facts=3, distances=[40, 200], template=TEMPLATE)
    asked = session.memory.state
    context = session.context_tokens
    with AtlasSession(FakeEngine(n_embd=64), session.memory.settings) as other:
        ask, recalling._ask = recalling._ask, lambda *_: None
        try:
            recall(other, facts=3, distances=[40, 200], template=TEMPLATE)
        finally:
            recalling._ask = ask
        assert other.context_tokens == context
        for name, array in asked.window.items():
            assert np.array_equal(array, other.memory.state.window[name]), name
    assert session.learns
    assert session.stats["tokens_generated"] == 0


def test_a_fact_is_asked_when_so_many_tokens_have_come(session, monkeypatch):
    seen = []
    monkeypatch.setattr(
        recalling,
        "_ask",
        lambda s, fact, row, given: seen.append((row.distance, fact, s.stats["tokens_read"])),
    )
    recall(session, facts=3, distances=[10, 100], template=TEMPLATE)
    assert len(seen) == 6
    by_fact = {}
    for distance, fact, position in seen:
        by_fact.setdefault(fact, {})[distance] = position
    for fact, positions in by_fact.items():
        assert positions[100] - positions[10] == 90
        text = bytes(fact.tokens).decode()
        assert text[: fact.question].endswith(" ")
        assert text[fact.question :] == f"{fact.value}.\n"


@pytest.mark.parametrize(
    ("distance", "reach"),
    [(90, "context"), (110, "window"), (260, "window's edge"), (300, "learned memory")],
)
def test_what_holds_a_fact(distance, reach):
    with AtlasSession(FakeEngine(n_ctx=256), AtlasSettings(window_size=256)) as session:
        assert recalling._row(session, distance).reach == reach


def test_facts_differ():
    facts = recalling._facts(FakeEngine(), TEMPLATE, 1000, random.Random(1))
    assert len({fact.value for fact in facts}) == len({fact.tokens for fact in facts}) == 1000


@pytest.mark.parametrize("style", ["code", "text"])
def test_the_kind_of_text_is_what_the_model_expects(session, style):
    expected = set(filler_text(style, 1000, 1).encode())
    feed = session.feed

    def feed_and_prefer(text, **options):
        fed = feed(text, **options)
        likely = set(text.encode()) == expected
        return dataclasses.replace(fed, logprob=fed.logprob * (0.1 if likely else 1))

    session.feed = feed_and_prefer
    assert recalling._style(session) == style
    assert session.context_tokens == ()


def test_the_whole_memory_reads_again_what_was_read(monkeypatch):
    asked = []

    def complete(session, question, count, given=()):
        text = bytes(question).decode()
        if given:
            assert text in bytes(given).decode()
            return (bytes(given).decode().split(text)[1], None)
        asked.append(text)
        return (session.episodes.text(0, session.episodes.end).split(text)[1], None)

    monkeypatch.setattr(recalling, "complete", complete)
    settings = AtlasSettings(window_size=64, learning_rate=0, recall_gate=-100)
    with AtlasSession(FakeEngine(n_embd=64), settings) as session:
        result = recall(session, facts=3, distances=[40, 900], template=TEMPLATE)
        assert [row.right_recalled for row in result.rows] == [3, 3]
        assert [row.right_given for row in result.rows] == [3, 3]
        assert [row["accuracy_recalled"] for row in result.to_json()["results"]] == [1.0, 1.0]
        assert len(asked) == 6


@pytest.mark.parametrize("changes", [{"recall": "off"}, {"episode_tokens": 0}])
def test_a_memory_without_recall_has_no_such_answers(changes):
    settings = AtlasSettings(window_size=64, learning_rate=0, **changes)
    with AtlasSession(FakeEngine(n_embd=64), settings) as session:
        result = recall(session, facts=2, distances=[40], template=TEMPLATE)
    assert result.rows[0].right_recalled is None
    assert result.to_json()["results"][0]["accuracy_recalled"] is None


def test_given_filler(session):
    result = recall(session, facts=2, distances=[30], filler="x = f(y)\n" * 400)
    assert (result.filler, result.template) == ("given", recalling.TEMPLATES["code"])
    session.reset()
    result = recall(session, facts=2, distances=[30], filler=filler_text("text", 4000, 1))
    assert result.template == recalling.TEMPLATES["text"]
    session.reset()
    with pytest.raises(InvalidParamError, match="are needed"):
        recall(session, facts=2, distances=[30], filler="short")


def test_generated_text_is_long_enough_and_fixed():
    for style in ("code", "text"):
        text = filler_text(style, 5000, 7)
        assert 5000 <= len(text) < 6000
        assert text == filler_text(style, 5000, 7) != filler_text(style, 5000, 8)
    compile(f"class A:\n    {filler_text('code', 5000, 7).replace(chr(10), chr(10) + '    ')}", "x", "exec")


@pytest.mark.parametrize(
    "options",
    [
        {"facts": 0},
        {"facts": 1001},
        {"distances": []},
        {"distances": [0]},
        {"distances": [1 << 30]},
        {"template": "{value} {name}"},
        {"template": "{name}"},
        {"template": "{name} {value} {value}"},
    ],
)
def test_what_cannot_be_asked(session, options):
    with pytest.raises(InvalidParamError):
        recall(session, **options)


def test_it_stops(session):
    result = recall(session, facts=2, distances=[30, 3000], stop=lambda: session.stats["tokens_read"] > 1000)
    assert result.interrupted
    assert result.rows[0].facts == 2
    assert result.rows[1].facts == 0
    assert result.to_json()["results"][1]["accuracy"] is None


def test_progress(session):
    seen = []
    recall(session, facts=2, distances=[30], progress=lambda what, done, total: seen.append((done, total)))
    assert seen[-1][0] == seen[-1][1]
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
