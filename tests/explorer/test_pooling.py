"""Pooling against a slow loop, and what of a matrix survives it: outliers, NaN, infinities."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from atlas_kit.explorer import pooling
from atlas_kit.explorer.pooling import block, furthest, pool, pool_blocks

DTYPES = st.sampled_from(
    [np.float16, np.float32, np.float64, np.int8, np.int32, np.int64, np.uint8, np.bool_]
)


@st.composite
def matrices(draw):
    shape = draw(st.tuples(st.integers(1, 40), st.integers(1, 40)))
    return draw(hnp.arrays(draw(DTYPES), shape))


def slowly(matrix, rows, cols):
    """The definition, one number after the other."""
    height, width = block(matrix.shape[0], rows), block(matrix.shape[1], cols)
    out = []
    for top in range(0, matrix.shape[0], height):
        line = []
        for left in range(0, matrix.shape[1], width):
            piece = [float(value) for value in matrix[top : top + height, left : left + width].ravel()]
            odd = [value for value in piece if value != value]
            # of two that are as far from zero, the positive one
            line.append(odd[0] if odd else max(piece, key=lambda value: (abs(value), value)))
        out.append(line)
    return np.array(out)


@given(matrices(), st.integers(1, 12), st.integers(1, 12), st.sampled_from([1, 64, 1 << 20]))
def test_pooling_is_what_the_loop_gives(matrix, rows, cols, band):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "BAND", band)
        found = pool(matrix, rows, cols)
    assert found.shape[0] <= rows
    assert found.shape[1] <= cols
    np.testing.assert_array_equal(found, slowly(matrix, rows, cols))


@given(matrices())
def test_one_block_of_all_is_the_number_furthest_from_zero(matrix):
    numbers = matrix.astype(np.float64)
    np.testing.assert_array_equal(pool_blocks(numbers, *numbers.shape), furthest(numbers))


@given(matrices())
def test_small_enough_matrices_stay_as_they_are(matrix):
    np.testing.assert_array_equal(pool(matrix, 40, 40), matrix)


@pytest.mark.parametrize(
    ("dtype", "expected"), [("f2", "f4"), ("f4", "f4"), ("i2", "f4"), ("i4", "f8"), ("f8", "f8"), ("?", "f4")]
)
def test_the_result_is_wide_enough_for_the_numbers(dtype, expected):
    assert pool(np.ones((9, 9), dtype), 2, 2).dtype == np.dtype(expected)
    assert pool(np.ones((2, 2), dtype), 2, 2).dtype == np.dtype(expected)


def test_one_outlier_among_many_millions_survives():
    matrix = np.zeros((8192, 8192), np.float32)
    matrix[8191, 4097] = -3
    tile = pool(matrix, 512, 512)
    assert tile.shape == (512, 512)
    assert np.argwhere(tile).tolist() == [[511, 256]]
    assert tile.min() == -3


@pytest.mark.parametrize("shape", [(1, 1), (1, 100_000), (100_000, 64), (513, 511)])
def test_no_shape_gives_more_than_was_asked_for(shape):
    tile = pool(np.ones(shape, np.float32), 512, 512)
    assert max(tile.shape) <= 512
    assert (tile == 1).all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0, 0)])
def test_nothing_pools_to_nothing(shape):
    assert pool(np.ones(shape), 3, 3).size == 0


def test_orders_in_memory_and_views_make_no_difference():
    matrix = np.random.default_rng(0).standard_normal((70, 90))
    expected = pool(matrix, 16, 16)
    np.testing.assert_array_equal(pool(np.asfortranarray(matrix), 16, 16), expected)
    np.testing.assert_array_equal(pool(np.repeat(matrix, 2, 0)[::2], 16, 16), expected)
