"""Statistics and differences in pieces are those of the whole."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from atlas_kit.operations import tensor_numbers
from atlas_kit.operations.diff import _longest_rising, json_changes
from atlas_kit.operations.tensor_numbers import difference, stats_of, whole_items

FLOATS = st.floats(-1e6, 1e6, width=32)


def cut(array, places):
    return np.split(array, sorted(place % (array.size + 1) for place in places))


@given(st.lists(FLOATS, max_size=60), st.lists(st.integers(0, 100), max_size=5))
def test_statistics(values, places):
    array = np.array(values, np.float32)
    stats = stats_of(cut(array, places))
    assert stats.count == len(values)
    if not values:
        assert stats.mean is None
        return
    wide = array.astype(np.float64)
    assert (stats.min, stats.max) == (wide.min(), wide.max())
    assert stats.mean == pytest.approx(wide.mean(), rel=1e-9, abs=1e-9)
    assert stats.std == pytest.approx(wide.std(), rel=1e-6, abs=1e-6)
    assert stats.zeros == int((array == 0).sum())


def test_statistics_of_what_is_not_finite():
    stats = stats_of([np.array([np.nan, np.inf, -np.inf, 2.0, 0.0], np.float32), np.array([4], np.int8)])
    assert (stats.nan, stats.inf, stats.zeros, stats.mean) == (1, 2, 1, 2.0)


@given(
    st.lists(st.tuples(FLOATS, FLOATS), max_size=50),
    st.lists(st.integers(0, 100), max_size=4),
    st.integers(1, 9),
)
def test_differences(pairs, places, piece):
    a = np.array([x for x, _ in pairs], np.float32)
    b = np.array([y for _, y in pairs], np.float32)
    old, tensor_numbers.PIECE = tensor_numbers.PIECE, piece
    try:
        found = difference(cut(a, places), cut(b, places[:1]))
    finally:
        tensor_numbers.PIECE = old
    wide_a, wide_b = a.astype(np.float64), b.astype(np.float64)
    gap = np.abs(wide_a - wide_b)
    assert found.count == a.size
    assert found.differing == int((a != b).sum())
    assert found.max_abs == gap.max(initial=0)
    norm = float(np.linalg.norm(wide_a))
    if norm > 1e-3 and gap.any():
        assert found.relative_l2 == pytest.approx(np.linalg.norm(gap) / norm, rel=1e-6)


def test_differences_of_what_is_not_finite():
    same = difference([np.array([np.nan, np.inf])], [np.array([np.nan, np.inf])])
    assert (same.max_abs, same.differing) == (0.0, 0)
    other = difference([np.array([np.nan, 1.0])], [np.array([1.0, np.inf])])
    assert (other.max_abs, other.differing) == (math.inf, 2)
    assert difference([np.zeros(2)], [np.ones(2)]).relative_l2 == math.inf


@given(st.lists(st.binary(max_size=9)), st.integers(1, 7))
def test_whole_items(chunks, size):
    data = b"".join(chunks)
    pieces = list(whole_items(chunks, size))
    assert all(len(piece) % size == 0 for piece in pieces)
    assert b"".join(pieces) == data[: len(data) // size * size]


@given(st.permutations(range(8)))
def test_moved_entries_are_as_few_as_possible(numbers):
    kept = sorted(_longest_rising(list(numbers)))
    assert [numbers[n] for n in kept] == sorted(numbers[n] for n in kept)
    best = [1] * 8
    for i in range(8):
        for j in range(i):
            if numbers[j] < numbers[i]:
                best[i] = max(best[i], best[j] + 1)
    assert len(kept) == max(best)


@pytest.mark.parametrize(
    ("a", "b", "changes"),
    [
        ({"x": 1}, {"x": 1}, []),
        ({"x": 1}, {"x": 1.0}, []),
        ({"x": 1}, {"x": True}, [("$.x", "changed", 1, True)]),
        ({"x": 1, "y z": [1, 2]}, {"y z": [1, 3, 4]},
         [("$.x", "removed", 1, None), ('$["y z"][2]', "added", None, 4), ('$["y z"][1]', "changed", 2, 3)]),
        ([], {}, [("$", "changed", [], {})]),
    ],
)  # fmt: skip
def test_json_changes(a, b, changes):
    assert list(json_changes(a, b)) == changes


def test_json_tolerance_and_depth():
    assert list(json_changes({"a": 1.0}, {"a": 1.1}, 0.2)) == []
    deep_a, deep_b = 1, 2
    for _ in range(5000):
        deep_a, deep_b = [deep_a], [deep_b]
    (change,) = json_changes(deep_a, deep_b)
    assert change[2:] == (1, 2)


SIZES = (5e-324, 1e-310, 1e-200, 1e-160, 1.0, 1e160, 1e300)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("other", SIZES)
def test_a_cosine_keeps_its_bounds_at_any_size(monkeypatch, size, other):
    monkeypatch.setattr(tensor_numbers, "PIECE", 4)
    a = np.array([1, 2, -3, 4, 5, 6, -7, 8.0, 9])
    for sizes in (np.full(9, size), np.repeat((size, other), (5, 4)), np.repeat((other, size), (5, 4))):
        x = a * sizes
        same, opposite = difference([x], [x]), difference([x], [-x])
        assert same.cosine == pytest.approx(1)
        assert opposite.cosine == pytest.approx(-1)
        assert max(abs(same.cosine), abs(opposite.cosine)) <= 1
        assert (same.relative_l2, opposite.relative_l2) == (0, pytest.approx(2))
    assert difference([a * size], [0 * a]).cosine is None
    assert difference([a * size], [0 * a]).relative_l2 == pytest.approx(1)
