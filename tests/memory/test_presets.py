"""The presets with their own rates: what they recall of random pairs, at several widths."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import Features, GatedMLP, Matrix, Memory, Polynomial, ResidualMLP, presets

SESSIONS = 2
#: The most that one pass over d/2 pairs may leave of the error; 1 is an empty memory's.
ERROR = {
    "linear_attention": 0.9,
    "delta_rule": 0.7,
    "titans": 0.9,
    "omega_net": 0.6,
    "atlas": 0.8,
    "atlas_pp": 0.8,
}
DEEP = ("titans", "omega_net", "atlas", "atlas_pp")


def pairs(n, d_k, d_v):
    """Return random keys and values of length 1: (SESSIONS, n, d_k) and (SESSIONS, n, d_v)."""
    rng = np.random.default_rng((n, d_k, d_v))
    drawn = (rng.standard_normal((SESSIONS, n, d)) for d in (d_k, d_v))
    return tuple((x / np.linalg.norm(x, axis=-1, keepdims=True)).astype(np.float32) for x in drawn)


def learn(config, keys, values, passes=1):
    memory = Memory(config)
    state = memory.init(SESSIONS)
    for _ in range(passes):
        state, _ = memory.observe(state, keys, values)
    state, _ = memory.flush(state)
    return memory, state


def error(memory, state, keys, values):
    """Return ||y - v|| / ||v|| of each session."""
    missed = memory.read(state, keys) - values
    return np.sqrt((missed**2).sum(axis=(1, 2)) / (values**2).sum(axis=(1, 2)))


@pytest.mark.slow
@pytest.mark.parametrize(("d_k", "d_v"), [(8, 8), (32, 32), (8, 24), (24, 8)])
@pytest.mark.parametrize("name", presets.PRESETS)
def test_one_pass_brings_most_pairs_back(name, d_k, d_v):
    keys, values = pairs(d_k // 2, d_k, d_v)
    memory, state = learn(presets.PRESETS[name](d_k, d_v), keys, values)
    assert (error(memory, state, keys, values) < ERROR[name]).all()
    assert (state.counters["steps"] > 0).all()
    assert not state.counters["rejected"].any()


@pytest.mark.parametrize("times", [0.5, 1, 2, 4])
@pytest.mark.parametrize("name", [name for name in presets.PRESETS if name != "linear_attention"])
def test_more_pairs_never_leave_a_memory_worse_than_an_empty_one(name, times):
    d = 8
    keys, values = pairs(int(times * d), d, d)
    for passes in (1, 5):
        memory, state = learn(presets.PRESETS[name](d, d), keys, values, passes)
        assert (error(memory, state, keys, values) < 1).all()


@pytest.mark.parametrize("times", [0.5, 1, 2, 4])
@pytest.mark.parametrize("d", [8, 32])
def test_titans_stays_bounded_at_a_larger_step(d, times):
    keys, values = pairs(int(times * d), d, d)
    config = presets.titans(d, d)
    for factor in (1, 2, 4):
        memory, state = learn(config.replace(eta=factor * config.eta), keys, values)
        assert (error(memory, state, keys, values) <= 1.5).all()


@pytest.mark.slow
def test_a_long_stream_wears_nothing_out():
    """Decay would take the input matrices to zero, which nothing learns again."""
    keys, values = pairs(1500, 8, 8)
    for name, most in (("titans", 0.95), ("omega_net", 0.8)):
        memory, state = learn(presets.PRESETS[name](8, 8), keys, values)
        assert (error(memory, state, keys[:, -16:], values[:, -16:]) < most).all(), name


@pytest.mark.parametrize("name", DEEP)
def test_an_empty_deep_memory_reads_as_nothing(name):
    memory = Memory(presets.PRESETS[name](8, 4))
    keys, _ = pairs(3, 8, 4)
    assert not memory.read(memory.init(SESSIONS), keys).any()


def test_the_step_fits_the_hidden_units_unless_it_is_given():
    assert presets.omega_net(8, 8, module=ResidualMLP(width=100)).eta == pytest.approx(
        10 * presets.omega_net(8, 8, module=ResidualMLP(width=1000)).eta
    )
    assert presets.atlas(8, 8, module=GatedMLP(width=100)).eta == pytest.approx(
        10 * presets.atlas(8, 8, module=GatedMLP(width=10_000)).eta
    )
    assert presets.titans(8, 8, module=Matrix()).eta == pytest.approx(
        presets.titans(8, 8, module=ResidualMLP(width=1)).eta
    )
    assert presets.titans(8, 8, eta=0.25).eta == 0.25


def test_settings_count_before_they_are_checked():
    config = presets.atlas(8192, 64, features=Features(map=Polynomial(2), projection=64))
    assert config.d_phi == 2145
    with pytest.raises(InvalidParamError, match="a memory has no setting 'learning_rate'"):
        presets.delta_rule(4, 4, learning_rate=0.1)


def test_presets_are_what_they_say():
    """The table that a teacher would put on the board."""
    made = {name: preset(4, 4) for name, preset in presets.PRESETS.items()}
    assert {n: type(c.objective).__name__ for n, c in made.items() if c.omega_window == 1} == {
        "linear_attention": "DotProduct", "delta_rule": "L2", "titans": "L2",
    }  # fmt: skip
    assert [n for n, c in made.items() if isinstance(c.features.map, Polynomial)] == [
        "omega_net",
        "atlas",
        "atlas_pp",
    ]
    assert [n for n, c in made.items() if c.theta > 0] == ["titans", "atlas", "atlas_pp"]
    assert [n for n, c in made.items() if c.use_muon] == ["atlas", "atlas_pp"]
    assert [n for n, c in made.items() if isinstance(c.module, Matrix)] == ["linear_attention", "delta_rule"]
    assert isinstance(made["atlas_pp"].module, GatedMLP)
