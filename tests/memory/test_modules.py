"""Memory modules: hand examples, token-by-token references, contraction of factors, shapes, settings."""

from __future__ import annotations

import dataclasses
import doctest
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import modules
from atlas_kit.memory.modules import ACTIVATIONS, GatedMLP, Matrix, ResidualMLP, gradient, parameter_count

MODULES = [
    Matrix(),
    *(
        ResidualMLP(depth=depth, width=5, residual=residual)
        for depth in (2, 3, 4)
        for residual in (True, False)
    ),
    GatedMLP(width=5),
    GatedMLP(width=5, activation="silu", residual=False),
]

ACTIVATION_OF = {
    "gelu": lambda z: 0.5 * z * (1 + math.tanh(math.sqrt(2 / math.pi) * (z + 0.044715 * z**3))),
    "silu": lambda z: z / (1 + math.exp(-z)),
    "relu": lambda z: max(z, 0.0),
    "tanh": math.tanh,
}


def random_params(module, d_in, d_out, lead=(), seed=0, dtype="float64"):
    """Return parameters with no zero matrix among them."""
    rng = np.random.default_rng(seed)
    shapes = module.shapes(d_in, d_out)
    return {n: (rng.standard_normal((*lead, *s)) / math.sqrt(s[0])).astype(dtype) for n, s in shapes.items()}


def run(module, params, x, dy):
    y, cache = module.forward(params, x)
    return y, module.factors(params, cache, dy)


def test_docstring_examples():
    result = doctest.testmod(modules)
    assert result.failed == 0
    assert result.attempted > 10


# Activations


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_is_the_textbook_formula(name):
    z = np.linspace(-6, 6, 101)
    value, _ = ACTIVATIONS[name].value(z)
    np.testing.assert_allclose(value, [ACTIVATION_OF[name](float(t)) for t in z], rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_slope_is_the_derivative(name):
    z, h = np.linspace(-12, 12, 100), 1e-5  # 100 points: none at the kink of relu
    _, memo = ACTIVATIONS[name].value(z)
    up, down = (ACTIVATIONS[name].value(z + step)[0] for step in (h, -h))
    np.testing.assert_allclose(
        ACTIVATIONS[name].backward(np.ones(100), z, memo), (up - down) / (2 * h), atol=2e-9
    )


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_of_the_largest_numbers_is_finite_and_silent(name, dtype):
    top = np.finfo(dtype).max
    z = np.array([-top, -1e30, -90, -10, -0.0, 0.0, 10, 90, 1e30, top], dtype=dtype)
    value, memo = ACTIVATIONS[name].value(z)
    slope = ACTIVATIONS[name].backward(np.ones_like(z), z, memo)
    assert value.dtype == slope.dtype == dtype
    assert np.isfinite(value).all()
    np.testing.assert_allclose(value[:3], -1 if name == "tanh" else 0, atol=1e-30)
    np.testing.assert_allclose(value[-3:], 1 if name == "tanh" else z[-3:])
    np.testing.assert_allclose(slope[[0, 1, 2, -3, -2, -1]], [0] * 6 if name == "tanh" else [0] * 3 + [1] * 3)


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activation_leaves_its_argument_alone_and_passes_nan(name):
    z = np.array([1.0, np.nan, -2.0])
    before = z.copy()
    value, memo = ACTIVATIONS[name].value(z)
    kept = memo.copy()
    g = np.array([1.0, np.nan, 3.0])
    back = ACTIVATIONS[name].backward(g, z, memo)
    np.testing.assert_array_equal(z, before)
    np.testing.assert_array_equal(memo, kept)
    np.testing.assert_array_equal(g, [1.0, np.nan, 3.0])
    assert np.isnan(value).tolist() == np.isnan(back).tolist() == [False, True, False]


# Reading


def skip(x, d_out):
    return np.array([x[j] if j < len(x) else 0.0 for j in range(d_out)])


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [2, 3, 4])
def test_mlp_is_the_formula_one_token_at_a_time(depth, activation, residual, d_in, d_out):
    module = ResidualMLP(depth=depth, width=3, activation=activation, residual=residual)
    params = random_params(module, d_in, d_out)
    s = np.vectorize(ACTIVATION_OF[activation])
    x = np.random.default_rng(1).standard_normal((5, d_in))
    y, _ = module.forward(params, x)
    for t in range(5):
        h = s(params["W_in"].T @ x[t])
        for number in range(1, depth - 1):
            h = h * residual + s(params[f"W_hidden_{number}"].T @ h)
        expected = params["W_out"].T @ h + (skip(x[t], d_out) if residual else 0)
        np.testing.assert_allclose(y[t], expected, atol=1e-13)


@pytest.mark.parametrize(("d_in", "d_out"), [(4, 4), (4, 2), (2, 4)])
@pytest.mark.parametrize("residual", [True, False])
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gated_mlp_is_equation_43_one_token_at_a_time(activation, residual, d_in, d_out):
    module = GatedMLP(width=3, activation=activation, residual=residual)
    params = random_params(module, d_in, d_out)
    x = np.random.default_rng(1).standard_normal((5, d_in))
    y, _ = module.forward(params, x)
    for t in range(5):
        hidden = np.vectorize(ACTIVATION_OF[activation])(params["W_in"].T @ x[t]) * (
            params["W_gate"].T @ x[t]
        )
        expected = params["W_out"].T @ hidden + (skip(x[t], d_out) if residual else 0)
        np.testing.assert_allclose(y[t], expected, atol=1e-13)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_an_empty_memory_reads_as_its_skip_connection(module):
    x = np.random.default_rng(0).standard_normal((3, 4))
    y, _ = module.forward(module.init(4, 6, seed=1), x)
    expected = np.zeros((3, 6))
    if getattr(module, "residual", False):
        expected[:, :4] = x
    np.testing.assert_array_equal(y, expected)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_start_values_are_fixed_by_the_seed(module):
    first, again, other = (module.init(4, 6, seed) for seed in (1, 1, 2))
    assert {name: array.shape for name, array in first.items()} == module.shapes(4, 6)
    for name, array in first.items():
        assert array.dtype == np.float64
        np.testing.assert_array_equal(array, again[name])
        output = name in ("W", "W_out")
        assert output == (not array.any())
        assert output or (array != other[name]).any()


def test_start_values_give_hidden_units_of_variance_one_for_inputs_of_length_one():
    params = GatedMLP(width=200).init(300, 5, seed=0)
    for name in ("W_in", "W_gate"):
        assert params[name].var() == pytest.approx(1, rel=0.02)
    assert (params["W_in"] != params["W_gate"]).all()
    deep = ResidualMLP(depth=3, width=300).init(100, 5, seed=0)
    assert deep["W_in"].var() == pytest.approx(1, rel=0.02)
    assert deep["W_hidden_1"].var() * 300 == pytest.approx(1, rel=0.02)


def test_shapes_and_counts():
    assert Matrix().shapes(4, 6) == {"W": (4, 6)}
    deep = ResidualMLP(depth=4, width=5)
    assert list(deep.shapes(4, 6)) == ["W_in", "W_hidden_1", "W_hidden_2", "W_out"]
    assert parameter_count(deep, 4, 6) == 4 * 5 + 5 * 5 + 5 * 5 + 5 * 6
    assert parameter_count(GatedMLP(width=5), 4, 6) == 4 * 5 + 4 * 5 + 5 * 6
    assert ResidualMLP().shapes(8, 2) == {"W_in": (8, 32), "W_out": (32, 2)}
    assert GatedMLP().shapes(2144, 2)["W_gate"] == (2144, modules.MAX_DEFAULT_WIDTH)


# Gradients of factors (finite differences are in test_gradients.py)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_gradient_is_the_weighted_sum_of_single_tokens(module):
    rng = np.random.default_rng(3)
    params = random_params(module, 4, 3)
    x, dy, w = rng.standard_normal((6, 4)), rng.standard_normal((6, 3)), rng.random(6)
    _, factors = run(module, params, x, dy)
    assert list(factors) == list(module.shapes(4, 3))
    total, plain = gradient(factors, w), gradient(factors)
    for name in factors:
        single = [gradient(run(module, params, x[t : t + 1], dy[t : t + 1])[1])[name] for t in range(6)]
        np.testing.assert_allclose(total[name], sum(w[t] * single[t] for t in range(6)), atol=1e-13)
        np.testing.assert_allclose(plain[name], sum(single), atol=1e-13)


@pytest.mark.parametrize("module", MODULES, ids=repr)
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_many_weightings_equal_one_at_a_time(module, lead):
    rng = np.random.default_rng(4)
    params = random_params(module, 4, 3, lead)
    x, dy = rng.standard_normal((*lead, 6, 4)), rng.standard_normal((*lead, 6, 3))
    w = rng.random((*lead, 5, 6))
    _, factors = run(module, params, x, dy)
    together = gradient(factors, w)
    for name, shape in module.shapes(4, 3).items():
        assert together[name].shape == (*lead, 5, *shape)
        stacked = np.stack([gradient(factors, w[..., s, :])[name] for s in range(5)], axis=-3)
        np.testing.assert_allclose(together[name], stacked, atol=1e-14)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_a_batch_is_its_rows(module):
    rng = np.random.default_rng(5)
    params = random_params(module, 4, 3, (3,))
    x, dy, w = rng.standard_normal((3, 6, 4)), rng.standard_normal((3, 6, 3)), rng.random((3, 2, 6))
    y, factors = run(module, params, x, dy)
    total = gradient(factors, w)
    for r in range(3):
        y_r, factors_r = run(module, {name: array[r] for name, array in params.items()}, x[r], dy[r])
        np.testing.assert_array_equal(y[r], y_r)
        for name, array in gradient(factors_r, w[r]).items():
            np.testing.assert_array_equal(total[name][r], array)


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_nothing_that_was_passed_is_changed(module):
    rng = np.random.default_rng(6)
    params = random_params(module, 4, 3)
    x, dy, w = rng.standard_normal((6, 4)), rng.standard_normal((6, 3)), rng.random(6)
    arrays = [*params.values(), x, dy, w]
    before = [array.copy() for array in arrays]
    _, cache = module.forward(params, x)
    first = gradient(module.factors(params, cache, dy), w)
    second = gradient(module.factors(params, cache, dy), w)  # the cache too serves twice
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)
    for name in first:
        np.testing.assert_array_equal(first[name], second[name])


@pytest.mark.parametrize("shape", [(), (5,), (2, 5), (2, 2, 2, 6)])
def test_weights_that_do_not_fit(shape):
    pair = {"W": (np.ones((2, 6, 4)), np.ones((2, 6, 3)))}
    with pytest.raises(InvalidParamError) as caught:
        gradient(pair, np.ones(shape))
    assert caught.value.key == "weights"


@pytest.mark.parametrize("activation", ACTIVATIONS)
@given(
    lead=st.lists(st.integers(0, 3), max_size=2),
    n=st.integers(0, 4),
    d_in=st.integers(1, 5),
    d_out=st.integers(1, 5),
    depth=st.integers(1, 4),
    gated=st.booleans(),
    residual=st.booleans(),
    s=st.none() | st.integers(0, 3),
)
def test_shapes_and_dtype_of_any_size(activation, lead, n, d_in, d_out, depth, gated, residual, s):
    module = Matrix() if depth == 1 else ResidualMLP(depth, 3, activation, residual)
    if gated:
        module = GatedMLP(3, activation, residual)
    lead = tuple(lead)
    params = random_params(module, d_in, d_out, lead, dtype="float32")
    x, dy = np.ones((*lead, n, d_in), "float32"), np.ones((*lead, n, d_out), "float32")
    steps = () if s is None else (s,)
    # some BLAS kernels raise the flag for lanes that belong to no number (seen once in thousands of runs)
    with np.errstate(invalid="ignore"):
        y, factors = run(module, params, x, dy)
        total = gradient(factors, np.ones((*lead, *steps, n), "float32"))
    assert np.isfinite(y).all()
    assert all(np.isfinite(array).all() for array in total.values())
    assert (y.shape, y.dtype) == (dy.shape, np.float32)
    for name, shape in module.shapes(d_in, d_out).items():
        a, b = factors[name]
        assert (a.shape, b.shape) == ((*lead, n, shape[0]), (*lead, n, shape[1]))
        assert total[name].shape == (*lead, *steps, *shape)
        assert a.dtype == b.dtype == total[name].dtype == np.float32
        assert n or not total[name].any()


# Settings


@pytest.mark.parametrize(
    ("build", "key"),
    [
        (lambda: ResidualMLP(depth=1), "depth"),
        (lambda: ResidualMLP(depth=2.0), "depth"),
        (lambda: ResidualMLP(depth=True), "depth"),
        (lambda: ResidualMLP(width=-1), "width"),
        (lambda: GatedMLP(width="3"), "width"),
        (lambda: GatedMLP(activation="swish"), "activation"),
        (lambda: ResidualMLP(activation=None), "activation"),
        (lambda: ResidualMLP(residual=1), "residual"),
    ],
)
def test_settings_that_make_no_sense(build, key):
    with pytest.raises(InvalidParamError) as caught:
        build()
    assert caught.value.key == key


@pytest.mark.parametrize("module", MODULES, ids=repr)
def test_settings_are_plain_values_under_a_kind(module):
    assert modules.MODULES[module.kind](**dataclasses.asdict(module)) == module
    assert hash(module) == hash(dataclasses.replace(module))
