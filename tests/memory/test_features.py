"""Feature maps: hand examples, brute-force references, kernels with their stated errors, frozen constants."""

from __future__ import annotations

import doctest
import itertools
import math
import threading
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import features
from atlas_kit.memory.features import (
    FEATURE_MAPS,
    MAX_FEATURES,
    Exponential,
    FeatureMap,
    Features,
    Identity,
    Polynomial,
    RandomFourier,
    WinnerTakeAll,
    unit,
)

MAPS = [
    Identity(),
    Polynomial(2),
    Polynomial(3, constant=False),
    Exponential("random", features=32),
    Exponential("taylor", degree=3),
    RandomFourier(features=32),
    WinnerTakeAll(features=32, active=5),
    WinnerTakeAll(features=32, active=5, binary=False),
]


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).standard_normal(shape)


def applied(feature_map: FeatureMap, x: np.ndarray, normalize: bool = False, seed: int = 0) -> np.ndarray:
    """Apply a map with its constants in x's dtype, as a memory does."""
    constants = feature_map.constants(x.shape[-1], seed)
    return feature_map.apply(x, {name: c.astype(x.dtype) for name, c in constants.items()}, normalize)


def by_hand(x: np.ndarray, feature_map: Polynomial) -> np.ndarray:
    """Return the definition: a product of inputs for each multiset of variables, in order."""
    weights = feature_map.weights
    columns = [
        weights[p] * np.prod(x[..., list(variables)], axis=-1)
        for p in range(0 if feature_map.constant else 1, feature_map.degree + 1)
        for variables in itertools.combinations_with_replacement(range(x.shape[-1]), p)
    ]
    return np.stack(columns, axis=-1)


# ------------------------------------------------------------------------------------------ hand examples


def test_docstring_examples() -> None:
    result = doctest.testmod(features)
    assert result.attempted > 15
    assert result.failed == 0


# --------------------------------------------------------------------------------------------- polynomial


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize(
    ("d", "degree"), [(1, 1), (1, 6), (2, 6), (3, 4), (5, 3), (6, 2), (7, 2), (8, 1), (64, 2)]
)
def test_polynomial_is_its_definition(d: int, degree: int, constant: bool) -> None:
    feature_map = Polynomial(degree, constant=constant)
    for n in (1, 5, 400):  # few and many tokens take different ways
        x = normal(n, d)
        phi = feature_map.apply(x, {})
        assert phi.shape == (n, feature_map.d_out(d))
        np.testing.assert_allclose(phi, by_hand(x, feature_map), rtol=1e-13, atol=1e-14)


@pytest.mark.parametrize(
    "coefficients",
    [
        (1.0, 0.0, 0.5),
        (0.0, 0.0, 2.0, 0.0),
        (3.0, -1.0, 0.0, 0.25),
        (2.0, 0.0, 0.0),
        (0.0, 0.0, 0.0, 0.0, 1.0),
    ],
)
def test_zero_coefficients_silence_only_their_own_degree(coefficients: tuple[float, ...]) -> None:
    feature_map = Polynomial(len(coefficients) - 1, coefficients)
    x = normal(4, 5)
    expected = by_hand(x, feature_map)
    np.testing.assert_allclose(feature_map.apply(x, {}), expected, rtol=1e-13)
    np.testing.assert_allclose(feature_map.apply(x, {}, normalize=True), unit(expected), rtol=1e-12)


def test_zero_coefficients_without_constant() -> None:
    feature_map = Polynomial(3, (5.0, 0.0, 0.0, 1.0), constant=False)
    x = normal(4, 3)
    expected = by_hand(x, feature_map)
    np.testing.assert_allclose(feature_map.apply(x, {}), expected, rtol=1e-13)
    np.testing.assert_allclose(feature_map.apply(x, {}, normalize=True), unit(expected), rtol=1e-12)


@pytest.mark.parametrize(("d", "degree"), [(4, 3), (9, 2), (3, 6)])
def test_no_monomial_twice(d: int, degree: int) -> None:
    # powers of different primes are equal only if the monomials are
    primes = np.array([2.0, 3.0, 5.0, 7.0, 11.0, 13.0, 17.0, 19.0, 23.0])[None, :d]
    phi = Polynomial(degree, (1.0,) * (degree + 1)).apply(primes, {})[0]
    assert len(set(phi.tolist())) == len(phi) == math.comb(d + degree, degree)


def test_order_of_variables_only_reorders_features() -> None:
    x = normal(3, 6)
    for order in ([5, 4, 3, 2, 1, 0], [2, 0, 1, 5, 3, 4]):
        one = np.sort(Polynomial(3).apply(x, {}), axis=-1)
        other = np.sort(Polynomial(3).apply(x[:, order], {}), axis=-1)
        np.testing.assert_allclose(one, other, rtol=1e-13)


@pytest.mark.parametrize("constant", [True, False])
@pytest.mark.parametrize("degree", [1, 2, 3, 4, 5, 6])
def test_closed_form_of_the_norm(degree: int, constant: bool) -> None:
    feature_map = Polynomial(degree, constant=constant)
    x = normal(7, 5) * 2
    x[3] = 0
    phi = feature_map.apply(x, {}, normalize=True)
    np.testing.assert_allclose(phi, unit(feature_map.apply(x, {})), rtol=1e-12, atol=1e-300)
    np.testing.assert_allclose(np.linalg.norm(phi[3]), float(constant))


@given(
    batch=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(0, 20),
    d=st.integers(1, 6),
    degree=st.integers(1, 4),
    constant=st.booleans(),
    normalize=st.booleans(),
)
def test_polynomial_of_any_shape(
    batch: list[int], n: int, d: int, degree: int, constant: bool, normalize: bool
) -> None:
    feature_map = Polynomial(degree, constant=constant)
    x = normal(*batch, n, d)
    expected = by_hand(x, feature_map)
    phi = feature_map.apply(x, {}, normalize=normalize)
    np.testing.assert_allclose(phi, unit(expected) if normalize else expected, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("degree", [2, 3])
def test_a_token_does_not_depend_on_its_company(degree: int, dtype: type) -> None:
    feature_map = Polynomial(degree, tuple(0.3 + i for i in range(degree + 1)))
    x = normal(2, 300, 33).astype(dtype)
    together = feature_map.apply(x, {}, normalize=True)
    for n in (1, 2, 15, 16, 40):
        np.testing.assert_array_equal(feature_map.apply(x[:, :n], {}, normalize=True), together[:, :n])
        np.testing.assert_array_equal(feature_map.apply(x[1, :n], {}, normalize=True), together[1, :n])


@pytest.mark.parametrize("constant", [True, False])
def test_the_way_of_other_libraries(constant: bool) -> None:
    x, factors = normal(4, 6), np.array([1.0, 0.5, 2.0, 0.0])
    coefficients = (2.0, 0.0, 0.5, 0.0, 0.125, 0.0)
    feature_map = Polynomial(5, coefficients, constant)
    for scale in (None, factors):
        out = np.full((4, feature_map.d_out(6)), np.nan)
        layout = features._layout(6, coefficients, constant)
        features._fill_row_major(np, x, layout, scale, out)
        expected = by_hand(x, feature_map) * (1 if scale is None else scale[:, None])
        np.testing.assert_allclose(out, expected, rtol=1e-13)


def test_threads_do_not_share_scratch() -> None:
    inputs = [normal(48, 48, seed=seed) for seed in range(4)]
    expected = [Polynomial(2).apply(x, {}) for x in inputs]
    wrong: list[int] = []

    def work(i: int) -> None:
        for _ in range(30):
            if not np.array_equal(Polynomial(2).apply(inputs[i], {}), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def test_results_are_independent_arrays() -> None:
    x = normal(4, 5)
    first = Polynomial(2).apply(x, {})
    kept = first.copy()
    Polynomial(2).apply(x + 1, {})
    np.testing.assert_array_equal(first, kept)
    first *= 0  # a result may be written to
    np.testing.assert_array_equal(Polynomial(2).apply(x, {}), kept)


# -------------------------------------------------------------------------------------------- exponential


def test_random_exponential_is_unbiased_within_its_stated_error() -> None:
    x, y = normal(1, 6) * 0.15, normal(1, 6, seed=1) * 0.15
    exact = float(np.exp(np.sum(x * y)))
    for m in (64, 1024):
        feature_map = Exponential("random", features=m)
        stated = float(feature_map.kernel_error(x, y)[0])
        assert stated == pytest.approx(math.sqrt(math.expm1(np.sum((x + y) ** 2)) / m))
        products = np.array(
            [
                float(applied(feature_map, x, seed=seed)[0] @ applied(feature_map, y, seed=seed)[0])
                for seed in range(300)
            ]
        )
        relative = products / exact - 1
        assert abs(relative.mean()) < 4 * stated / math.sqrt(300)
        assert 0.75 * stated < relative.std() < 1.3 * stated


@given(seed=st.integers(0, 1000), degree=st.integers(1, 5), size=st.floats(0.1, 1.5))
def test_taylor_stays_within_its_stated_error(seed: int, degree: int, size: float) -> None:
    feature_map = Exponential("taylor", degree=degree)
    x, y = normal(3, 4, seed=seed) * size, normal(3, 4, seed=seed + 5000) * size
    r = np.sum(x * y, axis=-1)
    product = np.sum(applied(feature_map, x) * applied(feature_map, y), axis=-1)
    np.testing.assert_allclose(product, sum(r**j / math.factorial(j) for j in range(degree + 1)), atol=1e-10)
    assert (np.abs(product - np.exp(r)) <= feature_map.kernel_error(x, y) + 1e-10).all()


@pytest.mark.parametrize("feature_map", [Exponential("taylor", degree=5), Exponential("random", features=50)])
def test_normalised_exponential(feature_map: Exponential) -> None:
    x = normal(2, 3, 4)
    np.testing.assert_allclose(applied(feature_map, x, True), unit(applied(feature_map, x)), rtol=1e-12)


def test_normalised_random_exponential_does_not_overflow() -> None:
    phi = applied(Exponential("random", features=16), normal(2, 4).astype(np.float32) * 1e4, normalize=True)
    np.testing.assert_allclose(np.linalg.norm(phi, axis=-1), 1, rtol=1e-6)


# ------------------------------------------------------------------------------------------ random Fourier


@pytest.mark.parametrize("kappa", [0.5, 4.0])
def test_random_fourier_is_a_gaussian_of_the_distance(kappa: float) -> None:
    m = 20_000
    x = unit(normal(12, 5))
    phi = applied(RandomFourier(features=m, kappa=kappa), x)
    squared = np.sum((x[:, None] - x[None]) ** 2, axis=-1)
    # one product's terms lie in [-2, 2] with a variance of at most 1.5
    assert np.abs(phi @ phi.T - np.exp(-kappa * squared / 2)).max() < 5 * math.sqrt(1.5 / m)


def test_random_fourier_phases_are_uniform() -> None:
    phases = np.sort(RandomFourier(features=5000).constants(2, seed=3)["phases"]) / (2 * math.pi) + 0.5
    # Kolmogorov's statistic at a level of one in a million
    assert np.abs(phases - np.arange(5000) / 5000).max() < 2.7 / math.sqrt(5000)


# --------------------------------------------------------------------------------------- winner take all


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize(("width", "active"), [(1, 1), (8, 8), (40, 1), (40, 7)])
def test_the_largest_activations_win(width: int, active: int, binary: bool) -> None:
    feature_map = WinnerTakeAll(width, active, binary)
    x = normal(3, 6, 5)
    phi = applied(feature_map, x)
    activation = x @ feature_map.constants(5, 0)["directions"]
    largest = np.argsort(-activation, axis=-1)[..., :active]
    values = np.take_along_axis(phi, largest, axis=-1)
    assert (np.count_nonzero(phi, axis=-1) == active).all()
    if binary:
        assert (values == 1).all()
    else:
        expected = np.take_along_axis(activation, largest, axis=-1)
        np.testing.assert_allclose(values, expected - expected[..., -1:] + 1)
    np.testing.assert_allclose(np.linalg.norm(applied(feature_map, x, True), axis=-1), 1)


@given(levels=st.lists(st.integers(-2, 2), min_size=6, max_size=6), active=st.integers(1, 6))
def test_of_equal_activations_the_first_win(levels: list[int], active: int) -> None:
    directions = np.array([levels], dtype=np.float64)
    expected = sorted(range(6), key=lambda i: (-levels[i], i))[:active]
    for binary in (True, False):
        phi = WinnerTakeAll(6, active, binary).apply(np.ones((1, 1)), {"directions": directions})
        assert np.flatnonzero(phi[0]).tolist() == sorted(expected)


# --------------------------------------------------------------------------------------------- every map


@pytest.mark.parametrize("feature_map", MAPS, ids=repr)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(3, 4), (0, 4), (2, 1, 3, 4), (2, 0, 4), (0, 3, 4), (1, 1), (2, 17, 4)])
def test_shape_and_dtype(
    feature_map: FeatureMap, dtype: type, normalize: bool, shape: tuple[int, ...]
) -> None:
    x = normal(*shape).astype(dtype)
    before = x.copy()
    phi = applied(feature_map, x, normalize)
    assert phi.shape == (*shape[:-1], feature_map.d_out(shape[-1]))
    assert phi.dtype == dtype
    assert np.isfinite(phi).all()
    np.testing.assert_array_equal(x, before)
    if normalize:
        np.testing.assert_allclose(np.linalg.norm(phi, axis=-1), 1, rtol=1e-5)


@pytest.mark.parametrize("feature_map", MAPS, ids=repr)
def test_views_and_slices_are_inputs_like_others(feature_map: FeatureMap) -> None:
    x = normal(6, 5, 4)
    for view in (x.swapaxes(0, 1), x[::2, ::-1], x[..., :2]):
        for normalize in (True, False):
            np.testing.assert_allclose(
                applied(feature_map, view, normalize),
                applied(feature_map, view.copy(), normalize),
                rtol=1e-12,
                atol=1e-14,
            )


@pytest.mark.parametrize("feature_map", MAPS, ids=repr)
def test_zero_vectors_make_no_nan(feature_map: FeatureMap) -> None:
    assert np.isfinite(applied(feature_map, np.zeros((2, 3)), normalize=True)).all()


@pytest.mark.parametrize("feature_map", [Identity(), Polynomial(2, constant=False)], ids=repr)
def test_zero_features_stay_zero(feature_map: FeatureMap) -> None:
    assert not applied(feature_map, np.zeros((2, 3)), normalize=True).any()


@pytest.mark.parametrize("feature_map", MAPS, ids=repr)
def test_same_seed_same_features(feature_map: FeatureMap) -> None:
    x = normal(3, 4)
    np.testing.assert_array_equal(applied(feature_map, x, seed=5), applied(feature_map, x, seed=5))
    one, other = feature_map.constants(4, 5), feature_map.constants(4, 6)
    assert all(c.dtype == np.float64 for c in one.values())
    for name in set(one) - {"weights"}:
        assert (one[name] != other[name]).all()


def test_kinds() -> None:
    assert sorted(FEATURE_MAPS) == [
        "exponential",
        "identity",
        "polynomial",
        "random-fourier",
        "winner-take-all",
    ]
    for kind, feature_map in FEATURE_MAPS.items():
        assert feature_map.kind == kind


# ---------------------------------------------------------------------------------------- the whole front


def test_features_in_their_order() -> None:
    front = Features(Polynomial(2), projection=3, centre=True, normalize=True)
    k, mean = normal(2, 4, 7), normal(2, 3)
    constants = front.constants(7, seed=1)
    p = front.project(k, constants)
    np.testing.assert_allclose(p, k @ constants["projection"])
    key = unit(p - mean[:, None])
    np.testing.assert_allclose(front.prepare(p, mean), key)
    np.testing.assert_allclose(front.phi(p, constants, mean), unit(by_hand(key, Polynomial(2))), rtol=1e-12)
    assert (front.d_key(7), front.d_phi(7)) == (3, 10)
    np.testing.assert_allclose(front.prepare(p), unit(p))  # no mean is known yet


def test_features_that_do_nothing() -> None:
    front = Features(Identity(), normalize_keys=False)
    k = normal(4, 7)
    assert front.constants(7, seed=1) == {}
    assert front.phi(front.project(k, {}), {}, mean=np.ones(7)) is k
    assert (front.d_key(7), front.d_phi(7)) == (7, 7)


def test_projection_keeps_lengths_on_average() -> None:
    projection = Features(projection=200).constants(50, seed=0)["projection"]
    lengths = np.linalg.norm(unit(normal(100, 50)) @ projection, axis=-1)
    assert abs(lengths.mean() - 1) < 0.03


def test_zero_keys_stay_zero() -> None:
    assert not Features().prepare(np.zeros((2, 3))).any()


def test_constants_of_map_and_projection_live_together() -> None:
    front = Features(RandomFourier(features=8), projection=3)
    shapes = {name: c.shape for name, c in front.constants(5, seed=0).items()}
    assert shapes == {"projection": (5, 3), "directions": (3, 8), "phases": (8,)}


GOLDEN: list[tuple[Any, str, list[float]]] = [
    (Exponential(features=4), "directions", [-1.1153721196341946, 0.807382894260913, 0.7381379814420113]),
    (
        RandomFourier(features=4),
        "directions",
        [-0.45353238246385835, -2.8421015927674644, -4.7401001592984615],
    ),
    (RandomFourier(features=4), "phases", [1.111864401307167, -3.040255747205183, 1.602599484146399]),
    (WinnerTakeAll(4, 2), "directions", [0.5811021158620624, 0.4729363750008061, 0.09545852287033092]),
    (Features(projection=2), "projection", [-0.08726479816734563, 0.27812972624332216, 0.10425118458016892]),
]


@pytest.mark.parametrize(("spec", "name", "first"), GOLDEN)
def test_constants_never_drift(spec: Any, name: str, first: list[float]) -> None:
    """States that were saved once are read with these numbers."""
    np.testing.assert_allclose(spec.constants(3, seed=7)[name].ravel()[:3], first, rtol=1e-12)


# --------------------------------------------------------------------------------------------- validation


@pytest.mark.parametrize(
    ("cls", "arguments", "key"),
    [
        (Polynomial, {"degree": 0}, "degree"),
        (Polynomial, {"degree": 2.0}, "degree"),
        (Polynomial, {"degree": True}, "degree"),
        (Polynomial, {"constant": 1}, "constant"),
        (Polynomial, {"coefficients": (1.0, 1.0)}, "coefficients"),
        (Polynomial, {"coefficients": (1.0, math.nan, 1.0)}, "coefficients"),
        (Polynomial, {"coefficients": (1.0, "1", 1.0)}, "coefficients"),
        (Polynomial, {"coefficients": 1.0}, "coefficients"),
        (Polynomial, {"coefficients": (0.0, 0.0, 0.0)}, "coefficients"),
        (Polynomial, {"coefficients": (1.0, 0.0, 0.0), "constant": False}, "coefficients"),
        (Exponential, {"method": "exact"}, "method"),
        (Exponential, {"features": 0}, "features"),
        (Exponential, {"degree": -1}, "degree"),
        (RandomFourier, {"features": MAX_FEATURES + 1}, "features"),
        (RandomFourier, {"kappa": 0.0}, "kappa"),
        (RandomFourier, {"kappa": math.inf}, "kappa"),
        (WinnerTakeAll, {"features": 4, "active": 5}, "active"),
        (WinnerTakeAll, {"active": 0}, "active"),
        (WinnerTakeAll, {"binary": None}, "binary"),
        (Features, {"map": "polynomial"}, "map"),
        (Features, {"projection": 0}, "projection"),
        (Features, {"centre": "yes"}, "centre"),
        (Features, {"normalize": 1}, "normalize"),
    ],
)
def test_settings_that_make_no_sense(cls: type, arguments: dict[str, Any], key: str) -> None:
    with pytest.raises(InvalidParamError) as caught:
        cls(**arguments)
    assert caught.value.key == key
    assert "\n" not in caught.value.message
    assert not caught.value.message.endswith(".")


@pytest.mark.parametrize(
    "feature_map", [Polynomial(6), Polynomial(6, constant=False), Exponential("taylor", degree=6)], ids=repr
)
def test_too_many_features(feature_map: FeatureMap) -> None:
    x = np.zeros((1, 64))
    for call in (
        lambda: feature_map.d_out(64),
        lambda: applied(feature_map, x),
        lambda: Features(feature_map).d_phi(64),
    ):
        with pytest.raises(InvalidParamError, match="degree 6 of 64 inputs makes") as caught:
            call()
        assert caught.value.key == "degree"


def test_widths_below_one() -> None:
    for feature_map in MAPS:
        with pytest.raises(InvalidParamError, match="0 is not a whole number of at least 1"):
            feature_map.d_out(0)


def test_coefficients_from_json_are_a_tuple() -> None:
    assert Polynomial(2, [1, 0, 2]) == Polynomial(2, (1.0, 0.0, 2.0))  # type: ignore[arg-type]
    assert hash(Polynomial(2, [1, 0, 2])) == hash(Polynomial(2, (1.0, 0.0, 2.0)))  # type: ignore[arg-type]
