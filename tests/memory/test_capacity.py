"""Pairs stored and recalled: measures by hand, what theory allows, and numbers that the experiments have published."""

from __future__ import annotations

import doctest
import itertools
import math

import numpy as np
import pytest

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import Features, GatedMLP, Identity, Matrix, MemoryConfig, Polynomial, capacity, trials
from atlas_kit.memory.capacity import Recall, held, last_within, random_pairs
from atlas_kit.memory.trials import TRIALS, Trial
from tools.experiments import common


def test_examples():
    assert doctest.testmod(capacity).failed == 0
    assert doctest.testmod(trials).failed == 0


class TestPairsAndMeasures:
    def test_pairs_have_length_1_and_do_not_depend_on_how_many_follow(self):
        keys, values = random_pairs(20, 6, 4, seed=3)
        assert (keys.shape, values.shape, keys.dtype) == ((20, 6), (20, 4), np.float32)
        np.testing.assert_allclose(np.linalg.norm(keys, axis=1), 1, rtol=1e-6)
        few, _ = random_pairs(5, 6, 4, seed=3)
        np.testing.assert_array_equal(few, keys[:5])
        assert not np.array_equal(random_pairs(5, 6, 4, seed=4)[0], few)

    @pytest.mark.parametrize("wrong", [(0, 2, 2), (2, 0, 2), (2, 2, 1.5)])
    def test_no_pairs(self, wrong):
        with pytest.raises(InvalidParamError, match="whole number of at least 1"):
            random_pairs(*wrong)

    def test_measures_by_hand(self):
        values = np.eye(3)[None]
        reads = np.array([[[2.0, 0, 0], [0, 0.1, 0.2], [0, 0, 0.5]]])
        assert capacity.nearest(reads, values).tolist() == [[0, 2, 2]]
        assert capacity.accuracy(reads, np.arange(3), values).tolist() == pytest.approx([2 / 3])
        # 1 + (0.81 + 0.04) + 0.25 over 3
        assert capacity.relative_error(reads, values)[0] == pytest.approx(math.sqrt(2.1 / 3))
        cosines = capacity.similarity(reads[0], values[0])
        assert cosines[0].tolist() == [1, 0, 0]
        assert cosines[1] == pytest.approx([0, 1 / math.sqrt(5), 2 / math.sqrt(5)])

    def test_where_a_measure_leaves_its_level(self):
        curve = [Recall(n, a, 0.0, e) for n, a, e in ((10, 1.0, 0.0), (20, 1.0, 0.1), (40, 0.8, 0.5))]
        assert held(curve) == pytest.approx(20 * math.sqrt(2))
        assert held(curve, "error") == pytest.approx(20 * math.sqrt(2))
        assert math.isnan(held(curve[:2]))  # it still holds all
        assert math.isnan(held(curve[2:]))  # it never held them
        assert math.isnan(held([]))
        assert math.isnan(last_within([], [], 0.5))


class TestFreeNumbers:
    @pytest.mark.parametrize("d", [3, 5])
    @pytest.mark.parametrize(
        "weights",
        [
            (1, 1),
            (1, 1, 0.5),
            (0, 0.5, 1),
            (0, 0, 1),
            (1, 0, 1),
            (0, 0.5, 0.5, 1),
            (1, 0, 0, 1),
            (0, 1, 0, 0),
        ],
    )
    @pytest.mark.parametrize("constant", [True, False])
    def test_monomials_on_the_sphere_are_counted_as_their_rank(self, d, weights, constant):
        features = Features(Polynomial(len(weights) - 1, weights, constant=constant))
        keys, _ = random_pairs(200, d, d)
        rank = np.linalg.matrix_rank(features.phi(keys.astype(float), {}))
        assert capacity.free_numbers(MemoryConfig(d, d, features)) == rank

    def test_keys_of_any_length_have_all_of_them(self):
        features = Features(Polynomial(2), normalize_keys=False)
        assert capacity.free_numbers(MemoryConfig(4, 4, features)) == 15

    def test_deep(self):
        gated = MemoryConfig(8, 4, Features(Identity()), GatedMLP(width=10))
        assert capacity.free_numbers(gated) == (2 * 80 + 40) / 4


class TestStoring:
    def test_a_stream_is_one_memory_that_goes_on(self):
        config = Trial(d=8, window=4).config.replace(chunk_size=3, omega_window=4)
        keys, values = random_pairs(20, 8, 8)
        some = {len(s.keys): s for s in capacity.stream(config, keys, values, at=[7, 20, 7])}
        assert list(some) == [7, 20]
        (whole,) = capacity.stream(config, keys, values)
        np.testing.assert_array_equal(whole.reads(), some[20].reads())
        (alone,) = capacity.stream(config, keys[:7], values[:7])  # its last token waited for its chunk
        np.testing.assert_array_equal(alone.reads(), some[7].reads())

    def test_streams_beside_each_other_do_not_mix(self):
        keys, values = (
            np.stack(p) for p in zip(*(random_pairs(12, 6, 6, seed) for seed in (0, 1)), strict=True)
        )
        config = Trial(d=6).config
        together = capacity.last(capacity.stream(config, keys, values))
        for seed in (0, 1):
            alone = capacity.last(capacity.stream(config, keys[seed], values[seed]))
            np.testing.assert_allclose(together.reads()[seed], alone.reads(), atol=1e-6)
        separate = [capacity.last(capacity.stream(config, keys[i], values[i])).recall() for i in (0, 1)]
        assert together.recall().accuracy == pytest.approx(np.mean([r.accuracy for r in separate]))
        assert together.recall().error == pytest.approx(np.mean([r.error for r in separate]), rel=1e-5)

    @pytest.mark.parametrize("kind", ["linear", "polynomial"])
    def test_convergence_reaches_least_squares(self, kind):
        trial = Trial(kind, d=8)
        n = round(0.8 * trial.free_numbers)
        keys, values = random_pairs(n, 8, 8)
        passes = list(capacity.converge(trial.config, keys, values, passes=150))
        assert [p.final for p in passes] == [False] * 149 + [True]
        best = capacity.least_squares(trial.config, keys, values)
        np.testing.assert_allclose(passes[-1].reads(), best, atol=0.02)
        assert passes[-1].recall().error < 0.1 < passes[0].recall().error

    def test_least_squares_takes_streams(self):
        config = Trial(d=6).config
        keys, values = (np.stack(p) for p in zip(*(random_pairs(9, 6, 6, s) for s in (0, 1)), strict=True))
        both = capacity.least_squares(config, keys, values)
        np.testing.assert_allclose(both[1], capacity.least_squares(config, keys[1], values[1]))


class TestKnownCapacities:
    """Against ``tools/experiments/results/capacity.csv`` and the propositions."""

    @pytest.mark.parametrize("d", [8, pytest.param(16, marks=pytest.mark.slow)])
    def test_a_matrix_holds_d_pairs(self, d):
        curve = Trial("linear", d=d, training="converged").curve()
        assert 0.9 * d < held(curve, "error") < 1.35 * d

    @pytest.mark.slow
    def test_degree_2_holds_as_many_as_it_has_features(self):
        trial = Trial("polynomial", d=8, training="converged")
        published = [
            row["pairs"]
            for row in published_capacities()
            if row["model"] == "degree 2, reweighted" and row["d_k"] == 8 and row["measure"] == "error"
        ]
        assert trial.free_numbers == 44
        assert held(trial.curve(), "error") == pytest.approx(np.mean(published), rel=0.25)

    def test_one_pass_at_16(self):
        holds = {name: held(trial.curve()) for name, trial in TRIALS.items() if trial.training == "one pass"}
        assert 8 < holds["Matrix, Delta rule"] < 16
        assert 14 < holds["Matrix, Omega rule"] < 24  # published: 17.8
        assert 60 < holds["Degree 2, Delta rule"] < 90
        for less, more in itertools.pairwise(list(holds)[:5]):  # each change helps
            assert holds[less] < holds[more], (less, more)
        for deep in ("Deep, Omega rule", "Deep, Omega rule, Muon", "Gated, Omega rule, Muon"):
            assert holds[deep] > 1.5 * holds["Matrix, Omega rule"]

    def test_muon_lets_a_deep_memory_converge(self):
        keys, values = random_pairs(60, 8, 8)
        errors = []
        for muon in (True, False):
            config = Trial("deep", d=8, muon=muon).config
            errors.append(capacity.last(capacity.converge(config, keys, values, passes=150)).recall().error)
        assert errors[0] < 0.3 < errors[1] < 1


def published_capacities():
    from tools.experiments import capacity as experiment

    return common.select(experiment.capacities(common.load("capacity")), training="converged")


class TestTrials:
    @pytest.mark.parametrize(
        ("settings", "key"),
        [({"kind": "round"}, "kind"), ({"training": "twice"}, "training"), ({"d": 1}, "d"), ({"d": 2.5}, "d"),
         ({"degree": 9}, "degree"), ({"pairs": -1}, "pairs"), ({"pairs": 10**6}, "pairs"), ({"streams": 65}, "streams"),
         ({"window": 0}, "omega_window"), ({"eta": -1.0}, "eta"),
         ({"kind": "polynomial", "d": 64, "degree": 3}, "degree")],
    )  # fmt: skip
    def test_a_setting_out_of_range(self, settings, key):
        with pytest.raises(InvalidParamError) as caught:
            Trial(**settings)
        assert caught.value.key == key

    def test_counts_end_where_recall_has_broken(self):
        for trial in TRIALS.values():
            counts = trial.counts
            assert counts == sorted(set(counts))
            assert counts[-1] == trial.most
        assert Trial(pairs=1).counts == [1]
        assert Trial(pairs=7).counts == [2, 3, 4, 5, 6, 7]

    def test_labels_tell_them_apart(self):
        assert len({trial.label for trial in TRIALS.values()}) == len(TRIALS)

    def test_a_trial_is_the_same_every_time(self):
        trial = Trial("gated", d=4, window=4, muon=True, pairs=12, seed=5)
        assert trial.curve() == trial.curve()
        assert trial.curve() != Trial("gated", d=4, window=4, muon=True, pairs=12, seed=6).curve()

    def test_own_step_size(self):
        assert Trial(eta=0.01).config.eta == 0.01
        assert isinstance(Trial().config.module, Matrix)
