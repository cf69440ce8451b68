"""Newton-Schulz: by hand, by the SVD, inside its band, and blind to scale, transposition and batch."""

from __future__ import annotations

import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import muon
from atlas_kit.memory.muon import STEPS, newton_schulz

A, B, C = 3.4445, -4.7750, 2.0315
SHAPES = [(1, 1), (4, 4), (3, 8), (8, 3), (1, 6), (6, 1), (40, 17)]


def p(s):
    return A * s + B * s**3 + C * s**5


def iterated(s, steps=STEPS):
    for _ in range(steps):
        s = p(s)
    return s


def reference(S, steps=STEPS):
    """Return the definition, one matrix, on whichever side."""
    X = S / np.sqrt((S**2).sum())
    for _ in range(steps):
        gram = X @ X.T
        X = A * X + (B * gram + C * (gram @ gram)) @ X
    return X


def normal(shape, seed=0, dtype="float64"):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def test_docstring_examples():
    result = doctest.testmod(muon)
    assert result.failed == 0
    assert result.attempted > 0


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("steps", [0, 1, 5])
def test_is_the_definition(shape, steps):
    S = normal(shape)
    np.testing.assert_allclose(newton_schulz(S, steps), reference(S, steps), atol=1e-12)


@pytest.mark.parametrize("shape", SHAPES)
def test_keeps_the_singular_vectors_and_iterates_the_singular_values(shape):
    S = normal(shape, 1)
    U, s, Vt = np.linalg.svd(S, full_matrices=False)
    expected = (U * iterated(s / np.linalg.norm(s))) @ Vt
    np.testing.assert_allclose(newton_schulz(S), expected, atol=1e-11)


# The band. p' = a + 3 b s^2 + 5 c s^4 has two positive roots, PEAK < VALLEY, so p rises to HIGH = p(PEAK),
# falls to LOW = p(VALLEY), and rises again. [LOW, HIGH] holds VALLEY but not PEAK, so there p is at least LOW
# and at most its value at an end, p(LOW) = 1.134 or p(HIGH) = 0.946: what is inside stays inside. p also maps
# [FIRST, LOW] into [LOW, HIGH], where FIRST < PEAK has p(FIRST) = LOW. Going back from LOW on p's first
# rising branch, five times, gives the smallest singular value of X_0 that five steps bring into [LOW, HIGH];
# all from there to 1 arrive too.
PEAK, VALLEY = np.sqrt((-3 * B + np.array([-1, 1]) * np.sqrt(9 * B * B - 20 * A * C)) / (10 * C))
LOW, HIGH = p(VALLEY), p(PEAK)


def back(target):
    """Return s on the rising branch with p(s) = target."""
    low, high = 0.0, PEAK
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if p(middle) < target else (low, middle)
    return high


SMALLEST = back(back(back(back(back(LOW)))))


def test_the_band_is_what_its_derivation_says():
    np.testing.assert_allclose([PEAK, VALLEY], [0.5545, 1.0501], atol=1e-4)
    np.testing.assert_allclose([LOW, HIGH], [0.6818, 1.2024], atol=1e-4)
    np.testing.assert_allclose(SMALLEST, 0.001505, atol=1e-6)
    inside = p(np.linspace(LOW, HIGH, 100_001))
    assert inside.min() >= LOW - 1e-12
    assert inside.max() <= p(LOW) + 1e-12
    assert p(LOW) == pytest.approx(1.1343, abs=1e-4)
    everything = iterated(np.linspace(SMALLEST, 1, 100_001))
    assert everything.min() >= LOW - 1e-9
    assert everything.max() <= HIGH + 1e-12


@pytest.mark.parametrize(("dtype", "slack"), [("float32", 1e-4), ("float64", 1e-9)])
@pytest.mark.parametrize("shape", [(64, 64), (32, 96), (96, 32)])
def test_singular_values_land_in_the_band(shape, dtype, slack):
    U, s, Vt = np.linalg.svd(normal(shape, 2), full_matrices=False)
    s = np.geomspace(1, 0.005, len(s))
    s /= np.linalg.norm(s)
    assert s[-1] > SMALLEST * 1.001
    S = ((U * s) @ Vt).astype(dtype)
    found = np.linalg.svd(newton_schulz(S), compute_uv=False)
    assert LOW - slack <= found.min()
    assert found.max() <= HIGH + slack


def test_is_near_the_orthogonal_factor():
    S = normal((16, 48), 3)
    U, _, Vt = np.linalg.svd(S, full_matrices=False)
    assert np.linalg.norm(newton_schulz(S) - U @ Vt, 2) < max(HIGH - 1, 1 - LOW)
    assert np.trace(newton_schulz(S).T @ U @ Vt) > 0.9 * 16


@pytest.mark.parametrize(
    ("dtype", "factors", "tolerance"),
    [("float32", [1e-30, 3e-3, 7.0, 1e30], 2e-5), ("float64", [1e-300, 1e-3, 7.0, 1e300], 1e-12)],
)
def test_scale_has_no_influence(dtype, factors, tolerance):
    S = normal((5, 9), 4, dtype)
    expected = newton_schulz(S)
    for factor in factors:
        np.testing.assert_allclose(newton_schulz(S * np.asarray(factor, dtype)), expected, atol=tolerance)
    power = np.asarray(2.0**-60, dtype)
    np.testing.assert_array_equal(newton_schulz(S * power), expected)  # exact, as scaling by it is


def test_the_smallest_and_largest_floats():
    signs = np.array([[1, -1], [1, 1]])
    expected = newton_schulz(signs.astype("float32"))
    for size in (np.finfo("float32").max, np.finfo("float32").tiny, 1e-45):
        np.testing.assert_allclose(
            newton_schulz((signs * np.float64(size)).astype("float32")), expected, atol=1e-6
        )


@pytest.mark.parametrize("shape", [(3, 8), (8, 3), (2, 5, 4)])
def test_transposition_and_sign_pass_through(shape):
    S = normal(shape, 5)
    np.testing.assert_array_equal(newton_schulz(-S), -newton_schulz(S))
    turned = newton_schulz(np.swapaxes(S, -1, -2))
    np.testing.assert_allclose(np.swapaxes(turned, -1, -2), newton_schulz(S), atol=1e-13)


@pytest.mark.parametrize("shape", [(6, 3, 5), (6, 5, 3), (2, 3, 4, 4)])
def test_a_batch_is_its_matrices(shape):
    S = normal(shape, 6)
    U = newton_schulz(S)
    for at in np.ndindex(shape[:-2]):
        np.testing.assert_array_equal(U[at], newton_schulz(S[at]))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_zero_nan_and_infinity_keep_to_their_own_matrix(dtype):
    S = normal((5, 4, 3), 7, dtype)
    expected = newton_schulz(S)
    S[1] = 0
    S[2, 0, 0] = np.nan
    S[3, 1, 2] = -np.inf
    U = newton_schulz(S)
    assert not U[1].any()
    assert np.isnan(U[2]).all()
    assert np.isnan(U[3]).all()
    np.testing.assert_array_equal(U[[0, 4]], expected[[0, 4]])


def test_the_argument_is_not_changed():
    for shape in SHAPES:
        S = normal(shape, 8)
        before = S.copy()
        newton_schulz(S)
        newton_schulz(S, steps=0)[...] = 0
        np.testing.assert_array_equal(S, before)


@given(
    lead=st.lists(st.integers(0, 2), max_size=2),
    rows=st.integers(0, 4),
    columns=st.integers(0, 4),
    steps=st.integers(0, 6),
    dtype=st.sampled_from(["float32", "float64"]),
)
def test_any_shape(lead, rows, columns, steps, dtype):
    shape = (*lead, rows, columns)
    U = newton_schulz(np.ones(shape, dtype), steps)
    assert (U.shape, U.dtype) == (shape, dtype)
    assert np.isfinite(U).all()


@pytest.mark.parametrize(
    ("S", "steps", "key"),
    [
        (np.ones(3), 5, "S"),
        (np.ones((2, 2)), -1, "steps"),
        (np.ones((2, 2)), 5.0, "steps"),
        (np.ones((2, 2)), True, "steps"),
    ],
)
def test_arguments_that_make_no_sense(S, steps, key):
    with pytest.raises(InvalidParamError) as caught:
        newton_schulz(S, steps)
    assert caught.value.key == key
