"""Objectives: hand examples, cross-entropy against a plain softmax, the rest mass, stability, messages."""

from __future__ import annotations

import dataclasses
import doctest

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import objectives
from atlas_kit.memory.objectives import L2, CrossEntropy, DotProduct, Readout

VOCABULARY, D_V, TOKENS = 20, 5, 6
IDS = np.array([1, 4, 5, 11, 17])


@dataclasses.dataclass
class Case:
    """A small language model's rows and states, and corrections to them."""

    rows: np.ndarray
    targets: dict
    y: np.ndarray
    centre: np.ndarray

    def readout(self, ids=None, centre=None):
        return Readout(self.rows if ids is None else self.rows[ids], ids, centre)


def make_case(objective, tokens=None, seed=0, lead=()):
    rng = np.random.default_rng(seed)
    rows, hidden = rng.standard_normal((VOCABULARY, D_V)), rng.standard_normal((*lead, TOKENS, D_V))
    token = rng.integers(0, VOCABULARY, (*lead, TOKENS)) if tokens is None else np.asarray(tokens)
    lse = np.log(np.exp(plain_logits(objective, hidden @ rows.T)).sum(axis=-1))
    targets = {"token": token, "hidden": hidden, "lse": lse}
    return Case(rows, targets, rng.standard_normal((*lead, TOKENS, D_V)), rows.mean(axis=0))


def plain_logits(objective, product):
    z = objective.scale * product
    return z if objective.softcap is None else objective.softcap * np.tanh(z / objective.softcap)


def softmax_reference(objective, case, y, corrected, centre=None):
    """Return the losses by a softmax over the vocabulary, in which only ``corrected`` tokens see y."""
    losses = []
    shift = np.zeros(D_V) if centre is None else centre
    for h, m, token in zip(case.targets["hidden"], y, case.targets["token"], strict=True):
        z = plain_logits(objective, case.rows @ h)
        z[corrected] = plain_logits(objective, case.rows[corrected] @ h + (case.rows[corrected] - shift) @ m)
        losses.append(np.log(np.exp(z).sum()) - z[token])
    return np.array(losses)


SETTINGS = [
    CrossEntropy(),
    CrossEntropy(scale=0.3),
    CrossEntropy(softcap=2.0),
    CrossEntropy(scale=2.0, softcap=3.0),
]
EVERY = np.arange(VOCABULARY)


def test_docstring_examples():
    result = doctest.testmod(objectives)
    assert result.failed == 0
    assert result.attempted > 8


def test_values():
    rng = np.random.default_rng(0)
    y, v = rng.standard_normal((2, 3, 4)), rng.standard_normal((2, 3, 4))
    loss, dy = L2().evaluate(y, {"value": v})
    np.testing.assert_allclose(loss, 0.5 * np.linalg.norm(y - v, axis=-1) ** 2)
    np.testing.assert_array_equal(dy, y - v)
    loss, dy = DotProduct().evaluate(y, {"value": v})
    np.testing.assert_allclose(loss, -(y * v).sum(axis=-1))
    np.testing.assert_array_equal(dy, -v)


# Cross-entropy


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
def test_full_vocabulary_is_the_plain_softmax(objective):
    case = make_case(objective)
    loss, dy = objective.evaluate(case.y, case.targets, case.readout())
    np.testing.assert_allclose(loss, softmax_reference(objective, case, case.y, EVERY), atol=1e-13)
    state = case.targets["hidden"] + case.y
    z = plain_logits(objective, state @ case.rows.T)
    p = np.exp(z) / np.exp(z).sum(axis=-1, keepdims=True)
    dz = (p - np.eye(VOCABULARY)[case.targets["token"]]) * objective.scale
    if objective.softcap:
        dz *= 1 - (z / objective.softcap) ** 2
    np.testing.assert_allclose(dy, dz @ case.rows, atol=1e-13)


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
@pytest.mark.parametrize("centred", [False, True])
def test_all_tokens_as_candidates_are_the_full_vocabulary(objective, centred):
    case = make_case(objective)
    centre = case.centre if centred else None
    full = objective.evaluate(case.y, case.targets, case.readout(centre=centre))
    listed = objective.evaluate(case.y, case.targets, case.readout(EVERY, centre))
    np.testing.assert_allclose(listed[0], full[0], atol=1e-12)
    np.testing.assert_allclose(listed[1], full[1], atol=1e-12)


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
@pytest.mark.parametrize("centred", [False, True])
def test_candidates_are_a_softmax_in_which_the_others_stay(objective, centred):
    case = make_case(objective, tokens=[1, 4, 5, 11, 17, 4])
    centre = case.centre if centred else None
    loss, _ = objective.evaluate(case.y, case.targets, case.readout(IDS, centre))
    np.testing.assert_allclose(loss, softmax_reference(objective, case, case.y, IDS, centre), atol=1e-12)


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
def test_without_a_correction_candidates_give_the_models_own_loss(objective):
    case = make_case(objective, tokens=[1, 4, 5, 11, 17, 4])
    nothing = np.zeros_like(case.y)
    loss, _ = objective.evaluate(nothing, case.targets, case.readout(IDS, case.centre))
    np.testing.assert_allclose(loss, softmax_reference(objective, case, nothing, EVERY), atol=1e-13)


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
def test_a_target_outside_lacks_a_constant_only(objective):
    case = make_case(objective, tokens=[0, 2, 3, 10, 18, 19])
    missing = []
    for y in (np.zeros_like(case.y), case.y, -3 * case.y):
        loss, _ = objective.evaluate(y, case.targets, case.readout(IDS, case.centre))
        missing.append(softmax_reference(objective, case, y, IDS, case.centre) - loss)
    assert (missing[0] > 0).all()  # the token's share of the rest is less than all of it
    np.testing.assert_allclose(missing[1], missing[0], atol=1e-12)
    np.testing.assert_allclose(missing[2], missing[0], atol=1e-12)


def test_the_centre_changes_nothing_where_no_token_is_left_out():
    case = make_case(CrossEntropy())
    plain = CrossEntropy().evaluate(case.y, case.targets, case.readout())
    centred = CrossEntropy().evaluate(case.y, case.targets, case.readout(centre=case.centre))
    np.testing.assert_allclose(centred[0], plain[0], atol=1e-13)
    np.testing.assert_allclose(centred[1], plain[1], atol=1e-13)


@pytest.mark.parametrize("objective", SETTINGS)
@pytest.mark.parametrize("ids", [None, np.array([0, 2, 3])])
def test_a_bias_is_added_before_scale_and_softcap(objective, ids):
    # a bias is one more column of the rows, for a state that is always 1 and that no correction reaches
    case, bias = make_case(objective), np.random.default_rng(5).standard_normal(VOCABULARY)
    wide = np.column_stack((case.rows, bias))
    hidden = np.concatenate((case.targets["hidden"], np.ones((TOKENS, 1))), axis=-1)
    lse = np.log(np.exp(plain_logits(objective, hidden @ wide.T)).sum(axis=-1))
    y = np.concatenate((case.y, np.zeros((TOKENS, 1))), axis=-1)
    some = slice(None) if ids is None else ids
    expected, slope = objective.evaluate(
        y, {**case.targets, "hidden": hidden, "lse": lse}, Readout(wide[some], ids, np.append(case.centre, 0))
    )
    readout = Readout(case.rows[some], ids, case.centre, bias[some])
    loss, dy = objective.evaluate(case.y, {**case.targets, "lse": lse}, readout)
    np.testing.assert_allclose(loss, expected, atol=1e-12)
    np.testing.assert_allclose(dy, slope[:, :-1], atol=1e-12)


def test_a_bias_keeps_the_dtype():
    case = make_case(CrossEntropy())
    targets = {name: array if name == "token" else array.astype("f4") for name, array in case.targets.items()}
    readout = Readout(case.rows.astype("f4"), None, None, np.ones(VOCABULARY, "f8"))
    loss, dy = CrossEntropy().evaluate(case.y.astype("f4"), targets, readout)
    assert loss.dtype == dy.dtype == np.float32


def test_full_vocabulary_ignores_lse():
    case = make_case(CrossEntropy())
    without = {name: case.targets[name] for name in ("token", "hidden")}
    first = CrossEntropy().evaluate(case.y, without, case.readout())
    second = CrossEntropy().evaluate(case.y, case.targets, case.readout())
    np.testing.assert_array_equal(first[0], second[0])


@pytest.mark.parametrize("ids", [None, IDS], ids=["full", "candidates"])
def test_leading_axes_are_independent(ids):
    objective = CrossEntropy(scale=0.8, softcap=4.0)
    case = make_case(objective, lead=(2, 3))
    readout = case.readout(ids, case.centre)
    loss, dy = objective.evaluate(case.y, case.targets, readout)
    assert (loss.shape, dy.shape) == ((2, 3, TOKENS), (2, 3, TOKENS, D_V))
    for at in np.ndindex(2, 3):
        one = objective.evaluate(case.y[at], {name: a[at] for name, a in case.targets.items()}, readout)
        np.testing.assert_allclose(loss[at], one[0], atol=1e-14)
        np.testing.assert_allclose(dy[at], one[1], atol=1e-14)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("ids", [None, np.array([0, 1])], ids=["full", "candidates"])
@pytest.mark.parametrize("size", [1.0, 90.0, 1e4, 1e15])
def test_extreme_logits_are_finite_and_silent(dtype, ids, size):
    rows = np.array([[1.0], [-1.0], [0.0]], dtype)
    hidden = np.array([[size], [-size], [size], [-size], [0.0], [0.0]], dtype)
    lse = np.abs(hidden[:, 0]) + np.array([0, 0, 0, 0, np.log(3), np.log(3)], dtype)
    targets = {"token": np.array([0, 0, 1, 2 if ids is None else 1, 0, 1]), "hidden": hidden, "lse": lse}
    y = np.array([[0.0], [0.0], [size], [-size], [size], [-size]], dtype)
    loss, dy = CrossEntropy().evaluate(y, targets, Readout(rows if ids is None else rows[ids], ids))
    assert loss.dtype == dy.dtype == dtype
    assert np.isfinite(loss).all()
    assert np.isfinite(dy).all()
    assert (loss >= -1e-6).all()
    if size >= 90:
        np.testing.assert_allclose(loss[:3], [0, 2 * size, 4 * size], rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_rest_is_never_negative_and_never_nothing_for_a_target_inside_it(dtype):
    rows, eps = np.array([[1.0], [-1.0]], dtype), float(np.finfo(dtype).eps)
    targets = {
        "token": np.array([3, 7, 3]),
        "hidden": np.zeros((3, 1), dtype),
        "lse": np.array(
            [np.log(2), np.log(2), 0.0], dtype
        ),  # all mass is the candidates'; at last, less than that
    }
    readout = Readout(rows, np.array([3, 5]))
    loss, dy = CrossEntropy().evaluate(np.zeros((3, 1), dtype), targets, readout)
    np.testing.assert_allclose(loss[[0, 2]], np.log(2), rtol=1e-6)
    assert loss[1] == pytest.approx(-np.log(eps), rel=0.05)
    np.testing.assert_allclose(dy[:, 0], [-1, 0, -1], atol=1e-6)


def test_a_memory_may_push_every_candidate_down_though_nothing_else_is_left():
    targets = {"token": np.array([0]), "hidden": np.zeros((1, 1)), "lse": np.array([0.0])}
    loss, dy = CrossEntropy().evaluate(
        np.array([[-5000.0]]), targets, Readout(np.ones((1, 1)), np.array([0]))
    )
    assert (loss.tolist(), dy.tolist()) == ([0.0], [[0.0]])


@pytest.mark.parametrize("bad", ["y", "hidden", "lse"])
def test_nan_stays_in_its_token(bad):
    case = make_case(CrossEntropy(), tokens=[1, 4, 0, 11, 17, 4])
    for array in (case.y, case.targets["hidden"], case.targets["lse"]):
        array.setflags(write=True)
    (case.y if bad == "y" else case.targets[bad])[2] = np.nan
    loss, dy = CrossEntropy().evaluate(case.y, case.targets, case.readout(IDS, case.centre))
    assert (
        np.isnan(loss).tolist()
        == np.isnan(dy).any(axis=-1).tolist()
        == [False, False, True, False, False, False]
    )


@pytest.mark.parametrize("objective", SETTINGS, ids=repr)
@pytest.mark.parametrize("ids", [None, IDS], ids=["full", "candidates"])
def test_nothing_that_was_passed_is_changed(objective, ids):
    case = make_case(objective)
    readout = case.readout(ids, case.centre)
    arrays = [case.y, *case.targets.values(), readout.rows, readout.centre]
    before = [array.copy() for array in arrays]
    objective.evaluate(case.y, case.targets, readout)
    for array, old in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, old)


@given(
    lead=st.lists(st.integers(0, 2), max_size=2),
    n=st.integers(0, 3),
    d_v=st.integers(1, 3),
    size=st.integers(1, 4),
    known=st.booleans(),
    settings=st.sampled_from(SETTINGS),
    stored=st.sampled_from(["float16", "float32", "float64"]),
)
def test_any_shape_keeps_the_dtype_of_the_answers(lead, n, d_v, size, known, settings, stored):
    shape = (*lead, n)
    y = np.ones((*shape, d_v), "float32")
    readout = Readout(
        np.ones((size, d_v), stored), 2 * np.arange(size) if known else None, np.ones(d_v, stored)
    )
    targets = {
        "token": np.zeros(shape, "int32"),
        "hidden": np.ones((*shape, d_v), stored),
        "lse": np.full(shape, 20, stored),
        "value": np.ones((*shape, d_v), stored),
    }
    for objective in (settings, L2(), DotProduct()):
        loss, dy = objective.evaluate(y, targets, readout if objective is settings else None)
        assert (loss.shape, dy.shape) == (shape, (*shape, d_v))
        assert loss.dtype == dy.dtype == np.float32
        assert np.isfinite(loss).all()


# Interface


def test_fields_describe_the_targets():
    assert L2().fields(5) == DotProduct().fields(5) == {"value": ((5,), "float")}
    case = make_case(CrossEntropy())
    fields = CrossEntropy().fields(D_V)
    assert list(fields) == list(case.targets)
    for name, (shape, kind) in fields.items():
        assert case.targets[name].shape == (TOKENS, *shape)
        assert case.targets[name].dtype.kind == kind[0]


@pytest.mark.parametrize("objective", [*SETTINGS, L2(), DotProduct()], ids=repr)
def test_settings_are_plain_values_under_a_kind(objective):
    assert objectives.OBJECTIVES[objective.kind](**dataclasses.asdict(objective)) == objective


def test_numpy_scalars_as_settings_do_not_widen():
    objective = CrossEntropy(scale=np.float64(0.5), softcap=np.float64(3.0))
    assert type(objective.scale) is type(objective.softcap) is float


def test_a_runtime_may_evaluate_itself():
    class Runtime:
        def evaluate(self, y, targets):
            return targets["token"] * 2.0, y - 1

    y = np.zeros((2, 3), "float32")
    loss, dy = CrossEntropy().evaluate(y, {"token": np.array([1, 2])}, Runtime())
    assert (loss.tolist(), dy.tolist()) == ([2, 4], [[-1, -1, -1]] * 2)
    assert loss.dtype == dy.dtype == np.float32
    with pytest.raises(InvalidParamError) as caught:
        CrossEntropy().evaluate(np.zeros((3, 3)), {"token": np.array([1, 2])}, Runtime())
    assert caught.value.key == "readout"


def without(name):
    return {key: array for key, array in make_case(CrossEntropy()).targets.items() if key != name}


def instead(**changes):
    return {**make_case(CrossEntropy()).targets, **changes}


ROWS = np.ones((3, D_V))


@pytest.mark.parametrize(
    ("call", "key"),
    [
        (lambda y: L2().evaluate(y, {}), "value"),
        (lambda y: DotProduct().evaluate(y, {"value": y[0]}), "value"),
        (lambda y: L2().evaluate(y, {"value": y}, Readout(ROWS)), "readout"),
        (lambda y: CrossEntropy().evaluate(y, instead()), "readout"),
        (lambda y: CrossEntropy().evaluate(y, instead(), ROWS), "readout"),
        (lambda y: CrossEntropy().evaluate(y, without("token"), Readout(ROWS)), "token"),
        (lambda y: CrossEntropy().evaluate(y, instead(token=np.zeros(TOKENS)), Readout(ROWS)), "token"),
        (lambda y: CrossEntropy().evaluate(y, instead(token=np.zeros(2, int)), Readout(ROWS)), "token"),
        (lambda y: CrossEntropy().evaluate(y, instead(token=np.full(TOKENS, 3)), Readout(ROWS)), "token"),
        (lambda y: CrossEntropy().evaluate(y, instead(token=np.full(TOKENS, -1)), Readout(ROWS)), "token"),
        (lambda y: CrossEntropy().evaluate(y, without("hidden"), Readout(ROWS)), "hidden"),
        (lambda y: CrossEntropy().evaluate(y, instead(hidden=y[:, 1:]), Readout(ROWS)), "hidden"),
        (lambda y: CrossEntropy().evaluate(y, without("lse"), Readout(ROWS, np.arange(3))), "lse"),
        (lambda y: CrossEntropy().evaluate(y, instead(lse=y), Readout(ROWS, np.arange(3))), "lse"),
        (lambda y: CrossEntropy().evaluate(y, instead(), Readout(ROWS[:, 1:])), "rows"),
        (lambda y: Readout(ROWS[:0]), "rows"),
        (lambda y: Readout(ROWS[0]), "rows"),
        (lambda y: Readout(ROWS, bias=np.ones(2)), "bias"),
        (lambda y: Readout(ROWS, bias=np.ones((3, 1))), "bias"),
        (lambda y: Readout(ROWS, bias=[1.0, 2.0, 3.0]), "bias"),
        (lambda y: Readout(ROWS, np.arange(2)), "ids"),
        (lambda y: Readout(ROWS, np.array([0, 2, 2])), "ids"),
        (lambda y: Readout(ROWS, np.array([0.0, 1.0, 2.0])), "ids"),
        (lambda y: Readout(ROWS, centre=np.ones(D_V + 1)), "centre"),
        (lambda y: CrossEntropy(scale=0), "scale"),
        (lambda y: CrossEntropy(scale=None), "scale"),
        (lambda y: CrossEntropy(scale=float("nan")), "scale"),
        (lambda y: CrossEntropy(softcap=-1.0), "softcap"),
        (lambda y: CrossEntropy(softcap=True), "softcap"),
    ],
)
def test_what_does_not_fit_is_named(call, key):
    with pytest.raises(InvalidParamError) as caught:
        call(np.zeros((TOKENS, D_V)))
    assert caught.value.key == key
