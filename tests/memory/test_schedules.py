"""Schedules: hand examples, ends, monotony, and their JSON form."""

from __future__ import annotations

import doctest
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.memory import schedules
from atlas_kit.memory.schedules import KINDS, Schedule, from_json, rate_at, to_json

FALLING = [Schedule(kind, 0.8, 0.1, tokens=100) for kind in KINDS]


def test_docstring_examples():
    result = doctest.testmod(schedules)
    assert result.failed == 0
    assert result.attempted > 5


@pytest.mark.parametrize("schedule", FALLING, ids=lambda schedule: schedule.kind)
def test_goes_from_start_towards_end(schedule):
    rates = schedule.at(np.arange(-3, 300))
    assert (rates[:4] == 0.8).all()
    if schedule.kind == "constant":
        assert (rates == 0.8).all()
        return
    assert (np.diff(rates[3:]) <= 0).all()
    if schedule.kind == "inverse-sqrt":
        assert schedule.at(np.array([100, 300, 10_000])) == pytest.approx([0.8 / 2**0.5, 0.4, 0.1])
    else:
        np.testing.assert_allclose(rates[103:], 0.1, rtol=1e-15)


@pytest.mark.parametrize("kind", ["linear", "cosine", "exponential"])
def test_may_rise(kind):
    rates = Schedule(kind, 0.1, 0.8, tokens=7).at(np.arange(10))
    assert rates[0] == 0.1
    assert (np.diff(rates) >= 0).all()
    assert rates[-1] == pytest.approx(0.8, rel=1e-15)


def test_exponential_takes_equal_ratios():
    rates = Schedule("exponential", 1e-300, 1e300, tokens=4).at(np.arange(5))
    np.testing.assert_allclose(rates, [1e-300, 1e-150, 1.0, 1e150, 1e300], rtol=1e-12)


@given(
    shape=st.lists(st.integers(0, 3), max_size=3),
    rate=st.sampled_from([*FALLING, 0.5]),
    dtype=st.sampled_from(["float32", "float64"]),
    start=st.integers(0, 2**53),
)
def test_any_shape(shape, rate, dtype, start):
    t = np.arange(start, start + int(np.prod(shape))).reshape(shape)
    rates = rate_at(rate, t, dtype)
    assert (rates.shape, rates.dtype) == (tuple(shape), dtype)
    one_by_one = [rate_at(rate, t[at : at + 1])[0] for at in range(t.size)] if t.ndim == 1 else []
    assert not one_by_one or np.allclose(rates, one_by_one, rtol=1e-6)
    assert ((rates >= np.float32(0.099)) & (rates <= np.float32(0.801))).all()


@pytest.mark.parametrize("rate", [0.25, 1, *FALLING], ids=str)
def test_json_there_and_back(rate):
    document = json.loads(json.dumps(to_json(rate)))
    assert from_json(document) == rate
    assert isinstance(document, float if isinstance(rate, (int, float)) else dict)


@pytest.mark.parametrize(
    "value",
    [
        "0.5",
        None,
        True,
        [0.5],
        float("nan"),
        float("inf"),
        {},
        {"kind": "linear"},
        {"kind": "constant", "start": 1.0, "stop": 2.0},
    ],
    ids=repr,
)
def test_json_that_is_no_rate(value):
    with pytest.raises(InvalidParamError) as caught:
        from_json(value, key="eta")
    assert caught.value.key == "eta"


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        (("steps", 0.1), "kind"),
        (("constant", "0.1"), "start"),
        (("constant", float("nan")), "start"),
        (("linear", 0.1, None, 5), "end"),
        (("linear", 0.1, 0.2), "tokens"),
        (("linear", 0.1, 0.2, 5.0), "tokens"),
        (("cosine", 0.1, 0.2, -5), "tokens"),
        (("exponential", 0.1, 0.0, 5), "end"),
        (("exponential", -0.1, 0.1, 5), "end"),
        (("inverse-sqrt", 0.1, 0.2, 5), "end"),
    ],
)
def test_settings_that_make_no_sense(arguments, key):
    with pytest.raises(InvalidParamError) as caught:
        Schedule(*arguments)
    assert caught.value.key == key


def test_numpy_scalars_become_plain_numbers():
    schedule = Schedule("linear", np.float64(0.5), np.float64(0.25), 3)
    assert type(schedule.start) is type(schedule.end) is float
