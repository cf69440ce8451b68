"""Learning in the arrays of the state that came in: the same bits as in new ones, and nothing lost."""

from __future__ import annotations

import numpy as np
import pytest

from atlas_kit.memory import Features, Identity, Memory, MemoryConfig, learning, snapshot, update
from atlas_kit.memory.backend import add_scaled

BASE = MemoryConfig(8, 6, features=Features(map=Identity()), eta=0.1, omega_window=3)
CONFIGS = {
    "chunk": BASE.replace(chunk_size=4, step="chunk", omega_window=5, window_size=10),
    "token, decay": BASE.replace(chunk_size=2, alpha=0.9),
    "momentum": BASE.replace(alpha=0.9, theta=0.5, chunk_size=3),
    "diverging": BASE.replace(eta=50.0, max_norm=20.0, theta=0.5),
}


@pytest.fixture(autouse=True)
def small_is_large(monkeypatch):
    """Take the ways of large memories with small ones: blocks of two rows."""
    monkeypatch.setattr(learning, "_LARGE", 0)
    monkeypatch.setattr(update, "_BLOCK_BYTES", 2 * 6 * 4)


@pytest.fixture(params=CONFIGS)
def config(request):
    return CONFIGS[request.param]


def stream(batch=(5,), tokens=11):
    rng = np.random.default_rng(3)
    return tuple(rng.standard_normal((*batch, tokens, d)).astype(np.float32) for d in (8, 6))


def same(one, other):
    for (name, a), b in zip(snapshot(one).items(), snapshot(other).values(), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=name)


def test_donated_kept_and_new_arrays_give_the_same_bits(config, monkeypatch):
    memory, (keys, values) = Memory(config), stream()
    start, _ = memory.observe(memory.init(5), keys, values)
    before = snapshot(start)
    kept, report = memory.observe(start, keys, values)
    for name, array in snapshot(start).items():
        np.testing.assert_array_equal(array, before[name])
    donated, other = memory.observe(memory.restore(before), keys, values, donate=True)
    same(kept, donated)
    with monkeypatch.context() as patch:
        patch.setattr(learning, "_LARGE", 1 << 60)
        new, _ = memory.observe(start, keys, values)
    same(kept, new)
    for name in ("loss", "surprise", "omega_loss"):
        np.testing.assert_array_equal(getattr(report, name), getattr(other, name))
    for row in range(5):
        alone, _ = memory.observe(memory.restore(before)[row], keys[row], values[row], donate=True)
        same(kept[row], alone)


def test_a_donated_state_is_written_to():
    memory, (keys, values) = Memory(CONFIGS["momentum"]), stream()
    state, _ = memory.observe(memory.init(5), keys, values)
    arrays = [state.parameters["W"], state.momentum["W"], state.window["key"]]
    after, _ = memory.observe(state, keys, values, donate=True)
    for array, other in zip(
        arrays, [after.parameters["W"], after.momentum["W"], after.window["key"]], strict=True
    ):
        assert np.shares_memory(array, other)


def test_a_donated_state_that_diverges_is_learned_as_any_other():
    memory, (keys, values) = Memory(CONFIGS["diverging"]), stream()
    state, _ = memory.observe(memory.init(5), keys, values, donate=True)
    assert state.counters["retried"].any()
    assert np.sqrt((state.parameters["W"] ** 2).sum(axis=(1, 2))).max() <= 20


def test_the_sum_in_place_with_blocks():
    rng = np.random.default_rng(4)
    W, S = rng.standard_normal((2, 3, 7, 6))
    A, B = rng.standard_normal((3, 4, 7)), rng.standard_normal((3, 4, 6))
    a, q = np.array([1.0, 0.5, 0.0]), np.array([0.0, 1.0, -2.0])
    expected = a[:, None, None] * W + A.swapaxes(1, 2) @ B + q[:, None, None] * S
    np.testing.assert_allclose(update.decayed_sum(W, a, A, B, S, q), expected, rtol=1e-12)
    out = W.copy()
    assert update.decayed_sum(out, a, A, B, S, q, into=out) is out
    np.testing.assert_allclose(out, expected, rtol=1e-12)


def test_the_bound_is_one():
    rng = np.random.default_rng(5)
    for _ in range(20):
        W, S = rng.standard_normal((2, 2, 7, 6))
        A, B, w = rng.standard_normal((2, 4, 7)), rng.standard_normal((2, 4, 6)), rng.standard_normal((2, 4))
        a, q = rng.standard_normal((2, 2))
        whole = add_scaled(A.swapaxes(1, 2) @ (B * w[..., None]), a, W, q, S)
        norm = np.sqrt((whole**2).sum(axis=(1, 2)))
        assert (norm <= update._bound(A, B, (a, W), (q, S), w)).all()
