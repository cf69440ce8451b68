"""Perplexity with and without memories: the model's own numbers, the rivals, and several texts."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama import AtlasSession, FakeEngine
from atlas_kit.llama.engine import Feed
from atlas_kit.operations.perplexity import KINDS, NOTES, WEIGHTS, compare, settings_of
from atlas_kit.settings.atlas_settings import AtlasSettings

TEXT = "to be or not to be, that is the question: whether 'tis nobler in the mind to suffer. " * 3
OTHER = "the quick brown fox jumps over the lazy dog; the lazy dog jumps over the quick brown fox. "
SMALL = AtlasSettings(window_size=32, memory_dim=8, omega_window=16, chunk_size=8, candidates=16)


def own_losses(engine, tokens):
    """The model's own losses, read in one go."""
    logits = engine.decode([Feed(0, tokens, 0, len(tokens))])[0].logits.astype("f8")
    logp = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    return -logp[np.arange(len(tokens) - 1), tokens[1:]]


@pytest.fixture
def wide(open_engine):
    """Return an engine that takes the whole text at once."""
    return open_engine(n_ctx=512, n_batch=512, n_sequences=1)


def test_none_is_the_model_alone(wide):
    tokens = [*wide.begin, *wide.tokenize(TEXT)]
    losses = own_losses(wide, tokens)
    wide.forget(0)
    found = compare(wide, [("a", TEXT)], ["none"], after=100)
    assert found.tokens == len(losses)
    assert found.results["none"].perplexity == pytest.approx(np.exp(losses.mean()), rel=1e-3)
    where = np.arange(1 - len(wide.begin), len(wide.tokenize(TEXT)))
    assert found.scored_after == (where >= 100).sum()
    expected = np.exp(losses[where >= 100].mean())
    assert found.results["none"].perplexity_after == pytest.approx(expected, rel=1e-3)
    curve = [
        np.exp(losses[(where >= a) & (where < b)].mean())
        for a, b in zip(found.edges, found.edges[1:], strict=False)
    ]
    np.testing.assert_allclose(found.results["none"].curve, curve, rtol=1e-3)
    assert found.edges[0] == 0
    assert found.edges[-1] == where.max() + 1


def test_every_kind(open_engine):
    found = compare(open_engine(), [("a", TEXT)], KINDS, settings=SMALL, after=50)
    assert list(found.results) == list(KINDS) == list(NOTES)
    for score in found.results.values():
        assert 1 <= score.perplexity < 1e6
        assert score.seconds > 0
        assert (score.state_bytes > 0) is (score.kind != "none")
        assert (score.weight is not None) is (score.kind == "knn-fixed")
    for kind in ("window", "knn", "atlas"):
        assert found.results[kind].perplexity < found.results["none"].perplexity
    document = json.loads(json.dumps(found.to_json()))
    assert document["results"]["atlas"]["perplexity"] == found.results["atlas"].perplexity


def test_a_kind_is_what_a_session_with_its_settings_gives(open_engine):
    found = compare(open_engine(), [("a", TEXT)], ["none", "window", "omega", "atlas"], settings=SMALL)
    for kind in ("window", "omega", "atlas"):
        with AtlasSession(open_engine(), settings_of(kind, SMALL, 0, 0)) as session:
            fed = session.feed(TEXT)
        assert found.results[kind].perplexity == pytest.approx(fed.perplexity, rel=1e-4)
        assert found.results["none"].perplexity == pytest.approx(fed.model_perplexity, rel=1e-4)


def test_settings_of_kinds():
    assert settings_of("none", SMALL, 100, 64) is None
    assert settings_of("atlas", SMALL, 100, 64) == SMALL
    assert settings_of("omega", SMALL, 100, 64).window_size == 0
    assert settings_of("window", SMALL, 100, 64).learning_rate == 0
    knn = settings_of("knn", SMALL, 100, 64)
    assert (knn.window_size, knn.memory_dim, knn.learning_rate, knn.ranking) == (100, 64, 0, False)


def test_the_fixed_weight_is_the_best_of_all():
    found = compare(FakeEngine(), [("a", TEXT)], ["knn-fixed", "knn", "none"], settings=SMALL, after=0)
    fixed = found.results["knn-fixed"]
    assert fixed.weight in WEIGHTS
    # what the window gave each token, from a session that blends with one weight
    losses = {}
    for weight in WEIGHTS:
        chosen = settings_of("knn", SMALL, len(TEXT), 32).replace(blend_ratio=weight)
        with AtlasSession(FakeEngine(), chosen) as session:
            losses[weight] = session.feed(TEXT).loss
    assert fixed.weight == min(losses, key=losses.__getitem__)
    assert fixed.perplexity == pytest.approx(np.exp(losses[fixed.weight]), rel=1e-2)


def test_texts_do_not_know_each_other(open_engine):
    both = compare(open_engine(), [("a", TEXT), ("b", OTHER)], ["none", "atlas"], settings=SMALL, after=60)
    nats, count = 0.0, 0
    for number, (name, text) in enumerate([("a", TEXT), ("b", OTHER)]):
        alone = compare(open_engine(), [(name, text)], ["none", "atlas"], settings=SMALL, after=60)
        document = both.documents[number]
        assert document["name"] == name
        assert document["tokens"] == alone.tokens
        for kind in ("none", "atlas"):
            score = document["results"][kind]
            assert score["perplexity"] == pytest.approx(alone.results[kind].perplexity, rel=1e-6)
            assert score["perplexity_after"] == pytest.approx(alone.results[kind].perplexity_after, rel=1e-6)
        nats += np.log(alone.results["atlas"].perplexity) * alone.tokens
        count += alone.tokens
    assert both.tokens == count
    assert both.results["atlas"].perplexity == pytest.approx(np.exp(nats / count), rel=1e-6)


def test_nothing_is_behind_a_late_position(open_engine):
    found = compare(open_engine(), [("a", OTHER)], ["none", "knn-fixed"], settings=SMALL, after=4096)
    assert found.scored_after == 0
    assert found.results["none"].perplexity_after is None
    assert found.results["knn-fixed"].weight in WEIGHTS


def test_a_limit_and_progress(open_engine):
    told = []
    found = compare(
        open_engine(), [("a", TEXT), ("b", OTHER)], ["none"], limit=40, progress=lambda *now: told.append(now)
    )
    begin = len(open_engine().begin)
    assert [one["tokens"] for one in found.documents] == [39 + begin] * 2
    assert told[-1] == (2 * (39 + begin), 80)
    assert told == sorted(told)


@pytest.mark.parametrize(
    ("texts", "options", "words"),
    [
        ([("a", "")], {}, "too short"),
        ([("a", TEXT), ("b", "x")], {}, "too short"),
        ([("a", TEXT)], {"kinds": ["nonsense"]}, "no memory 'nonsense'"),
        ([("a", TEXT)], {"after": -1}, "after is -1"),
        ([("a", TEXT)], {"limit": 1}, "too short"),
        ([("a", TEXT)], {"limit": 0}, "limit is 0"),
        ([("a", TEXT)], {"limit": -3}, "limit is -3"),
        ([], {}, "no text or"),
        ([("a", TEXT)], {"kinds": []}, "no memory to compare"),
        ([("a", TEXT)], {"device": "tpu"}, "not a device"),
    ],
)
def test_what_cannot_be_compared(texts, options, words):
    with pytest.raises(InvalidParamError, match=words) as caught:
        compare(FakeEngine(), texts, **options)
    assert "\n" not in str(caught.value)


def test_the_engine_is_free_again():
    engine = FakeEngine(n_sequences=1)
    for _ in range(2):
        compare(engine, [("a", OTHER)], ["none"])
    with AtlasSession(engine, None):
        pass
