"""Whole numbers between two bounds."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.errors import InvalidParamError
from atlas_kit.llama.schema_integers import between, bounds_of

FAR = 10**16 - 1


def takes(rule: str, text: str) -> bool:
    """Tell whether a rule takes a text: but for spaces and quotation marks, it is written as Python has it."""
    return re.fullmatch(rule.replace('"', "").replace(" ", ""), text) is not None


@given(st.integers(-1200, 1200), st.integers(0, 1300))
def test_exactly_the_numbers_between_are_taken(first: int, count: int) -> None:
    rule, last = between(first, first + count), first + count
    for number in {
        *range(first - 12, first + 12),
        *range(last - 12, last + 12),
        0,
        -first,
        -last,
        10 * last,
        10 * first,
    }:
        assert takes(rule, str(number)) == (first <= number <= last), number
    for text in ("", "-", "-0", "00", "01", "-01", f"0{last}", "1.5", "+1"):
        assert not takes(rule, text)


@given(st.integers(-FAR, FAR), st.integers(-FAR, FAR), st.integers(-FAR, FAR))
def test_numbers_of_any_length(one: int, two: int, number: int) -> None:
    first, last = sorted((one, two))
    rule = between(first, last)
    assert len(rule) < 5000
    for some in (number, first, last, first - 1, last + 1):
        assert takes(rule, str(some)) == (first <= some <= last)
    assert takes(between(first, None), str(number)) == (number >= first)
    assert takes(between(None, first), str(number)) == (number <= first)


def test_bounds_that_no_number_is_between() -> None:
    with pytest.raises(InvalidParamError, match="minimum above its maximum"):
        between(3, 2)
    assert takes(between(10**20, None), str(10**20))  # farther than numbers without a bound
    assert takes(between(None, -(10**20)), str(-(10**20)))


def test_what_is_no_bound_is_none() -> None:
    assert bounds_of({"minimum": True, "maximum": "3", "exclusiveMinimum": None}) is None
    assert bounds_of({"minimum": float("inf")}) is None
    assert bounds_of({"minimum": 1, "exclusiveMinimum": 5, "maximum": 9.9, "exclusiveMaximum": 9.5}) == (6, 9)
