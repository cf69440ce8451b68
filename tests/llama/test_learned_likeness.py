"""What makes a query like a key of the window, learned while reading: against its derivative, in any split, saved."""

from __future__ import annotations

import json

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.token_memory import TokenMemory, read_each
from atlas_kit.memory import MemoryConfig, Ranking
from atlas_kit.memory.ranking import METRIC_CLIP, METRIC_MOST
from atlas_kit.persistence.snapshot import load_memory, save_memory
from atlas_kit.settings.atlas_settings import AtlasSettings
from tests.llama.test_token_memory import Model, V, text
from tests.llama.test_whitened_reading import SMALL, followed

LEARNED = SMALL.replace(likeness="learned", window_size=400)


def at(memory, model, tokens):
    """Return what a memory expects after the last of some tokens."""
    hidden, logits = model.outputs(tokens)
    return memory.read(hidden[-1:], logits[-1:], tokens[-1:])


def test_what_draws_a_query_is_the_derivative_of_what_the_window_gives():
    model, tokens = Model(), text(600)
    memory = TokenMemory(model.rows, LEARNED)
    followed(memory, model, tokens)
    metric, token = memory.state.gate["metric"], int(tokens[-3])
    reading = at(memory, model, tokens)
    assert reading.probabilities_of(np.array([token]))[0, 2] > 1e-4
    _, slope = reading.outcome(np.array([token]), memory.memory.config.ranking, 5)
    query = memory.memory.keys(memory.state, model.outputs(tokens)[0][-1:])[0]
    found = float(memory.state.gate["rank"][0]) * np.outer(query, slope[0, 3:-1])
    for place in ((0, 0), (1, 3), (4, 2)):
        p = []
        for change in (0.01, -0.01):
            was = metric[place]
            metric[place] += change
            memory._ahead = None
            p.append(np.log(at(memory, model, tokens).probabilities_of(np.array([token]))[0, 2]))
            metric[place] = was
        assert (p[0] - p[1]) / 0.02 == pytest.approx(found[place], rel=0.02, abs=2e-3)


def test_one_token_and_many_are_drawn_alike():
    model, tokens = Model(), text(604)
    memory = TokenMemory(model.rows, LEARNED)
    followed(memory, model, tokens[:601])
    hidden, logits = model.outputs(tokens)
    together = memory.read(hidden[600:603], logits[600:603], tokens[600:603])
    slope = together.outcome(tokens[601:604], memory.memory.config.ranking, 5)[1]
    one = memory.read(hidden[600:601], logits[600:601], tokens[600:601])
    alone = one.outcome(tokens[601:602], memory.memory.config.ranking, 5)[1]
    assert slope.shape == (3, 9)
    assert abs(slope[:, 3:-1]).max() > 1e-3
    np.testing.assert_allclose(alone[0], slope[0], rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("parts", [(1,), (3, 1, 6)])
def test_any_split_learns_the_same(parts):
    model, tokens = Model(), text(640)
    whole, split = TokenMemory(model.rows, LEARNED), TokenMemory(model.rows, LEARNED)
    p, _ = followed(whole, model, tokens)
    q, _ = followed(split, model, tokens, parts)
    metric = whole.state.gate["metric"]
    assert abs(metric - np.eye(5)).max() > 0.05
    np.testing.assert_allclose(split.state.gate["metric"], metric, atol=5e-3)
    np.testing.assert_allclose(q, p, rtol=2e-2, atol=1e-4)


def test_nothing_is_learned_of_likeness_before_the_states_are_whitened():
    model, tokens = Model(), text(500)
    memory = TokenMemory(model.rows, LEARNED)
    followed(memory, model, tokens)
    assert memory.state.gate["metric"].tolist() == np.eye(5).tolist()


def test_sessions_side_by_side_read_what_each_reads_alone():
    model, tokens = Model(), text(600)
    memories = [TokenMemory(model.rows, LEARNED) for _ in range(2)]
    followed(memories[0], model, tokens)
    followed(memories[1], model, tokens[:580])
    hidden, logits = (array[-1:] for array in model.outputs(tokens))
    current = int(tokens[-1])
    together = read_each(memories, np.repeat(hidden, 2, axis=0), [logits[0]] * 2, [current] * 2)
    for memory, among in zip(memories, together, strict=True):
        alone = read_each([memory], hidden, [logits[0]], [current])[0]
        assert alone.window.weights.tobytes() == among.window.weights.tobytes()
        assert alone.log_probabilities().tobytes() == among.log_probabilities().tobytes()


def test_it_goes_on_from_a_file_to_the_same_bits(tmp_path):
    model, tokens = Model(), text(640)
    plain, stopped = TokenMemory(model.rows, LEARNED), TokenMemory(model.rows, LEARNED)
    followed(plain, model, tokens, (1,))
    followed(stopped, model, tokens, (1,), end=602)
    save_memory(tmp_path / "m.atlas", stopped.memory, stopped.pin())
    loaded = load_memory(tmp_path / "m.atlas")
    assert loaded.memory.config == stopped.memory.config
    again = TokenMemory(model.rows, LEARNED)
    waiting = stopped.waiting()
    assert waiting["slope"].shape == (2, 9)
    again.restore(loaded.state, waiting)
    followed(again, model, tokens, (1,), start=602)
    for name, array in plain.state.gate.items():
        assert again.state.gate[name].tobytes() == array.tobytes(), name
    for width in (4, 8, 10):
        with pytest.raises(InvalidParamError):
            again.restore(loaded.state, {**waiting, "slope": np.zeros((2, width))})


def test_it_goes_with_the_windows_keys():
    model, tokens = Model(), text(640)
    memory = TokenMemory(model.rows, LEARNED)
    followed(memory, model, tokens)
    state, reset = memory.pin(), memory.memory.reset
    assert reset(state, "soft").gate["metric"].tobytes() == state.gate["metric"].tobytes()
    assert reset(state, "hard").gate["metric"].tolist() == np.eye(5).tolist()


def test_it_learns_which_directions_matter():
    """Keys of which two numbers say what follows, and six larger ones nothing."""
    random, ranking = np.random.default_rng(0), Ranking((8.0, 0.0, 0.0), (0.0, 0.0, 0.0), metric=1.0)
    token = random.integers(0, 4, 1200)
    told = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]])[token]
    keys = np.concatenate((told, 2 * random.standard_normal((1200, 6))), axis=1)
    keys = (keys / np.linalg.norm(keys, axis=1, keepdims=True)).astype(np.float32)

    def ranked(metric, some, start):
        none = np.zeros((len(keys[some]), start), int)
        cosine = keys[some] @ metric @ keys[:start].T
        return ranking.read(np.array(ranking.start), cosine, none, none + 1, token[:start])

    def loss(metric):
        weights = ranked(metric, slice(1100, 1200), 1100).weights
        return -np.log((weights * (token[:1100] == token[1100:, None])).sum(axis=1)).mean()

    metric = np.eye(8, dtype=np.float32)
    for start in range(400, 1100, 4):
        some = slice(start, start + 4)
        found, hit = ranked(metric, some, start), token[:start] == token[some][:, None]
        metric = ranking.turned(metric, keys[some], ranking.drawn(found, hit, keys[:start]), np.ones(4), 8.0)
    assert loss(metric) < loss(np.eye(8, dtype=np.float32)) - 0.3
    told_by, noise = metric.diagonal()[:2].mean(), metric.diagonal()[2:].mean()
    assert told_by > 2 * abs(noise)


def test_a_step_is_never_long_and_never_of_what_is_no_number():
    ranking, one = Ranking(metric=1.0), np.eye(3, dtype=np.float32)
    far = ranking.turned(one, np.eye(3), 1e9 * np.ones((3, 3)), np.ones(3), 14.0)
    assert np.linalg.norm(far - one) == pytest.approx(METRIC_CLIP, rel=1e-3)
    for bad in (np.nan, np.inf):
        assert ranking.turned(one, np.eye(3), np.full((3, 3), bad), np.ones(3), 14.0).tolist() == one.tolist()
    assert ranking.turned(1e9 * one, np.eye(3), np.zeros((3, 3)), np.ones(3), 14.0).max() == METRIC_MOST


def test_a_configuration_without_it_is_written_as_before():
    config = SMALL.memory_config(12, n_vocab=V)
    document = config.to_json()
    assert "metric" not in document["ranking"]
    assert MemoryConfig.from_json(document) == config
    learned = LEARNED.memory_config(12, n_vocab=V)
    assert MemoryConfig.from_json(json.loads(json.dumps(learned.to_json()))) == learned
    assert AtlasSettings.from_saved({"memory_rank": 8}).likeness == "cosine"


@pytest.mark.parametrize("metric", [-1.0, float("nan"), 1e9, "one"])
def test_a_step_size_out_of_range(metric):
    with pytest.raises(InvalidParamError):
        Ranking(metric=metric)


def test_only_whitened_states_have_a_metric():
    config = SMALL.replace(features="polynomial").memory_config(12)
    with pytest.raises(InvalidParamError, match="whitened"):
        MemoryConfig.from_json(
            {**config.to_json(), "ranking": {**config.to_json()["ranking"], "metric": 1.0}}
        )
    assert (
        SMALL.replace(features="polynomial", likeness="learned").memory_config(12).ranking == config.ranking
    )
