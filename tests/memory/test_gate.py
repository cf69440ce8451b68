"""The gate: hand examples, finite differences, bad numbers, and that it learns whom to trust."""

from __future__ import annotations

import dataclasses
import doctest
import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import gate as gate_module
from atlas_kit.memory.gate import Gate, fixed_blend, gate_features, mix

Array = np.ndarray[Any, Any]


def test_examples_by_hand() -> None:
    assert doctest.testmod(gate_module).failed == 0


def case(
    experts: int, rows: int = 2, n: int = 5, seed: int = 0, dtype: str = "float64"
) -> tuple[dict[str, Array], Array, Array]:
    """Return a state, features and target probabilities that look like nothing in particular."""
    rng = np.random.RandomState(seed)
    w = rng.standard_normal((rows, experts - 1, 3)).astype(dtype)
    f = rng.standard_normal((rows, n, 3)).astype(dtype)
    return {"w": w}, f, rng.uniform(0.01, 0.9, (rows, n, experts)).astype(dtype)


def loss_by_loop(w: Array, f: Array, p: Array) -> Array:
    """Return ``-log sum_k softmax(w f)_k p_k`` of each token."""
    loss = np.zeros(f.shape[:2])
    for r, t in np.ndindex(*loss.shape):
        logits = [0.0] + [float(row @ f[r, t]) for row in w[r]]
        total = sum(map(math.exp, logits))
        loss[r, t] = -math.log(sum(math.exp(a) / total * q for a, q in zip(logits, p[r, t], strict=True)))
    return loss


def test_two_experts_are_the_sigmoid() -> None:
    state, f, _ = case(2)
    expected = 1 / (1 + np.exp(-np.einsum("rf,rnf->rn", state["w"][:, 0], f)))
    np.testing.assert_allclose(Gate().weights(state, f)[..., 1], expected, rtol=1e-12)


@pytest.mark.parametrize("experts", [2, 3])
def test_step_against_finite_differences(experts: int) -> None:
    state, f, p = case(experts)
    gate = Gate(experts=experts, rate=1.0, clip=1e9)
    after, loss = gate.update(state, f, p)
    np.testing.assert_allclose(loss, loss_by_loop(state["w"], f, p), rtol=1e-12)
    for index in np.ndindex(*state["w"].shape):
        ends = []
        for sign in (1, -1):
            w = state["w"].copy()
            w[index] += sign * 1e-6
            ends.append(loss_by_loop(w, f, p)[index[0]].mean())
        slope = (ends[0] - ends[1]) / 2e-6
        assert state["w"][index] - after["w"][index] == pytest.approx(slope, abs=1e-8)


@pytest.mark.parametrize("experts", [2, 3])
def test_responsibilities_are_the_gradient_by_log_p(experts: int) -> None:
    state, f, p = case(experts)
    got = Gate(experts=experts).responsibilities(state, f, p)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-12)
    for k in range(experts):
        up, down = p.copy(), p.copy()
        up[..., k] *= math.exp(1e-6)
        down[..., k] *= math.exp(-1e-6)
        slope = (loss_by_loop(state["w"], f, up) - loss_by_loop(state["w"], f, down)) / 2e-6
        np.testing.assert_allclose(got[..., k], -slope, atol=1e-8)


def test_the_gradient_is_clipped_per_row() -> None:
    state, f, p = case(3)
    f[0] *= 100  # row 0 has a long gradient, row 1 a short one
    state["w"][0] /= 100
    free = Gate(experts=3, rate=1.0, clip=1e9).update(state, f, p)[0]["w"] - state["w"]
    clipped = Gate(experts=3, rate=0.5, clip=2.0).update(state, f, p)[0]["w"] - state["w"]
    length = np.linalg.norm(free[0])
    assert length > 2
    np.testing.assert_allclose(clipped[0], free[0] / length * 2 * 0.5, rtol=1e-12)
    np.testing.assert_allclose(clipped[1], free[1] * 0.5, rtol=1e-12)


def test_rows_do_not_see_each_other() -> None:
    state, f, p = case(3, rows=3, dtype="float32")
    together = Gate(experts=3).update(state, f, p)
    for row in range(3):
        alone = Gate(experts=3).update({"w": state["w"][row : row + 1]}, f[row : row + 1], p[row : row + 1])
        np.testing.assert_array_equal(alone[0]["w"][0], together[0]["w"][row])
        np.testing.assert_array_equal(alone[1][0], together[1][row])


@given(experts=st.integers(2, 4), rows=st.integers(0, 3), n=st.integers(0, 4), seed=st.integers(0, 99))
def test_shapes_types_and_purity(experts: int, rows: int, n: int, seed: int) -> None:
    state, f, p = case(experts, rows, n, seed, "float32")
    gate = Gate(experts=experts)
    before = {name: array.copy() for name, array in {**state, "f": f, "p": p}.items()}
    mask = np.ones((rows, n), bool)
    after, loss = gate.update(state, f, p, mask)
    weights, posterior, blended = (
        gate.weights(state, f),
        gate.responsibilities(state, f, p, mask),
        gate.blend(state, f, p),
    )
    for name, array in {**state, "f": f, "p": p}.items():
        np.testing.assert_array_equal(array, before[name])
    assert not np.shares_memory(after["w"], state["w"])
    assert after["w"].shape == state["w"].shape
    assert loss.shape == blended.shape == (rows, n)
    assert weights.shape == posterior.shape == p.shape
    for array in (after["w"], loss, weights, posterior, blended):
        assert array.dtype == np.float32
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-6)
    np.testing.assert_allclose(np.exp(-loss), blended, rtol=1e-5)
    if not n:
        np.testing.assert_array_equal(after["w"], state["w"])


def test_blend_of_distributions() -> None:
    state, f, _ = case(3, dtype="float32")
    p = np.random.RandomState(3).dirichlet(np.ones(7), (2, 5, 3)).astype(np.float32)
    gate = Gate(experts=3)
    got = gate.blend(state, f, p)
    np.testing.assert_allclose(got, np.einsum("rnk,rnkv->rnv", gate.weights(state, f), p), rtol=1e-5)
    np.testing.assert_allclose(got.sum(-1), 1, rtol=1e-5)
    assert got.dtype == np.float32


# --- bad numbers ---

BAD = [(0, 0), (math.nan, 0.5), (0.5, math.nan), (math.nan, 0), (math.inf, 0.5), (-math.inf, 1), (-0.1, 0.5)]


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_bad_tokens_are_left_out(bad: tuple[float, float], dtype: str) -> None:
    state, f, p = case(2, dtype=dtype)
    gate = Gate()
    keep = [0, 1, 3, 4]
    expected, expected_loss = gate.update(state, f[:, keep], p[:, keep])
    p[:, 2] = bad
    after, loss = gate.update(state, f, p)
    np.testing.assert_allclose(after["w"], expected["w"], rtol=1e-6)
    np.testing.assert_allclose(loss[:, keep], expected_loss, rtol=1e-6)
    assert loss[:, 2].tolist() == [0, 0]
    np.testing.assert_array_equal(gate.responsibilities(state, f, p)[:, 2], gate.weights(state, f)[:, 2])


def test_a_row_without_tokens_stays_bit_for_bit() -> None:
    state, f, p = case(3, dtype="float32")
    mask = np.zeros((2, 5), bool)
    mask[1, :2] = True
    after, loss = Gate(experts=3).update(state, f, p, mask)
    np.testing.assert_array_equal(after["w"][0], state["w"][0])
    assert not loss[0].any()
    expected = Gate(experts=3).update(state, f[:, :2], p[:, :2])
    np.testing.assert_allclose(after["w"][1], expected[0]["w"][1], rtol=1e-6)
    np.testing.assert_allclose(loss[1], [*expected[1][1], 0, 0, 0], rtol=1e-6)


def test_one_expert_giving_nothing_counts_against_it() -> None:
    gate = Gate()
    state = gate.init(1)
    f = np.array([[[1, 0, 0]]], np.float32)
    after, loss = gate.update(state, f, np.array([[[0.0, 0.5]]], np.float32))
    assert gate.responsibilities(state, f, np.array([[[0.0, 0.5]]], np.float32)).tolist() == [[[0, 1]]]
    assert after["w"][0, 0, 0] > state["w"][0, 0, 0]
    np.testing.assert_allclose(loss, -math.log(0.5 / (1 + math.e)), rtol=1e-6)


def test_extreme_features_weights_and_probabilities() -> None:
    gate = Gate()
    f = np.array([[[math.nan, math.inf, -math.inf], [1e38, -1e38, 1], [1, 1, 1]]], np.float32)
    tiny = float(np.finfo(np.float32).smallest_subnormal)
    p = np.array([[[0.5, 0.5], [tiny, 1], [tiny, tiny]]], np.float32)
    for w in (1.0, -1e6, 1e6):
        state = {"w": np.array([[[w, -w, 0]]], np.float32)}
        assert gate.weights(state, f)[0, 0].tolist() == [0.5, 0.5]
        after, loss = gate.update(state, f, p)
        assert np.isfinite(after["w"]).all()
        assert np.isfinite(loss).all()
        assert np.linalg.norm(after["w"] - state["w"]) <= 0.0625  # a step of 0.05, in the precision of 1e6
        assert np.isfinite(gate.responsibilities(state, f, p)).all()


# --- learning ---


@pytest.mark.parametrize("experts", [2, 3])
def test_it_finds_the_better_expert(experts: int) -> None:
    rng = np.random.RandomState(0)
    gate = Gate(experts=experts, rate=0.5)
    state = gate.init(experts)
    good = np.arange(experts)  # in row k the expert k is good
    f = np.zeros((experts, 16, 3), np.float32)
    f[..., 0] = 1
    losses = []
    for _ in range(200):
        p = rng.uniform(0.01, 0.1, (experts, 16, experts)).astype(np.float32)
        p[good, :, good] *= 8
        state, loss = gate.update(state, f, p)
        losses.append(loss.mean())
    weights = gate.weights(state, f)[:, 0]
    assert (weights[good, good] > 0.9).all()
    assert np.mean(losses[-20:]) < np.mean(losses[:20]) - 0.2


def test_it_learns_when_to_trust_whom() -> None:
    """The cache is right when its key is similar, the model when it is sure: only the features tell."""
    rng = np.random.RandomState(0)
    gate = Gate(rate=0.3)
    state = gate.init(1)
    for _ in range(400):
        similar = rng.rand(1, 16) < 0.5
        f = gate_features(np.where(similar, 0.95, 0.6), np.where(similar, 3.0, 1.0)).astype(np.float32)
        p = np.stack((np.where(similar, 0.05, 0.6), np.where(similar, 0.7, 0.01)), -1).astype(np.float32)
        state, _ = gate.update(state, f, p)
    ends = gate_features(np.array([[0.95, 0.6]]), np.array([[3.0, 1.0]])).astype(np.float32)
    cache = gate.weights(state, ends)[0, :, 1]
    assert cache[0] > 0.9
    assert cache[1] < 0.1
    again, _ = gate.update({"w": state["w"].copy()}, ends, p[:, :2])
    np.testing.assert_array_equal(again["w"], gate.update(state, ends, p[:, :2])[0]["w"])


# --- settings ---


def test_start() -> None:
    np.testing.assert_array_equal(Gate(experts=3).init(2)["w"], [[[-1, 0, 0]] * 2] * 2)
    assert Gate().init(1, dtype="float64")["w"].dtype == np.float64
    one = Gate(experts=3, start=(1, 2, 3))
    assert one.start == ((1.0, 2.0, 3.0),) * 2
    each = Gate(experts=3, features=1, start=((1,), (2,)))
    np.testing.assert_array_equal(each.init(1)["w"], [[[1], [2]]])
    first, second = each.init(2)["w"]
    assert not np.shares_memory(first, second)


@pytest.mark.parametrize("gate", [Gate(), Gate(experts=3, start=((0, 1, 2), (3, 4, 5)), rate=0, clip=2)])
def test_settings_survive_json(gate: Gate) -> None:
    again = Gate(**json.loads(json.dumps(dataclasses.asdict(gate))))
    assert again == gate
    assert hash(again) == hash(gate)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("experts", 1),
        ("experts", 2.0),
        ("experts", True),
        ("features", 0),
        ("rate", -0.1),
        ("rate", math.nan),
        ("rate", "fast"),
        ("clip", 0),
        ("clip", math.inf),
        ("start", (1, 2)),
        ("start", ((1, 2, 3), (1, 2, 3))),
        ("start", ((1, 2, math.nan),)),
        ("start", ((1, 2, "3"),)),
        ("start", ()),
        ("start", 1.0),
        ("start", ((1, 2, 3), 4)),
    ],
)
def test_bad_settings_are_named(key: str, value: object) -> None:
    with pytest.raises(InvalidParamError) as caught:
        Gate(**{key: value})  # type: ignore[arg-type]
    assert caught.value.key == key


def test_a_wrong_number_of_experts_is_refused() -> None:
    state, f, p = case(2)
    for call in (Gate(experts=3).blend, Gate().responsibilities, Gate().update):
        with pytest.raises(InvalidParamError, match="experts"):
            call({"w": state["w"]}, f, p[..., :1])


def test_fixed_blend() -> None:
    p = np.array([[[0.25, 0.75]]], np.float32)
    for ratio, expected in [(0, 0.25), (1, 0.75), (0.5, 0.5)]:
        weights = fixed_blend(ratio)
        assert sum(weights) == 1
        assert mix(weights, p).tolist() == [[expected]]
    assert mix(fixed_blend(0.3), p).dtype == np.float32
    for bad in (-0.1, 1.1, math.nan, "0.5", True, None):
        with pytest.raises(InvalidParamError) as caught:
            fixed_blend(bad)  # type: ignore[arg-type]
        assert caught.value.key == "blend_ratio"


def test_features_keep_their_type() -> None:
    f = gate_features(np.full((2, 3), 0.8, np.float32), np.full((2, 3), 2, np.float32))
    assert f.dtype == np.float32
    assert f.shape == (2, 3, 3)
    np.testing.assert_allclose(f[..., 1:], 0, atol=1e-6)


def test_features_of_a_ranked_window() -> None:
    similarity, entropy = np.array([[0.9, -1.0]]), np.array([[1.0, 3.0]])
    length, confidence = np.array([[2.0, 0.0]]), np.array([[0.75, 0.0]])
    f = gate_features(similarity, entropy, length, confidence)
    np.testing.assert_allclose(f, [[[1, 1, -1, 0.5, 0.5], [1, -18, 1, -1.5, -1]]])
    np.testing.assert_array_equal(gate_features(similarity, entropy), f[..., :3])
    narrow = [array.astype(np.float32) for array in (similarity, entropy, length, confidence)]
    assert gate_features(*narrow).dtype == np.float32
