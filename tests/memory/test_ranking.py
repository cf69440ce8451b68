"""Learned ranking of the window: by hand, by finite differences, by a slow loop, and against hostile values."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import CrossEntropy, Features, Gate, Memory, MemoryConfig, Ranking, match_lengths
from atlas_kit.memory.ranking import CLIP


def read(w, cosine, match=None, age=None, tokens=None):
    """Rank with ages and matches that say nothing unless given."""
    cosine = np.atleast_2d(np.asarray(cosine, float))
    match = np.zeros(cosine.shape, np.uint8) if match is None else np.atleast_2d(match)
    age = np.ones(cosine.shape) if age is None else np.atleast_2d(age)
    tokens = np.arange(cosine.shape[1]) if tokens is None else np.asarray(tokens)
    return Ranking().read(np.asarray(w, float), cosine, match, age, tokens)


# --- reading ----------------------------------------------------------------------------------------------


def test_by_hand():
    # scores 2 * 0.5 + 1 * log2(4) = 3, and 2 * 1 - 0.5 * log 2, and 2 * -1 + log2(2)
    found = read((2, 1, 0.5), [0.5, 1, -1], [3, 0, 1], [1, 2, 1], [7, 8, 7])
    scores = np.array([3, 2 - 0.5 * math.log(2), -1])
    expected = np.exp(scores) / np.exp(scores).sum()
    np.testing.assert_allclose(found.weights[0], expected)
    assert found.similarity[0] == 1
    assert found.length[0] == 2
    assert found.confidence[0] == pytest.approx(expected[0] + expected[2])
    np.testing.assert_allclose(found.features[:, 0], [[0.5, 1, -1], [2, 0, 1], [0, -math.log(2), 0]])


def test_without_slots():
    found = read((1, 1, 1), np.empty((3, 0)))
    assert found.weights.shape == (3, 0)
    assert found.similarity.tolist() == [-1] * 3
    assert found.length.tolist() == found.confidence.tolist() == [0] * 3


def test_large_scores_do_not_overflow():
    found = read((1e6, 1e6, 1e6), [[1, 0.5]], [[255, 0]], [[1, 1000]])
    np.testing.assert_array_equal(found.weights, [[1, 0]])


@given(
    st.lists(st.tuples(st.floats(-1, 1), st.integers(0, 16), st.integers(1, 5000)), min_size=1, max_size=8),
    st.tuples(*[st.floats(0, 20)] * 3),
)
def test_weights_are_a_distribution(slots, w):
    found = read(w, *zip(*slots, strict=True))
    assert found.weights.sum() == pytest.approx(1)
    assert 0 <= found.confidence[0] <= 1 + 1e-9
    order = np.argsort(np.array(w) @ found.features[:, 0])
    assert (np.diff(found.weights[0][order]) >= -1e-12).all()


# --- learning ---------------------------------------------------------------------------------------------


@given(st.integers(0, 2**32 - 1), st.integers(1, 9), st.integers(1, 4))
def test_the_slope_is_that_of_the_logarithm(seed, slots, n):
    random = np.random.default_rng(seed)
    w = random.uniform(0, 3, 3)
    cosine, match = random.uniform(-1, 1, (n, slots)), random.integers(0, 17, (n, slots))
    age, hit = random.integers(1, 500, (n, slots)), random.random((n, slots)) < 0.4
    tokens = np.arange(slots)

    def logp(w):
        p = (Ranking().read(w, cosine, match, age, tokens).weights * hit).sum(axis=1)
        return np.log(np.where(p > 0, p, 1))

    found = Ranking().slope(Ranking().read(w, cosine, match, age, tokens), hit)
    for feature in range(3):
        step = np.zeros(3)
        step[feature] = 1e-5
        expected = (logp(w + step) - logp(w - step)) / 2e-5
        np.testing.assert_allclose(found[:, feature], expected, atol=1e-5)


def test_what_was_not_found_teaches_nothing():
    found = Ranking().slope(read((1, 1, 1), [[0.5, 1]]), np.zeros((1, 2), bool))
    np.testing.assert_array_equal(found, np.zeros((1, 3)))


def test_an_update_by_hand():
    ranking = Ranking(rates=(10.0, 1.0, 0.5))
    slope = np.array([[0.2, 0.4, -1.0], [0.6, 0.0, 1.0]])
    found = ranking.update(np.array([1.0, 1.0, 0.2]), slope, np.array([1.0, 0.5]))
    np.testing.assert_allclose(found, [1 + 10 * 0.25, 1 + 0.2, 0.2 - 0.5 * 0.25])


def test_weights_stay_in_bounds():
    ranking = Ranking(rates=(1.0, 1.0, 1.0))
    w = np.ones(3, np.float32)
    found = ranking.update(w, np.array([[-50.0, 1e30, math.nan]]), np.ones(1))
    assert found.tolist() == [0, 1 + CLIP, 1]
    assert found.dtype == np.float32


def test_learning_finds_what_counts():
    # the right token is always in the slot with the longest match, and cosines are noise
    random, ranking = np.random.default_rng(0), Ranking()
    w = np.array(ranking.start)
    for _ in range(300):
        cosine, match = random.uniform(0.8, 1, (16, 20)), random.integers(0, 4, (16, 20))
        right = random.integers(0, 20, 16)
        match[np.arange(16), right] = 8
        found = ranking.read(w, cosine, match, np.ones((16, 20)), np.arange(20))
        hit = np.arange(20)[None, :] == right[:, None]
        w = ranking.update(w, ranking.slope(found, hit), np.ones(16))
    assert w[0] < ranking.start[0] / 2
    assert w[1] > ranking.start[1]
    assert (found.weights * hit).sum(axis=1).mean() > 0.95


# --- matches ----------------------------------------------------------------------------------------------


def slow_matches(history, tokens, longest):
    """Count, from the query and a slot backwards, the tokens that are equal."""
    found = []
    for line in history:
        row = []
        for slot in range(len(tokens)):
            count = 0
            # the slot's own token is the one that followed the slot before
            while (
                count < min(longest, len(line))
                and slot - 1 - count >= 0
                and tokens[slot - 1 - count] == line[len(line) - 1 - count]
            ):
                count += 1
            row.append(count)
        found.append(row)
    return np.array(found, np.uint8).reshape(len(history), len(tokens))


@given(
    st.lists(st.integers(0, 2), max_size=25),
    st.lists(st.lists(st.integers(-1, 2), min_size=6, max_size=6), min_size=1, max_size=5),
    st.integers(1, 9),
)
def test_match_lengths_are_those_of_a_slow_loop(tokens, history, longest):
    history, tokens = np.array(history), np.array(tokens, np.int64)
    found = match_lengths(history, tokens, longest)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, slow_matches(history, tokens, longest))


def test_a_long_copy_counts_to_its_bound():
    line = np.arange(300)
    found = match_lengths(line[None, :], np.append(line, 7), 255)
    assert found[0].max() == 255
    assert found[0, 300] == 255


# --- settings ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("start", (1, 2)), ("start", (1, 2, -1)), ("start", (1, 2, math.nan)), ("start", (1, 2, math.inf)),
        ("start", (1, 2, 1e7)), ("start", "123"), ("start", None), ("start", (1, 2, True)), ("start", (1, 2, "3")),
        ("rates", (1, 2, 3, 4)), ("rates", (1, -2, 3)),
        ("longest", 0), ("longest", 256), ("longest", 2.0), ("longest", True), ("longest", "16"),
    ],
)  # fmt: skip
def test_settings_out_of_range(name, value):
    with pytest.raises(InvalidParamError) as caught:
        Ranking(**{name: value})
    assert caught.value.key == name


def config(**changes):
    """Return a memory with everything that a language model's has."""
    values = {
        "features": Features(), "objective": CrossEntropy(), "window_size": 4, "gate": Gate(3, 5),
        "ranking": Ranking((3.0, 2.0, 1.0), (0.5, 0.25, 0.0), 8), **changes,
    }  # fmt: skip
    return MemoryConfig(3, 3, **values)


def test_json_round_trip():
    one = config()
    document = json.loads(json.dumps(one.to_json()))
    assert document["ranking"]["kind"] == "learned-ranking"
    assert MemoryConfig.from_json(document) == one
    assert MemoryConfig.from_json({**document, "ranking": None}).ranking is None
    del document["ranking"]
    assert MemoryConfig.from_json(document).ranking is None  # written before there was one


@pytest.mark.parametrize(
    "value",
    [
        7, "learned-ranking", [], {}, {"kind": "other"}, {"kind": "learned-ranking", "start": [1, 2]},
        {"kind": "learned-ranking", "longest": 10**9}, {"kind": "learned-ranking", "unknown": 1},
        {"kind": "learned-ranking", "rates": [[1], [2], [3]]},
    ],
    ids=str,
)  # fmt: skip
def test_hostile_json(value):
    document = config().to_json()
    with pytest.raises(InvalidParamError):
        MemoryConfig.from_json({**document, "ranking": value})


def test_a_configuration_takes_nothing_else():
    with pytest.raises(InvalidParamError, match="not a Ranking"):
        config(ranking=(1, 2, 3))


def test_the_state_carries_the_weights():
    memory = Memory(config())
    np.testing.assert_array_equal(memory.init().gate["rank"], np.float32([3, 2, 1]))
    batch = memory.init((2, 5)).gate["rank"]
    assert batch.shape == (2, 5, 3)
    batch[0, 0] = 9  # an array of its own
    assert batch[1, 1].tolist() == [3, 2, 1]
    assert "rank" not in Memory(config(ranking=None)).init().gate
