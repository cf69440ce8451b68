"""Details of learning, each small enough to be computed by hand or in a few lines."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import (
    CrossEntropy,
    Features,
    Identity,
    Memory,
    MemoryConfig,
    Polynomial,
    Readout,
    ResidualMLP,
    learning,
    merge,
    presets,
    snapshot,
    statistics,
    update,
)

PLAIN = Features(map=Identity(), normalize_keys=False)
DOUBLE = MemoryConfig(4, 3, PLAIN, dtype="float64", max_norm=1e6)


def stream(T, d_k=4, d_v=3, seed=0, batch=()):
    rng = np.random.default_rng(seed)
    return tuple(rng.standard_normal((*batch, T, d)) for d in (d_k, d_v, d_k))


class TestAdaptiveStep:
    def test_by_formula(self):
        b, c, alpha, rate = 2, 5, 0.9, 0.3
        config = DOUBLE.replace(
            chunk_size=b, step="chunk", omega_window=c, alpha=alpha, eta=0.01, eta_adaptation=rate
        )
        keys, values, _ = stream(12)
        state, _ = Memory(config).observe(Memory(config).init(), keys, values)
        W, before, log_eta = np.zeros((4, 3)), np.zeros((4, 3)), 0.0
        for stop in range(b, 13, b):
            window, chunk = slice(max(0, stop - c), stop), slice(stop - b, stop)
            change, error = keys[chunk] @ (W - before), keys[chunk] @ W - values[chunk]
            size = np.linalg.norm(change) * np.linalg.norm(error)
            log_eta -= rate * (change * error).sum() / size if size else 0.0
            before = alpha * W
            W = before - 0.01 * np.exp(log_eta) * keys[window].T @ (keys[window] @ W - values[window])
        assert state.adaptation["log_eta"] == pytest.approx(log_eta)
        np.testing.assert_allclose(state.adaptation["previous.W"], before)
        np.testing.assert_allclose(state.parameters["W"], W)

    def test_eta_does_not_fall_below_its_bound(self):
        memory = Memory(DOUBLE.replace(eta=3.0, eta_adaptation=1.0, eta_bound=1.25))
        state, _ = memory.observe(memory.init(), np.eye(4)[[0, 0]], np.ones((2, 3)))
        np.testing.assert_allclose(state.parameters["W"][0], 3 - 3 / 1.25 * (3 - 1))  # the first one overshot
        assert np.exp(state.adaptation["log_eta"]) == pytest.approx(1 / 1.25)

    @pytest.mark.parametrize(("bound", "factor"), [(16.0, 1 / 4), (2.0, 1 / 2)])
    def test_a_retried_step_is_the_next_ones_size(self, bound, factor):
        memory = Memory(DOUBLE.replace(eta=1.0, eta_adaptation=1e-9, eta_bound=bound, max_norm=0.3))
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.eye(3)[:1])  # norms 1 and 1/4
        assert (state.counters["retried"], state.counters["rejected"]) == (1, 0)
        assert np.exp(state.adaptation["log_eta"]) == pytest.approx(factor)

    def test_a_skipped_chunk_shrinks_eta_and_is_not_judged(self):
        config = DOUBLE.replace(eta=0.1, alpha=0.5, eta_adaptation=1e-9, eta_bound=1e6)
        memory = Memory(config.replace(max_norm=1.0))
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.eye(3)[:1])
        state, _ = memory.observe(state, np.eye(4)[1:2], np.eye(3)[:1] * 1e6)
        assert state.counters["rejected"] == 1
        assert np.exp(state.adaptation["log_eta"]) == pytest.approx(4.0**-3)
        np.testing.assert_array_equal(state.adaptation["previous.W"], state.parameters["W"])

    def test_a_soft_reset_starts_the_comparison_anew(self):
        memory = Memory(DOUBLE.replace(eta_adaptation=0.1))
        keys, values, _ = stream(5)
        state, _ = memory.observe(memory.init(), keys, values)
        soft = memory.reset(state, "soft")
        assert soft.adaptation["log_eta"] == state.adaptation["log_eta"] != 0
        assert not soft.adaptation["previous.W"].any()

    def test_a_merge_starts_the_comparison_anew(self):
        memory = Memory(DOUBLE.replace(eta_adaptation=0.1))
        states = [memory.observe(memory.init(), *stream(5, seed=seed)[:2])[0] for seed in (0, 1)]
        merged = merge(states, [1, 2])
        np.testing.assert_array_equal(merged.adaptation["previous.W"], merged.parameters["W"])
        assert merged.adaptation["log_eta"] == states[1].adaptation["log_eta"]


class TestGuard:
    """With a key e_i of length l a step of eta multiplies the error by 1 - eta l^2."""

    @pytest.mark.parametrize("order", [[0, 1], [1, 0]])
    def test_it_looks_at_every_window_of_the_chunk(self, order):
        memory = Memory(DOUBLE.replace(eta=0.5, guard=True, chunk_size=2))
        keys = np.diag([1.0, 3.0, 0.0, 0.0])[order]  # factors 1/2 and -7/2: one window is worse, and the sum
        state, _ = memory.observe(memory.init(), keys, np.ones((2, 3)))
        assert state.counters["retried"] == 1

    @pytest.mark.parametrize(("rise", "retried"), [(1.05, 0), (1.2, 1)])
    def test_how_much_the_loss_may_rise(self, rise, retried):
        memory = Memory(DOUBLE.replace(eta=1 + rise**0.5, guard=True))
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.ones((1, 3)))
        assert state.counters["retried"] == retried

    @pytest.mark.parametrize(("error", "retried"), [(0.015, 0), (0.03, 1)])
    def test_next_to_nothing_may_rise_further(self, error, retried):
        memory = Memory(DOUBLE.replace(guard=True))
        values = np.ones((2, 3)) * [[1.0], [1.0 + error]]
        # exact at once, then a loss of error^2 becomes four times as large: 3 error^2 against a thousandth
        state, _ = memory.observe(memory.init(), np.eye(4)[[0, 0]], values, eta=np.array([1.0, 3.0]))
        assert state.counters["retried"] == retried

    def test_next_to_nothing_of_a_cross_entropy(self):
        config = MemoryConfig(
            2, 2, PLAIN, objective=CrossEntropy(), guard=True, chunk_size=2, step="chunk", omega_window=2,
            dtype="float64",
        )  # fmt: skip
        memory = Memory(config)
        hidden = np.diag([10.0, 11.0])  # losses e^-10 and e^-11; a step for the first that doubles their sum
        targets = {"token": np.arange(2), "hidden": hidden, "lse": np.zeros(2)}
        keys, eta = np.eye(2)[[0, 0]], 1 / (np.exp(-10) - np.exp(-11))
        given = (memory.init(), keys, targets)
        state, _ = memory.observe(*given, readout=Readout(np.eye(2)), eta=np.full(2, eta))
        assert (state.counters["steps"], state.counters["retried"]) == (1, 0)

    def test_a_retried_step_is_looked_at_again(self):
        memory = Memory(DOUBLE.replace(eta=20.0, guard=True))  # errors times -19, -4, -1/4
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.ones((1, 3)))
        assert state.counters["retried"] == 2
        np.testing.assert_allclose(state.parameters["W"][0], 1.25)


class TestDivergence:
    def test_the_limit_is_a_norm(self):
        memory = Memory(DOUBLE.replace(eta=1.0, max_norm=10.0))
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.array([[9.0, 0.0, 0.0]]))
        assert state.counters["retried"] == 0
        state, _ = memory.observe(memory.init(), np.eye(4)[:1], np.array([[11.0, 0.0, 0.0]]))
        assert state.counters["retried"] == 1

    @pytest.mark.parametrize("use_muon", [False, True])
    def test_reads_see_the_step_that_was_taken(self, use_muon):
        memory = Memory(DOUBLE.replace(theta=0.5, use_muon=use_muon))
        keys, values, queries = stream(2)
        start, _ = memory.observe(memory.init(), keys[:1], values[:1], eta=np.array([0.01]))
        given = (keys[1:], values[1:], queries[1:])
        free, _, _ = memory.scan(start, *given, eta=np.array([50.0]))
        limited = Memory(memory.config.replace(max_norm=float(np.linalg.norm(free.parameters["W"])) / 2))
        state, y, _ = limited.scan(start, *given, eta=np.array([50.0]))
        assert (state.counters["retried"], state.counters["rejected"]) == (1, 0)
        np.testing.assert_allclose(y, limited.read(state, queries[1:]))

    @pytest.mark.parametrize("large", [0, 1 << 60])  # written to in place, or new
    def test_an_infinite_momentum_is_found_behind_finite_parameters(self, large, monkeypatch):
        monkeypatch.setattr(learning, "_LARGE", large)
        memory = Memory(MemoryConfig(4, 3, PLAIN, eta=0.0, theta=0.5))
        keys, values, _ = stream(1)
        state, _ = memory.observe(memory.init(), 1e5 * keys, 1e5 * values, weights=np.array([1e35]))
        assert (state.counters["steps"], state.counters["rejected"]) == (0, 1)
        assert not state.momentum["W"].any()

    @pytest.mark.parametrize(
        "config",
        [
            MemoryConfig(4, 3, PLAIN, ResidualMLP(width=5), eta=2.0, max_norm=6.0, retries=0),
            MemoryConfig(4, 3, PLAIN, eta=0.5, guard=True, retries=0),
        ],
        ids=["several matrices", "guard"],
    )
    def test_what_is_taken_back_was_not_written_over(self, config, monkeypatch):
        monkeypatch.setattr(learning, "_LARGE", 0)
        memory = Memory(config)
        keys, values, _ = stream(9)
        state = memory.init()
        for t in range(9):
            before = {name: array.copy() for name, array in state.parameters.items()}
            rejected = int(state.counters["rejected"])
            state, _ = memory.observe(state, keys[t : t + 1], values[t : t + 1], donate=True)
            if state.counters["rejected"] > rejected:
                for name, array in before.items():
                    np.testing.assert_array_equal(state.parameters[name], array)
        assert 0 < state.counters["rejected"] < 9


def test_a_step_per_chunk_takes_the_rates_of_its_last_token():
    config = DOUBLE.replace(theta=0.5, chunk_size=2, step="chunk", omega_window=2)
    keys, values, _ = stream(4)
    memory = Memory(config)
    rates = {"alpha": [0.1, 0.9], "theta": [0.0, 0.7], "eta": [0.5, 0.03]}
    given = {name: np.array(pair * 2) for name, pair in rates.items()}
    state, _ = memory.observe(memory.init(), keys, values, **given)
    other = Memory(config.replace(**{name: pair[1] for name, pair in rates.items()}))
    expected, _ = other.observe(other.init(), keys, values)
    np.testing.assert_array_equal(state.parameters["W"], expected.parameters["W"])
    np.testing.assert_array_equal(state.momentum["W"], expected.momentum["W"])


def test_slots_beyond_filled_are_not_recalled():
    memory = Memory(DOUBLE.replace(window_size=6))
    keys, values, _ = stream(5)
    state, _ = memory.observe(memory.init(), keys, values)
    state = dataclasses.replace(state, counters={**state.counters, "filled": np.array(2)})
    found = memory.lookup(memory.restore(snapshot(state)), keys).similarity
    assert (found > 0.999).tolist() == [False, False, False, True, True]


class TestStream:
    def test_the_report_of_several_chunks_has_the_last_ones_omega_loss(self):
        memory = Memory(DOUBLE.replace(chunk_size=2, omega_window=3, eta=0.05))
        keys, values, _ = stream(4)
        _, whole = memory.observe(memory.init(), keys, values)
        state, first = memory.observe(memory.init(), keys[:2], values[:2])
        _, second = memory.observe(state, keys[2:], values[2:])
        assert first.omega_loss != second.omega_loss == whole.omega_loss

    def test_rates_behind_the_last_token_may_be_anything(self):
        memory = Memory(DOUBLE)
        keys, values, _ = stream(2)
        eta = np.array([0.1, np.nan])
        state, _ = memory.observe(memory.init(), keys, values, eta=eta, lengths=np.array(1))
        assert state.counters["learned"] == 1

    def test_an_unknown_token_is_refused_before_its_chunk_is_full(self):
        memory = Memory(MemoryConfig(4, 3, PLAIN, objective=CrossEntropy(), chunk_size=4))
        keys, hidden, _ = stream(1)
        targets = {"token": np.array([7]), "hidden": hidden, "lse": np.zeros(1)}
        with pytest.raises(InvalidParamError, match="token"):
            memory.observe(memory.init(), keys, targets, readout=Readout(np.ones((5, 3))))

    def test_a_token_that_is_left_out_weighs_nothing_whatever_weight_is_given(self):
        # the constant feature of a key that is left out is not 0
        memory = Memory(DOUBLE.replace(features=Features(map=Polynomial(2))))
        keys, values, _ = stream(2)
        keys[1, 2] = np.nan
        before, _ = memory.observe(memory.init(), keys[:1], values[:1])
        after, _ = memory.observe(before, keys[1:], values[1:], weights=np.ones(1))
        assert after.counters["dropped"] == 1
        np.testing.assert_array_equal(after.parameters["W"], before.parameters["W"])

    def test_a_scan_starts_with_no_token_waiting(self):
        memory = Memory(DOUBLE.replace(chunk_size=2))
        keys, values, queries = stream(1)
        state, _ = memory.observe(memory.init(), keys, values)
        with pytest.raises(InvalidParamError, match="wait for their chunk"):
            memory.scan(state, keys, values, queries)

    def test_filled_ends_at_the_windows_capacity(self):
        memory = Memory(DOUBLE.replace(window_size=3))
        state, _ = memory.observe(memory.init(), *stream(5)[:2])
        assert state.counters["filled"] == 3


class TestStates:
    @pytest.mark.parametrize(
        "counters",
        [
            {"seen": 9, "learned": 5},  # a whole chunk waits
            {"seen": 8, "learned": 6, "filled": 1},  # fewer tokens than wait
            {"seen": 5, "learned": 4, "filled": 6},
        ],
    )
    def test_counters_that_contradict_each_other(self, counters):
        memory = Memory(DOUBLE.replace(chunk_size=4, window_size=8))
        state, _ = memory.observe(memory.init(), *stream(8)[:2])
        arrays = snapshot(state) | {f"counters.{name}": np.array(n) for name, n in counters.items()}
        with pytest.raises(InvalidParamError, match="contradict"):
            memory.restore(arrays)

    def test_the_mean_of_centred_keys_is_no_optimiser_state(self):
        features = Features(map=Identity(), centre=True)
        memory = Memory(DOUBLE.replace(features=features, warmup_tokens=4, theta=0.5, eta_adaptation=0.1))
        state, _ = memory.observe(memory.init(), *stream(5)[:2])
        arrays = snapshot(state, optimizer=False)
        assert [name for name in arrays if name.startswith(("momentum", "adaptation"))] == ["adaptation.mean"]

    def test_statistics_of_window_and_eta(self):
        config = DOUBLE.replace(window_size=2, omega_window=5, eta_adaptation=0.1)
        memory = Memory(config)
        state, _ = memory.observe(memory.init(), *stream(3)[:2])
        found = statistics(config, state)
        assert found.window_fill == 1
        assert found.eta_factor == pytest.approx(np.exp(state.adaptation["log_eta"]))
        restored = memory.restore(snapshot(state, window=False))
        assert statistics(config, restored).window_fill == 0

    def test_a_merge_takes_no_negative_weight(self):
        state = Memory(DOUBLE).init()
        with pytest.raises(InvalidParamError, match="weights"):
            merge([state, state], [2, -1])


def test_the_bound_counts_the_momentum():
    S, nothing = np.full((1, 2, 2), 3.0), np.zeros((1, 1, 2))
    zero, two = np.zeros(1), np.full(1, -2.0)
    assert update._bound(nothing, nothing, (zero, S), (two, S), np.zeros((1, 1))) == pytest.approx(12)


def test_atlas_steps_once_for_two_tokens():
    memory = Memory(presets.atlas(4, 3))
    state, _ = memory.observe(memory.init(), *stream(6)[:2])
    assert state.counters["steps"] == 3


def test_squares_outweigh_the_keys_themselves_in_the_presets():
    features = presets.omega_net(3, 2).features
    phi = features.phi(np.array([[1.0, 0, 0], [-1.0, 0, 0]]), features.constants(3, 0))
    # a_1^2 c + a_2^2 c^2 at the cosine c = -1, and normalised
    assert phi[0] @ phi[1] == pytest.approx((1 - 0.25) / (1 + 0.25))


def test_slots_beyond_filled_are_empty_whatever_they_hold():
    features = Features(map=Identity(), normalize_keys=False)
    memory = Memory(MemoryConfig(4, 3, features, omega_window=5, window_size=6, window_dtype="bfloat16"))
    keys, values = np.random.default_rng(0).standard_normal((2, 7, 4)).astype(np.float32)
    state, _ = memory.observe(memory.init(), keys[:6], values[:6, :3])
    stale = snapshot(state) | {"counters.filled": np.array(2)}
    stale["window.eta"][1] = np.nan  # token 1 of 6
    empty = snapshot(state) | {"counters.filled": np.array(2)}
    for name, array in empty.items():
        if name.startswith("window."):
            array[[t % len(array) for t in range(6 - len(array), 4)]] = 0  # only tokens 4 and 5 are real
    states = [memory.observe(memory.restore(a), keys[6:], values[6:, :3])[0] for a in (stale, empty)]
    np.testing.assert_array_equal(states[0].parameters["W"], states[1].parameters["W"])
