"""Spectra and ranks, the distance between two states, and their merge."""

from __future__ import annotations

import dataclasses
import doctest
import json

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import (
    Features,
    Identity,
    Memory,
    MemoryConfig,
    ResidualMLP,
    distance,
    merge,
    presets,
    snapshot,
    stack,
    statistics,
)
from atlas_kit.memory.statistics import matrix_distance, matrix_statistics

PLAIN = Features(map=Identity(), normalize_keys=False)
CONFIG = MemoryConfig(6, 4, PLAIN, eta=0.05, theta=0.5, window_size=8, chunk_size=2, dtype="float64")


def learned(config=CONFIG, T=10, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    memory = Memory(config)
    keys, values = (rng.standard_normal((*batch, T, d)) for d in (config.d_k, config.d_v))
    return memory, memory.observe(memory.init(batch), keys, values)[0]


def test_examples_computed_by_hand():
    import sys

    result = doctest.testmod(sys.modules["atlas_kit.memory.statistics"], extraglobs={"np": np})
    assert result.attempted
    assert not result.failed


def test_matrices_of_known_rank():
    rng = np.random.default_rng(0)
    for rank in range(1, 6):
        q, _ = np.linalg.qr(rng.standard_normal((7, rank)))
        p, _ = np.linalg.qr(rng.standard_normal((5, rank)))
        m = matrix_statistics(3.0 * q @ p.T)
        assert m.effective_rank == pytest.approx(rank)
        assert m.utilisation == pytest.approx(rank / 5)
        assert m.norm == pytest.approx(3 * np.sqrt(rank))
        np.testing.assert_allclose(m.spectrum, [3.0] * rank + [0.0] * (5 - rank), atol=1e-12)
    zero = matrix_statistics(np.zeros((2, 3, 3)))
    assert zero.effective_rank.tolist() == [0, 0]
    assert zero.utilisation.tolist() == [0, 0]


def test_a_state_in_numbers():
    memory, state = learned(batch=(3,))
    s = statistics(CONFIG, state)
    assert s.tokens_seen.tolist() == [10, 10, 10]
    assert s.tokens_learned.tolist() == [10, 10, 10]
    assert s.steps.tolist() == [10, 10, 10]
    assert s.window_fill.tolist() == [1, 1, 1]
    assert s.muon_iterations.tolist() == [0, 0, 0]
    assert s.eta_factor.tolist() == [1, 1, 1]
    assert s.nbytes == sum(a.nbytes for a in snapshot(state).values())
    assert (s.memory_utilisation > 0.1).all()
    empty = statistics(CONFIG, memory.init())
    assert (empty.window_fill, empty.memory_utilisation) == (0, 0)
    text = json.dumps(s.to_json())
    assert json.loads(text)["matrices"]["W"]["spectrum"][2] == pytest.approx(s.matrices["W"].spectrum[2])


def test_the_window_fills():
    for tokens in (0, 3, 8, 20):
        _, state = learned(T=tokens)
        assert statistics(CONFIG, state).window_fill == min(tokens, 8) / 8


def test_muon_iterations():
    config = presets.atlas(6, 4, chunk_size=4)
    _, state = learned(config, T=8)
    s = statistics(config, state)
    assert s.muon_iterations == 5 * s.steps > 0


def test_distance():
    _, a = learned()
    _, b = learned(seed=1)
    W, V = a.parameters["W"], b.parameters["W"]
    d = distance(a, b)["W"]
    assert d.max_abs == np.abs(V - W).max()
    assert d.relative == pytest.approx(np.linalg.norm(V - W) / np.linalg.norm(W))
    assert d.cosine == pytest.approx((V * W).sum() / np.linalg.norm(V) / np.linalg.norm(W))
    same = distance(a, a)["W"]
    assert (same.max_abs, same.relative) == (0, 0)
    assert same.cosine == pytest.approx(1)


def test_distance_to_an_empty_memory():
    memory, a = learned()
    empty = memory.init()
    d = distance(empty, a)["W"]
    assert (d.relative, d.cosine) == (np.inf, 0)
    d = distance(empty, empty)["W"]
    assert (d.relative, d.cosine) == (0, 1)


def test_distance_per_session():
    _, a = learned(batch=(2, 3))
    _, b = learned(batch=(2, 3), seed=1)
    together = distance(a, b)["W"]
    assert together.relative.shape == (2, 3)
    assert together.relative[1, 2] == pytest.approx(distance(a[1, 2], b[1, 2])["W"].relative)


def test_a_merge_of_matrix_memories_reads_as_the_mean_of_their_reads():
    memory, a = learned()
    _, b = learned(seed=1, T=13)
    merged = merge([a, b], [3, 1])
    q = np.random.default_rng(2).standard_normal((5, 6))
    np.testing.assert_allclose(memory.read(merged, q), 0.75 * memory.read(a, q) + 0.25 * memory.read(b, q))
    np.testing.assert_allclose(merged.momentum["W"], 0.75 * a.momentum["W"] + 0.25 * b.momentum["W"])
    np.testing.assert_array_equal(merged.window["key"], a.window["key"])
    assert merged.counters["seen"] == 10
    np.testing.assert_array_equal(merge([a]).parameters["W"], a.parameters["W"])
    assert merge([stack([a, a]), stack([a, b])]).batch == (2,)
    assert merged.parameters["W"].dtype == a.parameters["W"].dtype


def test_a_merge_keeps_float32():
    config = CONFIG.replace(dtype="float32")
    merged = merge([learned(config)[1], learned(config, seed=1)[1]])
    assert {a.dtype for a in (*merged.parameters.values(), *merged.momentum.values())} == {
        np.dtype("float32")
    }


@pytest.mark.parametrize("weights", [[1], [1, -1], [0, 0], [1, np.nan], [[1, 1]]])
def test_weights_that_are_refused(weights):
    _, a = learned()
    with pytest.raises(InvalidParamError, match="weights"):
        merge([a, a], weights)


def test_states_that_cannot_be_compared():
    _, a = learned()
    _, b = learned(CONFIG.replace(d_v=5))
    _, deep = learned(CONFIG.replace(module=ResidualMLP(width=3)))
    with pytest.raises(InvalidParamError, match="nothing to merge"):
        merge([])
    for other in (b, deep):
        with pytest.raises(InvalidParamError, match="differ in their parameters"):
            distance(a, other)
        with pytest.raises(InvalidParamError, match="differ in their parameters"):
            merge([a, other])


# every size that float64 has, and squares that it has not
SIZES = (5e-324, 1e-310, 1e-200, 1e-160, 1e-30, 1.0, 1e30, 1e160, 1e300)


@pytest.mark.parametrize("size", SIZES)
def test_ranks_keep_their_bounds(size):
    many = np.random.default_rng(0).standard_normal((4, 6, 5))
    many[0], many[1], many[2, 1:] = 0, 1, 0
    many[3] = np.eye(6, 5)
    m = matrix_statistics(np.round(many * 8) * size)
    assert m.effective_rank[0] == m.norm[0] == 0
    assert ((m.effective_rank[1:] >= 1) & (m.effective_rank[1:] <= 5)).all()
    assert (m.utilisation <= 1).all()
    assert m.effective_rank[3] == pytest.approx(5)
    assert m.norm[3] == pytest.approx(np.sqrt(5) * 8 * size, rel=0.2)  # the smallest number has no digits


@pytest.mark.parametrize("size", SIZES)
def test_distances_keep_their_bounds(size):
    rng = np.random.default_rng(0)
    a = np.round(rng.standard_normal((50, 4, 3)) * 8)
    a[0] = 0
    same, opposite = matrix_distance(a * size, a * size, 1), matrix_distance(a * size, -a * size, 1)
    np.testing.assert_allclose(same.cosine, 1)
    np.testing.assert_allclose(opposite.cosine[1:], -1)
    assert (np.abs([same.cosine, opposite.cosine]) <= 1).all()
    np.testing.assert_array_equal(same.relative, 0)
    np.testing.assert_allclose(opposite.relative[1:], 2)
    beside = matrix_distance(a * size, a, 1)
    np.testing.assert_allclose(beside.cosine, 1)
    nothing = matrix_distance(0 * a, a * size, 1)
    assert set(nothing.cosine[1:]) == {0}
    assert set(nothing.relative[1:]) == {np.inf}


def test_memories_that_were_whitened_by_different_texts_are_not_merged():
    from atlas_kit.memory.modules import WhitenedMatrix

    one = Memory(MemoryConfig(6, 6, module=WhitenedMatrix(rank=4))).init()
    merge([one, one])
    for name in ("P", "origin"):
        other = dataclasses.replace(one, parameters={**one.parameters, name: one.parameters[name] + 1})
        with pytest.raises(InvalidParamError, match="whitened by different texts"):
            merge([one, other])
